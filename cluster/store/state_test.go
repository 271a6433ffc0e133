package store

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

var then = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// same compares what a State is made of, what is not exported included.
var same = gocmp.Options{
	gocmp.AllowUnexported(State{}, Table{}, Record{}, Change{}, TableDelta{}),
	cmpopts.IgnoreUnexported(Object{}),                                                                   // what is computed once and kept
	gocmp.FilterValues(func(a, b []byte) bool { return len(a)+len(b) > 0 }, gocmp.Comparer(bytes.Equal)), // not byte by byte
	cmpopts.EquateEmpty(),
}

func put(kind, name, content string) Object {
	return Object{Kind: kind, Name: name, Bytes: []byte(content)}
}

func must(t testing.TB, s *State, c Change) *State {
	t.Helper()
	next, _, err := s.With(c)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func TestEachChangeWithAnEffectIsOneRevision(t *testing.T) {
	web, api := put("TargetGroup", "web", "1"), put("LoadBalancer", "api", "1")
	s := must(t, &State{}, Change{Put: []Object{web, api}, Author: "ada", Note: "first", Time: then})
	if s.Revision != 1 || len(s.Objects) != 2 || s.Objects[0].Name != "api" || s.Objects[1].Name != "web" {
		t.Fatalf("got %+v", s)
	}
	for name, test := range map[string]struct {
		change Change
		effect bool
	}{
		"the same bytes again":          {Change{Put: []Object{web}}, false},
		"deleting what is not":          {Change{Delete: []Ref{{"TargetGroup", "none"}, {"Kind", "web"}}}, false},
		"nothing":                       {Change{}, false},
		"other bytes":                   {Change{Put: []Object{put("TargetGroup", "web", "2")}}, true},
		"no bytes":                      {Change{Put: []Object{put("TargetGroup", "web", "")}}, true},
		"deleting what is":              {Change{Delete: []Ref{{"TargetGroup", "web"}}}, true},
		"one with and one without":      {Change{Put: []Object{web, put("LoadBalancer", "api", "2")}}, true},
		"the same name of another kind": {Change{Put: []Object{put("Kind", "web", "1")}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			before := *s
			next, revision, err := s.With(test.change)
			if err != nil {
				t.Fatal(err)
			}
			want := s.Revision
			if test.effect {
				want++
			}
			if next.Revision != want || revision != want || len(next.History) != int(want) {
				t.Errorf("at revision %d, said %d, with %d in the history; want %d", next.Revision, revision, len(next.History), want)
			}
			if diff := gocmp.Diff(&before, s, same); diff != "" {
				t.Errorf("the state before has changed:\n%s", diff)
			}
		})
	}
}

func TestAnObjectCarriesTheRevisionThatWroteIt(t *testing.T) {
	s := must(t, &State{}, Change{Put: []Object{put("k", "a", "1"), put("k", "b", "1")}})
	s = must(t, s, Change{Put: []Object{put("k", "a", "1"), put("k", "b", "2")}})
	a, _ := s.Get("k", "a")
	b, _ := s.Get("k", "b")
	if a.Revision != 1 || b.Revision != 2 {
		t.Errorf("a is of revision %d and b of %d, want 1 and 2", a.Revision, b.Revision)
	}
	if _, ok := s.Get("k", "c"); ok {
		t.Error("there is a c")
	}
	want := Record{Revision: 2, Put: []Ref{{"k", "b"}}}
	if diff := gocmp.Diff(want, s.History[1], same, cmpopts.IgnoreFields(Record{}, "before")); diff != "" {
		t.Errorf("the history says otherwise:\n%s", diff)
	}
}

func TestAChangeForAnotherRevisionIsAConflict(t *testing.T) {
	s := must(t, &State{}, Change{Put: []Object{put("k", "a", "1")}})
	for expect, ok := range map[uint64]bool{0: false, 1: true, 2: false} {
		next, _, err := s.With(Change{Expect: &expect, Put: []Object{put("k", "a", "2")}})
		var conflict *ConflictError
		switch {
		case ok && err != nil:
			t.Errorf("expecting %d: %v", expect, err)
		case !ok && (!errors.As(err, &conflict) || conflict.Expected != expect || conflict.Actual != 1 || next != s):
			t.Errorf("expecting %d: got %v", expect, err)
		}
	}
}

func TestAChangeThatComesAgainIsNotAppliedAgain(t *testing.T) {
	zero := uint64(0)
	first := Change{ID: "x", Expect: &zero, Put: []Object{put("k", "a", "1")}}
	s := must(t, &State{}, first)
	s = must(t, s, Change{Put: []Object{put("k", "a", "2")}})
	again, revision, err := s.With(first)
	if err != nil || again != s || revision != 1 {
		t.Fatalf("the second time: revision %d, %v; want the first answer and the state as it is", revision, err)
	}
	// Neither is one that had no effect then, though it would have one now.
	s = must(t, s, Change{ID: "y", Delete: []Ref{{"k", "b"}}})
	s = must(t, s, Change{Put: []Object{put("k", "b", "1")}})
	s = must(t, s, Change{ID: "y", Delete: []Ref{{"k", "b"}}})
	if _, there := s.Get("k", "b"); !there || s.Revision != 3 {
		t.Errorf("b is there: %v, at revision %d", there, s.Revision)
	}
	// One that was refused is judged anew.
	three := uint64(3)
	conflicting := Change{ID: "z", Expect: &zero, Put: []Object{put("k", "c", "1")}}
	if _, _, err := s.With(conflicting); err == nil {
		t.Fatal("no conflict")
	}
	conflicting.Expect = &three
	if s = must(t, s, conflicting); s.Revision != 4 {
		t.Errorf("at revision %d after the conflict was resolved", s.Revision)
	}
}

func TestTheLast1024IDsAreKnown(t *testing.T) {
	s := &State{}
	for i := range maxAnswers + 1 {
		s = must(t, s, Change{ID: fmt.Sprint(i), Put: []Object{put("k", "a", fmt.Sprint(i))}})
	}
	for id, known := range map[string]bool{"0": false, "1": true, "1024": true} {
		next := must(t, s, Change{ID: id, Put: []Object{put("k", "a", "x")}})
		if (next == s) != known {
			t.Errorf("ID %s is known: %v", id, !known)
		}
	}
}

func TestTheHistoryIsBounded(t *testing.T) {
	s := &State{}
	for i := range maxHistory + 10 {
		s = must(t, s, Change{Put: []Object{put("k", "a", fmt.Sprint(i))}})
	}
	if len(s.History) != maxHistory || s.History[0].Revision != 11 {
		t.Errorf("%d changes from %d", len(s.History), s.History[0].Revision)
	}
	if _, err := s.At(10); err != nil {
		t.Errorf("before the oldest change: %v", err)
	}
	if _, err := s.At(9); err == nil || !strings.Contains(err.Error(), "goes back to 10") {
		t.Errorf("got %v", err)
	}

	// Of large objects only the newest former ones are kept; the changes stay in the history.
	big := func(i int) Change {
		c := Change{}
		for j := range 7 {
			c.Put = append(c.Put, Object{Kind: "big", Name: fmt.Sprint(j), Bytes: bytes.Repeat([]byte{byte(i)}, MaxObject)})
		}
		return c
	}
	for i := range 5 {
		s = must(t, s, big(i))
	}
	if held := measured(s.Table); held.former > maxFormer || len(s.History) != maxHistory {
		t.Errorf("%d changes hold %d bytes", len(s.History), held.former)
	}
	if _, err := s.At(s.Revision - 2); err != nil { // 2 × 7 MiB
		t.Error(err)
	}
	if _, err := s.At(s.Revision - 3); err == nil || !strings.Contains(err.Error(), "not kept on this node") {
		t.Errorf("got %v", err)
	}

	// Changes of many objects shorten the history, except the newest.
	many := func(first, n int) Change {
		c := Change{}
		for i := range n {
			c.Put = append(c.Put, put("many", fmt.Sprint(first+i), ""))
		}
		return c
	}
	s = must(t, s, many(0, maxRefs-10))
	if len(s.History) < 2 || measured(s.Table).refs > maxRefs {
		t.Errorf("%d changes name %d objects", len(s.History), s.refs)
	}
	s = must(t, s, many(maxRefs, maxRefs+1))
	if len(s.History) != 1 {
		t.Errorf("%d changes are kept beside one that is too large", len(s.History))
	}
	if m := measured(s.Table); m.size != s.size || m.sum != s.sum || m.former != s.former || m.refs != s.refs {
		t.Error("sizes or sums are counted otherwise")
	}
}

// measured is the table with its sums counted anew.
func measured(t Table) Table {
	t.measure()
	return t
}

// TestStatesFollowAModel applies random changes to a State and to a plain map, and compares.
func TestStatesFollowAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		refs := rapid.Custom(func(t *rapid.T) Ref { return Ref{names.Draw(t, "kind"), names.Draw(t, "name")} })
		contents := rapid.SampledFrom([]string{"", "1", "2", "long content"})

		s := &State{}
		model := map[Ref]string{}
		past := []map[Ref]string{maps.Clone(model)} // by revision
		for range rapid.IntRange(0, 30).Draw(t, "changes") {
			c := Change{Time: then, ID: rapid.SampledFrom([]string{"", "x", "y", "z"}).Draw(t, "id")}
			c.Delete = rapid.SliceOfN(refs, 0, 3).Draw(t, "delete")
			for _, r := range rapid.SliceOfN(refs, 0, 3).Draw(t, "put") {
				c.Put = append(c.Put, put(r.Kind, r.Name, contents.Draw(t, "content")))
			}
			_, known := s.answered(c)
			own := s.Own
			s, _, _ = s.With(c)
			if diff := gocmp.Diff(own, s.Own, same); diff != "" {
				t.Fatalf("a change of the spec changed the cluster's own records:\n%s", diff)
			}
			if !known {
				for _, r := range c.Delete {
					if !slices.ContainsFunc(c.Put, func(o Object) bool { return o.Ref() == r }) {
						delete(model, r)
					}
				}
				for _, o := range c.Put {
					model[o.Ref()] = string(o.Bytes)
				}
				if !maps.Equal(model, past[len(past)-1]) {
					past = append(past, maps.Clone(model))
				}
			}
			check(t, s, past, uint64(len(past)-1))
		}
		for revision := range past {
			old, err := s.At(uint64(revision))
			if err != nil {
				t.Fatal(err)
			}
			check(t, old, past, uint64(revision))
		}
		if _, err := s.At(s.Revision + 1); err == nil {
			t.Fatal("the future is known")
		}
		var b bytes.Buffer
		if err := WriteState(&b, s); err != nil {
			t.Fatal(err)
		}
		read, err := ReadState(&b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(s, read, same); diff != "" {
			t.Fatalf("another state is read than was written:\n%s", diff)
		}
	})
}

