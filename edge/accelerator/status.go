package accelerator

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/accelerator/flowlog"
	"github.com/perigee-net/perigee/origin"
)

// Status is what goes on at an accelerator, as this node sees it and carries flows.
type Status struct {
	Enabled bool
	// Endpoints are the accelerator's, and those that have gone and still have flows, by listener, region and name.
	Endpoints []EndpointStatus
	// Paths are those that flows take now, by region and nodes.
	Paths []PathStatus
	// Top are the flows that have carried most.
	Top []FlowStatus
}

// Moved is how many flows there are now, and what they have carried so far.
type Moved struct {
	Flows             int
	BytesIn, BytesOut int64 // from clients and to them
}

func (m *Moved) add(in, out int64) {
	m.Flows++
	m.BytesIn += in
	m.BytesOut += out
}

// EndpointStatus is an endpoint of a listener.
type EndpointStatus struct {
	Protocol, Ports  string // of the listener: "TCP", "80,8000-8080"
	Region, Endpoint string // targetGroup/web, loadBalancer/web, or an address
	Weight           int
	Dial             float64 // of its group, percent
	Healthy          bool
	State            view.State
	Reason           string // why it is not healthy, or why its region takes no flows; "": it is, and does
	Gone             bool   // it is in the spec no more
	Moved
}

// PathStatus is a way from this node to where endpoints are dialled.
type PathStatus struct {
	Region, Node string
	By           string // the node in between; "": none
	RTT          time.Duration
	Measured     bool // the round trip is known
	// Path is what else is measured of its first leg, the one to By if there is one; zero: nothing is, as within this node.
	view.Path
	Moved
}

// FlowStatus is a flow.
type FlowStatus struct {
	Client, Local     netip.AddrPort
	Protocol          string
	Region, Resource  string
	Target            netip.AddrPort // where it ends; invalid: its node does not tell
	Node, By          string
	Moves             int // ways that it took before this one
	Began             time.Time
	BytesIn, BytesOut int64
	// RTT is the client's round trip, and Retransmitted the segments that were sent to it again, where Known.
	RTT           time.Duration
	Retransmitted uint64
	Known         bool
}

// endpointName is a resource as the spec names it, whatever the port.
func endpointName(resource string) string {
	resource = origin.Unpreserved(resource)
	kind, rest, _ := strings.Cut(resource, "/")
	switch kind {
	case "loadBalancer":
		rest, _, _ = strings.Cut(rest, "/")
		return kind + "/" + rest
	case "endpoint":
		_, at, _ := strings.Cut(rest, "/")
		if a, err := netip.ParseAddrPort(at); err == nil {
			return a.Addr().String()
		}
	}
	return resource
}

// EndpointHealth is whether an endpoint of a listener can take flows, as this node sees it.
type EndpointHealth struct {
	Accelerator, Listener string // of the listener: "TCP 443"
	Region, Endpoint      string
	Healthy               bool
}

// Healths are those of the endpoints of accelerators that are enabled, by accelerator, as long as they are taken. Those of custom routing have none: nobody
// checks them.
func (p *Plane) Healths(yield func(EndpointHealth) bool) {
	s, v := p.table.Load().spec, p.config.View()
	for _, name := range slices.Sorted(maps.Keys(s.Accelerators)) {
		a := s.Accelerators[name]
		if !*a.Enabled {
			continue
		}
		for l, g := range endpointGroups(a) {
			at := site{spec: s, view: v, accelerator: a}
			for _, e := range g.Endpoints {
				if e.Subnet.IsValid() {
					continue
				}
				at.flow = flowTo(e, g, l, s)
				resource, healthy := (&group{spec: g}).judge(at, e)
				if !yield(EndpointHealth{name, l.Protocol + " " + l.Ports(), g.Region, endpointName(resource), healthy}) {
					return
				}
			}
		}
	}
}

// endpointGroups are those of an accelerator, with their listeners.
func endpointGroups(a *spec.Accelerator) iter.Seq2[*spec.AcceleratorListener, *spec.EndpointGroup] {
	return func(yield func(*spec.AcceleratorListener, *spec.EndpointGroup) bool) {
		for i := range a.Listeners {
			for j := range a.Listeners[i].EndpointGroups {
				if !yield(&a.Listeners[i], &a.Listeners[i].EndpointGroups[j]) {
					return
				}
			}
		}
	}
}

