package origin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pires/go-proxyproto"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin/rule"
	"github.com/perigee-net/perigee/origin/transparent"
	"github.com/perigee-net/perigee/testbed/doorway"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// world is one region: a node with the load balancers web (HTTP, port 80) and tcp (TCP, port 9000) over the target group
// web, and machines for targets, t1, t2, …, all on one in-memory network.
type world struct {
	t       *testing.T
	net     *memnet.Internet
	node    *memnet.Host
	client  *http.Client
	person  *memnet.Host
	targets []*memnet.Host
	plane   *Plane
	doorway *doorway.Doorway
	view    atomic.Pointer[view.View]
	ends    []func()
}

// waits returns when what it begins has ended.
func waits(begin func(ended func())) {
	over := make(chan struct{})
	begin(func() { close(over) })
	<-over
}

// serveFlow is startFlow that waits for the end of the flow.
func (p *Plane) serveFlow(ctx context.Context, resource string, client netip.AddrPort, accept func() net.Conn, refuse func(reason string)) {
	waits(func(ended func()) { p.startFlow(ctx, resource, client, accept, refuse, ended) })
}

func inWorld(t *testing.T, targets int, f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: memnet.New(1)}
		host := func(name, addr string) *memnet.Host {
			return w.net.Host(name, spec.Location{}, netip.MustParseAddr(addr))
		}
		w.node = host("node", "10.0.0.100")
		w.person = host("person", "192.0.2.1")
		for i := range targets {
			w.targets = append(w.targets, host(fmt.Sprintf("t%d", i+1), fmt.Sprintf("10.0.0.%d", i+1)))
		}
		w.plane = New(Config{Region: "here", View: w.view.Load, Dial: w.node.Dial})
		w.apply(w.spec())
		w.healthy(w.addrs()...)
		transport := &http.Transport{DialContext: w.person.Dial, DisableCompression: true}
		w.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		w.doorway = &doorway.Doorway{T: t, Relay: w.plane.Relay("web", 80), Handler: w.plane.Handler("web", 80)}
		w.serve(w.node, ":80", w.doorway)
		w.listen(w.node, ":9000", func(c net.Conn) { waits(func(ended func()) { w.plane.StartConn("tcp", 9000, c, ended) }) })
		f(t, w)
		transport.CloseIdleConnections()
		time.Sleep(time.Second) // net/http lingers when it closes with a body unread
		for _, end := range slices.Backward(w.ends) {
			end()
		}
		w.plane.Close()
		w.net.Close()
	})
}

func (w *world) addrs() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, t := range w.targets {
		addrs = append(addrs, netip.AddrPortFrom(t.Addr(), 80))
	}
	return addrs
}

func (w *world) spec() *spec.Spec {
	g := &spec.TargetGroup{Name: "web", Region: "here", Protocol: spec.HTTP, Port: 80}
	for _, a := range w.addrs() {
		g.Targets = append(g.Targets, spec.Target{Address: a.Addr(), Port: a.Port()})
	}
	forward := spec.Action{Forward: "web"}
	return &spec.Spec{
		Revision:     1,
		TargetGroups: map[string]*spec.TargetGroup{"web": g},
		LoadBalancers: map[string]*spec.LoadBalancer{
			"web": {Name: "web", Region: "here", Type: spec.ApplicationLoadBalancer, Listeners: []spec.Listener{{Protocol: spec.HTTP, Port: 80, Default: forward}}},
			"tcp": {Name: "tcp", Region: "here", Type: spec.NetworkLoadBalancer, Listeners: []spec.Listener{{Protocol: spec.TCP, Port: 9000, Default: forward}}},
		},
	}
}

func (w *world) apply(s *spec.Spec) {
	w.t.Helper()
	if err := w.plane.Apply(s); err != nil {
		w.t.Fatal(err)
	}
}

// healthy makes a view in which these targets of the group web are healthy and all others initial.
func (w *world) healthy(targets ...netip.AddrPort) {
	verdicts := map[health.Key]health.Verdict{}
	for _, a := range targets {
		verdicts[health.TargetKey("web", a)] = health.Verdict{Healthy: true}
	}
	w.view.Store(&view.View{Health: health.NewTable(verdicts)})
}

// serve runs an HTTP server on a machine until the world ends.
func (w *world) serve(h *memnet.Host, address string, handler http.Handler) *http.Server {
	w.t.Helper()
	l, err := h.Listen("tcp", address)
	if err != nil {
		w.t.Fatal(err)
	}
	s := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
	var wg sync.WaitGroup
	wg.Go(func() { s.Serve(l) })
	w.ends = append(w.ends, func() { s.Close(); wg.Wait() })
	return s
}

// listen gives each connection to a machine to f, until the world ends.
func (w *world) listen(h *memnet.Host, address string, f func(net.Conn)) {
	w.t.Helper()
	l, err := h.Listen("tcp", address)
	if err != nil {
		w.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { f(c) })
		}
	})
	w.ends = append(w.ends, func() { l.Close(); wg.Wait() })
}

// names runs a server on each target that answers with the target's name.
func (w *world) names() {
	for _, t := range w.targets {
		w.serve(t, ":80", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			io.WriteString(rw, t.Name()+string(body))
		}))
	}
}

