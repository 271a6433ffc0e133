package accelerator

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
)

// network is what a test says: endpoint groups as seen from the node "self", which carries flows but no targets.
type network struct {
	groups   []testGroup
	affinity string        // "": NONE
	scope    string        // of failover; "": CLOSEST
	idle     time.Duration // 0: 340 s
	protocol string        // "": TCP
	tells    bool          // its nodes say at which target a flow ends
}

type testGroup struct {
	region     string
	rtt        time.Duration // negative: unknown
	dial       float64
	terminates bool     // its flows, when their endpoint turns unhealthy
	nodes      []string // as "name", "name!" for one that cannot be reached from here, "name-" drained, "name." leaving
	endpoints  []testEndpoint
}

type testEndpoint struct {
	name   string // of a target group, "lb:name" of a load balancer that listens on port 443, or an IP address
	weight int
	sick   bool
}

// up is a group with one node and one healthy endpoint, down one without a healthy endpoint.
func up(region string, rtt int, dial float64) testGroup {
	return testGroup{
		region: region, rtt: time.Duration(rtt) * time.Millisecond, dial: dial,
		nodes: []string{region + "1"}, endpoints: []testEndpoint{{name: region, weight: 128}},
	}
}

func down(region string, rtt int, dial float64) testGroup {
	g := up(region, rtt, dial)
	g.endpoints[0].sick = true
	return g
}

// Whether its target sees the client changes what an endpoint is asked for, and not which flows it gets.
func TestAnEndpointWhoseTargetSeesTheClientIsAskedSo(t *testing.T) {
	n := only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false}, testEndpoint{"10.1.0.1", 128, false})
	s, v, a := n.build()
	l := &a.Listeners[0]
	for i := range 50 {
		f := Flow{Client: client(i), Local: local}
		for j := range l.EndpointGroups[0].Endpoints {
			l.EndpointGroups[0].Endpoints[j].ClientIPPreservation = false
		}
		before := Choose(s, v, a, l, f, nil)[0].Resource
		for j := range l.EndpointGroups[0].Endpoints {
			l.EndpointGroups[0].Endpoints[j].ClientIPPreservation = true
		}
		if got := Choose(s, v, a, l, f, nil)[0].Resource; got != before+"/clientIP" {
			t.Errorf("%s, before %s", got, before)
		}
	}
}

var local = netip.MustParseAddrPort("198.51.100.1:443")

