package testbed

import (
	"crypto/rand"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/node"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/demo"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// world runs the demo's network over a fleet: its first five nodes only vote, and the others are three POPs, so that all
// voters can die and every door stays.
func (f *Fleet) world(t *testing.T) *World {
	t.Helper()
	w := &World{dir: f.dir, log: f.log, in: f.in, nodes: map[string]*worldNode{}, targets: map[string]*worldTarget{}, clients: map[string]*memnet.Host{}, access: f.access}
	for _, c := range clients {
		w.clients[c.name] = f.in.Host(c.name, c.at, netip.MustParseAddr(c.addr))
	}
	var err error
	if w.site, err = siteWithFilm(); err != nil {
		t.Fatal(err)
	}
	w.files = fstest.MapFS{}
	w.layout = demo.Layout{Port: lbPort, Accelerator: accelerated}
	for i, r := range demo.Regions() {
		place, err := placeOf(r.Name)
		if err != nil {
			t.Fatal(err)
		}
		for j, letter := range []string{"a", "b"} {
			ip := netip.AddrFrom4([4]byte{10, 1, byte(i), byte(j + 1)})
			e := demo.Endpoint{Name: r.Short + "-" + letter, HTTP: netip.AddrPortFrom(ip, webPort), TCP: netip.AddrPortFrom(ip, tcpPort)}
			r.Targets = append(r.Targets, e)
			target := &worldTarget{host: f.in.Host(e.Name, place, ip), region: r.Name}
			target.Name, target.Region, target.Site = e.Name, r.Name, w.site
			w.targets[e.Name] = target
			if err := w.startTarget(target); err != nil {
				t.Fatal(err)
			}
		}
		w.layout.Regions = append(w.layout.Regions, r)
		pop := f.nodes[r.POP]
		w.nodes[r.POP] = &worldNode{cfg: pop.cfg, host: pop.host, api: pop.api}
	}
	return w
}

// addPOPs adds a node for each POP of the demo, none of which may vote.
func (f *Fleet) addPOPs(t *testing.T) {
	t.Helper()
	for _, r := range demo.Regions() {
		region := slices.IndexFunc(f.places, func(p fleetPlace) bool { return p.region == r.Name })
		err := f.Add(t.Context(), r.POP, region, []view.Role{view.Edge, view.DNS, view.Origin}, func(c *node.Config) {
			at := func(port uint16) string { return netip.AddrPortFrom(c.Advertise, port).String() }
			c.HTTP, c.DNS, c.CacheBytes = at(httpPort), at(dnsPort), 16<<20
			host := f.nodes[c.Name].host
			c.ListenAnycast = func(network, address string) (net.Listener, error) {
				ap, err := netip.ParseAddrPort(address)
				if err != nil {
					return nil, err
				}
				l, err := host.Listen(network, address)
				if err != nil {
					return nil, err
				}
				host.Announce(ap.Addr())
				return &announced{Listener: l, host: host, addr: ap.Addr()}, nil
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// With every voter dead for a day the network serves what it knows, goes round what it sees broken, and a node restarts alone.
// Then the voters come back and all is one. PERIGEE_LONG=1 lives through every second of that day.
func TestTheNetworkServesForADayWithoutAnyVoter(t *testing.T) {
	votes := func(c *node.Config) { c.Roles = []view.Role{view.Voter} }
	inFleet(t, FleetConfig{Nodes: 5, Regions: 3, Prefix: "voter-", Tune: votes}, func(t *testing.T, f *Fleet) {
		voters := slices.Clone(f.Names)
		f.addPOPs(t)
		w := f.world(t)
		yaml, err := w.layout.Spec()
		if err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		if _, err := f.API(voters[0]).Apply(ctx, api.ApplyRequest{ID: rand.Text(), Files: []api.File{{Name: "demo.yaml", Data: string(yaml)}}}); err != nil {
			t.Fatal(err)
		}
		if err := f.Agree(ctx, settled); err != nil {
			t.Fatal(err)
		}
		run := func(when, text string) {
			t.Helper()
			s, err := ParseScenario(when, text)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Run(ctx, w, nil); err != nil {
				t.Error(err)
			}
		}
		all := `
within 30s get seoul http://www.demo.perigee.test/region   => 200 "ap-northeast-2 icn-"
within 30s get london http://www.demo.perigee.test/region  => 200 "eu-central-1 fra-"
within 30s get newyork http://www.demo.perigee.test/region => 200 "us-east-1 iad-"
dig seoul www.demo.perigee.test A                          => NOERROR
within 30s dial seoul tcp.demo.perigee.test:7777           => "ap-northeast-2 icn-" echoed
within 30s dial london tcp.demo.perigee.test:7777          => "eu-central-1 fra-" echoed
`
		run("at first", all)
		for i, name := range voters {
			if i%2 == 0 {
				f.Kill(name)
			} else {
				f.Crash(name)
			}
		}
		time.Sleep(time.Minute)
		run("without voters", all)
		run("without voters and targets", `
kill icn-a
kill icn-b
within 60s get seoul http://www.demo.perigee.test/region => 200
within 60s dial seoul tcp.demo.perigee.test:7777         => echoed
start icn-a
start icn-b
`)
		pop := demo.Regions()[1].POP
		f.Kill(pop)
		run("without voters and a POP", `
within 60s get london http://www.demo.perigee.test/region => 200
`)
		time.Sleep(10 * time.Minute)
		if err := f.Start(ctx, pop); err != nil {
			t.Fatal(err)
		}
		run("after a restart", all)
		// One restarts with nobody to hear it.
		f.Pause(pop)
		time.Sleep(time.Minute)
		f.Kill(pop)
		began := time.Now()
		if err := f.Start(ctx, pop); err != nil {
			t.Fatal(err)
		}
		t.Logf("alone it starts after %v", time.Since(began))
		if st, err := f.Inside(pop).Status(ctx); err != nil || st.Running == 0 {
			t.Errorf("alone it runs revision %d: %v", st.Running, err)
		}
		q := new(dns.Msg).SetQuestion("www.demo.perigee.test.", dns.TypeA)
		if res, err := exchange(ctx, visitor{dial: f.nodes[pop].host.Dial}, netip.AddrPortFrom(f.nodes[pop].cfg.Advertise, dnsPort), q, "udp"); err != nil || len(res.Answer) == 0 {
			t.Errorf("alone it answers %v: %v", res, err)
		}
		f.Resume(pop)
		time.Sleep(time.Minute)
		run("after it restarted alone", all)
		rest := 10 * time.Minute
		if os.Getenv("PERIGEE_LONG") != "" {
			rest = 24 * time.Hour
		}
		f.JumpAll(24*time.Hour - rest) // the clocks show that a day has passed; to live through each second of it takes minutes
		time.Sleep(rest)
		run("after a day", all)
		_, err = f.apply(ctx, pop, registerYAML(0, 1))
		if err == nil || !strings.Contains(err.Error(), "leader") {
			t.Errorf("a change without voters: %v", err)
		}
		for _, name := range voters {
			if err := f.Start(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Agree(ctx, 2*settled); err != nil {
			t.Fatal(err)
		}
		f.mustApply(t, pop, registerYAML(0, 1))
		if err := f.Agree(ctx, settled); err != nil {
			t.Error(err)
		}
		run("at the end", all)
		for _, target := range w.targets {
			target.end()
		}
	})
}
