package accelerator

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/edge/accelerator/flowlog"
	"github.com/perigee-net/perigee/origin"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// Where this node has no port left toward an endpoint's target, or another lack, flows go to another endpoint, and where that has none either they are refused, counted and
// written down. Nobody's health hears of it, and flows of other endpoints, and those that stand, go on.
func TestWhereNoPortIsLeftOtherEndpointsTakeTheFlows(t *testing.T) {
	for _, protocol := range []string{spec.TCP, spec.UDP} {
		t.Run(protocol, func(t *testing.T) {
			var out bytes.Buffer
			synctest.Test(t, func(t *testing.T) { withoutPorts(t, protocol, &out) })
			refused := 0
			for line := range strings.Lines(out.String()) {
				if strings.Contains(line, " REJECT ") {
					if refused++; !strings.HasSuffix(strings.TrimSpace(line), "NO_ENDPOINT") {
						t.Errorf("written down: %s", line)
					}
				}
			}
			if refused != 3 {
				t.Errorf("%d refusals are written down:\n%s", refused, out.String())
			}
		})
	}
}

func withoutPorts(t *testing.T, protocol string, out io.Writer) {
	in := memnet.New(1)
	defer in.Close()
	edge := in.Host("edge", spec.Location{}, local.Addr())
	client := in.Host("client", spec.Location{}, netip.MustParseAddr("203.0.113.9"))
	n := only(testEndpoint{"a", 128, false}, testEndpoint{"b", 128, false})
	n.protocol, n.idle, n.groups[0].nodes = protocol, 30*time.Second, []string{"self"}
	s, v, _ := n.build()
	s.Accelerators["game"].FlowLogs = &spec.Sampling{}
	verdicts := map[health.Key]health.Verdict{}
	var ends sync.WaitGroup
	defer ends.Wait()
	targets := map[string]string{}
	for i, name := range []string{"a", "b"} {
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + i)}), 80)
		s.TargetGroups[name].Targets = []spec.Target{{Address: at.Addr(), Port: at.Port()}}
		verdicts[health.TargetKey(name, at)] = health.Verdict{Healthy: true}
		targets[name] = at.String()
		host := in.Host(name, spec.Location{}, at.Addr())
		if protocol == spec.UDP {
			conn, err := host.ListenPacket("udp", at.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ends.Go(func() {
				buf := make([]byte, 100)
				for {
					n, from, err := conn.ReadFrom(buf)
					if err != nil {
						return
					}
					conn.WriteTo([]byte(name+string(buf[:n])), from)
				}
			})
			continue
		}
		l, err := host.Listen("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ends.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				ends.Go(func() {
					defer c.Close()
					buf := make([]byte, 100)
					for {
						n, err := c.Read(buf)
						if err != nil {
							return
						}
						c.Write([]byte(name + string(buf[:n])))
					}
				})
			}
		})
	}
	v.Health = health.NewTable(verdicts)
	log, err := flowlog.Open(flowlog.Config{Path: flowlog.Stdout, Out: out})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var lacks sync.Map // targets toward which no port is left
	var against atomic.Int32
	p, o, end := onNodes(t, edge, nil, s, v, func(here *Config, far *origin.Config) {
		here.FlowLog = log
		far.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if _, is := lacks.Load(address); is {
				return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)}
			}
			return edge.Dial(ctx, network, address)
		}
		far.Evidence = func(_ health.Key, _ netip.Addr, failed bool, _ string) {
			if failed {
				against.Add(1)
			}
		}
	})
	defer end()
	asks := func(c net.Conn) string {
		if _, err := c.Write([]byte(" who?")); err != nil {
			return err.Error()
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		if err != nil {
			return "nobody"
		}
		return string(buf[:n])
	}
	dials := func() net.Conn {
		c, err := client.Dial(t.Context(), strings.ToLower(protocol), local.String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	var all []net.Conn // one at each endpoint
	for _, want := range []string{"a who?", "b who?"} {
		for {
			c := dials()
			if asks(c) == want {
				all = append(all, c)
				break
			}
			c.Close()
		}
	}
	lacks.Store(targets["a"], true)
	for i := range 10 {
		c := dials()
		if got := asks(c); got != "b who?" {
			t.Errorf("flow %d: %s answers", i, got)
		}
		c.Close()
	}
	if n, faults := p.Counters()["accelerator_failovers_total"], o.Counters()["origin_target_connect_faults_total"]; n == 0 || faults != n {
		t.Errorf("%d flows were drawn to the one that cannot be dialled, which was counted %d times", n, faults)
	}
	lacks.Store(targets["b"], true)
	for range 3 {
		c := dials()
		if got := asks(c); got != "nobody" {
			t.Errorf("%s answers", got)
		}
		c.Close()
	}
	for i, want := range []string{"a who?", "b who?"} {
		if got := asks(all[i]); got != want {
			t.Errorf("of one that stands %s answers, not %s", got, want)
		}
	}
	if n := p.Counters()["accelerator_flows_dropped_no_endpoint_found_total"]; n != 3 {
		t.Errorf("%d were refused", n)
	}
	lacks.Clear()
	c := dials()
	if got := asks(c); got == "nobody" {
		t.Error("there are ports again, and nobody answers")
	}
	c.Close()
	for _, c := range all {
		c.Close()
	}
	time.Sleep(time.Minute)
	if n := against.Load(); n != 0 {
		t.Errorf("%d times it was held against a target", n)
	}
}
