package cache

import (
	"bytes"
	"math"
	"math/bits"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/trace"
)

// The store is one table. Under the URI of a key is either the response itself, where neither the policy keys nor a
// response varies by anything else, or the crossroads to its variants, which are kept under the URI, the generation of
// the crossroads, and all that selects them. So taking away the one entry under the URI takes away all variants at once:
// a new crossroads has a new generation, and what was kept under the old one is never found again and is evicted.

// entry is what is kept in one slot: an object, a crossroads, or else the note that what the origin sends cannot be shared, so that each
// request asks on its own. There are as many as objects: it is 48 bytes.
type entry struct {
	object     *Object
	crossroads *crossroads

	seen   atomic.Uint64          // the newest purge that the entry was compared with, or dead
	soft   atomic.Pointer[Object] // the object since it was purged softly
	given  atomic.Int64           // when it was given to the disk, or found there, in s since 1970; of a note: until when it holds, in ns
	marks  atomic.Uint32
	weight uint32
}

// The marks of an entry.
const (
	ofUse   = 1 << iota // it was found
	renewal             // its body was kept before
)

func (e *entry) is(mark uint32) bool { return e.marks.Load()&mark != 0 }
func (e *entry) mark(mark uint32) *entry {
	e.marks.Or(mark)
	return e
}

// dead is what an entry has seen that was purged.
const dead = math.MaxUint64

// crossroads says what selects the variants of a URI.
type crossroads struct {
	generation uint64
	vary       []string
	offers     []offer // the newest first; not on disk
}

// entryOverhead is what an entry takes besides its slot, header and body: itself, its object and that again once purged
// softly, its node in the library and its share of the library's tables. TestWhatIsCountedIsWhatIsHeld measures it.
const entryOverhead = 416

// rareOverhead is what few objects have besides.
const rareOverhead = 80

// apartFor is how long a key stays apart after a response that could not be shared (RFC 9111 §4: requests are only
// collapsed where the response may be reused). At its end one request waits for another again.
const apartFor = 10 * time.Second

// Found is what the store has for a request.
type Found struct {
	// Object is the kept response that matches; nil if there is none.
	Object *Object
	// Apart says that requests for the key are not to be collapsed, and nothing is kept of them.
	Apart bool
	// Others says that responses of the URI are kept, by what they vary by, and none for this request.
	Others bool
	// Fenced says that a purge that this node has missed may be about the object: the origin is to be asked first.
	Fenced bool

	slot string
}

// Reuse says what may be done with the object now.
func (f Found) Reuse(now time.Time, tr *trace.Trace) Reuse {
	if f.Fenced {
		tr.Add("this node has missed purges, and is about to hear of them: the origin is asked first")
		return Stale
	}
	return f.Object.Reuse(now, tr)
}

// Find looks for the response to a request, which the policy's Key made key of. It does not judge whether it is fresh. It may
// wait for the disk.
func (c *Cache) Find(k Key, p *Policy, h http.Header, now time.Time, tr *trace.Trace) Found {
	return c.find(k, p, h, now, tr, c.shelf != nil)
}

// find is Find. It looks at the disk only if it is to, for which c.mu must not be held.
func (c *Cache) find(k Key, p *Policy, h http.Header, now time.Time, tr *trace.Trace, onDisk bool) Found {
	get := func(slot string) (*entry, bool) {
		e, ok := c.get(slot)
		if !ok && onDisk {
			e, ok = c.load(slot)
		}
		return e, ok
	}
	e, ok := get(k.URI)
	f := Found{slot: k.URI}
	switch {
	case ok && e.crossroads != nil:
		e.use()
		f.slot = e.crossroads.slot(k, p, h)
		if tr.On() {
			tr.Add("its responses vary by %q and what the policy keys", e.crossroads.vary)
		}
		e, ok = get(f.slot)
		f.Others = !ok
	case k.Variant != "":
		f.slot = k.URI + k.Variant
		ok = false
	}
	switch {
	case !ok:
		if tr.On() {
			tr.Add("nothing is kept for %s", k)
		}
	case e.object != nil:
		c.found(&f, e)
		if tr.On() {
			tr.Add("a response is kept for %s: status %d, %d bytes, age %s", k, f.Object.Status, f.Object.Size(), f.Object.Age(now))
			if f.Object.InSlices() {
				tr.Add("it is kept in slices of %d bytes, as far as they were asked for", SliceSize)
			}
			if f.Object.OnDisk() {
				tr.Add("its body is on disk")
			}
			if e.soft.Load() != nil {
				tr.Add("it was purged softly, and is stale since")
			}
		}
	default:
		left := time.Duration(e.given.Load() - now.UnixNano())
		if f.Apart = left > 0; tr.On() && f.Apart {
			tr.Add("responses for %s could not be shared: each request asks on its own for another %s", k, left)
		}
	}
	return f
}

// get is what is kept in a slot and not purged.
func (c *Cache) get(slot string) (*entry, bool) {
	e, ok := c.stored.GetIfPresent(slot)
	if !ok || !c.alive(slot, e) {
		return nil, false
	}
	return e, true
}

// found sets what is found of an entry with an object.
func (c *Cache) found(f *Found, e *entry) {
	e.use()
	f.Object = e.object
	if soft := e.soft.Load(); soft != nil {
		f.Object = soft
	}
	f.Fenced = f.Object.era < c.fence.Load()
}

// use notes that an entry was of use.
func (e *entry) use() {
	if !e.is(ofUse) {
		e.mark(ofUse)
	}
}

