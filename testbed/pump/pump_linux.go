package pump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/testbed/wan"
)

// Bounds of a pump.
const (
	// MaxLinks is how many links a pump carries: more than the full mesh of 60 sites and 500 clients.
	MaxLinks = 4096
	// MaxPackets is how many packets are under way at once, on all links. Those beyond are dropped, and counted as
	// Full. They take PacketSize bytes each once they have been needed: 128 MiB.
	MaxPackets = 1 << 16
	// batch is how many packets are read from one device, or written to one, before the others have their turn.
	batch = 64
	// maxOrders is how many calls wait for the pump's thread; those beyond wait to be heard.
	maxOrders = 16
)

// ErrClosed is what calls return once the pump has been closed.
var ErrClosed = errors.New("pump is closed")

// Config is what a pump is told at its start.
type Config struct {
	Seed uint64 // of all dice: with the same seed, names and packets the same packets are lost
}

// LinkSpec is a link to be. The pump owns both files from Add on, also when Add fails. They are TUN devices (IFF_TUN,
// IFF_NO_PI), or whatever else gives one packet a read and takes one a write.
type LinkSpec struct {
	Name   string
	A, B   *os.File
	AB, BA wan.Path
}

// Pump carries packets between pairs of devices. All packets are handled by one locked thread, which sleeps in
// epoll_pwait2(2) until a packet comes or is due: that call alone wakes within some 50 µs, which Go's own timers do not
// when the process is otherwise idle.
type Pump struct {
	epoll, bell int // bell is an eventfd that wakes the thread
	began       time.Time
	seed        uint64
	orders      chan func()
	ended       chan struct{}

	mu     sync.Mutex
	silent bool // the bell is gone: its descriptor may be another's by now

	// What follows is the thread's alone.
	links   map[string]*link
	ends    []*direction // by the number epoll knows them by; nil: free
	due     heap
	store   store
	closing bool
}

type link struct {
	name   string
	a, b   int // file descriptors
	ab, ba *direction
}

// direction is one direction of a link.
type direction struct {
	number  int // in Pump.ends
	in, out int // file descriptors
	wire    *Wire
	kept    ring[packet] // in the order they are due
	ahead   ring[packet] // those that overtake, likewise
	next    time.Duration
	place   int // in Pump.due; -1: nothing is kept
	silent  bool
	gone    bool
	counts  Direction
	late    lateness
}

// packet is one that is kept.
type packet struct {
	at   time.Duration
	slot uint32
	size uint32
}

// Start starts a pump without links. It needs Linux 5.11.
func Start(c Config) (*Pump, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("start pump: epoll: %w", err)
	}
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("start pump: eventfd: %w", err)
	}
	p := &Pump{epoll: epoll, bell: bell, began: time.Now(), seed: c.Seed, orders: make(chan func(), maxOrders), ended: make(chan struct{}), links: map[string]*link{}, store: store{most: MaxPackets}}
	err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, bell, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: -1})
	if err == nil {
		_, err = wait(epoll, make([]unix.EpollEvent, 1), 0)
	}
	if err != nil {
		unix.Close(bell)
		unix.Close(epoll)
		if errors.Is(err, unix.ENOSYS) {
			return nil, errors.New("start pump: the kernel has no epoll_pwait2: Linux 5.11 or newer is needed")
		}
		return nil, fmt.Errorf("start pump: %w", err)
	}
	go p.run()
	return p, nil
}

// Add adds a link, which carries from now on.
func (p *Pump) Add(l LinkSpec) error {
	a, b, err := own(l.A, l.B)
	if err != nil {
		return fmt.Errorf("add link %s: %w", l.Name, err)
	}
	if errs := errors.Join(l.AB.Validate(), l.BA.Validate()); errs != nil {
		err = errs
	} else if l.Name == "" {
		err = errors.New("it has no name")
	} else if asked := p.do(func() { err = p.add(l, a, b) }); asked != nil {
		err = asked
	}
	if err != nil {
		unix.Close(a)
		unix.Close(b)
		return fmt.Errorf("add link %s: %w", l.Name, err)
	}
	return nil
}

