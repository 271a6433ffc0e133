package relay

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// spliced says whether the kernel can move bytes between two conns. A direction that is spliced holds a pipe, so two descriptors more.
func spliced(a, b net.Conn) bool {
	_, is := a.(*net.TCPConn)
	_, too := b.(*net.TCPConn)
	return is && too
}

// kernelCounts is how many bytes a socket has received and how many of those it sent have arrived. One that is closed already counts nothing more.
func kernelCounts(c net.Conn) (received, acked int64) {
	withInfo(c, func(info *unix.TCPInfo) { received, acked = int64(info.Bytes_received), int64(info.Bytes_acked) })
	return received, acked
}

// LegOf is what the kernel knows of the way to the other end of a TCP connection (tcp(7), TCP_INFO). Not ok: it is no socket of the kernel's, or
// closed.
func LegOf(c net.Conn) (l Leg, ok bool) {
	ok = withInfo(c, func(info *unix.TCPInfo) {
		l = Leg{
			RTT: time.Duration(info.Rtt) * time.Microsecond, Retransmitted: uint64(info.Total_retrans),
			PacketsIn: uint64(info.Segs_in), PacketsOut: uint64(info.Segs_out),
		}
	})
	return l, ok
}

// controlled is a connection whose socket can be asked, as is *net.TCPConn.
type controlled interface {
	Control(f func(fd uintptr)) error
}

func withInfo(c net.Conn, use func(*unix.TCPInfo)) (ok bool) {
	raw, is := c.(controlled)
	if tcp, isTCP := c.(*net.TCPConn); isTCP {
		var err error
		raw, err = tcp.SyscallConn()
		is = err == nil
	}
	if !is {
		return false
	}
	raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			use(info)
			ok = true
		}
	})
	return ok
}
