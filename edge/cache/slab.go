package cache

import (
	"math"
	"sync"
	"sync/atomic"
)

// Bodies of medium size share slabs: files in memory of two huge pages each. The 512 small ones of a huge page have one count of who uses them,
// and one place where the kernel looks for them; to find and count small ones is a tenth of what it takes to send 100 KiB.
//
// A slab is filled from its beginning to its end, once. What is taken away leaves a hole, for the network may have it still. Holes, and what
// the open slab has left, are its waste, and are counted as the cache's bytes in the place of the bodies that were there. When the holes are too
// many, the bodies of the slab that has most of them move to the open one, and it goes back to the system.

const (
	// slabBytes is the size of a slab, and slabPiece that of the largest body in one: so the end that none fits is a 32nd of it.
	slabBytes = 4 << 20
	slabPiece = slabBytes / 32
	// slabHoles is what part of a slab must be holes for its bodies to move.
	slabHoles = 16
	// slabShare is what part of the cache may be waste where a slab is opened. From half of that in holes on bodies move.
	slabShare = 16
	// leastKept is what part of what a cache keeps it keeps in any case, however much of slabs waits for readers.
	leastKept = 8
)

// slabs are those of a cache.
type slabs struct {
	cache  *Cache
	size   int64 // of each; 0: there are none
	most   int64 // of waste where one is opened
	waste  atomic.Int64
	moved  atomic.Uint64
	uneven chan struct{} // level is to be called: there may be too many holes, or an open slab with nothing in it
	less   atomic.Int64  // by how many bytes less is kept for waste that stays; level's to change

	leveling sync.Mutex // is held by who moves bodies together, and taken before:
	filling  sync.Mutex // is held while a body is copied, and guards:
	open     *pages     // the slab that is filled; nil: none

	mu  sync.Mutex // guards:
	all map[*pages]struct{}
}

// slab is what pages with several bodies have besides.
type slab struct {
	kept  atomic.Int64 // bytes of bodies that entries keep
	needs atomic.Int64 // bodies that somebody needs: of its users those that read none
	used  int64        // from its beginning; guarded by slabs.filling as long as it is open, like:
	spots []*spot
	shut  atomic.Bool // nothing is added any more
}

// useSlabs has a cache use slabs where there can be some and it is not too small for them: two are to be no more than it may waste. There is
// none on 32 bit, where addresses are few.
func (c *Cache) useSlabs() {
	s := &c.slabs
	s.cache, s.all, s.uneven = c, map[*pages]struct{}{}, make(chan struct{}, 1)
	if most := c.limit / slabShare; slabsHere && most >= 2*slabBytes && math.MaxUint>>32 != 0 {
		s.size, s.most = slabBytes, most
	}
}

// count is how many there are.
func (s *slabs) count() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return uint64(len(s.all))
}

// fill counts the spot as kept in its slab, and says how many bytes of waste that takes.
func (at *spot) fill() int64 {
	if at.pages.slab == nil {
		return 0
	}
	at.pages.slab.kept.Add(at.room)
	at.pages.cache.slabs.waste.Add(-at.room)
	return at.room
}

// leave counts the spot as a hole, and says of how many bytes.
func (at *spot) leave() int64 {
	if at.pages.slab == nil {
		return 0
	}
	s := &at.pages.cache.slabs
	kept := at.pages.slab.kept.Add(-at.room)
	if waste := s.waste.Add(at.room); kept == 0 || waste > s.most/2 && s.worth(kept) {
		s.look()
	}
	return at.room
}

// unneeded counts the body of the spot as one that nobody needs there. Who has that end is still to let go of the pages.
func (at *spot) unneeded() {
	if at.pages.slab != nil {
		at.pages.slab.needs.Add(-1)
	}
}

// worth says whether a slab of which so much is kept has enough holes for its bodies to move.
func (s *slabs) worth(kept int64) bool { return s.size-kept >= s.size/slabHoles }

// look has level be called.
func (s *slabs) look() {
	select {
	case s.uneven <- struct{}{}:
	default: // it will be
	}
}

// add copies a body from the heap into a slab; nil: it belongs in none, or there may be no more. Busy: another is being copied. Where holes come
// faster than level goes about them, who adds helps: else there would soon be no room for what is new.
func (s *slabs) add(l *largeBody) (at *spot, busy bool) {
	body := *l.heap.Load()
	if s.size == 0 || len(body) > slabPiece {
		return nil, false
	}
	if s.waste.Load() > s.most && s.leveling.TryLock() {
		if p := s.emptiest(); p != nil {
			s.clear(p)
		}
		s.leveling.Unlock()
	}
	if !s.filling.TryLock() {
		return nil, true
	}
	defer s.filling.Unlock()
	return s.place(l, body, false), false
}

