package origin

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/perigee-net/perigee/cluster/backbone"
	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/testbed/memnet"
)

// wayBack is what comes back to whoever opened a flow of datagrams.
type wayBack struct {
	mu     sync.Mutex
	came   []string
	closed int
	reason string // it was refused with
	told   string
	large  int // datagrams of more bytes are too large; 0: none are
}

func (b *wayBack) Refuse(reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reason = reason
}

func (b *wayBack) Tell(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.told = text
}

func (b *wayBack) Send(all [][]byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var large backbone.TooLargeError
	for i, p := range all {
		if b.large > 0 && len(p) > b.large {
			large.Which = append(large.Which, i)
			continue
		}
		b.came = append(b.came, string(p))
	}
	if large.Which != nil {
		return &large
	}
	return nil
}

func (b *wayBack) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed++
}

func (b *wayBack) take() ([]string, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	came := b.came
	b.came = nil
	return came, b.closed
}

var datagramClient = netip.MustParseAddrPort("203.0.113.9:5000")

// udpSpec is the world's group as one for UDP, and an accelerator with an endpoint by address.
func (w *world) udpSpec() *spec.Spec {
	s := w.spec()
	s.LoadBalancers = nil
	g := s.TargetGroups["web"]
	g.Protocol, g.DeregistrationDelay = spec.UDP, new(spec.Duration(30*time.Second))
	s.Accelerators = map[string]*spec.Accelerator{"a": {Name: "a", Listeners: []spec.AcceleratorListener{
		{Protocol: spec.UDP, PortRanges: []spec.PortRange{{FromPort: 53}}, EndpointGroups: []spec.EndpointGroup{{
			Region: "here", HealthCheckPort: 80, Endpoints: []spec.Endpoint{{Address: w.targets[0].Addr()}},
			PortOverrides: []spec.PortOverride{{ListenerPort: 53, EndpointPort: 80}},
		}}},
		{Protocol: spec.TCP, PortRanges: []spec.PortRange{{FromPort: 99}}, EndpointGroups: []spec.EndpointGroup{{
			Region: "here", HealthCheckPort: 80, Endpoints: []spec.Endpoint{{Address: w.targets[0].Addr()}},
		}}},
	}}}
	return s
}

// echoes has a machine answer each datagram by its own name, the sender's port and what it was.
func (w *world) echoes(h *memnet.Host) {
	w.t.Helper()
	conn, err := h.ListenPacket("udp", ":80")
	if err != nil {
		w.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			conn.WriteTo([]byte(h.Name()+" "+string(buf[:n])), from)
		}
	})
	w.ends = append(w.ends, func() { conn.Close(); wg.Wait() })
}

// session opens a flow of datagrams.
func (w *world) session(resource string) (*session, *wayBack) {
	w.t.Helper()
	b := new(wayBack)
	s, err := w.plane.openSession(resource, datagramClient, b)
	if err != nil {
		w.t.Fatal(err)
	}
	return s, b
}

func settle() {
	time.Sleep(time.Millisecond)
	synctest.Wait()
}

func TestDatagramsGoToATargetAndBack(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		w.apply(w.udpSpec())
		w.healthy(w.addrs()...)
		w.echoes(w.targets[0])
		w.echoes(w.targets[1])
		s, b := w.session("30/targetGroup/web")
		other, ob := w.session("30/targetGroup/web")
		s.send([][]byte{[]byte("x"), nil, []byte("y")})
		other.send([][]byte{[]byte("z")})
		settle()
		got, _ := b.take()
		og, _ := ob.take()
		if !slices.Equal(got, []string{"t1 x", "t1 ", "t1 y"}) || !slices.Equal(og, []string{"t2 z"}) {
			t.Errorf("came %q, %q", got, og)
		}
		w.counted("origin_datagram_flows", 2)
		s.close()
		w.plane.CloseDatagrams()
		w.counted("origin_datagram_flows", 0)
		w.counted("origin_datagram_flows_total", 2)
		w.counted("origin_datagrams_in_total", 4)
		w.counted("origin_datagrams_out_total", 4)
		w.counted("origin_datagrams_unsent_total", 0)
		if _, closed := ob.take(); closed != 1 {
			t.Errorf("closed %d times", closed)
		}
		if _, err := w.plane.openSession("30/targetGroup/web", datagramClient, b); err == nil {
			t.Error("a node that ends takes flows")
		}
	})
}

