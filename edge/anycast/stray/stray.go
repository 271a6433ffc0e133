// Package stray keeps established TCP flows alive when routing leads their packets to another node than the one that has them: a POP is drained or comes back, a node
// joins or leaves others that share an address by equal-cost paths, a route far away changes. Routers know no flows, and the kernel of a node that is sent a segment
// of a connection that it does not have answers with a reset.
//
// Here such a segment is taken from the kernel before that, and the other nodes that announce the address are asked whose flow it is. The one whose
// kernel has the socket says so, and takes it as if it had come by its network; what follows goes there at once. Its answers go to the client directly, from the
// address that the client knows. Who has nothing new to do with it is the client. If nobody has the flow the segment goes back to the kernel, which answers as it would have.
//
// So it is with what a router far away says of the size of a flow's packet: it is sent to the address, from which the packet was, and so to whoever routing leads it to.
//
// It carries segments of TCP that are not the first of their flow, ICMP that says that such a one was too big, and nothing else: no SYN, so new flows are the node's that routing leads
// to; no UDP, whose flows begin anew where they arrive; no fragments, no IPv6 extension headers, and no other ICMP, which ends no established flow.
//
// It is best effort, and fails to what was before it: where the machine lacks what it needs, where nobody else is alive, beyond its bounds, and at once when the process
// dies. What strangers send costs a bounded amount: in the kernel a budget of segments of unknown flows, here the flows that are asked for at a time. Only another node of the
// cluster can have a segment taken, for an address of this node's own, of a flow that its kernel has.
//
// It stands by itself: it is given a kernel, a way to other nodes, and who they are; segment.go, table.go, message.go and owners.go are pure.
package stray

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxSegment is the most that a segment has that goes to another node, in bytes with its headers: with what goes before it, it fits in a frame of the backbone on any
	// path. A larger one is cut.
	maxSegment = 1100
	// maxPacket is the most that the kernel hands over.
	maxPacket = 1 << 16
	// firstDeaf is for how long a node is not asked that knows nothing of all this, as earlier releases do, or does not yet; it doubles each time that it says so, up to lastDeaf.
	firstDeaf = 2 * time.Second
	lastDeaf  = time.Minute
	// settleFor is how long after somebody came, went, was drained or undrained many flows may have moved: what is beyond the budget is dropped then, for clients send it
	// again. At other times the kernel answers it, as it answers what comes for flows that have ended.
	settleFor = 2 * time.Minute
	// orderEvery is how often the others are put into another order though they are the same: it matters where they are more than are asked.
	orderEvery = 10 * time.Minute
)

// ErrNoService is for Config.Open, to say that a node knows nothing of all this.
var ErrNoService = errors.New("it takes no segments")

// Way is a way to another node: datagrams, which arrive once or not at all.
type Way interface {
	// Send waits for nothing, and has taken over none of the slices when it returns.
	Send(all [][]byte) error
	Close()
}

// Config is what a Hand is given.
type Config struct {
	// Open opens the way to a node. What that one answers is handed to receive, whose it is until that returns; end hears that it takes none
	// now, with ErrNoService if it knows nothing of them.
	Open func(node string, receive func(all [][]byte), end func(err error)) (Way, error)
	Log  *slog.Logger // nil: none

	kernel kernelDoor // of tests; nil: this machine's
}

// kernelDoor is what kernel does; its methods may be called at once.
type kernelDoor interface {
	watch(addresses []netip.Addr, doors []netip.AddrPort) error
	limit(drop bool) error
	attach() error
	read(b []byte) (int, error)
	inject(s segment) error
	has(f Flow) bool
	know(f Flow, known bool)
	taken() (taken, over uint64)
	close()
}

