package backbone

import (
	"testing"
	"time"

	"github.com/perigee-net/perigee/testbed/memnet"
)

func TestAPeakIsOfLate(t *testing.T) {
	var p peak
	now := time.Unix(1_000_000_000, 0)
	if got := p.of(now); got != 0 {
		t.Errorf("%v of nothing", got)
	}
	for _, c := range []struct {
		after time.Duration
		add   float64
		want  float64
	}{
		{0, 5, 5}, {time.Second, 3, 5}, {peakMemory / 2, 4, 5}, {peakMemory/2 - time.Minute, 1, 5}, {time.Minute, 1, 4}, {peakMemory / 2, 1, 1},
		{3 * peakMemory, 0, 0}, {time.Second, 2, 2}, {1000 * peakMemory, 0, 0},
	} {
		now = now.Add(c.after)
		p.add(c.add, now)
		if got := p.of(now); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// What a path of 50 Mbit/s has carried is known by each carrier at the end that has sent, and stays known when nothing is carried any more.
func TestWhatAPathHasCarriedIsMeasured(t *testing.T) {
	for _, byTCP := range []bool{false, true} {
		newWarmFlowWorld(t, 1, byTCP, func(w *flowWorld) {
			w.in.Link("icn", "iad", memnet.Path{Delay: 10 * ms, Rate: 50e6})
			near, far := w.flow("iad", "iad")
			if err := carry(near, far, 20_000_000); err != nil {
				t.Fatal(err)
			}
			time.Sleep(30 * time.Second)
			for from, to := range map[string]string{"icn": "iad", "iad": "icn"} {
				l := w.nodes[from].Links().Get()[to]
				got, other := l.Carried, l.CarriedTCP
				if byTCP {
					got, other = other, got
				}
				if from == "icn" && (got < 40e6 || got > 51e6) || from == "iad" && got > 12e6 || other > 12e6 { // warming of both ends' links is some 10 Mbit/s
					t.Errorf("by TCP: %v: %s carried %.3g and %.3g bits a second at most", byTCP, from, l.Carried, l.CarriedTCP)
				}
			}
			near.Close()
			far.Close()
			time.Sleep(peakMemory + time.Minute)
			if l := w.icn.Links().Get()["iad"]; l.Carried > 1e6 || l.CarriedTCP > 1e6 {
				t.Errorf("after ten minutes: %.3g, %.3g", l.Carried, l.CarriedTCP)
			}
		})
	}
}
