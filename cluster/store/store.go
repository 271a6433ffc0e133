// Package store is what the cluster agrees on: objects by kind and name, one revision over all, replicated by Raft. It is the
// only room that knows Raft and its files.
//
// It keeps each object as the bytes that were written and reads none of them: a change is validated before it comes here. The log
// is judged by nothing but the expected revision, so that releases that understand the objects differently
// still agree on what was agreed.
//
// When things break: without a majority no change is applied and everyone keeps the state they have. A change is applied on all
// nodes or on none, but who sent it may not learn which when the leader dies; sent again with its ID it is applied once.
// A process that is killed comes back with all that it had promised; a data folder that is damaged is refused with the file's
// name, because to forget a promise could make the cluster agree on two things. A follower may be behind; Verify is
// for those who must not be.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/perigee-net/perigee/cluster/latest"
)

const (
	// raftFile is the log and Raft's own values, in the data folder.
	raftFile = "raft.db"

	// defaultRoundTrip is between the ends of the earth, with some to spare.
	defaultRoundTrip = 300 * time.Millisecond

	// requestTimeout bounds one request to another node. A batch of log entries has to travel in it.
	requestTimeout = 10 * time.Second

	// maxBatch bounds the log entries in one request, so that a batch of the largest changes still travels in time.
	maxBatch = 16

	// A snapshot is taken after snapshotAfter changes, looked for every snapshotInterval; keptEntries stay in the log behind
	// it, for followers that were away for a while.
	snapshotAfter    = 1024
	snapshotInterval = 30 * time.Second
	keptEntries      = 1024
)

// Config is what a Store is made of.
type Config struct {
	Name string // of this node
	Dir  string // for its files; made if it is missing

	// Advertise is the host:port at which the others reach Listener.
	Advertise string
	// Bootstrap makes a cluster of this node alone, if the folder holds none yet. Otherwise the node waits to be added.
	Bootstrap bool

	// Listener brings the connections of other nodes, authenticated. Close closes it, and so does an Open that fails.
	Listener net.Listener
	// Dial reaches the node called name at an address; name is empty where it is not known, for any node of the cluster.
	Dial func(ctx context.Context, name, address string) (net.Conn, error)
	Log  *slog.Logger

	// RoundTrip is the longest usual round trip to another voter; 0 means 300 ms. All must have the same. It decides how
	// long a leader may be silent; the change after its death takes 4 s (median of 40 in virtual time) where all
	// voters are 300 ms apart, 3 s where they are 100 ms apart, and 1.5 s if that is told.
	RoundTrip time.Duration
	// SnapshotAfter is how many changes a snapshot waits for; 0 means 1024. As many stay in the log behind it.
	SnapshotAfter uint64
	// NoSync does not flush to disk: a loss of power then loses what the cluster was promised. For tests.
	NoSync bool
}

// Leader is who leads the cluster, as far as this node knows; without a name nobody does.
type Leader struct {
	Name, Address string
	Term          uint64 // grows with every election
}

// Store is one node's part of the agreement.
type Store struct {
	cfg       Config
	machine   *machine
	disk      *disk
	stream    *stream
	transport *raft.NetworkTransport
	raft      *raft.Raft
	ready     chan struct{} // closed when raft is there
	leader    latest.Value[Leader]

	done     chan struct{} // closed when Close begins to end things
	watching sync.WaitGroup

	mu      sync.Mutex
	closing bool
	asked   sync.WaitGroup // requests to Raft that are not answered
}

// Open starts the node's part with what its folder holds. It does not wait for a leader. A file that is damaged is an
// error that names it; a folder that another process has open is ErrInUse.
func Open(cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.RoundTrip == 0 {
		cfg.RoundTrip = defaultRoundTrip
	}
	if cfg.SnapshotAfter == 0 {
		cfg.SnapshotAfter = snapshotAfter
	}
	s := &Store{cfg: cfg, machine: &machine{now: &State{}}, ready: make(chan struct{}), done: make(chan struct{})}
	s.stream = &stream{listener: cfg.Listener, advertise: cfg.Advertise, dial: cfg.Dial, nameOf: s.nameOf, conns: map[*streamConn]bool{}}
	s.stream.ctx, s.stream.cancel = context.WithCancel(context.Background())
	if err := s.open(); err != nil {
		s.stream.Close()
		if s.disk != nil {
			s.disk.close()
		}
		return nil, err
	}
	return s, nil
}

func (s *Store) open() error {
	dir := s.cfg.Dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	log := bridge(s.cfg.Log, slog.LevelError)
	if err := refuseHalf(dir); err != nil {
		return err
	}
	var err error
	if s.disk, err = openDisk(filepath.Join(dir, raftFile), s.cfg.NoSync); err != nil {
		return err
	}
	snapshots, metas, err := openSnapshots(dir, log)
	if err != nil {
		return err
	}
	if err := s.restore(snapshots, metas); err != nil {
		return err
	}
	s.machine.published.Set(s.machine.now)

	cfg := s.raftConfig()
	cfg.Logger = log
	s.transport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: s.stream, MaxPool: 3, Timeout: requestTimeout, MsgpackUseNewTimeFormat: true,
		Logger: bridge(s.cfg.Log, slog.LevelDebug), // it calls every connection that ends an error
	})
	if s.cfg.Bootstrap {
		self := raft.Server{ID: cfg.LocalID, Address: raft.ServerAddress(s.cfg.Advertise)}
		err := raft.BootstrapCluster(cfg, s.disk, s.disk, snapshots, s.transport, raft.Configuration{Servers: []raft.Server{self}})
		if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
			s.transport.Close()
			return fmt.Errorf("make a cluster of one: %w", err)
		}
	}
	if s.raft, err = raft.NewRaft(cfg, s.machine, s.disk, s.disk, snapshots, s.transport); err != nil {
		s.transport.Close()
		return fmt.Errorf("start Raft: %w", err)
	}
	close(s.ready)
	s.watching.Go(s.watch)
	return nil
}

