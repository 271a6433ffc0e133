package node

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/http1"
	"github.com/perigee-net/perigee/node/front"
)

// doorShare is the share of the files that this process may have open (RLIMIT_NOFILE, which Go raises to its hard limit) that doors which the spec asks for may take: one in so many.
// What is left is for connections, and for the node's own ports. What is beyond stays closed: accelerators whole, the one with the most doors first, so that
// the same ones are open after each start.
const doorShare = 2

// wantedDoor is one that the spec asks for.
type wantedDoor struct {
	front.Door
	sort   doorSort
	behind netip.AddrPort // of a node's own, the accelerator's that it stands for
}

// owner is who wants doors: a load balancer or an accelerator.
type owner struct {
	name  string // "Accelerator x"
	doors []wantedDoor
}

// closedDoors are those that the spec asks for and that are not open, and why.
type closedDoors struct {
	why    map[doorPlace]string
	owners []closedOwner // those that have some, in the order in which they were to be opened
	places map[string]int
	beyond uint64 // how many the node does not open for want of open files
}

type closedOwner struct {
	name   string
	reason string // of the first
	doors  int
}

func (o closedOwner) text() string {
	if o.doors > 1 {
		return fmt.Sprintf("%s (and %d more of its doors)", o.reason, o.doors-1)
	}
	return o.reason
}

func (c *closedDoors) add(who string, at doorPlace, reason string) {
	if c.why[at] == "" {
		c.why[at] = reason
	}
	if i, known := c.places[who]; known {
		c.owners[i].doors++
	} else {
		c.places[who] = len(c.owners)
		c.owners = append(c.owners, closedOwner{who, reason, 1})
	}
}

// String tells each owner once, and of those for which there is no room how many they are.
func (c *closedDoors) String() string {
	var b strings.Builder
	for i, o := range c.owners {
		text := o.name + ": " + o.text()
		rest := ""
		if left := len(c.owners) - i; left > 1 {
			rest = fmt.Sprintf("; and %d more", left-1)
		}
		if i > 0 {
			text = "; " + text
		}
		if b.Len()+len(text)+len(rest) > maxRefused {
			if i == 0 {
				b.WriteString(strings.ToValidUTF8(text[:maxRefused-len(rest)], ""))
				b.WriteString(rest)
			} else {
				fmt.Fprintf(&b, "; and %d more", len(c.owners)-i)
			}
			break
		}
		b.WriteString(text)
	}
	return b.String()
}

// closedOf says which doors of a load balancer or accelerator are closed here, and why; empty: none is.
func (n *Node) closedOf(who string) string {
	closed := n.shut.Load()
	if closed == nil {
		return ""
	}
	i, some := closed.places[who]
	if !some {
		return ""
	}
	return closed.owners[i].text()
}

// doorCounts are those of doors that the spec asks for.
type doorCounts struct{ closed, beyond atomic.Uint64 }

// Counters are, now:
//
//	node_doors_closed   doors that the spec asks for and that are not open, whyever
//	node_doors_beyond   those of them that this node has no open files for
func (c *doorCounts) Counters() map[string]uint64 {
	return map[string]uint64{"node_doors_closed": c.closed.Load(), "node_doors_beyond": c.beyond.Load()}
}

// setDoors opens what the spec wants open on this node. A door that cannot be opened is said aloud
// and tried again later; the others serve.
func (n *Node) setDoors(s *spec.Spec) {
	returning := n.returningBy()
	doors := slices.Clone(n.ownDoors)
	closed := &closedDoors{why: map[doorPlace]string{}, places: map[string]int{}}
	owners := map[doorPlace]string{}
	for _, d := range doors {
		owners[doorPlace{d.Network, d.Address}] = ""
		if d.HTTP3 {
			owners[doorPlace{"udp", d.Address}] = ""
		}
	}
	most := cmp.Or(n.cfg.maxDoors, maxDoors())
	room := most
	for _, who := range n.wantedDoors(s) {
		beyond := len(who.doors) > room
		for _, d := range who.doors {
			at := doorPlace{d.Network, d.Address}
			switch _, taken := owners[at]; {
			case taken:
				closed.add(who.name, at, fmt.Sprintf("%s %s is another door of this node", d.Network, d.Address))
			case beyond:
				closed.beyond++
				closed.add(who.name, at, fmt.Sprintf("it wants %d doors: this node has open files for %d, of which %d are taken", len(who.doors), most, most-room))
			default:
				owners[at] = who.name
				doors = append(doors, d.Door)
				if d.Address.Addr() == n.doorHost {
					port := doorPort{d.Network, d.Address.Port()}
					returning.own[port] = d.sort
					if d.behind.IsValid() {
						returning.behind[port] = d.behind
					}
				}
			}
		}
		if !beyond {
			room -= len(who.doors)
		}
	}
	n.returning.Store(returning)
	for _, err := range faultsOf(n.front.Set(doors)) {
		if fault, is := errors.AsType[*front.Fault](err); is {
			at := doorPlace{fault.Network, fault.Address}
			closed.add(cmp.Or(owners[at], "of its own"), at, fault.Error())
		} else if !errors.Is(err, net.ErrClosed) { // else this node ends
			closed.add("doors", doorPlace{}, err.Error())
		}
	}
	n.shut.Store(closed)
	n.doorCounts.closed.Store(uint64(len(closed.why)))
	n.doorCounts.beyond.Store(closed.beyond)
	text := closed.String()
	if text != "" && text != n.closed {
		n.cfg.Log.Error("doors stay closed", "why", text)
	}
	n.closed = text
	n.tellDoorsAt(returning)
	n.publish(doorsKey, []byte(text))
}

