// Package disk is where a cache keeps on disk what it need not lose when its process ends: objects of a key, some opaque bytes
// (meta), and a body, in a folder that is bounded in bytes. It knows no HTTP and judges nothing: what is fresh, purged or worth
// keeping is edge/cache's to say.
//
// All is written behind one another into segments, by one goroutine, and a segment is removed as a whole, the oldest first; of
// what is in it, what was read since it was written is written again, up to a bound. An index in memory says where the newest
// record of each key is. A body is handed over whole, in the memory in which it was received, and not written while it comes: so
// records are never interleaved, one that is broken off leaves nothing, and the order in the file is the order in time. What is
// larger than MaxBody comes in pieces, which have keys of their own.
//
// When things break:
//
//   - The process is killed: what was written is there, all but the record that was being written. Put returns before it writes.
//   - The machine loses its power: nothing is flushed for a single object, so the last half minute or so may be gone, and what was
//     deleted then may be back. A record that is half there is found out by its sums. What was deleted before SetState
//     returned stays deleted, or the state is gone too: see State.
//   - The disk does not take a write: the object is not kept, and for a second none is. If the disk is full the oldest segment goes,
//     and for ten minutes the store does not grow.
//   - The disk brings back other bytes than were written: ReadAt checks every block each time. A head (key and meta) is checked each
//     time. A body that is sent by its file (File) was checked once in this process; from then on the kernel and the disk are
//     believed. What fails a check is forgotten.
//   - Files are cut off, changed or missing: it opens, without what is damaged. Files of a version that it does not know
//     are removed: it is a cache. A folder that holds anything else is refused, and nothing in it is touched.
package disk

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/file"
)

// Errors of a store.
var (
	// ErrInUse: another process has the folder open.
	ErrInUse = errors.New("the folder is in use by another process")
	// ErrForeign: the folder holds what no store has made.
	ErrForeign = errors.New("the folder holds files that are not of a cache")
	// ErrTooLarge: a key, meta or body is over its bound.
	ErrTooLarge = errors.New("too large to be kept on disk")
	// ErrBusy: there is so much to be written already that there is no room in memory for more.
	ErrBusy = errors.New("the disk is behind")
	// ErrFailing: the disk did not take the last write, and is not asked again yet.
	ErrFailing = errors.New("the disk fails")
	// ErrNoRoom: what is being read, though it was removed, leaves no room on the disk.
	ErrNoRoom = errors.New("no room on the disk")
	// ErrMissing: there is no such object.
	ErrMissing = errors.New("no such object")
	// ErrDamaged: what is on disk is not what was written. The object is forgotten.
	ErrDamaged = errors.New("the object is damaged")
	// ErrClosed: the store is closed.
	ErrClosed = errors.New("the store is closed")
)

const (
	// leastBytes is the smallest store: with less, nothing of use could be kept.
	leastBytes = 16 << 20
	// A segment is a sixteenth of the store, and at most this: so removing one takes at most a sixteenth away.
	maxSegment = 256 << 20
	perStore   = 16
	// maxRecords is how many records a segment may have: its index is in memory while it is written, and when it goes. It is
	// sealed before it has more.
	maxRecords = 256 << 10
	// maxBody is the largest body in any store. In a small one it is half a segment (MaxBody).
	maxBody = 64 << 20
	// bytesPerObject is how many bytes of the store there are for each object that may be in it, if Config does not say: so that
	// a flood of tiny objects does not take the memory instead, at up to 60 bytes each. Beyond, the oldest segment goes.
	bytesPerObject = 2 << 10
	// pendingBytes is how much may wait to be written, in memory, if Config does not say. What does not fit is refused.
	pendingBytes = 64 << 20
	// maxPending is how many objects may wait to be written. One more is refused.
	maxPending = 16 << 10
	// nameRoom is kept of the bound for the folder itself, its lock and its state.
	nameRoom = 128 << 10
)

// Config is what a Store is told.
type Config struct {
	// Dir is the folder, which is made if there is none. It must hold nothing else.
	Dir string
	// Bytes bounds what all files in the folder take on the disk; at least 16 MiB. Removed files that are still being read
	// count.
	Bytes int64
	// Objects bounds how many there are, each taking 30 to 60 bytes of memory. 0 is one for each 2 KiB of Bytes.
	Objects int
	// Pending bounds what waits to be written, in bytes of memory. 0 is 64 MiB.
	Pending int64
	// System is what files are made, written and read with; the zero one is the machine's. For tests of disks that fail.
	System file.System
}

