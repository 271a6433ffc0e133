package cdn

import (
	"cmp"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/edge/cache"
)

// maxLoops is how often a request may pass through Perigee on its way to an origin: once more is answered 508.
const maxLoops = 3

// The fields that are sent to origins besides those of the policy.
var (
	// what asks for less than the whole: only of a request that asks the origin on its own
	partial = []string{"Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"}
	// what belongs to a body, and says who sends it: only of methods that are not safe
	content = []string{"Authorization", "Content-Type", "Content-Encoding", "Content-Language", "Origin"}
)

// hopByHop are the fields that are not forwarded in either direction (RFC 9110 §7.6.1).
var hopByHop = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authentication-Info", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade",
}

// Viewer is what Forward looks at of the request that came.
type Viewer struct {
	Method   string
	Host     string
	Header   http.Header
	Address  string // IP address
	TLS      bool
	Protocol string // as Via names it: 1.1, 2
}

// Forward makes the header that the origin is sent. As in CloudFront it is what the policy keys and a few
// fields that change no shared answer: the viewer's address and protocol, and the way the request came. So no
// Accept, no Referer; no Cookie, query or, of a GET, Authorization unless the policy names them; Accept-Encoding as
// br and gzip only; the User-Agent is Perigee's unless the policy names it.
//
// Alone says that the request asks on its own, not to fill the cache: then the viewer's conditions and range go with it.
func (b *Behavior) Forward(v Viewer, id string, alone bool) http.Header {
	h := make(http.Header, 8+len(b.Policy.Headers())) // eight are mostly enough, and a map of that many is one piece
	lines := make([]string, 0, 12)                    // of all fields that have one each, together
	set := func(name, line string) {
		lines = append(lines, line)
		h[name] = lines[len(lines)-1 : len(lines) : len(lines)]
	}
	send := func(names []string) {
		for _, name := range names {
			if lines := v.Header[name]; len(lines) > 0 && !slices.Contains(hopByHop, name) {
				h[name] = slices.Clone(lines)
			}
		}
	}
	set("User-Agent", "Perigee")
	if codings := cache.AcceptEncoding(v.Header); codings != "" {
		set("Accept-Encoding", codings)
	}
	if len(v.Header["Early-Data"]) > 0 {
		// It may be one that somebody sends again: who says so before us may know, and nobody may take that back. Whatever is said means
		// 1 (RFC 8470 §5.1). If the origin answers 425, that is neither kept nor shared.
		set("Early-Data", "1")
	}
	for _, name := range b.Policy.Headers() { // as they are in the key
		if lines := v.Header[name]; len(lines) > 0 && !slices.Contains(hopByHop, name) {
			set(name, b.Policy.Field(v.Header, name))
		}
	}
	if alone {
		send(partial)
	}
	if !safe(v.Method) {
		send(content)
	}
	if cookie := b.Policy.Cookie(v.Header); cookie != "" {
		set("Cookie", cookie)
	}

	set("X-Forwarded-For", joined(v.Header["X-Forwarded-For"], v.Address))
	scheme, port := b.forwarded(v.TLS, v.Host)
	set("X-Forwarded-Proto", scheme)
	set("X-Forwarded-Port", port)
	set("Via", joined(v.Header["Via"], v.Protocol+" perigee"))
	set("Cdn-Loop", joined(v.Header["Cdn-Loop"], "perigee")) // RFC 8586
	set("X-Perigee-Id", id)
	return h
}

// sendsHost says whether the origin is sent the viewer's Host, which is in the cache key then.
func (b *Behavior) sendsHost() bool {
	return b.Origin.HostHeader == "" && (b.Origin.URL == "" || slices.Contains(b.Policy.Headers(), "Host"))
}

// target is what a request is for, as the key names it. Where both schemes are served the origin is told which, so that is
// in the key as well.
func (d Decision) target() cache.Target {
	q := d.Request
	t := cache.Target{Distribution: d.Distribution.Name, Path: d.Path, Query: q.Query}
	if d.Behavior.ViewerProtocol == spec.AllowAll {
		t.Scheme = "http"
		if q.TLS {
			t.Scheme = "https"
		}
	}
	if d.Behavior.sendsHost() {
		t.Host = strings.ToLower(q.Host)
	}
	return t
}

// host is the Host that the origin is sent.
func (b *Behavior) host(viewer string) string {
	if b.sendsHost() {
		return strings.ToLower(viewer)
	}
	return cmp.Or(b.Origin.HostHeader, b.upstream.authority)
}

// viewerOf is what Forward looks at of a request.
func viewerOf(r *http.Request) Viewer {
	address, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		address = "unknown" // RFC 7239 §6.2
	}
	protocol := "1.1"
	switch {
	case r.ProtoMajor > 1:
		protocol = string('0' + byte(r.ProtoMajor))
	case r.ProtoMinor == 0:
		protocol = "1.0"
	}
	return Viewer{Method: r.Method, Host: r.Host, Header: r.Header, Address: address, TLS: r.TLS != nil, Protocol: protocol}
}

// requestOf is what routing looks at of a request.
func requestOf(r *http.Request) Request {
	q := Request{
		Method: r.Method, Host: r.Host, Path: cmp.Or(r.URL.EscapedPath(), "/"), Query: r.URL.RawQuery, TLS: r.TLS != nil,
		Bytes: len(r.Method) + len(r.RequestURI) + len(r.Proto) + 4 + len("Host: \r\n") + len(r.Host),
		Body:  r.ContentLength != 0,
	}
	for name, lines := range r.Header {
		for _, line := range lines {
			q.Bytes += len(name) + len(line) + len(": \r\n")
		}
	}
	if upgrade := r.Header["Upgrade"]; len(upgrade) > 0 {
		q.WebSocket = slices.ContainsFunc(upgrade, func(s string) bool { return strings.EqualFold(s, "websocket") })
	}
	for _, line := range r.Header["Cdn-Loop"] {
		q.Loops += strings.Count(line, "perigee")
	}
	return q
}

// endToEnd is the request without the fields that its Connection names. It comes before the key is made: else a viewer could
// have a field in the key that the origin is not sent, and fill the cache with the wrong response.
func endToEnd(r *http.Request) *http.Request {
	for _, name := range nominated(r.Header) {
		if _, has := r.Header[name]; has {
			e := *r
			e.Header = r.Header.Clone()
			for _, name := range nominated(r.Header) {
				e.Header.Del(name)
			}
			return &e
		}
	}
	return r
}

// returned makes a response's header fit to be sent on.
func returned(h http.Header, p *cache.Policy) {
	for _, name := range nominated(h) {
		h.Del(name)
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
	delete(h, "Alt-Svc") // where else the origin listens: viewers are told where the doors do
	if !p.KeysCookies() {
		delete(h, "Set-Cookie")
	}
	h["Via"] = []string{joined(h["Via"], "1.1 perigee")}
}

// nominated are the fields that Connection names as hop-by-hop.
func nominated(h http.Header) []string {
	var names []string
	for _, line := range h["Connection"] {
		if line == "keep-alive" || line == "close" { // nearly always, and nothing that is sent on
			continue
		}
		for name := range strings.SplitSeq(line, ",") {
			names = append(names, http.CanonicalHeaderKey(strings.TrimSpace(name)))
		}
	}
	return names
}

// joined is a list field, in one line, with an element more.
func joined(lines []string, element string) string {
	if len(lines) == 0 {
		return element
	}
	return strings.Join(lines, ", ") + ", " + element
}

// safe methods change nothing (RFC 9110 §9.2.1).
func safe(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}
