package gossip

import (
	"encoding/binary"
	"errors"
)

const (
	// encodingVersion is the first byte of a message and of a state. Other versions are refused, and counted
	// as malformed.
	encodingVersion = 1
	// maxState bounds the values that are sent in one exchange of state, in bytes; which nodes are left out
	// changes from time to time. The library takes 20 MB.
	maxState = 8 << 20
	// maxVersion bounds lives and seqs, so that there is always one above.
	maxVersion = 1 << 63
)

var errMalformed = errors.New("malformed")

// nodeState is one node's values in a state.
type nodeState struct {
	node    string
	life    uint64
	records []record
}

// A message is the version, then name, life, seq, key, flag and value; a state is the version, then for each node its
// name, life and number of values, and for each value seq, key, flag and value. Numbers are uvarints, names,
// keys and values have their length before them. The flag is 1 if the key was removed; there is no value then.

func encodeMessage(r record) []byte {
	b := make([]byte, 0, 32+len(r.node)+len(r.key)+len(r.value))
	b = append(b, encodingVersion)
	b = appendBytes(b, r.node)
	b = binary.AppendUvarint(b, r.life)
	return appendValue(b, r.key, value{seq: r.seq, data: r.value, removed: r.removed})
}

func appendNode(b []byte, node string, s *said) []byte {
	b = appendBytes(b, node)
	b = binary.AppendUvarint(b, s.life)
	b = binary.AppendUvarint(b, uint64(len(s.values)))
	for key, v := range s.values {
		b = appendValue(b, key, v)
	}
	return b
}

func appendValue(b []byte, key string, v value) []byte {
	b = binary.AppendUvarint(b, v.seq)
	b = appendBytes(b, key)
	if v.removed {
		return append(b, 1)
	}
	b = append(b, 0)
	return appendBytes(b, v.data)
}

func appendBytes[T string | []byte](b []byte, s T) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// decodeMessage reads a message. Its value is of b.
func decodeMessage(b []byte) (record, error) {
	d := decoder{rest: b}
	d.version()
	r := record{node: d.string(MaxName), life: d.number()}
	d.value(&r)
	if d.failed || len(d.rest) > 0 {
		return record{}, errMalformed
	}
	return r, nil
}

// decodeState reads a state, wholly or not at all. Its values are of b.
func decodeState(b []byte) ([]nodeState, error) {
	if len(b) > maxState {
		return nil, errMalformed
	}
	d := decoder{rest: b}
	d.version()
	var state []nodeState
	for !d.failed && len(d.rest) > 0 {
		n := nodeState{node: d.string(MaxName), life: d.number()}
		count := d.number()
		if len(state) == maxNodes || count > MaxKeys {
			return nil, errMalformed
		}
		for range count {
			r := record{node: n.node, life: n.life}
			d.value(&r)
			if d.failed {
				break
			}
			n.records = append(n.records, r)
		}
		state = append(state, n)
	}
	if d.failed {
		return nil, errMalformed
	}
	return state, nil
}

// decoder reads one field after the other. Once a field has failed all that follow are empty.
type decoder struct {
	rest   []byte
	failed bool
}

func (d *decoder) version() {
	d.failed = d.byte() != encodingVersion || d.failed
}

func (d *decoder) value(r *record) {
	r.seq = d.number()
	r.key = d.string(MaxKey)
	switch d.byte() {
	case 0:
		r.value = d.bytes(MaxValue)
	case 1:
		r.removed = true
	default:
		d.fail()
	}
}

func (d *decoder) byte() byte {
	if len(d.rest) == 0 {
		d.fail()
		return 0
	}
	b := d.rest[0]
	d.rest = d.rest[1:]
	return b
}

func (d *decoder) number() uint64 {
	n, size := binary.Uvarint(d.rest)
	if size <= 0 || n >= maxVersion {
		d.fail()
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

func (d *decoder) bytes(limit int) []byte {
	n := d.number()
	if n > uint64(limit) || n > uint64(len(d.rest)) {
		d.fail()
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

// string is a name or a key: it is never empty.
func (d *decoder) string(limit int) string {
	b := d.bytes(limit)
	if len(b) == 0 {
		d.fail()
	}
	return string(b)
}

func (d *decoder) fail() {
	d.failed = true
	d.rest = nil
}
