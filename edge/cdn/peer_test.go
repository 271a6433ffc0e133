package cdn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/cache"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// fleet is several edge nodes, with what stands for the backbone between them, before the one origin at http://origin.test.
type fleet struct {
	t      *testing.T
	in     *memnet.Internet
	nodes  map[string]*peerNode
	origin *memnet.Host

	mu    sync.Mutex
	asked []*http.Request // of the origin
	calls []string        // of peers: who asks whom as what
}

type peerNode struct {
	*Plane
	name    string
	host    *memnet.Host
	view    atomic.Pointer[view.View]
	epoch   atomic.Uint64
	refuses atomic.Bool // dials of its peer service
	stuck   atomic.Bool // its peer service takes requests and says nothing
}

// Ports at which the tiers of a node are.
var tierPorts = map[string]int{string(inPOP): 7001, string(inShield): 7002}

var seoul, tokyo = spec.Location{Latitude: 37.6, Longitude: 127}, spec.Location{Latitude: 35.7, Longitude: 139.7}

// three are the nodes of one POP, and places those of two regions with two POPs in one.
func three() []view.Member {
	return []view.Member{edgeNode("icn-a", "ap-northeast-2", "icn1"), edgeNode("icn-b", "ap-northeast-2", "icn1"), edgeNode("icn-c", "ap-northeast-2", "icn1")}
}

func places() []view.Member {
	return append(three(), edgeNode("nrt-a", "ap-northeast-1", "nrt1"), edgeNode("nrt-b", "ap-northeast-1", "nrt1"), edgeNode("nrt-c", "ap-northeast-1", "nrt2"))
}

func edgeNode(name, region, pop string) view.Member {
	return view.Member{Name: name, Region: region, POP: pop, Roles: []view.Role{view.Edge}}
}

// shielded is site with an origin shield in Tokyo.
const shielded = `
kind: Region
name: ap-northeast-1
pops: [{name: nrt1}, {name: nrt2}]
---
kind: Region
name: ap-northeast-2
pops: [{name: icn1}]
---
kind: CachePolicy
name: p
---
kind: Distribution
name: site
aliases: [www.test]
origins: [{name: web, url: "http://origin.test", originShield: {enabled: true, originShieldRegion: ap-northeast-1}}]
defaultCacheBehavior: {targetOrigin: web, cachePolicy: p, allowedMethods: [GET, HEAD, OPTIONS, PUT, POST, PATCH, DELETE]}
`

func inFleet(t *testing.T, text string, members []view.Member, h http.HandlerFunc, test func(t *testing.T, f *fleet)) {
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		t.Cleanup(in.Close)
		f := &fleet{t: t, in: in, nodes: map[string]*peerNode{}}
		f.origin = in.Host("origin", tokyo, netip.MustParseAddr("198.51.100.1"))
		in.Name("origin.test", f.origin.Addr())
		f.listen(f.origin, ":80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			f.mu.Lock()
			f.asked = append(f.asked, r)
			f.mu.Unlock()
			h(w, r)
		}))
		for i, m := range members {
			at := seoul
			if m.Region != "ap-northeast-2" {
				at = tokyo
			}
			n := &peerNode{name: m.Name, host: in.Host(m.Name, at, netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}))}
			n.view.Store(&view.View{Self: m.Name, Members: members})
			n.Plane = New(Config{
				View: n.view.Load, POP: m.POP, Dial: n.host.Dial, Backbone: f.backbone(n), CacheBytes: 64 << 20, Epoch: n.epoch.Load,
			})
			t.Cleanup(func() { n.Close() })
			if err := n.Apply(build(t, text)); err != nil {
				t.Fatal(err)
			}
			for as, port := range tierPorts {
				handler, _ := n.Peers(as)
				f.listen(n.host, fmt.Sprint(":", port), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if n.stuck.Load() {
						<-r.Context().Done()
						panic(http.ErrAbortHandler)
					}
					handler.ServeHTTP(w, r)
				}))
			}
			f.nodes[m.Name] = n
		}
		test(t, f)
	})
}

func (f *fleet) listen(at *memnet.Host, address string, h http.Handler) {
	l, err := at.Listen("tcp", address)
	if err != nil {
		f.t.Fatal(err)
	}
	server := &http.Server{Handler: h, ErrorLog: quiet()}
	var served sync.WaitGroup
	served.Go(func() { server.Serve(l) })
	f.t.Cleanup(func() {
		server.Close()
		served.Wait()
	})
}

func (f *fleet) backbone(from *peerNode) func(context.Context, string, backbone.Header) (net.Conn, error) {
	return func(ctx context.Context, node string, h backbone.Header) (net.Conn, error) {
		f.mu.Lock()
		f.calls = append(f.calls, from.name+">"+node+" "+h.Resource)
		f.mu.Unlock()
		to := f.nodes[node]
		if h.Service != PeerService || to == nil || to.refuses.Load() {
			return nil, &backbone.RefusedError{Reason: "no"}
		}
		return from.host.Dial(ctx, "tcp", netip.AddrPortFrom(to.host.Addr(), uint16(tierPorts[h.Resource])).String())
	}
}

// look has a node see something else from now on.
func (n *peerNode) look(change func(*view.View)) {
	v := *n.view.Load()
	v.Members = slices.Clone(v.Members)
	change(&v)
	n.view.Store(&v)
}

func (f *fleet) requests() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.asked)
}

// called are the dials of peers since the last call.
func (f *fleet) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	slices.Sort(calls)
	return calls
}

// ask has a viewer ask a node. The answer's body is read as far as it comes.
func (f *fleet) ask(node, method, path string, header http.Header) (answer, error) {
	r := httptest.NewRequest(method, "http://www.test"+path, nil).WithContext(f.t.Context())
	r.RemoteAddr = "203.0.113.9:4711"
	for name, lines := range header {
		r.Header[name] = lines
	}
	w := httptest.NewRecorder()
	err := func() (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("broken off: %v", r)
			}
		}()
		f.nodes[node].ServeHTTP(w, r)
		return nil
	}()
	response := w.Result()
	body, _ := io.ReadAll(response.Body)
	return answer{response, string(body), err}, err
}

