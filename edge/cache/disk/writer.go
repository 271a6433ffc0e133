package disk

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
)

// The kinds of items.
const (
	put      = iota + 1 // an object
	renewal             // new meta for one that is there
	carried             // one whose segment goes
	deletion            // what came before of this hash is gone
	barrier             // somebody waits
)

// item is what waits to be written.
type item struct {
	kind       int
	hash       uint64
	key, meta  []byte
	body       [][]byte
	bodySize   uint32
	sums       []byte
	from       slot   // of a renewal and of what is carried: where it was
	bodyOffset uint32 // of a renewal
	cost       int64  // of the memory that may wait
	had        bool   // there may be one of the hash on disk, which must not come back if this is not written

	// Guarded by Store.mu.
	taken bool // by the writer
	dead  bool // something came that undoes it

	state []byte
	set   bool // state is to be set
	done  chan error
}

// segment is a file of records.
type segment struct {
	seal
	path    string
	file    *os.File
	pins    atomic.Int32 // the store's own, and those of who reads; at 0 the file is closed
	removed bool         // written before the store's own pin goes
	dirty   bool         // something was written that is not flushed; the writer's

	// Guarded by Store.mu.
	end     int64   // of the records
	entries []entry // the index, where the file has none
	size    int64   // what the file takes, once it is sealed
}

// unpin gives back a pin.
func (s *Store) unpin(g *segment) {
	if g.pins.Add(-1) > 0 {
		return
	}
	g.file.Close()
	if g.removed {
		s.zombies.Add(-g.size)
		s.nudge()
	}
}

func (s *Store) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// forget takes an object away, and says whether any is left on disk that would have to be buried. s.mu is held.
func (s *Store) forget(hash uint64) (had bool) {
	_, had = s.index[hash]
	delete(s.index, hash)
	it := s.queued[hash]
	if it == nil || it.kind != put {
		return had
	}
	it.dead = true
	had = had || it.had || it.taken
	delete(s.queued, hash)
	if !it.taken {
		s.release(it)
	}
	return had
}

// bury queues that what is on disk of a hash is gone. This is never refused: there is at most one for each object that was
// there or was queued. s.mu is held.
func (s *Store) bury(hash uint64) {
	if it := s.queued[hash]; it != nil && it.kind == deletion && !it.taken {
		return
	}
	it := &item{kind: deletion, hash: hash}
	s.queued[hash] = it
	s.enqueue(it)
}

// mayQueue says whether an object may wait to be written. s.mu is held.
func (s *Store) mayQueue(cost int64) error {
	switch {
	case s.closed:
		return ErrClosed
	case s.failing != nil:
		return fmt.Errorf("%w: %w", ErrFailing, s.failing)
	case s.queuedFor+cost > s.pending || s.queuedPut >= maxPending:
		return ErrBusy
	}
	return nil
}

// enqueue queues an item. s.mu is held.
func (s *Store) enqueue(it *item) {
	if it.kind == put || it.kind == renewal {
		s.queuedPut++
		s.queuedFor += it.cost
	}
	s.queue = append(s.queue, it)
	s.nudge()
}

// release gives back what an item took of the memory that may wait. s.mu is held.
func (s *Store) release(it *item) {
	if it.kind == put || it.kind == renewal {
		s.queuedPut--
		s.queuedFor -= it.cost
	}
	it.key, it.meta, it.body, it.sums = nil, nil, nil, nil
}

// over ends an item that is written, or will not be. s.mu is held.
func (s *Store) over(it *item) {
	s.release(it)
	if s.queued[it.hash] == it {
		delete(s.queued, it.hash)
	}
}

// writer is what belongs to the writer's goroutine.
type writer struct {
	active *segment // nil, if one could not be made
	tail   int64    // of the active segment, with what is in buf
	buf    []byte   // of it, what is not written yet
	wrote  []wrote  // what is in buf, or written and not found yet
	last   uint32   // the highest number of a segment there ever was
	before uint32   // the number of the newest segment
	ended  uint32   // where its records end, once it is sealed
	again  bool     // the active segment failed, and another is to be made

	sealed    int64 // bytes of all others
	unsynced  []*segment
	spoilt    map[*segment]bool // what could not be flushed: nobody knows what is on disk of it
	narrowed  int64             // the limit, until:
	narrowEnd time.Time
	failure   error // of Close
}

type wrote struct {
	it *item
	e  entry
}

