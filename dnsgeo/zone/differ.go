package zone

import (
	"bytes"
	"cmp"
	"slices"
)

// Difference is what has gone and what has come between two versions of a zone, as plain records in one order, whoever compares. What
// a policy chooses, or an alias leads to, and what the apex has without being told, is not looked at. It costs what was touched:
// versions that were made one of the other have most shards in common.
func Difference(old, now *Zone) (gone, come []Row) {
	alike := len(old.shards) == len(now.shards)
	for i, s := range old.shards {
		if alike && s == now.shards[i] {
			continue
		}
		for labels, e := range s.all() {
			other := now.find(hashLabels(now.hash, labels), labels)
			gone = lacking(gone, old, labels, e.node, other)
			come = lacking(come, old, labels, other, e.node)
		}
	}
	for i, s := range now.shards {
		if alike && s == old.shards[i] {
			continue
		}
		for labels, e := range s.all() {
			if !old.find(hashLabels(old.hash, labels), labels).OK() {
				come = lacking(come, old, labels, e.node, Node{})
			}
		}
	}
	slices.SortFunc(gone, compareRows)
	slices.SortFunc(come, compareRows)
	return gone, come
}

// lacking adds the records at a name that another version has not. They are copies: shards that are replaced are not held by them.
func lacking(rows []Row, z *Zone, labels []byte, n, other Node) []Row {
	if !n.OK() {
		return rows
	}
	owner := append(bytes.Clone(labels), z.wire...)
	for set, choice := range n.All() {
		if choice != nil {
			continue
		}
		have := Set{}
		if other.OK() {
			if found, chosen, ok := other.Find(set.Type); ok && chosen == nil && found.TTL == set.TTL {
				have = found
			}
		}
		if have.N == set.N && bytes.Equal(have.data, set.data) {
			continue
		}
		for data := range set.All() {
			if !have.Has(data) {
				rows = append(rows, Row{owner, set.Type, set.TTL, bytes.Clone(data)})
			}
		}
	}
	return rows
}

// Has says whether a record of exactly these bytes is in the set.
func (s Set) Has(data []byte) bool {
	for one := range s.All() {
		if bytes.Equal(one, data) {
			return true
		}
	}
	return false
}

func compareRows(a, b Row) int {
	return cmp.Or(bytes.Compare(a.Owner, b.Owner), cmp.Compare(a.Type, b.Type), bytes.Compare(a.Data, b.Data), cmp.Compare(a.TTL, b.TTL))
}
