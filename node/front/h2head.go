package front

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"

	"github.com/perigee-net/perigee/edge/http1"
)

// field takes one field of the header that is decoded.
func (c *h2) field(f hpack.HeaderField) {
	if c.listed += len(f.Name) + len(f.Value) + 32; c.listed > headerBytes {
		c.decoder.SetEmitEnabled(false)
		return
	}
	c.fields = append(c.fields, f)
}

// header takes a whole header: of a new request, or the trailer of one.
func (c *h2) header(id uint32, ends bool, block []byte) error {
	c.fields, c.listed = c.fields[:0], 0
	c.decoder.SetEmitEnabled(true)
	_, err := c.decoder.Write(block)
	if err == nil {
		err = c.decoder.Close()
	}
	if err != nil {
		return breach{code: compressError}
	}
	defer func() {
		if clear(c.fields); cap(c.fields) > keptFields {
			c.fields = nil
		}
	}()

	c.mu.Lock()
	if s := c.streams[id]; s != nil {
		defer c.mu.Unlock()
		return c.trailer(s, ends)
	}
	if id <= c.maxID {
		defer c.mu.Unlock()
		switch {
		case c.wasReset(id):
			if !c.spend() {
				return breach{code: enhanceYourCalm}
			}
			return nil
		case c.wasOpen(id):
			return breach{code: closedError}
		}
		return breach{code: protocolError}
	}
	if c.away == awayForGood {
		c.mu.Unlock()
		return nil // the client was told
	}
	c.maxID = id
	full := len(c.streams) >= streams
	c.mu.Unlock()
	counters := &c.door.front.counters
	if full {
		counters.http2.refused.Add(1)
		return breach{id, refusedStream}
	}
	if c.listed > headerBytes {
		counters.badRequests.Add(1)
		return c.hit(id, &http1.Response{Head: tooLarge, Body: tooLargeBody}, false, ends)
	}
	a, ok := readAsked(c.fields)
	if !ok {
		counters.badRequests.Add(1)
		return breach{id, protocolError}
	}
	if ends {
		if done, err := c.quick(id, a); done {
			return err
		}
	}
	return c.hand(id, a, ends)
}

var (
	tooLarge     = []byte("HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 35\r\n\r\n")
	tooLargeBody = []byte("431 Request Header Fields Too Large")
)

// trailer takes what follows a request's body. With the lock.
func (c *h2) trailer(s *stream, ends bool) error {
	switch {
	case s.received:
		return breach{s.id, closedError}
	case !ends, c.listed > headerBytes, s.length >= 0 && s.got != s.length:
		return breach{s.id, protocolError}
	}
	for _, f := range c.fields {
		if !isSound(f) {
			return breach{s.id, protocolError}
		}
	}
	s.trailers = http.Header{}
	for _, f := range c.fields {
		s.trailers.Add(f.Name, f.Value)
	}
	c.receive(s, io.EOF)
	return nil
}

// asked is what a request's header says by its pseudo-fields, and what follows these.
type asked struct {
	method, scheme, path, authority string
	fields                          []hpack.HeaderField
}

// readAsked says what is asked, or that it is malformed (RFC 9113, 8.1.1).
func readAsked(fields []hpack.HeaderField) (a asked, ok bool) {
	n := 0
	for ; n < len(fields) && strings.HasPrefix(fields[n].Name, ":"); n++ {
		f := &fields[n]
		var to *string
		switch f.Name {
		case ":method":
			to = &a.method
		case ":scheme":
			to = &a.scheme
		case ":path":
			to = &a.path
		case ":authority":
			to = &a.authority
		default:
			return a, false
		}
		if *to != "" || f.Value == "" && to != &a.authority || !httpguts.ValidHeaderFieldValue(f.Value) {
			return a, false
		}
		*to = f.Value
	}
	a.fields = fields[n:]
	for i := range a.fields {
		if !isSound(a.fields[i]) {
			return a, false
		}
	}
	switch {
	case a.method == "CONNECT":
		return a, a.scheme == "" && a.path == "" && a.authority != ""
	case a.method == "" || a.scheme != "https" && a.scheme != "http":
		return a, false
	}
	return a, a.path == "*" || strings.HasPrefix(a.path, "/")
}

// isSound says whether a field may be in a header or a trailer (RFC 9113, 8.2).
func isSound(f hpack.HeaderField) bool {
	if !http1.IsToken(f.Name) || !httpguts.ValidHeaderFieldValue(f.Value) {
		return false
	}
	for i := range len(f.Name) {
		if f.Name[i] >= 'A' && f.Name[i] <= 'Z' {
			return false
		}
	}
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return false
	case "te":
		return f.Value == "trailers"
	}
	return true
}

