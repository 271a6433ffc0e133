package accelerator

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/datagram"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin"
	"github.com/perigee-net/perigee/origin/relay"
)

const (
	// maxNewFlows bounds the flows of datagrams that begin in a second: a flood of them must leave those that stand the processor. What is beyond is
	// dropped, and may come again.
	maxNewFlows = 10_000
	// lookPause is how long a flow that found no endpoint waits before it looks again; what comes meanwhile is dropped.
	lookPause = 100 * time.Millisecond
	// maxRefusals bounds how many datagrams are written down in a second that began no flow because there were too many.
	maxRefusals = 100
	// finished is how long a flow must have been silent for a node that ends to take it to be finished: none says so.
	finished = 5 * time.Second
	// keptPending is how many datagrams a flow keeps room for between two looks.
	keptPending = 8
)

// declinedTime is how long a candidate that has refused a flow is passed over by it: a node that was started anew takes it again.
const declinedTime = 10 * time.Second

// datagramService is what origin answers flows of datagrams under, on the backbone.
const datagramService = "udp"

// Datagrams is a flow of datagrams as it goes on to its endpoint.
type Datagrams interface {
	// Send sends datagrams, and has taken over none of them when it returns. A *backbone.TooLargeError says that some do not go, any other error that none does.
	Send(all [][]byte) error
	// Ask asks once more whether the other end knows the flow.
	Ask()
	// Close ends the flow there.
	Close()
}

// datagramFlow is one flow of datagrams.
type datagramFlow struct {
	key    tuple
	door   *datagramDoor
	source netip.Addr // of this machine, from which answers leave where the door is of all addresses
	quic   bool       // it may be

	// Of the plane's table:
	of       *share // nil: it is not in it
	standing standing
	links    [2]links
	ids      []connID // that its server has chosen, the newest last
	idLength int      // of those; 0: it is not known
	usage    usage
	came     connID // by which its first packet was known to be of another flow's connection, until it is answered

	idler    relay.Idler
	answered atomic.Bool // the endpoint has sent something
	closed   atomic.Bool

	pending [][]byte // of its door's goroutine

	moved netip.AddrPort // the client of the flow before it, of one that goes on with that one's connection

	turn  sync.Mutex     // held by who sends what the client sent; guards:
	after netip.AddrPort // moved, or the target that it is to have
	pause time.Time      // until which it looks for no endpoint
	told  bool           // it was written down that it found none

	mu      sync.Mutex // guards what follows
	entry   entry      // that it looked by last; who holds turn alone changes it
	first   Candidate  // where the flow before it goes, until it is not to go there any more
	server  serverID   // of QUIC, to which the flow is to go as long as named is set
	named   bool
	far     Datagrams // nil: it goes nowhere
	by      Candidate
	course  *course
	refused []declined
	aside   []aside  // ways that were left as they were silent, until something is heard by this or another
	waiting [][]byte // its first datagrams, as they were kept of a way that it left, until it sends them again, before anything else
}

// declined is a candidate that has refused a flow, or has said nothing of it.
type declined struct {
	candidate string
	region    string
	silent    bool // it has said nothing
	since     time.Time
}

var errDeclined = errors.New("refused")

// declines says whether a candidate has refused the flow lately.
func declines(all []declined, c Candidate) bool {
	return slices.ContainsFunc(all, func(d declined) bool { return d.candidate == c.String() && time.Since(d.since) < declinedTime })
}

// course is what a flow carries as long as it goes one way.
type course struct {
	entry                      entry // by which it was found
	tally                      *tally
	in, out, bytesIn, bytesOut atomic.Uint64
	end                        func(how string) // guarded by the flow's mu; nil: not yet
	kept                       relay.Kept
	drawn                      drawn
	target                     atomic.Pointer[netip.AddrPort] // nil: it was not told
	begun                      bool                           // the flow goes it, or has gone it; guarded by the flow's mu, as what follows
	over                       bool                           // its end was heard of
	awaiting                   awaiting
	had                        int         // how many of the flow's first datagrams, as they were kept last, had gone by it when it was put aside
	isLeft                     atomic.Bool // it was left, and nobody is known to have what it was sent: it is aside, or the flow has gone back from it
}

