package cache

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// kept fills the cache with a response of the distribution for each path and query.
func (w *world) kept(distribution string, paths ...string) {
	w.t.Helper()
	w.answer = soon("kept", "Cache-Control: max-age=3600", `Etag: "1"`)
	for _, at := range paths {
		if how, _, err := w.get(w.t.Context(), w.of(distribution, at)); err != nil || how != "filled" {
			w.t.Fatalf("%s: %q, %v", at, how, err)
		}
	}
}

func (w *world) of(distribution, at string, lines ...string) Want {
	path, query, _ := strings.Cut(at, "?")
	h := header(lines...)
	return Want{Key: w.policy.Key(Target{Distribution: distribution, Path: path, Query: query}, h), Policy: w.policy, Header: h, Fetch: w.fetch}
}

func TestAPurgeForgetsWhatItsPathsName(t *testing.T) {
	there := []string{"/", "/a", "/A", "/a/", "/a/b", "/a/b?x=1", "/a/b?x=1&y=2", "/a/bc", "/ab", "/d*", "/d*e", "/caf%C3%A9", "/caf%c3%a9"}
	for _, c := range []struct {
		paths []string
		gone  string // the places in there
	}{
		{[]string{"/a"}, "/a"},
		{[]string{"/a/b"}, "/a/b"}, // without its queries, as in CloudFront
		{[]string{"/a/b?"}, "/a/b"},
		{[]string{"/a/b?x=1"}, "/a/b?x=1"},
		{[]string{"/a/b?x=*"}, "/a/b?x=1 /a/b?x=1&y=2"},
		{[]string{"/a/b?*"}, "/a/b?x=1 /a/b?x=1&y=2"},
		{[]string{"/a/b*"}, "/a/b /a/b?x=1 /a/b?x=1&y=2 /a/bc"},
		{[]string{"/a/*"}, "/a/ /a/b /a/b?x=1 /a/b?x=1&y=2 /a/bc"},
		{[]string{"/a*"}, "/a /a/ /a/b /a/b?x=1 /a/b?x=1&y=2 /a/bc /ab"},
		{[]string{"/a*", "/a/b*", "/ab"}, "/a /a/ /a/b /a/b?x=1 /a/b?x=1&y=2 /a/bc /ab"},
		{[]string{"/A", "/"}, "/ /A"},
		{[]string{"/d%2A"}, "/d*"},
		{[]string{"/d*e"}, "/d*e"},
		{[]string{"/d**"}, "/d* /d*e"},
		{[]string{"/café"}, "/caf%C3%A9 /caf%c3%a9"},
		{[]string{"/caf%c3%a9"}, "/caf%C3%A9 /caf%c3%a9"},
		{[]string{"/*"}, strings.Join(there, " ")},
		{[]string{"/none", "/none/*", "a", ""}, ""},
		{nil, ""},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			w.policy = policy(keyed(none, none, all))
			w.kept("shop", there...)
			w.kept("other", "/a", "/a/b")
			w.Purge(Purge{Distribution: "shop", Items: c.paths})
			var gone []string
			for _, at := range there {
				if w.find(w.of("shop", at)).Object == nil {
					gone = append(gone, at)
				}
			}
			if got := strings.Join(gone, " "); got != c.gone {
				t.Errorf("%q: gone is %q, want %q", c.paths, got, c.gone)
			}
			if w.find(w.of("other", "/a")).Object == nil || w.find(w.of("other", "/a/b")).Object == nil {
				t.Errorf("%q: took from another distribution", c.paths)
			}
			if counts := w.Counters(); counts["cache_purged_total"] != uint64(len(gone)) || counts["cache_purges_total"] != uint64(min(1, len(c.paths))) {
				t.Errorf("%q: counted %v", c.paths, counts)
			}
		})
	}
}

func TestAPurgeOfNoDistributionIsOfAll(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.kept("shop", "/a")
		w.kept("other", "/b")
		w.Purge(Purge{Items: []string{"/*"}})
		if w.find(w.of("shop", "/a")).Object != nil || w.find(w.of("other", "/b")).Object != nil {
			t.Error("something is left")
		}
		time.Sleep(2 * sweepDelay)
		if w.bytes.Load() != 0 {
			t.Errorf("%d bytes are still held", w.bytes.Load())
		}
	})
}

