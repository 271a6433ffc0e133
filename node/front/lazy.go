package front

import (
	"context"
	"sync"
	"time"
)

// lazy is a context that ends with its parent or by end, as one of context.WithCancel does, which it is from when somebody waits for its
// end. Most requests are answered by then, and to make one and enter it with its parent is a thirtieth of what a miss costs.
type lazy struct {
	parent context.Context

	mu     sync.Mutex
	ended  bool
	real   context.Context // nil: nobody has waited
	cancel context.CancelFunc
}

// Deadline implements context.Context: there is none but the parent's.
func (c *lazy) Deadline() (time.Time, bool) { return c.parent.Deadline() }

// Done implements context.Context.
func (c *lazy) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.make()
	return c.real.Done()
}

// make makes it real. c.mu is held.
func (c *lazy) make() {
	if c.real == nil {
		c.real, c.cancel = context.WithCancel(c.parent)
		if c.ended {
			c.cancel()
		}
	}
}

// Err implements context.Context.
func (c *lazy) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.real != nil:
		return c.real.Err()
	case c.ended:
		return context.Canceled
	}
	return c.parent.Err()
}

// Value implements context.Context. What is real is found by it, so that package context enters children there, without a goroutine.
func (c *lazy) Value(key any) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended { // it has a cause of its own
		c.make()
	}
	if c.real != nil {
		return c.real.Value(key)
	}
	return c.parent.Value(key)
}

func (c *lazy) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended = true; c.cancel != nil {
		c.cancel()
	}
}
