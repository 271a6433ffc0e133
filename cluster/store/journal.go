package store

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/perigee-net/perigee/cluster/file"
)

// journalFile is the journal's name in a data folder.
const journalFile = "state.journal"

// When the deltas in the file outgrow the snapshot before them, or journalLeast if that is more, or are more than
// journalDeltas, the file is written anew: so that it stays near the size of the state, and is read fast.
const (
	journalLeast  = 1 << 20
	journalDeltas = 1 << 14
)

// Journal keeps on disk what a node knows of the agreement: what it serves when it starts again and reaches nobody. It is not Raft's
// log, and no promise to the others depends on it.
//
// The file is a snapshot of the state and the deltas since, each in a frame with its checksum. A frame at the end that is
// not whole was being written when the process or the machine died, and is cut off; no Save that returned is lost with it.
// A frame that is not whole with another behind it is damage, and refused. Damage within the very last frame cannot be
// told from the first, and costs the last change.
type Journal struct {
	// Edits says whether large objects may be written as edits of what the file has of them: by releases that do not read such the file would
	// not be read at all. nil: never. It is set before the first Save.
	Edits func() bool

	path   string
	system file.System
	limits limits

	mu      sync.Mutex
	closed  bool
	file    *os.File // nil: there is none yet
	last    *State   // what it holds
	stamp   stamp
	size    int64 // of the frames that are whole
	deltas  int
	suspect bool   // the file may not hold what was written: it is not appended to any more
	room    limits // for deltas, until the file is written anew

	saves, rewrites, failures uint64
}

// limits are how much of deltas there may be.
type limits struct {
	bytes  int64
	deltas int
}

// OpenJournal opens the journal in a data folder and reads the state that was saved last; nil if there is none yet. A file that is
// damaged is an error that names it.
func OpenJournal(dir string) (*Journal, *State, error) {
	return openJournal(dir, file.OS(), limits{journalLeast, journalDeltas})
}

func openJournal(dir string, system file.System, least limits) (*Journal, *State, error) {
	j := &Journal{path: filepath.Join(dir, journalFile), system: system, limits: least}
	if err := j.system.Remove(j.aside()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err // names the file itself
	}
	f, err := j.system.Open(j.path, os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	j.file = f
	if err := j.read(); err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("open %s: %w", j.path, err)
	}
	// What was read may be on its way to the disk, and so may the name: who wrote it may have died before it was there. A disk
	// that cannot take it does not keep a node from starting.
	j.suspect = j.settle() != nil
	return j, j.last, nil
}

// settle makes the file that was read, without what is not whole at its end, be on disk under its name.
func (j *Journal) settle() error {
	if err := j.system.Truncate(j.file, j.size); err != nil {
		return err
	}
	if err := j.system.Sync(j.file); err != nil {
		return err
	}
	return j.system.SyncDir(filepath.Dir(j.path))
}

// aside is where the file is written anew.
func (j *Journal) aside() string { return j.path + ".new" }

// Save puts a state on disk before it returns. On an error, such as that of a full disk, what was saved before stands, and
// the next Save tries again.
func (j *Journal) Save(s *State) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return fmt.Errorf("save %s: %w", j.path, os.ErrClosed)
	}
	err := j.save(s)
	if err != nil {
		j.failures++
		return fmt.Errorf("save %s: %w", j.path, err)
	}
	j.saves++
	return nil
}

func (j *Journal) save(s *State) error {
	d, ok := j.delta(s)
	switch {
	case !ok || j.suspect:
		return j.rewrite(s)
	case d.From == d.To:
		return nil
	}
	if err := j.append(j.edited(d)); err != nil {
		return err
	}
	j.last = s
	if j.room.bytes <= 0 || j.room.deltas <= 0 {
		if err := j.rewrite(s); err != nil {
			// The state is on disk, though in a file that is longer than it should be. To try at each change would be too dear.
			j.failures++
			j.room = limits{max(j.size, j.limits.bytes), max(j.deltas, j.limits.deltas)}
		}
	}
	return nil
}

