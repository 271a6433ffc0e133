package cache

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/edge/cache/disk"
)

// The shelf is the disk below the memory. All that is kept is written to it at once, so a process that is killed loses little; and
// what memory evicts is found there again. Of a small body the whole is brought back to memory, of a large one only the head: it is
// read, or sent, from where it is.
//
// No purge is forgotten by it. Each object says which purges it was compared with (entry.seen), the state says which there were since
// the disk was last looked through, and a purge is not done before the state holds it. What the state cannot be relied on for, because
// files were damaged or the power went, is not used at all: to ask the origin about each would need a mark on each that outlives the
// next restart, for what happens once in the life of a machine.
//
// All that changes a slot on disk goes through writing, one after the other, so the disk ends with what memory was given last.

// ErrUnnoted: a purge is made, but the disk did not take note of it. A restart before it can would rest on what the network still
// knows.
var ErrUnnoted = errors.New("the cache's disk could not take note of the purge")

const (
	// promoted is the largest body, in bytes, that is brought back to memory. A larger one is sent from the disk, which for what is
	// asked for often is the kernel's memory.
	promoted = 64 << 10
	// maxLoads is how many slots are read from the disk into memory at a time: one more counts as not there.
	maxLoads = 1024
	// maxReturns is how many evicted entries wait to be written again, and maxReturnBytes of how many bytes. More are dropped.
	maxReturns     = 64
	maxReturnBytes = 8 << 20
	// returnAfter is how long an entry that is evicted is not written again: it may still wait, or has just had to make room.
	returnAfter = time.Minute
	// noteTime is how often a state is tried again that could not be written.
	noteTime = time.Second
)

type shelf struct {
	cache *Cache
	disk  *disk.Store
	log   *slog.Logger
	run   uint64
	since uint64
	kept  bool // the state that was found can be relied on

	bodies atomic.Uint64 // numbers
	swept  atomic.Uint64 // as in noted
	usable atomic.Bool   // the state of this run is written: only then is anything else

	gate sync.RWMutex // held for reading from when an entry is compared with purges until it is given to the disk

	// guarded by the cache's mu:
	writing map[string]*writing // what is to be written, or being written, by slot
	loads   map[string]*load

	noting sync.Mutex // orders states, and guards:
	noted  uint64     // the newest purge that the state tells of
	epoch  uint64
	failed bool // the last state was not written

	returns     chan returned
	returnBytes atomic.Int64

	counts struct {
		loaded, returned, unnoted atomic.Uint64
	}
}

// writing is what is to be in a slot on disk; nil: nothing.
type writing struct {
	entry   *entry
	running bool // somebody is at it
}

// load is a slot that is being read, for all who want it.
type load struct {
	done     chan struct{}
	outdated bool // it was written or forgotten meanwhile
	entry    *entry
}

// returned is an entry that was evicted.
type returned struct {
	slot  string
	entry *entry
}

// openShelf puts the disk below the cache, which is empty and has no fills yet.
func (c *Cache) openShelf(d *disk.Store, log *slog.Logger) {
	s := &shelf{
		cache: c, disk: d, log: log, writing: map[string]*writing{}, loads: map[string]*load{}, returns: make(chan returned, maxReturns),
	}
	c.shelf = s
	state, err := parseState(d.State())
	if s.kept = err == nil; s.kept {
		s.run, s.since, s.epoch = state.run+1, state.since, state.epoch
	} else {
		// No run before can be told from this one but by the clock. If there is anything, it is of other runs, and goes.
		s.run = uint64(uint32(time.Now().Unix()))
		s.since = s.run
	}
	c.generation = s.run << 32
	s.bodies.Store(s.run << 32)
	s.swept.Store(state.swept)
	c.purges.newest, c.purges.floor = s.run<<32, state.swept
	for _, r := range state.rules {
		c.purges.Add(r)
	}
	c.newest.Store(c.purges.Newest())
	s.note(c.newest.Load())
	c.running.Go(s.keep)
	if c.sweeping = c.purges.Len() > 0 || d.Counters()["disk_objects"] > 0 && !s.kept; c.sweeping {
		c.running.Go(c.sweep)
	}
}

// keep writes what was evicted and is worth it, and the state where that failed, until the cache is closed.
func (s *shelf) keep() {
	again := time.NewTicker(noteTime)
	defer again.Stop()
	for {
		select {
		case <-s.cache.ctx.Done():
			return
		case <-again.C:
			s.note(s.cache.newest.Load())
		case r := <-s.returns:
			s.takeBack(r)
		}
	}
}

