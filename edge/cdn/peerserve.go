package cdn

import (
	"cmp"
	"errors"
	"io"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/perigee-net/perigee/edge/cache"
)

// Peers answers the peers that ask this node for responses, as the resource says: as the owner of a key in the POP, or in the
// region of the origin's shield. Who they are the backbone has made sure of; not ok: there is no such resource.
//
// It answers as it would a viewer, from the cache or by the one fill of the key, but with the whole, and never by way of another
// node of the same tier: requests come to an end whatever each node believes to own.
func (p *Plane) Peers(resource string) (h http.Handler, ok bool) {
	at := tier(resource)
	if at != inPOP && at != inShield {
		return nil, false
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.servePeer(w, r, at) }), true
}

func (p *Plane) servePeer(w http.ResponseWriter, r *http.Request, at tier) {
	p.peers.counts.served.Add(1)
	l := &lending{ResponseWriter: w, asked: time.Now()}
	e, conditions, ask, err := p.errandOfPeer(r, at)
	var no refusal
	switch {
	case errors.As(err, &no):
		p.refusePeer(l, no)
	case err != nil:
		p.peers.counts.refusals.Add(1)
		w.WriteHeader(http.StatusBadRequest)
	case r.Method == http.MethodPost:
		p.peers.counts.forgot.Add(1)
		p.cache.Invalidate(e.key)
		w.WriteHeader(http.StatusNoContent)
	case p.cfg.Epoch != nil && ask.Epoch > p.cfg.Epoch():
		p.refusePeer(l, refusedEpoch)
	default:
		p.lend(l, r, e, conditions)
	}
}

// errandOfPeer is what a peer asks for. The header that it carries is sent on as it is.
func (p *Plane) errandOfPeer(r *http.Request, at tier) (e errand, conditions http.Header, ask asking, err error) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		return e, nil, ask, errAsking
	}
	if ask, err = parseAsking(r.Header.Get(askField)); err != nil {
		return e, nil, ask, err
	}
	d := p.table.Load().Route(Request{
		Method: http.MethodGet, Host: r.Host, Path: cmp.Or(r.URL.EscapedPath(), "/"), Query: r.URL.RawQuery, TLS: ask.TLS,
	}, nil)
	if d.Status != 0 || !d.cacheable(http.MethodGet) {
		return e, nil, ask, refusedSpec
	}
	header, conditions := carried(r.Header)
	key := d.Behavior.Policy.Key(d.target(), header)
	if sumOf(key.URI) != ask.URI {
		return e, nil, ask, refusedSpec
	}
	key.Variant = ask.Variant
	return p.errandOf(r, d, key, header, at), conditions, ask, nil
}

// lend answers from the cache, filling it where need be.
func (p *Plane) lend(w *lending, r *http.Request, e errand, conditions http.Header) {
	policy := e.Behavior.Policy
	forward := cache.URIMiss
	for range looks {
		now := time.Now()
		found := p.cache.Find(e.key, policy, e.header, now, nil)
		if found.Apart {
			p.refusePeer(w, refusedApart)
			return
		}
		if found.Others {
			forward = cache.VaryMiss
		}
		if o := found.Object; o != nil {
			reuse, down := p.reuse(e.Decision, cache.Demand{}, found, now), &e.Behavior.down
			switch { // as for viewers
			case reuse == cache.StaleWhileRevalidate && (!down.is(now) || down.probe(now)), reuse == cache.StaleIfError && !o.Held(now) && down.probe(now):
				p.cache.Refresh(p.wanted(&e, e.header), found)
			}
			if reuse != cache.Stale {
				if p.lent(w, p.lendKept(w, r, e, conditions, o, reuse, now)) {
					return
				}
				continue
			}
			forward = cache.StaleObject
		}
		waited := e // and not the errand of a Refresh, which tells nobody
		waited.early = w.interim()
		want := p.wanted(&waited, e.header)
		want.Range = conditions.Get("Range")
		ask, err := p.cache.Ask(r.Context(), want, found)
		if err == nil {
			err = p.lendFilled(w, r, waited, conditions, ask, forward)
		}
		if p.lent(w, err) {
			return
		}
	}
	p.refusePeer(w, refusedApart) // it is another variant each time
}

// lent says whether a peer is answered, or else to look again, as answered does for viewers.
func (p *Plane) lent(w *lending, err error) bool {
	switch {
	case err == nil:
	case errors.Is(err, cache.ErrOther), errors.Is(err, cache.ErrChanged), errors.Is(err, cache.ErrRanges):
		return false
	case errors.Is(err, cache.ErrBusy):
		p.refusePeer(w, refusedBusy)
	case errors.Is(err, cache.ErrAlone):
		p.refusePeer(w, refusedApart)
	case timedOut(err) && !errors.As(err, new(*dialError)):
		p.refusePeer(w, refusedSilent)
	default:
		p.refusePeer(w, refusedUnreached)
	}
	return true
}

// detail is what Cache-Status says of a response that is handed on: as what.
func (e errand) detail(hit bool) string {
	switch {
	case e.at == inPOP:
		return "owner"
	case hit:
		return "OriginShieldHit"
	}
	return "shield"
}

var reused = map[cache.Reuse]string{cache.StaleWhileRevalidate: "stale-while-revalidate", cache.StaleIfError: "stale-if-error"}

