package backbone

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Beside the QUIC connections of a link, a flow of many bytes may have a TCP connection under TLS for itself: BBR does not take each lost
// packet for congestion. Such connections are dialled ahead while flows of many bytes are expected, so that none waits for a handshake, and
// each carries one flow. A link that has none of them carries all as before.
//
// Who was dialled speaks first: bulkVersion and a byte of flags. The dialler knows by it that it was let in, which a client of TLS does not
// when its handshake is done. Once there is a flow it sends a Header, which is answered by bulkHeard at once: from there on TCP has done its part,
// however long the answer takes. All goes on as on a stream.
const (
	bulkVersion = 1
	// bulkBBR among the flags says that who was dialled sends with BBR, and bulkLasts that it takes flows that outlive their connection. Releases that do
	// not are sent none.
	bulkBBR   = 1
	bulkLasts = 2

	bulkHeard = 0x68
)

const (
	// maxWarm is how many connections to one peer are kept that carry no flow yet, while flows of many bytes are expected.
	maxWarm = 2

	// bulkMemory is how long they are expected after the last was, and bulkLife how long a connection waits for one.
	bulkMemory = 2 * time.Minute
	bulkLife   = 2 * time.Minute

	// bulkWait is how long who was dialled waits for a flow, and bulkAnswer a dialler for the handshake and the first two bytes.
	bulkWait   = bulkLife + 30*time.Second
	bulkAnswer = 5 * time.Second

	// firstRefusal is how long a peer is not asked again that could not be dialled; it doubles up to lastRefusal.
	firstRefusal = 10 * time.Second
	lastRefusal  = 10 * time.Minute

	// maxBulkIdle bounds the connections of one peer that carry no flow yet, and maxBulk those of all peers, with or without one, of either
	// end's dialling. More are closed.
	maxBulkIdle = 8
	maxBulk     = 4096

	// silentTime is how long a connection may hear nothing of its other end, though that was asked, until it is given up: what is on it goes on by QUIC.
	// Where the QUIC connections of who dialled it are gone, too, lostTime is enough, whether it was asked or not: it is each second (askEvery).
	silentTime = 3 * time.Second
	lostTime   = 2 * time.Second

	// bulkGrace is how long the QUIC connections may be gone of who dialled until the connections of flows are cut: TCP itself knows only after a
	// quarter of an hour. Each end knows of both sorts: of what it dialled by its link, of what it took by who visits it. Flows that outlive their
	// connections are looked for another way at once, and keep theirs where there is none.
	bulkGrace = 10 * time.Second
)

// Bulk is how flows of many bytes get TCP connections of their own. Without it none does.
type Bulk struct {
	// Listener gives out what peers have dialled, each a BulkConn. The Backbone closes it.
	Listener net.Listener
	// Dial dials the node; nil: none is dialled, and those of others are taken.
	Dial func(ctx context.Context, node string, at netip.AddrPort) (BulkConn, error)
	// Services are those whose streams are flows.
	Services []string
	// Always has all their flows go so as far as there are connections, whatever is expected of them.
	Always bool
}

// bulk is all such connections.
type bulk struct {
	sizes sizes

	mu   sync.Mutex
	all  map[*bulkConn]bulkEnd
	idle map[string]int       // of those that peers have dialled, without a flow yet
	away map[string]time.Time // since when peers of which there are any taken do not visit

	dialled, dialsFailed, flows, taken, fellBack, cut, silent, overflowed, plain atomic.Uint64
}

// bulkEnd is who is at the other end of a connection, and whether he dialled it.
type bulkEnd struct {
	peer  string
	taken bool
}

func (k *bulk) init() {
	k.all, k.idle, k.away, k.sizes.of = map[*bulkConn]bulkEnd{}, map[string]int{}, map[string]time.Time{}, map[asked]*recent{}
}

// enter takes in a connection, unless there are too many.
func (k *bulk) enter(c *bulkConn, of bulkEnd) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.all) >= maxBulk {
		k.overflowed.Add(1)
		return false
	}
	k.all[c] = of
	return true
}

func (k *bulk) forget(c *bulkConn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.all, c)
}

// wait counts one more of the peer's that carry nothing yet, unless there are too many.
func (k *bulk) wait(peer string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.idle[peer] >= maxBulkIdle {
		k.overflowed.Add(1)
		return false
	}
	k.idle[peer]++
	return true
}

