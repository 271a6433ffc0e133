package node

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/event"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/accelerator"
	"github.com/perigee-net/perigee/edge/accelerator/flowlog"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/node/metrics"
)

// openFlowLog opens where flows of accelerators are written down; nil: nowhere.
func (n *Node) openFlowLog() (*flowlog.Log, error) {
	if n.cfg.FlowLog == "" || !n.has(view.Edge) {
		return nil, nil
	}
	l, err := flowlog.Open(flowlog.Config{Path: n.cfg.FlowLog, JSON: n.cfg.FlowLogFormat == FlowLogJSON, Log: n.cfg.Log})
	if err != nil {
		return nil, fmt.Errorf("--flow-log: %w", err)
	}
	n.onClose("flow log", func(context.Context) error { return l.Close() })
	return l, nil
}

// reviewFlows has accelerators' established flows end that are to by what turned just now, and adds that to the events.
func (n *Node) reviewFlows(s *spec.Spec, by told) {
	for _, e := range n.accelerator.Review() {
		fate := "are reset"
		if e.After > 0 {
			fate = "are reset in " + e.After.String()
		}
		n.events.Add(event.Route, "accelerator/"+e.Accelerator, fmt.Sprintf("accelerator %s, %v: %d flows to %s in %s %s: %s",
			e.Accelerator, e.Local, e.Flows, e.Resource, e.Region, fate, e.Why), by.causes(s, e)...)
	}
}

// causes are the events that had flows end: the revision, or the verdicts that their endpoint rests on.
func (t told) causes(s *spec.Spec, e accelerator.Ended) (ids []uint64) {
	var on []string // what verdicts begin with
	kind, name, _ := strings.Cut(e.Resource, "/")
	switch {
	case e.Why != accelerator.Unhealthy:
	case kind == "endpoint":
		on = []string{"endpoint/" + e.Accelerator + "/" + e.Region + "/"}
	case kind == "targetGroup":
		on = []string{"target/" + name + "/"}
	default:
		name, _, _ = strings.Cut(name, "/")
		if lb := s.LoadBalancers[name]; lb != nil {
			for _, group := range lb.TargetGroups() {
				on = append(on, "target/"+group+"/")
			}
		}
	}
	for i, one := range t.effects {
		if e.Why != accelerator.Unhealthy && one.Kind == event.Spec ||
			one.Kind == event.Health && slices.ContainsFunc(on, func(p string) bool { return strings.HasPrefix(one.Subject, p) }) {
			ids = append(ids, t.ids[i])
		}
	}
	return ids
}

const (
	// askTime bounds how long another node may take to say what it carries.
	askTime = 2 * time.Second
	// maxAsked bounds how many nodes are asked at once.
	maxAsked = 32
)

// acceleratorStatus is what goes on at an accelerator, on all nodes that take flows or on one of them.
func (n *Node) acceleratorStatus(ctx context.Context, q api.AcceleratorQuery) (api.AcceleratorStatus, error) {
	here, err := n.nodeAccelerator(q)
	if err != nil {
		return here, err
	}
	var asked []view.Member
	for _, m := range n.view.Get().Members {
		if m.Has(view.Edge) && (q.Node == "" || q.Node == m.Name) {
			asked = append(asked, m)
		}
	}
	if q.Node != "" && len(asked) == 0 {
		return here, &api.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("no live node %.80q takes flows", q.Node)}
	}
	said := make([]api.AcceleratorStatus, len(asked))
	room := make(chan struct{}, maxAsked)
	var wait sync.WaitGroup
	for i, m := range asked {
		if m.Name == n.cfg.Name {
			said[i] = here
			continue
		}
		wait.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			ctx, cancel := context.WithTimeout(ctx, askTime)
			defer cancel()
			var err error
			if said[i], err = n.peerAPI(m.Name, m.Control.String()).NodeAccelerator(ctx, q); err != nil {
				said[i] = api.AcceleratorStatus{Nodes: []api.AcceleratorNode{{Name: m.Name, POP: m.POP, Error: err.Error()}}}
			}
		})
	}
	wait.Wait()
	return joinAccelerator(here, said, q.Top), nil
}

