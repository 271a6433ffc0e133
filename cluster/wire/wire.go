// Package wire has fields one after the other in bytes: numbers as varints, texts with their length before them. It knows no format; who
// uses it says which fields there are, and how much each may be.
package wire

import "encoding/binary"

// Append appends a text, its length before it.
func Append[T string | []byte](b []byte, text T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

// Reader reads fields. Once one has failed, all that follow are empty, so that only the end needs to be looked at.
type Reader struct {
	Rest   []byte // what is not read yet
	Failed bool
}

// Fail has the reader fail: what was read is none of the format.
func (r *Reader) Fail() { r.Rest, r.Failed = nil, true }

// Byte reads one byte.
func (r *Reader) Byte() byte {
	if len(r.Rest) == 0 {
		r.Fail()
		return 0
	}
	b := r.Rest[0]
	r.Rest = r.Rest[1:]
	return b
}

// Uvarint reads a number.
func (r *Reader) Uvarint() uint64 {
	n, size := binary.Uvarint(r.Rest)
	r.pass(size)
	return n
}

// Varint reads a number that may be below zero.
func (r *Reader) Varint() int64 {
	n, size := binary.Varint(r.Rest)
	r.pass(size)
	return n
}

// pass goes on behind a number that takes so many bytes; none, or fewer: there is no number, which is 0.
func (r *Reader) pass(size int) {
	if size <= 0 {
		r.Fail()
		return
	}
	r.Rest = r.Rest[size:]
}

// Bytes reads a text of at most so many bytes. It is a part of what is read, not a copy.
func (r *Reader) Bytes(limit int) []byte {
	n := r.Uvarint()
	if n > uint64(limit) || n > uint64(len(r.Rest)) {
		r.Fail()
		return nil
	}
	b := r.Rest[:n:n]
	r.Rest = r.Rest[n:]
	return b
}

// Text is Bytes without a limit but what there is, as a copy.
func (r *Reader) Text() string { return string(r.Bytes(len(r.Rest))) }
