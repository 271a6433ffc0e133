package store

import (
	"fmt"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

// TestABatchIsWhatItsChangesAreOneByOne also watches that no state that anybody may have seen is written to.
func TestABatchIsWhatItsChangesAreOneByOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SampledFrom([]string{"a", "b", "c"})
		m := &machine{now: &State{}}
		m.published.Set(m.now)
		want := &State{}
		var published, wanted []*State
		for range rapid.IntRange(1, 6).Draw(t, "batches") {
			var entries []*raft.Log
			said := ""
			for range rapid.IntRange(0, 6).Draw(t, "changes") {
				c := Change{Time: then, Space: Space(rapid.IntRange(0, 1).Draw(t, "space")), ID: rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "id")}
				if rapid.IntRange(0, 4).Draw(t, "expects") == 0 {
					expect := rapid.Uint64Range(0, 9).Draw(t, "expect")
					c.Expect = &expect
				}
				for range rapid.IntRange(0, 2).Draw(t, "put") {
					c.Put = append(c.Put, put("k", names.Draw(t, "name"), rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "content")))
				}
				if rapid.IntRange(0, 4).Draw(t, "deletes") == 0 {
					c.Delete = []Ref{{"k", names.Draw(t, "name")}}
				}
				data, err := encodeChange(c)
				if err != nil {
					t.Fatal(err)
				}
				entries = append(entries, &raft.Log{Type: raft.LogCommand, Data: data})
				next, revision, err := want.With(c)
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
