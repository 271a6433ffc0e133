package accelerator

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/datagram"
	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/accelerator/flowlog"
	"github.com/perigee-net/perigee/origin"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// udpBench is a plane behind an open socket, and what it opens toward endpoints.
type udpBench struct {
	*testing.T
	in     *memnet.Internet
	client *memnet.Host
	edge   *memnet.Host
	plane  *Plane
	down   map[string]bool // nodes that cannot be reached
	silent int             // as many of the flows that are opened first meet nothing but silence

	mu      sync.Mutex
	opened  []*fakeFar
	blocked netip.Addr
	shut    func()
}

// fakeFar is a flow at an endpoint that keeps what comes.
type fakeFar struct {
	b      *udpBench
	node   string
	header backbone.Header
	large  bool
	to     backbone.Receiver
	came   []string
	asked  []time.Duration // since it was opened
	opened time.Time
	silent bool
	closed bool
	broken error
	most   int // bytes of a datagram; 0: any
}

// Send has what comes be kept, and says that the flow is known.
func (f *fakeFar) Send(all [][]byte) error {
	f.b.mu.Lock()
	silent, broken := f.silent, f.broken
	var large backbone.TooLargeError
	if broken == nil {
		for i, p := range all {
			if f.most > 0 && len(p) > f.most {
				large.Which = append(large.Which, i)
				continue
			}
			f.came = append(f.came, string(p))
		}
	}
	f.b.mu.Unlock()
	if !silent && broken == nil && f.to.Known != nil {
		f.to.Known()
	}
	if large.Which != nil {
		return &large
	}
	return broken
}

func (f *fakeFar) Ask() {
	f.b.mu.Lock()
	silent := f.silent
	f.asked = append(f.asked, time.Since(f.opened))
	f.b.mu.Unlock()
	if !silent {
		f.to.Known()
	}
}

func (f *fakeFar) isClosed() bool {
	f.b.mu.Lock()
	defer f.b.mu.Unlock()
	return f.closed
}

func (f *fakeFar) Close() {
	f.b.mu.Lock()
	defer f.b.mu.Unlock()
	f.closed = true
}

func onUDPBench(t *testing.T, n network, test func(b *udpBench)) {
	t.Helper()
	n.protocol = spec.UDP
	if n.idle == 0 {
		n.idle = 30 * time.Second
	}
	synctest.Test(t, func(t *testing.T) {
		b := &udpBench{T: t, in: memnet.New(1), down: map[string]bool{}}
		defer b.in.Close()
		b.client = b.in.Host("client", spec.Location{}, netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("203.0.113.10"))
		b.edge = b.in.Host("edge", spec.Location{}, local.Addr())
		s, v, _ := n.build()
		b.plane = New(Config{View: func() *view.View { return v }, Blocked: func(a netip.Addr) bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return a == b.blocked
		}, Open: func(node string, h backbone.Header, large bool, to backbone.Receiver) (Datagrams, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.down[node] {
				return nil, backbone.ErrDown
			}
			f := &fakeFar{b: b, node: node, header: h, large: large, to: to, opened: time.Now(), silent: len(b.opened) < b.silent}
			b.opened = append(b.opened, f)
			return f, nil
		}})
		if err := b.plane.Apply(s); err != nil {
			t.Fatal(err)
		}
		open := b.plane.Listeners()
		if want := []Listener{{"game", spec.UDP, local}}; !slices.Equal(open, want) {
			t.Fatalf("listeners %v, want %v", open, want)
		}
		conn, err := b.edge.ListenPacket("udp", local.String())
		if err != nil {
			t.Fatal(err)
		}
		var door sync.WaitGroup
		door.Go(func() {
			if err := b.plane.ServePackets(open[0], conn); err != nil {
				t.Error(err)
			}
		})
		b.shut = func() {
			conn.Close()
			door.Wait()
		}
		defer b.shut()
		test(b)
	})
}

func (b *udpBench) dial() net.Conn {
	b.Helper()
	c, err := b.client.Dial(b.Context(), "udp", local.String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c
}

// send sends datagrams and waits until they are where they go.
func (b *udpBench) send(c net.Conn, all ...string) {
	b.Helper()
	for _, p := range all {
		if _, err := c.Write([]byte(p)); err != nil {
			b.Fatal(err)
		}
	}
	b.settle()
}

func (b *udpBench) settle() {
	time.Sleep(10 * time.Millisecond)
	synctest.Wait()
}

// fars are the flows that were opened.
func (b *udpBench) fars(want int) []*fakeFar {
	b.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.opened) != want {
		b.Fatalf("opened %d flows, want %d", len(b.opened), want)
	}
	return slices.Clone(b.opened)
}

// counted compares some counters.
func (b *udpBench) counted(want map[string]uint64) {
	b.Helper()
	all := b.plane.Counters()
	for name, n := range want {
		if all["accelerator_"+name] != n {
			b.Errorf("%s is %d, want %d", name, all["accelerator_"+name], n)
		}
	}
}

