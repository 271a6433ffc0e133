package dnsgeo

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/dnsgeo/tsig"
)

// Datagrams go to whoever is said to have asked. So that nobody is flooded with responses that he did not ask for, those of one class
// to one network are limited, and so are all together to one network, at totalRate times as many. A class is what a flood of one kind
// makes: the responses for one name, all that say that there is nothing in one zone or below one delegation, all errors of a kind.
// Of those that are too many each second is cut to a few bytes with TC, so that whoever did ask comes by TCP, where he shows
// who he is; the others are not sent. Who has shown it by a cookie is not limited, nor is this machine.
const (
	// DefaultRate is how many responses of a class a network gets in a second: the resolvers of a large operator ask from one /24,
	// for one name once a client network and TTL (NSD limits at the same).
	DefaultRate = 200

	// totalRate is how many times as many it gets of all classes together.
	totalRate = 10

	// limitWindow is for how long of silence a network may make up at once.
	limitWindow = time.Second

	// limitNetwork4 and limitNetwork6 are what a network is, in bits.
	limitNetwork4, limitNetwork6 = 24, 56

	// limitCells bounds what is remembered: so many classes of networks, 8 bytes each. Where more are busy at once, those with the
	// least to make up for are forgotten first. A class is looked for in limitWays places.
	limitCells = 1 << 17
	limitWays  = 4

	// A cell is limitTags bits of what tells it from others in its places, and when it is made up for, in ticks.
	limitTags = 20
	limitTick = 10 * time.Microsecond
)

// limiter limits responses. It takes no locks and allocates nothing.
type limiter struct {
	seed          uint64
	period, whole uint64 // ticks that a response costs its class, and its network
	cells         []atomic.Uint64
	limited       atomic.Uint64
}

// sending is what becomes of a response.
type sending uint8

const (
	pass sending = iota // as it is
	slip                // cut, so that who asked comes by TCP
	hold                // not at all
)

// newLimiter limits to so many a second; 0: nil, which limits nothing.
func newLimiter(rate int) *limiter {
	if rate <= 0 {
		return nil
	}
	l := &limiter{seed: maphash.Bytes(maphash.MakeSeed(), nil) | 1, cells: make([]atomic.Uint64, limitCells)}
	second := uint64(time.Second / limitTick)
	l.period = max(1, second/uint64(rate))
	l.whole = max(1, second/(uint64(rate)*totalRate))
	return l
}

// judge says what becomes of a response to an address, so long after the server began.
func (l *limiter) judge(from netip.Addr, response []byte, now time.Duration) sending {
	if l == nil || from.IsLoopback() {
		return pass
	}
	network := l.network(from)
	ticks := uint64(now / limitTick)
	if l.take(mix(network, l.class(response)), l.period, ticks) && l.take(network, l.whole, ticks) {
		return pass
	}
	if l.limited.Add(1)%2 == 0 {
		return slip
	}
	return hold
}

// network is the hash of the network of an address.
func (l *limiter) network(from netip.Addr) uint64 {
	if from = from.Unmap(); from.Is4() {
		a := from.As4()
		return mix(uint64(binary.BigEndian.Uint32(a[:])>>(32-limitNetwork4)), l.seed)
	}
	a := from.As16()
	return mix(binary.BigEndian.Uint64(a[:])>>(64-limitNetwork6)|1<<63, l.seed)
}

// class is the hash of what a response is alike with others in.
func (l *limiter) class(m []byte) uint64 {
	end := headerSize
	if binary.BigEndian.Uint16(m[4:]) > 0 {
		end = tsig.SkipName(m, headerSize, false)
	}
	rcode := int(m[3] & 0xf)
	answers, authority := binary.BigEndian.Uint16(m[6:]), binary.BigEndian.Uint16(m[8:])
	h := mix(uint64(rcode)+1, l.seed)
	switch at := end + 4; {
	case end <= headerSize || rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError:
		return h
	case answers > 0 || authority == 0 || at+2 > len(m):
		return l.name(mix(h, 1), m[headerSize:end])
	case m[at]&0xc0 == 0xc0: // the zone or the delegation, whose name ends that which was asked
		if to := int(binary.BigEndian.Uint16(m[at:]) & 0x3fff); headerSize <= to && to < end {
			return l.name(h, m[to:end])
		}
	}
	return h
}

// name adds a name to a hash, without regard to letter case. Some names that differ in other octets are taken for the same.
func (l *limiter) name(h uint64, name []byte) uint64 {
	const small = 0x2020202020202020
	for ; len(name) >= 8; name = name[8:] {
		h = mix(h^(binary.LittleEndian.Uint64(name)|small), l.seed)
	}
	last := uint64(len(name)) << 56
	for i, b := range name {
		last |= uint64(b|0x20) << (8 * i)
	}
	return mix(h^last, l.seed)
}

// mix is a hash of two numbers.
func mix(a, b uint64) uint64 {
	high, low := bits.Mul64(a^0x9e3779b97f4a7c15, b^0xe7037ed1a0b428db)
	return high ^ low
}

// take has what a key stands for pay the price of one more response, in ticks; false: it has no more.
func (l *limiter) take(key, price, now uint64) bool {
	const times = 64 - limitTags
	const window = uint64(limitWindow / limitTick)
	tag := key >> times << times
	places := l.cells[key%(limitCells/limitWays)*limitWays:][:limitWays]
	least, when := 0, ^uint64(0)
	for i := range places {
		cell := places[i].Load()
		paid := cell & (1<<times - 1)
		if cell != 0 && cell&^(1<<times-1) == tag {
			paid = max(paid, now) + price
			if paid > now+window {
				return false
			}
			places[i].CompareAndSwap(cell, tag|paid) // where two come at once, one may be free
			return true
		}
		if paid < when {
			least, when = i, paid
		}
	}
	places[least].Store(tag | (now + price))
	return true
}
