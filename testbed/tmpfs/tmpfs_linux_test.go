package tmpfs

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestADiskIsAsSmallAsAskedAndGoesWithItsTest(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if !t.Run("mounted", func(t *testing.T) {
		Mount(t, dir, 1<<20)
		if err := os.WriteFile(file, make([]byte, 1<<19), 0o600); err != nil {
			t.Error("there is no room:", err)
		}
		if err := os.WriteFile(file, make([]byte, 2<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("more than there is: %v", err)
		}
	}) {
		return
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the test: %v", err)
	}
}
