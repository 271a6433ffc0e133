//go:build linux

package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/perigee-net/perigee/testbed/gate"
)

// roleEnv makes the test's own program play another part: see roles.
const roleEnv = "PERIGEE_NETNS_ROLE"

// roles are what children of the tests do.
func roles() map[string]func() {
	return map[string]func(){
		"crash":   crash,
		"nobody":  nobody,
		"missing": func() { printNeeds() },
	}
}

func TestMain(m *testing.M) {
	if role := roles()[os.Getenv(roleEnv)]; role != nil {
		role()
		return
	}
	sweep()
	goleak.VerifyTestMain(m)
}

const prefix = "pgt-netns-"

// sweep removes what a killed run of these tests left: names of processes that are dead.
func sweep() {
	names, _ := Names(prefix)
	for _, name := range names {
		pid, _, _ := strings.Cut(strings.TrimPrefix(name, prefix), "-")
		if n, err := strconv.Atoi(pid); err == nil && syscall.Kill(n, 0) == syscall.ESRCH {
			Remove(context.Background(), name)
		}
	}
}

// role is this program in another part.
func role(name string, env ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), roleEnv+"="+name), env...)
	return cmd
}

// lab skips a test where there is nothing to make a laboratory of.
func lab(t testing.TB) {
	t.Helper()
	gate.Wanted(t)
	for _, need := range Missing() {
		gate.Lacks(t, need.String())
	}
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func nameOf(what string) string { return fmt.Sprintf("%s%d-%s", prefix, os.Getpid(), what) }

// made is a namespace that is gone after the test.
func made(t testing.TB, what string) *Namespace {
	t.Helper()
	name := nameOf(what)
	t.Cleanup(func() {
		if err := Remove(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	n, err := New(name)
	ok(t, err)
	t.Cleanup(func() { n.Close() })
	return n
}

// output is what a command inside says.
func output(t testing.TB, n *Namespace, argv ...string) string {
	t.Helper()
	out, err := n.Command(within(t, 20*time.Second), argv...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
	return string(out)
}

func TestANamespaceIsWhatIPNetnsSees(t *testing.T) {
	lab(t)
	n := made(t, "seen")
	list, err := exec.Command("ip", "netns", "list").CombinedOutput()
	ok(t, err)
	if !strings.Contains(string(list), n.Name) {
		t.Errorf("ip netns list: %s", list)
	}
	if lo := output(t, n, "ip", "addr", "show", "lo"); !strings.Contains(lo, "127.0.0.1/8") || !strings.Contains(lo, "::1/128") || !strings.Contains(lo, "UP") {
		t.Errorf("its loopback: %s", lo)
	}
	ok(t, exec.Command("ip", "netns", "del", n.Name).Run())
	if names, err := Names(n.Name); err != nil || len(names) != 0 {
		t.Errorf("after ip netns del: %v, %v", names, err)
	}
}

func TestATakenNameIsRefused(t *testing.T) {
	lab(t)
	n := made(t, "taken")
	if _, err := New(n.Name); !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), n.Name) {
		t.Errorf("taken by ourselves: %v", err)
	}
	other := nameOf("ip")
	ok(t, exec.Command("ip", "netns", "add", other).Run())
	t.Cleanup(func() { exec.Command("ip", "netns", "del", other).Run() })
	if _, err := New(other); !errors.Is(err, ErrTaken) {
		t.Errorf("taken by ip netns: %v", err)
	}
	if _, err := Open(nameOf("none")); !errors.Is(err, ErrGone) {
		t.Errorf("open what is not there: %v", err)
	}
}

func TestOfManyMakersOfOneNameOneWins(t *testing.T) {
	lab(t)
	name := nameOf("race")
	t.Cleanup(func() { ok(t, Remove(context.Background(), name)) })
	var won atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			n, err := New(name)
			switch {
			case err == nil:
				won.Add(1)
				n.Close()
			case !errors.Is(err, ErrTaken):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 {
		t.Errorf("%d made it", won.Load())
	}
}

func TestBadNamesAreRefused(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "../x", "a b", "a\nb", "-all", strings.Repeat("x", maxName+1)} {
		if _, err := New(name); err == nil {
			t.Errorf("New took %q", name)
			Remove(context.Background(), name)
		}
		if _, err := Open(name); err == nil {
			t.Errorf("Open took %q", name)
		}
		if err := Remove(context.Background(), name); err == nil {
			t.Errorf("Remove took %q", name)
		}
	}
	for _, name := range []string{"", ".", "a b", "a/b", "a:b", "sixteen-letters-", "tab\t"} {
		if err := checkLink(name); err == nil {
			t.Errorf("took %q for a link's name", name)
		}
	}
}

func TestDeleteTwiceIsFineAndLeavesNothing(t *testing.T) {
	lab(t)
	n := made(t, "twice")
	ok(t, n.WriteResolv("nameserver 10.1.0.2\n"))
	for range 3 {
		ok(t, n.Delete(within(t, 10*time.Second)))
		for _, path := range []string{filepath.Join(namesDir, n.Name), filepath.Join(filesDir, n.Name)} {
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	ok(t, Remove(context.Background(), n.Name))
	if err := n.Up("lo"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("used after it: %v", err)
	}
}

func TestManyDeletesAtOnceAreFine(t *testing.T) {
	lab(t)
	for range 5 {
		n := made(t, "many")
		ok(t, Veth(n, "one", n, "two"))
		_, err := n.Start([]string{"sleep", "1000"}, Start{})
		ok(t, err)
		var all sync.WaitGroup
		for i := range 6 {
			all.Go(func() {
				var err error
				if i%2 == 0 {
					err = n.Delete(context.Background())
				} else {
					err = Remove(context.Background(), n.Name)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if names, err := Names(n.Name); err != nil || len(names) != 0 {
			t.Errorf("left: %v, %v", names, err)
		}
	}
}

func TestDeletedUnderOurFeetItWorksOnAndIsDeletedAllTheSame(t *testing.T) {
	lab(t)
	n := made(t, "feet")
	pid, err := n.Start([]string{"sleep", "1000"}, Start{})
	ok(t, err)
	ok(t, exec.Command("ip", "netns", "del", n.Name).Run())

	l, err := n.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	defer l.Close()
	ok(t, n.Sysctl("net.ipv4.ip_forward", "1"))
	ok(t, n.Delete(within(t, 10*time.Second)))
	if syscall.Kill(pid, 0) == nil {
		t.Error("its process runs on")
	}
}

func TestANamespaceOfTheSameNameMadeLaterIsNotTouched(t *testing.T) {
	lab(t)
	old := made(t, "again")
	ok(t, exec.Command("ip", "netns", "del", old.Name).Run())
	now, err := New(old.Name)
	ok(t, err)
	defer now.Close()
	ok(t, now.WriteResolv("nameserver 10.1.0.2\n"))
	pid, err := now.Start([]string{"sleep", "1000"}, Start{})
	ok(t, err)
	for range 2 {
		ok(t, old.Delete(within(t, 10*time.Second)))
	}
	if pids, err := now.PIDs(); err != nil || !slices.Equal(pids, []int{pid}) {
		t.Errorf("its processes: %v, %v", pids, err)
	}
	if got := output(t, now, "cat", "/etc/resolv.conf"); got != "nameserver 10.1.0.2\n" {
		t.Errorf("its resolv.conf: %q", got)
	}
	ok(t, now.Delete(within(t, 10*time.Second)))
}

func TestANameWhoseMakerDiedHalfwayIsUsedAndRemoved(t *testing.T) {
	lab(t)
	name := nameOf("half")
	path := filepath.Join(namesDir, name)
	debris := func() { ok(t, os.WriteFile(path, nil, 0o444)) }
	t.Cleanup(func() { Remove(context.Background(), name) })

	debris()
	if _, err := Open(name); !errors.Is(err, errDebris) {
		t.Errorf("open: %v", err)
	}
	if names, err := Names(name); err != nil || len(names) != 1 {
		t.Errorf("listed: %v, %v", names, err)
	}
	ok(t, Remove(context.Background(), name))
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
	debris()
	n, err := New(name)
	ok(t, err)
	ok(t, n.Delete(context.Background()))
}

// crash makes namespaces with all that can be in them, says so and waits to be killed.
func crash() {
	fail := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	var all []*Namespace
	for i := range 3 {
		n, err := New(os.Getenv("NAME") + strconv.Itoa(i))
		fail(err)
		fail(n.WriteResolv("nameserver 10.1.0.2\n"))
		_, err = n.Start([]string{"sleep", "1000"}, Start{})
		fail(err)
		all = append(all, n)
	}
	fail(Veth(all[0], "a", all[1], "b"))
	tun, err := Tun(all[2], "c")
	fail(err)
	defer tun.Close()
	fmt.Println("made")
	select {}
}

func TestWhatAKilledRunLeftIsRemovedByName(t *testing.T) {
	lab(t)
	base := nameOf("killed")
	t.Cleanup(func() {
		names, _ := Names(base)
		for _, name := range names {
			Remove(context.Background(), name)
		}
	})
	child := role("crash", "NAME="+base)
	out, err := child.StdoutPipe()
	ok(t, err)
	ok(t, child.Start())
	line := make([]byte, 200)
	k, _ := out.Read(line)
	if string(line[:k]) != "made\n" {
		t.Fatalf("the child said %q", line[:k])
	}
	ok(t, child.Process.Kill())
	child.Wait()

	names, err := Names(base)
	ok(t, err)
	if len(names) != 3 {
		t.Fatalf("it left %v", names)
	}
	var pids []int
	for _, name := range names {
		n, err := Open(name)
		ok(t, err)
		p, err := n.PIDs()
		ok(t, err)
		pids = append(pids, p...)
		ok(t, n.Close())
	}
	if len(pids) != 3 {
		t.Errorf("it left the processes %v", pids)
	}
	for _, name := range names {
		ok(t, Remove(within(t, 10*time.Second), name))
	}
	if names, err := Names(base); err != nil || len(names) != 0 {
		t.Errorf("still there: %v, %v", names, err)
	}
	for _, pid := range pids {
		if syscall.Kill(pid, 0) == nil && !zombie(pid) { // init reaps what is not ours, when it does
			t.Errorf("process %d runs on", pid)
		}
	}
}

func zombie(pid int) bool {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "Z")
}

// nobody drops all rights and says what it then cannot do.
func nobody() {
	if err := syscall.Setuid(65534); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	printNeeds()
	_, err := New("pgt-netns-nobody")
	fmt.Println("new:", err)
}

func printNeeds() {
	for _, n := range Missing() {
		fmt.Println("need:", n)
	}
}

func TestWithoutRootItSaysSoInOneLine(t *testing.T) {
	lab(t)
	out, err := role("nobody").CombinedOutput()
	ok(t, err)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "root is missing") || !strings.Contains(lines[1], "not permitted") {
		t.Errorf("got %s", out)
	}
}

func TestWithoutIPItSaysHowToGetIt(t *testing.T) {
	lab(t)
	cmd := role("missing", "PATH="+t.TempDir())
	out, err := cmd.CombinedOutput()
	ok(t, err)
	if got := string(out); strings.Count(got, "\n") != 1 || !strings.Contains(got, "the program ip is missing") || !strings.Contains(got, "iproute2") {
		t.Errorf("got %s", got)
	}
}

func TestWithoutATUNDeviceOrNamespacesItSaysSoInOneLineEach(t *testing.T) {
	lab(t)
	// A mount namespace of its own, where /dev/net is empty, and none of the rights to make namespaces.
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount -t tmpfs none /dev/net && exec setpriv --bounding-set=-sys_admin "$0"`, "/proc/"+strconv.Itoa(os.Getpid())+"/exe")
	cmd.Env = append(os.Environ(), roleEnv+"=missing")
	out, err := cmd.CombinedOutput()
	ok(t, err)
	if got := string(out); strings.Count(got, "\n") != 2 || !strings.Contains(got, "CAP_SYS_ADMIN is missing") || !strings.Contains(got, "/dev/net/tun is missing") || !strings.Contains(got, "modprobe tun") {
		t.Errorf("got %s", got)
	}
}

// await waits for what cannot wake us: something of the kernel's.
func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in 20 s: %s", what)
		}
	}
}

// pair is two hosts and the router between them, as a site of the testbed has them.
func pair(t testing.TB) (a, router, b *Namespace) {
	t.Helper()
	router = made(t, "router")
	ok(t, router.AddAddr("lo", netip.MustParsePrefix("10.1.0.1/32"), netip.Addr{}))
	ok(t, router.AddAddr("lo", netip.MustParsePrefix("fd00:0:1::1/128"), netip.Addr{}))
	ok(t, router.Sysctl("net.ipv4.ip_forward", "1"))
	ok(t, router.Sysctl("net.ipv6.conf.all.forwarding", "1"))
	var hosts [2]*Namespace
	for i := range hosts {
		n := made(t, "host-"+strconv.Itoa(i))
		hosts[i] = n
		port := "h-" + strconv.Itoa(i)
		ok(t, Veth(router, port, n, "eth0"))
		ok(t, n.NoOffload("eth0"))
		for _, ip := range [][2]netip.Addr{{addr4(i), netip.MustParseAddr("10.1.0.1")}, {addr6(i), netip.MustParseAddr("fd00:0:1::1")}} {
			host, gate := ip[0], ip[1]
			ok(t, n.AddAddr("eth0", netip.PrefixFrom(host, host.BitLen()), gate))
			ok(t, router.AddAddr(port, netip.PrefixFrom(gate, gate.BitLen()), host))
		}
		ok(t, n.Up("eth0"))
		ok(t, router.Up(port))
		ok(t, n.AddRoute(Route{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.1.0.1"), Link: "eth0"}))
		ok(t, n.AddRoute(Route{To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fd00:0:1::1"), Link: "eth0"}))
	}
	return hosts[0], router, hosts[1]
}

func addr4(host int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, 0, byte(10 + host)}) }
func addr6(host int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:0:1::%x", 10+host))
}

// echo answers every connection to a namespace with what it hears, and counts those that it heard of.
func echo(t testing.TB, n *Namespace, address string) net.Listener {
	t.Helper()
	l, err := n.Listen("tcp", address)
	ok(t, err)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				buf := make([]byte, 100)
				k, _ := c.Read(buf)
				c.Write(buf[:k])
			})
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return l
}

// reaches says whether one can be heard from the other within a time.
func reaches(t testing.TB, from *Namespace, address string, d time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	c, err := from.Dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	buf := make([]byte, 5)
	if _, err := c.Read(buf); err != nil || string(buf) != "hello" {
		return fmt.Errorf("read %q: %w", buf, err)
	}
	return nil
}

// threadsAway are the threads of this process that are not in its own namespace.
func threadsAway(t testing.TB) (away []string) {
	t.Helper()
	home, err := identify("/proc/self/ns/net")
	ok(t, err)
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	ok(t, err)
	for _, path := range tasks {
		if id, err := identify(path); err == nil && id != home {
			away = append(away, path)
		}
	}
	return away
}