// refuseHalf refuses a folder that has snapshots but no log: with the log went the node's vote.
func refuseHalf(dir string) error {
	log := filepath.Join(dir, raftFile)
	if _, err := os.Stat(log); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(dir, snapshotsDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("open %s: it is missing, though there are snapshots", log)
	}
	return nil
}

// restore starts from the newest snapshot, if there is one, and makes sure that the log goes on from it. Where the process was
// killed between receiving a snapshot and dropping the log before it, that is dropped now: what follows would leave a gap.
func (s *Store) restore(snapshots *raft.FileSnapshotStore, metas []*raft.SnapshotMeta) error {
	var covered uint64 // by the snapshot
	if len(metas) > 0 {
		path := filepath.Join(s.cfg.Dir, snapshotsDir, metas[0].ID)
		_, content, err := snapshots.Open(metas[0].ID)
		if err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		if err := s.machine.Restore(content); err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		covered = metas[0].Index
	}
	first, err := s.disk.FirstIndex()
	if err != nil {
		return err
	}
	last, err := s.disk.LastIndex()
	if err != nil {
		return err
	}
	if first > covered+1 {
		return fmt.Errorf("open %s: the log begins at entry %d, and no snapshot covers those before", filepath.Join(s.cfg.Dir, raftFile), first)
	}
	if last < covered {
		return s.disk.DeleteRange(first, last)
	}
	return nil
}

func (s *Store) raftConfig() *raft.Config {
	cfg := raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(s.cfg.Name)
	// A leader sends a heartbeat every tenth or fifth of this time. One that is lost is sent again after about two round
	// trips, and must not end the leader's time.
	cfg.HeartbeatTimeout = 3*s.cfg.RoundTrip + 100*time.Millisecond
	cfg.LeaderLeaseTimeout = cfg.HeartbeatTimeout
	// A candidate needs four round trips: two to connect, one to ask who would vote, one to have the votes.
	cfg.ElectionTimeout = cfg.HeartbeatTimeout + s.cfg.RoundTrip
	cfg.MaxAppendEntries = maxBatch
	cfg.SnapshotThreshold = s.cfg.SnapshotAfter
	cfg.SnapshotInterval = snapshotInterval
	cfg.TrailingLogs = s.cfg.SnapshotAfter
	cfg.NoSnapshotRestoreOnStart = true // restore has done it, and did not pass over a damaged one
	cfg.ShutdownOnRemove = false        // one that is removed keeps what it has until it is closed
	cfg.NoLegacyTelemetry = true
	return cfg
}

// Close ends the node's part: it waits for the requests that are under way, which Raft answers within a heartbeat's
// time-out, then ends what Open started and waits for that.
func (s *Store) Close() error {
	s.mu.Lock()
	again := s.closing
	s.closing = true
	s.mu.Unlock()
	if again {
		return nil
	}
	s.asked.Wait()
	close(s.done)
	s.watching.Wait()
	ended := s.raft.Shutdown()
	s.transport.Close() // and with it the stream, so that no request to a silent node has to time out
	err := ended.Error()
	s.transport.CloseStreams()
	s.stream.serving.Wait()
	s.leader.Set(Leader{})
	return errors.Join(err, s.disk.close())
}

// State is what is agreed, as far as this node knows; never nil. After a start it goes back to the last snapshot until
// a leader tells what is agreed since.
func (s *Store) State() *latest.Value[*State] { return &s.machine.published }

// Leader is who leads.
func (s *Store) Leader() *latest.Value[Leader] { return &s.leader }

// Fault is a *FaultError if this node has stopped applying what is agreed.
func (s *Store) Fault() error {
	if fault := s.machine.fault.Load(); fault != nil {
		return fault
	}
	return nil
}

// Counters counts what was applied here since the start.
func (s *Store) Counters() map[string]uint64 {
	fault := uint64(0)
	if s.Fault() != nil {
		fault = 1
	}
	return map[string]uint64{
		"store_revision":                s.State().Get().Revision,
		"store_changes_total":           s.machine.changed.Load(),
		"store_changes_unchanged_total": s.machine.unchanged.Load(),
		"store_conflicts_total":         s.machine.conflicts.Load(),
		"store_term":                    s.leader.Get().Term,
		"store_fault":                   fault,
	}
}

// watch publishes who leads. Raft tells an observer of most turns, and LeaderCh of the one it leaves out: a leader that
// steps down.
func (s *Store) watch() {
	turns := make(chan raft.Observation, 1) // one that waits stands for all
	observer := raft.NewObserver(turns, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	})
	s.raft.RegisterObserver(observer)
	defer s.raft.DeregisterObserver(observer)
	for {
		address, name := s.raft.LeaderWithID()
		now := Leader{Name: string(name), Address: string(address)}
		if now.Name != "" {
			now.Term = s.raft.CurrentTerm()
		}
		if now != s.leader.Get() {
			s.leader.Set(now)
		}
		select {
		case <-turns:
		case <-s.raft.LeaderCh():
		case <-s.done:
			return
		}
	}
}

// nameOf finds the name of the node at an address, to ask for it by its certificate.
func (s *Store) nameOf(ctx context.Context, address raft.ServerAddress) string {
	select {
	case <-s.ready:
	case <-ctx.Done():
		return ""
	}
	for _, server := range s.raft.GetConfiguration().Configuration().Servers {
		if server.Address == address {
			return string(server.ID)
		}
	}
	return ""
}
