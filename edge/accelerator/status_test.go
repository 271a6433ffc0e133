package accelerator

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin"
	"github.com/perigee-net/perigee/origin/relay"
)

func TestTheStatusOfAnAcceleratorIsItsFlowsEndpointsAndPaths(t *testing.T) {
	n := up2()
	n.groups[0].endpoints = append(n.groups[0].endpoints, testEndpoint{"10.0.0.7", 0, true})
	onTurning(t, n, func(b *turning) {
		b.plane.config.Leg = func(net.Conn) (relay.Leg, bool) { return relay.Leg{RTT: 10 * time.Millisecond, Retransmitted: 3}, true }
		small, large := b.flow(), b.flow()
		defer small.Close()
		defer large.Close()
		io.WriteString(large, "hello")
		if _, err := io.ReadFull(large, make([]byte, 5)); err != nil {
			b.Fatal(err)
		}
		s, ok := b.plane.Status("game", 1)
		if !ok || !s.Enabled || len(s.Endpoints) != 3 || len(s.Paths) != 1 || len(s.Top) != 1 {
			b.Fatalf("got %+v, %v", s, ok)
		}
		carried := Moved{Flows: 2, BytesIn: 7, BytesOut: 7}
		for i, want := range []EndpointStatus{
			{Protocol: "TCP", Ports: "443", Region: "icn", Endpoint: "10.0.0.7", Dial: 100, State: view.Unhealthy},
			{Protocol: "TCP", Ports: "443", Region: "icn", Endpoint: "targetGroup/icn", Weight: 128, Dial: 100, Healthy: true, State: view.Healthy, Moved: carried},
			{Protocol: "TCP", Ports: "443", Region: "nrt", Endpoint: "targetGroup/nrt", Weight: 128, Dial: 100, Healthy: true, State: view.Healthy},
		} {
			if s.Endpoints[i] != want {
				b.Errorf("endpoint %d: got %+v", i, s.Endpoints[i])
			}
		}
		if want := (PathStatus{Region: "icn", Node: "icn1", RTT: 5 * time.Millisecond, Measured: true, Moved: carried}); s.Paths[0] != want {
			b.Errorf("got %+v", s.Paths[0])
		}
		f := s.Top[0]
		if f.Client != relay.AddrPort(large.LocalAddr()) || f.BytesIn != 6 || f.BytesOut != 6 || f.Local != local || f.Resource != "targetGroup/icn" || f.Node != "icn1" ||
			f.RTT != 10*time.Millisecond || f.Retransmitted != 3 || !f.Known || time.Since(f.Began) > time.Second {
			b.Errorf("got %+v", f)
		}
		b.turn(n, func(s *spec.Spec) {
			s.Accelerators["game"].Listeners[0].EndpointGroups[0].Endpoints[0].TargetGroup = "nrt"
		})
		s, _ = b.plane.Status("game", 0)
		if len(s.Top) != 0 || len(s.Endpoints) != 4 || !s.Endpoints[1].Gone || s.Endpoints[1].Flows != 2 {
			b.Errorf("its endpoint was removed: %+v", s)
		}
		if _, ok := b.plane.Status("other", 0); ok {
			b.Error("there is another")
		}
	})
}

func TestAnEndpointIsCalledAsTheSpecDoes(t *testing.T) {
	for resource, want := range map[string]string{
		"targetGroup/web": "targetGroup/web", "loadBalancer/web/443": "loadBalancer/web", "endpoint/game/10.0.0.1:443": "10.0.0.1",
		"endpoint/game/[2001:db8::1]:443": netip.MustParseAddr("2001:db8::1").String(),
	} {
		if got := endpointName(origin.Preserved(resource, true)); got != want && !strings.HasPrefix(resource, "loadBalancer/") {
			t.Errorf("%s, preserved: got %s, want %s", resource, got, want)
		}
		if got := endpointName(resource); got != want {
			t.Errorf("%s: got %s", resource, got)
		}
	}
}
