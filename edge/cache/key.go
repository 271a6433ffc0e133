package cache

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/perigee-net/perigee/cluster/spec"
)

// Key is what a response is kept under. It names the distribution and not its revision, so what is kept outlives
// changes of configuration. URI is what an unsafe request and an invalidation name; Variant is what else the policy keys.
//
// Both are sequences of parts in canonical form: each part is written as its length in bytes, a colon and its bytes, so
// that no two different sequences are written alike. URI is distribution, path, query, scheme, host, method; Variant is, for
// each header field of the policy that is present, by name: its name and its value as one line in canonical form; and
// then the same for the cookies. It is one empty part if nothing of that is present, and empty if the policy
// keys nothing of that.
type Key struct {
	URI     string
	Variant string
}

// Target is what a request is for.
type Target struct {
	Distribution string
	// Scheme and Host are empty, the distribution standing for them, unless the origin is sent the viewer's: what the
	// origin may answer by must be in the key.
	Scheme, Host string
	// Path is as the viewer wrote it, escaped.
	Path string
	// Query is as the viewer wrote it, without the question mark.
	Query string
}

// method is the class of GET and HEAD, which share their responses. Others are not kept.
const method = http.MethodGet

// Key is the key of a request under the policy.
func (p *Policy) Key(t Target, h http.Header) Key {
	var space [512]byte
	b := p.appendURI(space[:0], t)
	k := Key{URI: string(b)}

	b = b[:0]
	for _, name := range p.headers {
		if lines := h[name]; len(lines) > 0 {
			b = appendLine(b, name, canonical(name, lines))
		}
	}
	if cookie := p.Cookie(h); cookie != "" {
		b = appendLine(b, "Cookie", cookie)
	}
	if len(b) == 0 && (len(p.headers) > 0 || p.KeysCookies()) {
		b = appendPart(b, "")
	}
	k.Variant = string(b)
	return k
}

// appendURI appends the URI of a key.
func (p *Policy) appendURI(b []byte, t Target) []byte {
	b = appendPart(b, t.Distribution)
	b = appendPart(b, t.Path)
	b = p.appendQueryPart(b, t.Query)
	b = appendPart(b, t.Scheme)
	b = appendPart(b, t.Host)
	return appendPart(b, method)
}

// appendQueryPart appends what of a query is in the key, as a part. Of a choice the length is known when it is there: so it
// is put before it afterwards.
func (p *Policy) appendQueryPart(b []byte, raw string) []byte {
	switch p.queries.behavior {
	case spec.KeyAll:
		return appendPart(b, raw)
	case spec.KeyWhitelist, spec.KeyAllExcept:
	default:
		return appendPart(b, "")
	}
	start := len(b)
	b = appendChosen(b, raw, '&', "&", p.queries)
	end := len(b)
	b = strconv.AppendInt(b, int64(end-start), 10)
	b = append(b, ':')
	rotate(b[start:], end-start)
	return b
}

// rotate brings what begins at i to the front.
func rotate(b []byte, i int) {
	slices.Reverse(b[:i])
	slices.Reverse(b[i:])
	slices.Reverse(b)
}

// String is the key for people.
func (k Key) String() string {
	uri := parts(k.URI)
	if len(uri) != 6 {
		return strconv.Quote(k.URI)
	}
	s := uri[5] + " " + uri[0] + " "
	if uri[3] != "" {
		s += uri[3] + "://"
	}
	s += uri[4] + uri[1]
	if uri[2] != "" {
		s += "?" + uri[2]
	}
	for rest := parts(k.Variant); len(rest) > 1; rest = rest[2:] {
		s += " [" + rest[0] + ": " + rest[1] + "]"
	}
	return s
}

func appendPart(b []byte, part string) []byte {
	b = strconv.AppendInt(b, int64(len(part)), 10)
	b = append(b, ':')
	return append(b, part...)
}

func appendLine(b []byte, name, line string) []byte {
	return appendPart(appendPart(b, name), line)
}

// parts reads a sequence of parts; nil if s is none.
func parts(s string) []string {
	var all []string
	for s != "" {
		part, rest, ok := cutPart(s)
		if !ok {
			return nil
		}
		all, s = append(all, part), rest
	}
	return all
}

// cutPart takes the first part off a sequence.
func cutPart(s string) (part, rest string, ok bool) {
	length, rest, ok := strings.Cut(s, ":")
	n, err := strconv.Atoi(length)
	if !ok || err != nil || n < 0 || n > len(rest) {
		return "", "", false
	}
	return rest[:n], rest[n:], true
}
