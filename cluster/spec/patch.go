package spec

import (
	"bytes"
	"hash/maphash"
	"reflect"
	"slices"
	"sort"
	"weak"
)

// Of a large zone, most often, one record changes. Then its document differs from the one that stands in a few lines, and only those are
// read; what the rest means is taken from the zone that stands. It is done where it is sure to come to what Build would: the document
// that stands was written plainly (plainReader), what differs is whole records, and nothing in those is wrong. All else is read whole.

// leastLayout is from how many records on a zone has a layout, which takes 4 bytes of each.
const leastLayout = 64

// layout is where the records of a zone stand in the document of which it was made. It is never changed.
type layout struct {
	digest uint64             // of the document
	first  weak.Pointer[byte] // of it, and how long it is: what is at the same place is the same, for documents are never changed
	size   int
	marks  int      // of it, those that inspect counts
	name   int      // the line of the zone's name, counted from the document's first
	column int      // in which each record begins with its dash
	starts []uint32 // where the dashes are
	end    uint32   // where the line begins that follows the last record
}

var layoutSeed = maphash.MakeSeed()

// line is where the line begins on which record i does; that after the last, where the line does that follows.
func (l *layout) line(i int) int {
	if i == len(l.starts) {
		return int(l.end)
	}
	return int(l.starts[i]) - l.column
}

// of has it be that of a document.
func (l *layout) of(doc []byte) {
	l.digest, l.first, l.size = maphash.Bytes(layoutSeed, doc), weak.Make(&doc[0]), len(doc)
}

// isOf says whether it is that of a document.
func (l *layout) isOf(doc []byte) bool {
	if len(doc) != l.size {
		return false
	}
	return weak.Make(&doc[0]) == l.first || maphash.Bytes(layoutSeed, doc) == l.digest
}

// lay has the zone remember its layout as it was found in its document, where the zone's name stands on a line.
func (z *HostedZone) lay(l *layout, doc []byte, name int) {
	if len(l.starts) < leastLayout || len(l.starts) != z.Records.Len() || bytes.IndexByte(doc, '\r') >= 0 || doc[len(doc)-1] != '\n' ||
		name > bytes.Count(doc[:l.starts[0]], []byte("\n")) {
		return // offsets are those of another text, or the line is not the same in one that differs
	}
	l.of(doc)
	l.name, l.starts = name, slices.Clone(l.starts)
	z.layout = l
}

// difference is how a document differs from that of a zone that stands: it has items in the place of the records from first to last.
type difference struct {
	zone        *HostedZone
	first, last int
	items       []node
	layout      *layout
}

// differs says how a document differs from the one before, of which the zone was made; nil: it has to be read whole.
func (z *HostedZone) differs(before, doc []byte) *difference {
	if z == nil || z.layout == nil || len(doc) == 0 || doc[len(doc)-1] != '\n' || len(doc) > MaxDocumentBytes || !z.layout.isOf(before) {
		return nil
	}
	l := z.layout
	head, tail := alike(before, doc)
	d := &difference{zone: z}
	// A record begins where it did if its dash and what is behind that are, and ends where it did if so does the line before what follows.
	d.first = sort.Search(len(l.starts), func(i int) bool { return int(l.starts[i])+2 > head }) - 1
	if d.first < 0 {
		return nil
	}
	d.last = d.first + sort.Search(len(l.starts)-d.first, func(i int) bool { return l.line(d.first+i) > len(before)-tail })
	moved := len(doc) - len(before)
	begin, end := l.line(d.first), l.line(d.last)+moved
	if end < begin || end-moved <= len(before)-tail {
		return nil
	}
	// What is forbidden is so on one line, or in lines that are blank: those around count.
	was, u := inspect(around(before, begin, end-moved))
	marks, wrong := inspect(around(doc, begin, end))
	if marks += l.marks - was; u != nil || wrong != nil || marks > maxIndicators {
		return nil
	}
	const head0 = "records:\n"
	found := new(layout)
	root, ok := readLaid(head0+string(doc[begin:end]), 1, found, nil)
	if !ok || len(root.fields) != 1 {
		return nil
	}
	if d.items = root.fields[0].value.items; len(d.items) != len(found.starts) || len(d.items) > 0 && found.column != l.column {
		return nil
	}
	d.layout = &layout{marks: marks, name: l.name, column: l.column, end: uint32(int(l.end) + moved)}
	d.layout.starts = make([]uint32, 0, d.first+len(d.items)+len(l.starts)-d.last)
	d.layout.starts = append(d.layout.starts, l.starts[:d.first]...)
	for _, at := range found.starts {
		d.layout.starts = append(d.layout.starts, uint32(int(at)-len(head0)+begin))
	}
	for _, at := range l.starts[d.last:] {
		d.layout.starts = append(d.layout.starts, uint32(int(at)+moved))
	}
	d.layout.of(doc)
	return d
}

