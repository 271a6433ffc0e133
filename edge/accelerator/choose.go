package accelerator

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin"
)

const (
	// closest is how many of the nearest endpoint groups failover looks into before it fails open (AWS), unless it is told to look into all.
	closest = 3
	// attemptsPerGroup bounds how often one group is tried for one flow, each time by another endpoint and node where
	// there are others; then it is the next group's turn.
	attemptsPerGroup = 2
	// maxCandidates bounds how many ways are tried for one flow; then it is dropped.
	maxCandidates = 8
)

// Flow is one TCP connection of a client, or the datagrams between it and an address.
type Flow struct {
	Client netip.AddrPort // where it comes from
	Local  netip.AddrPort // the accelerator's address and port that it reached
}

// Candidate is one way for a flow to end: a node of a region, and what it is to dial.
type Candidate struct {
	Region string
	// Resource is the endpoint as origin knows it: targetGroup/<name>, loadBalancer/<name>/<port>, or
	// endpoint/<accelerator>/<address>:<port> for one that is given by address; it says too whether its target sees the client (origin.Preserved).
	Resource string
	Node     string
	// By is a node that carries the flow on to Node, tried before the direct way if there is one; "": none does.
	By string
	// Detour says that there is no direct way.
	Detour bool
}

// Choose orders the ways for a flow, the best first; the others are for when it cannot be dialled. None: no member in
// any of the regions can carry it.
//
// The nearest endpoint group is directed all flows, and takes the share its traffic dial says; the rest is directed to
// the next, and what no dial takes goes to the last group whose dial is not 0. Where the group has no healthy endpoint
// with weight, or no node of its region can be reached, the flow fails over to the next groups among the three closest,
// whatever their dials; where none of them has one either, it fails open to the closest. In its group an endpoint
// takes flows in proportion to its weight. With the failover scope ALL every group is among the closest. All of it is
// drawn by a hash of the flow (of its addresses only, with client affinity SOURCE_IP), so a flow is sent to the same
// endpoint from every node that sees the same, and a change of weights or health moves as few flows as it can.
//
// Flows of a custom routing accelerator end where their port is mapped to, or nowhere.
//
// Nodes that are drained are no way unless no group has others, and those that leave, while they serve, unless none has any else (view.Resort).
func Choose(s *spec.Spec, v *view.View, a *spec.Accelerator, l *spec.AcceleratorListener, f Flow, tr *trace.Trace) []Candidate {
	if tr.On() {
		from := "anywhere"
		if f.Client.IsValid() {
			from = f.Client.String()
		}
		defer tr.In("accelerator %s: a flow from %s to %v, client affinity %s", a.Name, from, f.Local, l.ClientAffinity)()
	}
	key := keyOf(f, l.ClientAffinity)
	at := site{s, v, a, f, key}
	if isCustom(a) {
		return at.route(l, tr)
	}
	groups := at.order(at.open(l, tr), l, tr)

	candidates := make([]Candidate, 0, attemptsPerGroup*len(groups))
	for _, g := range groups {
		for i := range min(attemptsPerGroup, max(len(g.resources), len(g.nodes))) {
			c := Candidate{Region: g.spec.Region, Resource: g.resources[i%len(g.resources)], Node: g.nodes[i%len(g.nodes)]}
			at.detour(&c, tr)
			if !slices.ContainsFunc(candidates, func(one Candidate) bool { return one.first() == c.first() }) {
				at.path(c, tr)
				if l.Protocol == spec.TCP {
					at.lasting(c, tr)
				}
			}
			candidates = append(candidates, c)
		}
	}
	candidates = candidates[:min(len(candidates), maxCandidates)]
	if tr.On() {
		defer tr.In("tried in this order:")()
		for i, c := range candidates {
			tr.Add("%d. %s", i+1, c)
		}
	}
	return candidates
}

