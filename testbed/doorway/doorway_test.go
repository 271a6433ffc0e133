package doorway

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/perigee-net/perigee/edge/http1"
)

// begun is what a Relay has begun, of which it says whether it was dropped.
type begun struct{ dropped *bool }

func (b begun) Drop() { *b.dropped = true }

func TestTheRelayIsAskedBeforeTheHandler(t *testing.T) {
	var dropped bool
	var done int
	d := &Doorway{
		T: t,
		Relay: func(q *http1.Request, a *http1.Response, room func() []byte) (bool, http1.Begun) {
			switch {
			case string(q.Path) == "/begun":
				return false, begun{&dropped}
			case string(q.Path) != "/relayed":
				return false, nil
			}
			a.Status, a.Done = http.StatusTeapot, func() { done++ }
			a.Head = append(room(), "HTTP/1.1 418 I'm a teapot\r\nX-By: relay\r\nContent-Length: 5\r\n\r\n"...)
			a.Body = []byte("hello")
			return true, nil
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "by the handler") }),
	}
	for _, c := range []struct {
		request       *http.Request
		status        int
		body          string
		relayed, left int64
	}{
		{httptest.NewRequest("GET", "/relayed", nil), 418, "hello", 1, 0},
		{httptest.NewRequest("HEAD", "/relayed", nil), 418, "", 2, 0},
		{httptest.NewRequest("GET", "/other", nil), 200, "by the handler", 2, 0},
		{httptest.NewRequest("GET", "/begun", nil), 200, "by the handler", 2, 1},
		{httptest.NewRequest("POST", "/relayed", strings.NewReader("a body is not plain")), 200, "by the handler", 2, 1},
	} {
		w := httptest.NewRecorder()
		d.ServeHTTP(w, c.request)
		if w.Code != c.status || w.Body.String() != c.body || (w.Header().Get("X-By") == "relay") != (c.status == 418) {
			t.Errorf("%s %s: got %d %v %q", c.request.Method, c.request.URL, w.Code, w.Header(), w.Body)
		}
		if d.Relayed.Load() != c.relayed || d.Begun.Load() != c.left {
			t.Errorf("%s %s: %d relayed, %d begun", c.request.Method, c.request.URL, d.Relayed.Load(), d.Begun.Load())
		}
	}
	if !dropped || done != 2 {
		t.Errorf("what was begun is dropped: %v; of two answers %d are done", dropped, done)
	}
}

// failing takes note of a failure where a test would fail.
type failing struct {
	testing.TB
	failed bool
}

func (f *failing) Errorf(string, ...any) { f.failed = true }

func TestAnAnswerThatIsNoResponseFailsTheTest(t *testing.T) {
	for name, head := range map[string]string{"nonsense": "hello\r\n\r\n", "another status": "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"} {
		f := &failing{TB: t}
		d := &Doorway{T: f, Relay: func(_ *http1.Request, a *http1.Response, room func() []byte) (bool, http1.Begun) {
			a.Status, a.Head = http.StatusNotFound, append(room(), head...)
			return true, nil
		}}
		func() {
			defer func() {
				if recover() != http.ErrAbortHandler {
					t.Errorf("%s: the handler goes on", name)
				}
			}()
			d.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		}()
		if !f.failed {
			t.Errorf("%s passes", name)
		}
	}
}
