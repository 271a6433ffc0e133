package watch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/store"
)

const (
	// openTimeout bounds dialing a source and hearing its first beat.
	openTimeout = 5 * time.Second

	// abreast is how many sources are asked at once.
	abreast = 3

	// stagger is the head start of a better source over the next. An honest one answers in three round trips.
	stagger = 1500 * time.Millisecond

	// secondBest is how long a source that would only do for want of a better one waits for that.
	secondBest = 2 * time.Second

	// atStart is how long CatchUp waits, once one source has answered, for others that may know more.
	atStart = 500 * time.Millisecond

	// patience is how long a source may be behind, or not be fed itself, before another is looked for.
	patience = 3 * time.Second

	// shunned is how long a source that was lost is asked last.
	shunned = 10 * time.Second

	// settled is how long a stream must have lasted for its loss to be met without a pause.
	settled = 10 * time.Second

	// minPause and maxPause bound the pause between two rounds in which no source was found; each is up to half longer or
	// shorter, and about twice the one before.
	minPause = 200 * time.Millisecond
	maxPause = 10 * time.Second

	// reviewEvery is how often a follower that lacks nothing looks whether a better source is there; up to half more or less.
	reviewEvery = time.Minute
)

// FollowerConfig is what a Follower is made of. Its functions must not block, Dial apart.
type FollowerConfig struct {
	Self string // this node
	// Dial connects to the watch service of a node, authenticated, until ctx ends.
	Dial    func(ctx context.Context, name, address string) (net.Conn, error)
	Sources func() []Source     // best first (Order); asked anew at each choice
	State   func() *store.State // what this node has, to resume from; nil: nothing
	// Take takes a state that is newer, or another where the histories have parted. It is called by one goroutine at a time,
	// and what comes meanwhile waits.
	Take   func(*store.State)
	Newest func() uint64 // the highest revision of the spec that any node is known to run; 0: not known
	Log    *slog.Logger  // nil: none
}

// Follower keeps a node at the newest state, from one source at a time.
type Follower struct {
	cfg FollowerConfig
	now atomic.Pointer[following]

	mu     sync.Mutex
	chance *rand.Rand
	shun   map[string]time.Time // sources that were lost, until when they are asked last; those that are over are dropped
	fresh  bool                 // what this node has is not what its source has at that position: ask for all
	alone  bool                 // it was said that nobody answers
	doubt  string               // the source whose state did not come out as it said, the last time

	dialed, unreached, changes, lost, mute, mismatched, nonsense, deltas, snapshots, received atomic.Uint64
}

// following is whom a follower follows.
type following struct {
	source string
	depth  int
}

// NewFollower makes a follower that does nothing yet.
func NewFollower(cfg FollowerConfig) *Follower {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	seed := fnv.New64a()
	seed.Write([]byte(cfg.Self))
	f := &Follower{cfg: cfg, chance: rand.New(rand.NewPCG(seed.Sum64(), 0)), shun: map[string]time.Time{}}
	f.now.Store(&following{depth: MaxDepth})
	return f
}

// Source is the name of the node that is followed; empty: none.
func (f *Follower) Source() string { return f.now.Load().source }

// Depth is how far this node is from a leader, over the nodes between: one more than its source. It is MaxDepth while it
// follows nobody, and until it has all that its source had when they met. It is what the Server's Depth asks for.
func (f *Follower) Depth() int { return f.now.Load().depth }

// Counters counts what happened to the follower.
func (f *Follower) Counters() map[string]uint64 {
	return map[string]uint64{
		"watch_depth":                    uint64(f.Depth()),
		"watch_dials_total":              f.dialed.Load(),
		"watch_dials_failed_total":       f.unreached.Load(),
		"watch_source_changes_total":     f.changes.Load(),
		"watch_source_lost_total":        f.lost.Load(),
		"watch_source_silent_total":      f.mute.Load(),
		"watch_source_mismatches_total":  f.mismatched.Load(),
		"watch_source_nonsense_total":    f.nonsense.Load(),
		"watch_deltas_received_total":    f.deltas.Load(),
		"watch_snapshots_received_total": f.snapshots.Load(),
		"watch_received_bytes_total":     f.received.Load(),
	}
}

// Run follows until ctx ends.
func (f *Follower) Run(ctx context.Context) {
	pause := minPause
	var next *stream
	for ctx.Err() == nil {
		s := next
		if next = nil; s == nil {
			s = f.meet(ctx)
		}
		if s == nil {
			f.wait(ctx, pause)
			pause = min(2*pause, maxPause)
			continue
		}
		began := time.Now()
		var err error
		next, err = f.follow(ctx, s)
		if next != nil || ctx.Err() != nil {
			pause = minPause
			continue
		}
		f.ended(s, err)
		if time.Since(began) >= settled {
			pause = minPause
		}
		f.wait(ctx, pause)
		pause = min(2*pause, maxPause)
	}
	if next != nil {
		next.conn.Close()
	}
}

