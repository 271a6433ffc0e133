package cache

import (
	"net/http"
	"slices"
	"strings"
)

// A variant that is missing may be one that is kept for other requests: the origin is offered the entity tags of those, and a 304
// says which of them it would have sent (RFC 9111 §4.3.1, §4.3.3). So a body that several kinds of viewers get comes from the
// origin once.
//
// What is offered is in memory with its body, and has no coding that this request does not take: some origins give all codings of
// a response one tag.

const (
	// maxOffers is how many variants of a URI are offered: those that came last.
	maxOffers = 8
	// maxOfferTag is how long an entity tag may be that is offered, in bytes.
	maxOfferTag = 256
)

// offer is a variant that may be offered.
type offer struct{ slot, tag string }

// offers notes what was put into the slot of a variant, to be offered to those who miss another. c.mu is held.
func (c *Cache) offers(k Key, slot string, o *Object) {
	tag := o.Header.Get("Etag")
	e, ok := c.get(k.URI)
	if !ok || e.crossroads == nil || tag == "" || len(tag) > maxOfferTag || o.InSlices() {
		return
	}
	x := *e.crossroads
	is := offer{slot, strings.Clone(tag)}
	if len(x.offers) > 0 && x.offers[0] == is {
		return
	}
	rest := slices.DeleteFunc(slices.Clone(x.offers), func(o offer) bool { return o.slot == slot })
	x.offers = append([]offer{is}, rest[:min(len(rest), maxOffers-1)]...)
	with := &entry{crossroads: &x} // on disk it is the same
	with.seen.Store(e.seen.Load())
	with.given.Store(e.given.Load())
	with.mark(e.marks.Load() & ofUse)
	c.hold(k.URI, with, 0)
}

// offered are the variants to be offered for what is wanted, each tag once. c.mu is held.
func (c *Cache) offered(w Want) (all []offer) {
	e, ok := c.get(w.Key.URI)
	if !ok || e.crossroads == nil {
		return nil
	}
	takes := AcceptEncoding(w.Header)
	for _, x := range e.crossroads.offers {
		o := c.offeredAs(x)
		if o == nil || slices.ContainsFunc(all, func(a offer) bool { return a.tag == x.tag }) {
			continue
		}
		if coding := o.Header.Get("Content-Encoding"); coding == "" || hasMember(takes, coding) {
			all = append(all, x)
		}
	}
	return all
}

// offeredAs is what is kept of an offer; nil: it is not there any more. c.mu is held.
func (c *Cache) offeredAs(x offer) *Object {
	kept, ok := c.stored.GetEntryQuietly(x.slot)
	if !ok || !c.alive(x.slot, kept.Value) {
		return nil
	}
	if o := kept.Value.object; o != nil && !o.OnDisk() && o.Header.Get("Etag") == x.tag {
		return o
	}
	return nil
}

// hasMember says whether a list in canonical form has a member.
func hasMember(list, member string) bool {
	for m := range strings.SplitSeq(list, ",") {
		if trim(m) == member {
			return true
		}
	}
	return false
}

// offering is the condition that offers variants.
func offering(all []offer) http.Header {
	tags := make([]string, len(all))
	for i, x := range all {
		tags[i] = x.tag
	}
	return http.Header{"If-None-Match": {strings.Join(tags, ", ")}}
}

// selected is the variant that a 304 names of those it was offered; not ok: it names none, or says of none.
func selected(all []offer, h http.Header) (x offer, ok bool) {
	for _, match := range []func(a, b string) bool{strongMatch, weakMatch} {
		for _, x := range all {
			if match(h.Get("Etag"), x.tag) {
				return x, true
			}
		}
	}
	return offer{}, false
}

// selects is what a 304 is about, and where it is kept; nil: nothing that is kept.
func (f *fill) selects(h http.Header) (o *Object, slot string) {
	if f.stale != nil {
		return f.stale, f.slot
	}
	x, ok := selected(f.others, h)
	if !ok {
		return nil, ""
	}
	f.cache.mu.Lock()
	defer f.cache.mu.Unlock()
	return f.cache.offeredAs(x), x.slot
}

// renew keeps a variant, which a 304 has selected for another request, as that has updated it (RFC 9111 §4.3.4).
func (f *fill) renew(slot string, was, fresh *Object) {
	c := f.cache
	defer c.shelf.writeOut(slot)
	c.mu.Lock()
	defer c.mu.Unlock()
	kept, ok := c.stored.GetEntryQuietly(slot)
	if ok && kept.Value.object == was && !f.outdated && slices.Equal(fresh.more().vary, was.more().vary) && c.alive(slot, kept.Value) {
		c.put(slot, (&entry{object: fresh}).mark(renewal), 0)
	}
}
