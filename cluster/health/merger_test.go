package health

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// say is a verdict of a certain second.
func say(healthy bool, second int) Verdict {
	v := Verdict{Healthy: healthy, Since: at(second), Stands: time.Minute}
	if !healthy {
		v.Reason, v.LastFailure, v.LastFailureAt = "timeout", "timeout", at(second)
	}
	return v
}

func TestAMergerMakesWhatMergeMakesOfTheWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, views := NewMerger(), map[string]map[Key]Verdict{}
		barred := map[string]bool{}
		entitled := func(_ Key, node string) bool { return !barred[node] }
		var tables []*Table
		var rows [][]Row
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			node := fmt.Sprintf("n%d", rapid.IntRange(0, 4).Draw(t, "node"))
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				m.Set(node, nil)
				delete(views, node)
			case 1:
				barred[node] = !barred[node]
				m.Again()
			default:
				said := map[Key]Verdict{}
				for range rapid.IntRange(0, 6).Draw(t, "keys") {
					key := rapid.SampledFrom([]Key{target, check, "endpoint/a/r/10.0.0.1:80", "target/x/10.0.0.1:1"}).Draw(t, "key")
					said[key] = say(rapid.Bool().Draw(t, "healthy"), rapid.IntRange(0, 5).Draw(t, "since"))
				}
				m.Set(node, said)
				views[node] = said
			}
			voices := maps.Clone(views)
			maps.DeleteFunc(voices, func(node string, _ map[Key]Verdict) bool { return barred[node] })
			want, got := Merge(voices, DefaultQuorum), m.Table(DefaultQuorum, entitled)
			if diff := cmp.Diff(want.All(), got.All()); diff != "" {
				t.Fatalf("-whole +merger\n%s", diff)
			}
			for _, row := range want.All() {
				if diff := cmp.Diff(want.Views(row.Key), got.Views(row.Key)); diff != "" {
					t.Fatalf("%s: -whole +merger\n%s", row.Key, diff)
				}
			}
			if len(tables) > 0 {
				before := tables[len(tables)-1]
				var changed []Key
				for _, key := range []Key{check, "endpoint/a/r/10.0.0.1:80", target, "target/x/10.0.0.1:1"} {
					now, is := got.Lookup(key)
					then, was := before.Lookup(key)
					if is != was || now != then || !slices.Equal(got.Views(key), before.Views(key)) {
						changed = append(changed, key)
					}
				}
				for name, older := range map[string]*Table{"of the merger": before, "of another": Merge(viewsOf(before), DefaultQuorum)} {
					if diff := cmp.Diff(changed, got.Changed(older)); diff != "" {
						t.Fatalf("changed since the table before, %s: -want +got\n%s", name, diff)
					}
				}
			}
			tables, rows = append(tables, got), append(rows, got.All())
		}
		for i := range tables {
			if diff := cmp.Diff(rows[i], tables[i].All()); diff != "" {
				t.Fatalf("a table changed later: %s", diff)
			}
		}
	})
}

// viewsOf are the views that a table was merged of.
func viewsOf(t *Table) map[string]map[Key]Verdict {
	views := map[string]map[Key]Verdict{}
	for _, row := range t.All() {
		for _, o := range t.Views(row.Key) {
			if views[o.Node] == nil {
				views[o.Node] = map[Key]Verdict{}
			}
			views[o.Node][row.Key] = o.Verdict
		}
	}
	return views
}

