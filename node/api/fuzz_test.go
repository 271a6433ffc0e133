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
	f.Add(20, "/v1/tokens", `{"ttl":"1h","uses":-1}`, ``, "admin")
	f.Add(8, "/v1/revisions/18446744073709551615/wait?timeout=1h", ``, ``, "nobody")
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

// FuzzWhole: parts make a file that is what its length and its sum say, or none.
func FuzzWhole(f *testing.F) {
	f.Add([]byte(`{"parts":[{"text":"a"},{"kind":"K","name":"n","revision":3,"from":1,"length":3}],"length":4,"sum":1}`))
	f.Add([]byte(`{"parts":[{"kind":"K","name":"n","revision":3,"from":9223372036854775807,"length":9223372036854775807}],"length":2}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var file File
		if json.Unmarshal(body, &file) != nil {
			return
		}
		stands := []byte("what stands")
		text := func(p Part) ([]byte, bool) { return stands, p.Revision == 3 }
		whole, err := file.Whole(text)
		if _, other := file.Whole(text); err != nil && strings.HasSuffix(err.Error(), "sum say") && other != nil {
			made := ""
			for _, p := range file.Parts { // with the sum that they have, they do
				if made += p.Text; p.Kind+p.Name != "" {
					made += string(stands[p.From : p.From+p.Length])
				}
			}
			file.Length, file.Sum = len(made), SumOf(made)
			if whole, err = file.Whole(text); err != nil || whole.Data != made {
				t.Fatalf("%+v: %v", file, err)
			}
		}
		if err == nil && len(file.Parts) > 0 && (len(whole.Data) != file.Length || SumOf(whole.Data) != file.Sum || len(whole.Parts) > 0) {
			t.Fatalf("%+v makes %+v", file, whole)
		}
	})
}
