package testbed

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// foreign is a name server of somebody else, with a zone of one record beside its SOA and NS, whose address is its serial's.
type foreign struct {
	host   *memnet.Host
	server *dns.Server

	mu     sync.Mutex
	serial uint32
	whole  int // times that the zone was taken
}

func (f *foreign) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var zone []dns.RR
	for _, line := range []string{
		fmt.Sprintf("foreign.example. 60 SOA ns.foreign.example. me.foreign.example. %d 3600 600 86400 30", f.serial),
		"foreign.example. 60 NS ns.foreign.example.", fmt.Sprintf("www.foreign.example. 60 A 203.0.113.%d", f.serial),
	} {
		rr, err := dns.NewRR(line)
		if err != nil {
			panic(err) // a mistake in the test
		}
		zone = append(zone, rr)
	}
	r := new(dns.Msg).SetReply(q)
	if r.Authoritative = true; q.Question[0].Qtype == dns.TypeSOA {
		r.Answer = zone[:1]
	} else {
		f.whole++
		r.Answer = append(zone, zone[0])
	}
	_ = w.WriteMsg(r)
}

func (f *foreign) serve(t *testing.T) {
	t.Helper()
	l, err := f.host.Listen("tcp", netip.AddrPortFrom(f.host.Addr(), 53).String())
	if err != nil {
		t.Fatal(err)
	}
	f.server = &dns.Server{Listener: l, Handler: f}
	go func() { _ = f.server.ActivateAndServe() }()
}

// has says which of all nodes answer by a serial of the foreign zone.
func (w *World) has(t *testing.T, serial uint32, nodes ...string) (got []string) {
	t.Helper()
	for _, name := range nodes {
		n := w.nodes[name]
		q := new(dns.Msg).SetQuestion("www.foreign.example.", dns.TypeA)
		res, err := exchange(t.Context(), visitor{dial: n.host.Dial}, netip.AddrPortFrom(n.cfg.Advertise, dnsPort), q, "udp")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(res.Answer) == 1 && res.Authoritative && res.Answer[0].(*dns.A).A.String() == fmt.Sprintf("203.0.113.%d", serial) {
			got = append(got, name)
		}
	}
	return got
}

// A zone of somebody else is the same on all nodes seconds after its primary has told one of them, and outlives a restart without it.
func TestASecondaryZoneIsTheSameOnAllNodes(t *testing.T) {
	inWorldWith(t, []string{"icn1-b", "icn1-c"}, func(t *testing.T, w *World) {
		f := &foreign{host: w.in.Host("foreign", spec.Location{Latitude: 48.85, Longitude: 2.35}, netip.MustParseAddr("203.0.113.53")), serial: 1}
		f.serve(t)
		nodes := []string{"icn1", "icn1-b", "icn1-c", "fra1", "iad1"}
		_, err := w.nodes["icn1"].node.Client().Apply(t.Context(), api.ApplyRequest{Files: []api.File{{Name: "zone.yaml",
			Data: "kind: HostedZone\nname: foreign.example\nprimaries: [{address: 203.0.113.53}]\n"}}})
		if err != nil {
			t.Fatal(err)
		}
		within := func(d time.Duration, serial uint32) {
			t.Helper()
			began := time.Now()
			for len(w.has(t, serial, nodes...)) < len(nodes) {
				if time.Since(began) > d {
					t.Fatalf("%v later serial %d is on %v only", d, serial, w.has(t, serial, nodes...))
				}
				time.Sleep(50 * time.Millisecond)
			}
			t.Logf("serial %d is on all nodes after %v", serial, time.Since(began))
		}
		within(15*time.Second, 1)
		time.Sleep(time.Minute)
		for i, told := range nodes {
			f.mu.Lock()
			f.serial++
			serial := f.serial
			f.mu.Unlock()
			notice := new(dns.Msg).SetNotify("foreign.example.")
			n := w.nodes[told]
			res, err := exchange(t.Context(), visitor{dial: f.host.Dial}, netip.AddrPortFrom(n.cfg.Advertise, dnsPort), notice, "udp")
			if err != nil || res.Rcode != dns.RcodeSuccess {
				t.Fatalf("%s is told: %v, %v", told, res, err)
			}
			within(5*time.Second, serial)
			time.Sleep(time.Duration(10+i) * time.Second)
		}
		f.mu.Lock()
		if f.whole > 2*int(f.serial) { // two nodes ask
			t.Errorf("of %d versions the zone was taken %d times from its primary", f.serial, f.whole)
		}
		serial := f.serial
		f.mu.Unlock()
		list, err := w.nodes["fra1"].node.Client().Zones(t.Context())
		if err != nil || len(list.Zones) != 1 || len(list.Zones[0].Copies) != len(nodes) {
			t.Fatalf("%+v, %v", list, err)
		}
		for _, c := range list.Zones[0].Copies {
			if c.Serial == nil || *c.Serial != serial || c.Problem != "" {
				t.Errorf("it is told of %+v", c)
			}
		}
		// Its primary is dead, and a node restarts.
		f.host.Kill()
		w.do(t, "crash", "fra1")
		w.do(t, "start", "fra1")
		if got := w.has(t, serial, "fra1"); len(got) == 0 {
			t.Error("a node that has restarted does not answer")
		}
		for _, name := range nodes {
			if differ := w.metric(t.Context(), t, name, "dns_answers_differ_total"); differ != 0 {
				t.Errorf("%s has found %d answers that differ", name, differ)
			}
		}
	})
}
