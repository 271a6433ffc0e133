package policy

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/dnsgeo/geo"
)

// reference is Route 53's guide, row by row, slow and obvious: the candidates in tiers. The first tier with a healthy one
// answers by one of its healthy ones, each of which may come up.
func reference(s *Set, blocks map[string][]netip.Prefix, c *Client) (tiers [][]int) {
	those := func(is func(Candidate) bool) (found []int) {
		for i, candidate := range s.Candidates {
			if is(candidate) {
				found = append(found, i)
			}
		}
		return found
	}
	nearestFirst := func(away func(Candidate) (float64, bool)) {
		rest := those(func(Candidate) bool { return true })
		slices.SortFunc(rest, func(i, j int) int {
			x, y := s.Candidates[i], s.Candidates[j]
			a, known := away(x)
			b, too := away(y)
			switch {
			case known && too && a != b:
				return cmp.Compare(a, b)
			case known != too && known:
				return -1
			case known != too:
				return 1
			}
			return cmp.Or(cmp.Compare(x.Region, y.Region), cmp.Compare(x.ID, y.ID))
		})
		for _, i := range rest {
			tiers = append(tiers, []int{i})
		}
	}
	switch s.Policy {
	case Weighted:
		tiers = [][]int{
			those(func(x Candidate) bool { return x.Weight > 0 }),
			those(func(x Candidate) bool { return x.Weight == 0 }),
		}
	case Failover:
		tiers = [][]int{
			those(func(x Candidate) bool { return x.Failover == spec.Primary }),
			those(func(x Candidate) bool { return x.Failover == spec.Secondary }),
		}
	case Latency:
		nearestFirst(func(x Candidate) (float64, bool) {
			if c.RoundTrip != nil {
				if rtt, ok := c.RoundTrip(x.Region); ok {
					return float64(rtt), true
				}
			}
			if c.Location == nil || x.Location == nil {
				return 0, false
			}
			return float64(c.Location.RoundTrip(x.Location)), true
		})
	case Geoproximity:
		nearestFirst(func(x Candidate) (float64, bool) {
			if c.Location == nil || x.Location == nil {
				return 0, false
			}
			d, b := c.Location.Kilometres(x.Location), float64(x.Bias)
			if x.Bias > 0 {
				return d * (1 - b/100), true
			}
			return d / (1 + b/100), true
		})
	case Geolocation:
		tiers = [][]int{
			those(func(x Candidate) bool {
				g := x.GeoLocation
				return g.Subdivision != "" && g.Country == c.Country && g.Subdivision == c.Subdivision
			}),
			those(func(x Candidate) bool {
				return x.GeoLocation.Subdivision == "" && x.GeoLocation.Country == c.Country && c.Country != ""
			}),
			those(func(x Candidate) bool { return x.GeoLocation.Continent == c.Continent && c.Continent != "" }),
			those(func(x Candidate) bool { return x.GeoLocation.Country == "*" }),
		}
	case CIDR:
		for length := 128; length >= 0; length-- {
			tiers = append(tiers, those(func(x Candidate) bool {
				longest := -1
				for _, b := range blocks[x.Block] {
					if c.Network.IsValid() && b.Bits() <= c.Network.Bits() && b.Contains(c.Network.Addr()) {
						longest = max(longest, b.Bits())
					}
				}
				return longest == length
			}))
		}
		tiers = append(tiers, those(func(x Candidate) bool { return x.Block == "*" }))
	default:
		tiers = [][]int{those(func(Candidate) bool { return true })}
	}
	return slices.DeleteFunc(tiers, func(tier []int) bool { return len(tier) == 0 })
}

