package policy

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
)

// walk is the candidates that hold for a client, of which next is always the best that is left. So nothing is drawn or
// compared in vain where the first is healthy.
type walk struct {
	set   *Set
	order []int // by index: those taken, best first, and then those that are left
	at    int   // how many are taken
	draw  stream

	away     []float64 // latency and geoproximity: how far each in order is, in ns or km
	weighted int       // weighted: how many have a weight; they are before the others
	sum      int       // weighted: the weights of those that are left
}

// begin finds the candidates that hold for the client, and how many bits of its network that depends on. It has room
// in order and away, which are empty.
func (s *Set) begin(order []int, away []float64, c *Client, draw stream, t *trace.Trace) (w walk, scope int) {
	all := s.Candidates
	w = walk{set: s, draw: draw}
	switch s.Policy {
	case Weighted:
		w.order, w.weighted, w.sum = byWeight(order, all, t)
	case Latency:
		w.order, w.away, scope = byRoundTrip(order, away, all, c, t)
	case Geoproximity:
		w.order, w.away, scope = byDistance(order, away, all, c, t)
	case Failover:
		w.order = everyone(order, all)
		slices.SortStableFunc(w.order, func(i, j int) int {
			return cmp.Compare(all[i].Failover, all[j].Failover) // PRIMARY, SECONDARY
		})
	case Geolocation:
		w.order, scope = byPlace(order, all, c, t)
	case CIDR:
		w.order, scope = byBlock(order, all, s.Blocks, c, t)
	default:
		w.order = everyone(order, all)
	}
	return w, scope
}

// next takes the best that is left.
func (w *walk) next() (i int, ok bool) {
	if w.at == len(w.order) {
		return 0, false
	}
	k := w.at
	switch w.set.Policy {
	case Weighted:
		k = w.byChance()
	case MultiValue:
		k += w.draw.below(len(w.order) - k)
	case Latency, Geoproximity:
		k = nearest(w.set.Candidates, w.order, w.away, k)
		w.away[w.at], w.away[k] = w.away[k], w.away[w.at]
	}
	w.order[w.at], w.order[k] = w.order[k], w.order[w.at]
	w.at++
	return w.order[w.at-1], true
}

func everyone(order []int, all []Candidate) []int {
	for i := range all {
		order = append(order, i)
	}
	return order
}

// byWeight puts those with a weight before those without: a reserve for when all others are unhealthy, or everyone if
// all have none.
func byWeight(order []int, all []Candidate, t *trace.Trace) (_ []int, weighted, sum int) {
	for i := range all {
		if all[i].Weight > 0 {
			order = append(order, i)
			sum += all[i].Weight
		}
	}
	weighted = len(order)
	for i := range all {
		if all[i].Weight == 0 {
			order = append(order, i)
		}
	}
	if !t.On() {
		return order, weighted, sum
	}
	for _, i := range order[:weighted] {
		t.Add("%s: weight %d of %d", all[i].name(), all[i].Weight, sum)
	}
	for _, i := range order[weighted:] {
		switch weighted {
		case 0:
			t.Add("%s: weight 0 as all others, equal chances", all[i].name())
		default:
			t.Add("%s: weight 0, in reserve", all[i].name())
		}
	}
	return order, weighted, sum
}

// byChance draws one after another, in proportion to the weights of those that are left: so the first healthy
// one comes up with its share of the weights of all healthy ones, which is Route 53's "pick again". Those
// without weight come last, evenly.
func (w *walk) byChance() int {
	if w.at >= w.weighted {
		return w.at + w.draw.below(len(w.order)-w.at)
	}
	at := w.draw.below(w.sum)
	for k := w.at; ; k++ {
		weight := w.set.Candidates[w.order[k]].Weight
		if at -= weight; at < 0 {
			w.sum -= weight
			return k
		}
	}
}

// unknown is farther away than anything.
var unknown = math.Inf(1)