func TestDatagramsOfAClientAreOneFlow(t *testing.T) {
	onUDPBench(t, only(testEndpoint{"a", 128, false}), func(b *udpBench) {
		c, other := b.dial(), b.dial()
		b.send(c, "1", "2", "")
		b.send(other, "x")
		b.send(c, "3")
		all := b.fars(2)
		if f := all[0]; !slices.Equal(f.came, []string{"1", "2", "", "3"}) || f.node != "icn1" || f.header.Resource != "30/targetGroup/a" ||
			f.header.Client != c.LocalAddr().(*net.UDPAddr).AddrPort() || !f.large {
			b.Errorf("came %+v", f)
		}
		if f := all[1]; !slices.Equal(f.came, []string{"x"}) {
			b.Errorf("of the other came %q", f.came)
		}
		all[0].to.Receive([][]byte{[]byte("a"), []byte("b")})
		b.settle()
		buf := make([]byte, 100)
		for _, want := range []string{"a", "b"} {
			c.SetReadDeadline(time.Now().Add(time.Second))
			if n, err := c.Read(buf); string(buf[:n]) != want || err != nil {
				b.Errorf("got %q, %v", buf[:n], err)
			}
		}
		if got, want := b.plane.Traffic(), []Traffic{{"game", "icn", spec.UDP, 2, 5 - 1, 2, 2}}; !slices.Equal(got, want) {
			b.Errorf("counted %+v, want %+v", got, want)
		}
		b.counted(map[string]uint64{"datagram_flows": 2, "datagram_flows_total": 2, "datagrams_in_total": 5, "datagrams_out_total": 2, "datagrams_dropped_total": 0})
	})
}

func TestAFlowOfDatagramsEndsWhenItIsIdle(t *testing.T) {
	onUDPBench(t, only(testEndpoint{"a", 128, false}), func(b *udpBench) {
		c := b.dial()
		for range 10 {
			b.send(c, "x")
			time.Sleep(20 * time.Second)
			b.fars(1)[0].to.Receive([][]byte{[]byte("y")}) // either way counts
			time.Sleep(20 * time.Second)
		}
		b.settle()
		if b.fars(1)[0].isClosed() {
			b.Error("a flow that moves has ended")
		}
		time.Sleep(32 * time.Second)
		b.settle()
		if !b.fars(1)[0].isClosed() {
			b.Error("it goes on")
		}
		b.counted(map[string]uint64{"datagram_flows": 0, "datagram_flows_idle_total": 1})
		b.fars(1)[0].to.Receive([][]byte{[]byte("late")})
		b.send(c, "again")
		b.fars(2)
	})
}

func TestDatagramsFailOver(t *testing.T) {
	onUDPBench(t, threeRegions(), func(b *udpBench) {
		c := b.dial()
		b.down["icn1"], b.down["icn2"] = true, true
		b.send(c, "1")
		f := b.fars(1)[0]
		if f.node != "nrt1" || !slices.Equal(f.came, []string{"1"}) {
			b.Errorf("went to %s: %q", f.node, f.came)
		}
		b.counted(map[string]uint64{"failovers_total": 1, "attempts_failed_total": 2})
		// A flow whose node is lost goes on elsewhere with the same datagram.
		b.down["icn1"], b.down["nrt1"] = false, true
		b.mu.Lock()
		f.broken = backbone.ErrDown
		b.mu.Unlock()
		b.send(c, "2")
		f = b.fars(2)[1]
		if f.node != "icn1" || !slices.Equal(f.came, []string{"2"}) {
			b.Errorf("went to %s: %q", f.node, f.came)
		}
		b.counted(map[string]uint64{"datagram_flows": 1, "datagram_flows_broken_total": 1, "datagrams_dropped_total": 0})
		// And one that is refused, at once, with what it has sent.
		b.down["nrt1"] = false
		f.to.End(&backbone.RefusedError{Reason: "this node ends"})
		b.settle()
		f = b.fars(3)[2]
		if f.node == "icn1" || !slices.Equal(f.came, []string{"2"}) {
			b.Errorf("went to %s: %q", f.node, f.came)
		}
		b.send(c, "3")
		if !slices.Equal(f.came, []string{"2", "3"}) {
			b.Errorf("came %q", f.came)
		}
		b.counted(map[string]uint64{"datagrams_in_total": 3, "datagrams_resent_total": 1, "datagrams_dropped_total": 0})
		// One that its endpoint ends begins anew there.
		f.to.End(nil)
		b.send(c, "4")
		if again := b.fars(4)[3]; again.node != f.node {
			b.Errorf("went to %s, not %s", again.node, f.node)
		}
		if got := b.plane.Traffic(); len(got) != 2 || got[0].Flows+got[1].Flows != 1 {
			b.Errorf("counted %+v", got)
		}
		// The one that has refused is asked again after a while, as it may have been started anew.
		time.Sleep(declinedTime)
		b.fars(4)[3].to.End(nil)
		b.send(c, "5")
		if back := b.fars(5)[4]; back.node != "icn1" {
			b.Errorf("went to %s", back.node)
		}
	})
}