// note has the state tell of all purges up to one, at least.
func (s *shelf) note(upTo uint64) error {
	s.noting.Lock()
	defer s.noting.Unlock()
	if s.noted >= upTo && s.noted > 0 {
		return nil // by another, meanwhile
	}
	return s.write(s.swept.Load(), s.disk.Restate)
}

// write writes the state. s.noting is held.
func (s *shelf) write(swept uint64, write func([]byte) error) error {
	state, newest := s.state(swept)
	err := write(state)
	if errors.Is(err, disk.ErrMissing) {
		err = s.disk.SetState(state)
	}
	switch {
	case err == nil:
		s.noted = newest
		s.usable.Store(true)
		if s.failed {
			s.failed = false
			s.log.Info("the cache's disk takes note of purges again")
		}
		return nil
	case !s.failed && !errors.Is(err, disk.ErrClosed):
		s.failed = true
		s.log.Error("the cache's disk cannot take note of purges", "error", err)
	}
	s.counts.unnoted.Add(1)
	return fmt.Errorf("%w: %w", ErrUnnoted, err)
}

// Epoch is what SetEpoch told last, of this cache or of the one before that kept what is on disk. Not known: there is no disk, or what
// was on it is not used; so there is nothing that a purge could be missing for.
func (c *Cache) Epoch() (epoch uint64, known bool) {
	if c.shelf == nil || !c.shelf.kept {
		return 0, false
	}
	c.shelf.noting.Lock()
	defer c.shelf.noting.Unlock()
	return c.shelf.epoch, true
}

// SetEpoch has the disk remember up to which of the network's epochs all purges were made. If it cannot, it remembers an
// older one, and they are made again after a restart.
func (c *Cache) SetEpoch(epoch uint64) {
	s := c.shelf
	if s == nil {
		return
	}
	s.noting.Lock()
	defer s.noting.Unlock()
	if s.epoch != epoch {
		s.epoch = epoch
		s.write(s.swept.Load(), s.disk.Restate)
	}
}

// state is the state as it is now, with the newest purge that it tells of. Where it is too large for the disk, older purges become
// purges of more.
func (s *shelf) state(swept uint64) (state []byte, newest uint64) {
	c := s.cache
	c.log.RLock()
	newest, state = c.purges.Newest(), s.stateOf(&c.purges, swept)
	c.log.RUnlock()
	if most := s.disk.MaxState(); int64(len(state)) > most {
		c.log.Lock()
		c.purges.fold(func(p *Purges) bool { return int64(len(s.stateOf(p, swept))) <= most*3/4 })
		newest, state = c.purges.Newest(), s.stateOf(&c.purges, swept)
		c.log.Unlock()
	}
	return state, newest
}

// stateOf is the state by the rules that there are. s.noting is held.
func (s *shelf) stateOf(p *Purges, swept uint64) []byte {
	n := noted{run: s.run, since: s.since, swept: swept, epoch: s.epoch}
	n.rules = slices.DeleteFunc(p.Rules(), func(r Rule) bool { return r.Seq <= swept })
	return n.bytes()
}

// put has the disk follow what was put into a slot of memory. c.mu is held, and who holds it calls writeOut afterwards.
func (s *shelf) put(slot string, e *entry) {
	if s == nil {
		return
	}
	if l := s.loads[slot]; l != nil {
		l.outdated = true
	}
	switch {
	case e.object == nil && e.crossroads == nil: // what is kept apart is not kept
		s.forget(slot)
		return
	case e.object != nil && e.object.more().held != 0:
		return // only for a moment
	case e.object != nil && e.object.body == 0:
		e.object.body = s.bodies.Add(1)
	}
	w := s.writing[slot]
	if w == nil {
		w = &writing{}
		s.writing[slot] = w
	}
	w.entry = e
}

// forget has nothing in a slot of the disk from now on. c.mu is held.
func (s *shelf) forget(slot string) {
	if s == nil {
		return
	}
	if l := s.loads[slot]; l != nil {
		l.outdated = true
	}
	if w := s.writing[slot]; w != nil {
		if w.entry = nil; !w.running {
			delete(s.writing, slot)
		}
	}
	s.disk.Delete(bytesOf(slot))
}

// writeOut writes what is to be in a slot of the disk, unless another is at it, who then sees to it. c.mu is not held: it sums bodies.
func (s *shelf) writeOut(slot string) {
	if s == nil {
		return
	}
	mu := &s.cache.mu
	mu.Lock()
	defer mu.Unlock()
	w := s.writing[slot]
	if w == nil || w.running {
		return
	}
	w.running = true
	for {
		e := w.entry
		mu.Unlock()
		s.bring(slot, e)
		mu.Lock()
		if w.entry == e {
			delete(s.writing, slot)
			return
		}
	}
}