// sent counts datagrams from the client, answered those to it.
func (c *course) sent(n int, size uint64) {
	c.tally.in.Add(size)
	c.in.Add(uint64(n))
	c.bytesIn.Add(size)
}

func (c *course) answered(n int, size uint64) {
	c.tally.out.Add(size)
	c.out.Add(uint64(n))
	c.bytesOut.Add(size)
}

// finish counts the way as one that is gone no more, and has its end told, if there is somebody to be told.
func (c *course) finish(end func(how string), how string) {
	c.tally.live.Add(-1)
	if end != nil {
		end(how)
	}
}

// told hears at which target it ends.
func (c *course) told(text string) {
	if at, err := netip.ParseAddrPort(text); err == nil {
		c.target.Store(&at)
	}
}

// datagramDoor is a socket of a listener.
type datagramDoor struct {
	plane  *Plane
	at     netip.AddrPort
	socket *datagram.Socket

	touched, gone []*datagramFlow // take's own
	refused       []refusal
}

// refusal is a flow that did not begin because there were too many.
type refusal struct {
	accelerator *spec.Accelerator
	key         tuple
}

// datagrams is what a plane has of flows of datagrams.
type datagrams struct {
	mu     sync.Mutex
	table  *flowTable
	second time.Time // in which flows are counted that begin, and those that are refused and written down
	number uint32    // of it
	began  int
	told   int
	ends   bool // no flow begins any more
	idlers relay.Idlers
	keeper relay.Keeper
}

