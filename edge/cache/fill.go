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

	// ErrLater is for Want.Soon: there is no answer yet.
	ErrLater = errors.New("the origin has not answered yet")

	errPanic     = errors.New("the request that asked for it broke off")
	errAbandoned = errors.New("nobody reads the response any more")
	errLength    = errors.New("the body is not as long as its Content-Length")
)

// Fetch asks the origin for the whole response, or what conditions make of that: they are added to the request, if there are any, and may have a Range. The
// response's header must be clean: end to end fields only. Its body fails if it ends early. The context stays the
// body's until that is closed.
type Fetch func(ctx context.Context, conditions http.Header) (*http.Response, error)

// Want is what a fill is to bring.
type Want struct {
	Key    Key
	Policy *Policy
	Header http.Header // the viewer's; the fill, which outlives the request, has it too: it is not to be changed any more
	Fetch  Fetch
	// Soon is Fetch for who asks first, on the goroutine that waits for the outcome: it takes no longer than a second, and has an answer,
	// or ErrLater; then Fetch has it, which is called next with the same conditions. The body of its answer is under no context. Nil: the
	// fill is another goroutine's from the first.
	Soon func(conditions http.Header) (*http.Response, error)
	// Keep says whether what was brought is kept, besides being shared by those who asked meanwhile; nil: yes. It is asked when
	// it begins to come and when all is here, and must be quick.
	Keep func() bool
	// Rank is how near the origin those are that are asked; it never falls. A request joins only fills of its own rank and above: who
	// waits for a fill must not be who that waits for. Nil: 0. It must be quick.
	Rank func() int
	// Range is which part its asker wants, as he says it: of a response of which nothing is known the origin is asked for the slices in which that
	// lies, if it begins after the first. Empty: he wants all.
	Range string
	// Origin is what Fetch asks, in the end: of its fills there are not so many that others find none left. Nil: it is not counted.
	Origin *Origin

	begin func() // is called when a fill starts, before its Fetch; nil: nothing
}

// Origin is how a cache knows which fills have the same origin. The zero value is one of which none runs.
type Origin struct{ fills int } // that run, guarded by cache.mu

// Fills says whether fills of an origin run.
func (c *Cache) Fills(o *Origin) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return o.fills > 0
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
	era    uint32 // how many fences there were at the start

	origin   *Origin // want's when it began
	slot     string  // guarded by cache.mu, like
	outdated bool    // it was purged or invalidated: not to be kept
	weighed  bool    // whether it is kept was decided by its size, before it came, and
	tooLight bool    // it is not, if nobody joins
	headed   bool    // the response's head has come, and so its
	tags     string

	mu     sync.Mutex // guards what follows
	moved  sync.Cond  // something below has changed
	result Result     // How is 0 until the origin has answered
	shared bool
	alone  io.ReadCloser // the body, if it is the first asker's alone
	first  *Ask          // who asked first; nil when there was none or it left
	asks   map[*Ask]struct{}
	joined bool   // somebody has asked besides the first, and may wake who waits even when he has left
	sought bool   // somebody has asked
	body   []byte // what has come since base
	base   int64  // what has come and is dropped
	full   bool   // there was no room for the body: it is not kept, and is dropped once it is read
	ended  bool
	err    error

	reserved int64 // bytes of the cache's, for body

	lonely time.Time // since when nobody reads what comes; zero: somebody does
	since  int64     // bytes that have come from then on

	// Of who runs it:
	requested time.Time // when the origin was asked
	asked     bool      // once, and now without conditions
	// What is left to be done, if anything is; end ends the context, and is for who needs that for longer.
	rest func(ctx context.Context, end context.CancelFunc)
}

// firstPiece is the room a body whose size is not known begins with. It doubles from there.
const firstPiece = 4 << 10

