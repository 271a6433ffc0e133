package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// build splits and builds one text.
func build(file, text string) (*Spec, error) {
	docs, err := Split(file, []byte(text))
	if err != nil {
		return nil, err
	}
	return Build(1, docs, Options{})
}

func mustBuild(t *testing.T, text string) *Spec {
	t.Helper()
	s, err := build("test.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustSplit(t testing.TB, text string) []Document {
	t.Helper()
	docs, err := Split("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// Every testdata/faults/*.yaml has beside it what is said of it. UPDATE=1 writes that anew.
func TestEveryFaultIsToldAtOnceWithItsLineAndField(t *testing.T) {
	files, _ := filepath.Glob("testdata/faults/*.yaml")
	if len(files) == 0 {
		t.Fatal("no files")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			_, err := build(filepath.Base(file), readFile(t, file))
			var faults Faults
			if !errors.As(err, &faults) {
				t.Fatalf("got %v, want faults", err)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(golden, []byte(err.Error()+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(readFile(t, golden), err.Error()+"\n"); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

const seoul = "kind: Region\nname: ap-northeast-2\n---\n"

// sparse is one of everything, with as little said as may be.
const sparse = seoul + `kind: HealthCheck
name: http
type: HTTP
ipAddress: 192.0.2.1
---
kind: HealthCheck
name: https
type: HTTPS
ipAddress: 192.0.2.1
---
kind: HealthCheck
name: tcp
type: TCP
ipAddress: 192.0.2.1
port: 25
---
kind: HealthCheck
name: text
type: HTTPS_STR_MATCH
fullyQualifiedDomainName: www.example.com
searchString: fine
---
kind: HealthCheck
name: grpc
type: GRPC
ipAddress: 192.0.2.1
port: 50051
---
kind: HealthCheck
name: calculated
type: CALCULATED
childHealthChecks: [http, tcp]
healthThreshold: 0
---
kind: TargetGroup
name: grpc
region: ap-northeast-2
protocol: TCP
healthCheck: {protocol: GRPC}
---
kind: TargetGroup
name: https
region: ap-northeast-2
protocol: TCP
healthCheck: {protocol: HTTPS}
---
kind: TargetGroup
name: http
region: ap-northeast-2
protocol: HTTP
port: 8080
targets: [{address: 10.0.0.1}, {address: 10.0.0.2, port: 81}]
---
kind: TargetGroup
name: tcp
region: ap-northeast-2
protocol: TCP
---
kind: TargetGroup
name: hasty
region: ap-northeast-2
protocol: TCP
healthCheck: {protocol: HTTP, interval: 2}
---
kind: LoadBalancer
name: application
region: ap-northeast-2
listeners: [{protocol: HTTP, port: 80, default: {fixedResponse: {statusCode: 404}}}]
---
kind: LoadBalancer
name: network
region: ap-northeast-2
type: network
listeners: [{protocol: TCP, port: 9000, default: {forward: tcp}}]
---
kind: SecurityGroup
name: web
ingress:
  - {protocol: tcp, fromPort: 80, cidrs: [192.0.2.7/24]}
  - {protocol: -1, cidrs: ["::/0"]}
---
kind: CachePolicy
name: policy
---
kind: Distribution
name: www
aliases: [WWW.example.com]
origins: [{name: a, url: "http://192.0.2.1"}]
defaultCacheBehavior: {targetOrigin: a}
---
kind: Accelerator
name: tcp
ipAddresses: [198.51.100.1]
listeners:
  - protocol: TCP
    portRanges: [{fromPort: 80}]
    endpointGroups: [{region: ap-northeast-2, endpoints: [{targetGroup: tcp}]}]
  - protocol: UDP
    portRanges: [{fromPort: 80}]
    endpointGroups: [{region: ap-northeast-2, endpoints: [{targetGroup: udp}]}]
---
kind: TargetGroup
name: udp
region: ap-northeast-2
protocol: UDP
---
kind: CidrCollection
name: offices
locations: [{locationName: a, cidrList: [192.0.2.7/24, "2001:db8::/48"]}]
---
kind: HostedZone
name: example.com
nameServers: [ns1.example.net]
records:
  - {name: a, type: A, values: [192.0.2.1]}
  - {name: b, type: A, alias: {distribution: www}}
  - {name: c, type: CNAME, values: [www.example.net]}
`

func TestWhatIsNotSaidIsAsInAWS(t *testing.T) {
	s := mustBuild(t, sparse)
	group := func(name string) *TargetGroup { return s.TargetGroups[name] }
	zone, listener := s.HostedZones["example.com"], s.Accelerators["tcp"].Listeners[0]
	www, policy := s.Distributions["www"], s.CachePolicies["policy"]
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"a region's city", s.Regions["ap-northeast-2"].City, "Seoul"},
		{"a region's country", s.Regions["ap-northeast-2"].Country, "KR"},
		{"a region's location", *s.Regions["ap-northeast-2"].Location, Location{37.57, 126.98}},

		{"an HTTP check's port", s.HealthChecks["http"].Port, uint16(80)},
		{"an HTTPS check's port", s.HealthChecks["https"].Port, uint16(443)},
		{"an HTTP check's path", s.HealthChecks["http"].ResourcePath, "/"},
		{"a TCP check's path", s.HealthChecks["tcp"].ResourcePath, ""},
		{"a check's interval", *s.HealthChecks["http"].RequestInterval, *seconds(30)},
		{"a check's threshold", s.HealthChecks["http"].FailureThreshold, 3},
		{"an HTTPS check's SNI", *s.HealthChecks["https"].EnableSNI, true},
		{"an HTTP check's SNI", s.HealthChecks["http"].EnableSNI, (*bool)(nil)},
		{"a string match's port", s.HealthChecks["text"].Port, uint16(443)},
		{"a string match's path", s.HealthChecks["text"].ResourcePath, "/"},
		{"a string match's SNI", *s.HealthChecks["text"].EnableSNI, true},
		{"a gRPC check's path", s.HealthChecks["grpc"].ResourcePath, "/AWS.ALB/healthcheck"},
		{"where a check is made from", s.HealthChecks["http"].Regions, []string(nil)},
		{"a calculated check's interval", s.HealthChecks["calculated"].RequestInterval, (*Duration)(nil)},
		{"a calculated check's failure threshold", s.HealthChecks["calculated"].FailureThreshold, 0},
		{"a calculated check's threshold", *s.HealthChecks["calculated"].HealthThreshold, 0},

		{"a target's port", group("http").Targets[0].Port, uint16(8080)},
		{"a target's own port", group("http").Targets[1].Port, uint16(81)},
		{"the algorithm", group("http").LoadBalancingAlgorithm, "round_robin"},
		{"the deregistration delay", *group("http").DeregistrationDelay, *seconds(300)},
		{"the protocol of an HTTP group's check", group("http").HealthCheck.Protocol, HTTP},
		{"the path of an HTTP group's check", group("http").HealthCheck.Path, "/"},
		{"the matcher of an HTTP group's check", group("http").HealthCheck.Matcher, "200"},
		{"the timeout of an HTTP group's check", *group("http").HealthCheck.Timeout, *seconds(6)},
		{"the interval of a group's check", *group("http").HealthCheck.Interval, *seconds(30)},
		{"the healthy threshold", group("http").HealthCheck.HealthyThreshold, 5},
		{"the unhealthy threshold", group("http").HealthCheck.UnhealthyThreshold, 2},
		{"the protocol of a TCP group's check", group("tcp").HealthCheck.Protocol, TCP},
		{"the path of a TCP group's check", group("tcp").HealthCheck.Path, ""},
		{"the timeout of a TCP group's check", *group("tcp").HealthCheck.Timeout, *seconds(10)},
		{"a timeout under a short interval", *group("hasty").HealthCheck.Timeout, *seconds(2)},
		{"the protocol of a UDP group's check", group("udp").HealthCheck.Protocol, TCP},
		{"whether a group's targets are checked", *group("tcp").HealthCheck.Enabled, true},
		{"the path of a gRPC check", group("grpc").HealthCheck.Path, "/AWS.ALB/healthcheck"},
		{"the matcher of a gRPC check", group("grpc").HealthCheck.Matcher, "12"},
		{"the timeout of a gRPC check", *group("grpc").HealthCheck.Timeout, *seconds(6)},
		{"the path of an HTTPS check", group("https").HealthCheck.Path, "/"},
		{"the matcher of an HTTPS check", group("https").HealthCheck.Matcher, "200"},
		{"the timeout of an HTTPS check", *group("https").HealthCheck.Timeout, *seconds(10)},

		{"a load balancer's type", s.LoadBalancers["application"].Type, ApplicationLoadBalancer},
		{"an application load balancer's idle timeout", *s.LoadBalancers["application"].IdleTimeout, *seconds(60)},
		{"a network load balancer's idle timeout", *s.LoadBalancers["network"].IdleTimeout, *seconds(350)},
		{"a fixed response's type", s.LoadBalancers["application"].Listeners[0].Default.FixedResponse.ContentType, "text/plain"},

		{"who may come where no group is named", s.LoadBalancers["network"].SecurityGroups, []string(nil)},
		{"the last port of a rule", s.SecurityGroups["web"].Ingress[0].ToPort, uint16(80)},
		{"a range with an address of a host", s.SecurityGroups["web"].Ingress[0].CIDRs[0], netip.MustParsePrefix("192.0.2.0/24")},
		{"the ports of a rule for all", s.SecurityGroups["web"].Ingress[1].ToPort, uint16(0)},

		{"a distribution's security policy", www.ViewerCertificate.MinimumProtocolVersion, "TLSv1.2_2021"},
		{"a distribution's state", *www.Enabled, true},
		{"an alias, in small letters", www.Aliases[0], "www.example.com"},
		{"the error caching time", *www.ErrorCachingMinTTL, *seconds(10)},
		{"an origin's attempts", www.Origins[0].ConnectionAttempts, 3},
		{"an origin's connection timeout", *www.Origins[0].ConnectionTimeout, *seconds(10)},
		{"an origin's response timeout", *www.Origins[0].ResponseTimeout, *seconds(30)},
		{"a behavior's viewer protocol policy", www.DefaultCacheBehavior.ViewerProtocolPolicy, AllowAll},
		{"a behavior's methods", www.DefaultCacheBehavior.AllowedMethods, []string{"GET", "HEAD"}},
		{"a behavior's cache policy", www.DefaultCacheBehavior.CachePolicy, "Managed-CachingOptimized"},
		{"a policy's minimum", *policy.MinTTL, *seconds(0)},
		{"a policy's default", *policy.DefaultTTL, *seconds(86400)},
		{"a policy's maximum", *policy.MaxTTL, *seconds(31536000)},
		{"a policy's headers", policy.Headers, KeyPart{Behavior: KeyNone}},
		{"a policy's cookies", policy.Cookies, KeyPart{Behavior: KeyNone}},
		{"a policy's query strings", policy.QueryStrings, KeyPart{Behavior: KeyNone}},

		{"an accelerator's state", *s.Accelerators["tcp"].Enabled, true},
		{"an accelerator's affinity", listener.ClientAffinity, AffinityNone},
		{"the idle timeout of TCP", *listener.IdleTimeout, *seconds(340)},
		{"the idle timeout of UDP", *s.Accelerators["tcp"].Listeners[1].IdleTimeout, *seconds(30)},
		{"what becomes of large datagrams", s.Accelerators["tcp"].Listeners[1].LargeDatagrams, LargeByStream},
		{"a single port", listener.PortRanges[0], PortRange{80, 80}},
		{"an endpoint group's dial", *listener.EndpointGroups[0].TrafficDial, 100.0},
		{"an endpoint group's health check protocol", listener.EndpointGroups[0].HealthCheckProtocol, TCP},
		{"an endpoint group's health check port", listener.EndpointGroups[0].HealthCheckPort, uint16(80)},
		{"an endpoint group's health check path", listener.EndpointGroups[0].HealthCheckPath, ""},
		{"an endpoint group's health check interval", *listener.EndpointGroups[0].HealthCheckInterval, *seconds(30)},
		{"an endpoint group's threshold", listener.EndpointGroups[0].ThresholdCount, 3},
		{"an endpoint's weight", *listener.EndpointGroups[0].Endpoints[0].Weight, 128},

		{"a record's TTL", *zone.Records.At(0).TTL, *seconds(300)},
		{"an alias's TTL", zone.Records.At(1).TTL, (*Duration)(nil)},
		{"what is answered where no set is healthy", zone.Records.At(0).OnAllUnhealthy, ""},
		{"a block with an address of a host", s.CidrCollections["offices"].Locations[0].CidrList[0], netip.MustParsePrefix("192.0.2.0/24")},
		{"a name in a value", zone.Records.At(2).Values[0], "www.example.net."},
		{"a name server", zone.NameServers[0], "ns1.example.net."},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s: got %v, want %v", c.what, c.got, c.want)
		}
	}
}

// CloudFront: "If MinTTL is more than 86400, the default is MinTTL"; the same for the maximum.
func TestATimeToLiveRaisesThoseAboveIt(t *testing.T) {
	for _, c := range []struct {
		written                 string
		least, normal, greatest int // s
	}{
		{"", 0, 86400, 31536000},
		{"minTTL: 100000", 100000, 100000, 31536000},
		{"minTTL: 40000000", 40000000, 40000000, 40000000},
		{"defaultTTL: 40000000", 0, 40000000, 40000000},
		{"{minTTL: 100, defaultTTL: 50}", 100, 100, 31536000},
		{"maxTTL: 60", 0, 60, 60},
		{"{minTTL: 0, defaultTTL: 0, maxTTL: 0}", 0, 0, 0},
	} {
		fields := strings.Trim(c.written, "{}")
		p := mustBuild(t, "kind: CachePolicy\nname: p\n"+strings.ReplaceAll(fields, ", ", "\n")+"\n").CachePolicies["p"]
		if *p.MinTTL != *seconds(c.least) || *p.DefaultTTL != *seconds(c.normal) || *p.MaxTTL != *seconds(c.greatest) {
			t.Errorf("%s: got %s, %s, %s", c.written, p.MinTTL, p.DefaultTTL, p.MaxTTL)
		}
	}
}

func TestTheManagedCachePoliciesAreInEverySpec(t *testing.T) {
	s, err := Build(0, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][3]int{
		"Managed-CachingOptimized":                       {1, 86400, 31536000},
		"Managed-CachingOptimizedForUncompressedObjects": {1, 86400, 31536000},
		"Managed-CachingDisabled":                        {0, 0, 0},
		"Managed-UseOriginCacheControlHeaders":           {0, 0, 31536000},
	} {
		p := s.CachePolicies[name]
		if p == nil || p.Name != name || *p.MinTTL != *seconds(want[0]) || *p.DefaultTTL != *seconds(want[1]) || *p.MaxTTL != *seconds(want[2]) {
			t.Errorf("%s: got %+v", name, p)
		}
	}
	if len(s.CachePolicies) != 4 {
		t.Errorf("there are %d", len(s.CachePolicies))
	}
}

// A plane reads a pointer field without asking whether it is there.
func TestNoDefaultIsLeftNil(t *testing.T) {
	absentMeansSomething := map[string]bool{
		"Region.Location": false, "POP.Location": true, "Action.FixedResponse": true, "Action.Redirect": true,
		"HealthCheck.EnableSNI": true, "HealthCheck.HealthThreshold": true, "HealthCheck.RequestInterval": true, // each of some types
		"Record.TTL": true, "Record.Alias": true, "Record.Weight": true, "Record.GeoLocation": true,
		"Record.GeoProximityLocation": true, "Record.CidrRoutingConfig": true, "GeoProximityLocation.Coordinates": true,
		"HostedZone.QueryLogging": true, "HostedZone.layout": true, "ClientPlace.Location": true, "Accelerator.DeregistrationDelay": true,
		"Accelerator.FlowLogs": true,
	}
	var walk func(where string, v reflect.Value)
	walk = func(where string, v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			if v.IsNil() {
				if !absentMeansSomething[where] {
					t.Errorf("%s is nil", where)
				}
				return
			}
			walk(where, v.Elem())
		case reflect.Slice:
			for i := range v.Len() {
				walk(where, v.Index(i))
			}
		case reflect.Struct:
			if v.Type() == reflect.TypeFor[netip.Addr]() {
				return
			}
			for i := range v.NumField() {
				walk(v.Type().Name()+"."+v.Type().Field(i).Name, v.Field(i))
			}
		}
	}
	for r := range mustBuild(t, sparse).Each("") {
		walk(r.String(), reflect.ValueOf(r.Value))
	}
}

func TestARevisionIsKept(t *testing.T) {
	if s, err := Build(7, nil, Options{}); err != nil || s.Revision != 7 {
		t.Fatalf("got %v, %v", s, err)
	}
}

func TestADocumentDeclaredInTwoFilesIsToldWithBoth(t *testing.T) {
	a, _ := Split("a.yaml", []byte("# one\n"+seoul))
	b, _ := Split("b.yaml", []byte("---\n---\n"+seoul))
	_, err := Build(1, append(a, b...), Options{})
	want := "b.yaml:4: Region ap-northeast-2: is declared twice, first at a.yaml:3"
	if err == nil || err.Error() != want {
		t.Fatalf("got %v, want %s", err, want)
	}
}

func TestADocumentIsWhatItIsFiledAs(t *testing.T) {
	docs := mustSplit(t, seoul)
	docs[0].Name = "ap-northeast-1"
	_, err := Build(1, docs, Options{})
	want := `test.yaml:2: Region ap-northeast-1: name: is "ap-northeast-2" in a document filed as Region/ap-northeast-1`
	if err == nil || err.Error() != want {
		t.Fatalf("got %v, want %s", err, want)
	}
}

func TestAReferenceToWhatCannotBeReadIsNoFaultOfItsOwn(t *testing.T) {
	docs := mustSplit(t, "kind: TargetGroup\nname: web\nregion: ap-northeast-2\nprotocol: HTTP\n---\n"+seoul)
	docs[1].Bytes = []byte("[")
	_, err := Build(1, docs, Options{})
	if want := `test.yaml:6: Region ap-northeast-2: "[" is never closed`; err == nil || err.Error() != want {
		t.Fatalf("got %v, want %s", err, want)
	}
}

func TestBeyondAHundredFaultsAreCounted(t *testing.T) {
	var text strings.Builder
	for i := range 150 {
		fmt.Fprintf(&text, "kind: TargetGroup\nname: tg%d\nregion: nowhere\nprotocol: HTTP\n---\n", i)
	}
	_, err := build("test.yaml", text.String())
	var faults Faults
	if !errors.As(err, &faults) || len(faults) != 101 || faults[100].String() != "and 50 more" {
		t.Fatalf("got %d faults: %v", len(faults), err)
	}
}

func TestAFaultIsOneLineWhateverANameHolds(t *testing.T) {
	_, err := build("test.yaml", "kind: \"A\\nB\"\nname: \"c\\r\\e[31m\"\n")
	if err == nil || strings.ContainsAny(err.Error(), "\n\r\x1b") {
		t.Fatalf("got %q", err)
	}
}

func TestCarriageReturnsDoNotMoveTheLines(t *testing.T) {
	text := "# one\r\n# two\r\nkind: TargetGroup # three\r\n# four\r\nname: web\r\nregion: mars\r\nprotocol: HTTP\r\n"
	_, err := build("test.yaml", text)
	if want := `test.yaml:6: TargetGroup web: region: no region "mars"`; err == nil || err.Error() != want {
		t.Fatalf("got %v, want %s", err, want)
	}
}

// valid are the documents that a reader may copy from.
func valid(t testing.TB) string { return readFile(t, "testdata/valid/network.yaml") }

func TestASpecIsTheSameWhenItsJSONIsBuiltAgain(t *testing.T) {
	for _, text := range []string{valid(t), sparse} {
		s := mustBuild(t, text)
		again := rebuild(t, s)
		if diff := cmp.Diff(s, again, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.IgnoreUnexported(HostedZone{})); diff != "" {
			t.Errorf("-first +again\n%s", diff)
		}
	}
}

// rebuild builds a spec of the JSON of another's resources.
func rebuild(t *testing.T, s *Spec) *Spec {
	t.Helper()
	var text strings.Builder
	for r := range s.Each("") {
		if strings.HasPrefix(r.Name, managedPrefix) {
			continue
		}
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "---\n%s\n", data)
	}
	return mustBuild(t, text.String())
}

func TestOwnersAreAbsolute(t *testing.T) {
	z := HostedZone{Name: "example.com"}
	for name, want := range map[string]string{
		"@": "example.com.", "www": "www.example.com.", "WWW.example.com.": "www.example.com.", "*.a": "*.a.example.com.",
	} {
		if got := z.Owner(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

func TestRecordValuesAreReadByTheirType(t *testing.T) {
	for _, c := range []struct {
		typ, value, canonical string // canonical "": it is refused
	}{
		{"A", "192.0.2.1", "192.0.2.1"},
		{"A", "192.0.2.01", ""},
		{"A", "::ffff:192.0.2.1", ""},
		{"AAAA", "2001:DB8:0:0::1", "2001:db8::1"},
		{"CNAME", "_a.example.com", "_a.example.com."},
		{"CNAME", ".", ""},
		{"NS", "ns1.example.com.", "ns1.example.com."},
		{"NS", "ns1", ""},
		{"PTR", strings.Repeat("a", 64) + ".example.com", ""},
		{"MX", "10\tmail.example.com", "10 mail.example.com."},
		{"MX", "0 .", "0 ."},
		{"MX", "-1 mail.example.com", ""},
		{"SRV", "0 0 0 .", "0 0 0 ."},
		{"SRV", "1 2 65536 a.example.com", ""},
		{"CAA", `128  issuewild   ";"`, `128 issuewild ";"`},
		{"CAA", `0 issue "a" "b"`, ""},
		{"TXT", ` "a"  "b" `, `"a" "b"`},
		{"TXT", `"` + strings.Repeat("a", 255) + `"`, `"` + strings.Repeat("a", 255) + `"`},
		{"TXT", `"` + strings.Repeat("a", 256) + `"`, ""},
		{"TXT", `"` + strings.Repeat(`\001`, 255) + `"`, `"` + strings.Repeat(`\001`, 255) + `"`},
		{"TXT", `"a\"`, ""},
		{"TXT", `"\25"`, ""},
		{"TXT", `""`, `""`},
		{"TXT", ``, ""},
	} {
		canonical, problem := parseValue(c.typ, c.value)
		if (problem != "") != (c.canonical == "") || problem == "" && canonical != c.canonical {
			t.Errorf("%s %s: got %q, %q, want %q", c.typ, c.value, canonical, problem, c.canonical)
		}
	}
}

func TestWhatIsTooLongIsTold(t *testing.T) {
	long := func(n int) string { return strings.Repeat("a", n) }
	for _, c := range []struct{ text, want string }{
		{seoul + "kind: LoadBalancer\nname: a\nregion: ap-northeast-2\nlisteners:\n- protocol: HTTP\n  port: 80\n  default:\n    fixedResponse:\n      statusCode: 200\n      messageBody: " + long(1025),
			"test.yaml:13: LoadBalancer a: listeners[0].default.fixedResponse.messageBody: must be at most 1024 bytes long, not 1025"},
		{"kind: CachePolicy\nname: " + long(129),
			"test.yaml:2: CachePolicy " + long(129) + ": name: must be 1–128 letters, digits, hyphens, underscores and dots, the first a letter or digit"},
		{"kind: HostedZone\nname: a\nrecords: [{name: b, type: TXT, values: ['\"" + long(4000) + "\"']}]",
			"test.yaml:3: HostedZone a: records[0].values[0]: is 4002 bytes long: at most 4000"},
		{"kind: HostedZone\nname: a\nrecords:\n- name: b\n  type: TXT\n  values:" + strings.Repeat("\n  - '\""+long(200)+"\"'", 2),
			"test.yaml:8: HostedZone a: records[0].values[1]: \"" + long(79) + " is in the list twice"},
		{"kind: HostedZone\nname: " + long(64) + ".b",
			"test.yaml:2: HostedZone " + long(64) + ".b: name: \"" + long(64) + ".b\" is not a domain name: a label is longer than 63 bytes"},
	} {
		if _, err := build("test.yaml", c.text); err == nil || err.Error() != c.want {
			t.Errorf("got  %v\nwant %s", err, c.want)
		}
	}
}

func TestEveryRuleHasBothBoundsOfItsType(t *testing.T) {
	var walk func(s *shape)
	walk = func(s *shape) {
		if s.item != nil {
			walk(s.item)
		}
		for i := range s.fields {
			f := &s.fields[i]
			walk(f.shape)
			if where := s.typ.Name() + "." + f.name; f.name == "" {
				t.Errorf("%s has no name", where)
			} else if f.shape.typ.Kind() == reflect.Uint16 && (f.min != 1 || f.max != 65535) {
				t.Errorf("%s is a port from %v to %v", where, f.min, f.max)
			} else if f.shape.form == formInteger && f.words == nil && (f.least == "" || f.most == "") {
				t.Errorf("%s is a number without bounds", where)
			} else if f.shape.form == formList && f.most == "" {
				t.Errorf("%s is a list without bounds", where)
			} else if f.shape.form == formDuration && (f.least == "" || f.most == "") {
				t.Errorf("%s is a length of time without bounds", where)
			}
		}
	}
	for _, k := range kindTable {
		walk(k.shape)
	}
}

func TestEveryRegionOfAWSHasAPlace(t *testing.T) {
	for name, r := range awsRegions {
		if !isCountry(r.country) || r.city == "" || r.latitude < -60 || r.latitude > 70 || r.longitude < -180 || r.longitude > 180 {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if len(strings.Fields(countries)) != 249 {
		t.Errorf("ISO 3166-1 has 249 countries, here are %d", len(strings.Fields(countries)))
	}
}

// What Build accepts it accepts again as JSON, and makes the same of it; what it refuses it refuses in whole lines.
func FuzzBuild(f *testing.F) {
	f.Add([]byte(valid(f)))
	f.Add([]byte(sparse))
	files, _ := filepath.Glob("testdata/faults/*.yaml")
	for _, file := range files {
		f.Add([]byte(readFile(f, file)))
		for _, d := range strings.Split(readFile(f, file), "---\n") {
			f.Add([]byte(d))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := Split("a.yaml", data)
		if err != nil {
			return
		}
		s, err := Build(1, docs, Options{})
		var faults Faults
		if errors.As(err, &faults) {
			for _, fault := range faults {
				if fault.Message == "" || fault.Line == 0 && !strings.HasPrefix(fault.Message, "and ") || strings.Contains(fault.String(), "\n") {
					t.Fatalf("%#v", fault)
				}
			}
			return
		}
		if len(s.Certificates)+len(s.TsigKeys) > 0 {
			return // JSON has no secrets
		}
		if again := rebuild(t, s); !reflect.DeepEqual(s, again) {
			t.Fatalf("-first +again\n%s", cmp.Diff(s, again, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})))
		}
		if changes := Diff(docs, docs); len(changes) != 0 {
			t.Fatalf("differs from itself: %v", changes)
		}
	})
}

func TestOwnsIsOwner(t *testing.T) {
	z := &HostedZone{Name: "example.com"}
	names := []string{"@", "www", "WWW", "www.example.com.", "www.example.org.", `w\119w`, `a\.b`, "ſ", "K", "k", "Ⱥ", "*", "a.b", ""}
	for _, name := range names {
		for _, other := range append(names, "x") {
			if owner := z.Owner(other); z.Owns(name, owner) != (z.Owner(name) == owner) {
				t.Errorf("%q owns %q: %v", name, owner, z.Owns(name, owner))
			}
		}
	}
}
