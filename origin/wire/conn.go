package wire

import (
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/perigee-net/perigee/cluster/socket"
)

// firstBuffer is what a connection reads heads into. A larger one, up to MaxHead, is given up after its response.
const firstBuffer = 4 << 10

// conn is a connection. It is one request's at a time, or the pool's.
type conn struct {
	net.Conn
	address string
	used    bool      // it has carried a request before
	since   time.Time // of the pool: when it was kept
	readBy  time.Time // the deadline for reading that stands; zero: none

	raw     syscall.RawConn // nil: it is no socket
	pending func() bool     // whether a Read would return at once; nil: nobody knows

	buf        []byte
	start, end int // what is read and not used yet

	turn turn
}

// turn is what step does below package net.
type turn struct {
	head    []byte // is written first; nil: that is done
	wrote   int
	keptNow bool // the connection was kept: nothing may have come
	read    int
	err     error
	step    func(uintptr) bool
}

// errStale: a kept connection has ended, or sent what nobody asked for, before the request was written.
var errStale = errors.New("the connection was not idle any more")

func newConn(c net.Conn, address string) *conn {
	k := &conn{Conn: c, address: address, buf: make([]byte, firstBuffer)}
	k.look(c)
	k.turn.step = k.step
	return k
}

// look finds out how the connection can be looked at.
func (c *conn) look(inner net.Conn) {
	for range 4 { // wrapped so often at most
		if p, ok := inner.(interface{ Pending() bool }); ok {
			c.pending = p.Pending
			return
		}
		if raw, ok := socket.Of(inner); ok {
			c.raw = raw
			return
		}
		w, ok := inner.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		inner = w.NetConn()
	}
}

// keepable says whether the connection can be looked at, and so be kept.
func (c *conn) keepable() bool { return c.raw != nil || c.pending != nil }

// readIn has reads fail in so long, or up to late later; a deadline that will do stays, for to set one is a twentieth of what a
// request takes. 0: never.
func (c *conn) readIn(d, late time.Duration, now time.Time) error {
	if d <= 0 {
		if c.readBy.IsZero() {
			return nil
		}
		c.readBy = time.Time{}
		return c.SetReadDeadline(c.readBy)
	}
	if left := c.readBy.Sub(now); left >= d && left <= d+late {
		return nil
	}
	c.readBy = now.Add(d + late)
	return c.SetReadDeadline(c.readBy)
}

// ask writes what is left of a head of which so much was written, and waits for the first bytes of what answers it, by the deadline for
// reading that stands; a write may take so long, 0: for ever. It says how much of the head is written.
func (c *conn) ask(head []byte, written int, patience time.Duration) (wrote int, err error) {
	wrote = written
	switch {
	case wrote > 0:
	case c.raw != nil:
		t := &c.turn
		t.head, t.wrote, t.read, t.err, t.keptNow = head, 0, 0, nil, c.used
		err := c.raw.Read(t.step)
		t.head, wrote = nil, t.wrote
		if err == nil {
			err = t.err
		}
		if err != nil || t.read > 0 {
			c.end += t.read
			return wrote, err
		}
	case c.used && c.pending():
		return 0, errStale
	}
	if wrote < len(head) { // a head that the socket does not take at once
		if patience > 0 {
			c.SetWriteDeadline(time.Now().Add(patience))
			defer c.SetWriteDeadline(time.Time{})
		}
		n, err := c.Write(head[wrote:])
		if wrote += n; err != nil {
			return wrote, err
		}
	}
	return wrote, c.fill()
}

// fill reads more into the buffer, which has room.
func (c *conn) fill() error {
	n, err := c.Read(c.buf[c.end:])
	c.end += n
	if n > 0 {
		return nil // an error comes again
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// step is called with the socket, and again when there may be something to read. To begin with it looks whether anything has come
// that nobody asked for and writes the head; it does not read at once then, for what answers takes its time, and package net has
// forgotten before the look what it knew of bytes to come, so that none can come unnoticed after it.
func (c *conn) step(fd uintptr) bool {
	t := &c.turn
	if t.head != nil {
		early := socket.Came(fd)
		if early && t.keptNow {
			t.err = errStale
			return true
		}
		t.wrote, t.err = socket.Write(fd, t.head)
		if t.err != nil || t.wrote < len(t.head) {
			return true
		}
		t.head = nil
		if !early {
			return false
		}
	}
	n, again, err := socket.Read(fd, c.buf[c.end:])
	if again {
		return false
	}
	t.read, t.err = n, err
	return true
}

// unread is what was read and not used yet.
func (c *conn) unread() []byte { return c.buf[c.start:c.end] }

// grow makes room behind what was read, within a bound on all of it.
func (c *conn) grow(bound int) bool {
	if c.start > 0 {
		c.end = copy(c.buf, c.unread())
		c.start = 0
	}
	if c.end < len(c.buf) {
		return true
	}
	if len(c.buf) >= bound {
		return false
	}
	larger := make([]byte, min(2*len(c.buf), bound))
	copy(larger, c.buf[:c.end])
	c.buf = larger
	return true
}

// rest readies the connection for the pool.
func (c *conn) rest() {
	c.used = true
	c.start, c.end = 0, 0
	if len(c.buf) > firstBuffer {
		c.buf = make([]byte, firstBuffer)
	}
}
