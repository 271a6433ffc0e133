package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"slices"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// checkDisk reads all of a file that bbolt has written, before bbolt does, and says what is wrong with it. bbolt trusts
// its pages: over a damaged one it panics in a goroutine of its own, faults in its memory map, or falls back to an older
// state without a word. This check trusts nothing, and it reads each record of ours against its checksum. What a loss of power may
// leave of a transaction at whatever byte is no damage; where bbolt would fall back although the transaction is there, the
// file is mended.
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
	mend, err := checkFile(path)
	db.Close() // until then nobody wrote
	if err != nil || mend == nil {
		return err
	}
	return mend.do(path)
}

func checkFile(path string) (*mending, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	mend, err := checkBolt(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errDamaged, err)
	}
	return mend, nil
}

// mending is what is to be written at one place of the file.
type mending struct {
	at       int64
	was, new []byte
}

// do writes it, if nobody has written there since.
func (m *mending) do(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return ErrInUse
	}
	is := make([]byte, len(m.was))
	if _, err := f.ReadAt(is, m.at); err != nil {
		return err
	}
	if !bytes.Equal(is, m.was) {
		return ErrInUse
	}
	if _, err := f.WriteAt(m.new, m.at); err != nil {
		return fmt.Errorf("mend: %w", err)
	}
	return f.Sync()
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

// A header's page holds, behind the page's own header: magic, version, size of a page, flags (4 bytes each), root
// page, sequence, list of free pages, number of pages, transaction (8 each), and the FNV-1a sum over those; then zeros.
const (
	metaPage = 4 // the kind of a page that holds a header
	metaSize = 64
	metaSum  = 56 // where the sum is
	metaTxid = 48

	noFreelist = 1<<64 - 1 // what bbolt writes for the list where it writes none
)

// boltMeta is one of the two states.
type boltMeta struct {
	root, freelist, pages, txid uint64
	sum                         []byte
}

// readMeta reads a header, whose sum may be wrong, and says whether it fits.
func readMeta(b []byte) (m boltMeta, whole bool) {
	m = boltMeta{
		root: native.Uint64(b[16:]), freelist: native.Uint64(b[32:]), pages: native.Uint64(b[40:]), txid: native.Uint64(b[metaTxid:]),
		sum: sumMeta(b),
	}
	return m, bytes.Equal(m.sum, b[metaSum:metaSize])
}

func sumMeta(b []byte) []byte {
	sum := fnv.New64a()
	sum.Write(b[:metaSum])
	return native.AppendUint64(nil, sum.Sum64())
}

// metas are the two headers of a file.
type metas struct {
	pageSize uint64
	pages    [2][]byte // as read
}

func readMetas(file io.ReaderAt) (*metas, error) {
	first := make([]byte, pageHeader+metaSize)
	if _, err := file.ReadAt(first, 0); err != nil {
		return nil, err
	}
	m := &metas{pageSize: uint64(native.Uint32(first[pageHeader+8:]))}
	if m.pageSize < 1024 || m.pageSize > 1<<24 {
		return nil, fmt.Errorf("pages of %d bytes", m.pageSize)
	}
	for i := range m.pages {
		page := make([]byte, m.pageSize)
		if _, err := file.ReadAt(page, int64(m.pageSize)*int64(i)); err != nil {
			return nil, err
		}
		m.pages[i] = page
		b := page[pageHeader:]
		outside := slices.ContainsFunc(page[pageHeader+metaSize:], func(b byte) bool { return b != 0 })
		if native.Uint64(page) != uint64(i) || native.Uint16(page[8:]) != metaPage || native.Uint16(page[10:]) != 0 || native.Uint32(page[12:]) != 0 || outside ||
			native.Uint32(b) != boltMagic || native.Uint32(b[4:]) != boltVersion || uint64(native.Uint32(b[8:])) != m.pageSize || native.Uint32(b[12:]) != 0 {
			return nil, fmt.Errorf("page %d: header is wrong", i)
		}
	}
	return m, nil
}

