//go:build linux && (amd64 || arm64)

package origin

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/testbed/eitherway"
)

// pair is a plane on real sockets whose listener's flows are held by a loop, or each by goroutines.
type pair struct {
	*eitherway.Door
	plane   *Plane
	spec    *spec.Spec
	view    atomic.Pointer[view.View]
	targets []netip.AddrPort // that listen
	came    chan *net.TCPConn
	breaks  atomic.Bool // who is told of failures panics

	mu    sync.Mutex
	known []netip.AddrPort // of targets, whether they listen or not
}

// eitherWay runs a test by the one path and the other, and compares what was counted and noted.
func eitherWay(t *testing.T, targets, wantBacks int, test func(w *pair)) {
	t.Helper()
	eitherway.Run(t, "origin", wantBacks, func(d *eitherway.Door) (map[string]uint64, string) {
		w := &pair{Door: d}
		w.run(targets, test)
		return w.plane.Counters(), ""
	})
}

// byLoop runs a test by a loop alone.
func byLoop(t *testing.T, targets int, test func(w *pair)) *pair {
	t.Helper()
	w := &pair{Door: eitherway.New(t, true)}
	w.run(targets, test)
	return w
}

func (w *pair) run(targets int, test func(w *pair)) {
	w.InNoOrder, w.Leaves = true, true // what is told of a flow's end may come before or after
	w.came = make(chan *net.TCPConn, 100)
	w.spec = &spec.Spec{
		Revision:      1,
		TargetGroups:  map[string]*spec.TargetGroup{"web": {Name: "web", Region: "here", Protocol: spec.TCP, Port: 80}},
		LoadBalancers: map[string]*spec.LoadBalancer{"tcp": {Name: "tcp", Region: "here", Type: spec.NetworkLoadBalancer, Listeners: []spec.Listener{{Protocol: spec.TCP, Port: 9000, Default: spec.Action{Forward: "web"}}}}},
	}
	for range targets {
		l := w.Listen()
		w.targets = append(w.targets, relay.AddrPort(l.Addr()))
		w.known = append(w.known, relay.AddrPort(l.Addr()))
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				w.came <- c.(*net.TCPConn)
			}
		}()
	}
	w.plane = New(Config{
		Region: "here", View: w.view.Load, SoonTimeout: time.Hour, Panicked: w.Panicked,
		Evidence: func(key health.Key, client netip.Addr, failed bool, reason string) {
			if w.breaks.Load() {
				panic("as it is told")
			}
			w.Note("%s by %s, failed %v", w.called(string(key)), client, failed)
		},
	})
	w.plane.settling.runs = true // and so no timer has a flow count while it stands, which one way might have it do for long enough and the other not
	w.applies(w.targets...)
	w.healthy(w.targets...)
	soon := w.plane.SoonHandler("tcp", 9000)
	shut := w.Open(func(c net.Conn, ended func()) { w.plane.StartConn("tcp", 9000, c, ended) }, soon)
	test(w)
	w.Flows.Wait()
	shut()
	w.plane.Close()
}

// deaf is an address at which nobody listens.
func (w *pair) deaf() netip.AddrPort {
	deaf := w.Deaf()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.known = append(w.known, deaf)
	return deaf
}

// called is a text in which targets are called by their numbers.
func (w *pair) called(text string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, at := range w.known {
		text = strings.ReplaceAll(text, at.String(), fmt.Sprint(i))
	}
	return text
}

// applies has the group have these targets.
func (w *pair) applies(targets ...netip.AddrPort) {
	w.Helper()
	w.changes(func(_ *spec.LoadBalancer, g *spec.TargetGroup) {
		g.Targets = nil
		for _, at := range targets {
			g.Targets = append(g.Targets, spec.Target{Address: at.Addr(), Port: at.Port()})
		}
	})
}

// changes has the balancer and its group be others.
func (w *pair) changes(to func(lb *spec.LoadBalancer, g *spec.TargetGroup)) {
	w.Helper()
	lb, g := *w.spec.LoadBalancers["tcp"], *w.spec.TargetGroups["web"]
	to(&lb, &g)
	w.spec = &spec.Spec{
		Revision: w.spec.Revision + 1, LoadBalancers: map[string]*spec.LoadBalancer{"tcp": &lb}, TargetGroups: map[string]*spec.TargetGroup{"web": &g},
	}
	if err := w.plane.Apply(w.spec); err != nil {
		w.Fatal(err)
	}
}

func (w *pair) healthy(targets ...netip.AddrPort) {
	verdicts := map[health.Key]health.Verdict{}
	for _, at := range targets {
		verdicts[health.TargetKey("web", at)] = health.Verdict{Healthy: true}
	}
	w.view.Store(&view.View{Health: health.NewTable(verdicts)})
}

// flow is a new one: its two ends.
func (w *pair) flow() (client, target *net.TCPConn) {
	client = w.Dial()
	target = <-w.came
	w.Cleanup(func() { target.Close() })
	return client, target
}

