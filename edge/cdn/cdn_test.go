package cdn

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/testbed/memnet"
)

func TestAMissFillsAndTheNextIsAHit(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(says(time.Second, "hello", "Cache-Control: max-age=60", "Content-Type: text/css", "Cache-Status: o; hit"))
		a := w.must("/a.css?x=1", 200, "Miss", "hello")
		for name, want := range map[string]string{
			"Via": "1.1 perigee", "X-Perigee-Pop": "icn1", "Content-Type": "text/css", "Content-Length": "5", "Age": "", "Accept-Ranges": "bytes",
		} {
			if got := a.Header.Get(name); got != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		}
		if got := a.Header["Cache-Status"]; len(got) != 2 || got[0] != "o; hit" || got[1] != "perigee; fwd=uri-miss; fwd-status=200; stored; ttl=58" {
			t.Errorf("got %q", got)
		}
		time.Sleep(10 * time.Second)
		b := w.must("/a.css?y", 200, "Hit", "hello")
		if got := b.Header["Cache-Status"]; len(got) != 2 || got[1] != "perigee; hit; ttl=48" {
			t.Errorf("got %q", got)
		}
		if b.Header.Get("Age") != "11" || b.Header.Get("Date") != a.Header.Get("Date") || b.Header.Get("Via") != "1.1 perigee" {
			t.Errorf("Age %s, Date %s, Via %s", b.Header.Get("Age"), b.Header.Get("Date"), b.Header.Get("Via"))
		}
		if id := b.Header.Get("X-Perigee-Id"); id == "" || id == a.Header.Get("X-Perigee-Id") {
			t.Errorf("id %q", id)
		}
		asked := w.requests()
		if len(asked) != 1 || asked[0].Host != "origin.test" || asked[0].RequestURI != "/a.css" || asked[0].Header.Get("X-Forwarded-For") != "203.0.113.9" ||
			asked[0].Header.Get("X-Perigee-Id") != a.Header.Get("X-Perigee-Id") {
			t.Errorf("asked %d times, first %v", len(asked), asked[0])
		}
		c := w.Counters()
		if c["cdn_requests_total"] != 2 || c["cdn_hits_total"] != 1 || c["cdn_misses_total"] != 1 || c["cdn_bytes_total"] != 10 || c["cache_objects"] != 1 {
			t.Errorf("counters %v", c)
		}
	})
}

func TestAHundredViewersAreOneRequestToTheOrigin(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(says(time.Second, "hello"))
		var wg sync.WaitGroup
		var collapsed atomic.Int32
		for range 100 {
			wg.Go(func() {
				if strings.Contains(w.must("/", 200, "Miss", "hello").Header.Get("Cache-Status"), "; collapsed") {
					collapsed.Add(1)
				}
			})
		}
		wg.Wait()
		if len(w.requests()) != 1 || collapsed.Load() != 99 {
			t.Errorf("the origin was asked %d times, %d were collapsed", len(w.requests()), collapsed.Load())
		}
	})
}

func TestTheFirstViewerMayLeave(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(says(10*time.Second, "hello"))
		var wg sync.WaitGroup
		wg.Go(func() {
			ctx, leave := context.WithTimeout(t.Context(), time.Second)
			defer leave()
			if _, err := w.ask(ctx, "GET", "/", ""); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the first got %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() { w.must("/", 200, "Miss", "hello") })
		wg.Wait()
		if len(w.requests()) != 1 {
			t.Errorf("the origin was asked %d times", len(w.requests()))
		}
	})
}

func TestViewersReadWhileItFills(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			for i := range 3 {
				fmt.Fprint(rw, i)
				http.NewResponseController(rw).Flush()
				time.Sleep(10 * time.Second)
			}
		})
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "http://www.test/", nil)
		w.in.Name("www.test", w.edge.Addr())
		began := time.Now()
		response, err := w.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		b := make([]byte, 10)
		for i := range 3 {
			n, err := response.Body.Read(b)
			if string(b[:n]) != strconv.Itoa(i) || err != nil || time.Since(began) > time.Duration(i*10+2)*time.Second {
				t.Errorf("%q, %v after %v", b[:n], err, time.Since(began))
			}
		}
		if _, err := response.Body.Read(b); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
		w.must("/", 200, "Hit", "012")
	})
}

func TestATruncatedResponseNeverEndsAsIfItWereWhole(t *testing.T) {
	for name, begin := range map[string]func(http.ResponseWriter){
		"with a length":    func(rw http.ResponseWriter) { rw.Header().Set("Content-Length", "100") },
		"without a length": func(http.ResponseWriter) {},
		"not to be kept":   func(rw http.ResponseWriter) { rw.Header().Set("Cache-Control", "private") },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, site(""), func(t *testing.T, w *world) {
				w.origin(func(rw http.ResponseWriter, r *http.Request) {
					begin(rw)
					io.WriteString(rw, "hello")
					http.NewResponseController(rw).Flush()
					time.Sleep(time.Second)
					panic(http.ErrAbortHandler)
				})
				for _, method := range []string{"GET", "POST"} {
					var wg sync.WaitGroup
					for range 3 {
						wg.Go(func() {
							a, err := w.ask(t.Context(), method, "/", "")
							if err == nil && a.err == nil || !strings.HasPrefix("hello", a.body) {
								t.Errorf("%s: got %q, %v, %v", method, a.body, err, a.err)
							}
						})
					}
					wg.Wait()
				}
				if got := w.Counters()["cache_stored_total"]; got != 0 {
					t.Errorf("%d were kept", got)
				}
			})
		})
	}
}

