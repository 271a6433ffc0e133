package store

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// What is written, in the log, in snapshots, in the journal and to followers, has one form: a byte that names the format; a header
// in JSON with its length (uvarint) before it; then the objects and records that the header counts. An object is its
// revision, kind, name and bytes, each of the last three with its length before it. A record is a header like the first, and the
// objects that it counts. A field of a header that a release does not know is passed over; what would mean something
// else to an older release gets a new format.
const (
	formatPlain    = 3
	formatDeflated = 4 // all behind the first byte is compressed (RFC 1951)
	formatEdited   = 5 // of a change or a delta, some of whose objects are edits; behind the first byte it is in one of the other two
)

// Format is the newest format that this release reads. What others may not read is not written for them.
const Format = formatEdited

const (
	// deflateFrom is the length from which a change or a delta is compressed: it has to travel to every voter within the time-out
	// of one request. Below it, the work would cost more than the bytes.
	deflateFrom = 16 << 10

	// What is read is bounded well above what any release lets in. A claimed length is believed only as far as bytes come.
	maxHeader     = 256 << 20
	maxObjectRead = 16 << 20
	maxChangeRead = 512 << 20 // of a change or a delta, inflated
	maxStateRead  = 2 << 30   // of a state, inflated
)

// A FormatError says that something was written by another release, in a format that this one does not know.
type FormatError struct {
	Format byte
}

func (e *FormatError) Error() string {
	if e.Format < formatPlain {
		return fmt.Sprintf("it is in format %d, of a release before this one", e.Format)
	}
	return fmt.Sprintf("it is in format %d, of a newer release", e.Format)
}

type changeHeader struct {
	Space  Space     `json:"space,omitempty"`
	ID     string    `json:"id,omitempty"`
	Expect *uint64   `json:"expect,omitempty"`
	Author string    `json:"author,omitempty"`
	Note   string    `json:"note,omitempty"`
	Time   time.Time `json:"time"`
	Put    int       `json:"put,omitempty"`
	Delete []Ref     `json:"delete,omitempty"`
}

type stateHeader struct {
	Spec    tableHeader `json:"spec"`
	Own     tableHeader `json:"own"`
	Answers []answer    `json:"answers,omitempty"`
}

type tableHeader struct {
	Revision uint64 `json:"revision"`
	Objects  int    `json:"objects,omitempty"`
	Records  int    `json:"records,omitempty"`
	Sum      uint64 `json:"sum"`
}

type recordHeader struct {
	Revision uint64    `json:"revision"`
	Time     time.Time `json:"time"`
	Author   string    `json:"author,omitempty"`
	Note     string    `json:"note,omitempty"`
	Put      []Ref     `json:"put,omitempty"`
	Delete   []Ref     `json:"delete,omitempty"`
	Bare     bool      `json:"bare,omitempty"`
	Before   int       `json:"before,omitempty"`
}

type deltaHeader struct {
	From Position         `json:"from"`
	To   Position         `json:"to"`
	Spec tableDeltaHeader `json:"spec"`
	Own  tableDeltaHeader `json:"own"`
}

type tableDeltaHeader struct {
	Put     int    `json:"put,omitempty"`
	Delete  []Ref  `json:"delete,omitempty"`
	Records int    `json:"records,omitempty"`
	Sum     uint64 `json:"sum"`

	Edited []deltaEdit `json:"edited,omitempty"`
}

// encodeChange writes a change for the log.
func encodeChange(c Change) ([]byte, error) {
	var b bytes.Buffer
	if c.patched {
		b.WriteByte(formatEdited)
	}
	err := encode(&b, bytesOf(c.Put) >= deflateFrom, changeHeader{
		Space: c.Space, ID: c.ID, Expect: c.Expect, Author: c.Author, Note: c.Note, Time: c.Time, Put: len(c.Put), Delete: c.Delete,
	}, func(e *encoder) { e.objects(c.Put) })
	return b.Bytes(), err
}

