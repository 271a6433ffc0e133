package event

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
)

// Index knows what of a spec rests on what: on which verdicts, regions and other things. It is immutable. What it holds
// and the time to make it go by the targets, checks, load balancers, endpoint groups, and records whose answer depends on any
// of these.
type Index struct {
	things   []thing // each after all that it rests on
	subjects map[string]int32
	leaves   []leaf               // by key
	keys     map[health.Key]int32 // where among the leaves
	regions  map[string][]int32   // what rests on the nodes of a region
	viewers  []int32              // what rests on there being a node that takes viewers
}

// leaf is a verdict and what rests on it.
type leaf struct {
	key    health.Key
	things []int32
}

// thing is what has a status that follows from others.
type thing struct {
	kind     string // of events
	subject  string
	resource any // comparable; another where the spec says otherwise of it
	look     func(m *moment) status
	say      func(was, is status) string // in words, or empty: not worth telling

	dependants []int32
}

// status is what becomes of a thing.
type status struct {
	up    bool   // it takes what is new
	alive bool   // there is somebody to answer with at all
	n, of int    // parts that are up, of all
	why   string // it is not up
}

// knows says whether a verdict means something to the spec.
func (x *Index) knows(key health.Key) bool {
	_, ok := x.keys[key]
	return ok
}

// NewIndex makes the index of a spec, which may be nil.
func NewIndex(s *spec.Spec) *Index {
	if s == nil {
		s = &spec.Spec{}
	}
	keys := len(s.HealthChecks)
	for _, g := range s.TargetGroups {
		keys += len(g.Targets)
	}
	things := len(s.TargetGroups) + len(s.LoadBalancers) + len(s.HealthChecks)
	x := &Index{
		things: make([]thing, 0, things), subjects: make(map[string]int32, things),
		leaves: make([]leaf, 0, keys), keys: make(map[health.Key]int32, keys), regions: map[string][]int32{},
	}
	b := builder{Index: x, spec: s, groups: map[string]int32{}, balancers: map[string]int32{}, checks: map[string]int32{}}
	for _, name := range slices.Sorted(maps.Keys(s.TargetGroups)) {
		b.targetGroup(s.TargetGroups[name])
	}
	for _, name := range slices.Sorted(maps.Keys(s.LoadBalancers)) {
		b.loadBalancer(s.LoadBalancers[name])
	}
	b.healthChecks()
	for _, name := range slices.Sorted(maps.Keys(s.Accelerators)) {
		b.accelerator(s.Accelerators[name])
	}
	for _, name := range slices.Sorted(maps.Keys(s.HostedZones)) {
		b.hostedZone(s.HostedZones[name])
	}
	return x
}

// builder makes an index.
type builder struct {
	*Index
	spec                      *spec.Spec
	groups, balancers, checks map[string]int32
}

// put adds a thing that rests on others.
func (b *builder) put(t thing, rests ...int32) int32 {
	i := int32(len(b.things))
	b.things = append(b.things, t)
	b.subjects[t.subject] = i
	for _, r := range rests {
		if d := b.things[r].dependants; !slices.Contains(d, i) {
			b.things[r].dependants = append(d, i)
		}
	}
	return i
}

// rest has a thing rest on a verdict too.
func (b *builder) rest(i int32, key health.Key) {
	at, ok := b.keys[key]
	if !ok {
		at = int32(len(b.leaves))
		b.keys[key] = at
		b.leaves = append(b.leaves, leaf{key: key})
	}
	if l := &b.leaves[at]; !slices.Contains(l.things, i) {
		l.things = append(l.things, i)
	}
}

// nothing is for things that are between others and not told of.
func nothing(was, is status) string { return "" }

// targetGroup is up while a target is healthy. What it does is told of the load balancers and endpoint groups before it.
func (b *builder) targetGroup(g *spec.TargetGroup) {
	i := b.put(thing{subject: "targetGroup/" + g.Name, resource: g, say: nothing, look: func(m *moment) status {
		st := status{of: len(g.Targets)}
		for _, t := range g.Targets {
			if m.View.TargetTakes(g, t.AddrPort()) {
				st.n++
			}
		}
		st.up = st.n > 0
		if !st.up {
			if state, _ := m.View.EndpointState(b.spec, nil, nil, spec.Endpoint{TargetGroup: g.Name}, 0); state == view.Initial {
				st.why = unchecked
			}
		}
		return st
	}})
	b.groups[g.Name] = i
	if !g.HealthCheck.On() {
		return
	}
	for _, t := range g.Targets {
		b.rest(i, health.TargetKey(g.Name, t.AddrPort()))
	}
}