// build makes what Choose takes.
func (n network) build() (*spec.Spec, *view.View, *spec.Accelerator) {
	enabled := true
	l := spec.AcceleratorListener{
		Protocol: cmp.Or(n.protocol, spec.TCP), PortRanges: []spec.PortRange{{FromPort: local.Port()}}, ClientAffinity: cmp.Or(n.affinity, spec.AffinityNone),
		IdleTimeout: new(spec.Duration(cmp.Or(n.idle, 340*time.Second))), FailoverScope: cmp.Or(n.scope, spec.FailoverClosest),
	}
	s := &spec.Spec{
		Revision:      1,
		Regions:       map[string]*spec.Region{"home": {Name: "home"}},
		TargetGroups:  map[string]*spec.TargetGroup{},
		LoadBalancers: map[string]*spec.LoadBalancer{},
	}
	v := &view.View{
		Self: "self", Members: []view.Member{{Name: "self", Region: "home", Roles: []view.Role{view.Edge}}},
		RTT: map[string]time.Duration{}, Unreachable: map[string]bool{},
	}
	verdicts := map[health.Key]health.Verdict{}
	for _, g := range n.groups {
		s.Regions[g.region] = &spec.Region{Name: g.region}
		for _, name := range g.nodes {
			node, isDown := strings.CutSuffix(name, "!")
			node, drained := strings.CutSuffix(node, "-")
			node, leaving := strings.CutSuffix(node, ".")
			if node == "self" {
				v.Members = v.Members[1:]
			}
			m := view.Member{Name: node, Region: g.region, Roles: []view.Role{view.Origin}, Leaving: leaving, Tells: n.tells}
			if drained {
				m.Drained = "node " + node
			}
			v.Members = append(v.Members, m)
			if g.rtt >= 0 {
				v.RTT[node] = g.rtt
			}
			if isDown {
				v.Unreachable[node] = true
			}
		}
		dial := g.dial
		group := spec.EndpointGroup{Region: g.region, TrafficDial: &dial, HealthCheckPort: 80, UnhealthyConnectionTermination: g.terminates}
		for _, e := range g.endpoints {
			weight := e.weight
			endpoint := spec.Endpoint{Weight: &weight}
			if addr, err := netip.ParseAddr(e.name); err == nil {
				endpoint.Address = addr
				verdicts[health.EndpointKey("game", g.region, netip.AddrPortFrom(addr, 80))] = health.Verdict{Healthy: !e.sick}
				group.Endpoints = append(group.Endpoints, endpoint)
				continue
			}
			name, isBalancer := strings.CutPrefix(e.name, "lb:")
			target := spec.Target{Address: netip.AddrFrom4([4]byte{10, 0, 0, 1}), Port: 80}
			s.TargetGroups[name] = &spec.TargetGroup{Name: name, Region: g.region, Protocol: l.Protocol, Targets: []spec.Target{target}}
			if isBalancer {
				endpoint.LoadBalancer = name
				s.LoadBalancers[name] = &spec.LoadBalancer{
					Name: name, Region: g.region, Type: spec.NetworkLoadBalancer,
					Listeners: []spec.Listener{{Protocol: spec.TCP, Port: 443, Default: spec.Action{Forward: name}}},
				}
			} else {
				endpoint.TargetGroup = name
			}
			verdicts[health.TargetKey(name, target.AddrPort())] = health.Verdict{Healthy: !e.sick}
			group.Endpoints = append(group.Endpoints, endpoint)
		}
		l.EndpointGroups = append(l.EndpointGroups, group)
	}
	v.Health = health.NewTable(verdicts)
	a := &spec.Accelerator{
		Name: "game", Enabled: &enabled, IPAddresses: []netip.Addr{local.Addr()}, Listeners: []spec.AcceleratorListener{l},
	}
	s.Accelerators = map[string]*spec.Accelerator{a.Name: a}
	return s, v, a
}

// choose is Choose for a flow of a client.
func (n network) choose(client netip.AddrPort) []Candidate {
	s, v, a := n.build()
	return Choose(s, v, a, &a.Listeners[0], Flow{Client: client, Local: local}, nil)
}

// manyFlows are enough to see a share to within 2 %, four standard deviations of a fair coin.
const manyFlows = 10_000

func client(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i / 200), byte(i % 200)}), uint16(1024+i*7))
}

// shares is which share of some flows goes first to each thing, in percent.
func (n network) shares(flows int, of func(Candidate) string) map[string]float64 {
	s, v, a := n.build()
	got := map[string]float64{}
	for i := range flows {
		c := Choose(s, v, a, &a.Listeners[0], Flow{Client: client(i), Local: local}, nil)
		got[of(c[0])] += 100 / float64(flows)
	}
	return got
}

func region(c Candidate) string   { return c.Region }
func resource(c Candidate) string { return c.Resource }
func node(c Candidate) string     { return c.Node }

// near compares shares in percent.
func near(t *testing.T, got, want map[string]float64, within float64) {
	t.Helper()
	for name := range got {
		if want[name] == 0 {
			t.Errorf("%s has %.1f %% of the flows, want none", name, got[name])
		}
	}
	for name, share := range want {
		if math.Abs(got[name]-share) > within {
			t.Errorf("%s has %.1f %% of the flows, want %.1f", name, got[name], share)
		}
	}
}

