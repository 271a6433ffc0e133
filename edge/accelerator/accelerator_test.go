package accelerator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin/relay"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// bench is a plane behind an open door, and a client that is 10 ms away from it.
type bench struct {
	*testing.T
	in     *memnet.Internet
	client *memnet.Host
	edge   *memnet.Host
	plane  *Plane
	doors  []net.Listener
	flows  sync.WaitGroup

	mu    sync.Mutex
	tried []string
}

// onBench runs a test in virtual time. What a node does with a flow is node's to say; nil accepts and echoes.
func onBench(t *testing.T, n network, node func(ctx context.Context, name string) error, test func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, n)
		defer b.in.Close()
		origin := b.in.Host("origin", spec.Location{}, netip.MustParseAddr("192.0.2.20"))
		b.listen(origin, "192.0.2.20:1", func(c net.Conn) {
			if n, _ := io.Copy(c, c); n >= 0 {
				c.(interface{ CloseWrite() error }).CloseWrite()
			}
			c.Close()
		})
		b.plane.config.Dial = func(ctx context.Context, name string, h backbone.Header) (net.Conn, error) {
			b.mu.Lock()
			b.tried = append(b.tried, name+" "+h.Service+" "+h.Resource+" "+h.Client.Addr().String())
			b.mu.Unlock()
			if node != nil {
				if err := node(ctx, name); err != nil {
					return nil, err
				}
			}
			return b.edge.Dial(ctx, "tcp", "192.0.2.20:1")
		}
		test(b)
		b.end()
	})
}

func newBench(t *testing.T, n network) *bench {
	b := &bench{T: t, in: memnet.New(1)}
	b.client = b.in.Host("client", spec.Location{}, netip.MustParseAddr("203.0.113.9"))
	b.edge = b.in.Host("edge", spec.Location{}, local.Addr(), netip.MustParseAddr("192.0.2.10"))
	b.in.Link("client", "edge", memnet.Path{Delay: 5 * time.Millisecond})
	s, v, _ := n.build()
	b.plane = New(Config{View: func() *view.View { return v }})
	if err := b.plane.Apply(s); err != nil {
		t.Fatal(err)
	}
	open := b.plane.Listeners()
	if want := []Listener{{"game", spec.TCP, local}}; !slices.Equal(open, want) {
		t.Fatalf("listeners %v, want %v", open, want)
	}
	b.listen(b.edge, local.String(), func(c net.Conn) { waiting(b.plane.ConnHandler(open[0]))(c) })
	return b
}

// waiting is a handler that returns when its flow has ended.
func waiting(start func(c net.Conn, ended func())) func(net.Conn) {
	return func(c net.Conn) {
		over := make(chan struct{})
		start(c, func() { close(over) })
		<-over
	}
}

func (b *bench) listen(h *memnet.Host, address string, serve func(net.Conn)) {
	b.Helper()
	l, err := h.Listen("tcp", address)
	if err != nil {
		b.Fatal(err)
	}
	b.flows.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b.flows.Go(func() { serve(c) })
		}
	})
	b.doors = append(b.doors, l)
}

// end shuts the doors and waits for the flows.
func (b *bench) end() {
	for _, l := range b.doors {
		l.Close()
	}
	b.flows.Wait()
}

// dialled is what was dialled so far, in order: node, service, resource, client.
func (b *bench) dialled() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.tried)
}

type tcpConn interface {
	net.Conn
	CloseWrite() error
	SetLinger(int) error
}

func (b *bench) dial() tcpConn {
	b.Helper()
	c, err := b.client.Dial(b.Context(), "tcp", local.String())
	if err != nil {
		b.Fatal(err)
	}
	return c.(tcpConn)
}

// count compares counters; those that are not named are to be 0.
func (b *bench) count(want map[string]uint64) {
	b.Helper()
	for name, n := range b.plane.Counters() {
		if n != want[name] {
			b.Errorf("%s is %d, want %d", name, n, want[name])
		}
	}
}