// loadBalancer is up while it is healthy and a node runs it.
func (b *builder) loadBalancer(lb *spec.LoadBalancer) {
	var groups []string
	var rests []int32
	for _, g := range lb.TargetGroups() {
		if i, ok := b.groups[g]; ok {
			groups, rests = append(groups, g), append(rests, i)
		}
	}
	i := b.put(thing{kind: Route, subject: "loadBalancer/" + lb.Name, resource: lb,
		look: func(m *moment) status {
			st := status{alive: m.at(place{region: lb.Region}).origin > 0}
			without := ""
			for at, i := range rests {
				of := m.of(i)
				st.n, st.of = st.n+of.n, st.of+of.of
				if of.of > 0 && of.n == 0 && without == "" {
					without = groups[at]
				}
			}
			switch {
			case !st.alive:
				st.why = "no node of " + lb.Region + " takes the role origin"
			case st.of == 0:
				st.why = "it has no targets"
			case without != "" && len(groups) > 1:
				st.why = "target group " + without + " has no healthy target"
			case without != "":
				st.why = "no target is healthy"
			default:
				st.up = true
			}
			return st
		},
		say: func(was, is status) string {
			has := fmt.Sprintf("%d of %d targets are healthy", is.n, is.of)
			switch {
			case was.up && !is.up:
				return fmt.Sprintf("load balancer %s is out: %s (%s)", lb.Name, is.why, has)
			case is.up && !was.up:
				return fmt.Sprintf("load balancer %s is in: %s", lb.Name, has)
			case was.n != is.n || was.of != is.of:
				return fmt.Sprintf("load balancer %s: %s", lb.Name, has)
			}
			return ""
		},
	}, rests...)
	b.balancers[lb.Name] = i
	b.regions[lb.Region] = append(b.regions[lb.Region], i)
}

// healthChecks are up while they pass. Of those that are probed the verdict was told; those that are reckoned of others
// are told of here.
func (b *builder) healthChecks() {
	names := slices.Sorted(maps.Keys(b.spec.HealthChecks))
	calculated := func(name string) bool { return b.spec.HealthChecks[name].Type == spec.Calculated }
	for _, name := range names {
		if calculated(name) {
			continue
		}
		i := b.put(thing{
			subject: "check/" + name, resource: b.spec.HealthChecks[name], say: nothing,
			look: func(m *moment) status { return status{up: m.View.CheckHealthy(m.Spec, name)} },
		})
		b.checks[name] = i
		b.rest(i, health.CheckKey(name))
	}
	for _, name := range names {
		if calculated(name) {
			b.calculated(b.spec.HealthChecks[name])
		}
	}
}

func (b *builder) calculated(c *spec.HealthCheck) {
	var rests []int32
	for _, child := range c.ChildHealthChecks {
		if i, ok := b.checks[child]; ok {
			rests = append(rests, i)
		}
	}
	b.checks[c.Name] = b.put(thing{kind: Health, subject: "check/" + c.Name, resource: c,
		look: func(m *moment) status {
			st := status{up: m.View.CheckHealthy(m.Spec, c.Name), of: len(rests)}
			for _, i := range rests {
				if m.of(i).up {
					st.n++
				}
			}
			return st
		},
		say: func(was, is status) string {
			if was.up == is.up {
				return ""
			}
			needs := ""
			if c.HealthThreshold != nil {
				needs = fmt.Sprintf(", %d are asked for", *c.HealthThreshold)
			}
			if c.Inverted {
				needs += " (inverted)"
			}
			return fmt.Sprintf("health check %s %s: %d of %d checks pass%s", c.Name, either(is.up, "passes", "fails"), is.n, is.of, needs)
		},
	}, rests...)
}

