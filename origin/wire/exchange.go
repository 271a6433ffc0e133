package wire

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

var (
	errHeadTooLong = errors.New("the head of the response is too long")
	errProtocol    = errors.New("the origin switched protocols unasked")
	errUnanswered  = errors.New("the connection ended without an answer")
)

// heads are buffers that heads of requests are made in.
var heads = sync.Pool{New: func() any { return new([]byte) }}

// maxHeadKept is how large such a buffer may be to be used again.
const maxHeadKept = 16 << 10

// moment is how long a response is waited for at first, and momentLate how much longer that may be. Most have come by then, and who
// waits needs nobody to tell him that it is over.
const (
	moment     = 500 * time.Millisecond
	momentLate = 500 * time.Millisecond
)

// bodyLate is how much longer than it may a body can pause.
const bodyLate = 400 * time.Millisecond

// exchange is one request on one connection, and the body of its response.
type exchange struct {
	client *Client
	conn   *conn
	ctx    context.Context
	q      *http.Request // nil: the request is bytes
	sort   sort
	stop   func() bool // that the context ends the exchange; nil: it does not yet
	// over: the connection is not this exchange's any more. Who sets it closes or keeps the connection: the reader at the end,
	// Close before it, or the context.
	over atomic.Bool

	began    time.Time
	wrote    int  // of the request's head
	asked    bool // all of it, and bytes of a response have come
	answered bool // bytes of a response have come
	last     bool // an interim response says that this is the connection's last
	bound    int  // of the heads that come
	from     int  // in what was read of one, where its end was looked for
	reply    http1.Reply
	response http.Response

	// of the body
	left   int64        // bytes; −1: up to the end of the connection
	chunks http1.Chunks // if it is chunked
	tail   bytes.Buffer // its trailers
	err    error        // what Read says from now on
}

// Watch is told of an exchange while it goes on, on the goroutine that asks.
type Watch interface {
	// Sending: the request is about to be sent, on a connection that has carried others before, or on a new one.
	Sending(reused bool)
	// Answered: bytes of a response have come.
	Answered()
	// Interim is given an interim response, whose header is its own. An error ends the exchange. The bound on a head begins anew
	// at each.
	Interim(status int, header http.Header) error
}

// Call is a request that is asked: at first for a moment, then for as long as it takes. It is one goroutine's at a time.
type Call struct {
	client *Client
	q      *http.Request // nil: it is bytes
	sort   sort
	watch  Watch
	to     string
	space  *[]byte // that head is made in; nil: it is given back, or another's
	head   []byte
	again  bool      // it is sent once more, on a new connection
	on     *exchange // that is under way; nil: none is
	spare  *exchange // for the first; nil: it is made
	now    time.Time // zero: it is to be looked at the clock
	late   bool      // the moment is over
	failed error     // what Soon is to say
}

// sort is what is to be known of a request besides its head.
type sort struct {
	head       bool // the method is HEAD
	repeatable bool // it may be carried out twice
	last       bool // of its connection
}

// ErrLater: the response has not come yet, and Wait waits for it.
var ErrLater = errors.New("the response has not come yet")

// Call makes a call of a request that Speaks says is spoken. Who watches is told of it, nil: nobody.
func (c *Client) Call(q *http.Request, watch Watch) (*Call, error) {
	space := heads.Get().(*[]byte)
	head, err := appendHead((*space)[:0], q)
	call := &Call{client: c, q: q, watch: watch, to: Address(q.URL), space: space, head: head}
	call.sort = sort{head: q.Method == http.MethodHead, repeatable: repeatable(q), last: q.Close}
	if err != nil {
		call.end()
		return nil, err
	}
	return call, nil
}

// end gives back what the head was made in.
func (c *Call) end() {
	if c.space != nil && cap(c.head) <= maxHeadKept {
		*c.space = c.head[:0]
		heads.Put(c.space)
	}
	c.space, c.head = nil, nil
}

// Soon asks on a connection that is kept, and waits for a second at most: for ErrLater, if there is no such connection, or the response
// takes longer. Then Wait goes on. The body of a response that came is under no context.
func (c *Call) Soon() (*http.Response, error) {
	if err := c.soon(nil); err != nil {
		return nil, err
	}
	return c.on.respond(), nil
}

