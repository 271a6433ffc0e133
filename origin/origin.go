// Package origin is where traffic ends: the load balancers of one region. It takes requests and flows, from its own
// listeners or from edge nodes over the backbone, chooses by rule and target, and carries them to a target.
//
// It opens no listener (node/front does), probes no target (cluster/probe does) and agrees on nothing.
//
// When things break: a target that cannot be dialed gives way to the next at once, whatever its verdict says;
// a request whose target died under it is tried once more where that is safe; with no healthy target all
// are tried; a spec that does not compile leaves the last good one in place. A request is never sent twice
// if any of its body was sent, or if its method is not idempotent.
package origin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/kept"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/origin/rule"
)

// Config is what a Plane is given.
type Config struct {
	// Region is this node's: only load balancers and target groups of it are served.
	Region string
	// View is what is observed now; nil knows nothing, so every target is initial.
	View func() *view.View
	// Dial reaches targets; nil dials the real network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// DialFlow is Dial for flows of TCP, whose relay sees to it that the kernel asks whether they live; nil: Dial.
	DialFlow func(ctx context.Context, network, address string) (net.Conn, error)
	// DialAs reaches targets that are to see the client's address, from that (transparent.Dialer); nil: none can be.
	DialAs func(ctx context.Context, network string, client netip.AddrPort, address string) (net.Conn, error)
	// SoonTimeout is how long a target has to take a flow that an event loop holds; 0: 50 ms.
	SoonTimeout time.Duration
	// Evidence is told what requests and flows meet at targets and endpoints (evidence.go): that they failed and why, or
	// passed. Client is whose it was; invalid: not known. It is called often and must not wait. Nil: nobody is told.
	Evidence func(key health.Key, client netip.Addr, failed bool, reason string)
	// Returns says whether what is dialled for a protocol, spec.TCP, UDP or HTTP, would come back as a new flow or request of this network, and so on without
	// end: then it is not dialled. It is asked for each dial and must not wait. Nil: nothing does.
	Returns func(protocol string, at netip.AddrPort) bool
	// Turns are those in which the kernel moves bytes from socket to socket, of all that do so in this process; nil: it has them whenever it can.
	Turns *relay.Turns
	// Panicked is told of what panics while a flow is carried, which is reset then; nil: it ends the process.
	Panicked func(value any)
	Log      *slog.Logger
}

// Plane serves the load balancers of one region. All its methods may be called at once.
type Plane struct {
	config   Config
	counters counters
	buffers  buffers

	table    atomic.Pointer[table]
	mu       sync.Mutex // orders Apply and Close
	flows    flows
	settling settling

	sessions sessions

	late late // of those that loops asked

	toldUnpreserved, toldReturns atomic.Int64 // when, in Unix seconds
}

// table is one spec, compiled. It is immutable but for what its groups share with the tables before it. What did not
// change in a spec is shared with the table of the one before.
type table struct {
	spec      *spec.Spec
	balancers *kept.Map[string, *balancer]
	groups    *kept.Map[string, *group]
	open      []Listener // of balancers, sorted
}

type listenerKey struct {
	loadBalancer string
	port         uint16
}

func (k listenerKey) String() string {
	return "load balancer " + k.loadBalancer + ", port " + strconv.Itoa(int(k.port))
}

// balancer is one load balancer, compiled.
type balancer struct {
	spec      *spec.LoadBalancer
	listeners []listener
}

// listener is one listener, compiled.
type listener struct {
	port     uint16
	local    bool // of this node's region
	protocol string
	idle     time.Duration
	rules    *rule.Rules
}

// open are the ports that this node opens for it.
func (b *balancer) open() (open []Listener) {
	for i := range b.listeners {
		if l := &b.listeners[i]; l.local {
			open = append(open, Listener{LoadBalancer: b.spec.Name, Protocol: l.protocol, Port: l.port})
		}
	}
	return open
}

// listener finds a listener; nil: there is none.
func (t *table) listener(k listenerKey) *listener {
	if b := t.balancers.Get(k.loadBalancer); b != nil {
		for i := range b.listeners {
			if b.listeners[i].port == k.port {
				return &b.listeners[i]
			}
		}
	}
	return nil
}

