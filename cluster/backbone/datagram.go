package backbone

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// Flows of datagrams go by QUIC DATAGRAM frames (RFC 9221), each end's by the carriers that it has dialled. A frame is a number, of each
// connection from 0 on, by which the other end knows how many are missing, and messages one after the other. A message names its flow by the number that the opener gave it. Until the other
// end has said that it knows the flow, what opens it goes before whatever is sent: so a flow begins with its first datagram, and one that was
// forgotten, with its node or by it, begins anew by itself.
const (
	// maxFlows bounds the flows of datagrams that others have opened here, and maxPeerFlows those of one of them; more are refused. An origin has sockets for
	// 24,000.
	maxFlows     = 65536
	maxPeerFlows = maxFlows / 2
	// maxPending bounds what waits in bytes to be sent to a peer by one carrier; more is dropped.
	maxPending = 1 << 20
	// maxPendingLarge is the same of what goes by a stream.
	maxPendingLarge = 4 << 20
	// keptPending is what a queue that is empty keeps in bytes.
	keptPending = 64 << 10
	// largestFrame is what is tried first, in bytes; a path may take less.
	largestFrame = 1452
	// relook is when it is tried again: a path that took less may have been found to take more.
	relook = time.Second
	// largeTimeout is how long the stream may take to take what is written; then it is broken off.
	largeTimeout = 5 * time.Second
	// maxMessage bounds a message: a datagram and all that opens its flow.
	maxMessage = 1<<16 + 512
)

// datagramService is the stream by which messages go that are larger than a frame.
const datagramService = "datagrams"

// The kinds of messages.
const (
	kindThere   = 0 // of the opener: a datagram
	kindOpen    = 1 // of the opener: a header
	kindBack    = 2 // to the opener: a datagram
	kindOpened  = 3 // to the opener: the flow is known
	kindRefused = 4 // to the opener: with a reason
	kindUnknown = 5 // to the opener: there is no such flow; it is to open it anew
	kindClosed  = 6 // of the opener: it has no such flow any more
	kindTold    = 7 // to the opener, that has asked by its header: what its end has to say of the flow
	kinds       = 8
	// withLarge goes with kindOpen: what is larger than a frame comes back by a stream, too.
	withLarge = 0x80
)

// ErrBusy says that too much waits to be sent: what was to be is dropped.
var ErrBusy = errors.New("too much waits to be sent")

// TooLargeError says which of the datagrams that were to be sent do not go, by their places among them in order: they are larger than the path takes, and their flow has
// none go by a stream. The others go.
type TooLargeError struct{ Which []int }

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%d datagrams are larger than the path takes", len(e.Which))
}

// message is one message as it is read.
type message struct {
	kind   byte
	large  bool // withLarge
	flow   uint32
	header []byte // of kindOpen, as it was sent
	data   []byte // the datagram, or the reason
}

// appendMessage appends a message: its kind, the flow in four bytes, and the header, or the data after its length, or nothing.
func appendMessage(b []byte, kind byte, flow uint32, header, data []byte) []byte {
	b = append(b, kind, byte(flow>>24), byte(flow>>16), byte(flow>>8), byte(flow))
	switch kind {
	case kindOpen, kindOpen | withLarge:
		return append(b, header...)
	case kindOpened, kindUnknown, kindClosed:
		return b
	}
	b = binary.AppendUvarint(b, uint64(len(data)))
	return append(b, data...)
}

var errMessage = errors.New("malformed message")

// readMessage reads one message and what follows it.
func readMessage(b []byte) (m message, h Header, rest []byte, err error) {
	if len(b) < 5 || b[0] >= kinds && b[0] != kindOpen|withLarge {
		return m, h, nil, errMessage
	}
	m.kind, m.large, m.flow = b[0]&^withLarge, b[0]&withLarge != 0, binary.BigEndian.Uint32(b[1:])
	b = b[5:]
	switch m.kind {
	case kindOpened, kindUnknown, kindClosed:
		return m, h, b, nil
	case kindOpen:
		r := bytes.NewReader(b)
		if h, err = ReadHeader(r); err != nil {
			return m, h, nil, fmt.Errorf("%w: %w", errMessage, err)
		}
		m.header = b[:len(b)-r.Len()]
		return m, h, b[len(m.header):], nil
	}
	length, n := binary.Uvarint(b)
	if n <= 0 || length > uint64(len(b)-n) {
		return m, h, nil, errMessage
	}
	m.data = b[n : n+int(length) : n+int(length)]
	return m, h, b[n+int(length):], nil
}

