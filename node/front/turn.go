package front

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

// turn is a request of the plain form that neither Quick nor a Relay did answer, and the answer that a handler gives to it on the visit's own
// goroutine: an http.ResponseWriter whose answers are those of net/http, but for the order of their fields. A loan costs three
// changes of goroutine and a read that finds nothing; a turn costs none. There is no body to be read: a request that has one is
// not plain.
type turn struct {
	v      *visit
	ctx    lazy // the request's
	header http.Header

	isHead   bool  // the method is HEAD
	last     bool  // the connection is closed after the answer
	over     bool  // the handler has returned
	taken    bool  // the connection is the handler's
	status   int   // 0: no head was written
	length   int64 // of the body, as the handler says; −1: it does not
	written  int64 // of the body, by the handler
	named    bool  // the body's type is not to be guessed
	dated    bool
	trailers bool // there are trailers, or may be
	announce []string
	coding   string // Transfer-Encoding, as the handler says
	framed   bool   // it is decided how the body ends, and so the head
	chunked  bool

	sheet *sheet // nil: nothing waits to be written
	out   []byte // that, in sheet
	held  int    // bytes of the body at the end of sheet, as long as it is not framed
	err   error  // of the connection

	// Who watches the client, with mu of the visit:
	watched  bool
	looking  chan struct{} // closed when the watch has ended; nil: there was none
	left     bool          // the client has
	readBy   time.Time     // as the handler asked
	writesBy bool          // the handler asked for a deadline for writing
}

const (
	// heldMost is how much of a body is held whose length was not said, so that it can be said if that was all (net/http does
	// so too).
	heldMost = 2 << 10
	// watchAfter is how long a handler may run until the client is watched for whether it is still there: most have
	// answered by then, and to read what does not come costs as much as all the rest of the front.
	watchAfter = 10 * time.Millisecond
	// headerRoom is how many fields an answer has room for at first; a map that has grown is not kept for the next.
	headerRoom = 16
)

var (
	errTurnOver = errors.New("the handler has returned")
	errNotTaken = errors.New("the client does not take the answer")
)

// headers lend the headers of answers: to make one was a fifth of what a proxied request allocates.
type headers struct{ pool sync.Pool }

func (p *headers) get() http.Header {
	if h, ok := p.pool.Get().(http.Header); ok {
		return h
	}
	return make(http.Header, headerRoom)
}

func (p *headers) put(h http.Header) {
	if len(h) <= headerRoom {
		clear(h)
		p.pool.Put(h)
	}
}

// serveHere has the door's handler answer the plain request whose head is next on the desk, and says whether the connection
// goes on. Begun is what a Relay has begun for it; nil: nothing.
func (v *visit) serveHere(q *http1.Request, begun http1.Begun) (goesOn bool) {
	if begun != nil {
		defer begun.Drop()
	}
	t := &turn{v: v, isHead: q.Head, last: q.Close, length: -1}
	r, err := v.request(q, t)
	v.desk.r += q.Bytes // all of it is in r
	v.scanned, v.blank = 0, false
	f := v.door.front
	f.counters.desync[http1.Head{Framed: true}.Reason].Add(1)
	if err != nil {
		v.refuse(http.StatusBadRequest)
		return false
	}
	f.counters.requests.Add(1)
	t.header = f.headers.get()
	if field := v.alternative(); field != nil {
		t.header["Alt-Svc"] = field
	}
	if begun != nil {
		r = r.WithContext(http1.Begin(r.Context(), begun))
	}
	v.begin(t)
	defer t.close()
	defer func() {
		if p := recover(); p != nil {
			if goesOn = false; p != http.ErrAbortHandler {
				f.panicked(p)
			}
		}
	}()
	v.door.behind.Load().Handler.ServeHTTP(t, r)
	return !t.taken && t.finish()
}

