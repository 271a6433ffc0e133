package gossip

import (
	"bytes"
	"errors"
	"net/netip"
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

// NotifyMsg and MergeRemoteState take what releases before this one spread; nobody asks for it now.
func (d delegate) NotifyMsg([]byte)                  { d.g.counters.ignored.Add(1) }
func (d delegate) MergeRemoteState(b []byte, _ bool) { d.g.counters.ignored.Add(1) }

// GetBroadcasts: this node spreads nothing but what memberlist does.
func (d delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState is asked for at each exchange of full state, to which nothing is added.
func (d delegate) LocalState(bool) []byte {
	d.g.counters.exchanges.Add(1)
	return nil
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
	g.config.SuspicionMult = suspicionMult(len(g.live))
	g.membersChanged()
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
	g.membersChanged()
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
	g.config.SuspicionMult = suspicionMult(len(g.live))
	g.membersChanged()
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

// AckPayload is what is said to whoever probes this node.
func (d delegate) AckPayload() []byte {
	if d.g.ping.Payload == nil {
		return nil
	}
	b := d.g.ping.Payload()
	if len(b) > MaxPayload {
		d.g.counters.malformed.Add(1)
		return nil
	}
	return b
}

// NotifyPingComplete hears of an answered probe.
func (d delegate) NotifyPingComplete(n *memberlist.Node, rtt time.Duration, payload []byte) {
	g := d.g
	if len(payload) > MaxPayload {
		g.counters.malformed.Add(1)
		payload = nil
	}
	if g.ping.Done != nil && !g.refuse(n.Name) {
		g.ping.Done(n.Name, rtt, payload)
	}
}

func member(n *memberlist.Node) Member {
	addr, _ := netip.AddrFromSlice(n.Addr)
	return Member{Name: n.Name, Meta: bytes.Clone(n.Meta), Addr: netip.AddrPortFrom(addr.Unmap(), n.Port)}
}
