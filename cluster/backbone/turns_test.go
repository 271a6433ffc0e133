package backbone

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/perigee-net/perigee/testbed/memnet"
)

// turnWindows are narrow enough for slow readers to fill theirs soon, and wide enough for turns.
var turnWindows = windows{stream: 64 << 10, maxStream: 128 << 10, connection: 256 << 20, slow: 128 << 20}

const turnRate = 60e6 // bit/s of the path

// turnWorld is two nodes on a fast path, of which iad sends without end on "film", as a relay writes.
func turnWorld(t *testing.T, of windows, f func(w *world, icn, iad *Backbone)) {
	inWorld(t, func(w *world) {
		w.in.Link("icn", "iad", memnet.Path{Delay: 5 * time.Millisecond, Rate: turnRate})
		var nodes [2]*Backbone
		for i, name := range []string{"icn", "iad"} {
			c := w.config(name, w.authority)
			c.windows = of
			nodes[i] = w.openWith(c)
			defer nodes[i].Close()
		}
		nodes[1].Handle("film", func(in *Incoming) {
			c := in.Accept()
			defer c.Close()
			for {
				if _, err := c.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		})
		nodes[0].Keep(peers("iad"))
		w.until(nodes[0], "iad", true)
		f(w, nodes[0], nodes[1])
	})
}

// film asks for one, on a stream or a flow that outlives it.
func (w *world) film(b *Backbone, lasts bool) net.Conn {
	w.Helper()
	if !lasts {
		return w.mustDial(b, "iad", "film")
	}
	way := Way{Node: "iad", Header: Header{Service: "film"}}
	c, err := b.DialLasting(w.Context(), way, func() []Way { return []Way{way} })
	if err != nil {
		w.Fatal(err)
	}
	return c
}

// endedSoFar is how many turns have ended.
func (t *turns) endedSoFar() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ended
}

// turnsEnded is how many turns have ended of the streams that a node's peer has opened.
func turnsEnded(b *Backbone) (n uint64) {
	b.visiting.Lock()
	defer b.visiting.Unlock()
	for v := range b.visitors {
		n += v.turns.endedSoFar()
	}
	return n
}

func eachKind(t *testing.T, f func(t *testing.T, lasts bool)) {
	for _, lasts := range []bool{false, true} {
		t.Run(map[bool]string{false: "streams", true: "flows that outlive theirs"}[lasts], func(t *testing.T) { f(t, lasts) })
	}
}

func TestManyWhoWriteMuchTakeTurnsAndFareAlike(t *testing.T) {
	eachKind(t, func(t *testing.T, lasts bool) {
		turnWorld(t, defaultWindows, func(w *world, icn, iad *Backbone) {
			const flows = 20
			var mu sync.Mutex
			got := map[int]int{}
			last, runs, all := -1, 0, 0
			var reading sync.WaitGroup
			var ends []io.Closer
			began := time.Now()
			for i := range flows {
				c := w.film(icn, lasts)
				ends = append(ends, c)
				reading.Go(func() {
					room := make([]byte, 64<<10)
					for {
						n, err := c.Read(room)
						if err != nil {
							return
						}
						mu.Lock()
						if time.Since(began) > time.Second { // the first bytes have no turns
							got[i] += n
							all += n
							if i != last {
								last, runs = i, runs+1
							}
						}
						mu.Unlock()
					}
				})
			}
			time.Sleep(time.Until(began.Add(3 * time.Second)))
			mu.Lock()
			var sum, squares float64
			for _, n := range got {
				sum += float64(n)
				squares += float64(n) * float64(n)
			}
			if fair := sum * sum / squares / flows; fair < 0.95 {
				w.Errorf("Jain's index is %.2f", fair)
			}
			if in := float64(all) / 2; in < 0.8*turnRate/8 {
				w.Errorf("%.1f MB/s came", in/1e6)
			}
			// Packets of 1.2 kB one after the other of each would be as many runs as packets.
			if each := all / runs; each < turnBytes/4 {
				w.Errorf("%d bytes of each came together", each)
			}
			mu.Unlock()
			for _, c := range ends {
				c.Close()
			}
			reading.Wait()
		})
	})
}

