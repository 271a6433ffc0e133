package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// FlowConfig is a load of TCP flows.
type FlowConfig struct {
	Dial     func(ctx context.Context, network, address string) (net.Conn, error)
	Address  string
	Flows    int           // held at once, 1…MaxFlows
	Ramp     time.Duration // over which they are opened; 0: all at once
	Lasts    time.Duration // how long each is held before a new one takes its place; 0: as long as the load
	Rate     float64       // messages a second on each flow; 0: each as soon as the one before is back or, without Echo, written
	Bytes    int           // of a message, 1…MaxBytes
	Echo     bool          // the other end sends all back; else it is to say nothing
	Greeting bool          // the other end begins with a line, by which flows are told apart: Result.By
	For      time.Duration
	Stall    time.Duration // a message that is back after more than this is a stall; 0: 1 s
	GiveUp   time.Duration // a flow on which a dial, a write or a message takes longer is given up; 0: 30 s
}

// Usual lengths.
const (
	usualStall  = time.Second
	usualGiveUp = 30 * time.Second
	// rest is the pause before a new flow takes the place of one that could not be dialled or broke.
	rest = 100 * time.Millisecond
	// window is how many messages of a flow may be on their way.
	window = 1024
	// maxGreeting is the longest first line.
	maxGreeting = 256
)

func (c *FlowConfig) complete() error {
	if c.Stall == 0 {
		c.Stall = usualStall
	}
	if c.GiveUp == 0 {
		c.GiveUp = usualGiveUp
	}
	switch {
	case c.Dial == nil || c.Address == "":
		return errors.New("load: no dial or no address")
	case c.Flows < 1 || c.Flows > MaxFlows:
		return fmt.Errorf("load: flows must be 1–%d, not %d", MaxFlows, c.Flows)
	case c.Bytes < 1 || c.Bytes > MaxBytes:
		return fmt.Errorf("load: bytes must be 1–%d, not %d", MaxBytes, c.Bytes)
	case !(c.Rate >= 0 && c.Rate <= MaxRate):
		return fmt.Errorf("load: rate must be 0–%d a second, not %v", MaxRate, c.Rate)
	case c.For <= 0 || c.For > MaxFor:
		return fmt.Errorf("load: it must last up to %v, not %v", MaxFor, c.For)
	case c.Ramp < 0 || c.Ramp > c.For || c.Lasts < 0 || c.Stall < 0 || c.GiveUp < 0:
		return errors.New("load: a length of time is negative, or the ramp longer than the load")
	}
	return nil
}

// Result is what became of a load of flows.
type Result struct {
	Took time.Duration
	// Flows: those that were opened, and how dials failed.
	Opened int
	Failed map[string]int `json:",omitempty"` // dials: refused, timeout, reset …
	// How flows ended before their time.
	Reset   int            // by a reset
	Closed  int            // by the other end's orderly close
	Lost    int            // given up: nothing came for GiveUp
	Wrong   int            // what came back was not what was sent
	Broken  map[string]int `json:",omitempty"` // otherwise
	By      map[string]int `json:",omitempty"` // flows by their first line
	Sent    int            // messages
	Echoed  int
	Bytes   int64         // of messages sent
	Stalls  int           // times in which messages of a flow took longer than Stall
	Silence time.Duration // the longest time in which no message at all came back, of any flow, from the first moment to the last; only with Echo
	Behind  time.Duration // the latest that a message was sent after it was due: the generator's own fault, or a full window
	Dial    Histogram
	Latency Histogram // of messages that came back
}

func (r *Result) add(o *Result) {
	r.Opened += o.Opened
	r.Reset += o.Reset
	r.Closed += o.Closed
	r.Lost += o.Lost
	r.Wrong += o.Wrong
	r.Sent += o.Sent
	r.Echoed += o.Echoed
	r.Bytes += o.Bytes
	r.Stalls += o.Stalls
	r.Behind = max(r.Behind, o.Behind)
	r.Dial.Merge(&o.Dial)
	r.Latency.Merge(&o.Latency)
	for k, n := range o.Failed {
		r.Failed = count(r.Failed, k, n)
	}
	for k, n := range o.Broken {
		r.Broken = count(r.Broken, k, n)
	}
	for k, n := range o.By {
		r.By = count(r.By, k, n)
	}
}

