package testbed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/perigee-net/perigee/node/api"
)

// steps takes steps of a scenario in a world, as a part of a test.
func (w *World) steps(t *testing.T, text string) {
	t.Helper()
	s, err := ParseScenario(t.Name(), text)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), w, nil); err != nil {
		t.Fatal(err)
	}
}

// A purge too long to be repeated by the reports, of which a node knows only that there is one: the leader and whoever was asked
// cannot reach it, and others tell it of a newer epoch. It asks the origin until the leader has told it what the purge was of.
func TestANodeThatKnowsOnlyThatItMissedAPurgeServesNothingOlder(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		w.steps(t, `
apply kept.yaml                             => revision=2
within 5s status all                        => agree revision=2 !behind
publish news "one"
publish other "stays"
within 5s get london@fra1 http://kept.demo.perigee.test/news => 200 "one"
get london@fra1 http://kept.demo.perigee.test/other => 200 "stays"
get london@fra1 http://kept.demo.perigee.test/news => Hit "one"
cut icn1 fra1
publish news "two"
`)
		paths := []string{"/news"}
		for i := range 300 {
			paths = append(paths, fmt.Sprintf("/some/path/%d", i))
		}
		res, err := w.apiOf(w.nodes["icn1"]).Purge(t.Context(), api.PurgeRequest{ID: rand.Text(), Distribution: "kept", Paths: paths})
		if err != nil || !strings.Contains(receipt(res), "done=2/3") {
			t.Fatalf("%s %v", receipt(res), err)
		}
		held, err := w.verbs().orders(t.Context(), []string{"fra1"})
		t.Logf("when the receipt is there, fra1 holds %s %v", held, err) // fenced, or it has been told by others meanwhile
		w.steps(t, `
within 5s get london@fra1 http://kept.demo.perigee.test/news => 200 "two"
`)
		held, err = w.verbs().orders(t.Context(), []string{"fra1"})
		t.Logf("when it asks the origin, it holds %s %v", held, err)
		w.steps(t, `
for 60s get london@fra1 http://kept.demo.perigee.test/news => 200 "two"
heal icn1 fra1
within 15s orders fra1                      => !fenced purges=1
within 1s get london@fra1 http://kept.demo.perigee.test/news => 200 Hit "two"
get london@fra1 http://kept.demo.perigee.test/other => 200 "stays"
`)
	})
}

// Who has not done a purge is named by GET /v1/orders, and by who waits for it, as long as it counts as live; then all that are live
// have done it.
func TestWhoHasNotDoneAPurgeIsNamedWhileItIsLive(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		w.steps(t, `
apply kept.yaml                             => revision=2
within 5s status all                        => agree revision=2 !behind
cut icn1 fra1
cut iad1 fra1
`)
		at := w.apiOf(w.nodes["icn1"])
		res, err := at.Purge(t.Context(), api.PurgeRequest{ID: rand.Text(), Distribution: "kept", Paths: []string{"/news"}})
		if err != nil || !strings.Contains(receipt(res), "done=2/3") {
			t.Fatalf("%s %v", receipt(res), err)
		}
		wait := func(timeout time.Duration) ([]api.NodeBehind, error) {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			return at.WaitOrder(ctx, res.Epoch)
		}
		if behind, err := wait(200 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) || len(behind) != 1 || behind[0].Node != "fra1" || behind[0].Epoch >= res.Epoch {
			t.Errorf("who waits for epoch %d hears that %v are behind, and %v", res.Epoch, behind, err)
		}
		w.steps(t, `
heal icn1 fra1
heal iad1 fra1
`)
		if behind, err := wait(30 * time.Second); err != nil {
			t.Errorf("when all have it: %v are behind, and %v", behind, err)
		}
		w.steps(t, `
within 15s orders fra1                      => !fenced purges=1
`)
	})
}

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// ordersOf are what a node of a fleet holds to be ordered.
func (f *Fleet) ordersOf(t *testing.T, name string) string {
	t.Helper()
	list, err := f.Inside(name).Orders(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return ordersText(list)
}

// drain has a node asked to drain something, for a time; 0: until it is undone.
func (f *Fleet) drain(ctx context.Context, at, scope, name string, lasts time.Duration) (api.OrderResponse, error) {
	return f.API(at).Drain(ctx, api.DrainRequest{ID: rand.Text(), Scope: scope, Name: name, For: api.Duration(lasts)})
}

func (f *Fleet) undrain(ctx context.Context, at, scope, name string) (api.OrderResponse, error) {
	return f.API(at).Undrain(ctx, api.DrainRequest{ID: rand.Text(), Scope: scope, Name: name})
}

// everywhere waits until all live nodes hold the same to be ordered, with a text in it, and says how long that took.
func (f *Fleet) everywhere(t *testing.T, within time.Duration, text string) time.Duration {
	t.Helper()
	return until(t, within, "all hold that "+text, func() bool {
		return !slices.ContainsFunc(f.Live(), func(name string) bool { return !strings.Contains(f.ordersOf(t, name), text) })
	})
}

func TestAnOrderReachesWhoeverTheAskedCannotReach(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 7, Regions: 3, Voters: 3}, func(t *testing.T, f *Fleet) {
		ctx := t.Context()
		leader := f.Leader(ctx)
		for _, c := range []struct{ what, asked, cut string }{
			{"a follower that is asked, and another", "fra2", "icn2"},
			{"a voter that is asked, and a follower", "fra1", "iad2"},
			{"the leader that is asked, and a follower", leader, "fra2"},
		} {
			f.Cut(c.asked, c.cut)
			time.Sleep(3 * time.Second) // they know
			began := time.Now()
			done := make(chan error, 1)
			go func() {
				res, err := f.drain(ctx, c.asked, "node", "iad1", 0)
				t.Logf("%s: %s", c.what, receipt(res))
				done <- err
			}()
			took := f.everywhere(t, 3*time.Second, "drains=[node/iad1]")
			t.Logf("%s cannot reach %s: in force everywhere after %v", c.asked, c.cut, took)
			if err := <-done; err != nil {
				t.Fatalf("%s, after %v: %v", c.what, time.Since(began), err)
			}
			f.Heal(c.asked, c.cut)
			time.Sleep(5 * time.Second)
			if _, err := f.undrain(ctx, c.cut, "node", "iad1"); err != nil {
				t.Fatal(err)
			}
			f.everywhere(t, 3*time.Second, "drains=[]")
		}
		if err := f.Agree(ctx, settled); err != nil {
			t.Error(err)
		}
	})
}

