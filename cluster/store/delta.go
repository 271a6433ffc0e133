package store

import (
	"bytes"
	"fmt"
	"slices"
)

// Edits lead from one table to another.
type Edits struct {
	Put    []Object
	Delete []Ref
}

// Changed is what leads from the objects of old to those of new, in their order: an object is put if its bytes or its revision
// differ. Both are walked once; objects that share their memory are not read. A nil table is an empty one.
func Changed(old, new *Table) Edits {
	var had, has []Object
	if old != nil {
		had = old.Objects
	}
	if new != nil {
		has = new.Objects
	}
	var e Edits
	if len(had) == len(has) && (len(had) == 0 || &had[0] == &has[0]) {
		return e
	}
	i, j := 0, 0
	for i < len(had) && j < len(has) {
		a, b := &had[i], &has[j]
		if a.Name == b.Name && a.Kind == b.Kind { // the usual case, and cheaper than to ask for the order
			if a.Revision != b.Revision || !bytes.Equal(a.Bytes, b.Bytes) {
				e.Put = append(e.Put, *b)
			}
			i, j = i+1, j+1
			continue
		}
		if a.Ref().compare(b.Ref()) < 0 {
			e.Delete = append(e.Delete, a.Ref())
			i++
		} else {
			e.Put = append(e.Put, *b)
			j++
		}
	}
	for _, a := range had[i:] {
		e.Delete = append(e.Delete, a.Ref())
	}
	e.Put = append(e.Put, has[j:]...)
	return e
}

// Delta leads from a State at one position to a State at a later one.
type Delta struct {
	From, To  Position
	Spec, Own TableDelta
}

// TableDelta is the part of a Delta that is of one table.
type TableDelta struct {
	Put     []Object // as they are at the later position, in order
	Delete  []Ref    // in order; those that do not exist are passed over
	Records []Record // of the changes between, without the objects that they replaced
	Sum     uint64   // of the table at the later position

	edited []deltaEdit // of those in Put, the ones whose bytes are pieces, in order
}

// deltaEdit says which object of a delta is an edit, and of which revision.
type deltaEdit struct {
	At int    `json:"at"`
	Of uint64 `json:"of"`
}

// maxDelta bounds the bytes of the objects in a delta. Where more has changed, a snapshot is not much longer.
const maxDelta = 32 << 20

// Since is what leads from a position to this state. It is false if the histories do not go back so far, or if too much
// has changed: then a snapshot is needed. Whether who is at that position has the same as was here is found out by the sums.
func (s *State) Since(from Position) (Delta, bool) {
	d := Delta{From: from, To: s.Position()}
	var spec, own bool
	d.Spec, spec = s.Table.since(from.Spec)
	d.Own, own = s.Own.since(from.Own)
	return d, spec && own
}

// Edited is the delta, which leads to this state, with edits in the place of large objects of the spec that differ little from what they were at
// its beginning, as far as this state's history knows that. Who has no Format to read it must be sent the delta itself.
func (s *State) Edited(d Delta) Delta {
	for i, o := range d.Spec.Put {
		if len(o.Bytes) < editsFrom {
			continue
		}
		before, known := s.was(o.Ref(), d.From.Spec)
		if !known {
			continue
		}
		if pieces, ok := piecesOf(before.Bytes, o.Bytes, len(o.Bytes)/2); ok {
			if d.Spec.edited == nil {
				d.Spec.Put = slices.Clone(d.Spec.Put)
			}
			d.Spec.Put[i].Bytes, d.Spec.Put[i].digest = pieces, 0
			d.Spec.edited = append(d.Spec.edited, deltaEdit{i, before.Revision})
		}
	}
	return d
}

// was is an object as it was at a revision: as the first change since has found it. It is false if there was none, or it is not kept.
func (t *Table) was(ref Ref, revision uint64) (Object, bool) {
	records, ok := t.recordsSince(revision)
	if !ok {
		return Object{}, false
	}
	for _, r := range records {
		if !contains(r.Put, ref) && !contains(r.Delete, ref) {
			continue
		}
		i, found := find(r.before, ref)
		if r.bare || !found {
			return Object{}, false
		}
		return r.before[i], true
	}
	return Object{}, false
}

// contains says whether an ordered list has a reference.
func contains(refs []Ref, ref Ref) bool {
	_, found := slices.BinarySearchFunc(refs, ref, Ref.compare)
	return found
}

// whole is the delta with its objects whole, which are edits of those of a table.
func (d TableDelta) whole(t *Table) (TableDelta, error) {
	return d.wholeOver(func(r Ref) Object {
		o, _ := t.Get(r.Kind, r.Name)
		return o
	})
}

// wholeOver is whole of what stands before it: the zero Object is nothing.
func (d TableDelta) wholeOver(stands func(Ref) Object) (TableDelta, error) {
	if len(d.edited) == 0 {
		return d, nil
	}
	d.Put = slices.Clone(d.Put)
	for _, e := range d.edited {
		o := &d.Put[e.At]
		before := stands(o.Ref())
		if before.Revision != e.Of {
			return d, fmt.Errorf("%s %s: it is an edit of revision %d, and here it is of revision %d", o.Kind, o.Name, e.Of, before.Revision)
		}
		var err error
		if o.Bytes, err = joined(before.Bytes, o.Bytes); err != nil {
			return d, fmt.Errorf("%s %s: %w", o.Kind, o.Name, err)
		}
	}
	d.edited = nil
	return d, nil
}

