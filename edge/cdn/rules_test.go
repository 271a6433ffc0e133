package cdn

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
)

// parts asks for ranges, and says what the parts must be: Content-Range, Content-Type and bytes of each.
func (w *world) parts(path, cache, ranges string, want ...string) {
	w.t.Helper()
	a := w.must(path, 206, cache, "*", "Range: "+ranges)
	kind, parameters, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" || a.Header.Get("Content-Range") != "" || a.Header.Get("Content-Length") != fmt.Sprint(len(a.body)) {
		w.t.Fatalf("%s: %v, %v", ranges, err, a.Header)
	}
	var got []string
	for r := multipart.NewReader(strings.NewReader(a.body), parameters["boundary"]); ; {
		part, err := r.NextPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			w.t.Fatalf("%s: %v in %q", ranges, err, a.body)
		}
		body, _ := io.ReadAll(part)
		got = append(got, part.Header.Get("Content-Range")+" "+part.Header.Get("Content-Type")+" "+string(body))
	}
	if !slices.Equal(got, want) {
		w.t.Errorf("%s: got %q, want %q", ranges, got, want)
	}
}

func TestARangeComesAsSoonAsItIsThere(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Length", "30")
			rw.Header().Set("Content-Type", "text/plain")
			for i := range 3 {
				time.Sleep(time.Duration(i) * 10 * time.Second)
				fmt.Fprint(rw, strings.Repeat(fmt.Sprint(i), 10))
				http.NewResponseController(rw).Flush()
			}
		})
		began := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() { w.must("/", 200, "Miss", "*") })
		time.Sleep(time.Second)
		w.must("/", 206, "Miss", "01", "Range: bytes=9-10")
		if since := time.Since(began); since > 12*time.Second {
			t.Errorf("after %v", since)
		}
		w.parts("/", "Miss", "bytes=0-0, 29-29", "bytes 0-0/30 text/plain 0", "bytes 29-29/30 text/plain 2")
		wg.Wait()
		if len(w.requests()) != 1 {
			t.Errorf("the origin was asked %d times", len(w.requests()))
		}
	})
}

func TestEarlyHintsAreForWhoAskedFirst(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			rw.Header().Set("Link", "</a.css>; rel=preload")
			rw.Header().Set("Set-Cookie", "s=1")
			rw.WriteHeader(http.StatusEarlyHints)
			time.Sleep(time.Second)
			clear(rw.Header())
			rw.Header().Set("Cache-Control", "max-age=60")
			fmt.Fprint(rw, "hello")
		})
		// hinted asks, and says what hints came.
		hinted := func(method string) string {
			var hints []string
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				hints = append(hints, fmt.Sprint(code, " ", h.Get("Link"), h.Get("Set-Cookie"), h.Get("Connection")))
				return nil
			}})
			a, err := w.ask(ctx, method, "/", "")
			if err != nil || a.StatusCode != 200 || a.Header.Get("Link") != "" || a.Header.Get("Set-Cookie") != "" {
				t.Errorf("%v, %v", err, a.Header)
			}
			return strings.Join(hints, ", ")
		}
		const hint = "103 </a.css>; rel=preload"
		var wg sync.WaitGroup
		wg.Go(func() {
			if got := hinted("GET"); got != hint {
				t.Errorf("the first got %q", got)
			}
		})
		time.Sleep(500 * time.Millisecond)
		if got := hinted("GET"); got != "" {
			t.Errorf("who joined got %q", got)
		}
		wg.Wait()
		if got := hinted("GET"); got != "" {
			t.Errorf("a hit had %q", got)
		}
		if got := hinted("POST"); got != hint {
			t.Errorf("a request past the cache got %q", got)
		}
	})
}

// stuck is a viewer who does not read.
type stuck struct {
	http.ResponseWriter
	free chan struct{}
}

func (s stuck) WriteHeader(int) { <-s.free }

func TestAViewerWhoDoesNotReadHintsHoldsUpNobody(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			rw.WriteHeader(http.StatusEarlyHints)
			time.Sleep(time.Second)
			fmt.Fprint(rw, "hello")
		})
		free := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			w.ServeHTTP(stuck{httptest.NewRecorder(), free}, httptest.NewRequest("GET", "http://www.test/", nil))
		})
		synctest.Wait()
		began := time.Now()
		w.must("/", 200, "Miss", "hello")
		if since := time.Since(began); since > 5*time.Second {
			t.Errorf("another waited %v", since)
		}
		close(free)
		wg.Wait()
	})
}