// ServePackets carries the datagrams that come to a listener's socket, until that is closed or fails; it closes it. All flows of the socket end with it.
func (p *Plane) ServePackets(l Listener, conn net.PacketConn) error {
	socket, err := datagram.Listening(conn)
	if err != nil {
		conn.Close()
		return err
	}
	d := &datagramDoor{plane: p, at: l.Address, socket: socket}
	err = socket.Serve(d.take, nil)
	for _, f := range p.datagramFlows(func(f *datagramFlow) bool { return f.door == d }) {
		p.endFlow(f, closed)
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// FinishDatagrams has no flow of datagrams begin any more but those by which a connection of QUIC that stands goes on, and waits until those that there are, and those that are carried on here, are finished, as far as
// that can be seen, or the context ends. What a new client sends meanwhile is dropped, and counted: this node is to be closed.
func (p *Plane) FinishDatagrams(ctx context.Context) {
	p.udp.mu.Lock()
	p.udp.ends = true
	p.udp.mu.Unlock()
	p.udp.idlers.Settle(ctx, finished)
}

// EndFlows ends the flows of datagrams of clients that are not to be served any more, as Config.Blocked says.
func (p *Plane) EndFlows() {
	if p.config.Blocked == nil {
		return
	}
	for _, f := range p.datagramFlows(func(f *datagramFlow) bool { return p.config.Blocked(f.key.client.Addr()) }) {
		p.count.udpBlocked.Add(1)
		p.endFlow(f, closed)
	}
}

func (p *Plane) datagramFlows(wanted func(*datagramFlow) bool) (all []*datagramFlow) {
	u := &p.udp
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, f := range u.table.flows {
		if wanted(f) {
			all = append(all, f)
		}
	}
	return all
}

func (p *Plane) liveDatagramFlows() uint64 {
	p.udp.mu.Lock()
	defer p.udp.mu.Unlock()
	return uint64(len(p.udp.table.flows))
}

// take carries what came to the socket. Its datagrams are first put to their flows, so that those of one go together.
func (d *datagramDoor) take(in []datagram.Datagram) {
	p := d.plane
	u := &p.udp
	touched, gone := d.touched[:0], d.gone[:0]
	u.mu.Lock()
	var last *datagramFlow
	for _, one := range in {
		key := tuple{client: one.From, at: d.at}
		if one.At.IsValid() {
			key.at = netip.AddrPortFrom(one.At, d.at.Port())
		}
		f := last
		if f == nil || f.key != key {
			if f = u.table.heard(key); f == nil {
				var goes *datagramFlow
				if f, goes = d.admit(key, one); goes != nil {
					gone = append(gone, goes)
				}
			}
			last = f
		}
		if f == nil {
			p.count.udpDropped.Add(1)
			continue
		}
		if f.idLength > 0 {
			u.table.used(f, one.Data)
		}
		if len(f.pending) == 0 {
			touched = append(touched, f)
		}
		f.pending = append(f.pending, one.Data)
	}
	u.mu.Unlock()
	for _, f := range gone {
		p.endFlow(f, closed)
	}
	for _, r := range d.refused {
		p.rejected(r.accelerator, spec.UDP, Flow{Client: r.key.client, Local: d.at}, tooMany)
	}
	clear(d.refused)
	d.refused = d.refused[:0]
	for _, f := range touched {
		f.forward(f.pending)
		clear(f.pending)
		if f.pending = f.pending[:0]; cap(f.pending) > keptPending {
			f.pending = nil
		}
	}
	clear(touched)
	clear(gone)
	d.touched, d.gone = touched, gone
}

// admit begins a flow, if it may be; another may have to go for it. The table is locked.
func (d *datagramDoor) admit(key tuple, one datagram.Datagram) (f, goes *datagramFlow) {
	p, c := d.plane, &d.plane.count
	u := &p.udp
	t := p.table.Load()
	e, ok := t.entry(spec.UDP, d.at)
	var before *datagramFlow
	var came connID
	if u.ends && ok { // a connection that stands may move to the last
		before, came = u.table.predecessor(key, one.Data)
	}
	if !ok || u.ends && before == nil {
		c.udpRefused.Add(1)
		return nil, nil
	}
	if p.config.Blocked != nil && p.config.Blocked(key.client.Addr()) {
		c.udpBlocked.Add(1)
		return nil, nil
	}
	if now := time.Now(); now.Sub(u.second) >= time.Second {
		u.second, u.began, u.told = now, 0, 0
		u.number++
	}
	if !u.table.begins(clientOf(key.client.Addr()), u.number, &u.began, maxNewFlows) {
		c.udpHasty.Add(1)
		d.refuse(e.accelerator, key)
		return nil, nil
	}
	f = &datagramFlow{key: key, door: d, entry: e, source: one.At, quic: beginsQUIC(one.Data)}
	f.server, f.named = serverOf(one.Data)
	if !u.ends {
		before, came = u.table.predecessor(key, one.Data)
	}
	goes, v := u.table.admit(f)
	switch v {
	case full:
		c.udpFull.Add(1)
		d.refuse(e.accelerator, key)
		return nil, nil
	case crowded:
		c.udpCrowded.Add(1)
		d.refuse(e.accelerator, key)
		return nil, nil
	}
	switch {
	case goes == nil:
	case goes.standing == settled:
		c.udpYielded.Add(1)
	default:
		c.udpEvicted.Add(1)
	}
	if before != nil && before != goes {
		before.mu.Lock()
		by, same := before.by, before.entry.listener == e.listener
		before.mu.Unlock()
		if same {
			f.quic, f.moved, f.came, f.first, f.idLength = true, before.key.client, came, by, before.idLength
			c.udpMoved.Add(1)
		}
	}
	c.udpFlows.Add(1)
	u.idlers.Add(&f.idler, e.listener.IdleTimeout.Std(), func() {
		c.udpIdle.Add(1)
		p.endFlow(f, idle)
	})
	return f, goes
}

// refuse has a flow be written down that does not begin because there are too many, if few were in this second. The table is locked.
func (d *datagramDoor) refuse(a *spec.Accelerator, key tuple) {
	u := &d.plane.udp
	if u.told++; u.told <= maxRefusals {
		d.refused = append(d.refused, refusal{a, key})
		return
	}
	d.plane.count.udpUntold.Add(1)
}

// endFlow ends a flow here and at its endpoint. It may have ended already.
func (p *Plane) endFlow(f *datagramFlow, how string) {
	if f.closed.Swap(true) {
		return
	}
	u := &p.udp
	u.mu.Lock()
	u.table.remove(f)
	u.mu.Unlock()
	u.idlers.Remove(&f.idler)
	f.leave(how)
}

// leave ends the flow at its endpoint; the next datagram looks for another.
func (f *datagramFlow) leave(how string) {
	f.mu.Lock()
	silent := f.aside
	f.aside = nil
	f.mu.Unlock()
	closeAll(silent)
	f.leaveWay(nil, how)
}

// leaveWay is leave, if the flow goes that way still, or, for nil, any.
func (f *datagramFlow) leaveWay(way *course, how string) {
	f.mu.Lock()
	if way != nil && f.course != way {
		f.mu.Unlock()
		return
	}
	far, went := f.far, f.course
	f.far, f.course = nil, nil
	var end func(string)
	if went != nil {
		end = went.end
		went.awaiting.stop()
	}
	f.mu.Unlock()
	if far == nil {
		return
	}
	far.Close()
	f.door.plane.udp.keeper.Drop(&went.kept)
	went.finish(end, how)
}

// goes is where it goes, and what it is to send there first.
func (f *datagramFlow) goes() (far Datagrams, way *course, waiting [][]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.far != nil {
		waiting, f.waiting = f.waiting, nil
	}
	return f.far, f.course, waiting
}

// waits takes what the flow is to send first.
func (f *datagramFlow) waits() (waiting [][]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	waiting, f.waiting = f.waiting, nil
	return waiting
}

// went has the flow held and written down as long as it goes this way, without what went by it before. A way that turns while it is found is left at once.
func (f *datagramFlow) went(c Candidate, chosen seen, way *course, before gone) {
	p := f.door.plane
	one := &live{
		lane: lane{way.entry.accelerator.Name, spec.UDP, f.door.at, c.Region, c.Resource}, client: f.key.client, node: c.Node, by: c.By, began: time.Now(), drawn: way.drawn,
		carried: &going{f, way, before},
	}
	p.begin(way.entry.accelerator, chosen, one)
	end := one.end
	f.mu.Lock()
	left := f.course != way || way.end != nil // or was left, and returned to
	if !left {
		way.end = end
	}
	f.mu.Unlock()
	if left {
		end(closed)
	}
}

// going is a flow that goes a way, as it is carried.
type going struct {
	flow   *datagramFlow
	way    *course
	before gone
}

// gone is how much has gone by a way to its endpoint.
type gone struct{ datagrams, bytes uint64 }

func (g *going) target() (at netip.AddrPort) {
	if told := g.way.target.Load(); told != nil {
		at = *told
	}
	return at
}

// Moved is as carriage has it.
func (g *going) Moved() (in, out int64) {
	return int64(g.way.bytesIn.Load() - g.before.bytes), int64(g.way.bytesOut.Load())
}

func (g *going) leg() relay.Leg {
	return relay.Leg{PacketsIn: g.way.in.Load() - g.before.datagrams, PacketsOut: g.way.out.Load()}
}

// Break is as carriage has it.
func (g *going) Break(error) {
	f := g.flow
	f.door.plane.count.terminated.Add(1)
	f.mu.Lock()
	f.first, f.named = Candidate{}, false
	f.mu.Unlock()
	f.leave(terminated)
}

// forward sends what the client sent to the flow's endpoint, or to the next that takes the flow.
func (f *datagramFlow) forward(all [][]byte) {
	f.idler.Touch()
	f.turn.Lock()
	defer f.turn.Unlock()
	n, c := uint64(len(all)), &f.door.plane.count
	large, goes := f.send(all)
	if !goes {
		c.udpDropped.Add(n)
		return
	}
	c.datagramsIn.Add(n - large)
}

// again sends what was sent to who has refused the flow, or has said nothing, then to the next that takes it; or what who is gone back to lacks of it. If the
// client sends something meanwhile, it goes with that, and before it: what is first is often what the rest means nothing without.
func (f *datagramFlow) again() {
	f.turn.Lock()
	defer f.turn.Unlock()
	f.send(nil)
}

// send sends datagrams to the flow's endpoint, or to the next that takes the flow, and before them what waits; large is how many do not go, as they are larger than the
// path takes: those are counted here, and as they are given up there is nil in their place where they were kept, so that they are tried, and counted, by one way alone. Not
// goes: none goes. What waits are the flow's first datagrams, as they were kept: those that have gone by a way which the flow has gone back to do not go there again. f.turn
// is held.
func (f *datagramFlow) send(all [][]byte) (large uint64, goes bool) {
	p := f.door.plane
	ahead := 0     // as many of all were sent before, and came ahead of what is to be sent
	again := 0     // as many of those are sent again now
	first := false // all begins with the flow's first datagrams
	drop := func() (uint64, bool) {
		p.count.udpDropped.Add(uint64(len(sendable(all[:ahead]))))
		return 0, false
	}
	for range 1 + maxCandidates {
		far, way, waiting := f.goes()
		if far == nil {
			if len(all) == 0 && !f.hasWaiting() {
				return 0, true // it has gone with something else
			}
			if !f.connect() {
				waiting := f.waits()
				all, ahead = slices.Concat(waiting, all), ahead+len(waiting)
				return drop()
			}
			continue
		}
		if len(waiting) > 0 {
			first = true
			all, ahead, again = slices.Concat(waiting, all), ahead+len(waiting), again+len(waiting)
		}
		if first {
			lacks := f.lacks(way, all)
			n := len(all) - len(lacks)
			all, ahead, again = lacks, max(0, ahead-n), max(0, again-n)
		}
		if len(all) == 0 {
			return 0, true
		}
		kept := p.udp.keeper.Keep(&way.kept, all) // before: it may be refused while it is sent
		goes := sendable(all)
		if len(goes) == 0 {
			return 0, true
		}
		n, size := len(goes), bytesOf(goes)
		resent := len(sendable(all[:again]))
		again = 0
		err := far.Send(goes)
		tooLarge, some := errors.AsType[*backbone.TooLargeError](err)
		if err == nil || some {
			if !kept && way.isLeft.Load() {
				p.count.udpResent.Add(uint64(resent))
				continue // it was left meanwhile, and who goes on from there does not have it
			}
			if some {
				which := placesOf(tooLarge.Which, all)
				for _, i := range which {
					n, size = n-1, size-uint64(len(all[i]))
				}
				old, _ := slices.BinarySearch(which, ahead)
				large, resent = uint64(len(which)-old), max(0, resent-old)
				if f.givesUp(way, kept, len(all), which) {
					p.count.udpDropped.Add(uint64(len(which)))
					p.count.udpLarge.Add(uint64(len(which)))
				}
			}
			p.count.udpResent.Add(uint64(resent))
			way.sent(n, size)
			return large, true
		}
		p.count.udpResent.Add(uint64(resent))
		if _, refused := errors.AsType[*backbone.RefusedError](err); refused {
			_, mine := f.declined(way, err)
			if kept && !mine && f.isOver(way) {
				return 0, true // whoever heard of the refusal sends it again
			}
			if mine {
				before := f.waits()
				first = first || len(before) > 0
				if kept {
					before = before[:max(0, len(before)-len(all))] // it is the last of what was kept
				}
				all, ahead, again = slices.Concat(before, all), ahead+len(before), len(before)
			}
			continue
		}
		if errors.Is(err, backbone.ErrBusy) || f.closed.Load() {
			return drop()
		}
		if kept && f.isOver(way) {
			return 0, true // it was left meanwhile, and this goes with what was kept
		}
		p.count.udpBroken.Add(1) // its node cannot be reached any more, or has ended it
		if before := f.unheard(way); kept && len(before) >= len(all) {
			first = true
			before = before[:len(before)-len(all)]
			all, ahead, again = slices.Concat(before, all), ahead+len(before), len(before)
		}
		f.leaveWay(way, broken)
	}
	return drop()
}

// sendable are those of a flow's datagrams that were not given up.
func sendable(all [][]byte) [][]byte {
	if !slices.ContainsFunc(all, isGivenUp) {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), isGivenUp)
}

func isGivenUp(data []byte) bool { return data == nil }

// placesOf are the places among all of which those among what is sendable are known, in order.
func placesOf(which []int, all [][]byte) (places []int) {
	n := 0
	for i, data := range all {
		if isGivenUp(data) {
			continue
		}
		if len(which) > len(places) && which[len(places)] == n {
			places = append(places, i)
		}
		n++
	}
	return places
}

// givesUp has some be sent no more of the n that were sent last by a way, where they are kept. If not, the way was left meanwhile, and who goes on from there has them: he sees
// for himself.
func (f *datagramFlow) givesUp(way *course, kept bool, n int, which []int) bool {
	if !kept {
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if way.over {
		return false
	}
	f.door.plane.udp.keeper.GiveUp(&way.kept, n, which)
	return true
}

func (f *datagramFlow) hasWaiting() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.waiting) > 0
}

