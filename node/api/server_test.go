package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestARefusalArrivesAsItWasSaid(t *testing.T) {
	said := &Error{Status: http.StatusUnprocessableEntity, Message: "refused", Faults: []string{"a.yaml:1: no", "a.yaml:2: no"}}
	b := backendOf()
	b.Apply = func(context.Context, Principal, ApplyRequest) (ApplyResponse, error) { return ApplyResponse{}, said }
	_, err := clientOf(t, b, "operator").Apply(t.Context(), ApplyRequest{})
	var got *Error
	if !errors.As(err, &got) || !reflect.DeepEqual(got, said) {
		t.Errorf("got %#v, want %#v", err, said)
	}
}

func TestIfMatchIsTheRevisionThatIsExpected(t *testing.T) {
	for _, route := range []struct{ path, body string }{{"/v1/apply", `{}`}, {"/v1/rollback", `{"revision":1}`}} {
		for _, c := range []struct {
			match string
			want  int
		}{
			{`"7"`, http.StatusOK}, {`7`, http.StatusOK}, {`*`, http.StatusOK}, {``, http.StatusOK},
			{`"6"`, http.StatusPreconditionFailed}, {`"8"`, http.StatusPreconditionFailed},
			{`W/"7"`, http.StatusBadRequest}, {`"6", "7"`, http.StatusBadRequest}, {`"seven"`, http.StatusBadRequest}, {`"-1"`, http.StatusBadRequest},
			{`"18446744073709551616"`, http.StatusBadRequest},
		} {
			b := backendOf()
			judge := func(expect *uint64) error {
				if expect != nil && *expect != 7 {
					return Conflict(*expect, 7)
				}
				return nil
			}
			b.Apply = func(_ context.Context, _ Principal, r ApplyRequest) (ApplyResponse, error) {
				return ApplyResponse{Revision: 8}, judge(r.Expect)
			}
			b.Rollback = func(_ context.Context, _ Principal, r RollbackRequest) (ApplyResponse, error) {
				return ApplyResponse{Revision: 8}, judge(r.Expect)
			}
			var header []string
			if c.match != "" {
				header = []string{"If-Match", c.match}
			}
			w := asked(serverOf(b), "operator", http.MethodPost, route.path, route.body, header...)
			if w.Code != c.want {
				t.Errorf("%s If-Match %s: %d, want %d: %s", route.path, c.match, w.Code, c.want, w.Body)
			}
			if tag := w.Header().Get("ETag"); c.want == http.StatusOK && tag != `"8"` {
				t.Errorf("%s If-Match %s: ETag %s", route.path, c.match, tag)
			}
		}
	}
	s := serverOf(backendOf())
	if w := asked(s, "admin", http.MethodDelete, "/v1/nodes/a", "", "If-Match", `"7"`); w.Code != http.StatusBadRequest {
		t.Errorf("a route that follows no revision takes If-Match: %d", w.Code)
	}
	if w := asked(s, "reader", http.MethodGet, "/v1/resources", ""); w.Header().Get("ETag") != `"7"` {
		t.Errorf("resources have the ETag %s", w.Header().Get("ETag"))
	}
	if w := asked(s, "operator", http.MethodPost, "/v1/apply", `{"dryRun":true}`); w.Header().Get("ETag") != "" {
		t.Errorf("a dry run has the ETag %s", w.Header().Get("ETag"))
	}
}

func TestTheETagThatWasReadIsTakenAsIfMatch(t *testing.T) {
	b := backendOf()
	var expected *uint64
	b.Apply = func(_ context.Context, _ Principal, r ApplyRequest) (ApplyResponse, error) {
		expected = r.Expect
		return ApplyResponse{}, nil
	}
	s := serverOf(b)
	tag := asked(s, "operator", http.MethodGet, "/v1/resources", "").Header().Get("ETag")
	asked(s, "operator", http.MethodPost, "/v1/apply", `{}`, "If-Match", tag)
	if expected == nil || *expected != 7 {
		t.Errorf("%s became %v", tag, expected)
	}
}

