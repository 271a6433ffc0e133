package http1

import (
	"bytes"
	"encoding/binary"
)

// MaxFields is how many lines the header of a plain request may have; one with more is Other.
const MaxFields = 64

// Form is what the beginning of a buffer was found to be.
type Form int

const (
	// Partial: so far it could be a plain request; its head has not ended.
	Partial Form = iota
	// Plain: it is a request of the plain form.
	Plain
	// Other: it is not, whatever follows. Nothing is said about where it ends; End says that.
	Other
)

// Parse reads the head at the beginning of b. If it is Plain, all of q is set but what only its connection knows, and what q
// holds aliases b. It is stricter than RFC 9112 asks a server to be: what a lenient reader and a strict one could
// take for different requests is not plain.
func (q *Request) Parse(b []byte) Form {
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		return Partial
	}
	if !q.parseLine(b[:end]) {
		return Other
	}
	q.Host, q.Close, q.Fields = nil, false, q.Fields[:0]
	for at := end + 1; ; at += end + 1 {
		end = bytes.IndexByte(b[at:], '\n')
		if end < 0 {
			return Partial
		}
		line := b[at : at+end]
		if end == 0 || line[end-1] != '\r' {
			return Other
		}
		if end == 1 {
			q.Bytes = at + 2
			break
		}
		if len(q.Fields) == MaxFields || !q.parseField(line[:end-1]) {
			return Other
		}
	}
	if q.Host == nil {
		return Other
	}
	return Plain
}

// parseLine reads "GET /path?query HTTP/1.1\r".
func (q *Request) parseLine(line []byte) bool {
	const version = " HTTP/1.1\r"
	if len(line) < len("GET /")+len(version) || string(line[len(line)-len(version):]) != version {
		return false
	}
	line = line[:len(line)-len(version)]
	switch {
	case string(line[:5]) == "GET /":
		q.Head, q.Target = false, line[4:]
	case string(line[:6]) == "HEAD /": // it is that long: a version was cut off
		q.Head, q.Target = true, line[5:]
	default:
		return false
	}
	for _, c := range q.Target {
		if class[c]&inTarget == 0 {
			return false
		}
	}
	q.Path, q.Query = q.Target, nil
	if i := bytes.IndexByte(q.Target, '?'); i >= 0 {
		q.Path, q.Query = q.Target[:i], q.Target[i+1:]
	}
	for p := q.Path; ; {
		i := bytes.IndexByte(p, '%')
		if i < 0 {
			return true
		}
		if i+2 >= len(p) || class[p[i+1]]&isHex == 0 || class[p[i+2]]&isHex == 0 {
			return false
		}
		p = p[i+3:]
	}
}

// parseField reads "Name: value".
func (q *Request) parseField(line []byte) bool {
	name, value, ok := cutField(line)
	if !ok {
		return false
	}
	switch n := len(name); n {
	case len("host"):
		if is(name, "host") {
			if q.Host != nil || !hostly(value) {
				return false
			}
			q.Host = value
		}
	case len("expect"):
		if is(name, "expect") {
			return false
		}
	case len("upgrade"):
		if is(name, "upgrade") {
			return false
		}
	case len("connection"):
		if is(name, "connection") {
			switch {
			case is(value, "close"):
				q.Close = true
			case !is(value, "keep-alive"):
				return false
			}
		}
	default:
		if n >= len("contentlength") && resembles(name) != nothing {
			return false
		}
	}
	q.Fields = append(q.Fields, Field{name, value})
	return true
}

// trim takes optional white space (RFC 9110, 5.6.3) from both ends.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// clean says whether a value has no control character but the tab (RFC 9110, 5.5).
func clean(b []byte) bool {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for len(b) >= 8 { // eight at a time: a byte below 0x20, or one that is 0x7f, has its high bit set below
		w := binary.LittleEndian.Uint64(b)
		low := (w - 0x20*ones) &^ w
		d := w ^ 0x7f*ones
		del := (d - ones) &^ d
		if (low|del)&highs != 0 && !cleanBytes(b[:8]) { // a tab, or a borrow of the byte beside, is looked at again
			return false
		}
		b = b[8:]
	}
	return cleanBytes(b)
}

func cleanBytes(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// is says whether b is a word, which is given in lower case; ASCII letters of b may be of either.
func is(b []byte, word string) bool {
	if len(b) != len(word) {
		return false
	}
	for i, c := range b {
		if c != word[i] && (c < 'A' || c > 'Z' || c+'a'-'A' != word[i]) {
			return false
		}
	}
	return true
}

// What a byte may be part of.
const (
	inToken  = 1 << iota // RFC 9110, 5.6.2
	inTarget             // of the plain form: visible ASCII but '#', which no client sends
	inHost
	isHex
)

// class is what each byte may be part of.
var class = func() (t [256]byte) {
	for c := byte('!'); c <= '~'; c++ {
		if c != '#' {
			t[c] |= inTarget
		}
	}
	letter := func(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
	for c := range byte(0x80) {
		digit := c >= '0' && c <= '9'
		if letter(c) || digit || bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) >= 0 {
			t[c] |= inToken
		}
		if letter(c) || digit || bytes.IndexByte([]byte("-._:[]"), c) >= 0 {
			t[c] |= inHost
		}
		if digit || letter(c) && c|0x20 <= 'f' {
			t[c] |= isHex
		}
	}
	return t
}()

// End is where the head at the beginning of b ends: behind its first empty line, whichever way its lines end. It is -1 if
// there is none yet. What is before from was looked at already: from is 0, or the length of b as it was then.
func End(b []byte, from int) int {
	switch {
	case len(b) > 0 && b[0] == '\n':
		return 1
	case len(b) > 1 && b[0] == '\r' && b[1] == '\n':
		return 2
	}
	at := max(0, from-2)
	for {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			return -1
		}
		at += i + 1
		if at < len(b) && b[at] == '\n' {
			return at + 1
		}
		if at+1 < len(b) && b[at] == '\r' && b[at+1] == '\n' {
			return at + 2
		}
	}
}
