package cache

import (
	"iter"
	"net/http"
	"slices"
	"strings"
)

// Header is the header of a kept response, as it is sent: for each line "Name: value" and CR LF, sorted by name, and lines of
// one name in their order. Names are canonical as http.Header's; no line has a CR or LF in it. It is one string, so that a
// kept response costs the garbage collector one pointer for it, and a hit sends it as it is.
type Header string

// lineBreaks become spaces in values, as they do where net/http writes them: else a value could begin another line.
var lineBreaks = strings.NewReplacer("\r", " ", "\n", " ")

// ownFields are what Perigee says of a response itself, anew of each answer. What an origin says there is not kept.
var ownFields = []string{"Age", "X-Cache", "X-Perigee-Id", "X-Perigee-Pop"}

// NewHeader makes a header of the lines of h. What net/http would not send either, because its name is no token, is left out.
func NewHeader(h http.Header) Header {
	size := 0
	names := make([]string, 0, len(h))
	for name, lines := range h {
		if len(lines) == 0 || !isToken(name) {
			continue
		}
		names = append(names, name)
		for _, line := range lines {
			size += len(name) + len(line) + len(": \r\n")
		}
	}
	slices.Sort(names)
	var b strings.Builder
	b.Grow(size)
	for _, name := range names {
		for _, line := range h[name] {
			b.WriteString(name)
			b.WriteString(": ")
			b.WriteString(trim(lineBreaks.Replace(line)))
			b.WriteString("\r\n")
		}
	}
	return Header(b.String())
}

// All goes through the lines.
func (h Header) All() iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		for h != "" {
			name, value, rest := h.cut()
			if h = rest; !yield(name, value) {
				return
			}
		}
	}
}

// cut takes the first line off.
func (h Header) cut() (name, value string, rest Header) {
	line, after, _ := strings.Cut(string(h), "\r\n")
	name, value, _ = strings.Cut(line, ": ")
	return name, value, Header(after)
}

// Get is the value of a field's first line, or empty. The name may be written in any case.
func (h Header) Get(name string) string {
	for h != "" {
		n, value, rest := h.cut()
		if len(n) == len(name) && strings.EqualFold(n, name) {
			return value
		}
		h = rest
	}
	return ""
}

// AddTo sets the fields in a header of net/http's.
func (h Header) AddTo(to http.Header) {
	lines := make([]string, 0, strings.Count(string(h), "\n"))
	for before := ""; h != ""; {
		name, value, rest := h.cut()
		lines, h = append(lines, value), rest
		if name == before {
			to[name] = append(to[name], value)
			continue
		}
		to[name], before = lines[len(lines)-1:len(lines):len(lines)], name
	}
}

// HTTP is a new header of net/http's with the same lines.
func (h Header) HTTP() http.Header {
	to := make(http.Header, 16)
	h.AddTo(to)
	return to
}

// without is the header without the fields of those names, which are sorted and canonical.
func (h Header) without(names []string) Header {
	var b strings.Builder
	for rest := h; rest != ""; {
		line := rest
		name, _, after := rest.cut()
		if rest = after; !slices.Contains(names, name) {
			b.WriteString(string(line[:len(line)-len(after)]))
		}
	}
	return Header(b.String())
}