func TestBadRequestsAreRefusedInWords(t *testing.T) {
	s := serverOf(backendOf())
	long := strings.Repeat("x", maxName+1)
	for _, c := range []struct {
		method, target, body string
		want                 int
		words                string
	}{
		{http.MethodPost, "/v1/apply", "nonsense", http.StatusBadRequest, "decode the body"},
		{http.MethodPost, "/v1/apply", "", http.StatusBadRequest, "empty"},
		{http.MethodPost, "/v1/apply", `{"fils":[]}`, http.StatusBadRequest, "fils"},
		{http.MethodPost, "/v1/apply", `{"author":"me"}`, http.StatusBadRequest, "author"},
		{http.MethodPost, "/v1/apply", `{"Expect":7}`, http.StatusBadRequest, "Expect"},
		{http.MethodPost, "/v1/apply", `{"files":[{"nam":"a"}]}`, http.StatusBadRequest, "nam"},
		{http.MethodPost, "/v1/apply", `{} {}`, http.StatusBadRequest, "follows"},
		{http.MethodPost, "/v1/apply", `{"files":"a"}`, http.StatusBadRequest, "files"},
		{http.MethodPost, "/v1/apply", `[]`, http.StatusBadRequest, "decode the body"},
		{http.MethodPost, "/v1/apply", strings.Repeat(`{"files":`, 20000), http.StatusBadRequest, "decode the body"},
		{http.MethodPost, "/v1/apply", strings.Repeat(`[`, 20000), http.StatusBadRequest, "decode the body"},
		{http.MethodPost, "/v1/apply", `{"prune":{}}`, http.StatusBadRequest, "label"},
		{http.MethodPost, "/v1/diff", `{"prune":{"labels":{}}}`, http.StatusBadRequest, "label"},
		{http.MethodPost, "/v1/apply", strings.Repeat(" ", MaxBody+1), http.StatusRequestEntityTooLarge, "longer than"},
		{http.MethodPost, "/v1/tokens", strings.Repeat(" ", maxSmall+1), http.StatusRequestEntityTooLarge, "longer than"},
		{http.MethodPost, "/v1/tokens", `{"ttl":"soon"}`, http.StatusBadRequest, "soon"},
		{http.MethodPost, "/v1/tokens", `{"ttl":"-1h"}`, http.StatusBadRequest, "negative"},
		{http.MethodPost, "/v1/tokens", `{"ttl":3600}`, http.StatusBadRequest, "decode the body"},
		{http.MethodPost, "/v1/tokens", `{"uses":1e99}`, http.StatusBadRequest, "uses"},
		{http.MethodPost, "/v1/explain", `{`, http.StatusBadRequest, "decode the body"},
		{http.MethodGet, "/v1/nothing", "", http.StatusNotFound, "/v1/nothing"},
		{http.MethodGet, "/", "", http.StatusNotFound, "openapi.json"},
		{http.MethodDelete, "/v1/apply", "", http.StatusMethodNotAllowed, "POST"},
		{http.MethodPost, "/v1/join", "{}", http.StatusNotFound, ""}, // at the control port only
		{http.MethodGet, "/v1/resources?knd=X", "", http.StatusBadRequest, "knd"},
		{http.MethodGet, "/v1/resources?kind=X&kind=Y", "", http.StatusBadRequest, "kind"},
		{http.MethodGet, "/v1/resources?kind=" + long, "", http.StatusBadRequest, "kind"},
		{http.MethodGet, "/v1/resources?kind=%zz", "", http.StatusBadRequest, "query"},
		{http.MethodGet, "/v1/resources?fresh=yes", "", http.StatusBadRequest, "fresh"},
		{http.MethodGet, "/v1/status?x=1", "", http.StatusBadRequest, "x"},
		{http.MethodGet, "/v1/history?limit=0", "", http.StatusBadRequest, "limit"},
		{http.MethodGet, "/v1/history?limit=1001", "", http.StatusBadRequest, "1000"},
		{http.MethodGet, "/v1/history?limit=ten", "", http.StatusBadRequest, "ten"},
		{http.MethodGet, "/v1/revisions/last", "", http.StatusBadRequest, "last"},
		{http.MethodGet, "/v1/revisions/-1/resources", "", http.StatusBadRequest, "-1"},
		{http.MethodGet, "/v1/revisions/99999999999999999999/wait", "", http.StatusBadRequest, "number"},
		{http.MethodGet, "/v1/revisions/1/wait?timeout=10", "", http.StatusBadRequest, "30s"},
		{http.MethodGet, "/v1/revisions/1/wait?timeout=6m", "", http.StatusBadRequest, "5m"},
		{http.MethodGet, "/v1/revisions/1/wait?timeout=-1s", "", http.StatusBadRequest, "timeout"},
		{http.MethodPost, "/v1/nodes/" + long + "/revoke", "", http.StatusBadRequest, "name"},
	} {
		w := asked(s, "admin", c.method, c.target, c.body)
		var e Error
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Status != w.Code {
			t.Errorf("%s %.60s: answers %.200s", c.method, c.target, w.Body)
		}
		if w.Code != c.want || !strings.Contains(w.Body.String(), c.words) {
			t.Errorf("%s %.60s %.40s: got %d %.200s, want %d with %q", c.method, c.target, c.body, w.Code, w.Body, c.want, c.words)
		}
	}
}

