package main

import (
	"runtime"
	"runtime/debug"
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
	end := boundGarbage()
	now := func() int {
		percent := debug.SetGCPercent(-1)
		debug.SetGCPercent(percent)
		return percent
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
