package backbone

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	mrand "math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone/lasting"
)

const (
	// meetTime is how long the ends of a flow whose stream is lost have to meet again on another; then each of them resets it.
	meetTime = 10 * time.Second
	// meetAttempt bounds the wait for one other stream.
	meetAttempt = 2 * time.Second
	// firstMeeting is the pause after all ways have failed; it doubles up to lastMeeting.
	firstMeeting = 50 * time.Millisecond
	lastMeeting  = time.Second

	// ackEvery is how many bytes arrive before they are acknowledged at once; fewer are ackDelay after the first of them. What is written meanwhile takes the
	// acknowledgement along. Half a second was measured to gain nothing for a thousand flows at once, and has what was sent be kept for longer.
	ackEvery = 128 << 10
	ackDelay = 200 * time.Millisecond

	// maxLasting bounds the flows of a node, of either end's opening, that may go on over another stream. Those beyond it do not.
	maxLasting = 1 << 17

	// wellTime is how long the direct way has to be well again before a flow goes back there that was opened there and had to take another. Each time that it
	// is driven off again doubles that for it, up to lastWellTime. By chance it is up to a quarter longer, for many may have left together.
	wellTime     = 30 * time.Second
	lastWellTime = 10 * time.Minute

	// shiftWait bounds the wait for a connection of its own, to which a flow of many bytes is moved.
	shiftWait = 10 * time.Second

	// leaveTime is how long Close waits for the other ends to say that they have all of the flows that were closed.
	leaveTime = time.Second

	// offsetLength is how long what each end says first on another stream is: how much it has.
	offsetLength = 8
)

// ErrParted says that the ends of a flow did not meet in time on another stream.
var ErrParted = errors.New("the other end was not reached in time")

// errMidway says that there is no stream now, but may be one soon.
var errMidway = errors.New("between two streams")

// stream is what a flow is on for a time: bytes in order, or an error. Abort tells the other end that the flow is over, and lose that nothing is known of
// it but that this stream is left; what it reads is pathLost, or not. gone is why it is Gone, in the words of Read and Write. end is CloseWrite and Close,
// of which neither waits.
//
// Of a bulkConn only its end says something of the flow: Abort and Close without CloseWrite do as lose does, and the other end has to be told, or to ask.
type stream interface {
	duplexConn
	Peek(b []byte) (int, error)
	lose()
	gone() error
	end()
}

// isMute says that a stream can say of the flow no more than its end.
func isMute(s stream) bool {
	_, is := s.(*bulkConn)
	return is
}

var _ stream = (*streamConn)(nil)

// pathLost says of the error of a stream that the way is to blame for it, and not an end of the flow. Of a stream that another node carries on it is the way too
// when that node ends.
func pathLost(err error, through bool) bool {
	return errors.Is(err, ErrDown) && (through || !errors.Is(err, errEnded))
}

// Way is a way on which the other end of a flow may be reached.
type Way struct {
	Node   string // that is dialled
	Header Header
	// To is the node of the flow's other end, where Node carries it on there; "": Node is it.
	To string

	byTCP bool // by a connection of its own that is there
}

func (w Way) through() bool { return w.To != "" }

// end is the node of the flow's other end.
func (w Way) end() string { return cmp.Or(w.To, w.Node) }

// lastingConn is one end of a flow that goes on over other streams when the one that it is on is lost. It has the manners of streamConn.
//
// One at a time reads, and one writes (held), who may wait for another stream meanwhile: so nothing that brings one may wait for them. mu guards all, and is
// not held while the stream is asked for anything that may take time: instead using says who is at it.
type lastingConn struct {
	b             *Backbone
	key           flowKey
	ways          func() []Way // nil at the end that did not open it
	to            string       // the node of the other end
	pace          *pace        // how fast it is on its stream; nil: it has carried little there, or the other end has opened it
	patience      time.Duration
	returning     *time.Timer // to go home
	local, remote net.Addr

	// A node has as many of these as flows, so what is rare is behind a pointer, and what is small comes together.

	mu        sync.Mutex
	changed   *sync.Cond // nil: nobody has waited yet
	in        lasting.In
	out       lasting.Out
	stream    stream      // nil: it is lost, and another is awaited
	unwatch   func() bool // has it watched no more; nil: it is not
	way       string      // the node that the stream is dialled by, or comes from
	over      error       // the end of it
	deaf      error       // why no more can be written, if it is known
	ahead     *streamConn // that may have a turn for what is lent next; nil: none has
	rest      *parts      // of what was being written when a deadline passed; nil: nothing
	ack       *time.Timer // of flush
	meeting   *time.Timer
	cancel    context.CancelFunc // of the search for another stream
	deadlines *[2]time.Time      // nil: there are none
	heads     lasting.Heads
	epoch     uint32 // of the stream
	dialled   uint32 // the last epoch for which a stream was asked
	moves     int32  // streams before this one

	onTCP    bool    // it began there
	fromHome bool    // it was opened by the direct way
	held     [2]bool // somebody reads, or writes
	using    [2]bool
	through  bool    // another node carries it on
	alone    bool    // the other end keeps nothing for another stream
	untold   bool    // that it is over: it was left by its user without a stream, and the other end is looked for to be told
	closed   bool    // by its user
	attended bool    // read on, though its user does not
	unread   bool    // nobody has come to read since flush looked for one
	owed     bool    // an acknowledgement is due, or a word that this end forgoes
	forgo    bool    // that word
	armed    bool    // ack runs
	hurried  bool    // for no time
	peeked   [1]byte // of the stream, by who waits for something to be read
}

// parts are what is to be written, one after the other.
type parts [2][]byte

func (p *parts) left() bool { return p != nil && len(p[0])+len(p[1]) > 0 }

const (
	reader = 0
	writer = 1
)

// flowKey names a flow at either of its ends.
type flowKey struct {
	opener string // "" for this node
	id     [16]byte
}

// registry is the flows of a node that may go on over another stream.
type registry struct {
	mu    sync.Mutex
	flows map[flowKey]*lastingConn
	ended bool

	held                        atomic.Int64 // by what flows keep
	opened, accepted, forgone   atomic.Uint64
	lost, resumed               atomic.Uint64 // streams
	parted, unknown, unlikely   atomic.Uint64
	resumeFailed, resent, stale atomic.Uint64
	suspended                   atomic.Int64
	shifted, returned           atomic.Uint64
}

