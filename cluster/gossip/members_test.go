package gossip

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/testbed/memnet"
)

// lost says whether none of the nodes holds another for a member.
func lost(nodes []*Gossip, node string) bool {
	return !slices.ContainsFunc(nodes, func(g *Gossip) bool { return slices.Contains(names(g), node) })
}

func TestMembersDescribeThemselvesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 3)
		for _, g := range w.nodes {
			for i, m := range g.Members().Get() {
				if m.Name != name(i) || string(m.Meta) != "meta of "+name(i) || m.Addr.String() != w.addr(i) {
					t.Errorf("member %d is %+v", i, m)
				}
			}
		}
	})
}

func TestOneOfThreeThatDiesSilentlyIsDeclaredDeadInFiveSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 3)
		time.Sleep(time.Minute)
		w.hosts[1].Crash()
		w.within(5*time.Second, "n01 is declared dead", func() bool { return lost(w.others(1), name(1)) })
	})
}

// Who probes whom is drawn, so a single death may take longer.
func TestThoseOfTwentyThatDieSilentlyAreDeclaredDeadInFiveSecondsOnAverage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 20)
		var all time.Duration
		for i := 1; i <= 5; i++ {
			time.Sleep(2 * time.Second)
			w.hosts[i].Crash()
			all += w.within(30*time.Second, name(i)+" is declared dead", func() bool { return lost(w.others(i), name(i)) })
			w.close(i)
			if got := len(w.nodes[0].Members().Get()); got != 20-i {
				t.Fatalf("%d members are left, want %d", got, 20-i)
			}
		}
		if all/5 > 5*time.Second {
			t.Errorf("five deaths took %v on average", all/5)
		}
	})
}

func TestTenMinutesOfLossKillNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size = 5 // among them the farthest
		w := joined(t, size)
		for i := range size {
			for j := range i {
				w.net.Link(name(i), name(j), memnet.Path{Loss: 0.01, Jitter: 10 * time.Millisecond})
			}
		}
		before := make([]uint64, size)
		for i, g := range w.nodes {
			before[i] = g.Members().Version()
		}
		time.Sleep(10 * time.Minute)
		for i, g := range w.nodes {
			if v := g.Members().Version(); v != before[i] || len(names(g)) != size {
				t.Errorf("%s saw its members change %d times, to %v", name(i), v-before[i], names(g))
			}
		}
	})
}

func TestALeaveIsKnownAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 5)
		start := time.Now()
		if err := w.nodes[4].Leave(time.Second); err != nil {
			t.Error(err)
		}
		w.close(4)
		w.within(time.Second, "n04 has left", func() bool { return lost(w.others(), name(4)) })
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestANodeThatComesBackIsAMemberAgain(t *testing.T) {
	for _, c := range []struct {
		name  string
		leave bool
		away  time.Duration // 0: before anyone has noticed
	}{
		{"at once", false, 0}, {"declared dead", false, 20 * time.Second}, {"forgotten", false, 5 * time.Minute},
		{"left", true, 0}, {"left and forgotten", true, 5 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := joined(t, 4)
				if c.leave {
					if err := w.nodes[2].Leave(time.Second); err != nil {
						t.Error(err)
					}
				}
				w.hosts[2].Crash()
				w.close(2)
				time.Sleep(c.away)
				w.hosts[2].Restart()
				w.open(2)
				w.join(2, 0)
				w.within(10*time.Second, "all know each other", func() bool {
					return !slices.ContainsFunc(w.nodes, func(g *Gossip) bool { return len(names(g)) != 4 })
				})
				time.Sleep(30 * time.Second)
				for i, g := range w.nodes {
					if len(names(g)) != 4 {
						t.Errorf("%s then saw %v", name(i), names(g))
					}
				}
			})
		})
	}
}

func TestADeadNodesNameMayComeBackFromAnotherAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 3)
		w.hosts[2].Crash()
		w.close(2)
		w.within(5*time.Second, "n02 is declared dead", func() bool { return lost(w.others(), name(2)) })
		time.Sleep(2 * reclaimAfter)
		w.hosts[2] = w.net.Host("new", places[5], netip.MustParseAddr("10.1.0.1"))
		w.open(2)
		w.join(2, 0)
		w.within(5*time.Second, "it is known at its new address", func() bool {
			return !slices.ContainsFunc(w.nodes, func(g *Gossip) bool {
				members := g.Members().Get()
				return len(members) != 3 || members[2].Addr.String() != w.addr(2)
			})
		})
	})
}

