package zone

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/policy"
)

// zoneOf makes a zone of lines "name type", relative to the origin; what the records hold does not matter here.
func zoneOf(t *testing.T, origin, lines string) *Zone {
	t.Helper()
	values := map[string]string{
		"SOA": "ns. hostmaster. 1 2 3 4 5", "A": "192.0.2.1", "AAAA": "2001:db8::1", "NS": "ns.example.net.", "CNAME": "other.example.net.", "DNAME": "other.example.net.", "TXT": "text",
	}
	rrs := []dns.RR{}
	for line := range strings.Lines("@ SOA\n" + lines) {
		field := strings.Fields(line)
		if len(field) == 0 {
			continue
		}
		rr, err := dns.NewRR("$ORIGIN " + origin + "\n" + field[0] + " 60 IN " + field[1] + " " + values[field[1]])
		if err != nil {
			t.Fatal(err)
		}
		rrs = append(rrs, rr)
	}
	z, err := New(origin, rrs)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func named(t testing.TB, text string) *Name {
	t.Helper()
	n := new(Name)
	if err := n.Parse(text); err != nil {
		t.Fatal(err)
	}
	return n
}

// node is that of a name which is in the zone.
func node(t *testing.T, table *Table, z *Zone, name string) Node {
	t.Helper()
	n := named(t, name)
	if !z.Has(n) {
		t.Fatalf("%s is not in %s", name, z.Name)
	}
	return table.Node(z, n)
}

// shown are the records of a set in zone-file form, but for their owner, which is the root.
func shown(t *testing.T, set Set) (lines []string) {
	t.Helper()
	for data := range set.All() {
		wire := binary.BigEndian.AppendUint16([]byte{0}, set.Type)
		wire = binary.BigEndian.AppendUint16(wire, dns.ClassINET)
		wire = binary.BigEndian.AppendUint32(wire, set.TTL)
		wire = append(binary.BigEndian.AppendUint16(wire, uint16(len(data))), data...)
		rr, end, err := dns.UnpackRR(wire, 0)
		if err != nil || end != len(wire) {
			t.Fatalf("% x: %v", wire, err)
		}
		lines = append(lines, strings.ReplaceAll(strings.TrimPrefix(rr.String(), ".\t"), "\t", " "))
	}
	if len(lines) != set.N {
		t.Errorf("%d records, it says %d", len(lines), set.N)
	}
	return lines
}

func choiceAt(t *testing.T, table *Table, z *Zone, name string, typ uint16) *Choice {
	t.Helper()
	_, c, ok := node(t, table, z, name).Find(typ)
	if !ok || c == nil {
		t.Fatalf("%s has no choice of type %s", name, dns.Type(typ))
	}
	return c
}

func TestNamesLeadToNodesWildcardsAndCuts(t *testing.T) {
	zones := map[string]*Zone{}
	for _, origin := range []string{"example.com.", "."} {
		zones[origin] = zoneOf(t, origin, `
			@          NS
			a          A
			deep.b     A
			*.w        A
			x.w        A
			y.*.w      A
			sub        NS
			ns.sub     A
			low.sub    NS
			*.nsw      NS
			old        DNAME
			old        A
			x.old      A
			*.dn       DNAME
			*          TXT
		`)
	}
	for _, test := range []struct {
		name, want string // the node's name below the origin; "-" is none, "cut …" a delegation, "wild …" by wildcard
	}{
		{"@", "@"},
		{"a", "a"},
		{"deep.b", "deep.b"},
		{"b", "b"},
		{"c", "wild *"},
		{"z.c", "wild *"},
		{"c.a", "-"},
		{"c.b", "-"},
		{"*", "*"},
		{"c.*", "-"},
		{"w", "w"},
		{"x.w", "x.w"},
		{"z.x.w", "-"},
		{"z.w", "wild *.w"},
		{"y.z.w", "wild *.w"},
		{"*.w", "*.w"},
		{"y.*.w", "y.*.w"},
		{"z.*.w", "-"},
		{"sub", "cut sub"},
		{"ns.sub", "cut sub"},
		{"low.sub", "cut sub"},
		{"far.low.sub", "cut sub"},
		{"c.nsw", "wild *.nsw"},
		{"old", "old"},
		{"x.old", "dname old"},
		{"y.x.old", "dname old"},
		{"c.dn", "wild *.dn"},
		{"*.dn", "*.dn"},
		{"c.*.dn", "dname *.dn"},
		{`a\.b`, "wild *"},
	} {
		for origin, z := range zones {
			under := strings.TrimPrefix(origin, ".")
			name := test.name + "." + under
			if test.name == "@" {
				name = origin
			}
			n := named(t, name)
			m := NewTable(z).Match(z, n)
			if m.Node.OK() != (m.Kind != Nowhere) {
				t.Errorf("%s: %v with the node %v", name, m.Kind, m.Node)
			}
			var got string
			switch at := Text(n.From(m.Label)); m.Kind {
			case Cut:
				got = "cut " + at
			case Renamed:
				got = "dname " + at
			case Nowhere:
				got = "-"
			case Wildcard:
				got = "wild *." + strings.TrimPrefix(at, ".")
			default:
				got = at
			}
			if got == origin {
				got = "@"
			}
			got = strings.TrimSuffix(strings.TrimSuffix(got, under), ".")
			if got != test.want {
				t.Errorf("%s: got %q, want %q", name, got, test.want)
			}
		}
	}
}

func TestTheDeepestEnclosingZoneIsFound(t *testing.T) {
	table := NewTable(zoneOf(t, "example.com.", ""), zoneOf(t, "sub.example.com.", ""), zoneOf(t, "a.b.sub.example.com.", ""))
	for name, want := range map[string]string{
		"example.com.":            "example.com.",
		"www.example.com.":        "example.com.",
		"sub.example.com.":        "sub.example.com.",
		"x.y.sub.example.com.":    "sub.example.com.",
		"b.sub.example.com.":      "sub.example.com.",
		"x.a.b.sub.example.com.":  "a.b.sub.example.com.",
		"notexample.com.":         "",
		"com.":                    "",
		".":                       "",
		`www\.example.com.`:       "",
		`a\\.example.com.`:        "example.com.",
		"example.com.example.org": "",
	} {
		got := ""
		if z := table.Find(named(t, name), 0); z != nil {
			got = z.Name
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	find := func(table *Table, name string, label int) *Zone { return table.Find(named(t, name), label) }
	if z := find(table, "sub.example.com.", 1); z == nil || z.Name != "example.com." {
		t.Errorf("above sub.example.com. is %v", z)
	}
	if z := find(table, "example.com.", 1); z != nil {
		t.Errorf("above example.com. is %v", z.Name)
	}
	root := zoneOf(t, ".", "")
	table = NewTable(root, zoneOf(t, "com.", ""))
	if find(table, "www.example.org.", 0) != root || find(table, ".", 0) != root || find(table, "com.", 1) != root {
		t.Error("the root is a zone like others")
	}
}

func TestAZoneHasWhatIsBelowIt(t *testing.T) {
	for _, test := range []struct {
		zone, name string
		want       bool
	}{
		{"example.com.", "example.com.", true},
		{"example.com.", "a.example.com.", true},
		{"example.com.", "aexample.com.", false},
		{"example.com.", `a\.example.com.`, false},
		{"example.com.", `a\\.example.com.`, true},
		{"example.com.", "com.", false},
		{".", "com.", true},
		{".", ".", true},
	} {
		if got := zoneOf(t, test.zone, "").Has(named(t, test.name)); got != test.want {
			t.Errorf("%s has %s: %v", test.zone, test.name, got)
		}
	}
}

func TestRecordsOutsideAZoneOrWithoutASOAMakeNone(t *testing.T) {
	outside, _ := dns.NewRR("www.example.org. A 192.0.2.1")
	soa, _ := dns.NewRR("example.com. SOA ns. hostmaster. 1 2 3 4 5")
	if _, err := New("example.com.", []dns.RR{soa, outside}); err == nil {
		t.Error("took a record of another zone")
	}
	if _, err := New("example.com.", nil); err == nil {
		t.Error("took a zone without a SOA")
	}
}

func record(name, typ string, values ...string) spec.Record {
	return spec.Record{Name: name, Type: typ, Values: values}
}

func weighted(r spec.Record, id string, weight int) spec.Record {
	r.SetIdentifier, r.Weight = id, &weight
	return r
}

func alias(name, typ string, a spec.Alias) spec.Record {
	return spec.Record{Name: name, Type: typ, Alias: &a}
}

func specOf(records ...spec.Record) *spec.Spec {
	return &spec.Spec{
		Revision: 1<<32 + 5,
		Regions: map[string]*spec.Region{
			"us-east-1":      {Name: "us-east-1", POPs: []spec.POP{{Name: "iad1"}}},
			"ap-northeast-2": {Name: "ap-northeast-2", Location: &spec.Location{Latitude: 37.57, Longitude: 126.98}, POPs: []spec.POP{{Name: "icn1"}, {Name: "icn2"}}},
		},
		HealthChecks:  map[string]*spec.HealthCheck{"web": {Name: "web"}},
		Distributions: map[string]*spec.Distribution{"site": {Name: "site"}},
		LoadBalancers: map[string]*spec.LoadBalancer{"lb": {Name: "lb", Region: "us-east-1"}},
		Accelerators:  map[string]*spec.Accelerator{"ga": {Name: "ga", IPAddresses: []netip.Addr{netip.MustParseAddr("203.0.113.1")}}},
		HostedZones:   map[string]*spec.HostedZone{"example.com": {Name: "example.com", Records: spec.RecordsOf(records...)}},
	}
}

func compileOne(t *testing.T, s *spec.Spec) (*Table, *Zone) {
	t.Helper()
	table, err := Compile(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	return table, table.Find(named(t, "example.com."), 0)
}

func TestAZoneHasASOAAndNameServersOfItsOwn(t *testing.T) {
	s := specOf()
	table, z := compileOne(t, s)
	soa := "900 IN SOA ns-icn1.example.com. hostmaster.example.com. 5 7200 900 1209600 86400"
	if got := shown(t, table.Apex(z, nil).SOA); !slices.Equal(got, []string{soa}) {
		t.Errorf("got %s", got)
	}
	// Of each region one, as long as there are regions.
	want := []string{"172800 IN NS ns-icn1.example.com.", "172800 IN NS ns-iad1.example.com.", "172800 IN NS ns-icn2.example.com."}
	if got := shown(t, table.Apex(z, nil).NS); !slices.Equal(got, want) {
		t.Errorf("got %s", got)
	}
	to := choiceAt(t, table, z, "ns-icn2.example.com.", dns.TypeAAAA).Records[0].Alias
	if to.To != ToNameServer || to.Name != "icn2" || to.Region != "ap-northeast-2" {
		t.Errorf("the name server of icn2 is at %+v", to)
	}

	s.HostedZones["example.com"].NameServers = []string{"NS1.example.net.", "ns2.example.com."}
	table, z = compileOne(t, s)
	apex := table.Apex(z, nil)
	if apex.NS.N != 2 || !strings.Contains(shown(t, apex.SOA)[0], "SOA ns1.example.net. ") || node(t, table, z, "ns-icn1.example.com.").OK() {
		t.Errorf("got %v of %v", shown(t, apex.NS), shown(t, apex.SOA))
	}

	s.HostedZones["example.com"].NameServers, s.Regions = nil, nil
	table, z = compileOne(t, s)
	if apex := table.Apex(z, nil); !strings.Contains(shown(t, apex.SOA)[0], "SOA example.com. ") || apex.NS.N != 0 {
		t.Errorf("without any POP: %s", shown(t, apex.SOA))
	}
}

// A world of 20 POPs in 10 regions.
func manyPOPs() *spec.Spec {
	s := &spec.Spec{Regions: map[string]*spec.Region{}, HostedZones: map[string]*spec.HostedZone{}}
	for i := range 20 {
		name := fmt.Sprintf("region-%d", i%10)
		if s.Regions[name] == nil {
			s.Regions[name] = &spec.Region{Name: name}
		}
		s.Regions[name].POPs = append(s.Regions[name].POPs, spec.POP{Name: fmt.Sprintf("pop%d", i)})
	}
	return s
}

func TestTwoZonesRarelyHaveTheSameNameServers(t *testing.T) {
	servers := serversOf(manyPOPs())
	region := map[string]string{}
	for _, pop := range servers.pops {
		region[pop.label] = pop.region
	}
	const zones = 1000
	draws, times := map[string]int{}, map[string]int{}
	for i := range zones {
		of := servers.of(fmt.Sprintf("z%d.example", i))
		regions := map[string]bool{}
		for _, label := range of {
			times[label]++
			regions[region[label]] = true
		}
		if len(of) != maxServers || len(regions) != maxServers {
			t.Fatalf("%v are in %d regions", of, len(regions))
		}
		slices.Sort(of)
		draws[strings.Join(of, " ")]++
	}
	// There are 3,360 draws of 4 among 10 regions with two POPs each.
	if len(draws) < zones*3/4 {
		t.Errorf("%d zones have %d different sets of name servers", zones, len(draws))
	}
	for label, n := range times {
		if even := zones * maxServers / 20; n < even/2 || n > even*2 {
			t.Errorf("%s serves %d zones, %d would be even", label, n, even)
		}
	}
}

func TestAPOPThatComesOrGoesChangesNoZoneBeyondItself(t *testing.T) {
	with, without := manyPOPs(), manyPOPs()
	r := without.Regions["region-3"]
	r.POPs = r.POPs[:1] // pop13 is not there
	all, fewer := serversOf(with), serversOf(without)
	touched := 0
	for i := range 1000 {
		zone := fmt.Sprintf("z%d.example", i)
		had, has := all.of(zone), fewer.of(zone)
		lost := 0
		for _, label := range had {
			if !slices.Contains(has, label) {
				lost++
			}
		}
		if lost > 1 || lost == 1 && !slices.Contains(had, "ns-pop13") {
			t.Fatalf("%s had %v and has %v", zone, had, has)
		}
		touched += lost
	}
	if touched == 0 || touched > 400 {
		t.Errorf("%d of 1,000 zones have another name server, 200 would be even", touched)
	}
}

func TestNameServersAreDrawnAmongPOPsThatAnswer(t *testing.T) {
	s := manyPOPs()
	s.HostedZones["example.com"] = &spec.HostedZone{Name: "example.com"}
	table, z := compileOne(t, s)
	some := table.Servers(func(region, _ string) bool { return region == "region-1" || region == "region-2" })
	for _, line := range shown(t, table.Apex(z, some).NS) {
		if pop := strings.Split(strings.TrimPrefix(line, "172800 IN NS ns-"), ".")[0]; !slices.Contains([]string{"pop1", "pop11", "pop2", "pop12"}, pop) {
			t.Errorf("%s is a name server", pop)
		}
	}
	if n := table.Apex(z, some).NS.N; n != maxServers {
		t.Errorf("%d name servers", n)
	}
	if table.Servers(func(string, string) bool { return false }) != table.servers {
		t.Error("where nobody answers nobody knows who does")
	}
	if !node(t, table, z, "ns-pop7.example.com.").OK() {
		t.Error("what a parent was told before leads nowhere")
	}
}

func TestRecordsStandAtTheNamesTheyHave(t *testing.T) {
	table, z := compileOne(t, specOf(
		record("@", "A", "192.0.2.1"), record("www", "A", "192.0.2.1"), record("ABS.example.com.", "A", "192.0.2.1"), record("*.w", "A", "192.0.2.1"),
	))
	for _, name := range []string{"example.com.", "www.example.com.", "abs.example.com.", "*.w.example.com."} {
		if _, _, ok := node(t, table, z, name).Find(dns.TypeA); !ok {
			t.Errorf("nothing at %s", name)
		}
	}
	if n := node(t, table, z, "w.example.com."); !n.OK() || !n.Empty() {
		t.Errorf("w.example.com. is %v, want a name that has only names below it", n)
	}
}

func TestRecordsOfOneNameAndTypeAreAChoice(t *testing.T) {
	five := spec.Duration(5 * time.Second)
	blue := weighted(record("app", "A", "192.0.2.1"), "blue", 3)
	blue.HealthCheck, blue.TTL = "web", &five
	green := weighted(alias("app", "A", spec.Alias{LoadBalancer: "lb", EvaluateTargetHealth: true}), "green", 0)
	near := spec.Record{Name: "near", Type: "AAAA", Values: []string{"2001:db8::1"}, SetIdentifier: "seoul", Region: "ap-northeast-2"}
	far := spec.Record{Name: "near", Type: "AAAA", Alias: &spec.Alias{Record: "other"}, SetIdentifier: "iad", Region: "us-east-1"}
	table, z := compileOne(t, specOf(blue, green, near, far, record("other", "AAAA", "2001:db8::2")))
	app := choiceAt(t, table, z, "app.example.com.", dns.TypeA)
	if app.Policy != policy.Weighted || len(app.Records) != 2 || app.Candidates[0].Weight != 3 || app.Candidates[1].ID != "green" {
		t.Errorf("got %+v", app)
	}
	if got := shown(t, app.Records[0].Set); !slices.Equal(got, []string{"5 IN A 192.0.2.1"}) || app.Records[0].HealthCheck != "web" {
		t.Errorf("got %v", got)
	}
	if to := app.Records[1].Alias; to.To != ToLoadBalancer || to.Name != "lb" || !to.EvaluateTargetHealth {
		t.Errorf("got %+v", to)
	}
	latency := choiceAt(t, table, z, "near.example.com.", dns.TypeAAAA)
	other, _, ok := z.Follow(latency.Records[1].Alias, dns.TypeAAAA)
	if latency.Policy != policy.Latency || latency.Candidates[0].Location == nil || latency.Candidates[1].Location != nil || !ok || !slices.Equal(shown(t, other), []string{"0 IN AAAA 2001:db8::2"}) {
		t.Errorf("got %+v", latency)
	}
}

func TestWhatASpecMayHoldCanBeServed(t *testing.T) {
	docs, err := spec.Split("zone.yaml", []byte(`
kind: HostedZone
name: example.com
nameServers: [NS1.example.net, ns2.example.net.]
records:
  - {name: "@", type: A, values: [192.0.2.1, 192.0.2.2]}
  - {name: "@", type: AAAA, values: ["2001:DB8::1", "::ffff:192.0.2.1"]}
  - {name: "@", type: CAA, values: ['0 issue "ca.example.net; account=1"', '128 iodef "mailto:a@example.net"']}
  - {name: "@", type: MX, values: [10 mail.example.com, 20 mail2.example.com]}
  - {name: silent, type: MX, values: [0 .]}
  - {name: "@", type: TXT, values: ['"v=spf1 -all"', '"two" "strings, \"one\" \092"', '""']}
  - {name: _sip._tcp, type: SRV, values: [0 5 5060 sip.example.com, 0 0 0 .]}
  - {name: "1", type: PTR, values: [host.example.net]}
  - {name: "*.Dev", type: CNAME, values: [www.example.com]}
  - {name: sub, type: NS, values: [ns1.example.net, ns.sub.example.com]}
  - {name: www, type: A, alias: {record: "@"}}
`))
	if err != nil {
		t.Fatal(err)
	}
	s, err := spec.Build(1, docs, spec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	table, z := compileOne(t, s)
	for name, want := range map[string]string{
		"example.com.":           "A 2 AAAA 2 CAA 2 MX 2 TXT 3 SOA 1 NS 2",
		"_sip._tcp.example.com.": "SRV 2",
		"silent.example.com.":    "MX 1",
		"1.example.com.":         "PTR 1",
		"*.dev.example.com.":     "CNAME 1",
		"sub.example.com.":       "NS 2",
	} {
		var got []string
		n := node(t, table, z, name)
		var sets []Set
		for set, c := range n.All() {
			if c != nil {
				if c.Records[0].Alias == nil {
					t.Errorf("%s %s is a choice", name, dns.Type(c.Type))
				}
				continue
			}
			sets = append(sets, set)
		}
		if name == "example.com." {
			sets = append(sets, table.Apex(z, nil).SOA, table.Apex(z, nil).NS)
		}
		for _, set := range sets {
			shown(t, set)
			got = append(got, fmt.Sprint(dns.TypeToString[set.Type], " ", set.N))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s has %s, want %s", name, got, want)
		}
	}
	if got := shown(t, table.Apex(z, nil).SOA)[0]; !strings.Contains(got, " ns1.example.net. ") {
		t.Errorf("the primary is in %s", got)
	}
}

// A spec that spec.Build has made has none of these; but a node must refuse one that has, and not fall.
func TestWhatCannotBeMadeIsRefused(t *testing.T) {
	for _, test := range []struct {
		name    string
		records []spec.Record
		want    []string // in the error
	}{
		{"no address", []spec.Record{record("a", "A", "192.0.2.256")}, []string{"hosted zone example.com: a.example.com. A:", "192.0.2.256"}},
		{"an empty value", []spec.Record{record("a", "A", "")}, []string{`""`}},
		{"a value of too many fields", []spec.Record{record("a", "MX", "10 mail. 3")}, []string{"10 mail. 3"}},
		{"a type that is none", []spec.Record{record("a", "NONSENSE", "b.")}, []string{"no such type"}},
		{"a name outside", []spec.Record{record("a.example.org.", "A", "192.0.2.1")}, []string{"outside"}},
		{"a delegation by chance", []spec.Record{weighted(record("a", "NS", "ns.example.net."), "x", 1)}, []string{"delegation"}},
		{"no such load balancer", []spec.Record{alias("a", "A", spec.Alias{LoadBalancer: "none"})}, []string{"leads nowhere"}},
		{"no such accelerator", []spec.Record{alias("a", "A", spec.Alias{Accelerator: "none"})}, []string{"leads nowhere"}},
		{"an alias to nothing", []spec.Record{alias("a", "A", spec.Alias{})}, []string{"leads nowhere"}},
		{"no such record", []spec.Record{alias("a", "A", spec.Alias{Record: "none"})}, []string{"none.example.com."}},
		{"no such record of the type", []spec.Record{alias("a", "A", spec.Alias{Record: "b"}), record("b", "TXT", `"b"`)}, []string{"b.example.com."}},
		{"all faults at once", []spec.Record{record("a", "A", "x"), record("b", "AAAA", "y")}, []string{"a.example.com.", "b.example.com."}},
	} {
		t.Run(test.name, func(t *testing.T) {
			table, err := Compile(specOf(test.records...), nil)
			if err == nil {
				t.Fatalf("got %v", table)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q in it", err, want)
				}
			}
		})
	}
}

// A name below another is that which is made of both as one text.
func TestANameBelowIsTheWholeName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOfN(rapid.SampledFrom([]rune("aB0-_..*@\\é")), 0, 12, -1).Draw(t, "text")
		text += strings.Repeat(rapid.SampledFrom([]string{"", "x", "x."}).Draw(t, "more"), rapid.IntRange(0, 250).Draw(t, "times"))
		var zone, got, want Name
		if err := zone.Parse("example.com."); err != nil {
			t.Fatal(err)
		}
		got.Parse("what.was.before.example.")
		if !got.below(text, zone.Wire()) {
			return
		}
		if err := want.Parse(text + ".example.com."); err != nil || string(got.Wire()) != string(want.Wire()) || got.labels != want.labels ||
			!slices.Equal(got.hashes[:got.labels+1], want.hashes[:want.labels+1]) || !slices.Equal(got.starts[:got.labels+1], want.starts[:want.labels+1]) {
			t.Fatalf("%q is %v, not %v (%v)", text, &got, &want, err)
		}
	})
}

func TestAliasesMayMeet(t *testing.T) {
	table, z := compileOne(t, specOf(
		weighted(alias("a", "A", spec.Alias{Record: "b"}), "x", 1), weighted(alias("a", "A", spec.Alias{Record: "c"}), "y", 1),
		alias("b", "A", spec.Alias{Record: "d"}), alias("c", "A", spec.Alias{Record: "d"}), record("d", "A", "192.0.2.1"),
	))
	for _, r := range choiceAt(t, table, z, "a.example.com.", dns.TypeA).Records {
		_, next, _ := z.Follow(r.Alias, dns.TypeA)
		if next == nil {
			t.Fatalf("%+v leads to no alias", r.Alias)
		}
		if d, _, _ := z.Follow(next.Records[0].Alias, dns.TypeA); !slices.Equal(shown(t, d), []string{"0 IN A 192.0.2.1"}) {
			t.Errorf("got %v", d)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	rrs := []dns.RR{}
	for _, text := range []string{"example.com. SOA ns. hostmaster. 1 2 3 4 5", "www.example.com. A 192.0.2.1", "*.w.example.com. A 192.0.2.1"} {
		rr, err := dns.NewRR(text)
		if err != nil {
			b.Fatal(err)
		}
		rrs = append(rrs, rr)
	}
	z, err := New("example.com.", rrs)
	if err != nil {
		b.Fatal(err)
	}
	table := NewTable(z)
	for _, name := range []string{"www.example.com.", "none.example.com.", "a.b.w.example.com."} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			n := named(b, name)
			wire := slices.Clone(n.Wire())
			for b.Loop() {
				n.Set(wire)
				table.Match(z, n)
			}
		})
	}
}

func TestAHashIsTheSameHoweverItIsMade(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var wire []byte
		for _, label := range rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 1, 20), 0, 10).Draw(t, "labels") {
			wire = append(append(wire, byte(len(label))), label...)
		}
		wire = append(wire, 0)
		var n Name
		n.Set(wire)
		if small := bytes.ToLower(wire); isASCII(wire) && !bytes.Equal(n.Wire(), small) {
			t.Fatalf("% x in small letters is % x", wire, n.Wire())
		}
		for label := range n.Labels() + 1 {
			from := n.From(label)
			if h := hashLabels(0, from[:len(from)-1]); h != n.hashes[label] {
				t.Fatalf("%s has the hashes %x and %x", Text(from), h, n.hashes[label])
			}
		}
		n.Set(n.Wire()) // garbage behind it does not matter
		var again Name
		again.Set(append(slices.Clone(wire), 'X', 'Y', 'Z'))
		if again.Hash() != n.Hash() {
			t.Fatal("what is behind a name is in its hash")
		}
	})
}

func isASCII(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c >= 0x80 })
}
