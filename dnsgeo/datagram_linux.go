package dnsgeo

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/cluster/datagram"
)

// batchSize is how many datagrams are read, and written, at once, as far as they are there.
const batchSize = 64

// slotSize is what is kept for a query, and for its response: whole cache lines, and odd numbers of them, or the beginnings of all
// would compete for the same few places in the processor's cache.
const (
	querySlot    = maxQuerySize + 64
	responseSlot = payloadSize + 48
)

// Several responses of one length to one port go as one large datagram, which the kernel cuts (UDP_SEGMENT, udp(7)) as late as it can: most of
// what a datagram costs is its way through the kernel. That is for forwarders and load balancers, who ask from few ports; a resolver that
// asks from another port each time gains nothing by it.
const (
	// maxTogether is how many bytes go at once: what a datagram of IPv4 may have, which the whole is before it is cut.
	maxTogether = 65_507

	// parcelPlaces is in how many places a parcel that has room for more is looked for.
	parcelPlaces = 4 * batchSize
)

// parcel is responses that go together: all to whom the first goes, and from where.
type parcel struct {
	first int  // the query
	size  int  // of each response
	n     int  // of them, those that are not written yet
	at    int  // the first of them
	apart bool // the system did not take them together
}

// batch is a socket of the kernel as one goroutine uses it: it reads many queries at once and writes their responses at once, each
// to whom and from where it came. It takes no memory after it is made.
type batch struct {
	conn    *net.UDPConn
	raw     syscall.RawConn
	told    bool // control messages tell which address was asked
	cuts    bool // the kernel cuts datagrams
	came    int  // how many were read
	going   int  // how many are to be written
	parcels int  // in so many
	from    int  // of the parcels, the first that is not written yet
	failed  int  // how many responses the system did not take
	err     syscall.Errno

	receive, send func(fd uintptr) bool

	in, out   [batchSize]datagram.Message
	read      [batchSize]unix.Iovec
	written   [batchSize]unix.Iovec
	names     [batchSize]unix.RawSockaddrInet6
	controls  [batchSize]datagram.Control
	queries   [batchSize][querySlot]byte
	responses [batchSize][responseSlot]byte

	parcel  [batchSize]parcel
	place   [parcelPlaces]uint8         // by hash of whom and which length, one more than the parcel
	cutting [batchSize]datagram.Control // the control messages of parcels that are to be cut
	goes    [batchSize]struct {         // of each response, by the order in which they were made
		query, size uint16
		parcel      uint8
	}
}

func newBatch(conn *net.UDPConn) (*batch, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	b := &batch{conn: conn, raw: raw}
	if local, _ := conn.LocalAddr().(*net.UDPAddr); local == nil || local.IP.IsUnspecified() {
		if err := raw.Control(func(fd uintptr) { b.told = datagram.Tell(fd) == nil }); err != nil {
			return nil, err
		}
	}
	if err := raw.Control(func(fd uintptr) { b.cuts = datagram.Cuts(fd) }); err != nil {
		return nil, err
	}
	for i := range batchSize {
		b.read[i].Base = &b.queries[i][0]
		b.read[i].SetLen(maxQuerySize)
		in := &b.in[i].Header
		in.Name, in.Iov = (*byte)(unsafe.Pointer(&b.names[i])), &b.read[i]
		in.SetIovlen(1)
	}
	b.receive, b.send = b.receiveNow, b.sendNow
	return b, nil
}