// ask sends a request through the load balancer and returns status and body.
func (w *world) ask(method, body string) (int, string) {
	w.t.Helper()
	res, err := w.client.Do(w.request(method, body))
	if err != nil {
		w.t.Fatalf("%s: %v", method, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatalf("%s: %v", method, err)
	}
	return res.StatusCode, string(b)
}

func (w *world) request(method, body string) *http.Request {
	var r io.Reader
	if body != "" {
		r = io.MultiReader(strings.NewReader(body)) // a body that cannot be rewound
	}
	req, err := http.NewRequestWithContext(w.t.Context(), method, "http://10.0.0.100/", r)
	if err != nil {
		w.t.Fatal(err)
	}
	return req
}

func (w *world) counted(name string, want uint64) {
	w.t.Helper()
	if got := w.plane.Counters()[name]; got != want {
		w.t.Errorf("%s: got %d, want %d", name, got, want)
	}
}

func TestRequestsAreSharedOutEvenly(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.names()
		shares := map[string]int{}
		for range 150 {
			_, name := w.ask("GET", "")
			shares[name]++
		}
		if want := map[string]int{"t1": 50, "t2": 50, "t3": 50}; !cmp.Equal(shares, want) {
			t.Errorf("got %v, want %v", shares, want)
		}
		w.counted("origin_requests_total", 150)
		w.counted("origin_target_2xx_total", 150)
	})
}

func TestUnhealthyTargetsTakeNothingWhileOneIsHealthy(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.names()
		shares := func() map[string]int {
			m := map[string]int{}
			for range 30 {
				_, name := w.ask("GET", "")
				m[name]++
			}
			return m
		}
		w.healthy(w.addrs()[1])
		if got, want := shares(), (map[string]int{"t2": 30}); !cmp.Equal(got, want) {
			t.Errorf("one healthy: got %v, want %v", got, want)
		}
		w.healthy()
		if got, want := shares(), (map[string]int{"t1": 10, "t2": 10, "t3": 10}); !cmp.Equal(got, want) {
			t.Errorf("none healthy: got %v, want %v", got, want)
		}
	})
}

func TestNoRequestFailsWhenATargetStops(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		for _, target := range w.targets {
			w.serve(target, ":80", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				time.Sleep(10 * time.Millisecond)
				io.WriteString(rw, target.Name())
			}))
		}
		var askers sync.WaitGroup
		for range 8 {
			askers.Go(func() {
				for range 50 {
					if status, body := w.ask("GET", ""); status != 200 {
						t.Errorf("got %d %s", status, body)
					}
				}
			})
		}
		time.Sleep(250 * time.Millisecond)
		w.targets[0].Kill() // its verdict stays healthy: nobody has looked yet
		askers.Wait()
		if c := w.plane.Counters(); c["origin_target_connect_errors_total"] == 0 || c["origin_target_retries_total"] == 0 {
			t.Errorf("nothing was tried again: %v", c)
		}
		w.counted("origin_target_2xx_total", 400)
	})
}

func TestABodyGoesWholeToTheNextTargetIfTheFirstCannotBeDialed(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.serve(w.targets[2], ":80", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			http.NewResponseController(rw).EnableFullDuplex()
			io.Copy(rw, r.Body)
		}))
		body := strings.Repeat("0123456789", 100_000)
		if status, got := w.ask("POST", body); status != 200 || got != body {
			t.Errorf("got %d and %d bytes", status, len(got))
		}
		w.counted("origin_target_connect_errors_total", 2)
		w.counted("origin_target_retries_total", 2)
	})
}

func TestARequestThatMayHaveBeenCarriedOutIsSentAgainOnlyIfThatDoesNoHarm(t *testing.T) {
	for _, c := range []struct {
		method, body string
		status       int
		sent         int64
	}{
		{"GET", "", 502, 2}, // three targets: retried once, not twice
		{"HEAD", "", 502, 2},
		{"DELETE", "", 502, 2},
		{"PUT", "x", 502, 1}, // its body is gone
		{"POST", "", 502, 1},
		{"POST", "x", 502, 1},
		{"PATCH", "x", 502, 1},
	} {
		inWorld(t, 3, func(t *testing.T, w *world) {
			var sent atomic.Int64
			for _, target := range w.targets {
				w.serve(target, ":80", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					sent.Add(1)
					panic(http.ErrAbortHandler)
				}))
			}
			if status, _ := w.ask(c.method, c.body); status != c.status || sent.Load() != c.sent {
				t.Errorf("%s %q: got %d after %d were sent, want %d after %d", c.method, c.body, status, sent.Load(), c.status, c.sent)
			}
			w.counted("origin_loadbalancer_5xx_total", 1)
		})
	}
}

func TestARequestIsNotSentAgainOnceAnAnswerHasBegun(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		var sent atomic.Int64
		for _, target := range w.targets {
			w.listen(target, ":80", func(c net.Conn) {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					sent.Add(1)
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-")
				}
			})
		}
		if status, _ := w.ask("GET", ""); status != 502 || sent.Load() != 1 {
			t.Errorf("got %d after %d were sent", status, sent.Load())
		}
	})
}

func TestAResponseCutShortDoesNotLookComplete(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.serve(w.targets[0], ":80", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			io.WriteString(rw, "half")
			http.NewResponseController(rw).Flush()
			panic(http.ErrAbortHandler)
		}))
		res, err := w.client.Do(w.request("GET", ""))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if b, err := io.ReadAll(res.Body); err == nil {
			t.Errorf("read %q and no error", b)
		}
	})
}

