package backbone

import (
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
