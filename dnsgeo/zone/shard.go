package zone

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"math"

	"github.com/miekg/dns"
)

// A shard is some of the names of a zone, chosen by their hash: all of them in one piece of memory without pointers, and a table
// that leads to them by hash. It is never changed. A zone with another record shares all shards but one with the zone before.
//
// A name stands there as it is without the labels of its zone:
//
//	length, labels | flags | sets | names right below it | its sets, each: type, TTL, records, length, (length, data)…
//
// In the place of a set that is more than records, a choice, stands its number in choices.
type shard struct {
	slots   []uint64 // the upper half of a name's hash in the upper half, where it stands in the lower; 0: free
	data    []byte   // begins with an octet that is nobody's, so that nothing stands at 0
	choices []*Choice
	names   int
}

const (
	isCut   = 1 << iota // there is a delegation here; at the apex it is none, but nobody asks there
	hasWild             // there is a wildcard right below
	isAlias             // there is a CNAME here
	isDNAME             // there is a DNAME here
)

// chosen marks a choice, where the number of records of a set stands.
const chosen = math.MaxUint16

// setSize is what stands before the records of a set, or before the number of a choice.
const setSize = 2 + 4 + 2 + 2

// Node is one name of a zone, and what stands there. A name that has only names below it is a Node of no sets (an empty
// non-terminal). The zero Node is none.
type Node struct {
	shard *shard
	sets  []byte
	count uint8
	flags uint8
}

// OK says whether it is a name of the zone.
func (n Node) OK() bool { return n.shard != nil }

// Empty says whether nothing stands there.
func (n Node) Empty() bool { return n.count == 0 }

// IsAlias says whether there is a CNAME.
func (n Node) IsAlias() bool { return n.flags&isAlias != 0 }

// Find returns what stands at the node for a type: a set, or a choice.
func (n Node) Find(t uint16) (Set, *Choice, bool) {
	sets := n.sets
	for range n.count {
		length := int(binary.BigEndian.Uint16(sets[8:]))
		if binary.BigEndian.Uint16(sets) == t {
			set, choice := n.set(sets, length)
			return set, choice, true
		}
		sets = sets[setSize+length:]
	}
	return Set{}, nil, false
}

// All yields all that stands at the node.
func (n Node) All() iter.Seq2[Set, *Choice] {
	return func(yield func(Set, *Choice) bool) {
		sets := n.sets
		for range n.count {
			length := int(binary.BigEndian.Uint16(sets[8:]))
			if !yield(n.set(sets, length)) {
				return
			}
			sets = sets[setSize+length:]
		}
	}
}

func (n Node) set(sets []byte, length int) (Set, *Choice) {
	count := binary.BigEndian.Uint16(sets[6:])
	if count == chosen {
		return Set{}, n.shard.choices[binary.BigEndian.Uint32(sets[setSize:])]
	}
	return Set{
		Type: binary.BigEndian.Uint16(sets), TTL: binary.BigEndian.Uint32(sets[2:]),
		N: int(count), data: sets[setSize : setSize+length],
	}, nil
}

// find returns the node of a name by its hash and its labels in the zone.
func (s *shard) find(hash uint64, labels []byte) Node {
	_, n := s.look(hash, labels)
	return n
}

