package gossip

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Whatever is queued is sent, at least as often as it takes or until another has its name; no packet is larger than it may be.
func TestNothingThatIsQueuedGoesUnsent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q queue
		nodes := rapid.IntRange(1, 200).Draw(t, "nodes")
		newest, sent := map[string]string{}, map[string]int{}
		take := func() {
			room := 200
			for _, m := range q.take(2, room, nodes) {
				room -= 2 + len(m)
				name, _, _ := cut(string(m))
				if newest[name] != string(m) {
					t.Fatalf("%q was sent after another took its place", m)
				}
				sent[string(m)]++
			}
			if room < 0 {
				t.Fatal("the packet is too large")
			}
		}
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "put") {
				name := rapid.StringMatching(`[a-f]`).Draw(t, "name")
				m := fmt.Sprintf("%s %040d", name, i)
				newest[name] = m
				q.put(name, []byte(m))
			} else {
				take()
			}
		}
		for q.len() > 0 {
			take()
		}
		for name, m := range newest {
			if want := retransmitMult; sent[m] < want {
				t.Fatalf("%s was sent %d times, want %d at least", name, sent[m], want)
			}
		}
		if len(q.tiers) != 0 {
			t.Fatalf("%d tiers are left", len(q.tiers))
		}
	})
}

func cut(m string) (name, rest string, ok bool) { return m[:1], m[2:], true }

func TestAFullQueueDropsWhatWasSentMost(t *testing.T) {
	var q queue
	q.put("old", make([]byte, 40))
	q.take(2, 1400, 10)
	for i := range maxQueued {
		q.put(fmt.Sprint("n", i), make([]byte, 40))
	}
	if q.len() != maxQueued || q.byName["old"] != nil || q.byName["n0"] == nil {
		t.Errorf("%d wait, want %d without the one that was sent", q.len(), maxQueued)
	}
}

func TestWhatIsNewGoesFirst(t *testing.T) {
	var q queue
	q.put("a", []byte("a, which was sent"))
	q.take(0, 100, 10)
	q.put("b", []byte("b, which was not."))
	got := q.take(0, 20, 10)
	if len(got) != 1 || !slices.Equal(got[0], []byte("b, which was not.")) {
		t.Errorf("got %q", got)
	}
}

func TestWhatIsReplacedOftenTakesNoRoom(t *testing.T) {
	var q queue
	for range 10 * maxQueued {
		q.put("a", []byte("a"))
	}
	if n := len(q.tiers[0]); n > maxQueued+1 {
		t.Errorf("%d messages are kept for one", n)
	}
}
