package spec

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// aMapped is a listener of a custom routing accelerator: port ranges, destination ports of each group, and the subnets of its endpoints.
func aMapped(t *rapid.T) *AcceleratorListener {
	l := &AcceleratorListener{Protocol: TCP}
	from := 1000
	for range rapid.IntRange(1, 4).Draw(t, "ranges") {
		from += rapid.IntRange(1, 50).Draw(t, "gap")
		to := from + rapid.IntRange(0, 200).Draw(t, "ports")
		l.PortRanges = append(l.PortRanges, PortRange{uint16(from), uint16(to)})
		from = to
	}
	if rapid.Bool().Draw(t, "another order") {
		slices.Reverse(l.PortRanges)
	}
	for i := range rapid.IntRange(1, 3).Draw(t, "groups") {
		g := EndpointGroup{Region: fmt.Sprint("r", i)}
		to := 79
		for range rapid.IntRange(1, 2).Draw(t, "destination ranges") {
			from := to + 1 + rapid.IntRange(0, 3).Draw(t, "destination gap")
			to = from + rapid.IntRange(0, 3).Draw(t, "destinations")
			g.DestinationConfigurations = append(g.DestinationConfigurations, PortRange{uint16(from), uint16(to)})
		}
		for j := range rapid.IntRange(0, 3).Draw(t, "endpoints") {
			g.Endpoints = append(g.Endpoints, anEndpoint(t, l, i, j))
		}
		l.EndpointGroups = append(l.EndpointGroups, g)
	}
	return l
}

func anEndpoint(t *rapid.T, l *AcceleratorListener, i, j int) Endpoint {
	base, bits := netip.AddrFrom4([4]byte{10, byte(i), byte(j), 0}), rapid.IntRange(26, 32).Draw(t, "bits")
	if rapid.IntRange(0, 3).Draw(t, "IPv6") == 0 {
		base, bits = netip.AddrFrom16([16]byte{0xfd, byte(i), byte(j), 14: 255}), bits+96
	}
	e := Endpoint{Subnet: netip.PrefixFrom(base, bits).Masked()}
	if rapid.IntRange(0, 3).Draw(t, "pinned") == 0 {
		e.ListenerPort = l.portAt(rapid.IntRange(0, l.size()-1).Draw(t, "listener port"))
	}
	switch rapid.IntRange(0, 2).Draw(t, "allowed") {
	case 0:
		e.AllowAllTraffic = true
	case 1:
		e.AllowedTraffic = []CustomRoutingTraffic{{DestinationAddresses: []netip.Addr{e.Subnet.Addr()}, DestinationPorts: []int{80, 81}}}
	}
	return e
}

func mappings(l *AcceleratorListener) map[uint16]PortMapping {
	all := map[uint16]PortMapping{}
	for m := range l.PortMappings() {
		all[m.ListenerPort] = m
	}
	return all
}

// A port is open just where traffic may go by it, or is the listener's first.
func TestPortsAreOpenWhereTrafficMayGo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := aMapped(t)
		l.blocks(func(b block, _ string) { // a spec with faults is not served
			l.EndpointGroups[b.group].Endpoints[b.endpoint].Subnet = netip.Prefix{}
		})
		want := map[uint16]bool{l.portAt(0): true}
		for port, m := range mappings(l) {
			if m.Allowed {
				want[port] = true
			}
		}
		got := l.OpenPorts()
		if !slices.IsSorted(got) || len(got) != len(want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		for _, port := range got {
			if !want[port] {
				t.Fatalf("%d is open", port)
			}
		}
	})
}

