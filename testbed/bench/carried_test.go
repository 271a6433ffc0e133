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
			var at [2]string
			for i := range at {
				port, err := freePort("127.0.0.1")
				if err != nil {
					t.Fatal(err)
				}
				at[i] = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
			}
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- Carry(ctx, way, at[0], at[1]) }()
			for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) { // until it listens
				if c, err := net.Dial("tcp", at[0]); err == nil {
					c.Close()
					break
				} else if time.Since(begun) > 10*time.Second {
					t.Fatal(err)
				}
			}
			for _, short := range []bool{false, true} {
				m, err := (&streamed{address: at[0], target: at[1], flows: 2, short: short, last: 200 * time.Millisecond}).run(t.Context())
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
