package accelerator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
)

// A flow counts where it ended, not where it was directed to first.
func TestFlowsAreCountedByAcceleratorAndRegion(t *testing.T) {
	n := network{groups: []testGroup{up("icn", 5, 100), up("nrt", 30, 100)}}
	down := func(_ context.Context, node string) error {
		if node == "icn1" {
			return errors.New("it is down")
		}
		return nil
	}
	onBench(t, n, down, func(b *bench) {
		c := b.dial()
		defer c.Close()
		io.WriteString(c, "hello")
		time.Sleep(time.Second)
		if got, want := b.plane.Traffic(), []Traffic{{Accelerator: "game", Region: "nrt", Protocol: spec.TCP, NewFlows: 1, BytesIn: 5, BytesOut: 5, Flows: 1}}; !slices.Equal(got, want) {
			b.Errorf("while it lasts: %+v", got)
		}
		c.CloseWrite()
		if all, err := io.ReadAll(c); string(all) != "hello" || err != nil {
			b.Fatalf("got %q, %v", all, err)
		}
		time.Sleep(time.Second)
		if got, want := b.plane.Traffic(), []Traffic{{Accelerator: "game", Region: "nrt", Protocol: spec.TCP, NewFlows: 1, BytesIn: 5, BytesOut: 5}}; !slices.Equal(got, want) {
			b.Errorf("afterwards: %+v", got)
		}
	})
}

func TestWhatIsCountedApartIsBounded(t *testing.T) {
	var p Plane
	for i := range maxTallies + 50 {
		p.tallies.of(way{fmt.Sprintf("a%03d", i), "r", spec.TCP}, otherWays()).flows.Add(1)
	}
	p.tallies.of(way{"a000", "r", spec.TCP}, otherWays()).flows.Add(1)
	all := p.Traffic()
	if len(all) != maxTallies+1 || all[0] != (Traffic{Accelerator: "a000", Region: "r", Protocol: spec.TCP, NewFlows: 2}) {
		t.Fatalf("%d, the first %+v", len(all), all[0])
	}
	if last := all[maxTallies]; last != (Traffic{Accelerator: Other, Region: Other, Protocol: Other, NewFlows: 50}) {
		t.Errorf("the others: %+v", last)
	}
}

func TestEndpointsAreCountedByRegion(t *testing.T) {
	three := up("nrt", 30, 100)
	three.endpoints = []testEndpoint{{name: "b", weight: 1}, {name: "10.1.0.1", weight: 1, sick: true}, {name: "lb:c", weight: 1}, {name: "d", weight: 0}}
	s, v, a := network{groups: []testGroup{down("icn", 5, 100), three}}.build()
	p := New(Config{View: func() *view.View { return v }})
	if err := p.Apply(s); err != nil {
		t.Fatal(err)
	}
	if got, want := p.Endpoints(), []Endpoints{{"game", "icn", 1, 0, 0}, {"game", "nrt", 3, 2, 0}}; !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	s, _, _ = network{groups: []testGroup{three}}.build()
	*s.Accelerators[a.Name].Enabled = false
	if err := p.Apply(s); err != nil {
		t.Fatal(err)
	}
	if got := p.Endpoints(); len(got) != 0 {
		t.Errorf("of one that is disabled: %+v", got)
	}
}

func TestWhatIsRefusedAndHowFlowsEndIsCountedByAccelerator(t *testing.T) {
	n := network{groups: []testGroup{up("icn", 5, 100)}}
	onBench(t, n, nil, func(b *bench) {
		c := b.dial()
		io.WriteString(c, "x")
		c.CloseWrite()
		io.ReadAll(c)
		c.Close()
		b.plane.count.live.Add(maxFlows)
		io.ReadAll(b.dial())
		b.plane.count.live.Add(-maxFlows)
		b.plane.TurnedAway(b.plane.Listeners()[0], netip.MustParseAddrPort("198.51.100.7:40000"))
		time.Sleep(time.Second)
		if n := b.plane.Counters()["accelerator_flows_refused_total"]; n != 2 {
			b.Errorf("%d refused", n)
		}
		if got, want := b.plane.Rejected(), []Counted{{Labels: [3]string{"game", "TCP 443", tooMany}, NewFlows: 2}}; !slices.Equal(got, want) {
			b.Errorf("refused: %+v", got)
		}
		if got, want := b.plane.Ended(), []Counted{{Labels: [3]string{"game", "icn", closed}, NewFlows: 1}}; !slices.Equal(got, want) {
			b.Errorf("ended: %+v", got)
		}
	})
}

func TestEachEndpointsHealthIsToldByListener(t *testing.T) {
	three := up("nrt", 30, 100)
	three.endpoints = []testEndpoint{{name: "b", weight: 1}, {name: "10.1.0.1", weight: 1, sick: true}, {name: "lb:c", weight: 0}}
	s, v, a := network{groups: []testGroup{three}}.build()
	// The load balancer listens at a port that the second of the listener's ports leads to.
	l := &s.Accelerators[a.Name].Listeners[0]
	l.PortRanges = append(l.PortRanges, spec.PortRange{FromPort: 8443, ToPort: 8443})
	l.EndpointGroups[0].PortOverrides = []spec.PortOverride{{ListenerPort: 8443, EndpointPort: 9443}}
	s.LoadBalancers["c"].Listeners[0].Port = 9443
	p := New(Config{View: func() *view.View { return v }})
	if err := p.Apply(s); err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Collect(p.Healths), []EndpointHealth{
		{"game", "TCP 443,8443", "nrt", "targetGroup/b", true}, {"game", "TCP 443,8443", "nrt", "10.1.0.1", false}, {"game", "TCP 443,8443", "nrt", "loadBalancer/c", true},
	}; !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
	*s.Accelerators[a.Name].Enabled = false
	if got := slices.Collect(p.Healths); len(got) > 0 {
		t.Errorf("of one that is disabled: %+v", got)
	}
}

// What nobody checks is not told to be healthy, nor unhealthy.
func TestDestinationsOfCustomRoutingHaveNoHealth(t *testing.T) {
	s, v, _ := network{groups: []testGroup{up("icn", 5, 100)}}.build()
	rooms(true)(s)
	p := New(Config{View: func() *view.View { return v }})
	if err := p.Apply(s); err != nil {
		t.Fatal(err)
	}
	if got, want := p.Endpoints(), []Endpoints{{"game", "icn", 1, 0, 1}}; !slices.Equal(got, want) {
		t.Errorf("counted %+v, want %+v", got, want)
	}
	if got := slices.Collect(p.Healths); len(got) > 0 {
		t.Errorf("got %+v", got)
	}
}