// joinAccelerator is what nodes say, together: health and what there is are as here.
func joinAccelerator(here api.AcceleratorStatus, said []api.AcceleratorStatus, top int) api.AcceleratorStatus {
	all := api.AcceleratorStatus{Node: here.Node, Name: here.Name, Enabled: here.Enabled, Nodes: []api.AcceleratorNode{}, Paths: []api.AcceleratorPath{}, Top: []api.AcceleratorFlow{}}
	type place struct{ protocol, ports, region, endpoint string }
	endpoints := map[place]*api.AcceleratorEndpoint{}
	put := func(e api.AcceleratorEndpoint) {
		where := place{e.Protocol, e.Ports, e.Region, e.Endpoint}
		if endpoints[where] == nil {
			endpoints[where] = &e
			return
		}
		endpoints[where].FlowCounts = sum(endpoints[where].FlowCounts, e.FlowCounts)
	}
	for _, e := range here.Endpoints {
		e.FlowCounts = api.FlowCounts{}
		if !e.Gone {
			put(e)
		}
	}
	for _, s := range said {
		all.FlowCounts = sum(all.FlowCounts, s.FlowCounts)
		all.Nodes, all.Paths, all.Top = append(all.Nodes, s.Nodes...), append(all.Paths, s.Paths...), append(all.Top, s.Top...)
		for _, e := range s.Endpoints {
			if e.Flows > 0 || !e.Gone {
				put(e)
			}
		}
	}
	all.Endpoints = make([]api.AcceleratorEndpoint, 0, len(endpoints))
	for _, e := range endpoints {
		all.Endpoints = append(all.Endpoints, *e)
	}
	slices.SortFunc(all.Endpoints, func(x, y api.AcceleratorEndpoint) int {
		return cmp.Or(cmp.Compare(x.Protocol, y.Protocol), cmp.Compare(x.Ports, y.Ports), cmp.Compare(x.Region, y.Region), cmp.Compare(x.Endpoint, y.Endpoint))
	})
	slices.SortStableFunc(all.Top, func(x, y api.AcceleratorFlow) int { return cmp.Compare(y.BytesIn+y.BytesOut, x.BytesIn+x.BytesOut) })
	all.Top = all.Top[:min(top, len(all.Top))]
	return all
}

func sum(a, b api.FlowCounts) api.FlowCounts {
	return api.FlowCounts{Flows: a.Flows + b.Flows, BytesIn: a.BytesIn + b.BytesIn, BytesOut: a.BytesOut + b.BytesOut}
}

// nodeAccelerator is what goes on at an accelerator on this node.
func (n *Node) nodeAccelerator(q api.AcceleratorQuery) (api.AcceleratorStatus, error) {
	s, ok := n.accelerator.Status(q.Name, q.Top)
	if !ok {
		return api.AcceleratorStatus{}, &api.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("there is no accelerator %.80q", q.Name)}
	}
	all := api.AcceleratorStatus{
		Node: n.cfg.Name, Name: q.Name, Enabled: s.Enabled, Endpoints: []api.AcceleratorEndpoint{}, Paths: []api.AcceleratorPath{}, Top: []api.AcceleratorFlow{},
	}
	for _, e := range s.Endpoints {
		c := counts(e.Moved)
		all.FlowCounts = sum(all.FlowCounts, c)
		all.Endpoints = append(all.Endpoints, api.AcceleratorEndpoint{
			Protocol: e.Protocol, Ports: e.Ports, Region: e.Region, Endpoint: e.Endpoint, Weight: e.Weight, TrafficDial: e.Dial,
			Healthy: e.Healthy, State: string(e.State), Reason: e.Reason, Gone: e.Gone, FlowCounts: c,
		})
	}
	for _, p := range s.Paths {
		all.Paths = append(all.Paths, api.AcceleratorPath{
			From: n.cfg.Name, To: p.Node, By: p.By, Region: p.Region, RTT: p.RTT,
			Loss: p.Loss, Repaired: p.Parity, Carried: max(p.Carried, p.CarriedTCP), FlowCounts: counts(p.Moved),
		})
	}
	for _, f := range s.Top {
		one := api.AcceleratorFlow{
			Node: n.cfg.Name, Client: f.Client, Local: f.Local, Protocol: f.Protocol, Region: f.Region, Endpoint: f.Resource, Target: f.Target, To: f.Node, By: f.By, Moves: f.Moves,
			Began: f.Began, BytesIn: f.BytesIn, BytesOut: f.BytesOut, RTT: f.RTT,
		}
		if f.Known {
			one.Retransmitted = &f.Retransmitted
		}
		all.Top = append(all.Top, one)
	}
	all.Nodes = []api.AcceleratorNode{{Name: n.cfg.Name, POP: n.cfg.POP, Doors: n.closedOf("Accelerator " + all.Name), FlowCounts: all.FlowCounts}}
	return all, nil
}

