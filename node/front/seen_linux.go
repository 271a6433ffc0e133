package front

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// roundTrip is the least round trip that the kernel saw of a TCP connection: of its handshake at least (tcp(7), TCP_INFO).
func roundTrip(c net.Conn) (rtt time.Duration, ok bool) {
	var us uint32
	if !onSocket(c, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			us = info.Min_rtt
		}
		return err
	}) {
		return 0, false
	}
	// A kernel that has seen none says the greatest number.
	return time.Duration(us) * time.Microsecond, us > 0 && us != ^uint32(0)
}