// nearest is the place in the order of the nearest from a place on; of two as near, by region, then identifier.
func nearest(all []Candidate, order []int, away []float64, at int) int {
	best := at
	for k := at + 1; k < len(order); k++ {
		switch a, b := away[k], away[best]; {
		case a > b:
		case a < b:
			best = k
		default:
			x, y := &all[order[k]], &all[order[best]]
			if x.Region < y.Region || x.Region == y.Region && x.ID < y.ID {
				best = k
			}
		}
	}
	return best
}

// byRoundTrip knows the round trip from the client to each region: measured, or else estimated. Regions without a place,
// or all if the client has none, are farthest.
func byRoundTrip(order []int, away []float64, all []Candidate, c *Client, t *trace.Trace) (_ []int, _ []float64, scope int) {
	estimated := false
	for i := range all {
		d, measured := unknown, false
		if c.RoundTrip != nil {
			var rtt time.Duration
			if rtt, measured = c.RoundTrip(all[i].Region); measured {
				d = float64(rtt)
			}
		}
		if !measured {
			estimated = true
			if c.Location != nil && all[i].Location != nil {
				d = float64(c.Location.RoundTrip(all[i].Location))
			}
		}
		order, away = append(order, i), append(away, d)
	}
	if t.On() {
		inOrder(all, order, away, func(i int, away float64) {
			rtt, measured := time.Duration(0), false
			if c.RoundTrip != nil {
				rtt, measured = c.RoundTrip(all[i].Region)
			}
			switch {
			case measured && c.Known != nil:
				t.Add("%s: %s, %v away, %s", all[i].name(), all[i].Region, rtt.Round(time.Millisecond/10), c.Known(all[i].Region))
			case measured:
				t.Add("%s: %s, %v away by measurement", all[i].name(), all[i].Region, rtt.Round(time.Millisecond/10))
			case away == unknown:
				t.Add("%s: %s, nobody knows how far", all[i].name(), all[i].Region)
			default:
				t.Add("%s: %s, about %v away", all[i].name(), all[i].Region, time.Duration(away).Round(time.Millisecond))
			}
		})
	}
	if len(all) < 2 {
		return order, away, 0
	}
	if estimated {
		scope = max(1, c.PlaceBits)
	}
	if c.RoundTrip != nil {
		scope = max(scope, c.RoundTripBits)
	}
	return order, away, scope
}

// byDistance knows how far the client is from each, after its bias. Those without a place, or all if the client has none, are
// farthest.
func byDistance(order []int, away []float64, all []Candidate, c *Client, t *trace.Trace) (_ []int, _ []float64, scope int) {
	for i := range all {
		d := unknown
		if c.Location != nil && all[i].Location != nil {
			d = biased(c.Location.Kilometres(all[i].Location), all[i].Bias)
		}
		order, away = append(order, i), append(away, d)
	}
	if t.On() {
		inOrder(all, order, away, func(i int, away float64) {
			where := cmp.Or(all[i].Region, "at coordinates")
			switch {
			case away == unknown:
				t.Add("%s: %s, bias %+d, nobody knows how far", all[i].name(), where, all[i].Bias)
			default:
				t.Add("%s: %s, %.0f km away, with bias %+d as if %.0f km", all[i].name(), where,
					c.Location.Kilometres(all[i].Location), all[i].Bias, away)
			}
		})
	}
	if len(all) < 2 {
		return order, away, 0
	}
	return order, away, max(1, c.PlaceBits)
}

// biased is a distance as Route 53 counts it: its area is made larger by a bias above 0, smaller by one below.
func biased(distance float64, bias int) float64 {
	if bias < 0 {
		return distance / (1 + float64(bias)/100)
	}
	return distance * (1 - float64(bias)/100)
}

// inOrder puts all in the order of the walk, and tells of each.
func inOrder(all []Candidate, order []int, away []float64, tell func(i int, away float64)) {
	for at := range order {
		k := nearest(all, order, away, at)
		order[at], order[k] = order[k], order[at]
		away[at], away[k] = away[k], away[at]
		tell(order[at], away[at])
	}
}

