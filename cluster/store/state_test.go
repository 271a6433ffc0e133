package store

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
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
	gocmp.AllowUnexported(State{}, Record{}),
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
	// Large objects shorten it.
	big := func(i int) Change {
		c := Change{}
		for j := range 7 {
			c.Put = append(c.Put, Object{Kind: "big", Name: fmt.Sprint(j), Bytes: bytes.Repeat([]byte{byte(i)}, MaxObject)})
		}
		return c
	}
	for i := range 11 {
		s = must(t, s, big(i))
	}
	held := 0
	for _, r := range s.History {
		held += r.size()
	}
	if held > maxHistoryBytes || len(s.History) != 9 {
		t.Errorf("%d changes hold %d bytes", len(s.History), held)
	}
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
			known := c.ID != "" && slices.ContainsFunc(s.answers, func(a answer) bool { return a.ID == c.ID })
			s, _, _ = s.With(c)
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
	if size != s.size {
		t.Fatalf("size is %d, counted as %d", size, s.size)
	}
}

func TestWhatIsOutOfBoundsIsRefusedBeforeTheLog(t *testing.T) {
	full := &State{}
	for i := range MaxObjects {
		full.Objects = append(full.Objects, Object{Kind: "k", Name: fmt.Sprintf("%06d", i)})
	}
	heavy := &State{size: MaxState}
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
	} {
		err := test.over.check(test.change)
		if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %v, want %q", name, err, test.says)
		}
	}
}

func TestAChangeIsReadAsItWasWritten(t *testing.T) {
	expect := uint64(7)
	for name, c := range map[string]Change{
		"empty": {Time: then},
		"full": {
			ID: "id", Expect: &expect, Author: "ada", Note: "why\nand <why> not", Time: then,
			Put: []Object{put("k", "a", "\x00\xff"), put("k", "b", "")}, Delete: []Ref{{"k", "c"}},
		},
		"compressed": {Time: then, Put: []Object{put("k", "a", strings.Repeat("perigee ", 4096))}},
	} {
		data, err := encodeChange(c)
		if err != nil {
			t.Fatal(err)
		}
		read, err := decodeChange(data)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := gocmp.Diff(c, read, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
		if name == "compressed" && len(data) > 1024 {
			t.Errorf("it takes %d bytes", len(data))
		}
		for i := 0; i < len(data); i += 1 + len(data)/50 {
			if _, err := decodeChange(data[:i]); err == nil {
				t.Errorf("%s, cut at %d of %d: read", name, i, len(data))
			}
		}
		if _, err := decodeChange(append(data, 0)); err == nil && data[0] == formatPlain {
			t.Errorf("%s, with a byte too many: read", name)
		}
	}
}

// TestWhatEarlierReleasesWroteIsRead holds on to what is on people's disks.
func TestWhatEarlierReleasesWroteIsRead(t *testing.T) {
	expect := uint64(7)
	want := Change{
		ID: "id", Expect: &expect, Author: "ada", Note: "why", Time: then,
		Put: []Object{put("k", "a", "\x01\x02\x03")}, Delete: []Ref{{"k", "b"}},
	}
	got, err := decodeChange([]byte("\x01\x9c\x01" +
		`{"id":"id","expect":7,"author":"ada","note":"why","time":"2026-11-23T12:00:00Z",` +
		`"put":[{"kind":"k","name":"a","size":3}],"delete":[{"kind":"k","name":"b"}]}` + "\x01\x02\x03"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	state, err := hex.DecodeString("027c904f4ac63010c5f13bca5b4f2189e062cee14ae922b5231d8b8924a9a596dcd763482b2815bfeedffbbd3f9f9715" +
		"49de356b0c604788dd8b3c950c7e5c316ae8c1184108fe55c0f0a0a33ceb87806d6d0983e612d3b23b7f91965074f73ae3ee1a6b1b777b6f1d1bc3c63c80e0a7" +
		"32c4b4b17b0f428845c098870584b7a9ecb8ff8ad4b6d29feee741e7304227cf31c9d53c3a8efa19be4df721cf92be4fd3ed32ed8ffadad6cbcd57000000ffff")
	if err != nil {
		t.Fatal(err)
	}
	wantState := must(t, &State{}, Change{ID: "id", Time: then, Author: "ada", Note: "why", Put: []Object{put("k", "a", "\x01")}})
	wantState = must(t, wantState, Change{Time: then, Put: []Object{put("k", "a", "\x02")}})
	gotState, err := ReadState(bytes.NewReader(state))
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(wantState, gotState, same); diff != "" {
		t.Error(diff)
	}
}

func TestWhatALaterReleaseAddsIsPassedOver(t *testing.T) {
	var b bytes.Buffer
	header := map[string]any{
		"id": "x", "time": then, "mood": "good",
		"put": []map[string]any{{"kind": "k", "name": "a", "size": 1, "owner": "ada"}},
	}
	if err := write(&b, false, header, []Object{put("k", "a", "1")}); err != nil {
		t.Fatal(err)
	}
	c, err := decodeChange(b.Bytes())
	if err != nil || c.ID != "x" || len(c.Put) != 1 || string(c.Put[0].Bytes) != "1" {
		t.Fatalf("got %+v, %v", c, err)
	}
	data := b.Bytes()
	data[0] = 99
	var format *FormatError
	if _, err := decodeChange(data); !errors.As(err, &format) || format.Format != 99 {
		t.Fatalf("another format: %v", err)
	}
}

func FuzzDecodeChange(f *testing.F) {
	for _, c := range []Change{
		{Time: then, ID: "x", Put: []Object{put("k", "a", "1")}, Delete: []Ref{{"k", "b"}}},
		{Time: then, Put: []Object{put("k", "a", strings.Repeat("x", deflateFrom))}},
	} {
		data, err := encodeChange(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte{formatPlain, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add([]byte("\x01\x2a{\"put\":[{\"size\":16777216},{\"size\":-1}]}    "))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decodeChange(data)
		if err != nil {
			return
		}
		(&State{}).With(c)
	})
}

func FuzzReadState(f *testing.F) {
	s := &State{}
	for i := range 3 {
		s, _, _ = s.With(Change{ID: fmt.Sprint(i), Time: then, Put: []Object{put("k", "a", fmt.Sprint(i))}})
	}
	var b bytes.Buffer
	if err := WriteState(&b, s); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	var plain bytes.Buffer
	if err := write(&plain, false, stateHeader{Revision: 1, Objects: objectHeaders(s.Objects)}, s.Objects); err != nil {
		f.Fatal(err)
	}
	f.Add(plain.Bytes())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ReadState(bytes.NewReader(data))
		if err != nil {
			return
		}
		// What is read can be worked with and written again.
		for _, r := range s.History {
			s.At(r.Revision)
		}
		next, _, err := s.With(Change{Put: []Object{put("k", "new", "1")}})
		if err != nil {
			t.Fatal(err)
		}
		if err := WriteState(io.Discard, next); err != nil {
			t.Fatal(err)
		}
	})
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
	for _, n := range []int{100, 10_000, 200_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := large(b, n)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s = must(b, s, Change{ID: fmt.Sprint(i), Put: []Object{put("TargetGroup", "group-000042", fmt.Sprint(i))}})
			}
		})
	}
}

func BenchmarkWriteState10000(b *testing.B) {
	s := large(b, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		if err := WriteState(io.Discard, s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadState10000(b *testing.B) {
	var buf bytes.Buffer
	if err := WriteState(&buf, large(b, 10_000)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ReadState(bytes.NewReader(buf.Bytes())); err != nil {
			b.Fatal(err)
		}
	}
}
