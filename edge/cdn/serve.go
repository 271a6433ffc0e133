package cdn

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/edge/cache"
	"github.com/perigee-net/perigee/edge/http1"
	"github.com/perigee-net/perigee/origin/wire"
)

// looks is how often a request looks into the cache: again where what it waited for turned out to be another's. After
// that it asks the origin on its own.
const looks = 3

// serveCached answers a GET or HEAD from the cache, filling it where need be.
func (p *Plane) serveCached(w http.ResponseWriter, r *http.Request, d Decision) {
	policy := d.Behavior.Policy
	demand := policy.Demand(r.Header)
	key := policy.Key(d.target(), r.Header)
	if demand.NoStore {
		p.past(w, r, d, demand, cache.Status{Forward: cache.ByRequest, Detail: "no-store"})
		return
	}
	var early *interim
	forward, detail := "", ""
	for range looks {
		now := time.Now()
		found := p.cache.Find(key, policy, r.Header, now, nil)
		forward = cache.URIMiss
		if found.Others {
			forward = cache.VaryMiss
		}
		if found.Apart {
			detail = "not-shared"
			break
		}
		if o := found.Object; o != nil {
			reuse, how := p.reuse(d, demand, found, now), ""
			switch reuse {
			case cache.StaleWhileRevalidate:
				if down := &d.Behavior.down; !down.is(now) || down.probe(now) {
					p.cache.Refresh(p.want(r, d, key, newID(), nil, nil), found)
				}
				how = "stale-while-revalidate"
			case cache.StaleIfError:
				if !o.Held(now) && d.Behavior.down.probe(now) {
					p.cache.Refresh(p.want(r, d, key, newID(), nil, nil), found)
				}
				how = "stale-if-error"
			case cache.StaleOnDemand:
				how = "max-stale"
			}
			switch {
			case o.InSlices() && demand.OnlyIfCached: // nobody knows whether all of it is kept
			case reuse != cache.Stale && o.InSlices():
				if p.answered(w, r, cache.Partial, p.hitSlices(w, r, d, key, o, now, how)) {
					return
				}
				continue
			case reuse != cache.Stale:
				if p.hit(w, r, o, now, how) {
					return
				}
				continue
			}
			forward = cache.StaleObject
			if o.FreshFor(now) > 0 && !found.Fenced {
				forward = cache.ByRequest
			}
			if r.Method == http.MethodHead && !o.Validates() && !demand.OnlyIfCached {
				p.passHead(w, r, d, key, found, forward)
				return
			}
		}
		if demand.OnlyIfCached {
			break
		}
		if early == nil { // a hit needs none
			early = interimTo(w, r)
			defer early.over()
		}
		id, ask, err := p.ask(r, d, key, found, early)
		if err == nil {
			err = p.filled(w, r, d, key, ask, early, demand, forward, id)
		}
		if errors.Is(err, cache.ErrAlone) {
			break
		}
		if p.answered(w, r, forward, err) {
			return
		}
	}
	p.past(w, r, d, demand, cache.Status{Forward: forward, Detail: detail})
}

// ask asks for what was not found fresh, or goes on with what Relay has begun for it. Id is what the request is known by.
func (p *Plane) ask(r *http.Request, d Decision, key cache.Key, found cache.Found, early *interim) (id string, ask *cache.Ask, err error) {
	if begun := begunFor(r, d, key); begun != nil {
		if want := p.want(r, d, key, begun.id, early, begun.asking); want.Soon != nil {
			begun.over = true
			return begun.id, begun.lead.Ask(r.Context(), want), nil
		}
		begun.Drop() // there is a peer to ask by now
	}
	id = newID()
	ask, err = p.cache.Ask(r.Context(), p.want(r, d, key, id, early, nil), found)
	return id, ask, err
}

// answered says whether a request is answered, or else to look again: err is how its answer came out, nil if well. Where there is none
// it gets a refusal. Forward is why the origin was to be asked.
func (p *Plane) answered(w http.ResponseWriter, r *http.Request, forward string, err error) bool {
	switch {
	case err == nil:
	case errors.Is(err, cache.ErrOther), errors.Is(err, cache.ErrChanged), errors.Is(err, cache.ErrRanges):
		return false
	case errors.Is(err, cache.ErrBusy):
		w.Header().Set("Retry-After", "1")
		p.refuse(w, r, http.StatusServiceUnavailable, busy, "", "too many requests wait for origins", "")
	default:
		status, why, reason := failure(err)
		p.refuse(w, r, status, why, forward, reason, "")
	}
	return true
}