func TestAnOrderWithoutAMajorityIsRefusedAndItsEffectEnds(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 6, Regions: 3, Voters: 3}, func(t *testing.T, f *Fleet) {
		ctx := t.Context()
		until(t, settled, "three voters", func() bool { all, _ := f.voters(t, "icn1"); return len(all) == 3 })
		time.Sleep(5 * time.Second)              // so that all three know
		away := []string{"icn1", "icn2", "fra2"} // one voter of three, and two others
		f.Split(away...)
		time.Sleep(15 * time.Second)
		ask, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		began := time.Now()
		_, err := f.drain(ask, "icn2", "node", "fra2", 0)
		var refusal *api.Error
		if !errors.As(err, &refusal) || refusal.Status != http.StatusServiceUnavailable {
			t.Errorf("a drain without a majority: %v", err)
		}
		t.Logf("refused after %v: %v", time.Since(began), err)
		for _, name := range away {
			t.Logf("%s: %s", name, f.ordersOf(t, name))
		}
		until(t, 32*time.Second, "the drain has ended on the side that cannot agree", func() bool {
			return !slices.ContainsFunc(away, func(name string) bool { return !strings.Contains(f.ordersOf(t, name), "drains=[]") })
		})
		if _, err := f.drain(ctx, "iad2", "node", "iad1", 0); err != nil {
			t.Errorf("a drain by the majority: %v", err)
		}
		if _, err := f.API("fra1").Block(ctx, api.BlockRequest{CIDRs: prefixes("203.0.113.0/24")}); err != nil {
			t.Errorf("a block by the majority: %v", err)
		}
		for _, name := range away {
			if text := f.ordersOf(t, name); !strings.Contains(text, "drains=[] blocks=[]") {
				t.Errorf("%s, cut off, holds %s", name, text)
			}
		}
		f.HealAll()
		took := f.everywhere(t, settled, "drains=[node/iad1] blocks=[203.0.113.0/24]")
		t.Logf("what the majority agreed is everywhere %v after the cut was healed", took)
		if err := f.Agree(ctx, settled); err != nil {
			t.Error(err)
		}
	})
}

// What is agreed outlives a restart of everybody, and what has an end ends at its time, though nobody was there to end it.
func TestDrainsAndBlocksOutliveEverybody(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 5, Regions: 3, Voters: 3}, func(t *testing.T, f *Fleet) {
		ctx := t.Context()
		must := func(_ api.OrderResponse, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(f.drain(ctx, "icn1", "node", "iad1", 0))
		must(f.drain(ctx, "icn1", "pop", "fra2", time.Minute))
		must(f.API("fra1").Block(ctx, api.BlockRequest{CIDRs: prefixes("203.0.113.0/24", "2001:db8::/48")}))
		must(f.API("fra1").Block(ctx, api.BlockRequest{CIDRs: prefixes("198.51.100.9/32"), For: api.Duration(150 * time.Second)}))
		f.everywhere(t, 3*time.Second, "drains=[node/iad1 pop/fra2] blocks=[198.51.100.9/32 2001:db8::/48 203.0.113.0/24]")
		time.Sleep(5 * time.Second)
		for _, name := range f.Names {
			f.Kill(name)
		}
		time.Sleep(2 * time.Minute)
		for _, name := range f.Names {
			if err := f.Start(ctx, name); err != nil {
				t.Fatal(err)
			}
			// What ended while nobody was there is over when a leader says so.
			if text := f.ordersOf(t, name); !strings.Contains(text, "drains=[node/iad1") || !strings.Contains(text, "blocks=[198.51.100.9/32 2001:db8::/48 203.0.113.0/24]") {
				t.Errorf("%s starts with %s", name, text)
			}
		}
		if err := f.Agree(ctx, settled); err != nil {
			t.Fatal(err)
		}
		took := f.everywhere(t, 30*time.Second, "drains=[node/iad1] blocks=[198.51.100.9/32 2001:db8::/48 203.0.113.0/24]")
		t.Logf("what ended meanwhile is over %v after all are one again", took)
		time.Sleep(40 * time.Second)
		f.everywhere(t, 2*time.Second, "drains=[node/iad1] blocks=[2001:db8::/48 203.0.113.0/24]")
		must(f.undrain(ctx, "fra2", "node", "iad1"))
		must(f.API("fra1").Unblock(ctx, api.BlockRequest{CIDRs: prefixes("2001:db8::/48", "203.0.113.0/24")}))
		f.everywhere(t, 3*time.Second, "drains=[] blocks=[]")
	})
}

