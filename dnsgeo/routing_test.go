package dnsgeo

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo/geo"
)

// routed is a spec as an operator writes it, with a zone example.com of the records, one a line.
func routed(t testing.TB, records string, documents ...string) *spec.Spec {
	t.Helper()
	var b strings.Builder
	b.WriteString("kind: Region\nname: ap-northeast-2\n---\nkind: Region\nname: us-east-1\n---\nkind: Region\nname: eu-west-1\n")
	for _, check := range []string{"c1", "c2", "c3"} {
		b.WriteString("---\nkind: HealthCheck\nname: " + check + "\ntype: TCP\nipAddress: 192.0.2.1\nport: 80\n")
	}
	for _, document := range documents {
		b.WriteString("---\n" + document + "\n")
	}
	b.WriteString("---\nkind: HostedZone\nname: example.com\nrecords:\n")
	for line := range strings.Lines(trim(records)) {
		b.WriteString("  - {type: A, " + strings.TrimSpace(line) + "}\n")
	}
	docs, err := spec.Split("test.yaml", []byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	s, err := spec.Build(1, docs, spec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// failing is a view in which checks fail, each since that second; the others pass.
func failing(since map[string]int64) *view.View {
	verdicts := map[health.Key]health.Verdict{}
	for _, check := range []string{"c1", "c2", "c3"} {
		second, fails := since[check]
		verdicts[health.CheckKey(check)] = health.Verdict{Healthy: !fails, Since: time.Unix(second, 0), Stands: 20 * time.Second}
	}
	return &view.View{Health: health.NewTable(verdicts)}
}

const offices = "kind: CidrCollection\nname: offices\nlocations: [{locationName: korea, cidrList: [10.1.0.0/16]}, {locationName: seoul, cidrList: [10.1.2.0/24]}]"

// What the rows of the guide come to in answers: the values, else the rcode. The scope is behind the slash, where a subnet is told.
func TestRoutesAreAnswered(t *testing.T) {
	const (
		proximity = `
			name: x, setIdentifier: a, geoProximityLocation: {region: ap-northeast-2}, values: [192.0.2.1]
			name: x, setIdentifier: b, geoProximityLocation: {coordinates: {latitude: 35.7, longitude: 139.7}, bias: 60}, values: [192.0.2.2]
			name: x, setIdentifier: c, geoProximityLocation: {region: us-east-1, bias: -99}, values: [192.0.2.3]`
		cidr = `
			name: x, setIdentifier: a, cidrRoutingConfig: {collection: offices, locationName: korea}, values: [192.0.2.1], healthCheck: c1
			name: x, setIdentifier: b, cidrRoutingConfig: {collection: offices, locationName: seoul}, values: [192.0.2.2], healthCheck: c2
			name: x, setIdentifier: c, cidrRoutingConfig: {collection: offices, locationName: "*"}, values: [192.0.2.3], healthCheck: c3`
		places = `
			name: x, setIdentifier: a, geoLocation: {country: KR}, values: [192.0.2.1], healthCheck: c1
			name: x, setIdentifier: b, geoLocation: {continent: AS}, values: [192.0.2.2], healthCheck: c2`
		otherwise = `
			name: x, setIdentifier: a, failover: PRIMARY, values: [192.0.2.1], healthCheck: c1, onAllUnhealthy: HOW
			name: x, setIdentifier: b, failover: SECONDARY, values: [192.0.2.2], healthCheck: c2, onAllUnhealthy: HOW`
		// By weight, where half goes to nobody but in an outage, over latency, over failover.
		tree = `
			name: x, setIdentifier: a, weight: 1, alias: {record: near, evaluateTargetHealth: true}
			name: x, setIdentifier: b, weight: 0, values: [192.0.2.9]
			name: near, setIdentifier: a, region: ap-northeast-2, alias: {record: pair, evaluateTargetHealth: true}
			name: near, setIdentifier: b, region: us-east-1, values: [192.0.2.3], healthCheck: c3
			name: pair, setIdentifier: a, failover: PRIMARY, values: [192.0.2.1], healthCheck: c1
			name: pair, setIdentifier: b, failover: SECONDARY, values: [192.0.2.2], healthCheck: c2`
		lastOfTree = `
			name: x, setIdentifier: a, weight: 1, alias: {record: pair, evaluateTargetHealth: true}, onAllUnhealthy: lastGood
			name: x, setIdentifier: b, weight: 1, values: [192.0.2.3], healthCheck: c3, onAllUnhealthy: lastGood
			name: pair, setIdentifier: a, failover: PRIMARY, values: [192.0.2.1], healthCheck: c1, onAllUnhealthy: lastGood
			name: pair, setIdentifier: b, failover: SECONDARY, values: [192.0.2.2], healthCheck: c2, onAllUnhealthy: lastGood`
	)
	how := func(word string) string { return strings.ReplaceAll(otherwise, "HOW", word) }
	for _, test := range []struct {
		name, records string
		failing       map[string]int64
		client, want  string
	}{
		{"the nearest", proximity, nil, "10.5.0.0/24", "192.0.2.1/16"}, // Busan
		{"the nearest by its bias", proximity, nil, "10.2.0.0/24", "192.0.2.2/16"},
		{"a bias of -99: a hundred times as far", proximity, nil, "10.3.0.0/24", "192.0.2.2/16"}, // Missouri

		{"in a block", cidr, nil, "10.1.9.0/24", "192.0.2.1/21"},
		{"in a block within it", cidr, nil, "10.1.2.0/24", "192.0.2.2/24"},
		{"by the resolver", cidr, nil, "10.1.2.3", "192.0.2.2"},
		{"a subnet goes before the resolver", cidr, nil, "192.0.2.0/24", "192.0.2.3/1"},
		{"it tells less than the block", cidr, nil, "10.1.2.0/23", "192.0.2.1/24"},
		{"it tells less than any", cidr, nil, "10.0.0.0/8", "192.0.2.3/16"},
		{"it tells nothing, so the resolver", cidr, nil, "0.0.0.0/0", "192.0.2.3"},
		{"the block's is bad", cidr, map[string]int64{"c2": 1}, "10.1.2.0/24", "192.0.2.1/24"},
		{"the blocks' are bad", cidr, map[string]int64{"c2": 1, "c1": 1}, "10.1.2.0/24", "192.0.2.3/24"},
		{"all are bad", cidr, map[string]int64{"c1": 1, "c2": 1, "c3": 1}, "10.1.2.0/24", "192.0.2.2/24"},

		{"no default: NOERROR, and nothing", places, nil, "10.4.0.0/24", "NOERROR/16"},
		{"no place and no default", places, nil, "192.168.0.1", "NOERROR"},
		{"all of what holds is bad: the smallest", places, map[string]int64{"c1": 1, "c2": 2}, "10.1.0.0/24", "192.0.2.1/16"},

		{"all bad: as if none were", how("all"), map[string]int64{"c1": 1, "c2": 2}, "", "192.0.2.1"},
		{"all bad: nothing", how("none"), map[string]int64{"c1": 1, "c2": 2}, "", "NOERROR"},
		{"not all bad", how("none"), map[string]int64{"c1": 1}, "", "192.0.2.2"},
		{"all bad: the secondary was last", how("lastGood"), map[string]int64{"c1": 1, "c2": 2}, "", "192.0.2.2"},
		{"all bad: the primary was last", how("lastGood"), map[string]int64{"c1": 2, "c2": 1}, "", "192.0.2.1"},

		{"down a tree", tree, nil, "10.1.0.0/24", "192.0.2.1/16"},
		{"a leaf is bad", tree, map[string]int64{"c1": 1}, "10.1.0.0/24", "192.0.2.2/16"},
		{"a branch is bad", tree, map[string]int64{"c1": 1, "c2": 1}, "10.1.0.0/24", "192.0.2.3/16"},
		{"a tree is bad: the reserve, which depends on no client", tree, map[string]int64{"c1": 1, "c2": 1, "c3": 1}, "10.1.0.0/24", "192.0.2.9/0"},
		{"the last good of a branch", lastOfTree, map[string]int64{"c1": 5, "c2": 9, "c3": 7}, "", "192.0.2.2"},
		{"the last good beside it", lastOfTree, map[string]int64{"c1": 5, "c2": 6, "c3": 7}, "", "192.0.2.3"},
		{"the last good of all", lastOfTree, map[string]int64{"c1": 9, "c2": 6, "c3": 7}, "", "192.0.2.1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			table, v := compile(t, routed(t, test.records, offices)), failing(test.failing)
			for random := range uint64(10) {
				q := from(t, "x.example.com. A", test.client)
				q.Random = random * 0x9e3779b97f4a7c15
				tr := new(trace.Trace)
				a, served := table.Answer(v, q, tr), table.Answer(v, q, nil)
				if shown(a) != shown(served) || a.Scope != served.Scope {
					t.Fatalf("explained\n%sserved\n%s", shown(a), shown(served))
				}
				got := dns.RcodeToString[a.Rcode]
				for _, rr := range a.Answer {
					got = rr.(*dns.A).A.String()
				}
				if strings.Contains(test.client, "/") && !strings.HasSuffix(test.client, "/0") {
					got += "/" + strconv.Itoa(a.Scope)
				}
				if got != test.want {
					t.Fatalf("got %s, want %s, because\n%s", got, test.want, tr)
				}
			}
		})
	}
}

// A subnet is explained as a query with it is answered: what it does not tell of the client is not known.
func TestASubnetIsExplainedAsItIsAnswered(t *testing.T) {
	table := compile(t, routed(t, `
		name: x, setIdentifier: a, cidrRoutingConfig: {collection: offices, locationName: korea}, values: [192.0.2.1]
		name: x, setIdentifier: b, cidrRoutingConfig: {collection: offices, locationName: seoul}, values: [192.0.2.2]
		name: x, setIdentifier: c, cidrRoutingConfig: {collection: offices, locationName: "*"}, values: [192.0.2.3]`, offices))
	for _, c := range []struct{ from, subnet, want string }{
		{"10.1.2.3", "", "192.0.2.2"},
		{"10.1.2.3", "10.1.2.0/24", "192.0.2.2"},
		{"10.1.2.3", "10.1.2.9/23", "192.0.2.1"},
		{"10.1.2.3", "198.51.100.0/24", "192.0.2.3"},
		{"", "10.1.9.0/24", "192.0.2.1"},
	} {
		var from netip.Addr
		var subnet netip.Prefix
		if c.from != "" {
			from = netip.MustParseAddr(c.from)
		}
		if c.subnet != "" {
			subnet = netip.MustParsePrefix(c.subnet)
		}
		e, err := table.Explain(failing(nil), "x.example.com", "A", from, subnet, 1)
		if err != nil || len(e.Answer) != 1 || !strings.HasSuffix(e.Answer[0], " "+c.want) {
			t.Errorf("from %q for %q: got %+v, %v, want %s", c.from, c.subnet, e, err, c.want)
		}
	}
}

func TestAnAnswerOfNothingIsHeldNoLongerThanItsVerdicts(t *testing.T) {
	table := compile(t, routed(t, `name: x, setIdentifier: a, weight: 1, values: [192.0.2.1], healthCheck: c1, onAllUnhealthy: none`))
	a := table.Answer(failing(map[string]int64{"c1": 1}), from(t, "x.example.com. A", ""), nil)
	if a.Rcode != dns.RcodeSuccess || len(a.Answer) > 0 || len(a.Authority) != 1 || a.Authority[0].Header().Ttl != 20 {
		t.Errorf("got\n%s", shown(a))
	}
}

func TestACollectionThatChangesIsAnsweredByAtOnce(t *testing.T) {
	const records = `
		name: x, setIdentifier: a, cidrRoutingConfig: {collection: offices, locationName: korea}, values: [192.0.2.1]
		name: x, setIdentifier: b, cidrRoutingConfig: {collection: offices, locationName: "*"}, values: [192.0.2.2]`
	before := routed(t, records, offices)
	put, err := spec.Split("new.yaml", []byte("kind: CidrCollection\nname: offices\nlocations: [{locationName: korea, cidrList: [10.2.0.0/16]}]"))
	if err != nil {
		t.Fatal(err)
	}
	after, err := before.With(2, put, nil, spec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	table := compile(t, before)
	next, err := Compile(after, places(t), table)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		table *Table
		want  map[string]string
	}{
		{table, map[string]string{"10.1.0.0/24": "192.0.2.1", "10.2.0.0/24": "192.0.2.2"}},
		{next, map[string]string{"10.1.0.0/24": "192.0.2.2", "10.2.0.0/24": "192.0.2.1"}},
	} {
		for client, want := range test.want {
			a := test.table.Answer(nil, from(t, "x.example.com. A", client), nil)
			if got := a.Answer[0].(*dns.A).A.String(); got != want {
				t.Errorf("%s: got %s, want %s", client, got, want)
			}
		}
	}
}

func TestACityDatabaseLeadsToSubdivisions(t *testing.T) {
	writer, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "Test-City", IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	for cidr, state := range map[string]string{"10.1.0.0/24": "CA", "10.1.1.0/24": "NY"} {
		err := writer.Insert(ipNet(cidr), mmdbtype.Map{
			"country":      mmdbtype.Map{"iso_code": mmdbtype.String("US")},
			"subdivisions": mmdbtype.Slice{mmdbtype.Map{"iso_code": mmdbtype.String(state)}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "city.mmdb"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := writer.WriteTo(file); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := geo.Open(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	table, err := Compile(routed(t, `
		name: x, setIdentifier: a, geoLocation: {country: US, subdivision: CA}, values: [192.0.2.1]
		name: x, setIdentifier: b, geoLocation: {country: US}, values: [192.0.2.2]`), db, nil)
	if err != nil {
		t.Fatal(err)
	}
	for client, want := range map[string]string{"10.1.0.0/24": "192.0.2.1", "10.1.1.0/24": "192.0.2.2"} {
		a := table.Answer(nil, from(t, "x.example.com. A", client), nil)
		if got := a.Answer[0].(*dns.A).A.String(); got != want || a.Scope != 24 {
			t.Errorf("%s: got %s, scope %d", client, got, a.Scope)
		}
	}
}

func ipNet(cidr string) *net.IPNet {
	p := netip.MustParsePrefix(cidr)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func TestTheSpecKnowsBetterWhereClientsAre(t *testing.T) {
	const records = `
		name: x, setIdentifier: a, geoLocation: {country: US, subdivision: CA}, values: [192.0.2.1]
		name: x, setIdentifier: b, geoLocation: {country: US}, values: [192.0.2.2]
		name: x, setIdentifier: c, geoLocation: {country: "*"}, values: [192.0.2.3]`
	docs := []string{
		"kind: ClientPlace\nname: b\ncidrList: [10.0.0.0/8]\ncountry: DE",
		"kind: ClientPlace\nname: a\ncidrList: [10.0.0.0/8, 10.1.0.0/16]\ncountry: US",
		"kind: ClientPlace\nname: c\ncidrList: [10.1.2.0/24]\ncountry: US\nsubdivision: CA\nlocation: {latitude: 37.77, longitude: -122.42}",
	}
	answers := func(table *Table, want map[string]string) {
		t.Helper()
		for client, value := range want {
			a := table.Answer(nil, from(t, "x.example.com. A", client), nil)
			if got := a.Answer[0].(*dns.A).A.String(); got != value {
				t.Errorf("%s: got %s, want %s", client, got, value)
			}
		}
	}
	before, err := Compile(routed(t, records), geo.Default(), nil)
	if err != nil {
		t.Fatal(err)
	}
	answers(before, map[string]string{"10.1.2.0/24": "192.0.2.3", "8.8.8.0/24": "192.0.2.2"})
	after, err := Compile(routed(t, records, docs...), before.base, before)
	if err != nil {
		t.Fatal(err)
	}
	answers(after, map[string]string{"10.1.2.0/24": "192.0.2.1", "10.1.3.0/24": "192.0.2.2", "10.9.9.0/24": "192.0.2.2", "8.8.8.0/24": "192.0.2.2", "9.9.9.0/24": "192.0.2.2"})
	if place := after.atlas.places.Lookup(netip.MustParseAddr("10.1.2.3")); place.Stand || place.Location.Latitude != 37.77 {
		t.Errorf("it is at %+v", place)
	}
	again, err := Compile(routed(t, records), after.base, after)
	if err != nil {
		t.Fatal(err)
	}
	answers(again, map[string]string{"10.1.2.0/24": "192.0.2.3"})
	nobody, err := Compile(routed(t, records, docs...), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	answers(nobody, map[string]string{"10.1.2.0/24": "192.0.2.1", "8.8.8.0/24": "192.0.2.3"})

	s := New(Config{Geo: geo.Default()})
	if err := s.Apply(after.spec); err != nil {
		t.Fatal(err)
	}
	if err := s.SetPlaces(nil); err != nil {
		t.Fatal(err)
	}
	answers(s.table.Load(), map[string]string{"10.1.2.0/24": "192.0.2.1", "8.8.8.0/24": "192.0.2.3"})
}
