package accelerator

import (
	"net/netip"
	"time"
)

const (
	// maxDatagramFlows bounds the flows of datagrams on this node. At it a new one takes the place of another (flowTable.yields).
	maxDatagramFlows = 65536
	// maxClientFlows bounds those of one client, an IPv4 address or a /64 of IPv6: a network behind one address may have many. At it a new one takes the
	// place of one of the client's that is not settled or is quiet.
	maxClientFlows = maxDatagramFlows / 16
	// newShare is the part of a full table, one of so many, that is for flows that are not settled yet: so whoever is new has the time to be, whatever
	// else is new, and those that are settled lose no more than that to them.
	newShare = 4
	// freeBegins is how many flows a network may begin in a second whatever others do, as long as there are any left.
	freeBegins = 64
	// quiet is how long a settled flow is silent until another of its client may take its place.
	quiet = 5 * time.Second
)

// tuple is what a flow of datagrams is known by.
type tuple struct {
	client netip.AddrPort
	at     netip.AddrPort // the address and port that it came to
}

// standing is how far a flow has come. Whoever forges addresses gets none to be settled: that takes a client that hears the answers, and speaks
// again. (One that guesses may send twice; it costs him twice as much, and an endpoint that answers.)
type standing uint8

const (
	fresh    standing = iota // the client has sent
	answered                 // and the endpoint
	settled                  // and the client again
)

// links stand a flow in a list, the longest silent first.
type links struct{ prev, next *datagramFlow }

// list is flows. Which of a flow's links it goes by is for who has it to say.
type list struct{ first, last *datagramFlow }

const (
	byAll    = 0
	byClient = 1
)

func (l *list) append(f *datagramFlow, by int) {
	f.links[by] = links{prev: l.last}
	if l.last == nil {
		l.first = f
	} else {
		l.last.links[by].next = f
	}
	l.last = f
}

func (l *list) remove(f *datagramFlow, by int) {
	at := &f.links[by]
	if at.prev != nil {
		at.prev.links[by].next = at.next
	} else if l.first == f {
		l.first = at.next
	} else {
		return // it is not in it
	}
	if at.next != nil {
		at.next.links[by].prev = at.prev
	} else {
		l.last = at.prev
	}
	*at = links{}
}

// lists are flows by their standing.
type lists [settled + 1]list

// first is the one that is to go first: of the lowest standing that there is.
func (l *lists) first() *datagramFlow {
	for i := range l {
		if f := l[i].first; f != nil {
			return f
		}
	}
	return nil
}

// share is what a client has of the table, or a network of clients.
type share struct {
	count      int    // of flows
	network    *share // of a client of IPv6; an IPv4 address is its own
	prev, next *share // of those that have as many, in a ring
	flows      lists  // a client's
	clients    *ranks // a network's

	second uint32 // in which it began flows last, and how many
	began  uint32
}

// top is the share that is counted against those of others.
func (s *share) top() *share {
	if s.network != nil {
		return s.network
	}
	return s
}

// goes is the flow that is to go first of those of a share: of a network, of the client that has most.
func (s *share) goes() *datagramFlow {
	for s.clients != nil {
		s = s.clients.most()
	}
	return s.flows.first()
}

// ranks are shares by their count, so that one with most is found at once.
type ranks struct {
	by   []*share // of each count one of those that have it
	last int      // the largest count that there is
}

func (r *ranks) put(s *share) {
	for s.count >= len(r.by) {
		r.by = append(r.by, nil)
	}
	if head := r.by[s.count]; head != nil {
		s.prev, s.next = head.prev, head
		s.prev.next, head.prev = s, s
	} else {
		s.prev, s.next = s, s
		r.by[s.count] = s
	}
	r.last = max(r.last, s.count)
}

func (r *ranks) take(s *share) {
	if r.by[s.count] == s {
		if r.by[s.count] = s.next; s.next == s {
			r.by[s.count] = nil
		}
	}
	s.prev.next, s.next.prev = s.next, s.prev
	s.prev, s.next = nil, nil
}

// add has a share have more flows, or less. One that has none is in no ranks.
func (r *ranks) add(s *share, n int) {
	if s.count > 0 {
		r.take(s)
	}
	if s.count += n; s.count > 0 {
		r.put(s)
	}
	for r.last > 0 && r.by[r.last] == nil {
		r.last-- // once, as counts go by ones
	}
}

// most is a share of those with most flows; nil: there is none.
func (r *ranks) most() *share {
	if r.last == 0 {
		return nil
	}
	return r.by[r.last]
}

// flowTable has the flows of datagrams, and says which may come and which have to go. It sends nothing, and is guarded by whoever has it.
type flowTable struct {
	most, mostOfClient int
	flows              map[tuple]*datagramFlow
	clients            map[netip.Addr]*share
	networks           map[netip.Addr]*share // of IPv6
	ranks              ranks                 // of networks, and of clients of IPv4
	lists              lists                 // of flows that are not settled
	young              int                   // those
	ids                map[connID]*datagramFlow
	lengths            [maxID + 1]int // of ids
}

func newFlowTable(most, mostOfClient int) *flowTable {
	return &flowTable{
		most: most, mostOfClient: mostOfClient, flows: map[tuple]*datagramFlow{}, clients: map[netip.Addr]*share{}, networks: map[netip.Addr]*share{},
		ids: map[connID]*datagramFlow{},
	}
}

// clientOf is what is taken to be one client: an IPv4 address, or what one customer of an IPv6 network has at least.
func clientOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	p, _ := a.WithZone("").Prefix(64)
	return p.Addr()
}

