package api

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestWhatNeedsTheLeaderIsForwardedOnce(t *testing.T) {
	for _, c := range []struct {
		claim   string
		forward func(w http.ResponseWriter, r *http.Request, body []byte, wait bool) error
		door    string
		want    int
	}{
		{"to the leader", func(w http.ResponseWriter, _ *http.Request, body []byte, wait bool) error {
			if string(body) != `{"id":"x"}` || !wait {
				t.Errorf("forwards %s, wait %v", body, wait)
			}
			io.WriteString(w, `{"revision":7}`)
			return nil
		}, "open", http.StatusOK},
		{"nowhere", func(http.ResponseWriter, *http.Request, []byte, bool) error { return ErrNoLeader }, "open", http.StatusServiceUnavailable},
		{"not a second time", func(http.ResponseWriter, *http.Request, []byte, bool) error {
			t.Error("it was forwarded again")
			return nil
		}, "between", http.StatusServiceUnavailable},
	} {
		b := backendOf()
		b.Apply = func(context.Context, Principal, ApplyRequest) (ApplyResponse, error) {
			return ApplyResponse{}, ErrNotLeader
		}
		b.Forward = c.forward
		s := serverOf(b)
		if c.door == "between" {
			s = NewNodeServer(b, func(*http.Request) string { return "edge" })
		}
		if w := asked(s, "operator", http.MethodPost, "/v1/apply", `{"id":"x"}`, ForwardedBy, "b"); w.Code != c.want {
			t.Errorf("%s: got %d, want %d: %s", c.claim, w.Code, c.want, w.Body)
		}
	}
}

func TestOnlyWhatIsHarmlessTwiceIsSentTwice(t *testing.T) {
	for _, c := range []struct {
		method, target, body string
		wait                 bool
	}{
		{http.MethodPost, "/v1/apply", `{"id":"x"}`, true},
		{http.MethodPost, "/v1/apply", `{}`, false},
		{http.MethodPost, "/v1/rollback", `{"id":"x"}`, true},
		{http.MethodPost, "/v1/tokens", `{}`, false},
		{http.MethodPost, "/v1/rotate", `{}`, false},
		{http.MethodPost, "/v1/snapshot", `all`, false},
		{http.MethodPost, "/v1/nodes/a/revoke", ``, true},
		{http.MethodDelete, "/v1/nodes/a", ``, true},
	} {
		b := backendOf()
		b.Apply = func(context.Context, Principal, ApplyRequest) (ApplyResponse, error) {
			return ApplyResponse{}, ErrNotLeader
		}
		b.Rollback = func(context.Context, Principal, RollbackRequest) (ApplyResponse, error) {
			return ApplyResponse{}, ErrNotLeader
		}
		b.CreateToken = func(context.Context, Principal, TokenRequest) (TokenResponse, error) {
			return TokenResponse{}, ErrNotLeader
		}
		b.Rotate = func(context.Context, Principal, RotateRequest) (Recorded, error) { return Recorded{}, ErrNotLeader }
		b.Restore = func(context.Context, Principal, io.Reader) (RestoreResponse, error) {
			return RestoreResponse{}, ErrNotLeader
		}
		b.Revoke = func(context.Context, Principal, string) (Recorded, error) { return Recorded{}, ErrNotLeader }
		b.Forget = b.Revoke
		asks := 0
		b.Forward = func(_ http.ResponseWriter, r *http.Request, body []byte, wait bool) error {
			if asks++; wait != c.wait {
				t.Errorf("%s %s %s: wait %v", c.method, c.target, c.body, wait)
			}
			if stream := c.target == "/v1/snapshot"; stream != (body == nil) {
				t.Errorf("%s %s: body %v", c.method, c.target, body)
			}
			return ErrNoLeader
		}
		if w := asked(serverOf(b), "admin", c.method, c.target, c.body); w.Code != http.StatusServiceUnavailable || asks != 1 {
			t.Errorf("%s %s: %d after %d", c.method, c.target, w.Code, asks)
		}
	}
}

