package spec

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// With makes the spec that Build would make of all documents of s with those of del taken away and those of put added or
// in the place of those of their kind and name; put follows all others, so that where two resources exclude each other the
// fault is of what is put. What is in both del and put is put. The faults are those of Build, but for two things: faults
// of documents that stand already have neither file nor line; and where something that is deleted is referred to by what
// stands, the fault is told of the deletion: "is used by LoadBalancer/x (listeners[0].default.forward)".
//
// s must be a spec that Build or With made; it is not changed, and resources that are not put are the same pointers in
// both. One change costs a copy of the tables of the kinds that it touches (not of the resources), and at most one look
// at the resources that could refer to it or claim the same host, port or POP.
func (s *Spec) With(revision uint64, put []Document, del []Ref, o Options) (*Spec, error) {
	next := *s
	next.Revision, next.Unknown = revision, nil
	b := &builder{
		o: o, base: s, spec: &next, docs: slices.Clip(put),
		declared: firsts{}, gone: map[Ref]bool{}, names: map[string]string{}, decodeFaults: map[int][]string{},
	}
	b.decode()
	for _, r := range del {
		if _, again := b.declared[r]; !again {
			b.drop(r)
			b.gone[r] = true
		}
	}
	b.validate()
	b.validateAgain()
	b.locate()
	b.listUnknown()
	if err := b.found.err(); err != nil {
		return nil, err
	}
	return b.spec, nil
}

// facade is what others' validity depends on, beyond that the resource exists.
func facade(resource any) [2]string {
	switch r := resource.(type) {
	case *TargetGroup:
		return [2]string{r.Region, r.Protocol}
	case *LoadBalancer:
		return [2]string{r.Region, r.Type}
	case *HealthCheck:
		if r.Type == Calculated {
			return [2]string{r.Type}
		}
	case *CidrCollection:
		return [2]string{strings.Join(slices.Sorted(r.names()), " ")}
	}
	return [2]string{}
}

// texts is a set of texts, mostly of one or two, which thousands of resources are compared with.
type texts struct {
	few  []string
	many map[string]bool // all of them, once there are more than a few
}

func (s *texts) add(text string) {
	const few = 8 // comparing with these takes less than one hash
	if s.has(text) {
		return
	}
	if s.few = append(s.few, text); len(s.few) > few && s.many == nil {
		s.many = map[string]bool{}
		for _, t := range s.few {
			s.many[t] = true
		}
	} else if s.many != nil {
		s.many[text] = true
	}
}

// has says whether a text is in the set; nil is the empty set.
func (s *texts) has(text string) bool {
	switch {
	case s == nil:
		return false
	case s.many != nil:
		return s.many[text]
	}
	for _, t := range s.few {
		if t == text {
			return true
		}
	}
	return false
}

// moved are names by kind.
type moved map[string]*texts

func (m moved) add(r Ref) {
	if m[r.Kind] == nil {
		m[r.Kind] = &texts{}
	}
	m[r.Kind].add(r.Name)
}

// validateAgain judges the resources that are not put and refer to what is gone or looks another way now.
func (b *builder) validateAgain() {
	m := moved{}
	for r := range b.gone {
		if kind, ok := exactKind(r.Kind); ok && !isManaged(r) {
			if _, was := kind.get(b.base, r.Name); was {
				m.add(r)
			}
		}
	}
	for r := range b.declared {
		kind, ok := exactKind(r.Kind)
		if !ok {
			continue
		}
		old, was := kind.get(b.base, r.Name)
		now, is := kind.get(b.spec, r.Name)
		if was && is && facade(old) != facade(now) {
			m.add(r)
		}
	}
	if len(m) == 0 {
		return
	}
	none := newClaims() // they have what they claim already
	for _, r := range b.referring(m) {
		b.docs = append(b.docs, Document{Kind: r.Kind, Name: r.Name})
		check{b, len(b.docs) - 1}.resource(r.Value, &none)
	}
}

