//go:build linux

// Package procs runs clusters of node processes on this machine, for what virtual time cannot show: what a kernel does
// with a process that is killed, stopped in its tracks, or out of disk. Every node is the built binary with its own folder
// and its own address on the loopback (127.81.C.N for node N of cluster C), and its API is asked at the socket in its folder.
//
// It is no supervisor: a process that ends stays ended until it is started again. When whoever made a cluster dies, in
// whatever way, so do its processes, even those that are stopped.
package procs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/perigee-net/perigee/node/api"
)

// Ports of every node, each on the node's own address.
const (
	HTTPPort    = 8080
	DNSPort     = 8053
	gossipPort  = 7946
	controlPort = 7947
	apiPort     = 7948
	lockPort    = 7900 // on the cluster's first address: held while the cluster is open
)

// MaxNodes bounds one cluster: its network has 254 addresses.
const MaxNodes = 250

// again is how often something is looked at that is waited for.
const again = 20 * time.Millisecond

// Build builds the binary into a folder, with flags for go build, and returns its path.
func Build(ctx context.Context, path string, flags ...string) error {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find the module: %w", err)
	}
	c := exec.CommandContext(ctx, "go", slices.Concat([]string{"build", "-trimpath", "-o", path}, flags, []string{"./cmd/perigee"})...)
	c.Dir = strings.TrimSpace(string(root))
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if slices.Contains(flags, "-race") {
		c.Env = append(os.Environ(), "CGO_ENABLED=1")
	}
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build perigee: %w\n%s", err, out)
	}
	return nil
}

// Cluster is some processes that are one cluster, or are to be.
type Cluster struct {
	Binary string        // what the nodes are made of
	Env    []string      // more of their environment
	Drain  time.Duration // how long they serve on when they are told to end
	Nodes  []*Node

	dir    string
	number byte // of its network
	lock   net.Listener
	starts chan func() // what the one thread does whose children the processes are
	ended  chan struct{}
}

// Open takes a network of the loopback for a cluster that has its data and logs in a folder of the caller's.
func Open(binary, dir string) (*Cluster, error) {
	c := &Cluster{Binary: binary, dir: dir, starts: make(chan func()), ended: make(chan struct{})}
	var err error
	for c.number = 1; c.number < 255; c.number++ {
		if c.lock, err = net.Listen("tcp", netip.AddrPortFrom(c.address(0), lockPort).String()); err == nil {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("no network from 127.81.1.0 to 127.81.254.0 is free: %w", err)
	}
	// The kernel ends a child with the thread that made it (prctl(2), PR_SET_PDEATHSIG): one thread makes all, and lasts.
	go func() {
		runtime.LockOSThread()
		defer close(c.ended)
		for start := range c.starts {
			start()
		}
	}()
	return c, nil
}

// Close kills what still runs.
func (c *Cluster) Close() error {
	for _, n := range c.Nodes {
		n.Kill()
	}
	close(c.starts)
	<-c.ended
	return c.lock.Close()
}

func (c *Cluster) address(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 81, c.number, byte(n + 1)})
}

// Spare is an address of the cluster's network that no node has: n counts from 0.
func (c *Cluster) Spare(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 81, c.number, byte(254 - n)})
}

// Node is one machine: an address, a folder, and at times a process.
type Node struct {
	Name, Region string
	Address      netip.Addr
	Data         string
	Binary       string   // what its next process is made of; "": the cluster's
	Roles        string   // as --roles takes them; "": all
	Args         []string // more of the command line

	cluster *Cluster
	join    []string // how it comes into the cluster when it is new

	mu       sync.Mutex
	cmd      *exec.Cmd // nil: no process
	stdin    io.Closer
	gone     chan struct{} // closed when the process is gone
	paused   bool
	told     bool // to end
	byItself bool // the last process ended so
}

// regions of the nodes, in turn.
var regions = [...]string{"ap-northeast-2", "eu-central-1", "us-east-1"}

// Add adds a machine; its process is not started.
func (c *Cluster) Add() *Node {
	i := len(c.Nodes)
	if i == MaxNodes {
		panic("a cluster of more nodes than its network has addresses")
	}
	n := &Node{Name: fmt.Sprintf("n%d", i+1), Region: regions[i%len(regions)], Address: c.address(i), cluster: c}
	n.Data = filepath.Join(c.dir, n.Name)
	if i == 0 {
		n.join = []string{"--bootstrap"}
	} else {
		n.join = []string{"--join", netip.AddrPortFrom(c.address(0), controlPort).String(), "--token", "@" + filepath.Join(c.dir, "token")}
	}
	c.Nodes = append(c.Nodes, n)
	return n
}

