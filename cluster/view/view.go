// Package view is what is observed: the members, the health of what they carry, and the round trips
// between them, as one node sees them. A View is a snapshot, seconds old, never agreed; everything that
// routes decides by a spec and a view. It is plain data with pure functions over it; node assembles it.
package view

import (
	"net/netip"
	"slices"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
)

// Role is what a node does.
type Role string

// The roles. A node has all of them unless told otherwise.
const (
	Edge   Role = "edge"   // takes viewers and flows
	DNS    Role = "dns"    // answers names
	Origin Role = "origin" // runs its region's load balancers, dials its targets
	Voter  Role = "voter"  // may vote in Raft
)

// Member is one live node, as it describes itself by gossip.
type Member struct {
	Name   string `json:"name"`
	Region string `json:"region"`
	POP    string `json:"pop"`
	Roles  []Role `json:"roles"`
	// Public are the addresses at which the world reaches it: what DNS answers.
	Public []netip.Addr `json:"public"`
	// Control is the address of its control port (TCP) and backbone (UDP).
	Control netip.AddrPort `json:"control"`
	// Gossip is the address at which it gossips.
	Gossip netip.AddrPort `json:"gossip,omitzero"`
	// API is the address of its API; invalid if it is only on its unix socket.
	API netip.AddrPort `json:"api,omitzero"`
}

// Has says whether the member has a role.
func (m Member) Has(r Role) bool { return slices.Contains(m.Roles, r) }

// View is one node's view of the network, immutable. A nil View knows nothing.
type View struct {
	// Self is the name of the node whose view this is.
	Self string
	// Members are the live nodes, itself included, by name.
	Members []Member
	// Health is the merged verdicts.
	Health *health.Table
	// RTT is the measured round trip from this node to others, by name; absent where nothing is measured.
	RTT map[string]time.Duration
	// Unreachable are members that gossip holds alive but that this node's own backbone cannot reach.
	// The data path does not wait for gossip: it passes these over at once.
	Unreachable map[string]bool
}

// Member returns the live member of that name.
func (v *View) Member(name string) (Member, bool) {
	if v == nil {
		return Member{}, false
	}
	for _, m := range v.Members {
		if m.Name == name {
			return m, true
		}
	}
	return Member{}, false
}

// In returns the live members of a region that have a role.
func (v *View) In(region string, r Role) []Member {
	if v == nil {
		return nil
	}
	var in []Member
	for _, m := range v.Members {
		if m.Region == region && m.Has(r) {
			in = append(in, m)
		}
	}
	return in
}

// TargetHealthy says whether a target may be sent traffic by its verdict: one that has no verdict yet is
// initial and not healthy.
func (v *View) TargetHealthy(group string, target netip.AddrPort) bool {
	if v == nil {
		return false
	}
	verdict, ok := v.Health.Lookup(health.TargetKey(group, target))
	return ok && verdict.Healthy
}

// TargetGroupHealthy says whether at least one target of the group is healthy. An empty group is not.
func (v *View) TargetGroupHealthy(s *spec.Spec, group string) bool {
	g := s.TargetGroups[group]
	if g == nil {
		return false
	}
	return slices.ContainsFunc(g.Targets, func(t spec.Target) bool { return v.TargetHealthy(group, t.AddrPort()) })
}

// LoadBalancerHealthy says whether every target group of the load balancer that has targets has a
// healthy one, and there is such a group (Route 53, evaluate target health of ELB).
func (v *View) LoadBalancerHealthy(s *spec.Spec, name string) bool {
	lb := s.LoadBalancers[name]
	if lb == nil {
		return false
	}
	some := false
	for _, group := range lb.TargetGroups() {
		if g := s.TargetGroups[group]; g == nil || len(g.Targets) == 0 {
			continue
		}
		if !v.TargetGroupHealthy(s, group) {
			return false
		}
		some = true
	}
	return some
}

// CheckHealthy says whether a HealthCheck passes: one without data yet is healthy, inverted ones are not;
// disabled is healthy always (Route 53).
func (v *View) CheckHealthy(s *spec.Spec, name string) bool {
	check := s.HealthChecks[name]
	if check == nil || check.Disabled {
		return true
	}
	healthy := true
	if v != nil {
		if verdict, ok := v.Health.Lookup(health.CheckKey(name)); ok {
			healthy = verdict.Healthy
		}
	}
	return healthy != check.Inverted
}

// RoundTrip estimates the round trip from this node to a region: the least measured to a member there
// that has the role, but never less than light in glass takes between the two places. So where many regions
// stand on one machine, the coordinates win over the loopback. Not ok: neither is known.
func (v *View) RoundTrip(s *spec.Spec, region string, r Role) (rtt time.Duration, ok bool) {
	if v == nil {
		return 0, false
	}
	measured := time.Duration(-1)
	for _, m := range v.In(region, r) {
		if m.Name == v.Self {
			return 0, true
		}
		if d, has := v.RTT[m.Name]; has && (measured < 0 || d < measured) {
			measured = d
		}
	}
	self, here := v.Member(v.Self)
	if here && self.Region == region {
		return max(measured, 0), true
	}
	from, fromOK := s.Place(self.Region, self.POP)
	to, toOK := s.Place(region, "")
	switch {
	case measured < 0 && fromOK && toOK:
		return from.RoundTrip(to), true
	case measured >= 0 && fromOK && toOK:
		return max(measured, from.Light(to)), true
	case measured >= 0:
		return measured, true
	}
	return 0, false
}