func TestABodyOfUnknownLengthIsBounded(t *testing.T) {
	s := serverOf(backendOf())
	r := httptest.NewRequest(http.MethodPost, "/v1/tokens", io.LimitReader(blanks{}, 100<<20))
	r.ContentLength = -1
	r.Header.Set("Authorization", "Bearer admin")
	w := httptest.NewRecorder()
	if s.ServeHTTP(w, r); w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	if n := s.held.Load(); n != 0 {
		t.Errorf("%d bytes are still counted", n)
	}
}

// blanks are as many as one likes.
type blanks struct{}

func (blanks) Read(p []byte) (int, error) {
	if len(p) > 0 {
		p[0] = ' '
	}
	for n := 1; n < len(p); n *= 2 {
		copy(p[n:], p[:n])
	}
	return len(p), nil
}

func TestASpecOf100MBIsRefusedBeforeItIsSent(t *testing.T) {
	b := backendOf()
	h := httptest.NewServer(serverOf(b))
	defer h.Close()
	for _, as := range []string{"operator", "nobody"} {
		want := map[string]int{"operator": http.StatusRequestEntityTooLarge, "nobody": http.StatusUnauthorized}[as]
		c, err := NewClient(h.URL, Options{Token: as})
		if err != nil {
			t.Fatal(err)
		}
		read := &counted{r: io.LimitReader(blanks{}, 100<<20)}
		err = c.do(t.Context(), http.MethodPost, "/v1/apply", read, 100<<20, "", func(*http.Response) error { return nil })
		var e *Error
		if !errors.As(err, &e) || e.Status != want {
			t.Errorf("%s: got %v, want %d", as, err, want)
		}
		if read.n > 1<<20 {
			t.Errorf("%s: %d bytes were sent", as, read.n)
		}
	}
	c := clientOf(t, b, "operator")
	_, err := c.Apply(t.Context(), ApplyRequest{Files: []File{{Name: "a.yaml", Data: strings.Repeat("x", MaxBody)}}})
	if err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("the client sends it: %v", err)
	}
}

