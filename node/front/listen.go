package front

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
)

// Listen opens a socket on this machine.
func Listen(network, address string) (net.Listener, error) {
	return listen(net.ListenConfig{}, network, address)
}

// ListenAnycast opens a socket on an address that several processes of this machine share, as nodes on several machines
// share an anycast address: the kernel spreads the connections among them. On Linux the machine need not have the
// address yet. On other systems it is Listen, so one process has the address to itself.
func ListenAnycast(network, address string) (net.Listener, error) {
	return listen(net.ListenConfig{Control: shareAddress}, network, address)
}

func listen(c net.ListenConfig, network, address string) (net.Listener, error) {
	l, err := c.Listen(context.Background(), network, address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%w: another process listens there", err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("%w: no interface of this machine has it", err)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%w: low ports need root, CAP_NET_BIND_SERVICE or net.ipv4.ip_unprivileged_port_start", err)
	}
	return l, err
}
