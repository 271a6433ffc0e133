package node

import (
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// What leads to a node's own door is not dialled by any node, so that one flow is one.
func TestWhatWouldComeBackIsNotDialled(t *testing.T) {
	const doors = region + `---
{kind: TargetGroup, name: back, region: eu-central-1, protocol: TCP, port: 7003, targets: [{address: 192.0.2.1}, {address: 192.0.2.3}]}
---
{kind: TargetGroup, name: pages, region: eu-central-1, protocol: HTTP, port: 8080, targets: [{address: 192.0.2.1}]}
---
kind: LoadBalancer
name: flows
region: eu-central-1
type: network
listeners: [{protocol: TCP, port: 7003, default: {forward: back}}]
---
kind: LoadBalancer
name: requests
region: eu-central-1
listeners: [{protocol: HTTP, port: 8080, default: {forward: pages}}]
---
kind: Accelerator
name: own
ipAddresses: [203.0.113.1]
listeners:
- {protocol: TCP, portRanges: [{fromPort: 7000}], endpointGroups: [{region: eu-central-1, endpoints: [{address: 192.0.2.1}]}]}
- {protocol: TCP, portRanges: [{fromPort: 7001}], endpointGroups: [{region: eu-central-1, endpoints: [{address: 192.0.2.3}]}]}
- {protocol: UDP, portRanges: [{fromPort: 7000}], endpointGroups: [{region: eu-central-1, endpoints: [{address: 192.0.2.1}]}]}
- {protocol: TCP, portRanges: [{fromPort: 80}], endpointGroups: [{region: eu-central-1, endpoints: [{address: 192.0.2.1}]}]}
- {protocol: TCP, portRanges: [{fromPort: 8080}], endpointGroups: [{region: eu-central-1, endpoints: [{address: 192.0.2.1}]}]}
- {protocol: TCP, portRanges: [{fromPort: 7005}], endpointGroups: [{region: eu-central-1, endpoints: [{address: 192.0.2.9}]}]}
`
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		cfg := configOf(in, "a", filepath.Join(dir, "a"), netip.MustParseAddr("192.0.2.1")).bootstrapped()
		cfg.OwnDoors = true
		other := configOf(in, "b", filepath.Join(dir, "b"), netip.MustParseAddr("192.0.2.3"))
		other.OwnDoors, other.Join = true, cfg.Control
		client := in.Host("client", spec.Location{}, netip.MustParseAddr("198.51.100.1"))
		target := in.Host("target", spec.Location{}, netip.MustParseAddr("192.0.2.9"))
		for _, host := range []string{"a", "b", "client", "target"} {
			for _, other := range []string{"a", "b", "client", "target"} {
				if host < other {
					in.Link(host, other, memnet.Path{Delay: 2 * time.Millisecond})
				}
			}
		}
		listener, err := target.Listen("tcp", "192.0.2.9:7005")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				c.Write([]byte("there"))
				c.Close()
			}
		}()
		defer listener.Close()
		life(t, cfg, func(a *Node) {
			applied(t, a, doors)
			other.Token = tokenOf(t, a)
			life(t, other, func(b *Node) {
				time.Sleep(30 * time.Second)
				say := func(network, at, what string) string {
					c, err := client.Dial(t.Context(), network, at)
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					io.WriteString(c, what)
					c.SetReadDeadline(time.Now().Add(20 * time.Second))
					if network == "udp" {
						time.Sleep(5 * time.Second)
						return ""
					}
					answer, _ := io.ReadAll(c)
					return string(answer)
				}
				total := func(counter string) (n uint64) {
					for _, plane := range []interface{ Counters() map[string]uint64 }{a.origin, b.origin, a.accelerator, b.accelerator} {
						n += plane.Counters()[counter]
					}
					return n
				}
				for _, of := range []struct {
					name, network, at, say, want string
					flows                        uint64 // of accelerators, at most
				}{
					{"an accelerator's own door at the node that dials", "tcp", "192.0.2.1:7000", "x", "", 1},
					{"one of another node", "tcp", "192.0.2.1:7001", "x", "", 1},
					{"one that leads there", "tcp", "192.0.2.3:7000", "x", "", 1},
					{"datagrams", "udp", "192.0.2.1:7000", "x", "", 8},
					{"a load balancer's, of this node and of another", "tcp", "192.0.2.1:7003", "x", "", 0},
					{"a load balancer's for requests", "tcp", "192.0.2.1:8080", "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "HTTP/1.1 502 ", 0},
					{"what is no door", "tcp", "192.0.2.1:7005", "", "there", 1},
				} {
					before, dialled := total("accelerator_flows_total")+total("accelerator_udp_flows_total"), total("origin_target_returns_total")
					got := say(of.network, of.at, of.say)
					if got != of.want && (of.want == "" || !strings.HasPrefix(got, of.want)) {
						t.Errorf("%s: answered %q", of.name, got)
					}
					if n := total("accelerator_flows_total") + total("accelerator_udp_flows_total") - before; n > of.flows {
						t.Errorf("%s: %d flows", of.name, n)
					}
					if n := total("origin_target_returns_total") - dialled; of.want != "there" && (n == 0 || n > 40) {
						t.Errorf("%s: told %d times", of.name, n)
					}
				}
				told, err := a.explain(api.ExplainRequest{What: "tcp", Target: "203.0.113.1:7000"})
				if err != nil || !strings.Contains(textOf(told), "192.0.2.1:7000 is a door of this network itself") {
					t.Errorf("explained as %s, %v", textOf(told), err)
				}
			})
		})
	})
}

func textOf(told api.ExplainResponse) string {
	var b strings.Builder
	for _, l := range told.Lines {
		b.WriteString(l.Text + "\n")
	}
	return b.String() + told.Answer
}
