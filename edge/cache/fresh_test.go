package cache

import (
	"net/http"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
)

// noon is when responses come in these tests.
var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func at(d time.Duration) string { return noon.Add(d).Format(http.TimeFormat) }

func TestAgeOnArrival(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		name   string
		header http.Header
		delay  time.Duration // between request and response
		want   time.Duration
	}{
		{"neither Date nor Age: the time it took", header(), 2 * s, 2 * s},
		{"made just now", header("Date: " + at(0)), 0, 0},
		{"Date in the past: apparent age", header("Date: " + at(-30*s)), 0, 30 * s},
		{"Date in the future: the origin's clock is ahead", header("Date: " + at(30*s)), 0, 0},
		{"Age and the time it took add up", header("Age: 10", "Date: "+at(0)), 3 * s, 13 * s},
		{"the larger of the two counts: Date", header("Age: 10", "Date: "+at(-60*s)), 3 * s, 60 * s},
		{"the larger of the two counts: Age", header("Age: 100", "Date: "+at(-60*s)), 3 * s, 103 * s},
		{"Age that is no number", header("Age: -5", "Date: "+at(0)), s, s},
		{"of several Ages the first", header("Age: 7200, 0", "Age: 3"), 0, 7200 * s},
		{"of several Ages the first, whatever follows", header("Age: 0, old"), 0, 0},
		{"Age with a parameter is no number", header("Age: 7200;a=1"), 0, 0},
		{"Date in a form of old", header("Date: " + noon.Add(-30*s).Format("Monday, 02-Jan-06 15:04:05 GMT")), 0, 30 * s},
		{"Date that is no date", header("Date: yesterday"), 0, 0},
		{"Age beyond all bounds", header("Age: 99999999999999999999"), 0, 1 << 31 * s},
	} {
		if got := initialAge(c.header, noon.Add(-c.delay), noon); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
	// Date knows whole seconds only: a part of one is no age.
	if got := initialAge(header("Date: "+at(0)), noon.Add(900*time.Millisecond), noon.Add(900*time.Millisecond)); got != 0 {
		t.Errorf("0.9 s after the second of Date: got %v, want 0", got)
	}
}