func (k *bulk) waited(peer string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.idle[peer]--; k.idle[peer] == 0 {
		delete(k.idle, peer)
	}
}

// cutDialled breaks off what was dialled to a peer.
func (k *bulk) cutDialled(peer string) {
	k.doom(k.those(func(_ *bulkConn, of bulkEnd) bool { return of.peer == peer && !of.taken }))
}

// cutLegs breaks off what was dialled to a peer to carry on flows of others, who look for another way then.
func (k *bulk) cutLegs(peer string) {
	k.doom(k.those(func(c *bulkConn, of bulkEnd) bool { return of.peer == peer && !of.taken && c.leg.Load() }))
}

// cutBroken breaks off what the system has found to be lost, and nobody is at: a relay that waits for a client who does not read neither reads nor writes.
func (k *bulk) cutBroken() {
	for _, c := range k.those(func(c *bulkConn, _ bulkEnd) bool { return c.lasts.Load() && isBroken(below(c.conn)) }) {
		c.giveUp("the connection was reset")
	}
}

// those are the connections of which something is so.
func (k *bulk) those(so func(*bulkConn, bulkEnd) bool) (some []*bulkConn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c, of := range k.all {
		if so(c, of) {
			some = append(some, c)
		}
	}
	return some
}

// cutSilent breaks off connections by which nothing comes any more: those of flows that outlive them, and those without one. QUIC may be well, where something
// in between has forgotten the connection, or lets TCP pass no more. up says whether the QUIC connections are of who dialled it. Of each peer that was
// dialled in vain it says so.
func (k *bulk) cutSilent(up func(bulkEnd) bool, vain func(peer string)) {
	for _, c := range k.those(func(c *bulkConn, of bulkEnd) bool {
		since, unanswered := silence(below(c.conn))
		return since >= silentTime && unanswered || since >= lostTime && !up(of)
	}) {
		of, known := k.end(c)
		switch {
		case !known:
		case c.lasts.Load():
			k.silent.Add(1)
			c.giveUp("nothing comes by TCP any more")
		case c.idles.Load():
			c.Abort()
		default:
			continue // it would end with its connection; it may yet come back
		}
		if known && !of.taken && up(of) {
			vain(of.peer)
		}
	}
}

func (k *bulk) end(c *bulkConn) (of bulkEnd, known bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	of, known = k.all[c]
	return of, known
}

// cutTaken breaks off what was taken from peers none of which has visited for bulkGrace.
func (k *bulk) cutTaken(visiting map[string]bool, now time.Time) {
	k.mu.Lock()
	var doomed []*bulkConn
	away := map[string]time.Time{}
	for c, of := range k.all {
		if !of.taken || visiting[of.peer] {
			continue
		}
		since, known := k.away[of.peer]
		if !known {
			since = now
		}
		if away[of.peer] = since; now.Sub(since) >= bulkGrace {
			doomed = append(doomed, c)
		}
	}
	k.away = away
	k.mu.Unlock()
	k.doom(doomed)
}

func (k *bulk) doom(all []*bulkConn) {
	for _, c := range all {
		k.cut.Add(1)
		c.giveUp("its path is lost")
	}
}

// abort breaks off all.
func (k *bulk) abort() {
	k.mu.Lock()
	all := slices.Collect(maps.Keys(k.all))
	k.mu.Unlock()
	for _, c := range all {
		c.Abort()
	}
}

func (k *bulk) counters(all map[string]uint64) {
	k.mu.Lock()
	open := len(k.all)
	k.mu.Unlock()
	all["backbone_tcp_connections"] = uint64(open)
	all["backbone_tcp_dialled_total"] = k.dialled.Load()
	all["backbone_tcp_dials_failed_total"] = k.dialsFailed.Load()
	all["backbone_tcp_flows_total"] = k.flows.Load()
	all["backbone_tcp_flows_taken_total"] = k.taken.Load()
	all["backbone_tcp_fallbacks_total"] = k.fellBack.Load()
	all["backbone_tcp_cut_total"] = k.cut.Load()
	all["backbone_tcp_silent_total"] = k.silent.Load()
	all["backbone_tcp_overflow_total"] = k.overflowed.Load()
	all["backbone_tcp_without_bbr_total"] = k.plain.Load()
}

