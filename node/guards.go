package node

import (
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/perigee-net/perigee/cluster/spec"
)

// guards are who may come to the doors of load balancers that have security groups. A door's is made anew only where its
// groups have changed.
type guards map[door]guard

// door is a listener of a load balancer.
type door struct {
	loadBalancer string
	port         uint16
}

type guard struct {
	groups []*spec.SecurityGroup
	admits *bart.Lite
}

// allowed is who may come to a listener; nil: everybody, for no group guards it. What it makes or finds goes to next.
func (g guards) allowed(s *spec.Spec, at door, next guards) func(netip.Addr) bool {
	lb := s.LoadBalancers[at.loadBalancer]
	if lb == nil || len(lb.SecurityGroups) == 0 {
		return nil
	}
	var groups []*spec.SecurityGroup
	for _, name := range lb.SecurityGroups {
		groups = append(groups, s.SecurityGroups[name])
	}
	now := g[at]
	if now.admits == nil || !slices.Equal(now.groups, groups) {
		now = guard{groups, admitted(groups, "tcp", at.port)}
	}
	next[at] = now
	return func(a netip.Addr) bool { return now.admits.Contains(a) }
}

// admitted are those whom a rule of any of the groups lets come to a port.
func admitted(groups []*spec.SecurityGroup, protocol string, port uint16) *bart.Lite {
	t := new(bart.Lite)
	for _, group := range groups {
		for i := range group.Ingress {
			if r := &group.Ingress[i]; r.Concerns(protocol, port) {
				for _, p := range r.CIDRs {
					t.Insert(p)
				}
			}
		}
	}
	return t
}
