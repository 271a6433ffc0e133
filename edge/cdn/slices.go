package cdn

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/edge/cache"
)

// What is kept in slices is answered from the one after the other: those that are kept, and those that are asked for, by the one
// fill of each for all who wait. The answer's head goes out when the first slice is there, so a change at the origin that
// shows by then costs the viewer nothing; one that shows later ends his connection, for parts of two versions make no object.

const (
	// slicesAhead is how many slices are asked for before a viewer needs them, so that he does not wait at each border.
	slicesAhead = 2
	// aheadShare bounds what is held ready ahead of viewers, together: the part of the cache's bytes. Beyond it each slice is asked for
	// when it is needed.
	aheadShare = 16
	// sliceTries is how often a slice is asked for that fails halfway, or that its origin refuses with an error.
	sliceTries = 2
)

// errLeft: the viewer is not there any more.
var errLeft = errors.New("the viewer left")

// slicer answers one request from an object in slices.
type slicer struct {
	p      *Plane
	ctx    context.Context
	errand errand // of the whole
	header http.Header
	object *cache.Object
	write  func([]byte) bool // says whether the viewer is there still
	flush  func() error
	ahead  map[int64]*slice // what was asked for and is not read yet
	asked  int64            // up to which slice that is
}

// slice is one slice as a request gets it: kept, from a fill, or for itself alone.
type slice struct {
	number int64
	kept   *cache.Object
	base   int64 // where it is in that: what was sought in may be kept whole by now
	ask    *cache.Ask
	result cache.Result
	alone  *http.Response
	held   bool // it counts as held ahead
}

// slicer is for a request whose errand is about the whole object. The header is what the key was made of.
func (p *Plane) slicer(ctx context.Context, w http.ResponseWriter, e errand, header http.Header, o *cache.Object, write func([]byte) bool) *slicer {
	e.early = nil // that was for the head
	return &slicer{
		p: p, ctx: ctx, errand: e, header: header, object: o, write: write, flush: http.NewResponseController(w).Flush,
		ahead: map[int64]*slice{}, asked: -1,
	}
}

// want is what a fill is to bring of a slice. Who is asked is chosen anew for each: a large object takes longer than a view of the
// network stands.
func (s *slicer) want(n int64) cache.Want {
	e := s.errand
	e.hops, e.turn = s.p.hops(e.Decision, e.key, e.at, nil), new(atomic.Int32)
	w := cache.Want{Key: e.key, Policy: e.Behavior.Policy, Header: s.header, Fetch: s.p.fetching(&e), Rank: e.rank, Origin: &e.Behavior.upstream.filling.Origin}
	if e.at == byViewers {
		w.Keep = s.p.keep(e, s.object.SliceKey(e.key, n))
	}
	return s.p.cache.SliceOf(w, s.object, n)
}

// look finds a slice, or asks for it.
func (s *slicer) look(n int64) (*slice, error) {
	key := s.object.SliceKey(s.errand.key, n)
	head := s.p.cache.Find(s.errand.key, s.errand.Behavior.Policy, s.header, time.Now(), nil) // so that it counts as used, and outlives its slices
	if head.Object != nil && head.Object.IsWhole(s.object) {
		return &slice{number: n, kept: head.Object, base: s.object.Slice(n).Start}, nil
	}
	for range looks {
		found := s.p.cache.Find(key, s.errand.Behavior.Policy, s.header, time.Now(), nil)
		switch {
		case found.Object != nil:
			return &slice{number: n, kept: found.Object}, nil
		case found.Apart:
			return &slice{number: n}, nil
		}
		ask, err := s.p.cache.Ask(s.ctx, s.want(n), found)
		switch {
		case err == nil:
			return &slice{number: n, ask: ask}, nil
		case !errors.Is(err, cache.ErrOther):
			return nil, err
		}
	}
	return &slice{number: n}, nil
}

