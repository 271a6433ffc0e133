package cache

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// An object that is too large to be kept whole is kept in slices, if its origin offers ranges and gives it a strong validator,
// without which parts of two versions could not be told apart (RFC 9110 §15.3.7.3). Under its key stands its head, an Object
// without a body. Each slice is an Object of its own, under a key that is made of the head's, its version and the slice's number:
// so the bound of memory, eviction, purges and the one fill for all who wait hold for slices as they do for any response.
// So is one, of any size above a slice, whose first asker wants what is far within it (seeks): until all of it is there, and then it is kept
// whole if it is not too large for that (Join).
//
// The head alone knows the version, and that alone is fresh or stale: a slice is as good as the head that leads to it. So one 304
// is good for all slices, whoever takes the head away takes them all, and an object that has changed begins with a new version
// and no slices. A hard purge takes head and slices alike, for the keys are of one URI and the tags are the same.

const (
	// SliceSize is how much a slice is but for the last: what a viewer who seeks waits for, against one request to the origin for each.
	SliceSize = 1 << 20
	// maxSliced is the largest object that is kept in slices; one that is larger, or says so, streams to its asker.
	maxSliced = 1 << 44
	// maxStreams is how many responses that brought the whole of an object are kept open to be cut into slices. One more is closed at
	// once, and all its slices are asked for by ranges.
	maxStreams = 256
	// maxSingles is how many of these have but one slice: such a one is over with the fill of that, or when nobody wants it, so it keeps no place
	// from those that are read for long.
	maxSingles = maxFills
	// streamStart is how long the first slice of such a response may be left untouched: else it is ranges that are wanted.
	streamStart = time.Second
	// streamPatience is how long it may stand between two slices, while its viewer reads what came; then ranges go on.
	streamPatience = 30 * time.Second
	// streamTurn is how long one waits for the slices before one's own in it. Then ranges go on.
	streamTurn = 30 * time.Second
)

// slicedOverhead is what the head of an object in slices takes more than another's.
const slicedOverhead = 512

// Errors of slices.
var (
	// ErrChanged: the origin has another version of the object by now, or none. It is forgotten: look again.
	ErrChanged = errors.New("the object has changed at the origin")
	// ErrRanges: the origin offers ranges and does not answer them as such. The object is not kept in slices for a while: look again.
	ErrRanges = errors.New("the origin does not answer ranges as it should")

	errSlice = errors.New("the origin fails to send a slice")
)

// sliced is what the head of an object in slices knows of them. All heads of one version share it.
type sliced struct {
	size      int64
	version   uint64
	validator string // strong: an entity tag or a date, as If-Range has it
	stream    stream
	joining   atomic.Bool // its slices are being made one body
}

// slicing is what a Cache counts of slices.
type slicing struct {
	streams, singles                               atomic.Int64
	objects, sought, cut, ranged, changed, refused atomic.Uint64
	joined                                         atomic.Uint64
}

// InSlices says that the object is the head of one that is kept in slices.
func (o *Object) InSlices() bool { return o.more().sliced != nil }

// Slice is the place of slice n in the body.
func (o *Object) Slice(n int64) Part {
	start := n * SliceSize
	return Part{start, min(SliceSize, o.more().sliced.size-start)}
}

// SliceKey is the key of slice n of an object whose head is kept under k.
func (o *Object) SliceKey(k Key, n int64) Key {
	b := make([]byte, 0, len(k.URI)+48)
	b = append(b, strings.TrimSuffix(k.URI, methodPart)...)
	b = appendPart(b, "slice")
	b = appendPart(b, strconv.FormatUint(o.more().sliced.version, 36))
	return Key{URI: string(appendPart(b, strconv.FormatInt(n, 36)))}
}

// methodPart is method as the last part of a key's URI.
const methodPart = "3:" + method