func (r *registry) enter(c *lastingConn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended || len(r.flows) >= maxLasting || r.flows[c.key] != nil {
		return false
	}
	if r.flows == nil {
		r.flows = map[flowKey]*lastingConn{}
	}
	r.flows[c.key] = c
	return true
}

func (r *registry) leave(c *lastingConn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flows[c.key] == c {
		delete(r.flows, c.key)
	}
}

func (r *registry) find(key flowKey) *lastingConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.flows[key]
}

func (r *registry) all() []*lastingConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.flows))
}

// wait waits for flows that were closed to have arrived, for a moment.
func (r *registry) wait() {
	until := time.Now().Add(leaveTime)
	for _, c := range r.all() {
		c.mu.Lock()
		for c.closed && c.over == nil && time.Now().Before(until) {
			c.await(until)
		}
		c.mu.Unlock()
	}
}

// end has all flows end with the backbone.
func (r *registry) end() {
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	for _, c := range r.all() {
		c.mu.Lock()
		c.finish(ErrDown)
		c.mu.Unlock()
	}
}

// peerEnded ends the flows whose other end is at a node that stops, may not speak to this one any more, or is dead as the others say, and that have not heard so
// by their stream: TCP does not say it. One that is on a stream of QUIC is proof of the contrary, or about to hear.
func (r *registry) peerEnded(node string) {
	for _, c := range r.all() {
		c.mu.Lock()
		if c.to == node && (c.stream == nil || isMute(c.stream)) {
			c.untold = false
			c.finish(fmt.Errorf("%w: %w", ErrDown, errEnded))
		}
		c.mu.Unlock()
	}
}

// evade has the flows that were opened here, and go by TCP to a node which is not reached any more by QUIC, go by way of others, where there are any.
func (r *registry) evade(node string) {
	for _, c := range r.all() {
		c.mu.Lock()
		if c.ways != nil && c.way == node && c.stream != nil && isMute(c.stream) {
			c.b.start(func() { c.evade(node) })
		}
		c.mu.Unlock()
	}
}

func (c *lastingConn) evade(node string) {
	for _, way := range c.ways() {
		c.mu.Lock()
		at := c.stream != nil && c.way == node
		c.mu.Unlock()
		switch {
		case !at:
			return
		case way.Node == node:
		case c.Move(c.b.ctx, way) == nil:
			c.b.lasting.lost.Add(1)
			return
		}
	}
}

func (r *registry) counters(all map[string]uint64) {
	r.mu.Lock()
	all["backbone_lasting_flows"] = uint64(len(r.flows))
	r.mu.Unlock()
	all["backbone_lasting_flows_opened_total"] = r.opened.Load()
	all["backbone_lasting_flows_accepted_total"] = r.accepted.Load()
	all["backbone_lasting_flows_forgone_total"] = r.forgone.Load()
	all["backbone_lasting_flows_suspended"] = uint64(r.suspended.Load())
	all["backbone_lasting_flows_parted_total"] = r.parted.Load()
	all["backbone_lasting_streams_lost_total"] = r.lost.Load()
	all["backbone_lasting_streams_resumed_total"] = r.resumed.Load()
	all["backbone_lasting_flows_shifted_total"] = r.shifted.Load()
	all["backbone_lasting_flows_returned_total"] = r.returned.Load()
	all["backbone_lasting_streams_failed_total"] = r.resumeFailed.Load()
	all["backbone_lasting_streams_stale_total"] = r.stale.Load()
	all["backbone_lasting_streams_unknown_total"] = r.unknown.Load()
	all["backbone_lasting_malformed_total"] = r.unlikely.Load()
	all["backbone_lasting_resent_bytes_total"] = r.resent.Load()
	all["backbone_lasting_kept_bytes"] = uint64(r.held.Load())
}

// DialLasting is Dial, by a way, for a flow that is to go on when its stream is lost: then other streams are asked for by the ways that there are by then, in their
// order, until the ends meet again, or it is reset for that it takes them too long. What it returns has Moves() int and Way() string as well. Both nodes
// have to know of it, and the one in between; else Dial is to be asked. Where it goes by TCP to a node that does not know of it by TCP, it is as if it were.
func (b *Backbone) DialLasting(ctx context.Context, way Way, ways func() []Way) (net.Conn, error) {
	if way.Node == b.config.Self {
		return b.Dial(ctx, way.Node, way.Header)
	}
	h := way.Header
	rand.Read(h.Passage.ID[:])
	raw, err := b.counted(way.Node, func() (net.Conn, error) { return b.dial(ctx, way.Node, &h, nil, false) })
	if err != nil {
		return nil, err
	}
	on := raw.(stream)
	if own, is := raw.(*bulkConn); is && !own.lasts.Load() {
		return raw, nil
	}
	c := b.newLasting(on, flowKey{"", h.Passage.ID})
	earlyOf(ctx).give(&c.out)
	c.ways, c.to, c.way, c.through = ways, way.end(), way.Node, way.through()
	c.patience = wellTime
	c.fromHome = !way.through()
	b.lasting.opened.Add(1)
	c.begin()
	return c, nil
}

// acceptLasting makes the end of a flow that another node has opened.
func (b *Backbone) acceptLasting(raw stream, h Header, from string) *lastingConn {
	c := b.newLasting(raw, flowKey{opener(h, from), h.Passage.ID})
	c.to, c.way, c.through = c.key.opener, from, h.Passage.Opener != ""
	b.lasting.accepted.Add(1)
	if before := b.lasting.find(c.key); before != nil && !c.onTCP {
		before.yieldTo(c)
	}
	c.begin()
	return c
}

// yieldTo ends a flow of whose opening by TCP the node in between has not heard in time, so that it has asked again, by QUIC and under the name that is the
// opener's: nobody knows of this end, and other streams are for the one that has answered.
func (c *lastingConn) yieldTo(other *lastingConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ways == nil && c.onTCP && c.epoch == 0 && c.through && other.through && c.way == other.way {
		c.finish(fmt.Errorf("%w: it was asked for again", ErrReset))
	}
}

