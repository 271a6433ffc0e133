package cache

import (
	"net/http"
	"slices"
	"strings"
)

// vary reads a response's Vary (RFC 9110 §12.5.5): the names of request fields that selected it, canonical and
// sorted, or any: something that is in no field. A coded response is taken to vary by Accept-Encoding also where the
// origin forgot to say so, for else a viewer would get a coding it cannot read.
func vary(h http.Header) (names []string, any bool) {
	for _, line := range h["Vary"] {
		for name := range strings.SplitSeq(line, ",") {
			switch name = trim(name); name {
			case "":
			case "*":
				return nil, true
			default:
				names = append(names, http.CanonicalHeaderKey(name))
			}
		}
	}
	if len(h["Content-Encoding"]) > 0 {
		names = append(names, "Accept-Encoding")
	}
	slices.Sort(names)
	return slices.Compact(names), false
}

// secondary is the secondary key of a request by the fields named (RFC 9111 §4.1), in the canonical form of Key.
func (p *Policy) secondary(names []string, h http.Header) string {
	var space [256]byte
	b := space[:0]
	for _, name := range names {
		if value := p.Field(h, name); value != "" {
			b = appendLines(b, name, value)
		}
	}
	return string(b)
}
