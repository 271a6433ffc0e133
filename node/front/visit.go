package front

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/socket"
	"github.com/perigee-net/perigee/edge/http1"
)

const (
	// deskBytes is the room for what is read of a connection at first. A head that needs more gets it, up to headerBytes.
	deskBytes = 4 << 10
	// answerBytes is how much of answers is gathered for one write: heads, and bodies of up to bodyCopied. What is longer is
	// written from where it is. A client that does not read holds this much until writeTimeout.
	answerBytes = 36 << 10
	bodyCopied  = 32 << 10
	// slack is how much later than it should a deadline may strike: none is set anew within that time.
	slack = 500 * time.Millisecond
	// freshTime is how long a connection that has sent nothing yet is waited for when its door closes: its request may
	// be under way (net/http does so too).
	freshTime = 5 * time.Second
	// farewellTime and farewellMost are how long, and for how many bytes, a connection is read after a refusal: to close it
	// with bytes unread would reset it, and the client might not see why.
	farewellTime = 500 * time.Millisecond
	farewellMost = 256 << 10
)

// visit is an HTTP/1 connection from its first byte to its last; one of HTTP/2 is that only until its handshake has ended. Requests of
// the plain form are answered here, by Quick, by a Relay or in a turn; all others are lent, one at a time, to net/http.
type visit struct {
	*client
	conn    net.Conn // what HTTP is spoken over: the client, or TLS over it
	tls     *tls.Conn
	tcp     *net.TCPConn // conn, if it is just that; nil: it is something else
	raw     raw          // of tcp, where the system has it
	read    func(fd uintptr) bool
	readErr error // of read
	remote  netip.AddrPort
	state   atomic.Int32
	born    time.Time

	loan     *loan         // the last one; nil: nothing was lent yet
	hosted   *hosted       // nil: there was no turn yet
	desk     *desk         // nil: nothing is here to be read
	sheet    *sheet        // nil: no answers are gathered
	rooms    func() []byte // room, for a Relay
	scanned  int           // bytes of an unfinished head in which its end was looked for
	blank    bool          // there was an empty line before it
	one      [1]byte
	now      time.Time // when the request had come that was just answered, at once; zero: so it was not
	readBy   time.Time // the deadlines that stand; zero: not known
	writeBy  time.Time
	vec      [2][]byte
	vecs     net.Buffers
	send     func(fd uintptr) bool // sending's
	sending  transfer
	writeNow func(fd uintptr) // writing's
	writing  writing
	two      *h2 // nil: it speaks HTTP/1
}

// What a visit is doing, for whoever wants to end it.
const (
	fresh int32 = iota // nothing has come yet
	idle               // it waits for the next request
	busy
	gone // it was told to go
)

// desk is where a request is read.
type desk struct {
	buf         []byte // bytes from r to w are unread
	r, w        int
	request     http1.Request
	answer      http1.Response
	fields      [http1.MaxFields]http1.Field
	first       [deskBytes]byte
	accountable int64      // of buf, if it is more than first
	accounted   netip.Addr // whose they are
}

func (d *desk) unread() []byte { return d.buf[d.r:d.w] }

// counts is whom the connection counts for; not valid: it does not count.
func (v *visit) counts() netip.Addr { return http1.ClientOf(v.remote.Addr()) }

// more is where more may be read to; nowhere if the head is too long, or too much is held of such.
func (v *visit) more() ([]byte, error) {
	d := v.desk
	if d.r > 0 {
		d.w = copy(d.buf, d.buf[d.r:d.w])
		d.r = 0
	}
	if d.w == len(d.buf) {
		if d.w >= headerBytes {
			return nil, errHeadTooLong
		}
		if d.accountable == 0 {
			d.accounted = v.counts()
		}
		more := int64(2 * len(d.buf))
		if !v.door.front.heads.take(d.accounted, more-d.accountable) {
			return nil, errHeadsFull
		}
		d.accountable = more
		buf := make([]byte, more)
		copy(buf, d.buf)
		d.buf = buf
	}
	return d.buf[d.w:], nil
}

