// Package accelerator takes the flows of TCP and UDP that reach the static addresses of accelerators, and carries each over the
// backbone to the nearest region with a healthy endpoint (Global Accelerator). The flow ends here, close to the
// client, and a second one begins at the endpoint's region.
//
// It opens no listener (node/front does), measures nothing (the view does) and dials no target (origin does, on a node
// of the endpoint's region).
//
// When things break: a node or endpoint that cannot be dialled gives way to the next at once, in the same region
// and then in others, whatever health says of them; with nothing healthy in the three closest regions the closest is
// tried all the same. A flow that nobody takes is reset. An established flow keeps its endpoint: it ends with that, or is reset where the
// spec says so (Review). Where its way over the backbone is lost it goes on by another, if both ends meet in time; one that breaks is reset at the client,
// never ended as if whole. A flow of UDP has no end that its client could be
// told: where its way is gone, or the spec says so, the next datagram takes another.
package accelerator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/kept"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/accelerator/flowlog"
	"github.com/perigee-net/perigee/origin"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/origin/relay/loop"
)

const (
	// maxFlows bounds the flows of all accelerators on this node, and those it carries on for others; more are reset, or refused.
	maxFlows = 65536
	// maxPorts bounds the ports of one accelerator that are opened, each of which is a socket for each address; a spec with
	// more is refused.
	maxPorts = spec.MaxAcceleratorPorts
)

// flowService is what origin answers flows under, on the backbone.
const flowService = "flow"

// detourService is what nodes carry flows on under: the resource is the node, a slash, and what flowService is asked there.
const detourService = "detour"

// carriedIdle is when a flow ends that is carried on here: who took it from the client ends it before.
const carriedIdle = spec.MaxAcceleratorIdle + 10*time.Second

// carriedGrace is how much longer a flow of datagrams may be idle that is carried on here than where it was taken.
const carriedGrace = 10 * time.Second

// Config is what a Plane is given.
type Config struct {
	// View is what is observed now; nil knows nothing, so no flow has an endpoint.
	View func() *view.View
	// Dial opens a stream to a node over the backbone.
	Dial func(ctx context.Context, node string, h backbone.Header) (net.Conn, error)
	// DialLasting opens a stream by a way, for a flow that is to go on by others when that is lost (backbone.DialLasting); nil: flows end with their way.
	DialLasting func(ctx context.Context, way backbone.Way, ways func() []backbone.Way) (net.Conn, error)
	// Take opens a flow to an endpoint by this node itself, named as by the header that Dial would send; nil: Dial is asked. It returns as a
	// Taken what is to be carried here alone.
	Take func(ctx context.Context, resource string, client netip.AddrPort) (net.Conn, error)
	// Prospect is what Take would dial, for flows whose client an event loop holds (StartSoon); nil: they are all for Start.
	Prospect func(resource string, client netip.AddrPort) (Prospect, bool)
	// Open opens a flow of datagrams to a node over the backbone (backbone.OpenDatagrams).
	Open func(node string, h backbone.Header, large bool, to backbone.Receiver) (Datagrams, error)
	// Blocked says whose datagrams are not taken; nil: nobody's. (Connections are refused at the door.)
	Blocked func(netip.Addr) bool
	// FlowLog is where flows of accelerators are written down that want it; nil: nowhere.
	FlowLog *flowlog.Log
	// Leg is what is known of the way to a client; nil: relay.LegOf.
	Leg func(net.Conn) (relay.Leg, bool)
	// Turns are those in which the kernel moves bytes from socket to socket, of all that do so in this process; nil: it has them whenever it can.
	Turns *relay.Turns
	// Panicked is told of what panics while a flow is carried, which is reset then; nil: it ends the process.
	Panicked func(value any)
	Log      *slog.Logger
}

// Plane serves the accelerators. All its methods may be called at once.
type Plane struct {
	config  Config
	table   atomic.Pointer[table]
	apply   sync.Mutex // held by Apply
	count   counters
	tallies tallies[way]
	more    moreTallies
	live    flows
	early   atomic.Int64 // bytes of room for what clients say before somebody has their flows
	udp     datagrams

	carriedFlows carriedFlows // of datagrams, of others
}

