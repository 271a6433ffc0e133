package backbone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlog"
	"github.com/quic-go/quic-go/qlogwriter"
)

const (
	// headerTimeout is how long a peer may take to say what a stream is for; then the stream is broken off.
	headerTimeout = 5 * time.Second

	// maxConnections bounds the connections from others, handshakes included; more are refused.
	maxConnections = 4096

	// maxPeerConnections bounds those of one peer once it is known who it is; more are closed. A link has one for each of its carriers, and as
	// many as maxLeaving that it leaves.
	maxPeerConnections = 256

	// maxPeerStreams bounds the streams of one peer that are open here, over all of its connections; more are reset at once, but for the first of each. They
	// are as many as a node carries flows. maxOwn bounds those of one connection that are for the backbone's own services.
	maxPeerStreams = 4 * maxStreams
	maxOwn         = 8

	// freeHandshakes is how many handshakes may be under way before who begins one must first show that it can
	// be reached at its address (QUIC Retry): a flood from forged addresses then leaves no state.
	freeHandshakes = 64
)

// The backbone's own services, between the two ends of one connection. Streams for them do not count as in use.
const (
	// helloService answers every stream with yes: so a node that dials learns that it was let in. The stream stays open, and
	// path.go has what the two ends say on it.
	helloService = "hello"
	// byeService answers when no stream of the connection is open at this end any more: then the dialler can close it, and
	// nothing is lost.
	byeService = "bye"
)

// Incoming is a stream that another node (or this one) wants to open. Exactly one of Accept and Refuse is due;
// what comes after the first changes nothing.
type Incoming struct {
	Header
	// From is the name of the node that dialled, as its certificate has it.
	From string

	b        *Backbone
	conn     duplexConn
	end      bool            // it opens a flow that outlives it, and ends here
	link     context.Context // of the connection that the stream is one of; nil: it is one of none
	answered atomic.Bool
	lasting  *lastingConn // what was accepted, if so

	asked  context.Context // what Context has returned; nil: it was not called
	forget func()          // what that takes
}

// soonAnswered is how long an answer may take before it is noticed that the dialler gives up meanwhile. Nearly all are there by then.
const soonAnswered = 100 * time.Millisecond

// Context is done once the dialler has given up, which may be noticed soonAnswered late, or the link is lost; and when the handler has returned. It is for the handler's
// goroutine to call, before it returns, and for the time before the answer.
func (in *Incoming) Context() context.Context {
	if in.link == nil {
		return in.conn.Gone()
	}
	if in.asked == nil {
		// The stream's own context, once it is waited for, holds 370 bytes for as long as the stream is open, and the answer is there within milliseconds.
		ctx, cancel := context.WithCancelCause(in.link)
		gone := func() { cancel(context.Cause(in.conn.Gone())) }
		watch := time.AfterFunc(soonAnswered, func() {
			stop := context.AfterFunc(in.conn.Gone(), gone)
			context.AfterFunc(ctx, func() { stop() })
		})
		in.asked, in.forget = ctx, func() {
			watch.Stop()
			cancel(nil)
		}
	}
	return in.asked
}

// Accept says yes and returns the stream, which the caller must close. It has CloseWrite() error and Abort() as
// well. Its remote address is the client where the header names one, or else the node that dialled. An answer that
// cannot be sent shows when the stream is used.
func (in *Incoming) Accept() net.Conn {
	if !in.answered.Swap(true) {
		in.b.count.accepted.Add(1)
		in.conn.Write(appendAnswer(nil, true, ""))
		if in.end {
			in.lasting = in.b.acceptLasting(in.conn.(stream), in.Header, in.From)
		}
	}
	if in.lasting != nil {
		return in.lasting
	}
	return in.conn
}

// Outlast has Close wait for what goes on with the stream when its handler has returned, until what it returns is called. It is to be called
// by the handler.
func (in *Incoming) Outlast() (over func()) {
	in.b.wg.Add(1)
	return in.b.wg.Done
}

// Refuse says no, with a reason for people of at most 255 bytes.
func (in *Incoming) Refuse(reason string) { in.refuse(refused, reason) }

// RefuseFor is Refuse for who was to carry a flow on and was refused himself: it says why.
func (in *Incoming) RefuseFor(err error) {
	as := byte(refused)
	if no, ok := errors.AsType[*RefusedError](err); ok && no.Over {
		as = over
	}
	in.refuse(as, err.Error())
}

func (in *Incoming) refuse(as byte, reason string) {
	if in.answered.Swap(true) {
		return
	}
	in.b.count.refused.Add(1)
	in.conn.Write(appendRefusal(nil, as, reason))
	in.conn.CloseWrite()
	in.conn.Close()
}

