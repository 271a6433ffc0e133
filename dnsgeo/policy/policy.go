// Package policy is how Route 53 chooses among several record sets of one name and type: an order of
// candidates and one walk along it. It is pure: where the client is, what is healthy and which number chance
// has drawn are given to it. It knows no DNS message and no view. It says, too, for how wide a network of clients
// the order is the same (RFC 7871, SCOPE PREFIX-LENGTH).
//
// Unless it is told otherwise (Otherwise) it never comes back empty for want of health: if nothing is healthy, it
// chooses as if everything were. Geolocation and CIDR may find no candidate at all.
package policy

import (
	"net/netip"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
)

// Policy is a routing policy of Route 53.
type Policy uint8

// The routing policies.
const (
	Simple       Policy = iota // one record set
	Weighted                   // by chance, in proportion to the weights
	Latency                    // the region with the least round trip
	Failover                   // the primary, or else the secondary
	Geolocation                // by subdivision, country, continent, default
	MultiValue                 // several healthy ones at once
	Geoproximity               // the nearest, with a bias
	CIDR                       // by blocks of addresses (IP-based)
)

// MaxValues is how many record sets a multivalue answer has at most (Route 53).
const MaxValues = 8

func (p Policy) String() string {
	return [...]string{"simple", "weighted", "latency", "failover", "geolocation", "multivalue", "geoproximity", "CIDR"}[p]
}

// ByClient says whether the choice depends on who the client is.
func (p Policy) ByClient() bool { return p.byPlace() || p == CIDR }

func (p Policy) byPlace() bool { return p == Latency || p == Geolocation || p == Geoproximity }

// Otherwise is what is chosen where nothing is healthy.
type Otherwise uint8

// What may be chosen where nothing is healthy.
const (
	All      Otherwise = iota // as if all were (Route 53)
	None                      // nothing
	LastGood                  // among those that were healthy last
)

// Set is the record sets of one name and type, ready to be chosen among.
type Set struct {
	Policy     Policy
	Otherwise  Otherwise
	Candidates []Candidate
	Blocks     *Blocks // CIDR: the collection's
}

// Candidate is one of the record sets, as far as a policy weighs it.
type Candidate struct {
	ID          string     // its set identifier
	Weight      int        // weighted: 0–255
	Region      string     // latency, geoproximity; "" if it stands at coordinates
	Location    *spec.Site // latency, geoproximity: where that is; nil if nobody knows
	Bias        int        // geoproximity: −99…99
	Failover    string     // failover: spec.Primary or spec.Secondary
	GeoLocation spec.GeoLocation
	Block       string // CIDR: its location in the collection, or spec.EveryBlock
}

// Client is who asks, and where that is held to be.
type Client struct {
	// Network is as much of the client's address as is told: its subnet, or its resolver's whole address. IPv4 is not in
	// IPv6's form. Invalid if nobody is named.
	Network netip.Prefix

	Country     string // ISO 3166-1 alpha-2; "" if not known
	Subdivision string // of the country, as ISO 3166-2 has it after the hyphen; "" if not known
	Continent   string // "" if not known
	// Location is where distances are measured from; nil if nobody knows.
	Location *spec.Site
	// PlaceBits is how many leading bits of the network the place depends on: whoever shares them is held to be there, too.
	PlaceBits int

	// RoundTrip is the round trip from the client to a region, where it was measured; nil: none was. Where it says nothing, the
	// round trip is estimated from the locations.
	RoundTrip func(region string) (rtt time.Duration, ok bool)
	// Known says how RoundTrip knows what it does, for people; nil: by measurement.
	Known func(region string) string
	// RoundTripBits is how many leading bits of the network RoundTrip depends on, of what it does not know as well:
	// 24 of IPv4 and 48 of IPv6 where it is measured by such networks.
	RoundTripBits int
}

// Health is what is observed of candidates, by index.
type Health struct {
	// Healthy says whether one may be chosen. The choice rests on what it said.
	Healthy func(i int) bool
	// Lost is when one that is not healthy was so last; zero if nobody knows. LastGood alone asks; nil knows nothing.
	Lost func(i int) time.Time
	// Shown is Healthy for people, of those that the choice does not rest on: asked only where there is a trace; nil shows nothing.
	Shown func(i int) bool
	// Resorts are what is held back though it is healthy otherwise, for people, and Resort says of a candidate whether it is healthy with all of these taken
	// up to one. They are tried in turn where nothing is healthy, before what the set says for that. The choice rests on what Resort said.
	Resorts []string
	Resort  func(i, upTo int) bool
}

// usual is how many candidates there is room for without an allocation.
const usual = 48

// Choose appends to dst the candidates to answer with, by index: one, or up to MaxValues if the policy is MultiValue.
// It takes the first in the policy's order that are healthy; if none is, those that the first resort makes so; and at last what s.Otherwise says. Random is a number
// drawn evenly from all. Scope is how many leading bits of the client's network the order depends on: with the same
// random number and health, whoever shares them, and tells as many, is answered the same. 0: it depends on no client.
func (s *Set) Choose(dst []int, c *Client, random uint64, h Health, t *trace.Trace) (chosen []int, scope int) {
	if t.On() {
		defer t.In("%s among %d", s.Policy, len(s.Candidates))()
	}
	var order [usual]int
	var away [usual]float64
	w, scope := s.begin(order[:0], away[:0], c, stream(random), t)
	want, before := 1, len(dst)
	if s.Policy == MultiValue {
		want = MaxValues
	}
	for len(dst)-before < want {
		i, ok := w.next()
		if !ok {
			break
		}
		if h.Healthy(i) {
			dst = append(dst, i)
		}
	}
	for n := 0; n < len(h.Resorts) && len(dst) == before; n++ {
		for _, i := range w.order {
			if len(dst)-before < want && h.Resort(i, n) {
				dst = append(dst, i)
			}
		}
		if len(dst) > before {
			t.Add("none is healthy but what %s", h.Resorts[n])
		}
	}
	switch {
	case len(dst) > before || len(w.order) == 0:
	case s.Otherwise == None:
		t.Add("none is healthy: no answer")
	case s.Otherwise == LastGood:
		dst = w.lastGood(dst, want, h, t)
	default:
		t.Add("none is healthy: as if all were")
		dst = append(dst, w.order[:min(want, len(w.order))]...)
	}
	if t.On() {
		s.explain(dst[before:], w.order[w.at:], h, t)
	}
	return dst, scope
}

// First is the first in the policy's order, whatever its health, where chance has no part in it (latency, geolocation, geoproximity), and
// the scope as of Choose. Not ok: there is none.
func (s *Set) First(c *Client) (first, scope int, ok bool) {
	var order [usual]int
	var away [usual]float64
	w, scope := s.begin(order[:0], away[:0], c, 0, nil)
	first, ok = w.next()
	return first, scope, ok
}

// lastGood appends the first in the order of those that fell last; where nobody knows when any did, of all.
func (w *walk) lastGood(dst []int, want int, h Health, t *trace.Trace) []int {
	var last time.Time
	if h.Lost != nil {
		for _, i := range w.order {
			if at := h.Lost(i); at.After(last) {
				last = at
			}
		}
	}
	switch {
	case !t.On():
	case last.IsZero():
		t.Add("none is healthy, and nobody knows which was so last: as if all were")
	default:
		t.Add("none is healthy: those that were until %s", last.UTC().Format(time.RFC3339))
	}
	taken := len(dst)
	for _, i := range w.order {
		if len(dst)-taken == want {
			break
		}
		if last.IsZero() || h.Lost(i).Equal(last) {
			dst = append(dst, i)
		}
	}
	return dst
}
