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

// newPages copies a body into pages, whole huge ones where it fills them and the system has them. It fails where the system has no room, or no
// file to open.
func newPages(body []byte) (*pages, error) {
	fd, err := unix.MemfdCreate("perigee-body", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "perigee-body")
	if _, err := f.Write(body); err != nil {
		f.Close()
		return nil, fmt.Errorf("write a file in memory: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_FUTURE_WRITE|unix.F_SEAL_SEAL); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal a file in memory: %w", err)
	}
	m, at, err := mapFile(fd, len(body))
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("map a file in memory: %w", err)
	}
	p := &pages{file: f, memory: unsafe.Slice((*byte)(at), len(body))}
	if huge := len(body) &^ (hugePage - 1); huge > 0 {
		unix.Madvise(p.memory[:huge], unix.MADV_COLLAPSE) // or it stays as it is
	}
	p.unmap = runtime.AddCleanup(p, mapped.free, m) // of a cache that is let go of as a whole; the file has one of its own
	p.mapped = m
	return p, nil
}

// mapFile maps a file to be read, so that huge pages can be where it fills them.
func mapFile(fd, size int) (m mapped, at unsafe.Pointer, err error) {
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
	// It is there at once: what a process has of a file that it does not map is not counted as its memory.
	if _, err = unix.MmapPtr(fd, 0, at, uintptr(size), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_FIXED|unix.MAP_POPULATE); err != nil {
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
