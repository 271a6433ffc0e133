package memnet

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

const (
	// Floor is the least one-way delay between two hosts that the places of the earth give.
	Floor = 100 * time.Microsecond
	// Loopback is the one-way delay within a host.
	Loopback = 30 * time.Microsecond
	// MTU is the largest IP packet between hosts, bytes. A datagram that needs a larger one is dropped, as on a path
	// that does not fragment.
	MTU = 1500
	// LoopbackMTU is the same within a host.
	LoopbackMTU = 65536
	// LinkQueue bounds the queue of a link with a Rate: a datagram that would have to wait longer is dropped. What
	// streams send waits as long as it must; Window bounds it.
	LinkQueue = 250 * time.Millisecond
)

// Path is how packets fare from one host to another, one way.
type Path struct {
	// Delay is what every packet takes; 0 means what the places of the two hosts give.
	Delay time.Duration
	// Jitter is the most that is added to the delay, drawn evenly for each packet.
	Jitter time.Duration
	// Loss is the share of packets that are lost: 0 to less than 1.
	Loss float64
	// Duplicate is the share of datagrams that arrive twice: 0 to 1. Each copy has a jitter of its own. Streams see through
	// copies, as TCP does.
	Duplicate float64
	// Rate is how many bits of payload pass in a second, one packet behind the other; 0 means any number.
	Rate int64
	// MTU is the largest IP packet, bytes; 0 means MTU of the package. What streams send is cut to what fits.
	MTU int
}

// Link replaces the path between two hosts, both ways. A Path{} takes back what was set.
func (in *Internet) Link(a, b string, p Path) {
	in.LinkOneWay(a, b, p)
	in.LinkOneWay(b, a, p)
}

// LinkOneWay replaces the path from one host to another, and leaves the way back as it is.
func (in *Internet) LinkOneWay(from, to string, p Path) {
	if p.Loss < 0 || p.Loss >= 1 || p.Duplicate < 0 || p.Duplicate > 1 || p.Delay < 0 || p.Jitter < 0 || p.Rate < 0 || p.MTU < 0 {
		panic(fmt.Sprintf("memnet: no such path: %+v", p))
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.link(from, to).set = p
}

// Slow adds to the delay between two hosts, both ways, in place of what Slow added before. Anycast does not see it.
func (in *Internet) Slow(a, b string, extra time.Duration) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.link(a, b).slow = extra
	in.link(b, a).slow = extra
}

// Path is the path from one host to another as it is now, its delay filled in, with what Slow added.
func (in *Internet) Path(from, to string) Path {
	in.mu.Lock()
	defer in.mu.Unlock()
	l := in.link(from, to)
	p := l.set
	p.Delay = l.delay() + l.slow
	return p
}

// RoundTrip is the delay from one host to another and back, without jitter.
func (in *Internet) RoundTrip(a, b string) time.Duration {
	return in.Path(a, b).Delay + in.Path(b, a).Delay
}

// Cut makes silence between two hosts, both ways: packets vanish and nothing is refused. Routes stay.
func (in *Internet) Cut(a, b string) {
	in.CutOneWay(a, b)
	in.CutOneWay(b, a)
}

// CutOneWay makes silence from one host to another.
func (in *Internet) CutOneWay(from, to string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.link(from, to).cut = true
}

// CutStreams makes silence between two hosts for streams alone, both ways: as something between them does that has forgotten them, or lets only UDP pass.
func (in *Internet) CutStreams(a, b string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.link(a, b).noStreams = true
	in.link(b, a).noStreams = true
}

// Heal takes back Cut, CutOneWay and CutStreams between two hosts.
func (in *Internet) Heal(a, b string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, l := range []*link{in.link(a, b), in.link(b, a)} {
		l.cut, l.noStreams = false, false
	}
	in.resume()
}

// CutOff makes silence between a host and all others, those added later too. It still reaches itself.
func (in *Internet) CutOff(name string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.host(name).cutOff = true
}

// Rejoin takes back CutOff.
func (in *Internet) Rejoin(name string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.host(name).cutOff = false
	in.resume()
}

// resume lets the streams whose way is open again go on.
func (in *Internet) resume() {
	for _, h := range in.hosts {
		for s := range h.streams {
			s.out.resume()
		}
	}
}

func (in *Internet) host(name string) *Host {
	h := in.named[name]
	if h == nil {
		panic(fmt.Sprintf("memnet: there is no host %q", name))
	}
	return h
}

func (in *Internet) link(from, to string) *link { return in.host(from).link(in.host(to)) }

// A link is the way from one host to another.
type link struct {
	from, to *Host
	base     time.Duration // what the places give
	set      Path
	slow     time.Duration
	cut      bool

	noStreams bool          // of streams, nothing passes
	free      time.Duration // when the last packet has left, on a link with a rate
}

func (h *Host) link(to *Host) *link {
	l := h.links[to]
	if l == nil {
		l = &link{from: h, to: to, base: max(h.place.RoundTrip(to.place)/2, Floor)}
		if h == to {
			l.base = Loopback
		}
		h.links[to] = l
	}
	return l
}

func (l *link) delay() time.Duration {
	if l.set.Delay > 0 {
		return l.set.Delay
	}
	return l.base
}

// open says whether packets pass now.
func (l *link) open() bool {
	if l.from.crashed || l.to.crashed {
		return false
	}
	return l.from == l.to || !l.cut && !l.from.cutOff && !l.to.cutOff
}

// streams says whether what streams send passes now.
func (l *link) streams() bool { return l.open() && !l.noStreams }

func (l *link) mtu() int {
	if l.from == l.to {
		return LoopbackMTU
	}
	return cmp.Or(l.set.MTU, MTU)
}

// queue is how long a packet given to the link now waits before it begins to leave.
func (l *link) queue() time.Duration {
	if l.set.Rate == 0 {
		return 0
	}
	return max(0, l.free-l.from.in.now())
}

// carry takes a packet and returns when it arrives.
func (l *link) carry(bytes int, chance *rand.Rand) time.Duration {
	leaves := l.from.in.now()
	if l.set.Rate > 0 {
		leaves += l.queue() + time.Duration(float64(bytes)*8/float64(l.set.Rate)*float64(time.Second))
		l.free = leaves
	}
	arrives := leaves + l.delay() + l.slow
	if l.set.Jitter > 0 {
		arrives += time.Duration(chance.Int64N(int64(l.set.Jitter) + 1))
	}
	return arrives
}

// loses draws whether at least one of some packets is lost.
func (l *link) loses(packets int, chance *rand.Rand) bool {
	return l.set.Loss > 0 && chance.Float64() >= math.Pow(1-l.set.Loss, float64(packets))
}

// retransmit is how long it takes until what was lost is sent again.
func (l *link) retransmit() time.Duration {
	back := l.to.link(l.from)
	return max(Retransmit, l.delay()+l.slow+back.delay()+back.slow)
}
