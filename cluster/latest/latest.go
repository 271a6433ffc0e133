// Package latest holds the newest snapshot of something and wakes those who wait for the next.
//
// A Value is for state that is published whole (a spec, a view, a table): readers
// take the newest with one atomic load and never lock; a slow reader misses the
// snapshots in between, on purpose. It is not a queue, and it promises nothing about
// how many snapshots a waiter sees, only that the last one is not missed.
package latest

import (
	"context"
	"sync"
	"sync/atomic"
)

// Value is the newest snapshot of T. The zero Value holds T's zero value at version 0
// and is ready for use. A Value must not be copied.
type Value[T any] struct {
	now atomic.Pointer[state[T]]
	mu  sync.Mutex // orders writers
}

type state[T any] struct {
	value   T
	version uint64
	changed chan struct{} // closed when a newer state is published
}

// Get returns the newest snapshot. It never blocks.
func (v *Value[T]) Get() T {
	return v.load().value
}

// Version counts the snapshots published so far: 0 before the first.
func (v *Value[T]) Version() uint64 {
	return v.load().version
}

// Set publishes a snapshot and wakes all who wait. The snapshot must not be changed afterwards.
func (v *Value[T]) Set(value T) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.publish(v.load(), value)
}

// Update publishes what f makes of the newest snapshot; no other writer comes between.
// f must not change the value it is given.
func (v *Value[T]) Update(f func(T) T) {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.load()
	v.publish(old, f(old.value))
}

// Next returns the newest snapshot and its version as soon as that version is above after,
// or the context's error. Next(ctx, 0) waits for the first snapshot.
func (v *Value[T]) Next(ctx context.Context, after uint64) (T, uint64, error) {
	for {
		s := v.load()
		if s.version > after {
			return s.value, s.version, nil
		}
		select {
		case <-s.changed:
		case <-ctx.Done():
			var zero T
			return zero, after, ctx.Err()
		}
	}
}

func (v *Value[T]) publish(old *state[T], value T) {
	v.now.Store(&state[T]{value: value, version: old.version + 1, changed: make(chan struct{})})
	close(old.changed)
}

func (v *Value[T]) load() *state[T] {
	for {
		if s := v.now.Load(); s != nil {
			return s
		}
		v.now.CompareAndSwap(nil, &state[T]{changed: make(chan struct{})})
	}
}