// Arrival is a flow of datagrams that another node (or this one) has opened.
type Arrival struct {
	Header
	// From is the name of the node that opened it, as its certificate has it.
	From string
	// Large says that what is larger than a frame comes by a stream.
	Large bool
	// Back is the way to the opener.
	Back *Datagrams
}

// Receiver is who takes the datagrams of a flow. Its functions may be called at once, and must not wait; they may be nil.
type Receiver struct {
	// Receive takes datagrams, which are its own until it returns.
	Receive func(all [][]byte)
	// End hears that the other end is done with the flow: the opener with nil, the other one with a *RefusedError. It is not called after
	// Close.
	End func(err error)
	// Told hears what the other end says of the flow (Datagrams.Tell); of the opener.
	Told func(text string)
	// Known hears that the other end knows the flow, as often as that says so; of the opener. Within the process nobody says so.
	Known func()
	// Asked hears that the opener has opened the flow again, by Datagrams.Ask or as it did not know yet that it was known; of the other end.
	Asked func()
}

func (r Receiver) receive(all [][]byte) {
	if r.Receive != nil {
		r.Receive(all)
	}
}

func (r Receiver) told(text string) {
	if r.Told != nil {
		r.Told(text)
	}
}

func (r Receiver) known() {
	if r.Known != nil {
		r.Known()
	}
}

func (r Receiver) asked() {
	if r.Asked != nil {
		r.Asked()
	}
}

func (r Receiver) end(err error) {
	if r.End != nil {
		r.End(err)
	}
}

// Datagrams is one end of a flow of datagrams. They arrive once, or not at all, and mostly in order.
type Datagrams struct {
	b      *Backbone
	peer   *peer
	flow   uint32
	opener bool
	large  bool   // what is larger than a frame goes by a stream
	header []byte // of the opener; at the other end, what it was opened by
	to     Receiver

	known  atomic.Bool            // of the opener: the other end knows the flow
	tells  atomic.Pointer[string] // of the other end: what it has told
	closed atomic.Bool
	no     atomic.Pointer[RefusedError] // why it was closed, if the other end has refused it; set before that
	self   atomic.Pointer[Datagrams]    // the other end, where it is in this process
}

// OpenDatagrams opens a flow of datagrams to a node. It waits for nothing, and says ErrDown where there is no link to the node; whether the node takes the
// flow shows later, in to.End. Large says that datagrams larger than a frame go by a stream; if not they are dropped, and counted, and Send says so. To open one to
// oneself is within the process, to the same handlers, and there the answer is known at once.
func (b *Backbone) OpenDatagrams(node string, h Header, large bool, to Receiver) (*Datagrams, error) {
	header, err := AppendHeader(nil, h)
	if err != nil {
		return nil, err
	}
	f := &Datagrams{b: b, opener: true, large: large, header: header, to: to}
	if node == b.config.Self {
		return f, b.openSelf(f, h)
	}
	l := (*b.links.Load())[node]
	if l == nil || l.datagramCarrier(0) == nil {
		return nil, fmt.Errorf("open a flow of datagrams to %s: %w", node, ErrDown)
	}
	f.peer = b.peer(node)
	g := &b.datagrams
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.next++; g.opened[g.next] != nil; g.next++ {
	}
	f.flow = g.next
	g.opened[f.flow] = f
	return f, nil
}

// openSelf hands a flow to a handler of this node.
func (b *Backbone) openSelf(f *Datagrams, h Header) error {
	back := &Datagrams{b: b}
	back.self.Store(f)
	to, err := b.handleDatagrams(Arrival{Header: h, From: b.config.Self, Large: f.large, Back: back})
	if err != nil {
		return err
	}
	back.to = to
	f.self.Store(back)
	return nil
}

// handleDatagrams lets the service's handler say yes or no.
func (b *Backbone) handleDatagrams(a Arrival) (Receiver, error) {
	handler := (*b.datagrams.handlers.Load())[a.Service]
	if handler == nil {
		return Receiver{}, &RefusedError{Reason: fmt.Sprintf("no service %q here", a.Service)}
	}
	to, err := handler(a)
	if err != nil {
		if _, said := errors.AsType[*RefusedError](err); !said {
			err = &RefusedError{Reason: err.Error()}
		}
	}
	return to, err
}