// String is the result in one line.
func (r *Result) String() string {
	return fmt.Sprintf("opened=%d failed=%v reset=%d closed=%d lost=%d wrong=%d broken=%v sent=%d echoed=%d stalls=%d silence=%v behind=%v latency: %s",
		r.Opened, r.Failed, r.Reset, r.Closed, r.Lost, r.Wrong, r.Broken, r.Sent, r.Echoed, r.Stalls, r.Silence, r.Behind, &r.Latency)
}

// Flows holds flows for a time, or until the context ends, waits at most Stall for what is on its way then, and says what
// became of them. A flow that breaks is followed by another. The error is of the config alone: that nobody answers is a
// result.
func Flows(ctx context.Context, c FlowConfig) (Result, error) {
	if err := c.complete(); err != nil {
		return Result{}, err
	}
	start := time.Now()
	l := &flowLoad{FlowConfig: c}
	l.quiet.last = start
	ctx, cancel := context.WithTimeout(ctx, c.For)
	defer cancel()
	var wg sync.WaitGroup
	for i := range c.Flows {
		wg.Go(func() { l.place(ctx, i) })
	}
	<-ctx.Done()
	took := time.Since(start)
	l.quiet.note(time.Now())
	wg.Wait()
	var sum Result
	for i := range l.tallies {
		sum.add(&l.tallies[i].tally)
	}
	sum.Took = took
	if c.Echo {
		sum.Silence = l.quiet.longest
	}
	return sum, nil
}

type flowLoad struct {
	FlowConfig
	tallies sharded[Result]
	quiet   quiet
}

// quiet measures how long nothing came back from anywhere.
type quiet struct {
	sync.Mutex
	last    time.Time
	longest time.Duration
}

// note notes that something came back.
func (q *quiet) note(now time.Time) {
	q.Lock()
	defer q.Unlock()
	q.longest = max(q.longest, now.Sub(q.last))
	q.last = now
}

// place holds one flow after the other.
func (l *flowLoad) place(ctx context.Context, i int) {
	if !sleep(ctx, l.Ramp*time.Duration(i)/time.Duration(l.Flows)) {
		return
	}
	for ctx.Err() == nil {
		if whole := l.flow(ctx, i); !whole {
			sleep(ctx, rest)
		}
	}
}

// sleep waits, and says whether the time passed before the context ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// flow is one flow while it is held.
type flow struct {
	*flowLoad
	i    int // whose place
	conn net.Conn
	sent chan message  // on their way: put there by write, taken by read
	free chan struct{} // a place for each that may be on its way

	mu         sync.Mutex
	readLimit  time.Time // no deadline is later; zero: any
	writeLimit time.Time
}

// message is one that is on its way.
type message struct {
	n    int
	sent time.Time
}

// broken is what ended a flow before its time.
type broken struct{ error }

// flow dials and holds one flow. whole: it lasted as long as it should.
func (l *flowLoad) flow(ctx context.Context, i int) (whole bool) {
	began := time.Now()
	dialing, cancel := context.WithTimeout(ctx, l.GiveUp)
	conn, err := l.Dial(dialing, "tcp", l.Address)
	cancel()
	if err != nil {
		if ctx.Err() == nil {
			l.tallies.on(i, func(r *Result) { r.Failed = count(r.Failed, plain(err), 1) })
		}
		return false
	}
	defer conn.Close()
	took := time.Since(began)
	l.tallies.on(i, func(r *Result) { r.Opened++; r.Dial.Add(took) })

	holding := ctx
	if l.Lasts > 0 {
		holding, cancel = context.WithTimeout(ctx, l.Lasts)
		defer cancel()
	}
	holding, over := context.WithCancelCause(holding)
	defer over(nil)
	f := &flow{flowLoad: l, i: i, conn: conn, sent: make(chan message, l.window()), free: make(chan struct{}, l.window())}
	stopped := context.AfterFunc(holding, func() { f.wind(holding) })
	defer stopped()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.read(holding); err != nil {
			over(broken{err})
		}
	})
	if err := f.write(holding); err != nil {
		over(broken{err})
	}
	wg.Wait()
	var b broken
	if !errors.As(context.Cause(holding), &b) {
		return true
	}
	l.tallies.on(i, func(r *Result) { r.broke(b.error) })
	return false
}