// opener is who has opened a flow: who dialled its stream, or whom that node has carried it on for.
func opener(h Header, from string) string {
	if h.Passage.Opener != "" {
		return h.Passage.Opener
	}
	return from
}

func (b *Backbone) newLasting(raw stream, key flowKey) *lastingConn {
	c := &lastingConn{b: b, key: key, stream: raw, onTCP: isMute(raw), local: raw.LocalAddr(), remote: raw.RemoteAddr()}
	c.out.Held = &b.lasting.held
	return c
}

// begin has a new end be known; where there is no room it goes on, and says that it forgoes another stream.
func (c *lastingConn) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.later(ackDelay) // it may be that nobody reads
	known := c.b.lasting.enter(c)
	if !known {
		c.forgoes()
		c.later(0)
	}
}

// takeUp takes a stream that is to carry on a flow which was opened here.
func (b *Backbone) takeUp(in *Incoming) {
	c := b.lasting.find(flowKey{opener(in.Header, in.From), in.Passage.ID})
	if c == nil || !c.lasts() {
		b.lasting.unknown.Add(1)
		in.refuse(over, "no such flow here")
		return
	}
	raw := in.Accept().(stream)
	raw.SetReadDeadline(time.Now().Add(headerTimeout))
	var has [offsetLength]byte
	if _, err := io.ReadFull(raw, has[:]); err != nil {
		b.lasting.resumeFailed.Add(1)
		raw.Abort()
		return
	}
	raw.SetReadDeadline(time.Time{})
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.detach(in.Passage.Epoch) {
		raw.SetWriteDeadline(time.Now().Add(messageTimeout)) // there is room on a fresh stream
		if _, err := raw.Write(c.has()); err != nil {
			raw.lose()
			c.suspend()
			return
		}
		c.attach(raw, in.Passage.Epoch, binary.BigEndian.Uint64(has[:]), Way{Node: in.From, To: in.Passage.Opener})
		return
	}
	if c.over != nil {
		raw.Abort()
	} else {
		b.lasting.stale.Add(1)
		raw.lose()
	}
}

// lasts says that it may go on over another stream.
func (c *lastingConn) lasts() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.over == nil && c.mayGoOn()
}

func (c *lastingConn) mayGoOn() bool { return !c.out.Forgone() && !c.alone }

// has is what this end says first on another stream.
func (c *lastingConn) has() []byte { return binary.BigEndian.AppendUint64(nil, c.in.Received()) }

// detach leaves the stream for that of an epoch to come, and says whether that may be attached now: nobody reads or writes until it is, or another
// epoch. mu is held, and given up meanwhile.
func (c *lastingConn) detach(epoch uint32) bool {
	if c.over != nil || epoch <= c.epoch {
		return false
	}
	c.epoch = epoch
	c.drop()
	for c.using[reader] || c.using[writer] {
		c.pause()
	}
	return c.over == nil && c.epoch == epoch
}

// drop leaves the stream. Who is at it hears of it. mu is held.
func (c *lastingConn) drop() {
	if old := c.take(); old != nil {
		old.lose()
	}
}

// take takes the stream away; nil: there is none. mu is held.
func (c *lastingConn) take() stream {
	s := c.stream
	if s != nil {
		c.stream, c.pace = nil, nil
		c.watchNoMore()
		c.b.lasting.suspended.Add(1)
	}
	return s
}

// watch has it noticed that the way of the stream is lost, though nobody may be at it: a relay that waits for a client who does not read neither reads nor
// writes here. It is for a stream that nobody has come to read for a while (unread), for who reads hears of it; and what the context of a stream makes when it is
// first watched it keeps, 370 bytes. mu is held.
func (c *lastingConn) watch() {
	s := c.stream
	if s == nil || c.unwatch != nil {
		return
	}
	c.unwatch = context.AfterFunc(s.Gone(), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		// What the other end has done is learnt by who comes to the stream, after what has arrived.
		if err := s.gone(); pathLost(err, c.through) || errors.Is(err, errSlow) {
			c.failed(s, reader, err)
		}
	})
}

// watchNoMore ends that. mu is held.
func (c *lastingConn) watchNoMore() {
	if c.unwatch != nil {
		c.unwatch()
		c.unwatch = nil
	}
}

// lookForReader has the stream watched if nobody has come to read since the look before, and looks once more if somebody has, but is not at it. mu is held.
func (c *lastingConn) lookForReader() {
	switch {
	case c.stream == nil || c.using[reader] || c.unwatch != nil:
	case c.unread:
		c.watch()
	default:
		c.unread = true
		c.later(ackDelay)
	}
}

// attach goes on over another stream, whose other end has so many bytes. mu is held since detach has returned.
func (c *lastingConn) attach(s stream, epoch uint32, has uint64, by Way) {
	if c.rest.left() {
		c.rest = nil
		c.out.Written()
	}
	if !c.mayGoOn() { // it has forgone that since it was asked
		c.b.lasting.resumeFailed.Add(1)
		s.Abort()
		c.finish(fmt.Errorf("%w: too much was kept for another stream", ErrDown))
		return
	}
	again, err := c.out.Resume(has)
	if err != nil {
		s.Abort()
		c.fails(err)
		return
	}
	c.b.lasting.resent.Add(again)
	c.in.Resume()
	c.owed = c.forgo
	c.settleAt(by)
	c.stream, c.way, c.through = s, by.Node, by.through()
	c.later(ackDelay) // it may be that nobody reads
	c.moves++
	if c.meeting != nil {
		c.meeting.Stop()
	}
	c.b.lasting.suspended.Add(-1)
	c.b.lasting.resumed.Add(1)
	if !c.in.Ended() {
		s.SetReadDeadline(c.deadline(reader))
	}
	s.SetWriteDeadline(c.deadline(writer))
	c.wake()
	if c.out.Unsent() || c.owed {
		c.b.start(c.flush)
	}
	c.settle()
}

// fails ends a flow whose other end says what cannot be. mu is held.
func (c *lastingConn) fails(err error) {
	c.b.lasting.unlikely.Add(1)
	c.finish(fmt.Errorf("%w: %w", ErrReset, err))
}

