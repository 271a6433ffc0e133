package front

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// visitor is a client of HTTP/3.
type caller struct {
	*http3.Transport
	w       *world
	quic    *quic.Transport
	packets net.PacketConn
	last    *quic.Conn
}

// visitor has a client come from a host of its own socket, which remembers tickets and tokens. config may be nil.
func (w *world) visitor(config *tls.Config, quicConfig *quic.Config) *caller {
	w.Helper()
	packets, err := w.person.ListenPacket("udp", ":0")
	if err != nil {
		w.Fatal(err)
	}
	if config == nil {
		config = &tls.Config{}
	}
	config = config.Clone()
	config.InsecureSkipVerify = true
	v := &caller{w: w, quic: &quic.Transport{Conn: packets}, packets: packets}
	v.Transport = &http3.Transport{TLSClientConfig: config, QUICConfig: quicConfig, Dial: func(ctx context.Context, address string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			to = netip.MustParseAddrPort("203.0.113.1:443")
		}
		v.last, err = v.quic.DialEarly(ctx, net.UDPAddrFromAddrPort(to), c, q)
		return v.last, err
	}}
	return v
}

func (v *caller) leave() {
	v.Transport.Close()
	v.quic.Close()
	v.packets.Close()
}

// ask sends a request and returns what comes back.
func (v *caller) ask(method, url string, body io.Reader) string {
	r, err := http.NewRequestWithContext(v.w.Context(), method, url, body)
	if err != nil {
		return err.Error()
	}
	res, err := v.RoundTrip(r)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d %s", res.StatusCode, text)
}

const site = "https://203.0.113.1/"

// threefold is a world whose node has a door for HTTP/1, 2 and 3 at 443.
func threefold(t *testing.T, c Config, h http.Handler, f func(w *world)) {
	c.Certificate = NewCertificates("node", anyHost).Get
	inWorld(t, c, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, HTTP3: true, Handler: h})
		f(w)
		w.balanced()
	})
}

// balanced fails if a door's books do not agree with who is there.
func (w *world) balanced() {
	w.Helper()
	time.Sleep(2 * idleTimeout)
	if n := w.front.Counters()["front_http3_connections"]; n != 0 {
		w.Errorf("%d connections are counted when none is there", n)
	}
	for _, d := range w.front.quicDoors() {
		d.mu.Lock()
		clients := d.crowd.clients() + d.comers.clients()
		if len(d.guests) != 0 || clients != 0 || d.handshakes != 0 {
			w.Errorf("%d guests, %d clients, %d handshakes are left", len(d.guests), clients, d.handshakes)
		}
		d.mu.Unlock()
	}
}

func TestHTTP3IsServedWithAllThatHandlersLookAt(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s %s %s %s %s %d %q %v %s %t %s", r.Proto, r.Method, r.Host, r.URL, from, r.ContentLength, body, err,
			tls.VersionName(r.TLS.Version), r.TLS.HandshakeComplete, r.TLS.ServerName)
	})
	threefold(t, Config{}, handler, func(w *world) {
		v := w.visitor(&tls.Config{ServerName: "www.test"}, nil)
		defer v.leave()
		for _, c := range []struct {
			method, path string
			body         io.Reader
			want         string
		}{
			{"GET", "a?b", nil, `200 HTTP/3.0 GET 203.0.113.1 /a?b 192.0.2.1 0 "" <nil> TLS 1.3 true www.test`},
			{"POST", "c", strings.NewReader("text"), `200 HTTP/3.0 POST 203.0.113.1 /c 192.0.2.1 4 "text" <nil> TLS 1.3 true www.test`},
			{"POST", "c", io.MultiReader(strings.NewReader("text")), `200 HTTP/3.0 POST 203.0.113.1 /c 192.0.2.1 -1 "text" <nil> TLS 1.3 true www.test`},
			{"DELETE", "d", nil, `200 HTTP/3.0 DELETE 203.0.113.1 /d 192.0.2.1 0 "" <nil> TLS 1.3 true www.test`},
			{"GET", "e", io.MultiReader(strings.NewReader("odd")), `200 HTTP/3.0 GET 203.0.113.1 /e 192.0.2.1 -1 "odd" <nil> TLS 1.3 true www.test`},
		} {
			if got := v.ask(c.method, site+c.path, c.body); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		}
		w.counted("front_http3_requests_total", 5)
		w.counted("front_http3_connections_total", 1)
		w.counted("front_http3_handshake_errors_total", 0)
	})
}

