// Package lasting is what a flow has to know so that it can go on over another stream when the one it is on is lost: not a byte is lost, and none comes
// twice. It is pure: it has no stream, no lock and no clock, but for the pool that its memory comes from. The backbone has those.
//
// A flow's bytes are numbered from 0, each way, and its end counts as one byte more. On a stream they travel in frames, each of which begins with a
// byte that says what it is, and three bytes of a number:
//
//	Data   so many bytes follow
//	Ack    so many more of the other end's bytes have arrived
//	End    there are no more bytes; the number is 0
//	Forgo  the sender keeps nothing for another stream any more; the number is 0
//
// What was written is kept until it is acknowledged. On another stream each end first hears how much the other has, and sends what follows.
//
// When things break: a frame that cannot be, or an acknowledgement of what was not sent, is ErrUnlikely, and the flow is over. What is kept is bounded, by
// flow and for all together; who is beyond that (Full) is to Forgo.
package lasting

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// What a frame is.
const (
	Data  = 0
	Ack   = 1
	End   = 2
	Forgo = 3
)

const (
	head = 4 // bytes before each frame
	// maxData bounds the bytes of one frame, and maxAck what one acknowledges.
	maxData = 1 << 20
	maxAck  = 1<<24 - 1
)

const (
	// MaxKept bounds the bytes that a flow keeps because they are not acknowledged. Two streams, of which neither end nor a node in between reads, hold
	// less (6 MB each), and so does a TCP connection with the buffers of docs/operate.md (17 MB). So it is reached only where acknowledgements are stuck behind bytes that nobody reads, and then the flow does not wait: it forgoes
	// another stream.
	MaxKept = 24 << 20
	// MaxKeptByAll is how much memory all flows of a node may keep their bytes in. Beyond it those forgo that keep more than one large piece, and beyond
	// twice as much those that keep more than one small piece: who is silent, or sends little, does not pay for slow readers. So with n flows the
	// bound is 2*MaxKeptByAll + n*smallPiece.
	MaxKeptByAll = 256 << 20

	// What is written is kept in pieces of one of two sizes. The larger takes what a relay reads at a time and heads before it, and fills pages.
	smallPiece = 4 << 10
	largePiece = 72 << 10
)

// ErrUnlikely says that the other end says what cannot be.
var ErrUnlikely = errors.New("the other end says what cannot be")

var (
	smallPieces = sync.Pool{New: func() any { return new([smallPiece]byte) }}
	largePieces = sync.Pool{New: func() any { return new([largePiece]byte) }}
)

// Heads is room for the heads of an acknowledgement and of one more frame.
type Heads [2 * head]byte

// headroom is what a piece has free before its bytes, so that their frame can be written at once.
const headroom = len(Heads{})

// lent is how many bytes go into a piece that is lent: with the heads they fill records of TLS (16 KiB). leastLent is from how many on it is kept as it
// is; fewer are copied, so that they take no more memory than they need.
const (
	lent      = 64<<10 - headroom
	leastLent = lent / 2
)

// Most is how many bytes may be written of a piece that was lent.
const Most = uint64(lent)

// Piece is bytes that were written one after the other.
type Piece struct {
	room []byte
	from uint64 // the number of the byte at headroom
	n    int
}

func newPiece(size int, from uint64) *Piece {
	if size <= smallPiece-headroom {
		return &Piece{smallPieces.Get().(*[smallPiece]byte)[:], from, 0}
	}
	return &Piece{largePieces.Get().(*[largePiece]byte)[:], from, 0}
}

// Lend gives out a piece, for who reads right into it what is to be written: Take is to have it back.
func Lend() *Piece { return newPiece(lent, 0) }

// Room is where to read to.
func (p *Piece) Room() []byte { return p.room[headroom : headroom+lent] }

func (p *Piece) to() uint64 { return p.from + uint64(p.n) }

// Free is for who has lent a piece that is not to be written.
func (p *Piece) Free() {
	if len(p.room) == smallPiece {
		smallPieces.Put((*[smallPiece]byte)(p.room))
	} else {
		largePieces.Put((*[largePiece]byte)(p.room))
	}
	p.room = nil
}

