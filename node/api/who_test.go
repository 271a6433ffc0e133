package api

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// line that asks a route for something harmless.
func (r route) line() (method, target, body string) {
	target = strings.NewReplacer("{rev}", "7", "{name}", "a", "{id}", "1").Replace(r.path)
	if r.request != nil {
		body = "{}"
	}
	switch {
	case strings.HasSuffix(r.path, "/purge"):
		body = `{"distribution": "team-shop"}`
	case strings.HasSuffix(r.path, "/blocks"):
		target += "?kind=LoadBalancer&name=team-web"
	case strings.HasSuffix(r.path, "drain"):
		body = `{"scope": "node", "name": "team-a"}`
	}
	return r.method, target, body
}

func TestEveryRouteHoldsToItsRole(t *testing.T) {
	// Which roles are enough for which role.
	enough := map[Role][]string{
		Read:    {"reader", "operator", "purger", "admin", "team"},
		Operate: {"operator", "admin", "team"},
		Purge:   {"purger", "admin", "team"},
		Admin:   {"admin"}, // team is an admin of some resources only
	}
	s := serverOf(backendOf())
	node := NewNodeServer(backendOf(), func(r *http.Request) string { return r.Header.Get("Peer") })
	for _, r := range routes() {
		method, target, body := r.line()
		if r.nodes {
			for peer, want := range map[string]int{"edge": http.StatusOK, "": http.StatusUnauthorized} {
				if w := asked(node, "admin", method, target, body, "Peer", peer); w.Code != want {
					t.Errorf("%s %s by peer %q: %d, want %d: %s", method, target, peer, w.Code, want, w.Body)
				}
			}
			continue
		}
		for _, as := range []string{"", "nobody", "none", "reader", "operator", "purger", "admin", "team"} {
			want := http.StatusForbidden
			switch {
			case as == "" || as == "nobody":
				want = http.StatusUnauthorized
			case slices.Contains(enough[r.role], as):
				want = http.StatusOK
			}
			w := asked(s, as, method, target, body)
			if w.Code != want {
				t.Errorf("%s %s as %q: %d, want %d: %s", method, target, as, w.Code, want, w.Body)
			}
			if want == http.StatusUnauthorized && w.Header().Get("WWW-Authenticate") == "" {
				t.Errorf("%s %s as %q: no WWW-Authenticate", method, target, as)
			}
			if want == http.StatusForbidden && as != "team" && !strings.Contains(w.Body.String(), string(r.role)) {
				t.Errorf("%s %s as %q: %s does not name the role", method, target, as, w.Body)
			}
			if w := asked(node, as, method, target, body, "Peer", ""); w.Code != http.StatusUnauthorized {
				t.Errorf("%s %s as %q at the control port without a certificate: %d", method, target, as, w.Code)
			}
			if as != "" {
				if w := asked(node, as, method, target, body, "Peer", "edge"); w.Code != want {
					t.Errorf("%s %s as %q by a node: %d, want %d: %s", method, target, as, w.Code, want, w.Body)
				}
			}
		}
	}
	counted := s.Counters()
	if counted["api_unauthenticated_total"] == 0 || counted["api_forbidden_total"] == 0 || counted["api_requests"] != 0 {
		t.Errorf("counters %v", counted)
	}
}

func TestATokenThatIsShownWronglyIsRefusedAndNotRepeated(t *testing.T) {
	s := serverOf(backendOf())
	for _, shown := range []string{
		"admin", "Bearer", "Bearer ", "Basic YTpi", "Bearer secret-of-someone", "Bearer admin extra", "Bearer " + strings.Repeat("x", maxBearer+1),
	} {
		w := asked(s, "", http.MethodGet, "/v1/status", "", "Authorization", shown)
		if w.Code != http.StatusUnauthorized || strings.Contains(w.Body.String(), "secret-of") {
			t.Errorf("%.40q: %d %s", shown, w.Code, w.Body)
		}
	}
	if w := asked(s, "", http.MethodGet, "/v1/status", "", "Authorization", "bearer reader"); w.Code != http.StatusOK {
		t.Errorf("the scheme has no case (RFC 9110 section 11.1), yet: %d %s", w.Code, w.Body)
	}
}