func TestANodeThatBecomesTheLeaderAnswersItself(t *testing.T) {
	calls := 0
	b := backendOf()
	b.Apply = func(context.Context, Principal, ApplyRequest) (ApplyResponse, error) {
		if calls++; calls == 1 {
			return ApplyResponse{}, ErrNotLeader
		}
		return ApplyResponse{Revision: 3}, nil
	}
	b.Forward = func(http.ResponseWriter, *http.Request, []byte, bool) error { return ErrIsLeader }
	if res, err := clientOf(t, b, "operator").Apply(t.Context(), ApplyRequest{}); err != nil || res.Revision != 3 {
		t.Errorf("got %v, %v", res, err)
	}
}

// forwarding is a follower's backend, before a leader that is served over HTTP.
func forwarding(self string, leader *httptest.Server) Backend {
	b := backendOf()
	b.Apply = func(context.Context, Principal, ApplyRequest) (ApplyResponse, error) {
		return ApplyResponse{}, ErrNotLeader
	}
	b.Restore = func(context.Context, Principal, io.Reader) (RestoreResponse, error) {
		return RestoreResponse{}, ErrNotLeader
	}
	b.Resources = func(_ context.Context, q ResourcesQuery) (ResourceList, error) { return ResourceList{}, ErrNotLeader }
	b.Forward = func(w http.ResponseWriter, r *http.Request, body []byte, _ bool) error {
		req, err := ForwardRequest(r.Context(), self, strings.TrimPrefix(leader.URL, "http://"), r, body)
		if err != nil {
			return err
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		CopyAnswer(w, res)
		return nil
	}
	return b
}

func TestTheLeaderKnowsWhoAskedTheFollower(t *testing.T) {
	var author string
	var expected *uint64
	var restored string
	b := backendOf()
	b.Apply = func(_ context.Context, by Principal, req ApplyRequest) (ApplyResponse, error) {
		author, expected = by.Name, req.Expect
		return ApplyResponse{Revision: 8}, nil
	}
	b.Restore = func(_ context.Context, by Principal, r io.Reader) (RestoreResponse, error) {
		all, err := io.ReadAll(r)
		restored = string(all)
		return RestoreResponse{Revision: 9}, err
	}
	leader := httptest.NewServer(NewNodeServer(b, func(*http.Request) string { return "voter" }))
	defer leader.Close()
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	follower := forwarding("voter", leader)

	open := httptest.NewServer(serverOf(follower))
	defer open.Close()
	c, _ := NewClient(open.URL, Options{Token: "admin"})
	if _, err := c.Apply(t.Context(), ApplyRequest{ID: "x", Expect: revision(7)}); err != nil || author != "admin" || expected == nil || *expected != 7 {
		t.Errorf("by a token: %q, expecting %v: %v", author, expected, err)
	}
	if res, err := c.Restore(t.Context(), strings.NewReader("all that is agreed"), 18); err != nil || res.Revision != 9 || restored != "all that is agreed" {
		t.Errorf("a snapshot: %v %q: %v", res, restored, err)
	}
	if list, err := c.Resources(t.Context(), ResourcesQuery{Fresh: true, Kind: "LoadBalancer"}); err != nil || len(list.Resources) != 1 {
		t.Errorf("fresh resources: %v: %v", list, err)
	}
	local := NewServer(follower, func(*http.Request) (Principal, error) {
		return Principal{Name: "root@socket", Roles: []Role{Admin}}, nil
	})
	socket := httptest.NewServer(local)
	defer socket.Close()
	c, _ = NewClient(socket.URL, Options{})
	if _, err := c.Apply(t.Context(), ApplyRequest{ID: "y"}); err != nil || author != "root@socket on voter" {
		t.Errorf("by the socket: %q: %v", author, err)
	}
}
