package pump

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/testbed/netns"
	"github.com/perigee-net/perigee/testbed/wan"
)

// serveEnv has this binary be the pump process, at the socket it names.
const serveEnv = "PERIGEE_PUMP_SERVE"

func TestMain(m *testing.M) {
	socket := os.Getenv(serveEnv)
	if socket == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	err := Serve(ctx, socket, func(namespace, device string) (*os.File, error) {
		n, err := netns.Open(namespace)
		if err != nil {
			return nil, err
		}
		defer n.Close()
		return netns.Tun(n, device)
	})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// process is a lab whose link is carried by a pump process of its own, as a testbed's are.
type process struct {
	*lab
	client *Client
	pid    int
	killed bool
}

// pumped starts the process, by a command that runs another where one is given.
func pumped(t testing.TB, by ...string) *process {
	t.Helper()
	needLab(t)
	l := pair(t)
	socket := filepath.Join(t.TempDir(), "pump")
	argv := append(by, os.Args[0])
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), serveEnv+"="+socket)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{lab: l, pid: cmd.Process.Pid}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		select {
		case err := <-ended:
			if err != nil && !p.killed {
				t.Errorf("pump process: %v", err)
			}
		case <-time.After(long):
			cmd.Process.Kill()
			t.Error("the pump process did not end")
		}
	})
	for until := time.Now().Add(long); ; time.Sleep(ms) {
		var err error
		if p.client, err = Dial(socket); err == nil {
			break
		}
		if time.Now().After(until) {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { p.client.Close() })
	if err := p.client.Add("ab", Device{l.a.Name, labDevice}, Device{l.b.Name, labDevice}, wan.Path{}, wan.Path{}); err != nil {
		t.Fatal(err)
	}
	l.set = func(ab, ba wan.Path) error { return p.client.Set("ab", &ab, &ba) }
	l.stats = func() Stats {
		all, err := p.client.Stats()
		if err != nil {
			t.Error(err)
		}
		return all["ab"]
	}
	for _, n := range []*netns.Namespace{l.a, l.b} {
		if err := n.SetQueue(labDevice, 5000); err != nil {
			t.Fatal(err)
		}
	}
	l.address(t)
	return p
}

func (p *process) threads(t testing.TB) (ids []int) {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		id, _ := strconv.Atoi(task.Name())
		ids = append(ids, id)
	}
	return ids
}

// cpu is how long the pump process has run so far.
func (p *process) cpu(t testing.TB) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * ms // USER_HZ
}

func TestAPumpProcessOfItsOwnCarriesAndLeavesNothing(t *testing.T) {
	p := pumped(t)
	p.ask(t, wan.Path{Delay: 2 * ms}, wan.Path{Delay: 3 * ms})
	if trips := p.ping(t, 20, ms, time.Second); len(trips) != 20 || trips[0] < 5*ms {
		t.Errorf("%d of 20 came back, the first after %v", len(trips), quantile(trips, 0))
	}
	urgency, err := p.client.Urgency()
	if err != nil || urgency == "" {
		t.Errorf("urgency %q, %v", urgency, err)
	}
	for _, thread := range p.threads(t) {
		if attr, err := unix.SchedGetAttr(thread, 0); err == nil && urgency == RealTime && attr.Policy != unix.SCHED_RR {
			t.Errorf("a thread is not in real time: %+v", attr)
		}
	}
	p.killed = true
	if err := unix.Kill(p.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(long); ; time.Sleep(ms) {
		links, err := p.a.Links()
		if err == nil && !slices.Contains(links, labDevice) {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("a killed pump left %v, %v", links, err)
		}
	}
}
