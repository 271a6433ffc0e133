//go:build linux

package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bounds of a load through a relay of datagrams.
const (
	relayedBatch = 64   // datagrams that are written or read at once
	maxRelayed   = 1500 // bytes of one
	maxTogether  = 32   // datagrams that are handed to the kernel, or taken from it, as one
)

// relayed is load through a relay of datagrams from one thread, which is the clients, each with a socket of its own, and what is behind the relay, which sends
// back what comes. Each datagram is looked at: it must be one that was sent and not come back yet. Written and read by sendmmsg(2) and recvmmsg(2), so that
// the load's core can do more than the relay's.
type relayed struct {
	address string // of the relay
	target  string // behind it
	flows   int
	window  int // datagrams of each that are under way
	size    int
	last    time.Duration // how long datagrams are sent
	// together has both ends hand the datagrams of a flow to the kernel as one, which it cuts (UDP_SEGMENT), and take them so where they come so (UDP_GRO), as
	// today's QUIC does; window is at most maxTogether then.
	together bool
}

// relaySocket is one end.
type relaySocket struct {
	fd    int
	out   [relayedBatch]mmsg
	in    [relayedBatch]mmsg
	parts [2 * relayedBatch]unix.Iovec // of out, then of in
	sent  [relayedBatch][maxRelayed]byte
	came  [relayedBatch][maxRelayed * maxTogether]byte
	names [relayedBatch]unix.RawSockaddrInet4
	cmsgs [2 * relayedBatch][8]uint64 // of in, then of out
	size  int                         // of each datagram, where they go together; 0: they do not

	slots // none at the end behind the relay
}

func newRelaySocket() (*relaySocket, error) {
	fd, err := newDatagramSocket()
	if err != nil {
		return nil, err
	}
	s := &relaySocket{fd: fd}
	newMessages(s.out[:], s.parts[:relayedBatch], func(i int) []byte { return s.sent[i][:] })
	newMessages(s.in[:], s.parts[relayedBatch:], func(i int) []byte { return s.came[i][:] })
	return s, nil
}

// goTogether has datagrams of a size be written and read together.
func (s *relaySocket) goTogether(size int) error {
	s.size = size
	return unix.SetsockoptInt(s.fd, unix.SOL_UDP, unix.UDP_GRO, 1)
}

// cut has what is written as message i be cut.
func (s *relaySocket) cut(i int) {
	c := &s.cmsgs[relayedBatch+i]
	h := (*unix.Cmsghdr)(unsafe.Pointer(c))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	*(*uint16)(unsafe.Add(unsafe.Pointer(c), unix.CmsgLen(0))) = uint16(s.size)
	s.out[i].Control = (*byte)(unsafe.Pointer(c))
	s.out[i].SetControllen(unix.CmsgSpace(2))
}

func inet4(address string) (*unix.SockaddrInet4, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil || !at.Addr().Is4() {
		return nil, fmt.Errorf("%q: want an IPv4 address and a port: %w", address, err)
	}
	return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}, nil
}

// bothInet4 are the addresses of a relay and of what is behind it.
func bothInet4(address, target string) (relay, behind *unix.SockaddrInet4, err error) {
	if relay, err = inet4(address); err == nil {
		behind, err = inet4(target)
	}
	return relay, behind, err
}