// One that goes on with another's connection goes to the same target, as long as that is there.
func TestAnAnswerThatIsTooLargeIsNotSent(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.apply(w.udpSpec())
		w.healthy(w.addrs()...)
		w.echoes(w.targets[0])
		s, b := w.session("30/targetGroup/web")
		defer s.close()
		b.large = 100
		s.send([][]byte{[]byte("x"), make([]byte, 200), []byte("y")})
		settle()
		if came, _ := b.take(); len(came) != 2 {
			t.Errorf("got %q", came)
		}
		w.counted("origin_datagrams_out_total", 3)
		w.counted("origin_datagrams_unsent_total", 1)
	})
}

func TestAFlowAfterAnotherHasItsTarget(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.apply(w.udpSpec())
		w.healthy(w.addrs()...)
		defer w.plane.CloseDatagrams()
		one, _ := w.session("30/targetGroup/web")
		resource := DatagramResource(30*time.Second, datagramClient, "targetGroup/web")
		for range 5 {
			if again, _ := w.session(resource); again.leg.Load().target != one.leg.Load().target {
				t.Errorf("%v, not %v", again.leg.Load().target, one.leg.Load().target)
			}
		}
		without := w.without()
		without.TargetGroups["web"].Protocol = spec.UDP
		w.apply(without)
		other, _ := w.session(DatagramResource(30*time.Second, netip.MustParseAddrPort("[2001:db8::1]:9"), "targetGroup/web"))
		if !other.leg.Load().target.IsValid() {
			t.Error("one whose flow before is not known goes nowhere")
		}
	})
}

func TestTargetsAreToldFromWhomADatagramIs(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		sp := w.udpSpec()
		sp.TargetGroups["web"].ProxyProtocolV2 = true
		w.apply(sp)
		w.echoes(w.targets[0])
		s, b := w.session("30/targetGroup/web")
		defer w.plane.CloseDatagrams()
		s.send([][]byte{[]byte("x"), []byte("yy")})
		settle()
		came, _ := b.take()
		if len(came) != 2 {
			t.Fatalf("came %q", came)
		}
		for i, want := range []string{"x", "yy"} {
			head, payload := strings.TrimPrefix(came[i], "t1 "), ""
			h, err := proxyproto.Read(bufio.NewReader(strings.NewReader(head)))
			if err != nil {
				t.Fatal(err)
			}
			if payload = head[28:]; payload != want || h.TransportProtocol != proxyproto.UDPv4 || h.SourceAddr.String() != datagramClient.String() {
				t.Errorf("%q from %v by %v", payload, h.SourceAddr, h.TransportProtocol)
			}
		}
	})
}

// Who asks is told at which target a flow ends: of UDP, and of TCP at the beginning of the stream.
func TestWhoAsksIsToldTheTarget(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		s := w.udpSpec()
		web := *s.TargetGroups["web"]
		web.Name, web.Protocol = "tcp", spec.TCP
		s.TargetGroups["tcp"] = &web
		w.apply(s)
		defer w.plane.CloseDatagrams()
		if s, b := w.session("30/" + Told("targetGroup/web")); b.told != s.leg.Load().target.String() || !slices.Contains(w.addrs(), s.leg.Load().target) {
			t.Errorf("told %q of %v", b.told, s.leg.Load().target)
		}
		if _, b := w.session("30/targetGroup/web"); b.told != "" {
			t.Errorf("told %q unasked", b.told)
		}
		for _, target := range w.targets {
			w.listen(target, ":80", func(c net.Conn) {
				io.Copy(c, c)
				c.Close()
			})
		}
		near, far := net.Pipe()
		var serving sync.WaitGroup
		serving.Go(func() {
			w.plane.serveFlow(t.Context(), Told("targetGroup/tcp"), datagramClient, func() net.Conn { return far }, func(reason string) { t.Errorf("refused: %s", reason) })
		})
		if at, err := ReadTarget(near); err != nil || !slices.Contains(w.addrs(), at) {
			t.Errorf("told %v, %v", at, err)
		}
		go io.WriteString(near, "x")
		if _, err := io.ReadFull(near, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		near.Close()
		serving.Wait()
	})
}

func FuzzReadTarget(f *testing.F) {
	f.Add([]byte("\x0b10.0.0.1:80rest"))
	f.Add([]byte("\x00"))
	f.Add([]byte("\xffshort"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		at, err := ReadTarget(r)
		if read := len(b) - r.Len(); err == nil && (!at.IsValid() || read != 1+int(b[0])) {
			t.Fatalf("%q: %v after %d bytes", b, at, read)
		}
	})
}

