package front

import (
	"errors"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// spreads says that the kernel spreads what comes among the sockets that share an address.
const spreads = true

// inheritsKeepAlive says that connections that are accepted have what keepsAlive sets.
const inheritsKeepAlive = true

// Of a connection that is silent: after how long the kernel asks whether its other end is there, how often, and how many times. They are those that package
// net sets for each connection, with four system calls.
const (
	keepAliveIdle     = 15 // seconds
	keepAliveInterval = 15 // seconds
	keepAliveCount    = 9
)

// keepsAlive has the connections that a socket accepts be asked whether they live.
func keepsAlive(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		for _, option := range [...][3]int{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAliveIdle},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAliveInterval},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveCount},
		} {
			failed = errors.Join(failed, unix.SetsockoptInt(int(fd), option[0], option[1], option[2]))
		}
	})
	return errors.Join(err, failed)
}

// shareAddress lets a socket have an address that others have too, or that the machine does not have yet.
func shareAddress(network, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		if failed != nil {
			return
		}
		if strings.HasSuffix(network, "6") {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		} else {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
		}
	})
	return errors.Join(err, failed)
}