// decodeChange reads what encodeChange wrote.
func decodeChange(data []byte) (Change, error) {
	var c Change
	edits := len(data) > 0 && data[0] == formatEdited // of a change
	if edits {
		data = data[1:]
	}
	err := decodeBytes(data, func(d *decoder) {
		var h changeHeader
		d.header(&h)
		if edits && h.Expect == nil {
			d.fail(errors.New("it has edits, and does not say of which revision"))
		}
		if h.Space > Own {
			d.fail(fmt.Errorf("it is of space %d, of a newer release", h.Space))
		}
		c = Change{Space: h.Space, ID: h.ID, Expect: h.Expect, Author: h.Author, Note: h.Note, Time: h.Time, Delete: h.Delete, patched: edits}
		c.Put = d.objects(h.Put)
	})
	return c, err
}

// EncodeDelta writes a delta.
func EncodeDelta(d Delta) ([]byte, error) {
	var b bytes.Buffer
	part := func(t TableDelta) tableDeltaHeader {
		return tableDeltaHeader{Put: len(t.Put), Delete: t.Delete, Records: len(t.Records), Sum: t.Sum, Edited: t.edited}
	}
	if len(d.Spec.edited)+len(d.Own.edited) > 0 {
		b.WriteByte(formatEdited)
	}
	err := encode(&b, bytesOf(d.Spec.Put)+bytesOf(d.Own.Put) >= deflateFrom,
		deltaHeader{From: d.From, To: d.To, Spec: part(d.Spec), Own: part(d.Own)},
		func(e *encoder) {
			for _, t := range []TableDelta{d.Spec, d.Own} {
				e.objects(t.Put)
				for _, r := range t.Records {
					e.record(r.withoutFormer())
				}
			}
		})
	return b.Bytes(), err
}

// DecodeDelta reads what EncodeDelta wrote. Whether it fits is for WithDelta to say.
func DecodeDelta(data []byte) (Delta, error) {
	var delta Delta
	edits := len(data) > 0 && data[0] == formatEdited // of a delta
	if edits {
		data = data[1:]
	}
	err := decodeBytes(data, func(d *decoder) {
		var h deltaHeader
		d.header(&h)
		part := func(h tableDeltaHeader) TableDelta {
			t := TableDelta{Delete: h.Delete, Sum: h.Sum, Put: d.objects(h.Put)}
			if edits {
				t.edited = h.Edited
			}
			for i, e := range t.edited {
				if e.At < 0 || e.At >= len(t.Put) || i > 0 && e.At <= t.edited[i-1].At {
					d.fail(fmt.Errorf("it says that object %d of %d is an edit", e.At, len(t.Put)))
				}
			}
			for range d.count(h.Records, maxHistory) {
				t.Records = append(t.Records, d.record().withoutFormer())
			}
			return t
		}
		delta = Delta{From: h.From, To: h.To, Spec: part(h.Spec), Own: part(h.Own)}
	})
	if err != nil {
		return Delta{}, fmt.Errorf("read delta: %w", err)
	}
	return delta, nil
}

// WriteState writes a state so that ReadState reads the same.
func WriteState(w io.Writer, s *State) error {
	tables := []*Table{&s.Table, &s.Own}
	head := func(t *Table) tableHeader {
		return tableHeader{Revision: t.Revision, Objects: len(t.Objects), Records: len(t.History), Sum: t.sum}
	}
	return encode(w, true, stateHeader{Spec: head(tables[0]), Own: head(tables[1]), Answers: s.answers}, func(e *encoder) {
		for _, t := range tables {
			e.objects(t.Objects)
			for _, r := range t.History {
				e.record(r)
			}
		}
	})
}

// ReadState reads what WriteState wrote, to its end.
func ReadState(from io.Reader) (*State, error) {
	s := &State{}
	err := decode(from, maxStateRead, func(d *decoder) {
		var h stateHeader
		d.header(&h)
		s.Table, s.Own, s.answers = d.table(h.Spec), d.table(h.Own), h.Answers
	})
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	return s, nil
}

