package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
)

// origin is a Fetch that answers as the test says, and counts.
type origin struct {
	asked  atomic.Int32
	last   atomic.Pointer[http.Header] // the conditions it was asked with last
	answer func(ctx context.Context, conditions http.Header) (*http.Response, error)
}

func (o *origin) fetch(ctx context.Context, conditions http.Header) (*http.Response, error) {
	o.asked.Add(1)
	o.last.Store(&conditions)
	return o.answer(ctx, conditions)
}

// response makes a response; a size of −1 leaves the size of the body open.
func response(status int, size int64, body io.Reader, lines ...string) *http.Response {
	text, is := body.(*strings.Reader)
	return &http.Response{
		StatusCode: status, Header: header(lines...), ContentLength: size, Body: sent{io.NopCloser(body), is && int64(text.Len()) == size},
	}
}

// sent is a body that has come with its head, or not.
type sent struct {
	io.ReadCloser
	here bool
}

func (s sent) Here() bool { return s.here }

// soon answers with a body after a second.
func soon(body string, lines ...string) func(context.Context, http.Header) (*http.Response, error) {
	return func(context.Context, http.Header) (*http.Response, error) {
		time.Sleep(time.Second)
		return response(200, int64(len(body)), strings.NewReader(body), lines...), nil
	}
}

// world is a cache, a policy and an origin, in virtual time.
type world struct {
	*Cache
	*origin
	policy *Policy
	t      *testing.T
	here   bool // who asks first asks the origin itself
}

// inWorld tests twice: where fills are other goroutines' from the first, and where who asks first begins them.
func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	for _, here := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := &world{Cache: New(Config{Bytes: 8 << 20}), origin: &origin{}, policy: policy(), t: t, here: here}
			defer func() {
				w.Close()
				if len(w.fills)+len(w.active) > 0 || w.askers.Load() > 0 {
					t.Errorf("left behind: %v, %v, %d askers", w.fills, w.active, w.askers.Load())
				}
			}()
			if test(t, w); t.Failed() {
				t.Logf("where who asks first begins the fill: %v", here)
			}
		})
	}
}

func (w *world) want(path string, lines ...string) Want {
	h := header(lines...)
	want := Want{Key: w.policy.Key(Target{Distribution: "shop", Path: path}, h), Policy: w.policy, Header: h, Fetch: w.fetch}
	if w.here {
		w.beginHere(&want)
	}
	return want
}

// answered is what an origin has answered.
type answered struct {
	response *http.Response
	err      error
}

// beginHere gives a want a Soon, as who asks an origin has it: its Fetch goes on with what Soon has begun.
func (w *world) beginHere(want *Want) {
	var later chan answered
	ctx, cancel := context.WithCancel(context.Background())
	want.Soon = func(conditions http.Header) (*http.Response, error) {
		come := make(chan answered, 1)
		go func() {
			response, err := w.fetch(ctx, conditions)
			come <- answered{response, err}
		}()
		select {
		case a := <-come:
			if a.err == nil {
				a.response.Body = &ending{a.response.Body, cancel}
			}
			return a.response, a.err
		case <-time.After(500 * time.Millisecond):
			later = come
			return nil, ErrLater
		}
	}
	want.Fetch = func(under context.Context, conditions http.Header) (*http.Response, error) {
		if later == nil {
			return w.fetch(under, conditions)
		}
		come := later
		later = nil
		context.AfterFunc(under, cancel)
		a := <-come
		return a.response, a.err
	}
}

// ending is a body that ends what sends it when it is closed.
type ending struct {
	io.ReadCloser
	end func()
}

func (e *ending) Close() error {
	e.end()
	return e.ReadCloser.Close()
}

func (e *ending) Here() bool { s, is := e.ReadCloser.(sent); return is && s.here }

// Who breaks off while he asks the origin for others leaves them an error, and the next who asks a new fill.
func TestAPanicOfWhoAsksIsAnErrorForOthers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		if !w.here {
			return // it ends the process
		}
		want := w.want("/")
		want.Soon = func(http.Header) (*http.Response, error) {
			time.Sleep(500 * time.Millisecond)
			panic("broken")
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic is lost")
				}
			}()
			w.get(t.Context(), want)
		})
		synctest.Wait()
		if _, _, err := w.get(t.Context(), w.want("/")); err != errPanic {
			t.Errorf("who waited gets %v", err)
		}
		wg.Wait()
		w.answer = soon("well")
		w.mustGet("/", "filled", "well")
	})
}

// What one request alone reads ends with the cache, too, whoever began it.
func TestABodyOfOneRequestEndsWithTheCache(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = func(ctx context.Context, _ http.Header) (*http.Response, error) {
			r, pipe := io.Pipe()
			context.AfterFunc(ctx, func() { pipe.CloseWithError(ctx.Err()) })
			return response(200, 10, r, "Cache-Control: private"), nil
		}
		got := make(chan error)
		go func() {
			_, _, err := w.get(t.Context(), w.want("/"))
			got <- err
		}()
		synctest.Wait()
		w.Close()
		if err := <-got; err == nil || err == io.EOF {
			t.Errorf("got %v", err)
		}
	})
}

// A body that has come with its head is kept before who asked has read any of it, and whether he does or not.
func TestABodyThatIsHereIsKeptAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = func(context.Context, http.Header) (*http.Response, error) {
			return response(200, 4, strings.NewReader("here")), nil
		}
		ask, err := w.Ask(t.Context(), w.want("/"), w.find(w.want("/")))
		if err != nil {
			t.Fatal(err)
		}
		if r, err := ask.Wait(); err != nil || !r.Stored {
			t.Errorf("%+v, %v", r, err)
		}
		if w.here {
			w.mustGet("/", "hit", "here")
		}
		ask.Close()
		synctest.Wait()
		w.mustGet("/", "hit", "here")
	})
}