// must has a viewer ask a node, and says what that must come to: status, the first word of X-Cache, body.
func (f *fleet) must(node, path string, status int, cache, body string, lines ...string) answer {
	f.t.Helper()
	time.Sleep(time.Nanosecond) // until all stands still: who was answered before may have the last byte sooner than the cache
	a, err := f.ask(node, http.MethodGet, path, header(lines...))
	if err != nil || a.StatusCode != status || a.Header.Get("X-Cache") != cache+" from perigee" || body != "*" && a.body != body {
		f.t.Fatalf("%s, GET %s %q: got %d, %s, %q, %v; want %d, %s, %q", node, path, lines, a.StatusCode, a.Header.Get("X-Cache"), a.body, err, status, cache, body)
	}
	return a
}

func header(all ...string) http.Header { return lines(all...) }

// owners are the nodes in the order in which they own what a path is kept under.
func (f *fleet) owners(path string, in func(*view.Member) bool) []string {
	f.t.Helper()
	any := slices.Sorted(func(yield func(string) bool) {
		for name := range f.nodes {
			if !yield(name) {
				return
			}
		}
	})[0]
	n := f.nodes[any]
	d := n.table.Load().Route(Request{Method: "GET", Host: "www.test", Path: path}, nil)
	return Owners(n.view.Load(), in, d.Behavior.Policy.Key(d.target(), nil).URI, func(string) int { return 0 }, nil)
}

func everywhere(*view.Member) bool { return true }

func inSeoul(m *view.Member) bool { return m.POP == "icn1" }

func inTokyo(m *view.Member) bool { return m.Region == "ap-northeast-1" }

func idle(string) int { return 0 }