// What is kept to be sent again is a flow's first few datagrams, until it is answered or a refusal cannot come any more.
func TestOnlyWhatMayBeRefusedIsSentAgain(t *testing.T) {
	for _, c := range []struct {
		name string
		does func(b *udpBench, c net.Conn, f *fakeFar)
		want []string
	}{
		{"nothing happens", func(*udpBench, net.Conn, *fakeFar) {}, []string{"1", "2"}},
		{"it is answered", func(_ *udpBench, _ net.Conn, f *fakeFar) { f.to.Receive([][]byte{[]byte("yes")}) }, nil},
		{"time passes", func(*udpBench, net.Conn, *fakeFar) { time.Sleep(relay.KeptTime) }, nil},
		{"more follow", func(b *udpBench, c net.Conn, _ *fakeFar) { b.send(c, "3", "4", "5", "6", "7", "8", "9", "10") },
			[]string{"1", "2", "3", "4", "5", "6", "7", "8"}},
		{"large ones follow", func(b *udpBench, c net.Conn, _ *fakeFar) { b.send(c, strings.Repeat("x", relay.MaxKeptBytes)) }, []string{"1", "2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			onUDPBench(t, threeRegions(), func(b *udpBench) {
				conn := b.dial()
				b.send(conn, "1", "2")
				f := b.fars(1)[0]
				c.does(b, conn, f)
				f.to.End(&backbone.RefusedError{Reason: "no"})
				b.settle()
				b.mu.Lock()
				var got []string
				if len(b.opened) > 1 {
					got = b.opened[1].came
				}
				b.mu.Unlock()
				if !slices.Equal(got, c.want) {
					b.Errorf("sent again: %q", got)
				}
				if n := b.plane.udp.keeper.Size(); c.want == nil && n != 0 {
					b.Errorf("%d bytes are kept", n)
				}
			})
		})
	}
}

// Where all refuse it, a flow's datagrams are dropped, and each was asked once.
func TestAFlowThatAllRefuseIsDropped(t *testing.T) {
	onUDPBench(t, threeRegions(), func(b *udpBench) {
		b.send(b.dial(), "1")
		for i := 0; ; i++ {
			b.mu.Lock()
			n := len(b.opened)
			b.mu.Unlock()
			if i == n {
				break
			}
			b.fars(n)[i].to.End(&backbone.RefusedError{Reason: "no"})
			b.settle()
		}
		var nodes []string
		b.mu.Lock()
		for _, f := range b.opened {
			nodes = append(nodes, f.node+" "+f.header.Resource)
		}
		b.mu.Unlock()
		once := slices.Clone(nodes)
		slices.Sort(once)
		if len(slices.Compact(once)) != len(nodes) || len(nodes) < 3 {
			b.Errorf("asked %q", nodes)
		}
		b.counted(map[string]uint64{"datagrams_dropped_total": 1, "flows_dropped_no_endpoint_found_total": 1, "datagrams_resent_total": uint64(len(nodes) - 1)})
	})
}

func TestAFlowOfDatagramsTakesADetour(t *testing.T) {
	for _, c := range []struct {
		name   string
		down   []string
		direct time.Duration
		refuse int // of those that are opened, as many refuse it later
		want   []string
		counts map[string]uint64
	}{
		{"it is taken", nil, 90 * time.Millisecond, 0, []string{"sfo1 detour iad1/30/targetGroup/iad"},
			map[string]uint64{"detours_total": 1, "attempts_failed_total": 0}},
		{"its node cannot be reached", []string{"sfo1"}, 90 * time.Millisecond, 0, []string{"iad1 udp 30/targetGroup/iad"},
			map[string]uint64{"detours_failed_total": 1, "detours_total": 0, "attempts_failed_total": 0}},
		{"it refuses", nil, 90 * time.Millisecond, 1, []string{"sfo1 detour iad1/30/targetGroup/iad", "iad1 udp 30/targetGroup/iad"},
			map[string]uint64{"detours_failed_total": 1, "detours_total": 1, "datagrams_resent_total": 1}},
		{"it is the only way and refuses", nil, 0, 1, []string{"sfo1 detour iad1/30/targetGroup/iad"},
			map[string]uint64{"detours_failed_total": 1, "flows_dropped_no_endpoint_found_total": 1, "datagrams_dropped_total": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			onUDPBench(t, network{groups: []testGroup{up("iad", 90, 100)}}, func(b *udpBench) {
				b.plane.config.View().Detour = by(map[string]view.Detour{"iad1": {By: "sfo1", RTT: 60 * time.Millisecond, Direct: c.direct}})
				for _, node := range c.down {
					b.down[node] = true
				}
				b.send(b.dial(), "1")
				for i := range c.refuse {
					b.fars(i + 1)[i].to.End(&backbone.RefusedError{Reason: "no"})
					b.settle()
				}
				var got []string
				for _, f := range b.fars(len(c.want)) {
					got = append(got, f.node+" "+f.header.Service+" "+f.header.Resource)
					if !slices.Equal(f.came, []string{"1"}) {
						b.Errorf("to %s came %q", f.node, f.came)
					}
				}
				if !slices.Equal(got, c.want) {
					b.Errorf("got %q", got)
				}
				b.counted(c.counts)
			})
		})
	}
}

func TestDatagramsThatNobodyTakesAreCounted(t *testing.T) {
	onUDPBench(t, only(testEndpoint{"a", 128, false}), func(b *udpBench) {
		c := b.dial()
		b.down["icn1"] = true
		b.send(c, "1", "2", "3")
		b.fars(0)
		b.counted(map[string]uint64{"flows_dropped_no_endpoint_found_total": 1, "datagrams_dropped_total": 3, "datagrams_in_total": 0})
		b.down["icn1"] = false
		b.send(c, "too soon")
		b.fars(0)
		time.Sleep(lookPause)
		b.send(c, "4")
		b.fars(1)
	})
}