func TestTheNearestGroupIsFirst(t *testing.T) {
	unknown := up("fra", 0, 100)
	unknown.rtt = -1
	also := up("gru", 0, 100)
	also.rtt = -1
	for _, c := range []struct {
		name   string
		groups []testGroup
		want   []string
	}{
		{"by round trip", []testGroup{up("iad", 90, 100), up("icn", 5, 100), up("nrt", 30, 100)}, []string{"icn", "nrt", "iad"}},
		{"equals by name", []testGroup{up("nrt", 5, 100), up("icn", 5, 100)}, []string{"icn", "nrt"}},
		{"unknown last", []testGroup{also, unknown, up("iad", 250, 100)}, []string{"iad", "fra", "gru"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, candidate := range (network{groups: c.groups}).choose(client(1)) {
				got = append(got, candidate.Region)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestTheTrafficDialTakesItsShareOfWhatIsDirectedToTheGroup(t *testing.T) {
	for _, c := range []struct {
		name   string
		groups []testGroup
		want   map[string]float64
	}{
		{"100 takes all", []testGroup{up("icn", 5, 100), up("nrt", 30, 100)}, map[string]float64{"icn": 100}},
		{"0 takes nothing", []testGroup{up("icn", 5, 0), up("nrt", 30, 100)}, map[string]float64{"nrt": 100}},
		{"the rest spills to the next", []testGroup{up("icn", 5, 50), up("nrt", 30, 100)}, map[string]float64{"icn": 50, "nrt": 50}},
		{"a little", []testGroup{up("icn", 5, 2.5), up("nrt", 30, 100)}, map[string]float64{"icn": 2.5, "nrt": 97.5}},
		// The developer guide's example: 100 requests, two groups of 50 %, and the rest of each goes to the other.
		{"the last takes the rest", []testGroup{up("icn", 5, 50), up("nrt", 30, 50)}, map[string]float64{"icn": 50, "nrt": 50}},
		{"each next dial is its own", []testGroup{up("icn", 5, 50), up("nrt", 30, 50), up("iad", 90, 100)}, map[string]float64{"icn": 50, "nrt": 25, "iad": 25}},
		{"a group at 0 takes no rest", []testGroup{up("icn", 5, 50), up("nrt", 30, 0)}, map[string]float64{"icn": 100}},
		{"all at 0 is the nearest", []testGroup{up("icn", 5, 0), up("nrt", 30, 0)}, map[string]float64{"icn": 100}},
		{"beyond the three closest", []testGroup{up("icn", 5, 0), up("nrt", 30, 0), up("sin", 60, 0), up("iad", 90, 100)}, map[string]float64{"iad": 100}},
	} {
		t.Run(c.name, func(t *testing.T) { near(t, network{groups: c.groups}.shares(manyFlows, region), c.want, 2) })
	}
}

func TestFailoverIgnoresTheDials(t *testing.T) {
	unreachable := up("icn", 5, 100)
	unreachable.nodes = []string{"icn1!", "icn2!"}
	empty := up("icn", 5, 100)
	empty.nodes = nil
	weightless := up("icn", 5, 100)
	weightless.endpoints[0].weight = 0
	for _, c := range []struct {
		name   string
		groups []testGroup
		want   map[string]float64
	}{
		{"to the next", []testGroup{down("icn", 5, 100), up("nrt", 30, 100), up("iad", 90, 100)}, map[string]float64{"nrt": 100}},
		{"to a group whose dial is 0", []testGroup{down("icn", 5, 100), up("nrt", 30, 0), up("iad", 90, 100)}, map[string]float64{"nrt": 100}},
		{"past the next that is down too", []testGroup{down("icn", 5, 100), down("nrt", 30, 100), up("iad", 90, 10)}, map[string]float64{"iad": 100}},
		{"only healthy endpoints without weight", []testGroup{weightless, up("nrt", 30, 0)}, map[string]float64{"nrt": 100}},
		{"no node can be reached", []testGroup{unreachable, up("nrt", 30, 0)}, map[string]float64{"nrt": 100}},
		{"no node at all", []testGroup{empty, up("nrt", 30, 0)}, map[string]float64{"nrt": 100}},
		// What the dial sent on is not the first group's to fail over, and obeys the second's dial.
		{"half is dialled on, half fails over", []testGroup{down("icn", 5, 50), up("nrt", 30, 0), up("iad", 90, 100)}, map[string]float64{"nrt": 50, "iad": 50}},
		{"from the group the dial led to, onward", []testGroup{up("icn", 5, 0), down("nrt", 30, 100), up("iad", 90, 0)}, map[string]float64{"iad": 100}},
		{"and round to the one the dial passed over", []testGroup{up("icn", 5, 0), down("nrt", 30, 100)}, map[string]float64{"icn": 100}},
		{"from beyond the three closest to the nearest", []testGroup{up("icn", 5, 0), up("nrt", 30, 0), up("sin", 60, 0), down("iad", 90, 100)}, map[string]float64{"icn": 100}},
		{"a fourth group is not looked into: fail open", []testGroup{down("icn", 5, 100), down("nrt", 30, 100), down("sin", 60, 100), up("iad", 90, 100)}, map[string]float64{"icn": 100}},
		{"nothing healthy anywhere: fail open", []testGroup{down("icn", 5, 0), down("nrt", 30, 100)}, map[string]float64{"icn": 100}},
	} {
		t.Run(c.name, func(t *testing.T) { near(t, network{groups: c.groups}.shares(500, region), c.want, 9) })
	}
}

func TestFailoverLooksIntoEveryGroupWhereItIsToldTo(t *testing.T) {
	for _, c := range []struct {
		name   string
		groups []testGroup
		want   map[string]float64
	}{
		{"a fourth group", []testGroup{down("icn", 5, 100), down("nrt", 30, 100), down("sin", 60, 100), up("iad", 90, 0), up("fra", 99, 100)}, map[string]float64{"iad": 100}},
		{"the nearest that can, whatever is farther", []testGroup{down("icn", 5, 100), up("nrt", 30, 0), up("sin", 60, 100), up("iad", 90, 100)}, map[string]float64{"nrt": 100}},
		{"on from the group that the dial led to", []testGroup{up("icn", 5, 0), up("nrt", 30, 0), up("sin", 60, 0), down("iad", 90, 100), up("fra", 99, 0)}, map[string]float64{"fra": 100}},
		{"nothing healthy anywhere: fail open", []testGroup{down("icn", 5, 0), down("nrt", 30, 0), down("sin", 60, 0), down("iad", 90, 100)}, map[string]float64{"icn": 100}},
	} {
		t.Run(c.name, func(t *testing.T) {
			near(t, network{groups: c.groups, scope: spec.FailoverAll}.shares(500, region), c.want, 9)
		})
	}
}

// only is one endpoint group with these endpoints.
func only(endpoints ...testEndpoint) network {
	g := up("icn", 5, 100)
	g.endpoints = endpoints
	return network{groups: []testGroup{g}}
}

func TestEndpointsShareByWeight(t *testing.T) {
	for _, c := range []struct {
		name string
		net  network
		want map[string]float64
	}{
		{"equal", only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false}), map[string]float64{"targetGroup/a": 50, "targetGroup/b": 50}},
		{"one in four", only(testEndpoint{"a", 64, false}, testEndpoint{"b", 192, false}), map[string]float64{"targetGroup/a": 25, "targetGroup/b": 75}},
		{"of three", only(testEndpoint{"a", 1, false}, testEndpoint{"b", 2, false}, testEndpoint{"c", 2, false}), map[string]float64{"targetGroup/a": 20, "targetGroup/b": 40, "targetGroup/c": 40}},
		{"0 takes nothing", only(testEndpoint{"a", 0, false}, testEndpoint{"b", 1, false}), map[string]float64{"targetGroup/b": 100}},
		{"the sick take nothing", only(testEndpoint{"a", 255, true}, testEndpoint{"b", 1, false}), map[string]float64{"targetGroup/b": 100}},
		{"all sick share by weight", only(testEndpoint{"a", 64, true}, testEndpoint{"b", 192, true}, testEndpoint{"c", 0, true}), map[string]float64{"targetGroup/a": 25, "targetGroup/b": 75}},
		{"the sick before the healthy without weight", only(testEndpoint{"a", 0, false}, testEndpoint{"b", 1, true}), map[string]float64{"targetGroup/b": 100}},
		{"all without weight share alike", only(testEndpoint{"a", 0, true}, testEndpoint{"b", 0, true}), map[string]float64{"targetGroup/a": 50, "targetGroup/b": 50}},
		{"load balancers too", only(testEndpoint{"lb:a", 128, false}, testEndpoint{"b", 128, false}), map[string]float64{"loadBalancer/a/443": 50, "targetGroup/b": 50}},
		{"a load balancer is healthy by its targets", only(testEndpoint{"lb:a", 128, true}, testEndpoint{"b", 128, false}), map[string]float64{"targetGroup/b": 100}},
	} {
		t.Run(c.name, func(t *testing.T) { near(t, c.net.shares(manyFlows, resource), c.want, 2) })
	}
}

func TestALoadBalancerWithoutAListenerOnThePortTakesNothing(t *testing.T) {
	s, v, a := only(testEndpoint{"lb:a", 128, false}, testEndpoint{"b", 1, false}).build()
	s.LoadBalancers["a"].Listeners[0].Port = 8443
	for i := range 100 {
		if c := Choose(s, v, a, &a.Listeners[0], Flow{Client: client(i), Local: local}, nil); c[0].Resource != "targetGroup/b" {
			t.Fatalf("got %v", c)
		}
	}
}

// Endpoints by address and load balancers are at the port that the group has for the flow's; a target group is at its targets' own.
func TestPortOverridesLeadToOtherPorts(t *testing.T) {
	for name, want := range map[string]string{
		"10.1.0.1": "endpoint/game/10.1.0.1:8443", "lb:a": "loadBalancer/a/8443", "b": "targetGroup/b",
	} {
		s, v, a := only(testEndpoint{name, 128, false}).build()
		a.Listeners[0].EndpointGroups[0].PortOverrides = []spec.PortOverride{{ListenerPort: 80, EndpointPort: 8080}, {ListenerPort: 443, EndpointPort: 8443}}
		if lb := s.LoadBalancers["a"]; lb != nil {
			lb.Listeners[0].Port = 8443
		}
		tr := new(trace.Trace)
		if c := Choose(s, v, a, &a.Listeners[0], Flow{Client: client(1), Local: local}, tr); c[0].Resource != want {
			t.Errorf("got %v, want %s", c, want)
		}
		if text := fmt.Sprint(tr.Lines()); !strings.Contains(text, want+", weight 128, healthy") {
			t.Errorf("%s: explained as %s", name, text)
		}
	}
}

func TestAnEndpointByAddressIsDialledAtThePortOfTheFlow(t *testing.T) {
	good, bad := testEndpoint{name: "10.1.0.1", weight: 128}, testEndpoint{name: "2001:db8::1", weight: 128, sick: true}
	want := Candidate{Region: "near", Resource: "endpoint/game/10.1.0.1:443", Node: "near1"}
	for i := range 50 {
		if got := only(good, bad).choose(client(i)); len(got) == 0 || got[0].Resource != want.Resource {
			t.Fatalf("got %v, want %v first", got, want)
		}
	}
	if got := only(bad).choose(client(1)); len(got) != 1 || got[0].Resource != "endpoint/game/[2001:db8::1]:443" {
		t.Errorf("failing open: %v", got)
	}
	far := up("far", 100, 100)
	n := network{groups: []testGroup{only(bad).groups[0], far}}
	if got := n.choose(client(1)); got[0].Region != "far" {
		t.Errorf("a sick endpoint was not failed over: %v", got)
	}
}

func TestDrainedAndLeavingNodesTakeNoFlowsUnlessThereAreNoOthers(t *testing.T) {
	group := func(region string, rtt int, nodes ...string) testGroup {
		g := up(region, rtt, 100)
		g.nodes = nodes
		return g
	}
	for _, c := range []struct {
		name  string
		nodes [][]string // of the near group and the far one
		want  string     // the nodes that flows go to first, in order of name
		why   string     // in the explanation
	}{
		{"one of two is drained", [][]string{{"a-", "b"}, {"c"}}, "b", "node a is drained (node a): passed over"},
		{"one of two leaves", [][]string{{"a.", "b"}, {"c"}}, "b", "node a leaves: passed over"},
		{"the region is drained", [][]string{{"a-", "b-"}, {"c"}}, "c", "node b is drained"},
		{"drained before out of reach", [][]string{{"a-", "b!"}, {"c"}}, "c", "cannot be reached"},
		{"all are drained", [][]string{{"a-", "b-"}, {"c-"}}, "a b", "all nodes of its endpoint groups are drained: taken all the same"},
		{"drained or leaving", [][]string{{"a.", "b."}, {"c-"}}, "c", "are drained: taken all the same"},
		{"drained, and leaving as well", [][]string{{"a-", "b.-"}, {"c."}}, "a", "are drained: taken all the same"},
		{"all leave", [][]string{{"a.", "b."}, {"c."}}, "a b", "all that is left of the nodes of its endpoint groups leaves: taken all the same, until their doors close"},
		{"all leave, and one is drained", [][]string{{"a.-"}, {"c."}}, "a", "leaves: taken all the same"},
		{"nobody", [][]string{{}, {}}, "", "has a node with the origin role"},
	} {
		// In the order of their names, too: how far drained nodes are is not measured.
		n := network{groups: []testGroup{group("1st", 10, c.nodes[0]...), group("2nd", 100, c.nodes[1]...)}}
		s, v, a := n.build()
		seen := map[string]bool{}
		tr := new(trace.Trace)
		for i := range 50 {
			for _, first := range Choose(s, v, a, &a.Listeners[0], Flow{Client: client(i), Local: local}, tr) {
				seen[first.Node] = true
				break
			}
		}
		if got := strings.Join(slices.Sorted(maps.Keys(seen)), " "); got != c.want {
			t.Errorf("%s: flows go to %q, want %q", c.name, got, c.want)
		}
		if !strings.Contains(tr.String(), c.why) {
			t.Errorf("%s: it is explained by\n%s", c.name, tr)
		}
	}
}

func TestOnlyTheFlowsThatMustMoveDo(t *testing.T) {
	before := only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false}, testEndpoint{"c", 128, false})
	for _, c := range []struct {
		name  string
		after network
		gives string  // the endpoint whose flows may move
		moved float64 // percent
	}{
		{"one falls sick", only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false}, testEndpoint{"c", 128, true}), "targetGroup/c", 100.0 / 3},
		{"one is drained half", only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false}, testEndpoint{"c", 64, false}), "targetGroup/c", 100.0/3 - 20},
		{"the spec is written in another order", only(testEndpoint{"c", 128, false}, testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false}), "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, v, a := before.build()
			s2, v2, a2 := c.after.build()
			moved := 0.0
			for i := range manyFlows {
				f := Flow{Client: client(i), Local: local}
				was := Choose(s, v, a, &a.Listeners[0], f, nil)[0].Resource
				is := Choose(s2, v2, a2, &a2.Listeners[0], f, nil)[0].Resource
				if was == is {
					continue
				}
				moved += 100.0 / manyFlows
				if was != c.gives {
					t.Fatalf("a flow moved from %s to %s", was, is)
				}
			}
			if math.Abs(moved-c.moved) > 2 {
				t.Errorf("%.1f %% of the flows moved, want %.1f", moved, c.moved)
			}
		})
	}
}

