package bed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/cluster/file"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/demo"
	"github.com/perigee-net/perigee/testbed/netns"
	"github.com/perigee-net/perigee/testbed/wan"
)

const (
	// upTime bounds the building of a bed, ten times what the largest takes on two cores.
	upTime = 10 * time.Minute
	// undoTime bounds the taking down of one that could not be built.
	undoTime = 2 * time.Minute
	// again is how often something is looked at that is waited for.
	again = 50 * time.Millisecond
	// askTime bounds one question to a node.
	askTime = 5 * time.Second
	// joinsAtOnce is how many nodes join at a time: the control port closes the connections of strangers beyond its bound.
	joinsAtOnce = 8
	// maxSocketPath is how long the path of a unix socket may be, in bytes (unix(7)).
	maxSocketPath = 107
)

// Up builds a bed and returns when every router knows all sites, every node is a member and runs what was applied, and
// health checks have found the targets healthy. What a crashed run of the same name left is deleted first. ErrUp is in
// the error if one is up. On error nothing is left; the error tells what a program that ended said last.
func Up(ctx context.Context, c Config) (*Bed, error) {
	if c.World == nil {
		return nil, errors.New("bring up a testbed: no world")
	}
	name := c.World.Name
	fail := func(err error) (*Bed, error) { return nil, fmt.Errorf("bring up testbed %s: %w", name, err) }
	if err := checkName(name); err != nil {
		return fail(err)
	}
	if lacks := Missing(c.World); len(lacks) > 0 {
		return fail(lack(lacks))
	}
	primeIPv6()
	kind, err := wanKind(c.WAN)
	if err != nil {
		return fail(err)
	}
	if lacks := missing(c.World, kind, systemFolders()); len(lacks) > 0 {
		return fail(lack(lacks))
	}
	b := &Bed{name: name, dir: c.Dir, spaces: map[string]*netns.Namespace{}}
	if b.dir == "" {
		b.dir = filepath.Join(Root, name)
	}
	if b.dir, err = filepath.Abs(b.dir); err != nil {
		return fail(err)
	}
	if err := socketsFit(c.World, b); err != nil {
		return fail(err)
	}
	program, err := exec.LookPath(c.Program)
	if err == nil {
		program, err = filepath.Abs(program)
	}
	if err != nil {
		return fail(fmt.Errorf("the perigee binary: %w", err))
	}
	release, err := claim(ctx, name)
	if err != nil {
		return fail(err)
	}
	defer release()
	say := c.Say
	if say == nil {
		say = func(string) {}
	}
	if err := clean(ctx, name, say); err != nil {
		return fail(err)
	}
	b.state = state{
		World: c.World, WAN: kind, Program: program, Drain: c.Drain, State: building, Began: time.Now(), Keep: c.Keep,
	}
	if b.state.Drain == 0 {
		b.state.Drain = DrainTime
	}
	if err := settle(name, b.dir, b.state); err != nil {
		return fail(err)
	}
	bounded, cancel := context.WithTimeout(ctx, upTime)
	defer cancel()
	if err := b.build(bounded, c.Apply, say); err != nil {
		err = b.blame(err)
		b.Close()
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		_, err = fail(errors.Join(err, down(undo, name, nil, false)))
		return nil, err
	}
	return b, nil
}

// lack is the error of a machine that lacks something.
func lack(list []Need) error {
	var lines []string
	for _, n := range list {
		lines = append(lines, n.String())
	}
	return errors.New(strings.Join(lines, "\n"))
}

// primeIPv6 makes the kernel load IPv6 where that is a module: before it has, there are no settings and no rules of it.
func primeIPv6() {
	if fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
		unix.Close(fd)
	}
}

func wanKind(asked string) (string, error) {
	switch asked {
	case Userspace:
		return asked, nil
	case "", Netem:
		has, err := netns.HasNetem()
		switch {
		case err != nil:
			return "", err
		case has:
			return Netem, nil
		case asked == "":
			return Userspace, nil
		}
		return "", fmt.Errorf("the kernel has no netem: load sch_netem, or leave the choice of links open, or choose %s", Userspace)
	}
	return "", fmt.Errorf("links are %s or %s, not %q", Netem, Userspace, asked)
}

// socketsFit says whether the bed's folder is short enough for the sockets in it.
func socketsFit(w *wan.World, b *Bed) error {
	longest := filepath.Join(b.dir, pumpSocket)
	for _, s := range w.Sites {
		longest = longer(longest, filepath.Join(b.at(s.Router()), "bird.ctl"))
	}
	for _, h := range hostsOf(w, wan.Node) {
		longest = longer(longest, filepath.Join(b.Data(h.Name), api.Socket))
	}
	if len(longest) > maxSocketPath {
		return fmt.Errorf("%s is too long for a unix socket: choose a shorter folder", longest)
	}
	return nil
}

func longer(a, b string) string {
	if len(b) > len(a) {
		return b
	}
	return a
}