// CatchUp takes the newest state that can be had at once, for a node that starts: it asks up to three sources at a time, and
// takes from the newest that answers within half a second of the first. It returns when one has answered in full,
// which may be that there is nothing newer; else with an error, when all have failed or ctx has ended. It does
// not ask how deep a source is: in an outage any node may be the one that knows most.
func (f *Follower) CatchUp(ctx context.Context) error {
	err := errors.New("no source is known")
	for rest := f.sources(); len(rest) > 0; {
		s := f.find(ctx, rest, 0, atStart, func(*stream) bool { return false })
		if s == nil {
			err = errors.New("no source answers")
			break
		}
		rest = slices.DeleteFunc(rest, func(r Source) bool { return r == s.source })
		stop := context.AfterFunc(ctx, func() { s.conn.Close() })
		err = f.read(s, true)
		stop()
		s.conn.Close()
		if err == nil {
			return nil
		}
		err = fmt.Errorf("%s: %w", s.source.Name, err)
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return fmt.Errorf("catch up: %w", err)
}

// stream is an open stream of a source that has spoken.
type stream struct {
	source Source
	conn   net.Conn
	frames *frames
	beat   atomic.Pointer[beat] // the last
	busy   atomic.Bool          // a message is under way
}

// open dials a source and hears its first beat.
func (f *Follower) open(ctx context.Context, source Source) (*stream, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	f.dialed.Add(1)
	conn, err := f.cfg.Dial(ctx, source.Name, source.Address)
	if err != nil {
		f.unreached.Add(1)
		return nil, err
	}
	s := &stream{source: source, conn: conn}
	s.frames = newFrames(conn, silence, func(read, _ int) { f.received.Add(uint64(read)) })
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	kind, payload, err := s.frames.read()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil && kind != kindBeat {
		err = nonsense("frame of kind %d for the first beat", kind)
	}
	var b beat
	if err == nil {
		b, err = readBeat(payload)
	}
	if err != nil {
		if errors.Is(err, errNonsense) {
			f.nonsense.Add(1)
		} else {
			f.unreached.Add(1)
		}
		conn.Close()
		return nil, err
	}
	s.beat.Store(&b)
	return s, nil
}

// meet finds a source for a node that follows none: the best that is fed and has at least what this node has; for want of
// it, whoever has most. The very first will do even if it is not fed: it is likely to be about to be, as this
// node is, and if all its region went over the long way meanwhile, that would cost much more than some patience.
func (f *Follower) meet(ctx context.Context) *stream {
	has, sources := f.position(), f.sources()
	s := f.find(ctx, sources, stagger, secondBest, func(s *stream) bool {
		b := s.beat.Load()
		return b.Depth < MaxDepth && b.Position.AtLeast(has) || b.Depth >= MaxDepth && s.source == sources[0]
	})
	f.mu.Lock()
	was := f.alone
	f.alone = s == nil
	f.mu.Unlock()
	if s == nil && !was && ctx.Err() == nil {
		f.cfg.Log.Warn("no source answers: this node goes on with what it has")
	}
	return s
}

// find asks sources until one is as wanted, and returns it. Each has a head start over the next; one that fails passes it
// on. If none is as wanted it returns the newest of those that answered, once all have, or some time after the
// first did; nil: none.
func (f *Follower) find(ctx context.Context, sources []Source, headStart, others time.Duration, wanted func(*stream) bool) *stream {
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan *stream, len(sources)) // nil: it failed
	var best *stream
	pending, rest := 0, sources
	defer func() {
		cancel()
		for range pending {
			if s := <-answers; s != nil {
				s.conn.Close()
			}
		}
	}()
	start, enough := time.NewTimer(0), time.NewTimer(24*time.Hour)
	defer start.Stop()
	defer enough.Stop()
	for len(rest) > 0 || pending > 0 {
		var may <-chan time.Time
		if len(rest) > 0 && pending < abreast {
			may = start.C
		}
		select {
		case <-may:
			source := rest[0]
			rest = rest[1:]
			pending++
			go func() {
				s, err := f.open(ctx, source)
				if err != nil {
					f.cfg.Log.Debug("ask a source", "node", source.Name, "error", err)
				}
				answers <- s
			}()
			start.Reset(headStart)
		case s := <-answers:
			pending--
			start.Reset(0)
			switch {
			case s == nil:
			case wanted(s):
				if best != nil {
					best.conn.Close()
				}
				return s
			case best == nil:
				best = s
				enough.Reset(others)
			case newer(s.beat.Load().Position, best.beat.Load().Position):
				best.conn.Close()
				best = s
			default:
				s.conn.Close()
			}
		case <-enough.C:
			return best
		case <-ctx.Done():
			if best != nil {
				best.conn.Close()
			}
			return nil
		}
	}
	return best
}

