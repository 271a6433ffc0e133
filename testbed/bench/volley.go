//go:build linux

package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bounds of a volley.
const (
	// volleySockets times volleyWindow queries are open at a time. A datagram of this size counts as 1,280 bytes at most of a socket's
	// buffer, which is 208 KiB where nobody changed it: a server may let all of them lie, and none is lost for want of room.
	volleySockets = 4
	volleyWindow  = 32
	maxQuery      = 512                    // bytes of a query
	maxAnswer     = 1500                   // of an answer
	lostTime      = 2 * time.Second        // after which an answer does not come any more
	sleepTime     = 200 * time.Microsecond // without an answer, after which it sleeps until one comes
)

// questions are queries in wire format, each with the one address that answers it. The zero value has none.
type questions struct {
	wire []byte   // one after the other
	ends []uint32 // of each, in wire
	want [][4]byte
}

// add adds one. The subnet is the client's; zero: none is told.
func (q *questions) add(name string, subnet netip.Prefix, want netip.Addr) error {
	m, err := question(0, name, subnet)
	if err == nil && len(m) > maxQuery {
		err = fmt.Errorf("the query for %s has %d bytes: at most %d", name, len(m), maxQuery)
	}
	if err != nil {
		return err
	}
	q.wire = append(q.wire, m...)
	q.ends = append(q.ends, uint32(len(q.wire)))
	q.want = append(q.want, want.As4())
	return nil
}

// at is query n, which is not to be changed.
func (q *questions) at(n int) []byte {
	begin := uint32(0)
	if n > 0 {
		begin = q.ends[n-1]
	}
	return q.wire[begin:q.ends[n]]
}

// volley is load by DNS over UDP from one thread: queries that lie in memory, asked in turn, over and over, written and read by sendmmsg(2) and
// recvmmsg(2), so that the load's core can do more than the server's. Each answer is looked at: it must be authoritative, be to that
// question, and have the one address that is right, else the volley ends as failed. It sleeps only where nothing came for a while: a client that
// must be woken would cost the server a wake-up for each answer.
type volley struct {
	address string // HOST:PORT
	*questions
	last time.Duration // how long queries are sent
}

// shooter is one socket of a volley.
type shooter struct {
	fd    int
	slots [volleyWindow]slot
	free  []int // slots without a query
	out   [volleyWindow]mmsg
	in    [volleyWindow]mmsg
	parts [2 * volleyWindow]unix.Iovec // of out, then of in
	sent  [volleyWindow][maxQuery]byte
	came  [volleyWindow][maxAnswer]byte
}

// slot is a query that is open. The ID of its message is the number of the slot and, above it, how often the slot was taken: an answer that comes
// after it was given up is known by that.
type slot struct {
	query int
	times uint16
	open  bool
	at    time.Duration // when it was sent, since the volley began
}

// mmsg is the kernel's struct mmsghdr.
type mmsg struct {
	unix.Msghdr
	n uint32
}

func newShooter(address netip.AddrPort) (*shooter, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect to %v: %w", address, err)
	}
	s := &shooter{fd: fd}
	for i := range volleyWindow {
		s.free = append(s.free, volleyWindow-1-i)
		out, in := &s.parts[i], &s.parts[volleyWindow+i]
		out.Base, in.Base = &s.sent[i][0], &s.came[i][0]
		in.SetLen(maxAnswer)
		s.out[i].Iov, s.in[i].Iov = out, in
		s.out[i].SetIovlen(1)
		s.in[i].SetIovlen(1)
	}
	return s, nil
}

