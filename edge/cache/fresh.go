package cache

import (
	"net/http"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/trace"
)

// This is RFC 9111 §4.2 with the operator's TTLs (CloudFront): where the origin gives a lifetime it is held
// between MinTTL and MaxTTL; where it gives none DefaultTTL stands in the place of heuristics (§4.2.2), unless the
// policy asks for those. The origin's lifetimes count from when the response was made, MinTTL and ErrorTTL from when it came.

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
	if !given || len(expires) == 0 || cc.Targeted {
		return 0, false
	}
	at, ok := httpDate(expires[0], received)
	if !ok { // "0" above all: already expired (§5.3)
		return 0, true
	}
	return max(0, at.Sub(date(h, received))), true
}

// maxHeuristic is the longest that a response without a lifetime is taken to be fresh by heuristics.
const maxHeuristic = 24 * time.Hour

// heuristic is a lifetime by what the origin did not say: a tenth of the response's age since it was last modified, if
// its status or the origin allows one at all (§4.2.2).
func heuristic(status int, cc Control, h http.Header, received time.Time) time.Duration {
	if !guessable(status) && !cc.Public {
		return 0
	}
	modified, ok := httpDate(h.Get("Last-Modified"), received)
	if !ok {
		return 0
	}
	return min(max(0, date(h, received).Sub(modified)/10), maxHeuristic)
}

// initialAge is how old a response was when it came (§4.2.3).
func initialAge(h http.Header, requested, received time.Time) time.Duration {
	apparentAge := max(0, received.Sub(date(h, received))).Truncate(time.Second) // Date knows no fractions
	responseDelay := received.Sub(requested)
	correctedAgeValue := ageValue(h) + responseDelay
	return max(apparentAge, correctedAgeValue)
}

// ageValue is what Age says: the first member counts where there are several, and what is no number of seconds is as if
// it were not there (§5.1).
func ageValue(h http.Header) time.Duration {
	first, _, _ := strings.Cut(h.Get("Age"), ",")
	d, _ := deltaSeconds(trim(first))
	return d
}

// date is when the origin says it made the response, or else when it came (RFC 9110 §6.6.1).
func date(h http.Header, received time.Time) time.Time {
	if d, ok := httpDate(h.Get("Date"), received); ok {
		return d
	}
	return received
}

// httpDate reads a date in one of the three forms (RFC 9110 §5.6.7). Only GMT is a zone; a year of two digits that seems
// over 50 years ahead is in the past.
func httpDate(s string, now time.Time) (time.Time, bool) {
	if t, ok := fixdate(s); ok {
		return t, true
	}
	t, err := time.Parse(http.TimeFormat, s)
	if err == nil {
		return t, true
	}
	if strings.HasSuffix(s, " GMT") {
		if t, err = time.Parse(time.RFC850, s); err == nil {
			if t = t.UTC(); t.After(now.AddDate(50, 0, 0)) {
				t = t.AddDate(-100, 0, 0)
			}
			return t, true
		}
		return time.Time{}, false
	}
	t, err = time.Parse(time.ANSIC, s)
	return t, err == nil
}

// fixdate reads a date in the form that is to be sent, "Mon, 02 Jan 2006 15:04:05 GMT", as time.Parse does, at a fifth of the cost. What is
// not quite so is not ok, and may be a date all the same.
func fixdate(s string) (t time.Time, ok bool) {
	if len(s) != len(http.TimeFormat) || s[3] != ',' || s[4] != ' ' || s[7] != ' ' || s[11] != ' ' ||
		s[16] != ' ' || s[19] != ':' || s[22] != ':' || s[25:] != " GMT" {
		return t, false
	}
	weekday, month := strings.Index("SunMonTueWedThuFriSat", s[:3]), strings.Index("JanFebMarAprMayJunJulAugSepOctNovDec", s[8:11])
	number := func(digits string) (n int) {
		for _, c := range []byte(digits) {
			if c < '0' || c > '9' {
				month = -1
			}
			n = 10*n + int(c-'0')
		}
		return n
	}
	day, year, hour, minute, second := number(s[5:7]), number(s[12:16]), number(s[17:19]), number(s[20:22]), number(s[23:25])
	if weekday < 0 || weekday%3 != 0 || month < 0 || month%3 != 0 || day < 1 || hour > 23 || minute > 59 || second > 59 {
		return t, false
	}
	t = time.Date(year, time.Month(month/3+1), day, hour, minute, second, 0, time.UTC)
	return t, t.Day() == day // or else the month has no such day
}

// TTL is for how long after it came a response, which was so old by then, may be used without asking the origin.
func (p *Policy) TTL(status int, cc Control, h http.Header, received time.Time, age time.Duration) time.Duration {
	floor, fallback := p.MinTTL, max(p.MinTTL, p.DefaultTTL)
	if status >= 400 {
		floor, fallback = p.ErrorTTL, p.ErrorTTL
	}
	life, given := lifetime(cc, h, received)
	switch {
	case given:
		life = min(life, p.MaxTTL)
	case p.Heuristic:
		life = min(heuristic(status, cc, h, received), p.MaxTTL)
	default:
		life = fallback
	}
	return max(life-age, floor)
}

// stale is for how long after its TTL a response may be used while it is asked for again, and if that fails. No
// time at all where the origin forbids stale use: these directives are stronger than RFC 5861's (§4.2.4).
func stale(cc Control) (whileRevalidate, ifError time.Duration) {
	if cc.strict() {
		return 0, 0
	}
	return cc.StaleWhileRevalidate.Value, cc.StaleIfError.Value
}

// strict says whether the origin forbids stale use.
func (cc Control) strict() bool {
	return cc.NoStore || cc.NoCache || cc.Private || cc.MustRevalidate || cc.ProxyRevalidate || cc.SMaxAge.Given
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
	StaleOnDemand                     // use it at once: the viewer said that it may be stale
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
	case o.Held(now) && o.coversErrors(now):
		if tr.On() {
			tr.Add("stale for %s: used, since the origin failed; it is asked again in %s", -fresh, time.Duration(o.more().held-now.UnixNano()))
		}
		return StaleIfError
	case -fresh < o.more().staleWhileRevalidate:
		if tr.On() {
			tr.Add("stale for %s: used while the origin is asked (stale-while-revalidate=%s)", -fresh, o.more().staleWhileRevalidate)
		}
		return StaleWhileRevalidate
	}
	if tr.On() {
		tr.Add("stale for %s: the origin is asked first", -fresh)
	}
	return Stale
}

// Revives says whether a stale response is used at once where its origin is known to have failed a moment ago, and asked
// for again meanwhile: nobody then waits for an origin that does not answer.
func (o *Object) Revives(now time.Time) bool { return o.FreshFor(now) <= 0 && o.coversErrors(now) }

// Held says that the origin failed to send it anew a moment ago, and is left alone with it for a while.
func (o *Object) Held(now time.Time) bool { return now.UnixNano() < o.more().held }

// coversErrors says whether a stale response may stand in for an origin that failed now.
func (o *Object) coversErrors(now time.Time) bool {
	return -o.FreshFor(now) < max(o.more().staleIfError, o.more().staleWhileRevalidate)
}