func (t *Table) since(revision uint64) (TableDelta, bool) {
	d := TableDelta{Sum: t.sum}
	records, ok := t.recordsSince(revision)
	if !ok {
		return TableDelta{}, false
	}
	if len(records) == 0 {
		return d, true
	}
	var refs []Ref
	for _, r := range records {
		refs = append(append(refs, r.Put...), r.Delete...)
		d.Records = append(d.Records, r.withoutFormer())
	}
	if len(records) > 1 {
		slices.SortFunc(refs, Ref.compare)
		refs = slices.Compact(refs)
	} else {
		slices.SortFunc(refs, Ref.compare)
	}
	size := 0
	for _, ref := range refs {
		o, found := t.Get(ref.Kind, ref.Name)
		switch {
		case !found:
			d.Delete = append(d.Delete, ref)
		case o.Revision > revision:
			d.Put = append(d.Put, o)
			size += len(o.Bytes)
		}
	}
	return d, size <= maxDelta
}

// recordsSince are the records of all changes after a revision. It is false if one is missing, or the table is not so far.
func (t *Table) recordsSince(revision uint64) ([]Record, bool) {
	if revision > t.Revision || t.Revision-revision > uint64(len(t.History)) {
		return nil, false
	}
	records := t.History[len(t.History)-int(t.Revision-revision):]
	return records, follow(records, revision) && (len(records) > 0 || revision == t.Revision)
}

// follow says whether the records are those of the changes just after a revision, one by one.
func follow(records []Record, revision uint64) bool {
	for _, r := range records {
		if r.Revision != revision+1 {
			return false
		}
		revision++
	}
	return true
}

// WithDelta is the state at the delta's later position. It is an error if the delta does not begin where the state is, or if what
// comes out has not the sum that it should have: then the state was not what it was taken for, and a snapshot is needed.
func (s *State) WithDelta(d Delta) (*State, error) {
	if d.From != s.Position() {
		return nil, fmt.Errorf("apply delta: it leads from %v, and the state is at %v", d.From, s.Position())
	}
	next := *s
	if err := next.Table.apply(d.To.Spec, d.Spec, true); err != nil {
		return nil, fmt.Errorf("apply delta from %v to %v: spec: %w", d.From, d.To, err)
	}
	if err := next.Own.apply(d.To.Own, d.Own, false); err != nil {
		return nil, fmt.Errorf("apply delta from %v to %v: own records: %w", d.From, d.To, err)
	}
	return &next, nil
}

// apply turns the table into that at a later revision. Where all records between are known, it keeps of the objects that each
// replaced those that can be told from the table, if they are asked for.
func (t *Table) apply(to uint64, d TableDelta, former bool) error {
	d, err := d.whole(t)
	if err != nil {
		return err
	}
	edits, err := d.edits()
	if err != nil {
		return err
	}
	switch n := uint64(len(d.Records)); {
	case to < t.Revision:
		return fmt.Errorf("revision %d is before %d", to, t.Revision)
	case to == t.Revision && len(edits) > 0:
		return fmt.Errorf("%d objects changed, and the revision did not", len(edits))
	case n > to-t.Revision || !follow(d.Records, to-n):
		return fmt.Errorf("the records are not those of revisions %d to %d", t.Revision+1, to)
	}
	for _, o := range d.Put {
		if o.Revision <= t.Revision || o.Revision > to {
			return fmt.Errorf("%s %s was written at revision %d", o.Kind, o.Name, o.Revision)
		}
	}
	old := *t
	if len(edits) > 0 {
		t.edit(edits)
	}
	if t.sum != d.Sum {
		return fmt.Errorf("the sum is %016x, and should be %016x", t.sum, d.Sum)
	}
	t.Revision = to
	whole := uint64(len(d.Records)) == to-old.Revision
	if !whole {
		t.History, t.former, t.refs = nil, 0, 0
	}
	touched := make(map[Ref]bool)
	for _, r := range d.Records {
		r = r.withoutFormer()
		if former && whole {
			r = old.fill(r, touched)
		}
		t.remember(r)
	}
	return nil
}

// fill gives a record the objects that it replaced, where no earlier one has touched them.
func (t *Table) fill(r Record, touched map[Ref]bool) Record {
	r.bare = false
	for _, refs := range [][]Ref{r.Put, r.Delete} {
		for _, ref := range refs {
			r.bare = r.bare || touched[ref]
			touched[ref] = true
			if o, found := t.Get(ref.Kind, ref.Name); found {
				r.before = append(r.before, o)
			}
		}
	}
	if r.bare {
		r.before = nil
	}
	return r
}

// edits are the delta's edits in the order of the objects. One object twice is an error.
func (d TableDelta) edits() ([]edit, error) {
	c := Change{Put: d.Put, Delete: d.Delete}
	edits := c.edits()
	if len(edits) != len(d.Put)+len(d.Delete) {
		return nil, fmt.Errorf("an object is named twice")
	}
	return edits, nil
}

// sumAfter is what the table's sum would be after the delta, whose objects are whole.
func (t *Table) sumAfter(d TableDelta) uint64 {
	sum := t.sum
	for _, o := range d.Put {
		if old, found := t.Get(o.Kind, o.Name); found {
			sum -= old.summed()
		}
		sum += o.summed()
	}
	for _, ref := range d.Delete {
		if old, found := t.Get(ref.Kind, ref.Name); found {
			sum -= old.summed()
		}
	}
	return sum
}
