package policy

import (
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
)

func at(latitude, longitude float64) *spec.Site {
	return spec.Location{Latitude: latitude, Longitude: longitude}.Site()
}

var (
	seoul    = at(37.57, 126.98)
	tokyo    = at(35.69, 139.69)
	virginia = at(38.95, -77.45)
	ireland  = at(53.35, -6.26)
)

func country(code string) Candidate {
	return Candidate{ID: code, GeoLocation: spec.GeoLocation{Country: code}}
}

func continent(code string) Candidate {
	return Candidate{ID: code, GeoLocation: spec.GeoLocation{Continent: code}}
}

func region(name string, l *spec.Site) Candidate {
	return Candidate{ID: name, Region: name, Location: l}
}

func role(r string) Candidate { return Candidate{ID: r, Failover: r} }

func state(country, code string) Candidate {
	return Candidate{ID: country + "-" + code, GeoLocation: spec.GeoLocation{Country: country, Subdivision: code}}
}

func inBlock(location string) Candidate { return Candidate{ID: location, Block: location} }

func biasedAt(id string, l *spec.Site, bias int) Candidate {
	return Candidate{ID: id, Location: l, Bias: bias}
}

func weights(w ...int) (all []Candidate) {
	for i, w := range w {
		all = append(all, Candidate{ID: string(rune('a' + i)), Weight: w})
	}
	return all
}

// collection makes blocks of lines like "location 192.0.2.0/24 2001:db8::/48".
func collection(lines ...string) *Blocks {
	c := new(spec.CidrCollection)
	for _, line := range lines {
		words := strings.Fields(line)
		l := spec.CidrLocation{LocationName: words[0]}
		for _, word := range words[1:] {
			l.CidrList = append(l.CidrList, netip.MustParsePrefix(word))
		}
		c.Locations = append(c.Locations, l)
	}
	return NewBlocks(c)
}

func network(text string) Client { return Client{Network: netip.MustParsePrefix(text)} }

// only says that these are healthy, by index.
func only(healthy func(int) bool) Health { return Health{Healthy: healthy} }

var allHealthy = only(func(int) bool { return true })

// measured are round trips in ms by region.
func measured(ms map[string]float64) func(string) (time.Duration, bool) {
	return func(region string) (time.Duration, bool) {
		d, ok := ms[region]
		return time.Duration(d * float64(time.Millisecond)), ok
	}
}

