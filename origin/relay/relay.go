// Package relay carries the bytes of one TCP flow between two ends. It keeps what TCP tells: the end of one direction
// travels and leaves the other open, and a broken end breaks the other, so that nobody takes half an answer
// for a whole one.
//
// It dials nothing, chooses nothing and looks at no byte. Between two TCP sockets on Linux the kernel moves the bytes
// (splice), and they never come up here, but for the first of each direction, which cost less to copy.
//
// When things break: an error on either end, or silence for the idle time, resets both. What was on its way is
// lost, and both ends know.
package relay

import (
	"cmp"
	"errors"
	"io"
	"math"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// ErrIdle is the error of a flow that was silent for its idle time.
var ErrIdle = errors.New("no traffic for the idle time")

// ErrPanicked is the error of a flow that this program was at fault for.
var ErrPanicked = errors.New("a fault of this program")

// looks is how many times in an idle time a flow is looked at, so one is cut off at most an eighth later.
const looks = 8

// A direction holds largeBuffer bytes from the pool from when bytes have come until they are taken, and none while it waits for some. Where
// nothing tells that they have come, it reads into smallBuffer bytes as long as little comes.
const (
	smallBuffer = 4 << 10
	largeBuffer = 64 << 10
)

// copied is how many bytes of a direction are copied before the kernel moves the rest: to move few costs more than to copy them, and while it waits
// for some to move it holds a pipe.
const copied = 128 << 10

// buffers is a cache and no state: nothing depends on what is in it.
var buffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// Result is what became of a flow.
type Result struct {
	// AToB and BToA are the bytes that one end sent and the other took.
	AToB, BToA int64
	// Err is why the flow was broken off: nil if both directions came to their end, ErrIdle, or what an end said.
	Err error
	// Broke is the end that said so, where that is known. Of bytes that the kernel moves it is not, once one has arrived.
	Broke End
}

// Leg is the way between this node and the other end of a TCP connection.
type Leg struct {
	RTT                   time.Duration // smoothed
	Retransmitted         uint64        // segments that were sent again, in the life of the connection
	PacketsIn, PacketsOut uint64        // segments, those without data included
}

// End is one end of a flow.
type End uint8

// The ends.
const (
	Unknown End = iota
	A
	B
)

// Pipe is New and Run in one.
func Pipe(a, b net.Conn, idle time.Duration) Result { return New(a, b, idle).Run() }

// New makes a flow between a and b that Run is to carry. Silence of both directions for idle breaks it off; 0 lets it be silent for ever.
func New(a, b net.Conn, idle time.Duration) *Flow {
	return &Flow{a: a, b: b, idle: idle, spliced: spliced(a, b)}
}

// Carried is what became of a flow so far: the bytes that one end sent and the other took, and which ends have said that nothing more comes from them.
type Carried struct {
	AToB, BToA     int64
	AEnded, BEnded bool
	// Unwritten is what was read from A and is for B yet, behind AToB, and AErr what A said behind that, io.EOF included; nil: it was not heard to say anything.
	Unwritten []byte
	AErr      error
}

// Resume is New for a flow that somebody else has carried so far: of what he read from B nothing is left unwritten, and who has heard of an end was told.
func Resume(a, b net.Conn, idle time.Duration, so Carried) *Flow {
	f := New(a, b, idle)
	for _, one := range [...]struct {
		d     *direction
		bytes int64
		ended bool
	}{{&f.aToB, so.AToB, so.AEnded}, {&f.bToA, so.BToA, so.BEnded}} {
		one.d.read.Store(one.bytes)
		one.d.written.Store(one.bytes)
		if one.d.ended = one.ended; one.ended {
			f.whole.Add(1)
		}
	}
	if len(so.Unwritten) > 0 || so.AErr != nil {
		f.aToB.left = &unwritten{so.Unwritten, so.AErr}
	}
	return f
}

// unwritten is what is left of a direction by who has carried it so far: bytes, and what its sender said behind them.
type unwritten struct {
	bytes []byte
	err   error
}

// write writes that. Not over: there is more to come.
func (u *unwritten) write(dst io.Writer, d *direction) (over, writing bool, err error) {
	d.read.Add(int64(len(u.bytes)))
	if len(u.bytes) > 0 {
		n, err := dst.Write(u.bytes)
		if d.written.Add(int64(n)); err != nil {
			return true, true, err
		}
	}
	if u.err == io.EOF {
		return true, false, nil
	}
	return u.err != nil, false, u.err
}

// Run carries bytes until both directions have ended, and closes both ends. The end of a direction travels by CloseWrite() error where the
// conn has it; one without ends whole. Exactly one of Run and Start is to be called, once.
func (f *Flow) Run() Result {
	f.begin()
	var back sync.WaitGroup
	back.Go(func() { f.carryBToA() })
	f.carryAToB()
	back.Wait()
	return f.close()
}

// Start is Run that does not wait: what became of the flow is told to ended, which is the last that is done. Its two goroutines have small stacks, whatever
// that of the caller has grown to, and where the flow is silent they end, but for who waits for bytes (rest).
func (f *Flow) Start(ended func(Result)) {
	f.ended = ended
	f.begin()
	go f.half(A)
	go f.half(B)
}

// half is one of the two goroutines of a flow that was started: it reads from an end.
func (f *Flow) half(from End) {
	if f.oneWay(from) {
		f.rest(from)
	} else if f.done.Add(1) == 2 {
		f.tellEnded()
	}
}

// What follows is apart from what waits for bytes, for the runtime begins all stacks as large as those that it finds are deep, on average (rest).

//go:noinline
func (f *Flow) tellEnded() {
	r := f.result()
	defer f.recovered()
	f.ended(r)
}

func (f *Flow) oneWay(from End) (rests bool) {
	defer f.recovered()
	if from == A {
		return f.carryAToB()
	}
	return f.carryBToA()
}

func (f *Flow) result() (r Result) {
	defer f.recovered()
	r.Err = ErrPanicked // if it does not come to more
	return f.close()
}

// recovered breaks a flow off that panics on a goroutine of its own, where nobody else recovers. It is to be deferred.
func (f *Flow) recovered() {
	if f.Panicked == nil {
		return
	}
	v := recover()
	if v == nil {
		return
	}
	f.Panicked(v)
	f.mu.Lock()
	f.over, f.err = true, cmp.Or(f.err, ErrPanicked)
	f.mu.Unlock()
	Abort(f.a)
	Abort(f.b)
	f.rouse()
}

func (f *Flow) begin() {
	f.aToB.quiet.tells, f.bToA.quiet.tells = f.mayRest(f.a), f.mayRest(f.b)
	if f.idle == 0 {
		f.kept = true
		keepAlive(f.b)
	}
	if f.idle > 0 || f.aToB.quiet.tells || f.bToA.quiet.tells {
		f.watch()
	}
}

func (f *Flow) close() Result {
	broke, err := f.end()
	f.shut.Store(true)
	f.a.Close()
	f.b.Close()
	return Result{AToB: f.aToB.written.Load(), BToA: f.bToA.written.Load(), Err: err, Broke: broke}
}

func (f *Flow) carryAToB() (rests bool) { return f.carry(f.b, f.a, B, A, &f.aToB) }

func (f *Flow) carryBToA() (rests bool) { return f.carry(f.a, f.b, A, B, &f.bToA) }

// AddrPort is the address of one end of a TCP connection, in the family it has on the wire; of others the zero one.
func AddrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	at := tcp.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())
}