func TestWithSourceIPAClientStaysWithItsEndpoint(t *testing.T) {
	n := only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false})
	n.groups[0].nodes = []string{"icn1", "icn2", "icn3"}
	n.groups[0].dial = 50
	n.groups = append(n.groups, up("nrt", 30, 100))
	for _, c := range []struct {
		affinity string
		stays    bool
	}{{spec.AffinitySourceIP, true}, {spec.AffinityNone, false}} {
		n.affinity = c.affinity
		s, v, a := n.build()
		moved, used := 0, map[Candidate]bool{}
		for i := range 200 {
			first := Candidate{}
			for port := range 20 {
				f := Flow{Client: netip.AddrPortFrom(client(i).Addr(), uint16(5000+port)), Local: local}
				chosen := Choose(s, v, a, &a.Listeners[0], f, nil)[0]
				used[chosen] = true
				if port == 0 {
					first = chosen
				} else if chosen != first {
					moved++
				}
			}
		}
		if (moved == 0) != c.stays {
			t.Errorf("%s: %d flows of 4000 went elsewhere than their client's first", c.affinity, moved)
		}
		if len(used) != 2*3+1 {
			t.Errorf("%s: the flows of all clients use %d ways of 7", c.affinity, len(used))
		}
	}
}

func TestFlowsAreSpreadOverTheNodesThatCanBeReached(t *testing.T) {
	n := only(testEndpoint{"a", 128, false})
	n.groups[0].nodes = []string{"icn1", "icn2!", "icn3", "icn4"}
	near(t, n.shares(manyFlows, node), map[string]float64{"icn1": 100.0 / 3, "icn3": 100.0 / 3, "icn4": 100.0 / 3}, 2)

	n.groups[0].nodes = []string{"icn1", "self", "icn3"}
	near(t, n.shares(500, node), map[string]float64{"self": 100}, 0.1)
}

