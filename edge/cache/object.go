package cache

import (
	"math"
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

	era uint32 // how many fences there were when it was asked for
	lag uint32 // ms from when the origin was asked for it until received, rounded up; maxLag: it is not known

	rare *rare // nil: it has nothing of that
}

// rare is what few objects have. It is never changed: amend makes another.
type rare struct {
	staleWhileRevalidate, staleIfError time.Duration // from the end of ttl
	held                               int64         // until then the origin, which failed, is not asked, in ns since 1970; 0: it is

	vary []string // the fields that selected it
	tags string   // what it is purged by, besides its URI: see parseTags
	lent *Terms   // on which terms a peer handed it on; nil: the origin sent it
	soft bool     // it was purged softly

	sliced *sliced // of the head of an object in slices
}

var nothingRare rare

// more is what the object has of what few have.
func (o *Object) more() *rare {
	if o.rare == nil {
		return &nothingRare
	}
	return o.rare
}

// amend changes what an object has of what few have, while nobody else knows of it.
func (o *Object) amend(change func(*rare)) {
	r := *o.more()
	if change(&r); r.none() {
		o.rare = nil
		return
	}
	o.rare = &r
}

func (r *rare) none() bool {
	return r.staleWhileRevalidate == 0 && r.staleIfError == 0 && r.held == 0 && len(r.vary) == 0 && r.tags == "" && r.lent == nil && !r.soft && r.sliced == nil
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
	vary := p.selecting(h)
	o.amend(func(r *rare) { r.vary = vary })
	o.Header = NewHeader(h)
	return o
}

// live sets what of the object follows from its header: its times and tags.
func (o *Object) live(p *Policy, cc Control, h http.Header, requested, received time.Time) {
	o.received = received
	o.lag = lag(received.Sub(requested))
	o.initialAge = initialAge(h, requested, received)
	o.ttl = p.TTL(o.Status, cc, h, received, o.initialAge)
	tags, _ := p.tagged(h)
	o.amend(func(r *rare) {
		r.staleWhileRevalidate, r.staleIfError = stale(cc)
		r.held, r.lent, r.soft, r.tags = 0, nil, false, tags
	})
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
	w.amend(func(r *rare) { r.soft = true })
	return &w
}

// Soft says that it was purged softly, so it is stale.
func (o *Object) Soft() bool { return o.more().soft }

// maxLag is what is not known, or longer than 49 days.
const maxLag = math.MaxUint32

func lag(d time.Duration) uint32 {
	ms := (max(d, 0) + time.Millisecond - 1) / time.Millisecond
	return uint32(min(ms, maxLag))
}

// Asked is when the origin was asked for it, or for whether it is still good, at the earliest; zero: that is not known. What was purged later was not
// known to that response.
func (o *Object) Asked() time.Time {
	if o.lag == maxLag {
		return time.Time{}
	}
	return o.received.Add(-time.Duration(o.lag) * time.Millisecond)
}

// holding is the object, in the place of an origin that failed, until then.
func (o *Object) holding(until time.Time) *Object {
	w := *o
	w.amend(func(r *rare) { r.held = until.UnixNano() })
	return &w
}

// useful says whether keeping the object can ever spare anything: it is fresh for a while, or may be used stale,
// or can be validated.
func (o *Object) useful() bool {
	return o.ttl > 0 || o.more().staleWhileRevalidate > 0 || o.more().staleIfError > 0 || conditions(o) != nil
}
