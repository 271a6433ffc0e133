package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// A segment is a file of records, one behind the other. All numbers are little endian.
//
//	segment   header (32 bytes), records, and when it is sealed its index and trailer
//	header    magic (8), number of the segment (4), number of the one before and where its records ended (4, 4), salt (8), sum (4)
//	record    head, then the body if it has one of its own, then zeros up to a multiple of 16
//	head      48 bytes, then key, meta, and a sum (4) of each 64 KiB of the body
//	index     an entry of 24 bytes for each record, in their order
//	trailer   magic (4), number of entries (4), where the records end (4), sum of index and trailer (4)
//
// The sums are CRC-32C. Those of a head, of an index and of a trailer begin with the segment's salt, its number and the place in the
// file, so what a file system brings back from another time or another file is not taken for a record, and neither is what
// a stranger wrote into a body.
const (
	segmentMagic = "perigee\x01" // the last byte is the version
	recordMagic  = 0x1ceca7e0
	trailerMagic = 0x5ea1ed00

	headerSize  = 32
	fixedSize   = 48 // of a head
	entrySize   = 24
	trailerSize = 16
	grain       = 16

	// blockSize is how much of a body has one sum: what is read of a body in part is read and checked in blocks.
	blockSize = 64 << 10
	// aligned is where a body of at least a block begins a multiple of, so that sendfile sends whole pages.
	aligned = 4 << 10

	// maxKey and maxMeta bound what comes with a body, in bytes. More is refused (ErrTooLarge).
	maxKey  = 16 << 10
	maxMeta = 1 << 20
)

// The kinds of records.
const (
	keptRecord    = 1 // an object
	deletedRecord = 2 // says that what came before with this hash is gone
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// record is the head of a record.
type record struct {
	hash      uint64
	kind      uint32
	key, meta []byte
	bodySize  uint32
	sums      []byte // 4 bytes for each block of the body
	// Where the body is: behind this head, or behind one that came before it, in this segment or an older one.
	bodySegment, bodyOffset uint32
}

// entry is what the index of a segment says of a record. Head is the size of its head; 0: the record says that what came before
// with this hash is gone, or it is damaged, which comes to the same.
type entry struct {
	hash                    uint64
	offset, head            uint32
	bodySegment, bodyOffset uint32
}

// seal is what the sums of a segment begin with.
type seal struct {
	salt    uint64
	segment uint32
}

func (s seal) sum(offset uint32, parts ...[]byte) uint32 {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], s.salt)
	binary.LittleEndian.PutUint32(b[8:], s.segment)
	binary.LittleEndian.PutUint32(b[12:], offset)
	sum := crc32.Checksum(b[:], castagnoli)
	for _, part := range parts {
		sum = crc32.Update(sum, castagnoli, part)
	}
	return sum
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

func blocks(bodySize uint32) int { return int((int64(bodySize) + blockSize - 1) / blockSize) }

// bodyAt is where the body begins that follows a head which ends there.
func bodyAt(headEnd int64, bodySize uint32) int64 {
	if bodySize >= blockSize {
		return roundUp(headEnd, aligned)
	}
	return headEnd
}

// sizeOf is the most that a record takes in a segment.
func sizeOf(key, meta int, bodySize uint32) int64 {
	size := roundUp(int64(fixedSize+key+meta+4*blocks(bodySize))+int64(bodySize), grain)
	if bodySize >= blockSize {
		size += aligned
	}
	return size
}

// sumBody makes the sums of a body that is in pieces.
func sumBody(body [][]byte) []byte {
	var sums []byte
	var sum uint32
	filled := 0
	for _, piece := range body {
		for len(piece) > 0 {
			n := min(len(piece), blockSize-filled)
			sum = crc32.Update(sum, castagnoli, piece[:n])
			piece, filled = piece[n:], filled+n
			if filled == blockSize {
				sums = binary.LittleEndian.AppendUint32(sums, sum)
				sum, filled = 0, 0
			}
		}
	}
	if filled > 0 {
		sums = binary.LittleEndian.AppendUint32(sums, sum)
	}
	return sums
}

func (r *record) headSize() int { return fixedSize + len(r.key) + len(r.meta) + len(r.sums) }

