package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"

	"github.com/hashicorp/raft"
)

// checkDisk reads all of a file that bbolt has written, before bbolt does, and says what is wrong with it. bbolt trusts
// its pages: over a damaged one it panics in a goroutine of its own, faults in its memory map, or falls back to an older
// state without a word. This check trusts nothing, and it reads each record of ours against its checksum.
func checkDisk(path string) error {
	lock := boltOptions()
	lock.ReadOnly = true // reads little more than the two headers
	db, err := openBolt(path, lock)
	if errors.Is(err, ErrInUse) {
		return err
	}
	if err != nil {
		return fmt.Errorf("%w: %v", errDamaged, err)
	}
	defer db.Close() // until then nobody writes
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := checkBolt(f, info.Size()); err != nil {
		return fmt.Errorf("%w: %v", errDamaged, err)
	}
	return nil
}

// What follows is bbolt's file format, version 2: pages of one size, each with a header. The first two each hold
// one of the last two states of the file; from its root hang the pages of a tree of keys and values. Numbers are in
// the machine's order.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeader    = 16 // id (8 bytes), kind (2), number of elements (2), how many pages more this one takes (4)
	elementHeader = 16
	bucketHeader  = 16 // root page (8 bytes; 0: the page follows), sequence (8)

	branchPage = 1 // elements: offset of the key (4 bytes), its length (4), page of the child (8)
	leafPage   = 2 // elements: flags (4 bytes; 1: the value is a bucket), offset of the key (4), lengths of key (4) and value (4)

	isBucket = 1
)

// native is the machine's order.
var native = binary.NativeEndian

// boltMeta is one of the two states.
type boltMeta struct {
	pageSize, root, pages, txid uint64
}

func readMeta(page []byte) (m boltMeta, err error) {
	const size = 64
	if len(page) < pageHeader+size {
		return m, io.ErrUnexpectedEOF
	}
	b := page[pageHeader : pageHeader+size]
	sum := fnv.New64a()
	sum.Write(b[:56])
	if native.Uint32(b) != boltMagic || native.Uint32(b[4:]) != boltVersion || native.Uint64(b[56:]) != sum.Sum64() {
		return m, errors.New("header is wrong")
	}
	return boltMeta{
		pageSize: uint64(native.Uint32(b[8:])), root: native.Uint64(b[16:]), pages: native.Uint64(b[40:]), txid: native.Uint64(b[48:]),
	}, nil
}

// boltCheck is the reading of one file.
type boltCheck struct {
	file  io.ReaderAt
	size  uint64 // of a page
	pages uint64
	seen  map[uint64]bool
}

func checkBolt(file io.ReaderAt, length int64) error {
	first := make([]byte, 4096)
	if _, err := file.ReadAt(first, 0); err != nil {
		return err
	}
	meta, err := readMeta(first)
	if err != nil {
		return fmt.Errorf("page 0: %w", err)
	}
	if meta.pageSize < 1024 || meta.pageSize > 1<<24 {
		return fmt.Errorf("pages of %d bytes", meta.pageSize)
	}
	second := make([]byte, 1024)
	if _, err := file.ReadAt(second, int64(meta.pageSize)); err != nil {
		return err
	}
	// Both are written within one sector of the disk, so neither is ever half written: a wrong one is damage, and the
	// state in it may be the newer.
	other, err := readMeta(second)
	if err != nil {
		return fmt.Errorf("page 1: %w", err)
	}
	if other.txid > meta.txid {
		meta = other
	}
	if have := uint64(length) / meta.pageSize; have < meta.pages {
		return fmt.Errorf("it is cut off: %d of %d pages are there", have, meta.pages)
	}
	c := &boltCheck{file: file, size: meta.pageSize, pages: meta.pages, seen: map[uint64]bool{}}

	records := map[string]func(key, value []byte) error{
		string(logBucket):    checkLog(),
		string(valuesBucket): checkValue,
	}
	err = c.tree(meta.root, nil, nil, func(key, value []byte, flags uint32) error {
		record, known := records[string(key)]
		if !known || flags != isBucket {
			return fmt.Errorf("unknown entry %q", key)
		}
		delete(records, string(key))
		return c.bucket(value, func(key, value []byte, flags uint32) error {
			if flags != 0 {
				return fmt.Errorf("entry %x is not a value", key)
			}
			return record(key, value)
		})
	})
	if err == nil && len(records) > 0 {
		err = errors.New("not all of it is there")
	}
	return err
}

// checkLog checks each log entry, and that they follow each other.
func checkLog() func(key, value []byte) error {
	var entry raft.Log
	return func(key, value []byte) error {
		last := entry.Index
		if err := decodeEntry(key, value, &entry); err != nil {
			return fmt.Errorf("log entry %x: its checksum does not fit", key)
		}
		if last != 0 && entry.Index != last+1 {
			return fmt.Errorf("log entry %d follows %d", entry.Index, last)
		}
		return nil
	}
}

