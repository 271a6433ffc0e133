package view

import (
	"fmt"
	"net/netip"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
)

// State is how an accelerator's endpoint stands, in the words of Global Accelerator ("HealthState" of DescribeEndpointGroup), and one more.
type State string

// The states. Flows are sent to those that are healthy or unchecked, to the others only where failover fails open.
const (
	Healthy   State = "healthy"
	Unhealthy State = "unhealthy"
	Initial   State = "initial"   // nobody has looked yet
	Unchecked State = "unchecked" // nobody looks
)

// EndpointState is how an endpoint of an accelerator's group stands for flows to a port of its, and why, for people; why is "" where it is healthy. It agrees with what
// flows are sent by: healthy and unchecked are what GroupEndpointHealthy holds, but for a load balancer without a listener at that port.
func (v *View) EndpointState(s *spec.Spec, a *spec.Accelerator, g *spec.EndpointGroup, e spec.Endpoint, port uint16) (state State, why string) {
	switch {
	case e.Subnet.IsValid():
		return Unchecked, "destinations of custom routing are not checked"
	case e.Address.IsValid():
		return v.addressState(a, g, e)
	case e.LoadBalancer != "":
		return v.loadBalancerState(s, e.LoadBalancer, port)
	}
	return v.targetGroupState(s, e.TargetGroup)
}

func (v *View) addressState(a *spec.Accelerator, g *spec.EndpointGroup, e spec.Endpoint) (State, string) {
	if v != nil {
		if verdict, ok := v.Health.Lookup(health.EndpointKey(a.Name, g.Region, g.CheckAddr(e))); ok {
			if verdict.Healthy {
				return Healthy, ""
			}
			return Unhealthy, verdict.Reason
		}
	}
	switch {
	case a.Enabled != nil && !*a.Enabled:
		return Initial, "a disabled accelerator's addresses are not checked"
	case len(v.Having(g.Region, Origin)) == 0:
		return Initial, "no node in " + g.Region + " could check it"
	}
	return Initial, "not checked yet"
}

func (v *View) loadBalancerState(s *spec.Spec, name string, port uint16) (State, string) {
	lb := s.LoadBalancers[name]
	if lb == nil {
		return Unhealthy, "there is no such load balancer"
	}
	if !lb.Has(port) {
		return Unhealthy, fmt.Sprintf("it has no listener at port %d", port)
	}
	some := false
	for _, group := range lb.TargetGroups() {
		if g := s.TargetGroups[group]; g == nil || len(g.Targets) == 0 {
			continue
		}
		if state, why := v.targetGroupState(s, group); state != Healthy {
			return state, "target group " + group + ": " + why
		}
		some = true
	}
	if !some {
		return Unhealthy, "none of its target groups has targets"
	}
	return Healthy, ""
}

// targetGroupState is that of a group as TargetGroupHealthy judges it. The reason is that of the first target that has one.
func (v *View) targetGroupState(s *spec.Spec, name string) (State, string) {
	g := s.TargetGroups[name]
	switch {
	case g == nil:
		return Unhealthy, "there is no such target group"
	case len(g.Targets) == 0:
		return Unhealthy, "it has no targets"
	case !g.HealthCheck.On():
		return Healthy, ""
	}
	looked := 0
	var at netip.AddrPort
	var why string
	for _, t := range g.Targets {
		verdict, ok := health.Verdict{}, false
		if v != nil {
			verdict, ok = v.Health.Lookup(health.TargetKey(name, t.AddrPort()))
		}
		switch {
		case !ok:
			continue
		case verdict.Healthy:
			return Healthy, ""
		case why == "":
			at, why = t.AddrPort(), verdict.Reason
		}
		looked++
	}
	if looked == 0 {
		if len(v.Having(g.Region, Origin)) == 0 {
			return Initial, "no node in " + g.Region + " could check its targets"
		}
		return Initial, "none of its targets was checked yet"
	}
	if why != "" {
		why = fmt.Sprintf(", %v: %s", at, why)
	}
	return Unhealthy, fmt.Sprintf("none of its %d targets is healthy%s", len(g.Targets), why)
}
