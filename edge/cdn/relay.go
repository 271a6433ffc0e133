package cdn

import (
	"bytes"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/perigee-net/perigee/edge/cache"
	"github.com/perigee-net/perigee/edge/http1"
	"github.com/perigee-net/perigee/origin/wire"
)

// Relay is an http1.Relay for what Quick has not answered: a plain request for what is not kept goes to an origin that is a URL, and a plain
// response to the viewer, as bytes, with the routing, key, fields and counters of ServeHTTP; what of it is kept the same functions of the cache
// say and keep. All else is ServeHTTP's, which goes on with what was begun. Others who ask for the same meanwhile find its fill.
//
// It knows no peers. Texts that routing and the cache look at are views, as in Quick.
func (p *Plane) Relay(q *http1.Request, a *http1.Response, room func() []byte) (bool, http1.Begun) {
	if !http1.PlainHost(q.Host) || !http1.PlainPath(q.Path) || !http1.PlainQuery(q.Query) || !q.Remote.IsValid() || !plainFields(q.Fields) || !firstHop(q.Fields) {
		return false, nil
	}
	r := Request{Method: http.MethodGet, Host: http1.Text(q.Host), Path: http1.Text(q.Path), Query: http1.Text(q.Query), TLS: q.TLS, Bytes: q.Bytes}
	if q.Head {
		r.Method = http.MethodHead
	}
	d := p.table.Load().Route(r, nil)
	if d.Status != 0 || d.Path != r.Path || d.Behavior.upstream.address == "" {
		return false, nil
	}
	policy := d.Behavior.Policy
	viewer, ok := policy.Fields(q.Fields)
	if !ok {
		return false, nil
	}
	host := d.Behavior.host(r.Host)
	if !http1.IsHost(host) {
		return false, nil
	}
	if policy.Disabled() {
		return p.relayPast(q, a, room, d, viewer, host)
	}
	key := policy.Key(d.target(), viewer)
	if len(p.allHops(d, key, byViewers, nil)) > 0 {
		return false, nil
	}
	lead := p.cache.Lead(key, policy, viewer, ofOrigin, q.Now, &d.Behavior.upstream.filling.Origin)
	if lead == nil {
		return false, nil
	}
	var asking *wire.Asking
	over := false
	defer func() {
		if over {
			return
		}
		if asking != nil { // a panic, which ends this request, and nobody else's
			asking.Drop()
		}
		if lead != nil {
			lead.Drop()
		}
	}()
	var space [idBytes]byte
	id := appendID(space[:0])
	asking = d.Behavior.upstream.transport().Asking(false, q.Now)
	asking.Head = d.appendForward(asking.Head, http.MethodGet, q, viewer, host, id)
	if asking.Soon(d.Behavior.upstream.address) {
		reply := &asking.Reply
		head := []byte(nil)
		if why, alone := policy.Unshared(reply); alone && policy.Bare() && !lead.Others && returnable(reply) && lead.Alone() {
			lead = nil
			d.Behavior.down.answered()
			head = p.appendReturned(room(), reply, why, id)
		} else if response := taken(asking, policy); response != nil {
			d.Behavior.down.note(response, nil, q.Now)
			result, err := lead.Take(response)
			if err != nil {
				return false, nil // from the beginning
			}
			head = p.appendFilled(room(), result, len(asking.Body), lead.Others, id)
			lead.Close()
			lead = nil
		}
		if head != nil {
			p.counts.requests.Add(1)
			p.counts.misses.Add(1)
			if !q.Head {
				p.counts.bytes.Add(uint64(len(asking.Body)))
			}
			a.Status, a.Head, a.Body, a.Done = reply.Code, head, asking.Body, asking.End
			over = true
			return true, nil
		}
	}
	over = true
	return false, &begun{behavior: d.Behavior, lead: lead, asking: asking, id: string(id)}
}

// relayPast is Relay where the policy keeps nothing: what pass does.
func (p *Plane) relayPast(q *http1.Request, a *http1.Response, room func() []byte, d Decision, viewer http.Header, host string) (bool, http1.Begun) {
	asking, over := d.Behavior.upstream.transport().Asking(q.Head, q.Now), false
	defer func() {
		if !over { // a panic
			asking.Drop()
		}
	}()
	id := newID()
	asking.Head = d.appendForward(asking.Head, d.Request.Method, q, viewer, host, []byte(id))
	if asking.Soon(d.Behavior.upstream.address) {
		if response := taken(asking, d.Behavior.Policy); response != nil {
			d.Behavior.down.note(response, nil, q.Now)
			p.counts.requests.Add(1)
			p.counts.passes.Add(1)
			p.counts.bytes.Add(uint64(len(asking.Body)))
			h := response.Header
			p.say(h, response.StatusCode, p.fields.miss, cache.Status{Forward: cache.ByPolicy, Code: response.StatusCode}, notFromCache, id)
			b := http1.AppendStatus(room(), response.StatusCode)
			for name, lines := range h {
				b = appendLines(b, name, lines)
			}
			if h["Date"] == nil {
				b = http1.AppendDate(b, time.Now())
			}
			a.Status, a.Head, a.Body, a.Done = response.StatusCode, append(b, "\r\n"...), asking.Body, asking.End
			over = true
			return true, nil
		}
	}
	over = true
	return false, &begun{behavior: d.Behavior, asking: asking, id: id}
}