const (
	// direct is the size of bodies that are written from where they are.
	direct = 256 << 10
	// batchItems and batchBytes are about how much is written before it can be found.
	batchItems = 1 << 10
	batchBytes = 1 << 20
)

// run is the writer's goroutine.
func (s *Store) run() {
	defer close(s.done)
	for {
		batch := s.take()
		if len(batch) > 0 {
			s.write(batch)
			continue
		}
		select {
		case <-s.wake:
			continue
		case <-s.stop:
		}
		if batch = s.take(); len(batch) == 0 {
			break
		}
		s.write(batch)
	}
	if s.active != nil {
		s.failure = errors.Join(s.failure, s.sealActive())
	}
}

// take takes the next items of the queue.
func (s *Store) take() (batch []*item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, bytes := 0, int64(0)
	for n < len(s.queue) && len(batch) < batchItems && bytes < batchBytes {
		it := s.queue[n]
		s.queue[n] = nil
		n++
		if it.dead {
			continue
		}
		it.taken = true
		bytes += it.cost
		batch = append(batch, it)
	}
	if s.queue = s.queue[n:]; len(s.queue) == 0 {
		s.queue = nil
	}
	return batch
}

func (s *Store) write(batch []*item) {
	for i, it := range batch {
		if err := s.add(it); err != nil {
			s.failed(err, batch[i:])
			return
		}
		if len(s.buf) < batchBytes {
			continue
		}
		if err := s.flush(); err != nil {
			s.failed(err, batch[i+1:])
			return
		}
	}
	if err := s.flush(); err != nil {
		s.failed(err, nil)
	}
}

// add adds an item to what is written next.
func (s *Store) add(it *item) error {
	if it.kind == barrier {
		err := s.flush()
		if it.set && err == nil {
			err = s.makeRoom(max(0, 2*stateSize(it.state)-s.stateRoom.Load()), true)
		}
		if it.set && err == nil {
			if err = s.saveState(it.state); err != nil {
				it.done <- err // who set it may try again; the store goes on
				return nil
			}
		}
		if err == nil {
			it.done <- nil
		}
		return err
	}
	need := sizeOf(len(it.key), len(it.meta), it.bodySize) + entrySize
	if it.kind == renewal {
		need = sizeOf(len(it.key), len(it.meta), 0) + int64(len(it.sums)) + entrySize
	}
	if it.kind != carried { // there is room for these
		if err := s.makeRoom(need, it.kind == deletion); errors.Is(err, ErrNoRoom) {
			s.refuse(it)
			return nil
		} else if err != nil {
			return err
		}
	}
	if s.active == nil || s.again || s.tail+need+s.footerRoom() > s.segment || len(s.active.entries)+len(s.wrote) >= maxRecords {
		if err := s.roll(); err != nil {
			return err
		}
	}
	if it.kind == renewal && !s.stands(it) {
		s.refuse(it) // now that nothing moves any more
		return nil
	}
	offset := uint32(s.tail)
	r := record{hash: it.hash, kind: keptRecord, key: it.key, meta: it.meta, bodySize: it.bodySize, sums: it.sums}
	switch it.kind {
	case deletion:
		r.kind = deletedRecord
	case renewal:
		r.bodySegment, r.bodyOffset = it.from.body, it.bodyOffset
	default:
		r.bodySegment, r.bodyOffset = s.active.segment, uint32(bodyAt(s.tail+int64(r.headSize()), r.bodySize))
	}
	s.buf = r.appendTo(s.buf, s.active.seal, offset)
	head := r.headSize()
	if s.tail += int64(head); it.kind == put || it.kind == carried {
		s.pad(int64(r.bodyOffset))
		if err := s.addBody(it); err != nil {
			return err
		}
	}
	s.pad(roundUp(s.tail, grain))
	e := entry{hash: it.hash, offset: offset, head: uint32(head), bodySegment: r.bodySegment, bodyOffset: r.bodyOffset}
	if it.kind == deletion {
		e.head = 0
	}
	s.wrote = append(s.wrote, wrote{it, e})
	return nil
}

func (s *Store) addBody(it *item) error {
	if it.bodySize < direct {
		for _, piece := range it.body {
			s.buf = append(s.buf, piece...)
		}
		s.tail += int64(it.bodySize)
		return nil
	}
	if err := s.writeOut(); err != nil {
		return err
	}
	for _, piece := range it.body {
		if _, err := s.system.WriteAt(s.active.file, piece, s.tail); err != nil {
			return err
		}
		s.tail += int64(len(piece))
	}
	return nil
}

