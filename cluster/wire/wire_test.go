package wire

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"
)

func TestFieldsAreReadAsTheyWereWritten(t *testing.T) {
	b := binary.AppendUvarint([]byte{7}, math.MaxUint64)
	b = binary.AppendVarint(b, math.MinInt64)
	b = Append(Append(b, "a text"), []byte{1, 2, 3})
	r := Reader{Rest: b}
	if one, n, i := r.Byte(), r.Uvarint(), r.Varint(); one != 7 || n != math.MaxUint64 || i != math.MinInt64 {
		t.Errorf("read %d, %d, %d", one, n, i)
	}
	if text, bytes := r.Text(), r.Bytes(3); text != "a text" || !slices.Equal(bytes, []byte{1, 2, 3}) || cap(bytes) != 3 {
		t.Errorf("read %q, %v with room for %d", text, bytes, cap(bytes))
	}
	if r.Failed || len(r.Rest) > 0 {
		t.Errorf("failed: %v, %d bytes are left", r.Failed, len(r.Rest))
	}
}

func TestOnceAFieldHasFailedAllThatFollowAreEmpty(t *testing.T) {
	overlong := slices.Repeat([]byte{0xff}, binary.MaxVarintLen64+1)
	for what, read := range map[string]func(*Reader){
		"a byte where there is none":    func(r *Reader) { *r = Reader{}; r.Byte() },
		"half a number":                 func(r *Reader) { r.Rest = []byte{0x80}; r.Uvarint() },
		"a number above all":            func(r *Reader) { r.Rest = overlong; r.Uvarint() },
		"half a number with a sign":     func(r *Reader) { r.Rest = []byte{0x80}; r.Varint() },
		"a text longer than what there": func(r *Reader) { r.Rest = []byte{3, 'a', 'b'}; r.Text() },
		"a text longer than its limit":  func(r *Reader) { r.Rest = []byte{3, 'a', 'b', 'c', 1}; r.Bytes(2) },
		"what its format has not":       func(r *Reader) { r.Fail() },
	} {
		r := Reader{Rest: []byte{1, 1, 1, 1}}
		read(&r)
		if !r.Failed || r.Rest != nil {
			t.Errorf("%s: failed %v, left %v", what, r.Failed, r.Rest)
		}
		if r.Uvarint() != 0 || r.Varint() != 0 || r.Byte() != 0 || r.Text() != "" || r.Bytes(9) != nil || !r.Failed {
			t.Errorf("%s: what follows is not empty", what)
		}
	}
}
