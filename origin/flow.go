package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/proxy"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/origin/rule"
	"github.com/perigee-net/perigee/origin/transparent"
)

// flowTimeout bounds the search for a target that takes a flow; after it the flow is refused.
const flowTimeout = 10 * time.Second

// StartConn has one client's connection to a TCP listener of this node be carried, and calls ended when that has ended: it returns when a target has taken
// the flow. One that no target takes is reset.
func (p *Plane) StartConn(loadBalancer string, port uint16, conn net.Conn, ended func()) {
	f, err := p.openFlow(context.Background(), listenerKey{loadBalancer, port}.flow(), ends{relay.AddrPort(conn.RemoteAddr()), relay.AddrPort(conn.LocalAddr())})
	if err != nil {
		relay.Abort(conn)
		ended()
		return
	}
	f.carry(conn, ended)
}

// StartFlow answers what edge nodes ask of the service "flow", and calls ended when the flow has ended: it returns when it has answered. The resource is
// "targetGroup/<name>" or, as Preserved and Told have it, with more, "loadBalancer/<name>/<port>", or "endpoint/<accelerator>/<address>:<port>" for an endpoint that the
// accelerator gives by address; other addresses are not dialled. It accepts once a target has.
func (p *Plane) StartFlow(in *backbone.Incoming, ended func()) {
	ctx, cancel := in.Context(), context.CancelFunc(func() {})
	if in.Left > 0 {
		ctx, cancel = within(ctx, in.Left)
	}
	defer cancel()
	p.startFlow(ctx, in.Resource, in.Client, in.Accept, in.Refuse, ended)
}

func (p *Plane) startFlow(ctx context.Context, resource string, client netip.AddrPort, accept func() net.Conn, refuse func(reason string), ended func()) {
	resource, tell := cutMark(resource, toldMark)
	f, err := p.openFlow(ctx, resource, ends{client: client})
	if err != nil {
		refuse(err.Error())
		ended()
		return
	}
	conn := accept()
	if tell {
		at := f.target.RemoteAddr().String()
		conn.Write(append([]byte{byte(len(at))}, at...)) // that it cannot be is seen when the flow is carried
	}
	f.carry(conn, ended)
}

// TakeFlow is StartFlow for an edge node that is this one: it returns a flow that a target has taken, whose bytes the caller carries, so that they
// go from socket to socket.
func (p *Plane) TakeFlow(ctx context.Context, resource string, client netip.AddrPort) (*Taken, error) {
	f, err := p.openFlow(ctx, resource, ends{client: client})
	if err != nil {
		return nil, fmt.Errorf("flow of %s: %w", client, err)
	}
	return &Taken{f.target, f}, nil
}

// Taken is a flow that a target has taken: the connection to it.
type Taken struct {
	net.Conn
	flow *flow
}

// Hold returns the connection to the target, as it is to be carried to and from the client's, and what is to be called when that has ended. From then
// on both are reset when the target is to be left.
func (t *Taken) Hold(client net.Conn) (target net.Conn, ended func(relay.Result)) {
	return t.Conn, t.flow.hold(client)
}

// preserved is at the end of a resource whose target is to see the client's address.
const preserved = "/clientIP"

// Preserved is a resource, "targetGroup/…" or "endpoint/…", as it is asked for if its target is to see the client's address instead of this node's.
// Who does not know how refuses it.
func Preserved(resource string, is bool) string {
	if is {
		return resource + preserved
	}
	return resource
}

// Unpreserved is the resource without that.
func Unpreserved(resource string) string {
	resource, _ = cutPreserved(resource)
	return resource
}

func cutPreserved(text string) (resource string, is bool) { return cutMark(text, preserved) }

// cutMark cuts what is at the end of a resource, which has a kind and a name all the same: a target group may be called as a mark is.
func cutMark(text, mark string) (resource string, is bool) {
	if resource, is = strings.CutSuffix(text, mark); !is || !strings.Contains(resource, "/") {
		return text, false
	}
	return resource, true
}

