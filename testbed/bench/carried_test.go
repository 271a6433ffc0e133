//go:build linux

package bench

import (
	"context"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestTheCarryCarries(t *testing.T) {
	for _, way := range []string{ByQUIC, ByTLS} {
		t.Run(way, func(t *testing.T) {
			port, err := freePort("127.0.0.1")
			if err != nil {
				t.Fatal(err)
			}
			target := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- carryFrom(ctx, way, l, target) }()
			for _, short := range []bool{false, true} {
				m, err := (&streamed{address: l.Addr().String(), target: target, flows: 2, short: short, last: 200 * time.Millisecond}).run(t.Context())
				if err != nil || m.Failed != "" || m.Bytes == 0 {
					t.Errorf("short: %v: %+v, %v", short, m, err)
				}
			}
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	if err := Carry(t.Context(), "pigeon", "127.0.0.1:0", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), ByTLS) {
		t.Errorf("an unknown way: %v", err)
	}
}
