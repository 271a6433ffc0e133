package view

import (
	"slices"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
)

// CheckLost is when a HealthCheck that does not pass passed last, by when the verdicts turned; zero if nobody knows, as
// of one that never did. Of a calculated one it is when so many of its children had turned that it did, if each has turned but once since.
func (v *View) CheckLost(s *spec.Spec, name string) time.Time {
	check := s.HealthChecks[name]
	switch {
	case check == nil || v == nil:
		return time.Time{}
	case check.Type != spec.Calculated:
		return v.turned(health.CheckKey(name))
	case check.HealthThreshold == nil:
		return time.Time{}
	}
	// It fell when the last that it could do without turned; inverted, when the last that it needs did.
	side, turns := false, len(check.ChildHealthChecks)-*check.HealthThreshold+1
	if check.Inverted {
		side, turns = true, *check.HealthThreshold
	}
	var at []time.Time
	for _, child := range check.ChildHealthChecks {
		c := s.HealthChecks[child]
		switch always := c == nil || c.Disabled; {
		case always && side:
			at = append(at, time.Time{})
		case !always && (v.observedHealthy(child) != c.Inverted) == side:
			at = append(at, v.turned(health.CheckKey(child)))
		}
	}
	if turns < 1 || turns > len(at) {
		return time.Time{}
	}
	slices.SortFunc(at, time.Time.Compare)
	return at[turns-1]
}

// LoadBalancerLost is when a load balancer that is not healthy (LoadBalancerHealthy) was so last, by when the verdicts
// turned: when the first of its groups lost its last target. Zero if nobody knows.
func (v *View) LoadBalancerLost(s *spec.Spec, name string) time.Time {
	lb := s.LoadBalancers[name]
	if lb == nil || v == nil {
		return time.Time{}
	}
	first, some := time.Time{}, false
	for _, group := range lb.TargetGroups() {
		g := s.TargetGroups[group]
		if g == nil || len(g.Targets) == 0 || v.TargetGroupHealthy(s, group) {
			continue
		}
		last := time.Time{}
		for _, t := range g.Targets {
			if at := v.turned(health.TargetKey(group, t.AddrPort())); at.After(last) {
				last = at
			}
		}
		if !some || last.Before(first) {
			first, some = last, true
		}
	}
	return first
}

// AcceleratorLost is when an accelerator that is enabled and not healthy (AcceleratorHealthy) was so last, by when the verdicts turned:
// when the first of its listeners lost its last endpoint. Zero if nobody knows.
func (v *View) AcceleratorLost(s *spec.Spec, name string) time.Time {
	a := s.Accelerators[name]
	if a == nil || v == nil || a.Enabled != nil && !*a.Enabled {
		return time.Time{}
	}
	first, some := time.Time{}, false
	for i := range a.Listeners {
		l := &a.Listeners[i]
		if v.listenerHealthy(s, a, l) {
			continue
		}
		last := time.Time{}
		for j := range l.EndpointGroups {
			for _, e := range l.EndpointGroups[j].Endpoints {
				checksOfEndpoint(s, name, &l.EndpointGroups[j], e, func(key health.Key) bool {
					if at := v.turned(key); at.After(last) {
						last = at
					}
					return true
				})
			}
		}
		if !some || last.Before(first) {
			first, some = last, true
		}
	}
	return first
}

func (v *View) turned(key health.Key) time.Time {
	verdict, _ := v.Health.Lookup(key)
	return verdict.Since
}
