package origin

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/socket"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/origin/target"
	"github.com/perigee-net/perigee/origin/transparent"
	"github.com/perigee-net/perigee/origin/wire"
)

// connectTimeout is how long one target has to take a connection; then it is the next one's turn. ALB gives it 10 s,
// which is long for a client that waits while other targets stand by.
const connectTimeout = 5 * time.Second

// Bounds of the connections kept to targets between requests.
const (
	// idleConnections is how many are kept to one target; more are closed after their request.
	idleConnections = 128
	// idleConnection is how long one is kept. Servers close idle connections after 5 s and more; one that is
	// shorter-lived here is seldom closed by the target just as a request is written to it.
	idleConnection = 4 * time.Second
	// responseHeaderBytes is what a target's response headers may have; ALB takes 32 K. More is a 502.
	responseHeaderBytes = 64 << 10
)

// group is one target group of one spec.
type group struct {
	spec    *spec.TargetGroup
	local   bool // of this node's region
	traffic *traffic
	split   atomic.Pointer[split]
}

// split is a group's pool under one view, kept so that verdicts are looked up once a view and not once a request.
type split struct {
	view  *view.View
	pool  *target.Pool
	texts map[netip.AddrPort]texts // of the targets
}

// texts are what is said of a target again and again.
type texts struct {
	address string
	key     health.Key
}

func (g *group) splitBy(v *view.View) *split {
	if s := g.split.Load(); s != nil && s.view == v {
		return s
	}
	s := &split{view: v, pool: target.Split(g.spec, v)}
	s.texts = make(map[netip.AddrPort]texts, len(g.spec.Targets))
	for _, t := range g.spec.Targets {
		addr := t.AddrPort()
		s.texts[addr] = texts{addr.String(), health.TargetKey(g.spec.Name, addr)}
	}
	g.split.Store(s)
	return s
}

func (g *group) pool(v *view.View) *target.Pool { return g.splitBy(v).pool }

// candidates takes the next turn.
func (g *group) candidates(v *view.View) iter.Seq[netip.AddrPort] {
	return g.pool(v).Candidates(g.turn())
}

// turn takes the next turn.
func (g *group) turn() uint64 { return g.traffic.turn.Add(1) - 1 }

// turnBack has a turn be the next one's, for nothing came of it. (Where others have had theirs meanwhile, one of those is.)
func (t *traffic) turnBack() { t.turn.Add(^uint64(0)) }

// explain records what candidates would return next, and takes no turn.
func (g *group) explain(v *view.View, t *trace.Trace) {
	target.Explain(g.spec, v, g.pool(v), g.traffic.turn.Load(), t)
}

// traffic is what a target group keeps from one spec to the next. What most groups of a large spec never need on a node
// (they are of other regions, or nobody asks for them) is made when it is first needed.
type traffic struct {
	plane *Plane
	users int // how often load balancers of the table forward here; the plane's mu guards it
	turn  atomic.Uint64
	made  atomic.Pointer[wire.Client]

	mu     sync.Mutex
	group  *spec.TargetGroup // as it is now
	leases map[netip.AddrPort]*lease
}

// lease is the right of connections to be: it stands while their target is in the group, and for the deregistration
// delay after it has left.
type lease struct {
	context.Context
	end     context.CancelFunc
	leaving *time.Timer // runs once the target has left

	flows held // that end with it
}

// transport keeps the connections to the targets between requests. What has a body or switches protocols is net/http's, with
// connections of its own.
func (t *traffic) transport() *wire.Client {
	if made := t.made.Load(); made != nil {
		return made
	}
	rest := &http.Transport{
		DialContext:            t.dialHTTP,
		DisableCompression:     true, // what the client did not ask for is not asked for
		MaxIdleConnsPerHost:    idleConnections,
		IdleConnTimeout:        idleConnection,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: responseHeaderBytes,
		Protocols:              new(http.Protocols),
	}
	rest.Protocols.SetHTTP1(true)
	t.made.CompareAndSwap(nil, wire.New(wire.Config{
		Dial: t.dialHTTP, Rest: rest, MaxHead: responseHeaderBytes, MaxIdle: idleConnections, IdleTimeout: idleConnection,
		Faults: &t.plane.counters.targetFaults,
	}))
	return t.made.Load()
}

