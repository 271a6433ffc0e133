// Package fec is a net.PacketConn that makes good what the network loses: behind each group of datagrams to a peer it sends
// some of parity (Reed-Solomon), and what a peer sends is remembered for a moment, so that what is missing can be made of the
// rest, without a round trip. It knows neither QUIC nor how much is lost: its user says for whom, and against how much.
//
// Datagrams pass as they are and at once, with the kernel's segmentation and ECN, whether or not parity follows; a peer that
// does not know parity never sees any. Parity names what it covers by the last bytes of each datagram, which are to be random,
// as those of an encrypted one are. So no number is added to anything, nothing waits, and the path needs to carry nothing
// larger than before, but for the parity itself.
//
// Beside that it asks the peer whether the path carries datagrams of a size (Probe).
//
// When things break: parity that is lost, too large for the path, late or forged repairs nothing, or makes a datagram that is
// garbage, as anyone can send one; what reads from here must tell what is genuine. It never takes away, delays or changes a
// datagram that has arrived. Parity, and probes, without the token that their receiver gave the sender are dropped before anything is looked
// up or kept; nothing but nine bytes is ever sent in response, to probes. What is kept has a bound for each peer, and is let go where none comes.
//
// It is the only importer of klauspost/reedsolomon.
package fec

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/reedsolomon"
)

const (
	// MaxGroup is how many datagrams one group has at most, and MaxParity how many of parity follow it at most.
	MaxGroup  = 20
	MaxParity = 8

	// MaxSize is the largest datagram, bytes of UDP payload, that is covered: the parity of a full group of them is within maxParitySize.
	MaxSize = 1380

	// maxParitySize is the longest datagram of parity: what IPv6 carries in a packet of 1,500 bytes, and what quic-go reads at most.
	maxParitySize = 1452

	// minSize is the smallest datagram that is covered, which is the smallest that QUIC sends (RFC 9001, 5.4.2). Acknowledgements are covered, too, though the next one says
	// the same: they cannot be told from a few bytes of a stream or from what opens a window, and to lose one of those is congestion to QUIC like to lose a full packet.
	minSize = 21

	// A group of less than someSmall datagrams, all of them shorter than smallSize, has no parity: they are what an idle connection says.
	someSmall, smallSize = 4, 64

	// maxIdle is from how many bytes on the room for what was remembered is let go where only small datagrams come.
	maxIdle = 256

	// remembered is how many datagrams of a peer are remembered: some groups, and what comes in another order.
	remembered = 128

	// maxPending bounds the groups of a peer that parity has come of, but not enough; the oldest gives way.
	maxPending = 8

	// lateTime is how long after its first parity a group may still become whole.
	lateTime = 500 * time.Millisecond

	// Due asks for a look after so many datagrams that were covered, or of parity that came.
	dueCovered = 1000
	dueParity  = 200

	// idleTime is how long after the last datagram what is remembered of a peer is let go.
	idleTime = 10 * time.Second
)

// A datagram of parity: its kind, whose two highest bits are those that no QUIC packet has (RFC 9000, 17.2 and 17.3); the
// receiver's token; the group's number; how many datagrams it has; which of its parity this is; the IDs of its datagrams in
// their order; and the parity of what is a shard of each: its length in two bytes, its bytes, zeros.
const (
	kindParity = 0x21
	idLength   = 3
	headLength = 1 + 4 + 2 + 1 + 1
	sizeLength = 2
	shardSize  = sizeLength + MaxSize
)

// Conn is a packet connection with parity for the peers that Join names.
type Conn struct {
	inner net.PacketConn
	write func(b, oob []byte, to *net.UDPAddr) error
	codes [MaxParity + 1]code // by the number of parity

	peers atomic.Pointer[map[netip.AddrPort]*Peer]
	mu    sync.Mutex // orders Join and Leave
	count counters
	due   chan struct{}

	ready []arrival // made, and not read yet; only by who reads
}

// arrival is a datagram as it is read.
type arrival struct {
	data []byte
	oob  []byte
	from net.Addr
}

type counters struct {
	paritySent, parityReceived, repaired, lost, strange atomic.Uint64
}

// New wraps a packet connection. The second value is for who sends and receives by it; on Linux it can all that *net.UDPConn
// can where it is made of one.
func New(inner net.PacketConn) (*Conn, net.PacketConn) {
	c := &Conn{inner: inner, due: make(chan struct{}, 1)}
	c.peers.Store(&map[netip.AddrPort]*Peer{})
	if wrapped := c.wrapUDP(); wrapped != nil {
		return c, wrapped
	}
	c.write = func(b, _ []byte, to *net.UDPAddr) error {
		_, err := c.inner.WriteTo(b, to)
		return err
	}
	return c, &plainConn{PacketConn: inner, c: c}
}

// code makes and uses so much parity of MaxGroup shards; those that a group has not are zeros. The first rows of a larger code are
// those of a smaller one, so who uses parity need not know how much of it was made.
type code struct {
	once    sync.Once
	encoder reedsolomon.Encoder
}