type counted struct {
	r io.Reader
	n int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

func TestBodiesThatAreHeldAtOnceAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := backendOf()
		full := make(chan struct{})
		b.Apply = func(context.Context, Principal, ApplyRequest) (ApplyResponse, error) {
			<-full
			return ApplyResponse{}, nil
		}
		s := serverOf(b)
		codes := make(chan int, 8)
		for range maxHeld / MaxBody {
			go func() {
				// A body of a length that is not told counts for the longest.
				r := httptest.NewRequest(http.MethodPost, "/v1/apply", io.MultiReader(strings.NewReader("{}")))
				r.ContentLength = -1
				r.Header.Set("Authorization", "Bearer operator")
				w := httptest.NewRecorder()
				s.ServeHTTP(w, r)
				codes <- w.Code
			}()
		}
		synctest.Wait()
		w := asked(s, "operator", http.MethodPost, "/v1/apply", "{}")
		if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "1" {
			t.Errorf("one more: %d %s", w.Code, w.Body)
		}
		close(full)
		for range maxHeld / MaxBody {
			if code := <-codes; code != http.StatusOK {
				t.Errorf("one of them: %d", code)
			}
		}
		if w := asked(s, "operator", http.MethodPost, "/v1/apply", "{}"); w.Code != http.StatusOK {
			t.Errorf("afterwards: %d %s", w.Code, w.Body)
		}
	})
}

func TestWhoWaitsIsBoundedAndHearsAtTheEndOfHisTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := backendOf()
		b.Wait = func(ctx context.Context, revision uint64) (WaitResponse, error) {
			<-ctx.Done()
			return WaitResponse{Revision: revision}, nil
		}
		s := serverOf(b)
		done := make(chan int, maxWaiting)
		began := time.Now()
		for range maxWaiting {
			go func() { done <- asked(s, "reader", http.MethodGet, "/v1/revisions/7/wait?timeout=30s", "").Code }()
		}
		synctest.Wait()
		if w := asked(s, "reader", http.MethodGet, "/v1/revisions/7/wait", ""); w.Code != http.StatusTooManyRequests {
			t.Errorf("one more: %d", w.Code)
		}
		if w := asked(s, "reader", http.MethodGet, "/v1/status", ""); w.Code != http.StatusOK {
			t.Errorf("something else meanwhile: %d", w.Code)
		}
		for range maxWaiting {
			if code := <-done; code != http.StatusOK {
				t.Errorf("one of them: %d", code)
			}
		}
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("they waited %v", took)
		}
	})
}

// pipes is a listener whose connections are in memory.
type pipes struct {
	conns chan net.Conn
	ended chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.ended:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.ended); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (p *pipes) dial(context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	p.conns <- far
	return near, nil
}

func TestAnAnswerMayTakeLongerThanTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := backendOf()
		b.Wait = func(ctx context.Context, revision uint64) (WaitResponse, error) {
			<-ctx.Done()
			return WaitResponse{Revision: revision, Complete: errors.Is(ctx.Err(), context.DeadlineExceeded)}, nil
		}
		l := &pipes{conns: make(chan net.Conn), ended: make(chan struct{})}
		s := NewServer(b, func(*http.Request) (Principal, error) { return principals["admin"], nil })
		server := &http.Server{Handler: s, ReadTimeout: 10 * time.Second, ErrorLog: quiet()}
		go server.Serve(l)
		defer server.Close()
		c := NewNodeClient(l.dial)
		if res, err := c.Wait(t.Context(), 7, MaxWait); err != nil || !res.Complete {
			t.Errorf("it was given up: %v %v", res, err)
		}
		if _, err := c.Restore(t.Context(), &slow{pause: time.Minute, left: 10}, 10); err != nil {
			t.Errorf("a snapshot that takes ten minutes: %v", err)
		}
		if _, err := c.Restore(t.Context(), &slow{pause: time.Minute, left: 20}, 20); err == nil {
			t.Error("a snapshot that takes twenty minutes is waited for")
		}
		time.Sleep(time.Hour) // until the reader has noticed
	})
}

// slow gives a byte, and pauses.
type slow struct {
	pause time.Duration
	left  int
}