// allowed is what may be chosen of the tiers, and how many at once.
func allowed(s *Set, tiers [][]int, healthy func(int) bool, lost func(int) time.Time) (from []int, atOnce int) {
	first := func(is func(int) bool) []int {
		for _, tier := range tiers {
			if found := slices.DeleteFunc(slices.Clone(tier), func(i int) bool { return !is(i) }); len(found) > 0 {
				return found
			}
		}
		return nil
	}
	from = first(healthy)
	if len(from) == 0 {
		switch s.Otherwise {
		case All:
			from = first(func(int) bool { return true })
		case LastGood:
			latest := time.Time{}
			for _, tier := range tiers {
				for _, i := range tier {
					if lost(i).After(latest) {
						latest = lost(i)
					}
				}
			}
			from = first(func(i int) bool { return lost(i).Equal(latest) })
		}
	}
	if s.Policy == MultiValue {
		return from, min(len(from), 8)
	}
	return from, min(len(from), 1)
}

// randomWorld draws things that meet often.
type randomWorld struct {
	*rand.Rand
	blocks map[string][]netip.Prefix
	table  *Blocks
	places *geo.DB
}

func (r *randomWorld) pick(words ...string) string { return words[r.IntN(len(words))] }

func (r *randomWorld) location() *spec.Site {
	if r.IntN(6) == 0 {
		return nil
	}
	return at(float64(r.IntN(7)*25-75), float64(r.IntN(7)*50-150))
}

// prefix is a network in 10.0.0.0/8 or 2001:db8::/32 whose bits are mostly zeros, so that many lie within each other.
func (r *randomWorld) prefix(least, most int) netip.Prefix {
	var b [16]byte
	bits := least + r.IntN(most-least+1)
	if r.IntN(3) == 0 {
		copy(b[:], []byte{0x20, 0x01, 0x0d, 0xb8, byte(r.IntN(2)), byte(r.IntN(2)) << 7, byte(r.IntN(3))})
		return netip.PrefixFrom(netip.AddrFrom16(b), min(2*bits, 128)).Masked()
	}
	copy(b[:], []byte{10, byte(r.IntN(4)), byte(r.IntN(2))<<7 | byte(r.IntN(3)), byte(r.IntN(256))})
	return netip.PrefixFrom(netip.AddrFrom4([4]byte(b[:4])), bits).Masked()
}

func newRandomWorld(t *testing.T, seed uint64) *randomWorld {
	r := &randomWorld{Rand: rand.New(rand.NewPCG(seed, 7)), blocks: map[string][]netip.Prefix{}}
	c := new(spec.CidrCollection)
	taken := map[netip.Prefix]bool{}
	for _, name := range []string{"a", "b", "c", "d"} {
		for range r.IntN(12) {
			if p := r.prefix(7, 24); !taken[p] {
				r.blocks[name], taken[p] = append(r.blocks[name], p), true
			}
		}
		c.Locations = append(c.Locations, spec.CidrLocation{LocationName: name, CidrList: r.blocks[name]})
	}
	r.table = NewBlocks(c)
	var overrides []geo.Override
	for range r.IntN(12) {
		o := geo.Override{Prefix: r.prefix(7, 30), Country: r.pick("KR", "US", "DE", "UA")}
		if l := r.location(); l != nil {
			o.Location = &l.Location
		}
		if r.IntN(4) == 0 {
			o.Country = ""
		}
		overrides = append(overrides, o)
	}
	var err error
	if r.places, err = geo.Default().With(overrides...); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *randomWorld) set() *Set {
	s := &Set{Policy: Policy(1 + r.IntN(7)), Otherwise: Otherwise(r.IntN(3)), Blocks: r.table}
	roles := []string{spec.Primary, spec.Secondary}
	regions := r.Perm(8)
	of := 1 + r.IntN(8)
	switch s.Policy {
	case Failover:
		of = 1 + r.IntN(2)
		r.Shuffle(2, func(i, j int) { roles[i], roles[j] = roles[j], roles[i] })
	case MultiValue, Weighted:
		of = 1 + r.IntN(60) // more than there is usually room for
	}
	places := []spec.GeoLocation{
		{Country: "*"}, {Country: "KR"}, {Country: "US"}, {Country: "US", Subdivision: "CA"}, {Country: "DE", Subdivision: "CA"},
		{Continent: "AS"}, {Continent: "EU"}, {Continent: "NA"},
	}
	r.Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
	blocks := []string{"*", "a", "b", "c", "none"}
	r.Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
	for i := range of {
		s.Candidates = append(s.Candidates, Candidate{
			ID: fmt.Sprint(i), Weight: max(0, r.IntN(8)-3), Region: fmt.Sprint("r", regions[i%8]), Location: r.location(), Bias: r.IntN(199) - 99,
			Failover: roles[i%2], GeoLocation: places[i%len(places)], Block: blocks[i%len(blocks)],
		})
	}
	if s.Policy == CIDR {
		s.Candidates = s.Candidates[:min(of, len(blocks))]
	}
	return s
}