func TestAFlowIsCarriedToItsEndpointAndBothHalvesEnd(t *testing.T) {
	onBench(t, only(testEndpoint{"a", 128, false}), nil, func(b *bench) {
		c := b.dial()
		defer c.Close()
		text := strings.Repeat("hello ", 50_000)
		go func() {
			io.WriteString(c, text)
			c.CloseWrite()
		}()
		if got, err := io.ReadAll(c); string(got) != text || err != nil {
			b.Errorf("%d bytes came back, %v", len(got), err)
		}
		if want := []string{"icn1 flow targetGroup/a 203.0.113.9"}; !slices.Equal(b.dialled(), want) {
			b.Errorf("dialled %q, want %q", b.dialled(), want)
		}
		synctest.Wait()
		b.count(map[string]uint64{
			"accelerator_flows_total":              1,
			"accelerator_processed_bytes_in_total": uint64(len(text)), "accelerator_processed_bytes_out_total": uint64(len(text)),
		})
	})
}

func TestWhatIsExplainedIsWhatIsServed(t *testing.T) {
	n := only(testEndpoint{"a", 128, false}, testEndpoint{"lb:b", 128, false})
	n.affinity = spec.AffinitySourceIP
	n.groups[0].nodes = []string{"icn1", "icn2", "icn3"}
	onBench(t, n, nil, func(b *bench) {
		b.dial().Close()
		time.Sleep(time.Second)
		tr := new(trace.Trace)
		answer, err := b.plane.Explain(spec.TCP, local, netip.MustParseAddr("203.0.113.9"), tr)
		if err != nil {
			b.Fatal(err)
		}
		dialled := strings.Fields(b.dialled()[0])
		if want := dialled[2] + " in icn by " + dialled[0]; answer != want || !strings.Contains(tr.String(), "1. "+want) {
			b.Errorf("explained %q, served %q:\n%s", answer, want, tr)
		}
		if _, err := b.plane.Explain(spec.TCP, netip.MustParseAddrPort("198.51.100.1:1"), netip.MustParseAddr("203.0.113.9"), nil); err == nil {
			b.Error("a port without a listener was explained")
		}
	})
}

// threeRegions are two nodes near and one in each of two other regions.
func threeRegions() network {
	icn := up("icn", 5, 100)
	icn.nodes = []string{"icn1", "icn2"}
	return network{groups: []testGroup{icn, up("nrt", 30, 100), up("iad", 90, 100)}}
}

func TestAFlowThatIsNotTakenGoesToTheNextAtOnce(t *testing.T) {
	for _, c := range []struct {
		name   string
		node   func(ctx context.Context, name string) error
		nodes  int           // that are tried
		within time.Duration // of the first attempt
	}{
		{"refused", func(_ context.Context, name string) error {
			if strings.HasPrefix(name, "icn") {
				return &backbone.RefusedError{Reason: "no target answers"}
			}
			return nil
		}, 3, 0},
		{"the link is down", func(_ context.Context, name string) error {
			if name != "iad1" {
				return backbone.ErrDown
			}
			return nil
		}, 4, 0},
		{"silence", func(ctx context.Context, name string) error {
			if strings.HasPrefix(name, "icn") {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}, 3, 2 * soonest},
		{"silence of two regions", func(ctx context.Context, name string) error {
			if name != "iad1" {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}, 4, 3 * soonest},
	} {
		t.Run(c.name, func(t *testing.T) {
			onBench(t, threeRegions(), c.node, func(b *bench) {
				conn := b.dial()
				defer conn.Close()
				begun := time.Now()
				io.WriteString(conn, "x")
				if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
					b.Fatal(err)
				}
				if took := time.Since(begun); took > c.within+100*time.Millisecond {
					b.Errorf("it took %v", took)
				}
				if len(b.dialled()) != c.nodes {
					b.Errorf("dialled %q, want %d", b.dialled(), c.nodes)
				}
				conn.CloseWrite()
				io.ReadAll(conn)
				synctest.Wait()
				b.count(map[string]uint64{
					"accelerator_flows_total": 1, "accelerator_failovers_total": 1, "accelerator_attempts_failed_total": uint64(c.nodes - 1),
					"accelerator_processed_bytes_in_total": 1, "accelerator_processed_bytes_out_total": 1,
				})
			})
		})
	}
}

func TestAFlowThatNobodyTakesIsReset(t *testing.T) {
	refuse := func(context.Context, string) error { return &backbone.RefusedError{Reason: "no target answers"} }
	hang := func(ctx context.Context, _ string) error {
		<-ctx.Done()
		return ctx.Err()
	}
	nobody := threeRegions()
	for i := range nobody.groups {
		nobody.groups[i].nodes = nil
	}
	for _, c := range []struct {
		name   string
		net    network
		node   func(context.Context, string) error
		within time.Duration
		tries  uint64
	}{
		{"all refuse", threeRegions(), refuse, 0, 4},
		{"all are silent", network{groups: append(threeRegions().groups, up("sin", 100, 100), up("fra", 120, 100))}, hang, attemptTimeout + soonest + attemptTimeout, 6},
		{"there is no node", nobody, refuse, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			onBench(t, c.net, c.node, func(b *bench) {
				conn := b.dial()
				defer conn.Close()
				begun := time.Now()
				if _, err := io.ReadAll(conn); !errors.Is(err, syscall.ECONNRESET) {
					b.Errorf("the client read %v", err)
				}
				if took := time.Since(begun); took > c.within+100*time.Millisecond {
					b.Errorf("it took %v", took)
				}
				synctest.Wait()
				b.count(map[string]uint64{
					"accelerator_flows_total": 1, "accelerator_flows_dropped_no_endpoint_found_total": 1, "accelerator_attempts_failed_total": c.tries,
				})
			})
		})
	}
}

