package cache

import (
	"io"
	"net/http"
	"time"
)

// Lent is the body of a response that another node of the network hands on. Its terms stand in the place of what the policy
// would make of the response's times: no hop makes a response live longer, be it by MinTTL, ErrorTTL or a stale window.
type Lent struct {
	io.ReadCloser
	Terms
}

// Terms are those on which a response is handed on.
type Terms struct {
	// Kept says that whoever hands it on keeps it, or is about to, or at least shares it. What is neither is for one request alone.
	Kept bool
	// Shared says that it may be given to all who asked meanwhile: it is fresh, or may be used stale.
	Shared bool
	// Fresh is for how long yet it is fresh; below zero, for how long it has been stale.
	Fresh time.Duration
	// Soft says that it was purged softly where it is kept, and Asked when the origin was asked for it, at the earliest.
	Soft  bool
	Asked time.Time
	// From is what it was to the cache of the POP: a word of X-Cache, or empty, for a miss.
	From string
}

// on has the object live on the terms of its body, if there are any. Alone says that by these it is for one request alone.
func (o *Object) on(body io.ReadCloser) (alone bool) {
	l, is := body.(*Lent)
	if !is {
		return false
	}
	terms := l.Terms
	o.amend(func(r *rare) { r.lent, r.soft = &terms, l.Soft })
	o.ttl = l.Fresh
	o.lag = lag(o.received.Sub(l.Asked))
	return !l.Kept
}

// Lends says whether a response that a peer hands on may be used on its terms, and has them say no more than the purges that were
// made here. A peer counts what was purged softly as stale since it made that purge itself, which may have been later. What
// is fresh there is newer than all purges. Of those that were made before this process began nothing is known here.
func (c *Cache) Lends(k Key, h http.Header, t *Terms, now time.Time) bool {
	switch {
	case !t.Kept || !t.Soft:
		return true
	case t.Asked.Before(c.opened):
		return false
	}
	c.log.RLock()
	v := c.softs.softenedSince(k.URI, t.Asked)
	c.log.RUnlock()
	since := v.At.Sub(now)
	if !v.Soft || since >= t.Fresh {
		return true
	}
	whileRevalidate, ifError := stale(ParseControl(h))
	failing := -t.Fresh >= whileRevalidate // the peer would not use it otherwise
	t.Fresh = since
	return -since < whileRevalidate || failing && -since < ifError
}

// shared says whether the response, as it comes, is for all who asked meanwhile.
func (o *Object) shared() bool { return o.ttl > 0 || o.more().lent != nil && o.more().lent.Shared }

// From is what a response that was handed on was to the cache of the POP; empty: the origin sent it, or it was a miss.
func (o *Object) From() string {
	if o.more().lent == nil {
		return ""
	}
	return o.more().lent.From
}

// keeps says whether what the fill brings is to be kept. What was kept before and is asked for again always is.
func (f *fill) keeps() bool { return f.want.Keep == nil || f.stale != nil || f.want.Keep() }

// Match says which keys a purge may name: by tag, all of its distribution and host, for a key does not say its tags.
func (p Purge) Match() func(Key) bool {
	var one Purges
	one.add(untagged(p.rules()), time.Unix(0, 0)) // at any time but none
	return func(k Key) bool { v := one.Judge(k.URI, "", 0); return v.Hard || v.Soft }
}
