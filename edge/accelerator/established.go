package accelerator

import (
	"cmp"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin/relay"
)

// errTerminated is why a flow was reset that could have gone on.
var errTerminated = errors.New("terminated")

// lane is where established flows are alike: they reached the same address and port, and end at the same endpoint.
type lane struct {
	accelerator      string
	protocol         string
	local            netip.AddrPort
	region, resource string
}

func (l lane) compare(o lane) int {
	return cmp.Or(cmp.Compare(l.accelerator, o.accelerator), cmp.Compare(l.protocol, o.protocol), l.local.Compare(o.local), cmp.Compare(l.region, o.region), cmp.Compare(l.resource, o.resource))
}

// seen is by what lanes are judged: of a view, the verdicts. So no view is held for longer than it counts.
type seen struct {
	spec     *spec.Spec
	verdicts *health.Table
}

func see(s *spec.Spec, v *view.View) seen {
	if v == nil {
		return seen{s, nil}
	}
	return seen{s, v.Health}
}

// Why no new flow comes a way any more.
const (
	Deleted    = "the accelerator is deleted"
	Disabled   = "the accelerator is disabled"
	NoListener = "nobody listens there any more"
	Removed    = "the endpoint is removed"
	NotAllowed = "traffic to it is not allowed any more"
	Unhealthy  = "the endpoint is unhealthy"
)

// stance is how a lane stands by a spec and a view.
type stance struct {
	// gone is why the spec has no such lane: "" it has. Its flows may go on for the delay, or to their own end where stays is set.
	gone  string
	delay time.Duration
	stays bool
	// healthy endpoints may be sent flows, and sick ones were found not to be; of others nothing was found. When one that was healthy is sick its
	// flows are reset if resets says so: of clients that are better served then.
	healthy, sick, resets bool
}

// stand judges a lane. Of an accelerator that is deleted the delay is the one it had.
func (l lane) stand(by seen, had time.Duration) stance {
	a := by.spec.Accelerators[l.accelerator]
	if a == nil {
		return stance{gone: Deleted, delay: had}
	}
	delay := time.Duration(0)
	if a.DeregistrationDelay != nil {
		delay = a.DeregistrationDelay.Std()
	}
	if !*a.Enabled {
		return stance{gone: Disabled, delay: delay}
	}
	listener := l.listener(a)
	if listener == nil {
		return stance{gone: NoListener, delay: delay}
	}
	is := stance{gone: Removed, delay: delay, stays: a.DeregistrationDelay == nil}
	if isCustom(a) {
		return l.standsCustom(a, listener, is)
	}
	at := site{spec: by.spec, view: &view.View{Health: by.verdicts}, accelerator: a, flow: Flow{Local: l.local}}
	for i := range listener.EndpointGroups {
		g := &group{spec: &listener.EndpointGroups[i]}
		if g.spec.Region != l.region {
			continue
		}
		for _, e := range g.spec.Endpoints {
			if resource, fit := g.judge(at, e); resource == l.resource {
				is.gone, is.healthy, is.sick, is.resets = "", fit, !fit && g.sick(at, e), g.spec.UnhealthyConnectionTermination
			}
		}
	}
	return is
}

// listener is where the lane's flows arrived, by an accelerator; nil: nobody listens there.
func (l lane) listener(a *spec.Accelerator) *spec.AcceleratorListener {
	if a == nil || !slices.Contains(a.IPAddresses, l.local.Addr()) {
		return nil
	}
	i := slices.IndexFunc(a.Listeners, func(one spec.AcceleratorListener) bool { return one.Protocol == l.protocol && one.Has(l.local.Port()) })
	if i < 0 {
		return nil
	}
	return &a.Listeners[i]
}

// ending says which flows of the lane are to end by a fate, by a spec and a view. Where their endpoint is unhealthy it is those of clients whose new
// flows would be sent to one that is healthy: others would be sent to any, this one too.
func (l lane) ending(f fate, s *spec.Spec, v *view.View) func(client netip.AddrPort) bool {
	if f.why != Unhealthy {
		return func(netip.AddrPort) bool { return f.why != "" }
	}
	a := s.Accelerators[l.accelerator]
	listener := l.listener(a)
	if listener == nil || v == nil {
		return func(netip.AddrPort) bool { return false }
	}
	return wellServed(s, v, a, listener, l.local)
}

