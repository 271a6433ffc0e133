package cache

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"
)

// How a response came about.
type How int

// The ways.
const (
	Filled    How = iota + 1 // the origin sent it
	Validated                // the origin said that the kept one is still good
	Covered                  // the origin failed, and the kept one stands in (stale-if-error)
)

// Result is the outcome of a fill, for one asker.
type Result struct {
	How How
	// Object has its Body, but for How Filled: then Next reads it.
	Object *Object
	// Size is that of the body, −1 if it is not known yet.
	Size int64
	// Status is what the origin answered, 0 if nothing.
	Status int
	// Stored says that the response is kept, if it arrives whole; else WhyNot is the reason in one word.
	Stored bool
	WhyNot string
	// Shared says that the response is for all who asked meanwhile, kept or not.
	Shared bool
	// Collapsed says that this asker joined another's fill.
	Collapsed bool
	// Own are fields of the response that are for who asked first, and in no Object (private="…", no-cache="…").
	Own http.Header
}

// Ask is one request's part in a fill. Its methods are for one goroutine.
type Ask struct {
	fill   *fill
	ctx    context.Context
	stop   func() bool // that the context wakes it; nil: it has not waited yet
	joined bool
	here   bool // it is to begin the fill itself
	header http.Header
	pos    int64 // how much was read; guarded by fill.mu
	taken  int   // how much of what Next returned last is being written
	piece  *piece
	ended  error // of a body that is this request's alone
}

// piece is how much is read at a time of a body that is not shared.
type piece [32 << 10]byte

// pieces lends what askers need as long as they read such a body.
type pieces struct{ pool sync.Pool }

func (p *pieces) get() *piece {
	if lent, ok := p.pool.Get().(*piece); ok {
		return lent
	}
	return new(piece)
}

// Ask joins the fill of what was not found fresh, or starts it. The fill outlives ctx, which is the asker's. The
// asker must Close what it gets.
func (c *Cache) Ask(ctx context.Context, w Want, found Found) (*Ask, error) {
	if c.askers.Add(1) > maxAskers {
		c.askers.Add(-1)
		c.counts.busy.Add(1)
		return nil, ErrBusy
	}
	a := &Ask{ctx: ctx, header: w.Header}
	if err := c.attach(a, w, found); err != nil {
		c.askers.Add(-1)
		return nil, err
	}
	return a, nil
}

// wait waits until the fill has moved, or the asker's context ends. f.mu is held.
func (a *Ask) wait() {
	if a.stop == nil {
		a.stop = context.AfterFunc(a.ctx, a.fill.wake)
	}
	a.fill.moved.Wait()
}

func (c *Cache) attach(a *Ask, w Want, found Found) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.find(w.Key, w.Policy, w.Header, time.Now(), nil, false) != found {
		return ErrOther // a fill ended since
	}
	if f := c.fills[found.slot]; f != nil && f.want.rank() >= w.rank() && f.join(a) {
		a.joined = true
		c.counts.collapsed.Add(1)
		return nil
	}
	f := c.start(w, found, a)
	if f == nil {
		return ErrBusy
	}
	if a.here = w.Soon != nil; !a.here {
		c.hire(f)
	}
	return nil
}

// Wait waits for the outcome: the response's head at least, or an error: that of the fetch, ErrAlone, ErrOther, or
// the asker's context's.
func (a *Ask) Wait() (Result, error) {
	f := a.fill
	if a.here {
		a.here = false
		f.runHere()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.result.How == 0 && f.err == nil {
		if err := a.ctx.Err(); err != nil {
			return Result{}, err
		}
		a.wait()
	}
	r := f.result
	if r.How == 0 {
		return Result{}, f.err
	}
	r.Shared = f.shared
	if r.Collapsed = a.joined; a.joined {
		r.Own = nil
		if r.WhyNot == unadmitted { // several want it
			r.Stored, r.WhyNot = true, ""
		}
		p := f.want.Policy
		if p.secondary(r.Object.more().vary, a.header) != p.secondary(r.Object.more().vary, f.want.Header) {
			return Result{}, ErrOther
		}
		if !f.shared && (f.alone != nil || !r.keepable() || !p.takesStale(a.header, r.Object, time.Now())) {
			return Result{}, ErrAlone
		}
	}
	return r, nil
}

// keepable says whether the response may be kept, here or by a peer: what may not is not for others than who asked for it.
func (r *Result) keepable() bool {
	lent := r.Object.more().lent
	return r.Stored || r.WhyNot == "peer" && (lent == nil || lent.Kept)
}

// From makes Next go on at a position in a body that is kept, which is not before what it returned last.
func (a *Ask) From(position int64) {
	a.fill.mu.Lock()
	defer a.fill.mu.Unlock()
	a.pos, a.taken = position, 0
}

// Next waits for what comes next of the body, and returns it, io.EOF at its end, or why the rest does not come. What it
// returned before is then done with.
func (a *Ask) Next() ([]byte, error) {
	f := a.fill
	f.mu.Lock()
	if f.alone != nil {
		f.mu.Unlock()
		return a.nextAlone()
	}
	defer f.mu.Unlock()
	a.pos += int64(a.taken)
	a.taken = 0
	if f.full {
		f.moved.Broadcast()
	}
	for {
		if ready := f.base + int64(len(f.body)) - a.pos; ready > 0 {
			a.taken = int(ready)
			return f.body[a.pos-f.base:], nil
		}
		switch {
		case f.err != nil:
			return nil, f.err
		case f.ended:
			return nil, io.EOF
		case a.ctx.Err() != nil:
			return nil, a.ctx.Err()
		}
		a.wait()
	}
}

// Waits says whether Next would have to wait, as far as that is known.
func (a *Ask) Waits() bool {
	f := a.fill
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.alone != nil || f.err == nil && !f.ended && f.base+int64(len(f.body)) <= a.pos+int64(a.taken)
}

func (a *Ask) nextAlone() ([]byte, error) {
	if a.ended != nil {
		return nil, a.ended
	}
	if a.piece == nil {
		a.piece = a.fill.cache.pieces.get()
	}
	n, err := a.fill.alone.Read(a.piece[:])
	if a.ended = err; n == 0 && err != nil {
		return nil, err
	}
	return a.piece[:n], nil
}

// Close ends the asker's part. The fill goes on, unless the response is this asker's alone.
func (a *Ask) Close() {
	f := a.fill
	if a.here { // it has never waited
		a.here = false
		f.cache.hire(f)
	}
	if a.stop != nil {
		a.stop()
	}
	if a.piece != nil {
		f.cache.pieces.pool.Put(a.piece)
		a.piece = nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.asks, a)
	if f.first == a {
		f.first = nil
		if f.alone != nil {
			f.alone.Close()
		}
	}
	f.release()
	f.moved.Broadcast()
	f.cache.askers.Add(-1)
}
