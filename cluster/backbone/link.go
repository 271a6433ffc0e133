package backbone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

const (
	// keepAlive is how long a carrier may be silent before it is asked whether it lives, and silenceTimeout how
	// long the answer may take: a dead peer is noticed within their sum. quic-go raises the peer's timeout, as it
	// hears of it, to 5 s at least, so each end goes by its own; and it waits three probe timeouts at least, which
	// is longer only where the round trip is above about 400 ms.
	keepAlive      = 400 * time.Millisecond
	silenceTimeout = 1500 * time.Millisecond

	// askAgain is how often who dialled looks whether anything has come by a carrier; where nothing has for two looks, it asks. For quic-go asks once, after one
	// and a half probe timeouts where those are longer than keepAlive, and again after one more, then two, then four. At 250 ms a young connection's is
	// 775 ms: those are two questions before the connection is given up, where with this there are five at least.
	askAgain = 300 * time.Millisecond

	// servedTimeout is silenceTimeout at the end that was dialled. It asks nothing itself, so it is longer: one question that is lost must not end there
	// what the other end asks for again. That a peer is dead is found out by who dials it.
	servedTimeout = 2 * silenceTimeout

	// handshakeTimeout bounds the silence in a handshake, at either end, and attemptTimeout a whole attempt.
	handshakeTimeout = 2 * time.Second
	attemptTimeout   = 3 * time.Second

	// firstBackoff is the pause after the first failed attempt; it doubles up to lastBackoff.
	firstBackoff = 50 * time.Millisecond
	lastBackoff  = 2 * time.Second

	// maxStreams bounds the streams a peer may hold open on one carrier; its dials beyond them fail.
	maxStreams = 16384

	// streamWindow is how many bytes a stream may carry at first without being read. Where they are read fast it doubles, up to
	// maxStreamWindow (QUIC widens it where half of it was read within two round trips): 6 MiB are 200 Mbit/s at 250 ms.
	// More would be faster only beyond that, where TCP carries what is of many bytes; and as many times fewer readers that have stopped would fill slowWindow.
	streamWindow    = 512 << 10
	maxStreamWindow = 6 << 20

	// connectionWindow bounds what is unread of all streams of a carrier together, and a carrier at it stands still. It never comes to that by slow readers:
	// once their streams may hold slowWindow together, some are left (unread.go). The rest is for what is read, and for what arrives until that is noticed.
	connectionWindow = 512 << 20
	slowWindow       = connectionWindow / 2
)

// windows are those of a carrier's streams, and the size of its first packets, in bytes, and how many streams a peer may have here, by one carrier and by all.
type windows struct {
	stream, maxStream, connection, slow uint64
	packet                              uint16 // 0: smallestPacket
	streams, peerStreams                int64  // 0: maxStreams, maxPeerStreams
}

var defaultWindows = windows{streamWindow, maxStreamWindow, connectionWindow, slowWindow, 0, 0, 0}

const (
	// drainTime bounds how long the streams on a carrier go on that takes no new ones: what lasts longer is cut.
	drainTime = time.Hour

	// maxLeaving bounds such carriers of one link; beyond it the oldest is cut, with the streams on it. Each change of
	// authority makes three at most for each carrier of the link.
	maxLeaving = 16

	// maxReplacing bounds the carriers, of all links, that have a successor dialled at one time.
	maxReplacing = 32

	// replaceSpread is the time over which the peers of a node that was renewed dial it anew, each at a moment of chance.
	replaceSpread = time.Second

	// maxMoves bounds how often one dial is sent on to the next carrier by its peer.
	maxMoves = 3
)

// quicConfig is what both ends of a carrier have in common.
func (w windows) quicConfig() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:             handshakeTimeout,
		MaxIdleTimeout:                   silenceTimeout,
		MaxIncomingUniStreams:            -1,
		InitialStreamReceiveWindow:       w.stream,
		MaxStreamReceiveWindow:           w.maxStream,
		InitialConnectionReceiveWindow:   w.connection,
		MaxConnectionReceiveWindow:       w.connection,
		EnableStreamResetPartialDelivery: true, // so that what was written before Close arrives
		EnableDatagrams:                  true,
		InitialPacketSize:                cmp.Or(w.packet, smallestPacket), // QUIC finds out how large they may be
	}
}

