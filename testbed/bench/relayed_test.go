//go:build linux

package bench

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// relay passes datagrams on to a target, and what comes back to whoever sent them, until the test ends. f says what becomes of each on its way back; nil:
// it is lost.
func relay(t *testing.T, f func(n int, p []byte) []byte) (address, target string) {
	t.Helper()
	port, err := freePort("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	behind := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	flows := map[string]net.Conn{}
	serving.Go(func() {
		buf, n := make([]byte, maxRelayed), 0
		for {
			size, from, err := c.ReadFrom(buf)
			if err != nil {
				break
			}
			flow := flows[from.String()]
			if flow == nil {
				if flow, err = net.DialUDP("udp", nil, behind); err != nil {
					continue
				}
				flows[from.String()] = flow
				serving.Go(func() {
					back := make([]byte, maxRelayed)
					for {
						size, err := flow.Read(back)
						if err != nil {
							return
						}
						c.WriteTo(back[:size], from)
					}
				})
			}
			n++
			if p := f(n, buf[:size]); p != nil {
				flow.Write(p)
			}
		}
		for _, flow := range flows {
			flow.Close()
		}
	})
	t.Cleanup(func() { c.Close(); serving.Wait() })
	return c.LocalAddr().String(), behind.String()
}

func TestDatagramsThroughARelayAreCountedAndLookedAt(t *testing.T) {
	for _, c := range []struct {
		name     string
		together bool
		relay    func(n int, p []byte) []byte
		failed   string
	}{
		{"each alone", false, func(_ int, p []byte) []byte { return p }, ""},
		{"together", true, func(_ int, p []byte) []byte { return p }, ""},
		{"cut short", false, func(_ int, p []byte) []byte { return p[:10] }, "was not sent"},
		{"changed", false, func(_ int, p []byte) []byte { p[20]++; return p }, "was not sent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			address, target := relay(t, c.relay)
			m, err := (&relayed{address: address, target: target, flows: 2, window: 4, size: 100, together: c.together, last: 50 * time.Millisecond}).run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if c.failed != "" {
				if !strings.Contains(m.Failed, c.failed) {
					t.Errorf("failed by %q", m.Failed)
				}
				return
			}
			if m.Failed != "" || m.Count < 8 || m.Bytes != m.Count*100 || m.P99 <= 0 {
				t.Errorf("%+v", m)
			}
		})
	}
}

func TestExchangesThroughARelayAreTimedBesideDirectOnes(t *testing.T) {
	address, target := relay(t, func(_ int, p []byte) []byte { return p })
	m, err := (&exchanged{address: address, target: target, size: 64, passages: 2, last: 50 * time.Millisecond}).run(t.Context())
	if err != nil || m.Failed != "" || m.Count == 0 || m.Bytes != 64*m.Count || m.P50 <= 0 || m.P99 < m.P50 {
		t.Errorf("%+v, %v", m, err)
	}
	address, target = relay(t, func(_ int, p []byte) []byte { p[20]++; return p })
	m, err = (&exchanged{address: address, target: target, size: 64, passages: 2, last: 50 * time.Millisecond}).run(t.Context())
	if err != nil || !strings.Contains(m.Failed, "was not sent") {
		t.Errorf("%+v, %v", m, err)
	}
}
