package node

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/perigee-net/perigee/dnsgeo"
	"github.com/perigee-net/perigee/node/api"
)

func TestOnlyNodesThatSeeTheSameAreHeldAgainstEachOther(t *testing.T) {
	sample := func(revision, view, answers uint64) dnsgeo.Sample {
		return dnsgeo.Sample{Revision: revision, View: view, Answers: answers}
	}
	got := disagreements(map[string]dnsgeo.Sample{
		"a": sample(7, 1, 1), "b": sample(7, 1, 2), "c": sample(7, 1, 2), "d": sample(7, 1, 3),
		"e": sample(7, 2, 4),                       // sees something else
		"f": sample(6, 1, 5),                       // runs something else
		"g": sample(5, 1, 6), "h": sample(5, 1, 6), // alike
		"i": sample(4, 9, 7), "j": sample(4, 9, 8),
	})
	want := []api.AnswersDiffer{
		{Revision: 7, Nodes: [][]string{{"b", "c"}, {"a"}, {"d"}}},
		{Revision: 4, Nodes: [][]string{{"i"}, {"j"}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