// soil notes that a segment was written to.
func (s *Store) soil(g *segment) {
	if !g.dirty {
		g.dirty = true
		s.unsynced = append(s.unsynced, g)
	}
}

// pad adds zeros up to an offset.
func (s *Store) pad(to int64) {
	s.buf = append(s.buf, make([]byte, to-s.tail)...)
	s.tail = to
}

// stands says whether an object is still where it was.
func (s *Store) stands(it *item) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	v, ok := s.index[it.hash]
	return ok && v.at(it.from)
}

// refuse does without an object; what was there of it goes, too.
func (s *Store) refuse(it *item) {
	s.counts.refused.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giveUp(it)
}

// giveUp ends an object that will not be written. s.mu is held.
func (s *Store) giveUp(it *item) {
	current := s.queued[it.hash] == it
	s.over(it)
	if it.kind == put && it.had && current {
		s.bury(it.hash)
	}
}

// writeOut writes what is in buf.
func (s *Store) writeOut() error {
	if len(s.buf) == 0 {
		return nil
	}
	if _, err := s.system.WriteAt(s.active.file, s.buf, s.tail-int64(len(s.buf))); err != nil {
		return err
	}
	if s.buf = s.buf[:0]; cap(s.buf) > 4*batchBytes {
		s.buf = nil
	}
	return nil
}

// flush writes what was added, and from then on it is found.
func (s *Store) flush() error {
	if len(s.wrote) == 0 {
		return nil
	}
	if err := s.writeOut(); err != nil {
		return err
	}
	s.soil(s.active)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active.end = s.tail
	for _, w := range s.wrote {
		s.active.entries = append(s.active.entries, w.e)
		s.publish(w)
	}
	clear(s.wrote)
	s.wrote = s.wrote[:0]
	s.bytes.Store(s.used())
	return nil
}

// publish has a record found that is written. s.mu is held.
func (s *Store) publish(w wrote) {
	it := w.it
	v := slot{s.active.segment, w.e.offset, w.e.head, w.e.bodySegment}
	now, there := s.index[it.hash]
	switch it.kind {
	case put:
		if !it.dead {
			s.index[it.hash] = v
			s.counts.stored.Add(1)
		}
	case renewal:
		if there && now.at(it.from) {
			v.place |= now.place&flags | wasRead
			s.index[it.hash] = v
			s.counts.renewed.Add(1)
		}
	case carried:
		if there && now.at(it.from) {
			s.index[it.hash] = v
			s.counts.carried.Add(1)
		}
	}
	s.over(it)
}

// used is what all takes on the disk, or will when the active segment is sealed; without what is removed and still read.
func (s *Store) used() int64 {
	used := s.sealed + nameRoom + s.stateRoom.Load()
	if s.active != nil {
		used += roundUp(s.tail+s.footerRoom(), aligned)
	}
	return used
}

// footerRoom is what the index of the active segment will take, with one record more.
func (s *Store) footerRoom() int64 {
	return int64(len(s.active.entries)+len(s.wrote)+1)*entrySize + trailerSize
}

// makeRoom removes segments until there is room for so many bytes. Where removing frees nothing, because what was removed
// is still read, nothing more is removed, unless it must be.
func (s *Store) makeRoom(need int64, must bool) error {
	for {
		limit := s.limit
		if s.narrowed > 0 {
			if limit = min(limit, s.narrowed); time.Now().After(s.narrowEnd) {
				s.narrowed, limit = 0, s.limit
			}
		}
		s.mu.RLock()
		objects, files := len(s.index)+len(s.wrote), len(s.inOrder)
		s.mu.RUnlock()
		zombies := s.zombies.Load()
		// What is needed, what may be carried, and a new segment's header.
		if s.used()+zombies+need+s.carryRoom+headerSize+aligned <= limit && objects < s.objects {
			return nil
		}
		if files == 0 {
			if s.used()+zombies+need <= s.limit {
				return nil
			}
			return ErrNoRoom
		}
		if zombies > s.limit/8 && !must {
			return ErrNoRoom
		}
		if err := s.evict(true); err != nil {
			return err
		}
	}
}