// table is one spec, compiled: the listener of each address and port. It is immutable, and shares what did not change
// with the table of the spec before.
type table struct {
	spec *spec.Spec
	at   *kept.Map[place, []span] // sorted, and apart
	open []Listener               // of at, sorted

	servers sync.Map // *spec.AcceleratorListener: func() map[serverID]*quicServer, of those that were asked for
}

// place is an address, as one protocol has its ports.
type place struct {
	address  netip.Addr
	protocol string
}

// span is ports of one place, both ends included, and who listens there.
type span struct {
	from, to uint16
	open     []uint16 // of custom routing, those of them that are opened
	entry
}

type entry struct {
	accelerator *spec.Accelerator
	listener    *spec.AcceleratorListener
}

// entry finds who listens on an address and port.
func (t *table) entry(protocol string, at netip.AddrPort) (entry, bool) {
	spans := t.at.Get(place{at.Addr(), protocol})
	i, _ := slices.BinarySearchFunc(spans, at.Port(), func(s span, port uint16) int { return cmp.Compare(s.to, port) })
	if i < len(spans) && spans[i].from <= at.Port() {
		return spans[i].entry, true
	}
	return entry{}, false
}

// Listener is an address and port to open for an accelerator, on every node with the edge role.
type Listener struct {
	Accelerator string
	Protocol    string // spec.TCP: serve ConnHandler; spec.UDP: serve ServePackets
	Address     netip.AddrPort
}

