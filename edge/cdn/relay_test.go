package cdn

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/edge/cache"
	"github.com/perigee-net/perigee/edge/http1"
	"github.com/perigee-net/perigee/testbed/doorway"
)

// relayed has Relay answer a request. Where it does not, but has begun something, that is returned.
func relayed(t testing.TB, p *Plane, text string) (*http.Response, http1.Begun) {
	q := parsed(text)
	if q == nil {
		return nil, nil
	}
	q.Remote = netip.MustParseAddrPort("203.0.113.9:1234")
	var a http1.Response
	answered, begun := p.Relay(q, &a, func() []byte { return make([]byte, 0, 8<<10) })
	if !answered {
		return nil, begun
	}
	method := http.MethodGet
	if q.Head {
		method, a.Body = http.MethodHead, nil
	}
	r, err := http.ReadResponse(bufio.NewReader(io.MultiReader(bytes.NewReader(a.Head), bytes.NewReader(bytes.Clone(a.Body)))), &http.Request{Method: method})
	if err != nil || r.StatusCode != a.Status {
		t.Fatalf("%q is answered %d, %q: %v", text, a.Status, a.Head, err)
	}
	a.Done()
	return r, nil
}

// goesOn has ServeHTTP go on with what Relay has begun.
func goesOn(t testing.TB, p *Plane, text string, begun http1.Begun) *http.Response {
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	r.RemoteAddr = "203.0.113.9:1234"
	defer begun.Drop()
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r.WithContext(http1.Begin(r.Context(), begun)))
	return w.Result()
}

// unshared answers by the path with what is mostly one viewer's alone.
func unshared(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "text/plain")
	h.Set("ETag", `"x"`)
	h.Set("Date", "Fri, 31 Dec 1999 23:59:59 GMT")
	status := 200
	for word := range strings.SplitSeq(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:], "-") {
		switch word {
		case "kept":
			h.Set("Cache-Control", "max-age=3")
		case "stale":
			h.Set("Cache-Control", "max-age=0")
		case "unsaid":
			h["Cache-Control"] = nil
		case "own":
			h.Set("Cache-Control", `max-age=3, private="x-b, x-c"`)
			h.Set("X-B", "1")
			h["X-C"] = []string{"1", "2"}
		case "coded":
			h.Set("Content-Encoding", "x")
		case "private":
			h.Set("Cache-Control", "max-age=5, Private")
		case "named":
			h.Set("Cache-Control", `no-store, private="x-b"`)
		case "understood":
			h.Set("Cache-Control", "no-store, must-understand, max-age=0")
		case "cdn":
			h.Set("CDN-Cache-Control", "max-age=0")
		case "two":
			h.Add("Cache-Control", "no-cache")
		case "cookie":
			h.Add("Set-Cookie", "a=b")
			h.Add("Set-Cookie", "c=d")
		case "via":
			h.Set("Via", "1.1 inner")
		case "said":
			h.Add("Cache-Status", "inner; hit")
			h.Set("X-Cache", "Hit from another")
			h.Set("X-Perigee-Pop", "x")
			h.Set("X-Perigee-Id", "x")
			h.Set("Accept-Ranges", "none")
			h.Set("Age", "3")
			h.Set("Alt-Svc", `h3=":443"`)
		case "undated":
			h["Date"] = nil
		case "untyped":
			h["Content-Type"] = nil
		case "connection":
			h.Set("Connection", "x-b")
			h.Set("X-B", "1")
		case "vary":
			h.Set("Vary", "Accept-Encoding, X-A")
		case "any":
			h.Set("Vary", "*")
		case "moved":
			status = 302
			h.Set("Location", "/")
		case "gone":
			status = 410
		case "failed":
			status = 503
		case "odd":
			status = 299
		case "empty":
			status = 204
		case "part":
			status = 206
		case "flushed":
			w.(http.Flusher).Flush()
		case "long":
			fmt.Fprint(w, strings.Repeat("x", 10<<10))
		}
	}
	w.WriteHeader(status)
	if status != 204 && !strings.HasSuffix(r.URL.Path, "blank") {
		fmt.Fprintf(w, "%s %s %q %q", r.URL, r.Header.Get("Accept-Encoding"), r.Header["X-A"], r.Header["Origin"])
	}
}

// momentary are the numbers in an answer that depend on when it was made.
var momentary = regexp.MustCompile(`(?:ttl=|Age: )-?\d+`)

