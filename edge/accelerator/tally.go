package accelerator

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/perigee-net/perigee/cluster/spec"
)

// maxTallies bounds the ways, by accelerator, region and protocol, that are counted apart: the first that have flows. Others are counted together.
const maxTallies = 500

// Other is what is counted together.
const Other = "other"

// way is where flows go: by an accelerator to the endpoints of a region.
type way struct{ accelerator, region, protocol string }

func (w way) compare(o way) int {
	return cmp.Or(cmp.Compare(w.accelerator, o.accelerator), cmp.Compare(w.region, o.region), cmp.Compare(w.protocol, o.protocol))
}

// otherWays is what is counted together.
func otherWays() way { return way{Other, Other, Other} }

// tally is what went one way.
type tally struct {
	flows, in, out atomic.Uint64
	live           atomic.Int64
}

func (t *tally) carried(in, out int64) {
	t.in.Add(uint64(in))
	t.out.Add(uint64(out))
}

// tallies count flows by a key, such as a way. What was counted stays when the accelerator changes, or goes.
type tallies[K comparable] struct {
	mu  sync.Mutex
	all map[K]*tally
}

// of is the tally of a key, or that of all others together where there are too many.
func (t *tallies[K]) of(w, others K) *tally {
	t.mu.Lock()
	defer t.mu.Unlock()
	one := t.all[w]
	if one == nil && len(t.all) >= maxTallies {
		w = others
		one = t.all[w]
	}
	if one == nil {
		if t.all == nil {
			t.all = map[K]*tally{}
		}
		one = &tally{}
		t.all[w] = one
	}
	return one
}

// Traffic is what went through an accelerator to the endpoints of a region.
type Traffic struct {
	Accelerator, Region string
	Protocol            string // spec.TCP or spec.UDP
	NewFlows            uint64 // since the plane was made
	BytesIn, BytesOut   uint64 // from clients and to them; of TCP, as of a second ago at most
	Flows               int64  // now
}

// Traffic is by accelerator, region and protocol, in their order: of those that had flows, and Other for what is beyond 500.
func (p *Plane) Traffic() []Traffic {
	p.countLive()
	t := &p.tallies
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]Traffic, 0, len(t.all))
	for _, w := range slices.SortedFunc(maps.Keys(t.all), way.compare) {
		one := t.all[w]
		all = append(all, Traffic{w.accelerator, w.region, w.protocol, one.flows.Load(), one.in.Load(), one.out.Load(), one.live.Load()})
	}
	return all
}

// Endpoints is how many endpoints with weight an accelerator has in a region, over all its listeners, and how many of them could take a flow
// as this node sees it. Those of custom routing are unchecked, and none of them is told to be healthy.
type Endpoints struct {
	Accelerator, Region     string
	All, Healthy, Unchecked int
}

// Endpoints are by accelerator and region, in their order, of accelerators that are enabled. An endpoint of two listeners counts in each; one
// that is a load balancer is judged at a port at which it listens.
func (p *Plane) Endpoints() []Endpoints {
	s, v := p.table.Load().spec, p.config.View()
	count := map[way]*Endpoints{}
	for _, a := range s.Accelerators {
		if !*a.Enabled {
			continue
		}
		for l, g := range endpointGroups(a) {
			w := way{accelerator: a.Name, region: g.Region}
			n := count[w]
			if n == nil {
				n = &Endpoints{Accelerator: w.accelerator, Region: w.region}
				count[w] = n
			}
			n.count(&group{spec: g}, l, site{spec: s, view: v, accelerator: a})
		}
	}
	all := make([]Endpoints, 0, len(count))
	for _, w := range slices.SortedFunc(maps.Keys(count), way.compare) {
		all = append(all, *count[w])
	}
	return all
}

func (n *Endpoints) count(g *group, l *spec.AcceleratorListener, at site) {
	for _, e := range g.spec.Endpoints {
		if *e.Weight == 0 {
			continue
		}
		n.All++
		if e.Subnet.IsValid() {
			n.Unchecked++
			continue
		}
		at.flow = flowTo(e, g.spec, l, at.spec)
		if _, healthy := g.judge(at, e); healthy {
			n.Healthy++
		}
	}
}

// flowTo is a flow to a listener that an endpoint can take, as far as there is one: to the first of the listener's ports, but where the endpoint is a load balancer to one that leads to
// a listener of that.
func flowTo(e spec.Endpoint, g *spec.EndpointGroup, l *spec.AcceleratorListener, s *spec.Spec) (f Flow) {
	if len(l.PortRanges) == 0 {
		return f
	}
	port := l.PortRanges[0].FromPort
	if lb := s.LoadBalancers[e.LoadBalancer]; lb != nil {
		if from, ok := g.Reaches(l, lb); ok {
			port = from
		}
	}
	f.Local = netip.AddrPortFrom(netip.Addr{}, port)
	return f
}