// reuse says what may be done with a kept response. Where its origin is known to be down, a stale one that may stand in for it
// does so at once.
func (p *Plane) reuse(d Decision, demand cache.Demand, found cache.Found, now time.Time) cache.Reuse {
	reuse := demand.Reuse(found, now, nil)
	if reuse == cache.Stale && !demand.NoCache && !found.Fenced && found.Object.Revives(now) && d.Behavior.down.is(now) {
		return cache.StaleIfError
	}
	return reuse
}

// past asks the origin on the request's own behalf, unless the viewer wants it left alone.
func (p *Plane) past(w http.ResponseWriter, r *http.Request, d Decision, demand cache.Demand, s cache.Status) {
	if demand.OnlyIfCached {
		p.refuse(w, r, http.StatusGatewayTimeout, onlyIfCached, "", "nothing is kept that would do, and only that was wanted", "")
		return
	}
	p.pass(w, r, d, s)
}

// want is what a fill for the request is to bring. The origin is asked with a GET for the whole, or for what is far within (cache.Want), whatever
// the viewer asked for. Its interim responses go to early; nil: to nobody. Asking is what was begun; nil: nothing.
func (p *Plane) want(r *http.Request, d Decision, key cache.Key, id string, early *interim, asking *wire.Asking) cache.Want {
	e := p.errandOf(r, d, key, d.Behavior.Forward(viewerOf(r), id, false), byViewers)
	e.early, e.asking = early, asking
	w := p.wanted(&e, r.Header)
	if r.Method == http.MethodGet {
		w.Range = r.Header.Get("Range")
	}
	return w
}

// fetching asks the peers, or else the origin.
func (p *Plane) fetching(e *errand) cache.Fetch {
	return func(ctx context.Context, conditions http.Header) (*http.Response, error) {
		if len(e.hops) > 0 {
			if response, err := p.askPeers(ctx, *e, conditions); response != nil || err != nil {
				return response, err
			}
		}
		return p.send(ctx, e.Decision, e.request(conditions), e.early)
	}
}

// request is what the origin is asked.
func (e *errand) request(conditions http.Header) *http.Request {
	q := &http.Request{Method: http.MethodGet, URL: e.address(e.path), Host: e.host, Header: e.header}
	if len(conditions) > 0 { // the origin may be asked once more, without
		q.Header = e.header.Clone()
		maps.Copy(q.Header, conditions)
	}
	return q
}

// fetchingHere is fetching for a want whose first asker may ask the origin itself, if there is no peer to ask and the origin is spoken to
// by package wire: then the want has a Soon, too.
func (p *Plane) fetchingHere(e *errand, w *cache.Want) {
	fetch := p.fetching(e)
	w.Fetch = fetch
	if len(e.hops) > 0 || e.Behavior.upstream.authority == "" {
		return
	}
	var q *http.Request
	var call *wire.Call // that Soon has left to Fetch
	w.Soon = func(conditions http.Header) (response *http.Response, err error) {
		q = e.request(conditions)
		e.addressed(q)
		switch {
		case e.asking != nil:
			call = e.asking.Call(q, e.early.watcher())
			e.asking = nil
		case !wire.Speaks(q):
			return nil, cache.ErrLater
		default:
			call, err = e.Behavior.upstream.transport().Call(q, e.early.watcher())
		}
		if err == nil {
			response, err = call.Soon()
		}
		if err == wire.ErrLater {
			return nil, cache.ErrLater
		}
		call = nil
		return p.answeredBy(context.Background(), e.Decision, q, response, err)
	}
	w.Fetch = func(ctx context.Context, conditions http.Header) (*http.Response, error) {
		if c := call; c != nil {
			call = nil
			response, err := c.Wait(ctx)
			return p.answeredBy(ctx, e.Decision, q, response, err)
		}
		return fetch(ctx, conditions)
	}
}

// address is what the origin is asked for; send fills in the authority.
func (d Decision) address(viewer *url.URL) *url.URL {
	u := &url.URL{Path: viewer.Path, RawPath: viewer.RawPath, RawQuery: d.Behavior.Policy.Query(viewer.RawQuery)}
	if d.Path == d.Distribution.root {
		u.Path, u.RawPath = d.Path, ""
	}
	return u
}