func TestAPurgeTakesAllVariants(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.policy = policy(keyed(only("X-A"), only("c"), none))
		w.answer = soon("v", "Vary: Accept-Encoding, X-A")
		variants := [][]string{{}, {"X-A: 1"}, {"X-A: 2", "Accept-Encoding: gzip"}, {"Cookie: c=1"}}
		for _, v := range variants {
			w.mustGet("/a", "filled", "v", v...)
			w.mustGet("/b", "filled", "v", v...)
		}
		w.Purge(Purge{Distribution: "shop", Items: []string{"/a"}})
		for _, v := range variants {
			w.mustGet("/a", "filled", "v", v...)
			w.mustGet("/b", "hit", "v", v...)
		}
	})
}

func TestWhatWasPurgedOnItsWayIsNotKept(t *testing.T) {
	for _, before := range []bool{false, true} { // something is kept, and being validated
		inWorld(t, func(t *testing.T, w *world) {
			w.answer = soon("old", "Cache-Control: max-age=10", `Etag: "1"`)
			if before {
				w.mustGet("/", "filled", "old")
				time.Sleep(time.Minute)
				w.answer = func(context.Context, http.Header) (*http.Response, error) {
					time.Sleep(time.Second)
					return response(304, 0, http.NoBody, `Etag: "1"`), nil
				}
			}
			var wg sync.WaitGroup
			wg.Go(func() { w.get(t.Context(), w.want("/")) })
			defer wg.Wait()
			synctest.Wait()
			w.Purge(Purge{Distribution: "shop", Items: []string{"/*"}})
			w.answer = soon("new")
			w.mustGet("/", "filled", "new") // did not wait for the old one
			time.Sleep(time.Minute)
			w.mustGet("/", "hit", "new")
		})
	}
}

func TestWhatIsPurgedIsNotRefreshed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("old", "Cache-Control: max-age=1, stale-while-revalidate=100", `Etag: "1"`)
		w.mustGet("/", "filled", "old")
		time.Sleep(5 * time.Second)
		want := w.want("/")
		found := w.find(want)
		w.Purge(Purge{Items: []string{"/"}})
		w.Refresh(want, found)
		synctest.Wait()
		if n := w.asked.Load(); n != 1 {
			t.Errorf("the origin was asked %d times", n)
		}
	})
}

func TestPurgesAndFillsAtOnceLeaveNothingOld(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var mu sync.Mutex
		version := 0
		w.answer = func(context.Context, http.Header) (*http.Response, error) {
			mu.Lock()
			body := fmt.Sprint(version)
			mu.Unlock()
			return response(200, -1, strings.NewReader(body), "Cache-Control: max-age=1, stale-while-revalidate=3600", `Etag: "`+body+`"`), nil
		}
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for i := range 8 {
			wg.Go(func() {
				for n := i; ; n++ {
					select {
					case <-stop:
						return
					default:
						w.get(t.Context(), w.want(fmt.Sprintf("/%d", n%50)))
						time.Sleep(time.Millisecond)
					}
				}
			})
		}
		for range 100 {
			time.Sleep(50 * time.Millisecond)
			mu.Lock()
			version++
			now := version
			mu.Unlock()
			w.Purge(Purge{Distribution: "shop", Items: []string{"/*"}})
			for slot, e := range w.stored.All() {
				if e.object != nil && !w.alive(slot, e) {
					continue
				}
				if e.object != nil && string(e.object.Body) != fmt.Sprint(now) {
					t.Fatalf("%q is kept of %q after purge %d", e.object.Body, slot, now)
				}
			}
		}
		close(stop)
		wg.Wait()
	})
}

func TestBehindAFenceTheOriginIsAskedFirst(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		fresh := "Cache-Control: max-age=3600, stale-if-error=3600, stale-while-revalidate=3600"
		w.answer = soon("old", fresh, `Etag: "1"`)
		for _, path := range []string{"/same", "/changed", "/failing", "/unasked"} {
			w.mustGet(path, "filled", "old")
		}
		w.SetFence(true)

		w.answer = func(context.Context, http.Header) (*http.Response, error) {
			return response(304, 0, http.NoBody, `Etag: "1"`), nil
		}
		w.mustGet("/same", "validated", "old")
		w.mustGet("/same", "hit", "old") // once is enough
		w.answer = soon("new", fresh, `Etag: "2"`)
		w.mustGet("/changed", "filled", "new")
		w.mustGet("/changed", "hit", "new")
		w.mustGet("/first", "filled", "new")
		w.mustGet("/first", "hit", "new")
		w.answer = func(context.Context, http.Header) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }
		if how, body, err := w.get(t.Context(), w.want("/failing")); err == nil {
			t.Errorf("a failing origin was covered up: %q %q", how, body)
		}
		if n := w.Counters()["cache_fenced_total"]; n != 3 {
			t.Errorf("%d were fenced, want 3", n)
		}

		w.SetFence(true) // more is missing
		w.answer = soon("newer", fresh)
		w.mustGet("/first", "filled", "newer")

		w.SetFence(false)
		w.mustGet("/unasked", "hit", "old")
		w.mustGet("/failing", "hit", "old")
		w.mustGet("/changed", "hit", "new")
	})
}

