package probe

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

var endpoint = netip.MustParseAddrPort("10.0.0.1:80")

// lan is a prober's host and one to be probed, 1 ms apart.
type lan struct {
	t            *testing.T
	net          *memnet.Internet
	prober, host *memnet.Host
	asked        atomic.Int64 // connections accepted
	serving      sync.WaitGroup
}

func newLAN(t *testing.T) *lan {
	in := memnet.New(1)
	l := &lan{t: t, net: in}
	t.Cleanup(func() {
		in.Close()
		l.serving.Wait()
	})
	l.prober = in.Host("prober", spec.Location{}, netip.MustParseAddr("10.0.0.2"))
	l.host = in.Host("host", spec.Location{}, endpoint.Addr())
	in.Link("prober", "host", memnet.Path{Delay: 500 * time.Microsecond})
	return l
}

// looker probes from the prober's host.
func (l *lan) looker() *looker {
	return &looker{node: "prober", dial: l.prober.Dial, resolve: func(context.Context, string) ([]netip.Addr, error) {
		return nil, &net.DNSError{Err: "no such host", IsNotFound: true}
	}}
}

// serve lets f have every connection to the endpoint; each is closed after it.
func (l *lan) serve(f func(net.Conn)) net.Listener {
	l.t.Helper()
	listener, err := l.host.Listen("tcp", endpoint.String())
	if err != nil {
		l.t.Fatal(err)
	}
	l.serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			l.asked.Add(1)
			l.serving.Go(func() {
				defer conn.Close()
				f(conn)
			})
		}
	})
	return listener
}

// answer reads the head of a request and writes a response.
func answer(response string) func(net.Conn) {
	return func(conn net.Conn) {
		read(conn)
		io.WriteString(conn, response)
	}
}

// read reads until the blank line after the head of a request.
func read(conn net.Conn) string {
	var head strings.Builder
	b := make([]byte, 1)
	for !strings.HasSuffix(head.String(), "\r\n\r\n") {
		if _, err := conn.Read(b); err != nil {
			break
		}
		head.Write(b)
	}
	return head.String()
}

// repeat writes the same until it can no more.
func repeat(begin, again string, pause time.Duration) func(net.Conn) {
	return func(conn net.Conn) {
		read(conn)
		_, err := io.WriteString(conn, begin)
		for err == nil {
			_, err = io.WriteString(conn, again)
			time.Sleep(pause)
		}
	}
}

func silence(conn net.Conn) { io.Copy(io.Discard, conn) }

// The checks of a target as ELB does them, and of an endpoint as Route 53 does.
var (
	targetTerms = Check{
		Key: "target/web/10.0.0.1:80", Address: endpoint, Protocol: spec.HTTP, Host: "10.0.0.1:80", Path: "/up", Matcher: "200",
		ConnectTimeout: 6 * time.Second, AnswerTimeout: 6 * time.Second, Timeout: 6 * time.Second,
		Thresholds: health.Thresholds{Healthy: 5, Unhealthy: 2, Interval: 30 * time.Second},
	}
	checkTerms = Check{
		Key: "check/www", Address: endpoint, Protocol: spec.HTTP, Host: "www.example.com", Path: "/?deep=1", Matcher: "200-399", SNI: true,
		ConnectTimeout: 4 * time.Second, AnswerTimeout: 2 * time.Second, Timeout: 6 * time.Second,
		Thresholds: health.Thresholds{Healthy: 3, Unhealthy: 3, Interval: 30 * time.Second, PresumedHealthy: true},
	}
)

func byTCP(c Check) Check {
	c.Protocol, c.Host, c.Path, c.Matcher = spec.TCP, "", "", ""
	return c
}

// find is a check for a string.
func find(what string) Check {
	c := checkTerms
	c.Search, c.BodyTimeout, c.Timeout = what, 2*time.Second, 8*time.Second
	return c
}

func nameless(c Check) Check {
	c.SNI = false
	return c
}

