package node

import (
	"context"
	"math"

	"github.com/perigee-net/perigee/cluster/event"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/anycast"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/node/metrics"
)

// timeline is a part of this node's events, for the API: what came after one, or else the newest.
func (n *Node) timeline(ctx context.Context, q api.EventQuery) (api.EventList, error) {
	if q.Subject != "" {
		return n.timelineOf(ctx, q), nil
	}
	events, lost := n.events.Since(q.After, q.Limit)
	if q.After == 0 {
		all, before := n.events.Since(0, math.MaxInt)
		events = all[max(0, len(all)-q.Limit):]
		lost = before + uint64(len(all)-len(events))
	}
	if len(events) == 0 && q.Wait > 0 {
		waiting, cancel := context.WithTimeout(ctx, q.Wait)
		defer cancel()
		if n.events.Next(waiting, q.After) == nil {
			events, lost = n.events.Since(q.After, q.Limit)
		}
	}
	if events == nil {
		events = []api.Event{}
	}
	return api.EventList{Node: n.cfg.Name, Events: events, Lost: lost}, nil
}

// timelineOf is the events of one subject.
func (n *Node) timelineOf(ctx context.Context, q api.EventQuery) api.EventList {
	ctx, cancel := context.WithTimeout(ctx, q.Wait)
	defer cancel()
	list := api.EventList{Node: n.cfg.Name, Events: n.events.Of(q.Subject, q.After)}
	for seen := q.After; len(list.Events) == 0 && n.events.Next(ctx, seen) == nil; list.Events = n.events.Of(q.Subject, q.After) {
		seen = n.events.Newest()
	}
	if over := len(list.Events) - q.Limit; over > 0 && q.After == 0 {
		list.Events, list.Lost = list.Events[over:], uint64(over)
	} else if over > 0 {
		list.Events = list.Events[:q.Limit]
	}
	if list.Events == nil {
		list.Events = []api.Event{}
	}
	return list
}

// tellLead tells who leads.
func (n *Node) tellLead(leader string) {
	if leader == "" {
		n.events.Add(event.Leader, "leader", "nobody leads: changes are refused, the data plane goes on")
		return
	}
	n.events.Add(event.Leader, "leader", leader+" leads")
}

// eachPath emits one number of what is measured of the way to each node that is reached.
func (n *Node) eachPath(of func(view.Path) float64) func(emit func(float64, ...string)) {
	return func(emit func(float64, ...string)) {
		v := n.view.Get()
		for _, one := range v.Members {
			if p, measured := v.Paths[one.Name]; measured {
				emit(of(p), one.Name, one.Region)
			}
		}
	}
}

