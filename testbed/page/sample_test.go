package page

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"
)

const second = time.Second

// sample is a run as the laboratory makes them: 20 s, 3 faults of which 2 are taken back, 5 clients that get and dig.
func sample() Run {
	scenario := `# A user is served by the nearest POP, and by the next when it dies.
status all                                   => agree icn1/ fra1/ iad1/
begin pages for 19s get all http://www.demo.perigee.test/ => 200
after 4s
kill icn1
within 5s get seoul http://www.demo.perigee.test/ => 200 !icn1
within 10s dig seoul www.demo.perigee.test A => !(icn1)
after 2s

# Back again, it takes its users back.
start icn1
within 10s get seoul http://www.demo.perigee.test/ => 200 icn1
# A way is lost in silence, and found again.
cut fra iad
within 5s status fra1                        => !iad1/
after 2s
heal fra iad
within 5s status all                         => agree icn1/ fra1/ iad1/
slow fra icn 400ms
within 1s get lagos http://www.demo.perigee.test/ => 200 iad1
end pages                                    => !error
`
	r := Run{
		Title: "Served by the nearest, and by the next when it dies", Scenario: scenario,
		Testbed: "three", WAN: "userspace", Machine: "2 processors, 10 GB, Linux 6.18.5",
		Began: time.Date(2026, 11, 24, 9, 30, 12, 0, time.UTC), Took: 20400 * time.Millisecond,
		Fault: `line 20: within 1s get lagos http://www.demo.perigee.test/ => 200 iad1: last result was "200 Hit fra1 age=3"`,
		Sites: []Site{
			{"icn", "Seoul", 37.57, 126.98, []string{"icn1", "icn-a", "icn-b"}},
			{"fra", "Frankfurt", 50.11, 8.68, []string{"fra1", "fra-a", "fra-b"}},
			{"iad", "Ashburn", 39.04, -77.49, []string{"iad1", "iad-a", "iad-b"}},
		},
		Links: []Link{{"icn", "fra", 223 * time.Millisecond}, {"icn", "iad", 182 * time.Millisecond}, {"fra", "iad", 91 * time.Millisecond}},
		Clients: []Client{
			{"seoul", "Seoul", 37.57, 126.98, "icn"}, {"mumbai", "Mumbai", 19.08, 72.88, "fra"}, {"lagos", "Lagos", 6.52, 3.38, "fra"},
			{"saopaulo", "São Paulo", -23.55, -46.63, "iad"}, {"sydney", "Sydney", -33.87, 151.21, "icn"},
		},
	}
	at := func(s float64) time.Duration { return time.Duration(s * 1e9) }
	line := 0
	lines := strings.Split(scenario, "\n")
	step := func(verb string, t, took float64, times int, result string, fault bool) {
		for line++; !strings.Contains(" "+lines[line-1], " "+verb) || strings.HasPrefix(lines[line-1], "#"); line++ {
		}
		r.Steps = append(r.Steps, Step{Line: line, Text: lines[line-1], Verb: verb, At: at(t), Took: at(took), Times: times, Result: result, Fault: fault})
	}
	step("status", 0, 0.04, 1, "agree icn1/16 fra1/16 iad1/16 leader=fra1", false)
	step("get", 0.05, 19.9, 512, "", false)
	step("after", 0.05, 4, 1, "", false)
	step("kill", 4.05, 0.01, 1, "killed icn1", true)
	step("get", 4.06, 1.42, 7, "200 Miss fra1", false)
	step("dig", 5.48, 1.19, 6, "NOERROR 198.51.100.2 (fra1)", false)
	step("after", 6.67, 2, 1, "", false)
	step("start", 8.67, 0.21, 1, "started icn1", false)
	step("get", 8.88, 1.95, 9, "200 Miss icn1", false)
	step("cut", 11.02, 0.01, 1, "silent: fra iad", true)
	step("status", 11.03, 1.3, 5, "fra1/14 icn1/14", false)
	step("after", 12.33, 2, 1, "", false)
	step("heal", 14.33, 0.01, 1, "", false)
	step("status", 14.34, 1.61, 6, "agree icn1/16 fra1/16 iad1/16", false)
	step("slow", 16.2, 0.01, 1, "fra icn 400ms", true)
	step("get", 16.22, 1.0, 5, "200 Hit fra1 age=3", false)
	r.Steps[len(r.Steps)-1].Failed = true
	step("end", 20.2, 0, 0, "512 times 200", false)

	random := rand.New(rand.NewPCG(1, 2))
	base := map[string]map[string]float64{
		"seoul": {"icn": 4.4, "fra": 228, "iad": 187}, "mumbai": {"fra": 118, "icn": 161, "iad": 198}, "lagos": {"fra": 96, "iad": 142, "icn": 310},
		"saopaulo": {"iad": 121, "fra": 205, "icn": 304}, "sydney": {"icn": 139, "iad": 202, "fra": 284},
	}
	for _, how := range []string{"get", "dig"} {
		for _, c := range r.Clients {
			s := Series{Name: how + " " + c.Name, Unit: "ms"}
			late := 1.4 // until routing, or DNS, has moved
			trips := 2.0
			if how == "dig" {
				late, trips = 2.6, 1
			}
			for t := 0.2 + 0.1*random.Float64(); t < 20; t += 0.19 + 0.02*random.Float64() {
				by := c.Site
				failed := false
				if by == "icn" && t > 4.05 && t < 8.67+late*0.75 {
					by = "iad"
					if c.Name == "seoul" {
						by = "fra"
					}
					failed = t < 4.05+late && how == "get"
				}
				if c.Name == "saopaulo" && t > 11.02 && t < 12.1 && random.Float64() < 0.5 {
					failed = true
				}
				ms := base[c.Name][by]*trips/2 + 1.5 + 6*random.ExpFloat64()*random.Float64()
				if random.Float64() < 0.02 {
					ms += 200 * random.Float64()
				}
				one := Sample{At: at(t), Took: time.Duration(ms * 1e6), OK: !failed, By: by + "1"}
				if failed {
					one.Took, one.By, one.Note = time.Second/2, "", "connection timed out"
				}
				s.Samples = append(s.Samples, one)
			}
			r.Series = append(r.Series, s)
		}
	}
	event := func(t float64, node, kind, text, id string, causes ...string) {
		r.Events = append(r.Events, Event{at(t), node, kind, text, id, causes})
	}
	event(4.35, "fra1", "link", "the link to icn1 is silent", "31")
	event(4.95, "iad1", "link", "the link to icn1 is silent", "28")
	event(5.21, "fra1", "member", "icn1 is dead: not heard of for 1.1 s, iad1 says so too", "32", "31", "iad1/28")
	event(5.22, "fra1", "answer", "www.demo.perigee.test leads nobody to icn1 any more", "33", "32")
	event(5.24, "iad1", "member", "icn1 is dead", "29", "28")
	event(5.25, "iad1", "answer", "www.demo.perigee.test leads nobody to icn1 any more", "30", "29")
	event(9.6, "icn1", "start", "caught up with revision 16 from fra1", "1")
	event(9.9, "fra1", "member", "icn1 is alive", "34")
	event(9.93, "fra1", "answer", "www.demo.perigee.test leads to icn1 again", "35", "34")
	event(10.1, "iad1", "member", "icn1 is alive", "31")
	event(12.1, "fra1", "link", "the link to iad1 is silent", "36")
	event(12.14, "iad1", "link", "the link to fra1 is silent", "32")
	event(14.9, "fra1", "link", "the link to iad1 carries again", "37", "36")
	event(17.4, "fra1", "distance", "icn1 is 623 ms away, was 223 ms", "38")
	r.Figures = []Figure{
		{"a dead POP's users are served by another, by routing", 1.42, "s", "≤ 2 s", true},
		{"the same by DNS", 2.61, "s", "≤ 4 s", true},
		{"answers lost by the first POP's death", 14, "of 512", "", true},
		{"a cut link is noticed", 1.08, "s", "≤ 1.5 s", true},
		{"a slow way is left", 2.3, "s", "≤ 1 s", false},
		{"memory of a node", 61.4, "MB", "≤ 80 MB", true},
	}
	return r
}

