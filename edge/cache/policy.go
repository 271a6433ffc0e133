package cache

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
)

// Policy is a CloudFront cache policy made ready for use: what of a request enters the key, and is therefore sent to
// the origin, and the bounds within which the origin's word on freshness holds.
type Policy struct {
	MinTTL, DefaultTTL, MaxTTL time.Duration
	// ErrorTTL is how long an error is kept at least (ErrorCachingMinTTL of the distribution).
	ErrorTTL time.Duration
	// TagHeader is the response field whose list is the tags a response is purged by (CloudFront: CacheTagConfig), canonical;
	// empty: responses have none.
	TagHeader string
	// Heuristic has heuristics stand in for DefaultTTL (HeuristicTTL of the cache policy).
	Heuristic bool
	// Directives has the viewer's Cache-Control followed (RequestDirectives of the cache policy).
	Directives bool

	headers []string // canonical, sorted, each once
	plain   bool     // no cookies are keyed, and no fields that are changed
	simple  bool     // no fields are keyed that Fields does not see as net/http does
	cookies part
	queries part
}

type part struct {
	behavior string
	items    []string
}

func (p part) has(name string) bool {
	switch p.behavior {
	case spec.KeyAll:
		return true
	case spec.KeyWhitelist:
		return slices.Contains(p.items, name)
	case spec.KeyAllExcept:
		return !slices.Contains(p.items, name)
	}
	return false
}

// NewPolicy makes a policy ready. The defaults must be filled in (spec.Build).
func NewPolicy(p *spec.CachePolicy, errorTTL time.Duration) *Policy {
	q := &Policy{
		MinTTL: p.MinTTL.Std(), DefaultTTL: p.DefaultTTL.Std(), MaxTTL: p.MaxTTL.Std(), ErrorTTL: errorTTL,
		Heuristic: p.HeuristicTTL, Directives: p.RequestDirectives,
		cookies: part{p.Cookies.Behavior, p.Cookies.Items},
		queries: part{p.QueryStrings.Behavior, p.QueryStrings.Items},
	}
	if p.Headers.Behavior == spec.KeyWhitelist {
		for _, name := range p.Headers.Items {
			if name = http.CanonicalHeaderKey(name); name != "Cookie" { // cookies have a part of their own
				q.headers = append(q.headers, name)
			}
		}
		slices.Sort(q.headers)
		q.headers = slices.Compact(q.headers)
	}
	q.plain = !q.KeysCookies() && !slices.ContainsFunc(q.headers, func(name string) bool { return slices.Contains(changed, name) })
	q.simple = !slices.ContainsFunc(q.headers, func(name string) bool {
		return name != "Accept-Charset" && name != "Accept-Language" && slices.Contains(changed, name)
	})
	return q
}

// Disabled says that nothing may be kept under the policy (Managed-CachingDisabled): requests need no key and are
// not collapsed.
func (p *Policy) Disabled() bool { return p.MaxTTL == 0 }

// Headers are the header fields in the key, canonical and sorted.
func (p *Policy) Headers() []string { return p.headers }

// KeysCookies says whether cookies are in the key. Where they are not, a response's Set-Cookie is for no one: it
// is taken off (CloudFront).
func (p *Policy) KeysCookies() bool {
	return p.cookies.behavior != "" && p.cookies.behavior != spec.KeyNone
}

// Query is what of a query string enters the key and is sent to the origin: the chosen parameters as given, in the order
// given. Names compare with case, and as they are written.
func (p *Policy) Query(raw string) string {
	switch p.queries.behavior {
	case spec.KeyAll:
		return raw
	case spec.KeyWhitelist, spec.KeyAllExcept:
		return string(appendChosen(nil, raw, '&', "&", p.queries))
	}
	return ""
}

// Cookie is what of the viewer's cookies enters the key and is sent to the origin, as one Cookie field in the order given.
func (p *Policy) Cookie(h http.Header) string {
	lines := h["Cookie"]
	if len(lines) == 0 || !p.KeysCookies() {
		return ""
	}
	return string(appendChosen(nil, strings.Join(lines, "; "), ';', "; ", p.cookies))
}

// appendChosen appends those of the name=value pairs whose name is wanted.
func appendChosen(b []byte, pairs string, separator byte, joiner string, wanted part) []byte {
	for start := len(b); pairs != ""; {
		end := strings.IndexByte(pairs, separator)
		if end < 0 {
			end = len(pairs)
		}
		pair := trim(pairs[:end])
		pairs = pairs[min(end+1, len(pairs)):]
		name, _, _ := strings.Cut(pair, "=")
		if pair == "" || !wanted.has(name) {
			continue
		}
		if len(b) > start {
			b = append(b, joiner...)
		}
		b = append(b, pair...)
	}
	return b
}

// Field is what the origin is sent of one of the viewer's header fields, as one line in canonical form. It is empty for a
// field that is not in the key, since it is not sent, but for Accept-Encoding, which is always sent. So two requests with equal
// Fields ask the origin the same, whatever else they say: this is the normalisation that RFC 9111 §4.1 allows.
func (p *Policy) Field(h http.Header, name string) string {
	switch {
	case name == "Cookie":
		return p.Cookie(h)
	case slices.Contains(p.headers, name):
		return canonical(name, h[name])
	case name == "Accept-Encoding":
		return AcceptEncoding(h)
	}
	return ""
}

// AcceptEncoding is the viewer's Accept-Encoding normalised to the codings that make a difference (CloudFront):
// "br,gzip", "br", "gzip" or nothing.
func AcceptEncoding(h http.Header) string {
	var c codings
	for _, line := range h["Accept-Encoding"] {
		c.read(line)
	}
	return c.String()
}

// codings are those of an Accept-Encoding that make a difference.
type codings struct{ br, gzip bool }

// read adds what one line accepts.
func (c *codings) read(line string) {
	for line != "" {
		var item string
		item, line, _ = strings.Cut(line, ",")
		coding, parameters, _ := strings.Cut(item, ";")
		if refused(parameters) {
			continue
		}
		switch coding = trim(coding); {
		case strings.EqualFold(coding, "br"):
			c.br = true
		case strings.EqualFold(coding, "gzip"), strings.EqualFold(coding, "x-gzip"):
			c.gzip = true
		}
	}
}

func (c codings) String() string {
	switch {
	case c.br && c.gzip:
		return "br,gzip"
	case c.br:
		return "br"
	case c.gzip:
		return "gzip"
	}
	return ""
}

// refused says whether a weight is zero: q=0, q=0.000 (RFC 9110 §12.4.2).
func refused(parameters string) bool {
	weight, ok := strings.CutPrefix(strings.ToLower(trim(parameters)), "q=")
	return ok && strings.Trim(weight, "0.") == ""
}
