package cache

import (
	"bytes"
	"container/list"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

const (
	// patience is how long a large body is read from where it is. Who needs longer is slow: from a slab, which he would keep from going, what he has
	// still to read is copied for him.
	patience = time.Second
	// slowShare is what part of the cache's bytes, besides these, may be what only slow readers need: such copies, and bodies of their own that are
	// not kept any more. Where it would be more, who has read for longest loses what he has not read.
	slowShare = 8
	// clientShare is which part of that one client may have before others lose anything.
	clientShare = 8
)

// Lease is a large body that is read by who may be slow: an http1.Lease.
type Lease struct {
	large  *largeBody
	client netip.Addr // whom it counts for; not valid: nobody

	mu     sync.Mutex // taken before largeBody.mu and slowReaders.mu. It guards:
	memory []byte     // the body, from base on
	base   int64
	at     *spot // where that is; nil: on the heap
	next   int64 // what is before has been read
	over   bool  // it is closed, or lost
	timer  *time.Timer
	slow   *list.Element // among those of the cache; nil: it is not
	own    bool          // it is, of the body itself, not of a copy
	copied int64         // bytes
}

// slowReaders are those of a cache who have read for longer than patience.
type slowReaders struct {
	cache *Cache
	most  int64
	many  chan struct{} // end is to be called
	ended atomic.Uint64

	mu   sync.Mutex           // guards:
	all  list.List            // of *Lease, who began first first
	held int64                // bytes that only they need
	each map[netip.Addr]int64 // bytes of what clients read, copied or not. It holds no more than there are readers
	over int                  // how many of them have more than their share
}

// Lent is the body for who may be slow, if it is large and in memory; nil: it is not.
func (b *Body) Lent() http1.Lent {
	switch {
	case b.at != nil:
		return b.at
	case b.large != nil:
		return b.large
	}
	return nil
}

// Lease takes over the use of who has the spot from an opened body, or from Pages.
func (at *spot) Lease(from int64, client netip.Addr) http1.Lease {
	return newLease(at.body, at.memory, at, from, client)
}

// Lease opens the body, which is on the heap, or was.
func (l *largeBody) Lease(from int64, client netip.Addr) http1.Lease {
	b, ok := l.open()
	x := newLease(l, b.memory, b.at, from, client)
	if !ok {
		x.end()
	}
	return x
}

func newLease(l *largeBody, memory []byte, at *spot, from int64, client netip.Addr) *Lease {
	x := &Lease{large: l, client: client, memory: memory, at: at, next: from}
	x.timer = time.AfterFunc(patience, x.tarries)
	return x
}

// ReadAt copies of what is there. It reads on from where it read last.
func (x *Lease) ReadAt(p []byte, off int64) (n int, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over || off < x.base {
		return 0, ErrLost
	}
	if n = copy(p, x.memory[off-x.base:]); n < len(p) {
		err = io.EOF
	}
	x.next = off + int64(n)
	return n, err
}

// Hold is an http1.Lease's.
func (x *Lease) Hold(at int64) (rest []byte, file, ok bool) {
	x.mu.Lock()
	switch x.next = at; {
	case x.over || at < x.base:
		x.mu.Unlock()
		return nil, false, false
	case x.at != nil:
		return nil, true, true
	}
	return x.memory[at-x.base:], false, true
}

// Release ends what Hold began.
func (x *Lease) Release(at int64) {
	x.next = at
	x.mu.Unlock()
}

// Close ends the use of the body.
func (x *Lease) Close() { x.end() }

// end lets go of the body, unless that was done.
func (x *Lease) end() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over {
		return false
	}
	x.over = true
	x.timer.Stop()
	if x.slow != nil {
		r := x.large.readers
		if x.own {
			x.large.leave()
		}
		r.mu.Lock()
		r.all.Remove(x.slow)
		r.held -= x.copied
		r.count(x.client, -x.reads())
		r.mu.Unlock()
	}
	x.letGo()
	return true
}