func TestWhatChangedSinceNothingIsEverything(t *testing.T) {
	table := NewTable(map[Key]Verdict{target: {}, check: {}})
	for name, c := range map[string]struct {
		table, before *Table
		want          int
	}{"all new": {table, nil, 2}, "all gone": {nil, table, 2}, "nothing": {nil, nil, 0}, "the same": {table, table, 0}} {
		if got := c.table.Changed(c.before); len(got) != c.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestWhereNothingChangedItIsTheSameTable(t *testing.T) {
	m := NewMerger()
	m.Set("a", map[Key]Verdict{target: say(true, 1)})
	first := m.Table(DefaultQuorum, nil)
	m.Set("a", map[Key]Verdict{target: say(true, 1)})
	m.Again()
	if m.Table(DefaultQuorum, nil) != first {
		t.Error("the same was said again, and the table is another")
	}
	m.Set("b", map[Key]Verdict{target: say(true, 1)})
	if m.Table(DefaultQuorum, nil) == first {
		t.Error("another voice, and the table is the same")
	}
}

func TestOnlyThoseWhoAreEntitledHaveAVoice(t *testing.T) {
	m := NewMerger()
	m.Set("stranger", map[Key]Verdict{target: say(false, 1), check: say(false, 1)})
	for _, node := range []string{"a", "b"} {
		m.Set(node, map[Key]Verdict{target: say(true, 2)})
	}
	m.Set("c", map[Key]Verdict{target: say(false, 2)})
	table := m.Table(DefaultQuorum, func(key Key, node string) bool { return node != "stranger" })
	if v, ok := table.Lookup(target); !ok || !v.Healthy {
		t.Errorf("the target is %+v, %v, by %v", v, ok, table.Views(target))
	}
	if len(table.Views(target)) != 3 {
		t.Errorf("views are %v", table.Views(target))
	}
	if v, ok := table.Lookup(check); ok {
		t.Errorf("of what nobody may speak there is %+v", v)
	}
	m.Again()
	if v, _ := m.Table(DefaultQuorum, nil).Lookup(target); !v.Healthy { // 2 of 4, a tie
		t.Error("a tie turned it")
	}
}

// One of three observers is wrong, on purpose or not, and says whatever it likes as often as it likes.
func TestACheckerThatLiesTurnsNothingAndMovesNoTimes(t *testing.T) {
	honest := func(healthy bool) Verdict {
		v := say(healthy, 100)
		v.LastFailure, v.LastFailureAt = "refused", at(50)
		return v
	}
	lies := []Verdict{
		{}, {Healthy: true},
		{Healthy: true, Since: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), Stands: math.MaxInt64},
		{Since: time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), Stands: 1},
		{Since: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), Stands: math.MaxInt64, Reason: "a lie"},
	}
	for _, healthy := range []bool{true, false} {
		m := NewMerger()
		m.Set("a", map[Key]Verdict{target: honest(healthy)})
		m.Set("b", map[Key]Verdict{target: honest(healthy)})
		for _, lie := range lies {
			m.Set("liar", map[Key]Verdict{target: lie})
			got, _ := m.Table(DefaultQuorum, nil).Lookup(target)
			if got.Healthy != healthy || got.Stands != time.Minute || !got.Since.Equal(at(100)) || got.Reason != honest(healthy).Reason {
				t.Errorf("two say %v, one says %+v: got %+v", healthy, lie, got)
			}
		}
	}
}

// Of a health check with sixteen observers, two liars are outvoted and three are not: more than 18 % is the rule (Route 53).
func TestSixteenCheckersOutvoteTwoLiarsWhoSayHealthy(t *testing.T) {
	for liars, want := range map[int]bool{0: false, 1: false, 2: false, 3: true} {
		m := NewMerger()
		for i := range 16 {
			m.Set(fmt.Sprintf("n%02d", i), map[Key]Verdict{check: say(i < liars, i)})
		}
		if v, _ := m.Table(DefaultQuorum, nil).Lookup(check); v.Healthy != want {
			t.Errorf("%d of 16 say healthy: got %v", liars, v.Healthy)
		}
	}
}

// One observer turns each second, in both directions: the merged verdict neither turns nor says that it stands for less.
func TestAnObserverThatFlapsDoesNotMakeTheTableFlap(t *testing.T) {
	m := NewMerger()
	m.Set("a", map[Key]Verdict{target: say(true, 0)})
	m.Set("b", map[Key]Verdict{target: say(true, 0)})
	for i := range 3600 {
		m.Set("flaps", map[Key]Verdict{target: say(i%2 == 0, i)})
		if v, _ := m.Table(DefaultQuorum, nil).Lookup(target); !v.Healthy || v.Stands != time.Minute || !v.Since.Equal(at(0)) {
			t.Fatalf("after %d s: %+v", i, v)
		}
	}
}

