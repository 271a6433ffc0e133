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
	return listen(net.ListenConfig{Control: keepsAlive}, network, address)
}

// ListenAnycast opens a socket on an address that several processes of this machine share, as nodes on several machines
// share an anycast address: the kernel spreads the connections among them. On Linux the machine need not have the
// address yet. On other systems it is Listen, so one process has the address to itself.
func ListenAnycast(network, address string) (net.Listener, error) {
	return listen(net.ListenConfig{Control: func(network, address string, c syscall.RawConn) error {
		return errors.Join(shareAddress(network, address, c), keepsAlive(network, address, c))
	}}, network, address)
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

// ListenPackets opens up to n UDP sockets on one address of this machine, among which the kernel spreads the packets by who sends
// them, so that each may be served by a processor of its own. It fails where another process listens there; but one that begins
// to at the same moment, as the same user and by this way, shares the address unnoticed. Where the kernel does not spread, it is one.
func ListenPackets(network, address string, n int) ([]net.PacketConn, error) {
	first, err := ListenPacket(network, address)
	if err != nil {
		return nil, err
	}
	if n < 2 || !spreads {
		return []net.PacketConn{first}, nil
	}
	address = first.LocalAddr().String()
	if err := first.Close(); err != nil {
		return nil, err
	}
	var all []net.PacketConn
	for range n {
		p, err := ListenPacketAnycast(network, address)
		if err != nil {
			for _, p := range all {
				p.Close()
			}
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

func listenPacket(c net.ListenConfig, network, address string) (net.PacketConn, error) {
	p, err := c.ListenPacket(context.Background(), network, address)
	return p, explained(err)
}

func listen(c net.ListenConfig, network, address string) (net.Listener, error) {
	if inheritsKeepAlive {
		c.KeepAlive = -1 // it is not set once more for each connection
	}
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