func TestTheErrorsAreALBs(t *testing.T) {
	stall := func(c net.Conn) { io.Copy(io.Discard, c); c.Close() }
	for name, c := range map[string]struct {
		targets int
		prepare func(w *world)
		method  string
		status  int
		after   time.Duration
	}{
		"no targets":                 {targets: 0, status: 503},
		"all refuse":                 {targets: 3, status: 502},
		"all are silent to a dial":   {targets: 2, status: 504, after: 2 * connectTimeout, prepare: func(w *world) { w.net.CutOff("t1"); w.net.CutOff("t2") }},
		"the target does not answer": {targets: 1, status: 504, after: applicationIdle, prepare: func(w *world) { w.listen(w.targets[0], ":80", stall) }},
		"the target talks nonsense": {targets: 1, status: 502, prepare: func(w *world) {
			w.listen(w.targets[0], ":80", func(c net.Conn) { io.WriteString(c, "what?\r\n\r\n"); c.Close() })
		}},
		"the headers never end":       {targets: 1, status: 502, prepare: func(w *world) { w.listen(w.targets[0], ":80", endlessHeaders) }},
		"the listener is gone":        {targets: 1, status: 503, prepare: func(w *world) { w.apply(&spec.Spec{Revision: 2}) }},
		"the listener is elsewhere":   {targets: 1, status: 503, prepare: func(w *world) { s := w.spec(); s.LoadBalancers["web"].Region = "there"; w.apply(s) }},
		"TRACE":                       {targets: 1, status: 405, method: "TRACE"},
		"a dead one beside a stalled": {targets: 2, status: 504, after: applicationIdle, prepare: func(w *world) { w.listen(w.targets[1], ":80", stall) }},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, c.targets, func(t *testing.T, w *world) {
				if c.prepare != nil {
					c.prepare(w)
				}
				start := time.Now()
				status, _ := w.ask(c.method, "")
				if took := time.Since(start); status != c.status || took < c.after || took > c.after+time.Second {
					t.Errorf("got %d after %v, want %d after %v", status, took, c.status, c.after)
				}
				w.counted(fmt.Sprintf("origin_loadbalancer_%dxx_total", c.status/100), 1)
			})
		})
	}
}

func endlessHeaders(c net.Conn) {
	defer c.Close()
	io.WriteString(c, "HTTP/1.1 200 OK\r\n")
	for {
		if _, err := io.WriteString(c, "X: "+strings.Repeat("x", 1000)+"\r\n"); err != nil {
			return
		}
	}
}

func TestAClientThatStopsSendingIsToldSo(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.names()
		c, err := w.person.Dial(t.Context(), "tcp", "10.0.0.100:80")
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
		time.Sleep(30 * time.Second)
		io.WriteString(c, "67")
		defer c.Close()
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start).Round(time.Second); res.StatusCode != 408 || took != 90*time.Second {
			t.Errorf("got %d after %v", res.StatusCode, took)
		}
	})
}

func TestAMalformedBodyIsTheClientsFault(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.names()
		c, err := w.person.Dial(t.Context(), "tcp", "10.0.0.100:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nnonsense\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode != 400 {
			t.Errorf("got %v, %v", res, err)
		}
	})
}

func TestAClientThatLeavesIsNobodysError(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		gone := make(chan struct{})
		w.serve(w.targets[0], ":80", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			close(gone)
		}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := w.client.Do(w.request("GET", "").WithContext(ctx)); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		<-gone // the target learned of it
		time.Sleep(time.Second)
		w.counted("origin_requests_client_gone_total", 1)
		w.counted("origin_loadbalancer_5xx_total", 0)
	})
}

func TestBodiesStreamBothWays(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.serve(w.targets[0], ":80", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			c := http.NewResponseController(rw)
			c.EnableFullDuplex()
			rw.WriteHeader(200)
			c.Flush()
			lines := bufio.NewScanner(r.Body)
			for lines.Scan() {
				io.WriteString(rw, strings.ToUpper(lines.Text())+"\n")
				c.Flush()
			}
		}))
		r, wr := io.Pipe()
		req := w.request("POST", "")
		req.Body = r
		res, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		answers := bufio.NewReader(res.Body)
		for i := range 10 { // for ten minutes, each far beyond the last word but within the idle timeout
			fmt.Fprintf(wr, "word %d\n", i)
			if line, err := answers.ReadString('\n'); line != fmt.Sprintf("WORD %d\n", i) {
				t.Fatalf("got %q, %v", line, err)
			}
			time.Sleep(50 * time.Second)
		}
		wr.Close()
		if rest, err := io.ReadAll(answers); len(rest) > 0 || err != nil {
			t.Errorf("got %q, %v", rest, err)
		}
	})
}

func TestAnUpgradedConnectionLivesAsLongAsBytesMove(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.serve(w.targets[0], ":80", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "Upgrade" {
				t.Errorf("got %v", r.Header)
			}
			c, brw, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			io.Copy(c, brw)
			io.WriteString(c, " and bye")
		}))
		c, err := w.person.Dial(t.Context(), "tcp", "10.0.0.100:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\nfirst")
		br := bufio.NewReader(c)
		if res, err := http.ReadResponse(br, nil); err != nil || res.StatusCode != 101 {
			t.Fatalf("got %v, %v", res, err)
		}
		if b := make([]byte, 5); !readFull(br, b) || string(b) != "first" {
			t.Fatalf("what came with the request was lost: %q", b)
		}
		for range 5 {
			time.Sleep(50 * time.Second)
			io.WriteString(c, "hello")
			if b := make([]byte, 5); !readFull(br, b) || string(b) != "hello" {
				t.Fatalf("got %q", b)
			}
		}
		start := time.Now()
		if _, err := br.ReadByte(); err == nil {
			t.Error("read a byte that nobody sent")
		}
		if took := time.Since(start).Round(time.Second); took != applicationIdle {
			t.Errorf("an idle connection was ended after %v", took)
		}
		w.counted("origin_target_1xx_total", 1)
	})
}

