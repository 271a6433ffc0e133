package relay

import (
	"bytes"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// KeptTime is how long what a flow has sent is kept from its first on: that somebody does not take it is heard within a round trip, or some.
	KeptTime = 2 * time.Second
	// MaxKept and MaxKeptBytes bound that of one flow, MaxKeptOfAll that of all of a Keeper in bytes; what is older goes first.
	MaxKept      = 8
	MaxKeptBytes = 12 << 10
	MaxKeptOfAll = 32 << 20
)

// Kept is what is kept of what a flow of datagrams has sent one way, by its Keeper.
type Kept struct {
	since time.Time // its first was sent; zero: nothing was
	all   [][]byte
	size  int
	over  atomic.Bool // nothing more is kept
}

// Over says that nothing more is kept.
func (k *Kept) Over() bool { return k.over.Load() }

// Keeper keeps the first datagrams of flows for a while, all of them together within a bound, to be sent again where somebody does not take them. The zero value has none.
type Keeper struct {
	mu    sync.Mutex
	queue []*Kept // the oldest first; those that were dropped meanwhile have nothing
	size  int
	timer *time.Timer // runs while the queue has any
}

// Keep keeps copies of datagrams that are about to be sent, if they are among the first, and says whether it does.
func (k *Keeper) Keep(of *Kept, all [][]byte) bool {
	if of.over.Load() {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if of.over.Load() { // meanwhile
		return false
	}
	now := time.Now()
	k.expire(now)
	if of.since.IsZero() {
		of.since = now
		if k.queue = append(k.queue, of); len(k.queue) == 1 {
			k.later(KeptTime)
		}
	}
	size := 0
	for _, p := range all {
		size += len(p)
	}
	if now.Sub(of.since) > KeptTime || len(of.all)+len(all) > MaxKept || of.size+size > MaxKeptBytes {
		of.over.Store(true) // those that are kept stay so until they are too old
		return false
	}
	for k.size+size > MaxKeptOfAll && len(k.queue) > 0 && k.queue[0] != of {
		k.pop()
	}
	if k.size+size > MaxKeptOfAll {
		return false
	}
	for _, p := range all {
		of.all = append(of.all, bytes.Clone(p))
	}
	of.size += size
	k.size += size
	return true
}

// Drop returns what is kept, and keeps it and what follows no more. What was given up is nil.
func (k *Keeper) Drop(of *Kept) [][]byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.expire(time.Now())
	return k.release(of)
}

// GiveUp has some of the last n that were kept not be kept any more, by their places among those. Drop has nil in their place.
func (k *Keeper) GiveUp(of *Kept, n int, which []int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(of.all) < n {
		return // they are too old
	}
	last := of.all[len(of.all)-n:]
	for _, i := range which {
		of.size -= len(last[i])
		k.size -= len(last[i])
		last[i] = nil
	}
}

// Size is how many bytes are kept.
func (k *Keeper) Size() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.size
}

func (k *Keeper) release(of *Kept) [][]byte {
	all := of.all
	k.size -= of.size
	of.all, of.size = nil, 0
	of.over.Store(true)
	return all
}

// later has what is too old by then let go: nothing may be sent or answered for long.
func (k *Keeper) later(after time.Duration) {
	if k.timer == nil {
		k.timer = time.AfterFunc(after, k.tick)
	} else {
		k.timer.Reset(after)
	}
}

func (k *Keeper) tick() {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	k.expire(now)
	if len(k.queue) > 0 {
		k.later(KeptTime - now.Sub(k.queue[0].since) + time.Millisecond)
	}
}

// expire lets go what is too old.
func (k *Keeper) expire(now time.Time) {
	for len(k.queue) > 0 && now.Sub(k.queue[0].since) > KeptTime {
		k.pop()
	}
}

func (k *Keeper) pop() {
	k.release(k.queue[0])
	k.queue[0] = nil
	if k.queue = k.queue[1:]; len(k.queue) == 0 {
		k.queue = nil
	}
}