// window is how many messages may be on their way: without a rate one.
func (l *flowLoad) window() int {
	if l.Rate == 0 {
		return 1
	}
	return window
}

// wind ends a flow whose time is over: what is on its way has Stall to come back. One that broke is closed at once.
func (f *flow) wind(ctx context.Context) {
	var b broken
	if errors.As(context.Cause(ctx), &b) {
		f.conn.Close()
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.writeLimit, f.readLimit = now, now
	if f.Echo {
		f.readLimit = now.Add(f.Stall)
	}
	f.conn.SetWriteDeadline(f.writeLimit)
	f.conn.SetReadDeadline(f.readLimit)
}

// readBy and writeBy set a deadline, or the limit if that is earlier.
func (f *flow) readBy(t time.Time)  { f.by(f.conn.SetReadDeadline, &f.readLimit, t) }
func (f *flow) writeBy(t time.Time) { f.by(f.conn.SetWriteDeadline, &f.writeLimit, t) }

func (f *flow) by(set func(time.Time) error, limit *time.Time, t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !limit.IsZero() && (t.IsZero() || limit.Before(t)) {
		t = *limit
	}
	set(t)
}

// write sends messages as they are due, until the flow's time is over, which is no error.
func (f *flow) write(ctx context.Context) error {
	defer close(f.sent)
	pace := newPace(time.Now(), f.Rate, f.i, f.Flows)
	b := make([]byte, f.Bytes)
	for n := 0; ; n++ {
		if !sleep(ctx, time.Until(pace.due(n))) {
			return nil
		}
		fill(b, f.i, n)
		if f.Echo {
			select {
			case f.free <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
		}
		now := time.Now()
		if f.Echo {
			f.sent <- message{n, now} // there is room: it has a place
		}
		f.writeBy(now.Add(f.GiveUp))
		if _, err := f.conn.Write(b); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		f.tallies.on(f.i, func(r *Result) {
			r.Sent++
			r.Bytes += int64(len(b))
			if f.Rate > 0 {
				r.Behind = max(r.Behind, now.Sub(pace.due(n)))
			}
		})
	}
}

// read takes back what was sent, or without Echo waits for the other end's close. That the flow's time is over is no error.
func (f *flow) read(ctx context.Context) error {
	late := func(err error) error {
		if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		return err
	}
	r := bufio.NewReaderSize(f.conn, max(maxGreeting, min(f.Bytes, 4096)))
	if f.Greeting {
		f.readBy(time.Now().Add(f.GiveUp))
		line, err := r.ReadSlice('\n')
		if err != nil {
			return late(err)
		}
		by := strings.TrimSpace(string(line))
		f.tallies.on(f.i, func(r *Result) { r.By = count(r.By, by, 1) })
	}
	if !f.Echo {
		f.readBy(time.Time{})
		if _, err := io.Copy(io.Discard, r); err != nil {
			return late(err)
		}
		return io.EOF
	}
	got, want := make([]byte, f.Bytes), make([]byte, f.Bytes)
	stalled := false
	for m := range f.sent {
		f.readBy(m.sent.Add(f.GiveUp))
		if _, err := io.ReadFull(r, got); err != nil {
			if !stalled && late(err) != nil && plain(err) == "timeout" {
				f.tallies.on(f.i, func(r *Result) { r.Stalls++ })
			}
			return late(err)
		}
		now := time.Now()
		<-f.free
		if fill(want, f.i, m.n); !bytes.Equal(got, want) {
			return errWrong
		}
		took := now.Sub(m.sent)
		begins := took > f.Stall && !stalled
		stalled = took > f.Stall
		f.quiet.note(now)
		f.tallies.on(f.i, func(r *Result) {
			r.Echoed++
			r.Latency.Add(took)
			if begins {
				r.Stalls++
			}
		})
	}
	return nil
}

var errWrong = errors.New("what came back was not what was sent")

func (r *Result) broke(err error) {
	switch text := plain(err); {
	case errors.Is(err, errWrong):
		r.Wrong++
	case text == "reset":
		r.Reset++
	case text == "closed":
		r.Closed++
	case text == "timeout":
		r.Lost++
	default:
		r.Broken = count(r.Broken, text, 1)
	}
}
