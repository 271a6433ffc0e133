package cache

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/perigee-net/perigee/cluster/trace"
)

// The store is one table. Under the URI of a key is either the response itself, where neither the policy keys nor a
// response varies by anything else, or the crossroads to its variants, which are kept under the URI, the generation of
// the crossroads, and all that selects them. So taking away the one entry under the URI takes away all variants at once:
// a new crossroads has a new generation, and what was kept under the old one is never found again and is evicted.

// entry is what is kept in one slot: exactly one field is set, besides the weight.
type entry struct {
	object     *Object
	crossroads *crossroads
	apart      time.Time // until then each request asks the origin on its own: what it sends cannot be shared
	weight     uint32
}

// crossroads says what selects the variants of a URI.
type crossroads struct {
	generation uint64
	vary       []string
}

// entryOverhead is what an entry takes besides its slot, header and body: itself, its object, its share of the table.
const entryOverhead = 512

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

// Find looks for the response to a request, which the policy's Key made key of. It does not judge whether it is fresh.
func (c *Cache) Find(k Key, p *Policy, h http.Header, now time.Time, tr *trace.Trace) Found {
	e, ok := c.stored.GetIfPresent(k.URI)
	f := Found{slot: k.URI}
	switch {
	case ok && e.crossroads != nil:
		f.slot = e.crossroads.slot(k, p, h)
		if tr.On() {
			tr.Add("its responses vary by %q and what the policy keys", e.crossroads.vary)
		}
		e, ok = c.stored.GetIfPresent(f.slot)
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
		f.Object = e.object
		f.Fenced = e.object.era < c.fence.Load()
		if tr.On() {
			tr.Add("a response is kept for %s: status %d, %d bytes, age %s", k, e.object.Status, len(e.object.Body), e.object.Age(now))
		}
	default:
		f.Apart = now.Before(e.apart)
		if tr.On() && f.Apart {
			tr.Add("responses for %s could not be shared: each request asks on its own for another %s", k, e.apart.Sub(now))
		}
	}
	return f
}

func (x *crossroads) slot(k Key, p *Policy, h http.Header) string {
	b := strconv.AppendUint(append(make([]byte, 0, len(k.URI)+len(k.Variant)+64), k.URI...), x.generation, 10)
	b = append(b, '|')
	b = append(b, k.Variant...)
	b = append(b, '|')
	return string(append(b, p.secondary(x.vary, h)...))
}

// place is the slot for a response to a request, by the fields the response varies by. It makes the crossroads where one
// is needed, and widens one that does not know all the fields yet. c.mu is held.
func (c *Cache) place(k Key, p *Policy, h http.Header, vary []string) string {
	var x *crossroads
	if e, ok := c.stored.GetIfPresent(k.URI); ok {
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
// in the slot before is gone. c.mu is held.
func (c *Cache) put(slot string, e *entry, reserved int64) bool {
	size := int64(len(slot)) + entryOverhead
	switch {
	case e.object != nil:
		size += int64(len(e.object.Body)) + e.object.headerSize()
	case e.crossroads != nil:
		for _, name := range e.crossroads.vary {
			size += int64(len(name)) + lineOverhead
		}
	}
	e.weight = uint32(size)
	if !c.reserve(size - reserved) {
		c.counts.refused.Add(1)
		c.stored.Invalidate(slot)
		return false
	}
	c.stored.Set(slot, e)
	return true
}

// reserve takes so many bytes of what the cache may hold, or refuses. What is below zero is given back.
func (c *Cache) reserve(bytes int64) bool {
	for {
		now := c.bytes.Load()
		if bytes > 0 && now+bytes > c.limit {
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
	c.outdate(func(uri string) bool { return uri == k.URI })
}

// outdate sees to it that fills under way are neither kept nor joined. c.mu is held.
func (c *Cache) outdate(which func(uri string) bool) {
	for f := range c.active {
		if which(f.want.Key.URI) {
			f.outdated = true
			c.remove(f)
		}
	}
}
