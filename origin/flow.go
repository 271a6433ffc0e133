package origin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/health"
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
	var client netip.Addr
	if peer, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		client = peer.AddrPort().Addr().Unmap().WithZone("")
	}
	f, err := p.openFlow(context.Background(), listenerKey{loadBalancer, port}.flow(), client)
	if err != nil {
		p.counters.flowsRefused.Add(1)
		relay.Abort(conn)
		return
	}
	f.carry(conn)
}

// ServeFlow answers what edge nodes ask of the service "flow", and returns when the flow has ended. The resource is
// "targetGroup/<name>", "loadBalancer/<name>/<port>", or "endpoint/<accelerator>/<address>:<port>" for an endpoint that the
// accelerator gives by address; other addresses are not dialled. It accepts once a target has.
func (p *Plane) ServeFlow(in *backbone.Incoming) {
	p.serveFlow(in.Context(), in.Resource, in.Client.Addr(), in.Accept, in.Refuse)
}

func (p *Plane) serveFlow(ctx context.Context, resource string, client netip.Addr, accept func() net.Conn, refuse func(reason string)) {
	p.counters.flows.Add(1)
	f, err := p.openFlow(ctx, resource, client)
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
	f, err := p.openFlow(ctx, resource, client.Addr())
	if err != nil {
		p.counters.flowsRefused.Add(1)
		return nil, fmt.Errorf("flow of %s: %w", client, err)
	}
	p.evidence(f.key, f.client, false, "")
	if f.lease == nil {
		return f.target, nil
	}
	return f.traffic.leased(f.target, f.lease), nil
}

// flow is a flow that a target has taken.
type flow struct {
	plane   *Plane
	key     health.Key // of the target
	client  netip.Addr
	traffic *traffic // nil, as is the lease, for an endpoint given by address
	lease   *lease
	target  net.Conn
	idle    time.Duration
	// balanced flows came by a load balancer, which ends them with the health of their target (NLB). Those of an
	// accelerator stay (Global Accelerator).
	balanced bool
}

