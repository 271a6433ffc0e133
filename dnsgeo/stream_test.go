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

	"github.com/perigee-net/perigee/dnsgeo/crowd"
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
		conns := make([]net.Conn, crowd.MaxPerClient)
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
		if c := s.Counters(); c["dns_connections"] > crowd.Max || c["dns_connections_displaced_total"] < silent-crowd.Max {
			t.Errorf("%d are open, %d went", c["dns_connections"], c["dns_connections_displaced_total"])
		}
	})
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
