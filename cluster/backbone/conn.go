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
	"time"

	"github.com/quic-go/quic-go"
)

// Addr is a node's name as a net.Addr: where the end of a stream is, if it is not a client out in the world.
type Addr string

// Network is "backbone".
func (Addr) Network() string { return "backbone" }

func (a Addr) String() string { return string(a) }

// The codes with which a stream is cancelled.
const (
	streamClosed  quic.StreamErrorCode = 1 // by Close, without an end of the writing
	streamAborted quic.StreamErrorCode = 2
	streamMoved   quic.StreamErrorCode = 3 // nothing was done: it is to be opened on another connection
	streamLost    quic.StreamErrorCode = 4 // the way beyond is lost, or this stream is left for another: nothing is said of the flow
)

// errMoved says that the peer takes no new streams on this connection.
var errMoved = errors.New("moved to another connection")

var (
	// errLost says that a stream was given up by a node in between whose way on was lost, or because another has taken its place.
	errLost = errors.New("left for another stream")
	// errEnded says of a connection that its other end stops, or that one end may not speak to the other any more.
	errEnded = errors.New("the peer has gone")
)

// duplexConn is what both a stream to another node and a connection within this one can do.
type duplexConn interface {
	net.Conn
	CloseWrite() error
	Abort()
	Gone() context.Context
}

// streamConn is a QUIC stream with the manners of a TCP connection.
type streamConn struct {
	*quic.Stream  // the deadline of its reads
	peer          string
	local, remote net.Addr
	left          func()        // called once it is closed at this end; may be nil
	bytes         atomic.Uint64 // carried, both ways
	turns         *turns        // nil: it takes none; set before it is used
	turn          turnTaker
	arrears

	shifted atomic.Bool // its flow goes on by a connection of TCP

	mu     sync.Mutex
	ended  bool // CloseWrite was called
	closed bool
}

// started is what stamp counts from.
var started = time.Now()

// stamp is now, as a time that takes little room: it says something only beside others.
func stamp() time.Duration { return time.Since(started) }

var _ duplexConn = (*streamConn)(nil)

func (c *streamConn) LocalAddr() net.Addr  { return c.local }
func (c *streamConn) RemoteAddr() net.Addr { return c.remote }

// Gone is done once the other end wants no more bytes, the link is lost, or this end has stopped writing.
func (c *streamConn) Gone() context.Context { return c.Stream.Context() }

func (c *streamConn) gone() error { return c.explain("keep", context.Cause(c.Stream.Context())) }

// Read returns io.EOF only where the other end has ended its writing.
func (c *streamConn) Read(p []byte) (int, error) {
	c.waits.Store(true)
	n, err := c.Stream.Read(p)
	c.took(n, err)
	c.bytes.Add(uint64(n))
	if err != nil && err != io.EOF {
		err = c.explain("read", err)
	}
	return n, err
}

// Peek is as Read, and takes nothing.
func (c *streamConn) Peek(p []byte) (int, error) {
	c.waits.Store(true)
	n, err := c.Stream.Peek(p)
	c.took(0, err)
	if err != nil && err != io.EOF {
		err = c.explain("read", err)
	}
	return n, err
}

func (c *streamConn) Write(p []byte) (int, error) {
	n, err := c.inTurns(p)
	c.bytes.Add(uint64(n))
	if err != nil {
		err = c.explain("write", err)
	}
	return n, err
}

// SetWriteDeadline ends writes at t with os.ErrDeadlineExceeded; the zero time lets them wait.
func (c *streamConn) SetWriteDeadline(t time.Time) error {
	err := c.Stream.SetWriteDeadline(t)
	c.turn.hurry(!t.IsZero())
	return err
}

// SetDeadline sets both deadlines.
func (c *streamConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// CloseWrite ends this direction: the other end reads what was written, then io.EOF.
func (c *streamConn) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	if c.ended {
		return nil
	}
	c.ended = true
	if err := c.Stream.Close(); err != nil {
		return fmt.Errorf("end stream to %s: %w", c.peer, ErrReset)
	}
	return nil
}

// Close ends both directions. What was written still arrives; after it the other end reads io.EOF if CloseWrite
// came before, or else ErrReset, so that what is cut short never looks complete.
func (c *streamConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	if !c.ended {
		c.Stream.SetReliableBoundary()
		c.Stream.CancelWrite(streamClosed)
	}
	c.Stream.CancelRead(streamClosed)
	c.leave()
	return nil
}

// Abort ends both directions at once and drops what has not arrived.
func (c *streamConn) Abort() { c.abort(streamAborted) }

// lose is Abort, and says nothing of the flow that was on it.
func (c *streamConn) lose() { c.abort(streamLost) }

// end is CloseWrite and Close.
func (c *streamConn) end() {
	c.CloseWrite()
	c.Close()
}

func (c *streamConn) abort(code quic.StreamErrorCode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Stream.CancelWrite(code)
	c.Stream.CancelRead(code)
	c.leave()
}

// leave takes note that this end is done with the stream. c.mu is held.
func (c *streamConn) leave() {
	if !c.closed && c.left != nil {
		c.left()
	}
	if !c.closed {
		c.of.leave(c)
	}
	c.closed = true
}

// unlist has the stream no longer count as in use.
func (c *streamConn) unlist() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed && c.left != nil {
		c.left()
	}
	c.left = nil
	c.of.leave(c)
}

// explain gives a QUIC error its meaning here. A lost link must not pass for a deadline, though QUIC's idle
// timeout calls itself one (net.Error), so its error is kept as text only.
func (c *streamConn) explain(act string, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if cancelled, ok := errors.AsType[*quic.StreamError](err); ok {
		if cancelled.Remote && cancelled.ErrorCode == streamMoved {
			return fmt.Errorf("%s stream to %s: %w", act, c.peer, errMoved)
		}
		if cancelled.Remote && cancelled.ErrorCode == streamLost {
			return fmt.Errorf("%s stream to %s: %w: %w", act, c.peer, ErrDown, errLost)
		}
		if cancelled.Remote {
			return fmt.Errorf("%s stream to %s: %w", act, c.peer, ErrReset)
		}
		switch c.forsaken.Load() {
		case slowLost:
			return fmt.Errorf("%s stream to %s: %w: %w", act, c.peer, ErrDown, errSlow)
		case slowCut:
			return fmt.Errorf("%s stream to %s: %w", act, c.peer, errSlow)
		}
		return fmt.Errorf("%s stream to %s: %w", act, c.peer, net.ErrClosed)
	}
	if errors.Is(err, quic.ErrStreamClosed) {
		return fmt.Errorf("%s stream to %s: %w", act, c.peer, net.ErrClosed)
	}
	if hasEnded(err) {
		return fmt.Errorf("%s stream to %s: %w: %w: %v", act, c.peer, ErrDown, errEnded, err)
	}
	return fmt.Errorf("%s stream to %s: %w: %v", act, c.peer, ErrDown, err)
}

// hasEnded says of what a connection of QUIC was closed by that its other end stops, or that one end may not speak to the other any more.
func hasEnded(err error) bool {
	end, ok := errors.AsType[*quic.ApplicationError](err)
	return ok && (end.ErrorCode == codeStopping && end.Remote || end.ErrorCode == codeStranger)
}
