package dnsgeo

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo/querylog"
)

// logged is a server that writes down queries of example.com, of the others none, and what it wrote.
func logged(t testing.TB, json bool, records string, rate *float64) (*Server, func() string) {
	t.Helper()
	var out bytes.Buffer
	log, err := querylog.Open(querylog.Config{Path: querylog.Stdout, JSON: json, Out: &out})
	if err != nil {
		t.Fatal(err)
	}
	v := worldView()
	s := New(Config{View: func() *view.View { return v }, Geo: places(t), Name: "icn1-a", QueryLog: log})
	world := worldSpec(t, records)
	world.HostedZones["example.com"].QueryLogging = &spec.Sampling{SampleRate: rate}
	world.HostedZones["example.net"] = &spec.HostedZone{Name: "example.net"}
	if err := s.Apply(world); err != nil {
		t.Fatal(err)
	}
	return s, func() string {
		log.Close()
		return out.String()
	}
}

func TestQueriesAreWrittenDownInRoute53sFields(t *testing.T) {
	s, wrote := logged(t, false, site+hot, nil)
	resolver := netip.MustParseAddr("192.0.2.53")
	for _, q := range []struct {
		name, subnet string
		typ          uint16
		by           Transport
	}{
		{"example.com.", "", dns.TypeA, UDP},
		{"wWw.Example.com.", "10.1.2.0/24", dns.TypeAAAA, TCP},
		{"none.example.com.", "", dns.TypeTXT, HTTPS},
		{`a\032b\.c\"d\\\010.wild.example.com.`, "", 65400, TLS},
		{"www.example.net.", "", dns.TypeA, UDP}, // its zone does not want it
		{"www.example.org.", "", dns.TypeA, UDP}, // nobody's
	} {
		s.respond(make([]byte, roomSize), question0(t, q.name, q.typ, q.subnet), resolver, q.by)
	}
	s.respond(make([]byte, roomSize), []byte("no query at all"), resolver, UDP)
	got := regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`).ReplaceAllString(wrote(), "TIME")
	want := `1.0 TIME example.com example.com A NOERROR UDP icn1 192.0.2.53 -
1.0 TIME example.com wWw.Example.com AAAA NOERROR TCP icn1 192.0.2.53 10.1.2.0/24
1.0 TIME example.com none.example.com TXT NXDOMAIN HTTPS icn1 192.0.2.53 -
1.0 TIME example.com a\032b\046c\034d\092\010.wild.example.com TYPE65400 NOERROR TLS icn1 192.0.2.53 -
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestJSONSaysWhatWasAnsweredAndBecauseOfWhat(t *testing.T) {
	s, wrote := logged(t, true, site+hot+"mx MX 5 a.example.com.\ntxt TXT \"x\"\n", nil)
	resolver := netip.MustParseAddr("192.0.2.53")
	var sizes []int
	for _, q := range []struct {
		name, subnet string
		typ          uint16
	}{
		{"geo.example.com.", "10.1.2.0/24", dns.TypeA}, {"c1.example.com.", "", dns.TypeA}, {`q\"\\.wild.example.com.`, "", dns.TypeA},
		{"mx.example.com.", "", dns.TypeMX}, {"txt.example.com.", "", dns.TypeTXT},
	} {
		sizes = append(sizes, len(s.respond(make([]byte, roomSize), question0(t, q.name, q.typ, q.subnet), resolver, UDP)))
	}
	type answer struct {
		Type string
		TTL  int
		Data string
	}
	type line struct {
		Zone, Name, Type, Rcode, Proto, POP, Node, Resolver, Subnet string
		Scope, Count, Bytes, Revision                               int
		Policies                                                    []string
		Answers                                                     []answer
		SampleRate                                                  float64
	}
	alike := line{Zone: "example.com", Type: "A", Rcode: "NOERROR", Proto: "UDP", POP: "icn1", Node: "icn1-a", Resolver: "192.0.2.53", Revision: 7, SampleRate: 1, Count: 1, Policies: []string{"simple"}}
	want := []line{alike, alike, alike, alike, alike}
	want[0].Name, want[0].Subnet, want[0].Scope, want[0].Policies = "geo.example.com", "10.1.2.0/24", 16, []string{"geolocation"}
	want[0].Answers = []answer{{"A", 60, "192.0.2.1"}}
	want[1].Name, want[1].Count = "c1.example.com", 3
	want[1].Answers = []answer{{"CNAME", 60, "c2.example.com"}, {"CNAME", 60, "plain.example.com"}, {"A", 60, "192.0.2.1"}}
	want[2].Name, want[2].Answers = `q\034\092.wild.example.com`, []answer{{"A", 60, "192.0.2.5"}}
	want[3].Name, want[3].Type, want[3].Answers = "mx.example.com", "MX", []answer{{"MX", 60, "5 a.example.com"}}
	want[4].Name, want[4].Type, want[4].Answers = "txt.example.com", "TXT", []answer{{"TXT", 60, `\# 2 0178`}}
	lines := strings.Split(strings.TrimSpace(wrote()), "\n")
	if len(lines) != len(want) {
		t.Fatalf("got %d lines", len(lines))
	}
	for i, text := range lines {
		var got line
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		want[i].Bytes = sizes[i]
		if diff := cmp.Diff(want[i], got); diff != "" {
			t.Errorf("%s\n%s", text, diff)
		}
	}
}

func TestAShareOfQueriesIsWrittenDown(t *testing.T) {
	for _, rate := range []float64{0, 0.25, 1} {
		s, wrote := logged(t, false, "www A 192.0.2.1", &rate)
		m, d := question0(t, "www.example.com.", dns.TypeA, ""), s.newDesk()
		room := make([]byte, 0, payloadSize)
		const queries = 2000
		for range queries {
			d.respond(room, m, netip.MustParseAddr("192.0.2.53"), UDP)
		}
		// Eight standard deviations: once in 10¹⁵ runs.
		if n := float64(strings.Count(wrote(), "\n")); n < queries*rate-8*20 || n > queries*rate+8*20 || rate == 1 && n != queries || rate == 0 && n != 0 {
			t.Errorf("of %d queries %v were written, at a rate of %v", queries, n, rate)
		}
	}
}

// What changes of a zone's logging holds at once, though its records stay.
func TestALogIsTurnedOnAndOffByTheSpec(t *testing.T) {
	s, wrote := logged(t, false, "www A 192.0.2.1", nil)
	m := question0(t, "www.example.com.", dns.TypeA, "")
	ask := func() { s.respond(make([]byte, roomSize), m, netip.Addr{}, UDP) }
	ask()
	for i, logging := range []*spec.Sampling{nil, {}} {
		next := worldSpec(t, "www A 192.0.2.1")
		next.Revision += uint64(i) + 1
		next.HostedZones["example.com"].QueryLogging = logging
		if err := s.Apply(next); err != nil {
			t.Fatal(err)
		}
		ask()
	}
	if got := wrote(); strings.Count(got, " UDP icn1 - -\n") != 2 || strings.Count(got, "\n") != 2 {
		t.Errorf("got\n%s", got)
	}
}

func TestEachTypeIsCountedByItsName(t *testing.T) {
	s := serverOf(t, "www A 192.0.2.1")
	for _, typ := range countedTypes {
		s.respond(make([]byte, roomSize), question0(t, "www.example.com.", typ, ""), netip.Addr{}, UDP)
	}
	got := map[string]uint64{}
	s.AnswersByType(func(n uint64, labels ...string) { got[labels[0]] += n })
	for _, typ := range countedTypes {
		if name := dns.TypeToString[typ]; got[name] != 1 {
			t.Errorf("%s: %d", name, got[name])
		}
	}
}

func TestAnswersAreCountedByZoneTypeAndPolicy(t *testing.T) {
	s := serverOf(t, site+hot)
	for _, q := range hotQueries {
		s.respond(make([]byte, roomSize), question0(t, q.name, q.typ, q.subnet), netip.MustParseAddr("10.9.0.53"), UDP)
	}
	s.respond(make([]byte, roomSize), question0(t, "example.com.", 65400, ""), netip.Addr{}, UDP)
	got := map[string]uint64{}
	for _, each := range []func(func(uint64, ...string)){s.AnswersByZone, s.AnswersByType, s.AnswersByPolicy} {
		each(func(n uint64, labels ...string) { got[strings.Join(labels, " ")] += n })
	}
	want := map[string]uint64{
		"example.com NOERROR": 18, "example.com NXDOMAIN": 1,
		"A NOERROR": 14, "A NXDOMAIN": 1, "AAAA NOERROR": 1, "MX NOERROR": 1, "NS NOERROR": 1, "other NOERROR": 1,
		"simple NOERROR": 9, "weighted NOERROR": 1, "failover NOERROR": 2, "multivalue NOERROR": 1, "geolocation NOERROR": 1, "latency NOERROR": 2,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestZonesBeyondTheBoundAreCountedTogether(t *testing.T) {
	world := worldSpec(t, "")
	var names []string
	for i := range maxSeats + 20 {
		name := string(rune('a'+i%26)) + string(rune('a'+i/26)) + ".test"
		world.HostedZones[name] = &spec.HostedZone{Name: name}
		names = append(names, name)
	}
	s := New(Config{})
	for range 2 { // what was counted stays, and so do the seats
		if err := s.Apply(world); err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			s.respond(make([]byte, roomSize), question0(t, name+".", dns.TypeSOA, ""), netip.Addr{}, UDP)
		}
		next := *world
		next.Revision++
		next.HostedZones = map[string]*spec.HostedZone{}
		for name := range world.HostedZones {
			next.HostedZones[name] = &spec.HostedZone{Name: name}
		}
		world = &next
	}
	series, together := 0, uint64(0)
	s.AnswersByZone(func(n uint64, labels ...string) {
		series++
		if labels[0] == Other {
			together = n
		} else if n != 2 {
			t.Errorf("%v: %d", labels, n)
		}
	})
	if series != maxSeats+1 || together != 40 {
		t.Errorf("got %d series, %d of others", series, together)
	}
}
