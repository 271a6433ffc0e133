package cache

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the size of a huge page: its 512 small ones have one count of who uses them, so to send it takes half to two thirds
// of the time that small ones take.
const hugePage = 2 << 20

// mapped is where a file is mapped: the room that was taken from the address space, which begins before it.
type mapped struct {
	at   unsafe.Pointer
	size uintptr
}

// pagesLimit is how many bodies may be in pages.
func pagesLimit() int64 {
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) != nil {
		return 0
	}
	return int64(min(files.Cur/4, maxPages))
}

// slabsHere says that the system can have slabs.
const slabsHere = true

// newPages copies a body into pages, whole huge ones where it fills them and the system has them. It fails where the system has no room, or no
// file to open.
func newPages(body []byte) (*pages, error) {
	f, err := memoryFile()
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(body); err != nil {
		f.Close()
		return nil, fmt.Errorf("write a file in memory: %w", err)
	}
	p, err := mapPages(f, len(body), unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_FUTURE_WRITE|unix.F_SEAL_SEAL, unix.MAP_POPULATE)
	if err != nil {
		return nil, err
	}
	if huge := len(body) &^ (hugePage - 1); huge > 0 {
		unix.Madvise(p.memory[:huge], unix.MADV_COLLAPSE) // or it stays as it is
	}
	return p, nil
}

// newSlab makes pages of that size to add bodies to.
func newSlab(size int64) (*pages, error) {
	f, err := memoryFile()
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, fmt.Errorf("make room in a file in memory: %w", err)
	}
	return mapPages(f, int(size), unix.F_SEAL_SHRINK|unix.F_SEAL_GROW, 0)
}

// together makes huge pages of those that the bytes from start to end of a slab are the first in.
func (p *pages) together(start, end int64) {
	for at := (start + hugePage - 1) &^ (hugePage - 1); at < end && at+hugePage <= int64(len(p.memory)); at += hugePage {
		unix.Madvise(p.memory[at:at+hugePage], unix.MADV_COLLAPSE) // or it stays as it is
	}
}

// seal lets nobody write to a slab again.
func (p *pages) seal() {
	unix.FcntlInt(p.file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE|unix.F_SEAL_SEAL)
}

func memoryFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("perigee-body", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), "perigee-body"), nil
}

// mapPages makes pages of a file, which it closes where it fails.
func mapPages(f *os.File, size, seals, flags int) (*pages, error) {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal a file in memory: %w", err)
	}
	m, at, err := mapFile(int(f.Fd()), size, flags)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("map a file in memory: %w", err)
	}
	p := &pages{file: f, memory: unsafe.Slice((*byte)(at), size)}
	p.unmap = runtime.AddCleanup(p, mapped.free, m) // of a cache that is let go of as a whole; the file has one of its own
	p.mapped = m
	return p, nil
}

// mapFile maps a file to be read, so that huge pages can be where it fills them. With MAP_POPULATE it is there at once: what a process has of a
// file that it does not map is not counted as its memory.
func mapFile(fd, size, flags int) (m mapped, at unsafe.Pointer, err error) {
	room := uintptr(size)
	if size >= hugePage {
		room += hugePage
	}
	if m.at, err = unix.MmapPtr(-1, 0, nil, room, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE); err != nil {
		return m, nil, err
	}
	m.size = room
	at = m.at
	if size >= hugePage {
		at = unsafe.Add(at, -uintptr(at)&(hugePage-1))
	}
	if _, err = unix.MmapPtr(fd, 0, at, uintptr(size), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_FIXED|flags); err != nil {
		m.free()
		return m, nil, err
	}
	return m, at, nil
}

func (m mapped) free() { unix.MunmapPtr(m.at, m.size) }

// free gives the pages back to the system. What of them is on its way to a viewer stays until it is there.
func (p *pages) free() {
	p.unmap.Stop()
	p.mapped.free()
	p.file.Close()
}
