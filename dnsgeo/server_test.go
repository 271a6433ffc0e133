package dnsgeo

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
)

// wire is a datagram socket in memory: what others send to it and what it sends.
type wire struct {
	in, out chan []byte
	once    sync.Once
	closed  chan struct{}
}

func newWire() *wire {
	return &wire{in: make(chan []byte), out: make(chan []byte, 100), closed: make(chan struct{})}
}

func (w *wire) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case m := <-w.in:
		return copy(b, m), &net.UDPAddr{IP: net.IPv4(10, 1, 0, 53), Port: 5353}, nil
	case <-w.closed:
		return 0, nil, net.ErrClosed
	}
}

func (w *wire) WriteTo(b []byte, _ net.Addr) (int, error) {
	w.out <- append([]byte(nil), b...)
	return len(b), nil
}

func (w *wire) Close() error                     { w.once.Do(func() { close(w.closed) }); return nil }
func (w *wire) LocalAddr() net.Addr              { return &net.UDPAddr{} }
func (w *wire) SetDeadline(time.Time) error      { return nil }
func (w *wire) SetReadDeadline(time.Time) error  { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// door is a listener in memory.
type door struct {
	conns  chan net.Conn
	fails  chan error
	once   sync.Once
	closed chan struct{}
}

func newDoor() *door {
	return &door{conns: make(chan net.Conn), fails: make(chan error), closed: make(chan struct{})}
}

func (d *door) Accept() (net.Conn, error) {
	select {
	case c := <-d.conns:
		return c, nil
	case err := <-d.fails:
		return nil, err
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

func (d *door) Close() error   { d.once.Do(func() { close(d.closed) }); return nil }
func (d *door) Addr() net.Addr { return &net.TCPAddr{} }

func (d *door) dial() net.Conn {
	here, there := net.Pipe()
	d.conns <- there
	return here
}

// serving runs f with a server that serves a wire and a door, and closes it.
func serving(t *testing.T, records string, f func(t *testing.T, s *Server, w *wire, d *door)) {
	synctest.Test(t, func(t *testing.T) {
		s, w, d := serverOf(t, records), newWire(), newDoor()
		ended := make(chan error, 2)
		go func() { ended <- s.ServePacket(w) }()
		go func() { ended <- s.ServeStream(d) }()
		synctest.Wait()
		f(t, s, w, d)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := <-ended; err != nil {
				t.Errorf("a closed server ended with %v", err)
			}
		}
	})
}

func packed(t *testing.T, name string, typ uint16) []byte {
	t.Helper()
	m, err := new(dns.Msg).SetQuestion(name, typ).Pack()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func unpacked(t *testing.T, b []byte) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatal(err)
	}
	return m
}

func framed(m []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...)
}

func send(t *testing.T, conn net.Conn, b []byte) {
	t.Helper()
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, conn net.Conn) *dns.Msg {
	t.Helper()
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, b); err != nil {
		t.Fatal(err)
	}
	return unpacked(t, b)
}

// closes waits until the other side closes and returns how long it took.
func closes(t *testing.T, conn net.Conn) time.Duration {
	t.Helper()
	start := time.Now()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("got %v, want the end", err)
	}
	return time.Since(start)
}

func TestDatagramsAreAnswered(t *testing.T) {
	serving(t, site, func(t *testing.T, s *Server, w *wire, _ *door) {
		for range 50 {
			w.in <- packed(t, "example.com.", dns.TypeA)
		}
		w.in <- []byte("no dns")
		for range 50 {
			if got := unpacked(t, <-w.out); len(got.Answer) != 2 {
				t.Fatalf("got %v", got)
			}
		}
		synctest.Wait()
		if c := s.Counters(); c["dns_queries_total"] != 51 || c["dns_malformed_total"] != 1 || c["dns_answers_success_total"] != 50 {
			t.Errorf("counted %v", c)
		}
	})
}

func TestWhatDoesNotFitADatagramIsFetchedByTCP(t *testing.T) {
	long := "long TXT"
	for i := range 30 {
		long += ` - "` + strings.Repeat(string(rune('a'+i%26)), 60+i) + `"`
	}
	serving(t, strings.Replace(long, " - ", " ", 1), func(t *testing.T, _ *Server, w *wire, d *door) {
		query := packed(t, "long.example.com.", dns.TypeTXT)
		w.in <- query
		if got := unpacked(t, <-w.out); !got.Truncated {
			t.Fatalf("got %v, want TC", got)
		}
		conn := d.dial()
		defer conn.Close()
		send(t, conn, framed(query))
		if got := receive(t, conn); got.Truncated || len(got.Answer) != 30 {
			t.Errorf("got %d records, truncated %v", len(got.Answer), got.Truncated)
		}
	})
}