// quick has Quick answer, if the request would be plain as one of HTTP/1. It says whether that was done.
func (c *h2) quick(id uint32, a asked) (done bool, err error) {
	behind := c.door.behind.Load()
	if behind.Quick == nil || a.method != "GET" && a.method != "HEAD" || a.scheme != "https" || a.authority == "" {
		return false, nil
	}
	d := c.desk2
	b := append(append(append(d.plain[:0], a.method...), ' '), a.path...)
	b = append(append(b, " HTTP/1.1\r\nhost: "...), a.authority...)
	b = append(b, "\r\n"...)
	cookie := false
	for i := range a.fields {
		f := &a.fields[i]
		switch f.Name {
		case "host":
			if f.Value != a.authority {
				return false, nil
			}
			continue
		case "cookie":
			if cookie {
				return false, nil
			}
			cookie = true
		}
		b = append(append(append(append(b, f.Name...), ": "...), f.Value...), "\r\n"...)
	}
	b = append(b, "\r\n"...)
	d.plain = b
	q := &d.request
	if q.Parse(b) != http1.Plain || q.Bytes != len(b) { // what is asked has no line ends: that was looked for
		return false, nil
	}
	q.TLS, q.Remote, q.Now = true, c.remote, time.Now()
	d.answer = http1.Response{Head: d.head[:0]}
	if !behind.Quick(q, &d.answer) {
		return false, nil
	}
	counters := &c.door.front.counters
	counters.requests.Add(1)
	counters.quick.Add(1)
	counters.http2.requests.Add(1)
	if field := c.alternative(); field != nil {
		h := d.answer.Head
		d.answer.Head = append(append(append(h[:len(h)-2], "Alt-Svc: "...), field[0]...), "\r\n\r\n"...)
	}
	d.head = d.answer.Head
	return true, c.hit(id, &d.answer, q.Head, true)
}

// hand gives a request to the door's handler, on a goroutine of its own.
func (c *h2) hand(id uint32, a asked, ends bool) error {
	counters := &c.door.front.counters
	r, length, ok := c.request(a, ends)
	if !ok {
		counters.badRequests.Add(1)
		return breach{id, protocolError}
	}
	expected := httpguts.HeaderValuesContainsToken(r.Header["Expect"], "100-continue")
	if expected {
		delete(r.Header, "Expect")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running >= streams { // of streams that are reset, some
		counters.http2.refused.Add(1)
		return breach{id, refusedStream}
	}
	counters.http2.requests.Add(1)
	s := c.open(id)
	if s.received = ends; ends {
		s.inErr = io.EOF
	} else {
		s.length = length
		r.Body = &body2{s: s, trailer: r.Trailer, expected: expected}
	}
	ctx, cancel := context.WithCancel(c.ctx)
	s.cancel = cancel
	r = r.WithContext(ctx)
	w := &answer2{s: s, r: r, header: http.Header{}, length: -1}
	c.running++
	c.wg.Go(func() { c.handle(s, w, r) })
	return nil
}

// request makes of what is asked what net/http would. The length is of the body, or -1; it may not be malformed.
func (c *h2) request(a asked, ends bool) (r *http.Request, length int64, ok bool) {
	header := make(http.Header, len(a.fields))
	values := make([]string, len(a.fields))
	for i, f := range a.fields {
		name := textproto.CanonicalMIMEHeaderKey(f.Name)
		if had := header[name]; had != nil {
			header[name] = append(had, f.Value)
			continue
		}
		values[i] = f.Value
		header[name] = values[i : i+1 : i+1]
	}
	if hosts := header["Host"]; len(hosts) > 0 {
		if len(hosts) > 1 || a.authority != "" && a.authority != hosts[0] {
			return nil, 0, false
		}
		a.authority = hosts[0]
		delete(header, "Host")
	}
	if strings.IndexByte(a.authority, '@') >= 0 || a.authority != "" && !httpguts.ValidHostHeader(a.authority) {
		return nil, 0, false
	}
	if cookies := header["Cookie"]; len(cookies) > 1 {
		header["Cookie"] = []string{strings.Join(cookies, "; ")}
	}
	r = &http.Request{
		Method: a.method, Proto: "HTTP/2.0", ProtoMajor: 2, Header: header, Host: a.authority, RequestURI: a.path, TLS: c.state,
		RemoteAddr: c.address, Body: http.NoBody,
	}
	if a.method == "CONNECT" {
		r.URL, r.RequestURI = &url.URL{Host: a.authority}, a.authority
	} else {
		u, err := url.ParseRequestURI(a.path)
		if err != nil {
			return nil, 0, false
		}
		r.URL = u
	}
	for _, list := range header["Trailer"] {
		for name := range strings.SplitSeq(list, ",") {
			switch name = textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name)); name {
			case "Transfer-Encoding", "Trailer", "Content-Length":
			default:
				if r.Trailer == nil {
					r.Trailer = http.Header{}
				}
				r.Trailer[name] = nil
			}
		}
	}
	delete(header, "Trailer")
	length = -1
	if said, there := header["Content-Length"]; there {
		n, err := strconv.ParseUint(said[0], 10, 63)
		if err == nil {
			length = int64(n)
		}
		if ends && length > 0 {
			return nil, 0, false
		}
		r.ContentLength = max(length, 0)
	} else if !ends {
		r.ContentLength = -1
	}
	return r, length, true
}