// New makes a Plane without accelerators.
func New(c Config) *Plane {
	if c.View == nil {
		c.View = func() *view.View { return nil }
	}
	if c.Leg == nil {
		c.Leg = relay.LegOf
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	p := &Plane{config: c}
	p.table.Store(&table{spec: &spec.Spec{}})
	p.udp.table = newFlowTable(maxDatagramFlows, maxClientFlows)
	return p
}

// Apply takes over a spec, or returns why it cannot and keeps the one before. What becomes of established flows is for Review to say.
func (p *Plane) Apply(s *spec.Spec) error {
	p.apply.Lock()
	defer p.apply.Unlock()
	t, err := compile(s, p.table.Load())
	if err != nil {
		return fmt.Errorf("apply revision %d: %w", s.Revision, err)
	}
	p.table.Store(t)
	return nil
}

// compile makes the table of a spec of the one before, which stays as it is, and what changed. It leaves out accelerators
// that are not enabled: their addresses stay theirs, but nobody listens.
func compile(s *spec.Spec, old *table) (*table, error) {
	changed := kept.Changes(old.spec.Accelerators, s.Accelerators)
	if len(changed) == 0 {
		return &table{spec: s, at: old.at, open: old.open}, nil
	}
	type edits struct{ gone, come []span }
	touched := map[place]edits{}
	var closed, open []Listener
	var faults []error
	for _, c := range changed {
		if c.Old != nil && *c.Old.Enabled {
			spans, _ := spansOf(c.Old)
			for _, ip := range c.Old.IPAddresses {
				for _, s := range spans {
					at := place{ip, s.listener.Protocol}
					e := touched[at]
					e.gone = append(e.gone, s)
					touched[at] = e
				}
				closed = listeners(closed, ip, spans)
			}
		}
		if c.New != nil && *c.New.Enabled {
			spans, err := spansOf(c.New)
			faults = append(faults, err)
			for _, ip := range c.New.IPAddresses {
				for _, s := range spans {
					at := place{ip, s.listener.Protocol}
					e := touched[at]
					e.come = append(e.come, s)
					touched[at] = e
				}
				open = listeners(open, ip, spans)
			}
		}
	}
	edit := old.at.Edit()
	for at, e := range touched {
		spans, _ := edit.Lookup(at)
		spans = kept.List(spans, e.gone, e.come, func(a, b span) int {
			return cmp.Or(cmp.Compare(a.from, b.from), strings.Compare(a.accelerator.Name, b.accelerator.Name))
		})
		if len(spans) == 0 {
			edit.Delete(at)
			continue
		}
		faults = append(faults, apart(at.address, spans))
		edit.Set(at, spans)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	open = kept.List(old.open, closed, open, func(a, b Listener) int {
		return cmp.Or(a.Address.Compare(b.Address), strings.Compare(a.Protocol, b.Protocol), strings.Compare(a.Accelerator, b.Accelerator))
	})
	return &table{spec: s, at: edit.Map(), open: open}, nil
}

// spansOf are what an accelerator listens on, on each of its addresses.
func spansOf(a *spec.Accelerator) ([]span, error) {
	var spans []span
	ports := 0
	for i := range a.Listeners {
		l := &a.Listeners[i]
		if l.Protocol != spec.TCP && l.Protocol != spec.UDP {
			return nil, fmt.Errorf("accelerator %s: protocol %s is not served", a.Name, l.Protocol)
		}
		var open []uint16
		if isCustom(a) {
			open = l.OpenPorts()
			ports += len(open)
		}
		for _, r := range l.PortRanges {
			to := max(r.FromPort, r.ToPort)
			s := span{from: r.FromPort, to: to, entry: entry{a, l}}
			if isCustom(a) {
				from, _ := slices.BinarySearch(open, r.FromPort)
				behind, found := slices.BinarySearch(open, to)
				if found {
					behind++
				}
				s.open = open[from:behind]
			} else {
				ports += int(to-r.FromPort) + 1
			}
			if ports > maxPorts {
				return nil, fmt.Errorf("accelerator %s: more than %d ports", a.Name, maxPorts)
			}
			spans = append(spans, s)
		}
	}
	return spans, nil
}

// listeners appends what to open for an address.
func listeners(to []Listener, ip netip.Addr, spans []span) []Listener {
	for _, s := range spans {
		one := Listener{Accelerator: s.accelerator.Name, Protocol: s.listener.Protocol}
		if isCustom(s.accelerator) {
			for _, port := range s.open {
				one.Address = netip.AddrPortFrom(ip, port)
				to = append(to, one)
			}
			continue
		}
		for port := int(s.from); port <= int(s.to); port++ {
			one.Address = netip.AddrPortFrom(ip, uint16(port))
			to = append(to, one)
		}
	}
	return to
}

// apart says which ports of an address are taken twice.
func apart(ip netip.Addr, spans []span) error {
	for i := 1; i < len(spans); i++ {
		if s, before := spans[i], spans[i-1]; s.from <= before.to {
			return fmt.Errorf("accelerator %s: %v is taken by accelerator %s", s.accelerator.Name, netip.AddrPortFrom(ip, s.from), before.accelerator.Name)
		}
	}
	return nil
}

// Listeners are the addresses and ports to open, in their order. The slice is shared and must not be changed.
func (p *Plane) Listeners() []Listener { return p.table.Load().open }

// ConnHandler starts the flows of conns that were accepted for a listener, wherever that was, as Start does.
func (p *Plane) ConnHandler(l Listener) func(c net.Conn, ended func()) {
	return func(c net.Conn, ended func()) { p.Start(c, l.Address, ended) }
}

// SoonHandler starts the flows of conns that an event loop holds, and that were accepted for a listener, as StartSoon does.
func (p *Plane) SoonHandler(l Listener) func(c *loop.Conn, ended func(), back func() error) {
	return func(c *loop.Conn, ended func(), back func() error) { p.StartSoon(c, l.Address, ended, back) }
}

// Start has one conn be carried that was accepted for an accelerator's address and port. It returns when an endpoint has taken the flow, or none has. It
// closes the conn, and calls ended when all is done; closing it from outside ends the flow.
func (p *Plane) Start(client net.Conn, at netip.AddrPort, ended func()) {
	if !p.start(client, at, ended) {
		relay.Abort(client)
		ended()
	}
}

// TurnedAway takes note of a flow that a door for a listener has reset, as there was no room for it.
func (p *Plane) TurnedAway(l Listener, client netip.AddrPort) {
	p.count.refused.Add(1)
	if e, ok := p.table.Load().entry(l.Protocol, l.Address); ok {
		p.rejected(e.accelerator, l.Protocol, Flow{Client: client, Local: l.Address}, tooMany)
	}
}

// start says whether the flow goes on; if not the client is to be reset.
func (p *Plane) start(client net.Conn, at netip.AddrPort, over func()) bool {
	t, v := p.table.Load(), p.config.View()
	e, ok := t.entry(spec.TCP, at)
	f := Flow{Client: relay.AddrPort(client.RemoteAddr()), Local: at}
	if !ok {
		p.count.refused.Add(1)
		return false
	}
	if !p.enter() {
		p.count.refused.Add(1)
		p.rejected(e.accelerator, spec.TCP, f, tooMany)
		return false
	}
	p.count.flows.Add(1)

	var far net.Conn
	ended, going := func(relay.Result) {}, false
	defer func() { // also where it panics, which who called recovers
		if going {
			return
		}
		if far != nil {
			relay.Abort(far)
			ended(relay.Result{Err: errUnbegun})
		}
		p.count.live.Add(-1)
	}()
	drawn := p.sampled(e.accelerator)
	by := p.connect(Choose(t.spec, v, e.accelerator, e.listener, f, nil), f.Client, p.says(client, e.listener.FastOpen))
	if far = by.far; far == nil {
		p.count.dropped.Add(1)
		p.rejected(e.accelerator, spec.TCP, f, e.refuses(at.Port()))
		return false
	}
	if taken, is := far.(Taken); is {
		far, ended = taken.Hold(client)
	}
	if by.so.AToB > 0 {
		p.count.early.Add(1)
	}
	carried := relay.Resume(client, far, e.listener.IdleTimeout.Std(), by.so)
	one := p.lives(e.accelerator, f, client, by.by, by.target, drawn)
	one.carried = carried
	one.over, _ = far.(moving)
	carried.Last, carried.Panicked, carried.Turns = one.last, p.config.Panicked, p.config.Turns
	p.begin(e.accelerator, see(t.spec, v), one)
	carried.Start(p.ends(one, ended, over))
	going = true
	return true
}

// lives makes what is known of a flow as long as it is carried, but how.
func (p *Plane) lives(a *spec.Accelerator, f Flow, client net.Conn, by Candidate, target netip.AddrPort, drawn drawn) *live {
	return &live{
		lane: lane{a.Name, spec.TCP, f.Local, by.Region, by.Resource}, client: f.Client, node: by.Node, by: by.By, began: time.Now(),
		drawn: drawn, target: target, conn: client,
	}
}

// ends is what is done when a flow has ended: here, where its endpoint is, and for who wants to know that it is over.
func (p *Plane) ends(here *live, there func(relay.Result), over func()) func(relay.Result) {
	return func(r relay.Result) {
		defer over() // whatever panics, its places are given back
		defer p.count.live.Add(-1)
		defer here.broke(r.Err)
		there(r)
	}
}

// errUnbegun is the error of a flow that was not carried, as something panicked before.
var errUnbegun = errors.New("it was not begun")

// Taken is a flow to an endpoint that this node has dialled itself. Hold returns the connection that is to be carried, which is the endpoint's, and
// what is to be called when it has ended.
type Taken interface {
	Hold(client net.Conn) (endpoint net.Conn, ended func(relay.Result))
}

// broke is the end of a flow of TCP, and why it was broken off.
func (f *live) broke(err error) {
	count := &f.plane.count
	switch {
	case err == nil:
		f.end(closed)
	case errors.Is(err, relay.ErrIdle):
		count.idle.Add(1)
		f.end(idle)
	case errors.Is(err, errTerminated):
		count.terminated.Add(1)
		f.end(terminated)
	default:
		count.broken.Add(1)
		f.end(broken)
	}
}

// How flows end, as flow logs say it.
const (
	closed     = "closed"
	idle       = "idle"
	terminated = "terminated"
	broken     = "reset"
)

// begin holds a flow that was chosen by a spec and a view, counts it by endpoint, path and more, and has it written down, until end is called. The flow's last is to be called
// just before its ends are closed.
func (p *Plane) begin(a *spec.Accelerator, chosen seen, f *live) {
	f.plane = p
	all := [3]*tally{p.more.endpoint(a, f)}
	if f.protocol == spec.TCP { // of datagrams their course counts
		all[1], all[2] = &p.more.tcp, p.tallies.of(way{f.accelerator, f.region, f.protocol}, otherWays())
	}
	for _, t := range all {
		if t != nil {
			t.flows.Add(1)
			t.live.Add(1)
		}
	}
	f.counted.begins(&p.more, f, all)
	f.written = p.write(a, f)
	p.live.enter(p, chosen, f)
}

// end is the end of a flow, and how.
func (f *live) end(how string) {
	p := f.plane
	p.live.leave(f)
	f.counted.look(&p.more, f)
	all := f.counted.ends(f)
	for _, t := range all {
		if t != nil {
			t.live.Add(-1)
		}
	}
	p.more.ended.of(labels{f.accelerator, f.region, how}, labels{Other, Other, Other}).flows.Add(1)
	f.written.end(how)
}

func (p *Plane) enter() bool {
	if p.count.live.Add(1) > maxFlows {
		p.count.live.Add(-1)
		return false
	}
	return true
}

// tells says whether a candidate's node would say at which target the flow ends, and that is not known already.
func (p *Plane) tells(c Candidate) bool {
	v := p.config.View()
	if v == nil || flowlog.EndpointAddr(origin.Unpreserved(c.Resource)).IsValid() {
		return false
	}
	m, is := v.Member(c.Node)
	return is && m.Tells
}

// attempt opens a stream to a candidate, by way of another node if it names one, and hears at which target it ends; invalid: that is not told.
func (p *Plane) attempt(ctx context.Context, c Candidate, client netip.AddrPort) (far net.Conn, target netip.AddrPort, err error) {
	if v := p.config.View(); c.By == "" && p.config.Take != nil && v != nil && v.Self == c.Node {
		if far, err = p.config.Take(ctx, c.Resource, client); err == nil {
			target = relay.AddrPort(far.RemoteAddr())
		}
		return far, target, err
	}
	return p.openTold(ctx, c, c.By, client, p.tells(c))
}

// openTold opens a flow to a candidate by a way, and hears at which target it ends if that is to be asked.
func (p *Plane) openTold(ctx context.Context, c Candidate, by string, client netip.AddrPort, ask bool) (far net.Conn, target netip.AddrPort, err error) {
	if ask {
		c.Resource = origin.Told(c.Resource)
	}
	if far, err = p.open(ctx, c, by, client); err != nil || !ask {
		return far, target, err
	}
	stop := context.AfterFunc(ctx, func() { far.SetReadDeadline(time.Unix(1, 0)) })
	target, err = origin.ReadTarget(far) // it comes with the answer
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		relay.Abort(far)
		return nil, target, fmt.Errorf("%s: %w", c.Node, err)
	}
	return far, target, nil
}

func (p *Plane) dial(ctx context.Context, node string, h backbone.Header) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	return p.config.Dial(ctx, node, h)
}

