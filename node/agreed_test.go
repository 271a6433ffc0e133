package node

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/roster"
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

// testPlanner judges with keys and a clock of its own.
func testPlanner() planner {
	key := identity.Key{1}
	return planner{
		options: spec.Options{Open: func(ref spec.Ref, field, sealed string) ([]byte, error) { return openSealed(key, ref, field, sealed) }},
		seal:    func(ref spec.Ref, field string, plain []byte) string { return sealText(key, ref, field, plain) },
		now:     time.Now,
	}
}

var operator = roster.Principal{Name: "ops", Roles: []roster.Role{roster.RoleOperate}}

// after is what a change leads to.
func after(t testing.TB, over base, p plan) base {
	t.Helper()
	state, _, err := over.state.With(p.change)
	if err != nil {
		t.Fatal(err)
	}
	return base{state, p.spec}
}

// empty is before the first change.
func emptyBase(t testing.TB) base {
	t.Helper()
	s, err := spec.Build(0, nil, spec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return base{new(store.State), s}
}

// stateOf is what is agreed after some documents were applied one by one.
func stateOf(t testing.TB, docs ...string) base {
	t.Helper()
	over := emptyBase(t)
	for _, d := range docs {
		p, err := testPlanner().apply(over, operator, api.ApplyRequest{Files: []api.File{{Name: "x.yaml", Data: d}}})
		if err != nil {
			t.Fatal(err)
		}
		over = after(t, over, p)
	}
	return over
}

func fileOf(name string, docs ...string) api.File {
	return api.File{Name: name, Data: strings.Join(docs, "---\n")}
}

func TestAChangeIsAllOfItOrNothing(t *testing.T) {
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
			`TargetGroup a: is used by LoadBalancer/lb`, http.StatusUnprocessableEntity},
		{"what is not used can", api.ApplyRequest{Delete: []api.Ref{{Kind: "loadbalancers", Name: "lb"}}}, []string{"deleted LoadBalancer lb"}, "", 0},
		{"what is not there cannot", api.ApplyRequest{Delete: []api.Ref{{Kind: "LoadBalancer", Name: "other"}}}, nil, `no LoadBalancer "other"`, http.StatusNotFound},
		{"two files must not say one thing twice", api.ApplyRequest{Files: []api.File{fileOf("f.yaml", group("b")), fileOf("g.yaml", group("b"))}}, nil,
			"g.yaml:1: TargetGroup b: name: also at f.yaml:1", http.StatusUnprocessableEntity},
		{"what is asked for is at fault, not what stands", api.ApplyRequest{Files: []api.File{fileOf("f.yaml", strings.Replace(balancer("a"), "name: lb", "name: aa", 1))}}, nil,
			"f.yaml:6: LoadBalancer aa: listeners[0].port: port 90 of eu-central-1 is LoadBalancer/lb's already", http.StatusUnprocessableEntity},
	} {
		p, err := testPlanner().apply(state, operator, c.req)
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

func TestPruneDeletesWhatHasTheLabelsAndIsInNoFile(t *testing.T) {
	labelled := func(name, label string) string { return group(name) + "labels: {app: " + label + "}\n" }
	over := stateOf(t, region, labelled("a", "shop"), labelled("b", "shop"), labelled("c", "blog"), group("d"))
	req := api.ApplyRequest{Files: []api.File{fileOf("shop.yaml", labelled("a", "shop"), labelled("e", "shop"))}, Prune: &api.Prune{Labels: map[string]string{"app": "shop"}}}
	p, err := testPlanner().apply(over, operator, req)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range p.response.Changes {
		got = append(got, c.Op+" "+c.Name)
	}
	if slices.Sort(got); !slices.Equal(got, []string{"created e", "deleted b"}) {
		t.Errorf("got %v", got)
	}
	req.Prune.Labels = nil
	if _, err := testPlanner().apply(over, operator, req); err == nil {
		t.Error("pruning by no label would delete everything, and is taken")
	}
}

func TestWhoIsLimitedChangesNothingElse(t *testing.T) {
	over := stateOf(t, region, group("a"), group("web"))
	limited := roster.Principal{Name: "ci", Roles: []roster.Role{roster.RoleOperate}, Resources: []string{"TargetGroup/web*"}}
	for _, c := range []struct {
		claim string
		req   api.ApplyRequest
		may   bool
	}{
		{"its own", api.ApplyRequest{Files: []api.File{fileOf("f", "# new\n"+group("web"))}}, true},
		{"a new one of its pattern", api.ApplyRequest{Files: []api.File{fileOf("f", group("web-2"))}}, true},
		{"what stays the same", api.ApplyRequest{Files: []api.File{fileOf("f", group("a"))}}, true},
		{"another's", api.ApplyRequest{Files: []api.File{fileOf("f", "# new\n"+group("a"))}}, false},
		{"its own and another's", api.ApplyRequest{Files: []api.File{fileOf("f", group("web-2"), group("b"))}}, false},
		{"deleting another's", api.ApplyRequest{Delete: []api.Ref{{Kind: "TargetGroup", Name: "a"}}}, false},
	} {
		_, err := testPlanner().apply(over, limited, c.req)
		var refusal *api.Error
		if c.may && err != nil || !c.may && (!errors.As(err, &refusal) || refusal.Status != http.StatusForbidden) {
			t.Errorf("%s: %v", c.claim, err)
		}
	}
}

func TestARollbackMakesAllAsItWas(t *testing.T) {
	over := stateOf(t, region, group("a"), balancer("a"), group("b"), balancer("b"))
	p, err := testPlanner().rollback(over, operator, api.RollbackRequest{Revision: 2, Note: "why"})
	if err != nil {
		t.Fatal(err)
	}
	then, now := stateOf(t, region, group("a")), after(t, over, p)
	if now.state.Revision != 6 || len(now.state.Objects) != len(then.state.Objects) {
		t.Fatalf("revision %d with %d objects", now.state.Revision, len(now.state.Objects))
	}
	for i, o := range now.state.Objects {
		if want := then.state.Objects[i]; string(o.Bytes) != string(want.Bytes) {
			t.Errorf("%s %s is %s, was %s", o.Kind, o.Name, o.Bytes, want.Bytes)
		}
	}
	if r := now.state.History[5]; r.Note != "rollback to revision 2: why" || r.Author != "ops" {
		t.Errorf("the history says %+v", r)
	}
	if p, err = testPlanner().rollback(now, operator, api.RollbackRequest{Revision: 2}); err != nil || !p.empty() {
		t.Errorf("the same again: %v, %v", p.change, err)
	}
	if _, err := testPlanner().rollback(now, operator, api.RollbackRequest{Revision: 99}); err == nil {
		t.Error("a revision that is yet to come is taken")
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
