package backbone

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/perigee-net/perigee/testbed/memnet"
)

// tunnel is two nodes whose connections have found their path to carry packets of 1,280 bytes.
type tunnel struct {
	*world
	icn, iad *Backbone
	arrived  chan *lastingConn // at iad
}

// larger than smallestPacket; quic-go's pacing does not bear connections that begin with more.
const larger = 1280

func overTunnel(t *testing.T, p memnet.Path, f func(w *tunnel)) {
	t.Helper()
	inWorld(t, func(w *world) {
		w.in.Link("icn", "iad", p)
		open := func(name string) *Backbone {
			c := w.config(name, w.authority)
			c.windows = defaultWindows
			c.windows.packet = larger
			c.NoParity = true // of which nothing is asked here
			b := w.openWith(c)
			b.Keep(peers("icn", "iad"))
			return b
		}
		tu := &tunnel{world: w, icn: open("icn"), iad: open("iad"), arrived: make(chan *lastingConn, 10)}
		defer tu.icn.Close()
		defer tu.iad.Close()
		tu.iad.Handle("flow", func(in *Incoming) { tu.arrived <- in.Accept().(*lastingConn) })
		w.until(tu.icn, "iad", true)
		w.until(tu.iad, "icn", true)
		time.Sleep(time.Second)
		f(tu)
	})
}

// flow is both ends of a flow that outlives its streams.
func (w *tunnel) flow() (near, far *lastingConn) {
	w.Helper()
	c, err := w.icn.DialLasting(w.Context(), flowWays("iad")[0], func() []Way { return flowWays("iad") })
	if err != nil {
		w.Fatal(err)
	}
	return c.(*lastingConn), <-w.arrived
}

// narrows has the path carry no packets over 1,300 bytes, in one direction.
func (w *tunnel) narrows(from, to string) {
	p := w.in.Path(from, to)
	p.MTU = 1300
	w.in.LinkOneWay(from, to, p)
}

func (w *tunnel) blackHoles() [2]uint64 {
	return [2]uint64{w.icn.Counters()["backbone_black_holes_total"], w.iad.Counters()["backbone_black_holes_total"]}
}

// probes is how many were sent to a node since its path is known.
func probes(b *Backbone, to string) uint32 {
	p := b.paths[addresses[to]]
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.doubt.number
}

// carry has one end of a flow send so many bytes to the other, which is to read them.
func carry(from, to net.Conn, size int) error {
	failed := make(chan error, 1)
	go func() {
		_, err := io.CopyN(from, chaCha(1), int64(size))
		failed <- err
	}()
	want, got := chaCha(1), make([]byte, 64<<10)
	for left := size; left > 0; {
		n, err := to.Read(got[:min(left, len(got))])
		if err != nil {
			return fmt.Errorf("%d bytes are missing: %w", left, err)
		}
		same := make([]byte, n)
		want.Read(same)
		if !bytes.Equal(got[:n], same) {
			return fmt.Errorf("other bytes, %d from the end", left)
		}
		left -= n
	}
	return <-failed
}

func TestAFlowOutlivesThatItsPathCarriesLess(t *testing.T) {
	for _, c := range []struct {
		name    string
		up      bool
		down    bool
		narrows []string
	}{
		{"who dialled sends", true, false, []string{"icn"}},
		{"who was dialled sends", false, true, []string{"iad"}},
		{"both send, one way narrows", true, true, []string{"iad"}},
		{"both send, the other way narrows", true, true, []string{"icn"}},
		{"both send, both ways narrow", true, true, []string{"icn", "iad"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			overTunnel(t, memnet.Path{Delay: 40 * ms, Rate: 100e6}, func(w *tunnel) {
				near, far := w.flow()
				time.AfterFunc(300*ms, func() {
					for _, from := range c.narrows {
						w.narrows(from, map[string]string{"icn": "iad", "iad": "icn"}[from])
					}
				})
				const size = 4_000_000
				begun := time.Now()
				var wg sync.WaitGroup
				for _, one := range []struct {
					is       bool
					from, to net.Conn
				}{{c.up, near, far}, {c.down, far, near}} {
					if one.is {
						wg.Go(func() {
							if err := carry(one.from, one.to, size); err != nil {
								t.Error(err)
							}
						})
					}
				}
				wg.Wait()
				took := time.Since(begun)
				t.Logf("%v, %d moves, holes %v", took, near.Moves(), w.blackHoles())
				if took > 10*time.Second {
					t.Errorf("it took %v", took)
				}
				if near.Moves() == 0 {
					t.Error("it went on as it was")
				}
			})
		})
	}
}

