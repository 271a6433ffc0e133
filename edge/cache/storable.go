package cache

import "net/http"

// keeping is what the status alone says about keeping a response (CloudFront).
type keeping int

const (
	never    keeping = iota
	byPolicy         // by the TTLs of the policy
	asError          // always, for at least ErrorTTL
	ifGiven          // only for a lifetime that Cache-Control gives, and then for at least ErrorTTL
)

// kept knows the statuses that are understood; 206 would be kept in parts, and 304 is an update.
func kept(status int) keeping {
	switch status {
	case 200, 203, 204, 300, 301, 302, 303, 307, 308:
		return byPolicy
	case 404, 414, 500, 501, 502, 503, 504:
		return asError
	case 400, 403, 405, 410, 412, 415:
		return ifGiven
	}
	return never
}

// Storable says whether the response to a GET may be kept (RFC 9111 §3), and if not, names the reason in one word.
// Authorized says that the origin was sent an Authorization.
//
// As in CloudFront MinTTL above zero overrules no-store, no-cache and private, and ErrorTTL does so for errors. What the
// origin was sent is all in the key, so what is private there is private to all who send the same.
func (p *Policy) Storable(status int, cc Control, h http.Header, authorized bool) (ok bool, why string) {
	keep, overruled := kept(status), p.MinTTL > 0
	switch keep {
	case never:
		return false, "status"
	case asError:
		overruled = p.ErrorTTL > 0
	case ifGiven:
		overruled = false
		life := cc.MaxAge
		if cc.SMaxAge.Given {
			life = cc.SMaxAge
		}
		if life.Value == 0 || cc.NoCache {
			return false, "status"
		}
	}
	_, any := vary(h)
	switch {
	case cc.NoStore && !overruled:
		return false, "no-store"
	case cc.Private && !overruled:
		return false, "private"
	case authorized && !cc.Public && !cc.MustRevalidate && !cc.SMaxAge.Given: // §3.5
		return false, "authorization"
	case any: // §4.1: no request would ever match
		return false, "vary"
	}
	return true, ""
}
