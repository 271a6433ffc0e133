package accelerator

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/edge/accelerator/flowlog"
)

// by is a view's Detour that knows these.
func by(detours map[string]view.Detour) func(string) (view.Detour, bool) {
	return func(to string) (view.Detour, bool) { d, ok := detours[to]; return d, ok }
}

func TestACandidateHasADetourWhereThereIsOne(t *testing.T) {
	const ms = time.Millisecond
	cut := up("icn", 5, 100)
	cut.nodes = []string{"icn1!"}
	s, v, a := network{groups: []testGroup{cut, up("nrt", 30, 100), up("iad", 90, 100)}}.build()
	v.Detour = by(map[string]view.Detour{"icn1": {By: "nrt1", RTT: 40 * ms}, "iad1": {By: "sfo1", RTT: 60 * ms, Direct: 90 * ms}})
	v.Paths = map[string]view.Path{"nrt1": {Loss: 0.0123, Parity: true, Carried: 93.4e6, CarriedTCP: 181.2e6}, "sfo1": {Loss: 0.00012, TCP: "BBR"}, "iad1": {Loss: 0.5}}
	v.RTT["sfo1"] = 50 * ms
	tr := new(trace.Trace)
	got := Choose(s, v, a, &a.Listeners[0], Flow{Client: client(1), Local: local}, tr)
	want := []Candidate{ // who cannot be reached is no better for a detour: it may have died
		{Region: "nrt", Resource: "targetGroup/nrt", Node: "nrt1"},
		{Region: "iad", Resource: "targetGroup/iad", Node: "iad1", By: "sfo1"},
		{Region: "icn", Resource: "targetGroup/icn", Node: "icn1", By: "nrt1", Detour: true},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	var text []string
	for _, l := range tr.Lines() {
		text = append(text, l.Text)
	}
	for _, line := range []string{
		"node icn1 by way of nrt1: round trip 40ms, directly not at all", "node iad1 by way of sfo1: round trip 60ms, directly 90ms: 30ms or 33 % less",
		"2. targetGroup/iad in iad by iad1, by way of sfo1", "way to node nrt1: round trip 30ms, 1.2 % of packets lost, made good by parity; carried up to 181 Mbit/s by TCP, 93.4 Mbit/s by QUIC in the last ten minutes",
		"way to node sfo1: round trip 50ms, 0.012 % of packets lost, not made good; TCP with BBR for flows of many bytes",
	} {
		if !slices.Contains(text, line) {
			t.Errorf("it does not say %q:\n%s", line, strings.Join(text, "\n"))
		}
	}
}

func TestAPathIsToldAsItFares(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		path view.Path
		want string // empty: nothing
	}{
		{view.Path{}, ""},
		{view.Path{Parity: true}, "way to node nrt1: round trip 30ms, no packets lost of late, parity is sent still"},
		{view.Path{TCP: "BBR"}, "way to node nrt1: round trip 30ms, no packets lost; TCP with BBR for flows of many bytes"},
		{view.Path{Loss: 0.02}, "way to node nrt1: round trip 30ms, 2 % of packets lost, not made good"},
		{view.Path{Loss: 0.02, Parity: true}, "way to node nrt1: round trip 30ms, 2 % of packets lost, made good by parity"},
	} {
		s, v, a := network{groups: []testGroup{up("nrt", 30, 100)}}.build()
		v.Paths = map[string]view.Path{"nrt1": c.path}
		v.RTT["nrt1"] = 30 * ms
		tr := new(trace.Trace)
		Choose(s, v, a, &a.Listeners[0], Flow{Client: client(1), Local: local}, tr)
		var got string
		for _, l := range tr.Lines() {
			if strings.HasPrefix(l.Text, "way to node") {
				got = l.Text
			}
		}
		if got != c.want {
			t.Errorf("%+v: %q, want %q", c.path, got, c.want)
		}
	}
}

