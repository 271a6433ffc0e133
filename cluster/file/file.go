// Package file replaces files whole: a reader, or a machine that lost power, sees the old file or the new one and
// nothing in between. It knows nothing of what is in them, and does not say whether they are damaged.
package file

import (
	"os"
	"path/filepath"
)

// Replace puts what write writes in place of the file at path, readable by its owner alone: written aside (path.new),
// flushed, renamed, and the rename flushed. On an error the old file, if any, stands as before.
func Replace(path string, write func(*os.File) error) error {
	aside := path + ".new"
	f, err := os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(aside, path)
	}
	if err != nil {
		os.Remove(aside)
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// ReplaceBytes is Replace with these bytes.
func ReplaceBytes(path string, data []byte) error {
	return Replace(path, func(f *os.File) error {
		_, err := f.Write(data)
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
