package front

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/perigee-net/perigee/edge/http1"
)

// Bounds of an HTTP/2 connection, besides those of door.go.
const (
	// frameBytes is the longest frame that is taken (RFC 9113, 4.2); a longer one ends the connection. None that is sent is longer.
	frameBytes = 16 << 10
	// deskBytes2 is the room for what is read of a connection that has sent something: at least one frame.
	deskBytes2 = 32 << 10
	// batchBytes is how much is gathered for one write. Beyond gatheredMost, what waits to be written is waited for: nothing more is read.
	batchBytes   = 32 << 10
	gatheredMost = 48 << 10
	sheetBytes2  = gatheredMost + frameBytes + 4<<10
	// bodyWindow and bodiesWindow are how much of bodies a client may send that nobody has read, in one request and in all; what is
	// beyond ends the stream, or the connection.
	bodyWindow   = 512 << 10
	bodiesWindow = 1 << 20
	// calmFrames is how many frames that ask for nothing, or take back what was asked, are taken within calmTime; one more ends the connection
	// (ENHANCE_YOUR_CALM). What is answered makes up for some.
	calmFrames = 2000
	calmTime   = 10 * time.Second
	// settingsTimeout is how long a client may take to acknowledge our settings once it has sent its own (RFC 9113, 6.5.3).
	settingsTimeout = 10 * time.Second
	// drainTime is how long requests that were sent before the client could have heard that it shall go are served.
	drainTime = time.Second
	// remembered is how many streams are known to have been reset by this side, so that what was under way then is no fault, and how many
	// to have ended otherwise.
	remembered = 64
	// keptFields is for how many fields there is room in an idle connection; keptBytes how much of a large head's room is kept for others.
	keptFields = 64
	keptBytes  = 8 << 10
)

// code is why a stream or a connection ends (RFC 9113, 7).
type code uint32

const (
	noError         code = 0x0
	protocolError   code = 0x1
	internalError   code = 0x2
	flowError       code = 0x3
	settingsLate    code = 0x4
	closedError     code = 0x5
	frameSizeError  code = 0x6
	refusedStream   code = 0x7
	cancelled       code = 0x8
	compressError   code = 0x9
	enhanceYourCalm code = 0xb
	weakSecurity    code = 0xc
)

type http2Counters struct{ requests, errors, refused, floods atomic.Uint64 }

func (c *http2Counters) counters(totals map[string]uint64) {
	totals["front_http2_requests_total"] = c.requests.Load()
	totals["front_http2_errors_total"] = c.errors.Load()
	totals["front_http2_refused_total"] = c.refused.Load()
	totals["front_http2_floods_total"] = c.floods.Load()
}

// breach ends the connection, or the stream, if there is one.
type breach struct {
	stream uint32
	code   code
}

func (b breach) Error() string { return "the client broke a rule of HTTP/2" }

var (
	errGone        = errors.New("the connection is ended by this side")
	errStreamReset = errors.New("the stream was reset")
	errConnEnded   = errors.New("the client's connection has ended")
)

// h2 is an HTTP/2 connection (RFC 9113). One goroutine reads, the one that was the connection's before. It answers by itself what
// Quick answers, and writes that at the end of what it has read; whatever else is asked has a goroutine of its own. What they
// have to send is written by whoever of them comes first, a frame of each in turn.
type h2 struct {
	*visit
	state   *tls.ConnectionState
	address string
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup // handlers, and who writes

	// Of the goroutine that reads:
	desk2   *desk2 // nil: there is nothing to be read
	decoder *hpack.Decoder
	fields  []hpack.HeaderField // of the block that is decoded
	listed  int                 // bytes of these, as RFC 9113, 6.5.2 counts
	block   []byte              // of a header that goes on in the next frame
	held    int64               // bytes of block, as counted in Front.heads
	blockOf uint32              // its stream; 0: there is none
	blockIs byte                // flags of its first frame
	headBy  time.Time           // when what has begun must have come
	greeted bool                // the preface and the first SETTINGS have come
	worked  bool                // requests were answered since it was last written

	mu        sync.Mutex
	out       []byte // frames to be written, before any of queue
	outSheet  *sheet2
	spare     *sheet2
	writing   bool      // somebody does
	room      sync.Cond // something was written
	queue     []*stream // those that have something to send and may
	streams   map[uint32]*stream
	running   int // handlers, also of streams that are closed
	maxID     uint32
	window    int64 // what may be sent
	initial   int64 // of a new stream
	maxFrame  int   // that may be sent
	recv      int64 // what may come
	unacked   int64 // was read since the client was last told
	calm      int
	calmSince time.Time
	idleSince time.Time
	headDue   time.Time // as headBy, if that is waited for; zero: it is not
	settleBy  time.Time // when our settings must be acknowledged; zero: they are, or the client's have not come
	resized   bool      // the client knows that nothing is kept in its table of fields
	away      away
	lastID    uint32 // of what is served when it is away for good
	over      bool   // reading ends
	dead      bool   // nothing is begun any more
	broken    bool   // nothing can be written
	drain     *time.Timer
	stall     *time.Timer
	stalling  bool               // stall is set
	resets    [remembered]uint32 // the last streams that were reset by this side
	ends      [remembered]uint32 // and those that ended otherwise
	resetsAt  int
	endsAt    int
}

