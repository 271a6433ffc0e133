package cdn

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
)

// Candidate is one node at which one of an origin's load balancers may be asked.
type Candidate struct {
	LoadBalancer string
	Port         uint16 // of its first HTTP listener
	Region       string
	Node         string
	RTT          time.Duration // to the region, as far as that is known
	Healthy      bool          // the load balancer has healthy targets
	Reachable    bool          // this node's backbone has a link to the node
}

// Resource names the listener on the backbone.
func (c Candidate) Resource() string { return c.LoadBalancer + "/" + strconv.Itoa(int(c.Port)) }

const unknown = time.Duration(math.MaxInt64)

// Order is the order in which an origin's load balancers are asked: those that can be reached, then those that are
// healthy, then the nearest; in one region, the nearest node. None is left out, for what is held of them may be wrong
// or old: where all are bad they are asked all the same (as ELB fails open). But nodes that are drained are left out while
// any that is not runs one of the load balancers, and those that leave while any else does (view.Resort).
func Order(s *spec.Spec, v *view.View, o *spec.Origin, tr *trace.Trace) []Candidate {
	all, standing := view.Resort(func(at view.Standing) []Candidate {
		if at != view.Taking {
			return candidates(s, v, o, at, nil) // who is passed over has been told
		}
		return candidates(s, v, o, at, tr)
	})
	switch {
	case len(all) == 0:
	case standing == view.Drained:
		tr.Add("all nodes that run them are drained: asked all the same")
	case standing == view.Leaving:
		tr.Add("all that is left of the nodes that run them leaves: asked all the same, until their doors close")
	}
	slices.SortStableFunc(all, func(a, b Candidate) int {
		return cmp.Or(
			first(a.Reachable, b.Reachable),
			first(a.Healthy, b.Healthy),
			cmp.Compare(a.RTT, b.RTT),
			cmp.Compare(slices.Index(o.LoadBalancers, a.LoadBalancer), slices.Index(o.LoadBalancers, b.LoadBalancer)),
			cmp.Compare(distance(v, a.Node), distance(v, b.Node)),
			cmp.Compare(a.Node, b.Node),
		)
	})
	if tr.On() {
		for i, c := range all {
			tr.Add("%d. %s in %s at node %s: %s, %s, %s", i+1, c.LoadBalancer, c.Region, c.Node, away(c.RTT),
				either(c.Healthy, "healthy", "no healthy targets"), either(c.Reachable, "reachable", "cannot be reached"))
		}
	}
	return all
}

// candidates are the origin's load balancers at those of their regions' nodes that have a standing.
func candidates(s *spec.Spec, v *view.View, o *spec.Origin, at view.Standing, tr *trace.Trace) (all []Candidate) {
	for _, name := range o.LoadBalancers {
		lb := s.LoadBalancers[name]
		port, ok := httpPort(lb)
		if !ok {
			tr.Add("%s: no load balancer with an HTTP listener", name)
			continue
		}
		rtt, known := v.RoundTrip(s, lb.Region, view.Origin)
		if !known {
			rtt = unknown
		}
		healthy := v.LoadBalancerHealthy(s, name)
		nodes := v.At(lb.Region, view.Origin, at)
		if tr.On() {
			having := v.Having(lb.Region, view.Origin)
			for _, m := range having {
				if !m.Takes(view.Origin) {
					tr.Add("%s at node %s: passed over, %s", name, m.Name, either(m.Leaving, "it leaves", "drained ("+m.Drained+")"))
				}
			}
			if len(having) == 0 {
				tr.Add("%s: no live node in %s runs it", name, lb.Region)
			}
		}
		for _, n := range nodes {
			all = append(all, Candidate{
				LoadBalancer: name, Port: port, Region: lb.Region, Node: n.Name,
				RTT: rtt, Healthy: healthy, Reachable: !v.Unreachable[n.Name],
			})
		}
	}
	return all
}

// httpPort is the port of a load balancer's first HTTP listener.
func httpPort(lb *spec.LoadBalancer) (uint16, bool) {
	if lb != nil {
		for _, l := range lb.Listeners {
			if l.Protocol == spec.HTTP {
				return l.Port, true
			}
		}
	}
	return 0, false
}

// distance is the measured round trip to a node: none to this one.
func distance(v *view.View, node string) time.Duration {
	if node == v.Self {
		return 0
	}
	if d, ok := v.RTT[node]; ok {
		return d
	}
	return unknown
}

func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func away(d time.Duration) string {
	if d == unknown {
		return "at an unknown distance"
	}
	return d.Round(100*time.Microsecond).String() + " away"
}

func either(is bool, yes, no string) string {
	if is {
		return yes
	}
	return no
}