// letGo lets go of where the body is. x.mu is held.
func (x *Lease) letGo() {
	at := x.at
	x.memory, x.at = nil, nil
	if at != nil {
		at.pages.letGo()
	}
}

// tarries is called when the reader has been there for a while. One that is in a slab has what is left copied; others keep what they read for as long
// as that is in the cache anyway, or may be kept for them.
func (x *Lease) tarries() {
	r := x.large.keeper()
	if r == nil {
		return // it never was in a cache
	}
	if x.becomesSlow(r) {
		r.end()
	}
	r.cache.unmaps() // it ends them where bodies go later
}

func (x *Lease) becomesSlow(r *slowReaders) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over {
		return false
	}
	if x.at == nil && x.large.at.Load() != nil { // it moved meanwhile, and would be there twice
		if b, ok := x.large.open(); ok {
			x.memory, x.at = b.memory, b.at
		}
	}
	if x.at != nil && x.at.pages.slab != nil {
		rest := bytes.Clone(x.memory[x.next-x.base:])
		x.letGo()
		x.memory, x.base, x.copied = rest, x.next, int64(len(rest))
	} else {
		x.own = true
		x.large.enter()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	x.slow = r.all.PushBack(x)
	r.held += x.copied
	r.count(x.client, x.reads())
	return r.held > r.most
}

// reads is what a slow reader counts for.
func (x *Lease) reads() int64 {
	if x.own {
		return x.large.size
	}
	return x.copied
}

// count counts what a client reads more, or less. r.mu is held.
func (r *slowReaders) count(client netip.Addr, bytes int64) {
	if !client.IsValid() {
		return
	}
	share, was := r.most/clientShare, r.each[client]
	is := was + bytes
	switch {
	case was <= share && is > share:
		r.over++
	case was > share && is <= share:
		r.over--
	}
	if r.each[client] = is; is == 0 {
		delete(r.each, client)
	}
}

// end has those who began first lose what they read, those of clients with more than their share before others, until what is held for such is within its
// bound.
func (r *slowReaders) end() {
	for {
		x := r.first()
		if x == nil {
			return
		}
		if x.end() {
			r.ended.Add(1)
		}
	}
}

// first is who is to lose what he reads; nil: no more is held than may be.
func (r *slowReaders) first() *Lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held <= r.most {
		return nil
	}
	var first *Lease
	for e := r.all.Front(); e != nil; e = e.Next() {
		x := e.Value.(*Lease)
		if x.copied == 0 && !(x.own && x.large.lingers.Load()) {
			continue
		}
		if r.over == 0 || r.each[x.client] > r.most/clientShare {
			return x
		}
		if first == nil {
			first = x
		}
	}
	return first
}

// For says whose request a body is read for, as net/http does.
func (b *Body) For(remote string) { b.remote = remote }

// clientOf is whom a request counts for.
func clientOf(remote string) netip.Addr {
	at, _ := netip.ParseAddrPort(remote)
	return http1.ClientOf(at.Addr())
}

// counted is how many there are, and for how many bytes.
func (r *slowReaders) counted() (readers, held uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return uint64(r.all.Len()), uint64(r.held)
}

// keeper has the slow readers of the cache that the body is, or was, kept in; nil: it never was.
func (l *largeBody) keeper() *slowReaders {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.readers
}

// enter counts a slow reader who has the body itself, leave one less.
func (l *largeBody) enter() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slow++
	l.judge()
}

func (l *largeBody) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slow--
	l.judge()
}

// judge counts the body among what only slow readers need, if it is that now. l.mu is held.
func (l *largeBody) judge() {
	lingers := l.slow > 0 && l.entries+l.holders == 0
	r := l.readers
	if r == nil || lingers == l.lingers.Load() {
		return
	}
	l.lingers.Store(lingers)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !lingers {
		r.held -= l.size
		return
	}
	if r.held += l.size; r.held > r.most {
		select {
		case r.many <- struct{}{}:
		default: // it will be called
		}
	}
}
