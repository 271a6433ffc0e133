// Package uml runs one command on another kernel: Debian's user-mode-linux, a Linux kernel that is an ordinary process.
//
// It is how the laboratory checks on a machine without sch_netem what only netem does: the guest has netem, veth, TUN, policy
// routing and namespaces of its own, and boots in about a second. The guest sees the files of the machine, so it runs the
// machine's own programs and the caller's binaries, and needs neither an image nor root.
//
// It is not a sandbox for hostile programs (the guest could mount the machine's files again, writable), it has one processor
// and no network but what is made inside, and whatever is written outside Config.Dir is in the guest's memory and goes with it.
//
// When things break: a guest that hangs is ended at the timeout, one that panics or cannot boot is an error with the last
// lines of its boot messages, and one whose caller is killed dies with it.
package uml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is one run.
type Config struct {
	Memory  int           // of the guest, in MiB, 64…8192; 0: 256. Taken as it is used; files that the guest writes outside Dir are in it
	Command []string      // program and arguments. A name without a slash is looked up in the guest's PATH, /usr/local/sbin … /bin
	Env     []string      // key=value. Beside it the command has PATH, HOME, TERM and PERIGEE_UML=1, and nothing of the caller's
	Dir     string        // the one folder whose writes stay, at the same path inside, and where the command begins; "": none, and it begins in /
	Output  io.Writer     // what the command writes to stdout and stderr, in order, as it comes; nil: nobody's
	Boot    io.Writer     // what the guest's kernel and start say; nil: only its end, in an error
	Modules []string      // kernel modules to load first, such as sch_netem; one that is missing is an error. IPv6 is there, and most others load by themselves
	Timeout time.Duration // from start to power off; 0: five minutes
}

const (
	leastMemory   = 64   // MiB; below, Debian's kernel does not come up
	mostMemory    = 8192 // MiB
	usualMemory   = 256
	usualTimeout  = 5 * time.Minute
	mostArguments = 1000     // of a command, and of an environment
	mostBootKept  = 16 << 10 // bytes of the last boot messages, for errors
)

// check says all that is wrong with a configuration, at once.
func (c Config) check() error {
	var faults []error
	if c.Memory != 0 && (c.Memory < leastMemory || c.Memory > mostMemory) {
		faults = append(faults, fmt.Errorf("memory: %d MiB are not within %d…%d", c.Memory, leastMemory, mostMemory))
	}
	if len(c.Command) == 0 || c.Command[0] == "" {
		faults = append(faults, errors.New("command: there is none"))
	}
	if len(c.Command) > mostArguments || len(c.Env) > mostArguments {
		faults = append(faults, fmt.Errorf("command or environment: more than %d words", mostArguments))
	}
	for _, word := range append(append([]string{}, c.Command...), c.Env...) {
		if strings.ContainsRune(word, 0) {
			faults = append(faults, fmt.Errorf("command or environment: %q has a zero byte", word))
		}
	}
	for _, pair := range c.Env {
		if key, _, ok := strings.Cut(pair, "="); !ok || !plain(key) {
			faults = append(faults, fmt.Errorf("environment: %q is not NAME=VALUE", pair))
		}
	}
	for _, m := range c.Modules {
		if !plain(m) {
			faults = append(faults, fmt.Errorf("modules: %q is not the name of one", m))
		}
	}
	// mount(8) takes a comma for the end of an option.
	if c.Dir != "" && (!filepath.IsAbs(c.Dir) || filepath.Clean(c.Dir) != c.Dir || c.Dir == "/" || strings.ContainsAny(c.Dir, ",\n\x00\\")) {
		faults = append(faults, fmt.Errorf("dir: %q is not a clean absolute path without comma, backslash and newline", c.Dir))
	}
	if c.Timeout < 0 {
		faults = append(faults, fmt.Errorf("timeout: %v", c.Timeout))
	}
	return errors.Join(faults...)
}

