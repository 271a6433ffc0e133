package front

import (
	"errors"
	"net"
	"sync/atomic"
)

// maxStarters is how many goroutines wait for the next connection of a Flow door. More that are needed at once are made, and end.
const maxStarters = 64

// starters are goroutines that begin to serve connections of Flow doors, one after the other: what is done for that, a dial above all, makes a stack
// grow, which would cost each connection more than all else that it is done for on the way, and be kept by those that are silent.
type starters struct {
	next    chan begun
	over    chan struct{} // closed when they are to end
	waiting atomic.Int64
}

// begun is a connection of a Flow door.
type begun struct {
	all  *held
	conn net.Conn
	flow func(c net.Conn, ended func())
}

// start has a connection be served.
func (f *Front) start(b begun) {
	select {
	case f.starters.next <- b:
	default:
		f.wg.Go(func() { f.startOn(b) })
	}
}

func (f *Front) startOn(b begun) {
	s := &f.starters
	for {
		b.serve()
		b = begun{}
		if s.waiting.Add(1) > maxStarters {
			s.waiting.Add(-1)
			return
		}
		select {
		case b = <-s.next:
			s.waiting.Add(-1)
		case <-s.over:
			s.waiting.Add(-1)
			return
		}
	}
}

// serve begins to, and passes the connection on as it is where it can, as serveConn does.
func (b *begun) serve() {
	all := b.all
	f := all.door.front
	defer func() {
		if v := recover(); v != nil {
			f.panicked(v)
			reset(b.conn) // not an end, which would say that its flow was whole
			all.end()
		}
	}()
	if !f.believes(b.conn) {
		b.flow(b.conn, all.end)
	} else if p := all.door.proxied(b.conn); p.wait() {
		b.flow(p, all.end)
	} else {
		b.conn.Close()
		all.end()
	}
}

// Loop accepts connections, and holds them until it is known who serves them (origin/relay/loop).
type Loop interface {
	// Listen accepts of a listener from now on, and gives each connection to accepted, which must not wait; failed is told why one could not be accepted. End has it
	// accept nothing more, before the listener is closed, and calls done once accepted is called no more; it waits for nothing. Not ok: it is none whose connections can be held so.
	Listen(l net.Listener, accepted func(Held), failed func(error)) (end func(done func()), ok bool)
}

// Held is a connection that a Loop holds. Detach makes it one of package net, on the loop's goroutine; this one goes on as the same. One that was closed before stays
// so, which is net.ErrClosed.
type Held interface {
	net.Conn
	Detach() (net.Conn, error)
}

// arrives begins to serve a connection that a loop has accepted.
func (d *door) arrives(c Held) {
	f, behind := d.front, d.behind.Load()
	if behind.Soon == nil || f.believes(c) {
		if tcp, err := d.detach(c); err == nil && d.admits(tcp) {
			d.begin(tcp)
		}
		return
	}
	if !d.admits(c) {
		return
	}
	all := &held{door: d, conn: c}
	defer func() {
		if v := recover(); v != nil {
			f.panicked(v)
			reset(c)
			all.end()
		}
	}()
	behind.Soon(c, all.end, func() error {
		tcp, err := d.detach(c)
		if err != nil {
			all.end()
		} else if behind := d.behind.Load(); behind.Flow != nil {
			f.start(begun{all, tcp, behind.Flow})
		} else { // it is another's by now
			reset(tcp)
			all.end()
		}
		return err
	})
}

// detach takes a connection from its loop. One that cannot be is reset.
func (d *door) detach(c Held) (net.Conn, error) {
	tcp, err := c.Detach()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		d.front.counters.unaccept.Add(1)
		reset(c)
	}
	return tcp, err
}

// held is the room that a connection of a Flow door has taken.
type held struct {
	door  *door
	conn  net.Conn
	ended atomic.Bool
}

func (h *held) end() {
	if !h.ended.Swap(true) {
		h.door.leave(h.conn)
	}
}
