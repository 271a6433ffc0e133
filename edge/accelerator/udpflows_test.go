package accelerator

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/accelerator/flowlog"
)

func TestAFlowOfDatagramsGoesElsewhereWhenItsEndpointTurns(t *testing.T) {
	n := terminating()
	n.protocol, n.idle, n.tells = spec.UDP, 5*time.Minute, true
	var out bytes.Buffer
	onUDPBench(t, n, func(b *udpBench) {
		log, err := flowlog.Open(flowlog.Config{Path: flowlog.Stdout, Out: &out})
		if err != nil {
			b.Fatal(err)
		}
		var now atomic.Pointer[view.View]
		now.Store(b.plane.config.View())
		b.plane.config.View, b.plane.config.FlowLog = now.Load, log
		turns := func(change func(*spec.Spec)) []Ended {
			s, v, _ := n.build()
			s.Accelerators["game"].FlowLogs = &spec.Sampling{}
			change(s)
			now.Store(v)
			if err := b.plane.Apply(s); err != nil {
				b.Fatal(err)
			}
			return b.plane.Review()
		}
		turns(func(*spec.Spec) {})
		c := b.dial()
		b.send(c, "one", "two")
		if f := b.fars(1)[0]; f.header.Resource != "300/targetGroup/icn/told" {
			b.Errorf("asked for %s", f.header.Resource)
		}
		b.fars(1)[0].to.Told("10.0.0.1:80")
		b.fars(1)[0].to.Receive([][]byte{[]byte("three")})
		b.settle()
		s, _ := b.plane.Status("game", 1)
		want := FlowStatus{
			Client: c.LocalAddr().(*net.UDPAddr).AddrPort(), Local: local, Protocol: spec.UDP, Region: "icn", Resource: "targetGroup/icn", Node: "icn1",
			BytesIn: 6, BytesOut: 5, Target: netip.MustParseAddrPort("10.0.0.1:80"),
		}
		if len(s.Top) != 1 || s.Endpoints[0].Moved != (Moved{1, 6, 5}) || s.Endpoints[0].Protocol != spec.UDP {
			b.Fatalf("got %+v", s)
		}
		if want.Began = s.Top[0].Began; s.Top[0] != want {
			b.Errorf("got %+v", s.Top[0])
		}

		n.groups[0].endpoints[0].sick = true
		if ended := turns(func(*spec.Spec) {}); len(ended) != 1 || ended[0].Why != Unhealthy || ended[0].Flows != 1 {
			b.Errorf("got %+v", ended)
		}
		if !b.fars(1)[0].isClosed() {
			b.Error("the flow goes on at its endpoint")
		}
		b.send(c, "four")
		if all := b.fars(2); all[1].node != "nrt1" || !slices.Equal(all[1].came, []string{"four"}) {
			b.Errorf("then it goes to %s: %q", all[1].node, all[1].came)
		}
		time.Sleep(window)
		if got := b.plane.ByEndpoint(); len(got) != 2 || got[0].Flows != 0 || got[0].BytesIn != 6 || got[1].Flows != 1 {
			b.Errorf("counted %+v", got)
		}
		b.shut()
		log.Close()
	})
	var got []string
	for line := range strings.Lines(out.String()) {
		f := strings.Fields(line)
		got = append(got, strings.Join([]string{f[7], f[8], f[9], f[11], f[12], f[15], f[19], f[21]}, " "))
	}
	if want := []string{
		"10.0.0.1 80 UDP 2 6 ACCEPT icn INGRESS", "10.0.0.1 80 UDP 1 5 ACCEPT icn EGRESS", "- - UDP 1 4 ACCEPT nrt INGRESS", "- - UDP 0 0 ACCEPT nrt EGRESS",
		"- - UDP 0 0 ACCEPT nrt INGRESS", "- - UDP 0 0 ACCEPT nrt EGRESS",
	}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestDatagramsOfCustomRoutingGoWhereTheirPortIsMappedTo(t *testing.T) {
	n := up2()
	onUDPBench(t, n, func(b *udpBench) {
		turns := func(allowed bool) {
			n.protocol, n.idle = spec.UDP, 30*time.Second
			s, _, _ := n.build()
			rooms(allowed)(s)
			if err := b.plane.Apply(s); err != nil {
				b.Fatal(err)
			}
			b.plane.Review()
		}
		turns(true)
		c := b.dial()
		b.send(c, "one")
		if f := b.fars(1)[0]; f.header.Resource != "30/endpoint/game/10.0.0.0:81" {
			b.Errorf("it goes to %s", f.header.Resource)
		}
		turns(false)
		if !b.fars(1)[0].isClosed() {
			b.Error("it goes on where traffic may go no more")
		}
	})
}

func TestAFlowOfDatagramsThatLooksAnewGoesByTheSpecOfNow(t *testing.T) {
	n := up2()
	n.protocol, n.idle = spec.UDP, 5*time.Minute
	onUDPBench(t, n, func(b *udpBench) {
		turns := func(change func(*spec.Spec)) {
			s, _, _ := n.build()
			change(s)
			if err := b.plane.Apply(s); err != nil {
				b.Fatal(err)
			}
			b.plane.Review()
		}
		c := b.dial()
		b.send(c, "one")
		if f := b.fars(1)[0]; f.header.Resource != "300/targetGroup/icn" {
			b.Fatalf("it goes to %s", f.header.Resource)
		}
		turns(func(s *spec.Spec) { // the endpoint is removed, and its flows are to end a minute later
			a := s.Accelerators["game"]
			a.DeregistrationDelay = new(spec.Duration(time.Minute))
			a.Listeners[0].EndpointGroups = a.Listeners[0].EndpointGroups[1:]
		})
		time.Sleep(time.Minute + time.Second)
		b.send(c, "two")
		if f := b.fars(2)[1]; f.header.Resource != "300/targetGroup/nrt" {
			b.Errorf("then it goes to %s", f.header.Resource)
		}

		turns(func(s *spec.Spec) { // the address is another accelerator's now
			a := s.Accelerators["game"]
			delete(s.Accelerators, "game")
			a.Name = "play"
			s.Accelerators["play"] = a
		})
		time.Sleep(time.Minute + time.Second)
		b.send(c, "three")
		if got := b.plane.Traffic(); len(got) != 3 || got[1].Flows != 0 || got[2].Accelerator != "play" || got[2].Flows != 1 {
			b.Errorf("counted %+v", got)
		}
	})
}