// ready is a slice whose bytes begin to be there.
func (s *slicer) ready(n int64) (*slice, error) {
	x := s.ahead[n]
	delete(s.ahead, n)
	for tries := 1; ; tries++ {
		var err error
		if x == nil {
			if x, err = s.look(n); err != nil {
				return nil, err
			}
		}
		if err = s.begin(x); err == nil {
			return x, nil
		}
		s.done(x)
		if tries == sliceTries || !s.again(err) {
			return nil, err
		}
		x = nil
	}
}

// again says whether a slice that failed so is worth another try.
func (s *slicer) again(err error) bool {
	switch {
	case s.ctx.Err() != nil, timedOut(err):
		return false
	case errors.Is(err, cache.ErrChanged), errors.Is(err, cache.ErrRanges), errors.Is(err, cache.ErrBusy):
		return false
	}
	return true
}

// begin waits for the slice's bytes to begin.
func (s *slicer) begin(x *slice) (err error) {
	if x.kept != nil {
		body, err := open(x.kept, http.MethodGet, cache.Answer{Length: -1})
		if err == nil {
			body.Close()
		}
		return err
	}
	if x.alone != nil {
		return nil
	}
	if x.ask != nil {
		if x.result, err = x.ask.Wait(); !errors.Is(err, cache.ErrAlone) {
			return err
		}
		x.ask.Close()
		x.ask = nil
	}
	x.alone, err = s.want(x.number).Fetch(s.ctx, nil)
	return err
}

// done is done with a slice.
func (s *slicer) done(x *slice) {
	if x.ask != nil {
		x.ask.Close()
	}
	if x.alone != nil {
		x.alone.Body.Close()
	}
	if x.held {
		s.p.ahead.Add(-1)
	}
}

// close is done with all.
func (s *slicer) close() {
	for _, x := range s.ahead {
		s.done(x)
	}
	s.p.cache.Join(cache.Want{Key: s.errand.key, Policy: s.errand.Behavior.Policy, Header: s.header}, s.object)
}

// askAhead asks for the slices after n, up to last, that will be needed soon. What is kept already is not held: it may be evicted
// before it is needed, and will be looked for then.
func (s *slicer) askAhead(n, last int64) {
	for next := n + 1; next <= min(n+slicesAhead, last); next++ {
		if next <= s.asked || s.ahead[next] != nil {
			continue
		}
		if !s.p.cache.Spare() {
			return
		}
		if s.p.ahead.Add(1) > s.p.maxAhead {
			s.p.ahead.Add(-1)
			return
		}
		s.asked = next
		x, err := s.look(next)
		if err != nil || x.ask == nil {
			s.p.ahead.Add(-1)
			continue
		}
		x.held = true
		s.ahead[next] = x
	}
}

// first waits for the first slice that an answer needs; nil: it needs none.
func (s *slicer) first(method string, a cache.Answer) (*slice, error) {
	start := a.Start
	switch {
	case method == http.MethodHead:
		return nil, nil
	case len(a.Parts) > 0:
		start = a.Parts[0].Start
	case a.Length == 0:
		return nil, nil
	}
	n := start / cache.SliceSize
	x, err := s.ready(n)
	if err != nil {
		return nil, err
	}
	s.ahead[n] = x
	return x, nil
}

// body writes what an answer has of the object, when first has come back and the head is written.
func (s *slicer) body(method string, a cache.Answer, parts *byteranges) {
	switch {
	case method == http.MethodHead:
	case parts != nil:
		for i, part := range parts.parts {
			if !s.write([]byte(parts.heads[i])) || !s.part(part) {
				return
			}
		}
		s.write([]byte(parts.end))
	case a.Length > 0:
		s.part(cache.Part{Start: a.Start, Length: a.Length})
	}
}

