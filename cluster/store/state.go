package store

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
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
	MaxObjects = 200_000   // objects in all
	MaxState   = 256 << 20 // bytes of all objects: every node holds them in memory
	maxName    = 255       // bytes of a kind, a name, an author, an ID
)

// What a State remembers of the past. These are part of what is agreed: nodes that differ in them would differ in
// their answers, so they change only together with the format of the log.
const (
	maxHistory      = 100      // changes
	maxHistoryBytes = 64 << 20 // of the objects that those changes replaced; older changes are forgotten sooner to keep to it
	maxAnswers      = 1024     // IDs of changes, by which one that comes again is known
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
}

// Ref is the object's name.
func (o Object) Ref() Ref { return Ref{o.Kind, o.Name} }

// Change is what is applied as one: all of it or nothing.
type Change struct {
	// ID, if given, makes the change safe to send again: one whose ID was applied among the last 1024 is not applied a
	// second time, whatever else it says, and answers as the first did.
	ID string
	// Expect, if given, is the revision that the change was made for; at any other it is a *ConflictError.
	Expect *uint64

	Put    []Object // Revision is ignored
	Delete []Ref    // those that do not exist are passed over

	Author, Note string
	Time         time.Time // zero: when the leader took it
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
}

// size is roughly the memory that a record holds, in bytes.
func (r Record) size() int {
	n := 64 * (len(r.Put) + len(r.Delete))
	for _, o := range r.before {
		n += len(o.Bytes)
	}
	return n
}

// State is everything that is agreed at one revision. It is immutable.
type State struct {
	Revision uint64   // counts the changes that had an effect
	Objects  []Object // by kind, then name
	History  []Record // of the last changes, oldest first; at most 100

	size    int // bytes of all objects
	answers []answer
}

// answer is what a change with an ID led to.
type answer struct {
	ID       string `json:"id"`
	Revision uint64 `json:"revision"`
}

// Get returns an object.
func (s *State) Get(kind, name string) (Object, bool) {
	i, found := find(s.Objects, Ref{kind, name})
	if !found {
		return Object{}, false
	}
	return s.Objects[i], true
}

func find(objects []Object, ref Ref) (int, bool) {
	return slices.BinarySearchFunc(objects, ref, func(o Object, r Ref) int { return o.Ref().compare(r) })
}

// With returns the state after a change, and the revision at which the change is in effect. It is pure, and all nodes apply
// the log by it: the same changes in the same order give the same states and the same answers everywhere. A change
// without effect leaves the revision as it is. The only error is *ConflictError.
func (s *State) With(c Change) (next *State, revision uint64, err error) {
	if c.ID != "" {
		if i := slices.IndexFunc(s.answers, func(a answer) bool { return a.ID == c.ID }); i >= 0 {
			return s, s.answers[i].Revision, nil
		}
	}
	if c.Expect != nil && *c.Expect != s.Revision {
		return s, 0, &ConflictError{Expected: *c.Expect, Actual: s.Revision}
	}
	after := *s
	record := Record{Revision: s.Revision + 1, Time: c.Time, Author: c.Author, Note: c.Note}
	after.Objects, after.size = merge(s.Objects, s.size, c.edits(), &record)
	if len(record.Put)+len(record.Delete) == 0 {
		after.Objects = s.Objects
	} else {
		after.Revision = record.Revision
		after.History = remember(s.History, record)
	}
	if c.ID != "" {
		after.answers = pushed(s.answers, answer{c.ID, after.Revision}, maxAnswers)
	}
	return &after, after.Revision, nil
}

// edit is what a change wants of one object.
type edit struct {
	Ref
	bytes  []byte
	delete bool
}

// edits are the edits of a change in the order of the objects, one each: a put wins over a delete, and of two puts the later.
func (c Change) edits() []edit {
	wanted := make(map[Ref]edit, len(c.Put)+len(c.Delete))
	for _, r := range c.Delete {
		wanted[r] = edit{Ref: r, delete: true}
	}
	for _, o := range c.Put {
		wanted[o.Ref()] = edit{Ref: o.Ref(), bytes: o.Bytes}
	}
	return slices.SortedFunc(maps.Values(wanted), func(a, b edit) int { return a.compare(b.Ref) })
}

