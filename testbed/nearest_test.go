package testbed

import (
	"strings"
	"testing"
	"time"
)

// Seoul's provider takes a long way to the POP in Seoul. What the POP's doors see of it leads its clients elsewhere, at all nodes alike.
func TestClientsThatAreFarByTheWireAreLedElsewhere(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		if got := w.do(t, "dig", "seoul", "www.demo.perigee.test", "A"); !strings.Contains(got, "(icn1)") {
			t.Fatalf("at first: %s", got)
		}
		w.do(t, "slow", "seoul", "icn1", "100ms") // each way
		for range 4 {
			w.do(t, "get", "seoul", "http://www.demo.perigee.test/")
		}
		time.Sleep(3 * time.Minute)
		for _, server := range []string{"seoul@fra1", "seoul@icn1", "seoul@iad1"} {
			if got := w.do(t, "dig", server, "www.demo.perigee.test", "A"); strings.Contains(got, "(icn1)") {
				t.Errorf("by %s after four visits: %s\n%s", server, got, w.do(t, "explain", "dns", "www.demo.perigee.test", "A", "--from", "seoul"))
			}
		}
	})
}
