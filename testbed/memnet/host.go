package memnet

import (
	"cmp"
	"context"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/perigee-net/perigee/cluster/spec"
)

// Ports that the system picks are of this range, one after the other (Linux, ip_local_port_range).
const firstEphemeral, lastEphemeral = 32768, 60999

// Host is a machine with one process on it: the program under test.
type Host struct {
	in    *Internet
	name  string
	place spec.Location
	rank  int // how many were added before
	addrs []netip.Addr
	links map[*Host]*link

	crashed bool // the machine is gone
	killed  bool // the process is gone
	cutOff  bool

	tcp      ports[*listener]
	udp      ports[*packetConn]
	streams  map[*stream]bool // those that still matter to either end
	dialled  map[uint16]bool  // local ports of dialled streams
	lastPort uint16
}

// Name is the name the host was given.
func (h *Host) Name() string { return h.name }

// Addr is the first of the host's own addresses; invalid if it has none.
func (h *Host) Addr() netip.Addr {
	if len(h.addrs) == 0 {
		return netip.Addr{}
	}
	return h.addrs[0]
}

// Announce attracts what is sent to an anycast address: it reaches the nearest host that announces it. An
// address that is a host's own can't be announced, and panics. A dead process announces nothing.
func (h *Host) Announce(addr netip.Addr) {
	h.in.mu.Lock()
	defer h.in.mu.Unlock()
	if owner := h.in.owners[addr]; owner != nil {
		panic("memnet: " + addr.String() + " is an address of " + owner.name)
	}
	if !h.gone() && !slices.Contains(h.in.anycast[addr], h) {
		h.in.anycast[addr] = append(h.in.anycast[addr], h)
	}
}

// Withdraw takes back Announce. Streams that are open stay with the host they reached.
func (h *Host) Withdraw(addr netip.Addr) {
	h.in.mu.Lock()
	defer h.in.mu.Unlock()
	h.in.anycast[addr] = slices.DeleteFunc(h.in.anycast[addr], func(o *Host) bool { return o == h })
}

// Kill ends the process: its sockets close under its hands, the far ends of its streams get a reset, and what
// it announced is withdrawn, as its BGP session ends with it. The machine lives on and refuses dials. A test
// can't kill the goroutines of the process: all their calls fail at once, until Restart. End them before it.
func (h *Host) Kill() {
	h.in.mu.Lock()
	defer h.in.mu.Unlock()
	h.killed = true
	h.withdrawAll()
	h.closeSockets((*stream).reset)
}

// Crash makes the machine vanish: silence, for others and for itself, and what it announced is withdrawn. Its
// goroutines find themselves as if cut off, until Kill or Restart closes their sockets.
func (h *Host) Crash() {
	h.in.mu.Lock()
	defer h.in.mu.Unlock()
	h.crashed = true
	h.withdrawAll()
}

// Restart brings the machine back, empty: no sockets, nothing announced, links and addresses as before. Far
// ends of streams from before a crash get a reset when they next send, at the latest after KeepAlive. A host
// that neither crashed nor was killed stays as it is.
func (h *Host) Restart() {
	h.in.mu.Lock()
	defer h.in.mu.Unlock()
	if h.crashed {
		h.crashed = false
		h.closeSockets((*stream).vanish)
		h.in.resume()
	}
	h.killed = false
}

// gone says that nothing new can come from here.
func (h *Host) gone() bool { return h.in.closed || h.killed || h.crashed }

// unusable is why no socket can be opened; nil: one can.
func (h *Host) unusable() error {
	switch {
	case h.in.closed:
		return net.ErrClosed
	case h.killed:
		return syscall.ENETDOWN
	}
	return nil
}

func (h *Host) withdrawAll() {
	for addr, announcers := range h.in.anycast {
		h.in.anycast[addr] = slices.DeleteFunc(announcers, func(o *Host) bool { return o == h })
	}
}

// closeSockets ends every stream in the given way, in the order in which they were opened, and closes the others.
func (h *Host) closeSockets(end func(*stream)) {
	byAge := func(a, b *stream) int { return cmp.Compare(a.born, b.born) }
	for _, s := range slices.SortedFunc(maps.Keys(h.streams), byAge) {
		end(s)
	}
	for _, listeners := range h.tcp {
		for _, l := range listeners {
			l.closed = true
			l.ready.Broadcast()
		}
	}
	for _, conns := range h.udp {
		for _, c := range conns {
			c.close()
		}
	}
	clear(h.tcp)
	clear(h.udp)
}

