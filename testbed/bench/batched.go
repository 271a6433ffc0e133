//go:build linux

package bench

import (
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What loads of datagrams from one thread have in common (volley, relayed): many datagrams a system call, datagrams that are under way in slots, and no sleep as
// long as something comes.

const (
	lostTime  = 2 * time.Second        // after which a datagram does not come any more
	sleepTime = 200 * time.Microsecond // without a datagram, after which a load sleeps until one comes
)

// mmsg is the kernel's struct mmsghdr.
type mmsg struct {
	unix.Msghdr
	n uint32
}

// newMessages is messages of one part each, of at most the bytes that buffer gives.
func newMessages(messages []mmsg, parts []unix.Iovec, buffer func(int) []byte) {
	for i := range messages {
		b := buffer(i)
		parts[i].Base = &b[0]
		parts[i].SetLen(len(b))
		messages[i].Iov = &parts[i]
		messages[i].SetIovlen(1)
	}
}

// newDatagramSocket is one that never waits.
func newDatagramSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("make a socket: %w", err)
	}
	return fd, nil
}

// sendAll is sendmmsg(2) until all is sent. Loopback takes a datagram as soon as the receiver's queue is judged; a full one drops, and does not wait.
func sendAll(fd int, out []mmsg) error {
	for len(out) > 0 {
		n, _, e := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&out[0])), uintptr(len(out)), 0, 0, 0)
		switch {
		case e == unix.EAGAIN, e == unix.EINTR:
			runtime.Gosched()
		case e != 0:
			return e
		default:
			out = out[n:]
		}
	}
	return nil
}

// receiveSome is recvmmsg(2) of what is there.
func receiveSome(fd int, in []mmsg) (int, error) {
	n, _, e := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&in[0])), uintptr(len(in)), unix.MSG_DONTWAIT, 0, 0)
	switch {
	case e == unix.EAGAIN, e == unix.EINTR:
		return 0, nil
	case e != 0:
		return 0, e
	}
	return int(n), nil
}

// slot is a datagram that is under way. What is sent says which slot it is of and how often that was taken: what comes back after it was given up is known by
// that.
type slot struct {
	query int // of a volley: which
	times uint16
	open  bool
	at    time.Duration // when it was sent, since the load began
}

// slots are those of one socket.
type slots struct {
	all  []slot
	free []int
}

func newSlots(n int) slots {
	s := slots{all: make([]slot, n)}
	for number := n - 1; number >= 0; number-- {
		s.free = append(s.free, number)
	}
	return s
}

// close frees a slot.
func (s *slots) close(number int) {
	s.all[number].open = false
	s.free = append(s.free, number)
}

// open is how many are under way.
func (s *slots) open() int { return len(s.all) - len(s.free) }

// giveUp frees the slots of what was sent before a time, and says how many.
func (s *slots) giveUp(before time.Duration) (lost int64) {
	for number := range s.all {
		if sl := &s.all[number]; sl.open && sl.at < before {
			s.close(number)
			lost++
		}
	}
	return lost
}

// pace is the course of a load: turns of sending and taking, and what they came to.
type pace struct {
	last    time.Duration // how long datagrams are sent
	watched []unix.PollFd
	under   []*slots

	began         time.Time
	ended, looked time.Duration // when the last came; when was last looked for what is lost
	idle          time.Duration // of turns that found nothing, without sleep
	sent, lost    int64
	times         latencies
}

// watch adds a socket, and what is under way by it; nil where it is not asked.
func (p *pace) watch(fd int, under *slots) {
	p.watched = append(p.watched, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	if under != nil {
		p.under = append(p.under, under)
	}
}

// came hears of a datagram that was sent at a time.
func (p *pace) came(at time.Duration) { p.times.add(time.Since(p.began) - at) }

// turned ends a turn that began at now and in which so many came. Done: all was sent, and nothing is under way any more. It sleeps only where nothing came for a
// while: a client that must be woken would cost the server a wake-up for each datagram.
func (p *pace) turned(now time.Duration, came int) (done bool, err error) {
	open := 0
	for _, s := range p.under {
		open += s.open()
	}
	after := time.Since(p.began)
	if came > 0 {
		p.ended = after
	} else if p.idle += after - now; after-p.ended > sleepTime {
		if _, err := unix.Poll(p.watched, 10); err != nil && !errors.Is(err, unix.EINTR) { // milliseconds
			return false, fmt.Errorf("wait for datagrams: %w", err)
		}
	}
	if after-p.looked > lostTime/8 {
		p.looked = after
		for _, s := range p.under {
			p.lost += s.giveUp(after - lostTime)
		}
	}
	return now >= p.last && open == 0, nil
}

// measured puts the course into m, whose Count stands; what are things of a kind.
func (p *pace) measured(m *Measured, things string) {
	if float64(p.lost) > maxLost*float64(p.sent) {
		m.Failed = fmt.Sprintf("%d of %d %s lost", p.lost, p.sent, things)
	}
	m.Mean, m.P50, m.P99 = p.times.mean(), p.times.quantile(0.5), p.times.quantile(0.99)
	m.Value = float64(m.Count) / max(p.ended, p.last).Seconds() // what is given up is waited for, but not by the rate
	m.Idle = p.idle
}