// referring are the resources that are not put and refer to one of those, in the order of Ref.Compare.
func (b *builder) referring(m moved) []Resource {
	regions, checks, groups, balancers := m["Region"], m["HealthCheck"], m["TargetGroup"], m["LoadBalancer"]
	policies, sites, accelerators, guards := m["CachePolicy"], m["Distribution"], m["Accelerator"], m["SecurityGroup"]
	collections, keys := m["CidrCollection"], m["TsigKey"]
	var found []Resource
	if regions != nil || checks != nil {
		found = collect(b, found, "HealthCheck", b.spec.HealthChecks, func(h *HealthCheck) bool {
			return regions != nil && slices.ContainsFunc(h.Regions, regions.has) || checks != nil && slices.ContainsFunc(h.ChildHealthChecks, checks.has)
		})
	}
	if regions != nil {
		found = collect(b, found, "TargetGroup", b.spec.TargetGroups, func(g *TargetGroup) bool { return regions.has(g.Region) })
	}
	if regions != nil || groups != nil || guards != nil {
		found = collect(b, found, "LoadBalancer", b.spec.LoadBalancers, func(lb *LoadBalancer) bool {
			return regions.has(lb.Region) || groups != nil && lb.refers(groups) || lb.guardedBy(guards)
		})
	}
	if regions != nil || balancers != nil || policies != nil {
		found = collect(b, found, "Distribution", b.spec.Distributions, func(d *Distribution) bool { return d.refers(regions, balancers, policies) })
	}
	if regions != nil || groups != nil || balancers != nil {
		found = collect(b, found, "Accelerator", b.spec.Accelerators, func(a *Accelerator) bool { return a.refers(regions, groups, balancers) })
	}
	if regions != nil || checks != nil || sites != nil || balancers != nil || accelerators != nil || collections != nil || keys != nil {
		found = collect(b, found, "HostedZone", b.spec.HostedZones, func(z *HostedZone) bool {
			if z.signedBy(keys) {
				return true
			}
			for _, r := range z.Records.Special() {
				if regions.has(r.Region) || checks.has(r.HealthCheck) || r.Alias != nil &&
					(sites.has(r.Alias.Distribution) || balancers.has(r.Alias.LoadBalancer) || accelerators.has(r.Alias.Accelerator)) ||
					r.GeoProximityLocation != nil && regions.has(r.GeoProximityLocation.Region) ||
					r.CidrRoutingConfig != nil && collections.has(r.CidrRoutingConfig.Collection) {
					return true
				}
			}
			return false
		})
	}
	slices.SortFunc(found, func(x, y Resource) int { return x.Ref.Compare(y.Ref) })
	return found
}

// collect adds the resources of a table that are not put and are as wanted.
func collect[T any](b *builder, found []Resource, kind string, table map[string]*T, wanted func(*T) bool) []Resource {
	for name, r := range table {
		if !wanted(r) {
			continue
		}
		ref := Ref{kind, name}
		if _, put := b.declared[ref]; !put && !isManaged(ref) {
			found = append(found, Resource{ref, r})
		}
	}
	return found
}

func (lb *LoadBalancer) refers(groups *texts) bool {
	for i := range lb.Listeners {
		l := &lb.Listeners[i]
		if groups.has(l.Default.Forward) {
			return true
		}
		for j := range l.Rules {
			if groups.has(l.Rules[j].Action.Forward) {
				return true
			}
		}
	}
	return false
}

func (d *Distribution) refers(regions, balancers, policies *texts) bool {
	if policies.has(d.DefaultCacheBehavior.CachePolicy) {
		return true
	}
	for i := range d.CacheBehaviors {
		if policies.has(d.CacheBehaviors[i].CachePolicy) {
			return true
		}
	}
	if balancers == nil && regions == nil {
		return false
	}
	return slices.ContainsFunc(d.Origins, func(o Origin) bool {
		return regions.has(o.OriginShield.OriginShieldRegion) || balancers != nil && slices.ContainsFunc(o.LoadBalancers, balancers.has)
	})
}

