package testbed

import (
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
)

// seed is that of a world's chance. PERIGEE_SEED sets another; a test that fails says which it had.
func seed(t *testing.T) uint64 {
	t.Helper()
	n := uint64(1)
	if text := os.Getenv("PERIGEE_SEED"); text != "" {
		var err error
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("PERIGEE_SEED: %v", err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("PERIGEE_SEED=%d", n)
		}
	})
	return n
}

// inWorld runs a test in a world of its own, beside other tests.
func inWorld(t *testing.T, f func(t *testing.T, w *World)) {
	t.Helper()
	inWorldWith(t, nil, f)
}

// inWorldWith has more nodes in the first POP.
func inWorldWith(t *testing.T, more []string, f func(t *testing.T, w *World)) {
	t.Helper()
	t.Parallel()
	inWorldAlone(t, more, f)
}

// inWorldAlone is for a test that looks at the whole process: no other runs meanwhile.
func inWorldAlone(t *testing.T, more []string, f func(t *testing.T, w *World)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cfg := WorldConfig{Dir: dir, Files: os.DirFS("labs"), Seed: seed(t), More: more}
		if testing.Verbose() {
			cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
		}
		w, err := NewWorld(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		f(t, w)
	})
}

// Every file of labs is a claim about the network; this runs each of them in a world of its own.
func TestTheScenariosComeTrue(t *testing.T) {
	theyComeTrue(t, "labs/*.txt", nil)
}

// Those of labs/pop are about a POP of three nodes.
func TestTheScenariosOfAPOPComeTrue(t *testing.T) {
	theyComeTrue(t, "labs/pop/*.txt", []string{"icn1-b", "icn1-c"})
}

func theyComeTrue(t *testing.T, pattern string, more []string) {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("found %d scenarios: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s, err := ParseScenario(filepath.Base(file), string(text))
			if err != nil {
				t.Fatal(err)
			}
			inWorldWith(t, more, func(t *testing.T, w *World) {
				err := s.Run(t.Context(), w, func(o Outcome) {
					t.Logf("%-60s %s (%v)", o.Step.Text, o.Result, o.Took)
				})
				if err != nil {
					t.Error(err)
				}
			})
		})
	}
}
