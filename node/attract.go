package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/event"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/anycast"
	"github.com/perigee-net/perigee/node/api"
)

// BGP is how a node has routers lead traffic to its anycast addresses.
type BGP struct {
	AS        uint32     // of the nodes; 0: the node announces nothing
	RouterID  netip.Addr // IPv4; the zero Addr: Advertise, which then must be IPv4
	NextHop6  netip.Addr // where routers that are told over IPv4 send IPv6; the zero Addr: IPv6 addresses are told to neighbours over IPv6 only
	Neighbors []anycast.Neighbor
	// Anycast are addresses that the node announces besides those of accelerators, for as long as it serves. Its doors must
	// be open on them, as those on all addresses are.
	Anycast []netip.Addr
	// NetworkZone is the node's, 1 or 2: of an accelerator that has addresses in both zones it announces those of its own alone, so that what befalls the nodes of
	// one zone leaves the other's (Global Accelerator). 0: it is in none, and announces all.
	NetworkZone int
	// HandOver says whether segments of flows that other nodes have are handed over to them: HandOverAuto, which "" is too, or HandOverNever.
	HandOver string
}

// Whether segments of flows that other nodes have are handed over to them. Where they are not, this node's kernel answers them with a reset.
const (
	HandOverAuto  = "auto"  // where the machine can
	HandOverNever = "never" // and it takes none of its own from others
)

// check says what is wrong with it.
func (b *BGP) check(advertise netip.Addr) error {
	if b.HandOver != "" && b.HandOver != HandOverAuto && b.HandOver != HandOverNever {
		return fmt.Errorf("--anycast-hand-over %q: want %s or %s", b.HandOver, HandOverAuto, HandOverNever)
	}
	if b.AS == 0 {
		if len(b.Neighbors) > 0 || len(b.Anycast) > 0 {
			return fmt.Errorf("--bgp-as is missing: --bgp-neighbor and --anycast want it")
		}
		return nil
	}
	if b.NetworkZone < 0 || b.NetworkZone > 2 {
		return fmt.Errorf("--bgp-network-zone %d: want 1 or 2, or 0 for none", b.NetworkZone)
	}
	if len(b.Neighbors) == 0 {
		return fmt.Errorf("--bgp-neighbor is missing: who is to be told")
	}
	if !b.RouterID.IsValid() {
		b.RouterID = advertise
	}
	return nil
}

// openSpeaker opens the sessions with the routers; they are told nothing before the node serves.
func (n *Node) openSpeaker() error {
	b := n.cfg.BGP
	if b.AS == 0 || !n.has(view.Edge) {
		return nil
	}
	var err error
	n.speaker, err = anycast.Open(anycast.Config{AS: b.AS, RouterID: b.RouterID, NextHop6: b.NextHop6, Neighbors: b.Neighbors, Dial: n.cfg.Dial, Log: n.cfg.Log})
	if err != nil {
		return fmt.Errorf("announce by BGP: %w", err)
	}
	n.counted = append(n.counted, n.speaker)
	n.onClose("BGP speaker", func(context.Context) error { return n.speaker.Close("") })
	n.openStrays()
	return nil
}

// withdraw ends the sessions with the routers, before any door closes.
func (n *Node) withdraw() {
	if n.speaker != nil {
		n.speaker.Close(n.cfg.Name + " stops")
	}
}

// wish is what this node can be led to at this moment.
func (n *Node) wish(v *view.View, tr *trace.Trace) anycast.Wish {
	me, lives := v.Member(n.cfg.Name)
	w := anycast.Wish{Addresses: slices.Clone(n.cfg.BGP.Anycast), Serving: n.running.Get().spec.Revision > 0, Trace: tr}
	if lives {
		w.Leaving, w.Drained = me.Leaving, me.Drained != "" && !slices.Contains(me.Needed, view.Edge)
	}
	shut, own := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	accelerators := n.running.Get().spec.Accelerators
	for _, l := range n.accelerator.Listeners() {
		a := l.Address.Addr()
		if !n.front.IsOpen(networkOf(l), l.Address) && !shut[a] {
			shut[a] = true
			tr.Add("%v is not announced: the door %s %v of accelerator %s is closed", a, networkOf(l), l.Address, l.Accelerator)
		}
		w.Addresses = append(w.Addresses, a)
		if is := accelerators[l.Accelerator]; is != nil && n.cfg.BGP.NetworkZone > 0 { // one may be shared, and in the other's both zones
			zone := is.NetworkZone(a)
			own[a] = own[a] || zone == 0 || zone == n.cfg.BGP.NetworkZone
		}
	}
	for a, is := range own {
		if !is {
			w.Elsewhere = append(w.Elsewhere, a)
		}
	}
	w.Addresses = slices.DeleteFunc(w.Addresses, func(a netip.Addr) bool { return shut[a] })
	return w
}

// attract tells the routers what this node wants to be led to now, and the timeline, if that is another than before.
func (n *Node) attract(v *view.View) {
	if n.speaker == nil {
		return
	}
	routes := anycast.Wanted(n.wish(v, nil))
	n.speaker.Announce(routes)
	n.setStrays(v)
	var texts []string
	for _, r := range routes {
		text := r.Prefix.String()
		if r.GracefulShutdown {
			text += " (others are preferred)"
		}
		texts = append(texts, text)
	}
	text := "announces " + strings.Join(texts, ", ")
	if len(texts) == 0 {
		text = "announces no anycast address"
	}
	if text != n.observed.announced {
		n.observed.announced = text
		n.events.Add(event.Route, n.cfg.Name, text)
	}
}

// anycastList is what is announced, why, and to whom, for the API.
func (n *Node) anycastList() api.AnycastList {
	list := api.AnycastList{Node: n.cfg.Name, Routes: []api.AnycastRoute{}, Sessions: []api.BGPSession{}, Lines: []string{}}
	if n.speaker == nil {
		list.Lines = append(list.Lines, "this node announces nothing: it was started without --bgp-as")
		return list
	}
	tr := new(trace.Trace)
	for _, r := range anycast.Wanted(n.wish(n.view.Get(), tr)) {
		list.Routes = append(list.Routes, api.AnycastRoute{Prefix: r.Prefix, GracefulShutdown: r.GracefulShutdown})
	}
	for _, l := range tr.Lines() {
		list.Lines = append(list.Lines, l.Text)
	}
	list.Lines = append(list.Lines, n.straysLine())
	for _, s := range n.speaker.Sessions().Get() {
		list.Sessions = append(list.Sessions, api.BGPSession{
			Neighbor: s.Neighbor.Address, AS: s.Neighbor.AS, State: string(s.State), Since: s.Since.Round(time.Millisecond), Sent: s.Sent, Unsent: s.Unsent, LastError: s.LastError,
		})
	}
	return list
}