// run makes the load. The error is of this machine or the context; what is wrong with the relay is Measured.Failed.
func (l *relayed) run(ctx context.Context) (m Measured, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	relay, behind, err := bothInet4(l.address, l.target)
	if err != nil {
		return m, err
	}
	target, err := newRelaySocket()
	if err != nil {
		return m, err
	}
	defer unix.Close(target.fd)
	for i := range relayedBatch {
		target.in[i].Name, target.in[i].Namelen = (*byte)(unsafe.Pointer(&target.names[i])), unix.SizeofSockaddrInet4
	}
	if err := unix.Bind(target.fd, behind); err != nil {
		return m, fmt.Errorf("listen on %s: %w", l.target, err)
	}
	if l.together {
		if err := target.goTogether(l.size); err != nil {
			return m, fmt.Errorf("take datagrams together: %w", err)
		}
	}
	course := pace{last: l.last}
	course.watch(target.fd, nil)
	clients := make([]*relaySocket, l.flows)
	for i := range clients {
		if clients[i], err = newRelaySocket(); err != nil {
			return m, err
		}
		defer unix.Close(clients[i].fd)
		if err := unix.Connect(clients[i].fd, relay); err != nil {
			return m, fmt.Errorf("connect to %s: %w", l.address, err)
		}
		if l.together {
			if err := clients[i].goTogether(l.size); err != nil {
				return m, fmt.Errorf("take datagrams together: %w", err)
			}
		}
		clients[i].slots = newSlots(l.window)
		course.watch(clients[i].fd, &clients[i].slots)
	}
	course.began = time.Now()
	for turn := 0; ; turn++ {
		now := time.Since(course.began)
		if turn%256 == 0 && ctx.Err() != nil {
			return m, context.Cause(ctx)
		}
		came := 0
		for _, c := range clients {
			if now < l.last {
				n, err := c.shoot(l.size, now)
				if err != nil {
					m.Failed = fmt.Sprintf("after %d: write a datagram: %v", m.Count, err)
					return m, nil
				}
				course.sent += int64(n)
			}
		}
		if err := target.echo(); err != nil {
			m.Failed = fmt.Sprintf("after %d: behind the relay: %v", m.Count, err)
			return m, nil
		}
		for _, c := range clients {
			n, err := c.take(l.size, course.came)
			if m.Count += int64(n); err != nil {
				m.Failed = fmt.Sprintf("after %d: %v", m.Count, err)
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
	course.measured(&m, "datagrams")
	m.Bytes = m.Count * int64(l.size)
	return m, nil
}

// shoot sends datagrams in all free slots. Each says which slot it is of, and how often that was taken.
func (s *relaySocket) shoot(size int, now time.Duration) (int, error) {
	n := min(len(s.free), relayedBatch)
	if s.size > 0 && n < len(s.all)/2 {
		return 0, nil // a few would go alone
	}
	for i := range n {
		number := s.free[len(s.free)-1-i]
		sl := &s.all[number]
		sl.at, sl.open, sl.times = now, true, sl.times+1
		binary.BigEndian.PutUint16(s.sent[i][:], uint16(number))
		binary.BigEndian.PutUint16(s.sent[i][2:], sl.times)
		s.parts[i].SetLen(size)
	}
	s.free = s.free[:len(s.free)-n]
	if s.size == 0 || n == 0 {
		return n, sendAll(s.fd, s.out[:n])
	}
	s.out[0].SetIovlen(n)
	s.cut(0)
	return n, sendAll(s.fd, s.out[:1])
}

func (s *relaySocket) receive() (int, error) {
	if s.size > 0 {
		for i := range s.in {
			s.in[i].Control = (*byte)(unsafe.Pointer(&s.cmsgs[i])) // that many came as one is seen by their length
			s.in[i].SetControllen(len(s.cmsgs[i]) * 8)
		}
	}
	return receiveSome(s.fd, s.in[:])
}

// echo sends back what came.
func (s *relaySocket) echo() error {
	for {
		n, err := s.receive()
		if n == 0 || err != nil {
			return err
		}
		for i := range n {
			s.out[i].Name, s.out[i].Namelen = s.in[i].Name, unix.SizeofSockaddrInet4
			s.parts[i].Base = &s.came[i][0]
			s.parts[i].SetLen(int(s.in[i].n))
			if s.size > 0 {
				s.cut(i)
			}
		}
		if err := sendAll(s.fd, s.out[:n]); err != nil {
			return err
		}
		if n < relayedBatch {
			return nil
		}
	}
}

// take reads what has come back, and says how many were right.
func (s *relaySocket) take(size int, back func(time.Duration)) (right int, err error) {
	n, err := s.receive()
	var all [][]byte
	for i := range n {
		p := s.came[i][:s.in[i].n]
		for ; s.size > 0 && len(p) > size; p = p[size:] {
			all = append(all, p[:size])
		}
		all = append(all, p)
	}
	for _, p := range all {
		if len(p) != size || !bytes.Equal(p[4:], s.sent[0][4:size]) {
			return right, fmt.Errorf("what came back, of %d bytes, was not sent", len(p))
		}
		number := int(binary.BigEndian.Uint16(p))
		if number >= len(s.all) || !s.all[number].open || s.all[number].times != binary.BigEndian.Uint16(p[2:]) {
			continue // given up before, or here already
		}
		back(s.all[number].at)
		s.close(number)
		right++
	}
	return right, err
}
