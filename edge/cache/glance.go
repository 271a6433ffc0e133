package cache

import (
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

// Glance is Find for a request as bytes, without allocation. It finds the same object; ok says that it did, and that the
// object is fresh. Of requests that a policy keys fields of it covers those whose fields are written in the usual way, and of
// policies not those that key cookies, or what net/http changes before anyone sees it. The target's texts may be views of the
// connection's buffer: nothing is kept of them.
//
// The key is made in the room that space has behind its length; if there is not enough, it allocates.
func (c *Cache) Glance(t Target, p *Policy, fields []http1.Field, now time.Time, space []byte) (o *Object, ok bool) {
	if !p.plain {
		return nil, false
	}
	b := p.appendURI(space[len(space):], t)
	e, ok := c.get(http1.Text(b))
	if !ok {
		return nil, false
	}
	if x := e.crossroads; x != nil {
		e.use()
		if b, ok = p.appendVariant(x.appendGeneration(b), fields); !ok {
			return nil, false
		}
		b = append(b, '|')
		if b, ok = p.appendSecondary(b, x.vary, fields); !ok {
			return nil, false
		}
		if e, ok = c.get(http1.Text(b)); !ok {
			return nil, false
		}
	} else if len(p.headers) > 0 { // what has a variant is at a crossroads
		return nil, false
	}
	if e.object == nil {
		return nil, false
	}
	var f Found
	if c.found(&f, e); f.Fenced || f.Object.Reuse(now, nil) != Fresh || f.Object.InSlices() {
		return nil, false
	}
	return f.Object, true
}

// changed are the fields that net/http takes off a request, or adds, that a Connection may, or whose weights may be written in
// several ways: what they are by the bytes of a request is not what Key sees of it.
var changed = []string{
	"Accept-Charset", "Accept-Language", "Cache-Control", "Close", "Connection", "Content-Length", "Cookie", "Host", "Keep-Alive", "Pragma",
	"Trailer", "Transfer-Encoding",
}

// appendVariant appends the Variant of a key; nothing if the policy keys no field. Not ok: a field has several lines, or one
// that may mean the same as another.
func (p *Policy) appendVariant(b []byte, fields []http1.Field) (_ []byte, ok bool) {
	start := len(b)
	for _, name := range p.headers {
		value, lines := fieldOf(fields, name)
		if lines == 0 {
			continue
		}
		if lines > 1 || !normalList(value) {
			return b, false
		}
		b = appendLine(b, name, value)
	}
	if len(b) == start && len(p.headers) > 0 {
		b = appendPart(b, "")
	}
	return b, true
}

// appendSecondary appends what Policy.secondary makes of the fields named; not ok as in appendVariant.
func (p *Policy) appendSecondary(b []byte, names []string, fields []http1.Field) (_ []byte, ok bool) {
	for _, name := range names {
		value := ""
		switch {
		case slices.Contains(p.headers, name):
			var lines int
			if value, lines = fieldOf(fields, name); lines > 1 || !normalList(value) {
				return b, false
			}
		case name == "Accept-Encoding":
			value = AcceptEncodingOf(fields)
		}
		if value != "" { // else it is not sent to the origin, so it selects nothing
			b = appendLine(b, name, value)
		}
	}
	return b, true
}

// fieldOf is a field's last line, and how many it has.
func fieldOf(fields []http1.Field, name string) (value string, lines int) {
	for i := range fields {
		if is(fields[i].Name, name) {
			value, lines = http1.Text(fields[i].Value), lines+1
		}
	}
	return value, lines
}

// normalList says whether a line is a list with a comma and one space between its members, or no list.
func normalList(line string) bool {
	for i := range len(line) {
		switch line[i] {
		case '"':
			return false
		case ',':
			if i == 0 || i+2 >= len(line) || line[i-1] == ' ' || line[i-1] == '\t' || line[i+1] != ' ' || strings.IndexByte(" \t,", line[i+2]) >= 0 {
				return false
			}
		}
	}
	return true
}

// is says whether a field has that name, in any case.
func is(name []byte, want string) bool {
	return len(name) == len(want) && strings.EqualFold(http1.Text(name), want)
}
