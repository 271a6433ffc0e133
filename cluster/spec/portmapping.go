package spec

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
)

// Types of accelerators.
const (
	StandardAccelerator      = "STANDARD"
	CustomRoutingAccelerator = "CUSTOM_ROUTING"
)

// PortMapping is what a port of a custom routing accelerator's listener leads to (Global Accelerator, ListCustomRoutingPortMappings).
type PortMapping struct {
	Protocol     string
	ListenerPort uint16
	Region       string
	Subnet       netip.Prefix // the endpoint that the destination is of
	Destination  netip.AddrPort
	// Allowed says whether traffic may go there; it may nowhere unless the endpoint says so.
	Allowed bool
	// ClientIPPreservation says that the destination sees the client's address.
	ClientIPPreservation bool
}

// block is the ports of a listener that lead to the destinations of one endpoint: those from the first on, counted in the listener's order.
type block struct {
	group, endpoint int // where in the listener
	first, size     int
}

// tooMany is the size of a block that no listener has room for.
const tooMany = 1 << 30

// blocks are the mapping of a listener. An endpoint's block begins at the port that it names, or right behind that of the endpoint before it; so what comes
// behind an endpoint moves none of its mappings, nor do ports that are added behind the listener's others. Fault is what is wrong with a block, which
// then may overlap others or go beyond the ports; nobody is told: nil.
func (l *AcceleratorListener) blocks(fault func(b block, what string)) []block {
	var all []block
	next, ports := 0, l.size()
	for i := range l.EndpointGroups {
		g := &l.EndpointGroups[i]
		destinations := g.destinations()
		for j := range g.Endpoints {
			e := &g.Endpoints[j]
			if !e.Subnet.IsValid() {
				continue
			}
			b := block{i, j, next, 0}
			if e.ListenerPort != 0 {
				b.first = l.indexOf(e.ListenerPort)
			}
			if bits := e.Subnet.Addr().BitLen() - e.Subnet.Bits(); bits <= 16 && int64(destinations)<<bits < tooMany {
				b.size = destinations << bits
			} else {
				b.size = tooMany
			}
			what := ""
			switch {
			case b.first < 0:
				what = fmt.Sprintf("listenerPort %d is no port of the listener", e.ListenerPort)
			case b.size == 0:
				what = "the endpoint group has no destinations"
			case b.size == tooMany:
				what = fmt.Sprintf("%s has more addresses than there are ports", e.Subnet)
			case b.first+b.size > ports:
				what = fmt.Sprintf("%s needs %d ports, and the listener has %d from there on", e.Subnet, b.size, ports-b.first)
			default:
				if o := slices.IndexFunc(all, func(o block) bool { return b.first < o.first+o.size && o.first < b.first+b.size }); o >= 0 {
					what = fmt.Sprintf("port %d leads to %s already", l.portAt(max(b.first, all[o].first)), l.EndpointGroups[all[o].group].Endpoints[all[o].endpoint].Subnet)
				}
			}
			if what != "" {
				if fault != nil {
					fault(b, what)
				}
				continue
			}
			next = b.first + b.size
			all = append(all, b)
		}
	}
	return all
}

// size is how many ports the listener has.
func (l *AcceleratorListener) size() (n int) {
	for _, r := range l.PortRanges {
		n += r.size()
	}
	return n
}

func (r PortRange) size() int { return max(0, int(r.last())-int(r.FromPort)+1) }

// last is the last port of the range, whose toPort may be left out.
func (r PortRange) last() uint16 { return max(r.FromPort, r.ToPort) }

func (r PortRange) has(port int) bool { return int(r.FromPort) <= port && port <= int(r.last()) }

// indexOf is where a port is in the listener's order, that of its ranges as they are written; −1: nowhere.
func (l *AcceleratorListener) indexOf(port uint16) int {
	before := 0
	for _, r := range l.PortRanges {
		if r.has(int(port)) {
			return before + int(port-r.FromPort)
		}
		before += r.size()
	}
	return -1
}

// portAt is the port at an index, which there must be.
func (l *AcceleratorListener) portAt(index int) uint16 {
	for _, r := range l.PortRanges {
		if index < r.size() {
			return r.FromPort + uint16(index)
		}
		index -= r.size()
	}
	return 0
}

// destinations is how many ports each address of the group's subnets is reached at.
func (g *EndpointGroup) destinations() (n int) {
	for _, r := range g.DestinationConfigurations {
		n += r.size()
	}
	return n
}

// mapping is that of the i-th port of a block: all ports of a subnet's first address, then those of the next.
func (l *AcceleratorListener) mapping(b block, i int) PortMapping {
	g := &l.EndpointGroups[b.group]
	e := &g.Endpoints[b.endpoint]
	n := g.destinations()
	at := netip.AddrPortFrom(advance(e.Subnet.Addr(), i/n), g.destinationAt(i%n))
	return PortMapping{l.Protocol, l.portAt(b.first + i), g.Region, e.Subnet, at, e.allows(at), e.ClientIPPreservation}
}