func TestAnUpgradeThatNobodyAskedForIsABadGateway(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.serve(w.targets[0], ":80", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") != "" {
				t.Errorf("the target was asked for %s", r.Header.Get("Upgrade"))
			}
			rw.Header().Set("Connection", "Upgrade")
			rw.Header().Set("Upgrade", "websocket")
			rw.WriteHeader(http.StatusSwitchingProtocols)
		}))
		c, err := w.person.Dial(w.t.Context(), "tcp", "10.0.0.100:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
		if res, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || res.StatusCode != 502 {
			t.Errorf("got %v, %v", res, err)
		}
	})
}

func TestInformationalResponsesAndTrailersArePassedOn(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.serve(w.targets[0], ":80", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Link", "</style.css>")
			rw.WriteHeader(http.StatusEarlyHints)
			rw.Header().Del("Link")
			rw.Header().Set("Trailer", "Sum")
			io.Copy(rw, r.Body)
			rw.Header().Set("Sum", r.Trailer.Get("Sum"))
			rw.Header().Set(http.TrailerPrefix+"Unannounced", "2")
		}))
		var hints []string
		trace := &httptrace.ClientTrace{Got1xxResponse: func(status int, h textproto.MIMEHeader) error {
			hints = append(hints, fmt.Sprint(status, h.Get("Link")))
			return nil
		}}
		req := w.request("POST", "body")
		req.Trailer = http.Header{"Sum": {"1"}}
		res, err := w.client.Do(req.WithContext(httptrace.WithClientTrace(w.t.Context(), trace)))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if string(body) != "body" || err != nil || res.Header.Get("Link") != "" || !cmp.Equal(hints, []string{"103</style.css>"}) {
			t.Errorf("got %q, %v, %v, hints %v", body, err, res.Header, hints)
		}
		if want := (http.Header{"Sum": {"1"}, "Unannounced": {"2"}}); !cmp.Equal(res.Trailer, want) {
			t.Errorf("got trailers %v, want %v", res.Trailer, want)
		}
	})
}

func TestOverTheBackboneTheEdgesWordStands(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		s := w.spec()
		s.LoadBalancers["web"].Listeners[0].Port = 8080
		w.apply(s)
		w.serve(w.targets[0], ":80", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			fmt.Fprint(rw, r.Host, " ", r.Header[forwardedFor], r.Header[forwardedProto], r.Header[forwardedPort])
		}))
		w.serve(w.node, ":8080", w.plane.Handler("web", 8080))
		inside, ok := w.plane.HTTP("web/8080")
		if !ok {
			t.Fatal("no such listener")
		}
		w.serve(w.node, ":7947", inside)
		for port, want := range map[string]string{
			"8080": "shop.example:8080 [198.51.100.1, 192.0.2.1] [http] [8080]",
			"7947": "shop.example [198.51.100.1] [https] [443]",
		} {
			req := w.request("GET", "")
			req.URL.Host += ":" + port
			req.Host = "shop.example"
			req.Header = http.Header{forwardedFor: {"198.51.100.1"}, forwardedProto: {"https"}, forwardedPort: {"443"}}
			res, err := w.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if string(body) != want {
				t.Errorf("at port %s: got %s, want %s", port, body, want)
			}
		}
	})
}

func readFull(r io.Reader, b []byte) bool {
	_, err := io.ReadFull(r, b)
	return err == nil
}

func TestTheTargetSeesTheClientsRequest(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		var got *http.Request
		w.serve(w.targets[0], ":80", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r }))
		c, err := w.person.Dial(t.Context(), "tcp", "10.0.0.100:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET /a%2Fb//../c;d?x=1;y&&z=%zz HTTP/1.1\r\nHost: Shop.Example\r\nX-Forwarded-For: 198.51.100.7\r\nX-Forwarded-For: 198.51.100.8\r\n"+
			"X-Forwarded-Proto: https\r\nX-Forwarded-Host: spoofed\r\nConnection: x-mine, X-Forwarded-For, keep-alive\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nTE: trailers, deflate\r\nX-Other: 2\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			t.Fatal(err)
		}
		if got.RequestURI != "/a%2Fb//../c;d?x=1;y&&z=%zz" || got.Host != "Shop.Example" {
			t.Errorf("got %s at %s", got.RequestURI, got.Host)
		}
		trace := got.Header.Get(traceID)
		got.Header.Del(traceID)
		want := http.Header{
			"X-Forwarded-For":   {"198.51.100.7, 198.51.100.8, 192.0.2.1"},
			"X-Forwarded-Proto": {"http"},
			"X-Forwarded-Port":  {"80"},
			"X-Forwarded-Host":  {"spoofed"},
			"X-Other":           {"2"},
			"Te":                {"trailers"},
		}
		if diff := cmp.Diff(want, got.Header); diff != "" {
			t.Error(diff)
		}
		if !traceForm.MatchString(trace) {
			t.Errorf("trace id %q", trace)
		}
	})
}