// evict removes the oldest segment. What was read of it since it was written is carried over into the active one, if it is to be,
// as far as there is room for it.
func (s *Store) evict(carry bool) error {
	if err := s.flush(); err != nil {
		return err
	}
	s.mu.RLock()
	g := s.inOrder[0]
	s.mu.RUnlock()
	if g == s.active {
		carry = false
		s.sealActive()
	}
	var kept []*item
	seen := map[uint64]bool{} // of what is kept: an object may have several records here
	var failure error
	room := s.carryRoom
	for _, e := range s.entriesOf(g) {
		s.mu.RLock()
		v, ok := s.index[e.hash]
		s.mu.RUnlock()
		if !ok || seen[e.hash] || !v.in(g.segment) {
			continue
		}
		if carry && failure == nil && v.place&wasRead != 0 {
			if it := s.carry(e.hash, v, room); it != nil {
				room -= sizeOf(len(it.key), len(it.meta), it.bodySize) + entrySize
				kept, seen[e.hash] = append(kept, it), true
				if failure = s.add(it); failure == nil && len(s.buf) >= batchBytes {
					failure = s.flush()
				}
				continue
			}
		}
		s.leave(e.hash, v)
	}
	if failure == nil {
		failure = s.flush()
	}
	for _, it := range kept {
		s.leave(it.hash, it.from) // if it was not carried
	}
	s.remove(g)
	return failure
}

// leave forgets an object whose segment goes, if it is still there.
func (s *Store) leave(hash uint64, v slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now, ok := s.index[hash]; ok && now.at(v) {
		delete(s.index, hash)
		s.counts.evicted.Add(1)
	}
}

// carry reads an object that is to be written again; nil if it is too large or damaged.
func (s *Store) carry(hash uint64, v slot, room int64) *item {
	s.mu.RLock()
	e, ok := s.pin(hash, v, true)
	s.mu.RUnlock()
	if !ok || !e.load() {
		return nil
	}
	defer e.Close()
	if sizeOf(len(e.Key), len(e.Meta), uint32(e.size))+entrySize > room {
		return nil
	}
	body := make([]byte, e.size)
	if _, err := e.ReadAt(body, 0); err != nil {
		return nil
	}
	return &item{kind: carried, hash: hash, key: e.Key, meta: e.Meta, body: [][]byte{body}, bodySize: uint32(e.size), sums: e.sums, from: v}
}

// remove removes the oldest segment, of which nothing is found any more.
func (s *Store) remove(g *segment) {
	s.mu.Lock()
	s.inOrder = s.inOrder[1:]
	delete(s.byNumber, g.segment)
	s.mu.Unlock()
	s.sealed -= g.size
	for i, o := range s.unsynced {
		if o == g {
			s.unsynced = append(s.unsynced[:i], s.unsynced[i+1:]...)
			break
		}
	}
	delete(s.spoilt, g)
	s.zombies.Add(g.size)
	g.removed = s.system.Remove(g.path) == nil // else it takes its room still
	s.unpin(g)
	s.bytes.Store(s.used())
}