func TestALargeAnswerArrivesWhole(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789"), 200_000)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write(big[:1000])
		http.NewResponseController(w).Flush()
		w.Write(big[1000:])
	})
	threefold(t, Config{}, h, func(w *world) {
		v := w.visitor(nil, nil)
		defer v.leave()
		if got := v.ask("GET", site, nil); got != "200 "+string(big) {
			t.Errorf("%d bytes came", len(got))
		}
	})
}

func TestHTTP1And2TellOfHTTP3WhereItIsOpen(t *testing.T) {
	told := func(w *world, alpn ...string) string {
		w.Helper()
		tr := &http.Transport{
			DialContext: w.person.Dial, ForceAttemptHTTP2: slices.Contains(alpn, "h2"),
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: alpn},
		}
		defer tr.CloseIdleConnections()
		res, err := tr.RoundTrip(w.request("GET", site))
		if err != nil {
			w.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		return strings.Join(res.Header["Alt-Svc"], " ")
	}
	const want = `h3=":443"; ma=86400`
	threefold(t, Config{}, says("x"), func(w *world) {
		for _, alpn := range []string{"http/1.1", "h2"} {
			if got := told(w, alpn); got != want {
				t.Errorf("%s: got %q", alpn, got)
			}
		}
		v := w.visitor(nil, nil)
		defer v.leave()
		res, err := v.RoundTrip(w.request("GET", site))
		if err != nil || res.Header.Get("Alt-Svc") != "" {
			t.Errorf("HTTP/3 tells of itself: %v", err)
		}
		w.front.Retire()
		if got := told(w, "http/1.1"); got != "" {
			t.Errorf("retired: got %q", got)
		}
		w.front.Resume()
		if got := told(w, "http/1.1"); got != want {
			t.Errorf("resumed: got %q", got)
		}
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, HTTP3: true, Handler: http.NotFoundHandler(), Quick: ready([]byte("x"))})
		if got := told(w, "http/1.1"); got != want {
			t.Errorf("an answer that is there already: got %q", got)
		}
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: says("x")})
		if got := told(w, "http/1.1"); got != "" {
			t.Errorf("without HTTP/3: got %q", got)
		}
	})
}

func (w *world) request(method, url string) *http.Request {
	w.Helper()
	r, err := http.NewRequestWithContext(w.Context(), method, url, nil)
	if err != nil {
		w.Fatal(err)
	}
	return r
}

func TestAUDPSocketThatCannotBeOpenedLeavesTheRestOpenAndUntold(t *testing.T) {
	inWorld(t, Config{Certificate: NewCertificates("node", anyHost).Get}, func(w *world) {
		taken, err := w.node.ListenPacket("udp", ":443")
		if err != nil {
			t.Fatal(err)
		}
		door := Door{Network: "tcp", Address: at(443), TLS: true, HTTP3: true, Handler: says("x")}
		if err := w.front.Set([]Door{door}); err == nil || !strings.Contains(err.Error(), "open door udp :443") {
			t.Errorf("got %v", err)
		}
		if _, err := greet(w.dial(443), &tls.Config{}); err != nil {
			t.Error(err)
		}
		taken.Close()
		w.set(door)
		v := w.visitor(nil, nil)
		defer v.leave()
		if got := v.ask("GET", site, nil); got != "200 x" {
			t.Errorf("got %s", got)
		}
	})
}

func TestHTTP3WantsTLSOfTheFrontsOwn(t *testing.T) {
	f := New(Config{Certificate: NewCertificates("node", anyHost).Get})
	for _, d := range []Door{
		{Network: "tcp", Address: at(0), HTTP3: true, Handler: says("x")},
		{Network: "tcp", Address: at(0), HTTP3: true, TLS: true, TLSConfig: &tls.Config{}, Handler: says("x")},
		{Network: "tcp", Address: at(0), HTTP3: true, Conn: echo},
	} {
		if err := f.Set([]Door{d}); err == nil {
			t.Errorf("%+v was opened", d)
		}
	}
	f.Close(t.Context())
}

func TestAChangeOfTheDoorsClosesNoHTTP3Connection(t *testing.T) {
	threefold(t, Config{}, says("before"), func(w *world) {
		v := w.visitor(nil, nil)
		defer v.leave()
		if got := v.ask("GET", site, nil); got != "200 before" {
			t.Fatalf("got %s", got)
		}
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, HTTP3: true, Handler: says("after")})
		if got := v.ask("GET", site, nil); got != "200 after" {
			t.Errorf("got %s", got)
		}
		w.counted("front_http3_connections_total", 1)
	})
}

