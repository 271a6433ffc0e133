package front

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAnycastAddressesAreSharedAndNeedNotBeThereYet(t *testing.T) {
	for network, address := range map[string]string{"tcp": "192.0.2.1:0", "tcp4": "192.0.2.1:0", "tcp6": "[2001:db8::1]:0"} {
		first, err := ListenAnycast(network, address)
		if err != nil {
			t.Errorf("%s %s: %v", network, address, err)
			continue
		}
		defer first.Close()
		second, err := ListenAnycast(network, first.Addr().String())
		if err != nil {
			t.Errorf("%s %s, again: %v", network, first.Addr(), err)
			continue
		}
		second.Close()
	}
	for network, address := range map[string]string{"udp": "192.0.2.1:0", "udp4": "192.0.2.1:0", "udp6": "[2001:db8::1]:0"} {
		first, err := ListenPacketAnycast(network, address)
		if err != nil {
			t.Errorf("%s %s: %v", network, address, err)
			continue
		}
		defer first.Close()
		second, err := ListenPacketAnycast(network, first.LocalAddr().String())
		if err != nil {
			t.Errorf("%s %s, again: %v", network, first.LocalAddr(), err)
			continue
		}
		second.Close()
	}
}

func TestAnAddressIsSharedAmongItsOwnSocketsAndWithNobodyElse(t *testing.T) {
	all, err := ListenPackets("udp4", "127.0.0.1:0", 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		defer p.Close()
		if p.LocalAddr().String() != all[0].LocalAddr().String() {
			t.Errorf("%s is not %s", p.LocalAddr(), all[0].LocalAddr())
		}
	}
	if len(all) != 3 {
		t.Errorf("%d sockets", len(all))
	}
	if more, err := ListenPackets("udp4", all[0].LocalAddr().String(), 3); err == nil {
		t.Errorf("%d more on an address that is taken", len(more))
	}
	if more, err := ListenPackets("udp4", "192.0.2.1:0", 3); err == nil {
		t.Errorf("%d on an address that the machine has not", len(more))
	}
}

func TestWhatIsAcceptedIsAskedWhetherItLives(t *testing.T) {
	for name, open := range map[string]func(network, address string) (net.Listener, error){"own": Listen, "anycast": ListenAnycast} {
		l, err := open("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		raw, err := in.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			for option, want := range map[[2]int]int{
				{unix.SOL_SOCKET, unix.SO_KEEPALIVE}:   1,
				{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}:  15,
				{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}: 15,
				{unix.IPPROTO_TCP, unix.TCP_KEEPCNT}:   9,
				{unix.IPPROTO_TCP, unix.TCP_NODELAY}:   1,
			} {
				if got, err := unix.GetsockoptInt(int(fd), option[0], option[1]); got != want || err != nil {
					t.Errorf("%s: option %v is %d, want %d: %v", name, option, got, want, err)
				}
			}
		})
	}
}