func TestTheOwnerIsWhoIsAskedAndCanAnswer(t *testing.T) {
	key := "key"
	order := Owners(&view.View{Members: three()}, everywhere, key, idle, nil)
	first, second, third := order[0], order[1], order[2]
	with := func(change func(m *view.Member)) *view.View {
		v := &view.View{Self: third, Members: three()}
		for i := range v.Members {
			if v.Members[i].Name == first {
				change(&v.Members[i])
			}
		}
		return v
	}
	nothing := func(*view.Member) {}
	loads := func(name string, n int) func(string) int {
		return func(node string) int {
			if node == name {
				return n
			}
			return 0
		}
	}
	for _, c := range []struct {
		name string
		view *view.View
		load func(string) int
		want []string
	}{
		{"all are well", with(nothing), idle, []string{first, second, third}},
		{"nobody knows", nil, idle, nil},
		{"the owner is drained", with(func(m *view.Member) { m.Drained = "node" }), idle, []string{second, third}},
		{"the owner is drained and needed", with(func(m *view.Member) { m.Drained, m.Needed = "node", []view.Role{view.Edge} }), idle, order},
		{"the owner leaves", with(func(m *view.Member) { m.Leaving = true }), idle, []string{second, third}},
		{"the owner is no edge node", with(func(m *view.Member) { m.Roles = []view.Role{view.DNS} }), idle, []string{second, third}},
		{"the owner cannot be reached", &view.View{Self: third, Members: three(), Unreachable: map[string]bool{first: true}}, idle, []string{second, third}},
		{"the owner has enough to do", with(nothing), loads(first, loadSlack), order},
		{"the owner has too much to do", with(nothing), loads(first, 4*loadSlack), []string{second, third, first}},
		{"this node never has", &view.View{Self: first, Members: three()}, loads(first, 4*loadSlack), order},
		{"all have", with(nothing), func(string) int { return 1000 }, order},
	} {
		if got := Owners(c.view, everywhere, key, c.load, nil); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestOneRequestOfAllNodesReachesTheOrigin(t *testing.T) {
	inFleet(t, site(""), three(), says(time.Second, "hello", "Cache-Control: max-age=60", "Cache-Status: o; hit", "X-Cache: Hit from elsewhere"), func(t *testing.T, f *fleet) {
		var wg sync.WaitGroup
		for i := range 30 {
			wg.Go(func() { f.must([]string{"icn-a", "icn-b", "icn-c"}[i%3], "/a.css", 200, "Miss", "hello") })
		}
		wg.Wait()
		if f.requests() != 1 {
			t.Errorf("the origin was asked %d times", f.requests())
		}
		owners := f.owners("/a.css", inSeoul)
		if calls, want := f.called(), []string{owners[1] + ">" + owners[0] + " pop", owners[2] + ">" + owners[0] + " pop"}; !slices.Equal(calls, slices.Sorted(slices.Values(want))) {
			t.Errorf("called %q, want %q", calls, want)
		}
		time.Sleep(10 * time.Second)
		a := f.must(owners[1], "/a.css", 200, "Hit", "hello")
		want := []string{"o; hit", "perigee; hit; ttl=48; detail=owner", "perigee; fwd=uri-miss; fwd-status=200; detail=peer"}
		if got := a.Header["Cache-Status"]; !slices.Equal(got, want) {
			t.Errorf("Cache-Status %q, want %q", got, want)
		}
		for name, want := range map[string]string{"Age": "11", "Via": "1.1 perigee", "X-Perigee-Pop": "icn1", "Content-Length": "5", answerField: ""} {
			if got := a.Header.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if owner, asker := f.nodes[owners[0]].Counters(), f.nodes[owners[1]].Counters(); owner["cache_objects"] != 1 || asker["cache_objects"] != 0 {
			t.Errorf("the owner keeps %d, the asker %d", owner["cache_objects"], asker["cache_objects"])
		} else if asker["cdn_peer_hits_total"] != 1 || asker["cdn_hits_total"] != 1 || owner["cdn_peer_served_total"] != 3 || owner["cdn_requests_total"] != 10 {
			t.Errorf("counted %v, %v", asker, owner)
		}
	})
}

// The 10,000 are in one bubble, without sockets before the nodes; between the nodes all is real.
func TestTenThousandClientsOfThreeNodesAreOneRequest(t *testing.T) {
	body := strings.Repeat("x", 100<<10)
	inFleet(t, site(""), three(), says(3*time.Second, body), func(t *testing.T, f *fleet) {
		const clients = 10_000
		var whole atomic.Int32
		var wg sync.WaitGroup
		for i := range clients {
			wg.Go(func() {
				w := &lengthOnly{header: http.Header{}}
				f.nodes[[]string{"icn-a", "icn-b", "icn-c"}[i%3]].ServeHTTP(w, httptest.NewRequest("GET", "http://www.test/cold", nil).WithContext(t.Context()))
				if w.status == 200 && w.length == len(body) {
					whole.Add(1)
				}
			})
		}
		wg.Wait()
		if whole.Load() != clients || f.requests() != 1 {
			t.Errorf("%d were answered in full, the origin was asked %d times", whole.Load(), f.requests())
		}
	})
}

// lengthOnly counts the bytes of a response.
type lengthOnly struct {
	header         http.Header
	status, length int
}

func (l *lengthOnly) Header() http.Header         { return l.header }
func (l *lengthOnly) WriteHeader(status int)      { l.status = status }
func (l *lengthOnly) Write(b []byte) (int, error) { l.length += len(b); return len(b), nil }
func (l *lengthOnly) Flush()                      {}

func TestTheOriginHearsOfTheViewerWhatItWouldWithoutPeers(t *testing.T) {
	policy := "headers: {behavior: whitelist, items: [Accept-Language, User-Agent, Host]}\ncookies: {behavior: whitelist, items: [c]}\nqueryStrings: {behavior: whitelist, items: [q]}"
	viewer := header("Accept-Language: ko", "Cookie: c=1; d=2", "X-Forwarded-For: 198.51.100.7", "Via: 1.0 squid", "Accept-Encoding: br, gzip;q=0.1",
		"Perigee-Ask: 9 http 0 ", "Perigee-If-None-Match: *", "Referer: https://else.test/", "If-None-Match: *", "Range: bytes=0-1")
	heard := func(members []view.Member, node string) (h http.Header, host, uri string) {
		inFleet(t, site(policy), members, says(0, "hello"), func(t *testing.T, f *fleet) {
			if _, err := f.ask(node, "GET", "/a%20b?x=1&q=1", viewer.Clone()); err != nil || f.requests() != 1 {
				t.Fatal(err, f.requests())
			}
			h, host, uri = f.asked[0].Header, f.asked[0].Host, f.asked[0].RequestURI
		})
		return h, host, uri
	}
	alone, host, uri := heard(three()[:1], "icn-a")
	for _, node := range []string{"icn-a", "icn-b", "icn-c"} {
		h, peersHost, peersURI := heard(three(), node)
		h["X-Perigee-Id"] = alone["X-Perigee-Id"]
		if got, want := fmt.Sprint(h, peersHost, peersURI), fmt.Sprint(alone, host, uri); got != want {
			t.Errorf("by way of %s:\n got %s\nwant %s", node, got, want)
		}
	}
	if alone.Get("X-Forwarded-For") != "198.51.100.7, 203.0.113.9" || alone.Get("Cdn-Loop") != "perigee" || host != "www.test" || uri != "/a%20b?q=1" {
		t.Errorf("heard %v %s %s", alone, host, uri)
	}
}

func TestAPeerThatFailsGivesWay(t *testing.T) {
	for _, c := range []struct {
		name   string
		break_ func(f *fleet, owner *peerNode)
		within time.Duration
	}{
		{"its process has died", func(f *fleet, n *peerNode) { n.host.Kill() }, 100 * time.Millisecond},
		{"it takes nothing more", func(f *fleet, n *peerNode) { n.refuses.Store(true) }, 100 * time.Millisecond},
		{"its machine has died", func(f *fleet, n *peerNode) { n.host.Crash() }, peerDial + 100*time.Millisecond},
		{"it takes requests and says nothing", func(f *fleet, n *peerNode) { n.stuck.Store(true) }, peerPatience + 100*time.Millisecond},
	} {
		inFleet(t, site(""), three(), says(0, "hello"), func(t *testing.T, f *fleet) {
			owners := f.owners("/a", inSeoul)
			c.break_(f, f.nodes[owners[0]])
			began := time.Now()
			f.must(owners[2], "/a", 200, "Miss", "hello")
			if took := time.Since(began); took > c.within {
				t.Errorf("%s: it took %v", c.name, took)
			}
			f.must(owners[1], "/a", 200, "Hit", "hello") // the next in order has filled it
			if n := f.nodes[owners[2]].Counters()["cdn_peer_fallbacks_total"]; f.requests() != 1 || n != 1 {
				t.Errorf("%s: the origin was asked %d times, %d fell back", c.name, f.requests(), n)
			}
		})
	}
}

func TestWhereAllPeersFailTheOriginIsAsked(t *testing.T) {
	inFleet(t, site(""), three(), says(0, "hello"), func(t *testing.T, f *fleet) {
		owners := f.owners("/a", inSeoul)
		f.nodes[owners[0]].host.Kill()
		f.nodes[owners[1]].refuses.Store(true)
		f.must(owners[2], "/a", 200, "Miss", "hello")
		if f.requests() != 1 {
			t.Errorf("the origin was asked %d times", f.requests())
		}
	})
}

func TestAnOwnerThatDiesWhileItFillsCostsTimeAndNoError(t *testing.T) {
	inFleet(t, site(""), three(), says(10*time.Second, "hello"), func(t *testing.T, f *fleet) {
		owners := f.owners("/a", inSeoul)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { f.must(owners[1], "/a", 200, "Miss", "hello") })
			wg.Go(func() { f.must(owners[2], "/a", 200, "Miss", "hello") })
		}
		time.Sleep(3 * time.Second)
		f.nodes[owners[0]].host.Kill()
		began := time.Now()
		wg.Wait()
		if took := time.Since(began); took > 11*time.Second {
			t.Errorf("it took %v more", took)
		}
		if f.requests() != 2 { // the owner's, and the next owner's
			t.Errorf("the origin was asked %d times", f.requests())
		}
	})
}

func TestASlowOriginIsNoSlowPeer(t *testing.T) {
	inFleet(t, site(""), three(), says(25*time.Second, "hello"), func(t *testing.T, f *fleet) {
		owners := f.owners("/a", inSeoul)
		f.must(owners[2], "/a", 200, "Miss", "hello")
		if f.requests() != 1 {
			t.Errorf("the origin was asked %d times", f.requests())
		}
	})
}

func TestAnOriginThatIsSilentIsOneTimeoutForAll(t *testing.T) {
	inFleet(t, site(""), three(), func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, func(t *testing.T, f *fleet) {
		owners := f.owners("/a", inSeoul)
		began := time.Now()
		f.must(owners[2], "/a", 504, "Error", "*")
		if took := time.Since(began); took > 31*time.Second || f.requests() != 1 {
			t.Errorf("after %v; the origin was asked %d times", took, f.requests())
		}
	})
}

func TestAnOwnerThatCannotReachTheOriginIsNoErrorOfOthers(t *testing.T) {
	inFleet(t, site(""), three(), says(0, "hello"), func(t *testing.T, f *fleet) {
		owners := f.owners("/a", inSeoul)
		f.in.Cut(owners[0], "origin")
		f.must(owners[2], "/a", 200, "Miss", "hello")
	})
}

func TestWhatIsCutShortIsCutShortByWayOfAPeer(t *testing.T) {
	inFleet(t, site(""), three(), func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/length" {
			w.Header().Set("Content-Length", "10")
		}
		io.WriteString(w, "half")
		http.NewResponseController(w).Flush()
		time.Sleep(time.Second)
		panic(http.ErrAbortHandler)
	}, func(t *testing.T, f *fleet) {
		for _, path := range []string{"/length", "/chunked"} {
			asker := f.owners(path, inSeoul)[1]
			if a, err := f.ask(asker, "GET", path, nil); err == nil || a.body != "half" {
				t.Errorf("%s: %q, %v", path, a.body, err)
			}
		}
	})
}

