package backbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/testbed/memnet"
)

func TestALinkIsWarmAndMeasured(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		defer icn.Close()
		time.Sleep(3 * time.Second)
		l := icn.Links().Get()["iad"]
		if !l.Up || l.Reason != "" || l.RTT < roundTrip || l.RTT > roundTrip*5/4 {
			w.Errorf("got %+v, want it up with %v", l, roundTrip)
		}
		w.in.Slow("icn", "iad", 50*time.Millisecond)
		time.Sleep(20 * time.Second)
		if l := icn.Links().Get()["iad"]; l.RTT < roundTrip+90*time.Millisecond {
			w.Errorf("the way became 100 ms longer, and the link shows %v", l.RTT)
		}
		if links := iad.Links().Get(); len(links) != 0 {
			w.Errorf("who keeps no peers has links: %v", links)
		}
	})
}

// Who follows the links keeps peers by them: the two must not drive each other.
func TestLinksArePublishedAboutOnceASecond(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		defer icn.Close()
		w.in.Link("icn", "iad", memnet.Path{Delay: roundTrip / 2, Jitter: 10 * time.Millisecond})
		c := w.mustDial(icn, "iad", "echo")
		ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
		defer cancel()
		var traffic sync.WaitGroup
		traffic.Go(func() {
			defer c.Close()
			for ctx.Err() == nil {
				c.Write([]byte("x"))
				time.Sleep(20 * time.Millisecond)
			}
		})
		published := 0
		for version := icn.Links().Version(); ; published++ {
			var err error
			if _, version, err = icn.Links().Next(ctx, version); err != nil {
				break
			}
			time.Sleep(50 * time.Millisecond) // it has to think
			icn.Keep(peers("iad"))
		}
		traffic.Wait()
		if published < 5 || published > 11 {
			w.Errorf("published %d times in 10 s", published)
		}
	})
}

func TestADialTakesOneRoundTrip(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		defer icn.Close()
		begun := time.Now()
		c := w.mustDial(icn, "iad", "echo")
		defer c.Close()
		if took := time.Since(begun); took < roundTrip || took > roundTrip*11/10 {
			w.Errorf("it took %v, want %v", took, roundTrip)
		}
		write(w, c, "hello")
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
			w.Errorf("got %q, %v", got, err)
		}
	})
}

func TestTheHandlerLearnsWhatForAndFromWhom(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		defer icn.Close()
		type seen struct {
			Header
			from, local, remote string
		}
		got := make(chan seen, 1)
		handle := func(in *Incoming) {
			c := in.Accept()
			got <- seen{in.Header, in.From, c.LocalAddr().String(), c.RemoteAddr().String()}
			c.Close()
		}
		icn.Handle("flow", handle)
		iad.Handle("flow", handle)
		viewer := netip.MustParseAddrPort("203.0.113.9:51000")
		for _, node := range []string{"iad", "icn"} {
			for _, client := range []netip.AddrPort{viewer, {}} {
				h := Header{Service: "flow", Resource: "targetGroup/db", Client: client}
				c, err := icn.Dial(w.Context(), node, h)
				if err != nil {
					w.Fatal(err)
				}
				if c.RemoteAddr().String() != node {
					w.Errorf("the dialler sees %v at the other end, want %s", c.RemoteAddr(), node)
				}
				c.Close()
				want := seen{h, "icn", node, "icn"}
				if client.IsValid() {
					want.remote = client.String()
				}
				if s := <-got; s != want {
					w.Errorf("the handler saw %+v, want %+v", s, want)
				}
			}
		}
	})
}

