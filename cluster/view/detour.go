package view

import (
	"sync"
	"time"
)

const (
	// detourCost is what a node in between is taken to add to a round trip.
	detourCost = time.Millisecond
	// A detour is worth its while where it saves a sixth of the direct way, and 10 ms: less is within what measured round trips differ by from
	// one minute to the next.
	detourShare = 6
	detourGain  = 10 * time.Millisecond
)

// Detour is a way to a node by another one, which carries on what is sent.
type Detour struct {
	By string // the node in between
	// RTT is the round trip by it, Direct the one without; 0: the node is not reached directly.
	RTT, Direct time.Duration
}

// Detours finds detours of one view, each when it is first asked for. Between is the round trip between two other nodes as one of them
// measured it.
func Detours(v *View, between func(a, b string) (time.Duration, bool)) func(to string) (Detour, bool) {
	type found struct {
		detour Detour
		ok     bool
	}
	var mu sync.Mutex
	known := map[string]found{}
	return func(to string) (Detour, bool) {
		mu.Lock()
		defer mu.Unlock()
		f, is := known[to]
		if !is {
			f.detour, f.ok = detour(v, to, between)
			known[to] = f
		}
		return f.detour, f.ok
	}
}

// detour is the best way to a node by one other, if it is worth taking: the node cannot be reached directly, or is much farther that way. Who
// leaves or is drained carries nothing for others.
func detour(v *View, to string, between func(a, b string) (time.Duration, bool)) (best Detour, ok bool) {
	direct, measured := v.RTT[to]
	if v.Unreachable[to] {
		direct = 0
	} else if !measured {
		return Detour{}, false
	}
	for _, m := range v.Members {
		near, linked := v.RTT[m.Name]
		if !linked || m.Name == to || m.Name == v.Self || v.Unreachable[m.Name] || m.Leaving || m.Drained != "" {
			continue
		}
		far, known := between(m.Name, to)
		if !known {
			continue
		}
		if d := near + far + detourCost; !ok || d < best.RTT {
			best, ok = Detour{By: m.Name, RTT: d, Direct: direct}, true
		}
	}
	if ok && direct > 0 && (direct-best.RTT < detourGain || direct-best.RTT < direct/detourShare) {
		return Detour{}, false
	}
	return best, ok
}