// Abort closes a conn so that the other end sees a reset and not an end: by Abort() if the conn has it, or by
// SetLinger(0) before Close, as *net.TCPConn does. A conn with neither is closed.
func Abort(c net.Conn) {
	switch c := c.(type) {
	case interface{ Abort() }:
		c.Abort()
	case interface{ SetLinger(int) error }:
		c.SetLinger(0)
	}
	c.Close()
}

// Break breaks the flow off, so that both ends see a reset; err is what Run says of it. A flow that has ended stays as it ended.
func (f *Flow) Break(err error) { f.fail(err, Unknown) }

// Moved is how many bytes each direction has carried so far. Of bytes that the kernel moves it is what a has received, and what of those sent to it
// has arrived.
func (f *Flow) Moved() (aToB, bToA int64) {
	aToB, bToA = f.aToB.written.Load(), f.bToA.written.Load()
	if f.spliced && !f.shut.Load() {
		received, acked := kernelCounts(f.a)
		aToB, bToA = max(aToB, received), max(bToA, acked)
	}
	return aToB, bToA
}

// Flow is the bytes between two ends. Its methods may be called at once.
type Flow struct {
	// Last is called once, just before both ends are closed, for who wants to look at them; nil: nobody. It is to be set before Run.
	Last func()
	// Turns are those in which the kernel moves its bytes; nil: it has them whenever it can. They are to be set before Run or Start.
	Turns *Turns
	// Panicked is told of what panics on the flow's own goroutines, which breaks the flow off without Last; nil: it ends the process. It is to be set
	// before Start.
	Panicked func(value any)

	a, b       net.Conn
	idle       time.Duration
	aToB, bToA direction
	ended      func(Result) // of Start
	done       atomic.Int32 // directions that came to their end, or were broken off
	whole      atomic.Int32 // directions that came to their end

	mu      sync.Mutex
	err     error
	timer   *time.Timer   // of look, like what follows; nil: there is none
	seen    uint64        // the progress at the look before
	since   time.Duration // nothing has moved, as far as looks have it and as stamp does
	woke    time.Duration
	broke   End
	shut    atomic.Bool // the ends are closed: the kernel knows nothing of them any more
	spliced bool
	over    bool
	kept    bool // keepAlive was called
}