// joinsAtOnce is how many nodes join at a time: the control port closes the connections of strangers beyond its bound.
const joinsAtOnce = 8

// Found adds machines until there are so many, and starts them: the first makes the cluster, the others join. It returns
// when all are members and so many vote.
func (c *Cluster) Found(ctx context.Context, nodes, voters int) error {
	for len(c.Nodes) < nodes {
		c.Add()
	}
	for i, n := range c.Nodes {
		if err := n.Start(); err != nil {
			return err
		}
		if i >= joinsAtOnce {
			if err := c.Nodes[i-joinsAtOnce].AwaitServing(ctx); err != nil {
				return err
			}
		}
		if i > 0 {
			continue
		}
		if err := n.Await(ctx, "makes a cluster", func(ctx context.Context, client *api.Client) error {
			made, err := client.CreateToken(ctx, api.TokenRequest{Uses: MaxNodes, TTL: api.Duration(12 * time.Hour)})
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(c.dir, "token"), []byte(made.Token), 0o600)
		}); err != nil {
			return err
		}
	}
	return c.Whole(ctx, voters)
}

// Whole waits until every node that has a process sees all of those and nobody else, a leader, and so many voters, and runs
// the same revision.
func (c *Cluster) Whole(ctx context.Context, voters int) error {
	var alive []*Node
	for _, n := range c.Nodes {
		if n.Alive() {
			alive = append(alive, n)
		}
	}
	for _, n := range alive {
		if err := n.Await(ctx, "sees all", func(ctx context.Context, client *api.Client) error {
			time.Sleep(time.Duration(len(alive)) * time.Millisecond) // asking all must not be what keeps them busy
			first, err := alive[0].Client().Status(ctx)
			if err != nil {
				return err
			}
			st, err := client.Status(ctx)
			switch {
			case err != nil:
				return err
			case len(st.Members) != len(alive):
				return fmt.Errorf("it sees %d members of %d", len(st.Members), len(alive))
			case st.Leader == "" || st.Leader != first.Leader:
				return fmt.Errorf("it follows %q, %s %q", st.Leader, first.Node, first.Leader)
			case st.Voters != voters:
				return fmt.Errorf("%d vote, of %d that are to", st.Voters, voters)
			case st.Revision != first.Revision || st.Running != st.Revision || st.Own != first.Own:
				return fmt.Errorf("it is at revision %d (own %d), runs %d, %s is at %d (own %d) %s", st.Revision, st.Own, st.Running, first.Node, first.Revision, first.Own, st.Refused)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// Leader is the node that leads, as a live one says; nil if none does.
func (c *Cluster) Leader(ctx context.Context) *Node {
	for _, n := range c.Nodes {
		if !n.Answers() {
			continue
		}
		once, cancel := context.WithTimeout(ctx, time.Second)
		st, err := n.Client().Status(once)
		cancel()
		if i := slices.IndexFunc(c.Nodes, func(o *Node) bool { return o.Name == st.Leader }); err == nil && i >= 0 {
			return c.Nodes[i]
		}
	}
	return nil
}

// HTTP and DNS are the node's doors.
func (n *Node) HTTP() string { return netip.AddrPortFrom(n.Address, HTTPPort).String() }
func (n *Node) DNS() string  { return netip.AddrPortFrom(n.Address, DNSPort).String() }

// Client is a client of the node's API, at the socket in its folder.
func (n *Node) Client() *api.Client {
	client, err := api.NewClient(filepath.Join(n.Data, api.Socket), api.Options{})
	if err != nil {
		panic(err) // the path is ours
	}
	return client
}

func (n *Node) log() string { return filepath.Join(n.cluster.dir, n.Name+".log") }

// Log is what the node's processes have written since they began, at most so many bytes of its end.
func (n *Node) Log(most int64) string {
	f, err := os.Open(n.log())
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		f.Seek(max(0, size-most), io.SeekStart)
	}
	data, _ := io.ReadAll(f)
	return string(data)
}

// Start starts the node's process. That it serves is to be awaited.
func (n *Node) Start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd != nil {
		return fmt.Errorf("%s runs already", n.Name)
	}
	log, err := os.OpenFile(n.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	at := func(port int) string { return netip.AddrPortFrom(n.Address, uint16(port)).String() }
	args := slices.Concat([]string{"node", "--with-parent", "--data", n.Data, "--name", n.Name, "--region", n.Region, "--pop", n.Name,
		"--bind", n.Address.String(), "--gossip", at(gossipPort), "--control", at(controlPort), "--api", at(apiPort),
		"--http", at(HTTPPort), "--https", "", "--dns", at(DNSPort),
		"--drain", n.cluster.Drain.String()}, n.join, n.Args)
	if n.Roles != "" {
		args = append(args, "--roles", n.Roles)
	}
	binary := n.Binary
	if binary == "" {
		binary = n.cluster.Binary
	}
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = slices.Concat(os.Environ(), n.cluster.Env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	started := make(chan error)
	n.cluster.starts <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	gone := make(chan struct{})
	n.cmd, n.stdin, n.gone, n.paused, n.told, n.byItself = cmd, stdin, gone, false, false, false
	go func() {
		cmd.Wait()
		n.mu.Lock()
		n.cmd, n.byItself = nil, !n.told
		n.mu.Unlock()
		close(gone)
	}()
	return nil
}

// PID is that of the node's process; 0: it has none.
func (n *Node) PID() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return 0
	}
	return n.cmd.Process.Pid
}

// Alive says whether the node has a process, Answers whether that is not stopped.
func (n *Node) Alive() bool { return n.PID() != 0 }

// Answers: see Alive.
func (n *Node) Answers() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cmd != nil && !n.paused
}

// failed says that the node's process has ended without being told to.
func (n *Node) failed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.byItself
}

func (n *Node) signal(s syscall.Signal) (gone <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return nil
	}
	switch s {
	case syscall.SIGSTOP:
		n.paused = true
	case syscall.SIGCONT:
		n.paused = false
	default:
		n.told = true
	}
	n.cmd.Process.Signal(s)
	return n.gone
}

