// Package report lets every node say things of itself, by key, and all others soon know: verdicts, which revision it runs, whether
// it leaves, where it is. A value is the newest of its node and key; who reads sees the newest soon, not each one.
//
// It does not know who lives: that is told by SetMembers; what others said is hidden when they are gone. It agrees on nothing, and
// orders nothing between nodes. It keeps nothing on disk: a node that starts says all anew.
//
// Values go over streams of its own, each between two nodes and resumed where it ended: from a node to the heads of its region, from
// those to the heads of the others, from those to their nodes, so that one value costs about two messages per node, however many
// there are. On each stream both ends also say, about once a second, what they know and the other may not; who lacks something
// asks for it. So a value gets around a cut as long as there is any way, only later.
//
// Whoever speaks here is a node of the cluster, and is believed, of other nodes too. That does not hold for this node's own words:
// what is known of it that it did not say in this life (it was said before a restart with a later clock) is superseded by a new life.
// Everything has a bound against nodes that are broken: what goes beyond one is dropped and counted, and what makes no sense ends the
// stream. A peer that is too slow holds up nobody: what it has not been told is a list of nodes, not a queue of messages, and a
// stream that does not move is cut and goes on from what the peer then says it has.
package report

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/latest"
)

// Protocol names the service at the control port (RFC 7301).
const Protocol = "perigee-report/1"

const (
	// maxNodes is how many nodes are known at once, those that went lately included; others are not heard until some are forgotten.
	maxNodes = 10_000
	// maxStrangers bounds the bytes of values of nodes that are not live, of all together. A node that has just begun is told
	// of many before it knows that they live; beyond this it asks again when it does.
	maxStrangers = 64 << 20

	// goneFor is how long what a node said is kept, hidden, after it has gone: it may have been cut off, and come back.
	goneFor = time.Minute
	// sweepEvery is how often what is old is forgotten.
	sweepEvery = 10 * time.Second
	// entriesEvery is the least time between two snapshots; the first after a while of rest is made at once.
	entriesEvery = 50 * time.Millisecond
	// rebirthEvery is the least time between two new lives. Two nodes of one name would supersede each other without end.
	rebirthEvery = 10 * time.Second
)

// ErrClosed is what a closed Reports says.
var ErrClosed = errors.New("reports are closed")

// Entries is the newest value by node and key, of the live nodes that say any. It must not be changed. The map of a node
// is the same in all snapshots while that node says nothing new.
type Entries = map[string]map[string][]byte

// Peer is a live node.
type Peer struct{ Name, Region string }

// Config is what Reports are made of.
type Config struct {
	Self, Region string // of this node; the name has 1–128 bytes
	// Dial opens a stream to the report service of a live node, whose name it has authenticated.
	Dial func(ctx context.Context, node string) (net.Conn, error)
	// Refuse says whether a node is revoked: it is neither heard nor told. Nil refuses nobody; this node is never asked about.
	// It must not block, and not call these Reports.
	Refuse func(node string) bool
	Log    *slog.Logger // nil: discard
}

// Reports is what this node says and has heard, and its streams.
type Reports struct {
	cfg     Config
	log     *slog.Logger
	entries latest.Value[Entries]
	ctx     context.Context
	cancel  context.CancelFunc
	work    sync.WaitGroup
	stir    chan struct{} // wakes tend
	counts  counters

	mu     sync.Mutex // guards what follows; nothing waits with it held
	closed bool

	self      *origin
	origins   map[string]*origin
	slots     []*origin // by slot; nil: free
	free      []int
	strangers int       // bytes of values of those that are not live
	swept     time.Time // when old things were last forgotten
	reborn    time.Time
	foretold  uint64 // the latest life of this node that is known elsewhere
	turnedOff map[string]bool

	members []Peer // live
	streams map[*stream]bool
	peers   map[string]*peer
	wishes  map[string]wish // by topology
	reserve bool            // no head is reached: others are asked
	lonely  time.Time       // since when

	stale     map[string]bool // nodes changed since the last snapshot
	published time.Time
	timer     *time.Timer // runs publish
	waiting   bool        // the timer is set
}

