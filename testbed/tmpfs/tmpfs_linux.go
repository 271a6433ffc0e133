package tmpfs

import (
	"fmt"
	"os"
	"syscall"
	"testing"
)

// Mount makes a folder, which is there, a file system of so many bytes until the test ends. Without the right to the test is left out, or, with
// PERIGEE_MOUNTS=required, fails.
func Mount(t *testing.T, dir string, bytes int64) {
	t.Helper()
	err := syscall.Mount("perigee-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", bytes))
	switch {
	case err != nil && os.Getenv("PERIGEE_MOUNTS") == "required":
		t.Fatalf("mount a tmpfs: %v (PERIGEE_MOUNTS=required)", err)
	case err != nil:
		t.Skipf("a full disk is tested only where a tmpfs can be mounted, as root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