// Each destination of each endpoint that is taken has one port of the listener, and no two have the same.
func TestPortsAndDestinationsAreMappedOneToOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := aMapped(t)
		refused := map[[2]int]bool{}
		l.blocks(func(b block, _ string) { refused[[2]int{b.group, b.endpoint}] = true })
		ports, destinations := map[uint16]bool{}, map[string]bool{}
		for m := range l.PortMappings() {
			where := fmt.Sprint(m.Region, " ", m.Destination)
			if ports[m.ListenerPort] || destinations[where] {
				t.Fatalf("%+v is mapped twice", m)
			}
			ports[m.ListenerPort], destinations[where] = true, true
			if !l.Has(m.ListenerPort) || !m.Subnet.Contains(m.Destination.Addr()) {
				t.Fatalf("%+v is out of bounds", m)
			}
			if one, ok := l.PortMapping(m.ListenerPort); !ok || one != m {
				t.Fatalf("port %d alone: %+v, not %+v", m.ListenerPort, one, m)
			}
			if l.MayReach(m.Region, m.Destination) != m.Allowed {
				t.Fatalf("%+v may be reached: %v", m, !m.Allowed)
			}
		}
		want := 0
		for i, g := range l.EndpointGroups {
			for j, e := range g.Endpoints {
				if refused[[2]int{i, j}] {
					continue
				}
				for a := e.Subnet.Addr(); e.Subnet.Contains(a); a = a.Next() {
					for _, r := range g.DestinationConfigurations {
						for p := r.FromPort; p <= r.ToPort; p++ {
							want++
							if !destinations[fmt.Sprint(g.Region, " ", netip.AddrPortFrom(a, p))] {
								t.Fatalf("%v:%d of %s is not mapped", a, p, g.Region)
							}
						}
					}
				}
			}
		}
		if want != len(ports) {
			t.Fatalf("%d ports lead to %d destinations", len(ports), want)
		}
		for p := range uint16(2500) {
			if m, ok := l.PortMapping(p); ok != ports[p] {
				t.Fatalf("port %d: %+v, %v", p, m, ok)
			}
		}
	})
}

// What is added at the end, and what is allowed, moves no mapping that there was.
func TestMappingsStayWhenMoreIsAdded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := aMapped(t)
		before := mappings(l)
		more := *l
		more.PortRanges = append(slices.Clone(l.PortRanges), PortRange{5000, 5000 + uint16(rapid.IntRange(0, 300).Draw(t, "more ports"))})
		more.EndpointGroups = slices.Clone(l.EndpointGroups)
		refused := false
		l.blocks(func(block, string) { refused = true })
		if refused {
			return // what there is was not taken
		}
		last := &more.EndpointGroups[len(more.EndpointGroups)-1]
		e := anEndpoint(t, l, len(more.EndpointGroups)-1, 100)
		e.ListenerPort = 0
		last.Endpoints = append(slices.Clone(last.Endpoints), e)
		more.EndpointGroups = append(more.EndpointGroups, EndpointGroup{
			Region: "new", DestinationConfigurations: []PortRange{{80, 80}}, Endpoints: []Endpoint{{Subnet: netip.MustParsePrefix("10.200.0.0/30")}},
		})
		after := mappings(&more)
		for p, m := range before {
			if after[p] != m {
				t.Fatalf("port %d led to %+v, and leads to %+v", p, m, after[p])
			}
		}
		for i := range more.EndpointGroups {
			more.EndpointGroups[i].Endpoints = slices.Clone(more.EndpointGroups[i].Endpoints)
			for j := range more.EndpointGroups[i].Endpoints {
				more.EndpointGroups[i].Endpoints[j].AllowAllTraffic = true
			}
		}
		for p, m := range mappings(&more) {
			was := after[p]
			was.Allowed = true
			if m != was {
				t.Fatalf("port %d: %+v, before it was allowed %+v", p, m, was)
			}
		}
	})
}

// The developer guide's order: all ports of an address, then those of the next.
func TestTheOrderOfMappings(t *testing.T) {
	l := &AcceleratorListener{Protocol: TCP, PortRanges: []PortRange{{10001, 10006}, {20001, 20004}}, EndpointGroups: []EndpointGroup{{
		Region: "eu", DestinationConfigurations: []PortRange{{81, 82}}, Endpoints: []Endpoint{
			{Subnet: netip.MustParsePrefix("10.0.1.0/31"), AllowAllTraffic: true},
			{Subnet: netip.MustParsePrefix("10.0.2.0/31"), AllowedTraffic: []CustomRoutingTraffic{{[]netip.Addr{netip.MustParseAddr("10.0.2.1")}, []int{82}}}},
		},
	}}}
	var got []string
	for m := range l.PortMappings() {
		got = append(got, fmt.Sprint(m.ListenerPort, " ", m.Destination, " ", m.Allowed))
	}
	want := []string{
		"10001 10.0.1.0:81 true", "10002 10.0.1.0:82 true", "10003 10.0.1.1:81 true", "10004 10.0.1.1:82 true",
		"10005 10.0.2.0:81 false", "10006 10.0.2.0:82 false", "20001 10.0.2.1:81 false", "20002 10.0.2.1:82 true",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}