// makeMetrics makes what the node tells Prometheus: its counters, and what is observed by name. All labels are bounded by what is in
// the cluster: nodes, regions, kinds.
func (n *Node) makeMetrics() {
	m := metrics.New()
	n.metrics = m
	m.Runtime()
	m.Counters(n.counters)
	m.Gauge("members", "live nodes by region and state: live, leaving, drained, unreachable", []string{"region", "state"}, func(emit func(float64, ...string)) {
		v := n.view.Get()
		count := map[[2]string]float64{}
		var order [][2]string
		for _, one := range v.Members {
			key := [2]string{one.Region, memberState(v, one)}
			if count[key] == 0 {
				order = append(order, key)
			}
			count[key]++
		}
		for _, key := range order {
			emit(count[key], key[0], key[1])
		}
	})
	m.Gauge("link_round_trip_seconds", "measured round trip over the backbone", []string{"peer", "region"}, func(emit func(float64, ...string)) {
		v := n.view.Get()
		for _, one := range v.Members {
			if rtt, up := v.RTT[one.Name]; up {
				emit(rtt.Seconds(), one.Name, one.Region)
			}
		}
	})
	m.Gauge("link_loss_ratio", "share of the packets sent to a node that were lost of late, those made good included", []string{"peer", "region"}, n.eachPath(func(p view.Path) float64 { return p.Loss }))
	m.Gauge("link_parity", "whether what is sent to a node has parity", []string{"peer", "region"}, n.eachPath(func(p view.Path) float64 { return oneIf(p.Parity) }))
	m.Gauge("link_sent_bits_per_second", "what is sent to a node over the backbone", []string{"peer", "region"}, n.eachPath(func(p view.Path) float64 { return p.Sent }))
	m.Gauge("link_received_bits_per_second", "what a node sends here over the backbone", []string{"peer", "region"}, n.eachPath(func(p view.Path) float64 { return p.Received }))
	m.Gauge("link_carried_bits_per_second", "the most that arrived at a node in a second of the last ten minutes, by carrier (quic, tcp)", []string{"peer", "region", "carrier"}, func(emit func(float64, ...string)) {
		v := n.view.Get()
		for _, one := range v.Members {
			if p, up := v.Paths[one.Name]; up {
				emit(p.Carried, one.Name, one.Region, "quic")
				emit(p.CarriedTCP, one.Name, one.Region, "tcp")
			}
		}
	})
	m.Gauge("link_up", "whether the backbone reaches a live node", []string{"peer", "region"}, func(emit func(float64, ...string)) {
		v := n.view.Get()
		for _, one := range v.Members {
			if one.Name == n.cfg.Name {
				continue
			}
			_, up := v.RTT[one.Name]
			emit(oneIf(up), one.Name, one.Region)
		}
	})
	m.Gauge("health_verdicts", "merged verdicts by kind (target, endpoint, check) and state", []string{"kind", "state"}, func(emit func(float64, ...string)) {
		count := map[[2]string]float64{}
		for _, row := range n.view.Get().Health.All() {
			kind := "target"
			switch {
			case row.Key.IsCheck():
				kind = "check"
			case row.Key.IsEndpoint():
				kind = "endpoint"
			}
			state := "unhealthy"
			if row.Healthy {
				state = "healthy"
			}
			count[[2]string{kind, state}]++
		}
		for _, kind := range []string{"check", "endpoint", "target"} {
			for _, state := range []string{"healthy", "unhealthy"} {
				emit(count[[2]string{kind, state}], kind, state)
			}
		}
	})
	m.Gauge("bgp_session_up", "whether a router takes what this node announces", []string{"neighbor"}, func(emit func(float64, ...string)) {
		if n.speaker == nil {
			return
		}
		for _, s := range n.speaker.Sessions().Get() {
			emit(oneIf(s.State == anycast.Established), s.Neighbor.Address.String())
		}
	})
	m.Gauge("orders", "what is in force by kind: block, drain; and whether this node is fenced", []string{"kind"}, func(emit func(float64, ...string)) {
		blocks, drains := 0, 0
		if e := n.orders.effects.Load(); e != nil {
			blocks, drains = len(e.Blocks), len(e.Drains)
		}
		emit(float64(blocks), "block")
		emit(float64(drains), "drain")
		emit(oneIf(n.isFenced()), "fence")
	})
	for _, by := range []struct {
		name, help, label string
		each              func(emit func(n uint64, labels ...string))
	}{
		{"dns_answers_by_zone_total", "answers of a zone by rcode; of the 101st zone that is asked for and more together", "zone", n.names.AnswersByZone},
		{"dns_answers_by_type_total", "answers of zones by the type that was asked for, and rcode", "type", n.names.AnswersByType},
		{"dns_answers_by_policy_total", "answers of zones by routing policy, and rcode", "policy", n.names.AnswersByPolicy},
	} {
		m.Counter(by.name, by.help, []string{by.label, "rcode", "pop"}, func(emit func(float64, ...string)) {
			by.each(func(count uint64, labels ...string) { emit(float64(count), labels[0], labels[1], n.cfg.POP) })
		})
	}
	ways := []string{"accelerator", "endpoint_region"}
	flows := []string{"accelerator", "endpoint_region", "protocol"}
	m.Counter("accelerator_new_flows_total", "flows by accelerator, the region where they end, and protocol", flows, func(emit func(float64, ...string)) {
		for _, t := range n.accelerator.Traffic() {
			emit(float64(t.NewFlows), t.Accelerator, t.Region, t.Protocol)
		}
	})
	m.Gauge("accelerator_open_flows", "flows now by accelerator, the region where they end, and protocol", flows, func(emit func(float64, ...string)) {
		for _, t := range n.accelerator.Traffic() {
			emit(float64(t.Flows), t.Accelerator, t.Region, t.Protocol)
		}
	})
	m.Counter("accelerator_processed_bytes_total", "bytes from clients (in) and to them (out)", append(flows, "direction"), func(emit func(float64, ...string)) {
		for _, t := range n.accelerator.Traffic() {
			emit(float64(t.BytesIn), t.Accelerator, t.Region, t.Protocol, "in")
			emit(float64(t.BytesOut), t.Accelerator, t.Region, t.Protocol, "out")
		}
	})
	m.Gauge("accelerator_endpoints", "endpoints with weight by accelerator, region, and whether they can take flows, or nobody checks that", append(ways, "state"), func(emit func(float64, ...string)) {
		for _, e := range n.accelerator.Endpoints() {
			if e.Unchecked > 0 { // all of them: a count of 0 that are healthy would be an alarm
				emit(float64(e.Unchecked), e.Accelerator, e.Region, "unchecked")
				continue
			}
			emit(float64(e.Healthy), e.Accelerator, e.Region, "healthy")
			emit(float64(e.All-e.Healthy), e.Accelerator, e.Region, "unhealthy")
		}
	})
	n.flowMetrics(m)
	m.Gauge("node_info", "1: what this node is", []string{"node", "pop", "region"}, func(emit func(float64, ...string)) {
		emit(1, n.cfg.Name, n.cfg.POP, n.cfg.Region)
	})
	m.Gauge("revision", "the newest that is known, and the one that runs", []string{"of"}, func(emit func(float64, ...string)) {
		state := n.agreed.Get()
		emit(float64(state.Own.Revision), "own")
		emit(float64(n.running.Get().spec.Revision), "running")
		emit(float64(state.Revision), "spec")
	})
	n.acked = m.Histogram("order_acknowledged_seconds", "from an order to its acknowledgement by another node", []float64{.01, .025, .05, .1, .15, .2, .3, .5, 1, 2, 5})
}

// oneIf is 1 for what is so, and else 0.
func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

func memberState(v *view.View, m view.Member) string {
	switch {
	case m.Leaving:
		return "leaving"
	case m.Drained != "":
		return "drained"
	case v.Unreachable[m.Name]:
		return "unreachable"
	}
	return "live"
}
