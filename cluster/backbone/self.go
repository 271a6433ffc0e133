package backbone

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// selfBuffer bounds what waits in one direction; at it, Write waits for the reader.
const selfBuffer = 64 << 10

// selfConn is one end of a connection within this process, with the manners of streamConn: buffered, half-closed by
// CloseWrite, and broken by Close without it. (net.Pipe has no buffer, no half-close, and calls every end an end.)
type selfConn struct {
	in, out       *pipe
	local, remote net.Addr
	gone          context.Context
	leave         context.CancelFunc // ends the other end's gone
}

var _ duplexConn = (*selfConn)(nil)

// newSelfConn makes a connection between the addresses a and b and returns its two ends.
func newSelfConn(a, b net.Addr) (*selfConn, *selfConn) {
	there, back := newPipe(), newPipe()
	goneA, leaveB := context.WithCancel(context.Background())
	goneB, leaveA := context.WithCancel(context.Background())
	return &selfConn{in: back, out: there, local: a, remote: b, gone: goneA, leave: leaveA},
		&selfConn{in: there, out: back, local: b, remote: a, gone: goneB, leave: leaveB}
}

// Read waits for bytes. It returns io.EOF only where the other end has ended its writing.
func (c *selfConn) Read(p []byte) (int, error) { return c.in.read(p) }

// Write returns once all of p is buffered, or nobody will read it.
func (c *selfConn) Write(p []byte) (int, error) { return c.out.write(p) }

// CloseWrite ends this direction: the other end reads what was written, then io.EOF.
func (c *selfConn) CloseWrite() error { return c.out.end() }

// Close ends both directions. What was written can still be read; after it the other end reads io.EOF if
// CloseWrite came before, or else ErrReset.
func (c *selfConn) Close() error {
	c.out.cut(false)
	c.in.leave()
	c.leave()
	return nil
}

// Abort ends both directions at once and drops what was not read.
func (c *selfConn) Abort() {
	c.out.cut(true)
	c.in.leave()
	c.leave()
}

// Gone is done once the other end has closed or aborted.
func (c *selfConn) Gone() context.Context { return c.gone }

// LocalAddr is the address of this end.
func (c *selfConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr is the address of the other end.
func (c *selfConn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines.
func (c *selfConn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	c.SetWriteDeadline(t)
	return nil
}

// SetReadDeadline ends reads at t with os.ErrDeadlineExceeded; the zero time lets them wait.
func (c *selfConn) SetReadDeadline(t time.Time) error {
	c.in.set(&c.in.readBy, t)
	return nil
}

// SetWriteDeadline ends writes at t with os.ErrDeadlineExceeded; the zero time lets them wait.
func (c *selfConn) SetWriteDeadline(t time.Time) error {
	c.out.set(&c.out.writeBy, t)
	return nil
}

// pipe is one direction.
type pipe struct {
	mu      sync.Mutex
	changed sync.Cond
	data    bytes.Buffer
	ended   bool // by CloseWrite: io.EOF after the data
	broken  bool // by Close or Abort: ErrReset after the data
	unread  bool // the reader has closed
	readBy  deadline
	writeBy deadline
}

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func newPipe() *pipe {
	p := &pipe{}
	p.changed.L = &p.mu
	return p
}

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.unread:
			return 0, net.ErrClosed
		case p.readBy.passed():
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		case p.data.Len() > 0:
			n, _ := p.data.Read(b)
			p.changed.Broadcast()
			return n, nil
		case p.ended:
			return 0, io.EOF
		case p.broken:
			return 0, ErrReset
		}
		p.changed.Wait()
	}
}

func (p *pipe) write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	written := 0
	for {
		switch {
		case p.ended || p.broken:
			return written, net.ErrClosed
		case p.unread:
			return written, ErrReset
		case p.writeBy.passed():
			return written, os.ErrDeadlineExceeded
		case written == len(b):
			return written, nil
		}
		if room := selfBuffer - p.data.Len(); room > 0 {
			n, _ := p.data.Write(b[written:min(len(b), written+room)])
			written += n
			p.changed.Broadcast()
			continue
		}
		p.changed.Wait()
	}
}

func (p *pipe) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken {
		return net.ErrClosed
	}
	p.ended = true
	p.changed.Broadcast()
	return nil
}

// cut breaks the stream off unless it has ended; with drop, it breaks even so and what was not read is lost.
func (p *pipe) cut(drop bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if drop && (!p.ended || p.data.Len() > 0) {
		p.data.Reset()
		p.ended = false
	}
	p.broken = p.broken || !p.ended
	p.writeBy.stop()
	p.changed.Broadcast()
}

func (p *pipe) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unread = true
	p.data = bytes.Buffer{}
	p.readBy.stop()
	p.changed.Broadcast()
}

func (p *pipe) set(d *deadline, t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.stop()
	d.at = t
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.changed.Broadcast()
		})
	}
	p.changed.Broadcast()
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
}