// choose says which state is the last. Of a transaction, the pages are written and flushed first, and then its header over
// that of the transaction before the last. So one header may be torn: begun by the new, ended by the old. Where it has come to the
// transaction's number, all that the number and the sum stand for is there, and the state is taken: it may have been promised, and only
// its sum be damaged since. Before that, the state of the other header is the last that was promised. A header that is wrong in
// any other way is damaged, and nobody knows what it said.
func (m *metas) choose() (last boltMeta, mend *mending, err error) {
	var state [2]boltMeta
	var whole [2]bool
	for i, page := range m.pages {
		state[i], whole[i] = readMeta(page[pageHeader : pageHeader+metaSize])
		if whole[i] && state[i].txid%2 != uint64(i) {
			return boltMeta{}, nil, fmt.Errorf("page %d: header is of another page", i)
		}
	}
	switch {
	case whole[0] && whole[1]:
		last, before := state[0], state[1]
		if before.txid > last.txid {
			last, before = before, last
		}
		if last.txid != before.txid+1 {
			return boltMeta{}, nil, fmt.Errorf("transaction %d follows %d", last.txid, before.txid)
		}
		return last, nil, nil
	case !whole[0] && !whole[1]:
		return boltMeta{}, nil, errors.New("pages 0 and 1: headers are wrong")
	}
	torn := 0
	if whole[0] {
		torn = 1
	}
	other, page := state[1-torn], m.pages[torn]
	b := page[pageHeader : pageHeader+metaSize]
	next, old := native.AppendUint64(nil, other.txid+1), native.AppendUint64(nil, other.txid-1)
	damaged := fmt.Errorf("page %d: header is damaged", torn)
	switch {
	case !isTorn(b[metaTxid:metaSum], next, old), oneBitOff(b, next):
		return boltMeta{}, nil, damaged
	case state[torn].txid != other.txid+1, oneBitOff(b, old): // the latter is damage to what is not the last, or as little of the new
		return other, nil, nil
	case state[torn].freelist != noFreelist, state[torn].root == other.root:
		return boltMeta{}, nil, damaged
	}
	mended := bytes.Clone(page)
	copy(mended[pageHeader+metaSum:], state[torn].sum)
	return state[torn], &mending{at: int64(m.pageSize) * int64(torn), was: page, new: mended}, nil
}

// isTorn says whether b begins as next does and ends as old.
func isTorn(b, next, old []byte) bool {
	for i := range len(b) + 1 {
		if bytes.Equal(b[:i], next[:i]) && bytes.Equal(b[i:], old[i:]) {
			return true
		}
	}
	return false
}

// oneBitOff says whether a header would be whole, and that of a transaction, with one bit turned before its sum.
func oneBitOff(b, txid []byte) bool {
	b = bytes.Clone(b)
	for bit := range metaSum * 8 {
		b[bit/8] ^= 1 << (bit % 8)
		if bytes.Equal(b[metaTxid:metaSum], txid) && bytes.Equal(sumMeta(b), b[metaSum:metaSize]) {
			return true
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	return false
}

// boltCheck is the reading of one file.
type boltCheck struct {
	file  io.ReaderAt
	size  uint64 // of a page
	pages uint64
	seen  map[uint64]bool
}

// checkBolt checks a whole file. What it says to mend has to be, or bbolt would not see the state that was checked.
func checkBolt(file io.ReaderAt, length int64) (*mending, error) {
	m, err := readMetas(file)
	if err != nil {
		return nil, err
	}
	meta, mend, err := m.choose()
	if err != nil {
		return nil, err
	}
	if have := uint64(length) / m.pageSize; have < meta.pages {
		return nil, fmt.Errorf("it is cut off: %d of %d pages are there", have, meta.pages)
	}
	c := &boltCheck{file: file, size: m.pageSize, pages: meta.pages, seen: map[uint64]bool{}}

	records := map[string]func(key, value []byte) error{
		string(logBucket): checkLog(),
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
	return mend, err
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
