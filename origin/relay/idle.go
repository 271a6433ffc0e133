package relay

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// An Idler ends when nothing has moved in it for its idle time. The zero value is in no Idlers.
type Idler struct {
	began time.Time
	last  atomic.Int64 // when something moved, since then
	idle  time.Duration
	end   func()

	prev, next *Idler // guarded by the mutex of its Idlers
}

// Touch says that something has moved. It is for those that were added.
func (i *Idler) Touch() { i.last.Store(int64(time.Since(i.began))) }

// Silent is how long nothing has moved. It is for those that were added.
func (i *Idler) Silent() time.Duration { return time.Since(i.began) - time.Duration(i.last.Load()) }

const (
	// idleTick is how often Idlers look; so one ends at most twice that after its time.
	idleTick = time.Second
	// idleSlots is how many ticks ahead they know whom to look at; who has longer is looked at in between.
	idleSlots = 64
)

// Idlers end what is idle, without a timer for each: who may end in the same second stands in one list, and is looked at when that second is over. The zero
// value has none.
type Idlers struct {
	mu    sync.Mutex
	began time.Time
	tick  int64 // that was looked at last
	count int
	slots [idleSlots]Idler // of each the head of a ring
	timer *time.Timer
}

// now is since the first was added.
func (w *Idlers) now() time.Duration {
	if w.began.IsZero() {
		w.began = time.Now()
		for i := range w.slots {
			s := &w.slots[i]
			s.prev, s.next = s, s
		}
	}
	return time.Since(w.began)
}

// Add takes in an Idler that has just moved. Its end is called once, unless it is removed before.
func (w *Idlers) Add(i *Idler, idle time.Duration, end func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	i.began, i.idle, i.end = w.began, idle, end
	i.last.Store(int64(now))
	if w.count++; w.count == 1 {
		w.tick = int64(now / idleTick)
		w.timer = time.AfterFunc(idleTick, w.look)
	}
	w.place(i)
}

// place puts one in the list of the tick in which it ends if nothing moves.
func (w *Idlers) place(i *Idler) {
	due := (time.Duration(i.last.Load())+i.idle)/idleTick + 1
	tick := max(min(int64(due), w.tick+idleSlots-1), w.tick+1)
	head := &w.slots[tick%idleSlots]
	i.prev, i.next = head.prev, head
	i.prev.next, i.next.prev = i, i
}

// Remove has an Idler not end. It may be called at any time.
func (w *Idlers) Remove(i *Idler) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i.next == nil {
		return
	}
	i.prev.next, i.next.prev = i.next, i.prev
	i.prev, i.next = nil, nil
	if w.count--; w.count == 0 {
		w.timer.Stop()
	}
}

// Settle waits until nothing has moved for a while, or the context ends. It does so for who is about to end, and may be called at any time.
func (w *Idlers) Settle(ctx context.Context, silence time.Duration) {
	for {
		left := w.unsettled(silence)
		if left <= 0 {
			return
		}
		timer := time.NewTimer(min(left, idleTick)) // what moved last may be removed before it is silent
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// unsettled is how long it is at least until nothing has moved for a while.
func (w *Idlers) unsettled(silence time.Duration) (left time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count == 0 {
		return 0
	}
	now := w.now()
	for i := range w.slots {
		head := &w.slots[i]
		for one := head.next; one != head; one = one.next {
			left = max(left, silence-(now-time.Duration(one.last.Load())))
		}
	}
	return left
}

// look ends those whose time is over.
func (w *Idlers) look() {
	w.mu.Lock()
	now := w.now()
	var over []*Idler
	for w.tick < int64(now/idleTick) {
		w.tick++
		head := &w.slots[w.tick%idleSlots]
		for i := head.next; i != head; {
			next := i.next
			i.prev.next, i.next.prev = i.next, i.prev
			if now-time.Duration(i.last.Load()) >= i.idle {
				i.prev, i.next = nil, nil
				w.count--
				over = append(over, i)
			} else {
				w.place(i)
			}
			i = next
		}
	}
	if w.count > 0 {
		w.timer.Reset(idleTick)
	}
	w.mu.Unlock()
	for _, i := range over {
		i.end()
	}
}
