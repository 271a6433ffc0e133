package testbed

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"
)

// metric reads one of a node's counters.
func (w *World) metric(ctx context.Context, t *testing.T, node, name string) uint64 {
	t.Helper()
	text, err := w.apiOf(w.nodes[node]).Metrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "perigee_"+name+" "); ok {
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no counter %s in\n%s", name, text)
	return 0
}

func TestGarbageOnEveryPortIsCountedAndHarmsNobody(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		ctx := t.Context()
		stranger, victim := w.clients["tokyo"], w.nodes["icn1"].cfg.Advertise
		chance := rand.New(rand.NewPCG(1, 2))
		garbage := func(n int) []byte {
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(chance.Uint32())
			}
			return b
		}
		send := func(network string, port int) {
			for _, size := range []int{1, 12, 64, 600, 1200} {
				conn, err := stranger.Dial(ctx, network, netip.AddrPortFrom(victim, uint16(port)).String())
				if err != nil {
					t.Fatalf("%s %d: %v", network, port, err)
				}
				conn.Write(garbage(size))
				if network == "tcp" {
					conn.Write([]byte("\r\n\r\n"))
					conn.(interface{ CloseWrite() error }).CloseWrite()
					conn.SetReadDeadline(time.Now().Add(time.Minute))
					for b := make([]byte, 512); err == nil; {
						_, err = conn.Read(b)
					}
				}
				conn.Close()
			}
		}
		for _, c := range []struct {
			network string
			port    int
			counter string
		}{
			{"tcp", httpPort, "front_bad_requests_total"},
			{"tcp", lbPort, "front_bad_requests_total"},
			{"tcp", apiPort, "front_tls_handshake_errors_total"},
			{"udp", dnsPort, "dns_queries_total"},
			{"tcp", dnsPort, "dns_connections_total"},
			{"tcp", controlPort, "control_handshake_failed_total"},
			{"udp", controlPort, "backbone_packets_dropped_total"},
			{"tcp", gossipPort, "gossip_library_errors_total"},
			{"udp", gossipPort, "gossip_strangers_total"},
		} {
			before := w.metric(ctx, t, "icn1", c.counter)
			send(c.network, c.port)
			time.Sleep(5 * time.Second)
			if after := w.metric(ctx, t, "icn1", c.counter); after == before {
				t.Errorf("%s %d: %s stays at %d", c.network, c.port, c.counter, after)
			}
		}
		if n := w.metric(ctx, t, "icn1", "dns_malformed_total"); n == 0 {
			t.Error("no malformed DNS message was counted")
		}
		scenario, err := ParseScenario("after", fmt.Sprintf(`
get seoul http://www.demo.perigee.test/region => 200 icn1
dig seoul@icn1 www.demo.perigee.test A        => NOERROR icn1
dial seoul tcp.demo.perigee.test:%d           => ap-northeast-2
status all                                    => agree leader=icn1
`, accelerated.Port()))
		if err != nil {
			t.Fatal(err)
		}
		if err := scenario.Run(ctx, w, nil); err != nil {
			t.Error(err)
		}
		if n := w.metric(ctx, t, "icn1", "front_panics_total"); n != 0 {
			t.Errorf("%d panics", n)
		}
	})
}
