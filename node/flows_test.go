package node

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/perigee-net/perigee/cluster/event"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/edge/accelerator"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/origin"
	"github.com/perigee-net/perigee/origin/relay"
)

func TestWhatNodesCarryIsToldTogether(t *testing.T) {
	one, two := api.FlowCounts{Flows: 1, BytesIn: 10, BytesOut: 100}, api.FlowCounts{Flows: 2, BytesIn: 20, BytesOut: 200}
	endpoint := func(name string, healthy, gone bool, c api.FlowCounts) api.AcceleratorEndpoint {
		return api.AcceleratorEndpoint{Protocol: "TCP", Ports: "443", Region: "eu", Endpoint: name, Weight: 128, Healthy: healthy, Gone: gone, FlowCounts: c}
	}
	here := api.AcceleratorStatus{
		Node: "a", Name: "game", Enabled: true, FlowCounts: one, Nodes: []api.AcceleratorNode{{Name: "a", FlowCounts: one}},
		Endpoints: []api.AcceleratorEndpoint{endpoint("x", false, false, one)},
		Paths:     []api.AcceleratorPath{{From: "a", To: "c", FlowCounts: one}}, Top: []api.AcceleratorFlow{{Node: "a", BytesIn: 10, BytesOut: 100}},
	}
	said := []api.AcceleratorStatus{here, {
		Node: "b", Name: "game", FlowCounts: two, Nodes: []api.AcceleratorNode{{Name: "b", FlowCounts: two}},
		Endpoints: []api.AcceleratorEndpoint{endpoint("x", true, false, one), endpoint("old", false, true, one)},
		Paths:     []api.AcceleratorPath{{From: "b", To: "c", FlowCounts: two}}, Top: []api.AcceleratorFlow{{Node: "b", BytesIn: 20, BytesOut: 180}, {Node: "b", BytesOut: 20}},
	}, {Nodes: []api.AcceleratorNode{{Name: "d", Error: "it does not answer"}}}}
	three := api.FlowCounts{Flows: 3, BytesIn: 30, BytesOut: 300}
	want := api.AcceleratorStatus{
		Node: "a", Name: "game", Enabled: true, FlowCounts: three,
		Nodes:     []api.AcceleratorNode{{Name: "a", FlowCounts: one}, {Name: "b", FlowCounts: two}, {Name: "d", Error: "it does not answer"}},
		Endpoints: []api.AcceleratorEndpoint{endpoint("old", false, true, one), endpoint("x", false, false, two)},
		Paths:     []api.AcceleratorPath{{From: "a", To: "c", FlowCounts: one}, {From: "b", To: "c", FlowCounts: two}},
		Top:       []api.AcceleratorFlow{{Node: "b", BytesIn: 20, BytesOut: 180}, {Node: "a", BytesIn: 10, BytesOut: 100}},
	}
	want.Endpoints[1].FlowCounts = api.FlowCounts{Flows: 2, BytesIn: 20, BytesOut: 200}
	if diff := cmp.Diff(want, joinAccelerator(here, said, 2), cmp.Comparer(func(x, y api.AcceleratorFlow) bool { return x == y })); diff != "" {
		t.Error(diff)
	}
	if len(here.Top) != 1 || here.Endpoints[0].Flows != 1 {
		t.Error("what a node said was changed")
	}
}

func TestWhatEndedFlowsIsNamedAsTheirCause(t *testing.T) {
	s := &spec.Spec{LoadBalancers: map[string]*spec.LoadBalancer{"nlb": {Listeners: []spec.Listener{{Default: spec.Action{Forward: "web"}}}}}}
	by := told{ids: []uint64{10, 11, 12, 13, 14}, effects: []event.Effect{
		{Kind: event.Spec, Subject: "spec"}, {Kind: event.Health, Subject: "target/web/10.0.0.1:80"}, {Kind: event.Health, Subject: "target/webby/10.0.0.1:80"},
		{Kind: event.Health, Subject: "endpoint/game/eu/10.0.0.1:80"}, {Kind: event.Route, Subject: "target/web/x"},
	}}
	for _, c := range []struct {
		why, resource string
		want          []uint64
	}{
		{accelerator.Disabled, "targetGroup/web", []uint64{10}},
		{accelerator.Unhealthy, "targetGroup/web", []uint64{11}},
		{accelerator.Unhealthy, "loadBalancer/nlb/443", []uint64{11}},
		{accelerator.Unhealthy, "loadBalancer/gone/443", nil},
		{accelerator.Unhealthy, "endpoint/game/10.0.0.1:443", []uint64{13}},
	} {
		e := accelerator.Ended{Accelerator: "game", Region: "eu", Resource: c.resource, Why: c.why}
		if got := by.causes(s, e); !slices.Equal(got, c.want) {
			t.Errorf("%s, %s: got %v", c.why, c.resource, got)
		}
	}
}

func TestTheEventsOfOneThingAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{cfg: Config{Name: "a"}, events: event.New("a", 0)}
		n.events.Add(event.Route, "record/x", "noise")
		go func() {
			time.Sleep(time.Second)
			n.events.Add(event.Route, "record/x", "noise")
			time.Sleep(time.Second)
			n.events.Add(event.Route, "accelerator/game/443/eu", "out")
		}()
		ask := func(q api.EventQuery) []string {
			q.Subject, q.Limit = "accelerator/game", max(q.Limit, 1)
			list, err := n.timeline(t.Context(), q)
			if err != nil || list.Events == nil {
				t.Fatalf("got %+v, %v", list, err)
			}
			texts := []string{}
			for _, e := range list.Events {
				texts = append(texts, e.Text)
			}
			return texts
		}
		began := time.Now()
		if got := ask(api.EventQuery{}); len(got) != 0 {
			t.Errorf("at once: %q", got)
		}
		if got := ask(api.EventQuery{Wait: 1500 * time.Millisecond}); len(got) != 0 || time.Since(began) != 1500*time.Millisecond {
			t.Errorf("too early: %q after %v", got, time.Since(began))
		}
		if got := ask(api.EventQuery{Wait: time.Minute}); !slices.Equal(got, []string{"out"}) || time.Since(began) != 2*time.Second {
			t.Errorf("got %q after %v", got, time.Since(began))
		}
		n.events.Add(event.Route, "accelerator/game", "disabled")
		if got := ask(api.EventQuery{}); !slices.Equal(got, []string{"disabled"}) {
			t.Errorf("the newest: %q", got)
		}
		if got := ask(api.EventQuery{After: 1}); !slices.Equal(got, []string{"out"}) {
			t.Errorf("the next: %q", got)
		}
	})
}

