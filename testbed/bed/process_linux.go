package bed

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/testbed/netns"
)

// process is one that runs on a host.
type process struct {
	pid     int
	program bool // it is the host's, or a child of that; false: a command that somebody runs
	paused  bool
}

// sessionFile, in a host's folder, has the number of the session that the host's program was started in: its processes are
// those of this session on this host. The kernel gives the number to nobody else while any of them is there
// (credentials(7)), and an environment or a command line can be overwritten, as nginx does.
const sessionFile = "session"

// session is the one that a host's program was started in; 0: none was.
func session(dir, host string) int {
	data, err := os.ReadFile(filepath.Join(dir, hostsDir, host, sessionFile))
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return n
}

// running are the processes of a bed by their hosts. The kernel is asked which is where; numbers that were written down
// could be another's by now. One walk of /proc serves all hosts.
func running(bed string) (map[string][]process, error) {
	names, err := netns.Names(prefix(bed))
	if err != nil {
		return nil, err
	}
	hosts := map[uint64]string{} // by the namespace's inode, all of nsfs
	for _, n := range names {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join("/run/netns", n), &st); err == nil {
			hosts[st.Ino] = strings.TrimPrefix(n, prefix(bed))
		}
	}
	dir := folder(bed)
	sessions := map[string]int{}
	for _, host := range hosts {
		sessions[host] = session(dir, host)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	found := map[string][]process{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		var st unix.Stat_t
		at := filepath.Join("/proc", e.Name())
		if unix.Stat(filepath.Join(at, "ns/net"), &st) != nil {
			continue // it has ended
		}
		if host, ok := hosts[st.Ino]; ok {
			found[host] = append(found[host], look(at, pid, sessions[host]))
		}
	}
	return found, nil
}

// look is a process as proc(5) has it: its name, which may have anything in it, is in brackets, then come its state, its
// parent, its group and its session.
func look(at string, pid, session int) process {
	p := process{pid: pid}
	stat, _ := os.ReadFile(filepath.Join(at, "stat"))
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) > 3 {
		p.paused = fields[0] == "T"
		p.program = fields[3] == strconv.Itoa(session)
	}
	return p
}

// memory is what a process has of the machine's memory, in bytes: what it shares with n others counts as an nth (Pss of
// proc_pid_smaps(5)).
func memory(pid int) int64 {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for line := range strings.Lines(string(data)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "Pss: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	return 0
}

// programs are the processes of one host's program.
func programs(bed, host string) ([]process, error) {
	all, err := running(bed)
	if err != nil {
		return nil, err
	}
	var list []process
	for _, p := range all[host] {
		if p.program {
			list = append(list, p)
		}
	}
	return list, nil
}

// signal sends a signal to a host's program and says how many processes heard it.
func signal(bed, host string, s unix.Signal) (int, error) {
	list, err := programs(bed, host)
	if err != nil {
		return 0, err
	}
	heard := 0
	for _, p := range list {
		// A descriptor first, then a look: so the number cannot become another's in between (pidfd_open(2)).
		fd, err := unix.PidfdOpen(p.pid, 0)
		if err != nil {
			continue
		}
		if inside, err := isOn(bed, host, p.pid); err == nil && inside && unix.PidfdSendSignal(fd, s, nil, 0) == nil {
			heard++
		}
		unix.Close(fd)
	}
	return heard, nil
}

// endTick is how often a process that is to end is looked for.
const endTick = 20 * time.Millisecond

// awaitEnd waits until a host's program has ended.
func awaitEnd(ctx context.Context, bed, host string) error {
	for {
		list, err := programs(bed, host)
		if err != nil || len(list) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: its program (process %d) does not end: %w", host, list[0].pid, ctx.Err())
		case <-time.After(endTick):
		}
	}
}

// end kills everything that runs on a bed's hosts, and waits until it is gone: the namespaces have nothing to wait for then.
func end(ctx context.Context, bed string) error {
	for {
		all, err := running(bed)
		if err != nil || len(all) == 0 {
			return err
		}
		for host, list := range all {
			for _, p := range list {
				fd, err := unix.PidfdOpen(p.pid, 0)
				if err != nil {
					continue
				}
				if inside, err := isOn(bed, host, p.pid); err == nil && inside {
					unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
				}
				unix.Close(fd)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end the processes of testbed %s: %w", bed, ctx.Err())
		case <-time.After(endTick):
		}
	}
}

// isOn says whether a process is on a host.
func isOn(bed, host string, pid int) (bool, error) {
	var name, process unix.Stat_t
	if err := unix.Stat(filepath.Join("/run/netns", space(bed, host)), &name); err != nil {
		return false, err
	}
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &process); err != nil {
		return false, err
	}
	return name.Ino == process.Ino, nil
}