// StartDetour has a flow of another node be carried on, to the node that the resource begins with, and calls ended when the flow has ended: it returns when
// it has answered. It accepts once that node has. Nothing is carried on twice.
func (p *Plane) StartDetour(in *backbone.Incoming, ended func()) {
	p.startDetour(in.Context(), in.Header, in.Early(), in.Accept, in.RefuseFor, ended)
}

func (p *Plane) startDetour(ctx context.Context, h backbone.Header, sooner backbone.EarlyReader, accept func() net.Conn, refuse func(error), ended func()) {
	node, resource, ok := strings.Cut(h.Resource, "/")
	if !ok || node == "" || resource == "" {
		p.count.detoursRefused.Add(1)
		refuse(errors.New("a detour names a node and what is asked of it"))
		ended()
		return
	}
	if !p.enter() {
		p.count.detoursRefused.Add(1)
		refuse(errors.New("too many flows"))
		ended()
		return
	}
	over := func() {
		p.count.live.Add(-1)
		ended()
	}
	onward := backbone.Header{Service: flowService, Resource: resource, Client: h.Client, Passage: h.Passage, Left: h.Left}
	if m, ok := p.config.View().Member(node); !ok || !m.Timed {
		onward.Left = 0
	}
	var said *opening // what the other node says is for the next, who alone is asked
	if sooner != nil {
		said = p.says(sooner, true)
		said.ways(1)
	}
	var g given
	far, err := p.dial(said.toward(ctx, &g), node, onward)
	said.stop()
	if err != nil {
		p.count.detoursRefused.Add(1)
		refuse(err)
		over()
		return
	}
	p.count.carried.Add(1)
	so := said.so(&g)
	so.AErr = nil // a stream says it again
	near := accept()
	if h.Passage != (backbone.Passage{}) {
		near, far = backbone.Join(near, far) // its ends go on without this node, if need be
	}
	carried := relay.Resume(near, far, carriedIdle, so)
	carried.Panicked = p.config.Panicked
	carried.Start(func(relay.Result) { over() })
}

