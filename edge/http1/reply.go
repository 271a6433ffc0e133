package http1

import (
	"bytes"
	"net/textproto"
	"strings"
	"unsafe"
)

// Fault is what is wrong with a response's head or trailers. Who has read it can trust nothing that follows on the connection.
type Fault string

func (f Fault) Error() string { return "malformed response: " + string(f) }

// The faults of a response (RFC 9112).
const (
	BadStatusLine  Fault = "status line"
	BadFieldLine   Fault = "field line"
	BadLength      Fault = "Content-Length is no length"
	LengthsDiffer  Fault = "lengths that differ"
	BadCoding      Fault = "transfer coding is not chunked alone"
	CodingTooOld   Fault = "transfer coding in HTTP/1.0"
	BadTrailerName Fault = "trailer that says where a message ends"
)

// Reply is the head of a response as an origin sent it. What it holds is a copy of what it was read from.
type Reply struct {
	Minor  int    // of the version: HTTP/1.1 or 1.0
	Code   int    // 100 to 999
	Status string // code and reason
	// Header has all fields by their canonical names but Transfer-Encoding and Trailer, and Content-Length where the body is
	// chunked: those are said below.
	Header  map[string][]string
	Trailer []string // fields that were said to follow a chunked body
	Length  int64    // what Content-Length says; −1: nothing
	Chunked bool
	// Last says that nothing else may be read from the connection after this response: the origin said so, it is of HTTP/1.0
	// and did not say otherwise, or it was written in a way that another reader may take for something else: both a length
	// and chunks, lines that end by LF alone, or a body that is announced where none may be (1xx, 204, 304), which may come yet,
	// and would be taken for the answer to what is asked next. An interim response says it of the one that it announces.
	Last bool
}

// ReadReply reads the head of a response, which ends where End says. It is as strict as RFC 9112 lets a client be, but for lines
// that end by LF alone (2.2): a field line that is continued on the next, white space before a colon, control characters, a
// length that is a list, lengths that differ, any coding but chunked, and chunks in HTTP/1.0 are faults. Of a length and
// chunks the chunks count (6.3).
func ReadReply(head []byte) (Reply, error) {
	r := Reply{Length: -1}
	text := string(head)
	line, text, ok := strings.Cut(text, "\n")
	line, odd := chop(line)
	if !ok || !r.statusLine(line) {
		return r, BadStatusLine
	}
	r.Last = odd
	var err error
	if r.Header, odd, err = readFields(text); err != nil {
		return r, err
	}
	r.Last = r.Last || odd
	return r, r.frame()
}

// ReadTrailers reads the fields behind a chunked body. Those that say where a message ends are none (RFC 9110, 6.5.1).
func ReadTrailers(section []byte) (map[string][]string, error) {
	h, _, err := readFields(string(section))
	if err != nil {
		return nil, err
	}
	for name := range h {
		if frames(name) {
			return nil, BadTrailerName
		}
	}
	return h, nil
}

func frames(name string) bool {
	return name == "Content-Length" || name == "Transfer-Encoding" || name == "Trailer"
}

// chop takes the CR off a line; odd: it has none.
func chop(line string) (_ string, odd bool) {
	if n := len(line) - 1; n >= 0 && line[n] == '\r' {
		return line[:n], false
	}
	return line, true
}

// statusLine reads "HTTP/1.1 200 OK". The reason may be missing, and the space before it: so many servers write it.
func (r *Reply) statusLine(line string) bool {
	const version = "HTTP/1."
	if len(line) < len("HTTP/1.1 200") || line[:len(version)] != version || line[8] != ' ' {
		return false
	}
	if r.Minor = int(line[7] - '0'); r.Minor != 0 && r.Minor != 1 {
		return false
	}
	r.Status = line[9:]
	code, ok := length(r.Status[:3])
	r.Code = int(code)
	return ok && r.Code >= 100 && (len(r.Status) == 3 || r.Status[3] == ' ') && IsValue(r.Status)
}