// lacks is what a way that the flow goes lacks of its first datagrams.
func (f *datagramFlow) lacks(way *course, first [][]byte) [][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return way.lacks(first)
}

// unheard is what was kept of what was sent a way of which nothing was heard, and is not kept any more.
func (f *datagramFlow) unheard(way *course) [][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.course != way || way.awaiting.known {
		return nil
	}
	return f.door.plane.udp.keeper.Drop(&way.kept)
}

func bytesOf(all [][]byte) (n uint64) {
	for _, one := range all {
		n += uint64(len(one))
	}
	return n
}

// connect finds an endpoint for the flow. That it is taken there shows later: a refusal has the next datagram try the next candidate.
func (f *datagramFlow) connect() bool {
	p := f.door.plane
	if f.closed.Load() || !f.pause.IsZero() && time.Now().Before(f.pause) {
		return false
	}
	t, v := p.table.Load(), p.config.View()
	e, ok := t.entry(spec.UDP, f.door.at) // it may be another than at the flow's beginning
	if !ok {
		return false // its door is about to be closed
	}
	f.mu.Lock()
	if e.listener != f.entry.listener {
		f.first = Candidate{}
	}
	f.entry = e
	refused, first, server, named := f.refused, f.first, f.server, f.named
	f.mu.Unlock()
	flow := Flow{Client: f.key.client, Local: f.door.at}
	candidates := Choose(t.spec, v, e.accelerator, e.listener, flow, nil)
	if first.Node != "" {
		candidates = ahead(candidates, first)
	}
	f.after = f.moved
	if named {
		if to := t.server(e.listener, server); to != nil {
			f.after = to.target
			candidates = ahead(candidates, Choose(t.spec, v, e.accelerator, to.listener, flow, nil)...)
			p.count.udpNamed.Add(1)
		}
	}
	candidates = bySilence(candidates, refused)
	for i, c := range candidates {
		if goes, anew := f.goBy(t.spec, v, c, refused); goes {
			if i > 0 && anew {
				p.count.failovers.Add(1)
			}
			return true
		}
		if f.closed.Load() {
			return false
		}
	}
	f.mu.Lock()
	if f.course != nil { // it has gone back to who was silent
		f.mu.Unlock()
		return true
	}
	f.refused = nil
	f.mu.Unlock()
	f.pause = time.Now().Add(lookPause)
	p.count.dropped.Add(1)
	if !f.told { // one flow, one line
		f.told = true
		p.rejected(f.entry.accelerator, spec.UDP, Flow{Client: f.key.client, Local: f.door.at}, f.entry.refuses(f.door.at.Port()))
	}
	return false
}

