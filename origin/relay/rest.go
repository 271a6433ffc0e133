package relay

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/perigee-net/perigee/cluster/socket"
)

// A flow that was started and is silent rests: what its two goroutines hold is mostly the stacks that grew as they read and wrote, 4 KiB each and more, and a stack shrinks
// to half when a collection finds that less than a quarter of it is in use, 800 bytes that are kept for the runtime among it: one of 4 KiB never does. So each is called out of
// its wait and ends. In its place the system is asked to say when a socket has something (sockets), and for a stream a new goroutine waits, on a stack of 2 KiB, so
// near to its root that it need not grow. What wakes is carried by a goroutine as before.
const (
	// firstLook is when it is looked first whether a flow that has begun, or is awake again, is silent; it rests if nothing has moved between two looks. The time
	// between them doubles, up to lastLook.
	firstLook = 500 * time.Millisecond
	lastLook  = 8 * time.Second
)

// errRests is that a direction waits no more where it was, but is to rest.
var errRests = errors.New("the flow is silent")

// awaited is a conn that can be waited for with little on the stack, as flows over the backbone are. Await returns when a Read or Peek would have something
// to do. It takes nothing.
type awaited interface{ Await() }

// quiet is how far a direction is on its way to rest.
type quiet struct {
	state atomic.Uint32
	tells bool // it can rest
}

const (
	awake   = iota // and at something: a turn is waited for, or its reader
	reads          // it waits for bytes, and for nothing else
	nudged         // it is called out of that wait, by a deadline
	resting        // or about to
	over
)

// reads says that bytes are waited for from now on, and hasRead that they are no more. Only in between it can be called out: who waits for a turn would rest with it
// when it has come, and who waits for its reader is not silent. Where it was called out as bytes came it is so at the wait that follows.
func (q *quiet) reads()   { q.state.CompareAndSwap(awake, reads) }
func (q *quiet) hasRead() { q.state.CompareAndSwap(reads, awake) }

// calledOut says that the next wait for bytes ends at once.
func (q *quiet) calledOut() bool { return q.state.Load() == nudged }

func (q *quiet) ends() { q.state.Store(over) }

// isNudge says of an error of a read that it is no more than the deadline that calls out, and has the direction rest.
func (q *quiet) isNudge(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) && q.state.CompareAndSwap(nudged, resting)
}

// rests says that it need not be called out, or cannot be.
func (q *quiet) rests() bool { return !q.tells || q.state.Load() >= resting }

// mayRest says that a direction that reads from an end can rest: the flow was started, and the end tells when there is something.
func (f *Flow) mayRest(src net.Conn) bool {
	if f.ended == nil || f.spliced {
		return false
	}
	if _, is := src.(peeker); is {
		return true
	}
	_, is := socket.Of(src)
	return is
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// nudge calls those directions out of their wait for bytes that can rest. The lock is held.
func (f *Flow) nudge() {
	for _, from := range [...]End{A, B} {
		if d, src := f.side(from); d.quiet.tells && d.quiet.state.CompareAndSwap(reads, nudged) {
			src.SetReadDeadline(longAgo)
		}
	}
}

// side is the direction that reads from an end, and that end.
func (f *Flow) side(from End) (*direction, net.Conn) {
	if from == A {
		return &f.aToB, f.a
	}
	return &f.bToA, f.b
}

// rest has a direction that was called out wait with little. It goes on with half.
//
//go:noinline
func (f *Flow) rest(from End) {
	_, src := f.side(from)
	src.SetReadDeadline(time.Time{})
	if raw, ok := socket.Of(src); ok && sockets.add(f, from, raw) {
		return
	}
	go f.restOn(from)
}

// restOn waits on the goroutine that it is called on, which is to be new.
func (f *Flow) restOn(from End) {
	f.await(from)
	f.wake(from)
}

// await waits until there is something to be read from an end, or it is over. What it calls is to need little of the stack.
func (f *Flow) await(from End) {
	defer f.recovered()
	d, src := f.side(from)
	if c, is := src.(awaited); is {
		c.Await()
	} else {
		awaitOther(src, d)
	}
}

//go:noinline
func awaitOther(src net.Conn, d *direction) {
	switch c := src.(type) {
	case peeker:
		c.Peek(d.peeked[:])
	case *net.TCPConn:
		if raw, err := c.SyscallConn(); err == nil {
			raw.Read(socket.Came)
		}
	}
}

// wake has a direction that rested be carried again, on the goroutine that it is called on, and looked at soon.
func (f *Flow) wake(from End) {
	d, _ := f.side(from)
	d.quiet.state.Store(awake)
	f.mu.Lock()
	if !f.over {
		f.woke = stamp()
		f.timer.Reset(f.untilLook(f.woke))
	}
	f.mu.Unlock()
	f.half(from)
}

// rouse wakes directions for which the system is asked, as nothing is told of what was closed.
func (f *Flow) rouse() {
	for _, from := range [...]End{A, B} {
		if sockets.remove(f, from) {
			go f.wake(from)
		}
	}
}

// rested is a direction that waits for its socket.
type rested struct {
	flow *Flow
	from End
	raw  syscall.RawConn
}