func TestARefusalCarriesItsReason(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		defer icn.Close()
		for _, b := range []*Backbone{icn, iad} {
			b.Handle("full", func(in *Incoming) {
				in.Refuse("all targets are full")
				in.Refuse("again")
				if _, err := in.Accept().Write([]byte("x")); err == nil {
					w.Error("a refused stream can be written to")
				}
			})
			b.Handle("silent", func(*Incoming) {})
		}
		for service, reason := range map[string]string{
			"full":   "all targets are full",
			"silent": "no answer",
			"nosuch": `no service "nosuch" here`,
		} {
			for _, node := range []string{"icn", "iad"} {
				_, err := icn.Dial(w.Context(), node, Header{Service: service})
				if no, ok := errors.AsType[*RefusedError](err); !ok || no.Reason != reason || no.NoService() != (service == "nosuch") {
					w.Errorf("%s at %s: %v, want %q", service, node, err, reason)
				}
			}
		}
		if n := iad.Counters()["backbone_streams_refused_total"]; n != 3 {
			w.Errorf("%d refusals counted, want 3", n)
		}
	})
}

func TestADialEndsWithItsContextAndTellsTheHandler(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		defer icn.Close()
		var told atomic.Int32
		for _, b := range []*Backbone{icn, iad} {
			b.Handle("slow", func(in *Incoming) {
				<-in.Context().Done()
				told.Add(1)
			})
		}
		for _, node := range []string{"icn", "iad"} {
			ctx, cancel := context.WithTimeout(w.Context(), time.Second)
			begun := time.Now()
			if _, err := icn.Dial(ctx, node, Header{Service: "slow"}); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Second {
				w.Errorf("%s: %v after %v", node, err, time.Since(begun))
			}
			cancel()
		}
		begun := time.Now()
		if _, err := icn.Dial(w.Context(), "iad", Header{Service: "slow"}); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != dialTimeout {
			w.Errorf("without a deadline: %v after %v", err, time.Since(begun))
		}
		time.Sleep(roundTrip)
		if told.Load() != 3 {
			w.Errorf("%d of 3 handlers were told", told.Load())
		}
	})
}

func TestTheTimeBeforeTheAnswerEndsWithTheLinkOrTheHandler(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		defer icn.Close()
		asked := make(chan *Incoming, 1)
		iad.Handle("asked", func(in *Incoming) {
			in.Context()
			asked <- in
			if in.Resource == "wait" {
				<-in.Context().Done()
			}
		})
		for _, resource := range []string{"", "wait"} {
			go icn.Dial(w.Context(), "iad", Header{Service: "asked", Resource: resource})
			in := <-asked
			synctest.Wait()
			if over := in.Context().Err() != nil; over != (resource == "") {
				w.Errorf("%q: it is over: %v", resource, over)
			}
			time.Sleep(2 * roundTrip)
		}
		go icn.Dial(w.Context(), "iad", Header{Service: "asked", Resource: "wait"})
		in := <-asked
		icn.Close()
		begun := time.Now()
		<-in.Context().Done()
		if took := time.Since(begun); took > roundTrip {
			w.Errorf("that the link was lost is heard after %v", took)
		}
	})
}

func TestADeadPeerIsNoticedWithinTwoSeconds(t *testing.T) {
	for _, c := range []struct {
		name   string
		kill   func(*world)
		within time.Duration
	}{
		{"its machine crashes", func(w *world) { w.hosts["iad"].Crash() }, 2 * time.Second},
		{"the way to it and back is cut", func(w *world) { w.in.Cut("icn", "iad") }, 2 * time.Second},
		{"the way back is cut", func(w *world) { w.in.CutOneWay("iad", "icn") }, 2 * time.Second},
		// The peer first has to find out for itself and fall silent.
		{"the way to it is cut", func(w *world) { w.in.CutOneWay("icn", "iad") }, 4 * time.Second},
	} {
		for _, busy := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, busy %v", c.name, busy), func(t *testing.T) {
				inWorld(t, func(w *world) {
					icn, iad := w.pair()
					defer iad.Close()
					defer icn.Close()
					stream := w.mustDial(icn, "iad", "echo")
					defer stream.Close()
					read := make(chan error, 1)
					go func() {
						_, err := io.ReadAll(stream)
						read <- err
					}()
					var writer sync.WaitGroup
					if busy {
						writer.Go(func() {
							for {
								if _, err := stream.Write(make([]byte, 1000)); err != nil {
									return
								}
								time.Sleep(20 * time.Millisecond)
							}
						})
					}
					time.Sleep(10 * time.Second)
					c.kill(w)
					if took := w.until(icn, "iad", false); took > c.within {
						w.Errorf("noticed after %v", took)
					}
					err := <-read
					if !errors.Is(err, ErrDown) {
						w.Errorf("a stream to the dead peer read %v", err)
					}
					if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
						w.Errorf("%v passes for a deadline", err)
					}
					begun := time.Now()
					if _, err := icn.Dial(w.Context(), "iad", Header{Service: "echo"}); !errors.Is(err, ErrDown) || time.Since(begun) != 0 {
						w.Errorf("the next dial: %v after %v", err, time.Since(begun))
					}
					if l := icn.Links().Get()["iad"]; l.Up || l.Reason == "" || l.RTT != 0 {
						w.Errorf("the link is %+v", l)
					}
					writer.Wait()
				})
			})
		}
	}
}

