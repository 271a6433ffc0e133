package accelerator

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

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
type moreTallies struct {
	endpoints, paths, rejected, ended tallies[labels]
	tcp                               tally // bytes of all flows of TCP

	mu   sync.Mutex
	seen time.Time // when what flows carry was looked at last
}

// countEvery is how often what flows have carried that go on is looked at, at most: it takes as long as there are flows.
const countEvery = time.Second

// count counts what flows have carried that go on, by what they are counted by.
func (p *Plane) countLive() {
	p.more.mu.Lock()
	defer p.more.mu.Unlock()
	if now := time.Now(); now.Sub(p.more.seen) >= countEvery {
		p.more.seen = now
		for _, f := range p.live.all() {
			f.counted.look(&p.more, f)
		}
	}
}

// endpoint is the tally of a flow's endpoint.
func (m *moreTallies) endpoint(a *spec.Accelerator, f *live) *tally {
	return m.endpoints.of(labels{f.accelerator, f.region, endpointOf(a, f)}, labels{Other, Other, Other})
}

// path is the tally of a way of a flow: by a node, or directly for "".
func (m *moreTallies) path(f *live, by string) *tally {
	return m.paths.of(labels{f.region, f.node, cmp.Or(by, direct)}, labels{Other, Other, Other})
}

// counted is what a flow is counted by: its way, and what else, which stays.
type counted struct {
	mu      sync.Mutex
	by      string
	at      *tally // of the way; nil: the flow has ended
	also    [3]*tally
	in, out int64 // that are counted already
}

// begins has a new flow be counted by its way, and the bytes of it by more.
func (c *counted) begins(m *moreTallies, f *live, also [3]*tally) {
	now, _ := f.now()
	c.by = now.By
	c.at, c.also = m.path(f, c.by), also
	c.at.flows.Add(1)
	c.at.live.Add(1)
}

// look counts what the flow has carried, and has it be counted by the way that it goes now: what it carried until it is seen there was carried by the one before.
func (c *counted) look(m *moreTallies, f *live) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at == nil {
		return
	}
	c.carried(f)
	if now, _ := f.now(); now.By != c.by {
		c.at.live.Add(-1)
		c.by, c.at = now.By, m.path(f, now.By)
		c.at.live.Add(1)
	}
}

// ends counts what is not counted yet, for the last time. It returns by what the flow was counted besides its path.
func (c *counted) ends(f *live) (also [3]*tally) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.carried(f)
	c.at.live.Add(-1)
	c.at = nil
	return c.also
}

func (c *counted) carried(f *live) {
	in, out := f.carried.Moved()
	in, out = max(in, c.in), max(out, c.out) // what a client had sent and its endpoint never took counts no more once they are closed
	c.at.carried(in-c.in, out-c.out)
	for _, t := range c.also {
		if t != nil {
			t.carried(in-c.in, out-c.out)
		}
	}
	c.in, c.out = in, out
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
	BytesIn, BytesOut uint64 // from clients and to them, as of a second ago at most
	Flows             int64  // now
}

// ByEndpoint is by accelerator, region and endpoint, of those that had flows, and Other for what is beyond 500.
func (p *Plane) ByEndpoint() []Counted {
	p.countLive()
	return countedBy(&p.more.endpoints)
}

// ByPath is by the region and node that dials the endpoint, and the node in between or "direct". A flow that has gone on by another way is counted there from when this
// is asked next, or it ends; as a new flow it is where it began.
func (p *Plane) ByPath() []Counted {
	p.countLive()
	return countedBy(&p.more.paths)
}

// Rejected is flows that were refused, by accelerator, listener ("TCP 443") and why, as flow logs say it. NewFlows counts.
func (p *Plane) Rejected() []Counted { return countedBy(&p.more.rejected) }

// Ended is flows that have ended, by accelerator, region and how, as flow logs say it. NewFlows counts.
func (p *Plane) Ended() []Counted { return countedBy(&p.more.ended) }

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