// delta is what leads from the file to the state. It is false if there is none, or if the state has not come from the one in
// the file: it may be of another cluster.
func (j *Journal) delta(s *State) (Delta, bool) {
	if j.last == nil {
		return Delta{}, false
	}
	d, ok := s.Since(j.last.Position())
	return d, ok && j.last.Table.sumAfter(d.Spec) == s.Table.sum && j.last.Own.sumAfter(d.Own) == s.Own.sum
}

// edited is the delta with edits in the place of those large objects that differ little from what the file has of them, if such may be written.
func (j *Journal) edited(d Delta) Delta {
	if j.Edits == nil || bytesOf(d.Spec.Put) < editsFrom || !j.Edits() {
		return d
	}
	for i, o := range d.Spec.Put {
		before, found := j.last.Table.Get(o.Kind, o.Name)
		if !found || len(o.Bytes) < editsFrom {
			continue
		}
		pieces, ok := piecesOf(before.Bytes, o.Bytes, len(o.Bytes)/2)
		if !ok || !lead(before.Bytes, pieces, o.Bytes) { // what would not would make the file one that is damaged
			continue
		}
		if d.Spec.edited == nil {
			d.Spec.Put = slices.Clone(d.Spec.Put)
		}
		d.Spec.Put[i].Bytes, d.Spec.Put[i].digest = pieces, 0
		d.Spec.edited = append(d.Spec.edited, deltaEdit{i, before.Revision})
	}
	return d
}

// editShare is by how much of an edited object a delta counts beside its own length: as so much longer it takes to read.
const editShare = 32

// taken takes a frame of a delta, whose edited objects have so many bytes when they are whole, out of the room for deltas.
func (j *Journal) taken(frame int64, edited int) {
	j.size += frame
	j.deltas++
	j.room.bytes -= frame + int64(edited/editShare)
	j.room.deltas--
}

// append writes a delta behind what there is.
func (j *Journal) append(d Delta) error {
	payload, err := EncodeDelta(d)
	if err != nil {
		return err
	}
	frame := append(j.stamp.head(j.size, uint64(len(payload))), payload...)
	frame = append(frame, j.stamp.sum(j.size, payload)...)
	_, err = j.system.WriteAt(j.file, frame, j.size)
	if err == nil {
		if err = j.system.Sync(j.file); err != nil {
			j.suspect = true // what the system could not write, it may have forgotten: to ask again would be answered by a lie
		}
	}
	if err != nil {
		j.system.Truncate(j.file, j.size) // if that fails, the next frame is written over this one
		return err
	}
	edited := 0
	for _, e := range d.Spec.edited {
		size, _ := binary.Uvarint(d.Spec.Put[e.At].Bytes) // with which pieces begin
		edited += int(size)
	}
	j.taken(int64(len(frame)), edited)
	return nil
}

// rewrite makes a new file that holds only a snapshot of the state. Until its name stands, the old file does.
func (j *Journal) rewrite(s *State) error {
	f, err := j.system.Open(j.aside(), os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	stamp := newStamp()
	size, err := j.writeSnapshot(f, stamp, s)
	if err == nil {
		err = j.system.Sync(f)
	}
	if err == nil {
		err = j.system.Rename(j.aside(), j.path)
	}
	if err != nil {
		f.Close()
		j.system.Remove(j.aside())
		return err
	}
	if j.file != nil {
		j.file.Close()
	}
	j.file, j.stamp, j.size, j.deltas = f, stamp, size, 0
	j.room = limits{max(size, j.limits.bytes), j.limits.deltas}
	j.suspect = true // until the name stands for certain
	if err := j.system.SyncDir(filepath.Dir(j.path)); err != nil {
		return err
	}
	j.suspect = false
	j.last = s
	j.rewrites++
	return nil
}

// writeSnapshot writes a whole file and returns its size.
func (j *Journal) writeSnapshot(f *os.File, stamp stamp, s *State) (size int64, err error) {
	w := j.system.Writer(f, 0)
	if _, err := w.Write(append([]byte(journalMagic), stamp[:]...)); err != nil {
		return 0, err
	}
	if _, err := w.Write(make([]byte, headSize)); err != nil { // its place
		return 0, err
	}
	payload := &counted{sum: stamp.hash(journalStart), to: bufio.NewWriterSize(w, 256<<10)}
	if err := WriteState(payload, s); err != nil {
		return 0, err
	}
	payload.to.Write(payload.sum.Sum(nil))
	if err := payload.to.Flush(); err != nil {
		return 0, err
	}
	if _, err := w.WriteAt(stamp.head(journalStart, uint64(payload.size)), journalStart); err != nil {
		return 0, err
	}
	return journalStart + headSize + payload.size + sha256.Size, nil
}

// counted counts and sums up what is written.
type counted struct {
	to   *bufio.Writer
	sum  hash.Hash
	size int64
}

func (c *counted) Write(b []byte) (int, error) {
	c.sum.Write(b)
	c.size += int64(len(b))
	return c.to.Write(b)
}

// Close ends the journal. What was saved stays.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil
	}
	j.closed = true
	if j.file == nil {
		return nil
	}
	return j.file.Close()
}