func TestFixedResponsesAndRedirectsNeedNoTarget(t *testing.T) {
	inWorld(t, 0, func(t *testing.T, w *world) {
		s := w.spec()
		l := &s.LoadBalancers["web"].Listeners[0]
		path := func(p string) []spec.Condition { return []spec.Condition{{PathPattern: []string{p}}} }
		l.Rules = []spec.ListenerRule{
			{Priority: 1, Conditions: path("/teapot"), Action: spec.Action{FixedResponse: &spec.FixedResponse{StatusCode: 418, ContentType: "text/html", MessageBody: "<p>short and stout"}}},
			{Priority: 2, Conditions: path("/plain"), Action: spec.Action{FixedResponse: &spec.FixedResponse{StatusCode: 200, MessageBody: "<p>"}}},
			{Priority: 3, Conditions: path("/empty"), Action: spec.Action{FixedResponse: &spec.FixedResponse{StatusCode: 204}}},
			{Priority: 4, Conditions: path("/old/*"), Action: spec.Action{Redirect: &spec.Redirect{StatusCode: "HTTP_301", Protocol: "HTTPS", Port: "443", Path: "/new/#{path}"}}},
		}
		w.apply(s)
		for _, c := range []struct {
			method, path                string
			status                      int
			contentType, location, body string
		}{
			{"GET", "/teapot", 418, "text/html", "", "<p>short and stout"},
			{"HEAD", "/teapot", 418, "text/html", "", ""},
			{"POST", "/plain", 200, "text/plain", "", "<p>"},
			{"GET", "/empty", 204, "", "", ""},
			{"GET", "/old/x?y", 301, "", "https://10.0.0.100:443/new/old/x?y", ""},
			{"GET", "/", 503, "text/plain", "", "503 Service Unavailable\n"},
		} {
			req := w.request(c.method, "")
			req.URL.Path, req.URL.RawQuery, _ = strings.Cut(c.path, "?")
			res, err := w.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(res.Body)
			res.Body.Close()
			h := res.Header
			if res.StatusCode != c.status || h.Get("Content-Type") != c.contentType || h.Get("Location") != c.location || string(body) != c.body {
				t.Errorf("%s %s: got %d %v %q", c.method, c.path, res.StatusCode, h, body)
			}
		}
	})
}

func TestAFlowGoesBothWaysAndItsHalfCloseTravels(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		w.listen(w.targets[1], ":80", func(c net.Conn) { // the first is not there: the flow goes to the second
			defer c.Close()
			all, _ := io.ReadAll(c) // until the client's half-close
			io.WriteString(c, strings.ToUpper(string(all)))
		})
		c, err := w.person.Dial(t.Context(), "tcp", "10.0.0.100:9000")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "hello")
		closeWrite(c)
		if got, err := io.ReadAll(c); string(got) != "HELLO" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		time.Sleep(time.Second)
		w.counted("origin_flows_total", 1)
		w.counted("origin_target_connect_errors_total", 1)
		w.counted("origin_flow_bytes_in_total", 5)
		w.counted("origin_flow_bytes_out_total", 5)
	})
}

// Where a resource says so a target is dialled as the client, by TCP and UDP, and by this node never.
func TestTargetsSeeTheClient(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		s := w.udpSpec()
		web := *s.TargetGroups["web"]
		web.Name, web.Protocol = "tcp", spec.TCP
		s.TargetGroups["tcp"] = &web
		told := listening(w)
		// Nobody is dialled so that no endpoint says it of.
		w.apply(s)
		for _, resource := range []string{"targetGroup/tcp", "endpoint/a/" + netip.AddrPortFrom(w.targets[0].Addr(), 99).String(), "endpoint/b/1.2.3.4:5", "endpoint/a/5"} {
			if _, err := w.plane.TakeFlow(t.Context(), Preserved(resource, true), datagramClient); err == nil || !strings.Contains(err.Error(), "no endpoint of this region") {
				t.Errorf("a flow of %s: %v", resource, err)
			}
		}
		if _, err := w.plane.openSession("30/targetGroup/web/clientIP", datagramClient, new(wayBack)); err == nil || !strings.Contains(err.Error(), "no endpoint of this region") {
			t.Errorf("a session: %v", err)
		}
		s = w.udpSpec()
		s.TargetGroups["tcp"] = &web
		for i := range s.Accelerators["a"].Listeners {
			g := &s.Accelerators["a"].Listeners[i].EndpointGroups[0]
			g.Endpoints[0].ClientIPPreservation = true
			g.Endpoints = append(g.Endpoints, spec.Endpoint{TargetGroup: [...]string{"web", "tcp"}[i], ClientIPPreservation: true})
		}
		w.apply(s)
		w.listen(w.targets[0], ":99", func(c net.Conn) { c.Close() })
		for _, target := range w.targets {
			w.listen(target, ":80", func(c net.Conn) { c.Close() })
			w.echoes(target)
		}
		dial := w.plane.config.Dial
		w.plane.config.Dial = func(_ context.Context, _, address string) (net.Conn, error) {
			t.Errorf("%s is dialled by this node", address)
			return nil, errors.New("it is not to be")
		}
		var as []string
		w.plane.config.DialAs = func(ctx context.Context, network string, client netip.AddrPort, address string) (net.Conn, error) {
			as = append(as, network+" as "+client.String())
			return dial(ctx, network, address)
		}
		defer w.plane.CloseDatagrams()
		endpoint := netip.AddrPortFrom(w.targets[0].Addr(), 99).String()
		for _, resource := range []string{"targetGroup/tcp", "endpoint/a/" + endpoint} {
			taken, err := w.plane.TakeFlow(t.Context(), Preserved(resource, true), datagramClient)
			if err != nil {
				t.Fatalf("%s: %v", resource, err)
			}
			taken.Close()
		}
		for _, resource := range []string{"targetGroup/web", "endpoint/a/" + netip.AddrPortFrom(w.targets[0].Addr(), 80).String()} {
			w.session("30/" + Preserved(resource, true))
		}
		want := []string{"tcp as " + datagramClient.String(), "tcp as " + datagramClient.String(), "udp as " + datagramClient.String(), "udp as " + datagramClient.String()}
		if !slices.Equal(as, want) {
			t.Errorf("dialled %q", as)
		}
		told.take()

		// Where that is not possible flows are refused, and no target is to blame.
		refuses := func(client netip.AddrPort, want uint64, reason string) {
			t.Helper()
			if _, err := w.plane.TakeFlow(t.Context(), "targetGroup/tcp/clientIP", client); err == nil || !strings.Contains(err.Error(), reason) {
				t.Errorf("a flow: %v", err)
			}
			if _, err := w.plane.openSession("30/targetGroup/web/clientIP", client, new(wayBack)); err == nil || !strings.Contains(err.Error(), reason) {
				t.Errorf("a session: %v", err)
			}
			w.counted("origin_preservation_failed_total", want)
			if said := told.take(); said != "" {
				t.Errorf("told %s", said)
			}
		}
		all := uint64(len(s.TargetGroups["web"].Targets))
		w.plane.config.DialAs = func(context.Context, string, netip.AddrPort, string) (net.Conn, error) {
			return nil, fmt.Errorf("%w: IP_TRANSPARENT needs CAP_NET_ADMIN", transparent.ErrImpossible)
		}
		refuses(datagramClient, 2*all, "needs CAP_NET_ADMIN")
		w.plane.config.DialAs = nil
		refuses(datagramClient, 4*all, "cannot be kept")
		refuses(netip.AddrPort{}, 4*all, "it is not known")
	})
}

