package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// Errors of a fill.
var (
	// ErrBusy: there are as many fills, or askers, as there may be.
	ErrBusy = errors.New("too many requests wait for origins")
	// ErrAlone: the response may not be shared, and belongs to another request. Ask the origin on your own.
	ErrAlone = errors.New("the response may not be shared")
	// ErrOther: the response turned out to be another variant, or was kept in the meantime. Look again.
	ErrOther = errors.New("the response is another one")

	errAbandoned = errors.New("nobody reads the response any more")
	errLength    = errors.New("the body is not as long as its Content-Length")
)

// Fetch asks the origin for the whole response, with the conditions added to the request if there are any. The
// response's header must be clean: end to end fields only. Its body fails if it ends early. The context stays the
// body's until that is closed.
type Fetch func(ctx context.Context, conditions http.Header) (*http.Response, error)

// Want is what a fill is to bring.
type Want struct {
	Key    Key
	Policy *Policy
	Header http.Header // the viewer's; the fill, which outlives the request, has it too: it is not to be changed any more
	Fetch  Fetch
	// Keep says whether what was brought is kept, besides being shared by those who asked meanwhile; nil: yes. It is asked when
	// it begins to come and when all is here, and must be quick.
	Keep func() bool
	// Rank is how near the origin those are that are asked; it never falls. A request joins only fills of its own rank and above: who
	// waits for a fill must not be who that waits for. Nil: 0. It must be quick.
	Rank func() int

	begin func() // is called when a fill starts, before its Fetch; nil: nothing
}

func (w *Want) rank() int {
	if w.Rank == nil {
		return 0
	}
	return w.Rank()
}

// fill brings one response from the origin, for all who ask for it meanwhile. It belongs to none of them: it goes on
// when the first, or all, have left. A response that may not be shared is the first's alone.
type fill struct {
	cache  *Cache
	want   Want
	stale  *Object // to be validated, or nil
	others []offer // where that is nil: what else the origin may select

	fenced bool   // stale may not be used as it is
	era    uint64 // how many fences there were at the start

	slot     string // guarded by cache.mu, like
	outdated bool   // it was purged or invalidated: not to be kept
	headed   bool   // the response's head has come, and so its
	tags     string

	mu     sync.Mutex // guards what follows
	moved  sync.Cond  // something below has changed
	result Result     // How is 0 until the origin has answered
	shared bool
	alone  io.ReadCloser // the body, if it is the first asker's alone
	first  *Ask          // who asked first; nil when there was none or it left
	asks   map[*Ask]struct{}
	body   []byte // what has come since base
	base   int64  // what has come and is dropped
	full   bool   // there was no room for the body: it is not kept, and is dropped once it is read
	ended  bool
	err    error

	reserved int64 // bytes of the cache's, for body
}

// firstPiece is the room a body whose size is not known begins with. It doubles from there.
const firstPiece = 4 << 10

// Refresh starts the fill of what was found stale, for nobody, unless it runs already.
func (c *Cache) Refresh(w Want, found Found) {
	c.mu.Lock()
	defer c.mu.Unlock()
	still := c.find(w.Key, w.Policy, w.Header, time.Now(), nil, false) == found // or else it was purged, say
	if still && c.fills[found.slot] == nil {
		c.start(w, found, nil)
	}
}

// start starts a fill; nil if there are too many, or the cache is closed. c.mu is held.
func (c *Cache) start(w Want, found Found, first *Ask) *fill {
	if len(c.active) >= maxFills || c.ctx.Err() != nil {
		c.counts.busy.Add(1)
		return nil
	}
	f := &fill{
		cache: c, want: w, stale: found.Object, fenced: found.Fenced, era: c.era, slot: found.slot,
		first: first, asks: map[*Ask]struct{}{},
	}
	f.moved.L = &f.mu
	if found.Others {
		f.others = c.offered(w)
	}
	if first != nil {
		first.fill = f
		f.asks[first] = struct{}{}
	}
	c.fills[f.slot] = f
	c.active[f] = struct{}{}
	if w.begin != nil {
		w.begin()
	}
	c.counts.fills.Add(1)
	if found.Fenced {
		c.counts.fenced.Add(1)
	}
	select {
	case c.next <- f:
	default:
		c.running.Go(func() { c.work(f) })
	}
	return f
}