// HandleDatagrams sets who takes the flows of datagrams of a service. The handler must not wait. Its error is the reason of a refusal.
func (b *Backbone) HandleDatagrams(service string, h func(Arrival) (Receiver, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	handlers := maps.Clone(*b.datagrams.handlers.Load())
	handlers[service] = h
	b.datagrams.handlers.Store(&handlers)
}

// Send sends datagrams, and has taken over none of the slices when it returns. A *TooLargeError says that some do not go. Any other error says that none of them goes: ErrDown, ErrBusy, or net.ErrClosed, with a
// *RefusedError if the other end has refused the flow: of that to.End hears too, before this or after.
func (f *Datagrams) Send(all [][]byte) error {
	if f.closed.Load() {
		return f.whyClosed()
	}
	if f.peer == nil {
		if other := f.self.Load(); other != nil && !other.closed.Load() {
			other.to.receive(all)
			return nil
		}
		return f.whyClosed()
	}
	if !f.opener {
		return f.peer.send(kindBack, f, all)
	}
	return f.peer.send(kindThere, f, all)
}

func (f *Datagrams) whyClosed() error {
	if no := f.no.Load(); no != nil {
		return fmt.Errorf("%w: %w", net.ErrClosed, no)
	}
	return net.ErrClosed
}

// Tell tells the opener of a flow something of it, in at most 255 bytes. It is for one that has asked: who does not know of it takes it for malformed. It may be
// lost, and is told again as long as the opener does not know that the flow was taken.
func (f *Datagrams) Tell(text string) {
	if f.peer == nil {
		if other := f.self.Load(); other != nil {
			other.to.told(text)
		}
		return
	}
	f.tells.Store(&text)
	f.peer.say(kindTold, f.flow, text)
}

// Ask sends what opens the flow once more, without a datagram, whether or not the other end is known to know it: what that end has to say of the flow comes
// again. It is for the opener, and may be lost.
func (f *Datagrams) Ask() {
	if f.peer == nil || !f.opener || f.closed.Load() {
		return
	}
	f.peer.queue(f.flow, func(s *sender) bool {
		if len(s.pending) > maxPending {
			return false
		}
		s.pending = f.appendOpening(s.pending)
		s.ends = append(s.ends, end{at: len(s.pending)})
		return true
	})
}

// Close ends the flow, at the other end too. It may be called more than once. If it is not the opener who does, the opener may begin it anew.
func (f *Datagrams) Close() { f.end(kindUnknown, nil) }

// Refuse ends a flow that another has opened, who hears that it is refused, with the reason: it is not to begin it anew here.
func (f *Datagrams) Refuse(reason string) { f.end(kindRefused, &RefusedError{Reason: reason}) }

func (f *Datagrams) end(kind byte, why error) {
	if f.closed.Swap(true) {
		return
	}
	reason := ""
	refused, is := why.(*RefusedError)
	if is {
		reason = refused.Reason
	}
	if f.peer == nil {
		if other := f.self.Load(); other != nil && is {
			other.no.CompareAndSwap(nil, refused)
		}
		if other := f.self.Load(); other != nil && !other.closed.Swap(true) {
			other.to.end(why)
		}
		return
	}
	if f.opener {
		kind = kindClosed
		g := &f.b.datagrams
		g.mu.Lock()
		delete(g.opened, f.flow)
		g.mu.Unlock()
	} else {
		f.peer.forget(f)
	}
	f.peer.say(kind, f.flow, reason)
}

// Reach says what the flow's other end is by name; "" is this node.
func (f *Datagrams) Reach() string {
	if f.peer == nil {
		return ""
	}
	return f.peer.node
}

// datagrams is what a Backbone has of flows of datagrams.
type datagrams struct {
	handlers atomic.Pointer[map[string]func(Arrival) (Receiver, error)]
	count    datagramCounters

	mu     sync.Mutex
	next   uint32
	opened map[uint32]*Datagrams // here, by the number that they were given
	peers  map[string]*peer      // those that had any; as many as there were nodes
}

func (d *datagrams) init() {
	d.handlers.Store(&map[string]func(Arrival) (Receiver, error){})
	// A node that begins anew does not begin with the numbers of flows that others still have of it.
	d.next, d.opened, d.peers = rand.Uint32(), map[uint32]*Datagrams{}, map[string]*peer{}
}

type datagramCounters struct {
	sent, received             atomic.Uint64
	framesSent, framesReceived atomic.Uint64
	skipped, late              atomic.Uint64
	dropped, unsent            atomic.Uint64
	tooLarge, byStream         atomic.Uint64
	malformed, unknown, strays atomic.Uint64
	opened, refused, crowded   atomic.Uint64
	flows                      atomic.Int64
}

func (d *datagrams) counters(all map[string]uint64) {
	c := &d.count
	all["backbone_datagrams_sent_total"] = c.sent.Load()
	all["backbone_datagrams_received_total"] = c.received.Load()
	all["backbone_datagrams_dropped_total"] = c.dropped.Load()
	all["backbone_datagrams_unsent_total"] = c.unsent.Load()
	all["backbone_datagrams_too_large_total"] = c.tooLarge.Load()
	all["backbone_datagrams_by_stream_total"] = c.byStream.Load()
	all["backbone_datagrams_unknown_total"] = c.unknown.Load()
	all["backbone_datagrams_stray_total"] = c.strays.Load()
	all["backbone_datagrams_malformed_total"] = c.malformed.Load()
	all["backbone_datagram_frames_sent_total"] = c.framesSent.Load()
	all["backbone_datagram_frames_received_total"] = c.framesReceived.Load()
	all["backbone_datagram_frames_skipped_total"] = c.skipped.Load()
	all["backbone_datagram_frames_late_total"] = c.late.Load()
	all["backbone_datagram_flows_opened_total"] = c.opened.Load()
	all["backbone_datagram_flows_refused_total"] = c.refused.Load()
	all["backbone_datagram_flows_crowded_total"] = c.crowded.Load()
	all["backbone_datagram_flows"] = uint64(c.flows.Load())
}

// peer is another node, as flows of datagrams go there and come from it.
type peer struct {
	b       *Backbone
	node    string
	senders []sender // by the number of the flow
	large   largeSender

	mu    sync.Mutex
	flows map[uint32]*Datagrams // that it has opened here
}

func (b *Backbone) peer(node string) *peer {
	g := &b.datagrams
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.peers[node]
	if p == nil {
		p = &peer{b: b, node: node, flows: map[uint32]*Datagrams{}, senders: make([]sender, b.config.Carriers)}
		g.peers[node] = p
	}
	return p
}

// sender sends to one peer by one carrier. What gathers while the carrier takes its time goes together then.
type sender struct {
	mu      sync.Mutex
	active  bool   // somebody sends
	pending []byte // messages
	ends    []end  // of each
	spare   []byte
	spareOf []end

	// Of who sends:
	carrier *carrier
	frame   []byte
	most    int // that a frame may have
	looked  time.Time
}

// end is where a message ends in the queue.
type end struct {
	at    int
	large bool // it may go by a stream
	data  bool // it is a datagram
	// opens is its flow, where its opening goes before it by frames: if itself goes by a stream the opening does so, too.
	opens *Datagrams
}

// send queues datagrams of a flow.
func (p *peer) send(kind byte, f *Datagrams, all [][]byte) error {
	c := &p.b.datagrams.count
	all, large := p.fitting(f, all)
	err := p.queue(f.flow, func(s *sender) bool {
		if len(s.pending) > maxPending {
			return false
		}
		var opens *Datagrams
		if f.opener && !f.known.Load() {
			opens = f
			s.pending = f.appendOpening(s.pending)
			s.ends = append(s.ends, end{at: len(s.pending)})
		}
		for _, data := range all {
			s.pending = appendMessage(s.pending, kind, f.flow, nil, data)
			s.ends = append(s.ends, end{len(s.pending), f.large, true, opens})
		}
		return true
	})
	switch {
	case errors.Is(err, ErrBusy):
		c.dropped.Add(uint64(len(all)))
	case err != nil:
		c.unsent.Add(uint64(len(all)))
	case large != nil:
		return large
	}
	return err
}

// fitting are those datagrams of a flow that a frame takes on the path as it is now, or a stream; it counts the others.
func (p *peer) fitting(f *Datagrams, all [][]byte) ([][]byte, *TooLargeError) {
	if f.large || !slices.ContainsFunc(all, func(data []byte) bool { return messageSize(data) > surePayload-frameHead }) {
		return all, nil
	}
	n := p.senderOf(f.flow)
	l := (*p.b.links.Load())[p.node]
	if l == nil {
		return all, nil
	}
	c := l.datagramCarrier(n)
	if c == nil {
		return all, nil
	}
	most := frameSize(c.conn) - frameHead
	var large TooLargeError
	fit := make([][]byte, 0, len(all))
	for i, data := range all {
		if messageSize(data) <= most {
			fit = append(fit, data)
			continue
		}
		large.Which = append(large.Which, i)
	}
	if len(large.Which) == 0 {
		return all, nil
	}
	p.b.datagrams.count.tooLarge.Add(uint64(len(large.Which)))
	return fit, &large
}

// surePayload is what a DATAGRAM frame takes on every path, in bytes.
const surePayload = smallestPacket - payloadOverhead

// messageSize is how long the message of a datagram of 128 to 16,383 bytes is; others are far from what a frame takes at most.
func messageSize(data []byte) int { return 5 + 2 + len(data) }

// frameSize is how large a frame may be on a connection's path now.
func frameSize(conn *quic.Conn) int {
	if size := packetSize(conn); size > 0 {
		return min(largestFrame, size-payloadOverhead)
	}
	return largestFrame
}

func (p *peer) senderOf(flow uint32) int { return int(flow % uint32(len(p.senders))) }

func (f *Datagrams) appendOpening(b []byte) []byte {
	open := byte(kindOpen)
	if f.large {
		open |= withLarge
	}
	return appendMessage(b, open, f.flow, f.header, nil)
}

// say queues a message that is no datagram. What is said in answer to what came is no more than that.
func (p *peer) say(kind byte, flow uint32, text string) {
	p.queue(flow, func(s *sender) bool {
		if len(s.pending) > 2*maxPending {
			return false
		}
		s.pending = appendMessage(s.pending, kind, flow, nil, []byte(text[:min(len(text), maxReason)]))
		s.ends = append(s.ends, end{at: len(s.pending)})
		return true
	})
}

// queue has messages of a flow appended to those that wait, if there is room, and all of them sent.
func (p *peer) queue(flow uint32, add func(*sender) bool) error {
	n := p.senderOf(flow)
	l := (*p.b.links.Load())[p.node]
	if l == nil || l.datagramCarrier(n) == nil {
		return fmt.Errorf("send datagrams to %s: %w", p.node, ErrDown)
	}
	s := &p.senders[n]
	s.mu.Lock()
	defer s.mu.Unlock()
	if !add(s) {
		return fmt.Errorf("send datagrams to %s: %w", p.node, ErrBusy)
	}
	if !s.active {
		s.active = p.b.start(func() { p.flush(s, n) })
	}
	return nil
}

// flush sends what is queued until there is nothing more.
func (p *peer) flush(s *sender, n int) {
	for {
		s.mu.Lock()
		queue, ends := s.pending, s.ends
		if len(ends) == 0 {
			s.active = false
			s.carrier = nil
			s.mu.Unlock()
			return
		}
		s.pending, s.ends = s.spare[:0], s.spareOf[:0]
		s.mu.Unlock()
		p.sendAll(s, n, queue, ends)
		clear(ends)
		s.mu.Lock()
		if s.spare, s.spareOf = queue, ends; cap(queue) > keptPending {
			s.spare, s.spareOf = nil, nil
		}
		s.mu.Unlock()
	}
}

// frameHead is how many bytes a frame has before its messages.
const frameHead = 4

// sendAll sends a queue in as few frames as it fits in.
func (p *peer) sendAll(s *sender, n int, queue []byte, ends []end) {
	c := &p.b.datagrams.count
	if now := time.Now(); now.Sub(s.looked) > relook {
		s.most, s.looked = largestFrame, now
	}
	from := 0
	for len(ends) > 0 {
		k := 0 // messages in the frame
		for k < len(ends) && frameHead+ends[k].at-from <= s.most {
			k++
		}
		if e := ends[0]; k == 0 && e.data && !e.large { // it did fit when it was sent: the path may have been found to take more
			if conn := p.carries(s, n); conn != nil {
				if most := frameSize(conn.conn); most > s.most {
					s.most = most
					continue
				}
			}
		}
		if k == 0 { // it fits in no frame
			p.overflow(queue[from:ends[0].at], ends[0])
			from, ends = ends[0].at, ends[1:]
			continue
		}
		to := ends[k-1].at
		s.frame = append(append(s.frame[:0], make([]byte, frameHead)...), queue[from:to]...)
		err := p.sendFrame(s, n)
		if large, ok := errors.AsType[*quic.DatagramTooLargeError](err); ok && int(large.MaxDatagramPayloadSize) < s.most {
			s.most = int(large.MaxDatagramPayloadSize)
			continue
		}
		datagrams := uint64(0)
		for _, e := range ends[:k] {
			if e.data {
				datagrams++
			}
		}
		if err != nil {
			c.unsent.Add(datagrams)
		} else {
			c.framesSent.Add(1)
			c.sent.Add(datagrams)
		}
		from, ends = to, ends[k:]
	}
}

// sendFrame sends by the carrier of before, so that datagrams stay in order, or by another where that has ended.
func (p *peer) sendFrame(s *sender, n int) error {
	for {
		c := p.carries(s, n)
		if c == nil {
			return ErrDown
		}
		err := c.frames.send(c.conn, s.frame)
		if err == nil || c.conn.Context().Err() == nil {
			return err
		}
		if l := (*p.b.links.Load())[p.node]; l == nil || l.datagramCarrier(n) == c {
			return ErrDown // the link does not know yet
		}
	}
}

// carries is the carrier by which a sender sends: that of before, or another where that has ended; nil: none is up.
func (p *peer) carries(s *sender, n int) *carrier {
	if s.carrier == nil || s.carrier.isShut() || s.carrier.conn.Context().Err() != nil {
		s.carrier = nil
		if l := (*p.b.links.Load())[p.node]; l != nil {
			s.carrier = l.datagramCarrier(n)
		}
	}
	return s.carrier
}

// frames are those of one connection, which are numbered, whoever sends them: so its other end knows how many are missing.
type frames struct {
	turn chan struct{} // room for one: who sends, and may have to wait
	next uint32
}

// send sends a frame, with its number in its head.
func (f *frames) send(conn *quic.Conn, frame []byte) error {
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	binary.BigEndian.PutUint32(frame, f.next)
	err := conn.SendDatagram(frame)
	if err == nil {
		f.next++
	}
	return err
}

// datagramCarrier is the carrier for the flows of a number, preferably one that is not about to be replaced; nil: none is up.
func (l *link) datagramCarrier(n int) *carrier {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.carriers {
		if c := l.carriers[(n+i)%len(l.carriers)]; !c.isShut() {
			return c
		}
	}
	if len(l.carriers) > 0 {
		return l.carriers[n%len(l.carriers)]
	}
	return nil
}

// overflow takes a message that no frame takes.
func (p *peer) overflow(m []byte, e end) {
	c := &p.b.datagrams.count
	if e.data && !e.large { // the path has come to take less since it was sent
		c.tooLarge.Add(1)
		return
	}
	if f := e.opens; f != nil && !f.closed.Load() { // the frame may be lost, or come later
		p.large.add(p, f.appendOpening(nil))
	}
	if !p.large.add(p, m) {
		c.dropped.Add(1)
		return
	}
	c.byStream.Add(1)
}

// largeSender sends messages by a stream.
type largeSender struct {
	mu      sync.Mutex
	active  bool
	pending []byte

	conn duplexConn // of who sends
}

func (s *largeSender) add(p *peer, m []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending)+len(m) > maxPendingLarge {
		return false
	}
	s.pending = append(binary.BigEndian.AppendUint32(s.pending, uint32(len(m))), m...)
	if !s.active {
		s.active = p.b.start(func() { s.flush(p) })
	}
	return true
}