// part writes a part of the object, and says whether the viewer is there still. If a slice does not come his connection ends.
func (s *slicer) part(p cache.Part) bool {
	end, failed := p.Start+p.Length, 0
	for at := p.Start; at < end; {
		n := at / cache.SliceSize
		x, err := s.ready(n)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		s.askAhead(n, (end-1)/cache.SliceSize)
		place := s.object.Slice(n)
		wrote, err := s.copy(x, cache.Part{Start: at - place.Start, Length: min(end, place.Start+place.Length) - at})
		s.done(x)
		at += wrote
		switch {
		case err == nil:
			failed = 0
		case err == errLeft:
			return false
		default:
			if failed++; failed == sliceTries || !s.again(err) {
				panic(http.ErrAbortHandler)
			}
		}
	}
	return true
}

// copy writes a part of a slice, as it comes.
func (s *slicer) copy(x *slice, p cache.Part) (wrote int64, err error) {
	skip := int64(0)
	put := func(piece []byte) error {
		left := min(int64(len(piece)), skip)
		skip, piece = skip-left, piece[left:]
		piece = piece[:min(int64(len(piece)), p.Length-wrote)]
		wrote += int64(len(piece))
		if !s.write(piece) {
			return errLeft
		}
		return nil
	}
	switch {
	case x.kept != nil:
		return s.copyKept(x.kept, cache.Part{Start: x.base + p.Start, Length: p.Length}, put)
	case x.alone != nil:
		return s.copyAlone(x, p)
	}
	if x.result.Stored || x.result.Shared {
		x.ask.From(p.Start)
	} else {
		skip = p.Start // it is handed to this request alone
	}
	for wrote < p.Length {
		piece, err := x.ask.Next()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return wrote, err
		}
		if err := put(piece); err != nil {
			return wrote, err
		}
		s.flush()
	}
	return wrote, nil
}

// copyKept writes a part of a kept slice. What was lost of it on disk is not kept any more.
func (s *slicer) copyKept(o *cache.Object, p cache.Part, put func([]byte) error) (wrote int64, err error) {
	body, err := o.Open()
	if err != nil {
		return 0, err
	}
	defer body.Close()
	block := s.p.blocks.Get().(*[cache.BodyPiece]byte)
	defer s.p.blocks.Put(block)
	for wrote < p.Length {
		piece, err := body.Piece(p.Start+wrote, p.Length-wrote, func() []byte { return block[:] })
		if err != nil {
			return wrote, err
		}
		if err := put(piece); err != nil {
			return wrote, err
		}
		wrote += int64(len(piece))
	}
	return wrote, nil
}

// copyAlone writes a part of a slice that is this request's alone; what is before it is read and left.
func (s *slicer) copyAlone(x *slice, p cache.Part) (wrote int64, err error) {
	if _, err := io.CopyN(io.Discard, x.alone.Body, p.Start); err != nil {
		return 0, err
	}
	space := s.p.pieces.Get().(*[]byte)
	defer s.p.pieces.Put(space)
	for wrote < p.Length {
		n, err := io.ReadFull(x.alone.Body, (*space)[:min(int64(len(*space)), p.Length-wrote)])
		if n > 0 && !s.write((*space)[:n]) {
			return wrote, errLeft
		}
		if wrote += int64(n); err != nil {
			return wrote, err
		}
	}
	return wrote, nil
}

// partly is what Cache-Status says where the head was kept and the first slice was not.
func (x *slice) partly(o *cache.Object, now time.Time) cache.Status {
	return cache.Status{
		Forward: cache.Partial, Code: http.StatusPartialContent, Stored: x.result.Stored, Collapsed: x.result.Collapsed,
		HasTTL: true, TTL: o.FreshFor(now), Detail: "slices",
	}
}

// from counts a slice that was not kept, and says where from it came.
func (x *slice) from(p *Plane) []string {
	if x.ask != nil {
		return p.filledFrom(x.result.Object)
	}
	p.counts.misses.Add(1)
	return p.fields.miss
}