func (x *crossroads) slot(k Key, p *Policy, h http.Header) string {
	b := x.appendGeneration(append(make([]byte, 0, len(k.URI)+len(k.Variant)+64), k.URI...))
	b = append(b, k.Variant...)
	b = append(b, '|')
	return string(append(b, p.secondary(x.vary, h)...))
}

func (x *crossroads) appendGeneration(b []byte) []byte {
	return append(strconv.AppendUint(b, x.generation, 10), '|')
}

// place is the slot for a response to a request, by the fields the response varies by. It makes the crossroads where one
// is needed, and widens one that does not know all the fields yet. c.mu is held.
func (c *Cache) place(k Key, p *Policy, h http.Header, vary []string) string {
	var x *crossroads
	if e, ok := c.get(k.URI); ok {
		x = e.crossroads
	}
	if x == nil && k.Variant == "" && len(vary) == 0 {
		return k.URI
	}
	if x == nil || !containsAll(x.vary, vary) {
		c.generation++
		wide := &crossroads{generation: c.generation, vary: vary}
		if x != nil {
			wide.vary = slices.Concat(x.vary, vary)
			slices.Sort(wide.vary)
			wide.vary = slices.Compact(wide.vary)
		}
		x = wide
		c.put(k.URI, &entry{crossroads: x}, 0)
	}
	return x.slot(k, p, h)
}

func containsAll(all, some []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(all, s) })
}

// put keeps an entry, for which so many bytes are reserved already, or says that there is no room. Either way what was
// in the slot before is gone. c.mu is held, and who holds it calls writeOut afterwards.
func (c *Cache) put(slot string, e *entry, reserved int64) bool {
	e.seen.Store(c.newest.Load()) // a fill that a purge since was about is outdated, and does not get here
	if !c.hold(slot, e, reserved) {
		c.stored.Invalidate(slot)
		c.shelf.forget(slot)
		return false
	}
	c.shelf.put(slot, e)
	return true
}

// hold holds an entry in memory, for which so many bytes are reserved already, or says that there is no room. c.mu is held.
func (c *Cache) hold(slot string, e *entry, reserved int64) bool {
	size := allocated(len(slot)) + entryOverhead
	switch {
	case e.object != nil:
		size += e.object.counted() + allocated(len(e.object.Header)) + allocated(len(e.object.more().tags)) + varySize(e.object.more().vary)
		if e.object.rare != nil {
			size += rareOverhead
		}
		if e.object.InSlices() {
			size += slicedOverhead
		}
	case e.crossroads != nil:
		size += varySize(e.crossroads.vary)
		for _, o := range e.crossroads.offers {
			size += allocated(len(o.slot)) + allocated(len(o.tag)) + 2*lineOverhead
		}
	}
	e.weight = uint32(size)
	if !c.reserve(size - reserved) {
		c.counts.refused.Add(1)
		return false
	}
	if e.object != nil && e.object.large != nil && !e.object.large.keep(c) {
		c.bytes.Add(reserved - size)
		return false
	}
	c.stored.Set(slot, e)
	return true
}

// hold has a large body stay for who needs the entry's, until letGo; not ok: it is gone.
func (e *entry) hold() bool { return e.object == nil || e.object.large == nil || e.object.large.hold() }

func (e *entry) letGo() {
	if e.object != nil && e.object.large != nil {
		e.object.large.letGo()
	}
}

// counted is what the body is counted for.
func (o *Object) counted() int64 {
	if o.large != nil {
		return o.large.room
	}
	return allocated(cap(o.Body))
}

// lasting is the body in memory as what stays for as long as somebody knows of it; not ok: it is gone.
func (o *Object) lasting() ([]byte, bool) {
	if o.large == nil {
		return o.Body, true
	}
	b, ok := o.large.open()
	if !ok || b.at == nil {
		return b.memory, ok
	}
	defer b.Close()
	return bytes.Clone(b.memory), true
}

// varySize is what the names of fields take.
func varySize(names []string) (size int64) {
	for _, name := range names {
		size += allocated(len(name)) + lineOverhead
	}
	return size
}

// lineOverhead is a string's own two words.
const lineOverhead = 16

// allocated is what the allocator takes for so many bytes, about: classes of size that are an eighth apart, and pages of
// 8 KiB for what is over 32 KiB.
func allocated(n int) int64 {
	const page, small = 8 << 10, 32 << 10
	step := 16
	if n > small {
		step = page
	} else if n > 128 {
		step = 1 << (bits.Len(uint(n-1)) - 4)
	}
	return int64((n + step - 1) / step * step)
}

// reserve takes so many bytes of what the cache may hold, or refuses. What is below zero is given back.
func (c *Cache) reserve(bytes int64) bool { return c.reserveOf(bytes, c.limit-c.slabs.size) }

// reserveOf is reserve within a limit: that of all but who moves bodies together is a slab less, so that there is one to move them to.
func (c *Cache) reserveOf(bytes, limit int64) bool {
	for {
		now := c.bytes.Load()
		if bytes > 0 && now+bytes > limit {
			return false
		}
		if c.bytes.CompareAndSwap(now, now+bytes) {
			return true
		}
	}
}

// Invalidate forgets all responses of the key's URI, and sees to it that those on their way are not kept
// (RFC 9111 §4.4).
func (c *Cache) Invalidate(k Key) {
	c.counts.invalidated.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stored.Invalidate(k.URI)
	c.shelf.forget(k.URI)
	c.outdate(func(f *fill) bool { return f.want.Key.URI == k.URI })
}

// outdate sees to it that fills under way are neither kept nor joined. c.mu is held.
func (c *Cache) outdate(which func(*fill) bool) {
	for f := range c.active {
		if which(f) {
			f.outdated = true
			c.remove(f)
		}
	}
}