// flush writes what is queued until there is nothing more. The stream is kept for the next time.
func (s *largeSender) flush(p *peer) {
	for {
		s.mu.Lock()
		queue := s.pending
		s.pending = nil
		if len(queue) == 0 {
			s.active = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		p.b.datagrams.count.unsent.Add(uint64(s.write(p, queue)))
	}
}

// write writes messages to the stream, and says how many of them may not have arrived. One that was given to a stream which then broke may have, and does not go
// again.
func (s *largeSender) write(p *peer, queue []byte) (lost int) {
	for fresh := false; ; {
		if s.conn != nil && s.conn.Gone().Err() != nil { // it has ended since
			s.conn.Abort()
			s.conn = nil
		}
		if s.conn == nil {
			conn, err := p.b.Dial(p.b.ctx, p.node, Header{Service: datagramService})
			if err != nil {
				return lost + datagramsIn(queue)
			}
			if on, is := conn.(*streamConn); is {
				on.of.leave(on) // nothing comes by it, and nobody reads it
			}
			s.conn, fresh = conn.(duplexConn), true
		}
		s.conn.SetWriteDeadline(time.Now().Add(largeTimeout))
		n, err := s.conn.Write(queue)
		if err == nil {
			return lost
		}
		s.conn.Abort()
		s.conn = nil
		given, rest := cutMessages(queue, n)
		lost += datagramsIn(given)
		if fresh || p.b.ctx.Err() != nil {
			return lost + datagramsIn(rest)
		}
		queue = rest
	}
}

// cutMessages cuts a queue behind the last message that is whole in its first n bytes.
func cutMessages(queue []byte, n int) (whole, rest []byte) {
	at := 0
	for len(queue)-at >= 4 {
		next := at + 4 + int(binary.BigEndian.Uint32(queue[at:]))
		if next > n {
			break
		}
		at = next
	}
	return queue[:at], queue[at:]
}

// datagramsIn counts the datagrams among messages that stand after their lengths.
func datagramsIn(queue []byte) (n int) {
	for len(queue) > 4 {
		if kind := queue[4]; kind == kindThere || kind == kindBack {
			n++
		}
		queue = queue[4+binary.BigEndian.Uint32(queue):]
	}
	return n
}

// serveLarge reads the messages of a stream.
func (b *Backbone) serveLarge(in *Incoming) {
	p := b.peer(in.From)
	conn := in.Accept()
	defer conn.Close()
	stop := context.AfterFunc(b.ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var length [4]byte
	var buf []byte
	r := receiving{b: b, peer: p}
	for {
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(length[:])
		if n > maxMessage {
			b.datagrams.count.malformed.Add(1)
			return
		}
		if cap(buf) < int(n) {
			buf = make([]byte, n)
		}
		if _, err := io.ReadFull(conn, buf[:n]); err != nil {
			return
		}
		r.take(buf[:n], false)
	}
}

// receiveDatagrams takes the frames of a connection that another has dialled, until it ends.
func (b *Backbone) receiveDatagrams(v *visit, from string) {
	r := receiving{b: b, peer: b.peer(from)}
	c := &b.datagrams.count
	var next uint32
	for first := true; ; first = false { // releases before count by who sends, and may begin anywhere
		frame, err := v.conn.ReceiveDatagram(b.ctx)
		if err != nil {
			return
		}
		c.framesReceived.Add(1)
		if len(frame) < frameHead {
			c.malformed.Add(1)
			continue
		}
		number := binary.BigEndian.Uint32(frame)
		switch ahead := int32(number - next); {
		case first:
			next = number + 1
		case ahead < 0:
			c.late.Add(1)
		default:
			c.skipped.Add(uint64(ahead))
			next = number + 1
		}
		r.take(frame[frameHead:], v.isOutdated())
	}
}

// receiving is what is needed to take messages of one peer. It is one goroutine's.
type receiving struct {
	b    *Backbone
	peer *peer

	// Datagrams of one flow that follow each other are handed over together.
	to  *Datagrams
	all [][]byte
}

// take takes messages. Outdated says that the connection opens no flows any more.
func (r *receiving) take(b []byte, outdated bool) {
	c := &r.b.datagrams.count
	for len(b) > 0 {
		m, h, rest, err := readMessage(b)
		if err != nil {
			c.malformed.Add(1)
			break
		}
		b = rest
		switch m.kind {
		case kindThere:
			f := r.peer.flow(m.flow)
			if f == nil {
				c.unknown.Add(1)
				r.answer(kindUnknown, m.flow)
				continue
			}
			r.deliver(f, m.data)
		case kindOpen:
			r.open(m, h, outdated)
		case kindBack:
			f := r.own(m.flow)
			if f == nil {
				c.strays.Add(1)
				r.answer(kindClosed, m.flow)
				continue
			}
			f.known.Store(true)
			r.deliver(f, m.data)
		case kindOpened:
			if f := r.own(m.flow); f != nil {
				f.known.Store(true)
				if !f.closed.Load() {
					f.to.known()
				}
			}
		case kindTold:
			if f := r.own(m.flow); f != nil && !f.closed.Load() {
				f.to.told(strings.ToValidUTF8(string(m.data[:min(len(m.data), maxReason)]), ""))
			}
		case kindUnknown:
			if f := r.own(m.flow); f != nil {
				f.known.Store(false)
			}
		case kindRefused:
			f := r.own(m.flow)
			if f == nil {
				continue
			}
			no := &RefusedError{Reason: strings.ToValidUTF8(string(m.data[:min(len(m.data), maxReason)]), "")}
			f.no.CompareAndSwap(nil, no)
			if !f.closed.Swap(true) {
				r.b.datagrams.mu.Lock()
				delete(r.b.datagrams.opened, f.flow)
				r.b.datagrams.mu.Unlock()
				f.to.end(no)
			}
		case kindClosed:
			if f := r.peer.flow(m.flow); f != nil && !f.closed.Swap(true) {
				r.hand()
				r.peer.forget(f)
				f.to.end(nil)
			}
		}
	}
	r.hand()
}

// deliver has a datagram handed over with those before it.
func (r *receiving) deliver(f *Datagrams, data []byte) {
	if f != r.to {
		r.hand()
		r.to = f
	}
	r.b.datagrams.count.received.Add(1)
	r.all = append(r.all, data)
}

// hand hands over what was gathered.
func (r *receiving) hand() {
	switch {
	case len(r.all) == 0:
	case r.to.closed.Load(): // meanwhile
		r.b.datagrams.count.unknown.Add(uint64(len(r.all)))
	default:
		r.to.to.receive(r.all)
	}
	clear(r.all)
	r.to, r.all = nil, r.all[:0]
}

func (r *receiving) answer(kind byte, flow uint32) { r.peer.say(kind, flow, "") }

// own is a flow that this node has opened to the peer.
func (r *receiving) own(flow uint32) *Datagrams {
	g := &r.b.datagrams
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.opened[flow]; f != nil && f.peer == r.peer {
		return f
	}
	return nil
}

// open opens a flow, if it is not known already.
func (r *receiving) open(m message, h Header, outdated bool) {
	c := &r.b.datagrams.count
	f := r.peer.flow(m.flow)
	if f != nil && bytes.Equal(f.header, m.header) {
		if text := f.tells.Load(); text != nil {
			r.peer.say(kindTold, m.flow, *text)
		}
		r.answer(kindOpened, m.flow)
		if !f.closed.Load() {
			f.to.asked()
		}
		return
	}
	r.hand()
	if f != nil { // the peer has begun anew, and with the same number
		if !f.closed.Swap(true) {
			r.peer.forget(f)
			f.to.end(nil)
		}
	}
	if outdated {
		return // it is sent again until it is known, and by then on another connection
	}
	refuse := func(reason string) {
		c.refused.Add(1)
		r.peer.say(kindRefused, m.flow, reason)
	}
	if c.flows.Load() >= maxFlows {
		refuse("too many flows of datagrams")
		return
	}
	if r.peer.opened() >= maxPeerFlows {
		c.crowded.Add(1)
		refuse("too many flows of datagrams of one node")
		return
	}
	f = &Datagrams{b: r.b, peer: r.peer, flow: m.flow, large: m.large, header: bytes.Clone(m.header)}
	to, err := r.b.handleDatagrams(Arrival{Header: h, From: r.peer.node, Large: m.large, Back: f})
	if err != nil {
		reason := err.Error()
		if said, ok := errors.AsType[*RefusedError](err); ok {
			reason = said.Reason
		}
		refuse(reason)
		return
	}
	f.to = to
	if other := r.peer.keep(f); other != nil && !other.closed.Swap(true) {
		other.to.end(nil)
	}
	c.opened.Add(1)
	r.answer(kindOpened, m.flow)
}

// opened is how many flows it has opened here.
func (p *peer) opened() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.flows)
}

func (p *peer) flow(n uint32) *Datagrams {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.flows[n]
}

// keep has a flow be found by its number. Another that was opened at the same time, by another carrier, gives way.
func (p *peer) keep(f *Datagrams) (other *Datagrams) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.closed.Load() {
		return nil // its handler has closed it
	}
	if other = p.flows[f.flow]; other == nil {
		p.b.datagrams.count.flows.Add(1)
	}
	p.flows[f.flow] = f
	return other
}

func (p *peer) forget(f *Datagrams) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flows[f.flow] == f {
		delete(p.flows, f.flow)
		p.b.datagrams.count.flows.Add(-1)
	}
}