// Ordinary loss is no death, neither of a young link, of whose round trip little is known, nor of one that stands.
func TestALinkIsNotGivenUpForLoss(t *testing.T) {
	for _, c := range []struct {
		loss  float64
		seeds int
		time  time.Duration
	}{{0.01, 40, 10 * time.Second}, {0.05, 10, 10 * time.Minute}} {
		t.Run(fmt.Sprint(c.loss), func(t *testing.T) {
			for seed := range c.seeds {
				inWorldSeeded(t, uint64(seed+1), func(w *world) {
					w.in.Link("icn", "iad", memnet.Path{Delay: 125 * time.Millisecond, Loss: c.loss})
					icn, iad := w.pair()
					defer iad.Close()
					defer icn.Close()
					time.Sleep(c.time)
					if lost := icn.Counters()["backbone_carriers_lost_total"]; lost > 0 {
						w.Errorf("seed %d: it was given up %d times", seed+1, lost)
					}
				})
			}
		})
	}
}

func TestALinkComesBack(t *testing.T) {
	t.Run("when the way is healed", func(t *testing.T) {
		inWorld(t, func(w *world) {
			icn, iad := w.pair()
			defer iad.Close()
			defer icn.Close()
			w.in.Cut("icn", "iad")
			w.until(icn, "iad", false)
			time.Sleep(time.Minute)
			w.in.Heal("icn", "iad")
			if took := w.until(icn, "iad", true); took > 5*time.Second {
				w.Errorf("it took %v", took)
			}
			w.mustDial(icn, "iad", "echo").Close()
		})
	})
	t.Run("when the peer is started again", func(t *testing.T) {
		inWorld(t, func(w *world) {
			icn, iad := w.pair()
			defer icn.Close()
			iad.Close()
			if took := w.until(icn, "iad", false); took > roundTrip {
				w.Errorf("a peer that says goodbye is noticed after %v", took)
			}
			time.Sleep(10 * time.Second)
			iad = w.open("iad")
			defer iad.Close()
			if took := w.until(icn, "iad", true); took > 5*time.Second {
				w.Errorf("it took %v", took)
			}
		})
	})
	t.Run("when the peer is killed and started again at once", func(t *testing.T) {
		inWorld(t, func(w *world) {
			icn, iad := w.pair()
			defer icn.Close()
			time.Sleep(time.Second) // until the round trip is known well, silence is borne longer
			w.hosts["iad"].Kill()
			iad.Close()
			w.hosts["iad"].Restart()
			iad = w.open("iad")
			defer iad.Close()
			took := w.until(icn, "iad", false) + w.until(icn, "iad", true)
			if took > 3*time.Second {
				w.Errorf("it took %v", took)
			}
		})
	})
}

func TestTheFirstDialWaitsForTheFirstAttempt(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.open("icn"), w.open("iad")
		defer iad.Close()
		defer icn.Close()
		icn.Keep(peers("iad", "stranger"))
		if l := icn.Links().Get()["iad"]; l.Up || !l.Since.IsZero() {
			w.Errorf("before anything is known the link is %+v", l)
		}
		w.mustDial(icn, "iad", "echo").Close()

		begun := time.Now()
		if _, err := icn.Dial(w.Context(), "stranger", Header{Service: "echo"}); !errors.Is(err, ErrDown) || time.Since(begun) > attemptTimeout {
			w.Errorf("where nobody listens: %v after %v", err, time.Since(begun))
		}
	})
}