func byGRPC(c Check) Check {
	c.Protocol, c.Path, c.Matcher = spec.GRPC, "/AWS.ALB/healthcheck", "0,12"
	return c
}

// serveGRPC lets h have the requests of an HTTP/2 connection.
func serveGRPC(h http.HandlerFunc) func(net.Conn) {
	return func(conn net.Conn) {
		server := &http.Server{Handler: h, Protocols: new(http.Protocols)}
		server.Protocols.SetUnencryptedHTTP2(true)
		defer server.Close()
		server.Serve(&oneConn{conn: conn})
	}
}

// oneConn is a listener that has one connection to give, and ends with it.
type oneConn struct {
	conn  net.Conn
	given chan struct{}
	once  sync.Once
}

func (l *oneConn) Accept() (net.Conn, error) {
	first := false
	l.once.Do(func() { first, l.given = true, make(chan struct{}) })
	if first {
		return &tellsClose{Conn: l.conn, closed: l.given}, nil
	}
	<-l.given
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

type tellsClose struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *tellsClose) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// grpcAnswer is a message, and the code in the trailers.
func grpcAnswer(code string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc+proto")
		w.Write([]byte{0, 0, 0, 0, 2, 8, 1})
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", code)
	}
}

// grpcRefusal is a code without a message: it is in the head.
func grpcRefusal(code string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		if code != "" {
			w.Header().Set("Grpc-Status", code)
		}
	}
}

func byTLS(c Check) Check {
	c.Protocol = spec.HTTPS
	return c
}