// appendLines appends the lines of a field.
func appendLines(b []byte, name string, lines []string) []byte {
	for _, line := range lines {
		b = append(append(append(append(b, name...), ": "...), line...), "\r\n"...)
	}
	return b
}

// whole is a body that has come with its head.
type whole struct{ bytes.Reader }

// Here says that to read it waits for nothing.
func (*whole) Here() bool { return true }

// Close implements io.Closer.
func (*whole) Close() error { return nil }

// taken is a plain response as Fetch returns it; nil: it is not what was asked for, or not what the head says to all who read it.
func taken(asking *wire.Asking, policy *cache.Policy) *http.Response {
	if asking.Reply.Code == http.StatusPartialContent {
		return nil
	}
	h, err := asking.Header()
	if err != nil {
		return nil
	}
	returned(h, policy)
	body := &whole{}
	body.Reset(asking.Body)
	return &http.Response{StatusCode: asking.Reply.Code, Header: h, Body: body, ContentLength: asking.Reply.Length}
}

// begun is what Relay has begun for a request.
type begun struct {
	behavior *Behavior
	lead     *cache.Lead // nil: it is past the cache
	asking   *wire.Asking
	id       string
	over     bool // somebody goes on with it, or nobody will
}

// Drop implements http1.Begun.
func (b *begun) Drop() {
	if !b.over {
		b.over = true
		b.asking.Drop()
		if b.lead != nil {
			b.lead.Drop()
		}
	}
}

// begunFor is what was begun for a request that is to fill the cache, if it is to be gone on with; nil: there is nothing.
func begunFor(r *http.Request, d Decision, key cache.Key) *begun {
	return begunIf(r, func(b *begun) bool { return b.behavior == d.Behavior && b.lead != nil && b.lead.Key == key })
}

// begunPast is begunFor for one that is past the cache.
func begunPast(r *http.Request, d Decision) *begun {
	return begunIf(r, func(b *begun) bool { return b.behavior == d.Behavior && b.lead == nil })
}

// begunIf is what was begun if it is still what is wanted: the spec may have changed.
func begunIf(r *http.Request, still func(*begun) bool) *begun {
	b, _ := http1.BegunFor(r.Context()).(*begun)
	if b == nil || b.over {
		return nil
	}
	if !still(b) {
		b.Drop()
		return nil
	}
	return b
}

// ofOrigin is the rank of who asks the origin.
func ofOrigin() int { return 2 }

// firstHop says whether no field tells of what was between the viewer and this node, so that none is to be continued.
func firstHop(fields []http1.Field) bool {
	for i := range fields {
		switch name := fields[i].Name; len(name) {
		case len("Via"):
			if http1.Is(name, "via") {
				return false
			}
		case len("Early-Data"):
			if http1.Is(name, "early-data") {
				return false
			}
		case len("X-Forwarded-For"):
			if http1.Is(name, "x-forwarded-for") {
				return false
			}
		}
	}
	return true
}

// appendForward appends the head of the request that the origin is sent for a plain one of the first hop: with the fields of Forward.
// Viewer are those that the policy looks at.
func (d *Decision) appendForward(b []byte, method string, q *http1.Request, viewer http.Header, host string, id []byte) []byte {
	b = append(append(append(b, method...), ' '), d.Path...)
	if query := d.Behavior.Policy.Query(d.Request.Query); query != "" {
		b = append(append(b, '?'), query...)
	}
	b = append(append(b, " HTTP/1.1\r\nHost: "...), host...)
	if !d.Behavior.Policy.Bare() {
		from := Viewer{Method: http.MethodGet, Host: d.Request.Host, Header: viewer, Address: q.Remote.Addr().Unmap().String(), TLS: q.TLS, Protocol: "1.1"}
		b = append(b, "\r\n"...)
		for name, lines := range d.Behavior.Forward(from, string(id), false) {
			if name != "User-Agent" || lines[0] != "" { // as net/http: that leaves it out
				b = appendLines(b, name, lines)
			}
		}
		return append(b, "\r\n"...)
	}
	b = append(b, "\r\nUser-Agent: Perigee\r\n"...)
	if codings := cache.AcceptEncodingOf(q.Fields); codings != "" {
		b = append(append(append(b, "Accept-Encoding: "...), codings...), "\r\n"...)
	}
	b = q.Remote.Addr().Unmap().AppendTo(append(b, "X-Forwarded-For: "...))
	scheme, port := d.Behavior.forwarded(q.TLS, d.Request.Host)
	b = append(append(b, "\r\nX-Forwarded-Proto: "...), scheme...)
	b = append(append(b, "\r\nX-Forwarded-Port: "...), port...)
	b = append(b, "\r\nVia: 1.1 perigee\r\nCdn-Loop: perigee\r\nX-Perigee-Id: "...)
	return append(append(b, id...), "\r\n\r\n"...)
}

