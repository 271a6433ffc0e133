// Package relay carries the bytes of one TCP flow between two ends. It keeps what TCP tells: the end of one direction
// travels and leaves the other open, and a broken end breaks the other, so that nobody takes half an answer
// for a whole one.
//
// It dials nothing, chooses nothing and looks at no byte. Between two TCP sockets on Linux the kernel moves the bytes
// (splice), and they never come up here.
//
// When things break: an error on either end, or silence for the idle time, resets both. What was on its way is
// lost, and both ends know.
package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ErrIdle is the error of a flow that was silent for its idle time.
var ErrIdle = errors.New("no traffic for the idle time")

// looks is how many times in an idle time a flow is looked at, so one is cut off at most an eighth later.
const looks = 8

// A direction reads into smallBuffer bytes as long as little comes, so that quiet flows hold little memory, and
// into largeBuffer bytes from the pool while they come fast.
const (
	smallBuffer = 4 << 10
	largeBuffer = 64 << 10
)

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

// End is one end of a flow.
type End int

// The ends.
const (
	Unknown End = iota
	A
	B
)

// Pipe carries bytes between a and b until both directions have ended, and closes both. The end of a direction travels
// by CloseWrite() error where the conn has it; one without ends whole. Silence of both directions for idle
// breaks the flow off; 0 lets it be silent for ever.
func Pipe(a, b net.Conn, idle time.Duration) Result {
	f := &flow{a: a, b: b}
	f.progress = f.counted
	if counted := kernelProgress(a, b); counted != nil {
		f.progress, f.spliced = counted, true
	}
	if idle > 0 {
		f.watch(max(idle/looks, 1))
	}
	var back sync.WaitGroup
	back.Go(func() { f.carry(a, b, A, B, &f.bToA) })
	f.carry(b, a, B, A, &f.aToB)
	back.Wait()

	broke, err := f.end()
	a.Close()
	b.Close()
	return Result{AToB: f.aToB.written.Load(), BToA: f.bToA.written.Load(), Err: err, Broke: broke}
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

// flow is one Pipe.
type flow struct {
	a, b       net.Conn
	aToB, bToA direction
	spliced    bool
	progress   func() uint64 // changes whenever bytes move

	mu    sync.Mutex
	over  bool
	err   error
	broke End
	timer *time.Timer
}

type direction struct{ read, written atomic.Int64 }

// carry is one direction, to one end from the other.
func (f *flow) carry(dst, src net.Conn, to, from End, d *direction) {
	broke := from
	var err error
	if f.spliced {
		var n int64
		n, err = dst.(*net.TCPConn).ReadFrom(src)
		d.written.Store(n)
		if n > 0 {
			broke = Unknown
		}
	} else {
		var writing bool
		if writing, err = copyAll(dst, src, d); writing {
			broke = to
		}
	}
	if err == nil {
		broke, err = to, closeWrite(dst)
	}
	if err != nil {
		f.fail(err, broke)
	}
}

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// copyAll copies to the end of src. Writing says that an error is that of dst.
func copyAll(dst io.Writer, src io.Reader, d *direction) (writing bool, err error) {
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

// counted is the progress of bytes that come by here.
func (f *flow) counted() uint64 {
	return uint64(f.aToB.read.Load() + f.aToB.written.Load() + f.bToA.read.Load() + f.bToA.written.Load())
}

// watch breaks the flow off after as many looks without progress as are in its idle time. Looks, and not read deadlines,
// because a deadline ends a splice, and says nothing of a direction that waits for its reader.
func (f *flow) watch(every time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	last, quiet := f.progress(), 0
	f.timer = time.AfterFunc(every, func() {
		if now := f.progress(); now != last {
			last, quiet = now, 0
		} else if quiet++; quiet == looks {
			f.fail(ErrIdle, Unknown)
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.over {
			f.timer.Reset(every)
		}
	})
}

// fail breaks the flow off for the first reason there is.
func (f *flow) fail(err error, broke End) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return
	}
	f.over, f.err, f.broke = true, err, broke
	Abort(f.a)
	Abort(f.b)
}

// end closes the books: from here on nothing fails.
func (f *flow) end() (End, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over = true
	if f.timer != nil {
		f.timer.Stop()
	}
	return f.broke, f.err
}