// knobs are what tests turn.
type knobs struct {
	system  file.System
	segment int64 // the size of segments
	least   int64
}

func defaults() knobs {
	return knobs{system: file.OS(), least: leastBytes}
}

// Store is a folder of objects. All methods may be called at the same time.
type Store struct {
	dir       string
	limit     int64
	segment   int64 // the size of one
	carryRoom int64 // how much of a segment is written again when it goes; always free below the limit
	objects   int
	pending   int64
	system    file.System
	lock      *os.File
	blocks    sync.Pool // *[blockSize]byte

	mu        sync.RWMutex // guards:
	index     map[uint64]slot
	byNumber  map[uint32]*segment
	inOrder   []*segment // oldest first; the last is written to
	queue     []*item
	queued    map[uint64]*item // the last in the queue, or in writing, of each hash; renewals apart
	queuedPut int              // how many of them are objects
	queuedFor int64            // their bytes
	failing   error            // why nothing is taken now
	closed    bool
	state     []byte

	wake chan struct{} // something is queued, or there is room again
	stop chan struct{} // closed by Close
	done chan struct{} // the writer has ended

	stateMu      sync.Mutex // orders writes of the state's file, and guards:
	stateSegment uint32     // what of the log must be there for the state to stand
	stateOffset  uint32
	stateRoom    atomic.Int64 // what the file takes, while it is written anew, too

	writer // what only the writer's goroutine touches, once the store is open

	zombies atomic.Int64 // bytes of removed segments that are still read
	bytes   atomic.Int64

	counts struct {
		hits, misses, stored, renewed, deleted, refused, failures, damaged, evicted, carried, segments atomic.Uint64
	}
}

// slot says where the newest record of a hash is. There are millions of them: it has 16 bytes.
type slot struct {
	segment uint32
	place   uint32 // the offset, which is a multiple of 16, and the flags
	head    uint32 // its size
	body    uint32 // the segment of the body
}

// The flags of a slot.
const (
	wasRead    = 1 << iota // since it was written
	wasChecked             // its body, in this process
	flags      = grain - 1
)

func (v slot) offset() uint32 { return v.place &^ flags }

// at says whether it is the same record.
func (v slot) at(o slot) bool { return v.segment == o.segment && v.offset() == o.offset() }

// in says whether the record or its body is in a segment.
func (v slot) in(segment uint32) bool { return v.segment == segment || v.body == segment }

// hashOf places a key. Two keys with one hash take each other's place, and are not taken for each other.
func hashOf(key []byte) uint64 {
	sum := sha256.Sum256(key)
	return binary.LittleEndian.Uint64(sum[:])
}

// MaxBody is the largest body that is kept, in bytes.
func (s *Store) MaxBody() int64 { return min(maxBody, s.segment/2) }