// Explain says where this node would send a flow of a protocol from a client to an accelerator's address and port: what Serve and ServePackets do, with
// a trace. With client affinity NONE the client's port counts too; here it is 0.
func (p *Plane) Explain(protocol string, address netip.AddrPort, client netip.Addr, tr *trace.Trace) (string, error) {
	t := p.table.Load()
	e, ok := t.entry(protocol, address)
	if !ok {
		return "", fmt.Errorf("no accelerator that is enabled listens on %v by %s", address, protocol)
	}
	f := Flow{Client: netip.AddrPortFrom(client, 0), Local: address}
	candidates := Choose(t.spec, p.config.View(), e.accelerator, e.listener, f, tr)
	if len(candidates) == 0 {
		refusal := "reset"
		if protocol == spec.UDP {
			refusal = "dropped"
		}
		if m, mapped := e.listener.PortMapping(address.Port()); isCustom(e.accelerator) && (!mapped || !m.Allowed) {
			return refusal + ": traffic to it is not allowed", nil
		}
		return refusal + ": no endpoint can be reached", nil
	}
	if v := p.config.View(); protocol == spec.TCP && tr.On() && (p.config.Take == nil || v == nil || candidates[0].By != "" || candidates[0].Node != v.Self) {
		_, why := early(e.listener.FastOpen, len(entrants(candidates)))
		tr.Add("%s", why)
	}
	return candidates[0].String(), nil
}

