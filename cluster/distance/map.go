package distance

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Where an estimate comes from.
const (
	FromMeasured    = "measured"    // by one of the two, or both
	FromRegion      = "region"      // between others of the two POPs or regions
	FromCoordinates = "coordinates" // of the two
)

const (
	// maxOfPlace is how many nodes of a POP or region are looked at, the first by name, where a pair itself is not measured.
	maxOfPlace = 32
	// maxLegs is how many measurements from each of two nodes are combined with each other.
	maxLegs = 8
)

// Node is what a node says of itself.
type Node struct {
	Name, Region, POP string
	Coordinate        *Coordinate              // nil: not known
	Measured          map[string]time.Duration // its round trips to others, by name; those not above 0 are passed over
}

// Estimate is a likely round trip, and what it comes from: one of the From constants.
type Estimate struct {
	RTT  time.Duration
	From string
}

// Map estimates the round trip between any two of some nodes. It is immutable; a nil Map knows nothing.
type Map struct {
	nodes  map[string]*Node
	places map[place][]*Node // by name, at most maxOfPlace; each node is in its POP and in its region
}

// place is a POP of a region, or all of it if no POP is named.
type place struct{ region, pop string }

// NewMap makes a map of nodes, whose maps must not change from then on; of two with one name the last counts. It is cheap: what
// is measured is looked at when somebody asks.
func NewMap(nodes []Node) *Map {
	m := &Map{nodes: make(map[string]*Node, len(nodes)), places: map[place][]*Node{}}
	for i := range nodes {
		m.nodes[nodes[i].Name] = &nodes[i]
	}
	for _, name := range slices.Sorted(maps.Keys(m.nodes)) {
		n := m.nodes[name]
		for _, p := range n.places() {
			if len(m.places[p]) < maxOfPlace {
				m.places[p] = append(m.places[p], n)
			}
		}
	}
	return m
}

// places are where a node is, the narrowest first.
func (n *Node) places() []place {
	if n.POP == "" {
		return []place{{n.Region, ""}}
	}
	return []place{{n.Region, n.POP}, {n.Region, ""}}
}

// Between estimates the round trip between two nodes, the same whichever is named first. Not ok: nothing is known that says
// anything about it. It costs some 10 µs where the two have not measured each other, at most some 100.
func (m *Map) Between(a, b string) (Estimate, bool) {
	if m == nil {
		return Estimate{}, false
	}
	x, y := m.nodes[min(a, b)], m.nodes[max(a, b)]
	if x == nil || y == nil {
		return Estimate{}, false
	}
	if x == y {
		return Estimate{0, FromMeasured}, true
	}
	if rtt, ok := measured(x, y); ok {
		return Estimate{rtt, FromMeasured}, true
	}
	// First between nodes of the POPs, if both have one, then of the regions.
	from, to := x.places(), y.places()
	for len(from) > 0 && len(to) > 0 {
		if rtt, ok := m.nearby(x, y, from[0], to[0]); ok {
			return Estimate{rtt, FromRegion}, true
		}
		if len(from) >= len(to) {
			from = from[1:]
		} else {
			to = to[1:]
		}
	}
	if x.Coordinate == nil || y.Coordinate == nil {
		return Estimate{}, false
	}
	return Estimate{x.Coordinate.to(*y.Coordinate), FromCoordinates}, true
}

// measured is the lesser of what either measured: what holds up a packet now and then only ever adds.
func measured(a, b *Node) (time.Duration, bool) {
	there, back := a.Measured[b.Name], b.Measured[a.Name]
	switch {
	case there > 0 && back > 0:
		return min(there, back), true
	case there > 0:
		return there, true
	}
	return back, back > 0
}

// leg is what was measured between a node and another.
type leg struct {
	to  *Node
	rtt time.Duration
}

// nearby estimates the round trip between two nodes from what was measured between nodes of two places that they are in: the
// median of all that says something about it.
//
// What x measured to where y is does, and what y did to where x is. But each node has its own way to the net, long or short. So if x
// measured v, who is where y is, and y measured u, who is where x is, and u and v measured each other, then x–v plus u–y, less u–v,
// has the ways of x and y in it and the others' no more; it also has three measurements' whims in it, which is why it is not all that
// counts. If neither x nor y measured anything there, what any others did has to do.
func (m *Map) nearby(x, y *Node, from, to place) (time.Duration, bool) {
	out, back := m.legs(x, y, to), m.legs(y, x, from)
	var found []time.Duration
	for _, v := range out[:min(len(out), maxLegs)] {
		for _, u := range back[:min(len(back), maxLegs)] {
			if between, ok := measured(u.to, v.to); ok && v.rtt+u.rtt > between {
				found = append(found, v.rtt+u.rtt-between)
			}
		}
	}
	for _, l := range append(out, back...) {
		found = append(found, l.rtt)
	}
	if len(found) == 0 {
		for _, u := range m.places[from] {
			for _, v := range m.places[to] {
				if rtt, ok := measured(u, v); ok && u != v {
					found = append(found, rtt)
				}
			}
		}
	}
	if len(found) == 0 {
		return 0, false
	}
	slices.Sort(found)
	return found[len(found)/2], true
}

// legs is what was measured between a node and those of a place, but for one other, by name.
func (m *Map) legs(n, other *Node, p place) []leg {
	var legs []leg
	add := func(to *Node) {
		if to == n || to == other {
			return
		}
		if rtt, ok := measured(n, to); ok {
			legs = append(legs, leg{to, rtt})
		}
	}
	for name := range n.Measured { // to any of the place, however large it is
		if to := m.nodes[name]; to != nil && to.Region == p.region && (p.pop == "" || to.POP == p.pop) {
			add(to)
		}
	}
	for _, to := range m.places[p] { // who measured it
		if n.Measured[to.Name] <= 0 {
			add(to)
		}
	}
	slices.SortFunc(legs, func(a, b leg) int { return cmp.Compare(a.to.Name, b.to.Name) })
	return legs
}
