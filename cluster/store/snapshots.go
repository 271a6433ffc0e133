package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	snapshotsDir = "snapshots" // as raft.FileSnapshotStore calls it

	// keptSnapshots is how many snapshots stay on disk: the newest, and the one before while that is written.
	keptSnapshots = 2
)

// openSnapshots opens the folder of snapshots. Raft would pass over one that it cannot read and start from an older; but
// the entries between the two may be gone from the log. So all are read here, and one that is damaged is refused.
func openSnapshots(dir string, log hclog.Logger) (*raft.FileSnapshotStore, []*raft.SnapshotMeta, error) {
	folder := filepath.Join(dir, snapshotsDir)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, nil, err
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, nil, err
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, keptSnapshots, log)
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", folder, err)
	}
	for _, e := range entries {
		path := filepath.Join(folder, e.Name())
		if !e.IsDir() {
			continue
		}
		if strings.HasSuffix(e.Name(), ".tmp") { // it was being written when the process ended, and was never used
			if err := os.RemoveAll(path); err != nil {
				return nil, nil, err
			}
			continue
		}
		if err := checkSnapshot(snapshots, e.Name()); err != nil {
			return nil, nil, fmt.Errorf("open %s: %w: %v", path, errDamaged, err)
		}
	}
	metas, err := snapshots.List()
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", folder, err)
	}
	return snapshots, metas, nil
}

func checkSnapshot(snapshots *raft.FileSnapshotStore, name string) error {
	meta, content, err := snapshots.Open(name) // which reads it all against its checksum
	if err != nil {
		return err
	}
	content.Close()
	// The description has no checksum; what matters most of it is in the name as well.
	if meta.ID != name || !strings.HasPrefix(name, fmt.Sprintf("%d-%d-", meta.Term, meta.Index)) || meta.Version != raft.SnapshotVersionMax {
		return fmt.Errorf("its description says %s, term %d, index %d, version %d", meta.ID, meta.Term, meta.Index, meta.Version)
	}
	return nil
}