// entriesOf are the records of a segment, of which the file is held. If its index cannot be read, they are what is found in it.
func (s *Store) entriesOf(g *segment) []entry {
	s.mu.RLock()
	entries := g.entries
	s.mu.RUnlock()
	if entries != nil {
		return entries[:len(entries):len(entries)]
	}
	if info, err := g.file.Stat(); err == nil {
		if entries, _, err := readFooter(reader{s, g.file}, info.Size(), g.seal); err == nil {
			return entries
		}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for hash, v := range s.index {
		if v.in(g.segment) {
			entries = append(entries, entry{hash: hash, offset: v.offset(), head: v.head})
		}
	}
	return entries
}

// reader reads a file as the store does.
type reader struct {
	s *Store
	f *os.File
}

func (r reader) ReadAt(p []byte, at int64) (int, error) { return r.s.system.ReadAt(r.f, p, at) }

// roll begins a new segment.
func (s *Store) roll() error {
	if s.active != nil {
		if err := s.flush(); err != nil {
			return err
		}
		s.sealActive() // if it cannot be, its index stays in memory, and is found again by reading it
	}
	var salt [8]byte
	rand.Read(salt[:])
	h := header{seal{binary.LittleEndian.Uint64(salt[:]), s.last + 1}, s.before, s.ended}
	g := &segment{seal: h.seal, path: filepath.Join(s.dir, segmentName(h.segment)), end: headerSize}
	f, err := s.system.Open(g.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	if _, err := s.system.WriteAt(f, h.bytes(), 0); err != nil {
		f.Close()
		s.system.Remove(g.path)
		return err
	}
	g.file = f
	g.pins.Store(1)
	s.last, s.before, s.active, s.tail, s.again = h.segment, h.segment, g, headerSize, false
	s.soil(g)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inOrder = append(s.inOrder, g)
	s.byNumber[g.segment] = g
	return nil
}

// sealActive writes the index of the active segment, of which all is written, and ends it.
func (s *Store) sealActive() error {
	g := s.active
	s.active, s.ended, s.again = nil, uint32(g.end), false
	return s.sealSegment(g)
}

// sealSegment writes the index of a segment.
func (s *Store) sealSegment(g *segment) error {
	index := footer(g.entries, g.seal, uint32(g.end))
	_, err := s.system.WriteAt(g.file, index, g.end)
	size := roundUp(g.end+int64(len(index)), aligned)
	if err != nil {
		s.system.Truncate(g.file, g.end)
	}
	s.sealed += size
	s.mu.Lock()
	defer s.mu.Unlock()
	g.size = size
	if err == nil {
		g.entries = nil
	}
	return err
}

// failed deals with a write that failed: nothing of what was added and not yet found is kept, nor is what was to follow it. What
// says that something is gone is kept, to be written when the disk works again.
func (s *Store) failed(err error, rest []*item) {
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
	items := rest
	for _, w := range s.wrote {
		items = append(items, w.it)
	}
	if s.wrote, s.buf = nil, nil; s.active != nil {
		s.tail = s.active.end
		s.system.Truncate(s.active.file, s.tail)
		s.again = !full && s.tail > headerSize
	}
	s.mu.Lock()
	var first []*item
	waiting := s.queue
	s.queue = nil
	for _, it := range items {
		switch it.kind {
		case barrier:
			it.done <- fmt.Errorf("%w: %w", ErrFailing, err)
		case deletion:
			it.taken = false
			first = append(first, it)
		default:
			s.counts.failures.Add(1)
			s.giveUp(it)
		}
	}
	s.queue = append(append(first, s.queue...), waiting...)
	if s.closed {
		s.abandon(err)
		s.mu.Unlock()
		return
	}
	s.failing = err
	s.mu.Unlock()

	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.stop:
	}
	if full {
		s.narrowed, s.narrowEnd = s.used(), time.Now().Add(narrowFor)
		s.mu.RLock()
		files := len(s.inOrder)
		s.mu.RUnlock()
		if files > 0 {
			s.evict(false)
		}
	}
	s.mu.Lock()
	s.failing = nil
	s.mu.Unlock()
}

// abandon drops all that is queued: the store is closed and the disk fails. s.mu is held.
func (s *Store) abandon(err error) {
	s.failure = errors.Join(s.failure, err)
	for _, it := range s.queue {
		if it.kind == barrier {
			it.done <- fmt.Errorf("%w: %w", ErrFailing, err)
		}
		if !it.dead {
			s.over(it)
		}
	}
	s.queue = nil
}

// maxState bounds the state, in bytes, and a sixteenth of a segment does: written anew it takes twice that, for which there is
// always room below the limit.
const maxState = 4 << 20

// saveState flushes all that was written, and keeps the state with the place up to which that is.
func (s *Store) saveState(state []byte) error {
	for _, g := range s.unsynced {
		err := s.system.Sync(g.file)
		if err != nil {
			s.spoilt[g] = true
		}
		if s.spoilt[g] { // a second flush that works says nothing of what the first was to write
			return fmt.Errorf("flush %s: %w", g.path, errors.Join(err, ErrFailing))
		}
	}
	if err := s.system.SyncDir(s.dir); err != nil {
		return err
	}
	for _, g := range s.unsynced {
		g.dirty = false
	}
	s.unsynced = nil
	s.stateMu.Lock()
	defer s.stateMu.Unlock()
	s.stateSegment, s.stateOffset = s.before, s.ended
	if s.active != nil {
		s.stateOffset = uint32(s.active.end)
	}
	return s.writeState(state)
}

// writeState writes the state's file. s.stateMu is held.
func (s *Store) writeState(state []byte) error {
	s.stateRoom.Store(max(s.stateRoom.Load(), 2*stateSize(state)))
	b := append(make([]byte, 0, len(state)+stateFixed), stateMagic...)
	b = binary.LittleEndian.AppendUint32(b, s.stateSegment)
	b = binary.LittleEndian.AppendUint32(b, s.stateOffset)
	b = append(b, state...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	err := s.system.Replace(filepath.Join(s.dir, stateName), writeAll(b))
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.state = state
		s.stateRoom.Store(2 * stateSize(state))
	}
	return err
}

// stateSize is what a state takes on the disk.
func stateSize(state []byte) int64 { return roundUp(int64(len(state)+stateFixed), aligned) }
