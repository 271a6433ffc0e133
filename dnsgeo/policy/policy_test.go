package policy

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
)

func at(latitude, longitude float64) *spec.Location {
	return &spec.Location{Latitude: latitude, Longitude: longitude}
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

func region(name string, l *spec.Location) Candidate {
	return Candidate{ID: name, Region: name, Location: l}
}

func role(r string) Candidate { return Candidate{ID: r, Failover: r} }

// The rows of Route 53's guide for failover, latency and geolocation, and of its surprising corners.
func TestThePolicyChooses(t *testing.T) {
	failover := []Candidate{role(spec.Secondary), role(spec.Primary)}
	latency := []Candidate{region("us-east-1", virginia), region("ap-northeast-2", seoul), region("ap-northeast-1", tokyo)}
	geolocation := []Candidate{country("*"), continent("AS"), country("KR"), country("US")}
	noDefault := []Candidate{continent("AS"), country("KR")}
	inKorea := Client{Country: "KR", Continent: "AS", Location: seoul}
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

		{"one record", Simple, []Candidate{{}}, Client{}, "", "the record"},
		{"one record of a multivalue name", MultiValue, []Candidate{{ID: "a"}}, Client{}, "", "a"},
		{"a weight of 0 alone", Weighted, []Candidate{{ID: "a"}}, Client{}, "", "a"},
	} {
		t.Run(test.name, func(t *testing.T) {
			healthy := func(i int) bool { return slices.Contains(strings.Fields(test.healthy), test.all[i].ID) }
			for random := range uint64(20) {
				tr := new(trace.Trace)
				got := Choose(nil, test.policy, test.all, test.client, random<<60, healthy, tr)
				var names []string
				for _, i := range got {
					names = append(names, test.all[i].name())
				}
				if strings.Join(names, " ") != test.want {
					t.Fatalf("got %q, want %q, because\n%s", names, test.want, tr)
				}
				if explained := Choose(nil, test.policy, test.all, test.client, random<<60, healthy, nil); !slices.Equal(got, explained) {
					t.Fatalf("explained %v, chosen %v", got, explained)
				}
			}
		})
	}
}

const draws = 100_000

// shares says in what part of the draws each of the candidates is chosen.
func shares(all []Candidate, healthy func(int) bool) map[string]float64 {
	random := rand.New(rand.NewPCG(1, 2))
	times := map[string]int{}
	for range draws {
		for _, i := range Choose(nil, Weighted, all, Client{}, random.Uint64(), healthy, nil) {
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
	weights := func(w ...int) (all []Candidate) {
		for i, w := range w {
			all = append(all, Candidate{ID: string(rune('a' + i)), Weight: w})
		}
		return all
	}
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
			got := Choose(nil, MultiValue, all[:test.of], Client{}, random.Uint64(), func(i int) bool { return i < test.healthy }, nil)
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
	all := []Candidate{{ID: "a", Weight: 1}}
	if got := Choose([]int{7}, Weighted, all, Client{}, 0, func(int) bool { return false }, nil); !slices.Equal(got, []int{7, 0}) {
		t.Errorf("got %v", got)
	}
}

func TestTheReasonsAreTold(t *testing.T) {
	tr := new(trace.Trace)
	all := []Candidate{{ID: "blue", Weight: 1}, {ID: "green", Weight: 0}}
	Choose(nil, Weighted, all, Client{}, 0, func(i int) bool { return i == 1 }, tr)
	want := "weighted among 2\n  blue: weight 1 of 1\n  green: weight 0, in reserve\n  chosen: green\n"
	if tr.String() != want {
		t.Errorf("got\n%swant\n%s", tr, want)
	}
}

func BenchmarkChoose(b *testing.B) {
	all := map[Policy][]Candidate{
		Weighted:    {{Weight: 1}, {Weight: 2}, {Weight: 3}},
		Latency:     {region("a", seoul), region("b", tokyo), region("c", virginia), region("d", ireland)},
		Geolocation: {country("*"), continent("AS"), country("KR")},
		MultiValue:  make([]Candidate, 12),
	}
	for p, all := range all {
		b.Run(p.String(), func(b *testing.B) {
			b.ReportAllocs()
			random := uint64(0)
			for b.Loop() {
				var room [MaxValues]int
				random += 1 << 57
				Choose(room[:0], p, all, Client{Country: "KR", Continent: "AS", Location: seoul}, random, func(int) bool { return true }, nil)
			}
		})
	}
}
