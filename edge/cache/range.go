package cache

import "strings"

// What a Range asks of a body (RFC 9110 §14.2).
type rangeKind int

const (
	ignored       rangeKind = iota // not bytes, malformed, or several parts: answered with the whole
	onePart                        // start and length lie within the body
	unsatisfiable                  // well-formed, and nothing of it is within the body
)

// parseRange reads a Range of one part. Several parts are answered with the whole: that is always right, and
// assembling parts is a known way to make a server work (RFC 9110 §17.15).
func parseRange(s string, size int64) (start, length int64, kind rangeKind) {
	unit, set, ok := strings.Cut(s, "=")
	if !ok || !strings.EqualFold(trim(unit), "bytes") {
		return 0, 0, ignored
	}
	first, last, ok := strings.Cut(trim(set), "-")
	if !ok {
		return 0, 0, ignored
	}
	from, fromOK := position(first)
	to, toOK := position(last)
	switch {
	case fromOK && last == "":
		to = size - 1
	case fromOK && toOK && from <= to:
		to = min(to, size-1)
	case first == "" && toOK: // the last so many bytes
		if to == 0 || size == 0 {
			return 0, 0, unsatisfiable
		}
		from, to = max(0, size-to), size-1
	default:
		return 0, 0, ignored
	}
	if from >= size {
		return 0, 0, unsatisfiable
	}
	return from, to - from + 1, onePart
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