func TestConditionsAndRangesAreAnsweredFromTheCache(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(says(0, "0123456789", `Etag: "1"`, "Content-Type: text/plain", "Cache-Control: max-age=600"))
		for round, x := range []string{"Miss", "Hit"} { // the first of each comes while it fills
			path := func(s string) string { return "/" + s }
			if round == 1 {
				time.Sleep(time.Minute)
			}
			a := w.must(path("a"), 304, x, "", `If-None-Match: "1"`)
			if a.Header.Get("Etag") != `"1"` || a.Header.Get("Cache-Control") != "max-age=600" || a.Header.Get("Content-Type") != "" || a.Header.Get("Content-Length") != "" {
				t.Errorf("304 with %v", a.Header)
			}
			a = w.must(path("b"), 206, x, "234", "Range: bytes=2-4")
			if a.Header.Get("Content-Range") != "bytes 2-4/10" || a.Header.Get("Content-Length") != "3" || a.Header.Get("Content-Type") != "text/plain" {
				t.Errorf("206 with %v", a.Header)
			}
			a = w.must(path("c"), 416, "Error", "", "Range: bytes=10-")
			if a.Header.Get("Content-Range") != "bytes */10" {
				t.Errorf("416 with %v", a.Header)
			}
			w.must(path("d"), 200, x, "0123456789", "Range: bytes=3-4, 0-1")
			a = w.must(path("f"), 412, "Error", "", `If-Match: "2"`)
			if a.Header.Get("Content-Length") != "0" {
				t.Errorf("412 with %v", a.Header)
			}
			w.parts(path("g"), x, "bytes=0-1, 3-4,-1", "bytes 0-1/10 text/plain 01", "bytes 3-4/10 text/plain 34", "bytes 9-9/10 text/plain 9")
			h, err := w.ask(t.Context(), "HEAD", path("e"), "")
			if err != nil || h.StatusCode != 200 || h.Header.Get("Content-Length") != "10" || h.body != "" || h.Header.Get("X-Cache") != x+" from perigee" {
				t.Errorf("HEAD: %v %v %q", err, h.Header, h.body)
			}
			synctest.Wait()
		}
		for _, r := range w.requests() {
			if r.Method != "GET" || r.Header.Get("Range")+r.Header.Get("If-None-Match") != "" {
				t.Errorf("the origin was asked %s with %v", r.Method, r.Header)
			}
		}
		if len(w.requests()) != 7 {
			t.Errorf("the origin was asked %d times", len(w.requests()))
		}
	})
}

func TestAnExpiredResponseIsRefreshed(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Cache-Control", "max-age=10")
			rw.Header().Set("Etag", `"1"`)
			if r.Header.Get("If-None-Match") == `"1"` {
				rw.WriteHeader(http.StatusNotModified)
				return
			}
			io.WriteString(rw, "hello")
		})
		w.must("/", 200, "Miss", "hello")
		time.Sleep(11 * time.Second)
		a := w.must("/", 200, "RefreshHit", "hello")
		if got := a.Header.Get("Cache-Status"); got != "perigee; fwd=stale; fwd-status=304; stored; ttl=9" {
			t.Error(got)
		}
		w.must("/", 200, "Hit", "hello")
		time.Sleep(11 * time.Second)
		w.must("/", 304, "RefreshHit", "", `If-None-Match: "1"`)
	})
}

func TestStaleResponsesSayThatTheyAre(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		var down atomic.Bool
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			if down.Load() {
				rw.WriteHeader(503)
				return
			}
			says(time.Second, "hello", "Cache-Control: max-age=10, stale-while-revalidate=10, stale-if-error=100")(rw, r)
		})
		w.must("/", 200, "Miss", "hello")
		time.Sleep(10 * time.Second)
		if got := w.must("/", 200, "Hit", "hello").Header.Get("Cache-Status"); got != "perigee; hit; ttl=-1; detail=stale-while-revalidate" {
			t.Error(got)
		}
		time.Sleep(5 * time.Second)
		w.must("/", 200, "Hit", "hello")
		down.Store(true)
		time.Sleep(20 * time.Second)
		if got := w.must("/", 200, "Hit", "hello").Header.Get("Cache-Status"); got != "perigee; fwd=stale; fwd-status=503; ttl=-15; detail=stale-if-error" {
			t.Error(got)
		}
		if got := w.must("/", 200, "Hit", "hello").Header.Get("Cache-Status"); got != "perigee; hit; ttl=-15; detail=stale-if-error" {
			t.Error(got)
		}
	})
}

