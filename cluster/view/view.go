// Package view is what is observed: the members, the health of what they carry, and the round trips
// between them, as one node sees them. A View is a snapshot, seconds old, never agreed; everything that
// routes decides by a spec and a view. It is plain data with pure functions over it; node assembles it.
package view

import (
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/perigee-net/perigee/cluster/clients"
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
	// Lasting says that it knows how flows over the backbone go on when their path is lost; earlier releases do not.
	Lasting bool `json:"lasting,omitempty"`
	// Leaving says that it is about to go: nothing new is given to it where there is anybody else. It serves on until its doors close.
	Leaving bool `json:"leaving,omitempty"`
	// Drained says what drains it, for people ("region eu-central-1 until …"); empty: nothing does.
	Drained string `json:"drained,omitempty"`
	// Needed are the roles that it goes on with though it is drained, as nobody else would be left.
	Needed []Role `json:"needed,omitempty"`
	// Tells says that it tells who asks at which target a flow has ended: releases before did not understand that.
	Tells bool `json:"-"`
	// Timed says that it reads off a header how long who asks waits: releases before take such a header for malformed.
	Timed bool `json:"-"`
	// Asks says that it asks the node behind it again whether that knows a flow of datagrams that it carries on, when it is asked: releases before answer for
	// themselves alone.
	Asks bool `json:"-"`
}

// Has says whether the member has a role, be it drained or leaving. Who looks after things (probes, keeps records) asks
// this; who routes asks Takes.
func (m *Member) Has(r Role) bool { return slices.Contains(m.Roles, r) }

// Takes says whether what is new of a role is the member's to take: it has the role, and is neither leaving nor drained. Where nobody takes
// it, others are used all the same, in the order of their Standing.
func (m *Member) Takes(r Role) bool { return m.Stands(r, Taking) }

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
	// Paths is what else is measured of the ways to others, by name; absent where RTT is.
	Paths map[string]Path
	// Unreachable are members that gossip holds alive but that this node's own backbone cannot reach.
	// The data path does not wait for gossip: it passes these over at once.
	Unreachable map[string]bool
	// Distance estimates the round trip between two nodes, by name; nil: nobody does.
	Distance func(a, b string) (rtt time.Duration, ok bool)
	// Detour finds a way to a node by another one, where that is worth taking; nil: there is none.
	Detour func(to string) (Detour, bool)
	// Clients is what the doors of POPs saw of how far clients are; nil: nothing yet.
	Clients *clients.Map
	// Fenced says that this node has heard of an order that it has not seen yet: it may not serve what it kept unasked.
	Fenced bool
}

