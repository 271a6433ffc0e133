package stray

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/testbed/gate"
	"github.com/perigee-net/perigee/testbed/netns"
)

// laboratory ends a test that nobody asked for, or that this machine cannot run.
func laboratory(t *testing.T) {
	t.Helper()
	gate.Wanted(t)
	for _, need := range netns.Missing() {
		gate.Lacks(t, need.String())
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// inside is where the test is run again as a node: its name, its own address, and the other's name and address.
const inside = "PERIGEE_STRAY"

// The two addresses that both nodes have, and where they listen.
var anycast = []string{"198.51.100.1", "2001:db8:5::1"}

const port = "7"

// udpWay is a way to the other node of the test.
type udpWay struct {
	*net.UDPConn
	to netip.AddrPort
}

func (w udpWay) Send(all [][]byte) error {
	for _, b := range all {
		if _, err := w.WriteToUDPAddrPort(append([]byte{'>'}, b...), w.to); err != nil {
			return err
		}
	}
	return nil
}

func (w udpWay) Close() {}

// TestInside is a node: it echoes by the anycast addresses, and hands over until its standard input ends. By that it is told to say its counters, to take it that it is
// alone, and to deny that the addresses are its own.
func TestInside(t *testing.T) {
	f := strings.Fields(os.Getenv(inside))
	if len(f) != 4 {
		t.Skip("the laboratory runs it in a namespace")
	}
	for _, a := range anycast {
		l, err := net.Listen("tcp", net.JoinHostPort(a, port))
		ok(t, err)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { // it says who it is, and then what it hears
					defer c.Close()
					fmt.Fprintln(c, f[0])
					io.Copy(c, struct{ io.Reader }{c})
				}()
			}
		}()
	}
	socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(f[1])))
	ok(t, err)
	to := netip.MustParseAddrPort(f[3])
	var heard func([][]byte)
	h, err := Open(Config{Open: func(_ string, receive func([][]byte), _ func(error)) (Way, error) {
		heard = receive
		return udpWay{socket, to}, nil
	}})
	ok(t, err)
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, err := socket.Read(b)
			if err != nil {
				return
			}
			switch all := [][]byte{b[1:n]}; b[0] {
			case '>':
				if b[1] == kindHas || b[1] == kindHasNot {
					heard(all)
					continue
				}
				h.Receive(all, udpWay{socket, to}.Send)
			}
		}
	}()
	var addresses []netip.Addr
	for _, a := range anycast {
		addresses = append(addresses, netip.MustParseAddr(a))
	}
	h.Set(addresses, []Owner{{Node: f[2]}}, false)
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		switch lines.Text() {
		case "counters":
			json.NewEncoder(os.Stdout).Encode(h.Counters())
		case "alone":
			h.Set(addresses, nil, false)
			fmt.Println("ready")
		case "ended": // when it is
			<-h.taking
			fmt.Println("ready")
		case "die": // without a word to the other
			socket.Close()
			fmt.Println("ready")
		case "deny":
			h.Set(nil, []Owner{{Node: f[2]}}, false)
			fmt.Println("ready")
		}
	}
	h.Close()
}

// node is such a process.
type node struct {
	*testing.T
	in  io.WriteCloser
	out *bufio.Reader
}

func (n *node) line() string {
	n.Helper()
	text, err := n.out.ReadString('\n')
	if err != nil {
		n.Fatalf("the node says no more: %v", err)
	}
	return strings.TrimSpace(text)
}

func (n *node) counters() (all map[string]uint64) {
	n.Helper()
	fmt.Fprintln(n.in, "counters")
	ok(n.T, json.Unmarshal([]byte(n.line()), &all))
	return all
}

// network is a client, a router, and two nodes that have the same addresses: the router leads to one of them.
type network struct {
	*testing.T
	client, router, a, b *netns.Namespace
	nodes                map[string]*node
}

