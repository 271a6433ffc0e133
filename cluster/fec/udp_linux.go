package fec

import (
	"encoding/binary"
	"net"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// udpConn can what *net.UDPConn can, so that QUIC reads and writes many datagrams by one system call, and ECN with them.
type udpConn struct {
	*net.UDPConn
	c     *Conn
	batch *ipv4.PacketConn
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
	return &udpConn{UDPConn: udp, c: c, batch: ipv4.NewPacketConn(udp)}
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
func (w *udpConn) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	for {
		kept := 0
		if len(w.c.ready) == 0 {
			n, err := w.batch.ReadBatch(ms, flags)
			if err != nil {
				return n, err
			}
			for i := range n {
				m := &ms[i]
				if w.c.received(m.Buffers[0][:m.N], m.OOB[:m.NN], m.Addr) {
					continue
				}
				if kept < i {
					move(&ms[kept], m.Buffers[0][:m.N], m.OOB[:m.NN], m.Addr)
				}
				kept++
			}
		}
		for kept < len(ms) && len(w.c.ready) > 0 {
			a := w.c.ready[0]
			w.c.ready = w.c.ready[1:]
			move(&ms[kept], a.data, a.oob, a.from)
			kept++
		}
		if kept > 0 {
			return kept, nil
		}
	}
}

// move writes a datagram into a message, which keeps its buffers: whose they are their owner knows by their order.
func move(m *ipv4.Message, data, oob []byte, from net.Addr) {
	m.N = copy(m.Buffers[0], data)
	m.NN = copy(m.OOB, oob)
	m.Addr = from
}
