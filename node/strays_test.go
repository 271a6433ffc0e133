package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/edge/anycast"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// Segments are taken for the doors of this node alone: those of accelerators, and at the addresses of --anycast those that are on them or on all addresses. More doors come with the spec.
func TestSegmentsAreTakenForDoorsOnly(t *testing.T) {
	const accelerator = region + `---
kind: Accelerator
name: two
ipAddresses: [203.0.113.1, 203.0.113.9]
listeners:
- {protocol: TCP, portRanges: [{fromPort: 7000}], endpointGroups: [{region: eu-central-1, endpoints: [{address: 10.0.1.1}]}]}
- {protocol: UDP, portRanges: [{fromPort: 7001}], endpointGroups: [{region: eu-central-1, endpoints: [{address: 10.0.1.1}]}]}
`
	const balancer = `---
kind: LoadBalancer
name: web
region: eu-central-1
listeners: [{protocol: HTTP, port: 8080, default: {fixedResponse: {statusCode: 200}}}]
`
	for _, ownDoors := range []bool{false, true} {
		t.Run(fmt.Sprintf("own doors %v", ownDoors), func(t *testing.T) {
			dir, own := t.TempDir(), ""
			if ownDoors {
				own = " [2001:db8::9]:7000"
			}
			synctest.Test(t, func(t *testing.T) {
				in := memnet.New(1)
				defer in.Close()
				cfg := configOf(in, "a", dir, netip.MustParseAddr("192.0.2.1")).bootstrapped()
				cfg.HTTP, cfg.DNS, cfg.OwnDoors = ":80", ":53", ownDoors
				cfg.BGP = BGP{AS: 64512, Neighbors: []anycast.Neighbor{{Address: netip.MustParseAddr("192.0.2.99"), AS: 64500}}}
				cfg.BGP.Anycast = []netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::9")}
				life(t, cfg, func(n *Node) {
					want := func(doors string) {
						t.Helper()
						time.Sleep(100 * time.Millisecond) // it runs what was applied
						addresses, all := n.strayDoors()
						slices.SortFunc(all, netip.AddrPort.Compare)
						all = slices.Compact(all)
						texts := []string{}
						for _, d := range all {
							texts = append(texts, d.String())
							if !slices.Contains(addresses, d.Addr()) {
								t.Errorf("the address of %v is not among %v", d, addresses)
							}
						}
						if got := strings.Join(texts, " "); got != doors {
							t.Errorf("doors are\n%s, want\n%s", got, doors)
						}
					}
					want("203.0.113.9:53 203.0.113.9:80 [2001:db8::9]:53 [2001:db8::9]:80")
					applied(t, n, accelerator)
					want("203.0.113.1:7000 203.0.113.9:53 203.0.113.9:80 203.0.113.9:7000 [2001:db8::9]:53 [2001:db8::9]:80" + own)
					applied(t, n, accelerator+balancer)
					want("203.0.113.1:7000 203.0.113.9:53 203.0.113.9:80 203.0.113.9:7000 203.0.113.9:8080 [2001:db8::9]:53 [2001:db8::9]:80" + own + " [2001:db8::9]:8080")
				})
			})
		})
	}
}

// A door is at an address if it is on that or on all, in either form of all; one that has no port is at none.
func TestDoorsAtAddresses(t *testing.T) {
	addresses := []netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::9")}
	for door, want := range map[string]string{
		":80": "203.0.113.9:80 [2001:db8::9]:80", "0.0.0.0:80": "203.0.113.9:80 [2001:db8::9]:80", "[::]:80": "203.0.113.9:80 [2001:db8::9]:80",
		"203.0.113.9:80": "203.0.113.9:80", "[::ffff:203.0.113.9]:80": "203.0.113.9:80", "[2001:db8::9]:80": "[2001:db8::9]:80", "192.0.2.1:80": "", ":0": "",
	} {
		at, err := doorAddress(door)
		if err != nil {
			t.Fatal(err)
		}
		var texts []string
		for _, d := range doorsAt(addresses, []netip.AddrPort{at}) {
			texts = append(texts, d.String())
		}
		if got := strings.Join(texts, " "); got != want {
			t.Errorf("%s is at %q, want %q", door, got, want)
		}
	}
}
