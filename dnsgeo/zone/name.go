package zone

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/miekg/dns"
)

const (
	// maxName is how many octets a name has at most, its last, empty label included (RFC 1035 §2.3.4).
	maxName = 255
	// maxLabel is how many octets a label has at most (RFC 1035 §2.3.4).
	maxLabel = 63
	// maxLabels is how many labels such a name can have: at least two octets each, and one for the root.
	maxLabels = 127
)

// Name is a domain name as it is looked up: in wire form and small letters, with where its labels begin and a hash of what
// begins at each. It is large, and meant to be used again for one name after another. The zero Name is none.
type Name struct {
	wire   [maxName + 9]byte // with room for a word that begins in it
	size   int
	labels int // without the root's
	starts [maxLabels + 1]uint8
	hashes [maxLabels + 1]uint64
}

// Set makes it the name that wire begins with and returns how many octets that took. It must be well-formed, without pointers:
// as it stands in a zone, or was found to be by whoever read it.
func (n *Name) Set(wire []byte) int {
	at, labels := 0, 0
	for wire[at] != 0 {
		n.starts[labels] = uint8(at)
		labels++
		at += 1 + int(wire[at])
	}
	n.starts[labels] = uint8(at)
	n.labels, n.size = labels, at+1
	copy(n.wire[:], wire[:n.size])
	n.fold()
	return n.size
}

// fold makes the letters small and the hashes.
func (n *Name) fold() {
	// A label's length is at most 63, which is below all letters, so it may be looked at like one.
	for i := 0; i < n.size; i += 8 {
		word := binary.LittleEndian.Uint64(n.wire[i:])
		binary.LittleEndian.PutUint64(n.wire[i:], lower(word))
	}
	h := uint64(0)
	n.hashes[n.labels] = h
	for i := n.labels - 1; i >= 0; i-- {
		at, left := n.starts[i], n.starts[i+1]-n.starts[i]
		for ; left > 8; at, left = at+8, left-8 { // hash, of words that are read whole
			h = mix(h, binary.LittleEndian.Uint64(n.wire[at:]))
		}
		h = mix(h, binary.LittleEndian.Uint64(n.wire[at:])&(^uint64(0)>>(64-8*left)))
		n.hashes[i] = h
	}
}

// Parse makes it the name that is written as text, absolute with or without its last dot.
func (n *Name) Parse(text string) error {
	var wire [maxName + 1]byte
	end, err := dns.PackDomainName(dns.Fqdn(text), wire[:], 0, nil, false)
	if err != nil {
		return fmt.Errorf("%q is no domain name: %w", text, err)
	}
	n.Set(wire[:end])
	return nil
}

// below makes it the name that is written as text below another, which is in wire form and small letters. It is false, and the name is none any
// more, of what is not written as hosts are.
func (n *Name) below(text string, wire []byte) bool {
	if len(text) == 0 || len(text)+1+len(wire) > maxName {
		return false
	}
	n.labels = 0
	begin := 0 // of a label, where its length stands
	for i := range len(text) + 1 {
		switch {
		case i == len(text) || text[i] == '.':
			if i == begin || i-begin > maxLabel {
				return false
			}
			n.wire[begin], n.starts[n.labels] = byte(i-begin), uint8(begin)
			n.labels++
			begin = i + 1
		case text[i] >= 'a' && text[i] <= 'z', text[i] >= '0' && text[i] <= '9', text[i] == '-', text[i] == '_', text[i] >= 'A' && text[i] <= 'Z':
			n.wire[i+1] = text[i]
		default:
			return false
		}
	}
	n.size = begin + copy(n.wire[begin:], wire)
	at := begin
	for ; n.wire[at] != 0; at += 1 + int(n.wire[at]) {
		n.starts[n.labels] = uint8(at)
		n.labels++
	}
	n.starts[n.labels] = uint8(at)
	n.fold()
	return true
}

// Hash is that of the whole name.
func (n *Name) Hash() uint64 { return n.hashes[0] }

// Labels is how many labels there are, the root's not counted.
func (n *Name) Labels() int { return n.labels }

// From is the name without its first labels, in wire form; it holds until the name is changed.
func (n *Name) From(label int) []byte { return n.wire[n.starts[label]:n.size] }

// Wire is the name in wire form; it holds until the name is changed.
func (n *Name) Wire() []byte { return n.wire[:n.size] }

// Start is where a label begins in Wire.
func (n *Name) Start(label int) int { return int(n.starts[label]) }

// Replace makes it the name of whose labels all from the one on, in from, are replaced by those of a name in wire form; false, and
// no change, where it would be too long (RFC 6672 §2.2).
func (n *Name) Replace(from *Name, label int, by []byte) bool {
	kept := from.Start(label)
	if kept+len(by) > maxName {
		return false
	}
	var wire [2 * maxName]byte
	copy(wire[:], from.wire[:kept])
	copy(wire[kept:], by)
	n.Set(wire[:])
	return true
}

// String is the name in zone-file form.
func (n *Name) String() string { return Text(n.Wire()) }

// Text is a name in wire form, in zone-file form.
func Text(wire []byte) string {
	text, _, err := dns.UnpackDomainName(wire, 0)
	if err != nil {
		return fmt.Sprintf("(no name: % x)", wire)
	}
	return text
}

// lower makes the capital letters among eight octets small.
func lower(word uint64) uint64 {
	const ones = 0x0101010101010101
	seven := word & (0x7f * ones)
	fromA := seven + (0x80-'A')*ones // its high bit: it is an A or above
	overZ := seven + (0x7f-'Z')*ones
	capital := (fromA ^ overZ) & ^word & (0x80 * ones)
	return word | capital>>2
}

// hash goes on from the hash of the labels behind one label, which is with its length. Whoever makes names that collide makes the
// lookups of his own zone slow.
func hash(h uint64, label []byte) uint64 {
	for len(label) > 8 {
		h = mix(h, binary.LittleEndian.Uint64(label))
		label = label[8:]
	}
	var last uint64
	for i, b := range label {
		last |= uint64(b) << (8 * i)
	}
	return mix(h, last)
}

func mix(h, word uint64) uint64 {
	high, low := bits.Mul64(h^0x9e3779b97f4a7c15, word^0xd6e8feb86659fd93)
	return high ^ low
}
