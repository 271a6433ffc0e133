package cdn

import (
	"bufio"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// This suite holds the cache to RFC 9111 and its neighbours, rule by rule, as a viewer and an origin see it. It covers the ground of the
// public tests of HTTP caches (https://cache-tests.fyi), in words and code of its own and in virtual time, under a policy that lets
// the RFC decide.

// lawful is a distribution whose policy has no word of its own: the origin's and the viewer's count. What origins are sent is keyed, so
// the fields that the cases vary are.
const lawful = `
kind: CachePolicy
name: p
maxTTL: 3153600000
heuristicTTL: true
requestDirectives: true
headers: {behavior: whitelist, items: [Foo, Bar, Baz, Accept-Language, Authorization]}
cookies: {behavior: whitelist, items: [session]}
queryStrings: {behavior: all}
---
kind: Distribution
name: site
aliases: [www.test]
origins: [{name: web, url: "http://origin.test"}]
defaultCacheBehavior: {targetOrigin: web, cachePolicy: p, allowedMethods: [GET, HEAD, OPTIONS, PUT, POST, PATCH, DELETE]}
errorCachingMinTTL: 0
`

// grade is how binding a case is.
type grade string

const (
	required  grade = "required"  // an RFC says must, or should
	optimal   grade = "optimal"   // a cache may do without, but spares origin or viewer something by it
	behaviour grade = "behaviour" // the RFCs leave it open: this is what we do
)

// What becomes of a request.
const (
	cached    = "cached"    // the origin hears nothing of it
	asked     = "asked"     // the origin is asked, without conditions
	validated = "validated" // the origin is asked if what is kept is good still, and says so
)

// rule is one case: exchanges in a row.
type rule struct {
	category, name string
	grade          grade
	steps          []step
}

// step is one exchange. Values of date fields that are +n or -n are so many seconds from now.
type step struct {
	after  time.Duration // is waited before
	method string        // GET
	path   string        // /
	viewer []string      // fields of the request

	status  int      // of the origin's answer: 200
	sends   []string // its fields
	body    string   // its body; a new one each time
	drops   bool     // it closes the connection instead
	interim []int    // it sends these before

	becomes string   // cached, asked, validated; empty: whatever
	code    int      // status that the viewer gets; 0: as from the origin
	has     []string // fields of the viewer's response, "Name: value", or "Name" for any
	lacks   []string // names of fields that it must not have
	reads   string   // its body; empty: whatever
	heard   []string // fields of the origin's request, "Name: value"
	hints   []int    // interim responses that the viewer gets
}

// known are the optimal cases that we fail, each with the reason.
var known = map[string]string{
	"method: a POST that says where its answer lies":         "who POSTs would write what others GET; CloudFront keeps none",
	"vary: the best language of several is known":            "the cache would guess which languages the origin has",
	"auth: public is for those without credentials":          "what the origin is sent is in the key, Authorization as well",
	"auth: must-revalidate is for those without credentials": "what the origin is sent is in the key, Authorization as well",
	"auth: s-maxage is for those without credentials":        "what the origin is sent is in the key, Authorization as well",
}

// once is two requests in a row, and what becomes of the second.
func once(becomes string, after time.Duration, sends ...string) []step {
	return []step{{sends: sends}, {after: after, sends: sends, becomes: becomes}}
}

// second is two requests in a row, the second with fields.
func second(becomes string, viewer []string, sends ...string) []step {
	return []step{{sends: sends}, {viewer: viewer, sends: sends, becomes: becomes}}
}

func rules() (all []rule) {
	category := ""
	add := func(g grade, name string, steps ...step) { all = append(all, rule{category, name, g, steps}) }
	plain := func(g grade, name, becomes string, sends ...string) {
		add(g, name, once(becomes, 3*time.Second, sends...)...)
	}
	const hour = time.Hour

	category = "age"
	plain(required, "older than its lifetime on arrival", asked, "Date: +0", "Cache-Control: max-age=3600", "Age: 7200")
	plain(required, "younger than its lifetime on arrival", cached, "Date: +0", "Cache-Control: max-age=3600", "Age: 1800")
	plain(required, "no number is no age", cached, "Date: +0", "Cache-Control: max-age=3600", "Age: abc")
	plain(required, "a negative age is no age", cached, "Date: +0", "Cache-Control: max-age=3600", "Age: -7200")
	plain(required, "a fraction is no age", cached, "Date: +0", "Cache-Control: max-age=3600", "Age: 7200.0")
	plain(required, "a parameter makes it no age", cached, "Date: +0", "Cache-Control: max-age=3600", "Age: 7200;foo=bar")
	plain(required, "of two the first counts: old", asked, "Date: +0", "Cache-Control: max-age=3600", "Age: 7200, 0")
	plain(required, "of two the first counts: new", cached, "Date: +0", "Cache-Control: max-age=3600", "Age: 0, 7200")
	plain(required, "of two lines the first counts: old", asked, "Date: +0", "Cache-Control: max-age=3600", "Age: 7200", "Age: 0")
	plain(required, "of two lines the first counts: new", cached, "Date: +0", "Cache-Control: max-age=3600", "Age: 0", "Age: 7200")
	for _, n := range []string{"2147483647", "2147483648", "2147483649"} {
		plain(required, "of "+n+" s", asked, "Date: +0", "Cache-Control: max-age=3600", "Age: "+n)
	}
	plain(required, "twice the same", cached, "Date: +0", "Cache-Control: max-age=10000", "Age: 3600", "Age: 3600")
	plain(required, "beyond all bounds", asked, "Date: +0", "Cache-Control: max-age=3600", "Age: 99999999999999999999")
	plain(required, "the date tells it too", asked, "Date: -7200", "Cache-Control: max-age=3600")

	category = "cc-freshness"
	plain(behaviour, "without a lifetime or anything to guess by it is not used", asked)
	plain(optimal, "max-age", cached, "Cache-Control: max-age=3600")
	plain(required, "max-age=0", asked, "Cache-Control: max-age=0")
	for _, n := range []string{"2147483647", "2147483648", "2147483649", "99999999999", "99999999999999999999999"} {
		plain(optimal, "max-age="+n, cached, "Cache-Control: max-age="+n)
	}
	plain(required, "max-age that has gone by", asked, "Cache-Control: max-age=2")
	plain(optimal, "max-age before an Expires that is past", cached, "Cache-Control: max-age=3600", "Expires: -7200", "Date: +0")
	plain(optimal, "max-age before an Expires that is none", cached, "Cache-Control: max-age=3600", "Expires: 0", "Date: +0")
	plain(required, "max-age=0 before an Expires to come", asked, "Cache-Control: max-age=0", "Expires: +3600", "Date: +0")
	plain(optimal, "beside what is not known", cached, "Cache-Control: foobar, max-age=3600")
	plain(optimal, "in any case", cached, "Cache-Control: MaX-aGe=3600")
	plain(required, "below zero", asked, "Cache-Control: max-age=-3600")
	plain(optimal, "s-maxage", cached, "Cache-Control: s-maxage=3600")
	plain(required, "a short s-maxage before a long max-age", asked, "Cache-Control: max-age=3600, s-maxage=1")
	plain(required, "and in the other order", asked, "Cache-Control: s-maxage=1, max-age=3600")
	plain(required, "and in two lines", asked, "Cache-Control: max-age=3600", "Cache-Control: s-maxage=1")
	plain(optimal, "a long s-maxage before a short max-age", cached, "Cache-Control: max-age=1, s-maxage=3600")
	plain(optimal, "a long s-maxage before all", cached, "Expires: -10", "Cache-Control: max-age=0, s-maxage=3600")
	plain(behaviour, "s-maxage that is no number is stale", asked, "Cache-Control: max-age=3600, s-maxage=x")

	category = "cc-parse"
	for _, c := range []struct {
		g       grade
		name    string
		becomes string
		lines   []string
	}{
		{behaviour, "a number in quotes", cached, []string{`max-age="3600"`}},
		{required, "a number in single quotes", asked, []string{"max-age='3600'"}},
		{required, "within another's string, before", asked, []string{`ext="max-age=3600", max-age=1`}},
		{required, "within another's string, after", asked, []string{`max-age=1, ext="max-age=3600"`}},
		{required, "within another's string, and itself in quotes", asked, []string{`ext="max-age=3600", max-age="1"`}},
		{required, "itself in quotes, and then within another's", asked, []string{`max-age="1", ext="max-age=3600"`}},
		{required, "a quote that is escaped", asked, []string{`ext="a\", max-age=3600", max-age=1`}},
		{optimal, "leading zeros", cached, []string{"max-age=003600"}},
		{behaviour, "a fraction of nothing is stale", asked, []string{"max-age=3600.0"}},
		{behaviour, "a fraction is stale", asked, []string{"max-age=3600.5"}},
		{behaviour, "space before the equals sign", cached, []string{"max-age =3600"}},
		{behaviour, "space after it", cached, []string{"max-age= 3600"}},
		{behaviour, "a letter before is stale", asked, []string{"max-age=a3600"}},
		{behaviour, "a letter after is stale", asked, []string{"max-age=3600a"}},
		{behaviour, "without a number is stale", asked, []string{"max-age"}},
		{behaviour, "two in one line, fresh", cached, []string{"max-age=3600, max-age=1800"}},
		{behaviour, "two lines, fresh", cached, []string{"max-age=3600", "max-age=1800"}},
		{behaviour, "of two in one line the first: stale", asked, []string{"max-age=1, max-age=1800"}},
		{behaviour, "of two in one line the first: fresh", cached, []string{"max-age=1800, max-age=1"}},
		{behaviour, "of two lines the first: stale", asked, []string{"max-age=1", "max-age=1800"}},
		{behaviour, "of two lines the first: fresh", cached, []string{"max-age=1800", "max-age=1"}},
		{required, "empty members", cached, []string{",, max-age=3600,,"}},
		{required, "no-store that has an argument", asked, []string{"max-age=3600, no-store=1"}},
		{required, "what follows a string without end", asked, []string{`max-age=3600, ext="a, no-store`}},
	} {
		var lines []string
		for _, l := range c.lines {
			lines = append(lines, "Cache-Control: "+l)
		}
		plain(c.g, c.name, c.becomes, lines...)
	}

	category = "cc-request"
	const long = "Cache-Control: max-age=3600"
	add(behaviour, "max-age=0 has the origin asked", step{sends: []string{long}}, step{after: 3 * time.Second, viewer: []string{"Cache-Control: max-age=0"}, becomes: asked})
	add(behaviour, "max-age that it has outlived", step{sends: []string{long, "Age: 1800"}}, step{viewer: []string{"Cache-Control: max-age=600"}, becomes: asked})
	add(behaviour, "max-age that it has not", step{sends: []string{long}}, step{after: 3 * time.Second, viewer: []string{"Cache-Control: max-age=600"}, becomes: cached})
	add(behaviour, "max-stale that allows it", step{sends: []string{"Cache-Control: max-age=1"}}, step{after: 3 * time.Second, viewer: []string{"Cache-Control: max-stale=1000"}, becomes: cached})
	add(behaviour, "max-stale without a number", step{sends: []string{"Cache-Control: max-age=1"}}, step{after: hour, viewer: []string{"Cache-Control: max-stale"}, becomes: cached})
	add(behaviour, "max-stale that does not", step{sends: []string{"Cache-Control: max-age=1"}}, step{after: 10 * time.Second, viewer: []string{"Cache-Control: max-stale=3"}, becomes: asked})
	add(behaviour, "max-stale that allows what was stale on arrival", step{sends: []string{"Cache-Control: max-age=1500", "Age: 2000"}}, step{viewer: []string{"Cache-Control: max-stale=1000"}, becomes: cached}, step{becomes: asked})
	add(required, "max-stale against must-revalidate, on arrival", step{sends: []string{"Cache-Control: max-age=1500, must-revalidate", "Age: 2000"}}, step{viewer: []string{"Cache-Control: max-stale=1000"}, becomes: asked})
	add(required, "max-stale against must-revalidate", step{sends: []string{"Cache-Control: max-age=1, must-revalidate"}}, step{after: 3 * time.Second, viewer: []string{"Cache-Control: max-stale=1000"}, becomes: asked})
	add(behaviour, "min-fresh that is more", step{sends: []string{"Cache-Control: max-age=1500"}}, step{viewer: []string{"Cache-Control: min-fresh=2000"}, becomes: asked})
	add(behaviour, "min-fresh that is more than the rest", step{sends: []string{"Cache-Control: max-age=1500", "Age: 1000"}}, step{viewer: []string{"Cache-Control: min-fresh=1000"}, becomes: asked})
	add(behaviour, "no-cache", step{sends: []string{long}}, step{viewer: []string{"Cache-Control: no-cache"}, becomes: asked})
	add(behaviour, "no-cache validates by tag", step{sends: []string{long, `ETag: "a"`}}, step{viewer: []string{"Cache-Control: no-cache"}, sends: []string{`ETag: "a"`}, becomes: validated})
	add(behaviour, "no-cache validates by date", step{sends: []string{long, "Last-Modified: -10000", "Date: +0"}}, step{viewer: []string{"Cache-Control: no-cache"}, becomes: validated})
	add(behaviour, "no-store uses nothing", step{sends: []string{long}}, step{viewer: []string{"Cache-Control: no-store"}, becomes: asked})
	add(behaviour, "no-store keeps nothing", step{viewer: []string{"Cache-Control: no-store"}, sends: []string{long}}, step{becomes: asked})
	add(behaviour, "only-if-cached of nothing", step{viewer: []string{"Cache-Control: only-if-cached"}, becomes: cached, code: 504})
	add(behaviour, "only-if-cached of something", step{sends: []string{long}}, step{viewer: []string{"Cache-Control: only-if-cached"}, becomes: cached, code: 200})
	add(required, "no-cache and an origin that fails", step{sends: []string{"Cache-Control: max-age=3600, stale-if-error=3600"}}, step{viewer: []string{"Cache-Control: no-cache"}, drops: true, code: 502})

	category = "cc-response"
	plain(required, "private", asked, "Cache-Control: private, max-age=3600")
	plain(required, "no-store", asked, "Cache-Control: no-store")
	plain(required, "No-StOrE", asked, "Cache-Control: No-StOrE")
	plain(required, "no-store with a lifetime", asked, "Cache-Control: max-age=10000, no-store", "Expires: +10000", "Date: +0")
	plain(required, "no-cache with a lifetime", asked, "Cache-Control: max-age=10000, no-cache", "Expires: +10000", "Date: +0")
	plain(required, "No-CaChE", asked, "Cache-Control: max-age=10000, No-CaChE")
	plain(optimal, "no-cache is kept and validated", validated, "Cache-Control: no-cache", `ETag: "a"`)
	plain(optimal, "no-cache with a lifetime is kept and validated", validated, "Cache-Control: max-age=10000, no-cache", `ETag: "a"`)
	for _, d := range []string{"no-cache", "private"} {
		add(behaviour, d+" of a field keeps that field from others", step{sends: []string{"Cache-Control: " + d + `="a"`, "A: 1", "B: 2", long}, has: []string{"A: 1"}},
			step{becomes: cached, has: []string{"B: 2"}, lacks: []string{"A"}})
		add(behaviour, d+" of fields keeps those from others", step{sends: []string{"Cache-Control: " + d + `="a, b"`, "A: 1", "B: 2", "C: 3", long}},
			step{becomes: cached, has: []string{"C: 3"}, lacks: []string{"A", "B"}})
		plain(required, d+" of what the rest needs is of all", asked, "Cache-Control: "+d+`="Content-Type"`, long)
	}
	plain(optimal, "must-revalidate while fresh", cached, "Cache-Control: max-age=10000, must-revalidate", `ETag: "a"`)
	plain(required, "must-revalidate when stale", validated, "Cache-Control: max-age=2, must-revalidate", `ETag: "a"`)
	plain(optimal, "immutable while fresh", cached, "Cache-Control: max-age=10000, immutable", `ETag: "a"`)
	plain(required, "immutable when stale", validated, "Cache-Control: max-age=2, immutable", `ETag: "a"`)
	plain(optimal, "must-understand of a known status, whatever no-store says", cached, "Cache-Control: max-age=3600, no-store, must-understand")

	category = "cdn-cache-control"
	plain(optimal, "max-age", cached, "CDN-Cache-Control: max-age=3600")
	plain(optimal, "max-age=2147483648", cached, "CDN-Cache-Control: max-age=2147483648")
	plain(optimal, "max-age=99999999999", cached, "CDN-Cache-Control: max-age=99999999999")
	plain(required, "older than its lifetime on arrival", asked, "Date: +0", "CDN-Cache-Control: max-age=3600", "Age: 7200")
	plain(behaviour, "space before the equals sign makes it nothing", asked, "Cache-Control: max-age=1", "CDN-Cache-Control: max-age =100")
	plain(behaviour, "space after it makes it nothing", asked, "Cache-Control: max-age=1", "CDN-Cache-Control: max-age= 100")
	plain(required, "max-age=0", asked, "CDN-Cache-Control: max-age=0")
	plain(optimal, "beside what is not known", cached, "CDN-Cache-Control: foobar, max-age=3600")
	plain(behaviour, "upper case makes it nothing", asked, "CDN-Cache-Control: MaX-aGe=3600")
	plain(optimal, "before an Expires that is past", cached, "CDN-Cache-Control: max-age=3600", "Expires: -10000", "Date: +0")
	plain(optimal, "before an Expires that is none", cached, "CDN-Cache-Control: max-age=3600", "Expires: 0", "Date: +0")
	plain(required, "max-age=0 before an Expires to come", asked, "CDN-Cache-Control: max-age=0", "Expires: +10000", "Date: +0")
	plain(optimal, "a long one before a short max-age", cached, "Cache-Control: max-age=1", "CDN-Cache-Control: max-age=3600")
	plain(required, "a short one before a long max-age", asked, long, "CDN-Cache-Control: max-age=1")
	for _, d := range []string{"private", "no-cache", "no-store"} {
		plain(required, d+" before a lifetime", asked, "CDN-Cache-Control: "+d, "Cache-Control: max-age=10000", "Expires: +10000", "Date: +0")
	}
	plain(optimal, "a lifetime before no-store", cached, "Cache-Control: no-store", "CDN-Cache-Control: max-age=10000")
	plain(required, "malformed it is nothing", asked, "CDN-Cache-Control: max-age=10000, &&&&&", "Cache-Control: no-store")
	plain(required, "of the wrong type it is nothing", asked, `CDN-Cache-Control: max-age="10000"`, "Cache-Control: no-store")
	plain(required, "empty it is nothing", asked, "CDN-Cache-Control: ", "Cache-Control: no-store")
	add(behaviour, "it is passed on", step{sends: []string{long, "CDN-Cache-Control: foo"}, has: []string{"CDN-Cache-Control: foo"}})
	add(required, "must-revalidate in it forbids stale", step{sends: []string{"CDN-Cache-Control: max-age=2, must-revalidate", "Cache-Control: stale-if-error=60"}}, step{after: 5 * time.Second, drops: true, code: 502})

	category = "conditional-etag"
	const tagged, far = `ETag: "abcdef"`, "Expires: +100000"
	notModified := func(g grade, name, tag, ask string, code int) {
		add(g, name, step{sends: []string{far, "ETag: " + tag, "Date: +0"}}, step{viewer: []string{"If-None-Match: " + ask}, becomes: cached, code: code})
	}
	notModified(optimal, "the same tag", `"abcdef"`, `"abcdef"`, 304)
	notModified(optimal, "the same weak tag", `W/"abcdef"`, `W/"abcdef"`, 304)
	notModified(optimal, "the first of many", `"abcdef"`, `"abcdef", "1", "2"`, 304)
	notModified(optimal, "the middle of many", `"abcdef"`, `"1", "abcdef", "2"`, 304)
	notModified(optimal, "the last of many", `"abcdef"`, `"1", "2", "abcdef"`, 304)
	notModified(optimal, "any", `"abcdef"`, `*`, 304)
	notModified(required, "another", `"abcdef"`, `"abcdeg"`, 200)
	notModified(optimal, "a weak one for a strong one", `"abcdef"`, `W/"abcdef"`, 304)
	notModified(behaviour, "one without quotes is none", `"abcdef"`, `abcdef`, 200)
	notModified(behaviour, "a kept one without quotes is none", `abcdef`, `"abcdef"`, 200)
	notModified(behaviour, "w/ is not W/", `w/"abcdef"`, `w/"abcdef"`, 200)
	notModified(behaviour, `W\ is not W/`, `W\"abcdef"`, `W\"abcdef"`, 200)
	notModified(behaviour, "W is not W/", `W"abcdef"`, `W"abcdef"`, 200)
	add(required, "a 304 has the tag", step{sends: []string{far, tagged, "Date: +0"}}, step{viewer: []string{`If-None-Match: "abcdef"`}, code: 304, becomes: cached, has: []string{tagged}})
	add(required, "the tag comes before the date", step{sends: []string{far, "Last-Modified: -5000", tagged, "Date: +0"}},
		step{viewer: []string{`If-None-Match: "x"`, "If-Modified-Since: -1"}, becomes: cached, code: 200})
	add(required, "what is stale is validated before a 304", step{sends: []string{"Expires: +1", tagged, "Date: +0"}},
		step{after: 3 * time.Second, viewer: []string{`If-None-Match: "abcdef"`}, becomes: validated, code: 304})
	add(required, "a validating request has what selected the response", step{viewer: []string{"Foo: 123"}, sends: []string{"Expires: +1", tagged, "Date: +0", "Vary: Foo"}},
		step{after: 3 * time.Second, viewer: []string{"Foo: 123"}, becomes: validated, heard: []string{"Foo: 123"}})
	add(optimal, "another variant's tag is offered", step{viewer: []string{"Foo: 123"}, sends: []string{"Expires: +1", tagged, "Date: +0", "Vary: Foo"}},
		step{after: 3 * time.Second, viewer: []string{"Foo: 456"}, becomes: validated})
	for _, tag := range []string{`"abcdef"`, `W/"abcdef"`} {
		add(optimal, "a stale response is validated by "+tag, step{sends: []string{"Expires: +1", "ETag: " + tag, "Date: +0"}},
			step{after: 3 * time.Second, becomes: validated, heard: []string{"If-None-Match: " + tag}})
	}
	add(behaviour, "a viewer's condition is not for the origin", step{viewer: []string{`If-None-Match: "abcdef"`}, becomes: asked})
	add(required, "a viewer's condition on what is stale is not for the origin", step{sends: []string{"Expires: +1", tagged, "Date: +0"}},
		step{after: 3 * time.Second, viewer: []string{`If-None-Match: "other"`}, becomes: validated, code: 200, heard: []string{`If-None-Match: "abcdef"`}})
	add(required, "If-Match that fails", step{sends: []string{far, tagged, "Date: +0"}}, step{viewer: []string{`If-Match: "x"`}, becomes: cached, code: 412})
	add(required, "If-Match that holds", step{sends: []string{far, tagged, "Date: +0"}}, step{viewer: []string{`If-Match: "abcdef"`}, becomes: cached, code: 200})
	add(required, "If-Match knows no weak tags", step{sends: []string{far, `ETag: W/"a"`, "Date: +0"}}, step{viewer: []string{`If-Match: W/"a"`}, becomes: cached, code: 412})

	category = "conditional-lm"
	since := func(g grade, name, ask string, code int, sends ...string) {
		add(g, name, step{sends: append(sends, "Cache-Control: max-age=100000", "Date: +0")}, step{after: 3 * time.Second, viewer: []string{ask}, becomes: cached, code: code})
	}
	since(optimal, "modified then", "If-Modified-Since: -3003", 304, "Last-Modified: -3000")
	since(optimal, "modified before", "If-Modified-Since: -2000", 304, "Last-Modified: -3000")
	since(required, "modified after", "If-Modified-Since: -4000", 200, "Last-Modified: -3000")
	since(optimal, "in a form of old", "If-Modified-Since: Monday, 29-Nov-99 00:00:00 GMT", 304, "Last-Modified: Mon, 29 Nov 1999 00:00:00 GMT")
	since(optimal, "without Last-Modified, made before", "If-Modified-Since: +0", 304)
	since(required, "without Last-Modified, made after", "If-Modified-Since: -3000", 200)
	since(required, "no date", "If-Modified-Since: yesterday", 200, "Last-Modified: -3000")
	since(required, "If-Unmodified-Since that fails", "If-Unmodified-Since: -4000", 412, "Last-Modified: -3000")
	since(required, "If-Unmodified-Since that holds", "If-Unmodified-Since: -2000", 200, "Last-Modified: -3000")
	add(optimal, "a stale response is validated by date, and answers", step{sends: []string{"Cache-Control: max-age=2", "Last-Modified: -3000", "Date: +0"}},
		step{after: 3 * time.Second, viewer: []string{"If-Modified-Since: -3003"}, becomes: validated, code: 304})

	category = "expires"
	plain(optimal, "to come", cached, "Expires: +3600", "Date: +0")
	plain(required, "past", asked, "Expires: -3600", "Date: +0")
	plain(required, "now", asked, "Expires: +0", "Date: +0")
	plain(required, "before a date that is ahead", asked, "Expires: +300", "Date: +400")
	plain(required, "0", asked, "Expires: 0", "Date: +0")
	plain(required, "-1", asked, "Expires: -1x", "Date: +0")
	plain(optimal, "beside a date that is none", cached, "Date: foo", "Expires: +10")
	plain(required, "the age is more, the date is behind", asked, "Date: -10", "Expires: +10", "Age: 25")
	plain(required, "the age is more, the date is ahead", asked, "Date: +10", "Expires: +20", "Age: 15")
	for _, c := range []struct {
		g       grade
		name    string
		becomes string
		value   string
	}{
		{required, "in a form of old", cached, "Thursday, 18-Aug-40 02:01:18 GMT"},
		{required, "in the other", cached, "Thu Aug  8 02:01:18 2050"},
		{behaviour, "the day in capitals", cached, "THU, 18 Aug 2050 02:01:18 GMT"},
		{behaviour, "the month in capitals", cached, "Thu, 18 AUG 2050 02:01:18 GMT"},
		{behaviour, "the zone in small letters", asked, "Thu, 18 Aug 2050 02:01:18 gMT"},
		{behaviour, "UTC", asked, "Thu, 18 Aug 2050 02:01:18 UTC"},
		{behaviour, "another zone", asked, "Thu, 18 Aug 2050 02:01:18 AEST"},
		{behaviour, "a year of two digits", asked, "Thu, 18 Aug 50 02:01:18 GMT"},
		{behaviour, "no comma", asked, "Thu 18 Aug 2050 02:01:18 GMT"},
		{behaviour, "many spaces", cached, "Thu, 18  Aug  2050 02:01:18 GMT"},
		{behaviour, "dashes", asked, "Thu, 18-Aug-2050 02:01:18 GMT"},
		{behaviour, "periods", asked, "Thu, 18 Aug 2050 02.01.18 GMT"},
		{behaviour, "an hour of one digit", cached, "Thu, 18 Aug 2050 2:01:18 GMT"},
		{behaviour, "far away", cached, "Sun, 21 Nov 2286 04:46:39 GMT"},
	} {
		plain(c.g, c.name, c.becomes, "Expires: "+c.value, "Date: +0")
	}
	plain(behaviour, "of two lines the first", cached, "Expires: +100", "Expires: -100", "Date: +0")

	category = "heuristic"
	for status, guess := range map[int]bool{200: true, 201: false, 202: false, 203: true, 204: true, 403: false, 404: true, 405: true, 410: true, 414: true, 501: true, 502: false, 503: false, 504: false, 599: false} {
		g, becomes, name := required, asked, "is not used by a guess"
		if guess {
			g, becomes, name = optimal, cached, "is used by a guess"
		}
		steps := once(becomes, 0, "Last-Modified: -86400", "Date: +0")
		steps[0].status, steps[1].status = status, status
		add(g, fmt.Sprintf("a %d %s", status, name), steps...)
	}
	public := once(cached, 0, "Last-Modified: -86400", "Date: +0", "Cache-Control: public")
	public[0].status = 599
	add(optimal, "a 599 that is public is used by a guess", public...)
	for seconds, becomes := range map[int]string{5: asked, 10: asked, 60: cached, 3600: cached, 86400: cached} {
		plain(behaviour, fmt.Sprintf("%d s old, for 3 s", seconds), becomes, fmt.Sprintf("Last-Modified: -%d", seconds), "Date: +0")
	}
	add(required, "for no more than a day", once(validated, 25*time.Hour, "Last-Modified: -864000000", "Date: +0")...)

	category = "headers"
	add(required, "what Connection names is not kept", step{sends: []string{"Connection: a, b", "A: 1", "B: 2", "C: 3", long}}, step{becomes: cached, has: []string{"C: 3"}, lacks: []string{"A", "B", "Connection"}})
	for _, line := range []string{
		"Test-Header: v", "X-Test-Header: v", "Content-Foo: v", "X-Content-Foo: v", "Cache-Control: max-age=3600", "Content-Encoding: x", "Content-Location: /foo",
		"Content-MD5: rL0Y20zC+Fzt72VPzMSk2A==", "Content-Range: v", "Content-Security-Policy: default-src 'self'", "Content-Type: text/x", "Clear-Site-Data: \"cache\"", tagged,
		"Expires: Fri, 01 Jan 2038 01:01:01 GMT", "Public-Key-Pins: v", "Set-Cookie: a=b", "Set-Cookie2: a=b", "X-Frame-Options: deny", "X-XSS-Protection: 1", "WWW-Authenticate: Basic",
		"Strict-Transport-Security: max-age=1",
	} {
		add(required, "is kept: "+line, step{sends: []string{line, long, "Date: +0"}}, step{becomes: cached, has: []string{line}})
	}
	for _, line := range []string{
		"Keep-Alive: timeout=5", "Proxy-Authenticate: Basic", "Proxy-Authentication-Info: v", "Proxy-Authorization: v", "Proxy-Connection: keep-alive", "TE: trailers", "Upgrade: v", "Trailer: v",
	} {
		name, _, _ := strings.Cut(line, ":")
		add(required, "is not kept: "+line, step{sends: []string{line, long, "Date: +0"}}, step{becomes: cached, lacks: []string{name}})
	}

	category = "update-304"
	add(required, "what a 304 does not say stays", step{sends: []string{"Cache-Control: max-age=2", "Last-Modified: -3600", "Date: +0", "Test-Header: a"}},
		step{after: 3 * time.Second, sends: []string{"Date: +0"}, becomes: validated, has: []string{"Test-Header: a"}})
	for _, c := range []struct{ name, before, after string }{
		{"Test-Header", "a", "b"}, {"Content-Foo", "a", "b"}, {"Cache-Control", "max-age=1", "max-age=3600"}, {"Content-Location", "/a", "/b"}, {"Content-Security-Policy", "a", "b"},
		{"Clear-Site-Data", "a", "b"}, {"Expires", "Fri, 01 Jan 2038 01:01:01 GMT", "Mon, 11 Jan 2038 11:11:11 GMT"}, {"Public-Key-Pins", "a", "b"}, {"Set-Cookie", "a=b", "a=c"},
		{"X-Frame-Options", "deny", "sameorigin"}, {"X-XSS-Protection", "1", "1; mode=block"}, {"Content-Type", "text/a", "text/b"},
	} {
		lines := func(value string) []string {
			l := []string{c.name + ": " + value, `ETag: "a"`, "Date: +0"}
			if c.name != "Cache-Control" {
				l = append(l, "Cache-Control: max-age=2")
			}
			return l
		}
		want := []string{c.name + ": " + c.after}
		add(required, "updates "+c.name, step{sends: lines(c.before)}, step{after: 3 * time.Second, sends: lines(c.after), becomes: validated, has: want}, step{becomes: cached, has: want})
	}
	for _, name := range []string{"Content-Encoding", "Content-Length", "Content-MD5", "Content-Range", "Content-Digest"} {
		before, sent := name+": a", name+": b"
		if name == "Content-Length" {
			before, sent = name+": 4", name+": 9"
		}
		add(required, "does not update "+name, step{sends: []string{before, `ETag: "a"`, "Date: +0", "Cache-Control: max-age=2"}, body: "body"},
			step{after: 3 * time.Second, sends: []string{sent, `ETag: "a"`, "Cache-Control: max-age=2"}, becomes: validated, has: []string{before}, reads: "body"},
			step{becomes: cached, has: []string{before}, reads: "body"})
	}
	add(required, "of another strong tag updates nothing", step{sends: []string{`ETag: "a"`, "Cache-Control: max-age=2", "X: 1"}}, step{after: 3 * time.Second, sends: []string{`ETag: "b"`, "X: 2"}, status: 304, code: 502},
		step{sends: []string{`ETag: "b"`}, becomes: asked, lacks: []string{"X"}})
	add(required, "makes fresh again", step{sends: []string{`ETag: "a"`, "Cache-Control: max-age=5", "Date: +0"}}, step{after: 6 * time.Second, becomes: validated, sends: []string{"Date: +0"}}, step{after: 3 * time.Second, becomes: cached},
		step{after: 3 * time.Second, becomes: validated, sends: []string{"Date: +0"}})

	category = "update-head"
	add(behaviour, "a HEAD for what is fresh is not passed", step{sends: []string{long, "A: 1"}}, step{method: "HEAD", becomes: cached, has: []string{"A: 1"}})
	add(behaviour, "a HEAD for what is stale and cannot be validated is passed", step{sends: []string{"Cache-Control: max-age=2"}}, step{after: 3 * time.Second, method: "HEAD", becomes: asked})
	add(behaviour, "a HEAD for what is stale validates it", step{sends: []string{"Cache-Control: max-age=2", tagged}}, step{after: 3 * time.Second, method: "HEAD", becomes: validated}, step{becomes: cached})
	kept := step{sends: []string{"Cache-Control: max-age=2, stale-if-error=60", "Content-Length: 4", "A: 1"}, body: "body"}
	add(required, "it updates what is kept", kept, step{after: 3 * time.Second, method: "HEAD", sends: []string{"Content-Length: 4", "Cache-Control: max-age=1000", "A: 2"}},
		step{becomes: cached, has: []string{"A: 2"}, reads: "body"})
	add(required, "of another length it outdates what is kept", kept, step{after: 3 * time.Second, method: "HEAD", sends: []string{"Content-Length: 5", "Cache-Control: max-age=1000"}}, step{becomes: asked})
	add(required, "an error updates nothing", kept, step{after: 3 * time.Second, method: "HEAD", status: 410, sends: []string{"Content-Length: 4", "Cache-Control: max-age=1000", "A: 2"}}, step{becomes: asked})

	category = "invalidation"
	for _, m := range []string{"POST", "PUT", "PATCH", "DELETE"} {
		add(required, m+" forgets the URI", step{sends: []string{long}}, step{method: m}, step{becomes: asked})
		add(optimal, m+" that fails does not", step{sends: []string{long}}, step{method: m, status: 500}, step{becomes: cached})
		for _, name := range []string{"Location", "Content-Location"} {
			add(required, m+" forgets its "+name, step{path: "/x/other", sends: []string{long}}, step{method: m, path: "/x/", sends: []string{name + ": other"}}, step{path: "/x/other", becomes: asked})
		}
		add(required, m+" does not touch another host", step{path: "/other", sends: []string{long}}, step{method: m, sends: []string{"Location: http://else.test/other"}}, step{path: "/other", becomes: cached})
	}
	add(optimal, "OPTIONS forgets nothing", step{sends: []string{long}}, step{method: "OPTIONS"}, step{becomes: cached})

	category = "method"
	add(optimal, "a POST that says where its answer lies", step{method: "POST", sends: []string{"Content-Location: /", long, "Date: +0"}}, step{becomes: cached})
	add(required, "a POST is not answered from the cache", step{sends: []string{long}}, step{method: "POST", becomes: asked})
	add(required, "a HEAD is answered by a GET, without its body", step{sends: []string{long}, body: "body"}, step{method: "HEAD", becomes: cached, has: []string{"Content-Length: 4"}})

	category = "partial"
	whole := step{sends: []string{long, tagged, "A: 1"}, body: "0123456789"}
	part := func(g grade, name, ranges, reads, at string, viewer ...string) {
		add(g, name, whole, step{viewer: append(viewer, "Range: "+ranges), becomes: cached, code: 206, reads: reads, has: []string{"Content-Range: bytes " + at + "/10", "A: 1", tagged}})
	}
	part(optimal, "from the start", "bytes=0-1", "01", "0-1")
	part(optimal, "to the end", "bytes=1-", "123456789", "1-9")
	part(optimal, "the last", "bytes=-1", "9", "9-9")
	part(required, "beyond the end", "bytes=8-20", "89", "8-9")
	part(required, "if it is the same", "bytes=0-1", "01", "0-1", `If-Range: "abcdef"`)
	add(optimal, "several parts", whole, step{viewer: []string{"Range: bytes=0-1,8-9"}, becomes: cached, code: 206, lacks: []string{"Content-Range"}})
	add(required, "if it is another", whole, step{viewer: []string{"Range: bytes=0-1", `If-Range: "other"`}, becomes: cached, code: 200, reads: "0123456789"})
	add(required, "if it is weakly the same", step{sends: []string{long, `ETag: W/"a"`}, body: "0123456789"}, step{viewer: []string{"Range: bytes=0-1", `If-Range: W/"a"`}, becomes: cached, code: 200})
	add(required, "nothing of it", whole, step{viewer: []string{"Range: bytes=10-"}, becomes: cached, code: 416, has: []string{"Content-Range: bytes */10"}})
	add(required, "another unit", whole, step{viewer: []string{"Range: lines=0-1"}, becomes: cached, code: 200, reads: "0123456789"})
	add(required, "a range of a HEAD is none", whole, step{method: "HEAD", viewer: []string{"Range: bytes=0-1"}, becomes: cached, code: 200, has: []string{"Content-Length: 10"}})
	add(required, "parts that overlap are answered with no more than the whole", whole, step{viewer: []string{"Range: bytes=0-9,0-9,0-9"}, becomes: cached, code: 200, reads: "0123456789"})
	add(optimal, "a range of what is not kept keeps the whole", step{viewer: []string{"Range: bytes=0-1"}, sends: []string{long}, body: "0123456789", code: 206, reads: "01"}, step{becomes: cached, reads: "0123456789"})
	// Parts are asked for in slices: of what is within the first, the whole is asked for.
	first, then := strings.Repeat("0123456789abcdef", 1<<16), "what is beyond"
	of := func(fields ...string) []string { return append(fields, long, tagged) }
	asPart := step{viewer: []string{"Range: bytes=1048581-1048583"}, status: 206, sends: of("Content-Range: bytes 1048576-1048589/1048590"), body: then, code: 206, reads: then[5:8], heard: []string{"Range: bytes=1048576-2097151"}}
	asRest := step{after: time.Second, status: 206, sends: of("Content-Range: bytes 0-1048575/1048590"), body: first, code: 200, reads: first + then, heard: []string{"Range: bytes=0-1048575", "If-Range: \"abcdef\""}}
	add(optimal, "a part is kept and used for itself", asPart, step{after: time.Second, viewer: asPart.viewer, becomes: cached, code: 206, reads: then[5:8]})
	add(optimal, "a part is used for what lies beside it", asPart, step{after: time.Second, viewer: []string{"Range: bytes=1048576-"}, becomes: cached, code: 206, reads: then})
	add(optimal, "a part is completed, and is the whole then", asPart, asRest, step{after: time.Second, becomes: cached, code: 200, reads: first + then, lacks: []string{"Content-Range"}})
	add(required, "a part is not completed by one of another version", asPart, step{after: time.Second, sends: []string{long, `ETag: "other"`}, body: "another", code: 200, reads: "another"}, step{becomes: cached, code: 200, reads: "another"})
	add(required, "a part nobody asked for is not taken for the whole", step{status: 206, sends: []string{long, "Content-Range: bytes 5-9/10"}, body: "56789", code: 502}, step{becomes: asked, body: "0123456789", reads: "0123456789"})

	category = "pragma"
	add(behaviour, "a viewer's no-cache has the origin asked", second(asked, []string{"Pragma: no-cache"}, long)...)
	add(required, "unless it says more by Cache-Control", second(cached, []string{"Pragma: no-cache", "Cache-Control: max-age=100"}, long)...)
	add(behaviour, "a viewer's other pragmas say nothing", second(cached, []string{"Pragma: foo"}, long)...)
	plain(behaviour, "an origin's no-cache says nothing", cached, long, "Pragma: no-cache")
	plain(behaviour, "but it forbids a guess", validated, "Last-Modified: -10000", "Pragma: no-cache")
	plain(behaviour, "nor do its other pragmas", cached, long, "Pragma: foo")

	category = "stale"
	const sie = "Cache-Control: max-age=2, stale-if-error=60"
	add(behaviour, "without leave it covers no origin that is gone", step{sends: []string{"Cache-Control: max-age=2"}}, step{after: 3 * time.Second, drops: true, code: 502})
	add(behaviour, "nor an error", step{sends: []string{"Cache-Control: max-age=2"}}, step{after: 3 * time.Second, status: 503, code: 503})
	add(optimal, "stale-if-error covers an origin that is gone", step{sends: []string{sie}, body: "kept"}, step{after: 3 * time.Second, drops: true, code: 200, reads: "kept"})
	for _, status := range []int{500, 502, 503, 504} {
		add(optimal, fmt.Sprintf("stale-if-error covers a %d", status), step{sends: []string{sie}, body: "kept"}, step{after: 3 * time.Second, status: status, code: 200, reads: "kept"})
	}
	add(required, "stale-if-error does not cover a 404", step{sends: []string{sie}}, step{after: 3 * time.Second, status: 404, code: 404})
	add(required, "stale-if-error that has gone by", step{sends: []string{"Cache-Control: max-age=2, stale-if-error=1"}}, step{after: 4 * time.Second, status: 500, code: 500})
	add(optimal, "stale-while-revalidate answers at once and refreshes", step{sends: []string{"Cache-Control: max-age=0, stale-while-revalidate=3600", `ETag: "a"`}, body: "old"},
		step{after: time.Second, sends: []string{long, `ETag: "b"`}, body: "new", reads: "old"}, step{after: 3 * time.Second, becomes: cached, reads: "new"})
	add(required, "stale-while-revalidate that brought a no-cache ends", step{sends: []string{"Cache-Control: max-age=1, stale-while-revalidate=60"}}, step{after: 3 * time.Second, sends: []string{"Cache-Control: no-cache"}},
		step{after: 3 * time.Second, becomes: asked})
	add(required, "stale-while-revalidate that has gone by", once(asked, 10*time.Second, "Cache-Control: max-age=1, stale-while-revalidate=2")...)
	for _, d := range []string{"must-revalidate", "proxy-revalidate", "no-cache", "s-maxage=2", "private", "no-store"} {
		add(required, d+" forbids it", step{sends: []string{"Cache-Control: max-age=2, stale-if-error=60, stale-while-revalidate=60, " + d}}, step{after: 3 * time.Second, drops: true, code: 502})
	}

	category = "status"
	for _, status := range []int{200, 201, 203, 204, 299, 300, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 410, 414, 451, 499, 500, 501, 502, 503, 504, 505, 599} {
		fresh, stale := once(cached, 0, "Expires: +100000", "Date: +0"), once(asked, 3*time.Second, "Expires: -5000", "Date: +0")
		for _, s := range [][]step{fresh, stale} {
			s[0].status, s[1].status = status, status
		}
		add(optimal, fmt.Sprintf("a %d that is fresh is used", status), fresh...)
		add(required, fmt.Sprintf("a %d that is stale is not", status), stale...)
	}
	for _, status := range []int{299, 499, 599} {
		s := once(asked, 0, "Cache-Control: max-age=3600, must-understand")
		s[0].status, s[1].status = status, status
		add(required, fmt.Sprintf("a %d is not understood", status), s...)
	}

	category = "vary"
	varies := func(fields string) []string {
		return []string{"Expires: +5000", "Last-Modified: -3000", "Date: +0", "Vary: " + fields}
	}
	vary := func(g grade, name, fields, becomes string, first, second []string) {
		add(g, name, step{viewer: first, sends: varies(fields)}, step{viewer: second, sends: varies(fields), becomes: becomes})
	}
	vary(optimal, "the same", "Foo", cached, []string{"Foo: 1"}, []string{"Foo: 1"})
	vary(required, "another", "Foo", asked, []string{"Foo: 1"}, []string{"Foo: 2"})
	vary(required, "none before", "Foo", asked, nil, []string{"Foo: 1"})
	vary(required, "none now", "Foo", asked, []string{"Foo: 1"}, nil)
	vary(optimal, "none at all", "Foo", cached, nil, nil)
	vary(optimal, "two, the same", "Foo, Bar", cached, []string{"Foo: 1", "Bar: a"}, []string{"Foo: 1", "Bar: a"})
	vary(required, "two, one of them another", "Foo, Bar", asked, []string{"Foo: 1", "Bar: a"}, []string{"Foo: 2", "Bar: a"})
	vary(required, "two, one of them none", "Foo, Bar", asked, []string{"Foo: 1"}, nil)
	vary(optimal, "three, the same", "Foo, Bar, Baz", cached, []string{"Foo: 1", "Bar: a", "Baz: 7"}, []string{"Foo: 1", "Bar: a", "Baz: 7"})
	vary(required, "three, one of them another", "Foo, Bar, Baz", asked, []string{"Foo: 1", "Bar: a4", "Baz: 7"}, []string{"Foo: 1", "Bar: a", "Baz: 7"})
	vary(optimal, "three, one of them none", "Foo, Bar, Baz", cached, []string{"Foo: 1", "Baz: 7"}, []string{"Baz: 7", "Foo: 1"})
	vary(required, "anything", "*", asked, []string{"Foo: 1"}, []string{"Foo: 1"})
	vary(optimal, "lines put together", "Foo", cached, []string{"Foo: 1, 2"}, []string{"Foo: 1", "Foo: 2"})
	vary(optimal, "space", "Foo", cached, []string{"Foo: 1,2"}, []string{"Foo: 1, 2 "})
	vary(optimal, "the order of languages", "Accept-Language", cached, []string{"Accept-Language: en, de"}, []string{"Accept-Language: de, en"})
	vary(optimal, "the case of languages", "Accept-Language", cached, []string{"Accept-Language: en, de"}, []string{"Accept-Language: eN, De"})
	vary(optimal, "space between languages", "Accept-Language", cached, []string{"Accept-Language: en, de"}, []string{"Accept-Language: en ,   de"})
	vary(required, "the weight of languages", "Accept-Language", asked, []string{"Accept-Language: en, de;q=0.5"}, []string{"Accept-Language: de, en;q=0.5"})
	vary(optimal, "codings we do not know", "Accept-Encoding", cached, []string{"Accept-Encoding: gzip, br"}, []string{"Accept-Encoding: br, zstd, gzip;q=0.5"})
	vary(required, "codings that are refused", "Accept-Encoding", asked, []string{"Accept-Encoding: gzip"}, []string{"Accept-Encoding: gzip;q=0"})
	add(optimal, "two are kept side by side", step{viewer: []string{"Foo: 1"}, sends: varies("Foo"), body: "one"}, step{viewer: []string{"Foo: 2"}, sends: varies("Foo"), body: "two", becomes: asked},
		step{viewer: []string{"Foo: 1"}, becomes: cached, reads: "one"}, step{viewer: []string{"Foo: 2"}, becomes: cached, reads: "two"})
	add(optimal, "what is not named does not matter", step{viewer: []string{"Foo: 1", "Other: 2"}, sends: varies("Foo")}, step{viewer: []string{"Foo: 1", "Other: 3"}, becomes: cached})
	add(optimal, "the best language of several is known", step{viewer: []string{"Accept-Language: en, de"}, sends: append(varies("Accept-Language"), "Content-Language: de")},
		step{viewer: []string{"Accept-Language: fr;q=0.5, de;q=1.0"}, becomes: cached})

	category = "vary-parse"
	for _, lines := range [][]string{{"*"}, {"*, *"}, {"*", "*"}, {", *"}, {"", "*"}, {"*, Foo"}, {"Foo, *"}, {"Foo", "*"}} {
		sends := []string{"Expires: +5000", "Date: +0"}
		for _, l := range lines {
			sends = append(sends, "Vary: "+l)
		}
		add(required, fmt.Sprintf("anything: %q", lines), second(asked, nil, sends...)...)
	}
	vary(required, "in any case", "fOO", asked, []string{"Foo: 1"}, []string{"Foo: 2"})
	vary(optimal, "empty members", ", ,", cached, []string{"Foo: 1"}, []string{"Foo: 1"})

	category = "auth"
	const basic = "Authorization: Basic eA=="
	credentials := func(g grade, name, becomes, control string, viewer ...string) {
		add(g, name, step{viewer: []string{basic}, sends: []string{control, "Date: +0"}, heard: []string{basic}}, step{viewer: viewer, becomes: becomes})
	}
	credentials(required, "what was sent to credentials is not for those without", asked, "Expires: +3600")
	credentials(required, "nor for those with them", asked, "Cache-Control: max-age=3600", basic)
	credentials(required, "nor for those with others", asked, "Cache-Control: max-age=3600, public", "Authorization: Basic eQ==")
	for _, c := range []string{"max-age=3600, public", "max-age=3600, must-revalidate", "s-maxage=3600"} {
		name := c[strings.LastIndexByte(c, ' ')+1:]
		name, _, _ = strings.Cut(name, "=")
		credentials(optimal, name+" is for the same credentials", cached, "Cache-Control: "+c, basic)
		credentials(optimal, name+" is for those without credentials", cached, "Cache-Control: "+c)
	}

	category = "interim"
	for _, code := range []int{102, 103} {
		add(optimal, fmt.Sprintf("a %d is passed on, and what follows is kept", code), step{sends: []string{long}, interim: []int{code}, hints: []int{code}}, step{becomes: cached})
	}
	add(required, "no interim response is kept", step{sends: []string{"Cache-Control: max-age=0"}, interim: []int{103}}, step{after: time.Second, becomes: asked, code: 200})

	category = "other"
	add(required, "Age is said", step{sends: []string{"Expires: +3600", "Date: +0"}, lacks: []string{"Age"}}, step{after: 3 * time.Second, becomes: cached, has: []string{"Age: 3"}})
	add(required, "Age goes on with Expires", step{sends: []string{"Expires: +3600", "Date: +0", "Age: 30"}}, step{after: 3 * time.Second, becomes: cached, has: []string{"Age: 33"}})
	add(required, "Age goes on with max-age", step{sends: []string{"Cache-Control: max-age=600", "Date: +0", "Age: 30"}}, step{after: 3 * time.Second, becomes: cached, has: []string{"Age: 33"}})
	add(required, "Date stays", step{sends: []string{"Expires: Fri, 01 Jan 2038 01:01:01 GMT", "Date: Fri, 31 Dec 1999 23:59:59 GMT"}}, step{after: 3 * time.Second, becomes: cached, has: []string{"Date: Fri, 31 Dec 1999 23:59:59 GMT"}})
	add(required, "Date is added where there is none", step{sends: []string{long}, has: []string{"Date"}})
	add(required, "Expires stays", step{sends: []string{"Expires: Fri, 01 Jan 2038 01:01:01 GMT"}}, step{after: 3 * time.Second, becomes: cached, has: []string{"Expires: Fri, 01 Jan 2038 01:01:01 GMT"}})
	add(behaviour, "no Age is said of what has just come", step{sends: []string{long}, lacks: []string{"Age"}})
	add(required, "another query", step{path: "/?a=1", sends: []string{long}}, step{path: "/?a=2", becomes: asked})
	add(optimal, "the same query", step{path: "/?a=1", sends: []string{long}}, step{path: "/?a=1", becomes: cached})
	plain(behaviour, "an attachment by a guess", cached, "Last-Modified: -100000", "Date: +0", "Content-Disposition: attachment; filename=a.txt")
	plain(behaviour, "an attachment that is fresh", cached, long, "Content-Disposition: attachment; filename=a.txt")
	plain(optimal, "beside Set-Cookie", cached, long, "Set-Cookie: a=b")
	add(optimal, "a viewer's Cookie that is not keyed", second(cached, []string{"Cookie: a=b"}, long)...)
	add(required, "a viewer's Cookie that is", second(asked, []string{"Cookie: session=1"}, long)...)
	add(required, "Via is said both ways", step{sends: []string{long}, has: []string{"Via: 1.1 perigee"}, heard: []string{"Via: 1.1 perigee"}})
	add(required, "a body that ends early is not kept", step{sends: []string{long, "Content-Length: 100"}, body: "short"}, step{becomes: asked, body: "whole", sends: []string{long}, reads: "whole"})
	return all
}

// expand makes a date of a value that is so many seconds from now.
func expand(line string) (name, value string) {
	name, value, _ = strings.Cut(line, ": ")
	switch name {
	case "Date", "Expires", "Last-Modified", "If-Modified-Since", "If-Unmodified-Since":
		if seconds, err := strconv.Atoi(value); err == nil && (value[0] == '+' || value[0] == '-') {
			value = time.Now().Add(time.Duration(seconds) * time.Second).UTC().Format(http.TimeFormat)
		}
	}
	return name, value
}

// try runs a case, and says what is wrong, if anything.
func (r rule) try(t *testing.T) (faults []string) {
	inWorld(t, lawful, func(t *testing.T, w *world) {
		var now atomic.Pointer[step]
		var count atomic.Int32
		w.raw(func(q *http.Request, c net.Conn) {
			s := now.Load()
			status, n := max(s.status, 200), count.Add(1)
			if s.drops {
				return
			}
			out := bufio.NewWriter(c)
			defer out.Flush()
			for _, code := range s.interim {
				fmt.Fprintf(out, "HTTP/1.1 %d Interim\r\nLink: </a>\r\n\r\n", code)
			}
			conditional := q.Header.Get("If-None-Match")+q.Header.Get("If-Modified-Since") != ""
			if s.becomes == validated && conditional {
				status = http.StatusNotModified
			}
			body := s.body
			if body == "" {
				body = fmt.Sprint("response ", n)
			}
			fmt.Fprintf(out, "HTTP/1.1 %d Status\r\n", status)
			length, end := status != 204 && status != 304, "Connection: close\r\n\r\n"
			for _, line := range s.sends {
				name, value := expand(line)
				fmt.Fprintf(out, "%s: %s\r\n", name, value)
				length = length && name != "Content-Length"
				if name == "Connection" { // beside close net/http would not let us see what else it names
					end = "\r\n"
				}
			}
			if length && q.Method != "HEAD" {
				fmt.Fprintf(out, "Content-Length: %d\r\n", len(body))
			}
			fmt.Fprint(out, end)
			if status != 204 && status != 304 && q.Method != "HEAD" {
				fmt.Fprint(out, body)
			}
		})
		for i, s := range r.steps {
			fault := func(format string, a ...any) {
				faults = append(faults, fmt.Sprintf("request %d: ", i+1)+fmt.Sprintf(format, a...))
			}
			time.Sleep(s.after)
			now.Store(&s)
			before := len(w.requests())
			var viewer []string
			for _, line := range s.viewer {
				name, value := expand(line)
				viewer = append(viewer, name+": "+value)
			}
			var hints []int
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
				hints = append(hints, code)
				return nil
			}})
			method, path, body := "GET", "/", ""
			if s.method != "" {
				method = s.method
			}
			if s.path != "" {
				path = s.path
			}
			if method == "POST" || method == "PUT" || method == "PATCH" {
				body = "abc"
			}
			a, err := w.ask(ctx, method, path, body, viewer...)
			if err != nil {
				fault("%v", err)
				return
			}
			asks := w.requests()[before:]
			became := cached
			if len(asks) > 0 {
				became = asked
				if q := asks[0].Header; q.Get("If-None-Match")+q.Get("If-Modified-Since") != "" {
					became = validated
				}
			}
			// Who asks in vain if it is good still has asked.
			if s.becomes != "" && s.becomes != became && !(s.becomes == asked && became == validated) {
				fault("was %s, not %s", became, s.becomes)
			}
			code := s.code
			if code == 0 && became == cached && i > 0 {
				code = max(r.steps[0].status, 200)
			} else if code == 0 {
				code = max(s.status, 200)
			}
			if a.StatusCode != code {
				fault("got %d, not %d", a.StatusCode, code)
			}
			if s.reads != "" && a.body != s.reads {
				fault("read %q, not %q", a.body, s.reads)
			}
			faults = append(faults, differ(fmt.Sprintf("request %d: the viewer's", i+1), a.Header, s.has)...)
			for _, name := range s.lacks {
				if got := a.Header.Get(name); got != "" {
					fault("has %s: %s", name, got)
				}
			}
			if len(s.heard) > 0 {
				heard := http.Header{}
				if len(asks) > 0 {
					heard = asks[0].Header
				}
				faults = append(faults, differ(fmt.Sprintf("request %d: the origin's", i+1), heard, s.heard)...)
			}
			if !slices.Equal(hints, s.hints) && (len(s.hints) > 0 || s.interim == nil) {
				fault("hints %d, not %d", hints, s.hints)
			}
		}
	})
	return faults
}

