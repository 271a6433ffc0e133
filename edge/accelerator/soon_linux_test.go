//go:build linux && (amd64 || arm64)

package accelerator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/accelerator/flowlog"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/origin/relay/loop"
)

// pairOf is a plane on real sockets whose flows come by a loop, or each on goroutines of its own. What is told of them must be the same.
type pairOf struct {
	*testing.T
	soon   bool
	plane  *Plane
	view   atomic.Pointer[view.View]
	door   net.Listener
	target net.Listener
	deaf   atomic.Pointer[netip.AddrPort] // nil: the target takes flows
	flows  sync.WaitGroup                 // that were dialled and have not ended
	log    bytes.Buffer

	mu       sync.Mutex
	notes    []string
	panics   int
	backs    int          // flows that were given back
	left     atomic.Int64 // prospects
	breaks   atomic.Bool  // as one is left, that panics
	late     atomic.Bool  // the target was, so that loops leave it alone
	told     atomic.Bool  // it is told something first by who dials it
	lacking  atomic.Bool  // nothing that a loop holds is taken from it, and nothing dialled
	panicked atomic.Bool  // Hold is to panic
}

func (w *pairOf) note(format string, values ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes = append(w.notes, fmt.Sprintf(format, values...))
}

// here is a network whose endpoint this node has itself.
func here(terminates bool) network {
	n := network{groups: []testGroup{up("icn", 0, 100)}}
	n.groups[0].nodes = []string{"self"}
	n.groups[0].terminates = terminates
	return n
}

// takenHere is a flow to the target of a pairOf.
type takenHere struct {
	net.Conn
	w *pairOf
}

func (t takenHere) Hold(net.Conn) (net.Conn, func(relay.Result)) {
	if t.w.panicked.Load() {
		panic("as it is held")
	}
	return t.Conn, func(r relay.Result) { t.w.note("ended %d %d %v, broke %d", r.AToB, r.BToA, r.Err != nil, r.Broke) }
}

// ofLoops are counters that goroutines do not count.
var ofLoops = map[string]bool{"accelerator_flows_looped_total": true, "accelerator_flows_given_back_total": true, "accelerator_flows_handed_over_total": true}

// eitherWay runs a test by the one path and the other, and compares what was counted, noted and written down.
func eitherWay(t *testing.T, n network, wantBacks int, test func(w *pairOf)) {
	t.Helper()
	var told [2]string
	for i, soon := range []bool{false, true} {
		w := &pairOf{T: t, soon: soon}
		told[i] = w.run(n, test)
		counters := w.plane.Counters()
		if got := counters["accelerator_flows_given_back_total"]; soon && (w.backs != wantBacks || got != uint64(wantBacks)) {
			t.Errorf("%d flows were given back, and %d counted, want %d", w.backs, got, wantBacks)
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

func (w *pairOf) run(n network, test func(w *pairOf)) string {
	s, v, a := n.build()
	a.FlowLogs = &spec.Sampling{}
	w.view.Store(v)
	log, err := flowlog.Open(flowlog.Config{Path: flowlog.Stdout, Out: &w.log})
	if err != nil {
		w.Fatal(err)
	}
	w.target = w.listen()
	took := func(c net.Conn) Taken { return takenHere{c, w} }
	told := func(any) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.panics++
	}
	w.plane = New(Config{
		View: w.view.Load, FlowLog: log, Panicked: told,
		Take: func(ctx context.Context, resource string, client netip.AddrPort) (net.Conn, error) {
			if w.lacking.Load() {
				return nil, syscall.EMFILE
			}
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", w.at().String())
			if err != nil {
				return nil, err
			}
			c.Write(w.first())
			return takenHere{c, w}, nil
		},
		Prospect: func(resource string, client netip.AddrPort) (Prospect, bool) {
			if w.lacking.Load() || w.late.Load() {
				return Prospect{}, false
			}
			return Prospect{Target: w.at(), Within: time.Hour, First: w.first(), Took: took, Left: w.leaves}, true
		},
		Dial: func(context.Context, string, backbone.Header) (net.Conn, error) {
			return nil, errors.New("nobody is there")
		},
	})
	if err := w.plane.Apply(s); err != nil {
		w.Fatal(err)
	}
	w.door = w.listen()
	group := loop.New(loop.Config{Loops: 1, Panicked: told})
	defer group.Close()
	start := func(c net.Conn) {
		defer func() {
			if v := recover(); v != nil {
				told(v)
				relay.Abort(c)
				w.flows.Done()
			}
		}()
		w.plane.Start(c, local, w.flows.Done)
	}
	if w.soon {
		s, ok := group.Listen(w.door, func(c *loop.Conn) {
			w.plane.StartSoon(c, local, w.flows.Done, func() error {
				w.backs++ // nothing else is under way by then, in these tests
				if w.lacking.Load() {
					relay.Abort(c)
					w.flows.Done()
					return syscall.EMFILE
				}
				tcp, err := c.Detach()
				if err != nil {
					w.Error(err)
				}
				go start(tcp)
				return nil
			})
		}, func(err error) { w.Error(err) })
		if !ok {
			w.Fatal("nothing is accepted")
		}
		defer s.Close(func() {})
	} else {
		go func() {
			for {
				c, err := w.door.Accept()
				if err != nil {
					return
				}
				start(c)
			}
		}()
	}
	test(w)
	w.flows.Wait()
	w.door.Close()
	log.Close()
	var b strings.Builder
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(&b, "%d panics\n%s\n", w.panics, strings.Join(w.notes, "\n"))
	for line := range strings.Lines(w.log.String()) {
		f := strings.Fields(line)
		fmt.Fprintln(&b, strings.Join(append(slices.Clone(f[12:13]), f[15], f[19], f[21], f[23]), " "))
	}
	counters := w.plane.Counters()
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		if counters[name] > 0 && !ofLoops[name] {
			fmt.Fprintln(&b, name, counters[name])
		}
	}
	for _, all := range [][]Counted{w.plane.ByEndpoint(), w.plane.ByPath()} {
		fmt.Fprintln(&b, all)
	}
	fmt.Fprintln(&b, w.plane.Traffic())
	return b.String()
}

func (w *pairOf) listen() net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { l.Close() })
	return l
}

