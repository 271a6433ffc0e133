package backbone

import (
	"errors"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unsentBytes bounds what the kernel takes of a flow before it can send it: what waits there is late, and has been taken from a writer who could
// have waited.
const unsentBytes = 512 << 10

// A connection that is idle asks each askEvery seconds whether its other end is there, and is reset by the kernel after askTimes without an answer: by
// then it has been given up, if its flow outlives it.
const askEvery, askTimes = 1, 15

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
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, askEvery)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, askEvery)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPCNT, askTimes)
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
func isReset(c net.Conn) bool {
	info, err := tcpInfo(c)
	return err == nil && info.State == tcpClosed || err != nil && !errors.Is(err, errors.ErrUnsupported)
}

// kernelSilence is for how long nothing was heard of the other end; unanswered says that the kernel has asked twice since, with what was to be sent,
// or by probes of a window that is shut or of a connection that is idle.
func kernelSilence(c net.Conn) (since time.Duration, unanswered bool) {
	info, err := tcpInfo(c)
	if err != nil || info.State == tcpClosed {
		return 0, false
	}
	since = time.Duration(min(info.Last_ack_recv, info.Last_data_recv)) * time.Millisecond
	return since, info.Unacked > 0 && info.Retransmits >= 2 || info.Probes >= 2
}

// kernelAcked is how many bytes the other end has acknowledged.
func kernelAcked(c net.Conn) uint64 {
	info, err := tcpInfo(c)
	if err != nil {
		return 0
	}
	return info.Bytes_acked
}

func tcpInfo(c net.Conn) (info *unix.TCPInfo, err error) {
	tcp, ok := c.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, errors.ErrUnsupported
	}
	err = raw.Control(func(fd uintptr) { info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err == nil && info == nil {
		err = errors.ErrUnsupported
	}
	return info, err
}