func recordAuthor(author *string) func(context.Context, Principal, string) (Recorded, error) {
	return func(_ context.Context, by Principal, _ string) (Recorded, error) {
		*author = by.Name
		return Recorded{}, nil
	}
}

func TestANodeVouchesForItsLocalCallers(t *testing.T) {
	var author string
	b := backendOf()
	b.Revoke = recordAuthor(&author)
	s := NewNodeServer(b, func(r *http.Request) string { return r.Header.Get("Peer") })
	for _, c := range []struct {
		claim, peer, caller, bearer string
		want                        int
		author                      string
	}{
		{"a voter's caller may all", "voter", "root@socket", "", http.StatusOK, "root@socket on voter"},
		{"another node's caller may read", "edge", "root@socket", "", http.StatusForbidden, ""},
		{"a node that is not known may nothing", "ghost", "root@socket", "", http.StatusForbidden, ""},
		{"a node that asks for itself may read", "voter", "", "", http.StatusForbidden, ""},
		{"a forwarded token counts before the name", "voter", "root@socket", "reader", http.StatusForbidden, ""},
		{"a forwarded token is its holder's", "edge", "", "admin", http.StatusOK, "admin"},
		{"a name is printable", "voter", "root\x7f", "", http.StatusBadRequest, ""},
		{"a name is short", "voter", strings.Repeat("x", maxCaller+1), "", http.StatusBadRequest, ""},
	} {
		author = ""
		w := asked(s, c.bearer, http.MethodPost, "/v1/nodes/a/revoke", "", "Peer", c.peer, OnBehalfOf, c.caller)
		if w.Code != c.want || author != c.author {
			t.Errorf("%s: %d by %q, want %d by %q: %s", c.claim, w.Code, author, c.want, c.author, w.Body)
		}
	}
	if w := asked(s, "", http.MethodGet, "/v1/status", "", "Peer", "edge"); w.Code != http.StatusOK {
		t.Errorf("a node may not read: %d %s", w.Code, w.Body)
	}
	open := serverOf(b)
	if w := asked(open, "", http.MethodGet, "/v1/status", "", OnBehalfOf, "root@socket", "Peer", "voter"); w.Code != http.StatusUnauthorized {
		t.Errorf("a stranger vouches for himself: %d %s", w.Code, w.Body)
	}
}

func TestALimitedPrincipalSeesItsOwn(t *testing.T) {
	s := serverOf(backendOf())
	for _, c := range []struct {
		method, target string
		want           int
	}{
		{http.MethodGet, "/v1/resources", http.StatusOK},
		{http.MethodGet, "/v1/resources?kind=TargetGroup&name=web", http.StatusNotFound},
		{http.MethodGet, "/v1/resources?kind=TargetGroup", http.StatusOK},
		{http.MethodGet, "/v1/revisions/3/resources", http.StatusOK},
		{http.MethodGet, "/v1/revisions/3", http.StatusOK},
		{http.MethodGet, "/v1/history", http.StatusOK},
	} {
		w := asked(s, "team", c.method, c.target, "")
		if w.Code != c.want {
			t.Errorf("%s: %d, want %d: %s", c.target, w.Code, c.want, w.Body)
		}
		if text := w.Body.String(); c.want == http.StatusOK && strings.Contains(text, "TargetGroup") {
			t.Errorf("%s: it sees %s", c.target, text)
		}
	}
	var h History
	json.Unmarshal(asked(s, "team", http.MethodGet, "/v1/history", "").Body.Bytes(), &h)
	if len(h.Records) != 1 {
		t.Errorf("its history has %d records", len(h.Records))
	}
	b := backendOf()
	b.Diff = func(context.Context, Principal, ApplyRequest) (ApplyResponse, error) {
		return ApplyResponse{Revision: 8, Changes: []Change{{Op: "updated", Kind: "TargetGroup", Name: "web", Fields: []string{"port: 80 → 81"}}}}, nil
	}
	if w := asked(serverOf(b), "team", http.MethodPost, "/v1/diff", "{}"); w.Code != http.StatusForbidden || strings.Contains(w.Body.String(), "port") {
		t.Errorf("a diff tells: %d %s", w.Code, w.Body)
	}
}