func TestOnlyKeptPeersAreDialled(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		defer icn.Close()
		if _, err := iad.Dial(w.Context(), "icn", Header{Service: "echo"}); !errors.Is(err, ErrDown) {
			w.Errorf("a node that is not kept: %v", err)
		}
		c := w.mustDial(icn, "iad", "echo")
		defer c.Close()
		icn.Keep(peers("iad", "icn")) // the same, and itself
		write(w, c, "x")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			w.Errorf("keeping a peer once more broke its streams: %v", err)
		}
		if links := icn.Links().Get(); len(links) != 1 {
			w.Errorf("links: %v", links)
		}
		icn.Keep(nil)
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrDown) {
			w.Errorf("a stream to a peer that is kept no more: %v", err)
		}
		if links := icn.Links().Get(); len(links) != 0 {
			w.Errorf("links: %v", links)
		}
		if _, err := icn.Dial(w.Context(), "iad", Header{Service: "echo"}); !errors.Is(err, ErrDown) {
			w.Errorf("a peer that is kept no more: %v", err)
		}
	})
}

func TestStrangersAreNotLetIn(t *testing.T) {
	t.Run("a node of another cluster", func(t *testing.T) {
		inWorld(t, func(w *world) {
			other, err := identity.NewAuthority(identity.NewClusterID(), time.Now())
			if err != nil {
				w.Fatal(err)
			}
			iad, stranger := w.open("iad"), w.openWith(w.config("stranger", other))
			defer iad.Close()
			defer stranger.Close()
			stranger.Keep(peers("iad"))
			iad.Keep(peers("stranger"))
			if _, err := stranger.Dial(w.Context(), "iad", Header{Service: "echo"}); !errors.Is(err, ErrDown) {
				w.Errorf("it dialled in: %v", err)
			}
			if _, err := iad.Dial(w.Context(), "stranger", Header{Service: "echo"}); !errors.Is(err, ErrDown) {
				w.Errorf("it was dialled: %v", err)
			}
			time.Sleep(time.Second)
			if n := iad.Counters()["backbone_handshakes_failed_total"]; n == 0 {
				w.Error("its handshake was not counted")
			}
		})
	})
	// A TLS client is done before the server has looked at its certificate.
	t.Run("a node without a certificate never believes it is up", func(t *testing.T) {
		inWorld(t, func(w *world) {
			iad := w.open("iad")
			defer iad.Close()
			c := w.config("stranger", w.authority)
			withCertificate := c.ClientTLS
			c.ClientTLS = func(node string) *tls.Config {
				conf := withCertificate(node)
				conf.GetClientCertificate = nil
				return conf
			}
			stranger := w.openWith(c)
			defer stranger.Close()
			stranger.Keep(peers("iad"))
			for range 40 {
				time.Sleep(100 * time.Millisecond)
				if l := stranger.Links().Get()["iad"]; l.Up {
					w.Fatalf("the link is %+v", l)
				}
			}
		})
	})
	t.Run("a peer whose name is not to be spoken to", func(t *testing.T) {
		inWorld(t, func(w *world) {
			c := w.config("iad", w.authority)
			c.PeerName = func(tls.ConnectionState) (string, error) { return "", errors.New("revoked") }
			iad, icn := w.openWith(c), w.open("icn")
			defer iad.Close()
			defer icn.Close()
			icn.Keep(peers("iad"))
			w.until(icn, "iad", false)
			if n := iad.Counters()["backbone_strangers_total"]; n == 0 {
				w.Error("it was not counted")
			}
		})
	})
	t.Run("another node of the cluster at the peer's address", func(t *testing.T) {
		inWorld(t, func(w *world) {
			icn, iad := w.open("icn"), w.open("iad")
			defer icn.Close()
			defer iad.Close()
			icn.config.ClientTLS = func(string) *tls.Config {
				conf := w.config("stranger", w.authority).ClientTLS("iad")
				return conf
			}
			icn.Keep(map[string]netip.AddrPort{"fra": addresses["iad"]})
			w.until(icn, "fra", false)
			if l := icn.Links().Get()["fra"]; l.Reason != "iad answers there" {
				w.Errorf("the link is %+v", l)
			}
		})
	})
}

