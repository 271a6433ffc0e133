package backbone

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unsentBytes bounds what the kernel takes of a flow before it can send it: what waits there is late, and has been taken from a writer who could
// have waited.
const unsentBytes = 512 << 10

// tune sets a TCP connection up for flows of many bytes, as far as the kernel has what it takes: bbr says that it sends with BBR.
func tune(c net.Conn) (bbr bool) {
	tcp, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentBytes)
		if unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "bbr") == nil {
			bbr = true
			return
		}
		// Who may not set it may have it from the start.
		name, err := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		bbr = err == nil && name == "bbr"
	})
	return bbr
}

// tcpClosed is what the kernel says of a connection that was reset, or given up (TCP_CLOSE of linux/tcp_states.h).
const tcpClosed = 7

// isReset says that the kernel has found a connection to be lost, or that somebody has closed it.
func isReset(c net.Conn) (reset bool) {
	tcp, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		reset = err == nil && info.State == tcpClosed
	})
	return reset || err != nil
}
