package wire

import (
	"sync"
	"time"
)

// pool keeps connections between requests. The one that was kept last is used first, so that those which are not needed grow old; one
// timer closes what is too old.
type pool struct {
	max  int
	life time.Duration

	mu    sync.Mutex
	idle  map[string][]*conn // of an address, in the order in which they were kept
	shut  bool               // nothing is kept, until something is asked for
	timer *time.Timer        // runs sweep
	armed bool               // it runs, as anything is kept
}

// take takes a connection to an address; nil: none is kept.
func (p *pool) take(address string) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shut = false
	kept := p.idle[address]
	if len(kept) == 0 {
		return nil
	}
	last := len(kept) - 1
	c := kept[last]
	kept[last] = nil
	p.idle[address] = kept[:last]
	return c
}

// put keeps a connection, which was used last then, or closes it.
func (p *pool) put(c *conn, then time.Time) {
	p.mu.Lock()
	kept := p.idle[c.address]
	if p.shut || len(kept) >= p.max {
		p.mu.Unlock()
		c.Close()
		return
	}
	defer p.mu.Unlock()
	c.since = then
	if p.idle == nil {
		p.idle = map[string][]*conn{}
	}
	p.idle[c.address] = append(kept, c)
	if !p.armed {
		p.arm(p.life)
	}
}

func (p *pool) arm(d time.Duration) {
	if p.armed = true; p.timer == nil {
		p.timer = time.AfterFunc(d, p.sweep)
	} else {
		p.timer.Reset(d)
	}
}

// sweep closes what is kept for too long, and comes again when the next will be.
func (p *pool) sweep() {
	var old []*conn
	p.mu.Lock()
	now := time.Now()
	next := time.Duration(-1)
	for address, kept := range p.idle {
		n := 0
		for n < len(kept) && now.Sub(kept[n].since) >= p.life {
			n++
		}
		old = append(old, kept[:n]...)
		if n == len(kept) {
			delete(p.idle, address)
			continue
		}
		p.idle[address] = append(kept[:0:0], kept[n:]...)
		if left := p.life - now.Sub(kept[n].since); next < 0 || left < next {
			next = left
		}
	}
	if p.armed = false; next >= 0 {
		p.arm(next)
	}
	p.mu.Unlock()
	for _, c := range old {
		c.Close()
	}
}

func (p *pool) close() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.shut = nil, true
	if p.armed {
		p.armed = false
		p.timer.Stop()
	}
	p.mu.Unlock()
	for _, kept := range idle {
		for _, c := range kept {
			c.Close()
		}
	}
}
