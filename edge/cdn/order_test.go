package cdn

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
)

func TestLoadBalancersAreAskedInOrder(t *testing.T) {
	const ms = time.Millisecond
	s := build(t, regions)
	every := healthy(s, "g-icn", "g-nrt", "g-iad")
	for _, c := range []struct {
		name string
		view view.View
		want string
	}{
		{"nearest first, by coordinates where nothing is measured", view.View{Self: "icn-1", Health: every}, "icn-1 nrt-1 nrt-2 iad-1"},
		{"seen from Tokyo", view.View{Self: "nrt-2", Health: every}, "nrt-2 nrt-1 icn-1 iad-1"},
		{"seen from Virginia", view.View{Self: "iad-1", Health: every, RTT: map[string]time.Duration{"icn-1": 300 * ms, "nrt-1": 160 * ms, "nrt-2": 161 * ms}}, "iad-1 nrt-1 nrt-2 icn-1"},
		{"in one region the nearest node", view.View{Self: "icn-1", Health: every, RTT: map[string]time.Duration{"nrt-1": 40 * ms, "nrt-2": 35 * ms}}, "icn-1 nrt-2 nrt-1 iad-1"},
		{"healthy before near", view.View{Self: "icn-1", Health: healthy(s, "g-iad", "g-nrt")}, "nrt-1 nrt-2 iad-1 icn-1"},
		{"none is healthy: as if all were", view.View{Self: "icn-1"}, "icn-1 nrt-1 nrt-2 iad-1"},
		{"what cannot be reached comes last", view.View{Self: "icn-1", Health: every, Unreachable: map[string]bool{"nrt-1": true}}, "icn-1 nrt-2 iad-1 nrt-1"},
		{"drained is passed over, though near", view.View{Self: "icn-1", Health: every, Members: drained("icn-1", "nrt-1")}, "nrt-2 iad-1"},
		{"drained is passed over for what is bad", view.View{Self: "icn-1", Health: healthy(s, "g-icn"), Members: drained("icn-1")}, "nrt-1 nrt-2 iad-1"},
		{"all are drained: as if none were", view.View{Self: "icn-1", Health: every, Members: drained("icn-1", "nrt-1", "nrt-2", "iad-1")}, "icn-1 nrt-1 nrt-2 iad-1"},
		{"healthy, but out of reach, is after bad", view.View{Self: "icn-1", Health: healthy(s, "g-nrt"), Unreachable: map[string]bool{"nrt-1": true, "nrt-2": true}}, "icn-1 iad-1 nrt-1 nrt-2"},
	} {
		passed := len(c.view.Members)
		if passed == 0 {
			c.view.Members = members()
		}
		tr := new(trace.Trace)
		var got []string
		for _, at := range Order(s, &c.view, &s.Distributions["site"].Origins[0], tr) {
			got = append(got, at.Node)
		}
		if fmt.Sprint(got) != "["+c.want+"]" {
			t.Errorf("%s: got %v, want %s", c.name, got, c.want)
		}
		if passed > 0 && !strings.Contains(tr.String(), "web-icn at node icn-1: passed over, drained (node icn-1)") || passed == 0 && len(tr.Lines()) != len(got) {
			t.Errorf("%s: the reasons are\n%s", c.name, tr)
		}
	}
}

// drained are the members, some of which are.
func drained(names ...string) []view.Member {
	all := members()
	for i := range all {
		if slices.Contains(names, all[i].Name) {
			all[i].Drained = "node " + all[i].Name
		}
	}
	return all
}

func TestNodesThatLeaveAreAskedWhereThereIsNobodyElse(t *testing.T) {
	s := build(t, regions)
	for _, c := range []struct {
		name    string
		drained []string
		stay    string // the only one that does not leave; "": all do
		want    string // who is asked
		why     string
	}{
		{"one stays", nil, "nrt-2", "nrt-2", "web-iad at node iad-1: passed over, it leaves"},
		{"one is drained", []string{"nrt-2"}, "nrt-2", "nrt-2", "all nodes that run them are drained: asked all the same"},
		{"all leave", nil, "", "icn-1 nrt-1 nrt-2 iad-1", "all that is left of the nodes that run them leaves: asked all the same, until their doors close"},
		{"all leave, be they drained", []string{"icn-1"}, "", "icn-1 nrt-1 nrt-2 iad-1", "leaves: asked all the same"},
	} {
		v := &view.View{Self: "icn-1", Members: drained(c.drained...)}
		for i := range v.Members {
			v.Members[i].Leaving = v.Members[i].Name != c.stay
		}
		tr := new(trace.Trace)
		var got []string
		for _, at := range Order(s, v, &s.Distributions["site"].Origins[0], tr) {
			got = append(got, at.Node)
		}
		if strings.Join(got, " ") != c.want || !strings.Contains(tr.String(), c.why) {
			t.Errorf("%s: got %v by\n%s", c.name, got, tr)
		}
	}
}

func TestACandidateNamesItsListener(t *testing.T) {
	s := build(t, regions)
	v := &view.View{Self: "icn-1", Members: members(), Health: healthy(s, "g-icn")}
	got := Order(s, v, &s.Distributions["site"].Origins[0], nil)[0]
	want := Candidate{LoadBalancer: "web-icn", Port: 8080, Region: "ap-northeast-2", Node: "icn-1", Healthy: true, Reachable: true}
	if got != want || got.Resource() != "web-icn/8080" {
		t.Errorf("got %+v, resource %s", got, got.Resource())
	}
}

func TestWhereNobodyRunsALoadBalancerThereIsNoCandidate(t *testing.T) {
	s := build(t, regions)
	dns := view.Member{Name: "icn-1", Region: "ap-northeast-2", Roles: []view.Role{view.DNS}}
	for name, v := range map[string]*view.View{"no view": nil, "no member": {Self: "icn-1"}, "without the role": {Self: "icn-1", Members: []view.Member{dns}}} {
		tr := new(trace.Trace)
		if got := Order(s, v, &s.Distributions["site"].Origins[0], tr); len(got) != 0 || !strings.Contains(tr.String(), "web-icn: no live node in ap-northeast-2 runs it") {
			t.Errorf("%s: got %v, because\n%s", name, got, tr)
		}
	}
}