// Hand hands over segments of other nodes' flows, and takes those of its own. All its methods may be called at once.
type Hand struct {
	config Config
	kernel kernelDoor
	count  struct {
		malformed, handed, dropped, answered atomic.Uint64
		tooBig                               atomic.Uint64
		asked, found, nobody                 atomic.Uint64
		injected, refused, uninjected        atomic.Uint64
		messagesMalformed, foreign           atomic.Uint64
	}

	mu        sync.Mutex // guards what follows; nothing is sent or asked of the kernel while it is held
	table     *table
	own       own
	addresses map[netip.Addr]bool
	peers     []Owner
	ordered   time.Time // when peers were put into their order
	away      bool
	settled   time.Time // when things have settled
	deaf      map[string]deafness
	ways      map[string]*opened
	closed    bool

	knowing sync.Mutex // orders know

	setting sync.Mutex // orders Set
	doors   []netip.AddrPort
	told    struct {
		addresses []netip.Addr
		doors     []netip.AddrPort
		drop      bool
		// What was logged, of each of what the kernel is asked for, that it did not do when it was asked last; empty: it did.
		watch, limit, attach string
	}

	end    context.CancelFunc
	ended  sync.WaitGroup
	taking chan struct{} // closed when nothing is taken any more
}

// deafness is of a node that knows nothing of all this: how long it is not asked, and until when.
type deafness struct {
	pause time.Duration
	until time.Time
}

// opened is a way as it was opened: what is heard of its end is told from what is heard of another's to the same node.
type opened struct {
	Way
	over bool // its end was heard of; Hand.mu
}

// Open begins to look at what comes, for no address yet. It fails where the machine lacks what that needs: the error says what.
func Open(c Config) (*Hand, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.kernel == nil {
		k, err := openKernel()
		if err != nil {
			return nil, err
		}
		c.kernel = k
	}
	ctx, end := context.WithCancel(context.Background())
	h := &Hand{config: c, kernel: c.kernel, table: newTable(), addresses: map[netip.Addr]bool{}, deaf: map[string]deafness{}, ways: map[string]*opened{}, end: end, taking: make(chan struct{})}
	h.ended.Go(h.take)
	h.ended.Go(func() { h.sweep(ctx) })
	return h, nil
}

// Close ends it: the kernel answers from then on.
func (h *Hand) Close() {
	h.end()
	h.mu.Lock()
	h.closed = true
	ways := slices.Collect(maps.Values(h.ways))
	clear(h.ways)
	h.mu.Unlock()
	h.kernel.close()
	for _, w := range ways {
		w.Close()
	}
	h.ended.Wait()
}

// Ended says whether nothing is handed over any more: it was closed, or its device was taken away.
func (h *Hand) Ended() bool {
	select {
	case <-h.taking:
		return true
	default:
		return false
	}
}

// Set says which addresses this node announces, or did and may have flows of, who else may have flows of them, and whether this node is itself drained or leaves.
// Where there is nobody else nothing is looked at. What the kernel does not do is tried again at the next Set.
func (h *Hand) Set(addresses []netip.Addr, owners []Owner, away bool) {
	h.setting.Lock()
	defer h.setting.Unlock()
	addresses = slices.Clone(addresses)
	for i, a := range addresses {
		addresses[i] = a.Unmap().WithZone("")
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	addresses = slices.Compact(addresses)
	now := time.Now()

	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return
	}
	others := turned(h.peers, owners)
	if others || away != h.away {
		h.settled = now.Add(settleFor)
	}
	var todo []verdict
	var over []Way
	left := byName(h.peers)
	for _, o := range owners {
		delete(left, o.Node)
	}
	for node := range left {
		todo = append(todo, h.table.gone(now, node)...)
		if w := h.ways[node]; w != nil {
			over = append(over, w)
			delete(h.ways, node)
		}
		delete(h.deaf, node)
	}
	// Their order is of how far they are, which is measured anew all the time: it would be others at each look that are beyond the bound of those that are asked.
	if others || now.Sub(h.ordered) >= orderEvery {
		h.peers, h.ordered = slices.Clone(owners), now
	}
	h.away = away
	clear(h.addresses)
	for _, a := range addresses {
		h.addresses[a] = true
	}
	drop := now.Before(h.settled) || away || slices.ContainsFunc(owners, func(o Owner) bool { return o.Away })
	h.table.drop = drop
	h.mu.Unlock()

	for _, w := range over {
		w.Close()
	}
	for _, v := range todo {
		h.do(v)
	}
	if len(owners) == 0 {
		addresses = nil
	}
	if !slices.Equal(addresses, h.told.addresses) || !slices.Equal(h.doors, h.told.doors) {
		err := h.kernel.watch(addresses, h.doors)
		if err == nil {
			h.told.addresses, h.told.doors = addresses, h.doors
		}
		h.report(&h.told.watch, err)
	}
	if drop != h.told.drop {
		err := h.kernel.limit(drop)
		if err == nil {
			h.told.drop = drop
		}
		h.report(&h.told.limit, err)
	}
}

