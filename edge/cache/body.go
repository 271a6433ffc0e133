package cache

import (
	"errors"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/perigee-net/perigee/edge/cache/disk"
)

// ErrLost: the body of what was kept is not there any more, or is damaged. It is forgotten: look again.
var ErrLost = errors.New("the body is lost")

// place is where the body of an object is that is on disk.
type place struct {
	cache *Cache
	slot  string
	size  int64
	// last is as what the body was found; nil: it was not yet.
	last atomic.Pointer[disk.Entry]
}

// Size is that of the body, in bytes, kept whole or in slices; 0 while it is being filled.
func (o *Object) Size() int64 {
	switch {
	case o.more().sliced != nil:
		return o.more().sliced.size
	case o.large != nil:
		return o.large.size
	case o.at != nil:
		return o.at.size
	}
	return int64(len(o.Body))
}

// OnDisk says that the body is to be read by Open only.
func (o *Object) OnDisk() bool { return o.at != nil }

// Body is the body of a kept response while it is read, wherever it is. Until it is closed it stays, whatever is purged or has to
// make room.
type Body struct {
	memory []byte
	large  *largeBody // that it is; nil: it is not large, or on disk
	at     *spot      // where that is, if it is in pages
	lease  *Lease     // has taken over
	remote string     // who it is read for; empty: nobody says
	disk   *disk.Entry
}

// Open opens the body. The error is ErrLost: nothing is answered yet, so look again, and it is a miss. Who opens it must close it.
func (o *Object) Open() (Body, error) {
	switch {
	case o.large != nil:
		b, ok := o.large.open()
		if !ok {
			return Body{}, ErrLost
		}
		return b, nil
	case o.at == nil:
		return Body{memory: o.Body}, nil
	}
	on := o.at.cache.shelf.disk
	if last := o.at.last.Load(); last != nil {
		if entry, ok := on.Again(last); ok {
			return Body{disk: entry}, nil
		}
	}
	entry, ok := on.Get(bytesOf(o.at.slot))
	if ok && (bodyOf(entry.Meta) != o.body || entry.Size() != o.at.size) {
		entry.Close() // another response is there by now
		ok = false
	}
	if !ok {
		o.at.cache.lose(o.at.slot, o.body)
		return Body{}, ErrLost
	}
	entry.Trim()
	o.at.last.Store(entry)
	return Body{disk: entry}, nil
}

// Check finds out whether all of the body is as it was written. That is done once in a process for each body on disk, reads
// it, and costs nothing afterwards; who writes the head of an answer before cannot take it back. The error is ErrLost.
func (b *Body) Check() error {
	if b.disk != nil && b.disk.Check() != nil {
		return ErrLost
	}
	return nil
}

// BodyPiece is how much Piece reads of a body on disk at most.
const BodyPiece = 64 << 10

// Piece is some of the part of the body that begins at start, none before that of the piece before, and has that length: all of it if it is small and
// in memory, else what space, of BodyPiece, has room for; more than one sum is not read for it. Nobody changes it. The error is ErrLost: the body is
// damaged, or was read so slowly that it was taken back.
func (b *Body) Piece(start, length int64, space func() []byte) ([]byte, error) {
	if b.disk == nil && b.large == nil {
		return b.memory[start : start+length], nil
	}
	piece := space()
	if b.disk == nil {
		if b.lease == nil {
			b.lease = newLease(b.large, b.memory, b.at, start, clientOf(b.remote))
			b.memory, b.at = nil, nil
		}
		n, err := b.lease.ReadAt(piece[:min(length, int64(len(piece)))], start)
		return piece[:n], err
	}
	piece = piece[:min(length, int64(len(piece)), BodyPiece-start%BodyPiece)]
	if _, err := b.disk.ReadAt(piece, start); err != nil {
		return nil, ErrLost
	}
	return piece, nil
}

// File is the file that the body is in, from an offset on, if it is on disk and was checked. It is shared: it is read at offsets
// until the body is closed, and nobody seeks in it.
func (b *Body) File() (f *os.File, offset int64, ok bool) {
	if b.disk == nil {
		return nil, 0, false
	}
	return b.disk.File()
}

// Close ends the use of the body.
func (b *Body) Close() {
	if b.disk != nil {
		b.disk.Close()
	}
	if b.at != nil {
		b.at.pages.letGo()
	}
	if b.lease != nil {
		b.lease.Close()
	}
}

// bytesOf is a text as bytes, for who neither keeps nor changes them.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