func (s *slow) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	s.left--
	time.Sleep(s.pause)
	p[0] = 'x'
	return 1, nil
}

func TestTooManyRequestsAtOnceAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := backendOf()
		full := make(chan struct{})
		b.Nodes = func() (NodeList, error) { <-full; return NodeList{}, nil }
		s := serverOf(b)
		done := make(chan int, maxRequests)
		for range maxRequests {
			go func() { done <- asked(s, "reader", http.MethodGet, "/v1/nodes", "").Code }()
		}
		synctest.Wait()
		if w := asked(s, "reader", http.MethodGet, "/v1/status", ""); w.Code != http.StatusTooManyRequests {
			t.Errorf("one more: %d", w.Code)
		}
		close(full)
		for range maxRequests {
			<-done
		}
		if n := s.Counters()["api_busy_total"]; n != 1 {
			t.Errorf("%d were counted", n)
		}
	})
}

func TestABusyBackendSaysWhenToAskAgain(t *testing.T) {
	b := backendOf()
	b.Apply = func(context.Context, Principal, ApplyRequest) (ApplyResponse, error) {
		return ApplyResponse{}, fmt.Errorf("the log: %w", ErrBusy)
	}
	if w := asked(serverOf(b), "operator", http.MethodPost, "/v1/apply", "{}"); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "1" {
		t.Errorf("got %d, %v", w.Code, w.Header())
	}
}

func TestMetricsAreSentAsTheyAreWritten(t *testing.T) {
	got, err := clientOf(t, backendOf(), "reader").Metrics(t.Context())
	if want := "# TYPE perigee_cache_bytes gauge\nperigee_cache_bytes 9\n"; err != nil || got != want {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestASnapshotThatBreaksOffIsNone(t *testing.T) {
	b := backendOf()
	b.Snapshot = func(_ context.Context, w io.Writer) error {
		w.Write(make([]byte, 1<<20))
		return errors.New("the disk is gone")
	}
	var got strings.Builder
	if err := clientOf(t, b, "admin").Snapshot(t.Context(), &got); err == nil {
		t.Errorf("half of one passes for a whole one of %d bytes", got.Len())
	}
	b.Snapshot = func(context.Context, io.Writer) error { return errors.New("the disk is gone") }
	if err := clientOf(t, b, "admin").Snapshot(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "the disk is gone") {
		t.Errorf("before the first byte: %v", err)
	}
}

func TestASnapshotThatIsTooLongIsRefused(t *testing.T) {
	b := backendOf()
	b.Snapshot = func(_ context.Context, w io.Writer) error {
		_, err := io.Copy(w, io.LimitReader(blanks{}, MaxSnapshot+1))
		return err
	}
	if testing.Short() {
		t.Skip("it sends half a gigabyte")
	}
	if err := clientOf(t, b, "admin").Snapshot(t.Context(), io.Discard); err == nil {
		t.Error("it is sent")
	}
	if _, err := clientOf(t, b, "admin").Restore(t.Context(), blanks{}, MaxSnapshot+1); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("it is taken: %v", err)
	}
}

func TestWhatIsAskedOfALimitedListIsStreamedWhole(t *testing.T) {
	b := backendOf()
	const many = 20_000
	b.Resources = func(context.Context, ResourcesQuery) (ResourceList, error) {
		list := ResourceList{Revision: 7}
		for i := range many {
			list.Resources = append(list.Resources, Resource{Kind: "K", Name: fmt.Sprint(i), YAML: strings.Repeat("<y>", 100)})
		}
		return list, nil
	}
	got, err := clientOf(t, b, "reader").Resources(t.Context(), ResourcesQuery{})
	if err != nil || len(got.Resources) != many || got.Revision != 7 || got.Resources[many-1].YAML != strings.Repeat("<y>", 100) {
		t.Errorf("%d of %d came: %v", len(got.Resources), many, err)
	}
}
