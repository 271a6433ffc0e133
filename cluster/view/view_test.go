package view

import (
	"net/netip"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
)

var (
	one = netip.MustParseAddrPort("10.0.0.1:80")
	two = netip.MustParseAddrPort("10.0.0.2:80")
)

// group is a target group of the given targets.
func group(name string, targets ...netip.AddrPort) *spec.TargetGroup {
	g := &spec.TargetGroup{Name: name}
	for _, t := range targets {
		g.Targets = append(g.Targets, spec.Target{Address: t.Addr(), Port: t.Port()})
	}
	return g
}

// balancer is a load balancer with one listener that forwards to the groups, the last by default.
func balancer(groups ...string) *spec.LoadBalancer {
	l := spec.Listener{}
	for i, g := range groups {
		if i == len(groups)-1 {
			l.Default = spec.Action{Forward: g}
			break
		}
		l.Rules = append(l.Rules, spec.ListenerRule{Priority: i + 1, Action: spec.Action{Forward: g}})
	}
	return &spec.LoadBalancer{Listeners: []spec.Listener{l}}
}

func TestALoadBalancerIsHealthyWhenEveryGroupWithTargetsHasAHealthyOne(t *testing.T) {
	s := &spec.Spec{
		TargetGroups: map[string]*spec.TargetGroup{
			"web": group("web", one, two), "api": group("api", one), "empty": group("empty"),
		},
		LoadBalancers: map[string]*spec.LoadBalancer{
			"web": balancer("web"), "both": balancer("api", "web"), "some": balancer("empty", "web"),
			"empty": balancer("empty"), "gone": balancer("gone"), "fixed": {Listeners: []spec.Listener{{}}},
		},
	}
	webOne, webTwo, apiOne := health.TargetKey("web", one), health.TargetKey("web", two), health.TargetKey("api", one)
	for _, c := range []struct {
		name     string
		balancer string
		healthy  map[health.Key]bool
		want     bool
	}{
		{"one of two targets is healthy", "web", map[health.Key]bool{webOne: false, webTwo: true}, true},
		{"no target is healthy", "web", map[health.Key]bool{webOne: false, webTwo: false}, false},
		{"all targets are initial", "web", nil, false},
		{"one healthy, one initial", "web", map[health.Key]bool{webOne: true}, true},
		{"each group has a healthy target", "both", map[health.Key]bool{webOne: true, apiOne: true}, true},
		{"one group has none", "both", map[health.Key]bool{webOne: true, apiOne: false}, false},
		{"the same address in another group does not count", "both", map[health.Key]bool{webOne: true, webTwo: true}, false},
		{"a group without targets is passed over", "some", map[health.Key]bool{webOne: true}, true},
		{"only groups without targets", "empty", nil, false},
		{"a group that does not exist", "gone", nil, false},
		{"nothing is forwarded", "fixed", nil, false},
		{"no such load balancer", "none", nil, false},
	} {
		verdicts := map[health.Key]health.Verdict{}
		for k, ok := range c.healthy {
			verdicts[k] = health.Verdict{Healthy: ok}
		}
		v := &View{Health: health.NewTable(verdicts)}
		if got := v.LoadBalancerHealthy(s, c.balancer); got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
}

func TestAHealthCheckWithoutDataPassesUnlessInverted(t *testing.T) {
	s := &spec.Spec{HealthChecks: map[string]*spec.HealthCheck{
		"plain": {}, "inverted": {Inverted: true}, "disabled": {Disabled: true}, "both": {Inverted: true, Disabled: true},
	}}
	type verdict string
	const none, good, bad verdict = "none", "good", "bad"
	for _, c := range []struct {
		check   string
		verdict verdict
		want    bool
	}{
		{"plain", none, true}, {"plain", good, true}, {"plain", bad, false},
		{"inverted", none, false}, {"inverted", good, false}, {"inverted", bad, true},
		{"disabled", none, true}, {"disabled", bad, true},
		{"both", good, true}, {"both", bad, true},
		{"unknown", none, true}, {"unknown", bad, true},
	} {
		v := &View{}
		if c.verdict != none {
			v.Health = health.NewTable(map[health.Key]health.Verdict{health.CheckKey(c.check): {Healthy: c.verdict == good}})
		}
		if got := v.CheckHealthy(s, c.check); got != c.want {
			t.Errorf("%s, verdict %s: got %v", c.check, c.verdict, got)
		}
	}
}

// Route 53: x of y, 0 always, more than there are never, a disabled child is healthy, the parent's inversion comes last.
func TestACalculatedCheckCountsItsHealthyChildren(t *testing.T) {
	good, bad := health.Verdict{Healthy: true}, health.Verdict{}
	verdicts := map[health.Key]health.Verdict{
		health.CheckKey("good"): good, health.CheckKey("bad"): bad, health.CheckKey("off"): bad,
		health.CheckKey("inverted-good"): good, health.CheckKey("inverted-bad"): bad,
	}
	for _, c := range []struct {
		name      string
		children  []string
		threshold int
		want      bool
	}{
		{"one of two", []string{"good", "bad"}, 1, true},
		{"two of two, and one fails", []string{"good", "bad"}, 2, false},
		{"threshold 0", []string{"bad"}, 0, true},
		{"more than there are", []string{"good"}, 2, false},
		{"one without data", []string{"silent"}, 1, true},
		{"one that is disabled", []string{"off"}, 1, true},
		{"inverted children", []string{"inverted-good", "inverted-bad"}, 2, false},
		{"an inverted child that fails", []string{"inverted-bad"}, 1, true},
		{"a child that is calculated itself is not followed", []string{"circle"}, 1, true},
	} {
		for _, inverted := range []bool{false, true} {
			for _, disabled := range []bool{false, true} {
				s := &spec.Spec{HealthChecks: map[string]*spec.HealthCheck{
					"good": {}, "bad": {}, "silent": {}, "off": {Disabled: true},
					"inverted-good": {Inverted: true}, "inverted-bad": {Inverted: true},
					"circle": {Type: spec.Calculated, ChildHealthChecks: []string{"circle"}},
					"it":     {Type: spec.Calculated, ChildHealthChecks: c.children, HealthThreshold: &c.threshold, Inverted: inverted, Disabled: disabled},
				}}
				v := &View{Health: health.NewTable(verdicts)}
				if got := v.CheckHealthy(s, "it"); got != (disabled || c.want != inverted) {
					t.Errorf("%s, inverted %v, disabled %v: got %v", c.name, inverted, disabled, got)
				}
			}
		}
	}
}

func TestACheckStandsAsLongAsWhatItIsMadeOf(t *testing.T) {
	one := 1
	s := &spec.Spec{HealthChecks: map[string]*spec.HealthCheck{
		"a": {}, "b": {}, "silent": {}, "off": {Disabled: true},
		"both": {Type: spec.Calculated, ChildHealthChecks: []string{"silent", "a", "off", "b"}, HealthThreshold: &one},
		"none": {Type: spec.Calculated, ChildHealthChecks: []string{"silent", "off"}, HealthThreshold: &one},
	}}
	v := &View{Health: health.NewTable(map[health.Key]health.Verdict{
		health.CheckKey("a"): {Stands: time.Minute}, health.CheckKey("b"): {Healthy: true, Stands: time.Second}, health.CheckKey("off"): {Stands: 1},
	})}
	for name, want := range map[string]time.Duration{"a": time.Minute, "b": time.Second, "both": time.Second, "silent": 0, "off": 0, "none": 0, "unknown": 0} {
		if got, ok := v.CheckStands(s, name); got != want || ok != (want > 0) {
			t.Errorf("%s: got %v, %v, want %v", name, got, ok, want)
		}
	}
}

func TestTargetsThatAreNotCheckedAllTakeTraffic(t *testing.T) {
	no := false
	off := group("off", one, two)
	off.HealthCheck.Enabled = &no
	empty := group("empty")
	empty.HealthCheck.Enabled = &no
	s := &spec.Spec{TargetGroups: map[string]*spec.TargetGroup{"off": off, "empty": empty, "web": group("web", one)}}
	v := &View{Health: health.NewTable(map[health.Key]health.Verdict{health.TargetKey("off", one): {}})}
	if !v.TargetTakes(off, one) || !v.TargetTakes(off, two) || v.TargetTakes(s.TargetGroups["web"], one) {
		t.Error("what is not checked takes no traffic, or what is unhealthy does")
	}
	if !v.TargetGroupHealthy(s, "off") || v.TargetGroupHealthy(s, "empty") || v.TargetGroupHealthy(s, "web") {
		t.Error("a group has no healthy target, or one without targets has")
	}
}

func TestAnEndpointWithoutAVerdictIsNotHealthy(t *testing.T) {
	v := &View{Health: health.NewTable(map[health.Key]health.Verdict{
		health.EndpointKey("a", "seoul", one): {Healthy: true}, health.EndpointKey("a", "seoul", two): {},
	})}
	for _, c := range []struct {
		view   *View
		region string
		at     netip.AddrPort
		want   bool
	}{{v, "seoul", one, true}, {v, "seoul", two, false}, {v, "frankfurt", one, false}, {nil, "seoul", one, false}} {
		if got := c.view.EndpointHealthy("a", c.region, c.at); got != c.want {
			t.Errorf("%s in %s: got %v", c.at, c.region, got)
		}
	}
}

func TestRoundTripIsMeasuredButNeverFasterThanLight(t *testing.T) {
	seoul, frankfurt := &spec.Location{Latitude: 37.57, Longitude: 126.98}, &spec.Location{Latitude: 50.11, Longitude: 8.68}
	s := &spec.Spec{Regions: map[string]*spec.Region{
		"seoul":     {Location: seoul, POPs: []spec.POP{{Name: "icn1"}}},
		"frankfurt": {Location: frankfurt},
		"nowhere":   {},
	}}
	light, estimate := seoul.Light(*frankfurt), seoul.RoundTrip(*frankfurt)
	ms := time.Millisecond

	member := func(name, region string, roles ...Role) Member {
		return Member{Name: name, Region: region, POP: "icn1", Roles: roles}
	}
	self := member("self", "seoul", Edge)
	near := member("near", "seoul", Origin)
	far1, far2 := member("far1", "frankfurt", Origin), member("far2", "frankfurt", Origin)
	lost := member("lost", "nowhere", Origin)
	for _, c := range []struct {
		name    string
		members []Member
		rtt     map[string]time.Duration
		region  string
		want    time.Duration
		ok      bool
	}{
		{"this node has the role", []Member{member("self", "seoul", Edge, Origin), near}, map[string]time.Duration{"near": ms}, "seoul", 0, true},
		{"measured in its own region", []Member{self, near}, map[string]time.Duration{"near": 2 * ms}, "seoul", 2 * ms, true},
		{"not measured in its own region", []Member{self, near}, nil, "seoul", 0, true},
		{"the least measured", []Member{self, far1, far2}, map[string]time.Duration{"far1": 270 * ms, "far2": 240 * ms}, "frankfurt", 240 * ms, true},
		{"only one measured", []Member{self, far1, far2}, map[string]time.Duration{"far1": 270 * ms}, "frankfurt", 270 * ms, true},
		{"measured on one machine: light wins", []Member{self, far1}, map[string]time.Duration{"far1": ms}, "frankfurt", light, true},
		{"not measured: by the distance", []Member{self, far1}, nil, "frankfurt", estimate, true},
		{"nobody there: by the distance", []Member{self}, nil, "frankfurt", estimate, true},
		{"measured to one without the role: by the distance", []Member{self, member("far1", "frankfurt", DNS)}, map[string]time.Duration{"far1": 300 * ms}, "frankfurt", estimate, true},
		{"a place unknown, but measured", []Member{self, lost}, map[string]time.Duration{"lost": 5 * ms}, "nowhere", 5 * ms, true},
		{"neither place nor measurement", []Member{self, lost}, nil, "nowhere", 0, false},
		{"no such region", []Member{self}, nil, "atlantis", 0, false},
		{"this node is no member: measured", []Member{far1}, map[string]time.Duration{"far1": ms}, "frankfurt", ms, true},
		{"this node is no member: nothing measured", []Member{far1}, nil, "frankfurt", 0, false},
	} {
		v := &View{Self: "self", Members: c.members, RTT: c.rtt}
		if got, ok := v.RoundTrip(s, c.region, Origin); got != c.want || ok != c.ok {
			t.Errorf("%s: got %v, %v, want %v, %v", c.name, got, ok, c.want, c.ok)
		}
	}
}

func TestInFindsTheMembersOfARegionWithARole(t *testing.T) {
	v := &View{Members: []Member{
		{Name: "a", Region: "seoul", Roles: []Role{Edge, Origin}},
		{Name: "b", Region: "seoul", Roles: []Role{Edge}},
		{Name: "c", Region: "frankfurt", Roles: []Role{Origin}},
	}}
	if in := v.In("seoul", Origin); len(in) != 1 || in[0].Name != "a" {
		t.Errorf("got %v", in)
	}
	if m, ok := v.Member("c"); !ok || m.Region != "frankfurt" {
		t.Errorf("got %v, %v", m, ok)
	}
	if _, ok := v.Member("d"); ok {
		t.Error("found a member that is not there")
	}
}

func TestANilViewKnowsNothing(t *testing.T) {
	var v *View
	s := &spec.Spec{
		TargetGroups: map[string]*spec.TargetGroup{"web": group("web", one)},
		HealthChecks: map[string]*spec.HealthCheck{"www": {}},
	}
	if _, ok := v.Member("a"); ok || v.In("seoul", Edge) != nil {
		t.Error("a nil view has members")
	}
	if v.TargetHealthy("web", one) || v.TargetGroupHealthy(s, "web") || v.LoadBalancerHealthy(s, "web") {
		t.Error("a nil view holds something healthy")
	}
	if !v.CheckHealthy(s, "www") {
		t.Error("a health check without data fails")
	}
	if _, ok := v.RoundTrip(s, "seoul", Edge); ok {
		t.Error("a nil view knows a round trip")
	}
}

func TestAnAcceleratorIsHealthyWhileEachListenerHasAHealthyEndpoint(t *testing.T) {
	no, none, shut := false, 0, 0.0
	groups := func(endpoints ...spec.Endpoint) spec.AcceleratorListener {
		return spec.AcceleratorListener{EndpointGroups: []spec.EndpointGroup{{Region: "icn", HealthCheckPort: 80, Endpoints: endpoints}}}
	}
	dialled := groups(spec.Endpoint{TargetGroup: "fine"})
	dialled.EndpointGroups[0].TrafficDial = &shut
	s := &spec.Spec{
		TargetGroups:  map[string]*spec.TargetGroup{"fine": group("fine", one), "sick": group("sick", two)},
		LoadBalancers: map[string]*spec.LoadBalancer{"fine": balancer("fine"), "sick": balancer("sick")},
		Accelerators:  map[string]*spec.Accelerator{},
	}
	v := &View{Health: health.NewTable(map[health.Key]health.Verdict{
		health.TargetKey("fine", one):                 {Healthy: true, Since: time.Unix(5, 0)},
		health.TargetKey("sick", two):                 {Since: time.Unix(10, 0)},
		health.EndpointKey("up", "icn", one):          {Healthy: true, Since: time.Unix(5, 0)},
		health.EndpointKey("address", "icn", one):     {Since: time.Unix(20, 0)},
		health.EndpointKey("two sick", "icn", one):    {Since: time.Unix(20, 0)},
		health.EndpointKey("weight", "icn", one):      {Healthy: true, Since: time.Unix(20, 0)},
		health.EndpointKey("one is well", "icn", one): {Healthy: true, Since: time.Unix(20, 0)},
	})}
	for _, c := range []struct {
		name      string
		enabled   *bool
		listeners []spec.AcceleratorListener
		healthy   bool
		lost      int64 // -1: nobody knows
	}{
		{"up", nil, []spec.AcceleratorListener{groups(spec.Endpoint{Address: one.Addr()})}, true, -1},
		{"address", nil, []spec.AcceleratorListener{groups(spec.Endpoint{Address: one.Addr()})}, false, 20},
		{"unknown", nil, []spec.AcceleratorListener{groups(spec.Endpoint{Address: one.Addr()})}, false, -1},
		{"target group", nil, []spec.AcceleratorListener{groups(spec.Endpoint{TargetGroup: "fine"})}, true, -1},
		{"load balancer", nil, []spec.AcceleratorListener{groups(spec.Endpoint{LoadBalancer: "fine"})}, true, -1},
		{"sick one", nil, []spec.AcceleratorListener{groups(spec.Endpoint{LoadBalancer: "sick"})}, false, 10},
		{"one is well", nil, []spec.AcceleratorListener{groups(spec.Endpoint{TargetGroup: "sick"}, spec.Endpoint{Address: one.Addr()})}, true, -1},
		{"one listener is not", nil, []spec.AcceleratorListener{groups(spec.Endpoint{TargetGroup: "fine"}), groups(spec.Endpoint{TargetGroup: "sick"})}, false, 10},
		{"two sick", nil, []spec.AcceleratorListener{groups(spec.Endpoint{TargetGroup: "sick"}), groups(spec.Endpoint{TargetGroup: "sick"}, spec.Endpoint{Address: one.Addr()})}, false, 10},
		{"weight", nil, []spec.AcceleratorListener{groups(spec.Endpoint{TargetGroup: "sick"}, spec.Endpoint{Address: one.Addr(), Weight: &none})}, false, 20},
		{"dial", nil, []spec.AcceleratorListener{dialled}, false, 5},
		{"custom routing", nil, []spec.AcceleratorListener{groups(spec.Endpoint{Subnet: netip.MustParsePrefix("10.0.0.0/28")})}, true, -1},
		{"disabled", &no, []spec.AcceleratorListener{groups(spec.Endpoint{TargetGroup: "fine"})}, false, -1},
	} {
		s.Accelerators[c.name] = &spec.Accelerator{Name: c.name, Enabled: c.enabled, Listeners: c.listeners}
		if got := v.AcceleratorHealthy(s, c.name); got != c.healthy {
			t.Errorf("%s: healthy %v", c.name, got)
		}
		if c.healthy {
			continue
		}
		if got := v.AcceleratorLost(s, c.name); c.lost < 0 && !got.IsZero() || c.lost >= 0 && !got.Equal(time.Unix(c.lost, 0)) {
			t.Errorf("%s: lost at %v, want %d", c.name, got, c.lost)
		}
	}
	if v.AcceleratorHealthy(s, "no such") || !v.AcceleratorLost(s, "no such").IsZero() || !(*View)(nil).AcceleratorLost(s, "address").IsZero() {
		t.Error("an accelerator that is not there is healthy")
	}
}