// filled answers with what a fill brings. An error is the fill's, and nothing is answered yet.
func (p *Plane) filled(w http.ResponseWriter, r *http.Request, d Decision, key cache.Key, ask *cache.Ask, early *interim, demand cache.Demand, forward, id string) error {
	defer ask.Close()
	res, err := ask.Wait()
	early.over()
	switch {
	case r.Context().Err() != nil: // the viewer left
		panic(http.ErrAbortHandler)
	case err != nil:
		return err
	case res.How == cache.Filled && !res.Stored && !res.Shared && r.Header.Get("Range") != "":
		return cache.ErrAlone // what is not kept is not worth reading up to a range
	case res.How == cache.Covered && demand.NoCache:
		return errUnproven
	}
	now := time.Now()
	status := cache.Status{
		Forward: forward, Code: res.Status, Stored: res.Stored, Collapsed: res.Collapsed, Detail: res.WhyNot,
		HasTTL: res.Stored, TTL: res.Object.FreshFor(now),
	}
	if res.Object.InSlices() {
		return p.filledSlices(w, r, d, key, res, status, now, id)
	}
	answer := res.Object.Answer(r.Method, r.Header, res.Size)
	var body cache.Body
	if res.How != cache.Filled {
		if body, err = open(res.Object, r.Method, answer); err != nil {
			return cache.ErrOther
		}
		defer body.Close()
	}
	maps.Copy(w.Header(), res.Own)
	switch res.How {
	case cache.Validated:
		p.counts.refreshes.Add(1)
		parts := p.head(w, res.Object, answer, res.Size, p.fields.refreshHit, status, res.Object.Age(now), id)
		p.write(w, r, &body, answer, parts)
	case cache.Covered:
		p.counts.covered.Add(1)
		status.Detail, status.HasTTL = "stale-if-error", true
		parts := p.head(w, res.Object, answer, res.Size, p.fields.hit, status, res.Object.Age(now), id)
		p.write(w, r, &body, answer, parts)
	default:
		parts := p.head(w, res.Object, answer, res.Size, p.filledFrom(res.Object), status, notFromCache, id)
		switch {
		case r.Method == http.MethodHead || answer.Status == http.StatusNotModified:
		case parts != nil:
			p.followParts(w, ask, parts)
		case answer.Length != 0:
			p.follow(w, ask, answer.Start, answer.Length)
		}
	}
	return nil
}

// hit answers with what is kept. Not ok: its body is lost, so nothing is answered and nothing is kept any more.
func (p *Plane) hit(w http.ResponseWriter, r *http.Request, o *cache.Object, now time.Time, detail string) (ok bool) {
	size := o.Size()
	answer := o.Answer(r.Method, r.Header, size)
	body, err := open(o, r.Method, answer)
	if err != nil {
		return false
	}
	defer body.Close()
	body.For(r.RemoteAddr)
	p.counts.hits.Add(1)
	parts := p.head(w, o, answer, size, p.fields.hit, hitStatus(o, now, detail), o.Age(now), "")
	p.write(w, r, &body, answer, parts)
	return true
}

// open opens the body of a kept response if the answer needs it, and makes sure that all of it is there.
func open(o *cache.Object, method string, a cache.Answer) (body cache.Body, err error) {
	if method == http.MethodHead || a.Length == 0 && a.Parts == nil {
		return body, nil
	}
	if body, err = o.Open(); err == nil {
		if err = body.Check(); err != nil {
			body.Close()
		}
	}
	return body, err
}

// write writes the part, or parts, of a whole body.
func (p *Plane) write(w http.ResponseWriter, r *http.Request, body *cache.Body, a cache.Answer, parts *byteranges) {
	switch {
	case r.Method == http.MethodHead:
	case parts != nil:
		for i, part := range parts.parts {
			if !p.put(w, []byte(parts.heads[i])) || !p.writePart(w, body, part.Start, part.Length) {
				return
			}
		}
		p.put(w, []byte(parts.end))
	case a.Length > 0:
		p.writePart(w, body, a.Start, a.Length)
	}
}

// writePart writes a part of a body. If that cannot be read any more, the viewer's connection ends. It says whether the viewer is there
// still.
func (p *Plane) writePart(w http.ResponseWriter, body *cache.Body, start, left int64) bool {
	var block *[cache.BodyPiece]byte
	space := func() []byte {
		if block == nil {
			block = p.blocks.Get().(*[cache.BodyPiece]byte)
		}
		return block[:]
	}
	defer func() {
		if block != nil {
			p.blocks.Put(block)
		}
	}()
	for left > 0 {
		piece, err := body.Piece(start, left, space)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if !p.put(w, piece) {
			return false
		}
		start, left = start+int64(len(piece)), left-int64(len(piece))
	}
	return true
}

// followParts writes parts of a body as they come.
func (p *Plane) followParts(w http.ResponseWriter, ask *cache.Ask, parts *byteranges) {
	for i, part := range parts.parts {
		if !p.put(w, []byte(parts.heads[i])) || !p.follow(w, ask, part.Start, part.Length) {
			return
		}
	}
	p.put(w, []byte(parts.end))
}