// The rows of Route 53's guide for each policy, and of its surprising corners.
func TestThePolicyChooses(t *testing.T) {
	failover := []Candidate{role(spec.Secondary), role(spec.Primary)}
	latency := []Candidate{region("us-east-1", virginia), region("ap-northeast-2", seoul), region("ap-northeast-1", tokyo)}
	geolocation := []Candidate{country("*"), continent("AS"), country("KR"), country("US")}
	noDefault := []Candidate{continent("AS"), country("KR")}
	inKorea := Client{Country: "KR", Continent: "AS", Location: seoul}
	states := []Candidate{country("*"), continent("NA"), country("US"), state("US", "CA"), state("US", "NY"), state("UA", "30"), state("DE", "BY")}
	const everywhere = "* NA US US-CA US-NY UA-30 DE-BY"
	california := Client{Country: "US", Subdivision: "CA", Continent: "NA"}
	proximity := []Candidate{biasedAt("seoul", seoul, 0), biasedAt("tokyo", tokyo, 0)}
	// Seoul and Tokyo are 1,150 km apart: of the points between them those nearer to the one that has a bias of 50 are
	// less than two thirds of the way from it.
	between := func(part float64) Client {
		return Client{Location: at(seoul.Latitude+part*(tokyo.Latitude-seoul.Latitude), seoul.Longitude+part*(tokyo.Longitude-seoul.Longitude))}
	}
	wider := []Candidate{biasedAt("seoul", seoul, 50), biasedAt("tokyo", tokyo, 0)}
	narrower := []Candidate{biasedAt("seoul", seoul, -50), biasedAt("tokyo", tokyo, 0)}
	offices := collection("wide 10.0.0.0/8 2001:db8::/32", "narrow 10.1.0.0/16 2001:db8:1::/48", "deep 10.1.2.0/24", "unused 10.1.3.0/24")
	byBlock := []Candidate{inBlock("*"), inBlock("wide"), inBlock("narrow"), inBlock("deep")}
	const allBlocks = "* wide narrow deep"
	for _, test := range []struct {
		name    string
		policy  Policy
		all     []Candidate
		client  Client
		healthy string // the healthy ones, by ID
		want    string // "" is no answer
	}{
		{"primary healthy", Failover, failover, Client{}, "PRIMARY SECONDARY", "PRIMARY"},
		{"primary bad", Failover, failover, Client{}, "SECONDARY", "SECONDARY"},
		{"secondary bad", Failover, failover, Client{}, "PRIMARY", "PRIMARY"},
		{"both bad: the primary", Failover, failover, Client{}, "", "PRIMARY"},
		{"a secondary alone", Failover, failover[:1], Client{}, "SECONDARY", "SECONDARY"},

		{"the nearest region", Latency, latency, inKorea, "us-east-1 ap-northeast-1 ap-northeast-2", "ap-northeast-2"},
		{"the nearest is bad", Latency, latency, inKorea, "us-east-1 ap-northeast-1", "ap-northeast-1"},
		{"only the farthest is healthy", Latency, latency, inKorea, "us-east-1", "us-east-1"},
		{"none is healthy: the nearest", Latency, latency, inKorea, "", "ap-northeast-2"},
		{"the other side", Latency, latency, Client{Location: ireland}, "us-east-1 ap-northeast-1 ap-northeast-2", "us-east-1"},
		{"a client without a place: by name", Latency, latency, Client{}, "us-east-1 ap-northeast-1 ap-northeast-2", "ap-northeast-1"},
		{"a region without a place is last", Latency, []Candidate{region("a-lab", nil), region("us-east-1", virginia)}, inKorea, "a-lab us-east-1", "us-east-1"},

		{"country before continent", Geolocation, geolocation, inKorea, "* AS KR US", "KR"},
		{"continent before default", Geolocation, geolocation, Client{Country: "JP", Continent: "AS"}, "* AS KR US", "AS"},
		{"elsewhere: the default", Geolocation, geolocation, Client{Country: "DE", Continent: "EU"}, "* AS KR US", "*"},
		{"unknown place: the default", Geolocation, geolocation, Client{}, "* AS KR US", "*"},
		{"country bad: the continent", Geolocation, geolocation, inKorea, "* AS US", "AS"},
		{"country and continent bad: the default", Geolocation, geolocation, inKorea, "* US", "*"},
		{"a healthy one elsewhere does not count: the smallest", Geolocation, geolocation, inKorea, "US", "KR"},
		{"none is healthy: the smallest", Geolocation, geolocation, inKorea, "", "KR"},
		{"elsewhere and no default: no answer", Geolocation, noDefault, Client{Country: "DE", Continent: "EU"}, "AS KR", ""},
		{"unknown place and no default: no answer", Geolocation, noDefault, Client{}, "AS KR", ""},
		{"the default bad where it is the only one", Geolocation, geolocation, Client{Country: "DE", Continent: "EU"}, "AS KR US", "*"},

		{"subdivision before country", Geolocation, states, california, everywhere, "US-CA"},
		{"a subdivision of Ukraine", Geolocation, states, Client{Country: "UA", Subdivision: "30", Continent: "EU"}, everywhere, "UA-30"},
		{"a subdivision of any country", Geolocation, states, Client{Country: "DE", Subdivision: "BY", Continent: "EU"}, everywhere, "DE-BY"},
		{"another subdivision: the country", Geolocation, states, Client{Country: "US", Subdivision: "TX", Continent: "NA"}, everywhere, "US"},
		{"no subdivision known: the country", Geolocation, states, Client{Country: "US", Continent: "NA"}, everywhere, "US"},
		{"the same letters of another country", Geolocation, states, Client{Country: "IT", Subdivision: "CA", Continent: "EU"}, everywhere, "*"},
		{"another subdivision and no record of the country", Geolocation, states, Client{Country: "DE", Subdivision: "BE", Continent: "EU"}, everywhere, "*"},
		{"subdivision bad: the country", Geolocation, states, california, "* NA US US-NY", "US"},
		{"subdivision and country bad: the continent", Geolocation, states, california, "* NA US-NY", "NA"},
		{"all but the default bad", Geolocation, states, california, "* US-NY", "*"},
		{"all bad: the subdivision", Geolocation, states, california, "US-NY", "US-CA"},
		{"a country alone has no default", Geolocation, states[3:5], Client{Country: "US", Subdivision: "TX", Continent: "NA"}, everywhere, ""},

		{"the nearest point", Geoproximity, proximity, between(0.4), "seoul tokyo", "seoul"},
		{"beyond the middle", Geoproximity, proximity, between(0.6), "seoul tokyo", "tokyo"},
		{"the nearest is bad", Geoproximity, proximity, between(0.4), "tokyo", "tokyo"},
		{"none is healthy: the nearest", Geoproximity, proximity, between(0.4), "", "seoul"},
		{"a bias of 50 halves the distance", Geoproximity, wider, between(0.65), "seoul tokyo", "seoul"},
		{"and no more", Geoproximity, wider, between(0.68), "seoul tokyo", "tokyo"},
		{"a bias of -50 doubles it", Geoproximity, narrower, between(0.32), "seoul tokyo", "seoul"},
		{"and no less", Geoproximity, narrower, between(0.35), "seoul tokyo", "tokyo"},
		{"a bias of 99", Geoproximity, []Candidate{biasedAt("seoul", seoul, 99), biasedAt("tokyo", tokyo, 0)}, between(0.98), "seoul tokyo", "seoul"},
		{"a bias of -99", Geoproximity, []Candidate{biasedAt("seoul", seoul, -99), biasedAt("tokyo", tokyo, 0)}, between(0.02), "seoul tokyo", "tokyo"},
		{"at the very place no bias counts", Geoproximity, []Candidate{biasedAt("seoul", seoul, -99), biasedAt("tokyo", tokyo, 99)}, between(0), "seoul tokyo", "seoul"},
		{"as near: by region, then identifier", Geoproximity, []Candidate{biasedAt("b", seoul, 0), biasedAt("a", seoul, 0)}, between(0.5), "a b", "a"},
		{"a client without a place: by identifier", Geoproximity, []Candidate{biasedAt("b", seoul, 0), biasedAt("a", tokyo, 0)}, Client{}, "a b", "a"},
		{"what stands nowhere is last", Geoproximity, []Candidate{biasedAt("a", nil, 99), biasedAt("b", ireland, 0)}, between(0), "a b", "b"},

		{"the longest block", CIDR, byBlock, network("10.1.2.3/32"), allBlocks, "deep"},
		{"a network as long as the block", CIDR, byBlock, network("10.1.2.0/24"), allBlocks, "deep"},
		{"a network shorter than the block", CIDR, byBlock, network("10.1.2.0/23"), allBlocks, "narrow"},
		{"a network shorter than two blocks", CIDR, byBlock, network("10.1.0.0/15"), allBlocks, "wide"},
		{"a network shorter than all: the default", CIDR, byBlock, network("10.0.0.0/7"), allBlocks, "*"},
		{"AWS's own example: /48 is in /32", CIDR, byBlock, network("2001:db8:2::/48"), allBlocks, "wide"},
		{"AWS's own example: /32 is not in /48", CIDR, []Candidate{inBlock("*"), inBlock("narrow")}, network("2001:db8::/32"), allBlocks, "*"},
		{"in no block: the default", CIDR, byBlock, network("192.0.2.1/32"), allBlocks, "*"},
		{"in no block and no default: no answer", CIDR, byBlock[1:], network("192.0.2.1/32"), allBlocks, ""},
		{"nobody is named: the default", CIDR, byBlock, Client{}, allBlocks, "*"},
		{"a location without a record", CIDR, byBlock, network("10.1.3.1/32"), allBlocks, "narrow"},
		{"the block is bad: the one around it", CIDR, byBlock, network("10.1.2.3/32"), "* wide narrow", "narrow"},
		{"all blocks are bad: the default", CIDR, byBlock, network("10.1.2.3/32"), "*", "*"},
		{"all is bad: the longest", CIDR, byBlock, network("10.1.2.3/32"), "", "deep"},
		{"a healthy one of other blocks does not count", CIDR, byBlock[2:], network("10.1.2.3/32"), "wide", "deep"},

		{"measured goes before the map", Latency, latency, Client{Location: seoul, RoundTrip: measured(map[string]float64{"us-east-1": 3, "ap-northeast-2": 4})},
			"us-east-1 ap-northeast-1 ap-northeast-2", "us-east-1"},
		{"what was not measured is estimated", Latency, latency, Client{Location: seoul, RoundTrip: measured(map[string]float64{"us-east-1": 30, "ap-northeast-2": 40})},
			"us-east-1 ap-northeast-1 ap-northeast-2", "ap-northeast-1"},
		{"measured without a place", Latency, latency, Client{RoundTrip: measured(map[string]float64{"us-east-1": 300})},
			"us-east-1 ap-northeast-1 ap-northeast-2", "us-east-1"},
		{"the nearest by measurement is bad", Latency, latency, Client{Location: seoul, RoundTrip: measured(map[string]float64{"us-east-1": 3, "ap-northeast-2": 4})},
			"ap-northeast-1 ap-northeast-2", "ap-northeast-2"},

		{"one record", Simple, []Candidate{{}}, Client{}, "", "the record"},
		{"one record of a multivalue name", MultiValue, []Candidate{{ID: "a"}}, Client{}, "", "a"},
		{"a weight of 0 alone", Weighted, []Candidate{{ID: "a"}}, Client{}, "", "a"},
	} {
		t.Run(test.name, func(t *testing.T) {
			healthy := func(i int) bool { return slices.Contains(strings.Fields(test.healthy), test.all[i].ID) }
			for random := range uint64(20) {
				tr := new(trace.Trace)
				set := Set{Policy: test.policy, Candidates: test.all, Blocks: offices}
				got, scope := set.Choose(nil, &test.client, random<<60, only(healthy), tr)
				var names []string
				for _, i := range got {
					names = append(names, test.all[i].name())
				}
				if strings.Join(names, " ") != test.want {
					t.Fatalf("got %q, want %q, because\n%s", names, test.want, tr)
				}
				if served, as := set.Choose(nil, &test.client, random<<60, only(healthy), nil); !slices.Equal(got, served) || scope != as {
					t.Fatalf("explained %v /%d, chosen %v /%d", got, scope, served, as)
				}
			}
		})
	}
}

