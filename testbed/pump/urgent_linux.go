package pump

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// urge has the system run this process before others, as well as it lets us.
//
// All threads become real-time, not just the one that carries packets: Go's scheduler spins for locks which its other
// threads hold, and yields. A real-time thread yields to its equals only (sched_yield(2)), so it would spin until
// ordinary threads were let in by the kernel's guard against that, a second later. Round robin lets them in too when
// the pump has more to do than one core can.
func urge() Urgency {
	for _, u := range []struct {
		as   Urgency
		attr unix.SchedAttr
	}{
		{RealTime, unix.SchedAttr{Policy: unix.SCHED_RR, Priority: 1}},
		{Nice, unix.SchedAttr{Nice: -20}},
	} {
		if allThreads(u.attr) {
			return u.as
		}
	}
	return Ordinary
}

// allThreads sets all threads. Those they start later inherit it; one started meanwhile by a thread not yet set is
// found by looking again.
func allThreads(attr unix.SchedAttr) bool {
	done := map[int]bool{}
	for {
		before := len(done)
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return false
		}
		for _, task := range tasks {
			id, err := strconv.Atoi(task.Name())
			if err != nil || done[id] {
				continue
			}
			if err := unix.SchedSetAttr(id, &attr, 0); err != nil && err != unix.ESRCH {
				return false
			}
			done[id] = true
		}
		if len(done) == before {
			return true
		}
	}
}