func TestAPeerThatOpensAStreamMustSayWhatFor(t *testing.T) {
	for name, first := range map[string][]byte{
		"silence after a byte": {version},
		"another version":      {9, 4, 'e', 'c', 'h', 'o'},
		"a service too long":   {version, 200},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				icn, iad := w.pair()
				defer iad.Close()
				defer icn.Close()
				stream, _, err := (*icn.links.Load())["iad"].stream(w.Context(), false)
				if err != nil {
					w.Fatal(err)
				}
				stream.Write(first)
				begun := time.Now()
				if _, err := stream.Read(make([]byte, 1)); err == nil || err == io.EOF {
					w.Errorf("the stream read %v", err)
				}
				if took := time.Since(begun); took > headerTimeout+2*roundTrip {
					w.Errorf("it was given %v", took)
				}
				if n := iad.Counters()["backbone_headers_malformed_total"]; n != 1 {
					w.Errorf("counted %d", n)
				}
				w.mustDial(icn, "iad", "echo").Close()
			})
		})
	}
}

func TestGarbageIsCountedAndChangesNothing(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		defer icn.Close()
		c, err := w.hosts["stranger"].ListenPacket("udp", "192.0.2.3:9")
		if err != nil {
			w.Fatal(err)
		}
		defer c.Close()
		to := net.UDPAddrFromAddrPort(addresses["iad"])
		sent := 0
		for _, first := range []byte{0x00, 0x3f, 0x40, 0x7f, 0xc0, 0xff} {
			for _, size := range []int{1, 5, 20, 100, 1200, 1400} {
				c.WriteTo(append([]byte{first}, make([]byte, size-1)...), to)
				sent++
			}
		}
		time.Sleep(time.Second)
		dropped := iad.Counters()["backbone_packets_dropped_total"]
		if dropped == 0 || dropped > uint64(sent) {
			w.Errorf("%d of %d were counted", dropped, sent)
		}
		w.Logf("%d of %d were counted", dropped, sent)
		w.mustDial(icn, "iad", "echo").Close()
	})
}

func TestAFloodOfHandshakesLeavesRoomForPeers(t *testing.T) {
	inWorld(t, func(w *world) {
		iad, stranger := w.open("iad"), w.open("stranger")
		defer iad.Close()
		defer stranger.Close()
		w.in.CutOneWay("iad", "stranger") // as if its addresses were forged
		ctx, cancel := context.WithCancel(w.Context())
		var flood sync.WaitGroup
		for range freeHandshakes + 20 {
			flood.Go(func() {
				stranger.transport.Dial(ctx, net.UDPAddrFromAddrPort(addresses["iad"]), withALPN(stranger.config.ClientTLS("iad")), nil)
			})
		}
		time.Sleep(time.Second)
		if n := iad.count.handshaking.Load(); n != freeHandshakes+1 {
			w.Errorf("%d handshakes hold state, want %d", n, freeHandshakes+1)
		}
		icn := w.open("icn")
		defer icn.Close()
		icn.Keep(peers("iad"))
		if took := w.until(icn, "iad", true); took > 5*roundTrip {
			w.Errorf("a peer got in after %v", took)
		}
		cancel()
		flood.Wait()
		time.Sleep(time.Minute)
		if n := iad.Counters()["backbone_connections"]; n != 1 {
			w.Errorf("%d connections are left, want the peer's", n)
		}
	})
}

func TestStalledReadersDoNotStopTheOthers(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		defer icn.Close()
		iad.Handle("stall", func(in *Incoming) { in.Accept() }) // and never read
		const stalled = 64
		var wg sync.WaitGroup
		for range stalled {
			c := w.mustDial(icn, "iad", "stall")
			defer c.Abort()
			c.SetWriteDeadline(time.Now().Add(20 * time.Second))
			wg.Go(func() {
				if n, err := c.Write(make([]byte, 2*streamWindow)); err == nil || n < streamWindow-100 || n > streamWindow {
					w.Errorf("wrote %d, %v to a reader who does not read", n, err)
				}
			})
		}
		wg.Wait()
		c := w.mustDial(icn, "iad", "echo")
		defer c.Close()
		go func() {
			c.Write(make([]byte, 100_000))
			c.CloseWrite()
		}()
		if n, err := io.Copy(io.Discard, c); n != 100_000 || err != nil {
			w.Errorf("%d bytes came back, %v", n, err)
		}
	})
}