// raw is an origin that says what each connection's requests are answered, byte for byte. It answers one request a
// connection.
func (w *world) raw(answer func(r *http.Request, c net.Conn)) {
	w.t.Helper()
	host := w.in.Host("origin", spec.Location{Latitude: 35, Longitude: 139}, netip.MustParseAddr("198.51.100.1"))
	l, err := host.Listen("tcp", ":80")
	if err != nil {
		w.t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					w.mu.Lock()
					w.asked = append(w.asked, r)
					w.mu.Unlock()
					answer(r, c)
				}
			})
		}
	})
	w.t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
}

// What an origin sends is believed only as far as it holds together. Nothing of it is kept as whole that is not.
func TestAnOriginThatLiesIsNotBelieved(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\n"
	for _, c := range []struct {
		name, sends string
		want        string // status and body; a body that ends early ends in "…"
		counter     string // that goes up; else the response is kept and the second request is a hit
	}{
		{"a body that is short", ok + "Content-Length: 9\r\n\r\nhello", "200 hello…", "cache_truncated_total"},
		{"a body that is long", ok + "Content-Length: 5\r\n\r\nhello, world", "200 hello", ""}, // what follows is nobody's
		{"a chunk that ends early", ok + "Transfer-Encoding: chunked\r\n\r\n9\r\nhello", "200 hello…", "cache_truncated_total"},
		{"chunks without an end", ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "200 hello…", "cache_truncated_total"},
		{"a chunk of no size", ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n\r\n", "200 hello…", "cache_truncated_total"},
		{"a chunk that is longer than it says", ok + "Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n", "200 hel…", "cache_truncated_total"},
		{"a chunk of a size beyond all bounds", ok + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello", "200 …", "cache_truncated_total"},
		{"both ways to say the length", ok + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "200 hello", ""},
		{"a body to the end of the connection", ok + "\r\nhello", "200 hello", ""},
		{"two lengths that differ", ok + "Content-Length: 5\r\nContent-Length: 9\r\n\r\nhello", "502", "cdn_origin_errors_total"},
		{"two lengths that are one", ok + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "200 hello", ""},
		{"a length below zero", ok + "Content-Length: -5\r\n\r\nhello", "502", "cdn_origin_errors_total"},
		{"a length that is no number", ok + "Content-Length: five\r\n\r\nhello", "502", "cdn_origin_errors_total"},
		{"a coding that is not known", ok + "Transfer-Encoding: gzip\r\n\r\nhello", "502", "cdn_origin_errors_total"},
		{"no answer", "", "502", "cdn_origin_errors_total"},
		{"another protocol", "SSH-2.0-OpenSSH_9.2\r\n", "502", "cdn_origin_errors_total"},
		{"half a header", ok + "X-A", "502", "cdn_origin_errors_total"},
		{"a line that is no field", ok + "nonsense\r\n\r\n", "502", "cdn_origin_errors_total"},
		{"a field with a break in it", ok + "X-A: a\rb\r\nContent-Length: 0\r\n\r\n", "502", "cdn_origin_errors_total"},
		{"ten thousand fields", ok + strings.Repeat("X-A: b\r\n", 10000) + "\r\nhello", "502", "cdn_origin_errors_total"},
		{"a field without end", ok + "X-A: " + strings.Repeat("a", 1<<20), "502", "cdn_origin_errors_total"},
		{"a part nobody asked for", "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/10\r\nContent-Length: 5\r\n\r\nhello", "502", "cdn_origin_errors_total"},
		{"not modified, nobody asked", "HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=600\r\n\r\n", "502", "cdn_origin_errors_total"},
		{"a range that is refused, nobody asked", "HTTP/1.1 416 No\r\nCache-Control: max-age=600\r\nContent-Length: 2\r\n\r\nno", "416 no", "cdn_misses_total"},
		{"a protocol nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "502", "cdn_origin_errors_total"},
		{"interim responses without end", strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 1000) + ok + "\r\nhello", "502", "cdn_origin_errors_total"},
		{"as many as may be", strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", maxInterim) + ok + "Content-Length: 5\r\n\r\nhello", "200 hello", ""},
		{"a status beyond all", "HTTP/1.1 1000 No\r\n\r\n", "502", "cdn_origin_errors_total"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, site("")+"errorCachingMinTTL: 0\n", func(t *testing.T, w *world) {
				w.raw(func(_ *http.Request, conn net.Conn) {
					conn.SetDeadline(time.Now().Add(time.Minute))
					io.WriteString(conn, c.sends)
				})
				ask := func() string {
					a, err := w.ask(t.Context(), "GET", "/", "")
					if err != nil { // it ended with the head
						return "200 …"
					}
					got := fmt.Sprint(a.StatusCode)
					if a.StatusCode != 502 {
						got += " " + a.body
					}
					if a.err != nil {
						got += "…"
					}
					return got
				}
				before := w.Counters()
				if got := ask(); got != c.want {
					t.Errorf("got %q, want %q", got, c.want)
				}
				synctest.Wait()
				if c.counter != "" && w.Counters()[c.counter] == before[c.counter] {
					t.Errorf("%s did not count it", c.counter)
				}
				if kept := w.Counters()["cache_stored_total"]; (kept == 1) != (c.counter == "") {
					t.Errorf("kept %d times", kept)
				}
				if got := ask(); got != c.want {
					t.Errorf("the second time: got %q, want %q", got, c.want)
				}
				if asked := len(w.requests()); (asked == 1) != (c.counter == "") {
					t.Errorf("the origin was asked %d times", asked)
				}
				if busy := w.Counters()["cache_fills"]; busy != 0 {
					t.Errorf("%d fills go on", busy)
				}
			})
		})
	}
}

func TestAnOriginThatDrips(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/slow" {
				fmt.Fprint(rw, "quick")
				return
			}
			rw.Header().Set("Content-Length", "100")
			for range 100 {
				time.Sleep(time.Second)
				fmt.Fprint(rw, "x")
				http.NewResponseController(rw).Flush()
			}
		})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { w.must("/slow", 200, "Miss", strings.Repeat("x", 100)) })
		}
		time.Sleep(10 * time.Second)
		began := time.Now()
		w.must("/other", 200, "Miss", "quick")
		if since := time.Since(began); since > time.Second {
			t.Errorf("another response waited for it: %v", since)
		}
		wg.Wait()
		w.must("/slow", 200, "Hit", strings.Repeat("x", 100))
		if len(w.requests()) != 2 {
			t.Errorf("the origin was asked %d times", len(w.requests()))
		}
	})
}