// Readers that take less than what is sent to them, of which there are many more than turns, hold none that another could use.
func TestSlowReadersHoldNoTurns(t *testing.T) {
	eachKind(t, func(t *testing.T, lasts bool) {
		turnWorld(t, turnWindows, func(w *world, icn, iad *Backbone) {
			fast := func() float64 {
				c := w.film(icn, lasts)
				defer c.Close()
				const size = 2 << 20
				began := time.Now()
				if _, err := io.CopyN(io.Discard, c, size); err != nil {
					w.Error(err)
				}
				return size / time.Since(began).Seconds()
			}
			fast() // QUIC's congestion window opens
			alone := fast()
			const slow = 100
			var reading sync.WaitGroup
			var ends []io.Closer
			for range slow {
				c := w.film(icn, lasts)
				ends = append(ends, c)
				reading.Go(func() {
					for room := make([]byte, 1<<10); ; time.Sleep(100 * time.Millisecond) {
						if _, err := io.ReadFull(c, room); err != nil {
							return
						}
					}
				})
			}
			time.Sleep(3 * time.Second) // their windows are full
			before := turnsEnded(iad)
			beside := fast()
			if beside < alone/2 {
				w.Errorf("beside %d slow readers %.1f MB/s came, alone %.1f", slow, beside/1e6, alone/1e6)
			}
			if n := turnsEnded(iad) - before; n < 2<<20/turnBytes/2 {
				w.Errorf("%d turns were taken", n)
			}
			for _, c := range ends {
				c.Close()
			}
			reading.Wait()
		})
	})
}

// Who waits for a turn does so until those who do nothing lose theirs, it is over, or has a deadline.
func TestNobodyWaitsForATurnForLong(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer icn.Close()
		defer iad.Close()
		open := func() *streamConn { return w.mustDial(icn, "iad", "echo").(*streamConn) }
		waits := open()
		t := waits.turns
		var holders []*streamConn
		for range turnsAtOnce {
			holders = append(holders, open())
		}
		takes := func(what string, want time.Duration, has bool) {
			w.Helper()
			for _, c := range holders {
				if !t.take(c) {
					w.Fatal("there is no turn")
				}
			}
			began := time.Now()
			got := t.take(waits)
			if took := time.Since(began); took != want || got != has {
				w.Errorf("%s: %v after %v, want %v after %v", what, got, took, has, want)
			}
			if got {
				t.give(waits)
			}
			for _, c := range holders {
				t.give(c)
			}
			time.Sleep(2 * turnTime)
		}
		takes("nothing happens", turnTime, true)
		time.AfterFunc(turnTime/2, func() {
			for _, c := range holders {
				t.give(c)
			}
		})
		takes("all turns end", turnTime/2, true)
		time.AfterFunc(turnTime/2, func() { t.give(holders[0]) })
		takes("one turn ends", 2*turnTime, true)
		waits.SetDeadline(time.Now().Add(time.Hour))
		takes("it has a deadline", 0, false)
		waits.SetDeadline(time.Time{})
		takes("it has none any more", turnTime, true)
		time.AfterFunc(turnTime/2, func() { waits.SetWriteDeadline(time.Now()) })
		takes("it is given one", turnTime/2, false)
		waits.SetWriteDeadline(time.Time{})
		time.AfterFunc(turnTime/2, waits.Abort)
		takes("it is aborted", turnTime/2, false)
		t.mu.Lock()
		defer t.mu.Unlock()
		if len(t.waiting)+len(t.taken) != 0 {
			w.Errorf("%d wait, %d have turns", len(t.waiting), len(t.taken))
		}
	})
}

// What is short, and what comes first, waits for no turn, though those who have one never use it, and the rest of a long write does.
func TestWhatComesFirstAndWhatIsShortWaitsForNoTurn(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer icn.Close()
		defer iad.Close()
		open := func() *streamConn { return w.mustDial(icn, "iad", "echo").(*streamConn) }
		c := open()
		t := c.turns
		t.writers.Add(turnsAtOnce)
		var holders []*streamConn
		for range turnsAtOnce {
			holders = append(holders, open())
		}
		// writes has so many bytes go there and back, for which turns were asked for.
		writes := func(what string, size int, turns uint64) {
			w.Helper()
			for _, h := range holders {
				t.take(h)
			}
			before := t.endedSoFar()
			var reading sync.WaitGroup
			reading.Go(func() {
				if _, err := io.ReadFull(c, make([]byte, size)); err != nil {
					w.Error(err)
				}
			})
			if n, err := c.Write(make([]byte, size)); n != size || err != nil {
				w.Errorf("%s: %d bytes were written, %v", what, n, err)
			}
			reading.Wait()
			if n := t.endedSoFar() - before; n != turns {
				w.Errorf("%s took %d turns, want %d", what, n, turns)
			}
			for _, h := range holders {
				t.give(h)
			}
		}
		writes("first bytes", turnsAfter, 0)
		writes("a short write", leastTurn-1, 0)
		writes("a long one", turnBytes, 1)
		time.Sleep(2 * restTime)
		writes("first bytes after a rest", turnsAfter, 0)
		time.Sleep(2 * restTime)
		writes("all at once", 2*turnBytes, 2)
	})
}

