package spec

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// drawDocument is a document of a small world, where names, ports, hosts and addresses meet often, and are wrong now and then.
func drawDocument(t *rapid.T) Document {
	n := func(most int) int { return rapid.IntRange(1, most).Draw(t, "n") }
	seldom := func(text string) string {
		if rapid.IntRange(0, 39).Draw(t, "seldom") == 0 {
			return text
		}
		return ""
	}
	pick := func(texts ...string) string { return rapid.SampledFrom(texts).Draw(t, "pick") }
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	// Most stands in one region, and what has an odd number is for HTTP; else too little fits together.
	region := func() string { return pick("r1", "r1", "r1", "r1", "r1", "r1", "r2", "r3") }
	protocol := func(number int) string {
		if odd := number%2 == 1; odd != (rapid.IntRange(0, 7).Draw(t, "other") == 0) {
			return "HTTP"
		}
		return "TCP"
	}
	group := func(protocol string) string {
		if protocol == "HTTP" {
			return pick("t1", "t1", "t3", "t2")
		}
		return pick("t2", "t2", "t4", "t1")
	}
	kind := pick("Region", "Region", "HealthCheck", "SecurityGroup", "TargetGroup", "TargetGroup", "LoadBalancer", "LoadBalancer", "CachePolicy", "Distribution",
		"Distribution", "Accelerator", "Accelerator", "HostedZone", "CidrCollection", "Cluster", pick("Alien", "Cluster", "HostedZone"))
	name := ""
	switch kind {
	case "Region":
		name = fmt.Sprintf("r%d", n(3))
		line("location: {latitude: %d, longitude: 1}\npops: [{name: p%d}]", n(80), n(6))
	case "HealthCheck":
		name = fmt.Sprintf("h%d", n(3))
		switch n(3) {
		case 1:
			line("type: CALCULATED\nhealthThreshold: 1\nchildHealthChecks: [%s]", pick("h1", "h2", "h3", "h1, h2"))
		case 2:
			line("type: TCP\nipAddress: 192.0.2.%d\nport: 80\nregions: [%s]", n(9), region())
		default:
			line("type: TCP\nipAddress: 192.0.2.%d\nport: 80", n(9))
		}
	case "TargetGroup":
		number := n(4)
		name = fmt.Sprintf("t%d", number)
		line("region: %s\nprotocol: %s\nport: %d", region(), protocol(number), n(9))
	case "SecurityGroup":
		name = fmt.Sprintf("s%d", n(3))
		line("ingress: [{protocol: tcp, fromPort: %d, toPort: %d, cidrs: [192.0.2.%d/32]}]", n(9), n(9), n(9))
	case "LoadBalancer":
		number := n(4)
		name = fmt.Sprintf("l%d", number)
		b.WriteString(seldom("securityGroups: [" + pick("s1", "s1", "s2", "s1, s2") + "]\n"))
		if protocol(number) == "HTTP" {
			line("region: %s\nlisteners:\n- {protocol: HTTP, port: %d, default: {forward: %s}}", region(), n(9), group("HTTP"))
			if n(2) == 1 {
				line("- {protocol: HTTP, port: %d, default: {fixedResponse: {statusCode: 200}}, rules: [{priority: 1, conditions: [{hostHeader: [a]}], action: {forward: %s}}]}", n(9), group("HTTP"))
			}
		} else {
			line("type: network\nregion: %s\nlisteners:\n- {protocol: TCP, port: %d, default: {forward: %s}}", region(), n(9), group("TCP"))
		}
	case "CachePolicy":
		name = pick("c1", "c1", "c1", "c2", "c2", "c2", "Managed-CachingDisabled")
		line("minTTL: %d", n(9))
	case "Distribution":
		name = fmt.Sprintf("d%d", n(3))
		line("aliases: [www%d.example.com, WWW%d.example.com]", n(4), 4+n(4))
		line("origins: [{name: a, loadBalancers: [%s], originShield: {%s}}]", pick("l1", "l1", "l3", "l2"), pick("", "", "enabled: true, originShieldRegion: r2", "originShieldRegion: r1", "enabled: true"))
		line("defaultCacheBehavior: {targetOrigin: a, cachePolicy: %s}", pick("c1", "Managed-CachingDisabled"))
	case "Accelerator":
		name = fmt.Sprintf("a%d", n(3))
		from := n(9)
		line("ipAddresses: [192.0.2.%d]\nlisteners:", n(2))
		line("- {protocol: TCP, portRanges: [{fromPort: %d, toPort: %d}], endpointGroups: [{region: %s, endpoints: [{%s}]}]}", from, from+n(3)-1, region(),
			pick("targetGroup: t1", "targetGroup: t2", "loadBalancer: l2", "loadBalancer: l4", "loadBalancer: l1", "address: 192.0.2.9"))
	case "CidrCollection":
		name = fmt.Sprintf("k%d", n(2))
		line("locations: [{locationName: %s, cidrList: [10.%d.0.0/16]}, {locationName: c, cidrList: [10.%d.0.0/16]}]", pick("a", "a", "b"), n(9), 9+n(9))
	case "HostedZone":
		name = fmt.Sprintf("z%d.example", n(2))
		line("records:\n- {name: a, type: A, alias: {%s}}", pick("distribution: d1", "loadBalancer: l1", "accelerator: a1", "record: b"))
		line("- {name: b, type: A, values: [192.0.2.1], setIdentifier: x, region: %s, healthCheck: h%d}", region(), n(2))
		line("- {name: c, type: A, values: [192.0.2.1], setIdentifier: x, %s}", pick("geoProximityLocation: {region: "+region()+"}", "cidrRoutingConfig: {collection: k1, locationName: a}",
			"cidrRoutingConfig: {collection: k1, locationName: '*'}", "cidrRoutingConfig: {collection: k2, locationName: b}"))
	case "Cluster":
		name = "default"
		line("voters: %s", pick("1", "3", "5", "5", "2"))
	case "Alien":
		name = fmt.Sprintf("x%d", n(2))
		line("a: %d", n(9))
	}
	b.WriteString(seldom("labels: {team: a}\n"))
	b.WriteString(seldom("nmae: b\n"))
	b.WriteString(seldom("region: nowhere\n"))
	b.WriteString(seldom("[\n"))
	return Document{Kind: kind, Name: name, File: "new.yaml", Line: 1 + n(9), Bytes: []byte("kind: " + kind + "\nname: " + name + "\n" + b.String())}
}

