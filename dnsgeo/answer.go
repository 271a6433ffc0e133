package dnsgeo

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo/geo"
	"github.com/perigee-net/perigee/dnsgeo/policy"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

const (
	// AliasTTL is how long an answer with the addresses of live nodes may be held. Route 53 says 60 s for its
	// load balancers, which do not vanish; a POP may, and nobody should be sent to a dead one for longer.
	AliasTTL = 30 * time.Second

	// maxChain is how many names an answer follows from CNAME to CNAME. At the bound it ends with the last, and
	// the resolver asks for the rest.
	maxChain = 8

	// maxAddresses is how many addresses of a place an answer has, as many as a multivalue answer: more would
	// not fit with the rest into a datagram. Of more, chance takes that many.
	maxAddresses = policy.MaxValues

	// anyTTL is that of the answer that tells nothing to those who ask for everything (RFC 8482 §4.2).
	anyTTL = time.Hour
)

// Query is one question and who asks it.
type Query struct {
	Name  string // fully qualified
	Type  uint16
	Class uint16
	// Client is the address the query came from: a resolver's, as a rule.
	Client netip.Addr
	// ECS is the network of the client itself, if the resolver says it (RFC 7871). It goes before Client.
	ECS netip.Prefix
	// Random is chance: a number drawn evenly from all.
	Random uint64
}

// Answer is the sections of a response.
type Answer struct {
	Rcode         int
	Authoritative bool

	Answer, Authority, Additional []dns.RR
	// Referral says that Additional is glue, without which the answer is not whole (RFC 9471).
	Referral bool
	// Scope is how many leading bits of the client's network the answer depends on: 0, not on the client at all.
	Scope int
}

// asker is one query on its way to an answer.
type asker struct {
	table *Table
	scene *scene
	query Query
	trace *trace.Trace

	random   uint64
	place    geo.Place
	located  bool          // the place was looked up, so the answer depends on it
	lifetime time.Duration // of the answer at most, by the verdicts it rests on
	answer   Answer
}

// Answer answers a query by a table and a view, either of which may be nil. The records of the answer are
// shared: they must not be changed.
func (t *Table) Answer(v *view.View, q Query, tr *trace.Trace) Answer {
	a := asker{table: t, query: q, trace: tr, random: q.Random, lifetime: forever}
	if t == nil {
		tr.Add("no spec yet: refused")
		return Answer{Rcode: dns.RcodeRefused}
	}
	a.scene = t.sceneOf(v)
	name := dns.CanonicalName(q.Name)
	z := t.zones.Find(name)
	if q.Type == dns.TypeDS && z != nil && z.Name == name {
		if above := t.zones.Above(z); above != nil && t.zones.Node(above, name) != nil {
			z = above // DS stands on the parent's side of a cut
		}
	}
	switch {
	case z == nil:
		tr.Add("no zone encloses %s: refused", name)
		a.answer.Rcode = dns.RcodeRefused
	case q.Class != dns.ClassINET:
		tr.Add("class %s: refused", dns.Class(q.Class))
		a.answer.Rcode = dns.RcodeRefused
	case refused(q.Type):
		tr.Add("type %s: refused", dns.Type(q.Type))
		a.answer.Rcode = dns.RcodeRefused
	default:
		if tr.On() {
			defer tr.In("zone %s", z.Name)()
		}
		a.answer.Authoritative = true
		a.ask(z, name)
	}
	if a.located && q.ECS.IsValid() && q.ECS.Bits() > 0 {
		a.answer.Scope = t.places.Bits(q.ECS.Addr())
	}
	return a.answer
}

// refused says whether the type asks for a transfer, which is not done.
func refused(t uint16) bool { return t == dns.TypeAXFR || t == dns.TypeIXFR }

// ask follows the name to what stands there (RFC 1034 §4.3.2).
func (a *asker) ask(z *zone.Zone, name string) {
	for range maxChain {
		at := a.table.zones.Match(z, name)
		if at.Cut != nil && (a.query.Type != dns.TypeDS || at.Cut.Name != name) {
			a.refer(z, at.Cut)
			return
		}
		if at.Node == nil {
			if a.trace.On() {
				a.trace.Add("%s: no such name", name)
			}
			a.answer.Rcode = dns.RcodeNameError
			a.nothing(z)
			return
		}
		if at.Wildcard && a.trace.On() {
			a.trace.Add("%s: by %s", name, at.Node.Name)
		}
		if cname := at.Node.Choice(dns.TypeCNAME); cname != nil && a.query.Type != dns.TypeCNAME && a.query.Type != dns.TypeANY {
			next, ok := a.chain(name, cname)
			if !ok {
				a.nothing(z)
				return
			}
			if !z.Has(next) || a.table.zones.Find(next) != z || a.passed(next) {
				return
			}
			name = next
			continue
		}
		a.take(z, name, at.Node)
		return
	}
	a.trace.Add("more than %d CNAMEs: the resolver goes on", maxChain)
}