// place copies a body into the open slab, or another that it opens: within what the cache may have, or, for who makes room, beyond that by
// the one slab that is spared for it. s.filling is held.
func (s *slabs) place(l *largeBody, body []byte, spare bool) *spot {
	room := (int64(len(body)) + pageBytes - 1) &^ (pageBytes - 1)
	if s.open != nil && s.size-s.open.slab.used < room {
		s.shut()
	}
	if s.open == nil && !s.begin(spare) {
		return nil
	}
	p := s.open
	at := &spot{pages: p, offset: p.slab.used, room: room, body: l}
	p.slab.used += room
	if _, err := p.file.WriteAt(body, at.offset); err != nil {
		return nil // what was written of it is a hole
	}
	p.together(at.offset, at.offset+room)
	at.memory = p.memory[at.offset : at.offset+int64(len(body)) : at.offset+int64(len(body))]
	p.slab.spots = append(p.slab.spots, at)
	p.slab.needs.Add(1)
	p.users.Add(1)
	return at
}

// begin opens a slab. s.filling is held.
func (s *slabs) begin(spare bool) bool {
	c := s.cache
	if !spare && s.waste.Load()+s.size > s.most || !c.mayPage() {
		return false
	}
	limit := c.limit
	if !spare {
		limit -= s.size
	}
	if !c.reserveOf(s.size, limit) {
		c.paged.Add(-1)
		return false
	}
	p, err := newSlab(s.size)
	if err != nil {
		c.bytes.Add(-s.size)
		c.paged.Add(-1)
		return false
	}
	s.waste.Add(s.size)
	p.slab = new(slab)
	p.begin(c)
	s.mu.Lock()
	s.all[p] = struct{}{}
	s.mu.Unlock()
	s.open = p
	return true
}

// shut ends what is added to the open slab. s.filling is held.
func (s *slabs) shut() {
	p := s.open
	s.open = nil
	p.seal()
	p.slab.shut.Store(true)
	p.letGo()
}

// forget takes a slab out of the count that was given back.
func (s *slabs) forget(p *pages) {
	s.mu.Lock()
	delete(s.all, p)
	s.mu.Unlock()
	s.waste.Add(-s.size)
	s.cache.bytes.Add(-s.size)
	if s.less.Load() > 0 {
		s.look()
	}
}

// level moves bodies together until there are no more holes than may be, or nothing is to be gained.
func (s *slabs) level() {
	s.filling.Lock()
	if s.open != nil && s.open.slab.kept.Load() == 0 {
		s.shut()
	}
	s.filling.Unlock()
	for more := true; more && s.cache.ctx.Err() == nil; {
		s.leveling.Lock()
		p := s.emptiest()
		more = p != nil && s.clear(p)
		s.leveling.Unlock()
	}
	s.yield()
}

// yield has less be kept by as much as there is more waste than may be, for there is room for no more than that: slabs stay for as long as
// somebody reads a body of theirs, however slowly, and a full cache would keep nothing new until he has it. What is evicted of other slabs is
// waste for a moment, until level has moved the rest. In steps of a quarter of a slab, for the library begins to learn anew at each.
func (s *slabs) yield() {
	step, most := s.size/4, s.cache.mostKept()
	over := max(0, s.waste.Load()-s.most)
	less := min((over+step-1)/step*step, most-most/leastKept)
	if less != s.less.Load() {
		s.less.Store(less)
		s.cache.stored.SetMaximum(uint64(most - less))
	}
}

// emptiest is the slab with most holes, if it is worth it and there are more than may be. What nothing is kept of waits for its readers, and is
// not made less by moving others. Where there is much of that, what is being read stays where it is: moved, it would be there twice.
func (s *slabs) emptiest() (found *pages) {
	least, holes, waits := s.size, int64(0), int64(0)
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.all {
		if p.slab.kept.Load() == 0 && p.slab.shut.Load() {
			waits += s.size
		}
	}
	for p := range s.all {
		kept := p.slab.kept.Load()
		if kept == 0 || !p.slab.shut.Load() || waits > s.most/2 && p.users.Load() > p.slab.needs.Load() {
			continue
		}
		if holes += s.size - kept; kept < least && s.worth(kept) {
			found, least = p, kept
		}
	}
	if holes <= s.most/2 {
		return nil
	}
	return found
}

// clear moves the bodies of a slab that nothing is added to, and says whether there was room for all. s.leveling is held.
func (s *slabs) clear(p *pages) bool {
	for _, at := range p.slab.spots {
		l := at.body
		if !l.hold() {
			continue
		}
		ok := true
		if l.at.Load() == at { // and stays that, for nobody else moves it
			s.filling.Lock()
			to := s.place(l, at.memory, true)
			s.filling.Unlock()
			if ok = to != nil; ok {
				l.settle(to)
				s.moved.Add(1)
			}
		}
		if l.letGo(); !ok {
			return false
		}
	}
	return true
}