// maxSpare is how many goroutines wait for the next fill when they have ended one; more end. They have the stack still that a
// request to an origin takes, which a new one has to grow to by copying, and that was a twentieth of what a miss costs.
const maxSpare = 64

// work runs one fill after another.
func (c *Cache) work(f *fill) {
	for {
		f.run()
		if c.spare.Add(1) > maxSpare {
			c.spare.Add(-1)
			return
		}
		select {
		case f = <-c.next:
			c.spare.Add(-1)
		case <-c.ctx.Done():
			return
		}
	}
}

// join makes a an asker of the fill, unless what it brings has become stale by now or begins to be dropped.
func (f *fill) join(a *Ask) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil || f.full || f.result.Object != nil && f.result.Object.FreshFor(time.Now()) <= 0 {
		return false
	}
	a.fill = f
	f.asks[a] = struct{}{}
	return true
}

// run asks the origin and sees to what it answers.
func (f *fill) run() {
	ctx, cancel := context.WithCancel(f.cache.ctx)
	defer f.over()
	if response, requested := f.fetch(ctx); response != nil {
		f.take(ctx, response, requested, cancel)
		return
	}
	cancel()
}

// fetch asks the origin. It returns the response that is to be a new object; nil if what is kept is good for longer, or the
// origin failed.
func (f *fill) fetch(ctx context.Context) (response *http.Response, requested time.Time) {
	var check http.Header
	switch {
	case f.stale != nil:
		check = conditions(f.stale)
	case len(f.others) > 0:
		check = offering(f.others)
	}
	requested = time.Now()
	response, err := f.want.Fetch(ctx, check)
	if err == nil && response.StatusCode == http.StatusNotModified && check != nil {
		response.Body.Close()
		if f.notModified(response, requested) {
			return nil, requested
		}
		requested = time.Now()
		response, err = f.want.Fetch(ctx, nil)
	}
	if now := time.Now(); f.stale != nil && !f.fenced && failed(response, err) && f.stale.coversErrors(now) {
		status := 0
		if err == nil {
			status = response.StatusCode
			response.Body.Close()
		}
		f.covered(f.stale.holding(now.Add(f.want.Policy.ErrorTTL)), status)
		return nil, requested
	}
	if err != nil {
		f.leave(nil)
		f.fail(err)
		return nil, requested
	}
	return response, requested
}

// failed says whether an origin's answer is a failure that a stale response may cover (RFC 5861 §4).
func failed(response *http.Response, err error) bool {
	if err != nil {
		return true
	}
	switch response.StatusCode {
	case 500, 502, 503, 504:
		return true
	}
	return false
}

// notModified makes what is kept good for longer by a 304, or says that the 304 is about none of it.
func (f *fill) notModified(response *http.Response, requested time.Time) bool {
	was, slot := f.selects(response.Header)
	if was == nil {
		return false
	}
	o, own, ok := was.freshened(f.want.Policy, response.Header, requested, time.Now())
	if !ok {
		return false
	}
	o.era = f.era
	alone := o.on(response.Body)
	h := o.Header.HTTP()
	ok, why := f.want.Policy.Storable(o.Status, ParseControl(h), h, f.authorized(), o.received)
	kept := apartSince(o.received)
	if !ok {
		f.leave(kept)
		f.answer(validated(o, own, why), false)
		return true
	}
	f.settle(o) // it may be selected by other fields than before
	mine := *o
	switch {
	case f.stale == nil:
		mine.body = 0 // two slots, two bodies
		f.renew(slot, was, o)
		if kept = (&entry{object: &mine}); alone || !f.keeps() {
			kept, why = nil, "peer"
		}
	case f.slot != slot && o.OnDisk(): // where its body is nobody looks any more
		kept, why = nil, "vary"
	default:
		kept = &entry{object: &mine, renewal: true}
	}
	f.leave(kept)
	f.answer(validated(&mine, own, why), o.shared())
	return true
}