func (w *world) find(want Want) Found {
	return w.Find(want.Key, want.Policy, want.Header, time.Now(), nil)
}

// get is a whole request: from the cache if that is fresh, else by a fill.
func (w *world) get(ctx context.Context, want Want) (how, body string, err error) {
	found := w.find(want)
	if found.Apart {
		return "apart", "", nil
	}
	if o := found.Object; o != nil {
		switch found.Reuse(time.Now(), nil) {
		case Fresh:
			body, err := read(o)
			return "hit", body, err
		case StaleIfError:
			body, err := read(o)
			return "held", body, err
		case StaleWhileRevalidate:
			w.Refresh(want, found)
			body, err := read(o)
			return "stale", body, err
		}
	}
	ask, err := w.Ask(ctx, want, found)
	if err != nil {
		return "", "", err
	}
	defer ask.Close()
	r, err := ask.Wait()
	if err != nil {
		return "", "", err
	}
	how = map[How]string{Filled: "filled", Validated: "validated", Covered: "covered"}[r.How]
	if r.How != Filled {
		body, err = read(r.Object)
		return how, body, err
	}
	body, err = readAll(ask)
	return how, body, err
}

// together asks twice at a time for what is not shared.
func (w *world) together(path string, lines ...string) {
	w.t.Helper()
	var wg sync.WaitGroup
	var alone atomic.Int32
	for range 2 {
		wg.Go(func() {
			if _, _, err := w.get(w.t.Context(), w.want(path, lines...)); errors.Is(err, ErrAlone) {
				alone.Add(1)
			}
		})
	}
	if wg.Wait(); alone.Load() != 1 {
		w.t.Errorf("%s: %d are to ask on their own", path, alone.Load())
	}
}

func readAll(ask *Ask) (string, error) {
	var b strings.Builder
	for {
		piece, err := ask.Next()
		b.Write(piece)
		if err == io.EOF {
			return b.String(), nil
		}
		if err != nil {
			return b.String(), err
		}
	}
}

func (w *world) mustGet(path, how, body string, lines ...string) {
	w.t.Helper()
	gotHow, gotBody, err := w.get(w.t.Context(), w.want(path, lines...))
	if err != nil || gotHow != how || gotBody != body {
		w.t.Fatalf("%s %q: got %q %q, %v; want %q %q", path, lines, gotHow, gotBody, err, how, body)
	}
}

func TestAHundredAskersMakeOneFill(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("hello")
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { w.mustGet("/", "filled", "hello") })
		}
		wg.Wait()
		if n := w.asked.Load(); n != 1 {
			t.Errorf("the origin was asked %d times", n)
		}
		w.mustGet("/", "hit", "hello")
		synctest.Wait()
		c := w.Counters()
		if c["cache_fills_total"] != 1 || c["cache_collapsed_total"] != 99 || c["cache_objects"] != 1 || c["cache_fills"] != 0 {
			t.Errorf("counters %v", c)
		}
	})
}

// Who takes what was stale when it came has it together with others; beside one who does not each asks on his own, and none waits for another from then on.
func TestWhatWasStaleOnArrivalIsSharedByWhoTakesItSo(t *testing.T) {
	const takes = "Cache-Control: max-stale"
	for _, c := range []struct {
		name               string
		first, then        []string
		alone, apart, kept bool
	}{
		{"all take it", []string{takes}, []string{takes}, false, false, true},
		{"who asks first does not", nil, []string{takes}, false, false, true},
		{"who comes then does not", []string{takes}, nil, true, true, false},
		{"none does", nil, nil, true, true, false},
		{"it is too old for who comes then", []string{takes}, []string{takes + ", max-age=50"}, true, true, false},
		{"it is not too old", []string{takes}, []string{takes + ", max-age=70"}, false, false, true},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			w.policy.Directives = true
			w.answer = soon("old", "Cache-Control: max-age=10", "Age: 60")
			var wg sync.WaitGroup
			wg.Go(func() { w.mustGet("/", "filled", "old", c.first...) })
			synctest.Wait()
			for range 3 {
				wg.Go(func() {
					switch how, body, err := w.get(t.Context(), w.want("/", c.then...)); {
					case c.alone && !errors.Is(err, ErrAlone), !c.alone && (err != nil || how != "filled" || body != "old"):
						t.Errorf("%s: %s, %q, %v", c.name, how, body, err)
					}
				})
			}
			wg.Wait()
			synctest.Wait()
			if found, n := w.find(w.want("/")), w.asked.Load(); found.Apart != c.apart || (found.Object != nil) != c.kept || n != 1 {
				t.Errorf("%s: %+v, asked %d times", c.name, found, n)
			}
		})
	}
}

