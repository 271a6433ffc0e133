package probe

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
)

func duration(d time.Duration) *spec.Duration { return new(spec.Duration(d)) }

// webGroup is a target group in Seoul with n targets.
func webGroup(n int) *spec.TargetGroup {
	g := &spec.TargetGroup{
		Name: "web", Region: "seoul", Protocol: spec.HTTP,
		HealthCheck: spec.TargetHealthCheck{
			Protocol: spec.HTTP, Path: "/up", Matcher: "200-299", Interval: duration(30 * time.Second),
			Timeout: duration(6 * time.Second), HealthyThreshold: 5, UnhealthyThreshold: 2,
		},
	}
	for i := range n {
		g.Targets = append(g.Targets, spec.Target{Address: netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(i % 250)}), Port: 80})
	}
	return g
}

func wwwCheck() *spec.HealthCheck {
	return &spec.HealthCheck{
		Name: "www", Type: spec.HTTP, IPAddress: netip.MustParseAddr("192.0.2.1"), Port: 80, ResourcePath: "/",
		RequestInterval: duration(30 * time.Second), FailureThreshold: 3,
	}
}

// goAccelerator has one endpoint, in Seoul.
func goAccelerator() *spec.Accelerator {
	return &spec.Accelerator{Name: "go", Listeners: []spec.AcceleratorListener{{Protocol: spec.TCP, EndpointGroups: []spec.EndpointGroup{{
		Region: "seoul", Endpoints: []spec.Endpoint{{Address: netip.MustParseAddr("10.0.0.9")}},
		HealthCheckProtocol: spec.TCP, HealthCheckPort: 443, HealthCheckInterval: duration(30 * time.Second), ThresholdCount: 3,
	}}}}}
}

func webSpec(targets int) *spec.Spec {
	return &spec.Spec{
		TargetGroups: map[string]*spec.TargetGroup{"web": webGroup(targets)},
		HealthChecks: map[string]*spec.HealthCheck{"www": wwwCheck()},
	}
}

// members are the first n nodes of a region.
func members(region string, n int, roles ...view.Role) []view.Member {
	var all []view.Member
	for i := range n {
		all = append(all, view.Member{Name: fmt.Sprintf("%s-%d", region, i), Region: region, Roles: roles})
	}
	return all
}

// assigned is who checks what: the nodes of each key, in order.
func assigned(s *spec.Spec, live []view.Member) map[health.Key][]string {
	by := map[health.Key][]string{}
	for _, m := range live {
		for _, c := range Checks(s, &view.View{Self: m.Name, Members: live}) {
			by[c.Key] = append(by[c.Key], m.Name)
		}
	}
	return by
}

func TestATargetIsCheckedByThreeOriginNodesOfItsRegion(t *testing.T) {
	s := webSpec(200)
	seoul := members("seoul", 8, view.Origin, view.Edge)
	seoul = append(seoul, view.Member{Name: "seoul-edge", Region: "seoul", Roles: []view.Role{view.Edge}})
	live := slices.Concat(seoul, members("frankfurt", 4, view.Origin))
	by := assigned(s, live)
	load := map[string]int{}
	for _, target := range s.TargetGroups["web"].Targets {
		nodes := by[health.TargetKey("web", target.AddrPort())]
		if len(nodes) != 3 {
			t.Fatalf("%v is checked by %v", target.AddrPort(), nodes)
		}
		for _, n := range nodes {
			load[n]++
		}
	}
	if len(load) != 8 || load["seoul-edge"] != 0 {
		t.Errorf("the targets are checked by %v", load)
	}
	for n, checks := range load {
		if checks < 45 || checks > 105 { // 75 each on average
			t.Errorf("%s has %d of 600 checks", n, checks)
		}
	}
}

func TestWhereFewNodesAreAllOfThemCheck(t *testing.T) {
	for n := range 4 {
		for key, nodes := range assigned(webSpec(5), members("seoul", n, view.Origin)) {
			if len(nodes) != n {
				t.Errorf("of %d nodes %v check %s", n, nodes, key)
			}
		}
	}
	if by := assigned(webSpec(5), members("frankfurt", 3, view.Origin)); len(by) != 1 || len(by["check/www"]) != 3 {
		t.Errorf("without a node in the targets' region %v are checked", by)
	}
	if by := assigned(webSpec(5), members("seoul", 3, view.Edge)); len(by) != 1 {
		t.Errorf("without the origin role %v are checked", by)
	}
}

