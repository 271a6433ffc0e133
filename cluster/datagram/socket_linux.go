package datagram

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// batchSize is how many messages are read, or written, at once.
	batchSize = 64
	// headSize is what is kept for the beginning of a message that is read, and is all that most have: these lie close together, so that few pages of memory
	// are touched. The rest of those that are longer, which may be many datagrams, goes where there is room for all of it.
	headSize  = 1536
	wholeSize = 1<<16 + 64 // whole cache lines, an odd number of them: else the beginnings would compete for the same few places in the processor's cache
	// maxCut is how many datagrams a message is cut into at most (UDP_MAX_SEGMENTS), and maxParts how many are written at once.
	maxCut   = 64
	maxParts = 256
	// buffer is what a listening socket may hold until it is read, and until it is sent, in bytes as the kernel counts them; net.core.rmem_max and wmem_max
	// may give it less.
	buffer = 2 << 20
	// maxBatches is how many times in a row a socket is read that is not found empty, until it is looked whether it was closed.
	maxBatches = 64
	// maxRefusals bounds how often one write is made anew because an earlier datagram was refused.
	maxRefusals = 4
)

// kernel is a socket of the kernel.
type kernel struct {
	raw    syscall.RawConn
	told   bool // control messages tell which address was asked
	six    bool // it is of IPv6, or both
	dialed bool
	cuts   atomic.Bool // the kernel cuts datagrams
}

// kernelOf is nil where a socket is not the kernel's.
func kernelOf(conn any, dialed bool) (*kernel, error) {
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return nil, nil
	}
	raw, err := udp.SyscallConn()
	if err != nil {
		return nil, err
	}
	if !dialed {
		udp.SetReadBuffer(buffer) // what it gets, it gets
		udp.SetWriteBuffer(buffer)
	}
	local, _ := udp.LocalAddr().(*net.UDPAddr)
	k := &kernel{raw: raw, dialed: dialed}
	err = raw.Control(func(fd uintptr) {
		domain, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		k.six = domain == unix.AF_INET6
		k.told = !dialed && (local == nil || local.IP.IsUnspecified()) && Tell(fd) == nil
		k.cuts.Store(Cuts(fd))
		unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1) // where there is none they come one by one
	})
	return k, err
}

// reader is what reading needs while there is something to read: sockets that are silent hold nothing.
type reader struct {
	in       [batchSize]Message
	parts    [batchSize][2]unix.Iovec
	names    [batchSize]unix.RawSockaddrInet6
	controls [batchSize]Control
	came     []Datagram
	used     int // messages that were read into, and are to be made ready again
	heads    [batchSize][headSize]byte
	whole    *[batchSize][wholeSize]byte
}

// readers and writers are caches and no state: nothing depends on what is in them. Readers of sockets that are dialled, by whether they are, are not told who has sent:
// that is known, and costs.
var readers = [2]sync.Pool{{New: func() any { return newReader(false) }}, {New: func() any { return newReader(true) }}}

func newReader(dialled bool) *reader {
	r := &reader{whole: new([batchSize][wholeSize]byte), used: batchSize}
	for i := range batchSize {
		r.parts[i][0].Base, r.parts[i][1].Base = &r.heads[i][0], &r.whole[i][headSize]
		r.parts[i][0].SetLen(headSize)
		r.parts[i][1].SetLen(wholeSize - headSize)
		h := &r.in[i].Header
		h.Iov, h.Control = &r.parts[i][0], (*byte)(unsafe.Pointer(&r.controls[i]))
		h.SetIovlen(2)
		if !dialled {
			h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		}
	}
	return r
}

