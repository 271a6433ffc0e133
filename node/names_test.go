package node

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/perigee-net/perigee/dnsgeo"
	"github.com/perigee-net/perigee/edge/http1"
)

func TestHostsAreComparedWithoutWhatDoesNotCount(t *testing.T) {
	for in, want := range map[string]string{
		"ns1.example.com": "ns1.example.com", "NS1.example.com.:8443": "ns1.example.com", "192.0.2.1": "192.0.2.1", "192.0.2.1:443": "192.0.2.1",
		"[2001:db8::1]:443": "2001:db8::1", "[2001:db8::1]": "2001:db8::1", "2001:db8::1": "2001:db8::1", "": "",
	} {
		if got := hostOf(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// A site's paths are the site's, whatever they are called.
func TestNamesAreAnsweredOnTheirHostsOnly(t *testing.T) {
	site := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	at := &namesAt{
		hosts: map[string]bool{"ns1.example.com": true}, names: dnsgeo.New(dnsgeo.Config{}), next: site,
		quick: func(_ *http1.Request, w *http1.Response) bool { w.Status = http.StatusTeapot; return true },
	}
	const query = "?dns=AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB"
	for _, test := range []struct {
		host, path string
		want       int
	}{
		{"ns1.example.com", "/dns-query" + query, 200},
		{"NS1.example.com:8443", "/dns-query" + query, 200},
		{"ns1.example.com", "/" + query, http.StatusTeapot},
		{"ns1.example.com", "/dns-query/" + query, http.StatusTeapot},
		{"www.example.com", "/dns-query" + query, http.StatusTeapot},
	} {
		r := httptest.NewRequest("GET", "https://"+test.host+test.path, nil)
		w := httptest.NewRecorder()
		at.ServeHTTP(w, r)
		if w.Code != test.want {
			t.Errorf("%s%s: status %d, want %d", test.host, test.path, w.Code, test.want)
		}
		q := &http1.Request{Host: []byte(test.host), Path: []byte(r.URL.Path), Query: []byte(r.URL.RawQuery)}
		a := &http1.Response{}
		if !at.Quick(q, a) || a.Status != test.want {
			t.Errorf("%s%s: quick: status %d, want %d", test.host, test.path, a.Status, test.want)
		}
	}
	a := &http1.Response{Head: []byte("before")}
	if at.Quick(&http1.Request{Host: []byte("ns1.example.com"), Path: []byte("/dns-query"), Query: []byte("x=y")}, a) || string(a.Head) != "before" {
		t.Errorf("what is no query was answered the quick way: %q", a.Head)
	}
}