func TestASilentFlowIsResetAfterTheIdleTimeout(t *testing.T) {
	for _, idle := range []time.Duration{10 * time.Second, 340 * time.Second, spec.MaxAcceleratorIdle} {
		n := only(testEndpoint{"a", 128, false})
		n.idle = idle
		onBench(t, n, nil, func(b *bench) {
			c := b.dial()
			defer c.Close()
			begun := time.Now()
			if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
				b.Errorf("the client read %v", err)
			}
			if took := time.Since(begun); took < idle || took > idle+idle/4 {
				b.Errorf("it took %v, not %v", took, idle)
			}
			synctest.Wait()
			b.count(map[string]uint64{"accelerator_flows_total": 1, "accelerator_flows_idle_total": 1})
		})
	}
}

func TestDisablingClosesTheDoorAndLeavesFlowsAlone(t *testing.T) {
	onBench(t, only(testEndpoint{"a", 128, false}), nil, func(b *bench) {
		before := b.dial()
		defer before.Close()
		io.WriteString(before, "x")
		io.ReadFull(before, make([]byte, 1))

		s, _, a := only(testEndpoint{"a", 128, false}).build()
		*a.Enabled = false
		if err := b.plane.Apply(s); err != nil {
			b.Fatal(err)
		}
		if open := b.plane.Listeners(); len(open) != 0 {
			b.Errorf("listeners %v", open)
		}
		late := b.dial() // through a door that is not shut yet
		defer late.Close()
		if _, err := io.ReadAll(late); !errors.Is(err, syscall.ECONNRESET) {
			b.Errorf("a new flow read %v", err)
		}
		io.WriteString(before, "y")
		if _, err := io.ReadFull(before, make([]byte, 1)); err != nil {
			b.Errorf("the established flow read %v", err)
		}
		b.count(map[string]uint64{"accelerator_flows_total": 1, "accelerator_flows_refused_total": 1, "accelerator_flows": 1,
			"accelerator_processed_bytes_in_total": 2, "accelerator_processed_bytes_out_total": 2})
	})
}

func TestFlowsBeyondTheBoundAreReset(t *testing.T) {
	onBench(t, only(testEndpoint{"a", 128, false}), nil, func(b *bench) {
		b.plane.count.live.Store(maxFlows)
		c := b.dial()
		defer c.Close()
		if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
			b.Errorf("the client read %v", err)
		}
		b.count(map[string]uint64{"accelerator_flows_refused_total": 1, "accelerator_flows": maxFlows})
		b.plane.count.live.Store(0)
	})
}