func TestTheShareForHealthChecksIsTheirsAlone(t *testing.T) {
	for percent, want := range map[int]bool{0: true, 18: true, 19: true, 20: false, 99: false} {
		rule := Rule(percent)
		if v, _ := Merge(observers(check, 1, 5), rule).Lookup(check); v.Healthy != want {
			t.Errorf("1 of 5, more than %d %% needed: got %v", percent, v.Healthy)
		}
		endpoint := EndpointKey("a", "r", netip.MustParseAddrPort("10.0.0.1:80"))
		for _, key := range []Key{target, endpoint} {
			if v, _ := Merge(observers(key, 2, 4), rule).Lookup(key); !v.Healthy {
				t.Errorf("%s: 2 of 4 with %d %%: got %v", key, percent, v.Healthy)
			}
			if v, _ := Merge(observers(key, 1, 3), rule).Lookup(key); v.Healthy {
				t.Errorf("%s: 1 of 3 with %d %%: got %v", key, percent, v.Healthy)
			}
		}
	}
}

func TestAKeyHasOneKind(t *testing.T) {
	address := netip.MustParseAddrPort("[2001:db8::1]:80")
	for key, want := range map[Key][3]bool{
		TargetKey("web", address): {true, false, false}, CheckKey("www"): {false, true, false},
		EndpointKey("a", "r", address): {false, false, true}, "x": {}, "": {},
	} {
		if got := [3]bool{key.IsTarget(), key.IsCheck(), key.IsEndpoint()}; got != want {
			t.Errorf("%s: got %v", key, got)
		}
	}
}

// crowd are 30,000 verdicts: of 10,000 targets, each by three of ten nodes.
func crowd() map[string]map[Key]Verdict {
	views := map[string]map[Key]Verdict{}
	for n := range 10 {
		views[fmt.Sprintf("n%d", n)] = map[Key]Verdict{}
	}
	for i := range 10_000 {
		key := TargetKey("web", netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80))
		for j := range 3 {
			views[fmt.Sprintf("n%d", (i+j)%10)][key] = say(i%7 != 0, i+j)
		}
	}
	return views
}

func everyone(Key, string) bool { return true }

func BenchmarkMerge30000Verdicts(b *testing.B) {
	views := crowd()
	b.ReportAllocs()
	for b.Loop() {
		m := NewMerger()
		for node, verdicts := range views {
			m.Set(node, verdicts)
		}
		m.Table(DefaultQuorum, everyone)
	}
}

func BenchmarkAgain30000Verdicts(b *testing.B) {
	m := NewMerger()
	for node, verdicts := range crowd() {
		m.Set(node, verdicts)
	}
	m.Table(DefaultQuorum, everyone)
	b.ReportAllocs()
	for b.Loop() {
		m.Again()
		m.Table(DefaultQuorum, everyone)
	}
}

func BenchmarkOneTurnAmong30000Verdicts(b *testing.B) {
	m := NewMerger()
	views := crowd()
	for node, verdicts := range views {
		m.Set(node, verdicts)
	}
	m.Table(DefaultQuorum, everyone)
	key := slices.Min(slices.Collect(maps.Keys(views["n0"])))
	said := [2]map[Key]Verdict{maps.Clone(views["n0"]), maps.Clone(views["n0"])}
	said[0][key], said[1][key] = say(true, 1), say(false, 2)
	b.ReportAllocs()
	before := m.Table(DefaultQuorum, everyone)
	for i := 0; b.Loop(); i++ {
		m.Set("n0", said[i%2])
		now := m.Table(DefaultQuorum, everyone)
		if len(now.Changed(before)) != 1 {
			b.Fatal("it is not one key that changed")
		}
		before = now
	}
}
