// Package crowd bounds how many connections are held at once, of all and of each client. At a bound the newest takes the place of another, so
// that who holds many and asks nothing keeps nobody out.
package crowd

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Max is how many connections are held at once. At the bound the newest takes the place of the one that has asked nothing for
	// longest, of the client with the most.
	Max = 4096

	// MaxPerClient is how many of them may be of one client. At the bound a newer one takes the place of an older one of the same
	// client. This machine itself is no client: what is before the name service here stands for many.
	MaxPerClient = 256

	// maxLooks is how many connections are looked at for the one that has to go.
	maxLooks = MaxPerClient
)

// Place is that of one connection. The zero Place is one of a connection that has not come in.
type Place struct {
	// End closes the connection. It is called when its place is another's, without the crowd's lock.
	End func()

	heard  atomic.Int64
	client *client // nil: it has none
	at     int     // among the client's
}

// Heard says when the connection last got on, as the time since some moment that is the same for all.
func (p *Place) Heard(at time.Duration) { p.heard.Store(int64(at)) }

// client is whose connections they are.
type client struct {
	network netip.Prefix
	places  []*Place
	at      int // among those with as many
	hand    int // where among the places one looks next
}

// Crowd is who holds connections; the zero Crowd is nobody. It holds no more clients than connections, and finds who has to go in a
// bounded number of steps: nobody who opens many can make others wait.
type Crowd struct {
	mu      sync.Mutex
	n       int
	clients map[netip.Prefix]*client
	with    [][]*client // by how many connections they have
	most    int         // nobody has more
	hand    int         // where among those with most one looks next
}

// Client is whom an address counts for: an IPv4 /24, or a /48 of IPv6, which is what a resolver's operator has, or whoever fills the room;
// an address of this machine for itself.
func Client(a netip.Addr) netip.Prefix {
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

// Enter gives a connection a place. Where there is none, another one is ended for it.
func (w *Crowd) Enter(p *Place, from netip.Addr) (displaced bool) {
	other := w.enter(p, from)
	if other == nil {
		return false
	}
	other.End()
	return true
}

func (w *Crowd) enter(p *Place, from netip.Addr) (displaced *Place) {
	network := Client(from)
	w.mu.Lock()
	defer w.mu.Unlock()
	owner := w.clients[network]
	switch {
	case owner != nil && len(owner.places) >= MaxPerClient && !from.IsLoopback():
		displaced = longestSilent(owner)
	case w.n >= Max:
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
	p.client, p.at = owner, len(owner.places)
	owner.places = append(owner.places, p)
	w.rank(owner)
	w.n++
	return displaced
}

// Leave gives the place back, unless it was taken already.
func (w *Crowd) Leave(p *Place) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.client != nil {
		w.remove(p)
	}
}

// Size is how many connections there are.
func (w *Crowd) Size() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

func (w *Crowd) remove(p *Place) {
	owner := p.client
	w.drop(owner)
	last := len(owner.places) - 1
	owner.places[p.at] = owner.places[last]
	owner.places[p.at].at = p.at
	owner.places[last] = nil
	owner.places = owner.places[:last]
	p.client = nil
	w.n--
	if last == 0 {
		delete(w.clients, owner.network)
		return
	}
	w.rank(owner)
}

// rank puts a client among those with as many connections, drop takes it from there.
func (w *Crowd) rank(owner *client) {
	n := len(owner.places)
	for len(w.with) <= n {
		w.with = append(w.with, nil)
	}
	owner.at = len(w.with[n])
	w.with[n] = append(w.with[n], owner)
	w.most = max(w.most, n)
}

func (w *Crowd) drop(owner *client) {
	n := len(owner.places)
	alike := w.with[n]
	last := len(alike) - 1
	alike[owner.at] = alike[last]
	alike[owner.at].at = owner.at
	alike[last] = nil
	w.with[n] = alike[:last]
}

// greediest are some of the clients that have most connections, of maxLooks connections at most, or one.
func (w *Crowd) greediest() []*client {
	for len(w.with[w.most]) == 0 { // as often as it has grown, by one each time
		w.most--
	}
	return look(w.with[w.most], max(1, maxLooks/w.most), &w.hand)
}

// longestSilent is the connection of the clients that got on longest ago, of maxLooks each.
func longestSilent(clients ...*client) (p *Place) {
	for _, owner := range clients {
		for _, other := range look(owner.places, maxLooks, &owner.hand) {
			if p == nil || other.heard.Load() < p.heard.Load() {
				p = other
			}
		}
	}
	return p
}

// look is where one looks among many: at other n each time, until all have been looked at. The newest takes the place in the list of who
// went, so to look at the same ones each time would be to look at the newest.
func look[T any](all []T, n int, hand *int) []T {
	n = min(n, len(all))
	from := min(*hand, len(all)-n)
	if *hand = from + n; *hand == len(all) {
		*hand = 0
	}
	return all[from : from+n]
}
