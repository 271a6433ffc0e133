package zone

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

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

// Compile makes the table of all hosted zones. It trusts a spec to be as spec.Build leaves it (references lead
// somewhere, aliases not in circles, one policy for a name and type, a CNAME alone) and returns as errors, all of
// them, what only becomes apparent when records are made.
func Compile(s *spec.Spec) (*Table, error) {
	var faults []error
	t := NewTable()
	checks, balancers := map[string]bool{}, map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(s.HostedZones)) {
		c := compiler{spec: s, hosted: s.HostedZones[name], zone: newZone(name), checks: checks, balancers: balancers}
		c.compile()
		t.zones[c.zone.Name] = c.zone
		for _, err := range c.faults {
			faults = append(faults, fmt.Errorf("hosted zone %s: %w", name, err))
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	t.HealthChecks, t.LoadBalancers = slices.Sorted(maps.Keys(checks)), slices.Sorted(maps.Keys(balancers))
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
			z.SOA = soa
		}
		set := &z.make(owner).choice(rr.Header().Rrtype).only().RRs
		if !slices.ContainsFunc(*set, func(other dns.RR) bool { return dns.IsDuplicate(rr, other) }) {
			*set = append(*set, rr)
		}
	}
	if z.SOA == nil {
		return nil, fmt.Errorf("zone %s: no SOA", name)
	}
	z.seal()
	return z, nil
}

func newZone(name string) *Zone {
	name = dns.CanonicalName(name)
	z := &Zone{Name: name, nodes: map[string]*Node{}}
	z.apex = z.make(name)
	return z
}

// make returns the node of a name of the zone; it and the names between it and the apex come to be.
func (z *Zone) make(name string) *Node {
	if n := z.nodes[name]; n != nil {
		return n
	}
	n := &Node{Name: name}
	z.nodes[name] = n
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
		c.add(policy.Candidate{}, Record{})
	}
	return &c.Records[0]
}

func (c *Choice) add(candidate policy.Candidate, record Record) {
	c.Candidates, c.Records = append(c.Candidates, candidate), append(c.Records, record)
}

// seal marks the delegations, when all records are in.
func (z *Zone) seal() {
	for _, n := range z.nodes {
		n.cut = n.Choice(dns.TypeNS) != nil // at the apex it is none, but nobody asks there
	}
}

// compiler makes a zone of one hosted zone.
type compiler struct {
	spec              *spec.Spec
	hosted            *spec.HostedZone
	zone              *Zone
	checks, balancers map[string]bool // whose health decides
	faults            []error
}

func (c *compiler) compile() {
	for i := range c.hosted.Records {
		r := &c.hosted.Records[i]
		if err := c.add(r); err != nil {
			c.faults = append(c.faults, fmt.Errorf("%s %s: %w", c.hosted.Owner(r.Name), r.Type, err))
		}
	}
	c.addAuthority(c.nameServers())
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
	record := Record{HealthCheck: r.HealthCheck}
	var err error
	if r.Alias != nil {
		record.Alias, err = c.alias(r.Alias)
	} else {
		record.RRs, err = records(owner, t, r)
	}
	if err != nil {
		return err
	}
	if r.HealthCheck != "" {
		c.checks[r.HealthCheck] = true
	}
	choice := c.zone.make(owner).choice(t)
	choice.Policy = policyOf(r)
	choice.add(c.candidate(r), record)
	return nil
}

// addAuthority puts the SOA and the NS records at the apex.
func (c *compiler) addAuthority(servers []string) {
	z := c.zone
	primary := z.Name
	if len(servers) > 0 {
		primary = servers[0]
	}
	z.SOA = &dns.SOA{
		Hdr: header(z.Name, dns.TypeSOA, soaTTL),
		Ns:  primary, Mbox: c.hosted.Owner("hostmaster"),
		// Route 53's serial is 1 for ever. The revision tells people which spec a name server runs; it wraps (RFC 1982).
		Serial:  uint32(c.spec.Revision),
		Refresh: soaRefresh, Retry: soaRetry, Expire: soaExpire, Minttl: soaMinimum,
	}
	z.apex.choice(dns.TypeSOA).only().RRs = []dns.RR{z.SOA}
	for _, server := range servers {
		set := z.apex.choice(dns.TypeNS).only()
		set.RRs = append(set.RRs, &dns.NS{Hdr: header(z.Name, dns.TypeNS, nsTTL), Ns: server})
	}
}

// nameServers are the zone's own, or ns-<pop> for each POP of the spec, whose addresses are those of the live
// name servers there unless the operator has put records at that name.
func (c *compiler) nameServers() []string {
	var servers []string
	for _, name := range c.hosted.NameServers {
		servers = append(servers, dns.CanonicalName(name))
	}
	if len(servers) > 0 {
		return servers
	}
	for _, region := range slices.Sorted(maps.Keys(c.spec.Regions)) {
		for _, pop := range c.spec.Regions[region].POPs {
			name := c.hosted.Owner("ns-" + pop.Name)
			servers = append(servers, name)
			n := c.zone.make(name)
			if len(n.Choices) > 0 {
				continue
			}
			alias := &Alias{To: ToNameServer, Name: pop.Name, Region: region}
			n.choice(dns.TypeA).only().Alias = alias
			n.choice(dns.TypeAAAA).only().Alias = alias
		}
	}
	return servers
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
		alias.To, alias.Name, alias.Region = ToLoadBalancer, a.LoadBalancer, c.spec.LoadBalancers[a.LoadBalancer].Region
		if a.EvaluateTargetHealth {
			c.balancers[a.LoadBalancer] = true
		}
	case c.spec.Accelerators[a.Accelerator] != nil:
		alias.To, alias.Name, alias.Addresses = ToAccelerator, a.Accelerator, c.spec.Accelerators[a.Accelerator].IPAddresses
	default:
		return nil, errors.New("the alias leads nowhere")
	}
	return alias, nil
}

// follow joins the aliases of records to the choices they lead to.
func (c *compiler) follow() {
	for _, n := range c.zone.nodes {
		for _, choice := range n.Choices {
			for _, r := range choice.Records {
				if r.Alias == nil || r.Alias.To != ToRecord {
					continue
				}
				if target := c.zone.nodes[r.Alias.Name]; target != nil {
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