// Who is about to read what it then writes waits for its turn first, and has it end if nothing comes of it.
func TestATurnIsWaitedForBeforeWhatIsWrittenIsRead(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer icn.Close()
		defer iad.Close()
		iad.Handle("back", func(in *Incoming) {
			c := in.Accept()
			defer c.Close()
			io.Copy(c, c)
		})
		way := Way{Node: "iad", Header: Header{Service: "back"}}
		begin := func() *lastingConn {
			one, err := icn.DialLasting(w.Context(), way, func() []Way { return []Way{way} })
			if err != nil {
				w.Fatal(err)
			}
			return one.(*lastingConn)
		}
		c := begin()
		t := c.stream.(*streamConn).turns
		t.writers.Add(turnsAtOnce)
		var holders []*streamConn
		for range turnsAtOnce {
			holders = append(holders, w.mustDial(icn, "iad", "echo").(*streamConn))
		}
		echo := func(write func() (int, error)) {
			w.Helper()
			n, err := write()
			if err == nil {
				_, err = io.ReadFull(c, make([]byte, n))
			}
			if err != nil {
				w.Fatal(err)
			}
		}
		first := func() (int, error) { return c.Write(make([]byte, turnsAfter)) }
		lent := func() (int, error) {
			lent, room := c.Lend()
			return c.WriteLent(lent, len(room))
		}
		// awaits has the flow wait beside those who have turns and use none, then do something, and look at how many turns have ended.
		awaits := func(what string, long time.Duration, then func(), ended uint64) {
			w.Helper()
			for _, h := range holders {
				if !t.take(h) {
					w.Fatal("there is no turn")
				}
			}
			before, began := t.endedSoFar(), time.Now()
			c.AwaitTurn()
			if took := time.Since(began); took != long {
				w.Errorf("%s: waited for %v, want %v", what, took, long)
			}
			then()
			if n := t.endedSoFar() - before; n != ended {
				w.Errorf("%s: %d turns have ended, want %d", what, n, ended)
			}
			for _, h := range holders {
				t.give(h)
			}
			t.mu.Lock()
			if len(t.taken)+len(t.waiting) > 0 {
				w.Errorf("%s: %d still have turns, %d wait", what, len(t.taken), len(t.waiting))
			}
			t.mu.Unlock()
		}
		nothing := func() {}
		awaits("nothing was written", 0, nothing, 0)
		echo(first)
		awaits("much was", turnTime, func() { echo(lent) }, 1)
		awaits("nothing is read", turnTime, func() {
			lent, _ := c.Lend()
			c.WriteLent(lent, 0)
		}, 1)
		awaits("nothing comes of it, and it waits for another", turnTime, func() {
			c.AwaitTurn()
			lent, _ := c.Lend()
			c.WriteLent(lent, 0)
		}, 2)
		c.SetWriteDeadline(time.Now().Add(time.Hour))
		awaits("there is a deadline", 0, nothing, 0)
		c.SetWriteDeadline(time.Time{})
		time.Sleep(2 * restTime)
		awaits("it was at rest", 0, nothing, 0)
		echo(first)
		awaits("it ends", turnTime, c.Abort, 1)
		awaits("it has ended", 0, nothing, 0)
		c = begin()
		defer c.Close()
		echo(first)
		time.AfterFunc(turnTime/2, c.Abort)
		awaits("it ends meanwhile", turnTime/2, nothing, 0)
	})
}

// Where turns are waited for for long they are shorter.
func TestTurnsAreShortWhereTheyAreWaitedForForLong(t *testing.T) {
	inWorld(t, func(w *world) {
		icn, iad := w.pair()
		defer icn.Close()
		defer iad.Close()
		open := func() *streamConn { return w.mustDial(icn, "iad", "echo").(*streamConn) }
		waits, other := open(), open()
		t := waits.turns
		var holders []*streamConn
		for range turnsAtOnce {
			holders = append(holders, open())
		}
		for _, c := range []struct {
			short bool // before
			long  time.Duration
			want  int
		}{
			{false, 0, turnBytes}, {false, longWait - turnTime, turnBytes}, {false, longWait + turnTime, shortTurn},
			{true, longWait/2 + turnTime, shortTurn}, {true, longWait/2 - turnTime, turnBytes},
		} {
			for _, h := range holders {
				t.take(h)
			}
			t.short.Store(c.short)
			got := make(chan bool)
			go func() { got <- t.take(waits) }()
			for range c.long / (turnTime / 2) {
				time.Sleep(turnTime / 2)
				t.give(other) // others' turns end
			}
			for _, h := range holders {
				t.give(h)
			}
			if !<-got || t.most() != c.want {
				w.Errorf("after %v there are %d bytes in a turn, want %d", c.long, t.most(), c.want)
			}
			t.give(waits)
			time.Sleep(2 * turnTime)
		}
	})
}