func TestABlockedClientsDatagramsAreNotTaken(t *testing.T) {
	onUDPBench(t, only(testEndpoint{"a", 128, false}), func(b *udpBench) {
		c := b.dial()
		b.send(c, "1")
		b.mu.Lock()
		b.blocked = netip.MustParseAddr("203.0.113.9")
		b.mu.Unlock()
		b.plane.EndFlows()
		if !b.fars(1)[0].isClosed() {
			b.Error("the flow goes on")
		}
		b.send(c, "2")
		b.fars(1)
		b.counted(map[string]uint64{"datagram_flows": 0, "datagram_flows_blocked_total": 2, "datagrams_dropped_total": 1})
	})
}

func TestWhenItsSocketClosesAFlowEnds(t *testing.T) {
	onUDPBench(t, only(testEndpoint{"a", 128, false}), func(b *udpBench) {
		b.send(b.dial(), "1")
		b.shut()
		if !b.fars(1)[0].isClosed() {
			b.Error("it goes on")
		}
		b.shut = func() {}
	})
}

func TestAListenerThatIsGoneTakesNoNewFlows(t *testing.T) {
	onUDPBench(t, only(testEndpoint{"a", 128, false}), func(b *udpBench) {
		c := b.dial()
		b.send(c, "1")
		if err := b.plane.Apply(&spec.Spec{Revision: 2}); err != nil {
			b.Fatal(err)
		}
		b.send(c, "2") // until its socket is closed, which the front does
		b.send(b.dial(), "3")
		if f := b.fars(1)[0]; !slices.Equal(f.came, []string{"1", "2"}) {
			b.Errorf("came %q", f.came)
		}
		b.counted(map[string]uint64{"datagram_flows_refused_total": 1})
	})
}

// A flood of new flows leaves those that stand what they need, and is counted.
func TestAFloodIsBoundedBySecond(t *testing.T) {
	onUDPBench(t, only(testEndpoint{"a", 128, false}), func(b *udpBench) {
		c := b.dial()
		b.send(c, "1")
		d := &datagramDoor{plane: b.plane, at: local}
		b.plane.udp.mu.Lock()
		admitted := 0
		for i := range 3 * maxNewFlows {
			f := flowOf(fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255))
			if f, _ := d.admit(f.key, datagram.Datagram{}); f != nil {
				admitted++
			}
		}
		b.plane.udp.mu.Unlock()
		if admitted > maxNewFlows || admitted < maxNewFlows-1 {
			b.Errorf("admitted %d", admitted)
		}
		b.send(c, "2")
		if f := b.fars(1)[0]; len(f.came) != 2 {
			b.Errorf("came %q", f.came)
		}
		time.Sleep(time.Minute)
		b.counted(map[string]uint64{"datagram_flows": 0})
	})
}

