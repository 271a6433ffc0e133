package policy

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"net/netip"
	"slices"
	"sort"

	"github.com/perigee-net/perigee/cluster/spec"
)

// Blocks are the blocks of a CIDR collection, ready for longest prefix match. They are immutable; nil has none.
type Blocks struct {
	v4, v6 []block // in the order of addresses, a block before those within it
}

type block struct {
	prefix   netip.Prefix
	location string
	around   int // the smallest block that it is within; −1 if there is none
}

// NewBlocks makes the blocks of a collection.
func NewBlocks(c *spec.CidrCollection) *Blocks {
	b := new(Blocks)
	for i := range c.Locations {
		for _, p := range c.Locations[i].CidrList {
			family := &b.v6
			if p.Addr().Is4() {
				family = &b.v4
			}
			*family = append(*family, block{p.Masked(), c.Locations[i].LocationName, -1})
		}
	}
	for _, family := range [][]block{b.v4, b.v6} {
		slices.SortStableFunc(family, func(x, y block) int {
			if c := x.prefix.Addr().Compare(y.prefix.Addr()); c != 0 {
				return c
			}
			return x.prefix.Bits() - y.prefix.Bits()
		})
		for i := range family {
			outer := i - 1
			for outer >= 0 && !family[outer].prefix.Contains(family[i].prefix.Addr()) {
				outer = family[outer].around
			}
			family[i].around = outer
		}
	}
	return b
}

// find returns the blocks of a network's family, and the last of those that begin at or before its address; −1 if none does. If
// any block has the address, that has it, or one around it.
func (b *Blocks) find(network netip.Prefix) (family []block, last int) {
	if b == nil || !network.IsValid() {
		return nil, -1
	}
	family = b.v6
	if network.Addr().Is4() {
		family = b.v4
	}
	addr := network.Addr()
	return family, sort.Search(len(family), func(i int) bool { return family[i].prefix.Addr().Compare(addr) > 0 }) - 1
}

// around yields the blocks that a network is in, the longest first. It is in none that is longer than itself (Route 53).
func (b *Blocks) around(network netip.Prefix) iter.Seq[*block] {
	return func(yield func(*block) bool) {
		family, i := b.find(network)
		for ; i >= 0; i = family[i].around {
			p := family[i].prefix
			if p.Bits() <= network.Bits() && p.Contains(network.Addr()) && !yield(&family[i]) {
				return
			}
		}
	}
}

// scope is how many leading bits of a network decide which blocks it is in: so many that all of a network of that length are in the
// same blocks, if they tell as many. Where it is in no block, that is down to where no block is inside.
func (b *Blocks) scope(network netip.Prefix) int {
	family, last := b.find(network)
	if !network.IsValid() || b == nil || len(b.v4)+len(b.v6) == 0 {
		return 0
	}
	// No block has more of its leading bits in common with the address than its two neighbours in order.
	deepest := 1 // there is no block of the family, but there are of the other
	for i := max(0, last); i < min(last+2, len(family)); i++ {
		p := family[i].prefix
		shared := min(common(p.Addr(), network.Addr()), p.Bits())
		if shared < p.Bits() {
			shared++ // the bit that tells them apart
		}
		deepest = max(deepest, shared)
	}
	return deepest
}

// common is how many leading bits two addresses of one family share.
func common(a, b netip.Addr) int {
	if a.Is4() {
		x, y := a.As4(), b.As4()
		return bits.LeadingZeros32(binary.BigEndian.Uint32(x[:]) ^ binary.BigEndian.Uint32(y[:]))
	}
	x, y := a.As16(), b.As16()
	for i := 0; i < 16; i += 8 {
		if differ := binary.BigEndian.Uint64(x[i:]) ^ binary.BigEndian.Uint64(y[i:]); differ != 0 {
			return 8*i + bits.LeadingZeros64(differ)
		}
	}
	return 128
}