func TestPeersStreamWhatComes(t *testing.T) {
	inFleet(t, site(""), three(), func(w http.ResponseWriter, r *http.Request) {
		for i := range 3 {
			fmt.Fprint(w, i)
			http.NewResponseController(w).Flush()
			time.Sleep(10 * time.Second)
		}
	}, func(t *testing.T, f *fleet) {
		w := &timed{ResponseRecorder: httptest.NewRecorder(), began: time.Now()}
		f.nodes[f.owners("/a", inSeoul)[1]].ServeHTTP(w, httptest.NewRequest("GET", "http://www.test/a", nil))
		if got := strings.Join(w.pieces, " "); got != "0@0s 1@10s 2@20s" {
			t.Errorf("got %s", got)
		}
	})
}

// timed says when which piece of a body came, in tens of seconds.
type timed struct {
	*httptest.ResponseRecorder
	began  time.Time
	pieces []string
}

func (w *timed) Write(b []byte) (int, error) {
	w.pieces = append(w.pieces, fmt.Sprintf("%s@%v", b, time.Since(w.began).Truncate(10*time.Second)))
	return w.ResponseRecorder.Write(b)
}

func TestRangesConditionsAndHeadComeFromWhatAPeerKeeps(t *testing.T) {
	inFleet(t, site(""), three(), says(0, "0123456789", "Etag: \"v1\"", "Cache-Control: max-age=60"), func(t *testing.T, f *fleet) {
		asker := f.owners("/a", inSeoul)[1]
		for _, c := range []struct {
			method, line string
			status       int
			body         string
		}{
			{"GET", "Range: bytes=2-4", 206, "234"}, {"GET", "Range: bytes=20-", 416, ""}, {"GET", "If-None-Match: \"v1\"", 304, ""},
			{"HEAD", "", 200, ""}, {"GET", "", 200, "0123456789"},
		} {
			a, err := f.ask(asker, c.method, "/a", header(c.line))
			if err != nil || a.StatusCode != c.status || a.body != c.body {
				t.Errorf("%s %s: %d %q %v", c.method, c.line, a.StatusCode, a.body, err)
			}
		}
		if f.requests() != 1 {
			t.Errorf("the origin was asked %d times", f.requests())
		}
	})
}

func TestWhatMayNotBeSharedIsAskedOfTheOriginByEachNode(t *testing.T) {
	inFleet(t, site(""), three(), says(0, "hello", "Cache-Control: private"), func(t *testing.T, f *fleet) {
		asker := f.owners("/a", inSeoul)[1]
		f.must(asker, "/a", 200, "Miss", "hello") // by way of the owner, once
		if got := len(f.called()); got != 1 {
			t.Errorf("%d calls", got)
		}
		for range 5 {
			f.must(asker, "/a", 200, "Miss", "hello")
		}
		f.must(f.owners("/a", inSeoul)[2], "/a", 200, "Miss", "hello") // the owner knows, and refuses
		if got := f.called(); len(got) != 1 || f.requests() != 7 {
			t.Errorf("calls %q, the origin was asked %d times", got, f.requests())
		}
	})
}

func TestWhatIsForTheFirstViewerAloneIsForThatOfAllNodes(t *testing.T) {
	inFleet(t, site("cookies: {behavior: all}"), three(), says(time.Second, "hello", "Cache-Control: max-age=60, private=\"x-own\"", "X-Own: first"), func(t *testing.T, f *fleet) {
		asker := f.owners("/a", inSeoul)[1]
		if a := f.must(asker, "/a", 200, "Miss", "hello"); a.Header.Get("X-Own") != "first" {
			t.Errorf("the first got %v", a.Header)
		}
		for _, node := range []string{asker, f.owners("/a", inSeoul)[0]} {
			if a := f.must(node, "/a", 200, "Hit", "hello"); a.Header.Get("X-Own") != "" {
				t.Errorf("another got %v", a.Header)
			}
		}
	})
}

func TestNoHopMakesAResponseLiveLonger(t *testing.T) {
	for _, c := range []struct {
		name, policy string
		lines        []string
		status       int
		lives        time.Duration // at the owner, from the first request on
	}{
		{"max-age", "", []string{"Cache-Control: max-age=60", "Etag: \"1\""}, 200, 60 * time.Second},
		{"MinTTL counts from when it came to the owner", "minTTL: 60", []string{"Cache-Control: no-store"}, 200, 60 * time.Second},
		{"an error", "", nil, 404, 10 * time.Second},
	} {
		inFleet(t, site(c.policy), three(), func(w http.ResponseWriter, r *http.Request) {
			for _, line := range c.lines {
				name, value, _ := strings.Cut(line, ": ")
				w.Header().Set(name, value)
			}
			w.WriteHeader(c.status)
			io.WriteString(w, "x")
		}, func(t *testing.T, f *fleet) {
			owners := f.owners("/a", inSeoul)
			f.must(owners[0], "/a", c.status, map[bool]string{true: "Miss", false: "Error"}[c.status < 400], "x")
			time.Sleep(c.lives - time.Second)
			for range 3 * hotRequests { // hot: kept at the asker, too
				f.must(owners[1], "/a", c.status, map[bool]string{true: "Hit", false: "Error"}[c.status < 400], "x")
				synctest.Wait() // or else all of them may join the first one's fill, which keeps nothing
			}
			if n := f.nodes[owners[1]].Counters()["cache_objects"]; n != 1 || f.requests() != 1 {
				t.Errorf("%s: the asker keeps %d, the origin was asked %d times", c.name, n, f.requests())
			}
			time.Sleep(1100 * time.Millisecond)
			f.ask(owners[1], "GET", "/a", nil)
			if f.requests() != 2 {
				t.Errorf("%s: after its time the origin was asked %d times", c.name, f.requests())
			}
		})
	}
}