// lendKept hands on what is kept. An error is that of a slice, or ErrOther: its body is lost. Then nothing is answered yet.
func (p *Plane) lendKept(w *lending, r *http.Request, e errand, conditions http.Header, o *cache.Object, reuse cache.Reuse, now time.Time) error {
	status := cache.Status{Hit: true, HasTTL: true, TTL: o.FreshFor(now), Detail: cmp.Or(reused[reuse], e.detail(true))}
	if o.InSlices() {
		w.answer = handed(o, true, w.asked, now)
		return p.lendSlices(w, r, e, conditions, o, nil, p.fields.hit, status, o.Age(now))
	}
	size := o.Size()
	answer := o.Answer(http.MethodGet, conditions, size)
	body, err := open(o, http.MethodGet, answer)
	if err != nil {
		return cache.ErrOther
	}
	defer body.Close()
	w.answer = handed(o, true, w.asked, now)
	p.head(w, o, answer, size, p.fields.hit, status, o.Age(now), e.header.Get("X-Perigee-Id"))
	p.lendPart(w, &body, answer)
	return nil
}

// lendPart hands on the part of a kept body that is the answer. It is not among the bytes that viewers were sent.
func (p *Plane) lendPart(w *lending, body *cache.Body, a cache.Answer) {
	block := p.blocks.Get().(*[cache.BodyPiece]byte)
	defer p.blocks.Put(block)
	for start, left := a.Start, a.Length; left > 0; {
		piece, err := body.Piece(start, left, func() []byte { return block[:] })
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if _, err := w.Write(piece); err != nil {
			return // the peer left
		}
		start, left = start+int64(len(piece)), left-int64(len(piece))
	}
}

// lendFilled hands on what a fill brings. An error is the fill's, and nothing is answered yet.
func (p *Plane) lendFilled(w *lending, r *http.Request, e errand, conditions http.Header, ask *cache.Ask, forward string) error {
	defer ask.Close()
	defer e.early.over() // a panic
	var res cache.Result
	var err error
	w.wait(func() { res, err = ask.Wait() })
	e.early.over()
	switch {
	case r.Context().Err() != nil: // the peer left
		panic(http.ErrAbortHandler)
	case err != nil:
		return err
	case res.How == cache.Filled && !res.Stored && !res.Shared && conditions.Get("Range") != "":
		return cache.ErrAlone // what is not kept is not worth reading up to a slice
	}
	now := time.Now()
	status := cache.Status{
		Forward: forward, Code: res.Status, Stored: res.Stored, Collapsed: res.Collapsed, Detail: cmp.Or(res.WhyNot, e.detail(false)),
		HasTTL: res.Stored, TTL: res.Object.FreshFor(now),
	}
	if res.Stored || res.Shared {
		w.answer = handed(res.Object, res.Shared, w.asked, now)
	}
	from, age := p.fields.miss, notFromCache
	switch res.How {
	case cache.Validated:
		from, age = p.fields.refreshHit, res.Object.Age(now)
	case cache.Covered:
		from, age, status.Detail = p.fields.hit, res.Object.Age(now), "stale-if-error"
	}
	if res.Object.InSlices() {
		return p.lendSlices(w, r, e, conditions, res.Object, res.Own, from, status, age)
	}
	answer := res.Object.Answer(http.MethodGet, conditions, res.Size)
	var body cache.Body
	if res.How != cache.Filled {
		if body, err = open(res.Object, http.MethodGet, answer); err != nil {
			return cache.ErrOther
		}
		defer body.Close()
	}
	maps.Copy(w.Header(), res.Own) // for the viewer who asked first
	p.head(w, res.Object, answer, res.Size, from, status, age, e.header.Get("X-Perigee-Id"))
	if answer.Status == http.StatusNotModified || answer.Length == 0 {
		return nil
	}
	if res.How != cache.Filled {
		p.lendPart(w, &body, answer)
		return nil
	}
	flush := http.NewResponseController(w)
	if answer.Start > 0 {
		ask.From(answer.Start)
	}
	if ask.Waits() { // the peer must not take the origin's pause for silence
		flush.Flush()
	}
	for left := answer.Length; left != 0; {
		piece, err := ask.Next()
		if err == io.EOF && left < 0 {
			return nil
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if left > 0 {
			piece = piece[:min(int64(len(piece)), left)]
		}
		if _, err := w.Write(piece); err != nil {
			return nil // the peer left
		}
		if left > 0 {
			left -= min(int64(len(piece)), left)
		}
		if left != 0 {
			flush.Flush()
		}
	}
	return nil
}

func (p *Plane) refusePeer(w *lending, why refusal) {
	p.peers.counts.refusals.Add(1)
	h := w.Header()
	h.Set(answerField, "refused "+string(why))
	h.Set("Content-Length", "0")
	w.ResponseWriter.WriteHeader(http.StatusServiceUnavailable)
}

// lending writes an answer to a peer, with the terms.
type lending struct {
	http.ResponseWriter
	asked    time.Time
	answer   answering
	interims sync.Mutex // orders what is written before the answer
}

// WriteHeader has the terms in the header, whatever the origin has under that name.
func (l *lending) WriteHeader(status int) {
	l.Header()[answerField] = []string{l.answer.String()}
	l.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController through.
func (l *lending) Unwrap() http.ResponseWriter { return l.ResponseWriter }

// wait waits for what waits for a fill, and gives a sign of life now and then: an origin may take its time, this node may not.
func (l *lending) wait(do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	signs := time.NewTicker(peerSign)
	defer signs.Stop()
	for {
		select {
		case <-done:
			return
		case <-signs.C:
			l.interims.Lock()
			l.ResponseWriter.WriteHeader(http.StatusProcessing)
			l.interims.Unlock()
		}
	}
}
