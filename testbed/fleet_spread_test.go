package testbed

import (
	"os"
	"testing"
	"time"
)

// A change reaches all nodes in five regions, whoever is asked: ten, or with PERIGEE_LONG=1 thirty.
func TestAChangeReachesAllNodesInTime(t *testing.T) {
	nodes := 10
	if os.Getenv("PERIGEE_LONG") != "" {
		nodes = 30
	}
	inFleet(t, FleetConfig{Nodes: nodes, Regions: 5, Voters: 10}, func(t *testing.T, f *Fleet) {
		const rounds = 4
		for _, c := range []struct {
			what string
			loss float64
			most time.Duration // until all have it, of the slowest round
		}{{"at rest", 0, 3 * time.Second}, {"with 1 % loss", 0.01, 10 * time.Second}} {
			for i, a := range f.Names {
				for _, b := range f.Names[:i] {
					f.Lossy(a, b, c.loss)
				}
			}
			var agreed, ran, slowest time.Duration
			for i := range rounds {
				began := time.Now()
				revision := f.mustApply(t, f.Names[i*7%nodes], registerYAML(0, i+1+int(c.loss*1e4)))
				agreed += time.Since(began) / rounds
				for _, name := range f.Names {
					for {
						st, err := f.Inside(name).Status(t.Context())
						if err != nil {
							t.Fatal(err)
						}
						if st.Running >= revision {
							break
						}
						time.Sleep(20 * time.Millisecond)
					}
				}
				took := time.Since(began)
				ran += took / rounds
				slowest = max(slowest, took)
				time.Sleep(2 * time.Second)
			}
			t.Logf("%s: agreed after %v, all %d run it after %v, the slowest %v", c.what, agreed.Round(time.Millisecond), nodes, ran.Round(time.Millisecond), slowest.Round(time.Millisecond))
			if slowest > c.most {
				t.Errorf("%s: the slowest took %v", c.what, slowest)
			}
		}
	})
}
