package node

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/node/api"
)

const region = "kind: Region\nname: eu-central-1\npops: [{name: fra1}]\n"

func group(name string) string {
	return "kind: TargetGroup\nname: " + name + "\nregion: eu-central-1\nprotocol: TCP\nport: 80\ntargets: [{address: 192.0.2.1}]\n"
}

func balancer(forward string) string {
	return "kind: LoadBalancer\nname: lb\nregion: eu-central-1\ntype: network\nlisteners:\n  - {protocol: TCP, port: 90, default: {forward: " + forward + "}}\n"
}

// stateOf is the state after some documents were applied one by one.
func stateOf(t *testing.T, docs ...string) *store.State {
	t.Helper()
	state := new(store.State)
	for _, d := range docs {
		p, err := planOver(state, api.ApplyRequest{Files: []api.File{{Name: "x.yaml", Data: d}}})
		if err != nil {
			t.Fatal(err)
		}
		if state, _, err = state.With(p.change); err != nil {
			t.Fatal(err)
		}
	}
	return state
}

func fileOf(name string, docs ...string) api.File {
	return api.File{Name: name, Data: strings.Join(docs, "---\n")}
}

func TestAChangeIsAllOfItOrNothing(t *testing.T) {
	three, two := uint64(3), uint64(2)
	state := stateOf(t, region, group("a"), balancer("a"))
	for _, c := range []struct {
		claim  string
		req    api.ApplyRequest
		want   []string // changes
		refuse string
		status int
	}{
		{"a new resource is created", api.ApplyRequest{Files: []api.File{fileOf("f", group("b"))}}, []string{"created TargetGroup b"}, "", 0},
		{"the same again changes nothing", api.ApplyRequest{Files: []api.File{fileOf("f", group("a"))}}, nil, "", 0},
		{"a comment is kept", api.ApplyRequest{Files: []api.File{fileOf("f", "# why\n"+group("a"))}}, []string{"updated TargetGroup a"}, "", 0},
		{"what files need they may bring", api.ApplyRequest{Files: []api.File{fileOf("f", balancer("b")), fileOf("g", group("b"))}},
			[]string{"created TargetGroup b", "updated LoadBalancer lb"}, "", 0},
		{"one fault refuses all", api.ApplyRequest{Files: []api.File{fileOf("f.yaml", group("b"), balancer("c"))}}, nil,
			`f.yaml:13: LoadBalancer lb: listeners[0].default.forward: no target group "c"`, http.StatusUnprocessableEntity},
		{"faults of all files are told", api.ApplyRequest{Files: []api.File{fileOf("f.yaml", "kind: Zoo\nname: x\n"), fileOf("g.yaml", "name: y\n")}}, nil,
			"g.yaml:1", http.StatusUnprocessableEntity},
		{"what is used cannot be deleted", api.ApplyRequest{Delete: []api.Ref{{Kind: "targetgroup", Name: "a"}}}, nil,
			`LoadBalancer lb: listeners[0].default.forward: no target group "a"`, http.StatusUnprocessableEntity},
		{"what is not used can", api.ApplyRequest{Delete: []api.Ref{{Kind: "loadbalancers", Name: "lb"}}}, []string{"deleted LoadBalancer lb"}, "", 0},
		{"what is not there cannot", api.ApplyRequest{Delete: []api.Ref{{Kind: "LoadBalancer", Name: "other"}}}, nil, `no LoadBalancer "other"`, http.StatusNotFound},
		{"two files must not say one thing twice", api.ApplyRequest{Files: []api.File{fileOf("f.yaml", group("b")), fileOf("g.yaml", group("b"))}}, nil,
			"g.yaml:1: TargetGroup b: name: also at f.yaml:1", http.StatusUnprocessableEntity},
		{"what is asked for is at fault, not what stands", api.ApplyRequest{Files: []api.File{fileOf("f.yaml", strings.Replace(balancer("a"), "name: lb", "name: aa", 1))}}, nil,
			"f.yaml:6: LoadBalancer aa: listeners[0].port: port 90 of eu-central-1 is LoadBalancer/lb's already", http.StatusUnprocessableEntity},
		{"an expected revision that is the one", api.ApplyRequest{Expect: &three, Files: []api.File{fileOf("f", group("b"))}}, []string{"created TargetGroup b"}, "", 0},
		{"and one that is not", api.ApplyRequest{Expect: &two, Files: []api.File{fileOf("f", group("b"))}}, nil, "expects revision 2, the network is at 3", http.StatusConflict},
	} {
		p, err := planOver(state, c.req)
		var refusal *api.Error
		if c.refuse != "" {
			if !errors.As(err, &refusal) || refusal.Status != c.status || !strings.Contains(refusal.Error(), c.refuse) {
				t.Errorf("%s: got %v, want %d with %s", c.claim, err, c.status, c.refuse)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.claim, err)
			continue
		}
		var got []string
		for _, ch := range p.response.Changes {
			got = append(got, ch.Op+" "+ch.Kind+" "+ch.Name)
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.claim, got, c.want)
		}
		if n := len(p.change.Put) + len(p.change.Delete); n != len(c.want) {
			t.Errorf("%s: the log gets %d objects for %d changes", c.claim, n, len(c.want))
		}
	}
}

// taking takes every spec but one, which it refuses or panics on.
type taking struct {
	refuse, panics uint64
	took           []uint64
}

func (p *taking) Apply(s *spec.Spec) error {
	switch s.Revision {
	case p.refuse:
		return errors.New("not this one")
	case p.panics:
		panic("not this one either")
	}
	p.took = append(p.took, s.Revision)
	return nil
}

func TestAPlaneThatRefusesASpecHasTheOthersGoBack(t *testing.T) {
	first, second, third := &taking{}, &taking{refuse: 2, panics: 3}, &taking{}
	n := &Node{planes: []plane{first, second, third}}
	old := &spec.Spec{Revision: 1}
	for _, revision := range []uint64{2, 3} {
		if err := n.applyAll(old, &spec.Spec{Revision: revision}); err == nil || !strings.Contains(err.Error(), "not this one") {
			t.Errorf("revision %d: %v", revision, err)
		}
	}
	if !slices.Equal(first.took, []uint64{2, 1, 3, 1}) || second.took != nil || third.took != nil {
		t.Errorf("took %v, %v, %v", first.took, second.took, third.took)
	}
}
