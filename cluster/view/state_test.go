package view

import (
	"net/netip"
	"testing"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
)

func TestAnEndpointsStateIsWhatFlowsAreSentByAndHasItsReason(t *testing.T) {
	no := false
	off := group("off", one, two)
	off.HealthCheck.Enabled = &no
	s := &spec.Spec{
		TargetGroups: map[string]*spec.TargetGroup{
			"fine": group("fine", one, two), "sick": group("sick", one, two), "new": group("new", one), "far": group("far", one), "empty": group("empty"), "off": off,
		},
		LoadBalancers: map[string]*spec.LoadBalancer{
			"fine": balancer("fine", "empty"), "sick": balancer("fine", "sick"), "new": balancer("new"), "empty": balancer("empty"),
		},
	}
	for _, g := range s.TargetGroups {
		g.Region = "icn"
	}
	s.TargetGroups["far"].Region = "gru"
	for _, lb := range s.LoadBalancers {
		lb.Listeners[0].Port = 80
	}
	v := &View{
		Members: []Member{{Name: "icn1", Region: "icn", Roles: []Role{Origin}}},
		Health: health.NewTable(map[health.Key]health.Verdict{
			health.TargetKey("fine", two):          {Healthy: true},
			health.TargetKey("sick", one):          {},
			health.TargetKey("sick", two):          {Reason: "connect: refused"},
			health.EndpointKey("game", "icn", one): {Healthy: true},
			health.EndpointKey("game", "icn", two): {Reason: "timeout"},
		}),
	}
	game, shut := &spec.Accelerator{Name: "game"}, &spec.Accelerator{Name: "shut", Enabled: &no}
	for _, c := range []struct {
		name   string
		view   *View
		a      *spec.Accelerator
		region string
		e      spec.Endpoint
		port   uint16
		state  State
		why    string
	}{
		{"subnet", v, game, "icn", spec.Endpoint{Subnet: netip.MustParsePrefix("10.0.0.0/28")}, 80, Unchecked, "destinations of custom routing are not checked"},
		{"address", v, game, "icn", spec.Endpoint{Address: one.Addr()}, 80, Healthy, ""},
		{"sick address", v, game, "icn", spec.Endpoint{Address: two.Addr()}, 80, Unhealthy, "timeout"},
		{"new address", v, game, "icn", spec.Endpoint{Address: netip.MustParseAddr("10.0.0.3")}, 80, Initial, "not checked yet"},
		{"address where nobody is", v, game, "gru", spec.Endpoint{Address: one.Addr()}, 80, Initial, "no node in gru could check it"},
		{"address of a disabled one", v, shut, "icn", spec.Endpoint{Address: one.Addr()}, 80, Initial, "a disabled accelerator's addresses are not checked"},
		{"no view", nil, game, "icn", spec.Endpoint{Address: one.Addr()}, 80, Initial, "no node in icn could check it"},
		{"group", v, game, "icn", spec.Endpoint{TargetGroup: "fine"}, 80, Healthy, ""},
		{"sick group", v, game, "icn", spec.Endpoint{TargetGroup: "sick"}, 80, Unhealthy, "none of its 2 targets is healthy, 10.0.0.2:80: connect: refused"},
		{"new group", v, game, "icn", spec.Endpoint{TargetGroup: "new"}, 80, Initial, "none of its targets was checked yet"},
		{"group where nobody is", v, game, "gru", spec.Endpoint{TargetGroup: "far"}, 80, Initial, "no node in gru could check its targets"},
		{"empty group", v, game, "icn", spec.Endpoint{TargetGroup: "empty"}, 80, Unhealthy, "it has no targets"},
		{"unchecked group", v, game, "icn", spec.Endpoint{TargetGroup: "off"}, 80, Healthy, ""},
		{"no such group", v, game, "icn", spec.Endpoint{TargetGroup: "gone"}, 80, Unhealthy, "there is no such target group"},
		{"balancer", v, game, "icn", spec.Endpoint{LoadBalancer: "fine"}, 80, Healthy, ""},
		{"balancer's other port", v, game, "icn", spec.Endpoint{LoadBalancer: "fine"}, 81, Unhealthy, "it has no listener at port 81"},
		{"sick balancer", v, game, "icn", spec.Endpoint{LoadBalancer: "sick"}, 80, Unhealthy, "target group sick: none of its 2 targets is healthy, 10.0.0.2:80: connect: refused"},
		{"new balancer", v, game, "icn", spec.Endpoint{LoadBalancer: "new"}, 80, Initial, "target group new: none of its targets was checked yet"},
		{"empty balancer", v, game, "icn", spec.Endpoint{LoadBalancer: "empty"}, 80, Unhealthy, "none of its target groups has targets"},
		{"no such balancer", v, game, "icn", spec.Endpoint{LoadBalancer: "gone"}, 80, Unhealthy, "there is no such load balancer"},
	} {
		g := &spec.EndpointGroup{Region: c.region, HealthCheckPort: 80}
		state, why := c.view.EndpointState(s, c.a, g, c.e, c.port)
		if state != c.state || why != c.why {
			t.Errorf("%s: %s, %q", c.name, state, why)
		}
		takes := c.view.GroupEndpointHealthy(s, c.a.Name, g, c.e) && (c.e.LoadBalancer == "" || s.LoadBalancers[c.e.LoadBalancer] == nil || s.LoadBalancers[c.e.LoadBalancer].Has(c.port))
		if (state == Healthy || state == Unchecked) != takes {
			t.Errorf("%s is %s, and takes flows: %v", c.name, state, takes)
		}
	}
}
