package accelerator

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/origin/relay/loop"
)

// soonTimeout is how long an endpoint has to take a flow that an event loop holds. It is in this region, and most answer within a millisecond; who is later is asked
// anew, as one of those that may be (race.go), and by no loop for a while.
const soonTimeout = 50 * time.Millisecond

// Prospect is the connection that Config.Take would open first, for who opens it by himself.
type Prospect struct {
	Target netip.AddrPort
	// Took is called once it stands.
	Took func(far net.Conn) Taken
	// Left is called where it came to nothing; then all is as if nobody had asked.
	Left func()
}

// StartSoon has one conn be carried as Start does, on its loop's goroutine and without waiting for anything: where its first candidate is this node, and the endpoint takes
// it at once. Of a conn that is more than that back is called, then or somewhat later, and nothing was counted: it is for Start.
func (p *Plane) StartSoon(client *loop.Conn, at netip.AddrPort, ended, back func()) {
	t, v := p.table.Load(), p.config.View()
	e, ok := t.entry(spec.TCP, at)
	if !ok || v == nil || p.config.Prospect == nil {
		back()
		return
	}
	f := Flow{Client: client.Remote(), Local: at}
	candidates := Choose(t.spec, v, e.accelerator, e.listener, f, nil)
	if len(candidates) == 0 || candidates[0].By != "" || candidates[0].Node != v.Self {
		back()
		return
	}
	prospect, ok := p.config.Prospect(candidates[0].Resource, f.Client)
	if !ok {
		back()
		return
	}
	if p.late.is(prospect.Target) || !p.enter() {
		prospect.Left()
		back() // who says why, where it is refused
		return
	}
	s := &soon{plane: p, client: client, flow: f, entry: e, by: candidates[0], prospect: prospect, chosen: see(t.spec, v), ended: ended, back: back}
	client.Connect(prospect.Target, soonTimeout, s.taken)
}

// EndsIn says whether flows that a listener takes may end in a region, by the spec alone.
func (p *Plane) EndsIn(l Listener, region string) bool {
	e, ok := p.table.Load().entry(l.Protocol, l.Address)
	return ok && slices.ContainsFunc(e.listener.EndpointGroups, func(g spec.EndpointGroup) bool { return g.Region == region })
}

// soon is a flow whose endpoint is being connected by a loop.
type soon struct {
	plane    *Plane
	client   *loop.Conn
	flow     Flow
	entry    entry
	by       Candidate
	prospect Prospect
	chosen   seen
	ended    func()
	back     func()
}

// taken has the flow be carried, or goes back.
func (s *soon) taken(far *loop.Conn, err error) {
	p := s.plane
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.late.was(s.prospect.Target)
		}
		p.config.Log.Debug("an endpoint does not take a flow at once", "candidate", s.by.String(), "error", err)
		p.count.live.Add(-1)
		s.prospect.Left()
		s.back()
		return
	}
	p.count.flows.Add(1)
	ended, going := func(relay.Result) { s.prospect.Left() }, false
	defer func() {
		if going {
			return
		}
		far.Abort() // something panicked, which the loop tells
		s.client.Abort()
		ended(relay.Result{Err: errUnbegun})
		p.count.live.Add(-1)
		s.ended()
	}()
	_, ended = s.prospect.Took(far).Hold(s.client)
	carried := loop.Carry(s.client, far, s.entry.listener.IdleTimeout.Std())
	one := p.lives(s.entry.accelerator, s.flow, s.client, s.by, s.prospect.Target, p.sampled(s.entry.accelerator))
	one.moved, one.reset = carried.Moved, carried.Break
	carried.Last, carried.Panicked = one.last, p.config.Panicked
	end := p.carry(s.entry.accelerator, s.chosen, one)
	going = true
	carried.Start(p.ends(end, ended, s.ended))
}
