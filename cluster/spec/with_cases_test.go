package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWithTellsWhatIsWrongWithAChange(t *testing.T) {
	base, err := Build(1, mustSplitted(smallWorld), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, put string
		del       []Ref
		want      []string
	}{
		{"what is used is deleted", "", []Ref{{"TargetGroup", "t2"}, {"HostedZone", "z1.example"}, {"Accelerator", "none"}}, []string{
			"TargetGroup t2: is used by LoadBalancer/l2 (listeners[0].default.forward)",
			"TargetGroup t2: is used by Accelerator/a1 (listeners[0].endpointGroups[0].endpoints[1].targetGroup)",
		}},
		{"what is used is deleted with all its users", "", []Ref{{"Accelerator", "a1"}, {"HostedZone", "z1.example"}}, nil},
		{"what is put refers to what is deleted", "{kind: LoadBalancer, name: l1, region: r1, listeners: [{protocol: HTTP, port: 1, default: {forward: t9}}]}",
			[]Ref{{"TargetGroup", "t1"}}, []string{`new.yaml:1: LoadBalancer l1: listeners[0].default.forward: no target group "t9" (did you mean "t2"?)`}},
		{"what is used moves", "{kind: TargetGroup, name: t1, region: r2, protocol: HTTP}", nil, []string{
			"LoadBalancer l1: listeners[0].default.forward: target group t1 is in r2, not in r1"}},
		{"what is used turns into something else", "{kind: LoadBalancer, name: l2, region: r1, listeners: [{protocol: HTTP, port: 2, default: {forward: t1}}]}", nil, []string{
			"Accelerator a1: listeners[0].endpointGroups[0].endpoints[0].loadBalancer: load balancer l2 is of type application: an endpoint needs type network"}},
		{"a port that is taken", "{kind: LoadBalancer, name: new, region: r1, listeners: [{protocol: HTTP, port: 1, default: {forward: t1}}]}", nil, []string{
			"new.yaml:1: LoadBalancer new: listeners[0].port: port 1 of r1 is LoadBalancer/l1's already"}},
		{"a load balancer moves to where its port is taken", "{kind: LoadBalancer, name: l3, region: r2, listeners: [{protocol: HTTP, port: 1, default: {fixedResponse: {statusCode: 200}}}]}\n---\n" +
			"{kind: LoadBalancer, name: l1, region: r2, listeners: [{protocol: HTTP, port: 1, default: {fixedResponse: {statusCode: 200}}}]}", nil, []string{
			"new.yaml:3: LoadBalancer l1: listeners[0].port: port 1 of r2 is LoadBalancer/l3's already"}},
		{"two change their ports", "{kind: LoadBalancer, name: l1, region: r1, listeners: [{protocol: HTTP, port: 2, default: {forward: t1}}]}\n---\n" +
			"{kind: LoadBalancer, name: l2, region: r1, type: network, listeners: [{protocol: TCP, port: 1, default: {forward: t2}}]}", nil, nil},
		{"a host that is taken", "{kind: Distribution, name: new, aliases: [WWW1.example.com], origins: [{name: a, url: 'http://a.example'}], defaultCacheBehavior: {targetOrigin: a}}", nil, []string{
			"new.yaml:1: Distribution new: aliases[0]: www1.example.com is already an alias of Distribution/d1"}},
		{"a POP that is taken", "{kind: Region, name: r3, location: {latitude: 1, longitude: 1}, pops: [{name: p2}]}", nil, []string{
			`new.yaml:1: Region r3: pops[0].name: POP "p2" is already in Region/r2`}},
		{"ports of an address that are taken", "{kind: Accelerator, name: new, ipAddresses: [192.0.2.1], listeners: [{protocol: TCP, portRanges: [{fromPort: 1, toPort: 9}], endpointGroups: [{region: r1, endpoints: [{targetGroup: t2}]}]}]}", nil, []string{
			"new.yaml:1: Accelerator new: listeners[0].portRanges[0]: port 1 of 192.0.2.1 is already taken by Accelerator/a1, listeners[0].portRanges[0]"}},
		{"a managed policy is deleted", "", []Ref{{"CachePolicy", "Managed-CachingDisabled"}}, nil},
		{"a security group that guards something is deleted", "", []Ref{{"SecurityGroup", "s1"}}, []string{
			"SecurityGroup s1: is used by LoadBalancer/l2 (securityGroups[0])"}},
		{"a CIDR collection by which records are chosen is deleted", "", []Ref{{"CidrCollection", "k1"}}, []string{
			"CidrCollection k1: is used by HostedZone/z1.example (records[4].cidrRoutingConfig.collection)"}},
		{"a location by which records are chosen goes", "{kind: CidrCollection, name: k1, locations: [{locationName: b, cidrList: [11.0.0.0/8]}]}", nil, []string{
			`HostedZone z1.example: records[4].cidrRoutingConfig.locationName: CIDR collection k1 has no location "a" (did you mean "b"?)`}},
		{"a location changes its blocks", "{kind: CidrCollection, name: k1, locations: [{locationName: a, cidrList: [12.0.0.0/8]}]}", nil, nil},
		{"a key that a zone names is deleted", "", []Ref{{"TsigKey", "y1"}, {"TsigKey", "y2"}, {"TsigKey", "y3"}, {"TsigKey", "y4"}}, []string{
			"TsigKey y1: is used by HostedZone/z2.example (transfer.allow[0].key)",
			"TsigKey y2: is used by HostedZone/z2.example (transfer.notify[0].key)",
			"TsigKey y3: is used by HostedZone/z3.example (primaries[0].key)",
			"TsigKey y4: is used by HostedZone/z2.example (update.allow[0].key)"}},
		{"a child of a health check is deleted", "", []Ref{{"HealthCheck", "h2"}}, []string{
			"HealthCheck h2: is used by HealthCheck/h3 (childHealthChecks[1])"}},
		{"a region that a health check looks from is deleted", "", []Ref{{"Region", "r2"}}, []string{
			"Region r2: is used by HealthCheck/h2 (regions[0])"}},
		{"a region that shields an origin is deleted", "{kind: Distribution, name: new, aliases: [new.example.com], origins: [{name: a, url: 'http://a.example', originShield: {enabled: true, originShieldRegion: r2}}], defaultCacheBehavior: {targetOrigin: a}}",
			[]Ref{{"Region", "r2"}}, []string{`new.yaml:1: Distribution new: origins[0].originShield.originShieldRegion: no region "r2" (did you mean "r1"?)`,
				"Region r2: is used by HealthCheck/h2 (regions[0])"}},
		{"a shield without a region", "{kind: Distribution, name: new, aliases: [new.example.com], origins: [{name: a, url: 'http://a.example', originShield: {enabled: true}}, {name: b, url: 'http://b.example', originShield: {}}], defaultCacheBehavior: {targetOrigin: a}}",
			nil, []string{"new.yaml:1: Distribution new: origins[0].originShield.originShieldRegion: is required where the shield is enabled"}},
		{"a child turns into a calculated one", "{kind: HealthCheck, name: h2, type: CALCULATED, healthThreshold: 1, childHealthChecks: [h1]}", nil, []string{
			`HealthCheck h3: childHealthChecks[1]: "h2" is calculated itself`}},
		{"a second cluster", "{kind: Cluster, name: other, voters: 4}", nil, []string{
			"new.yaml:1: Cluster other: name: must be default: there is one cluster", "new.yaml:1: Cluster other: voters: must be 1, 3 or 5, not 4"}},
	} {
		var put []Document
		if c.put != "" {
			if put, err = Split("new.yaml", []byte(c.put)); err != nil {
				t.Fatal(err)
			}
		}
		next, err := base.With(2, put, c.del, Options{})
		var faults Faults
		errors.As(err, &faults)
		var got []string
		for _, f := range faults {
			got = append(got, f.String())
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.name, diff)
		}
		if err == nil && (next.Revision != 2 || next.CachePolicies["Managed-CachingDisabled"] == nil) {
			t.Errorf("%s: revision %d", c.name, next.Revision)
		}
	}
}