func TestWhereTheOriginIsKnownToBeDownNobodyWaits(t *testing.T) {
	inWorld(t, site("")+"errorCachingMinTTL: 0\n", func(t *testing.T, w *world) {
		var down atomic.Bool
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			if down.Load() {
				<-r.Context().Done() // it is silent: each request for it waits 30 s
				return
			}
			rw.Header().Set("Cache-Control", "max-age=10, stale-if-error=86400")
			fmt.Fprint(rw, r.URL.Path)
		})
		for i := range 50 {
			w.must(fmt.Sprint("/", i), 200, "Miss", "*")
		}
		w.must("/x", 200, "Miss", "*")
		down.Store(true)
		time.Sleep(time.Minute)

		timed := func(path, status string) time.Duration {
			began := time.Now()
			a := w.must(path, 200, "Hit", path)
			if got := a.Header.Get("Cache-Status"); !strings.Contains(got, status) {
				t.Errorf("%s: %s", path, got)
			}
			return time.Since(began)
		}
		if took := timed("/0", "fwd=stale"); took < 30*time.Second {
			t.Errorf("the first found out in %v", took)
		}
		asked := len(w.requests())
		for i := range 50 {
			if took := timed(fmt.Sprint("/", i), "hit"); took > time.Second {
				t.Errorf("the next waited %v", took)
			}
		}
		time.Sleep(time.Second)
		if probes := len(w.requests()) - asked; probes < 1 || probes > 20 {
			t.Errorf("it was probed %d times", probes)
		}
		w.explained("/7", "hit")

		down.Store(false)
		time.Sleep(time.Second)
		timed("/x", "hit") // and the origin is asked meanwhile, and answers
		time.Sleep(time.Second)
		w.must("/x", 200, "Hit", "/x")
		w.must("/1", 200, "Miss", "/1")
	})
}

