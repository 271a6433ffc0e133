package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/cluster/file"
)

// ErrInUse says that another process has the data folder open.
var ErrInUse = errors.New("data folder is in use by another process")

// ErrNoRoom says that the disk of the node that was asked is full, or nearly, and that nothing was changed.
var ErrNoRoom = errors.New("there is no room on the disk")

// keptRoom is left free on the disk by what is refused with ErrNoRoom, for what Raft has to write of its own accord.
const keptRoom = 16 << 20

// membersRoom must be free for a change of the members: a leader goes by it even where it could not be written.
const membersRoom = 1 << 20

// logBucket is the log by index (8 bytes, big endian).
var logBucket = []byte("log")

// disk is Raft's log in one file (raft.LogStore). A write is on disk when its method returns, and one that fails has
// changed nothing: it may be tried again, and works when what was wrong is put right. Every record carries a checksum over its
// key and content.
type disk struct {
	db *bbolt.DB

	fail   func() error           // called before a write, and fails it by an error: for tests
	room   func() (uint64, error) // free on the disk, in bytes
	failed func(error)            // told of a write that failed; nil when one works

	mu     sync.Mutex  // over all that writes
	leads  func() bool // whether this node leads
	broken error       // why nothing more is written

	// What Raft wanted deleted and is yet there: entries from cutFrom on, because others take their place, and up to cutTo,
	// because a snapshot did and they could not be deleted then. Both go in one transaction with the entries that come next. Raft
	// takes for deleted what it could not delete, and for stored what it could not put in place of the deleted. 0 is none.
	cutFrom, cutTo uint64
}

// openDisk opens the file at path, or makes it where there is none. A file that is damaged anywhere is refused,
// however little of it would be needed: what Raft promised the other nodes must not be forgotten in silence.
func openDisk(path string, noSync bool) (*disk, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := makeDisk(path, noSync); err != nil {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
	} else if err != nil {
		return nil, err
	}
	if err := checkDisk(path); err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	options := boltOptions()
	options.NoSync = noSync
	db, err := openBolt(path, options)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &disk{
		db: db, fail: func() error { return nil }, failed: func(error) {}, leads: func() bool { return false },
		room: func() (uint64, error) { return freeBytes(filepath.Dir(path)) },
	}, nil
}

// freeBytes is how many bytes the file system of a folder has to give to this process.
func freeBytes(dir string) (uint64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return 0, fmt.Errorf("look for room in %s: %w", dir, err)
	}
	return stat.Bavail * uint64(stat.Bsize), nil
}

// roomFor refuses what needs more bytes than are free. A file system that does not tell is believed to have room.
func (d *disk) roomFor(size int) error {
	free, err := d.room()
	if err == nil && free < uint64(size) {
		return fmt.Errorf("%w: %d KiB are free, %d KiB must be", ErrNoRoom, free>>10, size>>10)
	}
	return nil
}

// update makes one transaction; the caller has the lock. One that fails is undone, but for one whose last flush fails: then
// nobody can say what is on disk, and nothing more is written.
func (d *disk) update(do func(tx *bbolt.Tx) error) error {
	if d.broken != nil {
		return d.broken
	}
	before := d.transaction()
	err := d.fail()
	if err == nil {
		err = d.db.Update(do)
	}
	if err != nil && d.transaction() != before {
		d.broken = fmt.Errorf("%s is not written to until the node is started again: %w", raftFile, err)
		err = fmt.Errorf("%w: %w", ErrUnknownOutcome, d.broken)
	}
	d.failed(err)
	return err
}

// transaction is the number of the last transaction.
func (d *disk) transaction() (number int) {
	d.db.View(func(tx *bbolt.Tx) error {
		number = tx.ID()
		return nil
	})
	return number
}

func boltOptions() bbolt.Options {
	return bbolt.Options{
		Timeout: 1, // asks for the lock once; 0 would wait for it
		// Written at every commit, the list of free pages costs more than the log once the file has grown. Without
		// it, the file is read once at the start, which the check does anyway.
		NoFreelistSync: true,
		FreelistType:   bbolt.FreelistMapType,
	}
}

func openBolt(path string, options bbolt.Options) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &options)
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, ErrInUse
	}
	return db, err
}