func TestListenersAreAllAddressesAndPorts(t *testing.T) {
	s, _, a := only(testEndpoint{"a", 128, false}).build()
	a.IPAddresses = []netip.Addr{netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("198.51.100.1")}
	a.Listeners[0].PortRanges = []spec.PortRange{{FromPort: 65534, ToPort: 65535}, {FromPort: 80}}
	p := New(Config{})
	if err := p.Apply(s); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range p.Listeners() {
		got = append(got, l.Accelerator+" "+l.Address.String())
	}
	want := []string{
		"game 198.51.100.1:80", "game 198.51.100.1:65534", "game 198.51.100.1:65535",
		"game 198.51.100.2:80", "game 198.51.100.2:65534", "game 198.51.100.2:65535",
		"game [2001:db8::1]:80", "game [2001:db8::1]:65534", "game [2001:db8::1]:65535",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestASpecThatCannotBeServedLeavesTheOneBefore(t *testing.T) {
	for name, spoil := range map[string]func(*spec.Spec, *spec.Accelerator){
		"too many ports": func(_ *spec.Spec, a *spec.Accelerator) {
			a.Listeners[0].PortRanges = []spec.PortRange{{FromPort: 1, ToPort: maxPorts}, {FromPort: 5000}}
		},
		"all ports": func(_ *spec.Spec, a *spec.Accelerator) {
			a.Listeners[0].PortRanges = []spec.PortRange{{FromPort: 1, ToPort: 65535}}
		},
		"a protocol that is not served": func(_ *spec.Spec, a *spec.Accelerator) { a.Listeners[0].Protocol = "SCTP" },
		"an address that is another's": func(s *spec.Spec, a *spec.Accelerator) {
			other := *a
			other.Name = "other"
			s.Accelerators["other"] = &other
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := New(Config{})
			good, _, _ := only(testEndpoint{"a", 128, false}).build()
			if err := p.Apply(good); err != nil {
				t.Fatal(err)
			}
			bad, _, a := only(testEndpoint{"a", 128, false}).build()
			spoil(bad, a)
			if err := p.Apply(bad); err == nil || !strings.Contains(err.Error(), "accelerator ") {
				t.Errorf("got %v", err)
			}
			if open := p.Listeners(); !slices.Equal(open, []Listener{{"game", spec.TCP, local}}) {
				t.Errorf("listeners %v", open)
			}
		})
	}
}

// overBackbone runs a test with the edge and one origin node joined by a true backbone; origin serves each flow.
func overBackbone(t *testing.T, origin func(net.Conn), test func(b *bench, far *memnet.Host)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, only(testEndpoint{"a", 128, false}))
		defer b.in.Close()
		authority, err := identity.NewAuthority("test", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		far := b.in.Host("icn1", spec.Location{}, netip.MustParseAddr("192.0.2.11"))
		b.in.Link("edge", "icn1", memnet.Path{Delay: 50 * time.Millisecond})
		open := func(name, address string, h *memnet.Host) *backbone.Backbone {
			id, err := authority.Node(identity.Claim{Name: name, Region: "r", POP: "p"}, 1, identity.Keys{Cluster: identity.NewKey()}, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			self := identity.NewGuard(id, identity.Trust{}, time.Now)
			conn, err := h.ListenPacket("udp", address)
			if err != nil {
				t.Fatal(err)
			}
			bb, err := backbone.Open(backbone.Config{
				Self: name, PacketConn: conn, ServerTLS: func() *tls.Config { return self.ServerTLS() }, PeerName: identity.PeerName,
				ClientTLS: func(node string) *tls.Config { return self.ClientTLS(node) },
			})
			if err != nil {
				t.Fatal(err)
			}
			return bb
		}
		near, there := open("edge", "192.0.2.10:7947", b.edge), open("icn1", "192.0.2.11:7947", far)
		defer there.Close()
		defer near.Close()
		there.Handle("flow", func(in *backbone.Incoming) { origin(in.Accept()) })
		near.Keep(map[string]netip.AddrPort{"icn1": netip.MustParseAddrPort("192.0.2.11:7947")})
		b.plane.config.Dial = near.Dial
		test(b, far)
		b.end()
	})
}

func TestOverTheBackboneBothHalvesEnd(t *testing.T) {
	answer := strings.Repeat("answer ", 20_000)
	served := make(chan string, 1)
	overBackbone(t, func(c net.Conn) {
		defer c.Close()
		question, err := io.ReadAll(c)
		served <- fmt.Sprint(len(question), err, c.RemoteAddr().(*net.TCPAddr).IP)
		io.WriteString(c, answer)
		c.(interface{ CloseWrite() error }).CloseWrite()
	}, func(b *bench, _ *memnet.Host) {
		c := b.dial()
		defer c.Close()
		go func() {
			io.WriteString(c, strings.Repeat("q", 100_000))
			c.CloseWrite()
		}()
		if got, err := io.ReadAll(c); string(got) != answer || err != nil {
			b.Errorf("%d of %d bytes came back, %v", len(got), len(answer), err)
		}
	})
	if got := <-served; got != "100000 <nil> 203.0.113.9" {
		t.Errorf("the origin saw %s", got)
	}
}

