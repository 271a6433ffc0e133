package dnsgeo

import (
	"encoding/binary"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/geo"
)

// spot is a place as the database says it is, and what follows from it. It is never changed.
type spot struct {
	site   *spec.Site // nil: nobody knows where it is
	bits   int        // of an address that is there, those that this depends on
	number uint32
	place  geo.Place
}

// atlas remembers where those are who asked lately. Looking a place up takes some microseconds; resolvers, and the networks they
// ask for, come again and again. They are remembered by networks that are as large as the places nearby let them be: those of one area are all of
// the one length on which the place among them depended that depended on most bits.
type atlas struct {
	places *geo.DB
	spots  atomic.Pointer[spots] // none before the first
}

const (
	// maxFour and maxSix are how many networks are remembered, of IPv4 and of IPv6. One of IPv4 is looked for in fourWays places, which are one
	// line of a processor's cache.
	maxFour, maxSix = 1 << 16, 1 << 14
	fourWays        = 8

	// maxSpots is how many places are remembered that differ. After that all is forgotten.
	maxSpots = 1 << 16

	// areas is how many lengths of each family are remembered: one for each /16 of IPv4; those of IPv6, each a /32, share them.
	areas = 1 << 16
)

// spots are what is remembered. Readers take no locks.
type spots struct {
	lengths [2][areas / 4]atomic.Uint32                 // of the networks in each area of IPv4, and of IPv6, an octet each
	four    [maxFour / fourWays][fourWays]atomic.Uint64 // by hash of the network, those that came last: address, 1, length, number
	six     [maxSix]atomic.Pointer[spotSix]             // by hash of the network, the last that came
	all     [maxSpots]atomic.Pointer[spot]              // by number

	mu      sync.Mutex
	numbers map[spotName]int
}

// spotSix is a network of IPv6 at a spot.
type spotSix struct {
	key spotKey
	*spot
}

// spotName is what makes one spot differ from others.
type spotName struct {
	place geo.Place
	bits  int
}

// spotKey is a network of addresses that are all at one place, or what is no address.
type spotKey struct {
	family    uint8  // 4, 6, or 0
	length    uint8  // of the prefix
	high, low uint64 // IPv4 is in the low half
}

func (m *atlas) find(addr netip.Addr) *spot {
	known := m.spots.Load()
	if known == nil {
		m.spots.CompareAndSwap(nil, &spots{numbers: map[spotName]int{}})
		known = m.spots.Load()
	}
	key := spotKeyOf(addr)
	lengths, shift := known.area(key)
	network := key.first(uint8(lengths.Load() >> shift))
	if s := known.get(network); s != nil {
		return s
	}
	name := spotName{m.places.Lookup(addr), m.places.Bits(addr)}
	number, ok := known.number(name)
	if !ok {
		m.spots.CompareAndSwap(known, nil)
		return m.find(addr)
	}
	length := uint8(name.bits)
	for {
		was := lengths.Load()
		if had := uint8(was >> shift); had >= length {
			length = had
			break
		}
		if lengths.CompareAndSwap(was, was&^(0xff<<shift)|uint32(length)<<shift) {
			break
		}
	}
	known.put(key.first(length), number)
	return known.all[number].Load()
}

// area is where the length of the networks around an address stands: in which word, and how far to the left.
func (k *spots) area(key spotKey) (word *atomic.Uint32, shift uint32) {
	if key.family == 6 {
		area := uint32(key.high>>32*0x9e3779b1) >> 16
		return &k.lengths[1][area/4], area % 4 * 8
	}
	area := uint32(key.low >> 16)
	return &k.lengths[0][area/4], area % 4 * 8
}

// number is that of a spot; false: there is room for no more.
func (k *spots) number(name spotName) (number int, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if number, ok = k.numbers[name]; ok {
		return number, true
	}
	if number = len(k.numbers); number == maxSpots {
		return 0, false
	}
	s := &spot{bits: name.bits, number: uint32(number), place: name.place}
	if s.place.OK {
		s.site = s.place.Location.Site()
	}
	k.all[number].Store(s)
	k.numbers[name] = number
	return number, true
}

func (k *spots) get(network spotKey) *spot {
	switch hash := network.hash(); network.family {
	case 4:
		word := network.word()
		ways := &k.four[hash%(maxFour/fourWays)]
		for i := range ways {
			if w := ways[i].Load(); w&^(maxSpots-1) == word {
				return k.all[w%maxSpots].Load()
			}
		}
	case 6:
		if s := k.six[hash%maxSix].Load(); s != nil && s.key == network {
			return s.spot
		}
	}
	return nil
}

func (k *spots) put(network spotKey, number int) {
	switch hash := network.hash(); network.family {
	case 4:
		ways := &k.four[hash%(maxFour/fourWays)]
		for i := fourWays - 1; i > 0; i-- {
			ways[i].Store(ways[i-1].Load())
		}
		ways[0].Store(network.word() | uint64(number))
	case 6:
		k.six[hash%maxSix].Store(&spotSix{network, k.all[number].Load()})
	}
}

// spotKeyOf is the key of one address alone.
func spotKeyOf(addr netip.Addr) spotKey {
	switch addr = addr.Unmap(); {
	case addr.Is4():
		b := addr.As4()
		return spotKey{4, 32, 0, uint64(binary.BigEndian.Uint32(b[:]))}
	case addr.Is6():
		b := addr.As16()
		return spotKey{6, 128, binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])}
	}
	return spotKey{}
}

// first is the key of the network of so many leading bits, or of as many as there are.
func (k spotKey) first(length uint8) spotKey {
	k.length = min(k.length, length)
	switch {
	case k.family == 4:
		k.low &^= 1<<(32-k.length) - 1
	case k.length < 64:
		k.high, k.low = k.high&^(1<<(64-k.length)-1), 0
	default:
		k.low &^= 1<<(128-k.length) - 1
	}
	return k
}

// word is the network of IPv4 as it stands in spots.four, of spot 0.
func (k spotKey) word() uint64 { return k.low<<32 | 1<<31 | uint64(k.length)*maxSpots }

// hash spreads networks (the finalizer of MurmurHash3).
func (k spotKey) hash() uint64 {
	h := k.high*0x9e3779b97f4a7c15 ^ k.low ^ uint64(k.length)<<40
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// nowhere is farther away than all.
const nowhere = math.MaxFloat64
