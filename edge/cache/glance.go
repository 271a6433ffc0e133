package cache

import (
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/perigee-net/perigee/edge/http1"
)

// Glance is Find for a request as bytes, without allocation. It finds the same object; ok says that it did, and that the
// object is fresh. It does not cover policies that key cookies, or fields that net/http changes before anyone sees them. The target's texts may be views of the connection's buffer: nothing is kept of them.
//
// The key is made in the room that space has behind its length; if there is not enough, it allocates.
func (c *Cache) Glance(t Target, p *Policy, fields []http1.Field, now time.Time, space []byte) (o *Object, ok bool) {
	if !p.plain {
		return nil, false
	}
	b := p.appendURI(space[len(space):], t)
	end := len(b)
	e, ok := c.get(text(b))
	if !ok {
		return nil, false
	}
	if x := e.crossroads; x != nil {
		b = append(p.appendVariant(x.appendGeneration(b[:end]), fields), '|')
		if b, ok = p.appendSecondary(b, x.vary, fields); !ok {
			return nil, false
		}
		if e, ok = c.get(text(b)); !ok {
			return nil, false
		}
	} else if len(p.headers) > 0 { // what has a variant is at a crossroads
		return nil, false
	}
	if e.object == nil {
		return nil, false
	}
	var f Found
	if c.found(&f, e); f.Fenced || f.Object.Reuse(now, nil) != Fresh {
		return nil, false
	}
	return f.Object, true
}

// text is bytes as a string, which is good as long as they are not changed. Who is given it must not keep it.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// changed are the fields that net/http takes off a request, or adds, or that a Connection may: what they are by the bytes
// of a request is not what Key sees of it.
var changed = []string{
	"Cache-Control", "Close", "Connection", "Content-Length", "Cookie", "Host", "Keep-Alive", "Pragma", "Trailer", "Transfer-Encoding",
}

// appendVariant appends the Variant of a key; nothing if the policy keys no field.
func (p *Policy) appendVariant(b []byte, fields []http1.Field) []byte {
	start := len(b)
	for _, name := range p.headers {
		n := 0
		for i := range fields {
			if is(fields[i].Name, name) {
				n++
			}
		}
		if n == 0 {
			continue
		}
		b = appendPart(b, name)
		b = appendPart(b, strconv.Itoa(n)) // below 100 there is a table
		for i := range fields {
			if is(fields[i].Name, name) {
				b = appendPart(b, text(fields[i].Value))
			}
		}
	}
	if len(b) == start && len(p.headers) > 0 {
		b = appendPart(b, "")
	}
	return b
}

// appendSecondary appends what Policy.secondary makes of the fields named; not ok, if it does not cover one of them.
func (p *Policy) appendSecondary(b []byte, names []string, fields []http1.Field) (_ []byte, ok bool) {
	for _, name := range names {
		keyed := slices.Contains(p.headers, name)
		if !keyed && name != "Accept-Encoding" { // as in Field: not sent to the origin, so it selects nothing
			continue
		}
		var c codings
		value, lines := "", 0
		for i := range fields {
			if is(fields[i].Name, name) {
				value, lines = text(fields[i].Value), lines+1
				c.read(value)
			}
		}
		if !keyed {
			value = c.String()
		} else if lines > 1 {
			return b, false
		}
		if value != "" {
			b = appendPart(b, name)
			b = appendPart(b, "1")
			b = appendPart(b, value)
		}
	}
	return b, true
}

// is says whether a field has that name, in any case.
func is(name []byte, want string) bool {
	return len(name) == len(want) && strings.EqualFold(text(name), want)
}
