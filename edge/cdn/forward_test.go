package cdn

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/edge/cache"
)

// lines makes a header of "Name: value" lines.
func lines(all ...string) http.Header {
	h := http.Header{}
	for _, line := range all {
		name, value, _ := strings.Cut(line, ": ")
		h.Add(name, value)
	}
	return h
}

func TestTheOriginIsSentWhatThePolicyKeysAndLittleElse(t *testing.T) {
	everything := []string{
		"Accept: text/html", "Accept-Encoding: gzip, deflate, br", "Accept-Language: ko", "Authorization: Basic x", "Cookie: a=1; b=2",
		"Referer: https://else.test/", "User-Agent: curl/8", "X-Lang: ko", "X-Lang: en", "Origin: https://www.test", "Te: trailers", "Connection: keep-alive",
		"Range: bytes=0-9", "If-None-Match: \"a\"", "If-Modified-Since: x", "Cache-Control: no-cache", "Pragma: no-cache", "Expect: 100-continue", "Early-Data: perhaps", "Early-Data: 0",
		"X-Forwarded-For: 198.51.100.7", "X-Forwarded-Proto: gopher", "X-Real-Ip: 198.51.100.7", "Via: 1.0 squid", "Content-Type: text/plain", "Proxy-Authorization: x",
	}
	always := []string{
		"Accept-Encoding: br,gzip", "Via: 1.0 squid, 2 perigee", "X-Forwarded-For: 198.51.100.7, 203.0.113.9", "X-Perigee-Id: id", "Cdn-Loop: perigee",
		"Early-Data: 1",
	}
	overHTTP := []string{"X-Forwarded-Proto: http", "X-Forwarded-Port: 80"}
	ours := []string{"User-Agent: Perigee"}
	for _, c := range []struct {
		name   string
		policy string
		viewer Viewer
		alone  bool
		want   [][]string
	}{
		{"a fill", "", Viewer{Method: "GET"}, false, [][]string{overHTTP, ours}},
		{"over https", "", Viewer{Method: "GET", TLS: true}, false, [][]string{{"X-Forwarded-Proto: https", "X-Forwarded-Port: 443"}, ours}},
		{"a request on its own", "", Viewer{Method: "GET"}, true, [][]string{overHTTP, ours, {"Range: bytes=0-9", "If-None-Match: \"a\"", "If-Modified-Since: x"}}},
		{"OPTIONS", "", Viewer{Method: "OPTIONS"}, true, [][]string{overHTTP, ours, {"Range: bytes=0-9", "If-None-Match: \"a\"", "If-Modified-Since: x"}}},
		{"POST", "", Viewer{Method: "POST"}, true, [][]string{overHTTP, ours, {"Range: bytes=0-9", "If-None-Match: \"a\"", "If-Modified-Since: x"},
			{"Authorization: Basic x", "Content-Type: text/plain", "Origin: https://www.test"}}},
		{"keyed headers", "headers: {behavior: whitelist, items: [x-lang, User-Agent, Authorization]}", Viewer{Method: "GET"}, false,
			[][]string{overHTTP, {"X-Lang: ko, en", "User-Agent: curl/8", "Authorization: Basic x"}}},
		{"a keyed header that is hop by hop", "headers: {behavior: whitelist, items: [Proxy-Authorization, Te]}", Viewer{Method: "GET"}, false, [][]string{overHTTP, ours}},
		{"some cookies", "cookies: {behavior: whitelist, items: [b]}", Viewer{Method: "GET"}, false, [][]string{overHTTP, ours, {"Cookie: b=2"}}},
		{"all but some cookies", "cookies: {behavior: allExcept, items: [b]}", Viewer{Method: "GET"}, false, [][]string{overHTTP, ours, {"Cookie: a=1"}}},
		{"all cookies", "cookies: {behavior: all}", Viewer{Method: "GET"}, false, [][]string{overHTTP, ours, {"Cookie: a=1; b=2"}}},
	} {
		s := build(t, site(c.policy))
		d := s.Distributions["site"]
		b := &Behavior{Policy: cache.NewPolicy(s.CachePolicies["p"], 0), Origin: &d.Origins[0]}
		c.viewer.Header, c.viewer.Address, c.viewer.Protocol, c.viewer.Host = lines(everything...), "203.0.113.9", "2", "www.test"
		want := lines(slices.Concat(append(c.want, always)...)...)
		if diff := cmp.Diff(want, b.Forward(c.viewer, "id", c.alone)); diff != "" {
			t.Errorf("%s:\n%s", c.name, diff)
		}
	}
}