// failed takes note of the error of a stream, at which somebody was. mu is held.
func (c *lastingConn) failed(s stream, side int, err error) {
	switch {
	case c.over != nil || c.stream != s:
		return // that is known, or why it is
	case c.out.Done() && c.in.Ended():
		c.drop() // nobody waits for anything
		c.settle()
	case errors.Is(err, io.EOF):
		c.fails(io.ErrUnexpectedEOF)
	case !pathLost(err, c.through):
		if side == reader {
			c.finish(err)
			return
		}
		if c.deaf == nil { // what the other end has sent may still be read
			c.deaf = err
			c.dropOut()
		}
		if c.closed {
			c.finish(err)
		}
	case !c.mayGoOn():
		c.finish(err)
	default:
		c.b.lasting.lost.Add(1)
		c.suspend()
	}
}

// suspend has another stream awaited, or looked for. mu is held.
func (c *lastingConn) suspend() {
	c.drop()
	if c.ways == nil {
		moves := c.moves
		c.meeting = time.AfterFunc(meetTime, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.stream == nil && c.moves == moves {
				c.part()
			}
		})
		return
	}
	if !c.seek() {
		c.finish(ErrDown)
	}
}

// seek has a search begin for another stream, unless it is too late for that. mu is held.
func (c *lastingConn) seek() bool {
	if c.cancel != nil {
		c.cancel() // the search before has found one, which is lost again
	}
	ctx, cancel := context.WithTimeout(c.b.ctx, meetTime)
	c.cancel = cancel
	moves := c.moves
	begun := c.b.start(func() {
		defer cancel()
		c.search(ctx, moves)
	})
	if !begun {
		cancel()
	}
	return begun
}

// part ends a flow whose ends have not met. mu is held.
func (c *lastingConn) part() {
	if c.over == nil {
		c.b.lasting.parted.Add(1)
		c.finish(fmt.Errorf("%w: %w", ErrDown, ErrParted))
	}
}

// search looks for another stream, after so many moves, until there is one, or there can be none.
func (c *lastingConn) search(ctx context.Context, moves int32) {
	pause := firstMeeting
	for {
		for _, way := range c.ways() {
			if ctx.Err() != nil || !c.isAdrift(moves) {
				break
			}
			err := c.goBy(ctx, way, moves)
			if no, ok := errors.AsType[*RefusedError](err); ok && no.Over {
				c.mu.Lock()
				c.untold = false
				c.finish(fmt.Errorf("%w: %w", ErrReset, err))
				c.mu.Unlock()
			}
		}
		c.mu.Lock()
		switch {
		case !c.adrift(moves):
			c.mu.Unlock()
			return
		case ctx.Err() != nil:
			c.part()
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
		}
		pause = min(2*pause, lastMeeting)
	}
}

// adrift says that it has no stream since the one after so many moves was lost, and may have another, if only to say that it is over. mu is held.
func (c *lastingConn) adrift(moves int32) bool {
	return (c.over == nil || c.untold) && c.stream == nil && c.moves == moves
}

func (c *lastingConn) isAdrift(moves int32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.adrift(moves)
}

// Move has the flow go on over another stream, by a way, though the one that it is on is well. Where there is none that way it stays. It is for the end that
// has opened it.
func (c *lastingConn) Move(ctx context.Context, way Way) error {
	if c.ways == nil {
		return errors.New("the other end has opened it")
	}
	return c.goBy(ctx, way, onStream)
}

// shift has a flow that has carried much on a stream of the direct way moved to a connection of its own, where that is the better way. mu is held.
func (c *lastingConn) shift(s stream) {
	on, is := s.(*streamConn)
	if !is || c.ways == nil || c.through || s != c.stream {
		return
	}
	bytes, took := c.paced(on)
	if bytes == 0 || c.out.Ended() && c.in.Ended() || !c.mayGoOn() {
		return
	}
	c.b.start(func() { c.toTCP(on, bytes, took) })
}

// paced is what it has carried on its stream, and in what time it would have been as fast all along as it is now; 0: it need not be looked at. mu is held.
func (c *lastingConn) paced(on *streamConn) (bytes uint64, took time.Duration) {
	carried := on.bytes.Load()
	if carried < shiftBytes/2 {
		return 0, 0
	}
	if c.pace == nil {
		c.pace = &pace{}
	}
	return c.pace.reached(carried, time.Now())
}

// direct is the way to the other end's node that no other is on; not ok: there is none now.
func (c *lastingConn) direct() (way Way, ok bool) {
	for _, way := range c.ways() {
		if way.Node == c.to && !way.through() {
			return way, true
		}
	}
	return Way{}, false
}

// toTCP moves it from a stream on which it has carried so many bytes in a time, where that is the better way.
func (c *lastingConn) toTCP(from *streamConn, bytes uint64, took time.Duration) {
	l := (*c.b.links.Load())[c.to]
	way, ok := c.direct()
	if l == nil || !ok {
		return
	}
	ctx, cancel := context.WithTimeout(c.b.ctx, shiftWait)
	defer cancel()
	if !l.shifts(way.Header.Service, bytes, took) || !l.pool.ready(ctx) {
		return
	}
	c.mu.Lock()
	left := c.stream != from
	c.mu.Unlock()
	if left {
		return
	}
	way.byTCP = true
	from.shifted.Store(true)
	if c.Move(ctx, way) != nil {
		from.shifted.Store(false)
		return
	}
	c.b.lasting.shifted.Add(1)
}

// settleAt has it go home after a time, if it goes another way from now on. mu is held.
func (c *lastingConn) settleAt(by Way) {
	switch {
	case !c.fromHome:
	case by.through():
		if !c.through && c.moves > 0 {
			c.patience = min(2*c.patience, lastWellTime)
		}
		c.wait(c.patience)
	case c.returning != nil:
		c.returning.Stop()
	}
}

// wait has it go home after a time. mu is held.
func (c *lastingConn) wait(long time.Duration) {
	long += mrand.N(c.patience / 4)
	if c.returning == nil {
		c.returning = time.AfterFunc(long, c.mayReturn)
	} else {
		c.returning.Reset(long)
	}
}

