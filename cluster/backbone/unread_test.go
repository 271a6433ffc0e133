package backbone

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/perigee-net/perigee/testbed/memnet"
)

// smallWindows are those of the package in small, so that a few flows fill them.
var smallWindows = windows{stream: 16 << 10, maxStream: 256 << 10, connection: 4 << 20, slow: 2 << 20}

// small is a node of those.
func (w *world) small(name string) *Backbone {
	w.Helper()
	c := w.config(name, w.authority)
	c.windows = smallWindows
	return w.openWith(c)
}

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
		icn, iad := w.small("icn"), w.small("iad")
		defer icn.Close()
		defer iad.Close()
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
		icn, iad := w.small("icn"), w.open("iad")
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
		icn, iad := w.small("icn"), w.small("iad")
		defer icn.Close()
		defer iad.Close()
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

// A flow whose stream is reset for its slow reader is over, though nobody comes to it: its reader waits elsewhere.
func TestAFlowThatIsResetForItsSlowReaderIsOver(t *testing.T) {
	for _, by := range []string{"iad", "fra"} {
		inFlowWorld(t, 1, func(w *flowWorld) {
			near, far := w.flow(by, by)
			other, otherFar := w.flow(by, by)
			near.mu.Lock()
			on := near.stream.(*streamConn)
			near.mu.Unlock()
			if by != "iad" { // the stream's end at the node in between
				fra, here := w.nodes["fra"], on.StreamID()
				fra.visiting.Lock()
				for v := range fra.visitors {
					v.unread.mu.Lock()
					for c := range v.unread.all {
						if c.lasts && v.from == "icn" && c.StreamID() == here {
							on = c
						}
					}
					v.unread.mu.Unlock()
				}
				fra.visiting.Unlock()
			}
			time.Sleep(time.Second)
			on.cutSlow()
			time.Sleep(2 * roundTrip)
			if by == "iad" {
				near.mu.Lock()
				over := near.over
				near.mu.Unlock()
				if !errors.Is(over, errSlow) {
					w.Errorf("it is over by %v", over)
				}
			}
			for name, c := range map[string]*lastingConn{"icn": near, "iad": far} {
				c.SetReadDeadline(time.Now().Add(time.Second))
				if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					w.Errorf("by %s, at %s: %v", by, name, err)
				}
			}
			if !other.lasts() {
				w.Error("another flow is over, too")
			}
			near.Close()
			far.Close()
			other.Abort()
			otherFar.Abort()
			w.settled()
		})
	}
}

// Who goes on reading is left alone, however many there are: those whose clients set the pace, of which each takes as much in a second as some of its
// windows, and those that take far less than their window.
func TestReadersThatGoOnAreLeftAlone(t *testing.T) {
	for _, c := range []struct {
		name    string
		readers int
		bytes   int64 // that each takes at once
		every   time.Duration
	}{
		{"at a steady rate", 50, 4800, 100 * time.Millisecond}, // as 1.5 MB/s are to 512 KiB
		{"slowly", 150, 1 << 10, 500 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.in.Link("icn", "iad", memnet.Path{Delay: 10 * time.Millisecond})
				config := w.config("icn", w.authority)
				config.windows = smallWindows
				icn, iad := w.openWith(config), w.open("iad")
				defer icn.Close()
				defer iad.Close()
				icn.Keep(peers("iad"))
				w.until(icn, "iad", true)
				iad.Handle("film", sends(64<<20))
				var wg sync.WaitGroup
				for range c.readers {
					film := w.mustDial(icn, "iad", "film")
					wg.Go(func() {
						defer film.Abort()
						for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(c.every) {
							if _, err := io.CopyN(io.Discard, film, c.bytes); err != nil {
								w.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				counts := icn.Counters()
				if left, reset := counts["backbone_streams_slow_left_total"], counts["backbone_streams_slow_cut_total"]; left+reset > 0 {
					w.Errorf("%d streams were left and %d reset", left, reset)
				}
			})
		})
	}
}

// Those make room first that lose nothing by it, and of these the ones that have stopped; then others that have stopped; who goes on is not reset.
func TestReadersMakeRoomInTheOrderOfWhatTheyLose(t *testing.T) {
	const wide, narrow = 256 << 10, 16 << 10
	u := &unread{all: map[*streamConn]struct{}{}}
	add := func(window uint64, lasts, stops bool) *streamConn {
		c := &streamConn{}
		c.lasts = lasts
		c.window.Store(window)
		u.all[c] = struct{}{}
		if stops {
			c.peer = "stops"
		}
		return c
	}
	order := []*streamConn{
		add(wide, true, true), add(wide, true, false), // lasting: the one that has stopped first
		add(wide, false, true), add(narrow, true, true),
	}
	add(wide, false, false) // goes on
	add(narrow, true, false)
	add(narrow, false, false)
	w := windows{stream: narrow, maxStream: wide}
	var held uint64
	for c := range u.all {
		held += c.window.Load()
	}
	look := func(slow uint64) (left []*streamConn) {
		for c := range u.all {
			if c.peer != "stops" {
				c.taken.Add(1 << 10)
			}
		}
		w.slow = slow
		wide, narrow := u.look(w)
		return append(wide, narrow...)
	}
	for range slowLooks {
		if left := look(held); len(left) > 0 {
			t.Fatalf("%d were left though there is room", len(left))
		}
	}
	for i, slow := range []uint64{held, held - 1, held - wide, held - 2*wide, held - 3*wide + 2*narrow, 0} {
		if left := look(slow); !slices.Equal(left, order[:min(i, len(order))]) {
			t.Errorf("with room for %d of %d: %d were left, or others than the first", slow, held, len(left))
		}
	}
}

func TestWindowsAreTakenForAsWideAsQUICMakesThem(t *testing.T) {
	const rtt = 20 * time.Millisecond
	for _, c := range []struct {
		window, read uint64
		took, rtt    time.Duration
		want         bool
	}{
		{512, 257, 2*rtt - 1, rtt, true}, {512, 257, 2*rtt + rtt/8, rtt, false},
		{512, 512, 4*rtt - 1, rtt, true}, {512, 512, 4 * rtt, rtt, false},
		{512, 257, time.Hour, 0, true},
	} {
		if got := widens(c.window, c.read, c.took, c.rtt); got != c.want {
			t.Errorf("%d of %d bytes in %v at %v: %v", c.read, c.window, c.took, c.rtt, got)
		}
	}
}