// cuts says whether a response is to be kept in slices, and by which validator: it is too large to be kept whole, and offers
// what slices need.
func (c *Cache) cuts(status int, h http.Header, size int64, received time.Time) (validator string, ok bool) {
	if status != http.StatusOK || size <= c.objectLimit() || size > maxSliced || c.objectLimit() < SliceSize {
		return "", false
	}
	offered := false
	for _, line := range h["Accept-Ranges"] {
		for unit := range strings.SplitSeq(line, ",") {
			offered = offered || strings.EqualFold(trim(unit), "bytes")
		}
	}
	validator = strongValidator(h, received)
	return validator, offered && validator != ""
}

// strongValidator is a response's strong validator, as If-Range has it; empty: it has none. A date is strong if the origin says
// that it made the response a second later at least (RFC 9110 §8.8.2.2).
func strongValidator(h http.Header, received time.Time) string {
	if tag := h.Get("Etag"); strings.HasPrefix(tag, `"`) {
		return tag
	}
	modified, known := httpDate(h.Get("Last-Modified"), received)
	made, dated := httpDate(h.Get("Date"), received)
	if h.Get("Etag") == "" && known && dated && made.Sub(modified) >= time.Second {
		return h.Get("Last-Modified")
	}
	return ""
}

// headOf is the object as the head of one in slices.
func (o *Object) headOf(size int64, validator string) *Object {
	w := o.whole(nil)
	w.Header = o.Header.without(ownFields) + Header("Content-Length: "+strconv.FormatInt(size, 10)+"\r\n")
	w.amend(func(r *rare) { r.sliced = &sliced{size: size, version: rand.Uint64(), validator: validator} })
	return w
}

// cut keeps the response in slices. Its body is cut into them as they are asked for, in their order, until it has ended, nobody goes
// on, or they are asked for too slowly.
func (f *fill) cut(ctx context.Context, o *Object, response *http.Response, has Part, size int64, validator string, own http.Header) {
	defer response.Body.Close()
	c := f.cache
	o = o.headOf(size, validator)
	c.slicing.objects.Add(1)
	first, last := has.Start/SliceSize, (has.Start+has.Length-1)/SliceSize
	opened, most := &c.slicing.streams, int64(maxStreams)
	if first == last {
		opened, most = &c.slicing.singles, maxSingles
	}
	streams := opened.Add(1) <= most
	defer opened.Add(-1)
	s := &o.more().sliced.stream
	if streams {
		s.open(response.Body, first, last)
	}
	f.settle(o)
	f.leave(&entry{object: o})
	f.over() // a stream takes no fill's place
	f.answer(Result{How: Filled, Object: o, Size: size, Status: response.StatusCode, Stored: true, Own: own}, o.shared())
	f.end() // nothing is to be read of the head
	if !streams {
		return
	}
	select {
	case <-s.over:
	case <-ctx.Done():
		s.end()
	}
	s.idle.Stop()
}

// seeks is from where to where the origin is asked for a response of which nothing is known, when a part of it is wanted that begins after
// the first slice: whoever seeks waits for nothing that is before, and of the rest nothing is asked for until somebody wants it. Not ok: it is
// asked for the whole.
func (f *fill) seeks() (start, last int64, ok bool) {
	if f.want.Range == "" || f.asked || f.stale != nil || len(f.others) > 0 || f.cache.objectLimit() < SliceSize {
		return 0, 0, false
	}
	return slicesOf(f.want.Range)
}

// slicesOf is from where to where the slices are that a Range of one part touches, of a body whose size nobody knows. Last is the place of their
// last byte; maxSliced-1: they go to the end. Not ok: it is none, or one that begins in the first slice, or counts from the end.
func slicesOf(asked string) (start, last int64, ok bool) {
	unit, one, _ := strings.Cut(asked, "=")
	if one = trim(one); !strings.EqualFold(trim(unit), "bytes") || strings.HasPrefix(one, "-") {
		return 0, 0, false
	}
	p, is := parsePart(one, maxSliced)
	if !is || p.Length == 0 || p.Start < SliceSize {
		return 0, 0, false
	}
	last = p.Start + p.Length - 1
	return p.Start - p.Start%SliceSize, last - last%SliceSize + SliceSize - 1, true
}