// What the other end sends in small packets keeps the connection up, so that nothing but the probes shows that full ones vanish.
func TestAConnectionWhoseFullPacketsVanishIsReplaced(t *testing.T) {
	overTunnel(t, memnet.Path{Delay: 40 * ms}, func(w *tunnel) {
		w.iad.Handle("tick", func(in *Incoming) {
			c := in.Accept()
			defer c.Close()
			for {
				if _, err := c.Write([]byte{1}); err != nil {
					return
				}
				time.Sleep(100 * ms)
			}
		})
		small, large := w.mustDial(w.icn, "iad", "tick"), w.mustDial(w.icn, "iad", "echo")
		defer small.Close()
		defer large.Close()
		w.narrows("icn", "iad")
		begun := time.Now()
		go large.Write(make([]byte, 100_000))
		if _, err := io.Copy(io.Discard, small); !errors.Is(err, ErrDown) {
			t.Errorf("the small stream: %v", err)
		}
		if took := time.Since(begun); took > 4500*ms || w.blackHoles() != [2]uint64{1, 0} {
			t.Errorf("its connection was closed after %v, %v black holes", took, w.blackHoles())
		}
		again := w.mustDial(w.icn, "iad", "echo")
		defer again.Close()
		if err := says(again, strings.Repeat("x", 100_000)); err != nil {
			t.Error(err)
		}
	})
}

func TestDatagramsThatAreLargerThanThePathNowGoByAStream(t *testing.T) {
	overTunnel(t, memnet.Path{Delay: 40 * ms}, func(w *tunnel) {
		var there far
		there.serve(w.iad)
		var here inbox
		flow, err := w.icn.OpenDatagrams("iad", Header{Service: "flow", Resource: "x"}, true, here.receiver())
		if err != nil {
			t.Fatal(err)
		}
		large := strings.Repeat("x", 1190)
		sent := func(n int) {
			for range n {
				if err := flow.Send([][]byte{[]byte(large)}); err != nil {
					t.Error(err)
				}
				time.Sleep(50 * ms)
			}
			time.Sleep(time.Second)
		}
		sent(10)
		if n := len(there.take()); n != 10 {
			t.Fatalf("%d of 10 came", n)
		}
		w.narrows("icn", "iad")
		sent(100) // 5 s: the first are lost
		lost := 100 - len(there.take())
		sent(10)
		if n := len(there.take()); n != 10 || lost > 80 {
			t.Errorf("%d of 10 came, after %d were lost", n, lost)
		}
		if n := w.icn.Counters()["backbone_datagrams_by_stream_total"]; n == 0 {
			t.Error("none went by a stream")
		}
	})
}

func TestLossIsNoBlackHole(t *testing.T) {
	for _, p := range []memnet.Path{{Delay: 40 * ms, Loss: 0.1}, {Delay: 40 * ms, Jitter: 30 * ms, Rate: 20e6}} {
		overTunnel(t, p, func(w *tunnel) {
			serveBlobs(w.iad)
			for range 40 {
				w.fetch(w.icn, "iad", 100_000)
				time.Sleep(time.Second)
			}
			if got := w.blackHoles(); got != [2]uint64{} {
				t.Errorf("%+v: found %v", p, got)
			}
			if n := probes(w.iad, "icn"); n < 40 {
				t.Errorf("%+v: %d probes", p, n)
			}
		})
	}
}

