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

// Entry is what stands at one name and type. What it points to must not be changed.
type Entry struct {
	Owner  []byte  // in wire form
	Set    Set     // records, if Choice is nil
	Choice *Choice // what a policy chooses among, or an alias leads to
}

// All yields all that stands in a zone, its SOA and name servers included, those drawn among some (nil: among all), what
// is of one name together and names in no order. It takes no memory that grows with the zone.
func (t *Table) All(z *Zone, among *Servers) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		w := walk{table: t, zone: z, among: among, yield: yield}
		for _, s := range z.shards {
			for labels, e := range s.all() {
				if !w.name(labels, e.node) {
					return
				}
			}
		}
		for labels := range w.made() {
			if !w.name(labels, Node{}) {
				return
			}
		}
	}
}

// walk is a walk over what stands in a zone.
type walk struct {
	table   *Table
	zone    *Zone
	among   *Servers
	yield   func(Entry) bool
	entries []Entry
}

// made yields the names of name servers that the zone has without being told, and does not have otherwise.
func (w *walk) made() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if !w.zone.made() || len(w.zone.hosted.NameServers) > 0 {
			return
		}
		for label := range w.table.servers.at {
			labels := append([]byte{byte(len(label))}, label...)
			if !w.zone.find(hashLabels(w.zone.hash, labels), labels).OK() && !yield(labels) {
				return
			}
		}
	}
}

// name yields what stands at a name, the types by number.
func (w *walk) name(labels []byte, node Node) bool {
	z, t := w.zone, w.table
	if z.made() && len(labels) > 0 && len(labels) == 1+int(labels[0]) {
		node = t.servers.node(z, labels[1:], node)
	}
	owner := append(slices.Clone(labels), z.wire...)
	w.entries = w.entries[:0]
	for set, choice := range node.All() {
		w.entries = append(w.entries, Entry{owner, set, choice})
	}
	if len(labels) == 0 && z.made() {
		apex := t.Apex(z, w.among)
		w.entries = append(w.entries, Entry{owner, apex.SOA, nil}, Entry{owner, apex.NS, nil})
	}
	slices.SortFunc(w.entries, func(a, b Entry) int { return int(a.Type()) - int(b.Type()) })
	for _, e := range w.entries {
		if !w.yield(e) {
			return false
		}
	}
	return true
}

// Type is that of the records.
func (e *Entry) Type() uint16 {
	if e.Choice != nil {
		return e.Choice.Type
	}
	return e.Set.Type
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
		w := walk{table: t, zone: z, yield: func(e Entry) bool {
			for data := range e.Set.All() {
				if !yield(Row{e.Owner, e.Set.Type, e.Set.TTL, data}) {
					return false
				}
			}
			return true
		}}
		for _, labels := range names {
			if !w.name(labels, z.find(hashLabels(z.hash, labels), labels)) {
				return
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

// AddRow adds a record as Add does, by its bytes, and says whether it is new.
func (e *Edit) AddRow(r Row) (added bool, err error) {
	e.name.Set(r.Owner)
	d, err := e.named()
	if err != nil {
		return false, err
	}
	return e.add(d, r.Type, r.TTL, r.Data)
}

// DeleteRow takes a record away as Delete does, by its bytes.
func (e *Edit) DeleteRow(r Row) (found bool, err error) {
	e.thin = true
	e.name.Set(r.Owner)
	d, err := e.named()
	if err != nil {
		return false, err
	}
	return d.remove(r.Type, r.Data), nil
}

// NewEdit begins a zone of plain records, of which there are about so many to come.
func NewEdit(name string, about int) (*Edit, error) { return newEdit(name, about) }

// NewOf makes a zone of plain records as New does, by their bytes, of which there are about so many.
func NewOf(name string, about int, records iter.Seq[Row]) (*Zone, error) {
	e, err := newEdit(name, about)
	if err != nil {
		return nil, err
	}
	for r := range records {
		if _, err := e.AddRow(r); err != nil {
			return nil, err
		}
	}
	return e.Zone()
}