// request is what a handler is given. It holds nothing of the desk.
func (v *visit) request(q *http1.Request, t *turn) (*http.Request, error) {
	head := v.desk.unread()[:q.Bytes]
	text := string(head)
	part := func(b []byte) string { // both end where the desk does
		at := cap(head) - cap(b)
		return text[at : at+len(b)]
	}
	target := part(q.Target)
	at, err := url.ParseRequestURI(target)
	if err != nil {
		return nil, err
	}
	h := make(http.Header, len(q.Fields))
	lines := make([]string, len(q.Fields))
	for i, f := range q.Fields {
		name := textproto.CanonicalMIMEHeaderKey(part(f.Name))
		if name == "Host" {
			continue
		}
		lines[i] = part(f.Value)
		if before := h[name]; before != nil {
			h[name] = append(before, lines[i])
		} else {
			h[name] = lines[i : i+1 : i+1]
		}
	}
	if pragma := h["Pragma"]; len(pragma) > 0 && pragma[0] == "no-cache" { // RFC 9111, 5.4; as net/http reads it
		if _, ok := h["Cache-Control"]; !ok {
			h["Cache-Control"] = []string{"no-cache"}
		}
	}
	if v.hosted == nil {
		v.hosted = new(hosted)
		v.hosted.ctx, v.hosted.cancel = context.WithCancel(v.door.front.ctx)
		v.hosted.from = v.conn.RemoteAddr().String()
		if v.tls != nil {
			state := v.tls.ConnectionState()
			v.hosted.tls = &state
		}
	}
	r := http.Request{
		Method: http.MethodGet, URL: at, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: h, Body: http.NoBody,
		Close: q.Close, Host: part(q.Host), RemoteAddr: v.hosted.from, RequestURI: target, TLS: v.hosted.tls,
	}
	if q.Head {
		r.Method = http.MethodHead
	}
	t.ctx.parent = v.hosted.ctx
	return r.WithContext(&t.ctx), nil
}

// begin has the client watched if the handler takes its time.
func (v *visit) begin(t *turn) {
	if d := v.desk; d.r == d.w {
		d.r, d.w = 0, 0
	}
	h := v.hosted
	h.mu.Lock()
	h.turn = t
	h.mu.Unlock()
	if h.timer == nil {
		h.timer = time.AfterFunc(watchAfter, v.watch)
	} else {
		h.timer.Reset(watchAfter)
	}
}

// hosted is what a visit keeps of one turn for the next.
type hosted struct {
	ctx    context.Context
	cancel context.CancelFunc
	from   string
	tls    *tls.ConnectionState
	timer  *time.Timer // runs watch

	mu   sync.Mutex
	turn *turn // that goes on
}

// watch waits for what comes from the client while a handler runs, and ends the request's context when the client leaves. If
// another request comes it does not look further: that is the visit's.
func (v *visit) watch() {
	h := v.hosted
	h.mu.Lock()
	t := h.turn
	if t == nil || t.watched || len(v.desk.unread()) > 0 {
		h.mu.Unlock()
		return
	}
	t.watched, t.looking = true, make(chan struct{})
	defer close(t.looking)
	v.conn.SetReadDeadline(t.readBy)
	h.mu.Unlock()
	n, err := v.conn.Read(v.desk.buf)
	h.mu.Lock()
	defer h.mu.Unlock()
	v.desk.w += n
	if n == 0 && err != nil && h.turn == t { // or else it was told to end
		t.left = true
		t.ctx.end()
	}
}

// close ends all that the turn has begun.
func (t *turn) close() {
	t.over = true
	t.ctx.end()
	t.putSheet()
	if t.taken {
		t.v.conn = nil
		return
	}
	t.unwatch()
	if t.writesBy {
		t.v.conn.SetWriteDeadline(time.Time{})
		t.v.writeBy = time.Time{}
	}
	t.v.door.front.headers.put(t.header) // who has an http.ResponseWriter may not use it, nor its header, when it has returned
	t.header = nil
}

// unwatch ends the watch, and whatever a handler may want of the connection.
func (t *turn) unwatch() {
	h := t.v.hosted
	h.timer.Stop()
	h.mu.Lock()
	h.turn = nil
	if t.looking != nil {
		t.v.conn.SetReadDeadline(time.Unix(1, 0))
	}
	h.mu.Unlock()
	if t.looking != nil {
		<-t.looking
		t.v.readBy = time.Time{} // it is set anew before the next read
	}
}

