package front

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/edge/http1"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// world is a node with a Front and a person who visits it, on an in-memory network.
type world struct {
	*testing.T
	net          *memnet.Internet
	node, person *memnet.Host
	front        *Front
	listens      atomic.Int64
	log          bytes.Buffer
}

func inWorld(t *testing.T, c Config, f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, net: memnet.New(1)}
		w.node = w.net.Host("node", spec.Location{}, netip.MustParseAddr("203.0.113.1"))
		w.person = w.net.Host("person", spec.Location{}, netip.MustParseAddr("192.0.2.1"))
		c.Listen = func(network, address string) (net.Listener, error) {
			w.listens.Add(1)
			return w.node.Listen(network, address)
		}
		c.ListenAnycast = c.Listen
		c.ListenPacket, c.ListenPacketAnycast = w.node.ListenPacket, w.node.ListenPacket
		c.Log = slog.New(slog.NewTextHandler(&w.log, nil))
		w.front = New(c)
		f(w)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		w.front.Close(ctx)
		time.Sleep(time.Second) // net/http lingers when it closes with a body unread
		w.net.Close()
	})
}

func at(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.Addr{}, port) }

func says(word string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, word)
	})
}

func echo(c net.Conn) { io.Copy(c, c) }

func (w *world) set(doors ...Door) {
	w.Helper()
	if err := w.front.Set(doors); err != nil {
		w.Fatal(err)
	}
}

func (w *world) dial(port int) net.Conn {
	w.Helper()
	c, err := w.person.Dial(w.Context(), "tcp", fmt.Sprintf("203.0.113.1:%d", port))
	if err != nil {
		w.Fatal(err)
	}
	return c
}

// ask sends a request on a connection and returns what comes back.
func ask(c net.Conn, path string) string {
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	return answer(c)
}

func answer(c net.Conn) string {
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err.Error()
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d %s", res.StatusCode, body)
}

// ended waits for the other end to close a connection, and says how long that took.
func ended(c net.Conn) time.Duration {
	start := time.Now()
	io.Copy(io.Discard, c)
	return time.Since(start)
}

func (w *world) counted(name string, want uint64) {
	w.Helper()
	time.Sleep(time.Second) // what is under way arrives
	if got := w.front.Counters()[name]; got != want {
		w.Errorf("%s: got %d, want %d", name, got, want)
	}
}

func near(got, want time.Duration) bool { return got >= want && got < want+100*time.Millisecond }

func TestConnectionsGoOnWhileDoorsChangeAroundThem(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(80), Handler: says("one")}, Door{Network: "tcp", Address: at(9000), Conn: echo})
		kept, flow := w.dial(80), w.dial(9000)
		defer kept.Close()
		defer flow.Close()
		if got := ask(kept, "/"); got != "200 one" {
			t.Fatal(got)
		}
		w.set(Door{Network: "tcp", Address: at(80), Handler: says("two")}, Door{Network: "tcp", Address: at(8080), Handler: says("new")})
		if got := ask(kept, "/"); got != "200 two" {
			t.Errorf("the connection that stood: %s", got)
		}
		if w.listens.Load() != 3 {
			t.Errorf("%d sockets were opened, want 3: a door that stands is not opened again", w.listens.Load())
		}
		io.WriteString(flow, "still here")
		if b := make([]byte, 10); !full(flow, b) || string(b) != "still here" {
			t.Errorf("the flow of a door that was closed: %q", b)
		}
		if c, err := w.person.Dial(w.Context(), "tcp", "203.0.113.1:9000"); err == nil {
			c.Close()
			t.Error("a closed door took a connection")
		}
		w.counted("front_doors", 2)
	})
}

func full(r io.Reader, b []byte) bool {
	_, err := io.ReadFull(r, b)
	return err == nil
}

func TestADoorThatIsClosedFinishesWhatItHas(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		slow := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(10 * time.Second)
			io.WriteString(w, "done")
		})
		w.set(Door{Network: "tcp", Address: at(80), Handler: slow})
		busy, idle := w.dial(80), w.dial(80)
		fmt.Fprint(busy, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		time.Sleep(8 * time.Second)
		w.set()
		if took := ended(idle); took > time.Second {
			t.Errorf("an idle connection ended after %v", took)
		}
		if got := answer(busy); got != "200 done" {
			t.Errorf("the request in flight: %s", got)
		}
		ended(busy)
		w.counted("front_connections", 0)
	})
}