// newer says whether a is above b.
func newer(a, b store.Position) bool { return a != b && a.AtLeast(b) }

// follow follows a source until it is lost, or until there is a better one, which it returns.
func (f *Follower) follow(ctx context.Context, s *stream) (*stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()
	better := make(chan *stream, 1)
	go func() {
		better <- f.seek(ctx, s)
		cancel()
	}()
	if old := f.now.Load(); old.source != s.source.Name {
		f.changes.Add(1)
		f.cfg.Log.Info("follow", "source", s.source.Name, "depth", s.beat.Load().Depth)
	}
	err := f.read(s, false)
	f.now.Store(&following{depth: MaxDepth})
	cancel()
	s.conn.Close()
	return <-better, err
}

// ended judges how a stream ended that had no better one to follow it.
func (f *Follower) ended(s *stream, err error) {
	f.lost.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case errors.Is(err, errMismatch):
		f.mismatched.Add(1)
		f.cfg.Log.Warn("the state does not come out as that of the source: ask for all of it", "node", s.source.Name, "error", err)
		if f.doubt != s.source.Name {
			f.doubt = s.source.Name // a snapshot mends it; if not, the fault is there
			return
		}
	case errors.Is(err, errNonsense):
		f.nonsense.Add(1)
		f.cfg.Log.Warn("the source does not speak the protocol", "node", s.source.Name, "error", err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		f.mute.Add(1)
		f.cfg.Log.Info("the source is silent", "node", s.source.Name)
	default:
		f.cfg.Log.Info("the source is lost", "node", s.source.Name, "error", err)
	}
	f.shun[s.source.Name] = time.Now().Add(shunned)
}

var errMismatch = errors.New("states do not agree")

// read takes what a source sends; once: until this node has what the source had at first.
func (f *Follower) read(s *stream, once bool) error {
	had := f.cfg.State()
	level := func() bool { return had != nil && had.Position().AtLeast(s.beat.Load().Position) }
	reached := level()
	if once && reached {
		return nil
	}
	if err := f.greet(s, had); err != nil {
		return err
	}
	for {
		if !once {
			f.show(s, reached)
		}
		kind, payload, err := s.frames.read()
		if err != nil {
			return err
		}
		switch kind {
		case kindBeat:
			b, err := readBeat(payload)
			if err != nil {
				return err
			}
			s.beat.Store(&b)
		case kindSnapshot, kindDelta:
			h, err := readHead(payload)
			if err != nil {
				return err
			}
			s.busy.Store(true)
			next, err := f.message(s, kind, h, had)
			if err != nil {
				return err
			}
			s.busy.Store(false)
			if next != nil {
				had = next
				f.cfg.Take(next)
			}
		default:
			return nonsense("frame of kind %d from a source", kind)
		}
		if err := f.ack(s, had); err != nil {
			return err
		}
		reached = reached || level()
		if once && reached {
			return nil
		}
	}
}

// greet says hello, and where this node is.
func (f *Follower) greet(s *stream, had *store.State) error {
	f.mu.Lock()
	h := hello{Name: f.cfg.Self, Reads: store.Format, Fresh: f.fresh || had == nil}
	f.mu.Unlock()
	if had != nil {
		h.Position, h.SpecSum, h.OwnSum = had.Position(), had.Sum(), had.Own.Sum()
	}
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return s.frames.write(kindHello, b)
}

// ack says where this node is, after each beat and message.
func (f *Follower) ack(s *stream, had *store.State) error {
	var at store.Position
	if had != nil {
		at = had.Position()
	}
	return s.frames.write(kindAck, appendPosition(nil, at))
}

// show makes known whom this node follows. It feeds others only from when it has what its source has.
func (f *Follower) show(s *stream, reached bool) {
	depth := MaxDepth
	if reached {
		depth = min(s.beat.Load().Depth+1, MaxDepth)
	}
	if now := (following{s.source.Name, depth}); *f.now.Load() != now {
		f.now.Store(&now)
	}
}

// message reads a message and returns the state that it leads to; nil: this node has no need of it.
func (f *Follower) message(s *stream, kind byte, h head, had *store.State) (*store.State, error) {
	last := time.Now()
	limit := int64(maxSnapshot)
	if kind == kindDelta {
		limit = maxDelta
	}
	var broken error
	body := s.frames.parts(limit, func() {
		if time.Since(last) > beatEvery { // a message may take long, and the source wants to hear that this node lives
			last = time.Now()
			broken = f.ack(s, had)
		}
	})
	next, err := f.decode(body, kind, h, had)
	if err == nil {
		err = body.drain()
	}
	switch {
	case err != nil:
		return nil, err
	case broken != nil:
		return nil, broken
	}
	f.mu.Lock()
	f.fresh = false
	f.mu.Unlock()
	return next, nil
}