// slow answers when it is let. The channel is made in the world.
func slow(let *chan struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-*let
		}
		io.WriteString(w, "done")
	})
}

func TestARetiredFrontAnswersHTTP3AndHasItsClientsGo(t *testing.T) {
	var let chan struct{}
	threefold(t, Config{}, slow(&let), func(w *world) {
		let = make(chan struct{})
		idle, busy := w.visitor(nil, nil), w.visitor(nil, nil)
		defer idle.leave()
		defer busy.leave()
		idle.ask("GET", site, nil)
		answered := make(chan string)
		go func() { answered <- busy.ask("GET", site+"slow", nil) }()
		time.Sleep(time.Second)
		w.front.Retire()
		time.Sleep(2 * partingTime)
		if idle.last.Context().Err() == nil {
			t.Error("a connection that carries nothing is kept")
		}
		if busy.last.Context().Err() != nil {
			t.Error("a connection that carries something is ended")
		}
		first := busy.last
		if got := busy.ask("GET", site, nil); got != "200 done" { // over a new connection: GOAWAY says so
			t.Errorf("who comes yet: got %s", got)
		}
		if busy.last == first {
			t.Error("it was not told to go")
		}
		close(let)
		if got := <-answered; got != "200 done" {
			t.Errorf("what was in flight: got %s", got)
		}
		time.Sleep(2 * partingTime)
		if first.Context().Err() == nil || busy.last.Context().Err() == nil {
			t.Error("connections are kept after their answers")
		}
		w.front.Resume()
		idle.ask("GET", site, nil)
		time.Sleep(2 * partingTime)
		if idle.last.Context().Err() != nil {
			t.Error("a connection is ended after all is as before")
		}
	})
}

func TestCloseWaitsForHTTP3AndThenCutsItOff(t *testing.T) {
	for _, c := range []struct {
		name  string
		takes time.Duration
		want  string
	}{{"in time", 5 * time.Second, "200 done"}, {"too late", time.Minute, ""}} {
		var let chan struct{}
		released := atomic.Bool{}
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-let:
			case <-r.Context().Done():
				released.Store(true)
			}
			io.WriteString(w, "done")
		})
		inWorld(t, Config{Certificate: NewCertificates("node", anyHost).Get}, func(w *world) {
			let = make(chan struct{})
			w.set(Door{Network: "tcp", Address: at(443), TLS: true, HTTP3: true, Handler: h})
			v := w.visitor(nil, nil)
			defer v.leave()
			answered := make(chan string, 1)
			go func() { answered <- v.ask("GET", site, nil) }()
			time.Sleep(time.Second)
			time.AfterFunc(c.takes, func() { close(let) })
			ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
			defer cancel()
			start := time.Now()
			err := w.front.Close(ctx)
			took := time.Since(start)
			got := <-answered
			switch {
			case c.want != "" && (err != nil || got != c.want || took < c.takes-2*time.Second || took > c.takes+2*partingTime):
				t.Errorf("%s: %v, %s after %v", c.name, err, got, took)
			case c.want == "" && (err == nil || !released.Load() || took > 11*time.Second || strings.HasPrefix(got, "200")):
				t.Errorf("%s: %v, %s after %v", c.name, err, got, took)
			}
			time.Sleep(c.takes)
		})
	}
}

func TestBlockedClientsOfHTTP3AreTurnedAwayAndEnded(t *testing.T) {
	var blocked, anyone atomic.Bool
	c := Config{Blocked: func(a netip.Addr) bool { return blocked.Load() && a == netip.MustParseAddr("192.0.2.1") }}
	threefold(t, c, says("x"), func(w *world) {
		v := w.visitor(nil, nil)
		defer v.leave()
		if got := v.ask("GET", site, nil); got != "200 x" {
			t.Fatalf("got %s", got)
		}
		blocked.Store(true)
		w.front.Recheck()
		time.Sleep(time.Second)
		if v.last.Context().Err() == nil {
			t.Error("an open connection is kept")
		}
		w.counted("front_blocked_total", 1)
		other := w.visitor(nil, nil)
		defer other.leave()
		var refused *quic.TransportError
		_, err := other.RoundTrip(w.request("GET", site))
		if !errors.As(err, &refused) || refused.ErrorCode != quic.ConnectionRefused {
			t.Errorf("got %v", err)
		}
		if n := w.front.Counters()["front_blocked_total"]; n < 2 { // its first flight is more than one packet, each of which is judged
			t.Errorf("%d are counted", n)
		}
		anyone.Store(true)
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, HTTP3: true, Anyone: true, Handler: says("x")})
		if got := other.ask("GET", site, nil); got != "200 x" {
			t.Errorf("at a door for anyone: got %s", got)
		}
		w.counted("front_http3_handshake_errors_total", 0)
	})
}