// client is who asks from a network: all that is known follows from that.
func (r *randomWorld) client(network netip.Prefix) *Client {
	place := r.places.Lookup(network.Addr())
	c := &Client{
		Network: network, Country: place.Country, Continent: place.Continent, PlaceBits: r.places.Bits(network.Addr()),
		Location: at(1, 1), RoundTripBits: 24,
	}
	if place.OK {
		c.Location = place.Location.Site()
	}
	if place.Location.Latitude > 0 {
		c.Subdivision = "CA"
	}
	if network.Addr().Is6() {
		c.RoundTripBits = 48
	}
	measured, _ := network.Addr().Prefix(min(c.RoundTripBits, network.Bits()))
	b := measured.Addr().As16()
	if b[13]%2 == 1 || b[14] == 1 || b[5] > 0 {
		c.RoundTrip = func(region string) (time.Duration, bool) {
			n := int(region[1]) + int(b[14])*3 + int(b[13])
			return time.Duration(n%5) * 40 * time.Millisecond, n%3 > 0
		}
	} else {
		c.RoundTrip = func(string) (time.Duration, bool) { return 0, false }
	}
	if r.places.Bits(network.Addr())%5 == 0 {
		c.RoundTrip, c.RoundTripBits = nil, 0 // nothing is measured there at all
	}
	return c
}

func (r *randomWorld) health() Health {
	bad, lost := r.Uint64(), r.Uint64()
	switch r.IntN(4) {
	case 0:
		bad = ^uint64(0)
	case 1:
		bad &= r.Uint64()
	case 2:
		bad |= r.Uint64()
	}
	return Health{
		Healthy: func(i int) bool { return bad>>(i%64)&1 == 0 },
		Lost: func(i int) time.Time {
			if n := lost >> (i % 60) & 7; n > 2 {
				return time.Unix(int64(n), 0)
			}
			return time.Time{}
		},
	}
}

func TestWhatIsChosenIsWhatTheGuideSays(t *testing.T) {
	const worlds, questions = 40, 60
	came := map[Policy]int{}
	for seed := range uint64(worlds) {
		r := newRandomWorld(t, seed)
		for q := range questions {
			s, c, h, random := r.set(), r.client(r.prefix(7, 32)), r.health(), r.Uint64()
			from, atOnce := allowed(s, reference(s, r.blocks, c), h.Healthy, h.Lost)
			got, _ := s.Choose(nil, c, random, h, nil)
			sorted := slices.Sorted(slices.Values(got))
			if len(got) != atOnce || len(slices.Compact(sorted)) != atOnce || slices.ContainsFunc(got, func(i int) bool { return !slices.Contains(from, i) }) {
				tr := new(trace.Trace)
				s.Choose(nil, c, random, h, tr)
				t.Fatalf("world %d, question %d: %s chose %v, want %d of %v, for %v\n%+v\n%s", seed, q, s.Policy, got, atOnce, from, c.Network, s.Candidates, tr)
			}
			if len(got) > 0 {
				came[s.Policy]++
			}
		}
	}
	for p := Weighted; p <= CIDR; p++ {
		if came[p] < worlds*questions/20 {
			t.Errorf("%s came up %d times only", p, came[p])
		}
	}
}