func TestALinkIsStripedOverItsCarriers(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.config("icn", w.authority)
		c.Carriers = 3
		icn, iad := w.openWith(c), w.open("iad")
		defer iad.Close()
		defer icn.Close()
		icn.Keep(peers("iad"))
		time.Sleep(2 * time.Second)
		if n := iad.Counters()["backbone_connections"]; n != 3 {
			w.Fatalf("%d connections, want 3", n)
		}
		l := (*icn.links.Load())["iad"]
		l.mu.Lock()
		var carriers []*quic.Conn
		for _, c := range l.carriers {
			carriers = append(carriers, c.conn)
		}
		l.mu.Unlock()
		before := map[*quic.Conn]uint64{}
		for _, carrier := range carriers {
			before[carrier] = carrier.ConnectionStats().BytesSent
		}
		for range 9 {
			c := w.mustDial(icn, "iad", "echo")
			defer c.Close()
			write(w, c, strings.Repeat("x", 50_000))
		}
		for _, carrier := range carriers {
			if sent := carrier.ConnectionStats().BytesSent - before[carrier]; sent < 150_000 || sent > 200_000 {
				w.Errorf("of nine streams of 50 kB, one of three carriers took %d bytes", sent)
			}
		}
		carriers[0].CloseWithError(codeClosing, "")
		w.mustDial(icn, "iad", "echo").Close() // on one of the others
		if l := icn.Links().Get()["iad"]; !l.Up {
			w.Errorf("with two of three carriers the link is %+v", l)
		}
		time.Sleep(2 * time.Second)
		if n := iad.Counters()["backbone_connections"]; n != 3 {
			w.Errorf("a lost carrier was not redialled: %d connections", n)
		}
	})
}

func TestLossCostsTimeNotBytes(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		defer icn.Close()
		w.in.Link("icn", "iad", memnet.Path{Delay: roundTrip / 2, Loss: 0.05, Jitter: 10 * time.Millisecond})
		text := strings.Repeat("the quick brown fox ", 500)
		iad.Handle("text", func(in *Incoming) {
			c := in.Accept().(duplexConn)
			io.WriteString(c, text)
			if in.Resource == "whole" {
				c.CloseWrite()
			}
			c.Close() // at once, with nothing acknowledged
		})
		var wg sync.WaitGroup
		for i := range 60 {
			whole := i%2 == 0
			h := Header{Service: "text", Resource: "cut"}
			if whole {
				h.Resource = "whole"
			}
			wg.Go(func() {
				c, err := icn.Dial(w.Context(), "iad", h)
				if err != nil {
					w.Error(err)
					return
				}
				defer c.Close()
				got, err := io.ReadAll(c)
				if string(got) != text || (err == nil) != whole {
					w.Errorf("%s: %d of %d bytes, then %v", h.Resource, len(got), len(text), err)
				}
			})
		}
		wg.Wait()
	})
}

func TestCloseBreaksStreamsAndWaitsForHandlers(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		var ended atomic.Int32
		handle := func(in *Incoming) {
			io.Copy(io.Discard, in.Accept())
			ended.Add(1)
		}
		icn.Handle("sink", handle)
		iad.Handle("sink", handle)
		here, there := w.mustDial(icn, "icn", "sink"), w.mustDial(icn, "iad", "sink")
		if err := icn.Close(); err != nil {
			w.Fatal(err)
		}
		if ended.Load() < 1 {
			w.Error("its own handler still runs")
		}
		time.Sleep(roundTrip)
		if ended.Load() != 2 {
			w.Error("the peer's handler still runs")
		}
		for _, c := range []net.Conn{here, there} {
			if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
				w.Errorf("a stream read %v", err)
			}
		}
		for _, node := range []string{"icn", "iad"} {
			if _, err := icn.Dial(w.Context(), node, Header{Service: "sink"}); err == nil {
				w.Errorf("a closed backbone dialled %s", node)
			}
		}
		icn.Keep(peers("iad"))
		if err := icn.Close(); err != nil {
			w.Errorf("closing it twice: %v", err)
		}
	})
}

