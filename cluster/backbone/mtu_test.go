package backbone

import (
	"bytes"
	"errors"
	"fmt"
	"io"
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
				time.AfterFunc(500*ms, func() {
					for _, from := range c.narrows {
						w.narrows(from, map[string]string{"icn": "iad", "iad": "icn"}[from])
					}
				})
				const size = 10_000_000
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
				if took > 8*time.Second {
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
		if took := time.Since(begun); took > 4*time.Second || w.blackHoles() != [2]uint64{1, 0} {
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
			for range 20 {
				w.fetch(w.icn, "iad", 1_000_000)
			}
			if got := w.blackHoles(); got != [2]uint64{} {
				t.Errorf("%+v: found %v", p, got)
			}
		})
	}
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
		if n := w.iad.Counters()["backbone_parity_strange_total"]; n != 4*maxRounds || w.blackHoles() != [2]uint64{} {
			t.Errorf("%d datagrams; black holes %v", n, w.blackHoles())
		}
	})
}
