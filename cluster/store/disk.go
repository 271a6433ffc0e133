package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/perigee-net/perigee/cluster/file"
)

// ErrInUse says that another process has the data folder open.
var ErrInUse = errors.New("data folder is in use by another process")

// Buckets of the file: the log by index (8 bytes, big endian), and Raft's own values by name.
var (
	logBucket    = []byte("log")
	valuesBucket = []byte("values")
)

// disk is Raft's log and its own values (term, vote) in one file (raft.LogStore, raft.StableStore). A write is on disk
// when its method returns. Every record carries a checksum over its key and content.
type disk struct {
	db *bbolt.DB
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
	return &disk{db}, nil
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
		for _, name := range [][]byte{logBucket, valuesBucket} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Rename(aside, path); err != nil || noSync {
		return err
	}
	return file.SyncDir(filepath.Dir(path))
}

// close closes the file.
func (d *disk) close() error { return d.db.Close() }

// IsMonotonic implements raft.MonotonicLogStore: the log has no gaps.
func (d *disk) IsMonotonic() bool { return true }

// FirstIndex implements raft.LogStore.
func (d *disk) FirstIndex() (index uint64, err error) {
	err = d.db.View(func(tx *bbolt.Tx) error {
		if k, _ := tx.Bucket(logBucket).Cursor().First(); k != nil {
			index = binary.BigEndian.Uint64(k)
		}
		return nil
	})
	return index, err
}

// LastIndex implements raft.LogStore.
func (d *disk) LastIndex() (index uint64, err error) {
	err = d.db.View(func(tx *bbolt.Tx) error {
		index = lastIndex(tx.Bucket(logBucket))
		return nil
	})
	return index, err
}

func lastIndex(log *bbolt.Bucket) uint64 {
	if k, _ := log.Cursor().Last(); k != nil {
		return binary.BigEndian.Uint64(k)
	}
	return 0
}

// GetLog implements raft.LogStore.
func (d *disk) GetLog(index uint64, entry *raft.Log) error {
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

// StoreLogs implements raft.LogStore.
func (d *disk) StoreLogs(entries []*raft.Log) error {
	return d.db.Update(func(tx *bbolt.Tx) error {
		log := tx.Bucket(logBucket)
		log.FillPercent = 1 // entries are only ever added at the end
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
}

// DeleteRange implements raft.LogStore.
func (d *disk) DeleteRange(first, last uint64) error {
	return d.db.Update(func(tx *bbolt.Tx) error {
		log := tx.Bucket(logBucket)
		last = min(last, lastIndex(log))
		for index := first; index <= last; index++ {
			if err := log.Delete(logKey(index)); err != nil {
				return fmt.Errorf("delete log entry %d: %w", index, err)
			}
		}
		return nil
	})
}

// Set implements raft.StableStore.
func (d *disk) Set(key, value []byte) error {
	return d.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(valuesBucket).Put(key, seal(key, slices.Clip(value)))
	})
}

// Get implements raft.StableStore: nil if there is none.
func (d *disk) Get(key []byte) (value []byte, err error) {
	err = d.db.View(func(tx *bbolt.Tx) error {
		sealed := tx.Bucket(valuesBucket).Get(key)
		if sealed == nil {
			return nil
		}
		content, err := unseal(key, sealed)
		value = append([]byte{}, content...) // what bbolt gives out ends with the transaction
		return err
	})
	return value, err
}

// SetUint64 implements raft.StableStore.
func (d *disk) SetUint64(key []byte, value uint64) error {
	return d.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 implements raft.StableStore: 0 if there is none.
func (d *disk) GetUint64(key []byte) (uint64, error) {
	value, err := d.Get(key)
	if err != nil || value == nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, fmt.Errorf("value of %s has %d bytes, want 8", key, len(value))
	}
	return binary.BigEndian.Uint64(value), nil
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