func TestStaleWindowsEndForAllAtOnce(t *testing.T) {
	down := new(atomic.Bool)
	inFleet(t, site(""), three(), func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			w.WriteHeader(503)
			return
		}
		w.Header().Set("Cache-Control", "max-age=10, stale-if-error=100")
		io.WriteString(w, "old")
	}, func(t *testing.T, f *fleet) {
		owners := f.owners("/a", inSeoul)
		f.must(owners[0], "/a", 200, "Miss", "old")
		for range 3 * hotRequests {
			f.must(owners[1], "/a", 200, "Hit", "old")
		}
		down.Store(true)
		time.Sleep(100 * time.Second)
		for _, node := range owners {
			f.must(node, "/a", 200, "Hit", "old")
		}
		time.Sleep(15 * time.Second)
		for _, node := range owners {
			f.must(node, "/a", 503, "Error", "")
		}
	})
}

func TestManyWhoGetAStaleResponseDoNotGoToTheOrigin(t *testing.T) {
	var n atomic.Int32
	inFleet(t, site(""), three(), func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=10, stale-while-revalidate=100")
		time.Sleep(5 * time.Second)
		fmt.Fprint(w, n.Add(1))
	}, func(t *testing.T, f *fleet) {
		owners := f.owners("/a", inSeoul)
		f.must(owners[0], "/a", 200, "Miss", "1")
		time.Sleep(20 * time.Second)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { f.must(owners[1], "/a", 200, "Hit", "1") })
		}
		wg.Wait()
		time.Sleep(6 * time.Second)
		f.must(owners[1], "/a", 200, "Hit", "2")
		if f.requests() != 2 {
			t.Errorf("the origin was asked %d times", f.requests())
		}
	})
}

func TestAHotKeyIsKeptByAllThatAreAskedForIt(t *testing.T) {
	inFleet(t, site(""), three(), numbered(), func(t *testing.T, f *fleet) {
		owners := f.owners("/a", inSeoul)
		for i := range hotRequests + 10 {
			for _, node := range owners {
				f.must(node, "/a", 200, map[bool]string{true: "Miss", false: "Hit"}[i == 0 && node == owners[0]], "1")
			}
		}
		f.called()
		for _, node := range owners {
			c := f.nodes[node].Counters()
			if c["cache_objects"] != 1 || node != owners[0] && (c["cdn_hot_keys_total"] != 1 || c["cdn_peer_requests_total"] != hotRequests+1) {
				t.Errorf("%s: %v", node, c)
			}
		}
		if f.must(owners[1], "/a", 200, "Hit", "1"); f.requests() != 1 || len(f.called()) != 0 {
			t.Errorf("the origin was asked %d times", f.requests())
		}
		// Another is asked for as often, but in a longer time.
		asker := f.owners("/b", inSeoul)[1]
		for range hotRequests + 10 {
			f.ask(asker, "GET", "/b", nil)
			time.Sleep(time.Second)
		}
		if c := f.nodes[asker].Counters(); c["cache_objects"] > 1+uint64(len(f.called())) && c["cdn_hot_keys_total"] > 1 {
			t.Errorf("%v", c)
		}
	})
}

func TestAnOwnerThatIsBehindIsNotBelieved(t *testing.T) {
	inFleet(t, site(""), three(), numbered(), func(t *testing.T, f *fleet) {
		owners := f.owners("/a", inSeoul)
		f.must(owners[1], "/a", 200, "Miss", "1")
		// The purge reaches all but the owner, and is agreed.
		for _, node := range owners[1:] {
			n := f.nodes[node]
			n.Purge(cache.Purge{Distribution: "site", Items: []string{"/a"}})
			n.epoch.Store(7)
			n.Settle()
		}
		f.must(owners[1], "/a", 200, "Miss", "2")
		f.must(owners[2], "/a", 200, "Miss", "3")
		f.must(owners[0], "/a", 200, "Hit", "1") // it knows no better: its own fence is to tell it
		if n := f.nodes[owners[1]].Counters()["cdn_peer_refused_epoch_total"]; n != 1 {
			t.Errorf("%d were refused for their epoch", n)
		}
		f.nodes[owners[0]].Purge(cache.Purge{Distribution: "site", Items: []string{"/a"}})
		f.nodes[owners[0]].epoch.Store(8) // and of one more, of which the others have not heard
		f.must(owners[1], "/a", 200, "Miss", "4")
		f.must(owners[2], "/a", 200, "Hit", "4")
	})
}

func TestAPurgeThatIsNotAgreedYetKeepsFromPeers(t *testing.T) {
	inFleet(t, site(""), three(), numbered(), func(t *testing.T, f *fleet) {
		owners := f.owners("/a", inSeoul)
		asker := f.nodes[owners[1]]
		f.must(owners[1], "/a", 200, "Miss", "1")
		f.must(owners[1], "/b", 200, "Miss", "2")
		asker.Purge(cache.Purge{Distribution: "site", Items: []string{"/a"}}) // was told to it alone
		f.called()
		f.must(owners[1], "/a", 200, "Miss", "3")
		f.must(owners[1], "/a", 200, "Hit", "3") // kept here
		if calls := f.called(); len(calls) != 0 {
			t.Errorf("called %q", calls)
		}
		if got := asker.hops(f.decision(asker, "/b"), f.key(asker, "/b"), byViewers, nil); owners[1] != f.owners("/b", inSeoul)[0] && len(got) == 0 {
			t.Error("another key is not asked of peers either")
		}
		asker.Purge(cache.Purge{Distribution: "site", Items: []string{"/a"}})
		time.Sleep(pendingTime)
		f.must(owners[1], "/a", 200, "Hit", "1") // nobody agreed: it was in effect for a while
	})
}

func (f *fleet) decision(n *peerNode, path string) Decision {
	return n.table.Load().Route(Request{Method: "GET", Host: "www.test", Path: path}, nil)
}