// open are the groups that may take flows: those with nodes, or, if no group has any else, with nodes that are drained, or else leave.
func (at site) open(l *spec.AcceleratorListener, tr *trace.Trace) []*group {
	groups, standing := view.Resort(func(s view.Standing) []*group { return at.weigh(l, s, tr) })
	if len(groups) == 0 {
		tr.Add("no region of its endpoint groups has a node with the origin role")
	} else {
		tellStanding(standing, "its endpoint groups", tr)
	}
	return groups
}

// tellStanding says why nodes have flows that are not to be given any: there are no others.
func tellStanding(s view.Standing, of string, tr *trace.Trace) {
	switch s {
	case view.Drained:
		tr.Add("all nodes of %s are drained: taken all the same", of)
	case view.Leaving:
		tr.Add("all that is left of the nodes of %s leaves: taken all the same, until their doors close", of)
	}
}

// order is that in which a flow is offered to groups: where its dial directs it, and what it fails over to.
func (at site) order(groups []*group, l *spec.AcceleratorListener, tr *trace.Trace) []*group {
	if len(groups) == 0 {
		return nil
	}
	scope := closest
	if l.FailoverScope == spec.FailoverAll {
		scope = len(groups)
	}
	return failover(groups, dial(groups, at.key, tr), scope, tr)
}

// wellServed makes a function that says of a client whether a new flow of it to an address and port would be sent to a healthy endpoint: that it does
// not fail open. It is as Choose has it, and takes the client's part alone of each.
func wellServed(s *spec.Spec, v *view.View, a *spec.Accelerator, l *spec.AcceleratorListener, local netip.AddrPort) func(client netip.AddrPort) bool {
	at := site{spec: s, view: v, accelerator: a, flow: Flow{Local: local}}
	groups := at.open(l, nil)
	return func(client netip.AddrPort) bool {
		at.key = keyOf(Flow{client, local}, l.ClientAffinity)
		order := at.order(groups, l, nil)
		return len(order) > 0 && order[0].ready
	}
}

// detour has a candidate go by way of another node where that is worth it. It makes no node that cannot be reached one that can: whether it
// lives is not known then, so its region is tried after others.
func (at site) detour(c *Candidate, tr *trace.Trace) {
	if at.view.Detour == nil {
		return
	}
	d, ok := at.view.Detour(c.Node)
	if !ok {
		return
	}
	c.By, c.Detour = d.By, d.Direct == 0
	if !tr.On() {
		return
	}
	direct := "directly not at all"
	if d.Direct > 0 {
		less := d.Direct - d.RTT
		direct = fmt.Sprintf("directly %v: %v or %.0f %% less", d.Direct.Round(100*time.Microsecond), less.Round(100*time.Microsecond), 100*float64(less)/float64(d.Direct))
	}
	tr.Add("node %s by way of %s: round trip %v, %s", c.Node, d.By, d.RTT.Round(100*time.Microsecond), direct)
}

// lasting tells which node on the way to a candidate does not know how a flow goes on when its way is lost.
func (at site) lasting(c Candidate, tr *trace.Trace) {
	if !tr.On() || c.Node == at.view.Self {
		return
	}
	for _, name := range []string{c.By, c.Node} {
		if m, ok := at.view.Member(name); name != "" && ok && !m.Lasting {
			tr.Add("node %s is of a release with which flows end when their path does", name)
		}
	}
}

// path tells how the way to a candidate's node fares, as far as a packet is lost on it.
func (at site) path(c Candidate, tr *trace.Trace) {
	p, measured := at.view.Paths[c.first()]
	if !tr.On() || !measured || p.Loss == 0 && !p.Parity && p.TCP == "" && max(p.Carried, p.CarriedTCP) < worthTelling {
		return
	}
	var lost string
	switch {
	case p.Loss == 0 && p.Parity:
		lost = "no packets lost of late, parity is sent still"
	case p.Loss == 0:
		lost = "no packets lost"
	case p.Parity:
		lost = fmt.Sprintf("%.2g %% of packets lost, made good by parity", 100*p.Loss)
	default:
		lost = fmt.Sprintf("%.2g %% of packets lost, not made good", 100*p.Loss)
	}
	tcp := ""
	switch p.TCP {
	case "":
	case "BBR":
		tcp = "; TCP with BBR for flows of many bytes"
	default:
		tcp = "; TCP " + p.TCP
	}
	tr.Add("way to node %s: round trip %v, %s%s%s", c.first(), at.view.RTT[c.first()].Round(100*time.Microsecond), lost, tcp, carried(p))
}

