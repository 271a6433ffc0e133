// Package file replaces files whole: a reader, or a machine that lost power, sees the old file or the new one and
// nothing in between. It knows nothing of what is in them, and does not say whether they are damaged.
//
// All that it asks of the operating system goes through the functions of a System, so that a test can write down what
// was asked, or refuse it as a full disk would.
package file

import (
	"os"
	"path/filepath"
)

// System is what a file that must outlive a loss of power is made with. OS is the real one; a test may put its own function
// in the place of any field.
type System struct {
	Open     func(path string, flag int) (*os.File, error) // a new file is its owner's alone
	ReadAt   func(f *os.File, data []byte, at int64) (int, error)
	WriteAt  func(f *os.File, data []byte, at int64) (int, error)
	Truncate func(f *os.File, size int64) error
	Sync     func(f *os.File) error // what was written, and the size, are on disk
	Rename   func(from, to string) error
	Remove   func(path string) error
	SyncDir  func(path string) error // the names in the folder are on disk
}

// OS is the operating system's own.
func OS() System {
	return System{
		Open:     func(path string, flag int) (*os.File, error) { return os.OpenFile(path, flag, 0o600) },
		ReadAt:   (*os.File).ReadAt,
		WriteAt:  (*os.File).WriteAt,
		Truncate: (*os.File).Truncate,
		Sync:     (*os.File).Sync,
		Rename:   os.Rename,
		Remove:   os.Remove,
		SyncDir:  SyncDir,
	}
}

// Writer writes a file through a System: in order with Write, anywhere with WriteAt.
type Writer struct {
	system System
	file   *os.File
	at     int64
}

// Writer writes the file, from a place on.
func (s System) Writer(f *os.File, at int64) *Writer { return &Writer{system: s, file: f, at: at} }

// Write implements io.Writer.
func (w *Writer) Write(data []byte) (int, error) {
	n, err := w.WriteAt(data, w.at)
	w.at += int64(n)
	return n, err
}

// WriteAt implements io.WriterAt. It does not move the place of the next Write.
func (w *Writer) WriteAt(data []byte, at int64) (int, error) {
	return w.system.WriteAt(w.file, data, at)
}

// Replace puts what write writes in place of the file at path, readable by its owner alone: written aside (path.new),
// flushed, renamed, and the rename flushed. On an error before the rename the old file, if any, stands as before.
func (s System) Replace(path string, write func(*Writer) error) error {
	aside := path + ".new"
	f, err := s.Open(aside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	err = write(s.Writer(f, 0))
	if err == nil {
		err = s.Sync(f)
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = s.Rename(aside, path)
	}
	if err != nil {
		s.Remove(aside)
		return err
	}
	return s.SyncDir(filepath.Dir(path))
}

// Replace is System.Replace with the operating system's own.
func Replace(path string, write func(*Writer) error) error { return OS().Replace(path, write) }

// ReplaceBytes is Replace with these bytes.
func ReplaceBytes(path string, data []byte) error {
	return Replace(path, func(w *Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// SyncDir flushes the names in a folder: without it a rename may be lost with the power.
func SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