// at is the number of the target at which a flow has ended.
func (w *pair) at(target net.Conn) int {
	return slices.Index(w.targets, relay.AddrPort(target.LocalAddr()))
}

// whole is a flow that comes to its end; at is the number of its target.
func (w *pair) whole(in, out int) (at int) {
	w.Helper()
	client, target := w.flow()
	w.Whole(client, target, in, out)
	return w.at(target)
}

func TestAListenersFlowsOfALoopAreToldOfAsOthersAre(t *testing.T) {
	eitherWay(t, 1, 0, func(w *pair) {
		w.whole(10, 20)
		w.whole(1000, 300_000) // which goes on elsewhere
		for _, ends := range []int{0, 1} {
			client, target := w.flow()
			w.Passes(client, target, 5)
			if got := w.plane.Flows(health.TargetKey("web", w.targets[0])); got != 1 {
				w.Errorf("%d flows are told", got)
			}
			both := []*net.TCPConn{client, target}
			both[ends].SetLinger(0)
			both[ends].Close()
			w.Sees(both[1-ends], syscall.ECONNRESET)
			w.Flows.Wait()
		}
		if c := w.plane.Counters(); w.Soon && (c["origin_flows_looped_total"] != 4 || c["origin_flows_handed_over_total"] != 1) {
			w.Errorf("%d flows are counted as a loop's, and %d as handed over", c["origin_flows_looped_total"], c["origin_flows_handed_over_total"])
		}
	})
}

// Who speaks first does not matter, nor who ends first.
func TestAListenersFlowsOfALoopMayBeginAtTheTarget(t *testing.T) {
	eitherWay(t, 1, 0, func(w *pair) {
		client, target := w.flow()
		w.Passes(target, client, 100)
		target.CloseWrite()
		w.Sees(client, io.EOF)
		w.Passes(client, target, 200)
		client.Close()
		w.Sees(target, io.EOF)
	})
}

func TestAListenersTargetsHaveTheirTurnsByALoopToo(t *testing.T) {
	eitherWay(t, 3, 0, func(w *pair) {
		for i := range 7 {
			w.Note("%d at %d", i, w.whole(1, 2))
		}
		w.healthy(w.targets[1])
		for i := range 3 {
			w.Note("where one is healthy %d at %d", i, w.whole(1, 2))
		}
		w.healthy()
		for i := range 4 {
			w.Note("where none is %d at %d", i, w.whole(1, 2))
		}
	})
}

// The refusal of a target counts against it, whoever asked, and the next takes the flow.
func TestATargetThatRefusesALoopGivesWayToTheNext(t *testing.T) {
	eitherWay(t, 1, 0, func(w *pair) {
		w.applies(w.deaf(), w.targets[0])
		w.healthy()
		w.whole(1, 2)
	})
	eitherWay(t, 0, 0, func(w *pair) {
		w.applies(w.deaf(), w.deaf())
		w.Refused()
	})
	eitherWay(t, 1, 0, func(w *pair) { // all have no verdict, and one of them listens
		w.applies(w.deaf(), w.deaf(), w.targets[0])
		w.healthy()
		for range 5 {
			w.whole(1, 2)
		}
	})
	eitherWay(t, 1, 0, func(w *pair) { // the only one that is healthy does not take it
		all := []netip.AddrPort{w.deaf(), w.targets[0]}
		w.applies(all...)
		w.healthy(all[0])
		w.whole(1, 2)
	})
	eitherWay(t, 0, 1, func(w *pair) { w.Refused() }) // there is none
}

// What the loop does not ask after a refusal others do, from the next turn on.
func TestAFlowIsGivenBackAfterARefusalToo(t *testing.T) {
	w := byLoop(t, 2, func(w *pair) {
		w.plane.late.was(w.targets[0])
		w.applies(w.deaf(), w.targets[0], w.targets[1])
		w.healthy()
		if at := w.whole(1, 2); at != 0 {
			t.Errorf("it ended at %d", at)
		}
	})
	if c := w.plane.Counters(); w.Backs() != 1 || c["origin_target_connects_total"] != 2 || c["origin_flows_total"] != 1 {
		t.Errorf("%d were given back; %v", w.Backs(), c)
	}
}

func TestATargetIsToldFromWhomALoopHasAFlow(t *testing.T) {
	eitherWay(t, 1, 0, func(w *pair) {
		w.changes(func(_ *spec.LoadBalancer, g *spec.TargetGroup) { g.ProxyProtocolV2 = true })
		client, target := w.flow()
		r := bufio.NewReader(target)
		h, err := proxyproto.Read(r)
		if err != nil {
			w.Fatal(err)
		}
		if h.SourceAddr.String() != client.LocalAddr().String() || h.DestinationAddr.String() != w.Addr().String() {
			w.Errorf("from %v to %v, told from %v to %v", client.LocalAddr(), w.Addr(), h.SourceAddr, h.DestinationAddr)
		}
		w.Note("version %d %v %v", h.Version, h.Command, h.TransportProtocol)
		fmt.Fprint(client, "x")
		if b, err := r.ReadByte(); b != 'x' {
			w.Error(err)
		}
		target.Close()
		w.Sees(client, io.EOF)
		client.Close()
	})
}

