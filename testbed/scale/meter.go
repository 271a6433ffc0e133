package scale

import (
	"context"
	"math"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/perigee-net/perigee/testbed/memnet"
)

type service int

const (
	byGossip service = iota
	byReport
	byLane
	byLinks
	services
)

// meter counts what one service of one node sends and receives: payload of datagrams and streams. Packets are those sent; what a stream
// writes at once makes as many as it fills.
type meter struct {
	sent, received, packets atomic.Uint64
}

// usage is what was counted up to a moment.
type usage struct {
	sent, received, packets uint64
}

func (u usage) minus(o usage) usage {
	return usage{u.sent - o.sent, u.received - o.received, u.packets - o.packets}
}
func (u usage) plus(o usage) usage {
	return usage{u.sent + o.sent, u.received + o.received, u.packets + o.packets}
}

func (m *meter) now() usage { return usage{m.sent.Load(), m.received.Load(), m.packets.Load()} }

func (m *meter) wrote(n int) {
	m.sent.Add(uint64(n))
	m.packets.Add(uint64(max(1, (n+memnet.Segment-1)/memnet.Segment)))
}

func (m *meter) listen(listen func(network, address string) (net.Listener, error)) func(network, address string) (net.Listener, error) {
	return func(network, address string) (net.Listener, error) {
		l, err := listen(network, address)
		return meteredListener{l, m}, err
	}
}

func (m *meter) listenPacket(listen func(network, address string) (net.PacketConn, error)) func(network, address string) (net.PacketConn, error) {
	return func(network, address string) (net.PacketConn, error) {
		c, err := listen(network, address)
		return meteredPackets{c, m}, err
	}
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

func (m *meter) dial(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return meteredConn{conn, m}, nil
	}
}

type meteredListener struct {
	net.Listener
	m *meter
}

func (l meteredListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return meteredConn{conn, l.m}, nil
}

type meteredPackets struct {
	net.PacketConn
	m *meter
}

func (c meteredPackets) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.PacketConn.ReadFrom(b)
	c.m.received.Add(uint64(n))
	return n, from, err
}

func (c meteredPackets) WriteTo(b []byte, to net.Addr) (int, error) {
	n, err := c.PacketConn.WriteTo(b, to)
	c.m.wrote(n)
	return n, err
}

// QUIC asks for larger buffers; memnet's are as large as they are.
func (c meteredPackets) SetReadBuffer(int) error  { return nil }
func (c meteredPackets) SetWriteBuffer(int) error { return nil }

type meteredConn struct {
	net.Conn
	m *meter
}

func (c meteredConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.m.received.Add(uint64(n))
	return n, err
}

func (c meteredConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.m.wrote(n)
	return n, err
}

func (c meteredConn) CloseWrite() error { return c.Conn.(interface{ CloseWrite() error }).CloseWrite() }

// moment is what all nodes have used up to a moment.
type moment struct {
	at    time.Time
	cpu   time.Duration // of the process
	nodes map[*node][services]usage
}

func (f *fleet) moment() moment {
	m := moment{at: time.Now(), cpu: cpu(), nodes: make(map[*node][services]usage, len(f.nodes))}
	for _, n := range f.nodes {
		var of [services]usage
		for s := range of {
			of[s] = n.traffic[s].now()
		}
		m.nodes[n] = of
	}
	return m
}

// spent is what was used since a moment.
type spent struct {
	took    time.Duration // virtual
	cpu     time.Duration // real
	each    [services]usage
	all     usage  // of all services
	busiest uint64 // what the node with most traffic sent and received
}

func (f *fleet) since(before moment) (s spent) {
	now := f.moment()
	s.took, s.cpu = now.at.Sub(before.at), now.cpu-before.cpu
	for n, of := range now.nodes {
		var both uint64
		for i := range of {
			u := of[i].minus(before.nodes[n][i])
			s.each[i] = s.each[i].plus(u)
			s.all = s.all.plus(u)
			both += u.sent + u.received
		}
		s.busiest = max(s.busiest, both)
	}
	return s
}

// cpu is the CPU time of this process.
func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// memory is what is alive in this process, by whose it is, in bytes.
type memory struct {
	gossip, report, rest, net float64
	stacks                    float64
}

// remembered says whose memory is whose by the stacks on which it was allocated, as far as it was sampled: what the innermost frame of this module or of
// memberlist's is in. What is neither is the rest.
func remembered() (m memory) {
	for range 3 { // a profile shows what the collection before the last has left
		runtime.GC()
	}
	records := make([]runtime.MemProfileRecord, 1000)
	for {
		n, ok := runtime.MemProfile(records, false)
		if ok {
			records = records[:n]
			break
		}
		records = make([]runtime.MemProfileRecord, n+1000)
	}
	for _, r := range records {
		bytes, objects := float64(r.InUseBytes()), float64(r.InUseObjects())
		if objects > 0 && runtime.MemProfileRate > 1 {
			bytes /= 1 - math.Exp(-bytes/objects/float64(runtime.MemProfileRate)) // samples stand for what was not sampled
		}
		*m.part(r.Stack()) += bytes
	}
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	m.stacks = float64(stats.StackInuse)
	return m
}

// part is whose memory was allocated on a stack.
func (m *memory) part(stack []uintptr) *float64 {
	frames := runtime.CallersFrames(stack)
	for {
		frame, more := frames.Next()
		in := func(room string) bool { return strings.Contains(frame.Function, room) }
		switch {
		case in("/testbed/memnet."):
			return &m.net
		case in("/cluster/report."):
			return &m.report
		case in("/cluster/gossip."), in("/hashicorp/"):
			return &m.gossip
		case !more:
			return &m.rest
		}
	}
}
