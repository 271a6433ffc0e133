package front

import (
	"net/netip"
	"sync"
)

// headsShare is which part of Config.HeaderBytes one client may have: one more of its heads is refused, and those of others are not.
const headsShare = 8

// heads counts the bytes that are held of heads which have not come to their end. It holds no more clients than there are connections.
type heads struct {
	most, each int64 // together, and of one client; at least one head

	mu   sync.Mutex
	all  int64
	held map[netip.Addr]int64 // by http1.ClientOf
}

func newHeads(most int64) heads {
	return heads{most: most, each: max(most/headsShare, headerBytes), held: map[netip.Addr]int64{}}
}

// take counts so many bytes more of a client, if there may be. What is before this node on its machine stands for many clients: it has no
// share of its own.
func (h *heads) take(client netip.Addr, n int64) bool {
	if n == 0 { // as give: nothing is held
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all+n > h.most {
		return false
	}
	if client.IsValid() {
		if h.held[client]+n > h.each {
			return false
		}
		h.held[client] += n
	}
	h.all += n
	return true
}

// give takes them back.
func (h *heads) give(client netip.Addr, n int64) {
	if n == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all -= n
	if client.IsValid() {
		if h.held[client] -= n; h.held[client] == 0 {
			delete(h.held, client)
		}
	}
}

func (h *heads) bytes() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all
}