func (f *fleet) key(n *peerNode, path string) cache.Key {
	d := f.decision(n, path)
	return d.Behavior.Policy.Key(d.target(), nil)
}

// The hops of a fill are chosen before it is there to be told of a purge.
func TestAPurgeBetweenChoosingAPeerAndAskingItKeepsFromPeers(t *testing.T) {
	inFleet(t, site(""), three(), numbered(), func(t *testing.T, f *fleet) {
		owners := f.owners("/a", inSeoul)
		f.must(owners[0], "/a", 200, "Miss", "1")
		n := f.nodes[owners[1]]
		r := httptest.NewRequest("GET", "http://www.test/a", nil).WithContext(t.Context())
		want := n.want(r, f.decision(n, "/a"), f.key(n, "/a"), "id", nil, nil)
		n.Purge(cache.Purge{Distribution: "site", Items: []string{"/a"}})
		response, err := want.Fetch(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if body, err := io.ReadAll(response.Body); string(body) != "2" || err != nil {
			t.Errorf("got %q, %v", body, err)
		}
	})
}

func BenchmarkHops(b *testing.B) {
	members := three()
	for i := range 997 {
		members = append(members, edgeNode(fmt.Sprint("far-", i), "us-east-1", "iad1"))
	}
	p := New(Config{})
	defer p.Close()
	if err := p.Apply(build(b, site(""))); err != nil {
		b.Fatal(err)
	}
	d := p.table.Load().Route(Request{Method: "GET", Host: "www.test", Path: "/a"}, nil)
	v := &view.View{Self: "icn-c", Members: members}
	for b.Loop() {
		hops(v, d, "4:site2:/a0:0:0:3:GET", byViewers, idle, nil)
	}
}

func TestAFencedNodeAsksNoPeer(t *testing.T) {
	inFleet(t, site(""), three(), numbered(), func(t *testing.T, f *fleet) {
		owners := f.owners("/a", inSeoul)
		f.must(owners[0], "/a", 200, "Miss", "1")
		f.nodes[owners[1]].SetFence(true)
		f.must(owners[1], "/a", 200, "Miss", "2")
		f.nodes[owners[1]].SetFence(false)
		if calls := f.called(); len(calls) != 0 {
			t.Errorf("called %q", calls)
		}
	})
}

func TestMorePurgesThanAreRememberedCountForAll(t *testing.T) {
	var r recent
	now := time.Now()
	never := func(cache.Key) bool { return false }
	for range maxRecent {
		r.add(never, now, true)
	}
	if r.matches(cache.Key{}, now) {
		t.Error("a key matches that was not forgotten")
	}
	r.add(never, now, true)
	if !r.matches(cache.Key{}, now) || r.matches(cache.Key{}, now.Add(pendingTime)) {
		t.Error("at the bound all keys count as forgotten, for a while")
	}
}

func TestNodesThatSeeDifferentOwnersDoNotWaitForEachOther(t *testing.T) {
	inFleet(t, site(""), three(), says(time.Second, "hello"), func(t *testing.T, f *fleet) {
		owners := f.owners("/a", inSeoul)
		f.nodes[owners[0]].look(func(v *view.View) { // it takes itself to be drained: the next is the owner
			for i := range v.Members {
				if v.Members[i].Name == owners[0] {
					v.Members[i].Drained = "node"
				}
			}
		})
		began := time.Now()
		var wg sync.WaitGroup
		for range 20 {
			for _, node := range owners {
				wg.Go(func() { f.must(node, "/a", 200, "Miss", "hello") })
			}
		}
		wg.Wait()
		if took := time.Since(began); took > 3*time.Second || f.requests() > 2 {
			t.Errorf("after %v the origin was asked %d times", took, f.requests())
		}
	})
}

func TestADrainedNodeAsksTheOwnerAndOwnsNothing(t *testing.T) {
	inFleet(t, site(""), three(), says(0, "hello"), func(t *testing.T, f *fleet) {
		owners := f.owners("/a", inSeoul)
		f.must(owners[0], "/a", 200, "Miss", "hello")
		for _, n := range f.nodes {
			n.look(func(v *view.View) {
				for i := range v.Members {
					if v.Members[i].Name == owners[0] {
						v.Members[i].Drained = "node"
					}
				}
			})
		}
		f.must(owners[2], "/a", 200, "Miss", "hello") // by way of the next: another fill, no error
		f.must(owners[1], "/a", 200, "Hit", "hello")
		f.must(owners[0], "/b", 200, "Miss", "hello")
		if calls := f.called(); len(calls) != 2 || calls[0] != owners[0]+">"+f.owners("/b", inSeoul)[0]+" pop" && calls[1] != owners[0]+">"+f.owners("/b", inSeoul)[0]+" pop" {
			t.Errorf("called %q", calls)
		}
	})
}

func TestWhoChangesSomethingSeesTheChange(t *testing.T) {
	var n atomic.Int32
	inFleet(t, site(""), three(), func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			n.Add(1)
			return
		}
		fmt.Fprint(w, n.Load())
	}, func(t *testing.T, f *fleet) {
		owners := f.owners("/a", inSeoul)
		f.must(owners[1], "/a", 200, "Miss", "0")
		f.must(owners[2], "/a", 200, "Hit", "0")
		f.ask(owners[1], "POST", "/a", nil)
		f.must(owners[1], "/a", 200, "Miss", "1") // at once: not of the peer, which may not have heard
		time.Sleep(time.Second)
		f.must(owners[2], "/a", 200, "Miss", "1")
		f.must(owners[0], "/a", 200, "Hit", "1")
		if c := f.nodes[owners[0]].Counters()["cdn_peer_forgotten_total"]; c != 2 { // one for each scheme
			t.Errorf("forgot %d times", c)
		}
		for range 3 { // each is told, however soon they follow
			f.ask(owners[1], "POST", "/a", nil)
		}
		time.Sleep(time.Second)
		f.must(owners[2], "/a", 200, "Miss", "4")
		if c := f.nodes[owners[0]].Counters()["cdn_peer_forgotten_total"]; c != 8 {
			t.Errorf("forgot %d times", c)
		}
		f.nodes[owners[0]].refuses.Store(true)
		f.nodes[owners[1]].peers.transport.CloseIdleConnections()
		f.ask(owners[1], "POST", "/a", nil)
		time.Sleep(time.Second)
		f.nodes[owners[0]].refuses.Store(false)
		f.must(owners[1], "/a", 200, "Miss", "5") // it could not be told, and is not asked
	})
}

