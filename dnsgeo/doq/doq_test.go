package doq

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/perigee-net/perigee/dnsgeo/crowd"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

const roundTrip = 20 * time.Millisecond

// world is a Door, and a client of it far away.
type world struct {
	*testing.T
	door   *Door
	client *quic.Transport
	cache  tls.ClientSessionCache
	served chan error
}

func inWorld(t *testing.T, f func(w *world)) {
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
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		server := in.Host("server", spec.Location{}, netip.MustParseAddr("203.0.113.1"))
		person := in.Host("client", spec.Location{}, netip.MustParseAddr("192.0.2.1"))
		in.Link("server", "client", memnet.Path{Delay: roundTrip / 2})
		packets := func(h *memnet.Host, at string) net.PacketConn {
			p, err := h.ListenPacket("udp", at)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		w := &world{T: t, cache: tls.NewLRUClientSessionCache(1), served: make(chan error, 1)}
		w.door, err = Open(Config{
			Packets: packets(server, ":853"), MaxQuery: 4096,
			TLS:      &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{ALPN}},
			TokenKey: [32]byte{1}, ResetKey: [32]byte{2},
			Answer: func(room, query []byte, from netip.Addr) []byte {
				if from != netip.MustParseAddr("192.0.2.1") {
					t.Errorf("it came from %s", from)
				}
				if string(query[2:]) == "not a query" {
					return nil
				}
				return append(append(room[:0], query...), " answered"...)
			},
			Once: func(query []byte) bool { return strings.HasSuffix(string(query), "once") },
		})
		if err != nil {
			t.Fatal(err)
		}
		go func() { w.served <- w.door.Serve() }()
		p := packets(person, ":0")
		w.client = &quic.Transport{Conn: p}
		f(w)
		if err := w.door.Close(); err != nil {
			t.Error(err)
		}
		if err := <-w.served; err != nil {
			t.Error(err)
		}
		w.client.Close()
		p.Close()
		time.Sleep(time.Minute)
	})
}

func (w *world) dial() *quic.Conn {
	w.Helper()
	conn, err := w.client.DialEarly(w.Context(), &net.UDPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 853},
		&tls.Config{InsecureSkipVerify: true, ServerName: "ns1.example.com", NextProtos: []string{ALPN}, ClientSessionCache: w.cache}, nil)
	if err != nil {
		w.Fatal(err)
	}
	return conn
}

// query is a message as it stands on a stream: length, id 0, text.
func query(text string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(2+len(text))), "\x00\x00"+text...)
}

// ask sends what it is given on a stream, ends it, and returns the response.
func ask(w *world, conn *quic.Conn, sent []byte) (string, error) {
	w.Helper()
	s, err := conn.OpenStreamSync(w.Context())
	if err != nil {
		return "", err
	}
	if _, err := s.Write(sent); err != nil {
		return "", err
	}
	s.Close()
	got, err := io.ReadAll(s)
	if err != nil {
		return "", err
	}
	if len(got) < 4 || int(binary.BigEndian.Uint16(got)) != len(got)-2 {
		w.Errorf("the response is % x", got)
		return "", nil
	}
	return string(got[4:]), nil
}

func TestEachStreamHasItsQueryAndItsResponse(t *testing.T) {
	inWorld(t, func(w *world) {
		conn := w.dial()
		begin := time.Now()
		for _, text := range []string{"a whole query", "another one", strings.Repeat("long ", 800)} {
			if got, err := ask(w, conn, query(text)); err != nil || got != text+" answered" {
				w.Errorf("got %q, %v", got, err)
			}
		}
		if took := time.Since(begin); took > 6*roundTrip {
			w.Errorf("a handshake, two queries in a round trip each and one in two took %v", took)
		}
		if c := w.door.Counters(); c["dns_quic_connections"] != 1 || c["dns_quic_connections_total"] != 1 || c["dns_quic_protocol_errors_total"] != 0 {
			w.Errorf("counted %v", c)
		}
		conn.CloseWithError(noError, "")
	})
}

// RFC 9250 §4.3.3.
func TestWhoDoesNotKeepToTheProtocolIsClosed(t *testing.T) {
	for name, sent := range map[string][]byte{
		"an id":            []byte("\x00\x0f\x00\x01a whole query"),
		"nothing":          {},
		"half a length":    {0},
		"half a query":     query("a whole query")[:9],
		"two queries":      append(query("a whole query"), query("another one")...),
		"too short":        query("short"),
		"too long":         query(strings.Repeat("x", 5000)),
		"what is no query": query("not a query"),
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				conn := w.dial()
				_, err := ask(w, conn, sent)
				var closed *quic.ApplicationError
				if !errors.As(err, &closed) || closed.ErrorCode != protocolError {
					w.Errorf("got %v, want DOQ_PROTOCOL_ERROR", err)
				}
				if n := w.door.Counters()["dns_quic_protocol_errors_total"]; n != 1 {
					w.Errorf("counted %d", n)
				}
			})
		})
	}
}

func TestOneWayStreamsCannotBeOpened(t *testing.T) {
	inWorld(t, func(w *world) {
		conn := w.dial()
		<-conn.HandshakeComplete()
		if _, err := conn.OpenUniStream(); err == nil {
			w.Error("one was opened")
		}
		conn.CloseWithError(noError, "")
	})
}

