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

// bulkConn is a stream that is a connection of its own, with the manners of streamConn.
type bulkConn struct {
	b             *Backbone
	conn          BulkConn
	local, remote net.Addr
	gone          context.Context
	leave         context.CancelFunc
	bytes         atomic.Uint64 // carried, both ways
	ahead         *ahead        // what was read before the first Read; nil: nothing

	mu     sync.Mutex
	left   func() // called once it is closed at this end; may be nil
	ended  bool   // CloseWrite was called
	closed bool
	heard  bool // the other end has ended or is lost
}

var _ duplexConn = (*bulkConn)(nil)

func (b *Backbone) newBulkConn(conn BulkConn, remote net.Addr) *bulkConn {
	c := &bulkConn{b: b, conn: conn, local: Addr(b.config.Self), remote: remote}
	c.gone, c.leave = context.WithCancel(context.Background())
	return c
}

func (c *bulkConn) LocalAddr() net.Addr                { return c.local }
func (c *bulkConn) RemoteAddr() net.Addr               { return c.remote }
func (c *bulkConn) SetDeadline(t time.Time) error      { return c.conn.SetDeadline(t) }
func (c *bulkConn) SetReadDeadline(t time.Time) error  { return c.conn.SetReadDeadline(t) }
func (c *bulkConn) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }

// Gone is done once the other end is found to be lost, or this end has closed.
func (c *bulkConn) Gone() context.Context { return c.gone }

// Read returns io.EOF only where the other end has ended its writing.
func (c *bulkConn) Read(p []byte) (int, error) {
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

// explain gives an error of TCP or TLS its meaning here.
func (c *bulkConn) explain(act string, err error) error {
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	node := c.conn.Peer()
	switch {
	case closed || errors.Is(err, net.ErrClosed):
		return fmt.Errorf("%s flow of %s: %w", act, node, net.ErrClosed)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err
	}
	c.leave()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("%s flow of %s: %w", act, node, ErrReset)
	}
	return fmt.Errorf("%s flow of %s: %w: %v", act, node, ErrDown, err)
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