func TestADoorThatCannotOpenIsReportedAndTheOthersServe(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		taken, err := w.node.Listen("tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		doors := []Door{
			{Network: "tcp", Address: at(80), Handler: says("80")},
			{Network: "tcp", Address: at(81), Handler: says("81")},
			{Network: "udp", Address: at(82), Handler: says("82")},
			{Network: "tcp", Address: at(83)},
			{Network: "tcp", Address: at(84), Handler: says("84"), Conn: echo},
			{Network: "tcp", Address: at(85), Conn: echo, TLS: true},
			{Network: "tcp", Address: at(86), Handler: says("86"), TLS: true}, // without a certificate
			{Network: "tcp", Address: at(81), Conn: echo},
			{Network: "tcp", Address: at(87), Handler: says("87"), TLSConfig: &tls.Config{}},
			{Network: "tcp", Address: at(88), Conn: echo, Quick: new(diary).quick},
		}
		err = w.front.Set(doors)
		if err == nil {
			t.Fatal("no error")
		}
		for _, want := range []string{
			"open door tcp :80: listen", "open door udp :82: ", "open door tcp :83: ", "open door tcp :84: ", "open door tcp :85: ",
			"open door tcp :86: there is no certificate", "open door tcp :81: it is wanted twice",
			"open door tcp :87: it has a TLSConfig", "open door tcp :88: it has Quick or Relay, and no Handler",
		} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("want %q in\n%v", want, err)
			}
		}
		c := w.dial(81)
		defer c.Close()
		if got := ask(c, "/"); got != "200 81" {
			t.Errorf("the door beside them: %s", got)
		}
		taken.Close()
		w.set(doors[:2]...) // the next Set tries again
		c80 := w.dial(80)
		defer c80.Close()
		if got := ask(c80, "/"); got != "200 80" {
			t.Errorf("once there was room: %s", got)
		}
	})
}

func TestADoorMayBecomeAnotherAtItsAddress(t *testing.T) {
	inWorld(t, Config{Certificate: NewCertificates("node", func(string) bool { return false }).Get}, func(w *world) {
		for i, d := range []Door{
			{Handler: says("plain")},
			{Conn: func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nflow") }},
			{Handler: says("anycast"), Anycast: true},
			{Handler: says("tls"), TLS: true},
		} {
			d.Network, d.Address = "tcp", at(80)
			w.set(d)
			c := w.dial(80)
			if d.TLS {
				c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
			}
			if got, want := ask(c, "/"), []string{"200 plain", "200 flow", "200 anycast", "200 tls"}[i]; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			c.Close()
		}
	})
}

func TestTLSDoorsSpeakHTTP2AndHTTP1(t *testing.T) {
	inWorld(t, Config{Certificate: NewCertificates("icn1-a", func(host string) bool { return host == "shop.example" }).Get}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s", r.Proto, r.TLS.ServerName)
			io.Copy(w, r.Body)
		})})
		for _, c := range []struct {
			name, shown string
			http2       bool
			want        string
		}{
			{"shop.example", "shop.example", true, "HTTP/2.0 shop.example, hello"},
			{"SHOP.example", "shop.example", false, "HTTP/1.1 SHOP.example, hello"},
			{"other.example", "icn1-a", true, "HTTP/2.0 other.example, hello"},
			{"", "icn1-a", true, "HTTP/2.0 , hello"},
		} {
			var shown *x509.Certificate
			tr := &http.Transport{
				DialContext: w.person.Dial,
				TLSClientConfig: &tls.Config{ServerName: c.name, InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
					shown = s.PeerCertificates[0]
					return nil
				}},
				Protocols: new(http.Protocols),
			}
			tr.Protocols.SetHTTP1(!c.http2)
			tr.Protocols.SetHTTP2(c.http2)
			res, err := (&http.Client{Transport: tr}).Post("https://203.0.113.1/", "", strings.NewReader(", hello"))
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(res.Body)
			res.Body.Close()
			tr.CloseIdleConnections()
			if string(body) != c.want || shown.VerifyHostname(c.shown) != nil {
				t.Errorf("%q: got %q under the certificate of %v", c.name, body, shown.DNSNames)
			}
		}
		w.counted("front_requests_total", 4)
		w.counted("front_bad_requests_total", 0)
	})
}