func TestNodesWithoutTheOriginRoleCarryNothing(t *testing.T) {
	s, v, a := only(testEndpoint{"a", 128, false}).build()
	for i := range v.Members {
		v.Members[i].Roles = []view.Role{view.Edge, view.DNS, view.Voter}
	}
	if c := Choose(s, v, a, &a.Listeners[0], Flow{Client: client(1), Local: local}, nil); len(c) != 0 {
		t.Errorf("got %v", c)
	}
	if c := Choose(s, nil, a, &a.Listeners[0], Flow{Client: client(1), Local: local}, nil); len(c) != 0 {
		t.Errorf("without a view: %v", c)
	}
}

func TestTheOthersFollowForWhenTheFirstCannotBeDialled(t *testing.T) {
	icn := up("icn", 5, 100)
	icn.nodes = []string{"icn1", "icn2", "icn3"}
	icn.endpoints = []testEndpoint{{"icn-a", 255, false}, {"icn-b", 255, false}, {"icn-c", 255, true}}
	groups := []testGroup{icn, up("nrt", 30, 0), down("sin", 60, 100), up("iad", 90, 100)}
	got := network{groups: groups}.choose(client(1))
	var regions []string
	for _, c := range got {
		regions = append(regions, c.Region)
	}
	if want := []string{"icn", "icn", "nrt", "iad", "sin"}; !slices.Equal(regions, want) {
		t.Fatalf("got %v, want the regions %v", got, want)
	}
	if got[0].Node == got[1].Node || got[0].Resource == got[1].Resource {
		t.Errorf("the second is no other way than the first: %v", got[:2])
	}
	for i := range 30 {
		groups = append(groups, up(fmt.Sprintf("r%d", i), 100, 100))
	}
	if got := (network{groups: groups}).choose(client(1)); len(got) != maxCandidates {
		t.Errorf("%d ways for one flow, want %d", len(got), maxCandidates)
	}
}

