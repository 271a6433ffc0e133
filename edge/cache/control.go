package cache

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Control is the Cache-Control of a response (RFC 9111 §5.2.2, RFC 5861). The forms of private and no-cache that
// name fields count as the forms without, as §5.2.2.4 and §5.2.2.7 allow.
type Control struct {
	NoStore, NoCache, Private, Public, MustRevalidate, ProxyRevalidate bool

	MaxAge, SMaxAge, StaleWhileRevalidate, StaleIfError Delta
}

// Delta is a number of seconds that a directive gives.
type Delta struct {
	Given bool
	Value time.Duration
}

// ParseControl reads the Cache-Control of a response. Unknown directives are skipped; of a directive given twice the
// first counts (§4.2.1); an argument that is no number of seconds is 0: stale (§4.2.1).
func ParseControl(h http.Header) Control {
	var cc Control
	mustUnderstand := false
	for _, line := range h["Cache-Control"] {
		for line != "" {
			var name, arg string
			name, arg, line = directive(line)
			switch strings.ToLower(name) {
			case "no-store":
				cc.NoStore = true
			case "no-cache":
				cc.NoCache = true
			case "private":
				cc.Private = true
			case "public":
				cc.Public = true
			case "must-revalidate":
				cc.MustRevalidate = true
			case "proxy-revalidate":
				cc.ProxyRevalidate = true
			case "must-understand":
				mustUnderstand = true
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
	}
	if mustUnderstand { // what is kept is understood (Storable), so the no-store beside it is for others (§5.2.2.3)
		cc.NoStore = false
	}
	return cc
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