func TestWhatMayNotBeSharedIsAskedForByEach(t *testing.T) {
	inWorld(t, site("cookies: {behavior: all}"), func(t *testing.T, w *world) {
		var n atomic.Int32
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			rw.Header().Set("Cache-Control", "private")
			fmt.Fprint(rw, n.Add(1))
		})
		got := make(chan string, 10)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { got <- w.get("/").body })
		}
		wg.Wait()
		seen := map[string]bool{}
		for range 10 {
			seen[<-got] = true
		}
		if len(seen) != 10 {
			t.Errorf("ten viewers saw %v", seen)
		}
	})
}

func TestVariantsByCodingAreKeptApart(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			coding := r.Header.Get("Accept-Encoding")
			if coding != "" {
				rw.Header().Set("Content-Encoding", coding)
			}
			rw.Header().Set("Vary", "Accept-Encoding, Origin")
			io.WriteString(rw, "in "+coding)
		})
		w.must("/", 200, "Miss", "in br", "Accept-Encoding: br;q=1, deflate")
		w.must("/", 200, "Miss", "in gzip", "Accept-Encoding: gzip")
		w.must("/", 200, "Miss", "in ", "Accept-Encoding: identity")
		w.must("/", 200, "Hit", "in br", "Accept-Encoding: br", "Origin: https://else.test")
		if a := w.must("/", 200, "Hit", "in gzip", "Accept-Encoding: gzip;q=0.1, zstd"); a.Header.Get("Vary") != "Accept-Encoding, Origin" {
			t.Errorf("Vary %q", a.Header.Get("Vary"))
		}
	})
}

func TestCookiesAreForThoseWhoKeyThem(t *testing.T) {
	for _, c := range []struct{ policy, sent, set string }{
		{"", "", ""},
		{"cookies: {behavior: whitelist, items: [s]}", "s=1", "t=2"},
	} {
		inWorld(t, site(c.policy), func(t *testing.T, w *world) {
			w.origin(says(0, "hello", "Set-Cookie: t=2"))
			for _, x := range []string{"Miss", "Hit"} {
				if a := w.must("/", 200, x, "hello", "Cookie: s=1; u=3"); a.Header.Get("Set-Cookie") != c.set {
					t.Errorf("%q: %s: set %q", c.policy, x, a.Header.Get("Set-Cookie"))
				}
			}
			if got := w.requests()[0].Header.Get("Cookie"); got != c.sent {
				t.Errorf("%q: sent %q", c.policy, got)
			}
			if a, _ := w.ask(t.Context(), "POST", "/", "x"); a.Header.Get("Set-Cookie") != c.set {
				t.Errorf("%q: POST set %q", c.policy, a.Header.Get("Set-Cookie"))
			}
		})
	}
}

func TestErrorsOfTheOriginAreKeptForAWhile(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			code, _ := strconv.Atoi(r.URL.Path[1:])
			rw.Header().Set("Cache-Control", "no-store")
			rw.WriteHeader(code)
			io.WriteString(rw, "sorry")
		})
		for _, code := range []int{404, 503} {
			path := fmt.Sprint("/", code)
			w.must(path, code, "Error", "sorry")
			time.Sleep(9 * time.Second)
			w.must(path, code, "Error", "sorry")
			time.Sleep(time.Second)
			w.must(path, code, "Error", "sorry")
		}
		w.must("/403", 403, "Error", "sorry")
		w.must("/403", 403, "Error", "sorry")
		if got := len(w.requests()); got != 2+2+2 {
			t.Errorf("the origin was asked %d times", got)
		}
	})
}

func TestARedirectIsPassedOnAndKept(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, "/b", http.StatusFound) })
		for _, x := range []string{"Miss", "Hit"} {
			if a := w.must("/a", 302, x, "*"); a.Header.Get("Location") != "/b" {
				t.Errorf("Location %q", a.Header.Get("Location"))
			}
		}
	})
}

func TestABodyWithoutTypeIsNotGivenOne(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header()["Content-Type"] = nil
			io.WriteString(rw, "<html>")
		})
		for _, method := range []string{"GET", "GET", "POST"} {
			if a, err := w.ask(t.Context(), method, "/", ""); err != nil || a.Header["Content-Type"] != nil || a.body != "<html>" {
				t.Errorf("%s: %v %v", method, err, a.Header)
			}
		}
	})
}

