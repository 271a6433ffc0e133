package dnsgeo

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo/geo"
)

// The world of these tests: four regions with a POP each, Seoul with two nodes; a load balancer in two of them.
// Clients have addresses of 10.1 (Korea), 10.2 (Japan), 10.3 (United States), 10.4 (Germany), 10.5 (a point in Busan);
// those of 10.9 are nowhere.

func regions() map[string]*spec.Region {
	region := func(name, pop string, latitude, longitude float64) *spec.Region {
		return &spec.Region{Name: name, Location: &spec.Location{Latitude: latitude, Longitude: longitude}, POPs: []spec.POP{{Name: pop}}}
	}
	return map[string]*spec.Region{
		"ap-northeast-1": region("ap-northeast-1", "nrt1", 35.69, 139.69),
		"ap-northeast-2": region("ap-northeast-2", "icn1", 37.57, 126.98),
		"eu-west-1":      region("eu-west-1", "dub1", 53.35, -6.26),
		"us-east-1":      region("us-east-1", "iad1", 38.95, -77.45),
	}
}

func places(t testing.TB) *geo.DB {
	country := func(cidr, code string) geo.Override {
		return geo.Override{Prefix: netip.MustParsePrefix(cidr), Country: code}
	}
	db, err := geo.Default().With(
		country("10.1.0.0/16", "KR"), country("10.2.0.0/16", "JP"), country("10.3.0.0/16", "US"), country("10.4.0.0/16", "DE"),
		geo.Override{Prefix: netip.MustParsePrefix("10.5.0.0/16"), Location: &spec.Location{Latitude: 35.18, Longitude: 129.08}},
		country("2001:db8:1::/48", "KR"),
	)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

var everything = []view.Role{view.Edge, view.DNS, view.Origin}

func members() []view.Member {
	member := func(name, region, pop string, public ...string) view.Member {
		m := view.Member{Name: name, Region: region, POP: pop, Roles: everything}
		for _, a := range public {
			m.Public = append(m.Public, netip.MustParseAddr(a))
		}
		return m
	}
	return []view.Member{
		member("dub1-a", "eu-west-1", "dub1", "192.0.2.40"),
		member("iad1-a", "us-east-1", "iad1", "192.0.2.30", "2001:db8::30"),
		member("icn1-a", "ap-northeast-2", "icn1", "192.0.2.10", "2001:db8::10"),
		member("icn1-b", "ap-northeast-2", "icn1", "192.0.2.11", "2001:db8::11"),
		member("nrt1-a", "ap-northeast-1", "nrt1", "192.0.2.20", "2001:db8::20"),
	}
}

// worldSpec is a spec with a zone example.com of the records, written a line each as in a zone file:
//
//	www 60 A 192.0.2.1 192.0.2.2 ; id=blue weight=3 check=web
//	app    A                     ; alias=loadBalancer:web evaluate
//
// A dash separates values that have spaces in them.
func worldSpec(t testing.TB, records string) *spec.Spec {
	t.Helper()
	return &spec.Spec{
		Revision: 7,
		Regions:  regions(),
		TargetGroups: map[string]*spec.TargetGroup{
			"web-icn": {Name: "web-icn", Targets: []spec.Target{{Address: netip.MustParseAddr("172.16.1.1"), Port: 80}}},
			"web-iad": {Name: "web-iad", Targets: []spec.Target{{Address: netip.MustParseAddr("172.16.3.1"), Port: 80}}},
		},
		LoadBalancers: map[string]*spec.LoadBalancer{
			"web-icn": {Name: "web-icn", Region: "ap-northeast-2", Listeners: []spec.Listener{{Default: spec.Action{Forward: "web-icn"}}}},
			"web-iad": {Name: "web-iad", Region: "us-east-1", Listeners: []spec.Listener{{Default: spec.Action{Forward: "web-iad"}}}},
		},
		Distributions: map[string]*spec.Distribution{"site": {Name: "site"}},
		Accelerators: map[string]*spec.Accelerator{
			"echo": {Name: "echo", IPAddresses: []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8:f::1")}},
			"game": {Name: "game", IPAddresses: []netip.Addr{netip.MustParseAddr("203.0.113.3")}, Listeners: []spec.AcceleratorListener{{EndpointGroups: []spec.EndpointGroup{
				{Region: "ap-northeast-2", Endpoints: []spec.Endpoint{{TargetGroup: "web-icn"}}},
				{Region: "us-east-1", Endpoints: []spec.Endpoint{{LoadBalancer: "web-iad"}}},
			}}}},
		},
		HealthChecks: map[string]*spec.HealthCheck{"c1": {Name: "c1"}, "c2": {Name: "c2"}, "c3": {Name: "c3"}},
		HostedZones:  map[string]*spec.HostedZone{"example.com": {Name: "example.com", Records: recordsOf(t, records)}},
	}
}

// setRecord changes one record of a zone.
func setRecord(z *spec.HostedZone, i int, change func(*spec.Record)) {
	r := z.Records.At(i)
	change(&r)
	z.Records = z.Records.Splice(i, i+1, spec.RecordsOf(r))
}

func recordsOf(t testing.TB, text string) spec.Records {
	t.Helper()
	var records []spec.Record
	for line := range strings.Lines(text) {
		record, options, _ := strings.Cut(line, ";")
		field := strings.Fields(record)
		if len(field) == 0 {
			continue
		}
		r := spec.Record{Name: field[0]}
		ttl := spec.Duration(60 * time.Second)
		field = field[1:]
		if seconds, err := strconv.Atoi(field[0]); err == nil {
			ttl = spec.Duration(time.Duration(seconds) * time.Second)
			field = field[1:]
		}
		r.TTL, r.Type = &ttl, field[0]
		if values := strings.Join(field[1:], " "); strings.Contains(values, " - ") {
			r.Values = strings.Split(values, " - ")
		} else if slices.Contains([]string{"A", "AAAA", "NS"}, r.Type) {
			r.Values = field[1:]
		} else if values != "" {
			r.Values = []string{values}
		}
		for option := range strings.FieldsSeq(options) {
			key, value, _ := strings.Cut(option, "=")
			switch key {
			case "id":
				r.SetIdentifier = value
			case "weight":
				n, err := strconv.Atoi(value)
				if err != nil {
					t.Fatal(err)
				}
				r.Weight = &n
			case "region":
				r.Region = value
			case "failover":
				r.Failover = value
			case "country":
				r.GeoLocation = &spec.GeoLocation{Country: value}
			case "continent":
				r.GeoLocation = &spec.GeoLocation{Continent: value}
			case "multivalue":
				r.MultiValueAnswer = true
			case "check":
				r.HealthCheck = value
			case "otherwise":
				r.OnAllUnhealthy = value
			case "alias":
				r.Alias = new(spec.Alias)
				kind, name, _ := strings.Cut(value, ":")
				switch kind {
				case "distribution":
					r.Alias.Distribution = name
				case "loadBalancer":
					r.Alias.LoadBalancer = name
				case "accelerator":
					r.Alias.Accelerator = name
				case "record":
					r.Alias.Record = name
				}
			case "evaluate":
				r.Alias.EvaluateTargetHealth = true
			default:
				t.Fatalf("option %q of %q", option, line)
			}
		}
		records = append(records, r)
	}
	return spec.RecordsOf(records...)
}

// worldView is what icn1-a sees. What is named is down: a member, a POP, a check or a load balancer; a name with "~" before it is a
// member that only this node's own backbone cannot reach.
func worldView(down ...string) *view.View {
	v := &view.View{Self: "icn1-a", Unreachable: map[string]bool{}}
	for _, m := range members() {
		if !slices.Contains(down, m.Name) && !slices.Contains(down, m.POP) {
			v.Members = append(v.Members, m)
		}
		if slices.Contains(down, "~"+m.Name) {
			v.Unreachable[m.Name] = true
		}
	}
	verdicts := map[health.Key]health.Verdict{}
	for _, check := range []string{"c1", "c2", "c3"} {
		verdicts[health.CheckKey(check)] = health.Verdict{Healthy: !slices.Contains(down, check)}
	}
	for lb, target := range map[string]string{"web-icn": "172.16.1.1:80", "web-iad": "172.16.3.1:80"} {
		verdicts[health.TargetKey(lb, netip.MustParseAddrPort(target))] = health.Verdict{Healthy: !slices.Contains(down, lb)}
	}
	v.Health = health.NewTable(verdicts)
	return v
}

func compile(t testing.TB, s *spec.Spec) *Table {
	t.Helper()
	table, err := Compile(s, places(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// from is a question "name type" asked for a client: "10.1.0.1" is a resolver, "10.1.2.0/24" a client subnet.
func from(t testing.TB, question, client string) Query {
	t.Helper()
	name, typ, _ := strings.Cut(question, " ")
	q := Query{Name: name, Type: dns.StringToType[typ], Class: dns.ClassINET, Client: netip.MustParseAddr("10.9.0.53")}
	switch {
	case strings.Contains(client, "/"):
		q.ECS = netip.MustParsePrefix(client)
	case client != "":
		q.Client = netip.MustParseAddr(client)
	}
	return q
}

// shown is an answer as text: rcode and flags, then the sections in the order of the alphabet.
func shown(a Answer) string {
	lines := []string{dns.RcodeToString[a.Rcode]}
	if a.Authoritative {
		lines[0] += " aa"
	}
	for _, section := range []struct {
		sign string
		rrs  []dns.RR
	}{{"", a.Answer}, {"authority ", a.Authority}, {"additional ", a.Additional}} {
		var of []string
		for _, rr := range section.rrs {
			of = append(of, section.sign+strings.ReplaceAll(strings.ReplaceAll(rr.String(), "\tIN\t", "\t"), "\t", " "))
		}
		slices.Sort(of)
		lines = append(lines, of...)
	}
	return strings.Join(lines, "\n") + "\n"
}

// trim is the text without indentation and empty lines.
func trim(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// outcomes are the answers to many draws, as text, with how often each came. The first are asked to be explained, too.
func outcomes(t *testing.T, table *Table, v *view.View, q Query, draws int) map[string]int {
	t.Helper()
	times := map[string]int{}
	for i := range draws {
		q.Random = uint64(i) * 0x9e3779b97f4a7c15
		a := table.Answer(v, q, nil)
		text := shown(a)
		times[text]++
		if i >= 20 {
			continue
		}
		tr := new(trace.Trace)
		if explained := shown(table.Answer(v, q, tr)); explained != text {
			t.Fatalf("explained\n%sserved\n%s", explained, text)
		}
		if len(tr.Lines()) == 0 {
			t.Fatal("no reasons were told")
		}
	}
	return times
}

func keys(times map[string]int) []string { return slices.Sorted(maps.Keys(times)) }