// away is how far a client was told to go (GOAWAY).
type away int

const (
	awayNo      away = iota
	awaySoon         // no more requests are wanted
	awayForGood      // those after lastID are not served
)

// desk2 is where requests are read.
type desk2 struct {
	r, w    int // of buf, what is unread
	plain   []byte
	head    []byte
	request http1.Request
	answer  http1.Response
	fields  [http1.MaxFields]http1.Field
	buf     [deskBytes2]byte
}

// sheet2 is where answers are gathered.
type sheet2 struct{ b [sheetBytes2]byte }

// pools2 lend what only connections with something to do need.
type pools2 struct{ desks, sheets, bodies sync.Pool }

func (p *pools2) desk() *desk2 {
	if d, ok := p.desks.Get().(*desk2); ok {
		return d
	}
	d := &desk2{plain: make([]byte, 0, 1<<10), head: make([]byte, 0, 2<<10)}
	d.request.Fields = d.fields[:0]
	return d
}

func (p *pools2) sheet() *sheet2 {
	if s, ok := p.sheets.Get().(*sheet2); ok {
		return s
	}
	return new(sheet2)
}

// visit2 is the life of a connection that speaks HTTP/2.
func (v *visit) visit2(state *tls.ConnectionState) {
	c := &h2{
		visit: v, streams: map[uint32]*stream{}, window: 65535, initial: 65535, maxFrame: frameBytes, recv: bodiesWindow, calm: calmFrames,
	}
	c.state, c.address = state, v.conn.RemoteAddr().String()
	c.room.L = &c.mu
	c.ctx = context.WithValue(v.door.front.ctx, visitorKey{}, visitor{client: v.client})
	c.ctx = context.WithValue(c.ctx, http.LocalAddrContextKey, v.conn.LocalAddr())
	c.ctx, c.cancel = context.WithCancel(c.ctx)
	c.decoder = hpack.NewDecoder(4096, c.field)
	c.decoder.SetMaxStringLength(headerBytes)
	c.idleSince, c.calmSince = v.born, v.born
	v.two = c
	defer c.end()
	v.door.enrol(v)
	defer v.door.strike(v)
	c.greet()
	if !isStrong(c.state) {
		c.farewell(breach{code: weakSecurity})
		return
	}
	c.farewell(c.read())
}

// isStrong says whether HTTP/2 may be spoken over this (RFC 9113, 9.2).
func isStrong(s *tls.ConnectionState) bool {
	switch s.CipherSuite {
	case tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256:
		return s.Version == tls.VersionTLS12
	}
	return s.Version >= tls.VersionTLS13
}

// greet says what is taken here.
func (c *h2) greet() {
	c.mu.Lock()
	defer c.mu.Unlock()
	var s [4 * 6]byte
	for i, setting := range [...]struct {
		id    uint16
		value uint32
	}{{maxStreams, streams}, {initialWindow, bodyWindow}, {maxHeaderList, headerBytes}, {noPriorities, 1}} {
		binary.BigEndian.PutUint16(s[6*i:], setting.id)
		binary.BigEndian.PutUint32(s[6*i+2:], setting.value)
	}
	c.gather(settingsFrame, 0, 0, s[:])
	c.gatherNumber(windowFrame, 0, bodiesWindow-65535)
}

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// read takes what the client sends, frame by frame, until that ends.
func (c *h2) read() error {
	c.headBy = time.Now().Add(headerTimeout)
	if err := c.fill(len(preface)); err != nil {
		return err
	}
	d := c.desk2
	if string(d.buf[d.r:d.r+len(preface)]) != preface {
		return breach{code: protocolError}
	}
	d.r += len(preface)
	for {
		if err := c.fill(frameHeader); err != nil {
			return err
		}
		d := c.desk2
		h := d.buf[d.r:]
		size := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
		if size > frameBytes {
			return breach{code: frameSizeError}
		}
		if err := c.fill(frameHeader + size); err != nil {
			return err
		}
		h = d.buf[d.r:]
		id := binary.BigEndian.Uint32(h[5:]) &^ (1 << 31)
		err := c.frame(h[3], h[4], id, h[frameHeader:frameHeader+size])
		d.r += frameHeader + size
		if err == nil {
			continue
		}
		b, ok := err.(breach)
		if !ok || b.stream == 0 {
			return err
		}
		c.mu.Lock()
		c.reset(b.stream, b.code)
		calm := c.spend()
		c.mu.Unlock()
		if !calm {
			return breach{code: enhanceYourCalm}
		}
	}
}

