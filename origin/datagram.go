package origin

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/datagram"
	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/proxy"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/origin/relay"
)

// maxSessions bounds sessions; more are refused, and go to another node. Each has a port of its own, whatever its target, of which Linux gives out 28,232
// in all unless it is told otherwise (ip_local_port_range): where there is none left no socket of the machine gets one, that of a resolver neither.
const maxSessions = 24_000

// finished is how long a flow of datagrams must have been silent for a node that ends to take it to be finished: none says so.
const finished = 5 * time.Second

// sessionGrace is how much longer a session may be idle than its flow: who took the flow from the client ends it before.
const sessionGrace = 10 * time.Second

// DatagramResource is what ServeDatagrams is asked for, of a resource as StartFlow calls it and how long its flow may be idle. After is the client of a
// flow of the resource whose target this one is to have too, or that target; invalid: it may have any.
func DatagramResource(idle time.Duration, after netip.AddrPort, resource string) string {
	text := strconv.Itoa(int(idle / time.Second))
	if after.IsValid() {
		text += "@" + after.String()
	}
	return text + "/" + resource
}

// DatagramIdle is how long a flow may be idle by a DatagramResource; not ok: it is none.
func DatagramIdle(text string) (idle time.Duration, ok bool) {
	idle, _, _, ok = cutDatagramResource(text)
	return idle, ok
}

// cutDatagramResource takes that apart.
func cutDatagramResource(text string) (idle time.Duration, after netip.AddrPort, resource string, ok bool) {
	head, resource, found := strings.Cut(text, "/")
	seconds, client, has := strings.Cut(head, "@")
	n, err := strconv.ParseUint(seconds, 10, 16)
	idle = time.Duration(n) * time.Second
	if has && err == nil {
		after, err = netip.ParseAddrPort(client)
	}
	return idle, after, resource, found && err == nil && idle > 0 && idle <= spec.MaxAcceleratorIdle
}

// ServeDatagrams takes a flow of datagrams that an edge node has opened. The resource is DatagramResource's, of "targetGroup/<name>" or
// "endpoint/<accelerator>/<address>:<port>"; load balancers take no datagrams. Each flow has a socket of its own toward its target, which sees it come
// from one port. It ends when it was idle, when whoever opened it says so, and when the target has left its group for the deregistration delay.
func (p *Plane) ServeDatagrams(a backbone.Arrival) (backbone.Receiver, error) {
	s, err := p.openSession(a.Resource, a.Client, a.Back)
	if err != nil {
		p.counters.sessionsRefused.Add(1)
		return backbone.Receiver{}, err
	}
	return backbone.Receiver{Receive: s.send, End: func(error) { s.close() }}, nil
}

// back is the way to whoever opened a flow.
type back interface {
	Send(all [][]byte) error
	Close()
	// Refuse closes it so that it is begun anew elsewhere.
	Refuse(reason string)
	// Tell tells who has opened it something.
	Tell(text string)
}

// session is a flow of datagrams as it ends at a target.
type session struct {
	plane  *Plane
	client netip.AddrPort
	as     netip.AddrPort // the client, if the target is to see it
	group  *group         // of its targets; nil: there is one alone
	// accelerator is whose endpoint it is, where there is no group.
	accelerator string
	back        back
	tell        bool // at which target it ends
	name        sessionName
	began       time.Time

	idler    relay.Idler
	leg      atomic.Pointer[leg]
	answered atomic.Bool // the target has
	closed   atomic.Bool

	mu    sync.Mutex       // held by who sends as long as something is kept, and by who finds another target; guards:
	tried []netip.AddrPort // targets at which nobody listens
	leave func() bool      // the lease
	// looked says that it is known whether another endpoint would have the flow (others).
	looked, others bool
}

// leg is a session's way to its target.
type leg struct {
	target netip.AddrPort
	key    health.Key // of the target
	socket *datagram.Socket
	head   []byte // of each datagram: a PROXY header, or nothing
	kept   relay.Kept
}

const (
	// youngTime is how long after a session has begun it goes on to another target where nobody listens at its own and nothing was answered.
	youngTime = relay.KeptTime
	// maxTried bounds how many targets a session has at which nobody listens. Then it is refused.
	maxTried = 3
)

