package cache

import (
	"os"
	"runtime"
	"sync/atomic"
)

// A large body in memory begins on the heap, as it came. When it is first sent to a viewer who can be sent a file, it moves into pages of
// its own: a file that is in memory only, of which the kernel sends the pages themselves, where bytes of the heap would be copied for each
// viewer. What was sent may be with the kernel for long, until the viewer has taken it. So pages are written once, and when nobody needs
// them they go back to the system as a whole: no other body is ever in them.

const (
	// largeBytes is from what size on a body is large: below, to send a file costs as much as to copy.
	largeBytes = 32 << 10
	// pagesOverhead is what pages take besides the body, most of it in the kernel: the file, its mapping, the tables of both.
	pagesOverhead = 4 << 10
	// maxPages is how many bodies are in pages at most, each an open file and a mapping, of which Linux lets a process have 65,530. It is
	// a quarter of the files that the process may open, if that is less. One more stays on the heap.
	maxPages = 16 << 10
	// maxUnmapping is how many wait to be given back by another goroutine; they are not counted any more, and are half of the cache's bytes
	// at most. One more is given back by who has taken it away.
	maxUnmapping = 4
)

// largeBody is a large body in memory, which all objects that have it share.
type largeBody struct {
	size int64
	room int64 // what it is counted for
	// heap is where it is at first; nil: it is in pages.
	heap atomic.Pointer[[]byte]
	// pages is where it is then.
	pages atomic.Pointer[pages]
	// moving says that somebody has begun to move it; nobody else does, also where that failed.
	moving atomic.Bool
	// holders are the entries that keep it, and who reads it; gone: the pages are given back.
	holders atomic.Int64
}

// gone is what the holders are when there will be none again.
const gone = -1

// pages are a file in memory with a body, and where that is mapped, which is only read.
type pages struct {
	file   *os.File
	memory []byte
	cache  *Cache
	close  func() // largeBody.letGo
	mapped mapped
	unmap  runtime.Cleanup
}

func newLarge(body []byte) *largeBody {
	l := &largeBody{size: int64(len(body)), room: allocated(cap(body)) + pagesOverhead}
	l.heap.Store(&body)
	return l
}

// hold keeps the body where it is until letGo, unless it is gone.
func (l *largeBody) hold() bool {
	for {
		n := l.holders.Load()
		if n == gone {
			return false
		}
		if l.holders.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// letGo ends a hold. The last gives the pages back.
func (l *largeBody) letGo() {
	if p := l.leave(); p != nil {
		p.giveBack()
	}
}

// leave ends a hold, and says which pages nobody needs any more; nil: none.
func (l *largeBody) leave() *pages {
	if l.holders.Add(-1) > 0 {
		return nil
	}
	if p := l.pages.Load(); p != nil && l.holders.CompareAndSwap(0, gone) {
		return p
	}
	return nil
}

func (p *pages) giveBack() {
	p.free()
	p.cache.paged.Add(-1)
}

// dropped is letGo for what an entry held that was taken away, which is told with locks held: to give pages back takes up to a millisecond
// each, and is another goroutine's, as long as it is not behind with maxUnmapping.
func (c *Cache) dropped(e *entry) {
	if e.object == nil || e.object.large == nil {
		return
	}
	p := e.object.large.leave()
	if p == nil {
		return
	}
	if c.ctx.Err() == nil {
		select {
		case c.unneeded <- p:
			return
		default:
		}
	}
	p.giveBack()
}

// unmaps has a goroutine give pages back, unless there is one or the cache is closed.
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
			case <-c.ctx.Done():
				return // what comes at this moment goes with the cache
			}
		}
	})
}

// bytes is the body; who holds it may read it.
func (l *largeBody) bytes() []byte {
	if p := l.pages.Load(); p != nil {
		return p.memory
	}
	if heap := l.heap.Load(); heap != nil {
		return *heap
	}
	return l.pages.Load().memory // it has moved in between
}

// move moves the body from the heap to pages, if there may be more of them. Who holds it calls it, and then it is there for as long.
func (l *largeBody) move(c *Cache) {
	if l.moving.Load() || !l.moving.CompareAndSwap(false, true) {
		return
	}
	if c.paged.Add(1) > c.maxPages {
		c.paged.Add(-1)
		c.counts.unpaged.Add(1)
		return
	}
	p, err := newPages(*l.heap.Load())
	if err != nil {
		c.paged.Add(-1)
		c.counts.unpaged.Add(1)
		return
	}
	p.cache, p.close = c, l.letGo
	c.unmaps()
	l.pages.Store(p)
	l.heap.Store(nil)
}

// OpenFile is Open for who can send a file: a large body in memory is in one from then on, where the system has such and there are not too
// many. See Body.Pages.
func (c *Cache) OpenFile(o *Object) (Body, error) {
	b, err := o.Open()
	if err == nil && b.large != nil && o.kept() {
		b.large.move(c)
	}
	return b, err
}

// kept says whether an entry has the object's body, besides who has just opened it: else it would move for one viewer.
func (o *Object) kept() bool { return o.large.holders.Load() > 1 }

// Large says that the body is in memory and to be read by Open, or OpenFile.
func (o *Object) Large() bool { return o.large != nil }

// Heap is the body of an object that is Large and not in Pages. It stays for as long as somebody knows of it.
func (b *Body) Heap() []byte { return b.memory }

// Pages is the body as a file in memory, the same bytes mapped, and what ends the use of both in place of Close. They are read only. Not ok:
// it is elsewhere.
func (b *Body) Pages() (f *os.File, memory []byte, done func(), ok bool) {
	if b.large == nil {
		return nil, nil, nil, false
	}
	p := b.large.pages.Load()
	if p == nil {
		return nil, nil, nil, false
	}
	return p.file, p.memory, p.close, true
}