// Counters counts what was written since the start.
func (j *Journal) Counters() map[string]uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return map[string]uint64{
		"journal_bytes":          uint64(j.size),
		"journal_saves_total":    j.saves,
		"journal_rewrites_total": j.rewrites,
		"journal_failures_total": j.failures,
	}
}

// The file begins with journalMagic and its stamp; at journalStart the first frame begins. A frame is a head of headSize bytes, the
// payload, and its SHA-256.
const (
	journalMagic = "perigee-journal\x01"
	journalStart = int64(len(journalMagic) + len(stamp{}))
	headSize     = 24 // mark, length of the payload, sum of both
)

// stamp is the number, made by chance, that a file's frames are recognised by: nothing that is in an object can look like a frame.
type stamp [16]byte

func newStamp() (s stamp) {
	rand.Read(s[:])
	return s
}

// mark is what every frame of the file begins with.
func (s stamp) mark() []byte {
	sum := sha256.Sum256(s[:])
	return sum[:8]
}

// head is the head of a frame at a place in the file.
func (s stamp) head(at int64, length uint64) []byte {
	head := binary.BigEndian.AppendUint64(s.mark(), length)
	h := s.hash(at)
	h.Write(head)
	return append(head, h.Sum(nil)[:8]...)
}

// sum is the sum of a frame's payload.
func (s stamp) sum(at int64, payload []byte) []byte {
	h := s.hash(at)
	h.Write(payload)
	return h.Sum(nil)
}

func (s stamp) hash(at int64) hash.Hash {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint64(s[:], uint64(at)))
	return h
}

// read reads the file, up to what is not whole at its end.
func (j *Journal) read() error {
	info, err := j.file.Stat()
	if err != nil {
		return err
	}
	end := info.Size()
	start := make([]byte, journalStart)
	if _, err := j.file.ReadAt(start, 0); err != nil && err != io.EOF {
		return err
	}
	if !bytes.HasPrefix(start, []byte(journalMagic)) {
		return errDamaged
	}
	copy(j.stamp[:], start[len(journalMagic):])

	payload, whole, err := j.frame(journalStart, end)
	if err != nil {
		return err
	}
	if !whole { // it was there before the file had its name
		return errDamaged
	}
	if j.last, err = ReadState(payload); err != nil {
		return err
	}
	j.size = journalStart + headSize + payload.Size() + sha256.Size
	j.room = limits{max(j.size, j.limits.bytes), j.limits.deltas}

	all := newFold(j.last)
	for j.size < end {
		payload, whole, err := j.frame(j.size, end)
		if err != nil {
			return err
		}
		if !whole {
			if err := j.torn(end); err != nil {
				return err
			}
			break
		}
		data, err := io.ReadAll(payload)
		if err != nil {
			return err
		}
		d, err := DecodeDelta(data)
		if err != nil {
			return err
		}
		edited, err := all.add(d)
		if err != nil {
			return err
		}
		j.taken(headSize+payload.Size()+sha256.Size, edited)
	}
	j.last, err = j.last.WithDelta(all.delta())
	return err
}

