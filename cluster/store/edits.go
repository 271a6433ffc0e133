package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"slices"
	"sort"
)

// Of a large object most often little changes. Where it is sure to be known what it was before, only what differs is written:
// an edited object has the revision of the one before, and in the place of its bytes pieces that lead from those to its own.
//
//	pieces  = length checksum piece…
//	piece   = kept cut added bytes
//
// Numbers are uvarints, but for the checksum (4 bytes, big endian, CRC-32C) of what comes out, as long as length says. A piece keeps as
// many bytes of the one before, passes over as many, and has as many of its own; what is left behind the last is kept.

const (
	// editsFrom is the length from which an object is written as an edit of the one before, if that is less than half of it.
	editsFrom = 1 << 10

	// markFrom is from how many bytes on a line is one by which two texts are laid side by side.
	markFrom = 16
)

// piecesOf are the pieces that lead from one object's bytes to another's; false: they would be more than most bytes, or are of no
// use. They are whole lines where there are any, between what both have in common at the beginning and at the end.
func piecesOf(before, after []byte, most int) ([]byte, bool) {
	head, tail := alike(before, after)
	b := binary.AppendUvarint(nil, uint64(len(after)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(after, castagnoli))
	at := 0 // in before, what the pieces so far have kept or cut
	for _, d := range differing(before[head:len(before)-tail], after[head:len(after)-tail]) {
		from := head + d.from
		b = binary.AppendUvarint(b, uint64(from-at))
		b = binary.AppendUvarint(b, uint64(d.cut))
		b = binary.AppendUvarint(b, uint64(len(d.add)))
		b = append(b, d.add...)
		if at = from + d.cut; len(b) > most {
			return nil, false
		}
	}
	return b, len(b) <= most
}

// alike is how many bytes two texts have in common at the beginning, and at the end.
func alike(a, b []byte) (head, tail int) {
	const step = 256
	least := min(len(a), len(b))
	for least-head >= step && bytes.Equal(a[head:head+step], b[head:head+step]) {
		head += step
	}
	for head < least && a[head] == b[head] {
		head++
	}
	for least-tail-head >= step && bytes.Equal(a[len(a)-tail-step:len(a)-tail], b[len(b)-tail-step:len(b)-tail]) {
		tail += step
	}
	for tail < least-head && a[len(a)-tail-1] == b[len(b)-tail-1] {
		tail++
	}
	return head, tail
}

// difference: from from on, cut bytes give way to others.
type difference struct {
	from, cut int
	add       []byte
}

// differing is how one text differs from another, by lines: those that both have once and in the same order are kept, with what
// is the same around them (Cohen's patience). Whatever comes of it leads from one to the other; how short it is may depend on the process.
func differing(before, after []byte) []difference {
	type line struct {
		at     int // in before
		to     int // in after
		times  int // it is in before
		others int // it is in after
	}
	seed := maphash.MakeSeed()
	lines := map[uint64]*line{}
	for at := 0; at < len(before); {
		n := lineEnd(before[at:])
		h := maphash.Bytes(seed, before[at:at+n])
		if l := lines[h]; l != nil {
			l.times++
		} else {
			lines[h] = &line{at: at, times: 1}
		}
		at += n
	}
	var common []*line // by their order in after
	for to := 0; to < len(after); {
		n := lineEnd(after[to:])
		if l := lines[maphash.Bytes(seed, after[to:to+n])]; l != nil && l.times == 1 {
			if l.others++; l.others == 1 && n >= markFrom {
				l.to = to
				common = append(common, l)
			}
		}
		to += n
	}
	common = slices.DeleteFunc(common, func(l *line) bool { return l.others > 1 })
	chain := ascending(common, func(l *line) int { return l.at })

	var all []difference
	at, to := 0, 0 // up to which both are done with
	for _, l := range append(chain, &line{at: len(before), to: len(after)}) {
		if l.at < at || l.to < to {
			continue // it is in what was the same around one before
		}
		same := 0 // before the line
		for same < min(l.at-at, l.to-to) && before[l.at-same-1] == after[l.to-same-1] {
			same++
		}
		if cut, add := before[at:l.at-same], after[to:l.to-same]; len(cut)+len(add) > 0 {
			all = append(all, difference{at, len(cut), add})
		}
		at, to = l.at, l.to
		for at < len(before) && to < len(after) && before[at] == after[to] {
			at, to = at+1, to+1
		}
	}
	return all
}

// lineEnd is how long the first line of a text is, with its end.
func lineEnd(text []byte) int {
	if i := bytes.IndexByte(text, '\n'); i >= 0 {
		return i + 1
	}
	return len(text)
}

// ascending are as many of s as can be had in their order with keys that ascend.
func ascending[T any](s []T, key func(T) int) []T {
	var ends []int // of the runs of each length, the index of the one that ends lowest
	before := make([]int, len(s))
	for i, v := range s {
		n := sort.Search(len(ends), func(n int) bool { return cmp.Compare(key(s[ends[n]]), key(v)) >= 0 })
		before[i] = -1
		if n > 0 {
			before[i] = ends[n-1]
		}
		if n == len(ends) {
			ends = append(ends, i)
		} else {
			ends[n] = i
		}
	}
	run := make([]T, len(ends))
	for n, i := len(ends)-1, -1; n >= 0; n-- {
		if i < 0 {
			i = ends[n]
		}
		run[n] = s[i]
		i = before[i]
	}
	return run
}

var errPieces = errors.New("pieces that do not fit what they are an edit of")

// joined is what the pieces make of what was before.
func joined(before, pieces []byte) ([]byte, error) {
	var after []byte
	sum, err := join(before, pieces, func(size int) bool {
		after = make([]byte, 0, size)
		return true
	}, func(part []byte) bool {
		after = append(after, part...)
		return true
	})
	if err != nil || crc32.Checksum(after, castagnoli) != sum {
		return nil, errPieces
	}
	return after, nil
}

// lead says whether the pieces make that of what was before.
func lead(before, pieces, after []byte) bool {
	rest := after
	_, err := join(before, pieces, func(size int) bool { return size == len(after) }, func(part []byte) (same bool) {
		rest, same = bytes.CutPrefix(rest, part)
		return same
	})
	return err == nil && len(rest) == 0
}

// join goes through what the pieces make of what was before: first how long it is, then one part after the other. It ends with an error where one
// of the two says no. The sum is what the checksum should be.
func join(before, pieces []byte, begin func(size int) bool, part func([]byte) bool) (sum uint32, err error) {
	wrong := false
	number := func(most int) int {
		v, n := binary.Uvarint(pieces)
		if n <= 0 || v > uint64(most) {
			wrong = true
			return 0
		}
		pieces = pieces[n:]
		return int(v)
	}
	size := number(maxObjectRead)
	if wrong || len(pieces) < 4 || size > len(before)+len(pieces) || !begin(size) {
		return 0, errPieces
	}
	sum = binary.BigEndian.Uint32(pieces)
	pieces = pieces[4:]
	for len(pieces) > 0 {
		kept := number(min(len(before), size))
		keeps := before[:kept]
		before = before[kept:]
		before = before[number(len(before)):]
		added := number(len(pieces))
		if wrong || added > len(pieces) || kept+added > size || !part(keeps) || !part(pieces[:added]) {
			return 0, errPieces
		}
		pieces, size = pieces[added:], size-kept-added
	}
	if len(before) != size || !part(before) {
		return 0, errPieces
	}
	return sum, nil
}

// edited is the change with edits in the place of the large objects that differ little from those of a table, and whether there are
// any. The table is that which the change expects.
func (t *Table) edited(c Change) (Change, bool) {
	if c.Expect == nil || *c.Expect != t.Revision {
		return c, false
	}
	puts := slices.Clone(c.Put)
	for i := range puts {
		o := &puts[i]
		o.Revision = 0
		before, found := t.Get(o.Kind, o.Name)
		if !found || len(o.Bytes) < editsFrom {
			continue
		}
		pieces, ok := piecesOf(before.Bytes, o.Bytes, len(o.Bytes)/2)
		if !ok {
			continue
		}
		if lead(before.Bytes, pieces, o.Bytes) { // what would not would stop all nodes
			o.Bytes, o.Revision, c.patched = pieces, before.Revision, true
		}
	}
	if c.patched {
		c.Put = puts
	}
	return c, c.patched
}

// whole is the change with all of its objects whole, if it is in effect over this state; if it is not, without any. That an object is
// of another revision is a *ConflictError, as all nodes find; who has it of that revision and cannot edit it has not what the others have.
func (s *State) whole(c Change) (Change, error) {
	if !c.patched {
		return c, nil
	}
	t := s.table(c.Space)
	if _, known := s.answered(c); known || *c.Expect != t.Revision {
		c.Put, c.patched = nil, false
		return c, nil
	}
	c.Put, c.patched = slices.Clone(c.Put), false
	for i := range c.Put {
		o := &c.Put[i]
		if o.Revision == 0 {
			continue
		}
		before, _ := t.Get(o.Kind, o.Name)
		if before.Revision != o.Revision {
			return Change{}, &ConflictError{Expected: o.Revision, Actual: before.Revision}
		}
		after, err := joined(before.Bytes, o.Bytes)
		if err != nil {
			return Change{}, fmt.Errorf("%s %s: %w", o.Kind, o.Name, err)
		}
		o.Bytes, o.Revision = after, 0
	}
	return c, nil
}