// Narrow says which doors there are at addresses that will be Set: what comes to such an address by another port is the kernel's, and what the machine's packet filter does not let in
// there is never given to it anew. At an address of which no door is named every port is looked at.
func (h *Hand) Narrow(doors []netip.AddrPort) {
	doors = slices.Clone(doors)
	for i, d := range doors {
		doors[i] = netip.AddrPortFrom(d.Addr().Unmap().WithZone(""), d.Port())
	}
	slices.SortFunc(doors, netip.AddrPort.Compare)
	h.setting.Lock()
	defer h.setting.Unlock()
	h.doors = slices.Compact(doors)
}

// report logs what the kernel does not do, once until it does it, or fails in another way. It is called with setting held.
func (h *Hand) report(logged *string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != *logged {
		h.config.Log.Warn("segments of other nodes' flows are not handed over as they should", "error", err)
	}
	*logged = text
}

// take reads what the kernel hands over, until it is closed.
func (h *Hand) take() {
	defer close(h.taking)
	b := make([]byte, maxPacket)
	for {
		n, err := h.kernel.read(b)
		if err != nil {
			h.mu.Lock()
			closed := h.closed
			h.mu.Unlock()
			if !closed { // somebody took the device away: what is redirected to it would be lost
				h.kernel.close()
				h.config.Log.Error("segments of other nodes' flows are not handed over any more: the kernel answers them", "error", err)
			}
			return
		}
		s, err := parse(b[:n])
		if err != nil {
			h.count.malformed.Add(1)
			continue
		}
		if s.tooBig {
			h.count.tooBig.Add(1)
		}
		now := time.Now()
		h.mu.Lock()
		var peers []string
		if h.table.known[s.flow] == nil {
			peers = h.whom(now)
		}
		v := h.table.segments(now, s.flow, s.cut(maxSegment), peers)
		h.mu.Unlock()
		if v.do == ask {
			h.count.asked.Add(1)
		}
		h.do(v)
	}
}

// whom says who may be asked for flows now, twice as many as are: some may be silent. h.mu is held.
func (h *Hand) whom(now time.Time) []string {
	nodes := make([]string, 0, min(len(h.peers), 2*maxAsked))
	for _, o := range h.peers {
		if len(nodes) == 2*maxAsked {
			break
		}
		if now.Before(h.deaf[o.Node].until) {
			continue
		}
		nodes = append(nodes, o.Node)
	}
	return nodes
}

// do does what was found, and counts it.
func (h *Hand) do(v verdict) {
	if v.learnt || v.forgot {
		h.know(v.flow)
	}
	for _, node := range v.probe {
		_ = h.ask(node, v.flow) // it stays one that says nothing
	}
	switch v.do {
	case drop:
		h.count.dropped.Add(uint64(len(v.all)))
	case local:
		h.count.answered.Add(uint64(len(v.all)))
		for _, b := range v.all {
			h.inject(b)
		}
	case carry:
		if err := h.carry(v.to[0], v.all); err != nil {
			h.count.dropped.Add(uint64(len(v.all)))
			return
		}
		h.count.handed.Add(uint64(len(v.all)))
	case ask:
		for _, node := range v.to {
			if h.ask(node, v.flow) == nil {
				continue
			}
			h.mu.Lock()
			after := h.table.unanswered(time.Now(), node, v.flow)
			h.mu.Unlock()
			h.settle(after)
		}
	}
}