func TestAnUnsafeMethodPassesAndForgetsWhatWasKept(t *testing.T) {
	inWorld(t, site("cookies: {behavior: whitelist, items: [s]}\nqueryStrings: {behavior: all}"), func(t *testing.T, w *world) {
		status := http.StatusNoContent
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			if r.Method == "POST" {
				rw.WriteHeader(status)
				return
			}
			io.WriteString(rw, "page")
		})
		pages := func(want string) {
			t.Helper()
			w.must("/?a", 200, want, "page")
			w.must("/?a", 200, want, "page", "Cookie: s=1")
			w.must("https://www.test/?a", 200, want, "page")
			w.must("/?b", 200, map[string]string{"Miss": "Miss", "Hit": "Hit"}[want], "page")
		}
		pages("Miss")
		pages("Hit")
		status = 500
		if a, err := w.ask(t.Context(), "POST", "/?a", "no"); err != nil || a.StatusCode != 500 {
			t.Fatal(err)
		}
		pages("Hit")
		status = 204
		a, err := w.ask(t.Context(), "POST", "/?a", "form", "Content-Type: text/x", "Authorization: me")
		if err != nil || a.StatusCode != 204 || a.Header.Get("Cache-Status") != "perigee; fwd=method; fwd-status=204" {
			t.Fatalf("%v %v", err, a.Header)
		}
		w.must("/?a", 200, "Miss", "page")
		w.must("/?a", 200, "Miss", "page", "Cookie: s=1")
		w.must("https://www.test/?a", 200, "Miss", "page")
		w.must("/?b", 200, "Hit", "page")
		w.mu.Lock()
		defer w.mu.Unlock()
		for i, r := range w.asked {
			if r.Method == "POST" && w.bodies[i] == "form" && r.RequestURI == "/?a" && r.Header.Get("Content-Type") == "text/x" && r.Header.Get("Authorization") == "me" && r.ContentLength == 4 {
				return
			}
		}
		t.Errorf("no such POST among %v", w.asked)
	})
}

func TestCachingDisabledPassesEachRequest(t *testing.T) {
	inWorld(t, site("defaultTTL: 0\nmaxTTL: 0"), func(t *testing.T, w *world) {
		w.origin(says(time.Second, "0123", `Etag: "1"`, "Cache-Control: max-age=60"))
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if a := w.must("/", 200, "Miss", "0123", "Range: bytes=0-1"); a.Header.Get("Cache-Status") != "perigee; fwd=bypass; fwd-status=200" {
					t.Error(a.Header.Get("Cache-Status"))
				}
			})
		}
		wg.Wait()
		if len(w.requests()) != 3 || w.requests()[0].Header.Get("Range") != "bytes=0-1" {
			t.Errorf("asked %d times, first with %v", len(w.requests()), w.requests()[0].Header)
		}
	})
}

func TestARangeOfWhatIsTooLargeIsAskedOfTheOrigin(t *testing.T) {
	large := strings.Repeat("0123456789", 200_000) // of 8 MiB an eighth is kept
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			http.ServeContent(rw, r, "x.bin", time.Unix(1e9, 0), strings.NewReader(large))
		})
		for range 2 {
			a := w.must("/", 206, "Miss", "89012", "Range: bytes=1000008-1000012")
			if a.Header.Get("Content-Range") != "bytes 1000008-1000012/2000000" {
				t.Errorf("%v", a.Header)
			}
		}
		w.must("/", 200, "Miss", large)
		w.must("/", 304, "Miss", "", "If-Modified-Since: "+time.Unix(1e9, 0).UTC().Format(http.TimeFormat))
	})
}

func TestAFieldThatConnectionNamesIsNotInTheKey(t *testing.T) {
	inWorld(t, site("headers: {behavior: whitelist, items: [X-Lang]}"), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "in "+r.Header.Get("X-Lang")) })
		w.must("/", 200, "Miss", "in ", "X-Lang: ko", "Connection: X-Lang")
		w.must("/", 200, "Miss", "in ko", "X-Lang: ko")
	})
}

func TestAnHTTPSOriginMustProveItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		t.Cleanup(in.Close)
		certificate, roots := certify(t, "origin.test")
		w := &world{t: t, in: in, edge: in.Host("edge", spec.Location{}, nodeAddr(0)), viewer: in.Host("viewer", spec.Location{}, nodeAddr(1))}
		host := in.Host("origin", spec.Location{}, nodeAddr(2))
		in.Name("origin.test", nodeAddr(2))
		in.Name("other.test", nodeAddr(2))
		l, err := host.Listen("tcp", ":443")
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: says(0, "secret"), ErrorLog: quiet(), TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}}}
		var served sync.WaitGroup
		served.Go(func() { server.ServeTLS(l, "", "") })
		t.Cleanup(func() { server.Close(); served.Wait() })
		for _, c := range []struct {
			host  string
			roots *x509.CertPool
			want  int
		}{{"origin.test", roots, 200}, {"other.test", roots, 502}, {"origin.test", nil, 502}} {
			p := New(Config{View: func() *view.View { return nil }, Dial: w.edge.Dial, RootCAs: c.roots})
			if err := p.Apply(build(t, strings.ReplaceAll(site(""), "http://origin.test", "https://"+c.host))); err != nil {
				t.Fatal(err)
			}
			if got := record(p, "GET", "http://www.test/", nil); got.StatusCode != c.want {
				t.Errorf("%s: got %d, want %d", c.host, got.StatusCode, c.want)
			}
			p.Close()
		}
	})
}