// A 304 may say that what was for all is for one request alone: who joined then asks on his own, though he would take it stale.
func TestWhatA304MakesOneRequestsIsNotForWhoTakesItStale(t *testing.T) {
	for lines, alone := range map[string]bool{"Vary: *": true, "Vary: X-Other": false} {
		inWorld(t, func(t *testing.T, w *world) {
			w.policy.Directives = true
			w.answer = soon("old", "Cache-Control: max-age=10", `Etag: "1"`)
			w.mustGet("/", "filled", "old")
			synctest.Wait()
			time.Sleep(time.Minute)
			w.answer = func(context.Context, http.Header) (*http.Response, error) {
				time.Sleep(time.Second)
				return response(304, 0, strings.NewReader(""), `Etag: "1"`, "Cache-Control: max-age=10", "Age: 60", lines), nil
			}
			var wg sync.WaitGroup
			wg.Go(func() { w.mustGet("/", "validated", "old") })
			synctest.Wait()
			wg.Go(func() {
				how, body, err := w.get(t.Context(), w.want("/", "Cache-Control: max-stale"))
				if alone && !errors.Is(err, ErrAlone) || !alone && (err != nil || body != "old") {
					t.Errorf("%s: %s, %q, %v", lines, how, body, err)
				}
			})
			wg.Wait()
		})
	}
}

func TestWhoLookedBeforeTheFillEndedLooksAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("hello")
		before := w.find(w.want("/"))
		w.mustGet("/", "filled", "hello")
		if _, err := w.Ask(t.Context(), w.want("/"), before); !errors.Is(err, ErrOther) || w.asked.Load() != 1 {
			t.Errorf("got %v after %d fetches", err, w.asked.Load())
		}
	})
}

func TestTheFillGoesOnWhenTheFirstAskerLeaves(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("hello")
		ctx, leave := context.WithCancel(t.Context())
		first := make(chan error)
		go func() {
			_, _, err := w.get(ctx, w.want("/"))
			first <- err
		}()
		synctest.Wait()
		second := make(chan string)
		go func() {
			_, body, _ := w.get(t.Context(), w.want("/"))
			second <- body
		}()
		synctest.Wait()
		leave()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("the first got %v", err)
		}
		if body := <-second; body != "hello" || w.asked.Load() != 1 {
			t.Errorf("the second got %q after %d fetches", body, w.asked.Load())
		}
	})
}

func TestTheFillGoesOnWhenAllLeave(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("hello")
		ctx, leave := context.WithTimeout(t.Context(), time.Millisecond)
		defer leave()
		if _, _, err := w.get(ctx, w.want("/")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		time.Sleep(2 * time.Second)
		w.mustGet("/", "hit", "hello")
	})
}

// dripping is a body of which a piece comes a second.
func dripping(pieces ...string) io.Reader {
	r, w := io.Pipe()
	go func() {
		for _, p := range pieces {
			time.Sleep(time.Second)
			w.Write([]byte(p))
		}
		w.Close()
	}()
	return r
}

func TestAskersReadWhileItFills(t *testing.T) {
	for _, size := range []int64{6, -1} {
		inWorld(t, func(t *testing.T, w *world) {
			w.answer = func(context.Context, http.Header) (*http.Response, error) {
				return response(200, size, dripping("ab", "cd", "ef")), nil
			}
			ask, err := w.Ask(t.Context(), w.want("/"), w.find(w.want("/")))
			if err != nil {
				t.Fatal(err)
			}
			defer ask.Close()
			if r, err := ask.Wait(); err != nil || r.Size != size || !r.Stored {
				t.Fatalf("%+v, %v", r, err)
			}
			began := time.Now()
			for i, want := range []string{"ab", "cd", "ef"} {
				piece, err := ask.Next()
				if string(piece) != want || err != nil || time.Since(began) != time.Duration(i+1)*time.Second {
					t.Fatalf("%q, %v after %v", piece, err, time.Since(began))
				}
				if i == 1 { // who comes late reads from the start at once
					late, err := w.Ask(t.Context(), w.want("/"), w.find(w.want("/")))
					if err != nil {
						t.Fatal(err)
					}
					late.Wait()
					if piece, _ := late.Next(); string(piece) != "abcd" {
						t.Fatalf("late: %q", piece)
					}
					late.Close()
				}
			}
			if _, err := ask.Next(); err != io.EOF {
				t.Fatalf("at the end: %v", err)
			}
			if o := w.find(w.want("/")).Object; o == nil || string(o.Body) != "abcdef" || o.Header.Get("Content-Length") != "6" {
				t.Fatalf("kept: %+v", o)
			}
		})
	}
}

// broken is a body that ends before its end.
func broken(s string) io.Reader { return io.MultiReader(strings.NewReader(s), errorReader{}) }

type errorReader struct{}

func (errorReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestATruncatedBodyIsAnErrorToAllAndIsNotKept(t *testing.T) {
	for name, answer := range map[string]func() *http.Response{
		"it breaks, size known":     func() *http.Response { return response(200, 10, broken("hello")) },
		"it breaks, size not known": func() *http.Response { return response(200, -1, broken("hello")) },
		"shorter than it said":      func() *http.Response { return response(200, 10, strings.NewReader("hello")) },
		"longer than it said":       func() *http.Response { return response(200, 5, strings.NewReader("hello, world")) },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.answer = func(context.Context, http.Header) (*http.Response, error) {
					time.Sleep(time.Second)
					return answer(), nil
				}
				var wg sync.WaitGroup
				for range 5 {
					wg.Go(func() {
						if _, body, err := w.get(t.Context(), w.want("/")); err == nil || body != "hello" {
							t.Errorf("got %q, %v", body, err)
						}
					})
				}
				wg.Wait()
				if f := w.find(w.want("/")); f.Object != nil || w.bytes.Load() != 0 {
					t.Errorf("kept %+v, %d bytes", f.Object, w.bytes.Load())
				}
			})
		})
	}
}

