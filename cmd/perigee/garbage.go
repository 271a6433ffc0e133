package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
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

	// tidyTime is how often a node looks whether to collect sooner than it has to, and give back what that frees.
	tidyTime = time.Second
	// tidyShare is which part of what is live the garbage must be for that; it is above garbageFloor, too.
	tidyShare = 8
	// tidyCost is how many times what a collection computes must have passed since the last one: so these take a fiftieth of one
	// core at most, where requests make much garbage it grows to gcPercent, and where nearly all are hits it does not.
	tidyCost = 50
	// quietShare is which part of what is live may be allocated in tidyTime where that time is not waited for: a node at rest,
	// whose garbage takes half a minute to come to tidyShare again.
	quietShare = 256
	// restShare is which part of what is live may be allocated in tidyTime by a node that nobody asks anything, restLeast how much it
	// allocates in any case to hear and tell of others, and restGarbage and restFloor the garbage, and what is left free by
	// collections before, from which such a one collects: an eighth, or 32 MB, would stay with it for hours. More of it takes half a minute to come again.
	restShare   = 2048
	restLeast   = restFloor / 32
	restGarbage = 32
	restFloor   = 8 << 20
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

// heap is what is known of memory when a node looks.
type heap struct {
	live      uint64        // bytes that the last collection found in use
	used      uint64        // bytes that are in use by now, or garbage
	free      uint64        // bytes that are neither, and that the system has not got back
	allocated uint64        // bytes since the look before
	since     time.Duration // the last collection
	cost      time.Duration // of processors, that it took
}

// untidy says whether to collect now.
func (h heap) untidy() bool {
	switch garbage := h.used - min(h.live, h.used); {
	case h.allocated <= max(h.live/restShare, restLeast) && garbage+h.free > max(h.live/restGarbage, restFloor):
		return true
	case garbage <= max(h.live/tidyShare, garbageFloor):
		return false
	}
	return h.allocated <= h.live/quietShare || h.since >= tidyCost*h.cost
}

// What heap is read from, in this order.
var heapMetrics = []string{"/gc/heap/live:bytes", "/memory/classes/heap/objects:bytes", "/gc/heap/allocs:bytes", "/cpu/classes/gc/total:cpu-seconds", "/memory/classes/heap/free:bytes"}

// boundGarbage sets how much garbage may grow, anew after each collection, and collects sooner where that costs little, looking so
// often, until end is called, which waits and sets what was before.
func boundGarbage(look time.Duration) (end func()) {
	stands := gcPercent
	before := debug.SetGCPercent(stands)
	collected, stop, ended := make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	afterCollection(collected)
	go func() {
		defer close(ended)
		looks := time.NewTicker(look)
		defer looks.Stop()
		samples := make([]metrics.Sample, len(heapMetrics))
		for i, name := range heapMetrics {
			samples[i].Name = name
		}
		var (
			at        time.Time // the last collection
			cost      time.Duration
			spent     float64 // on all collections until then, in s
			allocated uint64  // until the look before
		)
		for {
			select {
			case <-stop:
				return
			case <-collected:
				metrics.Read(samples)
				total := samples[3].Value.Float64()
				at, cost, spent = time.Now(), time.Duration((total-spent)*float64(time.Second)), total
				if percent := percentFor(samples[0].Value.Uint64()); percent != stands {
					stands = percent
					debug.SetGCPercent(percent)
				}
				afterCollection(collected)
			case <-looks.C:
				metrics.Read(samples)
				all := samples[2].Value.Uint64()
				h := heap{samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[4].Value.Uint64(), all - allocated, time.Since(at), cost}
				if allocated = all; h.untidy() {
					debug.FreeOSMemory() // collects first; without it what is free stays with the process up to where garbage may grow
				}
			}
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