func check(t *rapid.T, s *State, past []map[Ref]string, revision uint64) {
	if s.Revision != revision {
		t.Fatalf("at revision %d, want %d", s.Revision, revision)
	}
	if !slices.IsSortedFunc(s.Objects, func(a, b Object) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name)) }) {
		t.Fatal("objects are out of order")
	}
	got, size := map[Ref]string{}, 0
	for _, o := range s.Objects {
		got[o.Ref()] = string(o.Bytes)
		size += len(o.Bytes)
		if o.Revision == 0 || o.Revision > revision || past[o.Revision][o.Ref()] != string(o.Bytes) {
			t.Fatalf("%v says it was written at %d", o.Ref(), o.Revision)
		}
	}
	if !maps.Equal(got, past[revision]) {
		t.Fatalf("revision %d is %v, want %v", revision, got, past[revision])
	}
	if m := measured(s.Table); size != s.Bytes() || m.sum != s.Sum() || m.former != s.former || m.refs != s.refs {
		t.Fatalf("size is %d, sum %x, and with the history %+v; want %d and %+v", s.Bytes(), s.Sum(), s.Table, size, m)
	}
}

func TestWhatIsOutOfBoundsIsRefusedBeforeTheLog(t *testing.T) {
	full := &State{}
	for i := range MaxObjects {
		full.Objects = append(full.Objects, Object{Kind: "k", Name: fmt.Sprintf("%06d", i)})
	}
	heavy := &State{Table: Table{size: MaxState}, Own: Table{size: MaxOwn}}
	nine := make([]Object, 9)
	for i := range nine {
		nine[i] = Object{Kind: "k", Name: fmt.Sprint(i), Bytes: make([]byte, MaxObject)}
	}
	long := strings.Repeat("x", maxName+1)
	for name, test := range map[string]struct {
		over   *State
		change Change
		says   string // "" if it is let in
	}{
		"as large as may be":     {&State{}, Change{Put: nine[:7]}, ""},
		"too large together":     {&State{}, Change{Put: nine}, "change has"},
		"one too large":          {&State{}, Change{Put: []Object{{Kind: "k", Name: "a", Bytes: make([]byte, MaxObject+1)}}}, "k a: 1048577 bytes"},
		"one more object":        {full, Change{Put: []Object{put("k", "new", "")}}, "200001 objects"},
		"one for another":        {full, Change{Put: []Object{put("k", "new", "")}, Delete: []Ref{{"k", "000000"}}}, ""},
		"one byte more":          {heavy, Change{Put: []Object{put("k", "a", "1")}}, "all objects together"},
		"no kind":                {&State{}, Change{Put: []Object{put("", "a", "")}}, "has a kind and a name"},
		"no name":                {&State{}, Change{Delete: []Ref{{"k", ""}}}, "has a kind and a name"},
		"long kind":              {&State{}, Change{Put: []Object{put(long, "a", "")}}, "at most 255"},
		"long name":              {&State{}, Change{Delete: []Ref{{"k", long}}}, "at most 255"},
		"name not UTF-8":         {&State{}, Change{Put: []Object{put("k", "\xff", "")}}, "UTF-8"},
		"note not UTF-8":         {&State{}, Change{Note: "\xff"}, "UTF-8"},
		"long ID":                {&State{}, Change{ID: long}, "at most 255"},
		"long author":            {&State{}, Change{Author: long}, "at most 255"},
		"long note":              {&State{}, Change{Note: strings.Repeat("x", MaxChange+1)}, "change has"},
		"put twice":              {&State{}, Change{Put: []Object{put("k", "a", "1"), put("k", "a", "2")}}, "named twice"},
		"put and deleted":        {&State{}, Change{Put: []Object{put("k", "a", "1")}, Delete: []Ref{{"k", "a"}}}, "named twice"},
		"any bytes":              {&State{}, Change{Put: []Object{put("k", "a", "\xff\x00")}}, ""},
		"a conflict, judged yet": {&State{}, Change{Expect: new(uint64)}, ""},
		"no such space":          {&State{}, Change{Space: 2}, "no space 2"},
		"own: one byte more":     {heavy, Change{Space: Own, Put: []Object{put("k", "a", "1")}}, "at most 33554432"},
	} {
		err := test.over.check(test.change)
		if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %v, want %q", name, err, test.says)
		}
	}
}