// A network that fills the table with flows that go both ways, keeps them busy and wants ever more, keeps no other client from a flow; that it is refused is
// written down, of each second a few times.
func TestAnHonestClientGetsFlowsWhateverANetworkHas(t *testing.T) {
	const most = 512
	var out bytes.Buffer
	onUDPBench(t, only(testEndpoint{"a", 128, false}), func(b *udpBench) {
		log, err := flowlog.Open(flowlog.Config{Path: flowlog.Stdout, Out: &out})
		if err != nil {
			b.Fatal(err)
		}
		n := only(testEndpoint{"a", 128, false})
		n.protocol, n.idle = spec.UDP, 30*time.Second
		s, _, _ := n.build()
		s.Accelerators["game"].FlowLogs = &spec.Sampling{}
		if err := b.plane.Apply(s); err != nil {
			b.Fatal(err)
		}
		b.plane.config.FlowLog = log
		b.plane.udp.table = newFlowTable(most, most/2)
		conn, err := b.edge.ListenPacket("udp", netip.AddrPortFrom(local.Addr(), 0).String())
		if err != nil {
			b.Fatal(err)
		}
		socket, err := datagram.Listening(conn)
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		bad := &datagramDoor{plane: b.plane, at: local, socket: socket}
		from := func(i int) []datagram.Datagram {
			return []datagram.Datagram{{From: netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8:bad:%x::1", i)), 7), Data: []byte("bad")}}
		}
		answers := func() {
			b.mu.Lock()
			all := slices.Clone(b.opened)
			b.opened = b.opened[:0]
			b.mu.Unlock()
			for _, f := range all {
				f.to.Receive([][]byte{[]byte("yes")})
			}
		}
		for i := range most {
			bad.take(from(i))
		}
		answers()
		honest := b.dial()
		for second := range 20 {
			for i := range most {
				bad.take(from(i)) // settles them, and keeps them busy
			}
			c := b.dial()
			for _, c := range []net.Conn{c, honest} {
				c.Write([]byte("hello"))
			}
			b.settle()
			answers()
			buf := make([]byte, 8)
			for _, c := range []net.Conn{c, honest} {
				c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				if second > 0 && c == honest {
					continue // it was answered once
				}
				if n, err := c.Read(buf); err != nil || string(buf[:n]) != "yes" {
					b.Fatalf("second %d: %q, %v", second, buf[:n], err)
				}
			}
			for i := range most {
				bad.take(from(most*(second+1) + i))
			}
			time.Sleep(time.Second)
		}
		if n := b.plane.liveDatagramFlows(); n > most {
			b.Errorf("%d flows", n)
		}
		all := b.plane.Counters()
		if all["accelerator_datagram_flows_yielded_total"] == 0 || all["accelerator_datagram_flows_full_total"] == 0 || all["accelerator_datagram_refusals_unwritten_total"] == 0 {
			b.Errorf("counted %v", all)
		}
		b.shut()
		log.Close()
	})
	if lines := strings.Count(out.String(), tooMany); lines < 20*maxRefusals/2 || lines > 22*maxRefusals {
		t.Errorf("%d lines of refusals", lines)
	}
}

// overUDP is a client, an edge node, a node of each region with a target, the first of which is icn1, and the backbone between them, in virtual time.
func overUDP(t *testing.T, n network, large bool, test func(t *testing.T, client net.Conn, planes map[string]interface{ Counters() map[string]uint64 })) {
	t.Helper()
	overUDPBy(t, n, large, "", test)
}

// overUDPBy is overUDP with another node, if it is named, by which alone the one can reach the other.
func overUDPBy(t *testing.T, n network, large bool, relayNode string, test func(t *testing.T, client net.Conn, planes map[string]interface{ Counters() map[string]uint64 }), links ...func(*memnet.Internet)) {
	t.Helper()
	n.protocol, n.idle = spec.UDP, 30*time.Second
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		authority, err := identity.NewAuthority(identity.NewClusterID(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		at := map[string]netip.AddrPort{"self": netip.MustParseAddrPort("192.0.2.10:7947"), "icn1": netip.MustParseAddrPort("192.0.2.11:7947")}
		if relayNode != "" {
			at[relayNode] = netip.MustParseAddrPort("192.0.2.12:7947")
		}
		hosts, nodes := map[string]*memnet.Host{}, map[string]*backbone.Backbone{}
		client := in.Host("client", spec.Location{}, netip.MustParseAddr("203.0.113.9"))
		region := map[string]string{"icn1": "icn"}
		hosts["self"] = in.Host("self", spec.Location{}, at["self"].Addr(), local.Addr())
		hosts["icn1"] = in.Host("icn1", spec.Location{}, at["icn1"].Addr())
		for i, g := range n.groups[1:] {
			name := g.nodes[0]
			at[name], region[name] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(20 + i)}), 7947), g.region
			hosts[name] = in.Host(name, spec.Location{}, at[name].Addr())
			in.Link("self", name, memnet.Path{Delay: g.rtt / 2})
		}
		if relayNode != "" {
			hosts[relayNode] = in.Host(relayNode, spec.Location{}, at[relayNode].Addr())
			in.Link("self", relayNode, memnet.Path{Delay: 20 * time.Millisecond})
			in.Link(relayNode, "icn1", memnet.Path{Delay: 10 * time.Millisecond})
		}
		target := in.Host("target", spec.Location{}, netip.MustParseAddr("10.0.0.1"))
		in.Link("client", "self", memnet.Path{Delay: 5 * time.Millisecond})
		in.Link("self", "icn1", memnet.Path{Delay: 50 * time.Millisecond})
		conn, err := target.ListenPacket("udp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		all.Go(func() { // echoes
			buf := make([]byte, 65536)
			for {
				n, from, err := conn.ReadFrom(buf)
				if err != nil {
					return
				}
				conn.WriteTo(buf[:n], from)
			}
		})
		s, v, _ := n.build()
		if !large {
			s.Accelerators["game"].Listeners[0].LargeDatagrams = spec.LargeRefused
		}
		planes := map[string]interface{ Counters() map[string]uint64 }{}
		var ends []func()
		for name := range at {
			packets, err := hosts[name].ListenPacket("udp", at[name].String())
			if err != nil {
				t.Fatal(err)
			}
			id, err := authority.Node(identity.Claim{Name: name, Region: "r", POP: "p"}, 1, identity.Keys{Cluster: identity.NewKey()}, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			guard := identity.NewGuard(id, identity.Trust{Authorities: [][]byte{authority.Certificate()}}, time.Now)
			b, err := backbone.Open(backbone.Config{
				Self: name, PacketConn: packets, PeerName: identity.PeerName,
				ServerTLS: func() *tls.Config { return guard.ServerTLS(backbone.ALPN) },
				ClientTLS: func(node string) *tls.Config { return guard.ClientTLS(node, backbone.ALPN) },
			})
			if err != nil {
				t.Fatal(err)
			}
			nodes[name] = b
			o := origin.New(origin.Config{Region: cmp.Or(region[name], "icn"), View: func() *view.View { return v }, Dial: hosts[name].Dial})
			if err := o.Apply(s); err != nil {
				t.Fatal(err)
			}
			b.HandleDatagrams("udp", o.ServeDatagrams)
			planes[name+" origin"], planes[name+" backbone"] = o, b
			carrier := New(Config{View: func() *view.View { return v }, Open: func(node string, h backbone.Header, large bool, to backbone.Receiver) (Datagrams, error) {
				return b.OpenDatagrams(node, h, large, to)
			}})
			b.HandleDatagrams("detour", carrier.ServeDatagramDetour)
			planes[name+" carrier"] = carrier
			ends = append(ends, carrier.CloseDatagramDetours)
			ends = append(ends, o.CloseDatagrams, func() { b.Close() })
		}
		for name, b := range nodes {
			peers := maps.Clone(at)
			if relayNode != "" && name != relayNode {
				peers = map[string]netip.AddrPort{relayNode: at[relayNode]}
				v.Detour = by(map[string]view.Detour{"icn1": {By: relayNode, RTT: 60 * time.Millisecond}})
			}
			b.Keep(peers)
			b.Links().Next(t.Context(), 0)
		}
		time.Sleep(time.Second)
		p := New(Config{View: func() *view.View { return v }, Open: func(node string, h backbone.Header, large bool, to backbone.Receiver) (Datagrams, error) {
			return nodes["self"].OpenDatagrams(node, h, large, to)
		}})
		if err := p.Apply(s); err != nil {
			t.Fatal(err)
		}
		planes["edge"] = p
		packets, err := hosts["self"].ListenPacket("udp", local.String())
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() { p.ServePackets(p.Listeners()[0], packets) })
		c, err := client.Dial(t.Context(), "udp", local.String())
		if err != nil {
			t.Fatal(err)
		}
		for _, change := range links {
			change(in)
		}
		planes["network"], planes["client"] = in, clients{client}
		test(t, c, planes)
		c.Close()
		packets.Close()
		conn.Close()
		for _, end := range ends {
			end()
		}
		all.Wait()
	})
}