// mayReturn has it go home if that way has been well for long enough.
func (c *lastingConn) mayReturn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over != nil || c.stream == nil || !c.through || !c.mayGoOn() {
		return // or there will be another stream
	}
	well := time.Duration(0)
	if l := (*c.b.links.Load())[c.to]; l != nil {
		well = l.upFor()
	}
	if well < c.patience {
		c.wait(c.patience - well)
		return
	}
	c.b.start(func() {
		if way, ok := c.direct(); ok && c.Move(c.b.ctx, way) == nil {
			c.b.lasting.returned.Add(1)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.over == nil {
			c.patience = min(2*c.patience, lastWellTime)
			c.wait(c.patience)
		}
	})
}

// onStream is for goBy instead of how many moves there were.
const onStream = -1

// goBy asks for a stream on a way, and goes on over it. moves says after how many the one before was lost, or else it is onStream. What this end
// has is said with the question, so it is to hold when the answer comes: a search that has not heard yet that its time is over must not go on from there.
func (c *lastingConn) goBy(ctx context.Context, way Way, moves int32) (err error) {
	lost := moves != onStream
	ctx, cancel := context.WithTimeout(ctx, meetAttempt)
	defer cancel()
	defer func() {
		if err != nil {
			c.b.lasting.resumeFailed.Add(1)
		}
	}()
	h := way.Header
	var first []byte
	c.mu.Lock()
	if lost {
		for c.using[reader] || c.using[writer] {
			c.pause()
		}
		if c.over == nil && !c.adrift(moves) {
			c.mu.Unlock()
			return fmt.Errorf("%w: it goes another way", errMidway)
		}
		first = c.has()
	}
	if c.over != nil && !c.untold || c.over == nil && !c.mayGoOn() {
		c.mu.Unlock()
		return fmt.Errorf("%w: it is over, or forgone", net.ErrClosed)
	}
	c.dialled++
	epoch := c.dialled
	h.Passage = Passage{ID: c.key.id, Epoch: epoch}
	c.mu.Unlock()
	one, err := c.b.counted(way.Node, func() (net.Conn, error) {
		if l := (*c.b.links.Load())[way.Node]; way.byTCP && l != nil {
			return l.goOn(ctx, h, first)
		}
		return c.b.dial(ctx, way.Node, &h, first, false)
	})
	if err != nil {
		return err
	}
	raw, ok := one.(stream)
	if !ok {
		one.Close()
		return errors.New("no way leads to this node")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over != nil {
		c.untold = false
		raw.Abort()
		return fmt.Errorf("%w: it is over", net.ErrClosed)
	}
	if lost && !c.adrift(moves) || !lost && (c.stream == nil || c.dialled != epoch) || !c.detach(epoch) {
		raw.lose()
		return fmt.Errorf("%w: it goes another way", errMidway)
	}
	c.mu.Unlock()
	var has [offsetLength]byte
	stop := context.AfterFunc(ctx, raw.lose)
	if !lost {
		_, err = raw.Write(c.has())
	}
	if err == nil {
		_, err = io.ReadFull(raw, has[:])
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	c.mu.Lock()
	switch {
	case c.over != nil:
		c.untold = false
		raw.Abort()
		return fmt.Errorf("%w: it is over", net.ErrClosed)
	case c.epoch != epoch:
		raw.lose()
		return fmt.Errorf("%w: it goes another way", errMidway)
	case err != nil:
		raw.lose()
		if !lost {
			c.suspend()
		}
		return err
	}
	c.attach(raw, epoch, binary.BigEndian.Uint64(has[:]), way)
	return nil
}

// finish ends the flow, for good: both ends see a reset, unless they have had all. mu is held.
func (c *lastingConn) finish(why error) {
	if c.over != nil {
		return
	}
	c.over = why
	s := c.take()
	if s != nil {
		s.Abort()
	}
	c.leaves(s, why)
	c.giveAhead()
	c.b.lasting.suspended.Add(-1)
	c.dropOut()
	for _, t := range []*time.Timer{c.ack, c.meeting, c.returning} {
		if t != nil {
			t.Stop()
		}
	}
	c.b.lasting.leave(c)
	c.wake()
}

// leaves has the other end of a flow that is over be told of that, if it may wait for it, by another stream than the one that was left, if any. It is
// for the opener: who did not open it says so when he is asked. mu is held.
func (c *lastingConn) leaves(s stream, why error) {
	switch {
	case c.ways == nil:
	case s == nil:
		c.untold = why == net.ErrClosed // the search that goes on tells
	case isMute(s) && !c.alone && !errors.Is(why, errEnded):
		c.untold = true
		c.untold = c.seek()
		return
	}
	if c.cancel != nil && !c.untold {
		c.cancel()
	}
}

// dropOut has nothing kept of what was written, nor what a deadline has left half written. mu is held.
func (c *lastingConn) dropOut() {
	c.out.Drop()
	c.rest = nil
	if !c.using[writer] { // who is at it lets go of it himself
		c.out.Written()
	}
}

// settle ends the flow if its user has closed it, and all has arrived. mu is held.
func (c *lastingConn) settle() {
	if !c.closed || c.over != nil || !c.out.Done() {
		return
	}
	if c.stream != nil && (c.using[writer] || c.rest.left() || c.in.Ended() && c.in.Due() > 0) {
		return // the last acknowledgement is to be written before the stream's end: who writes it comes back
	}
	s := c.take()
	c.finish(net.ErrClosed)
	if s != nil {
		c.untold = false
		s.end()
		if !c.in.Ended() {
			c.leaves(s, net.ErrClosed)
		}
	}
}

// forgoes has nothing kept for another stream from now on, and the other end told. mu is held.
func (c *lastingConn) forgoes() {
	if !c.out.Forgone() {
		c.b.lasting.forgone.Add(1)
		c.out.Forgo()
		c.forgo, c.owed = true, true
	}
}

// pause waits until something has changed. mu is held.
func (c *lastingConn) pause() {
	if c.changed == nil {
		c.changed = sync.NewCond(&c.mu)
	}
	c.changed.Wait()
}

// wake tells who waits that something has changed. mu is held.
func (c *lastingConn) wake() {
	if c.changed != nil {
		c.changed.Broadcast()
	}
}

// await waits until something has changed, or until a time, which is zero for never. mu is held.
func (c *lastingConn) await(until time.Time) {
	if !until.IsZero() {
		wake := time.AfterFunc(time.Until(until), func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.wake()
		})
		defer wake.Stop()
	}
	c.pause()
}

// enter has one side be at the stream, once there is one. mu is held.
func (c *lastingConn) enter(side int, wait bool) (stream, error) {
	for {
		deadline := c.deadline(side)
		if side == reader && (c.closed || c.in.Ended()) {
			deadline = time.Time{} // its user reads no more, and who reads on has none
		}
		switch {
		case c.over != nil:
			return nil, c.over
		case side == writer && c.deaf != nil:
			return nil, c.deaf
		case c.stream != nil:
			c.using[side] = true
			c.unread = c.unread && side == writer
			return c.stream, nil
		case !wait:
			return nil, errMidway
		case !deadline.IsZero() && !time.Now().Before(deadline):
			return nil, os.ErrDeadlineExceeded
		}
		c.await(deadline)
	}
}

// leave has one side be at the stream no more. mu is held.
func (c *lastingConn) leave(side int) {
	c.using[side] = false
	if c.stream == nil {
		c.wake() // somebody waits for that
	}
}

// Read returns io.EOF only where the other end has ended its writing.
func (c *lastingConn) Read(p []byte) (int, error) { return c.receive(p, false, false) }

// Peek is as Read, and takes nothing.
func (c *lastingConn) Peek(p []byte) (int, error) { return c.receive(p, true, false) }

// Await waits until there is something to be read: bytes, the end, or an error. It takes none of them, but hears what is said to this end, acknowledgements above all, so that
// one direction can be silent beside the other. It needs little of the stack, for a flow that is silent is not to hold a large one: hence it asks the stream itself.
func (c *lastingConn) Await() {
	for {
		s := c.awaits()
		if s == nil {
			return
		}
		n, err := s.Peek(c.peeked[:])
		if !c.awaited(s, n, err) {
			return
		}
	}
}

// awaits has the caller be the one who reads a stream; nil: nothing is to be waited for. It is apart from Await, as awaited is, for what is on a stack there is
// of each flow that is silent.
//
//go:noinline
func (c *lastingConn) awaits() stream {
	if c.startReading(false) != nil {
		return nil
	}
	defer c.mu.Unlock()
	s, err := c.enter(reader, true)
	if err != nil {
		c.yield(reader)
		return nil
	}
	c.lighten()
	return s
}

// awaited takes note that so many bytes have come to the stream, or of its error, and says whether they were but words to this end, so that there is nothing to be read yet.
//
//go:noinline
func (c *lastingConn) awaited(s stream, n int, err error) (words bool) {
	c.mu.Lock()
	defer c.stopReading()
	if n > 0 && c.in.Left() == 0 && c.stream == s {
		head := c.in.Head()
		c.mu.Unlock()
		n, err = s.Read(head)
		words = c.readHead(s, n, err) == nil && c.in.Left() == 0 && c.mayRead(false) == nil
		if words {
			return true
		}
	} else {
		c.leave(reader)
		if n == 0 {
			c.broke(s, err)
		}
	}
	if c.stream == s {
		c.later(ackDelay) // it may be that nobody reads
	}
	return false
}

// lighten gives up what only a flow needs that is not silent: whose stream somebody waits for need not be watched. mu is held.
func (c *lastingConn) lighten() {
	c.watchNoMore()
	if !c.armed {
		c.ack = nil
	}
}

// receive reads bytes, and what else the other end says before them. beyond has it read on behind the end.
func (c *lastingConn) receive(p []byte, peek, beyond bool) (int, error) {
	if err := c.startReading(beyond); err != nil {
		return 0, err
	}
	defer c.stopReading()
	for {
		if err := c.mayRead(beyond); err != nil {
			return 0, err
		}
		s, err := c.enter(reader, true)
		if err != nil {
			return 0, err
		}
		left := c.in.Left()
		if left == 0 {
			head := c.in.Head()
			c.mu.Unlock()
			n, err := s.Read(head)
			if err := c.readHead(s, n, err); err != nil {
				return 0, err
			}
			continue
		}
		if len(p) == 0 {
			c.leave(reader)
			return 0, nil
		}
		room := p[:min(len(p), left)]
		c.mu.Unlock()
		var n int
		if peek {
			n, err = s.Peek(room)
		} else {
			n, err = s.Read(room)
		}
		if err := c.readBytes(s, n, err, peek); n > 0 || err != nil {
			return n, err
		}
	}
}

// readHead takes note of what a read of a head came to, and has mu be held. What its reader is to hear at once it returns.
func (c *lastingConn) readHead(s stream, n int, err error) error {
	c.mu.Lock()
	c.leave(reader)
	if n > 0 && c.over == nil {
		c.heard(n)
	}
	return c.broke(s, err)
}

// readBytes is readHead of bytes, be it that they were taken or not. An error behind some comes again.
func (c *lastingConn) readBytes(s stream, n int, err error, peek bool) error {
	c.mu.Lock()
	c.leave(reader)
	if n == 0 {
		return c.broke(s, err)
	}
	if !peek {
		c.in.Took(n)
		if c.in.Due() >= ackEvery {
			c.later(0)
		} else {
			c.later(ackDelay)
		}
		c.shift(s)
	}
	return nil
}

// startReading has the caller be the one who reads, and mu be held, unless there is nothing more to read.
func (c *lastingConn) startReading(beyond bool) error {
	c.mu.Lock()
	for c.held[reader] && c.mayRead(beyond) == nil {
		c.pause()
	}
	err := c.mayRead(beyond)
	if err != nil { // there may be one who reads on
		c.mu.Unlock()
		return err
	}
	c.held[reader] = true
	return nil
}

// stopReading has another read, and mu be held no more.
func (c *lastingConn) stopReading() {
	c.yield(reader)
	c.mu.Unlock()
}

// mayRead is why there is nothing more to read. mu is held.
func (c *lastingConn) mayRead(beyond bool) error {
	switch {
	case beyond && c.in.Ended() && c.out.Done(), !beyond && c.in.Ended():
		return io.EOF
	case c.closed && !beyond:
		return net.ErrClosed
	}
	return nil
}

// broke takes note of the error of a stream that was read, and returns what its reader is to hear at once. mu is held.
func (c *lastingConn) broke(s stream, err error) error {
	switch {
	case err == nil:
	case errors.Is(err, os.ErrDeadlineExceeded) && c.closed:
		s.SetReadDeadline(time.Time{})
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.later(ackDelay) // he may not come back
		return err
	default:
		c.failed(s, reader, err)
	}
	return nil
}

// heard takes note of n bytes of a head. mu is held.
func (c *lastingConn) heard(n int) {
	f, whole, err := c.in.Read(n)
	if err == nil && whole {
		switch f.Kind {
		case lasting.Ack:
			if c.deaf == nil {
				err = c.out.Acked(f.N)
			}
		case lasting.Forgo:
			c.alone = true
			if !c.out.Forgone() {
				c.out.Forgo() // it is known to both
			}
		case lasting.End:
			if c.stream != nil {
				c.stream.SetReadDeadline(time.Time{}) // who reads on has no deadline
			}
			c.later(0)
			c.attend()
		}
	}
	if err != nil {
		c.fails(err)
		return
	}
	c.settle()
}

// attend has what the other end says heard, when the user reads no more, as long as it has to be. mu is held.
func (c *lastingConn) attend() {
	if c.attended || c.over != nil || c.out.Done() && c.in.Ended() {
		return
	}
	c.attended = c.b.start(func() {
		var nowhere [512]byte
		for {
			if _, err := c.receive(nowhere[:], false, true); err != nil {
				return
			}
		}
	})
}

// later has what is due acknowledged after a time, unless something that is written takes it along. mu is held.
func (c *lastingConn) later(after time.Duration) {
	switch {
	case c.over != nil:
	case c.armed && (after > 0 || c.hurried):
		return
	case after == 0: // no timer of no time: it costs more, and in a bubble of synctest two of them at once crash the race detector (Go 1.26)
		if c.ack != nil {
			c.ack.Stop()
		}
		go c.flush()
	case c.ack == nil:
		c.ack = time.AfterFunc(after, c.flush)
	default:
		c.ack.Reset(after)
	}
	c.armed, c.hurried = true, after == 0
}

// yield has another read, or write. mu is held.
func (c *lastingConn) yield(side int) {
	c.held[side] = false
	c.wake()
}

// flush writes what is due, unless somebody writes, who then does it, and looks whether somebody reads.
func (c *lastingConn) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed, c.hurried, c.owed = false, false, true
	c.lookForReader()
	if !c.held[writer] {
		c.held[writer] = true
		c.stopWriting()
	}
}

