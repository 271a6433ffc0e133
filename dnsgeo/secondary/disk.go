package secondary

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/file"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

// A copy on disk is one file:
//
//	magic | length and name of the zone, as text | its records, each: owner, type, TTL, length, data | SHA-256 of all that
//
// When it was confirmed last is the file's time of modification: to write that anew costs no more than to say it.
const (
	magic  = "perigee zone 1\n"
	suffix = ".zone"

	// maxFile bounds a file that is read: a transfer with all its owners whole.
	maxFile = 4 * maxBytes
)

// ID is a short name for a zone in the place of its own, which may be too long: in names of files, and where nodes tell each other.
func ID(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:16])
}

// Disk is a folder of copies.
type Disk struct{ Dir string }

func (d Disk) path(name string) string { return filepath.Join(d.Dir, ID(name)+suffix) }

// Save puts a copy in the place of the one that there was, confirmed at a time.
func (d Disk) Save(name string, z *zone.Zone, confirmed time.Time) error {
	if err := os.MkdirAll(d.Dir, 0o700); err != nil {
		return err
	}
	err := file.Replace(d.path(name), func(w *file.Writer) error {
		out := bufio.NewWriterSize(w, 1<<16)
		encode(out, name, z)
		return out.Flush()
	})
	if err != nil {
		return err
	}
	return d.Confirm(name, confirmed)
}

// encode writes a copy. The error of one write is that of the flush at the end.
func encode(out *bufio.Writer, name string, z *zone.Zone) {
	sum := sha256.New()
	write := func(b []byte) {
		sum.Write(b)
		_, _ = out.Write(b)
	}
	write(headOf(name))
	var b []byte
	for e := range zone.NewTable(z).All(z, nil) {
		for data := range e.Set.All() {
			b = append(b[:0], e.Owner...)
			b = binary.BigEndian.AppendUint16(b, e.Set.Type)
			b = binary.BigEndian.AppendUint32(b, e.Set.TTL)
			b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
			write(append(b, data...))
		}
	}
	_, _ = out.Write(sum.Sum(nil))
}

func headOf(name string) []byte {
	head := append([]byte(magic), byte(len(name)))
	return append(head, name...)
}

// Confirm says when the copy was confirmed last.
func (d Disk) Confirm(name string, at time.Time) error { return os.Chtimes(d.path(name), at, at) }

// Load reads a copy and when it was confirmed last; nil and no error where there is none. After an error the file is of no use.
func (d Disk) Load(name string) (z *zone.Zone, confirmed time.Time, err error) {
	f, err := os.Open(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, time.Time{}, nil
	}
	if err != nil {
		return nil, time.Time{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && info.Size() > maxFile {
		err = errors.New("it is too large")
	}
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	data := make([]byte, info.Size())
	if _, err = f.ReadAt(data, 0); err == nil {
		z, err = decode(name, data)
	}
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return z, info.ModTime(), nil
}

// Remove forgets a copy.
func (d Disk) Remove(name string) error {
	if err := os.Remove(d.path(name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Keep forgets all copies but those of the zones that are kept, by ID.
func (d Disk) Keep(kept map[string]bool) error {
	files, err := os.ReadDir(d.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, f := range files {
		if id, ours := strings.CutSuffix(f.Name(), suffix); ours && !kept[id] {
			err = errors.Join(err, os.Remove(filepath.Join(d.Dir, f.Name())))
		}
	}
	return err
}

var errDamaged = errors.New("it is damaged")

// decode reads what Save wrote.
func decode(name string, data []byte) (*zone.Zone, error) {
	end := len(data) - sha256.Size
	if end < 0 {
		return nil, errDamaged
	}
	if sum := sha256.Sum256(data[:end]); !bytes.Equal(sum[:], data[end:]) {
		return nil, errDamaged
	}
	rest, ok := bytes.CutPrefix(data[:end], headOf(name))
	if !ok {
		return nil, errors.New("it is of another zone, or of another release")
	}
	e, err := zone.NewEdit(name, len(rest)/64)
	if err != nil {
		return nil, err
	}
	var room [maxName]byte
	var typed []byte
	for len(rest) > 0 {
		size, at, err := readName(rest, 0, room[:])
		if err != nil || at != size || at+8 > len(rest) { // no pointers
			return nil, errDamaged
		}
		r := zone.Row{Owner: room[:size], Type: binary.BigEndian.Uint16(rest[at:]), TTL: binary.BigEndian.Uint32(rest[at+2:])}
		end := at + 8 + int(binary.BigEndian.Uint16(rest[at+6:]))
		if end > len(rest) {
			return nil, errDamaged
		}
		if typed, err = readData(rest[at+8:end], 0, end-at-8, r.Type, typed[:0]); err != nil {
			return nil, errDamaged
		}
		r.Data, rest = typed, rest[end:]
		if _, err := e.AddRow(r); err != nil {
			return nil, err
		}
	}
	return e.Zone()
}