func differ(whose string, h http.Header, want []string) (faults []string) {
	for _, line := range want {
		name, value, any := strings.Cut(line, ": ")
		if lines := h.Values(name); !any && len(lines) == 0 || any && !slices.Contains(lines, value) {
			faults = append(faults, fmt.Sprintf("%s %s is %q, not %q", whose, name, lines, value))
		}
	}
	return faults
}

func TestTheCacheConforms(t *testing.T) {
	type count struct{ passed, all int }
	counts := map[string]map[grade]count{}
	var names []string
	for _, r := range rules() {
		name := r.category + ": " + r.name
		if slices.Contains(names, name) {
			t.Errorf("%s: twice", name)
		}
		names = append(names, name)
		var faults []string
		t.Run(strings.ReplaceAll(name, "/", "|"), func(t *testing.T) { faults = r.try(t) })
		_, expected := known[name]
		switch {
		case len(faults) > 0 && !expected:
			t.Errorf("%s (%s): %s", name, r.grade, strings.Join(faults, "; "))
		case len(faults) == 0 && expected:
			t.Errorf("%s is known to fail, and does not", name)
		case expected && r.grade != optimal:
			t.Errorf("%s is %s: it may not fail", name, r.grade)
		}
		for _, c := range []string{r.category, "all"} {
			if counts[c] == nil {
				counts[c] = map[grade]count{}
			}
			n := counts[c][r.grade]
			n.all++
			if len(faults) == 0 {
				n.passed++
			}
			counts[c][r.grade] = n
		}
	}
	for name := range known {
		if !slices.Contains(names, name) {
			t.Errorf("%s is known, and is no case", name)
		}
	}
	var table strings.Builder
	for _, c := range append(slices.DeleteFunc(slices.Sorted(maps.Keys(counts)), func(c string) bool { return c == "all" }), "all") {
		fmt.Fprintf(&table, "| %s |", c)
		for _, g := range []grade{required, optimal, behaviour} {
			if n := counts[c][g]; n.all > 0 {
				fmt.Fprintf(&table, " %d / %d |", n.passed, n.all)
			} else {
				table.WriteString(" |")
			}
		}
		table.WriteString("\n")
	}
	t.Logf("passed of all:\n| category | required | optimal | behaviour |\n%s", table.String())
	doc, err := os.ReadFile("../../docs/caching.md")
	if err != nil || !strings.Contains(string(doc), table.String()) {
		t.Errorf("docs/caching.md has not this table: %v", err)
	}
}
