package memnet

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/quic-go/quic-go"
)

func TestItCarriesHTTP(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, client, origin, _ *Host) {
		in.Name("origin.test", tokyoAddr)
		in.Link("seoul", "tokyo", Path{Delay: 50 * time.Millisecond})
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(w, r.Body)
			fmt.Fprint(w, " from ", r.URL.Path)
		})}
		l := listen(t, origin, ":80")
		var wg sync.WaitGroup
		wg.Go(func() { server.Serve(l) })
		transport := &http.Transport{DialContext: client.Dial}
		get := func(path, body string) {
			req, err := http.NewRequestWithContext(t.Context(), "POST", "http://origin.test"+path, bytes.NewReader([]byte(body)))
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := transport.RoundTrip(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if got, err := io.ReadAll(resp.Body); err != nil || string(got) != body+" from "+path {
				t.Errorf("got %q, %v", got, err)
			}
		}

		start := time.Now()
		get("/", "hello")
		took(t, "dial and request", start, 200*time.Millisecond)
		start = time.Now()
		get("/again", "hello")
		took(t, "a request on the open connection", start, 100*time.Millisecond)
		start = time.Now()
		var clients sync.WaitGroup
		for i := range 100 {
			clients.Go(func() { get(fmt.Sprint("/", i), fmt.Sprint("body ", i)) })
		}
		clients.Wait()
		took(t, "a hundred at once", start, 200*time.Millisecond)

		transport.CloseIdleConnections()
		if err := server.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

func TestItCarriesQUIC(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, client, server, _ *Host) {
		in.Link("seoul", "tokyo", Path{Delay: 50 * time.Millisecond})
		cert := certificate(t)
		st := &quic.Transport{Conn: listenPacket(t, server, ":443")}
		l, err := st.Listen(&tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"echo"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			conn, err := l.Accept(context.Background())
			if err != nil {
				t.Error(err)
				return
			}
			s, err := conn.AcceptStream(context.Background())
			if err != nil {
				t.Error(err)
				return
			}
			io.Copy(s, s)
			s.Close()
			<-conn.Context().Done()
		})

		ct := &quic.Transport{Conn: listenPacket(t, client, ":0")}
		roots := x509.NewCertPool()
		roots.AddCert(cert.Leaf)
		start := time.Now()
		conn, err := ct.Dial(t.Context(), udpAddr(netip.AddrPortFrom(tokyoAddr, 443), false),
			&tls.Config{RootCAs: roots, ServerName: "echo.test", NextProtos: []string{"echo"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < 100*time.Millisecond || d > 110*time.Millisecond {
			t.Errorf("the handshake took %v, want one round trip of 100 ms", d)
		}
		s, err := conn.OpenStreamSync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sent := pattern(1 << 20)
		wg.Go(func() {
			s.Write(sent)
			s.Close()
		})
		if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		conn.CloseWithError(0, "")
		wg.Wait()
		l.Close()
		ct.Close()
		st.Close()
	})
}

func TestItCarriesDNS(t *testing.T) {
	world(t, func(t *testing.T, in *Internet, client, near, _ *Host) {
		near.Announce(anycastAddr)
		handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			w.WriteMsg(new(dns.Msg).SetReply(q))
		})
		var wg sync.WaitGroup
		for _, server := range []*dns.Server{
			{PacketConn: listenPacket(t, near, "203.0.113.1:53"), Handler: handler},
			{Listener: listen(t, near, "203.0.113.1:53"), Handler: handler},
		} {
			started := make(chan struct{})
			server.NotifyStartedFunc = func() { close(started) }
			wg.Go(func() { server.ActivateAndServe() })
			<-started
			defer server.Shutdown()
		}
		for _, network := range []string{"udp", "tcp"} {
			c := &dns.Conn{Conn: dial(t, client, network, "203.0.113.1:53")}
			start := time.Now()
			q := new(dns.Msg).SetQuestion("perigee.test.", dns.TypeA)
			if err := c.WriteMsg(q); err != nil {
				t.Fatal(err)
			}
			a, err := c.ReadMsg()
			if err != nil || a.Id != q.Id {
				t.Fatalf("over %s: got %v, %v", network, a, err)
			}
			took(t, "an answer over "+network, start, in.RoundTrip("seoul", "tokyo"))
			c.Close()
		}
	})
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"echo.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}