var errEnds = errors.New("this node ends")

// sessionName is a resource and the client of a flow of it.
type sessionName struct {
	resource string
	client   netip.AddrPort
}

// sessions are those that there are.
type sessions struct {
	most int // a few more where they are opened at the same moment

	mu     sync.Mutex
	all    map[*session]struct{}
	named  map[sessionName]*session // the newest of each name
	closed bool
	wg     sync.WaitGroup
	idlers relay.Idlers
	keeper relay.Keeper
}

// openSession finds a target and a socket. It waits for nobody: what listens there shows later.
func (p *Plane) openSession(text string, client netip.AddrPort, way back) (*session, error) {
	idle, after, resource, ok := cutDatagramResource(text)
	if !ok {
		return nil, fmt.Errorf("%.80q is nothing that takes datagrams", text)
	}
	if p.sessions.count() >= p.sessions.most {
		return nil, errors.New("too many flows of datagrams end at this node")
	}
	t := p.table.Load()
	resource, tell := cutMark(resource, toldMark)
	bare, as, err := t.seenAs(p.config.Region, resource, client)
	if err != nil {
		return nil, err
	}
	s := &session{plane: p, as: as, client: client, back: way, tell: tell, leave: func() bool { return true }, name: sessionName{resource, client}, began: time.Now()}
	kind, name, _ := strings.Cut(bare, "/")
	switch kind {
	case "endpoint":
		accelerator, at, _ := strings.Cut(name, "/")
		addr, err := netip.ParseAddrPort(at)
		if err != nil {
			return nil, fmt.Errorf("endpoint of accelerator %s: %w", accelerator, err)
		}
		key, ok := endpointKey(t.spec.Accelerators[accelerator], spec.UDP, p.config.Region, addr)
		if !ok {
			return nil, fmt.Errorf("%s is no endpoint for UDP of accelerator %s in this region", addr, accelerator)
		}
		s.accelerator = accelerator
		l, err := s.open(addr, key)
		if err != nil {
			return nil, err
		}
		s.leg.Store(l)
	case "targetGroup":
		g := t.groups.Get(name)
		if g == nil || !g.local || g.spec.Protocol != spec.UDP {
			return nil, fmt.Errorf("%q is nothing in this region that takes datagrams", resource)
		}
		before := p.sessions.target(sessionName{resource, after})
		if !before.IsValid() {
			before = after // or nothing, where it was a client
		}
		s.group = g
		if err := s.openIn(before); err != nil {
			return nil, fmt.Errorf("%s: %w", resource, err)
		}
	default:
		return nil, fmt.Errorf("%.80q is nothing that takes datagrams", resource)
	}
	if !p.sessions.enter(s, idle+sessionGrace) {
		s.leg.Load().socket.Discard()
		s.leave()
		return nil, errEnds
	}
	p.counters.sessions.Add(1)
	if tell {
		way.Tell(s.leg.Load().target.String())
	}
	return s, nil
}

// openIn opens the way to the first target of the session's group for which there can be one, and that has not been tried: that of a session before, or whose turn it is.
// It is called before the session is known to anybody, or with mu held.
func (s *session) openIn(before netip.AddrPort) error {
	g := s.group
	err := errNoTargets
	for addr := range first(before, g.candidates(s.plane.config.View())) {
		if slices.Contains(s.tried, addr) {
			continue
		}
		lease := g.traffic.lease(addr)
		if lease == nil {
			err = &dialError{addr, errLeft}
			continue
		}
		var l *leg
		if l, err = s.open(addr, health.TargetKey(g.spec.Name, addr)); err != nil {
			continue
		}
		if g.spec.ProxyProtocolV2 {
			l.head = proxy.DatagramHeader(s.client, addr)
		}
		s.leg.Store(l)
		s.leave = context.AfterFunc(lease, func() {
			if s.leg.Load() != l {
				return // it goes to another
			}
			s.plane.counters.deregistered.Add(1)
			s.end() // leave may not be set yet
		})
		return nil
	}
	return err
}