func TestADoorThatIsFullClosesWhatComes(t *testing.T) {
	inWorld(t, Config{Connections: 3}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(80), Handler: says("80")}, Door{Network: "tcp", Address: at(9000), Conn: echo})
		for _, port := range []int{80, 9000} {
			var held []net.Conn
			for range 3 {
				held = append(held, w.dial(port))
			}
			time.Sleep(time.Second)
			more := w.dial(port)
			if took := ended(more); took > time.Second {
				t.Errorf("port %d: one too many was held for %v", port, took)
			}
			held[0].Close()
			time.Sleep(time.Second)
			room := w.dial(port)
			io.WriteString(room, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			if b := make([]byte, 1); !full(room, b) {
				t.Errorf("port %d: there was room, but no answer", port)
			}
			for _, c := range append(held, room, more) {
				c.Close()
			}
		}
		w.counted("front_connections_refused_total", 2)
		w.counted("front_connections", 0)
	})
}

func TestSlowClientsAreCutOff(t *testing.T) {
	inWorld(t, Config{Certificate: NewCertificates("node", func(string) bool { return false }).Get}, func(w *world) {
		var bodyErr error
		w.set(
			Door{Network: "tcp", Address: at(80), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/large":
					for range 1000 {
						if _, err := w.Write(make([]byte, 1<<20)); err != nil {
							return
						}
					}
				case "/ignore":
					io.WriteString(w, "ignored")
				case "/body":
					_, bodyErr = io.Copy(io.Discard, r.Body)
				}
			})},
			Door{Network: "tcp", Address: at(443), TLS: true, Handler: says("tls")},
		)
		for name, c := range map[string]struct {
			port  int
			sends string
			reads bool
			after time.Duration
		}{
			"says nothing":            {80, "", true, headerTimeout},
			"half a header":           {80, "GET / HTTP/1.1\r\nHo", true, headerTimeout},
			"half a handshake":        {443, "\x16\x03\x01\x02\x00\x01", true, headerTimeout},
			"one request and no more": {80, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", true, idleTimeout},
			"half a body":             {80, "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345", true, bodyTimeout},
			"half a body for nobody":  {80, "POST /ignore HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345", true, restTimeout},
			"reads nothing":           {80, "GET /large HTTP/1.1\r\nHost: x\r\n\r\n", false, writeTimeout},
		} {
			conn := w.dial(c.port)
			io.WriteString(conn, c.sends)
			start := time.Now()
			if c.reads {
				io.Copy(io.Discard, conn)
			} else {
				time.Sleep(100 * time.Millisecond)
				for w.front.Counters()["front_connections"] > 0 {
					time.Sleep(10 * time.Millisecond)
				}
			}
			if took := time.Since(start); took < c.after || took > c.after+time.Second {
				t.Errorf("%s: ended after %v, want %v", name, took, c.after)
			}
			conn.Close()
			time.Sleep(time.Second)
		}
		if err, ok := bodyErr.(net.Error); !ok || !err.Timeout() {
			t.Errorf("the handler's read failed with %v", bodyErr)
		}
	})
}

func TestASlowButSteadyBodyIsNotCutOff(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(80), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			time.Sleep(2 * bodyTimeout) // a handler may take its time once it has the body
			fmt.Fprint(w, n, err, r.Context().Err())
		})})
		c := w.dial(80)
		defer c.Close()
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
		for range 10 {
			time.Sleep(50 * time.Second)
			io.WriteString(c, "x")
		}
		if got := answer(c); got != "200 10 <nil> <nil>" {
			t.Error(got)
		}
		if got := ask(c, "/"); got != "200 0 <nil> <nil>" {
			t.Errorf("the request after it: %s", got)
		}
	})
}

