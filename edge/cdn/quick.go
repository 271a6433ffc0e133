package cdn

import (
	"net/http"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/perigee-net/perigee/edge/cache"
	"github.com/perigee-net/perigee/edge/http1"
)

// Quick answers a request with a fresh response that is kept, as ServeHTTP would: the same routing, key, freshness and
// fields, by the same functions, but without allocation, unless the body is on disk. It is an http1.Quick. It answers nothing else, and leaves to ServeHTTP
// what asks for more than the plain whole: conditions, ranges, directives, credentials, hosts in upper case, paths that are
// not written in normal form.
//
// The texts that routing and the cache look at are views of the connection's buffer. They keep none of them: what they
// return is of the table or of the cache.
func (p *Plane) Quick(q *http1.Request, a *http1.Response) bool {
	if !plainHost(q.Host) || !plainPath(q.Path) || !plainQuery(q.Query) || !plainFields(q.Fields) {
		return false
	}
	r := Request{Method: http.MethodGet, Host: text(q.Host), Path: text(q.Path), Query: text(q.Query), TLS: q.TLS, Bytes: q.Bytes}
	if q.Head {
		r.Method = http.MethodHead
	}
	d := p.table.Load().Route(r, nil)
	if d.Status != 0 || !d.cacheable(r.Method) {
		return false
	}
	now := time.Now()
	o, ok := p.cache.Glance(d.target(), d.Behavior.Policy, q.Fields, now, a.Head)
	if !ok || !q.Head && !p.openTo(q, a, o) {
		return false
	}
	a.Status = o.Status
	b := append(a.Head, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(o.Status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(o.Status)...)
	b = append(b, "\r\n"...)
	b = append(b, o.Header...)
	b = append(b, "Age: "...)
	b = strconv.AppendInt(b, int64(o.Age(now)/time.Second), 10)
	b = append(b, "\r\nCache-Status: "...)
	b = hitStatus(o, now, "").Append(b)
	b = append(b, "\r\nX-Perigee-Id: "...)
	b = appendID(b)
	b = append(b, "\r\n"...)
	if o.Status < 400 {
		b = append(b, p.fields.hitLines...)
	} else {
		b = append(b, p.fields.failedLines...)
	}
	a.Head = b
	if !q.Head {
		p.counts.bytes.Add(uint64(o.Size()))
	}
	p.counts.requests.Add(1)
	p.counts.hits.Add(1)
	return true
}

// openTo gives an answer the body of a response.
func (p *Plane) openTo(q *http1.Request, a *http1.Response, o *cache.Object) bool {
	switch {
	case o.OnDisk():
		return fromDisk(o, a)
	case !o.Large():
		a.Body = o.Body
		return true
	}
	var body cache.Body
	var err error
	if q.TLS {
		body, err = o.Open()
	} else {
		body, err = p.cache.OpenFile(o)
	}
	if err != nil {
		return false
	}
	var moved bool
	if a.File, a.Memory, a.Done, moved = body.Pages(); moved {
		a.Length = int64(len(a.Memory))
		return true
	}
	a.Body = body.Heap()
	body.Close()
	return true
}

// fromDisk has a body on disk be sent by its file. It costs a read of what stands with it, and the first time in this process all of
// it, to check it.
func fromDisk(o *cache.Object, a *http1.Response) bool {
	body, err := o.Open()
	if err != nil {
		return false
	}
	if body.Check() == nil {
		if file, offset, ok := body.File(); ok {
			a.File, a.Offset, a.Length, a.Done = file, offset, o.Size(), body.Close
			return true
		}
	}
	body.Close()
	return false
}

// text is bytes as a string, which is good as long as they are not changed. Who is given it must not keep it.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// What texts of a request may be made of for Quick, a set of bytes each.
const (
	lowerDigits = "abcdefghijklmnopqrstuvwxyz0123456789"
	// of a host: what is the same in lower case
	inHost = lowerDigits + ".-_:[]"
	// of a path: what net/url does not escape (RFC 3986: pchar and the slash, without percent)
	inPath = lowerDigits + "ABCDEFGHIJKLMNOPQRSTUVWXYZ-._~!$&'()*+,;=:@/"
)

// allowed is, for each byte, where it may be: hostByte, pathByte.
var allowed = func() (t [256]byte) {
	for _, c := range []byte(inHost) {
		t[c] |= hostByte
	}
	for _, c := range []byte(inPath) {
		t[c] |= pathByte
	}
	return t
}()

const (
	hostByte = 1 << iota
	pathByte
)

func plainHost(host []byte) bool {
	for _, c := range host {
		if allowed[c]&hostByte == 0 {
			return false
		}
	}
	return true
}

// plainPath says whether a path is written in normal form, and as net/url would write it.
func plainPath(path []byte) bool {
	before := byte(0)
	for _, c := range path {
		if allowed[c]&pathByte == 0 || before == '/' && (c == '/' || c == '.') {
			return false
		}
		before = c
	}
	return len(path) > 0 && path[0] == '/'
}

// plainQuery says whether a query has visible ASCII only.
func plainQuery(query []byte) bool {
	for _, c := range query {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

// plainFields says whether no field asks for anything but the whole response as it is kept.
func plainFields(fields []http1.Field) bool {
	for i := range fields {
		name := text(fields[i].Name)
		switch len(name) {
		case len("Range"):
			if strings.EqualFold(name, "Range") {
				return false
			}
		case len("Pragma"):
			if strings.EqualFold(name, "Pragma") || strings.EqualFold(name, "Expect") {
				return false
			}
		case len("Upgrade"):
			if strings.EqualFold(name, "Upgrade") {
				return false
			}
		case len("If-Range"): // and If-Match
			if strings.EqualFold(name[:3], "If-") || strings.EqualFold(name, "Cdn-Loop") {
				return false
			}
		case len("Connection"):
			if value := text(fields[i].Value); strings.EqualFold(name, "Connection") && !strings.EqualFold(value, "keep-alive") && !strings.EqualFold(value, "close") {
				return false // it may name fields that do not count
			}
		case len("Cache-Control"): // and If-None-Match
			if strings.EqualFold(name[:3], "If-") || strings.EqualFold(name, "Cache-Control") || strings.EqualFold(name, "Authorization") {
				return false
			}
		case len("If-Modified-Since"), len("If-Unmodified-Since"):
			if strings.EqualFold(name[:3], "If-") {
				return false
			}
		}
	}
	return true
}

// hitStatus is what Cache-Status says of a hit.
func hitStatus(o *cache.Object, now time.Time, detail string) cache.Status {
	return cache.Status{Hit: true, HasTTL: true, TTL: o.FreshFor(now), Detail: detail}
}
