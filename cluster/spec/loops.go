package spec

import (
	"maps"
	"net/netip"
	"slices"
)

// A flow that is led to an address and port of an accelerator comes back as a new one, and so on until nodes have no file descriptor left: not even a
// client is needed, for a check by TCP is a flow. So no endpoint's address and no target may be one, of its own accelerator or of another. (Global Accelerator's
// endpoints cannot be accelerators either.)

// lead is where a field leads flows: to some ports of an address, or of a subnet's addresses.
type lead struct {
	document int
	field    string
	to       netip.Prefix
	protocol string
	ports    []PortRange
	takes    func(at netip.AddrPort) bool // whether it leads to one of these; nil: to all
}

// meets is the first port of those of an address at which a lead ends and did not stand; not ok: it ends at none. Nothing stood where stood is nil.
func (l *lead) meets(address netip.Addr, protocol string, ports []PortRange, stood func(at netip.AddrPort) bool) (at netip.AddrPort, ok bool) {
	if l.protocol != protocol || !l.to.Contains(address) {
		return at, false
	}
	for _, mine := range l.ports {
		for _, its := range ports {
			first, last := max(mine.FromPort, its.FromPort), min(mine.last(), its.last())
			for port := int(first); port <= int(last); port++ {
				at = netip.AddrPortFrom(address, uint16(port))
				if (l.takes == nil || l.takes(at)) && (stood == nil || !stood(at)) {
					return at, true
				}
			}
		}
	}
	return at, false
}

// leads calls yield with each target of a target group that is given.
func (g *TargetGroup) leads(document int, yield func(lead)) {
	protocol := TCP
	if g.Protocol == UDP {
		protocol = UDP
	}
	for i, t := range g.Targets {
		if t.Address.IsValid() && t.Port != 0 {
			to := t.Address.Unmap()
			yield(lead{document: document, field: at("targets", i), to: netip.PrefixFrom(to, to.BitLen()), protocol: protocol, ports: []PortRange{{FromPort: t.Port}}})
		}
	}
}

// leads calls yield with each endpoint of an accelerator that is given by its address or a subnet.
func (a *Accelerator) leads(document int, yield func(lead)) {
	for i := range a.Listeners {
		l := &a.Listeners[i]
		for j := range l.EndpointGroups {
			g := &l.EndpointGroups[j]
			for k := range g.Endpoints {
				e := &g.Endpoints[k]
				one := lead{document: document, protocol: l.Protocol}
				switch {
				case e.Address.IsValid():
					to := e.Address.Unmap()
					one.field, one.to = "address", netip.PrefixFrom(to, to.BitLen())
					one.ports = slices.Clone(l.PortRanges)
					for _, o := range g.PortOverrides {
						one.ports = append(one.ports, PortRange{FromPort: o.EndpointPort})
					}
					one.takes = func(at netip.AddrPort) bool { return g.Takes(l, at.Port()) }
				case e.Subnet.IsValid():
					one.field, one.to, one.ports, one.takes = "subnet", e.Subnet, g.DestinationConfigurations, e.allows
				default:
					continue
				}
				one.field = at(at(at("listeners", i)+".endpointGroups", j)+".endpoints", k) + "." + one.field
				yield(one)
			}
		}
	}
}

// ports are those of all listeners of a protocol.
func (a *Accelerator) ports(protocol string) (all []PortRange) {
	for i := range a.Listeners {
		if a.Listeners[i].Protocol == protocol {
			all = append(all, a.Listeners[i].PortRanges...)
		}
	}
	return all
}

// meets is the first address and port of the accelerator at which a lead ends and did not stand.
func (a *Accelerator) meets(l *lead, stood func(at netip.AddrPort) bool) (at netip.AddrPort, ok bool) {
	for _, address := range a.IPAddresses {
		if l.to.Contains(address.Unmap()) {
			if at, ok = l.meets(address.Unmap(), l.protocol, a.ports(l.protocol), stood); ok {
				return at, true
			}
		}
	}
	return at, false
}

// listens says whether it has an address and port.
func (a *Accelerator) listens(at netip.AddrPort, protocol string) bool {
	return slices.ContainsFunc(a.IPAddresses, func(address netip.Addr) bool { return address.Unmap() == at.Addr() }) &&
		slices.ContainsFunc(a.ports(protocol), func(r PortRange) bool { return r.has(int(at.Port())) })
}

// listensAs says whether it has the addresses and ports that another, which may be nil, has.
func (a *Accelerator) listensAs(o *Accelerator) bool {
	return o != nil && slices.Equal(a.IPAddresses, o.IPAddresses) &&
		slices.Equal(a.ports(TCP), o.ports(TCP)) && slices.Equal(a.ports(UDP), o.ports(UDP))
}