// frame is the payload of the frame at a place. It is false if the frame is not whole.
func (j *Journal) frame(at, end int64) (payload *io.SectionReader, whole bool, err error) {
	head := make([]byte, headSize)
	if _, err := j.file.ReadAt(head, at); err == io.EOF {
		return nil, false, nil
	} else if err != nil {
		return nil, false, err
	}
	length := binary.BigEndian.Uint64(head[8:])
	if !bytes.Equal(head, j.stamp.head(at, length)) || length > uint64(end-at-headSize) || end-at-headSize-int64(length) < sha256.Size {
		return nil, false, nil
	}
	want := make([]byte, sha256.Size)
	if _, err := j.file.ReadAt(want, at+headSize+int64(length)); err != nil {
		return nil, false, err
	}
	payload = io.NewSectionReader(j.file, at+headSize, int64(length))
	sum := j.stamp.hash(at)
	if _, err := io.Copy(sum, payload); err != nil {
		return nil, false, err
	}
	payload.Seek(0, io.SeekStart)
	return payload, bytes.Equal(sum.Sum(nil), want), nil
}

// torn is an error if what is behind the whole frames is not one that was being written. Frames are written one by one, so where
// another begins in it, what is before that was whole once.
func (j *Journal) torn(end int64) error {
	rest := make([]byte, end-j.size)
	if _, err := j.file.ReadAt(rest, j.size); err != nil {
		return err
	}
	if bytes.Contains(rest[1:], j.stamp.mark()) {
		return errDamaged
	}
	return nil
}

// fold makes one delta of many, so that a file with thousands of them is read without thousands of copies of the table.
type fold struct {
	from, to  Position
	spec, own foldedTable
}

type foldedTable struct {
	before  Table
	edits   map[Ref]edit
	records []Record
	sum     uint64
}

func newFold(s *State) *fold {
	table := func(t Table) foldedTable { return foldedTable{before: t, edits: map[Ref]edit{}, sum: t.sum} }
	return &fold{from: s.Position(), to: s.Position(), spec: table(s.Table), own: table(s.Own)}
}

// add adds a delta, and returns how many bytes its edited objects have when they are whole.
func (f *fold) add(d Delta) (edited int, err error) {
	if d.From != f.to || !d.To.AtLeast(d.From) {
		return 0, fmt.Errorf("%w: the change after %v leads from %v to %v", errDamaged, f.to, d.From, d.To)
	}
	f.to = d.To
	spec, err := f.spec.add(d.Spec)
	own, wrong := f.own.add(d.Own)
	if err = errors.Join(err, wrong); err != nil {
		return 0, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return spec + own, nil
}

// stands is an object as the deltas so far have left it; the zero Object is none.
func (t *foldedTable) stands(r Ref) Object {
	if e, ok := t.edits[r]; ok {
		if e.delete {
			return Object{}
		}
		return e.Object
	}
	o, _ := t.before.Get(r.Kind, r.Name)
	return o
}

func (t *foldedTable) add(d TableDelta) (edited int, err error) {
	of := d.edited
	if d, err = d.wholeOver(t.stands); err != nil {
		return 0, err
	}
	for _, e := range of {
		edited += len(d.Put[e.At].Bytes)
	}
	for _, o := range d.Put {
		t.edits[o.Ref()] = edit{o, false}
	}
	for _, r := range d.Delete {
		t.edits[r] = edit{Object{Kind: r.Kind, Name: r.Name}, true}
	}
	t.records = append(t.records, d.Records...)
	if len(t.records) > 2*maxHistory {
		t.records = slices.Clone(t.records[len(t.records)-maxHistory:])
	}
	t.sum = d.Sum
	return edited, nil
}

func (f *fold) delta() Delta {
	return Delta{From: f.from, To: f.to, Spec: f.spec.delta(), Own: f.own.delta()}
}

func (t *foldedTable) delta() TableDelta {
	d := TableDelta{Records: t.records, Sum: t.sum}
	for _, e := range slices.SortedFunc(maps.Values(t.edits), compareEdits) {
		if e.delete {
			d.Delete = append(d.Delete, e.Ref())
		} else {
			d.Put = append(d.Put, e.Object)
		}
	}
	return d
}
