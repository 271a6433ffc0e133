package cdn

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/edge/cache"
	"github.com/perigee-net/perigee/edge/http1"
)

// parsed is a request of the plain form, of its text; nil if it is not plain.
func parsed(text string) *http1.Request {
	q := &http1.Request{Now: time.Now()}
	if q.Parse([]byte(text)) != http1.Plain {
		return nil
	}
	return q
}

// quickly has Quick answer a request.
func quickly(t testing.TB, p *Plane, text string) (*http.Response, bool) {
	a := &http1.Response{Head: make([]byte, 0, 4096)}
	q := parsed(text)
	if q == nil || !p.Quick(q, a) {
		return nil, false
	}
	method := http.MethodGet
	if q.Head {
		method = http.MethodHead
	}
	r, err := http.ReadResponse(bufio.NewReader(io.MultiReader(bytes.NewReader(a.Head), bytes.NewReader(a.Body))), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%q is answered %q: %v", text, a.Head, err)
	}
	if r.StatusCode != a.Status {
		t.Errorf("the status is %d, and %d is written", a.Status, r.StatusCode)
	}
	return r, true
}

// slowly has ServeHTTP answer it.
func slowly(t testing.TB, p *Plane, text string) *http.Response {
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	r.RemoteAddr = "203.0.113.9:1234"
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	return w.Result()
}

// written is an answer as text, but for its id.
func written(t testing.TB, r *http.Response) string {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	h := r.Header.Clone()
	if h.Get("X-Perigee-Id") == "" {
		t.Error("there is no id")
	}
	h.Del("X-Perigee-Id")
	var b strings.Builder
	fmt.Fprintln(&b, r.StatusCode)
	h.Write(&b)
	return b.String() + "\n" + string(body)
}

// manifold are distributions and policies of all kinds that make a difference to Quick.
const manifold = `
kind: CachePolicy
name: nothing
---
kind: CachePolicy
name: coding
headers: {behavior: whitelist, items: [Accept-Encoding]}
---
kind: CachePolicy
name: some
maxTTL: 40
headers: {behavior: whitelist, items: [X-A, Origin]}
queryStrings: {behavior: whitelist, items: [a, b]}
---
kind: CachePolicy
name: but
queryStrings: {behavior: allExcept, items: [a]}
---
kind: CachePolicy
name: all
queryStrings: {behavior: all}
---
kind: CachePolicy
name: cookies
cookies: {behavior: all}
headers: {behavior: whitelist, items: [User-Agent, Accept-Language]}
---
kind: CachePolicy
name: host
headers: {behavior: whitelist, items: [Host, Pragma]}
---
kind: CachePolicy
name: off
maxTTL: 0
---
kind: Distribution
name: one
aliases: [one.test, "*.one.test"]
defaultRootObject: index.html
origins: [{name: web, url: "http://origin.test"}]
defaultCacheBehavior: {targetOrigin: web, cachePolicy: nothing}
cacheBehaviors:
  - {pathPattern: /coding/*, targetOrigin: web, cachePolicy: coding}
  - {pathPattern: /some/*, targetOrigin: web, cachePolicy: some}
  - {pathPattern: /but/*, targetOrigin: web, cachePolicy: but}
  - {pathPattern: /all/*, targetOrigin: web, cachePolicy: all, viewerProtocolPolicy: https-only}
  - {pathPattern: /cookies/*, targetOrigin: web, cachePolicy: cookies}
  - {pathPattern: /host/*, targetOrigin: web, cachePolicy: host}
  - {pathPattern: /off/*, targetOrigin: web, cachePolicy: off}
  - {pathPattern: /moved/*, targetOrigin: web, cachePolicy: nothing, viewerProtocolPolicy: redirect-to-https}
`

// various answers by the path, in all ways that make a difference.
func various(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "max-age=30")
	h.Add("Cache-Status", "inner; hit")
	h.Add("X-Cache", "Hit from another")
	h.Set("Age", "3")
	h.Add("Set-Cookie", "a=b")
	status := 200
	switch {
	case strings.HasSuffix(r.URL.Path, "/vary"):
		h.Set("Vary", "accept-encoding, X-A, Cookie")
	case strings.HasSuffix(r.URL.Path, "/gzip"):
		h.Set("Content-Encoding", "gzip")
	case strings.HasSuffix(r.URL.Path, "/gone"):
		status = 404
	case strings.HasSuffix(r.URL.Path, "/empty"):
		status = 204
	case strings.HasSuffix(r.URL.Path, "/stale"):
		h.Set("Cache-Control", "max-age=5, stale-while-revalidate=60")
	case strings.HasSuffix(r.URL.Path, "/private"):
		h.Set("Cache-Control", "private, max-age=30")
	}
	if r.URL.Path == "/typed" {
		h["Content-Type"] = nil
	}
	w.WriteHeader(status)
	if status != 204 {
		fmt.Fprintf(w, "%s %s %q %q", r.URL, r.Header.Get("Accept-Encoding"), r.Header["X-A"], r.Header["Origin"])
	}
}

