package backbone

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// smallWindows are those of the package in small, so that a few flows fill them.
var smallWindows = windows{stream: 16 << 10, maxStream: 256 << 10, connection: 4 << 20, slow: 2 << 20}

// sends has a service send so many bytes to whoever asks.
func sends(size int) func(*Incoming) {
	return func(in *Incoming) {
		c := in.Accept().(duplexConn)
		defer c.Close()
		if _, err := c.Write(make([]byte, size)); err == nil {
			c.CloseWrite()
		}
	}
}

// fetches is how long it takes to read all of a service's answer.
func (w *world) fetches(b *Backbone, service string, size int64) time.Duration {
	w.Helper()
	began := time.Now()
	c := w.mustDial(b, "iad", service)
	defer c.Close()
	if n, err := io.Copy(io.Discard, c); n != size || err != nil {
		w.Errorf("read %d bytes, %v", n, err)
	}
	return time.Since(began)
}

// Clients that download fast, whose windows are wide, and then stop reading, more of them than the carrier has room for.
func TestReadersThatStopWhenTheirWindowsAreWideDoNotStopTheOthers(t *testing.T) {
	inWorld(t, func(w *world) {
		nodes := map[string]*Backbone{}
		for _, name := range []string{"icn", "iad"} {
			c := w.config(name, w.authority)
			c.windows = smallWindows
			nodes[name] = w.openWith(c)
			defer nodes[name].Close()
		}
		icn, iad := nodes["icn"], nodes["iad"]
		icn.Keep(peers("iad"))
		w.until(icn, "iad", true)
		const size, stalled = 256 << 10, 24
		iad.Handle("page", sends(size))
		iad.Handle("film", sends(64<<20))
		for range 3 {
			w.fetches(icn, "page", size) // QUIC's congestion window opens
		}
		alone := w.fetches(icn, "page", size)
		var wg sync.WaitGroup
		for range stalled {
			c := w.mustDial(icn, "iad", "film")
			defer c.Abort()
			wg.Go(func() {
				if _, err := io.CopyN(io.Discard, c, 1<<20); err != nil {
					w.Error(err)
				}
			})
		}
		wg.Wait()
		time.Sleep((slowLooks + 1) * measureInterval)
		if took := w.fetches(icn, "page", size); took > 2*alone {
			w.Errorf("beside %d readers that have stopped it took %v, alone %v", stalled, took, alone)
		}
		if left, reset := icn.Counters()["backbone_streams_slow_left_total"], icn.Counters()["backbone_streams_slow_cut_total"]; left == 0 || reset > 0 {
			w.Errorf("%d streams were left and %d reset", left, reset)
		}
	})
}

// Where there are too many of narrow windows, those are reset that have waited the longest, and all others go on.
func TestTooManyReadersThatHaveStoppedAreReset(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.config("icn", w.authority)
		c.windows = smallWindows
		icn, iad := w.openWith(c), w.open("iad")
		defer icn.Close()
		defer iad.Close()
		icn.Keep(peers("iad"))
		w.until(icn, "iad", true)
		iad.Handle("film", sends(1<<20))
		room := int(smallWindows.slow / smallWindows.stream)
		const late = 10
		all := make([]net.Conn, 0, room+late)
		for len(all) < cap(all) {
			if len(all) == room {
				time.Sleep((slowLooks + 1) * measureInterval)
			}
			c := w.mustDial(icn, "iad", "film")
			defer c.Close()
			all = append(all, c)
		}
		time.Sleep((slowLooks + 1) * measureInterval)
		if n := icn.Counters()["backbone_streams_slow_cut_total"]; n != late {
			w.Fatalf("%d streams were reset, want %d", n, late)
		}
		for i, c := range all[room:] {
			if n, err := io.Copy(io.Discard, c); n != 1<<20 || err != nil {
				w.Errorf("of the late one %d %d bytes were read, %v", i, n, err)
			}
		}
	})
}

// A flow that outlives its streams loses nothing when one is left for others.
func TestAFlowOfASlowReaderGoesOnOverANarrowStream(t *testing.T) {
	inWorld(t, func(w *world) {
		nodes := map[string]*Backbone{}
		for _, name := range []string{"icn", "iad"} {
			c := w.config(name, w.authority)
			c.windows = smallWindows
			nodes[name] = w.openWith(c)
			defer nodes[name].Close()
		}
		icn, iad := nodes["icn"], nodes["iad"]
		icn.Keep(peers("iad"))
		w.until(icn, "iad", true)
		const before, behind, stalled = 1 << 20, 1 << 20, 24
		film := make([]byte, before+behind)
		chaCha(1).Read(film)
		iad.Handle("flow", func(in *Incoming) {
			c := in.Accept().(*lastingConn)
			defer c.Close()
			if _, err := c.Write(film); err != nil {
				w.Error(err)
				return
			}
			c.CloseWrite()
		})
		var reading, read sync.WaitGroup
		again := make(chan struct{})
		for range stalled {
			reading.Add(1)
			read.Go(func() {
				c, err := icn.DialLasting(w.Context(), flowWays("iad")[0], func() []Way { return flowWays("iad") })
				if err != nil {
					w.Error(err)
					reading.Done()
					return
				}
				defer c.Close()
				got := make([]byte, len(film))
				_, err = io.ReadFull(c, got[:before])
				reading.Done()
				<-again
				_, rest := io.ReadFull(c, got[before:])
				_, end := c.Read(make([]byte, 1))
				if err != nil || rest != nil || end != io.EOF || !bytes.Equal(got, film) {
					w.Errorf("%v, %v, %v, or other bytes than were sent", err, rest, end)
				}
			})
		}
		reading.Wait()
		time.Sleep(20 * time.Second)
		close(again)
		read.Wait()
		counts := icn.Counters()
		if left, resumed := counts["backbone_streams_slow_left_total"], counts["backbone_lasting_streams_resumed_total"]; left == 0 || resumed != left {
			w.Errorf("%d streams were left, and %d flows went on", left, resumed)
		}
		if n := counts["backbone_streams_slow_cut_total"]; n != 0 {
			w.Errorf("%d were reset", n)
		}
	})
}

func TestWindowsAreTakenForAsWideAsTheyMayBe(t *testing.T) {
	for _, c := range []struct{ window, read, want uint64 }{
		{512, 0, 512}, {512, 255, 512}, {512, 256, 1024}, {512, 256 + 512, 2048}, {512, 1 << 20, 6144}, {6144, 1 << 20, 6144}, {4096, 2048, 6144},
	} {
		if got := widened(c.window, c.read, 6144); got != c.want {
			t.Errorf("%d after %d bytes: %d, want %d", c.window, c.read, got, c.want)
		}
	}
}