// makeDisk makes an empty file, aside and then renamed: a file that is there was whole once, so one that is short is damaged.
func makeDisk(path string, noSync bool) error {
	aside := path + ".new"
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	options := boltOptions()
	options.NoSync = noSync
	db, err := openBolt(aside, options)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucket(logBucket)
		return err
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Rename(aside, path); err != nil || noSync {
		return err
	}
	return file.SyncDir(filepath.Dir(path))
}

// setLeads tells how to know whether this node leads; Raft is made after the disk.
func (d *disk) setLeads(leads func() bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leads = leads
}

// close closes the file.
func (d *disk) close() error { return d.db.Close() }

// IsMonotonic implements raft.MonotonicLogStore: the log has no gaps.
func (d *disk) IsMonotonic() bool { return true }

// FirstIndex implements raft.LogStore.
func (d *disk) FirstIndex() (index uint64, err error) {
	cut := d.replaced()
	err = d.db.View(func(tx *bbolt.Tx) error {
		if k, _ := tx.Bucket(logBucket).Cursor().Seek(logKey(cut + 1)); k != nil {
			index = binary.BigEndian.Uint64(k)
		}
		return nil
	})
	return index, err
}

// LastIndex implements raft.LogStore.
func (d *disk) LastIndex() (index uint64, err error) {
	cut := d.replaced()
	err = d.db.View(func(tx *bbolt.Tx) error {
		index = lastIndex(tx.Bucket(logBucket))
		return nil
	})
	if index <= cut {
		return 0, err
	}
	return index, err
}

// replaced is the last entry that is there only because it could not be deleted.
func (d *disk) replaced() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cutTo
}

func lastIndex(log *bbolt.Bucket) uint64 {
	if k, _ := log.Cursor().Last(); k != nil {
		return binary.BigEndian.Uint64(k)
	}
	return 0
}

// GetLog implements raft.LogStore.
func (d *disk) GetLog(index uint64, entry *raft.Log) error {
	if index <= d.replaced() {
		return raft.ErrLogNotFound
	}
	return d.db.View(func(tx *bbolt.Tx) error {
		key := logKey(index)
		value := tx.Bucket(logBucket).Get(key)
		if value == nil {
			return raft.ErrLogNotFound
		}
		if err := decodeEntry(key, value, entry); err != nil {
			return fmt.Errorf("read log entry %d: %w", index, err)
		}
		return nil
	})
}

// StoreLog implements raft.LogStore.
func (d *disk) StoreLog(entry *raft.Log) error { return d.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore: all of the entries or none.
func (d *disk) StoreLogs(entries []*raft.Log) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	from := d.cutFrom
	d.cutFrom = 0 // Raft will ask again, if these cannot be stored
	err := d.update(func(tx *bbolt.Tx) error {
		log := tx.Bucket(logBucket)
		log.FillPercent = 1 // entries are only ever added at the end
		if err := cutLog(log, from, d.cutTo); err != nil {
			return err
		}
		last := lastIndex(log)
		for _, e := range entries {
			if last != 0 && e.Index != last+1 {
				return fmt.Errorf("store log entry %d behind %d: that makes a gap", e.Index, last)
			}
			key := logKey(e.Index)
			if err := log.Put(key, encodeEntry(key, e)); err != nil {
				return fmt.Errorf("store log entry %d: %w", e.Index, err)
			}
			last = e.Index
		}
		return nil
	})
	if err == nil {
		d.cutTo = 0
		return nil
	}
	if d.broken == nil && entries[0].Type == raft.LogConfiguration && d.leads() {
		// A leader goes by the members that it could not write down. To go on would be to go by members that nobody agreed on.
		d.broken = fmt.Errorf("the members could not be written to %s, the node must be started again: %w", raftFile, err)
	}
	return fmt.Errorf("write %s: %w", raftFile, err)
}

// cutLog deletes the entries from one on, and those up to another; 0 is none.
func cutLog(log *bbolt.Bucket, from, to uint64) error {
	last := lastIndex(log)
	if from != 0 {
		if err := deleteEntries(log, from, last); err != nil {
			return err
		}
	}
	if k, _ := log.Cursor().First(); k != nil && to != 0 {
		return deleteEntries(log, binary.BigEndian.Uint64(k), min(to, last))
	}
	return nil
}

