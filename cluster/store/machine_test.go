package store

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

// A node that is started again reads the same from its journal and from the log: it holds it once, until the log has come as far.
func TestWhatIsKnownBeforeTakesNoOtherMemory(t *testing.T) {
	entry := func(c Change) *raft.Log {
		c.Time = then
		data, err := encodeChange(c)
		if err != nil {
			t.Fatal(err)
		}
		return &raft.Log{Type: raft.LogCommand, Data: data}
	}
	log := []*raft.Log{
		entry(Change{Put: []Object{put("k", "a", "1"), put("k", "b", "old")}}),
		entry(Change{Put: []Object{put("k", "b", "2")}}),
		entry(Change{Space: Own, Put: []Object{put("k", "a", "3")}}),
	}
	known := &machine{now: &State{}}
	known.ApplyBatch(log)
	same := func(a, b *Table, name string) bool {
		x, _ := a.Get("k", name)
		y, _ := b.Get("k", name)
		return &x.Bytes[0] == &y.Bytes[0]
	}

	m := &machine{now: &State{}, known: known.now}
	m.ApplyBatch(log[:1])
	if !same(&m.now.Table, &known.now.Table, "a") || same(&m.now.Table, &known.now.Table, "b") || m.known == nil {
		t.Error("after one entry the memory is another, or what was known is forgotten")
	}
	m.ApplyBatch(log[1:])
	if !same(&m.now.Table, &known.now.Table, "b") || !same(&m.now.Own, &known.now.Own, "a") || m.known != nil {
		t.Error("after all the memory is another, or what was known is not forgotten")
	}

	var snapshot bytes.Buffer
	if err := WriteState(&snapshot, known.now); err != nil {
		t.Fatal(err)
	}
	m = &machine{now: &State{}, known: known.now}
	if err := m.Restore(io.NopCloser(&snapshot)); err != nil {
		t.Fatal(err)
	}
	if !same(&m.now.Table, &known.now.Table, "a") || !same(&m.now.Own, &known.now.Own, "a") || m.known != nil || m.now.Sum() != known.now.Sum() {
		t.Error("of a snapshot the memory is another, or what was known is not forgotten")
	}
}

// long is long enough to be edited.
func long(s string) string {
	return strings.Repeat("a line of many\n", editsFrom/8) + s + "\n" + strings.Repeat("another line\n", 8)
}

// TestABatchIsWhatItsChangesAreOneByOne also watches that no state that anybody may have seen is written to.
func TestABatchIsWhatItsChangesAreOneByOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SampledFrom([]string{"a", "b", "c"})
		m := &machine{now: &State{}}
		m.published.Set(m.now)
		want := &State{}
		foretold := m.now // over which a change may be foretold: it comes true, or not
		var published, wanted []*State
		for range rapid.IntRange(1, 6).Draw(t, "batches") {
			var entries []*raft.Log
			said := ""
			for range rapid.IntRange(0, 6).Draw(t, "changes") {
				c := Change{Time: then, Space: Space(rapid.IntRange(0, 1).Draw(t, "space")), ID: rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "id")}
				if rapid.IntRange(0, 2).Draw(t, "expects") > 0 {
					expect := rapid.OneOf(rapid.Just(want.table(c.Space).Revision), rapid.Uint64Range(0, 9)).Draw(t, "expect")
					c.Expect = &expect
				}
				for range rapid.IntRange(0, 2).Draw(t, "put") {
					c.Put = append(c.Put, put("k", names.Draw(t, "name"), rapid.SampledFrom([]string{"", "1", "2", long("1"), long("2"), long("2") + "3"}).Draw(t, "content")))
				}
				if rapid.IntRange(0, 4).Draw(t, "deletes") == 0 {
					c.Delete = []Ref{{"k", names.Draw(t, "name")}}
				}
				written := c
				if rapid.Bool().Draw(t, "edits") { // of what will be, or of what no longer is
					written, _ = rapid.SampledFrom([]*State{want, m.now}).Draw(t, "of").table(c.Space).edited(c)
				}
				data, err := encodeChange(written)
				if err != nil {
					t.Fatal(err)
				}
				entries = append(entries, &raft.Log{Type: raft.LogCommand, Data: data})
				next, revision, err := want.With(c)
				if over := rapid.SampledFrom([]*State{nil, m.now, foretold, want}).Draw(t, "foretold"); err == nil && over != nil {
					if p, _, err := over.With(c); err == nil && p.Position() != over.Position() {
						m.foretell(data, prophecy{over, p})
						foretold = p
					}
				}
				want = next
				said += fmt.Sprintln(revision, err)
			}
			entries = append(entries, &raft.Log{Type: raft.LogConfiguration, Data: []byte("not a change")})
			outcomes := m.ApplyBatch(entries)
			got := ""
			for _, o := range outcomes[:len(entries)-1] {
				got += fmt.Sprintln(o.(outcome).revision, o.(outcome).err)
			}
			if got != said || outcomes[len(entries)-1] != nil {
				t.Fatalf("answers are\n%sand should be\n%s", got, said)
			}
			published, wanted = append(published, m.published.Get()), append(wanted, want)
			if m.published.Get().Position() != want.Position() {
				t.Fatalf("%v is published, not %v", m.published.Get().Position(), want.Position())
			}
		}
		if diff := gocmp.Diff(want, m.now, same); diff != "" {
			t.Fatal(diff)
		}
		for i := range published {
			p, w := *published[i], *wanted[i]
			p.answers, w.answers = nil, nil // what a change without effect answers is not published
			if diff := gocmp.Diff(w, p, same); diff != "" {
				t.Fatalf("a state that was published has changed:\n%s", diff)
			}
		}
	})
}

func BenchmarkABatchOf16Among100000(b *testing.B) {
	m := &machine{now: large(b, 100_000)}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		entries := make([]*raft.Log, 16)
		for n := range entries {
			data, err := encodeChange(Change{ID: fmt.Sprint(i, n), Put: []Object{put("TargetGroup", fmt.Sprintf("group-%06d", 1000*n), fmt.Sprint(i))}})
			if err != nil {
				b.Fatal(err)
			}
			entries[n] = &raft.Log{Type: raft.LogCommand, Data: data}
		}
		m.ApplyBatch(entries)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/16, "ns/change")
}
