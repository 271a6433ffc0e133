package accelerator

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
)

// rooms makes an accelerator one of custom routing: port 443 leads to 10.0.0.0:81, of which traffic may go to where is allowed.
func rooms(allowed bool) func(*spec.Spec) {
	return func(s *spec.Spec) {
		a := s.Accelerators["game"]
		a.Type = spec.CustomRoutingAccelerator
		l := &a.Listeners[0]
		l.PortRanges = []spec.PortRange{{FromPort: 443, ToPort: 446}}
		l.EndpointGroups[0].DestinationConfigurations = []spec.PortRange{{FromPort: 81, ToPort: 82}}
		l.EndpointGroups[0].Endpoints = []spec.Endpoint{{Subnet: netip.MustParsePrefix("10.0.0.0/31"), AllowAllTraffic: allowed, Weight: new(128)}}
		l.EndpointGroups = l.EndpointGroups[:1]
	}
}

// Of a range of all ports those are opened that lead where traffic may go, and the first.
func TestOnlyPortsThatLeadSomewhereAreOpened(t *testing.T) {
	s, _, a := up2().build()
	rooms(false)(s)
	l := &a.Listeners[0]
	l.PortRanges = []spec.PortRange{{FromPort: 60001, ToPort: 65535}, {FromPort: 1, ToPort: 60000}}
	l.EndpointGroups[0].DestinationConfigurations = []spec.PortRange{{FromPort: 81, ToPort: 82}}
	traffic := []spec.CustomRoutingTraffic{{DestinationAddresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.40.0")}, DestinationPorts: []int{82}}}
	l.EndpointGroups[0].Endpoints = []spec.Endpoint{{Subnet: netip.MustParsePrefix("10.0.0.0/18"), AllowedTraffic: traffic, Weight: new(128)}}
	p := New(Config{})
	open := func() (ports []uint16) {
		t.Helper()
		s.Revision++
		s2 := *s
		b := *a // with endpoints of its own: the plane keeps what it was given
		b.Listeners = slices.Clone(a.Listeners)
		b.Listeners[0].EndpointGroups = slices.Clone(l.EndpointGroups)
		b.Listeners[0].EndpointGroups[0].Endpoints = slices.Clone(l.EndpointGroups[0].Endpoints)
		s2.Accelerators = map[string]*spec.Accelerator{"game": &b}
		if err := p.Apply(&s2); err != nil {
			t.Fatal(err)
		}
		for _, one := range p.Listeners() {
			ports = append(ports, one.Address.Port())
		}
		return ports
	}
	if got, want := open(), []uint16{14947, 60001, 60004}; !slices.Equal(got, want) {
		t.Errorf("opened %v", got)
	}
	if _, ok := p.table.Load().entry(spec.TCP, netip.AddrPortFrom(local.Addr(), 30000)); !ok {
		t.Error("nobody knows of a port that is not opened")
	}
	l.EndpointGroups[0].Endpoints[0].AllowedTraffic = nil
	if got := open(); !slices.Equal(got, []uint16{60001}) {
		t.Errorf("opened %v", got)
	}
	l.EndpointGroups[0].Endpoints[0].AllowAllTraffic = true
	if err := p.Apply(&spec.Spec{Revision: 99, Accelerators: map[string]*spec.Accelerator{"game": a}}); err == nil || !strings.Contains(err.Error(), "more than 4096 ports") {
		t.Errorf("all 32,768: %v", err)
	}
}

func TestFlowsOfCustomRoutingEndWhereTheirPortIsMappedTo(t *testing.T) {
	n := up2()
	n.groups[0].nodes = []string{"icn1", "icn2", "icn3!"}
	onTurning(t, n, func(b *turning) {
		explained := func() (string, string) {
			tr := new(trace.Trace)
			answer, err := b.plane.Explain(spec.TCP, local, netip.MustParseAddr("203.0.113.9"), tr)
			if err != nil {
				b.Fatal(err)
			}
			return answer, tr.String()
		}
		b.turn(n, rooms(false))
		if answer, why := explained(); answer != "reset: traffic to it is not allowed" ||
			!strings.Contains(why, "port 443 is mapped to 10.0.0.0:81 of 10.0.0.0/31 in icn, which may have no traffic") {
			b.Errorf("explained %s:\n%s", answer, why)
		}
		b.isReset(b.dial())
		if len(b.dialled()) != 0 {
			b.Errorf("dialled %q", b.dialled())
		}
		b.turn(n, rooms(true))
		answer, why := explained()
		if !strings.HasPrefix(answer, "endpoint/game/10.0.0.0:81 in icn by icn") || !strings.Contains(why, "port 443 is mapped to 10.0.0.0:81 of 10.0.0.0/31 in icn, which may have traffic") {
			b.Errorf("explained %s:\n%s", answer, why)
		}
		c := b.flow()
		defer c.Close()
		if got := strings.Fields(b.dialled()[0]); got[2] != "endpoint/game/10.0.0.0:81" || got[0] == "icn3" {
			b.Errorf("dialled %q", got)
		}
		if s, _ := b.plane.Status("game", 1); len(s.Endpoints) != 1 || s.Endpoints[0].Endpoint != "10.0.0.0/31" || s.Endpoints[0].Flows != 1 || !s.Endpoints[0].Healthy {
			b.Errorf("got %+v", s.Endpoints)
		}
		if ended := b.turn(n, rooms(true)); len(ended) != 0 {
			b.Errorf("nothing turned: %+v", ended)
		}
		b.echoes(c)
		if ended := b.turn(n, rooms(false)); len(ended) != 1 || ended[0].Why != NotAllowed {
			b.Errorf("got %+v", ended)
		}
		b.isReset(c)
	})
}

func TestAPortThatIsMappedToNothingTakesNoFlow(t *testing.T) {
	n := up2()
	onLogged(t, n, 1, func(b *turning) {
		b.turn(n, func(s *spec.Spec) {
			rooms(true)(s)
			s.Accelerators["game"].FlowLogs = &spec.Sampling{}
			s.Accelerators["game"].Listeners[0].EndpointGroups[0].Endpoints[0].ListenerPort = 444
		})
		b.isReset(b.dial())
	}, "- 0 REJECT - INGRESS NOT_ALLOWED")
}

func TestCustomRoutingGoesByDrainedNodesAndThenByThoseThatLeaveIfThereAreNoOthers(t *testing.T) {
	for _, c := range []struct{ nodes, want []string }{
		{[]string{"icn1-", "icn2", "icn3."}, []string{"icn2"}},
		{[]string{"icn1-", "icn3."}, []string{"icn1"}},
		{[]string{"icn3."}, []string{"icn3"}},
	} {
		n := up2()
		n.groups[0].nodes = c.nodes
		s, v, a := n.build()
		rooms(true)(s)
		var got []string
		for _, one := range Choose(s, v, a, &a.Listeners[0], Flow{Client: client(1), Local: local}, nil) {
			got = append(got, one.Node)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v: got %v", c.nodes, got)
		}
	}
}
