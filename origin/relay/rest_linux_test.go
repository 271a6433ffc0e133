package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// waitsFor says whether the system is asked for the socket that a direction reads from.
func (w *waiting) waitsFor(f *Flow, from End) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	d, _ := f.side(from)
	return d.fd > 0
}

// some says whether the system is asked for any.
func (w *waiting) some() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.file != nil
}

// restOverTCP starts a flow between a socket and a conn of which is heard that bytes have come, and has it rest: no goroutine is left for the socket.
func restOverTCP(t *testing.T) (client, a, server *net.TCPConn, f *Flow, result func() Result) {
	t.Helper()
	client, a, b, server := overTCP(t)
	done := make(chan Result, 1)
	f = New(a, newPeekable(b), time.Minute)
	f.Start(func(r Result) { done <- r })
	asks(t, client, server)
	f.rests()
	return client, a, server, f, func() Result { return <-done }
}

// rests has a flow rest now.
func (f *Flow) rests() {
	for !f.restsWhole() || !sockets.waitsFor(f, A) {
		f.nudgeNow()
		runtime.Gosched()
	}
}

func (f *Flow) nudgeNow() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nudge()
}

// turned is a conn that is lent of, where a turn is waited for before much is read.
type turned struct {
	*peekable
	awaits func()
	taken  atomic.Int32 // turns that were not given back
}

func (c *turned) Lend() (any, []byte) {
	room := make([]byte, 4)
	return room, room
}

func (c *turned) AwaitTurn() {
	c.taken.Add(1)
	c.awaits()
}

func (c *turned) WriteLent(lent any, n int) (int, error) {
	c.taken.Store(0)
	if n == 0 {
		return 0, nil
	}
	return c.peekable.Write(lent.([]byte)[:n])
}