// follow writes a part of a body as it comes; a length of −1 is to the end. If it ends early, so does the viewer's
// connection. It says whether the viewer is there still.
func (p *Plane) follow(w http.ResponseWriter, ask *cache.Ask, start, left int64) bool {
	flush := http.NewResponseController(w)
	if start > 0 {
		ask.From(start)
	}
	for left != 0 {
		piece, err := ask.Next()
		if err == io.EOF && left < 0 {
			return true
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if left > 0 {
			piece = piece[:min(int64(len(piece)), left)]
			left -= int64(len(piece))
		}
		if !p.put(w, piece) {
			return false
		}
		if left != 0 {
			flush.Flush()
		}
	}
	return true
}

// put writes a piece of a body, and says whether the viewer is there still.
func (p *Plane) put(w http.ResponseWriter, piece []byte) bool {
	n, err := w.Write(piece)
	p.counts.bytes.Add(uint64(n))
	return err == nil
}

// pieceSize is how much of a body that is passed on is read at a time.
const pieceSize = 32 << 10

// pass asks the origin on the request's own behalf and passes on what it answers. Nothing is kept; what is kept of the
// same URI is forgotten if the method is not safe and the origin did not refuse it (RFC 9111 §4.4).
func (p *Plane) pass(w http.ResponseWriter, r *http.Request, d Decision, status cache.Status) {
	p.passNoting(w, r, d, status, func(*http.Response, time.Time) {})
}

// passHead passes a HEAD for what is kept, stale, and cannot be validated: to ask for the whole only to send its header would
// be a waste. What the header says of what is kept is noted.
func (p *Plane) passHead(w http.ResponseWriter, r *http.Request, d Decision, key cache.Key, found cache.Found, forward string) {
	want := cache.Want{Key: key, Policy: d.Behavior.Policy, Header: r.Header}
	p.passNoting(w, r, d, cache.Status{Forward: forward, Detail: "head"}, func(response *http.Response, requested time.Time) {
		if response.StatusCode == http.StatusOK {
			p.cache.Headed(want, found, response.Header, requested)
		}
	})
}

func (p *Plane) passNoting(w http.ResponseWriter, r *http.Request, d Decision, status cache.Status, note func(*http.Response, time.Time)) {
	p.counts.passes.Add(1)
	begun := begunPast(r, d)
	id := ""
	if begun != nil {
		id = begun.id
	} else {
		id = newID()
	}
	q := &http.Request{
		Method: r.Method, URL: d.address(r.URL), Host: r.Host, Header: d.Behavior.Forward(viewerOf(r), id, true), ContentLength: r.ContentLength,
		Close: http1.IsAlone(r.Context()),
	}
	if r.ContentLength != 0 {
		q.Body = r.Body
		defer r.Body.Close() // the transport may read on when the origin has answered, but not when we have returned
	}
	early := interimTo(w, r)
	defer early.over()
	requested := time.Now()
	var response *http.Response
	var err error
	if begun != nil {
		begun.over = true
		response, err = p.goOn(r.Context(), d, q, begun.asking, early)
	} else {
		response, err = p.send(r.Context(), d, q, early)
	}
	early.over()
	if err != nil {
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler)
		}
		code, why, reason := failure(err)
		p.refuse(w, r, code, why, status.Forward, reason, "")
		return
	}
	defer response.Body.Close()
	note(response, requested)
	if !safe(r.Method) && response.StatusCode < 400 {
		p.forget(r, d)
		p.forgetNamed(r, d, response.Header)
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
	forget := func() {
		key := d.Behavior.Policy.Key(t, r.Header)
		p.forgetAtPeers(p.errandOf(r, d, key, nil, byViewers))
		p.cache.Invalidate(key)
	}
	forget()
	if d.Behavior.ViewerProtocol == spec.AllowAll {
		t.Scheme, d.Request.TLS = other(t.Scheme), !d.Request.TLS
		forget()
	}
}

// forgetNamed forgets what is kept of the URIs that the answer to a method that is not safe names, if they are of the same
// origin (RFC 9111 §4.4): another's is not its to touch. The origin may call itself as the viewer does or as it was called.
func (p *Plane) forgetNamed(r *http.Request, d Decision, h http.Header) {
	for _, name := range []string{"Location", "Content-Location"} {
		at, err := r.URL.Parse(h.Get(name))
		if h.Get(name) == "" || err != nil {
			continue
		}
		if at.Host != "" && !strings.EqualFold(at.Host, r.Host) && !strings.EqualFold(at.Host, d.Behavior.host(r.Host)) {
			continue
		}
		named := d.table.Route(Request{
			Method: http.MethodGet, Host: r.Host, Path: cmp.Or(at.EscapedPath(), "/"), Query: at.RawQuery, TLS: r.TLS != nil,
		}, nil)
		if named.Behavior != nil {
			p.forget(r, named)
		}
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
	var space [idBytes]byte
	return string(appendID(space[:0]))
}

// idDigits are the digits of ids, five bits each: no i, l, o, u, which are taken for others.
const idDigits = "0123456789abcdefghjkmnpqrstvwxyz"

// idBytes is how long an id is.
const idBytes = 24

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
