package uml

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrTimeout is what a guest meets that was not off in time.
var ErrTimeout = errors.New("the guest was not off in time")

// grace is how long a guest has to power off after its command ended, before it is ended: there is nothing left to lose then.
const grace = 5 * time.Second

// Missing says in one line what this machine lacks to run a guest, and how to get it; "": nothing.
func Missing() string {
	if runtime.GOARCH != "amd64" {
		return "user-mode-linux is only made for amd64"
	}
	if _, err := exec.LookPath("linux.uml"); err != nil {
		return "linux.uml is missing, the kernel that runs as a process: apt-get install -y --no-install-recommends user-mode-linux kmod"
	}
	for _, program := range []string{"modprobe", "/usr/sbin/modprobe", "/sbin/modprobe"} {
		if _, err := exec.LookPath(program); err == nil {
			return ""
		}
	}
	return "modprobe is missing, which loads the guest's modules: apt-get install -y --no-install-recommends kmod"
}

// Unfit says in one line why no guest comes up on this machine's processor, which nothing that can be installed mends; "": it is not known
// not to. Debian's kernel of 2022 has room for 2,696 bytes of a process's extended registers, ptrace(2) hands over all or none, and with AMX
// (Intel since 2023) they are some 11,000: the guest's first process ends by a fault. So there, and only there, a guest is tried.
func Unfit(ctx context.Context) string {
	flags, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !bytes.Contains(flags, []byte(" amx_tile")) || Missing() != "" {
		return ""
	}
	if _, err := Run(ctx, Config{Command: []string{"true"}, Timeout: time.Minute}); err != nil && strings.Contains(err.Error(), "Kernel panic") {
		return "user-mode-linux does not come up on a processor with AMX, whose registers are more than that kernel has room for"
	}
	return ""
}

// Run boots a guest, runs the command in it, powers it off, and returns the command's exit code as a shell has it: 126 where it
// cannot be run, 127 where it is not found, 128 and the signal where one killed it. An error means that the command did not run
// to its end: what is missing, that the guest did not come up (with what it said last), ErrTimeout, or ctx's. Nothing of the
// guest is left when Run returns.
func Run(ctx context.Context, c Config) (exit int, err error) {
	if err := c.check(); err != nil {
		return 0, fmt.Errorf("run in user-mode-linux: %w", err)
	}
	if missing := Missing(); missing != "" {
		return 0, errors.New(missing)
	}
	timeout := c.Timeout
	if timeout == 0 {
		timeout = usualTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w: it had %v", ErrTimeout, timeout))
	defer cancel()

	control, err := os.MkdirTemp("", "perigee-uml-")
	if err != nil {
		return 0, fmt.Errorf("make the guest's folder: %w", err)
	}
	defer os.RemoveAll(control)
	end := "perigee-uml " + rand.Text() + " exit "
	if err := os.WriteFile(filepath.Join(control, "init"), []byte(c.script(end)), 0o755); err != nil {
		return 0, fmt.Errorf("write the guest's first program: %w", err)
	}
	memory, err := memoryFolder(c, control)
	if err != nil {
		return 0, err
	}

	boot := &tail{most: mostBootKept}
	serial := &line{end: end, to: io.Discard}
	if c.Output != nil {
		serial.to = c.Output
	}
	err = guest(ctx, c, control, memory, boot, serial)
	if closed := serial.Close(); err == nil {
		err = closed
	}
	switch {
	case serial.over:
		return serial.code, nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil:
		err = errors.New("it ended before its command did")
	}
	return 0, fmt.Errorf("run %s in user-mode-linux: %w; it last said: %s", c.Command[0], err, boot.words(5))
}

// guest runs the kernel's process until it ends, or until the grace after the command's end is over, or ctx is.
func guest(ctx context.Context, c Config, control, memory string, boot *tail, serial *line) error {
	fromGuest, toUs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make the guest's serial line: %w", err)
	}
	defer fromGuest.Close()
	said := io.Writer(boot)
	if c.Boot != nil {
		said = io.MultiWriter(boot, c.Boot)
	}
	kernel := exec.Command("linux.uml", c.arguments(control)...)
	kernel.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + control, "TMPDIR=" + memory}
	kernel.Dir = control
	kernel.Stdout, kernel.Stderr = said, said
	kernel.ExtraFiles = []*os.File{toUs}
	kernel.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = kernel.Start()
	toUs.Close()
	if err != nil {
		return fmt.Errorf("start linux.uml: %w", err)
	}
	// Each process of the guest is one of the machine too, and all are of one group.
	group := kernel.Process.Pid
	kill := func() { syscall.Kill(-group, syscall.SIGKILL) }
	release, err := keep(group, control)
	if err != nil {
		kill()
		kernel.Wait()
		return err
	}
	defer release()

	off := make(chan struct{})    // the command has ended
	broken := make(chan struct{}) // nobody takes its output any more
	read := make(chan error, 1)
	go func() {
		_, err := io.Copy(&until{serial, off}, fromGuest)
		if err != nil {
			close(broken)
		}
		read <- err
	}()
	ended := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-ended:
		case <-broken:
		case <-ctx.Done():
		case <-off:
			select {
			case <-ended:
			case <-ctx.Done():
			case <-time.After(grace):
			}
		}
		kill()
	}()
	// Not yet waited for, it keeps its number, so that the group we kill cannot be another's.
	for {
		if err := unix.Waitid(unix.P_PID, group, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			break
		}
	}
	close(ended)
	<-watched
	err = kernel.Wait()
	if failed := <-read; failed != nil {
		return failed
	}
	if err != nil {
		return fmt.Errorf("linux.uml: %w", err)
	}
	return nil
}

// keep has the guest ended, and its folder removed, when this process is killed: linux.uml does not notice, and the death of
// its first process leaves others behind. release ends the keeper. It has a session of its own, so that a Ctrl-C is not for it.
func keep(group int, control string) (release func(), err error) {
	keeper := exec.Command("/bin/sh", "-c", `read never; kill -s KILL -- "-$1"; rm -rf -- "$2"`, "keeper", strconv.Itoa(group), control)
	keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	ours, err := keeper.StdinPipe() // its other end closes with us
	if err == nil {
		err = keeper.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start the guest's keeper: %w", err)
	}
	return func() {
		keeper.Process.Kill()
		keeper.Wait()
		ours.Close()
	}, nil
}

// until closes off when the line has said how the command ended.
type until struct {
	*line
	off chan struct{}
}

func (u *until) Write(p []byte) (int, error) {
	before := u.over
	n, err := u.line.Write(p)
	if u.over && !before {
		close(u.off)
	}
	return n, err
}

// memoryFolder is where the guest's memory is, a file without a name: /dev/shm where that has room, else this run's folder. A
// guest whose /dev/shm is full dies of SIGBUS, and containers are often given 64 MB there.
func memoryFolder(c Config, control string) (string, error) {
	need := c.Memory
	if need == 0 {
		need = usualMemory
	}
	const shm = "/dev/shm"
	var room unix.Statfs_t
	if err := unix.Statfs(shm, &room); err == nil && int64(room.Bavail)*int64(room.Bsize)>>20 >= int64(need) && room.Flags&unix.ST_NOEXEC == 0 {
		return shm, nil
	}
	if err := unix.Statfs(control, &room); err != nil {
		return "", fmt.Errorf("look for room for the guest's memory: %w", err)
	}
	if have := int64(room.Bavail) * int64(room.Bsize) >> 20; have < int64(need) {
		return "", fmt.Errorf("neither /dev/shm nor %s has %d MiB free for the guest's memory", control, need)
	}
	return control, nil
}