// ahead has some candidates come first, once each.
func ahead(others []Candidate, first ...Candidate) []Candidate {
	others = slices.DeleteFunc(others, func(c Candidate) bool { return slices.Contains(first, c) })
	return slices.Concat(first, others)
}

// ways are a candidate as it is, and, where it has a detour that is not the only way, directly.
func (c Candidate) ways() (all [2]Candidate, n int) {
	all, n = [2]Candidate{c, c}, 1
	if c.By != "" && !c.Detour {
		all[1].By = ""
		n = 2
	}
	return all, n
}

// goBy has the flow go by a candidate, or, where that has a detour which fails, directly to its node. Those that have refused it are passed over. Not anew: it has
// gone back meanwhile to one that was silent.
func (f *datagramFlow) goBy(s *spec.Spec, v *view.View, c Candidate, refused []declined) (goes, anew bool) {
	p := f.door.plane
	var err error
	ways, n := c.ways()
	for _, c := range ways[:n] {
		if declines(refused, c) {
			continue
		}
		went := &course{entry: f.entry, drawn: p.sampled(f.entry.accelerator)}
		var far Datagrams
		if far, err = f.open(c, went); err != nil {
			if c.By != "" {
				p.count.detoursFailed.Add(1)
			}
			continue
		}
		tally := p.tallies.of(way{f.entry.accelerator.Name, c.Region, spec.UDP}, otherWays())
		tally.flows.Add(1)
		tally.live.Add(1)
		went.tally = tally
		f.mu.Lock()
		if f.course != nil { // it has gone back to who was silent
			f.mu.Unlock()
			tally.live.Add(-1)
			far.Close()
			return true, false
		}
		if went.over { // it was heard meanwhile
			f.mu.Unlock()
			tally.live.Add(-1)
			far.Close()
			err = errDeclined
			if c.By != "" {
				p.count.detoursFailed.Add(1)
			}
			continue
		}
		f.far, f.by, f.course = far, c, went
		went.begun = true
		f.await(s, v, c, went)
		var silent []aside
		if went.awaiting.known {
			silent, f.aside = f.aside, nil
		}
		f.mu.Unlock()
		closeAll(silent)
		if c.By != "" {
			p.count.detours.Add(1)
		}
		f.went(c, see(s, v), went, gone{})
		if f.closed.Load() {
			f.leave(closed)
			return false, false
		}
		return true, true
	}
	if err != nil {
		p.count.attemptsFailed.Add(1)
		p.config.Log.Debug("flow of datagrams gives way", "candidate", c.String(), "error", err)
	}
	return false, false
}