func made(t *testing.T, what string) *netns.Namespace {
	t.Helper()
	name := fmt.Sprintf("stray%d-%s", os.Getpid(), what)
	n, err := netns.New(name)
	ok(t, err)
	t.Cleanup(func() {
		n.Close()
		if err := netns.Remove(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	return n
}

func newNetwork(t *testing.T) *network { return newNetworkBy(t, "") }

// newNetworkBy makes one whose nodes have their addresses at a bridge, or at a VLAN's device, as it says, on top of the link to the router.
func newNetworkBy(t *testing.T, by string) *network {
	w := &network{T: t, nodes: map[string]*node{}}
	w.client, w.router = made(t, "client"), made(t, "router")
	w.run(w.router, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	for i, name := range []string{"client", "a", "b"} {
		n := w.client
		if i > 0 {
			n = made(t, name)
			w.a, w.b = w.b, n // in the end
		}
		ok(t, netns.Veth(n, "net", w.router, name))
		four, six := fmt.Sprintf("10.9.%d.", i), fmt.Sprintf("fd09:%d::", i)
		far, near := name, "net" // where the addresses are
		switch {
		case i == 0 || by == "":
		case by == "bridge": // with an address of its own: a frame to it is another machine's at the port
			near = "bridge"
			for _, text := range []string{"ip link add bridge type bridge", "ip link set dev bridge address 02:09:00:00:00:0" + fmt.Sprint(i), "ip link set dev net master bridge", "ip link set dev net up"} {
				w.run(n, text)
			}
		case by == "vlan":
			far, near = name+".7", "net.7"
			w.run(w.router, "ip link set dev "+name+" up")
			w.run(n, "ip link set dev net up")
			w.run(w.router, "ip link add link "+name+" name "+far+" type vlan id 7")
			w.run(n, "ip link add link net name "+near+" type vlan id 7")
		}
		for _, text := range []string{"ip addr add " + four + "1/24 dev " + far, "ip addr add " + six + "1/64 dev " + far + " nodad", "ip link set dev " + far + " up"} {
			w.run(w.router, text)
		}
		for _, text := range []string{"ip link set dev lo up", "ip addr add " + four + "2/24 dev " + near, "ip addr add " + six + "2/64 dev " + near + " nodad", "ip link set dev " + near + " up", "ip route add default via " + four + "1", "ip -6 route add default via " + six + "1"} {
			w.run(n, text)
		}
		if i == 0 {
			continue
		}
		for _, a := range anycast {
			w.run(n, "ip addr add "+a+" dev lo")
		}
		other := map[string]string{"a": "b 10.9.2.2:4000", "b": "a 10.9.1.2:4000"}[name]
		command := n.Command(t.Context(), os.Args[0], "-test.run=^TestInside$")
		command.Env = append(os.Environ(), inside+"="+name+" "+four+"2:4000 "+other)
		in, err := command.StdinPipe()
		ok(t, err)
		out, err := command.StdoutPipe()
		ok(t, err)
		command.Stderr = os.Stderr
		ok(t, command.Start())
		t.Cleanup(func() { in.Close(); io.Copy(io.Discard, out); command.Wait() })
		w.nodes[name] = &node{t, in, bufio.NewReader(out)}
		if line := w.nodes[name].line(); line != "ready" {
			t.Fatalf("node %s: %s", name, line)
		}
	}
	return w
}

func (w *network) run(n *netns.Namespace, text string) {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if out, err := n.Command(ctx, strings.Fields(text)...).CombinedOutput(); err != nil {
		w.Fatalf("%s: %v: %s", text, err, out)
	}
}

// lead leads the anycast addresses to a node.
func (w *network) lead(to string) {
	w.Helper()
	i := map[string]int{"a": 1, "b": 2}[to]
	w.run(w.router, fmt.Sprintf("ip route replace %s via 10.9.%d.2", anycast[0], i))
	w.run(w.router, fmt.Sprintf("ip -6 route replace %s via fd09:%d::2", anycast[1], i))
}

// flow is a connection, and by whom it was taken.
type flow struct {
	net.Conn
	*bufio.Reader
	by string
}

func (w *network) dial(address string) flow {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 5*time.Second)
	defer cancel()
	c, err := w.client.Dial(ctx, "tcp", net.JoinHostPort(address, port))
	ok(w.T, err)
	w.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	f := flow{c, bufio.NewReader(c), ""}
	by, err := f.ReadString('\n')
	ok(w.T, err)
	f.by = strings.TrimSpace(by)
	return f
}

// echo sends bytes and wants them back.
func (f flow) echo(bytesToSend int) error {
	sent := make([]byte, bytesToSend)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	failed := make(chan error, 1)
	go func() {
		_, err := f.Conn.Write(sent)
		failed <- err
	}()
	back := make([]byte, len(sent))
	if _, err := io.ReadFull(f.Reader, back); err != nil {
		return err
	}
	if sha256.Sum256(sent) != sha256.Sum256(back) {
		return errors.New("what came back is something else")
	}
	return <-failed
}

// An established flow goes on, to its end, when routing leads its packets to another node, with few bytes and with many; new ones are that node's. What ends the flow arrives,
// too. When routing leads back to its node, it goes on without the other.
func TestAFlowOutlivesItsRoute(t *testing.T) {
	laboratory(t)
	w := newNetwork(t)
	for _, address := range anycast {
		t.Run(address, func(t *testing.T) {
			w.lead("a")
			old := w.dial(address)
			before := w.nodes["b"].counters()
			if old.by != "a" {
				t.Fatalf("node %q has it", old.by)
			}
			ok(t, old.echo(1000))
			w.lead("b")
			from := time.Now()
			ok(t, old.echo(1))
			t.Logf("the first byte came back after %v", time.Since(from).Round(10*time.Microsecond))
			ok(t, old.echo(4<<20))
			t.Logf("4 MiB there and back in %v", time.Since(from).Round(time.Millisecond))
			if fresh := w.dial(address); fresh.by != "b" {
				t.Errorf("node %q has a new flow", fresh.by)
			} else {
				ok(t, fresh.echo(1<<20))
			}
			w.lead("a")
			ok(t, old.echo(1<<20))
			w.lead("b")
			ok(t, old.echo(1))
			ok(t, old.Conn.(*net.TCPConn).CloseWrite())
			if rest, err := io.ReadAll(old.Reader); err != nil || len(rest) > 0 {
				t.Errorf("it ended with %d bytes, %v", len(rest), err)
			}
			after := w.nodes["b"].counters()
			t.Log(after)
			if found := after["stray_flows_found_total"] - before["stray_flows_found_total"]; found != 1 {
				t.Errorf("%d flows were found", found)
			}
		})
	}
}

// Where the way to a client gets narrower, the router there says so to whoever routing leads it to, and the flow goes on at its node.
func TestAFlowOutlivesANarrowerPath(t *testing.T) {
	laboratory(t)
	w := newNetwork(t)
	for i, address := range anycast {
		t.Run(address, func(t *testing.T) {
			mtu := func(n int) {
				w.run(w.router, fmt.Sprintf("ip link set dev client mtu %d", n))
				w.run(w.client, fmt.Sprintf("ip link set dev net mtu %d", n))
			}
			mtu(1500)
			w.lead("a")
			old := w.dial(address)
			ok(t, old.echo(100_000))
			mtu(1300)
			w.lead("b")
			ok(t, old.echo(1<<20))
			a, b := w.nodes["a"].counters(), w.nodes["b"].counters()
			if b["stray_segments_too_big_total"] < uint64(i+1) || b["stray_segments_handed_total"] == 0 || a["stray_segments_uninjected_total"] != 0 {
				t.Error(a, b)
			}
		})
	}
}

// moves has a flow of each family outlive its route, and a path that gets narrower, and wants new flows where routing leads them.
func (w *network) moves() {
	w.Helper()
	for _, address := range anycast {
		mtu := func(n int) {
			w.run(w.router, fmt.Sprintf("ip link set dev client mtu %d", n))
			w.run(w.client, fmt.Sprintf("ip link set dev net mtu %d", n))
		}
		mtu(1500)
		w.lead("a")
		old := w.dial(address)
		ok(w.T, old.echo(100_000))
		w.lead("b")
		ok(w.T, old.echo(1<<20))
		mtu(1300)
		ok(w.T, old.echo(100_000))
		fresh := w.dial(address)
		ok(w.T, fresh.echo(100_000))
		if old.by != "a" || fresh.by != "b" {
			w.Errorf("nodes %q and %q have them", old.by, fresh.by)
		}
		ok(w.T, old.Conn.(*net.TCPConn).CloseWrite())
		if rest, err := io.ReadAll(old.Reader); err != nil || len(rest) > 0 {
			w.Errorf("it ended with %d bytes, %v", len(rest), err)
		}
	}
	a, b := w.nodes["a"].counters(), w.nodes["b"].counters()
	w.Log(a, b)
	if b["stray_flows_found_total"] != 2 || b["stray_segments_too_big_total"] == 0 || a["stray_segments_injected_total"] == 0 {
		w.Error("no flow was handed over")
	}
}

// Where nodes have their addresses at a bridge the program is at its port and at it, and takes a segment once.
func TestAFlowOutlivesItsRouteAtABridge(t *testing.T) {
	laboratory(t)
	newNetworkBy(t, "bridge").moves()
}

// What comes with a VLAN's tag is taken at that one's device.
func TestAFlowOutlivesItsRouteInAVLAN(t *testing.T) {
	laboratory(t)
	w := &network{T: t}
	n := made(t, "vlan")
	w.run(n, "ip link add net type bridge") // any device
	if out, err := n.Command(t.Context(), "ip", "link", "add", "link", "net", "name", "net.7", "type", "vlan", "id", "7").CombinedOutput(); err != nil {
		t.Skipf("this kernel has no 802.1Q: %s", out)
	}
	newNetworkBy(t, "vlan").moves()
}

// filter is what a careful operator has: what is known to conntrack comes in, and new connections to the doors; all else, and what conntrack takes for no part of any, is dropped.
const filter = `table inet filter {
	chain input {
		type filter hook input priority 0; policy drop;
		ct state invalid counter drop
		ct state established,related accept
		iifname "net" tcp dport 7 tcp flags syn / fin,syn,rst,ack ct state new accept
		iifname "net" udp dport 4000 accept
		iifname "net" meta l4proto ipv6-icmp accept
		counter
	}
	chain output {
		type filter hook output priority 0; policy accept;
		ct state invalid counter drop
	}
}
`

// A packet filter with connection tracking lets in at the flow's node what another node has handed over, and what was said there of its size.
func TestAFlowOutlivesItsRouteBehindAPacketFilter(t *testing.T) {
	laboratory(t)
	gate.Programs(t, map[string]string{"nft": "nftables"})
	w := newNetwork(t)
	for _, n := range []*netns.Namespace{w.a, w.b} {
		command := n.Command(t.Context(), "nft", "-f", "-")
		command.Stdin = strings.NewReader(filter)
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	w.moves()
	for _, n := range []*netns.Namespace{w.a, w.b} {
		out, err := n.Command(t.Context(), "nft", "list", "ruleset").Output()
		ok(t, err)
		t.Logf("%s", out)
	}
}

// aloneInside is where a test is run again in a namespace of its own.
const aloneInside = "PERIGEE_STRAY_ALONE"

// The capabilities that the drop-in of the systemd unit has are enough, for who is else nobody: the verifier of the kernel is stricter with such a one than with root.
func TestTheCapabilitiesOfTheUnitAreEnough(t *testing.T) {
	laboratory(t)
	gate.Programs(t, map[string]string{"setpriv": "util-linux"})
	unit, err := os.ReadFile("../../../deployments/systemd/perigee-anycast.conf")
	ok(t, err)
	capabilities := "-all"
	for line := range strings.Lines(string(unit)) {
		if names, is := strings.CutPrefix(line, "AmbientCapabilities="); is {
			for _, name := range strings.Fields(names) {
				capabilities += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
			}
		}
	}
	n := made(t, "unit")
	(&network{T: t}).run(n, "ip link set dev lo up")
	command := n.Command(t.Context(), "setpriv", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set="+capabilities, os.Args[0], "-test.v", "-test.run=^TestTheProgramTakesStraysOnly$")
	command.Env = append(os.Environ(), aloneInside+"=1")
	if out, err := command.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
		t.Errorf("with %s: %v: %s", capabilities, err, out)
	}
}

// alone says that the test is in a namespace of its own; else it has been run there.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(aloneInside) != "" {
		return true
	}
	laboratory(t)
	w := &network{T: t}
	n := made(t, "alone")
	w.run(n, "ip link set dev lo up")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	command := n.Command(ctx, os.Args[0], "-test.v", "-test.run=^"+t.Name()+"$")
	command.Env = append(os.Environ(), aloneInside+"=1")
	if out, err := command.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
		t.Errorf("%v: %s", err, out)
	}
	return false
}

// A device that somebody has set down is set up again; where it is gone nothing is sent to it any more.
func TestADeviceThatIsDownIsSetUp(t *testing.T) {
	if !alone(t) {
		return
	}
	door, err := openKernel()
	ok(t, err)
	k := door.(*kernel)
	defer k.close()
	ok(t, setLink(k.name, unix.SIOCSIFFLAGS, 0))
	if err := k.attach(); err == nil || !strings.Contains(err.Error(), "up again") {
		t.Error(err)
	}
	i, err := net.InterfaceByName(k.name)
	ok(t, err)
	if i.Flags&net.FlagUp == 0 {
		t.Error(i.Flags)
	}
	ok(t, k.attach())
	if out, err := exec.CommandContext(t.Context(), "ip", "link", "delete", k.name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := k.attach(); err == nil || !k.closed {
		t.Error(err, k.closed)
	}
	ok(t, k.attach())
}

// It may be closed while it attaches, and asked meanwhile: what has been attached too late is let go.
func TestItIsClosedAsItAttaches(t *testing.T) {
	if !alone(t) {
		return
	}
	for n := range 8 {
		name := fmt.Sprintf("x%d", n)
		door, err := openKernel()
		ok(t, err)
		k := door.(*kernel)
		if out, err := exec.CommandContext(t.Context(), "ip", "link", "add", name, "type", "veth", "peer", "name", name+"p").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var all sync.WaitGroup
		all.Go(func() {
			if err := k.attach(); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() { k.know(flow4, true) })
		all.Go(func() { k.taken() })
		all.Go(k.close)
		all.Wait()
		i, err := net.InterfaceByName(name)
		ok(t, err)
		if q, err := link.QueryPrograms(link.QueryOptions{Target: i.Index, Attach: ebpf.AttachTCXIngress}); err != nil || len(q.Programs) > 0 {
			t.Errorf("%d programs are at the interface: %v", len(q.Programs), err)
		}
	}
}

// The program lets pass what is for others than the addresses, begins a flow, is of one that this machine has, or is no whole segment of TCP. What is left are strays, which it takes: those of
// flows that are known always, others within the budget.
func TestTheProgramTakesStraysOnly(t *testing.T) {
	if !alone(t) {
		return
	}
	door, err := openKernel()
	ok(t, err)
	k := door.(*kernel)
	defer k.close()
	four, six := netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
	ok(t, k.watch([]netip.Addr{four, six}, nil))
	const pass, dropped, taken = -1, 2, 7 // TCX_NEXT, TCX_DROP, TCX_REDIRECT
	to := make([]byte, 6)                 // the loopback device's
	verdict := func(what string, b []byte, want int32) {
		t.Helper()
		frame := append(append(to[:6:6], make([]byte, 6)...), 0x08, 0x00)
		if b[0]>>4 == 6 {
			frame[12], frame[13] = 0x86, 0xdd
		}
		got, err := k.takes.Run(&ebpf.RunOptions{Data: append(frame, b...)})
		if err != nil || int32(got) != want {
			t.Errorf("%s: %d, want %d: %v", what, int32(got), want, err)
		}
	}
	edit := func(b []byte, at int, to ...byte) []byte { copy(b[at:], to); return b }
	for _, a := range []netip.Addr{four, six} {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		ok(t, err)
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		ok(t, err)
		defer c.Close()
		s, err := l.Accept()
		ok(t, err)
		defer s.Close()
		have := Flow{c.LocalAddr().(*net.TCPAddr).AddrPort(), l.Addr().(*net.TCPAddr).AddrPort()}
		client := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.7"), 4000)
		if a.Is6() {
			client = netip.AddrPortFrom(netip.MustParseAddr("2001:db8::7"), 4000)
		}
		lack, closed := Flow{client, have.Server}, Flow{client, netip.AddrPortFrom(a, 1)}
		elsewhere := Flow{client, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), have.Server.Port())}
		if a.Is6() {
			elsewhere.Server = netip.AddrPortFrom(netip.MustParseAddr("2001:db8::2"), have.Server.Port())
		}
		if !k.has(have) || k.has(lack) || k.has(closed) {
			t.Errorf("it has the flow that there is: %t, one that is not: %t, at a port where nobody listens: %t", k.has(have), k.has(lack), k.has(closed))
		}
		data := []byte("data")
		verdict("one's own", packet(have, flagACK, 1, data, 0, 12), pass)
		verdict("another address", packet(elsewhere, flagACK, 1, data, 0, 12), pass)
		began := Flow{netip.AddrPortFrom(client.Addr(), 4001), have.Server}
		answered := Flow{netip.AddrPortFrom(client.Addr(), 4002), have.Server}
		verdict("SYN", packet(began, flagSYN, 1, nil, 0, 12), pass)
		verdict("an answer to SYN", packet(answered, flagSYN|flagACK, 1, nil, 0, 12), pass)
		verdict("what ends a handshake without a request", packet(began, flagACK, 1, nil, 0, 12), pass)
		verdict("what follows an answer to SYN", packet(answered, flagACK, 1, nil, 0, 12), taken)
		verdict("a stray", packet(lack, flagACK, 1, data, 0, 12), taken)
		to[5] = 1
		verdict("a stray in a frame to another machine", packet(lack, flagACK, 1, data, 0, 12), pass)
		to[5] = 0
		verdict("a stray FIN", packet(lack, flagACK|flagFIN, 1, nil, 0, 0), taken)
		verdict("a stray for a port where nobody listens", packet(closed, flagACK, 1, data, 0, 12), taken)
		if a.Is4() {
			verdict("a stray with options of IP", packet(lack, flagACK, 1, data, 8, 12), taken)
			verdict("one's own with options of IP", packet(have, flagACK, 1, data, 8, 12), pass)
			verdict("a fragment", edit(packet(lack, flagACK, 1, data, 0, 12), 6, 0x20, 0), pass)
			verdict("a later fragment", edit(packet(lack, flagACK, 1, data, 0, 12), 6, 0, 9), pass)
			verdict("UDP", edit(packet(lack, flagACK, 1, data, 0, 12), 9, 17), pass)
		} else {
			verdict("an extension header", edit(packet(lack, flagACK, 1, data, 0, 12), 6, 0), pass)
		}
		verdict("that one's own was too big", tooBig(have, 1300, 576), pass)
		verdict("that a stray was too big", tooBig(lack, 1300, 576), taken)
		verdict("that a packet from another address was too big", tooBig(elsewhere, 1300, 576), pass)
		verdict("that one of a flow that began here was too big", tooBig(began, 1300, 576), pass)
		if a.Is4() {
			big := func(at int, to ...byte) []byte { return edit(tooBig(lack, 1300, 576), at, to...) }
			verdict("that a port is unreachable", big(21, 3), pass)
			verdict("a ping", big(20, 8, 0), pass)
			verdict("that UDP was too big", big(28+9, 17), pass)
			verdict("that a later fragment was too big", big(28+6, 0, 1), pass)
			verdict("that a packet of IPv6 was too big", big(28, 0x65), pass)
			verdict("to another address that a stray was too big", big(19, 9), pass)
			verdict("a fragment of that a stray was too big", big(6, 0x20), pass)
			verdict("that a stray was too big, cut off", tooBig(lack, 1300, 28+20+3), pass)
		} else {
			big := func(at int, to ...byte) []byte { return edit(tooBig(lack, 1300, 576), at, to...) }
			verdict("that a hop was the last", big(40, 3), pass)
			verdict("that UDP was too big", big(48+6, 17), pass)
			verdict("that a packet of IPv4 was too big", big(48, 0x45), pass)
			verdict("to another address that a stray was too big", big(39, 9), pass)
			verdict("that a stray was too big, cut off", tooBig(lack, 1300, 48+40+3), pass)
		}
		verdict("cut off", packet(lack, flagACK, 1, data, 0, 0)[:30+10*len(a.AsSlice())/16], pass)

		k.know(lack, true)
		ok(t, k.maps.Budget.Put(uint32(0), budget{}))
		verdict("beyond the budget", packet(closed, flagACK, 1, data, 0, 12), pass)
		verdict("what ends a handshake without a request, beyond the budget", packet(began, flagACK, 1, data, 0, 12), pass)
		verdict("of a flow that is known, beyond the budget", packet(lack, flagACK, 1, data, 0, 12), taken)
		ok(t, k.maps.Budget.Put(uint32(0), budget{Drop: 1}))
		verdict("beyond the budget as flows move", packet(closed, flagACK, 1, data, 0, 12), dropped)
		verdict("what ends a handshake without a request, as flows move", packet(began, flagACK, 1, data, 0, 12), pass)
		key, long := keyOf(began), make([]byte, 8) // the machine started longer ago
		ok(t, k.maps.Syns.Put(key[:], long))
		verdict("of a flow that began long ago", packet(began, flagACK, 1, data, 0, 12), dropped)
		k.know(lack, false)
		verdict("of a flow that is known no more", packet(lack, flagACK, 1, data, 0, 12), dropped)
		ok(t, k.limit(false))
	}
	for _, server := range []netip.Addr{four, six} {
		client := netip.MustParseAddr("192.0.2.7")
		if server.Is6() {
			client = netip.MustParseAddr("2001:db8::7")
		}
		to := func(port uint16) []byte {
			return packet(Flow{netip.AddrPortFrom(client, 9), netip.AddrPortFrom(server, port)}, flagACK, 1, nil, 0, 0)
		}
		ok(t, k.watch([]netip.Addr{four, six}, []netip.AddrPort{netip.AddrPortFrom(server, 7), netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), 9)}))
		verdict("for a door", to(7), taken)
		verdict("for a port that has none, of such an address", to(9), pass)
		quote := func(port uint16) []byte {
			return tooBig(Flow{netip.AddrPortFrom(client, 9), netip.AddrPortFrom(server, port)}, 1300, 576)
		}
		verdict("that a packet of a door was too big", quote(7), taken)
		verdict("that one of a port that has none was too big", quote(9), pass)
		ok(t, k.watch([]netip.Addr{four, six}, []netip.AddrPort{netip.AddrPortFrom(server, 9)}))
		verdict("for a door that is no more", to(7), pass)
		verdict("for a door that there is now", to(9), taken)
		many := make([]netip.AddrPort, 0, maxDoors+1)
		for i := range maxDoors {
			many = append(many, netip.AddrPortFrom(server, uint16(i)))
		}
		ok(t, k.watch([]netip.Addr{four, six}, many[8:]))
		verdict("for none of many doors", to(7), pass)
		ok(t, k.watch([]netip.Addr{four, six}, append(many, many[0])))
		verdict("for an address with too many doors", to(7), taken)
		if len(k.doors) != 0 {
			t.Errorf("%d doors are left", len(k.doors))
		}
	}
	ok(t, k.watch([]netip.Addr{six}, nil))
	verdict("for an address that is looked at no more", packet(Flow{netip.MustParseAddrPort("192.0.2.7:4000"), netip.MustParseAddrPort("127.0.0.1:9")}, flagACK, 1, nil, 0, 0), pass)
	if n, over := k.taken(); n == 0 || over != 8 {
		t.Errorf("%d were taken, %d beyond the budget", n, over)
	}
}

