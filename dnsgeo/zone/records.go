package zone

import (
	"bytes"
	"iter"
	"slices"
)

// Row is one record of a zone. What it points to must not be changed.
type Row struct {
	Owner []byte // in wire form
	Type  uint16
	TTL   uint32 // seconds
	Data  []byte
}

// Records yields the plain records of a zone, its SOA and name servers included, in canonical order (RFC 4034 §6.1): names by
// their labels from the right, the types of a name by number. What a policy chooses, or an alias leads to, is left out: it is of
// no client, and of no moment. Putting names in order takes some 100 bytes each while it lasts.
func (t *Table) Records(z *Zone) iter.Seq[Row] {
	return func(yield func(Row) bool) {
		var names [][]byte
		for _, s := range z.shards {
			for labels := range s.all() {
				names = append(names, labels)
			}
		}
		sortNames(names)
		for _, labels := range names {
			node := z.find(hashLabels(z.hash, labels), labels)
			var sets []Set
			for set, choice := range node.All() {
				if choice == nil {
					sets = append(sets, set)
				}
			}
			if len(labels) == 0 && z.hosted != nil {
				apex := t.Apex(z, nil)
				sets = append(sets, apex.SOA, apex.NS)
			}
			slices.SortFunc(sets, func(a, b Set) int { return int(a.Type) - int(b.Type) })
			owner := append(slices.Clone(labels), z.wire...)
			for _, set := range sets {
				for data := range set.All() {
					if !yield(Row{owner, set.Type, set.TTL, data}) {
						return
					}
				}
			}
		}
	}
}

// sortNames puts names, by their labels in a zone, into canonical order.
func sortNames(names [][]byte) {
	type key struct{ order, labels []byte }
	keys := make([]key, len(names))
	var room []byte
	for i, labels := range names {
		begin := len(room)
		if cap(room)-begin < 2*maxName {
			room, begin = make([]byte, 0, 1<<16), 0
		}
		room = appendOrder(room, labels)
		keys[i] = key{room[begin:len(room):len(room)], labels}
	}
	slices.SortFunc(keys, func(a, b key) int { return bytes.Compare(a.order, b.order) })
	for i, k := range keys {
		names[i] = k.labels
	}
}

// appendOrder appends what sorts as labels do: each from the right, an octet of 0 behind it, which is before all others.
func appendOrder(to, labels []byte) []byte {
	if len(labels) == 0 {
		return to
	}
	n := 1 + int(labels[0])
	to = appendOrder(to, labels[n:])
	for _, b := range labels[1:n] {
		if b < 2 {
			to = append(to, 1, 1+b)
		} else {
			to = append(to, b)
		}
	}
	return append(to, 0)
}

// AddRow adds a record as Add does, by its bytes.
func (e *Edit) AddRow(r Row) error {
	e.name.Set(r.Owner)
	d, err := e.named()
	if err != nil {
		return err
	}
	return e.add(d, r.Type, r.TTL, r.Data)
}

// NewOf makes a zone of plain records as New does, by their bytes, of which there are about so many.
func NewOf(name string, about int, records iter.Seq[Row]) (*Zone, error) {
	e, err := newEdit(name, about)
	if err != nil {
		return nil, err
	}
	for r := range records {
		if err := e.AddRow(r); err != nil {
			return nil, err
		}
	}
	return e.Zone()
}
