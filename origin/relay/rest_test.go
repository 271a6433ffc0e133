package relay

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

// peekable is a conn of which is heard that bytes have come.
type peekable struct {
	tcpConn
	in     *bufio.Reader
	broken error // that Peek has heard of
}

func newPeekable(c net.Conn) *peekable {
	return &peekable{tcpConn: c.(tcpConn), in: bufio.NewReaderSize(c, 16)}
}

func (p *peekable) Read(b []byte) (int, error) {
	if p.broken != nil {
		return 0, p.broken
	}
	return p.in.Read(b)
}

func (p *peekable) Peek(b []byte) (int, error) {
	if p.broken != nil {
		return 0, p.broken
	}
	got, err := p.in.Peek(len(b))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		p.broken = err
	}
	return copy(b, got), err
}

// rests says whether both directions of a flow wait as those do that are at rest.
func (f *Flow) restsWhole() bool {
	return f.aToB.quiet.state.Load() == resting && f.bToA.quiet.state.Load() == resting
}

// atRest runs a test in virtual time with a flow that has carried something each way and rests since a moment.
func atRest(t *testing.T, test func(t *testing.T, client, server tcpConn, result func() Result, f *Flow)) {
	t.Helper()
	relayedOver(t, func(c tcpConn) net.Conn { return newPeekable(c) }, nil, func(t *testing.T, client, server tcpConn, result func() Result, f *Flow) {
		asks(t, client, server)
		time.Sleep(firstLook - 100*time.Millisecond)
		synctest.Wait()
		if f.restsWhole() {
			t.Error("it rests though it was not seen to be silent")
		}
		time.Sleep(2 * firstLook)
		synctest.Wait()
		if !f.restsWhole() {
			t.Error("it does not rest")
		}
		test(t, client, server, result, f)
	})
}

// asks sends something each way.
func asks(t *testing.T, client, server tcpConn) {
	t.Helper()
	for _, way := range [][2]tcpConn{{client, server}, {server, client}} {
		write(t, way[0], "words")
		got := make([]byte, len("words"))
		if _, err := io.ReadFull(way[1], got); string(got) != "words" || err != nil {
			t.Fatalf("read %q: %v", got, err)
		}
	}
}

func TestAFlowAtRestIsCarriedOn(t *testing.T) {
	atRest(t, func(t *testing.T, client, server tcpConn, result func() Result, f *Flow) {
		for range 3 {
			began := time.Now()
			asks(t, client, server)
			if took := time.Since(began); took > 45*time.Millisecond { // twice the way, which is 20 ms
				t.Errorf("it took %v", took)
			}
			time.Sleep(3 * firstLook)
			synctest.Wait()
			if !f.restsWhole() {
				t.Error("it does not rest again")
			}
		}
		client.CloseWrite()
		if _, err := server.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("behind the end: %v", err)
		}
		time.Sleep(3 * firstLook) // the other direction rests on
		write(t, server, "the rest")
		server.CloseWrite()
		readAll(t, client, "the rest")
		if r := result(); r.Err != nil || r.AToB != 20 || r.BToA != 28 {
			t.Errorf("got %+v", r)
		}
	})
}

func TestAFlowThatMovesDoesNotRest(t *testing.T) {
	relayedOver(t, func(c tcpConn) net.Conn { return newPeekable(c) }, nil, func(t *testing.T, client, server tcpConn, result func() Result, f *Flow) {
		for range 300 {
			asks(t, client, server)
			time.Sleep(firstLook / 5)
			if f.aToB.quiet.state.Load() > reads || f.bToA.quiet.state.Load() > reads {
				t.Fatal("it was called out of its wait")
			}
		}
	})
}

// Who writes for long is not silent: it has something in hand.
func TestWhoWaitsForItsReaderDoesNotRest(t *testing.T) {
	end := func(c tcpConn) net.Conn { return &peekable{tcpConn: c, in: bufio.NewReaderSize(c, largeBuffer)} }
	relayedOver(t, end, nil, func(t *testing.T, client, server tcpConn, result func() Result, f *Flow) {
		const much = 2 << 20 // more than all buffers take
		go func() {
			client.Write(make([]byte, much))
			client.CloseWrite()
		}()
		for range 20 {
			time.Sleep(firstLook)
			synctest.Wait()
			if s := f.aToB.quiet.state.Load(); s != awake {
				t.Fatalf("it is in state %d", s)
			}
		}
		if f.aToB.written.Load() == much {
			t.Error("it does not wait")
		}
		if n, err := io.Copy(io.Discard, server); n != much || err != nil {
			t.Errorf("%d bytes came, %v", n, err)
		}
		server.CloseWrite()
		if r := result(); r.Err != nil {
			t.Errorf("got %+v", r)
		}
	})
}

func TestAFlowAtRestEndsAsAnyOther(t *testing.T) {
	for name, broke := range map[string]End{"the client resets": A, "the server resets": B} {
		t.Run(name, func(t *testing.T) {
			atRest(t, func(t *testing.T, client, server tcpConn, result func() Result, f *Flow) {
				who, other := client, server
				if broke == B {
					who, other = server, client
				}
				reset(who)
				if _, err := other.Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Errorf("the other end read %v", err)
				}
				if r := result(); r.Err == nil || r.Broke != broke {
					t.Errorf("got %+v", r)
				}
			})
		})
	}
	t.Run("it is broken off", func(t *testing.T) {
		atRest(t, func(t *testing.T, client, server tcpConn, result func() Result, f *Flow) {
			why := errors.New("enough")
			f.Break(why)
			for _, c := range []tcpConn{client, server} {
				if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Errorf("an end read %v", err)
				}
			}
			if r := result(); r.Err != why {
				t.Errorf("got %+v", r)
			}
		})
	})
	t.Run("it is silent for its idle time", func(t *testing.T) {
		atRest(t, func(t *testing.T, client, server tcpConn, result func() Result, f *Flow) {
			began := time.Now()
			if r := result(); r.Err != ErrIdle {
				t.Errorf("got %+v", r)
			}
			if took := time.Since(began); took < testIdle-3*firstLook || took > testIdle {
				t.Errorf("after %v", took)
			}
		})
	})
}

func TestAPanicInTheWaitBreaksItsFlowAlone(t *testing.T) {
	relayedOver(t, func(c tcpConn) net.Conn { return panicking{newPeekable(c)} }, func(any) {}, func(t *testing.T, client, server tcpConn, result func() Result, f *Flow) {
		if r := result(); !errors.Is(r.Err, ErrPanicked) {
			t.Errorf("got %+v", r)
		}
	})
}

// panicking panics when it is waited for.
type panicking struct{ *peekable }

func (panicking) Await() { panic("it cannot wait") }

func TestAFlowTakesLittle(t *testing.T) {
	if size := unsafe.Sizeof(Flow{}); size > 240 { // which is one of the sizes in which memory is given out
		t.Errorf("it takes %d bytes", size)
	}
}
