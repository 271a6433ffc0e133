package backbone

import (
	"testing"
	"time"
)

// Something in between forgets a flow's TCP connection without a word, or lets TCP pass no more, while QUIC is well.
func TestAFlowGoesOnWhenTCPAloneIsCut(t *testing.T) {
	for name, c := range map[string]struct {
		by, from, to string
		up           bool
	}{
		"who opened it sends":        {"iad", "icn", "iad", true},
		"the other end sends":        {"iad", "icn", "iad", false},
		"on its detour, the 1st leg": {"fra", "icn", "fra", true},
		"on its detour, the 2nd leg": {"fra", "fra", "iad", false},
	} {
		t.Run(name, func(t *testing.T) {
			newFlowWorld(t, 1, true, func(w *flowWorld) {
				near, far := w.flow(c.by, "iad", "nrt")
				a, b := near, far
				if !c.up {
					a, b = far, near
				}
				if err := carry(a, b, 100_000); err != nil {
					w.Fatal(err)
				}
				w.in.CutStreams(c.from, c.to)
				begun := time.Now()
				if err := carry(a, b, 2_000_000); err != nil {
					w.Error(err)
				}
				if took := time.Since(begun); took > 6*time.Second {
					w.Errorf("it took %v", took)
				}
				if near.Moves() == 0 {
					w.Error("it went on as it was")
				}
				counts := map[string]uint64{}
				for node, b := range w.nodes {
					counts[node] = b.Counters()["backbone_tcp_silent_total"]
				}
				if counts[c.from] == 0 || counts[c.to] == 0 {
					w.Errorf("counted %v", counts)
				}
				near.Close()
				far.Close()
			})
		})
	}
}

// A flow that says nothing is moved before somebody speaks, and the next flows are given no connection that leads nowhere.
func TestASilentFlowIsMovedWhenTCPAloneIsCut(t *testing.T) {
	newFlowWorld(t, 1, true, func(w *flowWorld) {
		near, far := w.flow("iad", "iad")
		time.Sleep(30 * time.Second)
		if near.Moves() != 0 {
			w.Fatal("it was moved though nothing was wrong")
		}
		w.in.CutStreams("icn", "iad")
		time.Sleep(6 * time.Second)
		begun := time.Now()
		if err := carry(near, far, 100); err != nil {
			w.Fatal(err)
		}
		if took := time.Since(begun); took > roundTrip || near.Moves() != 1 {
			w.Errorf("%v until it arrived, after %d moves", took, near.Moves())
		}
		begun = time.Now()
		c, err := w.icn.Dial(w.Context(), "iad", Header{Service: "echo"})
		if err != nil {
			w.Fatal(err)
		}
		defer c.Close()
		if took := time.Since(begun); by(c) != "QUIC" || took > 3*roundTrip/2 {
			w.Errorf("the next is dialled in %v by %s", took, by(c))
		}
		near.Close()
		far.Close()
	})
}