// BenchmarkTheProgram is what a packet costs that passes. It is for a namespace of its own, as the program comes to all interfaces:
//
//	ip netns add bench; PERIGEE_STRAY_ALONE=1 ip netns exec bench go test -run '^$' -bench TheProgram ./edge/anycast/stray
func BenchmarkTheProgram(b *testing.B) {
	if os.Getenv(aloneInside) == "" {
		b.Skip("it wants a network namespace of its own")
	}
	door, err := openKernel()
	if err != nil {
		b.Fatal(err)
	}
	k := door.(*kernel)
	defer k.close()
	if err := k.watch([]netip.Addr{flow4.Server.Addr(), flow6.Server.Addr()}, []netip.AddrPort{flow4.Server, flow6.Server}); err != nil {
		b.Fatal(err)
	}
	away := Flow{flow4.Client, netip.MustParseAddrPort("192.0.2.1:443")}
	ping := tooBig(flow4, 1300, 576)
	ping[20] = 8
	for _, p := range []struct {
		what string
		b    []byte
	}{
		{"elsewhere", packet(away, flagACK, 1, make([]byte, 1000), 0, 12)}, {"ping", ping},
		{"syn", packet(flow4, flagSYN, 1, nil, 0, 12)}, {"syn6", packet(flow6, flagSYN, 1, nil, 0, 12)},
		{"began", packet(flow4, flagACK, 1, make([]byte, 1000), 0, 12)},
	} {
		b.Run(p.what, func(b *testing.B) {
			frame := append(append(make([]byte, 12), 0x08, 0x00), p.b...)
			if p.b[0]>>4 == 6 {
				frame[12], frame[13] = 0x86, 0xdd
			}
			_, took, err := k.takes.Benchmark(frame, b.N, b.ResetTimer)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(took.Nanoseconds()), "ns/packet")
		})
	}
}