func TestWhatTakesNoDatagramsRefuses(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		sp := w.udpSpec()
		sp.TargetGroups["tcp"] = &spec.TargetGroup{Name: "tcp", Region: "here", Protocol: spec.TCP, Targets: sp.TargetGroups["web"].Targets}
		sp.TargetGroups["there"] = &spec.TargetGroup{Name: "there", Region: "there", Protocol: spec.UDP, Targets: sp.TargetGroups["web"].Targets}
		sp.TargetGroups["empty"] = &spec.TargetGroup{Name: "empty", Region: "here", Protocol: spec.UDP}
		w.apply(sp)
		for _, resource := range []string{
			"", "targetGroup/web", "30/", "30/targetGroup/none", "30/targetGroup/tcp", "30/targetGroup/there", "30/targetGroup/empty", "30/loadBalancer/tcp/9000",
			"0/targetGroup/web", "-1/targetGroup/web", "6001/targetGroup/web", "30/endpoint/a/10.0.0.1:99", "30/endpoint/a/10.0.0.2:80", "30/endpoint/b/10.0.0.1:80", "30/endpoint/a/x",
		} {
			if _, err := w.plane.openSession(resource, datagramClient, new(wayBack)); err == nil {
				t.Errorf("%q is taken", resource)
			}
		}
		for _, resource := range []string{"30/targetGroup/web", "6000/targetGroup/web", "30/endpoint/a/10.0.0.1:80"} {
			w.session(resource)
		}
		w.plane.CloseDatagrams()
	})
}

func TestASessionEndsWhenItIsIdleOrItsTargetHasLeft(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		w.apply(w.udpSpec())
		w.healthy(w.addrs()[:1]...)
		w.echoes(w.targets[0])
		s, b := w.session("30/targetGroup/web")
		_, idle := w.session("30/targetGroup/web")
		for range 10 {
			time.Sleep(20 * time.Second)
			s.send([][]byte{[]byte("x")})
		}
		settle()
		if _, closed := idle.take(); closed != 1 {
			t.Error("an idle one goes on")
		}
		if came, closed := b.take(); len(came) != 10 || closed != 0 {
			t.Errorf("%d came, closed %d", len(came), closed)
		}
		without := w.udpSpec()
		without.Revision = 2
		without.TargetGroups["web"].Targets = without.TargetGroups["web"].Targets[1:]
		w.apply(without)
		time.Sleep(29 * time.Second)
		s.send([][]byte{[]byte("x")})
		settle()
		if came, closed := b.take(); len(came) != 1 || closed != 0 {
			t.Errorf("before the delay is over: %d came, closed %d", len(came), closed)
		}
		time.Sleep(2 * time.Second)
		if _, closed := b.take(); closed != 1 {
			t.Errorf("closed %d times", closed)
		}
		w.counted("origin_datagram_flows", 0)
	})
}

// deafPort is where the kernel says of each datagram that nobody listens: its socket is connected to elsewhere. Were it closed, another could get the port, and a session's
// own socket as well.
func deafPort(t *testing.T) netip.AddrPort {
	loopback := net.IPv4(127, 0, 0, 1)
	conn, err := net.DialUDP("udp", &net.UDPAddr{IP: loopback}, &net.UDPAddr{IP: loopback, Port: 9})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), conn.LocalAddr().(*net.UDPAddr).AddrPort().Port())
}

