package front

import (
	"net/netip"
	"sync"

	"github.com/perigee-net/perigee/edge/http1"
)

// crowd counts a door's connections by who they are from, those of TCP and of QUIC together. It holds no more clients than there are
// connections.
type crowd struct {
	mu   sync.Mutex
	held map[netip.Addr]int
}

func newCrowd() *crowd { return &crowd{held: map[netip.Addr]int{}} }

// enter counts a guest, unless its client has as many as it may. One of whom nobody knows yet is counted when that is known.
func (c *crowd) enter(g *guest, limit int) bool {
	from := g.from.Load()
	if from == nil || g.key.IsValid() {
		return true
	}
	key := http1.ClientOf(*from)
	if !c.add(key, limit) {
		return false
	}
	g.key = key
	return true
}

func (c *crowd) leave(g *guest) {
	if g != nil {
		c.remove(g.key)
	}
}

// add counts a connection of a client, unless it has as many. One that is not valid counts for nobody.
func (c *crowd) add(key netip.Addr, limit int) bool {
	if !key.IsValid() {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held[key] >= limit {
		return false
	}
	c.held[key]++
	return true
}

// clients is how many clients have some.
func (c *crowd) clients() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.held)
}

func (c *crowd) remove(key netip.Addr) {
	if !key.IsValid() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held[key]--; c.held[key] == 0 {
		delete(c.held, key)
	}
}