var (
	errHeadTooLong = errors.New("the request's head is too long")
	errHeadsFull   = errors.New("too much is held of unfinished requests")
)

// desks and sheets lend what only connections with something to do need.
type desks struct{ pool sync.Pool }

func (p *desks) get() *desk {
	if d, ok := p.pool.Get().(*desk); ok {
		return d
	}
	d := new(desk)
	d.buf = d.first[:]
	d.request.Fields = d.fields[:0]
	return d
}

func (f *Front) putDesk(d *desk) {
	if d.accountable > 0 {
		f.heads.give(d.accounted, d.accountable)
		d.accountable, d.buf = 0, d.first[:]
	}
	d.r, d.w = 0, 0
	f.desks.pool.Put(d)
}

type sheet struct{ b [answerBytes]byte }

type sheets struct{ pool sync.Pool }

func (p *sheets) get() *sheet {
	if s, ok := p.pool.Get().(*sheet); ok {
		return s
	}
	return new(sheet)
}

func (p *sheets) put(s *sheet) { p.pool.Put(s) }

// visit is the life of a connection to an HTTP door.
func (d *door) visit(c *client) {
	d.pace(c.socket)
	v := &visit{client: c, conn: c, born: time.Now()}
	defer v.end()
	defer func() {
		if p := recover(); p != nil {
			d.front.panicked(p)
		}
	}()
	if p, ok := c.Conn.(*proxied); ok && !p.wait() {
		return
	}
	if d.key.tls && !v.handshake() {
		return
	}
	if v.tls == nil {
		if tcp, ok := c.Conn.(*net.TCPConn); ok {
			v.tcp = tcp
			if raw, ok := rawOf(tcp); ok {
				v.raw, v.read, v.send, v.writeNow = raw, v.readSome, v.sending.some, v.writing.now
			}
		}
	}
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		v.remote = a.AddrPort()
	}
	if v.tls != nil {
		if state := v.tls.ConnectionState(); state.NegotiatedProtocol == "h2" {
			v.visit2(&state)
			return
		}
	}
	v.readIn(headerTimeout)
	d.enrol(v)
	defer d.strike(v)
	for v.await() && v.serve() {
	}
}

// end gives everything back.
func (v *visit) end() {
	if v.hosted != nil {
		v.hosted.cancel()
	}
	if v.loan != nil {
		v.loan.dismiss()
	}
	if v.desk != nil {
		v.door.front.putDesk(v.desk)
		v.desk = nil
	}
	if v.conn != nil {
		v.conn.Close()
	}
}

