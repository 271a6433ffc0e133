package gossip

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
)

// delegate is what memberlist calls. It may hold locks of its own while it does.
type delegate struct{ g *Gossip }

var (
	errName    = errors.New("name or meta out of bounds")
	errFull    = errors.New("too many nodes")
	errRefused = errors.New("refused")
)

func (d delegate) NodeMeta(int) []byte { return d.g.meta }

// NotifyMsg takes one value that another node spreads.
func (d delegate) NotifyMsg(b []byte) {
	g := d.g
	r, err := decodeMessage(b)
	if err != nil {
		g.counters.malformed.Add(1)
		return
	}
	g.counters.messages.Add(1)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || r.node == g.name {
		return
	}
	if g.refuse(r.node) {
		g.counters.refused.Add(1)
		return
	}
	switch g.table.take(r, time.Now()) {
	case fresh:
		g.spread(r)
		g.changed()
	case full:
		g.counters.dropped.Add(1)
	}
}

func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.g.queue.take(overhead, limit, int(d.g.nodes.Load()))
}

// LocalState is all that this node knows of the live nodes' values.
func (d delegate) LocalState(bool) []byte {
	g := d.g
	g.mu.Lock()
	defer g.mu.Unlock()
	g.table.sweep(g.isLive, time.Now())
	return g.table.encode(g.isLive)
}

// MergeRemoteState takes what another node's LocalState gave.
func (d delegate) MergeRemoteState(b []byte, _ bool) {
	g := d.g
	state, err := decodeState(b)
	if err != nil {
		g.counters.malformed.Add(1)
		return
	}
	g.counters.exchanges.Add(1)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	if len(state) > 0 && g.refuse(state[0].node) { // who sent it
		g.counters.refused.Add(1)
		return
	}
	state = slices.DeleteFunc(state, func(n nodeState) bool { return g.refuse(n.node) })
	news, dropped := g.table.merge(state, time.Now())
	g.counters.dropped.Add(uint64(dropped))
	if len(news) == 0 {
		return
	}
	g.changed()
	if len(news) <= maxRespread {
		for _, r := range news {
			g.spread(r)
		}
	}
}

func (d delegate) NotifyJoin(n *memberlist.Node) {
	g := d.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	m := member(n)
	if !g.refuse(m.Name) {
		g.log.Info("member joined", "name", m.Name, "addr", m.Addr)
	}
	g.live[m.Name] = m
	g.publishMembers()
	g.changed()
}

func (d delegate) NotifyUpdate(n *memberlist.Node) {
	g := d.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	m := member(n)
	g.live[m.Name] = m
	g.publishMembers()
}

func (d delegate) NotifyLeave(n *memberlist.Node) {
	g := d.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	if !g.refuse(n.Name) {
		g.log.Info("member gone", "name", n.Name)
	}
	delete(g.live, n.Name)
	g.table.gone(n.Name, time.Now())
	g.publishMembers()
	g.changed()
}

// NotifyAlive refuses nodes that are refused by name or beyond the bounds; memberlist then neither keeps nor
// spreads that they live.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	g := d.g
	if n.Name == "" || len(n.Name) > MaxName || len(n.Meta) > MaxMeta {
		g.counters.malformed.Add(1)
		return errName
	}
	if g.refuse(n.Name) {
		g.counters.refused.Add(1)
		return errRefused
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, known := g.live[n.Name]; !known && len(g.live) >= maxNodes {
		g.counters.dropped.Add(1)
		return errFull
	}
	return nil
}

// NotifyConflict hears of a second node of a name. The first keeps it.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	g := d.g
	g.counters.conflicts.Add(1)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conflicts[existing.Name] || len(g.conflicts) >= maxNodes {
		return
	}
	g.conflicts[existing.Name] = true
	g.log.Error("two nodes have one name: the second is not heard until the first is gone",
		"name", existing.Name, "first", member(existing).Addr, "second", member(other).Addr)
}

// isLive says whether a node is a member. g.mu is held.
func (g *Gossip) isLive(node string) bool {
	_, is := g.live[node]
	return is && !g.refuse(node)
}

func member(n *memberlist.Node) Member {
	addr, _ := netip.AddrFromSlice(n.Addr)
	return Member{Name: n.Name, Meta: bytes.Clone(n.Meta), Addr: netip.AddrPortFrom(addr.Unmap(), n.Port)}
}