func TestAFailedFetchIsAnErrorToAllAndIsNotKept(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		down := errors.New("down")
		w.answer = func(context.Context, http.Header) (*http.Response, error) {
			time.Sleep(time.Second)
			return nil, down
		}
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if _, _, err := w.get(t.Context(), w.want("/")); !errors.Is(err, down) {
					t.Errorf("got %v", err)
				}
			})
		}
		wg.Wait()
		w.answer = soon("up")
		w.mustGet("/", "filled", "up")
	})
}

func TestWhatMayNotBeSharedIsTheFirstAskersAlone(t *testing.T) {
	for _, c := range []struct{ control, tag string }{
		{"private", ""}, {"no-store", ""}, {"max-age=0", ""}, {"no-cache", ""},
		{"max-age=0", `"a"`}, {"no-cache", `"a"`}, // kept, but each use is to be validated
	} {
		t.Run(c.control+c.tag, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.answer = soon("mine", "Cache-Control: "+c.control, "Etag: "+c.tag)
				var wg sync.WaitGroup
				var mine, alone atomic.Int32
				for range 10 {
					wg.Go(func() {
						switch _, body, err := w.get(t.Context(), w.want("/")); {
						case err == nil && body == "mine":
							mine.Add(1)
						case errors.Is(err, ErrAlone):
							alone.Add(1)
						default:
							t.Errorf("got %q, %v", body, err)
						}
					})
				}
				wg.Wait()
				if mine.Load() != 1 || alone.Load() != 9 {
					t.Errorf("%d got it, %d are to ask on their own", mine.Load(), alone.Load())
				}
				if f := w.find(w.want("/")); f.Apart == (c.tag != "") || (f.Object != nil) != (c.tag != "") {
					t.Errorf("found %+v", f)
				}
			})
		})
	}
}

func TestAKeyThatCannotBeSharedIsApartForAWhile(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("mine", "Cache-Control: private")
		for range 2 { // of who asks alone it is nothing to anybody else
			w.mustGet("/", "filled", "mine")
			if n := w.stored.EstimatedSize(); n != 0 {
				t.Errorf("%d entries are kept", n)
			}
		}
		w.together("/")
		w.mustGet("/", "apart", "")
		time.Sleep(apartFor)
		w.answer = soon("ours")
		w.mustGet("/", "filled", "ours")
		w.mustGet("/", "hit", "ours")
	})
}

// closing tells when a body is closed.
type closing struct {
	io.Reader
	closed *atomic.Bool
}

func (c closing) Close() error { c.closed.Store(true); return nil }

func TestWhatNobodyTakesIsClosed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var closed atomic.Bool
		var fetch context.Context
		w.answer = func(ctx context.Context, _ http.Header) (*http.Response, error) {
			time.Sleep(time.Second)
			fetch = ctx
			return &http.Response{StatusCode: 200, Header: header("Cache-Control: private"), ContentLength: 4, Body: closing{strings.NewReader("mine"), &closed}}, nil
		}
		ctx, leave := context.WithTimeout(t.Context(), time.Millisecond)
		defer leave()
		w.get(ctx, w.want("/"))
		time.Sleep(2 * time.Second)
		if !closed.Load() || fetch.Err() == nil {
			t.Errorf("closed %v, context %v", closed.Load(), fetch.Err())
		}
	})
}

func TestVariantsAreFilledAndFoundByThemselves(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.policy = policy(keyed(only("X-Lang"), none, none))
		byCoding := func(coding string) func(context.Context, http.Header) (*http.Response, error) {
			return soon("in "+coding, "Vary: Accept-Encoding")
		}
		w.answer = byCoding("br")
		w.mustGet("/", "filled", "in br", "Accept-Encoding: br", "X-Lang: ko")
		w.mustGet("/", "hit", "in br", "Accept-Encoding: br;q=0.5, deflate", "X-Lang: ko")
		w.answer = byCoding("gzip")
		w.mustGet("/", "filled", "in gzip", "Accept-Encoding: gzip", "X-Lang: ko")
		w.answer = byCoding("english br")
		w.mustGet("/", "filled", "in english br", "Accept-Encoding: br", "X-Lang: en")
		for _, c := range [][3]string{{"br", "ko", "in br"}, {"gzip", "ko", "in gzip"}, {"br", "en", "in english br"}} {
			w.mustGet("/", "hit", c[2], "Accept-Encoding: "+c[0], "X-Lang: "+c[1])
		}
		w.Invalidate(w.want("/").Key)
		if f := w.find(w.want("/", "Accept-Encoding: gzip", "X-Lang: ko")); f.Object != nil {
			t.Error("a variant outlived its URI")
		}
	})
}

func TestAWiderVaryDoesNotMixVariantsUp(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.policy = policy(keyed(none, only("s"), none))
		w.answer = soon("not found")
		w.mustGet("/", "filled", "not found")
		w.answer = soon("br", "Vary: Accept-Encoding")
		w.mustGet("/", "filled", "br", "Accept-Encoding: br", "Cookie: s=1")
		w.answer = soon("s2", "Vary: Cookie")
		w.mustGet("/", "filled", "s2", "Accept-Encoding: br", "Cookie: s=2")
		w.mustGet("/", "hit", "s2", "Accept-Encoding: br", "Cookie: s=2")
		w.answer = soon("plain")
		w.mustGet("/", "filled", "plain", "Cookie: s=1")
		w.mustGet("/", "hit", "plain", "Cookie: s=1")
	})
}

