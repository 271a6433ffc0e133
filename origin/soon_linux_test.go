//go:build linux && (amd64 || arm64)

package origin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
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
	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/origin/relay/loop"
)

// pair is a plane on real sockets whose listener's flows are held by a loop, or each by goroutines. What is told of them must be the same.
type pair struct {
	*testing.T
	soon    bool
	plane   *Plane
	spec    *spec.Spec
	view    atomic.Pointer[view.View]
	door    net.Listener
	targets []netip.AddrPort // that listen
	came    chan *net.TCPConn
	flows   sync.WaitGroup // that were dialled and have not ended

	mu      sync.Mutex
	known   []netip.AddrPort // of targets, whether they listen or not
	notes   []string
	panics  int
	backs   atomic.Int64 // flows that were given back
	lacking atomic.Bool  // nothing that a loop holds is taken from it
	breaks  atomic.Bool  // who is told of failures panics
}

func (w *pair) note(format string, values ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes = append(w.notes, fmt.Sprintf(format, values...))
}

// ofLoops are counters that goroutines do not count.
var ofLoops = map[string]bool{"origin_flows_looped_total": true, "origin_flows_given_back_total": true, "origin_flows_handed_over_total": true}

// eitherWay runs a test by the one path and the other, and compares what was counted and noted.
func eitherWay(t *testing.T, targets, wantBacks int, test func(w *pair)) {
	t.Helper()
	var told [2]string
	for i, soon := range []bool{false, true} {
		w := &pair{T: t, soon: soon}
		told[i] = w.run(targets, test)
		counters := w.plane.Counters()
		if got := counters["origin_flows_given_back_total"]; soon && (w.backs.Load() != int64(wantBacks) || got != uint64(wantBacks)) {
			t.Errorf("%d flows were given back, and %d counted, want %d", w.backs.Load(), got, wantBacks)
		}
		for name := range ofLoops {
			if !soon && counters[name] > 0 {
				t.Errorf("%s is %d without a loop", name, counters[name])
			}
		}
	}
	if told[0] != told[1] {
		t.Errorf("by goroutines:\n%sby a loop:\n%s", told[0], told[1])
	}
}

func (w *pair) run(targets int, test func(w *pair)) string {
	w.came = make(chan *net.TCPConn, 100)
	w.spec = &spec.Spec{
		Revision:      1,
		TargetGroups:  map[string]*spec.TargetGroup{"web": {Name: "web", Region: "here", Protocol: spec.TCP, Port: 80}},
		LoadBalancers: map[string]*spec.LoadBalancer{"tcp": {Name: "tcp", Region: "here", Type: spec.NetworkLoadBalancer, Listeners: []spec.Listener{{Protocol: spec.TCP, Port: 9000, Default: spec.Action{Forward: "web"}}}}},
	}
	for range targets {
		l := w.listen()
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
		Region: "here", View: w.view.Load, SoonTimeout: time.Hour, Panicked: w.panicked,
		Evidence: func(key health.Key, client netip.Addr, failed bool, reason string) {
			if w.breaks.Load() {
				panic("as it is told")
			}
			w.note("%s by %s, failed %v", w.called(string(key)), client, failed)
		},
	})
	w.applies(w.targets...)
	w.healthy(w.targets...)
	w.door = w.listen()
	closeDoor := func() { w.door.Close() }
	group := loop.New(loop.Config{Loops: 1, Panicked: w.panicked})
	defer group.Close()
	start := func(c net.Conn) {
		defer func() {
			if v := recover(); v != nil {
				w.panicked(v)
				relay.Abort(c)
				w.flows.Done()
			}
		}()
		w.plane.StartConn("tcp", 9000, c, w.flows.Done)
	}
	if w.soon {
		serve := w.plane.SoonHandler("tcp", 9000)
		s, ok := group.Listen(w.door, func(c *loop.Conn) {
			serve(c, w.flows.Done, func() error {
				w.backs.Add(1)
				if w.lacking.Load() {
					relay.Abort(c)
					w.flows.Done()
					return syscall.EMFILE
				}
				tcp, err := c.Detach()
				if err != nil {
					w.flows.Done()
					return err
				}
				go start(tcp)
				return nil
			})
		}, func(err error) { w.Error(err) })
		if !ok {
			w.Fatal("nothing is accepted")
		}
		closeDoor = func() {
			s.Close(func() {})
			w.door.Close()
		}
	} else {
		go func() {
			for {
				c, err := w.door.Accept()
				if err != nil {
					return
				}
				go start(c)
			}
		}()
	}
	test(w)
	w.flows.Wait()
	closeDoor()
	w.plane.Close()
	var b strings.Builder
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.Sort(w.notes) // what is told of a flow's end may come before or after
	fmt.Fprintf(&b, "%d panics\n%s\n", w.panics, strings.Join(w.notes, "\n"))
	counters := w.plane.Counters()
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		if counters[name] > 0 && !ofLoops[name] {
			fmt.Fprintln(&b, name, counters[name])
		}
	}
	return b.String()
}