// next waits for queries and reads as many as are there, up to batchSize.
func (b *batch) next() (n int, err error) {
	for i := range b.in {
		h := &b.in[i].Header
		h.Namelen = unix.SizeofSockaddrInet6
		if b.told {
			h.Control = (*byte)(unsafe.Pointer(&b.controls[i][0]))
			h.SetControllen(datagram.ControlSize)
		}
	}
	b.came, b.going, b.parcels, b.err = 0, 0, 0, 0
	clear(b.place[:])
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
		n, err := datagram.Receive(fd, b.in[:])
		switch err {
		case 0:
			b.came = n
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
	return b.queries[i][:b.in[i].N], b.responses[i][:0:payloadSize], from
}

// answer is to write a response to the query: from its room, where it stands already unless it had none there.
func (b *batch) answer(i int, response []byte) {
	room := b.responses[i][:]
	if &response[0] != &room[0] {
		response = room[:copy(room, response)]
	}
	if b.told && b.in[i].Header.Controllen > 0 {
		datagram.Turn(&b.controls[i])
	}
	goes := &b.goes[b.going]
	goes.query, goes.size, goes.parcel = uint16(i), uint16(len(response)), uint8(b.parcelOf(i, len(response)))
	b.going++
}

// parcelOf finds the parcel in which the response to a query goes, or makes one. Where another's stands at its place it is looked for at the
// next, or two askers of one place would put each other out all the time. There are more places than parcels, so one is free.
func (b *batch) parcelOf(i, size int) (k int) {
	at := b.hash(i, size)
	for ; b.cuts && b.place[at] > 0; at = (at + 1) % parcelPlaces {
		k = int(b.place[at]) - 1
		if p := &b.parcel[k]; size == p.size && b.together(p.first, i) {
			if (p.n+1)*size > maxTogether {
				break // it is full
			}
			p.n++
			return k
		}
	}
	k = b.parcels
	b.parcels++
	b.parcel[k] = parcel{first: i, size: size, n: 1}
	b.place[at] = uint8(k + 1)
	return k
}

// hash spreads responses by who asked, by port and the end of the address, and by length.
func (b *batch) hash(i, size int) int {
	name := &b.names[i]
	h := uint32(name.Port) ^ uint32(size)<<16
	if name.Family == unix.AF_INET {
		h ^= name.Flowinfo // where IPv4 has the address
	} else {
		h ^= binary.LittleEndian.Uint32(name.Addr[12:])
	}
	return int(h * 0x9e3779b1 >> 16 % parcelPlaces)
}

// together says whether two queries are of one asker, and to one address. Of IPv4, the rest of a name is zero.
func (b *batch) together(i, j int) bool {
	if b.names[i] != b.names[j] {
		return false
	}
	if !b.told {
		return true
	}
	n := b.in[i].Header.Controllen
	return n == b.in[j].Header.Controllen && int(n) <= datagram.ControlSize-unix.CmsgSpace(2) && b.controls[i] == b.controls[j]
}

// later is to write a response to the query when its rooms are those of others.
func (b *batch) later(i int) func(response []byte) error {
	in, to := &b.in[i].Header, datagram.From(&b.names[i])
	var control []byte
	if b.told && in.Controllen > 0 {
		datagram.Turn(&b.controls[i])
		control = bytes.Clone(b.controls[i].Bytes()[:in.Controllen])
	}
	return func(response []byte) error {
		_, _, err := b.conn.WriteMsgUDPAddrPort(response, control, to)
		return err
	}
}

// flush writes the responses and returns how many the system did not take.
func (b *batch) flush() (failed int, err error) {
	if b.from, b.failed = 0, 0; b.going == 0 {
		return 0, nil
	}
	at := 0
	for k := range b.parcels {
		p := &b.parcel[k]
		p.at = at
		at += p.n
		b.address(k)
		if p.n > 1 {
			b.cut(k)
		}
		p.n = 0
	}
	for i := range b.going {
		goes := &b.goes[i]
		p := &b.parcel[goes.parcel]
		written := &b.written[p.at+p.n]
		written.Base = &b.responses[goes.query][0]
		written.SetLen(int(goes.size))
		p.n++
	}
	err = b.raw.Write(b.send)
	return b.failed, err
}

// address addresses the first response of a parcel.
func (b *batch) address(k int) {
	p, header := &b.parcel[k], &b.out[k].Header
	in := &b.in[p.first].Header
	header.Name, header.Namelen = in.Name, in.Namelen
	header.Iov = &b.written[p.at]
	header.SetIovlen(1)
	header.Control, header.Controllen = nil, 0
	if b.told {
		header.Control, header.Controllen = in.Control, in.Controllen
	}
}

// cut has the kernel take all of a parcel that is addressed, and cut it.
func (b *batch) cut(k int) {
	p, header := &b.parcel[k], &b.out[k].Header
	header.SetIovlen(p.n)
	control := &b.cutting[k]
	n := copy(control.Bytes()[:], unsafe.Slice(header.Control, header.Controllen))
	header.Control = (*byte)(unsafe.Pointer(control))
	header.SetControllen(datagram.Cut(control, n, p.size))
}

func (b *batch) sendNow(fd uintptr) (done bool) {
	for b.from < b.parcels {
		p := &b.parcel[b.from]
		to := b.parcels
		if p.apart {
			to = b.from + 1
		}
		n, err := datagram.Send(fd, b.out[b.from:to])
		switch {
		case err == unix.EAGAIN:
			return false
		case err == unix.EINTR:
		case err != 0 && p.n > 1 && !p.apart:
			// A device that makes no checksums (EIO), a path that takes less than a response has.
			b.cuts = b.cuts && err != unix.EIO
			p.apart = true
			b.address(b.from)
		case err == 0 && !p.apart:
			b.from += n
		default:
			if err != 0 { // one asker's trouble: no route, for example
				b.failed++
			}
			if p.n--; p.n == 0 {
				b.from++
				break
			}
			p.at++
			b.address(b.from)
		}
	}
	return true
}

// packetsOf is a socket that is not the kernel's: those are served by batches.
func packetsOf(conn net.PacketConn) packets { return &anyPackets{conn: conn} }

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
		d.asker.recents = new(recents)
		for {
			n, err := b.next()
			if err != nil {
				return err
			}
			d.came = time.Since(s.began)
			for i := range n {
				query, room, from := b.query(i)
				if response := d.respond(room, query, from, UDP); response != nil {
					b.answer(i, response)
				} else if u := d.takeUpdate(); u != nil {
					s.finishLater(u, b.later(i))
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