func TestAConnectionTakesQueriesInAnyPieces(t *testing.T) {
	serving(t, "www A 192.0.2.1", func(t *testing.T, _ *Server, _ *wire, d *door) {
		conn := d.dial()
		defer conn.Close()
		two := append(framed(packed(t, "www.example.com.", dns.TypeA)), framed(packed(t, "none.example.com.", dns.TypeA))...)
		var writer sync.WaitGroup
		writer.Go(func() {
			for _, b := range two {
				time.Sleep(100 * time.Millisecond)
				_, _ = conn.Write([]byte{b})
			}
		})
		if got := receive(t, conn); len(got.Answer) != 1 {
			t.Errorf("got %v", got)
		}
		if got := receive(t, conn); got.Rcode != dns.RcodeNameError {
			t.Errorf("got %v", got)
		}
		writer.Wait()
	})
}

func TestIdleAndSlowConnectionsAreClosed(t *testing.T) {
	serving(t, "www A 192.0.2.1", func(t *testing.T, _ *Server, _ *wire, d *door) {
		idle := d.dial()
		if took := closes(t, idle); took != idleTimeout {
			t.Errorf("an idle connection was closed after %v", took)
		}
		slow := d.dial()
		query := framed(packed(t, "www.example.com.", dns.TypeA))
		send(t, slow, query[:1])
		time.Sleep(idleTimeout / 2)
		send(t, slow, query[1:5]) // a byte now and then is not enough
		if took := closes(t, slow); took != idleTimeout/2 {
			t.Errorf("a slow connection was closed after %v", took)
		}
		deaf := d.dial()
		send(t, deaf, query)
		time.Sleep(idleTimeout + 1)
		if _, err := deaf.Write(query); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("one that takes no response: %v", err)
		}
	})
}

func TestAConnectionThatDoesNotSpeakDNSIsClosed(t *testing.T) {
	serving(t, "www A 192.0.2.1", func(t *testing.T, _ *Server, _ *wire, d *door) {
		for name, b := range map[string][]byte{
			"nothing":    {0, 0},
			"too little": {0, 3, 1, 2, 3},
			"HTTP":       []byte("GE"), // announces 18,245 bytes
			"a response": framed(bytesOf(t, "abcd 8000 0000 0000 0000 0000")),
		} {
			conn := d.dial()
			send(t, conn, b)
			if took := closes(t, conn); took != 0 {
				t.Errorf("%s: closed after %v", name, took)
			}
		}
		conn := d.dial()
		defer conn.Close()
		send(t, conn, framed(bytesOf(t, "abcd 0000 0007 0000 0000 0000")))
		if got := receive(t, conn); got.Rcode != dns.RcodeFormatError {
			t.Errorf("a malformed query got %v", got)
		}
	})
}

// A client that goes on asking is served for as long as a connection lives, and then until it pauses, so that no answer is lost; one
// that never pauses is closed all the same.
func TestAConnectionIsClosedInAPauseOnceItIsOld(t *testing.T) {
	serving(t, "www A 192.0.2.1", func(t *testing.T, _ *Server, _ *wire, d *door) {
		query := framed(packed(t, "www.example.com.", dns.TypeA))
		for _, pause := range []time.Duration{idleTimeout / 2, pauseTime / 2} {
			conn, began := d.dial(), time.Now()
			for time.Since(began) < lifeTime {
				send(t, conn, query)
				receive(t, conn)
				time.Sleep(pause)
			}
			if pause < pauseTime {
				for time.Since(began) < lifeTime+lingerTime-pause {
					send(t, conn, query)
					receive(t, conn)
					time.Sleep(pause)
				}
			}
			closes(t, conn)
			if lived := time.Since(began); lived < lifeTime || lived > lifeTime+lingerTime+pauseTime {
				t.Errorf("asked each %v it lived for %v", pause, lived)
			}
		}
	})
}

func TestAFailedAcceptIsTriedAgain(t *testing.T) {
	serving(t, "www A 192.0.2.1", func(t *testing.T, _ *Server, _ *wire, d *door) {
		start := time.Now()
		for range 10 {
			d.fails <- errors.New("too many open files")
		}
		conn := d.dial()
		defer conn.Close()
		if took := time.Since(start); took < maxPause || took > 10*maxPause {
			t.Errorf("ten failures took %v", took)
		}
		send(t, conn, framed(packed(t, "www.example.com.", dns.TypeA)))
		receive(t, conn)
	})
}

func TestASocketThatFailsEndsItsServing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w, d := serverOf(t, ""), newWire(), newDoor()
		ended := make(chan error)
		go func() { ended <- s.ServePacket(w) }()
		w.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
		go func() { ended <- s.ServeStream(d) }()
		d.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestClosingEndsWhatIsOpen(t *testing.T) {
	var conn net.Conn
	serving(t, "", func(t *testing.T, s *Server, _ *wire, d *door) {
		conn = d.dial()
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		closes(t, conn)
		if err := s.ServePacket(newWire()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a closed server served a socket: %v", err)
		}
		if err := s.ServeStream(newDoor()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a closed server served a listener: %v", err)
		}
	})
}

func TestBeforeTheFirstSpecEverythingIsRefused(t *testing.T) {
	s := New(Config{})
	if got := ask(t, s, new(dns.Msg).SetQuestion("example.com.", dns.TypeA)); got.Rcode != dns.RcodeRefused {
		t.Errorf("got %v", got)
	}
	if e, err := s.Explain("example.com", "A", netip.MustParseAddr("10.1.0.1"), netip.Prefix{}); err != nil || e.Rcode != "REFUSED" {
		t.Errorf("got %v, %v", e, err)
	}
}

