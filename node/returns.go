package node

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin"
)

// What is led to a door of this network comes back as a new flow, and so on without end. That no target is an accelerator's address is seen to when a change is applied; that
// none is a door of a node's own can be seen by who dials alone.

// doorSort is what doors that the spec asks for take.
type doorSort uint8

const (
	balancesFlows doorSort = 1 << iota
	balancesRequests
	accelerates // one of a node's own (Config.OwnDoors)
)

// sortOf is that of a load balancer's door.
func sortOf(l origin.Listener) doorSort {
	if l.Protocol == spec.HTTP {
		return balancesRequests
	}
	return balancesFlows
}

// returning is where what is dialled would come back, as far as the spec says.
type returning struct {
	accelerators map[doorPlace]struct{}
	ports        map[doorPort]doorSort       // on the address at which each node opens them
	own          map[doorPort]doorSort       // those that this node opens there, if it can
	behind       map[doorPort]netip.AddrPort // of those that are an accelerator's, whose they are
}

type doorPlace struct {
	network string
	address netip.AddrPort
}

type doorPort struct {
	network string
	port    uint16
}

func (p doorPort) String() string { return p.network + "/" + strconv.Itoa(int(p.port)) }

// returningBy makes that of what the planes have; own is to be filled in.
func (n *Node) returningBy() *returning {
	r := &returning{map[doorPlace]struct{}{}, map[doorPort]doorSort{}, map[doorPort]doorSort{}, map[doorPort]netip.AddrPort{}}
	for _, l := range n.accelerator.Listeners() {
		r.accelerators[doorPlace{networkOf(l), l.Address}] = struct{}{}
		r.ports[doorPort{networkOf(l), l.Address.Port()}] |= accelerates
	}
	for _, l := range n.origin.Listeners() {
		r.ports[doorPort{"tcp", l.Port}] |= sortOf(l)
	}
	return r
}

// returns says whether what is dialled for a protocol, spec.HTTP for requests, would come back as a flow or request of this network: to an accelerator's address, wherever that
// leads; to a door of a node's own; or to a load balancer's of this region. Requests may come back to no load balancer, for nothing in them says where they have been, but flows may
// end at one of type application.
func (n *Node) returns(protocol string, at netip.AddrPort) bool {
	r := n.returning.Load()
	if r == nil {
		return false
	}
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	network := "tcp"
	if protocol == spec.UDP {
		network = "udp"
	}
	if _, is := r.accelerators[doorPlace{network, at}]; is {
		return true
	}
	wanted := accelerates | balancesFlows
	if protocol == spec.HTTP {
		wanted |= balancesRequests
	}
	port := doorPort{network, at.Port()}
	sort := r.ports[port] & wanted
	if sort == 0 {
		return false
	}
	if own := r.own[port]; own != 0 && n.isDoorHost(at.Addr()) {
		return own&wanted != 0 && n.front.IsOpen(network, netip.AddrPortFrom(n.doorHost, at.Port()))
	}
	return sort&n.others.at(n, at.Addr(), port) != 0
}

// isDoorHost says whether an address is the one at which this node opens doors that the spec asks for, or one of those.
func (n *Node) isDoorHost(a netip.Addr) bool {
	if n.doorHost.IsValid() && !n.doorHost.IsUnspecified() {
		return a == n.doorHost
	}
	return a == n.cfg.Advertise || a.IsLoopback() || slices.Contains(n.cfg.Public, a) || n.cfg.dialFlow != nil && n.locals.has(a)
}

// localsTime is how long the machine's addresses are taken to be the same.
const localsTime = 10 * time.Second

// locals are the addresses that this machine has.
type locals struct {
	mu    sync.Mutex
	asked time.Time
	all   []netip.Addr
}

func (l *locals) has(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asked.IsZero() || time.Since(l.asked) > localsTime {
		l.asked = time.Now()
		found, err := net.InterfaceAddrs()
		if err == nil { // else those that were found last
			l.all = l.all[:0]
			for _, one := range found {
				if p, err := netip.ParsePrefix(one.String()); err == nil {
					l.all = append(l.all, p.Addr().Unmap())
				}
			}
		}
	}
	return slices.Contains(l.all, a)
}

const (
	// doorsAtKey is what a node says of where it opens doors that the spec asks for: at an address, or "*", all of its own; whether it has own ones of
	// accelerators; and which of them are closed, or another's.
	doorsAtKey = "doorsAt"
	// maxShut bounds how many of those are named; of more none is known to be open.
	maxShut = 64
	unsaid  = "?"
)

func (n *Node) tellDoorsAt(r *returning) {
	text := "*"
	if n.doorHost.IsValid() && !n.doorHost.IsUnspecified() {
		text = n.doorHost.String()
	}
	var opens doorSort
	if n.cfg.OwnDoors && n.has(view.Edge) {
		text += " own"
		opens |= accelerates
	}
	if n.has(view.Origin) {
		opens |= balancesFlows | balancesRequests
	}
	var shut []string
	for port, sort := range r.ports {
		if sort&opens == 0 || r.own[port] != 0 && n.front.IsOpen(port.network, netip.AddrPortFrom(n.doorHost, port.port)) {
			continue
		}
		if shut = append(shut, port.String()); len(shut) > maxShut {
			shut = []string{unsaid}
			break
		}
	}
	slices.Sort(shut)
	if len(shut) > 0 {
		text += " " + strings.Join(shut, " ")
	}
	n.publish(doorsAtKey, []byte(text))
}

// othersTime is how long what others say of their doors is taken to be the same.
const othersTime = 100 * time.Millisecond

// others are the addresses at which other nodes have doors, and of which sort.
type others struct {
	mu    sync.Mutex
	asked time.Time
	all   map[netip.Addr]other
}

type other struct {
	doors doorSort
	shut  []string
}

// at is which doors of other nodes are at an address and port.
func (o *others) at(n *Node, a netip.Addr, port doorPort) doorSort {
	o.mu.Lock()
	defer o.mu.Unlock()
	v := n.view.Get()
	if v != nil && (o.asked.IsZero() || time.Since(o.asked) > othersTime) {
		o.asked = time.Now()
		o.all = map[netip.Addr]other{}
		said := n.sayings()
		for _, m := range v.Members {
			words := strings.Fields(string(said[m.Name][doorsAtKey]))
			if m.Name == n.cfg.Name || len(words) == 0 {
				continue
			}
			var sort doorSort
			if m.Has(view.Origin) && m.Region == n.cfg.Region {
				sort |= balancesFlows | balancesRequests
			}
			if m.Has(view.Edge) && slices.Contains(words[1:], "own") {
				sort |= accelerates
			}
			if words[0] == "*" {
				o.all[m.Control.Addr().Unmap()] = other{sort, words[1:]}
				for _, public := range m.Public {
					o.all[public.Unmap()] = other{sort, words[1:]}
				}
			} else if host, err := netip.ParseAddr(words[0]); err == nil {
				o.all[host.Unmap()] = other{sort, words[1:]}
			}
		}
	}
	one := o.all[a]
	if one.doors == 0 || slices.Contains(one.shut, unsaid) || slices.Contains(one.shut, port.String()) {
		return 0
	}
	return one.doors
}