// startWriting has the caller be the one who writes. mu is held.
func (c *lastingConn) startWriting() {
	for c.held[writer] {
		c.pause()
	}
	c.held[writer] = true
}

// stopWriting has another write, and what was left to the caller meanwhile be written before. mu is held.
func (c *lastingConn) stopWriting() {
	for c.stream != nil && c.deaf == nil && c.due() {
		if c.pump(false) != nil {
			break
		}
	}
	c.yield(writer)
}

// due says that something is to be written. mu is held.
func (c *lastingConn) due() bool {
	c.owed = c.owed && (c.forgo || c.in.Due() > 0)
	return c.owed || c.out.Unsent() || c.rest.left()
}

// pump writes to the stream what is due, and waits for another where there is none, if it is to. It is for the one who writes. mu is held.
func (c *lastingConn) pump(wait bool) error {
	for c.due() {
		s, err := c.enter(writer, wait)
		if err != nil {
			return err
		}
		var todo parts
		if c.rest != nil {
			todo = *c.rest
		}
		switch {
		case todo.left():
		case c.forgo:
			c.forgo = false
			todo[0] = lasting.AppendForgo(c.heads[:0])
		default:
			todo[0], todo[1] = c.out.Next(c.in.Tell(), &c.heads)
			if on, is := s.(*streamConn); is {
				on.turn.fits = c.fits(0)
			}
		}
		c.mu.Unlock()
		for i := 0; i < len(todo) && err == nil; i++ {
			if len(todo[i]) > 0 {
				var n int
				n, err = s.Write(todo[i])
				todo[i] = todo[i][n:]
			}
		}
		c.mu.Lock()
		c.leave(writer)
		if errors.Is(err, os.ErrDeadlineExceeded) && c.stream == s && todo.left() {
			left := todo // which is not to be in the heap each time
			c.rest = &left
			return err
		}
		c.rest = nil
		c.out.Written()
		c.shift(s)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			c.failed(s, writer, err)
		}
	}
	c.settle()
	return nil
}

