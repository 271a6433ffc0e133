package cache

import (
	"net/http"
	"strconv"
	"time"
)

// Object is a kept response, or the head of one that is being filled. It is immutable, its Header included.
type Object struct {
	Status int
	// Header is what is sent on, end to end. A name without values keeps net/http from adding the field itself.
	Header http.Header
	// Body is whole, and empty while it is being filled.
	Body []byte

	received   time.Time
	initialAge time.Duration
	ttl        time.Duration // from received

	staleWhileRevalidate, staleIfError time.Duration // from the end of ttl
	held                               time.Time     // until then the origin, which failed, is not asked

	vary []string // the fields that selected it
	era  uint64   // how many fences there were when it was asked for
	lent *Terms   // on which terms a peer handed it on; nil: the origin sent it
}

// head makes the head of an object of a response that came now. It takes over the header.
func (p *Policy) head(status int, cc Control, h http.Header, requested, received time.Time) *Object {
	o := &Object{Status: status, Header: h}
	o.live(p, cc, requested, received)
	if !p.KeysCookies() {
		h.Del("Set-Cookie")
	}
	h.Del("Content-Length")
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil
	}
	if h.Get("Date") == "" {
		h.Set("Date", received.UTC().Format(http.TimeFormat)) // RFC 9110 §6.6.1
	}
	if status == http.StatusOK {
		h.Set("Accept-Ranges", "bytes")
	}
	o.vary = p.selecting(h)
	return o
}

// live sets the object's times by its header.
func (o *Object) live(p *Policy, cc Control, requested, received time.Time) {
	o.received = received
	o.initialAge = initialAge(o.Header, requested, received)
	o.ttl = p.TTL(o.Status, cc, o.Header, requested, received)
	o.staleWhileRevalidate, o.staleIfError = stale(cc)
	o.held, o.lent = time.Time{}, nil
}

// whole is the object with its body.
func (o *Object) whole(body []byte) *Object {
	w := *o
	w.Body = body
	w.Header = o.Header.Clone()
	if o.Status != http.StatusNoContent {
		w.Header["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	return &w
}

// holding is the object, in the place of an origin that failed, until then.
func (o *Object) holding(until time.Time) *Object {
	w := *o
	w.held = until
	return &w
}

// useful says whether keeping the object can ever spare anything: it is fresh for a while, or may be used stale,
// or can be validated.
func (o *Object) useful() bool {
	return o.ttl > 0 || o.staleWhileRevalidate > 0 || o.staleIfError > 0 || conditions(o) != nil
}

// headerSize estimates the memory the header takes.
func (o *Object) headerSize() int64 {
	n := 0
	for name, lines := range o.Header {
		n += len(name) + headerOverhead
		for _, line := range lines {
			n += len(line) + lineOverhead
		}
	}
	return int64(n)
}

const (
	headerOverhead = 64 // a map slot: two words of string, three of slice, and its share of the table
	lineOverhead   = 16
)