// sick says of an endpoint that is not healthy that this was found out. One without a verdict, because its check was changed or begun just now, or its
// targets are others, takes no new flows, but is no reason to reset those that it has.
func (g *group) sick(at site, e spec.Endpoint) bool {
	found := func(key health.Key) bool {
		verdict, known := at.view.Health.Lookup(key)
		return known && !verdict.Healthy
	}
	groupFound := func(name string) bool {
		t := at.spec.TargetGroups[name]
		return t != nil && t.HealthCheck.On() && len(t.Targets) > 0 &&
			!slices.ContainsFunc(t.Targets, func(one spec.Target) bool { return !found(health.TargetKey(name, one.AddrPort())) })
	}
	switch {
	case e.Address.IsValid():
		return found(health.EndpointKey(at.accelerator.Name, g.spec.Region, g.spec.CheckAddr(e)))
	case e.LoadBalancer == "":
		return groupFound(e.TargetGroup)
	}
	lb := at.spec.LoadBalancers[e.LoadBalancer]
	return lb != nil && slices.ContainsFunc(lb.TargetGroups(), groupFound)
}

// fate is what becomes of the flows of a lane when it stands otherwise than before.
type fate struct {
	why   string        // "": they go on
	after time.Duration // that they may still have
}

// turn is the fate when a lane turns from one stance to another.
func turn(was, is stance) fate {
	switch {
	case is.gone != "" && !is.stays:
		return fate{is.gone, is.delay}
	case is.gone == "" && was.healthy && is.sick && is.resets:
		return fate{Unhealthy, 0}
	}
	return fate{}
}

// wasWell says that an endpoint was healthy when something was known of it last.
func wasWell(was, is stance) bool { return was.healthy && !is.healthy && !is.sick }

// live is a flow that is carried now.
type live struct {
	lane
	client  netip.AddrPort
	node    string // where it ends
	by      string // by which it went there at first; "": directly
	began   time.Time
	drawn   drawn // whether it is written down
	carried carriage
	conn    net.Conn       // the client's; nil: it is of datagrams
	target  netip.AddrPort // of one that is not, as far as it was told
	over    moving         // that it goes over; nil: it does not move
	written *written       // nil: it is not
	counted counted

	plane *Plane
	among *traffic
}

// carriage is how a flow is carried.
type carriage interface {
	// Moved is how many bytes so far.
	Moved() (in, out int64)
	// Break resets both ends. No lock is held.
	Break(err error)
}

// at is where the flow ends, as far as that was told.
func (f *live) at() netip.AddrPort {
	if datagrams, is := f.carried.(*going); is {
		return datagrams.target()
	}
	return f.target
}

// leg is what is known of the way to the client.
func (f *live) leg() (relay.Leg, bool) {
	if datagrams, is := f.carried.(*going); is {
		return datagrams.leg(), true
	}
	return f.plane.config.Leg(f.conn)
}

// last is to be called just before the flow's ends are closed.
func (f *live) last() { f.written.last() }

// flows are those that are carried now.
type flows struct {
	mu       sync.Mutex
	reviewed seen
	lanes    map[lane]*traffic
}

// traffic is the flows of one lane.
type traffic struct {
	by     seen          // they were judged by last, or the first of them was chosen by
	delay  time.Duration // that they had by then
	well   bool          // as wasWell has it
	flows  map[*live]struct{}
	ending *time.Timer // nil, unless they have to end
	turns  int         // of ending, so that a timer that fires late is known
}

// Ended is flows that had to end: of one way, for one reason.
type Ended struct {
	Accelerator, Region, Resource string
	Local                         netip.AddrPort // where they had come
	Why                           string
	Flows                         int
	After                         time.Duration // that they still have; 0: they were reset
}