// large is a run at the size of the largest world: 20 sites, full mesh, 50 clients, long.
func large() Run {
	r := Run{Title: "Twenty nodes in six regions, an hour under load", Passed: true, Took: time.Hour, Testbed: "aws", WAN: "netem", Machine: "2 processors"}
	cities := []Site{
		{Name: "icn", City: "Seoul", Lat: 37.6, Lon: 127}, {Name: "nrt", City: "Tokyo", Lat: 35.7, Lon: 139.7}, {Name: "kix", City: "Osaka", Lat: 34.7, Lon: 135.5}, {Name: "sin", City: "Singapore", Lat: 1.35, Lon: 103.8},
		{Name: "hkg", City: "Hong Kong", Lat: 22.3, Lon: 114.2}, {Name: "bom", City: "Mumbai", Lat: 19.1, Lon: 72.9}, {Name: "hyd", City: "Hyderabad", Lat: 17.4, Lon: 78.5}, {Name: "syd", City: "Sydney", Lat: -33.9, Lon: 151.2},
		{Name: "mel", City: "Melbourne", Lat: -37.8, Lon: 145}, {Name: "fra", City: "Frankfurt", Lat: 50.1, Lon: 8.7}, {Name: "dub", City: "Dublin", Lat: 53.3, Lon: -6.3}, {Name: "lhr", City: "London", Lat: 51.5, Lon: -0.1},
		{Name: "cdg", City: "Paris", Lat: 48.9, Lon: 2.4}, {Name: "arn", City: "Stockholm", Lat: 59.3, Lon: 18.1}, {Name: "mxp", City: "Milan", Lat: 45.5, Lon: 9.2}, {Name: "zrh", City: "Zurich", Lat: 47.4, Lon: 8.5},
		{Name: "iad", City: "Ashburn", Lat: 39, Lon: -77.5}, {Name: "cmh", City: "Columbus", Lat: 40, Lon: -83}, {Name: "sfo", City: "San Francisco", Lat: 37.8, Lon: -122.4}, {Name: "pdx", City: "Portland", Lat: 45.5, Lon: -122.7},
		{Name: "gru", City: "São Paulo", Lat: -23.6, Lon: -46.6}, {Name: "cpt", City: "Cape Town", Lat: -33.9, Lon: 18.4},
	}
	random := rand.New(rand.NewPCG(3, 4))
	for i, s := range cities {
		s.Hosts = []string{s.Name + "1", s.Name + "-a"}
		r.Sites = append(r.Sites, s)
		for _, o := range cities[:i] {
			r.Links = append(r.Links, Link{o.Name, s.Name, time.Duration(5+math.Hypot(s.Lat-o.Lat, s.Lon-o.Lon)*1.5) * time.Millisecond})
		}
	}
	for i := range 50 {
		near := cities[i%len(cities)]
		name := fmt.Sprintf("client%02d", i)
		r.Clients = append(r.Clients, Client{name, "City " + name, near.Lat + 8*random.Float64() - 4, near.Lon + 10*random.Float64() - 5, near.Name})
		s := Series{Name: "get " + name}
		for t := time.Duration(0); t < r.Took; t += 1200 * time.Millisecond {
			s.Samples = append(s.Samples, Sample{At: t, Took: time.Duration((8 + 90*random.ExpFloat64()) * 1e6), OK: random.Float64() > 0.001, By: near.Name + "1"})
		}
		r.Series = append(r.Series, s)
	}
	for i := range 40 {
		r.Steps = append(r.Steps, Step{Line: i + 1, Text: "kill " + cities[i%20].Name + "1", Verb: "kill", At: time.Duration(i) * 80 * time.Second, Fault: true})
	}
	for i := range 9000 {
		r.Events = append(r.Events, Event{At: time.Duration(i) * 380 * time.Millisecond, Node: cities[i%20].Name + "1", Kind: "member", Text: "somebody is here", ID: fmt.Sprint(i), Causes: []string{fmt.Sprint(i - 20)}})
	}
	return r
}
