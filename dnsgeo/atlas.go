package dnsgeo

import (
	"math"
	"net/netip"
	"sync/atomic"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/geo"
)

// spot is where an address is, as the database says, and what follows from it. It is never changed.
type spot struct {
	addr  netip.Addr
	place geo.Place
	bits  int   // of the address that this depends on
	point point // of the place, if it has one
}

// atlas remembers where those are who asked lately. Looking a place up takes some microseconds, most of them for what its
// bits are; resolvers, and the networks they ask for, come again and again.
type atlas struct {
	places *geo.DB
	spots  atomic.Pointer[[spots]atomic.Pointer[spot]] // by hash of the address, the last one that came; none before the first
}

// spots is how many are remembered: of 10,000 networks at random, three quarters.
const spots = 1 << 15

func (m *atlas) find(addr netip.Addr) *spot {
	all := m.spots.Load()
	if all == nil {
		m.spots.CompareAndSwap(nil, new([spots]atomic.Pointer[spot]))
		all = m.spots.Load()
	}
	at := &all[hashAddr(addr)%spots]
	if s := at.Load(); s != nil && s.addr == addr {
		return s
	}
	s := &spot{addr: addr, place: m.places.Lookup(addr), bits: m.places.Bits(addr)}
	if s.place.OK {
		s.point = pointOf(s.place.Location)
	}
	at.Store(s)
	return s
}

// hashAddr spreads addresses (the finalizer of MurmurHash3).
func hashAddr(addr netip.Addr) uint64 {
	b := addr.As16()
	var h uint64
	for i, octet := range b {
		h ^= uint64(octet) << (8 * (i % 8))
		if i == 7 {
			h *= 0x9e3779b97f4a7c15
		}
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// point is a place on a globe of radius 1, from which it is quickly told which of others is nearer.
type point [3]float64

func pointOf(l spec.Location) point {
	latitude, longitude := l.Latitude*math.Pi/180, l.Longitude*math.Pi/180
	return point{math.Cos(latitude) * math.Cos(longitude), math.Cos(latitude) * math.Sin(longitude), math.Sin(latitude)}
}

// away grows with the distance (it is the square of the chord).
func (p point) away(q point) float64 {
	x, y, z := p[0]-q[0], p[1]-q[1], p[2]-q[2]
	return x*x + y*y + z*z
}

// angle is the distance in radians.
func (p point) angle(q point) float64 { return 2 * math.Asin(math.Min(1, math.Sqrt(p.away(q))/2)) }

// nowhere is farther away than all.
const nowhere = math.MaxFloat64