// run shoots. The error is of this machine or the context; what is wrong with the server is Measured.Failed.
func (v *volley) run(ctx context.Context) (m Measured, err error) {
	address, err := netip.ParseAddrPort(v.address)
	if err != nil || !address.Addr().Is4() || len(v.ends) == 0 {
		return m, fmt.Errorf("ask %q %d questions: want an IPv4 address and a port, and one question: %w", v.address, len(v.ends), err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var shooters [volleySockets]*shooter
	var watched [volleySockets]unix.PollFd
	for i := range shooters {
		if shooters[i], err = newShooter(address); err != nil {
			return m, err
		}
		defer unix.Close(shooters[i].fd)
		watched[i] = unix.PollFd{Fd: int32(shooters[i].fd), Events: unix.POLLIN}
	}
	var times latencies
	var idle time.Duration // of turns that found nothing, without sleep
	var sent, lost int64
	next, began := 0, time.Now()
	ended, looked := time.Duration(0), time.Duration(0) // the last answer; the last look for what is lost
	for turn := 0; ; turn++ {
		now := time.Since(began)
		if turn%1024 == 0 && ctx.Err() != nil {
			return m, context.Cause(ctx)
		}
		open, came := 0, 0
		for _, s := range shooters {
			if now < v.last {
				n, err := s.shoot(v.questions, next, now)
				if err != nil {
					m.Failed = fmt.Sprintf("after %d answers: write a query: %v", m.Count, err)
					return m, nil
				}
				next, sent = (next+n)%len(v.ends), sent+int64(n)
			}
			n, err := s.take(v.questions, &m.Bytes, func(at time.Duration) { times.add(time.Since(began) - at) })
			if m.Count += int64(n); err != nil {
				m.Failed = fmt.Sprintf("after %d answers: %v", m.Count, err)
				return m, nil
			}
			came += n
			open += volleyWindow - len(s.free)
		}
		after := time.Since(began)
		if came > 0 {
			ended = after
		} else if idle += after - now; after-ended > sleepTime {
			if _, err := unix.Poll(watched[:], 10); err != nil && !errors.Is(err, unix.EINTR) { // milliseconds
				return m, fmt.Errorf("wait for answers: %w", err)
			}
		}
		if after-looked > lostTime/8 {
			looked = after
			for _, s := range shooters {
				lost += s.giveUp(after - lostTime)
			}
		}
		if now >= v.last && open == 0 {
			break
		}
	}
	if float64(lost) > maxLost*float64(sent) {
		m.Failed = fmt.Sprintf("%d of %d queries lost", lost, sent)
	}
	took := max(ended, v.last) // an answer that is given up is waited for, but not by the rate
	m.Mean, m.P50, m.P99 = times.mean(), times.quantile(0.5), times.quantile(0.99)
	m.Value = float64(m.Count) / took.Seconds()
	m.Idle = idle
	return m, nil
}

// shoot sends the next queries in all free slots, and says how many.
func (s *shooter) shoot(q *questions, next int, now time.Duration) (int, error) {
	// A turn for a few would cost a call for a few.
	if len(s.free) < volleyWindow/4 {
		return 0, nil
	}
	n := len(s.free)
	for i := range n {
		number := s.free[n-1-i]
		sl := &s.slots[number]
		sl.query, sl.at, sl.open, sl.times = (next+i)%len(q.ends), now, true, sl.times+1
		m := q.at(sl.query)
		copy(s.sent[i][:], m)
		binary.BigEndian.PutUint16(s.sent[i][:], uint16(number)|sl.times*volleyWindow)
		s.parts[i].SetLen(len(m))
	}
	for done := 0; done < n; {
		r, _, e := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.out[done])), uintptr(n-done), 0, 0, 0)
		switch {
		case e == unix.EAGAIN, e == unix.EINTR: // loopback takes it as soon as the receiver's queue is judged; a full one drops, and does not wait
			runtime.Gosched()
		case e != 0:
			return done, e
		default:
			done += int(r)
		}
	}
	s.free = s.free[:0]
	return n, nil
}

// take reads what has come, looks at it, and says how many were right; answered hears of each when its query was sent.
func (s *shooter) take(q *questions, size *int64, answered func(time.Duration)) (int, error) {
	r, _, e := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.in[0])), volleyWindow, unix.MSG_DONTWAIT, 0, 0)
	switch {
	case e == unix.EAGAIN, e == unix.EINTR:
		return 0, nil
	case e != 0:
		return 0, e
	}
	right := 0
	for i := range int(r) {
		m := s.came[i][:s.in[i].n]
		*size += int64(len(m))
		if len(m) < 12 {
			return right, fmt.Errorf("an answer of %d bytes", len(m))
		}
		id := binary.BigEndian.Uint16(m)
		number := int(id % volleyWindow)
		sl := &s.slots[number]
		if !sl.open || id != uint16(number)|sl.times*volleyWindow {
			continue // given up before: counted as lost
		}
		if err := judge(m, q.at(sl.query), q.want[sl.query]); err != nil {
			return right, err
		}
		answered(sl.at)
		sl.open = false
		s.free = append(s.free, number)
		right++
	}
	return right, nil
}

// giveUp frees the slots of queries that were sent before a time, and says how many.
func (s *shooter) giveUp(before time.Duration) (lost int64) {
	for number := range s.slots {
		if sl := &s.slots[number]; sl.open && sl.at < before {
			sl.open = false
			s.free = append(s.free, number)
			lost++
		}
	}
	return lost
}

// judge says what is wrong with an answer (RFC 1035, 4.1) to a query, which is to be one address.
func judge(m, query []byte, want [4]byte) error {
	asked := 12 + bytes.IndexByte(query[12:], 0) + 5 // the name, its type and class; labels have no zeros
	const response, authoritative, truncated = 0x80, 4, 2
	switch {
	case m[2]&response == 0:
		return errors.New("what came is no answer")
	case m[3]&15 != 0:
		return fmt.Errorf("answered with code %d", m[3]&15)
	case m[2]&authoritative == 0 || m[2]&truncated != 0:
		return fmt.Errorf("an answer that is not authoritative, or truncated: flags %02x", m[2])
	case binary.BigEndian.Uint16(m[4:]) != 1 || binary.BigEndian.Uint16(m[6:]) != 1:
		return fmt.Errorf("%d questions and %d answers", binary.BigEndian.Uint16(m[4:]), binary.BigEndian.Uint16(m[6:]))
	case len(m) < asked || !bytes.Equal(m[12:asked], query[12:asked]):
		return errors.New("an answer to another question")
	}
	at := asked
	for at < len(m) && m[at] != 0 && m[at] < 0xc0 {
		at += 1 + int(m[at])
	}
	if at < len(m) && m[at] >= 0xc0 {
		at++ // a pointer has two bytes, the end of a name one
	}
	at++
	if at+14 > len(m) || !bytes.Equal(m[at:at+4], []byte{0, 1, 0, 1}) || !bytes.Equal(m[at+8:at+10], []byte{0, 4}) {
		return errors.New("an answer without an address")
	}
	if got := [4]byte(m[at+10 : at+14]); got != want {
		return fmt.Errorf("answered %v, not %v", netip.AddrFrom4(got), netip.AddrFrom4(want))
	}
	return nil
}