// acceptLinks takes in the connections that others dial.
func (b *Backbone) acceptLinks() {
	for {
		conn, err := b.listener.Accept(b.ctx)
		if err != nil {
			if b.ctx.Err() == nil {
				b.log.Error("backbone listens no more", "error", err)
			}
			return
		}
		b.wg.Go(func() { b.serve(conn) })
	}
}

// serve answers the streams of one connection until it ends.
func (b *Backbone) serve(conn *quic.Conn) {
	defer func() { conn.CloseWithError(b.closing(), "") }()
	v := conn.Context().Value(visitKey{}).(*visit)
	v.conn = conn
	v.welcome()
	from, err := b.config.PeerName(conn.ConnectionState().TLS)
	if err != nil {
		b.count.strangers.Add(1)
		conn.CloseWithError(codeStranger, "")
		return
	}
	v.from = from
	if !b.admit(v) {
		b.count.crowded.Add(1)
		conn.CloseWithError(codeClosing, "too many connections of one node")
		return
	}
	defer b.gone(v)
	if b.come(v) != nil {
		return
	}
	b.wg.Go(func() { b.receiveDatagrams(v, from) })
	for {
		stream, err := conn.AcceptStream(b.ctx)
		if err != nil {
			if hasEnded(context.Cause(conn.Context())) {
				b.lasting.peerEnded(from)
			}
			return
		}
		first := stream.StreamID() == 0 // its hello, without which the connection is none
		if v.share.streams.Add(1) > cmp.Or(b.config.windows.peerStreams, maxPeerStreams) && !first {
			v.share.streams.Add(-1)
			b.count.streamsCrowded.Add(1)
			stream.CancelRead(streamAborted)
			stream.CancelWrite(streamAborted)
			continue
		}
		v.enter() // here, in the order in which they were opened: a bye is the last of them
		b.wg.Go(func() { b.serveStream(v, stream, from) })
	}
}

// share is what one peer has here.
type share struct {
	connections int          // by visiting
	streams     atomic.Int64 // that it has opened, and which are open
}

// admit says whether a peer may have one more connection here; then gone is to be called.
func (b *Backbone) admit(v *visit) bool {
	b.visiting.Lock()
	defer b.visiting.Unlock()
	v.share = b.shares[v.from]
	if v.share == nil {
		v.share = &share{}
		b.shares[v.from] = v.share
	}
	if v.share.connections >= maxPeerConnections {
		return false
	}
	v.share.connections++
	return true
}

// come has Check and Renew look at a connection from now on, and looks at it itself: the peer may have been refused since the
// handshake judged it, or outdated, and this node renewed.
func (b *Backbone) come(v *visit) error {
	b.visiting.Lock()
	defer b.visiting.Unlock()
	b.visitors[v] = true
	if v.generation != b.generation.Load() {
		v.askAnew()
	}
	if b.outdated(v.conn) {
		v.outdate()
		return nil
	}
	return b.screen(v.conn)
}

// visitsOf is the peers of whose dialling there is a connection.
func (b *Backbone) visitsOf() map[string]bool {
	b.visiting.Lock()
	defer b.visiting.Unlock()
	peers := map[string]bool{}
	for v := range b.visitors {
		if v.conn.Context().Err() == nil {
			peers[v.from] = true
		}
	}
	return peers
}

func (b *Backbone) gone(v *visit) {
	b.visiting.Lock()
	defer b.visiting.Unlock()
	delete(b.visitors, v)
	if v.share.connections--; v.share.connections == 0 { // what goes on of its streams is over soon
		delete(b.shares, v.from)
	}
	if v.end != nil {
		v.end.Stop()
	}
}

func (b *Backbone) serveStream(v *visit, stream *quic.Stream, from string) {
	c := &streamConn{Stream: stream, peer: from, local: b.self, left: v.exit}
	c.SetReadDeadline(time.Now().Add(headerTimeout))
	h, err := ReadHeader(c)
	if err != nil {
		b.count.headersMalformed.Add(1)
		c.Abort()
		return
	}
	c.SetReadDeadline(time.Time{})
	c.remote = client(h, from)
	c.lasts = h.Passage.lasts()
	v.unread.enter(c, v.conn, b.config.windows)
	c.turns = &v.turns
	switch {
	case h.Service == helloService, h.Service == byeService, h.Service == warmService:
		c.unlist()
		defer v.own.Add(-1)
		if v.own.Add(1) > maxOwn {
			b.count.streamsCrowded.Add(1)
			c.Abort()
			return
		}
		b.serveOwn(v, c, h)
	case v.isOutdated():
		b.count.moved.Add(1)
		c.abort(streamMoved)
	default:
		b.answer(c, v.conn.Context(), h, from)
	}
}

