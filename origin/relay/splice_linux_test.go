package relay

import (
	"context"
	"io"
	"net"
	"os"
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
