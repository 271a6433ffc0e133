package testbed

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/perigee-net/perigee/node/api"
)

// counterOf is the value of one of a node's counters.
func counterOf(ctx context.Context, c *api.Client, name string) (uint64, error) {
	all, err := c.Metrics(ctx)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(all) {
		if value, ok := strings.CutPrefix(line, "perigee_"+name+" "); ok {
			return strconv.ParseUint(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, fmt.Errorf("no counter %s", name)
}

// The control port's connections are cut when an authority is retired. All of them are dialled anew before anybody misses them:
// nobody is elected, nobody is taken for dead, no link goes down, and those who follow are not left behind.
func TestARotationOfTheAuthorityCostsNobodyAnything(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 6, Regions: 3, Voters: 3, Warm: true}, func(t *testing.T, f *Fleet) { // a link is warmed anew when it is replaced
		ctx := t.Context()
		time.Sleep(10 * time.Second)
		at := f.Inside(f.Names[0])
		count := func(name, counter string) uint64 {
			t.Helper()
			n, err := counterOf(ctx, f.Inside(name), counter)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		if _, err := at.Apply(ctx, api.ApplyRequest{Files: []api.File{{Name: "r.yaml", Data: "kind: Region\nname: eu-central-1\n"}}}); err != nil {
			t.Fatal(err)
		}
		leader, term := f.Leader(ctx), count(f.Names[0], "store_term")
		lost := map[string]uint64{}
		for _, name := range f.Names {
			lost[name] = count(name, "backbone_carriers_lost_total")
		}
		old, err := at.Keys(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for round := range 2 {
			if _, err := at.Rotate(ctx, "authority"); err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			watching, stop := context.WithCancel(ctx)
			var watchers sync.WaitGroup
			end := func() { stop(); watchers.Wait() }
			defer end() // before the fleet is taken down, where this fails
			for _, name := range f.Names {
				watchers.Go(func() {
					for watching.Err() == nil {
						st, err := f.Inside(name).Status(watching)
						if err == nil && (st.Leader != leader || len(st.Members) != len(f.Names) || len(st.Missing) > 0) {
							t.Errorf("round %d, after %v: %s sees leader %q, %d members, missing %v", round, time.Since(begun), name, st.Leader, len(st.Members), st.Missing)
						}
						for _, m := range st.Members {
							if err == nil && !m.Up {
								t.Errorf("round %d, after %v: %s has no link to %s", round, time.Since(begun), name, m.Name)
							}
						}
						time.Sleep(100 * time.Millisecond) // what is shorter is in the counters
					}
				})
			}
			// Changes go on meanwhile, by each of the voters, and reach all.
			watchers.Go(func() {
				for i := 0; watching.Err() == nil; i++ {
					req := api.ApplyRequest{Files: group("rotated", 1000*(round+1)+i)}
					if _, err := f.Inside(f.Names[i%3]).Apply(watching, req); err != nil && watching.Err() == nil {
						t.Errorf("round %d, after %v: a change: %v", round, time.Since(begun), err)
					}
					time.Sleep(200 * time.Millisecond)
				}
			})
			var keys api.Keys
			for {
				if keys, err = at.Keys(ctx); err != nil {
					t.Fatal(err)
				}
				if len(keys.Authorities) == 1 && keys.Authorities[0].ID != old.Authorities[0].ID {
					break
				}
				if time.Since(begun) > 10*time.Second {
					t.Fatalf("the rotation waits for %q", keys.Waiting)
				}
				time.Sleep(50 * time.Millisecond)
			}
			t.Logf("rotated within %v", time.Since(begun))
			time.Sleep(10 * time.Second)
			end()
			old = keys
			if err := f.Agree(ctx, settled); err != nil {
				t.Error(err)
			}
		}
		if now := count(f.Names[0], "store_term"); now != term {
			t.Errorf("the term went from %d to %d", term, now)
		}
		var cut uint64
		for _, name := range f.Names {
			cut += count(name, "control_connections_refused_total")
			if n := count(name, "backbone_carriers_lost_total"); n != lost[name] {
				t.Errorf("%s lost %d carriers", name, n-lost[name])
			}
			if n := count(name, "backbone_overdue_total") + count(name, "backbone_peers_refused_total") + count(name, "backbone_dials_failed_total"); n != 0 {
				t.Errorf("%s: %d overdue, refused or failed", name, n)
			}
		}
		if cut == 0 {
			t.Error("no connection of the control port was cut: this test shows nothing")
		}
		t.Logf("%d connections of the control port were cut", cut)
		voters := 0
		st, err := at.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range st.Members {
			if m.Vote {
				voters++
			}
			if slices.Contains(st.Missing, m.Name) {
				t.Errorf("%s is missing", m.Name)
			}
		}
		if voters != 3 {
			t.Errorf("%d vote, want 3", voters)
		}
	})
}

func group(name string, port int) []api.File {
	return []api.File{{Name: name, Data: fmt.Sprintf("kind: TargetGroup\nname: %s\nregion: eu-central-1\nprotocol: HTTP\nport: %d\n", name, port)}}
}
