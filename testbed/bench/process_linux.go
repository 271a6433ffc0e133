package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

	"golang.org/x/sys/unix"
)

// starter makes all processes of a run: one thread, which lasts as long as the run, for the kernel ends a child with the thread that made it
// (prctl(2), PR_SET_PDEATHSIG), and which has the cores that the child is to have, for a child has those of the thread that made it.
type starter struct {
	starts chan func()
	ended  chan struct{}
	apart  bool // each process has a PID namespace of its own

	mu        sync.Mutex
	processes []*Process
}

func newStarter() *starter {
	s := &starter{starts: make(chan func()), ended: make(chan struct{})}
	try := exec.Command("true")
	try.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	s.apart = try.Run() == nil
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread has other cores than the rest, and ends with this function
		defer close(s.ended)
		for start := range s.starts {
			start()
		}
	}()
	return s
}

// close ends all that still runs.
func (s *starter) close() {
	s.mu.Lock()
	processes := slices.Clone(s.processes)
	s.mu.Unlock()
	for _, p := range processes {
		p.Stop()
	}
	close(s.starts)
	<-s.ended
}

// do runs a function on the thread, with those cores.
func (s *starter) do(cores []int, f func() error) error {
	done := make(chan error)
	s.starts <- func() {
		if err := setCores(0, cores); err != nil {
			done <- err
			return
		}
		done <- f()
	}
	return <-done
}

// Process is one server or tool, and all that it made.
type Process struct {
	cmd  *exec.Cmd
	log  string
	gone chan struct{}
	err  error // of its end; to be read when it is gone

	crosses *crossing // how it is reached over an ocean; nil: there is none

	beside []*Process // what else makes the server: they compute with it, and end with it

	began time.Time
	ready time.Duration // from its start until it gave the last of its answers, of rows about that
	spent time.Duration // in which it computed until then
	empty int64         // bytes of memory that it takes with nothing to serve, of rows about that
}

// start starts a program on those cores, in a folder. What it writes goes to a file there, unless cmd says otherwise. Where that is
// allowed it gets a PID namespace of its own, which the kernel empties when it ends: daemons cannot get away.
func (s *starter) start(cores []int, dir string, cmd *exec.Cmd) (*Process, error) {
	p := &Process{cmd: cmd, gone: make(chan struct{})}
	cmd.Dir = dir
	if cmd.Stdout == nil {
		p.log = filepath.Join(dir, "log")
		log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, err
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if s.apart {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	}
	p.began = time.Now()
	if err := s.do(cores, cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.gone)
	}()
	s.mu.Lock()
	s.processes = append(s.processes, p)
	s.mu.Unlock()
	return p, nil
}

// endTime is how long a process has to end when it is told to.
const endTime = 3 * time.Second

// Stop ends the process and all that it made, and returns when it is gone. Stopping twice is fine.
func (p *Process) Stop() {
	select {
	case <-p.gone:
		return
	default:
	}
	for _, other := range p.beside {
		other.Stop()
	}
	tree := descendants(p.cmd.Process.Pid)
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.gone:
	case <-time.After(endTime):
		p.cmd.Process.Kill()
		<-p.gone
	}
	for pid, began := range tree { // where there is no PID namespace, what it made and did not end
		if again, ok := stat(pid); ok && again.began == began {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// Failed says how the process ended, if it did, with the end of its log.
func (p *Process) Failed() error {
	select {
	case <-p.gone:
	default:
		return nil
	}
	err := p.err
	if err == nil {
		err = errors.New("exit status 0")
	}
	return fmt.Errorf("it has ended: %w\n%s", err, p.Log())
}

// logBytes bounds how much of a log is shown.
const logBytes = 2000

// Log is the end of what it wrote.
func (p *Process) Log() string {
	data, _ := os.ReadFile(p.log)
	if len(data) > logBytes {
		data = data[len(data)-logBytes:]
	}
	return strings.TrimSpace(string(data))
}

// CPU is how long the process and all that it made have computed.
func (p *Process) CPU() time.Duration {
	root := p.cmd.Process.Pid
	var sum time.Duration
	for pid := range descendants(root) {
		if s, ok := stat(pid); ok {
			sum += s.cpu
		}
	}
	if s, ok := stat(root); ok {
		sum += s.cpu
	}
	for _, other := range p.beside {
		sum += other.CPU()
	}
	return sum
}

// processStat is what is wanted of /proc/PID/stat (proc(5)).
type processStat struct {
	parent int
	began  int64
	cpu    time.Duration // of its own and of children that it has waited for
}

// tick is the unit of times in /proc: USER_HZ is 100 on all platforms of Go.
const tick = 10 * time.Millisecond

func stat(pid int) (s processStat, ok bool) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return s, false
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 20 {
		return s, false
	}
	n := func(i int) int64 { v, _ := strconv.ParseInt(string(fields[i]), 10, 64); return v }
	return processStat{parent: int(n(1)), began: n(19), cpu: time.Duration(n(11)+n(12)+n(13)+n(14)) * tick}, true
}

// descendants are the processes below one, with when they began.
func descendants(root int) map[int]int64 {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	children := map[int][]int{}
	began := map[int]int64{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if s, ok := stat(pid); ok {
			children[s.parent] = append(children[s.parent], pid)
			began[pid] = s.began
		}
	}
	below := map[int]int64{}
	for open := children[root]; len(open) > 0; {
		pid := open[0]
		open = open[1:]
		if _, seen := below[pid]; !seen {
			below[pid] = began[pid]
			open = append(open, children[pid]...)
		}
	}
	return below
}

// setCores gives a thread those cores; 0 is the calling one.
func setCores(thread int, cores []int) error {
	var set unix.CPUSet
	for _, c := range cores {
		set.Set(c)
	}
	if err := unix.SchedSetaffinity(thread, &set); err != nil {
		return fmt.Errorf("run on cores %v: %w", cores, err)
	}
	return nil
}

// allowedCores are those that this process may use.
func allowedCores() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &set); err != nil {
		return nil, fmt.Errorf("which cores this process may use: %w", err)
	}
	var cores []int
	for c := range len(set) * 64 {
		if set.IsSet(c) {
			cores = append(cores, c)
		}
	}
	return cores, nil
}