func TestOverTheBackboneHalfAnAnswerIsNoAnswer(t *testing.T) {
	for name, breaks := range map[string]func(c net.Conn, far *memnet.Host){
		"the origin breaks it off":  func(c net.Conn, _ *memnet.Host) { c.(interface{ Abort() }).Abort() },
		"the origin closes it":      func(c net.Conn, _ *memnet.Host) { c.Close() },
		"the origin's node crashes": func(_ net.Conn, far *memnet.Host) { far.Crash() },
	} {
		t.Run(name, func(t *testing.T) {
			var host *memnet.Host
			overBackbone(t, func(c net.Conn) {
				defer c.Close()
				io.WriteString(c, "half an ans")
				time.Sleep(time.Second)
				breaks(c, host)
				if name == "the origin's node crashes" {
					io.Copy(io.Discard, c)
				}
			}, func(b *bench, far *memnet.Host) {
				host = far
				c := b.dial()
				defer c.Close()
				begun := time.Now()
				got, err := io.ReadAll(c)
				if string(got) != "half an ans" || !errors.Is(err, syscall.ECONNRESET) {
					b.Errorf("the client read %q, %v", got, err)
				}
				if took := time.Since(begun); took > 4*time.Second {
					b.Errorf("it took %v", took)
				}
				synctest.Wait()
				b.count(map[string]uint64{
					"accelerator_flows_total": 1, "accelerator_flows_broken_total": 1, "accelerator_processed_bytes_out_total": 11,
				})
			})
		})
	}
	t.Run("and the other way", func(t *testing.T) {
		read := make(chan error, 1)
		overBackbone(t, func(c net.Conn) {
			defer c.Close()
			_, err := io.ReadAll(c)
			read <- err
		}, func(b *bench, _ *memnet.Host) {
			c := b.dial()
			io.WriteString(c, "half a quest")
			time.Sleep(time.Second)
			c.SetLinger(0)
			c.Close()
			time.Sleep(time.Second)
		})
		if err := <-read; !errors.Is(err, backbone.ErrReset) {
			t.Errorf("the origin read %v", err)
		}
	})
}

func BenchmarkServe(b *testing.B) {
	s, v, _ := only(testEndpoint{"a", 128, false}).build()
	p := New(Config{
		View: func() *view.View { return v },
		Dial: func(context.Context, string, backbone.Header) (net.Conn, error) {
			c, end := net.Pipe()
			end.Close()
			return c, nil
		},
	})
	if err := p.Apply(s); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		c, end := net.Pipe()
		end.Close()
		waiting(p.ConnHandler(Listener{Address: local}))(c)
	}
}

// clumsy is a flow that this node has dialled itself, and whose holding panics.
type clumsy struct{ net.Conn }

func (c *clumsy) Hold(net.Conn) (net.Conn, func(relay.Result)) { panic("a fault") }

// What panics before a flow is carried leaves no place taken and no stream open: who called recovers.
func TestAFlowThatPanicsBeforeItIsCarriedLeavesNothing(t *testing.T) {
	onBench(t, threeRegions(), nil, func(b *bench) {
		open := 0
		dial := b.plane.config.Dial
		b.plane.config.Dial = func(ctx context.Context, name string, h backbone.Header) (net.Conn, error) {
			far, err := dial(ctx, name, h)
			open++
			return &clumsy{&noted{Conn: far, closed: sync.OnceFunc(func() { open-- })}}, err
		}
		near, client := net.Pipe()
		defer client.Close()
		defer near.Close()
		if b.started(near) == nil {
			b.Error("nothing was recovered")
		}
		if n := b.plane.Counters()["accelerator_flows"]; n != 0 || open != 0 {
			b.Errorf("%d flows and %d streams are left", n, open)
		}
	})
}