// writeOut writes what the fill has put: a crossroads, a response.
func (f *fill) writeOut() {
	s := f.cache.shelf
	if s.writeOut(f.want.Key.URI); f.slot != f.want.Key.URI {
		s.writeOut(f.slot)
	}
}

// bring brings an entry to the disk, or takes away what is there.
func (s *shelf) bring(slot string, e *entry) {
	key := []byte(slot) // the disk holds on to it
	s.gate.RLock()
	defer s.gate.RUnlock()
	if e == nil || !s.usable.Load() || !s.cache.alive(slot, e) {
		s.disk.Delete(key)
		return
	}
	seen := e.seen.Load()
	meta := e.meta(seen)
	if seen == dead || meta == nil {
		s.disk.Delete(key)
		return
	}
	if e.is(renewal) {
		if there, ok := s.disk.Get(key); ok {
			same := bodyOf(there.Meta) == e.object.body
			there.Close()
			if same && s.disk.Renew(key, meta) == nil || e.object.at != nil {
				return // else what is there is older, and says so
			}
		}
	}
	switch {
	case e.object == nil:
		if s.disk.Put(key, meta) == nil {
			e.given.Store(time.Now().Unix())
		}
	case e.object.at == nil:
		if body, ok := e.object.lasting(); !ok {
			s.disk.Delete(key)
		} else if s.disk.Put(key, meta, body) == nil {
			e.given.Store(time.Now().Unix())
		}
	}
}

// evicted has the disk know that an entry was of use that memory has no room for any more, and writes it again if it is not there.
// It may be called with any lock of the cache held, and does not wait.
func (s *shelf) evicted(slot string, e *entry) {
	if s == nil || !e.is(ofUse) || e.seen.Load() == dead || s.disk.Touch(bytesOf(slot)) {
		return
	}
	size := int64(0)
	switch {
	case e.object != nil && e.object.at == nil:
		size = e.object.Size()
	case e.crossroads == nil:
		return
	}
	if time.Now().Unix()-e.given.Load() < int64(returnAfter/time.Second) {
		return
	}
	if s.returnBytes.Add(size) <= maxReturnBytes && e.hold() {
		select {
		case s.returns <- returned{slot, e}:
			return
		default:
			e.letGo()
		}
	}
	s.returnBytes.Add(-size)
}

// takeBack writes an entry that was evicted, unless there is a newer one.
func (s *shelf) takeBack(r returned) {
	c := s.cache
	defer r.entry.letGo()
	c.mu.Lock()
	_, kept := c.stored.GetEntryQuietly(r.slot)
	if !kept && s.writing[r.slot] == nil && s.loads[r.slot] == nil {
		s.writing[r.slot] = &writing{entry: r.entry}
		s.counts.returned.Add(1)
	}
	c.mu.Unlock()
	s.writeOut(r.slot)
	if r.entry.object != nil {
		s.returnBytes.Add(-r.entry.object.Size())
	}
}

// load is what is kept in a slot, brought back from the disk if memory has it no more. c.mu is not held.
func (c *Cache) load(slot string) (*entry, bool) {
	s := c.shelf
	c.mu.Lock()
	if e, ok := c.get(slot); ok {
		c.mu.Unlock()
		return e, true
	}
	if w := s.writing[slot]; w != nil && w.entry != nil && c.alive(slot, w.entry) { // evicted before it was written
		c.mu.Unlock()
		return w.entry, true
	}
	l := s.loads[slot]
	switch {
	case l != nil:
		c.mu.Unlock()
		<-l.done
		return l.entry, l.entry != nil && c.alive(slot, l.entry)
	case len(s.loads) >= maxLoads:
		c.mu.Unlock()
		return nil, false
	}
	l = &load{done: make(chan struct{})}
	s.loads[slot] = l
	c.mu.Unlock()
	e, ok := s.read(slot)
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(l.done)
	delete(s.loads, slot)
	if now, there := c.get(slot); there {
		e, ok = now, true
	} else if ok = ok && !l.outdated && c.alive(slot, e); ok {
		c.hold(slot, e, 0)
		s.counts.loaded.Add(1)
	}
	if ok {
		l.entry = e
	}
	return e, ok
}

// peek is what is in a slot of the disk, without its body.
func (s *shelf) peek(slot string) (*entry, bool) {
	swept := s.swept.Load()
	kept, ok := s.disk.Get(bytesOf(slot))
	if !ok {
		return nil, false
	}
	defer kept.Close()
	return s.entry(slot, kept.Meta, kept.Size(), swept)
}

