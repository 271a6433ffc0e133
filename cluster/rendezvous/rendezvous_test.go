package rendezvous

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestWhoGoesTakesOnlyItsOwnKeysAlong(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z]{1,3}`), 2, 20, rapid.ID).Draw(t, "nodes")
		key, n := rapid.String().Draw(t, "key"), rapid.IntRange(1, 5).Draw(t, "n")
		before := Highest(key, nodes, n)
		gone := rapid.SampledFrom(nodes).Draw(t, "gone")
		after := Highest(key, slices.DeleteFunc(slices.Clone(nodes), func(s string) bool { return s == gone }), n)
		kept := slices.DeleteFunc(slices.Clone(before), func(s string) bool { return s == gone })
		if !slices.Equal(after[:len(kept)], kept) {
			t.Fatalf("without %s: from %q to %q", gone, before, after)
		}
	})
}

func TestKeysAreSpreadEvenly(t *testing.T) {
	nodes := []string{"icn1-a", "icn1-b", "icn1-c", "icn1-d"}
	count := map[string]int{}
	const keys = 10_000
	for i := range keys {
		count[Highest(fmt.Sprint("target/web/10.0.0.", i), nodes, 1)[0]]++
	}
	for node, n := range count {
		if n < keys/5 || n > keys*3/10 {
			t.Errorf("%s has %d of %d", node, n, keys)
		}
	}
}

// Nodes of different releases must agree on it.
func TestScoresStayAsTheyAre(t *testing.T) {
	if got := Score("icn1-a", "target/web/10.0.0.1:80"); got != 0xfb33ebd33a648555 {
		t.Errorf("got %#x", got)
	}
}
