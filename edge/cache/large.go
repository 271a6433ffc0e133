package cache

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
)

// A large body in memory begins on the heap, as it came. When it is first sent to a viewer who can be sent a file, it moves into pages: a
// file that is in memory only, of which the kernel sends the pages themselves, where bytes of the heap would be copied for each viewer. What
// was sent may be with the kernel for long, until the viewer has taken it. So no place in pages is written twice, and when nobody needs them
// they go back to the system as a whole. A body of medium size shares a slab with others (slabs), a larger one has pages of its own.

const (
	// largeBytes is from what size on a body is large: below, to send a file costs as much as to copy.
	largeBytes = 32 << 10
	// pagesOverhead is what a body in pages takes besides: in a slab, the rest of its last page; else most of it is the kernel's, for the file,
	// its mapping and the tables of both.
	pagesOverhead = pageBytes
	// pageBytes is the size of a page, or a part of it.
	pageBytes = 4 << 10
	// maxPages is how many files there are at most, each with a mapping, of which Linux lets a process have 65,530. It is a quarter of the files
	// that the process may open, if that is less. What would need one more stays on the heap.
	maxPages = 16 << 10
	// maxUnmapping is how many wait to be given back by another goroutine; those of one body are not counted any more, and are half of the
	// cache's bytes at most. One more is given back by who has taken it away.
	maxUnmapping = 4
)

// largeBody is a large body in memory, which all objects that have it share.
type largeBody struct {
	size int64
	room int64 // what it is counted for
	// heap is where it is at first, and at where it is in pages then: first at is set, then heap is nil.
	heap atomic.Pointer[[]byte]
	at   atomic.Pointer[spot]
	// moving says that somebody has begun to move it; nobody else does, also where that failed for good.
	moving atomic.Bool

	mu      sync.Mutex // is held for a moment only, and guards changes of at, and:
	entries int        // that keep it
	holders int        // who needs it besides. Who reads it is none of them
	gone    bool       // from its place in pages: nobody needs it
	slow    int        // readers who are
	readers *slowReaders
	lingers atomic.Bool // only slow readers need it. It changes with mu
}

// pages are a file in memory with one body, or a slab with several, and where that is mapped, which is only read.
type pages struct {
	file   *os.File
	memory []byte
	cache  *Cache
	close  func() // letGo
	mapped mapped
	unmap  runtime.Cleanup
	// users are the bodies in it, who reads them, and slabs as long as it is open. At 0 it is given back, and has none again.
	users atomic.Int64
	slab  *slab // nil: it is one body's
}

// spot is where a body is in pages.
type spot struct {
	pages  *pages
	offset int64
	memory []byte
	room   int64 // what it takes of a slab
	body   *largeBody
}

func newLarge(body []byte) *largeBody {
	l := &largeBody{size: int64(len(body)), room: allocated(cap(body)) + pagesOverhead}
	l.heap.Store(&body)
	return l
}

// hold has the pages stay until letGo, for who reads them; not ok: they are given back.
func (p *pages) hold() bool {
	for {
		n := p.users.Load()
		if n == 0 {
			return false
		}
		if p.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// letGo ends a use of the pages. The last gives them back.
func (p *pages) letGo() {
	if p.users.Add(-1) == 0 {
		p.giveBack()
	}
}

func (p *pages) giveBack() {
	p.free()
	if p.slab != nil {
		p.cache.slabs.forget(p)
	}
	p.cache.paged.Add(-1)
}

// open is the body to be read; not ok: it is gone. What it finds in pages is not another's, for no place in them is written twice.
func (l *largeBody) open() (b Body, ok bool) {
	for {
		at := l.at.Load()
		if at == nil {
			if heap := l.heap.Load(); heap != nil {
				return Body{large: l, memory: *heap}, true
			}
			continue // it has moved in between
		}
		if at.pages.hold() {
			return Body{large: l, memory: at.memory, at: at}, true
		}
		if l.at.Load() == at {
			return Body{}, false
		}
	}
}

// hold has the body stay until letGo; not ok: it is gone.
func (l *largeBody) hold() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.gone {
		l.holders++
		l.judge()
	}
	return !l.gone
}

// letGo ends a hold.
func (l *largeBody) letGo() {
	l.mu.Lock()
	l.holders--
	l.judge()
	p := l.left()
	l.mu.Unlock()
	if p != nil {
		p.letGo()
	}
}

// left says which pages have a body less, if nobody needs this one any more. l.mu is held.
func (l *largeBody) left() *pages {
	at := l.at.Load()
	if l.entries+l.holders > 0 || at == nil || l.gone {
		return nil
	}
	l.gone = true
	at.unneeded()
	return at.pages
}

// keep is hold for an entry of a cache, until drop.
func (l *largeBody) keep(c *Cache) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return false
	}
	l.entries++
	l.readers = &c.readers
	l.judge()
	if at := l.at.Load(); at != nil && l.entries == 1 {
		at.pages.cache.bytes.Add(-at.fill())
	}
	return true
}