func (a *Accelerator) refers(regions, groups, balancers *texts) bool {
	for i := range a.Listeners {
		for j := range a.Listeners[i].EndpointGroups {
			g := &a.Listeners[i].EndpointGroups[j]
			if regions.has(g.Region) {
				return true
			}
			for k := range g.Endpoints {
				if groups.has(g.Endpoints[k].TargetGroup) || balancers.has(g.Endpoints[k].LoadBalancer) {
					return true
				}
			}
		}
	}
	return false
}

// claims are what only one resource may have: the first that claims it keeps it.
type claims struct {
	pops  map[string]Ref
	hosts map[string]Ref
	ports map[protocolAddress][]portClaim
	doors map[regionPort]Ref // of load balancers
}

type regionPort struct {
	region string
	port   uint16
}

// protocolAddress is an address of accelerators; the ports of each protocol are apart.
type protocolAddress struct {
	address  netip.Addr
	protocol string
}

func (p protocolAddress) compare(o protocolAddress) int {
	return cmp.Or(p.address.Compare(o.address), strings.Compare(p.protocol, o.protocol))
}

type portClaim struct {
	PortRange
	document, order int
	field           string
}

func newClaims() claims {
	return claims{map[string]Ref{}, map[string]Ref{}, map[protocolAddress][]portClaim{}, map[regionPort]Ref{}}
}

// standing are the claims of resources that are not put, as far as those that are put could want the same. What one that
// is put has had before nobody else has.
func (b *builder) standing() claims {
	standing := newClaims()
	if len(b.base.Regions)+len(b.base.Distributions)+len(b.base.LoadBalancers)+len(b.base.Accelerators) == 0 {
		return standing
	}
	var hosts, regions texts
	var doors map[regionPort]bool
	addresses, pops := map[netip.Addr]bool{}, false
	for i, resource := range b.resources {
		switch r := resource.(type) {
		case *Region:
			pops = pops || len(r.POPs) > 0
		case *Distribution:
			for _, host := range r.Aliases {
				if old := b.base.Distributions[b.docs[i].Name]; old == nil || !slices.Contains(old.Aliases, host) {
					hosts.add(host)
				}
			}
		case *LoadBalancer:
			for j := range r.Listeners {
				if old := b.base.LoadBalancers[b.docs[i].Name]; old == nil || old.Region != r.Region || !old.Has(r.Listeners[j].Port) {
					if doors == nil {
						doors = map[regionPort]bool{}
					}
					regions.add(r.Region)
					doors[regionPort{r.Region, r.Listeners[j].Port}] = true
				}
			}
		case *Accelerator:
			for _, address := range r.IPAddresses {
				addresses[address] = true
			}
		}
	}
	if pops {
		for _, r := range collect(b, nil, "Region", b.spec.Regions, func(*Region) bool { return true }) {
			for _, p := range r.Value.(*Region).POPs {
				standing.pops[p.Name] = r.Ref
			}
		}
	}
	if hosts.few != nil {
		for _, r := range collect(b, nil, "Distribution", b.spec.Distributions, func(d *Distribution) bool {
			return slices.ContainsFunc(d.Aliases, hosts.has)
		}) {
			for _, host := range r.Value.(*Distribution).Aliases {
				standing.hosts[host] = r.Ref
			}
		}
	}
	if doors != nil {
		for _, r := range collect(b, nil, "LoadBalancer", b.spec.LoadBalancers, func(lb *LoadBalancer) bool {
			return regions.has(lb.Region) && slices.ContainsFunc(lb.Listeners, func(l Listener) bool { return doors[regionPort{lb.Region, l.Port}] })
		}) {
			lb := r.Value.(*LoadBalancer)
			for i := range lb.Listeners {
				standing.doors[regionPort{lb.Region, lb.Listeners[i].Port}] = r.Ref
			}
		}
	}
	if len(addresses) > 0 {
		for _, r := range collect(b, nil, "Accelerator", b.spec.Accelerators, func(a *Accelerator) bool {
			return slices.ContainsFunc(a.IPAddresses, func(address netip.Addr) bool { return addresses[address] })
		}) {
			b.docs = append(b.docs, Document{Kind: r.Kind, Name: r.Name})
			r.Value.(*Accelerator).claim(len(b.docs)-1, standing.ports)
		}
	}
	return standing
}
