package origin

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
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/edge/http1"
	"github.com/perigee-net/perigee/testbed/doorway"
)

// What the relay answers, or what was begun by it, the handler answers alike, and the target is asked alike.
func TestTheRelayAnswersAsTheHandlerDoes(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		var asked atomic.Pointer[string]
		w.serve(w.targets[0], ":80", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			h := r.Header.Clone()
			if trace := h.Get(traceID); !strings.HasPrefix(trace, "Root=1-") || len(trace) != len("Root=1-00000000-000000000000000000000000") {
				h.Set("odd", trace)
			}
			h.Del(traceID)
			text := fmt.Sprint(r.Method, r.RequestURI, r.Host, h)
			asked.Store(&text)
			answerBy(rw, r)
		}))
		s := w.spec()
		s.LoadBalancers["web"].Listeners[0].Rules = []spec.ListenerRule{
			{Priority: 1, Conditions: []spec.Condition{{HostHeader: []string{"moved.test"}}}, Action: spec.Action{Redirect: &spec.Redirect{Path: "/x"}}},
			{Priority: 2, Conditions: []spec.Condition{{HTTPRequestMethod: []string{"HEAD"}}, {PathPattern: []string{"/fixed*"}}}, Action: spec.Action{FixedResponse: &spec.FixedResponse{StatusCode: 410}}},
		}
		w.apply(s)
		r := rand.New(rand.NewPCG(1, 2))
		pick := func(from ...string) string { return from[r.IntN(len(from))] }
		maybe := func(one int, s string) string {
			if r.IntN(one) == 0 {
				return s
			}
			return ""
		}
		handler, relay := w.plane.Handler("web", 80), w.plane.Relay("web", 80)
		slowly := func(text string, begun http1.Begun) *http.Response {
			q, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
			if err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			q.RemoteAddr = "203.0.113.9:1234"
			if begun != nil {
				defer begun.Drop()
				q = q.WithContext(http1.Begin(q.Context(), begun))
			}
			rec := httptest.NewRecorder()
			handler.ServeHTTP(rec, q)
			return rec.Result()
		}
		answered, goneOn := 0, 0
		for range 2000 {
			text := pick("GET", "GET", "HEAD") + " " + pick("/x", "/x", "/fixed", "/untyped", "/coded", "/undated", "/unreached", "/svc", "/two", "/empty", "/none", "/failed", "/chunked", "/close", "/long", "/a%20b", "//x", "/%2e") +
				maybe(3, pick("?", "?a=1&b=%20", "?a|b")) + " HTTP/1.1\r\nHost: " + pick("a.test", "a.test", "A.test:80", "a.test:81", "moved.test", "[::1]") + "\r\n" +
				maybe(3, "user-agent: "+pick("x", "")+"\r\n") + maybe(3, "X-A: 1\r\nx-a: 2\r\n") + maybe(4, "Cookie: a=1\r\n") +
				maybe(6, pick("TE: trailers", "X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: gopher", "X-Forwarded-Port: 1", "X-Amzn-Trace-Id: Root=1-x;a=b", "Connection: keep-alive\r\nKeep-Alive: 5",
					"Trailer: X-A", "Proxy-Connection: x", "Proxy-Authorization: x", "Proxy-Authenticate: x", "Pragma: no-cache", "Close: x", "Range: bytes=0-1", "Accept-Encoding: gzip", "Authorization: x")+"\r\n") + "\r\n"
			q := &http1.Request{Now: time.Now()}
			if q.Parse([]byte(text)) != http1.Plain {
				continue
			}
			q.Remote = netip.MustParseAddrPort("203.0.113.9:1234")
			var a http1.Response
			var got *http.Response
			ok, begun := relay(q, &a, func() []byte { return make([]byte, 0, 8<<10) })
			switch {
			case ok:
				answered++
				if q.Head {
					a.Body = nil
				}
				var err error
				in := bufio.NewReader(io.MultiReader(bytes.NewReader(a.Head), bytes.NewReader(bytes.Clone(a.Body))))
				if got, err = http.ReadResponse(in, &http.Request{Method: text[:strings.IndexByte(text, ' ')]}); err != nil || got.StatusCode != a.Status {
					t.Fatalf("%q is answered %d, %q: %v", text, a.Status, a.Head, err)
				}
				a.Done()
			case begun != nil:
				goneOn++
				got = slowly(text, begun)
			default:
				slowly(text, nil)
				continue
			}
			first := *asked.Load()
			want := slowly(text, nil)
			if second := *asked.Load(); first != second {
				t.Fatalf("%s\nasks\n%s\n\nand by the handler\n%s", text, first, second)
			}
			if one, two := said(t, got), said(t, want); one != two {
				t.Fatalf("%s\nis answered\n%s\n\nand by the handler\n%s", text, one, two)
			}
		}
		if answered < 300 || goneOn < 100 {
			t.Errorf("%d were answered, %d gone on with", answered, goneOn)
		}
	})
}

// answerBy answers by the path.
func answerBy(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/plain")
	h.Set("Date", "Fri, 31 Dec 1999 23:59:59 GMT")
	h["x-odd-Case"] = []string{"1"}
	switch r.URL.Path {
	case "/untyped":
		h["Content-Type"] = nil
	case "/coded":
		h["Content-Type"], h["Content-Encoding"] = nil, []string{"x"}
	case "/undated":
		h["Date"] = nil
	case "/unreached":
		h.Set(Unreached, "1")
	case "/svc":
		h.Set("Alt-Svc", `h3=":443"`)
	case "/two":
		h.Add("Set-Cookie", "a=b")
		h.Add("Set-Cookie", "c=d")
	case "/empty":
		h.Set("Content-Length", "0")
		return
	case "/none":
		w.WriteHeader(204)
		return
	case "/failed":
		w.WriteHeader(503)
	case "/chunked":
		w.(http.Flusher).Flush()
	case "/close":
		h.Set("Connection", "close")
	case "/long":
		io.WriteString(w, strings.Repeat("x", 10<<10))
	}
	io.WriteString(w, "hello")
}