// fill reads until so many bytes are there. Before it waits it writes what there is to say.
func (c *h2) fill(need int) error {
	d := c.desk2
	if d != nil && d.w-d.r >= need {
		return nil
	}
	if err := c.flush(); err != nil {
		return err
	}
	if d != nil && d.r == d.w {
		c.putDesk()
		d = nil
	}
	for {
		if err := c.readBefore(); err != nil {
			return err
		}
		var n int
		var err error
		if d == nil {
			if n, err = c.conn.Read(c.one[:]); n > 0 {
				d = c.door.front.pools2.desk()
				d.r, d.w, d.buf[0] = 0, 1, c.one[0]
				c.desk2 = d
			}
		} else {
			if len(d.buf)-d.r < need || d.w == len(d.buf) {
				d.w = copy(d.buf[:], d.buf[d.r:d.w])
				d.r = 0
			}
			n, err = c.conn.Read(d.buf[d.w:])
			d.w += n
		}
		switch {
		case n > 0:
		case timedOut(err):
			if err := c.struck(err); err != nil {
				return err
			}
		case err != nil:
			return err
		}
		if d != nil && d.w-d.r >= need {
			return nil
		}
	}
}

func (c *h2) putDesk() {
	if d := c.desk2; d != nil {
		d.answer = http1.Response{}
		if cap(d.plain) > keptBytes || cap(d.head) > keptBytes {
			d.plain, d.head = nil, nil
		}
		c.door.front.pools2.desks.Put(d)
		c.desk2 = nil
	}
}

// due is when waiting for the client ends; zero: it does not. With the lock.
func (c *h2) due() (by time.Time) {
	switch {
	case !c.headDue.IsZero():
		by = c.headDue
	case len(c.streams) == 0:
		by = c.idleSince.Add(idleTimeout)
	}
	if by.IsZero() || !c.settleBy.IsZero() && c.settleBy.Before(by) {
		by = c.settleBy
	}
	return by
}

// readBefore sets the deadline for what is waited for now.
func (c *h2) readBefore() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return errGone
	}
	c.headDue = time.Time{}
	if !c.greeted || c.blockOf != 0 {
		c.headDue = c.headBy
	}
	c.setDeadline()
	return nil
}

func (c *h2) setDeadline() {
	by := c.due()
	if by.IsZero() {
		if !c.readBy.IsZero() {
			c.readBy = by
			c.conn.SetReadDeadline(by)
		}
	} else if late := c.readBy.Sub(by); late < 0 || late > slack {
		c.readBy = by.Add(slack)
		c.conn.SetReadDeadline(c.readBy)
	}
}

// struck is the error of a deadline that struck; nil: it has moved meanwhile.
func (c *h2) struck(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	by := c.due()
	c.readBy = time.Unix(1, 0) // it is to be set anew
	switch {
	case c.over:
		return errGone
	case by.IsZero() || time.Now().Before(by):
		return nil
	case by.Equal(c.settleBy) && !by.Equal(c.headDue):
		return breach{code: settingsLate}
	}
	return err
}

// flush writes what was gathered, and waits if that is too much.
func (c *h2) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.worked {
		c.worked = false
		c.idleSince = time.Now()
		if c.door.leaving() {
			c.goAway()
		}
	}
	c.pump()
	return c.waitForRoom()
}

// waitForRoom holds up whoever reads while too much waits to be written.
func (c *h2) waitForRoom() error {
	for c.writing && len(c.out) > gatheredMost && !c.over {
		c.room.Wait()
	}
	if c.over {
		return errGone
	}
	return nil
}

