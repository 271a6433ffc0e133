package loop

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

// side is one end of a flow.
type side int

const (
	client side = iota
	target
)

// sockets are the two ends of a flow, as they are read and written without waiting.
type sockets interface {
	// read reads what is there: errAgain says that nothing is, io.EOF that nothing will be.
	read(from side, b []byte) (int, error)
	// write writes as much as there is room for; more says that the end of it, or of all, follows at once.
	write(to side, b []byte, more bool) (int, error)
	// end tells an end that nothing more comes.
	end(to side) error
}

// errAgain is that there is nothing to be read now. The system tells when there is.
var errAgain = errors.New("nothing is there")

const (
	// roomSize is how many bytes are read at once, into the one buffer that all flows of a loop share.
	roomSize = 64 << 10
	// turns bounds how often one direction is read from before other flows have their turn.
	turns = 4
	// enough is how many bytes of a direction are copied before the flow is worth goroutines of its own, and the kernel's moving its bytes (package relay).
	enough = 128 << 10
)

// rests keeps buffers for what an end had no room for. It is a cache and no state.
var rests = sync.Pool{New: func() any { return new([roomSize]byte) }}

// machine is the two directions of a flow: what is known of the ends, and what is on its way. It waits for nothing, and touches sockets only by what it
// is given; who has it step tells it before what the system said.
type machine struct {
	ends [2]end
	// sent is what was read from each end and the other took. It is read by others.
	sent [2]atomic.Int64
	// stays says that the flow is copied to its end, however much it carries.
	stays bool
}

// end is one end as it is known.
type end struct {
	readable, writable bool // as far as the system has said
	behind             behind
	over               bool // it has ended: nothing more comes from it
	// rest is what is to be written to this end before more is read from the other, in a buffer of the pool; nil: nothing is.
	rest []byte
	held *[roomSize]byte
}

// behind is what the system has said to be behind what can be read of an end, which the number of bytes that come does not tell.
type behind uint8

const (
	nothing  behind = iota
	itsEnd          // has arrived, and so has all before it: once less comes than was asked for, that was all
	anything        // an error, or urgent data within (tcp(7)), so that less may come though there is more
)

// outcome is what a step came to.
type outcome int

const (
	waits  outcome = iota // for the system to tell more
	again                 // it has had its turns, and there may be more
	much                  // it carries more than is worth copying, and nothing of it is on its way here
	whole                 // both directions have ended
	broken                // an end has failed
)

// told takes note of what the system says of an end.
func (m *machine) told(at side, readable, writable bool, then behind) {
	e := &m.ends[at]
	e.readable = e.readable || readable
	e.writable = e.writable || writable
	e.behind = max(e.behind, then)
}

// step carries what can be carried now. Of broken it says which end has failed, and why.
func (m *machine) step(s sockets, room []byte) (what outcome, at side, err error) {
	more := waits
	for _, from := range [...]side{client, target} {
		switch what, at, err = m.carry(s, from, room); what {
		case waits:
		case again:
			more = again
		default:
			return what, at, err
		}
	}
	return more, 0, nil
}

// carry carries what can be carried now of one direction.
func (m *machine) carry(s sockets, from side, room []byte) (outcome, side, error) {
	to := 1 - from
	src, dst, sent := &m.ends[from], &m.ends[to], &m.sent[from]
	for range turns {
		if len(dst.rest) > 0 {
			if !dst.writable {
				return waits, 0, nil
			}
			n, err := s.write(to, dst.rest, false)
			sent.Add(int64(n))
			if err != nil {
				return broken, to, err
			}
			if dst.rest = dst.rest[n:]; len(dst.rest) > 0 {
				dst.writable = false
				return waits, 0, nil
			}
			dst.free()
		}
		if src.over || !src.readable {
			return waits, 0, nil
		}
		if sent.Load() >= enough && !m.stays && len(src.rest) == 0 {
			return much, 0, nil
		}
		n, err := s.read(from, room)
		switch {
		case err == errAgain:
			src.readable = false
			return waits, 0, nil
		case err == io.EOF:
			return m.ended(s, from)
		case err != nil:
			return broken, from, err
		}
		var then error
		switch {
		case n == len(room):
		case src.behind == itsEnd: // which travels with the last bytes
			then = io.EOF
		case src.behind == anything:
			var k int
			k, then = s.read(from, room[n:])
			n += k
		default:
			src.readable = false // what comes from now on the system tells
		}
		w, err := s.write(to, room[:n], then == io.EOF)
		sent.Add(int64(w))
		switch {
		case err != nil:
			return broken, to, err
		case then != nil && then != errAgain && then != io.EOF:
			return broken, from, then
		case w < n: // an end is read again
			dst.writable = false
			dst.held = rests.Get().(*[roomSize]byte)
			dst.rest = dst.held[:copy(dst.held[:], room[w:n])]
		case then == io.EOF:
			return m.ended(s, from)
		case then == errAgain:
			src.readable = false
			return waits, 0, nil
		}
	}
	return again, 0, nil
}

// ended takes note that nothing more comes from an end, whose bytes the other has.
func (m *machine) ended(s sockets, from side) (outcome, side, error) {
	to := 1 - from
	m.ends[from].over = true
	if m.ends[to].over {
		return whole, 0, nil // the kernel tells the other end as both are closed, which is about to be
	}
	if err := s.end(to); err != nil {
		return broken, to, err
	}
	return waits, 0, nil
}

// free gives back what held the rest.
func (e *end) free() {
	if e.held != nil {
		rests.Put(e.held)
	}
	e.rest, e.held = nil, nil
}

// release gives back all that the flow holds, as it ends.
func (m *machine) release() {
	m.ends[client].free()
	m.ends[target].free()
}
