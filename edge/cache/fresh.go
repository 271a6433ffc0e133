package cache

import (
	"net/http"
	"time"

	"github.com/perigee-net/perigee/cluster/trace"
)

// This is RFC 9111 §4.2 with the operator's TTLs (CloudFront): where the origin gives a lifetime it is held
// between MinTTL and MaxTTL; where it gives none DefaultTTL stands in the place of heuristics (§4.2.2). The origin's
// lifetimes count from when the response was made, MinTTL and ErrorTTL from when it came.

// lifetime is the freshness lifetime that the origin gave (§4.2.1).
func lifetime(cc Control, h http.Header, received time.Time) (d time.Duration, given bool) {
	switch {
	case cc.NoStore, cc.NoCache, cc.Private:
		return 0, true
	case cc.SMaxAge.Given:
		return cc.SMaxAge.Value, true
	case cc.MaxAge.Given:
		return cc.MaxAge.Value, true
	}
	expires, given := h["Expires"]
	if !given || len(expires) == 0 {
		return 0, false
	}
	at, err := http.ParseTime(expires[0])
	if err != nil { // "0" above all: already expired (§5.3)
		return 0, true
	}
	return max(0, at.Sub(date(h, received))), true
}

// initialAge is how old a response was when it came (§4.2.3).
func initialAge(h http.Header, requested, received time.Time) time.Duration {
	apparentAge := max(0, received.Sub(date(h, received))).Truncate(time.Second) // Date knows no fractions
	ageValue, _ := deltaSeconds(trim(h.Get("Age")))
	responseDelay := received.Sub(requested)
	correctedAgeValue := ageValue + responseDelay
	return max(apparentAge, correctedAgeValue)
}

// date is when the origin says it made the response, or else when it came (RFC 9110 §6.6.1).
func date(h http.Header, received time.Time) time.Time {
	if d, err := http.ParseTime(h.Get("Date")); err == nil {
		return d
	}
	return received
}

// TTL is for how long after it came a response may be used without asking the origin.
func (p *Policy) TTL(status int, cc Control, h http.Header, requested, received time.Time) time.Duration {
	floor, fallback := p.MinTTL, max(p.MinTTL, p.DefaultTTL)
	if status >= 400 {
		floor, fallback = p.ErrorTTL, p.ErrorTTL
	}
	life, given := lifetime(cc, h, received)
	if given {
		life = min(life, p.MaxTTL)
	} else {
		life = fallback
	}
	return max(life-initialAge(h, requested, received), floor)
}

// stale is for how long after its TTL a response may be used while it is asked for again, and if that fails. No
// time at all where the origin forbids stale use: these directives are stronger than RFC 5861's (§4.2.4).
func stale(cc Control) (whileRevalidate, ifError time.Duration) {
	if cc.NoStore || cc.NoCache || cc.Private || cc.MustRevalidate || cc.ProxyRevalidate || cc.SMaxAge.Given {
		return 0, 0
	}
	return cc.StaleWhileRevalidate.Value, cc.StaleIfError.Value
}

// Age is the current age of a response (§4.2.3).
func (o *Object) Age(now time.Time) time.Duration { return o.initialAge + now.Sub(o.received) }

// FreshFor is for how long yet a response is fresh; below zero, for how long it has been stale.
func (o *Object) FreshFor(now time.Time) time.Duration { return o.ttl - now.Sub(o.received) }

// Reuse is what may be done with a kept response.
type Reuse int

// The ways of reuse.
const (
	Stale                Reuse = iota // ask the origin first
	Fresh                             // use it
	StaleWhileRevalidate              // use it at once, and ask the origin meanwhile
	StaleIfError                      // use it at once: the origin failed a moment ago, and is left alone for ErrorTTL
)

// Reuse says what may be done with a response now (§4, §4.2.4, RFC 5861).
func (o *Object) Reuse(now time.Time, tr *trace.Trace) Reuse {
	fresh := o.FreshFor(now)
	switch {
	case fresh > 0:
		if tr.On() {
			tr.Add("fresh for another %s", fresh)
		}
		return Fresh
	case now.Before(o.held) && o.coversErrors(now):
		if tr.On() {
			tr.Add("stale for %s: used, since the origin failed; it is asked again in %s", -fresh, o.held.Sub(now))
		}
		return StaleIfError
	case -fresh < o.staleWhileRevalidate:
		if tr.On() {
			tr.Add("stale for %s: used while the origin is asked (stale-while-revalidate=%s)", -fresh, o.staleWhileRevalidate)
		}
		return StaleWhileRevalidate
	}
	if tr.On() {
		tr.Add("stale for %s: the origin is asked first", -fresh)
	}
	return Stale
}

// coversErrors says whether a stale response may stand in for an origin that failed now.
func (o *Object) coversErrors(now time.Time) bool {
	return -o.FreshFor(now) < max(o.staleIfError, o.staleWhileRevalidate)
}