func TestQuickAnswersAsServeHTTPDoes(t *testing.T) {
	inWorld(t, manifold, func(t *testing.T, w *world) {
		w.origin(various)
		r := rand.New(rand.NewPCG(1, 2))
		pick := func(from ...string) string { return from[r.IntN(len(from))] }
		maybe := func(one int, s string) string {
			if r.IntN(one) == 0 {
				return s
			}
			return ""
		}
		answered := map[string]int{} // by policy
		for range 20000 {
			switch r.IntN(400) {
			case 0:
				w.Purge(cache.Purge{Distribution: pick("one", "", "two"), Items: []string{pick("/*", "/some/*", "/", "/vary", "/all/x")}, Soft: r.IntN(2) == 0})
			case 1:
				w.SetFence(r.IntN(2) == 0)
			case 2, 3, 4, 5, 6, 7, 8, 9:
				time.Sleep(time.Duration(r.IntN(8000)) * time.Millisecond)
			}
			policy := pick("/", "/", "/coding/", "/some/", "/some/", "/but/", "/all/", "/cookies/", "/host/", "/off/", "/moved/")
			text := pick("GET", "GET", "GET", "HEAD") + " " + policy + pick("", "x", "vary", "gzip", "gone", "empty", "stale", "private", "typed", "a%20b", "a//b", "./x", "é", "a|b", "A;b@c:d") +
				maybe(2, "?"+pick("", "a=1", "b=2&a=1", "c=3&a=1&b", "&&a", "x=%20", "a")) + " HTTP/1.1\r\n" +
				pick("Host: ", "host:", "HOST: \t") + pick("one.test", "one.test", "one.test", "one.test", "deep.one.test", "one.test:80", "One.test", "one.test.", "two.test") + "\r\n" +
				maybe(2, pick("Accept-Encoding: ", "accept-encoding: ")+pick("gzip", "br, gzip;q=0.5", "gzip;q=0", "identity", "GZIP")+"\r\n") +
				maybe(8, "Accept-Encoding: br\r\n") +
				maybe(4, "X-A: "+pick("1", "2", "")+"\r\n") + maybe(8, "x-a: 3\r\n") +
				maybe(4, "Origin: http://a.test\r\n") + maybe(4, "Cookie: a="+pick("1", "2")+"\r\n") +
				maybe(20, pick("Range: bytes=0-1", "If-None-Match: *", "IF-MODIFIED-SINCE: Mon, 02 Nov 2026 00:00:00 GMT", "if-range: \"x\"",
					"Cache-Control: no-cache", "Pragma: no-cache", "Connection: close, x-a", "Connection: Keep-Alive", "CDN-Loop: perigee, perigee, perigee",
					"Authorization: Basic eDp5", "Upgrade: websocket", "X-Long: "+strings.Repeat("x", 21000))+"\r\n") + "\r\n"
			quick, ok := quickly(t, w.Plane, text)
			if !ok {
				slowly(t, w.Plane, text)
				continue
			}
			answered[policy]++
			if got, want := written(t, quick), written(t, slowly(t, w.Plane, text)); got != want {
				t.Fatalf("%s\nis answered quickly\n%s\n\nand slowly\n%s", text, got, want)
			}
		}
		for _, policy := range []string{"/", "/coding/", "/some/", "/but/"} {
			if answered[policy] < 100 {
				t.Errorf("of %s %d were answered", policy, answered[policy])
			}
		}
		if n := answered["/cookies/"] + answered["/host/"] + answered["/off/"] + answered["/all/"] + answered["/moved/"]; n != 0 {
			t.Errorf("%d were answered that must not: %v", n, answered)
		}
		t.Logf("answered quickly, by policy: %v", answered)
	})
}

const plainRequest = "GET /some/path/to/style.css HTTP/1.1\r\nHost: www.test\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\nAccept-Encoding: gzip, br\r\nConnection: keep-alive\r\n\r\n"

func TestQuickAllocatesNothing(t *testing.T) {
	inWorld(t, site("queryStrings: {behavior: whitelist, items: [a]}"), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Vary", "Accept-Encoding")
			various(rw, r)
		})
		for _, text := range []string{plainRequest, strings.Replace(plainRequest, ".css", ".css?b=1&a=2", 1), strings.Replace(plainRequest, "GET", "HEAD", 1)} {
			slowly(t, w.Plane, text)
			synctest.Wait() // until it is kept
			q, head := parsed(text), make([]byte, 0, 4096)
			a := &http1.Response{}
			allocs := testing.AllocsPerRun(1000, func() {
				*a = http1.Response{Head: head[:0]}
				if !w.Quick(q, a) {
					t.Fatalf("%q is not answered", text)
				}
			})
			if allocs != 0 {
				t.Errorf("%q costs %v allocations", text, allocs)
			}
		}
	})
}

func BenchmarkQuick(b *testing.B) {
	for name, lines := range map[string][]string{"plain": nil, "vary": {"Vary: Accept-Encoding"}} {
		b.Run(name, func(b *testing.B) {
			p := filled(b, 1<<10, lines...)
			slowly(b, p, plainRequest)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				q, head := parsed(plainRequest), make([]byte, 0, 4096)
				a := &http1.Response{}
				for pb.Next() {
					*a = http1.Response{Head: head[:0]}
					if !p.Quick(q, a) {
						b.Error("not answered")
						return
					}
				}
			})
		})
	}
}