func certify(t *testing.T, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

func TestAnOriginIsDialledSoOftenAndSoLong(t *testing.T) {
	for _, c := range []struct {
		name   string
		dial   func(context.Context) error
		status int
		took   time.Duration
	}{
		{"refused", func(context.Context) error { return errors.New("connection refused") }, 502, 0},
		{"silent", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, 504, 6 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var dials atomic.Int32
				p := New(Config{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
					dials.Add(1)
					return nil, c.dial(ctx)
				}})
				defer p.Close()
				s := build(t, strings.ReplaceAll(site(""), `"http://origin.test"`, `"http://origin.test", connectionAttempts: 2, connectionTimeout: 3`))
				if err := p.Apply(s); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				got := record(p, "GET", "http://www.test/", nil)
				if got.StatusCode != c.status || dials.Load() != 2 || time.Since(began) != c.took || got.Header.Get("X-Cache") != "Error from perigee" {
					t.Errorf("got %d after %d dials and %v", got.StatusCode, dials.Load(), time.Since(began))
				}
				if n := p.Counters()["cdn_origin_errors_total"]; n != 1 {
					t.Errorf("%d errors are counted", n)
				}
				if got := record(p, "GET", "http://www.test/", nil); got.StatusCode != c.status || dials.Load() != 4 {
					t.Errorf("an answer of our own was kept")
				}
			})
		})
	}
}

func TestASilentOriginIsATimeout(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/body" {
				io.WriteString(rw, "begun")
				http.NewResponseController(rw).Flush()
			}
			<-r.Context().Done()
		})
		began := time.Now()
		w.must("/head", 504, "Error", "*")
		if took := time.Since(began).Round(time.Second); took != 30*time.Second {
			t.Errorf("it took %v", took)
		}
		began = time.Now()
		a, err := w.ask(t.Context(), "GET", "/body", "")
		if took := time.Since(began).Round(time.Second); err != nil || a.err == nil || a.body != "begun" || took != 30*time.Second {
			t.Errorf("got %q, %v, %v after %v", a.body, err, a.err, took)
		}
	})
}

func TestAnOriginThatSwitchesProtocolsIsABadGateway(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Connection", "Upgrade")
			rw.Header().Set("Upgrade", "other")
			rw.WriteHeader(http.StatusSwitchingProtocols)
		})
		w.must("/", 502, "Error", "*")
	})
}

func TestTheRootIsKeptAsItsObject(t *testing.T) {
	inWorld(t, site("")+"defaultRootObject: index.html\n", func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, r.RequestURI) })
		w.must("/", 200, "Miss", "/index.html")
		w.must("/index.html", 200, "Hit", "/index.html")
		w.must("/sub/", 200, "Miss", "/sub/")
		w.must("/a%2fb%20c", 200, "Miss", "/a%2fb%20c")
		at, _ := url.Parse("http://www.test/")
		if got, err := w.Explain("GET", at, nil); err != nil || !strings.HasPrefix(got, "hit: status 200, fresh for another 24h0m0s") {
			t.Errorf("got %s, %v", got, err)
		}
		at, _ = url.Parse("http://www.test/x")
		if got, err := w.Explain("GET", at, nil); err != nil || got != "miss: asks http://origin.test" {
			t.Errorf("got %s, %v", got, err)
		}
	})
}

func TestADeadLoadBalancerGivesWayAtOnce(t *testing.T) {
	inWorld(t, regions, func(t *testing.T, w *world) {
		icn := w.node(0, "icn-1", says(0, "icn", "Cache-Control: max-age=1"))
		nrt := w.node(1, "nrt-1", says(0, "nrt", "Cache-Control: max-age=1"))
		w.must("/1", 200, "Miss", "icn")
		if got := w.requests()[0]; got.Host != "www.test" || w.dialled() != "icn-1 http web-icn/8080" {
			t.Errorf("asked for %s by %s", got.Host, w.dialled())
		}
		w.must("/2", 200, "Miss", "icn")
		if w.dialled() != "icn-1 http web-icn/8080" {
			t.Errorf("the connection was not used again: %s", w.dialled())
		}
		icn.Kill()
		began := time.Now()
		w.must("/3", 200, "Miss", "nrt")
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
		nrt.Kill() // and nrt-2 and iad-1 never lived
		w.client.Transport.(*http.Transport).CloseIdleConnections()
		w.must("/4", 502, "Error", "*")
		if got := w.Counters(); got["cdn_origin_failovers_total"] == 0 || got["cdn_origin_errors_total"] == 0 {
			t.Errorf("counters %v", got)
		}
	})
}

func TestOnlyWhatMayBeRepeatedIsRepeated(t *testing.T) {
	for _, c := range []struct {
		name         string
		method, body string
		dead         bool // the first is dead when it is dialled; else it ends when it has the request
		status       int
	}{
		{"GET, dead", "GET", "", true, 200},
		{"GET, sent", "GET", "", false, 200},
		{"OPTIONS, sent", "OPTIONS", "", false, 200},
		{"POST, dead", "POST", "form", true, 200},
		{"POST, sent", "POST", "form", false, 502},
		{"PUT without a body, sent", "PUT", "", false, 502},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, regions, func(t *testing.T, w *world) {
				if !c.dead {
					w.node(0, "icn-1", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
				}
				w.node(1, "nrt-1", says(0, "nrt"))
				a, err := w.ask(t.Context(), c.method, "/", c.body)
				if err != nil || a.StatusCode != c.status {
					t.Fatalf("got %v, %v", a.Response, err)
				}
				if c.status == 200 && w.bodies[len(w.bodies)-1] != c.body {
					t.Errorf("the second was sent %q", w.bodies)
				}
			})
		})
	}
}

