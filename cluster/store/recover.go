package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// leapTo is what a recovery raises both revisions to the next multiple of: above all that others may have agreed on since
// the survivor heard of them last, so that who is ahead of it does not take the recovered state for an older one.
const leapTo = 10_000

// Recover makes the node whose folder this is the only voter of its cluster, for a cluster that has lost its majority for good.
// The node must not be running: a folder in use is ErrInUse. All that the node knows is agreed from then on, be it from its log, also
// changes that nobody was told were, or from its journal, where it followed others; what only the lost nodes had is lost. Both
// revisions leap to the next multiple of 10,000. The other nodes must not come back with the folders they have: they could
// agree among themselves on something else.
//
// A folder without a state, with one that is damaged, or of which another node than the one called name is the owner is
// refused and left as it is. When the process ends in between, the folder is as before or recovered.
func Recover(dir, name, address string, log *slog.Logger) error {
	if err := recoverFolder(dir, name, address, log); err != nil {
		return fmt.Errorf("recover %s: %w", dir, err)
	}
	return nil
}

func recoverFolder(dir, name, address string, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if _, err := os.Stat(filepath.Join(dir, raftFile)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no %s: it is no node's folder", raftFile)
	} else if err != nil {
		return err
	}
	files, err := openFiles(dir, false, bridge(log, slog.LevelInfo))
	if err != nil {
		return err
	}
	defer files.close()
	journal, known, err := OpenJournal(dir)
	if err != nil {
		return err
	}
	defer journal.Close()

	cfg := raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(name)
	cfg.Logger = bridge(log, slog.LevelInfo)
	_, transport := raft.NewInmemTransport(raft.ServerAddress(address))
	defer transport.Close()
	before, err := raft.GetConfiguration(cfg, &machine{now: &State{}}, files.disk, files.votes, files.snapshots, transport)
	if err != nil {
		return err
	}
	alone := raft.Configuration{Servers: []raft.Server{{ID: cfg.LocalID, Address: raft.ServerAddress(address)}}}
	member := slices.ContainsFunc(before.Servers, func(s raft.Server) bool { return s.ID == cfg.LocalID })
	switch {
	case !member && len(before.Servers) > 0 && known == nil:
		return fmt.Errorf("%s is none of the members that it knows: %v", name, before.Servers)
	case len(before.Servers) == 0 && known == nil:
		return errors.New("it knows nothing of a cluster")
	case len(before.Servers) == 0: // it never was in Raft
		if err := raft.BootstrapCluster(cfg, files.disk, files.votes, files.snapshots, transport, alone); err != nil {
			return err
		}
	}
	return raft.RecoverCluster(cfg, survivor{&machine{now: &State{}}, known}, files.disk, files.votes, files.snapshots, transport, alone)
}

// survivor is a machine whose snapshot is the newest of what the log and the journal hold, with revisions that have leapt.
type survivor struct {
	*machine
	known *State
}

// Snapshot implements raft.FSM.
func (s survivor) Snapshot() (raft.FSMSnapshot, error) {
	if fault := s.fault.Load(); fault != nil {
		return nil, fault
	}
	newest := s.now
	if s.known != nil && s.known.Position().AtLeast(newest.Position()) {
		newest = s.known
	}
	return snapshot{newest.leapt(time.Now().UTC())}, nil
}

// leapt is the state with both revisions raised to the next multiple of leapTo.
func (s *State) leapt(now time.Time) *State {
	after := *s
	for _, t := range []*Table{&after.Table, &after.Own} {
		from := t.Revision
		t.Revision = (from/leapTo + 1) * leapTo
		t.remember(Record{Revision: t.Revision, Time: now, Author: "recover", Note: fmt.Sprintf("recovered from one node, which was at %d", from)})
	}
	return &after
}