func (c *Conn) code(parity int) reedsolomon.Encoder {
	one := &c.codes[parity]
	one.once.Do(func() {
		// Without the cache of inverted matrices, which has no bound.
		encoder, err := reedsolomon.New(MaxGroup, parity, reedsolomon.WithInversionCache(false), reedsolomon.WithMaxGoroutines(1))
		if err != nil {
			panic(fmt.Sprintf("fec: %v", err)) // of constants
		}
		one.encoder = encoder
	})
	return one.encoder
}

// Due gives a token where much was sent or has come since the last: what was decided on little may be decided anew.
func (c *Conn) Due() <-chan struct{} { return c.due }

func (c *Conn) isDue() {
	select {
	case c.due <- struct{}{}:
	default:
	}
}

// Counters are the counts since New.
func (c *Conn) Counters() map[string]uint64 {
	return map[string]uint64{
		"backbone_parity_sent_total":           c.count.paritySent.Load(),
		"backbone_parity_received_total":       c.count.parityReceived.Load(),
		"backbone_parity_strange_total":        c.count.strange.Load(),
		"backbone_packets_repaired_total":      c.count.repaired.Load(),
		"backbone_packets_beyond_repair_total": c.count.lost.Load(),
	}
}

// Peer is the state for one address. Its methods may be called from any goroutine.
type Peer struct {
	c    *Conn
	addr netip.AddrPort
	to   *net.UDPAddr
	uses int // by Conn.mu

	token uint32 // that the peer is to put on what it sends here
	heard answers

	limited atomic.Bool
	sends   atomic.Uint64 // datagrams of parity

	out outgoing
	in  incoming
}

// Join returns the state for a peer's address, which Leave has to follow. Those who join at the same time share it.
func (c *Conn) Join(addr netip.AddrPort) *Peer {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	c.mu.Lock()
	defer c.mu.Unlock()
	p := (*c.peers.Load())[addr]
	if p == nil {
		var token [4]byte
		rand.Read(token[:]) // never fails
		p = &Peer{c: c, addr: addr, to: net.UDPAddrFromAddrPort(addr), token: binary.BigEndian.Uint32(token[:])}
		c.replace(func(peers map[netip.AddrPort]*Peer) { peers[addr] = p })
	}
	p.uses++
	return p
}

// Leave ends what Join began.
func (p *Peer) Leave() {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if p.uses--; p.uses == 0 {
		p.c.replace(func(peers map[netip.AddrPort]*Peer) { delete(peers, p.addr) })
		p.Protect(0, 0)
	}
}

func (c *Conn) replace(change func(map[netip.AddrPort]*Peer)) {
	before := *c.peers.Load()
	peers := make(map[netip.AddrPort]*Peer, len(before)+1)
	for addr, p := range before {
		peers[addr] = p
	}
	change(peers)
	c.peers.Store(&peers)
}

// find is the state for an address, if there is one.
func (c *Conn) find(addr net.Addr) *Peer {
	peers := *c.peers.Load()
	if len(peers) == 0 {
		return nil
	}
	udp, ok := addr.(*net.UDPAddr)
	if !ok {
		return nil
	}
	at := udp.AddrPort()
	return peers[netip.AddrPortFrom(at.Addr().Unmap(), at.Port())]
}

// Token is what the peer has to be told, by a way that nobody else reads or writes.
func (p *Peer) Token() uint32 { return p.token }

// Limit has datagrams to the peer that are larger than MaxSize be lost from now on: so who probes for the path's MTU stays at
// what can be covered.
func (p *Peer) Limit() { p.limited.Store(true) }

// ParitySent is how many datagrams of parity went to the peer since it joined.
func (p *Peer) ParitySent() uint64 { return p.sends.Load() }

// plainConn is for packet connections that can no more than package net says.
type plainConn struct {
	net.PacketConn
	c *Conn
}

func (w *plainConn) WriteTo(b []byte, to net.Addr) (int, error) {
	p := w.c.find(to)
	if p == nil {
		return w.PacketConn.WriteTo(b, to)
	}
	if len(b) > MaxSize && p.limited.Load() {
		return len(b), nil
	}
	n, err := w.PacketConn.WriteTo(b, to)
	if err == nil {
		p.sent(b, 0, nil)
	}
	return n, err
}

func (w *plainConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		if len(w.c.ready) > 0 {
			a := w.c.ready[0]
			w.c.ready = w.c.ready[1:]
			return copy(b, a.data), a.from, nil
		}
		n, from, err := w.PacketConn.ReadFrom(b)
		if err != nil || !w.c.received(w.c.find(from), b[:n], nil, from) {
			return n, from, err
		}
	}
}

// SetReadBuffer asks the connection beneath, as QUIC does.
func (w *plainConn) SetReadBuffer(bytes int) error {
	if c, ok := w.PacketConn.(interface{ SetReadBuffer(int) error }); ok {
		return c.SetReadBuffer(bytes)
	}
	return nil
}

// SetWriteBuffer asks the connection beneath, as QUIC does.
func (w *plainConn) SetWriteBuffer(bytes int) error {
	if c, ok := w.PacketConn.(interface{ SetWriteBuffer(int) error }); ok {
		return c.SetWriteBuffer(bytes)
	}
	return nil
}