// rangeFrom is a Range of one part, as slicesOf has it.
func rangeFrom(start, last int64) string {
	end := ""
	if last != maxSliced-1 {
		end = strconv.FormatInt(last, 10)
	}
	return "bytes=" + strconv.FormatInt(start, 10) + "-" + end
}

// parted makes a response that brought what was sought the head of an object in slices, and the first of them (RFC 9111 §3.3). The others are
// asked for when they are wanted, and what has the same strong validator is one object (§3.4). Not ok: without that, or where the origin sent
// something else, it is to be asked for the whole.
func (f *fill) parted(response *http.Response) (ok bool) {
	p, h, received := f.want.Policy, response.Header, time.Now()
	start, last, _ := f.seeks()
	has, size, told := partOf(h)
	validator := strongValidator(h, received)
	switch {
	case !told || has.Start != start || has.Start+has.Length != min(last+1, size) || response.ContentLength != has.Length:
		return false
	case validator == "" && size > f.cache.objectLimit(): // nor would the whole be kept
		f.partAlone(response, tooLong)
		return true
	case validator == "":
		return false
	}
	for _, name := range []string{"Content-Range", "Content-Digest", "Content-Md5"} { // these are about the part (RFC 9530 §2)
		delete(h, name)
	}
	cc := ParseControl(h)
	ok, why := p.Storable(http.StatusOK, cc, h, f.authorized(), received)
	_, refused := p.tagged(h)
	own := cc.separate(h)
	o := p.head(http.StatusOK, cc, h, f.requested, received)
	o.era = f.era
	alone := o.on(response.Body)
	switch {
	case !ok:
	case alone:
		why = "peer"
	case !o.useful():
		why = "ttl"
	}
	if why != "" {
		f.partAlone(response, why)
		return true
	}
	f.cache.counts.badTags.Add(uint64(refused))
	f.cache.slicing.sought.Add(1)
	f.rest = func(ctx context.Context, _ context.CancelFunc) { f.cut(ctx, o, response, has, size, validator, own) }
	return true
}

// partAlone ends a fill that brought a part of what may not be kept, and why: each asks for what he wants of it.
func (f *fill) partAlone(response *http.Response, why string) {
	response.Body.Close()
	f.leaveAlone(why, response.StatusCode)
	f.fail(ErrAlone)
}

// SliceOf is what a fill is to bring of slice n of an object in slices, where w is what would be to bring of the whole. Its Fetch may
// be called without a fill.
func (c *Cache) SliceOf(w Want, o *Object, n int64) Want {
	whole, next := w, false
	w.Key, w.Soon = o.SliceKey(w.Key, n), nil
	w.begin = func() { next = o.more().sliced.stream.reserve(n) }
	w.Fetch = func(ctx context.Context, _ http.Header) (*http.Response, error) {
		if next && !c.Spare() {
			o.more().sliced.stream.end() // a slice that is not kept goes at its viewer's pace, and would hold up those behind it
		}
		if next {
			if body := o.more().sliced.stream.take(n, o.Slice(n).Length); body != nil {
				c.slicing.cut.Add(1)
				return o.sliceResponse(w.Policy, body, o.Slice(n).Length, o.From()), nil
			}
		}
		c.slicing.ranged.Add(1)
		response, err := whole.Fetch(ctx, o.sliceConditions(n))
		if err != nil {
			return nil, err
		}
		if err := o.checkSlice(n, response); err != nil {
			response.Body.Close()
			c.misfit(whole, o, err)
			return nil, err
		}
		from := ""
		if l, is := response.Body.(*Lent); is {
			from = l.From
		}
		return o.sliceResponse(w.Policy, response.Body, response.ContentLength, from), nil
	}
	return w
}