func TestACollapsedAskerOfAnotherVariantLooksAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("br", "Vary: Accept-Encoding")
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				if i > 0 {
					time.Sleep(time.Millisecond) // the first asks for br
				}
				coding := []string{"br", "gzip"}[i%2]
				_, body, err := w.get(t.Context(), w.want("/", "Accept-Encoding: "+coding))
				if i%2 == 0 && (body != "br" || err != nil) || i%2 == 1 && !errors.Is(err, ErrOther) {
					t.Errorf("%s: got %q, %v", coding, body, err)
				}
			})
		}
		wg.Wait()
		w.answer = soon("gzip", "Vary: Accept-Encoding")
		w.mustGet("/", "filled", "gzip", "Accept-Encoding: gzip")
		w.mustGet("/", "hit", "br", "Accept-Encoding: br")
	})
}

func TestAStaleResponseIsValidated(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("v1", `Etag: "1"`, "Last-Modified: "+at(0), "Cache-Control: max-age=10")
		w.mustGet("/", "filled", "v1")
		time.Sleep(10 * time.Second)
		w.answer = func(_ context.Context, check http.Header) (*http.Response, error) {
			time.Sleep(time.Second)
			return response(304, 0, strings.NewReader(""), `Etag: "1"`, "Cache-Control: max-age=20"), nil
		}
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() { w.mustGet("/", "validated", "v1") })
		}
		wg.Wait()
		if check := *w.last.Load(); w.asked.Load() != 2 || check.Get("If-None-Match") != `"1"` || check.Get("If-Modified-Since") != at(0) {
			t.Errorf("asked %d times, last with %v", w.asked.Load(), check)
		}
		time.Sleep(18 * time.Second) // the second it took counts as age
		w.mustGet("/", "hit", "v1")
		time.Sleep(time.Second)
		w.answer = soon("v2", `Etag: "2"`)
		w.mustGet("/", "filled", "v2")
	})
}

func TestAValidationIsSharedOnlyIfItLasts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("v1", `Etag: "1"`, "Cache-Control: no-cache")
		w.mustGet("/", "filled", "v1")
		w.answer = func(context.Context, http.Header) (*http.Response, error) {
			time.Sleep(time.Second)
			return response(304, 0, strings.NewReader("")), nil
		}
		var wg sync.WaitGroup
		var validated, alone atomic.Int32
		for range 5 {
			wg.Go(func() {
				switch how, _, err := w.get(t.Context(), w.want("/")); {
				case how == "validated":
					validated.Add(1)
				case errors.Is(err, ErrAlone):
					alone.Add(1)
				}
			})
		}
		wg.Wait()
		if validated.Load() != 1 || alone.Load() != 4 {
			t.Errorf("%d got it, %d are to ask on their own", validated.Load(), alone.Load())
		}
		w.mustGet("/", "validated", "v1")
	})
}

func TestA304ThatDoesNotFitIsAskedAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("v1", `Etag: "1"`, "Cache-Control: max-age=1")
		w.mustGet("/", "filled", "v1")
		time.Sleep(time.Second)
		w.answer = func(ctx context.Context, check http.Header) (*http.Response, error) {
			if check != nil {
				return response(304, 0, strings.NewReader(""), `Etag: "other"`), nil
			}
			return soon("v2")(ctx, nil)
		}
		w.mustGet("/", "filled", "v2")
	})
}

func TestA304ThatForbidsKeepingEndsIt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("v1", `Etag: "1"`, "Cache-Control: max-age=1")
		w.mustGet("/", "filled", "v1")
		time.Sleep(time.Second)
		w.answer = func(ctx context.Context, check http.Header) (*http.Response, error) {
			return response(304, 0, strings.NewReader(""), "Cache-Control: no-store"), nil
		}
		w.mustGet("/", "validated", "v1")
		w.mustGet("/", "apart", "")
	})
}

func TestStaleIsServedWhileItIsAskedForAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("v1", "Cache-Control: max-age=10, stale-while-revalidate=20")
		w.mustGet("/", "filled", "v1")
		time.Sleep(10 * time.Second)
		w.answer = soon("v2", "Cache-Control: max-age=10, stale-while-revalidate=20")
		began := time.Now()
		for range 10 {
			w.mustGet("/", "stale", "v1")
		}
		if time.Since(began) != 0 {
			t.Errorf("they waited %v", time.Since(began))
		}
		time.Sleep(2 * time.Second)
		w.mustGet("/", "hit", "v2")
		if w.asked.Load() != 2 {
			t.Errorf("asked %d times", w.asked.Load())
		}
		time.Sleep(31 * time.Second)
		w.mustGet("/", "filled", "v2")
	})
}

func TestAFailedOriginIsCoveredUpWhereItAllowedThat(t *testing.T) {
	failures := map[string]func(context.Context, http.Header) (*http.Response, error){
		"unreachable": func(context.Context, http.Header) (*http.Response, error) {
			time.Sleep(time.Second)
			return nil, errors.New("down")
		},
		"503": func(context.Context, http.Header) (*http.Response, error) {
			time.Sleep(time.Second)
			return response(503, 4, strings.NewReader("down")), nil
		},
	}
	for name, failure := range failures {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.answer = soon("v1", "Cache-Control: max-age=10, stale-if-error=60")
				w.mustGet("/", "filled", "v1")
				time.Sleep(10 * time.Second)
				w.answer = failure
				var wg sync.WaitGroup
				for range 5 {
					wg.Go(func() { w.mustGet("/", "covered", "v1") })
				}
				wg.Wait()
				began := time.Now()
				for range 5 { // the origin is left alone, and nobody waits for it
					w.mustGet("/", "held", "v1")
				}
				if w.asked.Load() != 2 || time.Since(began) != 0 {
					t.Errorf("asked %d times, waited %v", w.asked.Load(), time.Since(began))
				}
				time.Sleep(10 * time.Second)
				w.mustGet("/", "covered", "v1")
				time.Sleep(10 * time.Second)
				w.answer = soon("v2")
				w.mustGet("/", "filled", "v2")
			})
		})
	}
}