const draws = 20_000

// shares says in what part of the draws each of the candidates is chosen.
func shares(all []Candidate, healthy func(int) bool) map[string]float64 {
	random := rand.New(rand.NewPCG(1, 2))
	times := map[string]int{}
	set := Set{Policy: Weighted, Candidates: all}
	for range draws {
		chosen, _ := set.Choose(nil, &Client{}, random.Uint64(), only(healthy), nil)
		for _, i := range chosen {
			times[all[i].ID]++
		}
	}
	share := map[string]float64{}
	for id, n := range times {
		share[id] = float64(n) / draws
	}
	return share
}

func TestWeightsAreShares(t *testing.T) {
	for _, test := range []struct {
		name      string
		all       []Candidate
		unhealthy string
		want      map[string]float64
	}{
		{"in proportion", weights(1, 2, 5), "", map[string]float64{"a": .125, "b": .25, "c": .625}},
		{"a weight of 0 takes nothing", weights(1, 0, 1), "", map[string]float64{"a": .5, "c": .5}},
		{"all 0 take the same", weights(0, 0, 0, 0), "", map[string]float64{"a": .25, "b": .25, "c": .25, "d": .25}},
		{"the healthy share what the unhealthy leave", weights(1, 2, 5), "c", map[string]float64{"a": 1. / 3, "b": 2. / 3}},
		{"a weight of 0 is in reserve", weights(1, 255, 0), "ab", map[string]float64{"c": 1}},
		{"the reserve shares evenly", weights(1, 0, 0), "a", map[string]float64{"b": .5, "c": .5}},
		{"a healthy one of little weight comes before the reserve", weights(1, 255, 0), "b", map[string]float64{"a": 1}},
		{"none healthy: the normal weights", weights(1, 3, 0), "abc", map[string]float64{"a": .25, "b": .75}},
		{"none healthy, all 0: the same", weights(0, 0), "ab", map[string]float64{"a": .5, "b": .5}},
		{"the heaviest", weights(255, 1), "", map[string]float64{"a": 255. / 256, "b": 1. / 256}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := shares(test.all, func(i int) bool { return !strings.Contains(test.unhealthy, test.all[i].ID) })
			for _, c := range test.all {
				p := test.want[c.ID]
				if off := math.Abs(got[c.ID] - p); off > 5*math.Sqrt(p*(1-p)/draws) { // five standard deviations
					t.Errorf("%s takes %.4f, want %.4f", c.ID, got[c.ID], p)
				}
			}
		})
	}
}

