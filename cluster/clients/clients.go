// Package clients knows how far clients are from POPs, by the round trips that the doors of nodes saw of their connections: per
// network, a /24 of IPv4 or a /48 of IPv6. Seen is what one node saw; Say and Decode are how it tells others; Map is what all of them saw,
// and joins it with the round trips between POPs where a POP has not seen a network itself.
//
// It measures nothing, sends nothing and looks up no place: all is brought to it. A client can lie about how far it is (by
// acknowledging early or late), and so spoil what is held of its own network, and of no other.
package clients

import (
	"math/bits"
	"net/netip"
	"time"
)

// Network is a /24 of IPv4 or a /48 of IPv6, as a number that sorts by family and address: the family in the highest bit, then the
// prefix. 0 is none.
type Network uint64

// Lengths of the prefixes.
const (
	Bits4 = 24
	Bits6 = 48
)

const is4 = Network(1) << 63

// Of is the network of an address; 0 for those that no client can have, as loopback and link-local ones.
func Of(addr netip.Addr) Network {
	addr = addr.Unmap()
	if !addr.IsGlobalUnicast() {
		return 0
	}
	return of(addr)
}

func of(addr netip.Addr) Network {
	b := addr.As16()
	if addr.Is4() {
		return is4 | Network(b[12])<<55 | Network(b[13])<<47 | Network(b[14])<<39
	}
	n := Network(0)
	for _, octet := range b[:Bits6/8] {
		n = n<<8 | Network(octet)
	}
	return n << (63 - Bits6)
}

// OfPrefix is the network that a prefix is in; 0 if it is shorter than one.
func OfPrefix(p netip.Prefix) Network {
	if least := width(p.Addr().Is4()); !p.IsValid() || p.Bits() < least {
		return 0
	}
	return Of(p.Addr())
}

func width(v4 bool) int {
	if v4 {
		return Bits4
	}
	return Bits6
}

// Prefix is the network as others write it.
func (n Network) Prefix() netip.Prefix {
	if n&is4 != 0 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(n >> 55), byte(n >> 47), byte(n >> 39)}), Bits4)
	}
	var b [16]byte
	for i := range Bits6 / 8 {
		b[i] = byte(n >> (55 - 8*i))
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), Bits6)
}

// common is how many leading bits two networks share, −1 if they are of two families.
func (n Network) common(o Network) int { return bits.LeadingZeros64(uint64(n^o)) - 1 }

// number is the network without the zeros behind it, in the same order; networkOf undoes it.
func (n Network) number() uint64 {
	if n&is4 != 0 {
		return 1<<Bits6 | uint64(n&^is4)>>(63-Bits4)
	}
	return uint64(n) >> (63 - Bits6)
}

const maxNumber = 1<<Bits6 | (1<<Bits4 - 1)

func networkOf(number uint64) Network {
	if number>>Bits6 != 0 {
		return is4 | Network(number&(1<<Bits4-1))<<(63-Bits4)
	}
	return Network(number) << (63 - Bits6)
}

// Row is what is held of one network: its round trip, and by how many samples, of which old ones count for less.
type Row struct {
	Network Network
	RTT     time.Duration
	Samples int
}