func anyNetwork(t *rapid.T) network {
	n := network{affinity: rapid.SampledFrom([]string{spec.AffinityNone, spec.AffinitySourceIP}).Draw(t, "affinity")}
	for i := range rapid.IntRange(1, 6).Draw(t, "groups") {
		g := testGroup{
			region: fmt.Sprintf("r%d", i),
			rtt:    time.Duration(rapid.IntRange(-1, 5).Draw(t, "rtt")),
			dial:   rapid.SampledFrom([]float64{0, 1, 50, 99.5, 100}).Draw(t, "dial"),
		}
		for j := range rapid.IntRange(0, 3).Draw(t, "nodes") {
			name := fmt.Sprintf("r%dn%d", i, j)
			if rapid.Bool().Draw(t, "unreachable") {
				name += "!"
			}
			g.nodes = append(g.nodes, name)
		}
		for j := range rapid.IntRange(1, 4).Draw(t, "endpoints") {
			g.endpoints = append(g.endpoints, testEndpoint{
				name:   fmt.Sprintf("r%de%d", i, j),
				weight: rapid.SampledFrom([]int{0, 1, 128, 255}).Draw(t, "weight"),
				sick:   rapid.Bool().Draw(t, "sick"),
			})
		}
		n.groups = append(n.groups, g)
	}
	return n
}