// clients are on a machine of overUDP, and count nothing.
type clients struct{ *memnet.Host }

func (clients) Counters() map[string]uint64 { return nil }

// asks sends a datagram and returns what comes back, and after how long.
func asks(t *testing.T, c net.Conn, p string) (string, time.Duration) {
	t.Helper()
	begun := time.Now()
	if _, err := c.Write([]byte(p)); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(2 * time.Second))
	buf := make([]byte, 65536)
	n, _ := c.Read(buf)
	return string(buf[:n]), time.Since(begun)
}

func TestDatagramsGoOverTheBackboneAndBack(t *testing.T) {
	overUDP(t, only(testEndpoint{"a", 128, false}), true, func(t *testing.T, c net.Conn, planes map[string]interface{ Counters() map[string]uint64 }) {
		for i, p := range []string{"first", "second", strings.Repeat("x", 1100), strings.Repeat("y", 1400)} {
			got, took := asks(t, c, p)
			if got != p {
				t.Errorf("%d: %d of %d bytes came back", i, len(got), len(p))
			}
			if most := 115 * time.Millisecond; i < 3 && took > most { // a datagram waits for nothing, the first too
				t.Errorf("%d: it took %v", i, took)
			}
		}
		if n := planes["icn1 origin"].Counters()["origin_datagram_flows_total"]; n != 1 {
			t.Errorf("%d flows at the origin", n)
		}
		if by := planes["self backbone"].Counters()["backbone_datagrams_by_stream_total"]; by != 1 {
			t.Errorf("%d by a stream", by)
		}
		time.Sleep(33 * time.Second)
		if n := planes["icn1 origin"].Counters()["origin_datagram_flows"]; n != 0 {
			t.Errorf("%d flows at the origin, though the edge has ended it", n)
		}
	})
}

// Where a node cannot be reached its flows go by one that can reach it; whatever that does with them, they go on where they can.
func TestDatagramsGoByARelay(t *testing.T) {
	overUDPBy(t, only(testEndpoint{"a", 128, false}), true, "sfo1", func(t *testing.T, c net.Conn, planes map[string]interface{ Counters() map[string]uint64 }) {
		for i, p := range []string{"first", "second", strings.Repeat("x", 1100), strings.Repeat("y", 1400)} {
			got, took := asks(t, c, p)
			if got != p {
				t.Errorf("%d: %d of %d bytes came back", i, len(got), len(p))
			}
			if most := 75 * time.Millisecond; i < 3 && took > most { // by two legs, and nothing waits
				t.Errorf("%d: it took %v", i, took)
			}
		}
		all := planes["sfo1 carrier"].Counters()
		if all["accelerator_detours_carried_total"] != 1 || all["accelerator_detour_datagram_flows"] != 1 || all["accelerator_detour_datagrams_total"] != 8 ||
			all["accelerator_detour_datagrams_dropped_total"] != 0 {
			t.Errorf("carried %v", all)
		}
		if n := planes["edge"].Counters()["accelerator_detours_total"]; n != 1 {
			t.Errorf("%d detours", n)
		}
		// The endpoint's node ends: the flow hears of it by the relay, and looks for another.
		planes["icn1 origin"].(*origin.Plane).CloseDatagrams()
		time.Sleep(100 * time.Millisecond)
		if n := planes["sfo1 carrier"].Counters()["accelerator_detour_datagram_flows"]; n != 0 {
			t.Errorf("%d flows are carried", n)
		}
		if got, _ := asks(t, c, "third"); got != "" {
			t.Errorf("got %q", got)
		}
		edge := planes["edge"].Counters()
		if edge["accelerator_datagrams_dropped_total"] != 1 || edge["accelerator_detours_failed_total"] == 0 {
			t.Errorf("counted %v", edge)
		}
	})
}