// acceptBulk takes in what peers have dialled.
func (b *Backbone) acceptBulk() {
	for {
		conn, err := b.config.Bulk.Listener.Accept()
		if err != nil {
			if b.ctx.Err() == nil {
				b.log.Error("backbone takes no more TCP", "error", err)
			}
			return
		}
		secured := conn.(BulkConn)
		if !b.start(func() { b.serveBulk(secured) }) {
			conn.Close()
		}
	}
}

// serveBulk greets, waits for a flow, and has it answered.
func (b *Backbone) serveBulk(conn BulkConn) {
	from := conn.Peer()
	c := b.newBulkConn(conn, Addr(from))
	if !b.bulk.wait(from) {
		c.Abort()
		return
	}
	waiting := sync.OnceFunc(func() { b.bulk.waited(from) })
	defer waiting()
	if !b.bulk.enter(c, bulkEnd{from, true}) {
		c.Abort()
		return
	}
	if b.ctx.Err() != nil { // it was not there yet when all were aborted
		c.Abort()
		return
	}
	bbr := tune(below(conn))
	if !bbr {
		b.bulk.plain.Add(1)
	}
	var first [1]byte
	c.SetDeadline(time.Now().Add(bulkWait))
	if _, err := c.Write(appendGreeting(nil, greeting{bbr: bbr, lasts: true})); err != nil {
		c.Abort()
		return
	}
	if _, err := io.ReadFull(c, first[:]); err != nil {
		c.Abort() // it was not needed
		return
	}
	waiting()
	c.SetDeadline(time.Now().Add(headerTimeout))
	h, err := ReadHeader(io.MultiReader(bytes.NewReader(first[:]), c))
	if err != nil {
		b.count.headersMalformed.Add(1)
		c.Abort()
		return
	}
	if _, err := c.Write([]byte{bulkHeard}); err != nil {
		c.Abort()
		return
	}
	c.SetDeadline(time.Time{})
	c.remote = client(h, from)
	c.lasts.Store(h.Passage.lasts())
	c.readAhead()
	b.bulk.taken.Add(1)
	b.answer(c, nil, h, from)
}

// pool is the TCP connections of a link that carry no flow yet.
type pool struct {
	l *link

	mu       sync.Mutex
	warm     []*waiting // the oldest first
	coming   int        // that are being dialled
	expected time.Time  // when a flow of many bytes was, last
	refused  time.Time  // until when the peer is not asked
	pause    time.Duration
	bbr      bool          // both ends send with BBR, as far as is known
	known    bool          // a connection has come up, ever
	lasts    bool          // the peer takes flows that outlive their connections
	came     chan struct{} // closed when a connection has come up, or could not; nil: nobody waits for that
	quic     rates         // of streams
	tcp      rates         // … and of connections of their own
	turn     uint64
}

// waiting is a connection without a flow.
type waiting struct {
	*bulkConn
	over chan struct{} // closed when nobody reads from it any more
	err  error         // then: why
}

// expect has connections dialled ahead.
func (p *pool) expect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expected = time.Now()
	p.fill()
}

// fill dials what is missing. mu is held.
func (p *pool) fill() {
	now := time.Now()
	if p.l.b.config.Bulk.Dial == nil || now.Before(p.refused) || now.Sub(p.expected) > bulkMemory || p.l.ctx.Err() != nil {
		return
	}
	want := maxWarm
	if !p.known {
		want = 1 // to hear whether there is any
	}
	for len(p.warm)+p.coming < want {
		p.coming++
		if !p.l.b.start(p.dial) {
			p.coming--
			return
		}
	}
}

// dial adds one connection.
func (p *pool) dial() {
	c, bbr, err := p.l.dialBulk()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.coming--
	defer p.tell()
	if err != nil {
		if p.l.ctx.Err() == nil {
			p.l.b.bulk.dialsFailed.Add(1)
			p.failed()
			p.l.b.log.Debug("peer not reached by TCP", "peer", p.l.node, "again in", p.pause, "error", err)
		}
		return
	}
	p.l.b.bulk.dialled.Add(1)
	p.known, p.bbr, p.lasts, p.pause = true, bbr, c.knows, 0
	w := &waiting{bulkConn: c, over: make(chan struct{})}
	c.idles.Store(true)
	w.SetReadDeadline(time.Now().Add(bulkLife)) // here, before anybody takes it: who does sets another
	if !p.l.b.start(func() { p.watch(w) }) {
		c.Abort()
		return
	}
	p.warm = append(p.warm, w)
	p.fill()
}

