package dnsgeo

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// remote is a connection of a client.
type remote struct {
	net.Conn
	from netip.Addr
}

func (r remote) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(r.from, 5353))
}

// dialFrom connects from an address.
func (d *door) dialFrom(from netip.Addr) net.Conn {
	here, there := net.Pipe()
	d.conns <- remote{there, from}
	return here
}

// ended says whether the other side has closed a connection.
func ended(conn net.Conn) bool {
	synctest.Wait()
	_ = conn.SetReadDeadline(time.Now())
	_, err := conn.Read(make([]byte, 1))
	return err != nil && !isTimeout(err)
}

func isTimeout(err error) bool {
	t, ok := err.(net.Error)
	return ok && t.Timeout()
}

func isAnswered(t *testing.T, conn net.Conn) {
	t.Helper()
	send(t, conn, framed(packed(t, "www.example.com.", dns.TypeA)))
	if got := receive(t, conn); len(got.Answer) != 1 {
		t.Errorf("got %v", got)
	}
}

func TestAClientThatOpensManyConnectionsTakesItsOwnPlaces(t *testing.T) {
	serving(t, "www A 192.0.2.1", func(t *testing.T, s *Server, _ *wire, d *door) {
		conns := make([]net.Conn, maxConnsPerClient)
		for i := range conns {
			conns[i] = d.dialFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
			time.Sleep(time.Millisecond)
		}
		isAnswered(t, conns[0]) // so the second is silent for longest
		other := d.dialFrom(netip.MustParseAddr("198.51.100.1"))
		one := d.dialFrom(netip.MustParseAddr("192.0.2.1"))
		if !ended(conns[1]) {
			t.Error("the one that is silent for longest stays")
		}
		if n := s.Counters()["dns_connections_displaced_total"]; n != 1 {
			t.Errorf("%d went", n)
		}
		for _, conn := range []net.Conn{conns[0], conns[2], other, one} {
			_ = conn.SetReadDeadline(time.Time{})
			isAnswered(t, conn)
		}
	})
}

func TestSilentConnectionsKeepNobodyOut(t *testing.T) {
	const silent = 10_000
	serving(t, "www A 192.0.2.1", func(t *testing.T, s *Server, _ *wire, d *door) {
		honest := d.dialFrom(netip.MustParseAddr("203.0.113.9"))
		isAnswered(t, honest)
		for i := range silent {
			d.dialFrom(netip.AddrFrom4([4]byte{10, byte(i >> 3), byte(i), byte(i >> 8)})) // of many networks, some with more
			if i%1000 == 0 {
				isAnswered(t, honest)
				newer := d.dialFrom(netip.MustParseAddr("203.0.112.7"))
				isAnswered(t, newer)
				newer.Close()
				synctest.Wait()
			}
		}
		synctest.Wait()
		if c := s.Counters(); c["dns_connections"] > maxConns || c["dns_connections_displaced_total"] < silent-maxConns {
			t.Errorf("%d are open, %d went", c["dns_connections"], c["dns_connections_displaced_total"])
		}
	})
}

func TestAtTheBoundTheGreediestGoesFirst(t *testing.T) {
	var w crowd
	from := func(network, host int) netip.Addr {
		return netip.AddrFrom4([4]byte{10, byte(network >> 8), byte(network), byte(host)})
	}
	enter := func(a netip.Addr, heard int64) (*conn, *conn) {
		c := new(conn)
		c.heard.Store(heard)
		return c, w.enter(c, a)
	}
	for i := range 100 { // of one client, asking all the time
		enter(from(0, i), int64(1000+i))
	}
	for i := range maxConns - 100 { // of many, silent
		enter(from(1+i, 0), int64(i))
	}
	for i := range 98 {
		_, gone := enter(from(5000+i, 0), 2000)
		if gone == nil || gone.heard.Load() != int64(1000+i) {
			t.Fatalf("%d: %v went", i, gone)
		}
	}
	if w.size() != maxConns || len(w.clients) != maxConns-1 {
		t.Errorf("%d connections of %d clients", w.size(), len(w.clients))
	}
	c, _ := enter(from(9999, 0), 3000)
	w.leave(c)
	w.leave(c) // twice is once
	if w.size() != maxConns-1 {
		t.Errorf("%d connections", w.size())
	}
}

func TestThisMachineMayHoldManyConnections(t *testing.T) {
	var w crowd
	for range 2 * maxConnsPerClient {
		if w.enter(new(conn), netip.MustParseAddr("127.0.0.1")) != nil {
			t.Fatal("one went")
		}
	}
}