// take answers with what stands at the node for the type.
func (a *asker) take(z *zone.Zone, name string, n *zone.Node) {
	choice := a.table.zones.Choice(z, n, a.query.Type)
	if a.query.Type == dns.TypeANY {
		choice = n.Choice(dns.TypeCNAME)
		if choice == nil && !a.table.zones.Empty(z, n) {
			a.trace.Add("not everything is told (RFC 8482)")
			a.answer.Answer = append(a.answer.Answer, &dns.HINFO{Hdr: header(name, dns.TypeHINFO, anyTTL), Cpu: "RFC8482"})
			return
		}
	}
	var rrs []dns.RR
	alive := true
	if choice != nil {
		rrs, alive = a.resolve(name, choice)
	}
	switch {
	case !alive:
		a.trace.Add("nobody is alive to answer with: SERVFAIL")
		a.answer = Answer{Rcode: dns.RcodeServerFailure}
	case len(rrs) == 0:
		if a.trace.On() {
			a.trace.Add("%s: nothing of type %s", name, dns.Type(a.query.Type))
		}
		a.nothing(z)
	default:
		a.answer.Answer = append(a.answer.Answer, rrs...)
		if a.query.Type == dns.TypeNS {
			a.addresses(z, rrs)
		}
	}
}

// chain adds a CNAME to the answer and returns where it leads; not ok if the policy has none for the client.
func (a *asker) chain(name string, cname *zone.Choice) (next string, ok bool) {
	rrs, _ := a.resolve(name, cname)
	if len(rrs) == 0 {
		return "", false
	}
	a.answer.Answer = append(a.answer.Answer, rrs[0])
	next = dns.CanonicalName(rrs[0].(*dns.CNAME).Target)
	if a.trace.On() {
		a.trace.Add("%s: CNAME %s", name, next)
	}
	return next, true
}

// passed says whether the chain has been at the name.
func (a *asker) passed(name string) bool {
	return slices.ContainsFunc(a.answer.Answer, func(rr dns.RR) bool { return rr.Header().Name == name })
}

// refer answers with a delegation, and the addresses of its name servers that the zone knows.
func (a *asker) refer(z *zone.Zone, cut *zone.Node) {
	if a.trace.On() {
		a.trace.Add("%s is delegated", cut.Name)
	}
	ns := cut.Choice(dns.TypeNS).Records[0].RRs
	a.answer.Authority = ns
	a.answer.Authoritative = len(a.answer.Answer) > 0 // of the CNAMEs before
	a.answer.Referral = true
	a.addresses(z, ns)
}

// addresses adds those of the name servers that the zone has.
func (a *asker) addresses(z *zone.Zone, ns []dns.RR) {
	for _, rr := range ns {
		server := dns.CanonicalName(rr.(*dns.NS).Ns)
		n := a.table.zones.Node(z, server)
		if n == nil {
			continue
		}
		for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
			if choice := n.Choice(t); choice != nil {
				a.lifetime = forever
				rrs, _ := a.resolve(server, choice)
				a.answer.Additional = append(a.answer.Additional, rrs...)
			}
		}
	}
}

// nothing adds the SOA by which resolvers know how long to hold that there is nothing (RFC 2308 §3).
func (a *asker) nothing(z *zone.Zone) {
	soa := a.table.zones.SOA(z)
	a.answer.Authority = a.stamp([]dns.RR{soa}, z.Name, min(soa.Hdr.Ttl, soa.Minttl))
}

// resolve returns what a choice answers with at a name. Not alive: it leads to nodes, and none is.
func (a *asker) resolve(name string, c *zone.Choice) (rrs []dns.RR, alive bool) {
	var room [policy.MaxValues]int
	chosen := room[:1] // the one record set of a simple choice, whatever its health
	if c.Policy != policy.Simple {
		if a.trace.On() {
			defer a.trace.In("%s %s", name, dns.Type(c.Type))()
		}
		var client policy.Client
		if c.Policy.ByClient() {
			client = a.client()
		}
		chosen = policy.Choose(room[:0], c.Policy, c.Candidates, client, a.draw(), func(i int) bool {
			return a.healthy(c, i)
		}, a.trace)
	}
	alive = true
	ttl := ^uint32(0)
	for _, i := range chosen {
		switch r := &c.Records[i]; {
		case r.Alias == nil:
			rrs = append(rrs, r.RRs...)
		default:
			var more []dns.RR
			more, alive = a.follow(name, c.Type, r.Alias)
			rrs = append(rrs, more...)
		}
	}
	for _, rr := range rrs {
		ttl = min(ttl, rr.Header().Ttl) // one for the whole set (RFC 2181 §5.2)
	}
	a.shuffle(len(rrs), func(i, j int) { rrs[i], rrs[j] = rrs[j], rrs[i] })
	return a.stamp(rrs, name, ttl), alive
}