func TestMultiValueAnswersWithUpToEight(t *testing.T) {
	all := make([]Candidate, 20)
	random := rand.New(rand.NewPCG(1, 2))
	for _, test := range []struct{ of, healthy, want int }{
		{3, 3, 3}, {8, 8, 8}, {9, 9, 8}, {20, 20, 8}, {20, 5, 5}, {20, 0, 8}, {4, 0, 4}, {20, 1, 1},
	} {
		times := make([]int, test.of)
		for range 2000 {
			set := Set{Policy: MultiValue, Candidates: all[:test.of]}
			got, _ := set.Choose(nil, &Client{}, random.Uint64(), only(func(i int) bool { return i < test.healthy }), nil)
			if len(got) != test.want {
				t.Fatalf("%d of %d healthy: got %d values, want %d", test.healthy, test.of, len(got), test.want)
			}
			for _, i := range got {
				times[i]++
				if test.healthy > 0 && i >= test.healthy {
					t.Fatalf("%d of %d healthy: %d is not", test.healthy, test.of, i)
				}
			}
			if slices.Sort(got); len(slices.Compact(got)) != test.want {
				t.Fatalf("a value twice: %v", got)
			}
		}
		eligible := test.of
		if test.healthy > 0 {
			eligible = test.healthy
		}
		p := float64(test.want) / float64(eligible)
		for i := range eligible {
			if off := math.Abs(float64(times[i])/2000 - p); off > 5*math.Sqrt(p*(1-p)/2000) {
				t.Errorf("%d of %d healthy: value %d came up %d times in 2,000, want about %.0f", test.healthy, test.of, i, times[i], p*2000)
			}
		}
	}
}

