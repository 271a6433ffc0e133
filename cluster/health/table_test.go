package health

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	target = TargetKey("web", netip.MustParseAddrPort("10.0.0.1:80"))
	check  = CheckKey("www")
)

func at(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }

// observers are views in which the first of n nodes hold key healthy, the others not.
func observers(key Key, healthy, n int) map[string]map[Key]Verdict {
	views := map[string]map[Key]Verdict{}
	for i := range n {
		views[fmt.Sprintf("n%02d", i)] = map[Key]Verdict{key: {Healthy: i < healthy, Since: start, Stands: time.Minute}}
	}
	return views
}

func TestTheQuorumDecides(t *testing.T) {
	for _, c := range []struct {
		key        Key
		healthy, n int
		want       bool
	}{
		{check, 3, 16, true},  // 18.75 %
		{check, 2, 16, false}, // 12.5 %
		{check, 9, 50, false}, // 18 % is not above 18 %
		{check, 10, 50, true},
		{check, 1, 5, true},
		{check, 1, 6, false},
		{check, 0, 1, false},
		{check, 1, 1, true},
		{target, 0, 1, false},
		{target, 1, 1, true},
		{target, 1, 2, true}, // a tie keeps the target
		{target, 1, 3, false},
		{target, 2, 3, true},
		{target, 0, 3, false},
	} {
		v, ok := Merge(observers(c.key, c.healthy, c.n), DefaultQuorum).Lookup(c.key)
		if !ok || v.Healthy != c.want {
			t.Errorf("%s: %d of %d say healthy: got %v, %v, want %v", c.key, c.healthy, c.n, v.Healthy, ok, c.want)
		}
	}
}

func TestTheShareCanBeSet(t *testing.T) {
	strict := func(Key) Quorum { return Quorum{Percent: 100} }
	if v, _ := Merge(observers(check, 15, 16), strict).Lookup(check); v.Healthy {
		t.Error("15 of 16 made healthy what needs all")
	}
	if v, _ := Merge(observers(check, 16, 16), strict).Lookup(check); !v.Healthy {
		t.Error("all of 16 did not make healthy what needs all")
	}
}

func TestTheViewThatTippedItGivesReasonAndTime(t *testing.T) {
	type views = map[string]map[Key]Verdict
	healthy := func(s int, stands time.Duration) Verdict {
		return Verdict{Healthy: true, Since: at(s), Stands: stands}
	}
	sick := func(s int, reason string, stands time.Duration) Verdict {
		return Verdict{Reason: reason, Since: at(s), Stands: stands}
	}
	for _, c := range []struct {
		name  string
		key   Key
		views views
		want  Verdict
	}{
		{
			"one observer", target,
			views{"a": {target: sick(5, "refused", 10)}},
			sick(5, "refused", 10),
		}, {
			"unhealthy since the second of three said so", target,
			views{"a": {target: sick(9, "last", 10)}, "b": {target: sick(1, "first", 30)}, "c": {target: sick(5, "second", 20)}},
			sick(5, "second", 20), // two of the three must turn, and the second can after 20
		}, {
			"who disagrees has no part in it", target,
			views{"a": {target: sick(9, "timeout", 40)}, "b": {target: healthy(99, 5)}, "c": {target: sick(7, "refused", 50)}},
			sick(9, "timeout", 40),
		}, {
			"healthy again since a tie", target,
			views{"a": {target: healthy(9, 40)}, "b": {target: healthy(3, 60)}, "c": {target: sick(1, "refused", 5)}, "d": {target: healthy(6, 50)}},
			healthy(6, 50),
		}, {
			"a health check is healthy since the first who says so, if that suffices", check,
			views{"a": {check: healthy(9, 40)}, "b": {check: healthy(3, 60)}, "c": {check: sick(1, "refused", 5)}},
			healthy(3, 60), // both must turn
		}, {
			"of two who turned at once the first by name", target,
			views{"b": {target: sick(5, "b", 1)}, "a": {target: sick(5, "a", 1)}, "c": {target: sick(4, "c", 1)}},
			sick(5, "a", 1),
		},
	} {
		got, _ := Merge(c.views, DefaultQuorum).Lookup(c.key)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", c.name, diff)
		}
	}
}

func TestAnImpossibleQuorumStillHasAVerdict(t *testing.T) {
	for _, q := range []Quorum{{Percent: 0}, {Percent: 101}, {Percent: 100, Above: true}} {
		for _, yes := range []int{0, 3} {
			v, ok := Merge(observers(check, yes, 3), func(Key) Quorum { return q }).Lookup(check)
			if !ok || v.Healthy != (q.Percent == 0) || v.Stands != time.Minute {
				t.Errorf("%+v with %d of 3: got %+v, %v", q, yes, v, ok)
			}
		}
	}
}

func TestATableIsOrderedAndSaysWhoSaysWhat(t *testing.T) {
	other := CheckKey("api")
	table := Merge(map[string]map[Key]Verdict{
		"icn1-a": {target: {Healthy: true, Since: at(2)}, check: {Healthy: true, Since: at(1)}},
		"fra1-a": {check: {Reason: "timeout after 6s", Since: at(3)}, other: {Healthy: true, Since: at(4)}},
	}, DefaultQuorum)
	wantAll := []Row{
		{Key: other, Verdict: Verdict{Healthy: true, Since: at(4)}},
		{Key: check, Verdict: Verdict{Healthy: true, Since: at(1)}},
		{Key: target, Verdict: Verdict{Healthy: true, Since: at(2)}},
	}
	if diff := cmp.Diff(wantAll, table.All()); diff != "" {
		t.Errorf("all (-want +got)\n%s", diff)
	}
	wantViews := []Observation{
		{Node: "fra1-a", Verdict: Verdict{Reason: "timeout after 6s", Since: at(3)}},
		{Node: "icn1-a", Verdict: Verdict{Healthy: true, Since: at(1)}},
	}
	if diff := cmp.Diff(wantViews, table.Views(check)); diff != "" {
		t.Errorf("views (-want +got)\n%s", diff)
	}
}

func TestANilTableKnowsNothing(t *testing.T) {
	var table *Table
	if _, ok := table.Lookup(check); ok || table.All() != nil || table.Views(check) != nil {
		t.Error("a nil table knew something")
	}
}
