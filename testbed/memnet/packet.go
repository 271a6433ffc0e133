package memnet

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// SocketQueue is how many datagrams a socket holds for its reader; at it more are dropped.
const SocketQueue = 1024

// What an IP and a UDP header add to the payload (RFC 791, RFC 8200, RFC 768), bytes.
const headers4, headers6 = 20 + 8, 40 + 8

// A packetConn is a UDP socket. It implements net.PacketConn and, dialled, net.Conn.
type packetConn struct {
	binding
	host   *Host
	in     *Internet
	remote netip.AddrPort // of who dialled: the only one to talk with
	chance map[[2]netip.AddrPort]*rand.Rand
	closed bool

	readable sync.Cond
	received []datagram
	readBy   deadline
	writeBy  deadline
}

type datagram struct {
	from netip.AddrPort
	data []byte
}

func newPacketConn(h *Host, b binding) *packetConn {
	return &packetConn{
		binding: b, host: h, in: h.in,
		chance:   map[[2]netip.AddrPort]*rand.Rand{},
		readable: sync.Cond{L: &h.in.mu},
	}
}

// ReadFrom implements net.PacketConn. What does not fit in b is lost.
func (c *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.read(b)
	if err != nil {
		return 0, nil, err
	}
	return n, udpAddr(from, c.dual), nil
}

// Read implements net.Conn.
func (c *packetConn) Read(b []byte) (int, error) {
	n, _, err := c.read(b)
	return n, err
}

func (c *packetConn) read(b []byte) (int, netip.AddrPort, error) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, netip.AddrPort{}, c.fault("read", net.ErrClosed)
		case c.readBy.passed():
			return 0, netip.AddrPort{}, c.fault("read", os.ErrDeadlineExceeded)
		case len(c.received) > 0:
			d := c.received[0]
			c.received[0] = datagram{}
			c.received = c.received[1:]
			return copy(b, d.data), d.from, nil
		}
		c.readable.Wait()
	}
}

// WriteTo implements net.PacketConn. It never waits.
func (c *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	if c.remote.IsValid() {
		return 0, c.fault("write", net.ErrWriteToConnected)
	}
	var dst netip.AddrPort
	if a, ok := to.(*net.UDPAddr); ok {
		dst = a.AddrPort()
	} else if a, err := netip.ParseAddrPort(to.String()); err == nil {
		dst = a
	}
	if !dst.IsValid() {
		return 0, c.fault("write", &net.AddrError{Err: "invalid address", Addr: to.String()})
	}
	return c.write(b, netip.AddrPortFrom(dst.Addr().Unmap().WithZone(""), dst.Port()))
}

// Write implements net.Conn.
func (c *packetConn) Write(b []byte) (int, error) {
	if !c.remote.IsValid() {
		return 0, c.fault("write", os.NewSyscallError("write", syscall.EDESTADDRREQ))
	}
	return c.write(b, c.remote)
}

func (c *packetConn) write(b []byte, to netip.AddrPort) (int, error) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	from, err := c.writable(to.Addr())
	if err != nil {
		return 0, c.fault("write", err)
	}
	c.in.counts[datagrams]++
	c.send(b, netip.AddrPortFrom(from, c.port), to)
	return len(b), nil
}

// writable is the address from which the socket can write to another.
func (c *packetConn) writable(to netip.Addr) (from netip.Addr, err error) {
	switch {
	case c.closed:
		return from, net.ErrClosed
	case c.writeBy.passed():
		return from, os.ErrDeadlineExceeded
	case !c.family(to):
		return from, os.NewSyscallError("sendto", syscall.EAFNOSUPPORT)
	case c.addr.IsUnspecified():
		return c.host.source(to)
	case c.addr.IsLoopback() && c.in.route(c.host, to) != c.host:
		return from, os.NewSyscallError("sendto", syscall.EINVAL)
	}
	return c.addr, nil
}