func TestBadRequestsAreCounted(t *testing.T) {
	for name, c := range map[string]struct {
		sends string
		bad   uint64
	}{
		"a good one":             {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 0},
		"two good ones":          {"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 0},
		"with a body":            {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", 0},
		"nothing":                {"", 0},
		"no request":             {"hello\r\n\r\n", 1},
		"a good one, then none":  {"GET / HTTP/1.1\r\nHost: x\r\n\r\n|hello\r\n\r\n", 1},
		"the two together":       {"GET / HTTP/1.1\r\nHost: x\r\n\r\nhello\r\n\r\n", 1},
		"no host":                {"GET / HTTP/1.1\r\n\r\n", 1},
		"two lengths":            {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", 1},
		"a strange encoding":     {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nx", 1},
		"too large":              {"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", headerBytes+8192) + "\r\n\r\n", 1},
		"cut short":              {"GET / HTTP/1.1\r\nHo", 1},
		"a strange expectation":  {"GET / HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n", 1},
		"untrusted PROXY header": {"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 1},
		"OPTIONS *":              {"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 0},
	} {
		inWorld(t, Config{Certificate: NewCertificates("node", func(string) bool { return false }).Get}, func(w *world) {
			w.set(Door{Network: "tcp", Address: at(80), Handler: says("x")}, Door{Network: "tcp", Address: at(443), Handler: says("x"), TLS: true})
			for _, conn := range []net.Conn{w.dial(80), tls.Client(w.dial(443), &tls.Config{InsecureSkipVerify: true})} {
				before := w.front.Counters()["front_bad_requests_total"]
				for piece := range strings.SplitSeq(c.sends, "|") {
					io.WriteString(conn, piece)
					time.Sleep(time.Second)
				}
				conn.Close()
				time.Sleep(time.Second)
				if got := w.front.Counters()["front_bad_requests_total"] - before; got != c.bad {
					t.Errorf("%s: %d were counted, want %d", name, got, c.bad)
				}
			}
		})
	}
}

func TestBrokenHandshakesAreCountedNotLogged(t *testing.T) {
	inWorld(t, Config{Certificate: NewCertificates("node", func(string) bool { return false }).Get}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(443), TLS: true, Handler: says("tls")})
		c := w.dial(443)
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		ended(c)
		c.Close()
		w.counted("front_tls_handshake_errors_total", 1)
		if w.log.Len() > 0 {
			t.Errorf("logged %s", w.log.String())
		}
	})
}

// header is a PROXY header for a client at 198.51.100.7, port 4444.
func header(version byte) *proxyproto.Header {
	return proxyproto.HeaderProxyFromAddrs(version,
		&net.TCPAddr{IP: net.IPv4(198, 51, 100, 7), Port: 4444}, &net.TCPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 80})
}

func TestOnlyTrustedProxyHeadersAreBelieved(t *testing.T) {
	bytesOf := func(h *proxyproto.Header) string {
		b, err := h.Format()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const client, peer = "198.51.100.7:4444", "192.0.2.1:"
	datagram := header(2)
	datagram.TransportProtocol = proxyproto.UDPv4
	datagram.SourceAddr, datagram.DestinationAddr = &net.UDPAddr{IP: net.IPv4(198, 51, 100, 7), Port: 4444}, &net.UDPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 80}
	for name, c := range map[string]struct {
		trusted string
		header  string
		want    string // "": the connection is closed
		errors  uint64
	}{
		"version 1":                 {"192.0.2.0/24", bytesOf(header(1)), client, 0},
		"version 2":                 {"192.0.2.0/24", bytesOf(header(2)), client, 0},
		"its own health check":      {"192.0.2.0/24", bytesOf(&proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}), peer, 0},
		"unknown":                   {"192.0.2.0/24", "PROXY UNKNOWN\r\n", peer, 0},
		"trusted, but no header":    {"192.0.2.0/24", "", "", 1},
		"trusted, but malformed":    {"192.0.2.0/24", "PROXY TCP4 198.51.100.7 1 2\r\n", "", 1},
		"trusted, but of datagrams": {"192.0.2.0/24", bytesOf(datagram), "", 1},
		"somebody else":             {"10.0.0.0/8", bytesOf(header(1)), "", 0},
		"somebody else, version 2":  {"10.0.0.0/8", bytesOf(header(2)), "", 0},
		"somebody else, no header":  {"10.0.0.0/8", "", peer, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, Config{ProxyHeadersFrom: []netip.Prefix{netip.MustParsePrefix(c.trusted)}}, func(w *world) {
				w.set(
					Door{Network: "tcp", Address: at(80), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						io.WriteString(w, r.RemoteAddr)
					})},
					Door{Network: "tcp", Address: at(9000), Conn: func(c net.Conn) {
						line, err := bufio.NewReader(c).ReadString('\n')
						if err == nil && line == "hello\n" {
							fmt.Fprint(c, c.RemoteAddr())
							closeWrite(c)
						}
						io.Copy(io.Discard, c)
					}},
				)
				for port, send := range map[int]string{80: "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 9000: "hello\n"} {
					conn := w.dial(port)
					io.WriteString(conn, c.header+send)
					time.AfterFunc(time.Second, func() { closeWrite(conn) })
					got, _ := io.ReadAll(conn)
					conn.Close()
					if head, body, ok := strings.Cut(string(got), "\r\n\r\n"); ok && strings.HasPrefix(head, "HTTP/1.1 200") {
						got = []byte(body)
					} else if port == 80 {
						got = nil
					}
					if c.want == "" && len(got) > 0 || !strings.HasPrefix(string(got), c.want) {
						t.Errorf("port %d: got %q, want %q", port, got, c.want)
					}
				}
				w.counted("front_proxy_header_errors_total", 2*c.errors)
				w.counted("front_connections", 0)
			})
		})
	}
}

