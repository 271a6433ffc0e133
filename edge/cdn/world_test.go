package cdn

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/testbed/doorway"
	"github.com/perigee-net/perigee/testbed/memnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// build makes a spec of what an operator would write.
func build(t testing.TB, text string) *spec.Spec {
	t.Helper()
	documents, err := spec.Split("test.yaml", []byte(text))
	if err == nil {
		var s *spec.Spec
		if s, err = spec.Build(1, documents, spec.Options{}); err == nil {
			return s
		}
	}
	t.Fatal(err)
	return nil
}

// site is a distribution before an origin at http://origin.test, whose cache policy is the rest of the text.
func site(more string) string {
	return `
kind: CachePolicy
name: p
` + more + `
---
kind: Distribution
name: site
aliases: [www.test]
origins: [{name: web, url: "http://origin.test"}]
defaultCacheBehavior: {targetOrigin: web, cachePolicy: p, allowedMethods: [GET, HEAD, OPTIONS, PUT, POST, PATCH, DELETE]}
`
}

// regions are three regions with a load balancer in each, and a distribution before them.
const regions = `
kind: Region
name: ap-northeast-2
pops: [{name: icn1}]
---
kind: Region
name: ap-northeast-1
pops: [{name: nrt1}]
---
kind: Region
name: us-east-1
pops: [{name: iad1}]
---
kind: TargetGroup
name: g-icn
region: ap-northeast-2
protocol: HTTP
targets: [{address: 10.0.0.1, port: 80}]
---
kind: TargetGroup
name: g-nrt
region: ap-northeast-1
protocol: HTTP
targets: [{address: 10.0.0.2, port: 80}]
---
kind: TargetGroup
name: g-iad
region: us-east-1
protocol: HTTP
targets: [{address: 10.0.0.3, port: 80}]
---
kind: LoadBalancer
name: web-icn
region: ap-northeast-2
listeners: [{protocol: HTTP, port: 8080, default: {forward: g-icn}}]
---
kind: LoadBalancer
name: web-nrt
region: ap-northeast-1
listeners: [{protocol: HTTP, port: 80, default: {forward: g-nrt}}]
---
kind: LoadBalancer
name: web-iad
region: us-east-1
listeners: [{protocol: HTTP, port: 80, default: {forward: g-iad}}]
---
kind: Distribution
name: site
aliases: [www.test]
origins: [{name: web, loadBalancers: [web-iad, web-nrt, web-icn]}]
defaultCacheBehavior: {targetOrigin: web, allowedMethods: [GET, HEAD, OPTIONS, PUT, POST, PATCH, DELETE]}
`

// members are nodes of the regions, the first of which is the edge node of the tests.
func members() []view.Member {
	node := func(name, region, pop string) view.Member {
		return view.Member{Name: name, Region: region, POP: pop, Roles: []view.Role{view.Edge, view.Origin}}
	}
	return []view.Member{node("icn-1", "ap-northeast-2", "icn1"), node("nrt-1", "ap-northeast-1", "nrt1"), node("nrt-2", "ap-northeast-1", "nrt1"), node("iad-1", "us-east-1", "iad1")}
}

// healthy says which target groups have a healthy target.
func healthy(s *spec.Spec, groups ...string) *health.Table {
	verdicts := map[health.Key]health.Verdict{}
	for _, g := range groups {
		verdicts[health.TargetKey(g, s.TargetGroups[g].Targets[0].AddrPort())] = health.Verdict{Healthy: true}
	}
	return health.NewTable(verdicts)
}

// world is an edge node, a viewer, and what stands for origins, on an internet in memory.
type world struct {
	*Plane
	t       *testing.T
	in      *memnet.Internet
	edge    *memnet.Host
	viewer  *memnet.Host
	view    *view.View
	client  *http.Client
	doorway *doorway.Doorway

	mu     sync.Mutex
	asked  []*http.Request // of all origins
	bodies []string
	dials  []string // over the backbone
}

func inWorld(t *testing.T, text string, test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		t.Cleanup(in.Close)
		seoul := spec.Location{Latitude: 37.6, Longitude: 127}
		w := &world{
			t: t, in: in, view: &view.View{Self: "icn-1", Members: members()},
			edge:   in.Host("edge", seoul, netip.MustParseAddr("192.0.2.1")),
			viewer: in.Host("viewer", seoul, netip.MustParseAddr("203.0.113.9")),
		}
		w.Plane = New(Config{
			View: func() *view.View { return w.view }, POP: "icn1", Dial: w.edge.Dial, Backbone: w.backbone, CacheBytes: 8 << 20,
		})
		t.Cleanup(func() { w.Plane.Close() })
		if err := w.Apply(build(t, text)); err != nil {
			t.Fatal(err)
		}
		in.Name("origin.test", netip.MustParseAddr("198.51.100.1"))
		w.doorway = &doorway.Doorway{T: t, Relay: w.Plane.Relay, Handler: w.Plane}
		w.serve(w.edge, ":80", w.doorway)
		w.serve(w.edge, ":443", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { // as if the front had ended TLS
			r.TLS = &tls.ConnectionState{}
			w.doorway.ServeHTTP(rw, r)
		}))
		transport := &http.Transport{DialContext: w.viewer.Dial, DisableCompression: true}
		w.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		t.Cleanup(transport.CloseIdleConnections)
		test(t, w)
	})
}