// handshake makes conn TLS. If it fails, it is over.
func (v *visit) handshake() bool {
	t := tls.Server(v.client, v.door.tls)
	v.client.SetDeadline(time.Now().Add(headerTimeout))
	if err := t.HandshakeContext(v.door.front.ctx); err != nil {
		v.door.front.counters.handshakeErrors.Add(1)
		if plain, ok := errors.AsType[tls.RecordHeaderError](err); ok && plain.Conn != nil && looksLikeHTTP(plain.RecordHeader) {
			io.WriteString(plain.Conn, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
		}
		return false
	}
	v.client.SetDeadline(time.Time{})
	v.tls, v.conn = t, t
	return true
}

func looksLikeHTTP(header [5]byte) bool {
	switch string(header[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		return true
	}
	return false
}

// readIn has reading fail if nothing comes for this long, or up to slack longer.
func (v *visit) readIn(d time.Duration) { v.readInFrom(d, time.Now()) }

func (v *visit) readInFrom(d time.Duration, now time.Time) {
	if left := v.readBy.Sub(now); left >= d && left <= d+slack {
		return
	}
	v.readBy = now.Add(d + slack)
	v.conn.SetReadDeadline(v.readBy)
}

// await waits for the next request, with nothing in hand, and says whether there is one.
func (v *visit) await() bool {
	waiting := idle
	if v.state.Load() == fresh {
		waiting = fresh
	} else {
		now := v.now // a moment ago; the clock costs as much as all else here
		if now.IsZero() {
			now = time.Now()
		}
		v.readInFrom(idleTimeout, now)
		v.state.Store(idle)
		if v.door.leaving() { // who set it before that has not seen that this is idle
			return false
		}
	}
	if v.desk == nil {
		if err := v.fill(); err != nil {
			if waiting == fresh && timedOut(err) && v.state.Load() != gone {
				v.door.front.counters.silent.Add(1)
			}
			return false
		}
	}
	return v.state.CompareAndSwap(waiting, busy)
}

// fill reads what comes next. It holds a desk only when something has come.
func (v *visit) fill() error {
	if v.read != nil {
		v.readErr = nil
		if err := v.raw.Read(v.read); err != nil {
			return err
		}
		return v.readErr
	}
	if v.desk == nil {
		n, err := v.conn.Read(v.one[:])
		if n == 0 {
			return err
		}
		v.desk = v.door.front.desks.get()
		v.desk.w = copy(v.desk.buf, v.one[:])
		if _, ok := v.conn.(*tls.Conn); !ok {
			return nil
		}
	}
	room, err := v.more()
	if err != nil {
		return err
	}
	n, err := v.conn.Read(room)
	v.desk.w += n
	if n > 0 {
		return nil
	}
	return err
}

// readSome is what raw reads with.
func (v *visit) readSome(fd uintptr) bool {
	if v.desk == nil {
		v.desk = v.door.front.desks.get()
	}
	room, err := v.more()
	if err != nil {
		v.readErr = err
		return true
	}
	n, again, err := socket.Read(fd, room)
	v.desk.w += n
	if again && v.desk.w == 0 {
		v.door.front.putDesk(v.desk)
		v.desk = nil
	}
	v.readErr = err
	return !again
}

// serve answers what has come, and says whether the connection goes on.
func (v *visit) serve() bool {
	var (
		d    = v.desk
		q, a = &d.request, &d.answer
		out  []byte // answers that are to be written, in v.sheet
		ok   bool
	)
	defer v.putSheet()
	for {
		b := d.unread()
		if len(b) > 1 && b[0] == '\r' && b[1] == '\n' && !v.blank { // one empty line before a request is ignored (RFC 9112, 2.2)
			d.r, v.blank, v.scanned = d.r+2, true, 0
			b = d.unread()
		}
		if len(b) == 0 {
			break
		}
		form := http1.Other
		if v.scanned == 0 {
			form = q.Parse(b)
		} else if http1.End(b, v.scanned) >= 0 {
			form = q.Parse(b)
		}
		behind := v.door.behind.Load()
		q.TLS, q.Remote, q.Now = v.tls != nil, v.remote, time.Now()
		if form == http1.Plain && behind.Quick != nil {
			if v.sheet == nil {
				out = v.room()
			}
			before := len(out)
			*a = http1.Response{Head: out}
			if behind.Quick(q, a) {
				v.door.front.counters.quick.Add(1)
				if out, ok = v.answered(q, a); !ok {
					return false
				}
				continue
			}
			out = out[:before]
		}
		if len(out) > 0 {
			if !v.write(out) {
				return false
			}
		}
		v.putSheet() // not held while others answer, or the client is waited for
		out = nil
		if form == http1.Plain {
			var begun http1.Begun
			if behind.Relay != nil {
				if v.rooms == nil {
					v.rooms = v.room
				}
				*a = http1.Response{}
				if ok, begun = behind.Relay(q, a, v.rooms); ok {
					v.door.front.counters.relayed.Add(1)
					v.door.front.counters.desync[http1.Head{Framed: true}.Reason].Add(1)
					if out, ok = v.answered(q, a); !ok {
						return false
					}
					continue
				}
			}
			v.now = time.Time{}
			if !v.serveHere(q, begun) {
				return false
			}
			continue
		}
		if size := http1.End(b, v.scanned); size >= 0 {
			v.scanned, v.blank, v.now = 0, false, time.Time{}
			if !v.lend(size) {
				return false
			}
			continue
		}
		if v.scanned == 0 {
			v.readIn(headerTimeout) // for all of it
		}
		v.scanned = len(b)
		if err := v.fill(); err != nil {
			v.unfinished(err)
			return false
		}
	}
	if len(out) > 0 && !v.write(out) {
		return false
	}
	v.door.front.putDesk(d)
	v.desk = nil
	return true
}

// room takes a sheet for answers, in which there are none yet.
func (v *visit) room() []byte {
	if v.sheet == nil {
		v.sheet = v.door.front.sheets.get()
	}
	return v.sheet.b[:0]
}

func (v *visit) putSheet() {
	if v.sheet != nil {
		v.door.front.sheets.put(v.sheet)
		v.sheet = nil
	}
}

// answered ends a plain request with the answer that Quick or a Relay has made behind those that are to be written, and says what of these
// is still to be, and whether the connection goes on.
func (v *visit) answered(q *http1.Request, a *http1.Response) (out []byte, ok bool) {
	v.door.front.counters.requests.Add(1)
	v.now = q.Now
	v.desk.r += q.Bytes
	v.scanned, v.blank = 0, false
	if field := v.alternative(); field != nil {
		a.Head = append(append(append(a.Head[:len(a.Head)-2], "Alt-Svc: "...), field[0]...), "\r\n\r\n"...)
	}
	last := q.Close || v.door.leaving()
	if last {
		a.Head = append(a.Head[:len(a.Head)-2], "Connection: close\r\n\r\n"...)
	}
	if out, ok = v.put(a, q.Head); !ok {
		return nil, false
	}
	if last {
		if v.write(out) && len(v.desk.unread()) > 0 {
			v.farewell()
		}
		return nil, false
	}
	if len(out) > answerBytes-deskBytes {
		return v.sheet.b[:0], v.write(out)
	}
	return out, true
}

// unfinished answers a request whose head does not come to its end.
func (v *visit) unfinished(err error) {
	c := &v.door.front.counters
	switch {
	case err == errHeadTooLong:
		v.refuse(http.StatusRequestHeaderFieldsTooLarge)
	case err == errHeadsFull:
		c.headsRefused.Add(1)
		v.refuse(http.StatusServiceUnavailable)
	case timedOut(err):
		c.slowRequests.Add(1)
	case errors.Is(err, io.EOF):
		v.refuse(http.StatusBadRequest)
	}
}

// refuse answers a request that nobody is given, and ends the connection.
func (v *visit) refuse(status int) {
	v.door.front.counters.badRequests.Add(1)
	said := fmt.Sprintf("%d %s", status, http.StatusText(status))
	if v.write([]byte("HTTP/1.1 " + said + "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n" + said)) {
		v.farewell()
	}
}

// farewell ends the connection so that the client sees what was last written to it.
func (v *visit) farewell() {
	if closeWrite(v.conn) != nil {
		return
	}
	v.conn.SetReadDeadline(time.Now().Add(farewellTime))
	for n := 0; n < farewellMost; {
		m, err := v.conn.Read(v.desk.buf)
		if n += m; err != nil {
			return
		}
	}
}

// put adds the body of an answer to its head, or writes both, where that is too long. It returns what is still to be written.
func (v *visit) put(a *http1.Response, head bool) (out []byte, ok bool) {
	if head {
		a.Body, a.Length = nil, 0
	}
	defer func() {
		if a.Done != nil {
			a.Done()
		}
	}()
	if out = a.Head; len(a.Body) <= bodyCopied && len(a.Body) <= cap(out)-len(out) {
		out = append(out, a.Body...)
	} else {
		if !v.writeBoth(out, a.Body) {
			return nil, false
		}
		out = v.sheet.b[:0]
	}
	switch {
	case a.Length == 0 || a.File == nil && a.Lent == nil:
		return out, true
	case a.File != nil && v.read != nil:
		return v.sheet.b[:0], v.sendFile(out, a)
	case a.Lent != nil:
		return v.sheet.b[:0], v.writeLent(out, a)
	}
	return v.sheet.b[:0], v.writeFile(out, a)
}

// write writes to the client, who may take writeTimeout for each piece.
func (v *visit) write(b []byte) bool {
	if v.tcp == nil {
		v.now = time.Time{} // this may take long
		_, err := v.conn.Write(b)
		return err == nil
	}
	if v.writeNow != nil { // mostly there is room, and so nothing to wait for
		v.writing.b = b
		if v.raw.Control(v.writeNow) == nil {
			b = v.writing.b
		}
		if v.writing.b = nil; len(b) == 0 {
			return true
		}
	}
	for {
		v.writeIn()
		n, err := v.tcp.Write(b)
		if err == nil {
			return true
		}
		if !v.mayGoOn(int64(n), err) {
			return false
		}
		b = b[n:]
	}
}

// writing is what is left of an answer to be written.
type writing struct{ b []byte }

// now writes what there is room for. What is wrong is met again.
func (w *writing) now(fd uintptr) {
	if n, err := socket.Write(fd, w.b); err == nil {
		w.b = w.b[n:]
	}
}

// writeBoth writes two pieces, by one call where the system can.
func (v *visit) writeBoth(a, b []byte) bool {
	if v.tcp == nil {
		return v.write(a) && v.write(b)
	}
	v.vec = [2][]byte{a, b}
	v.vecs = v.vec[:]
	for {
		v.writeIn()
		n, err := v.vecs.WriteTo(v.tcp)
		if err == nil {
			v.vec = [2][]byte{}
			return true
		}
		if !v.mayGoOn(n, err) {
			return false
		}
	}
}

// writeLent writes what was gathered and then a body that is lent, by way of the sheet: what waits for the client is a copy.
func (v *visit) writeLent(out []byte, a *http1.Response) bool {
	lease := a.Lent.Lease(0, v.counts())
	a.Done = nil
	defer lease.Close()
	if cap(out) < bodyCopied || len(out) > bodyCopied/2 {
		if !v.write(out) {
			return false
		}
		out = v.sheet.b[:0]
	}
	for at := int64(0); at < a.Length; out = v.sheet.b[:0] {
		n, err := lease.ReadAt(out[len(out):min(bodyCopied, len(out)+int(min(a.Length-at, bodyCopied)))], at)
		if n == 0 && err != nil || !v.write(out[:len(out)+n]) {
			return false
		}
		at += int64(n)
	}
	return true
}

// writeFile writes what was gathered, and then a piece of a file.
func (v *visit) writeFile(out []byte, a *http1.Response) bool {
	if len(out) > 0 && !v.write(out) {
		return false
	}
	for offset, left := a.Offset, a.Length; left > 0; {
		n, err := a.File.ReadAt(v.sheet.b[:min(left, int64(len(v.sheet.b)))], offset)
		if n == 0 && err != nil || !v.write(v.sheet.b[:n]) {
			return false
		}
		offset, left = offset+int64(n), left-int64(n)
	}
	return true
}

// transfer is an answer that is being sent whose body is in a file: what of it is still to be sent, how much was, and what came in the
// way.
type transfer struct {
	head         []byte
	file         *os.File
	offset, left int64
	sent         int64
	err          error
	atOnce       bool  // the file is in memory, so nothing of it is waited for
	paced        paced // the connection
	start        int64 // of the body in the file
	lent         http1.Lent
	visit        *visit
	lease        http1.Lease // nil: the client was not waited for yet
}

// paced says whether the system spaces out what is sent on a connection by a model of the path (BBR).
type paced int

const (
	unknownPace paced = iota
	isPaced
	notPaced
)

// sendFile has the kernel send a piece of a file, behind what was gathered.
func (v *visit) sendFile(out []byte, a *http1.Response) bool {
	t := &v.sending
	*t = transfer{head: out, file: a.File, offset: a.Offset, left: a.Length, atOnce: a.Lent != nil, paced: t.paced, start: a.Offset, lent: a.Lent, visit: v}
	for {
		v.writeIn()
		t.sent = 0
		err := v.raw.Write(v.send)
		if err == nil {
			err = t.err
		}
		if err == nil || !v.mayGoOn(t.sent, err) {
			if t.lease != nil {
				a.Done = nil
				t.lease.Close()
			}
			*t = transfer{paced: t.paced}
			return err == nil
		}
	}
}

// writeIn has writing fail where nothing is taken for writeTimeout.
func (v *visit) writeIn() {
	v.now = time.Time{} // what follows may take long
	now := time.Now()
	if v.writeBy.Sub(now) < writeTimeout {
		v.writeBy = now.Add(writeTimeout + slack)
		v.tcp.SetWriteDeadline(v.writeBy)
	}
}

// mayGoOn says whether a write that was cut short was so only because it was long.
func (v *visit) mayGoOn(n int64, err error) bool {
	if !timedOut(err) {
		return false
	}
	if n < writePiece {
		v.door.front.counters.slowReaders.Add(1)
		return false
	}
	v.writeBy = time.Time{}
	return true
}

func timedOut(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// lend has net/http serve the request whose head is the next so many bytes, and says whether the connection came back.
func (v *visit) lend(size int) bool {
	head := v.desk.unread()[:size]
	h := http1.Read(head)
	f := v.door.front
	f.counters.desync[h.Reason].Add(1)
	serve, last := v.door.mitigation().Decide(h.Reason.Grade())
	if !serve {
		f.counters.desyncRefused.Add(1)
		v.desk.r += size
		v.refuse(http.StatusBadRequest)
		return false
	}
	if v.loan == nil || !v.loan.lend(head, h, last) {
		v.loan = newLoan(v)
		v.loan.lend(head, h, last)
		if !v.door.loans.give(v.loan.conn()) {
			return false
		}
	}
	v.readBy, v.writeBy = time.Time{}, time.Time{} // whatever they will be
	if !<-v.loan.done {
		v.conn = nil // closed, or another protocol's
		return false
	}
	return true
}

// enrol has the door know of a visit.
func (d *door) enrol(v *visit) {
	d.mu.Lock()
	d.visits[v] = struct{}{}
	d.mu.Unlock()
	if d.leaving() {
		v.dismiss()
	}
}

func (d *door) strike(v *visit) {
	d.mu.Lock()
	delete(d.visits, v)
	d.mu.Unlock()
}

// leaving says whether answers are the last on their connections.
func (d *door) leaving() bool { return d.retired.Load() || d.closed.Load() }

// dismiss ends the connections that wait for a request; the others end by themselves.
func (d *door) dismiss() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for v := range d.visits {
		v.dismiss()
	}
}

func (v *visit) dismiss() {
	switch {
	case v.two != nil:
		v.two.dismiss()
	case v.state.Load() == fresh:
		if v.door.closed.Load() {
			v.conn.SetReadDeadline(v.born.Add(freshTime))
		}
	case v.state.CompareAndSwap(idle, gone):
		v.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// lobby is a listener that connections are given to.
type lobby struct {
	conns  chan net.Conn
	closed chan struct{}
	close  func()
	addr   net.Addr
}

func newLobby(addr net.Addr) *lobby {
	l := &lobby{conns: make(chan net.Conn), closed: make(chan struct{}), addr: addr}
	l.close = sync.OnceFunc(func() { close(l.closed) })
	return l
}

// give hands a connection to who accepts, unless that is over.
func (l *lobby) give(c net.Conn) bool {
	select {
	case l.conns <- c:
		return true
	case <-l.closed:
		return false
	}
}

func (l *lobby) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *lobby) Close() error   { l.close(); return nil }
func (l *lobby) Addr() net.Addr { return l.addr }