// tell wakes who waits for a connection. mu is held.
func (p *pool) tell() {
	if p.came != nil {
		close(p.came)
		p.came = nil
	}
}

// ready has connections dialled ahead, and waits until there is one, or is none to come.
func (p *pool) ready(ctx context.Context) bool {
	for p.expect(); ; {
		p.mu.Lock()
		if len(p.warm) > 0 || p.coming == 0 {
			defer p.mu.Unlock()
			return len(p.warm) > 0
		}
		if p.came == nil {
			p.came = make(chan struct{})
		}
		came := p.came
		p.mu.Unlock()
		select {
		case <-came:
		case <-ctx.Done():
			return false
		}
	}
}

// failed has the peer not be asked for a time. mu is held.
func (p *pool) failed() {
	p.pause = min(max(2*p.pause, firstRefusal), lastRefusal)
	p.refused = time.Now().Add(p.pause)
}

// vain has the peer not be asked by TCP for a time, and the connections that are kept for its flows closed.
func (p *pool) vain() {
	p.mu.Lock()
	if !time.Now().Before(p.refused) {
		p.failed()
	}
	p.mu.Unlock()
	p.drop()
}

// watch notices that a connection without a flow is lost, or too old: its deadline passes.
func (p *pool) watch(w *waiting) {
	var one [1]byte
	_, w.err = io.ReadFull(w, one[:])
	p.mu.Lock()
	i := slices.Index(p.warm, w)
	if i >= 0 {
		p.warm = slices.Delete(p.warm, i, i+1)
		p.fill()
	}
	p.mu.Unlock()
	close(w.over)
	if i >= 0 {
		w.Abort()
	}
}

// forget has nothing be known of the peer any more, which may come back as another version.
func (p *pool) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known, p.bbr, p.pause, p.refused = false, false, 0, time.Time{}
}

// offers is what Link.TCP says of the peer.
func (p *pool) offers() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.known || time.Now().Before(p.refused):
		return ""
	case p.bbr:
		return WithBBR
	}
	return WithoutBBR
}

// takes says that the peer takes flows that outlive their connections, as far as is known.
func (p *pool) takes() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lasts || !p.known
}

// take is a connection for a flow, now; nil: there is none. Another is dialled in its place.
func (p *pool) take(ctx context.Context) *bulkConn {
	for {
		p.mu.Lock()
		if len(p.warm) == 0 {
			p.mu.Unlock()
			return nil
		}
		w := p.warm[0]
		p.warm = slices.Delete(p.warm, 0, 1)
		p.fill()
		p.mu.Unlock()
		w.SetReadDeadline(time.Unix(1, 0)) // who watches it shall stop
		select {
		case <-w.over:
		case <-ctx.Done():
			w.Abort()
			return nil
		}
		if errors.Is(w.err, os.ErrDeadlineExceeded) {
			w.idles.Store(false)
			w.SetReadDeadline(time.Time{})
			return w.bulkConn
		}
		w.Abort()
	}
}

// drop closes the connections without a flow.
func (p *pool) drop() {
	p.mu.Lock()
	warm := p.warm
	p.warm = nil
	p.mu.Unlock()
	for _, w := range warm {
		w.Abort()
	}
}

// dialBulk makes one connection. bbr says that both ends send with it.
func (l *link) dialBulk() (c *bulkConn, bbr bool, err error) {
	ctx, cancel := context.WithTimeout(l.ctx, bulkAnswer)
	defer cancel()
	conn, err := l.b.config.Bulk.Dial(ctx, l.node, l.addr)
	if err != nil {
		return nil, false, err
	}
	c = l.b.newBulkConn(conn, Addr(l.node))
	own := c
	if !l.b.bulk.enter(c, bulkEnd{l.node, false}) {
		c.Abort()
		return nil, false, errCrowded
	}
	end := context.AfterFunc(l.ctx, func() { own.giveUp("the link is kept no longer") })
	c.onLeave(func() { end() })
	stop := context.AfterFunc(ctx, c.Abort)
	bbr = tune(below(conn))
	if !bbr {
		l.b.bulk.plain.Add(1)
	}
	theirs, err := readGreeting(c)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.Abort()
		return nil, false, err
	}
	c.knows = theirs.lasts
	return c, bbr && theirs.bbr, nil
}

