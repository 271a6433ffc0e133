package event

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
)

// world is two regions, a load balancer in each, and all that can rest on them.
const world = `
kind: Region
name: eu
location: {latitude: 50, longitude: 8}
pops: [{name: fra1}]
---
kind: Region
name: us
location: {latitude: 39, longitude: -77}
pops: [{name: iad1}]
---
{kind: TargetGroup, name: web-eu, region: eu, protocol: HTTP, targets: [{address: 10.0.0.1, port: 80}, {address: 10.0.0.2, port: 80}]}
---
{kind: TargetGroup, name: web-us, region: us, protocol: HTTP, targets: [{address: 10.1.0.1, port: 80}]}
---
{kind: TargetGroup, name: game-eu, region: eu, protocol: TCP, targets: [{address: 10.0.0.9, port: 9000}]}
---
{kind: TargetGroup, name: game-us, region: us, protocol: TCP, targets: [{address: 10.1.0.9, port: 9000}]}
---
{kind: LoadBalancer, name: web-eu, region: eu, listeners: [{protocol: HTTP, port: 8080, default: {forward: web-eu}}]}
---
{kind: LoadBalancer, name: web-us, region: us, listeners: [{protocol: HTTP, port: 8080, default: {forward: web-us}}]}
---
{kind: HealthCheck, name: one, type: TCP, ipAddress: 192.0.2.1, port: 80}
---
{kind: HealthCheck, name: two, type: TCP, ipAddress: 192.0.2.2, port: 80}
---
kind: Accelerator
name: game
ipAddresses: [198.51.100.1]
listeners:
  - protocol: TCP
    portRanges: [{fromPort: 9000}]
    endpointGroups:
      - {region: eu, endpoints: [{targetGroup: game-eu}]}
      - {region: us, endpoints: [{targetGroup: game-us}]}
---
kind: Distribution
name: shop
aliases: [shop.example.com]
origins: [{name: web, loadBalancers: [web-eu, web-us]}]
defaultCacheBehavior: {targetOrigin: web}
---
kind: HostedZone
name: example.com
records:
  - {name: plain, type: A, ttl: 60s, values: [192.0.2.7]}
  - {name: shop, type: A, alias: {distribution: shop}}
  - {name: www, type: A, setIdentifier: blue, weight: 100, alias: {loadBalancer: web-eu, evaluateTargetHealth: true}}
  - {name: www, type: A, setIdentifier: green, weight: 20, alias: {loadBalancer: web-us, evaluateTargetHealth: true}}
  - {name: api, type: A, setIdentifier: first, failover: PRIMARY, ttl: 60s, values: [192.0.2.1], healthCheck: one}
  - {name: api, type: A, setIdentifier: second, failover: SECONDARY, ttl: 60s, values: [192.0.2.2], healthCheck: two}
  - {name: "@", type: A, alias: {record: www, evaluateTargetHealth: true}}
  - {name: lone, type: A, alias: {loadBalancer: web-eu}}
`

