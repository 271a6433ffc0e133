package fec

import (
	"encoding/binary"
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// udpConn can what QUIC wants of *net.UDPConn, so that it reads and writes many datagrams by one system call, and ECN with them. Those that were sent together come
// together (UDP_GRO, udp(7)), so that neither end's kernel has to take them apart, and are taken apart here. It has none of the other ways of reading and writing, which
// would go past that, and past parity.
type udpConn struct {
	udp *net.UDPConn
	c   *Conn
	in  *arrivals // only by who reads
}

func (w *udpConn) LocalAddr() net.Addr                   { return w.udp.LocalAddr() }
func (w *udpConn) Close() error                          { return w.udp.Close() }
func (w *udpConn) SetDeadline(at time.Time) error        { return w.udp.SetDeadline(at) }
func (w *udpConn) SetReadDeadline(at time.Time) error    { return w.udp.SetReadDeadline(at) }
func (w *udpConn) SetWriteDeadline(at time.Time) error   { return w.udp.SetWriteDeadline(at) }
func (w *udpConn) SetReadBuffer(bytes int) error         { return w.udp.SetReadBuffer(bytes) }
func (w *udpConn) SetWriteBuffer(bytes int) error        { return w.udp.SetWriteBuffer(bytes) }
func (w *udpConn) SyscallConn() (syscall.RawConn, error) { return w.udp.SyscallConn() }

// wrapUDP is for what is a *net.UDPConn; else nil.
func (c *Conn) wrapUDP() net.PacketConn {
	udp, ok := c.inner.(*net.UDPConn)
	if !ok {
		return nil
	}
	c.write = func(b, oob []byte, to *net.UDPAddr) error {
		_, _, err := udp.WriteMsgUDP(b, oob, to)
		return err
	}
	in, err := newArrivals(udp)
	if err != nil {
		return nil
	}
	return &udpConn{udp: udp, c: c, in: in}
}

// WriteMsgUDP sends one datagram, or several at a time where oob says so.
func (w *udpConn) WriteMsgUDP(b, oob []byte, to *net.UDPAddr) (int, int, error) {
	p := w.c.find(to)
	if p == nil || !p.out.on.Load() && !(len(b) > MaxSize && p.limited.Load()) {
		n, oobn, err := w.udp.WriteMsgUDP(b, oob, to)
		if err == nil && p != nil {
			p.bare(1)
		}
		return n, oobn, err
	}
	segment, rest := segmentation(oob)
	if segment == 0 && len(b) > MaxSize && p.limited.Load() {
		return len(b), len(oob), nil
	}
	n, oobn, err := w.udp.WriteMsgUDP(b, oob, to)
	if err == nil {
		p.sent(b, segment, rest)
	}
	return n, oobn, err
}

// WriteTo sends one datagram.
func (w *udpConn) WriteTo(b []byte, to net.Addr) (int, error) {
	at, ok := to.(*net.UDPAddr)
	if !ok {
		return w.udp.WriteTo(b, to) // which says what is wrong with it
	}
	n, _, err := w.WriteMsgUDP(b, nil, at)
	return n, err
}

// ReadFrom reads one datagram.
func (w *udpConn) ReadFrom(b []byte) (int, net.Addr, error) {
	m := [1]ipv4.Message{{Buffers: [][]byte{b}}}
	_, err := w.ReadBatch(m[:], 0)
	return m[0].N, m[0].Addr, err
}

// ReadMsgUDP reads one datagram, and what was said of it. As with recvmsg(2), the flags have MSG_TRUNC or MSG_CTRUNC where the one or the other had no room.
func (w *udpConn) ReadMsgUDP(b, oob []byte) (n, oobn, flags int, from *net.UDPAddr, err error) {
	m := [1]ipv4.Message{{Buffers: [][]byte{b}, OOB: oob}}
	_, err = w.ReadBatch(m[:], 0)
	from, _ = m[0].Addr.(*net.UDPAddr)
	return m[0].N, m[0].NN, m[0].Flags, from, err
}

// segmentation is the length of the segments that the control messages have the kernel cut, 0 for none, and the messages before
// it and behind it. They are of one's own making.
func segmentation(oob []byte) (int, []byte) {
	for at := 0; at+unix.SizeofCmsghdr <= len(oob); {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[at]))
		if h.Len < unix.SizeofCmsghdr || uint64(h.Len) > uint64(len(oob)-at) {
			break
		}
		end := min(at+unix.CmsgSpace(int(h.Len)-unix.CmsgLen(0)), len(oob))
		if h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_SEGMENT && int(h.Len) >= unix.CmsgLen(2) {
			rest := append(append(make([]byte, 0, len(oob)), oob[:at]...), oob[end:]...)
			return int(binary.NativeEndian.Uint16(oob[at+unix.CmsgLen(0):])), rest
		}
		at = end
	}
	return 0, oob
}

// ReadBatch reads some datagrams. It is what QUIC calls.
func (w *udpConn) ReadBatch(ms []ipv4.Message, _ int) (int, error) {
	for {
		n := 0
		for ; n < len(ms) && len(w.c.ready) > 0; n++ {
			a := w.c.ready[0]
			w.c.ready = w.c.ready[1:]
			put(&ms[n], a.data, a.oob, a.from)
		}
		for n < len(ms) && w.in.next(w.c) {
			b, oob, p := w.in.take()
			if w.c.received(p, b, oob, w.in.from) {
				continue
			}
			put(&ms[n], b, oob, w.in.from)
			n++
		}
		if n > 0 || len(ms) == 0 {
			return n, nil
		}
		if len(w.c.ready) == 0 {
			if err := w.in.read(); err != nil {
				return 0, err
			}
		}
	}
}

// put writes a datagram into a message, which keeps its buffers: whose they are their owner knows by their order.
func put(m *ipv4.Message, data, oob []byte, from net.Addr) {
	m.N = copy(m.Buffers[0], data)
	m.NN = copy(m.OOB, oob)
	m.Addr = from
	if m.Flags = 0; m.N < len(data) {
		m.Flags |= unix.MSG_TRUNC
	}
	if m.NN < len(oob) {
		m.Flags |= unix.MSG_CTRUNC
	}
}
