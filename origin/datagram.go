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
	key    health.Key // of the target
	client netip.Addr
	as     netip.AddrPort // the client, if the target is to see it
	socket *datagram.Socket
	head   []byte // of each datagram: a PROXY header, or nothing
	back   back
	leave  func() bool // its lease
	name   sessionName
	target netip.AddrPort

	idler    relay.Idler
	answered atomic.Bool // the target has
	closed   atomic.Bool
}

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
	s := &session{plane: p, as: as, client: client.Addr(), back: way, leave: func() bool { return true }, name: sessionName{resource, client}}
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
		s.key = key
		if err := s.open(addr); err != nil {
			return nil, err
		}
	case "targetGroup":
		g := t.groups.Get(name)
		if g == nil || !g.local || g.spec.Protocol != spec.UDP {
			return nil, fmt.Errorf("%q is nothing in this region that takes datagrams", resource)
		}
		before := p.sessions.target(sessionName{resource, after})
		if !before.IsValid() {
			before = after // or nothing, where it was a client
		}
		if err := s.openIn(g, client, before); err != nil {
			return nil, fmt.Errorf("%s: %w", resource, err)
		}
	default:
		return nil, fmt.Errorf("%.80q is nothing that takes datagrams", resource)
	}
	if !p.sessions.enter(s, idle+sessionGrace) {
		s.socket.Discard()
		s.leave()
		return nil, errEnds
	}
	p.counters.sessions.Add(1)
	if tell {
		way.Tell(s.target.String())
	}
	return s, nil
}

// openIn opens the socket to the first target of a group for which there can be one: that of a session before, or whose turn it is.
func (s *session) openIn(g *group, client, before netip.AddrPort) error {
	err := errNoTargets
	for addr := range first(before, g.candidates(s.plane.config.View())) {
		l := g.traffic.lease(addr)
		if l == nil {
			err = &dialError{addr, errLeft}
			continue
		}
		s.key = health.TargetKey(g.spec.Name, addr)
		if err = s.open(addr); err != nil {
			continue
		}
		if g.spec.ProxyProtocolV2 {
			s.head = proxy.DatagramHeader(client, addr)
		}
		s.leave = context.AfterFunc(l, func() {
			s.plane.counters.deregistered.Add(1)
			s.end() // leave may not be set yet
		})
		return nil
	}
	return err
}

// first yields one, if it is valid, and then others.
func first(one netip.AddrPort, others iter.Seq[netip.AddrPort]) iter.Seq[netip.AddrPort] {
	return func(yield func(netip.AddrPort) bool) {
		if !one.IsValid() || yield(one) {
			others(yield)
		}
	}
}

func (s *session) open(addr netip.AddrPort) error {
	s.target = addr
	conn, err := s.plane.dialTarget(context.Background(), s.plane.dialerOf(s.as, s.plane.config.Dial), "udp", addr, connectTimeout)
	if err != nil {
		return err
	}
	s.socket, err = datagram.Dialled(conn)
	return err
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
		at = s.target
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
	c := &s.plane.counters
	var all [][]byte
	err := s.socket.Serve(func(in []datagram.Datagram) {
		s.idler.Touch()
		all = all[:0]
		size := 0
		for _, d := range in {
			all = append(all, d.Data)
			size += len(d.Data)
		}
		if !s.answered.Swap(true) {
			s.plane.evidence(s.key, s.client, false, "")
		}
		c.datagramsOut.Add(uint64(len(all)))
		c.datagramBytesOut.Add(uint64(size))
		if s.back.Send(all) != nil {
			c.datagramsUnsent.Add(uint64(len(all)))
		}
		clear(all)
	}, s.refused)
	if err != nil {
		s.plane.config.Log.Debug("a session with a target has ended", "target", s.key, "error", err)
	}
	s.close()
	a := &s.plane.sessions
	a.idlers.Remove(&s.idler) // close may have come before it was added
	a.mu.Lock()
	defer a.mu.Unlock()
	if delete(a.all, s); a.named[s.name] == s {
		delete(a.named, s.name)
	}
}

// send sends what the client sent to the target.
func (s *session) send(all [][]byte) {
	c := &s.plane.counters
	s.idler.Touch()
	size := 0
	for _, p := range all {
		size += len(p)
	}
	sent, err := s.socket.Send(datagram.Way{Head: s.head}, all)
	c.datagramsIn.Add(uint64(len(all)))
	c.datagramBytesIn.Add(uint64(size))
	c.datagramsUnsent.Add(uint64(len(all) - sent))
	if errors.Is(err, datagram.ErrRefused) {
		s.refused()
	}
}

// refused takes note that nobody listens at the target. The session stays, as Global Accelerator's flows do: the next client is led elsewhere when the
// target's checks have found it out, of which this is evidence.
func (s *session) refused() {
	s.plane.counters.datagramsRefused.Add(1)
	s.plane.evidence(s.key, s.client, true, "traffic: datagrams: nobody listens there")
}

// close ends the session, whose lease may go on. It does not wait for serve, which may be who calls.
func (s *session) close() {
	s.leave()
	s.end()
}

func (s *session) end() {
	if s.closed.Swap(true) {
		return
	}
	s.plane.sessions.idlers.Remove(&s.idler)
	s.socket.Close()
	s.back.Close()
}
