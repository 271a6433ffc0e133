package accelerator

import (
	"bytes"
	"sync"
	"sync/atomic"
	"time"
)

// keeping is what is kept of what a flow has sent one way, by its keeper.
type keeping struct {
	since time.Time // its first was sent; zero: nothing was
	all   [][]byte
	size  int
	over  atomic.Bool // nothing more is kept
}

// keeper keeps the first datagrams of flows for a while, all of them together within a bound.
type keeper struct {
	mu    sync.Mutex
	queue []*keeping // the oldest first; those that were dropped meanwhile have nothing
	size  int
	timer *time.Timer // runs while the queue has any
}

// keep keeps copies of datagrams that are about to be sent, if they are among the first, and says whether it does.
func (k *keeper) keep(of *keeping, all [][]byte) bool {
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
			k.later(resendTime)
		}
	}
	size := bytesOf(all)
	if now.Sub(of.since) > resendTime || len(of.all)+len(all) > maxKept || of.size+int(size) > maxKeptBytes {
		of.over.Store(true) // those that are kept stay so until they are too old
		return false
	}
	for k.size+int(size) > maxKeptOfAll && len(k.queue) > 0 && k.queue[0] != of {
		k.pop()
	}
	if k.size+int(size) > maxKeptOfAll {
		return false
	}
	for _, p := range all {
		of.all = append(of.all, bytes.Clone(p))
	}
	of.size += int(size)
	k.size += int(size)
	return true
}

// drop returns what is kept, and keeps it and what follows no more.
func (k *keeper) drop(of *keeping) [][]byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.expire(time.Now())
	return k.release(of)
}

func (k *keeper) release(of *keeping) [][]byte {
	all := of.all
	k.size -= of.size
	of.all, of.size = nil, 0
	of.over.Store(true)
	return all
}

// later has what is too old by then let go: nothing may be sent or answered for long.
func (k *keeper) later(after time.Duration) {
	if k.timer == nil {
		k.timer = time.AfterFunc(after, k.tick)
	} else {
		k.timer.Reset(after)
	}
}

func (k *keeper) tick() {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	k.expire(now)
	if len(k.queue) > 0 {
		k.later(resendTime - now.Sub(k.queue[0].since) + time.Millisecond)
	}
}

// expire lets go what is too old.
func (k *keeper) expire(now time.Time) {
	for len(k.queue) > 0 && now.Sub(k.queue[0].since) > resendTime {
		k.pop()
	}
}

func (k *keeper) pop() {
	k.release(k.queue[0])
	k.queue[0] = nil
	if k.queue = k.queue[1:]; len(k.queue) == 0 {
		k.queue = nil
	}
}
