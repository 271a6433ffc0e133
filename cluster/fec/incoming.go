package fec

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// incoming repairs what one peer sends.
type incoming struct {
	on atomic.Bool // what comes is remembered; what follows is by mu

	mu      sync.Mutex
	log     []logged // a ring
	next    int
	last    time.Time // when something came
	large   time.Time // … of smallSize or more
	pending []*group  // the oldest first
	done    uint16    // the last group of which nothing is missing; any says that there is one
	any     bool
	said    Report
}

// logged is a datagram that came, or was made.
type logged struct {
	id   [idLength]byte
	data []byte
	made bool
}

// group is one that has parity, but not enough.
type group struct {
	number uint16
	n      int
	ids    [MaxGroup][idLength]byte
	parity [MaxParity][]byte
	have   int    // of parity
	came   uint32 // bit by bit, which of them
	since  time.Time
}

// Report is what a receiver saw since it joined.
type Report struct {
	Parity   uint64 // datagrams of parity that came
	Repaired uint64 // datagrams that were made, less those that came after all
	Lost     uint64 // those that were missing and could not be made
}

// Expect has what the peer sends be remembered from now on, or no more. It is for who was told that parity comes.
func (p *Peer) Expect(on bool) {
	in := &p.in
	in.mu.Lock()
	defer in.mu.Unlock()
	in.on.Store(on)
	if !on {
		in.log, in.pending = nil, nil
	}
}

// Report says what was seen, and lets go of what is held for a peer with whom nothing is exchanged, and of most of it where that is but a few small datagrams each second. It is to
// be called every few seconds.
func (p *Peer) Report() Report {
	p.out.rest(time.Now())
	in := &p.in
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.pending) > 0 && time.Since(in.pending[0].since) >= lateTime {
		in.giveUp(p, in.pending[0])
		in.pending = in.pending[1:]
	}
	switch {
	case in.log == nil:
	case time.Since(in.last) > idleTime:
		in.log = nil
	case time.Since(in.large) > idleTime:
		for i := range in.log {
			if l := &in.log[i]; cap(l.data) >= maxIdle {
				*l = logged{}
			}
		}
	}
	return in.said
}

// received takes note of a datagram of who has sent it, of whom there may be no state; true says that it was parity, and is not for who reads. What it led to is in c.ready.
func (c *Conn) received(p *Peer, b, oob []byte, from net.Addr) bool {
	if len(b) > 0 && b[0] >= kindParity && b[0] <= kindAnswer {
		switch {
		case p == nil, len(b) < headLength, binary.BigEndian.Uint32(b[1:]) != p.token:
			c.count.strange.Add(1)
		case b[0] == kindParity:
			p.repair(b, oob, from)
		default:
			p.probed(b)
		}
		return true
	}
	if p != nil && p.in.on.Load() {
		p.remember(b, oob, from)
	}
	return false
}

// remember keeps a copy of a datagram that came, and makes what is missing of a group if it was what its parity waited for.
func (p *Peer) remember(b, oob []byte, from net.Addr) {
	if len(b) < minSize || len(b) > MaxSize {
		return
	}
	in := &p.in
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.on.Load() {
		return
	}
	if made := in.find(b[len(b)-idLength:]); made != nil && made.made && bytes.Equal(made.data, b) {
		made.made = false // it was only late
		in.said.Repaired--
		return
	}
	in.keep(b, false)
	for _, g := range in.pending {
		if i := slices.Index(g.ids[:g.n], [idLength]byte(b[len(b)-idLength:])); i >= 0 {
			g.came |= 1 << i
			p.try(g, oob, from)
			return
		}
	}
}

// keep writes a datagram into the ring. mu is held.
func (in *incoming) keep(b []byte, made bool) {
	if in.log == nil {
		in.log, in.next = make([]logged, remembered), 0
	}
	in.last = time.Now()
	if len(b) >= smallSize {
		in.large = in.last
	}
	l := &in.log[in.next%remembered]
	in.next++
	copy(l.id[:], b[len(b)-idLength:])
	l.data = append(l.data[:0], b...)
	l.made = made
}

// find is the newest datagram with an ID. mu is held.
func (in *incoming) find(id []byte) *logged {
	if in.log == nil {
		return nil
	}
	for i := range min(in.next, remembered) {
		if l := &in.log[(in.next-1-i)%remembered]; l.id == [idLength]byte(id) {
			return l
		}
	}
	return nil
}

// has says whether nothing of a group is missing. mu is held.
func (in *incoming) has(ids []byte) bool {
	for ; len(ids) > 0; ids = ids[idLength:] {
		if in.find(ids[:idLength]) == nil {
			return false
		}
	}
	return true
}

