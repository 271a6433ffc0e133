package accelerator

import (
	"cmp"
	"context"
	"math"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/view"
)

// maxBetween bounds by which nodes the other end of a flow is looked for, when the flow's own way is lost.
const maxBetween = 3

// wayTo is the way by which a candidate is dialled: by another node, or directly for "".
func wayTo(c Candidate, by string, client netip.AddrPort) backbone.Way {
	if by != "" {
		return backbone.Way{Node: by, To: c.Node, Header: backbone.Header{Service: detourService, Resource: c.Node + "/" + c.Resource, Client: client}}
	}
	return backbone.Way{Node: c.Node, Header: backbone.Header{Service: flowService, Resource: c.Resource, Client: client}}
}

// open opens a flow to a candidate by a way. If all nodes on it know of that, the flow goes on over other ways when this one is lost.
func (p *Plane) open(ctx context.Context, c Candidate, by string, client netip.AddrPort) (net.Conn, error) {
	way := wayTo(c, by, client)
	way.Header.Left = waits(ctx, p.config.View(), c.Node, by)
	if p.config.DialLasting == nil || !lasts(p.config.View(), c.Node, by) {
		return p.config.Dial(ctx, way.Node, way.Header)
	}
	return p.config.DialLasting(ctx, way, func() []backbone.Way {
		var ways []backbone.Way
		for _, by := range between(p.config.View(), c.Node) {
			ways = append(ways, wayTo(c, by, client))
		}
		return ways
	})
}

// leastLeft is the least that a node is told it has for its answer.
const leastLeft = 50 * time.Millisecond

// waits is how long a node may take that is asked by way of another, or of none (""), so that its answer is here in time; 0: one of them does not know of that.
func waits(ctx context.Context, v *view.View, to, by string) time.Duration {
	ends, bounded := ctx.Deadline()
	for _, name := range []string{to, by} {
		if m, ok := v.Member(name); !bounded || name != "" && !(ok && m.Timed) {
			return 0
		}
	}
	return max(time.Until(ends)-roundTrip(v, to, by), leastLeft)
}

// roundTrip is that to a node, by way of another or of none (""); where nobody knows all of the way, what is known of it.
func roundTrip(v *view.View, to, by string) time.Duration {
	if by == "" {
		return v.RTT[to]
	}
	if v.Detour != nil {
		if d, ok := v.Detour(to); ok && d.By == by {
			return d.RTT
		}
	}
	if v.Distance != nil {
		if far, known := v.Distance(by, to); known {
			return v.RTT[by] + far
		}
	}
	return max(v.RTT[by], v.RTT[to])
}

// lasts says that a flow to a node, by way of another or of none (""), can outlive its stream.
func lasts(v *view.View, to, by string) bool {
	for _, name := range []string{to, by} {
		if m, ok := v.Member(name); name != "" && !(ok && m.Lasting) {
			return false
		}
	}
	return true
}

// between is by way of whom a node may be reached now to which a flow goes that has lost its way: the best first. "" is the direct way, which comes last where
// there seems to be none.
func between(v *view.View, to string) []string {
	type leg struct {
		by  string
		rtt time.Duration
	}
	var legs []leg
	if v != nil {
		for _, m := range v.Members {
			near, linked := v.RTT[m.Name]
			if !linked || !m.Lasting || m.Leaving || m.Drained != "" || m.Name == v.Self || m.Name == to || v.Unreachable[m.Name] {
				continue
			}
			far, known := time.Duration(0), false
			if v.Distance != nil {
				far, known = v.Distance(m.Name, to)
			}
			if !known {
				far = math.MaxInt64 - near // it may be a way all the same
			}
			legs = append(legs, leg{m.Name, near + far})
		}
	}
	slices.SortFunc(legs, func(a, b leg) int { return cmp.Or(cmp.Compare(a.rtt, b.rtt), cmp.Compare(a.by, b.by)) })
	var by []string
	for _, l := range legs[:min(maxBetween, len(legs))] {
		by = append(by, l.by)
	}
	if v != nil && v.Unreachable[to] {
		return append(by, "")
	}
	return append([]string{""}, by...)
}

// moving is a connection over the backbone that may have gone on over other ways.
type moving interface {
	Way() string
	Moves() int
}

// now is the way that a flow takes now, and how many it took before.
func (f *live) now() (by Candidate, moves int) {
	by = Candidate{Region: f.region, Resource: f.resource, Node: f.node, By: f.by}
	if f.over == nil {
		return by, 0
	}
	by.By = ""
	if way := f.over.Way(); way != by.Node {
		by.By = way
	}
	return by, f.over.Moves()
}