// The codes with which a carrier is closed. Whether a flow can go on over another is decided by them.
const (
	codeClosing  quic.ApplicationErrorCode = 1 // this node keeps the link no longer
	codeStranger quic.ApplicationErrorCode = 2 // the other end is not who it should be
	codeReplaced quic.ApplicationErrorCode = 3 // another has taken its place
	codeStopping quic.ApplicationErrorCode = 4 // this node stops
	codeHole     quic.ApplicationErrorCode = 5 // its full packets do not arrive any more: another is to be dialled
)

// link is what is held to one peer: a set of carriers, QUIC connections dialled by us. The peer dials its own, so
// each end judges the path by its own probes, and no two dials need to agree on which of them stands.
//
// A carrier is replaced without a gap: it takes streams until its successor is up, and leaves when the last of them has
// ended. Only where it may take no more before that (Check) do dials wait for the successor, or for its failure.
type link struct {
	b      *Backbone
	node   string
	at     net.Addr // that, as one
	addr   netip.AddrPort
	ctx    context.Context
	cancel context.CancelFunc
	judged context.Context // done once the first attempt has ended
	judge  context.CancelFunc
	pool   pool

	mu       sync.Mutex
	carriers []*carrier // those that are up
	leaving  []*carrier // those that were replaced, the oldest first
	next     int        // whose turn it is
	used     bool       // a flow was dialled on one of them, ever
	changed  chan struct{}
	rtt      time.Duration
	seen     seen

	carriedTCP peak
	since      time.Time
	reason     string
}

// carrier is one connection of a link. Its channels are closed with the link's mutex held.
type carrier struct {
	conn       *quic.Conn
	hello      net.Conn // on which the peer asks for a successor
	since      time.Time
	generation uint64 // of the identity that this node showed
	streams    int    // those open here, by the link's mutex, like what follows
	agreed     bool   // both ends may send parity; never where one is of an older release
	warmed     bool
	hollow     bool   // its full packets do not arrive: nothing is waited for when it leaves
	small      bool   // its packets stay small; from before it is used
	frames     frames // of datagrams, that went by it
	unread     unread // of the streams that this node has opened on it
	turns      turns

	due   chan struct{} // it is to be replaced
	shut  chan struct{} // it takes no more streams
	idle  chan struct{} // it leaves, and none of its streams is open here
	ended chan struct{} // it is gone, and the link knows
}

// isShut says whether it takes no more streams. There may be none: that is not shut.
func (c *carrier) isShut() bool { return c != nil && isClosed(c.shut) }