func TestEachSpaceHasItsOwnRevisionHistoryAndAnswers(t *testing.T) {
	zero := uint64(0)
	s := must(t, &State{}, Change{ID: "x", Put: []Object{put("k", "a", "1")}})
	s = must(t, s, Change{ID: "x", Space: Own, Expect: &zero, Put: []Object{put("Node", "icn1", "1")}}) // another change, though its ID is the same
	s = must(t, s, Change{Space: Own, Put: []Object{put("Node", "icn1", "2")}, Delete: []Ref{{"k", "a"}}})
	if s.Position() != (Position{1, 2}) || len(s.History) != 1 || len(s.Own.History) != 2 || len(s.Objects) != 1 || len(s.Own.Objects) != 1 {
		t.Fatalf("got %+v", s)
	}
	if o, _ := s.Own.Get("Node", "icn1"); string(o.Bytes) != "2" || o.Revision != 2 {
		t.Errorf("got %+v", o)
	}
	if r := s.Own.History[1]; !r.bare || r.before != nil {
		t.Errorf("a former record of the cluster's own is kept: %+v", r)
	}
	var conflict *ConflictError
	if _, _, err := s.With(Change{Space: Own, Expect: &zero}); !errors.As(err, &conflict) || conflict.Actual != 2 {
		t.Errorf("got %v", err)
	}
	if again, revision, err := s.With(Change{ID: "x", Space: Own}); again != s || revision != 1 || err != nil {
		t.Errorf("the second time: %d, %v", revision, err)
	}
	next := must(t, s, Change{Put: []Object{put("k", "a", "2")}})
	if &next.Own.Objects[0] != &s.Own.Objects[0] {
		t.Error("the table that the change is not of was copied")
	}
	if at, err := next.At(1); err != nil || at.Own.Revision != 0 || string(at.Objects[0].Bytes) != "1" {
		t.Errorf("got %+v, %v", at, err)
	}
}

