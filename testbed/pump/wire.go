// Package pump is the user-space wire between network namespaces: it reads packets from a TUN device, keeps each for as
// long as the link's [wan.Path] says, or loses it, and writes it to the TUN device at the other end. It does what the
// kernel's netem does, for kernels without it. One process carries all links of a testbed, on one thread ([Pump]), and is
// told what to do over a unix socket ([Serve], [Client]).
//
// It is not a network: it does not look into packets, routes nothing, and knows links by their names only.
//
// When things break: a packet that cannot be kept (all MaxPackets are in use) or written is dropped and counted, never
// waited for. A link whose device vanished is silent and says so in its stats; the others go on. When the process is
// killed its TUN devices vanish with it, and so the links are gone: nothing is left behind.
package pump

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/perigee-net/perigee/testbed/wan"
)

// PacketSize is the longest packet that is carried whole, bytes: devices may have an MTU up to it.
const PacketSize = 2048

// Why says what became of a packet.
type Why uint8

const (
	Carried Why = iota // it arrives
	Lost               // lost by the path's Loss
	Queue              // dropped since Queue packets were waiting to be sent at the path's Rate
)

// Wire is one direction of a link: given when packets come and how long they are, it says when they arrive. It is pure:
// the same seed, paths, times and sizes give the same answers. Not for use by several at once.
//
// A packet is lost by its own chance; else it waits for those before it to be sent at the path's rate, and then is
// under way for the path's delay, give or take its jitter, evenly spread. It never overtakes: where jitter or a shorter
// path would let it, it arrives together with the one before. Only the share Reorder of packets is not delayed at all
// (tc-netem(8): "delayed packets are … overtaken") and overtakes whatever is under way.
type Wire struct {
	path  wan.Path
	dice  rand.PCG
	lost  uint64 // a roll of the dice below it loses a packet
	quick uint64 // likewise: a packet is not delayed

	free   time.Duration // when the last packet will have been sent at the rate
	last   time.Duration // when the last of the packets that keep order arrives
	ahead  time.Duration // when the last of those that overtake arrives
	queued ring[time.Duration]
}

// NewWire makes a wire of a valid path. Its dice fall as seed says.
func NewWire(p wan.Path, seed uint64) *Wire {
	w := &Wire{}
	w.Seed(seed)
	w.Set(p)
	return w
}

// Seed has the dice fall as seed says from here on.
func (w *Wire) Seed(seed uint64) { w.dice = *rand.NewPCG(seed, 0x9e3779b97f4a7c15) }

// Set changes the path. Packets that were sent before keep their times, and are not overtaken.
func (w *Wire) Set(p wan.Path) {
	w.path = p
	w.lost, w.quick = chance(p.Loss), chance(p.Reorder)
}

// Path is the path as it is now.
func (w *Wire) Path() wan.Path { return w.path }

// chance is the share p of all rolls of the dice. 1 is never quite reached: 1 of 2^64 escapes.
func chance(p float64) uint64 {
	if p >= 1 {
		return math.MaxUint64
	}
	return uint64(p * (1 << 64))
}

// Send takes a packet of size bytes (IP header and all) at the time now and says when it arrives. Times count from any
// moment, and now must not go back. Where the packet is dropped, at means nothing.
func (w *Wire) Send(now time.Duration, size int) (at time.Duration, drop Why) {
	if w.lost > 0 && w.dice.Uint64() < w.lost {
		return 0, Lost
	}
	sent := now
	if w.path.Rate > 0 {
		for w.queued.len() > 0 && w.queued.first() <= now {
			w.queued.pop()
		}
		// The packet that is just being sent does not wait.
		if w.queued.len() > w.path.Limit() {
			return 0, Queue
		}
		sent = max(now, w.free) + time.Duration(int64(size)*8*int64(time.Second)/w.path.Rate)
		w.free = sent
		w.queued.push(sent)
	}
	if w.quick > 0 && w.dice.Uint64() < w.quick {
		w.ahead = max(w.ahead, sent)
		return w.ahead, Carried
	}
	delay := w.path.Delay
	if j := int64(w.path.Jitter); j > 0 {
		delay += time.Duration(int64(w.dice.Uint64()%uint64(2*j+1)) - j)
	}
	w.last = max(w.last, sent+max(0, delay))
	return w.last, Carried
}

// ring is a queue that grows as it must and never shrinks.
type ring[T any] struct {
	items []T // its length is a power of two
	head  int
	n     int
}

func (r *ring[T]) len() int { return r.n }

func (r *ring[T]) first() T { return r.items[r.head] }

func (r *ring[T]) last() T { return r.items[(r.head+r.n-1)&(len(r.items)-1)] }

func (r *ring[T]) push(v T) {
	if r.n == len(r.items) {
		larger := make([]T, max(16, 2*len(r.items)))
		k := copy(larger, r.items[r.head:])
		copy(larger[k:], r.items[:r.head])
		r.items, r.head = larger, 0
	}
	r.items[(r.head+r.n)&(len(r.items)-1)] = v
	r.n++
}

func (r *ring[T]) pop() T {
	v := r.items[r.head]
	r.head = (r.head + 1) & (len(r.items) - 1)
	r.n--
	return v
}
