package front

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// memLoop is a Loop of the in-memory network: a goroutine for each listener.
type memLoop struct {
	listens, ends atomic.Int64
	refuses       atomic.Bool
	mu            sync.Mutex
	held          []*memHeld
}

// memHeld is a connection that it holds.
type memHeld struct {
	net.Conn
	broken   bool // it cannot be detached
	closed   bool // it was closed before
	detached bool
}

func (h *memHeld) SetLinger(s int) error {
	return h.Conn.(interface{ SetLinger(int) error }).SetLinger(s)
}

func (h *memHeld) Detach() (net.Conn, error) {
	switch {
	case h.closed:
		h.Conn.Close()
		return nil, net.ErrClosed
	case h.broken || h.detached:
		return nil, errors.New("it is gone")
	}
	h.detached = true
	return h.Conn, nil
}

func (l *memLoop) Listen(of net.Listener, accepted func(Held), _ func(error)) (end func(done func()), ok bool) {
	if l.refuses.Load() {
		return nil, false
	}
	l.listens.Add(1)
	var over atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := of.Accept()
			if err != nil {
				return
			}
			h := &memHeld{Conn: c}
			l.mu.Lock()
			l.held = append(l.held, h)
			l.mu.Unlock()
			accepted(h)
			if over.Load() { // it had begun before
				return
			}
		}
	}()
	return func(done func()) {
		over.Store(true)
		l.ends.Add(1)
		go func() {
			<-ended
			done()
		}()
	}, true
}

// soonEcho is Soon that takes what it is asked for.
func soonEcho(c Held, ended func(), _ func() error) { flowing(c, ended) }

// says1 sends a byte and says whether it comes back.
func says1(c net.Conn) bool {
	fmt.Fprint(c, "x")
	return full(c, make([]byte, 1))
}

func TestALoopHoldsWhatItIsAskedFor(t *testing.T) {
	l := &memLoop{}
	inWorld(t, Config{Loop: l, Connections: 3}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(9000), Flow: func(net.Conn, func()) { t.Error("Flow is asked") }, Soon: soonEcho})
		var all []net.Conn
		for range 3 {
			c := w.dial(9000)
			if !says1(c) {
				t.Error("no echo")
			}
			all = append(all, c)
		}
		more := w.dial(9000)
		ended(more)
		w.counted("front_connections_refused_total", 1)
		w.counted("front_connections", 3)
		w.counted("front_connections_total", 3)
		for _, c := range all {
			c.Close()
		}
		w.counted("front_connections", 0)
		if l.listens.Load() != 1 || w.front.starters.waiting.Load() != 0 {
			t.Error("another goroutine accepts, too")
		}
	})
	if l.ends.Load() != 1 {
		t.Error("the loop accepts for ever")
	}
}

func TestWhatALoopGivesBackIsForFlow(t *testing.T) {
	l := &memLoop{}
	inWorld(t, Config{Loop: l}, func(w *world) {
		var later atomic.Bool
		var left atomic.Int64
		door := Door{Network: "tcp", Address: at(9000), Flow: flowing, Soon: func(c Held, _ func(), back func() error) {
			if later.Load() {
				go func() {
					time.Sleep(time.Second)
					back()
				}()
				return
			}
			back()
		}}
		w.set(door)
		for _, is := range []bool{false, true} {
			later.Store(is)
			c := w.dial(9000)
			if !says1(c) {
				t.Error("no echo")
			}
			w.counted("front_connections", 1)
			c.Close()
			w.counted("front_connections", 0)
		}
		// One that cannot be given back is reset, and so is one whose door has become another's meanwhile.
		broken := door
		broken.Soon = func(c Held, _ func(), back func() error) {
			c.(*memHeld).broken = true
			if back() == nil {
				t.Error("it is said to go on")
			}
		}
		w.set(broken)
		wantReset(t, w.dial(9000))
		w.counted("front_accept_errors_total", 1)
		// One that was closed meanwhile is nobody's.
		shut := door
		shut.Flow = func(net.Conn, func()) { t.Error("Flow is asked") }
		shut.Soon = func(c Held, _ func(), back func() error) {
			c.(*memHeld).closed = true
			if err := back(); !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
		w.set(shut)
		ended(w.dial(9000))
		w.counted("front_accept_errors_total", 1)
		w.counted("front_connections", 0)
		w.set(door)
		c := w.dial(9000)
		time.Sleep(time.Second / 2)
		w.set(Door{Network: "tcp", Address: at(9000), Conn: func(net.Conn) { left.Add(1) }})
		wantReset(t, c)
		w.counted("front_connections", 0)
		if left.Load() != 0 {
			t.Error("another has served it")
		}
	})
}

func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("its client sees %v, not a reset", err)
	}
	c.Close()
}

