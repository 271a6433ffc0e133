package node

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/perigee-net/perigee/edge/cache/disk"
	"github.com/perigee-net/perigee/testbed/memnet"
)

func TestACacheDiskThatCannotBeOpenedIsSaidAtTheStart(t *testing.T) {
	foreign, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "thesis.txt"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	used := filepath.Join(t.TempDir(), "cache")
	synctest.Test(t, func(t *testing.T) {
		in := memnet.New(1)
		defer in.Close()
		other, err := disk.Open(disk.Config{Dir: used, Bytes: 16 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		cfg := configOf(in, "a", dir, netip.MustParseAddr("192.0.2.1"))
		cfg.Bootstrap = true
		for _, c := range []struct {
			dir   string
			bytes int64
			is    error
			says  string
		}{
			{foreign, 16 << 20, disk.ErrForeign, "--cache-dir: open the cache's folder " + foreign},
			{used, 16 << 20, disk.ErrInUse, "--cache-dir: open the cache's folder " + used},
			{"", 16<<20 - 1, nil, "--cache-disk-bytes 16777215: want 0 or at least 16777216"},
			{"", -1, nil, "--cache-disk-bytes -1: want 0 or at least"},
			{used, 0, nil, "--cache-dir needs --cache-disk-bytes"},
		} {
			cfg.CacheDir, cfg.CacheDiskBytes = c.dir, c.bytes
			n, err := Start(t.Context(), cfg)
			if n != nil || err == nil || !strings.Contains(err.Error(), c.says) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%d bytes in %q: %v, want %q", c.bytes, c.dir, err, c.says)
			}
		}
		cfg.CacheDir, cfg.CacheDiskBytes = "", 16<<20
		life(t, cfg, func(n *Node) {
			if _, err := os.Stat(filepath.Join(dir, "cache", "lock")); err != nil {
				t.Error(err)
			}
			if _, counted := n.cdn.Counters()["disk_bytes"]; !counted {
				t.Error("the disk is not counted")
			}
		})
	})
}
