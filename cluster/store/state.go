package store

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"
	"unicode/utf8"
)

// Bounds of what is agreed. A change that would pass one is refused by the leader, before the log; what is in the log is
// applied by all, so that releases with other bounds agree.
const (
	MaxObject  = 1 << 20   // bytes of one object
	MaxChange  = 8 << 20   // bytes of one change, names and notes included
	MaxObjects = 200_000   // objects of a space
	MaxState   = 256 << 20 // bytes of all objects of the spec: every node holds them in memory
	MaxOwn     = 32 << 20  // bytes of all of the cluster's own records
	maxName    = 255       // bytes of a kind, a name, an author, an ID
)

// What a State remembers of the past. The answers are part of what is agreed: nodes that differ in them would differ in
// what a change that comes again leads to, so their number changes only together with the format of the log.
const (
	maxHistory = 1000     // changes of each table
	maxFormer  = 16 << 20 // bytes of the objects that those changes replaced; of older changes they are forgotten sooner to keep to it
	maxRefs    = 200_000  // objects that those changes name; older changes are forgotten sooner to keep to it
	maxAnswers = 1024     // IDs of changes, by which one that comes again is known
)

// Ref names an object.
type Ref struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

func (r Ref) compare(o Ref) int {
	return cmp.Or(cmp.Compare(r.Kind, o.Kind), cmp.Compare(r.Name, o.Name))
}

// Object is one agreed document, the bytes exactly as they were written: the store never reads them.
type Object struct {
	Kind, Name string
	Bytes      []byte
	Revision   uint64 // of the change that wrote it

	digest uint64 // see summed; 0: not computed yet
}

// Ref is the object's name.
func (o Object) Ref() Ref { return Ref{o.Kind, o.Name} }

// Space is one of the tables that are agreed. Each has a revision of its own.
type Space uint8

// The spaces.
const (
	Spec Space = iota // what the operator declares
	Own               // the cluster's own records: nodes, tokens, keys
)

// Change is what is applied as one: all of it or nothing.
type Change struct {
	Space Space // which table it is of

	// ID, if given, makes the change safe to send again: one whose ID was applied among the last 1024 is not applied a
	// second time, whatever else it says, and answers as the first did.
	ID string
	// Expect, if given, is the revision of the space that the change was made for; at any other it is a *ConflictError.
	Expect *uint64

	Put    []Object // Revision is ignored
	Delete []Ref    // those that do not exist are passed over

	Author, Note string
	Time         time.Time // zero: when the leader took it

	patched bool // those in Put that have a revision are edits of the object of that revision, see edited
}

// ConflictError says that a change was made for another revision than the one it came to.
type ConflictError struct {
	Expected, Actual uint64
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("conflict: change was made for revision %d, the state is at %d", e.Expected, e.Actual)
}

// Record is a change as the history keeps it.
type Record struct {
	Revision     uint64
	Time         time.Time
	Author, Note string
	Put, Delete  []Ref // those that the change had an effect on, in order

	before []Object // those of them that existed, as they were
	bare   bool     // before is not kept here
}

// former is how many bytes of former objects the record holds.
func (r Record) former() int {
	n := 0
	for _, o := range r.before {
		n += len(o.Bytes)
	}
	return n
}

func (r Record) refs() int { return len(r.Put) + len(r.Delete) }

// withoutFormer is the record without the objects it replaced.
func (r Record) withoutFormer() Record {
	r.before, r.bare = nil, true
	return r
}

// Table is all objects of one space at one revision. It is immutable.
type Table struct {
	Revision uint64   // counts the changes that had an effect
	Objects  []Object // by kind, then name
	History  []Record // of the last changes, oldest first; at most 1000

	size   int    // bytes of all objects
	sum    uint64 // see Sum
	former int    // bytes of former objects in the history
	refs   int    // objects that the history names
}

// Get returns an object.
func (t *Table) Get(kind, name string) (Object, bool) {
	i, found := find(t.Objects, Ref{kind, name})
	if !found {
		return Object{}, false
	}
	return t.Objects[i], true
}

// Each goes through the objects of a kind, by name.
func (t *Table) Each(kind string) iter.Seq[Object] {
	return func(yield func(Object) bool) {
		first, _ := find(t.Objects, Ref{Kind: kind})
		for _, o := range t.Objects[first:] {
			if o.Kind != kind || !yield(o) {
				return
			}
		}
	}
}

// Sum is a sum over all objects with their revisions: two nodes at one revision that have different sums disagree. It finds mistakes
// and damage, not an enemy's work.
func (t *Table) Sum() uint64 { return t.sum }

