package zone

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/kept"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/policy"
)

// The records that every zone has without being told, with Route 53's values.
const (
	soaTTL     = 900
	soaRefresh = 7200
	soaRetry   = 900
	soaExpire  = 1209600
	soaMinimum = 86400
	nsTTL      = 172800
)

// Compile makes the table of all hosted zones, of the table of the spec before if there is one: zones that did not change
// are shared with it. It trusts a spec to be as spec.Build leaves it (references lead somewhere, aliases not in circles, one
// policy for a name and type, a CNAME alone) and returns as errors, all of them, what only becomes apparent when records
// are made.
func Compile(s *spec.Spec, before *Table) (*Table, error) {
	if before == nil {
		before = NewTable()
	}
	t := &Table{spec: s, servers: before.servers}
	moved := kept.Changes(before.spec.Regions, s.Regions)
	if len(moved) > 0 {
		t.servers = serversOf(s)
	}
	changed := kept.Changes(before.spec.HostedZones, s.HostedZones)
	if slices.ContainsFunc(moved, func(c kept.Change[spec.Region]) bool {
		return c.Old == nil || c.New == nil || c.Old.Location != c.New.Location
	}) {
		for _, z := range before.zones.All() {
			if z.places && s.HostedZones[z.hosted.Name] == z.hosted {
				changed = append(changed, kept.Change[spec.HostedZone]{Name: z.hosted.Name, Old: z.hosted, New: z.hosted})
			}
		}
	}
	zones := before.zones.Edit()
	for _, c := range changed {
		if c.Old != nil {
			zones.Delete(dns.CanonicalName(c.Name))
		}
	}
	var faults []error
	for _, change := range changed {
		if change.New == nil {
			continue
		}
		c := compiler{spec: s, hosted: change.New, zone: newZone(change.Name)}
		c.zone.hosted = change.New
		c.compile()
		zones.Set(c.zone.Name, c.zone)
		for _, err := range c.faults {
			faults = append(faults, fmt.Errorf("hosted zone %s: %w", change.Name, err))
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	t.zones = zones.Map()
	return t, nil
}

// New makes a zone of plain records, which must have a SOA at the zone's name.
func New(name string, records []dns.RR) (*Zone, error) {
	z := newZone(name)
	for _, rr := range records {
		owner := dns.CanonicalName(rr.Header().Name)
		if !z.Has(owner) {
			return nil, fmt.Errorf("zone %s: %s is outside", name, owner)
		}
		if soa, ok := rr.(*dns.SOA); ok && owner == z.Name {
			z.soa = soa
		}
		set := &z.make(owner).choice(rr.Header().Rrtype).only().RRs
		if !slices.ContainsFunc(*set, func(other dns.RR) bool { return dns.IsDuplicate(rr, other) }) {
			*set = append(*set, rr)
		}
	}
	if z.soa == nil {
		return nil, fmt.Errorf("zone %s: no SOA", name)
	}
	z.seal()
	return z, nil
}

func newZone(name string) *Zone {
	name = dns.CanonicalName(name)
	z := &Zone{Name: name}
	z.apex = z.make(name)
	return z
}

// make returns the node of a name of the zone; it and the names between it and the apex come to be.
func (z *Zone) make(name string) *Node {
	if n := z.node(name); n != nil {
		return n
	}
	n := &Node{Name: name}
	z.add(n)
	if name == z.Name {
		return n
	}
	above := "."
	if at, end := dns.NextLabel(name, 0); !end {
		above = name[at:]
	}
	parent := z.make(above)
	if strings.HasPrefix(name, "*.") {
		parent.wild = n
	}
	return n
}

// choice returns the choice of a type at the node, which comes to be.
func (n *Node) choice(t uint16) *Choice {
	if c := n.Choice(t); c != nil {
		return c
	}
	n.Choices = append(n.Choices, Choice{Type: t})
	return &n.Choices[len(n.Choices)-1]
}

// only returns the one record set of a simple choice, which comes to be.
func (c *Choice) only() *Record {
	if len(c.Records) == 0 {
		c.Records = []Record{{}}
	}
	return &c.Records[0]
}

// seal marks the delegations, when all records are in.
func (z *Zone) seal() {
	for n := range z.all() {
		n.cut = n.Choice(dns.TypeNS) != nil // at the apex it is none, but nobody asks there
	}
}

// compiler makes a zone of one hosted zone.
type compiler struct {
	spec   *spec.Spec
	hosted *spec.HostedZone
	zone   *Zone
	faults []error
}

func (c *compiler) compile() {
	for i := range c.hosted.Records {
		r := &c.hosted.Records[i]
		if err := c.add(r); err != nil {
			c.faults = append(c.faults, fmt.Errorf("%s %s: %w", c.hosted.Owner(r.Name), r.Type, err))
		}
	}
	c.zone.seal()
	c.follow() // now no choice moves in memory any more
}

// add puts one record set of the spec into the zone.
func (c *compiler) add(r *spec.Record) error {
	owner := c.hosted.Owner(r.Name)
	t, known := dns.StringToType[r.Type]
	if !known || !c.zone.Has(owner) {
		return errors.New("no such type, or outside the zone")
	}
	if t == dns.TypeNS && policyOf(r) != policy.Simple {
		return errors.New("a delegation has no routing policy")
	}
	node := c.zone.make(owner)
	record := Record{HealthCheck: r.HealthCheck}
	var err error
	if r.Alias != nil {
		record.Alias, err = c.alias(r.Alias)
	} else {
		record.RRs, err = records(node.Name, t, r)
	}
	if err != nil {
		return err
	}
	choice := node.choice(t)
	choice.Policy = policyOf(r)
	choice.Records = append(choice.Records, record)
	if choice.Policy != policy.Simple {
		choice.Candidates = append(choice.Candidates, c.candidate(r))
	}
	c.zone.places = c.zone.places || choice.Policy == policy.Latency
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
	case c.spec.LoadBalancers[a.LoadBalancer] != nil:
		alias.To, alias.Name = ToLoadBalancer, a.LoadBalancer
	case c.spec.Accelerators[a.Accelerator] != nil:
		alias.To, alias.Name = ToAccelerator, a.Accelerator
	default:
		return nil, errors.New("the alias leads nowhere")
	}
	return alias, nil
}

// follow joins the aliases of records to the choices they lead to.
func (c *compiler) follow() {
	for n := range c.zone.all() {
		for _, choice := range n.Choices {
			for _, r := range choice.Records {
				if r.Alias == nil || r.Alias.To != ToRecord {
					continue
				}
				if target := c.zone.node(r.Alias.Name); target != nil {
					r.Alias.Choice = target.Choice(choice.Type)
				}
				if r.Alias.Choice == nil {
					c.faults = append(c.faults, fmt.Errorf("%s: the alias leads to %s, which has no such record", n.Name, r.Alias.Name))
				}
			}
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
	if place, ok := c.spec.Place(r.Region, ""); ok {
		candidate.Location = &place
	}
	return candidate
}

// records makes those of a record set of its values, which are in zone-file form.
func records(owner string, t uint16, r *spec.Record) ([]dns.RR, error) {
	var ttl uint32
	if r.TTL != nil {
		ttl = uint32(r.TTL.Std() / time.Second)
	}
	var rrs []dns.RR
	for _, value := range r.Values {
		rr, err := dns.NewRR(". IN " + dns.TypeToString[t] + " " + value)
		if err != nil {
			return nil, fmt.Errorf("value %q: %w", value, err)
		}
		if rr == nil || rr.Header().Rrtype != t {
			return nil, fmt.Errorf("value %q: nothing there", value)
		}
		*rr.Header() = header(owner, t, ttl)
		rrs = append(rrs, rr)
	}
	return rrs, nil
}

func header(owner string, t uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: t, Class: dns.ClassINET, Ttl: ttl}
}
