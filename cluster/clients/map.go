package clients

import (
	"cmp"
	"slices"
	"sort"
	"time"
)

// maxPOPs bounds the POPs of a map, of which the round trips between any two are asked; what others see is not used.
const maxPOPs = 256

// POP names a POP.
type POP struct{ Region, Name string }

// Node is a node and what it has seen, by network.
type Node struct {
	POP
	Rows []Row
}

// Map is what all nodes have seen, by network and POP, and how far POPs are from each other. It is immutable; a nil Map knows nothing.
type Map struct {
	pops     []POP
	networks []Network
	from     []uint32 // of each network, where its rows begin; and the end
	rows     []seen
	between  []uint32 // µs, by two POPs; 0: not known
}

// seen is what a POP has seen of a network.
type seen struct {
	rtt     uint32 // µs
	pop     uint16
	samples uint16
}

// NewMap makes a map of nodes. Between is the round trip between two POPs. What several nodes of a POP saw of a network is joined
// by their samples. A map of nodes that have seen nothing is nil.
func NewMap(nodes []Node, between func(a, b POP) (time.Duration, bool)) *Map {
	m := &Map{}
	total := 0
	for _, n := range nodes {
		m.pops = append(m.pops, n.POP)
		total += len(n.Rows)
	}
	if total == 0 {
		return nil
	}
	slices.SortFunc(m.pops, func(a, b POP) int { return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Name, b.Name)) })
	m.pops = slices.Compact(m.pops)
	m.pops = m.pops[:min(len(m.pops), maxPOPs)]
	m.join(nodes, total)
	n := len(m.pops)
	m.between = make([]uint32, n*n)
	for a := range n {
		for b := range a {
			if rtt, ok := between(m.pops[a], m.pops[b]); ok && rtt > 0 && rtt <= maxRoundTrip {
				us := max(1, uint32(rtt/time.Microsecond))
				m.between[a*n+b], m.between[b*n+a] = us, us
			}
		}
	}
	return m
}

// join puts the rows of all nodes in order.
func (m *Map) join(nodes []Node, total int) {
	type from struct {
		network Network
		seen
	}
	all := make([]from, 0, total)
	for _, n := range nodes {
		pop := m.Index(n.Region, n.Name)
		if pop < 0 {
			continue
		}
		for _, r := range n.Rows {
			all = append(all, from{r.Network, seen{uint32(r.RTT / time.Microsecond), uint16(pop), uint16(min(r.Samples, 1<<15))}})
		}
	}
	slices.SortFunc(all, func(a, b from) int {
		return cmp.Or(cmp.Compare(a.network, b.network), cmp.Compare(a.pop, b.pop), cmp.Compare(a.rtt, b.rtt), cmp.Compare(a.samples, b.samples))
	})
	m.rows = make([]seen, 0, len(all))
	for i := 0; i < len(all); {
		if i == 0 || all[i].network != all[i-1].network {
			m.networks, m.from = append(m.networks, all[i].network), append(m.from, uint32(len(m.rows)))
		}
		first, weighed, samples := all[i], uint64(0), uint64(0)
		for ; i < len(all) && all[i].network == first.network && all[i].pop == first.pop; i++ {
			weighed += uint64(all[i].rtt) * uint64(max(1, all[i].samples))
			samples += uint64(max(1, all[i].samples))
		}
		m.rows = append(m.rows, seen{uint32(weighed / samples), first.pop, uint16(min(samples, 1<<16-1))})
	}
	m.from = append(m.from, uint32(len(m.rows)))
}

// Index is the number of a POP in the map; −1: it is not in it.
func (m *Map) Index(region, name string) int {
	if m == nil {
		return -1
	}
	i, ok := slices.BinarySearchFunc(m.pops, POP{region, name}, func(p, of POP) int {
		return cmp.Or(cmp.Compare(p.Region, of.Region), cmp.Compare(p.Name, of.Name))
	})
	if !ok {
		return -1
	}
	return i
}

// Of returns the first and the last POP of a region, by number, and one more; none: the same twice.
func (m *Map) Of(region string) (begin, end int) {
	if m == nil {
		return 0, 0
	}
	begin = sort.Search(len(m.pops), func(i int) bool { return m.pops[i].Region >= region })
	for end = begin; end < len(m.pops) && m.pops[end].Region == region; end++ {
	}
	return begin, end
}

