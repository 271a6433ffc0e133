package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// bare is the state without what a delta does not carry.
func bare(s *State) *State {
	next := *s
	next.answers = nil
	for _, t := range []*Table{&next.Table, &next.Own} {
		t.History = slices.Clone(t.History)
		for i, r := range t.History {
			t.History[i] = r.withoutFormer()
		}
		t.former = 0
	}
	return &next
}

// TestADeltaLeadsToTheSameState takes random pairs of states of one history.
func TestADeltaLeadsToTheSameState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		refs := rapid.Custom(func(t *rapid.T) Ref { return Ref{names.Draw(t, "kind"), names.Draw(t, "name")} })
		states := []*State{{}}
		for range rapid.IntRange(0, 20).Draw(t, "changes") {
			c := Change{Time: then, Space: Space(rapid.IntRange(0, 1).Draw(t, "space")), Delete: rapid.SliceOfN(refs, 0, 3).Draw(t, "delete")}
			for _, r := range rapid.SliceOfN(refs, 0, 3).Draw(t, "put") {
				c.Put = append(c.Put, put(r.Kind, r.Name, rapid.SampledFrom([]string{"", "1", "2", long("1"), long("2"), long("3")}).Draw(t, "content")))
			}
			next, _, _ := states[len(states)-1].With(c)
			states = append(states, next)
		}
		i := rapid.IntRange(0, len(states)-1).Draw(t, "from")
		j := rapid.IntRange(i, len(states)-1).Draw(t, "to")
		from, to := states[i], states[j]

		d, ok := to.Since(from.Position())
		if !ok {
			t.Fatal("there is none")
		}
		whole := d
		if rapid.Bool().Draw(t, "edits") {
			if d = to.Edited(d); len(d.Spec.edited) > 0 && bytesOf(d.Spec.Put) >= bytesOf(whole.Spec.Put) {
				t.Fatal("it is no shorter with edits")
			}
		}
		data, err := EncodeDelta(d)
		if err != nil {
			t.Fatal(err)
		}
		if (data[0] == formatEdited) != (len(d.Spec.edited) > 0) {
			t.Fatalf("it is in format %d with %d edits", data[0], len(d.Spec.edited))
		}
		read, err := DecodeDelta(data)
		if err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(d, read, same); diff != "" {
			t.Fatalf("another delta is read than was written:\n%s", diff)
		}
		got, err := from.WithDelta(read)
		if err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(bare(to), bare(got), same); diff != "" {
			t.Fatalf("from %v to %v:\n%s", from.Position(), to.Position(), diff)
		}
		if diff := gocmp.Diff(measured(got.Table), got.Table, same); diff != "" {
			t.Fatalf("counted otherwise:\n%s", diff)
		}
		for revision := range to.Revision + 1 { // what it says of the past is right
			if then, err := got.At(revision); err == nil {
				want, _ := to.At(revision)
				if diff := gocmp.Diff(want.Objects, then.Objects, same); diff != "" {
					t.Fatalf("at %d:\n%s", revision, diff)
				}
			}
		}
		if whole.Spec.Sum != from.sumAfter(whole.Spec) || whole.Own.Sum != from.Own.sumAfter(whole.Own) {
			t.Fatal("the sum is foretold otherwise")
		}

		// And so do the edits, whichever of the two is the newer.
		for _, pair := range [][2]*Table{{&from.Table, &to.Table}, {&to.Table, &from.Table}, {nil, &to.Table}, {&to.Table, nil}} {
			want := map[Ref]Object{}
			if pair[1] != nil {
				for _, o := range pair[1].Objects {
					want[o.Ref()] = o
				}
			}
			edits := Changed(pair[0], pair[1])
			got := map[Ref]Object{}
			if pair[0] != nil {
				for _, o := range pair[0].Objects {
					got[o.Ref()] = o
				}
			}
			for _, r := range edits.Delete {
				if _, there := got[r]; !there {
					t.Fatalf("%v is deleted and was not there", r)
				}
				delete(got, r)
			}
			for _, o := range edits.Put {
				if old, there := got[o.Ref()]; there && old.Revision == o.Revision && string(old.Bytes) == string(o.Bytes) {
					t.Fatalf("%v is put and has not changed", o.Ref())
				}
				got[o.Ref()] = o
			}
			if diff := gocmp.Diff(want, got, same); diff != "" {
				t.Fatal(diff)
			}
			if !slices.IsSortedFunc(edits.Put, func(a, b Object) int { return a.Ref().compare(b.Ref()) }) || !slices.IsSortedFunc(edits.Delete, Ref.compare) {
				t.Fatal("edits are out of order")
			}
		}
	})
}

func TestAFollowerOfEachChangeKnowsThePast(t *testing.T) {
	leader, follower := &State{}, &State{}
	for i := range 20 {
		leader = must(t, leader, Change{Put: []Object{put("k", fmt.Sprint(i%3), fmt.Sprint(i))}, Delete: []Ref{{"k", fmt.Sprint((i + 1) % 3)}}})
		d, _ := leader.Since(follower.Position())
		var err error
		if follower, err = follower.WithDelta(d); err != nil {
			t.Fatal(err)
		}
	}
	for revision := range leader.Revision + 1 {
		want, _ := leader.At(revision)
		got, err := follower.At(revision)
		if err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(want.Objects, got.Objects, same); diff != "" {
			t.Errorf("at %d:\n%s", revision, diff)
		}
	}
}

