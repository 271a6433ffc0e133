package accelerator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/perigee-net/perigee/origin"
	"github.com/perigee-net/perigee/origin/relay"
)

// A flow is offered to one candidate after the other. Who says no gives way at once. Who says nothing is waited for, but not alone: after a moment the next is
// asked beside him, and who answers first has the flow (as RFC 8305 has it for addresses). The others are
// called off: what they have had of the client by then does no harm there (early.go), or is nothing. With a region that has died without a word a flow is served within a second, and with two of
// them as well, where the round trips are below 100 ms.
const (
	// attemptTimeout bounds one attempt, which is a round trip to the region and the dial of the target there.
	attemptTimeout = time.Second
	// connectTimeout bounds all attempts for one flow; a flow without an endpoint by then is reset.
	connectTimeout = 5 * time.Second
	// soonest and latest bound how long an attempt is waited for until the next is begun beside it: between them, for two measured round trips.
	soonest = 200 * time.Millisecond
	latest  = 350 * time.Millisecond
	// maxAtOnce bounds the attempts for one flow that are under way at once.
	maxAtOnce = 4
	// inFirstRegion is how many attempts are begun in the first region until one is in each other, where nobody answers.
	inFirstRegion = 2
)

// entrant is one way for a flow to a candidate.
type entrant struct {
	Candidate
	rank   int // of the candidate
	begun  int // as which of all, from 1; 0: not yet
	cancel context.CancelFunc
	ended  bool
	given  given
}

// race is the attempts for one flow.
type race struct {
	plane  *Plane
	client netip.AddrPort
	said   *opening // by the client; nil: nothing
	ends   time.Time

	mu      sync.Mutex
	over    chan struct{} // closed when it is decided; nil: nobody waits for that
	all     []entrant
	begun   int
	running int
	next    *time.Timer
	due     time.Time // when the next is to be begun at the earliest
	decided bool
	won     int // index of who has won; -1: nobody
	far     net.Conn
	target  netip.AddrPort
	fault   string // a panic of an attempt that was begun later, with its stack, which decided it; "": none
}

// taker is who has taken a flow.
type taker struct {
	far    net.Conn // nil: nobody has
	by     Candidate
	target netip.AddrPort // where it ends; invalid: that is not told
	so     relay.Carried  // how far it was carried meanwhile
}

// entrants are the ways for a flow to its candidates, in the order in which they are tried.
func entrants(candidates []Candidate) []entrant {
	all := make([]entrant, 0, len(candidates))
	for i, c := range candidates {
		all = append(all, entrant{Candidate: c, rank: i})
		if c.By != "" && !c.Detour { // if the detour fails the direct way is left
			c.By = ""
			all = append(all, entrant{Candidate: c, rank: i})
		}
	}
	return all
}

// connect opens a stream to a candidate that accepts in time, the first if it can be. What the client says meanwhile may be nil, and is not read any more when it returns.
func (p *Plane) connect(candidates []Candidate, client netip.AddrPort, said *opening) (by taker) {
	if len(candidates) == 0 {
		return by
	}
	r := &race{plane: p, client: client, said: said, ends: time.Now().Add(connectTimeout), won: -1, all: entrants(candidates)}
	said.ways(len(r.all))
	done := false
	defer func() {
		if !done {
			r.abandon()
			said.stop()
		}
	}()
	r.mu.Lock()
	first := r.begin(0)
	r.mu.Unlock()
	r.run(first, 0) // here, so that a flow whose first candidate answers costs no goroutine
	r.wait()
	if r.fault != "" {
		panic(r.fault) // here, where who called recovers, as if the attempt had been made here
	}
	said.stop()
	if r.won < 0 {
		done = true
		return by
	}
	one := &r.all[r.won]
	by = taker{r.far, one.Candidate, r.target, said.so(&one.given)}
	done = true
	if one.rank > 0 {
		p.count.failovers.Add(1)
	}
	if one.By != "" {
		p.count.detours.Add(1)
	}
	return by
}

// wait returns when it is decided.
func (r *race) wait() {
	r.mu.Lock()
	if r.decided {
		r.mu.Unlock()
		return
	}
	over := make(chan struct{})
	r.over = over
	r.mu.Unlock()
	<-over
}

// run makes attempts, one after the other, until there is nothing to be done any more.
func (r *race) run(ctx context.Context, i int) {
	for i >= 0 {
		far, target, err := r.plane.attempt(r.said.toward(ctx, &r.all[i].given), r.all[i].Candidate, r.client)
		i, ctx = r.ended(i, far, target, err)
	}
}

// abandon ends the race for who does not wait for it any more, as it panics.
func (r *race) abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.decided {
		r.decide()
	}
	if r.far != nil {
		relay.Abort(r.far)
		r.far = nil
	}
}

// late begins the next attempt, as those before it have not answered yet. It is called on a goroutine of its own, where nobody recovers.
func (r *race) late() {
	defer func() {
		if v := recover(); v != nil {
			r.failed(v)
		}
	}()
	if i, ctx := r.following(); i >= 0 {
		r.run(ctx, i)
	}
}