// inSlices answers with an object in slices, once the first that the answer needs is there: said says how it came about. An error
// is that slice's, and nothing is answered yet.
func (p *Plane) inSlices(w http.ResponseWriter, r *http.Request, d Decision, key cache.Key, o *cache.Object, id string, said func(first *slice) (from []string, s cache.Status, age time.Duration)) error {
	e := p.errandOf(r, d, key, d.Behavior.Forward(viewerOf(r), id, false), byViewers)
	s := p.slicer(r.Context(), w, e, r.Header, o, func(piece []byte) bool { return p.put(w, piece) })
	defer s.close()
	answer := o.Answer(r.Method, r.Header, o.Size())
	first, err := s.first(r.Method, answer)
	switch {
	case r.Context().Err() != nil: // the viewer left
		panic(http.ErrAbortHandler)
	case err != nil:
		return err
	}
	from, status, age := said(first)
	parts := p.head(w, o, answer, o.Size(), from, status, age, id)
	s.body(r.Method, answer, parts)
	return nil
}

// hitSlices answers with an object in slices that may be used as it is. If its first slice is not kept either, that is a miss.
func (p *Plane) hitSlices(w http.ResponseWriter, r *http.Request, d Decision, key cache.Key, o *cache.Object, now time.Time, detail string) error {
	return p.inSlices(w, r, d, key, o, newID(), func(first *slice) (from []string, s cache.Status, age time.Duration) {
		if first != nil && first.kept == nil {
			return first.from(p), first.partly(o, now), o.Age(now)
		}
		p.counts.hits.Add(1)
		return p.fields.hit, hitStatus(o, now, cmp.Or(detail, "slices")), o.Age(now)
	})
}

// filledSlices answers with an object in slices whose head a fill has brought.
func (p *Plane) filledSlices(w http.ResponseWriter, r *http.Request, d Decision, key cache.Key, res cache.Result, status cache.Status, now time.Time, id string) error {
	o := res.Object
	return p.inSlices(w, r, d, key, o, id, func(first *slice) (from []string, s cache.Status, age time.Duration) {
		maps.Copy(w.Header(), res.Own)
		status.Detail = "slices"
		switch {
		case res.How == cache.Validated:
			p.counts.refreshes.Add(1)
			return p.fields.refreshHit, status, o.Age(now)
		case res.How == cache.Covered:
			p.counts.covered.Add(1)
			status.Detail, status.HasTTL = "stale-if-error", true
			return p.fields.hit, status, o.Age(now)
		case first != nil && first.kept == nil:
			return first.from(p), status, notFromCache
		}
		return p.filledFrom(o), status, notFromCache
	})
}

// lendSlices hands on what a peer asks for of an object in slices: kept says that its head was, which else a fill has brought. The
// peer is told of it as said, but for what its first slice makes different.
func (p *Plane) lendSlices(w *lending, r *http.Request, e errand, conditions http.Header, o *cache.Object, own http.Header, from []string, status cache.Status, age time.Duration) (err error) {
	s := p.slicer(r.Context(), w, e, e.header, o, func(piece []byte) bool {
		_, err := w.Write(piece)
		return err == nil
	})
	defer s.close()
	answer := o.Answer(http.MethodGet, conditions, o.Size())
	var first *slice
	w.wait(func() { first, err = s.first(http.MethodGet, answer) })
	switch {
	case r.Context().Err() != nil: // the peer left
		panic(http.ErrAbortHandler)
	case err != nil:
		return err
	}
	maps.Copy(w.Header(), own)
	if status.Hit && first != nil && first.kept == nil {
		from, status = p.fields.miss, first.partly(o, time.Now())
		status.Detail = e.detail(false)
		if first.ask != nil && first.result.Object.From() == "Hit" {
			from = p.fields.hit
		}
	}
	parts := p.head(w, o, answer, o.Size(), from, status, age, e.header.Get("X-Perigee-Id"))
	s.body(http.MethodGet, answer, parts)
	return nil
}