func TestAProbePassesOrSaysWhyNot(t *testing.T) {
	secure, choosy := tlsServer(t)
	ok := "HTTP/1.1 200 OK\r\n\r\n"
	for _, c := range []struct {
		name   string
		check  Check
		server func(net.Conn) // nil: nobody listens
		want   string         // "": passes
		within time.Duration  // no longer than this; default 100 ms
	}{
		{name: "200", check: targetTerms, server: answer(ok)},
		{name: "200 with a body that never ends", check: targetTerms, server: repeat(ok, strings.Repeat("body", 1000), 0)},
		{name: "200 by HTTP/1.0", check: targetTerms, server: answer("HTTP/1.0 200 OK\r\n\r\n")},
		{name: "201 where 200 is wanted", check: targetTerms, server: answer("HTTP/1.1 201 Created\r\n\r\n"), want: "status 201, want 200"},
		{name: "503", check: targetTerms, server: answer("HTTP/1.1 503 Service Unavailable\r\n\r\n"), want: "status 503, want 200"},
		{name: "a redirect, to a target", check: targetTerms, server: answer("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"), want: "status 302, want 200"},
		{name: "a redirect, to an endpoint", check: checkTerms, server: answer("HTTP/1.1 302 Found\r\nLocation: http://192.0.2.9/\r\n\r\n")},
		{name: "404", check: checkTerms, server: answer("HTTP/1.1 404 Not Found\r\n\r\n"), want: "status 404, want 200-399"},
		{name: "early hints, then 200", check: targetTerms, server: answer("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok)},
		{name: "101", check: checkTerms, server: answer("HTTP/1.1 101 Switching Protocols\r\n\r\n"), want: "status 101, want 200-399"},

		{name: "nobody listens", check: targetTerms, want: "connect: connection refused"},
		{name: "closed at once", check: targetTerms, server: func(net.Conn) {}, want: "closed without an answer|connection reset by peer|send: connection reset by peer"},
		{name: "closed after the request", check: targetTerms, server: answer(""), want: "closed without an answer"},
		{name: "closed within the head", check: targetTerms, server: answer("HTTP/1.1 200 OK\r\nServer: x"), want: "closed without an answer"},
		{name: "garbage", check: targetTerms, server: answer("\x00\x01\x02 garbage\r\n\r\n"), want: "malformed response"},
		{name: "another protocol", check: targetTerms, server: answer("220 mail.example.com ESMTP\r\n"), want: "malformed response"},
		{name: "a malformed field", check: targetTerms, server: answer("HTTP/1.1 200 OK\r\nno colon\r\n\r\n"), want: "malformed response"},
		{name: "an endless field", check: targetTerms, server: repeat("HTTP/1.1 200 OK\r\nX: ", strings.Repeat("x", 1000), 0), want: "response head over 16384 bytes"},
		{name: "endless fields", check: targetTerms, server: repeat("HTTP/1.1 200 OK\r\n", strings.Repeat("X: x\r\n", 1000), 0), want: "response head over 16384 bytes"},
		{name: "endless hints", check: targetTerms, server: repeat("", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100), 0), want: "response head over 16384 bytes"},

		{name: "silence, from a target", check: targetTerms, server: silence, want: "timeout after 6s", within: 6 * time.Second},
		{name: "a slow drip", check: targetTerms, server: repeat("HTTP/1.1 200 OK\r\nX: ", "x", time.Second), want: "timeout after 6s", within: 6 * time.Second},
		{name: "slow, but in time", check: targetTerms, server: after(5*time.Second, ok), within: 5500 * time.Millisecond},
		{name: "silence, from an endpoint", check: checkTerms, server: silence, want: "timeout after 2s", within: 2100 * time.Millisecond},
		{name: "an answer after 3 s", check: checkTerms, server: after(3*time.Second, ok), want: "timeout after 2s", within: 2100 * time.Millisecond},

		{name: "TCP", check: byTCP(targetTerms), server: silence},
		{name: "TCP, closed at once", check: byTCP(targetTerms), server: func(net.Conn) {}},
		{name: "TCP, nobody listens", check: byTCP(targetTerms), want: "connect: connection refused"},

		{name: "a string in the body", check: find("up and well"), server: answer(ok + "all is up and well")},
		{name: "a string in other letters", check: find("Up"), server: answer(ok + "all is up"), want: "string not found in the body"},
		{name: "a string in the body, and another status", check: find("up"), server: answer("HTTP/1.1 500 No\r\n\r\nup"), want: "status 500, want 200-399"},
		{name: "a string in the head", check: find("up"), server: answer("HTTP/1.1 200 OK\r\nX: up\r\n\r\n"), want: "string not found in the body"},
		{name: "no body", check: find("up"), server: answer("HTTP/1.1 204 No\r\n\r\nup"), want: "string not found in the body"},
		{name: "a string in chunks", check: find("up and well"), server: answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nup a\r\n7\r\nnd well\r\n0\r\n\r\n")},
		{name: "a string at the end of the first 5120 bytes", check: find("up"), server: answer(ok + strings.Repeat(".", 5118) + "up")},
		{name: "a string across the end of the first 5120 bytes", check: find("up"), server: answer(ok + strings.Repeat(".", 5119) + "up"), want: "string not found in the first 5120 bytes"},
		{name: "a string in a body that goes on", check: find("up"), server: repeat(ok, "up", time.Second)},
		{name: "a body that is cut off", check: find("up"), server: answer("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nu"), want: "body: closed before its end"},
		{name: "a body of malformed chunks", check: find("up"), server: answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n"), want: "body: malformed"},
		{name: "a body that does not come", check: find("up"), server: func(conn net.Conn) { answer(ok)(conn); silence(conn) }, want: "body: timeout after 2s", within: 2100 * time.Millisecond},
		{name: "a byte of the body a second", check: find("up"), server: repeat(ok, "u", time.Second), want: "body: timeout after 2s", within: 2100 * time.Millisecond},
		{name: "a head and a body that are slow, but in time", check: find("up"), server: func(conn net.Conn) {
			after(1900*time.Millisecond, ok)(conn)
			time.Sleep(1900 * time.Millisecond)
			io.WriteString(conn, "up")
		}, within: 4 * time.Second},

		{name: "HTTPS with a certificate nobody trusts", check: byTLS(checkTerms), server: secure(answer(ok))},
		{name: "HTTPS, 500", check: byTLS(checkTerms), server: secure(answer("HTTP/1.1 500 No\r\n\r\n")), want: "status 500, want 200-399"},
		{name: "HTTPS and a string", check: byTLS(find("up")), server: secure(answer(ok + "up"))},
		{name: "HTTPS without the name", check: nameless(byTLS(checkTerms)), server: secure(answer(ok)), want: "TLS handshake: remote error: tls: internal error"},
		{name: "HTTPS, a name that is not known there, then none", check: byTLS(checkTerms), server: choosy(answer(ok))},
		{name: "HTTPS to a server that speaks HTTP", check: byTLS(checkTerms), server: repeat("HTTP/1.1 200 OK\r\n", "x", time.Second), want: "TLS handshake: timeout after 4s", within: 4100 * time.Millisecond},
		{name: "HTTPS to a server that answers with HTTP", check: byTLS(checkTerms), server: func(c net.Conn) {
			io.ReadFull(c, make([]byte, 5))
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			silence(c)
		}, want: "TLS handshake: tls: first record does not look like a TLS handshake"},
		{name: "HTTPS, silence", check: byTLS(checkTerms), server: silence, want: "TLS handshake: timeout after 4s", within: 4100 * time.Millisecond},
		{name: "HTTPS, closed at once", check: byTLS(checkTerms), server: func(net.Conn) {}, want: "TLS handshake: closed by the far end|TLS handshake: connection reset by peer|connect: connection reset by peer"},

		{name: "gRPC", check: byGRPC(checkTerms), server: serveGRPC(grpcAnswer("0"))},
		{name: "gRPC, a method that is not there", check: byGRPC(checkTerms), server: serveGRPC(grpcRefusal("12"))},
		{name: "gRPC, another code", check: byGRPC(checkTerms), server: serveGRPC(grpcRefusal("14")), want: "gRPC status 14, want 0,12"},
		{name: "gRPC, another code after a message", check: byGRPC(checkTerms), server: serveGRPC(grpcAnswer("13")), want: "gRPC status 13, want 0,12"},
		{name: "gRPC, no code", check: byGRPC(checkTerms), server: serveGRPC(grpcRefusal("")), want: "no gRPC status"},
		{name: "gRPC, a code that is none", check: byGRPC(checkTerms), server: serveGRPC(grpcRefusal("fine")), want: "no gRPC status"},
		{name: "gRPC to an HTTP/2 server", check: byGRPC(checkTerms), server: serveGRPC(http.NotFound), want: "status 404, want 200"},
		{name: "gRPC to a site", check: byGRPC(checkTerms), server: serveGRPC(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }), want: "not gRPC"},
		{name: "gRPC to an HTTP/1 server", check: byGRPC(checkTerms), server: answer("HTTP/1.1 400 Bad Request\r\n\r\n"), want: "malformed response"},
		{name: "gRPC, no answer", check: byGRPC(checkTerms), server: serveGRPC(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
		}), want: "timeout after 2s", within: 2100 * time.Millisecond},
		{name: "gRPC, silence", check: byGRPC(checkTerms), server: silence, want: "timeout after 2s", within: 2100 * time.Millisecond},
		{name: "gRPC, closed at once", check: byGRPC(checkTerms), server: func(net.Conn) {}, want: "closed without an answer|connection reset by peer|send: connection reset by peer|malformed response"},
		{name: "gRPC, nobody listens", check: byGRPC(checkTerms), want: "connect: connection refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLAN(t)
				if c.server != nil {
					defer l.serve(c.server).Close()
				}
				start := time.Now()
				r, _ := l.looker().run(t.Context(), &c.check)
				if took, limit := time.Since(start), max(c.within, 100*time.Millisecond); took > limit {
					t.Errorf("it took %v, more than %v", took, limit)
				}
				if r.Passed != (c.want == "") || !strings.Contains("|"+c.want+"|", "|"+r.Reason+"|") {
					t.Errorf("got %+v, want %q", r, c.want)
				}
			})
		})
	}
}

