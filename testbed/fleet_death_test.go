package testbed

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/perigee-net/perigee/node/api"
)

// sees is how a node sees another: whether that is a member, and whether it is reached.
func (f *Fleet) sees(t *testing.T, name, other string) (m api.MemberStatus, lives bool) {
	t.Helper()
	st, err := f.Inside(name).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(st.Members, func(m api.MemberStatus) bool { return m.Name == other })
	if i < 0 {
		return m, false
	}
	return st.Members[i], true
}

// shortly is how often these tests look.
const shortly = 50 * time.Millisecond

// A machine dies without a word: whoever holds a link to it goes round it within the backbone's idle timeout, and a moment later
// it is no member any more, with packets lost as on real oceans. Of eight nodes, or with PERIGEE_LONG=1 a hundred.
func TestASilentDeathIsActedOnWithinTwoSeconds(t *testing.T) {
	nodes := 8
	if os.Getenv("PERIGEE_LONG") != "" {
		nodes = 100
	}
	inFleet(t, FleetConfig{Nodes: nodes, Regions: 4, Voters: 5}, func(t *testing.T, f *Fleet) {
		began := time.Now()
		if err := f.Agree(t.Context(), settled); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d nodes agree after %v", nodes, time.Since(began))
		for i, a := range f.Names {
			for _, b := range f.Names[:i] {
				f.Lossy(a, b, 0.01)
			}
		}
		time.Sleep(10 * time.Second)
		for _, dead := range []string{"fra2", "icn1"} {
			f.Crash(dead)
			began := time.Now()
			down, gone := map[string]time.Duration{}, map[string]time.Duration{}
			for len(gone) < len(f.Live()) && time.Since(began) < 30*time.Second {
				for _, name := range f.Live() {
					if _, noted := gone[name]; noted {
						continue
					}
					m, lives := f.sees(t, name, dead)
					if _, noted := down[name]; !noted && (!lives || !m.Up) {
						down[name] = time.Since(began)
					}
					if !lives {
						gone[name] = time.Since(began)
					}
				}
				time.Sleep(shortly)
			}
			spread := func(all map[string]time.Duration) (median, worst time.Duration) {
				var times []time.Duration
				for _, d := range all {
					times = append(times, d)
				}
				slices.Sort(times)
				return times[len(times)/2], times[len(times)-1]
			}
			acted, actedLast := spread(down)
			known, knownLast := spread(gone)
			t.Logf("%s is dead: links down after %v (worst %v), no member after %v (worst %v)", dead, acted, actedLast, known, knownLast)
			if actedLast > 2*time.Second+shortly || len(gone) != len(f.Live()) || knownLast > 10*time.Second {
				t.Errorf("%s is acted on after %v, and no member after %v at %d of %d", dead, actedLast, knownLast, len(gone), len(f.Live()))
			}
		}
	})
}

func TestANodeThatLeavesIsGoneAtOnceEverywhere(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 6, Regions: 3, Voters: 3}, func(t *testing.T, f *Fleet) {
		for _, leaves := range []string{"fra2", f.Leader(t.Context())} {
			ended := make(chan error, 1)
			began := time.Now()
			go func() { ended <- f.Stop(leaves) }()
			f.nodes[leaves].awaitTaken()
			leaving := until(t, 10*time.Second, leaves+" takes no traffic any more", func() bool {
				return !slices.ContainsFunc(f.Live(), func(name string) bool {
					m, lives := f.sees(t, name, leaves)
					return lives && !m.Leaving
				})
			})
			gone := until(t, 30*time.Second, leaves+" is no member any more", func() bool {
				return !slices.ContainsFunc(f.Live(), func(name string) bool { _, lives := f.sees(t, name, leaves); return lives })
			})
			if err := <-ended; err != nil {
				t.Error(err)
			}
			t.Logf("%s leaves: known everywhere after %v, gone everywhere after %v, ended after %v", leaves, leaving, leaving+gone, time.Since(began))
			if leaving > time.Second {
				t.Errorf("that %s leaves is known after %v", leaves, leaving)
			}
			time.Sleep(5 * time.Second)
		}
		if err := f.Agree(t.Context(), settled); err != nil {
			t.Error(err)
		}
	})
}

