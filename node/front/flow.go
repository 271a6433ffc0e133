package front

import (
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
	door *door
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
	f, all := b.door.front, &held{door: b.door, conn: b.conn}
	defer func() {
		if v := recover(); v != nil {
			f.panicked(v)
			reset(b.conn) // not an end, which would say that its flow was whole
			all.end()
		}
	}()
	if !f.believes(b.conn) {
		b.flow(b.conn, all.end)
	} else if p := b.door.proxied(b.conn); p.wait() {
		b.flow(p, all.end)
	} else {
		b.conn.Close()
		all.end()
	}
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