// appendAnswer appends the header block of an answer of HTTP/1: a status line and fields, with an empty line at their end.
func (c *h2) appendAnswer(b, head []byte) []byte {
	b = c.packStatus(b, head[len("HTTP/1.1 "):len("HTTP/1.1 200")])
	for at := bytes.IndexByte(head, '\n') + 1; ; {
		end := bytes.IndexByte(head[at:], '\n')
		colon := bytes.IndexByte(head[at:], ':')
		if end <= 1 || colon < 0 {
			return b
		}
		b = packField(b, head[at:at+colon], bytes.Trim(head[at+colon+1:at+end], " \r"))
		at += end + 1
	}
}

// packStatus begins a header block. The first one says that the table of fields is empty, and will be: what is sent is never taken
// into it, so that blocks may be made in any order.
func (c *h2) packStatus(b []byte, status []byte) []byte {
	if !c.resized {
		c.resized = true
		b = append(b, 0x20)
	}
	switch string(status) {
	case "200":
		return append(b, 0x88)
	case "204":
		return append(b, 0x89)
	case "206":
		return append(b, 0x8a)
	case "304":
		return append(b, 0x8b)
	case "400":
		return append(b, 0x8c)
	case "404":
		return append(b, 0x8d)
	case "500":
		return append(b, 0x8e)
	}
	return append(append(b, 0x08, 3), status...)
}

// packField appends a field, whose name may have capitals, to a header block (RFC 7541, 6.2.2). Values are sent as they are:
// Huffman's coding would save a fifth of a header, and cost more time than all else here.
func packField[S string | []byte](b []byte, name, value S) []byte {
	at := len(b)
	b = append(b, name...)
	for i := at; i < len(b); i++ {
		if b[i] >= 'A' && b[i] <= 'Z' {
			b[i] += 'a' - 'A'
		}
	}
	if index, ok := staticNames[string(b[at:])]; ok {
		b = packInteger(b[:at], 0, 15, uint64(index))
	} else {
		b = append(packInteger(append(b[:at], 0), 0, 127, uint64(len(name))), name...)
		for i := len(b) - len(name); i < len(b); i++ {
			if b[i] >= 'A' && b[i] <= 'Z' {
				b[i] += 'a' - 'A'
			}
		}
	}
	b = packInteger(b, 0, 127, uint64(len(value)))
	return append(b, value...)
}

// packInteger appends a number whose first bits share a byte (RFC 7541, 5.1): most is what fits there.
func packInteger(b []byte, first, most byte, n uint64) []byte {
	if n < uint64(most) {
		return append(b, first|byte(n))
	}
	b = append(b, first|most)
	for n -= uint64(most); n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

// staticNames are the names of HPACK's table that answers have (RFC 7541, A).
var staticNames = map[string]byte{
	"accept-ranges": 18, "access-control-allow-origin": 20, "age": 21, "allow": 22, "cache-control": 24, "content-disposition": 25,
	"content-encoding": 26, "content-language": 27, "content-length": 28, "content-location": 29, "content-range": 30, "content-type": 31,
	"date": 33, "etag": 34, "expires": 36, "last-modified": 44, "link": 45, "location": 46, "proxy-authenticate": 48, "refresh": 52,
	"retry-after": 53, "server": 54, "set-cookie": 55, "strict-transport-security": 56, "vary": 59, "via": 60, "www-authenticate": 61,
}