// Put keeps an object, in place of any of that key: from now on the old one is gone, and the new one is found once it is written.
// If it is refused or cannot be written, it is counted and there is none. The store reads key, meta and body until they are written;
// nobody may change them any more.
func (s *Store) Put(key, meta []byte, body ...[]byte) error {
	var size int64
	for _, piece := range body {
		size += int64(len(piece))
	}
	it := &item{kind: put, hash: hashOf(key), key: key, meta: meta, body: body}
	err := s.fits(key, meta, size)
	if err == nil {
		it.bodySize, it.sums = uint32(size), sumBody(body)
		it.cost = size + int64(len(key)+len(meta))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	it.had = s.forget(it.hash)
	if err == nil {
		err = s.mayQueue(it.cost)
	}
	if err != nil {
		if it.had {
			s.bury(it.hash)
		}
		s.counts.refused.Add(1)
		return err
	}
	s.queued[it.hash] = it
	s.enqueue(it)
	return nil
}

func (s *Store) fits(key, meta []byte, body int64) error {
	if len(key) > maxKey || len(meta) > maxMeta || body > s.MaxBody() || sizeOf(len(key), len(meta), uint32(body)) > s.segment*3/4 {
		return ErrTooLarge
	}
	return nil
}

// Renew gives an object new meta, and keeps its body where it is. Until that is written, the old is found. An object that is
// replaced, deleted, moved or renewed by another meanwhile is not renewed.
func (s *Store) Renew(key, meta []byte) error {
	if err := s.fits(key, meta, 0); err != nil {
		s.counts.refused.Add(1)
		return err
	}
	e, ok := s.get(key)
	if !ok {
		return ErrMissing
	}
	defer e.Close()
	it := &item{
		kind: renewal, hash: e.hash, key: key, meta: meta, sums: e.sums, bodySize: uint32(e.size), from: e.slot, bodyOffset: uint32(e.offset),
		cost: int64(len(key) + len(meta) + len(e.sums)),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.mayQueue(it.cost); err != nil {
		s.counts.refused.Add(1)
		return err
	}
	s.enqueue(it)
	return nil
}

// Delete forgets an object at once, and for good when that is written. It says whether there was any.
func (s *Store) Delete(key []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.forget(hashOf(key)) {
		return false
	}
	s.bury(hashOf(key))
	s.counts.deleted.Add(1)
	return true
}

// Touch says whether there is an object, and has it taken for read: for what is asked of a faster store before this one.
func (s *Store) Touch(key []byte) bool {
	hash := hashOf(key)
	s.mu.RLock()
	v, ok := s.index[hash]
	s.mu.RUnlock()
	if ok {
		s.mark(hash, v, wasRead)
	}
	return ok
}

// Get finds an object. The caller must Close it: until then its body stays, whatever is deleted or removed.
func (s *Store) Get(key []byte) (*Entry, bool) {
	e, ok := s.get(key)
	if !ok {
		s.counts.misses.Add(1)
		return nil, false
	}
	s.counts.hits.Add(1)
	s.mark(e.hash, e.slot, wasRead)
	return e, true
}

func (s *Store) get(key []byte) (*Entry, bool) {
	hash := hashOf(key)
	s.mu.RLock()
	v, ok := s.index[hash]
	e, ok := s.pin(hash, v, ok)
	s.mu.RUnlock()
	if !ok || !e.load() {
		return nil, false
	}
	if !bytes.Equal(e.Key, key) {
		e.Close()
		return nil, false
	}
	return e, true
}

// Again is Get for an object that was found before as e, which is closed or not. It reads nothing, and what it returns has neither Key nor Meta. It
// is not ok if the object is not where it was: it was put anew, renewed, carried over or deleted since; then Get finds what there is.
func (s *Store) Again(e *Entry) (*Entry, bool) {
	s.mu.RLock()
	v, ok := s.index[e.hash]
	body := s.byNumber[e.slot.body]
	if !ok || !v.at(e.slot) || v.body != e.slot.body || body == nil {
		s.mu.RUnlock()
		return nil, false
	}
	body.pins.Add(1)
	s.mu.RUnlock()
	again := &Entry{store: s, hash: e.hash, slot: v, body: body, sums: e.sums, offset: e.offset, size: e.size}
	again.checked.Store(v.place&wasChecked != 0)
	s.counts.hits.Add(1)
	s.mark(again.hash, v, wasRead)
	return again, true
}

// mark sets a flag of an object that is still where it was.
func (s *Store) mark(hash uint64, v slot, flag uint32) {
	if v.place&flag != 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now, ok := s.index[hash]; ok && now.at(v) {
		now.place |= flag
		s.index[hash] = now
	}
}

// drop forgets an object that turned out to be damaged, if it is still where it was.
func (s *Store) drop(hash uint64, v slot) {
	s.counts.damaged.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if now, ok := s.index[hash]; ok && now.at(v) && !s.closed {
		delete(s.index, hash)
		s.bury(hash)
	}
}

// All yields key and meta of all objects, one read at a time, about in the order in which they were written. What is there all the
// while is yielded at least once, also where it is moved meanwhile.
func (s *Store) All() iter.Seq2[[]byte, []byte] {
	return func(yield func(key, meta []byte) bool) {
		for number, more := uint32(0), true; more; number++ {
			var entries []entry
			if number, entries, more = s.next(number); !more {
				return
			}
			for _, e := range entries {
				s.mu.RLock()
				v, ok := s.index[e.hash]
				found, ok := s.pin(e.hash, v, ok && v.segment == number && v.offset() == e.offset)
				s.mu.RUnlock()
				if !ok || !found.load() {
					continue
				}
				found.Close()
				if !yield(found.Key, found.Meta) {
					return
				}
			}
		}
	}
}

// next is the first segment from a number on, and its entries.
func (s *Store) next(number uint32) (uint32, []entry, bool) {
	s.mu.RLock()
	var g *segment
	for _, o := range s.inOrder {
		if o.segment >= number {
			g = o
			break
		}
	}
	if g == nil {
		s.mu.RUnlock()
		return 0, nil, false
	}
	g.pins.Add(1)
	s.mu.RUnlock()
	defer s.unpin(g)
	return g.segment, s.entriesOf(g), true
}

// Flush waits until what was put and deleted before is written, which is not to say flushed to the disk. It returns the
// error of what could not be, or ErrFailing.
func (s *Store) Flush() error { return s.barrier(nil, false) }

// SetState keeps some bytes for who asks State after a restart: at most MaxState. When it returns, they are on disk, and so is
// all that was put and deleted before. One goroutine at a time sets.
func (s *Store) SetState(state []byte) error {
	if int64(len(state)) > s.MaxState() {
		return ErrTooLarge
	}
	return s.barrier(bytes.Clone(state), true)
}

// Restate keeps other bytes in place of those that were set, without waiting for anything else: what was put and deleted since SetState may
// still be lost with the power. Where there is no state, it is ErrMissing.
func (s *Store) Restate(state []byte) error {
	if int64(len(state)) > s.MaxState() {
		return ErrTooLarge
	}
	s.stateMu.Lock()
	defer s.stateMu.Unlock()
	s.mu.RLock()
	there, closed := s.state != nil, s.closed
	s.mu.RUnlock()
	switch {
	case closed:
		return ErrClosed
	case !there:
		return ErrMissing
	}
	return s.writeState(bytes.Clone(state))
}

// MaxState is the largest state, in bytes.
func (s *Store) MaxState() int64 { return min(maxState, s.segment/16) }

// State is what was last set. It is nil where nothing was, and where a part of what was deleted before it was set may be back,
// because files were damaged or are missing: then nothing that was ever deleted can be relied on to be gone.
func (s *Store) State() []byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return bytes.Clone(s.state)
}

func (s *Store) barrier(state []byte, set bool) error {
	it := &item{kind: barrier, state: state, set: set, done: make(chan error, 1)}
	s.mu.Lock()
	if s.closed || s.failing != nil {
		defer s.mu.Unlock()
		if s.closed {
			return ErrClosed
		}
		return fmt.Errorf("%w: %w", ErrFailing, s.failing)
	}
	s.enqueue(it)
	s.mu.Unlock()
	return <-it.done
}

// Close writes what is queued and the index of the last segment. Objects that are being read stay so until they are closed.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.stop)
	s.mu.Unlock()
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.inOrder {
		s.unpin(g)
	}
	s.index, s.inOrder, s.byNumber = nil, nil, nil
	return errors.Join(s.failure, s.lock.Close())
}

