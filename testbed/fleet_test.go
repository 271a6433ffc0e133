package testbed

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
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
		test(t, f)
	})
}

func TestAFleetComesTogether(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 5, Regions: 3}, func(t *testing.T, f *Fleet) {
		time.Sleep(30 * time.Second)
		if err := f.Disagreement(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
