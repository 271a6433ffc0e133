package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// maxStreams is how many streams that others opened are served at once; one more is closed. A
	// stream that says nothing ends by streamTimeout.
	maxStreams = 64
	// maxStreamBytes is how much may have been read from all streams that others opened and that are still open,
	// since what they send is held until its end shows whether it is of this cluster. A read beyond it fails.
	maxStreamBytes = 64 << 20
	// maxPacket is the largest packet that is received whole; what is longer would not decrypt.
	maxPacket = 64 << 10
	// labelMagic is how memberlist begins a packet that has a label: this, the length of the label, the label.
	labelMagic = 244
	// encryption is the version by which memberlist encrypts, the first byte of what it has encrypted. It also reads version 0,
	// says so in a byte that is not authenticated, and panics on what was encrypted by 1 and says 0 (v0.7.0): one
	// recorded packet, with a bit changed, would end every process that it is sent to.
	encryption = 1
	// beforeEncryption is what a stream has before that byte, beside the label: type and length.
	beforeEncryption = 5
)

var errShunned = errors.New("the node is refused")

var errEncryption = errors.New("encrypted by a version that nobody uses")

var errTooMuch = errors.New("too much read from streams at once")

// transport carries memberlist over the network it is given: packets by UDP, streams by TCP, on one address. It
// is a memberlist.NodeAwareTransport.
type transport struct {
	advertise netip.AddrPort
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
	label     []byte // what every packet of the cluster begins with
	refuse    func(name string) bool
	shunned   atomic.Pointer[map[netip.AddrPort]bool]
	counters  *counters

	listener net.Listener
	socket   net.PacketConn
	packets  chan *memberlist.Packet
	incoming chan net.Conn

	ctx    context.Context // ends with Shutdown
	cancel context.CancelFunc
	loops  sync.WaitGroup // of accept and receive
	served atomic.Int64   // streams that others opened
	read   atomic.Int64   // bytes read from them

	mu     sync.Mutex
	open   map[*stream]bool
	idle   *sync.Cond // open is empty
	closed bool
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

func openTransport(c Config, refuse func(name string) bool, counters *counters) (*transport, error) {
	if c.Listen == nil {
		c.Listen = net.Listen
	}
	if c.ListenPacket == nil {
		c.ListenPacket = net.ListenPacket
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	listener, err := c.Listen("tcp", c.Bind)
	if err != nil {
		return nil, err
	}
	// The listener's own address, as it may have picked the port.
	socket, err := c.ListenPacket("udp", listener.Addr().String())
	if err != nil {
		listener.Close()
		return nil, err
	}
	advertise, err := advertised(c.Advertise, listener.Addr())
	if err != nil {
		listener.Close()
		socket.Close()
		return nil, err
	}
	t := &transport{
		advertise: advertise,
		dial:      c.Dial,
		label:     append([]byte{labelMagic, byte(len(c.Label))}, c.Label...),
		refuse:    refuse,
		counters:  counters,
		listener:  listener,
		socket:    socket,
		packets:   make(chan *memberlist.Packet),
		incoming:  make(chan net.Conn),
		open:      map[*stream]bool{},
	}
	t.idle = sync.NewCond(&t.mu)
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.loops.Go(t.accept)
	t.loops.Go(t.receive)
	return t, nil
}

// advertised completes the address to advertise by that of the listener.
func advertised(a netip.AddrPort, listening net.Addr) (netip.AddrPort, error) {
	own, err := netip.ParseAddrPort(listening.String())
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("address of the listener: %w", err)
	}
	ip, port := a.Addr(), a.Port()
	if !ip.IsValid() {
		ip = own.Addr()
	}
	if port == 0 {
		port = own.Port()
	}
	if ip.IsUnspecified() {
		return netip.AddrPort{}, fmt.Errorf("listening on all addresses (%v): one to advertise is needed", own)
	}
	return netip.AddrPortFrom(ip.Unmap().WithZone(""), port), nil
}

func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.advertise.Addr().AsSlice(), int(t.advertise.Port()), nil
}

// receive hands on the packets of the cluster. One that comes while memberlist is busy waits in the
// socket, and is lost when that is full.
func (t *transport) receive() {
	buffer := make([]byte, maxPacket)
	for {
		n, from, err := t.socket.ReadFrom(buffer)
		if err != nil {
			if !t.retry(err) {
				return
			}
			continue
		}
		if !bytes.HasPrefix(buffer[:n], t.label) {
			t.counters.strangers.Add(1)
			continue
		}
		if n == len(t.label) || buffer[len(t.label)] != encryption {
			t.counters.malformed.Add(1)
			continue
		}
		if t.shuns(from) {
			t.counters.packetsShunned.Add(1)
			continue
		}
		t.counters.packetsReceived.Add(1)
		p := &memberlist.Packet{Buf: bytes.Clone(buffer[:n]), From: from, Timestamp: time.Now()}
		select {
		case t.packets <- p:
		case <-t.ctx.Done():
			return
		}
	}
}