func TestANodeThatIsCutOffGoesOnAloneAndIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 4)
		w.net.CutOff(name(3))
		w.within(20*time.Second, "each side holds the other dead", func() bool {
			return lost(w.others(3), name(3)) && len(names(w.nodes[3])) == 1
		})
		time.Sleep(5 * time.Minute)
		w.net.Rejoin(name(3))
		w.join(3, 0)
		w.within(10*time.Second, "all know each other", func() bool {
			return !slices.ContainsFunc(w.nodes, func(g *Gossip) bool { return len(names(g)) != 4 })
		})
	})
}

func TestTwoNodesOfOneNameAreCountedAndLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 2)
		var logged bytes.Buffer
		c := w.config(1)
		h := w.net.Host("impostor", places[2], netip.MustParseAddr("10.1.0.1"))
		c.Bind = "10.1.0.1:7946"
		c.Listen, c.ListenPacket, c.Dial = h.Listen, h.ListenPacket, h.Dial
		c.Log = slog.New(slog.NewTextHandler(&logged, nil))
		impostor, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		before := w.versions()
		for range 20 {
			if err := impostor.Join(t.Context(), []string{w.addr(0)}); err != nil {
				t.Error(err)
			}
			time.Sleep(3 * time.Second)
		}
		if n := w.turns(before); n != 0 {
			t.Errorf("members changed %d times", n)
		}
		for i, g := range []*Gossip{w.nodes[0], impostor} {
			if n := g.Counters()["gossip_conflicts_total"]; n < 3 {
				t.Errorf("node %d counted %d conflicts, want at least 3", i, n)
			}
		}
		if m := w.nodes[0].Members().Get(); len(m) != 2 || m[1].Addr.String() != w.addr(1) {
			t.Errorf("the first of the name was replaced: %v", m)
		}
		if err := impostor.Close(); err != nil {
			t.Error(err)
		}
		if n := strings.Count(logged.String(), "two nodes have one name"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, logged.String())
		}
	})
}

func TestJoinSucceedsWithOneSeedThatAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4)
		w.open(0)
		w.open(1)
		w.hosts[2].Crash() // silent; and on n03 nobody listens
		start := time.Now()
		if err := w.nodes[1].Join(t.Context(), []string{w.addr(2), w.addr(3), "nonsense", w.addr(0)}); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("it took %v, as if the seeds were tried one after the other", took)
		}
	})
}

func TestJoinFailsWithoutASeedThatAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		g := w.open(0)
		w.hosts[1].Crash()
		if err := g.Join(t.Context(), nil); err == nil {
			t.Error("joined nobody")
		}
		if err := g.Join(t.Context(), []string{w.addr(2)}); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("a refused join ended with: %v", err)
		}
		if err := g.Join(t.Context(), []string{w.addr(0)}); err == nil || !strings.Contains(err.Error(), "is this node") {
			t.Errorf("a join of itself ended with: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.Join(ctx, []string{w.addr(1)}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a join into silence ended with: %v", err)
		}
	})
}

func TestANodeOfAnotherClusterOrWithAnotherKeyIsNotHeard(t *testing.T) {
	for what, change := range map[string]func(*Config){
		"label": func(c *Config) { c.Label = "another" },
		"key":   func(c *Config) { c.Key = bytes.Repeat([]byte{8}, 32) },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 2)
				w.open(0)
				c := w.config(1)
				change(&c)
				other, err := Open(c)
				if err != nil {
					t.Fatal(err)
				}
				w.nodes[1] = other
				if err := other.Join(t.Context(), []string{w.addr(0)}); err == nil {
					t.Error("it joined")
				}
				time.Sleep(10 * time.Second)
				if len(names(w.nodes[0])) != 1 || len(names(other)) != 1 {
					t.Errorf("they know each other: %v, %v", names(w.nodes[0]), names(other))
				}
			})
		})
	}
}

func TestStrangersAreCountedAndDoNoHarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 3)
		stranger := w.net.Host("stranger", places[1], netip.MustParseAddr("192.0.2.1"))
		random := rand.New(rand.NewPCG(1, 2))
		noise := func() []byte {
			b := make([]byte, 1+random.IntN(1400))
			for i := range b {
				b[i] = byte(random.Uint32())
			}
			return b
		}
		labelled := func(b []byte) []byte { return append([]byte{244, 7, 'c', 'l', 'u', 's', 't', 'e', 'r'}, b...) }

		udp, err := stranger.ListenPacket("udp", "192.0.2.1:1000")
		if err != nil {
			t.Fatal(err)
		}
		for i := range 200 {
			b := noise()
			if i%2 == 0 {
				b = labelled(b)
			}
			if _, err := udp.WriteTo(b, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(w.addr(0)))); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		udp.Close()

		// More streams than are served at once: most silent, some with noise, some that claim to bring a megabyte.
		streams := make([]net.Conn, 2*maxStreams)
		var dials sync.WaitGroup
		for i := range streams {
			said := [][]byte{nil, nil, noise(), append(labelled([]byte{10, 0, 16, 0, 0}), noise()...)}[i%4]
			dials.Go(func() {
				conn, err := stranger.Dial(t.Context(), "tcp", w.addr(0))
				if err != nil {
					t.Error(err)
					return
				}
				conn.Write(said)
				streams[i] = conn
			})
		}
		dials.Wait()
		time.Sleep(time.Second)
		counters := w.nodes[0].Counters()
		if counters["gossip_strangers_total"] < 95 {
			t.Errorf("of 100 packets without label %d were counted", counters["gossip_strangers_total"])
		}
		if n := counters["gossip_library_errors_total"] + counters["gossip_malformed_total"]; n < 95 {
			t.Errorf("of 100 packets that do not decrypt %d were counted", n)
		}
		if counters["gossip_streams_refused_total"] == 0 {
			t.Error("no stream was refused")
		}
		time.Sleep(2 * streamTimeout)
		if n := w.nodes[0].transport.served.Load(); n != 0 {
			t.Errorf("%d streams are still served", n)
		}
		for _, g := range w.nodes {
			if len(names(g)) != 3 {
				t.Errorf("members are %v", names(g))
			}
		}
		for _, conn := range streams {
			conn.Close()
		}
	})
}

func TestOpenRefusesWhatIsOutOfBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		for want, change := range map[string]func(*Config){
			"meta has 513 bytes, want at most 512": func(c *Config) { c.Meta = make([]byte, 513) },
			"name":                                 func(c *Config) { c.Name = "" },
			"has 65 bytes, want 1 to 64":           func(c *Config) { c.Name = strings.Repeat("n", 65) },
			"label":                                func(c *Config) { c.Label = "" },
			"key has 5 bytes":                      func(c *Config) { c.Key = []byte("short") },
			"key has 0 bytes":                      func(c *Config) { c.Key = nil },
			"key has 31 bytes, want 32":            func(c *Config) { c.OtherKeys = [][]byte{make([]byte, 31)} },
			"9 keys, want at most 8":               func(c *Config) { c.OtherKeys = keys(1, 2, 3, 4, 5, 6, 8, 9) },
			"one to advertise is needed":           func(c *Config) { c.Bind = "0.0.0.0:7946" },
			"address already in use":               func(c *Config) { c.Bind = taken(t, w) },
		} {
			c := w.config(0)
			change(&c)
			g, err := Open(c)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("want an error that says %q, got %v", want, err)
			}
			if g != nil {
				g.Close()
			}
		}
	})
}

// taken is an address on which something listens.
func taken(t *testing.T, w *world) string {
	l, err := w.hosts[0].Listen("tcp", w.hosts[0].Addr().String()+":9000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

func TestThePortMayBePickedAndAnotherAddressAdvertised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		c := w.config(0)
		c.Bind = ":0"
		c.Advertise = netip.AddrPortFrom(w.hosts[0].Addr(), 0)
		g, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		w.nodes[0] = g
		if a := g.Addr(); a.Addr() != w.hosts[0].Addr() || a.Port() == 0 {
			t.Errorf("advertises %v", a)
		}
	})
}

func TestAClosedGossipSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 2)
		g := w.nodes[1]
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		if err := g.Close(); err != nil {
			t.Errorf("closed twice: %v", err)
		}
		for what, err := range map[string]error{
			"join":  g.Join(t.Context(), []string{w.addr(0)}),
			"leave": g.Leave(time.Second),
		} {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

func TestCloseEndsAJoinUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		g := w.open(0)
		w.hosts[1].Crash()
		done := make(chan error)
		go func() { done <- g.Join(t.Context(), []string{w.addr(1)}) }()
		time.Sleep(time.Second)
		start := time.Now()
		w.close(0)
		if err := <-done; err == nil {
			t.Error("it joined silence")
		}
		if took := time.Since(start); took > probeInterval {
			t.Errorf("close took %v", took)
		}
	})
}