// around is a part of a text and the blanks before and after it.
func around(text []byte, begin, end int) []byte {
	blank := func(c byte) bool { return c == ' ' || c == '\t' || c == '\n' }
	for begin > 0 && blank(text[begin-1]) {
		begin--
	}
	for end < len(text) && blank(text[end]) {
		end++
	}
	return text[begin:end]
}

// alike is how many bytes two texts have in common at the beginning, and at the end.
func alike[T string | []byte](a, b T) (head, tail int) {
	const step = 256
	least := min(len(a), len(b))
	for least-head >= step && string(a[head:head+step]) == string(b[head:head+step]) {
		head += step
	}
	for head < least && a[head] == b[head] {
		head++
	}
	for least-tail >= step && string(a[len(a)-tail-step:len(a)-tail]) == string(b[len(b)-tail-step:len(b)-tail]) {
		tail += step
	}
	for tail < least && a[len(a)-tail-1] == b[len(b)-tail-1] {
		tail++
	}
	return head, tail
}

// difference is how a document that is put differs from the one that stands; nil: it is to be read whole.
func (b *builder) difference(doc *Document) *difference {
	if doc.Kind != "HostedZone" || doc.Before == nil || slices.ContainsFunc(b.base.Unknown, func(u Unknown) bool { return u.Ref == doc.Ref() }) {
		return nil
	}
	z := b.base.HostedZones[doc.Name]
	if d := doc.difference; d != nil && d.zone == z {
		return d
	}
	return z.differs(doc.Before, doc.Bytes)
}

// changed makes the zone that differs so from the one that stands; nil if something in it is wrong.
func (b *builder) changed(d *difference) *HostedZone {
	kind, _ := exactKind("HostedZone")
	i := slices.IndexFunc(kind.shape.fields, func(f field) bool { return f.name == "records" })
	f, right := &kind.shape.fields[i], true
	if float64(len(d.layout.starts)) > f.max || len(d.layout.starts) < leastLayout {
		return nil
	}
	var new HostedZone
	in := decoder{fault: func(int, string, string) { right = false }, share: b.share}
	in.records(&node{form: sequence, items: d.items}, f, reflect.ValueOf(&new).Elem().Field(f.index), &path{})
	if !right {
		return nil
	}
	z := *d.zone
	z.Records = z.Records.Splice(d.first, d.last, new.Records)
	z.layout = d.layout
	return &z
}

// Split is Split of what may be put over a spec: documents of zones that stand in it, in which little differs from the one before, are read in that only.
func (s *Spec) Split(file string, data []byte, before func(Ref) []byte) ([]Document, error) {
	return split(file, data, func(d *Document) (name int, ok bool) {
		r, ok := guess(d.Bytes)
		if !ok {
			return 0, false
		}
		z := s.HostedZones[r.Name]
		if z == nil || z.layout == nil {
			return 0, false
		}
		d.Before = before(r)
		if d.difference = z.differs(d.Before, d.Bytes); d.difference == nil {
			return 0, false
		}
		d.Kind, d.Name = r.Kind, z.Name
		return d.Line + z.layout.name, true
	})
}

// guess is the zone that a document may be of, by its first lines: those two that most begin with.
func guess(doc []byte) (r Ref, ok bool) {
	kind, rest, _ := bytes.Cut(doc, []byte("\n"))
	name, _, _ := bytes.Cut(rest, []byte("\n"))
	name, ok = bytes.CutPrefix(name, []byte("name: "))
	return Ref{"HostedZone", string(name)}, ok && string(kind) == "kind: HostedZone" && len(name) <= maxName
}