// soon is Soon, up to the response, which is to be of the plain form and whole if there is a place for it; else: errNotPlain, and what
// has come of it is there still.
func (c *Call) soon(plain *http1.PlainReply) error {
	if c.late || c.again || c.failed != nil {
		return cmp.Or(c.failed, ErrLater)
	}
	for {
		if c.on == nil {
			on := c.client.pool.take(c.to)
			if on == nil {
				return ErrLater
			}
			c.begin(context.Background(), on)
		}
		err := c.on.soon(c.head, c.watch, plain)
		switch {
		case err == ErrLater:
			c.late = true
			return err
		case err == errNotPlain:
			return err
		case err == nil:
			c.end()
			return nil
		case err == errStale:
			c.on = nil
		case c.goesOn(err):
			return ErrLater
		default:
			c.end()
			c.failed = err
			return err
		}
	}
}

// Wait waits for the response. The context ends that, and the body later. To be called once, and not after a response or any error but
// ErrLater.
func (c *Call) Wait(ctx context.Context) (*http.Response, error) {
	defer c.end()
	if ctx.Err() != nil {
		if c.on != nil {
			c.on.abort()
		}
		return nil, context.Cause(ctx)
	}
	for {
		if c.on == nil {
			on, err := c.connection(ctx)
			if err != nil {
				return nil, err
			}
			c.begin(ctx, on)
		}
		c.on.ctx = ctx
		response, err := c.on.run(c.head, c.watch)
		switch {
		case err == nil:
			return response, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err == errStale: // the next one that is kept: there are only so many
			c.on = nil
		case !c.goesOn(err):
			return nil, err
		}
	}
}

// connection is one that is kept, or a new one.
func (c *Call) connection(ctx context.Context) (*conn, error) {
	if !c.again {
		if on := c.client.pool.take(c.to); on != nil {
			return on, nil
		}
	}
	c.now = time.Time{} // it may take long
	dialled, err := c.client.Dial(ctx, "tcp", c.to)
	if ctx.Err() != nil && err != nil {
		return nil, context.Cause(ctx)
	} else if err != nil {
		return nil, err
	}
	return newConn(dialled, c.to), nil
}

func (c *Call) begin(ctx context.Context, on *conn) {
	if c.watch != nil {
		c.watch.Sending(on.used)
	}
	if c.on, c.spare = c.spare, nil; c.on == nil {
		c.on = new(exchange)
	}
	if c.now.IsZero() {
		c.now = time.Now()
	}
	x := c.on
	x.client, x.conn, x.ctx, x.q, x.sort, x.began, x.bound = c.client, on, ctx, c.q, c.sort, c.now, c.client.MaxHead
	c.now = time.Time{}
}

// goesOn says whether the request is sent again on a new connection when it failed on one that had been kept.
func (c *Call) goesOn(err error) bool {
	x := c.on
	if !x.conn.used || x.wrote > 0 && (x.answered || timedOut(err) || !c.sort.repeatable) {
		return false
	}
	c.on, c.again = nil, true
	return true
}

// Send asks as RoundTrip does, under this context in the place of the request's: it ends the request, and later the body. Within the
// first second it is heard a second later, at most. Speaks has said that the request may be sent. What the context traces is not told,
// but watch is; nil: nobody.
func (c *Client) Send(ctx context.Context, q *http.Request, watch Watch) (*http.Response, error) {
	call, err := c.Call(q, watch)
	if err != nil {
		return nil, err
	}
	return call.Wait(ctx)
}

func timedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// soon is run for a moment, without the context. If it fails otherwise than by ErrLater or errNotPlain the connection is closed.
func (x *exchange) soon(head []byte, watch Watch, plain *http1.PlainReply) error {
	err := x.conn.readIn(moment, momentLate, x.began)
	switch {
	case err != nil:
	case plain != nil:
		err = x.askPlain(head, watch, moment, plain)
	default:
		err = x.ask(head, watch, moment)
	}
	switch {
	case err == nil, err == errNotPlain:
		return err
	case timedOut(err) && (x.client.HeadTimeout == 0 || time.Since(x.began) < x.client.HeadTimeout):
		return ErrLater
	}
	x.abort()
	x.unwatch()
	return err
}