// plain says whether a word is letters, digits, _ and -, not beginning with -.
func plain(word string) bool {
	for i, r := range word {
		if r != '_' && !('a' <= r && r <= 'z') && !('A' <= r && r <= 'Z') && !('0' <= r && r <= '9') && (r != '-' || i == 0) {
			return false
		}
	}
	return word != ""
}

// arguments are the kernel's command line (see linux.uml --help). control is a folder of this run alone.
//
// ssl0 is the guest's first serial line: what is written there comes out of descriptor 3 of the kernel's process, and nothing
// else does, so the command's output needs no telling apart from boot messages, which go to descriptor 1.
func (c Config) arguments(control string) []string {
	memory := c.Memory
	if memory == 0 {
		memory = usualMemory
	}
	return []string{
		fmt.Sprintf("mem=%dM", memory),
		"umid=guest", "uml_dir=" + control + "/", // or it would be ~/.uml
		"root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
		"init=" + filepath.Join(control, "init"),
		"con=null", "con0=null,fd:1", "ssl=null", "ssl0=null,fd:3",
		"panic=-1", "quiet", // a panic ends the process
	}
}

// script is the guest's first process, for /bin/sh: it lays a writable root in memory over the machine's files, which are read
// only, puts Dir into it, runs the command with the first serial line as its output, says there how it ended, and powers off.
//
// The end of the command is said on the line that carries its output, so that it can only be read after all of that.
func (c Config) script(end string) string {
	var b strings.Builder
	b.WriteString(`#!/bin/sh
# Made by testbed/uml for one run. Each step that fails ends the guest.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
off() { sync; echo o >/proc/sysrq-trigger; while :; do sleep 1; done; }
fail() { echo "perigee: the guest cannot start: $*"; off; }

mount -t proc proc /proc || fail "no /proc"
mount -t tmpfs -o size=90% tmpfs /mnt || fail "no tmpfs on /mnt"
modules=/usr/lib/uml/modules/$(uname -r)
[ -d "$modules" ] || fail "no $modules"

# modprobe looks under lib/modules of a folder only.
mkdir -p /mnt/lib/modules /mnt/upper /mnt/work /mnt/root
ln -s "$modules" /mnt/lib/modules/ && modprobe -d /mnt overlay || fail "no module overlay"
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root || fail "no writable root"
root=/mnt/root
mount -t proc proc $root/proc || fail "no /proc in the root"
mount -t sysfs sysfs $root/sys || fail "no /sys"
mount -t devtmpfs devtmpfs $root/dev || fail "no /dev"
mkdir -p $root/dev/pts $root/dev/shm $root/dev/net $root/run
ln -s /proc/self/fd $root/dev/fd
# Whoever opens it has its module loaded.
mknod $root/dev/net/tun c 10 200
mount -t devpts -o ptmxmode=666 devpts $root/dev/pts || fail "no /dev/pts"
mount -t tmpfs tmpfs $root/dev/shm || fail "no /dev/shm"
# What the machine's own say of namespaces, sockets and testbeds is not so in here.
mount -t tmpfs tmpfs $root/run || fail "no /run"
mkdir -p $root/run/lock $root/run/netns
mkdir -p $root/var/tmp && mount -t tmpfs tmpfs $root/var/tmp || fail "no /var/tmp"
rm -rf $root/etc/netns
# From here on the kernel finds its modules by itself.
mkdir -p $root/lib/modules && { [ -e "$root/lib/modules/$(uname -r)" ] || ln -s "$modules" $root/lib/modules/; } || fail "no /lib/modules"
`)
	if c.Dir != "" {
		dir := quote(c.Dir)
		fmt.Fprintf(&b, "mkdir -p $root%s && mount -t hostfs hostfs $root%s -o %s || fail \"no folder to write to\"\n", dir, dir, dir)
	}
	b.WriteString(`
cd $root && mkdir -p .machine && pivot_root . .machine || fail "no change of root"
umount -l /.machine
mount --make-rshared /
modprobe ipv6 || fail "no module ipv6" # by itself it loads only at the first socket, and its sysctls and rules are asked for before
ip link set lo up 2>/dev/null
`)
	for _, m := range c.Modules {
		fmt.Fprintf(&b, "modprobe %s || fail \"no module %s\"\n", m, m)
	}
	start := "/"
	if c.Dir != "" {
		start = c.Dir
	}
	fmt.Fprintf(&b, `
stty raw -echo </dev/ttyS0 || fail "no serial line"
cd %s || fail "no folder to start in"
env -i PATH="$PATH" HOME=/root TERM=dumb PERIGEE_UML=1 \
  %s </dev/null >/dev/ttyS0 2>&1
code=$?
sync
printf '%%s%%d\n' %s $code >/dev/ttyS0
off
`, quote(start), quoteAll(append(append([]string{}, c.Env...), c.Command...)), quote(end))
	return b.String()
}