func TestASpecThatCannotBeServedLeavesTheOldOne(t *testing.T) {
	s := serverOf(t, "www A 192.0.2.1")
	bad := worldSpec(t, "www A 192.0.2.999\nwww2 A 192.0.2.2")
	if err := s.Apply(bad); err == nil || !strings.Contains(err.Error(), "www.example.com.") {
		t.Errorf("got %v, want a fault that names the record", err)
	}
	for name, want := range map[string]int{"www.example.com.": dns.RcodeSuccess, "www2.example.com.": dns.RcodeNameError} {
		if got := ask(t, s, new(dns.Msg).SetQuestion(name, dns.TypeA)); got.Rcode != want {
			t.Errorf("%s: got %v", name, got)
		}
	}
	if err := s.Apply(worldSpec(t, "www2 A 192.0.2.2")); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, s, new(dns.Msg).SetQuestion("www2.example.com.", dns.TypeA)); len(got.Answer) != 1 {
		t.Errorf("got %v", got)
	}
}

func TestSpecsAreAppliedWhileQueriesAreAnswered(t *testing.T) {
	serving(t, "www A 192.0.2.1", func(t *testing.T, s *Server, w *wire, _ *door) {
		specs := []*spec.Spec{worldSpec(t, "www A 192.0.2.1"), worldSpec(t, "www A 192.0.2.2")}
		go func() {
			for i := range 20 {
				if err := s.Apply(specs[i%2]); err != nil {
					t.Error(err)
				}
			}
		}()
		for range 100 {
			w.in <- packed(t, "www.example.com.", dns.TypeA)
			if got := unpacked(t, <-w.out); len(got.Answer) != 1 {
				t.Fatalf("got %v", got)
			}
		}
	})
}

// The kernel is needed for this one: a socket of all addresses must answer from the address that was asked, or
// the asker does not take the response. An anycast address is never the one the kernel would choose.
func TestASocketOfAllAddressesAnswersFromTheOneAsked(t *testing.T) {
	for _, network := range []string{"udp4", "udp"} {
		conn, err := net.ListenPacket(network, ":0")
		if err != nil {
			t.Fatal(err)
		}
		s := serverOf(t, "www A 192.0.2.1")
		ended := make(chan error)
		go func() { ended <- s.ServePacket(conn) }()
		// Connected to one address, a client takes datagrams of no other.
		to := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2), Port: conn.LocalAddr().(*net.UDPAddr).Port}
		client, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, to)
		if err != nil {
			t.Fatal(err)
		}
		send(t, client, packed(t, "www.example.com.", dns.TypeA))
		b := make([]byte, 512)
		if err := client.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := client.Read(b)
		if err != nil {
			t.Fatalf("%s: %v", network, err)
		}
		if got := unpacked(t, b[:n]); len(got.Answer) != 1 {
			t.Errorf("%s: got %v", network, got)
		}
		client.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// BenchmarkServeUDP is a whole exchange over the loopback, one asker for each processor.
func BenchmarkServeUDP(b *testing.B) {
	for _, bench := range []struct{ name, address, records string }{
		{"simple", "127.0.0.1:0", "@ A 192.0.2.1"},
		{"nearest", "127.0.0.1:0", site},
		{"nearest on all addresses", ":0", site},
	} {
		b.Run(bench.name, func(b *testing.B) {
			conn, err := net.ListenPacket("udp4", bench.address)
			if err != nil {
				b.Fatal(err)
			}
			s := serverOf(b, bench.records)
			ended := make(chan error)
			go func() { ended <- s.ServePacket(conn) }()
			query, err := new(dns.Msg).SetQuestion("example.com.", dns.TypeA).Pack()
			if err != nil {
				b.Fatal(err)
			}
			port := conn.LocalAddr().(*net.UDPAddr).Port
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				client, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
				if err != nil {
					b.Error(err)
					return
				}
				defer client.Close()
				response := make([]byte, 512)
				for pb.Next() {
					if _, err := client.Write(query); err != nil {
						b.Error(err)
						return
					}
					if _, err := client.Read(response); err != nil {
						b.Error(err)
						return
					}
				}
			})
			if err := s.Close(); err != nil {
				b.Error(err)
			}
			<-ended
		})
	}
}

// BenchmarkRespond is a query in memory: parse, answer, pack.
func BenchmarkRespond(b *testing.B) {
	s := serverOf(b, site+"plain A 192.0.2.1")
	room := make([]byte, roomSize)
	for _, bench := range []struct{ name, question string }{{"simple", "plain.example.com."}, {"nearest", "example.com."}, {"nxdomain", "none.example.com."}} {
		b.Run(bench.name, func(b *testing.B) {
			query, err := new(dns.Msg).SetQuestion(bench.question, dns.TypeA).Pack()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				s.respond(room, query, netip.AddrFrom4([4]byte{10, 1, 0, 53}), UDP)
			}
		})
	}
}
