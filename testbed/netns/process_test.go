//go:build linux

package netns

import (
	"bufio"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// started starts a shell inside and waits until it has said "ready" into its log.
func started(t testing.TB, n *Namespace, script string, o Start) (pid int, log string) {
	t.Helper()
	o.Log = filepath.Join(t.TempDir(), "log")
	pid, err := n.Start([]string{"sh", "-c", script}, o)
	ok(t, err)
	await(t, "it is ready", func() bool { return strings.Contains(read(t, o.Log), "ready") })
	return pid, o.Log
}

func read(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	ok(t, err)
	return string(text)
}

func TestDeleteLetsProcessesFinishAndKillsThoseThatWillNot(t *testing.T) {
	lab(t)
	polite := `trap 'echo bye; exit' TERM; echo ready; while :; do sleep 0.05; done`
	for _, c := range []struct {
		name, script    string
		paused          bool
		said            string // at last
		atLeast, atMost time.Duration
	}{
		{"polite", polite, false, "bye", 0, termGrace},
		{"paused", polite, true, "bye", 0, termGrace},
		{"stubborn", `trap '' TERM; echo ready; while :; do sleep 0.05; done`, false, "ready", termGrace, termGrace + killGrace},
		{"with children", `sh -c 'sleep 1000 & sleep 1000 & wait' & sleep 1000 & echo ready; wait`, false, "ready", 0, termGrace},
		{"a leaver of its parent", `setsid sh -c 'sleep 1000' & echo ready; exit`, false, "ready", 0, termGrace},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := made(t, "end-"+strings.Fields(c.name)[0])
			pid, log := started(t, n, c.script, Start{})
			if c.paused {
				ok(t, syscall.Kill(pid, syscall.SIGSTOP))
			}
			inside, err := n.PIDs()
			ok(t, err)
			began := time.Now()
			ok(t, n.Delete(within(t, 20*time.Second)))
			took := time.Since(began)
			if took < c.atLeast || took > c.atMost {
				t.Errorf("took %v", took)
			}
			if got := strings.TrimSpace(read(t, log)); !strings.HasSuffix(got, c.said) {
				t.Errorf("said %q", got)
			}
			for _, pid := range inside {
				if syscall.Kill(pid, 0) == nil && !zombie(pid) {
					t.Errorf("%d of %v runs on", pid, inside)
				}
			}
		})
	}
}

func TestDeleteThatIsCalledOffSaysWhatRunsOn(t *testing.T) {
	lab(t)
	n := made(t, "off")
	started(t, n, `trap '' TERM; echo ready; while :; do sleep 0.05; done`, Start{})
	if err := n.Delete(within(t, 300*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), n.Name) {
		t.Errorf("got %v", err)
	}
	if _, err := n.Links(); err != nil {
		t.Errorf("it is of no use any more: %v", err)
	}
	ok(t, n.Delete(within(t, 20*time.Second)))
}

func TestAProcessIsStartedInItsOwnSessionWithWhatItWasGiven(t *testing.T) {
	lab(t)
	n := made(t, "start")
	dir := t.TempDir()
	ok(t, os.WriteFile(filepath.Join(dir, "greet"), []byte("#!/bin/sh\necho \"$GREETING from $PWD\"; read x; echo \"read: $?\"; cut -d' ' -f6 /proc/$$/stat; echo ready; sleep 1000 & wait\n"), 0o755))
	t.Chdir(dir)
	log := filepath.Join(dir, "log")
	ok(t, os.WriteFile(log, []byte("before\n"), 0o644))
	ok(t, os.Mkdir("there", 0o755))
	pid, err := n.Start([]string{"./greet"}, Start{Dir: filepath.Join(dir, "there"), Log: log, Env: []string{"GREETING=hello"}, Name: "greeter"})
	ok(t, err)
	await(t, "it is ready", func() bool { return strings.Contains(read(t, log), "ready") })
	got := strings.Fields(read(t, log))
	want := strings.Fields("before hello from " + dir + "/there read: 1 " + strconv.Itoa(pid) + " ready")
	if !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	other, err := n.Start([]string{"sleep", "1000"}, Start{})
	ok(t, err)
	await(t, "the child has its program", func() bool { p, _ := n.Named("greeter"); return len(p) == 2 })
	named, err := n.Named("greeter")
	ok(t, err)
	if !slices.Contains(named, pid) || slices.Contains(named, other) {
		t.Errorf("named: %v; it is %d, the other %d", named, pid, other)
	}
	for _, argv := range [][]string{{}, {"no-such-program"}, {"./none"}} {
		if _, err := n.Start(argv, Start{}); err == nil || !strings.Contains(err.Error(), n.Name) {
			t.Errorf("%v: %v", argv, err)
		}
	}
	if _, err := n.Start([]string{"true"}, Start{Log: filepath.Join(dir, "none", "log")}); err == nil {
		t.Error("took a log that cannot be")
	}
}

func TestACommandRunsInsideAndIsKilledWithItsContext(t *testing.T) {
	lab(t)
	n := made(t, "command")
	ok(t, n.WriteResolv("nameserver 10.1.0.2\n"))
	if got := output(t, n, "ip", "-o", "link"); strings.Count(got, "\n") != 1 {
		t.Errorf("its links: %s", got)
	}
	// One that runs sees a resolv.conf that is written later.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cmd := n.Command(ctx, "sh", "-c", "while read x; do cat /etc/resolv.conf; done")
	in, err := cmd.StdinPipe()
	ok(t, err)
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	lines := bufio.NewReader(out)
	for _, want := range []string{"nameserver 10.1.0.2\n", "nameserver 10.1.0.3\n"} {
		ok(t, n.WriteResolv(want))
		in.Write([]byte("\n"))
		if got, err := lines.ReadString('\n'); got != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	if pids, err := n.PIDs(); err != nil || !slices.Contains(pids, cmd.Process.Pid) {
		t.Errorf("its process %d is not among %v: %v", cmd.Process.Pid, pids, err)
	}
	cancel()
	if err := cmd.Wait(); err == nil {
		t.Error("it ended well")
	}
	if _, err := os.Stat("/etc/resolv.conf"); err == nil && strings.Contains(read(t, "/etc/resolv.conf"), "10.1.0.3") {
		t.Error("the machine's resolv.conf was written")
	}
}