func (f *datagramFlow) open(c Candidate, went *course) (Datagrams, error) {
	l, resource := f.entry.listener, c.Resource
	byItself := vouched(f.door.plane.config.View(), c)
	if byItself || f.door.plane.tells(c) {
		resource = origin.Told(resource)
	}
	h := backbone.Header{Service: datagramService, Resource: origin.DatagramResource(l.IdleTimeout.Std(), f.after, resource), Client: f.key.client}
	if c.By != "" {
		h.Service, h.Resource = detourService, c.Node+"/"+h.Resource
	}
	to := backbone.Receiver{
		Receive: func(all [][]byte) { f.answer(went, all) },
		End:     func(err error) { f.ended(c, went, err) },
		Told: func(text string) {
			went.told(text)
			f.known(went)
		},
		Known: func() {
			if !byItself {
				f.known(went)
			}
		},
	}
	return f.door.plane.config.Open(c.first(), h, l.LargeDatagrams != spec.LargeRefused, to)
}

// ended takes note that a candidate has ended the flow, or, with an error, does not take it.
func (f *datagramFlow) ended(c Candidate, way *course, err error) {
	if f.forget(way) {
		return
	}
	if err == nil {
		f.leaveWay(way, broken)
		return
	}
	f.mu.Lock()
	if !way.over && !way.begun { // it is about to go that way
		f.over(c, way, false)
	}
	f.mu.Unlock()
	if waits, _ := f.declined(way, err); waits {
		go f.again() // who calls must not wait; of a flow there is one at a time, as it must go another way for the next
	}
}