// stamp returns the records with an owner and a TTL, which is never longer than the verdicts that
// the answer rests on can stand. Records that have both already are not copied.
func (a *asker) stamp(rrs []dns.RR, owner string, ttl uint32) []dns.RR {
	if a.lifetime < forever {
		ttl = min(ttl, uint32(max(1, a.lifetime/time.Second)))
	}
	for i, rr := range rrs {
		if h := rr.Header(); h.Name != owner || h.Ttl != ttl {
			rrs[i] = dns.Copy(rr)
			rrs[i].Header().Name, rrs[i].Header().Ttl = owner, ttl
		}
	}
	return rrs
}

// healthy says whether a record set may be chosen: it has no health check or one that passes, and if it
// is an alias, its target has somebody alive and, if that is to be evaluated, is healthy.
func (a *asker) healthy(c *zone.Choice, i int) bool {
	r, id := &c.Records[i], ""
	if c.Policy != policy.Simple {
		id = c.Candidates[i].ID
	}
	if r.HealthCheck != "" && !a.holds(a.table.check(a.scene.view, r.HealthCheck)) {
		a.trace.Add("%s: health check %s fails", id, r.HealthCheck)
		return false
	}
	if r.Alias == nil || a.able(r.Alias) {
		return true
	}
	a.trace.Add("%s: %s %s is not healthy", id, r.Alias.To, r.Alias.Name)
	return false
}

// holds says whether a verdict is good; the answer rests on it either way.
func (a *asker) holds(v verdict) bool {
	a.lifetime = min(a.lifetime, v.stands)
	return v.healthy
}

// able says whether what an alias leads to can take clients. A target without a live node has no address to answer
// with, so it is passed over even if its health is not to be evaluated.
func (a *asker) able(alias *zone.Alias) bool {
	switch alias.To {
	case zone.ToDistribution:
		return len(a.scene.edges) > 0
	case zone.ToLoadBalancer:
		g := a.table.runsIn(a.scene, alias.Name)
		if g != nil && g.drained != "" {
			a.trace.Add("%s: all of its nodes are drained (%s)", alias.Name, g.drained)
			return false
		}
		return g != nil && (!alias.EvaluateTargetHealth || a.holds(a.table.loadBalancer(a.scene, alias)))
	case zone.ToRecord:
		if !alias.EvaluateTargetHealth {
			return true
		}
		for i := range alias.Choice.Records {
			if a.healthy(alias.Choice, i) {
				return true
			}
		}
		return false
	default:
		return true // an accelerator decides for itself, flow by flow
	}
}

// follow returns what an alias answers with. Not alive: it leads to nodes, and none is.
func (a *asker) follow(name string, t uint16, alias *zone.Alias) (rrs []dns.RR, alive bool) {
	if a.trace.On() {
		defer a.trace.In("%s: alias of %s %s", name, alias.To, alias.Name)()
	}
	if alias.To != zone.ToRecord {
		a.lifetime = min(a.lifetime, AliasTTL) // that there is no address, too
	}
	var g *group
	switch alias.To {
	case zone.ToDistribution:
		g = a.nearest(t)
	case zone.ToLoadBalancer:
		g = a.table.runsIn(a.scene, alias.Name)
	case zone.ToNameServer:
		g = a.scene.servers[popKey{alias.Region, alias.Name}]
		if g == nil {
			return nil, true // others answer for the zone
		}
	case zone.ToAccelerator:
		if to := a.table.spec.Accelerators[alias.Name]; to != nil {
			return a.records(name, t, to.IPAddresses), true
		}
		return nil, false
	case zone.ToRecord:
		return a.resolve(name, alias.Choice)
	}
	if g == nil {
		return nil, false
	}
	return a.records(name, t, g.addresses), true
}

