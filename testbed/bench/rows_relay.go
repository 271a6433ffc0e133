//go:build linux

package bench

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"time"
)

// relayRows are about flows that go through one node.
func relayRows() []Row {
	return slices.Concat(streamRows(), backboneRows(), crowdRows(), datagramRows(), latencyRows(), oceanRows())
}

// backboneRows are about TCP that two nodes carry between them.
func backboneRows() []Row {
	row := func(name, work, byTCP, peer string, goal float64) Row {
		load := func(s Stage, d time.Duration) *streamed {
			return &streamed{address: s.at(s.Port), target: s.at(s.TLS), flows: 1, last: d}
		}
		return Row{
			Name: name, Unit: "MiB/s", Work: "what a target sends as fast as it is taken, by one flow through two nodes on this machine, " + work,
			Load: Load{Tool: "own", Args: []string{"streamed"}, Own: func(ctx context.Context, s Stage, d time.Duration) (Measured, error) { return load(s, d).run(ctx) }},
			Check: func(ctx context.Context, s Stage) error {
				m, err := load(s, 4*checkTime).run(ctx) // two nodes are longer on their way
				if err == nil && (m.Failed != "" || m.Bytes == 0) {
					err = fmt.Errorf("%d bytes came: %s", m.Bytes, m.Failed)
				}
				return err
			},
			Ours: oursTwice("TCP", byTCP), Peers: []Peer{goCarry(peer)}, Goals: []Goal{{"go-" + peer, goal}},
		}
	}
	return []Row{
		row("backbone-quic", "by a stream of the backbone", "never", ByQUIC, 0.87),        // 1 / 1.15
		row("backbone-tcp", "by a TCP connection of the backbone", "always", ByTLS, 0.77), // 1 / 1.3
	}
}

// streamRows are about TCP. Behind the relay listens the load, at the port that is not needed for TLS.
func streamRows() []Row {
	row := func(name, unit, work string, flows int, short bool) Row {
		load := func(s Stage, d time.Duration) *streamed {
			return &streamed{address: s.at(s.Port), target: s.at(s.TLS), flows: flows, short: short, last: d}
		}
		return Row{
			Name: name, Unit: unit, Work: work,
			Load: Load{Tool: "own", Args: []string{"streamed"}, Own: func(ctx context.Context, s Stage, d time.Duration) (Measured, error) { return load(s, d).run(ctx) }},
			Check: func(ctx context.Context, s Stage) error {
				m, err := load(s, checkTime).run(ctx)
				if err == nil && (m.Failed != "" || m.Bytes == 0) {
					err = fmt.Errorf("%d bytes came: %s", m.Bytes, m.Failed)
				}
				return err
			},
			Ours:  ours(relaySpec("TCP"), "--http", "", "--https", "", "--dns", ""),
			Peers: []Peer{haproxyTCP(), nginxStream("")}, Goals: []Goal{{"haproxy", 1}, {"nginx", 1}},
		}
	}
	return []Row{
		row("relay-tcp", "MiB/s", "what a target sends as fast as it is taken, through one node, by 4 flows", 4, false),
		row("relay-tcp-new", "flows/s", "new flows through one node, 16 at once: 64 bytes there and 64 back, then the target closes", 16, true),
	}
}

// crowdRows are about many flows of TCP that two nodes carry between them, by one connection of QUIC.
func crowdRows() []Row {
	row := func(name, unit, work string, want float64, value func(shared) float64) Row {
		return Row{
			Name: name, Unit: unit, Work: work, Takes: time.Minute,
			Load: Load{Tool: "own", Args: []string{"crowd"}, Own: func(ctx context.Context, s Stage, d time.Duration) (m Measured, err error) {
				got, err := crowd{address: s.at(s.Port), target: s.at(s.TLS), flows: crowdFlows, last: d}.run(ctx)
				if err != nil {
					return Measured{Failed: err.Error()}, ctx.Err()
				}
				return Measured{Count: got.bytes / countedMiB, Bytes: got.bytes, Value: value(got)}, nil
			}},
			Check: func(ctx context.Context, s Stage) error {
				m, err := (&streamed{address: s.at(s.Port), target: s.at(s.TLS), flows: 1, short: true, last: checkTime}).run(ctx)
				if err == nil && (m.Failed != "" || m.Bytes == 0) {
					err = fmt.Errorf("%d bytes came: %s", m.Bytes, m.Failed)
				}
				return err
			},
			Ours: oursTwice("TCP", "never"), Goals: []Goal{{Want: want}},
		}
	}
	idle := row("backbone-idle", "B/flow", "memory of a silent flow through two nodes, at both together", 2*8<<10, nil)
	idle.Less, idle.Once = true, true
	idle.Load = Load{Tool: "own", Args: []string{"silent"}, Own: func(ctx context.Context, s Stage, _ time.Duration) (Measured, error) { return silent(ctx, s) }}
	return []Row{
		row("backbone-many", "% of one flow", "throughput of 1,000 flows at once through two nodes, beside one flow alone", 90, func(s shared) float64 { return 100 * s.total }),
		row("backbone-fair", "% fair", "how alike 1,000 flows at once through two nodes fare, by Jain's index", 95, func(s shared) float64 { return 100 * s.fair }),
		idle,
	}
}