func TestASlowQueryEndsAloneAndASilentConnectionWhole(t *testing.T) {
	inWorld(t, func(w *world) {
		conn := w.dial()
		slow, err := conn.OpenStreamSync(w.Context())
		if err != nil {
			w.Fatal(err)
		}
		if _, err := slow.Write(query("a whole query")[:5]); err != nil {
			w.Fatal(err)
		}
		begin := time.Now()
		var reset *quic.StreamError
		if _, err := io.ReadAll(slow); !errors.As(err, &reset) || reset.ErrorCode != unspecified {
			w.Errorf("got %v", err)
		}
		if took := time.Since(begin).Round(time.Second); took != streamTime {
			w.Errorf("it was waited for %v", took)
		}
		if got, err := ask(w, conn, query("a whole query")); err != nil || got != "a whole query answered" {
			w.Errorf("another stream: %q, %v", got, err)
		}
		begin = time.Now()
		<-conn.Context().Done()
		if took := time.Since(begin); took < idleTime-time.Second || took > idleTime+time.Second {
			w.Errorf("it was silent for %v", took)
		}
		time.Sleep(time.Second)
		if n := w.door.Counters()["dns_quic_connections"]; n != 0 {
			w.Errorf("%d connections are left", n)
		}
	})
}

// A client that comes again asks in its first packets. What must not be done twice waits for the handshake.
func TestEarlyQueriesAreAnsweredEarlyUnlessTheyAreForOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		conn := w.dial()
		if _, err := ask(w, conn, query("a whole query")); err != nil {
			w.Fatal(err)
		}
		conn.CloseWithError(noError, "")
		for text, trips := range map[string]time.Duration{"a whole query": 1, "this one is for once": 2} {
			begin := time.Now()
			again := w.dial()
			if got, err := ask(w, again, query(text)); err != nil || got != text+" answered" {
				w.Errorf("got %q, %v", got, err)
			}
			if !again.ConnectionState().Used0RTT {
				w.Error("it was not early")
			}
			if took := time.Since(begin); took < trips*roundTrip || took >= (trips+1)*roundTrip {
				w.Errorf("%s took %v, want %d round trips", text, took, trips)
			}
			again.CloseWithError(noError, "")
		}
		if n := w.door.Counters()["dns_quic_early_queries_total"]; n != 2 {
			w.Errorf("counted %d", n)
		}
	})
}

func TestHandshakesOfAClientAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDoor(Config{})
		var ends []context.CancelFunc
		arrive := func(from string) error {
			ctx, end := context.WithCancel(t.Context())
			ends = append(ends, end)
			_, err := d.arrives(ctx, &quic.ClientInfo{RemoteAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 1))})
			return err
		}
		for range maxHandshakesPerClient {
			if err := arrive("2001:db8:1::1"); err != nil {
				t.Fatal(err)
			}
		}
		if arrive("2001:db8:1:2::1") == nil {
			t.Error("one more of the network was let in")
		}
		if arrive("2001:db8:2::1") != nil {
			t.Error("another client was not")
		}
		for i := range maxHandshakes - maxHandshakesPerClient - 1 {
			if arrive(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}).String()) != nil {
				t.Fatal("another client was not")
			}
		}
		if arrive("2001:db8:3::1") == nil {
			t.Error("one more than there may be was let in")
		}
		if !d.mustProve(nil) {
			t.Error("with so many handshakes nobody has to show where it is")
		}
		for _, end := range ends {
			end()
		}
		synctest.Wait()
		if d.handshakes != 0 || len(d.beginners) != 0 || d.mustProve(nil) {
			t.Errorf("%d handshakes of %d clients are left", d.handshakes, len(d.beginners))
		}
		if n := d.Counters()["dns_quic_connections_over_bounds_total"]; n != 2 {
			t.Errorf("%d were refused", n)
		}
	})
}

// At the bound of connections the one that is silent for longest goes, and hears why.
func TestWhoIsSilentMakesRoom(t *testing.T) {
	inWorld(t, func(w *world) {
		silent := w.dial()
		if _, err := ask(w, silent, query("a whole query")); err != nil {
			w.Fatal(err)
		}
		ended := 0
		for i := range crowd.Max { // the others are of as many networks
			g := &guest{door: w.door, from: netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1})}
			g.settled.Do(func() {})
			w.door.enters(g, func() { ended++ })
		}
		synctest.Wait()
		var why *quic.ApplicationError
		if err := context.Cause(silent.Context()); !errors.As(err, &why) {
			time.Sleep(roundTrip)
			if err = context.Cause(silent.Context()); !errors.As(err, &why) {
				w.Fatalf("it goes on: %v", err)
			}
		}
		if why.ErrorCode != excessiveLoad || ended != 0 {
			w.Errorf("it ended by %v, and %d others did", why, ended)
		}
		if c := w.door.Counters(); c["dns_quic_connections"] != crowd.Max || c["dns_quic_connections_displaced_total"] != 1 {
			w.Errorf("counted %v", c)
		}
	})
}

// Queries in flight are bounded over all connections.
func TestTooManyQueriesAreReset(t *testing.T) {
	inWorld(t, func(w *world) {
		w.door.queries.Store(maxQueries)
		conn := w.dial()
		var why *quic.StreamError
		if _, err := ask(w, conn, query("a whole query")); !errors.As(err, &why) || why.ErrorCode != excessiveLoad {
			w.Errorf("got %v", err)
		}
		w.door.queries.Store(0)
		if got, err := ask(w, conn, query("a whole query")); err != nil || got != "a whole query answered" {
			w.Errorf("then got %q, %v", got, err)
		}
		if n := w.door.Counters()["dns_quic_queries_over_bounds_total"]; n != 1 {
			w.Errorf("counted %d", n)
		}
	})
}