// accelerator has a thing for itself, and one for each endpoint group that takes flows.
func (b *builder) accelerator(a *spec.Accelerator) {
	enabled := a.Enabled == nil || *a.Enabled
	b.put(thing{kind: Route, subject: "accelerator/" + a.Name, resource: a,
		look: func(*moment) status { return status{up: enabled} },
		say: func(was, is status) string {
			if was.up == is.up {
				return ""
			}
			return "accelerator " + a.Name + either(is.up, " is enabled: POPs listen on its addresses", " is disabled: nobody listens, its addresses stay its own")
		},
	})
	if !enabled {
		return
	}
	for l := range a.Listeners {
		for g := range a.Listeners[l].EndpointGroups {
			b.endpointGroup(a, &a.Listeners[l], &a.Listeners[l].EndpointGroups[g])
		}
	}
}

// unchecked is why a group is out that is new. One that is never in would have no event else.
const unchecked = "there is no verdict on any endpoint"

// unchecked says that no verdict is there on any endpoint of the group that has weight.
func (b *builder) unchecked(m *moment, a *spec.Accelerator, l *spec.AcceleratorListener, g *spec.EndpointGroup) bool {
	for _, e := range g.Endpoints {
		if e.Weight != nil && *e.Weight == 0 {
			continue
		}
		port := uint16(0)
		if lb := b.spec.LoadBalancers[e.LoadBalancer]; lb != nil {
			if from, ok := g.Reaches(l, lb); ok {
				port = g.EndpointPort(from)
			}
		}
		if state, _ := m.View.EndpointState(b.spec, a, g, e, port); state != view.Initial {
			return false
		}
	}
	return true
}

// endpointGroup is up while an endpoint with weight is healthy and a node of its region can be reached.
func (b *builder) endpointGroup(a *spec.Accelerator, l *spec.AcceleratorListener, g *spec.EndpointGroup) {
	port := l.Ports()
	var rests []int32
	weighty := 0
	for _, e := range g.Endpoints {
		if e.Weight != nil && *e.Weight == 0 {
			continue
		}
		weighty++
		if i, ok := b.groups[e.TargetGroup]; ok && e.TargetGroup != "" {
			rests = append(rests, i)
		}
		if i, ok := b.balancers[e.LoadBalancer]; ok && e.LoadBalancer != "" {
			if _, reached := g.Reaches(l, b.spec.LoadBalancers[e.LoadBalancer]); reached {
				rests = append(rests, i)
			}
		}
	}
	healthy := func(m *moment) int {
		n := 0
		for _, i := range rests {
			if m.of(i).up {
				n++
			}
		}
		for _, e := range g.Endpoints {
			if e.Subnet.IsValid() || e.Address.IsValid() && (e.Weight == nil || *e.Weight > 0) && m.View.EndpointHealthy(a.Name, g.Region, g.CheckAddr(e)) {
				n++
			}
		}
		return n
	}
	name := fmt.Sprintf("accelerator %s, %s %s: endpoint group %s", a.Name, l.Protocol, port, g.Region)
	i := b.put(thing{kind: Route, subject: "accelerator/" + a.Name + "/" + strings.ToLower(l.Protocol) + "/" + port + "/" + g.Region, resource: a,
		look: func(m *moment) status {
			here := m.at(place{region: g.Region})
			st := status{alive: here.origin > 0, n: healthy(m), of: weighty}
			switch {
			case !st.alive:
				st.why = "no node there takes the role origin"
			case here.reached == 0:
				st.why = "no node there can be reached from here"
			case weighty == 0:
				st.why = "no endpoint has weight"
			case st.n == 0 && b.unchecked(m, a, l, g):
				st.why = unchecked
			case st.n == 0:
				st.why = "no endpoint is healthy"
			default:
				st.up = true
			}
			return st
		},
		say: func(was, is status) string {
			switch {
			case was.up && !is.up, !is.up && was.why == unchecked && is.why != unchecked:
				return name + " is out: " + is.why
			case is.up && !was.up:
				return fmt.Sprintf("%s is in: %d of %d endpoints are healthy", name, is.n, is.of)
			}
			return ""
		},
	}, rests...)
	for _, e := range g.Endpoints {
		if e.Address.IsValid() && (e.Weight == nil || *e.Weight > 0) {
			b.rest(i, health.EndpointKey(a.Name, g.Region, g.CheckAddr(e)))
		}
	}
	b.regions[g.Region] = append(b.regions[g.Region], i)
}

func either(is bool, yes, no string) string {
	if is {
		return yes
	}
	return no
}
