// Package accelerator takes the TCP flows that reach the static addresses of accelerators, and carries each over the
// backbone to the nearest region with a healthy endpoint (Global Accelerator). The flow ends here, close to the
// client, and a second one begins at the endpoint's region.
//
// It opens no listener (node/front does), measures nothing (the view does) and dials no target (origin does, on a node
// of the endpoint's region).
//
// When things break: a node or endpoint that cannot be dialled gives way to the next at once, in the same region
// and then in others, whatever health says of them; with nothing healthy in the three closest regions the closest is
// tried all the same. A flow that nobody takes is reset. An established flow is never moved, neither by health nor
// by configuration, and ends with its endpoint; one that breaks is reset at the client, never ended as if whole.
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
	"github.com/perigee-net/perigee/origin/relay"
)

const (
	// idleTimeout ends a flow without traffic (Global Accelerator, TCP).
	idleTimeout = 340 * time.Second
	// attemptTimeout bounds one attempt, which is a round trip to the region and the dial of the target there.
	attemptTimeout = time.Second
	// connectTimeout bounds all attempts for one flow; a flow without an endpoint by then is reset.
	connectTimeout = 5 * time.Second
	// maxFlows bounds the flows of all accelerators on this node; more are reset.
	maxFlows = 65536
	// maxPorts bounds the ports of one accelerator, each of which is a socket for each address; a spec with
	// more is refused.
	maxPorts = 1024
)

// flowService is what origin answers flows under, on the backbone.
const flowService = "flow"

// Config is what a Plane is given.
type Config struct {
	// View is what is observed now; nil knows nothing, so no flow has an endpoint.
	View func() *view.View
	// Dial opens a stream to a node over the backbone.
	Dial func(ctx context.Context, node string, h backbone.Header) (net.Conn, error)
	Log  *slog.Logger
}

// Plane serves the accelerators. All its methods may be called at once.
type Plane struct {
	config Config
	table  atomic.Pointer[table]
	apply  sync.Mutex // held by Apply
	count  counters
}

// table is one spec, compiled: the listener of each address and port. It is immutable, and shares what did not change
// with the table of the spec before.
type table struct {
	spec *spec.Spec
	at   *kept.Map[netip.Addr, []span] // sorted, and apart
	open []Listener                    // of at, sorted
}

// span is ports of one address, both ends included, and who listens there.
type span struct {
	from, to uint16
	entry
}

type entry struct {
	accelerator *spec.Accelerator
	listener    *spec.AcceleratorListener
}

// entry finds who listens on an address and port.
func (t *table) entry(at netip.AddrPort) (entry, bool) {
	spans := t.at.Get(at.Addr())
	i, _ := slices.BinarySearchFunc(spans, at.Port(), func(s span, port uint16) int { return cmp.Compare(s.to, port) })
	if i < len(spans) && spans[i].from <= at.Port() {
		return spans[i].entry, true
	}
	return entry{}, false
}

// Listener is an address and port to open for an accelerator, on every node with the edge role.
type Listener struct {
	Accelerator string
	Address     netip.AddrPort
}