// loops tells what is put and leads to an accelerator, and accelerators that are put where something leads to that stands. What is agreed already stays,
// and a change that does not edit it is not refused for it: nodes refuse its flows.
func (b *builder) loops() {
	if b.o.Stored {
		return
	}
	var put []lead
	var taken []int // documents of accelerators that want addresses or ports
	note := func(l lead) { put = append(put, l) }
	for i, resource := range b.resources {
		switch r := resource.(type) {
		case *TargetGroup:
			if old := b.base.TargetGroups[r.Name]; old == nil || old.Protocol != r.Protocol || !slices.Equal(old.Targets, r.Targets) {
				r.leads(i, note)
			}
		case *Accelerator:
			r.leads(i, note)
			if !r.listensAs(b.base.Accelerators[r.Name]) {
				taken = append(taken, i)
			}
		}
	}
	b.loopsOf(put)
	if len(taken) > 0 {
		b.loopsTo(taken)
	}
}

// loopsOf tells which of these lead to an accelerator.
func (b *builder) loopsOf(put []lead) {
	if len(put) == 0 {
		return
	}
	hosts := map[netip.Addr][]*lead{}
	var subnets []*lead
	for i := range put {
		if l := &put[i]; l.to.IsSingleIP() {
			hosts[l.to.Addr()] = append(hosts[l.to.Addr()], l)
		} else {
			subnets = append(subnets, l)
		}
	}
	meet := map[*lead]map[string]*Accelerator{}
	for name, a := range b.spec.Accelerators {
		for _, address := range a.IPAddresses {
			for _, l := range hosts[address.Unmap()] {
				meet[l] = with(meet[l], name, a)
			}
			for _, l := range subnets {
				if l.to.Contains(address.Unmap()) {
					meet[l] = with(meet[l], name, a)
				}
			}
		}
	}
	for i := range put {
		l := &put[i]
		for _, name := range slices.Sorted(maps.Keys(meet[l])) {
			if door, ok := meet[l][name].meets(l, b.loopStood(l, name)); ok {
				check{b, l.document}.fault(l.field, "%s is accelerator %s's own: its flows would come back without end", door, name)
				break
			}
		}
	}
}

// loopStood says of an address and port whether what a lead's document takes the place of led there already, and the accelerator listened there.
func (b *builder) loopStood(l *lead, accelerator string) func(at netip.AddrPort) bool {
	listened, led := b.base.Accelerators[accelerator], []lead(nil)
	note := func(l lead) { led = append(led, l) }
	switch r := b.before(l.document).(type) {
	case *TargetGroup:
		r.leads(l.document, note)
	case *Accelerator:
		r.leads(l.document, note)
	}
	if listened == nil || len(led) == 0 {
		return nil
	}
	return func(at netip.AddrPort) bool {
		return listened.listens(at, l.protocol) && slices.ContainsFunc(led, func(o lead) bool {
			_, ok := o.meets(at.Addr(), l.protocol, []PortRange{{FromPort: at.Port()}}, nil)
			return ok
		})
	}
}

func with(m map[string]*Accelerator, name string, a *Accelerator) map[string]*Accelerator {
	if m == nil {
		m = map[string]*Accelerator{}
	}
	m[name] = a
	return m
}

// loopsTo tells what that stands leads to accelerators that are put.
func (b *builder) loopsTo(put []int) {
	wanted := map[netip.Addr][]int{}
	for _, i := range put {
		for _, address := range b.resources[i].(*Accelerator).IPAddresses {
			wanted[address.Unmap()] = append(wanted[address.Unmap()], i)
		}
	}
	touches := func(e Endpoint) bool {
		if e.Address.IsValid() {
			return wanted[e.Address.Unmap()] != nil
		}
		for address := range wanted {
			if e.Subnet.Contains(address) {
				return true
			}
		}
		return false
	}
	standing := collect(b, nil, "TargetGroup", b.spec.TargetGroups, func(g *TargetGroup) bool {
		return slices.ContainsFunc(g.Targets, func(t Target) bool { return wanted[t.Address.Unmap()] != nil })
	})
	standing = collect(b, standing, "Accelerator", b.spec.Accelerators, func(a *Accelerator) bool {
		return slices.ContainsFunc(a.Listeners, func(l AcceleratorListener) bool {
			return slices.ContainsFunc(l.EndpointGroups, func(g EndpointGroup) bool { return slices.ContainsFunc(g.Endpoints, touches) })
		})
	})
	slices.SortFunc(standing, func(x, y Resource) int { return x.Ref.Compare(y.Ref) })
	for _, r := range standing {
		each := func(l lead) {
			for _, i := range put {
				a := b.resources[i].(*Accelerator)
				var stood func(at netip.AddrPort) bool
				if was := b.base.Accelerators[a.Name]; was != nil {
					stood = func(at netip.AddrPort) bool { return was.listens(at, l.protocol) }
				}
				if door, ok := a.meets(&l, stood); ok {
					which := slices.IndexFunc(a.IPAddresses, func(address netip.Addr) bool { return address.Unmap() == door.Addr() })
					check{b, i}.fault(at("ipAddresses", which), "%s is where %s leads (%s): its flows would come back without end", door, r.Ref, l.field)
				}
			}
		}
		switch value := r.Value.(type) {
		case *TargetGroup:
			value.leads(0, each)
		case *Accelerator:
			value.leads(0, each)
		}
	}
}