// Refresh starts the fill of what was found stale, for nobody, unless it runs already.
func (c *Cache) Refresh(w Want, found Found) {
	c.mu.Lock()
	defer c.mu.Unlock()
	still := c.find(w.Key, w.Policy, w.Header, time.Now(), nil, false) == found // or else it was purged, say
	if still && c.fills[found.slot] == nil {
		if f := c.start(w, found, nil); f != nil {
			c.hire(f)
		}
	}
}

// start starts a fill, which is to be run by runHere or hire; nil if there are too many, or the cache is closed. c.mu is held.
func (c *Cache) start(w Want, found Found, first *Ask) *fill {
	if f := new(fill); c.launch(f, w, found, first) {
		return f
	}
	return nil
}

// launch is start of a fill that nobody knows of yet.
func (c *Cache) launch(f *fill, w Want, found Found, first *Ask) bool {
	left := maxFills - len(c.active)
	if left <= 0 || c.ctx.Err() != nil {
		c.counts.busy.Add(1)
		return false
	}
	if o := w.Origin; o != nil {
		if o.fills >= left {
			c.counts.crowded.Add(1)
			return false
		}
		o.fills++
	}
	f.cache, f.want, f.stale, f.fenced, f.era, f.slot, f.first = c, w, found.Object, found.Fenced, c.era, found.slot, first
	if f.asks == nil {
		f.asks = map[*Ask]struct{}{}
	}
	f.origin, f.moved.L = w.Origin, &f.mu
	if found.Others {
		f.others = c.offered(w)
	}
	if first != nil {
		first.fill, f.sought = f, true
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
	c.running.Add(1)
	return true
}

// hire has another goroutine run what is left of a fill.
func (c *Cache) hire(f *fill) {
	select {
	case c.next <- f:
	default:
		c.running.Go(func() { c.work(f) }) // the fill is among those that run: there is no end while it is given away
	}
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
	a.fill, f.joined, f.sought = f, true, true
	f.asks[a] = struct{}{}
	return true
}

// run asks the origin and sees to what it answers, as far as that was not done by runHere.
func (f *fill) run() {
	defer f.over()
	ctx, cancel := context.WithCancel(f.cache.ctx)
	defer func() {
		if f.alone == nil { // or else it ends with that
			cancel()
		}
	}()
	if f.rest == nil {
		if f.requested.IsZero() {
			f.requested = time.Now()
		}
		response, err := f.want.Fetch(ctx, f.conditions())
		f.heard(response, err, cancel)
	}
	if f.rest != nil {
		f.rest(ctx, cancel)
	}
}

// runHere is run for who asked first, for a moment; what takes longer another goroutine goes on with. So who waits for an origin that
// answers at once hands nothing over, and who reads slowly holds up no fill.
func (f *fill) runHere() {
	well := false
	defer func() {
		if !well { // a panic, which may be the end of this request, but not of those who wait for it
			f.leave(nil)
			f.fail(errPanic)
			f.over()
		}
	}()
	if f.requested.IsZero() {
		f.requested = time.Now()
	}
	response, err := f.want.Soon(f.conditions())
	if err != ErrLater {
		f.heard(response, err, nil)
	}
	if well = true; err == ErrLater || f.rest != nil {
		f.cache.hire(f)
		return
	}
	f.over()
}

// conditions are those that the origin is asked by; nil: by none.
func (f *fill) conditions() http.Header {
	switch {
	case f.asked:
		return nil
	case f.stale != nil:
		return conditions(f.stale)
	case len(f.others) > 0:
		return offering(f.others)
	}
	if start, last, ok := f.seeks(); ok {
		return http.Header{"Range": {rangeFrom(start, last)}}
	}
	return nil
}

// heard sees to what the origin answered, but for what may take longer, which is in f.rest then. End, if it is set, ends what the
// answer's body needs.
func (f *fill) heard(response *http.Response, err error, end context.CancelFunc) {
	f.rest = nil
	again := false
	if err == nil && f.conditions() != nil {
		switch _, _, sought := f.seeks(); {
		case response.StatusCode == http.StatusNotModified:
			response.Body.Close()
			if f.notModified(response, f.requested) {
				return
			}
			again = true
		case sought && response.StatusCode == http.StatusPartialContent:
			if f.parted(response) {
				return
			}
			again = true
		case sought && response.StatusCode != http.StatusOK: // it may be about the Range, which is ours: who asks for the whole may get that
			again = true
		}
	}
	if again {
		response.Body.Close()
		f.asked = true // once more, without conditions
		f.rest = func(ctx context.Context, end context.CancelFunc) {
			f.requested = time.Now()
			response, err := f.want.Fetch(ctx, nil)
			f.heard(response, err, end)
			if f.rest != nil {
				f.rest(ctx, end)
			}
		}
		return
	}
	if now := time.Now(); f.stale != nil && !f.fenced && failed(response, err) && f.stale.coversErrors(now) {
		status := 0
		if err == nil {
			status = response.StatusCode
			response.Body.Close()
		}
		f.covered(f.stale.holding(now.Add(f.want.Policy.ErrorTTL)), status)
		return
	}
	if err != nil {
		f.leave(nil)
		f.fail(err)
		return
	}
	f.take(response, end)
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
		kept = (&entry{object: &mine}).mark(renewal)
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
func (f *fill) take(response *http.Response, end context.CancelFunc) {
	p, received := f.want.Policy, time.Now()
	cc := ParseControl(response.Header)
	ok, why := p.Storable(response.StatusCode, cc, response.Header, f.authorized(), received)
	validator, cuts := f.cache.cuts(response.StatusCode, response.Header, response.ContentLength, received)
	own := cc.separate(response.Header)
	o := p.head(response.StatusCode, cc, response.Header, f.requested, received)
	o.era = f.era
	alone := o.on(response.Body)
	size := response.ContentLength
	switch {
	case !ok:
	case alone:
		ok, why = false, "peer"
	case !o.useful() && (!p.outlived(cc, response.Header, received) || f.refused(o, received)):
		ok, why = false, "ttl"
	case cuts:
	case size > f.cache.objectLimit():
		ok, why = false, tooLong
	case !f.room(size):
		ok, why = false, noRoom
	}
	result := Result{How: Filled, Object: o, Size: size, Status: o.Status, Stored: ok, WhyNot: why, Own: own}
	if !ok {
		f.hand(result, response.Body, end)
		return
	}
	if _, refused := p.tagged(response.Header); refused > 0 {
		f.cache.counts.badTags.Add(uint64(refused))
	}
	if cuts {
		f.rest = func(ctx context.Context, _ context.CancelFunc) {
			f.cut(ctx, o, response, Part{0, size}, size, validator, own)
		}
		return
	}
	f.settle(o)
	switch {
	case !f.keeps():
		result.Stored, result.WhyNot = false, "peer"
	case !f.willBeAdmitted(size):
		result.Stored, result.WhyNot = false, unadmitted
	}
	f.answer(result, o.shared())
	if isHere(response.Body) {
		f.bring(f.cache.ctx, o, response)
		return
	}
	f.rest = func(ctx context.Context, _ context.CancelFunc) {
		if end == nil {
			defer context.AfterFunc(ctx, func() { response.Body.Close() })()
		}
		f.bring(ctx, o, response)
	}
}

// isHere says whether a body has come with its head, so that to read it waits for nothing.
func isHere(body io.ReadCloser) bool {
	here, says := body.(interface{ Here() bool })
	return body == http.NoBody || says && here.Here()
}

// bring reads the body, and keeps what it is the body of.
func (f *fill) bring(ctx context.Context, o *Object, response *http.Response) {
	defer response.Body.Close()
	if err := f.read(ctx, response.Body, response.ContentLength); err != nil {
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
		dripping := int64(len(f.body)) != size && f.drips(n)
		f.moved.Broadcast()
		f.mu.Unlock()
		if err == io.EOF && (size < 0 || int64(len(f.body)) == size) {
			return nil
		}
		if err != nil {
			return f.truncated(err)
		}
		if dripping {
			f.cache.counts.abandoned.Add(1)
			return errAbandoned
		}
	}
}

const (
	// lonelyRate is the least that an origin has to send a second, in bytes, of what was asked for and nobody waits for any more: else the fill
	// ends. It is judged over lonelyTime; an origin that sends nothing at all is Fetch's to end.
	lonelyRate = 4 << 10
	lonelyTime = 10 * time.Second
)

// drips takes down that n bytes have come, and says whether that is too slow to be gone on with, for nobody. Then it is at its end: who
// asks from now on has another fill. A refresh that nobody has asked for is not judged: who asks has what is stale meanwhile, and would have it
// for ever if an origin that takes its time were given up each time. f.mu is held.
func (f *fill) drips(n int) bool {
	if len(f.asks) > 0 || !f.sought {
		f.lonely = time.Time{}
		return false
	}
	now := time.Now()
	f.since += int64(n)
	passed := now.Sub(f.lonely)
	switch {
	case f.lonely.IsZero():
	case passed < lonelyTime:
		return false
	case f.since < int64(passed/time.Second)*lonelyRate:
		f.err = errAbandoned
		return true
	}
	f.lonely, f.since = now, 0
	return false
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

// Why a body is not kept: there is no room for it as long as others are being filled, or it is too long.
const (
	noRoom  = "room"
	tooLong = "size"
)

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
func apartSince(t time.Time) *entry {
	e := &entry{}
	e.given.Store(t.Add(apartFor).UnixNano())
	return e
}

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
func (f *fill) hand(r Result, body io.ReadCloser, end context.CancelFunc) {
	if from := body; end == nil && !isHere(from) { // it was begun under no context
		stop := context.AfterFunc(f.cache.ctx, func() { from.Close() })
		end = func() { stop() }
	}
	if end != nil {
		body = &lasting{body, end}
	}
	f.leaveAlone(r.WhyNot, r.Status)
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
	f.headed, f.tags = true, o.more().tags
	slot := c.place(f.want.Key, f.want.Policy, f.want.Header, o.more().vary)
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
	case !f.admitted(e):
	case c.put(f.slot, e, f.reserved):
		f.reserved = 0
		c.counts.stored.Add(1)
		if f.slot != f.want.Key.URI {
			c.offers(f.want.Key, f.slot, e.object)
		}
	}
}

// leaveAlone is leave for a response that is one request's, and why. The key is kept apart where that spares anybody anything: others have
// waited for it, it is long, or something of it is kept that is not good any more. A key that is asked for now and then costs nothing; and that
// who asked first asked too early is no word on the key: else anybody could have a key kept apart by saying that he asks early.
func (f *fill) leaveAlone(why string, status int) {
	apart := f.stale != nil || len(f.others) > 0 || why == tooLong || f.crowded()
	if apart && why != noRoom && status != http.StatusTooEarly { // there may be some when it is asked for again
		f.leave(apartSince(time.Now()))
		return
	}
	f.cache.mu.Lock()
	defer f.cache.mu.Unlock()
	f.cache.remove(f)
}

// refused says whether others ask besides the first who do not take a response that is stale.
func (f *fill) refused(o *Object, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for a := range f.asks {
		if a != f.first && !f.want.Policy.takesStale(a.header, o, now) {
			return true
		}
	}
	return false
}

// crowded says whether others ask besides the first.
func (f *fill) crowded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for a := range f.asks {
		if a != f.first {
			return true
		}
	}
	return false
}

func (c *Cache) remove(f *fill) {
	if c.fills[f.slot] == f {
		delete(c.fills, f.slot)
	}
}

// over ends the fill. It may be called again.
func (f *fill) over() {
	c := f.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, active := c.active[f]; active {
		c.ends(f)
		c.running.Done()
	}
}

// ends takes a fill from those that run. c.mu is held.
func (c *Cache) ends(f *fill) {
	delete(c.active, f)
	if f.origin != nil {
		f.origin.fills--
	}
}