// Real sockets: nobody listens there, and the target's checks hear of it.
func TestATargetThatDoesNotListenIsEvidence(t *testing.T) {
	at := deafPort(t)
	heard := make(chan string, 64)
	p := New(Config{Region: "here", Evidence: func(_ health.Key, client netip.Addr, failed bool, reason string) {
		if failed {
			heard <- client.String() + " " + reason
		}
	}})
	defer p.CloseDatagrams()
	if err := p.Apply(&spec.Spec{Revision: 1, TargetGroups: map[string]*spec.TargetGroup{
		"web": {Name: "web", Region: "here", Protocol: spec.UDP, Targets: []spec.Target{{Address: at.Addr(), Port: at.Port()}}},
	}}); err != nil {
		t.Fatal(err)
	}
	s, err := p.openSession("30/targetGroup/web", datagramClient, new(wayBack))
	if err != nil {
		t.Fatal(err)
	}
	s.send([][]byte{[]byte("x")})
	select {
	case got := <-heard:
		if got != "203.0.113.9 traffic: datagrams: nobody listens there" {
			t.Errorf("heard %q", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing was heard")
	}
}

// nobody is a socket toward a port at which nobody listens: what is written is answered by that, a moment later.
type nobody struct {
	net.Conn
	said   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (n *nobody) Write(p []byte) (int, error) {
	time.AfterFunc(time.Millisecond, func() {
		select {
		case n.said <- struct{}{}:
		case <-n.closed:
		}
	})
	return len(p), nil
}

func (n *nobody) Read([]byte) (int, error) {
	select {
	case <-n.said:
		return 0, syscall.ECONNREFUSED
	case <-n.closed:
		return 0, os.ErrDeadlineExceeded
	}
}

func (n *nobody) SetReadDeadline(time.Time) error {
	n.once.Do(func() { close(n.closed) })
	return nil
}

func (n *nobody) Close() error {
	n.SetReadDeadline(time.Time{})
	return n.Conn.Close()
}

// silences has some of the targets be without a listener, and returns how many sockets there are toward those.
func (w *world) silences(targets ...*memnet.Host) (open func() int) {
	dial := w.plane.config.Dial
	var mu sync.Mutex
	var all []*nobody
	w.plane.config.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		at := netip.MustParseAddrPort(addr).Addr()
		if err != nil || !slices.ContainsFunc(targets, func(h *memnet.Host) bool { return h.Addr() == at }) {
			return conn, err
		}
		n := &nobody{Conn: conn, said: make(chan struct{}), closed: make(chan struct{})}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, n)
		return n, nil
	}
	return func() (open int) {
		mu.Lock()
		defer mu.Unlock()
		for _, n := range all {
			select {
			case <-n.closed:
			default:
				open++
			}
		}
		return open
	}
}

// A session that is new goes on to a target at which somebody listens, with what it was sent; what follows goes there, too.
func TestANewSessionGoesOnToATargetThatListens(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.apply(w.udpSpec())
		w.healthy(w.addrs()...)
		open := w.silences(w.targets[0], w.targets[1])
		w.echoes(w.targets[2])
		s, b := w.session("30/" + Told("targetGroup/web"))
		first := s.leg.Load().target
		s.send([][]byte{[]byte("1"), []byte("2")})
		time.Sleep(10 * time.Millisecond)
		s.send([][]byte{[]byte("3")})
		settle()
		if came, closed := b.take(); !slices.Equal(came, []string{"t3 1", "t3 2", "t3 3"}) || closed != 0 || b.reason != "" {
			t.Errorf("from %v: came %q, closed %d, refused: %q", first, came, closed, b.reason)
		}
		if at := s.leg.Load().target; at.Addr() != w.targets[2].Addr() || b.told != at.String() || w.plane.sessions.target(s.name) != at {
			t.Errorf("at %v, told %q", at, b.told)
		}
		if n := open(); n != 0 {
			t.Errorf("%d sockets are left", n)
		}
		w.counted("origin_datagrams_in_total", 3)
		w.counted("origin_datagrams_out_total", 3)
		if n := w.plane.sessions.keeper.Size(); n != 0 {
			t.Errorf("%d bytes are kept", n)
		}
		// It is the new target's now, and ends with that one's lease alone.
		without := w.without()
		without.TargetGroups["web"].Protocol = spec.UDP
		without.TargetGroups["web"].Targets = w.spec().TargetGroups["web"].Targets[2:]
		w.apply(without)
		time.Sleep(time.Minute / 2)
		if _, closed := b.take(); closed != 0 {
			t.Errorf("closed %d times", closed)
		}
		w.plane.CloseDatagrams()
		w.counted("origin_datagram_flows", 0)
	})
}