func TestTheFirstIsWhatIsChosenWhereAllAreHealthy(t *testing.T) {
	came := 0
	for seed := range uint64(40) {
		r := newRandomWorld(t, seed)
		for range 100 {
			s, c := r.set(), r.client(r.prefix(7, 32))
			if s.Policy != Latency && s.Policy != Geolocation && s.Policy != Geoproximity {
				continue
			}
			want, scope := s.Choose(nil, c, r.Uint64(), allHealthy, nil)
			first, of, ok := s.First(c)
			if of != scope || ok != (len(want) > 0) || ok && first != want[0] {
				t.Fatalf("%s: the first is %d, %d, %v; chosen is %v, %d", s.Policy, first, of, ok, want, scope)
			}
			came++
		}
	}
	if came < 500 {
		t.Errorf("%d came up only", came)
	}
}

// Two clients in one scope are given the same by the same chance, in any health.
func TestNoScopeIsWiderThanWhatTheAnswerDependedOn(t *testing.T) {
	const worlds, questions, others = 50, 40, 8
	told, differ := map[Policy]int{}, map[Policy]int{}
	for seed := range uint64(worlds) {
		r := newRandomWorld(t, seed)
		for range questions {
			s, network := r.set(), r.prefix(20, 32)
			h, random := r.health(), r.Uint64()
			want, scope := s.Choose(nil, r.client(network), random, h, nil)
			if scope < 0 || scope > network.Addr().BitLen() || (scope > 0) != s.Policy.ByClient() && s.Policy != Geolocation && len(s.Candidates) > 1 {
				t.Fatalf("%s: scope %d", s.Policy, scope)
			}
			if scope > network.Bits() {
				continue // it tells less than what the answer depends on
			}
			within, _ := network.Addr().Prefix(scope)
			for range others {
				other := r.prefix(20, 32)
				if r.IntN(2) == 0 {
					other = r.neighbour(network)
				}
				if other.Addr().Is4() != network.Addr().Is4() || other.Bits() < scope {
					continue
				}
				got, as := s.Choose(nil, r.client(other), random, h, nil)
				if !within.Contains(other.Addr()) {
					if !slices.Equal(got, want) {
						differ[s.Policy]++
					}
					continue
				}
				told[s.Policy]++
				if !slices.Equal(got, want) || as != scope && s.Policy != Latency {
					t.Fatalf("world %d: %s gives %v to %v, scope %d, but %v to %v, scope %d\n%+v", seed, s.Policy, want, network, scope, got, other, as, s.Candidates)
				}
			}
		}
	}
	for _, p := range []Policy{Latency, Geolocation, Geoproximity, CIDR} {
		if told[p] < 100 || differ[p] < 20 {
			t.Errorf("%s: %d within a scope, %d beyond it that differ: too few to show anything", p, told[p], differ[p])
		}
	}
}

// neighbour is a network that differs from another in few of its last bits.
func (r *randomWorld) neighbour(of netip.Prefix) netip.Prefix {
	b := of.Addr().AsSlice()
	for bit := len(b)*8 - 1; bit >= 8 && r.IntN(20) > 0; bit-- {
		b[bit/8] ^= byte(r.IntN(2)) << (7 - bit%8)
	}
	addr, _ := netip.AddrFromSlice(b)
	p, _ := addr.Prefix(min(of.Bits()+r.IntN(9), addr.BitLen()))
	return p
}

