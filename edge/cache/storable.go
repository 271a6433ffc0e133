package cache

import (
	"net/http"
	"time"
)

// keeping is what the status alone says about keeping a response (CloudFront).
type keeping int

const (
	never    keeping = iota
	byPolicy         // by the TTLs of the policy
	asError          // always, for at least ErrorTTL
	ifGiven          // only for a lifetime that the origin gives, and an error then for at least ErrorTTL
)

// kept says how responses of a status are kept. 206 is kept as what it is a part of, if it was asked for (parted), 304 is an update, 416 is about a
// range, 425 about how one viewer asked (RFC 8470 §5.2), and 1xx are not the response yet.
func kept(status int) keeping {
	switch status {
	case 200, 203, 204, 300, 301, 302, 303, 307, 308:
		return byPolicy
	case 404, 410, 414, 500, 501, 502, 503, 504:
		return asError
	case 206, 304, 416, http.StatusTooEarly:
		return never
	}
	if status < 200 || status > 599 {
		return never
	}
	return ifGiven
}

// guessable says whether a response of a status may be fresh without the origin saying for how long (RFC 9110 §15.1).
func guessable(status int) bool {
	switch status {
	case 200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501:
		return true
	}
	return false
}

// known says whether a status is one of RFC 9110 §15, whose rules of caching are followed.
func known(status int) bool {
	switch {
	case 200 <= status && status <= 206, 300 <= status && status <= 305, status == 307, status == 308,
		400 <= status && status <= 417, status == 421, status == 422, status == 426, 500 <= status && status <= 505:
		return true
	}
	return false
}

// Storable says whether the response to a GET may be kept (RFC 9111 §3), and if not, names the reason in one word.
// Authorized says that the origin was sent an Authorization.
//
// As in CloudFront MinTTL above zero overrules no-store, no-cache and private, and ErrorTTL does so for errors. What the
// origin was sent is all in the key, so what is private there is private to all who send the same.
func (p *Policy) Storable(status int, cc Control, h http.Header, authorized bool, received time.Time) (ok bool, why string) {
	keep, overruled := kept(status), p.MinTTL > 0
	switch keep {
	case never:
		return false, "status"
	case asError:
		overruled = p.ErrorTTL > 0
	case ifGiven:
		overruled = false
		if !p.given(status, cc, h, received) {
			return false, "status"
		}
	}
	_, any := vary(h)
	switch {
	case cc.NoStore && !overruled:
		return false, "no-store"
	case cc.Private && !overruled:
		return false, "private"
	case cc.MustUnderstand && !known(status): // §5.2.2.3
		return false, "status"
	case authorized && !cc.Public && !cc.MustRevalidate && !cc.SMaxAge.Given: // §3.5
		return false, "authorization"
	case any: // §4.1: no request would ever match
		return false, "vary"
	}
	return true, ""
}

// given says whether the origin gives a lifetime, or one may be guessed.
func (p *Policy) given(status int, cc Control, h http.Header, received time.Time) bool {
	if cc.NoStore || cc.Private { // these have reasons of their own
		return true
	}
	if life, given := lifetime(cc, h, received); given {
		return life > 0
	}
	return p.Heuristic && heuristic(status, cc, h, received) > 0
}

// outlived says whether a response was stale when it came, by a lifetime that the origin gave, and may be used all the same by whoever says that
// he takes it so (§5.2.1.2).
func (p *Policy) outlived(cc Control, h http.Header, received time.Time) bool {
	life, given := lifetime(cc, h, received)
	return p.Directives && given && life > 0 && !cc.strict()
}
