package file

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestAFileIsReplacedWholeOrNotAtAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, content := range []string{"first", "second, and longer", ""} {
		if err := ReplaceBytes(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Fatalf("got %q, %v, want %q", got, err, content)
		}
	}
	if err := ReplaceBytes(path, []byte("kept")); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	err := Replace(path, func(w *Writer) error {
		w.Write([]byte("half"))
		return broken
	})
	if got, _ := os.ReadFile(path); !errors.Is(err, broken) || string(got) != "kept" {
		t.Errorf("after a failed write: %v, %q", err, got)
	}
	if names, _ := os.ReadDir(filepath.Dir(path)); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestWhicheverOperationFailsTheOldFileStands(t *testing.T) {
	broken := errors.New("broken")
	for name, breakIt := range map[string]func(*System){
		"open":     func(s *System) { s.Open = func(string, int) (*os.File, error) { return nil, broken } },
		"write":    func(s *System) { s.WriteAt = func(*os.File, []byte, int64) (int, error) { return 0, broken } },
		"truncate": func(s *System) { s.Truncate = func(*os.File, int64) error { return broken } }, // is not asked for
		"sync":     func(s *System) { s.Sync = func(*os.File) error { return broken } },
		"rename":   func(s *System) { s.Rename = func(string, string) error { return broken } },
		"flush":    func(s *System) { s.SyncDir = func(string) error { return broken } }, // the new one stands, but may be lost
	} {
		path := filepath.Join(t.TempDir(), "file")
		if err := ReplaceBytes(path, []byte("old")); err != nil {
			t.Fatal(err)
		}
		system := OS()
		breakIt(&system)
		err := system.Replace(path, func(w *Writer) error {
			_, err := w.Write([]byte("new"))
			return err
		})
		want := "old"
		if name == "truncate" || name == "flush" {
			want = "new"
		}
		if got, _ := os.ReadFile(path); string(got) != want || (err == nil) != (name == "truncate") || err != nil && !errors.Is(err, broken) {
			t.Errorf("%s: %v, and the file is %q", name, err, got)
		}
		if names, _ := os.ReadDir(filepath.Dir(path)); len(names) != 1 {
			t.Errorf("%s: left behind: %v", name, names)
		}
	}
}

func TestAWriterWritesInOrderAndAnywhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	err := Replace(path, func(w *Writer) error {
		for _, s := range []string{"____", "end"} {
			if _, err := w.Write([]byte(s)); err != nil {
				return err
			}
		}
		_, err := w.WriteAt([]byte("head"), 0)
		return err
	})
	if got, _ := os.ReadFile(path); err != nil || string(got) != "headend" {
		t.Errorf("%v, %q", err, got)
	}
}