// Status is that of an accelerator, with its top flows at most; not ok: there is none of that name, and no flow of one.
func (p *Plane) Status(name string, top int) (s Status, ok bool) {
	now, v := p.table.Load().spec, p.config.View()
	a := now.Accelerators[name]
	ok = a != nil
	type place struct{ protocol, ports, region, endpoint string }
	endpoints := map[place]*EndpointStatus{}
	if ok {
		s.Enabled = *a.Enabled
		for l, g := range endpointGroups(a) {
			at := site{spec: now, view: v, accelerator: a}
			shut := regionTakesNone(v, a, l, g.Region)
			for _, e := range g.Endpoints {
				at.flow = flowTo(e, g, l, now)
				resource, healthy := (&group{spec: g}).judge(at, e)
				where := place{l.Protocol, l.Ports(), g.Region, endpointName(resource)}
				state, why := v.EndpointState(now, a, g, e, g.EndpointPort(at.flow.Local.Port()))
				endpoints[where] = &EndpointStatus{
					Protocol: where.protocol, Ports: where.ports, Region: where.region, Endpoint: where.endpoint, Weight: *e.Weight, Dial: *g.TrafficDial,
					Healthy: healthy, State: state, Reason: cmp.Or(why, shut),
				}
			}
		}
	}
	type way struct{ region, node, by string }
	paths := map[way]*PathStatus{}
	type carried struct {
		flow    *live
		in, out int64
	}
	var all []carried
	for _, f := range p.live.of(name) {
		ok = true
		in, out := f.carried.Moved()
		all = append(all, carried{f, in, out})
		where := place{protocol: f.protocol, region: f.region, endpoint: endpointOf(a, f)}
		if a != nil {
			for i := range a.Listeners {
				if l := &a.Listeners[i]; l.Has(f.local.Port()) && l.Protocol == f.protocol {
					where.ports = l.Ports()
				}
			}
		}
		e := endpoints[where]
		if e == nil {
			e = &EndpointStatus{Protocol: where.protocol, Ports: where.ports, Region: where.region, Endpoint: where.endpoint, Gone: true}
			endpoints[where] = e
		}
		e.add(in, out)
		path, _ := f.now()
		by := way{f.region, path.Node, path.By}
		if paths[by] == nil {
			paths[by] = &PathStatus{Region: by.region, Node: by.node, By: by.by}
			paths[by].RTT, paths[by].Measured = length(v, path)
			if v != nil {
				paths[by].Path = v.Paths[path.first()]
			}
		}
		paths[by].add(in, out)
	}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, *e)
	}
	slices.SortFunc(s.Endpoints, func(x, y EndpointStatus) int {
		return cmp.Or(cmp.Compare(x.Protocol, y.Protocol), cmp.Compare(x.Ports, y.Ports), cmp.Compare(x.Region, y.Region), cmp.Compare(x.Endpoint, y.Endpoint))
	})
	for _, w := range slices.SortedFunc(maps.Keys(paths), func(x, y way) int {
		return cmp.Or(cmp.Compare(x.region, y.region), cmp.Compare(x.node, y.node), cmp.Compare(x.by, y.by))
	}) {
		s.Paths = append(s.Paths, *paths[w])
	}
	slices.SortFunc(all, func(x, y carried) int {
		return cmp.Or(cmp.Compare(y.in+y.out, x.in+x.out), x.flow.began.Compare(y.flow.began), x.flow.client.Compare(y.flow.client))
	})
	for _, c := range all[:min(top, len(all))] {
		f := c.flow
		path, moves := f.now()
		one := FlowStatus{
			Client: f.client, Local: f.local, Protocol: f.protocol, Region: f.region, Resource: f.resource, Node: path.Node, By: path.By, Moves: moves,
			Began: f.began, BytesIn: c.in, BytesOut: c.out, Target: f.endsAt(),
		}
		if leg, known := f.leg(); known && f.protocol == spec.TCP {
			one.RTT, one.Retransmitted, one.Known = leg.RTT, leg.Retransmitted, true
		}
		s.Top = append(s.Top, one)
	}
	return s, ok
}

// regionTakesNone is why no node of a listener's region takes flows; "": one does, be it that no other of its regions has one that is to.
func regionTakesNone(v *view.View, a *spec.Accelerator, l *spec.AcceleratorListener, region string) string {
	own, ok := v.Best(region, view.Origin)
	better := func(g spec.EndpointGroup) bool {
		s, ok := v.Best(g.Region, view.Origin)
		return ok && s < own
	}
	// With custom routing no other region takes its flows.
	if ok && (isCustom(a) || !slices.ContainsFunc(l.EndpointGroups, better)) {
		return ""
	}
	if over := v.PassedOver(region, view.Origin); len(over) > 0 {
		return "the region takes no flows: " + strings.Join(over, "; ")
	}
	return "no live node of the region takes the role origin"
}

// endsAt is the target of a flow, as far as it is known.
func (f *live) endsAt() netip.AddrPort {
	if at := flowlog.EndpointAddr(origin.Unpreserved(f.resource)); at.IsValid() {
		return at
	}
	return f.at()
}

// length is the round trip of a way, as it is measured now.
func length(v *view.View, c Candidate) (rtt time.Duration, ok bool) {
	switch {
	case v == nil:
		return 0, false
	case c.Node == v.Self:
		return 0, true
	case c.By == "":
		rtt, ok = v.RTT[c.Node]
		return rtt, ok
	}
	if v.Detour != nil {
		if d, is := v.Detour(c.Node); is && d.By == c.By {
			return d.RTT, true
		}
	}
	return 0, false
}

// of are the flows of an accelerator.
func (a *flows) of(accelerator string) (all []*live) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for l, t := range a.lanes {
		if l.accelerator == accelerator {
			all = slices.AppendSeq(all, maps.Keys(t.flows))
		}
	}
	return all
}

// all are the flows that are carried now.
func (a *flows) all() (all []*live) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.lanes {
		all = slices.AppendSeq(all, maps.Keys(t.flows))
	}
	return all
}
