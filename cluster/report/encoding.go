package report

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/perigee-net/perigee/cluster/wire"
)

const (
	// MaxName is the most that a name may have, in bytes.
	MaxName = 128
	// maxFrame is the most that a frame may have, in bytes; a larger one ends the stream.
	maxFrame = 256 << 10
	// maxItems is the most items of a frame: in memory they are far larger than on the way.
	maxItems = 16 << 10
	// frameSize is when a frame is full enough to go: a statement that is larger goes in pieces.
	frameSize = 64 << 10
	// maxNumber bounds lives and seqs, so that there is always one above.
	maxNumber = 1 << 63
)

var errMalformed = errors.New("malformed")

// A frame is its length in four bytes, and items one after the other; none at all is a beat. An item begins with its kind. Numbers
// are uvarints; names, keys and values have their length before them. Who sends gives each node a number below maxNodes of its own:
// the last item that named it says which node, and which life of it, is meant.
const (
	itemNode   = 1 // number, name, life: from now on that number means that life of that node
	itemSaid   = 2 // number, from, to, floor, how many records; of each seq less the one before (the first: less from), key, 0 and value or 1
	itemHas    = 3 // how many; of each number less the one before, seq: the sender knows of these nodes all up to there
	itemWant   = 4 // number, seq: the sender asks for what that node said after
	itemWish   = 5 // wish: what it asks to be told without asking from now on
	itemReady  = 6 // the sender has said of all nodes what it has
	itemForgot = 7 // name: the sender knows nothing of that node any more
)

// item is one thing that is said on a stream.
type item struct {
	kind   byte
	number int
	name   string
	life   uint64
	said   statement // its values are of the frame, its life is not set
	has    []mark
	seq    uint64
	wish   wish
}

// mark is how far the node of a number is known.
type mark struct {
	number int
	seq    uint64
}

func appendNode(b []byte, number int, name string, life uint64) []byte {
	b = binary.AppendUvarint(append(b, itemNode), uint64(number))
	b = wire.Append(b, name)
	return binary.AppendUvarint(b, life)
}

// appendSaid says what an origin said after a change, as far as there is room, but at least one record. It returns up to
// which change that is.
func appendSaid(b []byte, number int, o *origin, from uint64, room int) ([]byte, uint64) {
	rest := o.since(from)
	to, count, end := o.have, 0, 0
	for i, r := range rest {
		if r.old {
			continue
		}
		room -= len(r.key) + len(r.value) + 2*binary.MaxVarintLen16 + binary.MaxVarintLen64
		if room < 0 && count > 0 {
			break
		}
		count, end, to = count+1, i+1, r.seq
	}
	if !slices.ContainsFunc(rest[end:], func(r *record) bool { return !r.old }) {
		to = o.have
	}
	b = binary.AppendUvarint(append(b, itemSaid), uint64(number))
	b = binary.AppendUvarint(b, from)
	b = binary.AppendUvarint(b, to)
	b = binary.AppendUvarint(b, o.floor)
	b = binary.AppendUvarint(b, uint64(count))
	last := from
	for _, r := range rest[:end] {
		if r.old {
			continue
		}
		b = binary.AppendUvarint(b, r.seq-last)
		last = r.seq
		b = wire.Append(b, r.key)
		if r.removed {
			b = append(b, 1)
		} else {
			b = wire.Append(append(b, 0), r.value)
		}
	}
	return b, to
}

// appendHas says how far some nodes are known, and orders them by number.
func appendHas(b []byte, has []mark) []byte {
	slices.SortFunc(has, func(a, b mark) int { return a.number - b.number })
	b = binary.AppendUvarint(append(b, itemHas), uint64(len(has)))
	last := 0
	for _, m := range has {
		b = binary.AppendUvarint(b, uint64(m.number-last))
		b = binary.AppendUvarint(b, m.seq)
		last = m.number
	}
	return b
}

func appendWant(b []byte, number int, seq uint64) []byte {
	b = binary.AppendUvarint(append(b, itemWant), uint64(number))
	return binary.AppendUvarint(b, seq)
}

// decodeFrame reads the items of a frame, all or none. Its values are of b.
func decodeFrame(b []byte) ([]item, error) {
	d := decoder{wire.Reader{Rest: b}}
	var items []item
	for !d.Failed && len(d.Rest) > 0 {
		if len(items) == maxItems {
			return nil, errMalformed
		}
		items = append(items, d.item())
	}
	if d.Failed {
		return nil, errMalformed
	}
	return items, nil
}

// decoder reads one field after the other.
type decoder struct{ wire.Reader }

func (d *decoder) item() item {
	i := item{kind: d.Byte()}
	switch i.kind {
	case itemNode:
		i.number, i.name, i.life = d.node(0), d.string(MaxName), d.number()
	case itemSaid:
		i.number = d.node(0)
		i.said = d.statement()
	case itemHas:
		last := 0
		for range d.count(2) {
			last = d.node(last)
			i.has = append(i.has, mark{last, d.number()})
		}
	case itemWant:
		i.number, i.seq = d.node(0), d.number()
	case itemWish:
		if i.wish = wish(d.Byte()); i.wish > everything {
			d.Fail()
		}
	case itemReady:
	case itemForgot:
		i.name = d.string(MaxName)
	default:
		d.Fail()
	}
	return i
}

func (d *decoder) statement() statement {
	s := statement{from: d.number(), to: d.number(), floor: d.number()}
	if s.from >= s.to {
		d.Fail()
	}
	last := s.from
	for range d.count(4) {
		step := d.number()
		r := record{key: d.string(MaxKey)}
		switch d.Byte() {
		case 0:
			r.value = d.Bytes(MaxValue)
		case 1:
			r.removed = true
		default:
			d.Fail()
		}
		if step == 0 || step > s.to-last { // no sum of them is above to
			d.Fail()
		}
		if d.Failed {
			break
		}
		last += step
		r.seq = last
		s.records = append(s.records, r)
	}
	return s
}

func (d *decoder) number() uint64 {
	n := d.Uvarint()
	if n >= maxNumber {
		d.Fail()
		return 0
	}
	return n
}

// node is the number of a node.
func (d *decoder) node(after int) int {
	n := d.number()
	if n >= maxNodes || after+int(n) >= maxNodes {
		d.Fail()
		return 0
	}
	return after + int(n)
}

// count is how many things follow that have at least so many bytes.
func (d *decoder) count(least int) int {
	n := d.number()
	if n > uint64(len(d.Rest)/least) {
		d.Fail()
		return 0
	}
	return int(n)
}

// string is a name or a key: it is never empty.
func (d *decoder) string(limit int) string {
	b := d.Bytes(limit)
	if len(b) == 0 {
		d.Fail()
	}
	return string(b)
}
