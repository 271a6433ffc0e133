package http1

import "net/netip"

// clientBits is how much of an IPv6 address tells clients apart: whoever has one address has its whole /64.
const clientBits = 64

// ClientOf is whom an address counts for, where clients have shares: an IPv4 address, or a /64 of IPv6. Not valid: nobody, for what is on this machine stands
// for many.
func ClientOf(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.IsLoopback() {
		return netip.Addr{}
	}
	if a.Is6() {
		if p, err := a.Prefix(clientBits); err == nil {
			return p.Addr()
		}
	}
	return a
}
