package fec

import (
	"encoding/binary"
	"net"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// udpConn can what *net.UDPConn can, so that QUIC reads and writes many datagrams by one system call, and ECN with them. Those that were sent together come
// together (UDP_GRO, udp(7)), so that neither end's kernel has to take them apart, and are taken apart here.
type udpConn struct {
	*net.UDPConn
	c  *Conn
	in *arrivals // only by who reads
}

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
	return &udpConn{UDPConn: udp, c: c, in: in}
}

// WriteMsgUDP sends one datagram, or several at a time where oob says so.
func (w *udpConn) WriteMsgUDP(b, oob []byte, to *net.UDPAddr) (int, int, error) {
	p := w.c.find(to)
	if p == nil || !p.out.on.Load() && !(len(b) > MaxSize && p.limited.Load()) {
		return w.UDPConn.WriteMsgUDP(b, oob, to)
	}
	segment, rest := segmentation(oob)
	if segment == 0 && len(b) > MaxSize && p.limited.Load() {
		return len(b), len(oob), nil
	}
	n, oobn, err := w.UDPConn.WriteMsgUDP(b, oob, to)
	if err == nil {
		p.sent(b, segment, rest)
	}
	return n, oobn, err
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
}