func TestOneRequestOfAllRegionsReachesAnOriginBehindAShield(t *testing.T) {
	inFleet(t, shielded, places(), says(time.Second, "hello", "Cache-Control: max-age=60"), func(t *testing.T, f *fleet) {
		var wg sync.WaitGroup
		for range 20 {
			for name := range f.nodes {
				wg.Go(func() { f.must(name, "/a", 200, "Miss", "hello") })
			}
		}
		wg.Wait()
		if f.requests() != 1 {
			t.Errorf("the origin was asked %d times", f.requests())
		}
		seoul, tokyo := f.owners("/a", inSeoul), f.owners("/a", inTokyo)
		want := []string{
			seoul[0] + ">" + tokyo[0] + " shield", seoul[1] + ">" + seoul[0] + " pop", seoul[2] + ">" + seoul[0] + " pop",
			tokyo[1] + ">" + tokyo[0] + " shield", tokyo[2] + ">" + tokyo[0] + " shield", // no hop more in the shield's own region
		}
		slices.Sort(want)
		if calls := f.called(); !slices.Equal(calls, want) {
			t.Errorf("called %q, want %q", calls, want)
		}
	})
}

func TestWhatTheShieldKeepsIsTheShieldsHit(t *testing.T) {
	inFleet(t, shielded, places(), says(0, "hello", "Cache-Control: max-age=60"), func(t *testing.T, f *fleet) {
		seoul, tokyo := f.owners("/a", inSeoul), f.owners("/a", inTokyo)
		f.must(tokyo[0], "/a", 200, "Miss", "hello")
		time.Sleep(10 * time.Second)
		a := f.must(seoul[1], "/a", 200, "Miss", "hello")
		want := []string{"perigee; hit; ttl=49; detail=OriginShieldHit", "perigee; fwd=uri-miss; fwd-status=200; stored; ttl=49; detail=owner", "perigee; fwd=uri-miss; fwd-status=200; detail=peer"}
		if got := a.Header["Cache-Status"]; !slices.Equal(got, want) || a.Header.Get("Age") != "10" {
			t.Errorf("Age %s, Cache-Status %q, want %q", a.Header.Get("Age"), got, want)
		}
		time.Sleep(10 * time.Second)
		if b := f.must(seoul[2], "/a", 200, "Hit", "hello"); b.Header.Get("Age") != "20" {
			t.Errorf("Age %s", b.Header.Get("Age"))
		}
	})
}

func TestAShieldThatIsGoneIsPassedOver(t *testing.T) {
	for name, lose := range map[string]func(f *fleet){
		"they have died": func(f *fleet) {
			for name, n := range f.nodes {
				if strings.HasPrefix(name, "nrt") {
					n.host.Kill()
				}
			}
		},
		"they are cut off": func(f *fleet) {
			for _, n := range f.nodes {
				n.look(func(v *view.View) { v.Unreachable = map[string]bool{"nrt-a": true, "nrt-b": true, "nrt-c": true} })
			}
		},
		"nobody is there": func(f *fleet) {
			for _, n := range f.nodes {
				n.look(func(v *view.View) { v.Members = v.Members[:3] })
			}
		},
	} {
		inFleet(t, shielded, places(), says(0, "hello"), func(t *testing.T, f *fleet) {
			lose(f)
			began := time.Now()
			f.must("icn-a", "/a", 200, "Miss", "hello")
			f.must("icn-b", "/a", 200, "Hit", "hello")
			if took := time.Since(began); f.requests() != 1 || took > time.Second {
				t.Errorf("%s: after %v the origin was asked %d times", name, took, f.requests())
			}
		})
	}
}

func TestWhatIsExplainedIsWhoIsAsked(t *testing.T) {
	inFleet(t, shielded, places(), says(0, "hello"), func(t *testing.T, f *fleet) {
		for i, change := range []func(*view.View){
			func(*view.View) {},
			func(v *view.View) { v.Unreachable = map[string]bool{"icn-a": true, "nrt-b": true} },
			func(v *view.View) { v.Members[1].Drained, v.Members[3].Leaving = "pop", true },
			func(v *view.View) { v.Members = v.Members[:2] },
		} {
			for name, n := range f.nodes {
				n.view.Store(&view.View{Self: name, Members: places()})
				n.look(change)
				for j := range 3 {
					path := fmt.Sprintf("/%d/%d/%s", i, j, name)
					tr := new(trace.Trace)
					explained, err := n.Explain("GET", &url.URL{Scheme: "http", Host: "www.test", Path: path}, tr)
					if err != nil {
						t.Fatal(err)
					}
					n.peers.transport.CloseIdleConnections()
					f.called()
					f.must(name, path, 200, "Miss", "hello")
					first := ""
					for _, call := range f.called() {
						if from, to, _ := strings.Cut(call, ">"); from == name {
							first, _, _ = strings.Cut(to, " ")
						}
					}
					want := "miss: asks node " + first + ", "
					if first == "" {
						want = "miss: asks http://origin.test"
					}
					if !strings.HasPrefix(explained, want) {
						t.Errorf("%s, %s: %q is explained; asked was %q: %v", name, path, explained, first, tr.Lines())
					}
				}
			}
		}
	})
}

func TestAPeerIsAnsweredNothingThatItMayNotAsk(t *testing.T) {
	inFleet(t, site(""), three(), says(0, "hello"), func(t *testing.T, f *fleet) {
		n := f.nodes["icn-a"]
		if _, ok := n.Peers("viewers"); ok {
			t.Error("a resource that there is not")
		}
		h, _ := n.Peers("pop")
		uri := sumOf(f.key(n, "/a").URI)
		for _, c := range []struct {
			method, host, ask string
			status            int
			answer            string
		}{
			{"GET", "www.test", "", 400, ""},
			{"GET", "www.test", "0 ftp 0 =", 400, ""},
			{"PUT", "www.test", asking{URI: uri}.String(), 400, ""},
			{"GET", "else.test", asking{URI: uri}.String(), 503, "refused spec"},
			{"GET", "www.test", asking{URI: 1}.String(), 503, "refused spec"},
			{"GET", "www.test", asking{URI: uri, Epoch: 1}.String(), 503, "refused epoch"},
			{"GET", "www.test", asking{URI: uri}.String(), 200, "shared 863999"},
		} {
			r := httptest.NewRequest(c.method, "/a", nil).WithContext(t.Context())
			r.Host = c.host
			r.Header.Set(askField, c.ask)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if got := w.Header().Get(answerField); w.Code != c.status || !strings.HasPrefix(got, c.answer) || c.answer == "" && got != "" {
				t.Errorf("%s %s %q: %d %q", c.method, c.host, c.ask, w.Code, got)
			}
		}
	})
}