// Len is how many networks the map knows.
func (m *Map) Len() int {
	if m == nil {
		return 0
	}
	return len(m.networks)
}

// Client is what is known of one network.
type Client struct {
	m    *Map
	rows []seen
	// Bits is how many leading bits of its addresses this depends on: who shares them is known as well, or as little. 0: all are.
	Bits int
}

// Find returns what is known of the network of an address; with none (0), of one whose address is told by less bits than a
// network has: v4 says of which family.
func (m *Map) Find(n Network, v4 bool) Client {
	if m == nil {
		return Client{}
	}
	if n == 0 {
		return Client{m: m, Bits: width(v4)}
	}
	i, ok := slices.BinarySearch(m.networks, n)
	if ok {
		return Client{m, m.rows[m.from[i]:m.from[i+1]], width(v4)}
	}
	// As wide as no network that is known is in.
	bits := 0
	if i > 0 {
		bits = max(bits, n.common(m.networks[i-1])+1)
	}
	if i < len(m.networks) {
		bits = max(bits, n.common(m.networks[i])+1)
	}
	return Client{m: m, Bits: bits}
}

// Known says whether any POP has seen the network.
func (c *Client) Known() bool { return len(c.rows) > 0 }

// How a round trip is known.
type How uint8

// The ways of knowing.
const (
	Unknown   How = iota
	Estimated     // from where the client and the POP are held to be
	Joined        // from what another POP saw, and how far it is from there
	Measured      // the POP saw it
)

// Away is how far a client is from a POP.
type Away struct {
	RTT time.Duration
	How How
	// Least is what it cannot be less than; of a measured one it is RTT.
	Least time.Duration
	// Samples are those that it rests on; of a joined one, those of the POP that it is Over.
	Samples int
	Over    int // the POP, by number, whose bound holds; −1: none does
}

// From says how far the client is from a POP, by number, where it is estimated to be so far, and cannot be nearer than light takes
// (Unplaced: nobody knows).
//
// What the POP saw itself holds, but for light. What others saw bounds it: the client can go to another POP and on from there, so it is no
// farther than both together; and the other POP cannot be farther from this one than over the client, so it is no nearer
// than what is between the POPs is more than the client's way to the other. Real paths break this, the first where a
// provider takes a detour to this POP alone. So it is what is gone by only as long as nobody has tried.
func (c *Client) From(pop int, estimated, light time.Duration) Away {
	away := Away{RTT: estimated, Least: max(light, 0), How: Estimated, Over: -1}
	if estimated == Unplaced {
		away.How = Unknown
	}
	if pop < 0 {
		return away
	}
	const none = ^uint32(0)
	least, most, lower, upper := uint32(0), none, -1, -1
	for i := range c.rows {
		r := &c.rows[i]
		if int(r.pop) == pop {
			rtt := max(time.Duration(r.rtt)*time.Microsecond, light)
			return Away{RTT: rtt, How: Measured, Least: rtt, Samples: int(r.samples), Over: pop}
		}
		d := c.m.between[pop*len(c.m.pops)+int(r.pop)]
		if d == 0 {
			continue
		}
		if d+r.rtt < most {
			most, upper = d+r.rtt, i
		}
		if d > r.rtt && d-r.rtt > least {
			least, lower = d-r.rtt, i
		}
	}
	if upper < 0 {
		return away
	}
	away.How = Joined
	above := time.Duration(most) * time.Microsecond
	if estimated == Unplaced || above < away.RTT {
		away.RTT = above
		away.over(c.rows, upper)
	}
	if below := time.Duration(least) * time.Microsecond; lower >= 0 {
		away.Least = max(away.Least, below)
		if below > away.RTT {
			away.RTT = below
			away.over(c.rows, lower)
		}
	}
	away.RTT = max(away.RTT, light)
	return away
}

func (a *Away) over(rows []seen, i int) { a.Over, a.Samples = int(rows[i].pop), int(rows[i].samples) }

// Unplaced is in the place of an estimate and of light where nobody knows the places.
const Unplaced = time.Duration(-1)

// POP is a POP by number.
func (m *Map) POP(i int) POP { return m.pops[i] }

// POPs is how many POPs the map knows.
func (m *Map) POPs() int {
	if m == nil {
		return 0
	}
	return len(m.pops)
}