// Path is what is measured of the way to another node.
type Path struct {
	// Loss is the share of the packets sent there that were lost of late, 0 to 1, those made good included.
	Loss float64
	// Parity is whether they are followed by parity, which makes losses good on arrival.
	Parity bool
	// TCP is what flows of many bytes can have beside QUIC: "BBR", "without BBR"; "": nothing, as far as is known.
	TCP string
	// Sent and Received are bits a second.
	Sent, Received float64
	// Carried is the most that arrived there in a second of the last ten minutes, by QUIC, and CarriedTCP by TCP, bits a second; 0: nothing that is known.
	Carried, CarriedTCP float64
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

// In returns the live members of a region that take what is new of a role: those that may be routed to.
func (v *View) In(region string, r Role) []Member {
	return v.At(region, r, Taking)
}

// At returns the live members of a region that have a role and one standing of it.
func (v *View) At(region string, r Role, s Standing) []Member {
	return v.members(func(m Member) bool { return m.Region == region && m.Stands(r, s) })
}

// Having returns the live members of a region that have a role, be they drained or leaving.
func (v *View) Having(region string, r Role) []Member {
	return v.members(func(m Member) bool { return m.Region == region && m.Has(r) })
}

// Of yields the live members of a region, whatever they take, in their order, as they stand in the view: none is copied, and none may be changed.
func (v *View) Of(region string) iter.Seq[*Member] {
	return func(yield func(*Member) bool) {
		if v == nil {
			return
		}
		for i := range v.Members {
			if m := &v.Members[i]; m.Region == region && !yield(m) {
				return
			}
		}
	}
}

// PassedOver says, a line each, which live members of a region have a role and yet are not routed to, and why.
func (v *View) PassedOver(region string, r Role) []string {
	var lines []string
	for _, m := range v.Having(region, r) {
		switch {
		case m.Takes(r):
		case m.Leaving:
			lines = append(lines, m.Name+": leaving")
		default:
			lines = append(lines, m.Name+": drained ("+m.Drained+")")
		}
	}
	return lines
}

func (v *View) members(wanted func(Member) bool) []Member {
	if v == nil {
		return nil
	}
	var found []Member
	for _, m := range v.Members {
		if wanted(m) {
			found = append(found, m)
		}
	}
	return found
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

// TargetTakes says whether a target of the group may be sent traffic: it is healthy, or the group's targets are not
// checked, and then each may.
func (v *View) TargetTakes(g *spec.TargetGroup, target netip.AddrPort) bool {
	return !g.HealthCheck.On() || v.TargetHealthy(g.Name, target)
}

// TargetGroupHealthy says whether at least one target of the group may be sent traffic. An empty group has none.
func (v *View) TargetGroupHealthy(s *spec.Spec, group string) bool {
	g := s.TargetGroups[group]
	if g == nil {
		return false
	}
	return slices.ContainsFunc(g.Targets, func(t spec.Target) bool {
		return !g.HealthCheck.On() || v.TargetHealthy(group, t.AddrPort())
	})
}

// EndpointHealthy says whether an accelerator's endpoint given by address may be sent flows; address is where it is
// checked (spec.EndpointGroup.CheckAddr). Like a target, one that has no verdict yet is not healthy.
func (v *View) EndpointHealthy(accelerator, region string, address netip.AddrPort) bool {
	if v == nil {
		return false
	}
	verdict, ok := v.Health.Lookup(health.EndpointKey(accelerator, region, address))
	return ok && verdict.Healthy
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

// AcceleratorHealthy says whether an accelerator is enabled and each of its listeners has a healthy endpoint with weight, in a group whose
// traffic dial is not 0. (Route 53 does not say what the health of an accelerator is; so it is that of a load balancer, listener by
// listener.) The endpoints of custom routing are checked by nobody, and healthy.
func (v *View) AcceleratorHealthy(s *spec.Spec, name string) bool {
	a := s.Accelerators[name]
	if a == nil || a.Enabled != nil && !*a.Enabled {
		return false
	}
	for i := range a.Listeners {
		if !v.listenerHealthy(s, a, &a.Listeners[i]) {
			return false
		}
	}
	return true
}

func (v *View) listenerHealthy(s *spec.Spec, a *spec.Accelerator, l *spec.AcceleratorListener) bool {
	for i := range l.EndpointGroups {
		g := &l.EndpointGroups[i]
		if g.TrafficDial != nil && *g.TrafficDial == 0 {
			continue
		}
		for _, e := range g.Endpoints {
			if (e.Weight == nil || *e.Weight > 0) && v.GroupEndpointHealthy(s, a.Name, g, e) {
				return true
			}
		}
	}
	return false
}

// GroupEndpointHealthy says whether an endpoint of a group may be sent flows by the verdicts on what it is: an address, a load balancer, or a
// target group. A subnet is checked by nobody.
func (v *View) GroupEndpointHealthy(s *spec.Spec, accelerator string, g *spec.EndpointGroup, e spec.Endpoint) bool {
	switch {
	case e.Subnet.IsValid():
		return true
	case e.Address.IsValid():
		return v.EndpointHealthy(accelerator, g.Region, g.CheckAddr(e))
	case e.LoadBalancer != "":
		return v.LoadBalancerHealthy(s, e.LoadBalancer)
	}
	return v.TargetGroupHealthy(s, e.TargetGroup)
}

// LoadBalancerChecks are the verdicts that the health of a load balancer goes by.
func LoadBalancerChecks(s *spec.Spec, name string) iter.Seq[health.Key] {
	return func(yield func(health.Key) bool) {
		if lb := s.LoadBalancers[name]; lb != nil {
			checksOf(s, lb.TargetGroups(), yield)
		}
	}
}

// AcceleratorChecks are the verdicts that the health of an accelerator goes by; one may come more than once.
func AcceleratorChecks(s *spec.Spec, name string) iter.Seq[health.Key] {
	return func(yield func(health.Key) bool) {
		a := s.Accelerators[name]
		if a == nil {
			return
		}
		for i := range a.Listeners {
			for j := range a.Listeners[i].EndpointGroups {
				g := &a.Listeners[i].EndpointGroups[j]
				for _, e := range g.Endpoints {
					if !checksOfEndpoint(s, name, g, e, yield) {
						return
					}
				}
			}
		}
	}
}

func checksOfEndpoint(s *spec.Spec, accelerator string, g *spec.EndpointGroup, e spec.Endpoint, yield func(health.Key) bool) bool {
	switch {
	case e.Address.IsValid():
		return yield(health.EndpointKey(accelerator, g.Region, g.CheckAddr(e)))
	case e.LoadBalancer != "":
		lb := s.LoadBalancers[e.LoadBalancer]
		return lb == nil || checksOf(s, lb.TargetGroups(), yield)
	}
	return checksOf(s, []string{e.TargetGroup}, yield)
}

func checksOf(s *spec.Spec, groups []string, yield func(health.Key) bool) bool {
	for _, name := range groups {
		if g := s.TargetGroups[name]; g != nil {
			for _, t := range g.Targets {
				if !yield(health.TargetKey(name, t.AddrPort())) {
					return false
				}
			}
		}
	}
	return true
}

// CheckHealthy says whether a HealthCheck passes: one without data yet is healthy, inverted ones are not; disabled is
// healthy always. A calculated one passes while as many of its children do as its threshold says: with 0 always, with
// more than there are never; its own inversion comes after (Route 53). One that does not exist passes.
func (v *View) CheckHealthy(s *spec.Spec, name string) bool {
	check := s.HealthChecks[name]
	switch {
	case check == nil || check.Disabled:
		return true
	case check.Type != spec.Calculated:
		return v.observedHealthy(name) != check.Inverted
	}
	healthy := 0
	for _, child := range check.ChildHealthChecks {
		// No child is calculated itself: what a spec that was not validated says of such a one is not followed.
		if c := s.HealthChecks[child]; c == nil || c.Disabled || v.observedHealthy(child) != c.Inverted {
			healthy++
		}
	}
	threshold := 0
	if check.HealthThreshold != nil {
		threshold = *check.HealthThreshold
	}
	return healthy >= threshold != check.Inverted
}

// observedHealthy is what the observers say of a HealthCheck; healthy while they say nothing.
func (v *View) observedHealthy(name string) bool {
	if v == nil {
		return true
	}
	verdict, ok := v.Health.Lookup(health.CheckKey(name))
	return !ok || verdict.Healthy
}

// CheckStands is how long what CheckHealthy says can stand at least: of a calculated one, as long as its child that can
// turn first. Not ok: nothing that is observed can turn it.
func (v *View) CheckStands(s *spec.Spec, name string) (stands time.Duration, ok bool) {
	check := s.HealthChecks[name]
	if v == nil || check == nil || check.Disabled {
		return 0, false
	}
	observed := []string{name}
	if check.Type == spec.Calculated {
		observed = check.ChildHealthChecks
	}
	for _, name := range observed {
		if c := s.HealthChecks[name]; c == nil || c.Disabled {
			continue
		}
		if verdict, has := v.Health.Lookup(health.CheckKey(name)); has && verdict.Stands > 0 && (!ok || verdict.Stands < stands) {
			stands, ok = verdict.Stands, true
		}
	}
	return stands, ok
}

// RoundTrip estimates the round trip from this node to a region: the least to a member there that takes the role (or of those that Resort comes to, where none takes it), measured, or where it is not by the view's distances; but never less than light in glass takes between the two places. So where many regions
// stand on one machine, their places win over the loopback. Not ok: nothing is known.
func (v *View) RoundTrip(s *spec.Spec, region string, r Role) (rtt time.Duration, ok bool) {
	if v == nil {
		return 0, false
	}
	least := time.Duration(-1)
	best, _ := v.Best(region, r)
	for m := range v.Of(region) {
		if !m.Stands(r, best) {
			continue
		}
		if m.Name == v.Self {
			return 0, true
		}
		if d, has := v.Away(m.Name); has && (least < 0 || d < least) {
			least = d
		}
	}
	self, here := v.Member(v.Self)
	if here && self.Region == region {
		return max(least, 0), true
	}
	from, fromOK := s.Place(self.Region, self.POP)
	to, toOK := s.Place(region, "")
	switch {
	case least < 0 && fromOK && toOK:
		return from.RoundTrip(to), true
	case least >= 0 && fromOK && toOK:
		return max(least, from.Light(to)), true
	case least >= 0:
		return least, true
	}
	return 0, false
}

// Away is the round trip from this node to another: measured, or else estimated. Not ok: neither.
func (v *View) Away(name string) (rtt time.Duration, ok bool) {
	if v == nil {
		return 0, false
	}
	if d, measured := v.RTT[name]; measured {
		return d, true
	}
	if v.Distance == nil {
		return 0, false
	}
	return v.Distance(v.Self, name)
}
