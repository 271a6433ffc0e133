package testbed

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"github.com/perigee-net/perigee/cluster/file"
)

// DiskFault is how the disk of a node's cache fails.
type DiskFault int32

// The ways in which it fails.
const (
	DiskWhole   DiskFault = iota // not at all
	DiskRefuses                  // writes fail, halfway, and so do flushes
	DiskFull                     // there is no room for more than there is
	DiskUnread                   // reads fail
	DiskLies                     // one in lieEvery reads brings back a byte that was not written
)

// String is how the disk is.
func (d DiskFault) String() string {
	return [...]string{"whole", "refusing writes", "full", "refusing reads", "lying"}[d]
}

const lieEvery = 8

// fleetDisk is what the cache of a node has its files made, written and read with. It fails as it is told, and does nothing for a process that
// was killed: what that has not written is lost, and what it was writing is half there. (What the machine was given and has not flushed stays:
// that power fails is for the tests of edge/cache/disk.)
type fleetDisk struct {
	dir   string
	fault atomic.Int32 // DiskFault
	room  atomic.Int64 // of a full one
	dead  atomic.Bool
}

// refuses is the error of whatever changes something; nil: it may.
func (d *fleetDisk) refuses() error {
	if d.dead.Load() || DiskFault(d.fault.Load()) == DiskRefuses {
		return syscall.EIO
	}
	return nil
}

func (d *fleetDisk) system() file.System {
	real := file.OS()
	may := func(do func() error) error {
		if err := d.refuses(); err != nil {
			return err
		}
		return do()
	}
	return file.System{
		Open: func(path string, flag int) (f *os.File, err error) {
			if flag&os.O_CREATE == 0 {
				return real.Open(path, flag)
			}
			err = may(func() error { f, err = real.Open(path, flag); return err })
			return f, err
		},
		ReadAt: func(f *os.File, data []byte, at int64) (int, error) {
			fault := DiskFault(d.fault.Load())
			if fault == DiskUnread {
				return 0, syscall.EIO
			}
			n, err := real.ReadAt(f, data, at)
			if fault == DiskLies && n > 0 && rand.IntN(lieEvery) == 0 {
				data[rand.IntN(n)] ^= 1 << rand.IntN(8)
			}
			return n, err
		},
		WriteAt: func(f *os.File, data []byte, at int64) (int, error) {
			err := d.refuses()
			if err == nil && DiskFault(d.fault.Load()) == DiskFull && d.taken(f.Name(), at+int64(len(data))) > d.room.Load() {
				err = syscall.ENOSPC
			}
			if err != nil {
				n, _ := real.WriteAt(f, data[:len(data)/2], at)
				return n, err
			}
			return real.WriteAt(f, data, at)
		},
		Truncate: func(f *os.File, size int64) error { return may(func() error { return real.Truncate(f, size) }) },
		Sync:     func(f *os.File) error { return may(func() error { return real.Sync(f) }) },
		Rename:   func(from, to string) error { return may(func() error { return real.Rename(from, to) }) },
		Remove:   func(path string) error { return may(func() error { return real.Remove(path) }) },
		SyncDir:  func(path string) error { return may(func() error { return real.SyncDir(path) }) },
	}
}

// taken is the size of all files, one of which is at least so long.
func (d *fleetDisk) taken(name string, end int64) (bytes int64) {
	names, _ := filepath.Glob(filepath.Join(d.dir, "*"))
	for _, path := range names {
		info, err := os.Stat(path)
		switch {
		case err != nil:
		case path == name:
			bytes += max(info.Size(), end)
		default:
			bytes += info.Size()
		}
	}
	return bytes
}

// Disk has the disk of a node's cache fail so from now on. A full one has room for what is there.
func (f *Fleet) Disk(name string, fault DiskFault) {
	d := f.nodes[name].disk
	d.room.Store(d.taken("", 0))
	d.fault.Store(int32(fault))
}