// readFields reads field lines up to an empty one, which ends the text.
func readFields(text string) (h map[string][]string, odd bool, err error) {
	n := strings.Count(text, "\n")
	h = make(map[string][]string, n)
	lines := make([]string, 0, n) // of all fields that have one each, together
	for {
		line, rest, ok := strings.Cut(text, "\n")
		line, bare := chop(line)
		if !ok {
			return nil, false, BadFieldLine
		}
		odd = odd || bare
		if line == "" {
			if rest != "" {
				return nil, false, BadFieldLine
			}
			return h, odd, nil
		}
		text = rest
		name, value, ok := strings.Cut(line, ":")
		if !ok || !token(name) {
			return nil, false, BadFieldLine
		}
		value = strings.Trim(value, " \t")
		if !IsValue(value) {
			return nil, false, BadFieldLine
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		if had, more := h[name]; more {
			h[name] = append(had, value)
			continue
		}
		lines = append(lines, value)
		h[name] = lines[len(lines)-1 : len(lines) : len(lines)]
	}
}

// IsValue says whether this may be a field's value (RFC 9110, 5.5): it has no control character but the tab.
func IsValue(s string) bool { return clean(unsafe.Slice(unsafe.StringData(s), len(s))) }

// frame reads the fields that say where the response ends (RFC 9112, 6).
func (r *Reply) frame() error {
	for i, line := range r.Header["Content-Length"] {
		n, ok := length(line)
		if !ok {
			return BadLength
		}
		if i > 0 && n != r.Length {
			return LengthsDiffer
		}
		r.Length = n
	}
	if lines := r.Header["Content-Length"]; len(lines) > 1 {
		r.Header["Content-Length"] = lines[:1:1]
	}
	if codings, coded := r.Header["Transfer-Encoding"]; coded {
		switch {
		case len(codings) != 1 || !strings.EqualFold(codings[0], "chunked"):
			return BadCoding
		case r.Minor == 0:
			return CodingTooOld
		}
		r.Chunked = true
		r.Last = r.Last || r.Length >= 0
		r.Length = -1
		delete(r.Header, "Transfer-Encoding")
		delete(r.Header, "Content-Length")
	}
	if lines, announced := r.Header["Trailer"]; announced {
		delete(r.Header, "Trailer")
		for _, line := range lines {
			for name := range strings.SplitSeq(line, ",") {
				if name = textproto.CanonicalMIMEHeaderKey(strings.Trim(name, " \t")); frames(name) {
					return BadTrailerName
				} else if r.Chunked && IsToken(name) {
					r.Trailer = append(r.Trailer, name)
				}
			}
		}
	}
	kept := false
	for _, line := range r.Header["Connection"] {
		for option := range strings.SplitSeq(line, ",") {
			option = strings.Trim(option, " \t")
			r.Last = r.Last || strings.EqualFold(option, "close")
			kept = kept || strings.EqualFold(option, "keep-alive")
		}
	}
	r.Last = r.Last || r.Minor == 0 && !kept || !r.mayHaveBody() && (r.Chunked || r.Length > 0)
	return nil
}

// mayHaveBody says whether responses of the status may have a body (RFC 9112, 6.3).
func (r *Reply) mayHaveBody() bool { return r.Code >= 200 && r.Code != 204 && r.Code != 304 }

// HasBody says whether a response to this method has a body, whatever its header says (RFC 9112, 6.3).
func (r *Reply) HasBody(method string) bool {
	return method != "HEAD" && r.mayHaveBody()
}

// Data copies what is data of a chunked body from a piece of it, as much as there is room for. It says how many bytes of the piece
// it has read and how many of the room are filled, and whether the body ends behind what it has read. Trailers, as they were
// sent with the empty line behind them, are appended to tail. What is malformed is not ok.
func (c *Chunks) Data(room, piece []byte, tail *bytes.Buffer) (read, filled int, end, ok bool) {
	for read < len(piece) && c.state != ended {
		if c.state == data {
			n := copy(room[filled:], piece[read:read+int(min(c.left, int64(len(piece)-read)))])
			if n == 0 {
				return read, filled, false, true // no room
			}
			c.Skip(n)
			read, filled = read+n, filled+n
			continue
		}
		if c.state >= trailer && c.state < ended {
			tail.WriteByte(piece[read])
		}
		if c.state == malformed || !c.next(piece[read]) {
			c.state = malformed
			return read, filled, false, false
		}
		read++
	}
	return read, filled, c.state == ended, true
}

// Left is how many bytes of data come next, before anything else.
func (c *Chunks) Left() int64 {
	if c.state != data {
		return 0
	}
	return c.left
}

// Skip says that n bytes of data, no more than are Left, were read elsewhere.
func (c *Chunks) Skip(n int) {
	if c.left -= int64(n); c.left == 0 {
		c.state = dataCR
	}
}