// A client is served in any order of coming and going, and what the crowd knows is what there is.
func TestTheCrowdKeepsCount(t *testing.T) {
	var w crowd
	var all []*conn
	at := uint64(1)
	draw := func(n int) int { at = at*6364136223846793005 + 1442695040888963407; return int(at>>33) % n }
	for range 30_000 {
		if len(all) > 0 && draw(5) == 0 {
			i := draw(len(all))
			w.leave(all[i])
			all[i] = all[len(all)-1]
			all = all[:len(all)-1]
			continue
		}
		c := new(conn)
		all = append(all, c)
		w.enter(c, netip.AddrFrom4([4]byte{10, 0, byte(draw(draw(256) + 1)), 1}))
	}
	n, clients := 0, map[*client]bool{}
	for _, c := range all {
		if c.client != nil {
			n++
			clients[c.client] = true
			if c.client.conns[c.at] != c || w.with[len(c.client.conns)][c.client.at] != c.client {
				t.Fatal("a connection is not where it is looked for")
			}
		}
	}
	if n != w.size() || len(clients) != len(w.clients) || n > maxConns {
		t.Errorf("%d connections of %d clients, the crowd has %d of %d", n, len(clients), w.size(), len(w.clients))
	}
}

// counted counts what is written to a connection.
type counted struct {
	net.Conn
	writes *int
}

func (c counted) Write(b []byte) (int, error) { *c.writes++; return c.Conn.Write(b) }

func TestQueriesThatComeTogetherAreAnsweredTogether(t *testing.T) {
	serving(t, "www A 192.0.2.1", func(t *testing.T, _ *Server, _ *wire, d *door) {
		here, there := net.Pipe()
		writes := 0
		d.conns <- counted{there, &writes}
		defer here.Close()
		query := framed(packed(t, "www.example.com.", dns.TypeA))
		for _, many := range []int{5, 500} {
			writes = 0
			var writer sync.WaitGroup
			writer.Go(func() { _, _ = here.Write(bytes.Repeat(query, many)) })
			for range many {
				if got := receive(t, here); len(got.Answer) != 1 {
					t.Fatalf("got %v", got)
				}
			}
			writer.Wait()
			if most := 2 + many*len(query)/(streamSize/2); writes > most {
				t.Errorf("%d responses took %d writes, want %d", many, writes, most)
			}
		}
	})
}

// certified makes a certificate.
func certified(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"ns1.example.com"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestQueriesAreAnsweredOverTLS(t *testing.T) {
	certificate := certified(t)
	synctest.Test(t, func(t *testing.T) {
		s, d := serverOf(t, "www A 192.0.2.1"), newDoor()
		served := make(chan error)
		go func() {
			served <- s.ServeTLS(d, &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"dot"}})
		}()
		for _, alpn := range []string{"dot", ""} { // RFC 7858 is older than its name
			config := &tls.Config{InsecureSkipVerify: true}
			if alpn != "" {
				config.NextProtos = []string{alpn}
			}
			conn := tls.Client(d.dial(), config)
			isAnswered(t, conn)
			isAnswered(t, conn)
			if got := conn.ConnectionState().NegotiatedProtocol; got != alpn {
				t.Errorf("spoke %q, want %q", got, alpn)
			}
			conn.Close()
		}
		web := tls.Client(d.dial(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err := web.Handshake(); err == nil {
			t.Error("a browser was let in")
		}
		silent := d.dial()
		if took := closes(t, silent); took != idleTimeout {
			t.Errorf("a handshake that never comes is waited for %v", took)
		}
		synctest.Wait()
		if c := s.Counters(); c["dns_queries_tls_total"] != 4 || c["dns_tls_connections_total"] != 4 || c["dns_tls_handshake_errors_total"] != 2 {
			t.Errorf("counted %v", c)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// BenchmarkServeStream is queries of one connection over the loopback, 100 in flight.
func BenchmarkServeStream(b *testing.B) {
	certificate := certified(b)
	for _, by := range []Transport{TCP, TLS} {
		b.Run(by.String(), func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			s := serverOf(b, "www A 192.0.2.1")
			var served sync.WaitGroup
			served.Go(func() {
				_ = s.serveStream(l, by, &tls.Config{Certificates: []tls.Certificate{certificate}})
			})
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			if by == TLS {
				conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
			}
			query, err := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA).Pack()
			if err != nil {
				b.Fatal(err)
			}
			const flight = 100
			queries, responses := bytes.Repeat(framed(query), flight), make([]byte, 64<<10)
			b.ReportAllocs()
			b.ResetTimer()
			for range (b.N + flight - 1) / flight {
				if _, err := conn.Write(queries); err != nil {
					b.Fatal(err)
				}
				got := 0
				for have := 0; got < flight; {
					n, err := conn.Read(responses[have:])
					if err != nil {
						b.Fatal(err)
					}
					have += n
					rest := responses[:have]
					for whole(rest) {
						rest = rest[2+int(binary.BigEndian.Uint16(rest)):]
						got++
					}
					have = copy(responses, rest)
				}
			}
			b.StopTimer()
			conn.Close()
			if err := s.Close(); err != nil {
				b.Error(err)
			}
			served.Wait()
		})
	}
}