func TestASilentOriginDoesNotTakeUpAllFills(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		var down atomic.Bool
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			if down.Load() {
				<-r.Context().Done()
				return
			}
			rw.Header().Set("Cache-Control", "max-age=10, stale-while-revalidate=86400")
			fmt.Fprint(rw, r.URL.Path)
		})
		for i := range 100 {
			w.must(fmt.Sprint("/", i), 200, "Miss", "*")
		}
		down.Store(true)
		time.Sleep(time.Minute)
		w.must("/0", 200, "Hit", "/0")
		time.Sleep(31 * time.Second) // and now it is known
		for i := range 100 {
			w.must(fmt.Sprint("/", i), 200, "Hit", "*")
		}
		if busy := w.Counters()["cache_fills"]; busy > 10 {
			t.Errorf("%d fills wait for it", busy)
		}
	})
}

func TestAnUnsafeMethodForgetsWhatItsAnswerNames(t *testing.T) {
	for _, c := range []struct {
		name     string
		answer   []string // to the POST
		status   int
		forgets  bool
		location string // what is kept before
	}{
		{"Location", []string{"Location: /made"}, 201, true, "/made"},
		{"Content-Location", []string{"Content-Location: made"}, 200, true, "/made"},
		{"a redirect", []string{"Location: /made"}, 303, true, "/made"},
		{"by the viewer's name for it", []string{"Location: http://www.test/made"}, 201, true, "/made"},
		{"by the origin's name for it", []string{"Location: http://origin.test/made"}, 201, true, "/made"},
		{"another origin", []string{"Location: http://else.test/made"}, 201, false, "/made"},
		{"another port", []string{"Location: http://www.test:81/made"}, 201, false, "/made"},
		{"an error", []string{"Location: /made"}, 500, false, "/made"},
		{"a refusal", []string{"Location: /made"}, 403, false, "/made"},
		{"no URI", []string{"Location: ://"}, 201, false, "/made"},
		{"nothing", nil, 200, false, "/made"},
		{"a query", []string{"Location: /made?x=1"}, 201, true, "/made?x=1"},
		{"another query", []string{"Location: /made?x=2"}, 201, false, "/made?x=1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, site("queryStrings: {behavior: all}"), func(t *testing.T, w *world) {
				w.origin(func(rw http.ResponseWriter, r *http.Request) {
					if r.Method == "POST" {
						for _, line := range c.answer {
							name, value, _ := strings.Cut(line, ": ")
							rw.Header().Set(name, value)
						}
						rw.WriteHeader(c.status)
					}
				})
				w.must(c.location, 200, "Miss", "")
				if a, err := w.ask(t.Context(), "POST", "/make", "x"); err != nil || a.StatusCode != c.status {
					t.Fatal(err, a.StatusCode)
				}
				want := "Hit"
				if c.forgets {
					want = "Miss"
				}
				w.must(c.location, 200, want, "")
			})
		})
	}
}

func TestAHEADForWhatCannotBeValidatedIsPassedAndNoted(t *testing.T) {
	for _, c := range []struct {
		name string
		head []string // what the HEAD is answered besides
		want string   // of the GET after it
	}{
		{"the same", []string{"Content-Length: 5", "Cache-Control: max-age=600"}, "Hit"},
		{"longer", []string{"Content-Length: 6", "Cache-Control: max-age=600"}, "Miss"},
		{"with a tag", []string{`Etag: "2"`, "Cache-Control: max-age=600"}, "Miss"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, site("defaultTTL: 10"), func(t *testing.T, w *world) {
				w.origin(func(rw http.ResponseWriter, r *http.Request) {
					rw.Header().Set("X-Method", r.Method)
					if r.Method == "HEAD" {
						for _, line := range c.head {
							name, value, _ := strings.Cut(line, ": ")
							rw.Header().Set(name, value)
						}
						return
					}
					rw.Header().Set("Cache-Control", "max-age=10, stale-if-error=60")
					fmt.Fprint(rw, "hello")
				})
				w.must("/", 200, "Miss", "hello")
				time.Sleep(time.Minute)
				a, err := w.ask(t.Context(), "HEAD", "/", "")
				if err != nil || a.Header.Get("X-Method") != "HEAD" || !strings.Contains(a.Header.Get("Cache-Status"), "fwd=stale") {
					t.Errorf("%v, %v", err, a.Header)
				}
				if c.want == "Hit" {
					if b := w.must("/", 200, "Hit", "hello"); b.Header.Get("X-Method") != "HEAD" {
						t.Errorf("not updated: %v", b.Header)
					}
					return
				}
				w.must("/", 200, c.want, "hello")
			})
		})
	}
}