// greeting is what who was dialled says first.
type greeting struct {
	bbr   bool // it sends with BBR
	lasts bool // it takes flows that outlive their connection
}

// appendGreeting appends it as it is sent.
func appendGreeting(b []byte, g greeting) []byte {
	var flags byte
	if g.bbr {
		flags |= bulkBBR
	}
	if g.lasts {
		flags |= bulkLasts
	}
	return append(b, bulkVersion, flags)
}

// readGreeting reads that and not a byte more. Flags that are not known say nothing.
func readGreeting(r io.Reader) (g greeting, err error) {
	var b [2]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return g, unexpected(err)
	}
	if b[0] != bulkVersion {
		return g, fmt.Errorf("greeting of version %d, want %d", b[0], bulkVersion)
	}
	return greeting{bbr: b[1]&bulkBBR != 0, lasts: b[1]&bulkLasts != 0}, nil
}

// openBulk has a warm connection carry a flow; nil, nil: there is none, or the peer did not hear of the flow in half of the time that there is. Once
// it has, what it answers is the answer, and takes the time that it takes. Where it does not take flows that outlive their connection, this is none.
// A new flow of which was not heard has another name in ask from there on: by the one that was asked for it may yet be waiting for its stream there.
func (l *link) openBulk(ctx context.Context, ask *Header, first []byte) (*bulkConn, error) {
	h := *ask
	c := l.pool.take(ctx)
	if c == nil {
		return nil, ctx.Err()
	}
	if !c.knows {
		if h.Passage.fixed() {
			c.Abort()
			return nil, nil
		}
		h.Passage = Passage{}
	}
	c.lasts.Store(h.Passage.lasts())
	header, err := AppendHeader(make([]byte, 0, 64), h)
	if err != nil {
		c.Abort()
		return nil, err
	}
	header = append(header, first...)
	half := ctx
	if by, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		half, cancel = context.WithDeadline(ctx, time.Now().Add(time.Until(by)/2))
		defer cancel()
	}
	if err := c.send(half, header); err != nil {
		c.Abort()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		l.b.bulk.fellBack.Add(1)
		l.pool.mu.Lock()
		l.pool.failed()
		l.pool.mu.Unlock()
		ask.Passage.rename()
		return nil, nil
	}
	giveUp := c.Abort
	if h.Passage.lasts() && h.Passage.Epoch == 0 {
		giveUp = func() { c.SetReadDeadline(time.Unix(1, 0)) } // who is called off tells the other end so
	}
	stop := context.AfterFunc(ctx, giveUp)
	err = readAnswer(c)
	switch {
	case !stop():
		l.callOff(c, h, err)
		return nil, ctx.Err()
	case err != nil:
		c.Abort()
		return nil, err
	}
	l.b.bulk.flows.Add(1)
	return c, nil
}

// callOff gives up what was asked for, of which the answer may be on its way. A reset says nothing of a flow that outlives its connection: where it was
// accepted the other end is told that it is over, and does not wait for it.
func (l *link) callOff(c *bulkConn, h Header, err error) {
	if !h.Passage.lasts() || h.Passage.Epoch > 0 || err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.Abort()
		return
	}
	if !l.b.start(func() {
		if err != nil {
			c.SetReadDeadline(time.Now().Add(meetAttempt))
			err = readAnswer(c)
		}
		if err != nil {
			c.Abort()
			return
		}
		way := Way{Node: l.node, Header: h}
		over := l.b.newLasting(c, flowKey{"", h.Passage.ID})
		over.to, over.way = way.end(), way.Node
		over.ways = func() []Way { return []Way{way} }
		over.begin()
		over.Abort()
	}) {
		c.Abort()
	}
}

// send sends a header, and returns once the other end has it.
func (c *bulkConn) send(ctx context.Context, header []byte) error {
	stop := context.AfterFunc(ctx, c.Abort)
	_, err := c.Write(header)
	var heard [1]byte
	if err == nil {
		_, err = io.ReadFull(c, heard[:])
	}
	switch {
	case !stop():
		return ctx.Err()
	case err != nil:
		return err
	case heard[0] != bulkHeard:
		return fmt.Errorf("a header was answered by %d, want %d", heard[0], bulkHeard)
	}
	return nil
}