// alike says whether two answers are the same that were made shortly one after the other.
func alike(one, two string) bool {
	a, b := momentary.FindAllString(one, -1), momentary.FindAllString(two, -1)
	if len(a) != len(b) || momentary.ReplaceAllString(one, "") != momentary.ReplaceAllString(two, "") {
		return false
	}
	for i := range a {
		var m, n int
		for text, to := range map[string]*int{a[i]: &m, b[i]: &n} {
			fmt.Sscan(text[strings.IndexAny(text, "= ")+1:], to)
		}
		if a[i][0] != b[i][0] || a[i] != b[i] && m-n != 1 && n-m != 1 {
			return false
		}
	}
	return true
}

// Of two nodes one relays, and goes on with what was begun by that; the other has ServeHTTP answer everything. To whatever is asked in turn they
// answer alike, they ask the origin alike, and so they keep the same.
func TestRelayAnswersAsServeHTTPDoes(t *testing.T) {
	inWorld(t, manifold, func(t *testing.T, w *world) {
		w.origin(unshared)
		plain := New(w.cfg)
		defer plain.Close()
		if err := plain.Apply(build(t, manifold)); err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(3, 4))
		pick := func(from ...string) string { return from[r.IntN(len(from))] }
		maybe := func(one int, s string) string {
			if r.IntN(one) == 0 {
				return s
			}
			return ""
		}
		asked := func() (all []string) { // what the origin was, since the last time
			synctest.Wait()
			for _, q := range w.asked {
				h := q.Header.Clone()
				h.Del("X-Perigee-Id")
				all = append(all, fmt.Sprint(q.Method, q.RequestURI, q.Host, h))
			}
			w.asked = nil
			return all
		}
		answered, stored, begun := map[string]int{}, map[string]int{}, 0
		for i := range 2500 {
			if i%100 == 0 { // so that much is a miss
				for _, p := range []*Plane{w.Plane, plain} {
					if err := p.Purge(cache.Purge{Distribution: "one", Items: []string{"/*"}}); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Second)
			}
			policy := pick("/", "/", "/", "/coding/", "/some/", "/but/", "/all/", "/cookies/", "/off/", "/host/")
			path := policy + maybe(2, pick("a", "b", "c", "d", "e")+"/") + pick("x", "x", "private", "named", "understood", "cdn", "two", "cookie", "via", "said", "undated", "untyped", "connection", "vary",
				"any", "moved", "gone", "failed", "odd", "empty", "part", "flushed", "long", "cookie-said", "private-vary", "blank", "a%20b", "./x", "é", "kept", "kept", "kept-vary", "kept-vary", "kept-own", "kept-own-said",
				"kept-cookie", "kept-via", "kept-said", "kept-undated", "kept-untyped", "kept-long", "kept-moved", "kept-gone", "kept-any", "kept-coded", "kept-blank", "stale", "unsaid", "unsaid-failed")
			text := pick("GET", "GET", "GET", "HEAD") + " " + path + maybe(3, "?"+pick("", "a=1", "b=2&a=1", "n=1")) + " HTTP/1.1\r\n" +
				"Host: " + pick("one.test", "one.test", "deep.one.test", "one.test:80", "One.test", "two.test") + "\r\n" +
				maybe(3, "Accept-Encoding: "+pick("gzip", "br, gzip;q=0.5", "identity", "gzip\r\naccept-encoding: br")+"\r\n") + maybe(4, pick("X-A: 1", "x-a: 1,2", "X-A: 1\r\nX-a: 2")+"\r\n") +
				maybe(4, "Cookie: "+pick("a=1", "a=1; b=2", "b=2\r\nCookie: a=1")+"\r\n") + maybe(6, "Origin: http://x\r\n") +
				maybe(6, "User-Agent: "+pick("x", "")+"\r\n") + maybe(8, "Accept-Language: "+pick("de, en;q=0.5", "EN;q=0.5,de")+"\r\n") + maybe(12, pick("Via: 1.1 x", "X-Forwarded-For: 192.0.2.9", "Range: bytes=0-1", "Cache-Control: no-cache", "Connection: keep-alive",
				"Authorization: x", "Early-Data: 1", "CDN-Loop: x", "Pragma: no-cache")+"\r\n") + "\r\n"
			got, left := relayed(t, w.Plane, text)
			switch {
			case left != nil:
				begun++
				if i%3 == 0 {
					left.Drop()
					asked()
					continue
				}
				got = goesOn(t, w.Plane, text, left)
			case got != nil:
				answered[policy]++
				if strings.Contains(got.Header.Get("Cache-Status"), "; stored") {
					stored[policy]++
				}
			default:
				got = slowly(t, w.Plane, text)
			}
			first := asked()
			other := slowly(t, plain, text)
			if second := asked(); !slices.Equal(first, second) {
				t.Fatalf("%s\nasks\n%s\n\nand by ServeHTTP\n%s", text, first, second)
			}
			if date := got.Header.Get("Date"); strings.HasPrefix(date, "Sat") { // it was not said, and is now
				other.Header.Set("Date", date)
			}
			one, two := written(t, got), written(t, other)
			if !alike(one, two) {
				t.Fatalf("%s\nis answered\n%s\n\nand by ServeHTTP\n%s", text, one, two)
			}
		}
		for _, policy := range []string{"/", "/but/", "/coding/", "/some/", "/cookies/", "/off/"} {
			if answered[policy] < 30 || (stored[policy] < 8) != (policy == "/off/") {
				t.Errorf("of %s %d were answered, %d of these stored", policy, answered[policy], stored[policy])
			}
		}
		if answered["/all/"]+answered["/host/"] > 0 || begun < 30 {
			t.Errorf("%v were answered, %d begun", answered, begun)
		}
		for _, p := range []*Plane{w.Plane, plain} {
			if n := p.Counters()["cache_fills"]; n != 0 {
				t.Errorf("%d fills have not ended", n)
			}
		}
		one, two := w.Counters(), plain.Counters()
		for _, name := range []string{"cache_objects", "cache_bytes", "cdn_passes_total"} {
			if one[name] == 0 || one[name] != two[name] {
				t.Errorf("%s: %d, and by ServeHTTP %d", name, one[name], two[name])
			}
		}
	})
}