func TestALoadBalancerThatIsSilentEndsTheTries(t *testing.T) {
	inWorld(t, regions, func(t *testing.T, w *world) {
		w.node(0, "icn-1", func(rw http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		w.node(1, "nrt-1", says(0, "nrt"))
		began := time.Now()
		w.must("/", 504, "Error", "*")
		if took := time.Since(began).Round(time.Second); took != 30*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestHostsOfOneDistributionDoNotShareWhatTheHostChanges(t *testing.T) {
	inWorld(t, strings.ReplaceAll(regions, "[www.test]", `[www.test, "*.shop.test"]`), func(t *testing.T, w *world) {
		w.node(0, "icn-1", func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, r.Host) })
		w.must("/", 200, "Miss", "a.shop.test", "Host: a.shop.test")
		w.must("/", 200, "Miss", "b.shop.test", "Host: b.shop.test")
		w.must("/", 200, "Hit", "a.shop.test", "Host: A.shop.test")
	})
}

func TestWhatIsKeptOutlivesAnApply(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		host := w.origin(says(0, "hello"))
		var dials atomic.Int32
		dial := w.cfg.Dial
		w.Plane.cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			dials.Add(1)
			return dial(ctx, network, address)
		}
		again := func(text string) {
			t.Helper()
			if err := w.Apply(build(t, text)); err != nil {
				t.Fatal(err)
			}
		}
		again(site("") + "    \n")
		w.must("/", 200, "Miss", "hello")
		again(site("maxTTL: 100000"))
		w.must("/", 200, "Hit", "hello")
		w.must("/2", 200, "Miss", "hello")
		if dials.Load() > 1 {
			t.Errorf("%d dials: an origin that did not change lost its connection", dials.Load())
		}
		again(strings.ReplaceAll(site(""), "http://origin.test", "http://nowhere.test"))
		w.must("/", 200, "Hit", "hello")
		w.must("/3", 502, "Error", "*")
		_ = host
	})
}

func TestWhatIsExplainedIsWhatIsServed(t *testing.T) {
	inWorld(t, regions+`
cacheBehaviors:
  - {pathPattern: /live/*, targetOrigin: web, cachePolicy: Managed-CachingDisabled}
  - {pathPattern: /https/*, targetOrigin: web, viewerProtocolPolicy: redirect-to-https}
`, func(t *testing.T, w *world) {
		w.node(0, "icn-1", says(0, "hello", "Cache-Control: max-age=60"))
		explain := func(method, u string) (string, string) {
			t.Helper()
			at, err := url.Parse(u)
			if err != nil {
				t.Fatal(err)
			}
			tr := new(trace.Trace)
			outcome, err := w.Explain(method, at, tr)
			if err != nil {
				t.Fatal(err)
			}
			return outcome, tr.String()
		}
		const asks = "asks web-icn in ap-northeast-2 at node icn-1"
		for _, c := range []struct{ method, url, want, because string }{
			{"GET", "http://www.test/a", "miss: " + asks, "nothing is kept for GET site http://www.test/a"},
			{"GET", "http://www.test/live/a", "pass: nothing is kept; " + asks, "behaviour /live/* matches /live/a"},
			{"POST", "http://www.test/a", "pass: nothing is kept; " + asks, "the default behaviour"},
			{"GET", "http://www.test/https/a", "301 Moved Permanently: moved to https", "behaviour /https/* matches /https/a"},
			{"GET", "https://www.test/https/a", "miss: " + asks, "1. web-icn in ap-northeast-2 at node icn-1: 0s away, no healthy targets, reachable"},
			{"GET", "http://else.test/", "403 Forbidden: no distribution answers for this host", "answered 403"},
		} {
			outcome, because := explain(c.method, c.url)
			if outcome != c.want || !strings.Contains(because, c.because) {
				t.Errorf("%s %s: got %s because\n%s", c.method, c.url, outcome, because)
			}
		}
		w.must("/a", 200, "Miss", "hello")
		time.Sleep(10 * time.Second)
		if outcome, because := explain("GET", "http://www.test/a"); !strings.HasPrefix(outcome, "hit: status 200, fresh for another ") || !strings.Contains(because, "a response is kept") {
			t.Errorf("got %s because\n%s", outcome, because)
		}
		w.must("/a", 200, "Hit", "hello")
		time.Sleep(time.Minute)
		if outcome, because := explain("GET", "http://www.test/a"); outcome != "stale: "+asks || !strings.Contains(because, "the origin is asked first") {
			t.Errorf("got %s because\n%s", outcome, because)
		}
	})
}