func TestAProxyHeaderMustComeInTime(t *testing.T) {
	inWorld(t, Config{ProxyHeadersFrom: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}}, func(w *world) {
		w.set(Door{Network: "tcp", Address: at(80), Handler: says("x")}, Door{Network: "tcp", Address: at(9000), Conn: echo})
		for _, port := range []int{80, 9000} {
			c := w.dial(port)
			io.WriteString(c, "PRO")
			if took := ended(c); !near(took, proxyHeaderTimeout) {
				t.Errorf("port %d: ended after %v", port, took)
			}
			c.Close()
		}
	})
}

func TestAPanicCostsItsOwnRequest(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		w.set(
			Door{Network: "tcp", Address: at(80), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/panic":
					panic("at the disco")
				case "/abort":
					panic(http.ErrAbortHandler)
				}
				io.WriteString(w, "fine")
			})},
			Door{Network: "tcp", Address: at(9000), Conn: func(net.Conn) { panic("on the streets") }},
			Door{Network: "tcp", Address: at(81), Handler: http.NotFoundHandler(), Relay: func(q *http1.Request, _ *http1.Response, _ func() []byte) (bool, http1.Begun) {
				if string(q.Path) == "/panic" {
					panic("of London")
				}
				return false, nil
			}},
		)
		other := w.dial(80)
		defer other.Close()
		for range 5 {
			c := w.dial(80)
			if got := ask(c, "/panic"); got != "unexpected EOF" {
				t.Errorf("the one who asked for it: %s", got)
			}
			c.Close()
		}
		c := w.dial(80)
		ask(c, "/abort") // meant to be
		c.Close()
		flow := w.dial(9000)
		ended(flow)
		flow.Close()
		c = w.dial(81)
		if got := ask(c, "/panic"); got != "unexpected EOF" {
			t.Errorf("the one whose relay panics: %s", got)
		}
		c.Close()
		if got := ask(other, "/"); got != "200 fine" {
			t.Errorf("another: %s", got)
		}
		w.counted("front_panics_total", 7)
		if n := strings.Count(w.log.String(), "a handler panicked"); n != 3 { // the first, second and fourth
			t.Errorf("%d were logged:\n%s", n, w.log.String())
		}
		if !strings.Contains(w.log.String(), "front_test.go") {
			t.Errorf("no stack in\n%s", w.log.String())
		}
	})
}

func TestARetiredFrontServesOnAndKeepsNoConnection(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		w.set(
			Door{Network: "tcp", Address: at(80), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					time.Sleep(5 * time.Second)
				}
				io.WriteString(w, "done")
			})},
			Door{Network: "tcp", Address: at(9000), Conn: echo},
		)
		busy, idle, flow := w.dial(80), w.dial(80), w.dial(9000)
		fmt.Fprint(busy, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
		ask(idle, "/")
		time.Sleep(time.Second)
		w.front.Retire()
		if took := ended(idle); took > time.Second {
			t.Errorf("the idle connection ended after %v", took)
		}
		if got := answer(busy); got != "200 done" {
			t.Errorf("the request in flight: %s", got)
		}
		if took := ended(busy); took > time.Second {
			t.Errorf("its connection ended %v after the answer", took)
		}
		late := w.dial(80)
		if got := ask(late, "/"); got != "200 done" {
			t.Errorf("who comes late: %s", got)
		}
		if took := ended(late); took > time.Second {
			t.Errorf("who comes late keeps the connection for %v", took)
		}
		io.WriteString(flow, "y")
		if !full(flow, make([]byte, 1)) {
			t.Error("the flow ended")
		}
		flow.Close()
	})
}