// sliceConditions ask for slice n of the object's version.
func (o *Object) sliceConditions(n int64) http.Header {
	p := o.Slice(n)
	return rangeIf(o.more().sliced.validator, p.Start, strconv.FormatInt(p.Start+p.Length-1, 10))
}

// rangeIf asks for a part of a body, if it is still of that version. The last byte is a number; empty: the end.
func rangeIf(validator string, start int64, last string) http.Header {
	return http.Header{"Range": {"bytes=" + strconv.FormatInt(start, 10) + "-" + last}, "If-Range": {validator}}
}

// validatedBy is what a response has in the place of a validator.
func validatedBy(h http.Header, validator string) string {
	if strings.HasPrefix(validator, `"`) {
		return h.Get("Etag")
	}
	return h.Get("Last-Modified")
}

// partOf is the part that a response says it is, and the size of all; not ok: it does not say so once.
func partOf(h http.Header) (p Part, size int64, ok bool) {
	if len(h["Content-Range"]) != 1 {
		return Part{}, 0, false
	}
	return contentRange(h.Get("Content-Range"))
}

// checkSlice says what is wrong with the answer to sliceConditions, if it is not that slice.
func (o *Object) checkSlice(n int64, response *http.Response) error {
	h := response.Header
	is := validatedBy(h, o.more().sliced.validator)
	same := is == o.more().sliced.validator
	switch status := response.StatusCode; {
	case status >= 500 || status == http.StatusTooManyRequests:
		return errSlice
	case status == http.StatusPartialContent && is == "": // it may be of any version
		return ErrRanges
	case status != http.StatusPartialContent && status != http.StatusOK || !same:
		return ErrChanged
	case status == http.StatusOK && response.ContentLength >= 0 && response.ContentLength != o.more().sliced.size:
		return ErrChanged
	case status == http.StatusOK:
		return ErrRanges
	}
	part, size, ok := partOf(h)
	if !ok || size != o.more().sliced.size || part != o.Slice(n) || response.ContentLength != part.Length {
		return ErrRanges
	}
	return nil
}

// contentRange reads a Content-Range of bytes whose size is known (RFC 9110 §14.4).
func contentRange(s string) (p Part, size int64, ok bool) {
	unit, rest, _ := strings.Cut(s, " ")
	span, of, _ := strings.Cut(rest, "/")
	first, last, _ := strings.Cut(span, "-")
	from, fromOK := position(first)
	to, toOK := position(last)
	size, sizeOK := position(of)
	if !strings.EqualFold(unit, "bytes") || !fromOK || !toOK || !sizeOK || from > to || to >= size || size > maxSliced {
		return Part{}, 0, false
	}
	return Part{from, to - from + 1}, size, true
}

// sliceResponse is a slice as the response of a fill. It may be kept for as long as there is room: its head says what it is good for.
func (o *Object) sliceResponse(p *Policy, body io.ReadCloser, length int64, from string) *http.Response {
	h := http.Header{"Cache-Control": {"public"}}
	if p.TagHeader != "" {
		for name, value := range o.Header.All() {
			if name == p.TagHeader {
				h[name] = append(h[name], value)
			}
		}
	}
	terms := Terms{Kept: true, Shared: true, Fresh: sliceFresh, From: from}
	return &http.Response{StatusCode: http.StatusOK, Header: h, ContentLength: length, Body: &Lent{body, terms}}
}

// sliceFresh is for how long a slice is fresh: for ever.
const sliceFresh = 100 * 365 * 24 * time.Hour