// byTCP has a connection of its own carry a flow, where it is expected to be one of many bytes that is faster so; nil: a stream is to.
// One that turns out to be of many bytes under way may be moved there then (lastingConn.shift).
func (l *link) byTCP(ctx context.Context, h *Header) (on net.Conn, err error) {
	a := asked{h.Service, h.Resource}
	k := &l.b.config.Bulk
	if k.Dial == nil || !k.Always && !l.b.bulk.sizes.many(a) {
		return nil, nil
	}
	p, up := l.prospect()
	l.pool.took()
	if !up || !k.Always && !p.byTCP() || h.Passage.fixed() && !l.pool.takes() {
		return nil, nil
	}
	l.pool.expect()
	c, err := l.openBulk(ctx, h, nil)
	if c == nil || err != nil {
		return nil, err
	}
	begun := time.Now()
	c.onLeave(func() { l.ended(a, &l.pool.tcp, c.bytes.Load(), time.Since(begun)) })
	return c, nil
}

// shifts says that a flow on a stream, which has turned out to be one of many bytes and has carried so many of them in a time, is to go on by a connection of its own.
func (l *link) shifts(service string, bytes uint64, took time.Duration) bool {
	k := &l.b.config.Bulk
	if k.Dial == nil || !slices.Contains(k.Services, service) {
		return false
	}
	p, up := l.prospect()
	return up && (k.Always || p.shifts(bytes, took)) && l.pool.takes()
}

// goOn has a warm connection carry on a flow that outlives its streams. What it carries counts for how fast the way is.
func (l *link) goOn(ctx context.Context, h Header, first []byte) (net.Conn, error) {
	c, err := l.openBulk(ctx, &h, first)
	if c == nil {
		return nil, cmp.Or(err, errNone)
	}
	begun := time.Now()
	c.onLeave(func() { l.rate(&l.pool.tcp, c.bytes.Load(), time.Since(begun)) })
	return c, err
}

// errNone says that there is no connection for a flow.
var errNone = errors.New("no connection of TCP carries it")

// prospect is what is known of the two ways to the peer, for a flow of many bytes. Not up: there is none.
func (l *link) prospect() (p prospect, up bool) {
	l.mu.Lock()
	for _, c := range l.carriers { // now: what was measured last may be of before the flow began, by a ping whose acknowledgement was delayed
		if rtt := c.conn.ConnectionStats().MinRTT; !up || rtt < p.rtt {
			p.rtt, up = rtt, true
		}
	}
	now := time.Now()
	p.now, p.most = max(l.seen.sent, l.seen.received), max(l.seen.carried, l.seen.arrived, l.carriedTCP.of(now))
	l.mu.Unlock()
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	p.bbr = l.pool.bbr || !l.pool.known
	p.quic, p.tcp, p.turn = l.pool.quic.of(now), l.pool.tcp.of(now), l.pool.turn
	return p, up
}

// took counts a flow of many bytes that takes one of the two ways.
func (p *pool) took() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.turn++
}

// sized has it be remembered what a stream has carried whose flow was accepted.
func (l *link) sized(c *streamConn, h Header) {
	begun, what := stamp(), asked{h.Service, h.Resource} // and not all of the header for as long as the flow
	c.mu.Lock()
	defer c.mu.Unlock()
	left := c.left
	c.left = func() {
		left()
		if c.shifted.Load() { // how fast a part of the flow was says little
			l.b.bulk.sizes.add(what, c.bytes.Load())
			return
		}
		l.ended(what, &l.pool.quic, c.bytes.Load(), stamp()-begun)
	}
}

// ended takes note of what a flow has carried, and how fast.
func (l *link) ended(a asked, way *rates, bytes uint64, took time.Duration) {
	l.b.bulk.sizes.add(a, bytes)
	l.rate(way, bytes, took)
}

// rate takes note of how fast a flow of many bytes was.
func (l *link) rate(way *rates, bytes uint64, took time.Duration) {
	if bytes < bulkBytes {
		return
	}
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	way.add(float64(bytes)*8/max(took.Seconds(), 1e-3), time.Now())
}
