package backbone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// lingerTime bounds how long a bulk connection that was closed before its other end had ended waits for that: closed at once it would be
	// reset, and what was written before lost.
	lingerTime = 5 * time.Second

	// aheadBytes is how much is read of a flow before its handler has answered, to hear that the dialler has given up.
	aheadBytes = 4 << 10
)

// BulkConn is a connection to or from a peer, of TCP under mutual TLS, past its handshake (control.Conn).
type BulkConn interface {
	net.Conn
	CloseWrite() error
	// Peer is the name of the node at the other end.
	Peer() string
	// NetConn is what is below TLS.
	NetConn() net.Conn
	// WasCut says after io.EOF that the other end was lost, and did not end.
	WasCut() bool
}

// bulkConn is a stream that is a connection of its own, with the manners of streamConn. But a reset says nothing of whose it is, so where a flow
// is on it that outlives it (lasts), each that is not the end of the bytes is taken for something of the path.
type bulkConn struct {
	b             *Backbone
	conn          BulkConn
	local, remote net.Addr
	life          context.Context
	leave         context.CancelFunc
	bytes         atomic.Uint64 // carried, both ways
	ahead         *ahead        // what was read before the first Read; nil: nothing
	peeked        [1]byte       // the next byte, if isPeeked: by who reads
	isPeeked      bool

	knows bool        // who was dialled takes flows that outlive their connections
	lasts atomic.Bool // the flow that is on it does
	leg   atomic.Bool // this node carries a flow on by it
	acked uint64      // by the other end, when that was looked at last; by who looks
	idles atomic.Bool // it was dialled here, and carries no flow yet

	mu     sync.Mutex
	left   func() // called once it is closed at this end; may be nil
	ended  bool   // CloseWrite was called
	closed bool
	heard  bool  // the other end has ended or is lost
	cut    bool  // this end has given the path up
	why    error // what it was lost by
}

var _ stream = (*bulkConn)(nil)

func (b *Backbone) newBulkConn(conn BulkConn, remote net.Addr) *bulkConn {
	c := &bulkConn{b: b, conn: conn, local: b.self, remote: remote}
	c.life, c.leave = context.WithCancel(context.Background())
	return c
}

func (c *bulkConn) LocalAddr() net.Addr                { return c.local }
func (c *bulkConn) RemoteAddr() net.Addr               { return c.remote }
func (c *bulkConn) SetDeadline(t time.Time) error      { return c.conn.SetDeadline(t) }
func (c *bulkConn) SetReadDeadline(t time.Time) error  { return c.conn.SetReadDeadline(t) }
func (c *bulkConn) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }

// Gone is done once the other end is found to be lost, or this end has closed.
func (c *bulkConn) Gone() context.Context { return c.life }

func (c *bulkConn) gone() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != nil {
		return c.why
	}
	return net.ErrClosed
}

// Read returns io.EOF only where the other end has ended its writing.
func (c *bulkConn) Read(p []byte) (int, error) {
	if !c.isPeeked || len(p) == 0 {
		return c.readOn(p)
	}
	p[0], c.isPeeked = c.peeked[0], false
	if len(p) == 1 {
		return 1, nil
	}
	n, _ := c.readOn(p[1:]) // its error is the next Read's, too
	return 1 + n, nil
}

// Peek waits for a byte, and takes nothing. The Read that follows, of more than that byte, waits for a second one, for TLS does not say whether it has it:
// so it is only for who knows that more is on its way.
func (c *bulkConn) Peek(p []byte) (int, error) {
	if !c.isPeeked {
		if n, err := c.readOn(c.peeked[:]); n == 0 {
			return 0, err
		}
		c.isPeeked = true
	}
	return copy(p, c.peeked[:]), nil
}