func (g *EndpointGroup) destinationAt(index int) uint16 {
	l := AcceleratorListener{PortRanges: g.DestinationConfigurations}
	return l.portAt(index)
}

// advance is the address so many behind another, 65,535 at most.
func advance(a netip.Addr, by int) netip.Addr {
	raw := a.As16()
	for i := 15; i >= 0 && by > 0; i-- {
		by += int(raw[i])
		raw[i] = byte(by)
		by >>= 8
	}
	if a.Is4() {
		return netip.AddrFrom16(raw).Unmap()
	}
	return netip.AddrFrom16(raw)
}

// allows says whether traffic may go to a destination of the subnet.
func (e *Endpoint) allows(at netip.AddrPort) bool {
	return e.AllowAllTraffic || slices.ContainsFunc(e.AllowedTraffic, func(t CustomRoutingTraffic) bool {
		return slices.Contains(t.DestinationAddresses, at.Addr()) && slices.Contains(t.DestinationPorts, int(at.Port()))
	})
}

// PortMappings are all of a listener, in the order of its ports.
func (l *AcceleratorListener) PortMappings() iter.Seq[PortMapping] {
	return func(yield func(PortMapping) bool) {
		all := l.blocks(nil)
		slices.SortFunc(all, func(a, b block) int { return a.first - b.first })
		for _, b := range all {
			for i := range b.size {
				if !yield(l.mapping(b, i)) {
					return
				}
			}
		}
	}
}