// seenAs is a resource without that, and the address by which its target is dialled for a client: none where it is not to see it. The error says why it
// may not.
func (t *table) seenAs(region, text string, client netip.AddrPort) (resource string, as netip.AddrPort, err error) {
	resource, is := cutPreserved(text)
	switch {
	case !is:
		return resource, as, nil
	case !client.IsValid():
		return resource, as, fmt.Errorf("%s: %w: it is not known", resource, transparent.ErrImpossible)
	case !t.mayPreserve(region, resource):
		return resource, as, fmt.Errorf("%s: %w: no endpoint of this region has clientIPPreservationEnabled for it", resource, transparent.ErrImpossible)
	}
	return resource, client, nil
}

// mayPreserve says whether the spec has targets of a resource see clients' addresses, by an endpoint of the region. Whoever else asks for it is refused: it would
// let the asker be anybody to the target.
func (t *table) mayPreserve(region, resource string) bool {
	kind, name, _ := strings.Cut(resource, "/")
	switch kind {
	case "targetGroup":
		for _, a := range t.spec.Accelerators {
			if preserves(a, region, func(e *spec.Endpoint) bool { return e.TargetGroup == name }) {
				return true
			}
		}
	case "endpoint":
		accelerator, address, _ := strings.Cut(name, "/")
		at, err := netip.ParseAddrPort(address)
		return err == nil && preserves(t.spec.Accelerators[accelerator], region, func(e *spec.Endpoint) bool { return e.Address == at.Addr() || e.Subnet.Contains(at.Addr()) })
	}
	return false
}

// preserves says whether an accelerator, which may be nil, has such an endpoint in the region whose targets see clients' addresses.
func preserves(a *spec.Accelerator, region string, such func(e *spec.Endpoint) bool) bool {
	if a == nil {
		return false
	}
	for i := range a.Listeners {
		for j := range a.Listeners[i].EndpointGroups {
			g := &a.Listeners[i].EndpointGroups[j]
			if g.Region != region {
				continue
			}
			for k := range g.Endpoints {
				if e := &g.Endpoints[k]; e.ClientIPPreservation && such(e) {
					return true
				}
			}
		}
	}
	return false
}

// toldMark is at the end of a resource whose flow begins with its target's address.
const toldMark = "/told"

// Told is a resource as it is asked for if it is to be told at which target the flow ends: of TCP the stream begins with that (ReadTarget), of UDP it
// comes by Told of the receiver. Nodes that do not know that refuse it (view.Member.Tells).
func Told(resource string) string { return resource + toldMark }

// ReadTarget reads the target's address from the beginning of a stream whose resource was Told.
func ReadTarget(conn io.Reader) (at netip.AddrPort, err error) {
	var room [1 + 255]byte
	if _, err = io.ReadFull(conn, room[:1]); err != nil {
		return at, fmt.Errorf("read the target's address: %w", err)
	}
	text := room[1 : 1+int(room[0])]
	if _, err = io.ReadFull(conn, text); err != nil {
		return at, fmt.Errorf("read the target's address: %w", err)
	}
	if at, err = netip.ParseAddrPort(string(text)); err != nil {
		return at, fmt.Errorf("read the target's address: %w", err)
	}
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port()), nil
}

// ends are a client's, as far as they are known: the backbone does not say at which address of an accelerator it arrived.
type ends struct{ client, local netip.AddrPort }

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
	// accelerator stay (Global Accelerator), unless it says otherwise.
	balanced bool
	conns    [2]net.Conn // that are carried: the client's and the target's
	leased   place       // among those of the lease
	settling place       // among those that do not count for their target yet
	settles  time.Time   // when it does
}

// openFlow finds a target and dials it, and counts the flow; what cannot be dialed gives way to the next at once.
func (p *Plane) openFlow(ctx context.Context, resource string, from ends) (f *flow, err error) {
	p.counters.flows.Add(1)
	if f, err = p.findTarget(ctx, resource, from); err != nil {
		p.counters.flowsRefused.Add(1)
	}
	return f, err
}

