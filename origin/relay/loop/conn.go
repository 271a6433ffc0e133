package loop

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// errHeld is why bytes of a connection are not read or written by others.
var errHeld = errors.New("a loop holds the connection")

// Conn is a connection that a loop holds: one that it accepted, or one to a target. Others know it as a net.Conn, which they close, look at and ask for its
// addresses; its bytes are for Detach, or Carry. Where it was detached, it is the connection that Detach gave.
type Conn struct {
	flow   *Flow
	at     side
	remote netip.AddrPort
	room   bool // the system is to tell when it can be written to; of most it need not, for there is room. It is the loop's alone

	mu      sync.Mutex
	fd      int          // -1: there is none any more. It is changed by the loop only, which reads it without the lock
	tcp     *net.TCPConn // as what it goes on; nil: it is still held
	closing bool         // somebody wants it closed
	reset   bool         // the other end is to see a reset
}

// Remote is the other end's address, in the family that it has on the wire.
func (c *Conn) Remote() netip.AddrPort { return c.remote }

// RemoteAddr is the same.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// LocalAddr is this end's address; nil: it is closed.
func (c *Conn) LocalAddr() (at net.Addr) {
	if tcp := c.detached(); tcp != nil {
		return tcp.LocalAddr()
	}
	c.Control(func(fd uintptr) {
		if local, err := localOf(int(fd)); err == nil {
			at = net.TCPAddrFromAddrPort(local)
		}
	})
	return at
}

// Close has the connection be closed, and its flow be broken off. It does not wait for that.
func (c *Conn) Close() error {
	c.mu.Lock()
	tcp, was := c.tcp, c.closing
	c.closing = true
	c.mu.Unlock()
	switch {
	case tcp != nil:
		return tcp.Close()
	case was:
		return net.ErrClosed
	}
	c.flow.loop.post(c.closed)
	return nil
}

// Abort is Close so that the other end sees a reset.
func (c *Conn) Abort() {
	c.SetLinger(0)
	c.Close()
}

// SetLinger says whether Close is to be a reset: with 0 it is.
func (c *Conn) SetLinger(seconds int) error {
	c.mu.Lock()
	tcp := c.tcp
	c.reset = seconds == 0
	c.mu.Unlock()
	if tcp != nil {
		return tcp.SetLinger(seconds)
	}
	return nil
}

// Control calls f with the socket, which stays open as long as f runs.
func (c *Conn) Control(f func(fd uintptr)) error {
	c.mu.Lock()
	tcp := c.tcp
	if tcp == nil {
		defer c.mu.Unlock()
		if c.fd < 0 {
			return net.ErrClosed
		}
		f(uintptr(c.fd))
		return nil
	}
	c.mu.Unlock()
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(f)
}

// Detach takes the connection from its loop, whose goroutine this must be, and returns it as one of package net. It is for those that are not carried. Where it cannot be
// one, for there is no descriptor left, it is reset; one that somebody closed is closed, and that is net.ErrClosed.
func (c *Conn) Detach() (net.Conn, error) {
	if c.fd < 0 || c.flow.state != held {
		return nil, net.ErrClosed
	}
	c.flow.loop.forget(c)
	c.left()
	c.mu.Lock()
	defer c.mu.Unlock()
	fd := c.fd
	c.fd = -1
	if c.closing {
		closeSocket(fd, c.reset)
		return nil, net.ErrClosed
	}
	tcp, err := become(fd, true)
	if err != nil {
		return nil, err
	}
	c.tcp = tcp
	return tcp, nil
}

// leave has the connection go on as another.
func (c *Conn) leave(tcp *net.TCPConn) {
	l := c.flow.loop
	if l.forget(c) {
		l.poller.remove(c.fd) // to close it does not: there is a copy
	}
	c.left()
	c.mu.Lock()
	fd, closing, reset := c.fd, c.closing, c.reset
	c.fd, c.tcp = -1, tcp
	c.mu.Unlock()
	closeSocket(fd, false)
	if closing { // what was said before holds
		if reset {
			tcp.SetLinger(0)
		}
		tcp.Close()
	}
}

func (c *Conn) detached() *net.TCPConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tcp
}

// closed is what becomes of Close, on the loop.
func (c *Conn) closed() {
	f := c.flow
	switch {
	case c.fd < 0: // it has ended, or was detached, and closed then
	case f.state == carried:
		f.finish(net.ErrClosed, endOf(c.at))
	case f.state == connecting:
		f.calledOff(net.ErrClosed)
		c.shut(false)
	default:
		c.shut(false)
	}
}

// shut closes the socket, on the loop.
func (c *Conn) shut(reset bool) {
	if c.fd < 0 {
		return
	}
	c.flow.loop.forget(c)
	c.left()
	c.mu.Lock()
	defer c.mu.Unlock()
	closeSocket(c.fd, reset || c.reset)
	c.fd = -1
}

// left takes note that the loop holds a client's connection no more.
func (c *Conn) left() {
	if c.at == client {
		c.flow.loop.clients.Add(-1)
	}
}

// Read is of the connection that was detached.
func (c *Conn) Read(b []byte) (int, error) {
	if tcp := c.detached(); tcp != nil {
		return tcp.Read(b)
	}
	return 0, &net.OpError{Op: "read", Net: "tcp", Err: errHeld}
}

// Write is of the connection that was detached.
func (c *Conn) Write(b []byte) (int, error) {
	if tcp := c.detached(); tcp != nil {
		return tcp.Write(b)
	}
	return 0, &net.OpError{Op: "write", Net: "tcp", Err: errHeld}
}

// SetDeadline is of the connection that was detached, as are the other two.
func (c *Conn) SetDeadline(t time.Time) error {
	if tcp := c.detached(); tcp != nil {
		return tcp.SetDeadline(t)
	}
	return os.ErrNoDeadline
}

// SetReadDeadline is as SetDeadline.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if tcp := c.detached(); tcp != nil {
		return tcp.SetReadDeadline(t)
	}
	return os.ErrNoDeadline
}

// SetWriteDeadline is as SetDeadline.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if tcp := c.detached(); tcp != nil {
		return tcp.SetWriteDeadline(t)
	}
	return os.ErrNoDeadline
}