func TestAHealthCheckIsCheckedByThreeNodesOfEveryRegion(t *testing.T) {
	s := &spec.Spec{HealthChecks: map[string]*spec.HealthCheck{"www": wwwCheck()}}
	live := slices.Concat(members("seoul", 5, view.Edge), members("frankfurt", 2, view.DNS), members("virginia", 9, view.Origin))
	by := map[string]int{}
	for _, n := range assigned(s, live)["check/www"] {
		m, _ := (&view.View{Members: live}).Member(n)
		by[m.Region]++
	}
	if diff := cmp.Diff(map[string]int{"seoul": 3, "frankfurt": 2, "virginia": 3}, by); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestWhatHasNothingToDoWithACheckDoesNotMoveIt(t *testing.T) {
	s := webSpec(50)
	seoul := members("seoul", 6, view.Origin)
	want := assigned(s, seoul)
	reversed := slices.Clone(seoul)
	slices.Reverse(reversed)
	more := webSpec(50)
	more.TargetGroups["other"] = &spec.TargetGroup{Name: "other", Region: "frankfurt"}
	more.HealthChecks["off"] = &spec.HealthCheck{Name: "off", Disabled: true}
	for what, got := range map[string]map[health.Key][]string{
		"a node of another region":      assigned(s, slices.Concat(seoul, members("frankfurt", 3, view.Origin))),
		"the order of members":          assigned(s, reversed),
		"another group and HealthCheck": assigned(more, seoul),
	} {
		for key, nodes := range want {
			here := slices.DeleteFunc(got[key], func(n string) bool { return !strings.HasPrefix(n, "seoul") })
			slices.Sort(here)
			if !slices.Equal(here, nodes) {
				t.Errorf("%s moved %s from %v to %v", what, key, nodes, here)
			}
		}
	}
}

func TestWhenANodeLeavesOnlyItsChecksMove(t *testing.T) {
	s := webSpec(200)
	seoul := members("seoul", 6, view.Origin)
	before, after := assigned(s, seoul), assigned(s, seoul[1:])
	moved := 0
	for key, nodes := range before {
		if !slices.Contains(nodes, "seoul-0") {
			if !slices.Equal(nodes, after[key]) {
				t.Errorf("%s went from %v to %v", key, nodes, after[key])
			}
			continue
		}
		moved++
		kept := 0
		for _, n := range nodes {
			if slices.Contains(after[key], n) {
				kept++
			}
		}
		if kept != 2 || len(after[key]) != 3 {
			t.Errorf("%s went from %v to %v", key, nodes, after[key])
		}
	}
	if moved == 0 {
		t.Error("seoul-0 checked nothing")
	}
}

func TestANodeThatIsNoMemberChecksNothing(t *testing.T) {
	if c := Checks(webSpec(1), &view.View{Self: "gone", Members: members("seoul", 1, view.Origin)}); c != nil {
		t.Errorf("got %v", c)
	}
	if Checks(nil, &view.View{}) != nil || Checks(webSpec(1), nil) != nil {
		t.Error("without a spec or a view there are checks")
	}
}

func TestAChecksTermsAreThoseOfItsResource(t *testing.T) {
	s := time.Second
	web := func(change func(*spec.TargetHealthCheck)) func(*spec.Spec) {
		return func(s *spec.Spec) {
			s.HealthChecks = nil
			change(&s.TargetGroups["web"].HealthCheck)
		}
	}
	www := func(change func(*spec.HealthCheck)) func(*spec.Spec) {
		return func(s *spec.Spec) {
			s.TargetGroups = nil
			change(s.HealthChecks["www"])
		}
	}
	elb := health.Thresholds{Healthy: 5, Unhealthy: 2, Interval: 30 * s}
	route53 := health.Thresholds{Healthy: 3, Unhealthy: 3, Interval: 30 * s, PresumedHealthy: true}
	ga := func(change func(*spec.EndpointGroup)) func(*spec.Spec) {
		return func(s *spec.Spec) {
			a := goAccelerator()
			change(&a.Listeners[0].EndpointGroups[0])
			s.TargetGroups, s.HealthChecks, s.Accelerators = nil, nil, map[string]*spec.Accelerator{"go": a}
		}
	}
	accelerated := Check{
		Key: "endpoint/go/seoul/10.0.0.9:443", Address: netip.MustParseAddrPort("10.0.0.9:443"), Protocol: spec.TCP,
		ConnectTimeout: 10 * s, Timeout: 10 * s, Thresholds: health.Thresholds{Healthy: 3, Unhealthy: 3, Interval: 30 * s},
	}
	target := Check{
		Key: "target/web/10.0.0.0:80", Address: netip.MustParseAddrPort("10.0.0.0:80"), Protocol: spec.HTTP,
		Host: "10.0.0.0:80", Path: "/up", Matcher: "200-299",
		ConnectTimeout: 6 * s, AnswerTimeout: 6 * s, Timeout: 6 * s, Thresholds: elb,
	}
	endpoint := Check{
		Key: "check/www", Address: netip.MustParseAddrPort("192.0.2.1:80"), Protocol: spec.HTTP,
		Host: "192.0.2.1", Path: "/", Matcher: "200-399",
		ConnectTimeout: 4 * s, AnswerTimeout: 2 * s, Timeout: 6 * s, Thresholds: route53,
	}
	with := func(c Check, change func(*Check)) Check {
		change(&c)
		return c
	}
	for _, c := range []struct {
		name   string
		change func(*spec.Spec)
		want   Check
	}{
		{"a target by HTTPS", web(func(h *spec.TargetHealthCheck) { h.Protocol, h.ValidateCertificate = spec.HTTPS, true }), with(target, func(c *Check) {
			c.Protocol, c.Validate = spec.HTTPS, true
		})},
		{"a target by gRPC", web(func(h *spec.TargetHealthCheck) { h.Protocol, h.Path, h.Matcher = spec.GRPC, spec.GRPCHealthPath, "12" }), with(target, func(c *Check) {
			c.Protocol, c.Path, c.Matcher = spec.GRPC, "/AWS.ALB/healthcheck", "12"
		})},
		{"for a string", www(func(h *spec.HealthCheck) { h.Type, h.SearchString = spec.HTTPStringMatch, "up" }), with(endpoint, func(c *Check) {
			c.Search, c.BodyTimeout, c.Timeout = "up", 2*s, 8*s
		})},
		{"for a string by HTTPS, each second", www(func(h *spec.HealthCheck) {
			h.Type, h.SearchString, h.Port, h.RequestInterval = spec.HTTPSStringMatch, "up", 443, duration(s)
		}), with(endpoint, func(c *Check) {
			c.Protocol, c.Search, c.Address = spec.HTTPS, "up", netip.MustParseAddrPort("192.0.2.1:443")
			c.ConnectTimeout, c.AnswerTimeout, c.BodyTimeout, c.Timeout, c.Thresholds.Interval = s, s, s, s, s
		})},
		{"by gRPC", www(func(h *spec.HealthCheck) { h.Type, h.ResourcePath, h.Port = spec.GRPC, spec.GRPCHealthPath, 50051 }), with(endpoint, func(c *Check) {
			c.Protocol, c.Path, c.Matcher, c.Address, c.Host = spec.GRPC, "/AWS.ALB/healthcheck", "0,12", netip.MustParseAddrPort("192.0.2.1:50051"), "192.0.2.1:50051"
		})},
		{"by HTTPS with a name", www(func(h *spec.HealthCheck) {
			h.Type, h.FullyQualifiedDomainName, h.Port, h.ValidateCertificate = spec.HTTPS, "www.example.com", 443, true
		}), with(endpoint, func(c *Check) {
			c.Protocol, c.Host, c.Address, c.SNI, c.Validate = spec.HTTPS, "www.example.com", netip.MustParseAddrPort("192.0.2.1:443"), true, true
		})},
		{"by HTTPS with a name that is not told", www(func(h *spec.HealthCheck) {
			h.Type, h.FullyQualifiedDomainName, h.Port, h.EnableSNI = spec.HTTPS, "www.example.com", 443, new(bool)
		}), with(endpoint, func(c *Check) {
			c.Protocol, c.Host, c.Address = spec.HTTPS, "www.example.com", netip.MustParseAddrPort("192.0.2.1:443")
		})},
		{"an endpoint that has only a name", www(func(h *spec.HealthCheck) { h.FullyQualifiedDomainName, h.IPAddress = "www.example.com", netip.Addr{} }), with(endpoint, func(c *Check) {
			c.Host, c.Name, c.Address = "www.example.com", "www.example.com", netip.AddrPortFrom(netip.Addr{}, 80)
		})},
		{"from this region among others", www(func(h *spec.HealthCheck) { h.Regions = []string{"frankfurt", "seoul"} }), endpoint},
		{"an accelerator's endpoint", ga(func(*spec.EndpointGroup) {}), accelerated},
		{"an accelerator's endpoint by HTTPS", ga(func(g *spec.EndpointGroup) { g.HealthCheckProtocol, g.HealthCheckPath = spec.HTTPS, "/up" }), with(accelerated, func(c *Check) {
			c.Protocol, c.Path, c.Host, c.Matcher = spec.HTTPS, "/up", "10.0.0.9", "200-399"
			c.ConnectTimeout, c.AnswerTimeout, c.Timeout = 4*s, 2*s, 6*s
		})},
		{"a target", web(func(*spec.TargetHealthCheck) {}), target},
		{"a target with a port for its checks", web(func(h *spec.TargetHealthCheck) { h.Port = 9000 }), with(target, func(c *Check) {
			c.Address, c.Host = netip.MustParseAddrPort("10.0.0.0:9000"), "10.0.0.0:9000"
		})},
		{"a target that is told from whom flows are", func(s *spec.Spec) {
			s.HealthChecks, s.TargetGroups["web"].ProxyProtocolV2 = nil, true
		}, with(target, func(c *Check) { c.Proxy = true })},
		{"what speaks TCP beside UDP is sent no PROXY header", func(s *spec.Spec) {
			s.HealthChecks, s.TargetGroups["web"].ProxyProtocolV2, s.TargetGroups["web"].Protocol = nil, true, spec.UDP
		}, target},
		{"a port for its checks, where nobody is told", func(s *spec.Spec) {
			s.HealthChecks, s.TargetGroups["web"].ProxyProtocolV2, s.TargetGroups["web"].HealthCheck.Port = nil, true, 9000
		}, with(target, func(c *Check) { c.Address, c.Host = netip.MustParseAddrPort("10.0.0.0:9000"), "10.0.0.0:9000" })},
		{"a TCP target", web(func(h *spec.TargetHealthCheck) { h.Protocol, h.Path, h.Matcher = spec.TCP, "", "" }), with(target, func(c *Check) {
			c.Protocol, c.Host, c.Path, c.Matcher = spec.TCP, "", "", ""
		})},
		{"no probe outlasts its interval", web(func(h *spec.TargetHealthCheck) { h.Interval = duration(s) }), with(target, func(c *Check) {
			c.ConnectTimeout, c.AnswerTimeout, c.Timeout, c.Thresholds.Interval = s, s, s, s
		})},
		{"an endpoint", www(func(*spec.HealthCheck) {}), endpoint},
		{"an endpoint by name", www(func(h *spec.HealthCheck) { h.FullyQualifiedDomainName = "www.example.com" }), with(endpoint, func(c *Check) {
			c.Host = "www.example.com"
		})},
		{"on a port that is not HTTP's", www(func(h *spec.HealthCheck) { h.FullyQualifiedDomainName, h.Port = "www.example.com", 443 }), with(endpoint, func(c *Check) {
			c.Host, c.Address = "www.example.com:443", netip.MustParseAddrPort("192.0.2.1:443")
		})},
		{"by HTTPS, IPv6", www(func(h *spec.HealthCheck) {
			h.Type, h.Port, h.IPAddress = spec.HTTPS, 443, netip.MustParseAddr("2001:db8::1")
		}), with(endpoint, func(c *Check) {
			c.Protocol, c.Host, c.Address = spec.HTTPS, "[2001:db8::1]", netip.MustParseAddrPort("[2001:db8::1]:443")
		})},
		{"by TCP", www(func(h *spec.HealthCheck) { h.Type, h.ResourcePath = spec.TCP, "" }), with(endpoint, func(c *Check) {
			c.Protocol, c.Host, c.Path, c.Matcher = spec.TCP, "", "", ""
			c.ConnectTimeout, c.AnswerTimeout, c.Timeout = 10*s, 0, 10*s
		})},
		{"each second", www(func(h *spec.HealthCheck) { h.RequestInterval = duration(s) }), with(endpoint, func(c *Check) {
			c.ConnectTimeout, c.AnswerTimeout, c.Timeout, c.Thresholds.Interval = s, s, s, s
		})},
	} {
		sp := webSpec(1)
		c.change(sp)
		got := Checks(sp, &view.View{Self: "seoul-0", Members: members("seoul", 1, view.Origin)})
		if diff := cmp.Diff([]Check{c.want}, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
			t.Errorf("%s (-want +got)\n%s", c.name, diff)
		}
	}
	for what, change := range map[string]func(*spec.Spec){
		"a disabled HealthCheck":         www(func(h *spec.HealthCheck) { h.Disabled = true }),
		"a HealthCheck of other regions": www(func(h *spec.HealthCheck) { h.Regions = []string{"frankfurt"} }),
		"a calculated HealthCheck": www(func(h *spec.HealthCheck) {
			*h = spec.HealthCheck{Name: "www", Type: spec.Calculated, ChildHealthChecks: []string{"a"}}
		}),
		"a target whose checks are off":      web(func(h *spec.TargetHealthCheck) { h.Enabled = new(bool) }),
		"an endpoint that is a target group": ga(func(g *spec.EndpointGroup) { g.Endpoints = []spec.Endpoint{{TargetGroup: "web"}} }),
		"an endpoint of another region":      ga(func(g *spec.EndpointGroup) { g.Region = "frankfurt" }),
		"an endpoint of a disabled accelerator": func(s *spec.Spec) {
			ga(func(*spec.EndpointGroup) {})(s)
			s.Accelerators["go"].Enabled = new(bool)
		},
	} {
		sp := webSpec(1)
		change(sp)
		if got := Checks(sp, &view.View{Self: "seoul-0", Members: members("seoul", 1, view.Origin)}); len(got) != 0 {
			t.Errorf("%s is checked: %v", what, got)
		}
	}
}

func TestOfTwoWaysToCheckOneEndpointTheFirstCounts(t *testing.T) {
	a := goAccelerator()
	second := a.Listeners[0]
	second.EndpointGroups = slices.Clone(second.EndpointGroups)
	second.EndpointGroups[0].HealthCheckProtocol, second.EndpointGroups[0].HealthCheckPath = spec.HTTP, "/"
	a.Listeners = append(a.Listeners, second)
	s := &spec.Spec{Accelerators: map[string]*spec.Accelerator{"go": a}}
	got := Checks(s, &view.View{Self: "seoul-0", Members: members("seoul", 1, view.Origin)})
	if len(got) != 1 || got[0].Protocol != spec.TCP {
		t.Errorf("got %v", got)
	}
}

func TestAnEndpointIsCheckedByThreeOriginNodesOfItsRegion(t *testing.T) {
	s := &spec.Spec{Accelerators: map[string]*spec.Accelerator{"go": goAccelerator()}}
	live := slices.Concat(members("seoul", 5, view.Origin), members("frankfurt", 3, view.Origin))
	by := assigned(s, live)["endpoint/go/seoul/10.0.0.9:443"]
	if len(by) != 3 || slices.ContainsFunc(by, func(n string) bool { return !strings.HasPrefix(n, "seoul") }) {
		t.Errorf("it is checked by %v", by)
	}
}

func TestANodeThatIsDrainedOrLeavesGoesOnLooking(t *testing.T) {
	s := webSpec(20)
	seoul := members("seoul", 5, view.Origin)
	want := assigned(s, seoul)
	seoul[0].Drained, seoul[1].Leaving = "node seoul-0", true
	if diff := cmp.Diff(want, assigned(s, seoul)); diff != "" {
		t.Errorf("checks moved (-want +got)\n%s", diff)
	}
}

func TestWhoHasAVoice(t *testing.T) {
	s := webSpec(2)
	s.TargetGroups["off"] = webGroup(1)
	s.TargetGroups["off"].Name, s.TargetGroups["off"].HealthCheck.Enabled = "off", new(bool)
	s.Accelerators = map[string]*spec.Accelerator{"go": goAccelerator()}
	near := wwwCheck()
	near.Name, near.Regions = "near", []string{"seoul", "virginia"}
	off := wwwCheck()
	off.Name, off.Disabled = "off", true
	s.HealthChecks["near"], s.HealthChecks["off"] = near, off
	s.HealthChecks["all"] = &spec.HealthCheck{Name: "all", Type: spec.Calculated}
	seoul := members("seoul", 5, view.Origin)
	seoul[3].Roles = []view.Role{view.Edge}
	seoul[4].Drained, seoul[4].Leaving = "node seoul-4", true
	has := Entitled(s, &view.View{Self: "frankfurt-0", Members: slices.Concat(seoul, members("frankfurt", 1, view.Origin))})
	nodes := []string{"seoul-0", "seoul-1", "seoul-2", "seoul-3", "seoul-4", "frankfurt-0", "gone"}
	origins := []string{"seoul-0", "seoul-1", "seoul-2", "seoul-4"}
	for key, want := range map[health.Key][]string{
		"target/web/10.0.0.0:80":             origins,
		"target/web/10.0.0.1:80":             origins,
		"target/web/10.0.0.2:80":             nil,
		"target/web/10.0.0.0:080":            nil,
		"target/other/10.0.0.0:80":           nil,
		"target/off/10.0.0.0:80":             nil,
		"check/www":                          {"seoul-0", "seoul-1", "seoul-2", "seoul-3", "seoul-4", "frankfurt-0"},
		"check/near":                         {"seoul-0", "seoul-1", "seoul-2", "seoul-3", "seoul-4"},
		"check/off":                          nil,
		"check/all":                          nil,
		"check/none":                         nil,
		"endpoint/go/seoul/10.0.0.9:443":     origins,
		"endpoint/go/seoul/10.0.0.8:443":     nil,
		"endpoint/go/frankfurt/10.0.0.9:443": nil,
		"":                                   nil,
		"target/":                            nil,
	} {
		var got []string
		for _, n := range nodes {
			if has(key, n) {
				got = append(got, n)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v have a voice, want %v", key, got, want)
		}
	}
	if Entitled(nil, &view.View{})("check/www", "a") || Entitled(s, nil)("check/www", "seoul-0") {
		t.Error("without a spec or a view somebody has a voice")
	}
}

func TestWhoLooksHasAVoice(t *testing.T) {
	s := webSpec(50)
	s.Accelerators = map[string]*spec.Accelerator{"go": goAccelerator()}
	live := slices.Concat(members("seoul", 5, view.Origin), members("frankfurt", 4, view.DNS))
	has := Entitled(s, &view.View{Members: live})
	for key, nodes := range assigned(s, live) {
		for _, n := range nodes {
			if !has(key, n) {
				t.Errorf("%s looks at %s and has no voice", n, key)
			}
		}
	}
}

func BenchmarkEntitled(b *testing.B) {
	s := &spec.Spec{TargetGroups: map[string]*spec.TargetGroup{"web": webGroup(1000)}}
	has := Entitled(s, &view.View{Members: members("seoul", 10, view.Origin)})
	var keys []health.Key
	for _, t := range s.TargetGroups["web"].Targets {
		keys = append(keys, health.TargetKey("web", t.AddrPort()))
	}
	for i := 0; b.Loop(); i++ {
		has(keys[i%len(keys)], "seoul-3")
	}
}
