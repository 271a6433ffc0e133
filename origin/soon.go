package origin

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/origin/relay/loop"
)

// soonTimeout is how long a target has to take a flow that an event loop holds. It is in this region, and most answer within a millisecond; who is later is asked
// anew by who may wait (TakeFlow, StartConn), and by no loop for a while.
const soonTimeout = 50 * time.Millisecond

// Prospect is the target that would be dialled first for a flow, for who connects to it by himself. One of Took and Left tells what has become of that; where it was not
// taken, TakeFlow is to be asked.
type Prospect struct {
	Target netip.AddrPort
	// Within is how long it has to take the flow.
	Within time.Duration
	// First is what it is to be told before the client's bytes, if anything (a PROXY header).
	First []byte

	flow  flow
	from  ends
	group *group // nil for an endpoint given by address
	split *split
	turn  uint64
	nth   int // of the candidates
}

// Prospect is for what TakeFlow is for. Not ok: more is to be done for the flow than to connect to a target, there is none, or it was late not long ago.
func (p *Plane) Prospect(resource string, client netip.AddrPort) (one *Prospect, ok bool) {
	return p.prospect(resource, client, nil)
}

// prospect is Prospect of a flow that came to an address, which is asked only if targets are to be told; nil: it is not known.
func (p *Plane) prospect(resource string, client netip.AddrPort, local func() netip.AddrPort) (one *Prospect, ok bool) {
	t := p.table.Load()
	resource, as, err := t.seenAs(p.config.Region, resource, client)
	if err != nil || as.IsValid() {
		return nil, false
	}
	one = &Prospect{Within: p.config.SoonTimeout, flow: flow{plane: p, client: client.Addr(), idle: acceleratedIdle}, from: ends{client: client}}
	f := &one.flow
	if name, is := strings.CutPrefix(resource, "endpoint/"); is {
		one.Target, f.key, err = t.endpoint(p.config.Region, name)
		return one, err == nil && !p.late.is(one.Target) && !p.wouldReturn(spec.TCP, one.Target)
	}
	g, idle, err := t.flow(resource)
	if err != nil {
		return nil, false
	}
	if g.spec.ProxyProtocolV2 && local != nil {
		one.from.local = local()
	}
	f.traffic, f.idle, f.balanced = g.traffic, idle, strings.HasPrefix(resource, "loadBalancer/")
	one.group, one.split, one.turn = g, g.splitBy(p.config.View()), g.turn()
	if _, ok = one.aim(); !ok {
		g.traffic.turnBack()
	}
	return one, ok
}

// aim has the candidate whose turn it is be the target. There may be none; not ok: it is not for loops to dial.
func (o *Prospect) aim() (is, ok bool) {
	f := &o.flow
	if o.Target, is = o.split.pool.At(o.turn, o.nth); !is {
		return false, false
	}
	if f.plane.late.is(o.Target) || f.plane.wouldReturn(spec.TCP, o.Target) {
		return true, false
	}
	if f.lease = f.traffic.lease(o.Target); f.lease == nil {
		return true, false
	}
	f.key = o.split.texts[o.Target].key
	if o.group.spec.ProxyProtocolV2 {
		o.First = introduction(o.from, o.Target)
	}
	return true, true
}

// Left tells that the target has not taken the flow, and why; nil: it was not asked. What says something of it counts, as a dial of TakeFlow's does: then the flow is the
// next target's. Else TakeFlow has the same turn: it asks the target anew, which may only have been late.
func (o *Prospect) Left(err error) {
	if o.left(err) && o.group != nil {
		o.flow.plane.counters.retries.Add(1)
	}
}

// left says whether the target has refused.
func (o *Prospect) left(err error) (refused bool) {
	f := &o.flow
	p := f.plane
	refused = err != nil && !errors.Is(err, net.ErrClosed) && !isTimeout(err) // else it was given up
	if err != nil {
		p.counters.connects.Add(1)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		p.late.was(o.Target)
	}
	if refused {
		refused = !p.dialFailed(err, o.Target)
	}
	if refused {
		p.evidence(f.key, f.client, true, reason("dial", &dialError{o.Target, err}))
	} else if o.group != nil && o.nth == 0 {
		f.traffic.turnBack()
	}
	return refused
}

