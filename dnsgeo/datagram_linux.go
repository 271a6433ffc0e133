package dnsgeo

import (
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchSize is how many datagrams are read, and written, at once, as far as they are there.
const batchSize = 64

// slotSize is what is kept for a query, and for its response: whole cache lines, and odd numbers of them, or the beginnings of all
// would compete for the same few places in the processor's cache.
const (
	querySlot    = maxQuerySize + 64
	responseSlot = payloadSize + 48
)

// controlSize is what is kept for the control message that tells which address was asked.
const controlSize = 64

// message is struct mmsghdr.
type message struct {
	header unix.Msghdr
	n      uint32
}

// batch is a socket of the kernel as one goroutine uses it: it reads many queries at once and writes their responses at once, each
// to whom and from where it came. It takes no memory after it is made.
type batch struct {
	raw    syscall.RawConn
	told   bool // control messages tell which address was asked
	came   int  // how many were read
	going  int  // how many are to be written
	from   int  // of them, the first that is not written yet
	failed int  // how many the system did not take
	err    syscall.Errno

	receive, send func(fd uintptr) bool

	in, out   [batchSize]message
	read      [batchSize]unix.Iovec
	written   [batchSize]unix.Iovec
	names     [batchSize]unix.RawSockaddrInet6
	controls  [batchSize][controlSize / 8]uint64
	queries   [batchSize][querySlot]byte
	responses [batchSize][responseSlot]byte
}

func newBatch(conn *net.UDPConn) (*batch, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	b := &batch{raw: raw}
	if local, _ := conn.LocalAddr().(*net.UDPAddr); local == nil || local.IP.IsUnspecified() {
		// A socket of all addresses would answer from the address of the route back, which need not be the one that was
		// asked: an anycast address is never the first of a machine. So the kernel is made to tell which it was.
		if err := raw.Control(func(fd uintptr) { b.told = tell(int(fd)) == nil }); err != nil {
			return nil, err
		}
	}
	for i := range batchSize {
		b.read[i].Base = &b.queries[i][0]
		b.read[i].SetLen(maxQuerySize)
		b.written[i].Base = &b.responses[i][0]
		in, out := &b.in[i].header, &b.out[i].header
		in.Name, in.Iov = (*byte)(unsafe.Pointer(&b.names[i])), &b.read[i]
		in.SetIovlen(1)
		out.SetIovlen(1)
	}
	b.receive, b.send = b.receiveNow, b.sendNow
	return b, nil
}

// tell has the kernel tell which address was asked. On a socket of both families those of IPv4 are told as mapped into IPv6.
func tell(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	switch {
	case err != nil:
		return err
	case domain == unix.AF_INET:
		return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_PKTINFO, 1)
	default:
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
}

// next waits for queries and reads as many as are there, up to batchSize.
func (b *batch) next() (n int, err error) {
	for i := range b.in {
		h := &b.in[i].header
		h.Namelen = unix.SizeofSockaddrInet6
		if b.told {
			h.Control = (*byte)(unsafe.Pointer(&b.controls[i][0]))
			h.SetControllen(controlSize)
		}
	}
	b.came, b.going, b.err = 0, 0, 0
	if err := b.raw.Read(b.receive); err != nil {
		return 0, err
	}
	if b.err != 0 {
		return 0, b.err
	}
	return b.came, nil
}

func (b *batch) receiveNow(fd uintptr) (done bool) {
	for {
		n, _, err := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in[0])), batchSize, unix.MSG_DONTWAIT, 0, 0)
		switch err {
		case 0:
			b.came = int(n)
			return true
		case unix.EAGAIN:
			return false
		case unix.EINTR, unix.ECONNREFUSED: // what an ICMP message said of a response
		default:
			b.err = err
			return true
		}
	}
}

// query is one of those that were read, the room for its response, and who sent it.
func (b *batch) query(i int) (query, room []byte, from netip.Addr) {
	name := &b.names[i]
	if name.Family == unix.AF_INET {
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		from = netip.AddrFrom4(four.Addr)
	} else {
		from = netip.AddrFrom16(name.Addr).Unmap()
	}
	return b.queries[i][:b.in[i].n], b.responses[i][:0:payloadSize], from
}

// answer is to write a response to the query: from its room, where it stands already unless it had none there.
func (b *batch) answer(i int, response []byte) {
	room := b.responses[i][:]
	if &response[0] != &room[0] {
		response = room[:copy(room, response)]
	}
	in, out := &b.in[i].header, &b.out[b.going].header
	b.written[i].SetLen(len(response))
	out.Iov = &b.written[i]
	out.Name, out.Namelen = in.Name, in.Namelen
	out.Control, out.Controllen = nil, 0
	if b.told && in.Controllen > 0 {
		turn(&b.controls[i])
		out.Control, out.Controllen = in.Control, in.Controllen
	}
	b.going++
}

// turn makes of the control message that tells where a datagram came the one by which another is sent from there.
func turn(control *[controlSize / 8]uint64) {
	header := (*unix.Cmsghdr)(unsafe.Pointer(control))
	data := (*[controlSize]byte)(unsafe.Pointer(control))[unix.CmsgLen(0):]
	switch {
	case header.Level == unix.SOL_IP && header.Type == unix.IP_PKTINFO:
		clear(data[:4])           // the interface: by the route
		copy(data[4:8], data[8:]) // from the address it was sent to
	case header.Level == unix.SOL_IPV6 && header.Type == unix.IPV6_PKTINFO:
		if !(data[0] == 0xfe && data[1]&0xc0 == 0x80) { // a link-local address is one of an interface
			clear(data[16:20])
		}
	}
}

// flush writes the responses and returns how many the system did not take.
func (b *batch) flush() (failed int, err error) {
	b.from, b.failed = 0, 0
	if b.going == 0 {
		return 0, nil
	}
	err = b.raw.Write(b.send)
	return b.failed, err
}

func (b *batch) sendNow(fd uintptr) (done bool) {
	for b.from < b.going {
		n, _, err := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.out[b.from])), uintptr(b.going-b.from), unix.MSG_DONTWAIT, 0, 0)
		switch err {
		case 0:
			b.from += int(n)
		case unix.EAGAIN:
			return false
		case unix.EINTR:
		default: // one asker's trouble: no route, for example
			b.failed++
			b.from++
		}
	}
	return true
}

// batches is how one goroutine serves the socket by many datagrams at once; nil where that cannot be.
func (s *Server) batches(conn net.PacketConn) func() error {
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return nil
	}
	return func() error {
		b, err := newBatch(udp)
		if err != nil {
			return err
		}
		d := s.newDesk()
		for {
			n, err := b.next()
			if err != nil {
				return err
			}
			for i := range n {
				query, room, from := b.query(i)
				if response := d.respond(room, query, from, UDP); response != nil {
					b.answer(i, response)
				}
			}
			failed, err := b.flush()
			s.counts.unsent.Add(uint64(failed))
			if err != nil {
				return err
			}
		}
	}
}