// run sends the request and reads the head of its response. If that fails the connection is closed.
func (x *exchange) run(head []byte, watch Watch) (*http.Response, error) {
	err := x.soon(head, watch, nil)
	if err == nil {
		return x.respond(), nil
	}
	if err != ErrLater {
		return nil, err
	}
	x.heed()
	left := x.client.HeadTimeout
	if left > 0 {
		left = max(time.Until(x.began.Add(left)), 1)
	}
	if err = x.conn.readIn(left, 0, time.Now()); err == nil {
		err = x.ask(head, watch, left)
	}
	if err != nil {
		x.abort()
		x.unwatch()
		return nil, err
	}
	return x.respond(), nil
}

// ask goes on with sending the request and reading the heads that come.
func (x *exchange) ask(head []byte, watch Watch, patience time.Duration) error {
	if err := x.send(head, watch, patience); err != nil {
		return err
	}
	return x.head(watch)
}

// send goes on with sending the request, until the first bytes of what answers it have come.
func (x *exchange) send(head []byte, watch Watch, patience time.Duration) (err error) {
	if x.asked {
		return nil
	}
	x.wrote, err = x.conn.ask(head, x.wrote, patience)
	x.answered = x.conn.end > 0
	if err == io.EOF {
		err = errUnanswered
	}
	if err != nil {
		return err
	}
	if x.asked = true; watch != nil {
		watch.Answered()
	}
	return nil
}

// heed has the context end the exchange.
func (x *exchange) heed() {
	if x.stop == nil && x.ctx.Done() != nil {
		x.stop = context.AfterFunc(x.ctx, x.abort)
	}
}

// head reads heads until a final one.
func (x *exchange) head(watch Watch) error {
	for {
		unread := x.conn.unread()
		n := http1.End(unread, x.from)
		if n < 0 {
			if x.from = len(unread); x.from >= x.bound || !x.conn.grow(x.client.MaxHead) {
				return x.refuse(errHeadTooLong)
			}
			if err := x.conn.fill(); err == io.EOF {
				return fmt.Errorf("the head of the response: %w", io.ErrUnexpectedEOF)
			} else if err != nil {
				return err
			}
			continue
		}
		if n > x.bound {
			return x.refuse(errHeadTooLong)
		}
		reply, err := http1.ReadReply(unread[:n])
		if err != nil {
			return x.refuse(err)
		}
		x.conn.start += n
		x.from, x.last = 0, x.last || reply.Last
		switch {
		case reply.Code == http.StatusSwitchingProtocols:
			return x.refuse(errProtocol)
		case reply.Code >= 200:
			x.reply = reply
			x.reply.Last = x.last
			return nil
		case watch != nil:
			if err := watch.Interim(reply.Code, reply.Header); err != nil {
				return err
			}
		default:
			x.bound -= n
		}
	}
}

func (x *exchange) refuse(err error) error {
	x.client.Faults.Add(1)
	return err
}

// respond makes the response. Where it has no body the connection is free already.
func (x *exchange) respond() *http.Response {
	r := &x.reply
	x.response = http.Response{
		Status: r.Status, StatusCode: r.Code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: r.Minor,
		Header: r.Header, Body: x, ContentLength: r.Length, Close: r.Last, Request: x.q,
	}
	if r.Minor == 0 {
		x.response.Proto = "HTTP/1.0"
	}
	if p := r.Header["Pragma"]; len(p) > 0 && p[0] == "no-cache" && r.Header["Cache-Control"] == nil {
		r.Header["Cache-Control"] = []string{"no-cache"} // as net/http has it, and what keeps responses relies on
	}
	body := !x.sort.head && r.HasBody(http.MethodGet)
	switch {
	case r.Chunked:
		x.response.TransferEncoding = []string{"chunked"}
		if len(r.Trailer) > 0 && body {
			x.response.Trailer = make(http.Header, len(r.Trailer))
			for _, name := range r.Trailer {
				x.response.Trailer[name] = nil
			}
		}
	case body && r.Length < 0:
		x.response.Close, r.Last = true, true
	}
	if !body && !x.sort.head {
		x.response.ContentLength = 0 // as net/http has it
	}
	if x.left = r.Length; !body || r.Length == 0 {
		x.response.Body = http.NoBody
		x.done()
	}
	return &x.response
}