// next has the next candidate be the target after one that has refused, as aim does.
func (o *Prospect) next() (is, ok bool) {
	o.nth++
	return o.aim()
}

// Took is the flow once the target has taken it, by this connection.
func (o *Prospect) Took(target net.Conn) *Taken {
	o.flow.plane.counters.flows.Add(1)
	o.flow.plane.counters.connects.Add(1)
	o.flow.target = target
	return &Taken{target, &o.flow}
}

// SoonHandler has connections to a TCP listener of this node be carried as StartConn does, on the goroutine of the event loop that holds them and without waiting for anything:
// where a target takes the flow at once. Of one that is more than that back is called, then or somewhat later: it is for StartConn, and was not counted, unless back
// says that it is not, as this node lacks what it takes.
func (p *Plane) SoonHandler(loadBalancer string, port uint16) func(client *loop.Conn, ended func(), back func() error) {
	resource := listenerKey{loadBalancer, port}.flow()
	return func(client *loop.Conn, ended func(), back func() error) {
		s := &soon{plane: p, client: client, ended: ended, back: back}
		s.begin(resource)
	}
}

// soon is a flow to a listener, whose target is being connected by a loop.
type soon struct {
	plane    *Plane
	client   *loop.Conn
	prospect *Prospect
	ended    func()
	back     func() error
}

func (s *soon) begin(resource string) {
	one, ok := s.plane.prospect(resource, s.client.Remote(), func() netip.AddrPort { return relay.AddrPort(s.client.LocalAddr()) })
	if !ok {
		s.giveBack()
		return
	}
	s.prospect = one
	s.connect()
}

func (s *soon) connect() {
	s.client.Connect(s.prospect.Target, s.prospect.Within, s.prospect.First, s.taken)
}

// giveBack has the flow be for StartConn. Where its connection cannot be, it ends here, as one that no target takes.
func (s *soon) giveBack() {
	s.plane.counters.flowsGivenBack.Add(1)
	if err := s.back(); err != nil && !errors.Is(err, net.ErrClosed) {
		s.plane.counters.flows.Add(1)
		s.plane.counters.flowsRefused.Add(1)
	}
}

// failed has the next target be asked after one that has refused. What says nothing of a target is for others to make of it what they can.
func (s *soon) failed(err error) {
	p, one := s.plane, s.prospect
	p.config.Log.Debug("a target does not take a flow at once", "target", one.Target, "error", err)
	if !one.left(err) {
		s.giveBack()
		return
	}
	switch is, ok := one.next(); {
	case ok:
		p.counters.retries.Add(1)
		s.connect()
	case is:
		s.giveBack()
	default: // it was the last
		p.counters.flows.Add(1)
		p.counters.flowsRefused.Add(1)
		s.client.Abort()
		s.ended()
	}
}

// errUnbegun is the error of a flow that was not carried, as something panicked before.
var errUnbegun = errors.New("it was not begun")

// taken has the flow be carried, or goes back.
func (s *soon) taken(far *loop.Conn, err error) {
	p, one := s.plane, s.prospect
	counted, going := func(relay.Result) {}, false
	defer func() {
		if going {
			return
		}
		if far != nil {
			far.Abort() // something panicked, which the loop tells
		}
		s.client.Abort()
		counted(relay.Result{Err: errUnbegun})
		s.ended()
	}()
	if err != nil {
		s.failed(err)
		going = true
		return
	}
	_, counted = one.Took(far).Hold(s.client)
	carried := loop.Carry(s.client, far, one.flow.idle)
	carried.Panicked = p.config.Panicked
	p.counters.flowsLooped.Add(1)
	going = true
	carried.Start(func(r relay.Result) {
		defer s.ended() // whatever panics
		if carried.HandedOver() {
			p.counters.flowsHandedOver.Add(1)
		}
		counted(r)
	})
}