func TestAFailedOriginIsNotCoveredUpOtherwise(t *testing.T) {
	for _, control := range []string{"max-age=10", "max-age=10, stale-if-error=60, must-revalidate", "s-maxage=10, stale-if-error=60", "max-age=10, stale-if-error=5"} {
		t.Run(control, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.answer = soon("v1", "Cache-Control: "+control)
				w.mustGet("/", "filled", "v1")
				time.Sleep(20 * time.Second)
				w.answer = func(context.Context, http.Header) (*http.Response, error) {
					return response(503, 4, strings.NewReader("down")), nil
				}
				w.mustGet("/", "filled", "down")
				w.mustGet("/", "hit", "down") // for ErrorTTL
				time.Sleep(10 * time.Second)
				w.answer = soon("v2")
				w.mustGet("/", "filled", "v2")
			})
		})
	}
}

func TestAnotherErrorReplacesWhatWasKept(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("v1", "Cache-Control: max-age=10, stale-if-error=60")
		w.mustGet("/", "filled", "v1")
		time.Sleep(10 * time.Second)
		w.answer = func(context.Context, http.Header) (*http.Response, error) {
			return response(404, 4, strings.NewReader("gone")), nil
		}
		w.mustGet("/", "filled", "gone")
		w.mustGet("/", "hit", "gone")
	})
}

func TestWhatWasInvalidatedOnItsWayIsNotKept(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("old")
		done := make(chan struct{})
		go func() {
			w.mustGet("/", "filled", "old") // who asked before gets it
			close(done)
		}()
		synctest.Wait()
		w.Invalidate(w.want("/").Key)
		w.answer = soon("new")
		w.mustGet("/", "filled", "new") // who asks after does not
		<-done
		w.mustGet("/", "hit", "new")
	})
}

func TestALargeBodyIsNotKeptAndReachesWhoAsked(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		large := strings.Repeat("0123456789abcdef", 1<<16+1) // over an eighth of 8 MiB
		w.answer = func(context.Context, http.Header) (*http.Response, error) {
			return response(200, int64(len(large)), strings.NewReader(large)), nil
		}
		w.mustGet("/known", "filled", large)
		w.mustGet("/known", "apart", "")

		w.answer = func(context.Context, http.Header) (*http.Response, error) {
			time.Sleep(time.Second)
			return response(200, -1, strings.NewReader(large)), nil
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { w.mustGet("/unknown", "filled", large) })
		}
		wg.Wait()
		w.mustGet("/unknown", "apart", "")
		if c := w.Counters(); c["cache_stored_total"] != 0 || c["cache_bytes"] > 4<<10 {
			t.Errorf("counters %v", c)
		}
	})
}

func TestABodyWithoutRoomIsKeptOnceThereIsSome(t *testing.T) {
	body := strings.Repeat("x", 300<<10)
	for what, size := range map[string]int64{"a size that is known": int64(len(body)), "a size that is not": -1} {
		inWorld(t, func(t *testing.T, w *world) {
			w.answer = func(context.Context, http.Header) (*http.Response, error) {
				return response(200, size, strings.NewReader(body), "Cache-Control: max-age=60"), nil
			}
			others := w.limit - 64<<10
			if !w.reserve(others) {
				t.Fatal("there is no room for others")
			}
			for range 2 { // the second time neither is it apart
				w.mustGet("/", "filled", body)
				if f := w.find(w.want("/")); f.Apart || f.Object != nil {
					t.Errorf("%s: without room it is apart: %v, kept: %v", what, f.Apart, f.Object != nil)
				}
			}
			w.reserve(-others)
			w.mustGet("/", "filled", body)
			w.mustGet("/", "hit", body)
			if n := w.asked.Load(); n != 3 {
				t.Errorf("%s: the origin was asked %d times", what, n)
			}
		})
	}
}

func TestAClosedCacheStartsNoFill(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("too late")
		w.Close()
		if _, _, err := w.get(t.Context(), w.want("/")); !errors.Is(err, ErrBusy) || w.asked.Load() != 0 {
			t.Errorf("%v, and the origin was asked %d times", err, w.asked.Load())
		}
	})
}

func TestABodyThatIsTooLongIsApartForAWhile(t *testing.T) {
	for what, size := range map[string]int64{"a size that is known": 2 << 20, "a size that is not": -1} {
		inWorld(t, func(t *testing.T, w *world) {
			body := strings.Repeat("x", 2<<20)
			w.answer = func(context.Context, http.Header) (*http.Response, error) {
				return response(200, size, strings.NewReader(body), "Cache-Control: max-age=60"), nil
			}
			w.mustGet("/", "filled", body)
			if f := w.find(w.want("/")); !f.Apart {
				t.Errorf("%s: it is not apart", what)
			}
		})
	}
}