// spend counts a frame that asks for nothing, and says whether that is still bearable. With the lock.
func (c *h2) spend() bool {
	if c.calm--; c.calm >= 0 {
		return true
	}
	now := time.Now()
	if now.Sub(c.calmSince) < calmTime {
		c.door.front.counters.http2.floods.Add(1)
		return false
	}
	c.calm, c.calmSince = calmFrames, now
	return true
}

// earn is the contrary: so many bytes of an answer are sent, and some frames may be about these. With the lock.
func (c *h2) earn(n int64) { c.calm = min(c.calm+2+int(n/512), calmFrames) }

// dismiss has the client go after what it waits for. It does not wait, and is called with the door's lock.
func (c *h2) dismiss() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.maxID > 0:
		c.goAway()
	case c.door.closed.Load() && c.drain == nil && !c.dead: // its request may be under way
		c.drain = time.AfterFunc(time.Until(c.born.Add(freshTime)), func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.drain = nil
			c.goAway()
		})
	}
}

// drainPing is what the client sends back when it has heard that it shall go.
var drainPing = []byte("farewell")

// goAway says that no more requests are wanted. What was sent before the client heard that is still served. With the lock.
func (c *h2) goAway() {
	if c.away != awayNo || c.over || c.dead {
		return
	}
	c.away = awaySoon
	c.gatherGoAway(1<<31-1, noError)
	c.gather(pingFrame, 0, 0, drainPing)
	if c.drain != nil {
		c.drain.Stop()
	}
	c.drain = time.AfterFunc(drainTime, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.goAwayForGood()
	})
	c.start()
}

// goAwayForGood serves no more than what has come. With the lock.
func (c *h2) goAwayForGood() {
	if c.away == awayForGood || c.over || c.dead {
		return
	}
	c.away, c.lastID = awayForGood, c.maxID
	c.gatherGoAway(c.lastID, noError)
	c.start()
	c.leaveIfDone()
}

// leaveIfDone ends a connection that carries nothing more. With the lock.
func (c *h2) leaveIfDone() {
	if c.away == awayForGood && len(c.streams) == 0 {
		c.stop()
	}
}

// stop has reading end. With the lock.
func (c *h2) stop() {
	if !c.over {
		c.over = true
		c.conn.SetReadDeadline(time.Unix(1, 0))
		c.room.Broadcast()
	}
}

// farewell ends the connection so that the client hears why.
func (c *h2) farewell(why error) {
	counters := &c.door.front.counters
	c.mu.Lock()
	c.over = true
	b, broke := why.(breach)
	switch {
	case c.broken:
		c.mu.Unlock()
		return
	case broke:
		counters.http2.errors.Add(1)
		c.gatherGoAway(c.maxID, b.code)
	case timedOut(why):
		switch {
		case c.blockOf != 0 || !c.greeted && c.desk2 != nil:
			counters.slowRequests.Add(1)
		case !c.greeted:
			counters.silent.Add(1)
		}
		c.gatherGoAway(c.maxID, noError)
	case why != errGone: // the client has ended it
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	c.conn.SetWriteDeadline(time.Now().Add(farewellTime))
	c.mu.Lock()
	for _, s := range c.streams { // nothing is sent but what was gathered
		c.close(s, errConnEnded, false)
	}
	for c.writing {
		c.room.Wait()
	}
	c.pump()
	for c.writing {
		c.room.Wait()
	}
	c.mu.Unlock()
	if closeWrite(c.conn) != nil {
		return
	}
	c.conn.SetReadDeadline(time.Now().Add(farewellTime))
	d := c.desk2
	if d == nil {
		d = c.door.front.pools2.desk()
		c.desk2 = d
	}
	for n := 0; n < farewellMost; {
		m, err := c.conn.Read(d.buf[:])
		if n += m; err != nil {
			return
		}
	}
}

// end closes the connection, and waits for all that ran for it.
func (c *h2) end() {
	c.mu.Lock()
	c.over, c.dead = true, true
	for _, s := range c.streams {
		c.close(s, errConnEnded, false)
	}
	if c.drain != nil {
		c.drain.Stop()
	}
	if c.stall != nil {
		c.stall.Stop()
	}
	c.room.Broadcast()
	c.mu.Unlock()
	c.cancel()
	c.conn.Close()
	c.wg.Wait()
	c.endBlock()
	c.putDesk()
	c.mu.Lock()
	c.rest()
	c.mu.Unlock()
}
