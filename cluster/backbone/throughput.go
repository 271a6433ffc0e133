package backbone

import (
	"net"
	"time"
)

// What a path can carry nobody knows until somebody needs it. What it has carried at best is known: the bytes that have arrived in a second, the most of them in peakMemory, as BBR
// estimates a bottleneck. Where nobody sent more than little it says little: it is shown, and tells of a flow whether it is slow for that path (prospect.shifts), but no path is chosen by it.
const (
	// peakMemory is how long a second with much is remembered, in peakParts.
	peakMemory = 10 * time.Minute
	peakParts  = 10
)

// peak is the most of what was measured of late.
type peak struct {
	most [peakParts]float64 // of each part of peakMemory; a ring
	last int64              // the part in which something was added last
}

func (p *peak) add(rate float64, now time.Time) {
	part := p.turn(now)
	p.most[part%peakParts] = max(p.most[part%peakParts], rate)
}

// turn forgets what is too old.
func (p *peak) turn(now time.Time) (part int64) {
	part = now.UnixNano() / int64(peakMemory/peakParts)
	for p.last = max(p.last, part-peakParts); p.last < part; {
		p.last++
		p.most[p.last%peakParts] = 0
	}
	return p.last
}

// of is the most of late; 0: nothing is known.
func (p *peak) of(now time.Time) (most float64) {
	p.turn(now)
	for _, rate := range p.most {
		most = max(most, rate)
	}
	return most
}

// acked is how many bytes the other end of a TCP connection has acknowledged, as far as that is known.
func acked(c net.Conn) uint64 {
	if s, ok := c.(interface{ Acked() uint64 }); ok {
		return s.Acked()
	}
	return kernelAcked(c)
}

// carried is how many bytes have arrived at each peer by TCP since it was asked last. It is for one goroutine.
func (k *bulk) carried() map[string]uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	sum := map[string]uint64{}
	for c, of := range k.all {
		if now := acked(below(c.conn)); now > c.acked {
			sum[of.peer] += now - c.acked
			c.acked = now
		}
	}
	return sum
}

// rateTCP takes note of what was carried by TCP in the time since it was called last.
func (b *Backbone) rateTCP(elapsed time.Duration) {
	sum, now := b.bulk.carried(), time.Now()
	for node, l := range *b.links.Load() {
		l.mu.Lock()
		if bytes := sum[node]; bytes > 0 && elapsed >= measureInterval/2 {
			l.carriedTCP.add(float64(bytes)*8/elapsed.Seconds(), now)
		}
		l.mu.Unlock()
	}
}
