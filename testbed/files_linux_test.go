package testbed

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// openFiles is what this process has open, but for what the runtime has for itself.
func openFiles(t *testing.T) map[string]int {
	t.Helper()
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	open := map[string]int{}
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err == nil && !strings.HasPrefix(to, "anon_inode:") { // an error: it was the one that read the folder
			open[to]++
		}
	}
	return open
}

// That no goroutine is left, the bubble sees to.
func TestAWorldLeavesNoFileOpen(t *testing.T) {
	before := openFiles(t)
	inWorldAlone(t, nil, func(t *testing.T, w *World) {
		if during := openFiles(t); len(during) == len(before) {
			t.Error("a world that runs has no file open: nothing is looked at")
		}
		w.do(t, "kill", "icn1")
		w.do(t, "crash", "fra1")
		w.do(t, "stop", "iad1")
		time.Sleep(time.Minute)
		w.do(t, "start", "icn1")
		w.do(t, "start", "fra1")
		time.Sleep(10 * time.Second)
		w.do(t, "crash", "fra1")
	})
	for to, n := range openFiles(t) {
		if n > before[to] {
			t.Errorf("%s is still open", to)
		}
	}
}