// Write returns once all of p was written to a stream. What was not when its deadline passes, is written by who writes next.
func (c *lastingConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.startWriting()
	defer c.stopWriting()
	all := len(p)
	for len(p) > 0 {
		if err := c.writable(); err != nil {
			return all - len(p), err
		}
		p = p[c.out.Add(p):]
		if c.out.Full() {
			c.forgoes()
		}
		if err := c.pump(true); err != nil {
			return all - len(p), err
		}
	}
	return all, nil
}

// Lend gives out room for what is to be written, so that it need not be copied to be kept. WriteLent is to have it back, be it with nothing in it.
func (c *lastingConn) Lend() (lent any, room []byte) {
	p := lasting.Lend()
	return p, p.Room()
}

// AwaitTurn waits, where many write much, until what is lent next would be sent as soon as it is written, so that who reads it for that does so then: what
// waits takes no memory, and what is sent is in the processor's cache. WriteLent is to follow, or an end of the flow.
func (c *lastingConn) AwaitTurn() {
	c.mu.Lock()
	c.giveAhead() // or nothing would tell of the one before
	c.startWriting()
	on, is := c.stream.(*streamConn)
	wants := is && c.over == nil && on.wantsAhead() && c.fits(lasting.Most)
	c.stopWriting()
	c.mu.Unlock()
	if !wants || !on.takeAhead() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ahead = on; c.over != nil {
		c.giveAhead()
	}
}

// giveAhead has a turn end that nothing was written in. mu is held.
func (c *lastingConn) giveAhead() {
	if c.ahead != nil {
		c.ahead.giveAhead()
		c.ahead = nil
	}
}

// fits says that QUIC has a window for so many bytes more: it opens one anew before a half of it was read. mu is held.
func (c *lastingConn) fits(n uint64) bool { return c.out.OnWay()+n <= c.b.config.windows.stream/2 }