// declined takes note that the candidate of a way does not take the flow, or, with errSilent, has said nothing of it, leaves the way (or puts it aside), and has what was kept wait to be
// sent again, if there is any; not mine: that was done, or the flow goes another way, or something was heard meanwhile.
func (f *datagramFlow) declined(way *course, err error) (waits, mine bool) {
	p := f.door.plane
	f.mu.Lock()
	by, silent := f.by, errors.Is(err, errSilent)
	var wasPut func()
	if mine = f.course == way && !way.over && !(silent && way.awaiting.known); mine {
		f.over(by, way, silent)
		kept := p.udp.keeper.Drop(&way.kept)
		f.waiting, waits = slices.Concat(f.waiting, kept), len(kept) > 0
		if silent && !f.closed.Load() { // endFlow takes what there is after closed is set
			wasPut = f.putAside(way, len(kept))
		}
	}
	f.mu.Unlock()
	if mine {
		if wasPut == nil {
			f.leaveWay(way, broken)
		} else {
			wasPut()
		}
		p.count.attemptsFailed.Add(1)
		if by.By != "" {
			p.count.detoursFailed.Add(1)
		}
		p.config.Log.Debug("flow of datagrams is not taken", "candidate", by.String(), "error", err)
	}
	return waits, mine
}

func (f *datagramFlow) isOver(way *course) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return way.over
}