// Of days of loss by chance none is taken for a hole, and one that is there is found in few rounds.
func TestRoundsTellLossFromHoles(t *testing.T) {
	for _, loss := range []float64{0, 0.01, 0.1, 0.2} {
		chance := rand.New(rand.NewPCG(1, uint64(loss*100)))
		comes := func() bool { return chance.Float64() < (1-loss)*(1-loss) } // and its answer
		rounds := func(measured float64, hole bool) (n int, v verdict) {
			d := doubt{loss: measured}
			for d.begin(); v == unsure; n++ {
				v = d.hears(comes(), !hole && comes())
			}
			return n, v
		}
		for range 200_000 { // a second each: with five rounds some would be
			if _, v := rounds(loss, false); v != passes {
				t.Fatalf("%v: it is %v by chance", loss, v)
			}
		}
		all, most := 0, 0
		for range 1000 {
			n, v := rounds(loss, true)
			if v != hollow {
				t.Fatalf("%v: a hole is %v", loss, v)
			}
			all += n
			most = max(most, n)
		}
		t.Logf("%v: found by %v rounds, %d at most", loss, float64(all)/1000, most)
		if most > 3*maxRounds {
			t.Errorf("%v: found by %d rounds", loss, most)
		}
	}
	if n := roundsFor(0); n != minRounds {
		t.Errorf("%d rounds without loss", n)
	}
	if n := roundsFor(1); n != maxRounds {
		t.Errorf("%d rounds where all is lost", n)
	}
}

