package anycast

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/testbed/gate"
)

// laboratory ends a test with real routers that nobody asked for, or that this machine cannot run.
func laboratory(t *testing.T) {
	t.Helper()
	gate.Wanted(t)
	if os.Getuid() != 0 {
		gate.Lacks(t, "needs root, for network namespaces")
	}
	gate.Programs(t, map[string]string{"ip": "iproute2", "bird": "bird2", "birdc": "bird2"})
	if out, err := exec.Command("ip", "netns", "list").CombinedOutput(); err != nil {
		gate.Lacks(t, "needs network namespaces: "+string(out))
	}
}

// machine is a network namespace of a test.
type machine struct {
	*testing.T
	name string
	dir  string

	mu    sync.Mutex
	dead  bool
	conns []net.Conn // that dial made
}

// kill ends the connections of the process in the namespace, as its death would; it can make none until restart.
func (m *machine) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	for _, c := range m.conns {
		c.Close()
	}
}

func (m *machine) restart() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = false
}

func newMachine(t *testing.T, name string) *machine {
	t.Helper()
	m := &machine{T: t, name: fmt.Sprintf("pgt-anycast-%d-%s", os.Getpid(), name), dir: t.TempDir()}
	m.must("ip", "netns", "add", m.name)
	t.Cleanup(func() { m.must("ip", "netns", "del", m.name) })
	m.run("ip", "link", "set", "lo", "up")
	m.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
	return m
}

func (m *machine) must(argv ...string) string {
	m.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		m.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

func (m *machine) run(argv ...string) string {
	m.Helper()
	return m.must(append([]string{"ip", "netns", "exec", m.name}, argv...)...)
}

// join links a node with a router as the laboratory does: point to point, both ends with their own addresses.
func join(node, router *machine, link string, node4, node6, router4, router6 string) {
	node.Helper()
	node.must("ip", "link", "add", link, "netns", node.name, "type", "veth", "peer", "name", "h-1", "netns", router.name)
	node.run("ip", "link", "set", link, "up")
	router.run("ip", "link", "set", "h-1", "up")
	for _, end := range []struct {
		m                        *machine
		link, our4, our6, a4, a6 string
	}{{node, link, node4, node6, router4, router6}, {router, "h-1", router4, router6, node4, node6}} {
		// The link is up before: an IPv6 address that is given to a link that is down gets no route to its peer.
		end.m.run("ip", "addr", "add", end.our4, "peer", end.a4, "dev", end.link)
		end.m.run("ip", "-6", "addr", "add", end.our6, "peer", end.a6, "dev", end.link, "nodad")
	}
}

// bird runs BIRD in the namespace until the test ends, or the function it returns is called.
func (m *machine) bird(config string) (stop func()) {
	m.Helper()
	file := filepath.Join(m.dir, "bird.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		m.Fatal(err)
	}
	c := exec.Command("ip", "netns", "exec", m.name, "bird", "-f", "-c", file, "-s", filepath.Join(m.dir, "ctl"))
	var said strings.Builder
	c.Stdout, c.Stderr = &said, &said
	if err := c.Start(); err != nil {
		m.Fatal(err)
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			c.Process.Kill()
			c.Wait()
			if m.Failed() {
				m.Logf("%s: BIRD said:\n%s", m.name, said.String())
			}
		})
	}
	m.Cleanup(stop)
	m.await("BIRD is up", func() bool { return strings.Contains(m.birdc("show", "status"), "up and running") })
	return stop
}

func (m *machine) birdc(argv ...string) string {
	out, _ := exec.Command("birdc", append([]string{"-s", filepath.Join(m.dir, "ctl")}, argv...)...).CombinedOutput()
	return string(out)
}

// await asks again and again; the kernel and BIRD tell nobody when they have changed.
func (m *machine) await(what string, is func() bool) (took time.Duration) {
	m.Helper()
	began := time.Now()
	for !is() {
		if time.Since(began) > 20*time.Second {
			m.Fatalf("%s: %s: not within 20 s\n%s", m.name, what, m.birdc("show", "route", "all"))
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(began)
}

// leads waits until the kernel of a router leads an address to a gateway; empty: nowhere.
func (m *machine) leads(address, via string) time.Duration {
	m.Helper()
	return m.await(fmt.Sprintf("%s leads to %q", address, via), func() bool {
		out, _ := exec.Command("ip", "netns", "exec", m.name, "ip", "route", "get", address).CombinedOutput()
		if via == "" {
			return strings.Contains(string(out), "unreachable")
		}
		return strings.Contains(string(out), "via "+via+" ")
	})
}

// dial connects from inside a namespace: the thread goes there, makes the socket, and comes back or is never used again.
func (m *machine) dial(ctx context.Context, network, address string) (net.Conn, error) {
	type result struct {
		net.Conn
		error
	}
	made := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			defer home.Close()
			err = enter(filepath.Join("/var/run/netns", m.name))
		}
		if err != nil {
			made <- result{nil, err} // the thread ends with this goroutine
			return
		}
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		made <- result{c, err}
	}()
	r := <-made
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case r.error != nil:
	case m.dead:
		r.Conn.Close()
		return nil, net.ErrClosed
	default:
		m.conns = append(m.conns, r.Conn)
	}
	return r.Conn, r.error
}

func enter(file string) error {
	ns, err := os.Open(file)
	if err != nil {
		return err
	}
	defer ns.Close()
	return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
}

// birdConfig is a site router's, as far as nodes are concerned.
func birdConfig(id, protocol string) string {
	return fmt.Sprintf(`
log stderr all;
router id %s;
protocol device { scan time 1; }
protocol kernel { ipv4 { export where source = RTS_BGP; }; }
protocol kernel { ipv6 { export where source = RTS_BGP; }; }
filter anycast {
	if (65535, 0) ~ bgp_community then bgp_local_pref = 0;
	accept;
}
%s`, id, protocol)
}