func TestANodeThatRefusesIsABadGateway(t *testing.T) {
	var asked backbone.Header
	p := New(Config{
		View: func() *view.View { return &view.View{Self: "icn-1", Members: members()[:1]} },
		Backbone: func(_ context.Context, node string, h backbone.Header) (net.Conn, error) {
			asked = h
			return nil, &backbone.RefusedError{Reason: "not now"}
		},
	})
	defer p.Close()
	if err := p.Apply(build(t, regions)); err != nil {
		t.Fatal(err)
	}
	if got := record(p, "GET", "http://www.test/", nil); got.StatusCode != 502 || asked != (backbone.Header{Service: "http", Resource: "web-icn/8080"}) {
		t.Errorf("got %d, asked %+v", got.StatusCode, asked)
	}
}

func TestEachNodeIsDialledOnce(t *testing.T) {
	inWorld(t, regions, func(t *testing.T, w *world) {
		w.must("/", 502, "Error", "*")
		if got, want := w.dialled(), "icn-1 http web-icn/8080, nrt-1 http web-nrt/80, nrt-2 http web-nrt/80, iad-1 http web-iad/80"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestASilentOriginLeavesOthersToBeAsked(t *testing.T) {
	const two = `
---
kind: Distribution
name: dead
aliases: [dead.test]
origins: [{name: web, url: "http://dead.test"}]
defaultCacheBehavior: {targetOrigin: web, cachePolicy: p}
`
	inWorld(t, site("")+two, func(t *testing.T, w *world) {
		w.origin(says(0, "well", "Cache-Control: max-age=60"))
		dead := w.in.Host("dead", spec.Location{}, netip.MustParseAddr("198.51.100.2"))
		w.in.Name("dead.test", dead.Addr())
		over := make(chan struct{})
		w.serve(dead, ":80", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-over }))
		ctx, leave := context.WithCancel(t.Context())
		var viewers sync.WaitGroup
		var busy atomic.Int32
		for i := range 1100 {
			viewers.Go(func() {
				r := httptest.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://dead.test/%d", i), nil)
				rw := httptest.NewRecorder()
				defer func() { recover() }() // it left
				w.Plane.ServeHTTP(rw, r)
				if rw.Code == http.StatusServiceUnavailable && rw.Header().Get("Retry-After") == "1" && rw.Header().Get("Cache-Status") == "perigee; detail=busy" {
					busy.Add(1)
				}
			})
		}
		time.Sleep(time.Second)
		if n := busy.Load(); n != 1100-1024 {
			t.Errorf("%d of 1,100 were refused, want %d", n, 1100-1024)
		}
		w.must("/", 200, "Miss", "well")
		if n := w.Counters()["cache_crowded_total"]; n != 1100-1024 {
			t.Errorf("%d are counted", n)
		}
		leave()
		close(over)
		viewers.Wait()
	})
}

// An origin that is written in several ways, or comes back with a later spec while fills of it run, has one share.
func TestAnOriginHasOneShareHoweverItIsWritten(t *testing.T) {
	const written = `
---
kind: Distribution
name: dead
aliases: [dead.test]
origins:
- {name: one, url: "http://dead.test"}
- {name: two, url: "http://DEAD.test:80", connectionAttempts: 2}
cacheBehaviors:
- {pathPattern: "/two/*", targetOrigin: two, cachePolicy: p}
defaultCacheBehavior: {targetOrigin: one, cachePolicy: p}
`
	inWorld(t, site("")+written, func(t *testing.T, w *world) {
		w.origin(says(0, "well", "Cache-Control: max-age=60"))
		dead := w.in.Host("dead", spec.Location{}, netip.MustParseAddr("198.51.100.2"))
		w.in.Name("dead.test", dead.Addr())
		over := make(chan struct{})
		w.serve(dead, ":80", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-over }))
		ctx, leave := context.WithCancel(t.Context())
		var viewers sync.WaitGroup
		var busy atomic.Int32
		ask := func(n int, under string) {
			for i := range n {
				viewers.Go(func() {
					r := httptest.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://dead.test%s%d", under, i), nil)
					rw := httptest.NewRecorder()
					defer func() { recover() }() // it left
					w.Plane.ServeHTTP(rw, r)
					if rw.Code == http.StatusServiceUnavailable {
						busy.Add(1)
					}
				})
			}
			time.Sleep(time.Second)
		}
		apply := func(text string) {
			if err := w.Apply(build(t, text)); err != nil {
				t.Fatal(err)
			}
		}
		ask(1000, "/one/")
		ask(50, "/two/")
		if n := busy.Load(); n != 1050-1024 {
			t.Errorf("%d of 1,050 were refused, want %d", n, 1050-1024)
		}
		apply(site(""))
		apply(site("") + strings.ReplaceAll(written, "connectionAttempts: 2", "connectionAttempts: 1"))
		ask(10, "/two/more/")
		if n := busy.Load(); n != 1060-1024 {
			t.Errorf("%d of 1,060 were refused, want %d", n, 1060-1024)
		}
		w.must("/", 200, "Miss", "well")
		leave()
		close(over)
		viewers.Wait()
		time.Sleep(time.Minute) // the fills end
		apply(site(""))
		if n := len(w.fillings) + len(w.idle); n != 1 {
			t.Errorf("%d origins have a share, want 1", n)
		}
	})
}

