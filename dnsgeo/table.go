// Package dnsgeo is the authoritative name service: it answers for the hosted zones of the spec, by the
// routing policies of Route 53, with what is alive and near to the client. It is no resolver, and signs no
// zones.
//
// Answer decides, purely, by a compiled spec, a view and a query; Server is the thin part with the sockets;
// Explain tells why. An answer needs no other node, no lock and no disk, so names go on being answered when
// nothing else of the cluster does: by the last spec applied and by what this node still sees. If nothing is
// healthy the answer is as if everything were; if an alias leads to nobody alive it is SERVFAIL, so that
// resolvers ask another name server or serve what they had, instead of keeping an empty answer.
package dnsgeo

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/clients"
	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/kept"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo/geo"
	"github.com/perigee-net/perigee/dnsgeo/tsig"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

// Table is a spec compiled for answering. It is immutable and safe for use by many.
type Table struct {
	spec  *spec.Spec
	zones *zone.Table
	base  *geo.DB // without what the spec knows better
	atlas *atlas
	keys  map[string]*tsig.Key // by their names in wire form and small letters

	past   *past                 // nil: nothing is known
	last   atomic.Pointer[scene] // of the view that was used last
	static sync.Map              // *spec.Accelerator → *byFamily, of those that were asked for
}

// Compile makes the table of a spec, or returns all its faults. Places may be nil: then every client is nowhere. Before may
// be the table of the spec before, which what did not change is taken from, or nil.
func Compile(s *spec.Spec, places *geo.DB, before *Table) (*Table, error) {
	var had *zone.Table
	if before != nil {
		had = before.zones
	}
	zones, err := zone.Compile(s, had)
	if err != nil {
		return nil, fmt.Errorf("compile zones of revision %d: %w", s.Revision, err)
	}
	t := &Table{spec: s, zones: zones, base: places, keys: keysOf(s)}
	if before != nil && before.base == places && len(kept.Changes(before.spec.ClientPlaces, s.ClientPlaces)) == 0 {
		t.atlas = before.atlas
		return t, nil
	}
	known, err := overridden(places, s)
	if err != nil {
		return nil, fmt.Errorf("compile places of revision %d: %w", s.Revision, err)
	}
	t.atlas = &atlas{places: known}
	return t, nil
}

// overridden is a database of places with what the spec knows better. Of two that know the same block the first by name holds.
func overridden(places *geo.DB, s *spec.Spec) (*geo.DB, error) {
	if len(s.ClientPlaces) == 0 {
		return places, nil
	}
	var all []geo.Override
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(s.ClientPlaces))) {
		p := s.ClientPlaces[name]
		for _, block := range p.CidrList {
			all = append(all, geo.Override{Prefix: block, Country: p.Country, Subdivision: p.Subdivision, Location: p.Location})
		}
	}
	return places.With(all...)
}

// scene is what a view means to a table: found once a view, not once a query.
type scene struct {
	view *view.View
	// here is where the node of the view stands, nil if nobody knows, and self its POP.
	here *spec.Site
	self popKey

	clients   *clients.Map      // how far clients are
	sites     []*spec.Site      // where its POPs are, by number; nil: nobody knows
	edges     []*group          // of each POP, the members that take viewers; where no POP has such, those that view.Resort comes to
	passed    []*group          // POPs without such, all of whose members are drained or leave
	servers   map[popKey]*group // of each POP, the members that answer names, as edges
	origins   map[popKey]*group // of each region, the members that run its load balancers; where all are drained or leave, those
	evaluated sync.Map          // *zone.Alias → verdict, of the load balancers and accelerators that were asked for
	checks    sync.Map          // *spec.HealthCheck → verdict, of those that were asked for

	nameServers *zone.Servers // of zones that name none: at POPs that are not known to have no node that answers names
}

// popKey names a POP, or with no pop a region.
type popKey struct{ region, pop string }