func TestHeatFindsWhatIsHotAmongMuchThatIsNot(t *testing.T) {
	h, now := newHeat(), time.Now()
	for i := range hotRequests + 5 {
		if turned := h.count("alone", now); turned != (i == hotRequests) || h.hot("alone", now) != (i >= hotRequests) {
			t.Errorf("request %d: it turned hot %v, is hot %v", i+1, turned, h.hot("alone", now))
		}
	}
	for i := range 50_000 {
		h.count("cold"+strconv.Itoa(i), now)
		if i%1000 == 0 {
			h.count("hot", now)
		}
	}
	wrong := 0
	for i := range 50_000 {
		if h.hot("cold"+strconv.Itoa(i), now) {
			wrong++
		}
	}
	if !h.hot("hot", now) || wrong > 0 {
		t.Errorf("what is hot is %v; %d are hot that are not", h.hot("hot", now), wrong)
	}
	if !h.hot("hot", now.Add(hotWindow)) {
		t.Error("it is not hot any more in the next window")
	}
	if h.hot("hot", now.Add(2*hotWindow)) || h.hot("hot", now.Add(5*hotWindow)) {
		t.Error("it stays hot")
	}
}

func TestWhatPeersSayIsReadAsItIsWritten(t *testing.T) {
	for _, a := range []asking{{}, {7, true, 1<<64 - 1, "6:Cookie1:13:a=b\x00ü"}, {1 << 63, false, 0, ""}} {
		if got, err := parseAsking(a.String()); err != nil || got != a {
			t.Errorf("%+v came back as %+v, %v", a, got, err)
		}
	}
	for _, c := range []struct{ given, want answering }{
		{answering{}, answering{}},
		{answering{Kept: true, Shared: true, Fresh: 1500 * time.Microsecond}, answering{Kept: true, Shared: true, Fresh: time.Millisecond}},
		{answering{Kept: true, Fresh: -time.Microsecond}, answering{Kept: true, Fresh: -time.Millisecond}},
		{answering{Kept: true, Before: time.Microsecond, Soft: true}, answering{Kept: true, Before: time.Millisecond, Soft: true}},
	} {
		if got, err := parseAnswering(c.given.String()); err != nil || got != c.want {
			t.Errorf("%+v came back as %+v, %v", c.given, got, err)
		}
	}
	for _, bad := range []string{"", "refused", "refused now", "alone 1", "kept", "kept 1", "kept 1s 0", "kept 1 -1", "kept 1 0 hard", "kept 1 0  soft",
		"shared 99999999999999999999 0", "kept 3153600000001 0", "kept 0 3153600000001"} {
		if _, err := parseAnswering(bad); !errors.Is(err, errAnswering) {
			t.Errorf("%q is taken: %v", bad, err)
		}
	}
}

func FuzzPeerFields(f *testing.F) {
	f.Add(asking{7, true, 99, "x"}.String())
	f.Add("shared 100 0")
	f.Add("kept -1 20 soft")
	f.Add("refused epoch")
	f.Fuzz(func(t *testing.T, text string) {
		if a, err := parseAsking(text); err == nil {
			if again, err := parseAsking(a.String()); err != nil || again != a {
				t.Errorf("%q: %+v, then %+v, %v", text, a, again, err)
			}
		}
		if a, err := parseAnswering(text); err == nil {
			if again, err := parseAnswering(a.String()); err != nil || again != a {
				t.Errorf("%q: %+v, then %+v, %v", text, a, again, err)
			}
		}
	})
}

// hinted is a viewer who takes down the interim responses.
type hinted struct {
	*httptest.ResponseRecorder
	hints []string
}

func (h *hinted) WriteHeader(status int) {
	if status >= 200 {
		h.ResponseRecorder.WriteHeader(status)
		return
	}
	h.hints = append(h.hints, fmt.Sprint(status, " ", h.Header()))
}

func TestHintsOfTheOriginComeByWayOfPeers(t *testing.T) {
	for _, c := range []struct {
		name, text string
		members    []view.Member
		calls      int
	}{
		{"the owner", site(""), three(), 1},
		{"the owner and the shield", shielded, places(), 2},
	} {
		inFleet(t, c.text, c.members, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(3 * time.Second) // the peers give signs meanwhile
			w.Header().Set("Link", "</a.css>; rel=preload")
			w.Header().Set(answerField, "kept 1 1")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
			time.Sleep(time.Second)
			w.WriteHeader(http.StatusProcessing)
			time.Sleep(3 * time.Second)
			w.Header().Set("Cache-Control", "max-age=60")
			fmt.Fprint(w, "hello")
		}, func(t *testing.T, f *fleet) {
			order := f.owners("/", inSeoul)
			asker := order[len(order)-1]
			ask := func() *hinted {
				r := httptest.NewRequest("GET", "http://www.test/", nil).WithContext(t.Context())
				w := &hinted{ResponseRecorder: httptest.NewRecorder()}
				f.nodes[asker].ServeHTTP(w, r)
				if w.Code != 200 || w.Body.String() != "hello" || w.Header().Get("Link") != "" {
					t.Errorf("%s: got %d, %q, %v", c.name, w.Code, w.Body, w.Header())
				}
				return w
			}
			var joined *hinted
			var others sync.WaitGroup
			others.Go(func() {
				time.Sleep(time.Second)
				joined = ask()
			})
			if got, want := fmt.Sprint(ask().hints), "[103 map[Link:[</a.css>; rel=preload]] 102 map[]]"; got != want {
				t.Errorf("%s: who asked first got %s, want %s", c.name, got, want)
			}
			others.Wait()
			if len(joined.hints) > 0 {
				t.Errorf("%s: who joined got %s", c.name, joined.hints)
			}
			if calls := f.called(); len(calls) != c.calls || f.requests() != 1 {
				t.Errorf("%s: by way of %q, %d requests", c.name, calls, f.requests())
			}
		})
	}
}