// abort ends the exchange before its end.
func (x *exchange) abort() {
	if x.over.CompareAndSwap(false, true) {
		x.conn.Close()
	}
}

// unwatch forgets the context.
func (x *exchange) unwatch() {
	if x.stop != nil {
		x.stop()
	}
}

// done ends the exchange at its end: the connection is good for another one, unless this one was to be the last, more has come than
// belongs to it, or it cannot be looked at.
func (x *exchange) done() {
	x.unwatch()
	if !x.over.CompareAndSwap(false, true) {
		return
	}
	c := x.conn
	if x.reply.Last || x.sort.last || c.start < c.end || !c.keepable() {
		c.Close()
		return
	}
	c.rest()
	x.client.pool.put(c, time.Now())
}

// Read implements io.Reader for the body.
func (x *exchange) Read(p []byte) (n int, err error) {
	switch {
	case x.err != nil:
		return 0, x.err
	case len(p) == 0:
		return 0, nil
	case x.over.Load():
		err = http.ErrBodyReadAfterClose
	case x.reply.Chunked:
		n, err = x.readChunks(p)
	default:
		n, err = x.readPlain(p)
	}
	if err == nil {
		return n, nil
	}
	switch {
	case err == io.EOF:
		x.done()
	case x.ctx.Err() != nil:
		err = context.Cause(x.ctx)
	case x.over.Load():
		err = http.ErrBodyReadAfterClose
	}
	x.err = err
	if err != io.EOF {
		x.abort()
		x.unwatch()
	}
	return n, err
}

// readPlain reads a body of known length, or one up to the end of the connection. Its end comes with its last bytes.
func (x *exchange) readPlain(p []byte) (n int, err error) {
	if x.left >= 0 && int64(len(p)) > x.left {
		p = p[:x.left]
	}
	if unread := x.conn.unread(); len(unread) > 0 {
		n = copy(p, unread)
		x.conn.start += n
	} else if n, err = x.receive(p); err == io.EOF && x.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if x.left > 0 {
		if x.left -= int64(n); x.left == 0 {
			err = io.EOF
		}
	}
	return n, err
}

// receive reads from the connection.
func (x *exchange) receive(p []byte) (int, error) {
	x.heed()
	if err := x.conn.readIn(x.client.Patience, bodyLate, time.Now()); err != nil {
		return 0, err
	}
	return x.conn.Read(p)
}

// readChunks reads a chunked body. What is data is read to where it belongs, once what was read with the head is used up.
func (x *exchange) readChunks(p []byte) (n int, err error) {
	for {
		c := x.conn
		read, filled, end, ok := x.chunks.Data(p[n:], c.unread(), &x.tail)
		c.start, n = c.start+read, n+filled
		switch {
		case !ok:
			x.client.Faults.Add(1)
			return n, errChunks
		case end:
			return n, x.trailers()
		case n > 0:
			return n, nil
		}
		c.start, c.end = 0, 0 // all is used
		if left := x.chunks.Left(); left >= int64(len(p)) {
			n, err = x.receive(p)
			x.chunks.Skip(n)
			return n, early(err)
		}
		m, err := x.receive(c.buf)
		if c.end = m; err != nil && m == 0 {
			return 0, early(err)
		}
	}
}

var errChunks = errors.New("malformed chunks")

func early(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// trailers reads the fields behind the last chunk.
func (x *exchange) trailers() error {
	if x.tail.Len() <= len("\r\n") {
		return io.EOF
	}
	fields, err := http1.ReadTrailers(x.tail.Bytes())
	if err != nil {
		return x.refuse(err)
	}
	if x.response.Trailer == nil {
		x.response.Trailer = http.Header{}
	}
	for name, lines := range fields {
		x.response.Trailer[name] = lines
	}
	return io.EOF
}

// Here says whether all that is left of the body has come, so that to read it waits for nothing.
func (x *exchange) Here() bool { return x.left >= 0 && x.left <= int64(len(x.conn.unread())) }

// Close implements io.Closer for the body.
func (x *exchange) Close() error {
	x.abort()
	x.unwatch()
	return nil
}