func deleteEntries(log *bbolt.Bucket, first, last uint64) error {
	for index := first; index <= last; index++ {
		if err := log.Delete(logKey(index)); err != nil {
			return fmt.Errorf("delete log entry %d: %w", index, err)
		}
	}
	return nil
}

// DeleteRange implements raft.LogStore. Entries at the end are deleted when the next come in their place: Raft
// deletes them for no other reason.
func (d *disk) DeleteRange(first, last uint64) error {
	begin, err := d.FirstIndex()
	if err != nil {
		return err
	}
	end, err := d.LastIndex()
	if err != nil || end == 0 {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case first > begin && last < end:
		return fmt.Errorf("delete log entries %d to %d of %d to %d: that makes a gap", first, last, begin, end)
	case first > begin:
		d.cutFrom = first
		return nil
	}
	err = d.update(func(tx *bbolt.Tx) error { return deleteEntries(tx.Bucket(logBucket), begin, min(last, end)) })
	if err != nil && last >= end {
		d.cutTo = end
	}
	return err
}

func logKey(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }

// encodeEntry writes a log entry: term (8 bytes), type (1), time (8, Unix nanoseconds; 0 is none), length of the
// extensions (uvarint), extensions, data; sealed.
func encodeEntry(key []byte, e *raft.Log) []byte {
	b := make([]byte, 0, 48+len(e.Extensions)+len(e.Data))
	b = binary.BigEndian.AppendUint64(b, e.Term)
	b = append(b, byte(e.Type))
	var at int64
	if !e.AppendedAt.IsZero() {
		at = e.AppendedAt.UnixNano()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	b = binary.AppendUvarint(b, uint64(len(e.Extensions)))
	b = append(b, e.Extensions...)
	b = append(b, e.Data...)
	return seal(key, b)
}

// decodeEntry reads what encodeEntry wrote; what it makes shares no memory with value.
func decodeEntry(key, value []byte, e *raft.Log) error {
	const fixed = 8 + 1 + 8
	b, err := unseal(key, value)
	if err != nil {
		return err
	}
	if len(key) != 8 || len(b) < fixed {
		return errDamaged
	}
	size, n := binary.Uvarint(b[fixed:])
	if n <= 0 || size > uint64(len(b)-fixed-n) {
		return errDamaged
	}
	rest := append([]byte{}, b[fixed+n:]...)
	*e = raft.Log{
		Index: binary.BigEndian.Uint64(key),
		Term:  binary.BigEndian.Uint64(b),
		Type:  raft.LogType(b[8]),
		Data:  rest[size:],
	}
	if size > 0 {
		e.Extensions = rest[:size:size]
	}
	if at := int64(binary.BigEndian.Uint64(b[9:])); at != 0 {
		e.AppendedAt = time.Unix(0, at).UTC()
	}
	return nil
}

var errDamaged = errors.New("file is damaged")

// castagnoli makes the checksum of a record (RFC 3720 section 12.1).
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal appends to a record's content the checksum over its key and content.
func seal(key, content []byte) []byte {
	sum := crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, content)
	return binary.BigEndian.AppendUint32(content, sum)
}

func unseal(key, sealed []byte) ([]byte, error) {
	if len(sealed) < 4 {
		return nil, errDamaged
	}
	content, sum := sealed[:len(sealed)-4], binary.BigEndian.Uint32(sealed[len(sealed)-4:])
	if crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, content) != sum {
		return nil, errDamaged
	}
	return content, nil
}

// diskHealth tells of a disk that fails once, and once that it works again, however often Raft tries.
type diskHealth struct {
	log      *slog.Logger
	failures atomic.Uint64 // in all

	mu          sync.Mutex
	file, votes error // what the last write said
}

func (h *diskHealth) ofLog(err error) { h.told(&h.file, raftFile, err) }

func (h *diskHealth) ofVotes(err error) { h.told(&h.votes, voteFile, err) }

func (h *diskHealth) told(last *error, name string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err != nil && *last == nil:
		h.log.Error("disk does not take what the agreement needs written", "file", name, "error", err)
	case err == nil && *last != nil:
		h.log.Info("disk is written to again", "file", name)
	}
	if err != nil {
		h.failures.Add(1)
	}
	*last = err
}

// failing is 1 while writes fail.
func (h *diskHealth) failing() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.file != nil || h.votes != nil {
		return 1
	}
	return 0
}