func checkValue(key, value []byte) error {
	if _, err := unseal(key, value); err != nil {
		return fmt.Errorf("value of %q: its checksum does not fit", key)
	}
	return nil
}

// visitor is called with each key and value of a leaf, in the order of the keys.
type visitor func(key, value []byte, flags uint32) error

// bucket reads a bucket by its entry.
func (c *boltCheck) bucket(entry []byte, visit visitor) error {
	if len(entry) < bucketHeader {
		return errors.New("bucket is cut off")
	}
	if root := native.Uint64(entry); root != 0 {
		return c.tree(root, nil, nil, visit)
	}
	return c.leaf(entry[bucketHeader:], nil, nil, visit)
}

// tree reads the page and all below it. Its keys are at least low and below high, where those are given.
func (c *boltCheck) tree(id uint64, low, high []byte, visit visitor) error {
	page, err := c.page(id)
	if err == nil {
		switch kind := native.Uint16(page[8:]); kind {
		case leafPage:
			err = c.leaf(page, low, high, visit)
		case branchPage:
			return c.branch(page, low, high, visit)
		default:
			err = fmt.Errorf("is of kind %d", kind)
		}
	}
	if err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

func (c *boltCheck) branch(page []byte, low, high []byte, visit visitor) error {
	count := int(native.Uint16(page[10:]))
	if count == 0 {
		return errors.New("is a branch without children")
	}
	keys, children := make([][]byte, count), make([]uint64, count)
	for i := range count {
		at := pageHeader + i*elementHeader
		e, err := cut(page, at, 0, elementHeader)
		if err != nil {
			return err
		}
		if keys[i], err = cut(page, at, native.Uint32(e), native.Uint32(e[4:])); err != nil {
			return err
		}
		children[i] = native.Uint64(e[8:])
	}
	if err := inOrder(keys, low, high); err != nil {
		return err
	}
	for i, child := range children {
		next := high
		if i+1 < count {
			next = keys[i+1]
		}
		if err := c.tree(child, keys[i], next, visit); err != nil {
			return err
		}
	}
	return nil
}

func (c *boltCheck) leaf(page []byte, low, high []byte, visit visitor) error {
	if len(page) < pageHeader || native.Uint16(page[8:]) != leafPage {
		return errors.New("is not a leaf")
	}
	count := int(native.Uint16(page[10:]))
	keys := make([][]byte, count)
	for i := range count {
		at := pageHeader + i*elementHeader
		e, err := cut(page, at, 0, elementHeader)
		if err != nil {
			return err
		}
		pos, length := native.Uint32(e[4:]), native.Uint32(e[8:])
		if keys[i], err = cut(page, at, pos, length); err != nil {
			return err
		}
		value, err := cut(page, at+int(length), pos, native.Uint32(e[12:]))
		if err != nil {
			return err
		}
		if err := visit(keys[i], value, native.Uint32(e)); err != nil {
			return err
		}
	}
	return inOrder(keys, low, high)
}

// page reads a page, once.
func (c *boltCheck) page(id uint64) ([]byte, error) {
	if id < 2 || id >= c.pages {
		return nil, errors.New("is none of the file's")
	}
	page := make([]byte, c.size)
	if _, err := c.file.ReadAt(page, int64(id*c.size)); err != nil {
		return nil, err
	}
	more := uint64(native.Uint32(page[12:]))
	if native.Uint64(page) != id || more >= c.pages-id {
		return nil, errors.New("its header is wrong")
	}
	for i := id; i <= id+more; i++ {
		if c.seen[i] {
			return nil, errors.New("belongs to two places")
		}
		c.seen[i] = true
	}
	if more == 0 {
		return page, nil
	}
	page = make([]byte, (1+more)*c.size)
	_, err := c.file.ReadAt(page, int64(id*c.size))
	return page, err
}

// cut returns length bytes of a page, offset behind at.
func cut(page []byte, at int, offset, length uint32) ([]byte, error) {
	from := uint64(at) + uint64(offset)
	if to := from + uint64(length); to <= uint64(len(page)) {
		return page[from:to], nil
	}
	return nil, errors.New("an element is outside of it")
}

func inOrder(keys [][]byte, low, high []byte) error {
	for i, key := range keys {
		switch {
		case i == 0 && bytes.Compare(key, low) < 0,
			i > 0 && bytes.Compare(key, keys[i-1]) <= 0,
			high != nil && bytes.Compare(key, high) >= 0:
			return errors.New("its keys are out of order")
		}
	}
	return nil
}
