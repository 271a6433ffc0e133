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
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
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
	Log  *slog.Logger
}

// Plane serves the load balancers of one region. All its methods may be called at once.
type Plane struct {
	config   Config
	counters counters
	buffers  buffers

	table atomic.Pointer[table]
	mu    sync.Mutex // orders Apply and Close
}

// table is one spec, compiled. It is immutable but for what its groups share with the tables before it.
type table struct {
	listeners map[listenerKey]*listener
	groups    map[string]*group
}

type listenerKey struct {
	loadBalancer string
	port         uint16
}

func (k listenerKey) String() string {
	return "load balancer " + k.loadBalancer + ", port " + strconv.Itoa(int(k.port))
}

// listener is one listener, compiled.
type listener struct {
	listenerKey
	protocol string
	local    bool // of this node's region
	idle     time.Duration
	rules    *rule.Rules
}

// Listener is a port that the nodes of a region open for a load balancer.
type Listener struct {
	LoadBalancer string
	Protocol     string // spec.HTTP: serve Handler; spec.TCP: serve ServeConn
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
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	p := &Plane{config: c}
	p.table.Store(new(table))
	return p
}

// Apply takes over a spec, or returns why it cannot and keeps the one before. Requests and flows in flight go on;
// those to a target that has left its group end after the group's deregistration delay.
func (p *Plane) Apply(s *spec.Spec) error {
	p.mu.Lock()
	defer p.mu.Unlock()

	old := p.table.Load()
	next := &table{listeners: map[listenerKey]*listener{}, groups: map[string]*group{}}
	for name, g := range s.TargetGroups {
		next.groups[name] = &group{spec: g, local: g.Region == p.config.Region}
	}
	var faults []error
	for _, lb := range s.LoadBalancers {
		for i := range lb.Listeners {
			l, err := compile(lb, &lb.Listeners[i], next.groups)
			if err != nil {
				faults = append(faults, err)
				continue
			}
			l.local = lb.Region == p.config.Region
			next.listeners[l.listenerKey] = l
		}
	}
	if len(faults) > 0 {
		return fmt.Errorf("apply revision %d: %w", s.Revision, errors.Join(faults...))
	}

	for name, g := range next.groups {
		if before := old.groups[name]; before != nil {
			g.traffic = before.traffic
		} else {
			g.traffic = p.newTraffic()
		}
		g.traffic.keep(g.spec)
	}
	p.table.Store(next)
	for name, g := range old.groups {
		if next.groups[name] == nil {
			emptied := *g.spec
			emptied.Targets = nil
			g.traffic.keep(&emptied)
		}
	}
	return nil
}

func compile(lb *spec.LoadBalancer, sl *spec.Listener, groups map[string]*group) (*listener, error) {
	l := &listener{
		listenerKey: listenerKey{lb.Name, sl.Port},
		protocol:    sl.Protocol,
		idle:        idleTimeout(lb),
	}
	var err error
	if l.rules, err = rule.Compile(sl); err != nil {
		return nil, fmt.Errorf("%s: %w", l.listenerKey, err)
	}
	if sl.Protocol == spec.TCP && (sl.Default.Forward == "" || len(sl.Rules) > 0) {
		return nil, fmt.Errorf("%s: a TCP listener only forwards", l.listenerKey)
	}
	actions := []spec.Action{sl.Default}
	for _, r := range sl.Rules {
		actions = append(actions, r.Action)
	}
	for _, a := range actions {
		if a.Forward != "" && groups[a.Forward] == nil {
			return nil, fmt.Errorf("%s: there is no target group %q", l.listenerKey, a.Forward)
		}
	}
	return l, nil
}

// The idle timeouts that ELB has where a load balancer names none.
const (
	applicationIdle = 60 * time.Second
	networkIdle     = 350 * time.Second
)

func idleTimeout(lb *spec.LoadBalancer) time.Duration {
	switch {
	case lb.IdleTimeout != nil:
		return lb.IdleTimeout.Std()
	case lb.Type == spec.NetworkLoadBalancer:
		return networkIdle
	}
	return applicationIdle
}

// Listeners are the ports to open for the load balancers of this node's region, in the order of their names.
func (p *Plane) Listeners() []Listener {
	var open []Listener
	for k, l := range p.table.Load().listeners {
		if l.local {
			open = append(open, Listener{LoadBalancer: k.loadBalancer, Protocol: l.protocol, Port: k.port})
		}
	}
	slices.SortFunc(open, func(a, b Listener) int {
		return cmp.Or(strings.Compare(a.LoadBalancer, b.LoadBalancer), cmp.Compare(a.Port, b.Port))
	})
	return open
}

// decide is the choice for one request at a listener: the action, and the group it forwards to if it does.
// Serving and explaining both ask it.
func (t *table) decide(l *listener, req rule.Request, tr *trace.Trace) (spec.Action, *group) {
	action := rule.Match(l.rules, req, tr)
	return action, t.groups[action.Forward]
}

// Explain records how a request, or for a TCP listener a flow, would be treated now. It takes no turn. Any
// load balancer of the spec can be explained, also those of other regions.
func (p *Plane) Explain(loadBalancer string, port uint16, req rule.Request, t *trace.Trace) {
	table := p.table.Load()
	l := table.listeners[listenerKey{loadBalancer, port}]
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
	g := p.table.Load().groups[name]
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
	for _, g := range p.table.Swap(new(table)).groups {
		g.traffic.transport.CloseIdleConnections()
	}
}

type counters struct {
	requests, fixed, redirected      atomic.Uint64
	clientGone                       atomic.Uint64
	flows, flowsRefused              atomic.Uint64
	flowBytesIn, flowBytesOut        atomic.Uint64
	connects, connectErrors, retries atomic.Uint64
	deregistered                     atomic.Uint64
	fromTarget, fromLoadBalancer     [6]atomic.Uint64 // by class; 1 is 101, 0 is what is no HTTP status
}

// Counters are totals since New. Responses are counted as ELB does, apart by who gave them: a target or the load
// balancer itself.
func (p *Plane) Counters() map[string]uint64 {
	c := &p.counters
	all := map[string]uint64{
		"origin_requests_total":              c.requests.Load(),
		"origin_requests_client_gone_total":  c.clientGone.Load(),
		"origin_fixed_responses_total":       c.fixed.Load(),
		"origin_redirects_total":             c.redirected.Load(),
		"origin_flows_total":                 c.flows.Load(),
		"origin_flows_refused_total":         c.flowsRefused.Load(),
		"origin_flow_bytes_in_total":         c.flowBytesIn.Load(),
		"origin_flow_bytes_out_total":        c.flowBytesOut.Load(),
		"origin_target_connects_total":       c.connects.Load(),
		"origin_target_connect_errors_total": c.connectErrors.Load(),
		"origin_target_retries_total":        c.retries.Load(),
		"origin_target_deregistered_total":   c.deregistered.Load(),
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