// readOn reads what is not peeked.
func (c *bulkConn) readOn(p []byte) (int, error) {
	if c.ahead != nil {
		n, err := c.ahead.read(p)
		if c.ahead.over() {
			c.ahead = nil
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
	return c.read(p)
}

func (c *bulkConn) read(p []byte) (int, error) {
	n, err := c.conn.Read(p)
	c.bytes.Add(uint64(n))
	if err == nil {
		return n, nil
	}
	c.mu.Lock()
	closed := c.closed
	c.heard = c.heard || !errors.Is(err, os.ErrDeadlineExceeded)
	c.mu.Unlock()
	if err == io.EOF && !closed && !c.conn.WasCut() {
		return n, io.EOF
	}
	return n, c.explain("read", err)
}

func (c *bulkConn) Write(p []byte) (int, error) {
	n, err := c.conn.Write(p)
	c.bytes.Add(uint64(n))
	if err != nil {
		err = c.explain("write", err)
	}
	if c.lasts.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
		c.giveUp("TLS cannot go on after half of a record") // the flow goes on by another
	}
	return n, err
}

// CloseWrite ends this direction: the other end reads what was written, then io.EOF. It waits until there is room for the end.
func (c *bulkConn) CloseWrite() error {
	c.mu.Lock()
	switch {
	case c.closed:
		c.mu.Unlock()
		return net.ErrClosed
	case c.ended:
		c.mu.Unlock()
		return nil
	}
	c.ended = true
	c.mu.Unlock()
	if err := c.conn.CloseWrite(); err != nil {
		return c.explain("end", err)
	}
	return nil
}

// Close ends both directions. What was written still arrives; after it the other end reads io.EOF if CloseWrite came before, or else
// ErrReset.
func (c *bulkConn) Close() error {
	if !c.close() {
		return nil
	}
	raw := below(c.conn)
	half, ok := raw.(interface{ CloseWrite() error })
	if !ok || c.hasHeard() {
		c.shut(raw)
		return nil
	}
	if !c.b.start(func() {
		defer c.shut(raw)
		stop := context.AfterFunc(c.b.ctx, func() { raw.Close() })
		defer stop()
		raw.SetReadDeadline(time.Now().Add(lingerTime))
		half.CloseWrite()
		io.Copy(io.Discard, raw)
	}) {
		c.shut(raw)
	}
	return nil
}

// end is CloseWrite and Close, and waits for neither.
func (c *bulkConn) end() {
	end := func(within time.Duration) {
		late := time.AfterFunc(within, c.Abort) // who has no room even for an end
		defer late.Stop()
		c.CloseWrite()
		c.Close()
	}
	if !c.b.start(func() { end(lingerTime) }) {
		end(leaveTime) // the backbone closes, and waits for this
	}
}

// lose is Abort: the other end asks by another stream what that means, if a flow was on it that outlives it.
func (c *bulkConn) lose() { c.Abort() }

// giveUp is Abort because the path is lost, and who is at it is told so.
func (c *bulkConn) giveUp(why string) {
	c.mu.Lock()
	if !c.closed {
		c.cut = true
		c.lost(fmt.Errorf("flow of %s: %w: %s", c.conn.Peer(), ErrDown, why))
	}
	c.mu.Unlock()
	c.Abort()
}

// lost takes note of what it was lost by. mu is held.
func (c *bulkConn) lost(why error) {
	if c.why == nil {
		c.why = why
	}
}

// Abort ends both directions at once and drops what has not arrived.
func (c *bulkConn) Abort() {
	raw := below(c.conn)
	if l, ok := raw.(interface{ SetLinger(int) error }); ok {
		l.SetLinger(0)
	}
	c.close()
	c.shut(raw)
}

// close takes note that this end is done with the stream; false if it was before.
func (c *bulkConn) close() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.closed = true
	c.leave()
	c.b.bulk.forget(c)
	if c.left != nil {
		c.left()
	}
	return true
}

// onLeave has f called once it is closed at this end.
func (c *bulkConn) onLeave(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		f()
		return
	}
	before := c.left
	c.left = func() {
		if before != nil {
			before()
		}
		f()
	}
}

// shut closes what is below TLS first, so that TLS has no goodbye to say: that would be an end where there was none.
func (c *bulkConn) shut(raw net.Conn) {
	raw.Close()
	c.conn.Close()
}

func (c *bulkConn) hasHeard() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heard
}

// below is what the system knows of a connection.
func below(c net.Conn) net.Conn {
	for {
		inner, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = inner.NetConn()
	}
}

// isBroken says that a connection was reset, though nobody is at it.
func isBroken(c net.Conn) bool {
	if b, ok := c.(interface{ Broken() bool }); ok {
		return b.Broken()
	}
	return isReset(c)
}

// silence is for how long nothing was heard of the other end; unanswered says that it was asked since.
func silence(c net.Conn) (since time.Duration, unanswered bool) {
	if s, ok := c.(interface{ Silence() (time.Duration, bool) }); ok {
		return s.Silence()
	}
	return kernelSilence(c)
}

// explain gives an error of TCP or TLS its meaning here.
func (c *bulkConn) explain(act string, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	node := c.conn.Peer()
	switch {
	case c.cut:
		return c.why
	case c.closed || errors.Is(err, net.ErrClosed) && !c.lasts.Load(): // what a flow is on that outlives it, the control port may have closed
		return fmt.Errorf("%s flow of %s: %w", act, node, net.ErrClosed)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err
	}
	reset := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	if reset && !c.lasts.Load() {
		err = fmt.Errorf("%s flow of %s: %w", act, node, ErrReset)
	} else {
		err = fmt.Errorf("%s flow of %s: %w: %v", act, node, ErrDown, err)
	}
	c.lost(err)
	c.leave()
	return err
}

// ahead is what was read before anybody wanted it. It is read and forgotten by one goroutine at a time.
type ahead struct {
	ready chan struct{}
	bytes []byte // by who has seen ready closed, like what follows
	err   error
}

// readAhead reads once, to hear that the other end has gone. What comes is for the first Reads.
func (c *bulkConn) readAhead() {
	a := &ahead{ready: make(chan struct{})}
	if c.b.start(func() {
		defer close(a.ready)
		buf := make([]byte, aheadBytes)
		n, err := c.read(buf)
		if a.bytes = buf[:n]; err != nil && err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) {
			c.leave()
		}
		a.err = err
	}) {
		c.ahead = a
	}
}

// read waits for what is read ahead. An error is told once there are no bytes any more; a deadline that has passed is the next Read's.
func (a *ahead) read(p []byte) (int, error) {
	<-a.ready
	n := copy(p, a.bytes)
	if a.bytes = a.bytes[n:]; n > 0 || len(p) == 0 || len(a.bytes) > 0 {
		return n, nil
	}
	err := a.err
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	a.err = nil
	return 0, err
}

func (a *ahead) over() bool { return len(a.bytes) == 0 && a.err == nil }
