// Package policy is how Route 53 chooses among several record sets of one name and type: an order of
// candidates and one walk along it. It is pure: where the client is, what is healthy and which number chance
// has drawn are given to it. It knows no DNS message and no view. It never comes back empty for want of
// health: if nothing is healthy, it chooses as if everything were. (Only geolocation may find no candidate.)
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

// Policy is a routing policy of Route 53.
type Policy uint8

// The routing policies.
const (
	Simple      Policy = iota // one record set
	Weighted                  // by chance, in proportion to the weights
	Latency                   // the region with the least estimated round trip
	Failover                  // the primary, or else the secondary
	Geolocation               // by country, continent, default
	MultiValue                // several healthy ones at once
)

// MaxValues is how many record sets a multivalue answer has at most (Route 53).
const MaxValues = 8

func (p Policy) String() string {
	return [...]string{"simple", "weighted", "latency", "failover", "geolocation", "multivalue"}[p]
}

// ByClient says whether the choice depends on where the client is.
func (p Policy) ByClient() bool { return p == Latency || p == Geolocation }

// Candidate is one of the record sets, as far as a policy weighs it.
type Candidate struct {
	ID          string         // its set identifier
	Weight      int            // weighted: 0–255
	Region      string         // latency
	Location    *spec.Location // latency: where the region is; nil if nobody knows
	Failover    string         // failover: spec.Primary or spec.Secondary
	GeoLocation spec.GeoLocation
}

// Client is where the asker is held to be.
type Client struct {
	Country   string // "" if not known
	Continent string // "" if not known
	// Location is where round trips are measured from; nil if nobody knows.
	Location *spec.Location
}

// Choose appends to dst the candidates to answer with, by index: one, or up to MaxValues if the policy is MultiValue.
// It takes the first in the policy's order that are healthy; if none is, the first as if all were.
// Random is a number drawn evenly from all.
func Choose(dst []int, p Policy, all []Candidate, c Client, random uint64, healthy func(i int) bool, t *trace.Trace) []int {
	if t.On() {
		defer t.In("%s among %d", p, len(all))()
	}
	var room [16]int
	order := p.order(room[:0], all, c, random, t)
	want, chosen := 1, len(dst)
	if p == MultiValue {
		want = MaxValues
	}
	for _, i := range order {
		if len(dst)-chosen == want {
			break
		}
		if healthy(i) {
			dst = append(dst, i)
		}
	}
	if len(dst) == chosen && len(order) > 0 {
		t.Add("none is healthy: as if all were")
		dst = append(dst, order[:min(want, len(order))]...)
	}
	if t.On() {
		for _, i := range dst[chosen:] {
			t.Add("chosen: %s", all[i].name())
		}
	}
	return dst
}

// order fills dst, which is empty, with the candidates that may answer, best first.
func (p Policy) order(dst []int, all []Candidate, c Client, random uint64, t *trace.Trace) []int {
	switch p {
	case Weighted:
		return byWeight(dst, all, random, t)
	case Latency:
		return byLatency(dst, all, c, t)
	case Failover:
		return byRole(dst, all)
	case Geolocation:
		return byPlace(dst, all, c, t)
	case MultiValue:
		return shuffle(everyone(dst, all), chance(random))
	default:
		return everyone(dst, all)
	}
}

// byWeight draws one after another, in proportion to the weights of those that are left: so the first healthy
// one comes up with its share of the weights of all healthy ones, which is Route 53's "pick again". Those
// without weight come last, evenly: a reserve for when all others are unhealthy, or everyone if all have none.
func byWeight(dst []int, all []Candidate, random uint64, t *trace.Trace) []int {
	draw := chance(random)
	sum := 0
	for i, c := range all {
		if c.Weight > 0 {
			dst = append(dst, i)
			sum += c.Weight
		}
	}
	for left, rest := dst, sum; len(left) > 1; left = left[1:] {
		at := int(draw.below(uint64(rest)))
		for k, i := range left {
			if at -= all[i].Weight; at < 0 {
				left[0], left[k] = left[k], left[0]
				break
			}
		}
		rest -= all[left[0]].Weight
	}
	weighted := len(dst)
	for i, c := range all {
		if c.Weight == 0 {
			dst = append(dst, i)
		}
	}
	shuffle(dst[weighted:], draw)
	if t.On() {
		for _, i := range dst[:weighted] {
			t.Add("%s: weight %d of %d", all[i].name(), all[i].Weight, sum)
		}
		for _, i := range dst[weighted:] {
			switch weighted {
			case 0:
				t.Add("%s: weight 0 as all others, equal chances", all[i].name())
			default:
				t.Add("%s: weight 0, in reserve", all[i].name())
			}
		}
	}
	return dst
}