// Out is one direction of a flow at the end that writes it: what was written and is not acknowledged.
type Out struct {
	// Held counts the bytes of memory in which flows keep their bytes, of all that share it.
	Held *atomic.Int64

	acked   uint64 // up to here the other end has the bytes
	sent    uint64 // up to here they were put on the stream of now
	highest uint64 // up to here on any stream
	to      uint64 // so many were added
	ended   bool   // and there will be no more
	forgone bool   // nothing is kept once it is sent

	pieces []*Piece // of what is kept, in order
	busy   *Piece   // whose bytes a stream is being given: it is not freed
}

// Add takes as many bytes of b as go into one piece, which is more than none. Nothing is to follow the end.
func (o *Out) Add(b []byte) int {
	var last *Piece
	if n := len(o.pieces); n > 0 {
		last = o.pieces[n-1]
	}
	if last == nil || len(b) > len(last.room)-headroom-last.n {
		last = newPiece(len(b), o.to)
		o.Held.Add(int64(len(last.room)))
		o.pieces = append(o.pieces, last)
	}
	n := copy(last.room[headroom+last.n:], b)
	last.n += n
	o.to += uint64(n)
	return n
}

// Take is Add of the first n bytes in a piece that was lent, and of all of them. The piece is not its user's any more.
func (o *Out) Take(p *Piece, n int) {
	if n < leastLent {
		for b := p.Room()[:n]; len(b) > 0; {
			b = b[o.Add(b):]
		}
		p.Free()
		return
	}
	p.from, p.n = o.to, n
	o.Held.Add(int64(len(p.room)))
	o.pieces = append(o.pieces, p)
	o.to += uint64(n)
}

// End takes note that no more bytes follow.
func (o *Out) End() { o.ended = true }

// Ended says that End was called.
func (o *Out) Ended() bool { return o.ended }

// Full says that more is kept than may be.
func (o *Out) Full() bool {
	if o.to-o.acked > MaxKept {
		return true
	}
	share, held := largePiece, o.Held.Load()
	switch {
	case held <= MaxKeptByAll:
		return false
	case held > 2*MaxKeptByAll:
		share = smallPiece
	}
	room := 0
	for i := 0; i < len(o.pieces) && room <= share; i++ {
		room += len(o.pieces[i].room)
	}
	return room > share
}

// total is how many bytes there are to be sent, the end included.
func (o *Out) total() uint64 {
	if o.ended {
		return o.to + 1
	}
	return o.to
}

// Unsent says that something is to be put on the stream of now.
func (o *Out) Unsent() bool { return o.sent < o.total() }

// Kept is how many bytes, the end included, are not known to have arrived.
func (o *Out) Kept() uint64 { return o.total() - o.acked }

// OnWay is how many bytes were given to the stream of now, and are not known to have arrived.
func (o *Out) OnWay() uint64 { return o.sent - min(o.sent, o.acked) }

// Done says that all was acknowledged, the end too.
func (o *Out) Done() bool { return o.ended && o.Kept() == 0 }

// Next is what is to be written to the stream next, in two parts of which either may be empty: an acknowledgement of so many bytes, if it is not 0, and one
// frame of what is unsent. heads is room for them. From then on that counts as sent, and Written is to be called when it is written, or will never be.
func (o *Out) Next(ack uint32, heads *Heads) (first, second []byte) {
	first = heads[:0]
	if ack > 0 {
		first = appendHead(first, Ack, ack)
	}
	switch {
	case o.sent < o.to:
		p := o.pieces[o.find(o.sent)]
		at := int(o.sent - p.from)
		second = p.room[headroom+at : headroom+p.n]
		first = appendHead(first, Data, uint32(len(second)))
		if at == 0 || o.acked == o.sent { // nobody needs what is before, and one write is cheaper than two
			from := headroom + at - len(first)
			copy(p.room[from:], first)
			first, second = nil, p.room[from:headroom+p.n]
		}
		o.busy = p
		o.sent = p.to()
	case o.Unsent():
		first = appendHead(first, End, 0)
		o.sent++
	}
	o.highest = max(o.highest, o.sent)
	return first, second
}

// AppendForgo appends what says that this end keeps nothing any more.
func AppendForgo(b []byte) []byte { return appendHead(b, Forgo, 0) }

func appendHead(b []byte, kind byte, n uint32) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(kind)<<24|n)
}

// find is the index of the piece that has a byte which is kept.
func (o *Out) find(at uint64) int {
	i, found := slices.BinarySearchFunc(o.pieces, at, func(p *Piece, at uint64) int {
		switch {
		case p.to() <= at:
			return -1
		case p.from > at:
			return 1
		}
		return 0
	})
	if !found {
		panic(fmt.Sprintf("byte %d is not kept", at)) // it was not acknowledged
	}
	return i
}

