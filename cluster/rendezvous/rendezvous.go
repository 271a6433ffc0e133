// Package rendezvous lets nodes that know the same names choose the same ones of them for a key, without asking each other:
// highest random weight hashing. When a node comes or goes, only keys that it has or had change hands.
package rendezvous

import (
	"cmp"
	"hash/fnv"
	"io"
	"slices"
)

// Score is a node's weight for a key. It is the same on all nodes and in all releases. FNV alone hardly spreads what differs
// in the last bytes, so its sum is mixed (the finalizer of MurmurHash3).
func Score(node, key string) uint64 {
	f := fnv.New64a()
	io.WriteString(f, node)
	f.Write([]byte{0})
	io.WriteString(f, key)
	h := f.Sum64()
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// Highest are the n nodes that score highest for a key, the highest first; of equals the first by name.
func Highest(key string, nodes []string, n int) []string {
	type scored struct {
		node  string
		score uint64
	}
	all := make([]scored, len(nodes))
	for i, node := range nodes {
		all[i] = scored{node, Score(node, key)}
	}
	slices.SortFunc(all, func(a, b scored) int { return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.node, b.node)) })
	best := make([]string, min(n, len(all)))
	for i := range best {
		best[i] = all[i].node
	}
	return best
}