// repair takes a datagram of parity with the right token.
func (p *Peer) repair(b, oob []byte, from net.Addr) {
	number, n, index := binary.BigEndian.Uint16(b[5:]), int(b[7]), int(b[8])
	ids, shard := b[headLength:], []byte(nil)
	if length := n * idLength; n >= 1 && n <= MaxGroup && index < MaxParity && len(ids) > length+sizeLength && len(ids)-length <= shardSize {
		ids, shard = ids[:length], ids[length:]
	} else {
		p.c.count.strange.Add(1)
		return
	}
	in := &p.in
	in.mu.Lock()
	defer in.mu.Unlock()
	p.c.count.parityReceived.Add(1)
	if in.said.Parity++; in.said.Parity%dueParity == 0 {
		p.c.isDue()
	}
	if !in.on.Load() || in.any && in.done == number {
		return
	}
	if in.has(ids) {
		in.finish(number)
		return
	}
	g := in.group(p, number, n, ids)
	if g == nil {
		p.c.count.strange.Add(1)
		return
	}
	if g.parity[index] == nil {
		g.have++
	}
	g.parity[index] = bytes.Clone(shard)
	p.try(g, oob, from)
}

// try makes what is missing of a group, if the parity that has come suffices. in.mu is held.
func (p *Peer) try(g *group, oob []byte, from net.Addr) {
	in := &p.in
	var there [MaxGroup]*logged
	missing := 0
	for i, id := range g.ids[:g.n] {
		if there[i] = in.find(id[:]); there[i] == nil {
			missing++
		}
	}
	if g.have < missing {
		return
	}
	in.finish(g.number)

	long := 0
	for _, parity := range g.parity {
		long = max(long, len(parity))
	}
	all := make([][]byte, MaxGroup+MaxParity)
	wanted := make([]bool, MaxGroup)
	zeros := make([]byte, long)
	for i := range MaxGroup {
		switch {
		case i >= g.n:
			all[i] = zeros
		case there[i] == nil:
			wanted[i] = true
		case sizeLength+len(there[i].data) > long:
			return // another with the same ID, or the parity is forged
		default:
			all[i] = make([]byte, long)
			binary.BigEndian.PutUint16(all[i], uint16(len(there[i].data)))
			copy(all[i][sizeLength:], there[i].data)
		}
	}
	for i, parity := range g.parity {
		if parity != nil {
			all[MaxGroup+i] = append(parity, zeros[len(parity):]...)
		}
	}
	if p.c.code(MaxParity).ReconstructSome(all, wanted) != nil {
		return
	}
	for i, id := range g.ids[:g.n] {
		if there[i] != nil {
			continue
		}
		length := int(binary.BigEndian.Uint16(all[i]))
		if length < minSize || sizeLength+length > long {
			continue
		}
		data := all[i][sizeLength:][:length]
		if !bytes.HasSuffix(data, id[:]) {
			continue
		}
		p.c.count.repaired.Add(1)
		in.said.Repaired++
		in.keep(data, true)
		p.c.ready = append(p.c.ready, arrival{data: data, oob: bytes.Clone(oob), from: from})
	}
}

// group is what is known of a group that may have something missing; nil if that is another with its number. mu is held.
func (in *incoming) group(p *Peer, number uint16, n int, ids []byte) *group {
	for _, g := range in.pending {
		if g.number == number {
			for i := range n {
				if g.n != n || g.ids[i] != [idLength]byte(ids[i*idLength:]) {
					return nil
				}
			}
			return g
		}
	}
	if len(in.pending) == maxPending {
		in.giveUp(p, in.pending[0])
		in.pending = in.pending[1:]
	}
	g := &group{number: number, n: n, since: time.Now()}
	for i := range n {
		copy(g.ids[i][:], ids[i*idLength:])
		if in.find(g.ids[i][:]) != nil {
			g.came |= 1 << i
		}
	}
	in.pending = append(in.pending, g)
	return g
}

// giveUp counts what of a group has not come to this moment. What is missing of a young one is as likely on its way; where it is not, the
// sender will know. mu is held.
func (in *incoming) giveUp(p *Peer, g *group) {
	if time.Since(g.since) < lateTime {
		return
	}
	lost := uint64(g.n - bits.OnesCount32(g.came))
	p.c.count.lost.Add(lost)
	in.said.Lost += lost
}

// finish takes note that a group needs no more parity. mu is held.
func (in *incoming) finish(number uint16) {
	in.done, in.any = number, true
	for i, g := range in.pending {
		if g.number == number {
			in.pending = append(in.pending[:i], in.pending[i+1:]...)
			return
		}
	}
}
