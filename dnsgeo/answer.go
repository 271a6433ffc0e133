package dnsgeo

import (
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/clients"
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

	// maxChain is how many names an answer follows from CNAME to CNAME, those included that DNAMEs make. At the bound it
	// ends with the last, and the resolver asks for the rest.
	maxChain = 8

	// maxAddresses is how many addresses of a place an answer has, as many as a multivalue answer: more would
	// not fit with the rest into a datagram. Of more, chance takes that many.
	maxAddresses = policy.MaxValues

	// anyTTL is that of the answer that tells nothing to those who ask for everything (RFC 8482 §4.2), in seconds.
	anyTTL = 3600
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

// asker is what one goroutine answers with: one query on its way to an answer, and rooms that are used again for the next,
// so that most answers are made without taking memory.
type asker struct {
	table *Table
	scene *scene
	zone  *zone.Zone
	query Query // but for its name, which is in asked
	trace *trace.Trace

	asked  zone.Name
	chased zone.Name // where a chain of CNAMEs has come
	server zone.Name // a name server's
	made   [maxChain][maxNameSize]byte
	names  int // of made that are used

	random   uint64
	spot     *spot // where the client is, once it was looked up
	seen     clients.Client
	looked   bool          // seen is what POPs saw of the client's network
	scope    int           // leading bits of the client's network that the answer depends on
	lifetime time.Duration // of the answer at most, by the verdicts it rests on
	visited  []uint64      // hashes of the names of the chain
	policies uint16        // by which the answer section was chosen, a bit each
	lastGood bool          // the answer depends on when a record set was healthy last
	heldBack bool          // of the choice that is made, something was not healthy for its standing alone, as far as that was asked

	recents *recents // nil: nothing is remembered from query to query

	roundTrip func(region string) (time.Duration, bool) // toRegion, made once

	reply reply
}

// maxNameSize is how many octets a name has at most (RFC 1035 §2.3.4).
const maxNameSize = 255

func newAsker() *asker { return &asker{visited: make([]uint64, 0, maxChain)} }

// Answer answers a query by a table and a view, either of which may be nil, and shows the answer to people.
func (t *Table) Answer(v *view.View, q Query, tr *trace.Trace) Answer {
	a := newAsker()
	if err := a.asked.Parse(q.Name); err != nil {
		tr.Add("%v: refused", err)
		return Answer{Rcode: dns.RcodeFormatError}
	}
	a.answer(t, v, &q, tr)
	return a.reply.shown()
}

// answer decides the answer to a query for the name that is in asked. It is a function of the table, the view and the query alone.
func (a *asker) answer(t *Table, v *view.View, q *Query, tr *trace.Trace) {
	var s *scene
	if t != nil {
		s = t.sceneOf(v)
	}
	a.answerIn(t, s, q, tr)
}

// answerIn is answer by what the view means to the table.
func (a *asker) answerIn(t *Table, s *scene, q *Query, tr *trace.Trace) {
	a.scene = s
	a.table, a.query, a.trace = t, *q, tr
	if r := a.recents; r != nil && r.table != t {
		*r = recents{table: t} // the one before is to be forgotten
	}
	a.random, a.spot, a.scope, a.lifetime, a.zone = q.Random, nil, 0, forever, nil
	a.visited, a.names, a.policies, a.lastGood, a.looked = a.visited[:0], 0, 0, false, false
	a.reply.reset(&a.asked)
	if t == nil {
		tr.Add("no spec yet: refused")
		a.reply.Rcode = dns.RcodeRefused
		return
	}
	z := t.zones.Find(&a.asked, 0)
	if q.Type == dns.TypeDS && z != nil && z.Labels() == a.asked.Labels() && z.Labels() > 0 {
		if above := t.zones.Find(&a.asked, 1); above != nil && t.zones.Node(above, &a.asked).OK() {
			z = above // DS stands on the parent's side of a cut
		}
	}
	switch {
	case z == nil:
		if tr.On() {
			tr.Add("no zone encloses %s: refused", &a.asked)
		}
		a.reply.Rcode = dns.RcodeRefused
	case q.Class != dns.ClassINET:
		if tr.On() {
			tr.Add("class %s: refused", dns.Class(q.Class))
		}
		a.reply.Rcode = dns.RcodeRefused
	case z.Silence() != zone.Speaks:
		if tr.On() {
			tr.Add("zone %s: %s", z.Name, silences[z.Silence()])
		}
		a.zone = z
		a.reply.Rcode, a.reply.silence = dns.RcodeServerFailure, z.Silence()
	case refused(q.Type):
		if tr.On() {
			tr.Add("type %s: refused", dns.Type(q.Type))
		}
		a.reply.Rcode = dns.RcodeRefused
	default:
		if tr.On() {
			defer tr.In("zone %s", z.Name)()
			if hosted := z.Hosted(); hosted != nil && hosted.Secondary() {
				tr.Add("it is a copy of its primary's, serial %d", z.Serial())
			}
		}
		a.zone = z
		a.reply.Authoritative = true
		a.ask()
	}
	if q.ECS.IsValid() && q.ECS.Bits() > 0 {
		a.reply.Scope = a.scope
	}
}

// silences are the reasons of a secondary zone that has nothing to answer with.
var silences = [...]string{
	zone.NotYet:  "nothing was taken from a primary yet: SERVFAIL",
	zone.Expired: "no primary has confirmed the copy for as long as it may stand: SERVFAIL",
}

// refused says whether the type asks for a transfer, which is no answer: it is sent as one (transferOf), or refused.
func refused(t uint16) bool { return t == dns.TypeAXFR || t == dns.TypeIXFR }

// ask follows the name to what stands there (RFC 1034 §4.3.2).
func (a *asker) ask() {
	name, owner := &a.asked, asked
	for range maxChain {
		a.visited = append(a.visited, name.Hash())
		at := a.table.zones.Match(a.zone, name)
		switch {
		case at.Kind == zone.Cut && (a.query.Type != dns.TypeDS || at.Label > 0):
			a.refer(at.Node, a.reply.suffix(owner, name, at.Label))
			return
		case at.Kind == zone.Nowhere:
			if a.trace.On() {
				a.trace.Add("%s: no such name", name)
			}
			a.reply.Rcode = dns.RcodeNameError
			a.nothing(name, owner)
			return
		case at.Kind == zone.Wildcard && a.trace.On():
			a.trace.Add("%s: by %s", name, zone.Text(append([]byte{1, '*'}, name.From(at.Label)...)))
		}
		var next []byte // where a chain goes on
		switch {
		case at.Kind == zone.Renamed:
			if next = a.rename(at, name, owner); next == nil {
				return
			}
		case at.Node.IsAlias() && a.query.Type != dns.TypeCNAME && a.query.Type != dns.TypeANY:
			if next = a.chain(at.Node, owner); next == nil {
				a.nothing(name, owner)
				return
			}
		default:
			a.take(at, name, owner)
			return
		}
		if a.trace.On() {
			a.trace.Add("%s: CNAME %s", zone.Text(a.reply.owners[owner].wire), zone.Text(next))
		}
		a.chased.Set(next)
		name = &a.chased
		if a.query.Type == dns.TypeCNAME || !a.zone.Has(name) || a.table.zones.Find(name, 0) != a.zone || slices.Contains(a.visited, name.Hash()) {
			return
		}
		owner = a.reply.own(next)
	}
	a.trace.Add("more than %d CNAMEs: the resolver goes on", maxChain)
}

// take answers with what stands at the node for the type.
func (a *asker) take(at zone.Match, name *zone.Name, owner uint16) {
	set, choice, ok := a.find(at, name, a.query.Type)
	if a.query.Type == dns.TypeANY {
		if set, choice, ok = at.Node.Find(dns.TypeCNAME); !ok && (!at.Node.Empty() || a.isApex(at, name)) {
			a.trace.Add("not everything is told (RFC 8482)")
			a.reply.add(answers, record{owner: owner, typ: dns.TypeHINFO, ttl: anyTTL, data: told8482})
			return
		}
	}
	alive := true
	begin := len(a.reply.records)
	if ok {
		alive = a.resolve(answers, owner, set, choice)
	}
	switch {
	case !alive:
		a.trace.Add("nobody is alive to answer with: SERVFAIL")
		a.reply.reset(&a.asked)
		a.reply.Rcode = dns.RcodeServerFailure
	case len(a.reply.records) == begin:
		if a.trace.On() {
			a.trace.Add("%s: nothing of type %s", name, dns.Type(a.query.Type))
		}
		a.nothing(name, owner)
	case a.query.Type == dns.TypeNS:
		a.addresses(begin, nil)
	}
}

// told8482 is the data of the HINFO record that RFC 8482 §4.2 proposes.
var told8482 = []byte("\x07RFC8482\x00")

func (a *asker) isApex(at zone.Match, name *zone.Name) bool {
	return at.Kind == zone.Exact && name.Labels() == a.zone.Labels()
}

// find is what stands at a node for a type, the SOA and the name servers of the zone included.
func (a *asker) find(at zone.Match, name *zone.Name, t uint16) (zone.Set, *zone.Choice, bool) {
	if a.isApex(at, name) && (t == dns.TypeSOA || t == dns.TypeNS) {
		apex := a.table.zones.Apex(a.zone, a.scene.nameServers)
		set := apex.SOA
		if t == dns.TypeNS {
			set = apex.NS
		}
		return set, nil, set.N > 0
	}
	return at.Node.Find(t)
}

// chain adds a CNAME to the answer and returns where it leads; nil if the policy has none for the client.
func (a *asker) chain(n zone.Node, owner uint16) []byte {
	set, cname, _ := n.Find(dns.TypeCNAME)
	begin := len(a.reply.records)
	a.resolve(answers, owner, set, cname)
	if len(a.reply.records) == begin {
		return nil
	}
	a.reply.cut(begin + 1) // there is one
	return a.reply.records[begin].data
}

// rename adds a DNAME to the answer, and the CNAME that it makes of the name (RFC 6672 §3.1), and returns where that leads. Nil: the
// chain ends there, as the name it leads to would be too long, or as the DNAME would be met again and again.
func (a *asker) rename(at zone.Match, name *zone.Name, owner uint16) []byte {
	set, choice, _ := at.Node.Find(dns.TypeDNAME)
	begin := len(a.reply.records)
	a.resolve(answers, a.reply.suffix(owner, name, at.Label), set, choice)
	if len(a.reply.records) == begin {
		a.nothing(name, owner)
		return nil
	}
	a.reply.cut(begin + 1)
	dname := a.reply.records[begin]
	for _, r := range a.reply.records[:begin] {
		if r.typ == dns.TypeDNAME && &r.data[0] == &dname.data[0] {
			a.reply.cut(begin) // the chain came by it before, and a set stands once
			break
		}
	}
	if a.trace.On() {
		a.trace.Add("%s: DNAME %s", zone.Text(name.From(at.Label)), zone.Text(dname.data))
	}
	a.server.Set(dname.data)
	again := below(a.server.Wire(), name.From(at.Label))
	if !a.chased.Replace(name, at.Label, dname.data) {
		a.trace.Add("the name it leads to would be too long: YXDOMAIN")
		a.reply.Rcode = dns.RcodeYXDomain
		return nil
	}
	next := a.made[a.names][:0]
	next = append(next, a.chased.Wire()...)
	a.names++
	a.reply.add(answers, record{owner: owner, typ: dns.TypeCNAME, ttl: dname.ttl, data: next})
	if again {
		a.trace.Add("the DNAME leads to what is below itself: the resolver goes on")
		return nil
	}
	return next
}

// refer answers with a delegation, and the addresses of its name servers that the zone knows.
func (a *asker) refer(cut zone.Node, owner uint16) {
	if a.trace.On() {
		a.trace.Add("%s is delegated", zone.Text(a.reply.owners[owner].wire))
	}
	a.reply.Authoritative = len(a.reply.records) > 0 // of the CNAMEs before
	a.reply.Referral = true
	begin := len(a.reply.records)
	if ns, choice, ok := cut.Find(dns.TypeNS); ok {
		a.resolve(authorities, owner, ns, choice)
	}
	a.addresses(begin, a.reply.owners[owner].wire)
}

// addresses adds those of the name servers that the zone has. A referral is not whole without those below its cut, for there is no
// other way to find them (RFC 9471).
func (a *asker) addresses(begin int, cut []byte) {
	for i := begin; i < len(a.reply.records); i++ {
		ns := a.reply.records[i]
		if ns.typ != dns.TypeNS {
			return // the first of the addresses
		}
		a.server.Set(ns.data)
		if !a.zone.Has(&a.server) {
			continue
		}
		n := a.table.zones.Node(a.zone, &a.server)
		if !n.OK() {
			continue
		}
		before := len(a.reply.records)
		owner := a.reply.own(ns.data)
		for _, t := range [...]uint16{dns.TypeA, dns.TypeAAAA} {
			if set, choice, ok := n.Find(t); ok {
				a.lifetime = forever
				a.resolve(additional, owner, set, choice)
			}
		}
		if cut != nil && below(a.server.Wire(), cut) {
			a.reply.need(before)
		}
	}
}

// below says whether a name is that of a cut or below it, both in wire form and the first in small letters.
func below(name, cut []byte) bool {
	for at := 0; len(name)-at >= len(cut); at += 1 + int(name[at]) {
		if len(name)-at == len(cut) {
			return equalFold(name[at:], cut)
		}
		if name[at] == 0 {
			break
		}
	}
	return false
}

// nothing adds the SOA by which resolvers know how long to hold that there is nothing (RFC 2308 §3).
func (a *asker) nothing(name *zone.Name, owner uint16) {
	soa := a.table.zones.Apex(a.zone, a.scene.nameServers).SOA
	data, _ := soa.Next()
	owner = a.reply.suffix(owner, name, name.Labels()-a.zone.Labels())
	a.reply.add(authorities, record{owner: owner, typ: dns.TypeSOA, ttl: a.stands(min(soa.TTL, minimum(data))), data: data})
}

// resolve adds what a set, or a choice, answers with at a name. Not alive: it leads to nodes, and none is.
func (a *asker) resolve(to section, owner uint16, set zone.Set, c *zone.Choice) (alive bool) {
	begin := len(a.reply.records)
	ttl, alive := ^uint32(0), true
	if to == answers {
		by := policy.Simple
		if c != nil {
			by = c.Policy
		}
		a.policies |= 1 << by
	}
	if c == nil {
		ttl = a.put(to, owner, set)
	} else {
		ttl, alive = a.choose(to, owner, c)
	}
	ttl = a.stands(ttl)
	records := a.reply.records[begin:]
	for i := range records {
		records[i].ttl = ttl // one for the whole set (RFC 2181 §5.2)
	}
	a.shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	return alive
}

// put adds the records of a set.
func (a *asker) put(to section, owner uint16, set zone.Set) (ttl uint32) {
	for s := set; s.N > 0; {
		var data []byte
		data, s = s.Next()
		a.reply.add(to, record{owner: owner, typ: set.Type, data: data})
	}
	return set.TTL
}

// choose adds the records that a choice answers with.
func (a *asker) choose(to section, owner uint16, c *zone.Choice) (ttl uint32, alive bool) {
	var room [policy.MaxValues]int
	chosen := room[:1] // the one record set of a simple choice, whatever its health
	if first, scope, ok := a.first(c); ok && a.healthy(c, first, view.Taking) {
		chosen[0] = first
		a.draw() // as if it had been chosen among all
		a.scope = max(a.scope, scope)
	} else if c.Policy != policy.Simple {
		if a.trace.On() {
			defer a.trace.In("%s %s", zone.Text(a.reply.owners[owner].wire), dns.Type(c.Type))()
		}
		var client policy.Client
		if c.Policy.ByClient() {
			client = a.client(c.Policy)
		}
		var scope int
		a.heldBack = false
		chosen, scope = c.Choose(room[:0], &client, a.draw(), policy.Health{
			Healthy: func(i int) bool { return a.healthy(c, i, view.Taking) },
			Lost:    func(i int) time.Time { return a.lost(c, i) },
			Shown:   func(i int) bool { return a.aside(func() bool { return a.healthy(c, i, view.Taking) }) },
			Resorts: resorts[:],
			Resort:  func(i, upTo int) bool { return a.resorts(c, i, view.Drained+view.Standing(upTo)) },
		}, a.trace)
		a.scope = max(a.scope, scope)
	}
	ttl, alive = ^uint32(0), true
	for _, i := range chosen {
		r := &c.Records[i]
		if r.Alias == nil {
			ttl = min(ttl, a.put(to, owner, r.Set))
			continue
		}
		before := len(a.reply.records)
		alive = a.follow(to, owner, c.Type, r.Alias)
		for _, rr := range a.reply.records[before:] {
			ttl = min(ttl, rr.ttl)
		}
	}
	return ttl, alive
}

// stands is the TTL, which is never longer than the verdicts that the answer rests on can stand.
func (a *asker) stands(ttl uint32) uint32 {
	if a.lifetime < forever {
		ttl = min(ttl, uint32(max(1, a.lifetime/time.Second)))
	}
	return ttl
}

// resorts are the standings after view.Taking, as people are told of them: what stands so is taken where there is nothing of those before.
var resorts = [...]string{view.Drained - 1: "has all of its nodes drained", view.Leaving - 1: "leaves with all of its nodes"}

// resorts says of a record set that is not healthy whether it is so for its standing alone, and that is no worse than this one.
func (a *asker) resorts(c *zone.Choice, i int, worst view.Standing) bool {
	tr := a.trace
	defer func() { a.trace = tr }()
	a.trace = nil // why it is not healthy has been told
	return a.heldBack && a.healthy(c, i, worst)
}

// healthy says whether a record set may be chosen: it has no health check or one that passes, and if it
// is an alias, its target has somebody alive of no worse standing than this one and, if that is to be evaluated, is healthy.
func (a *asker) healthy(c *zone.Choice, i int, worst view.Standing) bool {
	r, id := &c.Records[i], ""
	if c.Policy != policy.Simple {
		id = c.Candidates[i].ID
	}
	if r.HealthCheck != "" && !a.holds(a.table.check(a.scene, r.HealthCheck)) {
		if a.trace.On() {
			a.trace.Add("%s: health check %s fails", id, r.HealthCheck)
		}
		return false
	}
	if r.Alias == nil || a.able(c.Type, r.Alias, worst) {
		return true
	}
	if a.trace.On() {
		a.trace.Add("%s: %s %s is not healthy", id, r.Alias.To, r.Alias.Name)
	}
	return false
}

// aside asks something that the answer does not rest on.
func (a *asker) aside(ask func() bool) bool {
	lifetime := a.lifetime
	defer func() { a.lifetime = lifetime }()
	return ask()
}

// lost is when a record set that is not healthy was so last: before its check failed, or its alias. Zero if nobody knows, as of
// what has no node alive that is neither drained nor leaving.
func (a *asker) lost(c *zone.Choice, i int) time.Time {
	a.lastGood = true
	v, s, r := a.scene.view, a.table.spec, &c.Records[i]
	at, checked := time.Time{}, r.HealthCheck != "" && !v.CheckHealthy(s, r.HealthCheck)
	if checked {
		at = v.CheckLost(s, r.HealthCheck)
	}
	tr := a.trace
	a.trace = nil // why it is not healthy has been told
	able := r.Alias == nil || a.aside(func() bool { return a.able(c.Type, r.Alias, view.Taking) })
	a.trace = tr
	if able {
		return at
	}
	target := time.Time{}
	switch {
	case r.Alias.To == zone.ToLoadBalancer && a.table.runsIn(a.scene, r.Alias.Name) != nil:
		target = v.LoadBalancerLost(s, r.Alias.Name)
	case r.Alias.To == zone.ToAccelerator:
		target = v.AcceleratorLost(s, r.Alias.Name)
	case r.Alias.To == zone.ToRecord:
		if _, choice, _ := a.zone.Follow(r.Alias, c.Type); choice != nil {
			for i := range choice.Records {
				if t := a.lost(choice, i); t.After(target) {
					target = t
				}
			}
		}
	}
	if !checked || target.Before(at) {
		return target
	}
	return at
}

// holds says whether a verdict is good; the answer rests on it either way.
func (a *asker) holds(v verdict) bool {
	a.lifetime = min(a.lifetime, v.stands)
	return v.healthy
}

// able says whether what an alias leads to can take clients by nodes of no worse standing than this one. A target without a live node has no address to
// answer with, so it is passed over even if its health is not to be evaluated.
func (a *asker) able(t uint16, alias *zone.Alias, worst view.Standing) bool {
	switch alias.To {
	case zone.ToDistribution:
		if a.scene.leaves() && worst < view.Leaving { // one that is drained has other nodes than a load balancer: its own are as good as any
			a.heldBack = true
			if a.trace.On() {
				a.trace.Add("%s: all that is left of the nodes leaves", alias.Name)
			}
			return false
		}
		return len(a.scene.edges) > 0
	case zone.ToLoadBalancer:
		g := a.table.runsIn(a.scene, alias.Name)
		if g != nil && g.standing > worst {
			a.heldBack = true
			if a.trace.On() {
				a.tellPassed(alias.Name, g)
			}
			return false
		}
		return g != nil && (!alias.EvaluateTargetHealth || a.holds(a.table.evaluate(a.scene, alias)))
	case zone.ToRecord:
		if !alias.EvaluateTargetHealth {
			return true
		}
		_, choice, ok := a.zone.Follow(alias, t)
		if choice == nil {
			return ok
		}
		for i := range choice.Records {
			if a.healthy(choice, i, worst) {
				return true
			}
		}
		return false
	default:
		return !alias.EvaluateTargetHealth || a.holds(a.table.evaluate(a.scene, alias)) // not evaluated, it decides for itself, flow by flow
	}
}

// tellPassed tells people why a load balancer is passed over while there are other records.
func (a *asker) tellPassed(name string, g *group) {
	if g.standing == view.Leaving {
		a.trace.Add("%s: all that is left of its nodes leaves", name)
	} else {
		a.trace.Add("%s: all of its nodes are drained (%s)", name, g.drained)
	}
}

// follow adds what an alias answers with. Not alive: it leads to nodes, and none is.
func (a *asker) follow(to section, owner, t uint16, alias *zone.Alias) (alive bool) {
	if a.trace.On() {
		defer a.trace.In("%s: alias of %s %s", zone.Text(a.reply.owners[owner].wire), alias.To, alias.Name)()
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
			return true // others answer for the zone
		}
	case zone.ToAccelerator:
		if of := a.table.spec.Accelerators[alias.Name]; of != nil {
			a.records(to, owner, a.table.accelerator(of).of(t))
			return true
		}
		return false
	case zone.ToRecord:
		set, choice, ok := a.zone.Follow(alias, t)
		return !ok || a.resolve(to, owner, set, choice)
	}
	if g == nil {
		return false
	}
	a.records(to, owner, g.byFamily.of(t))
	return true
}

