package node

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/edge/anycast"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// A node of a network zone announces of each accelerator the addresses of its zone, and the one that an accelerator has alone.
func TestANodeAnnouncesTheAddressesOfItsNetworkZone(t *testing.T) {
	const accelerators = region + `---
kind: Accelerator
name: two
ipAddresses: [203.0.113.1, "2001:db8::1", 203.0.113.2, 203.0.113.3]
listeners: [{protocol: TCP, portRanges: [{fromPort: 7000}], endpointGroups: [{region: eu-central-1, endpoints: [{address: 10.0.1.1}]}]}]
---
kind: Accelerator
name: one
ipAddresses: [203.0.113.9]
listeners: [{protocol: TCP, portRanges: [{fromPort: 7000}], endpointGroups: [{region: eu-central-1, endpoints: [{address: 10.0.1.1}]}]}]
---
kind: Accelerator
name: turned
ipAddresses: [203.0.113.2, 203.0.113.4]
listeners: [{protocol: TCP, portRanges: [{fromPort: 7001}], endpointGroups: [{region: eu-central-1, endpoints: [{address: 10.0.1.1}]}]}]
`
	for zone, want := range [][]string{
		{"203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4", "203.0.113.9", "2001:db8::1"},
		{"203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.9", "2001:db8::1"}, // 203.0.113.2 is in zone 2 of one accelerator, and in zone 1 of another
		{"203.0.113.2", "203.0.113.4", "203.0.113.9", "2001:db8::1"},
	} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			in := memnet.New(1)
			defer in.Close()
			cfg := configOf(in, "a", dir, netip.MustParseAddr("192.0.2.1")).bootstrapped()
			cfg.BGP = BGP{AS: 64512, NetworkZone: zone, Neighbors: []anycast.Neighbor{{Address: netip.MustParseAddr("192.0.2.99"), AS: 64500}}}
			life(t, cfg, func(n *Node) {
				applied(t, n, accelerators)
				time.Sleep(3 * time.Second)
				var got []string
				list := n.anycastList()
				for _, r := range list.Routes {
					got = append(got, r.Prefix.Addr().String())
				}
				if !slices.Equal(got, want) {
					t.Errorf("zone %d announces %q, want %q: %q", zone, got, want, list.Lines)
				}
				if last := list.Lines[len(list.Lines)-1]; last != "established flows that other nodes have are reset when routing leads them here: the network is not the machine's" {
					t.Errorf("of what routing leads here it says %q", last)
				}
			})
		})
	}
	for what, faulty := range map[string]bool{"": false, HandOverAuto: false, HandOverNever: false, "always": true} {
		b := BGP{HandOver: what}
		if err := b.check(netip.MustParseAddr("192.0.2.1")); (err != nil) != faulty {
			t.Errorf("--anycast-hand-over %q: %v", what, err)
		}
	}
	for zone, faulty := range map[int]bool{-1: true, 0: false, 1: false, 2: false, 3: true} {
		b := BGP{AS: 64512, NetworkZone: zone, Neighbors: []anycast.Neighbor{{}}}
		if err := b.check(netip.MustParseAddr("192.0.2.1")); (err != nil) != faulty {
			t.Errorf("zone %d: %v", zone, err)
		}
	}
}