func TestABodyWithoutRoomIsAbandonedWhenAllHaveLeft(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		endless := make(chan struct{})
		w.answer = func(ctx context.Context, _ http.Header) (*http.Response, error) {
			r, pipe := io.Pipe()
			go func() {
				defer close(endless)
				for piece := make([]byte, 64<<10); ; {
					if _, err := pipe.Write(piece); err != nil {
						return
					}
				}
			}()
			return &http.Response{StatusCode: 200, Header: http.Header{}, ContentLength: -1, Body: r}, nil
		}
		ask, err := w.Ask(t.Context(), w.want("/"), w.find(w.want("/")))
		if err != nil {
			t.Fatal(err)
		}
		ask.Wait()
		for got := 0; got < 4<<20; {
			piece, err := ask.Next()
			if err != nil {
				t.Fatal(err)
			}
			got += len(piece)
		}
		if w.bytes.Load() > 2<<20 {
			t.Errorf("%d bytes are held", w.bytes.Load())
		}
		ask.Close()
		<-endless
		synctest.Wait()
		if w.bytes.Load() > 4<<10 || w.Counters()["cache_fills"] != 0 {
			t.Errorf("%d bytes are held, %d fills run", w.bytes.Load(), w.Counters()["cache_fills"])
		}
	})
}

func TestTheCacheHoldsNoMoreThanItMayUnderAFloodOfKeys(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		body := bytes.Repeat([]byte("x"), 64<<10)
		w.answer = func(context.Context, http.Header) (*http.Response, error) {
			return response(200, int64(len(body)), bytes.NewReader(body)), nil
		}
		var most atomic.Int64
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 200 {
					if _, got, err := w.get(t.Context(), w.want(fmt.Sprintf("/%d/%d", g, i))); err != nil || len(got) != len(body) {
						t.Errorf("got %d bytes, %v", len(got), err)
					}
					now := w.bytes.Load()
					for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
					}
				}
			})
		}
		wg.Wait()
		if most.Load() > w.limit {
			t.Errorf("%d bytes were held at once, limit %d", most.Load(), w.limit)
		}
		kept := int64(0)
		for _, e := range w.stored.All() {
			kept += int64(e.weight)
		}
		if held := w.bytes.Load(); held != kept || held < w.limit/2 {
			t.Errorf("%d bytes are counted, %d are kept, of %d", held, kept, w.limit)
		}
	})
}

func TestFillsAtOnceHoldNoMoreThanTheCacheMay(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		body := strings.Repeat("x", 1<<20)
		w.answer = func(context.Context, http.Header) (*http.Response, error) {
			return response(200, int64(len(body)), io.MultiReader(dripping("x"), strings.NewReader(body[1:]))), nil
		}
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() { w.mustGet(fmt.Sprint("/", i), "filled", body) }) // those without room stream through
		}
		synctest.Wait()
		if held := w.bytes.Load(); held > w.limit || held < 7<<20 {
			t.Errorf("%d bytes are held, limit %d", held, w.limit)
		}
		wg.Wait()
	})
}

func TestThereAreOnlySoManyFills(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = func(ctx context.Context, _ http.Header) (*http.Response, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		for i := range maxFills {
			ask, err := w.Ask(t.Context(), w.want(fmt.Sprint("/", i)), w.find(w.want(fmt.Sprint("/", i))))
			if err != nil {
				t.Fatal(err)
			}
			defer ask.Close()
		}
		if _, err := w.Ask(t.Context(), w.want("/more"), w.find(w.want("/more"))); !errors.Is(err, ErrBusy) {
			t.Errorf("one more: %v", err)
		}
		ask, err := w.Ask(t.Context(), w.want("/0"), w.find(w.want("/0")))
		if err != nil {
			t.Fatalf("joining one that runs: %v", err)
		}
		ask.Close()
		if w.askers.Load() != maxFills {
			t.Errorf("%d askers are counted", w.askers.Load())
		}
	})
}

func TestCloseEndsWhatIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{Cache: New(Config{}), origin: &origin{}, policy: policy(), t: t}
		w.answer = func(ctx context.Context, _ http.Header) (*http.Response, error) {
			r, pipe := io.Pipe()
			context.AfterFunc(ctx, func() { pipe.CloseWithError(ctx.Err()) })
			return response(200, 10, r), nil
		}
		got := make(chan error)
		go func() {
			_, _, err := w.get(t.Context(), w.want("/"))
			got <- err
		}()
		synctest.Wait()
		w.Close()
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

func TestAuthorizedResponsesAreSharedOnlyIfTheOriginSaysSo(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.policy = policy(keyed(only("Authorization"), none, none))
		w.answer = soon("secret", "Cache-Control: max-age=60")
		w.together("/", "Authorization: Basic x")
		w.mustGet("/", "apart", "", "Authorization: Basic x")
		w.mustGet("/", "filled", "secret")
		w.mustGet("/", "hit", "secret")
		w.answer = soon("shared", "Cache-Control: public, max-age=60")
		w.mustGet("/", "filled", "shared", "Authorization: Basic y")
		w.mustGet("/", "hit", "shared", "Authorization: Basic y")
	})
}

func TestExpiryOfAPolicyWithFloorNeedsNoOrigin(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.policy = policy(func(p *spec.CachePolicy) { ttls(60, 60, 60)(p) })
		w.answer = soon("v1", "Cache-Control: no-store")
		w.mustGet("/", "filled", "v1")
		time.Sleep(58 * time.Second)
		w.mustGet("/", "hit", "v1")
		time.Sleep(2 * time.Second)
		w.mustGet("/", "filled", "v1")
	})
}

func TestFewGoroutinesWaitForTheNextFill(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("x", "Cache-Control: no-store")
		for round, path := range []string{"/a%d", "/b%d"} {
			var people sync.WaitGroup
			for i := range 2 * maxSpare {
				people.Go(func() {
					if how, body, err := w.get(t.Context(), w.want(fmt.Sprintf(path, i))); how != "filled" || body != "x" || err != nil {
						t.Errorf("round %d: got %s, %q, %v", round, how, body, err)
					}
				})
			}
			people.Wait()
			synctest.Wait()
			if n := w.spare.Load(); n != maxSpare {
				t.Errorf("round %d: %d wait, want %d", round, n, maxSpare)
			}
		}
		if n := w.asked.Load(); n != 4*maxSpare {
			t.Errorf("the origin was asked %d times", n)
		}
	})
}