// group is live members at one place and their addresses.
type group struct {
	popKey
	byFamily                // of addresses
	site      *spec.Site    // nil if nobody knows where it is
	number    int           // in the map of clients; −1: it is not in it
	reachable bool          // this node's own backbone reaches one of them
	addresses []netip.Addr  // of those it reaches; if it reaches none, of all
	others    []netip.Addr  // of those it does not reach
	left      []netip.Addr  // of those that are drained
	leaving   []netip.Addr  // of those that leave
	standing  view.Standing // the first that any has: that of the addresses
	drained   string        // what drains those, if that is their standing
}

// why says why the group is passed over while there are others.
func (g *group) why() string {
	if g.standing == view.Leaving {
		return "leaves"
	}
	return "drained (" + g.drained + ")"
}

// verdict is whether a thing is healthy, and how long that can be told to others.
type verdict struct {
	healthy bool
	stands  time.Duration
}

// runsIn are the members that run a load balancer; nil: none does.
func (t *Table) runsIn(s *scene, name string) *group {
	if lb := t.spec.LoadBalancers[name]; lb != nil {
		return s.origins[popKey{region: lb.Region}]
	}
	return nil
}

// sceneOf returns the scene of a view. A View never changes, so its pointer is its name.
func (t *Table) sceneOf(v *view.View) *scene {
	if s := t.last.Load(); s != nil && s.view == v {
		return s
	}
	s := t.survey(v)
	t.last.Store(s)
	return s
}

func (t *Table) survey(v *view.View) *scene {
	s := &scene{view: v, servers: map[popKey]*group{}, origins: map[popKey]*group{}}
	if v == nil {
		v = new(view.View)
	}
	s.clients = v.Clients
	for i := range v.Clients.POPs() {
		of := v.Clients.POP(i)
		s.sites = append(s.sites, t.site(popKey{of.Region, of.Name}))
	}
	if self, ok := v.Member(v.Self); ok {
		s.self = popKey{self.Region, self.POP}
		s.here = t.site(s.self)
	}
	edges, silent := map[popKey]*group{}, map[popKey]bool{}
	for _, m := range v.Members {
		key := popKey{m.Region, m.POP}
		mute, known := silent[key]
		silent[key] = (mute || !known) && !m.Has(view.DNS)
		t.join(edges, popKey{m.Region, m.POP}, m, view.Edge, v)
		t.join(s.servers, popKey{m.Region, m.POP}, m, view.DNS, v)
		t.join(s.origins, popKey{region: m.Region}, m, view.Origin, v)
	}
	for _, groups := range []map[popKey]*group{edges, s.servers, s.origins} {
		for _, g := range groups {
			g.settle()
		}
	}
	s.nameServers = t.zones.Servers(func(region, pop string) bool { return !silent[popKey{region, pop}] })
	// Where a POP is drained or leaves others take its viewers, and others answer for the zone, if there are any: an answer that leads to who
	// leaves is better than none. What a load balancer carries may be nowhere else.
	_, standing := resort(slices.Collect(maps.Values(s.servers)))
	maps.DeleteFunc(s.servers, func(_ popKey, g *group) bool { return g.standing != standing })
	all := slices.SortedFunc(maps.Values(edges), func(a, b *group) int {
		return cmp.Or(cmp.Compare(a.region, b.region), cmp.Compare(a.pop, b.pop))
	})
	s.edges, standing = resort(all)
	s.passed = slices.DeleteFunc(all, func(g *group) bool { return g.standing == standing })
	return s
}

// leaves says whether all that can serve distributions leaves: other records are better then, and where there are none it is led to all the same.
func (s *scene) leaves() bool { return len(s.edges) > 0 && s.edges[0].standing == view.Leaving }

// resort are those of the first standing that any has.
func resort(all []*group) ([]*group, view.Standing) {
	return view.Resort(func(at view.Standing) (found []*group) {
		for _, g := range all {
			if g.standing == at {
				found = append(found, g)
			}
		}
		return found
	})
}

// join puts a member into the group of a key, if it has the role and an address.
func (t *Table) join(groups map[popKey]*group, key popKey, m view.Member, role view.Role, v *view.View) {
	if !m.Has(role) || len(m.Public) == 0 {
		return
	}
	g := groups[key]
	if g == nil {
		g = &group{popKey: key, site: t.site(key), number: v.Clients.Index(key.region, key.pop)}
		groups[key] = g
	}
	var to *[]netip.Addr
	switch standing := m.Standing(role); {
	case standing == view.Leaving:
		to = &g.leaving
	case standing == view.Drained:
		to, g.drained = &g.left, m.Drained
	case v.Unreachable[m.Name]:
		to = &g.others
	default:
		to, g.reachable = &g.addresses, true
	}
	for _, a := range m.Public {
		*to = append(*to, a.Unmap())
	}
}

