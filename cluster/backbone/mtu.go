package backbone

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/perigee-net/perigee/cluster/fec"
)

// QUIC finds out how large packets may be that a path carries, and never takes that back (RFC 9000, 14.3, leaves it to the sender to detect a black hole as
// RFC 8899, 4.3 has it; quic-go does not). So where a path comes to carry less under a live connection, its full packets are lost from then on, each time that
// they are sent again, while small ones go on and keep the connection up. That is looked for by probes beneath QUIC (fec.Peer.Probe): while full packets are sent by
// a path, once a second one as large as those and a small one. Where small ones are answered and large ones are not, holeRounds times in a row, the
// connections with packets that large are closed, and dialled again with small ones.
const (
	// smallestPacket is what each connection begins with, bytes of UDP payload: what QUIC needs at least (RFC 9000, 14). A tunnel over IPv6 with the
	// least MTU that there is, 1,280, carries 1,232; quic-go's own first size is 1,280.
	smallestPacket = 1200

	// payloadOverhead is what quic-go takes a packet to have beside a DATAGRAM frame's payload, bytes.
	payloadOverhead = 1 + 20 + 16

	// holeRounds is how many probes in a row of the large size have to be lost, beside small ones that are not. Of losses by chance, be they
	// one in ten, that is as many as happen once in weeks; and what it costs is a connection.
	holeRounds = 5

	// roundFloor is how long the answers to two probes may take at least, beside two round trips; after roundCeiling none is awaited.
	roundFloor   = 100 * time.Millisecond
	roundCeiling = 2 * time.Second

	// maxRounds bounds the rounds of one doubt, where probes of neither size are answered, and doubtRest is how long none is sent after that: the peer may
	// be of a release that does not know them.
	maxRounds = 12
	doubtRest = 30 * time.Second

	// holeMemory is how long a path is taken for one whose MTU changes after a hole was found there. If there is another, connections by it stay at
	// smallestPacket for as long as that.
	holeMemory = 10 * time.Minute

	// maxHoles bounds the addresses that are remembered for that. More are forgotten, whichever.
	maxHoles = 4096
)

// errHole is why a connection is closed by whose path its full packets do not arrive.
var errHole = errors.New("its packets have become too large for the path")

// doubt is the probing of one path, by path.mu.
type doubt struct {
	number  uint32    // of the last probe
	size    int       // of the large one of the round
	round   int       // 0: none is under way
	missed  int       // large ones in a row that were not answered, beside small ones that were
	asked   time.Time // when its first round began
	resting time.Time
	timer   *time.Timer
}

// packetSize is how large a connection's full packets are now, bytes of UDP payload.
func packetSize(conn *quic.Conn) int {
	var larger [1500]byte // than any packet: it is not sent
	if tooLarge, is := errors.AsType[*quic.DatagramTooLargeError](conn.SendDatagram(larger[:])); is {
		return int(tooLarge.MaxDatagramPayloadSize) + payloadOverhead
	}
	return 0
}

// probe begins a round of probes, if full packets were sent since it was called last. mu is held.
func (p *path) probe(now time.Time) {
	d := &p.doubt
	if d.round > 0 || now.Before(d.resting) || now.Sub(d.asked) < measureInterval/2 {
		return
	}
	size, due := 0, false
	for w := range p.watches {
		due = due || w.agreed && w.sent >= smallestPacket
		w.sent = 0
	}
	if !due {
		return
	}
	for w := range p.watches {
		size = max(size, packetSize(w.conn))
	}
	if size <= smallestPacket {
		return // there are none that could be smaller
	}
	d.size, d.missed, d.asked = size, 0, now
	p.ask()
}

// ask sends the two probes of a round. mu is held.
func (p *path) ask() {
	d := &p.doubt
	d.round++
	d.number += 2
	if d.number < 2 {
		d.number = 2 // 0 is none
	}
	p.peer.Probe(d.number, fec.MinProbe)
	p.peer.Probe(d.number+1, d.size)
	wait := min(2*p.rtt+roundFloor, roundCeiling)
	if d.timer == nil {
		d.timer = time.AfterFunc(wait, p.judge)
	} else {
		d.timer.Reset(wait)
	}
}

// judge looks at the answers to a round.
func (p *path) judge() {
	p.mu.Lock()
	d := &p.doubt
	small, large := p.peer.Answered(d.number), p.peer.Answered(d.number+1)
	var narrow []*watch
	switch {
	case len(p.watches) == 0:
		d.round = 0
	case large:
		d.round = 0
	case small && d.missed+1 >= holeRounds:
		d.round = 0
		for w := range p.watches {
			if packetSize(w.conn) >= d.size {
				narrow = append(narrow, w)
			}
		}
	case d.round >= maxRounds:
		d.round, d.resting = 0, time.Now().Add(doubtRest)
	default:
		if small {
			d.missed++
		}
		p.ask()
	}
	p.mu.Unlock()
	if len(narrow) == 0 {
		return
	}
	b := narrow[0].b
	b.count.blackHoles.Add(1)
	b.holes.add(p.addr)
	b.log.Warn("full packets do not arrive any more; connections are made anew", "address", p.addr, "bytes", d.size, "connections", len(narrow))
	for _, w := range narrow {
		w.narrow()
	}
}

// holes is where they were found, of late.
type holes struct {
	mu sync.Mutex
	at map[netip.AddrPort]hole
}

// hole is what is remembered of a path on which one was found.
type hole struct {
	last  time.Time
	again time.Time // until when packets stay small, for it was not the first
}

func (h *holes) add(addr netip.AddrPort) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	before, known := h.at[addr]
	for other := range h.at {
		if !known && len(h.at) >= maxHoles {
			delete(h.at, other)
		}
	}
	one := hole{last: now}
	if known && now.Sub(before.last) < holeMemory {
		one.again = now.Add(holeMemory)
	}
	h.at[addr] = one
}

// find says whether one was found on a path, and whether its packets are to stay small now.
func (h *holes) find(addr netip.AddrPort) (known, small bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	one, known := h.at[unmapped(addr)]
	now := time.Now()
	if known && now.Sub(one.last) >= holeMemory {
		delete(h.at, unmapped(addr))
		return false, false
	}
	return known, known && now.Before(one.again)
}

// fit has a connection by a path begin with packets of a size that it carries; small says that they stay as small.
func (h *holes) fit(c *quic.Config, addr netip.AddrPort) (small bool) {
	known, small := h.find(addr)
	if known {
		c.InitialPacketSize = smallestPacket
	}
	c.DisablePathMTUDiscovery = small
	return small
}

func unmapped(addr netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}

// addrPort is a UDP address as it names a path.
func addrPort(a net.Addr) netip.AddrPort {
	if udp, ok := a.(*net.UDPAddr); ok {
		return unmapped(udp.AddrPort())
	}
	return netip.AddrPort{}
}

// narrow replaces a carrier whose full packets do not arrive: what is dialled meanwhile waits for its successor, and streams on it end with it, at once.
func (l *link) narrow(c *carrier) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.hollow = true
	l.shut(c)
	if slices.Contains(l.leaving, c) {
		l.b.start(func() { c.conn.CloseWithError(codeHole, errHole.Error()) })
	}
}

func (l *link) isHollow(c *carrier) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return c.hollow
}
