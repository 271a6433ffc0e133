package cache

import (
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dunglas/httpsfv"
)

// Control is what a response says of its caching: its CDN-Cache-Control where that is there and well formed (RFC 9213),
// else its Cache-Control (RFC 9111 §5.2.2, RFC 5861, RFC 8246).
type Control struct {
	NoStore, NoCache, Private, Public, MustRevalidate, ProxyRevalidate, MustUnderstand bool

	// Immutable says that the response does not change while it is fresh. It is for private caches, whose users reload; a
	// shared cache does not ask for what is fresh anyway.
	Immutable bool

	MaxAge, SMaxAge, StaleWhileRevalidate, StaleIfError Delta

	// Targeted says that the response spoke to CDNs: Cache-Control and Expires then say nothing to us (RFC 9213 §2.2).
	Targeted bool

	// own are the fields, canonical, that private="…" and no-cache="…" name: they are for the one request that brought
	// them, and the rest of the response is for all (§5.2.2.4, §5.2.2.7).
	own []string
}

// Delta is a number of seconds that a directive gives.
type Delta struct {
	Given bool
	Value time.Duration
}

// ParseControl reads what a response says of its caching. Unknown directives are skipped; of a directive given twice the
// first counts (§4.2.1); an argument that is no number of seconds is 0: stale (§4.2.1). A private or no-cache that
// names a field the rest cannot do without counts as one that names none.
func ParseControl(h http.Header) Control {
	if lines := h["Cdn-Cache-Control"]; len(lines) > 0 {
		if cc, ok := targeted(lines); ok {
			return cc
		}
	}
	var cc Control
	for _, line := range h["Cache-Control"] {
		for line != "" {
			var name, arg string
			name, arg, line = directive(line)
			cc.take(strings.ToLower(name), arg)
		}
	}
	return cc.understood()
}

// take reads one directive.
func (cc *Control) take(name, arg string) {
	switch name {
	case "no-store":
		cc.NoStore = true
	case "no-cache":
		cc.NoCache = cc.NoCache || !cc.names(arg)
	case "private":
		cc.Private = cc.Private || !cc.names(arg)
	case "public":
		cc.Public = true
	case "must-revalidate":
		cc.MustRevalidate = true
	case "proxy-revalidate":
		cc.ProxyRevalidate = true
	case "must-understand":
		cc.MustUnderstand = true
	case "immutable":
		cc.Immutable = true
	case "max-age":
		cc.MaxAge.set(arg)
	case "s-maxage":
		cc.SMaxAge.set(arg)
	case "stale-while-revalidate":
		cc.StaleWhileRevalidate.set(arg)
	case "stale-if-error":
		cc.StaleIfError.set(arg)
	}
}

// understood drops the no-store beside a must-understand: what is kept is understood (Storable), so it is for caches
// that do not know the status (§5.2.2.3).
func (cc Control) understood() Control {
	if cc.MustUnderstand {
		cc.NoStore = false
	}
	return cc
}

// maxOwn is how many fields private="…" and no-cache="…" may name together. With more they count as if they named none:
// nothing is shared, or all is validated.
const maxOwn = 16

// names takes down the fields that an argument names. Not ok: it names none, or one that cannot be taken off: what says
// how the body is to be read, or what caches go by.
func (cc *Control) names(arg string) (ok bool) {
	if trim(arg) == "" {
		return false
	}
	named, some := cc.own, false
	for name := range strings.SplitSeq(arg, ",") {
		if name = trim(name); name == "" {
			continue
		}
		canonical := http.CanonicalHeaderKey(name)
		if len(named) == maxOwn || !isToken(name) || inseparable(canonical) {
			return false
		}
		if !slices.Contains(named, canonical) {
			named = append(slices.Clip(named), canonical)
		}
		some = true
	}
	cc.own = named
	return some
}

// inseparable fields say how the body is to be read, or what caches go by.
func inseparable(name string) bool {
	switch name {
	case "Age", "Cache-Control", "Cdn-Cache-Control", "Date", "Etag", "Expires", "Last-Modified", "Vary":
		return true
	}
	return strings.HasPrefix(name, "Content-")
}

// separate takes the fields that are for one request off a header, and returns them; nil if there are none.
func (cc Control) separate(h http.Header) (own http.Header) {
	for _, name := range cc.own {
		if lines, has := h[name]; has {
			if own == nil {
				own = http.Header{}
			}
			own[name] = lines
			delete(h, name)
		}
	}
	return own
}

// targeted reads a targeted field, which is a dictionary of structured fields (RFC 9213 §2.1): a number of seconds is an
// Integer, a list of field names a String, what takes no argument true. Not ok: it is malformed, empty, or one of its
// directives that we know has a value of another type; it is then as if it were not there, and Cache-Control says.
func targeted(lines []string) (cc Control, ok bool) {
	members, err := httpsfv.UnmarshalDictionary(lines)
	if err != nil || len(members.Names()) == 0 {
		return Control{}, false
	}
	cc.Targeted = true
	for _, name := range members.Names() {
		member, _ := members.Get(name)
		item, single := member.(httpsfv.Item)
		var value any
		if single {
			value = item.Value
		}
		switch name {
		case "max-age", "s-maxage", "stale-while-revalidate", "stale-if-error":
			seconds, fits := value.(int64)
			if !fits {
				return Control{}, false
			}
			cc.take(name, strconv.FormatInt(seconds, 10)) // below zero is none, so stale
		case "no-store", "public", "must-revalidate", "proxy-revalidate", "must-understand", "immutable":
			if value != true {
				return Control{}, false
			}
			cc.take(name, "")
		case "no-cache", "private":
			switch v := value.(type) {
			case string:
				cc.take(name, v)
			case bool:
				if !v {
					return Control{}, false
				}
				cc.take(name, "")
			default:
				return Control{}, false
			}
		}
	}
	return cc.understood(), true
}

func (d *Delta) set(arg string) {
	if !d.Given {
		d.Given = true
		d.Value, _ = deltaSeconds(arg)
	}
}

// deltaSeconds reads a number of seconds; what is too large is 2³¹ (§1.2.2).
func deltaSeconds(s string) (time.Duration, bool) {
	if s == "" {
		return 0, false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n > math.MaxInt32 {
		n = math.MaxInt32 + 1
	}
	return time.Duration(n) * time.Second, true
}

// directive takes the first directive off a line: a name, and an argument as a token or a quoted string (§5.2).
// A quote that does not end is no quote: what follows it is read as directives, so that none is hidden by it.
func directive(line string) (name, arg, rest string) {
	end := strings.IndexAny(line, ",=")
	if end < 0 {
		return trim(line), "", ""
	}
	name, rest = trim(line[:end]), line[end+1:]
	if line[end] == ',' {
		return name, "", rest
	}
	if quoted := strings.TrimLeft(rest, " \t"); strings.HasPrefix(quoted, `"`) {
		if value, after, ok := unquote(quoted[1:]); ok {
			_, rest, _ = strings.Cut(after, ",")
			return name, value, rest
		}
	}
	arg, rest, _ = strings.Cut(rest, ",")
	return name, trim(arg), rest
}

// unquote reads a quoted string (RFC 9110 §5.6.4) whose opening quote is already taken.
func unquote(s string) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:], true
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}

func trim(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// isToken says whether a string is a token (RFC 9110 §5.6.2), as names of fields are.
func isToken(s string) bool {
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}