func TestWhatWasAskedForBeforeTheFenceIsNotKept(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = soon("old")
		var wg sync.WaitGroup
		wg.Go(func() { w.mustGet("/", "filled", "old") }) // asked before, so it may have
		defer wg.Wait()
		synctest.Wait()
		w.SetFence(true)
		w.answer = soon("new")
		w.mustGet("/", "filled", "new")
		w.mustGet("/", "hit", "new")
	})
}

// FuzzPurge: what is purged is what the definition says, however many items are asked for at once, and however they are kept.
func FuzzPurge(f *testing.F) {
	f.Add("/a/b", "x=1", "/a/*", "/a/b?x=1")
	f.Add("/a%2fb", "", "/a/b", "*")
	f.Add("/a%", "?", "/a%*", "/a%??")
	f.Add("/é", "q", "/%C3%A9?q", "/%C3*")
	f.Add("/a", "", "#One", "#two")
	f.Add("/\xc3", "0", "0", "/%C3*") // is no UTF-8 without its escapes
	f.Fuzz(func(t *testing.T, path, query, one, two string) {
		slot := policy(keyed(none, none, all)).Key(Target{Distribution: "d", Path: path, Query: query}, http.Header{}).URI
		judged := func(distribution string, items ...string) bool {
			var p Purges
			p.Purge(Purge{Distribution: distribution, Items: items}, time.Unix(1, 0))
			v := p.Judge(slot+"anything", "one,three", 0)
			state, err := parseState((&noted{run: 1, rules: p.Rules()}).bytes()) // as on disk
			if err != nil {
				t.Fatal(err)
			}
			var again Purges
			for _, r := range state.rules {
				again.Add(r)
			}
			if again.Judge(slot, "one,three", 0) != v {
				t.Errorf("%q is judged otherwise after it was written down", items)
			}
			if p.Judge(slot, "one,three", p.Newest()) != (Verdict{}) {
				t.Errorf("%q: what came afterwards is purged", items)
			}
			return v.Hard
		}
		each := func(items ...string) bool { return judged("d", items...) }
		if both := each(one, two, "/never", "/ever*"); both != (each(one) || each(two) || each("/never") || each("/ever*")) {
			t.Errorf("%q of %q?%q: %v together, %v and %v apart", []string{one, two}, path, query, both, each(one), each(two))
		}
		literal := path
		if query != "" {
			literal += "?" + query
		}
		if !strings.ContainsAny(path, "?*") && !strings.HasPrefix(path, "#") && !strings.HasSuffix(query, "*") && !each(literal) {
			t.Errorf("%q does not name itself", literal)
		}
		if !each("/*") && strings.HasPrefix(path, "/") {
			t.Errorf("/* does not name %q", path)
		}
		if judged("e", "*") {
			t.Error("it took from another distribution")
		}
	})
}

func BenchmarkPurge(b *testing.B) {
	const objects = 100_000
	c := New(Config{Bytes: 1 << 30})
	defer c.Close()
	p := policy()
	for i := range objects {
		k := p.Key(Target{Distribution: "shop", Path: fmt.Sprintf("/some/folder/of/things/%d.jpg", i)}, http.Header{})
		c.mu.Lock()
		c.put(k.URI, &entry{object: &Object{Body: []byte("x")}}, 0)
		c.mu.Unlock()
	}
	paths := make([]string, 3000)
	for i := range paths {
		paths[i] = fmt.Sprintf("/other/%d/*", i)
	}
	for b.Loop() {
		c.Purge(Purge{Distribution: "shop", Items: paths})
	}
}

func TestAClosedCacheStartsNoSweep(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.Close()
		w.Purge(Purge{Items: []string{"/*"}})
		if w.sweeping {
			t.Error("it sweeps, and nobody waits for that")
		}
	})
}