// Bytes is how many bytes all objects have together.
func (t *Table) Bytes() int { return t.size }

// State is everything that is agreed. It is immutable. What it embeds is the spec: Revision, Objects, History and Get are the
// spec's.
type State struct {
	Table       // the spec
	Own   Table // the cluster's own records

	answers []answer
}

// answer is what a change with an ID led to.
type answer struct {
	Space    Space  `json:"space,omitempty"`
	ID       string `json:"id"`
	Revision uint64 `json:"revision"`
}

func (s *State) table(of Space) *Table {
	if of == Own {
		return &s.Own
	}
	return &s.Table
}

// Position says how far a State is: the revisions of both tables.
type Position struct {
	Spec uint64 `json:"spec"`
	Own  uint64 `json:"own"`
}

// Position is how far the state is.
func (s *State) Position() Position { return Position{s.Revision, s.Own.Revision} }

// AtLeast says whether p is as far as q in both tables.
func (p Position) AtLeast(q Position) bool { return p.Spec >= q.Spec && p.Own >= q.Own }

// Less says whether p is behind q: in one table or both, and ahead in none.
func (p Position) Less(q Position) bool { return p != q && q.AtLeast(p) }

func (p Position) String() string { return fmt.Sprintf("%d/%d", p.Spec, p.Own) }

func find(objects []Object, ref Ref) (int, bool) {
	return slices.BinarySearchFunc(objects, ref, func(o Object, r Ref) int { return o.Ref().compare(r) })
}

// With returns the state after a change, and the revision of the change's space at which it is in effect. It is pure, and
// all nodes apply the log by it: the same changes in the same order give the same objects and the same answers everywhere.
// A change without effect leaves the revision as it is. The only error is *ConflictError. The cost is a copy of the table's list of
// objects, not of what is in them; the other table is shared.
func (s *State) With(c Change) (next *State, revision uint64, err error) {
	return s.with(c, new(fresh))
}

// fresh says of each table whether its list of objects is still nobody else's, so that it may be written to.
type fresh [2]bool

// with is With, of which several may follow each other before anybody sees what they make: the list of objects is copied once.
// What is not fresh is not written to, and neither is anything else.
func (s *State) with(c Change, f *fresh) (next *State, revision uint64, err error) {
	if known, ok := s.answered(c); ok {
		return s, known, nil
	}
	table := *s.table(c.Space)
	if c.Expect != nil && *c.Expect != table.Revision {
		return s, 0, &ConflictError{Expected: *c.Expect, Actual: table.Revision}
	}
	record := Record{Revision: table.Revision + 1, Time: c.Time, Author: c.Author, Note: c.Note}
	edits := make([]edit, 0, len(c.Put)+len(c.Delete))
	for _, e := range c.edits() {
		old, found := table.Get(e.Kind, e.Name)
		switch {
		case e.delete && !found, !e.delete && found && bytes.Equal(old.Bytes, e.Bytes):
			continue // no effect
		case e.delete:
			record.Delete = append(record.Delete, e.Ref())
		default:
			e.Revision, e.digest = record.Revision, 0
			record.Put = append(record.Put, e.Ref())
		}
		if found {
			record.before = append(record.before, old)
		}
		edits = append(edits, e)
	}
	if c.Space == Own {
		record = record.withoutFormer() // nobody asks how these were, and keys should not outlive their end
	}
	after := *s
	if len(edits) > 0 {
		if !f[c.Space] || !table.replace(edits) {
			table.edit(edits)
			f[c.Space] = true
		}
		table.Revision = record.Revision
		table.remember(record)
		*after.table(c.Space) = table
	}
	if c.ID != "" {
		after.answers = pushed(s.answers, answer{c.Space, c.ID, table.Revision}, maxAnswers)
	}
	return &after, table.Revision, nil
}

// answered says what the change led to if it was applied before.
func (s *State) answered(c Change) (revision uint64, ok bool) { return s.Answered(c.Space, c.ID) }

// Answered says at which revision of its space the change with an ID is in effect, if it is among the last that were applied.
func (s *State) Answered(space Space, id string) (revision uint64, ok bool) {
	if id == "" {
		return 0, false
	}
	i := slices.IndexFunc(s.answers, func(a answer) bool { return a.ID == id && a.Space == space })
	if i < 0 {
		return 0, false
	}
	return s.answers[i].Revision, true
}

// edit is what becomes of one object: it is put in place of the old one, or deleted.
type edit struct {
	Object
	delete bool
}

