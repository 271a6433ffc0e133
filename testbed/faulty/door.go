package faulty

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// door is a port that can be closed and opened again while its connections stay.
type door struct {
	o       *Origin
	address string
	handle  func(ctx context.Context, l net.Listener) // until the listener is closed
	turned  chan struct{}                             // holds one when refused or over changed
	slots   chan struct{}

	mu       sync.Mutex
	listener net.Listener // nil: closed
	refused  bool
	over     bool
}

func newDoor(o *Origin, address string, handle func(context.Context, net.Listener)) *door {
	return &door{o: o, address: address, handle: handle, turned: make(chan struct{}, 1), slots: make(chan struct{}, maxConns)}
}

// open opens the port, unless it is open, refused or over.
func (d *door) open() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listener != nil || d.refused || d.over {
		return nil
	}
	l, err := d.o.cfg.Listen("tcp", d.address)
	if err != nil {
		return fmt.Errorf("open %s: %w", d.address, err)
	}
	d.listener = l
	// A port that was told to be any must be the same when it opens again.
	if _, port, err := net.SplitHostPort(d.address); err == nil && port == "0" {
		d.address = l.Addr().String()
	}
	return nil
}

// refuse closes the port, or opens it again. Where that fails now, serve goes on trying.
func (d *door) refuse(refused bool) {
	d.turn(func() { d.refused = refused })
	if err := d.open(); err != nil {
		d.o.cfg.Log.Error("open again", "err", err)
	}
}

// shut closes the port for good.
func (d *door) shut() { d.turn(func() { d.over = true }) }

// turn changes the door, closes its listener if there must be none, and wakes serve.
func (d *door) turn(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
	if (d.refused || d.over) && d.listener != nil {
		d.listener.Close()
		d.listener = nil
	}
	select {
	case d.turned <- struct{}{}:
	default:
	}
}

// current is the listener that is open, or nil.
func (d *door) current() net.Listener {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.listener
}

// closed forgets a listener on which nothing is accepted any more.
func (d *door) closed(l net.Listener) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l.Close()
	if d.listener == l {
		d.listener = nil
	}
}

// serve accepts connections whenever the port is open, until the context ends.
func (d *door) serve(ctx context.Context) {
	for ctx.Err() == nil {
		if err := d.open(); err != nil {
			d.o.cfg.Log.Error("open again", "err", err)
			sleep(ctx, again)
			continue
		}
		if l := d.current(); l != nil {
			d.handle(ctx, &gate{Listener: l, d: d})
			d.closed(l)
			continue
		}
		select {
		case <-d.turned:
		case <-ctx.Done():
		}
	}
}

// gate bounds the connections of a door, and resets those that are to be dropped.
type gate struct {
	net.Listener
	d *door
}

func (g *gate) Accept() (net.Conn, error) {
	for {
		conn, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if g.d.o.drops() {
			reset(conn)
			continue
		}
		select {
		case g.d.slots <- struct{}{}:
			return &counted{Conn: conn, free: sync.OnceFunc(func() { <-g.d.slots })}, nil
		default:
			conn.Close()
		}
	}
}

// counted frees its slot when it is closed.
type counted struct {
	net.Conn
	free func()
}

func (c *counted) Close() error {
	c.free()
	return c.Conn.Close()
}

// SetLinger and CloseWrite are the connection's own.
func (c *counted) SetLinger(sec int) error {
	if l, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(sec)
	}
	return errors.ErrUnsupported
}

// CloseWrite ends what is sent.
func (c *counted) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// echoes is the TCP service: it greets with the origin's name and sends back what it is sent, well or as it is told. Its
// flows outlast the listener, which may be closed only for a while.
func (o *Origin) echoes(ctx context.Context, l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		if !o.enter() {
			conn.Close()
			return
		}
		go func() {
			defer o.leave()
			defer conn.Close()
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			o.echo(ctx, conn)
		}()
	}
}

// echo is one flow.
func (o *Origin) echo(ctx context.Context, conn net.Conn) {
	p := o.plan()
	if p.end == Hang {
		io.Copy(io.Discard, conn) // until the other end goes
		return
	}
	if p.end == Reset && p.n == beforeHead {
		reset(conn)
		return
	}
	if !sleep(ctx, p.slowHead) {
		return
	}
	if _, err := io.WriteString(conn, o.cfg.Name+"\n"); err != nil {
		return
	}
	switch p.end {
	case Garbage, Endless:
		trickle(ctx, conn, func() {}, &pattern{}, 1<<16, p.slowBody)
		return
	case Reset:
		slowly(ctx, conn, io.LimitReader(conn, p.n), p.slowBody)
		reset(conn)
		return
	case Cut:
		slowly(ctx, conn, io.LimitReader(conn, p.n), p.slowBody)
		if w, ok := conn.(interface{ CloseWrite() error }); ok {
			w.CloseWrite()
			io.Copy(io.Discard, conn) // to close with bytes unread would be a reset
		}
		return
	}
	slowly(ctx, conn, conn, p.slowBody)
}

// slowly copies, each piece after a time.
func slowly(ctx context.Context, w io.Writer, r io.Reader, after time.Duration) {
	if after == 0 {
		io.Copy(w, r)
		return
	}
	b := make([]byte, 4096)
	for {
		n, err := r.Read(b)
		if !sleep(ctx, after) {
			return
		}
		if _, werr := w.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}