// Kill ends the process as kill -9 does, and returns when it is gone.
func (n *Node) Kill() {
	if gone := n.signal(syscall.SIGKILL); gone != nil {
		<-gone
	}
}

// Pause stops the process in its tracks, and Resume lets it go on.
func (n *Node) Pause()  { n.signal(syscall.SIGSTOP) }
func (n *Node) Resume() { n.signal(syscall.SIGCONT) }

// stopTime is more than a node takes to end in order.
const stopTime = 20 * time.Second

// Stop ends the process in order; one that does not end is killed, and where it hung is the error.
func (n *Node) Stop() error {
	gone := n.signal(syscall.SIGTERM)
	if gone == nil {
		return nil
	}
	select {
	case <-gone:
		return nil
	case <-time.After(n.cluster.Drain + stopTime):
		n.signal(syscall.SIGQUIT) // it writes down where its goroutines are
		<-gone
		return fmt.Errorf("%s does not end within %v:\n%s", n.Name, n.cluster.Drain+stopTime, n.Log(1<<20))
	}
}

// Await asks again until f has no error, the context ends, or a process of the cluster does by itself.
func (n *Node) Await(ctx context.Context, what string, f func(context.Context, *api.Client) error) error {
	for client := n.Client(); ; {
		for _, o := range n.cluster.Nodes {
			if o.failed() {
				return fmt.Errorf("%s has ended by itself: %s", o.Name, o.Log(2000))
			}
		}
		once, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := f(once, client)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited until %s %s: %w\n%s", n.Name, what, err, n.Log(2000))
		case <-time.After(again):
		}
	}
}

// AwaitServing waits until the node's API answers.
func (n *Node) AwaitServing(ctx context.Context) error {
	return n.Await(ctx, "serves", func(ctx context.Context, client *api.Client) error {
		_, err := client.Status(ctx)
		return err
	})
}

// Memory is what the process has of the machine's memory, in bytes, now and at its highest.
func (n *Node) Memory() (now, peak int64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.PID()))
	if err != nil {
		return 0, 0, err
	}
	read := func(field string) int64 {
		_, rest, _ := bytes.Cut(data, []byte(field+":"))
		line, _, _ := bytes.Cut(rest, []byte(" kB"))
		kb, _ := strconv.ParseInt(strings.TrimSpace(string(line)), 10, 64)
		return kb << 10
	}
	return read("VmRSS"), read("VmHWM"), nil
}

// ForgetPeak makes the highest of Memory what it is now.
func (n *Node) ForgetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", n.PID()), []byte("5"), 0)
}

// CPU is how long the process has computed since it began (proc(5), utime and stime in ticks of 10 ms).
func (n *Node) CPU() (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.PID()))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 13 {
		return 0, errors.New("/proc stat is not understood")
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, nil
}
