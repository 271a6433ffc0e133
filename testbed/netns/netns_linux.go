package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	namesDir  = "/run/netns" // where names are mounts, as ip-netns(8) has it
	filesDir  = "/etc/netns" // NAME/FILE there is /etc/FILE for what runs by `ip netns exec`
	maxName   = 200          // bytes of a namespace's name: a file name with room to spare
	nsfsMagic = 0x6e736673   // statfs(2) of a mounted namespace
)

// ErrTaken is in the error of New when there is a namespace of that name.
var ErrTaken = errors.New("the name is taken")

// ErrGone is in the error of what needs a namespace by its name, and there is none.
var ErrGone = errors.New("there is no such namespace")

// errDebris is in the error of Open when the name is a file without a namespace: its maker died between the two.
var errDebris = errors.New("only a name is there, no namespace: what a killed run left")

// Namespace is one named network namespace. Safe for use by many goroutines.
type Namespace struct {
	Name string // as `ip netns` has it

	mu     sync.RWMutex
	fd     int // of the namespace; -1: closed
	id     identity
	netlnk *netlink.Handle
	began  []<-chan struct{} // of Start: closed when the process is reaped
}

// identity tells one namespace from another, also from one that has its name later (as long as one has it open).
type identity struct{ dev, ino uint64 }

func identify(path string) (identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return identity{}, err
	}
	return identity{uint64(st.Dev), st.Ino}, nil
}

func (n *Namespace) fault(format string, args ...any) error {
	return fmt.Errorf("namespace %s: %w", n.Name, fmt.Errorf(format, args...))
}

func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("namespace %q: not a name", name)
	case len(name) > maxName:
		return fmt.Errorf("namespace %.20s…: the name has %d bytes, more than %d", name, len(name), maxName)
	case strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '/' || r == 0x7f }):
		return fmt.Errorf("namespace %q: a name has no spaces, control characters or slashes", name)
	case strings.HasPrefix(name, "-"):
		return fmt.Errorf("namespace %q: ip would take the name for an option", name)
	}
	return nil
}

// New makes a namespace: its loopback is up, IPv6 addresses are usable at once, router advertisements are not
// listened to. ErrTaken is in the error if the name is there, also if it was made by others.
func New(name string) (*Namespace, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	unlock, err := lockNames()
	if err != nil {
		return nil, fmt.Errorf("namespace %s: %w", name, err)
	}
	path := filepath.Join(namesDir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY|unix.O_CLOEXEC, 0o444)
	if errors.Is(err, fs.ErrExist) && isDebris(path) {
		// Whoever makes names holds the lock from the file to the mount, so its maker is dead.
		if err = os.Remove(path); err == nil {
			f, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY|unix.O_CLOEXEC, 0o444)
		}
	}
	if err != nil {
		unlock()
		if errors.Is(err, fs.ErrExist) {
			err = ErrTaken
		}
		return nil, fmt.Errorf("namespace %s: make: %w", name, err)
	}
	f.Close()
	err = mountFresh(path)
	if err != nil {
		os.Remove(path)
	}
	unlock()
	if err != nil {
		return nil, fmt.Errorf("namespace %s: make: %w", name, err)
	}
	n, err := Open(name)
	if err == nil {
		err = n.prepare()
	}
	if err != nil {
		return nil, errors.Join(err, Remove(context.Background(), name))
	}
	return n, nil
}

// mountFresh makes a namespace and mounts it at path, so that it lives as long as the mount.
func mountFresh(path string) error {
	return apart(func(t *thread) error {
		if err := t.fresh(); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount: %w", err)
		}
		return nil
	})
}

// prepare is what every namespace of a testbed wants. A second's wait for each IPv6 address (duplicate address
// detection, RFC 4862 section 5.4) is for links with strangers.
func (n *Namespace) prepare() error {
	if err := n.Up("lo"); err != nil {
		return err
	}
	for _, kv := range [][2]string{
		{"net.ipv6.conf.all.accept_dad", "0"}, {"net.ipv6.conf.default.accept_dad", "0"},
		{"net.ipv6.conf.default.accept_ra", "0"}, {"net.ipv6.conf.default.router_solicitations", "0"},
	} {
		if err := n.Sysctl(kv[0], kv[1]); err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
			return err
		}
	}
	return nil
}