// Hijack gives the handler the connection, and what of it was read.
func (t *turn) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if t.over {
		return nil, nil, errTurnOver
	}
	if t.taken {
		return nil, nil, http.ErrHijacked
	}
	if t.status != 0 {
		if err := t.FlushError(); err != nil {
			return nil, nil, err
		}
	}
	t.unwatch()
	t.taken = true
	c, d := t.v.conn, t.v.desk
	if err := c.SetDeadline(time.Time{}); err != nil {
		return nil, nil, err
	}
	read := bytes.Clone(d.unread())
	d.r, d.w = 0, 0
	from := bufio.NewReader(io.MultiReader(bytes.NewReader(read), c))
	if len(read) > 0 {
		from.Peek(1) // it has read what was there
	}
	return c, bufio.NewReadWriter(from, bufio.NewWriter(c)), nil
}

// Header is the answer's; when the handler has returned that is another's, and this is nobody's.
func (t *turn) Header() http.Header {
	if t.header == nil {
		return http.Header{}
	}
	return t.header
}

// WriteHeader makes the head, or sends an interim one.
func (t *turn) WriteHeader(status int) {
	switch {
	case t.over || t.taken || t.status != 0:
		return
	case status < 100 || status > 999:
		panic("invalid WriteHeader code " + strconv.Itoa(status))
	case status < 200 && status != http.StatusSwitchingProtocols:
		t.inform(status)
		return
	}
	t.status = status
	t.takeSheet()
	t.out = http1.AppendStatus(t.out, status)
	h := t.header
	if said := first(h, "Content-Length"); said != "" {
		if n, err := strconv.ParseInt(said, 10, 64); err == nil && n >= 0 {
			t.length = n
		}
	}
	t.coding = first(h, "Transfer-Encoding")
	_, typed := h["Content-Type"]
	t.named = typed || first(h, "Content-Encoding") != "" || t.coding != ""
	_, t.dated = h["Date"]
	t.last = t.last || first(h, "Connection") == "close" || t.v.door.leaving()
	for _, line := range h["Trailer"] {
		t.trailers = true
		for name := range strings.SplitSeq(line, ",") {
			switch name = textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name)); name {
			case "", "Transfer-Encoding", "Content-Length", "Trailer":
			default:
				t.announce = append(t.announce, name)
			}
		}
	}
	for name, lines := range h {
		switch name {
		case "Content-Length", "Transfer-Encoding": // frame says them
			continue
		case "Connection":
			if t.last {
				continue
			}
		case "Content-Type":
			if status == http.StatusNotModified {
				continue
			}
		default:
			if strings.HasPrefix(name, http.TrailerPrefix) {
				t.trailers = true
				continue
			}
		}
		t.out = appendField(t.out, name, lines)
	}
	if !hasBody(status) || t.length >= 0 && t.named {
		t.frame(nil, false)
	}
}

// inform sends an interim response.
func (t *turn) inform(status int) {
	b := http1.AppendStatus(make([]byte, 0, 256), status)
	for name, lines := range t.header {
		if name != "Content-Length" && name != "Transfer-Encoding" {
			b = appendField(b, name, lines)
		}
	}
	t.put(append(b, "\r\n"...), nil)
}