// openFlow finds a target and dials it; what cannot be dialed gives way to the next at once.
func (p *Plane) openFlow(ctx context.Context, resource string, client netip.Addr) (*flow, error) {
	t := p.table.Load()
	ctx, cancel := context.WithTimeout(ctx, flowTimeout)
	defer cancel()
	if name, ok := strings.CutPrefix(resource, "endpoint/"); ok {
		return p.openEndpoint(ctx, t, name, client)
	}
	g, idle, err := t.flow(resource)
	if err != nil {
		return nil, err
	}
	err = errNoTargets
	for addr := range g.candidates(p.config.View()) {
		if !errors.Is(err, errNoTargets) {
			p.counters.retries.Add(1)
		}
		f := &flow{
			plane: p, key: health.TargetKey(g.spec.Name, addr), client: client, traffic: g.traffic, idle: idle,
			balanced: strings.HasPrefix(resource, "loadBalancer/"),
		}
		began := time.Now()
		if f.target, f.lease, err = g.traffic.dial(ctx, addr); err == nil {
			return f, nil
		}
		if !gaveUp(ctx, err, time.Since(began)) {
			p.evidence(f.key, client, true, reason("dial", err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("%s: %w", resource, err)
}

// openEndpoint dials an endpoint that an accelerator gives by address: name is "<accelerator>/<address>:<port>".
func (p *Plane) openEndpoint(ctx context.Context, t *table, name string, client netip.Addr) (*flow, error) {
	accelerator, at, _ := strings.Cut(name, "/")
	addr, err := netip.ParseAddrPort(at)
	if err != nil {
		return nil, fmt.Errorf("endpoint of accelerator %s: %w", accelerator, err)
	}
	key, ok := endpointKey(t.spec.Accelerators[accelerator], p.config.Region, addr)
	if !ok {
		return nil, fmt.Errorf("%s is no endpoint of accelerator %s in this region", addr, accelerator)
	}
	f := &flow{plane: p, key: key, client: client, idle: networkIdle}
	began := time.Now()
	if f.target, err = p.dialTarget(ctx, addr); err != nil {
		if !gaveUp(ctx, err, time.Since(began)) {
			p.evidence(key, client, true, reason("dial", err))
		}
		return nil, err
	}
	return f, nil
}

// endpointKey is the key by which an accelerator's endpoint is known that flows to an address and port end at; not ok: no
// listener on that port has such a one in the region.
func endpointKey(a *spec.Accelerator, region string, at netip.AddrPort) (key health.Key, ok bool) {
	if a == nil {
		return "", false
	}
	for i := range a.Listeners {
		l := &a.Listeners[i]
		if !slices.ContainsFunc(l.PortRanges, func(r spec.PortRange) bool {
			return r.FromPort <= at.Port() && at.Port() <= max(r.FromPort, r.ToPort)
		}) {
			continue
		}
		for j := range l.EndpointGroups {
			g := &l.EndpointGroups[j]
			if g.Region != region {
				continue
			}
			for _, e := range g.Endpoints {
				if e.Address.IsValid() && e.Address == at.Addr() {
					return health.EndpointKey(a.Name, region, g.CheckAddr(e)), true
				}
			}
		}
	}
	return "", false
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
	p := f.plane
	p.flows.enter(f)
	stop := func() bool { return false }
	if f.lease != nil {
		stop = f.traffic.endWith(f.lease, client, f.target)
	}
	ended := f.settles()
	moved := relay.Pipe(client, f.target, f.idle)
	stop()
	p.flows.leave(f)
	ended(moved)
	p.counters.flowBytesIn.Add(uint64(moved.AToB))
	p.counters.flowBytesOut.Add(uint64(moved.BToA))
}

// flows are those that are carried, by the target or endpoint at which they end.
type flows struct {
	mu sync.Mutex
	at map[health.Key]map[*flow]struct{}
}

func (a *flows) enter(f *flow) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.at[f.key] == nil {
		a.at[f.key] = map[*flow]struct{}{}
	}
	a.at[f.key][f] = struct{}{}
}

func (a *flows) leave(f *flow) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if delete(a.at[f.key], f); len(a.at[f.key]) == 0 {
		delete(a.at, f.key)
	}
}

func (a *flows) count() (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, all := range a.at {
		n += len(all)
	}
	return n
}

// Flows is how many TCP flows this node carries to a target or endpoint now. HTTP requests are not among them.
func (p *Plane) Flows(key health.Key) int {
	p.flows.mu.Lock()
	defer p.flows.mu.Unlock()
	return len(p.flows.at[key])
}

// Terminate resets the flows that load balancers carry here to a target, and returns how many: to be called when the
// target has turned unhealthy (NLB, target_health_state.unhealthy.connection_termination.enabled, by default true).
// Flows of accelerators that end at a target group go on, as do HTTP requests. Where no target of the group is healthy
// nothing is reset: all take traffic then.
func (p *Plane) Terminate(key health.Key) int {
	name, at, ok := cutTarget(key)
	g := p.table.Load().groups.Get(name)
	if !ok || g == nil {
		return 0
	}
	pool := g.pool(p.config.View())
	if len(pool.Healthy) == 0 || slices.Contains(pool.Healthy, at) {
		return 0
	}
	p.flows.mu.Lock()
	var ending []*flow
	for f := range p.flows.at[key] {
		if f.balanced {
			ending = append(ending, f)
		}
	}
	p.flows.mu.Unlock()
	for _, f := range ending {
		relay.Abort(f.target) // the relay resets the client
	}
	p.counters.terminated.Add(uint64(len(ending)))
	return len(ending)
}

// cutTarget takes a key of a target apart (health.TargetKey).
func cutTarget(key health.Key) (group string, at netip.AddrPort, ok bool) {
	_, rest, _ := strings.Cut(string(key), "/")
	i := strings.LastIndexByte(rest, '/')
	if !key.IsTarget() || i < 0 {
		return "", netip.AddrPort{}, false
	}
	at, err := netip.ParseAddrPort(rest[i+1:])
	return rest[:i], at, err == nil
}
