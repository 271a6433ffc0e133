package cache

import (
	"context"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

// Lead is a fill that its first asker runs for a request as bytes, before there is a Want. Others may join it meanwhile, as any. It ends by
// Alone, where what came is that request's alone, or is gone on with by Ask, or ends by Drop.
type Lead struct {
	// Key is what is asked for, and Others says that responses of its URI are kept which other requests have selected.
	Key    Key
	Others bool

	fill fill
	ask  Ask
}

var leads = sync.Pool{New: func() any { return new(Lead) }}

// Lead begins the fill of what is not kept and that nobody fills, for a request of which Fields made the header. Nil: it is kept, of another
// rank of policy, being filled, others of its URI have to be offered to the origin, or there are too many fills; then the request is served as any
// other. Rank and origin are as in Want, and requested is when the origin is asked. It may wait for the disk.
func (c *Cache) Lead(key Key, p *Policy, header http.Header, rank func() int, requested time.Time, origin *Origin) *Lead {
	if c.shelf != nil {
		if c.Find(key, p, header, requested, nil).kept() {
			return nil
		}
	}
	if c.askers.Add(1) > maxAskers {
		c.askers.Add(-1)
		return nil
	}
	l := leads.Get().(*Lead)
	c.mu.Lock()
	defer c.mu.Unlock()
	w := Want{Key: key, Policy: p, Header: header, Rank: rank, Origin: origin}
	if found := c.find(key, p, header, requested, nil, false); !found.kept() && c.fills[found.slot] == nil && (!found.Others || len(c.offered(w)) == 0) {
		l.Key, l.Others = key, found.Others
		if c.launch(&l.fill, w, found, &l.ask) {
			l.fill.requested = requested
			return l
		}
	}
	c.askers.Add(-1)
	leads.Put(l)
	return nil
}

// kept says whether anything is kept that is about the request.
func (f Found) kept() bool { return f.Object != nil || f.Apart }

// Take ends it with a response that has come as a whole, as if a Want had fetched it, and says what came of it; then it is to be closed. The
// error is as Ask.Wait's.
func (l *Lead) Take(response *http.Response) (Result, error) {
	l.fill.heard(response, nil, nil)
	l.fill.over()
	return l.ask.Wait()
}

// Close ends the use of what Take said.
func (l *Lead) Close() {
	f := &l.fill
	l.ask.Close()
	f.mu.Lock()
	joined := f.joined
	f.mu.Unlock()
	if !joined {
		*l = Lead{fill: fill{asks: f.asks}}
		leads.Put(l)
	}
}

// Alone ends a fill that brought what may not be shared, and of which nothing is to be kept. Not done: others wait for it, so they are to
// be told, by way of Ask.
func (l *Lead) Alone() (done bool) {
	f := &l.fill
	c := f.cache
	c.mu.Lock()
	f.mu.Lock()
	if done = len(f.asks) == 1; done {
		c.remove(f)
		c.ends(f)
	}
	f.mu.Unlock()
	c.mu.Unlock()
	if done {
		c.running.Done()
		c.askers.Add(-1)
		if !f.joined {
			clear(f.asks)
			*l = Lead{fill: fill{asks: f.asks}}
			leads.Put(l)
		}
	}
	return done
}

// Ask goes on with it for the same request, whose Want is now known, as Cache.Ask does. Soon is called once more, for what was begun.
func (l *Lead) Ask(ctx context.Context, w Want) *Ask {
	f := &l.fill
	f.cache.mu.Lock()
	defer f.cache.mu.Unlock()
	f.want = w
	l.ask.ctx, l.ask.header, l.ask.here = ctx, w.Header, true
	return &l.ask
}

// Drop ends it without an outcome: who waits for it looks again.
func (l *Lead) Drop() {
	l.fill.leave(nil)
	l.fill.fail(ErrOther)
	l.fill.over()
	l.ask.Close()
}

// Fields is what of a request's fields the policy looks at, as a header of net/http's. Not ok: some are not what net/http would have.
func (p *Policy) Fields(fields []http1.Field) (h http.Header, ok bool) {
	if !p.simple {
		return nil, false
	}
	if len(p.headers) == 0 && !p.KeysCookies() {
		return justCodings[AcceptEncodingOf(fields)], true
	}
	h = make(http.Header, 8)
	for i := range fields {
		name := textproto.CanonicalMIMEHeaderKey(http1.Text(fields[i].Name))
		if name == "Accept-Encoding" || name == "Cookie" && p.KeysCookies() || slices.Contains(p.headers, name) {
			h[strings.Clone(name)] = append(h[name], string(fields[i].Value))
		}
	}
	return h, true
}

// justCodings are the headers of requests of which nothing but the codings counts that they accept. They are shared and never changed.
var justCodings = map[string]http.Header{
	"br,gzip": {"Accept-Encoding": {"br,gzip"}}, "br": {"Accept-Encoding": {"br"}}, "gzip": {"Accept-Encoding": {"gzip"}},
}

// Bare says that the policy keys nothing of a request but its URI.
func (p *Policy) Bare() bool { return p.plain && len(p.headers) == 0 }

// Unshared says whether Storable says of a plain response that it is one request's alone, and why, where that follows from its status and
// its Cache-Control, read in place. It may say no where Storable says yes.
func (p *Policy) Unshared(r *http1.PlainReply) (why string, is bool) {
	if kept(r.Code) != byPolicy || p.MinTTL > 0 {
		return "", false
	}
	var cc Control
	for i := range r.Fields {
		switch f := &r.Fields[i]; len(f.Name) {
		case len("Cache-Control"):
			if !http1.Is(f.Name, "cache-control") {
				continue
			}
			for line := http1.Text(f.Value); line != ""; {
				var name, arg string
				name, arg, line = directive(line)
				if arg != "" && (strings.EqualFold(name, "private") || strings.EqualFold(name, "no-cache")) {
					return "", false // names fields
				}
				cc.take(strings.ToLower(name), arg)
			}
		case len("CDN-Cache-Control"):
			if http1.Is(f.Name, "cdn-cache-control") {
				return "", false
			}
		}
	}
	switch {
	case cc.MustUnderstand:
		return "", false
	case cc.NoStore:
		return "no-store", true
	case cc.Private:
		return "private", true
	}
	return "", false
}

// AcceptEncodingOf is AcceptEncoding of a request's fields as bytes.
func AcceptEncodingOf(fields []http1.Field) string {
	var c codings
	for i := range fields {
		if len(fields[i].Name) == len("Accept-Encoding") && http1.Is(fields[i].Name, "accept-encoding") {
			c.read(http1.Text(fields[i].Value))
		}
	}
	return c.String()
}
