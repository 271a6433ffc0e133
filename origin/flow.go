package origin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/origin/rule"
)

// flowTimeout bounds the search for a target that takes a flow; after it the flow is refused.
const flowTimeout = 10 * time.Second

// ServeConn carries one client's connection to a TCP listener of this node, and returns when it has ended. A flow that
// no target takes is reset.
func (p *Plane) ServeConn(loadBalancer string, port uint16, conn net.Conn) {
	p.counters.flows.Add(1)
	f, err := p.openFlow(context.Background(), listenerKey{loadBalancer, port}.flow())
	if err != nil {
		p.counters.flowsRefused.Add(1)
		relay.Abort(conn)
		return
	}
	f.carry(conn)
}

// ServeFlow answers what edge nodes ask of the service "flow", and returns when the flow has ended. The resource is
// "targetGroup/<name>" or "loadBalancer/<name>/<port>". It accepts once a target has.
func (p *Plane) ServeFlow(in *backbone.Incoming) {
	p.serveFlow(in.Context(), in.Resource, in.Accept, in.Refuse)
}

func (p *Plane) serveFlow(ctx context.Context, resource string, accept func() net.Conn, refuse func(reason string)) {
	p.counters.flows.Add(1)
	f, err := p.openFlow(ctx, resource)
	if err != nil {
		p.counters.flowsRefused.Add(1)
		refuse(err.Error())
		return
	}
	f.carry(accept())
}

// DialFlow connects to a target of what ServeFlow calls a resource, for those who carry the bytes themselves.
func (p *Plane) DialFlow(ctx context.Context, resource string, client netip.AddrPort) (net.Conn, error) {
	p.counters.flows.Add(1)
	f, err := p.openFlow(ctx, resource)
	if err != nil {
		p.counters.flowsRefused.Add(1)
		return nil, fmt.Errorf("flow of %s: %w", client, err)
	}
	return f.group.traffic.leased(f.target, f.lease), nil
}

// flow is a flow that a target has taken.
type flow struct {
	group  *group
	target net.Conn
	lease  *lease
	idle   time.Duration
}

// openFlow finds a target and dials it; what cannot be dialed gives way to the next at once.
func (p *Plane) openFlow(ctx context.Context, resource string) (*flow, error) {
	g, idle, err := p.table.Load().flow(resource)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, flowTimeout)
	defer cancel()
	err = errNoTargets
	for addr := range g.candidates(p.config.View()) {
		if !errors.Is(err, errNoTargets) {
			p.counters.retries.Add(1)
		}
		var conn net.Conn
		var l *lease
		if conn, l, err = g.traffic.dial(ctx, addr); err == nil {
			return &flow{group: g, target: conn, lease: l, idle: idle}, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("%s: %w", resource, err)
}

// flow finds the group behind a resource, and how long its flows may be idle.
func (t *table) flow(resource string) (*group, time.Duration, error) {
	kind, name, _ := strings.Cut(resource, "/")
	switch kind {
	case "targetGroup":
		if g := t.groups.Get(name); g != nil && g.local {
			return g, networkIdle, nil
		}
	case "loadBalancer":
		k, ok := parseListener(name)
		if l := t.listener(k); ok && l != nil && l.local && l.protocol == spec.TCP {
			_, g := t.decide(l, rule.Request{}, nil)
			return g, l.idle, nil
		}
	}
	return nil, 0, fmt.Errorf("%q is nothing in this region that takes flows", resource)
}

func (k listenerKey) flow() string { return fmt.Sprintf("loadBalancer/%s/%d", k.loadBalancer, k.port) }

// carry moves bytes between a client and the flow's target until both have ended, nothing has moved for the idle
// timeout, or the target has left its group for longer than the deregistration delay.
func (f *flow) carry(client net.Conn) {
	t := f.group.traffic
	stop := t.endWith(f.lease, client, f.target)
	moved := relay.Pipe(client, f.target, f.idle)
	stop()
	t.plane.counters.flowBytesIn.Add(uint64(moved.AToB))
	t.plane.counters.flowBytesOut.Add(uint64(moved.BToA))
}