// smallWorld has everything that drawDocument may refer to, so that what takes away or changes it is noticed.
const smallWorld = `
kind: Region
name: r1
location: {latitude: 1, longitude: 1}
pops: [{name: p1}]
---
kind: Region
name: r2
location: {latitude: 1, longitude: 1}
pops: [{name: p2}]
---
{kind: TargetGroup, name: t1, region: r1, protocol: HTTP}
---
{kind: TargetGroup, name: t2, region: r1, protocol: TCP}
---
{kind: LoadBalancer, name: l1, region: r1, listeners: [{protocol: HTTP, port: 1, default: {forward: t1}}]}
---
{kind: SecurityGroup, name: s1, ingress: [{protocol: tcp, fromPort: 2, cidrs: [192.0.2.0/24]}]}
---
{kind: LoadBalancer, name: l2, region: r1, type: network, securityGroups: [s1], listeners: [{protocol: TCP, port: 2, default: {forward: t2}}]}
---
{kind: CachePolicy, name: c1}
---
{kind: HealthCheck, name: h1, type: TCP, ipAddress: 192.0.2.1, port: 1}
---
{kind: HealthCheck, name: h2, type: TCP, ipAddress: 192.0.2.1, port: 1, regions: [r2]}
---
{kind: HealthCheck, name: h3, type: CALCULATED, healthThreshold: 1, childHealthChecks: [h1, h2]}
---
kind: Distribution
name: d1
aliases: [www1.example.com]
origins: [{name: a, loadBalancers: [l1]}]
defaultCacheBehavior: {targetOrigin: a, cachePolicy: c1}
---
kind: Accelerator
name: a1
ipAddresses: [192.0.2.1]
listeners:
- {protocol: TCP, portRanges: [{fromPort: 1}], endpointGroups: [{region: r1, endpoints: [{loadBalancer: l2}, {targetGroup: t2}]}]}
---
kind: HostedZone
name: z1.example
records:
- {name: a, type: A, alias: {distribution: d1}}
- {name: b, type: A, values: [192.0.2.1], setIdentifier: x, region: r1, healthCheck: h1}
- {name: c, type: A, alias: {accelerator: a1}}
- {name: d, type: A, alias: {loadBalancer: l2}}
- {name: e, type: A, values: [192.0.2.1], setIdentifier: x, cidrRoutingConfig: {collection: k1, locationName: a}}
- {name: f, type: A, values: [192.0.2.1], setIdentifier: x, geoProximityLocation: {region: r1}}
---
{kind: CidrCollection, name: k1, locations: [{locationName: a, cidrList: [10.0.0.0/8]}, {locationName: b, cidrList: [11.0.0.0/8]}]}
---
{kind: TsigKey, name: y1, secret: c2VjcmV0IG9mIHRoaXMgcGFnZSwga25vd24gdG8gYWxsIQ==}
---
{kind: TsigKey, name: y2, secret: c2VjcmV0IG9mIHRoaXMgcGFnZSwga25vd24gdG8gYWxsIQ==}
---
{kind: TsigKey, name: y3, secret: c2VjcmV0IG9mIHRoaXMgcGFnZSwga25vd24gdG8gYWxsIQ==}
---
{kind: TsigKey, name: y4, secret: c2VjcmV0IG9mIHRoaXMgcGFnZSwga25vd24gdG8gYWxsIQ==}
---
{kind: HostedZone, name: z2.example, transfer: {allow: [{key: y1}], notify: [{address: 192.0.2.1, key: y2}]}, update: {allow: [{key: y4}]}}
---
{kind: HostedZone, name: z3.example, primaries: [{address: 192.0.2.1, key: y3}]}
`