func TestABlockCutsWhatAClosedDoorHasInFlight(t *testing.T) {
	var blocked atomic.Bool
	var let chan struct{}
	threefold(t, Config{Blocked: func(netip.Addr) bool { return blocked.Load() }}, slow(&let), func(w *world) {
		let = make(chan struct{})
		v := w.visitor(nil, nil)
		defer v.leave()
		answered := make(chan string)
		go func() { answered <- v.ask("GET", site+"slow", nil) }()
		time.Sleep(time.Second)
		w.set()
		time.Sleep(2 * partingTime)
		if v.last.Context().Err() != nil {
			t.Error("a connection of a closed door does not finish")
		}
		blocked.Store(true)
		w.front.Recheck()
		if got := <-answered; strings.HasPrefix(got, "200") {
			t.Errorf("got %s", got)
		}
		close(let)
	})
}

func TestASocketsNewAddressIsJudged(t *testing.T) {
	var block atomic.Bool
	c := Config{Blocked: func(a netip.Addr) bool { return block.Load() && a == netip.MustParseAddr("192.0.2.2") }}
	threefold(t, c, says("x"), func(w *world) {
		v := w.visitor(nil, nil)
		defer v.leave()
		v.ask("GET", site, nil)
		block.Store(true)
		moved := w.net.Host("elsewhere", w.place(), netip.MustParseAddr("192.0.2.2"))
		packets, err := moved.ListenPacket("udp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer packets.Close()
		tr := &quic.Transport{Conn: packets}
		defer tr.Close()
		path, err := v.last.AddPath(tr)
		if err != nil {
			t.Fatal(err)
		}
		if err := path.Probe(w.Context()); err != nil {
			t.Fatal(err)
		}
		if err := path.Switch(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		first := v.last
		v.ask("GET", site, nil) // the first packets are still taken to be a probe
		time.Sleep(time.Second)
		v.ask("GET", site, nil)
		time.Sleep(time.Second)
		if first.Context().Err() == nil {
			t.Error("a client that moved to a blocked address is served")
		}
		if w.front.Counters()["front_blocked_total"] == 0 {
			t.Error("it is not counted")
		}
	})
}

func TestWhomADoorDoesNotAllowIsTurnedAwayAndWhoIsInStays(t *testing.T) {
	all := func(netip.Addr) bool { return true }
	none := func(a netip.Addr) bool { return a != netip.MustParseAddr("192.0.2.1") }
	certificates := NewCertificates("node", anyHost)
	inWorld(t, Config{Certificate: certificates.Get, ProxyHeadersFrom: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}, func(w *world) {
		doors := func(allowed func(netip.Addr) bool) {
			w.set(
				Door{Network: "tcp", Address: at(443), TLS: true, HTTP3: true, Allowed: allowed, Handler: says("x")},
				Door{Network: "tcp", Address: at(80), Allowed: allowed, Handler: says("x")},
				Door{Network: "tcp", Address: at(7), Allowed: allowed, Conn: echo},
			)
		}
		doors(all)
		v, plain, raw := w.visitor(nil, nil), w.dial(80), w.dial(7)
		defer v.leave()
		defer plain.Close()
		defer raw.Close()
		v.ask("GET", site, nil)
		ask(plain, "/")
		doors(none)
		w.front.Recheck()
		if got := v.ask("GET", site, nil); got != "200 x" {
			t.Errorf("HTTP/3 that is open: got %s", got)
		}
		if got := ask(plain, "/"); got != "200 x" {
			t.Errorf("HTTP that is open: got %s", got)
		}
		fmt.Fprint(raw, "a")
		if n, err := raw.Read(make([]byte, 1)); n != 1 {
			t.Errorf("a flow that is open: %v", err)
		}
		for _, port := range []int{80, 7, 443} {
			c := w.dial(port)
			if took := ended(c); took > time.Second {
				t.Errorf("port %d: it is ended after %v", port, took)
			}
		}
		w.counted("front_not_allowed_total", 3)
		late := w.visitor(nil, nil)
		defer late.leave()
		if _, err := late.RoundTrip(w.request("GET", site)); err == nil {
			t.Error("HTTP/3 lets in whom it must not")
		}
		turned := w.front.Counters()["front_not_allowed_total"]
		if turned < 4 { // each packet of its first flight is judged
			t.Errorf("%d are counted", turned)
		}
		w.counted("front_blocked_total", 0)

		// A load balancer may come by itself; whom its header names may not.
		balancer := w.net.Host("balancer", w.place(), netip.MustParseAddr("198.51.100.1"))
		for _, c := range []struct {
			client string
			want   bool
		}{{"192.0.2.1", false}, {"192.0.2.9", true}} {
			conn, err := balancer.Dial(w.Context(), "tcp", "203.0.113.1:80")
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(conn, "PROXY TCP4 %s 203.0.113.1 5000 80\r\n", c.client)
			if got := ask(conn, "/"); (got == "200 x") != c.want {
				t.Errorf("%s: got %s", c.client, got)
			}
			conn.Close()
		}
		w.counted("front_not_allowed_total", turned+1)
	})
}

func TestEarlyDataAsksForNothingThatMustNotHappenTwice(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s early %q", r.Method, r.Header["Early-Data"])
	})
	threefold(t, Config{}, h, func(w *world) {
		w.front.SetTicketKeys([][32]byte{key(1)})
		config := &tls.Config{ServerName: "www.test", ClientSessionCache: tls.NewLRUClientSessionCache(10)}
		store := quic.NewLRUTokenStore(10, 10)
		first := w.visitor(config, &quic.Config{TokenStore: store})
		if got := first.ask("GET", site, nil); got != "200 GET early []" {
			t.Fatalf("got %s", got)
		}
		first.leave()
		for _, c := range []struct{ method, want string }{
			{http3.MethodGet0RTT, `200 GET early ["1"]`},
			{http3.MethodHead0RTT, `200 `},
		} {
			v := w.visitor(config, &quic.Config{TokenStore: store})
			if got := v.ask(c.method, site, nil); got != c.want {
				t.Errorf("%s: got %s", c.method, got)
			}
			if !v.last.ConnectionState().Used0RTT {
				t.Errorf("%s: it was not early", c.method)
			}
			if got := v.ask("POST", site, nil); got != "200 POST early []" {
				t.Errorf("after the handshake: got %s", got)
			}
			v.leave()
		}
		// No client that means well sends anything else early, so this one is by hand.
		v := w.visitor(config, &quic.Config{TokenStore: store})
		defer v.leave()
		early := config.Clone()
		early.InsecureSkipVerify, early.NextProtos = true, []string{"h3"}
		conn, err := v.quic.DialEarly(w.Context(), &net.UDPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 443}, early, &quic.Config{TokenStore: store})
		if err != nil {
			t.Fatal(err)
		}
		stream, err := (&http3.Transport{}).NewClientConn(conn).OpenRequestStream(w.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.SendRequestHeader(w.request("POST", site)); err != nil {
			t.Fatal(err)
		}
		stream.Close()
		res, err := stream.ReadResponse()
		if err != nil || res.StatusCode != http.StatusTooEarly || !conn.ConnectionState().Used0RTT {
			t.Errorf("got %+v, %v", res, err)
		}
		w.counted("front_too_early_total", 1)
		w.counted("front_early_requests_total", 2)
	})
}