func build(t testing.TB, revision uint64, text string) *spec.Spec {
	t.Helper()
	documents, err := spec.Split("world.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	s, err := spec.Build(revision, documents, spec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// members are a node in each region that does all, and one in eu that runs load balancers alone.
func members() []view.Member {
	all := []view.Role{view.Edge, view.DNS, view.Origin}
	return []view.Member{
		{Name: "fra1", Region: "eu", POP: "fra1", Roles: all},
		{Name: "fra2", Region: "eu", POP: "fra1", Roles: []view.Role{view.Origin}},
		{Name: "iad1", Region: "us", POP: "iad1", Roles: all},
	}
}

// saying is the table of keys that three nodes hold healthy, and those that are bad as bad says.
func saying(s *spec.Spec, bad map[health.Key]string) *health.Table {
	views := map[string]map[health.Key]health.Verdict{}
	for _, node := range []string{"a", "b", "c"} {
		views[node] = map[health.Key]health.Verdict{}
		for _, l := range NewIndex(s).leaves {
			reason, sick := bad[l.key]
			if reason == "nobody" {
				continue
			}
			views[node][l.key] = health.Verdict{Healthy: !sick, Reason: reason}
		}
	}
	return health.Merge(views, health.DefaultQuorum)
}

func target(group, address string) health.Key {
	return health.TargetKey(group, netip.MustParseAddrPort(address))
}

// tell is effects as lines: their number, their causes, their text.
func tell(effects []Effect) string {
	var out strings.Builder
	for i, e := range effects {
		causes := ""
		if len(e.Causes) > 0 {
			causes = fmt.Sprint(" ", e.Causes)
		}
		fmt.Fprintf(&out, "%d %s %s%s: %s\n", i, e.Kind, e.Subject, causes, e.Text)
	}
	return out.String()
}

func TestWhatTurnsIsToldWithAllThatFollows(t *testing.T) {
	s := build(t, 1, world)
	well := State{Spec: s, View: &view.View{Self: "fra1", Members: members(), Health: saying(s, nil)}}
	sick := func(bad map[health.Key]string) State {
		return State{Spec: s, View: &view.View{Self: "fra1", Members: well.View.Members, Health: saying(s, bad)}}
	}
	without := func(names ...string) State {
		left := slices.DeleteFunc(members(), func(m view.Member) bool { return slices.Contains(names, m.Name) })
		return State{Spec: s, View: &view.View{Self: "fra1", Members: left, Health: well.View.Health}}
	}
	with := func(change func(v *view.View)) State {
		v := &view.View{Self: "fra1", Members: members(), Health: well.View.Health}
		change(v)
		return State{Spec: s, View: v}
	}
	web1, web2, game := target("web-eu", "10.0.0.1:80"), target("web-eu", "10.0.0.2:80"), target("game-eu", "10.0.0.9:9000")
	for _, c := range []struct {
		name          string
		before, after State
		want          string
	}{
		{"nothing", well, well, ""},
		{"nothing was known", State{Spec: s}, well, ""},
		{"one of two targets", well, sick(map[health.Key]string{web1: "connect: refused"}), `
0 health target/web-eu/10.0.0.1:80: target web-eu 10.0.0.1:80 unhealthy in 3 of 3 views: connect: refused
1 route loadBalancer/web-eu [0]: load balancer web-eu: 1 of 2 targets are healthy
`},
		{"the second too", sick(map[health.Key]string{web1: "x"}), sick(map[health.Key]string{web1: "x", web2: "timeout"}), `
0 health target/web-eu/10.0.0.2:80: target web-eu 10.0.0.2:80 unhealthy in 3 of 3 views: timeout
1 route loadBalancer/web-eu [0]: load balancer web-eu is out: no target is healthy (0 of 2 targets are healthy)
2 route record/example.com/www/A/blue [1]: record www.example.com A "blue" is out (weight 100 → 0): load balancer web-eu is out
`},
		{"both at once, and back", sick(map[health.Key]string{web1: "x", web2: "x"}), well, `
0 health target/web-eu/10.0.0.1:80: target web-eu 10.0.0.1:80 healthy in 3 of 3 views
1 health target/web-eu/10.0.0.2:80: target web-eu 10.0.0.2:80 healthy in 3 of 3 views
2 route loadBalancer/web-eu [0 1]: load balancer web-eu is in: 2 of 2 targets are healthy
3 route record/example.com/www/A/blue [2]: record www.example.com A "blue" is in (weight 0 → 100)
`},
		{"one turns as another turns back", sick(map[health.Key]string{web1: "x"}), sick(map[health.Key]string{web2: "x"}), `
0 health target/web-eu/10.0.0.2:80: target web-eu 10.0.0.2:80 unhealthy in 3 of 3 views: x
1 health target/web-eu/10.0.0.1:80: target web-eu 10.0.0.1:80 healthy in 3 of 3 views
`},
		{"an endpoint group", well, sick(map[health.Key]string{game: "x"}), `
0 health target/game-eu/10.0.0.9:9000: target game-eu 10.0.0.9:9000 unhealthy in 3 of 3 views: x
1 route accelerator/game/tcp/9000/eu [0]: accelerator game, TCP 9000: endpoint group eu is out: no endpoint is healthy
`},
		{"both checks of a failover", well, sick(map[health.Key]string{health.CheckKey("one"): "x", health.CheckKey("two"): "y"}), `
0 health check/one: health check one unhealthy in 3 of 3 views: x
1 health check/two: health check two unhealthy in 3 of 3 views: y
2 route record/example.com/api/A/first [0]: record api.example.com A "first" is out: health check one fails
3 route record/example.com/api/A/second [1]: record api.example.com A "second" is out: health check two fails
4 route record/example.com/api/A [2 3]: record api.example.com A: all 2 are out, so it is answered as if all were in
`},
		{"nobody checks any more", well, sick(map[health.Key]string{game: "nobody"}), `
0 health target/game-eu/10.0.0.9:9000: target game-eu 10.0.0.9:9000 has no verdict any more: nobody checks it
1 route accelerator/game/tcp/9000/eu [0]: accelerator game, TCP 9000: endpoint group eu is out: there is no verdict on any endpoint
`},
		{"one of two nodes", well, without("fra2"), `
0 member node/fra2: node fra2 is gone, in eu, POP fra1
`},
		{"a region", well, without("iad1"), `
0 member node/iad1: node iad1 is gone, in us, POP iad1
1 route region/us [0]: region us runs its load balancers no more: no node there takes the role origin
2 route pop/iad1 [0]: POP iad1 answers no more
3 route loadBalancer/web-us [1]: load balancer web-us is out: no node of us takes the role origin (1 of 1 targets are healthy)
4 route accelerator/game/tcp/9000/us [1]: accelerator game, TCP 9000: endpoint group us is out: no node there takes the role origin
5 route record/example.com/www/A/green [3]: record www.example.com A "green" is out (weight 20 → 0): no node of us takes the role origin
`},
		{"it comes back", without("iad1"), well, `
0 member node/iad1: node iad1 has come, in us, POP iad1
1 route region/us [0]: region us runs its load balancers
2 route pop/iad1 [0]: POP iad1 takes viewers and answers names
3 route loadBalancer/web-us [1]: load balancer web-us is in: 1 of 1 targets are healthy
4 route accelerator/game/tcp/9000/us [1]: accelerator game, TCP 9000: endpoint group us is in: 1 of 1 endpoints are healthy
5 route record/example.com/www/A/green [3]: record www.example.com A "green" is in (weight 0 → 20)
`},
		{"all that run load balancers in eu", well, without("fra1", "fra2"), `
0 member node/fra1: node fra1 is gone, in eu, POP fra1
1 member node/fra2: node fra2 is gone, in eu, POP fra1
2 route region/eu [0 1]: region eu runs its load balancers no more: no node there takes the role origin
3 route pop/fra1 [0 1]: POP fra1 answers no more
4 route loadBalancer/web-eu [2]: load balancer web-eu is out: no node of eu takes the role origin (2 of 2 targets are healthy)
5 route accelerator/game/tcp/9000/eu [2]: accelerator game, TCP 9000: endpoint group eu is out: no node there takes the role origin
6 route record/example.com/www/A/blue [4]: record www.example.com A "blue" is out (weight 100 → 0): no node of eu takes the role origin
7 route record/example.com/lone/A [4]: record lone.example.com A cannot be answered (SERVFAIL): no node of eu takes the role origin
`},
		{"a link", well, with(func(v *view.View) { v.Unreachable = map[string]bool{"iad1": true} }), `
0 link node/iad1: node iad1 cannot be reached from here
1 route accelerator/game/tcp/9000/us [0]: accelerator game, TCP 9000: endpoint group us is out: no node there can be reached from here
`},
		{"a POP is drained", well, with(func(v *view.View) {
			v.Members[0].Drained, v.Members[1].Drained = "pop fra1", "pop fra1"
		}), `
0 drain node/fra1: node fra1 is drained by pop fra1
1 drain node/fra2: node fra2 is drained by pop fra1
2 route region/eu [0 1]: region eu runs its load balancers no more: no node there takes the role origin
3 route pop/fra1 [0 1]: POP fra1 answers no more
4 route loadBalancer/web-eu [2]: load balancer web-eu is out: no node of eu takes the role origin (2 of 2 targets are healthy)
5 route accelerator/game/tcp/9000/eu [2]: accelerator game, TCP 9000: endpoint group eu is out: no node there takes the role origin
6 route record/example.com/www/A/blue [4]: record www.example.com A "blue" is out (weight 100 → 0): no node of eu takes the role origin
7 route record/example.com/lone/A [4]: record lone.example.com A cannot be answered (SERVFAIL): no node of eu takes the role origin
`},
		{"a node is drained that is needed", well, with(func(v *view.View) {
			v.Members[2].Drained, v.Members[2].Needed = "node iad1", []view.Role{view.Edge, view.DNS, view.Origin}
		}), `
0 drain node/iad1: node iad1 is drained by node iad1, but goes on as [edge dns origin]: nobody else is left
`},
		{"a node leaves", well, with(func(v *view.View) { v.Members[1].Leaving = true }), `
0 member node/fra2: node fra2 is leaving
`},
		{"it stays after all", with(func(v *view.View) { v.Members[1].Leaving = true }), well, `
0 member node/fra2: node fra2 is leaving no more
`},
		{"it has left", with(func(v *view.View) { v.Members[1].Leaving = true }), without("fra2"), `
0 member node/fra2: node fra2 has left, in eu, POP fra1
`},
		{"this node is fenced", well, with(func(v *view.View) { v.Fenced = true }), `
0 fence node/fra1: node fra1 is fenced: it has heard of an order that it has not seen
`},
		{"nobody takes viewers", well, with(func(v *view.View) {
			v.Members[0].Roles, v.Members[2].Roles = []view.Role{view.DNS, view.Origin}, []view.Role{view.DNS, view.Origin}
		}), `
0 member node/fra1: node fra1 has the roles [dns origin], and had [edge dns origin]
1 member node/iad1: node iad1 has the roles [dns origin], and had [edge dns origin]
2 route pop/fra1 [0]: POP fra1 takes viewers no more
3 route pop/iad1 [1]: POP iad1 takes viewers no more
4 route record/example.com/shop/A [2 3]: record shop.example.com A cannot be answered (SERVFAIL): no node takes viewers
`},
	} {
		if diff := cmp.Diff(strings.TrimPrefix(c.want, "\n"), tell(Effects(c.before, c.after))); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func TestAnotherSpecIsTheCauseOfWhatItChanges(t *testing.T) {
	one := build(t, 1, world)
	table := saying(one, map[health.Key]string{target("web-eu", "10.0.0.2:80"): "x", health.CheckKey("one"): "x"})
	before := State{Spec: one, View: &view.View{Members: members(), Health: table}}
	for _, c := range []struct{ name, old, new, want string }{
		{"only the healthy target goes", "[{address: 10.0.0.1, port: 80}, {address: 10.0.0.2, port: 80}]", "[{address: 10.0.0.2, port: 80}]", `
0 spec spec: revision 2 is in force, after 1
1 route loadBalancer/web-eu [0]: load balancer web-eu is out: no target is healthy (0 of 1 targets are healthy)
2 route record/example.com/www/A/blue [1]: record www.example.com A "blue" is out (weight 100 → 0): load balancer web-eu is out
`},
		{"a target comes without a verdict", "{address: 10.0.0.1, port: 80},", "{address: 10.0.0.1, port: 80}, {address: 10.0.0.3, port: 80},", `
0 spec spec: revision 2 is in force, after 1
1 route loadBalancer/web-eu [0]: load balancer web-eu: 1 of 3 targets are healthy
`},
		{"a record goes", "  - {name: api, type: A, setIdentifier: second, failover: SECONDARY, ttl: 60s, values: [192.0.2.2], healthCheck: two}\n", "", `
0 spec spec: revision 2 is in force, after 1
1 route record/example.com/api/A [0]: record api.example.com A: all 1 are out, so it is answered as if all were in
`},
		{"a record has its check no more", "values: [192.0.2.1], healthCheck: one", "values: [192.0.2.1]", `
0 spec spec: revision 2 is in force, after 1
`},
		{"a record has another check", "values: [192.0.2.1], healthCheck: one", "values: [192.0.2.1], healthCheck: two", `
0 spec spec: revision 2 is in force, after 1
1 route record/example.com/api/A/first [0]: record api.example.com A "first" is in
`},
		{"a plain record changes", "192.0.2.7", "192.0.2.8", `
0 spec spec: revision 2 is in force, after 1
`},
		{"an accelerator is disabled", "name: game\n", "name: game\nenabled: false\n", `
0 spec spec: revision 2 is in force, after 1
1 route accelerator/game [0]: accelerator game is disabled: nobody listens, its addresses stay its own
`},
		{"a check is inverted", "ipAddress: 192.0.2.1, port: 80", "ipAddress: 192.0.2.1, port: 80, inverted: true", `
0 spec spec: revision 2 is in force, after 1
1 route record/example.com/api/A/first [0]: record api.example.com A "first" is in
`},
	} {
		two := build(t, 2, strings.Replace(world, c.old, c.new, 1))
		after := State{Spec: two, View: before.View}
		if diff := cmp.Diff(strings.TrimPrefix(c.want, "\n"), tell(Effects(before, after))); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func TestACalculatedCheckIsToldByItsChildren(t *testing.T) {
	two := 2
	s := build(t, 1, world)
	s.HealthChecks["both"] = &spec.HealthCheck{Name: "both", Type: spec.Calculated, ChildHealthChecks: []string{"one", "two"}, HealthThreshold: &two}
	zone := s.HostedZones["example.com"]
	records := zone.Records.List()
	records[4].HealthCheck = "both"
	zone.Records = spec.RecordsOf(records...)
	before := State{Spec: s, View: &view.View{Members: members(), Health: saying(s, nil)}}
	after := State{Spec: s, View: &view.View{Members: members(), Health: saying(s, map[health.Key]string{health.CheckKey("two"): "x"})}}
	want := `0 health check/two: health check two unhealthy in 3 of 3 views: x
1 health check/both [0]: health check both fails: 1 of 2 checks pass, 2 are asked for
2 route record/example.com/api/A/first [1]: record api.example.com A "first" is out: health check both fails
3 route record/example.com/api/A/second [0]: record api.example.com A "second" is out: health check two fails
4 route record/example.com/api/A [2 3]: record api.example.com A: all 2 are out, so it is answered as if all were in
`
	if diff := cmp.Diff(want, tell(Effects(before, after))); diff != "" {
		t.Error(diff)
	}
}

func TestAnEndpointGivenByAddressHasItsOwnVerdict(t *testing.T) {
	s := build(t, 1, world)
	g := &s.Accelerators["game"].Listeners[0].EndpointGroups[0]
	g.Endpoints = []spec.Endpoint{{Address: netip.MustParseAddr("203.0.113.9")}}
	g.HealthCheckPort = 81
	key := health.EndpointKey("game", "eu", netip.MustParseAddrPort("203.0.113.9:81"))
	before := State{Spec: s, View: &view.View{Members: members(), Health: saying(s, nil)}}
	after := State{Spec: s, View: &view.View{Members: members(), Health: saying(s, map[health.Key]string{key: "x"})}}
	want := `0 health endpoint/game/eu/203.0.113.9:81: endpoint game eu 203.0.113.9:81 unhealthy in 3 of 3 views: x
1 route accelerator/game/tcp/9000/eu [0]: accelerator game, TCP 9000: endpoint group eu is out: no endpoint is healthy
`
	if diff := cmp.Diff(want, tell(Effects(before, after))); diff != "" {
		t.Error(diff)
	}
}

func TestASubnetIsUpAsLongAsANodeOfItsRegionIs(t *testing.T) {
	s := build(t, 1, world)
	s.Accelerators["game"].Type = spec.CustomRoutingAccelerator
	g := s.Accelerators["game"].Listeners[0].EndpointGroups
	g[0].Endpoints = []spec.Endpoint{{Subnet: netip.MustParsePrefix("10.0.0.0/28")}}
	s.Accelerators["game"].Listeners[0].EndpointGroups = g[:1]
	before := State{Spec: s, View: &view.View{Members: members(), Health: saying(s, nil)}}
	after := State{Spec: s, View: &view.View{Members: members(), Health: saying(s, nil), Unreachable: map[string]bool{"fra1": true, "fra2": true}}}
	want := "accelerator game, TCP 9000: endpoint group eu is out: no node there can be reached from here\n"
	if got := tell(Effects(before, after)); !strings.Contains(got, want) {
		t.Errorf("got %s", got)
	}
	if got := tell(Effects(after, before)); !strings.Contains(got, "endpoint group eu is in: 1 of 1 endpoints are healthy\n") {
		t.Errorf("got %s", got)
	}
}

func TestAnAliasThatLeadsBackToItselfEndsTheWalk(t *testing.T) {
	s := &spec.Spec{HostedZones: map[string]*spec.HostedZone{"example.com": {Name: "example.com", Records: spec.RecordsOf(
		spec.Record{Name: "a", Type: "A", Alias: &spec.Alias{Record: "b", EvaluateTargetHealth: true}},
		spec.Record{Name: "b", Type: "A", Alias: &spec.Alias{Record: "a", EvaluateTargetHealth: true}},
		spec.Record{Name: "c", Type: "A", Alias: &spec.Alias{Record: "gone", EvaluateTargetHealth: true}},
	)}}}
	x := NewIndex(s)
	m := newMoment(State{Spec: s, View: &view.View{}, Index: x})
	for i, thing := range x.things {
		if !m.of(int32(i)).up {
			t.Errorf("%s is out", thing.subject)
		}
	}
}

// large has so many load balancers with so many targets each, and a weighted record each.
func large(balancers, targets int) *spec.Spec {
	s := &spec.Spec{TargetGroups: map[string]*spec.TargetGroup{}, LoadBalancers: map[string]*spec.LoadBalancer{}}
	var records []spec.Record
	weight := 1
	for b := range balancers {
		name := fmt.Sprintf("b%05d", b)
		g := &spec.TargetGroup{Name: name, Region: "eu"}
		for i := range targets {
			g.Targets = append(g.Targets, spec.Target{Address: netip.AddrFrom4([4]byte{10, byte(b >> 8), byte(b), byte(i)}), Port: 80})
		}
		s.TargetGroups[name] = g
		s.LoadBalancers[name] = &spec.LoadBalancer{Name: name, Region: "eu", Listeners: []spec.Listener{{Default: spec.Action{Forward: name}}}}
		records = append(records, spec.Record{Name: "www", Type: "A", SetIdentifier: name, Weight: &weight, Alias: &spec.Alias{LoadBalancer: name, EvaluateTargetHealth: true}})
	}
	s.HostedZones = map[string]*spec.HostedZone{"example.com": {Name: "example.com", Records: spec.RecordsOf(records...)}}
	return s
}

// all is a table in which all keys of the spec are healthy or not.
func all(s *spec.Spec, healthy bool) *health.Table {
	verdicts := map[health.Key]health.Verdict{}
	for _, l := range NewIndex(s).leaves {
		verdicts[l.key] = health.Verdict{Healthy: healthy}
	}
	return health.NewTable(verdicts)
}

func TestAFloodOfTurnsIsCutAndCounted(t *testing.T) {
	s := large(300, 4)
	v := func(healthy bool) *view.View { return &view.View{Members: members(), Health: all(s, healthy)} }
	effects := Effects(State{Spec: s, View: v(true)}, State{Spec: s, View: v(false)})
	if len(effects) != maxTurned+1+maxFollows+1 || len(effects) > 256 {
		t.Fatalf("%d effects", len(effects))
	}
	if text := effects[maxTurned].Text; text != fmt.Sprintf("and %d more changes of nodes and verdicts", 1200-maxTurned) {
		t.Error(text)
	}
	if text := effects[255].Text; text != fmt.Sprintf("and %d more things went out or came in", 601-maxFollows) {
		t.Error(text)
	}
	last := effects[maxTurned] // what follows from what was cut is linked to the line that says so
	if linked := effects[maxTurned+1+maxFollows-1]; !slices.Equal(linked.Causes, []int{maxTurned}) {
		t.Errorf("%v is caused by %v, not by %v", linked, linked.Causes, last)
	}
	l := New("fra1", 0)
	l.Record(effects)
	events, _ := l.Since(0, 0)
	if len(events) != 256 {
		t.Errorf("%d events", len(events))
	}
}

// TestWhatFollowsIsFoundWithoutLookingEverywhere compares the walk with a look at every thing there is.
func TestWhatFollowsIsFoundWithoutLookingEverywhere(t *testing.T) {
	one := build(t, 1, world)
	two := build(t, 2, strings.NewReplacer("weight: 100", "weight: 90", "{address: 10.0.0.2, port: 80}", "{address: 10.0.0.3, port: 80}",
		"values: [192.0.2.2], healthCheck: two", "values: [192.0.2.2], healthCheck: one", "{region: us, endpoints: [{targetGroup: game-us}]}",
		"{region: us, endpoints: [{targetGroup: game-us, weight: 0}]}").Replace(world))
	roles := [][]view.Role{nil, {view.Edge}, {view.DNS}, {view.Origin}, {view.Edge, view.DNS, view.Origin}}
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) State {
			s := rapid.SampledFrom([]*spec.Spec{one, two}).Draw(t, name+" spec")
			v := &view.View{Unreachable: map[string]bool{}}
			for _, m := range members() {
				if !rapid.Bool().Draw(t, name+" has "+m.Name) {
					continue
				}
				m.Roles = rapid.SampledFrom(roles).Draw(t, name+" roles")
				m.Leaving = rapid.Bool().Draw(t, name+" leaving")
				m.Drained = rapid.SampledFrom([]string{"", "", "pop fra1"}).Draw(t, name+" drained")
				m.POP = rapid.SampledFrom([]string{m.POP, "elsewhere"}).Draw(t, name+" pop")
				v.Unreachable[m.Name] = rapid.Bool().Draw(t, name+" unreachable")
				v.Members = append(v.Members, m)
			}
			verdicts := map[health.Key]health.Verdict{}
			for _, x := range []*Index{NewIndex(one), NewIndex(two)} {
				for _, l := range x.leaves {
					switch rapid.IntRange(0, 2).Draw(t, name+" "+string(l.key)) {
					case 1:
						verdicts[l.key] = health.Verdict{Healthy: true}
					case 2:
						verdicts[l.key] = health.Verdict{}
					}
				}
			}
			v.Health = health.NewTable(verdicts)
			return State{Spec: s, View: v, Index: NewIndex(s)}
		}
		before, after := draw("before"), draw("after")
		if before.Spec == after.Spec {
			after.Index = before.Index
		}
		effects := Effects(before, after)
		told := map[string]string{}
		for i, e := range effects {
			for _, c := range e.Causes {
				if c < 0 || c >= i {
					t.Fatalf("effect %d is caused by %d", i, c)
				}
			}
			if e.Kind == Route && len(e.Causes) == 0 {
				t.Errorf("%s is caused by nothing", e.Text)
			}
			told[e.Subject] = e.Text
		}
		was, is := newMoment(before), newMoment(after)
		for i, thing := range after.Index.things {
			if lb, ok := strings.CutPrefix(thing.subject, "loadBalancer/"); ok {
				st := is.of(int32(i))
				if want := st.alive && after.View.LoadBalancerHealthy(after.Spec, lb); st.up != want {
					t.Errorf("%s: up %v, want %v", lb, st.up, want)
				}
			}
			at, had := before.Index.subjects[thing.subject]
			if !had {
				continue
			}
			if text := thing.say(was.of(at), is.of(int32(i))); text != "" && told[thing.subject] != text {
				t.Errorf("%s: told %q, not %q", thing.subject, told[thing.subject], text)
			}
		}
		for _, p := range []place{{"eu", "fra1"}, {"us", "iad1"}} {
			if text := popTurned(was.at(p), is.at(p)); text != "" && told["pop/"+p.pop] == "" {
				t.Errorf("%s: not told %q", p.pop, text)
			}
		}
	})
}

func BenchmarkEffects(b *testing.B) {
	s := large(3000, 10)
	x := NewIndex(s)
	well := all(s, true)
	verdicts := map[health.Key]health.Verdict{}
	for _, l := range x.leaves {
		verdicts[l.key] = health.Verdict{Healthy: l.key != x.leaves[500].key}
	}
	one := health.NewTable(verdicts)
	here := members()
	v := func(table *health.Table) *view.View { return &view.View{Members: here, Health: table} }
	before := State{s, v(well), x}
	b.Run("index of 30,000 targets", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			NewIndex(s)
		}
	})
	for name, after := range map[string]*health.Table{"nothing turned": well, "one of 30,000 turned": one, "all of 30,000 turned": all(s, false)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Effects(before, State{s, v(after), x})
			}
		})
	}
}