func (p *Plane) findTarget(ctx context.Context, resource string, from ends) (*flow, error) {
	client := from.client.Addr()
	t := p.table.Load()
	resource, as, err := t.seenAs(p.config.Region, resource, from.client)
	if err != nil {
		return nil, err
	}
	dial := p.dialerOf(as, p.config.DialFlow)
	ctx, cancel := within(ctx, flowTimeout)
	defer cancel()
	if name, ok := strings.CutPrefix(resource, "endpoint/"); ok {
		return p.openEndpoint(ctx, t, name, client, dial)
	}
	g, idle, err := t.flow(resource)
	if err != nil {
		return nil, err
	}
	err = errNoTargets
	left := len(g.spec.Targets)
	for addr := range g.candidates(p.config.View()) {
		if !errors.Is(err, errNoTargets) {
			p.counters.retries.Add(1)
		}
		f := &flow{
			plane: p, key: health.TargetKey(g.spec.Name, addr), client: client, traffic: g.traffic, idle: idle,
			balanced: strings.HasPrefix(resource, "loadBalancer/"),
		}
		began := time.Now()
		if f.target, f.lease, err = g.traffic.dial(ctx, dial, addr, share(ctx, left)); err == nil {
			if err = introduce(g.spec, f.target, from, addr); err == nil {
				return f, nil
			}
			relay.Abort(f.target)
		}
		if !gaveUp(ctx, err, addr, time.Since(began)) {
			p.evidence(f.key, client, true, reason("dial", err))
		}
		if left--; ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("%s: %w", resource, err)
}

// share is how long a target has to take a connection, of so many that are left: half of the time that there is, and the last one all.
func share(ctx context.Context, left int) time.Duration {
	ends, bounded := ctx.Deadline()
	if !bounded {
		return connectTimeout
	}
	all := time.Until(ends)
	if left > 1 {
		all /= 2
	}
	return min(connectTimeout, all)
}

// introduce tells a target from whom a flow is, where its group wants that. The header is the first of all bytes, so that it does not wait for
// room.
func introduce(g *spec.TargetGroup, conn net.Conn, from ends, target netip.AddrPort) error {
	if !g.ProxyProtocolV2 {
		return nil
	}
	if _, err := conn.Write(introduction(from, target)); err != nil {
		return &dialError{target, err}
	}
	return nil
}

// introduction is what a target is told so. Where it is not known at which address the client arrived, it is the target's.
func introduction(from ends, target netip.AddrPort) []byte {
	if !from.local.IsValid() {
		from.local = target
	}
	return proxy.Header(from.client, from.local)
}

// openEndpoint dials an endpoint that an accelerator gives by address: name is "<accelerator>/<address>:<port>".
func (p *Plane) openEndpoint(ctx context.Context, t *table, name string, client netip.Addr, dial dialer) (*flow, error) {
	addr, key, err := t.endpoint(p.config.Region, name)
	if err != nil {
		return nil, err
	}
	f := &flow{plane: p, key: key, client: client, idle: acceleratedIdle}
	began := time.Now()
	if f.target, err = p.dialTarget(ctx, dial, "tcp", addr, connectTimeout); err != nil {
		if !gaveUp(ctx, err, addr, time.Since(began)) {
			p.evidence(key, client, true, reason("dial", err))
		}
		return nil, err
	}
	return f, nil
}

// endpoint is what a flow of the resource "endpoint/<name>" ends at, and the key by which it is known.
func (t *table) endpoint(region, name string) (addr netip.AddrPort, key health.Key, err error) {
	accelerator, at, _ := strings.Cut(name, "/")
	if addr, err = netip.ParseAddrPort(at); err != nil {
		return addr, "", fmt.Errorf("endpoint of accelerator %s: %w", accelerator, err)
	}
	key, ok := endpointKey(t.spec.Accelerators[accelerator], spec.TCP, region, addr)
	if !ok {
		return addr, "", fmt.Errorf("%s is no endpoint of accelerator %s in this region", addr, accelerator)
	}
	return addr, key, nil
}

// endpointKey is the key by which an accelerator's endpoint is known that flows to an address and port end at; not ok: no
// listener of the protocol whose flows end at that port has such a one in the region.
func endpointKey(a *spec.Accelerator, protocol, region string, at netip.AddrPort) (key health.Key, ok bool) {
	if a == nil {
		return "", false
	}
	for i := range a.Listeners {
		l := &a.Listeners[i]
		if l.Protocol != protocol {
			continue
		}
		if a.Type == spec.CustomRoutingAccelerator && l.MayReach(region, at) {
			return health.EndpointKey(a.Name, region, at), true // nobody checks it
		}
		for j := range l.EndpointGroups {
			g := &l.EndpointGroups[j]
			if g.Region != region || !g.Takes(l, at.Port()) {
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
			return g, acceleratedIdle, nil
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

// carry has bytes be moved between a client and the flow's target until both have ended, nothing has moved for the idle
// timeout, or the target has left its group for longer than the deregistration delay.
func (f *flow) carry(client net.Conn, ended func()) {
	counted := f.hold(client)
	carried := relay.New(client, f.target, f.idle)
	carried.Panicked, carried.Turns = f.plane.config.Panicked, f.plane.config.Turns
	carried.Start(func(r relay.Result) {
		defer ended() // whatever panics
		counted(r)
	})
}

// hold has a flow be among those that are carried until it is said how it has ended.
func (f *flow) hold(client net.Conn) (ended func(relay.Result)) {
	p := f.plane
	p.flows.enter(f)
	f.conns = [2]net.Conn{client, f.target}
	if f.lease != nil && !f.lease.flows.add(&f.leased, f) { // its time was up just now
		go f.traffic.endOf(f.conns[:]...)
	}
	f.settle()
	return func(moved relay.Result) {
		if f.lease != nil {
			f.lease.flows.remove(&f.leased)
		}
		p.flows.leave(f)
		f.settled(moved)
		p.counters.flowBytesIn.Add(uint64(moved.AToB))
		p.counters.flowBytesOut.Add(uint64(moved.BToA))
	}
}

// held are flows that something becomes of together, in the order in which they came. The zero value has none.
type held struct {
	mu    sync.Mutex
	head  place // of a ring, once there were some
	ended bool
}

// place is that of a flow among others; the zero one is in none. The mutex of those guards it.
type place struct {
	prev, next *place
	flow       *flow
}

// add takes a flow in; false: they have ended.
func (h *held) add(p *place, f *flow) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return false
	}
	h.push(p, f)
	return true
}

// push is add with the lock held.
func (h *held) push(p *place, f *flow) {
	if h.head.next == nil {
		h.head.prev, h.head.next = &h.head, &h.head
	}
	p.flow, p.prev, p.next = f, h.head.prev, &h.head
	p.prev.next, p.next.prev = p, p
}

// remove takes a flow out. It says whether it was in.
func (h *held) remove(p *place) (was bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.drop(p)
}

// drop is remove with the lock held.
func (h *held) drop(p *place) (was bool) {
	if p.next == nil {
		return false
	}
	p.prev.next, p.next.prev = p.next, p.prev
	p.prev, p.next = nil, nil
	return true
}

// first is the place of the flow that came first; nil: there is none. The lock is held.
func (h *held) first() *place {
	if h.head.next == nil || h.head.next == &h.head {
		return nil
	}
	return h.head.next
}

// end takes all out, and no more in, and has each end.
func (h *held) end(each func(*flow)) {
	h.mu.Lock()
	h.ended = true
	var all []*flow
	for p := h.first(); p != nil; p = h.first() {
		h.drop(p)
		all = append(all, p.flow)
	}
	h.mu.Unlock()
	for _, f := range all {
		each(f)
	}
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
// Flows of accelerators that end at a target group go on unless the accelerator terminates them too, and HTTP requests do. Where no
// target of the group is healthy nothing is reset: all take traffic then.
func (p *Plane) Terminate(key health.Key) int {
	name, at, ok := cutTarget(key)
	t := p.table.Load()
	g := t.groups.Get(name)
	if !ok || g == nil {
		return 0
	}
	pool := g.pool(p.config.View())
	if len(pool.Healthy) == 0 || slices.Contains(pool.Healthy, at) {
		return 0
	}
	accelerated := terminated(t.spec, p.config.Region, name)
	p.flows.mu.Lock()
	var ending []*flow
	for f := range p.flows.at[key] {
		if f.balanced || accelerated {
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

// terminated says whether an accelerator has its flows to a target group of a region end with the health of their target.
func terminated(s *spec.Spec, region, group string) bool {
	for _, a := range s.Accelerators {
		for _, l := range a.Listeners {
			for _, g := range l.EndpointGroups {
				if g.UnhealthyConnectionTermination && g.Region == region &&
					slices.ContainsFunc(g.Endpoints, func(e spec.Endpoint) bool { return e.TargetGroup == group }) {
					return true
				}
			}
		}
	}
	return false
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
