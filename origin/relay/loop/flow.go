package loop

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/origin/relay"
)

// looks is how many times in an idle time a flow is looked at. When it moved last is known by the next look, and its time is up by another, so one is cut off at most two eighths later.
const looks = 8

// state is how far a flow has come. It is the loop's alone.
type state uint8

const (
	held       state = iota // its client was accepted
	connecting              // its target is being connected
	connected               // and has taken it
	carried                 // bytes are
	gone                    // it has ended, or goes on elsewhere
)

// Flow is a client's connection, the target's, and the bytes between them. It is as a relay.Flow for who starts it.
type Flow struct {
	// Last is called once, just before both ends are closed, for who wants to look at them; nil: nobody. It is to be set before Start.
	Last func()
	// Panicked is told of what panics as the flow is carried, which breaks it off without Last; nil: it ends the process. It is to be set before Start.
	Panicked func(value any)

	loop    *loop
	ends    [2]Conn
	machine machine
	state   state
	small   bool // all that the target was sent is one small piece, so that there was nothing to be said of delays
	prompt  bool // the target's socket does not wait for more
	queued  bool // it stands among the loop's ready
	idle    time.Duration
	due     time.Time                   // when connecting is given up
	taken   func(target *Conn, e error) // of Connect
	first   []byte                      // that the target is to be told before it is
	ended   func(relay.Result)          // of Start
	over    atomic.Pointer[relay.Flow]  // as what it goes on
	ending  atomic.Bool                 // somebody wants it broken off

	spoke  spoke
	looked bool      // at least once
	moved  int64     // when it was looked at last
	since  time.Time // nothing has
}

func endOf(at side) relay.End {
	if at == client {
		return relay.A
	}
	return relay.B
}

// Connect begins to connect to the target of the client's flow, on the loop's goroutine, where taken is called too: with the connection once it stands and was told what it is to
// be told first, no more than a kilobyte, or with why not, and then of all this nothing is left. It is called before Connect returns where that is known at once.
func (c *Conn) Connect(to netip.AddrPort, within time.Duration, first []byte, taken func(target *Conn, err error)) {
	f := c.flow
	if c.fd < 0 || f.state != held {
		taken(nil, net.ErrClosed)
		return
	}
	fd, err := connect(to)
	if err != nil {
		taken(nil, err)
		return
	}
	far := &f.ends[target]
	far.remote = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	far.fd = fd
	f.state, f.taken, f.first, f.due = connecting, taken, first, time.Now().Add(within)
	if isConnected(fd) { // as one of this machine is mostly
		f.standsAtOnce()
		return
	}
	far.room = true // which it has once it stands
	if err := f.loop.watch(far); err != nil {
		f.calledOff(err)
		return
	}
	f.loop.connecting = append(f.loop.connecting, f)
}

func (f *Flow) standsAtOnce() {
	defer f.recovered() // as if the system had told of it
	f.machine.told(target, false, true, nothing)
	f.settle(false)
}

// late ends connecting whose time is up, unless it has come to something of which the loop was not told yet: so a loop that was held up blames no target for that.
func (f *Flow) late() {
	if come, hasty := writable(f.ends[target].fd); come {
		f.settle(hasty)
	} else {
		f.calledOff(os.ErrDeadlineExceeded)
	}
}

// settle finds out what has become of connecting; hasty: it may have failed.
func (f *Flow) settle(hasty bool) {
	far := &f.ends[target]
	err := standing(far.fd, far.remote, hasty)
	if err == nil && len(f.first) > 0 {
		err = f.introduce()
	}
	for i := range f.ends { // before it is said to be taken, and counted
		if c := &f.ends[i]; err == nil && !f.loop.watches(c) {
			err = f.loop.watch(c)
		}
	}
	if err != nil {
		f.calledOff(err)
		return
	}
	f.state = connected
	taken := f.taken
	f.taken = nil
	taken(far, nil)
}