// quote makes a word of the shell that means just the text.
func quote(text string) string {
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

func quoteAll(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = quote(w)
	}
	return strings.Join(quoted, " ")
}

// A reader of the serial line: what comes before the end mark is the command's, what comes between it and a newline is its
// exit code, and what comes after is nobody's. It holds back no more than the length of the mark.
type line struct {
	end  string
	to   io.Writer
	held []byte
	code int  // valid when over
	over bool // the whole mark and its code were read
	mark bool // the mark was read
}

// mostCode is the longest exit code with its newline: 255\n.
const mostCode = 4

// Write takes what came. An error is the writer's, or that the code after the mark is none.
func (l *line) Write(p []byte) (int, error) {
	if l.over {
		return len(p), nil
	}
	l.held = append(l.held, p...)
	if !l.mark {
		at := bytes.Index(l.held, []byte(l.end))
		l.mark = at >= 0
		ours := at
		if at < 0 {
			ours = len(l.held) - overlap(l.held, l.end)
		}
		if _, err := l.to.Write(l.held[:ours]); err != nil {
			return 0, fmt.Errorf("hand on the command's output: %w", err)
		}
		l.held = l.held[ours:]
		if l.mark {
			l.held = l.held[len(l.end):]
		}
	}
	if !l.mark {
		l.held = append([]byte{}, l.held...) // lets go of what was handed on
		return len(p), nil
	}
	text, _, complete := bytes.Cut(l.held, []byte("\n"))
	if !complete && len(text) < mostCode {
		return len(p), nil
	}
	code, err := strconv.Atoi(string(text))
	if !complete || len(text) >= mostCode || err != nil || code < 0 || code > 255 {
		return 0, fmt.Errorf("read the command's exit code: %q is none", text)
	}
	l.code, l.over, l.held = code, true, nil
	return len(p), nil
}

// Close hands on what was held back, where no mark came.
func (l *line) Close() error {
	if l.mark {
		return nil
	}
	_, err := l.to.Write(l.held)
	l.held = nil
	return err
}

// overlap is the length of the longest end of p that is a beginning of mark.
func overlap(p []byte, mark string) int {
	for n := min(len(p), len(mark)-1); n > 0; n-- {
		if string(p[len(p)-n:]) == mark[:n] {
			return n
		}
	}
	return 0
}

// tail is a writer that keeps the last bytes.
type tail struct {
	kept []byte
	most int
}

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if len(t.kept) > 2*t.most {
		t.kept = append(t.kept[:0], t.kept[len(t.kept)-t.most:]...)
	}
	return len(p), nil
}

// words are the last lines that say something, at most so many; after a panic the first so many from there, for what follows is
// where the kernel was.
func (t *tail) words(most int) string {
	var said []string
	for l := range strings.Lines(string(t.kept)) {
		if l = strings.TrimSpace(l); l != "" {
			said = append(said, l)
		}
	}
	from := max(0, len(said)-most)
	if at := slices.IndexFunc(said, func(l string) bool { return strings.Contains(l, "Kernel panic") }); at >= 0 {
		from = at
	}
	return strings.Join(said[from:min(from+most, len(said))], "; ")
}