// WriteLent is Write of the first n bytes of what was lent.
func (c *lastingConn) WriteLent(lent any, n int) (int, error) {
	piece := lent.(*lasting.Piece)
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.giveAhead()
	if n == 0 {
		piece.Free()
		return 0, nil
	}
	c.startWriting()
	defer c.stopWriting()
	if err := c.writable(); err != nil {
		piece.Free()
		return 0, err
	}
	c.out.Take(piece, n)
	if c.out.Full() {
		c.forgoes()
	}
	return n, c.pump(true)
}

// writable is why nothing can be written; nil: it can. mu is held.
func (c *lastingConn) writable() error {
	switch {
	case c.over != nil:
		return c.over
	case c.deaf != nil:
		return c.deaf
	case c.out.Ended() || c.closed:
		return net.ErrClosed
	}
	return nil
}

// CloseWrite ends this direction: the other end reads what was written, then io.EOF.
func (c *lastingConn) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.startWriting()
	defer c.stopWriting()
	switch {
	case c.over != nil:
		return c.over
	case c.deaf != nil:
		return c.deaf
	case c.closed:
		return net.ErrClosed
	}
	c.out.End()
	if err := c.pump(false); err != nil && !errors.Is(err, errMidway) {
		return err
	}
	return nil
}

// Close ends both directions. What was written still arrives, on whatever stream, if CloseWrite came before, and after it the other end reads io.EOF; or
// else ErrReset, before which it still arrives unless it goes by TCP.
func (c *lastingConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	c.wake()
	switch {
	case c.over != nil:
	case c.deaf != nil:
		c.finish(net.ErrClosed)
	case !c.out.Ended():
		s := c.take()
		if s != nil {
			s.Close()
		}
		c.finish(net.ErrClosed)
		if s != nil {
			c.untold = false
			c.leaves(s, net.ErrClosed)
		}
	default:
		c.deadlines = nil
		if c.stream != nil {
			c.stream.SetDeadline(time.Time{})
			if c.using[reader] && !c.attended {
				c.stream.SetReadDeadline(time.Now()) // its user reads no more
			}
		}
		if c.due() {
			c.later(0) // what a deadline has left
		}
		c.settle()
		c.attend()
	}
	return nil
}

// Abort ends both directions at once and drops what has not arrived.
func (c *lastingConn) Abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.finish(net.ErrClosed)
}

func (c *lastingConn) LocalAddr() net.Addr  { return c.local }
func (c *lastingConn) RemoteAddr() net.Addr { return c.remote }

// Way is the node by which it goes: that was dialled for its stream, or has dialled it.
func (c *lastingConn) Way() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.way
}

// Moves is how many streams it has gone on from.
func (c *lastingConn) Moves() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int(c.moves)
}

// SetDeadline sets both deadlines.
func (c *lastingConn) SetDeadline(t time.Time) error {
	c.setDeadline(reader, t)
	c.setDeadline(writer, t)
	return nil
}

// SetReadDeadline ends reads at t with os.ErrDeadlineExceeded; the zero time lets them wait.
func (c *lastingConn) SetReadDeadline(t time.Time) error {
	c.setDeadline(reader, t)
	return nil
}

// SetWriteDeadline ends writes at t with os.ErrDeadlineExceeded; the zero time lets them wait.
func (c *lastingConn) SetWriteDeadline(t time.Time) error {
	c.setDeadline(writer, t)
	return nil
}

func (c *lastingConn) setDeadline(side int, t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	if c.deadlines == nil && !t.IsZero() {
		c.deadlines = new([2]time.Time)
	}
	if c.deadlines != nil {
		c.deadlines[side] = t
		if *c.deadlines == ([2]time.Time{}) {
			c.deadlines = nil
		}
	}
	switch {
	case c.stream == nil:
		c.wake()
	case side == writer:
		c.stream.SetWriteDeadline(t)
	case !c.in.Ended():
		c.stream.SetReadDeadline(t)
	}
}

// deadline is that of one side; zero: there is none. mu is held.
func (c *lastingConn) deadline(side int) time.Time {
	if c.deadlines == nil {
		return time.Time{}
	}
	return c.deadlines[side]
}

// Join has each of two streams, by which a node carries a flow on that outlives them, break off as the other has: if its way was lost, or the node there has
// gone, nothing is said of the flow. Other connections are returned as they are.
func Join(a, b net.Conn) (net.Conn, net.Conn) {
	x, isX := a.(stream)
	y, isY := b.(stream)
	if !isX || !isY {
		return a, b
	}
	both := new(joint)
	for _, s := range []stream{x, y} {
		if own, is := s.(*bulkConn); is {
			own.leg.Store(true)
		}
		context.AfterFunc(s.Gone(), func() {
			// The relay may be at neither: it waits for who does not read at the other end.
			if err := s.gone(); pathLost(err, false) {
				if both.note(err); both.lost.Load() {
					x.lose()
					y.lose()
				}
			}
		})
	}
	return both.leg(x), both.leg(y)
}

// joint is what is known of the two legs of a flow.
type joint struct {
	first sync.Once
	lost  atomic.Bool
}

func (j *joint) note(err error) {
	if err != nil && err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) {
		j.first.Do(func() { j.lost.Store(pathLost(err, false)) })
	}
}

// leg is one of them, as the relay has it. Only who knows what is on its way may peek at what TCP carries.
func (j *joint) leg(s stream) net.Conn {
	l := leg{s, s, j}
	if isMute(s) {
		return &l
	}
	return &peekedLeg{l}
}

// leg is one of them.
type leg struct {
	duplexConn
	on   stream
	both *joint
}

func (l *leg) Read(p []byte) (int, error) {
	n, err := l.on.Read(p)
	l.both.note(err)
	return n, err
}

func (l *leg) Write(p []byte) (int, error) {
	n, err := l.on.Write(p)
	l.both.note(err)
	return n, err
}

// Abort breaks the leg off.
func (l *leg) Abort() {
	if l.both.lost.Load() {
		l.on.lose()
	} else {
		l.on.Abort()
	}
}

// peekedLeg is a leg of which is heard that bytes have come before there is room for them.
type peekedLeg struct{ leg }

func (l *peekedLeg) Peek(p []byte) (int, error) {
	n, err := l.on.Peek(p)
	l.both.note(err)
	return n, err
}
