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
	"time"
)

// What is written, in the log, in snapshots and for LoadLast, has one form: a byte that names the format, then the length of a
// header (uvarint), the header in JSON, and the bytes of the objects that the header lists, one after the other. A
// field that a release does not know is passed over; what would mean something else to an older release gets a new format.
const (
	formatPlain    = 1
	formatDeflated = 2 // all behind the first byte is compressed (RFC 1951)
)

const (
	// deflateFrom is the length from which a change is compressed: it has to travel to every voter within the time-out of one
	// request. Below it, the work would cost more than the bytes.
	deflateFrom = 16 << 10

	// maxHeader bounds the header that is read; a longer one is refused. 200,000 objects of usual names have about 20 MiB.
	maxHeader = 512 << 20

	// maxObjectRead bounds one object that is read; a longer one is refused. It is above what any release lets in.
	maxObjectRead = 16 << 20
)

// A FormatError says that something was written by a release that knows more than this one.
type FormatError struct {
	Format byte
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("it is in format %d, of a newer release", e.Format)
}

type changeHeader struct {
	ID     string         `json:"id,omitempty"`
	Expect *uint64        `json:"expect,omitempty"`
	Author string         `json:"author,omitempty"`
	Note   string         `json:"note,omitempty"`
	Time   time.Time      `json:"time"`
	Put    []objectHeader `json:"put,omitempty"`
	Delete []Ref          `json:"delete,omitempty"`
}

type stateHeader struct {
	Revision uint64         `json:"revision"`
	Objects  []objectHeader `json:"objects,omitempty"`
	History  []recordHeader `json:"history,omitempty"`
	Answers  []answer       `json:"answers,omitempty"`
}

type recordHeader struct {
	Revision uint64         `json:"revision"`
	Time     time.Time      `json:"time"`
	Author   string         `json:"author,omitempty"`
	Note     string         `json:"note,omitempty"`
	Put      []Ref          `json:"put,omitempty"`
	Delete   []Ref          `json:"delete,omitempty"`
	Before   []objectHeader `json:"before,omitempty"`
}

type objectHeader struct {
	Ref
	Revision uint64 `json:"revision,omitempty"`
	Size     int    `json:"size"`
}

func objectHeaders(objects []Object) []objectHeader {
	headers := make([]objectHeader, len(objects))
	for i, o := range objects {
		headers[i] = objectHeader{o.Ref(), o.Revision, len(o.Bytes)}
	}
	return headers
}

// encodeChange writes a change for the log.
func encodeChange(c Change) ([]byte, error) {
	size := 0
	for _, o := range c.Put {
		size += len(o.Bytes)
	}
	var b bytes.Buffer
	err := write(&b, size >= deflateFrom, changeHeader{
		ID: c.ID, Expect: c.Expect, Author: c.Author, Note: c.Note, Time: c.Time, Put: objectHeaders(c.Put), Delete: c.Delete,
	}, c.Put)
	return b.Bytes(), err
}

// decodeChange reads what encodeChange wrote.
func decodeChange(data []byte) (Change, error) {
	var h changeHeader
	r, err := readHeader(bytes.NewReader(data), &h)
	if err != nil {
		return Change{}, err
	}
	put, err := readObjects(r, h.Put)
	if err != nil {
		return Change{}, err
	}
	c := Change{ID: h.ID, Expect: h.Expect, Author: h.Author, Note: h.Note, Time: h.Time, Put: put, Delete: h.Delete}
	return c, readEnd(r)
}

// WriteState writes a state so that ReadState reads the same.
func WriteState(w io.Writer, s *State) error {
	h := stateHeader{Revision: s.Revision, Objects: objectHeaders(s.Objects), Answers: s.answers}
	all := [][]Object{s.Objects}
	for _, r := range s.History {
		h.History = append(h.History, recordHeader{
			Revision: r.Revision, Time: r.Time, Author: r.Author, Note: r.Note,
			Put: r.Put, Delete: r.Delete, Before: objectHeaders(r.before),
		})
		all = append(all, r.before)
	}
	return write(w, true, h, all...)
}

// ReadState reads what WriteState wrote, to its end.
func ReadState(from io.Reader) (*State, error) {
	var h stateHeader
	r, err := readHeader(from, &h)
	if err != nil {
		return nil, err
	}
	s := &State{Revision: h.Revision, answers: h.Answers}
	if s.Objects, err = readObjects(r, h.Objects); err != nil {
		return nil, err
	}
	for i, o := range s.Objects {
		if i > 0 && s.Objects[i-1].Ref().compare(o.Ref()) >= 0 {
			return nil, fmt.Errorf("objects are out of order at %s %s", o.Kind, o.Name)
		}
		s.size += len(o.Bytes)
	}
	for _, rh := range h.History {
		before, err := readObjects(r, rh.Before)
		if err != nil {
			return nil, err
		}
		s.History = append(s.History, Record{
			Revision: rh.Revision, Time: rh.Time, Author: rh.Author, Note: rh.Note, Put: rh.Put, Delete: rh.Delete, before: before,
		})
	}
	return s, readEnd(r)
}

func write(w io.Writer, deflated bool, header any, objects ...[]Object) error {
	head, err := json.Marshal(header)
	if err != nil {
		return err
	}
	format, end := byte(formatPlain), func() error { return nil }
	if deflated {
		format = formatDeflated
	}
	if _, err := w.Write([]byte{format}); err != nil {
		return err
	}
	if deflated {
		z, err := flate.NewWriter(w, flate.BestSpeed)
		if err != nil {
			return err
		}
		w, end = z, z.Close
	}
	if _, err := w.Write(binary.AppendUvarint(nil, uint64(len(head)))); err != nil {
		return err
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	for _, some := range objects {
		for _, o := range some {
			if _, err := w.Write(o.Bytes); err != nil {
				return err
			}
		}
	}
	return end()
}

// readHeader reads up to the objects, which are left to be read.
func readHeader(from io.Reader, header any) (*bufio.Reader, error) {
	r := bufio.NewReader(from)
	format, err := r.ReadByte()
	if err != nil {
		return nil, unexpected(err)
	}
	switch format {
	case formatPlain:
	case formatDeflated:
		r = bufio.NewReader(flate.NewReader(r))
	default:
		return nil, &FormatError{Format: format}
	}
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, unexpected(err)
	}
	if size > maxHeader {
		return nil, fmt.Errorf("header of %d bytes: at most %d", size, maxHeader)
	}
	// The claimed length is believed only as far as bytes come.
	head, err := io.ReadAll(io.LimitReader(r, int64(size)))
	if err != nil {
		return nil, err
	}
	if uint64(len(head)) < size {
		return nil, io.ErrUnexpectedEOF
	}
	return r, json.Unmarshal(head, header)
}

func readObjects(r io.Reader, headers []objectHeader) ([]Object, error) {
	objects := make([]Object, len(headers))
	for i, h := range headers {
		if h.Size < 0 || h.Size > maxObjectRead {
			return nil, fmt.Errorf("%s %s: %d bytes: at most %d", h.Kind, h.Name, h.Size, maxObjectRead)
		}
		objects[i] = Object{Kind: h.Kind, Name: h.Name, Revision: h.Revision, Bytes: make([]byte, h.Size)}
		if _, err := io.ReadFull(r, objects[i].Bytes); err != nil {
			return nil, unexpected(err)
		}
	}
	return objects, nil
}

func readEnd(r io.Reader) error {
	switch _, err := io.ReadFull(r, make([]byte, 1)); err {
	case io.EOF:
		return nil
	case nil:
		return errors.New("there is more than it says")
	default:
		return err
	}
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