// whole is all documents after a change, those that are put last.
func whole(docs, put []Document, del []Ref) []Document {
	all := slices.DeleteFunc(slices.Clone(docs), func(d Document) bool {
		return slices.Contains(del, d.Ref()) || slices.ContainsFunc(put, func(p Document) bool { return p.Ref() == d.Ref() })
	})
	return append(all, put...)
}

// asOfAChange words the faults of a whole as With tells those of a change.
func asOfAChange(err error, put []Document, del []Ref) []string {
	var faults Faults
	errors.As(err, &faults)
	var texts []string
	for _, f := range faults {
		ref := Ref{f.Kind, f.Name}
		if !slices.ContainsFunc(put, func(d Document) bool { return d.Ref() == ref }) {
			f.File, f.Line = "", 0
			for kind, word := range words {
				name, missing := strings.CutPrefix(f.Message, "no "+word+` "`)
				name, _, _ = strings.Cut(name, `"`)
				if missing && slices.Contains(del, Ref{kind, name}) {
					f = Fault{Kind: kind, Name: name, Message: fmt.Sprintf("is used by %s (%s)", ref, f.Field)}
				}
			}
		}
		texts = append(texts, f.String())
	}
	slices.Sort(texts)
	return texts
}

func TestWithMakesWhatBuildMakesOfTheWhole(t *testing.T) {
	accepted, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		o := Options{Stored: rapid.Bool().Draw(t, "stored")}
		docs := mustSplitted(smallWorld)
		s, err := Build(0, docs, o)
		if err != nil {
			t.Fatal(err)
		}
		for revision := range uint64(rapid.IntRange(1, 60).Draw(t, "changes")) {
			var put []Document
			var del []Ref
			for range rapid.IntRange(0, 3).Draw(t, "puts") {
				put = append(put, drawDocument(t))
			}
			for range rapid.IntRange(0, 2).Draw(t, "deletes") {
				del = append(del, rapid.SampledFrom(docs).Draw(t, "delete").Ref())
			}
			before := fmt.Sprintf("%p %+v", s.TargetGroups, s)
			after := whole(docs, put, del)
			want, wantErr := Build(revision, after, o)
			got, err := s.With(revision, put, del, o)
			if diff := cmp.Diff(asOfAChange(wantErr, put, del), asOfAChange(err, put, del)); diff != "" {
				t.Fatalf("faults: -whole +with\n%s", diff)
			}
			if fmt.Sprintf("%p %+v", s.TargetGroups, s) != before {
				t.Fatalf("the spec before was changed")
			}
			if err != nil {
				refused++
				continue
			}
			accepted++
			if !reflect.DeepEqual(want, got) {
				t.Fatalf("-whole +with\n%s", cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.IgnoreUnexported(HostedZone{})))
			}
			for r := range s.Each("") {
				now, there := got.Resource(r.Kind, r.Name)
				if touched := slices.ContainsFunc(put, func(d Document) bool { return d.Ref() == r.Ref }); there && !touched && now.Value != r.Value {
					t.Fatalf("%s is not shared", r)
				}
			}
			docs, s = after, got
			if len(docs) == 0 {
				return
			}
		}
	})
	t.Logf("%d changes were accepted, %d refused", accepted, refused)
	if accepted < 50 || refused < 50 {
		t.Errorf("%d changes were accepted, %d refused: the world is drawn badly", accepted, refused)
	}
}

func mustSplitted(text string) []Document {
	docs, err := Split("old.yaml", []byte(text))
	if err != nil {
		panic(err)
	}
	return docs
}