// New makes a Plane without accelerators.
func New(c Config) *Plane {
	if c.View == nil {
		c.View = func() *view.View { return nil }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	p := &Plane{config: c}
	p.table.Store(&table{spec: &spec.Spec{}})
	return p
}

// Apply takes over a spec, or returns why it cannot and keeps the one before. Established flows stay as they are.
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
	touched := map[netip.Addr]edits{}
	var closed, open []Listener
	var faults []error
	for _, c := range changed {
		if c.Old != nil && *c.Old.Enabled {
			spans, _ := spansOf(c.Old)
			for _, ip := range c.Old.IPAddresses {
				e := touched[ip]
				e.gone = append(e.gone, spans...)
				touched[ip] = e
				closed = listeners(closed, ip, spans)
			}
		}
		if c.New != nil && *c.New.Enabled {
			spans, err := spansOf(c.New)
			faults = append(faults, err)
			for _, ip := range c.New.IPAddresses {
				e := touched[ip]
				e.come = append(e.come, spans...)
				touched[ip] = e
				open = listeners(open, ip, spans)
			}
		}
	}
	edit := old.at.Edit()
	for ip, e := range touched {
		spans, _ := edit.Lookup(ip)
		spans = kept.List(spans, e.gone, e.come, func(a, b span) int {
			return cmp.Or(cmp.Compare(a.from, b.from), strings.Compare(a.accelerator.Name, b.accelerator.Name))
		})
		if len(spans) == 0 {
			edit.Delete(ip)
			continue
		}
		faults = append(faults, apart(ip, spans))
		edit.Set(ip, spans)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	open = kept.List(old.open, closed, open, func(a, b Listener) int {
		return cmp.Or(a.Address.Compare(b.Address), strings.Compare(a.Accelerator, b.Accelerator))
	})
	return &table{spec: s, at: edit.Map(), open: open}, nil
}

// spansOf are what an accelerator listens on, on each of its addresses.
func spansOf(a *spec.Accelerator) ([]span, error) {
	var spans []span
	ports := 0
	for i := range a.Listeners {
		l := &a.Listeners[i]
		if l.Protocol != spec.TCP {
			return nil, fmt.Errorf("accelerator %s: protocol %s is not served", a.Name, l.Protocol)
		}
		for _, r := range l.PortRanges {
			to := max(r.FromPort, r.ToPort)
			if ports += int(to-r.FromPort) + 1; ports > maxPorts {
				return nil, fmt.Errorf("accelerator %s: more than %d ports", a.Name, maxPorts)
			}
			spans = append(spans, span{r.FromPort, to, entry{a, l}})
		}
	}
	return spans, nil
}

// listeners appends what to open for an address.
func listeners(to []Listener, ip netip.Addr, spans []span) []Listener {
	for _, s := range spans {
		for port := int(s.from); port <= int(s.to); port++ {
			to = append(to, Listener{Accelerator: s.accelerator.Name, Address: netip.AddrPortFrom(ip, uint16(port))})
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

// ConnHandler serves the conns that were accepted for a listener, wherever that was.
func (p *Plane) ConnHandler(l Listener) func(net.Conn) {
	return func(c net.Conn) { p.Serve(c, l.Address) }
}

// Serve carries one conn that was accepted for an accelerator's address and port, and returns when its flow has ended.
// It closes the conn; closing it from outside ends the flow.
func (p *Plane) Serve(client net.Conn, at netip.AddrPort) {
	t := p.table.Load()
	e, ok := t.entry(at)
	if !ok || !p.enter() {
		p.count.refused.Add(1)
		relay.Abort(client)
		return
	}
	defer p.count.live.Add(-1)
	p.count.flows.Add(1)

	f := Flow{Client: addrPort(client.RemoteAddr()), Local: at}
	far := p.connect(Choose(t.spec, p.config.View(), e.accelerator, e.listener, f, nil), f.Client)
	if far == nil {
		p.count.dropped.Add(1)
		relay.Abort(client)
		return
	}
	r := relay.Pipe(client, far, idleTimeout)
	p.count.bytesIn.Add(uint64(r.AToB))
	p.count.bytesOut.Add(uint64(r.BToA))
	switch {
	case errors.Is(r.Err, relay.ErrIdle):
		p.count.idle.Add(1)
	case r.Err != nil:
		p.count.broken.Add(1)
	}
}

func (p *Plane) enter() bool {
	if p.count.live.Add(1) > maxFlows {
		p.count.live.Add(-1)
		return false
	}
	return true
}

// connect opens a stream to the first candidate that accepts; nil: none does in time.
func (p *Plane) connect(candidates []Candidate, client netip.AddrPort) net.Conn {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	for i, c := range candidates {
		far, err := p.attempt(ctx, c, client)
		if err == nil {
			if i > 0 {
				p.count.failovers.Add(1)
			}
			return far
		}
		p.count.attemptsFailed.Add(1)
		p.config.Log.Debug("flow gives way", "candidate", c.String(), "error", err)
	}
	return nil
}

func (p *Plane) attempt(ctx context.Context, c Candidate, client netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	return p.config.Dial(ctx, c.Node, backbone.Header{Service: flowService, Resource: c.Resource, Client: client})
}

// addrPort is a client's address, in the family it has on the wire.
func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// Explain says where this node would send a flow from a client to an accelerator's address and port: what Serve does, with
// a trace. With client affinity NONE the client's port counts too; here it is 0.
func (p *Plane) Explain(address netip.AddrPort, client netip.Addr, tr *trace.Trace) (string, error) {
	t := p.table.Load()
	e, ok := t.entry(address)
	if !ok {
		return "", fmt.Errorf("no accelerator that is enabled listens on %v", address)
	}
	f := Flow{Client: netip.AddrPortFrom(client, 0), Local: address}
	candidates := Choose(t.spec, p.config.View(), e.accelerator, e.listener, f, tr)
	if len(candidates) == 0 {
		return "reset: no endpoint can be reached", nil
	}
	return candidates[0].String(), nil
}

type counters struct {
	flows, refused, dropped   atomic.Uint64
	failovers, attemptsFailed atomic.Uint64
	idle, broken              atomic.Uint64
	bytesIn, bytesOut         atomic.Uint64
	live                      atomic.Int64
}

// Counters are the plane's counts since it was made, and how many flows it has now. Bytes are counted when their flow ends.
func (p *Plane) Counters() map[string]uint64 {
	return map[string]uint64{
		"accelerator_flows_total":                           p.count.flows.Load(),
		"accelerator_flows_refused_total":                   p.count.refused.Load(),
		"accelerator_flows_dropped_no_endpoint_found_total": p.count.dropped.Load(),
		"accelerator_flows_idle_total":                      p.count.idle.Load(),
		"accelerator_flows_broken_total":                    p.count.broken.Load(),
		"accelerator_failovers_total":                       p.count.failovers.Load(),
		"accelerator_attempts_failed_total":                 p.count.attemptsFailed.Load(),
		"accelerator_processed_bytes_in_total":              p.count.bytesIn.Load(),
		"accelerator_processed_bytes_out_total":             p.count.bytesOut.Load(),
		"accelerator_flows":                                 uint64(p.count.live.Load()),
	}
}