func TestThereIsNoDeltaWhereTheHistoryDoesNotReach(t *testing.T) {
	s := &State{}
	for i := range maxHistory + 5 {
		s = must(t, s, Change{Put: []Object{put("k", "a", fmt.Sprint(i))}})
	}
	grown := *s // as after a restore: revisions that nobody made
	grown.Revision += 100
	after := must(t, &grown, Change{Put: []Object{put("k", "b", "")}})
	heavy := &State{}
	for i := range maxDelta/MaxObject + 1 {
		heavy = must(t, heavy, Change{Put: []Object{{Kind: "k", Name: fmt.Sprint(i), Bytes: make([]byte, MaxObject)}}})
	}
	for name, test := range map[string]struct {
		state *State
		from  Position
		ok    bool
	}{
		"now":                      {s, s.Position(), true},
		"as far as it goes":        {s, Position{5, 0}, true},
		"further":                  {s, Position{4, 0}, false},
		"the future":               {s, Position{s.Revision + 1, 0}, false},
		"own: the future":          {s, Position{s.Revision, 1}, false},
		"before a restore":         {&grown, s.Position(), false},
		"in the gap":               {&grown, Position{s.Revision + 50, 0}, false},
		"at the restore":           {&grown, grown.Position(), true},
		"before it, from after it": {after, s.Position(), false},
		"since the restore":        {after, grown.Position(), true},
		"too large":                {heavy, Position{}, false},
		"large":                    {heavy, Position{1, 0}, true},
	} {
		if _, ok := test.state.Since(test.from); ok != test.ok {
			t.Errorf("%s: there is one: %v", name, ok)
		}
	}
	if _, err := after.At(s.Revision + 50); err == nil || !strings.Contains(err.Error(), "goes back to 1105") {
		t.Errorf("got %v", err)
	}
}

func TestADeltaThatDoesNotFitIsRefused(t *testing.T) {
	base := must(t, &State{}, Change{Put: []Object{put("k", "a", "1"), put("k", "b", "1")}})
	other := must(t, &State{}, Change{Put: []Object{put("k", "a", "2"), put("k", "b", "1")}})
	next := must(t, must(t, base, Change{Put: []Object{put("k", "b", "2")}}), Change{Delete: []Ref{{"k", "b"}}, Put: []Object{put("k", "c", "1")}})
	good := func() Delta {
		d, _ := next.Since(base.Position())
		return d
	}
	for name, test := range map[string]struct {
		to   *State
		edit func(*Delta)
		says string
	}{
		"as it is":              {base, func(d *Delta) {}, ""},
		"to another state":      {other, func(d *Delta) {}, "sum"},
		"to a later state":      {next, func(d *Delta) {}, "leads from 1/0"},
		"another sum":           {base, func(d *Delta) { d.Spec.Sum++ }, "sum"},
		"another own sum":       {base, func(d *Delta) { d.Own.Sum++ }, "own records: the sum"},
		"backwards":             {base, func(d *Delta) { d.To.Spec = 0 }, "before 1"},
		"nowhere":               {base, func(d *Delta) { d.To.Spec = 1; d.Spec.Records = nil }, "the revision did not"},
		"a record too many":     {base, func(d *Delta) { d.Spec.Records = append(d.Spec.Records, Record{Revision: 4}) }, "records"},
		"other records":         {base, func(d *Delta) { d.Spec.Records[0].Revision = 9 }, "records"},
		"put twice":             {base, func(d *Delta) { d.Spec.Put = append(d.Spec.Put, d.Spec.Put[0]) }, "twice"},
		"put and deleted":       {base, func(d *Delta) { d.Spec.Put = append(d.Spec.Put, put("k", "b", "")) }, "twice"},
		"written before":        {base, func(d *Delta) { d.Spec.Put[0].Revision = 1 }, "written at revision 1"},
		"written after":         {base, func(d *Delta) { d.Spec.Put[0].Revision = 4 }, "written at revision 4"},
		"without first records": {base, func(d *Delta) { d.Spec.Records = d.Spec.Records[1:] }, ""},
	} {
		d := good()
		test.edit(&d)
		got, err := test.to.WithDelta(d)
		if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %v, want %q", name, err, test.says)
		}
		if err == nil && len(got.History) > len(d.Spec.Records)+1 {
			t.Errorf("%s: %d records", name, len(got.History))
		}
	}
}

func BenchmarkChangedAmong100000(b *testing.B) {
	old := large(b, 100_000)
	next := must(b, old, Change{Put: []Object{put("TargetGroup", "group-000042", "x")}, Delete: []Ref{{"TargetGroup", "group-000007"}}})
	for b.Loop() {
		if e := Changed(&old.Table, &next.Table); len(e.Put) != 1 || len(e.Delete) != 1 {
			b.Fatal(e)
		}
	}
}

func BenchmarkDeltaAmong100000(b *testing.B) {
	old := large(b, 100_000)
	next := must(b, old, Change{Put: []Object{put("TargetGroup", "group-000042", "x")}, Delete: []Ref{{"TargetGroup", "group-000007"}}})
	d, _ := next.Since(old.Position())
	data, err := EncodeDelta(d)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("Since", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			next.Since(old.Position())
		}
	})
	b.Run("Encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			EncodeDelta(d)
		}
		b.ReportMetric(float64(len(data)), "bytes")
	})
	b.Run("Decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			DecodeDelta(data)
		}
	})
	b.Run("With", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := old.WithDelta(d); err != nil {
				b.Fatal(err)
			}
		}
	})
}