func TestAListenersFlowsOfALoopEndWithTheirTarget(t *testing.T) {
	// By the health of their target:
	eitherWay(t, 2, 0, func(w *pair) {
		client, target := w.flow()
		w.Passes(target, client, 1)
		at := w.at(target)
		w.healthy(w.targets[1-at])
		w.Note("%d are ended", w.plane.Terminate(health.TargetKey("web", w.targets[at])))
		w.Sees(client, syscall.ECONNRESET)
		w.Sees(target, syscall.ECONNRESET)
	})
	// So it is before the target has sent a byte, which is no evidence against it:
	eitherWay(t, 2, 0, func(w *pair) {
		client, target := w.flow()
		w.Passes(client, target, 1)
		at := w.at(target)
		w.healthy(w.targets[1-at])
		w.plane.Terminate(health.TargetKey("web", w.targets[at]))
		w.Sees(client, syscall.ECONNRESET)
		w.Sees(target, syscall.ECONNRESET)
		w.Flows.Wait()
		if told := strings.Join(w.Notes(), "\n"); strings.Contains(told, "failed true") {
			t.Errorf("by a loop %t: told\n%s", w.Soon, told)
		}
	})
	// As it has left the group, and those to another go on:
	eitherWay(t, 2, 0, func(w *pair) {
		w.changes(func(_ *spec.LoadBalancer, g *spec.TargetGroup) { g.DeregistrationDelay = new(spec.Duration) })
		client, target := w.flow()
		w.Passes(target, client, 1)
		other, last := w.flow()
		w.Passes(last, other, 1)
		w.applies(w.targets[w.at(last)])
		w.Sees(client, syscall.ECONNRESET)
		w.Sees(target, syscall.ECONNRESET)
		w.Passes(other, last, 1)
		other.Close()
		w.Sees(last, io.EOF)
		last.Close()
	})
}

func TestAListenersSilentFlowsOfALoopAreEnded(t *testing.T) {
	eitherWay(t, 1, 0, func(w *pair) {
		w.changes(func(lb *spec.LoadBalancer, _ *spec.TargetGroup) {
			lb.IdleTimeout = new(spec.Duration(time.Millisecond))
		})
		w.Refused() // as soon as it stands, which may be before its client is connected
		target := <-w.came
		defer target.Close()
		w.Sees(target, syscall.ECONNRESET)
	})
}

func TestAListenersFlowThatCannotBeTakenFromItsLoopIsToldOf(t *testing.T) {
	w := byLoop(t, 1, func(w *pair) {
		w.plane.late.was(w.targets[0])
		w.Lacking.Store(true)
		w.Refused()
	})
	if c := w.plane.Counters(); c["origin_flows_total"] != 1 || c["origin_flows_refused_total"] != 1 || c["origin_flows_given_back_total"] != 1 {
		t.Errorf("counted %v", c)
	}
}

// A target that was late is left to goroutines for a while, which have the turn that the loop did not.
func TestATargetThatWasLateIsLeftToOthers(t *testing.T) {
	eitherWay(t, 2, 2, func(w *pair) {
		w.plane.late.was(w.targets[0])
		for i := range 4 {
			w.Note("%d at %d", i, w.whole(1, 2))
		}
	})
	byLoop(t, 1, func(w *pair) {
		one, ok := w.plane.Prospect("targetGroup/web", netip.MustParseAddrPort("198.51.100.7:40000"))
		if !ok {
			t.Fatal("there is no target")
		}
		one.Left(os.ErrDeadlineExceeded)
		if _, ok := w.plane.Prospect("targetGroup/web", netip.MustParseAddrPort("198.51.100.7:40000")); ok {
			t.Error("it is asked again")
		}
	})
}

func TestAListenersFlowThatPanicsIsReset(t *testing.T) {
	w := byLoop(t, 0, func(w *pair) {
		w.applies(w.deaf())
		w.breaks.Store(true)
		w.Refused() // and has ended
	})
	if w.Panics() != 1 || w.Backs() != 0 {
		t.Errorf("%d panics are told, and %d flows given back", w.Panics(), w.Backs())
	}
}

// One whose client is gone before its target took it asks for no other.
func TestAListenersFlowWhoseClientIsGoneIsOver(t *testing.T) {
	eitherWay(t, 1, 0, func(w *pair) {
		client, target := w.flow()
		client.Close()
		w.Sees(target, io.EOF)
		target.Close()
		w.Flows.Wait()
		if _, err := w.plane.TakeFlow(context.Background(), "targetGroup/none", netip.AddrPort{}); err == nil {
			w.Error("there is such a group")
		}
	})
}
