package accelerator

import (
	"errors"
	"io"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
)

// two regions, the nearer of which terminates.
func terminating() network {
	n := network{groups: []testGroup{up("icn", 5, 100), up("nrt", 30, 100)}}
	n.groups[0].terminates = true
	return n
}

// fourth has one group of five be healthy, which is the fourth by its round trip. Of new flows it gets a share by the dials, of all that are sent on.
func fourth(scope string, percent float64) func(*network) {
	return func(n *network) {
		n.scope = scope
		n.groups = []testGroup{down("icn", 5, 100-percent), down("nrt", 30, 100-percent), down("sin", 60, 100-percent), up("fra", 200, 100), down("iad", 300, 100)}
		n.groups[0].terminates = true
	}
}

func TestWhatBecomesOfEstablishedFlows(t *testing.T) {
	at := lane{"game", spec.TCP, local, "icn", "targetGroup/icn"}
	without := func(s *spec.Spec) {
		s.Accelerators["game"].Listeners[0].EndpointGroups[0].Endpoints[0].TargetGroup = "nrt"
	}
	disabled := func(s *spec.Spec) { *s.Accelerators["game"].Enabled = false }
	delay := func(d time.Duration) func(*spec.Spec) {
		return func(s *spec.Spec) { s.Accelerators["game"].DeregistrationDelay = new(spec.Duration(d)) }
	}
	sick := func(n *network) { n.groups[0].endpoints[0].sick = true }
	for _, c := range []struct {
		name   string
		sick   func(*network)
		change []func(*spec.Spec)
		want   fate
	}{
		{name: "nothing turned"},
		{name: "their endpoint turns unhealthy", sick: sick, want: fate{why: Unhealthy}},
		{name: "no other takes new flows either", sick: func(n *network) { sick(n); n.groups[1].endpoints[0].sick = true }},
		{name: "the other that is healthy has no weight", sick: func(n *network) { sick(n); n.groups[1].endpoints[0].weight = 0 }},
		{name: "the other that is healthy cannot be reached", sick: func(n *network) { sick(n); n.groups[1].nodes = []string{"nrt1!"} }},
		{name: "the other that is healthy has no node", sick: func(n *network) { sick(n); n.groups[1].nodes = nil }},
		{name: "the other that is healthy is drained", sick: func(n *network) { sick(n); n.groups[1].nodes = []string{"nrt1-"} }},
		{name: "another of its own group is healthy", sick: func(n *network) {
			sick(n)
			n.groups[1].endpoints[0].sick = true
			n.groups[0].endpoints = append(n.groups[0].endpoints, testEndpoint{name: "too", weight: 1})
		}, want: fate{why: Unhealthy}},
		{name: "the one that is healthy is the fourth, and new flows go to the three closest", sick: fourth("", 0)},
		{name: "the one that is healthy is the fourth, and new flows go to every group", sick: fourth(spec.FailoverAll, 0), want: fate{why: Unhealthy}},
		{name: "the dials send the client to the fourth", sick: fourth("", 100), want: fate{why: Unhealthy}},
		{name: "they stay (Global Accelerator)", sick: func(n *network) { sick(n); n.groups[0].terminates = false }},
		{name: "their endpoint is removed", change: []func(*spec.Spec){without}},
		{name: "their endpoint is removed, with a delay", change: []func(*spec.Spec){without, delay(time.Minute)}, want: fate{Removed, time.Minute}},
		{name: "their endpoint takes nothing new", sick: func(n *network) { n.groups[0].endpoints[0].weight = 0 }},
		{name: "the accelerator is disabled", change: []func(*spec.Spec){disabled}, want: fate{why: Disabled}},
		{name: "the accelerator is disabled, with a delay", change: []func(*spec.Spec){disabled, delay(time.Second)}, want: fate{Disabled, time.Second}},
		{name: "the accelerator is deleted", change: []func(*spec.Spec){func(s *spec.Spec) { delete(s.Accelerators, "game") }}, want: fate{Deleted, 7 * time.Second}},
		{
			name: "the port has gone", want: fate{why: NoListener},
			change: []func(*spec.Spec){func(s *spec.Spec) { s.Accelerators["game"].Listeners[0].PortRanges[0].FromPort++ }},
		},
		{
			name: "the address has gone", want: fate{why: NoListener},
			change: []func(*spec.Spec){func(s *spec.Spec) { s.Accelerators["game"].IPAddresses[0] = netip.MustParseAddr("198.51.100.9") }},
		},
	} {
		n := terminating()
		s, v, _ := n.build()
		was := at.stand(see(s, v), 0)
		if was.gone != "" || !was.healthy {
			t.Fatalf("%s: at first %+v", c.name, was)
		}
		if c.sick != nil {
			c.sick(&n)
		}
		s, v, _ = n.build()
		for _, change := range c.change {
			change(s)
		}
		got := turn(was, at.stand(see(s, v), 7*time.Second))
		client := netip.MustParseAddrPort("203.0.113.9:4711")
		if got.why == Unhealthy && !at.ending(got, s, v)(client) {
			got = fate{}
		}
		if got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
	n := terminating()
	sick(&n)
	s, v, _ := n.build()
	if is := at.stand(see(s, v), 0); turn(is, is) != (fate{}) {
		t.Error("flows that failed open are reset though nothing turned")
	}
}

// A flow ends with the health of its endpoint just where Choose sends a new one of its client to an endpoint that is healthy.
func TestFlowsEndWhereNewOnesFareBetter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := network{
			scope:    rapid.SampledFrom([]string{"", spec.FailoverAll}).Draw(t, "scope"),
			affinity: rapid.SampledFrom([]string{"", spec.AffinitySourceIP}).Draw(t, "affinity"),
		}
		for i := range rapid.IntRange(1, 6).Draw(t, "groups") {
			g := up(string(rune('a'+i)), 5+10*i, float64(rapid.SampledFrom([]int{0, 50, 100}).Draw(t, "dial")))
			g.nodes[0] += rapid.SampledFrom([]string{"", "", "!", "-", "."}).Draw(t, "node")
			g.endpoints[0].sick = i == 0 || rapid.Bool().Draw(t, "sick")
			g.endpoints[0].weight = rapid.SampledFrom([]int{0, 128}).Draw(t, "weight")
			n.groups = append(n.groups, g)
		}
		n.groups[0].terminates = true
		s, v, a := n.build()
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, rapid.Byte().Draw(t, "client")}), 4711)
		at := lane{"game", spec.TCP, local, "a", "targetGroup/a"}
		want := false
		if all := Choose(s, v, a, &a.Listeners[0], Flow{client, local}, nil); len(all) > 0 {
			for _, g := range n.groups {
				want = want || g.region == all[0].Region && !g.endpoints[0].sick && g.endpoints[0].weight > 0 && !strings.HasSuffix(g.nodes[0], "!")
			}
		}
		if got := at.ending(fate{why: Unhealthy}, s, v)(client); got != want {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

// turning is a bench whose view and spec are others later.
type turning struct {
	*bench
	view atomic.Pointer[view.View]
}

func onTurning(t *testing.T, n network, test func(b *turning)) {
	onBench(t, n, nil, func(b *bench) {
		tb := &turning{bench: b}
		tb.view.Store(b.plane.config.View())
		b.plane.config.View = tb.view.Load
		test(tb)
	})
}

// turn has another network, and what a change does of it, be so.
func (b *turning) turn(n network, change func(*spec.Spec)) []Ended {
	b.Helper()
	s, v, _ := n.build()
	if change != nil {
		change(s)
	}
	b.view.Store(v)
	if err := b.plane.Apply(s); err != nil {
		b.Fatal(err)
	}
	return b.plane.Review()
}

// flow dials one that has come through.
func (b *turning) flow() tcpConn {
	b.Helper()
	c := b.dial()
	b.echoes(c)
	return c
}

func (b *turning) echoes(c tcpConn) {
	b.Helper()
	io.WriteString(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
}

func (b *turning) isReset(c tcpConn) {
	b.Helper()
	c.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		b.Errorf("read %v, want a reset", err)
	}
}

func TestFlowsAreResetAtBothEndsWhenTheirEndpointTurns(t *testing.T) {
	n := terminating()
	onTurning(t, n, func(b *turning) {
		flows := []tcpConn{b.flow(), b.flow()}
		n.groups[0].endpoints[0].sick = true
		ended := b.turn(n, nil)
		if want := (Ended{"game", "icn", "targetGroup/icn", local, Unhealthy, 2, 0}); len(ended) != 1 || ended[0] != want {
			b.Errorf("got %+v", ended)
		}
		for _, c := range flows {
			b.isReset(c)
		}
		c := b.flow() // to the other region
		defer c.Close()
		if again := b.turn(n, nil); len(again) != 0 {
			b.Errorf("nothing turned, and %+v", again)
		}
		n.groups[1].endpoints[0].sick = true // which does not terminate
		if ended := b.turn(n, nil); len(ended) != 0 {
			b.Errorf("got %+v", ended)
		}
		b.echoes(c)
		synctest.Wait()
		if got := b.plane.Counters()["accelerator_flows_terminated_total"]; got != 2 {
			b.Errorf("%d were terminated", got)
		}
	})
}

func TestFlowsStayWithAnEndpointOfWhichNothingIsKnown(t *testing.T) {
	for _, c := range []struct {
		name, endpoint string
		change         func(*spec.Spec)
	}{
		{"its check is another", "10.0.0.7", func(s *spec.Spec) { s.Accelerators["game"].Listeners[0].EndpointGroups[0].HealthCheckPort = 81 }},
		{"its targets are others", "icn", func(s *spec.Spec) { s.TargetGroups["icn"].Targets[0].Port = 81 }},
		{"it has no targets", "icn", func(s *spec.Spec) { s.TargetGroups["icn"].Targets = nil }},
		{"its balancer's targets are others", "lb:icn", func(s *spec.Spec) { s.TargetGroups["icn"].Targets[0].Port = 81 }},
	} {
		n := terminating()
		n.groups[0].endpoints = []testEndpoint{{c.endpoint, 128, false}}
		onTurning(t, n, func(b *turning) {
			flow := b.flow()
			for range 2 {
				if ended := b.turn(n, c.change); len(ended) != 0 {
					b.Errorf("%s: %+v", c.name, ended)
				}
			}
			b.echoes(flow)
			if b.turn(n, nil); b.plane.Counters()["accelerator_flows_terminated_total"] != 0 {
				b.Errorf("%s: it is known to be well again, and its flow is reset", c.name)
			}
			b.turn(n, c.change)
			n.groups[0].endpoints[0].sick = true
			if ended := b.turn(n, nil); len(ended) != 1 || ended[0].Why != Unhealthy {
				b.Errorf("%s, and then it is found unhealthy: %+v", c.name, ended)
			}
			b.isReset(flow)
		})
	}
}

func TestAnAcceleratorIsDisabledAndBackWithoutARestart(t *testing.T) {
	n := terminating()
	off := func(d time.Duration) func(*spec.Spec) {
		return func(s *spec.Spec) {
			*s.Accelerators["game"].Enabled = false
			s.Accelerators["game"].DeregistrationDelay = new(spec.Duration(d))
		}
	}
	onTurning(t, n, func(b *turning) {
		c := b.flow()
		defer c.Close()
		if ended := b.turn(n, off(time.Minute)); len(ended) != 1 || ended[0].Why != Disabled || ended[0].After != time.Minute {
			b.Errorf("got %+v", ended)
		}
		if open := b.plane.Listeners(); len(open) != 0 {
			b.Errorf("still listens on %v", open)
		}
		b.isReset(b.dial()) // by a door that is not closed yet
		time.Sleep(50 * time.Second)
		b.echoes(c)
		if ended := b.turn(n, nil); len(ended) != 0 || len(b.plane.Listeners()) != 1 {
			b.Errorf("enabled: got %+v, listens on %v", ended, b.plane.Listeners())
		}
		time.Sleep(50 * time.Second)
		b.echoes(c) // it was enabled again in time

		b.turn(n, off(time.Minute))
		time.Sleep(59 * time.Second)
		b.echoes(c)
		time.Sleep(2 * time.Second)
		b.isReset(c)
		b.turn(n, nil)
		other := b.flow()
		defer other.Close()
		b.turn(n, off(0))
		b.isReset(other)
	})
}

func TestAFlowThatWasOpenedWhileItsEndpointTurnedIsResetToo(t *testing.T) {
	n := terminating()
	for _, reviewed := range []bool{true, false} {
		onTurning(t, n, func(b *turning) {
			before := b.flow()
			chosen := see(b.plane.table.Load().spec, b.plane.config.View())
			sick := terminating()
			sick.groups[0].endpoints[0].sick = true
			s, v, _ := sick.build()
			b.view.Store(v)
			if err := b.plane.Apply(s); err != nil {
				b.Fatal(err)
			}
			if reviewed {
				b.plane.Review()
			}
			var why error
			one := &live{lane: lane{"game", spec.TCP, local, "icn", "targetGroup/icn"}, carried: carriedBy{reset: func(err error) { why = err }}}
			b.plane.live.enter(b.plane, chosen, one)
			if why != errTerminated {
				b.Errorf("reviewed %v: got %v", reviewed, why)
			}
			if ended := b.plane.Review(); len(ended) == 1 == reviewed {
				b.Errorf("reviewed %v, and then %+v", reviewed, ended)
			}
			b.plane.live.leave(one)
			b.isReset(before)
		})
	}
}
