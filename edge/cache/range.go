package cache

import "strings"

// Part is a part of a body.
type Part struct{ Start, Length int64 }

// What a Range asks of a body (RFC 9110 §14.2).
type rangeKind int

const (
	ignored       rangeKind = iota // not bytes, malformed, or more than is given: answered with the whole
	parts206                       // the parts lie within the body
	unsatisfiable                  // well-formed, and nothing of it is within the body
)

// maxParts is how many parts one answer has: a Range of more, like one whose parts overlap or go backwards, is answered with
// the whole, which is always right (CloudFront). So no answer is longer than the body but for a few lines a part, however a
// Range is made (RFC 9110 §17.15).
const maxParts = 16

// parseRange reads a Range of a body of that size. Parts of which nothing is within the body are left out.
func parseRange(s string, size int64) ([]Part, rangeKind) {
	unit, set, ok := strings.Cut(s, "=")
	if !ok || !strings.EqualFold(trim(unit), "bytes") || strings.Count(set, ",") >= maxParts {
		return nil, ignored
	}
	var parts []Part
	end, some := int64(0), false
	for one := range strings.SplitSeq(set, ",") {
		if one = trim(one); one == "" {
			continue // lists may have empty members (RFC 9110 §5.6.1)
		}
		p, ok := parsePart(one, size)
		if !ok {
			return nil, ignored
		}
		some = true
		if p.Length == 0 {
			continue
		}
		if p.Start < end {
			return nil, ignored
		}
		end = p.Start + p.Length
		parts = append(parts, p)
	}
	switch {
	case !some:
		return nil, ignored
	case len(parts) == 0:
		return nil, unsatisfiable
	}
	return parts, parts206
}

// parsePart reads one part: first-last, first- or -length. Its Length is 0 where nothing of it is within the body.
func parsePart(s string, size int64) (Part, bool) {
	first, last, ok := strings.Cut(s, "-")
	if !ok {
		return Part{}, false
	}
	from, fromOK := position(first)
	to, toOK := position(last)
	switch {
	case fromOK && last == "":
		to = size - 1
	case fromOK && toOK && from <= to:
		to = min(to, size-1)
	case first == "" && toOK: // the last so many bytes
		from, to = max(0, size-to), size-1
	default:
		return Part{}, false
	}
	if from > to {
		return Part{}, true
	}
	return Part{from, to - from + 1}, true
}

// position reads digits; what is beyond any body is the largest there is.
func position(s string) (int64, bool) {
	if s == "" {
		return 0, false
	}
	n := int64(0)
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		if n = n*10 + int64(c-'0'); n > 1<<50 {
			n = 1 << 50
		}
	}
	return n, true
}