// CloudFront's corners are aws-semantics.md §1.1.2 and §1.6, rows 8 and 9.
func TestTTL(t *testing.T) {
	const s = time.Second
	byDefault, bounded := policy(), policy(ttls(60, 600, 3600))
	guesses := func(p *spec.CachePolicy) { p.HeuristicTTL = true }
	guessing := policy(guesses)
	date := "Date: " + at(0)
	for _, c := range []struct {
		name   string
		policy *Policy
		status int
		header http.Header
		want   time.Duration
	}{
		{"max-age", byDefault, 200, header(date, "Cache-Control: max-age=100"), 100 * s},
		{"s-maxage is stronger than max-age", byDefault, 200, header(date, "Cache-Control: max-age=100, s-maxage=7"), 7 * s},
		{"max-age is stronger than Expires", byDefault, 200, header(date, "Cache-Control: max-age=100", "Expires: "+at(5*s)), 100 * s},
		{"Expires counts from Date", byDefault, 200, header("Date: "+at(60*s), "Expires: "+at(90*s)), 30 * s},
		{"Expires without Date counts from arrival", byDefault, 200, header("Expires: " + at(30*s)), 30 * s},
		{"Expires in the past", byDefault, 200, header(date, "Expires: "+at(-30*s)), 0},
		{"Expires and a Date that is no date", byDefault, 200, header("Date: foo", "Expires: "+at(10*s)), 10 * s},
		{"Expires by the origin's clock, which is ahead", byDefault, 200, header("Date: "+at(400*s), "Expires: "+at(300*s)), 0},
		{"Age beyond Expires less Date", byDefault, 200, header("Date: "+at(-10*s), "Expires: "+at(10*s), "Age: 25"), 0},
		{"Expires in a zone", byDefault, 200, header(date, "Expires: Tue, 24 Nov 2026 12:00:00 UTC"), 0},
		{"what is said to CDNs is stronger than all", byDefault, 200, header(date, "CDN-Cache-Control: max-age=7", "Cache-Control: no-store", "Expires: "+at(-5*s)), 7 * s},
		{"and silences Expires where it says no time", byDefault, 200, header(date, "CDN-Cache-Control: public", "Expires: "+at(5*s)), 86400 * s},
		{"malformed it says nothing", byDefault, 200, header(date, "CDN-Cache-Control: max-age=\"7\"", "Cache-Control: max-age=5"), 5 * s},
		{"private fields are no private response", byDefault, 200, header(date, `Cache-Control: private="X-A", max-age=5`), 5 * s},
		{"fields to be validated are no no-cache", byDefault, 200, header(date, `Cache-Control: no-cache="X-A", max-age=5`), 5 * s},
		{"Expires: 0 is in the past", byDefault, 200, header(date, "Expires: 0"), 0},
		{"the age on arrival is used up", byDefault, 200, header(date, "Age: 40", "Cache-Control: max-age=100"), 60 * s},
		{"older on arrival than it may be", byDefault, 200, header(date, "Age: 200", "Cache-Control: max-age=100"), 0},
		{"nothing said: DefaultTTL", byDefault, 200, header(date), 86400 * s},
		{"public says nothing of time", byDefault, 200, header(date, "Cache-Control: public"), 86400 * s},
		{"no-cache", byDefault, 200, header(date, "Cache-Control: no-cache, max-age=100"), 0},
		{"max-age=0", byDefault, 200, header(date, "Cache-Control: max-age=0"), 0},
		{"invalid max-age is stale", byDefault, 200, header(date, "Cache-Control: max-age=soon"), 0},

		{"MinTTL lifts max-age", bounded, 200, header(date, "Cache-Control: max-age=5"), 60 * s},
		{"MaxTTL cuts max-age", bounded, 200, header(date, "Cache-Control: max-age=99999"), 3600 * s},
		{"MaxTTL cuts Expires", bounded, 200, header(date, "Expires: "+at(24*time.Hour)), 3600 * s},
		{"MinTTL > 0 overrules no-store", bounded, 200, header(date, "Cache-Control: no-store"), 60 * s},
		{"MinTTL > 0 overrules no-cache", bounded, 200, header(date, "Cache-Control: no-cache"), 60 * s},
		{"MinTTL > 0 overrules private", bounded, 200, header(date, "Cache-Control: private, max-age=600"), 60 * s},
		{"MinTTL counts from arrival", bounded, 200, header(date, "Age: 1000", "Cache-Control: max-age=100"), 60 * s},
		{"DefaultTTL is ignored when a header is there", policy(ttls(0, 600, 3600)), 200, header(date, "Cache-Control: max-age=1"), 1 * s},
		{"MaxTTL is ignored when none is there", policy(ttls(0, 600, 60)), 200, header(date), 600 * s},
		{"MinTTL above DefaultTTL is the default", policy(ttls(900, 600, 3600)), 200, header(date), 900 * s},

		{"a guess is a tenth of the age since it was modified", guessing, 200, header(date, "Last-Modified: "+at(-1000*s)), 100 * s},
		{"a guess is at most a day", guessing, 200, header(date, "Last-Modified: "+at(-10000*time.Hour)), 24 * time.Hour},
		{"a guess is at most MaxTTL", policy(ttls(0, 0, 5), guesses), 200, header(date, "Last-Modified: "+at(-1000*s)), 5 * s},
		{"a guess needs something to guess by", guessing, 200, header(date), 0},
		{"a guess by what is still to come", guessing, 200, header(date, "Last-Modified: "+at(1000*s)), 0},
		{"no guess where the origin says", guessing, 200, header(date, "Cache-Control: max-age=3", "Last-Modified: "+at(-1000*s)), 3 * s},
		{"no guess for a status that forbids it", guessing, 302, header(date, "Last-Modified: "+at(-1000*s)), 0},
		{"unless it is public", guessing, 302, header(date, "Cache-Control: public", "Last-Modified: "+at(-1000*s)), 100 * s},
		{"a guess for an error, if that is more than ErrorTTL", guessing, 404, header(date, "Last-Modified: "+at(-1000*s)), 100 * s},

		{"an error without a word: ErrorTTL, not DefaultTTL", byDefault, 404, header(date), 10 * s},
		{"an error for max-age, if that is more", byDefault, 503, header(date, "Cache-Control: max-age=60"), 60 * s},
		{"an error for ErrorTTL, if that is more", byDefault, 503, header(date, "Cache-Control: max-age=1"), 10 * s},
		{"ErrorTTL overrules no-store", byDefault, 500, header(date, "Cache-Control: no-store"), 10 * s},
		{"MinTTL is not for errors", bounded, 404, header(date), 10 * s},
		{"403 for its max-age", byDefault, 403, header(date, "Cache-Control: max-age=60"), 60 * s},
		{"403 for ErrorTTL at least", byDefault, 403, header(date, "Cache-Control: max-age=1"), 10 * s},
	} {
		if got := c.policy.TTL(c.status, ParseControl(c.header), c.header, noon, initialAge(c.header, noon, noon)); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func TestStaleIsServedOnlyWhereTheOriginAllowsIt(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		control   string
		after     time.Duration // since it came; it is fresh for 10 s
		want      Reuse
		forErrors bool
	}{
		{"max-age=10", 9 * s, Fresh, true},
		{"max-age=10", 10 * s, Stale, false},
		{"max-age=10, stale-while-revalidate=5", 14 * s, StaleWhileRevalidate, true},
		{"max-age=10, stale-while-revalidate=5", 15 * s, Stale, false},
		{"max-age=10, stale-if-error=5", 14 * s, Stale, true},
		{"max-age=10, stale-if-error=5", 15 * s, Stale, false},
		{"max-age=10, stale-if-error=0", 11 * s, Stale, false},
		{"max-age=10, stale-while-revalidate=60, stale-if-error=60, must-revalidate", 11 * s, Stale, false},
		{"max-age=10, stale-while-revalidate=60, stale-if-error=60, proxy-revalidate", 11 * s, Stale, false},
		{"s-maxage=10, stale-while-revalidate=60, stale-if-error=60", 11 * s, Stale, false},
		{"no-cache, stale-while-revalidate=60, stale-if-error=60", 1 * s, Stale, false},
	} {
		h := header("Date: "+at(0), "Cache-Control: "+c.control)
		o := policy().head(200, ParseControl(h), h, noon, noon)
		now := noon.Add(c.after)
		if got := o.Reuse(now, nil); got != c.want {
			t.Errorf("%s after %v: got %v, want %v", c.control, c.after, got, c.want)
		}
		if got := o.coversErrors(now); got != c.forErrors {
			t.Errorf("%s after %v: may cover errors: %v, want %v", c.control, c.after, got, c.forErrors)
		}
	}
}

func TestAFailedOriginIsLeftAloneWhileStaleCovers(t *testing.T) {
	h := header("Date: "+at(0), "Cache-Control: max-age=10, stale-if-error=60")
	o := policy().head(200, ParseControl(h), h, noon, noon).holding(noon.Add(30 * time.Second))
	for _, c := range []struct {
		after time.Duration
		want  Reuse
	}{{5, Fresh}, {20, StaleIfError}, {30, Stale}, {80, Stale}} {
		if got := o.Reuse(noon.Add(c.after*time.Second), nil); got != c.want {
			t.Errorf("after %d s: got %v, want %v", c.after, got, c.want)
		}
	}
}

func TestADateIsOneOfThreeForms(t *testing.T) {
	want := time.Date(2050, 8, 18, 2, 1, 18, 0, time.UTC)
	for _, c := range []struct {
		in   string
		want time.Time
	}{
		{"Thu, 18 Aug 2050 02:01:18 GMT", want},
		{"Thursday, 18-Aug-50 02:01:18 GMT", want},
		{"Thu Aug 18 02:01:18 2050", want},
		{"Sunday, 06-Nov-94 08:49:37 GMT", time.Date(1994, 11, 6, 8, 49, 37, 0, time.UTC)},
		{"Thursday, 24-Nov-77 12:00:00 GMT", time.Date(1977, 11, 24, 12, 0, 0, 0, time.UTC)},
		{"Thu, 18 Aug 2050 02:01:18 UTC", time.Time{}},
		{"Thursday, 18-Aug-50 02:01:18 AEST", time.Time{}},
		{"Thu 18 Aug 2050 02:01:18 GMT", time.Time{}},
		{"Thu, 18 Aug 2050 02.01.18 GMT", time.Time{}},
		{"0", time.Time{}},
		{"", time.Time{}},
	} {
		got, ok := httpDate(c.in, noon)
		if !got.Equal(c.want) || ok != !c.want.IsZero() {
			t.Errorf("%q: got %v %v, want %v", c.in, got, ok, c.want)
		}
	}
}

func FuzzDate(f *testing.F) {
	for _, s := range []string{"Thu, 18 Aug 2050 02:01:18 GMT", "Thursday, 18-Aug-50 02:01:18 GMT", "Thu Aug 18 02:01:18 2050", "0", "-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if at, ok := httpDate(s, noon); ok && (at.Year() < 0 || at.Year() > 9999 || at.Location() != time.UTC) {
			t.Fatalf("%q is %v", s, at)
		}
	})
}