// There are two of these in a flow, and as many flows as a node carries, so what is small comes together.
type direction struct {
	read, written atomic.Int64
	left          *unwritten // from before the flow was carried here; nil: nothing
	quiet         quiet
	fd            int32   // of sockets, one more than it, and by its lock; 0: it waits for none
	ended         bool    // before the flow was carried here
	peeked        [1]byte // by who waits for bytes
}

// started is what stamp counts from.
var started = time.Now()

// stamp is now, as a time that takes little room: it says something only beside others.
func stamp() time.Duration { return time.Since(started) }

// carry is one direction, to one end from the other. rests: it has not ended, but is to wait for bytes as rest has it.
func (f *Flow) carry(dst, src net.Conn, to, from End, d *direction) (rests bool) {
	if d.ended {
		d.quiet.ends()
		return false
	}
	broke := from
	var err error
	over, writing, more := false, false, false
	if left := d.left; left != nil {
		d.left = nil
		over, writing, err = left.write(dst, d)
	}
	switch {
	case over:
	case f.spliced:
		writing, more, err = copySome(dst, src, d)
	default:
		writing, err = copyAll(dst, src, d)
	}
	if err == errRests {
		return true
	}
	d.quiet.ends()
	if writing {
		broke = to
	}
	if more {
		var n int64
		n, err = move(dst.(*net.TCPConn), src.(*net.TCPConn), f.Turns)
		d.written.Add(n)
		if n > 0 {
			broke = Unknown
		}
	}
	if err == nil && (f.whole.Add(1) < 2 || !f.spliced) { // of the last the kernel tells as both ends are closed, which is about to be
		broke, err = to, closeWrite(dst)
	}
	if err != nil {
		f.fail(err, broke)
	}
	return false
}

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// copyAll copies to the end of src. Writing says that an error is that of dst.
func copyAll(dst io.Writer, src io.Reader, d *direction) (writing bool, err error) {
	if source := patiently(src); source != nil {
		return copyPatiently(dst, source, d, math.MaxInt64)
	}
	return copyImpatiently(dst, src, d)
}