func (f *Follower) decode(body io.Reader, kind byte, h head, had *store.State) (*store.State, error) {
	if kind == kindSnapshot {
		f.snapshots.Add(1)
		s, err := store.ReadState(body)
		switch {
		case err != nil:
			return nil, fmt.Errorf("read a snapshot: %w", err)
		case !h.sameAs(s):
			return nil, nonsense("snapshot has another sum than its head")
		case had == nil || !had.Position().AtLeast(h.Position) || had.Position() == h.Position && !h.sameAs(had):
			return s, nil
		default:
			return nil, nil
		}
	}
	f.deltas.Add(1)
	b, err := io.ReadAll(body)
	if err != nil {
		return nil, fmt.Errorf("read a delta: %w", err)
	}
	if had == nil {
		return nil, nonsense("delta for a node that has nothing")
	}
	d, err := store.DecodeDelta(b)
	if err != nil {
		return nil, nonsense("delta: %w", err)
	}
	if had.Position().AtLeast(d.To) {
		return nil, nil
	}
	next, err := had.WithDelta(d)
	if err == nil && !h.sameAs(next) {
		err = errors.New("delta leads elsewhere than its head says")
	}
	if err != nil {
		f.mu.Lock()
		f.fresh = true
		f.mu.Unlock()
		return nil, fmt.Errorf("%w: %w", errMismatch, err)
	}
	return next, nil
}

// seek looks for a better source than the one that is followed, and returns it; nil when ctx ends. It looks when the source
// is not fed or is behind what others run, after some patience; and now and then for one that is better placed.
// The old source is kept until there is another: even one that is cut off may be the first to come back.
func (f *Follower) seek(ctx context.Context, s *stream) *stream {
	review := time.Now().Add(f.jittered(reviewEvery))
	var again time.Time // when to look, while something is amiss; zero: nothing is
	var goal uint64     // the revision that this node should have come to since; the newest moves on in a flood of changes
	pause := patience / 2
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, has := time.Now(), f.position()
		sources := f.sources()
		at := slices.IndexFunc(sources, func(o Source) bool { return o == s.source })
		deep := s.beat.Load().Depth >= MaxDepth
		wanted := func(o *stream) bool {
			b := o.beat.Load()
			return newer(b.Position, f.position()) || deep && b.Depth < MaxDepth
		}
		if goal <= has.Spec {
			goal = max(f.cfg.Newest(), s.beat.Load().Position.Spec)
			if !deep {
				again = time.Time{}
			}
		}
		behind := !s.busy.Load() && goal > has.Spec
		switch {
		case !deep && !behind && now.Before(review):
			again, pause = time.Time{}, patience/2
			continue
		case !deep && !behind:
			review = now.Add(f.jittered(reviewEvery))
			if at >= 0 {
				sources = sources[:at]
			}
			wanted = func(o *stream) bool {
				b := o.beat.Load()
				return b.Depth < MaxDepth && b.Position.AtLeast(has)
			}
		case again.IsZero():
			again = now.Add(patience)
			continue
		case now.Before(again):
			continue
		default:
			pause = min(2*pause, maxPause)
			again = now.Add(f.jittered(pause))
			sources = slices.DeleteFunc(sources, func(o Source) bool { return o == s.source })
		}
		found := f.find(ctx, sources, stagger, 24*time.Hour, wanted)
		switch {
		case found == nil:
		case wanted(found):
			return found
		default:
			found.conn.Close()
		}
	}
}

// sources are the sources as they stand now, those last that were lost a moment ago. The caller may change them.
func (f *Follower) sources() []Source {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for name, until := range f.shun {
		if !now.Before(until) {
			delete(f.shun, name)
		}
	}
	var first, last []Source
	for _, s := range f.cfg.Sources() {
		_, shunned := f.shun[s.Name]
		switch {
		case s.Name == f.cfg.Self:
		case shunned:
			last = append(last, s)
		default:
			first = append(first, s)
		}
	}
	return append(first, last...)
}

// position is where this node is.
func (f *Follower) position() store.Position {
	if s := f.cfg.State(); s != nil {
		return s.Position()
	}
	return store.Position{}
}

// wait waits for about a time, or until ctx ends.
func (f *Follower) wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(f.jittered(d)):
	case <-ctx.Done():
	}
}

// jittered is a time between half of d and one and a half of it.
func (f *Follower) jittered(d time.Duration) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return d/2 + time.Duration(f.chance.Int64N(int64(d)))
}