// Listener is a port that the nodes of a region open for a load balancer.
type Listener struct {
	LoadBalancer string
	Protocol     string // spec.HTTP: serve Handler; spec.TCP: serve StartConn, or where a loop accepts SoonHandler
	Port         uint16
}

// New makes a Plane without load balancers.
func New(c Config) *Plane {
	if c.View == nil {
		c.View = func() *view.View { return nil }
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	if c.DialFlow == nil {
		c.DialFlow = c.Dial
	}
	c.SoonTimeout = cmp.Or(c.SoonTimeout, soonTimeout)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	p := &Plane{config: c, flows: flows{at: map[health.Key]map[*flow]struct{}{}}}
	p.table.Store(&table{spec: new(spec.Spec)})
	p.sessions.most = maxSessions
	return p
}

// Apply takes over a spec, or returns why it cannot and keeps the one before. Requests and flows in flight go on;
// those to a target that has left its group end after the group's deregistration delay.
func (p *Plane) Apply(s *spec.Spec) error {
	p.mu.Lock()
	defer p.mu.Unlock()

	old := p.table.Load()
	changed := kept.Changes(old.spec.TargetGroups, s.TargetGroups)
	users := map[string]int{}
	next, err := p.compile(s, old, changed, users)
	if err != nil {
		return fmt.Errorf("apply revision %d: %w", s.Revision, err)
	}
	for _, c := range changed {
		if c.New != nil {
			next.groups.Get(c.Name).traffic.keep(c.New)
		}
	}
	for name, more := range users {
		if g := next.groups.Get(name); g != nil {
			g.traffic.users += more
		}
	}
	p.table.Store(next)
	for _, c := range changed {
		if c.New == nil {
			emptied := *c.Old
			emptied.Targets = nil
			old.groups.Get(c.Name).traffic.keep(&emptied)
		}
	}
	return nil
}

// compile makes the table of a spec of the one before and what changed. It leaves that one as it is. To users it adds how
// much more often each group is forwarded to.
func (p *Plane) compile(s *spec.Spec, old *table, changed []kept.Change[spec.TargetGroup], users map[string]int) (*table, error) {
	groups := old.groups.Edit()
	for _, c := range changed {
		if c.New == nil {
			groups.Delete(c.Name)
			continue
		}
		g := &group{spec: c.New, local: c.New.Region == p.config.Region}
		if before, had := groups.Lookup(c.Name); had {
			g.traffic = before.traffic
		} else {
			g.traffic = &traffic{plane: p}
		}
		groups.Set(c.Name, g)
	}
	next := &table{spec: s, groups: groups.Map()}

	var faults []error
	balancers := old.balancers.Edit()
	var closed, open []Listener
	for _, c := range kept.Changes(old.spec.LoadBalancers, s.LoadBalancers) {
		if c.Old != nil {
			closed = append(closed, old.balancers.Get(c.Name).open()...)
			for name := range forwards(c.Old) {
				users[name]--
			}
		}
		if c.New == nil {
			balancers.Delete(c.Name)
			continue
		}
		b, err := p.balancer(c.New, next.groups)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		balancers.Set(c.Name, b)
		for name := range forwards(c.New) {
			users[name]++
		}
		open = append(open, b.open()...)
	}
	next.balancers = balancers.Map()
	for _, c := range changed {
		if c.New == nil && old.groups.Get(c.Name).traffic.users+users[c.Name] > 0 {
			faults = append(faults, fmt.Errorf("target group %s is gone, but load balancers forward to it", c.Name))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	next.open = kept.List(old.open, closed, open, func(a, b Listener) int {
		return cmp.Or(strings.Compare(a.LoadBalancer, b.LoadBalancer), cmp.Compare(a.Port, b.Port))
	})
	return next, nil
}

func (p *Plane) balancer(lb *spec.LoadBalancer, groups *kept.Map[string, *group]) (*balancer, error) {
	b := &balancer{spec: lb, listeners: make([]listener, len(lb.Listeners))}
	for i := range lb.Listeners {
		sl := &lb.Listeners[i]
		rules, err := rule.Compile(sl)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", listenerKey{lb.Name, sl.Port}, err)
		}
		if sl.Protocol == spec.TCP && (sl.Default.Forward == "" || len(sl.Rules) > 0) {
			return nil, fmt.Errorf("%s: a TCP listener only forwards", listenerKey{lb.Name, sl.Port})
		}
		b.listeners[i] = listener{port: sl.Port, local: lb.Region == p.config.Region, protocol: sl.Protocol, idle: idleTimeout(lb), rules: rules}
	}
	for name, l := range forwards(lb) {
		if groups.Get(name) == nil {
			return nil, fmt.Errorf("%s: there is no target group %q", listenerKey{lb.Name, l.Port}, name)
		}
	}
	return b, nil
}

// forwards yields the target groups that a load balancer forwards to, as often as it does, and the listener.
func forwards(lb *spec.LoadBalancer) iter.Seq2[string, *spec.Listener] {
	return func(yield func(string, *spec.Listener) bool) {
		for i := range lb.Listeners {
			l := &lb.Listeners[i]
			if l.Default.Forward != "" && !yield(l.Default.Forward, l) {
				return
			}
			for _, r := range l.Rules {
				if r.Action.Forward != "" && !yield(r.Action.Forward, l) {
					return
				}
			}
		}
	}
}

// The idle timeouts that ELB has where a load balancer names none.
const (
	applicationIdle = 60 * time.Second
	networkIdle     = 350 * time.Second
)

// acceleratedIdle is when flows end here that came by an accelerator straight to a target group or an address: the accelerator's listener
// ends them before, at the latest.
const acceleratedIdle = spec.MaxAcceleratorIdle + 10*time.Second

func idleTimeout(lb *spec.LoadBalancer) time.Duration {
	switch {
	case lb.IdleTimeout != nil:
		return lb.IdleTimeout.Std()
	case lb.Type == spec.NetworkLoadBalancer:
		return networkIdle
	}
	return applicationIdle
}

// Listeners are the ports to open for the load balancers of this node's region, in the order of their names. The
// slice is shared and must not be changed.
func (p *Plane) Listeners() []Listener { return p.table.Load().open }

// decide is the choice for one request at a listener: the action, and the group it forwards to if it does.
// Serving and explaining both ask it.
func (t *table) decide(l *listener, req rule.Request, tr *trace.Trace) (spec.Action, *group) {
	action := rule.Match(l.rules, req, tr)
	return action, t.groups.Get(action.Forward)
}

// Explain records how a request, or for a TCP listener a flow, would be treated now. It takes no turn. Any
// load balancer of the spec can be explained, also those of other regions.
func (p *Plane) Explain(loadBalancer string, port uint16, req rule.Request, t *trace.Trace) {
	table := p.table.Load()
	l := table.listener(listenerKey{loadBalancer, port})
	if l == nil {
		t.Add("load balancer %s has no listener on port %d", loadBalancer, port)
		return
	}
	defer t.In("load balancer %s, listener %s:%d", loadBalancer, l.protocol, port)()
	action, g := table.decide(l, req, t)
	switch {
	case g != nil:
		g.explain(p.config.View(), t)
	case action.Redirect != nil:
		t.Add("%d to %s", rule.Status(action.Redirect), rule.Location(action.Redirect, req))
	}
}

// ExplainTargetGroup records which target of a group would take a flow now. It takes no turn.
func (p *Plane) ExplainTargetGroup(name string, t *trace.Trace) {
	g := p.table.Load().groups.Get(name)
	if g == nil {
		t.Add("there is no target group %s", name)
		return
	}
	g.explain(p.config.View(), t)
}

// Close serves nothing new and ends the connections to targets that carry nothing. What is in flight is ended by
// whoever brought it.
func (p *Plane) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.table.Swap(&table{spec: new(spec.Spec)}).groups.All() {
		g.traffic.closeIdle()
	}
}

// CloseDatagrams ends the flows of datagrams, and waits until nothing of them runs. New ones are refused.
func (p *Plane) CloseDatagrams() { p.sessions.close() }

type counters struct {
	requests, fixed, redirected                    atomic.Uint64
	clientGone                                     atomic.Uint64
	flows, flowsRefused                            atomic.Uint64
	flowsLooped, flowsGivenBack, flowsHandedOver   atomic.Uint64 // of load balancers' listeners
	flowBytesIn, flowBytesOut                      atomic.Uint64
	sessions, sessionsRefused, sessionsRetargeted  atomic.Uint64
	datagramsIn, datagramsOut                      atomic.Uint64
	datagramBytesIn, datagramBytesOut              atomic.Uint64
	datagramsUnsent, datagramsRefused              atomic.Uint64
	connects, connectErrors, retries, targetFaults atomic.Uint64
	connectFaults                                  atomic.Uint64
	deregistered, terminated                       atomic.Uint64
	evidenceFailed, evidencePassed                 atomic.Uint64
	unpreserved, returns                           atomic.Uint64
	fromTarget, fromLoadBalancer                   [6]atomic.Uint64 // by class; 1 is 101, 0 is what is no HTTP status
}

// Counters are totals since New. Responses are counted as ELB does, apart by who gave them: a target or the load
// balancer itself.
func (p *Plane) Counters() map[string]uint64 {
	c := &p.counters
	all := map[string]uint64{
		"origin_requests_total":                  c.requests.Load(),
		"origin_requests_client_gone_total":      c.clientGone.Load(),
		"origin_fixed_responses_total":           c.fixed.Load(),
		"origin_redirects_total":                 c.redirected.Load(),
		"origin_flows_total":                     c.flows.Load(),
		"origin_flows_refused_total":             c.flowsRefused.Load(),
		"origin_flows_looped_total":              c.flowsLooped.Load(),
		"origin_flows_given_back_total":          c.flowsGivenBack.Load(),
		"origin_flows_handed_over_total":         c.flowsHandedOver.Load(),
		"origin_flow_bytes_in_total":             c.flowBytesIn.Load(),
		"origin_flow_bytes_out_total":            c.flowBytesOut.Load(),
		"origin_datagram_flows_total":            c.sessions.Load(),
		"origin_datagram_flows_refused_total":    c.sessionsRefused.Load(),
		"origin_datagram_flows_retargeted_total": c.sessionsRetargeted.Load(),
		"origin_datagram_flows":                  uint64(p.sessions.count()),
		"origin_datagrams_in_total":              c.datagramsIn.Load(),
		"origin_datagrams_out_total":             c.datagramsOut.Load(),
		"origin_datagram_bytes_in_total":         c.datagramBytesIn.Load(),
		"origin_datagram_bytes_out_total":        c.datagramBytesOut.Load(),
		"origin_datagrams_unsent_total":          c.datagramsUnsent.Load(),
		"origin_preservation_failed_total":       c.unpreserved.Load(),
		"origin_datagrams_refused_total":         c.datagramsRefused.Load(),
		"origin_target_connects_total":           c.connects.Load(),
		"origin_target_connect_errors_total":     c.connectErrors.Load(),
		"origin_target_connect_faults_total":     c.connectFaults.Load(),
		"origin_target_returns_total":            c.returns.Load(),
		"origin_target_malformed_total":          c.targetFaults.Load(),
		"origin_target_retries_total":            c.retries.Load(),
		"origin_target_deregistered_total":       c.deregistered.Load(),
		"origin_flows":                           uint64(p.flows.count()),
		"origin_flows_terminated_total":          c.terminated.Load(),
		"origin_evidence_failed_total":           c.evidenceFailed.Load(),
		"origin_evidence_passed_total":           c.evidencePassed.Load(),
	}
	for class := 1; class < len(c.fromTarget); class++ {
		all[fmt.Sprintf("origin_target_%dxx_total", class)] = c.fromTarget[class].Load()
		if class > 1 {
			all[fmt.Sprintf("origin_loadbalancer_%dxx_total", class)] = c.fromLoadBalancer[class].Load()
		}
	}
	return all
}

// class is a status code's first digit, 0 if it is none.
func class(status int) int {
	if status < 100 || status > 599 {
		return 0
	}
	return status / 100
}
