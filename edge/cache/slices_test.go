package cache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// large is a head of an object in slices, of that many bytes.
func large(size int64) *Object {
	return (&Object{Status: 200, Header: "Etag: \"a\"\r\n"}).headOf(size, `"a"`)
}

func TestSlicesCoverABodyOnce(t *testing.T) {
	for _, size := range []int64{1, SliceSize - 1, SliceSize, SliceSize + 1, 50 << 30, maxSliced} {
		o, last := large(size), (size-1)/SliceSize
		for _, n := range []int64{0, last / 2, last} {
			p := o.Slice(n)
			if p.Start != n*SliceSize || p.Length < 1 || p.Length > SliceSize || n < last && p.Length != SliceSize || n == last && p.Start+p.Length != size {
				t.Errorf("slice %d of %d bytes is %v", n, size, p)
			}
		}
	}
}

func TestASliceIsPurgedAsItsHeadIs(t *testing.T) {
	head := (&Policy{}).Key(Target{Distribution: "site", Path: "/films/a%20b", Query: "", Scheme: "https", Host: "www.test"}, nil)
	key := large(9*SliceSize).SliceKey(head, 7)
	if key == head || key.Variant != "" {
		t.Fatalf("%v is the key of a slice of %v", key, head)
	}
	for _, p := range []Purge{
		{Distribution: "site", Items: []string{"/films/a b"}}, {Distribution: "site", Items: []string{"/films/*"}}, {Distribution: "site", Items: []string{"/*"}},
		{Host: "www.test"}, {Distribution: "other", Items: []string{"/*"}}, {Distribution: "site", Items: []string{"/films/a"}}, {Distribution: "site", Items: []string{"#tag"}},
	} {
		var all Purges
		all.Purge(p, time.Unix(1, 0))
		if of, by := all.Judge(head.URI, "tag", 0), all.Judge(key.URI, "tag", 0); of != by {
			t.Errorf("purge of %s: %v, its slice %v", p, of, by)
		}
	}
	if a, b := large(9*SliceSize), large(9*SliceSize); a.SliceKey(head, 7) == b.SliceKey(head, 7) {
		t.Error("two versions share a slice")
	}
}

func TestOnlyTheSliceThatWasAskedForIsTakenForIt(t *testing.T) {
	const size = 3*SliceSize + 5
	for _, c := range []struct {
		status int
		length int64
		lines  []string
		want   error
	}{
		{206, SliceSize, []string{`Etag: "a"`, "Content-Range: bytes 1048576-2097151/3145733"}, nil},
		{206, SliceSize, []string{`Etag: "a"`, "Content-Range: BYTES 1048576-2097151/3145733"}, nil},
		{206, SliceSize, []string{`Etag: "b"`, "Content-Range: bytes 1048576-2097151/3145733"}, ErrChanged},
		{206, SliceSize, []string{`Etag: W/"a"`, "Content-Range: bytes 1048576-2097151/3145733"}, ErrChanged},
		{206, SliceSize, []string{"Content-Range: bytes 1048576-2097151/3145733"}, ErrRanges},
		{206, SliceSize, []string{`Etag: "a"`}, ErrRanges},
		{206, SliceSize, []string{`Etag: "a"`, "Content-Range: bytes 1048576-2097151/*"}, ErrRanges},
		{206, SliceSize, []string{`Etag: "a"`, "Content-Range: bytes 1048576-2097151/3145734"}, ErrRanges},
		{206, SliceSize, []string{`Etag: "a"`, "Content-Range: bytes 0-1048575/3145733"}, ErrRanges},
		{206, SliceSize, []string{`Etag: "a"`, "Content-Range: bytes 1048576-2097151/3145733", "Content-Range: bytes 1048576-2097151/3145733"}, ErrRanges},
		{206, SliceSize - 1, []string{`Etag: "a"`, "Content-Range: bytes 1048576-2097151/3145733"}, ErrRanges},
		{206, -1, []string{`Etag: "a"`, "Content-Range: bytes 1048576-2097151/3145733"}, ErrRanges},
		{200, size, []string{`Etag: "a"`}, ErrRanges},
		{200, -1, []string{`Etag: "a"`}, ErrRanges},
		{200, size + 1, []string{`Etag: "a"`}, ErrChanged},
		{200, size, []string{`Etag: "b"`}, ErrChanged},
		{200, size, nil, ErrChanged},
		{404, 0, nil, ErrChanged},
		{412, 0, nil, ErrChanged},
		{416, 0, nil, ErrChanged},
		{302, 0, nil, ErrChanged},
		{429, 0, nil, errSlice},
		{503, 0, nil, errSlice},
	} {
		h := http.Header{}
		for _, line := range c.lines {
			name, value, _ := strings.Cut(line, ": ")
			h.Add(name, value)
		}
		if got := large(size).checkSlice(1, &http.Response{StatusCode: c.status, ContentLength: c.length, Header: h}); got != c.want {
			t.Errorf("%d, %d bytes, %q: %v, want %v", c.status, c.length, c.lines, got, c.want)
		}
	}
}