func TestTheScopeIsAsWideAsItMayBe(t *testing.T) {
	blocks := collection("a 10.0.0.0/8", "b 10.128.0.0/16", "c 10.128.5.0/24 10.128.6.0/24", "d 192.0.2.0/24", "e 2001:db8::/32")
	only4 := collection("a 10.0.0.0/8")
	for _, test := range []struct {
		network string
		blocks  *Blocks
		want    int
	}{
		{"10.128.5.9/32", blocks, 24},      // in a block
		{"10.128.4.9/32", blocks, 24},      // beside one: 10.128.4.0/24 is the widest without 10.128.5.0/24
		{"10.128.7.9/32", blocks, 24},      // beside 10.128.6.0/24
		{"10.128.192.9/32", blocks, 17},    // in /16, whose other half has the blocks
		{"10.1.2.3/32", blocks, 9},         // in /8, whose other half has them
		{"11.1.2.3/32", blocks, 8},         // in none: beside 10.0.0.0/8
		{"64.0.0.1/32", blocks, 2},         // in none: 0/2 has blocks, 128/1 has, 64/2 has none
		{"192.0.3.1/32", blocks, 24},       // in none, and the block is right beside it
		{"223.0.0.1/32", blocks, 4},        // in none: 192/4 has a block, 208/4 none
		{"10.128.0.0/15", blocks, 22},      // it tells less than the blocks inside it need
		{"2001:db8:1::/48", blocks, 32},    // of the other family
		{"8000::/48", blocks, 1},           // half of it
		{"2001:db8:1::/48", only4, 1},      // no block of the family at all
		{"10.1.2.3/32", only4, 8},          //
		{"10.1.2.3/32", collection(), 0},   // no blocks
		{"10.1.2.3/32", (*Blocks)(nil), 0}, //
	} {
		if got := test.blocks.scope(netip.MustParsePrefix(test.network)); got != test.want {
			t.Errorf("%s: scope %d, want %d", test.network, got, test.want)
		}
	}
	if got := blocks.scope(netip.Prefix{}); got != 0 {
		t.Errorf("of nobody: %d", got)
	}

	nowhere := measured(nil)
	places := func(bits int) Client {
		return Client{Network: netip.MustParsePrefix("10.1.2.3/32"), Location: seoul, PlaceBits: bits}
	}
	with := func(c Client, rtt func(string) (time.Duration, bool)) Client {
		c.RoundTrip, c.RoundTripBits = rtt, 24
		return c
	}
	regions := []Candidate{region("a", seoul), region("b", tokyo)}
	for _, test := range []struct {
		name   string
		policy Policy
		all    []Candidate
		client Client
		want   int
	}{
		{"weighted", Weighted, weights(1, 2), places(20), 0},
		{"failover", Failover, []Candidate{role(spec.Primary), role(spec.Secondary)}, places(20), 0},
		{"multivalue", MultiValue, weights(1, 2), places(20), 0},
		{"simple", Simple, weights(1), places(20), 0},
		{"latency by the map", Latency, regions, places(20), 20},
		{"latency by the map, and the client's network could have been measured", Latency, regions, with(places(20), nowhere), 24},
		{"latency by the map of smaller places", Latency, regions, with(places(28), nowhere), 28},
		{"measured and estimated", Latency, regions, with(places(28), measured(map[string]float64{"a": 1})), 28},
		{"all measured: no place mattered", Latency, regions, with(places(28), measured(map[string]float64{"a": 1, "b": 2})), 24},
		{"one region", Latency, regions[:1], with(places(20), nowhere), 0},
		{"a place known of the whole family", Latency, regions, places(0), 1},
		{"geolocation", Geolocation, []Candidate{country("KR"), country("*")}, places(20), 20},
		{"a default alone", Geolocation, []Candidate{country("*")}, places(20), 0},
		{"no default and one country", Geolocation, []Candidate{country("KR")}, places(20), 20},
		{"geoproximity", Geoproximity, regions, places(20), 20},
		{"one place", Geoproximity, regions[:1], places(20), 0},
		{"CIDR", CIDR, []Candidate{inBlock("a"), inBlock("*")}, places(20), 9},
	} {
		s := Set{Policy: test.policy, Candidates: test.all, Blocks: blocks}
		if _, got := s.Choose(nil, &test.client, 0, allHealthy, nil); got != test.want {
			t.Errorf("%s: scope %d, want %d", test.name, got, test.want)
		}
	}
}