func TestManyUsersOfWhatIsDeletedAreCounted(t *testing.T) {
	var b strings.Builder
	b.WriteString("kind: Region\nname: r\nlocation: {latitude: 1, longitude: 1}\n")
	for i := range 150 {
		fmt.Fprintf(&b, "---\n{kind: TargetGroup, name: t%d, region: r, protocol: HTTP}\n", i)
	}
	_, err := mustBuild(t, b.String()).With(2, nil, []Ref{{"Region", "r"}}, Options{})
	var faults Faults
	if !errors.As(err, &faults) || len(faults) != 101 || faults[0].String() != "Region r: is used by TargetGroup/t0 (region)" || faults[100].String() != "and 50 more" {
		t.Fatalf("got %d faults: %v", len(faults), err)
	}
}

func TestWhatANewerReleaseSaysIsPassedOverWhereItIsAgreedAlready(t *testing.T) {
	const text = "kind: TargetGroup\nname: web\nregion: r\nprotocol: HTTP\nhealthCheck: {path: /a, grpc: {service: x}}\nslowStart: 30\n---\n" +
		"kind: Region\nname: r\nlocation: {latitude: 1, longitude: 1}\n---\nkind: Volcano\nname: v\nlava: [1, {hot: true}]\n"
	docs := mustSplit(t, text)
	if _, err := Build(1, docs, Options{}); err == nil {
		t.Error("an operator may put what is not known")
	}
	s, err := Build(1, docs, Options{Stored: true})
	if err != nil {
		t.Fatal(err)
	}
	want := []Unknown{{Ref{"TargetGroup", "web"}, []string{"healthCheck.grpc", "slowStart"}}, {Ref{"Volcano", "v"}, nil}}
	if diff := cmp.Diff(want, s.Unknown); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if s.TargetGroups["web"].HealthCheck.Path != "/a" {
		t.Error("what is known is not read")
	}
	s, err = s.With(2, mustSplit(t, "kind: Volcano\nname: w\n"), []Ref{{"Volcano", "v"}}, Options{Stored: true})
	if err != nil || len(s.Unknown) != 2 || s.Unknown[1].Name != "w" {
		t.Fatalf("%v, %v", s, err)
	}
	if _, err := s.With(3, mustSplit(t, group+"slowStart: 1\n"), nil, Options{}); err == nil {
		t.Error("a change with what is not known is taken")
	}
	if _, err := s.With(3, mustSplit(t, strings.Replace(text, "/a,", "a,", 1)), nil, Options{Stored: true}); err == nil {
		t.Error("what is known and wrong is taken")
	}
	if s, err = s.With(3, mustSplit(t, "kind: TargetGroup\nname: web\nregion: r\nprotocol: HTTP\n"), nil, Options{}); err != nil || len(s.Unknown) != 1 {
		t.Fatalf("%v, %v", s.Unknown, err)
	}
}

