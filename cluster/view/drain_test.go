package view

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/perigee-net/perigee/cluster/spec"
)

// fleet is two nodes of Seoul in two POPs and one of Frankfurt; only Frankfurt's answers names.
func fleet() []Member {
	return []Member{
		{Name: "icn1-a", Region: "seoul", POP: "icn1", Roles: []Role{Edge, Origin}},
		{Name: "icn2-a", Region: "seoul", POP: "icn2", Roles: []Role{Edge, Origin}},
		{Name: "fra1-a", Region: "frankfurt", POP: "fra1", Roles: []Role{Edge, DNS}},
	}
}

// taking are the names of those that take a role.
func taking(members []Member, r Role) (names []string) {
	for _, m := range members {
		if m.Takes(r) {
			names = append(names, m.Name)
		}
	}
	return names
}

func TestADrainTakesNothingNewAndNeverTheLastOfARole(t *testing.T) {
	plain := cmpopts.EquateComparable(netip.AddrPort{})
	node, pop, region := func(n string) DrainRule { return DrainRule{ScopeNode, n, ""} }, func(n string) DrainRule { return DrainRule{ScopePOP, n, ""} },
		func(n string) DrainRule { return DrainRule{ScopeRegion, n, "region " + n + " until noon"} }
	for _, c := range []struct {
		name              string
		drains            []DrainRule
		leaving           []string
		edge, dns, origin []string
		drained           map[string]string
	}{
		{"nothing", nil, nil, []string{"icn1-a", "icn2-a", "fra1-a"}, []string{"fra1-a"}, []string{"icn1-a", "icn2-a"}, nil},
		{"a node", []DrainRule{node("icn1-a")}, nil, []string{"icn2-a", "fra1-a"}, []string{"fra1-a"}, []string{"icn2-a"},
			map[string]string{"icn1-a": "node icn1-a"}},
		{"a POP", []DrainRule{pop("icn2")}, nil, []string{"icn1-a", "fra1-a"}, []string{"fra1-a"}, []string{"icn1-a"},
			map[string]string{"icn2-a": "pop icn2"}},
		{"a region, the last with the origin role", []DrainRule{region("seoul")}, nil, []string{"fra1-a"}, []string{"fra1-a"}, []string{"icn1-a", "icn2-a"},
			map[string]string{"icn1-a": "region seoul until noon", "icn2-a": "region seoul until noon"}},
		{"the last that answers names", []DrainRule{node("fra1-a")}, nil, []string{"icn1-a", "icn2-a"}, []string{"fra1-a"}, []string{"icn1-a", "icn2-a"},
			map[string]string{"fra1-a": "node fra1-a"}},
		{"all", []DrainRule{region("seoul"), region("frankfurt"), pop("icn1")}, nil,
			[]string{"icn1-a", "icn2-a", "fra1-a"}, []string{"fra1-a"}, []string{"icn1-a", "icn2-a"},
			map[string]string{"icn1-a": "region seoul until noon, pop icn1", "icn2-a": "region seoul until noon", "fra1-a": "region frankfurt until noon"}},
		{"one drains, the other leaves", []DrainRule{node("icn1-a")}, []string{"icn2-a"}, []string{"fra1-a"}, []string{"fra1-a"}, []string{"icn1-a"},
			map[string]string{"icn1-a": "node icn1-a"}},
		{"one drains and leaves", []DrainRule{node("fra1-a")}, []string{"fra1-a"}, []string{"icn1-a", "icn2-a"}, nil, []string{"icn1-a", "icn2-a"},
			map[string]string{"fra1-a": "node fra1-a"}},
		{"what there is not", []DrainRule{node("seoul"), pop("seoul"), region("icn1"), {"planet", "seoul", ""}}, nil,
			[]string{"icn1-a", "icn2-a", "fra1-a"}, []string{"fra1-a"}, []string{"icn1-a", "icn2-a"}, nil},
	} {
		members := fleet()
		for i := range members {
			members[i].Leaving = slices.Contains(c.leaving, members[i].Name)
		}
		before := slices.Clone(members)
		got := Drain(members, c.drains)
		if diff := cmp.Diff(before, members, plain); diff != "" {
			t.Errorf("%s: changed what it was given: %s", c.name, diff)
		}
		for role, want := range map[Role][]string{Edge: c.edge, DNS: c.dns, Origin: c.origin, Voter: nil} {
			if names := taking(got, role); !slices.Equal(names, want) {
				t.Errorf("%s: %v take %s, want %v", c.name, names, role, want)
			}
		}
		for _, m := range got {
			if m.Drained != c.drained[m.Name] {
				t.Errorf("%s: %s is drained by %q, want %q", c.name, m.Name, m.Drained, c.drained[m.Name])
			}
			if !slices.Equal(m.Roles, fleet()[slices.IndexFunc(fleet(), func(f Member) bool { return f.Name == m.Name })].Roles) {
				t.Errorf("%s: %s has the roles %v", c.name, m.Name, m.Roles)
			}
		}
		if diff := cmp.Diff(got, Drain(got, c.drains), plain); diff != "" {
			t.Errorf("%s: done twice it is another: %s", c.name, diff)
		}
		if diff := cmp.Diff(before, Drain(got, nil), plain); diff != "" {
			t.Errorf("%s: it is not undone: %s", c.name, diff)
		}
	}
}

