package cdn

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/edge/cache"
)

// looks is how often a request looks into the cache: again where what it waited for turned out to be another's. After
// that it asks the origin on its own.
const looks = 3

// serveCached answers a GET or HEAD from the cache, filling it where need be.
func (p *Plane) serveCached(w http.ResponseWriter, r *http.Request, d Decision) {
	policy := d.Behavior.Policy
	key := policy.Key(d.target(), r.Header)
	forward, detail := "miss", ""
	for range looks {
		now := time.Now()
		found := p.cache.Find(key, policy, r.Header, now, nil)
		if found.Apart {
			detail = "not-shared"
			break
		}
		if o := found.Object; o != nil {
			switch found.Reuse(now, nil) {
			case cache.Fresh:
				p.hit(w, r, o, now, "")
				return
			case cache.StaleWhileRevalidate:
				p.cache.Refresh(p.want(r, d, key, newID()), found)
				p.hit(w, r, o, now, "stale-while-revalidate")
				return
			case cache.StaleIfError:
				p.hit(w, r, o, now, "stale-if-error")
				return
			}
			forward = "stale"
		}
		id := newID()
		ask, err := p.cache.Ask(r.Context(), p.want(r, d, key, id), found)
		if err == nil {
			err = p.filled(w, r, ask, forward, id)
		}
		switch {
		case err == nil:
			return
		case errors.Is(err, cache.ErrOther):
			continue
		case errors.Is(err, cache.ErrBusy):
			w.Header().Set("Retry-After", "1")
			p.refuse(w, r, http.StatusServiceUnavailable, "too many requests wait for origins", "")
			return
		case !errors.Is(err, cache.ErrAlone):
			status, reason := failure(err)
			p.refuse(w, r, status, reason, "")
			return
		}
		break
	}
	p.pass(w, r, d, cache.Status{Forward: forward, Detail: detail})
}

// want is what a fill for the request is to bring. The origin is asked for the whole with a GET, whatever the viewer
// asked for.
func (p *Plane) want(r *http.Request, d Decision, key cache.Key, id string) cache.Want {
	return cache.Want{Key: key, Policy: d.Behavior.Policy, Header: r.Header, Fetch: p.fetch(r, d, id)}
}

func (p *Plane) fetch(r *http.Request, d Decision, id string) cache.Fetch {
	v := viewerOf(r)
	header := d.Behavior.Forward(v, id, false)
	address := d.address(r)
	return func(ctx context.Context, conditions http.Header) (*http.Response, error) {
		at := *address
		q := &http.Request{Method: http.MethodGet, URL: &at, Host: v.Host, Header: header.Clone()}
		for name, lines := range conditions {
			q.Header[name] = lines
		}
		return p.send(ctx, d, q)
	}
}

// address is what the origin is asked for; send fills in the authority.
func (d Decision) address(r *http.Request) *url.URL {
	u := &url.URL{Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: d.Behavior.Policy.Query(r.URL.RawQuery)}
	if d.Path == d.Distribution.root {
		u.Path, u.RawPath = d.Path, ""
	}
	return u
}

// filled answers with what a fill brings. An error is the fill's, and nothing is answered yet.
func (p *Plane) filled(w http.ResponseWriter, r *http.Request, ask *cache.Ask, forward, id string) error {
	defer ask.Close()
	res, err := ask.Wait()
	switch {
	case r.Context().Err() != nil: // the viewer left
		panic(http.ErrAbortHandler)
	case err != nil:
		return err
	case res.How == cache.Filled && !res.Stored && r.Header.Get("Range") != "":
		return cache.ErrAlone // what is not kept is not worth reading up to a range
	}
	now := time.Now()
	status := cache.Status{
		Forward: forward, Code: res.Status, Stored: res.Stored, Collapsed: res.Collapsed, Detail: res.WhyNot,
		HasTTL: res.Stored, TTL: res.Object.FreshFor(now),
	}
	answer := res.Object.Answer(r.Method, r.Header, res.Size)
	switch res.How {
	case cache.Validated:
		p.counts.refreshes.Add(1)
		p.head(w, res.Object, answer, res.Size, p.fields.refreshHit, status, res.Object.Age(now), id)
		p.write(w, r, res.Object, answer)
	case cache.Covered:
		p.counts.covered.Add(1)
		status.Detail, status.HasTTL = "stale-if-error", true
		p.head(w, res.Object, answer, res.Size, p.fields.hit, status, res.Object.Age(now), id)
		p.write(w, r, res.Object, answer)
	default:
		p.counts.misses.Add(1)
		p.head(w, res.Object, answer, res.Size, p.fields.miss, status, notFromCache, id)
		if r.Method != http.MethodHead && answer.Status != http.StatusNotModified && answer.Length != 0 {
			p.follow(w, ask, answer)
		}
	}
	return nil
}

