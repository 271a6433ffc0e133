package probe

import (
	"strings"
	"sync"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
)

// Entitled says who may have a voice on a key by this spec and these members: on a target or an endpoint any live node of
// its region that has the origin role, on a HealthCheck any live node of its regions. Those are more than the few that look,
// so that a key that goes from one node to another loses no voice on the way. What the spec does not have probed, nobody
// has a voice on. The function may be called by many goroutines at once and costs less than a microsecond.
func Entitled(s *spec.Spec, v *view.View) func(key health.Key, node string) bool {
	if s == nil || v == nil {
		return func(health.Key, string) bool { return false }
	}
	e := &entitled{spec: s, nodes: map[string]place{}, endpoints: map[health.Key]string{}, targets: map[string]map[health.Key]bool{}}
	for i := range v.Members {
		m := &v.Members[i]
		e.nodes[m.Name] = place{region: m.Region, origin: m.Has(view.Origin)}
	}
	for _, a := range s.Accelerators {
		for g, end := range endpoints(a) {
			e.endpoints[health.EndpointKey(a.Name, g.Region, g.CheckAddr(end))] = g.Region
		}
	}
	return e.has
}

type entitled struct {
	spec      *spec.Spec
	nodes     map[string]place
	endpoints map[health.Key]string // their regions

	mu      sync.Mutex
	targets map[string]map[health.Key]bool // by group, of those that were asked for
}

type place struct {
	region string
	origin bool
}

func (e *entitled) has(key health.Key, node string) bool {
	at, lives := e.nodes[node]
	if !lives {
		return false
	}
	_, name, _ := strings.Cut(string(key), "/")
	switch {
	case key.IsCheck():
		h := e.spec.HealthChecks[name]
		return h != nil && probed(h) && from(h, at.region)
	case key.IsEndpoint():
		region, known := e.endpoints[key]
		return known && at.origin && at.region == region
	case key.IsTarget():
		name, _, _ = strings.Cut(name, "/")
		g := e.spec.TargetGroups[name]
		return g != nil && at.origin && at.region == g.Region && on(g.HealthCheck.Enabled) && e.serves(g, key)
	}
	return false
}

// serves says whether a key is that of a target of the group.
func (e *entitled) serves(g *spec.TargetGroup, key health.Key) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	targets, known := e.targets[g.Name]
	if !known {
		targets = make(map[health.Key]bool, len(g.Targets))
		for _, t := range g.Targets {
			targets[health.TargetKey(g.Name, t.AddrPort())] = true
		}
		e.targets[g.Name] = targets
	}
	return targets[key]
}
