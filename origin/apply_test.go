package origin

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin/rule"
)

func aTarget(n int) spec.Target {
	return spec.Target{Address: netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), Port: 80}
}

// edited draws a spec that differs from another in a few resources; it may be one that is to be refused.
func edited(t *rapid.T, s *spec.Spec) *spec.Spec {
	next := &spec.Spec{Revision: s.Revision + 1, TargetGroups: s.TargetGroups, LoadBalancers: s.LoadBalancers}
	name := rapid.StringMatching(`[a-d]`)
	region := rapid.SampledFrom([]string{"here", "there"})
	if rapid.Bool().Draw(t, "groups") {
		next.TargetGroups = maps.Clone(s.TargetGroups)
		for range rapid.IntRange(1, 3).Draw(t, "edits") {
			n := name.Draw(t, "group")
			if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
				delete(next.TargetGroups, n)
				continue
			}
			g := &spec.TargetGroup{Name: n, Region: region.Draw(t, "region")}
			for range rapid.IntRange(0, 3).Draw(t, "targets") {
				g.Targets = append(g.Targets, aTarget(rapid.IntRange(1, 5).Draw(t, "target")))
			}
			next.TargetGroups[n] = g
		}
	}
	if rapid.Bool().Draw(t, "balancers") {
		next.LoadBalancers = maps.Clone(s.LoadBalancers)
		for range rapid.IntRange(1, 3).Draw(t, "edits") {
			n := name.Draw(t, "balancer")
			if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
				delete(next.LoadBalancers, n)
				continue
			}
			lb := &spec.LoadBalancer{Name: n, Region: region.Draw(t, "region")}
			for port := range rapid.IntRange(0, 2).Draw(t, "listeners") {
				l := spec.Listener{
					Protocol: rapid.SampledFrom([]string{spec.HTTP, spec.TCP}).Draw(t, "protocol"), Port: uint16(80 + port),
					Default: spec.Action{Forward: name.Draw(t, "forward")},
				}
				if rapid.IntRange(0, 2).Draw(t, "rule") == 0 {
					l.Rules = []spec.ListenerRule{{
						Priority: 1, Conditions: []spec.Condition{{PathPattern: []string{"/a*"}}}, Action: spec.Action{Forward: name.Draw(t, "forward")},
					}}
				}
				lb.Listeners = append(lb.Listeners, l)
			}
			next.LoadBalancers[n] = lb
		}
	}
	return next
}

// told is all that a plane says of what it would do.
func told(p *Plane) []trace.Line {
	tr := new(trace.Trace)
	for _, l := range p.Listeners() {
		tr.Add("%v", l)
	}
	for name := range spec4 {
		p.ExplainTargetGroup(spec4[name], tr)
		for _, port := range []uint16{80, 81} {
			for _, path := range []string{"/", "/a"} {
				p.Explain(spec4[name], port, rule.Request{Method: "GET", Path: path}, tr)
			}
			_, taken := p.HTTP(fmt.Sprintf("%s/%d", spec4[name], port))
			_, _, err := p.table.Load().flow(fmt.Sprintf("loadBalancer/%s/%d", spec4[name], port))
			tr.Add("%v %v", taken, err)
		}
		_, _, err := p.table.Load().flow("targetGroup/" + spec4[name])
		tr.Add("%v", err)
	}
	return tr.Lines()
}

var spec4 = []string{"a", "b", "c", "d"}

func TestAPlaneThatWasChangedIsAsOneThatWasMadeAnew(t *testing.T) {
	verdicts := map[health.Key]health.Verdict{}
	for _, g := range spec4 {
		for n := range 4 {
			verdicts[health.TargetKey(g, aTarget(n).AddrPort())] = health.Verdict{Healthy: n%2 == 0}
		}
	}
	v := &view.View{Health: health.NewTable(verdicts)}
	config := Config{Region: "here", View: func() *view.View { return v }}
	rapid.Check(t, func(t *rapid.T) {
		p := New(config)
		defer p.Close()
		s, good := new(spec.Spec), new(spec.Spec)
		if rapid.Bool().Draw(t, "begin with all") {
			s.TargetGroups = map[string]*spec.TargetGroup{}
			for _, name := range spec4 {
				s.TargetGroups[name] = &spec.TargetGroup{Name: name, Region: "here", Targets: []spec.Target{aTarget(1)}}
			}
		}
		for range rapid.IntRange(1, 8).Draw(t, "revisions") {
			if s.TargetGroups == nil {
				s.TargetGroups = map[string]*spec.TargetGroup{}
			}
			if s.LoadBalancers == nil {
				s.LoadBalancers = map[string]*spec.LoadBalancer{}
			}
			s = edited(t, s)
			err := p.Apply(s)
			fresh := New(config)
			freshErr := fresh.Apply(s)
			if (err == nil) != (freshErr == nil) {
				t.Fatalf("changed: %v, anew: %v", err, freshErr)
			}
			if err == nil {
				good = s
			} else if fresh.Apply(good) != nil {
				t.Fatal("the spec before is refused")
			}
			if got, want := told(p), told(fresh); !reflect.DeepEqual(got, want) {
				t.Fatalf("got\n%v\nwant\n%v", got, want)
			}
			users := map[string]int{}
			for _, lb := range good.LoadBalancers {
				for name := range forwards(lb) {
					users[name]++
				}
			}
			for name, g := range p.table.Load().groups.All() {
				if g.traffic.users != users[name] {
					t.Fatalf("group %s has %d users, want %d", name, g.traffic.users, users[name])
				}
				if g.spec != good.TargetGroups[name] || g.traffic.group != g.spec {
					t.Fatalf("group %s is not as it is in the spec", name)
				}
			}
			if err != nil && rapid.Bool().Draw(t, "go back") {
				s = good
			}
		}
	})
}