// faultsOf are the errors that were joined into one.
func faultsOf(err error) []error {
	if joined, is := err.(interface{ Unwrap() []error }); is {
		return joined.Unwrap()
	} else if err != nil {
		return []error{err}
	}
	return nil
}

// wantedDoors are those of load balancers, and then those of accelerators, the ones with the fewest doors first.
func (n *Node) wantedDoors(s *spec.Spec) (all []owner) {
	of := func(name string) *owner {
		if len(all) == 0 || all[len(all)-1].name != name {
			all = append(all, owner{name: name})
		}
		return &all[len(all)-1]
	}
	guarded := guards{}
	if n.has(view.Origin) {
		for _, l := range n.origin.Listeners() {
			opens := front.Door{
				Network: "tcp", Address: netip.AddrPortFrom(n.doorHost, l.Port), Allowed: n.guards.allowed(s, door{l.LoadBalancer, l.Port}, guarded),
			}
			if l.Protocol == spec.HTTP {
				opens.Handler, opens.Relay = n.origin.Handler(l.LoadBalancer, l.Port), n.origin.Relay(l.LoadBalancer, l.Port)
				opens.Desync = http1.MitigationOf(s.LoadBalancers[l.LoadBalancer].DesyncMitigationMode)
			} else {
				opens.Flow = func(c net.Conn, ended func()) { n.origin.StartConn(l.LoadBalancer, l.Port, c, ended) }
				opens.Soon = n.balancedSoon(l)
			}
			who := of("LoadBalancer " + l.LoadBalancer)
			who.doors = append(who.doors, wantedDoor{Door: opens, sort: sortOf(l)})
		}
	}
	n.guards = guarded
	if !n.has(view.Edge) {
		return all
	}
	balancers := len(all)
	places := map[string]int{}
	type ownDoor struct {
		accelerator string
		doorPort
	}
	own := map[ownDoor]bool{} // one stands for all of an accelerator's addresses
	for _, l := range n.accelerator.Listeners() {
		opens := front.Door{Network: networkOf(l), Address: l.Address, Anycast: true}
		if l.Protocol == spec.UDP {
			opens.Packets = func(c net.PacketConn) error { return n.accelerator.ServePackets(l, c) }
		} else {
			opens.Flow, opens.Soon = n.accelerator.ConnHandler(l), n.soon(l)
			opens.TurnedAway = func(from netip.AddrPort) { n.accelerator.TurnedAway(l, from) }
		}
		i, known := places[l.Accelerator]
		if !known {
			i = len(all)
			places[l.Accelerator] = i
			all = append(all, owner{name: "Accelerator " + l.Accelerator})
		}
		who := &all[i]
		who.doors = append(who.doors, wantedDoor{Door: opens, sort: accelerates})
		if of := (ownDoor{l.Accelerator, doorPort{networkOf(l), l.Address.Port()}}); n.cfg.OwnDoors && !own[of] {
			own[of] = true
			opens.Address, opens.Anycast = netip.AddrPortFrom(n.doorHost, l.Address.Port()), false
			who.doors = append(who.doors, wantedDoor{Door: opens, sort: accelerates, behind: l.Address})
		}
	}
	slices.SortStableFunc(all[balancers:], func(a, b owner) int {
		return cmp.Or(cmp.Compare(len(a.doors), len(b.doors)), cmp.Compare(a.name, b.name))
	})
	return all
}