// Open opens a namespace by its name. ErrGone is in the error if there is none.
func Open(name string) (*Namespace, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	path := filepath.Join(namesDir, name)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			err = ErrGone
		}
		return nil, fmt.Errorf("namespace %s: open: %w", name, err)
	}
	n := &Namespace{Name: name, fd: fd}
	var what unix.Statfs_t
	var st unix.Stat_t
	err = unix.Fstatfs(fd, &what)
	if err == nil && what.Type != nsfsMagic {
		err = errDebris
	}
	if err == nil {
		err = unix.Fstat(fd, &st)
		n.id = identity{uint64(st.Dev), st.Ino}
	}
	if err == nil {
		err = n.inside(func(*thread) (err error) {
			n.netlnk, err = netlink.NewHandle(unix.NETLINK_ROUTE)
			return err
		})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("namespace %s: open: %w", name, err)
	}
	return n, nil
}

// Close gives the handle back; the namespace stays. Twice is fine.
func (n *Namespace) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fd < 0 {
		return nil
	}
	n.netlnk.Close()
	err := unix.Close(n.fd)
	n.fd = -1
	return err
}

// Names are the names that begin with prefix, in order, those whose makers died halfway as well. Remove takes any of them away.
func Names(prefix string) ([]string, error) {
	entries, err := os.ReadDir(namesDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// Remove deletes whatever is there by that name, as Delete does, half made or whole, without opening it first. Nothing there is fine.
func Remove(ctx context.Context, name string) error {
	n, err := Open(name)
	switch {
	case err == nil:
		return n.Delete(ctx)
	case errors.Is(err, ErrGone), errors.Is(err, errDebris):
		return removeName(name, identity{})
	}
	return err
}

// Delete ends the processes inside (SIGTERM, SIGKILL two seconds later), removes the links, the name and /etc/netns/NAME,
// and closes the handle. When it returns nil, the other ends of its links are gone as well. Twice is fine, and so is a
// name that was deleted by others meanwhile; if they made it again, the new one is left alone. If ctx ends first, nothing
// but processes may have been ended, and the handle is open still.
func (n *Namespace) Delete(ctx context.Context) error {
	n.mu.RLock()
	closed := n.fd < 0
	n.mu.RUnlock()
	if closed {
		return removeName(n.Name, n.id)
	}
	if err := n.endProcesses(ctx); err != nil {
		return err
	}
	if err := n.removeLinks(); err != nil && !errors.Is(err, os.ErrClosed) { // closed: by another Delete that was faster
		return err
	}
	if err := removeName(n.Name, n.id); err != nil {
		return err
	}
	return n.Close()
}

// removeName takes away a name if it is that of the namespace, or of none, and the files that go with it.
func removeName(name string, id identity) error {
	unlock, err := lockNames()
	if err != nil {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	defer unlock()
	path := filepath.Join(namesDir, name)
	now, err := identify(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("namespace %s: remove the name: %w", name, err)
	case now == id:
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("namespace %s: unmount: %w", name, err)
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("namespace %s: remove the name: %w", name, err)
		}
	case isDebris(path):
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("namespace %s: remove the name: %w", name, err)
		}
	default:
		return nil // somebody else's by now
	}
	if err := os.RemoveAll(filepath.Join(filesDir, name)); err != nil {
		return fmt.Errorf("namespace %s: remove its files: %w", name, err)
	}
	os.Remove(filesDir) // if it is empty: ours or not, nobody misses it
	return nil
}

func isDebris(path string) bool {
	var what unix.Statfs_t
	return unix.Statfs(path, &what) == nil && what.Type != nsfsMagic
}

// lockNames makes /run/netns what `ip netns` wants it to be, a shared mount, so that a name that is deleted is gone in
// all mount namespaces, and locks it as `ip netns` does.
func lockNames() (unlock func(), err error) {
	if err := os.MkdirAll(namesDir, 0o755); err != nil {
		return nil, err
	}
	fd, err := unix.Open(namesDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", namesDir, err)
	}
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(fd, unix.LOCK_EX)
	}
	if err == nil {
		err = share()
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("lock %s: %w", namesDir, err)
	}
	return func() { unix.Close(fd) }, nil
}

func share() error {
	err := unix.Mount("", namesDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	// Not a mount yet: it becomes one of itself.
	if err := unix.Mount(namesDir, namesDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", namesDir, "none", unix.MS_SHARED|unix.MS_REC, "")
}

// WriteResolv makes text the /etc/resolv.conf of what runs inside. It is written in place, so that processes that run
// already see it as well.
func (n *Namespace) WriteResolv(text string) error {
	dir := filepath.Join(filesDir, n.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return n.fault("make its files: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte(text), 0o644); err != nil {
		return n.fault("write resolv.conf: %w", err)
	}
	return nil
}
