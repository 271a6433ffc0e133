//go:build !linux

package transparent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

func (Dialer) dial(context.Context, string, netip.AddrPort, string) (net.Conn, error) {
	return nil, fmt.Errorf("%w: that takes Linux", ErrImpossible)
}

func isTaken(error) bool { return false }
