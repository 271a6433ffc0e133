package relay

import (
	"net"

	"golang.org/x/sys/unix"
)

// kernelProgress reads the progress of two TCP sockets from the kernel's counts, as what is spliced is not counted here
// before its end. It is nil for other conns. A spliced flow holds two pipes, so four descriptors more. A socket that is closed already counts nothing more.
func kernelProgress(a, b net.Conn) func() uint64 {
	ta, ok := a.(*net.TCPConn)
	if !ok {
		return nil
	}
	tb, ok := b.(*net.TCPConn)
	if !ok {
		return nil
	}
	return func() uint64 { return moved(ta) + moved(tb) }
}

// moved is how many bytes a socket has received and how many of those it sent have arrived.
func moved(c *net.TCPConn) (bytes uint64) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			bytes = info.Bytes_received + info.Bytes_acked
		}
	})
	return bytes
}
