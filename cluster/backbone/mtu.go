package backbone

import (
	"errors"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// QUIC finds out how large packets may be that a path carries, and never takes that back (RFC 9000, 14.3, leaves it to the sender to detect a black hole as
// RFC 8899, 4.3 has it; quic-go does not). So where a path comes to carry less under a live connection, its full packets are lost from then on, each time that
// they are sent again, while small ones go on and keep the connection up. That is looked for by probes beneath QUIC (fec.Peer.Probe): while full packets are sent by
// a path, once a second one as large as those and one as small as packets are that every path carries. Where small ones are answered and large ones are
// not, some ten times in a row, the connections with packets that large are closed, and dialled again with small ones.
const (
	// smallestPacket is what each connection begins with, bytes of UDP payload: what QUIC needs at least (RFC 9000, 14). A tunnel over IPv6 with the
	// least MTU that there is, 1,280, carries 1,232; quic-go's own first size is 1,280.
	smallestPacket = 1200

	// payloadOverhead is what quic-go takes a packet to have beside a DATAGRAM frame's payload, bytes.
	payloadOverhead = 1 + 20 + 16

	// fullShare is the part of smallestPacket that packets have to have on average for full ones to be taken to be among them, and fullBytes is
	// what is sent in a second, bytes, for which it is not asked how large they are.
	fullShare = 2
	fullBytes = 10 * smallestPacket

	// minRounds and maxRounds bound how many probes of the large size have to be lost in a row, beside small ones that are not: see roundsFor.
	minRounds, maxRounds = 10, 20

	// roundTime is how long a round takes at least, and roundFloor how long the answers to its two probes may, beside two round trips; after roundCeiling
	// none is awaited. So a hole is found 4.5 s after full packets began to vanish, on a path of 100 ms that lost none before, and within 9 s on one that
	// loses one packet in ten each way; and no second of congestion is taken for one.
	roundTime    = 300 * time.Millisecond
	roundFloor   = 100 * time.Millisecond
	roundCeiling = 2 * time.Second

	// maxSilent bounds the rounds in a row of which neither probe is answered, and doubtRest is how long none is sent after that. strangerRest is that for a
	// peer that has never answered: it may be of a release that does not know probes.
	maxSilent    = 12
	doubtRest    = 30 * time.Second
	strangerRest = 30 * time.Minute

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
	rounds  int       // as many as missed has to become
	silent  int       // rounds in a row in which nothing was answered
	loss    float64   // what the path lost when a large one was answered last: since then it may be a hole that loses packets
	talks   bool      // the peer has answered one, ever
	asked   time.Time // when its first round began
	resting time.Time
	timer   *time.Timer
}

// overlong is a datagram larger than any packet: it is not sent.
var overlong [1500]byte

// packetSize is how large a connection's full packets are now, bytes of UDP payload.
func packetSize(conn *quic.Conn) int {
	if tooLarge, is := errors.AsType[*quic.DatagramTooLargeError](conn.SendDatagram(overlong[:])); is {
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
		due = due || w.agreed && fullPackets(w.sent, w.packets)
		w.sent, w.packets = 0, 0
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
	d.size, d.asked = size, now
	d.begin()
	p.ask()
}

// begin has the rounds be counted anew.
func (d *doubt) begin() { d.missed, d.silent, d.rounds = 0, 0, roundsFor(d.loss) }

// fullPackets says whether full packets are likely to be among those that were sent in a second. A few that carry little are none; how large each was QUIC
// does not say.
func fullPackets(sent, packets uint64) bool {
	return sent >= smallestPacket && sent >= packets*smallestPacket/fullShare || sent >= fullBytes
}

// roundsFor is how many rounds have to speak for a hole on a path that loses a share of its packets by chance, as many one way as the other.
//
// Of probes and their answers q = 1-(1-loss)² are lost. A round that decides (the large one is answered, or the small one alone) speaks for a hole by
// chance in q(1-q)/(1-q²) = q/(1+q) of all cases. Begun each second, 3.2e7 times a year, n rounds in a row do so once in ((1+q)/q)ⁿ seconds: with 10 % loss each
// way (q = 0.19) and 10 rounds, which is the least, once in three years; with 20 % (q = 0.36) and 13, once in one. Two more are for loss that was measured
// too low. maxRounds is enough for that up to 40 %; at 50 % it is once in nine months.
func roundsFor(loss float64) int {
	q := 1 - (1-loss)*(1-loss)
	if q <= 0 {
		return minRounds
	}
	const doubts = 365 * 24 * 60 * 60 // in a year
	n := math.Ceil(math.Log(doubts)/math.Log((1+q)/q)) + 2
	return int(min(max(n, minRounds), maxRounds))
}

// ask sends the two probes of a round. mu is held.
func (p *path) ask() {
	d := &p.doubt
	d.round++
	d.number += 2
	if d.number < 2 {
		d.number = 2 // 0 is none
	}
	small := func() { p.peer.Probe(d.number, smallestPacket) } // less proves nothing of the packets that are to take the place of large ones
	if d.round%2 == 0 {
		small()
	}
	p.peer.Probe(d.number+1, d.size)
	if d.round%2 != 0 { // a queue or a bucket that has room for one of them has it for the first, which is not to be the same one each time
		small()
	}
	wait := min(max(2*p.rtt+roundFloor, roundTime), roundCeiling)
	if d.timer == nil {
		d.timer = time.AfterFunc(wait, p.judge)
	} else {
		d.timer.Reset(wait)
	}
}

// verdict is what the rounds of a doubt so far say.
type verdict uint8

const (
	unsure verdict = iota // another one is to be asked
	passes                // the path carries large packets
	hollow                // it carries small ones alone
	mute                  // nothing is answered
)

// hears takes the answers to a round.
func (d *doubt) hears(small, large bool) verdict {
	d.talks = d.talks || small || large
	d.silent++
	if small {
		d.silent = 0
		d.missed++
	}
	switch {
	case large:
		return passes
	case d.missed >= d.rounds:
		return hollow
	case d.silent >= maxSilent:
		return mute
	}
	return unsure
}

// judge looks at the answers to a round.
func (p *path) judge() {
	p.mu.Lock()
	d := &p.doubt
	small, large := p.peer.Answered(d.number), p.peer.Answered(d.number+1)
	size := d.size // of the next doubt it may be another
	var narrow []*watch
	switch v := d.hears(small, large); {
	case !p.lives():
		d.round = 0
	case v == passes:
		d.round, d.loss = 0, max(p.loss.share(), p.queue.share())
	case v == hollow:
		d.round = 0
		for w := range p.watches {
			if packetSize(w.conn) >= d.size {
				narrow = append(narrow, w)
			}
		}
	case v == mute:
		rest := doubtRest
		if !d.talks {
			rest = strangerRest
		}
		d.round, d.resting = 0, time.Now().Add(rest)
	default:
		p.ask()
	}
	p.mu.Unlock()
	if len(narrow) == 0 {
		return
	}
	b := narrow[0].b
	b.count.blackHoles.Add(1)
	b.holes.add(p.addr)
	b.log.Warn("full packets do not arrive any more; connections are made anew", "address", p.addr, "bytes", size, "connections", len(narrow))
	for _, w := range narrow {
		w.narrow()
	}
}

// lives says whether a connection goes by a path that has not ended, as all do soon after the path is dead. mu is held.
func (p *path) lives() bool {
	for w := range p.watches {
		if w.conn.Context().Err() == nil {
			return true
		}
	}
	return false
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