// FuzzFixdate: what is read fast is what time.Parse reads, and all that it reads in that form is read fast.
func FuzzFixdate(f *testing.F) {
	for _, s := range []string{
		"Mon, 02 Nov 2026 00:00:00 GMT", "Sun, 29 Feb 2026 23:59:59 GMT", "Thu, 29 Feb 2024 23:59:59 GMT", "Mon, 31 Apr 2026 00:00:00 GMT", "Mon, 02 nov 2026 00:00:00 GMT",
		"n M, 02 Nov 2026 00:00:00 GMT", "Mon, 02 anF 2026 00:00:00 GMT", "Mon, 00 Nov 2026 00:00:00 GMT", "Mon, 02 Nov 0000 00:00:60 GMT", "Mon, 2 Nov 2026 00:00:00  GMT",
		"Mon, 02 Nov 2026 24:00:00 GMT", "Mon, 02 Nov 2026 00:60:00 GMT", "Mon, 0: Nov 2026 00:00:00 GMT", "Mon, 02 Nov 2026 00:00:00 UTC", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		fast, ok := fixdate(s)
		slow, err := time.Parse(http.TimeFormat, s)
		if ok != (err == nil) && !(err == nil && (slow.Format(http.TimeFormat)[4:] != s[min(4, len(s)):] || len(s) != len(http.TimeFormat))) {
			t.Errorf("%q: fast %v, slow %v", s, ok, err)
		}
		if ok && !fast.Equal(slow) {
			t.Errorf("%q: %v, want %v", s, fast, slow)
		}
	})
}
