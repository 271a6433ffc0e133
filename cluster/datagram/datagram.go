// Package datagram reads and writes UDP datagrams many at a time: on Linux by recvmmsg(2) and sendmmsg(2), with those of one length that go one
// way handed to the kernel as one, which it cuts late (UDP_SEGMENT), and those that came as one taken apart here (UDP_GRO). Sockets that are not the
// kernel's, or that of another system, are read and written one datagram at a time by the same calls.
//
// It knows no flow and no protocol. It drops nothing that was read, and what the system did not take it says.
package datagram

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// MaxSize is how many bytes a datagram may have (RFC 768, over IPv4).
const MaxSize = 65_507

// Datagram is one that was read.
type Datagram struct {
	// From is who sent it, not mapped into IPv6; a zone is the number of the interface, of link-local addresses alone. Of a socket that is
	// dialled it is not set.
	From netip.AddrPort
	// At is the address of this machine that it came to, where the socket is of all addresses and the system tells; else it is invalid, and the
	// socket's own.
	At   netip.Addr
	Data []byte
}

// Way is where datagrams go.
type Way struct {
	To   netip.AddrPort // of a socket that is dialled: not looked at
	From netip.Addr     // the address of this machine that they leave from; invalid: the socket's own
	Head []byte         // goes before the bytes of each, in the same datagram
}

// ErrRefused says that nobody listens where a dialled socket leads (ICMP port unreachable). The socket can go on being used.
var ErrRefused = errors.New("nobody listens there")

// Socket is a UDP socket. One goroutine reads, any may write.
type Socket struct {
	conn   udp
	kernel *kernel // nil: it is not the kernel's
	dialed bool
	closed atomic.Bool
}

// udp is what net.PacketConn and net.Conn have in common.
type udp interface {
	Close() error
	SetReadDeadline(time.Time) error
}

// Listening is a socket of ListenPacket, which it takes over.
func Listening(conn net.PacketConn) (*Socket, error) {
	k, err := kernelOf(conn, false)
	return &Socket{conn: conn, kernel: k}, err
}

// Dialled is a socket of Dial, which it takes over.
func Dialled(conn net.Conn) (*Socket, error) {
	k, err := kernelOf(conn, true)
	return &Socket{conn: conn, kernel: k, dialed: true}, err
}

// Serve reads until the socket is closed or fails, and then closes it. What came is handed over many at a time, and is the socket's again when handle
// returns. Of a dialled socket, refused hears that nobody listens at the other end; it may be nil. The error is nil after Close.
func (s *Socket) Serve(handle func([]Datagram), refused func()) error {
	if refused == nil {
		refused = func() {}
	}
	var err error
	if s.kernel != nil {
		err = s.kernel.serve(handle, refused, &s.closed)
	} else {
		err = s.serveEach(handle, refused)
	}
	s.conn.Close()
	if s.closed.Load() {
		return nil
	}
	return err
}

// Close has Serve end, which may be the caller of the caller. It does not wait.
func (s *Socket) Close() {
	s.closed.Store(true)
	s.conn.SetReadDeadline(time.Unix(1, 0))
}

// Discard closes a socket that is not served.
func (s *Socket) Discard() { s.conn.Close() }

// Send writes datagrams, and says how many the system took; the error is of the last that it did not, ErrRefused where nobody listened before. It does not
// wait: what finds no room is not taken.
func (s *Socket) Send(w Way, all [][]byte) (sent int, err error) {
	if s.kernel != nil {
		return s.kernel.send(w, all)
	}
	var with []byte
	for _, p := range all {
		if len(w.Head) > 0 {
			with = append(append(with[:0], w.Head...), p...)
			p = with
		}
		var failed error
		if s.dialed {
			_, failed = s.conn.(net.Conn).Write(p)
		} else {
			_, failed = s.conn.(net.PacketConn).WriteTo(p, net.UDPAddrFromAddrPort(w.To))
		}
		if failed == nil {
			sent++
		} else if err = failed; errors.Is(failed, syscall.ECONNREFUSED) {
			err = ErrRefused
		}
	}
	return sent, err
}

// serveEach reads one datagram after the other.
func (s *Socket) serveEach(handle func([]Datagram), refused func()) error {
	buf := make([]byte, MaxSize+1)
	one := make([]Datagram, 1)
	for {
		var n int
		var from net.Addr
		var err error
		if s.dialed {
			n, err = s.conn.(net.Conn).Read(buf)
		} else {
			n, from, err = s.conn.(net.PacketConn).ReadFrom(buf)
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			refused()
			continue
		}
		if err != nil {
			return err
		}
		one[0] = Datagram{Data: buf[:n]}
		if at, ok := from.(interface{ AddrPort() netip.AddrPort }); ok {
			a := at.AddrPort()
			one[0].From = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		}
		handle(one)
		if s.closed.Load() {
			return os.ErrDeadlineExceeded
		}
	}
}

// zone is a zone as the number of the interface; 0: there is none.
func zone(a netip.Addr) (n uint32) {
	for _, c := range strings.TrimLeft(a.Zone(), "0") {
		if c < '0' || c > '9' {
			return 0
		}
		n = 10*n + uint32(c-'0')
	}
	return n
}
