package bed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/cluster/file"
	"github.com/perigee-net/perigee/testbed/netns"
	"github.com/perigee-net/perigee/testbed/wan"
)

// Files in the folder of a bed.
const (
	stateFile  = "bed.json"
	lockFile   = "lock"
	geoFile    = "places.mmdb"
	pumpSocket = "pump.sock"
	pumpLog    = "pump.log"
	specFile   = "network.yaml"
	tokenFile  = "token"
	hostsDir   = "hosts" // a folder a host
	siteDir    = "site"  // what web servers serve
)

// States of a bed.
const (
	building = "building"
	isUp     = "up"
	kept     = "down" // taken down, its logs left
)

// state is bed.json: what was wanted of a bed. Whether it is so, the kernel says.
type state struct {
	World   *wan.World
	WAN     string
	Program string
	Drain   time.Duration
	State   string
	Began   time.Time
	Took    time.Duration
	Keep    bool       `json:",omitempty"`
	Access  string     `json:",omitempty"` // an access token with all rights
	Faults  faults     `json:",omitempty"`
	Built   []wan.Link `json:",omitempty"` // links that were changed, as they were built
}

var (
	// ErrUp is in the error of Up when a bed of that name is up.
	ErrUp = errors.New("it is up already")
	// ErrNone is in the error of Open when there is no bed of that name.
	ErrNone = errors.New("no such testbed is up")
	// ErrHalf is in the error of Open when the bed is not whole: it is being built, or what built it was killed.
	ErrHalf = errors.New("it is not whole: being built, or broken; take it down")
)

var beds = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

func checkName(name string) error {
	if !beds.MatchString(name) {
		return fmt.Errorf("testbed %.40q: want lower-case letters, digits and hyphens, at most 32", name)
	}
	return nil
}

// prefix is how the names of a bed's namespaces begin.
func prefix(name string) string { return "pg." + name + "." }

// space is the namespace of a host or router.
func space(bed, host string) string { return prefix(bed) + host }

// pumpHost is the pump's own namespace, so that the pump is found and ended like everything else. No host can have the name.
const pumpHost = "_pump"

// folder is where the bed of a name is, whether it has its own folder or is led to another.
func folder(name string) string {
	at := filepath.Join(Root, name)
	if to, err := os.Readlink(at); err == nil {
		return to
	}
	return at
}

// root makes Root, and makes sure that it is nobody else's: /var/tmp is for all.
func root() error {
	if err := os.MkdirAll(Root, 0o755); err != nil {
		return fmt.Errorf("make the folder of testbeds: %w", err)
	}
	info, err := os.Lstat(Root)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || !ok || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s is not a folder of this user: remove it", Root)
	}
	return nil
}

// settle makes a bed's folder, with a state in it from the first moment on, so that whoever finds it knows what it is.
func settle(name, dir string, s state) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the folder of testbed %s: %w", name, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		return fmt.Errorf("the folder %s of testbed %s is not empty, and no testbed's: %w", dir, name, errors.Join(err, fs.ErrExist))
	}
	if err := writeState(dir, s); err != nil {
		return err
	}
	if at := filepath.Join(Root, name); at != dir {
		if err := os.Symlink(dir, at); err != nil {
			return fmt.Errorf("note the folder of testbed %s: %w", name, err)
		}
	}
	return os.MkdirAll(filepath.Join(dir, hostsDir), 0o700)
}

// erase deletes a bed's folder, its state last; what is no bed's is left alone.
func erase(name string) error {
	at := filepath.Join(Root, name)
	dir := folder(name)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, known := os.Stat(filepath.Join(dir, stateFile))
	if len(entries) > 0 && known != nil && dir != at {
		return errors.Join(fmt.Errorf("%s has no %s, so it is not deleted", dir, stateFile), os.Remove(at))
	}
	for _, e := range entries {
		if e.Name() == stateFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("delete the folder of testbed %s: %w", name, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("delete the folder of testbed %s: %w", name, err)
	}
	if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the folder of testbed %s: %w", name, err)
	}
	return nil
}

func readState(dir string) (state, error) {
	var s state
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("read %s: %w", filepath.Join(dir, stateFile), err)
	}
	if s.World == nil {
		return s, fmt.Errorf("read %s: no world is in it", filepath.Join(dir, stateFile))
	}
	return s, nil
}

func writeState(dir string, s state) error {
	data, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	return file.ReplaceBytes(filepath.Join(dir, stateFile), append(data, '\n'))
}

// lockTick is how often a lock that another has is tried.
const lockTick = 20 * time.Millisecond

// lock takes the lock of a file, which is made, and waits for it as long as the context lasts. The kernel takes it back
// from whoever dies.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			// Who had it may have deleted the file: then it locks nothing.
			held, e1 := f.Stat()
			there, e2 := os.Stat(path)
			if e1 == nil && e2 == nil && os.SameFile(held, there) {
				return func() { f.Close() }, nil
			}
			err = unix.EWOULDBLOCK
		}
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("another run holds %s: %w", path, ctx.Err())
		case <-time.After(lockTick):
		}
	}
}

// patience is how long Up and Down wait for one that is at work on the same bed.
const patience = 500 * time.Millisecond

// claim makes Up and Down of one name take turns.
func claim(ctx context.Context, name string) (release func(), err error) {
	if err := root(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	path := filepath.Join(Root, name+".lock")
	unlock, err := lock(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("testbed %s is being built or taken down: %w", name, err)
	}
	return func() {
		os.Remove(path)
		unlock()
		os.Remove(Root) // if this was the last
	}, nil
}

// List is all beds of this machine, whole or not, by name.
func List() ([]Info, error) {
	var list []Info
	seen := map[string]bool{}
	entries, err := os.ReadDir(Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if checkName(e.Name()) != nil {
			continue
		}
		info := Info{Name: e.Name(), Dir: folder(e.Name()), State: building}
		if s, err := readState(info.Dir); err == nil {
			info = s.info(e.Name(), info.Dir)
		}
		seen[e.Name()] = true
		list = append(list, info)
	}
	names, err := netns.Names("pg.")
	if err != nil {
		return nil, err
	}
	for _, n := range names { // whose folder somebody deleted
		parts := strings.SplitN(n, ".", 3)
		if len(parts) == 3 && checkName(parts[1]) == nil && !seen[parts[1]] {
			seen[parts[1]] = true
			list = append(list, Info{Name: parts[1], State: building})
		}
	}
	slices.SortFunc(list, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func (s state) info(name, dir string) Info {
	return Info{
		Name: name, Dir: dir, WAN: s.WAN, State: s.State, Began: s.Began, Took: s.Took,
		Sites: len(s.World.Sites), Hosts: len(s.World.Hosts), Faults: s.Faults.words(),
	}
}
