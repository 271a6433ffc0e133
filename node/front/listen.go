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

// ListenPacket opens a UDP socket on this machine.
func ListenPacket(network, address string) (net.PacketConn, error) {
	return listenPacket(net.ListenConfig{}, network, address)
}

// ListenPacketAnycast is for UDP what ListenAnycast is for TCP: the kernel gives all packets between two addresses and ports
// to the same process, so a QUIC connection stays where it began until its client moves.
func ListenPacketAnycast(network, address string) (net.PacketConn, error) {
	return listenPacket(net.ListenConfig{Control: shareAddress}, network, address)
}

func listenPacket(c net.ListenConfig, network, address string) (net.PacketConn, error) {
	p, err := c.ListenPacket(context.Background(), network, address)
	return p, explained(err)
}

func listen(c net.ListenConfig, network, address string) (net.Listener, error) {
	l, err := c.Listen(context.Background(), network, address)
	return l, explained(err)
}

// explained says what an operator can do about it.
func explained(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w: another process listens there", err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w: no interface of this machine has it", err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w: low ports need root, CAP_NET_BIND_SERVICE or net.ipv4.ip_unprivileged_port_start", err)
	}
	return err
}