func TestFieldsOfOneViewerAreNotGivenToAnother(t *testing.T) {
	inWorld(t, site("cookies: {behavior: whitelist, items: [none]}"), func(t *testing.T, w *world) {
		w.origin(says(time.Second, "hello", `Cache-Control: max-age=10, private="Set-Cookie"`, "Set-Cookie: s=1", `Etag: "1"`))
		first := make(chan answer, 1)
		go func() { first <- w.get("/") }()
		time.Sleep(500 * time.Millisecond)
		if a := w.must("/", 200, "Miss", "hello"); a.Header.Get("Set-Cookie") != "" {
			t.Errorf("who joined got %v", a.Header)
		}
		if a := <-first; a.Header.Get("Set-Cookie") != "s=1" {
			t.Errorf("the first got %v", a.Header)
		}
		if a := w.must("/", 200, "Hit", "hello"); a.Header.Get("Set-Cookie") != "" {
			t.Errorf("a hit had %v", a.Header)
		}
	})
}

func TestAViewersDirectivesCountWhereThePolicySaysSo(t *testing.T) {
	for _, follow := range []bool{false, true} {
		t.Run(fmt.Sprint(follow), func(t *testing.T) {
			inWorld(t, site(fmt.Sprintf("requestDirectives: %v", follow)), func(t *testing.T, w *world) {
				var down atomic.Bool
				w.origin(func(rw http.ResponseWriter, r *http.Request) {
					if down.Load() {
						rw.WriteHeader(503)
						return
					}
					rw.Header().Set("Cache-Control", "max-age=100, stale-if-error=1000")
					rw.Header().Set("Etag", `"1"`)
					if r.Header.Get("If-None-Match") != "" {
						rw.WriteHeader(304)
						return
					}
					fmt.Fprint(rw, "hello")
				})
				must := func(control string, status int, cache, cacheStatus string) {
					t.Helper()
					if !follow {
						status, cache, cacheStatus = 200, "Hit", "perigee; hit"
					}
					a := w.must("/", status, cache, "*", "Cache-Control: "+control)
					if got := a.Header.Get("Cache-Status"); !strings.HasPrefix(got, cacheStatus) {
						t.Errorf("%s: %s", control, got)
					}
				}
				if follow {
					must("only-if-cached", 504, "Error", "")
				}
				w.must("/", 200, "Miss", "hello")
				time.Sleep(10 * time.Second)
				must("only-if-cached", 200, "Hit", "perigee; hit")
				must("no-cache", 200, "RefreshHit", "perigee; fwd=request; fwd-status=304; stored")
				must("min-fresh=200", 200, "RefreshHit", "perigee; fwd=request; fwd-status=304; stored")
				time.Sleep(10 * time.Second)
				must("max-age=5", 200, "RefreshHit", "perigee; fwd=request; fwd-status=304; stored")
				must("no-store", 200, "Miss", "perigee; fwd=request; fwd-status=200; detail=no-store")
				must("no-store, only-if-cached", 504, "Error", "")
				down.Store(true)
				must("no-cache", 502, "Error", "") // and not what is kept, which it did not prove
				if !follow {
					return
				}
				time.Sleep(105 * time.Second)
				must("max-stale=10", 200, "Hit", "perigee; hit; ttl=-5; detail=max-stale")
				must("max-stale=1, only-if-cached", 504, "Error", "")
			})
		})
	}
}

