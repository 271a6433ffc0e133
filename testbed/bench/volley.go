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

	"golang.org/x/sys/unix"
)

// Bounds of a volley.
const (
	// volleySockets times volleyWindow queries are open at a time. A datagram of this size counts as 1,280 bytes at most of a socket's
	// buffer, which is 208 KiB where nobody changed it: a server may let all of them lie, and none is lost for want of room.
	volleySockets = 4
	volleyWindow  = 32
	maxQuery      = 512  // bytes of a query
	maxAnswer     = 1500 // of an answer
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
// question, and have the one address that is right, else the volley ends as failed.
type volley struct {
	address string // HOST:PORT
	*questions
	last time.Duration // how long queries are sent
}

// shooter is one socket of a volley.
type shooter struct {
	fd    int
	slots // the ID of a message is the number of its slot and, above it, how often the slot was taken
	out   [volleyWindow]mmsg
	in    [volleyWindow]mmsg
	parts [2 * volleyWindow]unix.Iovec // of out, then of in
	sent  [volleyWindow][maxQuery]byte
	came  [volleyWindow][maxAnswer]byte
}

func newShooter(address netip.AddrPort) (*shooter, error) {
	fd, err := newDatagramSocket()
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect to %v: %w", address, err)
	}
	s := &shooter{fd: fd, slots: newSlots(volleyWindow)}
	newMessages(s.out[:], s.parts[:volleyWindow], func(i int) []byte { return s.sent[i][:] })
	newMessages(s.in[:], s.parts[volleyWindow:], func(i int) []byte { return s.came[i][:] })
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
	course := pace{last: v.last}
	for i := range shooters {
		if shooters[i], err = newShooter(address); err != nil {
			return m, err
		}
		defer unix.Close(shooters[i].fd)
		course.watch(shooters[i].fd, &shooters[i].slots)
	}
	next := 0
	course.began = time.Now()
	for turn := 0; ; turn++ {
		now := time.Since(course.began)
		if turn%1024 == 0 && ctx.Err() != nil {
			return m, context.Cause(ctx)
		}
		came := 0
		for _, s := range shooters {
			if now < v.last {
				n, err := s.shoot(v.questions, next, now)
				if err != nil {
					m.Failed = fmt.Sprintf("after %d answers: write a query: %v", m.Count, err)
					return m, nil
				}
				next, course.sent = (next+n)%len(v.ends), course.sent+int64(n)
			}
			n, err := s.take(v.questions, &m.Bytes, course.came)
			if m.Count += int64(n); err != nil {
				m.Failed = fmt.Sprintf("after %d answers: %v", m.Count, err)
				return m, nil
			}
			came += n
		}
		done, err := course.turned(now, came)
		if err != nil {
			return m, err
		}
		if done {
			break
		}
	}
	course.measured(&m, "queries")
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
		sl := &s.all[number]
		sl.query, sl.at, sl.open, sl.times = (next+i)%len(q.ends), now, true, sl.times+1
		m := q.at(sl.query)
		copy(s.sent[i][:], m)
		binary.BigEndian.PutUint16(s.sent[i][:], uint16(number)|sl.times*volleyWindow)
		s.parts[i].SetLen(len(m))
	}
	if err := sendAll(s.fd, s.out[:n]); err != nil {
		return 0, err
	}
	s.free = s.free[:0]
	return n, nil
}

// take reads what has come, looks at it, and says how many were right; answered hears of each when its query was sent.
func (s *shooter) take(q *questions, size *int64, answered func(time.Duration)) (int, error) {
	came, err := receiveSome(s.fd, s.in[:])
	if err != nil {
		return 0, err
	}
	right := 0
	for i := range came {
		m := s.came[i][:s.in[i].n]
		*size += int64(len(m))
		if len(m) < 12 {
			return right, fmt.Errorf("an answer of %d bytes", len(m))
		}
		id := binary.BigEndian.Uint16(m)
		number := int(id % volleyWindow)
		sl := &s.all[number]
		if !sl.open || id != uint16(number)|sl.times*volleyWindow {
			continue // given up before: counted as lost
		}
		if err := judge(m, q.at(sl.query), q.want[sl.query]); err != nil {
			return right, err
		}
		answered(sl.at)
		s.close(number)
		right++
	}
	return right, nil
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
