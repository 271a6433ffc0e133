package front

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// writeTimeout is how long a client may take to make room for the next piece; then the connection is closed.
	writeTimeout = 60 * time.Second
	// writePiece is the size of such a piece: a client that reads less than about 1 KB/s is cut off.
	writePiece = 64 << 10
)

// client is a connection to an HTTP door.
type client struct {
	net.Conn
	door   *door
	socket net.Conn     // what was accepted
	holds  atomic.Int64 // one for the open connection, one for each handler that runs
	last   sync.Once    // before the socket is closed
	close  sync.Once
	limit  atomic.Int64 // the write deadline that was asked for, Unix nanoseconds; 0: none
	stands atomic.Int64 // the one that was set by Write; 0: another one
}

// visitor is who a request comes from; no loan: it was not lent.
type visitor struct {
	*client
	loan *loan
}

type visitorKey struct{}

// client makes a connection one to an HTTP door.
func (d *door) client(socket net.Conn) *client {
	c := &client{Conn: socket, door: d, socket: socket}
	if d.front.believes(socket) {
		c.Conn = d.proxied(socket)
	}
	c.holds.Store(1)
	return c
}

// visitorOf finds who is at the other end of what was given to net/http.
func visitorOf(c net.Conn) visitor {
	l := loanOf(c)
	return visitor{l.v.client, l}
}

// hold keeps the connection counted while a handler runs. It fails if the connection is gone.
func (c *client) hold() bool {
	for {
		n := c.holds.Load()
		if n == 0 {
			return false
		}
		if c.holds.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (c *client) release() {
	if c.holds.Add(-1) == 0 {
		c.door.leave(c.socket)
	}
}

// Close gives the connection back, once.
func (c *client) Close() error {
	c.last.Do(func() { c.door.front.seeConn(c.socket) })
	err := c.Conn.Close()
	c.close.Do(c.release)
	return err
}

// CloseWrite ends one direction.
func (c *client) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Write fails where the client takes no piece for writeTimeout.
func (c *client) Write(p []byte) (n int, err error) {
	for {
		piece := p[n:min(n+writePiece, len(p))]
		c.writeIn()
		m, err := c.Conn.Write(piece)
		n += m
		if timedOut(err) {
			c.door.front.counters.slowReaders.Add(1)
		}
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

// writeIn sets the deadline for a piece. It is up to slack later than it should be, so that few are set.
func (c *client) writeIn() {
	deadline := time.Now().Add(writeTimeout)
	if limit := c.limit.Load(); limit != 0 && limit < deadline.UnixNano() {
		c.stands.Store(0)
		c.Conn.SetWriteDeadline(time.Unix(0, limit))
	} else if c.stands.Load() < deadline.UnixNano() {
		deadline = deadline.Add(slack)
		c.stands.Store(deadline.UnixNano())
		c.Conn.SetWriteDeadline(deadline)
	}
}

// SetWriteDeadline is kept beside writeTimeout: whichever is earlier holds.
func (c *client) SetWriteDeadline(t time.Time) error {
	c.stands.Store(0)
	c.limit.Store(0)
	if !t.IsZero() {
		c.limit.Store(t.UnixNano())
	}
	return c.Conn.SetWriteDeadline(t)
}

// SetDeadline sets both deadlines.
func (c *client) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// body is a request's body, each piece of which may take bodyTimeout.
type body struct {
	io.ReadCloser
	control *http.ResponseController
	slow    *atomic.Uint64 // counts it if a piece is late; nil: that is counted elsewhere
	done    atomic.Bool    // read to its end, or to an error
}

func (b *body) Read(p []byte) (int, error) {
	if b.done.Load() {
		return b.ReadCloser.Read(p)
	}
	b.control.SetReadDeadline(time.Now().Add(bodyTimeout))
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.control.SetReadDeadline(time.Time{}) // what is read now is whether the client is still there
	}
	if b.slow != nil && timedOut(err) {
		b.slow.Add(1)
	}
	b.done.Store(err != nil)
	return n, err
}

// leave is called when the handler has returned: net/http reads on, to find the next request behind the body.
func (b *body) leave() {
	if !b.done.Load() {
		b.control.SetReadDeadline(time.Now().Add(restTimeout))
	}
}
