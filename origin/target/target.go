// Package target chooses the target of a target group that takes a request or flow (ELB, round_robin). It is
// pure: it dials nothing, probes nothing and counts no turns; who calls it does. Whatever the verdicts say, a
// group that has targets always gives all of them to try: none healthy is as good as all healthy (ELB, fail open).
package target

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
)

// Pool is the targets of one group, split by their verdicts at one moment. It is immutable.
type Pool struct {
	Healthy []netip.AddrPort
	// Rest are the others: unhealthy, or initial, without a verdict yet. In a group that is not checked there are none.
	Rest []netip.AddrPort
}

// Split judges the targets of a group by a view.
func Split(g *spec.TargetGroup, v *view.View) *Pool {
	p := new(Pool)
	for _, t := range g.Targets {
		if addr := t.AddrPort(); v.TargetTakes(g, addr) {
			p.Healthy = append(p.Healthy, addr)
		} else {
			p.Rest = append(p.Rest, addr)
		}
	}
	return p
}

// Candidates are all targets, each once, in the order in which they should be tried: the healthy one whose turn
// it is, the other healthy ones, then the rest. Turns that count up by one share out evenly among the healthy,
// or among all where none is.
func (p *Pool) Candidates(turn uint64) iter.Seq[netip.AddrPort] {
	return func(yield func(netip.AddrPort) bool) {
		for _, addrs := range [][]netip.AddrPort{p.Healthy, p.Rest} {
			n := uint64(len(addrs))
			for i := range n {
				if !yield(addrs[(turn%n+i)%n]) {
					return
				}
			}
		}
	}
}

// At is one of the candidates, counted from 0; not ok: there are not so many.
func (p *Pool) At(turn uint64, i int) (addr netip.AddrPort, ok bool) {
	for _, addrs := range [...][]netip.AddrPort{p.Healthy, p.Rest} {
		n := len(addrs)
		if i < n {
			return addrs[(turn%uint64(n)+uint64(i))%uint64(n)], true
		}
		i -= n
	}
	return addr, false
}

// Order is the candidates of a group by a view: Split and Candidates in one.
func Order(g *spec.TargetGroup, v *view.View, turn uint64, t *trace.Trace) []netip.AddrPort {
	p := Split(g, v)
	if t.On() {
		Explain(g, v, p, turn, t)
	}
	return slices.Collect(p.Candidates(turn))
}

// Explain records why the candidates of a pool, split by v, stand as they do.
func Explain(g *spec.TargetGroup, v *view.View, p *Pool, turn uint64, t *trace.Trace) {
	total := len(p.Healthy) + len(p.Rest)
	switch {
	case total == 0:
		t.Add("target group %s: no targets", g.Name)
		return
	case len(p.Healthy) == 0:
		defer t.In("target group %s: none of %d targets is healthy, so all take traffic", g.Name, total)()
	default:
		defer t.In("target group %s: %d of %d targets healthy", g.Name, len(p.Healthy), total)()
	}
	nth := 0
	for addr := range p.Candidates(turn) {
		standing := "next, if it cannot be dialed"
		if nth == 0 {
			standing = "its turn (round_robin)"
		}
		t.Add("%s: %s, %s", addr, state(g, v, addr), standing)
		nth++
	}
}

// state is a target's health in ELB's words.
func state(g *spec.TargetGroup, v *view.View, addr netip.AddrPort) string {
	switch {
	case !g.HealthCheck.On():
		return "not checked"
	case v == nil:
		return "initial"
	}
	switch verdict, ok := v.Health.Lookup(health.TargetKey(g.Name, addr)); {
	case !ok:
		return "initial"
	case verdict.Healthy:
		return "healthy"
	case verdict.Reason != "":
		return "unhealthy (" + verdict.Reason + ")"
	}
	return "unhealthy"
}
