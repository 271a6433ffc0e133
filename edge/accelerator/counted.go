package accelerator

import (
	"maps"
	"slices"

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

// of are the tallies of a flow.
func (m *moreTallies) of(a *spec.Accelerator, f *live) []*tally {
	by := f.by.By
	if by == "" {
		by = direct
	}
	others := labels{Other, Other, Other}
	return []*tally{
		m.endpoints.of(labels{f.accelerator, f.region, endpointOf(a, f)}, others),
		m.paths.of(labels{f.region, f.by.Node, by}, others),
	}
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
func (p *Plane) ByEndpoint() []Counted { return counted(&p.more.endpoints) }

// ByPath is by the region and node that dials the endpoint, and the node in between or "direct".
func (p *Plane) ByPath() []Counted { return counted(&p.more.paths) }

func counted(t *tallies[labels]) []Counted {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]Counted, 0, len(t.all))
	for _, l := range slices.SortedFunc(maps.Keys(t.all), labels.compare) {
		one := t.all[l]
		all = append(all, Counted{l, one.flows.Load(), one.in.Load(), one.out.Load(), one.live.Load()})
	}
	return all
}