// site is where a POP is; nil if nobody knows.
func (t *Table) site(pop popKey) *spec.Site {
	if l, ok := t.spec.Place(pop.region, pop.pop); ok {
		return l.Site()
	}
	return nil
}

// settle falls back on the members that this node cannot reach, if it reaches none: it may be the one cut off; on those that are drained, if
// there are no others; and at last on those that leave.
func (g *group) settle() {
	switch {
	case g.reachable:
	case len(g.others) > 0:
		g.addresses = g.others
	case len(g.left) > 0:
		g.addresses, g.standing = g.left, view.Drained
	default:
		g.addresses, g.standing = g.leaving, view.Leaving
	}
	g.byFamily = pack(g.addresses)
}

// byFamily are addresses as they are sent.
type byFamily struct{ a, aaaa zone.Set }

func pack(addresses []netip.Addr) byFamily {
	ttl := uint32(AliasTTL / time.Second)
	p := byFamily{zone.Set{Type: dns.TypeA, TTL: ttl}, zone.Set{Type: dns.TypeAAAA, TTL: ttl}}
	for _, addr := range addresses {
		if addr.Is4() {
			p.a = p.a.With(addr.AsSlice())
		} else {
			p.aaaa = p.aaaa.With(addr.AsSlice())
		}
	}
	return p
}

// of are those of the type's family.
func (p *byFamily) of(t uint16) zone.Set {
	switch t {
	case dns.TypeA:
		return p.a
	case dns.TypeAAAA:
		return p.aaaa
	}
	return zone.Set{}
}

// accelerator are the addresses of one, which are packed once.
func (t *Table) accelerator(of *spec.Accelerator) *byFamily {
	if found, ok := t.static.Load(of); ok {
		return found.(*byFamily)
	}
	p := pack(of.IPAddresses)
	t.static.Store(of, &p)
	return &p
}

// forever is how long a verdict stands that nobody measured.
const forever = time.Duration(math.MaxInt64)

// check is the verdict of a health check, which is found once a view.
func (t *Table) check(s *scene, name string) verdict {
	check := t.spec.HealthChecks[name]
	if found, ok := s.checks.Load(check); ok {
		return found.(verdict)
	}
	of := verdict{s.view.CheckHealthy(t.spec, name), forever}
	if d, ok := s.view.CheckStands(t.spec, name); ok {
		of.stands = d
	}
	s.checks.Store(check, of)
	return of
}

// evaluate is the verdict on the load balancer or the accelerator that an alias leads to. It takes as many steps as that has targets, so
// it is found once a view.
func (t *Table) evaluate(s *scene, alias *zone.Alias) verdict {
	if found, ok := s.evaluated.Load(alias); ok {
		return found.(verdict)
	}
	found := t.judge(s.view, alias)
	s.evaluated.Store(alias, found)
	return found
}

// judge says whether what an alias leads to is healthy or not, and how long that stands: by what stands of each of its targets.
func (t *Table) judge(v *view.View, alias *zone.Alias) verdict {
	of, checks := verdict{stands: forever}, view.LoadBalancerChecks(t.spec, alias.Name)
	if alias.To == zone.ToAccelerator {
		of.healthy, checks = v.AcceleratorHealthy(t.spec, alias.Name), view.AcceleratorChecks(t.spec, alias.Name)
	} else {
		of.healthy = v.LoadBalancerHealthy(t.spec, alias.Name)
	}
	for key := range checks {
		of.stands = min(of.stands, stands(v, key))
	}
	return of
}

func stands(v *view.View, key health.Key) time.Duration {
	if v == nil {
		return forever
	}
	if verdict, ok := v.Health.Lookup(key); ok && verdict.Stands > 0 {
		return verdict.Stands
	}
	return forever
}
