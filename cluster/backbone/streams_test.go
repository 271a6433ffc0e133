package backbone

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"
)

// A peer that opens streams without end, by many connections, has some of them, and no other peer has fewer for it.
func TestAPeerThatOpensStreamsWithoutEndHasItsShare(t *testing.T) {
	const streams, all = 100, 250
	inWorld(t, func(w *world) {
		c := w.config("iad", w.authority)
		c.windows = defaultWindows
		c.windows.streams, c.windows.peerStreams = streams, all
		iad := w.openWith(c)
		defer iad.Close()
		iad.Handle("held", func(in *Incoming) {
			conn := in.Accept()
			defer conn.Close()
			io.Copy(io.Discard, conn)
		})
		fra := w.open("fra")
		defer fra.Close()
		fra.Keep(peers("iad"))
		w.until(fra, "iad", true)

		liar := w.config("icn", w.authority)
		transport := &quic.Transport{Conn: liar.PacketConn}
		defer liar.PacketConn.Close()
		defer transport.Close()
		header, _ := AppendHeader(nil, Header{Service: "held"})
		config := defaultWindows.quicConfig()
		config.KeepAlivePeriod = keepAlive
		var conns []*quic.Conn
		var mine []*quic.Stream
		for range 10 {
			conn, err := transport.Dial(w.Context(), net.UDPAddrFromAddrPort(addresses["iad"]), withALPN(liar.ClientTLS("iad")), config)
			if err != nil {
				w.Fatal(err)
			}
			conns = append(conns, conn)
		}
		open := func() int64 { synctest.Wait(); return iad.shares["icn"].streams.Load() }
		opens := func(say []byte) (opened int) {
			for _, conn := range conns {
				for {
					stream, err := conn.OpenStream()
					if err != nil {
						break
					}
					stream.Write(say)
					mine = append(mine, stream)
					opened++
				}
			}
			time.Sleep(2 * roundTrip)
			return opened
		}
		for what, say := range map[string][]byte{"flows": header, "halves of headers": header[:3], "what is no header": []byte("nonsense")} {
			for range 5 {
				opens(say)
				if n := open(); n > int64(all+len(conns)) { // the first of each connection
					w.Errorf("%s: %d are open", what, n)
				}
			}
			if what == "flows" {
				if open() < all {
					w.Errorf("%s: %d are open, of %d", what, open(), all)
				}
				conn, err := transport.Dial(w.Context(), net.UDPAddrFromAddrPort(addresses["iad"]), withALPN(liar.ClientTLS("iad")), config)
				if err != nil {
					w.Fatal(err)
				}
				if _, err := (*fra.links.Load())["iad"].ask(w.Context(), conn, Header{Service: helloService}); err != nil {
					w.Errorf("a connection more: its hello: %v", err)
				}
				conn.CloseWithError(0, "")
			}
			other := w.mustDial(fra, "iad", "echo")
			if err := says(other, "hello"); err != nil {
				w.Errorf("%s: another peer: %v", what, err)
			}
			other.Close()
			for _, stream := range mine {
				stream.CancelWrite(streamAborted)
				stream.CancelRead(streamAborted)
			}
			mine = nil
			time.Sleep(headerTimeout + 2*roundTrip)
			if n := open(); n != 0 {
				w.Errorf("%s: %d are left", what, n)
			}
		}
		counts := iad.Counters()
		if counts["backbone_streams_crowded_total"] == 0 || counts["backbone_headers_malformed_total"] == 0 {
			w.Errorf("%v", counts)
		}
		for _, conn := range conns {
			conn.CloseWithError(0, "")
		}
		time.Sleep(roundTrip)
		if synctest.Wait(); len(iad.shares) != 1 {
			w.Errorf("%d peers have a share", len(iad.shares))
		}
	})
}

func TestAConnectionSaysHelloAFewTimes(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer iad.Close()
		defer icn.Close()
		l := (*icn.links.Load())["iad"]
		taken := 0
		for range 3 * maxOwn {
			if _, err := l.ask(w.Context(), l.carriers[0].conn, Header{Service: helloService}); err == nil {
				taken++
			} else if !errors.Is(err, ErrReset) {
				w.Error(err)
			}
		}
		if taken != maxOwn-1 || iad.Counters()["backbone_streams_crowded_total"] != 3*maxOwn-(maxOwn-1) {
			w.Errorf("%d were answered, %v", taken, iad.Counters())
		}
		w.mustDial(icn, "iad", "echo").Close()
	})
}

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// Both ends end at once, of a stream and of a flow that outlives it: each reads all, and a clean end.
func TestBothEndsMayCloseAtOnce(t *testing.T) {
	ends := func(w *world, a, b halfCloser) {
		w.Helper()
		var wg sync.WaitGroup
		for _, c := range []halfCloser{a, b} {
			wg.Go(func() {
				wg.Go(func() {
					if _, err := c.Write(make([]byte, 100_000)); err != nil {
						w.Error(err)
					}
					if err := c.CloseWrite(); err != nil {
						w.Error(err)
					}
				})
				if n, err := io.Copy(io.Discard, c); n != 100_000 || err != nil {
					w.Errorf("%d bytes, %v", n, err)
				}
			})
		}
		wg.Wait()
		for _, c := range []halfCloser{a, b} {
			wg.Go(func() {
				if err := c.Close(); err != nil {
					w.Error(err)
				}
			})
		}
		wg.Wait()
	}
	bothKinds(t, func(w *world, near, far duplexConn) { ends(w, near, far) })
	byEach(t, func(w *flowWorld) {
		near, far := w.flow("iad", "iad")
		ends(w.world, near, far)
		w.settled()
		w.counts("icn", map[string]uint64{"flows": 0, "flows_parted_total": 0, "malformed_total": 0})
		w.counts("iad", map[string]uint64{"flows": 0, "flows_parted_total": 0, "malformed_total": 0})

		near, far = w.flow("iad", "iad")
		var wg sync.WaitGroup
		for _, c := range []*lastingConn{near, far} {
			wg.Go(func() { c.Abort() })
		}
		wg.Wait()
		w.settled()
		w.counts("icn", map[string]uint64{"flows": 0})
		w.counts("iad", map[string]uint64{"flows": 0})
	})
}