func bytesOf(objects []Object) int {
	n := 0
	for _, o := range objects {
		n += len(o.Bytes)
	}
	return n
}

// deflaters are those that are not in use: each takes a megabyte.
var deflaters = sync.Pool{New: func() any {
	z, err := flate.NewWriter(nil, flate.BestSpeed)
	if err != nil {
		panic("store: " + err.Error()) // there is that level
	}
	return z
}}

// encode writes one thing: its format, its header, and what body writes.
func encode(w io.Writer, deflated bool, header any, body func(*encoder)) error {
	format, end := byte(formatPlain), func() error { return nil }
	if deflated {
		format = formatDeflated
	}
	if _, err := w.Write([]byte{format}); err != nil {
		return err
	}
	if deflated {
		z := deflaters.Get().(*flate.Writer)
		defer deflaters.Put(z)
		z.Reset(w)
		w, end = z, z.Close
	}
	e := &encoder{w: bufio.NewWriterSize(w, 16<<10)}
	e.header(header)
	body(e)
	if e.err != nil {
		return e.err
	}
	if err := e.w.Flush(); err != nil {
		return err
	}
	return end()
}

// encoder writes until the first error, which it keeps.
type encoder struct {
	w       *bufio.Writer // keeps its own first error, which Flush returns
	scratch []byte
	err     error
}

func (e *encoder) header(h any) {
	head, err := json.Marshal(h)
	if err != nil && e.err == nil {
		e.err = err
	}
	e.bytes(head)
}

func (e *encoder) uvarint(v uint64) {
	e.scratch = binary.AppendUvarint(e.scratch[:0], v)
	e.w.Write(e.scratch)
}

func (e *encoder) bytes(b []byte) {
	e.uvarint(uint64(len(b)))
	e.w.Write(b)
}

func (e *encoder) text(s string) {
	e.uvarint(uint64(len(s)))
	e.w.WriteString(s)
}

func (e *encoder) objects(objects []Object) {
	for _, o := range objects {
		e.uvarint(o.Revision)
		e.text(o.Kind)
		e.text(o.Name)
		e.bytes(o.Bytes)
	}
}

func (e *encoder) record(r Record) {
	e.header(recordHeader{
		Revision: r.Revision, Time: r.Time, Author: r.Author, Note: r.Note,
		Put: r.Put, Delete: r.Delete, Bare: r.bare, Before: len(r.before),
	})
	e.objects(r.before)
}

// decodeBytes is decode of all of the bytes of a change or a delta.
func decodeBytes(data []byte, body func(*decoder)) error {
	from := bytes.NewReader(data)
	if err := decode(from, maxChangeRead, body); err != nil {
		return err
	}
	if from.Len() > 0 { // behind what was compressed
		return errMore
	}
	return nil
}

// decode reads one thing: its format, and what body reads, which must be all there is.
func decode(from io.Reader, most int64, body func(*decoder)) error {
	bytewise, ok := from.(io.ByteReader) // so that nothing behind it is read
	if !ok {
		b := bufio.NewReader(from)
		from, bytewise = b, b
	}
	format, err := bytewise.ReadByte()
	if err != nil {
		return unexpected(err)
	}
	switch format {
	case formatPlain:
	case formatDeflated:
		from = flate.NewReader(from)
	default:
		return &FormatError{Format: format}
	}
	d := &decoder{r: bufio.NewReader(&bounded{from: from, left: most}), kinds: map[string]string{}}
	body(d)
	if d.err != nil {
		return d.err
	}
	switch _, err := d.r.ReadByte(); err {
	case io.EOF:
		return nil
	case nil:
		return errMore
	default:
		return err
	}
}

var errMore = errors.New("there is more than it says")