func (t *transport) accept() {
	for {
		conn, err := t.listener.Accept()
		if err != nil {
			if !t.retry(err) {
				return
			}
			continue
		}
		if t.served.Load() >= maxStreams {
			t.counters.streamsRefused.Add(1)
			conn.Close()
			continue
		}
		s, err := t.track(conn, true)
		if err != nil {
			return
		}
		select {
		case t.incoming <- s:
		case <-t.ctx.Done():
			s.Close()
			return
		}
	}
}

// retry says whether a socket goes on after an error, a while later: when the process may open files again, most
// likely.
func (t *transport) retry(err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	select {
	case <-time.After(gossipInterval):
		return true
	case <-t.ctx.Done():
		return false
	}
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *transport) StreamCh() <-chan net.Conn           { return t.incoming }

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	if t.ctx.Err() != nil {
		return time.Time{}, net.ErrClosed
	}
	t.counters.packetsSent.Add(1)
	_, err = t.socket.WriteTo(b, net.UDPAddrFromAddrPort(to))
	return time.Now(), err
}

// WriteToAddress drops what is for a refused node, as the network might; it is suspected and held dead soon.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if t.refuse(a.Name) {
		t.counters.packetsShunned.Add(1)
		return time.Now(), nil
	}
	return t.WriteTo(b, a.Addr)
}

// shun has packets from these addresses dropped.
func (t *transport) shun(addrs map[netip.AddrPort]bool) { t.shunned.Store(&addrs) }

func (t *transport) shuns(from net.Addr) bool {
	shunned := t.shunned.Load()
	if shunned == nil || len(*shunned) == 0 {
		return false
	}
	udp, ok := from.(*net.UDPAddr)
	if !ok {
		return false
	}
	addr := udp.AddrPort()
	return (*shunned)[netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())]
}

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	conn, err := t.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return t.track(conn, false)
}

func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if t.refuse(a.Name) {
		return nil, errShunned
	}
	return t.DialTimeout(a.Addr, timeout)
}

// Shutdown closes the sockets and breaks all streams. wait waits until memberlist has let go of them.
func (t *transport) Shutdown() error {
	t.cancel()
	err := errors.Join(t.listener.Close(), t.socket.Close())
	t.mu.Lock()
	t.closed = true
	for s := range t.open {
		s.Conn.Close()
	}
	t.mu.Unlock()
	t.loops.Wait()
	return err
}

func (t *transport) wait() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.open) > 0 {
		t.idle.Wait()
	}
}

// stream is one that memberlist uses; it is known until memberlist closes it.
type stream struct {
	net.Conn
	t        *transport
	incoming bool
	read     int64 // bytes; of an incoming stream counted in t.read
}

func (t *transport) track(conn net.Conn, incoming bool) (*stream, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	s := &stream{Conn: conn, t: t, incoming: incoming}
	t.open[s] = true
	if incoming {
		t.served.Add(1)
	}
	return s, nil
}

func (s *stream) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if at := s.encryptionAt() - s.read; at >= 0 && at < int64(n) && b[at] != encryption {
		s.t.counters.malformed.Add(1)
		return 0, errEncryption
	}
	s.read += int64(n)
	if s.incoming {
		if s.t.read.Add(int64(n)) > maxStreamBytes {
			s.t.counters.streamsRefused.Add(1)
			return 0, errTooMuch
		}
	}
	return n, err
}

// encryptionAt is where what is read from the stream has the version of its encryption: who opens a stream begins with the
// label, and an answer has none. Of a stream with another label memberlist decrypts nothing.
func (s *stream) encryptionAt() int64 {
	if s.incoming {
		return int64(len(s.t.label)) + beforeEncryption
	}
	return beforeEncryption
}

// Write closes the stream if it fails: memberlist forgets one whose label it could not write.
func (s *stream) Write(b []byte) (int, error) {
	n, err := s.Conn.Write(b)
	if err != nil {
		s.Close()
	}
	return n, err
}

func (s *stream) Close() error {
	err := s.Conn.Close()
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if !s.t.open[s] {
		return err
	}
	delete(s.t.open, s)
	if s.incoming {
		s.t.served.Add(-1)
		s.t.read.Add(-s.read)
	}
	if len(s.t.open) == 0 {
		s.t.idle.Broadcast()
	}
	return err
}
