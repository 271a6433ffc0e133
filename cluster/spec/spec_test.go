package spec

import (
	"encoding/json"
	"slices"
	"testing"
)

func TestKindsAreFoundByTheNamesThatPeopleType(t *testing.T) {
	for text, want := range map[string]string{
		"LoadBalancer": "LoadBalancer", "loadbalancer": "LoadBalancer", "LOADBALANCERS": "LoadBalancer", "load-balancers": "LoadBalancer",
		"cachepolicies": "CachePolicy", "zones": "HostedZone", "zone": "HostedZone", "hosted-zones": "HostedZone",
		"regions": "Region", "healthchecks": "HealthCheck",
	} {
		if k, ok := LookupKind(text); !ok || k.Name != want {
			t.Errorf("%s: got %q, %v", text, k.Name, ok)
		}
	}
	for _, text := range []string{"", "load", "loadbalancerss", "kind"} {
		if k, ok := LookupKind(text); ok {
			t.Errorf("%q is %s", text, k.Name)
		}
	}
	for _, k := range Kinds() {
		if found, ok := LookupKind(k.Plural); !ok || found.Name != k.Name {
			t.Errorf("%s is not found by its plural %s", k.Name, k.Plural)
		}
	}
}

func TestResourcesAreListedByKindAndName(t *testing.T) {
	s := mustBuild(t, sparse)
	var all, groups []string
	for r := range s.Each("") {
		all = append(all, r.String())
	}
	for r := range s.Each("target-groups") {
		groups = append(groups, r.Name)
		if r.Value.(*TargetGroup) != s.TargetGroups[r.Name] {
			t.Errorf("%s is another", r)
		}
	}
	if want := []string{"grpc", "hasty", "http", "https", "tcp", "udp"}; !slices.Equal(groups, want) {
		t.Errorf("got %v, want %v", groups, want)
	}
	if len(all) != 25 || all[0] != "Region/ap-northeast-2" || all[len(all)-1] != "HostedZone/example.com" {
		t.Errorf("got %v", all)
	}
	for range s.Each("martians") {
		t.Error("there are martians")
	}
	for range s.Each("") {
		break
	}
}

func TestAResourceIsFoundByKindAndName(t *testing.T) {
	s := mustBuild(t, sparse)
	r, ok := s.Resource("zones", "example.com")
	if !ok || r.Ref != (Ref{"HostedZone", "example.com"}) || r.Value.(*HostedZone).Name != "example.com" {
		t.Errorf("got %v, %v", r, ok)
	}
	for _, ref := range []Ref{{"zones", "example.org"}, {"martians", "example.com"}} {
		if r, ok := s.Resource(ref.Kind, ref.Name); ok {
			t.Errorf("%s is %v", ref, r)
		}
	}
}

func TestAResourcesJSONHasItsKindAndTheNamesOfDocuments(t *testing.T) {
	r, _ := mustBuild(t, sparse).Resource("TargetGroup", "hasty")
	got, err := json.Marshal(r)
	want := `{"kind":"TargetGroup","name":"hasty","region":"ap-northeast-2","protocol":"TCP",` +
		`"healthCheck":{"enabled":true,"protocol":"HTTP","path":"/","matcher":"200","interval":2,"timeout":2,"healthyThreshold":5,"unhealthyThreshold":2},` +
		`"loadBalancingAlgorithm":"round_robin","deregistrationDelay":300}`
	if err != nil || string(got) != want {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
}

func TestFaultsArePrintedWhereTheyAre(t *testing.T) {
	f := Fault{File: "network.yaml", Line: 14, Kind: "LoadBalancer", Name: "web-icn", Field: "listeners[0].default.forward", Message: `no target group "wbe"`}
	if got, want := f.String(), `network.yaml:14: LoadBalancer web-icn: listeners[0].default.forward: no target group "wbe"`; got != want {
		t.Errorf("got %s", got)
	}
	if got, want := (Faults{{Message: "a"}, {Line: 3, Kind: "Region", Message: "b"}, {File: "c", Message: "d"}}).Error(), "a\nline 3: Region: b\nc: d"; got != want {
		t.Errorf("got %s", got)
	}
}

func TestNearWordsAreThoseOneSlipAway(t *testing.T) {
	for _, c := range []struct {
		word       string
		candidates []string
		want       string // "": none
	}{
		{"wbe", []string{"web", "api"}, "web"},
		{"prto", []string{"name", "port"}, "port"},
		{"http", []string{"TCP", "HTTP"}, "HTTP"},
		{"web", []string{"db"}, ""},
		{"wen", []string{"wes", "web"}, "web"},
		{"", []string{"a"}, ""},
		{"x", nil, ""},
		{"targetGroup", []string{"targetGroups", "target"}, "targetGroups"},
	} {
		if got, _ := nearest(c.word, c.candidates); got != c.want {
			t.Errorf("%q among %q: got %q, want %q", c.word, c.candidates, got, c.want)
		}
	}
}