// said is an answer as text, but for a time that is not the target's.
func said(t *testing.T, r *http.Response) string {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	h := r.Header.Clone()
	if !strings.HasPrefix(h.Get("Date"), "Fri") {
		h.Del("Date") // the front's to say, or just now said
	}
	if !slices.Contains(r.TransferEncoding, "chunked") && r.ContentLength >= 0 {
		h.Set("Content-Length", fmt.Sprint(r.ContentLength))
	}
	if kind := h.Get("Content-Type"); strings.HasPrefix(kind, "text/plain;") {
		h.Del("Content-Type") // guessed
	}
	h.Del("Connection")
	return fmt.Sprint(r.StatusCode, h, string(body))
}

// A target that is late, or breaks off, is the handler's: who asked gets its answer, or the next target's.
func TestALateTargetIsWaitedFor(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		for i, at := range w.targets {
			var n atomic.Int64
			w.serve(at, ":80", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/late":
					time.Sleep(5 * time.Second)
				case r.URL.Path == "/broken" && i == 0:
					panic(http.ErrAbortHandler)
				}
				fmt.Fprint(rw, i, n.Add(1))
			}))
		}
		for range 4 {
			for _, path := range []string{"/warm", "/warm", "/late", "/broken"} {
				res, err := w.client.Get("http://" + w.node.Addr().String() + path)
				if err != nil {
					t.Fatal(err)
				}
				if body, err := io.ReadAll(res.Body); res.StatusCode != 200 || err != nil {
					t.Errorf("%s: answered %d %q %v", path, res.StatusCode, body, err)
				}
				res.Body.Close()
			}
		}
		synctest.Wait()
		if w.doorway.Relayed.Load() == 0 || w.doorway.Begun.Load() < 8 {
			t.Errorf("%d were relayed, %d begun", w.doorway.Relayed.Load(), w.doorway.Begun.Load())
		}
	})
}

func TestTheIdleTimeoutIsCountedFromTheRelay(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		done := make(chan struct{})
		defer close(done)
		w.serve(w.targets[0], ":80", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/silent" {
				<-done
			}
			io.WriteString(rw, "x")
		}))
		s := w.spec()
		idle := spec.Duration(2 * time.Second)
		s.LoadBalancers["web"].IdleTimeout = &idle
		w.apply(s)
		for _, path := range []string{"/warm", "/silent"} {
			start := time.Now()
			res, err := w.client.Get("http://" + w.node.Addr().String() + path)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if took := time.Since(start).Round(time.Second); path == "/silent" && (res.StatusCode != http.StatusGatewayTimeout || took != 2*time.Second) {
				t.Errorf("answered %d after %v", res.StatusCode, took)
			}
		}
		if w.doorway.Begun.Load() != 2 {
			t.Errorf("%d were begun", w.doorway.Begun.Load())
		}
	})
}

// canned is a plane whose only target answers at once, to whom a connection is kept, and a request that it relays.
func canned(t *testing.T, as func(doorway.Canned) net.Conn) (*Plane, *http1.Request) {
	p := New(Config{Region: "here", Dial: func(context.Context, string, string) (net.Conn, error) {
		return as(doorway.Canned{Answer: []byte("HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\nhello")}), nil
	}})
	t.Cleanup(p.Close)
	w := &world{targets: nil}
	s := w.spec()
	s.TargetGroups["web"].Targets = []spec.Target{{Address: netip.MustParseAddr("10.0.0.1"), Port: 80}}
	if err := p.Apply(s); err != nil {
		t.Fatal(err)
	}
	p.Handler("web", 80).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)) // has a connection be kept
	q := &http1.Request{Now: time.Now()}
	if q.Parse([]byte("GET /a?b HTTP/1.1\r\nHost: x.test\r\nAccept: */*\r\nCookie: a=b\r\n\r\n")) != http1.Plain {
		t.Fatal("it is not plain")
	}
	q.Remote = netip.MustParseAddrPort("203.0.113.9:1234")
	return p, q
}

func TestTheRelayAllocatesNothing(t *testing.T) {
	p, q := canned(t, func(c doorway.Canned) net.Conn { return c })
	if n := doorway.Allocations(t, p.Relay("web", 80), q); n > 3 { // under the race detector pools forget some of what they are given; without it, it is 0
		t.Errorf("%v allocations", n)
	}
}

// closing is a connection to a target, of which it says whether it was closed.
type closing struct {
	doorway.Canned
	closed *bool
}

func (c closing) Close() error {
	*c.closed = true
	return nil
}

func TestAPanicOfTheRelayEndsItsConnection(t *testing.T) {
	closed, panicked := false, false
	p, q := canned(t, func(c doorway.Canned) net.Conn { return closing{c, &closed} })
	func() {
		defer func() { panicked = recover() != nil }()
		p.Relay("web", 80)(q, &http1.Response{}, func() []byte { panic("no room") })
	}()
	if !panicked || !closed {
		t.Errorf("it panicked: %v, its connection is closed: %v", panicked, closed)
	}
}