func TestHTTP3ResumesAtAnotherNode(t *testing.T) {
	threefold(t, Config{TokenKey: key(9)}, says("x"), func(w *world) {
		other := w.second(Config{Certificate: NewCertificates("other", anyHost).Get, TokenKey: key(9)})
		defer other.Close(context.Background())
		w.front.SetTicketKeys([][32]byte{key(1), key(2)})
		other.SetTicketKeys([][32]byte{key(2), key(1), key(3)})
		config := &tls.Config{ServerName: "www.test", ClientSessionCache: tls.NewLRUClientSessionCache(10)}
		first := w.visitor(config, nil)
		first.ask("GET", site, nil)
		first.leave()
		v := w.visitor(config, nil)
		defer v.leave()
		if got := v.ask(http3.MethodGet0RTT, "https://203.0.113.2:443/", nil); got != "200 y" {
			t.Errorf("got %s", got)
		}
		if s := v.last.ConnectionState(); !s.TLS.DidResume || !s.Used0RTT {
			t.Errorf("resumed %t, early %t", s.TLS.DidResume, s.Used0RTT)
		}
	})
}

func TestClientsOfHTTP3ThatCarryNothingAreEnded(t *testing.T) {
	threefold(t, Config{}, says("x"), func(w *world) {
		dial := func() *quic.Conn {
			v := w.visitor(nil, nil)
			conn, err := v.quic.Dial(w.Context(), &net.UDPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 443},
				&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}}, &quic.Config{KeepAlivePeriod: time.Second, MaxIdleTimeout: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			context.AfterFunc(conn.Context(), func() { v.leave() })
			return conn
		}
		silent, start := dial(), time.Now()
		<-silent.Context().Done()
		if took := time.Since(start); !near(took, headerTimeout) {
			t.Errorf("one that asks nothing is ended after %v", took)
		}
		halves, start := dial(), time.Now()
		for range streams {
			s, err := halves.OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			s.Write([]byte{1, 40, 0}) // HEADERS of 40 bytes, of which one is there
		}
		if _, err := halves.OpenStream(); err == nil {
			t.Error("more streams are granted than there may be")
		}
		<-halves.Context().Done()
		if took := time.Since(start); !near(took, headerTimeout) {
			t.Errorf("one that sends half requests is ended after %v", took)
		}
		v := w.visitor(nil, &quic.Config{KeepAlivePeriod: time.Second, MaxIdleTimeout: time.Hour})
		defer v.leave()
		v.ask("GET", site, nil)
		start = time.Now()
		<-v.last.Context().Done()
		if took := time.Since(start); !near(took, idleTimeout) {
			t.Errorf("one that asks nothing more is ended after %v", took)
		}
		w.counted("front_silent_total", 2)
	})
}

