//go:build linux && (amd64 || arm64)

package accelerator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/accelerator/flowlog"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/origin/relay/loop"
	"github.com/perigee-net/perigee/testbed/eitherway"
)

// pairOf is a plane on real sockets whose flows come by a loop, or each on goroutines of its own.
type pairOf struct {
	*eitherway.Door
	plane  *Plane
	view   atomic.Pointer[view.View]
	target net.Listener
	deaf   atomic.Pointer[netip.AddrPort] // nil: the target takes flows
	log    bytes.Buffer

	left     atomic.Int64 // prospects
	breaks   atomic.Bool  // as one is left, that panics
	late     atomic.Bool  // the target was, so that loops leave it alone
	told     atomic.Bool  // it is told something first by who dials it
	panicked atomic.Bool  // Hold is to panic
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
	return t.Conn, func(r relay.Result) { t.w.Note("ended %d %d %v, broke %d", r.AToB, r.BToA, r.Err != nil, r.Broke) }
}

// eitherWay runs a test by the one path and the other, and compares what was counted, noted and written down.
func eitherWay(t *testing.T, n network, wantBacks int, test func(w *pairOf)) {
	t.Helper()
	eitherway.Run(t, "accelerator", wantBacks, func(d *eitherway.Door) (map[string]uint64, string) {
		w := &pairOf{Door: d}
		return w.run(n, test)
	})
}

func (w *pairOf) run(n network, test func(w *pairOf)) (counters map[string]uint64, more string) {
	s, v, a := n.build()
	a.FlowLogs = &spec.Sampling{}
	w.view.Store(v)
	log, err := flowlog.Open(flowlog.Config{Path: flowlog.Stdout, Out: &w.log})
	if err != nil {
		w.Fatal(err)
	}
	w.target = w.Listen()
	took := func(c net.Conn) Taken { return takenHere{c, w} }
	w.plane = New(Config{
		View: w.view.Load, FlowLog: log, Panicked: w.Panicked,
		Take: func(ctx context.Context, resource string, client netip.AddrPort) (net.Conn, error) {
			if w.Lacking.Load() {
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
			if w.Lacking.Load() || w.late.Load() {
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
	shut := w.Open(func(c net.Conn, ended func()) { w.plane.Start(c, local, ended) }, func(c *loop.Conn, ended func(), back func() error) {
		w.plane.StartSoon(c, local, ended, back)
	})
	test(w)
	w.Flows.Wait()
	shut()
	log.Close()
	var b strings.Builder
	for line := range strings.Lines(w.log.String()) {
		f := strings.Fields(line)
		fmt.Fprintln(&b, strings.Join(append(slices.Clone(f[12:13]), f[15], f[19], f[21], f[23]), " "))
	}
	for _, all := range [][]Counted{w.plane.ByEndpoint(), w.plane.ByPath()} {
		fmt.Fprintln(&b, all)
	}
	fmt.Fprintln(&b, w.plane.Traffic())
	return w.plane.Counters(), b.String()
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

// deafen has flows end at an address at which nobody listens.
func (w *pairOf) deafen() {
	deaf := w.Deaf()
	w.deaf.Store(&deaf)
}

// flow is a new one: its two ends.
func (w *pairOf) flow() (client, target *net.TCPConn) {
	client = w.Dial()
	t, err := w.target.Accept()
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { t.Close() })
	return client, t.(*net.TCPConn)
}

// whole is a flow that comes to its end.
func (w *pairOf) whole(in, out int) {
	w.Helper()
	client, target := w.flow()
	w.Whole(client, target, in, out)
}

func TestFlowsOfALoopAreToldOfAsOthersAre(t *testing.T) {
	eitherWay(t, here(false), 0, func(w *pairOf) {
		w.whole(10, 20)
		w.whole(1000, 300_000) // which goes on elsewhere
		client, target := w.flow()
		w.Passes(client, target, 5)
		client.SetLinger(0)
		client.Close()
		w.Sees(target, syscall.ECONNRESET)
		w.Flows.Wait()
		client, target = w.flow()
		w.Passes(client, target, 5)
		target.SetLinger(0)
		target.Close()
		w.Sees(client, syscall.ECONNRESET)
		w.Flows.Wait()
		if c := w.plane.Counters(); w.Soon && (c["accelerator_flows_looped_total"] != 4 || c["accelerator_flows_handed_over_total"] != 1) {
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
		w.Passes(client, target, 3)
		client.Close()
		target.Close()
	})
}

func TestFlowsOfALoopAreShown(t *testing.T) {
	eitherWay(t, here(false), 0, func(w *pairOf) {
		client, target := w.flow()
		w.Passes(client, target, 7)
		w.Passes(target, client, 9)
		var s Status
		for len(s.Top) == 0 || s.Top[0].BytesIn < 7 || s.Top[0].BytesOut < 9 { // they are counted as they have been sent, or have come there
			s, _ = w.plane.Status("game", 5)
			runtime.Gosched()
		}
		f := s.Top[0]
		w.Note("%s %s %s %q %d %d %v %v", f.Region, f.Resource, f.Node, f.By, f.BytesIn, f.BytesOut, f.Known, f.RTT > 0)
		w.Note("%v", s.Endpoints)
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
		w.Passes(client, target, 1)
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
		w.Sees(client, syscall.ECONNRESET)
		w.Sees(target, syscall.ECONNRESET)
		w.Flows.Wait()
		w.Note("%v", ended)
	})
}

func TestAFlowThatNobodyTakesAtOnceIsGivenBack(t *testing.T) {
	eitherWay(t, here(false), 1, func(w *pairOf) {
		w.deafen()
		w.Refused()
	})
	eitherWay(t, here(false), 1, func(w *pairOf) {
		w.late.Store(true)
		w.whole(1, 2)
	})
	elsewhere := network{groups: []testGroup{up("nrt", 30, 100)}}
	eitherWay(t, elsewhere, 1, func(w *pairOf) { w.Refused() })
	eitherWay(t, here(false), 1, func(w *pairOf) {
		w.plane.count.live.Store(maxFlows)
		w.Refused()
	})
}

func TestAFlowOfALoopThatPanicsGivesItsPlacesBack(t *testing.T) {
	eitherWay(t, here(false), 0, func(w *pairOf) {
		w.panicked.Store(true)
		w.Refused()
		if n := w.plane.count.live.Load(); n != 0 {
			w.Errorf("%d places are taken", n)
		}
	})
}

// What cannot be carried since this node lacks descriptors is told of, whoever finds it out.
func TestAFlowThatCannotBeTakenFromItsLoopIsToldOf(t *testing.T) {
	eitherWay(t, here(false), 1, func(w *pairOf) {
		w.Lacking.Store(true)
		w.Refused()
	})
}

func TestAProspectThatPanicsGivesItsPlacesBack(t *testing.T) {
	w := &pairOf{Door: eitherway.New(t, true)}
	w.run(here(false), func(w *pairOf) {
		w.deafen()
		w.breaks.Store(true)
		w.Refused() // and has ended
		if n, left := w.plane.count.live.Load(), w.left.Load(); n != 0 || left != 1 {
			t.Errorf("%d places are taken, and it was left %d times", n, left)
		}
	})
	if w.Panics() != 1 || w.Backs() != 0 {
		t.Errorf("%d panics are told, and %d flows given back", w.Panics(), w.Backs())
	}
}