// pinSelf gives all threads of this process those cores. A new thread has those of the one that made it.
func pinSelf(cores []int) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		if id, err := strconv.Atoi(t.Name()); err == nil {
			if err := setCores(id, cores); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// toolBytes bounds what a tool may write.
const toolBytes = 1 << 20

// run runs a tool to its end on those cores, and returns what it wrote and how long it computed. When the context ends the tool is ended.
func (s *starter) run(ctx context.Context, cores []int, dir string, argv []string) (out string, cpu time.Duration, err error) {
	var buf boundedBuffer
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &buf, &buf
	p, err := s.start(cores, dir, cmd)
	if err != nil {
		return "", 0, err
	}
	select {
	case <-p.gone:
	case <-ctx.Done():
		p.Stop()
		return buf.String(), 0, fmt.Errorf("%s: %w", filepath.Base(argv[0]), context.Cause(ctx))
	}
	s.forget(p)
	state := cmd.ProcessState
	cpu = state.UserTime() + state.SystemTime()
	if p.err != nil {
		return buf.String(), cpu, fmt.Errorf("%s: %w: %s", filepath.Base(argv[0]), p.err, lastLine(buf.String()))
	}
	return buf.String(), cpu, nil
}

func (s *starter) forget(p *Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, q := range s.processes {
		if q == p {
			s.processes = append(s.processes[:i], s.processes[i+1:]...)
			return
		}
	}
}

// boundedBuffer keeps the first toolBytes that it is given.
type boundedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Write(p[:min(len(p), max(0, toolBytes-b.b.Len()))])
	return len(p), nil
}

func (b *boundedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// coreTimes is what /proc/stat says of some cores together.
type coreTimes struct{ busy, steal time.Duration }

func timesOf(cores []int) (t coreTimes) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		for _, c := range cores {
			if len(fields) < 9 || fields[0] != "cpu"+strconv.Itoa(c) {
				continue
			}
			n := func(i int) time.Duration { v, _ := strconv.ParseInt(fields[i], 10, 64); return time.Duration(v) * tick }
			t.busy += n(1) + n(2) + n(3) + n(6) + n(7) // user, nice, system, irq, softirq
			t.steal += n(8)
		}
	}
	return t
}

// Memory is what the process and all that it made have in memory: their pages, those that several have divided among them (proc(5), Pss).
func (p *Process) Memory() (int64, error) {
	pids := []int{p.cmd.Process.Pid}
	for pid := range descendants(pids[0]) {
		pids = append(pids, pid)
	}
	var sum int64
	for _, other := range p.beside {
		n, err := other.Memory()
		if err != nil {
			return 0, err
		}
		sum += n
	}
	for _, pid := range pids {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
		if err != nil {
			return 0, fmt.Errorf("read the memory of a server: %w", err)
		}
		n, err := pss(string(data))
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// pss is the line of that name of a process's smaps_rollup, in bytes.
func pss(text string) (int64, error) {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "Pss:" && fields[2] == "kB" {
			n, err := strconv.ParseInt(fields[1], 10, 53)
			return n << 10, err
		}
	}
	return 0, errors.New("no Pss in what the kernel says of the memory of a server")
}