// clean takes down what a run left that crashed, and refuses to take down a bed that is up.
func clean(ctx context.Context, name string, say func(string)) error {
	names, err := netns.Names(prefix(name))
	if err != nil {
		return err
	}
	s, err := readState(folder(name))
	if errors.Is(err, fs.ErrNotExist) && len(names) == 0 {
		if _, err := os.Lstat(filepath.Join(Root, name)); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	if err == nil && s.State == isUp && sound(s) == nil {
		return fmt.Errorf("%w, in %s: take it down first", ErrUp, folder(name))
	}
	if s.State != kept {
		say("deleting what is left of a testbed " + name + " that is not whole")
	}
	return down(ctx, name, nil, false)
}

// build makes all of it, from the namespaces to the cluster.
func (b *Bed) build(ctx context.Context, apply bool, say func(string)) error {
	w := b.now().World
	began := time.Now()
	tell := func(format string, args ...any) {
		say(fmt.Sprintf("%5.1fs  ", time.Since(began).Seconds()) + fmt.Sprintf(format, args...))
	}
	tell("%d sites, %d hosts, %d links by %s, in %s", len(w.Sites), len(w.Hosts), len(w.Links), wanWords(b.now().WAN), b.dir)
	if memory, ok := available(); ok && memory < need(w) {
		tell("this machine has %d MB of memory to spare, and this testbed takes about %d MB: it may be slow, or fail", memory>>20, need(w)>>20)
	}
	if err := os.CopyFS(b.Site(), demo.Site()); err != nil {
		return err
	}
	if rows := w.GeoTable(); len(rows) > 0 {
		data, err := places(rows)
		if err != nil {
			return err
		}
		if err := file.ReplaceBytes(filepath.Join(b.dir, geoFile), data); err != nil {
			return err
		}
	}
	if b.now().WAN == Userspace {
		if err := b.startPump(ctx); err != nil {
			return err
		}
	}
	if err := each(ctx, w.Sites, madeAtOnce, b.makeRouter); err != nil {
		return err
	}
	if err := each(ctx, w.Links, madeAtOnce, b.makeLink); err != nil {
		return err
	}
	for _, s := range w.Sites {
		if err := b.startRouter(s); err != nil {
			return err
		}
	}
	if err := each(ctx, w.Hosts, madeAtOnce, b.makeHost); err != nil {
		return err
	}
	tell("the hosts are there")
	if err := b.startOthers(); err != nil {
		return err
	}
	if err := b.startFirst(ctx); err != nil {
		return err
	}
	if err := b.awaitRoutes(ctx); err != nil {
		return err
	}
	tell("every router knows the way to every site")
	if err := b.found(ctx, apply, tell); err != nil {
		return err
	}
	b.state.State, b.state.Took = isUp, time.Since(began)
	tell("testbed %s is up", b.name)
	return writeState(b.dir, b.state)
}

func wanWords(kind string) string {
	if kind == Userspace {
		return "the pump (userspace: TUN devices, for links of this kernel have no latency or userspace was asked for)"
	}
	return "the kernel (netem)"
}

// need is about how much memory a world takes, in bytes, as measured.
func need(w *wan.World) int64 {
	mib := int64(30 + 10*len(w.Sites))
	for _, h := range w.Hosts {
		if h.Kind == wan.Node {
			mib += nodeMemory
		} else {
			mib += otherMemory
		}
	}
	return mib << 20
}

// available is MemAvailable of proc_meminfo(5), in bytes.
func available() (int64, bool) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(data)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); err == nil {
			return kib << 10, true
		}
	}
	return 0, false
}

// await asks again until f has no error, and gives up when the context ends or one of the hosts' programs has.
func (b *Bed) await(ctx context.Context, host, what string, f func(context.Context) error) error {
	for tries := 1; ; tries++ {
		once, cancel := context.WithTimeout(ctx, askTime)
		err := f(once)
		cancel()
		if err == nil || errors.As(err, new(permanent)) {
			return err
		}
		if list, e := programs(b.name, host); e == nil && len(list) == 0 && tries > 1 {
			return ended{host}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited for %s: %w", what, errors.Join(context.Cause(ctx), err))
		case <-time.After(again):
		}
	}
}

// permanent is an error that waiting does not mend.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// ended is the error of a program that is not there any more.
type ended struct{ host string }

func (e ended) Error() string { return e.host + ": its program ended while the testbed came up" }

// blamed is how much of the end of a log is told, in bytes.
const blamed = 1000

// blame adds what programs said last that are not there any more: their folders are about to be deleted.
func (b *Bed) blame(err error) error {
	all, e := running(b.name)
	if e != nil {
		return err
	}
	for _, h := range b.started() {
		if slices.ContainsFunc(all[h], func(p process) bool { return p.program }) {
			continue
		}
		if text := b.last(h); text != "" {
			err = fmt.Errorf("%w\n%s ended and said: %s", err, h, text)
		}
	}
	return err
}

// last is what a host's program said last.
func (b *Bed) last(host string) string {
	data, err := os.ReadFile(b.Log(host))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data[max(0, len(data)-blamed):]))
}

// started are the hosts whose programs have been started: they have a log.
func (b *Bed) started() []string {
	entries, _ := os.ReadDir(filepath.Join(b.dir, hostsDir))
	var names []string
	for _, e := range entries {
		if _, err := os.Stat(b.Log(e.Name())); err == nil {
			names = append(names, e.Name())
		}
	}
	return names
}

// awaitRoutes waits until every router knows the way to every site, by IPv4 and IPv6.
func (b *Bed) awaitRoutes(ctx context.Context) error {
	w := b.now().World
	for _, s := range w.Sites {
		n, err := b.space(s.Router())
		if err != nil {
			return err
		}
		for _, o := range w.Sites {
			for _, a := range []netip.Addr{o.V4, o.V6} {
				if err := b.await(ctx, s.Router(), s.Router()+" to know the way to "+o.Name, func(context.Context) error {
					_, err := n.Lookup(a)
					return err
				}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
