package accelerator

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/origin/relay/loop"
)

// Prospect is the connection that Config.Take would open first, for who opens it by himself.
type Prospect struct {
	Target netip.AddrPort
	// Within is how long the endpoint has to take it.
	Within time.Duration
	// First is what the endpoint is to be told before the client's bytes, if anything.
	First []byte
	// Took is called once it stands.
	Took func(far net.Conn) Taken
	// Left is called where it came to nothing, with why the endpoint did not take it; nil: it was not asked.
	Left func(err error)
}

// StartSoon has one conn be carried as Start does, on its loop's goroutine and without waiting for anything: where its first candidate is this node, and the endpoint takes
// it at once. Of a conn that is more than that back is called, then or somewhat later: it is for Start, and of the flow nothing was counted, unless back says that it is not,
// as this node lacks what it takes.
func (p *Plane) StartSoon(client *loop.Conn, at netip.AddrPort, ended func(), back func() error) {
	s := soons.Get().(*soon)
	*s = soon{plane: p, client: client, flow: Flow{Client: client.Remote(), Local: at}, ended: ended, back: back}
	if !s.begin() {
		s.giveBack()
	}
}

// soons are those that are over: one lives from when a client was accepted until its endpoint has taken the flow. It is a cache and no state.
var soons = sync.Pool{New: func() any { return &soon{} }}

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
	prospect Prospect // Left is nil once it was called, or another's to call
	entered  bool     // it is one of those that maxFlows bounds
	chosen   seen
	ended    func()
	back     func() error
}

// begin has the endpoint be connected, if it is for a loop to do.
func (s *soon) begin() (begun bool) {
	p := s.plane
	t, v := p.table.Load(), p.config.View()
	e, ok := t.entry(spec.TCP, s.flow.Local)
	if !ok || v == nil || p.config.Prospect == nil {
		return false
	}
	s.entry = e
	candidates := Choose(t.spec, v, e.accelerator, e.listener, s.flow, nil)
	if len(candidates) == 0 || candidates[0].By != "" || candidates[0].Node != v.Self {
		return false
	}
	if s.prospect, ok = p.config.Prospect(candidates[0].Resource, s.flow.Client); !ok {
		s.prospect = Prospect{}
		return false
	}
	defer func() { // also where it panics
		if !begun {
			s.leave(nil)
		}
	}()
	if !p.enter() {
		return false // Start says why, where it is refused
	}
	s.entered = true
	s.by, s.chosen = candidates[0], see(t.spec, v)
	s.client.Connect(s.prospect.Target, s.prospect.Within, s.prospect.First, s.taken)
	return true
}

// leave gives back the places that the flow has taken.
func (s *soon) leave(err error) {
	if s.entered {
		s.entered = false
		s.plane.count.live.Add(-1)
	}
	if left := s.prospect.Left; left != nil {
		s.prospect.Left = nil
		left(err)
	}
}

// giveBack has the flow be for Start. Where its connection cannot be, it ends here, and is told of as Start would.
func (s *soon) giveBack() {
	p := s.plane
	p.count.givenBack.Add(1)
	err := s.back()
	if err == nil || errors.Is(err, net.ErrClosed) {
		return
	}
	p.config.Log.Debug("a flow that is not for a loop is reset", "client", s.flow.Client, "error", err)
	if s.entry.accelerator == nil {
		p.count.refused.Add(1)
		return
	}
	p.count.flows.Add(1)
	p.count.attemptsFailed.Add(1)
	p.count.dropped.Add(1)
	p.rejected(s.entry.accelerator, spec.TCP, s.flow, s.entry.refuses(s.flow.Local.Port()))
}

// taken has the flow be carried, or goes back.
func (s *soon) taken(far *loop.Conn, err error) {
	p := s.plane
	there, going := func(relay.Result) {}, false
	defer func() {
		if going {
			return
		}
		if far != nil {
			far.Abort() // something panicked, which the loop tells
		}
		s.client.Abort()
		there(relay.Result{Err: errUnbegun})
		s.leave(nil)
		s.ended()
	}()
	if err != nil {
		p.config.Log.Debug("an endpoint does not take a flow at once", "candidate", s.by.String(), "error", err)
		s.leave(err)
		s.giveBack()
		going = true
		return
	}
	p.count.flows.Add(1)
	_, there = s.prospect.Took(far).Hold(s.client)
	s.prospect.Left = nil
	carried := loop.Carry(s.client, far, s.entry.listener.IdleTimeout.Std())
	one := p.lives(s.entry.accelerator, s.flow, s.client, s.by, s.prospect.Target, p.sampled(s.entry.accelerator))
	one.carried = carried
	carried.Last, carried.Panicked = one.last, p.config.Panicked
	p.begin(s.entry.accelerator, s.chosen, one)
	p.count.looped.Add(1)
	going, s.entered = true, false
	ended := p.ends(one, there, s.ended)
	*s = soon{}
	soons.Put(s)
	carried.Start(func(r relay.Result) {
		if carried.HandedOver() {
			p.count.handedOver.Add(1)
		}
		ended(r)
	})
}