// appendTo appends the head, which will be at that offset of the segment.
func (r *record) appendTo(b []byte, s seal, offset uint32) []byte {
	at := len(b)
	b = append(b, make([]byte, fixedSize)...)
	h := b[at:]
	binary.LittleEndian.PutUint32(h, recordMagic)
	binary.LittleEndian.PutUint64(h[8:], r.hash)
	binary.LittleEndian.PutUint32(h[16:], uint32(len(r.key)))
	binary.LittleEndian.PutUint32(h[20:], uint32(len(r.meta)))
	binary.LittleEndian.PutUint32(h[24:], r.bodySize)
	binary.LittleEndian.PutUint32(h[28:], r.bodySegment)
	binary.LittleEndian.PutUint32(h[32:], r.bodyOffset)
	binary.LittleEndian.PutUint32(h[36:], s.sum(offset, r.key, r.meta, r.sums))
	binary.LittleEndian.PutUint32(h[40:], r.kind)
	binary.LittleEndian.PutUint32(h[4:], s.sum(offset, h[8:fixedSize]))
	b = append(b, r.key...)
	b = append(b, r.meta...)
	return append(b, r.sums...)
}

var errDamaged = errors.New("it is damaged")

// parseFixed reads the first part of a head, and says how large the head is. What it makes has no key, meta and sums yet.
func parseFixed(b []byte, s seal, offset uint32) (r record, rest uint32, size int, err error) {
	if len(b) < fixedSize || binary.LittleEndian.Uint32(b) != recordMagic ||
		binary.LittleEndian.Uint32(b[4:]) != s.sum(offset, b[8:fixedSize]) {
		return r, 0, 0, errDamaged
	}
	key, meta := binary.LittleEndian.Uint32(b[16:]), binary.LittleEndian.Uint32(b[20:])
	r = record{
		hash: binary.LittleEndian.Uint64(b[8:]), kind: binary.LittleEndian.Uint32(b[40:]),
		bodySize: binary.LittleEndian.Uint32(b[24:]), bodySegment: binary.LittleEndian.Uint32(b[28:]),
		bodyOffset: binary.LittleEndian.Uint32(b[32:]),
	}
	switch {
	case key > maxKey || meta > maxMeta || r.bodySize > maxBody:
		return r, 0, 0, errDamaged
	case r.kind != keptRecord && r.kind != deletedRecord:
		return r, 0, 0, errDamaged
	case r.bodySegment > s.segment:
		return r, 0, 0, errDamaged
	}
	size = fixedSize + int(key) + int(meta) + 4*blocks(r.bodySize)
	return r, binary.LittleEndian.Uint32(b[36:]), size, nil
}

// parseHead reads a head, which is b as a whole. What it makes aliases b.
func parseHead(b []byte, s seal, offset uint32) (record, error) {
	r, rest, size, err := parseFixed(b, s, offset)
	if err != nil || size != len(b) || s.sum(offset, b[fixedSize:]) != rest {
		return record{}, errDamaged
	}
	key, meta := binary.LittleEndian.Uint32(b[16:]), binary.LittleEndian.Uint32(b[20:])
	b = b[fixedSize:]
	r.key, r.meta, r.sums = b[:key:key], b[key:key+meta:key+meta], b[key+meta:]
	return r, nil
}

// owns says whether the body follows a head of that size at that offset.
func (r *record) owns(s seal, offset uint32, head int) bool {
	return r.bodySegment == s.segment && int64(r.bodyOffset) == bodyAt(int64(offset)+int64(head), r.bodySize)
}

// end is where the next record begins.
func (r *record) end(s seal, offset uint32, head int) int64 {
	end := int64(offset) + int64(head)
	if r.owns(s, offset, head) {
		end = int64(r.bodyOffset) + int64(r.bodySize)
	}
	return roundUp(end, grain)
}

// header is that of a segment.
type header struct {
	seal
	before, ended uint32 // the number of the segment before, and where its records ended
}

func (h header) bytes() []byte {
	b := append(make([]byte, 0, headerSize), segmentMagic...)
	b = binary.LittleEndian.AppendUint32(b, h.segment)
	b = binary.LittleEndian.AppendUint32(b, h.before)
	b = binary.LittleEndian.AppendUint32(b, h.ended)
	b = binary.LittleEndian.AppendUint64(b, h.salt)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func parseHeader(b []byte, segment uint32) (header, error) {
	if len(b) != headerSize || !bytes.HasPrefix(b, []byte(segmentMagic)) ||
		binary.LittleEndian.Uint32(b[28:]) != crc32.Checksum(b[:28], castagnoli) ||
		binary.LittleEndian.Uint32(b[8:]) != segment {
		return header{}, errDamaged
	}
	return header{
		seal:   seal{binary.LittleEndian.Uint64(b[20:]), segment},
		before: binary.LittleEndian.Uint32(b[12:]), ended: binary.LittleEndian.Uint32(b[16:]),
	}, nil
}

// footer is the index and the trailer of a segment whose records end there.
func footer(entries []entry, s seal, end uint32) []byte {
	b := make([]byte, 0, len(entries)*entrySize+trailerSize)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint64(b, e.hash)
		b = binary.LittleEndian.AppendUint32(b, e.offset)
		b = binary.LittleEndian.AppendUint32(b, e.head)
		b = binary.LittleEndian.AppendUint32(b, e.bodySegment)
		b = binary.LittleEndian.AppendUint32(b, e.bodyOffset)
	}
	b = binary.LittleEndian.AppendUint32(b, trailerMagic)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(entries)))
	b = binary.LittleEndian.AppendUint32(b, end)
	return binary.LittleEndian.AppendUint32(b, s.sum(end, b))
}

