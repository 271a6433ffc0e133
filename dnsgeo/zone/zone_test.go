package zone

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/policy"
)

// zoneOf makes a zone of lines "name type", relative to the origin; what the records hold does not matter here.
func zoneOf(t *testing.T, origin, lines string) *Zone {
	t.Helper()
	values := map[string]string{
		"SOA": "ns. hostmaster. 1 2 3 4 5", "A": "192.0.2.1", "AAAA": "2001:db8::1", "NS": "ns.example.net.", "CNAME": "other.example.net.", "TXT": "text",
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
		{`a\.b`, "wild *"},
	} {
		for origin, z := range zones {
			under := strings.TrimPrefix(origin, ".")
			name := test.name + "." + under
			if test.name == "@" {
				name = origin
			}
			m := NewTable(z).Match(z, name)
			var got string
			switch {
			case m.Cut != nil:
				got = "cut " + m.Cut.Name
			case m.Node == nil:
				got = "-"
			case m.Wildcard:
				got = "wild " + m.Node.Name
			default:
				got = m.Node.Name
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
		if z := table.Find(name); z != nil {
			got = z.Name
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if z := table.Above(table.Find("sub.example.com.")); z == nil || z.Name != "example.com." {
		t.Errorf("above sub.example.com. is %v", z)
	}
	if z := table.Above(table.Find("example.com.")); z != nil {
		t.Errorf("above example.com. is %v", z.Name)
	}
	root := zoneOf(t, ".", "")
	table = NewTable(root, zoneOf(t, "com.", ""))
	if table.Find("www.example.org.") != root || table.Find(".") != root || table.Above(table.Find("com.")) != root || table.Above(root) != nil {
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
		if got := zoneOf(t, test.zone, "").Has(test.name); got != test.want {
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
		HostedZones:   map[string]*spec.HostedZone{"example.com": {Name: "example.com", Records: records}},
	}
}

func compileOne(t *testing.T, s *spec.Spec) (*Table, *Zone) {
	t.Helper()
	table, err := Compile(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	return table, table.Find("example.com.")
}

func TestAZoneHasASOAAndNameServersOfItsOwn(t *testing.T) {
	s := specOf()
	table, z := compileOne(t, s)
	want := "example.com.\t900\tIN\tSOA\tns-icn1.example.com. hostmaster.example.com. 5 7200 900 1209600 86400"
	if table.SOA(z).String() != want {
		t.Errorf("got %s", table.SOA(z))
	}
	apex := table.Node(z, "example.com.")
	ns := table.Choice(z, apex, dns.TypeNS).Records[0].RRs
	if len(ns) != 3 || ns[2].String() != "example.com.\t172800\tIN\tNS\tns-iad1.example.com." || table.Choice(z, apex, dns.TypeSOA).Records[0].RRs[0] != table.SOA(z) {
		t.Errorf("got %v", ns)
	}
	to := table.Node(z, "ns-icn2.example.com.").Choice(dns.TypeAAAA).Records[0].Alias
	if to.To != ToNameServer || to.Name != "icn2" || to.Region != "ap-northeast-2" {
		t.Errorf("the name server of icn2 is at %+v", to)
	}

	s.HostedZones["example.com"].NameServers = []string{"NS1.example.net.", "ns2.example.com."}
	table, z = compileOne(t, s)
	if ns := table.Choice(z, z.apex, dns.TypeNS).Records[0].RRs; len(ns) != 2 || table.SOA(z).Ns != "ns1.example.net." || table.Node(z, "ns-icn1.example.com.") != nil {
		t.Errorf("got %v of %s", ns, table.SOA(z).Ns)
	}

	s.HostedZones["example.com"].NameServers, s.Regions = nil, nil
	if table, z = compileOne(t, s); table.SOA(z).Ns != "example.com." || table.Choice(z, z.apex, dns.TypeNS) != nil {
		t.Errorf("without any POP: %s", table.SOA(z))
	}
}

func TestRecordsStandAtTheNamesTheyHave(t *testing.T) {
	table, z := compileOne(t, specOf(
		record("@", "A", "192.0.2.1"), record("www", "A", "192.0.2.1"), record("ABS.example.com.", "A", "192.0.2.1"), record("*.w", "A", "192.0.2.1"),
	))
	for _, name := range []string{"example.com.", "www.example.com.", "abs.example.com.", "*.w.example.com."} {
		if n := table.Node(z, name); n == nil || n.Choice(dns.TypeA) == nil {
			t.Errorf("nothing at %s", name)
		}
	}
	if n := table.Node(z, "w.example.com."); n == nil || len(n.Choices) != 0 {
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
	table, err := Compile(specOf(blue, green, near, far, record("other", "AAAA", "2001:db8::2")), nil)
	if err != nil {
		t.Fatal(err)
	}
	z := table.Find("example.com.")
	app := table.Node(z, "app.example.com.").Choice(dns.TypeA)
	if app.Policy != policy.Weighted || len(app.Records) != 2 || app.Candidates[0].Weight != 3 || app.Candidates[1].ID != "green" {
		t.Errorf("got %+v", app)
	}
	if rr := app.Records[0].RRs[0]; rr.String() != "app.example.com.\t5\tIN\tA\t192.0.2.1" || app.Records[0].HealthCheck != "web" {
		t.Errorf("got %v", rr)
	}
	if to := app.Records[1].Alias; to.To != ToLoadBalancer || to.Name != "lb" || !to.EvaluateTargetHealth {
		t.Errorf("got %+v", to)
	}
	other := table.Node(z, "other.example.com.").Choice(dns.TypeAAAA)
	latency := table.Node(z, "near.example.com.").Choice(dns.TypeAAAA)
	if latency.Policy != policy.Latency || latency.Candidates[0].Location == nil || latency.Candidates[1].Location != nil || latency.Records[1].Alias.Choice != other {
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
  - {name: "@", type: MX, values: [10 mail.example.com, 0 .]}
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
	for node, want := range map[string]string{
		"example.com.":           "A 2 AAAA 2 CAA 2 MX 2 TXT 3 SOA 1 NS 2",
		"_sip._tcp.example.com.": "SRV 2",
		"1.example.com.":         "PTR 1",
		"*.dev.example.com.":     "CNAME 1",
		"sub.example.com.":       "NS 2",
	} {
		var got []string
		n := table.Node(z, node)
		choices := slices.Clone(n.Choices)
		for _, typ := range []uint16{dns.TypeSOA, dns.TypeNS} {
			if c := table.Choice(z, n, typ); c != nil && n.Choice(typ) == nil {
				choices = append(choices, *c)
			}
		}
		for _, c := range choices {
			got = append(got, fmt.Sprint(dns.TypeToString[c.Type], " ", len(c.Records[0].RRs)))
			for _, rr := range c.Records[0].RRs {
				wire := make([]byte, dns.MaxMsgSize)
				n, err := dns.PackRR(rr, wire, 0, nil, false)
				if err != nil {
					t.Errorf("%s cannot be sent: %v", rr, err)
				}
				if back, _, err := dns.UnpackRR(wire[:n], 0); err != nil || back.String() != rr.String() {
					t.Errorf("sent %s, received %s: %v", rr, back, err)
				}
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s has %s, want %s", node, got, want)
		}
	}
	if ns := table.SOA(z).Ns; ns != "ns1.example.net." {
		t.Errorf("the primary is %s", ns)
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

func TestAliasesMayMeet(t *testing.T) {
	table, z := compileOne(t, specOf(
		weighted(alias("a", "A", spec.Alias{Record: "b"}), "x", 1), weighted(alias("a", "A", spec.Alias{Record: "c"}), "y", 1),
		alias("b", "A", spec.Alias{Record: "d"}), alias("c", "A", spec.Alias{Record: "d"}), record("d", "A", "192.0.2.1"),
	))
	d := table.Node(z, "d.example.com.").Choice(dns.TypeA)
	for _, r := range table.Node(z, "a.example.com.").Choice(dns.TypeA).Records {
		if r.Alias.Choice.Records[0].Alias.Choice != d {
			t.Errorf("got %+v", r.Alias)
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
			for b.Loop() {
				table.Match(z, name)
			}
		})
	}
}
