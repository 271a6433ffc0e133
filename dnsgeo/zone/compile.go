package zone

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/kept"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/policy"
)

// Compile makes the table of all hosted zones, of the table of the spec before if there is one: zones that did not change
// are shared with it. It trusts a spec to be as spec.Build leaves it (references lead somewhere, aliases not in circles, one
// policy for a name and type, a CNAME alone) and returns as errors, all of them, what only becomes apparent when records
// are made.
func Compile(s *spec.Spec, before *Table) (*Table, error) {
	if before == nil {
		before = NewTable()
	}
	t := &Table{spec: s, servers: before.servers, blocks: before.blocks}
	moved := kept.Changes(before.spec.Regions, s.Regions)
	if len(moved) > 0 {
		t.servers = serversOf(s)
	}
	changed := kept.Changes(before.spec.HostedZones, s.HostedZones)
	shifted := slices.ContainsFunc(moved, func(c kept.Change[spec.Region]) bool {
		return c.Old == nil || c.New == nil || c.Old.Location != c.New.Location
	})
	regrouped := t.group(kept.Changes(before.spec.CidrCollections, s.CidrCollections))
	if shifted || len(regrouped) > 0 {
		for z := range before.zones.all() {
			if (z.places && shifted || z.groupedBy(regrouped)) && s.HostedZones[z.hosted.Name] == z.hosted {
				changed = append(changed, kept.Change[spec.HostedZone]{Name: z.hosted.Name, Old: z.hosted, New: z.hosted})
			}
		}
	}
	var faults []error
	var gone, come []*Zone
	var name Name
	for _, change := range changed {
		var old *Zone
		if change.Old != nil {
			if name.Parse(change.Name) == nil {
				old = before.zones.get(name.hashes[0], name.Wire())
			}
			gone = append(gone, old)
		}
		if change.New == nil {
			continue
		}
		if old != nil && (old.places && shifted || old.groupedBy(regrouped)) {
			old = nil // what did not change in it is to be made anew, too
		}
		z, errs := compile(s, t.blocks, change.New, old)
		for _, err := range errs {
			faults = append(faults, fmt.Errorf("hosted zone %s: %w", change.Name, err))
		}
		come = append(come, z)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	t.zones = before.zones.with(gone, come)
	return t, nil
}

// groupedBy says whether records of the zone are chosen among by any of some CIDR collections.
func (z *Zone) groupedBy(collections map[string]bool) bool {
	return slices.ContainsFunc(z.blocks, func(name string) bool { return collections[name] })
}

// group takes in what has changed of the CIDR collections, and returns which have.
func (t *Table) group(changes []kept.Change[spec.CidrCollection]) (changed map[string]bool) {
	if len(changes) == 0 {
		return nil
	}
	blocks := map[string]*policy.Blocks{}
	maps.Copy(blocks, t.blocks)
	changed = map[string]bool{}
	for _, c := range changes {
		changed[c.Name] = true
		if delete(blocks, c.Name); c.New != nil {
			blocks[c.Name] = policy.NewBlocks(c.New)
		}
	}
	t.blocks = blocks
	return changed
}

// otherwise is what the record set has chosen where none is healthy.
func otherwise(r *spec.Record) policy.Otherwise {
	switch r.OnAllUnhealthy {
	case spec.Nothing:
		return policy.None
	case spec.LastGood:
		return policy.LastGood
	}
	return policy.All
}

// compiler makes a zone of one hosted zone.
type compiler struct {
	spec   *spec.Spec
	blocks map[string]*policy.Blocks
	hosted *spec.HostedZone
	zone   *Zone // in the making
	edit   *Edit
	faults []error
}

// compile makes a zone; of the one before, if there is one from which it differs in few records.
func compile(s *spec.Spec, blocks map[string]*policy.Blocks, hosted *spec.HostedZone, before *Zone) (*Zone, []error) {
	if hosted.Secondary() {
		z, err := secondary(hosted, before)
		if err != nil {
			return nil, []error{err}
		}
		return z, nil
	}
	if before != nil && before.hosted.Secondary() {
		before = nil // those records are another's
	}
	c := compiler{spec: s, blocks: blocks, hosted: hosted}
	var differ owners
	if before != nil && before.hosted != hosted {
		differ = differing(before.hosted, hosted)
	}
	if differ != nil {
		c.edit = before.Edit()
		c.edit.thin = true
		for _, owner := range differ {
			if c.edit.name.Parse(owner) == nil && c.edit.next.Has(&c.edit.name) {
				d, _ := c.edit.named()
				d.sets = nil
			}
		}
	} else {
		var err error
		if c.edit, err = newEdit(hosted.Name, hosted.Records.Len()); err != nil {
			return nil, []error{err}
		}
	}
	c.zone = c.edit.next
	c.zone.hosted = hosted
	var wanted func(name string) bool
	if differ != nil {
		wanted = func(name string) bool { return differ.has(hosted, name) }
	}
	for _, r := range hosted.Records.Where(wanted) {
		if err := c.add(&r); err != nil {
			c.faults = append(c.faults, fmt.Errorf("%s %s: %w", hosted.Owner(r.Name), r.Type, err))
		}
	}
	c.follow()
	z, err := c.edit.Zone()
	if err != nil {
		c.faults = append(c.faults, err)
	}
	return z, c.faults
}

// differing are the names at which the records of two versions of a zone differ; nil: at so many that the zone is made anew. What is
// alike at the beginning and at the end of both is taken to stay as it was.
func differing(old, new *spec.HostedZone) owners {
	head, tail := old.Records.Alike(new.Records)
	if old.Records.Len()+new.Records.Len()-2*(head+tail) > new.Records.Len()/8+8 {
		return nil
	}
	names := owners{}
	for _, of := range []spec.Records{old.Records, new.Records} {
		for i := head; i < of.Len()-tail; i++ {
			names = append(names, new.Owner(of.At(i).Name))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// owners are names, absolute and in small letters, in order.
type owners []string

// has says whether a record's name in a zone is one of them.
func (o owners) has(z *spec.HostedZone, name string) bool {
	const few = 4 // comparing with these takes less than making one
	if len(o) <= few {
		return slices.ContainsFunc(o, func(owner string) bool { return z.Owns(name, owner) })
	}
	_, has := slices.BinarySearch(o, z.Owner(name))
	return has
}

// add puts one record set of the spec into the zone.
func (c *compiler) add(r *spec.Record) error {
	t, known := dns.StringToType[r.Type]
	if !known || !c.edit.name.below(r.Name, c.zone.wire) && c.edit.name.Parse(c.hosted.Owner(r.Name)) != nil || !c.zone.Has(&c.edit.name) {
		return errors.New("no such type, or outside the zone")
	}
	if t == dns.TypeNS && policyOf(r) != policy.Simple {
		return errors.New("a delegation has no routing policy")
	}
	record := Record{HealthCheck: r.HealthCheck}
	var err error
	if r.Alias != nil {
		record.Alias, err = c.alias(r.Alias)
	} else {
		record.Set, err = setOf(t, r)
	}
	if err != nil {
		return err
	}
	name := &c.edit.name
	at := c.edit.draft(name.wire[:name.Start(name.labels-c.zone.labels)]).set(t)
	if p := policyOf(r); p != policy.Simple || record.Alias != nil || record.HealthCheck != "" {
		if at.choice == nil {
			at.choice = &Choice{Type: t, Set: policy.Set{Policy: p, Otherwise: otherwise(r)}}
		}
		choice := at.choice
		choice.Records = append(choice.Records, record)
		if choice.Policy != policy.Simple {
			choice.Candidates = append(choice.Candidates, c.candidate(r))
		}
		c.zone.places = c.zone.places || p == policy.Latency || p == policy.Geoproximity
		if by := r.CidrRoutingConfig; by != nil {
			choice.Blocks = c.blocks[by.Collection]
			if !slices.Contains(c.zone.blocks, by.Collection) {
				c.zone.blocks = append(c.zone.blocks, by.Collection)
			}
		}
		return nil
	}
	at.set = record.Set
	return nil
}

// alias says where an alias leads, but for another record, which may not have come yet.
func (c *compiler) alias(a *spec.Alias) (*Alias, error) {
	alias := &Alias{EvaluateTargetHealth: a.EvaluateTargetHealth}
	switch {
	case a.Distribution != "":
		alias.To, alias.Name = ToDistribution, a.Distribution
	case a.Record != "":
		alias.To, alias.Name = ToRecord, c.hosted.Owner(a.Record)
		var name Name
		if name.Parse(alias.Name) != nil || !c.zone.Has(&name) {
			return nil, fmt.Errorf("the alias leads to %s, which is not in the zone", alias.Name)
		}
		alias.hash, alias.labels = name.hashes[0], slices.Clone(name.wire[:name.Start(name.labels-c.zone.labels)])
	case c.spec.LoadBalancers[a.LoadBalancer] != nil:
		alias.To, alias.Name = ToLoadBalancer, a.LoadBalancer
	case c.spec.Accelerators[a.Accelerator] != nil:
		alias.To, alias.Name = ToAccelerator, a.Accelerator
	default:
		return nil, errors.New("the alias leads nowhere")
	}
	return alias, nil
}

// follow finds aliases of records that lead nowhere.
func (c *compiler) follow() {
	for _, r := range c.hosted.Records.Special() {
		if r.Alias == nil || r.Alias.Record == "" {
			continue
		}
		to := c.hosted.Owner(r.Alias.Record)
		if c.edit.name.Parse(to) != nil || !c.zone.Has(&c.edit.name) || !c.edit.has(dns.StringToType[r.Type]) {
			c.faults = append(c.faults, fmt.Errorf("%s: the alias leads to %s, which has no such record", c.hosted.Owner(r.Name), to))
		}
	}
}

// policyOf is the routing policy that the fields of the record set amount to.
func policyOf(r *spec.Record) policy.Policy {
	switch {
	case r.Weight != nil:
		return policy.Weighted
	case r.Region != "":
		return policy.Latency
	case r.Failover != "":
		return policy.Failover
	case r.GeoLocation != nil:
		return policy.Geolocation
	case r.GeoProximityLocation != nil:
		return policy.Geoproximity
	case r.CidrRoutingConfig != nil:
		return policy.CIDR
	case r.MultiValueAnswer:
		return policy.MultiValue
	default:
		return policy.Simple
	}
}

func (c *compiler) candidate(r *spec.Record) policy.Candidate {
	candidate := policy.Candidate{ID: r.SetIdentifier, Region: r.Region, Failover: r.Failover}
	if r.Weight != nil {
		candidate.Weight = *r.Weight
	}
	if r.GeoLocation != nil {
		candidate.GeoLocation = *r.GeoLocation
	}
	if r.CidrRoutingConfig != nil {
		candidate.Block = r.CidrRoutingConfig.LocationName
	}
	if near := r.GeoProximityLocation; near != nil {
		candidate.Region, candidate.Bias = near.Region, near.Bias
		if near.Coordinates != nil {
			candidate.Location = near.Coordinates.Site()
		}
	}
	if place, ok := c.spec.Place(candidate.Region, ""); ok {
		candidate.Location = place.Site()
	}
	return candidate
}

// appendAddress appends the data of an A or AAAA record, with its length.
func appendAddress(data []byte, addr netip.Addr) []byte {
	if addr.Is4() {
		a := addr.As4()
		return append(append(data, 0, byte(len(a))), a[:]...)
	}
	a := addr.As16()
	return append(append(data, 0, byte(len(a))), a[:]...)
}

// setOf makes the set of a record set of its values, which are in zone-file form.
func setOf(t uint16, r *spec.Record) (Set, error) {
	set := Set{Type: t}
	if r.TTL != nil {
		set.TTL = uint32(r.TTL.Std() / time.Second)
	}
	for _, value := range r.Values {
		if t == dns.TypeA || t == dns.TypeAAAA { // most records are
			addr, err := netip.ParseAddr(value)
			if err != nil || addr.Is4() != (t == dns.TypeA) || addr.Zone() != "" {
				return Set{}, fmt.Errorf("value %q: no address of the type", value)
			}
			set.data, set.N = appendAddress(set.data, addr), set.N+1
			continue
		}
		rr, err := dns.NewRR(". IN " + dns.TypeToString[t] + " " + value)
		if err != nil {
			return Set{}, fmt.Errorf("value %q: %w", value, err)
		}
		if rr == nil || rr.Header().Rrtype != t {
			return Set{}, fmt.Errorf("value %q: nothing there", value)
		}
		data, err := dataOf(rr)
		if err != nil {
			return Set{}, fmt.Errorf("value %q: %w", value, err)
		}
		set = set.With(data)
	}
	return set, nil
}