// A target group may be called as what is behind a resource that asks for more.
func TestAGroupMayBeCalledAsAMark(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		s := w.udpSpec()
		for _, name := range []string{"told", "clientIP"} {
			web := *s.TargetGroups["web"]
			web.Name, web.Protocol = name, spec.TCP
			s.TargetGroups[name] = &web
		}
		w.apply(s)
		for _, target := range w.targets {
			w.listen(target, ":80", func(c net.Conn) { c.Close() })
		}
		for _, name := range []string{"told", "clientIP"} {
			for _, resource := range []string{"targetGroup/" + name, Told("targetGroup/" + name)} {
				near, far := net.Pipe()
				w.plane.serveFlow(t.Context(), resource, datagramClient, func() net.Conn { near.Close(); return far }, func(reason string) {
					t.Errorf("%s: %s", resource, reason)
				})
			}
			if got := Unpreserved("targetGroup/" + name); got != "targetGroup/"+name {
				t.Errorf("%s becomes %s", name, got)
			}
		}
	})
}

// A target group that wants it is told from which client each flow is, whichever way it came; the client's bytes follow.
func TestTargetsAreToldFromWhomAFlowIs(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		s := w.spec()
		s.TargetGroups["web"].ProxyProtocolV2 = true
		w.apply(s)
		heard := make(chan string, 1)
		w.listen(w.targets[0], ":80", func(c net.Conn) {
			defer c.Close()
			h, err := proxyproto.Read(bufio.NewReader(c))
			if err != nil {
				heard <- err.Error()
				return
			}
			heard <- fmt.Sprintf("%v to %v", h.SourceAddr, h.DestinationAddr)
		})
		c, err := w.person.Dial(t.Context(), "tcp", "10.0.0.100:9000")
		if err != nil {
			t.Fatal(err)
		}
		if got, want := <-heard, fmt.Sprintf("%v to 10.0.0.100:9000", c.LocalAddr()); got != want {
			t.Errorf("by a load balancer: %s, want %s", got, want)
		}
		c.Close()
		near, far := net.Pipe()
		var serving sync.WaitGroup
		serving.Go(func() {
			w.plane.serveFlow(t.Context(), "targetGroup/web", netip.MustParseAddrPort("[2001:db8::7]:40000"),
				func() net.Conn { return far }, func(reason string) { t.Errorf("refused: %s", reason) })
		})
		if got := <-heard; got != "[2001:db8::7]:40000 to 10.0.0.1:80" {
			t.Errorf("by the backbone: %s", got)
		}
		near.Close()
		serving.Wait()
		conn, err := w.plane.TakeFlow(t.Context(), "targetGroup/web", netip.MustParseAddrPort("198.51.100.7:40000"))
		if err != nil {
			t.Fatal(err)
		}
		if got := <-heard; got != "198.51.100.7:40000 to 10.0.0.1:80" {
			t.Errorf("by this node itself: %s", got)
		}
		conn.Close()
	})
}

func TestAFlowThatNoTargetTakesIsReset(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		c, err := w.person.Dial(t.Context(), "tcp", "10.0.0.100:9000")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("got %v, want a reset", err)
		}
		w.counted("origin_flows_refused_total", 1)
	})
}

func TestABackboneFlowIsAcceptedOnceATargetHasTakenIt(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.net.CutOff("t1") // silent: it costs an attempt's time
		w.listen(w.targets[2], ":80", func(c net.Conn) { io.Copy(c, c); c.Close() })
		near, far := net.Pipe()
		start := time.Now()
		var accepted time.Duration
		var serving sync.WaitGroup
		serving.Go(func() {
			w.plane.serveFlow(t.Context(), "targetGroup/web", netip.AddrPort{},
				func() net.Conn { accepted = time.Since(start); return far },
				func(reason string) { t.Errorf("refused: %s", reason) })
		})
		io.WriteString(near, "x")
		if b := make([]byte, 1); !readFull(near, b) || b[0] != 'x' {
			t.Errorf("got %q", b)
		}
		near.Close()
		serving.Wait()
		if accepted.Round(time.Second) != connectTimeout {
			t.Errorf("accepted after %v", accepted)
		}
	})
}

