package fec

import (
	"encoding/binary"
	"sync/atomic"
)

// A probe is a datagram of a size that somebody wants to know of whether the path carries it: its kind, the receiver's token, a number, and zeros. It is
// answered by its number, with the token of who has sent it. What has no token is not answered, and an answer is no larger than what it is of, so nobody
// can have more sent to another than he sends himself.
const (
	kindProbe  = 0x22
	kindAnswer = 0x23

	probeHead = 1 + 4 + 4

	// MinProbe is the smallest probe, bytes.
	MinProbe = probeHead
)

// answers are the numbers of the last probes that were answered.
type answers [16]atomic.Uint32

// Probe sends a datagram of so many bytes, at least MinProbe, by a number other than 0; false: it cannot be sent, for the peer has not told its token
// yet, or for its size. A release that does not know probes does not answer.
func (p *Peer) Probe(number uint32, size int) bool {
	token, known := p.out.peerToken()
	if !known {
		return false
	}
	p.heard[number%uint32(len(p.heard))].Store(0)
	b := make([]byte, max(size, MinProbe))
	putProbe(b, kindProbe, token, number)
	return p.c.write(b, nil, p.to) == nil
}

// Answered says that a probe has come back, one of the last 16.
func (p *Peer) Answered(number uint32) bool {
	return p.heard[number%uint32(len(p.heard))].Load() == number
}

func putProbe(b []byte, kind byte, token, number uint32) {
	b[0] = kind
	binary.BigEndian.PutUint32(b[1:], token)
	binary.BigEndian.PutUint32(b[5:], number)
}

// probed takes a probe, or an answer to one. Its token is the right one.
func (p *Peer) probed(b []byte) {
	if len(b) < probeHead {
		p.c.count.strange.Add(1)
		return
	}
	number := binary.BigEndian.Uint32(b[5:])
	if b[0] == kindAnswer {
		p.heard[number%uint32(len(p.heard))].Store(number)
		return
	}
	token, known := p.out.peerToken()
	if !known {
		return
	}
	var answer [probeHead]byte
	putProbe(answer[:], kindAnswer, token, number)
	p.c.write(answer[:], nil, p.to) // lost like any other where it does not go
}

func (o *outgoing) peerToken() (token uint32, known bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.token, o.known
}