// introduce tells the target what it is to be told first, for which there is room.
func (f *Flow) introduce() error {
	n, err := writeSocket(f.ends[target].fd, f.first, false)
	if err == nil && n < len(f.first) {
		err = io.ErrShortWrite
	}
	if err != nil {
		f.ends[target].SetLinger(0) // which has a part of it, it may be
	}
	f.first, f.small = nil, true // the next piece does not wait for this one to be acknowledged
	return err
}

// calledOff ends connecting.
func (f *Flow) calledOff(err error) {
	f.ends[target].shut(false)
	f.state = held
	taken := f.taken
	f.taken, f.first = nil, nil
	taken(nil, err)
}

// Carry has the bytes between a client and the target that took its flow be carried, once that is started. Silence of both directions for idle breaks it off; 0 lets
// it be silent for ever.
func Carry(client, target *Conn, idle time.Duration) *Flow {
	f := client.flow
	f.idle = idle
	return f
}

// Start begins to carry bytes, on the loop's goroutine. What became of the flow is told to ended, which is the last that is done, there or, where it goes
// on elsewhere, on another goroutine.
func (f *Flow) Start(ended func(relay.Result)) {
	f.ended = ended
	if f.state != connected {
		f.ended(relay.Result{Err: net.ErrClosed})
		return
	}
	f.state = carried
	near, far := &f.ends[client], &f.ends[target]
	f.machine.told(client, true, true, nothing) // its first bytes are there, mostly; of the target's the system tells
	if near.fd < 0 || far.fd < 0 {
		f.finish(net.ErrClosed, relay.Unknown)
		return
	}
	if f.idle > 0 {
		f.spoke.flow = f
		f.loop.wheel.add(&f.spoke, f.idle/looks)
	} else {
		keepAlive(far.fd)
	}
	f.loop.queue(f)
}

// Break breaks the flow off, so that both ends see a reset; err is what its result says. It may be called on any goroutine. A flow that has ended stays as it
// ended.
func (f *Flow) Break(err error) {
	if f.ending.Swap(true) {
		return
	}
	f.loop.post(func() {
		if over := f.over.Load(); over != nil {
			over.Break(err)
		} else {
			f.finish(err, relay.Unknown)
		}
	})
}

// Moved is how many bytes each direction has carried so far. It may be called on any goroutine.
func (f *Flow) Moved() (fromClient, fromTarget int64) {
	if over := f.over.Load(); over != nil {
		return over.Moved()
	}
	return f.machine.sent[client].Load(), f.machine.sent[target].Load()
}

// HandedOver says whether the flow goes on, or has ended, by package relay. It may be called on any goroutine.
func (f *Flow) HandedOver() bool { return f.over.Load() != nil }

// told is called when the system says something of an end.
func (f *Flow) told(at side, readable, writable bool, then behind) {
	defer f.recovered()
	switch f.state {
	case connecting:
		if at == target && (writable || then != nothing) {
			f.machine.told(target, readable, writable, then)
			f.settle(then != nothing)
		}
	case carried:
		f.machine.told(at, readable, writable, then)
		f.step()
	}
}

// again is called when the flow has its next turn.
func (f *Flow) again() {
	defer f.recovered()
	if f.state == carried {
		f.step()
	}
}

func (f *Flow) step() {
	what, at, err := f.machine.step(f, f.loop.room)
	switch what {
	case again:
		f.loop.queue(f)
	case much:
		if !f.handOver() {
			f.machine.stays = true // for there are no descriptors, which others need more
			f.loop.queue(f)
		}
	case whole:
		f.finish(nil, relay.Unknown)
	case broken:
		f.finish(err, endOf(at))
	}
}

func (f *Flow) read(from side, b []byte) (int, error) { return readSocket(f.ends[from].fd, b) }