// worthTelling is from how many bits a second on it is told what a path has carried.
const worthTelling = 1e6

// carried tells what a path has carried, as far as it was much.
func carried(p view.Path) string {
	var by []string
	for name, rate := range map[string]float64{"QUIC": p.Carried, "TCP": p.CarriedTCP} {
		if rate >= worthTelling {
			by = append(by, fmt.Sprintf("%.3g Mbit/s by %s", rate/1e6, name))
		}
	}
	if len(by) == 0 {
		return ""
	}
	slices.Sort(by)
	return "; carried up to " + strings.Join(by, ", ") + " in the last ten minutes"
}

// first is the node to which the flow's stream goes.
func (c Candidate) first() string { return cmp.Or(c.By, c.Node) }

// String is the candidate in words.
func (c Candidate) String() string {
	text := c.Resource + " in " + c.Region + " by " + c.Node
	if c.By != "" {
		text += ", by way of " + c.By
	}
	return text
}

// group is an endpoint group as a flow meets it.
type group struct {
	spec      *spec.EndpointGroup
	rtt       time.Duration
	measured  bool // the round trip is known
	ready     bool // an endpoint with weight is healthy, and a node reachable
	resources []string
	nodes     []string
}

// site is what a choice is made by, and for which flow.
type site struct {
	spec        *spec.Spec
	view        *view.View
	accelerator *spec.Accelerator
	flow        Flow
	key         flowKey
}

// weigh looks at the groups that have nodes of a standing, the nearest first. It tells only of the first standing.
func (at site) weigh(l *spec.AcceleratorListener, s view.Standing, tr *trace.Trace) []*group {
	if s != view.Taking {
		tr = nil
	}
	groups := make([]*group, len(l.EndpointGroups))
	for i := range l.EndpointGroups {
		g := &group{spec: &l.EndpointGroups[i]}
		g.rtt, g.measured = at.view.RoundTrip(at.spec, g.spec.Region, view.Origin)
		groups[i] = g
	}
	slices.SortStableFunc(groups, func(a, b *group) int {
		if a.measured != b.measured {
			if a.measured {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.rtt, b.rtt), cmp.Compare(a.spec.Region, b.spec.Region))
	})
	if tr.On() {
		defer tr.In("endpoint groups, nearest first:")()
	}
	return slices.DeleteFunc(groups, func(g *group) bool { return !g.look(at, s, tr) })
}

// look fills in the nodes and the endpoints that a flow would be offered to. It is false where there are none.
func (g *group) look(at site, s view.Standing, tr *trace.Trace) bool {
	if tr.On() {
		rtt := "round trip unknown"
		if g.measured {
			rtt = "round trip " + g.rtt.Round(100*time.Microsecond).String()
		}
		defer tr.In("%s, %s, traffic dial %v %%", g.spec.Region, rtt, *g.spec.TrafficDial)()
	}
	if tr.On() {
		for _, m := range at.view.Having(g.spec.Region, view.Origin) {
			switch {
			case m.Leaving:
				tr.Add("node %s leaves: passed over", m.Name)
			case !m.Takes(view.Origin):
				tr.Add("node %s is drained (%s): passed over", m.Name, m.Drained)
			}
		}
	}
	canReach := g.rankNodes(at, s, tr)
	canTake := g.rankEndpoints(at, tr)
	g.ready = canReach && canTake
	switch {
	case len(g.resources) == 0:
		tr.Add("there are no endpoints: passed over")
		return false
	case len(g.nodes) == 0:
		tr.Add("no node there takes flows: passed over")
		return false
	}
	return true
}