// own takes the descriptors out of two files. They must not stay in Go's poller: it would be woken by each packet too.
func own(a, b *os.File) (int, int, error) {
	da, errA := duplicate(a)
	db, errB := duplicate(b)
	if err := errors.Join(errA, errB); err != nil {
		for _, fd := range []int{da, db} {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
		return -1, -1, err
	}
	return da, db, nil
}

// duplicate returns another descriptor of a file, which does not block, and closes the file.
func duplicate(f *os.File) (int, error) {
	if f == nil {
		return -1, errors.New("there is no device")
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if e := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); e != nil || err != nil {
		return -1, errors.Join(e, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Remove removes a link and closes its devices. What is under way is dropped.
func (p *Pump) Remove(name string) error {
	return p.with("remove", name, func(l *link) { p.remove(l) })
}

// Set changes the paths of a link; nil leaves one as it is. Packets under way keep their times.
func (p *Pump) Set(name string, ab, ba *wan.Path) error {
	for _, path := range []*wan.Path{ab, ba} {
		if path == nil {
			continue
		}
		if err := path.Validate(); err != nil {
			return fmt.Errorf("set link %s: %w", name, err)
		}
	}
	return p.with("set", name, func(l *link) {
		if ab != nil {
			l.ab.wire.Set(*ab)
		}
		if ba != nil {
			l.ba.wire.Set(*ba)
		}
	})
}

// Down makes each direction of a link silent, or lets it carry again. Once it has returned nothing arrives by a silent
// direction, also of what was under way.
func (p *Pump) Down(name string, ab, ba bool) error {
	return p.with("down", name, func(l *link) { l.ab.silent, l.ba.silent = ab, ba })
}

// Seed has the dice of both directions of a link fall anew, as a pump does that was started with seed.
func (p *Pump) Seed(name string, seed uint64) error {
	return p.with("seed", name, func(l *link) {
		l.ab.wire.Seed(seed ^ hashed(name+">"))
		l.ba.wire.Seed(seed ^ hashed(name+"<"))
	})
}

// Paths are the paths of a link as they are now.
func (p *Pump) Paths(name string) (ab, ba wan.Path, err error) {
	err = p.with("paths of", name, func(l *link) { ab, ba = l.ab.wire.Path(), l.ba.wire.Path() })
	return ab, ba, err
}

// Stats tells of all links, by their names; nil once the pump is closed.
func (p *Pump) Stats() map[string]Stats {
	var all map[string]Stats
	if p.do(func() {
		all = make(map[string]Stats, len(p.links))
		for name, l := range p.links {
			all[name] = Stats{AB: l.ab.stats(), BA: l.ba.stats()}
		}
	}) != nil {
		return nil
	}
	return all
}

func (d *direction) stats() Direction {
	s := d.counts
	s.P99, s.UnderWay, s.Silent, s.Gone = d.late.p99(), d.kept.len()+d.ahead.len(), d.silent, d.gone
	return s
}

// Close ends the pump: what is under way is dropped and all devices are closed. Twice is fine.
func (p *Pump) Close() error {
	_ = p.do(func() { p.closing = true })
	<-p.ended
	return nil
}

// with does something to a link, on the thread.
func (p *Pump) with(act, name string, do func(*link)) error {
	var err error
	asked := p.do(func() {
		if l := p.links[name]; l != nil {
			do(l)
			return
		}
		err = errors.New("there is no such link")
	})
	if err = errors.Join(asked, err); err != nil {
		return fmt.Errorf("%s link %s: %w", act, name, err)
	}
	return nil
}

// do has the thread do something and waits until it is done.
func (p *Pump) do(act func()) error {
	done := make(chan struct{})
	select {
	case p.orders <- func() { act(); close(done) }:
	case <-p.ended:
		return ErrClosed
	}
	p.ring()
	select {
	case <-done:
		return nil
	case <-p.ended:
		select {
		case <-done:
			return nil
		default:
			return ErrClosed
		}
	}
}

// ring wakes the thread, if it has not ended.
func (p *Pump) ring() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.silent {
		if _, err := unix.Write(p.bell, binary.NativeEndian.AppendUint64(nil, 1)); err != unix.EINTR {
			return
		}
	}
}

// add, remove and the rest from here on run on the thread only.
func (p *Pump) add(l LinkSpec, a, b int) error {
	if p.links[l.Name] != nil {
		return errors.New("there is one of this name")
	}
	if len(p.links) == MaxLinks {
		return fmt.Errorf("there are %d links already, no more can be carried", MaxLinks)
	}
	made := &link{name: l.Name, a: a, b: b}
	var err error
	if made.ab, err = p.watch(a, b, l.AB, l.Name+">"); err != nil {
		return err
	}
	if made.ba, err = p.watch(b, a, l.BA, l.Name+"<"); err != nil {
		p.forget(made.ab)
		return err
	}
	p.links[l.Name] = made
	return nil
}

// hashed tells the dice of directions apart.
func hashed(name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	return h.Sum64()
}

func (p *Pump) watch(in, out int, path wan.Path, name string) (*direction, error) {
	d := &direction{in: in, out: out, wire: NewWire(path, p.seed^hashed(name)), place: -1, number: len(p.ends)}
	for i, e := range p.ends {
		if e == nil {
			d.number = i
			break
		}
	}
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, in, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(d.number)}); err != nil {
		return nil, fmt.Errorf("watch device: %w", err)
	}
	if d.number == len(p.ends) {
		p.ends = append(p.ends, nil)
	}
	p.ends[d.number] = d
	return d, nil
}

// forget drops what a direction keeps and watches its device no more.
func (p *Pump) forget(d *direction) {
	p.lose(d)
	for _, q := range []*ring[packet]{&d.kept, &d.ahead} {
		for q.len() > 0 {
			p.store.put(q.pop().slot)
		}
	}
	if d.place >= 0 {
		p.due.remove(d)
	}
	p.ends[d.number] = nil
}

// lose stops watching the near end's device.
func (p *Pump) lose(d *direction) {
	if !d.gone {
		d.gone = true
		_ = unix.EpollCtl(p.epoll, unix.EPOLL_CTL_DEL, d.in, nil)
	}
}

func (p *Pump) remove(l *link) {
	p.forget(l.ab)
	p.forget(l.ba)
	unix.Close(l.a)
	unix.Close(l.b)
	delete(p.links, l.name)
}

func (p *Pump) now() time.Duration { return time.Since(p.began) }

// run is the thread. It never unlocks it, so that the thread with its finer timers ends with the pump.
func (p *Pump) run() {
	runtime.LockOSThread()
	defer close(p.ended)
	// By default a thread's sleep may be lengthened by 50 µs (PR_SET_TIMERSLACK(2const)).
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	events := make([]unix.EpollEvent, 256)
	for !p.closing {
		sleep := time.Duration(-1)
		if len(p.due) > 0 {
			sleep = max(0, p.due[0].next-p.now())
		}
		n, err := wait(p.epoll, events, sleep)
		if err != nil && err != unix.EINTR {
			panic(fmt.Sprintf("pump: epoll_pwait2: %v", err)) // its arguments are ours alone
		}
		p.deliver()
		called := false
		for _, e := range events[:max(n, 0)] {
			if e.Fd < 0 {
				called = true
				continue
			}
			p.read(p.ends[e.Fd], e.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0)
			p.deliver()
		}
		if called {
			p.obey()
		}
	}
	for _, l := range p.links {
		p.remove(l)
	}
	p.mu.Lock()
	p.silent = true
	unix.Close(p.bell)
	p.mu.Unlock()
	unix.Close(p.epoll)
}

// obey does what has been asked for.
func (p *Pump) obey() {
	var count [8]byte
	_, _ = unix.Read(p.bell, count[:])
	for {
		select {
		case order := <-p.orders:
			order()
		default:
			return
		}
	}
}

// read takes what waits at a direction's near end, up to a batch. Where epoll saw a failure there and nothing is left to
// read, it was the device's end.
func (p *Pump) read(d *direction, failed bool) {
	for range batch {
		slot, buf := p.store.take()
		n, errno := read(d.in, buf)
		if errno != 0 || n == 0 {
			p.store.put(slot)
			if errno != unix.EINTR && (errno != unix.EAGAIN || failed) {
				p.lose(d)
			}
			return
		}
		if d.silent {
			d.counts.Down++
			p.store.put(slot)
			continue
		}
		now := p.now()
		at, drop := d.wire.Send(now, n)
		switch {
		case drop == Lost:
			d.counts.Lost++
		case drop == Queue:
			d.counts.Queue++
		case slot == none:
			d.counts.Full++
		case at <= now && d.place < 0:
			p.write(d, packet{at: at, slot: slot, size: uint32(n)}, now)
		default:
			p.keep(d, packet{at: at, slot: slot, size: uint32(n)})
			continue
		}
		p.store.put(slot)
	}
}

// keep puts a packet behind those that arrive before it.
func (p *Pump) keep(d *direction, k packet) {
	q := &d.kept
	if q.len() > 0 && k.at < q.last().at {
		q = &d.ahead
	}
	q.push(k)
	if d.place < 0 {
		d.next = k.at
		p.due.add(d)
	} else if k.at < d.next {
		d.next = k.at
		p.due.up(d.place)
	}
}

// deliver writes what is due.
func (p *Pump) deliver() {
	for len(p.due) > 0 {
		now := p.now()
		d := p.due[0]
		if d.next > now {
			return
		}
		for range batch {
			q := &d.kept
			if d.ahead.len() > 0 && (q.len() == 0 || d.ahead.first().at < q.first().at) {
				q = &d.ahead
			}
			k := q.pop()
			p.write(d, k, now)
			p.store.put(k.slot)
			if !d.settle() {
				p.due.remove(d)
				break
			}
			if now = p.now(); d.next > now {
				break
			}
		}
		if d.place >= 0 {
			p.due.down(d.place)
		}
	}
}

// settle says when the next packet is due; false: there is none.
func (d *direction) settle() bool {
	switch {
	case d.kept.len() == 0 && d.ahead.len() == 0:
		return false
	case d.ahead.len() == 0:
		d.next = d.kept.first().at
	case d.kept.len() == 0:
		d.next = d.ahead.first().at
	default:
		d.next = min(d.kept.first().at, d.ahead.first().at)
	}
	return true
}

// write gives a packet to the far end. A device that does not take it at once never will: it is down, or gone.
func (p *Pump) write(d *direction, k packet, now time.Duration) {
	if d.silent {
		d.counts.Down++
		return
	}
	if errno := write(d.out, p.store.packet(k.slot)[:k.size]); errno != 0 {
		d.counts.Refused++
		return
	}
	late := now - k.at
	d.late.add(late)
	if late > TooLate {
		d.counts.Late++
	}
	d.counts.Packets++
	d.counts.Bytes += uint64(k.size)
}

// wait is epoll_pwait2(2): it sleeps until something happens, at most so long; below 0: for ever.
func wait(epoll int, events []unix.EpollEvent, most time.Duration) (int, error) {
	var timeout *unix.Timespec
	if most >= 0 {
		t := unix.NsecToTimespec(int64(most))
		timeout = &t
	}
	var n uintptr
	var errno syscall.Errno
	if most == 0 { // it does not sleep: the runtime need not know
		n, _, errno = unix.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(unsafe.Pointer(timeout)), 0, 0)
	} else {
		n, _, errno = unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(unsafe.Pointer(timeout)), 0, 0)
	}
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// read and write never sleep, so the runtime is not told of them: that would cost as much as the call.
func read(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), errno
}

func write(fd int, b []byte) syscall.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return errno
}