func TestHeadersThatAreTooLongAreRefusedAndHTTP3GoesOn(t *testing.T) {
	threefold(t, Config{}, says("x"), func(w *world) {
		v := w.visitor(nil, nil)
		defer v.leave()
		for _, long := range []string{strings.Repeat("a", headerBytes), strings.Repeat("~", headerBytes/2)} { // ~ takes 13 bits packed: QPACK's Huffman code is no way round
			r := w.request("GET", site)
			for i := range 4 {
				r.Header.Set(fmt.Sprintf("X-%d", i), long)
			}
			res, err := v.RoundTrip(r)
			if err != nil || res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("got %v, %v", res, err)
			}
			if err == nil {
				res.Body.Close()
			}
		}
		if got := v.ask("GET", site, nil); got != "200 x" {
			t.Errorf("afterwards: got %s", got)
		}
		w.counted("front_http3_requests_total", 1)
	})
}

func TestRapidResetsEndTheConnection(t *testing.T) {
	threefold(t, Config{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), func(w *world) {
		v := w.visitor(nil, nil)
		defer v.leave()
		var first *quic.Conn
		sent := 0
		for ; sent < 4*maxAbandoned; sent++ {
			ctx, cancel := context.WithCancel(w.Context())
			time.AfterFunc(time.Millisecond, cancel)
			v.RoundTrip(w.request("GET", site).WithContext(ctx))
			if first == nil {
				first = v.last
			}
			if first.Context().Err() != nil { // a request that finds it so goes by another one
				break
			}
		}
		var ended *quic.ApplicationError
		if err := context.Cause(first.Context()); !errors.As(err, &ended) || ended.ErrorCode != quic.ApplicationErrorCode(http3.ErrCodeExcessiveLoad) {
			t.Errorf("it was ended by %v", err)
		}
		if sent < maxAbandoned || sent > maxAbandoned+streams {
			t.Errorf("it was ended after %d resets", sent)
		}
		w.counted("front_http3_overloads_total", 1)
	})
}