// ranked is a node or an endpoint as the flow draws it: the lowest class is best, and in a class the highest draw.
type ranked struct {
	name  string
	class int
	draw  float64
}

func rank(all []ranked) {
	slices.SortFunc(all, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(b.draw, a.draw), cmp.Compare(a.name, b.name))
	})
}

// The classes of nodes: this one costs no hop, and one that cannot be reached from here may be so again.
const (
	self = iota
	reachable
	unreachable
)

// rankNodes orders the nodes of the region that have a standing, and says whether any can be reached.
func (g *group) rankNodes(at site, s view.Standing, tr *trace.Trace) bool {
	var few [8]ranked // more are made room for
	nodes := few[:0]
	for m := range at.view.Of(g.spec.Region) {
		if !m.Stands(view.Origin, s) {
			continue
		}
		one := ranked{name: m.Name, class: reachable, draw: at.key.draw("node", m.Name)}
		switch {
		case m.Name == at.view.Self:
			one.class = self
		case at.view.Unreachable[m.Name]:
			one.class = unreachable
			if tr.On() {
				tr.Add("node %s cannot be reached from here", m.Name)
			}
		}
		nodes = append(nodes, one)
	}
	if len(nodes) == 0 {
		return false
	}
	rank(nodes)
	g.nodes = make([]string, len(nodes))
	for i, n := range nodes {
		g.nodes[i] = n.name
	}
	return nodes[0].class != unreachable
}

// The classes of endpoints. Only the best class that a group has is offered flows: the sick ones where it is used because
// failover fails open, and those without weight where it has no others.
const (
	healthy = iota
	sick
	weightless
)

// rankEndpoints orders the endpoints by weighted rendezvous: each draws w / −ln u, the highest draw takes the flow, which
// is a share of w/Σw. It says whether any is healthy and has weight.
func (g *group) rankEndpoints(at site, tr *trace.Trace) bool {
	var few [8]ranked // more are made room for
	endpoints := few[:0]
	for _, e := range g.spec.Endpoints {
		resource, fit := g.judge(at, e)
		class, weight := healthy, float64(*e.Weight)
		switch {
		case weight == 0:
			class, weight = weightless, 1
		case !fit:
			class = sick
		}
		endpoints = append(endpoints, ranked{resource, class, -weight / math.Log(at.key.draw("endpoint", origin.Unpreserved(resource)))})
		if tr.On() {
			state, why := at.view.EndpointState(at.spec, at.accelerator, g.spec, e, g.spec.EndpointPort(at.flow.Local.Port()))
			if why != "" {
				why = ": " + why
			}
			tr.Add("%s, weight %d, %s%s", resource, *e.Weight, state, why)
		}
	}
	rank(endpoints)
	g.resources = make([]string, 0, len(endpoints))
	for _, e := range endpoints {
		if e.class == endpoints[0].class {
			g.resources = append(g.resources, e.name)
		}
	}
	return len(endpoints) > 0 && endpoints[0].class == healthy
}

// judge names an endpoint and says whether it can take the flow.
func (g *group) judge(at site, e spec.Endpoint) (resource string, healthy bool) {
	port := g.spec.EndpointPort(at.flow.Local.Port())
	switch {
	case e.Subnet.IsValid():
		resource = e.Subnet.String()
	case e.Address.IsValid():
		resource = origin.Preserved(endpointResource(at.accelerator.Name, netip.AddrPortFrom(e.Address, port)), e.ClientIPPreservation)
	case e.LoadBalancer == "":
		resource = origin.Preserved("targetGroup/"+e.TargetGroup, e.ClientIPPreservation)
	default:
		resource = "loadBalancer/" + e.LoadBalancer + "/" + strconv.Itoa(int(port))
		lb := at.spec.LoadBalancers[e.LoadBalancer]
		if lb == nil || !lb.Has(port) {
			return resource, false
		}
	}
	return resource, at.view.GroupEndpointHealthy(at.spec, at.accelerator.Name, g.spec, e)
}

