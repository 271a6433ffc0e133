package clients

import (
	"cmp"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// MaxNetworks is how many networks a node holds that it has seen Enough of. At the bound the coldest of a few that are drawn leaves.
	MaxNetworks = 65_536
	// maxYoung is how many it holds besides of which it has seen less; the oldest leaves. So a flood of strangers, each seen once, costs
	// no network that is known its place.
	maxYoung = 8192
	// Enough is how many samples a network needs before anybody goes by it.
	Enough = 3
	// drawn is how many of those that are known are looked at for one to leave.
	drawn = 8

	// HalfLife is after how long a sample counts for half. A network with less than half a sample left is forgotten.
	HalfLife  = 24 * time.Hour
	forgotten = 0.5
	// maxWeight is the most samples that are remembered: a network that was seen often and then no more is forgotten after 11 days.
	maxWeight = 1024

	// maxRoundTrip is the longest that is believed.
	maxRoundTrip = 10 * time.Second
	// A sample that is less than what is held takes that half of the way down; one that is more takes it a sixteenth of the way up, and never
	// by more than a sixteenth of itself. So what is held stays near the least that the network's clients have, queues and sleeping
	// radios count for little, and a path that has become longer is known after some dozens of samples.
	down = 2
	up   = 16
)

// Seen is what a node has seen of clients. It is safe for use by many.
type Seen struct {
	mu    sync.Mutex
	known map[Network]int32 // in rows
	rows  []row
	young map[Network]int32 // in ring
	ring  []row             // the network is 0 where none is
	next  int               // in ring: the oldest
	began time.Time

	shards [Shards]shard
	cursor int // the shard that is looked at first

	samples, refused, evicted, told, unsaid atomic.Uint64
}

// row is a network: what was seen of it, and what others were told.
type row struct {
	network  Network
	rtt      float32 // µs
	weight   float32 // samples, as they count at the time of the last
	at       int32   // of the last, in s since it began
	toldRTT  uint32  // in units; 0: it was not told
	toldLog2 uint8
}

// New makes one that has seen nothing.
func New(now time.Time) *Seen {
	return &Seen{known: map[Network]int32{}, young: map[Network]int32{}, began: now}
}

// Observe takes in the round trip of a connection from an address.
func (s *Seen) Observe(addr netip.Addr, rtt time.Duration, now time.Time) {
	n := Of(addr)
	if n == 0 || rtt <= 0 || rtt > maxRoundTrip {
		s.refused.Add(1)
		return
	}
	s.samples.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	at, sample := s.seconds(now), float32(rtt)/float32(time.Microsecond)
	if i, ok := s.known[n]; ok {
		s.rows[i].take(sample, at)
		return
	}
	i, ok := s.young[n]
	if !ok {
		s.admit(row{network: n, rtt: sample, weight: 1, at: at})
		return
	}
	r := &s.ring[i]
	if r.take(sample, at); r.weight > Enough-0.5 { // the first of them has aged by now
		delete(s.young, n)
		s.settle(*r)
		*r = row{}
	}
}

func (s *Seen) seconds(now time.Time) int32 { return int32(now.Sub(s.began) / time.Second) }

// take takes in a sample.
func (r *row) take(sample float32, at int32) {
	if sample < r.rtt {
		r.rtt -= (r.rtt - sample) / down
	} else {
		r.rtt += min(sample-r.rtt, r.rtt) / up
	}
	r.weight, r.at = min(r.counts(at)+1, maxWeight), at
}

// counts is its weight at a time.
func (r *row) counts(at int32) float32 {
	if at <= r.at {
		return r.weight
	}
	return r.weight * float32(math.Exp2(-float64(at-r.at)/HalfLife.Seconds()))
}

// admit makes room for a network that nothing is known of.
func (s *Seen) admit(r row) {
	if len(s.ring) < maxYoung {
		s.ring = append(s.ring, r)
		s.young[r.network] = int32(len(s.ring) - 1)
		return
	}
	old := &s.ring[s.next]
	if old.network != 0 {
		delete(s.young, old.network)
	}
	*old = r
	s.young[r.network] = int32(s.next)
	s.next = (s.next + 1) % maxYoung
}

// settle puts a network among those that are known.
func (s *Seen) settle(r row) {
	if len(s.rows) < MaxNetworks {
		s.rows = append(s.rows, r)
		s.known[r.network] = int32(len(s.rows) - 1)
		return
	}
	coldest := rand.IntN(len(s.rows))
	for range drawn - 1 {
		if i := rand.IntN(len(s.rows)); s.rows[i].counts(r.at) < s.rows[coldest].counts(r.at) {
			coldest = i
		}
	}
	s.evicted.Add(1)
	delete(s.known, s.rows[coldest].network)
	s.rows[coldest] = r
	s.known[r.network] = int32(coldest)
}

// sweep forgets what is too old. It is called with the lock held.
func (s *Seen) sweep(at int32) {
	for i := 0; i < len(s.rows); {
		if s.rows[i].counts(at) >= forgotten {
			i++
			continue
		}
		last := len(s.rows) - 1
		delete(s.known, s.rows[i].network)
		if i != last {
			s.rows[i] = s.rows[last]
			s.known[s.rows[i].network] = int32(i)
		}
		s.rows = s.rows[:last]
	}
}

// Rows are the networks that enough is known of, by network.
func (s *Seen) Rows(now time.Time) []Row {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.seconds(now)
	rows := make([]Row, 0, len(s.rows))
	for i := range s.rows {
		r := &s.rows[i]
		rows = append(rows, Row{r.network, time.Duration(r.rtt * float32(time.Microsecond)), int(r.counts(at) + 0.5)})
	}
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Compare(a.Network, b.Network) })
	return rows
}

// Counters are totals since New, and how many networks are held.
func (s *Seen) Counters() map[string]uint64 {
	s.mu.Lock()
	known, young := len(s.rows), len(s.young)
	s.mu.Unlock()
	return map[string]uint64{
		"clients_networks":          uint64(known),
		"clients_networks_young":    uint64(young),
		"clients_samples_total":     s.samples.Load(),
		"clients_refused_total":     s.refused.Load(),
		"clients_evicted_total":     s.evicted.Load(),
		"clients_told_bytes_total":  s.told.Load(),
		"clients_told_behind_total": s.unsaid.Load(),
	}
}