// misfit takes note that an object's origin did not send a slice of it. What has changed is forgotten; what is not sent in ranges is
// kept apart.
func (c *Cache) misfit(w Want, o *Object, err error) {
	var kept *entry
	switch err {
	case ErrChanged:
		c.slicing.changed.Add(1)
	case ErrRanges:
		c.slicing.refused.Add(1)
		kept = apartSince(time.Now())
	default:
		return
	}
	defer c.shelf.writeOut(w.Key.URI)
	c.mu.Lock()
	defer c.mu.Unlock()
	found := c.find(w.Key, w.Policy, w.Header, time.Now(), nil, false)
	if found.Object == nil || !found.Object.InSlices() || found.Object.more().sliced.version != o.more().sliced.version {
		return // it is another by now
	}
	c.stored.Invalidate(found.slot)
	c.shelf.forget(found.slot)
	if kept != nil {
		c.put(c.place(w.Key, w.Policy, w.Header, nil), kept, 0)
	}
}

// Spare says whether there is room for another slice on its way, so that one may be asked for before it is needed.
func (c *Cache) Spare() bool { return c.bytes.Load()+2*SliceSize <= c.limit-c.slabs.size }

// Join makes one body of the slices of an object that was sought in before anybody asked for it, and is not too large to be kept whole: where all of them
// are kept, and there is room for both. W is what would be to bring of the whole. It does not wait for that, but may for the disk.
func (c *Cache) Join(w Want, o *Object) {
	s := o.more().sliced
	if s.size > c.objectLimit() || !s.joining.CompareAndSwap(false, true) {
		return
	}
	c.mu.Lock()
	_, ok := c.joins(w, o)
	c.mu.Unlock()
	ok = ok && c.allSlices(w, o) != nil
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok || c.ctx.Err() != nil {
		s.joining.Store(false)
		return
	}
	c.running.Go(func() {
		defer s.joining.Store(false)
		c.join(w, o)
	})
}

// joins finds the head of an object as it is kept now. Not ok: it is another by now, or about to be, and nothing is to be made one body. c.mu is held.
func (c *Cache) joins(w Want, o *Object) (head Found, ok bool) {
	head = c.find(w.Key, w.Policy, w.Header, time.Now(), nil, false)
	is := head.Object
	ok = is != nil && is.InSlices() && is.more().sliced.version == o.more().sliced.version && !is.Soft() && is.more().held == 0 && c.fills[head.slot] == nil
	return head, ok
}

// allSlices are the slices of an object, the last first, for the end is what is missing most often; nil: some are not kept.
func (c *Cache) allSlices(w Want, o *Object) (all []Found) {
	for n := (o.Size() - 1) / SliceSize; n >= 0; n-- {
		found := c.Find(o.SliceKey(w.Key, n), w.Policy, w.Header, time.Now(), nil)
		if found.Object == nil || found.Object.Size() != o.Slice(n).Length {
			return nil
		}
		all = append(all, found)
	}
	return all
}

func (c *Cache) join(w Want, o *Object) {
	size := o.Size()
	reserved := allocated(int(size))
	if !c.reserve(reserved) {
		return
	}
	defer func() { c.reserve(-reserved) }()
	all, body := c.allSlices(w, o), make([]byte, 0, size)
	for _, slice := range slices.Backward(all) {
		var err error
		if body, err = slice.Object.appendBody(body); err != nil {
			return
		}
	}
	if all == nil {
		return
	}
	if slot, ok := c.putJoined(w, o, all, body, &reserved); ok {
		c.shelf.writeOut(slot)
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, slice := range all {
			c.shelf.forget(slice.slot)
		}
	}
}

// putJoined keeps the body in the place of a head, and its slices in memory no more. Not ok: all stays as it is. On disk the slices are still, for what
// takes their place has yet to be written.
func (c *Cache) putJoined(w Want, o *Object, all []Found, body []byte, reserved *int64) (slot string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	head, ok := c.joins(w, o)
	if !ok {
		return "", false
	}
	whole := *head.Object
	if whole.body, whole.at = 0, nil; len(body) < largeBytes {
		whole.Body = body
	} else {
		whole.large = newLarge(body)
	}
	whole.amend(func(r *rare) { r.sliced = nil })
	e := &entry{object: &whole}
	e.seen.Store(c.newest.Load())
	if !c.hold(head.slot, e, *reserved) {
		return "", false
	}
	*reserved = 0
	c.shelf.put(head.slot, e)
	for _, slice := range all {
		c.stored.Invalidate(slice.slot)
	}
	c.slicing.joined.Add(1)
	return head.slot, true
}