func TestAStrongValidatorIsNeverGuessed(t *testing.T) {
	made := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	date := func(d time.Duration) string { return made.Add(d).Format(http.TimeFormat) }
	for _, c := range []struct{ tag, modified, made, want string }{
		{`"a"`, "", "", `"a"`},
		{`"a"`, date(0), date(0), `"a"`},
		{`W/"a"`, date(-time.Hour), date(0), ""},
		{"a", date(-time.Hour), date(0), ""},
		{"", date(-time.Second), date(0), date(-time.Second)},
		{"", date(0), date(0), ""},
		{"", date(time.Hour), date(0), ""},
		{"", date(-time.Hour), "", ""},
		{"", "yesterday", date(0), ""},
		{"", "", date(0), ""},
	} {
		h := http.Header{}
		for name, value := range map[string]string{"Etag": c.tag, "Last-Modified": c.modified, "Date": c.made} {
			if value != "" {
				h.Set(name, value)
			}
		}
		if got := strongValidator(h, made); got != c.want {
			t.Errorf("%v: %q, want %q", c, got, c.want)
		}
	}
}

func TestARangeOfABodyOfWhichNothingIsKnownIsAskedForInSlices(t *testing.T) {
	for asked, want := range map[string]string{
		"bytes=1048576-1048576": "bytes=1048576-2097151", "bytes=1048577-": "bytes=1048576-", "bytes=3145728-6291456": "bytes=3145728-7340031",
		"bytes=2097151-17592186044415": "bytes=1048576-", "bytes=2097151-99999999999999999999": "bytes=1048576-", "Bytes = 1048576-1048576": "bytes=1048576-2097151",
		"bytes=0-": "", "bytes=1048575-2097152": "", "bytes=-1048577": "", "bytes=1048576-1048577,2097152-": "", "bytes=1048577-1048576": "", "lines=1048576-": "", "bytes=": "",
		"bytes": "", "bytes=1048576": "", "bytes=17592186044416-": "",
	} {
		got := ""
		if start, last, ok := slicesOf(asked); ok {
			got = rangeFrom(start, last)
		}
		if got != want {
			t.Errorf("%q: the origin is asked for %q, want %q", asked, got, want)
		}
	}
}

// sliced keeps an object of some slices, all of them.
func (c *Cache) sliced(size int64) (Want, *Object) {
	p, head := policy(), large(size)
	head.ttl, head.received = time.Hour, time.Now()
	w := Want{Key: p.Key(Target{Distribution: "shop", Path: "/film", Host: "www.example.com"}, nil), Policy: p, Header: http.Header{}}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.put(w.Key.URI, &entry{object: head}, 0)
	for n := range (size-1)/SliceSize + 1 {
		c.put(head.SliceKey(w.Key, n).URI, &entry{object: typicalHead().whole(make([]byte, head.Slice(n).Length))}, 0)
	}
	return w, head
}