// records adds addresses of a set, no more than maxAddresses.
func (a *asker) records(to section, owner uint16, set zone.Set) {
	begin := len(a.reply.records)
	a.put(to, owner, set)
	records := a.reply.records[begin:]
	for i := range records {
		records[i].ttl = set.TTL
	}
	if len(records) > maxAddresses {
		a.shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
		a.reply.cut(begin + maxAddresses)
	}
}

// locate returns where the client is.
func (a *asker) locate() *spot {
	if a.spot != nil {
		return a.spot
	}
	addr, whose := a.asks()
	a.spot = a.table.atlas.find(addr)
	if a.trace.On() {
		a.tellPlace(addr, whose, &a.spot.place)
	}
	return a.spot
}

func (a *asker) tellPlace(addr netip.Addr, whose string, place *geo.Place) {
	switch {
	case !addr.IsValid():
		a.trace.Add("no client is named")
	case place.Country != "":
		a.trace.Add("%s %s is in %s (%s)", whose, addr, place.Country, place.Continent)
	case place.OK:
		a.trace.Add("%s %s is at %v", whose, addr, place.Location)
	default:
		a.trace.Add("nobody knows where %s %s is", whose, addr)
	}
}

// client is who asks, to a policy: as if it were here if nobody knows where it is.
func (a *asker) client(p policy.Policy) policy.Client {
	c := policy.Client{Network: a.query.ECS}
	if addr := a.query.Client.Unmap().WithZone(""); addr.IsValid() && (!c.Network.IsValid() || c.Network.Bits() == 0) {
		c.Network = netip.PrefixFrom(addr, addr.BitLen())
	}
	if p == policy.CIDR {
		return c
	}
	at := a.locate()
	place := &at.place
	c.Country, c.Subdivision, c.Continent = place.Country, place.Subdivision, place.Continent
	c.Location, c.PlaceBits = a.scene.here, at.bits
	if place.OK {
		c.Location = at.site
	}
	if seen := a.lookUp(); p == policy.Latency && a.scene.clients != nil {
		if a.roundTrip == nil {
			a.roundTrip = a.toRegion
		}
		c.RoundTrip, c.RoundTripBits = a.roundTrip, seen.Bits
		if seen.Known() { // what is joined is an estimate within bounds
			c.RoundTripBits = max(c.RoundTripBits, at.bits)
		}
		if a.trace.On() {
			c.Known = a.tellRegion
		}
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