// serve serves HTTP at a host until the test ends.
func (w *world) serve(at *memnet.Host, address string, h http.Handler) *http.Server {
	w.t.Helper()
	l, err := at.Listen("tcp", address)
	if err != nil {
		w.t.Fatal(err)
	}
	server := &http.Server{Handler: h, ErrorLog: quiet()}
	var served sync.WaitGroup
	served.Go(func() { server.Serve(l) })
	w.t.Cleanup(func() {
		server.Close()
		served.Wait()
	})
	return server
}

// origin answers at http://origin.test.
func (w *world) origin(h http.HandlerFunc) *memnet.Host {
	host := w.in.Host("origin", spec.Location{Latitude: 35, Longitude: 139}, netip.MustParseAddr("198.51.100.1"))
	w.serve(host, ":80", w.recording(h))
	return host
}

// node runs load balancers.
func (w *world) node(i int, name string, h http.HandlerFunc) *memnet.Host {
	host := w.in.Host(name, spec.Location{Latitude: 35, Longitude: 139}, nodeAddr(i))
	w.serve(host, ":80", w.recording(h))
	return host
}

func nodeAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(10 + i)}) }

func (w *world) recording(h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		w.mu.Lock()
		w.asked = append(w.asked, r)
		w.bodies = append(w.bodies, string(body))
		w.mu.Unlock()
		h(rw, r)
	})
}

// backbone dials the node by its place among the members, as a stream of HTTP.
func (w *world) backbone(ctx context.Context, node string, h backbone.Header) (net.Conn, error) {
	w.mu.Lock()
	w.dials = append(w.dials, fmt.Sprintf("%s %s %s", node, h.Service, h.Resource))
	w.mu.Unlock()
	for i, m := range members() {
		if m.Name == node {
			return w.edge.Dial(ctx, "tcp", netip.AddrPortFrom(nodeAddr(i), 80).String())
		}
	}
	return nil, &backbone.RefusedError{Reason: "no such node"}
}

func (w *world) requests() []*http.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

func (w *world) dialled() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.dials, ", ")
}

// answer is a response that was read to its end.
type answer struct {
	*http.Response
	body string
	err  error // of reading the body
}

// ask sends a request of a method, a path at www.test or a URL, a body, and "Name: value" lines.
func (w *world) ask(ctx context.Context, method, path, body string, lines ...string) (answer, error) {
	u := path
	if strings.HasPrefix(path, "/") {
		u = "http://www.test" + path
	}
	w.in.Name("www.test", w.edge.Addr())
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, method, u, content)
	if err != nil {
		w.t.Fatal(err)
	}
	if r.URL.Scheme == "https" { // the doors here end no TLS
		r.Host, r.URL.Scheme, r.URL.Host = r.URL.Host, "http", "www.test:443"
	}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		if name == "Host" {
			r.Host = value
		} else {
			r.Header.Add(name, value)
		}
	}
	response, err := w.client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	return answer{response, string(read), err}, nil
}

func (w *world) get(path string, lines ...string) answer {
	w.t.Helper()
	a, err := w.ask(w.t.Context(), "GET", path, "", lines...)
	if err == nil {
		err = a.err
	}
	if err != nil {
		w.t.Fatalf("GET %s: %v", path, err)
	}
	return a
}

// must is get, and what it must come to: status, X-Cache's first word, body.
func (w *world) must(path string, status int, cache, body string, lines ...string) answer {
	w.t.Helper()
	a := w.get(path, lines...)
	if a.StatusCode != status || a.Header.Get("X-Cache") != cache+" from perigee" || body != "*" && a.body != body {
		w.t.Fatalf("GET %s %q: got %d, %s, %q; want %d, %s, %q", path, lines, a.StatusCode, a.Header.Get("X-Cache"), a.body, status, cache, body)
	}
	return a
}

// says answers with a body and "Name: value" lines, after a while.
func says(after time.Duration, body string, lines ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(after)
		for _, line := range lines {
			name, value, _ := strings.Cut(line, ": ")
			w.Header().Add(name, value)
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		io.WriteString(w, body)
	}
}

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

// record answers a request without a network between.
func record(h http.Handler, method, target string, header http.Header) *http.Response {
	r := httptest.NewRequest(method, target, nil)
	for name, values := range header {
		r.Header[name] = values
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}
