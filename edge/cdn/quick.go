package cdn

import (
	"net/http"
	"strconv"
	"strings"
	"time"

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
	if !http1.PlainHost(q.Host) || !http1.PlainPath(q.Path) || !http1.PlainQuery(q.Query) || !plainFields(q.Fields) {
		return false
	}
	r := Request{Method: http.MethodGet, Host: http1.Text(q.Host), Path: http1.Text(q.Path), Query: http1.Text(q.Query), TLS: q.TLS, Bytes: q.Bytes}
	if q.Head {
		r.Method = http.MethodHead
	}
	d := p.table.Load().Route(r, nil)
	if d.Status != 0 || !d.cacheable(r.Method) {
		return false
	}
	now := q.Now
	o, ok := p.cache.Glance(d.target(), d.Behavior.Policy, q.Fields, now, a.Head)
	if !ok || !q.Head && !p.openTo(q, a, o) {
		return false
	}
	a.Status = o.Status
	b := http1.AppendStatus(a.Head, o.Status)
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
	a.File, a.Offset, a.Done, _ = body.Pages()
	a.Length, a.Lent = o.Size(), body.Lent()
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

// plainFields says whether no field asks for anything but the whole response as it is kept.
func plainFields(fields []http1.Field) bool {
	for i := range fields {
		name := http1.Text(fields[i].Name)
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
			if value := http1.Text(fields[i].Value); strings.EqualFold(name, "Connection") && !strings.EqualFold(value, "keep-alive") && !strings.EqualFold(value, "close") {
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
