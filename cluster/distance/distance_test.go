package distance

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

const ms = time.Millisecond

func TestWhatEitherMeasuredWins(t *testing.T) {
	far := Coordinate{vec: [dimensions]float64{0.1}}
	near := Coordinate{}
	m := NewMap([]Node{
		{Name: "a", Region: "r", POP: "p", Coordinate: &near, Measured: map[string]time.Duration{"b": 12 * ms, "c": 7 * ms, "a": 5 * ms, "gone": ms, "d": 0}},
		{Name: "b", Region: "s", POP: "q", Coordinate: &far, Measured: map[string]time.Duration{"a": 10 * ms}},
		{Name: "c", Region: "s", POP: "q"},
		{Name: "d", Region: "u", Coordinate: &far},
		{Name: "e", Region: "u"},
	})
	for _, c := range []struct {
		a, b string
		rtt  time.Duration
		from string // "": nothing is known
	}{
		{"a", "b", 10 * ms, FromMeasured}, {"a", "c", 7 * ms, FromMeasured}, {"a", "a", 0, FromMeasured},
		{"b", "c", 0, ""}, {"a", "d", 100 * ms, FromCoordinates}, {"a", "gone", 0, ""}, {"a", "e", 0, ""},
	} {
		there, ok := m.Between(c.a, c.b)
		back, okBack := m.Between(c.b, c.a)
		if ok != (c.from != "") || ok != okBack || there != back || there.From != c.from || (there.RTT-c.rtt).Abs() > time.Microsecond {
			t.Errorf("%s to %s: %v, %v, back %v, want %v from %q", c.a, c.b, there, ok, back, c.rtt, c.from)
		}
	}
	var none *Map
	if _, ok := none.Between("a", "b"); ok {
		t.Error("a nil map knows something")
	}
}

