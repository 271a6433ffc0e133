package backbone

import (
	"io"
	"net"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAConnectionSendsWithBBRWhereItMay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	said := tune(c)
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var name string
	var lowat int
	raw.Control(func(fd uintptr) {
		name, _ = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		lowat, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT)
	})
	if said != (name == "bbr") || lowat != unsentBytes {
		t.Errorf("it says %v, and has %q and %d", said, name, lowat)
	}
	if !said {
		t.Log("this machine lets nobody have BBR")
	}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	if slices.Contains([]bool{tune(near), tune(far)}, true) {
		t.Error("what is no socket has BBR")
	}
}

// A reset is noticed without reading or writing, and neither an end nor silence is taken for one.
func TestAResetIsNoticed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if isBroken(near) || isBroken(far) {
		t.Error("it is reset before it is")
	}
	far.(*net.TCPConn).CloseWrite()
	if _, err := near.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	if isBroken(near) || isBroken(far) {
		t.Error("an end is taken for a reset")
	}
	near.(*net.TCPConn).SetLinger(0)
	near.Close()
	if _, err := far.Read(make([]byte, 1)); err == nil { // this waits for it
		t.Fatal("it goes on")
	}
	if !isBroken(near) || !isBroken(far) {
		t.Error("a reset is not noticed")
	}
}