// byPlace keeps those that hold for the client, the smallest place first.
func byPlace(order []int, all []Candidate, c *Client, t *trace.Trace) (_ []int, scope int) {
	const subdivision, country, continent, elsewhere, nowhere = 0, 1, 2, 3, 4
	size := func(g *spec.GeoLocation) int {
		switch {
		case g.Country == "*":
			return elsewhere
		case g.Country == "" && g.Continent == c.Continent && c.Continent != "":
			return continent
		case g.Country == "" || g.Country != c.Country:
			return nowhere
		case g.Subdivision == "":
			return country
		case g.Subdivision == c.Subdivision:
			return subdivision
		}
		return nowhere
	}
	for s := subdivision; s < nowhere; s++ {
		for i := range all {
			if size(&all[i].GeoLocation) == s {
				order = append(order, i)
			}
		}
	}
	for i := range all {
		if all[i].GeoLocation.Country != "*" {
			scope = max(1, c.PlaceBits)
		}
	}
	told(all, order, t, func(i int) string { return all[i].GeoLocation.String() })
	return order, scope
}

// byBlock keeps those whose blocks the client's network is in, the longest block first, and those for everybody.
func byBlock(order []int, all []Candidate, blocks *Blocks, c *Client, t *trace.Trace) (_ []int, scope int) {
	for b := range blocks.around(c.Network) {
		for i := range all {
			if all[i].Block == b.location && !slices.Contains(order, i) {
				order = append(order, i)
				if t.On() {
					t.Add("%s: the client is in %s", all[i].name(), b.prefix)
				}
			}
		}
	}
	for i := range all {
		if all[i].Block == spec.EveryBlock {
			order = append(order, i)
		}
	}
	told(all, order, t, func(i int) string { return all[i].Block })
	return order, blocks.scope(c.Network)
}

// told tells which candidates hold for the client, and which do not.
func told(all []Candidate, order []int, t *trace.Trace, what func(i int) string) {
	if !t.On() {
		return
	}
	for _, i := range order {
		t.Add("%s: holds for %s", all[i].name(), what(i))
	}
	for i := range all {
		if !slices.Contains(order, i) {
			t.Add("%s: is for %s, not for the client", all[i].name(), what(i))
		}
	}
	if len(order) == 0 {
		t.Add("none holds for the client, and there is no default: no answer")
	}
}

// explain tells which are chosen, and of those that are left, which the walk did not come to, why, and their health. What it
// came to and passed by has been told: it is not healthy.
func (s *Set) explain(chosen, left []int, h Health, t *trace.Trace) {
	for _, i := range chosen {
		t.Add("chosen: %s", s.Candidates[i].name())
	}
	why := [...]string{
		Simple:       "one is enough",
		Weighted:     "another came up",
		Latency:      "farther away",
		Failover:     "the primary is healthy",
		Geolocation:  "a larger place",
		MultiValue:   "eight are enough",
		Geoproximity: "farther away, with its bias",
		CIDR:         "a shorter block",
	}[s.Policy]
	for _, i := range left {
		switch name := s.Candidates[i].name(); {
		case h.Shown == nil:
			t.Add("not %s: %s", name, why)
		case h.Shown(i):
			t.Add("not %s: %s (healthy)", name, why)
		default:
			t.Add("not %s: %s (and not healthy)", name, why)
		}
	}
}

func (c *Candidate) name() string { return cmp.Or(c.ID, "the record") }

// stream is as many random numbers as are needed, all out of one (SplitMix64).
type stream uint64

// below is a number from 0 to n−1, each as likely but for 1 in 2⁶⁴⁄n.
func (s *stream) below(n int) int {
	*s += 0x9e3779b97f4a7c15
	z := uint64(*s)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	high, _ := bits.Mul64(z^z>>31, uint64(n))
	return int(high)
}