func TestWhatOthersOfTheTwoPlacesMeasuredWinsOverCoordinates(t *testing.T) {
	zero := Coordinate{}
	node := func(name, region, pop string, measured map[string]time.Duration) Node {
		return Node{Name: name, Region: region, POP: pop, Coordinate: &zero, Measured: measured}
	}
	// x and y are 5 and 7 ms farther from the net than u and v, which are 100 ms from each other.
	corners := []Node{
		node("x", "r", "r1", map[string]time.Duration{"v": 105 * ms}), node("u", "r", "r1", map[string]time.Duration{"v": 100 * ms}),
		node("y", "s", "s1", map[string]time.Duration{"u": 107 * ms}), node("v", "s", "s1", nil),
	}
	for _, c := range []struct {
		name  string
		nodes []Node
		want  time.Duration
	}{
		{"by four corners, and what each of them measured", corners, 107 * ms},
		{"by what one of them measured", []Node{corners[0], node("y", "s", "s1", nil), corners[3]}, 105 * ms},
		{"by what any measured", []Node{node("x", "r", "r1", nil), corners[1], node("y", "s", "s1", nil), corners[3]}, 100 * ms},
		{"of another POP", []Node{node("x", "r", "r2", nil), corners[1], node("y", "s", "s2", nil), corners[3]}, 100 * ms},
		{"of the POP first", append([]Node{node("w", "s", "s2", map[string]time.Duration{"x": 20 * ms})}, corners...), 107 * ms},
		{"where no POP is named", []Node{node("x", "r", "", nil), corners[1], node("y", "s", "", nil), corners[3]}, 100 * ms},
	} {
		if got, ok := NewMap(c.nodes).Between("x", "y"); !ok || got != (Estimate{c.want, FromRegion}) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// earth is 50 nodes in 10 regions. Between regions a round trip is that of a plane, or, if triangles are violated, on one pair in six 2 to 3 times a detour by
// a third, as where two carriers only meet far away. Each node is up to 8 ms from the net by itself, each pair's path is some 5 %
// longer or shorter than others of its regions, and one pair in thirty goes half as far again, or twice as far.
type earth struct {
	random  *rand.Rand
	regions [10][10]time.Duration
	access  [50]time.Duration
	pairs   [50][50]float64
}

func newEarth(seed uint64, violated bool) *earth {
	e := &earth{random: rand.New(rand.NewPCG(seed, 1))}
	var at [10][2]float64 // in ms
	for i := range at {
		at[i] = [2]float64{e.random.Float64() * 250, e.random.Float64() * 120}
	}
	for a := range at {
		for b := range a {
			d := math.Hypot(at[a][0]-at[b][0], at[a][1]-at[b][1])
			e.regions[a][b] = time.Duration((5 + 1.1*d) * float64(ms))
			e.regions[b][a] = e.regions[a][b]
		}
	}
	plane := e.regions
	for a := range at {
		for b := range a {
			if violated && e.random.IntN(6) == 0 {
				detour := time.Duration(math.MaxInt64)
				for c := range at {
					if c != a && c != b {
						detour = min(detour, plane[a][c]+plane[c][b])
					}
				}
				e.regions[a][b] = time.Duration((2 + e.random.Float64()) * float64(detour))
				e.regions[b][a] = e.regions[a][b]
			}
		}
	}
	for i := range e.access {
		e.access[i] = time.Duration(e.random.ExpFloat64() * 2 * float64(ms))
		e.access[i] = min(e.access[i], 8*ms)
		for j := range i {
			f := 1 + 0.05*e.random.NormFloat64()
			if e.random.IntN(30) == 0 {
				f += 0.5 + 0.5*e.random.Float64()
			}
			e.pairs[i][j], e.pairs[j][i] = f, f
		}
	}
	return e
}

func (e *earth) rtt(a, b int) time.Duration {
	return time.Duration(e.pairs[a][b]*float64(e.regions[a%10][b%10])) + e.access[a] + e.access[b] + 300*time.Microsecond
}

// sample is what one probe measures.
func (e *earth) sample(a, b int) time.Duration {
	d := e.rtt(a, b) + time.Duration(e.random.ExpFloat64()*0.02*float64(e.rtt(a, b)))
	if e.random.IntN(50) == 0 {
		d += time.Duration(e.random.Int64N(int64(200 * ms)))
	}
	return d
}

func node(i int) string { return fmt.Sprintf("node-%02d", i) }

func TestEstimatesAreWithin15PercentOr3MillisecondsForNineOfTenPairs(t *testing.T) {
	for seed := range uint64(8) {
		e := newEarth(seed, seed < 6) // the last two are kind
		nodes := make([]Node, 50)
		for i := range nodes {
			nodes[i] = Node{Name: node(i), Region: fmt.Sprint("region-", i%10), POP: fmt.Sprintf("pop-%d-%d", i%10, i/10%2), Measured: map[string]time.Duration{}}
			for region := range 10 {
				for k, j := range e.random.Perm(5) { // all of its own, three of each other
					if j = region + 10*j; j != i && (region == i%10 || k < 3) {
						nodes[i].Measured[node(j)] = min(e.sample(i, j), e.sample(i, j), e.sample(i, j))
					}
				}
			}
		}
		// Each node probes one other at a time, for some 20 minutes of gossip.
		clients := make([]*Client, 50)
		for i := range clients {
			clients[i] = New(node(i))
		}
		for range 2000 {
			for i, c := range clients {
				if j := e.random.IntN(50); j != i {
					c.Observe(node(j), clients[j].Coordinate(), e.sample(i, j))
				}
			}
		}
		for i := range nodes {
			c := clients[i].Coordinate()
			nodes[i].Coordinate = &c
			nodes[i].Measured, _ = DecodeMeasured(EncodeMeasured(nodes[i].Measured))
		}
		m := NewMap(nodes)
		good, all := map[string]int{}, map[string]int{}
		note := func(kind string, got, want time.Duration) {
			all[kind]++
			if off := (got - want).Abs(); off <= 3*ms || float64(off) <= 0.15*float64(want) {
				good[kind]++
			}
		}
		for a := range 50 {
			for b := range a {
				got, ok := m.Between(node(a), node(b))
				if !ok {
					t.Fatalf("%d to %d: nothing is known", a, b)
				}
				want := e.rtt(a, b)
				note("all", got.RTT, want)
				note(got.From, got.RTT, want)
				note("coordinates alone", nodes[a].Coordinate.to(*nodes[b].Coordinate), want)
			}
		}
		share := func(kind string) float64 { return 100 * float64(good[kind]) / float64(all[kind]) }
		t.Logf("seed %d: %.1f %% of %d pairs; of the %d measured %.1f %%, of %d by others of their regions %.1f %%; by coordinates alone %.1f %% would be",
			seed, share("all"), all["all"], all[FromMeasured], share(FromMeasured), all[FromRegion], share(FromRegion), share("coordinates alone"))
		if share("all") < 90 || share(FromRegion) < 75 {
			t.Errorf("seed %d: too few", seed)
		}
	}
}

func TestBadSamplesAreRefusedAndCounted(t *testing.T) {
	c := New("self")
	before := c.Coordinate()
	good := New("other").Coordinate()
	nan, huge := good, good
	nan.vec[3], huge.height = math.NaN(), 1e9
	for _, bad := range []struct {
		node   string
		theirs Coordinate
		rtt    time.Duration
	}{
		{"self", good, ms}, {"other", good, 0}, {"other", good, -ms}, {"other", good, time.Hour}, {"other", nan, ms}, {"other", huge, ms},
	} {
		c.Observe(bad.node, bad.theirs, bad.rtt)
	}
	if n := c.Counters()["distance_refused_total"]; n != 6 || c.Coordinate() != before {
		t.Errorf("%d were refused, and it is at %v", n, c.Coordinate())
	}
	c.Observe("other", good, ms)
	if n := c.Counters()["distance_samples_total"]; n != 1 || c.Coordinate() == before {
		t.Errorf("a good one was not taken")
	}
}

func TestALiarCannotCarryANodeOutOfBounds(t *testing.T) {
	c := New("self")
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 20_000 {
		lie := Coordinate{height: random.Float64() * reach, doubt: 0}
		for k := range lie.vec {
			lie.vec[k] = (random.Float64()*2 - 1) * reach
		}
		c.Observe(fmt.Sprint("liar", i), lie, time.Duration(1+random.Int64N(int64(maxRoundTrip))))
		if !c.Coordinate().valid() {
			t.Fatalf("it is at %v", c.Coordinate())
		}
	}
	if len(c.peers) > maxPeers {
		t.Errorf("%d peers are held", len(c.peers))
	}
}

func TestACoordinateIsTheSameAfterATrip(t *testing.T) {
	c := Coordinate{vec: [dimensions]float64{0.25, -0.5, 1, 2, 3, 4, 5, -6}, doubt: 0.125, adjustment: -0.5, height: 0.0625}
	b := c.Append([]byte("x"))
	if got, err := Decode(b[1:]); err != nil || got != c || len(b)-1 > 128 {
		t.Errorf("%d bytes: %v, %v", len(b)-1, got, err)
	}
}

func TestMeasuredRoundTripsAreTheSameAfterATrip(t *testing.T) {
	measured := map[string]time.Duration{
		"icn1": 12345 * time.Microsecond, "icn10": 40 * time.Microsecond, "fra1": 10 * time.Second,
		"": ms, strings.Repeat("n", 65): ms, "late": 11 * time.Second, "zero": 0, "less": -ms,
	}
	got, err := DecodeMeasured(EncodeMeasured(measured))
	want := map[string]time.Duration{"icn1": 12300 * time.Microsecond, "icn10": 100 * time.Microsecond, "fra1": 10 * time.Second}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if got, err := DecodeMeasured(EncodeMeasured(nil)); err != nil || len(got) != 0 {
		t.Errorf("of nothing: %v, %v", got, err)
	}
}

func TestOfTooManySomeAtEveryDistanceAreTold(t *testing.T) {
	measured := map[string]time.Duration{}
	for region := range 20 {
		for i := range 50 {
			measured[fmt.Sprintf("node-of-region-%02d-%02d", region, i)] = time.Duration(10+region*10)*ms + time.Duration(i)*unit
		}
	}
	b := EncodeMeasured(measured)
	got, err := DecodeMeasured(b)
	if err != nil || len(b) > MaxMeasured || len(got) < 300 {
		t.Fatalf("%d in %d bytes: %v", len(got), len(b), err)
	}
	byRegion := map[string]int{}
	for name, rtt := range got {
		byRegion[name[:17]]++
		if measured[name] != rtt {
			t.Errorf("%s is %v away, told %v", name, measured[name], rtt)
		}
	}
	for region, n := range byRegion {
		if n < 10 {
			t.Errorf("of %s %d are told", region, n)
		}
	}
	if len(byRegion) != 20 {
		t.Errorf("%d regions are told of", len(byRegion))
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Coordinate{}.Append(nil))
	f.Add(Coordinate{vec: [dimensions]float64{1, 2}, doubt: 1, adjustment: -1, height: 3}.Append(nil))
	f.Add([]byte{coordinateVersion})
	f.Add(bytes.Repeat([]byte{0xff}, coordinateSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Decode(b)
		if err != nil {
			return
		}
		if again := c.Append(nil); !bytes.Equal(again, b) {
			t.Errorf("% x was read, % x written", b, again)
		}
		self := New("self")
		self.Observe("other", c, ms)
		if !self.Coordinate().valid() {
			t.Errorf("at %v after %v", self.Coordinate(), c)
		}
		if d := c.to(self.Coordinate()); d < 0 {
			t.Errorf("%v away", d)
		}
	})
}

func FuzzDecodeMeasured(f *testing.F) {
	f.Add(EncodeMeasured(nil))
	f.Add(EncodeMeasured(map[string]time.Duration{"icn1": 300 * ms, "icn2": ms, "fra1": 9 * time.Second}))
	f.Add([]byte{measuredVersion, 0, 1, 'a', 0x80, 0})
	f.Add([]byte{measuredVersion, 0, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		measured, err := DecodeMeasured(b)
		if err != nil {
			return
		}
		if again := EncodeMeasured(measured); !bytes.Equal(again, b) {
			t.Errorf("% x was read, % x written", b, again)
		}
	})
}

func BenchmarkBetween(b *testing.B) {
	random := rand.New(rand.NewPCG(1, 2))
	nodes := make([]Node, 1000)
	for i := range nodes {
		nodes[i] = Node{Name: fmt.Sprintf("node-%04d", i), Region: fmt.Sprint("region-", i%20), Coordinate: &Coordinate{}, Measured: map[string]time.Duration{}}
		for range 200 {
			nodes[i].Measured[fmt.Sprintf("node-%04d", random.IntN(1000))] = ms
		}
	}
	b.Run("new map of 1,000", func(b *testing.B) {
		for b.Loop() {
			NewMap(nodes)
		}
	})
	m := NewMap(nodes)
	b.Run("any two", func(b *testing.B) {
		for b.Loop() {
			m.Between(nodes[random.IntN(1000)].Name, nodes[random.IntN(1000)].Name)
		}
	})
}