// alone says whether no other endpoint would have the session's flow if this one refuses it. It looks at all accelerators, so it is for those few that are refused, once.
func (s *session) alone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.looked {
		s.looked = true
		if now := s.plane.table.Load().spec; s.group != nil {
			s.others = othersThan(now, s.group.spec.Name)
		} else {
			s.others = othersOf(now.Accelerators[s.accelerator])
		}
	}
	return !s.others
}

// othersOf says whether an accelerator, which may be nil, has another endpoint take a flow of datagrams that one refuses.
func othersOf(a *spec.Accelerator) bool {
	if a == nil || a.Type == spec.CustomRoutingAccelerator { // its client has chosen the endpoint
		return false
	}
	for _, l := range a.Listeners {
		n := 0
		for _, g := range l.EndpointGroups {
			n += len(g.Endpoints)
		}
		if l.Protocol == spec.UDP && n > 1 {
			return true
		}
	}
	return false
}

// othersThan says whether an accelerator that has flows end at a target group has others.
func othersThan(s *spec.Spec, group string) bool {
	for _, a := range s.Accelerators {
		for _, l := range a.Listeners {
			for _, g := range l.EndpointGroups {
				if slices.ContainsFunc(g.Endpoints, func(e spec.Endpoint) bool { return e.TargetGroup == group }) && othersOf(a) {
					return true
				}
			}
		}
	}
	return false
}

// first yields one, if it is valid, and then others.
func first(one netip.AddrPort, others iter.Seq[netip.AddrPort]) iter.Seq[netip.AddrPort] {
	return func(yield func(netip.AddrPort) bool) {
		if !one.IsValid() || yield(one) {
			others(yield)
		}
	}
}

func (s *session) open(addr netip.AddrPort, key health.Key) (*leg, error) {
	conn, err := s.plane.dialTarget(context.Background(), s.plane.dialerOf(s.as, s.plane.config.Dial), "udp", addr, connectTimeout)
	if err != nil {
		return nil, err
	}
	l := &leg{target: addr, key: key}
	l.socket, err = datagram.Dialled(conn)
	return l, err
}

// enter has a session be served; false: there are to be no more.
func (a *sessions) enter(s *session, idle time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false
	}
	if a.all == nil {
		a.all, a.named = map[*session]struct{}{}, map[sessionName]*session{}
	}
	a.all[s], a.named[s.name] = struct{}{}, s
	a.idlers.Add(&s.idler, idle, s.close)
	a.wg.Go(s.serve)
	return true
}

// target is where the session of a name goes; invalid: there is none.
func (a *sessions) target(n sessionName) (at netip.AddrPort) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.named[n]; s != nil {
		at = s.leg.Load().target
	}
	return at
}

func (a *sessions) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.all)
}

// FinishDatagrams waits until the flows of datagrams that end at targets are finished, as far as that can be seen, or the context ends. More may still come.
func (p *Plane) FinishDatagrams(ctx context.Context) { p.sessions.idlers.Settle(ctx, finished) }

// close ends all, and waits for them.
func (a *sessions) close() {
	a.mu.Lock()
	a.closed = true
	all := slices.Collect(maps.Keys(a.all))
	a.mu.Unlock()
	for _, s := range all {
		s.back.Refuse(errEnds.Error())
		s.close()
	}
	a.wg.Wait()
}

// serve carries what the target sends, until the session is closed.
func (s *session) serve() {
	for {
		l := s.leg.Load()
		err := s.serveLeg(l)
		if s.leg.Load() != l {
			continue
		}
		if err != nil {
			s.plane.config.Log.Debug("a session with a target has ended", "target", l.key, "error", err)
		}
		s.close()
		if now := s.leg.Load(); now != l { // it was about to go on to another
			now.socket.Discard()
		}
		break
	}
	a := &s.plane.sessions
	a.idlers.Remove(&s.idler) // close may have come before it was added
	a.mu.Lock()
	defer a.mu.Unlock()
	if delete(a.all, s); a.named[s.name] == s {
		delete(a.named, s.name)
	}
}

