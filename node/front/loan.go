package front

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

// loan is a connection as net/http has it, for one request after another. It gives the bytes of a request and no more, so that
// what follows is still the visit's: what comes meanwhile is kept there. When net/http reads on for the next request, the
// connection goes back, and net/http waits until the visit lends it another. If where a request ends is not sure, or it is said
// to be the last, net/http is told that the client wants the connection closed after it.
type loan struct {
	net.Conn // what HTTP is spoken over
	v        *visit
	done     chan bool // after each request: whether the connection came back

	alone bool        // the request is ambiguous
	last  atomic.Bool // there is no next request on this connection
	heard atomic.Bool // a handler has the request
	spoke atomic.Bool // something was written before that
	idle  atomic.Bool // net/http has answered, and wants the next request
	taken atomic.Bool // the connection is another protocol's

	mu       sync.Mutex
	changed  *sync.Cond
	head     [3][]byte // still to be given
	unread   bool      // none of it was given yet
	left     int64     // bytes of the body still to be given; not of a chunked one
	endless  bool      // all that comes is this request's
	chunks   *http1.Chunks
	deadline time.Time   // for reading
	reading  bool        // from Conn
	slow     bool        // it was counted as that
	waiting  bool        // the connection went back
	rest     *time.Timer // ends that
	closed   bool
}

// loanRest is how long net/http waits for the next request that is lent to it. Then what it holds is let go: the connection does
// well without.
const loanRest = time.Second

var (
	errChunks = errors.New("the body is chunked in a way that readers differ on")
	lastLine  = []byte("Connection: close\r\n")
)

func newLoan(v *visit) *loan {
	l := &loan{Conn: v.conn, v: v, waiting: true, done: make(chan bool, 1)}
	l.changed = sync.NewCond(&l.mu)
	return l
}

// lend gives net/http the request whose head is next on the desk. It fails if net/http does not wait any more.
func (l *loan) lend(head []byte, h http1.Head, alone bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.waiting || l.closed {
		return false
	}
	l.waiting, l.unread = false, true
	l.alone, l.left, l.endless, l.slow = alone, h.Length, !h.Framed, false
	l.heard.Store(false)
	l.spoke.Store(false)
	l.idle.Store(false)
	l.head = [3][]byte{head}
	if alone || !h.Framed {
		l.last.Store(true)
		end := len(head) - 1 // before the empty line
		if end > 0 && head[end-1] == '\r' {
			end--
		}
		l.head = [3][]byte{head[:end], lastLine, head[end:]}
	}
	if h.Framed && h.Chunked {
		l.chunks = new(http1.Chunks)
	}
	l.v.desk.r += len(head)
	l.changed.Broadcast()
	return true
}

// dismiss has net/http let go, if it waits.
func (l *loan) dismiss() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting {
		l.closed = true
		l.changed.Broadcast()
	}
}

// giveBack waits for the next request, as net/http does, and says whether there is one.
func (l *loan) giveBack() bool {
	l.waiting = true
	l.done <- true
	if l.rest == nil {
		l.rest = time.AfterFunc(loanRest, l.dismiss)
	} else {
		l.rest.Reset(loanRest)
	}
	for l.waiting && !l.closed {
		l.changed.Wait()
	}
	l.rest.Stop()
	return !l.waiting
}

// tlsLoan tells net/http of the TLS below it.
type tlsLoan struct{ *loan }

func (l tlsLoan) ConnectionState() tls.ConnectionState { return l.v.tls.ConnectionState() }

func (l *loan) conn() net.Conn {
	if l.v.tls != nil {
		return tlsLoan{l}
	}
	return l
}

// loanOf finds the loan in what net/http hands out.
func loanOf(c net.Conn) *loan {
	if secure, ok := c.(tlsLoan); ok {
		return secure.loan
	}
	return c.(*loan)
}

// Read gives what belongs to the request. Behind its end it waits, as for a client who says nothing more, until net/http does
// not want to know any longer.
func (l *loan) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if l.closed {
			return 0, net.ErrClosed
		}
		for i, h := range l.head {
			if len(h) > 0 {
				n := copy(p, h)
				l.head[i] = h[n:]
				l.unread = false
				return n, nil
			}
		}
		if n, err := l.take(p); n > 0 || err != nil {
			return n, err
		}
		if l.all() || l.chunks == nil && l.left > 0 { // it goes where it belongs at once
			if !l.all() {
				p = p[:min(int64(len(p)), l.left)]
			}
			n, err := l.from(p)
			l.left -= int64(n)
			return n, err
		}
		if l.idle.Load() {
			if !l.giveBack() {
				return 0, io.EOF
			}
		} else if err := l.more(); err != nil {
			return 0, err
		}
	}
}