// send gives a datagram to the network, which may do with it what it likes.
func (c *packetConn) send(b []byte, from, to netip.AddrPort) {
	target := c.in.route(c.host, to.Addr())
	if target == nil {
		c.in.counts[datagramsUnroutable]++
		return
	}
	l := c.host.link(target)
	chance := c.flow(l, from, to)
	headers := headers4
	if to.Addr().Is6() {
		headers = headers6
	}
	switch {
	case len(b)+headers > l.mtu():
		c.in.counts[datagramsTooLarge]++
		return
	case !l.open():
		c.in.counts[datagramsCut]++
		return
	case l.queue() > LinkQueue:
		c.in.counts[datagramsQueueFull]++
		return
	}
	lost := l.loses(1, chance)
	due := l.carry(len(b), chance)
	if lost {
		c.in.counts[datagramsLost]++
		return
	}
	d := datagram{from: from, data: bytes.Clone(b)}
	c.in.at(due, func() { l.deliver(d, to) })
	if l.set.Duplicate > 0 && chance.Float64() < l.set.Duplicate {
		c.in.counts[datagramsDuplicated]++
		c.in.at(l.carry(0, chance), func() { l.deliver(d, to) })
	}
}

// flow is the source of chance for what goes from one address to another; nil where nothing is left to chance.
func (c *packetConn) flow(l *link, from, to netip.AddrPort) *rand.Rand {
	if l.set.Loss == 0 && l.set.Jitter == 0 && l.set.Duplicate == 0 {
		return nil
	}
	key := [2]netip.AddrPort{from, to}
	if c.chance[key] == nil {
		c.chance[key] = c.in.chance("udp", from, to)
	}
	return c.chance[key]
}

// deliver gives an arriving datagram to the socket that takes it.
func (l *link) deliver(d datagram, to netip.AddrPort) {
	counts := &l.from.in.counts
	if !l.open() {
		counts[datagramsCut]++
		return
	}
	c, ok := l.to.udp.find(to)
	switch {
	case !ok, c.remote.IsValid() && c.remote != d.from:
		counts[datagramsUnheard]++
	case len(c.received) >= SocketQueue:
		counts[datagramsSocketFull]++
	default:
		counts[datagramsDelivered]++
		c.received = append(c.received, d)
		c.readable.Signal()
	}
}

// Close implements net.PacketConn.
func (c *packetConn) Close() error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	if c.closed {
		return c.fault("close", net.ErrClosed)
	}
	c.close()
	c.host.udp.remove(c)
	return nil
}

func (c *packetConn) close() {
	c.closed = true
	c.received = nil
	c.readBy.stop()
	c.readable.Broadcast()
}

// LocalAddr implements net.PacketConn.
func (c *packetConn) LocalAddr() net.Addr { return c.udpAddr() }

// RemoteAddr implements net.Conn.
func (c *packetConn) RemoteAddr() net.Addr {
	if !c.remote.IsValid() {
		return nil
	}
	return udpAddr(c.remote, c.dual)
}

// SetDeadline implements net.PacketConn.
func (c *packetConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.PacketConn.
func (c *packetConn) SetReadDeadline(t time.Time) error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	if c.closed {
		return c.fault("set", net.ErrClosed)
	}
	c.readBy.set(t, &c.readable)
	return nil
}

// SetWriteDeadline implements net.PacketConn. A write never waits, but fails after it.
func (c *packetConn) SetWriteDeadline(t time.Time) error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	if c.closed {
		return c.fault("set", net.ErrClosed)
	}
	c.writeBy.at = t
	return nil
}

// SetReadBuffer does nothing: SocketQueue holds. QUIC asks for it.
func (c *packetConn) SetReadBuffer(int) error { return nil }

// SetWriteBuffer does nothing.
func (c *packetConn) SetWriteBuffer(int) error { return nil }

func (c *packetConn) fault(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