func TestADetourThatFailsLeavesTheDirectWay(t *testing.T) {
	for _, c := range []struct {
		name   string
		down   []string // nodes that do not answer
		direct time.Duration
		want   []string
		counts map[string]uint64
	}{
		{"it is taken", nil, 90 * time.Millisecond, []string{"sfo1 detour iad1/targetGroup/iad 203.0.113.9"},
			map[string]uint64{"accelerator_detours_total": 1}},
		{"it fails", []string{"sfo1"}, 90 * time.Millisecond, []string{"sfo1 detour iad1/targetGroup/iad 203.0.113.9", "iad1 flow targetGroup/iad 203.0.113.9"},
			map[string]uint64{"accelerator_detours_failed_total": 1}},
		{"it fails and is the only way", []string{"sfo1"}, 0, []string{"sfo1 detour iad1/targetGroup/iad 203.0.113.9"},
			map[string]uint64{"accelerator_detours_failed_total": 1, "accelerator_attempts_failed_total": 1, "accelerator_flows_dropped_no_endpoint_found_total": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			node := func(_ context.Context, name string) error {
				if slices.Contains(c.down, name) {
					return errors.New("it is down")
				}
				return nil
			}
			onBench(t, network{groups: []testGroup{up("iad", 90, 100)}}, node, func(b *bench) {
				b.plane.config.View().Detour = by(map[string]view.Detour{"iad1": {By: "sfo1", RTT: 60 * time.Millisecond, Direct: c.direct}})
				f := b.dial()
				io.WriteString(f, "x")
				f.CloseWrite()
				all, err := io.ReadAll(f)
				if served := c.counts["accelerator_flows_dropped_no_endpoint_found_total"] == 0; served != (string(all) == "x" && err == nil) {
					b.Errorf("got %q, %v", all, err)
				}
				f.Close()
				time.Sleep(time.Second)
				if got := b.dialled(); !slices.Equal(got, c.want) {
					b.Errorf("dialled %q, want %q", got, c.want)
				}
				for name, n := range c.counts {
					if got := b.plane.Counters()[name]; got != n {
						b.Errorf("%s is %d, want %d", name, got, n)
					}
				}
			})
		})
	}
}

func TestAFlowIsCarriedOnOnceItsEndHasTakenIt(t *testing.T) {
	for _, c := range []struct {
		resource, refused string
		dialled           []string
	}{
		{"iad1/targetGroup/iad", "", []string{"iad1 flow targetGroup/iad 198.51.100.7"}},
		{"iad1/endpoint/game/10.0.0.1:80", "", []string{"iad1 flow endpoint/game/10.0.0.1:80 198.51.100.7"}},
		{"down/targetGroup/iad", "it is down", []string{"down flow targetGroup/iad 198.51.100.7"}},
		{"iad1", "a detour names", nil},
		{"/targetGroup/iad", "a detour names", nil},
		{"iad1/", "a detour names", nil},
		{"", "a detour names", nil},
	} {
		t.Run(c.resource, func(t *testing.T) {
			node := func(_ context.Context, name string) error {
				if name == "down" {
					return errors.New("it is down")
				}
				return nil
			}
			onBench(t, network{groups: []testGroup{up("iad", 90, 100)}}, node, func(b *bench) {
				near, far := net.Pipe()
				refused := ""
				var serving sync.WaitGroup
				serving.Go(func() {
					h := backbone.Header{Service: detourService, Resource: c.resource, Client: netip.MustParseAddrPort("198.51.100.7:40000")}
					serveDetour(b.Context(), b.plane, h, func() net.Conn { return far }, func(err error) { refused = err.Error(); near.Close() })
				})
				io.WriteString(near, "x")
				if got := make([]byte, 1); c.refused == "" {
					if _, err := io.ReadFull(near, got); err != nil || string(got) != "x" {
						b.Errorf("got %q, %v", got, err)
					}
					near.Close()
				}
				serving.Wait()
				if !strings.Contains(refused, c.refused) || (refused == "") != (c.refused == "") {
					b.Errorf("refused by %q, want %q", refused, c.refused)
				}
				if got := b.dialled(); !slices.Equal(got, c.dialled) {
					b.Errorf("dialled %q, want %q", got, c.dialled)
				}
				n := b.plane.Counters()
				if n["accelerator_detours_refused_total"] != n["accelerator_detours_carried_total"]^1 || n["accelerator_flows"] != 0 {
					b.Errorf("counted %v", n)
				}
			})
		})
	}
	onBench(t, network{groups: []testGroup{up("iad", 90, 100)}}, nil, func(b *bench) {
		b.plane.count.live.Store(maxFlows)
		serveDetour(b.Context(), b.plane, backbone.Header{Resource: "iad1/targetGroup/iad"}, nil, func(reason error) {
			if reason.Error() != "too many flows" {
				b.Errorf("refused by %q", reason)
			}
		})
		b.plane.count.live.Store(0)
	})
}