// after answers when some time has passed.
func after(d time.Duration, response string) func(net.Conn) {
	return func(conn net.Conn) {
		read(conn)
		time.Sleep(d)
		io.WriteString(conn, response)
	}
}

// tlsServer wraps a server in TLS with a certificate of its own making. The server name must be that of checkTerms,
// or, of the choosy one, must not.
func tlsServer(t *testing.T) (server, choosy func(func(net.Conn)) func(net.Conn)) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)} // expired, and of no name
	der, err := x509.CreateCertificate(crand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	make := func(choosy bool) func(func(net.Conn)) func(net.Conn) {
		config := &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if (hello.ServerName == checkTerms.Host) == choosy {
				return nil, fmt.Errorf("server name %q", hello.ServerName)
			}
			return certificate, nil
		}}
		return func(f func(net.Conn)) func(net.Conn) {
			return func(conn net.Conn) { f(tls.Server(conn, config)) }
		}
	}
	return make(false), make(true)
}

func TestAnUnreachableEndpointTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		l.host.Crash()
		start := time.Now()
		r, _ := l.looker().run(t.Context(), &checkTerms)
		if took := time.Since(start); r.Reason != "connect: timeout after 4s" || took != 4*time.Second {
			t.Errorf("got %+v after %v", r, took)
		}
	})
}