func TestRealRoutersLeadToTheNodeAsLongAsItAnnounces(t *testing.T) {
	laboratory(t)
	node, one, two := newMachine(t, "node"), newMachine(t, "one"), newMachine(t, "two")
	join(node, one, "eth0", "10.1.1.2", "fd00:0:1::1:2", "10.1.0.1", "fd00:0:1::1")
	join(node, two, "eth1", "10.2.1.2", "fd00:0:2::1:2", "10.2.0.1", "fd00:0:2::1")
	// The first takes any node of its site, over IPv4; the second takes this one, over IPv6, and IPv6 only.
	first := birdConfig("10.1.0.1", `protocol bgp {
	local 10.1.0.1 as 64500;
	neighbor range 10.1.0.0/16 as 64512;
	dynamic name "node";
	ipv4 { import filter anycast; export none; };
	ipv6 { import filter anycast; export none; };
}`)
	stop := one.bird(first)
	two.bird(birdConfig("10.2.0.1", `protocol bgp node1 {
	local fd00:0:2::1 as 64501;
	neighbor fd00:0:2::1:2 as 64512;
	passive; direct;
	ipv6 { import filter anycast; export all; };
}`))
	config := Config{
		AS: 64512, RouterID: netip.MustParseAddr("10.1.1.2"), NextHop6: netip.MustParseAddr("fd00:0:1::1:2"), Dial: node.dial,
		Neighbors: []Neighbor{{Address: netip.MustParseAddr("10.1.0.1"), AS: 64500}, {Address: netip.MustParseAddr("fd00:0:2::1"), AS: 64501}},
		Log:       slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	speaker, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	defer speaker.Close("test ends")
	session := func(i int, is func(Session) bool) {
		t.Helper()
		one.await("the session comes and goes", func() bool { return is(speaker.Sessions().Get()[i]) })
	}
	began := time.Now()
	session(0, in(Established))
	session(1, in(Established))
	t.Logf("established after %v", time.Since(began))

	const a4, a6 = "198.51.100.7", "2001:db8:100::7"
	wish := Wish{Serving: true, Addresses: addrs(a4, a6)}
	speaker.Announce(Wanted(wish))
	t.Logf("announced: the kernel leads there after %v", one.leads(a4, "10.1.1.2"))
	one.leads(a6, "fd00:0:1::1:2")
	two.leads(a6, "fd00:0:2::1:2")
	for i, want := range []Session{{Sent: 2}, {Sent: 1, Unsent: 1}} {
		if got := speaker.Sessions().Get()[i]; got.Sent != want.Sent || got.Unsent != want.Unsent {
			t.Errorf("session %d is %+v", i, got)
		}
	}

	wish.Drained = true
	speaker.Announce(Wanted(wish))
	for _, m := range []*machine{one, two} {
		m.await("the drain is seen", func() bool {
			out := m.birdc("show", "route", "all", "for", a6)
			return strings.Contains(out, "(65535,0)") && strings.Contains(out, "BGP.local_pref: 0")
		})
	}
	one.leads(a4, "10.1.1.2") // where nobody else is, it still leads here

	wish.Drained = false
	speaker.Announce(Wanted(wish))
	one.await("the drain is taken back", func() bool { return !strings.Contains(one.birdc("show", "route", "all"), "(65535,0)") })
	wish.Serving = false
	speaker.Announce(Wanted(wish))
	t.Logf("withdrawn: the kernel leads nowhere after %v", one.leads(a4, ""))
	two.leads(a6, "")
	wish.Serving = true
	speaker.Announce(Wanted(wish))
	one.leads(a4, "10.1.1.2")

	// A router that asks for everything anew gets it.
	one.birdc("reload", "in", "all")
	one.await("the refresh is answered", func() bool { return speaker.Counters()["anycast_refreshes_total"] >= 2 })
	one.leads(a4, "10.1.1.2")

	// A router that restarts is found again.
	stop()
	session(0, func(s Session) bool { return s.State != Established })
	began = time.Now()
	one.bird(first)
	session(0, in(Established))
	one.leads(a4, "10.1.1.2")
	t.Logf("a router that restarted leads here after %v", time.Since(began))

	// A process that dies says nothing; the end of its connections is enough, and the next one is welcome.
	node.kill()
	t.Logf("killed: the kernels lead nowhere after %v", max(one.leads(a4, ""), two.leads(a6, "")))
	node.restart()
	began = time.Now()
	one.leads(a4, "10.1.1.2")
	two.leads(a6, "fd00:0:2::1:2")
	t.Logf("and here again after %v", time.Since(began))

	began = time.Now()
	speaker.Close("rolling restart")
	one.leads(a4, "")
	two.leads(a6, "")
	t.Logf("closed: the kernels lead nowhere after %v", time.Since(began))
	if out := two.birdc("show", "protocols", "all", "node1"); !strings.Contains(out, "rolling restart") {
		t.Errorf("the router does not know why:\n%s", out)
	}

	// The process comes again: the routers take it at once, for a shutdown is no error.
	began = time.Now()
	next, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close("test ends")
	next.Announce(Wanted(wish))
	one.leads(a4, "10.1.1.2")
	two.leads(a6, "fd00:0:2::1:2")
	t.Logf("a process that restarted is led to after %v", time.Since(began))
	if counts := speaker.Counters(); counts["anycast_malformed_total"]+counts["anycast_opens_refused_total"]+counts["anycast_hold_expired_total"] > 0 {
		t.Errorf("something went wrong: %v", counts)
	}
}