// A relay that ends says so, and the flow looks for another way at once; what is carried is bounded, and idle ones end.
func TestARelayOfDatagramsEnds(t *testing.T) {
	overUDPBy(t, only(testEndpoint{"a", 128, false}), true, "sfo1", func(t *testing.T, c net.Conn, planes map[string]interface{ Counters() map[string]uint64 }) {
		asks(t, c, "first")
		planes["sfo1 carrier"].(*Plane).CloseDatagramDetours()
		time.Sleep(100 * time.Millisecond)
		if n := planes["icn1 origin"].Counters()["origin_datagram_flows"]; n != 0 {
			t.Errorf("%d flows at the origin", n)
		}
		asks(t, c, "second") // it has no other way, and asks again
		asks(t, c, "third")
		if n := planes["sfo1 carrier"].Counters()["accelerator_detours_refused_total"]; n == 0 {
			t.Error("it takes flows still")
		}
	})
	back := new(backHome)
	for _, resource := range []string{"", "icn1", "icn1/", "/30/targetGroup/a", "icn1/targetGroup/a", "icn1/0/targetGroup/a", "icn1/999999/targetGroup/a"} {
		if _, err := New(Config{}).carryOn(backbone.Header{Resource: resource}, true, back); err == nil {
			t.Errorf("%q is carried on", resource)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		f := &fakeFar{b: &udpBench{}}
		p := New(Config{Open: func(string, backbone.Header, bool, backbone.Receiver) (Datagrams, error) { return f, nil }})
		for i := range maxCarriedDatagramFlows + 1 {
			_, err := p.carryOn(backbone.Header{Resource: "icn1/30/targetGroup/a"}, true, back)
			if (err != nil) != (i == maxCarriedDatagramFlows) {
				t.Fatalf("%d: %v", i, err)
			}
		}
		time.Sleep(time.Minute)
		if all := p.Counters(); all["accelerator_detour_datagram_flows"] != 0 || !f.isClosed() || all["accelerator_detours_refused_total"] != 1 {
			t.Errorf("idle ones go on: %v", all)
		}
	})
}

// backHome is the way back of a flow that is carried on.
type backHome struct{}

func (*backHome) Send([][]byte) error { return nil }
func (*backHome) Close()              {}
func (*backHome) Refuse(string)       {}
func (*backHome) Tell(string)         {}

func TestALargeDatagramIsRefusedWhereTheListenerSaysSo(t *testing.T) {
	overUDP(t, only(testEndpoint{"a", 128, false}), false, func(t *testing.T, c net.Conn, planes map[string]interface{ Counters() map[string]uint64 }) {
		if got, _ := asks(t, c, strings.Repeat("y", 1400)); got != "" {
			t.Errorf("%d bytes came back", len(got))
		}
		if got, _ := asks(t, c, "small"); got != "small" {
			t.Errorf("got %q", got)
		}
		if n := planes["self backbone"].Counters()["backbone_datagrams_too_large_total"]; n != 1 {
			t.Errorf("counted %d", n)
		}
		edge := planes["edge"].Counters()
		for name, want := range map[string]uint64{"datagrams_in_total": 1, "datagrams_dropped_total": 1, "datagrams_too_large_total": 1, "datagrams_out_total": 1} {
			if got := edge["accelerator_"+name]; got != want {
				t.Errorf("%s: %d, want %d", name, got, want)
			}
		}
		for _, c := range planes["edge"].(*Plane).ByEndpoint() {
			if c.BytesIn != uint64(len("small")) {
				t.Errorf("%+v", c)
			}
		}
	})
}

// refusing is a way by which the first n of what is sent are too large.
type refusing struct {
	backHome
	n, ended int
}

func (r *refusing) Send([][]byte) error {
	return &backbone.TooLargeError{Which: []int{0, 1, 2}[:r.n]}
}
func (r *refusing) Refuse(string) { r.ended++ }
func (r *refusing) Ask()          {}

func TestWhatIsTooLargeOnADetourIsDroppedAndTheFlowGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there, back := &refusing{n: 2}, &refusing{n: 1}
		p := New(Config{View: func() *view.View { return nil }, Open: func(string, backbone.Header, bool, backbone.Receiver) (Datagrams, error) { return there, nil }})
		to, err := p.carryOn(backbone.Header{Resource: "icn1/30/targetGroup/a"}, false, back)
		if err != nil {
			t.Fatal(err)
		}
		all := [][]byte{[]byte("large"), []byte("large"), []byte("small")}
		to.Receive(all)
		for c := range p.carriedFlows.all {
			c.answer(all)
		}
		counts := p.Counters()
		if counts["accelerator_detour_datagrams_total"] != 3 || counts["accelerator_detour_datagrams_dropped_total"] != 3 || counts["accelerator_detour_datagram_flows"] != 1 || back.ended != 0 {
			t.Errorf("%v, refused %d times", counts, back.ended)
		}
		to.End(nil)
	})
}

func TestDatagramsOfAnEndpointHereStayHere(t *testing.T) {
	n := only(testEndpoint{"a", 128, false})
	n.groups[0].nodes = []string{"self"}
	overUDP(t, n, false, func(t *testing.T, c net.Conn, planes map[string]interface{ Counters() map[string]uint64 }) {
		large := strings.Repeat("y", 1400) // nothing between takes less
		for _, p := range []string{"first", large} {
			if got, took := asks(t, c, p); got != p || took > 12*time.Millisecond {
				t.Errorf("%d of %d bytes came back after %v", len(got), len(p), took)
			}
		}
		if n := planes["self backbone"].Counters()["backbone_datagram_frames_sent_total"]; n != 0 {
			t.Errorf("%d frames", n)
		}
	})
}

