package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
)

func serverOf(t *testing.T, b Backend) (*Client, *Server, string) {
	s := NewServer(b)
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	return NewClient(h.URL, nil), s, h.URL
}

func TestARefusalArrivesAsItWasSaid(t *testing.T) {
	said := &Error{Status: http.StatusUnprocessableEntity, Message: "refused", Faults: []string{"a.yaml:1: no", "a.yaml:2: no"}}
	c, s, _ := serverOf(t, Backend{Apply: func(_ context.Context, req ApplyRequest) (ApplyResponse, error) {
		return ApplyResponse{}, said
	}})
	_, err := c.Apply(t.Context(), ApplyRequest{})
	var got *Error
	if !errors.As(err, &got) || !reflect.DeepEqual(got, said) {
		t.Errorf("got %#v, want %#v", err, said)
	}
	if n := s.Counters()["api_refused_total"]; n != 1 {
		t.Errorf("%d refusals counted", n)
	}
}

func TestWhatNeedsTheLeaderIsForwardedOnce(t *testing.T) {
	notHere := func(context.Context, ApplyRequest) (ApplyResponse, error) { return ApplyResponse{}, ErrNotLeader }
	for _, c := range []struct {
		claim     string
		apply     func(context.Context, ApplyRequest) (ApplyResponse, error)
		forward   func(w http.ResponseWriter, r *http.Request, body []byte, wait bool) error
		forwarded bool
		want      int
	}{
		{"to the leader", notHere, func(w http.ResponseWriter, _ *http.Request, body []byte, wait bool) error {
			if string(body) != `{"id":"x"}` || !wait {
				t.Errorf("forwards %s, wait %v", body, wait)
			}
			io.WriteString(w, `{"revision":7}`)
			return nil
		}, false, http.StatusOK},
		{"nowhere", notHere, func(http.ResponseWriter, *http.Request, []byte, bool) error { return ErrNoLeader }, false, http.StatusServiceUnavailable},
		{"not a second time", notHere, func(http.ResponseWriter, *http.Request, []byte, bool) error {
			t.Error("it was forwarded again")
			return nil
		}, true, http.StatusServiceUnavailable},
	} {
		_, s, _ := serverOf(t, Backend{Apply: c.apply, Forward: c.forward})
		r := httptest.NewRequest(http.MethodPost, "/v1/apply", strings.NewReader(`{"id":"x"}`))
		if c.forwarded {
			r.Header.Set(ForwardedBy, "b")
		}
		w := httptest.NewRecorder()
		if s.ServeHTTP(w, r); w.Code != c.want {
			t.Errorf("%s: got %d, want %d: %s", c.claim, w.Code, c.want, w.Body)
		}
	}
}

func TestANodeThatBecomesTheLeaderAnswersItself(t *testing.T) {
	calls := 0
	c, _, _ := serverOf(t, Backend{
		Apply: func(context.Context, ApplyRequest) (ApplyResponse, error) {
			if calls++; calls == 1 {
				return ApplyResponse{}, ErrNotLeader
			}
			return ApplyResponse{Revision: 3}, nil
		},
		Forward: func(http.ResponseWriter, *http.Request, []byte, bool) error { return ErrIsLeader },
	})
	if res, err := c.Apply(t.Context(), ApplyRequest{}); err != nil || res.Revision != 3 {
		t.Errorf("got %v, %v", res, err)
	}
}

func TestBadRequestsAreRefusedInWords(t *testing.T) {
	_, s, _ := serverOf(t, Backend{})
	for _, c := range []struct {
		method, path, body string
		want               int
		words              string
	}{
		{http.MethodPost, "/v1/apply", "nonsense", http.StatusBadRequest, "decode the body"},
		{http.MethodPost, "/v1/apply", `{"fils":[]}`, http.StatusBadRequest, "fils"},
		{http.MethodPost, "/v1/explain", `{`, http.StatusBadRequest, "decode the body"},
		{http.MethodPost, "/v1/apply", strings.Repeat(" ", MaxBody+1), http.StatusRequestEntityTooLarge, "longer than"},
		{http.MethodGet, "/v1/nothing", "", http.StatusNotFound, ""},
		{http.MethodDelete, "/v1/apply", "", http.StatusMethodNotAllowed, ""},
		{http.MethodPost, "/v1/enlist", "{}", http.StatusNotFound, ""}, // on the control port only
	} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)))
		if w.Code != c.want || !strings.Contains(w.Body.String(), c.words) {
			t.Errorf("%s %s: got %d %s, want %d with %q", c.method, c.path, w.Code, w.Body, c.want, c.words)
		}
	}
}

func TestMetricsAreInPrometheusForm(t *testing.T) {
	c, _, _ := serverOf(t, Backend{Counters: func() map[string]uint64 {
		return map[string]uint64{"dns_queries_total": 3, "cache_bytes": 9}
	}})
	got, err := c.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# TYPE perigee_cache_bytes gauge\nperigee_cache_bytes 9\n", "# TYPE perigee_dns_queries_total counter\nperigee_dns_queries_total 3\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s\nlacks %s", got, want)
		}
	}
}