// dial returns the index of the group that the traffic dials send the flow to. Health does not enter: a flow that a dial
// sends on is not the group's to fail over.
func dial(groups []*group, key flowKey, tr *trace.Trace) int {
	last, open := 0, false
	for i, g := range groups {
		percent := *g.spec.TrafficDial
		drawn := 100 * key.draw("dial", g.spec.Region)
		if drawn < percent {
			if tr.On() {
				tr.Add("%s: the traffic dial takes %v %%, the flow draws %.1f: directed here", g.spec.Region, percent, drawn)
			}
			return i
		}
		if tr.On() {
			tr.Add("%s: the traffic dial takes %v %%, the flow draws %.1f: sent on", g.spec.Region, percent, drawn)
		}
		if percent > 0 {
			last, open = i, true
		}
	}
	if tr.On() {
		why := "no dial takes it"
		if !open {
			why = "all dials are at 0, so none counts"
		}
		tr.Add("%s: directed to %s", why, groups[last].spec.Region)
	}
	return last
}

// failover returns the groups in the order in which they are tried, when a flow was directed to one of them. scope is how many of the
// nearest may take it before it fails open.
func failover(groups []*group, directed, scope int, tr *trace.Trace) []*group {
	order := make([]*group, 0, len(groups))
	add := func(g *group) {
		if !slices.Contains(order, g) {
			order = append(order, g)
		}
	}
	near, next := groups[:min(scope, len(groups))], directed+1
	if directed >= len(near) {
		next = 0
	}
	if groups[directed].ready {
		add(groups[directed])
	} else if tr.On() {
		tr.Add("%s has no healthy endpoint with weight that can be reached: failing over, whatever the dials", groups[directed].spec.Region)
	}
	for i := range near { // those behind it first, and round
		if g := near[(next+i)%len(near)]; g.ready {
			add(g)
		}
	}
	if tr.On() {
		switch {
		case len(order) == 0:
			tr.Add("none of the %d closest groups has one: failing open to %s", len(near), groups[0].spec.Region)
		case order[0] != groups[directed]:
			tr.Add("%s has one", order[0].spec.Region)
		}
	}
	if len(order) == 0 {
		add(groups[0])
	}
	for _, g := range groups { // then whoever may be able
		if g.ready {
			add(g)
		}
	}
	for _, g := range groups {
		add(g)
	}
	return order
}

// flowKey is a hash of what makes flows the same.
type flowKey uint64

// FNV-1a (RFC 9923), which is written out because every node of every release must draw the same.
const fnvOffset, fnvPrime = 14695981039346656037, 1099511628211

func keyOf(f Flow, affinity string) flowKey {
	key := flowKey(fnvOffset)
	client, local := f.Client.Addr().As16(), f.Local.Addr().As16()
	key = key.add(client[:]).add(local[:])
	if affinity != spec.AffinitySourceIP {
		c, l := f.Client.Port(), f.Local.Port()
		key = key.add([]byte{byte(c >> 8), byte(c), byte(l >> 8), byte(l)})
	}
	return key
}

func (k flowKey) add(data []byte) flowKey {
	for _, b := range data {
		k = (k ^ flowKey(b)) * fnvPrime
	}
	return k
}

// draw is a number between 0 and 1, neither included, which is the flow's own for each thing of each kind: independent of all
// its others.
func (k flowKey) draw(kind, name string) float64 {
	h := k
	for i := range len(kind) {
		h = (h ^ flowKey(kind[i])) * fnvPrime
	}
	h *= fnvPrime
	for i := range len(name) {
		h = (h ^ flowKey(name[i])) * fnvPrime
	}
	// FNV leaves the last bytes in the low bits; this spreads them (the finalizer of MurmurHash3).
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	return (float64(h>>11) + 0.5) / (1 << 53)
}