// first is what the target is told before anything else.
func (w *pairOf) first() []byte {
	if w.told.Load() {
		return []byte("from whom it is")
	}
	return nil
}

// leaves is called for a prospect that comes to nothing.
func (w *pairOf) leaves(error) {
	w.left.Add(1)
	if w.breaks.Load() {
		panic("as it is left")
	}
}

// at is where flows are to end.
func (w *pairOf) at() netip.AddrPort {
	if deaf := w.deaf.Load(); deaf != nil {
		return *deaf
	}
	return relay.AddrPort(w.target.Addr())
}

// deafen has flows end at an address at which nobody listens, and nobody else will: it is taken.
func (w *pairOf) deafen() {
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
	w.deaf.Store(&deaf)
}

// flow is a new one: its two ends.
func (w *pairOf) flow() (client, target *net.TCPConn) {
	client = w.dial()
	t, err := w.target.Accept()
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { t.Close() })
	return client, t.(*net.TCPConn)
}

func (w *pairOf) dial() *net.TCPConn {
	w.flows.Add(1)
	c, err := net.Dial("tcp", w.door.Addr().String())
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// refused is a flow that is reset, which its client may see before it is connected.
func (w *pairOf) refused() {
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
func (w *pairOf) passes(from, to net.Conn, n int) {
	w.Helper()
	go from.Write(make([]byte, n))
	if _, err := io.ReadFull(to, make([]byte, n)); err != nil {
		w.Error(err)
	}
}

func (w *pairOf) sees(c net.Conn, want error) {
	w.Helper()
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, want) {
		w.Errorf("it reads %d bytes, %v, want %v", n, err, want)
	}
}

// whole is a flow that comes to its end.
func (w *pairOf) whole(in, out int) {
	w.Helper()
	client, target := w.flow()
	w.passes(client, target, in)
	w.passes(target, client, out)
	client.CloseWrite()
	w.sees(target, io.EOF)
	target.Close()
	w.sees(client, io.EOF)
	w.flows.Wait()
}

func TestFlowsOfALoopAreToldOfAsOthersAre(t *testing.T) {
	eitherWay(t, here(false), 0, func(w *pairOf) {
		w.whole(10, 20)
		w.whole(1000, 300_000) // which goes on elsewhere
		client, target := w.flow()
		w.passes(client, target, 5)
		client.SetLinger(0)
		client.Close()
		w.sees(target, syscall.ECONNRESET)
		w.flows.Wait()
		client, target = w.flow()
		w.passes(client, target, 5)
		target.SetLinger(0)
		target.Close()
		w.sees(client, syscall.ECONNRESET)
		w.flows.Wait()
		if c := w.plane.Counters(); w.soon && (c["accelerator_flows_looped_total"] != 4 || c["accelerator_flows_handed_over_total"] != 1) {
			w.Errorf("%d flows are counted as a loop's, and %d as handed over", c["accelerator_flows_looped_total"], c["accelerator_flows_handed_over_total"])
		}
	})
}

func TestWhatAnEndpointIsToldFirstIsNotCounted(t *testing.T) {
	eitherWay(t, here(false), 0, func(w *pairOf) {
		w.told.Store(true)
		client, target := w.flow()
		said := make([]byte, len(w.first()))
		if _, err := io.ReadFull(target, said); err != nil || !bytes.Equal(said, w.first()) {
			t.Errorf("it is told %q, %v", said, err)
		}
		w.passes(client, target, 3)
		client.Close()
		target.Close()
	})
}

func TestFlowsOfALoopAreShown(t *testing.T) {
	eitherWay(t, here(false), 0, func(w *pairOf) {
		client, target := w.flow()
		w.passes(client, target, 7)
		w.passes(target, client, 9)
		var s Status
		for len(s.Top) == 0 || s.Top[0].BytesIn < 7 || s.Top[0].BytesOut < 9 { // they are counted as they have been sent, or have come there
			s, _ = w.plane.Status("game", 5)
			runtime.Gosched()
		}
		f := s.Top[0]
		w.note("%s %s %s %q %d %d %v %v", f.Region, f.Resource, f.Node, f.By, f.BytesIn, f.BytesOut, f.Known, f.RTT > 0)
		w.note("%v", s.Endpoints)
		if f.Client != relay.AddrPort(client.LocalAddr()) || f.Local != local {
			w.Errorf("from %v to %v", f.Client, f.Local)
		}
		client.Close()
		target.Close()
	})
}

func TestFlowsOfALoopEndAsTheSpecSays(t *testing.T) {
	// A second region, so that clients are better served there; nobody dials it.
	n := here(true)
	n.groups = append(n.groups, up("nrt", 30, 100))
	eitherWay(t, n, 0, func(w *pairOf) {
		client, target := w.flow()
		w.passes(client, target, 1)
		sick := n
		sick.groups = slices.Clone(n.groups)
		sick.groups[0].endpoints = slices.Clone(sick.groups[0].endpoints)
		sick.groups[0].endpoints[0].sick = true
		s, v, a := sick.build()
		a.FlowLogs = &spec.Sampling{}
		w.view.Store(v)
		if err := w.plane.Apply(s); err != nil {
			w.Fatal(err)
		}
		ended := w.plane.Review()
		w.sees(client, syscall.ECONNRESET)
		w.sees(target, syscall.ECONNRESET)
		w.flows.Wait()
		w.note("%v", ended)
	})
}

func TestAFlowThatNobodyTakesAtOnceIsGivenBack(t *testing.T) {
	eitherWay(t, here(false), 1, func(w *pairOf) {
		w.deafen()
		w.refused()
	})
	eitherWay(t, here(false), 1, func(w *pairOf) {
		w.late.Store(true)
		w.whole(1, 2)
	})
	elsewhere := network{groups: []testGroup{up("nrt", 30, 100)}}
	eitherWay(t, elsewhere, 1, func(w *pairOf) { w.refused() })
	eitherWay(t, here(false), 1, func(w *pairOf) {
		w.plane.count.live.Store(maxFlows)
		w.refused()
	})
}

func TestAFlowOfALoopThatPanicsGivesItsPlacesBack(t *testing.T) {
	eitherWay(t, here(false), 0, func(w *pairOf) {
		w.panicked.Store(true)
		w.refused()
		if n := w.plane.count.live.Load(); n != 0 {
			w.Errorf("%d places are taken", n)
		}
	})
}

// What cannot be carried since this node lacks descriptors is told of, whoever finds it out.
func TestAFlowThatCannotBeTakenFromItsLoopIsToldOf(t *testing.T) {
	eitherWay(t, here(false), 1, func(w *pairOf) {
		w.lacking.Store(true)
		w.refused()
	})
}

func TestAProspectThatPanicsGivesItsPlacesBack(t *testing.T) {
	w := &pairOf{T: t, soon: true}
	w.run(here(false), func(w *pairOf) {
		w.deafen()
		w.breaks.Store(true)
		w.refused() // and has ended
		if n, left := w.plane.count.live.Load(), w.left.Load(); n != 0 || left != 1 {
			t.Errorf("%d places are taken, and it was left %d times", n, left)
		}
	})
	if w.panics != 1 || w.backs != 0 {
		t.Errorf("%d panics are told, and %d flows given back", w.panics, w.backs)
	}
}