// What the origin is sent is what is in the key: nothing else that a viewer sends can change what others get.
func TestWhatIsNotInTheKeyDoesNotReachTheOrigin(t *testing.T) {
	inWorld(t, site("queryStrings: {behavior: whitelist, items: [a]}"), func(t *testing.T, w *world) {
		// The origin answers by all that it is sent, but for what says who asks.
		w.origin(func(rw http.ResponseWriter, r *http.Request) {
			for _, name := range []string{"X-Perigee-Id", "X-Forwarded-For", "Via", "Cdn-Loop"} {
				r.Header.Del(name)
			}
			fmt.Fprintf(rw, "%s %s %v", r.Host, r.RequestURI, r.Header)
		})
		want := w.must("/a?a=1", 200, "Miss", "*").body
		for i, line := range []string{
			"X-Forwarded-Host: evil.test", "X-Host: evil.test", "X-Forwarded-Server: evil.test", "Forwarded: host=evil.test", "X-Original-URL: /admin",
			"X-Rewrite-URL: /admin", "X-Forwarded-Scheme: ftp", "X-Forwarded-Proto: ftp", "X-Forwarded-Port: 1", "X-Forwarded-Prefix: /evil",
			"X-HTTP-Method-Override: DELETE", "X-HTTP-Method: DELETE", "X-Method-Override: DELETE", "Origin: https://evil.test", "Referer: https://evil.test/",
			"User-Agent: evil", "Accept: evil/*", "Accept-Language: xx", "Authorization: Basic evil", "Cookie: a=evil", "Range: bytes=0-0", "Expect: 100-continue",
			"X-Perigee-Pop: evil", "True-Client-IP: 192.0.2.66", "Content-Type: evil/x", "Max-Forwards: 0", "Upgrade-Insecure-Requests: 1", "Te: trailers",
		} {
			path := fmt.Sprintf("/a?evil=%d&a=1", i)
			time.Sleep(48 * time.Hour) // each asks the origin anew
			a, err := w.ask(t.Context(), "GET", path, "", line, "Connection: close")
			if err != nil || a.StatusCode != 200 && a.StatusCode != 206 {
				t.Errorf("%s: %v %d", line, err, a.StatusCode)
			}
			if got := w.must("/a?a=1", 200, "Hit", "*").body; got != want {
				t.Errorf("%s changes what others get: %s", line, got)
			}
		}
	})
}

// speak sends a request as it is to the edge, and returns the answer.
func (w *world) speak(request string) (*http.Response, string) {
	w.t.Helper()
	c, err := w.viewer.Dial(context.Background(), "tcp", netip.AddrPortFrom(w.edge.Addr(), 80).String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, request)
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	return response, string(body)
}

func TestAPathIsKeyedAndSentAsItWasWritten(t *testing.T) {
	inWorld(t, site("queryStrings: {behavior: all}"), func(t *testing.T, w *world) {
		w.origin(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, r.RequestURI) })
		paths := []string{
			"/", "//", "/a", "/a/", "//a", "/a//b", "/a/b", "/./a", "/a/.", "/b/../a", "/%61", "/%2e/a", "/%2e%2e/a", "/%2E%2E/a", "/a%2fb", "/a%2Fb", "/a%5cb",
			`/a\b`, "/a%00", "/a%00b", "/a%0d%0aX-A:%20b", "/a;b", "/a%3bb", "/a%3f", "/a%23", "/a%25", "/a%2525", "/a+b", "/a%20b", "/%e2%82%ac", "/%E2%82%AC", "/a?", "/a?b", "/a?%62",
			"/a?b&", "/a?b=/../c", "/*", "/a*",
		}
		for _, path := range paths {
			for _, cache := range []string{"Miss", "Hit"} {
				response, body := w.speak("GET " + path + " HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n\r\n")
				if path == "/a?" {
					cache, path = "Hit", "/a" // an empty query is none
				}
				want := path
				if path == `/a\b` {
					want = "/a%5Cb" // it is no character of a URI
				}
				if response.StatusCode != 200 || body != want || response.Header.Get("X-Cache") != cache+" from perigee" {
					t.Errorf("%s: %d, %s, the origin was asked for %q", path, response.StatusCode, response.Header.Get("X-Cache"), body)
				}
			}
		}
	})
}

func TestABodyIsAskedForOnlyWhenItIsWanted(t *testing.T) {
	inWorld(t, site(""), func(t *testing.T, w *world) {
		w.origin(says(0, "done"))
		c, err := w.viewer.Dial(t.Context(), "tcp", netip.AddrPortFrom(w.edge.Addr(), 80).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: www.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
		from := bufio.NewReader(c)
		if line, err := from.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
			t.Fatalf("%q, %v", line, err)
		}
		from.ReadString('\n')
		io.WriteString(c, "hello")
		if response, err := http.ReadResponse(from, nil); err != nil || response.StatusCode != 200 {
			t.Fatal(err)
		}
		asked := w.requests()
		if len(asked) != 1 || w.bodies[0] != "hello" || asked[0].Header.Get("Expect") != "" {
			t.Errorf("the origin was asked %v with %q", asked, w.bodies)
		}
	})
}