func TestWhomALoopHoldsIsJudgedAsOthersAre(t *testing.T) {
	l := &memLoop{}
	var blocked atomic.Bool
	inWorld(t, Config{Loop: l, Blocked: func(netip.Addr) bool { return blocked.Load() }, ConnectionsPerClient: 2}, func(w *world) {
		var closed atomic.Bool
		w.set(Door{Network: "tcp", Address: at(9000), Flow: flowing, Soon: soonEcho, Allowed: func(netip.Addr) bool { return !closed.Load() }})
		one, two := w.dial(9000), w.dial(9000)
		says1(one)
		says1(two)
		wantReset(t, w.dial(9000))
		w.counted("front_crowded_total", 1)
		two.Close()
		synctest.Wait()
		closed.Store(true)
		wantReset(t, w.dial(9000))
		w.counted("front_not_allowed_total", 1)
		blocked.Store(true)
		wantReset(t, w.dial(9000))
		w.front.Recheck()
		wantReset(t, one)
		w.counted("front_blocked_total", 2)
		w.counted("front_connections", 0)
	})
}

func TestWhatComesToALoopFromALoadBalancerIsForFlow(t *testing.T) {
	l := &memLoop{}
	inWorld(t, Config{Loop: l, ProxyHeadersFrom: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(9000), Soon: func(Held, func(), func() error) { t.Error("the loop serves it") }, Flow: func(c net.Conn, ended func()) {
			fmt.Fprint(c, c.RemoteAddr())
			c.Close()
			ended()
		}})
		c := w.dial(9000)
		fmt.Fprint(c, "PROXY TCP4 198.51.100.7 203.0.113.1 40000 9000\r\n")
		if got, _ := io.ReadAll(c); string(got) != "198.51.100.7:40000" {
			t.Errorf("got %q", got)
		}
		c.Close()
		w.counted("front_connections", 0)
	})
}

func TestSoonThatPanicsCostsItsOwnConnection(t *testing.T) {
	inWorld(t, Config{Loop: &memLoop{}}, func(w *world) {
		var calm atomic.Bool
		w.set(Door{Network: "tcp", Address: at(9000), Flow: flowing, Soon: func(c Held, ended func(), back func() error) {
			if !calm.Load() {
				panic("at the loop")
			}
			soonEcho(c, ended, back)
		}})
		wantReset(t, w.dial(9000))
		calm.Store(true)
		c := w.dial(9000)
		if !says1(c) {
			t.Error("no echo")
		}
		c.Close()
		w.counted("front_panics_total", 1)
		w.counted("front_connections", 0)
	})
}

func TestCloseCutsOffWhatALoopHolds(t *testing.T) {
	inWorld(t, Config{Loop: &memLoop{}}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(9000), Flow: flowing, Soon: soonEcho})
		c := w.dial(9000)
		says1(c)
		ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
		defer cancel()
		if err := w.front.Close(ctx); err == nil || !strings.Contains(err.Error(), "cut off 1 connections") {
			t.Errorf("got %v", err)
		}
		ended(c)
	})
}

func TestADoorMayBeServedByALoopAndByOthers(t *testing.T) {
	l := &memLoop{}
	inWorld(t, Config{Loop: l}, func(w *world) {
		flows := Door{Network: "tcp", Address: at(9000), Flow: flowing}
		soon := flows
		soon.Soon = soonEcho
		talk := func() {
			c := w.dial(9000)
			if !says1(c) {
				t.Error("no echo")
			}
			c.Close()
		}
		for range 3 {
			w.set(flows)
			talk()
			w.set(soon)
			talk() // by whom it is accepted that turns last is left open
			talk()
		}
		l.refuses.Store(true)
		w.set(flows)
		talk()
		talk()
		w.set(soon)
		talk()
		w.counted("front_connections", 0)
		if err := w.front.Set([]Door{{Network: "tcp", Address: at(9001), Conn: echo, Soon: soonEcho}}); err == nil {
			t.Error("Soon without Flow is no door")
		}
	})
}