// know tells the kernel whether a flow is known. What the table has learnt and forgotten is done by several at once, so that is as the table has it now: the last one to tell
// tells the last of it.
func (h *Hand) know(f Flow) {
	h.knowing.Lock()
	defer h.knowing.Unlock()
	h.mu.Lock()
	known := h.table.known[f] != nil
	h.mu.Unlock()
	h.kernel.know(f, known)
}

// settle does what follows from an answer, or from that there is none.
func (h *Hand) settle(v verdict) {
	if v.do == local {
		h.count.nobody.Add(1)
	}
	h.do(v)
}

// inject has the kernel of this machine take a packet.
func (h *Hand) inject(b []byte) {
	s, err := parse(b)
	if err == nil {
		err = h.kernel.inject(s)
	}
	if err != nil {
		h.count.uninjected.Add(1)
	}
}

// ask asks a node whether it has a flow.
func (h *Hand) ask(node string, f Flow) error {
	return h.send(node, [][]byte{appendFlow(nil, kindAsk, f)})
}

// carry sends packets to the node that has their flow.
func (h *Hand) carry(node string, all [][]byte) error {
	n := 0
	for _, b := range all {
		n += 1 + len(b)
	}
	buffer, messages := make([]byte, 0, n), make([][]byte, 0, len(all))
	for _, b := range all {
		at := len(buffer)
		buffer = append(append(buffer, kindCarry), b...)
		messages = append(messages, buffer[at:])
	}
	return h.send(node, messages)
}

// send sends messages to a node, if there are any.
func (h *Hand) send(node string, messages [][]byte) error {
	if len(messages) == 0 {
		return nil
	}
	w, err := h.way(node)
	if err != nil {
		return err
	}
	if err = w.Send(messages); errors.Is(err, net.ErrClosed) {
		h.mu.Lock()
		if h.ways[node] == w {
			delete(h.ways, node)
		}
		h.mu.Unlock()
	}
	return err
}

func (h *Hand) way(node string) (*opened, error) {
	h.mu.Lock()
	w, closed := h.ways[node], h.closed
	known := slices.ContainsFunc(h.peers, func(o Owner) bool { return o.Node == node })
	h.mu.Unlock()
	if w != nil {
		return w, nil
	}
	if closed || !known {
		return nil, net.ErrClosed
	}
	w = &opened{}
	way, err := h.config.Open(node, func(all [][]byte) { h.hear(node, all) }, func(err error) { h.refused(node, w, err) })
	if err != nil {
		return nil, err
	}
	w.Way = way
	h.mu.Lock()
	defer h.mu.Unlock()
	switch other := h.ways[node]; {
	case other != nil:
		defer way.Close()
		return other, nil
	case h.closed || w.over:
		defer way.Close()
		return nil, net.ErrClosed
	}
	h.ways[node] = w
	return w, nil
}

// hear takes a node's answers.
func (h *Hand) hear(node string, all [][]byte) {
	for _, b := range all {
		f, has, err := readAnswer(b)
		if err != nil {
			h.count.messagesMalformed.Add(1)
			continue
		}
		h.mu.Lock()
		delete(h.deaf, node)
		v := h.table.answered(time.Now(), node, f, has)
		h.mu.Unlock()
		if v.do == carry {
			h.count.found.Add(1)
		}
		h.settle(v)
	}
}

// refused hears that a node takes no segments by a way. If it only takes none now, as it has too many flows of datagrams, it may have flows, and is as one that does not answer.
// Of a way that another has replaced it says nothing any more: that one is asked what this one was.
func (h *Hand) refused(node string, w *opened, err error) {
	now := time.Now()
	var all []verdict
	h.mu.Lock()
	w.over = true
	if newer := h.ways[node]; newer != nil && newer != w {
		h.mu.Unlock()
		return
	}
	delete(h.ways, node)
	if !errors.Is(err, ErrNoService) {
		all = h.table.unreached(now, node)
	} else if slices.ContainsFunc(h.peers, func(o Owner) bool { return o.Node == node }) {
		if was := h.deaf[node]; !now.Before(was.until) { // what was under way says no more
			pause := min(max(2*was.pause, firstDeaf), lastDeaf)
			h.deaf[node] = deafness{pause, now.Add(pause)}
		}
		all = h.table.gone(now, node)
	}
	h.mu.Unlock()
	for _, v := range all {
		h.settle(v)
	}
}