// serveLeg carries what a target sends, until its socket is closed.
func (s *session) serveLeg(l *leg) error {
	c := &s.plane.counters
	var all [][]byte
	return l.socket.Serve(func(in []datagram.Datagram) {
		s.idler.Touch()
		all = all[:0]
		size := 0
		for _, d := range in {
			all = append(all, d.Data)
			size += len(d.Data)
		}
		if !s.answered.Swap(true) {
			s.plane.evidence(l.key, s.client.Addr(), false, "")
			s.plane.sessions.keeper.Drop(&l.kept)
		}
		c.datagramsOut.Add(uint64(len(all)))
		c.datagramBytesOut.Add(uint64(size))
		if err := s.back.Send(all); err != nil {
			unsent := len(all)
			if large, some := errors.AsType[*backbone.TooLargeError](err); some {
				unsent = len(large.Which)
			}
			c.datagramsUnsent.Add(uint64(unsent))
		}
		clear(all)
	}, func() { s.refused(l) })
}

// send sends what the client sent to the target. The first of it is kept, where another target may have to have it.
func (s *session) send(all [][]byte) {
	c := &s.plane.counters
	s.idler.Touch()
	size := 0
	for _, p := range all {
		size += len(p)
	}
	c.datagramsIn.Add(uint64(len(all)))
	c.datagramBytesIn.Add(uint64(size))
	l := s.leg.Load()
	var refused bool
	if s.group == nil || l.kept.Over() {
		refused = s.write(l, all)
	} else {
		l, refused = s.keep(all)
	}
	if refused {
		s.refused(l)
	}
}

// keep sends datagrams that are kept.
func (s *session) keep(all [][]byte) (l *leg, refused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l = s.leg.Load()
	s.plane.sessions.keeper.Keep(&l.kept, all)
	return l, s.write(l, all)
}

// write sends datagrams to a target, and says whether nobody listened there before.
func (s *session) write(l *leg, all [][]byte) (refused bool) {
	sent, err := l.socket.Send(datagram.Way{Head: l.head}, all)
	s.plane.counters.datagramsUnsent.Add(uint64(len(all) - sent))
	return errors.Is(err, datagram.ErrRefused)
}

// refused takes note that nobody listens at the target. A session that is young, and has had no answer, goes on to another target of its group with what was
// kept, or is refused, so that its flow goes on elsewhere, if there is an elsewhere. Others stay, as Global Accelerator's flows do: the next client is led elsewhere when the
// target's checks have found it out, of which this is evidence.
func (s *session) refused(l *leg) {
	for l != nil {
		s.plane.counters.datagramsRefused.Add(1)
		s.plane.evidence(l.key, s.client.Addr(), true, "traffic: datagrams: nobody listens there")
		if s.answered.Load() || time.Since(s.began) > youngTime {
			return
		}
		var goes bool
		if l, goes = s.another(l); !goes {
			if s.alone() {
				return // it would begin anew here
			}
			s.back.Refuse("nobody listens at the target")
			s.close()
		}
	}
}

// another has the session go on from one target to another, if it does not already; not goes: there is none. Refused is the way to that one where nobody listens there either.
func (s *session) another(l *leg) (refused *leg, goes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leg.Load() != l || s.closed.Load() {
		return nil, true
	}
	if !slices.Contains(s.tried, l.target) { // else it has stayed
		s.tried = append(s.tried, l.target)
	}
	leave := s.leave
	if s.group == nil || len(s.tried) >= maxTried || s.openIn(netip.AddrPort{}) != nil {
		return nil, false
	}
	leave()
	l.socket.Close()
	now, keeper := s.leg.Load(), &s.plane.sessions.keeper
	s.plane.counters.sessionsRetargeted.Add(1)
	if s.tell {
		s.back.Tell(now.target.String())
	}
	if kept := keeper.Drop(&l.kept); len(kept) > 0 {
		keeper.Keep(&now.kept, kept)
		if s.write(now, kept) {
			refused = now
		}
	}
	if s.closed.Load() { // meanwhile
		now.socket.Discard()
		keeper.Drop(&now.kept)
		s.leave()
		return nil, true
	}
	return refused, true
}

// close ends the session, whose lease may go on. It does not wait for serve, which may be who calls.
func (s *session) close() {
	s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leave()
}

func (s *session) end() {
	if s.closed.Swap(true) {
		return
	}
	s.plane.sessions.idlers.Remove(&s.idler)
	l := s.leg.Load()
	s.plane.sessions.keeper.Drop(&l.kept)
	l.socket.Close()
	s.back.Close()
}
