package fec

import (
	"encoding/binary"
	"net"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"github.com/perigee-net/perigee/cluster/datagram"
	"golang.org/x/sys/unix"
)

const (
	// readAtOnce is how many messages of the kernel are read at once, each of which may be many datagrams.
	readAtOnce = 4
	// wholeSize is the longest message.
	wholeSize = 1 << 16
	// controlSize is the room for what the kernel says of a message: how it is to be cut, ECN, and which address was asked, of both families.
	controlSize = 192
)

// arrivals are messages that were read of a socket, and have not been taken yet.
type arrivals struct {
	raw     syscall.RawConn
	reading func(fd uintptr) (done bool) // receive
	err     syscall.Errno

	in    [readAtOnce]datagram.Message
	names [readAtOnce]unix.RawSockaddrInet6
	parts [readAtOnce]unix.Iovec
	said  [readAtOnce][controlSize / 8]uint64
	whole *[readAtOnce][wholeSize]byte
	came  int // messages
	at    int // the next of them

	// Of the message that is being taken:
	left []byte // of it
	size int    // of each datagram but the last
	oob  []byte // what was said of each
	from *net.UDPAddr
	name unix.RawSockaddrInet6 // that from was made of
	peer *Peer
}

func newArrivals(udp *net.UDPConn) (*arrivals, error) {
	raw, err := udp.SyscallConn()
	if err != nil {
		return nil, err
	}
	// Where the kernel has none they come one by one.
	if err := raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1) }); err != nil {
		return nil, err
	}
	a := &arrivals{raw: raw, whole: new([readAtOnce][wholeSize]byte)}
	a.reading = a.receive
	for i := range readAtOnce {
		a.parts[i].Base = &a.whole[i][0]
		a.parts[i].SetLen(wholeSize)
		h := &a.in[i].Header
		h.Iov, h.Name, h.Control = &a.parts[i], (*byte)(unsafe.Pointer(&a.names[i])), (*byte)(unsafe.Pointer(&a.said[i]))
		h.SetIovlen(1)
	}
	return a, nil
}

// read waits until messages have come, and reads them. All that came before have been taken.
func (a *arrivals) read() error {
	err := a.raw.Read(a.reading)
	if err == nil && a.err != 0 {
		err = os.NewSyscallError("recvmmsg", a.err)
	}
	if err != nil {
		return &net.OpError{Op: "read", Net: "udp", Err: err}
	}
	return nil
}

func (a *arrivals) receive(fd uintptr) (done bool) {
	for i := range a.in {
		h := &a.in[i].Header
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(controlSize)
	}
	for {
		a.came, a.at = 0, 0
		n, err := datagram.Receive(fd, a.in[:])
		switch err {
		case 0:
			a.came, a.err = n, 0
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			a.err = err
			return true
		}
	}
}

// next says that there is a datagram to be taken.
func (a *arrivals) next(c *Conn) bool {
	for len(a.left) == 0 {
		if a.at == a.came {
			return false
		}
		a.open(c, a.at)
		a.at++
	}
	return true
}

// take is the next datagram, what was said of it, and the state for who has sent it, if there is one. It is good until the next read.
func (a *arrivals) take() (b, oob []byte, p *Peer) {
	n := min(a.size, len(a.left))
	b, a.left = a.left[:n], a.left[n:]
	return b, a.oob, a.peer
}

// open begins with a message.
func (a *arrivals) open(c *Conn, i int) {
	m := &a.in[i]
	a.left = a.whole[i][:m.N]
	a.size, a.oob = together((*[controlSize]byte)(unsafe.Pointer(&a.said[i]))[:m.Header.Controllen])
	if a.size <= 0 {
		a.size = len(a.left)
	}
	if a.from == nil || a.name != a.names[i] {
		a.name, a.from = a.names[i], sender(&a.names[i])
	}
	a.peer = c.find(a.from)
}

// sender is who has sent a message, as package net names him.
func sender(name *unix.RawSockaddrInet6) *net.UDPAddr {
	from := net.UDPAddrFromAddrPort(datagram.From(name))
	if index, err := strconv.Atoi(from.Zone); err == nil {
		if i, err := net.InterfaceByIndex(index); err == nil {
			from.Zone = i.Name
		}
	}
	return from
}

// together is how long each datagram of a message is but the last, 0 for one alone, and what else the kernel says of it.
func together(oob []byte) (size int, rest []byte) {
	for at := 0; at+unix.SizeofCmsghdr <= len(oob); {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[at]))
		if h.Len < unix.SizeofCmsghdr || uint64(h.Len) > uint64(len(oob)-at) {
			break
		}
		end := min(at+unix.CmsgSpace(int(h.Len)-unix.CmsgLen(0)), len(oob))
		if h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && int(h.Len) >= unix.CmsgLen(4) {
			size = int(int32(binary.NativeEndian.Uint32(oob[at+unix.CmsgLen(0):])))
			return size, append(oob[:at], oob[end:]...)
		}
		at = end
	}
	return 0, oob
}
