package kept

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

type thing struct{ n int }

func TestChangesAreAllThatDiffers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old := rapid.MapOf(rapid.StringN(0, 2, 2), rapid.Map(rapid.Int(), func(n int) *thing { return &thing{n} })).Draw(t, "old")
		next := maps.Clone(old)
		for _, name := range rapid.SliceOf(rapid.StringN(0, 2, 2)).Draw(t, "gone") {
			delete(next, name)
		}
		for _, name := range rapid.SliceOf(rapid.StringN(0, 2, 2)).Draw(t, "put") {
			next[name] = &thing{}
		}
		made := maps.Clone(old)
		if made == nil {
			made = map[string]*thing{}
		}
		for _, c := range Changes(old, next) {
			if c.Old == c.New || c.Old != old[c.Name] || c.New != next[c.Name] {
				t.Fatalf("%+v", c)
			}
			if made[c.Name] = c.New; c.New == nil {
				delete(made, c.Name)
			}
		}
		if !maps.Equal(made, next) {
			t.Fatalf("got %v, want %v", made, next)
		}
	})
}

func TestAMapIsWhatItsEditsSayAndTheOneBeforeStays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type version struct {
			map_ *Map[string, int]
			want map[string]int
		}
		versions := []version{{nil, map[string]int{}}}
		for range rapid.IntRange(1, 6).Draw(t, "edits") {
			last := versions[len(versions)-1]
			edit, want := last.map_.Edit(), maps.Clone(last.want)
			for k, v := range rapid.MapOf(rapid.StringN(0, 2, 2), rapid.Int()).Draw(t, "set") {
				edit.Set(k, v)
				want[k] = v
			}
			for _, k := range rapid.SliceOf(rapid.StringN(0, 2, 2)).Draw(t, "delete") {
				edit.Delete(k)
				delete(want, k)
			}
			versions = append(versions, version{edit.Map(), want})
		}
		for i, v := range versions {
			if got := maps.Collect(v.map_.All()); !maps.Equal(got, v.want) || v.map_.Len() != len(v.want) {
				t.Fatalf("version %d: got %v, want %v", i, got, v.want)
			}
			for k, want := range v.want {
				if got, ok := v.map_.Lookup(k); !ok || got != want {
					t.Fatalf("version %d: %q is %d, want %d", i, k, got, want)
				}
			}
		}
	})
}

func TestAnEditOfNothingIsTheSameMap(t *testing.T) {
	edit := (*Map[string, int])(nil).Edit()
	edit.Set("a", 1)
	m := edit.Map()
	edit = m.Edit()
	edit.Delete("b")
	if edit.Map() != m {
		t.Error("a map of its own")
	}
}

func TestAListStaysSorted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		numbers := rapid.SliceOfDistinct(rapid.IntRange(0, 20), rapid.ID)
		list, come, gone := numbers.Draw(t, "list"), numbers.Draw(t, "come"), numbers.Draw(t, "gone")
		slices.Sort(list)
		before := slices.Clone(list)
		want := slices.DeleteFunc(slices.Clone(list), func(n int) bool { return slices.Contains(gone, n) })
		come = slices.DeleteFunc(come, func(n int) bool { return slices.Contains(want, n) })
		want = append(want, come...)
		slices.Sort(want)
		got := List(list, gone, come, cmp.Compare[int])
		if !slices.Equal(got, want) || !slices.Equal(list, before) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

func BenchmarkChangesOneOf100000(b *testing.B) {
	old := map[string]*thing{}
	for i := range 100_000 {
		old[fmt.Sprintf("thing-%d", i)] = &thing{i}
	}
	next := maps.Clone(old)
	next["thing-77"] = &thing{0}
	b.ReportAllocs()
	for b.Loop() {
		if len(Changes(old, next)) != 1 {
			b.Fatal("not one")
		}
	}
}

func BenchmarkEditOneOf100000(b *testing.B) {
	edit := (*Map[string, int])(nil).Edit()
	for i := range 100_000 {
		edit.Set(fmt.Sprintf("thing-%d", i), i)
	}
	m := edit.Map()
	b.ReportAllocs()
	for b.Loop() {
		edit := m.Edit()
		edit.Set("thing-77", 0)
		edit.Map()
	}
}

func BenchmarkGetOf100000(b *testing.B) {
	edit := (*Map[string, int])(nil).Edit()
	for i := range 100_000 {
		edit.Set(fmt.Sprintf("thing-%d", i), i)
	}
	m := edit.Map()
	for b.Loop() {
		m.Get("thing-77")
	}
}
