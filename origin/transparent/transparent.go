// Package transparent dials targets from addresses that are not this machine's: those of clients, which their targets then see
// (IP_TRANSPARENT). Linux only, and for a process with CAP_NET_ADMIN. What the target sends to the client has to come to this machine,
// and be taken by it for its own: that is for routes and rules outside to do, and cannot be seen from here; where they are missing a dial waits in
// vain.
package transparent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// ErrImpossible says that no connection can have the client's address, whoever is dialled with it: by this machine, or to that address.
var ErrImpossible = errors.New("the client's address cannot be kept")

// A Dialer dials. The zero value marks nothing.
type Dialer struct {
	// Mark is what the packets are marked with for the machine's routing (SO_MARK); 0: with nothing.
	Mark uint32
}

// Dial connects to an address, by "tcp" or "udp", with the client's as the source. If there is such a connection already, as of a client that
// comes two ways, the port is another one.
func (d Dialer) Dial(ctx context.Context, network string, client netip.AddrPort, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %q: %w", address, err)
	}
	from := netip.AddrPortFrom(client.Addr().Unmap().WithZone(""), client.Port())
	switch {
	case !from.IsValid():
		return nil, fmt.Errorf("%w: it is not known", ErrImpossible)
	case from.Addr().Is4() != to.Addr().Unmap().Is4():
		return nil, fmt.Errorf("%w: %v and %v are of two families", ErrImpossible, from.Addr(), to.Addr())
	case from.Addr() == to.Addr().Unmap().WithZone(""):
		return nil, fmt.Errorf("%w: %v is the target's own", ErrImpossible, from.Addr())
	case !from.Addr().IsGlobalUnicast(): // which is what has one link, one machine or many for its own, too
		return nil, fmt.Errorf("%w: %v is nobody's to the world", ErrImpossible, from.Addr())
	}
	conn, err := d.dial(ctx, network, from, address)
	if isTaken(err) && from.Port() != 0 {
		conn, err = d.dial(ctx, network, netip.AddrPortFrom(from.Addr(), 0), address)
	}
	return conn, err
}
