package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestGarbageMayGrowToTheFloorOrToHalfOfWhatIsLive(t *testing.T) {
	for live, want := range map[uint64]int{
		0: 800, 1 << 20: 800, 8 << 20: 400, 20 << 20: 150, 32 << 20: 100, 64 << 20: 50, 65 << 20: 50, 1 << 40: 50,
	} {
		if got := percentFor(live); got != want {
			t.Errorf("%d bytes are live: %d %%, want %d", live, got, want)
		}
	}
}

func TestACollectionSetsHowMuchGarbageMayGrow(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	end := boundGarbage(tidyTime)
	now := func() int { // and not by setting it, which could undo what is just being set
		percent := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(percent)
		return int(percent[0].Value.Uint64())
	}
	live := make([]byte, 128<<20) // so much that half of it is above the floor
	for deadline := time.Now().Add(10 * time.Second); now() != gcPercent && time.Now().Before(deadline); runtime.Gosched() {
		runtime.GC()
	}
	if got := now(); got != gcPercent {
		t.Errorf("%d %% beside %d bytes", got, len(live))
	}
	runtime.KeepAlive(live)
	live = nil
	for deadline := time.Now().Add(10 * time.Second); now() <= gcPercent && time.Now().Before(deadline); runtime.Gosched() {
		runtime.GC()
	}
	if got := now(); got <= gcPercent {
		t.Errorf("%d %% beside little", got)
	}
	end()
	if got := now(); got != 100 {
		t.Errorf("%d %% afterwards, not as before", got)
	}
}

func TestGarbageIsCollectedSoonerWhereThatCostsLittle(t *testing.T) {
	const live = 800 << 20
	rest := heap{live: live, used: live + live/8 + 1, allocated: live / 256, since: 0, cost: time.Second}
	if !rest.untidy() {
		t.Error("not at rest")
	}
	for name, change := range map[string]func(h *heap){
		"little garbage":                 func(h *heap) { h.used-- },
		"a collection has just found":    func(h *heap) { h.used = h.live - 1 },
		"it allocates, and that costs":   func(h *heap) { h.allocated++; h.since = 49 * time.Second },
		"less garbage than is the least": func(h *heap) { h.live, h.used = 8<<20, 8<<20+garbageFloor },
	} {
		h := rest
		if change(&h); h.untidy() {
			t.Errorf("%s: %+v", name, h)
		}
	}
	for _, c := range []struct {
		name  string
		h     heap
		wants bool
	}{
		{"nobody asks anything", heap{live: live, used: live + live/32 + 1, allocated: live / 2048}, true},
		{"little garbage", heap{live: live, used: live + live/32, allocated: live / 2048}, false},
		{"somebody asks", heap{live: live, used: live + live/32 + 1, allocated: live/2048 + 1}, false},
		{"a node that holds little", heap{live: 8 << 20, used: 16 << 20, allocated: 0}, false},
		{"one with more garbage than that", heap{live: 8 << 20, used: 16<<20 + 1, allocated: 256 << 10}, true},
		{"one with as much left free", heap{live: 8 << 20, used: 9 << 20, free: 7<<20 + 1}, true},
		{"one with less", heap{live: 8 << 20, used: 9 << 20, free: 7 << 20}, false},
		{"it is asked now and then", heap{live: 8 << 20, used: 16<<20 + 1, allocated: 256<<10 + 1}, false},
	} {
		if c.h.untidy() != c.wants {
			t.Errorf("%s: %+v", c.name, c.h)
		}
	}
	busy := rest
	busy.allocated, busy.since = live, 50*time.Second
	if !busy.untidy() {
		t.Error("not when the last collection is long ago for what it cost")
	}
}

func TestANodeAtRestGivesItsGarbageBack(t *testing.T) {
	end := boundGarbage(time.Millisecond)
	defer end()
	live := make([][]byte, 100<<10)
	for i := range live {
		live[i] = make([]byte, 1<<10)
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before, deadline := m.NumGC, time.Now().Add(10*time.Second)
	for range 45 << 10 { // less than makes the collector start
		kept = make([]byte, 1<<10)
	}
	for m.NumGC == before && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
		runtime.ReadMemStats(&m)
	}
	if m.NumGC == before {
		t.Errorf("%d bytes on the heap", m.HeapAlloc)
	}
	runtime.KeepAlive(live)
}

var kept []byte