// awaits says whether there is more of the request to come.
func (l *loan) awaits() bool { return l.all() || l.chunks != nil || l.left > 0 }

// all says whether everything that comes is for who has the loan.
func (l *loan) all() bool { return l.endless || l.taken.Load() }

// take moves what is there of the request to p.
func (l *loan) take(p []byte) (int, error) {
	d := l.v.desk
	b := d.unread()
	if len(b) == 0 {
		return 0, nil
	}
	b = b[:min(len(b), len(p))]
	switch {
	case l.all():
	case l.chunks != nil:
		n, end, ok := l.chunks.Next(b)
		if !ok && n == 0 {
			l.last.Store(true)
			l.v.door.front.counters.badChunks.Add(1)
			return 0, errChunks
		}
		if b = b[:n]; end {
			l.chunks, l.left = nil, 0
		}
	default:
		b = b[:min(int64(len(b)), l.left)]
		l.left -= int64(len(b))
	}
	d.r += copy(p, b)
	return len(b), nil
}

// more reads from the client, to the desk. Behind the request's end no more is read than there is room for.
func (l *loan) more() error {
	d := l.v.desk
	if d.r == d.w {
		d.r, d.w = 0, 0
	}
	for d.w == len(d.buf) && !d.compact() {
		if l.closed {
			return net.ErrClosed
		}
		if !l.deadline.IsZero() && !l.deadline.After(time.Now()) {
			return os.ErrDeadlineExceeded
		}
		l.changed.Wait()
	}
	n, err := l.from(d.buf[d.w:])
	if d.w += n; n > 0 {
		return nil
	}
	return err
}

// from reads from the client. The lock is not held meanwhile.
func (l *loan) from(p []byte) (int, error) {
	l.reading = true
	l.Conn.SetReadDeadline(l.deadline)
	l.mu.Unlock()
	n, err := l.Conn.Read(p)
	l.mu.Lock()
	l.reading = false
	l.changed.Broadcast()
	if timedOut(err) && l.awaits() && !l.slow {
		l.slow = true
		l.v.door.front.counters.slowRequests.Add(1)
	}
	return n, err
}

// compact makes room at the end of the desk, and says whether there is any.
func (d *desk) compact() bool {
	d.w = copy(d.buf, d.buf[d.r:d.w])
	d.r = 0
	return d.w < len(d.buf)
}

// Write counts what net/http answers by itself as a bad request.
func (l *loan) Write(p []byte) (int, error) {
	if !l.heard.Load() && !l.spoke.Swap(true) {
		l.v.door.front.counters.badRequests.Add(1)
	}
	return l.Conn.Write(p)
}

// SetReadDeadline holds for a Read that waits, too.
func (l *loan) SetReadDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = t
	l.changed.Broadcast()
	if l.reading {
		return l.Conn.SetReadDeadline(t)
	}
	return nil
}

// SetDeadline sets both deadlines.
func (l *loan) SetDeadline(t time.Time) error {
	return errors.Join(l.SetReadDeadline(t), l.SetWriteDeadline(t))
}

// CloseWrite ends one direction.
func (l *loan) CloseWrite() error { return closeWrite(l.Conn) }

// Close closes the connection, unless it went back. When connections that are idle are closed, net/http has not heard yet that this
// one is not, if none of its next request was read: that is then the last one, as for all others.
func (l *loan) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.unread {
		return nil
	}
	l.closed = true
	l.changed.Broadcast()
	if l.waiting {
		return nil
	}
	err := l.Conn.Close()
	for l.reading { // to the desk, which is given away next
		l.changed.Wait()
	}
	l.done <- false
	return err
}

// loanChanged hears what net/http does with a loan.
func loanChanged(c net.Conn, s http.ConnState) {
	l := loanOf(c)
	switch {
	case s == http.StateIdle && l.last.Load(): // net/http may have bytes that it would look for another request in
		l.Close()
	case s == http.StateIdle:
		l.idle.Store(true)
	case s == http.StateHijacked:
		l.taken.Store(true)
	}
}
