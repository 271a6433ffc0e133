package backbone

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// bothKinds runs a test of a stream's two ends for a stream between nodes and for one within a node.
func bothKinds(t *testing.T, test func(w *world, near, far duplexConn)) {
	t.Run("between nodes", func(t *testing.T) {
		inWorld(t, func(w *world) {
			icn, iad := w.pair()
			defer iad.Close()
			defer icn.Close()
			near, far := w.streams(icn, "iad", iad)
			defer near.Close()
			defer far.Close()
			test(w, near, far)
		})
	})
	t.Run("within a node", func(t *testing.T) {
		inWorld(t, func(w *world) {
			icn := w.open("icn")
			defer icn.Close()
			near, far := w.streams(icn, "icn", icn)
			defer near.Close()
			defer far.Close()
			test(w, near, far)
		})
	})
}

func write(w *world, c io.Writer, text string) {
	w.Helper()
	if n, err := io.WriteString(c, text); n != len(text) || err != nil {
		w.Fatalf("wrote %d of %d bytes: %v", n, len(text), err)
	}
}

func TestAHalfCloseLeavesTheOtherHalf(t *testing.T) {
	bothKinds(t, func(w *world, near, far duplexConn) {
		write(w, near, "question")
		if err := near.CloseWrite(); err != nil {
			w.Fatal(err)
		}
		if err := near.CloseWrite(); err != nil {
			w.Fatalf("ending it twice: %v", err)
		}
		if got, err := io.ReadAll(far); string(got) != "question" || err != nil {
			w.Fatalf("got %q, %v", got, err)
		}
		write(w, far, "answer")
		far.CloseWrite()
		if got, err := io.ReadAll(near); string(got) != "answer" || err != nil {
			w.Fatalf("got %q, %v", got, err)
		}
		if _, err := near.Write([]byte("more")); !errors.Is(err, net.ErrClosed) {
			w.Fatalf("writing after CloseWrite: %v", err)
		}
	})
}

func TestWhatIsCutShortDoesNotLookComplete(t *testing.T) {
	long := strings.Repeat("0123456789", 2000)
	for _, c := range []struct {
		name   string
		end    func(near duplexConn)
		whole  bool // all that was written arrives
		broken bool // and then an error, not io.EOF
	}{
		{"close", func(c duplexConn) { c.Close() }, true, true},
		{"half-close, then close", func(c duplexConn) { c.CloseWrite(); c.Close() }, true, false},
		{"abort", func(c duplexConn) { c.Abort() }, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			bothKinds(t, func(w *world, near, far duplexConn) {
				write(w, near, long)
				c.end(near)
				time.Sleep(roundTrip) // nobody reads until all has arrived
				got, err := io.ReadAll(far)
				if errors.Is(err, ErrReset) != c.broken || !c.broken && err != nil {
					w.Fatalf("the far end read %v", err)
				}
				if c.whole && string(got) != long {
					w.Fatalf("%d of %d bytes arrived", len(got), len(long))
				}
				if !strings.HasPrefix(long, string(got)) {
					w.Fatal("other bytes arrived than were sent")
				}
				if far.Gone().Err() == nil {
					w.Fatal("the far end was not told that this end is gone")
				}
			})
		})
	}
}

func TestNobodyWritesToAClosedReader(t *testing.T) {
	bothKinds(t, func(w *world, near, far duplexConn) {
		far.Close()
		time.Sleep(roundTrip)
		if _, err := near.Write([]byte("x")); !errors.Is(err, ErrReset) {
			w.Fatalf("got %v", err)
		}
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			w.Fatalf("got %v", err)
		}
	})
}

func TestCloseWakesWhoWaits(t *testing.T) {
	for name, end := range map[string]func(duplexConn){
		"close": func(c duplexConn) { c.Close() },
		"abort": duplexConn.Abort,
	} {
		t.Run(name, func(t *testing.T) {
			bothKinds(t, func(w *world, near, far duplexConn) {
				var wg sync.WaitGroup
				wg.Go(func() {
					if _, err := near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
						w.Errorf("read: %v", err)
					}
				})
				wg.Go(func() {
					if _, err := near.Write(make([]byte, 1<<20)); !errors.Is(err, net.ErrClosed) {
						w.Errorf("write: %v", err)
					}
				})
				time.Sleep(time.Second)
				end(near)
				wg.Wait()
				if _, err := near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
					w.Errorf("read afterwards: %v", err)
				}
				if err := near.CloseWrite(); !errors.Is(err, net.ErrClosed) {
					w.Errorf("half-close afterwards: %v", err)
				}
			})
		})
	}
}

func TestDeadlinesPassAndCanBeMoved(t *testing.T) {
	bothKinds(t, func(w *world, near, far duplexConn) {
		begun := time.Now()
		near.SetReadDeadline(begun.Add(3 * time.Second))
		_, err := near.Read(make([]byte, 1))
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begun) != 3*time.Second {
			w.Fatalf("read: %v after %v", err, time.Since(begun))
		}
		near.SetWriteDeadline(time.Now().Add(2 * time.Second))
		n, err := near.Write(make([]byte, 1<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) || n >= 1<<20 {
			w.Fatalf("write: %d bytes, %v", n, err)
		}
		near.SetDeadline(time.Time{})
		go func() {
			io.CopyN(io.Discard, far, int64(n))
			far.Write([]byte("x"))
		}()
		if _, err := near.Read(make([]byte, 1)); err != nil {
			w.Fatalf("read without a deadline: %v", err)
		}
		near.SetReadDeadline(time.Now())
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			w.Fatalf("read after its deadline: %v", err)
		}
	})
}

func TestBothWaysAtOnceNothingIsLostOrMixed(t *testing.T) {
	bothKinds(t, func(w *world, near, far duplexConn) {
		random := rand.New(rand.NewPCG(1, 2))
		var wg sync.WaitGroup
		exchange := func(from, to duplexConn) {
			data := make([]byte, 300_000)
			for i := range data {
				data[i] = byte(random.Uint32())
			}
			wg.Go(func() {
				for rest := data; len(rest) > 0; {
					n, err := from.Write(rest[:min(len(rest), 7919)])
					if err != nil {
						w.Error(err)
						return
					}
					rest = rest[n:]
				}
				from.CloseWrite()
			})
			wg.Go(func() {
				if got, err := io.ReadAll(to); err != nil || !bytes.Equal(got, data) {
					w.Errorf("got %d bytes, %v", len(got), err)
				}
			})
		}
		exchange(near, far)
		exchange(far, near)
		wg.Wait()
	})
}