// byLatency orders by the estimated round trip from the client to the region; regions without a place,
// or all if the client has none, come last, by name.
func byLatency(dst []int, all []Candidate, c Client, t *trace.Trace) []int {
	const unknown = time.Duration(math.MaxInt64)
	type region struct {
		i    int
		away time.Duration
	}
	var room [16]region
	regions := room[:0]
	for i := range all {
		r := region{i, unknown}
		if c.Location != nil && all[i].Location != nil {
			r.away = c.Location.RoundTrip(*all[i].Location)
		}
		regions = append(regions, r)
	}
	slices.SortFunc(regions, func(a, b region) int {
		return cmp.Or(cmp.Compare(a.away, b.away), cmp.Compare(all[a.i].Region, all[b.i].Region))
	})
	for _, r := range regions {
		dst = append(dst, r.i)
		switch {
		case !t.On():
		case r.away == unknown:
			t.Add("%s: %s, nobody knows how far", all[r.i].name(), all[r.i].Region)
		default:
			t.Add("%s: %s, about %v away", all[r.i].name(), all[r.i].Region, r.away.Round(time.Millisecond))
		}
	}
	return dst
}

// byRole puts the primary before the secondary.
func byRole(dst []int, all []Candidate) []int {
	dst = everyone(dst, all)
	slices.SortStableFunc(dst, func(i, j int) int {
		return cmp.Compare(all[i].Failover, all[j].Failover) // PRIMARY, SECONDARY
	})
	return dst
}

// byPlace keeps those that hold for the client, the smallest place first.
func byPlace(dst []int, all []Candidate, c Client, t *trace.Trace) []int {
	for _, holds := range []func(spec.GeoLocation) bool{
		func(g spec.GeoLocation) bool { return c.Country != "" && g.Country == c.Country },
		func(g spec.GeoLocation) bool { return c.Continent != "" && g.Continent == c.Continent },
		func(g spec.GeoLocation) bool { return g.Country == "*" },
	} {
		for i := range all {
			if holds(all[i].GeoLocation) {
				dst = append(dst, i)
			}
		}
	}
	if t.On() {
		for _, i := range dst {
			t.Add("%s: holds for %s", all[i].name(), cmp.Or(all[i].GeoLocation.Country, all[i].GeoLocation.Continent))
		}
		if len(dst) == 0 {
			t.Add("none holds for the client, and there is no default: no answer")
		}
	}
	return dst
}

func everyone(dst []int, all []Candidate) []int {
	for i := range all {
		dst = append(dst, i)
	}
	return dst
}

func (c Candidate) name() string { return cmp.Or(c.ID, "the record") }

func shuffle(order []int, draw *stream) []int {
	for n := len(order); n > 1; n-- {
		k := draw.below(uint64(n))
		order[n-1], order[k] = order[k], order[n-1]
	}
	return order
}

// stream is as many random numbers as are needed, all out of one (SplitMix64).
type stream uint64

func chance(random uint64) *stream { return (*stream)(&random) }

// below is a number from 0 to n−1, each as likely but for 1 in 2⁶⁴⁄n.
func (s *stream) below(n uint64) uint64 {
	*s += 0x9e3779b97f4a7c15
	z := uint64(*s)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	high, _ := bits.Mul64(z^z>>31, n)
	return high
}