func (t *traffic) closeIdle() {
	if made := t.made.Load(); made != nil {
		made.CloseIdleConnections()
	}
}

// keep takes over the group as it is now: the leases of its targets stand, and those of targets that have left end.
func (t *traffic) keep(g *spec.TargetGroup) {
	delay := 300 * time.Second // ELB's default
	if g.DeregistrationDelay != nil {
		delay = g.DeregistrationDelay.Std()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.group = g
	if len(t.leases) == 0 {
		return
	}
	staying := make(map[netip.AddrPort]bool, len(g.Targets))
	for _, target := range g.Targets {
		staying[target.AddrPort()] = true
	}
	for addr, l := range t.leases {
		switch {
		case !staying[addr] && l.leaving == nil:
			l.leaving = time.AfterFunc(delay, func() { t.expire(g.Name, addr, l) })
		case staying[addr] && l.leaving != nil && !l.leaving.Stop():
			delete(t.leases, addr) // its time was up
		case staying[addr]:
			l.leaving = nil
		}
	}
}

func (t *traffic) expire(group string, addr netip.AddrPort, l *lease) {
	t.mu.Lock()
	if t.leases[addr] == l {
		delete(t.leases, addr)
	}
	t.mu.Unlock()
	t.plane.config.Log.Info("a target that left is now without connections", "targetGroup", group, "target", addr)
	l.end()
	l.flows.end(func(f *flow) { t.endOf(f.conns[:]...) })
}

// lease is the lease of a target; nil: it has left the group.
func (t *traffic) lease(addr netip.AddrPort) *lease {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.leases[addr]
	if l == nil && slices.ContainsFunc(t.group.Targets, func(target spec.Target) bool { return target.AddrPort() == addr }) {
		ctx, end := context.WithCancel(context.Background())
		l = &lease{Context: ctx, end: end}
		if t.leases == nil {
			t.leases = map[netip.AddrPort]*lease{}
		}
		t.leases[addr] = l
	}
	return l
}

// dialError is why a target took no connection. Nothing was sent to it.
type dialError struct {
	target netip.AddrPort
	err    error
}

func (e *dialError) Error() string { return fmt.Sprintf("dial target %s: %v", e.target, e.err) }
func (e *dialError) Unwrap() error { return e.err }

var errLeft = errors.New("it has left its group")

// dial connects to a target. What holds the connection must end it with the lease.
func (t *traffic) dial(ctx context.Context, dial dialer, addr netip.AddrPort, most time.Duration) (net.Conn, *lease, error) {
	l := t.lease(addr)
	if l == nil {
		return nil, nil, &dialError{addr, errLeft}
	}
	conn, err := t.plane.dialTarget(ctx, dial, "tcp", addr, most)
	return conn, l, err
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// dialTarget connects to a target or an endpoint, in a time.
func (p *Plane) dialTarget(ctx context.Context, dial dialer, network string, addr netip.AddrPort, most time.Duration) (net.Conn, error) {
	if p.returns(strings.ToUpper(network), addr) {
		return nil, &dialError{addr, ErrReturns}
	}
	limited, cancel := within(ctx, most)
	defer cancel()
	p.counters.connects.Add(1)
	conn, err := dial(limited, network, addr.String())
	if err != nil {
		switch {
		case ctx.Err() != nil, errors.Is(err, transparent.ErrImpossible): // it was given up, not refused
		default:
			p.dialFailed(err, addr)
		}
		return nil, &dialError{addr, err}
	}
	return conn, nil
}

// ErrReturns is why a target is not dialled: its flows would come back. Another node is not to be asked for it.
var ErrReturns = errors.New("it is a door of this network itself: what is sent there would come back without end")

// returns says whether what is dialled for a protocol would come back; that is counted, and said to people now and then.
func (p *Plane) returns(protocol string, addr netip.AddrPort) bool {
	if !p.wouldReturn(protocol, addr) {
		return false
	}
	p.counters.returns.Add(1)
	if now := time.Now().Unix(); now-p.toldReturns.Load() >= 60 && p.toldReturns.Swap(now) != now {
		p.config.Log.Error("a target is not dialled", "target", addr, "protocol", protocol, "error", ErrReturns)
	}
	return true
}

func (p *Plane) wouldReturn(protocol string, addr netip.AddrPort) bool {
	return p.config.Returns != nil && p.config.Returns(protocol, addr)
}

// dialFailed counts a dial that was not given up, and says whether this node lacked something for it.
func (p *Plane) dialFailed(err error, to netip.AddrPort) (lacking bool) {
	if lacking = socket.Lacking(err, to); lacking {
		p.counters.connectFaults.Add(1)
	} else {
		p.counters.connectErrors.Add(1)
	}
	return lacking
}

// within is a context that ends in a time at the latest: the same one where it ends before.
func within(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if ends, bounded := ctx.Deadline(); bounded && time.Until(ends) <= timeout {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, timeout)
}

// dialerOf dials as a client, if that is valid, and else as it is given. Where that is not possible it is said to people, now and then.
func (p *Plane) dialerOf(as netip.AddrPort, own dialer) dialer {
	if !as.IsValid() {
		return own
	}
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		if p.config.DialAs == nil {
			err = transparent.ErrImpossible
		} else {
			conn, err = p.config.DialAs(ctx, network, as, address)
		}
		if errors.Is(err, transparent.ErrImpossible) {
			p.counters.unpreserved.Add(1)
			now := time.Now().Unix()
			if told := p.toldUnpreserved.Load(); now-told >= 60 && p.toldUnpreserved.CompareAndSwap(told, now) {
				p.config.Log.Warn("a target that is to see the client's address is not dialled", "target", address, "client", as, "error", err)
			}
		}
		return conn, err
	}
}

// gaveUp says whether a dial tells nothing of the target: it had left, nobody waited for it long enough, or it was not dialled.
func gaveUp(ctx context.Context, err error, to netip.AddrPort, took time.Duration) bool {
	switch {
	case errors.Is(err, errLeft), errors.Is(err, ErrReturns), errors.Is(err, transparent.ErrImpossible), socket.Lacking(err, to):
		return true
	case errors.Is(ctx.Err(), context.Canceled):
		return took < longPatience
	case ctx.Err() != nil, isTimeout(err):
		return took < patience
	}
	return false
}

func isTimeout(err error) bool {
	late, is := errors.AsType[net.Error](err)
	return is && late.Timeout()
}

// dialHTTP is dial for the transport, whose connections outlive requests.
func (t *traffic) dialHTTP(ctx context.Context, _, address string) (net.Conn, error) {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	if t.plane.returns(spec.HTTP, addr) {
		return nil, &dialError{addr, ErrReturns}
	}
	conn, l, err := t.dial(ctx, t.plane.config.Dial, addr, connectTimeout)
	if err != nil {
		return nil, err
	}
	return t.leased(conn, l), nil
}

// leased ends a connection with its lease, until it is closed.
func (t *traffic) leased(conn net.Conn, l *lease) net.Conn {
	return &leasedConn{Conn: conn, stop: t.endWith(l, conn)}
}

// endWith closes connections when a lease ends, until stop is called.
func (t *traffic) endWith(l *lease, conns ...net.Conn) (stop func() bool) {
	return context.AfterFunc(l, func() { t.endOf(conns...) })
}

// endOf ends connections whose target has left.
func (t *traffic) endOf(conns ...net.Conn) {
	t.plane.counters.deregistered.Add(1)
	for _, c := range conns {
		relay.Abort(c)
	}
}

type leasedConn struct {
	net.Conn
	stop func() bool
}

func (c *leasedConn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// NetConn is the connection to the target.
func (c *leasedConn) NetConn() net.Conn { return c.Conn }

// CloseWrite ends one direction.
func (c *leasedConn) CloseWrite() error { return closeWrite(c.Conn) }

// Abort resets the connection.
func (c *leasedConn) Abort() {
	c.stop()
	relay.Abort(c.Conn)
}

func closeWrite(conn any) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