// merge copies the objects with the edits made, and records those that had an effect.
func merge(objects []Object, size int, edits []edit, record *Record) ([]Object, int) {
	merged := make([]Object, 0, len(objects)+len(edits))
	for _, e := range edits {
		i, found := find(objects, e.Ref)
		merged = append(merged, objects[:i]...)
		objects = objects[i:]
		var old Object
		if found {
			old, objects = objects[0], objects[1:]
		}
		switch {
		case found && !e.delete && bytes.Equal(old.Bytes, e.bytes):
			merged = append(merged, old)
			continue
		case !e.delete:
			merged = append(merged, Object{Kind: e.Kind, Name: e.Name, Bytes: e.bytes, Revision: record.Revision})
			record.Put = append(record.Put, e.Ref)
			size += len(e.bytes)
		case found:
			record.Delete = append(record.Delete, e.Ref)
		}
		if found {
			record.before = append(record.before, old)
			size -= len(old.Bytes)
		}
	}
	return append(merged, objects...), size
}

// remember adds a record and forgets as many of the oldest as the bounds ask for; the newest stays in any case.
func remember(history []Record, r Record) []Record {
	all := pushed(history, r, maxHistory)
	size := 0
	for i := len(all) - 1; i >= 0; i-- {
		if size += all[i].size(); size > maxHistoryBytes && i < len(all)-1 {
			return slices.Clone(all[i+1:]) // so that what is forgotten is freed
		}
	}
	return all
}

// pushed is a copy of the last of s with v behind it, at most limit.
func pushed[T any](s []T, v T, limit int) []T {
	s = s[max(0, len(s)+1-limit):]
	return append(slices.Clip(s), v)
}

// At returns the state as it was at an earlier revision, as far as the history goes back.
func (s *State) At(revision uint64) (*State, error) {
	if revision > s.Revision {
		return nil, fmt.Errorf("revision %d is yet to come: the state is at %d", revision, s.Revision)
	}
	kept := len(s.History)
	objects := make(map[Ref]Object, len(s.Objects))
	for _, o := range s.Objects {
		objects[o.Ref()] = o
	}
	reached := s.Revision
	for ; reached > revision && kept > 0; kept-- {
		r := s.History[kept-1]
		for _, ref := range r.Put {
			delete(objects, ref)
		}
		for _, o := range r.before {
			objects[o.Ref()] = o
		}
		reached = r.Revision - 1
	}
	if reached != revision {
		return nil, fmt.Errorf("revision %d is no longer kept: the history goes back to %d", revision, reached)
	}
	then := &State{
		Revision: revision,
		Objects:  slices.SortedFunc(maps.Values(objects), func(a, b Object) int { return a.Ref().compare(b.Ref()) }),
		History:  s.History[:kept:kept],
	}
	for _, o := range then.Objects {
		then.size += len(o.Bytes)
	}
	return then, nil
}

// check refuses a change that must not come into the log over this state.
func (s *State) check(c Change) error {
	if err := c.check(); err != nil {
		return err
	}
	after, _, err := s.With(c)
	switch {
	case err != nil:
		return nil // whether it is a conflict is judged in the order of the log, not by what is known here now
	case len(after.Objects) > max(MaxObjects, len(s.Objects)): // one that shrinks what is too large is welcome
		return fmt.Errorf("there would be %d objects: at most %d", len(after.Objects), MaxObjects)
	case after.size > max(MaxState, s.size):
		return fmt.Errorf("all objects together would have %d bytes: at most %d", after.size, MaxState)
	}
	return nil
}

// check refuses a change that is wrong in itself. Text must be UTF-8, or the log would not keep it as it is.
func (c Change) check() error {
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