// Whose packets are small is not asked about large ones.
func TestSmallPacketsAreNotDoubted(t *testing.T) {
	overTunnel(t, memnet.Path{Delay: 40 * ms}, func(w *tunnel) {
		for _, c := range []struct {
			sent, packets uint64
			full          bool
		}{
			{0, 0, false}, {1199, 1, false}, {1200, 1, true}, {1200, 2, true}, {1200, 3, false}, {6000, 100, false}, {6000, 10, true}, {12_000, 1000, true},
		} {
			if got := fullPackets(c.sent, c.packets); got != c.full {
				t.Errorf("%d bytes in %d packets: %v", c.sent, c.packets, got)
			}
		}
		c := w.mustDial(w.icn, "iad", "echo")
		defer c.Close()
		time.Sleep(3 * time.Second) // what began the connection is counted
		before := probes(w.icn, "iad")
		for range 300 {
			if err := says(c, "a little"); err != nil {
				t.Fatal(err)
			}
		}
		if n := probes(w.icn, "iad"); n != before {
			t.Errorf("%d probes", n-before)
		}
		if err := says(c, strings.Repeat("x", 10_000)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if n := probes(w.icn, "iad"); n == before {
			t.Error("no probes for what is large")
		}
	})
}

// A hole is found also where packets are lost by chance.
func TestAHoleIsFoundWherePacketsAreLost(t *testing.T) {
	for _, one := range []struct {
		loss   float64
		within time.Duration
	}{{0, 4500 * ms}, {0.1, 9 * time.Second}} {
		overTunnel(t, memnet.Path{Delay: 40 * ms, Loss: one.loss}, func(w *tunnel) {
			c := w.mustDial(w.icn, "iad", "echo")
			defer c.Close()
			for range 5 {
				if err := says(c, strings.Repeat("x", 50_000)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
			}
			w.narrows("icn", "iad")
			begun := time.Now()
			go c.Write(make([]byte, 100_000))
			for w.blackHoles()[0] == 0 && time.Since(begun) < time.Minute {
				time.Sleep(100 * ms)
			}
			took := time.Since(begun)
			t.Logf("%v loss: %v", one.loss, took)
			if took > one.within {
				t.Errorf("%v loss: it took %v", one.loss, took)
			}
		})
	}
}

// A connection that has ended leaves no rounds behind.
func TestProbingEndsWithThePath(t *testing.T) {
	overTunnel(t, memnet.Path{Delay: 40 * ms}, func(w *tunnel) {
		c := w.mustDial(w.icn, "iad", "echo")
		defer c.Close()
		p := w.icn.paths[addresses["iad"]]
		go c.Write(make([]byte, 100_000))
		time.Sleep(100 * ms)
		w.in.Cut("icn", "iad")
		w.until(w.icn, "iad", false)
		time.Sleep(roundCeiling)
		d := func() (round int, number uint32) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.doubt.round, p.doubt.number
		}
		round, asked := d()
		time.Sleep(10 * time.Second)
		if _, now := d(); round != 0 || asked < 4 || now != asked {
			t.Errorf("round %d, %d probes, and %d more", round, asked, now-asked)
		}
	})
}

func TestALinkComesUpOverTheLeastMTUOfIPv6(t *testing.T) {
	inWorld(t, func(w *world) {
		w.in.Link("icn", "iad", memnet.Path{Delay: 40 * ms, MTU: 1280 - 20}) // as many bytes as IPv6 leaves
		icn, iad := w.pair()
		defer icn.Close()
		defer iad.Close()
		c := w.mustDial(icn, "iad", "echo")
		defer c.Close()
		if err := says(c, strings.Repeat("x", 100_000)); err != nil {
			t.Error(err)
		}
	})
}

func TestAPathThatChangesTwiceHasSmallPackets(t *testing.T) {
	overTunnel(t, memnet.Path{Delay: 40 * ms}, func(w *tunnel) {
		at := addresses["iad"]
		w.icn.holes.add(at)
		if known, small := w.icn.holes.find(at); !known || small {
			t.Errorf("after one: %v, %v", known, small)
		}
		time.Sleep(holeMemory - time.Second)
		w.icn.holes.add(at)
		if known, small := w.icn.holes.find(at); !known || !small {
			t.Errorf("after two: %v, %v", known, small)
		}
		l := (*w.icn.links.Load())["iad"]
		carrier := func() *carrier {
			time.Sleep(5 * time.Second)
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.carriers[0]
		}
		l.renew()
		first := carrier()
		if !first.small || packetSize(first.conn) != smallestPacket {
			t.Errorf("its packets are of %d bytes", packetSize(first.conn))
		}
		time.Sleep(holeMemory)
		second := carrier()
		if second.small || packetSize(second.conn) != larger {
			t.Errorf("its packets are still of %d bytes", packetSize(second.conn))
		}
		if n := w.icn.Counters()["backbone_carriers_lost_total"]; n != 0 {
			t.Errorf("%d connections were lost", n)
		}
	})
}

func TestHolesAreForgotten(t *testing.T) {
	inWorld(t, func(w *world) {
		h := holes{at: map[netip.AddrPort]hole{}}
		at := func(i int) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1)
		}
		for i := range maxHoles + 10 {
			h.add(at(i))
		}
		if len(h.at) != maxHoles {
			t.Errorf("%d are remembered", len(h.at))
		}
		time.Sleep(holeMemory)
		if known, _ := h.find(at(maxHoles + 9)); known || len(h.at) != maxHoles-1 {
			t.Errorf("known: %v, of %d", known, len(h.at))
		}
	})
}

// A peer that answers no probes, as releases before, is left alone, and asked again after a time.
func TestWhoAnswersNoProbesIsLeftAlone(t *testing.T) {
	overTunnel(t, memnet.Path{Delay: 40 * ms}, func(w *tunnel) {
		p := w.icn.paths[addresses["iad"]]
		p.peer.Use(p.peer.Token() + 1) // that it does not know, on probes and on answers
		c := w.mustDial(w.icn, "iad", "echo")
		defer c.Close()
		for range 15 {
			if err := says(c, strings.Repeat("x", 10_000)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if n := w.iad.Counters()["backbone_parity_strange_total"]; n != 4*maxSilent || w.blackHoles() != [2]uint64{} {
			t.Errorf("%d datagrams; black holes %v", n, w.blackHoles())
		}
	})
}