// Orders for one thing from all sides at once: what is agreed last is what all nodes end with, and the clocks that judge it differ.
func TestOrdersForOneThingFromAllSidesEndAlikeEverywhere(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 6, Regions: 3, Voters: 3}, func(t *testing.T, f *Fleet) {
		ctx := t.Context()
		f.Jump("fra2", 3*time.Second)
		f.Jump("iad2", -3*time.Second)
		for round := range 4 {
			done := make(chan error)
			for i, name := range f.Names {
				go func() {
					var err error
					if (i+round)%2 == 0 {
						_, err = f.drain(ctx, name, "node", "iad1", 0)
					} else {
						_, err = f.undrain(ctx, name, "node", "iad1")
					}
					var refusal *api.Error
					if errors.As(err, &refusal) && refusal.Status == http.StatusConflict {
						err = nil // there was nothing to undo
					}
					done <- err
				}()
			}
			for range f.Names {
				if err := <-done; err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			}
			time.Sleep(3 * time.Second)
			first := f.ordersOf(t, f.Names[0])
			for _, name := range f.Names {
				if text := f.ordersOf(t, name); text != first {
					t.Errorf("round %d: %s holds %s, %s %s", round, name, text, f.Names[0], first)
				}
			}
		}
	})
}

// An order that was refused, for there was nothing to undo, undoes nothing that is agreed later.
func TestAnOrderThatWasRefusedUndoesNothingLater(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 4, Regions: 3, Voters: 3}, func(t *testing.T, f *Fleet) {
		ctx := t.Context()
		for _, asked := range []string{f.Leader(ctx), "icn2"} {
			if _, err := f.undrain(ctx, asked, "node", "iad1"); err == nil {
				t.Errorf("%s: what is not drained is undrained", asked)
			}
			if _, err := f.API(asked).Unblock(ctx, api.BlockRequest{CIDRs: prefixes("203.0.113.0/24")}); err == nil {
				t.Errorf("%s: what is not blocked is unblocked", asked)
			}
			if _, err := f.drain(ctx, "fra1", "node", "iad1", 0); err != nil {
				t.Fatal(err)
			}
			if _, err := f.API("fra1").Block(ctx, api.BlockRequest{CIDRs: prefixes("203.0.113.0/24")}); err != nil {
				t.Fatal(err)
			}
			for range 10 {
				time.Sleep(time.Second)
				f.everywhere(t, time.Millisecond, "drains=[node/iad1] blocks=[203.0.113.0/24]")
			}
			if _, err := f.undrain(ctx, asked, "node", "iad1"); err != nil {
				t.Error(err)
			}
			if _, err := f.API(asked).Unblock(ctx, api.BlockRequest{CIDRs: prefixes("203.0.113.0/24")}); err != nil {
				t.Error(err)
			}
			f.everywhere(t, 3*time.Second, "drains=[] blocks=[]")
		}
	})
}

// At rest an order comes to all in time, so nobody is fenced for more than a moment: a fence costs every cache its origin.
func TestAnOrderAtRestFencesNobodyForLong(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 7, Regions: 3, Voters: 3}, func(t *testing.T, f *Fleet) {
		time.Sleep(10 * time.Second)
		fenced, longest := map[string]int{}, time.Duration(0)
		const orders = 5
		for i := range orders {
			asked := f.Names[i%len(f.Names)]
			if _, err := f.API(asked).Block(t.Context(), api.BlockRequest{CIDRs: prefixes(fmt.Sprintf("203.0.113.%d/32", i))}); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			for time.Since(began) < 3*time.Second {
				for _, name := range f.Names {
					if list, err := f.Inside(name).Orders(t.Context()); err == nil && list.Fenced {
						fenced[name]++
						longest = max(longest, time.Since(began))
					}
				}
				time.Sleep(shortly)
			}
		}
		t.Logf("of %d orders, fenced so many times %v were: %v; at the latest %v after the receipt", orders, shortly, fenced, longest)
		if longest > 2*time.Second {
			t.Errorf("somebody is fenced %v after an order", longest)
		}
	})
}