// over takes note that a way is over, as its candidate does not take the flow, or is silent. f.mu is held.
func (f *datagramFlow) over(c Candidate, way *course, silent bool) {
	way.over = true
	f.refused = slices.DeleteFunc(slices.Clone(f.refused), func(d declined) bool { return time.Since(d.since) >= declinedTime })
	f.refused = append(f.refused, declined{c.String(), c.Region, silent, time.Now()})
}

// answer sends what the endpoint at a way's end sent to the client, if the flow goes that way still.
func (f *datagramFlow) answer(way *course, all [][]byte) {
	p := f.door.plane
	if f.closed.Load() || !f.hears(way) {
		p.count.udpUnsent.Add(uint64(len(all)))
		return
	}
	f.idler.Touch()
	if !f.answered.Swap(true) {
		p.udp.mu.Lock()
		p.udp.table.wasAnswered(f)
		p.udp.mu.Unlock()
	}
	if f.quic {
		f.learn(all)
	}
	sent, _ := f.door.socket.Send(datagram.Way{To: f.key.client, From: f.source}, all)
	p.count.datagramsOut.Add(uint64(sent))
	p.count.udpUnsent.Add(uint64(len(all) - sent))
	if way.out.Load() == 0 {
		p.udp.keeper.Drop(&way.kept)
	}
	way.answered(len(all), bytesOf(all))
}

// learn reads the IDs that the server has chosen off its answers.
func (f *datagramFlow) learn(all [][]byte) {
	u := &f.door.plane.udp
	for _, p := range all {
		if id := chosenID(p); id != nil {
			u.mu.Lock()
			u.table.learn(f, id)
			u.mu.Unlock()
		}
	}
}