// Written says that the stream has what Next gave last.
func (o *Out) Written() {
	o.busy = nil
	o.release()
}

// Acked takes note that the other end has so many bytes more.
func (o *Out) Acked(n uint32) error {
	if n == 0 || o.acked+uint64(n) > o.sent {
		return fmt.Errorf("%w: it has %d bytes more than %d, of %d", ErrUnlikely, n, o.acked, o.sent)
	}
	o.acked += uint64(n)
	o.release()
	return nil
}

// Resume has what follows the first bytes, which the other end has, sent anew, on another stream, and returns how much of that the stream before had
// taken. Nothing may be being written.
func (o *Out) Resume(has uint64) (again uint64, err error) {
	if has < o.acked || has > o.highest || o.forgone {
		return 0, fmt.Errorf("%w: it has %d bytes, between %d and %d", ErrUnlikely, has, o.acked, o.highest)
	}
	again = o.sent - min(o.sent, has)
	o.acked, o.sent = has, has
	o.release()
	return again, nil
}

// Forgo has nothing kept that was sent.
func (o *Out) Forgo() {
	o.forgone = true
	o.release()
}

// Forgone says that Forgo or Drop was called.
func (o *Out) Forgone() bool { return o.forgone }

// Drop has nothing kept or sent any more: the flow is over.
func (o *Out) Drop() {
	o.forgone = true
	o.sent = o.total()
	o.release()
}

// release frees the pieces that are needed no more.
func (o *Out) release() {
	upTo := o.acked
	if o.forgone {
		upTo = o.sent
	}
	n := 0
	for n < len(o.pieces) && o.pieces[n].to() <= upTo && o.pieces[n] != o.busy {
		o.Held.Add(-int64(len(o.pieces[n].room)))
		o.pieces[n].Free()
		n++
	}
	if n < len(o.pieces) {
		o.pieces = slices.Delete(o.pieces, 0, n)
		return
	}
	o.pieces = nil // a flow that is silent holds nothing
}

// In is one direction of a flow at the end that reads it.
type In struct {
	received uint64 // bytes that have arrived, the end included
	told     uint64 // of these the other end knows
	left     int32  // bytes of the frame that are to come
	head     [head]byte
	have     uint8 // of it
	ended    bool
}

// Frame is what a head says.
type Frame struct {
	Kind byte
	N    uint32
}

// Left is how many bytes of data are to be read next, of which Took is to hear; at 0 a head is to be read.
func (i *In) Left() int { return int(i.left) }

// Took takes note of n bytes of data that were read.
func (i *In) Took(n int) {
	i.left -= int32(n)
	i.received += uint64(n)
}

// Head is where the rest of a head is to be read to; Read is to hear of it.
func (i *In) Head() []byte { return i.head[i.have:] }

// Read takes note of n bytes of a head that were read, and says what it is once it is whole.
func (i *In) Read(n int) (f Frame, whole bool, err error) {
	if i.have += uint8(n); i.have < head {
		return Frame{}, false, nil
	}
	i.have = 0
	f = Frame{i.head[0], binary.BigEndian.Uint32(i.head[:]) & maxAck}
	switch {
	case f.Kind == Data && f.N > 0 && f.N <= maxData && !i.ended:
		i.left = int32(f.N)
	case f.Kind == Ack && f.N > 0: // Out judges it
	case f.Kind == End && f.N == 0 && !i.ended:
		i.ended = true
		i.received++
	case f.Kind == Forgo && f.N == 0:
	default:
		return f, false, fmt.Errorf("%w: frame %d of %d", ErrUnlikely, f.Kind, f.N)
	}
	return f, true, nil
}

// Ended says that all has arrived, the end too.
func (i *In) Ended() bool { return i.ended }

// Received is how many bytes have arrived, the end included.
func (i *In) Received() uint64 { return i.received }

// Due is how many bytes have arrived of which the other end does not know.
func (i *In) Due() uint64 { return i.received - i.told }

// Tell is how many of them an acknowledgement says; from then on the other end knows.
func (i *In) Tell() uint32 {
	n := min(i.Due(), maxAck)
	i.told += n
	return uint32(n)
}

// Resume begins with another stream, at whose beginning the other end is told what has arrived.
func (i *In) Resume() {
	i.have, i.left = 0, 0
	i.told = i.received
}
