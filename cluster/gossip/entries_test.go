package gossip

import (
	"bytes"
	"fmt"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func publish(t *testing.T, g *Gossip, key, value string) {
	t.Helper()
	if err := g.Publish(key, []byte(value)); err != nil {
		t.Fatal(err)
	}
}

func TestValuesSpreadToAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 12)
		publish(t, w.nodes[3], "target/web/10.0.0.1:80", "healthy")
		publish(t, w.nodes[5], "target/web/10.0.0.1:80", "")
		w.within(2*time.Second, "all know both", func() bool {
			return knows(w.nodes, name(3), "target/web/10.0.0.1:80", []byte("healthy")) &&
				knows(w.nodes, name(5), "target/web/10.0.0.1:80", []byte{})
		})
		publish(t, w.nodes[3], "target/web/10.0.0.1:80", "unhealthy")
		w.within(2*time.Second, "all know the newer", func() bool {
			return knows(w.nodes, name(3), "target/web/10.0.0.1:80", []byte("unhealthy"))
		})
		if err := w.nodes[3].Publish("target/web/10.0.0.1:80", nil); err != nil {
			t.Fatal(err)
		}
		w.within(2*time.Second, "all know that it is removed", func() bool {
			return knows(w.nodes, name(3), "target/web/10.0.0.1:80", nil)
		})
		if _, has := w.nodes[0].Entries().Get()[name(3)]; has {
			t.Error("a node without values is in the snapshot")
		}
	})
}

func TestANewcomerLearnsAllByJoining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		w.open(0)
		w.open(1)
		w.join(1, 0)
		for i := range 500 {
			publish(t, w.nodes[i%2], fmt.Sprint("key", i), fmt.Sprint("value", i))
		}
		time.Sleep(pushPullInterval)
		w.open(2)
		publish(t, w.nodes[2], "mine", "before it joined")
		w.join(2, 0)
		w.within(2*time.Second, "it knows all, and all know what it said before", func() bool {
			e := w.nodes[2].Entries().Get()
			return len(e[name(0)]) == 250 && len(e[name(1)]) == 250 && knows(w.nodes, name(2), "mine", []byte("before it joined"))
		})
	})
}

func TestWhatACutTookIsRepairedByAnExchangeOfState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 3)
		publish(t, w.nodes[0], "old", "1")
		publish(t, w.nodes[0], "gone", "1")
		w.within(2*time.Second, "all know", func() bool { return knows(w.nodes, name(0), "gone", []byte("1")) })

		// Long enough to lose all that is sent of a message, and too short to be declared dead.
		w.net.CutOff(name(2))
		publish(t, w.nodes[0], "old", "2")
		publish(t, w.nodes[0], "new", "1")
		if err := w.nodes[0].Publish("gone", nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond)
		w.net.Rejoin(name(2))
		if !knows(w.nodes[1:2], name(0), "new", []byte("1")) {
			t.Error("the node that was not cut off does not know")
		}
		w.within(4*pushPullInterval, "the node that was cut off knows too", func() bool {
			return knows(w.nodes, name(0), "old", []byte("2")) && knows(w.nodes, name(0), "new", []byte("1")) && knows(w.nodes, name(0), "gone", nil)
		})
		if n := len(names(w.nodes[2])); n != 3 {
			t.Errorf("it knows %d members", n)
		}
	})
}

func TestARestartedNodesValuesSupersedeThoseOfItsFormerLife(t *testing.T) {
	for _, c := range []struct {
		name  string
		clock time.Duration // how far the clock was set when the node comes back
	}{
		{"the clock goes on", 0},
		{"the clock was set back", -time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := joined(t, 3)
				for i := range 10 {
					publish(t, w.nodes[2], "kept", fmt.Sprint(i))
				}
				publish(t, w.nodes[2], "not said again", "1")
				w.within(2*time.Second, "all know", func() bool { return knows(w.nodes, name(2), "not said again", []byte("1")) })

				w.hosts[2].Crash()
				w.close(2)
				w.hosts[2].Restart()
				g := w.open(2)
				g.mu.Lock()
				g.table.nodes[name(2)].life += uint64(c.clock)
				g.mu.Unlock()
				publish(t, g, "kept", "of the new life")
				w.join(2, 1)
				w.within(5*time.Second, "all know the new, and only that", func() bool {
					return knows(w.nodes, name(2), "kept", []byte("of the new life")) && knows(w.nodes, name(2), "not said again", nil)
				})
				publish(t, g, "kept", "later")
				w.within(2*time.Second, "all know the newest", func() bool { return knows(w.nodes, name(2), "kept", []byte("later")) })
			})
		})
	}
}

func TestValuesOfADeadNodeAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 3)
		publish(t, w.nodes[2], "key", "value")
		w.within(2*time.Second, "all know", func() bool { return knows(w.nodes, name(2), "key", []byte("value")) })
		w.hosts[2].Crash()
		w.within(6*time.Second, "its value is gone with it", func() bool { return knows(w.others(2), name(2), "key", nil) })
		time.Sleep(4 * pushPullInterval)
		if !knows(w.others(2), name(2), "key", nil) {
			t.Error("it came back")
		}
		for i, g := range w.others(2) {
			g.mu.Lock()
			if _, has := g.table.nodes[name(2)]; has {
				t.Errorf("%s has not forgotten it", name(i))
			}
			g.mu.Unlock()
		}
	})
}

func TestAThousandChangesMakeFewSnapshots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 2)
		time.Sleep(time.Second)
		before := w.nodes[0].Entries().Version()
		for i := range 1000 {
			publish(t, w.nodes[0], fmt.Sprint("key", i), "value")
			if i%100 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		time.Sleep(time.Second)
		if n := len(w.nodes[0].Entries().Get()[name(0)]); n != 1000 {
			t.Errorf("%d of 1000 values are in the snapshot", n)
		}
		if n := w.nodes[0].Entries().Version() - before; n != 1 {
			t.Errorf("%d snapshots were published", n)
		}
	})
}

func TestASnapshotDoesNotChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 2)
		publish(t, w.nodes[0], "key", "1")
		publish(t, w.nodes[1], "key", "1")
		w.within(time.Second, "both are known", func() bool {
			return knows(w.nodes, name(1), "key", []byte("1")) && knows(w.nodes, name(0), "key", []byte("1"))
		})
		old := w.nodes[0].Entries().Get()
		value := []byte("2")
		if err := w.nodes[0].Publish("key", value); err != nil {
			t.Fatal(err)
		}
		value[0] = 'x'
		time.Sleep(time.Second)
		if string(old[name(0)]["key"]) != "1" || !knows(w.nodes, name(0), "key", []byte("2")) {
			t.Errorf("the snapshot says %q, the newest %q", old[name(0)]["key"], w.nodes[0].Entries().Get()[name(0)]["key"])
		}
	})
}

func TestTheSameValueIsNotSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 2)
		publish(t, w.nodes[0], "key", "value")
		time.Sleep(5 * time.Second)
		before, version := w.nodes[1].Counters()["gossip_messages_total"], w.nodes[0].Entries().Version()
		publish(t, w.nodes[0], "key", "value")
		if err := w.nodes[0].Publish("never was", nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if after := w.nodes[1].Counters()["gossip_messages_total"]; after != before {
			t.Errorf("%d messages were sent", after-before)
		}
		if v := w.nodes[0].Entries().Version(); v != version {
			t.Errorf("%d snapshots were published", v-version)
		}
	})
}

func TestTheLargestValueFitsAPacket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		for i := range w.nodes {
			c := w.config(i)
			c.Name = strings.Repeat("n", MaxName-1) + fmt.Sprint(i)
			c.Label = strings.Repeat("l", MaxLabel)
			g, err := Open(c)
			if err != nil {
				t.Fatal(err)
			}
			w.nodes[i] = g
		}
		w.join(1, 0)
		time.Sleep(5 * time.Second)
		key, value := strings.Repeat("k", MaxKey), bytes.Repeat([]byte("v"), MaxValue)
		if err := w.nodes[0].Publish(key, value); err != nil {
			t.Fatal(err)
		}
		// Far sooner than by an exchange of state.
		w.within(time.Second, "it arrives", func() bool {
			return knows(w.nodes, strings.Repeat("n", MaxName-1)+"0", key, value)
		})
	})
}

func TestPublishRefusesWhatIsOutOfBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		g := w.open(0)
		for want, err := range map[string]error{
			"value has 1001 bytes, want at most 1000": g.Publish("key", make([]byte, 1001)),
			"key has 0 bytes":                         g.Publish("", []byte("value")),
			"key has 151 bytes, want 1 to 150":        g.Publish(strings.Repeat("k", 151), []byte("value")),
		} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("want an error that says %q, got %v", want, err)
			}
		}
		for i := range MaxKeys {
			publish(t, g, fmt.Sprint(i), "")
		}
		if err := g.Publish("one more", []byte{}); err == nil || !strings.Contains(err.Error(), "too many keys") {
			t.Errorf("one key more: %v", err)
		}
		publish(t, g, "0", "changed") // a known key still changes
	})
}

func TestANodesValuesAreBoundedInAll(t *testing.T) {
	table := newTable("self", 1)
	value := make([]byte, MaxValue)
	n := 0
	for ; ; n++ {
		if _, _, err := table.publish(fmt.Sprintf("%04d", n), value, time.Now()); err != nil {
			break
		}
	}
	if want := maxNodeBytes / (MaxValue + 4); n != want {
		t.Fatalf("%d values fit, want %d", n, want)
	}
	if _, changed, err := table.publish("0000", nil, time.Now()); err != nil || !changed {
		t.Fatalf("nothing can be removed: %v", err)
	}
	if _, _, err := table.publish("more", value[:MaxValue-4], time.Now()); err != nil {
		t.Fatalf("what was removed left no room: %v", err)
	}
}

func TestWhatWasRemovedLongAgoLeavesRoom(t *testing.T) {
	table, now := newTable("self", 1), time.Now()
	for i := range MaxKeys {
		for _, value := range [][]byte{{}, nil} {
			if _, _, err := table.publish(fmt.Sprint(i), value, now); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, _, err := table.publish("new", []byte{}, now.Add(removedFor)); err == nil {
		t.Error("what was removed is forgotten already")
	}
	if _, _, err := table.publish("new", []byte{}, now.Add(removedFor+time.Second)); err != nil {
		t.Error(err)
	}
}

func TestWhatIsMalformedIsCountedAndDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		d := delegate{w.open(0)}
		d.NotifyMsg(nil)
		d.NotifyMsg([]byte("nonsense"))
		d.MergeRemoteState([]byte("nonsense"), false)
		if n := d.g.Counters()["gossip_malformed_total"]; n != 3 {
			t.Errorf("counted %d, want 3", n)
		}
	})
}

func allBut(n string) func(string) bool { return func(node string) bool { return node != n } }

func all(string) bool { return true }