func TestChoosingAppends(t *testing.T) {
	set := Set{Policy: Weighted, Candidates: weights(1)}
	if got, _ := set.Choose([]int{7}, &Client{}, 0, only(func(int) bool { return false }), nil); !slices.Equal(got, []int{7, 0}) {
		t.Errorf("got %v", got)
	}
}

func TestWhereNothingIsHealthyTheSetsSayWhatIsChosen(t *testing.T) {
	lost := map[int]time.Time{0: time.Unix(10, 0), 1: time.Unix(30, 0), 2: time.Unix(30, 0), 3: time.Unix(20, 0)}
	never := map[int]time.Time{}
	byName := func(names string) []Candidate {
		var all []Candidate
		for _, name := range strings.Fields(names) {
			all = append(all, region(name, seoul))
		}
		return all
	}
	nine := make([]Candidate, 9)
	for _, test := range []struct {
		name      string
		policy    Policy
		otherwise Otherwise
		all       []Candidate
		lost      map[int]time.Time
		healthy   []int
		want      []int // each of them comes up, in some draw
		atOnce    int
	}{
		{"all", Latency, All, byName("a b c d"), lost, nil, []int{0}, 1},
		{"none", Latency, None, byName("a b c d"), lost, nil, nil, 0},
		{"none, but one is healthy", Latency, None, byName("a b c d"), lost, []int{3}, []int{3}, 1},
		{"last good: in the policy's order", Latency, LastGood, byName("a c b d"), lost, nil, []int{2}, 1},
		{"last good, but one is healthy", Latency, LastGood, byName("a b c d"), lost, []int{0}, []int{0}, 1},
		{"last good by weight", Weighted, LastGood, weights(200, 1, 1, 200), lost, nil, []int{1, 2}, 1},
		{"last good by role", Failover, LastGood, []Candidate{role(spec.Primary), role(spec.Secondary)}, lost, nil, []int{1}, 1},
		{"last good by place: only of what holds", Geolocation, LastGood, []Candidate{country("KR"), country("US"), country("DE"), country("*")}, lost, nil, []int{3}, 1},
		{"last good of many", MultiValue, LastGood, nine[:4], lost, nil, []int{1, 2}, 2},
		{"nobody knows which was good: all", Latency, LastGood, byName("a b c d"), never, nil, []int{0}, 1},
		{"nobody knows which of many was good", MultiValue, LastGood, nine, never, nil, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}, 8},
		{"none of many", MultiValue, None, nine, lost, nil, nil, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			set := Set{Policy: test.policy, Otherwise: test.otherwise, Candidates: test.all}
			random := rand.New(rand.NewPCG(1, 2))
			came := map[int]bool{}
			for range 300 {
				h := Health{
					Healthy: func(i int) bool { return slices.Contains(test.healthy, i) },
					Lost:    func(i int) time.Time { return test.lost[i] },
				}
				got, _ := set.Choose(nil, &Client{Country: "KR", Location: seoul}, random.Uint64(), h, nil)
				if len(got) != test.atOnce {
					t.Fatalf("got %v, want %d", got, test.atOnce)
				}
				for _, i := range got {
					came[i] = true
				}
			}
			if got := slices.Sorted(maps.Keys(came)); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestTheReasonsAreTold(t *testing.T) {
	offices := collection("seoul 10.0.0.0/8", "tokyo 10.1.0.0/16", "dublin 192.0.2.0/24")
	client := Client{
		Network: netip.MustParsePrefix("10.1.2.0/24"), Country: "KR", Continent: "AS", Location: seoul,
		RoundTrip: measured(map[string]float64{"eu-west-1": 237.12}),
	}
	for _, test := range []struct {
		set     Set
		healthy string
		want    string
	}{
		{Set{Policy: Weighted, Candidates: []Candidate{{ID: "blue", Weight: 1}, {ID: "green"}}}, "green", `
			weighted among 2
			  blue: weight 1 of 1
			  green: weight 0, in reserve
			  chosen: green`},
		{Set{Policy: Weighted, Candidates: []Candidate{{ID: "blue", Weight: 1}, {ID: "green"}}}, "blue", `
			weighted among 2
			  blue: weight 1 of 1
			  green: weight 0, in reserve
			  chosen: blue
			  not green: another came up (and not healthy)`},
		{Set{Policy: Latency, Candidates: []Candidate{region("eu-west-1", ireland), region("lab", nil), region("us-east-1", virginia), region("ap-northeast-1", tokyo)}}, "ap-northeast-1 eu-west-1", `
			latency among 4
			  ap-northeast-1: ap-northeast-1, about 18ms away
			  us-east-1: us-east-1, about 178ms away
			  eu-west-1: eu-west-1, 237.1ms away by measurement
			  lab: lab, nobody knows how far
			  chosen: ap-northeast-1
			  not us-east-1: farther away (and not healthy)
			  not eu-west-1: farther away (healthy)
			  not lab: farther away (and not healthy)`},
		{Set{Policy: Geoproximity, Candidates: []Candidate{biasedAt("tokyo", tokyo, 50), biasedAt("seoul", at(37.5, 129), -90)}}, "tokyo seoul", `
			geoproximity among 2
			  tokyo: at coordinates, 1152 km away, with bias +50 as if 576 km
			  seoul: at coordinates, 178 km away, with bias -90 as if 1783 km
			  chosen: tokyo
			  not seoul: farther away, with its bias (healthy)`},
		{Set{Policy: Geolocation, Candidates: []Candidate{country("*"), country("KR"), state("US", "CA")}}, "*", `
			geolocation among 3
			  KR: holds for KR
			  *: holds for *
			  US-CA: is for US-CA, not for the client
			  chosen: *`},
		{Set{Policy: CIDR, Blocks: offices, Candidates: []Candidate{inBlock("*"), inBlock("seoul"), inBlock("tokyo"), inBlock("dublin")}}, "tokyo", `
			CIDR among 4
			  tokyo: the client is in 10.1.0.0/16
			  seoul: the client is in 10.0.0.0/8
			  tokyo: holds for tokyo
			  seoul: holds for seoul
			  *: holds for *
			  dublin: is for dublin, not for the client
			  chosen: tokyo
			  not seoul: a shorter block (and not healthy)
			  not *: a shorter block (and not healthy)`},
		{Set{Policy: Failover, Otherwise: None, Candidates: []Candidate{role(spec.Primary), role(spec.Secondary)}}, "", `
			failover among 2
			  none is healthy: no answer`},
		{Set{Policy: Failover, Candidates: []Candidate{role(spec.Primary), role(spec.Secondary)}}, "PRIMARY", `
			failover among 2
			  chosen: PRIMARY
			  not SECONDARY: the primary is healthy (and not healthy)`},
		{Set{Policy: Failover, Otherwise: LastGood, Candidates: []Candidate{role(spec.Primary), role(spec.Secondary)}}, "", `
			failover among 2
			  none is healthy: those that were until 1970-01-01T00:00:01Z
			  chosen: SECONDARY`},
	} {
		healthy := func(i int) bool { return slices.Contains(strings.Fields(test.healthy), test.set.Candidates[i].ID) }
		tr := new(trace.Trace)
		test.set.Choose(nil, &client, 0, Health{Healthy: healthy, Shown: healthy, Lost: func(i int) time.Time { return time.Unix(int64(i), 0) }}, tr)
		if want := strings.ReplaceAll(strings.TrimPrefix(test.want, "\n"), "\t", "") + "\n"; tr.String() != want {
			t.Errorf("got\n%swant\n%s", tr, want)
		}
	}
}

// usually are choices as they come up, of not more than usual.
func usually() map[Policy]Set {
	return map[Policy]Set{
		Weighted:     {Candidates: weights(1, 2, 3)},
		Latency:      {Candidates: []Candidate{region("a", seoul), region("b", tokyo), region("c", virginia), region("d", ireland)}},
		Geolocation:  {Candidates: []Candidate{country("*"), continent("AS"), country("KR")}},
		MultiValue:   {Candidates: make([]Candidate, 12)},
		Failover:     {Candidates: []Candidate{role(spec.Secondary), role(spec.Primary)}},
		Geoproximity: {Candidates: []Candidate{biasedAt("a", seoul, 10), biasedAt("b", tokyo, 0), biasedAt("c", virginia, -10), biasedAt("d", ireland, 0)}},
		CIDR:         {Candidates: []Candidate{inBlock("*"), inBlock("a"), inBlock("b")}, Blocks: collection("a 10.0.0.0/8", "b 10.1.0.0/16", "c 192.0.2.0/24")},
	}
}

func usualClient() *Client {
	return &Client{
		Network: netip.MustParsePrefix("10.1.2.0/24"), Country: "KR", Continent: "AS", Location: seoul, PlaceBits: 20,
		RoundTrip: measured(map[string]float64{"b": 100}), RoundTripBits: 24,
	}
}

func TestChoosingAllocatesNothing(t *testing.T) {
	client := usualClient()
	for p, set := range usually() {
		set.Policy, set.Otherwise = p, LastGood
		bad := uint64(0)
		h := Health{Healthy: func(i int) bool { return bad>>i&1 == 0 }, Lost: func(i int) time.Time { return time.Unix(int64(i), 0) }}
		for _, bad = range []uint64{0, 1, 3, math.MaxUint64} {
			if n := testing.AllocsPerRun(100, func() {
				var room [MaxValues]int
				set.Choose(room[:0], client, bad, h, nil)
			}); n != 0 {
				t.Errorf("%s: %v allocations with %x bad", p, n, bad)
			}
		}
	}
}

func BenchmarkChoose(b *testing.B) {
	client := usualClient()
	for p, set := range usually() {
		set.Policy = p
		b.Run(p.String(), func(b *testing.B) {
			b.ReportAllocs()
			random := uint64(0)
			for b.Loop() {
				var room [MaxValues]int
				random += 1 << 57
				set.Choose(room[:0], client, random, allHealthy, nil)
			}
		})
	}
}