// read reads what is in a slot of the disk, the body too if it is small.
func (s *shelf) read(slot string) (*entry, bool) {
	swept := s.swept.Load()
	kept, ok := s.disk.Get(bytesOf(slot))
	if !ok {
		return nil, false
	}
	defer kept.Close()
	e, ok := s.entry(slot, kept.Meta, kept.Size(), swept)
	if !ok {
		s.disk.Delete(kept.Key)
		return nil, false
	}
	if o := e.object; o != nil && kept.Size() <= promoted {
		body := make([]byte, kept.Size())
		if _, err := kept.ReadAt(body, 0); err != nil {
			return nil, false
		}
		if o.at = nil; len(body) < largeBytes {
			o.Body = body
		} else {
			o.large = newLarge(body)
		}
	}
	return e, true
}

// entry makes an entry of its meta. Swept is what s.swept was before it was looked for: a sweep that has ended since may have deleted
// it. Not ok: it is not understood, or not of a run that can be relied on.
func (s *shelf) entry(slot string, meta []byte, size int64, swept uint64) (*entry, bool) {
	e, seen, err := parseMeta(meta)
	if run := seen >> 32; err != nil || run < s.since || run > s.run {
		return nil, false
	}
	e.seen.Store(max(seen, swept))
	e.given.Store(time.Now().Unix())
	if o := e.object; o != nil {
		o.at = &place{cache: s.cache, slot: slot, size: size}
		if o.received.After(time.Now().Add(time.Second)) { // the clock was set back: how old it is nobody knows
			o.ttl = 0
			o.amend(func(r *rare) { r.staleWhileRevalidate, r.staleIfError = 0, 0 })
		}
	}
	return e, true
}

// lose forgets the entry whose body is lost.
func (c *Cache) lose(slot string, body uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now, ok := c.stored.GetEntryQuietly(slot); ok && now.Value.object != nil && now.Value.object.body == body {
		c.stored.Invalidate(slot)
	}
}

// shelfPiece is after how many objects the sweep of the disk pauses, for shelfRest times as long as they took: it takes at most about a
// tenth of one processor, or of the disk's time.
const (
	shelfPiece = 128
	shelfRest  = 9
	// shelfRetry is when it begins anew where the disk has failed.
	shelfRetry = 10 * time.Second
)

// sweep looks at all that is on disk, and deletes what was purged, or notes what is stale since. Then the purges up to that one need
// not be known any more, and it says so to the disk.
func (s *shelf) sweep(upTo uint64) bool {
	if s.disk.Flush() != nil { // what was given to it before is found from now on
		return false
	}
	n, began := 0, time.Now()
	var soft []string
	settle := func() bool {
		ok := s.soften(soft)
		soft = soft[:0]
		return ok
	}
	for key, meta := range s.disk.All() {
		slot := string(key)
		e, ok := s.entry(slot, meta, 0, s.swept.Load()) // nobody else sweeps
		switch {
		case !ok || !s.cache.alive(slot, e):
			s.disk.Delete(key)
		case e.soft.Load() != nil:
			soft = append(soft, slot)
		}
		if n++; n%shelfPiece == 0 {
			if !settle() || !s.cache.pause(min(max(sweepPause, shelfRest*time.Since(began)), time.Second)) {
				return false
			}
			began = time.Now()
		}
	}
	if !settle() {
		return false
	}
	s.noting.Lock()
	defer s.noting.Unlock()
	if s.write(upTo, s.disk.SetState) != nil {
		return false
	}
	s.swept.Store(upTo)
	return true
}

// soften writes those anew that were purged softly: stale. What cannot be is deleted.
func (s *shelf) soften(slots []string) bool {
	c := s.cache
	for _, slot := range slots {
		e, ok := s.peek(slot)
		if !ok || e.object == nil || !c.alive(slot, e) {
			continue
		}
		e.mark(renewal)
		c.mu.Lock()
		if s.writing[slot] == nil { // else it is by something newer
			s.writing[slot] = &writing{entry: e}
		}
		c.mu.Unlock()
		s.writeOut(slot)
	}
	if len(slots) == 0 {
		return true
	}
	if s.disk.Flush() != nil {
		return false
	}
	for _, slot := range slots {
		if e, ok := s.peek(slot); ok && c.alive(slot, e) && e.soft.Load() != nil {
			s.disk.Delete([]byte(slot))
		}
	}
	return true
}

// counters are the disk's, and what went between it and memory; none where there is none.
func (s *shelf) counters() map[string]uint64 {
	if s == nil {
		return nil
	}
	all := map[string]uint64{
		"cache_loaded_total":   s.counts.loaded.Load(),
		"cache_returned_total": s.counts.returned.Load(),
		"cache_unnoted_total":  s.counts.unnoted.Load(),
	}
	maps.Copy(all, s.disk.Counters())
	return all
}