// serve reads until the socket fails. As much as can be is done within one call of raw.Read: it waits for news since it last looked, so after few datagrams
// there is no need to look whether there are more. An error that comes between two of them (ICMP) is such news. Where they do not end the call does: who
// closes the socket waits for it.
func (k *kernel) serve(handle func([]Datagram), refused func(), closed *atomic.Bool) error {
	var r *reader
	failed := syscall.Errno(0)
	pool := &readers[0]
	if k.dialed {
		pool = &readers[1]
	}
	read := func(fd uintptr) (done bool) {
		for batches := 1; ; {
			if r == nil {
				r = pool.Get().(*reader)
			}
			n, err := k.receive(fd, r)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.ECONNREFUSED:
				if k.dialed {
					refused()
				}
				continue
			case err != 0 && err != unix.EAGAIN:
				failed = err
				return true
			case n > 0:
				handle(r.came)
			}
			if n == batchSize && batches < maxBatches && !closed.Load() {
				batches++
				continue
			}
			pool.Put(r)
			r = nil
			return n == batchSize
		}
	}
	for {
		if err := k.raw.Read(read); err != nil {
			return err
		}
		if failed != 0 {
			return failed
		}
	}
}

func (k *kernel) receive(fd uintptr, r *reader) (int, syscall.Errno) {
	for i := range r.used {
		h := &r.in[i].Header
		if h.Name != nil {
			h.Namelen = unix.SizeofSockaddrInet6
		}
		h.SetControllen(ControlSize)
	}
	n, err := Receive(fd, r.in[:])
	if err != 0 {
		r.used = 1
		return 0, err
	}
	r.used = min(n+1, batchSize) // one more, that was tried and had nothing, may have been touched
	r.came = r.came[:0]
	for i := range n {
		d := Datagram{Data: r.data(i)}
		if !k.dialed {
			d.From = From(&r.names[i])
		}
		size := 0
		d.At, size = look(r.controls[i].Bytes()[:r.in[i].Header.Controllen])
		if size == 0 || size >= len(d.Data) {
			r.came = append(r.came, d)
			continue
		}
		for whole := d.Data; len(whole) > 0; whole = whole[len(d.Data):] {
			d.Data = whole[:min(size, len(whole)):min(size, len(whole))]
			r.came = append(r.came, d)
		}
	}
	return n, 0
}

// data is what a message has.
func (r *reader) data(i int) []byte {
	n := int(r.in[i].N)
	if n <= headSize {
		return r.heads[i][:n]
	}
	copy(r.whole[i][:headSize], r.heads[i][:])
	return r.whole[i][:n]
}

// look reads the control messages of what came: the address that was asked, and the size of each datagram where many came as one.
func look(control []byte) (at netip.Addr, size int) {
	for len(control) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
		n := int(h.Len)
		if n < unix.SizeofCmsghdr || n > len(control) {
			return at, size
		}
		data := control[unix.CmsgLen(0):n]
		switch {
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			size = int(binary.NativeEndian.Uint32(data))
		case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(data) >= 12:
			at = netip.AddrFrom4([4]byte(data[8:]))
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= 20:
			at = netip.AddrFrom16([16]byte(data)).Unmap()
		}
		control = control[min(unix.CmsgSpace(n-unix.CmsgLen(0)), len(control)):]
	}
	return at, size
}

// writer is what writing needs.
type writer struct {
	out      [batchSize]Message
	counts   [batchSize]int // datagrams in each
	parts    [maxParts]unix.Iovec
	controls [batchSize]Control
	name     unix.RawSockaddrInet6

	k       *kernel
	way     Way
	all     [][]byte // that are not written yet
	apart   bool     // the system did not take them together
	sent    int
	err     error
	sending func(fd uintptr) bool
}

var writers = sync.Pool{New: func() any {
	w := &writer{}
	w.sending = w.send
	return w
}}

func (k *kernel) send(way Way, all [][]byte) (int, error) {
	w := writers.Get().(*writer)
	w.k, w.way, w.all, w.apart, w.sent, w.err = k, way, all, false, 0, nil
	if !k.dialed {
		w.address()
	}
	if err := k.raw.Write(w.sending); err != nil {
		w.err = err
	}
	sent, err := w.sent, w.err
	w.k, w.all, w.way, w.err = nil, nil, Way{}, nil
	writers.Put(w)
	return sent, err
}

func (w *writer) address() {
	to := w.way.To.Addr()
	w.name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: to.As16(), Scope_id: zone(to)}
	if !w.k.six {
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(&w.name))
		*four = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Unmap().As4()}
	}
	port := (*[2]byte)(unsafe.Pointer(&w.name.Port))
	port[0], port[1] = byte(w.way.To.Port()>>8), byte(w.way.To.Port())
}