// many is a spec of so many load balancers, each with a target group.
func many(n int) *spec.Spec {
	s := &spec.Spec{TargetGroups: map[string]*spec.TargetGroup{}, LoadBalancers: map[string]*spec.LoadBalancer{}}
	for i := range n {
		name := fmt.Sprintf("web-%d", i)
		region := fmt.Sprintf("region-%d", i%20)
		s.TargetGroups[name] = &spec.TargetGroup{Name: name, Region: region, Targets: []spec.Target{aTarget(1), aTarget(2)}}
		s.LoadBalancers[name] = &spec.LoadBalancer{Name: name, Region: region, Listeners: []spec.Listener{{
			Protocol: spec.HTTP, Port: uint16(1024 + i/20), Default: spec.Action{Forward: name},
			Rules: []spec.ListenerRule{{Priority: 10, Conditions: []spec.Condition{{PathPattern: []string{"/api/*"}}}, Action: spec.Action{Forward: name}}},
		}}}
	}
	return s
}

// Of 100,000 resources, half of each kind, all of them in one region; and as much memory as that takes, for each.
func BenchmarkApplyOneOf100000(b *testing.B) {
	s := many(50_000)
	with := func(edit func(*spec.Spec)) *spec.Spec {
		next := *s
		edit(&next)
		return &next
	}
	group, balancer := *s.TargetGroups["web-40"], *s.LoadBalancers["web-40"]
	group.Targets = group.Targets[:1]
	for _, c := range []struct {
		name string
		next *spec.Spec
	}{
		{"target group", with(func(s *spec.Spec) {
			s.TargetGroups = maps.Clone(s.TargetGroups)
			s.TargetGroups["web-40"] = &group
		})},
		{"load balancer", with(func(s *spec.Spec) {
			s.LoadBalancers = maps.Clone(s.LoadBalancers)
			s.LoadBalancers["web-40"] = &balancer
		})},
		{"both deleted", with(func(s *spec.Spec) {
			s.TargetGroups, s.LoadBalancers = maps.Clone(s.TargetGroups), maps.Clone(s.LoadBalancers)
			delete(s.TargetGroups, "web-40")
			delete(s.LoadBalancers, "web-40")
		})},
		{"nothing of this plane's", with(func(*spec.Spec) {})},
	} {
		b.Run(c.name, func(b *testing.B) {
			before := heap()
			p := New(Config{Region: "region-0"})
			defer p.Close()
			if err := p.Apply(s); err != nil {
				b.Fatal(err)
			}
			kept := heap() - before
			b.ReportAllocs()
			specs := []*spec.Spec{c.next, s}
			for i := 0; b.Loop(); i++ {
				if err := p.Apply(specs[i%2]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(kept)/100_000, "B/resource")
		})
	}
	runtime.KeepAlive(s)
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestListenersOfARevisionStayAsTheyWereGiven(t *testing.T) {
	s := many(100)
	p := New(Config{Region: "region-0"})
	defer p.Close()
	if err := p.Apply(s); err != nil {
		t.Fatal(err)
	}
	given := p.Listeners()
	was := slices.Clone(given)
	next := *s
	next.LoadBalancers = maps.Clone(s.LoadBalancers)
	delete(next.LoadBalancers, "web-0")
	if err := p.Apply(&next); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(given, was) || len(p.Listeners()) != len(was)-1 {
		t.Errorf("%d of %d", len(p.Listeners()), len(was))
	}
}

func TestAnUnchangedGroupKeepsItsConnectionsAndItsTurn(t *testing.T) {
	s := many(40)
	p := New(Config{Region: "region-0"})
	defer p.Close()
	if err := p.Apply(s); err != nil {
		t.Fatal(err)
	}
	g := p.table.Load().groups.Get("web-20")
	transport := g.traffic.transport()
	g.traffic.turn.Add(3)
	lease := g.traffic.lease(aTarget(1).AddrPort())
	next := *s
	next.TargetGroups = maps.Clone(s.TargetGroups)
	changed := *s.TargetGroups["web-20"]
	delay := spec.Duration(time.Second)
	changed.DeregistrationDelay = &delay
	next.TargetGroups["web-20"] = &changed
	if err := p.Apply(&next); err != nil {
		t.Fatal(err)
	}
	now := p.table.Load().groups.Get("web-20")
	if now == g || now.traffic.transport() != transport || now.traffic.turn.Load() != 3 || now.traffic.lease(aTarget(1).AddrPort()) != lease {
		t.Error("it began anew")
	}
	if p.table.Load().groups.Get("web-0") == nil || now.traffic.lease(aTarget(3).AddrPort()) != nil {
		t.Error("a lease of a target that is none")
	}
}
