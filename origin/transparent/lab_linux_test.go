package transparent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

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
	gate.Programs(t, map[string]string{"python3": "python3", "setpriv": "util-linux"})
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func made(t *testing.T, what string) *netns.Namespace {
	t.Helper()
	name := fmt.Sprintf("transparent%d-%s", os.Getpid(), what)
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

// target answers whoever connects, or sends a datagram, with the address and port that it sees.
const target = `
import socket, threading
def tcp(family, address):
    s = socket.socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, 8080)); s.listen()
    while True:
        c, peer = s.accept()
        c.sendall(("%s %d\n" % peer[:2]).encode())
        threading.Thread(target=lambda c=c: (c.recv(1), c.close())).start()
def udp(family, address):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.bind((address, 8080))
    while True:
        _, peer = s.recvfrom(2048)
        s.sendto(("%s %d\n" % peer[:2]).encode(), peer)
for serve in tcp, udp:
    for family, address in (socket.AF_INET, "10.9.0.2"), (socket.AF_INET6, "fd09::2"):
        threading.Thread(target=serve, args=(family, address)).start()
print("ready", flush=True)
`

// inside is where the test is run again in the namespace of the node: what it dials, as "network client address mark", and how often.
const inside = "PERIGEE_TRANSPARENT"

// TestInside dials, and prints what the target says.
func TestInside(t *testing.T) {
	asked := os.Getenv(inside)
	if asked == "" {
		t.Skip("the laboratory runs it in a namespace")
	}
	for one := range strings.SplitSeq(asked, ";") {
		f := strings.Fields(one)
		mark, _ := strconv.ParseUint(f[3], 0, 32)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		conn, err := Dialer{Mark: uint32(mark)}.Dial(ctx, f[0], netip.MustParseAddrPort(f[1]), f[2])
		cancel()
		if err != nil {
			fmt.Printf("said: %v, impossible: %v\n", err, errors.Is(err, ErrImpossible))
			continue
		}
		defer conn.Close() // while the others are dialled
		fmt.Println("said:", ask(conn))
	}
}

func ask(conn net.Conn) string {
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	if conn.LocalAddr().Network() == "udp" {
		if _, err := conn.Write([]byte("who am I?")); err != nil {
			return err.Error()
		}
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

// Targets in a network of their own see the client's address and port, of TCP and UDP, by IPv4 and IPv6, when the node has the rule and the route of
// docs/resources/accelerator.md, and the targets send what is for the client to the node.
func TestATargetSeesTheClient(t *testing.T) {
	laboratory(t)
	node, far := made(t, "node"), made(t, "target")
	ok(t, netns.Veth(node, "targets", far, "node"))
	run := func(n *netns.Namespace, wrapped []string, text string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := n.Command(ctx, append(wrapped, strings.Fields(text)...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", text, err, out)
		}
		return string(out)
	}
	for _, text := range []string{
		"ip addr add 10.9.0.1/24 dev targets", "ip addr add fd09::1/64 dev targets nodad", "ip link set targets up",
	} {
		run(node, nil, text)
	}
	for _, text := range []string{
		"ip addr add 10.9.0.2/24 dev node", "ip addr add fd09::2/64 dev node nodad", "ip link set node up",
		"ip route add default via 10.9.0.1", "ip -6 route add default via fd09::1",
	} {
		run(far, nil, text)
	}
	log := filepath.Join(t.TempDir(), "target")
	_, err := far.Start([]string{"python3", "-c", target}, netns.Start{Log: log})
	ok(t, err)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if text, _ := os.ReadFile(log); bytes.Contains(text, []byte("ready")) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the target does not start")
		}
	}
	self, err := os.Executable()
	ok(t, err)
	dials := func(wrapped []string, all ...string) (said []string) {
		t.Helper()
		env := append([]string{"env", inside + "=" + strings.Join(all, ";")}, wrapped...)
		for line := range strings.Lines(run(node, env, self+" -test.run ^TestInside$ -test.v")) {
			if text, is := strings.CutPrefix(line, "said: "); is {
				said = append(said, strings.TrimSpace(text))
			}
		}
		return said
	}
	const tcp, udp = "tcp 198.51.100.7:40112 10.9.0.2:8080 0", "udp 198.51.100.7:40112 10.9.0.2:8080 0"
	const tcp6, udp6 = "tcp [2001:db8::7]:40112 [fd09::2]:8080 0", "udp [2001:db8::7]:40112 [fd09::2]:8080 0"

	// Without the rule the answers go nowhere.
	for _, said := range dials(nil, tcp, udp) {
		if !strings.Contains(said, "timeout") {
			t.Errorf("without the rule: %s", said)
		}
	}
	for _, family := range []string{"-4", "-6"} {
		run(node, nil, "ip "+family+" rule add iif targets lookup 100")
		run(node, nil, "ip "+family+" route add local default dev lo table 100")
	}
	for i, want := range []string{"198.51.100.7 40112", "198.51.100.7 40112", "2001:db8::7 40112", "2001:db8::7 40112"} {
		one := []string{tcp, udp, tcp6, udp6}[i]
		if said := dials(nil, one); len(said) != 1 || said[0] != want {
			t.Errorf("%s: the target sees %q", one, said)
		}
	}
	// A client that is there already, by another way, has another port.
	for _, one := range []string{"tcp 198.51.100.8:40112 10.9.0.2:8080 0", "udp 198.51.100.8:40112 10.9.0.2:8080 0"} {
		said := dials(nil, one, one)
		if len(said) != 2 || said[0] != "198.51.100.8 40112" || !strings.HasPrefix(said[1], "198.51.100.8 ") || said[1] == said[0] {
			t.Errorf("twice %s: the target sees %q", one, said)
		}
	}
	// The mark leads where a rule says, here to nowhere.
	run(node, nil, "ip rule add fwmark 0x50 lookup 101")
	run(node, nil, "ip route add unreachable default table 101")
	if said := dials(nil, "tcp 198.51.100.9:40112 10.9.0.2:8080 0x50"); len(said) != 1 || !strings.Contains(said[0], "no route") && !strings.Contains(said[0], "unreachable") {
		t.Errorf("marked: %q", said)
	}
	// Who has not the right is told so.
	for _, one := range []string{tcp, udp, tcp6, udp6} {
		said := dials([]string{"setpriv", "--bounding-set", "-net_admin,-net_raw", "--inh-caps", "-net_admin,-net_raw"}, one)
		if len(said) != 1 || !strings.Contains(said[0], "needs CAP_NET_ADMIN") || !strings.HasSuffix(said[0], "impossible: true") {
			t.Errorf("without the right, %s: %q", one, said)
		}
	}
}