// Listen is net.Listen on this host: on the host's own addresses, on a wildcard, and, so that sockets can open
// before routes lead to them, on any address that is no other host's own (as with ip_nonlocal_bind).
func (h *Host) Listen(network, address string) (net.Listener, error) {
	h.in.mu.Lock()
	defer h.in.mu.Unlock()
	b, err := h.bind("tcp", network, address)
	if err == nil && b.port == 0 {
		b.port, err = h.pick(func(port uint16) bool {
			return !h.dialled[port] && h.tcp.fits(b.at(port))
		})
	}
	if err == nil && !h.tcp.fits(b) {
		err = os.NewSyscallError("bind", syscall.EADDRINUSE)
	}
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: b.tcpAddr(), Err: err}
	}
	l := newListener(h, b)
	h.tcp.add(l)
	return l, nil
}

// ListenPacket is net.ListenPacket on this host, with the addresses of Listen. A socket on a wildcard sends
// from the host's first address of the family, as with the kernel: to answer from an anycast address, listen
// on that address.
func (h *Host) ListenPacket(network, address string) (net.PacketConn, error) {
	h.in.mu.Lock()
	defer h.in.mu.Unlock()
	b, err := h.bind("udp", network, address)
	var c *packetConn
	if err == nil {
		c, err = h.openPacketConn(b)
	}
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: b.udpAddr(), Err: err}
	}
	return c, nil
}

func (h *Host) openPacketConn(b binding) (*packetConn, error) {
	if b.port == 0 {
		port, err := h.pick(func(port uint16) bool { return h.udp.fits(b.at(port)) })
		if err != nil {
			return nil, err
		}
		b.port = port
	}
	if !h.udp.fits(b) {
		return nil, os.NewSyscallError("bind", syscall.EADDRINUSE)
	}
	c := newPacketConn(h, b)
	h.udp.add(c)
	return c, nil
}

// Dial is net.Dialer.DialContext on this host, for tcp and udp. A dial to a host where nothing listens is
// refused after one round trip; one into silence waits for its context. An address that no host has or
// announces is EHOSTUNREACH at once.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, to, err := h.dial(ctx, network, address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: to, Err: err}
	}
	return conn, nil
}

func (h *Host) dial(ctx context.Context, network, address string) (conn net.Conn, to net.Addr, err error) {
	h.in.mu.Lock()
	defer h.in.mu.Unlock()
	addr, port, err := h.resolve(network, address)
	if err != nil {
		return nil, nil, err
	}
	if !addr.IsValid() || addr.IsUnspecified() {
		addr = loopback(network == "tcp6" || network == "udp6" || addr.Is6())
	}
	dst := netip.AddrPortFrom(addr, port)
	if strings.HasPrefix(network, "udp") {
		to = net.UDPAddrFromAddrPort(dst)
		conn, err = h.dialUDP(dst)
	} else {
		to = net.TCPAddrFromAddrPort(dst)
		conn, err = h.dialTCP(ctx, dst)
	}
	if err != nil {
		return nil, to, err
	}
	return conn, to, nil
}

func (h *Host) dialUDP(dst netip.AddrPort) (net.Conn, error) {
	if err := h.unusable(); err != nil {
		return nil, err
	}
	src, err := h.source(dst.Addr())
	if err != nil {
		return nil, err
	}
	c, err := h.openPacketConn(binding{addr: src})
	if err != nil {
		return nil, err
	}
	c.remote = dst
	return c, nil
}

// bind reads where to listen, on which port 0 stands for one to be picked.
func (h *Host) bind(protocol, network, address string) (binding, error) {
	if err := h.unusable(); err != nil {
		return binding{}, err
	}
	if !strings.HasPrefix(network, protocol) {
		return binding{}, net.UnknownNetworkError(network)
	}
	addr, port, err := h.resolve(network, address)
	if err != nil {
		return binding{}, err
	}
	if !addr.IsValid() || addr.IsUnspecified() {
		switch network[len(protocol):] {
		case "4":
			return binding{addr: netip.IPv4Unspecified(), port: port}, nil
		case "6":
			return binding{addr: netip.IPv6Unspecified(), port: port}, nil
		}
		return binding{addr: netip.IPv6Unspecified(), dual: true, port: port}, nil
	}
	b := binding{addr: addr, port: port}
	if owner := h.in.owners[addr]; owner != nil && owner != h {
		return b, os.NewSyscallError("bind", syscall.EADDRNOTAVAIL)
	}
	return b, nil
}