// look is find, and how many names are right below the one found.
func (s *shard) look(hash uint64, labels []byte) (below uint32, n Node) {
	mask := uint64(len(s.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		slot := s.slots[i]
		if slot == 0 {
			return 0, Node{}
		}
		if slot>>32 != hash>>32 {
			continue
		}
		at := uint32(slot)
		size := int(s.data[at])
		if entry := s.data[at+1:]; string(entry[:size]) == string(labels) {
			below, n, _ = s.read(entry[size:])
			return below, n
		}
	}
}

// read reads what stands behind the labels of a name: how many names are right below it, the node, and how long all that is.
func (s *shard) read(entry []byte) (below uint32, n Node, size int) {
	more, k := uint32(entry[2]), 3
	if more == math.MaxUint8 {
		more, k = binary.BigEndian.Uint32(entry[3:]), 7
	}
	length := binary.BigEndian.Uint32(entry[k:])
	k += 4
	return more, Node{shard: s, flags: entry[0], count: entry[1], sets: entry[k : k+int(length)]}, k + int(length)
}

// all yields the names of the shard: their labels in the zone, how many names are right below them, the nodes, and their bytes.
func (s *shard) all() iter.Seq2[[]byte, entry] {
	return func(yield func([]byte, entry) bool) {
		for rest := s.data[1:]; len(rest) > 0; {
			size := int(rest[0])
			below, node, more := s.read(rest[1+size:])
			if !yield(rest[1:1+size], entry{below, node, rest[: 1+size+more : 1+size+more]}) {
				return
			}
			rest = rest[1+size+more:]
		}
	}
}

type entry struct {
	below uint32
	node  Node
	bytes []byte
}

// making is a shard in the making.
type making struct {
	shard  *shard
	hashes []uint64
	at     []uint32
	last   uint8 // flags of the name that was put last
	err    error
}

func newMaking(names, size int) *making {
	return &making{
		shard:  &shard{data: make([]byte, 1, 1+size)},
		hashes: make([]uint64, 0, names), at: make([]uint32, 0, names),
	}
}

func (m *making) begin(hash uint64) {
	m.hashes, m.at = append(m.hashes, hash), append(m.at, uint32(len(m.shard.data)))
}

// keep takes a name of another shard as it is, but for the numbers of its choices.
func (m *making) keep(hash uint64, e entry) {
	m.begin(hash)
	begin := len(m.shard.data)
	m.shard.data = append(m.shard.data, e.bytes...)
	if len(e.node.shard.choices) == 0 {
		return
	}
	sets := m.shard.data[begin+len(e.bytes)-len(e.node.sets):]
	for range e.node.count {
		length := int(binary.BigEndian.Uint16(sets[8:]))
		if binary.BigEndian.Uint16(sets[6:]) == chosen {
			number := sets[setSize:]
			choice := e.node.shard.choices[binary.BigEndian.Uint32(number)]
			binary.BigEndian.PutUint32(number, m.number(choice))
		}
		sets = sets[setSize+length:]
	}
}

// number is that of a choice, from now on.
func (m *making) number(c *Choice) uint32 {
	m.shard.choices = append(m.shard.choices, c)
	return uint32(len(m.shard.choices) - 1)
}

// put takes a name with what is to stand there.
func (m *making) put(hash uint64, labels []byte, d *draft) {
	m.begin(hash)
	data := append(m.shard.data, byte(len(labels)))
	data = append(data, labels...)
	flags := d.flags &^ (isCut | isAlias | isDNAME)
	for i := range d.sets {
		switch d.sets[i].typ {
		case dns.TypeNS:
			flags |= isCut
		case dns.TypeCNAME:
			flags |= isAlias
		case dns.TypeDNAME:
			flags |= isDNAME
		}
	}
	m.last = flags
	data = append(data, flags, byte(len(d.sets)))
	if d.below < math.MaxUint8 {
		data = append(data, byte(d.below))
	} else {
		data = binary.BigEndian.AppendUint32(append(data, math.MaxUint8), d.below)
	}
	begin := len(data)
	data = append(data, 0, 0, 0, 0)
	for i := range d.sets {
		s := &d.sets[i]
		data = binary.BigEndian.AppendUint16(data, s.typ)
		if s.choice != nil {
			data = append(data, 0, 0, 0, 0, chosen>>8, chosen&0xff, 0, 4)
			data = binary.BigEndian.AppendUint32(data, m.number(s.choice))
			continue
		}
		if s.set.N >= chosen || len(s.set.data) > dns.MaxMsgSize {
			m.err = fmt.Errorf("%s: no message has room for all records of the set", dns.Type(s.typ))
			break
		}
		data = binary.BigEndian.AppendUint32(data, s.set.TTL)
		data = binary.BigEndian.AppendUint16(data, uint16(s.set.N))
		data = binary.BigEndian.AppendUint16(data, uint16(len(s.set.data)))
		data = append(data, s.set.data...)
	}
	binary.BigEndian.PutUint32(data[begin:], uint32(len(data)-begin-4))
	if len(d.sets) > math.MaxUint8 || uint64(len(data)) > math.MaxUint32 {
		m.err = fmt.Errorf("a name has records of at most %d types", math.MaxUint8)
	}
	m.shard.data = data
}

// end makes the table. It is at most three quarters full.
func (m *making) end() (*shard, error) {
	s := m.shard
	s.names = len(m.at)
	if cap(s.data)-len(s.data) > len(s.data)/16+32 {
		s.data = bytes.Clone(s.data)[:len(s.data):len(s.data)]
	}
	slots := 1
	for 3*slots < 4*s.names+3 {
		slots *= 2
	}
	s.slots = make([]uint64, slots)
	mask := uint64(slots - 1)
	for k, hash := range m.hashes {
		i := hash & mask
		for s.slots[i] != 0 {
			i = (i + 1) & mask
		}
		s.slots[i] = hash>>32<<32 | uint64(m.at[k])
	}
	return s, m.err
}
