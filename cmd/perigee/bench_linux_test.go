package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBenchListsItsRowsAndMeasuresNothing(t *testing.T) {
	code, out, said := do(t, "bench", "--list")
	if code != 0 || said != "" {
		t.Fatalf("exit %d: %s", code, said)
	}
	for _, row := range []string{"hit-1k ", "hit-10m-disk ", "hit-1k-h3 ", "miss-1k ", "p99-1k ", "memory-1k ", "idle-conns ", "dns-static-10k "} {
		if !strings.Contains(out, "\n"+row) && !strings.HasPrefix(out, row) {
			t.Errorf("no row %q in\n%s", row, out)
		}
	}
	for line, want := range map[string]string{
		"bench loop":                       "HOST:PORT",
		"bench loop 127.0.0.1:0 many":      "bench loop",
		"bench no-such-row":                "there are hit-1k",
		"bench hit-1k --peers no-such":     "no row knows a peer",
		"bench hit-1k --objects 7 --quick": "7 objects",
	} {
		if code, _, said := do(t, strings.Fields(line)...); code == 0 || !strings.Contains(said, want) {
			t.Errorf("perigee %s: exit %d, %q, want %q", line, code, said, want)
		}
	}
}

func TestAProfileIsWrittenWhenANodeIsToldToEnd(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	failed := errors.New("it failed")
	if err := profiled(ctx, dir, func() error { cancel(); return failed }); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{"cpu.pprof", "heap.pprof"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		r, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if text, err := io.ReadAll(r); err != nil || len(text) == 0 {
			t.Errorf("%s has %d bytes, %v", name, len(text), err)
		}
	}
	ran := false
	if err := profiled(t.Context(), filepath.Join(dir, "no", "such"), func() error { ran = true; return nil }); err == nil || ran {
		t.Errorf("a folder that is not there: %v", err)
	}
	if err := profiled(t.Context(), "", func() error { ran = true; return nil }); err != nil || !ran {
		t.Errorf("no folder: %v", err)
	}
}
