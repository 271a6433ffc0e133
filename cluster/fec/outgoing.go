package fec

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"
)

// outgoing makes parity of what is sent to one peer.
type outgoing struct {
	on   atomic.Bool   // parity is to be sent
	bare atomic.Uint64 // datagrams that went without; what follows is by mu

	mu      sync.Mutex
	token   uint32 // the peer's; known says that it was told
	known   bool
	plan    [MaxGroup + 1]uint8 // parity by the group's length; zeros: none
	wait    time.Duration
	timer   *time.Timer // closes the group
	covered uint64
	group   uint16
	n       int
	ids     [MaxGroup][idLength]byte
	parity  [][]byte // of what the group has so far, as many as a full one needs
	part    [][]byte // those, cut to what is added: of a small datagram there is little to reckon
	long    int      // the longest datagram of the group
	shard   []byte
	packet  []byte
	oob     []byte // of the last datagram, without segmentation
	counted uint64 // covered, when it was looked at last and had grown
	since   time.Time
}

// Use has parity carry the token that the peer has told.
func (p *Peer) Use(token uint32) {
	o := &p.out
	o.mu.Lock()
	defer o.mu.Unlock()
	o.token, o.known = token, true
	o.on.Store(o.plan[1] > 0)
}

// Protect has parity sent against a loss, 0 to 1, from now on; 0: none. A group is closed when it is full, or the wait after its
// first datagram. Nothing is sent before Use. It returns whether parity is sent from now on.
func (p *Peer) Protect(loss float64, wait time.Duration) bool {
	o := &p.out
	o.mu.Lock()
	defer o.mu.Unlock()
	var plan [MaxGroup + 1]uint8
	for n := range plan {
		plan[n] = uint8(Parity(n, loss))
	}
	o.wait = wait
	if plan != o.plan {
		p.close() // the rows of a group are as many as they were at its beginning
		o.plan = plan
		o.parity = nil
	}
	if plan[1] == 0 {
		o.shard, o.packet, o.oob = nil, nil, nil
		if o.timer != nil {
			o.timer.Stop()
		}
	}
	o.on.Store(o.known && plan[1] > 0)
	return o.on.Load()
}

// sent takes note of what was given to the network: one datagram, or several of the segment's length each but the last. oob is what it
// was sent with, without the segmentation.
func (p *Peer) sent(b []byte, segment int, oob []byte) {
	if segment <= 0 {
		segment = max(len(b), 1)
	}
	if !p.out.on.Load() {
		p.bare((len(b) + segment - 1) / segment)
		return
	}
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	if !p.out.on.Load() {
		return
	}
	p.out.oob = append(p.out.oob[:0], oob...)
	for len(b) > 0 {
		length := min(segment, len(b))
		p.cover(b[:length])
		b = b[length:]
	}
}

// bare counts datagrams that go without parity to a peer who may have some: what is lost of them is to be known soon.
func (p *Peer) bare(n int) {
	if p.limited.Load() && p.out.bare.Add(uint64(n))%dueCovered < uint64(n) {
		p.c.isDue()
	}
}

// cover adds a datagram to the group. out.mu is held.
func (p *Peer) cover(b []byte) {
	o := &p.out
	if len(b) < minSize || len(b) > MaxSize {
		return
	}
	if o.parity == nil {
		for range o.plan[MaxGroup] {
			o.parity = append(o.parity, make([]byte, shardSize))
		}
		o.part = make([][]byte, len(o.parity))
		o.shard, o.packet = make([]byte, shardSize), make([]byte, 0, maxParitySize)
	}
	binary.BigEndian.PutUint16(o.shard, uint16(len(b)))
	length := sizeLength + copy(o.shard[sizeLength:], b)
	for i, parity := range o.parity {
		o.part[i] = parity[:length]
	}
	p.c.code(len(o.parity)).EncodeIdx(o.shard[:length], o.n, o.part) // the lengths are right; zeros behind them would add nothing
	copy(o.ids[o.n][:], b[len(b)-idLength:])
	o.long = max(o.long, len(b))
	o.n++
	if o.covered++; o.covered%dueCovered == 0 {
		p.c.isDue()
	}
	switch {
	case o.n == MaxGroup:
		p.close()
	case o.n == 1 && o.timer == nil:
		o.timer = time.AfterFunc(o.wait, p.closeInTime)
	case o.n == 1:
		o.timer.Reset(o.wait)
	}
}

// rest lets go of what is held for groups where nothing was covered for some time.
func (o *outgoing) rest(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.covered != o.counted:
		o.counted, o.since = o.covered, now
	case o.n == 0 && now.Sub(o.since) > idleTime:
		o.parity, o.part, o.shard, o.packet, o.oob = nil, nil, nil, nil, nil
	}
}

func (p *Peer) closeInTime() {
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	p.close()
}

// close sends the group's parity and begins another. out.mu is held.
func (p *Peer) close() {
	o := &p.out
	if o.n == 0 {
		return
	}
	rows := o.plan[o.n]
	if o.n < someSmall && o.long < smallSize {
		rows = 0
	}
	for i := range rows {
		b := append(o.packet[:0], kindParity)
		b = binary.BigEndian.AppendUint32(b, o.token)
		b = binary.BigEndian.AppendUint16(b, o.group)
		b = append(b, byte(o.n), byte(i))
		for _, id := range o.ids[:o.n] {
			b = append(b, id[:]...)
		}
		b = append(b, o.parity[i][:sizeLength+o.long]...)
		p.c.write(b, o.oob, p.to) // lost like any other where it does not go
		p.c.count.paritySent.Add(1)
		p.sends.Add(1)
	}
	for _, parity := range o.parity {
		clear(parity[:sizeLength+o.long])
	}
	o.group++
	o.n, o.long = 0, 0
	o.timer.Stop()
}