// Receive takes what another node, a member of the cluster, asks or hands over; back sends the answers. It waits for nothing.
func (h *Hand) Receive(all [][]byte, back func(all [][]byte) error) {
	var answers [][]byte
	for _, b := range all {
		var f Flow
		var s segment
		err := errMessage
		asked := len(b) > 0 && b[0] == kindAsk
		switch {
		case asked:
			f, err = readFlow(b)
		case len(b) > 0 && b[0] == kindCarry:
			s, err = parse(b[1:])
			f = s.flow
		}
		if err != nil {
			h.count.messagesMalformed.Add(1)
			continue
		}
		is := h.has(f, asked)
		switch {
		case !is:
			h.count.refused.Add(1)
		case asked:
		case h.kernel.inject(s) != nil:
			h.count.uninjected.Add(1)
		default:
			h.count.injected.Add(1)
		}
		if asked || !is {
			answers = append(answers, appendAnswer(nil, f, is))
		}
	}
	if len(answers) > 0 {
		_ = back(answers) // it asks again, or at the next segment
	}
}

// has says whether a flow is this node's. It looks at its sockets if it is asked, for one that has ended is not, and else once in a while.
func (h *Hand) has(f Flow, asked bool) bool {
	h.mu.Lock()
	ours, is := h.addresses[f.Server.Addr()], h.own.has(time.Now(), f)
	h.mu.Unlock()
	if !ours {
		h.count.foreign.Add(1)
		return false
	}
	if is && !asked {
		return true
	}
	is = h.kernel.has(f)
	h.mu.Lock()
	defer h.mu.Unlock()
	if is {
		h.own.add(time.Now(), f)
	} else {
		h.own.remove(f)
	}
	return is
}

// sweep does what is due, again and again.
func (h *Hand) sweep(ctx context.Context) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	looked := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			h.mu.Lock()
			all := h.table.sweep(now)
			h.own.sweep(now)
			h.mu.Unlock()
			for _, v := range all {
				h.settle(v)
			}
			if now.Sub(looked) >= sweepKnown { // for interfaces that have come
				looked = now
				err := h.kernel.attach()
				h.setting.Lock()
				h.report(&h.told.attach, err)
				h.setting.Unlock()
			}
		}
	}
}

// Counters are what was done since Open, and how many flows of others are known now.
func (h *Hand) Counters() map[string]uint64 {
	if h == nil {
		return nil
	}
	taken, over := h.kernel.taken()
	h.mu.Lock()
	flows, asking := len(h.table.known), len(h.table.asking)
	h.mu.Unlock()
	return map[string]uint64{
		"stray_segments_taken_total":      taken,
		"stray_segments_over_total":       over,
		"stray_segments_too_big_total":    h.count.tooBig.Load(),
		"stray_segments_malformed_total":  h.count.malformed.Load(),
		"stray_segments_handed_total":     h.count.handed.Load(),
		"stray_segments_dropped_total":    h.count.dropped.Load(),
		"stray_segments_answered_total":   h.count.answered.Load(),
		"stray_segments_injected_total":   h.count.injected.Load(),
		"stray_segments_refused_total":    h.count.refused.Load(),
		"stray_segments_foreign_total":    h.count.foreign.Load(),
		"stray_segments_uninjected_total": h.count.uninjected.Load(),
		"stray_flows_asked_total":         h.count.asked.Load(),
		"stray_flows_found_total":         h.count.found.Load(),
		"stray_flows_nobody_total":        h.count.nobody.Load(),
		"stray_messages_malformed_total":  h.count.messagesMalformed.Load(),
		"stray_flows":                     uint64(flows),
		"stray_flows_asking":              uint64(asking),
	}
}
