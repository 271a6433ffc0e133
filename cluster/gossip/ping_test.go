package gossip

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestProbesMeasureRoundTripsAndCarryWhatTheOtherSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4)
		type heard struct {
			rtt     time.Duration
			payload string
		}
		var mu sync.Mutex
		got := map[string]heard{}
		payloads := []func() []byte{
			func() []byte { return []byte("I am n00") },
			func() []byte { return []byte(strings.Repeat("x", MaxPayload)) },
			func() []byte { return []byte(strings.Repeat("x", MaxPayload+1)) },
			nil,
		}
		for i := range w.nodes {
			c := w.config(i)
			c.Ping.Payload = payloads[i]
			if i == 3 {
				c.Ping.Done = func(node string, rtt time.Duration, payload []byte) {
					mu.Lock()
					defer mu.Unlock()
					got[node] = heard{rtt, string(payload)}
				}
			}
			g, err := Open(c)
			if err != nil {
				t.Fatal(err)
			}
			w.nodes[i] = g
			if i > 0 {
				w.join(i, 0)
			}
		}
		time.Sleep(20 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		for i, want := range []string{"I am n00", strings.Repeat("x", MaxPayload), ""} {
			h := got[name(i)]
			if h.payload != want {
				t.Errorf("%s said %q", name(i), h.payload)
			}
			if want := w.net.RoundTrip(name(3), name(i)); h.rtt != want {
				t.Errorf("to %s %v were measured, want %v", name(i), h.rtt, want)
			}
		}
		if len(got) != 3 {
			t.Errorf("heard of %d nodes", len(got))
		}
		if w.nodes[2].Counters()["gossip_malformed_total"] == 0 {
			t.Error("a payload beyond the bound was not counted")
		}
	})
}