func TestLabelsAreReadOnEveryKind(t *testing.T) {
	s := mustBuild(t, "kind: Region\nname: r\nlocation: {latitude: 1, longitude: 1}\nlabels: {team: edge, example.com/tier: 1, empty: \"\", x-y_z.0: A}\n---\nkind: Cluster\nname: default\n")
	r, _ := s.Resource("Region", "r")
	want := map[string]string{"team": "edge", "example.com/tier": "1", "empty": "", "x-y_z.0": "A"}
	if diff := cmp.Diff(want, r.Labels()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if r, _ := s.Resource("Cluster", "default"); r.Labels() != nil {
		t.Errorf("labels of nothing: %v", r.Labels())
	}
	for _, k := range kindTable {
		if !slices.ContainsFunc(k.shape.fields, func(f field) bool { return f.name == "labels" && f.shape.form == formLabels }) {
			t.Errorf("%s has no labels", k.Name)
		}
	}
	var many []string
	for i := range 33 {
		many = append(many, fmt.Sprintf("l%d: a", i))
	}
	const name = "1–63 letters, digits, hyphens, underscores and dots, the first and last a letter or digit"
	for labels, want := range map[string]string{
		"{-a: b}":                              "labels.-a: a label's name must be " + name,
		"{a: b/c}":                             "labels.a: a label's value must be " + name + `, or empty, not "b/c"`,
		"{a: }":                                `labels.a: has no value: "" is the empty one`,
		"{a: true}":                            `labels.a: must be text: put "true" in quotes`,
		"{a: [b]}":                             "labels.a: must be a single value",
		"{Example.com/a: b}":                   "labels.Example.com/a: what stands before the slash must be a domain in small letters",
		"{example.com/: b}":                    "labels.example.com/: a label's name must be " + name,
		"{a/b/c: b}":                           "labels.a/b/c: a label's name must be " + name,
		"[a]":                                  "labels: must have fields, name: value",
		"{" + strings.Join(many, ", ") + "}":   "labels: must be at most 32, not 33",
		"{" + strings.Repeat("a", 64) + ": b}": "labels." + strings.Repeat("a", 64) + ": a label's name must be " + name,
	} {
		_, err := build("a.yaml", "kind: Region\nname: eu-west-1\nlabels: "+labels+"\n")
		if err == nil || err.Error() != "a.yaml:3: Region eu-west-1: "+want {
			t.Errorf("%s: got %v, want %s", labels, err, want)
		}
	}
}

func TestADiffTellsLabelsOneByOne(t *testing.T) {
	changes := Diff(mustSplit(t, group+"labels: {a: one, b: two, c: three}\n"), mustSplit(t, group+"labels: {b: 2, c: three, d: ''}\n"))
	want := []string{"labels.a: − one", "labels.b: two → 2", `labels.d: + ""`}
	if len(changes) != 1 || !slices.Equal(changes[0].Fields, want) {
		t.Errorf("got %v", changes)
	}
	changes = Diff(mustSplit(t, group), mustSplit(t, group+"labels: {b: two, a: one}\n"))
	if want := []string{"labels: + {a: one, b: two}"}; len(changes) != 1 || !slices.Equal(changes[0].Fields, want) {
		t.Errorf("got %v", changes)
	}
}

func TestTheClusterHasSettingsEvenIfNobodyDeclaresThem(t *testing.T) {
	for text, want := range map[string]string{
		"":                               `{"name":"default","voters":5,"replaceVoterAfter":30,"removeNodeAfter":259200,"healthCheckQuorum":18}`,
		"kind: Cluster\nname: default\n": `{"name":"default","voters":5,"replaceVoterAfter":30,"removeNodeAfter":259200,"healthCheckQuorum":18}`,
		"kind: Cluster\nname: default\nvoters: 3\nreplaceVoterAfter: 24h\nremoveNodeAfter: 8760h\nhealthCheckQuorum: 0\n": `{"name":"default","voters":3,"replaceVoterAfter":86400,"removeNodeAfter":31536000,"healthCheckQuorum":0}`,
	} {
		got, err := json.Marshal(mustBuild(t, text).Settings())
		if err != nil || string(got) != want {
			t.Errorf("%q: got %s, %v", text, got, err)
		}
	}
	for field, want := range map[string]string{
		"replaceVoterAfter: 4":   "replaceVoterAfter: must be 5s–24h, not 4",
		"removeNodeAfter: 9m":    `removeNodeAfter: must be 10m–8760h, not "9m"`,
		"voters: 0":              "voters: must be 1, 3 or 5, not 0",
		"healthCheckQuorum: 100": "healthCheckQuorum: must be 0–99, not 100",
	} {
		if _, err := build("a.yaml", "kind: Cluster\nname: default\n"+field); err == nil || err.Error() != "a.yaml:3: Cluster default: "+want {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

// What a release before took, and this one would refuse, stays as it was agreed.
func TestWhatIsAgreedStaysThoughItWouldBeRefused(t *testing.T) {
	const head = "kind: Region\nname: ap-northeast-2\n---\n"
	for name, text := range map[string]string{
		"an address that no socket takes": `{kind: TargetGroup, name: web, region: ap-northeast-2, protocol: TCP, port: 80, targets: [{address: 255.255.255.255}, {address: "fe80::1"}]}`,
		"an origin's address":             `{kind: Distribution, name: site, aliases: [www.a.example], origins: [{name: a, url: "http://0.0.0.0"}], defaultCacheBehavior: {targetOrigin: a}}`,
		"checks of what is not checked": `{kind: Accelerator, name: rooms, type: CUSTOM_ROUTING, ipAddresses: [198.51.100.1], listeners: [{protocol: TCP, portRanges: [{fromPort: 1000, toPort: 1015}], failoverScope: ALL, ` +
			`endpointGroups: [{region: ap-northeast-2, healthCheckPort: 8080, healthCheckInterval: 10, thresholdCount: 2, destinationConfigurations: [{fromPort: 80}], endpoints: [{subnet: 10.0.0.0/28}]}]}]}`,
	} {
		docs := mustSplit(t, head+text+"\n")
		if _, err := Build(1, docs, Options{}); err == nil {
			t.Errorf("%s is taken", name)
		}
		if _, err := Build(1, docs, Options{Stored: true}); err != nil {
			t.Errorf("%s is not kept: %v", name, err)
		}
	}
}