func TestTheNewestWinsInWhateverOrderItComes(t *testing.T) {
	now := time.Now()
	a := record{node: "n", life: 1, seq: 1, key: "k", value: []byte("a")}
	b := record{node: "n", life: 1, seq: 2, key: "k", value: []byte("b")}
	removed := record{node: "n", life: 1, seq: 3, key: "k", removed: true}
	reborn := record{node: "n", life: 2, seq: 1, key: "k", value: []byte("reborn")}
	other := record{node: "n", life: 2, seq: 2, key: "other", value: []byte("o")}
	for _, c := range []struct {
		name    string
		records []record
		want    map[string]string
	}{
		{"in order", []record{a, b}, map[string]string{"k": "b"}},
		{"out of order", []record{b, a}, map[string]string{"k": "b"}},
		{"twice", []record{a, a}, map[string]string{"k": "a"}},
		{"removed", []record{a, b, removed}, nil},
		{"removed before it was known", []record{removed, b}, nil},
		{"a later life", []record{removed, reborn}, map[string]string{"k": "reborn"}},
		{"a later life first", []record{reborn, removed, b}, map[string]string{"k": "reborn"}},
		{"a later life drops what it does not say", []record{b, other}, map[string]string{"other": "o"}},
	} {
		table := newTable("self", 9)
		for _, r := range c.records {
			table.take(r, now)
		}
		got := map[string]string{}
		for k, v := range table.snapshot(all)["n"] {
			got[k] = string(v)
		}
		if !maps.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func TestARemovalIsRememberedForAWhileAndNotKeptAliveByExchanges(t *testing.T) {
	now := time.Now()
	tables := map[string]*table{"a": newTable("a", 1), "b": newTable("b", 1), "n": newTable("n", 1)}
	for _, value := range [][]byte{[]byte("v"), nil} {
		r, _, err := tables["n"].publish("k", value, now)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a", "b"} {
			tables[name].take(r, now)
		}
		now = now.Add(time.Minute)
	}
	exchange := func(from, to string) {
		state, err := decodeState(tables[from].encode(all))
		if err != nil {
			t.Fatal(err)
		}
		tables[to].merge(state, now)
	}
	// n and a forget, b is late. Then a must not learn it again.
	now = now.Add(removedFor)
	for _, name := range []string{"n", "a"} {
		if len(tables[name].nodes["n"].values) != 1 {
			t.Errorf("%s has forgotten too early", name)
		}
		tables[name].sweep(all, now)
	}
	exchange("b", "a")
	exchange("b", "n")
	for _, name := range []string{"n", "a"} {
		if s := tables[name].nodes["n"]; len(s.values) != 0 || s.bytes != 0 {
			t.Errorf("%s remembers %d keys of %d bytes", name, len(s.values), s.bytes)
		}
	}
}

func TestWhatAGoneNodeSaidIsHiddenThenForgotten(t *testing.T) {
	now := time.Now()
	tb := newTable("self", 1)
	r := record{node: "n", life: 1, seq: 1, key: "k", value: []byte("v")}
	tb.take(r, now)
	tb.gone("n", now)
	if len(tb.snapshot(allBut("n"))) != 0 {
		t.Error("it is still shown")
	}
	if state, _ := decodeState(tb.encode(allBut("n"))); len(state) != 1 {
		t.Error("it is still sent to others")
	}
	now = now.Add(goneFor)
	tb.take(r, now) // an echo of it does not prolong its stay
	tb.sweep(allBut("n"), now)
	if len(tb.snapshot(all)["n"]) != 1 {
		t.Error("it was forgotten too early")
	}
	tb.sweep(allBut("n"), now.Add(time.Second))
	if len(tb.snapshot(all)["n"]) != 0 {
		t.Error("it was not forgotten")
	}
}

func TestNodesAndKeysOfOthersAreBounded(t *testing.T) {
	now := time.Now()
	tb := newTable("self", 1)
	for i := range MaxKeys + 10 {
		got := tb.take(record{node: "n", life: 1, seq: 1, key: fmt.Sprint(i)}, now)
		if want := fresh; i >= MaxKeys {
			want = full
			if got != want {
				t.Fatalf("key %d was taken", i)
			}
		}
	}
	for i := range maxNodes + 10 {
		tb.take(record{node: fmt.Sprint("node", i), life: 1, seq: 1, key: "k"}, now)
	}
	if len(tb.nodes) != maxNodes {
		t.Errorf("%d nodes are known, want %d", len(tb.nodes), maxNodes)
	}
}

func TestAStateOfOneOverBoundLeavesNodesOutAndStaysReadable(t *testing.T) {
	now := time.Now()
	tb := newTable("self", 1)
	value := make([]byte, MaxValue)
	for i := range 12 {
		for k := range 1000 {
			tb.take(record{node: fmt.Sprint("n", i), life: 1, seq: 1, key: fmt.Sprint(k), value: value}, now)
		}
	}
	b := tb.encode(all)
	state, err := decodeState(b)
	if err != nil || len(b) > maxState || len(state) < 7 || len(state) > 9 || state[0].node != "self" {
		t.Errorf("%d bytes of state with %d nodes: %v", len(b), len(state), err)
	}
}