// frame decides how the body ends, and ends the head. Beginning is what is there of the body; all: that is all of it.
func (t *turn) frame(beginning []byte, all bool) {
	t.framed = true
	body := hasBody(t.status)
	_, said := t.header["Content-Length"]
	if all && !t.trailers && t.coding == "" && body && t.length < 0 && !said && (!t.isHead || len(beginning) > 0) {
		t.length = int64(len(beginning))
	}
	if body && !t.named && len(beginning) > 0 {
		t.out = append(append(append(t.out, "Content-Type: "...), http.DetectContentType(beginning)...), "\r\n"...)
	}
	if !t.dated {
		t.out = http1.AppendDate(t.out, time.Now())
	}
	if t.coding != "" && t.coding != "identity" {
		t.length = -1
	}
	switch {
	case !body:
	case t.length >= 0:
		t.out = append(strconv.AppendInt(append(t.out, "Content-Length: "...), t.length, 10), "\r\n"...)
	case t.isHead:
	case t.coding == "identity":
		t.last = true
	default:
		t.chunked = true
		t.out = append(t.out, "Transfer-Encoding: "...)
		if t.coding != "" && t.coding != "chunked" {
			t.out = append(append(t.out, cleaned(t.coding)...), ", "...)
		}
		t.out = append(t.out, "chunked\r\n"...)
	}
	if t.last {
		t.out = append(t.out, "Connection: close\r\n"...)
	}
	t.out = append(t.out, "\r\n"...)
}

// Write adds to the body. What is short waits for more, for Flush or for the end.
func (t *turn) Write(p []byte) (int, error) {
	switch {
	case t.over:
		return 0, errTurnOver
	case t.taken:
		return 0, http.ErrHijacked
	case t.status == 0:
		t.WriteHeader(http.StatusOK)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if !hasBody(t.status) {
		return 0, http.ErrBodyNotAllowed
	}
	t.written += int64(len(p))
	if t.length >= 0 && t.written > t.length {
		return 0, http.ErrContentLength
	}
	rest := p
	if !t.framed && t.length < 0 {
		t.takeSheet()
		if n := len(p); t.held+n <= heldMost {
			t.held += copy(t.sheet.hold()[t.held:], p)
			return n, nil
		}
		if t.held > 0 {
			n := copy(t.sheet.hold()[t.held:], p)
			t.held, rest = heldMost, p[n:]
		}
	}
	if !t.framed {
		if t.held > 0 {
			t.frame(t.sheet.hold()[:t.held], false)
			t.letGo()
		} else {
			t.frame(p, false)
		}
	}
	t.send(rest)
	if t.err != nil {
		return 0, t.err
	}
	return len(p), nil
}

// WriteString is Write.
func (t *turn) WriteString(s string) (int, error) { return t.Write([]byte(s)) }

// letGo sends what was held of the body.
func (t *turn) letGo() {
	if held := t.held; held > 0 {
		t.held = 0
		t.send(t.sheet.hold()[:held])
	}
}

// send sends a piece of the body, which is framed.
func (t *turn) send(p []byte) {
	if t.isHead || len(p) == 0 || t.err != nil {
		return
	}
	t.takeSheet()
	if t.chunked {
		t.out = append(strconv.AppendInt(t.out, int64(len(p)), 16), "\r\n"...)
	}
	const ends = 2 // of a chunk
	if len(p) <= cap(t.out)-len(t.out)-ends {
		t.out = append(t.out, p...)
	} else {
		t.put(t.out, p)
		t.out = t.sheet.room()
	}
	if t.chunked {
		t.out = append(t.out, "\r\n"...)
	}
}

// put writes to the client.
func (t *turn) put(out, p []byte) {
	if t.err != nil {
		return
	}
	v := t.v
	var ok bool
	switch {
	case v.tcp == nil || t.limited():
		_, t.err = v.conn.Write(out)
		if t.err == nil && len(p) > 0 {
			_, t.err = v.conn.Write(p)
		}
		ok = t.err == nil
	case len(p) == 0:
		ok = v.write(out)
	default:
		ok = v.writeBoth(out, p)
	}
	if !ok {
		if t.err == nil {
			t.err = errNotTaken
		}
		t.ctx.end()
	}
}

// Flush sends what there is.
func (t *turn) Flush() { t.FlushError() }

// FlushError is for http.ResponseController.
func (t *turn) FlushError() error {
	switch {
	case t.over:
		return errTurnOver
	case t.taken:
		return http.ErrHijacked
	case t.status == 0:
		t.WriteHeader(http.StatusOK)
	}
	if !t.framed {
		var held []byte
		if t.held > 0 {
			held = t.sheet.hold()[:t.held]
		}
		t.frame(held, false)
	}
	t.letGo()
	t.flush()
	return t.err
}

// flush sends what is on the sheet, and gives that back: it is not held while more is waited for.
func (t *turn) flush() {
	if len(t.out) > 0 {
		t.put(t.out, nil)
	}
	t.putSheet()
}

// finish ends the answer, and says whether the connection goes on.
func (t *turn) finish() bool {
	if t.status == 0 {
		t.WriteHeader(http.StatusOK)
	}
	if !t.framed {
		t.frame(t.sheet.hold()[:t.held], true)
	}
	t.letGo()
	if t.chunked {
		t.takeSheet()
		t.out = append(t.out, "0\r\n"...)
		for name, lines := range t.header {
			if short, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
				t.out = appendField(t.out, short, lines)
			} else if slices.Contains(t.announce, name) {
				t.out = appendField(t.out, name, lines)
			}
		}
		t.out = append(t.out, "\r\n"...)
	}
	t.flush()
	if t.err != nil {
		return false
	}
	if t.length >= 0 && !t.isHead && hasBody(t.status) && t.written != t.length {
		return false // the client waits for what does not come
	}
	if t.last && len(t.v.desk.unread()) > 0 {
		t.v.farewell()
	}
	return !t.last && !t.gone()
}

