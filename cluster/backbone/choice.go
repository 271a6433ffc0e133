package backbone

import (
	"cmp"
	"math"
	"slices"
	"sync"
	"time"
)

// What a flow will carry nobody says when it begins. What those before it carried that asked for the same is known.
const (
	// bulkBytes is from how many bytes on a flow is one of many: its time is then what the path carries, not what its round trip is.
	bulkBytes = 4 << 20

	// shiftBytes is what a flow has carried on a stream when it is known to be one of many bytes, and moved to a connection of its own if TCP is the
	// better way. Where it is not it is asked again when it has carried twice as many.
	shiftBytes = bulkBytes

	// recentFlows is how many flows are remembered of each resource, and fewFlows how many there have to be for anything to be expected.
	recentFlows, fewFlows = 8, 3

	// maxRecent bounds the resources that are remembered. One more has one of them forgotten, whichever.
	maxRecent = 1024
)

// asked is what a flow was for.
type asked struct{ service, resource string }

// sizes is what the last flows carried, by what they were for.
type sizes struct {
	mu sync.Mutex
	of map[asked]*recent
}

// recent are the bytes of the last flows for one resource.
type recent struct {
	bytes [recentFlows]uint64
	count int
}

// add takes note of a flow that has ended.
func (s *sizes) add(a asked, bytes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.of[a]
	if r == nil {
		if len(s.of) >= maxRecent {
			for other := range s.of {
				delete(s.of, other)
				break
			}
		}
		r = &recent{}
		s.of[a] = r
	}
	r.bytes[r.count%recentFlows] = bytes
	r.count++
}

// many says that the next flow is expected to be one of many bytes: more than half of the last were.
func (s *sizes) many(a asked) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.of[a]
	return r != nil && r.many()
}

func (r *recent) many() bool {
	known := slices.Clone(r.bytes[:min(r.count, recentFlows)])
	return len(known) >= fewFlows && median(known) >= bulkBytes
}

// median is the one in the middle, of two the lower. It sorts them.
func median[T cmp.Ordered](all []T) T {
	slices.Sort(all)
	return all[(len(all)-1)/2]
}

const (
	// rateMemory is how long it is remembered how fast a flow was, recentRates how many are, and fewRates how many there have to be for them to say
	// anything.
	rateMemory            = 10 * time.Minute
	recentRates, fewRates = 8, 3

	// oneInMany is how often a flow takes the way that is thought to be the slower one: what is not tried is not known.
	oneInMany = 16

	// fasterBy is how much faster TCP has to be for flows to go by it: they are slow for other reasons, too.
	fasterBy = 1.25
)

// rates is how fast the last flows of many bytes were, in bits a second.
type rates struct {
	last [recentRates]struct {
		rate float64
		at   time.Time
	}
	count int
}

func (r *rates) add(rate float64, now time.Time) {
	one := &r.last[r.count%recentRates]
	one.rate, one.at = rate, now
	r.count++
}

// of is their median; 0: too few are known.
func (r *rates) of(now time.Time) float64 {
	var known []float64
	for _, one := range r.last[:min(r.count, recentRates)] {
		if now.Sub(one.at) <= rateMemory {
			known = append(known, one.rate)
		}
	}
	if len(known) < fewRates {
		return 0
	}
	return median(known)
}

// prospect is what is known of the two ways to a peer.
type prospect struct {
	rtt       time.Duration // the least that was seen: what flows of many bytes have queued makes no peer a far one
	bbr       bool          // both ends send by TCP with BBR, or it is not known yet
	quic, tcp float64       // how fast the last flows of many bytes were, bits a second; 0: not known
	turn      uint64        // how many flows of many bytes there were before
	now, most float64       // what came or went by QUIC in the last second, and what did at most in a second of late, by either, bits a second
}

// byTCP says that a flow of many bytes is to have a TCP connection of its own from its beginning. To a neighbour it is the cheaper way with any congestion control: it takes a
// third of what QUIC takes of a core. So nothing measured is asked there. On far paths QUIC is the faster one at first: its window is wide already, and what is lost it is not told of,
// for parity makes that good. TCP has to be measured to be faster there, as it may be where one flow can have more than QUIC's window; and without BBR it never is where packets are lost.
func (p prospect) byTCP() bool {
	if p.rtt < farRTT {
		return true
	}
	if !p.bbr {
		return false
	}
	tcp := p.quic > 0 && p.tcp > fasterBy*p.quic
	if p.turn%oneInMany == oneInMany-1 {
		return !tcp
	}
	return tcp
}

const (
	// supposedGain is how many times as fast as by QUIC a flow is taken to be by TCP as long as nothing is known of it: QUIC may have lost what parity did not make good, and goes on
	// from there by a packet a round trip, or have all of its window on its way. Of a flow that shares its connection with many that says nothing.
	supposedGain = 4

	// firstWindow is what TCP sends first, bytes (RFC 6928), and afterRoundTrips how many round trips pass, beside those in which it doubles that, until it carries what it can: for the move itself, for what was
	// on its way by the stream and goes again, and for what BBR takes to leave its start-up.
	firstWindow     = 10 * 1448
	afterRoundTrips = 3
)

// shifts says that a flow that has carried bytes in a time on a stream is to go on by a TCP connection of its own: of a flow that has come so far as much again is to be expected, and TCP
// has to save more of the time of that than it takes to begin.
func (p prospect) shifts(bytes uint64, took time.Duration) bool {
	if p.rtt < farRTT {
		return true
	}
	if !p.bbr {
		return false
	}
	own := float64(bytes) * 8 / max(took.Seconds(), 1e-3)
	all := max(own, p.now) // one of many flows that share a connection is slower than that
	best := p.tcp
	if best == 0 {
		best = p.most
		if own > all/2 {
			best = max(best, supposedGain*all)
		}
	}
	if best <= fasterBy*all {
		return false
	}
	window := max(best*p.rtt.Seconds()/8, firstWindow)
	begins := time.Duration(float64(p.rtt) * (math.Log2(window/firstWindow) + afterRoundTrips))
	return time.Duration(float64(took)*(1-all/best)) > begins
}

// pace is how fast a flow is on a stream: it is looked at when it has carried shiftBytes there, and each time that it has carried twice as much.
type pace struct {
	next      uint64    // bytes, when it is looked at
	half, mid time.Time // when it had carried half of that, and three quarters
}

// reached takes note of what was carried by now. Where it is to be looked at, it returns that, and in what time all of it would have been carried as fast as the faster of the last two quarters: QUIC stalls for a
// few round trips where it has filled a queue, which says nothing of what follows.
func (p *pace) reached(carried uint64, now time.Time) (bytes uint64, took time.Duration) {
	switch {
	case p.next == 0:
		p.next, p.half = max(shiftBytes, 2*carried), now
	case carried < p.next-p.next/4:
	case p.mid.IsZero():
		p.mid = now
	case carried >= p.next:
		bytes, took = p.next, 4*min(p.mid.Sub(p.half), now.Sub(p.mid))
		p.next, p.half, p.mid = 2*p.next, now, time.Time{}
	}
	return bytes, took
}