func TestTheRequestIsPlain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		requests := make(chan string, 1)
		defer l.serve(func(conn net.Conn) {
			requests <- read(conn)
			io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		}).Close()
		if r, _ := l.looker().run(t.Context(), &checkTerms); !r.Passed {
			t.Error(r)
		}
		request := <-requests
		want := "GET /?deep=1 HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: Perigee-HealthChecker\r\nConnection: close\r\nAccept: */*\r\n\r\n"
		if request != want {
			t.Errorf("got  %q\nwant %q", request, want)
		}
	})
}

func TestAnAddressIsNoServerName(t *testing.T) {
	for host, want := range map[string]string{
		"www.example.com": "www.example.com", "www.example.com:8443": "www.example.com",
		"192.0.2.1": "", "192.0.2.1:8443": "", "[2001:db8::1]": "", "[2001:db8::1]:8443": "",
	} {
		if got := serverName(host); got != want {
			t.Errorf("%s: got %q", host, got)
		}
	}
}

func TestAMatcherIsCodesAndRanges(t *testing.T) {
	for _, c := range []struct {
		matcher string
		passes  []int
		fails   []int
	}{
		{"200", []int{200}, []int{199, 201, 302}},
		{"200,302", []int{200, 302}, []int{201, 301}},
		{"200-299", []int{200, 204, 299}, []int{199, 300}},
		{"200-204,301,400-499", []int{200, 204, 301, 404}, []int{205, 302, 500}},
		{"", nil, []int{0, 200}},
		{"all", nil, []int{200}},
	} {
		for _, s := range c.passes {
			if !matches(c.matcher, s) {
				t.Errorf("%q does not match %d", c.matcher, s)
			}
		}
		for _, s := range c.fails {
			if matches(c.matcher, s) {
				t.Errorf("%q matches %d", c.matcher, s)
			}
		}
	}
}

// reports collects what a Prober reports; of verdicts that only stand for another time it counts how many there are.
type reports struct {
	mu     sync.Mutex
	list   []string
	last   map[health.Key]string
	stands []time.Duration // of every verdict
}

func (r *reports) add(key health.Key, v *health.Verdict) {
	s := string(key) + " unchecked"
	r.mu.Lock()
	defer r.mu.Unlock()
	if v != nil {
		s = strings.TrimSpace(fmt.Sprintf("%s %v %s", key, v.Healthy, v.Reason))
		r.stands = append(r.stands, v.Stands)
	}
	if r.last == nil {
		r.last = map[health.Key]string{}
	}
	if r.last[key] != s {
		r.list = append(r.list, s)
	}
	r.last[key] = s
}

// take returns what was reported since the last time.
func (r *reports) take() string {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := strings.Join(r.list, "; ")
	r.list = nil
	return s
}

func TestVerdictsTurnAsTheTargetDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		var r reports
		p := New(Config{Node: "a", Dial: l.prober.Dial, Report: r.add})
		defer p.Close()
		server := l.serve(answer("HTTP/1.1 200 OK\r\n\r\n"))

		p.Set([]Check{targetTerms})
		time.Sleep(3 * time.Second) // a tenth of the interval
		if got := r.take(); got != "target/web/10.0.0.1:80 true" {
			t.Fatalf("at first: %q", got)
		}
		time.Sleep(10 * time.Minute)
		if got := r.take(); got != "" {
			t.Errorf("nothing happened, and it reported %q", got)
		}
		if n := l.asked.Load(); n < 18 || n > 21 {
			t.Errorf("probed %d times in ten minutes", n)
		}

		server.Close()
		time.Sleep(33 * time.Second)
		if got := r.take(); got != "" {
			t.Errorf("after one failure: %q", got)
		}
		time.Sleep(33 * time.Second)
		if got := r.take(); got != "target/web/10.0.0.1:80 false connect: connection refused" {
			t.Errorf("after two: %q", got)
		}
		defer l.serve(answer("HTTP/1.1 200 OK\r\n\r\n")).Close()
		time.Sleep(4 * 30 * time.Second)
		if got := r.take(); got != "" {
			t.Errorf("after four passes at most: %q", got)
		}
		time.Sleep(45 * time.Second)
		if got := r.take(); got != "target/web/10.0.0.1:80 true" {
			t.Errorf("after five: %q", got)
		}
		if c := p.Counters(); c["probe_turns_total"] != 3 || c["probe_failed_total"] != 2 || c["probe_checks"] != 1 {
			t.Errorf("counted %v", c)
		}
		const s = time.Second
		if want := []time.Duration{60 * s, 30 * s, 150 * s, 120 * s, 90 * s, 60 * s, 30 * s, 60 * s}; !slices.Equal(r.stands, want) {
			t.Errorf("the verdicts stood for %v, want %v", r.stands, want)
		}
	})
}

func TestSetStartsStopsAndKeeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		defer l.serve(answer("HTTP/1.1 200 OK\r\n\r\n")).Close()
		var r reports
		p := New(Config{Dial: l.prober.Dial, Report: r.add})
		defer p.Close()

		p.Set([]Check{targetTerms, targetTerms})
		time.Sleep(5 * time.Second)
		if got := r.take(); got != "target/web/10.0.0.1:80 true" {
			t.Errorf("started: %q", got)
		}
		p.Set([]Check{targetTerms, checkTerms})
		time.Sleep(5 * time.Second)
		if got := r.take(); got != "check/www true" {
			t.Errorf("one more, one kept: %q", got)
		}
		changed := targetTerms
		changed.Matcher = "204"
		p.Set([]Check{changed, checkTerms})
		if got := r.take(); got != "" {
			t.Errorf("changed: %q; the old verdict was to stand", got)
		}
		time.Sleep(5 * time.Second)
		if got := r.take(); got != "target/web/10.0.0.1:80 false status 200, want 204" {
			t.Errorf("changed, and probed: %q", got)
		}
		p.Set(nil)
		if got := r.take(); got != "check/www unchecked; target/web/10.0.0.1:80 unchecked" && got != "target/web/10.0.0.1:80 unchecked; check/www unchecked" {
			t.Errorf("stopped: %q", got)
		}
		asked := l.asked.Load()
		time.Sleep(10 * time.Minute)
		if got := r.take(); got != "" || l.asked.Load() != asked {
			t.Errorf("after the stop: %q, and %d probes", got, l.asked.Load()-asked)
		}
	})
}