func TestAFlowThatCannotBeIsRefusedWithAReason(t *testing.T) {
	for _, c := range []struct{ resource, want string }{
		{"targetGroup/web", "targetGroup/web: dial target 10.0.0.1:80: "},
		{"targetGroup/none", `"targetGroup/none" is nothing in this region that takes flows`},
		{"targetGroup/there", "is nothing in this region"},
		{"targetGroup/empty", "targetGroup/empty: the target group has no targets"},
		{"loadBalancer/tcp/9000", "loadBalancer/tcp/9000: dial target 10.0.0.1:80: "},
		{"loadBalancer/tcp/9001", "is nothing in this region"},
		{"loadBalancer/tcp", "is nothing in this region"},
		{"loadBalancer/tcp/99999", "is nothing in this region"},
		{"loadBalancer/web/80", "is nothing in this region"}, // it speaks HTTP
		{"", "is nothing in this region"},
	} {
		inWorld(t, 1, func(t *testing.T, w *world) {
			s := w.spec()
			s.TargetGroups["empty"] = &spec.TargetGroup{Name: "empty", Region: "here"}
			s.TargetGroups["there"] = &spec.TargetGroup{Name: "there", Region: "there", Targets: s.TargetGroups["web"].Targets}
			w.apply(s)
			accept := func() net.Conn { t.Errorf("%q was accepted", c.resource); return nil }
			refuse := func(reason string) {
				if !strings.Contains(reason, c.want) {
					t.Errorf("%q: refused because %s; want %s", c.resource, reason, c.want)
				}
			}
			w.plane.serveFlow(t.Context(), c.resource, netip.AddrPort{}, accept, refuse)
			w.counted("origin_flows_refused_total", 1)
			if _, err := w.plane.TakeFlow(t.Context(), c.resource, netip.AddrPort{}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q: dialed: %v", c.resource, err)
			}
		})
	}
}

// Half of the time that there is goes to each target that does not answer, and the last one has the rest.
func TestTheTimeOfAFlowIsDividedAmongSilentTargets(t *testing.T) {
	for silent, want := range []time.Duration{0, 500 * time.Millisecond, 750 * time.Millisecond} {
		inWorld(t, 3, func(t *testing.T, w *world) {
			for i, target := range w.targets {
				if i < silent {
					w.net.CutOff(target.Name())
				} else {
					w.serve(target, ":80", http.NotFoundHandler())
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			f, err := w.plane.TakeFlow(ctx, "targetGroup/web", netip.AddrPort{})
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			if took := time.Since(start); took < want || took > want+50*time.Millisecond {
				t.Errorf("with %d silent targets it took %v, want %v", silent, took, want)
			}
			w.counted("origin_target_connect_errors_total", uint64(silent))
		})
	}
}

func TestADialThatIsGivenUpTriesNoMoreTargets(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		for _, h := range w.targets {
			w.net.CutOff(h.Name())
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := w.plane.TakeFlow(ctx, "targetGroup/web", netip.AddrPort{}); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		w.counted("origin_target_connects_total", 3)
		w.counted("origin_target_connect_errors_total", 2)
	})
}

// without is the spec without the first target, and with a deregistration delay of 20 s.
func (w *world) without() *spec.Spec {
	s := w.spec()
	g := s.TargetGroups["web"]
	g.Targets = g.Targets[1:]
	delay := spec.Duration(20 * time.Second)
	g.DeregistrationDelay = &delay
	return s
}

func TestATargetThatLeftTakesNothingNewAndFinishesWhatItHas(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		for _, target := range w.targets {
			w.serve(target, ":80", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				long, _ := time.ParseDuration(r.URL.RawQuery)
				select {
				case <-time.After(long):
					io.WriteString(rw, target.Name())
				case <-r.Context().Done():
				}
			}))
		}
		slow := func(d string) chan string {
			done := make(chan string, 1)
			req := w.request("POST", "")
			req.URL.RawQuery = d
			go func() {
				res, err := w.client.Do(req)
				if err != nil {
					done <- err.Error()
					return
				}
				defer res.Body.Close()
				b, _ := io.ReadAll(res.Body)
				done <- fmt.Sprint(res.StatusCode, " ", string(b))
			}()
			time.Sleep(100 * time.Millisecond) // it is at its target
			return done
		}
		w.ask("GET", "") // takes the first turn
		w.ask("GET", "")
		short := slow("10s")
		w.ask("GET", "")
		long := slow("50s")
		w.apply(w.without())
		for range 10 {
			if _, name := w.ask("GET", ""); name != "t2" {
				t.Errorf("%s took a request", name)
			}
		}
		if got := <-short; got != "200 t1" {
			t.Errorf("within the deregistration delay: %s", got)
		}
		start := time.Now()
		if got := <-long; !strings.HasPrefix(got, "502") || time.Since(start).Round(time.Second) != 10*time.Second {
			t.Errorf("after the deregistration delay: %s after %v", got, time.Since(start))
		}
	})
}