// enter takes a flow in that was chosen by a spec and a view, which may be those of a moment ago: what has turned meanwhile turns for it now.
func (a *flows) enter(p *Plane, chosen seen, f *live) {
	s, v := p.table.Load().spec, p.config.View()
	now := see(s, v)
	a.mu.Lock()
	t := a.lanes[f.lane]
	isNew := t == nil
	if isNew {
		if a.lanes == nil {
			a.lanes = map[lane]*traffic{}
		}
		t = &traffic{by: chosen, flows: map[*live]struct{}{}}
		a.lanes[f.lane] = t
	}
	t.flows[f] = struct{}{}
	f.among = t
	ending := false
	if now != chosen {
		was := f.stand(chosen, t.delay)
		is := f.stand(now, was.delay)
		if isNew {
			t.by, t.delay, t.well = now, is.delay, wasWell(was, is) // else Review has seen it turn, or will
		}
		if fate := turn(was, is); t.endsNow(a, f.lane, fate) && f.ending(fate, s, v)(f.client) {
			ending = true
		}
	}
	a.mu.Unlock()
	if ending {
		f.carried.Break(errTerminated)
	}
}

// leave lets a flow go that was taken in.
func (a *flows) leave(f *live) {
	t := f.among
	a.mu.Lock()
	defer a.mu.Unlock()
	if delete(t.flows, f); len(t.flows) == 0 && a.lanes[f.lane] == t {
		t.stay()
		delete(a.lanes, f.lane)
	}
}

// endsNow says whether flows of the lane are to be reset now; those that have time yet are reset after it. The lock is held.
func (t *traffic) endsNow(a *flows, l lane, f fate) bool {
	switch {
	case f.why == "":
		return false
	case f.after == 0:
		t.stay()
		return true
	case t.ending == nil:
		turn := t.turns
		t.ending = time.AfterFunc(f.after, func() { a.expire(l, t, turn) })
	}
	return false
}

// stay has the flows go on that had to end. The lock is held.
func (t *traffic) stay() {
	if t.ending != nil {
		t.ending.Stop()
		t.ending = nil
		t.turns++
	}
}

// expire resets the flows of a lane whose time is up.
func (a *flows) expire(l lane, t *traffic, turn int) {
	a.mu.Lock()
	if t.turns != turn || a.lanes[l] != t {
		a.mu.Unlock()
		return // it is there again, or was
	}
	t.stay()
	ending := slices.Collect(maps.Keys(t.flows))
	a.mu.Unlock()
	resetAll(ending)
}

func resetAll(all []*live) {
	for _, one := range all {
		one.carried.Break(errTerminated)
	}
}

// Review has established flows end that are to, by the spec and the view of now, and says which: to be called when either has changed. It takes
// as long as there are endpoints with flows, and flows of those that turned unhealthy.
func (p *Plane) Review() []Ended {
	all, ending := p.live.review(p.table.Load().spec, p.config.View())
	resetAll(ending)
	return all
}

// turned is flows of a lane that stands otherwise than before.
type turned struct {
	lane
	fate    fate
	endsNow bool
	told    bool // where some are to end
	flows   []*live
}

func (a *flows) review(s *spec.Spec, v *view.View) (all []Ended, ending []*live) {
	for _, t := range a.turn(s, v) {
		ends, count := t.ending(t.fate, s, v), 0
		for _, one := range t.flows {
			if !ends(one.client) {
				continue
			}
			if count++; t.endsNow {
				ending = append(ending, one)
			}
		}
		if count > 0 && t.told {
			all = append(all, Ended{t.accelerator, t.region, t.resource, t.local, t.fate.why, count, t.fate.after})
		}
	}
	return all, ending
}

// turn has lanes stand as they do now, and returns those with a fate. Their flows are for the caller to judge, without the lock, which each flow takes that begins or ends, on a
// loop, too: which end depends on their clients. One that comes meanwhile turns by itself.
func (a *flows) turn(s *spec.Spec, v *view.View) (all []turned) {
	now := see(s, v)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.reviewed == now {
		return nil
	}
	a.reviewed = now
	for _, l := range slices.SortedFunc(maps.Keys(a.lanes), lane.compare) {
		t := a.lanes[l]
		was := l.stand(t.by, t.delay)
		was.healthy = was.healthy || t.well
		is := l.stand(now, was.delay)
		t.by, t.delay, t.well = now, is.delay, wasWell(was, is)
		f := turn(was, is)
		if f.why == "" {
			t.stay()
			continue
		}
		one := turned{lane: l, fate: f, endsNow: t.endsNow(a, l, f), told: was.gone == "" || is.gone == ""}
		if one.endsNow || one.told {
			one.flows = slices.Collect(maps.Keys(t.flows))
			all = append(all, one)
		}
	}
	return all
}
