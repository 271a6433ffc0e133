package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/perigee-net/perigee/node/api"
)

func TestTheStatusOfAnAcceleratorIsPrinted(t *testing.T) {
	again := uint64(2)
	counts := api.FlowCounts{Flows: 1, BytesIn: 512, BytesOut: 3 << 20}
	var out strings.Builder
	err := printAccelerator(&out, api.AcceleratorStatus{
		Node: "fra1", Name: "game", Enabled: true, FlowCounts: counts, Nodes: []api.AcceleratorNode{{Name: "fra1", POP: "fra1", FlowCounts: counts}, {Name: "iad1", POP: "iad1", Error: "it is away"}},
		Endpoints: []api.AcceleratorEndpoint{
			{Protocol: "TCP", Ports: "443", Region: "eu", Endpoint: "targetGroup/web", TrafficDial: 99.5, Weight: 128, State: "initial", Reason: "not checked yet", FlowCounts: counts},
			{Protocol: "TCP", Region: "eu", Endpoint: "10.0.0.1", Gone: true},
		},
		Paths: []api.AcceleratorPath{{From: "fra1", To: "iad1", By: "lhr1", Region: "us", RTT: 80 * time.Millisecond, Loss: .015, Repaired: true, Carried: 3.1e8, FlowCounts: counts}},
		Top: []api.AcceleratorFlow{{Node: "fra1", Client: netip.MustParseAddrPort("192.0.2.1:5"), Local: netip.MustParseAddrPort("198.51.100.1:443"), Endpoint: "targetGroup/web", Target: netip.MustParseAddrPort("10.0.0.2:8443"),
			To: "fra1", BytesIn: 512, BytesOut: 3 << 20, RTT: 12 * time.Millisecond, Retransmitted: &again}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"accelerator game, enabled flows 1, in 512 B, out 3.0 MiB health as node fra1 sees it", "iad1 iad1 0 0 B 0 B it is away",
		"TCP 443 eu targetGroup/web 99.5 % 128 initial 1 512 B 3.0 MiB not checked yet", "eu 10.0.0.1 - - removed 0 0 B 0 B",
		"fra1 iad1 us lhr1 80ms 1.5 %, repaired 310 Mbit/s 1 512 B 3.0 MiB",
		"192.0.2.1:5 198.51.100.1:443 fra1 targetGroup/web 10.0.0.2:8443 fra1 direct", "512 B 3.0 MiB 12ms 2",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