// One origin that is silent has half of the fills, two have a third each, and there are always some for others.
func TestOneOriginDoesNotTakeAllFills(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = func(ctx context.Context, _ http.Header) (*http.Response, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		asked := 0
		var asks []*Ask
		of := func(o *Origin) error { // many, until one is refused
			for {
				asked++
				want := w.want(fmt.Sprint("/", asked))
				want.Origin = o
				ask, err := w.Ask(t.Context(), want, w.find(want))
				if err != nil {
					return err
				}
				asks = append(asks, ask)
			}
		}
		first, second, third := new(Origin), new(Origin), new(Origin)
		for _, c := range []struct {
			of   *Origin
			runs int
		}{{first, maxFills / 2}, {second, maxFills / 4}, {third, maxFills / 8}, {first, maxFills / 2}} {
			if err := of(c.of); !errors.Is(err, ErrBusy) || c.of.fills != c.runs {
				t.Errorf("of one %d run, want %d: %v", c.of.fills, c.runs, err)
			}
		}
		if n := w.counts.crowded.Load(); n != 4 || w.counts.busy.Load() != 0 {
			t.Errorf("%d are counted as refused, want 4", n)
		}
		for _, ask := range asks {
			ask.Close()
		}
		w.Close()
		if left := first.fills + second.fills + third.fills; left != 0 {
			t.Errorf("%d are counted when none runs", left)
		}
	})
}

func TestWhatNobodyWaitsForMustNotDrip(t *testing.T) {
	for _, c := range []struct {
		name          string
		piece, pieces int // one a second
		leaves        bool
		kept          bool
		ends          time.Duration
	}{
		{"drips", 100, 600, true, false, 20 * time.Second},
		{"drips, and is read", 100, 60, false, true, time.Minute},
		{"is slow", lonelyRate + 100, 60, true, true, time.Minute},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			size := int64(c.piece * c.pieces)
			w.answer = func(ctx context.Context, _ http.Header) (*http.Response, error) {
				r, pipe := io.Pipe()
				context.AfterFunc(ctx, func() { pipe.CloseWithError(ctx.Err()) })
				go func() {
					for range c.pieces {
						time.Sleep(time.Second)
						if _, err := pipe.Write(make([]byte, c.piece)); err != nil {
							return
						}
					}
					pipe.Close()
				}()
				return response(200, size, r, "Cache-Control: max-age=600"), nil
			}
			start := time.Now()
			want := w.want("/")
			ask, err := w.Ask(t.Context(), want, w.find(want))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ask.Wait(); err != nil {
				t.Fatal(err)
			}
			if c.leaves {
				ask.Close()
			} else {
				for err == nil {
					_, err = ask.Next()
				}
				if err != io.EOF {
					t.Errorf("%s: %v", c.name, err)
				}
				ask.Close()
			}
			for running := 1; running > 0 && time.Since(start) < time.Hour; time.Sleep(100 * time.Millisecond) {
				w.mu.Lock()
				running = len(w.active)
				w.mu.Unlock()
			}
			if took := time.Since(start); took > c.ends+2*time.Second {
				t.Errorf("%s: it ran for %v", c.name, took)
			}
			if kept := w.find(want).Object != nil; kept != c.kept || (w.counts.abandoned.Load() == 0) != c.kept {
				t.Errorf("%s: kept: %v; %d are counted", c.name, kept, w.counts.abandoned.Load())
			}
			time.Sleep(2 * time.Second) // the origin sees that its body is closed
		})
	}
}

// What is brought up to date for nobody may take its time; and what is all here is kept, however long its last bytes took and whoever left.
func TestWhatIsAllHereOrRefreshedIsNotGivenUp(t *testing.T) {
	for _, c := range []struct {
		name    string
		refresh bool
		pauses  []time.Duration // before each piece
	}{
		{"a refresh computes in the middle", true, []time.Duration{0, 12 * time.Second, time.Second}},
		{"the last piece comes late", false, []time.Duration{0, time.Second, 15 * time.Second}},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			w.answer = func(ctx context.Context, _ http.Header) (*http.Response, error) {
				r, pipe := io.Pipe()
				context.AfterFunc(ctx, func() { pipe.CloseWithError(ctx.Err()) })
				go func() {
					for _, pause := range c.pauses {
						time.Sleep(pause)
						if _, err := pipe.Write([]byte("piece ")); err != nil {
							return
						}
					}
					pipe.Close()
				}()
				return response(200, int64(len("piece ")*len(c.pauses)), r, "Cache-Control: max-age=600"), nil
			}
			want := w.want("/")
			if c.refresh {
				w.Refresh(want, w.find(want))
			} else {
				ask, err := w.Ask(t.Context(), want, w.find(want))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := ask.Wait(); err != nil {
					t.Fatal(err)
				}
				ask.Close()
			}
			time.Sleep(time.Minute)
			if o := w.find(want).Object; o == nil || string(o.Body) != strings.Repeat("piece ", len(c.pauses)) || w.counts.abandoned.Load() > 0 {
				t.Errorf("%s: %v is kept; %d are counted as given up", c.name, o, w.counts.abandoned.Load())
			}
		})
	}
}
