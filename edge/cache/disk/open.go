package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/perigee-net/perigee/cluster/file"
)

// The names in the folder.
const (
	lockName   = "lock"
	stateName  = "state"
	segmentEnd = ".segment" // behind the number, eight hexadecimal digits
)

// stateMagic begins the file of the state: it, a segment and an offset (4 bytes each) up to which all was flushed, the state, and the
// CRC-32C of all that (4).
const (
	stateMagic = "pgstate\x01"
	stateFixed = len(stateMagic) + 12
)

func segmentName(number uint32) string { return fmt.Sprintf("%08x%s", number, segmentEnd) }

func segmentNumber(name string) (uint32, bool) {
	digits, ok := strings.CutSuffix(name, segmentEnd)
	n, err := strconv.ParseUint(digits, 16, 32)
	return uint32(n), ok && err == nil && segmentName(uint32(n)) == name
}

func sumOf(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func writeAll(b []byte) func(*file.Writer) error {
	return func(w *file.Writer) error {
		_, err := w.Write(b)
		return err
	}
}

// Open opens the store in a folder, or makes it. What is damaged in it is left out. It reads the index of each segment, and
// all of those that have none: the last one, if the process was killed. The folder is locked until Close.
func Open(cfg Config) (*Store, error) {
	k := defaults()
	if cfg.System.Open != nil {
		k.system = cfg.System
	}
	return open(cfg, k)
}

func open(cfg Config, k knobs) (_ *Store, err error) {
	limit := max(cfg.Bytes, k.least)
	s := &Store{
		dir: cfg.Dir, limit: limit, segment: k.segment, objects: cfg.Objects, pending: cfg.Pending, system: k.system,
		index: map[uint64]slot{}, byNumber: map[uint32]*segment{}, queued: map[uint64]*item{},
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	if s.segment == 0 {
		s.segment = min(limit/perStore, maxSegment)
	}
	if s.carryRoom = s.segment / 4; s.objects <= 0 {
		s.objects = int(limit / bytesPerObject)
	}
	if s.pending <= 0 {
		s.pending = pendingBytes
	}
	s.spoilt = map[*segment]bool{}
	s.blocks.New = func() any { return new([blockSize]byte) }
	defer func() {
		if err != nil {
			s.discard()
			err = fmt.Errorf("open the cache's folder %s: %w", cfg.Dir, err)
		}
	}()
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	if _, err := s.names(); err != nil {
		return nil, err // before anything is made in it
	}
	if err := s.takeLock(); err != nil {
		return nil, err
	}
	numbers, err := s.names()
	if err != nil {
		return nil, err
	}
	os.Remove(filepath.Join(s.dir, stateName+".new"))
	if err := s.load(numbers); err != nil {
		return nil, err
	}
	go s.run()
	return s, nil
}

// discard lets go of a store that is not opened.
func (s *Store) discard() {
	for _, g := range s.byNumber {
		g.file.Close()
	}
	if s.lock != nil {
		s.lock.Close()
	}
}

// names looks at what is in the folder. What is not a store's is left alone, and the folder refused.
func (s *Store) names() (numbers []uint32, err error) {
	names, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		number, ok := segmentNumber(n.Name())
		switch {
		case ok && n.Type().IsRegular():
			numbers = append(numbers, number)
		case n.Name() == lockName || n.Name() == stateName || n.Name() == stateName+".new":
		case n.Name() == "lost+found": // of the file system, where the folder is a disk of its own
		default:
			return nil, fmt.Errorf("%w: %s", ErrForeign, n.Name())
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

func (s *Store) takeLock() error {
	f, err := os.OpenFile(filepath.Join(s.dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrInUse
		}
		return fmt.Errorf("lock: %w", err)
	}
	s.lock = f
	return nil
}

// loaded is what was found in a segment.
type loaded struct {
	*segment
	header header
	whole  uint32 // up to there nothing is missing in it
	sealed bool   // it has its index
}

// load reads all segments into the index, and the state.
func (s *Store) load(numbers []uint32) error {
	state, segment, offset := s.readState()
	var all []loaded
	for _, number := range numbers {
		s.last = number // even if it goes: a number is not used again
		g, err := s.loadSegment(number)
		if errors.Is(err, errDamaged) {
			s.counts.segments.Add(1)
			err = s.system.Remove(filepath.Join(s.dir, segmentName(number)))
			if err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		if n := len(all); n > 0 && all[n-1].sealed {
			all[n-1].entries = nil // the file has them
		}
		all = append(all, g)
	}
	if state != nil && nothingMissing(all, segment, offset) {
		s.state, s.stateSegment, s.stateOffset = state, segment, offset
		s.stateRoom.Store(2 * stateSize(state))
	} else if err := s.forgetState(); err != nil {
		return err
	}
	for i, g := range all {
		s.inOrder = append(s.inOrder, g.segment)
		if i > 0 && !g.follows(all[i-1]) {
			// What is missing is missing. From now on this is what must be there.
			g.header.before, g.header.ended = s.before, s.ended
			if _, err := s.system.WriteAt(g.file, g.header.bytes(), 0); err != nil {
				return err
			}
			s.soil(g.segment)
		}
		s.before, s.ended = g.segment.segment, uint32(g.end)
		last := i+1 == len(all)
		switch {
		case last && g.end < s.segment*3/4 && g.segment.segment == s.last:
			if err := s.system.Truncate(g.file, g.end); err != nil {
				return err
			}
			s.active, s.tail = g.segment, g.end
			s.soil(g.segment)
		case g.sealed:
			g.entries = nil
			s.sealed += g.size
		default:
			if err := s.system.Truncate(g.file, g.end); err != nil {
				return err
			}
			s.sealSegment(g.segment)
			s.soil(g.segment)
		}
	}
	s.bytes.Store(s.used())
	for len(s.inOrder) > 0 && (s.used() > s.limit || len(s.index) > s.objects) { // the bounds may be others than they were
		if err := s.evict(false); err != nil {
			return err
		}
	}
	return nil
}

// nothingMissing says whether all records are there up to an offset of a segment, from the oldest segment on.
func nothingMissing(all []loaded, segment, offset uint32) bool {
	for i, g := range all {
		switch number := g.segment.segment; {
		case number > segment:
			return true
		case number == segment:
			return g.whole >= offset
		case i+1 == len(all) || !all[i+1].follows(g):
			return false
		}
	}
	return true
}

// follows says whether nothing is missing between the segment before, and this one.
func (g loaded) follows(o loaded) bool {
	return g.header.before == o.segment.segment && g.header.ended <= o.whole
}

// loadSegment reads a segment into the index.
func (s *Store) loadSegment(number uint32) (loaded, error) {
	path := filepath.Join(s.dir, segmentName(number))
	f, err := s.system.Open(path, os.O_RDWR)
	if err != nil {
		return loaded{}, err
	}
	var b [headerSize]byte
	info, err := f.Stat()
	if err == nil {
		_, err = s.system.ReadAt(f, b[:], 0)
	}
	var h header
	if err == nil {
		h, err = parseHeader(b[:], number)
	}
	if err != nil {
		f.Close()
		return loaded{}, errDamaged
	}
	g := loaded{segment: &segment{seal: h.seal, path: path, file: f}, header: h}
	g.pins.Store(1)
	s.byNumber[number] = g.segment
	entries, end, err := readFooter(reader{s, f}, info.Size(), h.seal)
	if err == nil {
		g.sealed, g.whole = true, end
	} else {
		found := scan(reader{s, f}, info.Size(), h.seal)
		entries, end, g.whole = found.entries, found.end, found.whole
		if found.end != found.whole {
			s.counts.segments.Add(1)
		}
	}
	g.end, g.entries, g.size = int64(end), entries, roundUp(info.Size(), aligned)
	for _, e := range entries {
		if e.head == 0 || s.byNumber[e.bodySegment] == nil {
			delete(s.index, e.hash)
			continue
		}
		s.index[e.hash] = slot{number, e.offset, e.head, e.bodySegment}
	}
	return g, nil
}

// readState reads the state, and up to where all was flushed when it was set.
func (s *Store) readState() (state []byte, segment, offset uint32) {
	path := filepath.Join(s.dir, stateName)
	if info, err := os.Stat(path); err != nil || info.Size() > maxState+int64(stateFixed) {
		return nil, 0, 0
	}
	b, err := os.ReadFile(path)
	if err != nil || len(b) < stateFixed || string(b[:len(stateMagic)]) != stateMagic ||
		sumOf(b[:len(b)-4]) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return nil, 0, 0
	}
	b = b[len(stateMagic) : len(b)-4]
	return b[8:], binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
}

// forgetState removes the state, for good.
func (s *Store) forgetState() error {
	err := s.system.Remove(filepath.Join(s.dir, stateName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.system.SyncDir(s.dir)
}
