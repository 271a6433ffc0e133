package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestAFlowOfLittleMakesNoPipe(t *testing.T) {
	const flows = 40
	type ends struct{ client, a, b, server *net.TCPConn }
	var all []ends
	for range flows {
		client, a, b, server := overTCP(t)
		all = append(all, ends{client, a, b, server})
	}
	before := descriptors(t)
	results := make(chan Result, flows)
	for _, e := range all {
		go func() { results <- Pipe(e.a, e.b, time.Minute) }()
		for _, way := range [][2]*net.TCPConn{{e.client, e.server}, {e.server, e.client}} {
			write(t, way[0], "little")
			if _, err := io.ReadFull(way[1], make([]byte, 6)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if after := descriptors(t); after >= before+flows {
		t.Errorf("%d flows took %d descriptors", flows, after-before)
	}
	for _, e := range all {
		e.client.Close()
		e.server.Close()
		if r := <-results; r.AToB != 6 || r.BToA != 6 {
			t.Errorf("got %+v", r)
		}
	}
}

func TestTheKernelCarriesInTurns(t *testing.T) {
	turns := NewTurns(1)
	question, answer := strings.Repeat("question", 200_000), strings.Repeat("answer", 300_000)
	var all sync.WaitGroup
	for range 4 {
		client, a, b, server := overTCP(t)
		f := New(a, b, time.Minute)
		f.Turns = turns
		all.Go(func() {
			if r := f.Run(); r.Err != nil || r.AToB != int64(len(question)) || r.BToA != int64(len(answer)) {
				t.Errorf("got %+v", r)
			}
		})
		for _, end := range []struct {
			conn        *net.TCPConn
			sends, gets string
		}{{client, question, answer}, {server, answer, question}} {
			all.Go(func() {
				io.WriteString(end.conn, end.sends)
				end.conn.CloseWrite()
			})
			all.Go(func() {
				if got, err := io.ReadAll(end.conn); err != nil || string(got) != end.gets {
					t.Errorf("%d bytes came, and %v", len(got), err)
				}
			})
		}
	}
	all.Wait()
	if len(turns.taken) != 0 {
		t.Error("a turn is not over")
	}
}

func TestWhoWaitsForASocketHasNoTurn(t *testing.T) {
	turns := NewTurns(1)
	_, silent, to, _ := overTCP(t)
	from, a, b, _ := overTCP(t)
	for full := false; !full; { // b, of which nobody reads
		raw, err := b.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Write(func(fd uintptr) bool {
			_, err = unix.Write(int(fd), make([]byte, 64<<10))
			return true
		})
		if full = err == unix.EAGAIN; err != nil && !full {
			t.Fatal(err)
		}
	}
	ended := make(chan error, 2)
	for _, way := range [][2]*net.TCPConn{{to, silent}, {b, a}} {
		go func() {
			_, err := move(way[0], way[1], turns)
			ended <- err
		}()
	}
	write(t, from, "waits for room")
	raw, err := a.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for taken := false; !taken; runtime.Gosched() { // into the pipe
		raw.Control(func(fd uintptr) {
			left, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
			info, err2 := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			if err != nil || err2 != nil {
				t.Fatal(err, err2)
			}
			taken = left == 0 && info.Bytes_received > 0
		})
	}
	client, c, d, server := overTCP(t)
	go func() {
		io.WriteString(client, "has its turn")
		client.CloseWrite()
	}()
	if n, err := move(d, c, turns); n != 12 || err != nil {
		t.Errorf("%d bytes, and %v", n, err)
	}
	d.CloseWrite()
	readAll(t, server, "has its turn")
	for _, c := range []*net.TCPConn{silent, a, b} {
		c.Close()
	}
	for range 2 {
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("of a closed socket: %v", err)
		}
	}
}

func TestATurnEndsAfterMuch(t *testing.T) {
	turns := NewTurns(1)
	first, second := turn{of: turns}, turn{of: turns}
	first.begin(5)
	first.begin(7) // which it has
	if first.used(5 + turnBytes - 1); !first.has {
		t.Error("it has ended early")
	}
	first.used(5 + turnBytes)
	second.begin(0)
	first.end() // which it has not
	if first.has || !second.has || len(turns.taken) != 1 {
		t.Errorf("%v, %v, and %d of one are taken", first.has, second.has, len(turns.taken))
	}
}

func TestWhatWasDialledWithoutItIsAskedWhetherItLives(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, idle := range map[string]time.Duration{"with an idle time": 80 * time.Millisecond, "without": 0} {
		client, a, _, _ := overTCP(t)
		c, err := (&net.Dialer{KeepAlive: -1}).DialContext(context.Background(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		b := c.(*net.TCPConn)
		raw, err := b.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		asked := func() (is int) {
			raw.Control(func(fd uintptr) { is, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE) })
			if err != nil {
				t.Fatal(err)
			}
			return is
		}
		if asked() != 0 {
			t.Error("the test is none")
		}
		f := New(a, b, idle)
		kept := make(chan int, 1)
		f.Last = func() { kept <- asked() }
		done := make(chan Result, 1)
		go func() { done <- f.Run() }()
		if idle == 0 {
			client.Close()
			server.Close()
		}
		if <-kept != 1 {
			t.Errorf("%s: nobody asks", name)
		}
		<-done
	}
}