func TestEachGoesThroughOneKind(t *testing.T) {
	s := must(t, &State{}, Change{Put: []Object{put("a", "z", ""), put("b", "2", ""), put("b", "1", ""), put("ba", "0", ""), put("c", "a", "")}})
	for kind, want := range map[string]string{"a": "z", "b": "12", "ba": "0", "bb": "", "c": "a", "d": "", "": ""} {
		got := ""
		for o := range s.Each(kind) {
			got += o.Name
		}
		if got != want {
			t.Errorf("%q: %q, want %q", kind, got, want)
		}
	}
	for o := range s.Each("b") {
		if o.Name != "1" {
			t.Error("it does not stop")
		}
		break
	}
}

func TestThePositionOrdersStates(t *testing.T) {
	for _, test := range []struct {
		p, q          Position
		less, atLeast bool
	}{
		{Position{1, 1}, Position{1, 1}, false, true},
		{Position{1, 1}, Position{2, 1}, true, false},
		{Position{1, 1}, Position{2, 2}, true, false},
		{Position{1, 2}, Position{2, 1}, false, false},
		{Position{2, 2}, Position{2, 1}, false, true},
	} {
		if test.p.Less(test.q) != test.less || test.p.AtLeast(test.q) != test.atLeast {
			t.Errorf("%v and %v: less %v, at least %v", test.p, test.q, test.p.Less(test.q), test.p.AtLeast(test.q))
		}
	}
}

