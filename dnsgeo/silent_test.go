package dnsgeo

import (
	"context"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/perigee-net/perigee/dnsgeo/crowd"
)

// A hundred thousand real connections come and ask nothing, and who asks is answered all the while. TestSilentConnectionsKeepNobodyOut is
// the same in virtual time; what only sockets show is that none is left open, and what they cost. Without PERIGEE_LONG they are
// 6,000: enough to be over the bound.
func TestRealSilentConnectionsKeepNobodyOut(t *testing.T) {
	silent := 6_000
	if os.Getenv("PERIGEE_LONG") != "" {
		silent = 100_000
	}
	s := serverOf(t, "www A 192.0.2.1")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.ServeStream(l) }()
	dial := func(from netip.Addr) net.Conn {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		conn, err := d.DialContext(ctx, "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	asks := func(conn net.Conn) time.Duration {
		began := time.Now()
		_ = conn.SetDeadline(began.Add(10 * time.Second))
		isAnswered(t, conn)
		return time.Since(began)
	}

	honest := dial(netip.MustParseAddr("127.0.0.2"))
	defer honest.Close()
	asks(honest)
	var held []net.Conn // what the server has ended takes a socket here, too
	var longest time.Duration
	for i := range silent {
		if len(held) == crowd.Max+500 {
			held[0].Close()
			held = held[1:]
		}
		held = append(held, dial(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)})))
		if i%500 == 0 {
			newer := dial(netip.MustParseAddr("127.0.0.3"))
			longest = max(longest, asks(honest), asks(newer))
			newer.Close()
		}
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.Logf("%d silent connections; the longest that an answer took was %v; %d MB of heap, %d MB of stacks in both ends",
		silent, longest, m.HeapInuse>>20, m.StackInuse>>20)
	if c := s.Counters(); c["dns_connections"] > crowd.Max || c["dns_connections_displaced_total"] == 0 { // others were idle for too long
		t.Errorf("%d are open, %d went", c["dns_connections"], c["dns_connections_displaced_total"])
	}
	for _, conn := range held {
		conn.Close()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
