package relay

import (
	"errors"
	"io"
	"net"
	"runtime"
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
	f.mu.Lock()
	f.nudge()
	f.mu.Unlock()
	for !f.restsWhole() || !sockets.waitsFor(f, A) {
		runtime.Gosched()
	}
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