// datagramRows are about UDP.
func datagramRows() []Row {
	row := func(name, work string, flows, window, size int, together bool, goal float64) Row {
		load := func(ctx context.Context, s Stage, d time.Duration) (Measured, error) {
			// Behind the relay listens the load, at the port that is not needed for TLS.
			return (&relayed{address: s.at(s.Port), target: s.at(s.TLS), flows: flows, window: window, size: size, together: together, last: d}).run(ctx)
		}
		r := Row{
			Name: name, Unit: "datagrams/s", Size: int64(size),
			Work: fmt.Sprintf("datagrams of %d bytes through one node to a target that sends each back; %s", size, work),
			Load: Load{Tool: "own", Args: []string{"relayed"}, Own: load},
			Check: func(ctx context.Context, s Stage) error {
				m, err := (&relayed{address: s.at(s.Port), target: s.at(s.TLS), flows: 2, window: 4, size: size, together: together, last: checkTime}).run(ctx)
				if err == nil && (m.Failed != "" || m.Count == 0) {
					err = fmt.Errorf("%d datagrams came back: %s", m.Count, m.Failed)
				}
				return err
			},
			Ours: ours(relaySpec("UDP"), "--http", "", "--https", "", "--dns", ""), Peers: []Peer{nginxStream(" udp")},
		}
		if goal > 0 {
			r.Goals = []Goal{{"nginx", goal}}
		}
		return r
	}
	// All that is under way may lie at one socket, whose buffer is 208 KiB where nobody changed it: a datagram of 64 bytes counts as 768 of them, one of
	// 1,200 as 2,304.
	return []Row{
		row("relay-udp-64", "16 flows, 8 datagrams of each under way", 16, 8, 64, false, 2),
		row("relay-udp-1200", "8 flows, 8 datagrams of each under way", 8, 8, 1200, false, 2),
		row("relay-udp-bulk", "2 flows, 32 datagrams of each under way, whose two ends write and read them together, as QUIC does", 2, 32, 1200, true, 2),
		row("relay-udp-alone", "128 flows, one datagram of each under way, so that none goes with another of its flow", 128, 1, 64, false, 0),
	}
}

// latencyRows are about what nodes add to the way of a datagram.
func latencyRows() []Row {
	row := func(name, through string, nodes int, peer Peer) Row {
		load := func(s Stage, d time.Duration) *exchanged {
			return &exchanged{address: s.at(s.Port), target: s.at(s.TLS), size: 64, passages: 2 * nodes, last: d}
		}
		return Row{
			Name: name, Unit: "µs a passage, p99", Less: true, Size: 64,
			Work: "what a node adds to the way of a datagram of 64 bytes, one at a time there and back through " + through,
			Load: Load{Tool: "own", Args: []string{"exchanged"}, Own: func(ctx context.Context, s Stage, d time.Duration) (Measured, error) { return load(s, d).run(ctx) }},
			Check: func(ctx context.Context, s Stage) error {
				m, err := load(s, checkTime).run(ctx)
				if err == nil && (m.Failed != "" || m.Count == 0) {
					err = fmt.Errorf("%d datagrams came back: %s", m.Count, m.Failed)
				}
				return err
			},
			Ours: peer, Goals: []Goal{{Want: 200}},
		}
	}
	one := row("relay-udp-latency", "one node", 1, ours(relaySpec("UDP"), "--http", "", "--https", "", "--dns", ""))
	one.Peers = []Peer{nginxStream(" udp")}
	return []Row{one, row("backbone-udp-latency", "two nodes", 2, oursTwice("UDP", "never"))}
}

// checkTime is how long a relay is looked at.
const checkTime = 50 * time.Millisecond

// relaySpec has the load as target: nobody checks it, for it listens only while it sends.
func relaySpec(protocol string) func(Stage) (string, error) {
	return func(Stage) (string, error) {
		return region + `---
kind: TargetGroup
name: back
region: bench
protocol: ` + protocol + `
targets: [{address: "{behind}", port: {tls}}]
healthCheck: {enabled: false}
---
kind: Accelerator
name: relay
ipAddresses: ["{host}"]
listeners:
  - protocol: ` + protocol + `
    portRanges: [{fromPort: {port}}]
    endpointGroups: [{region: bench, endpoints: [{targetGroup: back}]}]
`, nil
	}
}

// haproxyTCP is HAProxy as a relay of TCP.
func haproxyTCP() Peer {
	return haproxy(`frontend f
  mode tcp
  bind {host}:{port} backlog 16384
  default_backend b
backend b
  mode tcp
  server o {host}:{tls}
`, "")
}

// nginxStream is nginx as a relay, by a module that is loaded; of datagrams if udp says so.
func nginxStream(udp string) Peer {
	const module = "/usr/lib/nginx/modules/ngx_stream_module.so"
	return Peer{Name: "nginx", Needs: []Need{{Program: "nginx", Package: "nginx-light"}, {File: module, Package: "libnginx-mod-stream"}}, Version: []string{"-v"},
		Start: func(_ context.Context, s Stage) (*Process, error) {
			user := ""
			if os.Geteuid() == 0 {
				user = "user root;\n"
			}
			_, err := s.Write("nginx.conf", `load_module `+module+`;
`+user+`daemon off;
worker_processes 1; # it has one core
pid {dir}/pid;
error_log stderr error;
events { worker_connections 16384; }
stream {
  server {
    listen {host}:{port}`+udp+`;
    proxy_pass `+net.JoinHostPort("{host}", "{tls}")+`;
    proxy_timeout 30s;
  }
}
`)
			if err != nil {
				return nil, err
			}
			return s.Start(nil, "nginx", "-e", "stderr", "-p", "{dir}", "-c", "{dir}/nginx.conf")
		}}
}