// resettable is a connection that notes that it was reset.
type resettable struct {
	net.Conn
	resets int
}

func (r *resettable) Abort() { r.resets++ }

// A flow that this node has taken, and that another node had first, is reset and takes no place here any more.
func TestATakenFlowThatIsNotCarriedLeaves(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	target := &resettable{Conn: near}
	n := &Node{origin: origin.New(origin.Config{
		Region:   "eu",
		DialFlow: func(context.Context, string, string) (net.Conn, error) { return target, nil },
	})}
	yes, dial, weight := true, 100.0, 128
	at := netip.MustParseAddr("10.0.0.1")
	s := &spec.Spec{Revision: 1, Accelerators: map[string]*spec.Accelerator{"game": {
		Name: "game", Enabled: &yes,
		Listeners: []spec.AcceleratorListener{{
			Protocol: spec.TCP, PortRanges: []spec.PortRange{{FromPort: 5000}},
			EndpointGroups: []spec.EndpointGroup{{Region: "eu", TrafficDial: &dial, Endpoints: []spec.Endpoint{{Address: at, Weight: &weight}}}},
		}},
	}}}
	if err := n.origin.Apply(s); err != nil {
		t.Fatal(err)
	}
	take := func() net.Conn {
		c, err := n.takeFlow(t.Context(), "endpoint/game/10.0.0.1:5000", netip.MustParseAddrPort("198.51.100.7:40000"))
		if err != nil {
			t.Fatal(err)
		}
		if n.flows.open != 1 {
			t.Fatalf("%d flows are open", n.flows.open)
		}
		return c
	}
	relay.Abort(take()) // as the race of an accelerator does with who comes too late
	if n.flows.open != 0 || target.resets == 0 {
		t.Errorf("%d flows are open, and the target was reset %d times", n.flows.open, target.resets)
	}
	c := take()
	_, ended := c.(accelerator.Taken).Hold(far)
	ended(relay.Result{})
	relay.Abort(c)
	if n.flows.open != 0 {
		t.Errorf("%d flows are open after one was carried", n.flows.open)
	}
}

// A flow that a loop is to connect takes a place from when it is asked for until it has ended, or came to nothing.
func TestAProspectTakesAPlace(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	n := &Node{origin: origin.New(origin.Config{Region: "eu"}), flows: flows{ended: make(chan struct{})}}
	client := netip.MustParseAddrPort("198.51.100.7:40000")
	if _, ok := n.prospect("endpoint/game/10.0.0.1:5000", client); ok || n.flows.open != 0 {
		t.Errorf("of nothing comes something, or %d flows are open", n.flows.open)
	}
	yes, dial, weight := true, 100.0, 128
	if err := n.origin.Apply(&spec.Spec{Revision: 1, Accelerators: map[string]*spec.Accelerator{"game": {
		Name: "game", Enabled: &yes,
		Listeners: []spec.AcceleratorListener{{
			Protocol: spec.TCP, PortRanges: []spec.PortRange{{FromPort: 5000}},
			EndpointGroups: []spec.EndpointGroup{{Region: "eu", TrafficDial: &dial, Endpoints: []spec.Endpoint{{Address: netip.MustParseAddr("10.0.0.1"), Weight: &weight}}}},
		}},
	}}}); err != nil {
		t.Fatal(err)
	}
	prospect := func() accelerator.Prospect {
		one, ok := n.prospect("endpoint/game/10.0.0.1:5000", client)
		if !ok || one.Target != netip.MustParseAddrPort("10.0.0.1:5000") || n.flows.open != 1 {
			t.Fatalf("%v, and %d flows are open", one.Target, n.flows.open)
		}
		return one
	}
	prospect().Left(nil)
	if n.flows.open != 0 {
		t.Errorf("%d flows are open after one came to nothing", n.flows.open)
	}
	_, ended := prospect().Took(far).Hold(near)
	if n.flows.open != 1 {
		t.Errorf("%d flows are open as one is carried", n.flows.open)
	}
	ended(relay.Result{})
	if n.flows.open != 0 {
		t.Errorf("%d flows are open after one was carried", n.flows.open)
	}
	n.flows.close(t.Context())
	if _, ok := n.prospect("endpoint/game/10.0.0.1:5000", client); ok {
		t.Error("one is begun as the node leaves")
	}
}

func TestWhatPanicsAsAFlowBeginsIsNotOpen(t *testing.T) {
	n := &Node{} // without a plane, so that it panics
	client := netip.MustParseAddrPort("198.51.100.7:40000")
	for name, begin := range map[string]func(){
		"takeFlow": func() { n.takeFlow(t.Context(), "targetGroup/web", client) },
		"prospect": func() { n.prospect("targetGroup/web", client) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s does not panic", name)
				}
			}()
			begin()
		}()
		if n.flows.open != 0 {
			t.Errorf("%d flows are open after %s", n.flows.open, name)
		}
	}
}