// validated is the result of a 304; why it is not kept, if it is not.
func validated(o *Object, own http.Header, why string) Result {
	return Result{How: Validated, Object: o, Size: o.Size(), Status: http.StatusNotModified, Stored: why == "", WhyNot: why, Own: own}
}

func (f *fill) covered(o *Object, status int) {
	f.leave(&entry{object: o})
	f.answer(Result{How: Covered, Object: o, Size: o.Size(), Status: status}, true)
}

// take makes the response a new object, or hands it to the first asker alone.
func (f *fill) take(ctx context.Context, response *http.Response, requested time.Time, cancel context.CancelFunc) {
	p, received := f.want.Policy, time.Now()
	cc := ParseControl(response.Header)
	ok, why := p.Storable(response.StatusCode, cc, response.Header, f.authorized(), received)
	validator, cuts := f.cache.cuts(response.StatusCode, response.Header, response.ContentLength, received)
	own := cc.separate(response.Header)
	o := p.head(response.StatusCode, cc, response.Header, requested, received)
	o.era = f.era
	alone := o.on(response.Body)
	size := response.ContentLength
	switch {
	case !ok:
	case alone:
		ok, why = false, "peer"
	case !o.useful():
		ok, why = false, "ttl"
	case cuts:
	case size > f.cache.objectLimit():
		ok, why = false, "size"
	case !f.room(size):
		ok, why = false, noRoom
	}
	result := Result{How: Filled, Object: o, Size: size, Status: o.Status, Stored: ok, WhyNot: why, Own: own}
	if !ok {
		kept := apartSince(received)
		if why == noRoom { // there may be some when it is asked for again
			kept = nil
		}
		f.leave(kept)
		f.hand(result, &lasting{response.Body, cancel})
		return
	}
	defer cancel()
	if _, refused := p.tagged(response.Header); refused > 0 {
		f.cache.counts.badTags.Add(uint64(refused))
	}
	if cuts {
		f.cut(ctx, o, response, validator, own)
		return
	}
	defer response.Body.Close()
	defer context.AfterFunc(ctx, f.wake)()
	f.settle(o)
	if !f.keeps() {
		result.Stored, result.WhyNot = false, "peer"
	}
	f.answer(result, o.shared())
	if err := f.read(ctx, response.Body, size); err != nil {
		f.leave(nil)
		f.fail(err)
		return
	}
	switch {
	case f.full: // it has left already
	case f.keeps():
		f.leave(&entry{object: o.whole(exact(f.body))})
	default:
		f.leave(nil)
	}
	f.end()
}

// lasting is a body whose context ends with it.
type lasting struct {
	io.ReadCloser
	end context.CancelFunc
}

func (l *lasting) Close() error {
	defer l.end()
	return l.ReadCloser.Close()
}

// read reads the body to its end.
func (f *fill) read(ctx context.Context, from io.Reader, size int64) error {
	for {
		if len(f.body) == cap(f.body) {
			if size >= 0 {
				return f.readEnd(from)
			}
			if err := f.grow(ctx); err != nil {
				return err
			}
		}
		n, err := from.Read(f.body[len(f.body):cap(f.body)])
		f.mu.Lock()
		f.body = f.body[:len(f.body)+n]
		f.moved.Broadcast()
		f.mu.Unlock()
		if err == io.EOF && (size < 0 || int64(len(f.body)) == size) {
			return nil
		}
		if err != nil {
			return f.truncated(err)
		}
	}
}

// readEnd makes sure that nothing follows a body that is all there.
func (f *fill) readEnd(from io.Reader) error {
	var beyond [1]byte
	if _, err := io.ReadFull(from, beyond[:]); err != io.EOF {
		return f.truncated(err)
	}
	return nil
}

func (f *fill) truncated(err error) error {
	f.cache.counts.truncated.Add(1)
	if err == nil || err == io.EOF {
		return errLength
	}
	return err
}

// noRoom is why a body is not kept for which there is no room as long as others are being filled.
const noRoom = "room"