// Counters are the store's counters and gauges.
func (s *Store) Counters() map[string]uint64 {
	s.mu.RLock()
	objects, pending, files := len(s.index), s.queuedFor, len(s.inOrder)
	failing := uint64(0)
	if s.failing != nil {
		failing = 1
	}
	s.mu.RUnlock()
	return map[string]uint64{
		"disk_bytes":                  uint64(s.bytes.Load() + s.zombies.Load()),
		"disk_objects":                uint64(objects),
		"disk_segments":               uint64(files),
		"disk_pending_bytes":          uint64(pending),
		"disk_failing":                failing,
		"disk_hits_total":             s.counts.hits.Load(),
		"disk_misses_total":           s.counts.misses.Load(),
		"disk_stored_total":           s.counts.stored.Load(),
		"disk_renewed_total":          s.counts.renewed.Load(),
		"disk_deleted_total":          s.counts.deleted.Load(),
		"disk_refused_total":          s.counts.refused.Load(),
		"disk_failures_total":         s.counts.failures.Load(),
		"disk_damaged_total":          s.counts.damaged.Load(),
		"disk_damaged_segments_total": s.counts.segments.Load(),
		"disk_evicted_total":          s.counts.evicted.Load(),
		"disk_carried_total":          s.counts.carried.Load(),
	}
}

// Entry is an object that was found. Its methods may be called at the same time, all before Close.
type Entry struct {
	// Key and Meta are as they were put. They are the caller's.
	Key, Meta []byte

	store      *Store
	hash       uint64
	slot       slot
	head, body *segment
	sums       []byte
	offset     int64 // of the body
	size       int64
	checked    atomic.Bool
}

