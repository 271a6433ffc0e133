package store

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/perigee-net/perigee/cluster/file"
)

// lastFile is the name of the last state's file in a data folder.
const lastFile = "last.state"

// SaveLast keeps a state in a data folder, in place of the one that was there: what a node serves when it starts again and
// reaches nobody. It is on disk when SaveLast returns.
func SaveLast(dir string, s *State) error {
	path := filepath.Join(dir, lastFile)
	if err := file.Replace(path, func(f *os.File) error { return writeLast(f, s) }); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// writeLast writes SHA-256 of the content, and the content.
func writeLast(f *os.File, s *State) error {
	sum := sha256.New()
	b := bufio.NewWriter(f)
	if _, err := f.Seek(sha256.Size, io.SeekStart); err != nil {
		return err
	}
	if err := WriteState(io.MultiWriter(b, sum), s); err != nil {
		return err
	}
	if err := b.Flush(); err != nil {
		return err
	}
	_, err := f.WriteAt(sum.Sum(nil), 0)
	return err
}

// LoadLast reads what SaveLast kept. A folder without it is fs.ErrNotExist; a file that is damaged is refused by its name.
func LoadLast(dir string) (*State, error) {
	path := filepath.Join(dir, lastFile)
	f, err := os.Open(path)
	if err != nil {
		return nil, err // names the file itself
	}
	defer f.Close()
	s, err := readLast(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return s, nil
}

func readLast(f *os.File) (*State, error) {
	var want [sha256.Size]byte
	if _, err := io.ReadFull(f, want[:]); err != nil {
		return nil, errDamaged
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return nil, err
	}
	if !bytes.Equal(sum.Sum(nil), want[:]) {
		return nil, errDamaged
	}
	if _, err := f.Seek(sha256.Size, io.SeekStart); err != nil {
		return nil, err
	}
	return ReadState(f)
}
