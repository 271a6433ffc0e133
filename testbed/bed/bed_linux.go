package bed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/perigee-net/perigee/testbed/netns"
	"github.com/perigee-net/perigee/testbed/pump"
	"github.com/perigee-net/perigee/testbed/wan"
)

// Kinds of links between sites.
const (
	Netem     = "netem"     // veth pairs with a netem qdisc at each end
	Userspace = "userspace" // TUN devices that the pump joins
)

// Root is the folder of all beds: a folder each by its name, or what leads to one elsewhere.
const Root = "/var/tmp/perigee-testbed"

// DrainTime is how long the nodes of a bed serve on when they are told to end, unless Config says it: long enough for
// routing to lead flows elsewhere, not for who was led by DNS.
const DrainTime = 5 * time.Second

// Config is what a bed is made of.
type Config struct {
	World   *wan.World
	Dir     string        // its folder, made here and deleted by Down; "": Root/NAME
	WAN     string        // Netem, Userspace; "": Netem where the kernel has it
	Program string        // the perigee binary
	Say     func(string)  // told what is done, a line each; nil: nobody is
	Apply   bool          // apply the world's spec, or the demo
	Drain   time.Duration // how long nodes serve on when they are told to end; 0: DrainTime
	Keep    bool          // Down leaves the folder, for its logs; the next Up of the name deletes it
}

// Info is what is known of a bed without asking its hosts.
type Info struct {
	Name, Dir string
	WAN       string // Netem or Userspace
	State     string // up; building, also if that was broken off; down, of one whose folder was to be kept
	Began     time.Time
	Took      time.Duration // until it was up
	Sites     int
	Hosts     int      // without the routers
	Faults    []string // what was broken and not healed, in words
}

// Bed is a laboratory that is up. It may be used by many goroutines, and by many processes at once.
type Bed struct {
	name, dir string

	mu     sync.Mutex
	state  state // as it was last read or written
	spaces map[string]*netns.Namespace
	pump   *pump.Client
}

// Open opens a bed that is up, by its name or its folder. ErrNone or ErrHalf is in the error if there is none.
func Open(dirOrName string) (*Bed, error) {
	dir := dirOrName
	if checkName(dirOrName) == nil {
		dir = folder(dirOrName)
	}
	s, err := readState(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid):
		return nil, fmt.Errorf("testbed %s: %w", dirOrName, ErrNone)
	case err != nil:
		return nil, fmt.Errorf("testbed %s: %w", dirOrName, err)
	case s.State == kept:
		return nil, fmt.Errorf("testbed %s was taken down, %s is what is left: %w", s.World.Name, dir, ErrNone)
	case s.State != isUp:
		return nil, fmt.Errorf("testbed %s: %w", s.World.Name, ErrHalf)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if err := sound(s); err != nil {
		return nil, fmt.Errorf("testbed %s: %w", s.World.Name, err)
	}
	return &Bed{name: s.World.Name, dir: dir, state: s, spaces: map[string]*netns.Namespace{}}, nil
}

// sound says what of a bed is gone that it cannot be without and that nothing brings back: a router's namespace, as after
// a restart of the machine, or the pump.
func sound(s state) error {
	name := s.World.Name
	names, err := netns.Names(prefix(name))
	if err != nil {
		return err
	}
	for _, site := range s.World.Sites {
		if !slices.Contains(names, space(name, site.Router())) {
			return fmt.Errorf("%s is gone: %w", site.Router(), ErrHalf)
		}
	}
	if s.WAN != Userspace {
		return nil
	}
	if pump, err := programs(name, pumpHost); err != nil {
		return err
	} else if len(pump) == 0 {
		return fmt.Errorf("the pump is gone, and with it all links: %w", ErrHalf)
	}
	return nil
}

// Close gives back what the handle holds; the bed stays.
func (b *Bed) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var err error
	for _, n := range b.spaces {
		err = errors.Join(err, n.Close())
	}
	clear(b.spaces)
	if b.pump != nil {
		err = errors.Join(err, b.pump.Close())
		b.pump = nil
	}
	return err
}

// World is the bed's world as it is now, with the clients that were made and the nodes that were added, by whomever. It is
// the caller's own.
func (b *Bed) World() *wan.World {
	b.reload()
	w := *b.now().World
	w.Hosts, w.Links = slices.Clone(w.Hosts), slices.Clone(w.Links)
	return &w
}