func newLink(b *Backbone, node string, addr netip.AddrPort) *link {
	l := &link{b: b, node: node, at: Addr(node), addr: addr, reason: "not dialled yet", changed: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(b.ctx)
	l.judged, l.judge = context.WithCancel(l.ctx)
	l.pool.l = l
	return l
}

// stream opens a stream on the carrier whose turn it is, or on another where that one cannot. It waits for the outcome
// of the link's first attempt, and for a successor where all carriers are shut, and for nothing else: it is known whether
// the link is up, and where too many streams are open the next node can be asked sooner than one ends. flow says that it is
// for one that may be long.
func (l *link) stream(ctx context.Context, flow bool) (*quic.Stream, *carrier, error) {
	select {
	case <-l.judged.Done():
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	for {
		stream, c, changed, err := l.open(flow)
		if changed == nil {
			return stream, c, err
		}
		select {
		case <-changed:
		case <-l.ctx.Done():
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// open opens a stream now, or says what to wait for.
func (l *link) open(flow bool) (*quic.Stream, *carrier, <-chan struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	why, coming := l.reason, false
	for range l.carriers {
		l.next++
		c := l.carriers[l.next%len(l.carriers)]
		if c.isShut() {
			coming = coming || c.conn.Context().Err() == nil
			continue
		}
		stream, err := c.conn.OpenStream()
		if err == nil {
			c.streams++
			l.used = l.used || flow
			return stream, c, nil, nil
		}
		why = err.Error()
	}
	if coming && l.ctx.Err() == nil {
		return nil, nil, l.changed, nil
	}
	return nil, nil, nil, fmt.Errorf("%w: %s", ErrDown, why)
}

// release takes note that a stream is closed at this end.
func (l *link) release(c *carrier) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.streams--
	l.settle(c)
}

// settle closes c.idle when it is due. l.mu is held.
func (l *link) settle(c *carrier) {
	if c.streams == 0 && slices.Contains(l.leaving, c) {
		closeOnce(c.idle)
	}
}

func (l *link) state() Link {
	l.mu.Lock()
	defer l.mu.Unlock()
	state := Link{Up: len(l.carriers) > 0, RTT: l.rtt, Since: l.since, Reason: l.reason}
	if state.Up {
		state.TCP = l.pool.offers()
		state.Loss, state.Parity, state.Sent, state.Received = l.seen.loss, l.seen.parity, l.seen.sent, l.seen.received
		state.Carried, state.CarriedTCP = l.seen.carried, l.carriedTCP.of(time.Now())
	}
	return state
}

// measure takes the round trip of the best carrier, and what was measured of the path. They are not taken whenever the state is
// asked for: they move with each packet, and who waits for a change would never rest.
func (l *link) measure() {
	seen := l.b.pathTo(l.addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.carriers) == 0 && !l.since.IsZero() && time.Since(l.since) >= bulkGrace {
		l.b.start(func() { l.b.bulk.cutDialled(l.node) })
	}
	l.rtt, l.seen = 0, seen
	for _, c := range l.carriers {
		rtt := c.conn.ConnectionStats().SmoothedRTT
		if l.rtt == 0 || rtt < l.rtt {
			l.rtt = rtt
		}
		if _, small := l.b.holes.find(l.addr); c.small && !small {
			closeOnce(c.due) // one with packets as large as may be takes its place
		}
		if seen.sent+seen.received < warmRate {
			l.mayWarm(c)
		}
	}
}

// mayWarm has a carrier warmed, unless it was, is near, or is not to be. mu is held.
func (l *link) mayWarm(c *carrier) {
	if !l.b.config.NoWarming && !c.warmed && (c.agreed || time.Since(c.since) >= warmAge) && (l.used || len(*l.b.links.Load()) <= warmLinks) && c.conn.ConnectionStats().MinRTT >= warmRTT {
		c.warmed = l.b.start(func() { l.warm(c) })
	}
}

// carry keeps one carrier up for as long as the link is kept.
func (l *link) carry() {
	backoff := firstBackoff
	var old *carrier // the one to be replaced; nil: there is none
	for l.ctx.Err() == nil {
		done := l.turn(old)
		shut, changes := old.isShut(), l.b.changes.Load()
		fresh, err := l.dial()
		if err == nil {
			err = l.up(fresh, old)
		}
		done()
		if err == nil {
			backoff = firstBackoff
			select {
			case <-fresh.due:
				old = fresh
			case <-fresh.ended:
				old = nil
			}
			continue
		}
		if old.isShut() && (!shut || changes != l.b.changes.Load()) {
			continue // what the attempt began with holds no more
		}
		l.failed(old, err)
		l.b.changed()
		pause := time.NewTimer(backoff/2 + rand.N(backoff/2))
		select {
		case <-pause.C:
		case <-l.ctx.Done():
			pause.Stop()
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

// turn waits until a carrier may have a successor dialled; one that is of no use meanwhile waits only if it is very young.
func (l *link) turn(old *carrier) (done func()) {
	if old == nil {
		return func() {}
	}
	young := time.NewTimer(time.Until(old.since.Add(firstBackoff)))
	defer young.Stop()
	select {
	case <-young.C:
	case <-l.ctx.Done():
	}
	select {
	case l.b.replacing <- struct{}{}:
		return func() { <-l.b.replacing }
	case <-old.shut:
	case <-old.ended:
	case <-l.ctx.Done():
	}
	return func() {}
}

// dial makes one attempt. It ends well only when the peer has answered a stream: a TLS client believes its
// handshake done before the server has looked at its certificate.
func (l *link) dial() (*carrier, error) {
	ctx, cancel := context.WithTimeout(l.ctx, attemptTimeout)
	defer cancel()
	config := l.b.config.windows.quicConfig()
	config.KeepAlivePeriod = keepAlive
	config.MaxIncomingStreams = -1 // the peer opens its streams on its own carriers
	small := l.b.holes.fit(config, l.addr)
	generation := l.b.generation.Load()
	tlsConfig := withALPN(l.b.config.ClientTLS(l.node))
	conn, err := l.b.transport.Dial(ctx, net.UDPAddrFromAddrPort(l.addr), tlsConfig, config)
	if err != nil {
		return nil, err
	}
	name, err := l.b.config.PeerName(conn.ConnectionState().TLS)
	if err == nil && name != l.node {
		err = fmt.Errorf("%s answers there", name)
	}
	if err != nil {
		conn.CloseWithError(codeStranger, "")
		return nil, err
	}
	hello, err := l.ask(ctx, conn, Header{Service: helloService, Resource: speaksParity})
	if err != nil {
		conn.CloseWithError(codeClosing, "")
		return nil, err
	}
	return &carrier{
		conn: conn, hello: hello, since: time.Now(), generation: generation, small: small,
		frames: frames{turn: make(chan struct{}, 1)},
		due:    make(chan struct{}), shut: make(chan struct{}), idle: make(chan struct{}), ended: make(chan struct{}),
	}, nil
}

// ask opens a stream for one of the backbone's own services.
func (l *link) ask(ctx context.Context, conn *quic.Conn, h Header) (net.Conn, error) {
	header, err := AppendHeader(nil, h)
	if err != nil {
		return nil, err
	}
	stream, err := conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	c, err := l.b.send(stream, l, header, nil)
	if err != nil {
		return nil, err
	}
	return await(ctx, c)
}

// up takes a carrier into use, in place of the old one if there is one, unless its peer has been refused since the handshake
// judged it; one that is outdated since makes way for the next. From then on Check looks at it.
func (l *link) up(c, old *carrier) error {
	l.mu.Lock()
	outdated := l.b.outdated(c.conn)
	if !outdated {
		if err := l.b.screen(c.conn); err != nil {
			l.mu.Unlock()
			return err
		}
	}
	first := len(l.carriers) == 0
	l.carriers = append(l.carriers, c)
	if first {
		l.since, l.reason = time.Now(), ""
	}
	replaced := l.leave(old)
	if outdated {
		l.shut(c)
	}
	if c.generation != l.b.generation.Load() {
		closeOnce(c.due) // this node was renewed meanwhile
	}
	l.signal()
	l.mu.Unlock()
	l.b.wg.Go(func() { l.tend(c) })
	l.measure()
	l.judge()
	l.b.changed()
	switch {
	case replaced:
		l.b.count.carriersReplaced.Add(1)
		l.b.log.Debug("link replaced", "peer", l.node, "address", l.addr)
	case first:
		l.b.log.Info("link up", "peer", l.node, "address", l.addr)
	}
	return nil
}

// tend stays with a carrier until it ends.
func (l *link) tend(c *carrier) {
	stop := context.AfterFunc(l.ctx, func() { c.conn.CloseWithError(l.b.closing(), "") })
	defer stop()
	l.b.wg.Go(func() { l.insist(c) })
	w := l.b.watch(c.conn, c.hello, func() { l.narrow(c) })
	w.hear(true, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		c.agreed = true
		l.mayWarm(c)
	}, func() {
		pause := time.NewTimer(rand.N(replaceSpread))
		select {
		case <-pause.C:
		case <-c.conn.Context().Done():
			pause.Stop()
		}
		l.mu.Lock()
		closeOnce(c.due)
		l.mu.Unlock()
	})
	<-c.conn.Context().Done()
	w.end()
	l.lost(c, context.Cause(c.conn.Context()))
}

// insist asks a carrier by which nothing comes whether it lives, until it ends. What asks is a frame of datagrams with none in it, which QUIC acknowledges.
func (l *link) insist(c *carrier) {
	look := time.NewTicker(askAgain)
	defer look.Stop()
	var heard uint64
	for silent := 0; ; {
		select {
		case <-look.C:
		case <-c.conn.Context().Done():
			return
		}
		silent++
		if received := c.conn.ConnectionStats().PacketsReceived; received != heard {
			heard, silent = received, 0
		}
		if silent >= 2 {
			var frame [frameHead]byte
			if c.frames.send(c.conn, frame[:]) == nil {
				l.b.datagrams.count.framesSent.Add(1)
			}
		}
	}
}

// closing is why a connection is closed that is kept no longer.
func (b *Backbone) closing() quic.ApplicationErrorCode {
	if b.ctx.Err() != nil {
		return codeStopping
	}
	return codeClosing
}

// renew has every carrier replaced.
func (l *link) renew() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.carriers {
		closeOnce(c.due)
	}
}

// moved takes note that the peer takes no new streams on a carrier.
func (l *link) moved(c *carrier) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shut(c)
}

// shut has a carrier take no more streams, and replaced. l.mu is held.
func (l *link) shut(c *carrier) {
	closeOnce(c.shut)
	closeOnce(c.due)
}

// check closes the carriers if the peer is refused now, and shuts those that are outdated.
func (l *link) check() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range slices.Concat(l.carriers, l.leaving) {
		if !l.b.outdated(c.conn) {
			l.b.screen(c.conn)
		} else if !c.isShut() {
			l.b.count.outdated.Add(1)
			l.shut(c)
		}
	}
}

// leave takes a carrier out of use and has it end with its streams; false if it is not in use. l.mu is held.
func (l *link) leave(c *carrier) bool {
	i := slices.Index(l.carriers, c)
	if i < 0 {
		return false
	}
	l.carriers = slices.Delete(l.carriers, i, i+1)
	closeOnce(c.shut)
	l.leaving = append(l.leaving, c)
	l.b.count.leaving.Add(1)
	l.settle(c)
	if len(l.leaving) > maxLeaving {
		oldest := l.leaving[0]
		l.b.count.overdue.Add(1)
		l.b.wg.Go(func() { oldest.conn.CloseWithError(codeReplaced, "too many before it") })
	}
	l.b.wg.Go(func() { l.drain(c) })
	return true
}

// drain closes a carrier that leaves when no stream on it is open at either end, or at the bound; one whose full packets do not arrive, at once.
func (l *link) drain(c *carrier) {
	if l.isHollow(c) {
		c.conn.CloseWithError(codeHole, errHole.Error())
		return
	}
	ctx, cancel := context.WithTimeout(c.conn.Context(), drainTime)
	defer cancel()
	select {
	case <-c.idle:
		// What this end has closed it reads no more; what the other end still reads or writes, it alone knows.
		l.ask(ctx, c.conn, Header{Service: byeService})
	case <-ctx.Done():
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		l.b.count.overdue.Add(1)
	}
	c.conn.CloseWithError(codeReplaced, "")
}

// lost takes note that a carrier is gone.
func (l *link) lost(c *carrier, why error) {
	l.mu.Lock()
	i := slices.Index(l.carriers, c)
	if i >= 0 {
		l.carriers = slices.Delete(l.carriers, i, i+1)
	} else {
		l.leaving = slices.DeleteFunc(l.leaving, func(one *carrier) bool { return one == c })
		l.b.count.leaving.Add(-1)
	}
	last := i >= 0 && len(l.carriers) == 0
	if last {
		l.fell(why)
	}
	closeOnce(c.ended)
	l.signal()
	l.mu.Unlock()
	if hasEnded(why) {
		l.b.lasting.peerEnded(l.node)
	}
	if l.ctx.Err() != nil {
		return
	}
	if end, ok := errors.AsType[*quic.ApplicationError](why); !ok || end.ErrorCode != codeReplaced {
		l.b.count.carriersLost.Add(1)
	}
	l.b.changed()
	if last {
		l.b.log.Warn("link down", "peer", l.node, "address", l.addr, "reason", why)
	}
}

// failed takes note of an attempt that failed. A carrier that is shut was kept only for what was to come of it.
func (l *link) failed(old *carrier, why error) {
	l.mu.Lock()
	last := old.isShut() && l.leave(old) && len(l.carriers) == 0
	if last {
		l.fell(why)
	} else if len(l.carriers) == 0 {
		l.reason = why.Error()
		if l.since.IsZero() {
			l.since = time.Now()
		}
	}
	l.signal()
	l.mu.Unlock()
	l.judge()
	if last && l.ctx.Err() == nil {
		l.b.log.Warn("link down", "peer", l.node, "address", l.addr, "reason", why)
	}
}

// fell says that the last carrier in use is gone. l.mu is held.
func (l *link) fell(why error) {
	l.rtt, l.since, l.reason = 0, time.Now(), why.Error()
	l.pool.forget()
	l.b.start(func() {
		l.b.bulk.cutLegs(l.node)
		l.b.lasting.evade(l.node)
		l.b.cutSilent(l.b.visitsOf())
	})
}

// upFor is how long it has been up; 0: it is not.
func (l *link) upFor() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.carriers) == 0 {
		return 0
	}
	return time.Since(l.since)
}

// signal wakes those who wait for a carrier. l.mu is held.
func (l *link) signal() {
	close(l.changed)
	l.changed = make(chan struct{})
}

func closeOnce(c chan struct{}) {
	if !isClosed(c) {
		close(c)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