func TestTCPAndUDPOnOnePortAreToldApart(t *testing.T) {
	text := strings.Replace(world, "{kind: LoadBalancer, name: web-eu,", `{kind: Accelerator, name: voice, ipAddresses: [127.77.0.9], listeners: [
  {protocol: TCP, portRanges: [{fromPort: 80}], endpointGroups: [{region: eu, endpoints: [{loadBalancer: lines}], portOverrides: [{listenerPort: 80, endpointPort: 7000}]}]},
  {protocol: UDP, portRanges: [{fromPort: 80}], endpointGroups: [{region: eu, endpoints: [{targetGroup: lines-udp}]}]}]}
---
{kind: TargetGroup, name: lines, region: eu, protocol: TCP, targets: [{address: 10.0.0.9, port: 5060}]}
---
{kind: TargetGroup, name: lines-udp, region: eu, protocol: UDP, targets: [{address: 10.0.0.8, port: 5060}], healthCheck: {protocol: TCP}}
---
{kind: LoadBalancer, name: lines, region: eu, type: network, listeners: [{protocol: TCP, port: 7000, default: {forward: lines}}]}
---
{kind: LoadBalancer, name: web-eu,`, 1)
	s := build(t, 1, text)
	well := State{Spec: s, View: &view.View{Members: members(), Health: saying(s, nil)}}
	for _, c := range []struct {
		sick health.Key
		want string
	}{
		{target("lines-udp", "10.0.0.8:5060"), "1 route accelerator/voice/udp/80/eu [0]: accelerator voice, UDP 80: endpoint group eu is out: no endpoint is healthy\n"},
		// By way of a load balancer whose listener is at the port that the override leads to.
		{target("lines", "10.0.0.9:5060"), "2 route accelerator/voice/tcp/80/eu [1]: accelerator voice, TCP 80: endpoint group eu is out: no endpoint is healthy\n"},
	} {
		sick := State{Spec: s, View: &view.View{Members: members(), Health: saying(s, map[health.Key]string{c.sick: "x"})}}
		if got := tell(Effects(well, sick)); !strings.HasSuffix(got, c.want) {
			t.Errorf("%s: got\n%s", c.sick, got)
		}
	}
}

// A group that was never in has an event, too: when the first verdict on one of its endpoints is there.
func TestAGroupThatWasNeverInIsToldOf(t *testing.T) {
	s := build(t, 1, world)
	key := target("game-eu", "10.0.0.9:9000")
	fresh := State{Spec: s, View: &view.View{Members: members(), Health: saying(s, map[health.Key]string{key: "nobody"})}}
	sick := State{Spec: s, View: &view.View{Members: members(), Health: saying(s, map[health.Key]string{key: "x"})}}
	want := `0 health target/game-eu/10.0.0.9:9000: target game-eu 10.0.0.9:9000 unhealthy in 3 of 3 views: x
1 route accelerator/game/tcp/9000/eu [0]: accelerator game, TCP 9000: endpoint group eu is out: no endpoint is healthy
`
	if diff := cmp.Diff(want, tell(Effects(fresh, sick))); diff != "" {
		t.Error(diff)
	}
	if got := tell(Effects(fresh, State{Spec: s, View: &view.View{Members: members(), Health: saying(s, nil)}})); !strings.Contains(got, "endpoint group eu is in: 1 of 1") {
		t.Errorf("got %s", got)
	}
}