func TestAProbeUnderWayReportsNothingOnceItsCheckIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		defer l.serve(silence).Close()
		var r reports
		p := New(Config{Dial: l.prober.Dial, Report: r.add})
		p.Set([]Check{targetTerms})
		time.Sleep(4 * time.Second)
		if l.asked.Load() != 1 {
			t.Fatal("no probe is under way")
		}
		p.Set(nil)
		if got := r.take(); got != "target/web/10.0.0.1:80 unchecked" {
			t.Errorf("got %q", got)
		}
		p.Set([]Check{targetTerms})
		time.Sleep(4 * time.Second)
		start := time.Now()
		p.Close()
		if took := time.Since(start); took != 0 {
			t.Errorf("close waited %v for the probe", took)
		}
		p.Set([]Check{targetTerms})
		if got := r.take(); got != "" {
			t.Errorf("close reported %q", got)
		}
	})
}

// many are n checks, of ports from 1 on.
func many(n int, interval time.Duration) []Check {
	checks := make([]Check, n)
	for i := range checks {
		checks[i] = byTCP(targetTerms)
		checks[i].Address = netip.AddrPortFrom(endpoint.Addr(), uint16(i+1))
		checks[i].Key = health.TargetKey("web", checks[i].Address)
		checks[i].Thresholds.Interval = interval
	}
	return checks
}

func TestProbesAtOnceAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int64
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
			n := now.Add(1)
			defer now.Add(-1)
			for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
			}
			time.Sleep(time.Second)
			return nil, net.ErrClosed
		}
		p := New(Config{Dial: dial, Report: func(health.Key, *health.Verdict) {}, ProbesAtOnce: 10})
		p.Set(many(100, 30*time.Second))
		time.Sleep(15 * time.Second)
		c := p.Counters()
		if n, all := most.Load(), c["probe_probes_total"]; n != 10 || all != 100 {
			t.Errorf("%d ran at once, and %d in all", n, all)
		}
		if n := c["probe_late_total"]; n < 50 || n > 90 {
			t.Errorf("%d were late", n)
		}
		p.Close()
	})
}

func TestChecksThatAreStoppedWhileTheyWaitAreNotProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
			time.Sleep(time.Minute)
			return nil, net.ErrClosed
		}
		p := New(Config{Dial: dial, Report: func(health.Key, *health.Verdict) {}, ProbesAtOnce: 10})
		all := many(100, 30*time.Second)
		p.Set(all)
		time.Sleep(15 * time.Second)
		p.Set(all[:5])
		time.Sleep(5 * time.Minute)
		c := p.Counters()
		if n := c["probe_probes_total"]; n < 20 || n > 30 || c["probe_checks"] != 5 {
			t.Errorf("counted %v", c)
		}
		p.Close()
	})
}

func TestProbesSpreadOverTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const interval = 30 * time.Second
		start := time.Now()
		var seconds [60]atomic.Int64
		dial := func(context.Context, string, string) (net.Conn, error) {
			if s := int(time.Since(start) / time.Second); s < len(seconds) {
				seconds[s].Add(1)
			}
			return nil, net.ErrClosed
		}
		p := New(Config{Node: "a", Dial: dial, Report: func(health.Key, *health.Verdict) {}})
		defer p.Close()
		p.Set(many(3000, interval))
		time.Sleep(60*time.Second - 1)
		for s := range seconds {
			n := seconds[s].Load()
			low, high := int64(0), int64(0)
			switch {
			case s < 3: // the first probe is within a tenth of the interval
				low, high = 900, 1100
			case s >= 30 && s < 36: // the second spreads twice as far
				low, high = 400, 600
			}
			if n < low || n > high {
				t.Errorf("%d probes in second %d, want %d to %d", n, s, low, high)
			}
		}
	})
}

func TestTwoNodesProbeAtDifferentTimesAndEachAlwaysAtTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := func(node string) time.Duration {
			start, dialled := time.Now(), make(chan time.Duration, 1)
			dial := func(context.Context, string, string) (net.Conn, error) {
				dialled <- time.Since(start)
				return nil, net.ErrClosed
			}
			p := New(Config{Node: node, Dial: dial, Report: func(health.Key, *health.Verdict) {}})
			defer p.Close()
			p.Set([]Check{targetTerms})
			return <-dialled
		}
		a, b := first("a"), first("b")
		if a == b || a != first("a") {
			t.Errorf("a probes after %v, b after %v", a, b)
		}
	})
}

func TestChecksBeyondTheBoundAreNotRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial := func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }
		var reported atomic.Int64
		p := New(Config{Dial: dial, Report: func(health.Key, *health.Verdict) { reported.Add(1) }})
		defer p.Close()
		p.Set(many(maxChecks+5, 30*time.Second))
		time.Sleep(4 * time.Second)
		if n := reported.Load(); n != maxChecks {
			t.Errorf("%d checks reported, want %d", n, maxChecks)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		"", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 101 Switching Protocols\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n", "SSH-2.0-OpenSSH\r\n",
	} {
		f.Add([]byte(s), "")
		f.Add([]byte(s), "hello")
	}
	f.Fuzz(func(t *testing.T, b []byte, search string) {
		c := find(search)
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			read(far)
			far.Write(b)
			far.Close()
		}()
		reason := get(wire{near, near}, &c, c.Timeout, time.Now().Add(time.Minute))
		near.Close()
		<-done
		if reason == "" && (!strings.HasPrefix(string(b), "HTTP/") || len(b) < len(search)) {
			t.Fatalf("%q passed", b)
		}
		if len(reason) > 100 {
			t.Fatalf("the reason quotes the answer: %q", reason)
		}
	})
}

// What this node lacks says nothing of what it checks: what was known stands, and people are told now and then.
func TestWhatThisNodeLacksIsNoVerdict(t *testing.T) {
	lacks := func(e error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", e)} }
	for _, of := range []struct {
		name    string
		host    string // that is looked up; none: it is an address
		dial    error
		resolve error
	}{
		{"file descriptors", "", lacks(syscall.EMFILE), nil},
		{"files", "", lacks(syscall.ENFILE), nil},
		{"buffers", "", lacks(syscall.ENOBUFS), nil},
		{"memory", "", lacks(syscall.ENOMEM), nil},
		{"ports", "", lacks(syscall.EADDRNOTAVAIL), nil},
		{"files to look a name up", "web.test", nil, &net.DNSError{Err: lacks(syscall.EMFILE).Error(), Name: "web.test"}},
	} {
		t.Run(of.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLAN(t)
				defer l.serve(func(net.Conn) {}).Close()
				var lacking atomic.Bool
				var told []health.Verdict
				var log bytes.Buffer
				p := New(Config{
					Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError})),
					Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
						if lacking.Load() && of.dial != nil {
							return nil, of.dial
						}
						return l.prober.Dial(ctx, network, address)
					},
					Resolve: func(context.Context, string) ([]netip.Addr, error) {
						if lacking.Load() && of.resolve != nil {
							return nil, of.resolve
						}
						return []netip.Addr{endpoint.Addr()}, nil
					},
					Report: func(_ health.Key, v *health.Verdict) { told = append(told, *v) },
				})
				defer p.Close()
				checks := many(1, 10*time.Second)
				checks[0].Protocol, checks[0].Address, checks[0].Name = spec.TCP, endpoint, of.host
				p.Set(checks)
				time.Sleep(25 * time.Second)
				probes := p.Counters()["probe_probes_total"]
				lacking.Store(true)
				time.Sleep(5 * time.Minute)
				c := p.Counters()
				if c["probe_failed_total"] != 0 || c["probe_probes_total"] != probes || c["probe_faults_total"] < 20 {
					t.Errorf("while this node lacks: %v", c)
				}
				if n := strings.Count(log.String(), "lacks what health checks need"); n < 3 || n > 6 {
					t.Errorf("people were told %d times:\n%s", n, log.String())
				}
				lacking.Store(false)
				time.Sleep(30 * time.Second)
				p.Close()
				if after := p.Counters()["probe_probes_total"]; after <= probes {
					t.Error("no probe was made once nothing was lacking")
				}
				for _, v := range told {
					if !v.Healthy {
						t.Errorf("told %+v", v)
					}
				}
			})
		})
	}
}
