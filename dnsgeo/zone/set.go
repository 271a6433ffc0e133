package zone

import (
	"encoding/binary"
	"iter"
	"slices"

	"github.com/miekg/dns"
)

// Set is one record set as the bytes that are sent: of each record its data, with the length before it. It points into what the
// zone holds and must not be changed. The zero Set is of no records.
type Set struct {
	Type uint16
	TTL  uint32 // seconds
	N    int    // records
	data []byte
}

// Next is the data of the first record, and the rest of the set.
func (s Set) Next() (data []byte, rest Set) {
	n := 2 + int(binary.BigEndian.Uint16(s.data))
	data = s.data[2:n:n]
	s.N--
	s.data = s.data[n:]
	return data, s
}

// All yields the data of each record.
func (s Set) All() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for s.N > 0 {
			var data []byte
			if data, s = s.Next(); !yield(data) {
				return
			}
		}
	}
}

// With is the set and one more record.
func (s Set) With(data []byte) Set {
	s.data = binary.BigEndian.AppendUint16(slices.Clip(s.data), uint16(len(data)))
	s.data = append(s.data, data...)
	s.N++
	return s
}

// dataOf is the data of a record in wire form, without pointers.
func dataOf(rr dns.RR) ([]byte, error) {
	var room [512]byte
	wire := room[:]
	end, err := dns.PackRR(rr, wire, 0, nil, false)
	if err != nil {
		wire = make([]byte, dns.MaxMsgSize)
		if end, err = dns.PackRR(rr, wire, 0, nil, false); err != nil {
			return nil, err
		}
	}
	begin := NameSize(wire) + fixedSize
	return slices.Clone(wire[begin:end]), nil
}

// fixedSize is what stands between the owner and the data of a record: type, class, TTL and length.
const fixedSize = 10

// NameSize is how many octets the name takes that wire begins with.
func NameSize(wire []byte) int {
	at := 0
	for wire[at] != 0 {
		at += 1 + int(wire[at])
	}
	return at + 1
}

// same says whether data of a type are the same but for the letter case of names in it (RFC 4034 §6.2, of RFC 6840 §5.1's types).
func same(t uint16, a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	names, from := Names(t)
	if names == 0 {
		return string(a) == string(b)
	}
	if string(a[:from]) != string(b[:from]) {
		return false
	}
	var one, two Name
	for at := from; names > 0; names-- {
		n := one.Set(a[at:])
		if two.Set(b[at:]) != n || string(one.Wire()) != string(two.Wire()) {
			return false
		}
		if at += n; names == 1 {
			return string(a[at:]) == string(b[at:])
		}
	}
	return false
}

// Names says where in the data of a type names stand: so many, one after the other, from an octet on. It knows those types of RFC
// 1035 whose names may be shortened by pointers (RFC 3597 §4), and of others only CNAME's kin, DNAME and SRV.
func Names(t uint16) (count, from int) {
	switch t {
	case dns.TypeNS, dns.TypeCNAME, dns.TypePTR, dns.TypeDNAME, dns.TypeMD, dns.TypeMF, dns.TypeMB, dns.TypeMG, dns.TypeMR:
		return 1, 0
	case dns.TypeMX:
		return 1, 2
	case dns.TypeSOA, dns.TypeMINFO:
		return 2, 0
	case dns.TypeSRV:
		return 1, 6
	}
	return 0, 0
}
