package accelerator

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/edge/accelerator/flowlog"
	"github.com/perigee-net/perigee/origin"
)

// labels are by what flows are counted: accelerator, region and endpoint; or region, node and the one in between.
type labels [3]string

func (l labels) compare(o labels) int { return slices.Compare(l[:], o[:]) }

// direct is what stands where there is no node in between.
const direct = "direct"

// moreTallies count flows by endpoint and by path. Each bounds what is counted apart, as tallies do.
type moreTallies struct{ endpoints, paths tallies[labels] }

// endpoint is the tally of a flow's endpoint.
func (m *moreTallies) endpoint(a *spec.Accelerator, f *live) *tally {
	return m.endpoints.of(labels{f.accelerator, f.region, endpointOf(a, f)}, labels{Other, Other, Other})
}

// path is the tally of a way of a flow.
func (m *moreTallies) path(f *live, way Candidate) *tally {
	return m.paths.of(labels{f.region, way.Node, cmp.Or(way.By, direct)}, labels{Other, Other, Other})
}

// counted is by which way a flow is counted.
type counted struct {
	mu      sync.Mutex
	by      Candidate
	at      *tally
	in, out int64 // that are counted already
}

// begins has a new flow be counted by its way.
func (c *counted) begins(m *moreTallies, f *live) {
	c.by, _ = f.now()
	c.at = m.path(f, c.by)
	c.at.flows.Add(1)
	c.at.live.Add(1)
}

// look has the flow be counted by the way that it goes now: what it carried until it is seen there was carried by the one before.
func (c *counted) look(m *moreTallies, f *live) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if by, _ := f.now(); c.at != nil && by.By != c.by.By {
		c.carried(f)
		c.at.live.Add(-1)
		c.by, c.at = by, m.path(f, by)
		c.at.live.Add(1)
	}
}

// ends counts what is not counted yet, for the last time.
func (c *counted) ends(f *live) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.carried(f)
	c.at.live.Add(-1)
	c.at = nil
}

func (c *counted) carried(f *live) {
	in, out := f.moved()
	c.at.in.Add(uint64(max(in-c.in, 0)))
	c.at.out.Add(uint64(max(out-c.out, 0)))
	c.in, c.out = max(in, c.in), max(out, c.out)
}

// endpointOf is where a flow ends, as the spec names it, whatever the port.
func endpointOf(a *spec.Accelerator, f *live) string {
	if a != nil && isCustom(a) {
		if subnet := subnetOf(a, f.region, flowlog.EndpointAddr(origin.Unpreserved(f.resource))); subnet != "" {
			return subnet
		}
	}
	return endpointName(f.resource)
}

// Counted is what was counted by some labels.
type Counted struct {
	Labels            [3]string
	NewFlows          uint64 // since the plane was made
	BytesIn, BytesOut uint64 // from clients and to them, of flows that have ended
	Flows             int64  // now
}

// ByEndpoint is by accelerator, region and endpoint, of those that had flows, and Other for what is beyond 500.
func (p *Plane) ByEndpoint() []Counted { return countedBy(&p.more.endpoints) }

// ByPath is by the region and node that dials the endpoint, and the node in between or "direct". A flow that has gone on by another way is counted there from when this
// is asked next, or it ends; as a new flow it is where it began.
func (p *Plane) ByPath() []Counted {
	for _, f := range p.live.moved() {
		f.counted.look(&p.more, f)
	}
	return countedBy(&p.more.paths)
}

func countedBy(t *tallies[labels]) []Counted {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]Counted, 0, len(t.all))
	for _, l := range slices.SortedFunc(maps.Keys(t.all), labels.compare) {
		one := t.all[l]
		all = append(all, Counted{l, one.flows.Load(), one.in.Load(), one.out.Load(), one.live.Load()})
	}
	return all
}