// edits are the edits of a change in the order of the objects, one each: a put wins over a delete, and of two puts the later.
func (c Change) edits() []edit {
	edits := make([]edit, 0, len(c.Put)+len(c.Delete))
	for _, r := range c.Delete {
		edits = append(edits, edit{Object{Kind: r.Kind, Name: r.Name}, true})
	}
	for _, o := range c.Put {
		edits = append(edits, edit{o, false})
	}
	slices.SortStableFunc(edits, compareEdits)
	last := 0 // of each object's edits, the last counts
	for i, e := range edits {
		if i > 0 && compareEdits(edits[last], e) != 0 {
			last++
		}
		edits[last] = e
	}
	return edits[:min(last+1, len(edits))]
}

func compareEdits(a, b edit) int { return a.Ref().compare(b.Ref()) }

// edit makes edits, which are in order, one for each object. The table's list of objects is copied, never written to.
func (t *Table) edit(edits []edit) {
	rest := t.Objects
	t.Objects = make([]Object, 0, len(rest)+len(edits))
	for _, e := range edits {
		i, found := find(rest, e.Ref())
		t.Objects = append(t.Objects, rest[:i]...)
		rest = rest[i:]
		if found {
			t.size -= len(rest[0].Bytes)
			t.sum -= rest[0].summed()
			rest = rest[1:]
		}
		if !e.delete {
			e.digest = e.summed()
			t.size += len(e.Bytes)
			t.sum += e.digest
			t.Objects = append(t.Objects, e.Object)
		}
	}
	t.Objects = append(t.Objects, rest...)
}

// replace is edit where each puts an object in place of another, within the list itself. It is false, and nothing was done,
// if one does not.
func (t *Table) replace(edits []edit) bool {
	places := make([]int, len(edits))
	for n, e := range edits {
		i, found := find(t.Objects, e.Ref())
		if !found || e.delete {
			return false
		}
		places[n] = i
	}
	for n, e := range edits {
		old := &t.Objects[places[n]]
		e.digest = e.summed()
		t.size += len(e.Bytes) - len(old.Bytes)
		t.sum += e.digest - old.summed()
		*old = e.Object
	}
	return true
}

// sum is the object's part of Table.Sum: the start of SHA-256 over its kind, name, revision and bytes.
func (o Object) sum() uint64 {
	head := make([]byte, 0, 1024)
	head = binary.AppendUvarint(head, uint64(len(o.Kind)))
	head = append(head, o.Kind...)
	head = binary.AppendUvarint(head, uint64(len(o.Name)))
	head = append(head, o.Name...)
	head = binary.AppendUvarint(head, o.Revision)
	if len(head)+len(o.Bytes) <= cap(head) {
		sum := sha256.Sum256(append(head, o.Bytes...))
		return binary.BigEndian.Uint64(sum[:])
	}
	h := sha256.New()
	h.Write(head)
	h.Write(o.Bytes)
	return binary.BigEndian.Uint64(h.Sum(head[:0]))
}

// summed is sum, which is not computed where it was before.
func (o Object) summed() uint64 {
	if o.digest != 0 {
		return o.digest
	}
	return o.sum()
}

// measure computes what is kept by the way: sizes and the sum.
func (t *Table) measure() {
	t.size, t.sum, t.former, t.refs = 0, 0, 0, 0
	for i := range t.Objects {
		o := &t.Objects[i]
		o.digest = o.sum()
		t.size += len(o.Bytes)
		t.sum += o.digest
	}
	for _, r := range t.History {
		t.former += r.former()
		t.refs += r.refs()
	}
}

// remember adds a record, and forgets as much of the oldest as the bounds ask for; the newest stays whole in any case.
func (t *Table) remember(r Record) {
	first := max(0, len(t.History)+1-maxHistory)
	t.refs += r.refs()
	for _, old := range t.History[:first] {
		t.refs -= old.refs()
		t.former -= old.former()
	}
	for ; t.refs > maxRefs && first < len(t.History); first++ {
		t.refs -= t.History[first].refs()
		t.former -= t.History[first].former()
	}
	t.History = pushed(t.History[first:], r, maxHistory)
	t.former += r.former()
	for i := 0; t.former > maxFormer && i < len(t.History)-1; i++ {
		t.former -= t.History[i].former()
		t.History[i] = t.History[i].withoutFormer()
	}
}

// pushed is a copy of the last of s with v behind it, at most limit.
func pushed[T any](s []T, v T, limit int) []T {
	s = s[max(0, len(s)+1-limit):]
	return append(append(make([]T, 0, len(s)+1), s...), v)
}

// ErrNotKept says that what a change replaced is not kept on this node. Others, the voters before all, may have it.
var ErrNotKept = errors.New("not kept on this node")