// Whoever asks meanwhile joins the fill that Relay leads, and is told that what comes is not for him; then he asks on his own.
func TestWhoJoinsARelayIsAnswered(t *testing.T) {
	for _, control := range []string{"no-store", "max-age=60"} {
		inWorld(t, site("minTTL: 0"), func(t *testing.T, w *world) {
			w.origin(func(rw http.ResponseWriter, r *http.Request) {
				says(300*time.Millisecond, "x", "Cache-Control: "+control, "Content-Type: text/plain")(rw, r)
			})
			w.get("/warm")
			before := len(w.requests())
			var all sync.WaitGroup
			for i := range 4 {
				all.Go(func() {
					time.Sleep(time.Duration(i) * 10 * time.Millisecond)
					if a := w.get("/cold"); a.StatusCode != 200 || a.body != "x" {
						t.Errorf("%s: answered %d %q", control, a.StatusCode, a.body)
					}
				})
			}
			all.Wait()
			want := map[string]int{"no-store": 4, "max-age=60": 1}[control]
			if n := len(w.requests()) - before; n != want {
				t.Errorf("%s: the origin was asked %d times, not %d", control, n, want)
			}
			if w.doorway.Begun.Load() == 0 {
				t.Error("nothing was begun")
			}
		})
	}
}

// What takes longer than a moment, or breaks, is ServeHTTP's.
func TestALateAnswerToARelayIsPassedOn(t *testing.T) {
	inWorld(t, site("minTTL: 0"), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/late":
				time.Sleep(4 * time.Second)
			case "/broken":
				panic(http.ErrAbortHandler)
			case "/hint":
				rw.Header().Set("Link", "</a>")
				rw.WriteHeader(http.StatusEarlyHints)
			case "/cut":
				rw.Header().Set("Content-Length", "9")
			}
			rw.Header().Set("Cache-Control", "no-store")
			io.WriteString(rw, r.URL.Path)
			if r.URL.Path == "/cut" {
				rw.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
		})
		for range 3 {
			w.get("/warm")
			for _, path := range []string{"/late", "/hint"} {
				if a := w.get(path); a.StatusCode != 200 || a.body != path {
					t.Errorf("%s: answered %d %q", path, a.StatusCode, a.body)
				}
			}
			w.get("/warm")
			if a := w.get("/broken"); a.StatusCode != http.StatusBadGateway {
				t.Errorf("answered %d", a.StatusCode)
			}
			w.get("/warm")
			if a, err := w.ask(t.Context(), "GET", "/cut", ""); err == nil && a.err == nil {
				t.Errorf("what was cut off is whole: %q", a.body)
			}
		}
		if w.doorway.Relayed.Load() == 0 || w.doorway.Begun.Load() < 6 {
			t.Errorf("%d were relayed, %d begun", w.doorway.Relayed.Load(), w.doorway.Begun.Load())
		}
		synctest.Wait()
		if n := w.Counters()["cache_fills"]; n != 0 {
			t.Errorf("%d fills have not ended", n)
		}
	})
}