// appendBody appends the body of a kept object.
func (o *Object) appendBody(to []byte) ([]byte, error) {
	body, err := o.Open()
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if err := body.Check(); err != nil {
		return nil, err
	}
	var block []byte
	space := func() []byte {
		if block == nil {
			block = make([]byte, BodyPiece)
		}
		return block
	}
	for at, size := int64(0), o.Size(); at < size; {
		piece, err := body.Piece(at, size-at, space)
		if err != nil {
			return nil, err
		}
		to = append(to, piece...)
		at += int64(len(piece))
	}
	return to, nil
}

// IsWhole says that an object is in one body what another is the head of.
func (o *Object) IsWhole(head *Object) bool {
	s := head.more().sliced
	name := "Last-Modified"
	if strings.HasPrefix(s.validator, `"`) {
		name = "Etag"
	}
	return o.Status == http.StatusOK && !o.InSlices() && o.Size() == s.size && o.Header.Get(name) == s.validator
}

// stream is the body of a response that brought an object, or what of it was sought, from which slices are cut in their order. A fill reserves its
// slice when it starts and takes it when it is its turn: so a viewer who reads on makes one request, and the origin is held to his
// pace. The zero stream has ended.
type stream struct {
	mu       sync.Mutex
	moved    sync.Cond
	body     io.Reader
	last     int64 // slice that it brings
	next     int64 // the slice that the body stands before, or in
	reserved int64 // the slice that is to be reserved next; those from next on will be taken
	taken    bool  // next is being read
	ended    bool
	idle     *time.Timer // runs while nothing is reserved
	over     chan struct{}
}

func (s *stream) open(body io.Reader, first, last int64) {
	s.moved.L = &s.mu
	s.body, s.next, s.reserved, s.last, s.over = body, first, first, last, make(chan struct{})
	s.idle = time.AfterFunc(streamStart, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.reserved == s.next {
			s.close()
		}
	})
}

// reserve says whether slice n is the next to be cut and not taken yet, and reserves it: then it must be taken.
func (s *stream) reserve(n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.body == nil || s.ended || n != s.reserved {
		return false
	}
	s.reserved++
	s.idle.Stop()
	return true
}

// take waits for the turn of a slice that was reserved, and is it; nil: the stream has ended.
func (s *stream) take(n, length int64) io.ReadCloser {
	late := time.AfterFunc(streamTurn, s.end)
	defer late.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.ended && (s.next != n || s.taken) {
		s.moved.Wait()
	}
	if s.ended {
		return nil
	}
	s.taken = true
	return &cutting{stream: s, left: length}
}

// end ends the stream: what is being read of it is the last.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close()
}

// close is end. s.mu is held.
func (s *stream) close() {
	if !s.ended {
		s.ended = true
		s.moved.Broadcast()
		if !s.taken {
			s.let()
		}
	}
}

// let lets go of the body: heads outlive it. s.mu is held.
func (s *stream) let() {
	s.body = nil
	close(s.over)
}

// done ends the reading of a slice.
func (s *stream) done(whole bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken = false
	if s.ended {
		s.let()
		return
	}
	if s.next++; !whole || s.next > s.last {
		s.close()
		return
	}
	if s.reserved == s.next {
		s.idle.Reset(streamPatience)
	}
	s.moved.Broadcast()
}

// cutting is a slice of a stream that is being read.
type cutting struct {
	*stream
	left   int64
	closed bool
}

func (c *cutting) Read(b []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	if c.closed {
		return 0, io.ErrClosedPipe
	}
	n, err := c.body.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	if c.left == 0 {
		return n, nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (c *cutting) Close() error {
	if !c.closed {
		c.closed = true
		c.done(c.left == 0)
	}
	return nil
}