// serveOwn answers a stream for a service of the backbone's own.
func (b *Backbone) serveOwn(v *visit, c *streamConn, h Header) {
	switch h.Service {
	case helloService:
		b.sayHello(v, c, h)
	case byeService:
		b.sayBye(v, c)
	case warmService:
		b.count.accepted.Add(1)
		c.Write(appendAnswer(nil, true, ""))
		b.widen(c, v.conn)
	}
}

// sayHello lets a peer know that it was let in and, if need be, that it is to dial anew, and hears what it has to say.
func (b *Backbone) sayHello(v *visit, c *streamConn, h Header) {
	defer c.Close()
	b.count.accepted.Add(1)
	c.Write(appendAnswer(nil, true, ""))
	w := b.watch(v.conn, c, func() { v.conn.CloseWithError(codeHole, errHole.Error()) })
	defer w.end()
	if h.Resource == speaksParity {
		w.offer()
	}
	b.greet(v, func() {
		w.path.mu.Lock()
		defer w.path.mu.Unlock()
		w.say([]byte{dialAnew})
	})
	w.hear(false, func() {}, func() {})
}

// greet has tell called, once, when the peer is to dial anew.
func (b *Backbone) greet(v *visit, tell func()) {
	b.visiting.Lock()
	defer b.visiting.Unlock()
	v.tell = sync.OnceFunc(tell)
	if isClosed(v.anew) {
		b.start(v.tell)
	}
}

// sayBye answers once no stream of the connection is open here.
func (b *Backbone) sayBye(v *visit, c *streamConn) {
	defer c.Close()
	select {
	case <-v.empty():
		b.count.accepted.Add(1)
		c.Write(appendAnswer(nil, true, ""))
	case <-c.Gone().Done():
	case <-b.ctx.Done():
	}
}

// answer lets the service's handler say yes or no to a stream; link is that of its connection, if it is one of many.
func (b *Backbone) answer(c duplexConn, link context.Context, h Header, from string) {
	in := &Incoming{Header: h, From: from, b: b, conn: c, link: link}
	defer func() {
		if in.forget != nil {
			in.forget()
		}
	}()
	if _, ok := c.(stream); !ok {
		in.Passage, h.Passage = Passage{}, Passage{} // it ends with its connection
	}
	handler, known := (*b.handlers.Load())[h.Service]
	switch {
	case !known:
		in.Refuse(fmt.Sprintf("no service %q here", h.Service))
		return
	case !h.Passage.lasts():
	case handler.through:
		in.Passage.Opener = from // whatever it says itself
	case h.Passage.Epoch > 0:
		b.takeUp(in)
		return
	default:
		in.end = true
	}
	handler.serve(in)
	in.Refuse("no answer")
}

// client is where a stream comes from, for the handler.
func client(h Header, from string) net.Addr {
	if h.Client.IsValid() {
		return net.TCPAddrFromAddrPort(h.Client)
	}
	return Addr(from)
}

type visitKey struct{}

// visit is a connection from another, from its first packet on.
type visit struct {
	b          *Backbone
	welcomed   atomic.Bool
	generation uint64        // of this node's identity, at most, that the peer was shown
	anew       chan struct{} // closed, by the backbone's visiting, when the peer is to dial anew
	tell       func()        // tells it so, once it has said hello; by the backbone's visiting
	conn       *quic.Conn    // from the end of the handshake on, like what follows
	from       string        // its peer; from before it is among the visitors
	end        *time.Timer   // by the backbone's visiting: closes it when its time is over
	share      *share        // of its peer, like from
	own        atomic.Int32  // streams for the backbone's own services
	unread     unread        // of the streams that the peer has opened on it
	turns      turns

	mu       sync.Mutex
	streams  int           // those open here, without the backbone's own
	drained  chan struct{} // closed when there are none; nil: nobody waits for that
	outdated bool          // it takes no new streams
}

var errCrowded = errors.New("too many connections")

func (b *Backbone) visit(ctx context.Context, _ *quic.ClientInfo) (context.Context, error) {
	if b.count.connections.Add(1) > maxConnections {
		b.count.connections.Add(-1)
		b.count.handshakesFailed.Add(1)
		return nil, errCrowded
	}
	b.count.handshaking.Add(1)
	v := &visit{b: b, generation: b.generation.Load(), anew: make(chan struct{})}
	context.AfterFunc(ctx, v.leave)
	return context.WithValue(ctx, visitKey{}, v), nil
}

// askAnew asks the peer to dial anew. b.visiting is held.
func (v *visit) askAnew() {
	closeOnce(v.anew)
	if v.tell != nil {
		v.b.start(v.tell)
	}
}