func TestItWorksOverRealSockets(t *testing.T) {
	authority, err := identity.NewAuthority(identity.NewClusterID(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	nodes := map[string]*Backbone{}
	at := map[string]netip.AddrPort{}
	for _, name := range []string{"icn", "iad"} {
		nodes[name], at[name] = overLoopback(t, authority, name)
	}
	nodes["icn"].Keep(at)
	c, err := nodes["icn"].Dial(t.Context(), "iad", Header{Service: "echo"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		io.WriteString(c, strings.Repeat("x", 1<<20))
		c.(duplexConn).CloseWrite()
	}()
	if got, err := io.ReadAll(c); len(got) != 1<<20 || err != nil {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
}

func overLoopback(t testing.TB, authority *identity.Authority, name string) (*Backbone, netip.AddrPort) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, _ := overKernel(t, authority, name, conn)
	b, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	b.Handle("echo", echo)
	return b, conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// overKernel configures a node on a socket of the kernel's.
func overKernel(t testing.TB, authority *identity.Authority, name string, conn net.PacketConn) (Config, *identity.Guard) {
	t.Helper()
	guard := identity.NewGuard(issue(t, authority, name, 1, time.Now()), identity.Trust{}, nil)
	return Config{
		Self:       name,
		PacketConn: conn,
		ServerTLS:  func() *tls.Config { return guard.ServerTLS(ALPN) },
		ClientTLS:  func(node string) *tls.Config { return guard.ClientTLS(node, ALPN) },
		PeerName:   identity.PeerName,
		Refused:    refusals(guard),
		Log:        slog.New(slog.DiscardHandler),
	}, guard
}

func BenchmarkDial(b *testing.B) {
	icn, node := benchmarkNodes(b)
	for b.Loop() {
		c, err := icn.Dial(b.Context(), node, Header{Service: "echo"})
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

func BenchmarkDialSelf(b *testing.B) {
	icn, _ := benchmarkNodes(b)
	b.ReportAllocs()
	for b.Loop() {
		c, err := icn.Dial(b.Context(), "icn", Header{Service: "echo"})
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// BenchmarkStream is what a byte costs on a stream, at both ends, and on a flow that outlives it.
func BenchmarkStream(b *testing.B) {
	for _, kind := range []string{"plain", "lasting"} {
		b.Run(kind, func(b *testing.B) {
			icn, node := benchmarkNodes(b)
			way := Way{Node: node, Header: Header{Service: "sink"}}
			var c net.Conn
			var err error
			if kind == "plain" {
				c, err = icn.Dial(b.Context(), node, way.Header)
			} else {
				c, err = icn.DialLasting(b.Context(), way, func() []Way { return []Way{way} })
			}
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			buf := make([]byte, 64<<10)
			b.SetBytes(int64(len(buf)))
			before := cpu()
			for b.Loop() {
				if _, err := c.Write(buf); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((cpu()-before).Seconds()/(float64(b.N)*float64(len(buf))/1e9), "cpu-s/GB")
		})
	}
}

// cpu is what this process has used of processors.
func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchmarkNodes(b *testing.B) (icn *Backbone, node string) {
	authority, err := identity.NewAuthority(identity.NewClusterID(), time.Now())
	if err != nil {
		b.Fatal(err)
	}
	icn, _ = overLoopback(b, authority, "icn")
	iad, at := overLoopback(b, authority, "iad")
	for _, n := range []*Backbone{icn, iad} {
		n.Handle("sink", func(in *Incoming) { io.Copy(io.Discard, in.Accept()) })
	}
	icn.Keep(map[string]netip.AddrPort{"iad": at})
	return icn, "iad"
}