// pin makes an entry of a slot, and holds its segments. s.mu is held.
func (s *Store) pin(hash uint64, v slot, ok bool) (*Entry, bool) {
	if !ok {
		return nil, false
	}
	e := &Entry{store: s, hash: hash, slot: v, head: s.byNumber[v.segment], body: s.byNumber[v.body]}
	if e.head == nil || e.body == nil {
		return nil, false // its body's record was damaged, so nobody knew of it when its segment went
	}
	e.head.pins.Add(1)
	e.body.pins.Add(1)
	e.checked.Store(v.place&wasChecked != 0)
	return e, true
}

// load reads the head; the segment that it is in is not held any longer. If that fails, the object is forgotten and the entry closed.
func (e *Entry) load() bool {
	b := make([]byte, e.slot.head)
	_, err := e.store.system.ReadAt(e.head.file, b, int64(e.slot.offset()))
	var r record
	if err == nil {
		r, err = parseHead(b, e.head.seal, e.slot.offset())
	}
	if err == nil && (r.hash != e.hash || r.kind != keptRecord || r.bodySegment != e.slot.body) {
		err = errDamaged
	}
	e.store.unpin(e.head)
	e.head = nil
	if err != nil {
		e.store.drop(e.hash, e.slot)
		e.Close()
		return false
	}
	e.Key, e.Meta, e.sums, e.offset, e.size = r.key, r.meta, r.sums, int64(r.bodyOffset), int64(r.bodySize)
	return true
}

// Trim lets go of Key and Meta, for who keeps the entry to find it Again. Nobody else may have it yet.
func (e *Entry) Trim() {
	e.Key, e.Meta, e.sums = nil, nil, bytes.Clone(e.sums)
}

// Size is that of the body, in bytes.
func (e *Entry) Size() int64 { return e.size }

// ReadAt implements io.ReaderAt over the body. It reads and checks whole blocks of 64 KiB. Where they are not what was written it returns
// none of them, and ErrDamaged, and the object is forgotten.
func (e *Entry) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, errors.New("read at a negative offset")
	}
	var own *[blockSize]byte
	for n < len(p) {
		at := off + int64(n)
		if at >= e.size {
			err = io.EOF
			break
		}
		block := at / blockSize
		start := block * blockSize
		length := min(blockSize, e.size-start)
		if at == start && int64(len(p)-n) >= length {
			if err = e.readBlock(block, p[n:int64(n)+length]); err != nil {
				break
			}
			n += int(length)
			continue
		}
		if own == nil {
			own = e.store.blocks.Get().(*[blockSize]byte)
			defer e.store.blocks.Put(own)
		}
		if err = e.readBlock(block, own[:length]); err != nil {
			break
		}
		n += copy(p[n:], own[at-start:length])
	}
	return n, err
}

func (e *Entry) readBlock(block int64, b []byte) error {
	_, err := e.store.system.ReadAt(e.body.file, b, e.offset+block*blockSize)
	if err == nil && sumOf(b) == binary.LittleEndian.Uint32(e.sums[4*block:]) {
		return nil
	}
	clear(b)
	e.store.drop(e.hash, e.slot)
	if err == nil {
		return ErrDamaged
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// Check reads the whole body and checks it, unless that was done in this process before. It brings it into the kernel's memory,
// too, so what File then tells is sent without waiting for the disk.
func (e *Entry) Check() error {
	if e.checked.Load() {
		return nil
	}
	b := e.store.blocks.Get().(*[blockSize]byte)
	defer e.store.blocks.Put(b)
	for at := int64(0); at < e.size; at += blockSize {
		if err := e.readBlock(at/blockSize, b[:min(blockSize, e.size-at)]); err != nil {
			return err
		}
	}
	e.checked.Store(true)
	e.store.mark(e.hash, e.slot, wasChecked)
	return nil
}

// File is the file the body is in, from an offset on, for Size bytes: for sendfile. It is not ok before the body was checked.
// The file is shared: it is read at offsets, and nobody seeks in it or reads on. It is good until Close.
func (e *Entry) File() (f *os.File, offset int64, ok bool) {
	return e.body.file, e.offset, e.checked.Load()
}

// Close ends the use of the entry, of its body and its file.
func (e *Entry) Close() {
	if e.head != nil {
		e.store.unpin(e.head)
	}
	if e.body != nil {
		e.store.unpin(e.body)
	}
	e.head, e.body = nil, nil
}

// How the writer deals with a disk that fails.
const (
	// pause is how long nothing is written after a write that failed.
	pause = time.Second
	// narrowFor is how long the store does not grow after the disk was full.
	narrowFor = 10 * time.Minute
)