// OpenPorts are those that lead where traffic may go, in their order, and the listener's first: so something is open at its addresses whatever may.
// Nobody listens at others, which refuse all traffic as they would if somebody did.
func (l *AcceleratorListener) OpenPorts() (ports []uint16) {
	all := 0
	for _, r := range l.PortRanges {
		all += r.size()
	}
	if all > 0 {
		ports = append(ports, l.portAt(0))
	}
	for _, b := range l.blocks(nil) {
		if b.first < 0 || b.first+b.size > all { // that is a fault of the spec
			continue
		}
		g := &l.EndpointGroups[b.group]
		e, n := &g.Endpoints[b.endpoint], g.destinations()
		allowed := e.allowed()
		for i := range b.size {
			if e.AllowAllTraffic || len(allowed) > 0 && allowed[netip.AddrPortFrom(advance(e.Subnet.Addr(), i/n), g.destinationAt(i%n))] {
				ports = append(ports, l.portAt(b.first+i))
			}
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// allowed are the destinations that allowedTraffic names.
func (e *Endpoint) allowed() map[netip.AddrPort]bool {
	if e.AllowAllTraffic || len(e.AllowedTraffic) == 0 {
		return nil
	}
	all := map[netip.AddrPort]bool{}
	for _, t := range e.AllowedTraffic {
		for _, a := range t.DestinationAddresses {
			for _, port := range t.DestinationPorts {
				all[netip.AddrPortFrom(a, uint16(port))] = true
			}
		}
	}
	return all
}

// PortMapping is that of a port; not ok: it leads nowhere.
func (l *AcceleratorListener) PortMapping(port uint16) (m PortMapping, ok bool) {
	i := l.indexOf(port)
	if i < 0 {
		return PortMapping{}, false
	}
	for _, b := range l.blocks(nil) {
		if b.first <= i && i < b.first+b.size {
			return l.mapping(b, i-b.first), true
		}
	}
	return PortMapping{}, false
}

// MayReach says whether a port of the listener leads to a destination in a region, and traffic may go there.
func (l *AcceleratorListener) MayReach(region string, at netip.AddrPort) bool {
	return slices.ContainsFunc(l.blocks(nil), func(b block) bool {
		g := &l.EndpointGroups[b.group]
		e := &g.Endpoints[b.endpoint]
		return g.Region == region && e.Subnet.Contains(at.Addr()) && e.allows(at) &&
			slices.ContainsFunc(g.DestinationConfigurations, func(r PortRange) bool { return r.has(int(at.Port())) })
	})
}

// customRouting judges what standard and custom routing accelerators have each for themselves.
func (c check) customRouting(field string, a *Accelerator, l *AcceleratorListener) {
	custom := a.Type == CustomRoutingAccelerator
	for i := range l.EndpointGroups {
		g, item := &l.EndpointGroups[i], at(field+".endpointGroups", i)
		if !custom {
			if len(g.DestinationConfigurations) > 0 {
				c.fault(item+".destinationConfigurations", "is for accelerators of type %s", CustomRoutingAccelerator)
			}
		} else {
			c.destinations(item, l, g)
		}
		for j, e := range g.Endpoints {
			one := at(item+".endpoints", j)
			switch {
			case custom && !e.Subnet.IsValid() && (e.TargetGroup != "" || e.LoadBalancer != "" || e.Address.IsValid()):
				c.fault(one, "must be a subnet: the accelerator is of type %s", CustomRoutingAccelerator)
			case !custom && e.Subnet.IsValid():
				c.fault(one+".subnet", "is for accelerators of type %s", CustomRoutingAccelerator)
			case !e.Subnet.IsValid() && (e.ListenerPort != 0 || e.AllowAllTraffic || len(e.AllowedTraffic) > 0):
				c.fault(one, "listenerPort, allowAllTraffic and allowedTraffic are for subnets")
			}
			if e.AllowAllTraffic && len(e.AllowedTraffic) > 0 {
				c.fault(one+".allowedTraffic", "has no meaning beside allowAllTraffic")
			}
			for k, t := range e.AllowedTraffic {
				for _, a := range t.DestinationAddresses {
					if e.Subnet.IsValid() && a.IsValid() && !e.Subnet.Contains(a) {
						c.fault(at(one+".allowedTraffic", k)+".destinationAddresses", "%s is not in %s", a, e.Subnet)
					}
				}
				for _, p := range t.DestinationPorts {
					if !slices.ContainsFunc(g.DestinationConfigurations, func(r PortRange) bool { return r.has(p) }) {
						c.fault(at(one+".allowedTraffic", k)+".destinationPorts", "%d is no port of destinationConfigurations", p)
					}
				}
			}
		}
	}
	if custom {
		if l.FailoverScope != "" && l.FailoverScope != FailoverClosest {
			c.late(field+".failoverScope", l.FailoverScope, "has no meaning in accelerators of type %s: a port leads to one destination", CustomRoutingAccelerator)
		}
		if l.ClientAffinity != "" && l.ClientAffinity != "NONE" {
			c.fault(field+".clientAffinity", "has no meaning in accelerators of type %s: a port leads to one destination", CustomRoutingAccelerator)
		}
		l.blocks(func(b block, what string) {
			c.fault(at(at(field+".endpointGroups", b.group)+".endpoints", b.endpoint), "%s", what)
		})
	}
}

// destinations judges the destination ports of a group, of which each subnet has all, and what such a group has not.
func (c check) destinations(item string, l *AcceleratorListener, g *EndpointGroup) {
	if len(g.DestinationConfigurations) == 0 {
		c.fault(item+".destinationConfigurations", "is required in accelerators of type %s", CustomRoutingAccelerator)
	}
	for i, r := range g.DestinationConfigurations {
		one := at(item+".destinationConfigurations", i)
		if r.ToPort < r.FromPort {
			c.fault(one, "toPort %d is below fromPort %d", r.ToPort, r.FromPort)
		}
		for _, o := range g.DestinationConfigurations[:i] {
			if r.FromPort <= o.ToPort && o.FromPort <= r.ToPort {
				c.fault(one, "has ports that another range has already")
				break
			}
		}
	}
	for _, f := range []struct {
		field string
		is    bool
		why   string
	}{
		{"portOverrides", len(g.PortOverrides) > 0, ""},
		{"trafficDial", g.TrafficDial != nil && *g.TrafficDial != 100, ": a port leads to one destination"},
		{"unhealthyConnectionTermination", g.UnhealthyConnectionTermination, ": subnets are not checked"},
		{"healthCheckProtocol", g.HealthCheckProtocol != "" && g.HealthCheckProtocol != TCP, ": subnets are not checked"},
		{"healthCheckPath", g.HealthCheckPath != "", ": subnets are not checked"},
	} {
		if f.is {
			c.fault(item+"."+f.field, "has no meaning in accelerators of type %s%s", CustomRoutingAccelerator, f.why)
		}
	}
	// Earlier releases took these. Of one whose default stands nobody can say who wrote it.
	for _, f := range []struct {
		field string
		is    bool
		value any
	}{
		{"healthCheckPort", g.HealthCheckPort != 0 && !(len(l.PortRanges) > 0 && g.HealthCheckPort == l.PortRanges[0].FromPort), g.HealthCheckPort},
		{"healthCheckInterval", g.HealthCheckInterval != nil && *g.HealthCheckInterval != *seconds(30), g.HealthCheckInterval},
		{"thresholdCount", g.ThresholdCount != 0 && g.ThresholdCount != 3, g.ThresholdCount},
	} {
		if f.is {
			c.late(item+"."+f.field, f.value, "has no meaning in accelerators of type %s: subnets are not checked", CustomRoutingAccelerator)
		}
	}
	for i, e := range g.Endpoints {
		if e.Subnet.IsValid() && e.Weight != nil && *e.Weight != 128 {
			c.fault(at(item+".endpoints", i)+".weight", "has no meaning in accelerators of type %s: a port leads to one destination", CustomRoutingAccelerator)
		}
		for j, o := range g.Endpoints[:i] {
			if e.Subnet.IsValid() && o.Subnet.IsValid() && e.Subnet.Overlaps(o.Subnet) {
				c.fault(at(item+".endpoints", i)+".subnet", "%s overlaps that of endpoints[%d]", e.Subnet, j)
			}
		}
	}
}
