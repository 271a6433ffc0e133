package http1

import "bytes"

// PlainReply is the head of a response of the plain form: a final one by HTTP/1.1, written with CR LF, whose body is as long as its one
// Content-Length says, and whose connection stays. All of it aliases the buffer that it was read from.
type PlainReply struct {
	Code   int
	Fields []Field // as they were sent, but for those that concern the connection or its framing
	Length int64   // what Content-Length says
	Bytes  int     // of the status line and the header, with their ends
}

// Parse reads the head at the beginning of b, with room for MaxFields in r.Fields, if it is not to allocate. What is Plain ReadReply
// takes for the same response; what is Other is left to it. That goes for what may be no response of its own either: interim ones, and
// those without a body.
func (r *PlainReply) Parse(b []byte) Form {
	const version = "HTTP/1.1 "
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		return Partial
	}
	if end < len(version)+3+1 || b[end-1] != '\r' || string(b[:len(version)]) != version {
		return Other
	}
	code, reason := b[len(version):len(version)+3], b[len(version)+3:end-1]
	n, ok := length(code)
	if r.Code = int(n); !ok || r.Code < 200 || r.Code > 599 || r.Code == 204 || r.Code == 304 || len(reason) > 0 && reason[0] != ' ' || !clean(reason) {
		return Other
	}
	r.Length, r.Fields = -1, r.Fields[:0]
	pragma, control := false, false
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
			r.Bytes = at + 2
			break
		}
		name, value, ok := cutField(line[:end-1])
		if !ok || len(r.Fields) == MaxFields {
			return Other
		}
		switch len(name) {
		case len("te"), len("upgrade"): // and trailer
			if is(name, "te") || is(name, "upgrade") || is(name, "trailer") {
				return Other
			}
		case len("pragma"):
			pragma = pragma || is(name, "pragma")
		case len("connection"): // and keep-alive
			switch {
			case is(name, "keep-alive"):
				continue
			case !is(name, "connection"):
			case is(value, "keep-alive"):
				continue
			default:
				return Other
			}
		case len("cache-control"):
			control = control || is(name, "cache-control")
		case len("content-length"):
			if is(name, "content-length") {
				if n, ok := length(value); ok && r.Length < 0 {
					r.Length = n
					continue
				}
				return Other
			}
		case len("transfer-encoding"):
			if is(name, "transfer-encoding") {
				return Other
			}
		}
		if len(name) > len("proxy-") && is(name[:len("proxy-")], "proxy-") {
			return Other
		}
		r.Fields = append(r.Fields, Field{name, value})
	}
	if r.Length < 0 || pragma && !control { // what Pragma means then is ReadReply's reader's
		return Other
	}
	return Plain
}

// cutField reads "Name: value"; not ok: it is no field line.
func cutField(line []byte) (name, value []byte, ok bool) {
	n := 0
	for n < len(line) && class[line[n]]&inToken != 0 {
		n++
	}
	if n == 0 || n == len(line) || line[n] != ':' {
		return nil, nil, false
	}
	value = trim(line[n+1:])
	return line[:n], value, clean(value)
}

// AppendName appends the name of a field, a token, in canonical form, as net/http writes it.
func AppendName(b, name []byte) []byte {
	upper := true
	for _, c := range name {
		switch {
		case upper && 'a' <= c && c <= 'z':
			c -= 'a' - 'A'
		case !upper && 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		}
		b = append(b, c)
		upper = c == '-'
	}
	return b
}

// AppendField appends a field as a line.
func AppendField(b []byte, f Field) []byte {
	b = append(append(AppendName(b, f.Name), ": "...), f.Value...)
	return append(b, "\r\n"...)
}
