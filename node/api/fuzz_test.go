package api

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// FuzzRequests: whatever is asked, the answer is one of the document's, in JSON, and nothing is held afterwards.
func FuzzRequests(f *testing.F) {
	for i, r := range routes() {
		_, target, body := r.line()
		f.Add(i, target, body, "", "admin")
	}
	f.Add(0, "/v1/apply", `{"id":"x","files":[{"name":"a","data":"b"}],"prune":{"labels":{"a":"b"}},"delete":[{"kind":"K","name":"n"}]}`, `"7"`, "operator")
	f.Add(0, "/v1/apply", `{"prune":{"labels":null}}`, `W/"7"`, "team")
	f.Add(3, "/v1/resources?kind=%00&fresh=true", ``, ``, "reader")
	f.Add(19, "/v1/tokens", `{"ttl":"1h","uses":-1}`, ``, "admin")
	f.Add(7, "/v1/revisions/18446744073709551615/wait?timeout=1h", ``, ``, "nobody")
	table := routes()
	open, node := serverOf(backendOf()), NewNodeServer(backendOf(), func(r *http.Request) string { return r.Header.Get("Peer") })
	f.Fuzz(func(t *testing.T, i int, target, body, match, as string) {
		if i < 0 || !strings.HasPrefix(target, "/") {
			return
		}
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		for _, s := range []*Server{open, node} {
			r := httptest.NewRequest(table[i%len(table)].method, "/", strings.NewReader(body))
			r.URL, r.RequestURI = u, target
			r.Header["If-Match"] = []string{match}
			if match == "" {
				delete(r.Header, "If-Match")
			}
			r.Header.Set("Authorization", "Bearer "+as)
			r.Header.Set("Peer", as)
			r.Header.Set(OnBehalfOf, as)
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if n := s.held.Load(); n != 0 {
				t.Fatalf("%d bytes are still counted", n)
			}
			if w.Code == http.StatusInternalServerError {
				t.Fatalf("%s %s: %s", r.Method, target, w.Body)
			}
			if kind := w.Header().Get("Content-Type"); kind == asJSON && !json.Valid(w.Body.Bytes()) {
				t.Fatalf("%s %s: %d %q is no JSON", r.Method, target, w.Code, w.Body)
			}
			if w.Code >= 400 && w.Header().Get("Content-Type") != asJSON {
				t.Fatalf("%s %s: %d in %q", r.Method, target, w.Code, w.Header().Get("Content-Type"))
			}
		}
	})
}