func (w *pair) panicked(any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.panics++
}

func (w *pair) listen() net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { l.Close() })
	return l
}

// deaf is an address at which nobody listens, and nobody else will: it is taken.
func (w *pair) deaf() netip.AddrPort {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		w.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		w.Fatal(err)
	}
	deaf := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(at.(*unix.SockaddrInet4).Port))
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
	client = w.dial()
	target = <-w.came
	w.Cleanup(func() { target.Close() })
	return client, target
}

// at is the number of the target at which a flow has ended.
func (w *pair) at(target net.Conn) int {
	return slices.Index(w.targets, relay.AddrPort(target.LocalAddr()))
}

func (w *pair) dial() *net.TCPConn {
	w.flows.Add(1)
	c, err := net.Dial("tcp", w.door.Addr().String())
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// refused is a flow that is reset, which its client may see before it is connected.
func (w *pair) refused() {
	w.Helper()
	w.flows.Add(1)
	c, err := net.Dial("tcp", w.door.Addr().String())
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		w.Errorf("its client sees %v", err)
	}
	w.flows.Wait()
}

// passes sends bytes one way.
func (w *pair) passes(from, to net.Conn, n int) {
	w.Helper()
	go from.Write(make([]byte, n))
	if _, err := io.ReadFull(to, make([]byte, n)); err != nil {
		w.Error(err)
	}
}

func (w *pair) sees(c net.Conn, want error) {
	w.Helper()
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, want) {
		w.Errorf("it reads %d bytes, %v, want %v", n, err, want)
	}
}

// whole is a flow that comes to its end; at is the number of its target.
func (w *pair) whole(in, out int) (at int) {
	w.Helper()
	client, target := w.flow()
	w.passes(client, target, in)
	w.passes(target, client, out)
	client.CloseWrite()
	w.sees(target, io.EOF)
	target.Close()
	w.sees(client, io.EOF)
	w.flows.Wait()
	return w.at(target)
}

func TestAListenersFlowsOfALoopAreToldOfAsOthersAre(t *testing.T) {
	eitherWay(t, 1, 0, func(w *pair) {
		w.whole(10, 20)
		w.whole(1000, 300_000) // which goes on elsewhere
		for _, ends := range []int{0, 1} {
			client, target := w.flow()
			w.passes(client, target, 5)
			if got := w.plane.Flows(health.TargetKey("web", w.targets[0])); got != 1 {
				w.Errorf("%d flows are told", got)
			}
			both := []*net.TCPConn{client, target}
			both[ends].SetLinger(0)
			both[ends].Close()
			w.sees(both[1-ends], syscall.ECONNRESET)
			w.flows.Wait()
		}
		if c := w.plane.Counters(); w.soon && (c["origin_flows_looped_total"] != 4 || c["origin_flows_handed_over_total"] != 1) {
			w.Errorf("%d flows are counted as a loop's, and %d as handed over", c["origin_flows_looped_total"], c["origin_flows_handed_over_total"])
		}
	})
}

// Who speaks first does not matter, nor who ends first.
func TestAListenersFlowsOfALoopMayBeginAtTheTarget(t *testing.T) {
	eitherWay(t, 1, 0, func(w *pair) {
		client, target := w.flow()
		w.passes(target, client, 100)
		target.CloseWrite()
		w.sees(client, io.EOF)
		w.passes(client, target, 200)
		client.Close()
		w.sees(target, io.EOF)
	})
}

