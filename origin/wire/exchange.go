package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sync"
	"sync/atomic"

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

// exchange is one request on one connection, and the body of its response.
type exchange struct {
	client *Client
	conn   *conn
	ctx    context.Context
	q      *http.Request
	stop   func() bool // that the context ends the exchange
	// over: the connection is not this exchange's any more. Who sets it closes or keeps the connection: the reader at the end,
	// Close before it, or the context.
	over atomic.Bool

	answered bool // a byte has come
	unsent   bool // nothing was written
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

// traced tells those whom net/http would tell.
type traced struct{ trace *httptrace.ClientTrace }

func (t traced) Sending(reused bool) {
	if t.trace.GotConn != nil {
		t.trace.GotConn(httptrace.GotConnInfo{Reused: reused})
	}
}

func (t traced) Answered() {
	if t.trace.GotFirstResponseByte != nil {
		t.trace.GotFirstResponseByte()
	}
}

func (t traced) Interim(status int, header http.Header) error {
	return t.trace.Got1xxResponse(status, textproto.MIMEHeader(header))
}

// watchOf is who is told by a context: GotConn, of which Reused alone is set, GotFirstResponseByte and Got1xxResponse are called, and
// those only where the last one is there.
func watchOf(ctx context.Context) Watch {
	if trace := httptrace.ContextClientTrace(ctx); trace != nil && trace.Got1xxResponse != nil {
		return traced{trace}
	}
	return nil
}

// Send asks as RoundTrip does, under this context in the place of the request's: it ends the request, and later the body. Speaks has
// said that it may. What the context traces is not told, but watch is; nil: nobody.
func (c *Client) Send(ctx context.Context, q *http.Request, watch Watch) (*http.Response, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	space := heads.Get().(*[]byte)
	head, err := appendHead((*space)[:0], q)
	defer func() {
		if cap(head) <= maxHeadKept {
			*space = head
			heads.Put(space)
		}
	}()
	if err != nil {
		return nil, err
	}
	to := address(q)
	for again := false; ; {
		var on *conn
		if !again {
			on = c.pool.take(to)
		}
		if on == nil {
			dialled, err := c.Dial(ctx, "tcp", to)
			if ctx.Err() != nil && err != nil {
				return nil, context.Cause(ctx)
			} else if err != nil {
				return nil, err
			}
			on = newConn(dialled, to)
		}
		if watch != nil {
			watch.Sending(on.used)
		}
		x := &exchange{client: c, conn: on, ctx: ctx, q: q}
		response, err := x.run(head, watch)
		switch {
		case err == nil:
			return response, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err == errStale: // the next one that is kept: there are only so many
		case on.used && (x.unsent || !x.answered && !timedOut(err) && repeatable(q)):
			again = true // on a new connection, which is not used
		default:
			return nil, err
		}
	}
}

func timedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// run sends the request and reads the head of its response. If that fails the connection is closed.
func (x *exchange) run(head []byte, watch Watch) (*http.Response, error) {
	if x.ctx.Done() != nil {
		x.stop = context.AfterFunc(x.ctx, x.abort)
	}
	wrote, err := x.conn.ask(head, x.client.HeadTimeout)
	x.unsent = wrote == 0
	if x.answered = x.conn.end > 0; err == nil {
		if watch != nil {
			watch.Answered()
		}
		err = x.head(watch)
	} else if err == io.EOF {
		err = errUnanswered
	}
	if err != nil {
		x.abort()
		x.unwatch()
		return nil, err
	}
	return x.respond(), nil
}

// head reads heads until a final one.
func (x *exchange) head(watch Watch) error {
	bound, from := x.client.MaxHead, 0
	for {
		unread := x.conn.unread()
		n := http1.End(unread, from)
		if n < 0 {
			if from = len(unread); from >= bound {
				return x.refuse(errHeadTooLong)
			}
			if !x.conn.grow(x.client.MaxHead) {
				return x.refuse(errHeadTooLong)
			}
			if err := x.conn.fill(); err == io.EOF {
				return fmt.Errorf("the head of the response: %w", io.ErrUnexpectedEOF)
			} else if err != nil {
				return err
			}
			continue
		}
		if n > bound {
			return x.refuse(errHeadTooLong)
		}
		reply, err := http1.ReadReply(unread[:n])
		if err != nil {
			return x.refuse(err)
		}
		x.conn.start += n
		switch {
		case reply.Code == http.StatusSwitchingProtocols:
			return x.refuse(errProtocol)
		case reply.Code >= 200:
			x.reply = reply
			return nil
		case watch != nil:
			if err := watch.Interim(reply.Code, reply.Header); err != nil {
				return err
			}
		default:
			bound -= n
		}
		from = 0
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
	body := r.HasBody(x.q.Method)
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
	case !body && x.q.Method != http.MethodHead:
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
	if x.reply.Last || x.q.Close || c.start < c.end || !c.keepable() {
		c.Close()
		return
	}
	c.rest()
	x.client.pool.put(c)
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
	if err := x.conn.patience(x.client.Patience); err != nil {
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

// Close implements io.Closer for the body.
func (x *exchange) Close() error {
	x.abort()
	x.unwatch()
	return nil
}