// networkOf is what one customer of an IPv6 network has at most, as a rule.
func networkOf(client netip.Addr) netip.Addr {
	p, _ := client.Prefix(48)
	return p.Addr()
}

// shareOf is what a client has, and its network; nil: it has no flow.
func (t *flowTable) shareOf(client netip.Addr) (of, top *share) {
	switch of = t.clients[client]; {
	case of != nil:
		return of, of.top()
	case client.Is4():
		return nil, nil
	}
	return nil, t.networks[networkOf(client)]
}

// heard finds a flow of which the client has sent something.
func (t *flowTable) heard(key tuple) *datagramFlow {
	f := t.flows[key]
	if f == nil || f.standing == settled && f.of.flows[settled].last == f {
		return f
	}
	t.unlink(f)
	if f.standing == answered {
		f.standing = settled
	}
	t.link(f)
	return f
}

// wasAnswered takes note that the endpoint has sent something.
func (t *flowTable) wasAnswered(f *datagramFlow) {
	if f.of == nil {
		return
	}
	t.inherit(f)
	if f.standing == fresh {
		t.unlink(f)
		f.standing = answered
		t.link(f)
	}
}

func (t *flowTable) link(f *datagramFlow) {
	f.of.flows[f.standing].append(f, byClient)
	if f.standing < settled {
		t.lists[f.standing].append(f, byAll)
		t.young++
	}
}

func (t *flowTable) unlink(f *datagramFlow) {
	f.of.flows[f.standing].remove(f, byClient)
	if f.standing < settled {
		t.lists[f.standing].remove(f, byAll)
		t.young--
	}
}

// verdict is what becomes of a flow that is new.
type verdict uint8

const (
	admitted verdict = iota
	full             // all flows are settled, and nobody has more of them than the client
	crowded          // all flows of the client are, and none is quiet
)

// admit takes in a new flow, and says which has to go for it, if any: it is out of the table already.
func (t *flowTable) admit(f *datagramFlow) (goes *datagramFlow, v verdict) {
	client := clientOf(f.key.client.Addr())
	of, top := t.shareOf(client)
	switch {
	case of != nil && of.count >= t.mostOfClient:
		if goes = of.mayGo(); goes == nil {
			return nil, crowded
		}
	case len(t.flows) >= t.most:
		if goes = t.yields(of, top); goes == nil {
			return nil, full
		}
	}
	if goes != nil {
		t.remove(goes)
	}
	t.count(client, f)
	f.standing = fresh
	t.flows[f.key] = f
	t.link(f)
	return goes, admitted
}

// yields is the flow that has to go for one of a client that has the shares, when the table is full; nil: none.
//
// Those that are not settled go first as long as they have their part of the table: a flood from forged addresses, of which none is ever
// settled, so displaces itself. Else it is for whoever has most, network or client, to yield, if that is more than the new one's has with it: of clients that fill
// the table, be they few or a network that is large, none keeps another from having as many as they have. Whose network has as many as any
// displaces what is new of another that has as many, and else what is its own and quiet.
func (t *flowTable) yields(of, top *share) *datagramFlow {
	if t.young > t.most/newShare {
		return t.lists.first()
	}
	if most := t.ranks.most(); hasMore(most, top, 2) {
		return most.goes()
	}
	if top != nil && top.clients != nil {
		if most := top.clients.most(); hasMore(most, of, 2) {
			return most.goes()
		}
	}
	if f := t.lists.first(); f != nil && hasMore(f.of.top(), top, 0) {
		return f
	}
	if top == nil {
		return nil
	}
	return top.mayGo()
}

// hasMore says whether one share has more flows than another, by as many at least.
func hasMore(most, than *share, by int) bool {
	had := 0
	if than != nil {
		had = than.count
	}
	return most.count >= had+by
}

// mayGo is the flow of a share that may go for another of it; nil: none.
func (s *share) mayGo() *datagramFlow {
	f := s.goes()
	if f.standing == settled && f.idler.Silent() < quiet {
		return nil
	}
	return f
}

// count counts a flow as its client's.
func (t *flowTable) count(client netip.Addr, f *datagramFlow) {
	of, top := t.shareOf(client)
	if of == nil {
		of = &share{}
		t.clients[client] = of
		if !client.Is4() {
			if top == nil {
				top = &share{clients: &ranks{}}
				t.networks[networkOf(client)] = top
			}
			of.network = top
		}
	}
	f.of = of
	if of.network != nil {
		of.network.clients.add(of, 1)
	}
	t.ranks.add(of.top(), 1)
}

// remove takes a flow out; it may be out already.
func (t *flowTable) remove(f *datagramFlow) {
	if f.of == nil {
		return
	}
	t.unlink(f)
	t.unlearn(f)
	delete(t.flows, f.key)
	of, client := f.of, clientOf(f.key.client.Addr())
	f.of = nil
	if t.ranks.add(of.top(), -1); of.network != nil {
		if of.network.clients.add(of, -1); of.network.count == 0 {
			delete(t.networks, networkOf(client))
		}
	}
	if of.count == 0 {
		delete(t.clients, client)
	}
}

// begins says whether a client may begin a flow in the second of a number, of which all together begin most at most, and counts it. The last quarter is for networks
// that have begun few: so those that begin flows without end leave others some.
func (t *flowTable) begins(client netip.Addr, second uint32, all *int, most int) bool {
	_, top := t.shareOf(client)
	began := uint32(0)
	if top != nil && top.second == second {
		began = top.began
	}
	if *all >= most || began >= freeBegins && *all >= most-most/4 {
		return false
	}
	*all++
	if top != nil {
		top.second, top.began = second, began+1
	}
	return true
}
