package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/perigee-net/perigee/testbed/tmpfs"
)

// TestAFullFileSystem writes to a real one, which others fill and leave.
func TestAFullFileSystem(t *testing.T) {
	dir := t.TempDir()
	tmpfs.Mount(t, dir, 12<<20)
	cfg := Config{Dir: filepath.Join(dir, "cache"), Bytes: 32 << 20} // more than there is
	s := openStore(t, cfg, defaults())
	defer func() { s.Close() }()
	filler := filepath.Join(dir, "filler")
	n := 0
	write := func(objects int) (kept int) {
		t.Helper()
		began := time.Now()
		for kept < objects && time.Since(began) < 20*time.Second {
			n++
			key := fmt.Append(nil, n)
			if s.Put(key, nil, filled(100<<10, uint64(n))) == nil && s.Flush() == nil {
				if _, body, ok := look(t, s, fmt.Sprint(n)); ok {
					kept++
					if !bytes.Equal(body, filled(100<<10, uint64(n))) {
						t.Fatal("it is not what was put")
					}
				}
			}
		}
		return kept
	}
	if got := write(300); got < 300 { // two and a half times what there is room for
		t.Fatalf("%d are kept on a disk that is too small: %v", got, s.Counters())
	}
	if c := s.Counters(); c["disk_failures_total"] == 0 || c["disk_objects"] < 50 {
		t.Errorf("counted %v", c)
	}
	var full error
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 20; size > 0; size /= 2 {
		for full = nil; full == nil; {
			_, full = f.Write(make([]byte, size))
		}
	}
	f.Close()
	if !errors.Is(full, syscall.ENOSPC) {
		t.Fatal(full)
	}
	if got := write(50); got < 50 {
		t.Errorf("%d are kept beside one who fills the disk: %v", got, s.Counters())
	}
	if err := s.SetState([]byte("clean")); err != nil {
		t.Errorf("the state: %v", err)
	}
	objects := s.Counters()["disk_objects"]
	if err := s.Close(); err != nil && !strings.Contains(err.Error(), "no space") {
		t.Fatal(err)
	}
	s = openStore(t, cfg, defaults())
	if c := s.Counters(); c["disk_objects"] < objects*9/10 || string(s.State()) != "clean" {
		t.Errorf("%d were there, after a restart %v, state %q", objects, c, s.State())
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if got := write(30); got < 30 {
		t.Errorf("%d are kept when there is room again", got)
	}
}