// At returns the spec as it was at an earlier revision, as far as this node's history goes back. It is without the
// cluster's own records.
func (s *State) At(revision uint64) (*State, error) {
	if revision > s.Revision {
		return nil, fmt.Errorf("revision %d is yet to come: the state is at %d", revision, s.Revision)
	}
	reached, kept := s.Revision, len(s.History)
	undone := map[Ref]edit{}
	for ; reached > revision; kept-- {
		if kept == 0 || s.History[kept-1].Revision != reached {
			return nil, fmt.Errorf("revision %d is no longer kept: the history goes back to %d", revision, reached)
		}
		r := s.History[kept-1]
		if r.bare {
			return nil, fmt.Errorf("revision %d: %w: what it knows in full goes back to %d", revision, ErrNotKept, reached)
		}
		for _, ref := range r.Put {
			undone[ref] = edit{Object{Kind: ref.Kind, Name: ref.Name}, true}
		}
		for _, o := range r.before {
			undone[o.Ref()] = edit{o, false}
		}
		reached--
	}
	then := &State{Table: s.Table}
	then.edit(slices.SortedFunc(maps.Values(undone), compareEdits))
	then.Revision = revision
	then.History = s.History[:kept:kept]
	for _, r := range s.History[kept:] {
		then.former -= r.former()
		then.refs -= r.refs()
	}
	return then, nil
}

// check refuses a change that must not come into the log over this state. It counts what would be and builds nothing.
func (s *State) check(c Change) error {
	if err := c.check(); err != nil {
		return err
	}
	t := s.table(c.Space)
	if _, known := s.answered(c); known || c.Expect != nil && *c.Expect != t.Revision {
		return nil // whether it is a conflict is judged in the order of the log, not by what is known here now
	}
	objects, size := len(t.Objects), t.size
	for _, o := range c.Put {
		old, found := t.Get(o.Kind, o.Name)
		if !found {
			objects++
		}
		size += len(o.Bytes) - len(old.Bytes)
	}
	for _, r := range c.Delete {
		if old, found := t.Get(r.Kind, r.Name); found {
			objects--
			size -= len(old.Bytes)
		}
	}
	most := MaxState
	if c.Space == Own {
		most = MaxOwn
	}
	switch {
	case objects > max(MaxObjects, len(t.Objects)): // one that shrinks what is too large is welcome
		return fmt.Errorf("there would be %d objects: at most %d", objects, MaxObjects)
	case size > max(most, t.size):
		return fmt.Errorf("all objects together would have %d bytes: at most %d", size, most)
	}
	return nil
}

// check refuses a change that is wrong in itself. Text must be UTF-8, or the log would not keep it as it is.
func (c Change) check() error {
	if c.Space > Own {
		return fmt.Errorf("there is no space %d", c.Space)
	}
	size := len(c.ID) + len(c.Author) + len(c.Note)
	if len(c.ID) > maxName || len(c.Author) > maxName {
		return fmt.Errorf("ID and author have %d and %d bytes: at most %d", len(c.ID), len(c.Author), maxName)
	}
	if !utf8.ValidString(c.ID) || !utf8.ValidString(c.Author) || !utf8.ValidString(c.Note) {
		return errors.New("ID, author and note must be UTF-8")
	}
	seen := make(map[Ref]bool, len(c.Put)+len(c.Delete))
	name := func(r Ref) error {
		switch {
		case r.Kind == "" || r.Name == "":
			return fmt.Errorf("%s %q: an object has a kind and a name", r.Kind, r.Name)
		case len(r.Kind) > maxName || len(r.Name) > maxName:
			return fmt.Errorf("%.40s… %.40q…: kind and name have at most %d bytes", r.Kind, r.Name, maxName)
		case !utf8.ValidString(r.Kind) || !utf8.ValidString(r.Name):
			return fmt.Errorf("%q %q: kind and name must be UTF-8", r.Kind, r.Name)
		case seen[r]:
			return fmt.Errorf("%s %s: named twice in one change", r.Kind, r.Name)
		}
		seen[r] = true
		size += len(r.Kind) + len(r.Name)
		return nil
	}
	for _, o := range c.Put {
		if err := name(o.Ref()); err != nil {
			return err
		}
		if len(o.Bytes) > MaxObject {
			return fmt.Errorf("%s %s: %d bytes: at most %d", o.Kind, o.Name, len(o.Bytes), MaxObject)
		}
		size += len(o.Bytes)
	}
	for _, r := range c.Delete {
		if err := name(r); err != nil {
			return err
		}
	}
	if size > MaxChange {
		return fmt.Errorf("change has %d bytes: at most %d", size, MaxChange)
	}
	return nil
}