// forwarded is what the origin is told of how the viewer came.
func (b *Behavior) forwarded(secure bool, host string) (scheme, port string) {
	scheme, port = "http", "80"
	if secure {
		scheme, port = "https", "443"
	}
	if b.sendsHost() {
		if _, p, err := net.SplitHostPort(host); err == nil {
			port = p
		}
	}
	return scheme, port
}

// returnable says whether a plain response has no field to which something is added.
func returnable(r *http1.PlainReply) bool {
	for i := range r.Fields {
		if name := r.Fields[i].Name; len(name) == len("Via") && http1.Is(name, "via") {
			return false
		}
	}
	return true
}

// appendReturned appends the head of an answer that is a plain response for one viewer alone, and why: with the fields that head and say
// give it.
func (p *Plane) appendReturned(b []byte, r *http1.PlainReply, why string, id []byte) []byte {
	b = http1.AppendStatus(b, r.Code)
	dated := false
	for _, f := range r.Fields {
		switch len(f.Name) {
		case len("date"):
			dated = dated || http1.Is(f.Name, "date")
		case len("alt-svc"), len("set-cookie"), len("x-perigee-id"), len("accept-ranges"): // and X-Cache, X-Perigee-Pop
			switch {
			case http1.Is(f.Name, "alt-svc"), http1.Is(f.Name, "x-cache"), http1.Is(f.Name, "set-cookie"), http1.Is(f.Name, "x-perigee-id"),
				http1.Is(f.Name, "x-perigee-pop"), r.Code == http.StatusOK && http1.Is(f.Name, "accept-ranges"):
				continue
			}
		}
		b = http1.AppendField(b, f)
	}
	if !dated {
		b = http1.AppendDate(b, time.Now())
	}
	if r.Code == http.StatusOK {
		b = append(b, "Accept-Ranges: bytes\r\n"...)
	}
	b = strconv.AppendInt(append(b, "Content-Length: "...), r.Length, 10)
	b = cache.Status{Forward: cache.URIMiss, Code: r.Code, Detail: why}.Append(append(b, "\r\nVia: 1.1 perigee\r\nCache-Status: "...))
	b = append(append(b, "\r\nX-Perigee-Id: "...), id...)
	return append(append(b, "\r\n"...), p.fields.missLines...)
}

// appendFilled appends the head of an answer that is what a fill has brought, as a whole of that size: with the fields that head and say give
// it. Others says that other responses of the URI are kept.
func (p *Plane) appendFilled(b []byte, r cache.Result, size int, others bool, id []byte) []byte {
	o := r.Object
	b = http1.AppendStatus(b, o.Status)
	ours := func(name string) bool { return name == "X-Cache" || name == "X-Perigee-Id" || name == "X-Perigee-Pop" }
	for name, lines := range r.Own {
		if !ours(name) {
			b = appendLines(b, name, lines)
		}
	}
	for name, value := range o.Header.All() {
		if !ours(name) {
			b = append(append(append(append(b, name...), ": "...), value...), "\r\n"...)
		}
	}
	s := cache.Status{Forward: cache.URIMiss, Code: r.Status, Stored: r.Stored, Detail: r.WhyNot, HasTTL: r.Stored}
	if s.HasTTL {
		s.TTL = o.FreshFor(time.Now())
	}
	if others {
		s.Forward = cache.VaryMiss
	}
	b = strconv.AppendInt(append(b, "Content-Length: "...), int64(size), 10)
	b = s.Append(append(b, "\r\nCache-Status: "...))
	b = append(append(append(b, "\r\nX-Perigee-Id: "...), id...), "\r\n"...)
	if o.Status >= 400 {
		return append(b, p.fields.failedLines...)
	}
	return append(b, p.fields.missLines...)
}
