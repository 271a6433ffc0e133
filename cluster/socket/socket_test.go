//go:build unix

package socket

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
)

// pair are the two ends of a connection over the loopback.
func pair(t *testing.T) (a, b *net.TCPConn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	one, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { one.Close(); other.Close() })
	return one.(*net.TCPConn), other.(*net.TCPConn)
}

// That no address is there to go from may be of the ports, and may be of the way: that is asked, and of nothing else.
func TestALackOfPortsIsNoLackOfAWay(t *testing.T) {
	dial := func(e error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", e)}
	}
	for _, c := range []struct {
		name       string
		err, reach error
		asks, want bool
	}{
		{"no ports", dial(syscall.EADDRNOTAVAIL), nil, true, true},
		{"no ports, of UDP neither", dial(syscall.EADDRNOTAVAIL), dial(syscall.EAGAIN), true, true},
		{"no descriptors to ask by", dial(syscall.EADDRNOTAVAIL), dial(syscall.EMFILE), true, true},
		{"no way", dial(syscall.EADDRNOTAVAIL), dial(syscall.EADDRNOTAVAIL), true, false},
		{"no descriptors", dial(syscall.EMFILE), nil, false, true},
		{"no network", dial(syscall.ENETUNREACH), nil, false, false},
		{"nobody", dial(syscall.ECONNREFUSED), nil, false, false},
		{"an end", io.EOF, nil, false, false},
		{"nothing", nil, nil, false, false},
	} {
		asked := false
		got := lacking(c.err, func() error { asked = true; return c.reach })
		if got != c.want || asked != c.asks {
			t.Errorf("%s: lacking %t, asked %t", c.name, got, asked)
		}
	}
	if !Lacking(dial(syscall.EADDRNOTAVAIL), netip.AddrPort{}) || !Lacking(dial(syscall.EADDRNOTAVAIL), netip.MustParseAddrPort("127.0.0.1:9")) {
		t.Error("there is a way to what is here, and none is missed to what is not known")
	}
}

// waits calls f with the socket until it is done, and waits between as package net does.
func waits(t *testing.T, c *net.TCPConn, f func(fd uintptr) bool) {
	raw, ok := Of(c)
	if !ok {
		t.Fatal("it has no socket")
	}
	if err := raw.Read(f); err != nil {
		t.Fatal(err)
	}
}

func TestASocketIsReadAndWrittenAtOnce(t *testing.T) {
	a, b := pair(t)
	buf := make([]byte, 64)
	waits(t, b, func(fd uintptr) bool {
		if _, again, err := Read(fd, buf); !again || err != nil || Came(fd) {
			t.Errorf("something is there that nobody has sent: %v", err)
		}
		return true
	})
	waits(t, a, func(fd uintptr) bool {
		for _, write := range []func(uintptr, []byte) (int, error){WriteMore, Write} {
			if n, err := write(fd, []byte("hello")); n != 5 || err != nil {
				t.Errorf("%d of 5 are written: %v", n, err)
			}
		}
		return true
	})
	var got []byte
	waits(t, b, func(fd uintptr) bool {
		for len(got) < 10 {
			n, again, err := Read(fd, buf[:3])
			if again || err != nil {
				return err != nil
			}
			got = append(got, buf[:n]...)
		}
		return true
	})
	if string(got) != "hellohello" {
		t.Errorf("read %q", got)
	}
	a.Close()
	waits(t, b, func(fd uintptr) bool {
		n, again, err := Read(fd, buf)
		if !again && (n != 0 || err != io.EOF || !Came(fd)) {
			t.Errorf("behind the end: %d, %v", n, err)
		}
		return !again
	})
}

func TestASocketTakesNoMoreThanItHasRoomFor(t *testing.T) {
	a, b := pair(t)
	sent := 0
	waits(t, a, func(fd uintptr) bool {
		for {
			n, err := Write(fd, bytes.Repeat([]byte("x"), 1<<20))
			if sent += n; err != nil {
				t.Error(err)
			}
			if n == 0 || t.Failed() {
				return true
			}
		}
	})
	a.CloseWrite()
	if got, err := io.Copy(io.Discard, b); got != int64(sent) || err != nil {
		t.Errorf("%d were sent, and %d came: %v", sent, got, err)
	}
	b.SetLinger(0)
	b.Close() // resets it
	waits(t, a, func(fd uintptr) bool {
		if _, again, _ := Read(fd, make([]byte, 1)); again {
			return false
		}
		for range 2 { // the first may be told of the reset, the second that it is over
			if n, err := Write(fd, []byte("x")); n > 0 || err == nil || !strings.HasPrefix(err.Error(), "write: ") {
				t.Errorf("on a broken connection %d are written: %v", n, err)
			}
		}
		return true
	})
}