func TestTheHostThatTheOriginIsSent(t *testing.T) {
	keysHost := &spec.CachePolicy{Name: "p", Headers: spec.KeyPart{Behavior: spec.KeyWhitelist, Items: []string{"host"}}}
	zero := spec.Duration(0)
	plain := &spec.CachePolicy{}
	for _, p := range []*spec.CachePolicy{keysHost, plain} {
		p.MinTTL, p.DefaultTTL, p.MaxTTL = &zero, &zero, &zero
	}
	for _, c := range []struct {
		origin    spec.Origin
		policy    *spec.CachePolicy
		want      string
		inTheKey  string
		port      string
		viewerTLS bool
	}{
		{spec.Origin{URL: "http://origin.test:81"}, plain, "origin.test:81", "", "80", false},
		{spec.Origin{URL: "http://origin.test:81"}, keysHost, "www.test:8080", "www.test:8080", "8080", false},
		{spec.Origin{URL: "http://origin.test:81", HostHeader: "shop.test"}, keysHost, "shop.test", "", "443", true},
		{spec.Origin{LoadBalancers: []string{"lb"}}, plain, "www.test:8080", "www.test:8080", "8080", false},
		{spec.Origin{LoadBalancers: []string{"lb"}, HostHeader: "shop.test"}, plain, "shop.test", "", "80", false},
	} {
		b := &Behavior{Policy: cache.NewPolicy(c.policy, 0), Origin: &c.origin, upstream: &upstream{authority: strings.TrimPrefix(c.origin.URL, "http://")}}
		d := Decision{Distribution: &Distribution{}, Behavior: b, Request: Request{Host: "WWW.test:8080"}}
		h := b.Forward(Viewer{Host: "WWW.test:8080", TLS: c.viewerTLS}, "", false)
		if got := b.host("WWW.test:8080"); got != c.want || d.target().Host != c.inTheKey || h.Get("X-Forwarded-Port") != c.port {
			t.Errorf("%+v: got %s with %q in the key and port %s, want %s, %q, %s", c.origin, got, d.target().Host, h.Get("X-Forwarded-Port"), c.want, c.inTheKey, c.port)
		}
	}
}

func TestTheSchemeIsInTheKeyWhereBothAreServed(t *testing.T) {
	b := &Behavior{Origin: &spec.Origin{HostHeader: "x"}}
	for _, c := range []struct {
		policy string
		tls    bool
		want   string
	}{{spec.AllowAll, false, "http"}, {spec.AllowAll, true, "https"}, {spec.RedirectToHTTPS, true, ""}, {spec.HTTPSOnly, true, ""}} {
		b.ViewerProtocol = c.policy
		d := Decision{Distribution: &Distribution{}, Behavior: b, Request: Request{TLS: c.tls}}
		if got := d.target().Scheme; got != c.want {
			t.Errorf("%s, TLS %v: got %q, want %q", c.policy, c.tls, got, c.want)
		}
	}
}

func TestHopByHopFieldsStayOnTheirHop(t *testing.T) {
	h := lines("Connection: X-Mine, close", "X-Mine: 1", "Keep-Alive: x", "Transfer-Encoding: chunked", "Upgrade: h2c", "Trailer: x", "Proxy-Authenticate: x",
		"Set-Cookie: s=1", "Etag: a", `Alt-Svc: h3=":8443"`, "Via: 1.1 nginx")
	zero := spec.Duration(0)
	p := cache.NewPolicy(&spec.CachePolicy{MinTTL: &zero, DefaultTTL: &zero, MaxTTL: &zero}, 0)
	returned(h, p)
	if diff := cmp.Diff(lines("Etag: a", "Via: 1.1 nginx, 1.1 perigee"), h); diff != "" {
		t.Error(diff)
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.Header = lines("Connection: x-lang, keep-alive", "X-Lang: ko", "X-Other: 1")
	e := endToEnd(r)
	if got := fmt.Sprint(slices.Sorted(maps.Keys(e.Header))); got != "[Connection X-Other]" || r.Header.Get("X-Lang") != "ko" {
		t.Errorf("got %s; the request that came has now %v", got, r.Header)
	}
	r.Header.Del("X-Lang")
	if endToEnd(r) != r {
		t.Error("a request that names nothing it has was copied")
	}
}

func TestWhatRoutingSeesOfARequest(t *testing.T) {
	r := httptest.NewRequest("POST", "/a%2fb?x=1", strings.NewReader("body"))
	r.Header = lines("Upgrade: WebSocket", "Cdn-Loop: perigee, other", "Cdn-Loop: perigee")
	q := requestOf(r)
	want := len("POST /a%2fb?x=1 HTTP/1.1\r\nHost: example.com\r\nUpgrade: WebSocket\r\nCdn-Loop: perigee, other\r\nCdn-Loop: perigee\r\n")
	if diff := cmp.Diff(Request{
		Method: "POST", Host: "example.com", Path: "/a%2fb", Query: "x=1", Bytes: want, Body: true, WebSocket: true, Loops: 2,
	}, q); diff != "" {
		t.Error(diff)
	}
}