// Who says that he asks early gets the 425 that the origin answers that with, and nobody else does, or is kept apart for it.
func TestTooEarlyIsForWhoAsksEarly(t *testing.T) {
	inWorld(t, site("minTTL: 60s\ndefaultTTL: 60s"), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			early := r.Header.Values("Early-Data")
			time.Sleep(time.Second)
			rw.Header().Set("Cache-Control", "max-age=600")
			if len(early) > 0 {
				rw.WriteHeader(http.StatusTooEarly)
			}
			fmt.Fprintf(rw, "early: %q", early)
		})
		for range 2 { // of nothing, and of what is stale
			var both sync.WaitGroup
			both.Go(func() { w.must("/", 425, "Error", `early: ["1"]`, "Early-Data: 0", "Early-Data: x") })
			time.Sleep(100 * time.Millisecond)
			both.Go(func() { w.must("/", 200, "Miss", "early: []") })
			both.Wait()
			w.must("/", 200, "Miss", "early: []")
			w.must("/", 200, "Hit", "early: []")
			w.must("/", 200, "Hit", "early: []", "Early-Data: 1")
			time.Sleep(time.Hour)
		}
	})
}

func TestWhatPerigeeAnswersItselfSaysWhyAndIsCountedByReason(t *testing.T) {
	const more = `
---
kind: Distribution
name: others
aliases: [secure.test, moved.test]
origins: [{name: web, url: "http://nowhere.test"}]
defaultCacheBehavior: {targetOrigin: web, cachePolicy: p, viewerProtocolPolicy: https-only}
cacheBehaviors: [{pathPattern: /moved, targetOrigin: web, cachePolicy: p, viewerProtocolPolicy: redirect-to-https}]
`
	inWorld(t, site("requestDirectives: true")+more, func(t *testing.T, w *world) {
		w.in.Name("nowhere.test", netip.MustParseAddr("198.51.100.66"))
		w.origin(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Minute) })
		reasons := []string{"refused_forbidden", "refused_too_long", "refused_loop", "refused_unserved", "refused_only_if_cached", "refused_busy", "refused_unreached",
			"refused_timeout", "redirects"}
		total := uint64(0)
		for _, c := range []struct {
			method, path string
			lines        []string
			status       int
			said         string
			counter      string
		}{
			{"GET", "http://www.test/", []string{"Host: else.test"}, 403, "perigee; detail=forbidden", "refused_forbidden"},
			{"GET", "http://www.test/", []string{"Host: secure.test"}, 403, "perigee; detail=forbidden", "refused_forbidden"},
			{"GET", "/" + strings.Repeat("x", maxURL), nil, 414, "perigee; detail=too-long", "refused_too_long"},
			{"GET", "/", []string{"X: " + strings.Repeat("x", maxRequest)}, 413, "perigee; detail=too-long", "refused_too_long"},
			{"GET", "/", []string{"Cdn-Loop: perigee, perigee, perigee"}, 508, "perigee; detail=loop", "refused_loop"},
			{"GET", "/", []string{"Upgrade: websocket"}, 501, "perigee; detail=unserved", "refused_unserved"},
			{"GET", "http://www.test/moved", []string{"Host: moved.test"}, 301, "perigee; detail=redirect", "redirects"},
			{"POST", "http://www.test/moved", []string{"Host: moved.test"}, 307, "perigee; detail=redirect", "redirects"},
			{"GET", "/", []string{"Cache-Control: only-if-cached"}, 504, "perigee; detail=only-if-cached", "refused_only_if_cached"},
			{"GET", "/late", nil, 504, "perigee; fwd=uri-miss; detail=timeout", "refused_timeout"},
			{"POST", "/late", nil, 504, "perigee; fwd=method; detail=timeout", "refused_timeout"},
			{"GET", "https://secure.test/", nil, 502, "perigee; fwd=uri-miss; detail=unreached", "refused_unreached"},
		} {
			before := w.Counters()
			a, err := w.ask(t.Context(), c.method, c.path, "", c.lines...)
			if err != nil || a.StatusCode != c.status || fmt.Sprint(a.Header["Cache-Status"]) != "["+c.said+"]" {
				t.Errorf("%s %.20s %.30q: got %d, %q, %v; want %d, %s", c.method, c.path, c.lines, a.StatusCode, a.Header["Cache-Status"], err, c.status, c.said)
			}
			if total++; c.counter == "redirects" {
				total--
			}
			now := w.Counters()
			for _, name := range reasons {
				if got := now["cdn_"+name+"_total"] - before["cdn_"+name+"_total"]; got > 1 || (got == 1) != (name == c.counter) {
					t.Errorf("%s %.20s %.30q: %s rose by %d", c.method, c.path, c.lines, name, got)
				}
			}
			if now["cdn_refused_total"] != total {
				t.Errorf("%s %.20s %.30q: %d refused, want %d", c.method, c.path, c.lines, now["cdn_refused_total"], total)
			}
		}
		time.Sleep(time.Minute) // the origin has come to its end, too
	})
}
