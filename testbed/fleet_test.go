package testbed

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/view"
)

// inFleet runs a test in a fleet of its own, once its nodes are one, beside other tests.
func inFleet(t *testing.T, cfg FleetConfig, test func(t *testing.T, f *Fleet)) {
	t.Helper()
	t.Parallel()
	cfg.Dir = t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		if cfg.Seed == 0 {
			cfg.Seed = seed(t)
		}
		if cfg.Log == nil && testing.Verbose() {
			cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
		}
		f, err := NewFleet(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Agree(t.Context(), settled); err != nil {
			t.Fatal(err)
		}
		// While voters are added they are two or four for a moment, and half of them is no majority: a test that cuts off or
		// kills some begins with all there are to be.
		want := f.votersToBe()
		until(t, settled, fmt.Sprintf("%d voters", want), func() bool {
			st, err := f.Inside(f.Names[0]).Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return st.Voters == want
		})
		test(t, f)
	})
}

// votersToBe is how many voters the cluster makes of the nodes that may vote, as store.Place has it.
func (f *Fleet) votersToBe() int {
	able := 0
	for _, n := range f.nodes {
		if slices.Contains(n.cfg.Roles, view.Voter) {
			able++
		}
	}
	switch {
	case able >= 5:
		return 5
	case able >= 3:
		return 3
	}
	return 1
}

func TestAFleetComesTogether(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 5, Regions: 3}, func(t *testing.T, f *Fleet) {
		time.Sleep(30 * time.Second)
		if err := f.Disagreement(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