func (t *turn) takeSheet() {
	if t.sheet == nil {
		t.sheet = t.v.door.front.sheets.get()
		t.out = t.sheet.room()
	}
}

func (t *turn) putSheet() {
	if t.sheet != nil {
		t.v.door.front.sheets.put(t.sheet)
		t.sheet, t.out = nil, nil
	}
}

// room is for what is written, hold for what is held of a body.
func (s *sheet) room() []byte { return s.b[: 0 : answerBytes-heldMost] }
func (s *sheet) hold() []byte { return s.b[answerBytes-heldMost:] }

func (t *turn) gone() bool {
	t.v.hosted.mu.Lock()
	defer t.v.hosted.mu.Unlock()
	return t.left
}

func (t *turn) limited() bool {
	t.v.hosted.mu.Lock()
	defer t.v.hosted.mu.Unlock()
	return t.writesBy
}

// SetReadDeadline is until when the client may be silent while the handler runs: then it counts as one that left.
func (t *turn) SetReadDeadline(at time.Time) error {
	h := t.v.hosted
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.turn != t {
		return errTurnOver
	}
	if t.readBy = at; t.watched {
		return t.v.conn.SetReadDeadline(at)
	}
	return nil
}

// SetWriteDeadline is kept beside writeTimeout: whichever is earlier holds.
func (t *turn) SetWriteDeadline(at time.Time) error {
	h := t.v.hosted
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.turn != t {
		return errTurnOver
	}
	t.writesBy = true
	return t.v.conn.SetWriteDeadline(at)
}

// EnableFullDuplex is how it is: there is no body to be read.
func (t *turn) EnableFullDuplex() error { return nil }

// hasBody says whether answers of a status may have one (RFC 9110, 6.4.1).
func hasBody(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

func first(h http.Header, name string) string {
	if lines := h[name]; len(lines) > 0 {
		return lines[0]
	}
	return ""
}

// appendField adds the lines of a field. One whose name is none is left out: it could be anything.
func appendField(b []byte, name string, lines []string) []byte {
	if !http1.IsToken(name) {
		return b
	}
	for _, line := range lines {
		b = append(append(append(append(b, name...), ": "...), cleaned(line)...), "\r\n"...)
	}
	return b
}

// cleaned is a field's value as one line.
func cleaned(s string) string {
	if strings.ContainsAny(s, "\r\n") {
		s = strings.NewReplacer("\r", " ", "\n", " ").Replace(s)
	}
	return textproto.TrimString(s)
}

var (
	_ io.StringWriter = (*turn)(nil)
	_ http.Flusher    = (*turn)(nil)
	_ http.Hijacker   = (*turn)(nil)
)