func TestTheWaysOfAFlowThatHasLostItsOwn(t *testing.T) {
	const ms = time.Millisecond
	network := func(change func(v *view.View)) *view.View {
		v := &view.View{Self: "self", Unreachable: map[string]bool{}, RTT: map[string]time.Duration{"to": 90 * ms}}
		for i, name := range []string{"self", "to", "a", "b", "c", "d"} {
			v.Members = append(v.Members, view.Member{Name: name, Lasting: true})
			if i > 1 {
				v.RTT[name] = time.Duration(i) * ms
			}
		}
		slices.SortFunc(v.Members, func(a, b view.Member) int { return strings.Compare(a.Name, b.Name) })
		v.Distance = func(a, _ string) (time.Duration, bool) {
			return map[string]time.Duration{"a": 40 * ms, "b": 10 * ms, "c": 20 * ms, "d": 30 * ms}[a], a != "d"
		}
		change(v)
		return v
	}
	member := func(v *view.View, name string) *view.Member {
		i := slices.IndexFunc(v.Members, func(m view.Member) bool { return m.Name == name })
		return &v.Members[i]
	}
	for name, c := range map[string]struct {
		change func(v *view.View)
		want   []string
	}{
		"directly, then the shortest":     {func(*view.View) {}, []string{"", "b", "c", "a"}},
		"the direct way seems to be lost": {func(v *view.View) { v.Unreachable["to"] = true }, []string{"b", "c", "a", ""}},
		"its node is not seen any more":   {func(v *view.View) { member(v, "to").Name = "gone" }, []string{"", "b", "c", "a"}},
		"by who cannot be reached":        {func(v *view.View) { v.Unreachable["b"] = true }, []string{"", "c", "a", "d"}},
		"by whom nothing is known of":     {func(v *view.View) { delete(v.RTT, "b"); v.Distance = nil }, []string{"", "a", "c", "d"}},
		"by who leaves, or is drained":    {func(v *view.View) { member(v, "b").Leaving, member(v, "c").Drained = true, "so" }, []string{"", "a", "d"}},
		"by who does not know of it":      {func(v *view.View) { member(v, "b").Lasting = false }, []string{"", "c", "a", "d"}},
	} {
		if got := between(network(c.change), "to"); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := between(nil, "to"); !slices.Equal(got, []string{""}) {
		t.Errorf("nothing is known: %q", got)
	}
	v := network(func(v *view.View) { member(v, "a").Lasting = false })
	for _, c := range []struct {
		to, by string
		want   bool
	}{{"to", "", true}, {"to", "b", true}, {"to", "a", false}, {"a", "", false}, {"nobody", "", false}} {
		if got := lasts(v, c.to, c.by); got != c.want {
			t.Errorf("to %q by %q: %t", c.to, c.by, got)
		}
	}
}

// goesOn is a flow's stream that says how it goes.
type goesOn struct {
	net.Conn
	way   string
	moves int
}

func (o *goesOn) Way() string { return o.way }
func (o *goesOn) Moves() int  { return o.moves }

func (o *goesOn) CloseWrite() error {
	return o.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

func TestAFlowIsOpenedSoThatItGoesOnWhereAllKnowOfThat(t *testing.T) {
	for _, c := range []struct {
		name    string
		knows   []string
		by      string
		lasting bool
	}{
		{"directly", []string{"iad1"}, "", true},
		{"an earlier release", nil, "", false},
		{"on a detour", []string{"iad1", "sfo1"}, "sfo1", true},
		{"by way of an earlier release", []string{"iad1"}, "sfo1", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			onBench(t, network{groups: []testGroup{up("iad", 90, 100)}}, nil, func(b *bench) {
				v := b.plane.config.View()
				v.Members = append(v.Members, view.Member{Name: "sfo1"})
				slices.SortFunc(v.Members, func(a, b view.Member) int { return strings.Compare(a.Name, b.Name) })
				for i := range v.Members {
					v.Members[i].Lasting = slices.Contains(c.knows, v.Members[i].Name)
				}
				if c.by != "" {
					v.Detour = by(map[string]view.Detour{"iad1": {By: c.by, RTT: 60 * time.Millisecond, Direct: 90 * time.Millisecond}})
				}
				var ways []backbone.Way
				b.plane.config.DialLasting = func(ctx context.Context, way backbone.Way, others func() []backbone.Way) (net.Conn, error) {
					ways = append([]backbone.Way{way}, others()...)
					far, err := b.plane.config.Dial(ctx, way.Node, way.Header)
					return &goesOn{far, "nrt1", 2}, err
				}
				f := b.dial()
				io.WriteString(f, "x")
				time.Sleep(time.Second)
				s, _ := b.plane.Status("game", 10)
				if c.lasting != (len(ways) > 0) || len(s.Top) != 1 || len(s.Paths) != 1 {
					b.Fatalf("ways %+v, status %+v", ways, s)
				}
				if c.lasting && (s.Top[0].By != "nrt1" || s.Top[0].Moves != 2 || s.Paths[0].By != "nrt1" || (ways[0].To != "") != (c.by != "") || len(ways) < 2) {
					b.Errorf("ways %+v, status %+v", ways, s)
				}
				if !c.lasting && (s.Top[0].By != c.by || s.Top[0].Moves != 0) {
					b.Errorf("status %+v", s)
				}
				f.CloseWrite()
				if got, err := io.ReadAll(f); string(got) != "x" || err != nil {
					b.Errorf("got %q, %v", got, err)
				}
				f.Close()
				time.Sleep(time.Second)
			})
		})
	}
}

// serveDetour is startDetour that waits for the end of the flow.
func serveDetour(ctx context.Context, p *Plane, h backbone.Header, accept func() net.Conn, refuse func(error)) {
	over := make(chan struct{})
	p.startDetour(ctx, h, nil, accept, refuse, func() { close(over) })
	<-over
}

// wanders is a flow's stream that goes on by another node.
type wanders struct {
	goesOn
	by atomic.Pointer[string]
}

func (o *wanders) Way() string { return *o.by.Load() }

// What a flow carries is counted, and written down, by the way that it goes by then.
func TestAFlowThatHasMovedIsCountedWhereItGoesNow(t *testing.T) {
	var out bytes.Buffer
	onBench(t, network{groups: []testGroup{up("iad", 90, 100)}}, nil, func(b *bench) {
		log, err := flowlog.Open(flowlog.Config{Path: flowlog.Stdout, JSON: true, Out: &out})
		if err != nil {
			b.Fatal(err)
		}
		b.plane.config.FlowLog = log
		s, _, a := network{groups: []testGroup{up("iad", 90, 100)}}.build()
		a.FlowLogs = &spec.Sampling{}
		if err := b.plane.Apply(s); err != nil {
			b.Fatal(err)
		}
		for i := range b.plane.config.View().Members {
			b.plane.config.View().Members[i].Lasting = true
		}
		far := new(wanders)
		b.plane.config.DialLasting = func(ctx context.Context, way backbone.Way, _ func() []backbone.Way) (net.Conn, error) {
			conn, err := b.plane.config.Dial(ctx, way.Node, way.Header)
			far.Conn = conn
			far.by.Store(&way.Node)
			return far, err
		}
		f := b.dial()
		carries := func(text string) {
			io.WriteString(f, text)
			io.ReadFull(f, make([]byte, len(text)))
		}
		carries("12345")
		time.Sleep(window + time.Second)
		nrt1 := "nrt1"
		far.by.Store(&nrt1)
		if got, want := b.plane.ByPath(), []Counted{
			{[3]string{"iad", "iad1", direct}, 1, 5, 5, 0}, {[3]string{"iad", "iad1", "nrt1"}, 0, 0, 0, 1},
		}; !slices.Equal(got, want) {
			b.Errorf("counted %+v, want %+v", got, want)
		}
		carries("123")
		f.CloseWrite()
		io.ReadAll(f)
		f.Close()
		time.Sleep(time.Second)
		if got, want := b.plane.ByPath(), []Counted{
			{[3]string{"iad", "iad1", direct}, 1, 5, 5, 0}, {[3]string{"iad", "iad1", "nrt1"}, 0, 3, 3, 0},
		}; !slices.Equal(got, want) {
			b.Errorf("counted %+v, want %+v", got, want)
		}
		log.Close()
	})
	lines := slices.Collect(strings.Lines(out.String()))
	if len(lines) != 4 {
		t.Fatalf("%d lines: %q", len(lines), lines)
	}
	for i, line := range lines {
		if by := strings.Contains(line, `"by":"nrt1"`); by != (i >= 2) {
			t.Errorf("line %d: %q", i, line)
		}
	}
}