func TestCloseWaitsForWhatIsInFlight(t *testing.T) {
	inWorld(t, Config{}, func(w *world) {
		w.set(
			Door{Network: "tcp", Address: at(80), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					time.Sleep(20 * time.Second)
				}
				io.WriteString(w, "done")
			})},
			Door{Network: "tcp", Address: at(9000), Conn: echo},
		)
		busy, idle, flow := w.dial(80), w.dial(80), w.dial(9000)
		fmt.Fprint(busy, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
		ask(idle, "/")
		io.WriteString(flow, "x")
		full(flow, make([]byte, 1))
		var people sync.WaitGroup
		people.Go(func() {
			if got := answer(busy); got != "200 done" {
				t.Errorf("the request in flight: %s", got)
			}
		})
		people.Go(func() {
			if took := ended(idle); took > time.Second {
				t.Errorf("the idle connection ended after %v", took)
			}
		})
		people.Go(func() {
			time.Sleep(10 * time.Second)
			if c, err := w.person.Dial(w.Context(), "tcp", "203.0.113.1:80"); err == nil {
				c.Close()
				t.Error("a closing door took a connection")
			}
			io.WriteString(flow, "y")
			if !full(flow, make([]byte, 1)) {
				t.Error("the flow ended early")
			}
			time.Sleep(20 * time.Second)
			flow.Close()
		})
		start := time.Now()
		ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
		defer cancel()
		if err := w.front.Close(ctx); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); !near(took, 30*time.Second) {
			t.Errorf("closed after %v, want the 30 s of the flow", took)
		}
		people.Wait()
		if err := w.front.Set(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("set after close: %v", err)
		}
	})
}

func TestCloseCutsOffWhatDoesNotEnd(t *testing.T) {
	inWorld(t, Config{Certificate: NewCertificates("node", func(string) bool { return false }).Get}, func(w *world) {
		var cut atomic.Int64
		endless := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			cut.Add(1)
		})
		hijacks := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.Copy(io.Discard, c)
			cut.Add(1)
		})
		w.set(
			Door{Network: "tcp", Address: at(80), Handler: endless},
			Door{Network: "tcp", Address: at(81), Handler: hijacks},
			Door{Network: "tcp", Address: at(443), Handler: endless, TLS: true},
			Door{Network: "tcp", Address: at(9000), Conn: func(c net.Conn) { echo(c); cut.Add(1) }},
		)
		for _, port := range []int{80, 81} {
			c := w.dial(port)
			defer c.Close()
			fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		}
		flow := w.dial(9000)
		defer flow.Close()
		tr := &http.Transport{DialContext: w.person.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		var people sync.WaitGroup
		people.Go(func() {
			if res, err := (&http.Client{Transport: tr}).Get("https://203.0.113.1/"); err == nil {
				res.Body.Close()
				t.Errorf("got %s", res.Status)
			}
		})
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		err := w.front.Close(ctx)
		if took := time.Since(start); !near(took, 10*time.Second) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v after %v", err, took)
		}
		if cut.Load() != 4 {
			t.Errorf("%d of 4 handlers had ended when Close returned", cut.Load())
		}
		people.Wait()
	})
}

func TestRealSockets(t *testing.T) {
	l, err := Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen("tcp", l.Addr().String()); err == nil || !strings.Contains(err.Error(), "address already in use: another process listens there") {
		t.Errorf("an address in use: %v", err)
	}
	if _, err := Listen("tcp", "192.0.2.1:0"); err == nil || !strings.Contains(err.Error(), "no interface of this machine has it") {
		t.Errorf("an address elsewhere: %v", err)
	}
}

// onLoopback opens doors at ports of the system's choice, and returns where.
func onLoopback(tb testing.TB, c Config, doors ...Door) []string {
	var at []string
	c.Listen = func(network, _ string) (net.Listener, error) {
		l, err := Listen(network, "127.0.0.1:0")
		if err == nil {
			at = append(at, l.Addr().String())
		}
		return l, err
	}
	f := New(c)
	for i := range doors {
		doors[i].Network, doors[i].Address = "tcp", netip.AddrPortFrom(netip.Addr{}, uint16(i+1))
	}
	if err := f.Set(doors); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := f.Close(tb.Context()); err != nil && tb.Context().Err() == nil {
			tb.Error(err)
		}
	})
	return at
}