func TestWhatIsExplainedIsWhatIsChosen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, v, a := anyNetwork(t).build()
		f := Flow{Client: client(rapid.IntRange(0, 9999).Draw(t, "client")), Local: local}
		tr := new(trace.Trace)
		explained := Choose(s, v, a, &a.Listeners[0], f, tr)
		chosen := Choose(s, v, a, &a.Listeners[0], f, nil)
		if !reflect.DeepEqual(explained, chosen) {
			t.Fatalf("explained %v, chosen %v", explained, chosen)
		}
		seen := map[Candidate]bool{}
		for i, c := range chosen {
			if seen[c] {
				t.Fatalf("%v is tried twice: %v", c, chosen)
			}
			seen[c] = true
			if want := fmt.Sprintf("%d. %s", i+1, c); tr.Lines()[len(tr.Lines())-len(chosen)+i].Text != want {
				t.Fatalf("%q is not what the trace ends with:\n%s", want, tr)
			}
		}
	})
}

// The first group may be one that failover fails open to.
func TestBehindTheFirstGroupThoseThatCanTakeTheFlowAreTriedFirst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := anyNetwork(t)
		fit, withNode := map[string]bool{}, false
		for _, g := range n.groups {
			reachable := slices.ContainsFunc(g.nodes, func(name string) bool { return !strings.HasSuffix(name, "!") })
			healthy := slices.ContainsFunc(g.endpoints, func(e testEndpoint) bool { return e.weight > 0 && !e.sick })
			fit[g.region] = reachable && healthy
			withNode = withNode || len(g.nodes) > 0
		}
		chosen := n.choose(client(rapid.IntRange(0, 9999).Draw(t, "client")))
		if (len(chosen) > 0) != withNode {
			t.Fatalf("regions have nodes: %v, chosen %v", withNode, chosen)
		}
		unfit := false
		for _, c := range chosen {
			if c.Region == chosen[0].Region {
				continue
			}
			if fit[c.Region] && unfit {
				t.Fatalf("%v comes too late in %v", c, chosen)
			}
			unfit = !fit[c.Region]
		}
	})
}

func BenchmarkChoose(b *testing.B) {
	icn := up("icn", 5, 100)
	icn.nodes = []string{"icn1", "icn2", "icn3"}
	icn.endpoints = append(icn.endpoints, testEndpoint{"icn-b", 64, false})
	s, v, a := network{groups: []testGroup{icn, up("nrt", 30, 100), up("iad", 90, 100)}}.build()
	b.ReportAllocs()
	for b.Loop() {
		Choose(s, v, a, &a.Listeners[0], Flow{Client: client(1), Local: local}, nil)
	}
}