// A handshake by SYN cookies ends, though the kernel has nothing that says so: nobody is asked, so another node that has died is of no matter.
func TestAHandshakeByCookiesEnds(t *testing.T) {
	laboratory(t)
	w := newNetwork(t)
	w.run(w.b, "sysctl -qw net.ipv4.tcp_syncookies=2")
	w.lead("b")
	w.nodes["a"].tell("die")
	for _, address := range anycast {
		f := w.dial(address)
		ok(t, f.echo(100_000))
	}
	if c := w.nodes["b"].counters(); c["stray_segments_taken_total"] != 0 || c["stray_flows_asked_total"] != 0 {
		t.Error(c)
	}
}

// framesInside is where the test is run again to send frames: the interface, and the frames in hexadecimal.
const framesInside = "PERIGEE_STRAY_FRAMES"

// A trunk brings the segments of a VLAN with its tag, which are for that VLAN's device, whether there is one or not.
func TestATaggedSegmentPasses(t *testing.T) {
	if f := strings.Fields(os.Getenv(framesInside)); len(f) > 1 {
		i, err := net.InterfaceByName(f[0])
		ok(t, err)
		socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		ok(t, err)
		for _, text := range f[1:] {
			b, err := hex.DecodeString(text)
			ok(t, err)
			ok(t, unix.Sendto(socket, b, 0, &unix.SockaddrLinklayer{Ifindex: i.Index}))
		}
		return
	}
	laboratory(t)
	w := newNetwork(t)
	w.lead("b")
	out, err := w.b.Command(t.Context(), "ip", "-o", "link", "show", "dev", "net").Output()
	ok(t, err)
	_, text, _ := strings.Cut(string(out), "link/ether ")
	text, _, _ = strings.Cut(text, " ")
	to, err := net.ParseMAC(text)
	ok(t, err)
	frames := []string{"b"}
	for i, tag := range [][]byte{{0x81, 0, 0, 100}, nil} {
		for j, address := range anycast {
			f := Flow{netip.AddrPortFrom(netip.MustParseAddr([]string{"192.0.2.7", "2001:db8::7"}[j]), 4000+uint16(i)), netip.AddrPortFrom(netip.MustParseAddr(address), 7)}
			frame := append(append(append([]byte(to), 2, 0, 0, 0, 0, 1), tag...), [][]byte{{0x08, 0x00}, {0x86, 0xdd}}[j]...)
			frames = append(frames, hex.EncodeToString(append(frame, packet(f, flagACK, 1, []byte("data"), 0, 12)...)))
		}
	}
	command := w.router.Command(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	command.Env = append(os.Environ(), framesInside+"="+strings.Join(frames, " "))
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c := w.nodes["b"].counters()
	for end := time.Now().Add(time.Minute); c["stray_flows_asked_total"] < 2 && time.Now().Before(end); { // the two without a tag are the last
		c = w.nodes["b"].counters()
	}
	if c["stray_segments_taken_total"] != 2 || c["stray_segments_malformed_total"] != 0 {
		t.Error(c)
	}
}

// Where the device is taken away the kernel answers, as without all this.
func TestWithoutItsDeviceTheKernelAnswers(t *testing.T) {
	laboratory(t)
	w := newNetwork(t)
	w.lead("a")
	f := w.dial(anycast[0])
	w.run(w.b, "ip link delete perigee0")
	w.nodes["b"].tell("ended")
	w.lead("b")
	if err := f.echo(1); !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	if c := w.nodes["b"].counters(); c["stray_segments_taken_total"] != 0 {
		t.Error(c)
	}
}

// tell has a node do something else.
func (n *node) tell(what string) {
	n.Helper()
	fmt.Fprintln(n.in, what)
	if line := n.line(); line != "ready" {
		n.Fatal(line)
	}
}

// resets has flows that begin at one node be reset where routing leads them then.
func (w *network) resets() {
	w.Helper()
	for _, address := range anycast {
		w.lead("a")
		f := w.dial(address)
		w.lead("b")
		if err := f.echo(1); !errors.Is(err, syscall.ECONNRESET) {
			w.Errorf("%s: %v", address, err)
		}
	}
}

// A flow is reset by the node where its packets arrive, as without all this, if that one knows of no other.
func TestANodeThatIsAloneResetsWhatItHasNot(t *testing.T) {
	laboratory(t)
	w := newNetwork(t)
	w.nodes["b"].tell("alone")
	w.resets()
	if c := w.nodes["b"].counters(); c["stray_segments_taken_total"] != 0 {
		t.Error(c)
	}
}

// So it is if the others say that they do not have it; and one does for an address that is not its own.
func TestWhatNobodyHasIsReset(t *testing.T) {
	laboratory(t)
	w := newNetwork(t)
	w.nodes["a"].tell("deny")
	w.resets()
	a, b := w.nodes["a"].counters(), w.nodes["b"].counters()
	if a["stray_segments_foreign_total"] == 0 || a["stray_segments_injected_total"] != 0 || b["stray_flows_nobody_total"] != 2 || b["stray_segments_answered_total"] == 0 {
		t.Error(a, b)
	}
}