// now is the state as it was last read or written. What it points to is never changed.
func (b *Bed) now() state {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

// reload reads the state again: another process may have changed it. One that cannot be read is left as it was known.
func (b *Bed) reload() {
	if s, err := readState(b.dir); err == nil {
		b.mu.Lock()
		b.state = s
		b.mu.Unlock()
	}
}

// change changes the state, one process after the other, and writes it unless that fails.
func (b *Bed) change(ctx context.Context, do func(*state) error) error {
	unlock, err := lock(ctx, filepath.Join(b.dir, lockFile))
	if err != nil {
		return fmt.Errorf("testbed %s: %w", b.name, err)
	}
	defer unlock()
	s, err := readState(b.dir)
	if err != nil {
		return fmt.Errorf("testbed %s: %w", b.name, err)
	}
	if err := do(&s); err != nil {
		return err
	}
	b.mu.Lock()
	b.state = s
	b.mu.Unlock()
	return writeState(b.dir, s)
}

// WAN is how the links between sites are made.
func (b *Bed) WAN() string { return b.now().WAN }

// Info is what is known of the bed without asking its hosts.
func (b *Bed) Info() Info {
	b.reload()
	return b.now().info(b.name, b.dir)
}

// Access is an access token for the nodes' API, with all rights; "" if the world has no nodes.
func (b *Bed) Access() string { return b.now().Access }

// API is where a node answers its API by HTTPS, for a client inside the bed or with Dial; "" if the host is no node.
func (b *Bed) API(host string) string {
	h, ok := b.host(host)
	if !ok || h.Kind != wan.Node {
		return ""
	}
	return netip.AddrPortFrom(h.V4, apiPort).String()
}

// Data is the data folder of a node, whose socket answers its API from outside the bed.
func (b *Bed) Data(host string) string { return filepath.Join(b.dir, hostsDir, host, "data") }

// Log is the file that a host's program writes to.
func (b *Bed) Log(host string) string { return filepath.Join(b.dir, hostsDir, host, "log") }

// Site is the folder of files that all targets and web servers of the bed serve: a page that is put there is on all of them.
func (b *Bed) Site() string { return filepath.Join(b.dir, siteDir) }

// host finds a host, also one that another process has added.
func (b *Bed) host(name string) (wan.Host, bool) {
	h, ok := b.now().World.Host(name)
	if !ok {
		b.reload()
		h, ok = b.now().World.Host(name)
	}
	return h, ok
}

// machine finds a host or a router; a router is a host with its site's name, place and addresses alone.
func (b *Bed) machine(name string) (wan.Host, error) {
	if h, ok := b.host(name); ok {
		return h, nil
	}
	for _, s := range b.now().World.Sites {
		if s.Router() == name {
			return router(s), nil
		}
	}
	return wan.Host{}, fmt.Errorf("testbed %s has no host %q", b.name, name)
}

func router(s wan.Site) wan.Host {
	return wan.Host{Name: s.Router(), Site: s.Name, Region: s.Region, At: s.At, V4: s.V4, V6: s.V6}
}

// space is the namespace of a host or router. It stays open until Close.
func (b *Bed) space(name string) (*netns.Namespace, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.spaces[name]; n != nil {
		return n, nil
	}
	n, err := netns.Open(space(b.name, name))
	if err != nil {
		return nil, err
	}
	b.spaces[name] = n
	return n, nil
}

// drop forgets an open namespace, deleted or not.
func (b *Bed) drop(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.spaces[name]; n != nil {
		n.Close()
		delete(b.spaces, name)
	}
}

// pumpClient is the way to the pump. There is one pump in a bed's life: with it the links would be gone.
func (b *Bed) pumpClient() (*pump.Client, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pump == nil {
		c, err := pump.Dial(filepath.Join(b.dir, pumpSocket))
		if err != nil {
			return nil, fmt.Errorf("testbed %s: its links are gone, for the pump is: %w", b.name, err)
		}
		b.pump = c
	}
	return b.pump, nil
}

// Command is a command that runs on a host or router, with the resolver of the host.
func (b *Bed) Command(ctx context.Context, host string, argv ...string) (*exec.Cmd, error) {
	if _, err := b.machine(host); err != nil {
		return nil, err
	}
	n, err := b.space(host)
	if err != nil {
		return nil, err
	}
	return n.Command(ctx, argv...), nil
}

// Dial opens connections as if from a host or router. Names are asked of the host's resolver.
func (b *Bed) Dial(host string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if _, err := b.machine(host); err != nil {
			return nil, err
		}
		n, err := b.space(host)
		if err != nil {
			return nil, err
		}
		return n.Dial(ctx, network, address)
	}
}

// Pump is the pump process of a bed, to be run by `perigee testbed pump --socket PATH` and nothing else. It ends when the
// socket does, with the bed's folder.
func Pump(ctx context.Context, socket string) error {
	return pump.Serve(ctx, socket, tun)
}

// HostStatus is how a host or router is.
type HostStatus struct {
	Host   wan.Host
	Router bool   // Host has a router's name, site and addresses alone
	Up     bool   // its namespace is there
	PIDs   []int  // of its program; none: it does not run
	Others int    // other processes on it: commands of users
	State  string // runs, paused, ended; "": it has no program
	Faults []string
	Memory int64 // of all its processes, bytes; what n processes share counts as an nth for each
}

// Status is how all hosts and routers are, routers first, as the kernel has it.
func (b *Bed) Status(ctx context.Context) ([]HostStatus, error) {
	b.reload()
	w := b.World()
	broken := b.now().Faults
	processes, err := running(b.name)
	if err != nil {
		return nil, err
	}
	var list []HostStatus
	add := func(h wan.Host, isRouter bool, program bool) {
		s := HostStatus{Host: h, Router: isRouter}
		if _, err := b.space(h.Name); err == nil {
			s.Up = true
		}
		paused := 0
		for _, p := range processes[h.Name] {
			s.Memory += memory(p.pid)
			if !p.program {
				s.Others++
				continue
			}
			s.PIDs = append(s.PIDs, p.pid)
			if p.paused {
				paused++
			}
		}
		switch {
		case !program:
		case len(s.PIDs) == 0:
			s.State = "ended"
		case paused == len(s.PIDs):
			s.State = "paused"
		default:
			s.State = "runs"
		}
		for _, words := range broken.words() {
			if slices.Contains(strings.Fields(words), h.Name) || isRouter && slices.Contains(strings.Fields(words), h.Site) {
				s.Faults = append(s.Faults, words)
			}
		}
		list = append(list, s)
	}
	for _, s := range w.Sites {
		add(router(s), true, true)
	}
	for _, h := range w.Hosts {
		add(h, false, h.Kind != wan.Client)
	}
	return list, ctx.Err()
}
