package relay

import (
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sockets are those that flows at rest wait for. It is a cache of what the flows know, and no state: without it they wait on goroutines.
var sockets waiting

const (
	// told is how many sockets the system tells of at once.
	told = 64
	// closedLook is how often it is looked whether sockets were closed by others than their flows, of which the system says nothing. Of many closedAtOnce are looked at, and
	// closedPause later as many again, for meanwhile none can rest or be broken off.
	closedLook   = time.Second
	closedAtOnce = 1 << 10
	closedPause  = 5 * time.Millisecond
)

// waiting is sockets for which the system is asked (epoll(7)), by one goroutine for all, as long as there are some. It is in the poller of the runtime itself, so no thread
// waits for it.
type waiting struct {
	mu     sync.Mutex
	file   *os.File // nil: there is none
	fd     int
	number uint32
	known  map[int32]entry // by descriptor
	all    []int32         // the descriptors
	toLook int             // so many of these, the first, are to be looked at yet; 0: all, the next time
	timer  *time.Timer
}

// entry is a socket that is waited for. The number tells it from others that had its descriptor.
type entry struct {
	rested
	number uint32
	at     int // in all
}

// add has a direction be carried on when its socket has something; false: it is to wait itself.
func (w *waiting) add(f *Flow, from End, raw syscall.RawConn) (ok bool) {
	err := raw.Control(func(own uintptr) { ok = w.enter(int32(own), rested{f, from, raw}) })
	return ok && err == nil
}

func (w *waiting) enter(fd int32, r rested) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil && !w.open() {
		return false
	}
	if before, is := w.known[fd]; is { // it was closed, and this one has its descriptor
		w.leave(fd, before)
		go before.flow.wake(before.from)
	}
	w.number++
	e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: fd, Pad: int32(w.number)}
	if err := unix.EpollCtl(w.fd, unix.EPOLL_CTL_ADD, int(fd), &e); err != nil {
		w.tidy()
		return false
	}
	w.keep(fd, r)
	return true
}

// keep notes who waits. The lock is held.
func (w *waiting) keep(fd int32, r rested) {
	d, _ := r.flow.side(r.from)
	d.fd = fd + 1
	w.known[fd] = entry{r, w.number, len(w.all)}
	w.all = append(w.all, fd)
}

// open begins to wait. The lock is held.
func (w *waiting) open() bool {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return false
	}
	if unix.SetNonblock(fd, true) != nil { // so that the runtime waits for it
		unix.Close(fd)
		return false
	}
	file := os.NewFile(uintptr(fd), "epoll")
	raw, err := file.SyscallConn()
	if err != nil || file.SetDeadline(time.Time{}) != nil { // the runtime does not wait for it, which NewFile does not say
		file.Close()
		return false
	}
	w.file, w.fd, w.known = file, fd, map[int32]entry{}
	w.timer = time.AfterFunc(closedLook, func() { w.lookForClosed(file) })
	go w.run(file, raw)
	return true
}

// tidy ends the waiting if nobody is left. The lock is held.
func (w *waiting) tidy() {
	if len(w.known) == 0 {
		w.timer.Stop()
		w.file.Close()
		w.file, w.known, w.all, w.toLook, w.timer = nil, nil, nil, 0, nil
	}
}

// run wakes whom the system tells of.
func (w *waiting) run(file *os.File, raw syscall.RawConn) {
	events := make([]unix.EpollEvent, told)
	for {
		n := 0
		err := raw.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events, 0)
			return n > 0
		})
		if err != nil {
			return // it is closed
		}
		w.tell(file, events[:n])
	}
}

func (w *waiting) tell(file *os.File, events []unix.EpollEvent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range events {
		if one, is := w.known[e.Fd]; is && w.file == file && one.number == uint32(e.Pad) {
			w.leave(e.Fd, one)
			go one.flow.wake(one.from)
		}
	}
	if w.file == file {
		w.tidy()
	}
}

// leave has a socket not be waited for. The lock is held.
func (w *waiting) leave(fd int32, e entry) {
	unix.EpollCtl(w.fd, unix.EPOLL_CTL_DEL, int(fd), nil) // fails where it was closed
	d, _ := e.flow.side(e.from)
	d.fd = 0
	delete(w.known, fd)
	last := len(w.all) - 1
	if moved := w.all[last]; moved != fd { // it was looked at before all that are to be yet
		w.all[e.at] = moved
		one := w.known[moved]
		one.at = e.at
		w.known[moved] = one
	}
	w.all = w.all[:last]
}

// remove has a direction not be waited for any more. It says whether it was.
func (w *waiting) remove(f *Flow, from End) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	d, _ := f.side(from)
	fd := d.fd - 1
	if fd < 0 {
		return false
	}
	w.leave(fd, w.known[fd])
	w.tidy()
	return true
}

// lookForClosed wakes those whose socket was closed. From the last to the first, so that none is left out as others leave.
func (w *waiting) lookForClosed(file *os.File) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file != file {
		return
	}
	if w.toLook == 0 {
		w.toLook = len(w.all)
	}
	w.toLook = min(w.toLook, len(w.all))
	for range min(w.toLook, closedAtOnce) {
		w.toLook--
		fd := w.all[w.toLook]
		if e := w.known[fd]; e.raw.Control(func(uintptr) {}) != nil {
			w.leave(fd, e)
			go e.flow.wake(e.from)
		}
	}
	if w.toLook > 0 {
		w.timer.Reset(closedPause)
	} else {
		w.timer.Reset(closedLook)
	}
	w.tidy()
}
