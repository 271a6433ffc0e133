package cache

import (
	"hash/maphash"
	"math/bits"
	"sync/atomic"
)

// The library weighs how often a response is asked for against each of those that have to go for it, one by one. A large one takes the place of
// thousands that are each asked for once less often, and may be asked for no more when it is there. So it has to be asked for more often before it is
// kept where others have to go for it: once more for each doubling of its size.

const (
	// admitShare is what part of the cache a body may take that is kept the first time: the largest that is kept, of an eighth, is the fourth time.
	admitShare = 64
	// admitPlaces is how many responses are remembered that were too large. Who comes to a place that is taken wears down who is there.
	admitPlaces = 1024
	// admitAge is after how many of such all are halved: what is asked for again only after so many others is not asked for often.
	admitAge = 8 * admitPlaces
)

// admission remembers how often large responses came that were not kept. Cache.mu guards it.
type admission struct {
	seed   maphash.Seed
	places []asked // nil: none came yet
	came   int
	passed atomic.Uint64
}

// asked is how often a response came.
type asked struct {
	of uint64 // a hash of its slot
	n  uint8
}

// unadmitted is why a body is not kept that was not asked for often enough.
const unadmitted = "unadmitted"

// admitted says whether what a fill has brought is to be kept. What takes the place of what was kept is, what is in slices, and what several ask for at a
// time. On disk there is room for all. c.mu is held.
func (f *fill) admitted(e *entry) bool {
	switch {
	case !f.judged() || e.is(renewal) || e.object.InSlices() || f.isJoined():
		return true
	case f.weighed:
		return !f.tooLight
	}
	return f.cache.admits(f.slot, e.object.Size())
}

// willBeAdmitted says so of a body of which only the size is known, for as long as nobody joins: then it is. Where not even that is known (−1) it
// is judged when it has come, and taken to be kept till then.
func (f *fill) willBeAdmitted(size int64) bool {
	c := f.cache
	if size <= c.limit/admitShare || !f.judged() {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.isJoined() {
		return true
	}
	f.weighed, f.tooLight = true, !c.admits(f.slot, size)
	return !f.tooLight
}

// judged says whether what a fill brings has to be asked for often enough.
func (f *fill) judged() bool { return f.cache.shelf == nil && f.stale == nil && f.want.begin == nil }

func (f *fill) isJoined() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.joined
}

// admits says whether a body of that size is to be kept, and remembers that it was asked for if not. c.mu is held.
func (c *Cache) admits(slot string, size int64) bool {
	more := bits.Len64(uint64(max(0, size-1) / (c.limit / admitShare)))
	if more == 0 || c.stored.WeightedSize()+uint64(size) <= c.stored.GetMaximum() {
		return true
	}
	a := &c.admission
	if a.places == nil {
		a.seed, a.places = maphash.MakeSeed(), make([]asked, admitPlaces)
	}
	if a.came++; a.came%admitAge == 0 {
		for i := range a.places {
			a.places[i].n /= 2
		}
	}
	of := maphash.String(a.seed, slot)
	p := &a.places[of%admitPlaces]
	switch {
	case p.of == of && int(p.n) >= more:
		p.n = 0
		return true
	case p.of == of:
		p.n++
	case p.n > 0:
		p.n--
	default:
		*p = asked{of, 1}
	}
	a.passed.Add(1)
	return false
}