// following begins the next attempt of late, if there is to be one; -1: there is not.
func (r *race) following() (i int, ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.decided || r.running >= maxAtOnce || time.Now().Before(r.due) { // the timer had fired as one failed, and the next was begun for that
		return -1, nil
	}
	if i = r.pick(true); i >= 0 {
		ctx = r.begin(i)
	}
	return i, ctx
}

// failed decides the race by a panic, which connect passes on. Where it was decided before, nobody is left to pass it on to.
func (r *race) failed(v any) {
	fault := fmt.Sprintf("%v, in an attempt that was begun later\n%s", v, debug.Stack())
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.decided {
		r.plane.count.attemptsFailed.Add(1)
		r.plane.config.Log.Error("an attempt for a flow panicked", "panic", fault)
		return
	}
	r.fault = fault
	r.decide()
}

// pick is who is to be tried next, -1 if nobody is left: in their order, or, where nobody says anything, with each region in its turn. r.mu is held.
func (r *race) pick(silence bool) int {
	begun := func(region string) (n int) {
		for i := range r.all {
			if r.all[i].begun > 0 && r.all[i].Region == region {
				n++
			}
		}
		return n
	}
	first := -1
	for i := range r.all {
		if r.all[i].begun > 0 {
			continue
		}
		if first < 0 {
			first = i
		}
		n := begun(r.all[i].Region)
		if !silence || n == 0 || n < inFirstRegion && r.all[i].Region == r.all[0].Region {
			return i
		}
	}
	return first
}

// begin takes note that an attempt is begun, and has the next begin if that takes long. r.mu is held.
func (r *race) begin(i int) (ctx context.Context) {
	ends := r.ends
	if next := time.Now().Add(attemptTimeout); next.Before(ends) {
		ends = next
	}
	ctx, r.all[i].cancel = context.WithDeadline(context.Background(), ends)
	r.begun++
	r.running++
	r.all[i].begun = r.begun
	alone := r.plane.patience(r.all[i].Candidate)
	r.due = time.Now().Add(alone)
	switch {
	case r.begun == len(r.all) || r.running >= maxAtOnce:
		if r.next != nil {
			r.next.Stop()
		}
	case r.next == nil:
		r.next = time.AfterFunc(alone, r.late)
	default:
		r.next.Reset(alone)
	}
	return ctx
}

// patience is how long an attempt is waited for alone.
func (p *Plane) patience(c Candidate) time.Duration {
	var rtt time.Duration
	if v := p.config.View(); v != nil {
		rtt = v.RTT[c.Node]
	}
	return min(max(soonest, 2*rtt), latest)
}

// ended takes note of how an attempt has ended, and says which is to follow; -1: none.
func (r *race) ended(i int, far net.Conn, target netip.AddrPort, err error) (next int, ctx context.Context) {
	p := r.plane
	r.mu.Lock()
	defer r.mu.Unlock()
	one := &r.all[i]
	one.cancel()
	one.ended = true
	r.running--
	switch {
	case r.decided && err == nil:
		relay.Abort(far)
		fallthrough
	case r.decided && r.won >= 0 && one.begun > r.all[r.won].begun:
		p.count.attemptsCalledOff.Add(1)
		return -1, nil
	case err == nil:
		r.won, r.far, r.target = i, far, target
		r.decide()
		return -1, nil
	}
	p.config.Log.Debug("flow gives way", "candidate", one.String(), "error", err)
	if one.By != "" {
		p.count.detoursFailed.Add(1)
	}
	if !r.left(one.rank) {
		p.count.attemptsFailed.Add(1)
	}
	if r.decided {
		return -1, nil
	}
	if errors.Is(err, origin.ErrReturns) {
		r.shun(one.Resource)
	}
	if next = r.pick(false); next >= 0 && time.Now().Before(r.ends) {
		return next, r.begin(next)
	}
	if r.running == 0 {
		r.decide()
	}
	return -1, nil
}

// shun has nobody else be asked for what this node will not dial, as its flows would come back: who does not know that yet would dial it. r.mu is held.
func (r *race) shun(resource string) {
	for i := range r.all {
		if other := &r.all[i]; other.begun == 0 && other.Resource == resource {
			r.begun++
			other.begun, other.ended = r.begun, true
		}
	}
}

// left says that a candidate has another way that may do, or has. r.mu is held.
func (r *race) left(rank int) bool {
	for i := range r.all {
		if r.all[i].rank == rank && (i == r.won || !r.decided && !r.all[i].ended) {
			return true
		}
	}
	return false
}

// decide ends the race. r.mu is held.
func (r *race) decide() {
	r.decided = true
	if r.next != nil {
		r.next.Stop()
	}
	for i := range r.all {
		if one := &r.all[i]; one.begun > 0 && !one.ended {
			one.cancel()
		}
	}
	if r.over != nil {
		close(r.over)
	}
}