// resolve reads an address; the result has no IP where none is written.
func (h *Host) resolve(network, address string) (netip.Addr, uint16, error) {
	var suits func(netip.Addr) bool
	switch network {
	case "tcp", "udp":
		suits = netip.Addr.IsValid
	case "tcp4", "udp4":
		suits = netip.Addr.Is4
	case "tcp6", "udp6":
		suits = netip.Addr.Is6
	default:
		return netip.Addr{}, 0, net.UnknownNetworkError(network)
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return netip.Addr{}, 0, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return netip.Addr{}, 0, &net.AddrError{Err: "invalid port", Addr: address}
	}
	if host == "" {
		return netip.Addr{}, uint16(port), nil
	}
	candidates, err := h.lookup(host)
	if err != nil {
		return netip.Addr{}, 0, err
	}
	for _, a := range candidates {
		if suits(a) {
			return a, uint16(port), nil
		}
	}
	return netip.Addr{}, 0, &net.AddrError{Err: "no suitable address found", Addr: host}
}

func (h *Host) lookup(host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr.Unmap().WithZone("")}, nil
	}
	name := canonical(host)
	if addrs, ok := h.in.names[name]; ok {
		return addrs, nil
	}
	if name == "localhost" {
		return []netip.Addr{loopback(false), loopback(true)}, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func loopback(six bool) netip.Addr {
	if six {
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// source is the address that the host sends from to another.
func (h *Host) source(to netip.Addr) (netip.Addr, error) {
	if to.IsLoopback() || h.in.owners[to] == h {
		return to, nil
	}
	for _, a := range h.addrs {
		if a.Is4() == to.Is4() {
			return a, nil
		}
	}
	return netip.Addr{}, os.NewSyscallError("connect", syscall.ENETUNREACH)
}

// pick picks a port that is free.
func (h *Host) pick(free func(uint16) bool) (uint16, error) {
	for range lastEphemeral - firstEphemeral + 1 {
		h.lastPort++
		if h.lastPort < firstEphemeral || h.lastPort > lastEphemeral {
			h.lastPort = firstEphemeral
		}
		if free(h.lastPort) {
			return h.lastPort, nil
		}
	}
	return 0, os.NewSyscallError("bind", syscall.EADDRINUSE)
}

// A binding is where a socket listens: an address, or a wildcard of one family or, dual, of both.
type binding struct {
	addr netip.Addr
	dual bool
	port uint16
}

func (b binding) bound() binding { return b }

func (b binding) at(port uint16) binding {
	b.port = port
	return b
}

// covers says whether what is sent to an address arrives here.
func (b binding) covers(a netip.Addr) bool {
	if b.addr.IsUnspecified() {
		return b.family(a)
	}
	return b.addr == a
}

// family says whether the socket can speak to an address.
func (b binding) family(a netip.Addr) bool { return b.dual || b.addr.Is4() == a.Is4() }

func (b binding) overlaps(o binding) bool { return b.covers(o.addr) || o.covers(b.addr) }

func (b binding) tcpAddr() net.Addr { return tcpAddr(netip.AddrPortFrom(b.addr, b.port), b.dual) }
func (b binding) udpAddr() net.Addr { return udpAddr(netip.AddrPortFrom(b.addr, b.port), b.dual) }

// tcpAddr shows an address as the kernel does: a dual-stack socket sees IPv4 in 16 bytes.
func tcpAddr(a netip.AddrPort, dual bool) *net.TCPAddr {
	return net.TCPAddrFromAddrPort(shown(a, dual))
}

func udpAddr(a netip.AddrPort, dual bool) *net.UDPAddr {
	return net.UDPAddrFromAddrPort(shown(a, dual))
}

func shown(a netip.AddrPort, dual bool) netip.AddrPort {
	if dual && a.Addr().Is4() {
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
	}
	return a
}

// ports are the sockets of one protocol by port.
type ports[S interface {
	comparable
	bound() binding
}] map[uint16][]S

// fits says whether a socket may be bound beside those that are.
func (p ports[S]) fits(b binding) bool {
	return !slices.ContainsFunc(p[b.port], func(s S) bool { return b.overlaps(s.bound()) })
}

func (p ports[S]) add(s S) { p[s.bound().port] = append(p[s.bound().port], s) }

func (p ports[S]) remove(s S) {
	port := s.bound().port
	p[port] = slices.DeleteFunc(p[port], func(o S) bool { return o == s })
	if len(p[port]) == 0 {
		delete(p, port)
	}
}

// find finds the socket that takes what is sent to an address. No two do: fits saw to it.
func (p ports[S]) find(to netip.AddrPort) (s S, ok bool) {
	for _, s := range p[to.Port()] {
		if s.bound().covers(to.Addr()) {
			return s, true
		}
	}
	return s, false
}