// Where nobody listens at any, or at the only one, the flow is refused, so that it goes elsewhere; one that has been answered, or is older, stays, and so does one
// whose accelerator has no other endpoint.
func TestANewSessionWithoutATargetThatListensIsRefused(t *testing.T) {
	for _, c := range []struct {
		name, resource string
		before         func(s *session)
		alone, stays   bool
		tried          uint64
	}{
		{"a group", "30/targetGroup/web", func(*session) {}, false, false, 2},
		{"an endpoint by address", "30/endpoint/a/10.0.0.1:80", func(*session) {}, false, false, 1},
		{"one that was answered", "30/targetGroup/web", func(s *session) { s.answered.Store(true) }, false, true, 1},
		{"one that is older", "30/targetGroup/web", func(*session) { time.Sleep(youngTime + time.Second) }, false, true, 1},
		{"a group alone", "30/targetGroup/web", func(*session) {}, true, true, 2},
		{"an endpoint alone", "30/endpoint/a/10.0.0.1:80", func(*session) {}, true, true, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				all := w.udpSpec()
				if !c.alone {
					group := &all.Accelerators["a"].Listeners[0].EndpointGroups[0]
					group.Endpoints = append(group.Endpoints, spec.Endpoint{TargetGroup: "web"})
				}
				w.apply(all)
				w.healthy(w.addrs()...)
				open := w.silences(w.targets...)
				s, b := w.session(c.resource)
				c.before(s)
				s.send([][]byte{[]byte("1")})
				time.Sleep(10 * time.Millisecond)
				synctest.Wait()
				if c.alone { // it stays whatever is refused
					for range 9 {
						s.send([][]byte{[]byte("2")})
						time.Sleep(10 * time.Millisecond)
					}
					synctest.Wait()
					if len(s.tried) != int(c.tried) {
						t.Errorf("tried %v", s.tried)
					}
					c.tried += 9
				}
				b.mu.Lock()
				refused := b.reason != ""
				b.mu.Unlock()
				if refused == c.stays || s.closed.Load() == c.stays || open() != w.plane.sessions.count() || w.plane.sessions.count() == 0 == c.stays {
					t.Errorf("refused %t, closed %t, %d sockets, %d sessions", refused, s.closed.Load(), open(), w.plane.sessions.count())
				}
				w.counted("origin_datagrams_refused_total", c.tried)
				w.counted("origin_datagram_flows_retargeted_total", uint64(max(len(s.tried), 1)-1))
				w.plane.CloseDatagrams()
				if n := w.plane.sessions.keeper.Size(); n != 0 || open() != 0 {
					t.Errorf("%d bytes are kept, %d sockets open", n, open())
				}
			})
		})
	}
}

// The kernel says so of a target, whatever is read or written at that moment.
func TestANewSessionGoesOnThoughTheKernelSaysSo(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var targets []spec.Target
	for _, at := range []netip.AddrPort{deafPort(t), conn.LocalAddr().(*net.UDPAddr).AddrPort()} {
		targets = append(targets, spec.Target{Address: at.Addr(), Port: at.Port()})
	}
	p := New(Config{Region: "here"})
	defer p.CloseDatagrams()
	if err := p.Apply(&spec.Spec{Revision: 1, TargetGroups: map[string]*spec.TargetGroup{
		"web": {Name: "web", Region: "here", Protocol: spec.UDP, Targets: targets},
	}}); err != nil {
		t.Fatal(err)
	}
	for i := range 20 { // half of them begin at each
		s, err := p.openSession("30/targetGroup/web", datagramClient, new(wayBack))
		if err != nil {
			t.Fatal(err)
		}
		s.send([][]byte{[]byte{byte(i)}, []byte{byte(i)}})
		buf := make([]byte, 9)
		for range 2 {
			conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			if n, _, err := conn.ReadFrom(buf); n != 1 || buf[0] != byte(i) || err != nil {
				t.Fatalf("session %d: %v, %v", i, buf[:n], err)
			}
		}
		s.close()
	}
}

// A target's time may be up while a session with it is opened.
func TestASessionWhoseTargetLeavesMeanwhileEnds(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.apply(w.udpSpec())
		w.healthy(w.addrs()...)
		dial, traffic := w.plane.config.Dial, w.plane.table.Load().groups.Get("web").traffic
		w.plane.config.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			target := netip.MustParseAddrPort(addr)
			traffic.expire("web", target, traffic.lease(target))
			return dial(ctx, network, addr)
		}
		_, b := w.session("30/targetGroup/web")
		settle()
		if _, closed := b.take(); closed != 1 || w.plane.sessions.count() != 0 {
			t.Errorf("closed %d times, %d are left", closed, w.plane.sessions.count())
		}
	})
}

func TestSessionsAreBounded(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.apply(w.udpSpec())
		w.healthy(w.addrs()...)
		w.plane.sessions.most = 2
		s, _ := w.session("30/targetGroup/web")
		w.session("30/targetGroup/web")
		if _, err := w.plane.openSession("30/targetGroup/web", datagramClient, new(wayBack)); err == nil {
			t.Error("a third is taken")
		}
		s.close()
		settle()
		w.session("30/targetGroup/web")
	})
}
