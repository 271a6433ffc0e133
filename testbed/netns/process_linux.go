package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	termGrace  = 2 * time.Second        // from SIGTERM to SIGKILL
	killGrace  = 5 * time.Second        // from SIGKILL to giving up: what hangs in the kernel does not end
	deadlineIn = 100 * time.Millisecond // how soon an end of the context is noticed
	pipeGrace  = time.Second            // how long Wait of a Command waits for pipes that a grandchild has
)

// processName is the variable in a process's environment that says which of a testbed's it is.
const processName = "PERIGEE_TESTBED_PROCESS"

// PIDs are the processes inside, in order, this one never among them. A process is where its first thread is.
func (n *Namespace) PIDs() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, n.fault("list its processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && pid != os.Getpid() && n.has(pid) {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// has says whether a process is inside. One that is dead and not reaped is nowhere.
func (n *Namespace) has(pid int) bool {
	id, err := identify(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err == nil && id == n.id
}

// Named are the processes inside that were started by that Start.Name, and their children.
func (n *Namespace) Named(name string) ([]int, error) {
	pids, err := n.PIDs()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(pids, func(pid int) bool {
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) // unreadable: ended meanwhile
		return !slices.ContainsFunc(bytes.Split(env, []byte{0}), func(kv []byte) bool { return string(kv) == processName+"="+name })
	}), nil
}

// Command is a command that runs inside by `ip netns exec`: it sees the namespace's resolv.conf. Its process is argv's
// own, for ip becomes it. The context's end kills it. Until ip is inside, a Delete does not see it: who runs one waits for it.
func (n *Namespace) Command(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", n.Name}, argv...)...)
	cmd.WaitDelay = pipeGrace
	return cmd
}

// Start says how a process is started.
type Start struct {
	Dir  string   // where it runs; "": here
	Log  string   // a file for what it says, appended; "": nowhere
	Env  []string // NAME=value, besides ours
	Name string   // what Named finds it by; "": nothing
}

// Start starts a process inside that outlives this one: its own session, no input. It is reaped when it ends while this
// one lives. That the program is there is checked; how it fares is for the caller to see.
func (n *Namespace) Start(argv []string, o Start) (pid int, err error) {
	if len(argv) == 0 {
		return 0, n.fault("start: nothing to start")
	}
	// ip would say so in the log only.
	program, err := exec.LookPath(argv[0])
	if err == nil {
		program, err = filepath.Abs(program) // before Dir is another
	}
	if err != nil {
		return 0, n.fault("start %s: %w", argv[0], err)
	}
	cmd := exec.Command("ip", append([]string{"netns", "exec", n.Name, program}, argv[1:]...)...)
	cmd.Dir = o.Dir
	cmd.Env = append(os.Environ(), o.Env...)
	if o.Name != "" {
		cmd.Env = append(cmd.Env, processName+"="+o.Name)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if o.Log != "" {
		log, err := os.OpenFile(o.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return 0, n.fault("start %s: %w", argv[0], err)
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
	}
	// Born inside: ip goes there anyway, but a Delete meanwhile would not see what is still on its way.
	if err := n.inside(func(*thread) error { return cmd.Start() }); err != nil {
		return 0, n.fault("start %s: %w", argv[0], err)
	}
	reaped := make(chan struct{})
	n.mu.Lock()
	n.began = append(slices.DeleteFunc(n.began, isClosed), reaped)
	n.mu.Unlock()
	go func() { // ends with the process, which Delete ends and waits for
		defer close(reaped)
		cmd.Wait()
	}()
	return cmd.Process.Pid, nil
}

// endProcesses ends all processes inside, also those that appear meanwhile, and waits until they are gone.
func (n *Namespace) endProcesses(ctx context.Context) error {
	began := time.Now()
	warned := map[int]bool{}
	for empty := 0; ; {
		pids, err := n.PIDs()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			// A child that is born and a parent that dies while the list is read may both be missing from it.
			if empty++; empty > 1 || len(warned) == 0 {
				break
			}
			continue
		}
		empty = 0
		past := time.Since(began)
		switch {
		case ctx.Err() != nil:
			return n.fault("end its %d processes (the first is %d): %w", len(pids), pids[0], ctx.Err())
		case past > termGrace+killGrace:
			return n.fault("end its processes: %d still runs %v after SIGKILL", pids[0], killGrace)
		}
		hard := past >= termGrace
		fds := n.signal(pids, hard, warned)
		wait := deadlineIn
		if !hard {
			wait = min(wait, termGrace-past)
		}
		awaitEnd(fds, wait)
	}
	return n.awaitReaped(ctx)
}

// signal tells processes to end and returns a descriptor of each that is readable when it has. A number may be
// another's by now, so who gets the signal is decided by the descriptor (pidfd_open(2)), after one more look.
func (n *Namespace) signal(pids []int, hard bool, warned map[int]bool) []unix.PollFd {
	var fds []unix.PollFd
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // ended
		}
		if !n.has(pid) {
			unix.Close(fd)
			continue
		}
		switch {
		case hard:
			warned[pid] = true
			unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		case !warned[pid]:
			warned[pid] = true
			unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0)
			unix.PidfdSendSignal(fd, unix.SIGCONT, nil, 0) // one that is paused hears it only then
		}
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	return fds
}

// awaitEnd waits until all the processes have ended, at most so long, and closes the descriptors.
func awaitEnd(fds []unix.PollFd, most time.Duration) {
	end := time.Now().Add(most)
	waiting := slices.Clone(fds)
	for len(waiting) > 0 {
		left := time.Until(end)
		if left <= 0 {
			break
		}
		if _, err := unix.Poll(waiting, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			break
		}
		waiting = slices.DeleteFunc(waiting, func(p unix.PollFd) bool { return p.Revents != 0 })
	}
	for _, p := range fds {
		unix.Close(int(p.Fd))
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// awaitReaped waits until this process has reaped those that it started itself: they are dead, so it is about to.
func (n *Namespace) awaitReaped(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killGrace)
	defer cancel()
	n.mu.RLock()
	began := slices.Clone(n.began)
	n.mu.RUnlock()
	for _, reaped := range began {
		select {
		case <-reaped:
		case <-ctx.Done():
			return n.fault("a process that was started inside runs on elsewhere")
		}
	}
	return nil
}
