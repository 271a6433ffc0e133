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
		{"a target", web(func(*spec.TargetHealthCheck) {}), target},
		{"a target with a port for its checks", web(func(h *spec.TargetHealthCheck) { h.Port = 9000 }), with(target, func(c *Check) {
			c.Address, c.Host = netip.MustParseAddrPort("10.0.0.0:9000"), "10.0.0.0:9000"
		})},
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
	off := www(func(h *spec.HealthCheck) { h.Disabled = true })
	sp := webSpec(1)
	off(sp)
	if got := Checks(sp, &view.View{Self: "seoul-0", Members: members("seoul", 1)}); len(got) != 0 {
		t.Errorf("a disabled HealthCheck is checked: %v", got)
	}
}
