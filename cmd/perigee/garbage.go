package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// gcPercent is how much garbage a node lets grow beside what is live, in percent (GOGC), unless the environment says it. What
	// is live is mostly the cache and the spec, which costs little to look through: memory is dearer than the processor's time.
	gcPercent = 50
	// garbageFloor is how much it lets grow in any case: a node with little that is live would collect at each few
	// megabytes, ten times a second under load, and that was a tenth of what a request to an origin costs.
	garbageFloor = 32 << 20
	// maxGCPercent bounds what follows for a heap that is nearly empty.
	maxGCPercent = 800
)

// percentFor is how much garbage may grow beside so many live bytes, in percent of them. It goes by steps, for to set it
// stops the world.
func percentFor(live uint64) int {
	percent := maxGCPercent
	if live > 0 {
		percent = int(min(garbageFloor*100/live, maxGCPercent))
	}
	return max(percent/25*25, gcPercent)
}

// boundGarbage sets how much garbage may grow, anew after each collection, until end is called, which waits and sets what was before.
func boundGarbage() (end func()) {
	stands := gcPercent
	before := debug.SetGCPercent(stands)
	collected, stop, ended := make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	afterCollection(collected)
	go func() {
		defer close(ended)
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		for {
			select {
			case <-stop:
				return
			case <-collected:
			}
			metrics.Read(live)
			if percent := percentFor(live[0].Value.Uint64()); percent != stands {
				stands = percent
				debug.SetGCPercent(percent)
			}
			afterCollection(collected)
		}
	}()
	return func() {
		close(stop)
		<-ended
		debug.SetGCPercent(before)
	}
}

// afterCollection sends once when the collector has next run: then what nobody holds is found.
func afterCollection(done chan<- struct{}) {
	canary := new([16]byte) // not so small that it shares its place with what lives on
	runtime.AddCleanup(canary, func(done chan<- struct{}) {
		select {
		case done <- struct{}{}:
		default:
		}
	}, done)
}