func TestNobodyRestsWithATurn(t *testing.T) {
	start := func(t *testing.T, awaits func(f *Flow, a *net.TCPConn)) (client, server *net.TCPConn, to *turned, f *Flow, result func() Result) {
		client, a, b, server := overTCP(t)
		to = &turned{peekable: newPeekable(b)}
		done := make(chan Result, 1)
		f = New(a, to, time.Minute)
		to.awaits = func() { awaits(f, a) }
		f.Start(func(r Result) { done <- r })
		write(t, client, "four") // all that was lent: there may be more
		return client, server, to, f, func() Result { return <-done }
	}
	t.Run("it is looked at while it waits for one", func(t *testing.T) {
		states := make(chan uint32, 8)
		client, server, to, f, result := start(t, func(f *Flow, _ *net.TCPConn) {
			f.nudgeNow()
			states <- f.aToB.quiet.state.Load()
		})
		if s := <-states; s != awake {
			t.Errorf("it is called out, state %d", s)
		}
		f.rests() // it waits for bytes now
		if n := to.taken.Load(); n != 0 {
			t.Errorf("it rests with %d turns", n)
		}
		client.CloseWrite()
		readAll(t, server, "four")
		server.CloseWrite()
		if r := result(); r.Err != nil {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("it cannot be read when it has one", func(t *testing.T) {
		_, _, to, _, result := start(t, func(_ *Flow, a *net.TCPConn) { a.Close() })
		if r := result(); !errors.Is(r.Err, net.ErrClosed) || r.Broke != A {
			t.Errorf("got %+v", r)
		}
		if n := to.taken.Load(); n != 0 {
			t.Errorf("it has ended with %d turns", n)
		}
	})
	t.Run("it is called out as it comes to read", func(t *testing.T) {
		_, _, to, f, result := start(t, func(f *Flow, a *net.TCPConn) {
			f.aToB.quiet.state.Store(nudged)
			a.SetReadDeadline(longAgo)
		})
		for !sockets.waitsFor(f, A) {
			runtime.Gosched()
		}
		if n := to.taken.Load(); n != 0 {
			t.Errorf("it rests with %d turns", n)
		}
		f.Break(ErrIdle)
		result()
	})
}

func TestASocketIsWaitedForByNoGoroutine(t *testing.T) {
	client, _, server, f, result := restOverTCP(t)
	for range 3 {
		asks(t, client, server)
		f.rests()
	}
	write(t, client, "the end")
	client.CloseWrite()
	readAll(t, server, "the end")
	write(t, server, "the rest")
	server.CloseWrite()
	readAll(t, client, "the rest")
	if r := result(); r.Err != nil || r.AToB != 27 || r.BToA != 28 {
		t.Errorf("got %+v", r)
	}
	if sockets.some() {
		t.Error("the system is asked for nobody")
	}
}

func TestASocketAtRestEndsAsAnyOther(t *testing.T) {
	t.Run("the client resets", func(t *testing.T) {
		client, _, server, _, result := restOverTCP(t)
		reset(client)
		if _, err := server.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server read %v", err)
		}
		if r := result(); !errors.Is(r.Err, syscall.ECONNRESET) || r.Broke != A {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("the server resets", func(t *testing.T) {
		client, _, server, _, result := restOverTCP(t)
		reset(server)
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client read %v", err)
		}
		if r := result(); !errors.Is(r.Err, syscall.ECONNRESET) || r.Broke != B {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("it is broken off", func(t *testing.T) {
		_, _, _, f, result := restOverTCP(t)
		f.Break(ErrIdle)
		if r := result(); r.Err != ErrIdle {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("the socket is closed by another", func(t *testing.T) { // the system says nothing: it is looked for
		_, a, server, _, result := restOverTCP(t)
		a.Close()
		if r := result(); !errors.Is(r.Err, net.ErrClosed) || r.Broke != A {
			t.Errorf("got %+v", r)
		}
		if _, err := server.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("the server read %v", err)
		}
	})
	if sockets.some() {
		t.Error("the system is asked for nobody")
	}
}

// A descriptor that was closed is soon another's.
func TestWhoHasTheDescriptorOfAClosedSocketIsWaitedFor(t *testing.T) {
	_, a, _, _, result := restOverTCP(t)
	a.Close()
	var others []func()
	for range 8 {
		client, _, server, f, result := restOverTCP(t)
		others = append(others, func() {
			asks(t, client, server)
			f.rests()
			client.CloseWrite()
			server.CloseWrite()
			readAll(t, client, "")
			readAll(t, server, "")
			if r := result(); r.Err != nil {
				t.Errorf("got %+v", r)
			}
		})
	}
	if r := result(); !errors.Is(r.Err, net.ErrClosed) {
		t.Errorf("got %+v", r)
	}
	for _, ends := range others {
		ends()
	}
	if sockets.some() {
		t.Error("the system is asked for nobody")
	}
}

// asked is a socket that counts how often it is looked at.
type asked struct {
	syscall.RawConn
	times int
}

func (a *asked) Control(func(uintptr)) error {
	a.times++
	return nil
}

func TestManySocketsAreNotAllLookedAtAtOnce(t *testing.T) {
	file := new(os.File)
	w := waiting{file: file, fd: -1, known: map[int32]entry{}, timer: time.NewTimer(time.Hour)}
	defer w.timer.Stop()
	const many = 3*closedAtOnce + 100
	all := make([]*asked, many)
	flows := make([]*Flow, many)
	for i := range all {
		all[i], flows[i] = new(asked), new(Flow)
		w.keep(int32(i), rested{flows[i], A, all[i]})
	}
	looked := func() (n int) {
		for _, a := range all {
			n += a.times
		}
		return n
	}
	before := 0
	for _, want := range []int{closedAtOnce, closedAtOnce, closedAtOnce, 100, closedAtOnce} {
		w.lookForClosed(file)
		if n := looked() - before; n != want {
			t.Errorf("%d were looked at, want %d", n, want)
		}
		if before = looked(); before == 3*closedAtOnce {
			for i := range 10 {
				w.remove(flows[i], A) // others take their places, and are looked at again
			}
			for i := range 10 { // of those that were looked at
				w.remove(flows[many-1-i], A)
			}
			for i, a := range all[10:100] {
				if a.times > 0 {
					t.Errorf("%d was looked at", 10+i)
				}
			}
		}
		if before == 3*closedAtOnce+100 {
			for i, a := range all[10:] {
				if a.times == 0 {
					t.Errorf("%d was left out", 10+i)
				}
			}
		}
	}
}