type counters struct {
	flows, refused, dropped   atomic.Uint64
	early                     atomic.Uint64
	failovers, attemptsFailed atomic.Uint64
	looped                    atomic.Uint64
	givenBack, handedOver     atomic.Uint64
	attemptsCalledOff         atomic.Uint64
	detours, detoursFailed    atomic.Uint64 // by others
	carried, detoursRefused   atomic.Uint64 // of others
	idle, broken, terminated  atomic.Uint64
	live                      atomic.Int64

	// Of datagrams:
	udpFlows, udpEvicted, udpMoved   atomic.Uint64
	udpNamed                         atomic.Uint64
	udpRefused, udpBlocked, udpHasty atomic.Uint64
	udpFull, udpCrowded              atomic.Uint64
	udpYielded, udpUntold            atomic.Uint64
	udpIdle, udpBroken               atomic.Uint64
	udpSilent, udpLate               atomic.Uint64
	udpDropped, udpUnsent, udpResent atomic.Uint64
	udpLarge                         atomic.Uint64
	carriedDatagrams, carriedDropped atomic.Uint64
	datagramsIn, datagramsOut        atomic.Uint64
}

// Counters are the plane's counts since it was made, and how many flows it has now. Bytes are as of a second ago at most.
func (p *Plane) Counters() map[string]uint64 {
	p.countLive()
	return map[string]uint64{
		"accelerator_flows_total":                           p.count.flows.Load(),
		"accelerator_flows_refused_total":                   p.count.refused.Load(),
		"accelerator_flows_dropped_no_endpoint_found_total": p.count.dropped.Load(),
		"accelerator_flows_early_total":                     p.count.early.Load(),
		"accelerator_flows_idle_total":                      p.count.idle.Load(),
		"accelerator_flows_broken_total":                    p.count.broken.Load(),
		"accelerator_flows_terminated_total":                p.count.terminated.Load(),
		"accelerator_flows_looped_total":                    p.count.looped.Load(),
		"accelerator_flows_given_back_total":                p.count.givenBack.Load(),
		"accelerator_flows_handed_over_total":               p.count.handedOver.Load(),
		"accelerator_failovers_total":                       p.count.failovers.Load(),
		"accelerator_attempts_failed_total":                 p.count.attemptsFailed.Load(),
		"accelerator_attempts_called_off_total":             p.count.attemptsCalledOff.Load(),
		"accelerator_detours_total":                         p.count.detours.Load(),
		"accelerator_detours_failed_total":                  p.count.detoursFailed.Load(),
		"accelerator_detours_carried_total":                 p.count.carried.Load(),
		"accelerator_detours_refused_total":                 p.count.detoursRefused.Load(),
		"accelerator_processed_bytes_in_total":              p.more.tcp.in.Load(),
		"accelerator_processed_bytes_out_total":             p.more.tcp.out.Load(),
		"accelerator_flows":                                 uint64(p.count.live.Load()),
		"accelerator_datagram_flows":                        p.liveDatagramFlows(),
		"accelerator_datagram_flows_total":                  p.count.udpFlows.Load(),
		"accelerator_datagram_flows_evicted_total":          p.count.udpEvicted.Load(),
		"accelerator_datagram_flows_moved_total":            p.count.udpMoved.Load(),
		"accelerator_datagram_flows_named_total":            p.count.udpNamed.Load(),
		"accelerator_datagram_flows_refused_total":          p.count.udpRefused.Load(),
		"accelerator_datagram_flows_blocked_total":          p.count.udpBlocked.Load(),
		"accelerator_datagram_flows_hasty_total":            p.count.udpHasty.Load(),
		"accelerator_datagram_flows_full_total":             p.count.udpFull.Load(),
		"accelerator_datagram_flows_crowded_total":          p.count.udpCrowded.Load(),
		"accelerator_datagram_flows_yielded_total":          p.count.udpYielded.Load(),
		"accelerator_datagram_refusals_unwritten_total":     p.count.udpUntold.Load(),
		"accelerator_datagram_flows_idle_total":             p.count.udpIdle.Load(),
		"accelerator_datagram_flows_broken_total":           p.count.udpBroken.Load(),
		"accelerator_datagram_flows_silent_total":           p.count.udpSilent.Load(),
		"accelerator_datagram_flows_late_total":             p.count.udpLate.Load(),
		"accelerator_datagrams_in_total":                    p.count.datagramsIn.Load(),
		"accelerator_datagrams_out_total":                   p.count.datagramsOut.Load(),
		"accelerator_datagrams_dropped_total":               p.count.udpDropped.Load(),
		"accelerator_datagrams_too_large_total":             p.count.udpLarge.Load(),
		"accelerator_datagrams_resent_total":                p.count.udpResent.Load(),
		"accelerator_detour_datagram_flows":                 p.carriedFlows.count(),
		"accelerator_detour_datagrams_total":                p.count.carriedDatagrams.Load(),
		"accelerator_detour_datagrams_dropped_total":        p.count.carriedDropped.Load(),
		"accelerator_datagrams_unsent_total":                p.count.udpUnsent.Load(),
	}
}