// send writes all.
func (w *writer) send(fd uintptr) (done bool) {
	refusals := 0
	for len(w.all) > 0 {
		n := w.pack()
		for at := 0; at < n; {
			k, err := Send(fd, w.out[at:n])
			switch {
			case err == 0:
				for _, c := range w.counts[at : at+k] {
					w.sent += c
					w.all = w.all[c:]
				}
				at += k
				continue
			case err == unix.EAGAIN: // its buffer is full; who would wait here would have others wait that go elsewhere
				w.err, w.all = err, nil
				return true
			case err == unix.EINTR:
				continue
			case err == unix.ECONNREFUSED && w.k.dialed && refusals < maxRefusals: // of an earlier one; this one is not sent yet
				refusals++
				w.err = ErrRefused
				continue
			case w.counts[at] > 1:
				// A device that makes no checksums (EIO), a path that takes less than one of them has.
				if err == unix.EIO {
					w.k.cuts.Store(false)
				}
				w.apart = true
			default:
				w.err = err
				w.all = w.all[1:]
			}
			break // what is left is packed anew
		}
	}
	return true
}

// pack makes messages of the next datagrams, and says how many: each of as many of one length as may go together, the last of which may be
// shorter.
func (w *writer) pack() (n int) {
	parts := 0
	each := 1
	if len(w.way.Head) > 0 {
		each = 2
	}
	cuts := w.k.cuts.Load() && !w.apart
	all := w.all
	for n < batchSize && len(all) > 0 && parts+each <= maxParts {
		h := &w.out[n].Header
		*h = unix.Msghdr{Iov: &w.parts[parts]}
		if !w.k.dialed {
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(&w.name)), unix.SizeofSockaddrInet6
			if !w.k.six {
				h.Namelen = unix.SizeofSockaddrInet4
			}
		}
		size, total, count := len(w.way.Head)+len(all[0]), 0, 0
		for len(all) > 0 && parts+each <= maxParts {
			length := len(w.way.Head) + len(all[0])
			if count > 0 && (!cuts || length > size || length == 0 || count == maxCut || total+length > MaxSize) {
				break
			}
			w.part(parts, all[0])
			parts += each
			total, count, all = total+length, count+1, all[1:]
			if length < size {
				break
			}
		}
		h.SetIovlen(count * each)
		w.counts[n] = count
		length := 0
		if w.way.From.IsValid() {
			length = w.from(&w.controls[n])
		}
		if count > 1 {
			length = Cut(&w.controls[n], length, size)
		}
		if length > 0 {
			h.Control = (*byte)(unsafe.Pointer(&w.controls[n]))
			h.SetControllen(length)
		}
		n++
	}
	return n
}

func (w *writer) part(i int, p []byte) {
	if len(w.way.Head) > 0 {
		w.parts[i].Base = &w.way.Head[0]
		w.parts[i].SetLen(len(w.way.Head))
		i++
	}
	w.parts[i].Base = unsafe.SliceData(p)
	w.parts[i].SetLen(len(p))
}

// from writes the control message that says where a datagram leaves from.
func (w *writer) from(control *Control) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(control))
	data := control.Bytes()[unix.CmsgLen(0):]
	from := w.way.From
	if !w.k.six {
		const size = unix.SizeofInet4Pktinfo
		h.Level, h.Type = unix.SOL_IP, unix.IP_PKTINFO
		h.SetLen(unix.CmsgLen(size))
		clear(data[:size])
		four := from.Unmap().As4()
		copy(data[4:8], four[:])
		return unix.CmsgSpace(size)
	}
	const size = unix.SizeofInet6Pktinfo
	h.Level, h.Type = unix.SOL_IPV6, unix.IPV6_PKTINFO
	h.SetLen(unix.CmsgLen(size))
	sixteen := from.As16()
	copy(data, sixteen[:])
	index := uint32(0)
	if from.IsLinkLocalUnicast() {
		index = zone(w.way.To.Addr())
	}
	binary.NativeEndian.PutUint32(data[16:], index)
	return unix.CmsgSpace(size)
}
