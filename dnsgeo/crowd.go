package dnsgeo

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

const (
	// maxConns is how many connections are held at once, of TCP and TLS together. At the bound the newest takes the place of the one
	// that has asked nothing for longest, of the client with the most.
	maxConns = 4096

	// maxConnsPerClient is how many of them may be of one client: one IPv4 /24, or one /48 of IPv6, which is what a resolver's
	// operator has, or whoever fills the room. At the bound a newer one takes the place of an older one of the same client. This
	// machine itself is no client: what is before the name service here stands for many.
	maxConnsPerClient = 256

	// maxLooks is how many connections are looked at for the one that has to go.
	maxLooks = maxConnsPerClient
)

// conn is a connection of a client.
type conn struct {
	net.Conn              // what is read and written: TLS, or the socket
	socket   net.Conn     // beneath it
	heard    atomic.Int64 // when it last got on, since the server began

	// The crowd's:
	client *client // nil: it has no place
	at     int     // among the client's
}

// client is whose connections they are.
type client struct {
	network netip.Prefix
	conns   []*conn
	at      int // among those with as many
}

// crowd is who holds connections. It holds no more clients than connections, and finds who has to go in a bounded number of
// steps: nobody who opens many can make others wait.
type crowd struct {
	mu      sync.Mutex
	n       int
	clients map[netip.Prefix]*client
	with    [][]*client // by how many connections they have
}

// clientOf is whom an address counts for.
func clientOf(a netip.Addr) netip.Prefix {
	bits := 24
	if a.Is6() {
		bits = 48
	}
	if a.IsLoopback() {
		bits = a.BitLen()
	}
	p, _ := a.Prefix(bits) // of none, the zero Prefix
	return p
}

// enter gives a connection a place, and returns the one that has to go for it, if any.
func (w *crowd) enter(c *conn, from netip.Addr) (displaced *conn) {
	network := clientOf(from)
	w.mu.Lock()
	defer w.mu.Unlock()
	owner := w.clients[network]
	switch {
	case owner != nil && len(owner.conns) >= maxConnsPerClient && !from.IsLoopback():
		displaced = longestSilent(owner)
	case w.n >= maxConns:
		displaced = longestSilent(w.greediest()...)
	}
	if displaced != nil {
		w.remove(displaced)
		owner = w.clients[network]
	}
	if owner == nil {
		owner = &client{network: network}
		if w.clients == nil {
			w.clients = map[netip.Prefix]*client{}
		}
		w.clients[network] = owner
	} else {
		w.drop(owner)
	}
	c.client, c.at = owner, len(owner.conns)
	owner.conns = append(owner.conns, c)
	w.rank(owner)
	w.n++
	return displaced
}

// leave gives the place back, unless it was taken already.
func (w *crowd) leave(c *conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.client != nil {
		w.remove(c)
	}
}

// size is how many connections there are.
func (w *crowd) size() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

func (w *crowd) remove(c *conn) {
	owner := c.client
	w.drop(owner)
	last := len(owner.conns) - 1
	owner.conns[c.at] = owner.conns[last]
	owner.conns[c.at].at = c.at
	owner.conns[last] = nil
	owner.conns = owner.conns[:last]
	c.client = nil
	w.n--
	if last == 0 {
		delete(w.clients, owner.network)
		return
	}
	w.rank(owner)
}

// rank puts a client among those with as many connections, drop takes it from there.
func (w *crowd) rank(owner *client) {
	n := len(owner.conns)
	for len(w.with) <= n {
		w.with = append(w.with, nil)
	}
	owner.at = len(w.with[n])
	w.with[n] = append(w.with[n], owner)
}

func (w *crowd) drop(owner *client) {
	n := len(owner.conns)
	alike := w.with[n]
	last := len(alike) - 1
	alike[owner.at] = alike[last]
	alike[owner.at].at = owner.at
	alike[last] = nil
	w.with[n] = alike[:last]
	for len(w.with) > 0 && len(w.with[len(w.with)-1]) == 0 {
		w.with = w.with[:len(w.with)-1]
	}
}

// greediest are some of the clients that have most connections, of maxLooks connections at most, or one.
func (w *crowd) greediest() []*client {
	most := len(w.with) - 1
	alike := w.with[most]
	return alike[:min(len(alike), max(1, maxLooks/most))]
}

// longestSilent is the connection of the clients that got on longest ago.
func longestSilent(clients ...*client) (c *conn) {
	looks := 0
	for _, owner := range clients {
		for _, other := range owner.conns {
			if c == nil || other.heard.Load() < c.heard.Load() {
				c = other
			}
			if looks++; looks == maxLooks {
				return c
			}
		}
	}
	return c
}