func TestHandlersThatGoOnAfterAResetAreBounded(t *testing.T) {
	var running atomic.Int64
	var let chan struct{} // made in the world
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		running.Add(1)
		<-r.Context().Done()
		w.Write(make([]byte, 10_000)) // it has been told, as far as QUIC can see, and its stream may be another's
		<-let
	})
	threefold(t, Config{}, h, func(w *world) {
		let = make(chan struct{})
		v := w.visitor(nil, nil)
		defer v.leave()
		for range 2 * maxHandlers {
			ctx, cancel := context.WithCancel(w.Context())
			time.AfterFunc(time.Millisecond, cancel)
			v.RoundTrip(w.request("GET", site).WithContext(ctx))
			if w.front.Counters()["front_http3_overloads_total"] > 0 {
				break
			}
		}
		synctest.Wait() // the last one may have been let in, and not have run yet
		// None has ended yet. That which was one too many may have come again, by another connection.
		if n := running.Load(); n < maxHandlers || n > maxHandlers+1 {
			t.Errorf("%d handlers ran", n)
		}
		close(let)
		w.counted("front_http3_overloads_total", 1)
	})
}

// deaf is a socket on which nothing arrives.
type deaf struct{ net.PacketConn }

func (deaf) SetReadBuffer(int) error  { return nil }
func (deaf) SetWriteBuffer(int) error { return nil }

func (d deaf) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		if _, _, err := d.PacketConn.ReadFrom(p); err != nil {
			return 0, nil, err
		}
	}
}

func TestAFloodOfHandshakesKeepsNobodyOut(t *testing.T) {
	threefold(t, Config{}, says("x"), func(w *world) {
		flood, cancel := context.WithTimeout(w.Context(), 30*time.Second)
		defer cancel()
		packets, err := w.person.ListenPacket("udp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		tr := &quic.Transport{Conn: deaf{packets}}
		for range unprovenHandshakes + 100 {
			go tr.Dial(flood, &net.UDPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 443}, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}}, nil)
		}
		time.Sleep(3 * time.Second)
		door := w.front.quicDoors()[0]
		door.mu.Lock()
		under := door.handshakes
		door.mu.Unlock()
		if under != unprovenHandshakes {
			t.Errorf("%d handshakes are under way", under)
		}
		v := w.visitor(nil, nil)
		defer v.leave()
		if got := v.ask("GET", site, nil); got != "200 x" {
			t.Errorf("who means well: got %s", got)
		}
		if n := w.front.Counters()["front_http3_retries_total"]; n < 100 {
			t.Errorf("%d were asked to show who they are", n)
		}
		time.Sleep(30 * time.Second)
		if n := w.front.Counters()["front_http3_handshake_errors_total"]; n < unprovenHandshakes {
			t.Errorf("%d handshakes failed", n)
		}
		tr.Close()
		packets.Close()
	})
}

func TestOneClientHasNoMoreConnectionsThanItsShare(t *testing.T) {
	d := &quicDoor{front: New(Config{}), guests: map[*quicGuest]struct{}{}, crowd: newCrowd(), comers: newCrowd()}
	d.behind.Store(&Door{})
	from := func(a string) *quic.ClientInfo {
		return &quic.ClientInfo{RemoteAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(a))}
	}
	ctx, leave := context.WithCancel(t.Context())
	for i := range connectionsPerClient {
		if _, err := d.arrives(ctx, from(fmt.Sprintf("[2001:db8::%x]:1", i))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.arrives(ctx, from("[2001:db8::ffff]:1")); err == nil {
		t.Error("one more is let in")
	}
	for _, other := range []string{"[2001:db8:0:1::1]:1", "192.0.2.1:1", "[::ffff:192.0.2.2]:1"} {
		if _, err := d.arrives(ctx, from(other)); err != nil {
			t.Errorf("%s: %v", other, err)
		}
	}
	if n := d.front.Counters()["front_crowded_total"]; n != 1 {
		t.Errorf("%d are counted", n)
	}
	for range maxHandshakes - connectionsPerClient - 3 {
		d.arrives(ctx, from(fmt.Sprintf("10.%d.%d.%d:1", rand.IntN(256), rand.IntN(256), rand.IntN(256))))
	}
	if _, err := d.arrives(ctx, from("198.51.100.1:1")); err == nil {
		t.Error("more handshakes are begun than there may be")
	}
	leave()
}

func TestGarbageOnUDPHarmsNobody(t *testing.T) {
	threefold(t, Config{}, says("x"), func(w *world) {
		packets, err := w.person.ListenPacket("udp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer packets.Close()
		chance := rand.New(rand.NewPCG(1, 2))
		for i := range 2000 {
			p := make([]byte, chance.IntN(1400))
			for j := range p {
				p[j] = byte(chance.Uint32())
			}
			if len(p) > 5 && i%2 == 0 { // as if it were an Initial of version 1
				p[0], p[1], p[2], p[3], p[4] = 0xc0|p[0]&0xf, 0, 0, 0, 1
			}
			packets.WriteTo(p, &net.UDPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 443})
			if i%100 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		v := w.visitor(nil, nil)
		defer v.leave()
		if got := v.ask("GET", site, nil); got != "200 x" {
			t.Errorf("got %s", got)
		}
		time.Sleep(3 * handshakeTimeout)
	})
}

func TestAPanicCostsItsOwnRequestOfHTTP3(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/panic" {
			panic("x")
		}
		io.WriteString(w, "x")
	})
	threefold(t, Config{}, h, func(w *world) {
		v := w.visitor(nil, nil)
		defer v.leave()
		if got := v.ask("GET", site+"panic", nil); strings.HasPrefix(got, "200") {
			t.Errorf("got %s", got)
		}
		first := v.last
		if got := v.ask("GET", site, nil); got != "200 x" {
			t.Errorf("afterwards: got %s", got)
		}
		if first.Context().Err() != nil {
			t.Error("its connection is ended, too")
		}
		w.counted("front_panics_total", 1)
	})
}