func TestFlowsToATargetThatLeftEndAfterTheDeregistrationDelay(t *testing.T) {
	for name, c := range map[string]struct {
		then func(w *world) // 10 s after the target left
		ends bool
	}{
		"it stays away":          {func(*world) {}, true},
		"its group is gone":      {func(w *world) { w.apply(&spec.Spec{}) }, true},
		"it comes back in time":  {func(w *world) { w.apply(w.spec()) }, false},
		"it comes back too late": {func(w *world) { time.Sleep(11 * time.Second); w.apply(w.spec()) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				for _, h := range w.targets {
					w.listen(h, ":80", func(c net.Conn) { io.Copy(c, c); c.Close() })
				}
				conn, err := w.person.Dial(t.Context(), "tcp", "10.0.0.100:9000")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				echo := func() bool {
					io.WriteString(conn, "x")
					return readFull(conn, make([]byte, 1))
				}
				if !echo() {
					t.Fatal("no echo")
				}
				w.apply(w.without())
				time.Sleep(10 * time.Second)
				if !echo() {
					t.Error("ended before the delay")
				}
				c.then(w)
				time.Sleep(15 * time.Second)
				if echo() == c.ends {
					t.Errorf("25 s after its target left: ended %v, want %v", !c.ends, c.ends)
				}
			})
		})
	}
}

func TestAWorseSpecLeavesTheOneBefore(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.names()
		for name, worsen := range map[string]func(s *spec.Spec){
			"no such group": func(s *spec.Spec) { delete(s.TargetGroups, "web") },
			"no default":    func(s *spec.Spec) { s.LoadBalancers["web"].Listeners[0].Default = spec.Action{} },
			"a redirect over TCP": func(s *spec.Spec) {
				s.LoadBalancers["tcp"].Listeners[0].Default = spec.Action{Redirect: &spec.Redirect{}}
			},
			"a rule without a host": func(s *spec.Spec) { s.LoadBalancers["web"].Listeners[0].Rules = make([]spec.ListenerRule, 1) },
		} {
			s := w.spec()
			worsen(s)
			if err := w.plane.Apply(s); err == nil {
				t.Errorf("%s: applied", name)
			}
		}
		if status, _ := w.ask("GET", ""); status != 200 {
			t.Errorf("got %d", status)
		}
	})
}

func TestTurnsGoOnOverASpecChange(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		w.names()
		shares := map[string]int{}
		for range 100 {
			_, name := w.ask("GET", "")
			shares[name]++
			w.apply(w.spec())
		}
		if shares["t1"] != 50 || shares["t2"] != 50 {
			t.Errorf("got %v", shares)
		}
	})
}

func TestOnlyThisRegionsListenersAreOpened(t *testing.T) {
	p := New(Config{Region: "here"})
	answer := spec.Action{FixedResponse: &spec.FixedResponse{StatusCode: 200}}
	listeners := func(ports ...uint16) (ls []spec.Listener) {
		for _, port := range ports {
			ls = append(ls, spec.Listener{Protocol: spec.HTTP, Port: port, Default: answer})
		}
		return ls
	}
	if err := p.Apply(&spec.Spec{LoadBalancers: map[string]*spec.LoadBalancer{
		"b": {Name: "b", Region: "here", Listeners: listeners(80)},
		"a": {Name: "a", Region: "here", Listeners: listeners(8080, 80)},
		"c": {Name: "c", Region: "there", Listeners: listeners(80)},
	}}); err != nil {
		t.Fatal(err)
	}
	want := []Listener{{"a", spec.HTTP, 80}, {"a", spec.HTTP, 8080}, {"b", spec.HTTP, 80}}
	if diff := cmp.Diff(want, p.Listeners()); diff != "" {
		t.Error(diff)
	}
	for resource, want := range map[string]bool{"a/80": true, "a/8080": true, "a/81": false, "c/80": false, "a": false, "a/": false, "a/x": false, "": false, "a/80/": false, "a/-1": false, "a/65616": false} {
		if _, ok := p.HTTP(resource); ok != want {
			t.Errorf("over the backbone, %q: got %v, want %v", resource, ok, want)
		}
	}
}

func TestWhatIsExplainedIsWhatIsServed(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.names()
		w.healthy(w.addrs()[0], w.addrs()[2])
		for turn, want := range []string{"10.0.0.1:80", "10.0.0.3:80", "10.0.0.1:80"} {
			tr := new(trace.Trace)
			w.plane.Explain("web", 80, rule.Request{Method: "GET", Path: "/"}, tr)
			if lines := tr.Lines(); len(lines) < 4 || lines[1].Text != "default action: forward to web" || !strings.HasPrefix(lines[3].Text, want+": healthy, its turn") {
				t.Errorf("turn %d: want %s first, got\n%s", turn, want, tr)
			}
			if _, name := w.ask("GET", ""); "10.0.0."+name[1:]+":80" != want {
				t.Errorf("turn %d: served by %s, explained as %s", turn, name, want)
			}
		}
	})
}

func TestExplainKnowsOtherRegionsToo(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		s := w.spec()
		s.LoadBalancers["web"].Region = "there"
		s.LoadBalancers["web"].Listeners[0].Default = spec.Action{Redirect: &spec.Redirect{StatusCode: "HTTP_302", Host: "elsewhere"}}
		w.apply(s)
		tr := new(trace.Trace)
		w.plane.Explain("web", 80, rule.Request{Protocol: "http", Host: "h", Port: 80, Path: "/x"}, tr)
		w.plane.Explain("web", 81, rule.Request{}, tr)
		w.plane.ExplainTargetGroup("web", tr)
		w.plane.ExplainTargetGroup("none", tr)
		want := `load balancer web, listener HTTP:80
  default action: redirect
  302 to http://elsewhere:80/x
load balancer web has no listener on port 81
target group web: 1 of 1 targets healthy
  10.0.0.1:80: healthy, its turn (round_robin)
there is no target group none
`
		if tr.String() != want {
			t.Errorf("got\n%swant\n%s", tr, want)
		}
	})
}