// copyImpatiently is copyAll of what has a buffer all the time.
func copyImpatiently(dst io.Writer, src io.Reader, d *direction) (writing bool, err error) {
	small := make([]byte, smallBuffer)
	buf := small
	var large *[largeBuffer]byte
	defer func() {
		if large != nil {
			buffers.Put(large)
		}
	}()
	for {
		n, readErr := src.Read(buf)
		if n > 0 {
			d.read.Add(int64(n))
			w, err := dst.Write(buf[:n])
			d.written.Add(int64(w))
			if err != nil {
				return true, err
			}
		}
		if readErr == io.EOF {
			return false, nil
		}
		if readErr != nil {
			return false, readErr
		}
		switch {
		case large == nil && n == smallBuffer:
			large = buffers.Get().(*[largeBuffer]byte)
			buf = large[:]
		case large != nil && n < smallBuffer:
			buffers.Put(large)
			large, buf = nil, small
		}
	}
}

// copySome copies what comes between two sockets until it is seen that more is to come than is worth a copy; or to the end, as copyAll does.
func copySome(dst io.Writer, src io.Reader, d *direction) (writing, more bool, err error) {
	source := patiently(src)
	if source == nil {
		return false, true, nil
	}
	writing, err = copyPatiently(dst, source, d, copied)
	if err == errMore {
		return false, true, nil
	}
	return writing, false, err
}

// progress changes whenever bytes move. What is spliced is not counted here before its end, so the kernel is asked.
func (f *Flow) progress() uint64 {
	if f.spliced {
		aReceived, aAcked := kernelCounts(f.a)
		bReceived, bAcked := kernelCounts(f.b)
		return uint64(aReceived + aAcked + bReceived + bAcked)
	}
	return uint64(f.aToB.read.Load() + f.aToB.written.Load() + f.bToA.read.Load() + f.bToA.written.Load())
}

// watch has it looked at whether the flow moves, now and then: it is broken off when it did not in its idle time, and rests before. Looks, and not read deadlines,
// because a deadline ends a splice, and says nothing of a direction that waits for its reader. What had moved at the first look counts as moved just
// then, and what is asked of the kernel is asked from then on only: most flows are over before.
func (f *Flow) watch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.since = stamp()
	f.woke = f.since
	f.timer = time.AfterFunc(f.untilLook(f.since), f.look)
}

// untilLook is how long it is until the next look; 0: there need be none. The lock is held.
func (f *Flow) untilLook(now time.Duration) time.Duration {
	left := max(min(f.idle/looks, f.idle-(now-f.since)), 1)
	if f.aToB.quiet.rests() && f.bToA.quiet.rests() {
		if f.idle == 0 {
			return 0
		}
		return left
	}
	soon := min(max(now-f.woke, firstLook), lastLook)
	if f.idle == 0 {
		return soon
	}
	return min(left, soon)
}

func (f *Flow) look() {
	defer f.recovered()
	if f.looked() {
		f.fail(ErrIdle, Unknown)
	}
}

// looked says whether the flow's idle time is over.
func (f *Flow) looked() (silent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return false
	}
	first := !f.kept
	if first {
		f.kept = true
		keepAlive(f.b)
	}
	now := stamp()
	switch progress := f.progress(); {
	case progress != f.seen || first && f.spliced:
		f.seen, f.since = progress, now
	case f.idle > 0 && now-f.since >= f.idle:
		return true
	case now-f.since >= firstLook:
		f.nudge()
	}
	if left := f.untilLook(now); left > 0 {
		f.timer.Reset(left)
	}
	return false
}

// keepAlive has the kernel ask whether a TCP connection's other end is still there, as package net has it unless it is told not to. Who dials for a flow
// may leave it to this.
func keepAlive(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true})
	}
}

// fail breaks the flow off for the first reason there is.
func (f *Flow) fail(err error, broke End) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return
	}
	f.over, f.err, f.broke = true, err, broke
	f.last()
	Abort(f.a)
	Abort(f.b)
	f.rouse()
}

// end closes the books: from here on nothing fails.
func (f *Flow) end() (End, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.over {
		f.over = true
		f.last()
	}
	if f.timer != nil {
		f.timer.Stop()
	}
	return f.broke, f.err
}

func (f *Flow) last() {
	if f.Last != nil {
		f.Last()
	}
}