// room makes room for a body of that size, or for the beginning of one whose size is not known.
func (f *fill) room(size int64) bool {
	if size < 0 {
		size = firstPiece
	}
	if !f.cache.reserve(allocated(int(size))) {
		return false
	}
	f.reserved, f.body = allocated(int(size)), make([]byte, 0, size)
	return true
}

// grow makes room for more of a body whose size is not known. Where there is none, the body is not kept any more: what
// has come is dropped as soon as all askers have read it, so the slowest sets the pace.
func (f *fill) grow(ctx context.Context) error {
	now := int64(cap(f.body))
	next := min(2*now, f.cache.objectLimit())
	if !f.full && next > now && f.cache.reserve(allocated(int(next))-f.reserved) {
		larger := make([]byte, len(f.body), next)
		copy(larger, f.body)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.reserved, f.body = allocated(int(next)), larger
		return nil
	}
	if !f.full {
		var kept *entry
		if next <= now { // it is too long, not only for now
			kept = apartSince(time.Now())
		}
		f.leave(kept)
	}
	defer context.AfterFunc(ctx, f.wake)()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.full = true
	end := f.base + int64(len(f.body))
	for !f.readTo(end) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f.moved.Wait()
	}
	if len(f.asks) == 0 {
		return errAbandoned
	}
	f.base, f.body = end, f.body[:0]
	return nil
}

func (f *fill) readTo(end int64) bool {
	for a := range f.asks {
		if a.pos < end {
			return false
		}
	}
	return true
}

// apartSince keeps a key apart from then on.
func apartSince(t time.Time) *entry { return &entry{apart: t.Add(apartFor).UnixNano()} }

// exact is the body without much room behind it.
func exact(body []byte) []byte {
	if cap(body)-len(body) > len(body)/4 {
		return bytes.Clone(body)
	}
	return body
}

func (f *fill) authorized() bool { return f.want.Policy.Field(f.want.Header, "Authorization") != "" }

// answer tells the askers what has come.
func (f *fill) answer(r Result, shared bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.result, f.shared = r, shared
	f.ended = r.How != Filled
	f.moved.Broadcast()
}

// hand gives a response that may not be shared to who asked first, or to nobody.
func (f *fill) hand(r Result, body io.ReadCloser) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.result, f.alone = r, body
	if f.first == nil {
		body.Close()
	}
	f.moved.Broadcast()
}

func (f *fill) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	f.release()
	f.moved.Broadcast()
}

func (f *fill) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	f.release()
	f.moved.Broadcast()
}

func (f *fill) wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.moved.Broadcast()
}

// release gives back what was reserved for a body that is not kept, when nobody reads it any more. f.mu is held.
func (f *fill) release() {
	if (f.ended || f.err != nil) && len(f.asks) == 0 {
		f.cache.reserve(-f.reserved)
		f.reserved = 0
	}
}

// settle moves the fill to the slot of its variant, so that those who look for the same find it there, and others do not.
func (f *fill) settle(o *Object) {
	c := f.cache
	defer f.writeOut()
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.outdated {
		return
	}
	f.headed, f.tags = true, o.tags
	slot := c.place(f.want.Key, f.want.Policy, f.want.Header, o.vary)
	if slot == f.slot {
		return
	}
	c.remove(f)
	f.slot = slot
	if c.fills[slot] == nil {
		c.fills[slot] = f
	}
}

// leave ends the fill for new askers and keeps what it brought, if that is anything.
func (f *fill) leave(e *entry) {
	c := f.cache
	defer f.writeOut()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(f)
	switch {
	case e == nil || f.outdated:
	case e.object == nil:
		c.put(c.place(f.want.Key, f.want.Policy, f.want.Header, nil), e, 0)
	case c.put(f.slot, e, f.reserved):
		f.reserved = 0
		c.counts.stored.Add(1)
		if f.slot != f.want.Key.URI {
			c.offers(f.want.Key, f.slot, e.object)
		}
	}
}

func (c *Cache) remove(f *fill) {
	if c.fills[f.slot] == f {
		delete(c.fills, f.slot)
	}
}

func (f *fill) over() {
	f.cache.mu.Lock()
	defer f.cache.mu.Unlock()
	delete(f.cache.active, f)
}
