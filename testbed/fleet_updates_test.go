package testbed

import (
	"context"
	"encoding/base64"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/node"
	"github.com/perigee-net/perigee/node/api"
)

// updater is a client that counts upward in a record of its own, each step by one update: it holds only where the step before is what
// stands. It sends the same bytes again, to one node after the other, until it is told what became of them.
type updater struct {
	f      *Fleet
	name   string
	from   func(ctx context.Context, network, address string) (net.Conn, error)
	secret string
	step   int
	again  int           // messages that were sent again
	done   *atomic.Int64 // steps, of all
}

func (u *updater) next() ([]byte, error) {
	owner := u.name + ".count.test."
	m := new(dns.Msg).SetUpdate("count.test.")
	text := func(n int) []dns.RR {
		return []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}, Txt: []string{fmt.Sprint(n)}}}
	}
	if u.step == 0 {
		m.RRsetNotUsed(text(0))
	} else {
		before := text(u.step)
		before[0].Header().Ttl = 0
		m.Used(before)
		m.RemoveRRset(text(u.step))
	}
	m.Insert(text(u.step + 1))
	m.SetTsig("k.", dns.HmacSHA256, 300, time.Now().Unix())
	wire, _, err := dns.TsigGenerate(m, u.secret, "", false)
	return wire, err
}

// ask sends a message to a node and returns the rcode; SERVFAIL where nobody answers in time.
func (u *updater) ask(ctx context.Context, at string, wire []byte) int {
	ctx, cancel := context.WithTimeout(ctx, 12*time.Second)
	defer cancel()
	conn, err := u.from(ctx, "udp", netip.AddrPortFrom(u.f.nodes[at].cfg.Advertise, dnsPort).String())
	if err != nil {
		return dns.RcodeServerFailure
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(wire); err != nil {
		return dns.RcodeServerFailure
	}
	room := make([]byte, dns.MaxMsgSize)
	n, err := conn.Read(room)
	var r dns.Msg
	if err != nil || r.Unpack(room[:n]) != nil || r.Opcode != dns.OpcodeUpdate {
		return dns.RcodeServerFailure
	}
	return r.Rcode
}

// count makes some steps, and says which answer it did not expect.
func (u *updater) count(ctx context.Context, first, steps int) error {
	for range steps {
		wire, err := u.next()
		if err != nil {
			return err
		}
		for try := 0; ; try++ {
			rcode := u.ask(ctx, u.f.Names[(first+try)%len(u.f.Names)], wire)
			if rcode == dns.RcodeSuccess {
				break
			}
			if rcode != dns.RcodeServerFailure || try > 20 {
				return fmt.Errorf("%s, step %d, try %d: %s", u.name, u.step+1, try, dns.RcodeToString[rcode])
			}
			u.again++
		}
		u.step++
		u.done.Add(1)
	}
	return nil
}

// Updates come through all nodes at once, one of which may not vote, while the leader dies: what was acknowledged stands, and none is done twice.
func TestUpdatesThroughAllNodesOutliveTheLeader(t *testing.T) {
	const steps, counters = 25, 2
	secret := base64.StdEncoding.EncodeToString([]byte("known to this test alone"))
	tune := func(c *node.Config) { c.DNS = netip.AddrPortFrom(c.Advertise, dnsPort).String() }
	inFleet(t, FleetConfig{Nodes: 4, Voters: 3, Regions: 3, Tune: tune}, func(t *testing.T, f *Fleet) {
		f.mustApply(t, f.Names[0], "kind: TsigKey\nname: k\nsecret: "+secret+"\n---\n# Counted upward.\nkind: HostedZone\nname: count.test\nnameServers: [ns.count.test]\n"+
			"records:\n  - {name: ns, type: A, values: [192.0.2.1]}\nupdate: {allow: [{key: k, names: [\"*\"], types: [TXT]}]}\n")
		if err := f.Agree(t.Context(), settled); err != nil {
			t.Fatal(err)
		}
		for names, _ := f.voters(t, f.Names[0]); len(names) < 3; names, _ = f.voters(t, f.Names[0]) {
			time.Sleep(again)
		}
		var all []*updater
		var running sync.WaitGroup
		var done atomic.Int64
		for i, first := range f.Names {
			host := f.in.Host("updater-"+first, f.places[i%len(f.places)].at, netip.AddrFrom4([4]byte{198, 51, byte(i), 7}))
			for j := range counters {
				u := &updater{f: f, name: fmt.Sprintf("c%d-%d", i, j), from: host.Dial, secret: secret, done: &done}
				all = append(all, u)
				running.Go(func() {
					if err := u.count(t.Context(), i, steps); err != nil {
						t.Error(err)
					}
				})
			}
		}
		chance := mrand.New(mrand.NewPCG(seed(t), 1))
		for _, after := range []int{steps * len(all) / 8, steps * len(all) / 2} { // of which the first is when nobody has ended yet
			for done.Load() < int64(after) && !t.Failed() {
				time.Sleep(time.Duration(chance.Int64N(int64(100 * time.Millisecond))))
			}
			leader := f.Leader(t.Context())
			f.Crash(leader)
			time.Sleep(time.Duration(chance.Int64N(int64(10*time.Second))) + 5*time.Second)
			if err := f.Start(t.Context(), leader); err != nil {
				t.Fatal(err)
			}
		}
		running.Wait()
		if err := f.Agree(t.Context(), settled); err != nil {
			t.Fatal(err)
		}
		again := 0
		for _, u := range all {
			again += u.again
		}
		if again == 0 {
			t.Error("no message was sent again: the leader died when nobody asked")
		}
		for _, name := range f.Names {
			list, err := f.API(name).Resources(t.Context(), api.ResourcesQuery{Kind: "HostedZone", Name: "count.test"})
			if err != nil {
				t.Fatal(err)
			}
			text := list.Resources[0].YAML
			for _, u := range all {
				want := fmt.Sprintf("{name: %s, type: TXT, ttl: 60, values: ['\"%d\"']}", u.name, steps)
				if u.step != steps || strings.Count(text, "name: "+u.name+",") != 1 || !strings.Contains(text, want) {
					t.Errorf("at %s, %s has come to %d, and there is\n%s", name, u.name, u.step, text)
				}
			}
			if !strings.HasPrefix(text, "# Counted upward.\n") {
				t.Errorf("the document has lost its comment:\n%s", text)
			}
		}
		// Each step is one change in the history, whatever was sent again.
		history, err := f.API(f.Names[0]).History(t.Context(), api.HistoryQuery{Limit: api.MaxHistory})
		if err != nil {
			t.Fatal(err)
		}
		byKey := 0
		for _, r := range history.Records {
			if r.Author == "key k" {
				byKey++
			}
		}
		if byKey != steps*len(all) {
			t.Errorf("the history has %d changes by the key, want %d", byKey, steps*len(all))
		}
	})
}