// records makes address records of those addresses that are of the type's family, of no more than maxAddresses.
func (a *asker) records(name string, t uint16, addresses []netip.Addr) []dns.RR {
	var rrs []dns.RR
	for _, addr := range addresses {
		switch {
		case t == dns.TypeA && addr.Is4():
			rrs = append(rrs, &dns.A{Hdr: header(name, t, AliasTTL), A: addr.AsSlice()})
		case t == dns.TypeAAAA && addr.Is6():
			rrs = append(rrs, &dns.AAAA{Hdr: header(name, t, AliasTTL), AAAA: addr.AsSlice()})
		}
	}
	if len(rrs) > maxAddresses {
		a.shuffle(len(rrs), func(i, j int) { rrs[i], rrs[j] = rrs[j], rrs[i] })
		rrs = rrs[:maxAddresses]
	}
	return rrs
}

// nearest returns the POP that is nearest to the client; nil if none takes viewers. Those that this
// node cannot reach itself come last. A client without a place is served here, or as if it were here.
//
// Who asks for A gets a POP that has one, as there may be no other way to reach it. Who asks for AAAA gets none if
// the nearest POP has none, and so goes there by IPv4, rather than far away by IPv6.
func (a *asker) nearest(t uint16) *group {
	type pop struct {
		*group
		last int // 1 if this node cannot reach it
		away time.Duration
		tie  uint64
	}
	place, from := a.locate(), a.scene.here
	if place.OK {
		from = &place.Location
	}
	var room [16]pop
	pops := room[:0]
	for _, g := range a.scene.edges {
		p := pop{group: g, away: forever, tie: a.draw()}
		if t == dns.TypeA && !slices.ContainsFunc(p.addresses, netip.Addr.Is4) {
			continue
		}
		if !p.reachable {
			p.last = 1
		}
		switch {
		case !place.OK && p.popKey == a.scene.self:
			p.away, p.tie = 0, 0
		case from != nil && p.location != nil:
			p.away = from.RoundTrip(*p.location)
		}
		pops = append(pops, p)
	}
	if len(pops) == 0 {
		if len(a.scene.edges) > 0 {
			return a.scene.edges[0] // alive, but with no address of the family
		}
		return nil
	}
	slices.SortFunc(pops, func(p, q pop) int {
		return cmp.Or(cmp.Compare(p.last, q.last), cmp.Compare(p.away, q.away), cmp.Compare(p.tie, q.tie))
	})
	if a.trace.On() {
		for _, g := range a.scene.drained {
			a.trace.Add("%s: drained (%s)", g.pop, g.drained)
		}
		for _, p := range pops {
			switch {
			case !p.reachable:
				a.trace.Add("%s: this node cannot reach it", p.pop)
			case p.away == forever:
				a.trace.Add("%s: nobody knows how far", p.pop)
			default:
				a.trace.Add("%s: about %v away", p.pop, p.away.Round(time.Millisecond))
			}
		}
		a.trace.Add("chosen: %s", pops[0].pop)
	}
	return pops[0].group
}

// locate returns the place of the client, on which the answer depends from now on.
func (a *asker) locate() geo.Place {
	if a.located {
		return a.place
	}
	addr, whose := a.query.Client, "resolver"
	if a.query.ECS.IsValid() && a.query.ECS.Bits() > 0 {
		addr, whose = a.query.ECS.Addr(), "client"
	}
	a.place, a.located = a.table.places.Lookup(addr), true
	if a.trace.On() {
		switch {
		case !addr.IsValid():
			a.trace.Add("no client is named")
		case a.place.Country != "":
			a.trace.Add("%s %s is in %s (%s)", whose, addr, a.place.Country, a.place.Continent)
		case a.place.OK:
			a.trace.Add("%s %s is at %v", whose, addr, a.place.Location)
		default:
			a.trace.Add("nobody knows where %s %s is", whose, addr)
		}
	}
	return a.place
}

// client is where the client is to a policy: as if it were here if nobody knows.
func (a *asker) client() policy.Client {
	place := a.locate()
	c := policy.Client{Country: place.Country, Continent: place.Continent, Location: a.scene.here}
	if place.OK {
		c.Location = &place.Location
	}
	return c
}

// draw is the next of the random numbers that come of the query's: one choice must not follow from another
// (Knuth's linear congruence; only used through functions that mix it).
func (a *asker) draw() uint64 {
	a.random = a.random*6364136223846793005 + 1442695040888963407
	return a.random
}

// shuffle puts n things into a random order.
func (a *asker) shuffle(n int, swap func(i, j int)) {
	for ; n > 1; n-- {
		swap(n-1, int(a.draw()>>33)%n)
	}
}

func header(owner string, t uint16, ttl time.Duration) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: t, Class: dns.ClassINET, Ttl: uint32(ttl / time.Second)}
}