// smallPiece is what no path cuts in two: a first piece that is as small does not wait for anything to be acknowledged, so the kernel is not told that none is to (tcp(7),
// TCP_NODELAY). RFC 9293 3.7.1: 536 bytes are what may be sent where nothing else is known.
const smallPiece = 536

// write writes to an end. The client's socket has it of the one that accepted that nothing waits for more to be sent.
func (f *Flow) write(to side, b []byte, more bool) (n int, err error) {
	fd := f.ends[to].fd
	if to == target && !f.prompt {
		if !f.small && len(b) <= smallPiece {
			f.small = true
		} else {
			f.prompt = true
			noDelay(fd)
		}
	}
	if n, err = writeSocket(fd, b, more); err == nil && n < len(b) {
		err = f.loop.watchRoom(&f.ends[to])
	}
	return n, err
}

func (f *Flow) end(to side) error { return endSocket(f.ends[to].fd) }

// finish ends the flow that is carried: for the first reason there is.
func (f *Flow) finish(err error, broke relay.End) {
	if f.state != carried {
		return
	}
	f.state = gone
	f.loop.wheel.remove(&f.spoke)
	if !f.last() {
		err = relay.ErrPanicked
	}
	for i := range f.ends {
		f.ends[i].shut(err != nil)
	}
	f.machine.release()
	in, out := f.Moved()
	f.tell(relay.Result{AToB: in, BToA: out, Err: err, Broke: broke})
}

func (f *Flow) last() (ok bool) {
	defer f.recovered()
	if f.Last != nil {
		f.Last()
	}
	return true
}

func (f *Flow) tell(r relay.Result) {
	defer f.recovered()
	f.ended(r)
}

// recovered breaks off a flow that panics. It is to be deferred.
func (f *Flow) recovered() {
	panicked := f.Panicked
	if panicked == nil {
		panicked = f.loop.group.config.Panicked
	}
	if panicked == nil {
		return
	}
	v := recover()
	if v == nil {
		return
	}
	panicked(v)
	f.Last = nil
	if f.state == carried {
		f.finish(relay.ErrPanicked, relay.Unknown)
		return
	}
	for i := range f.ends { // where it was not carried yet, nobody waits for its end
		f.ends[i].shut(true)
	}
}

// look looks whether the flow is silent, now and then.
func (f *Flow) look() {
	defer f.recovered()
	now := time.Now()
	moved := f.machine.sent[client].Load() + f.machine.sent[target].Load()
	for i := range f.ends { // what waits here for its reader moves as that takes it
		moved += kernelCount(f.ends[i].fd)
	}
	switch {
	case !f.looked:
		f.looked, f.moved, f.since = true, moved, now
		keepAlive(f.ends[target].fd) // most flows are over before
	case moved != f.moved:
		f.moved, f.since = moved, now
	case now.Sub(f.since) >= f.idle:
		f.finish(relay.ErrIdle, relay.Unknown)
		return
	}
	f.loop.wheel.add(&f.spoke, f.idle/looks)
}

// handOver has the flow go on as package relay has it, by goroutines of its own, for whom the kernel moves the bytes.
func (f *Flow) handOver() bool {
	var as [2]*net.TCPConn
	for i := range f.ends {
		var err error
		if as[i], err = connOf(f.ends[i].fd); err != nil {
			if i > 0 {
				as[0].Close()
			}
			return false
		}
	}
	f.state = gone
	f.loop.wheel.remove(&f.spoke)
	in, out := f.Moved()
	m := &f.machine
	on := relay.Resume(as[client], as[target], f.idle, relay.Carried{AToB: in, BToA: out, AEnded: m.ends[client].over, BEnded: m.ends[target].over})
	on.Last, on.Panicked, on.Turns = f.Last, f.Panicked, f.loop.group.config.Turns
	f.over.Store(on)
	for i := range f.ends {
		f.ends[i].leave(as[i])
	}
	m.release()
	on.Start(f.ended)
	return true
}