// awaitTaken waits until the node is somebody's to end.
func (n *fleetNode) awaitTaken() {
	for {
		n.mu.Lock()
		taken := n.node == nil
		n.mu.Unlock()
		if taken {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// A machine is copied, with its certificate, and both run: nobody else is harmed, no change and no order is lost, and when the copy
// is gone all is as before.
func TestTwoMachinesOfOneNameHarmNobodyElse(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 6, Regions: 3, Voters: 3}, func(t *testing.T, f *Fleet) {
		ctx := t.Context()
		const twin = "fra2"
		if slices.Contains([]string{"icn1", "fra1", "iad1"}, twin) {
			t.Fatal("the twin votes")
		}
		cfg := f.nodes[twin].cfg
		data := t.TempDir()
		if err := os.CopyFS(data, os.DirFS(cfg.Data)); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(data, 0o700); err != nil {
			t.Fatal(err)
		}
		ip := netip.MustParseAddr("192.0.3.77")
		host := f.in.Host("copy", f.places[1].at, ip)
		at := func(port int) string { return netip.AddrPortFrom(ip, uint16(port)).String() }
		cfg.Data, cfg.Advertise, cfg.Gossip, cfg.Control, cfg.API = data, ip, at(gossipPort), at(controlPort), at(apiPort)
		cfg.Listen, cfg.ListenPacket, cfg.Dial, cfg.ListenAnycast = host.Listen, host.ListenPacket, host.Dial, host.Listen
		said := f.total(t, "report_sent_bytes_total")
		time.Sleep(20 * time.Second)
		said = f.total(t, "report_sent_bytes_total") - said
		copied := newFleetNode(host, cfg)
		if err := copied.start(ctx); err != nil {
			t.Logf("the copy does not start: %v", err)
		}
		wrong, seen, before := map[string]int{}, map[netip.AddrPort]int{}, f.total(t, "report_sent_bytes_total")
		leader := f.Leader(ctx)
		for i := range 20 {
			for _, name := range f.Names {
				if name == twin {
					continue
				}
				st, err := f.Inside(name).Status(ctx)
				if err != nil {
					t.Fatal(err)
				}
				for _, other := range f.Names {
					m, lives := api.MemberStatus{}, false
					if at := slices.IndexFunc(st.Members, func(m api.MemberStatus) bool { return m.Name == other }); at >= 0 {
						m, lives = st.Members[at], true
					}
					if other == twin {
						seen[m.Control]++
						continue
					}
					if !lives || !m.Up {
						wrong[name+" sees "+other+" down"]++
					}
				}
			}
			if i%10 == 0 {
				f.mustApply(t, "icn1", registerYAML(0, i+1))
				if res, err := f.drain(ctx, "icn2", "node", "iad1", 0); err != nil {
					t.Error(err)
				} else {
					t.Logf("a drain: %s", receipt(res))
				}
				if _, err := f.undrain(ctx, "icn1", "node", "iad1"); err != nil {
					t.Error(err)
				}
			}
			time.Sleep(time.Second)
		}
		for what, n := range wrong {
			t.Errorf("%dx %s", n, what)
		}
		both := f.total(t, "report_sent_bytes_total") - before
		t.Logf("%s is seen at %v; reports were %d bytes in 20 s, with the copy %d; it superseded itself %d times", twin, seen, said, both, f.total(t, "report_rebirths_total"))
		if both > 50*said {
			t.Errorf("with the copy %d bytes of reports were sent, without it %d", both, said)
		}
		if now := f.Leader(ctx); now != leader {
			t.Errorf("the leader was %s and is %s", leader, now)
		}
		copied.host.Kill()
		copied.end()
		copied.ended()
		if err := f.Agree(ctx, settled); err != nil {
			t.Errorf("after the copy is gone: %v", err)
		}
	})
}

// Clocks that are hours apart: members stay, what is said is heard, changes and orders are taken, and verdicts turn.
func TestClocksHoursApartTurnNothing(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 6, Regions: 3, Voters: 3}, func(t *testing.T, f *Fleet) {
		ctx := t.Context()
		f.Jump("fra2", 5*time.Hour)
		f.Jump("iad1", -7*time.Hour) // a voter
		f.Jump("icn2", -30*time.Hour)
		time.Sleep(10 * time.Second)
		asked := [][2]string{{"icn1", "iad1"}, {"fra2", "iad2"}, {"icn2", "fra1"}} // each to drain another
		const all = "drains=[node/fra1 node/iad1 node/iad2]"
		for _, c := range asked {
			if err := f.Agree(ctx, 5*time.Second); err != nil {
				t.Error(err)
			}
			if res, err := f.drain(ctx, c[0], "node", c[1], 0); err != nil || strings.Contains(receipt(res), "late") {
				t.Errorf("%s: %s %v", c[0], receipt(res), err)
			}
		}
		f.everywhere(t, 3*time.Second, all)
		time.Sleep(35 * time.Second) // longer than what is told lasts where it is not agreed
		f.everywhere(t, time.Second, all)
		for _, c := range asked {
			if _, err := f.undrain(ctx, c[0], "node", c[1]); err != nil {
				t.Error(err)
			}
		}
		f.everywhere(t, 3*time.Second, "drains=[]")
		for _, name := range []string{"icn1", "fra2", "icn2"} {
			f.mustApply(t, name, registerYAML(0, len(name)+int(time.Now().Unix()%1000)))
		}
		for _, name := range []string{"fra2", "iad1"} { // they restart with clocks that are wrong
			f.Kill(name)
			time.Sleep(10 * time.Second)
			if err := f.Start(ctx, name); err != nil {
				t.Fatal(err)
			}
			if err := f.Agree(ctx, settled); err != nil {
				t.Errorf("after a restart of %s: %v", name, err)
			}
		}
		// What lasts a while lasts as long everywhere, whatever the clocks say.
		for _, c := range asked {
			if _, err := f.drain(ctx, c[0], "node", c[1], 20*time.Second); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Second)
		for _, name := range f.Names {
			if text := f.ordersOf(t, name); !strings.Contains(text, all) {
				t.Errorf("drains of 20 s: %s holds %s", name, text)
			}
		}
		time.Sleep(30 * time.Second)
		f.everywhere(t, time.Second, "drains=[]")
	})
}