// readFooter reads the index of a file of that size: its entries, and where its records end.
func readFooter(f io.ReaderAt, size int64, s seal) (entries []entry, end uint32, err error) {
	var t [trailerSize]byte
	if size < headerSize+trailerSize {
		return nil, 0, errDamaged
	}
	if _, err := f.ReadAt(t[:], size-trailerSize); err != nil {
		return nil, 0, err
	}
	count := int64(binary.LittleEndian.Uint32(t[4:]))
	end = binary.LittleEndian.Uint32(t[8:])
	if binary.LittleEndian.Uint32(t[:]) != trailerMagic || end < headerSize || int64(end)+count*entrySize+trailerSize != size {
		return nil, 0, errDamaged
	}
	b := make([]byte, count*entrySize+trailerSize)
	if _, err := f.ReadAt(b, int64(end)); err != nil {
		return nil, 0, err
	}
	if s.sum(end, b[:len(b)-4]) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return nil, 0, errDamaged
	}
	entries = make([]entry, count)
	last := int64(0)
	for i := range entries {
		e := b[i*entrySize:]
		entries[i] = entry{
			hash: binary.LittleEndian.Uint64(e), offset: binary.LittleEndian.Uint32(e[8:]), head: binary.LittleEndian.Uint32(e[12:]),
			bodySegment: binary.LittleEndian.Uint32(e[16:]), bodyOffset: binary.LittleEndian.Uint32(e[20:]),
		}
		if at := int64(entries[i].offset); at <= last || at%grain != 0 || at+int64(entries[i].head) > int64(end) || entries[i].bodySegment > s.segment ||
			entries[i].head > maxHead {
			return nil, 0, errDamaged
		}
		last = int64(entries[i].offset)
	}
	return entries, end, nil
}

// maxHead is the largest head there may be.
const maxHead = fixedSize + maxKey + maxMeta + 4*(maxBody/blockSize)

// scanned is what was found in a segment that has no index, or none that can be trusted.
type scanned struct {
	entries []entry
	end     uint32 // of the last record that is all there
	whole   uint32 // up to there nothing is missing between the records
}

// scan looks for the records of a file of that size. It does not read bodies. A record whose key or meta is damaged is known by
// its hash still, and counts as one that says that this hash is gone. Where there is no record it looks for the next.
func scan(f io.ReaderAt, size int64, s seal) scanned {
	w := window{f: f, size: min(size, maxSegment)}
	found := scanned{end: headerSize, whole: headerSize}
	for at := int64(headerSize); at+fixedSize <= w.size; {
		offset := uint32(at)
		r, rest, head, err := parseFixed(w.bytes(at, fixedSize), s, offset)
		if err != nil || r.end(s, offset, head) > roundUp(w.size, grain) || r.owns(s, offset, head) && int64(r.bodyOffset)+int64(r.bodySize) > w.size {
			at += grain
			continue
		}
		if found.end == found.whole && offset == found.end {
			found.whole = uint32(r.end(s, offset, head))
		}
		found.end = uint32(r.end(s, offset, head))
		e := entry{hash: r.hash, offset: offset, head: uint32(head), bodySegment: r.bodySegment, bodyOffset: r.bodyOffset}
		if b := w.bytes(at, head); r.kind == deletedRecord || len(b) < head || s.sum(offset, b[fixedSize:]) != rest {
			e.head, e.bodySegment, e.bodyOffset = 0, 0, 0
		}
		found.entries = append(found.entries, e)
		at = int64(found.end)
	}
	return found
}

// window reads a file mostly forward, in large pieces.
type window struct {
	f    io.ReaderAt
	size int64
	at   int64
	b    []byte
	room []byte
}

// bytes are so many at an offset; fewer, where the file ends or cannot be read. They are good until the next call.
func (w *window) bytes(at int64, n int) []byte {
	if at < w.at || at+int64(n) > w.at+int64(len(w.b)) {
		if w.room == nil {
			w.room = make([]byte, 256<<10)
		}
		room := w.room
		if n > len(room) {
			room = make([]byte, n)
		}
		got, _ := w.f.ReadAt(room[:min(int64(len(room)), max(0, w.size-at))], at)
		w.at, w.b = at, room[:got]
	}
	from := min(int64(len(w.b)), at-w.at)
	return w.b[from:min(int64(len(w.b)), from+int64(n))]
}