// Open begins, with nobody until SetMembers or until another dials.
func Open(c Config) (*Reports, error) {
	if c.Self == "" || len(c.Self) > MaxName {
		return nil, fmt.Errorf("open reports: name %q has %d bytes, want 1 to %d", c.Self, len(c.Self), MaxName)
	}
	if c.Dial == nil {
		return nil, errors.New("open reports: no way to dial")
	}
	r := &Reports{
		cfg: c, log: c.Log, stir: make(chan struct{}, 1),
		origins: map[string]*origin{}, turnedOff: map[string]bool{},
		streams: map[*stream]bool{}, peers: map[string]*peer{}, stale: map[string]bool{},
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.timer = time.AfterFunc(time.Hour, r.publish)
	r.timer.Stop()
	now := time.Now()
	r.swept = now
	r.self = r.open(c.Self, uint64(now.UnixNano()), now)
	r.self.live, r.self.region = true, c.Region
	r.self.have = 1 // that it lives anew: else what it said before would stand as long as it says nothing
	r.members = []Peer{{c.Self, c.Region}}
	r.entries.Set(Entries{})
	r.work.Go(r.tend)
	return r, nil
}

// Close ends all streams and waits until they have ended, those that Serve serves too.
func (r *Reports) Close() error {
	r.mu.Lock()
	r.closed = true
	r.timer.Stop()
	r.cancel()
	for s := range r.streams {
		r.cut(s)
	}
	r.mu.Unlock()
	r.work.Wait()
	return nil
}

// Entries is what the live nodes say, this one included. It is published anew soon after a change, at most each 50 ms.
func (r *Reports) Entries() *latest.Value[Entries] { return &r.entries }

// Publish makes value this node's newest for key, nil removes it: 1–150 and at most 4,096 bytes; a node may hold 16,384 keys and
// 4 MiB. The value is copied. What is the same as before is not sent again.
func (r *Reports) Publish(key string, value []byte) error {
	switch {
	case key == "" || len(key) > MaxKey:
		return fmt.Errorf("publish %q: key has %d bytes, want 1 to %d", key, len(key), MaxKey)
	case len(value) > MaxValue:
		return fmt.Errorf("publish %q: value has %d bytes, want at most %d", key, len(value), MaxValue)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	now := time.Now()
	old := r.self.find(key)
	if has := old != nil && !old.removed; value == nil && !has || value != nil && has && bytes.Equal(old.value, value) {
		return nil
	}
	n := record{key: key, seq: r.self.have + 1, value: value, removed: value == nil}
	if err := r.self.put(n, now); err != nil {
		return fmt.Errorf("publish %q: %w", key, err)
	}
	r.self.have++
	r.changed(r.self, now)
	r.flush(now)
	return nil
}

// SetMembers says who lives now, this node included. With those who have gone the streams end, and what they said is hidden at once
// and forgotten a minute later; from those who have come it is shown, if it was heard before.
func (r *Reports) SetMembers(live []Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	now := time.Now()
	regions := map[string]string{r.cfg.Self: r.cfg.Region}
	r.members = append(make([]Peer, 0, len(live)), Peer{r.cfg.Self, r.cfg.Region})
	for _, p := range live {
		if p.Name != r.cfg.Self && len(p.Name) <= MaxName && !r.refuses(p.Name) && len(r.members) < maxNodes {
			r.members = append(r.members, p)
			regions[p.Name] = p.Region
		}
	}
	var came []*origin
	for _, o := range r.slots {
		if o == nil {
			continue
		}
		where, lives := regions[o.name]
		if o.live && !lives {
			r.hide(o, now)
		} else if lives && (!o.live || o.region != where) {
			if !o.live {
				o.live = true
				r.strangers -= o.bytes
			}
			o.region = where
			came = append(came, o)
		}
		delete(regions, o.name)
	}
	for name, where := range regions {
		if o := r.open(name, 0, now); o != nil {
			o.live, o.region = true, where
		}
	}
	for _, o := range came {
		r.changed(o, now)
	}
	r.want(now)
	r.flush(now)
}

// hide is what becomes of a node that has gone.
func (r *Reports) hide(o *origin, now time.Time) {
	o.live, o.goneAt = false, now
	r.strangers += o.bytes
	r.stale[o.name] = true
	for s := range r.streams {
		if s.name == o.name {
			r.cut(s)
		}
	}
}

// Check asks Config.Refuse about all that is known: streams with those that are refused now are cut and what they said is gone when
// it returns; those that are refused no more are heard again, and shown once SetMembers names them.
func (r *Reports) Check() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	now := time.Now()
	again := false
	for name := range r.turnedOff {
		if !r.refuses(name) {
			delete(r.turnedOff, name)
			again = true
		}
	}
	for s := range r.streams {
		// Those that told of a node while it was refused do not tell again before a new stream begins.
		if again || r.refuses(s.name) {
			r.cut(s)
		}
	}
	for _, o := range r.slots {
		if o != nil && r.refuses(o.name) {
			r.forget(o)
		}
	}
	live := r.members[:0:0]
	for _, p := range r.members {
		if !r.refuses(p.Name) {
			live = append(live, p)
		}
	}
	r.members = live
	r.want(now)
	r.flush(time.Time{})
}

// refuses says whether a node is refused, and remembers that it was.
func (r *Reports) refuses(name string) bool {
	if name == r.cfg.Self || r.cfg.Refuse == nil || !r.cfg.Refuse(name) {
		return false
	}
	if len(r.turnedOff) < maxNodes {
		r.turnedOff[name] = true
	}
	return true
}

// open returns what is known of a node; nil: it is refused, or too many are known.
func (r *Reports) open(name string, life uint64, now time.Time) *origin {
	if o := r.origins[name]; o != nil {
		return o
	}
	if r.refuses(name) {
		r.counts.refused.Add(1)
		return nil
	}
	o := newOrigin(name, life)
	o.goneAt = now
	switch free := len(r.free); {
	case free > 0:
		o.slot = r.free[free-1]
		r.free = r.free[:free-1]
		r.slots[o.slot] = o
	case len(r.slots) < maxNodes:
		o.slot = len(r.slots)
		r.slots = append(r.slots, o)
	default:
		r.counts.dropped.Add(1)
		return nil
	}
	r.origins[o.name] = o
	return o
}

// forget forgets a node, and tells the peers, which would else take it that what they have told is known here.
func (r *Reports) forget(o *origin) {
	if !o.live {
		r.strangers -= o.bytes
	}
	o.live, o.forgotten = false, true
	delete(r.origins, o.name)
	r.slots[o.slot] = nil
	r.free = append(r.free, o.slot)
	r.stale[o.name] = true
	for s := range r.streams {
		if f := s.of(o); f.has > 0 {
			s.forgot = append(s.forgot, o.name)
			s.rouse()
		}
		s.far[o.slot] = far{}
	}
}

// sweep forgets nodes that have been gone for goneFor and removals after removedFor.
func (r *Reports) sweep(now time.Time) {
	r.swept = now
	for _, o := range r.slots {
		if o == nil {
			continue
		}
		if !o.live && now.Sub(o.goneAt) > goneFor {
			r.forget(o)
			continue
		}
		before := o.bytes
		o.forgetRemoved(now.Add(-removedFor))
		if !o.live {
			r.strangers += o.bytes - before
		}
	}
}

// changed has all peers told of what is new of a node, and the next snapshot show it.
func (r *Reports) changed(o *origin, now time.Time) {
	if o.live {
		r.stale[o.name] = true
	}
	for s := range r.streams {
		s.note(o, now)
	}
}

// another has all that was said of a node on the streams start again, as a new life of it has begun.
func (r *Reports) another(o *origin) {
	for s := range r.streams {
		s.of(o)
		f := &s.far[o.slot]
		*f = far{queued: f.queued, untold: f.untold, behind: f.behind}
	}
}

// supersede begins a new life, as others know of one that is not this.
func (r *Reports) supersede(theirs uint64, now time.Time) {
	r.foretold = max(r.foretold, theirs)
	if theirs < r.self.life || now.Sub(r.reborn) < rebirthEvery {
		return // tend does it later
	}
	r.counts.rebirths.Add(1)
	r.log.Warn("others hold what this node did not say in this life: it begins another", "name", r.cfg.Self)
	r.reborn = now
	r.self.life = r.foretold + 1
	r.another(r.self)
	r.changed(r.self, now)
}

// cut ends a stream. To close a connection may take a while (TLS says good-bye).
func (r *Reports) cut(s *stream) {
	if !s.ended {
		s.ended = true
		r.work.Go(func() { s.conn.Close() })
	}
}

// flush publishes what has changed, now or when it is time.
func (r *Reports) flush(now time.Time) {
	if len(r.stale) == 0 || r.closed {
		return
	}
	wait := entriesEvery - now.Sub(r.published)
	if wait > entriesEvery { // at once, whenever that was
		wait = 0
	}
	switch {
	case wait <= 0:
		r.snapshot()
	case !r.waiting:
		r.waiting = true
		r.timer.Reset(wait)
	}
}

// publish is what the timer does.
func (r *Reports) publish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = false
	r.flush(time.Now())
}

func (r *Reports) snapshot() {
	next := maps.Clone(r.entries.Get())
	for name := range r.stale {
		delete(next, name)
		if o := r.origins[name]; o != nil && o.live && o.len() > o.removed {
			next[o.name] = o.values()
		}
	}
	clear(r.stale)
	r.published = time.Now()
	r.entries.Set(next)
}

// jitter is a time that is up to a third more.
func jitter(d time.Duration) time.Duration { return d + rand.N(d/3+1) }
