package transparent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func (d Dialer) dial(ctx context.Context, network string, from netip.AddrPort, address string) (net.Conn, error) {
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if cannot := raw.Control(func(fd uintptr) { err = d.prepare(int(fd), network, from) }); cannot != nil {
			return cannot
		}
		return err
	}}
	if strings.HasPrefix(network, "udp") {
		dialer.LocalAddr = net.UDPAddrFromAddrPort(from)
	} else {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(from)
	}
	return dialer.DialContext(ctx, network, address)
}

// prepare has a socket take an address that is not this machine's.
func (d Dialer) prepare(fd int, network string, from netip.AddrPort) error {
	type option struct {
		name         string
		level, which int
		value        int
	}
	options := []option{
		{"IP_TRANSPARENT", unix.SOL_IP, unix.IP_TRANSPARENT, 1},
		{"IP_FREEBIND", unix.SOL_IP, unix.IP_FREEBIND, 1},
	}
	if from.Addr().Is6() {
		options = []option{
			{"IPV6_TRANSPARENT", unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1},
			{"IPV6_FREEBIND", unix.SOL_IPV6, unix.IPV6_FREEBIND, 1},
		}
	}
	if d.Mark != 0 {
		options = append(options, option{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, int(d.Mark)})
	}
	switch {
	case from.Port() == 0: // the port is found when it is known where the connection goes
		options = append(options, option{"IP_BIND_ADDRESS_NO_PORT", unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1})
	case !strings.HasPrefix(network, "udp"): // the same client may have a connection with each target
		options = append(options, option{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1})
	}
	for _, o := range options {
		err := unix.SetsockoptInt(fd, o.level, o.which, o.value)
		switch {
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("%w: %s needs CAP_NET_ADMIN", ErrImpossible, o.name)
		case err != nil:
			return fmt.Errorf("%w: %s: %w", ErrImpossible, o.name, err)
		}
	}
	return nil
}

// isTaken says whether a dial failed because there is such a connection already.
func isTaken(err error) bool {
	return errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EADDRNOTAVAIL)
}