func TestAListenersTargetsHaveTheirTurnsByALoopToo(t *testing.T) {
	eitherWay(t, 3, 0, func(w *pair) {
		for i := range 7 {
			w.note("%d at %d", i, w.whole(1, 2))
		}
		w.healthy(w.targets[1])
		for i := range 3 {
			w.note("where one is healthy %d at %d", i, w.whole(1, 2))
		}
		w.healthy()
		for i := range 4 {
			w.note("where none is %d at %d", i, w.whole(1, 2))
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
		w.refused()
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
	eitherWay(t, 0, 1, func(w *pair) { w.refused() }) // there is none
}

// What the loop does not ask after a refusal others do, from the next turn on.
func TestAFlowIsGivenBackAfterARefusalToo(t *testing.T) {
	w := &pair{T: t, soon: true}
	w.run(2, func(w *pair) {
		w.plane.late.was(w.targets[0])
		w.applies(w.deaf(), w.targets[0], w.targets[1])
		w.healthy()
		if at := w.whole(1, 2); at != 0 {
			t.Errorf("it ended at %d", at)
		}
	})
	if c := w.plane.Counters(); w.backs.Load() != 1 || c["origin_target_connects_total"] != 2 || c["origin_flows_total"] != 1 {
		t.Errorf("%d were given back; %v", w.backs.Load(), c)
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
		if h.SourceAddr.String() != client.LocalAddr().String() || h.DestinationAddr.String() != w.door.Addr().String() {
			w.Errorf("from %v to %v, told from %v to %v", client.LocalAddr(), w.door.Addr(), h.SourceAddr, h.DestinationAddr)
		}
		w.note("version %d %v %v", h.Version, h.Command, h.TransportProtocol)
		fmt.Fprint(client, "x")
		if b, err := r.ReadByte(); b != 'x' {
			w.Error(err)
		}
		target.Close()
		w.sees(client, io.EOF)
		client.Close()
	})
}

func TestAListenersFlowsOfALoopEndWithTheirTarget(t *testing.T) {
	// By the health of their target:
	eitherWay(t, 2, 0, func(w *pair) {
		client, target := w.flow()
		w.passes(target, client, 1)
		at := w.at(target)
		w.healthy(w.targets[1-at])
		w.note("%d are ended", w.plane.Terminate(health.TargetKey("web", w.targets[at])))
		w.sees(client, syscall.ECONNRESET)
		w.sees(target, syscall.ECONNRESET)
	})
	// So it is before the target has sent a byte, which is no evidence against it. Whether it has stood for long enough to be some for it is a matter of time.
	for _, soon := range []bool{false, true} {
		w := &pair{T: t, soon: soon}
		told := w.run(2, func(w *pair) {
			client, target := w.flow()
			w.passes(client, target, 1)
			at := w.at(target)
			w.healthy(w.targets[1-at])
			w.plane.Terminate(health.TargetKey("web", w.targets[at]))
			w.sees(client, syscall.ECONNRESET)
			w.sees(target, syscall.ECONNRESET)
		})
		if strings.Contains(told, "failed true") {
			t.Errorf("by a loop %t: told\n%s", soon, told)
		}
	}
	// As it has left the group, and those to another go on:
	eitherWay(t, 2, 0, func(w *pair) {
		w.changes(func(_ *spec.LoadBalancer, g *spec.TargetGroup) { g.DeregistrationDelay = new(spec.Duration) })
		client, target := w.flow()
		w.passes(target, client, 1)
		other, last := w.flow()
		w.passes(last, other, 1)
		w.applies(w.targets[w.at(last)])
		w.sees(client, syscall.ECONNRESET)
		w.sees(target, syscall.ECONNRESET)
		w.passes(other, last, 1)
		other.Close()
		w.sees(last, io.EOF)
		last.Close()
	})
}

func TestAListenersSilentFlowsOfALoopAreEnded(t *testing.T) {
	eitherWay(t, 1, 0, func(w *pair) {
		w.changes(func(lb *spec.LoadBalancer, _ *spec.TargetGroup) {
			lb.IdleTimeout = new(spec.Duration(time.Millisecond))
		})
		client, target := w.flow()
		w.sees(client, syscall.ECONNRESET)
		w.sees(target, syscall.ECONNRESET)
	})
}

func TestAListenersFlowThatCannotBeTakenFromItsLoopIsToldOf(t *testing.T) {
	w := &pair{T: t, soon: true}
	w.run(1, func(w *pair) {
		w.plane.late.was(w.targets[0])
		w.lacking.Store(true)
		w.refused()
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
			w.note("%d at %d", i, w.whole(1, 2))
		}
	})
	w := &pair{T: t, soon: true}
	w.run(1, func(w *pair) {
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
	w := &pair{T: t, soon: true}
	w.run(0, func(w *pair) {
		w.applies(w.deaf())
		w.breaks.Store(true)
		w.refused() // and has ended
	})
	if w.panics != 1 || w.backs.Load() != 0 {
		t.Errorf("%d panics are told, and %d flows given back", w.panics, w.backs.Load())
	}
}

// One whose client is gone before its target took it asks for no other.
func TestAListenersFlowWhoseClientIsGoneIsOver(t *testing.T) {
	eitherWay(t, 1, 0, func(w *pair) {
		client, target := w.flow()
		client.Close()
		w.sees(target, io.EOF)
		target.Close()
		w.flows.Wait()
		if _, err := w.plane.TakeFlow(context.Background(), "targetGroup/none", netip.AddrPort{}); err == nil {
			w.Error("there is such a group")
		}
	})
}