func TestWhereThereIsNoRoomForTheWholeTheSlicesStay(t *testing.T) {
	const size = 2*SliceSize + 5
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{Bytes: 16 << 20})
		defer c.Close()
		w, o := c.sliced(size)
		others := c.limit - c.slabs.size - allocated(size) - c.bytes.Load()
		c.bytes.Add(others) // there is room for the body, and for nothing of its entry
		c.join(w, o)
		head := c.Find(w.Key, w.Policy, w.Header, time.Now(), nil).Object
		if n := c.slicing.joined.Load(); n != 0 || head == nil || !head.InSlices() || c.allSlices(w, o) == nil {
			t.Errorf("%d joined, head %v, %d slices", n, head, len(c.allSlices(w, o)))
		}
		c.bytes.Add(-others)
		c.join(w, o)
		head = c.Find(w.Key, w.Policy, w.Header, time.Now(), nil).Object
		if n := c.slicing.joined.Load(); n != 1 || head == nil || !head.IsWhole(o) || c.allSlices(w, o) != nil {
			t.Errorf("%d joined, head %v, %d slices", n, head, len(c.allSlices(w, o)))
		}
	})
}

func TestWhatMayNotBeJoinedIsNotRead(t *testing.T) {
	for name, change := range map[string]func(c *Cache, w Want, head *Object){
		"a fill under way":   func(c *Cache, w Want, _ *Object) { c.fills[w.Key.URI] = new(fill) },
		"purged softly":      func(_ *Cache, _ Want, head *Object) { head.amend(func(r *rare) { r.soft = true }) },
		"held in a failure":  func(_ *Cache, _ Want, head *Object) { head.amend(func(r *rare) { r.held = 1 }) },
		"another version":    func(c *Cache, w Want, _ *Object) { c.put(w.Key.URI, &entry{object: large(5)}, 0) },
		"no head any more":   func(c *Cache, w Want, _ *Object) { c.stored.Invalidate(w.Key.URI) },
		"nothing is against": nil,
	} {
		synctest.Test(t, func(t *testing.T) {
			c := New(Config{Bytes: 64 << 20})
			defer c.Close()
			w, o := c.sliced(2*SliceSize + 5)
			c.mu.Lock()
			if change != nil {
				change(c, w, o)
			}
			c.mu.Unlock()
			c.Join(w, o)
			if change != nil && o.more().sliced.joining.Load() {
				t.Errorf("%s: it is begun", name)
			}
			synctest.Wait()
			if n := c.slicing.joined.Load(); (n == 1) != (change == nil) {
				t.Errorf("%s: %d joined", name, n)
			}
			c.mu.Lock()
			clear(c.fills)
			c.mu.Unlock()
		})
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-0/1", "bytes 1048576-2097151/3145733", "bytes */7", "bytes 5-4/9", "bytes 0-9/*", "bytes 0-99999999999999999999/9", "", "bytes", "-/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, size, ok := contentRange(s)
		if !ok {
			return
		}
		if p.Start < 0 || p.Length < 1 || p.Start+p.Length > size || size > maxSliced {
			t.Errorf("%q is %v of %d", s, p, size)
		}
		again := fmt.Sprintf("bytes %d-%d/%d", p.Start, p.Start+p.Length-1, size)
		if q, n, ok := contentRange(again); q != p || n != size || !ok {
			t.Errorf("%q is %v of %d, %q is %v of %d", s, p, size, again, q, n)
		}
	})
}

// streaming is a stream of so many slices of two bytes each.
func streaming(slices int) *stream {
	s := &stream{}
	var body strings.Builder
	for i := range slices {
		body.WriteString(strconv.Itoa(10 + i))
	}
	s.open(strings.NewReader(body.String()), 0, int64(slices-1))
	return s
}

func TestAStreamIsCutInOrderWhateverTheOrderOfTheTakers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := streaming(4)
		got := make(chan string, 4)
		for n := range int64(4) {
			if s.reserve(n + 1) {
				t.Errorf("slice %d is reserved before the one before it", n+1)
			}
			if !s.reserve(n) || s.reserve(n) {
				t.Errorf("slice %d is not reserved once", n)
			}
		}
		for n := int64(3); n >= 0; n-- {
			go func() {
				body := s.take(n, 2)
				b, err := io.ReadAll(body)
				time.Sleep(time.Second)
				body.Close()
				got <- fmt.Sprintf("%d %s %v", n, b, err)
			}()
			synctest.Wait()
		}
		for n := range 4 {
			if want := fmt.Sprintf("%d %d <nil>", n, 10+n); <-got != want {
				t.Errorf("want %s", want)
			}
		}
		<-s.over
	})
}

func TestAStreamEndsThatNobodyGoesOnWith(t *testing.T) {
	for name, c := range map[string]struct {
		does func(s *stream)
		ends time.Duration
	}{
		"nobody begins":               {func(s *stream) {}, streamStart},
		"nobody goes on":              {func(s *stream) { s.reserve(0); readSlice(s, 0) }, streamPatience},
		"a slice is not read up":      {func(s *stream) { s.reserve(0); s.take(0, 2).Close() }, 0},
		"the last was read":           {func(s *stream) { s.reserve(0); s.reserve(1); readSlice(s, 0); readSlice(s, 1) }, 0},
		"one before waits too long":   {func(s *stream) { s.reserve(0); s.reserve(1); s.take(1, 2) }, streamTurn},
		"it was ended while it waits": {func(s *stream) { s.reserve(0); s.reserve(1); go s.end(); s.take(1, 2) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, began := streaming(2), time.Now()
				c.does(s)
				<-s.over
				if got := time.Since(began); got != c.ends {
					t.Errorf("it ended after %s, want %s", got, c.ends)
				}
				if s.reserve(s.reserved) {
					t.Error("more of it is promised")
				}
				if s.body != nil {
					t.Error("its body is held on to")
				}
			})
		})
	}
}

func readSlice(s *stream, n int64) {
	body := s.take(n, 2)
	io.Copy(io.Discard, body)
	body.Close()
}

// bigFilm is what fills of objects of 5 MiB are to bring.
func bigFilm(path string) Want {
	const size = 5 << 20
	p := &Policy{MaxTTL: time.Hour, DefaultTTL: time.Hour}
	return Want{
		Key: p.Key(Target{Distribution: "d", Path: path}, nil), Policy: p, Header: http.Header{},
		Fetch: func(context.Context, http.Header) (*http.Response, error) {
			h := http.Header{"Etag": {`"a"`}, "Accept-Ranges": {"bytes"}}
			return &http.Response{StatusCode: 200, Header: h, ContentLength: size, Body: io.NopCloser(bytes.NewReader(make([]byte, size)))}, nil
		},
	}
}

// ask asks for it, and waits.
func (c *Cache) ask(t *testing.T, w Want) (*Ask, Result) {
	ask, err := c.Ask(t.Context(), w, c.Find(w.Key, w.Policy, w.Header, time.Now(), nil))
	if err != nil {
		t.Fatal(err)
	}
	res, err := ask.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return ask, res
}

func TestWhatIsLargeIsNoFillOnceItsHeadIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{Bytes: 16 << 20})
		defer c.Close()
		ask, res := c.ask(t, bigFilm("/"))
		defer ask.Close()
		if !res.Stored || !res.Object.InSlices() || res.Size != 5<<20 || res.Object.Size() != 5<<20 {
			t.Fatalf("%+v", res)
		}
		if _, err := ask.Next(); err != io.EOF {
			t.Errorf("of a head there is something to read: %v", err)
		}
		synctest.Wait()
		if n := c.Counters(); n["cache_fills"] != 0 || n["cache_slice_streams"] != 1 || n["cache_bytes"] > 4096 {
			t.Errorf("%d fills, %d streams, %d bytes", n["cache_fills"], n["cache_slice_streams"], n["cache_bytes"])
		}
		time.Sleep(streamStart)
		synctest.Wait()
		if n := c.Counters()["cache_slice_streams"]; n != 0 {
			t.Errorf("%d streams are left", n)
		}
	})
}

// What the origin sends to a Range of ours is one thing, and what it sends when it is asked for the whole another, which may be one request's alone.
func TestWhoIsAskedOnceMoreLeavesNoContextBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{Bytes: 16 << 20})
		defer c.Close()
		var all []context.Context
		w := bigFilm("/")
		w.Range = "bytes=1048576-"
		w.Soon = func(http.Header) (*http.Response, error) {
			return &http.Response{StatusCode: 416, Header: http.Header{}, Body: http.NoBody}, nil
		}
		w.Fetch = func(ctx context.Context, conditions http.Header) (*http.Response, error) {
			if all = append(all, ctx); conditions != nil {
				t.Errorf("it is asked for the whole by %v", conditions)
			}
			return &http.Response{StatusCode: 200, Header: http.Header{"Cache-Control": {"no-store"}}, ContentLength: 3, Body: io.NopCloser(strings.NewReader("abc"))}, nil
		}
		for range 100 {
			ask, res := c.ask(t, w)
			if b, err := ask.Next(); string(b) != "abc" || err != nil || res.Stored || res.Shared {
				t.Fatalf("%+v, %q, %v", res, b, err)
			}
			if ctx := all[len(all)-1]; ctx.Err() != nil {
				t.Fatal("its body has no context any more")
			}
			ask.Close()
		}
		synctest.Wait()
		for i, ctx := range all {
			if ctx.Err() == nil {
				t.Fatalf("of %d requests the %d. has a context still", len(all), i)
			}
		}
	})
}

func TestStreamsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{Bytes: 16 << 20})
		defer c.Close()
		for i := range maxStreams + 10 {
			ask, res := c.ask(t, bigFilm(fmt.Sprint("/", i)))
			synctest.Wait()
			if is, want := res.Object.more().sliced.stream.reserve(0), i < maxStreams; is != want {
				t.Errorf("object %d: its response is cut into slices: %v", i, is)
			} else if is {
				go readSlice(&res.Object.more().sliced.stream, 0) // far more than two bytes are left of it
			}
			ask.Close()
		}
		if n := c.Counters()["cache_slice_streams"]; n > maxStreams {
			t.Errorf("%d streams", n)
		}
	})
}

func TestPartsOfOneSliceTakeNoStreamsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{Bytes: 16 << 20})
		defer c.Close()
		seek := func(i, last int) *Object {
			w := bigFilm(fmt.Sprint("/", i))
			w.Range = fmt.Sprintf("bytes=%d-%d", SliceSize, last)
			w.Fetch = func(_ context.Context, conditions http.Header) (*http.Response, error) {
				if got, want := conditions.Get("Range"), fmt.Sprintf("bytes=%d-%d", SliceSize, last); got != want {
					t.Errorf("%q, want %q", got, want)
				}
				h := http.Header{"Etag": {`"a"`}, "Content-Range": {fmt.Sprintf("bytes %d-%d/%d", SliceSize, last, 5<<20)}}
				length := last + 1 - SliceSize
				return &http.Response{StatusCode: 206, Header: h, ContentLength: int64(length), Body: io.NopCloser(bytes.NewReader(make([]byte, length)))}, nil
			}
			ask, res := c.ask(t, w)
			defer ask.Close()
			return res.Object
		}
		for i := range maxStreams + 10 {
			o := seek(i, 2*SliceSize-1)
			synctest.Wait()
			if s := &o.more().sliced.stream; !s.reserve(1) {
				t.Fatalf("seek %d brought nothing", i)
			}
		}
		o := seek(-1, 3*SliceSize-1)
		synctest.Wait()
		if n := c.Counters()["cache_slice_streams"]; n != 1 || !o.more().sliced.stream.reserve(1) {
			t.Errorf("%d streams of several slices", n)
		}
	})
}
