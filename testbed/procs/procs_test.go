//go:build linux

package procs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// perigee is the binary that the tests run.
var perigee string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "perigee-procs-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		perigee = filepath.Join(dir, "perigee")
		if err := Build(context.Background(), perigee); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// open opens a cluster that ends with the test.
func open(t testing.TB) *Cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "procs-") // t.TempDir's path is too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(perigee, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, n := range c.Nodes {
				t.Logf("the end of the log of %s:\n%s", n.Name, n.Log(4000))
			}
		}
		os.RemoveAll(dir)
	})
	return c
}

// within bounds what is waited for.
func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// comeUp bounds the time until a cluster is whole.
const comeUp = 60 * time.Second