// A datagram that meets a flow which is refused, before that is heard of, goes to the next with what was sent before, once.
func TestADatagramThatMeetsARefusalGoesElsewhere(t *testing.T) {
	for _, heard := range []string{"before", "after", "never"} {
		onUDPBench(t, threeRegions(), func(b *udpBench) {
			conn := b.dial()
			b.send(conn, "1")
			first := b.fars(1)[0]
			no := &backbone.RefusedError{Reason: "no"}
			b.mu.Lock()
			first.broken = no
			b.mu.Unlock()
			if heard == "before" {
				first.to.End(no)
				b.settle()
			}
			b.send(conn, "2")
			if heard == "after" {
				first.to.End(no)
				b.settle()
			}
			b.send(conn, "3")
			second := b.fars(2)[1]
			b.mu.Lock()
			defer b.mu.Unlock()
			if len(b.opened) != 2 || second.node == first.node && second.header.Resource == first.header.Resource || !slices.Equal(second.came, []string{"1", "2", "3"}) || !first.closed || second.closed {
				b.Errorf("heard %s: opened %d, at the second %q, closed %v", heard, len(b.opened), second.came, second.closed)
			}
		})
	}
}

// What is heard of a way late says nothing of the one that the flow goes now, though it leads to the same candidate; what is heard before the flow goes a way
// has it go another.
func TestTheEndOfAWayIsOfThatWayAlone(t *testing.T) {
	onUDPBench(t, only(testEndpoint{"a", 128, false}), func(b *udpBench) {
		conn := b.dial()
		b.send(conn, "1")
		first := b.fars(1)[0]
		b.mu.Lock()
		first.broken = backbone.ErrDown
		b.mu.Unlock()
		b.send(conn, "2")
		second := b.fars(2)[1]
		first.to.End(nil)
		first.to.End(&backbone.RefusedError{Reason: "no"})
		b.settle()
		b.send(conn, "3")
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.opened) != 2 || second.closed || !slices.Equal(second.came, []string{"2", "3"}) {
			b.Errorf("opened %d, at the second %q, closed %v", len(b.opened), second.came, second.closed)
		}
	})
	// A refusal that crosses with the flow's leaving declines nobody.
	onUDPBench(t, only(testEndpoint{"a", 128, false}), func(b *udpBench) {
		conn := b.dial()
		b.send(conn, "1")
		first := b.fars(1)[0]
		first.to.End(nil)
		first.to.End(&backbone.RefusedError{Reason: "no"})
		b.settle()
		b.send(conn, "2")
		second := b.fars(2)[1]
		b.mu.Lock()
		defer b.mu.Unlock()
		if !slices.Equal(second.came, []string{"2"}) {
			b.Errorf("at the second %q", second.came)
		}
	})
	onUDPBench(t, threeRegions(), func(b *udpBench) {
		open := b.plane.config.Open
		hasty := true
		b.plane.config.Open = func(node string, h backbone.Header, large bool, to backbone.Receiver) (Datagrams, error) {
			far, err := open(node, h, large, to)
			if hasty {
				hasty = false
				to.End(&backbone.RefusedError{Reason: "no"})
			}
			return far, err
		}
		b.send(b.dial(), "1")
		all := b.fars(2)
		b.mu.Lock()
		defer b.mu.Unlock()
		if !all[0].closed || len(all[0].came) > 0 || !slices.Equal(all[1].came, []string{"1"}) {
			b.Errorf("at the first %q, at the second %q", all[0].came, all[1].came)
		}
	})
}

// A node that is about to be closed begins no flows of datagrams any more, and those that there are go on both ways, until they are silent or its time is over.
func TestFlowsOfDatagramsFinishOnANodeThatEnds(t *testing.T) {
	for _, c := range []struct {
		name  string
		moves time.Duration // as long
		want  time.Duration
	}{
		{"they fall silent", 3 * time.Second, 8 * time.Second},
		{"they do not", time.Minute, 10 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			onUDPBench(t, only(testEndpoint{"a", 128, false}), func(b *udpBench) {
				conn, begun := b.dial(), time.Now()
				b.send(conn, "1")
				ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
				defer cancel()
				var over sync.WaitGroup
				over.Go(func() {
					b.plane.FinishDatagrams(ctx)
					if took := time.Since(begun).Truncate(time.Second); took != c.want {
						b.Errorf("it took %v, want %v", took, c.want)
					}
				})
				sent := 1
				for time.Since(begun) < min(c.moves, 9*time.Second) {
					time.Sleep(500 * time.Millisecond)
					b.send(conn, "more")
					sent++
				}
				b.send(b.dial(), "from another")
				f := b.fars(1)[0]
				f.to.Receive([][]byte{[]byte("answer")})
				buf := make([]byte, 100)
				conn.SetReadDeadline(time.Now().Add(time.Second))
				if n, err := conn.Read(buf); string(buf[:n]) != "answer" || err != nil {
					b.Errorf("got %q, %v", buf[:n], err)
				}
				if len(f.came) != sent || f.isClosed() {
					b.Errorf("%d of %d came, closed %v", len(f.came), sent, f.isClosed())
				}
				b.counted(map[string]uint64{"datagram_flows": 1, "datagram_flows_refused_total": 1})
				over.Wait()
			})
		})
	}
}
