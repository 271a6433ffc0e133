package backbone

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone/lasting"
)

// errAnswered says that what was to be sent before a stream is answered comes too late for that.
var errAnswered = errors.New("it is answered")

// earlyKey is by which a context has an early.
type earlyKey struct{}

// WithEarly is a context for one Dial or DialLasting, which calls begin with each stream that is open and not answered yet, on the goroutine that dials. What is written to w until it
// returns, by one at a time, is the first of what is written to the stream: it travels behind the header, and is read by who accepts it. Where one was not
// listened to and another is opened in its place, begin is called again, and all is to be written again. Bytes that Write has not said to have written are not sent: those are to be written to what is returned. Who is refused,
// or hears nothing, does not know whether any have arrived at who was asked.
//
// It is not called where a flow goes to this node itself, or by a TCP connection of its own: there the question is repeated by QUIC if it is not heard.
func WithEarly(ctx context.Context, begin func(w io.Writer)) context.Context {
	return context.WithValue(ctx, earlyKey{}, &early{begin: begin})
}

func earlyOf(ctx context.Context) *early {
	e, _ := ctx.Value(earlyKey{}).(*early)
	return e
}

// early is who is to write to a stream before it is answered, and that stream. It is for the goroutine that dials. A nil one has nobody write.
type early struct {
	begin func(io.Writer)
	now   *earlyStream // nil: none was opened
}

// take has a stream be the one. A flow that outlives it goes by frames, which who carries it on for another has from him; held counts what flows keep.
func (e *early) take(c *streamConn, p Passage, held *atomic.Int64) {
	if e == nil {
		return
	}
	e.now = &earlyStream{on: c, framed: p.lasts() && p.Opener == "", out: lasting.Out{Held: held}}
	e.now.changed.L = &e.now.mu
}

// open has it be written to.
func (e *early) open() {
	if e != nil {
		e.begin(e.now)
	}
}

// close has it be written to no more, and waits for who writes.
func (e *early) close() {
	if e == nil {
		return
	}
	s := e.now
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.closed = true; s.writing; {
		s.changed.Wait()
	}
}

// drop has nothing be kept of what was written.
func (e *early) drop() {
	if e != nil {
		e.now.out.Drop()
		e.now = nil
	}
}

// give has a flow that goes on with the stream keep what was written.
func (e *early) give(out *lasting.Out) {
	if e != nil && e.now != nil && e.now.framed {
		*out = e.now.out
	}
}

// earlyStream is a stream as it is written to before the answer.
type earlyStream struct {
	on     *streamConn
	framed bool        // what is written goes by frames
	out    lasting.Out // which are these; by who writes, and then by who dials
	heads  lasting.Heads

	mu      sync.Mutex
	changed sync.Cond
	writing bool
	closed  bool
}

// Write implements io.Writer.
func (s *earlyStream) Write(p []byte) (int, error) {
	s.mu.Lock()
	for s.writing {
		s.changed.Wait()
	}
	if s.closed {
		s.mu.Unlock()
		return 0, errAnswered
	}
	s.writing = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.writing = false
		s.changed.Broadcast()
	}()
	if !s.framed {
		return s.on.Write(p)
	}
	return s.frame(p)
}

// frame writes frames. What they have is kept, be it that they were written or not.
func (s *earlyStream) frame(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		n += s.out.Add(p[n:])
		for s.out.Unsent() && err == nil {
			first, second := s.out.Next(0, &s.heads)
			if len(first) > 0 {
				_, err = s.on.Write(first)
			}
			if err == nil && len(second) > 0 {
				_, err = s.on.Write(second)
			}
			s.out.Written()
		}
	}
	return n, err
}

// EarlyReader is a stream before its answer.
type EarlyReader interface {
	io.Reader
	SetReadDeadline(t time.Time) error
}

// Early is for a handler that carries flows on (HandleThrough): it reads what the dialler has sent before the answer, which the stream that is accepted goes on behind. Nothing may be at it
// any more when there is an answer, and no deadline be left. Nil: there is none, or it may not be read so.
func (in *Incoming) Early() EarlyReader {
	if c, is := in.conn.(*streamConn); is && !in.end {
		return c
	}
	return nil
}