// drop ends a keep. Hole is how many bytes it leaves of a slab, which are to be counted from then on, and p the pages that have a body less;
// nil: none.
func (l *largeBody) drop() (hole int64, p *pages) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries--
	l.judge()
	if at := l.at.Load(); at != nil && l.entries == 0 {
		hole = at.leave()
	}
	return hole, l.left()
}

// settle makes a spot the place of the body, which somebody holds, and ends the use of the one before.
func (l *largeBody) settle(to *spot) {
	l.mu.Lock()
	was := l.at.Load()
	if l.entries > 0 {
		freed := to.fill()
		if was != nil {
			freed -= was.leave()
		}
		to.pages.cache.bytes.Add(-freed)
	}
	l.at.Store(to)
	l.mu.Unlock()
	l.heap.Store(nil)
	if was != nil {
		was.unneeded()
		was.pages.letGo()
	}
}

// move moves the body from the heap to pages, if an entry keeps it (else it would move for one viewer) and there may be more of them.
func (l *largeBody) move(c *Cache) {
	if l.at.Load() != nil || l.moving.Load() || !l.moving.CompareAndSwap(false, true) {
		return
	}
	l.mu.Lock()
	kept := l.entries > 0
	if kept {
		l.holders++
	}
	l.mu.Unlock()
	if !kept {
		l.moving.Store(false)
		return
	}
	defer l.letGo()
	c.unmaps()
	at, busy := c.slabs.add(l)
	if busy {
		l.moving.Store(false) // the next viewer may have more luck
		return
	}
	if at == nil {
		at = c.ownPages(l)
	}
	if at == nil {
		c.counts.unpaged.Add(1)
		return
	}
	l.settle(at)
}

// ownPages copies a body to pages of its own; nil: there are too many, or the system has none.
func (c *Cache) ownPages(l *largeBody) *spot {
	if !c.mayPage() {
		return nil
	}
	body := *l.heap.Load()
	p, err := newPages(body)
	if err != nil {
		c.paged.Add(-1)
		return nil
	}
	p.begin(c)
	return &spot{pages: p, memory: p.memory, body: l}
}

// mayPage says whether there may be one more file, and counts it.
func (c *Cache) mayPage() bool {
	if c.paged.Add(1) > c.maxPages {
		c.paged.Add(-1)
		return false
	}
	return true
}

// begin gives pages their first user.
func (p *pages) begin(c *Cache) {
	p.cache, p.close = c, p.letGo
	p.users.Store(1)
}

// dropped ends what an entry kept that was taken away, and says how many bytes are counted in the place of its own. It is told with locks
// held: to give pages back takes up to a millisecond each, and is another goroutine's, as long as it is not behind with maxUnmapping.
func (c *Cache) dropped(e *entry) (hole int64) {
	if e.object == nil || e.object.large == nil {
		return 0
	}
	hole, p := e.object.large.drop()
	if p == nil || p.users.Add(-1) > 0 {
		return hole
	}
	if c.ctx.Err() == nil {
		select {
		case c.unneeded <- p:
			return hole
		default:
		}
	}
	p.giveBack()
	return hole
}

// unmaps has a goroutine give pages back and move bodies together, unless there is one or the cache is closed.
func (c *Cache) unmaps() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unmapping || c.ctx.Err() != nil {
		return
	}
	c.unmapping = true
	c.running.Go(func() {
		for {
			select {
			case p := <-c.unneeded:
				p.giveBack()
				continue
			default:
			}
			select {
			case p := <-c.unneeded:
				p.giveBack()
			case <-c.slabs.uneven:
				c.slabs.level()
			case <-c.readers.many:
				c.readers.end()
			case <-c.ctx.Done():
				return // what comes at this moment goes with the cache
			}
		}
	})
}

// OpenFile is Open for who can send a file: a large body in memory is in one from then on, where the system has such and there are not too
// many. See Body.Pages.
func (c *Cache) OpenFile(o *Object) (Body, error) {
	if o.large != nil {
		o.large.move(c)
	}
	return o.Open()
}

// Large says that the body is in memory and to be read by Open, or OpenFile.
func (o *Object) Large() bool { return o.large != nil }

// Pages is the body as a part of a file in memory, from an offset on, and what ends the use of it in place of Close. It is read only. Not ok: it is
// elsewhere.
func (b *Body) Pages() (f *os.File, offset int64, done func(), ok bool) {
	if b.at == nil {
		return nil, 0, nil, false
	}
	return b.at.pages.file, b.at.offset, b.at.pages.close, true
}