func TestWhoIsDrainedOrLeavesIsNotRoutedToButStillHasItsRole(t *testing.T) {
	members := Drain(fleet(), []DrainRule{{ScopeNode, "icn1-a", "node icn1-a"}})
	members[2].Leaving = true
	v := &View{Members: members}
	names := func(members []Member) (names []string) {
		for _, m := range members {
			names = append(names, m.Name)
		}
		return names
	}
	for _, c := range []struct {
		region       string
		in, havingIt []string
		passedOver   []string
	}{
		{"seoul", []string{"icn2-a"}, []string{"icn1-a", "icn2-a"}, []string{"icn1-a: drained (node icn1-a)"}},
		{"frankfurt", nil, []string{"fra1-a"}, []string{"fra1-a: leaving"}},
		{"atlantis", nil, nil, nil},
	} {
		if got := names(v.In(c.region, Edge)); !slices.Equal(got, c.in) {
			t.Errorf("in %s: %v, want %v", c.region, got, c.in)
		}
		if got := names(v.Having(c.region, Edge)); !slices.Equal(got, c.havingIt) {
			t.Errorf("having it in %s: %v, want %v", c.region, got, c.havingIt)
		}
		if got := v.PassedOver(c.region, Edge); !slices.Equal(got, c.passedOver) {
			t.Errorf("passed over in %s: %q, want %q", c.region, got, c.passedOver)
		}
	}
}

func TestWhereNothingIsMeasuredTheDistanceIsEstimated(t *testing.T) {
	const ms = time.Millisecond
	members := []Member{
		{Name: "self", Region: "seoul", Roles: []Role{Edge}},
		{Name: "far1", Region: "frankfurt", Roles: []Role{Origin}},
		{Name: "far2", Region: "frankfurt", Roles: []Role{Origin}},
		{Name: "drained", Region: "frankfurt", Roles: []Role{Origin}, Drained: "node drained"},
	}
	estimates := map[string]time.Duration{"far1": 200 * ms, "far2": 260 * ms, "drained": ms}
	for _, c := range []struct {
		name string
		rtt  map[string]time.Duration
		want time.Duration
	}{
		{"the least estimated", nil, 200 * ms},
		{"a measured one is nearer than any estimated", map[string]time.Duration{"far2": 180 * ms}, 180 * ms},
		{"what is measured is not estimated", map[string]time.Duration{"far1": 300 * ms}, 260 * ms},
	} {
		v := &View{Self: "self", Members: members, RTT: c.rtt, Distance: func(a, b string) (time.Duration, bool) {
			if a != "self" {
				t.Errorf("asked from %s", a)
			}
			d, ok := estimates[b]
			return d, ok
		}}
		if got, ok := v.RoundTrip(new(spec.Spec), "frankfurt", Origin); got != c.want || !ok {
			t.Errorf("%s: got %v, %v, want %v", c.name, got, ok, c.want)
		}
	}
}
