package front

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// roundTrip is the least round trip that the kernel saw of a TCP connection: of its handshake at least (tcp(7), TCP_INFO).
func roundTrip(c net.Conn) (rtt time.Duration, ok bool) {
	tcp, is := c.(*net.TCPConn)
	if !is {
		return 0, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, false
	}
	var us uint32
	if raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			us = info.Min_rtt
		}
	}) != nil {
		return 0, false
	}
	// A kernel that has seen none says the greatest number.
	return time.Duration(us) * time.Microsecond, us > 0 && us != ^uint32(0)
}
