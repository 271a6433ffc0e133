package cache

import (
	"net/http"
	"strconv"
	"time"
)

// Object is a kept response, or the head of one that is being filled. It is immutable.
type Object struct {
	Status int
	// Header is what is sent on, end to end. Of a kept response it is without the fields that Perigee says itself.
	Header Header
	// Body is whole; it is empty while it is being filled, where it is large and where it is on disk: see Open.
	Body []byte

	body uint64 // the number of the body, where there is a disk: an object and its body there have the same
	at   *place // where the body is, if it is not in memory

	large *largeBody // the body, if it is large and in memory

	received   time.Time
	initialAge time.Duration
	ttl        time.Duration // from received

	staleWhileRevalidate, staleIfError time.Duration // from the end of ttl
	held                               int64         // until then the origin, which failed, is not asked, in ns since 1970; 0: it is

	vary []string // the fields that selected it
	tags string   // what it is purged by, besides its URI: see parseTags
	era  uint64   // how many fences there were when it was asked for
	lent *Terms   // on which terms a peer handed it on; nil: the origin sent it

	sliced *sliced // of the head of an object in slices
}

// head makes the head of an object of a response that came now. It changes the header.
func (p *Policy) head(status int, cc Control, h http.Header, requested, received time.Time) *Object {
	o := &Object{Status: status}
	if !p.KeysCookies() {
		h.Del("Set-Cookie")
	}
	h.Del("Content-Length")
	o.live(p, cc, h, requested, received)
	if h.Get("Date") == "" {
		h.Set("Date", received.UTC().Format(http.TimeFormat)) // RFC 9110 §6.6.1
	}
	if status == http.StatusOK {
		h.Set("Accept-Ranges", "bytes")
	}
	o.vary = p.selecting(h)
	o.Header = NewHeader(h)
	return o
}

// live sets what of the object follows from its header: its times and tags.
func (o *Object) live(p *Policy, cc Control, h http.Header, requested, received time.Time) {
	o.received = received
	o.initialAge = initialAge(h, requested, received)
	o.ttl = p.TTL(o.Status, cc, h, requested, received)
	o.staleWhileRevalidate, o.staleIfError = stale(cc)
	o.held, o.lent = 0, nil
	o.tags, _ = p.tagged(h)
}

// whole is the object with its body.
func (o *Object) whole(body []byte) *Object {
	w := *o
	if len(body) < largeBytes {
		w.Body = body
	} else {
		w.large = newLarge(body)
	}
	w.Header = o.Header.without(ownFields)
	if o.Status != http.StatusNoContent {
		w.Header += Header("Content-Length: " + strconv.Itoa(len(body)) + "\r\n")
	}
	return &w
}

// softened is the object as one that was purged softly: stale since then.
func (o *Object) softened(since time.Time) *Object {
	w := *o
	w.ttl = min(o.ttl, since.Sub(o.received))
	return &w
}

// holding is the object, in the place of an origin that failed, until then.
func (o *Object) holding(until time.Time) *Object {
	w := *o
	w.held = until.UnixNano()
	return &w
}

// useful says whether keeping the object can ever spare anything: it is fresh for a while, or may be used stale,
// or can be validated.
func (o *Object) useful() bool {
	return o.ttl > 0 || o.staleWhileRevalidate > 0 || o.staleIfError > 0 || conditions(o) != nil
}