// hit answers with what is kept.
func (p *Plane) hit(w http.ResponseWriter, r *http.Request, o *cache.Object, now time.Time, detail string) {
	p.counts.hits.Add(1)
	size := int64(len(o.Body))
	answer := o.Answer(r.Method, r.Header, size)
	p.head(w, o, answer, size, p.fields.hit, hitStatus(o, now, detail), o.Age(now), "")
	p.write(w, r, o, answer)
}

// write writes the part of a whole body.
func (p *Plane) write(w http.ResponseWriter, r *http.Request, o *cache.Object, a cache.Answer) {
	if r.Method == http.MethodHead || a.Length <= 0 {
		return
	}
	n, _ := w.Write(o.Body[a.Start : a.Start+a.Length])
	p.counts.bytes.Add(uint64(n))
}

// follow writes a body as it comes. If it ends early, so does the viewer's connection.
func (p *Plane) follow(w http.ResponseWriter, ask *cache.Ask, a cache.Answer) {
	flush := http.NewResponseController(w)
	if a.Start > 0 {
		ask.From(a.Start)
	}
	for left := a.Length; left != 0; {
		piece, err := ask.Next()
		if err == io.EOF && left < 0 {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if left > 0 {
			piece = piece[:min(int64(len(piece)), left)]
			left -= int64(len(piece))
		}
		n, err := w.Write(piece)
		p.counts.bytes.Add(uint64(n))
		if err != nil {
			return // the viewer left
		}
		if left != 0 {
			flush.Flush()
		}
	}
}

// pieceSize is how much of a body that is passed on is read at a time.
const pieceSize = 32 << 10

// pass asks the origin on the request's own behalf and passes on what it answers. Nothing is kept; what is kept of the
// same URI is forgotten if the method is not safe and the origin did not refuse it (RFC 9111 §4.4).
func (p *Plane) pass(w http.ResponseWriter, r *http.Request, d Decision, status cache.Status) {
	p.counts.passes.Add(1)
	id := newID()
	q := &http.Request{
		Method: r.Method, URL: d.address(r), Host: r.Host, Header: d.Behavior.Forward(viewerOf(r), id, true), ContentLength: r.ContentLength,
	}
	if r.ContentLength != 0 {
		q.Body = r.Body
		defer r.Body.Close() // the transport may read on when the origin has answered, but not when we have returned
	}
	response, err := p.send(r.Context(), d, q)
	if err != nil {
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler)
		}
		code, reason := failure(err)
		p.refuse(w, r, code, reason, "")
		return
	}
	defer response.Body.Close()
	if !safe(r.Method) && response.StatusCode < 400 {
		p.forget(r, d)
	}
	status.Code = response.StatusCode
	h := w.Header()
	for name, lines := range response.Header {
		h[name] = lines
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil
	}
	p.say(h, response.StatusCode, p.fields.miss, status, notFromCache, id)
	w.WriteHeader(response.StatusCode)
	p.copy(w, response)
}

// copy passes a body on, at once where its length is not known.
func (p *Plane) copy(w http.ResponseWriter, response *http.Response) {
	flush := http.NewResponseController(w)
	piece := p.pieces.Get().(*[]byte)
	defer p.pieces.Put(piece)
	for {
		n, err := response.Body.Read(*piece)
		if n > 0 {
			n, err := w.Write((*piece)[:n])
			p.counts.bytes.Add(uint64(n))
			if err != nil {
				return // the viewer left
			}
			if response.ContentLength < 0 {
				flush.Flush()
			}
		}
		switch {
		case err == io.EOF:
			return
		case err != nil:
			p.counts.originErrors.Add(1)
			panic(http.ErrAbortHandler)
		}
	}
}

// forget forgets what is kept of a request's URI, by either scheme.
func (p *Plane) forget(r *http.Request, d Decision) {
	t := d.target()
	p.cache.Invalidate(d.Behavior.Policy.Key(t, r.Header))
	if d.Behavior.ViewerProtocol == spec.AllowAll {
		t.Scheme = other(t.Scheme)
		p.cache.Invalidate(d.Behavior.Policy.Key(t, r.Header))
	}
}

func other(scheme string) string {
	if scheme == "http" {
		return "https"
	}
	return "http"
}

// newID is a request id, for X-Perigee-Id.
func newID() string {
	var space [32]byte
	return string(appendID(space[:0]))
}

// idDigits are the digits of ids, five bits each: no i, l, o, u, which are taken for others.
const idDigits = "0123456789abcdefghjkmnpqrstvwxyz"

func appendID(b []byte) []byte {
	for range 2 {
		n := rand.Uint64()
		for range 12 { // 120 bits in all
			b = append(b, idDigits[n&31])
			n >>= 5
		}
	}
	return b
}