// outdate has the connection take no more streams and end in due time; false if that is so already. b.visiting is held.
func (v *visit) outdate() bool {
	v.askAnew()
	if v.end != nil {
		return false
	}
	v.end = time.AfterFunc(drainTime, func() {
		v.b.count.overdue.Add(1)
		v.conn.CloseWithError(codeReplaced, "")
	})
	v.mu.Lock()
	defer v.mu.Unlock()
	v.outdated = true
	return true
}

func (v *visit) isOutdated() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.outdated
}

func (v *visit) enter() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.streams++
}

func (v *visit) exit() {
	v.share.streams.Add(-1)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.streams--; v.streams == 0 && v.drained != nil {
		close(v.drained)
		v.drained = nil
	}
}

// empty is closed when no stream is open here.
func (v *visit) empty() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.drained == nil {
		v.drained = make(chan struct{})
	}
	drained := v.drained
	if v.streams == 0 {
		close(v.drained)
		v.drained = nil
	}
	return drained
}

// welcome ends the handshake.
func (v *visit) welcome() {
	if !v.welcomed.Swap(true) {
		v.b.count.handshaking.Add(-1)
	}
}

func (v *visit) leave() {
	if !v.welcomed.Load() {
		v.b.count.handshakesFailed.Add(1)
	}
	v.welcome()
	v.b.count.connections.Add(-1)
}

// countGarbage counts the packets that do not even look like QUIC.
func (b *Backbone) countGarbage() {
	var packet [1]byte
	for {
		if _, _, err := b.transport.ReadNonQUICPacket(b.ctx, packet[:]); err != nil {
			return
		}
		b.count.packetsDropped.Add(1)
	}
}

// garbage counts the packets that QUIC drops because they belong to no connection.
type garbage struct{ dropped *atomic.Uint64 }

func (g garbage) RecordEvent(e qlogwriter.Event) {
	if _, ok := e.(qlog.PacketDropped); ok {
		g.dropped.Add(1)
	}
}

func (g garbage) Close() error { return nil }

type counters struct {
	dials, dialsFailed          atomic.Uint64
	accepted, refused           atomic.Uint64
	headersMalformed, strangers atomic.Uint64
	handshakesFailed            atomic.Uint64
	carriersLost, peersRefused  atomic.Uint64
	carriersReplaced, outdated  atomic.Uint64
	moved, overdue              atomic.Uint64
	packetsDropped, warmBytes   atomic.Uint64
	slowLeft, slowReset         atomic.Uint64
	crowded, blackHoles         atomic.Uint64
	streamsCrowded              atomic.Uint64
	connections, handshaking    atomic.Int64
	leaving                     atomic.Int64
}

// Counters are the backbone's counts since it was opened, and how many connections from others it has now.
func (b *Backbone) Counters() map[string]uint64 {
	all := map[string]uint64{
		"backbone_dials_total":             b.count.dials.Load(),
		"backbone_dials_failed_total":      b.count.dialsFailed.Load(),
		"backbone_streams_accepted_total":  b.count.accepted.Load(),
		"backbone_streams_refused_total":   b.count.refused.Load(),
		"backbone_headers_malformed_total": b.count.headersMalformed.Load(),
		"backbone_strangers_total":         b.count.strangers.Load(),
		"backbone_handshakes_failed_total": b.count.handshakesFailed.Load(),
		"backbone_carriers_lost_total":     b.count.carriersLost.Load(),
		"backbone_carriers_replaced_total": b.count.carriersReplaced.Load(),
		"backbone_carriers_leaving":        uint64(b.count.leaving.Load()),
		"backbone_peers_refused_total":     b.count.peersRefused.Load(),
		"backbone_outdated_total":          b.count.outdated.Load(),
		"backbone_overdue_total":           b.count.overdue.Load(),
		"backbone_streams_moved_total":     b.count.moved.Load(),
		"backbone_streams_slow_left_total": b.count.slowLeft.Load(),
		"backbone_streams_slow_cut_total":  b.count.slowReset.Load(),
		"backbone_packets_dropped_total":   b.count.packetsDropped.Load(),
		"backbone_warm_bytes_total":        b.count.warmBytes.Load(),
		"backbone_peers_crowded_total":     b.count.crowded.Load(),
		"backbone_streams_crowded_total":   b.count.streamsCrowded.Load(),
		"backbone_black_holes_total":       b.count.blackHoles.Load(),
		"backbone_connections":             uint64(b.count.connections.Load()),
	}
	b.lasting.counters(all)
	b.datagrams.counters(all)
	b.bulk.counters(all)
	maps.Copy(all, b.parity.Counters())
	return all
}