// bounded refuses to read more than is left: a few bytes may inflate to thousands of times as many.
type bounded struct {
	from io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("it is larger than any release writes")
	}
	n, err := b.from.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// decoder reads until the first error, which it keeps; after it everything is empty.
type decoder struct {
	r     *bufio.Reader
	kinds map[string]string // each kept once, however many objects are of it
	buf   []byte            // of what is not kept
	err   error
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = unexpected(err)
	}
}

func (d *decoder) uvarint() uint64 {
	if d.err != nil {
		return 0
	}
	v, err := binary.ReadUvarint(d.r)
	if err != nil {
		d.fail(err)
	}
	return v
}

// count is n if it is one, or 0 and an error.
func (d *decoder) count(n, most int) int {
	if n < 0 || n > most {
		d.fail(fmt.Errorf("it says there are %d: at most %d", n, most))
	}
	if d.err != nil {
		return 0
	}
	return n
}

// bytes reads a length and as many bytes, into b's memory if there is room.
func (d *decoder) bytes(what string, most uint64, b []byte) []byte {
	const step = 1 << 20 // what a claim alone may cost
	size := d.uvarint()
	if size > most {
		d.fail(fmt.Errorf("%s of %d bytes: at most %d", what, size, most))
	}
	if d.err != nil {
		return nil
	}
	b = b[:0]
	for size > 0 {
		n := int(min(size, step))
		b = slices.Grow(b, n)
		if _, err := io.ReadFull(d.r, b[len(b):len(b)+n]); err != nil {
			d.fail(err)
			return nil
		}
		b, size = b[:len(b)+n], size-uint64(n)
	}
	return b
}

func (d *decoder) header(h any) {
	d.buf = d.bytes("header", maxHeader, d.buf)
	if d.err == nil {
		if err := json.Unmarshal(d.buf, h); err != nil {
			d.err = err
		}
	}
}

func (d *decoder) objects(n int) []Object {
	const most, step = 1 << 24, 1024
	n = d.count(n, most)
	if n == 0 {
		return nil
	}
	objects := make([]Object, 0, min(n, step))
	for range n {
		o := Object{Revision: d.uvarint()}
		d.buf = d.bytes("kind", maxObjectRead, d.buf)
		kind, known := d.kinds[string(d.buf)]
		if !known {
			kind = string(d.buf)
			d.kinds[kind] = kind
		}
		o.Kind = kind
		d.buf = d.bytes("name", maxObjectRead, d.buf)
		o.Name = string(d.buf)
		o.Bytes = d.bytes("object", maxObjectRead, nil)
		if d.err != nil {
			return nil
		}
		objects = append(objects, o)
	}
	if cap(objects)-len(objects) > step { // they may stay for long
		objects = slices.Clone(objects)
	}
	return objects
}

func (d *decoder) record() Record {
	var h recordHeader
	d.header(&h)
	return Record{
		Revision: h.Revision, Time: h.Time, Author: h.Author, Note: h.Note,
		Put: h.Put, Delete: h.Delete, bare: h.Bare, before: d.objects(h.Before),
	}
}

func (d *decoder) table(h tableHeader) Table {
	t := Table{Revision: h.Revision, Objects: d.objects(h.Objects)}
	for range d.count(h.Records, maxHistory) {
		t.History = append(t.History, d.record())
	}
	if d.err != nil {
		return Table{}
	}
	for i, o := range t.Objects {
		if i > 0 && t.Objects[i-1].Ref().compare(o.Ref()) >= 0 {
			d.fail(fmt.Errorf("objects are out of order at %s %s", o.Kind, o.Name))
		}
	}
	for i, r := range t.History {
		if r.Revision > t.Revision || i > 0 && r.Revision <= t.History[i-1].Revision {
			d.fail(fmt.Errorf("the record of revision %d is out of order", r.Revision))
		}
	}
	t.measure()
	if t.sum != h.Sum {
		d.fail(fmt.Errorf("the sum of the objects is %016x, and should be %016x", t.sum, h.Sum))
	}
	return t
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