func counts(m accelerator.Moved) api.FlowCounts {
	return api.FlowCounts{Flows: m.Flows, BytesIn: m.BytesIn, BytesOut: m.BytesOut}
}

// portMappings is where the ports of a custom routing accelerator lead, by the spec that runs here.
func (n *Node) portMappings(q api.PortMappingsQuery) (api.PortMappingList, error) {
	s := n.running.Get().spec
	a := s.Accelerators[q.Name]
	if a == nil {
		return api.PortMappingList{}, &api.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("there is no accelerator %.80q", q.Name)}
	}
	if a.Type != spec.CustomRoutingAccelerator {
		return api.PortMappingList{}, badRequest("accelerator %s is of type %s: only those of type %s map ports", a.Name, a.Type, spec.CustomRoutingAccelerator)
	}
	wanted := func(netip.AddrPort) bool { return true }
	if q.Destination != "" {
		if at, err := netip.ParseAddrPort(q.Destination); err == nil {
			wanted = func(d netip.AddrPort) bool { return d == at }
		} else if at, err := netip.ParseAddr(q.Destination); err == nil {
			wanted = func(d netip.AddrPort) bool { return d.Addr() == at }
		} else {
			return api.PortMappingList{}, badRequest("destination %.80q: want an address, or an address and port", q.Destination)
		}
	}
	list := api.PortMappingList{Name: a.Name, Revision: s.Revision, IPAddresses: a.IPAddresses, Mappings: []api.PortMapping{}}
	for i := range a.Listeners {
		for m := range a.Listeners[i].PortMappings() {
			if !wanted(m.Destination) {
				continue
			}
			state := api.TrafficDenied
			if m.Allowed {
				state = api.TrafficAllowed
			}
			list.Mappings = append(list.Mappings, api.PortMapping{
				AcceleratorPort: int(m.ListenerPort), Protocol: m.Protocol, EndpointGroupRegion: m.Region, Subnet: m.Subnet,
				DestinationSocketAddress: m.Destination, DestinationTrafficState: state,
			})
		}
	}
	return list, nil
}

// flowMetrics tells of accelerators' flows by endpoint and by path.
func (n *Node) flowMetrics(m *metrics.Set) {
	for _, by := range []struct {
		name, what string
		labels     []string
		each       func() []accelerator.Counted
	}{
		{"endpoint", "endpoint", []string{"accelerator", "endpoint_region", "endpoint"}, n.accelerator.ByEndpoint},
		{"path", "path to the node that dials the endpoint", []string{"endpoint_region", "to", "by"}, n.accelerator.ByPath},
	} {
		m.Counter("accelerator_"+by.name+"_new_flows_total", "flows by "+by.what, by.labels, func(emit func(float64, ...string)) {
			for _, c := range by.each() {
				emit(float64(c.NewFlows), c.Labels[:]...)
			}
		})
		m.Gauge("accelerator_"+by.name+"_open_flows", "flows now by "+by.what, by.labels, func(emit func(float64, ...string)) {
			for _, c := range by.each() {
				emit(float64(c.Flows), c.Labels[:]...)
			}
		})
		m.Counter("accelerator_"+by.name+"_processed_bytes_total", "bytes of flows by "+by.what+", from clients (in) and to them (out)",
			append(by.labels, "direction"), func(emit func(float64, ...string)) {
				for _, c := range by.each() {
					emit(float64(c.BytesIn), append(c.Labels[:], "in")...)
					emit(float64(c.BytesOut), append(c.Labels[:], "out")...)
				}
			})
	}
	for _, by := range []struct {
		name, what string
		labels     []string
		each       func() []accelerator.Counted
	}{
		{"accelerator_flows_rejected_total", "flows that were refused, by why, as flow logs say it", []string{"accelerator", "listener", "reason"}, n.accelerator.Rejected},
		{"accelerator_flows_ended_total", "flows that have ended, by how, as flow logs say it", []string{"accelerator", "endpoint_region", "how"}, n.accelerator.Ended},
	} {
		m.Counter(by.name, by.what, by.labels, func(emit func(float64, ...string)) {
			for _, c := range by.each() {
				emit(float64(c.NewFlows), c.Labels[:]...)
			}
		})
	}
	m.Gauge("accelerator_endpoint_healthy", "1: an endpoint can take flows, as this node sees it; 0: it can't; none of custom routing, which nobody checks", []string{"accelerator", "listener", "endpoint_region", "endpoint"}, func(emit func(float64, ...string)) {
		for e := range n.accelerator.Healths {
			emit(oneIf(e.Healthy), e.Accelerator, e.Listener, e.Region, e.Endpoint)
		}
	})
}
