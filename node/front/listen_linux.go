package front

import (
	"errors"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// spreads says that the kernel spreads what comes among the sockets that share an address.
const spreads = true

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