func TestARelayAllocatesNothingButTheKey(t *testing.T) {
	p := New(Config{CacheBytes: 8 << 20, Dial: func(context.Context, string, string) (net.Conn, error) {
		return doorway.Canned{Answer: []byte("HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\nhello")}, nil
	}})
	defer p.Close()
	if err := p.Apply(build(t, site("minTTL: 0"))); err != nil {
		t.Fatal(err)
	}
	slowly(t, p, plainRequest) // has a connection be kept
	q := parsed(plainRequest)
	q.Remote = netip.MustParseAddrPort("203.0.113.9:1234")
	if n := doorway.Allocations(t, p.Relay, q); n > 5 { // under the race detector pools forget some of what they are given; without it, it is 1
		t.Errorf("%v allocations", n)
	}
}

// fragile is a connection to an origin that keeps it; what is asked on it second waits until it is told to panic.
type fragile struct {
	doorway.Canned
	reads  *int
	broken chan struct{}
	closed *bool
}

func (f fragile) Read(b []byte) (int, error) {
	if *f.reads++; *f.reads == 2 {
		<-f.broken
		panic("at the origin")
	}
	return f.Canned.Read(b)
}

func (f fragile) Close() error {
	*f.closed = true
	return nil
}

// panics says whether f does.
func panics(f func()) (is bool) {
	defer func() { is = recover() != nil }()
	f()
	return false
}

// A panic in the midst of a relay ends one request: its connection to the origin is closed, and who waits for what it asked for gets it.
func TestAPanicOfARelayIsNobodyElses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := []byte("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\nhello")
		var reads, dials int
		var closed bool
		broken := make(chan struct{})
		p := New(Config{CacheBytes: 8 << 20, Dial: func(context.Context, string, string) (net.Conn, error) {
			if dials++; dials > 1 {
				return doorway.Canned{Answer: answer}, nil
			}
			return fragile{doorway.Canned{Answer: answer}, &reads, broken, &closed}, nil
		}})
		defer p.Close()
		if err := p.Apply(build(t, site("minTTL: 0"))); err != nil {
			t.Fatal(err)
		}
		slowly(t, p, strings.Replace(plainRequest, "GET /", "GET /warm", 1)) // has the connection be kept
		var all sync.WaitGroup
		all.Go(func() {
			if !panics(func() { relayed(t, p, plainRequest) }) {
				t.Error("it did not panic")
			}
		})
		synctest.Wait()
		for range 3 {
			all.Go(func() {
				if got := slowly(t, p, plainRequest); got.StatusCode != http.StatusOK {
					t.Errorf("who waited is answered %d", got.StatusCode)
				}
			})
		}
		synctest.Wait()
		if n := p.Counters()["cache_collapsed_total"]; n != 3 {
			t.Errorf("%d wait", n)
		}
		close(broken)
		all.Wait()
		if n := p.Counters()["cache_fills"]; n != 0 || !closed || dials != 2 {
			t.Errorf("%d fills have not ended, %d connections were made, the broken one is closed: %v", n, dials, closed)
		}
	})
}

// The same where the answer is there already.
func TestAPanicBehindARelayEndsItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, control := range []string{"no-store", "max-age=60", "no-cache"} {
			answer := []byte("HTTP/1.1 200 OK\r\nCache-Control: " + control + "\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\nhello")
			var reads int
			var closed bool
			p := New(Config{CacheBytes: 8 << 20, Dial: func(context.Context, string, string) (net.Conn, error) {
				reads = 2
				return fragile{doorway.Canned{Answer: answer}, &reads, nil, &closed}, nil
			}})
			defer p.Close()
			if err := p.Apply(build(t, site("minTTL: 0"))); err != nil {
				t.Fatal(err)
			}
			slowly(t, p, strings.Replace(plainRequest, "GET /", "GET /warm", 1))
			q := parsed(plainRequest)
			q.Remote = netip.MustParseAddrPort("203.0.113.9:1234")
			if !panics(func() { p.Relay(q, &http1.Response{}, func() []byte { panic("no room") }) }) {
				t.Fatal("it did not panic")
			}
			synctest.Wait()
			if n := p.Counters()["cache_fills"]; n != 0 || !closed {
				t.Errorf("%s: %d fills have not ended, its connection is closed: %v", control, n, closed)
			}
			if got := slowly(t, p, plainRequest); got.StatusCode != http.StatusOK {
				t.Errorf("%s: the next is answered %d", control, got.StatusCode)
			}
		}
	})
}