func TestSlowReadersAndWritersOfHTTP3AreEnded(t *testing.T) {
	var errs chan error // made in the world
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			_, err := io.ReadAll(r.Body)
			errs <- err
			return
		}
		_, err := w.Write(make([]byte, 32<<20))
		errs <- err
	})
	threefold(t, Config{}, h, func(w *world) {
		errs = make(chan error, 1)
		v := w.visitor(nil, &quic.Config{KeepAlivePeriod: time.Second})
		defer v.leave()
		res, err := v.RoundTrip(w.request("GET", site))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := <-errs; err == nil || !near(time.Since(start), writeTimeout) {
			t.Errorf("a client that does not read: %v after %v", err, time.Since(start))
		}
		res.Body.Close()
		r, body := io.Pipe()
		go v.ask("POST", site, r)
		body.Write([]byte("a"))
		start = time.Now()
		if err := <-errs; err == nil || !near(time.Since(start), bodyTimeout) {
			t.Errorf("a client that does not write: %v after %v", err, time.Since(start))
		}
		body.Close()
		w.counted("front_slow_readers_total", 1)
		w.counted("front_slow_requests_total", 1)
	})
}

// What a network in memory does not show: offloading, the don't-fragment bit, ECN.
func TestHTTP3WorksOverRealSockets(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789"), 100_000)
	f := New(Config{Certificate: NewCertificates("node", anyHost).Get})
	defer f.Close(t.Context())
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(big) })
	if err := f.Set([]Door{{Network: "tcp", Address: netip.MustParseAddrPort("127.0.0.1:0"), TLS: true, HTTP3: true, Handler: h}}); err != nil {
		t.Fatal(err)
	}
	trust := &tls.Config{InsecureSkipVerify: true}
	var tcp string
	for _, d := range f.doors {
		tcp = d.listener.Addr().String()
	}
	first := &http.Transport{TLSClientConfig: trust}
	defer first.CloseIdleConnections()
	second := &http3.Transport{TLSClientConfig: trust}
	defer second.Close()
	get := func(by http.RoundTripper, address string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := by.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if body, err := io.ReadAll(res.Body); err != nil || !bytes.Equal(body, big) {
			t.Errorf("%d bytes, %v", len(body), err)
		}
		return res
	}
	var port int
	if _, err := fmt.Sscanf(get(first, tcp).Header.Get("Alt-Svc"), `h3=":%d"; ma=86400`, &port); err != nil {
		t.Fatal(err)
	}
	if res := get(second, fmt.Sprintf("127.0.0.1:%d", port)); res.ProtoMajor != 3 {
		t.Errorf("got %s", res.Proto)
	}
}

// One client, one request after the other, both ends in one process.
func BenchmarkHTTP3OverLoopback(b *testing.B) {
	body := make([]byte, 1024)
	f := New(Config{Certificate: NewCertificates("node", anyHost).Get})
	defer f.Close(b.Context())
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(body) })
	if err := f.Set([]Door{{Network: "tcp", Address: netip.MustParseAddrPort("127.0.0.1:0"), TLS: true, HTTP3: true, Handler: h}}); err != nil {
		b.Fatal(err)
	}
	client := &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer client.Close()
	r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, fmt.Sprintf("https://127.0.0.1:%d/", f.quicDoors()[0].port), nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		res, err := client.RoundTrip(r)
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
}