// large is a state of n objects of 1 KiB.
func large(tb testing.TB, n int) *State {
	s := &State{}
	for first := 0; first < n; first += 5000 {
		c := Change{}
		for i := first; i < min(n, first+5000); i++ {
			c.Put = append(c.Put, Object{Kind: "TargetGroup", Name: fmt.Sprintf("group-%06d", i), Bytes: bytes.Repeat([]byte("perigee "), 128)})
		}
		s = must(tb, s, c)
	}
	return s
}

func BenchmarkAChangeAmong(b *testing.B) {
	for _, n := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := large(b, n)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s = must(b, s, Change{ID: fmt.Sprint(i), Put: []Object{put("TargetGroup", "group-000042", fmt.Sprint(i))}})
			}
		})
	}
}

func BenchmarkWriteState100000(b *testing.B) {
	s := large(b, 100_000)
	b.ReportAllocs()
	for b.Loop() {
		if err := WriteState(io.Discard, s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadState100000(b *testing.B) {
	var buf bytes.Buffer
	if err := WriteState(&buf, large(b, 100_000)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ReadState(bytes.NewReader(buf.Bytes())); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMemoryOf100000 reads a state of objects of 100 bytes, and says what each costs beyond its bytes.
func BenchmarkMemoryOf100000(b *testing.B) {
	const n = 100_000
	s := &State{}
	for first := 0; first < n; first += 5000 {
		c := Change{}
		for i := range 5000 {
			c.Put = append(c.Put, Object{Kind: "TargetGroup", Name: fmt.Sprintf("group-%06d", first+i), Bytes: bytes.Repeat([]byte{'x'}, 100)})
		}
		s = must(b, s, c)
	}
	s = bare(s)
	var buf bytes.Buffer
	if err := WriteState(&buf, s); err != nil {
		b.Fatal(err)
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var states []*State
	before := heap()
	for b.Loop() {
		read, err := ReadState(bytes.NewReader(buf.Bytes()))
		if err != nil {
			b.Fatal(err)
		}
		read.History = nil
		states = append(states, read)
	}
	b.ReportMetric(float64(heap()-before)/float64(len(states))/n-100, "B/object")
	runtime.KeepAlive(s)
}
