package wan

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/perigee-net/perigee/cluster/spec"
)

var update = flag.Bool("update", false, "write the golden files")

func builtIn(t testing.TB, name string) *World {
	t.Helper()
	w, err := BuiltIn(name)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func decode(t testing.TB, text string) *World {
	t.Helper()
	w, err := Decode("world.yaml", []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

// addresses is a world in lines.
func addresses(w *World) string {
	var b strings.Builder
	for _, s := range w.Sites {
		fmt.Fprintf(&b, "site %d %s %s %s (%s) %.2f %.2f %v %v\n", s.Number, s.Name, s.Region, s.City, s.Country, s.At.Latitude, s.At.Longitude, s.V4, s.V6)
	}
	for _, h := range w.Hosts {
		fmt.Fprintf(&b, "%s %s %s/%s/%s %d %v %v %s\n", h.Kind, h.Name, h.Site, h.Region, h.POP, h.Number, h.V4, h.V6, h.Program)
	}
	for _, l := range w.Links {
		fmt.Fprintf(&b, "link %d %s %v %s %v %v %v\n", l.Number, l.A, l.V4A, l.B, l.V4B, l.AB, l.BA)
	}
	for _, p := range Places()[:9] {
		h, err := w.Place(p.Name)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(&b, "%s %s %s %d %v %v %v\n", h.Kind, h.Name, h.Site, h.Number, h.V4, h.V6, h.Access)
	}
	return b.String()
}

func TestTheWorldOfThreeIsAsItWas(t *testing.T) {
	got := addresses(builtIn(t, "three"))
	const golden = "testdata/three.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("addresses are for always; -want +got:\n%s", d)
	}
}

func TestBuiltInWorldsAreOfTheSizesTheySay(t *testing.T) {
	for _, c := range []struct {
		name                  string
		sites, nodes, targets int
	}{{"three", 3, 3, 6}, {"six", 6, 6, 12}, {"twenty", 6, 20, 12}, {"aws", 20, 20, 20}} {
		w := builtIn(t, c.name)
		kinds := map[Kind]int{}
		for _, h := range w.Hosts {
			kinds[h.Kind]++
		}
		want := map[Kind]int{Node: c.nodes, Target: c.targets, Origin: 2, Resolver: c.sites, Root: 1, TLD: 1}
		if len(w.Sites) != c.sites || !maps.Equal(kinds, want) || len(w.Links) != c.sites*(c.sites-1)/2 || w.Name != c.name {
			t.Errorf("%s has %d sites, %d links, hosts %v, want %v", c.name, len(w.Sites), len(w.Links), kinds, want)
		}
		for _, l := range w.Links {
			if l.AB.Delay <= 0 || l.AB != l.BA {
				t.Errorf("%s: %s–%s: %v %v", c.name, l.A, l.B, l.AB, l.BA)
			}
		}
	}
	if _, err := BuiltIn("../three"); err == nil {
		t.Error("a world that is none of ours")
	}
}

func TestNoTwoHaveOneAddress(t *testing.T) {
	largest := decode(t, largestWorld())
	for _, w := range []*World{builtIn(t, "three"), builtIn(t, "aws"), largest} {
		for _, p := range Places() {
			h, err := w.Place(p.Name)
			if err == nil && len(w.Hosts) < MaxHosts {
				_, err = w.Add(h)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		seen := map[netip.Addr]string{}
		note := func(who string, addrs ...netip.Addr) {
			for _, a := range addrs {
				if other, taken := seen[a]; taken || !a.IsValid() {
					t.Errorf("%s: %v is %s's and %s's", w.Name, a, other, who)
				}
				seen[a] = who
			}
		}
		for _, s := range w.Sites {
			note(s.Name, s.V4, s.V6)
		}
		for _, h := range w.Hosts {
			note(h.Name, h.V4, h.V6)
			s, _ := w.Site(h.Site)
			if p := s.Prefixes(); !p[0].Contains(h.V4) || !p[1].Contains(h.V6) {
				t.Errorf("%v and %v are not in %v of %s", h.V4, h.V6, p, s.Name)
			}
		}
		links := netip.MustParsePrefix("10.255.0.0/16")
		for _, l := range w.Links {
			note(l.A+"–"+l.B, l.V4A, l.V4B)
			if l.V4A.Next() != l.V4B || netip.PrefixFrom(l.V4B, 31).Masked().Addr() != l.V4A || !links.Contains(l.V4A) {
				t.Errorf("%v and %v are no /31 of %v", l.V4A, l.V4B, links)
			}
		}
	}
	if len(largest.Sites) != MaxSites || len(largest.Hosts) != MaxHosts {
		t.Errorf("the largest world has %d sites and %d hosts", len(largest.Sites), len(largest.Hosts))
	}
	seen := map[netip.Addr]int{}
	for n := 1; n < firstPlace+len(places); n++ {
		v4, v6 := hostAddrs(60, n)
		if seen[v4]+seen[v6] > 0 || v4.As4()[1] != 60 || v4.As4()[3] < 2 || v4.As4()[3] > 251 {
			t.Errorf("host %d: %v, %v", n, v4, v6)
		}
		seen[v4], seen[v6] = n, n
	}
}

// largestWorld has 60 sites and 446 hosts: with all places, 500.
func largestWorld() string {
	var b strings.Builder
	b.WriteString("name: large\nnodesPerSite: 4\ntargetsPerSite: 2\nsites:\n")
	for i := range MaxSites {
		fmt.Fprintf(&b, "  - {name: s%d-x, region: r%d, at: {latitude: %d, longitude: %d}}\n", i, i, i-30, 3*i-90)
	}
	b.WriteString("origins:\n")
	for i := range 24 {
		fmt.Fprintf(&b, "  - {name: origin%d, site: s%d-x}\n", i, i)
	}
	return b.String()
}

func TestAWSsMatrixIsWholeAndNoFasterThanLight(t *testing.T) {
	m := AWS()
	if len(m.Regions) != 20 || len(m.RTT) != 190 || m.Source == "" || m.Date == "" {
		t.Errorf("%d regions, %d pairs, by %q at %q", len(m.Regions), len(m.RTT), m.Source, m.Date)
	}
	for i, a := range m.Regions {
		if a.City == "" || a.Country == "" || a.Continent == "" {
			t.Errorf("where is %+v?", a)
		}
		for _, b := range m.Regions[i+1:] {
			d, ok := m.Between(b.Name, a.Name)
			if light := a.At.Light(b.At); !ok || d < light || d > 5*light+30*time.Millisecond {
				t.Errorf("%s–%s: %v, %v; light takes %v", a.Name, b.Name, d, ok, light)
			}
		}
	}
	// Some figures as they were published.
	for _, c := range []struct {
		a, b string
		want time.Duration
	}{
		{"us-east-1", "us-west-2", 64419 * time.Microsecond}, {"eu-central-1", "ap-northeast-2", 230834 * time.Microsecond},
		{"sa-east-1", "ap-northeast-1", 258918 * time.Microsecond}, {"ap-northeast-1", "ap-northeast-2", 36343 * time.Microsecond},
		{"af-south-1", "ap-southeast-2", 408790 * time.Microsecond},
	} {
		if got, _ := m.Between(c.a, c.b); got != c.want {
			t.Errorf("%s–%s: %v, want %v", c.a, c.b, got, c.want)
		}
	}
}

func TestAWorldIsTheSameAfterATripThroughJSON(t *testing.T) {
	for _, name := range BuiltIns() {
		w := builtIn(t, name)
		h, err := w.Place("lagos")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Add(h); err != nil {
			t.Fatal(err)
		}
		l, _ := w.Link("fra", "iad")
		l.AB.Loss, l.AB.Jitter = 0.2, time.Millisecond
		data, err := json.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		var back World
		if err := json.Unmarshal(data, &back); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(w, &back, compareAddrs, comparePrefixes); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestAClientIsAtTheNearestSiteAndItsAddressStays(t *testing.T) {
	w := builtIn(t, "three")
	for place, site := range map[string]string{
		"seoul": "icn", "sydney": "icn", "singapore": "icn", "frankfurt": "fra", "lagos": "fra", "mumbai": "icn", "saopaulo": "iad", "honolulu": "icn",
	} {
		before, err := w.Place(place)
		if err != nil || before.Site != site {
			t.Errorf("%s is at %s (%v), want %s", place, before.Site, err, site)
		}
		added, err := w.Add(before)
		if err != nil {
			t.Fatal(err)
		}
		after, err := w.Place(place)
		if d := cmp.Diff(before, after, compareAddrs); d != "" || err != nil {
			t.Errorf("%s, %v: %s", place, err, d)
		}
		if d := cmp.Diff(before, added, compareAddrs); d != "" {
			t.Errorf("%s: %s", place, d)
		}
		if _, err := w.Add(before); err == nil {
			t.Errorf("%s is here twice", place)
		}
	}
	seoul, _ := w.Place("seoul")
	if seoul.Access.Delay != 2*time.Millisecond {
		t.Errorf("in Seoul itself the last mile is %v each way, want half of 4 ms", seoul.Access.Delay)
	}
	// Lagos–Frankfurt, 4,852 km of the great circle: × 1.4 at 200 km/ms.
	if lagos, _ := w.Place("lagos"); lagos.Access.Delay.Round(time.Millisecond) != 36*time.Millisecond {
		t.Errorf("from Lagos: %v", lagos.Access.Delay)
	}
	if _, err := w.Place("atlantis"); err == nil || !strings.Contains(err.Error(), "reykjavik") {
		t.Errorf("Atlantis: %v", err)
	}
	// Of the same sites in a larger world, the number is the same, and the address where the site is.
	a, _ := builtIn(t, "three").Place("london")
	b, _ := builtIn(t, "twenty").Place("london")
	if a.V4 != b.V4 || a.V6 != b.V6 || a.Number != 1004 {
		t.Errorf("London is %v and %v", a, b)
	}
}

func TestPlacesAreWhereNoOtherIs(t *testing.T) {
	seen := map[string]bool{}
	for i, p := range Places() {
		if seen[p.Name] || labelProblem(p.Name, maxName) != "" || p.City == "" || len(p.Country) != 2 || !strings.Contains(" AF AN AS EU NA OC SA ", p.Continent) {
			t.Errorf("%+v", p)
		}
		seen[p.Name] = true
		for _, o := range Places()[:i] {
			if p.At.Kilometres(o.At) < 100 {
				t.Errorf("%s is at %s", p.Name, o.Name)
			}
			if p.Country == o.Country && p.Continent != o.Continent {
				t.Errorf("%s of %s is on two continents", p.City, p.Country)
			}
		}
	}
	if len(seen) < 50 {
		t.Errorf("%d places", len(seen))
	}
}

func TestARoundTripIsThatOfTheFastestWay(t *testing.T) {
	w := builtIn(t, "three")
	direct, _ := w.Link("icn", "fra")
	if got := w.RTT("icn1", "fra-a"); got != direct.RTT() || got != 230834*time.Microsecond || got != w.RTT("fra", "icn") {
		t.Errorf("icn–fra: %v, the link %v", got, direct.RTT())
	}
	if got := w.RTT("icn1", "icn-b"); got != 0 {
		t.Errorf("inside icn: %v", got)
	}
	for _, place := range []string{"lagos", "saopaulo"} {
		h, err := w.Place(place)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Add(h); err != nil {
			t.Fatal(err)
		}
	}
	lagos, _ := w.Host("lagos")
	paulo, _ := w.Host("saopaulo")
	between, _ := w.Link("fra", "iad")
	if got, want := w.RTT("lagos", "saopaulo"), 2*lagos.Access.Delay+2*paulo.Access.Delay+between.RTT(); got != want {
		t.Errorf("Lagos–São Paulo: %v, want %v", got, want)
	}
	if got := w.RTT("lagos", "fra1"); got != 2*lagos.Access.Delay {
		t.Errorf("Lagos–fra1: %v", got)
	}
	direct.AB.Delay = 5 * time.Second // now the way over Virginia is faster
	b, _ := w.Link("icn", "iad")
	if got, want := w.RTT("icn1", "fra1"), between.RTT()+b.RTT(); got != want {
		t.Errorf("around: %v, want %v", got, want)
	}
	if got := w.RTT("icn1", "nobody"); got != 0 {
		t.Errorf("to nobody: %v", got)
	}
}

func TestHostsAreAddedWithTheNextNumber(t *testing.T) {
	w := builtIn(t, "three")
	place, _ := w.Place("tokyo")
	if _, err := w.Add(place); err != nil {
		t.Fatal(err)
	}
	before := len(w.Hosts)
	h, err := w.Add(Host{Name: "icn2", Kind: Node, Site: "icn"})
	if err != nil {
		t.Fatal(err)
	}
	// icn1, icn-a, icn-b, resolver-icn and root are there.
	if h.Number != 6 || h.V4 != netip.MustParseAddr("10.1.0.7") || h.V6 != netip.MustParseAddr("fd00:0:1::7") || h.POP != "icn1" || h.Region != "ap-northeast-2" || len(w.Hosts) != before+1 {
		t.Errorf("%+v", h)
	}
	for _, bad := range []Host{
		{Name: "icn2", Kind: Node, Site: "icn"}, {Name: "Icn3", Kind: Node, Site: "icn"}, {Name: "x", Kind: Node, Site: "nowhere"},
		{Name: "icn", Kind: Node, Site: "icn"}, {Name: "router-fra", Kind: Node, Site: "icn"}, {Name: "paris", Kind: Node, Site: "icn"},
		{Name: "", Kind: Node, Site: "icn"}, {Name: "n", Kind: Node, Site: "icn", Number: firstPlace, V4: place.V4},
		{Name: "c", Kind: Client, Site: "icn", Access: &Path{Loss: 2}},
	} {
		if h, err := w.Add(bad); err == nil {
			t.Errorf("%+v was added as %+v", bad, h)
		}
	}
	for i := len(w.Hosts); i < MaxHosts; i++ {
		if _, err := w.Add(Host{Name: fmt.Sprintf("c%d", i), Kind: Client, Site: "fra"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Add(Host{Name: "toomany", Kind: Client, Site: "fra"}); err == nil {
		t.Error("one too many was added")
	}
}

func TestAPathIsValidated(t *testing.T) {
	nan := 0.0
	nan /= nan
	for _, c := range []struct {
		p    Path
		want string
	}{
		{Path{}, ""},
		{Path{Delay: time.Second, Jitter: time.Second, Loss: 1, Reorder: 1, Rate: MinRate, Queue: 1}, ""},
		{Path{Delay: -1}, "delay"}, {Path{Delay: MaxDelay + 1}, "delay"},
		{Path{Delay: 1, Jitter: 2}, "jitter"}, {Path{Jitter: -1}, "jitter"},
		{Path{Loss: 1.1}, "loss"}, {Path{Loss: -0.1}, "loss"}, {Path{Loss: nan}, "loss"}, {Path{Reorder: nan}, "reorder"},
		{Path{Rate: 1}, "rate"}, {Path{Rate: MaxRate + 1}, "rate"}, {Path{Queue: -1}, "queue"}, {Path{Queue: MaxQueue + 1}, "queue"},
	} {
		err := c.p.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.p, err, c.want)
		}
	}
}

func TestEveryAddressIsFoundWhereItIs(t *testing.T) {
	w := decode(t, `
name: w
sites: [{name: icn, region: ap-northeast-2}, {name: x, region: elsewhere, at: {latitude: -18, longitude: 178}, country: FJ}]
`)
	rows := w.GeoTable()
	find := func(a netip.Addr) GeoRow {
		var best GeoRow
		for _, r := range rows {
			if r.Prefix.Contains(a) && (!best.Prefix.IsValid() || r.Prefix.Bits() > best.Prefix.Bits()) {
				best = r
			}
		}
		return best
	}
	for i, r := range rows[1:] {
		if rows[i].Prefix.Bits() == r.Prefix.Addr().BitLen() && r.Prefix.Bits() < r.Prefix.Addr().BitLen() {
			t.Errorf("%v comes after %v", r, rows[i])
		}
	}
	tokyo, _ := w.Place("tokyo")
	newyork, _ := w.Place("newyork")
	icn1, _ := w.Host("icn1")
	x1, _ := w.Host("x1")
	for _, c := range []struct {
		h                               Host
		country, subdivision, continent string
	}{{icn1, "KR", "", "AS"}, {tokyo, "JP", "", "AS"}, {newyork, "US", "NY", "NA"}, {x1, "FJ", "", "OC"}} {
		for _, a := range []netip.Addr{c.h.V4, c.h.V6} {
			if r := find(a); r.Country != c.country || r.Subdivision != c.subdivision || r.Continent != c.continent || r.At != c.h.At {
				t.Errorf("%s at %v: %+v, want %s %s %s %v", c.h.Name, a, r, c.country, c.subdivision, c.continent, c.h.At)
			}
		}
	}
}

func TestAllThatIsWrittenCounts(t *testing.T) {
	w, err := Decode("dir/world.yaml", []byte(`
name: mine
matrix: my.csv
sites:
  - {name: here, region: eu-central-1}
  - {name: there, region: my-own, city: Nowhere, country: IS, at: {latitude: 64.1, longitude: -21.9}}
  - {name: far, region: us-west-2}
nodes:
  - {name: n1, site: here}
  - {name: n2, site: there, pop: special, roles: [dns, cdn]}
targets: [{name: t1, site: far}]
origins: [{name: o1, site: here}, {name: o2, site: here, program: faulty}]
wan: {jitter: 2ms, loss: 0.1%, rate: 1gbit, queue: 500}
links:
  - {between: [there, here], rtt: 30ms, jitter: 0s, loss: 0.2, reorder: 5%, rate: 10mbit, queue: 10}
anycast: ["203.0.113.0/24"]
spec: network.yaml
`), func(name string) ([]byte, error) {
		if name != "my.csv" {
			return nil, os.ErrNotExist
		}
		return []byte("# source: me\n# date: today\n,eu-central-1,my-own,us-west-2\neu-central-1,,40,150\nus-west-2,148,99,\n"), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if w.Spec != "network.yaml" || len(w.Anycast) != 1 || w.Anycast[0] != netip.MustParsePrefix("203.0.113.0/24") || w.Matrix.Source != "me" || w.Matrix.Date != "today" {
		t.Errorf("%+v", w)
	}
	l, _ := w.Link("here", "there")
	want := Path{Delay: 15 * time.Millisecond, Loss: 0.2, Reorder: 0.05, Rate: 10_000_000, Queue: 10}
	if l.AB != want || l.BA != want {
		t.Errorf("here–there: %+v, %+v", l.AB, l.BA)
	}
	// Of 150 and 148 the mean; and the bed's usual.
	l, _ = w.Link("far", "here")
	want = Path{Delay: 74500 * time.Microsecond, Jitter: 2 * time.Millisecond, Loss: 0.001, Rate: 1_000_000_000, Queue: 500}
	if l.AB != want {
		t.Errorf("far–here: %+v", l.AB)
	}
	n2, _ := w.Host("n2")
	if n2.POP != "special" || !slices.Equal(n2.Roles, []string{"dns", "cdn"}) || n2.Region != "my-own" {
		t.Errorf("%+v", n2)
	}
	if o2, _ := w.Host("o2"); o2.Program != Faulty {
		t.Errorf("%+v", o2)
	}
	if s, _ := w.Site("there"); s.City != "Nowhere" || s.Country != "IS" {
		t.Errorf("%+v", s)
	}
}

func TestSitesThatNobodyMeasuredAreAsFarAsTheyAre(t *testing.T) {
	w := decode(t, `
name: w
sites:
  - {name: a, region: one, at: {latitude: 0, longitude: 0}}
  - {name: b, region: two, at: {latitude: 0, longitude: 90}}
  - {name: c, region: two, at: {latitude: 0, longitude: 90}}
wan: {jitter: 1ms}
`)
	a, _ := w.Site("a")
	b, _ := w.Site("b")
	if got, want := w.RTT("a", "b"), a.At.RoundTrip(b.At); got.Round(time.Microsecond) != want.Round(time.Microsecond) || got < 150*time.Millisecond {
		t.Errorf("a–b: %v, want %v", got, want)
	}
	// The usual jitter is at most the delay, so that a packet never comes before it was sent.
	l, _ := w.Link("b", "c")
	if l.RTT() != leastRTT || l.AB.Jitter != leastRTT/2 {
		t.Errorf("b–c: %+v", l)
	}
}

func TestAllFaultsAreToldAtOnceWithTheirLines(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", `world.yaml:1: must have fields, name: value`},
		{"a mistyped field, and others", `name: Bad Name
sits: []
wan: {los: 1, rate: fast}
`, `world.yaml:1: name: must be 1–20 small letters, digits and -, a letter first, not "Bad Name"
world.yaml:2: sits: no such field (did you mean "sites"?)
world.yaml:3: wan.los: no such field (did you mean "loss"?)`},
		{"sites", `name: w
matrix: mine.csv
sites:
  - {name: a, region: nowhere}
  - {name: a, region: eu-central-1, country: Germany}
  - {name: paris, region: eu-west-3}
  - {name: averylongname, region: "x y"}
`, `world.yaml:2: matrix: must be aws: there is nowhere to read "mine.csv" from
world.yaml:4: sites[0]: needs at: {latitude, longitude}, because "nowhere" is no region whose place is known
world.yaml:5: sites[1].name: "a" is the name of a site or its router
world.yaml:5: sites[1].country: must be two capital letters, not "Germany"
world.yaml:6: sites[2].name: "paris" is the name of a place, kept with its number for its client
world.yaml:7: sites[3].name: must be 1–12 small letters, digits and -, a letter first, not "averylongname"
world.yaml:7: sites[3].region: must be 1–40 small letters, digits and -, a letter first, not "x y"`},
		{"hosts", `name: w
sites:
  - {name: a, region: eu-central-1}
nodesPerSite: 1
nodes:
  - {name: a, site: a}
  - {name: n, site: b}
  - {name: m, site: a, pop: P, roles: [""]}
  - {name: m, site: a}
targets: [{name: tld, site: a}]
`, `world.yaml:4: nodesPerSite: cannot be beside nodes
world.yaml:6: nodes[0].name: add a: "a" is the name of a site or its router
world.yaml:7: nodes[1].site: no site "b"
world.yaml:8: nodes[2].pop: must be 1–40 small letters, digits and -, a letter first, not "P"
world.yaml:8: nodes[2].roles[0]: must be 1–40 small letters, digits and -, a letter first, not ""
world.yaml:9: nodes[3].name: add m: "m" is the name of a host already
world.yaml:10: targets[0].name: add tld: "tld" is kept for the server of that name`},
		{"links", `name: w
sites: [{name: a, region: eu-central-1}, {name: b, region: us-east-1}]
wan: {jitter: 1h, loss: 101%, rate: 3, queue: 0}
links:
  - {between: [a, b], rtt: 1ms, jitter: 2ms, loss: "-1"}
  - {between: [b, a]}
  - {between: [a, c]}
  - {between: [a]}
  - {between: [a, a]}
anycast: [10.1.0.0/16, "198.51.100.1/24", "198.51.100.0/24", "198.51.100.0/25", x]
`, `world.yaml:3: wan.jitter: must be 0s–10s, not "1h"
world.yaml:3: wan.queue: must be 1–100000, not 0
world.yaml:3: wan.loss: must be a share, 0–1 or 0%–100%, not "101%"
world.yaml:3: wan.rate: must be a rate, 8kbit–100gbit, or 0 for no bound, not "3"
world.yaml:5: links[0].loss: must be a share, 0–1 or 0%–100%, not "-1"
world.yaml:5: links[0].jitter: must be at most half the round trip, 500µs, not 2ms
world.yaml:6: links[1].between: a and b are here twice
world.yaml:7: links[2].between: must be two sites, not "a" and "c"
world.yaml:8: links[3].between: must have 2–2 items, not 1
world.yaml:9: links[4].between: must be two sites, not "a" and "a"
world.yaml:10: anycast[0]: 10.1.0.0/16 overlaps 10.0.0.0/8, which is in use
world.yaml:10: anycast[1]: must be a prefix such as 198.51.100.0/24 or 2001:db8:100::/48, not "198.51.100.1/24"
world.yaml:10: anycast[3]: 198.51.100.0/25 overlaps 198.51.100.0/24, which is in use
world.yaml:10: anycast[4]: must be a prefix such as 198.51.100.0/24 or 2001:db8:100::/48, not "x"`},
		{"too many", "name: w\nnodesPerSite: 50\nsites:\n" + strings.Join(slices.Collect(func(yield func(string) bool) {
			for i := range 10 {
				yield(fmt.Sprintf("  - {name: s%d, region: eu-central-1}\n", i))
			}
		}), ""), `world.yaml:1: targetsPerSite: add s0-a: there are 500 hosts, more cannot be
world.yaml:3: sites: add resolver-s0: there are 500 hosts, more cannot be`},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, err := Decode("world.yaml", []byte(c.text), nil)
			var faults spec.Faults
			if w != nil || !errors.As(err, &faults) {
				t.Fatalf("%v, %v", w, err)
			}
			if d := cmp.Diff(c.want, err.Error()); d != "" {
				t.Errorf("-want +got:\n%s\n%s", d, err)
			}
		})
	}
}

func TestAMatrixFileIsJudgedToo(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", `m.csv: is no matrix: it has no line of regions`},
		{"one region", ",a\na,1", `m.csv:1: must have 2–100 regions, not 1`},
		{"bad regions", ",a,a,B\n", "m.csv:1: region \"a\" is here twice\nm.csv:1: region \"B\" must be 1–40 small letters, digits and -, a letter first, not \"B\""},
		{"bad rows", ",a,b\n\n# x\na,0,-1\nb,NaN,1,1\nc,1\nb,1e99\r\n", `m.csv:4: a to b must be a number of milliseconds above 0, at most 20000, not "-1"
m.csv:5: has 3 figures for 2 regions
m.csv:6: region "c" is not among those of the first line
m.csv:7: b to a must be a number of milliseconds above 0, at most 20000, not "1e99"`},
	} {
		read := func(string) ([]byte, error) { return []byte(c.text), nil }
		_, err := Decode("w.yaml", []byte("name: w\nmatrix: some/m.csv\nsites: [{name: a, region: eu-central-1}]\n"), read)
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: %v\nwant %s", c.name, err, c.want)
		}
	}
	_, err := Decode("w.yaml", []byte("name: w\nmatrix: m.csv\nsites: [{name: a, region: eu-central-1}]\n"), func(string) ([]byte, error) { return nil, os.ErrNotExist })
	if err == nil || err.Error() != "w.yaml:2: matrix: file does not exist" {
		t.Error(err)
	}
}

func TestSharesAndRatesAreReadAsTheyAreWritten(t *testing.T) {
	for text, want := range map[string]float64{"0": 0, "1": 1, "0.2": 0.2, "20%": 0.2, "100%": 1, "0.5%": 0.005} {
		if got, err := Share(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for text, want := range map[string]int64{"0": 0, "8kbit": 8000, "100mbit": 1e8, "1.5Gbit": 1.5e9, "9600": 9600, "64000bit": 64000} {
		if got, err := Rate(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "x", "-1", "NaN", "101%", "2", "%", "inf"} {
		if got, err := Share(text); err == nil {
			t.Errorf("share %q: %v", text, got)
		}
	}
	for _, text := range []string{"", "x", "-1", "NaN", "mbit", "7999", "1000gbit", "1tbit", "1e300gbit"} {
		if got, err := Rate(text); err == nil {
			t.Errorf("rate %q: %v", text, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, name := range BuiltIns() {
		text, err := BuiltInText(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, []byte(awsText))
	}
	f.Add([]byte("name: w\nmatrix: m\nsites: [{name: a, region: b, at: {latitude: 1, longitude: 2}}]\nlinks: [{between: [a]}]\nanycast: [::/0]"), []byte(",a,b\na,1,2\n"))
	f.Fuzz(func(t *testing.T, text, matrix []byte) {
		if m, err := decodeMatrix("m", string(matrix)); err == nil {
			again, err := m.MarshalText()
			if err != nil {
				t.Fatal(err)
			}
			var back Matrix
			if err := back.UnmarshalText(again); err != nil || !maps.Equal(back.RTT, m.RTT) {
				t.Fatalf("after a trip: %v\n%s", err, again)
			}
		}
		w, err := Decode("w.yaml", text, func(string) ([]byte, error) { return matrix, nil })
		if err != nil {
			var faults spec.Faults
			if !errors.As(err, &faults) || len(faults) == 0 {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		if len(w.Sites) == 0 || len(w.Sites) > MaxSites || len(w.Hosts) > MaxHosts || len(w.Links) != len(w.Sites)*(len(w.Sites)-1)/2 {
			t.Fatalf("%d sites, %d hosts, %d links", len(w.Sites), len(w.Hosts), len(w.Links))
		}
		for _, l := range w.Links {
			if l.AB.Validate() != nil || l.BA.Validate() != nil {
				t.Fatalf("%+v", l)
			}
		}
		for i, h := range w.Hosts {
			if slices.ContainsFunc(w.Hosts[:i], func(o Host) bool { return o.Name == h.Name || o.V4 == h.V4 }) {
				t.Fatalf("%+v is not alone", h)
			}
		}
		if h, err := w.Place("lagos"); err != nil || h.Access.Validate() != nil {
			t.Fatalf("%v %v", h, err)
		}
	})
}
