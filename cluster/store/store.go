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
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
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

	// maxBatch bounds the log entries that are written or sent at once; what is sent is bounded by maxRequest as well.
	maxBatch = 64

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
	// Reads says the newest format (Format) that a node reads; 0, and nil, is that it is not heard of. What a member is not known to read is not written
	// into the log.
	Reads func(node string) int
	// Known is what this node holds already, or nil: what the log says again of it takes no other memory.
	Known *State
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
	machine   *follower
	files     *files
	stream    *stream
	transport *transport
	raft      *raft.Raft
	ready     chan struct{} // closed when raft is there
	leader    latest.Value[Leader]
	last      atomic.Pointer[Leader] // the last that was known
	disks     diskHealth
	edited    atomic.Uint64 // changes that were written as edits

	done     chan struct{} // closed when Close begins to end things
	watching sync.WaitGroup

	proposed chan *Pending   // in the order in which Raft shall have them
	verifies chan chan error // who asks whether this node leads
	verified uint64          // the term in which a barrier has passed; of the goroutine that confirms
	calls    sync.WaitGroup  // requests to the others that Raft does not know of

	mu      sync.Mutex
	closing bool
	pending int            // changes that are not answered
	size    int            // their bytes
	asked   sync.WaitGroup // requests to Raft that are not answered
}

// files is what a node's part keeps in its folder.
type files struct {
	disk      *disk
	votes     *votes
	snapshots *raft.FileSnapshotStore
	metas     []*raft.SnapshotMeta // of the snapshots, newest first
}

// openFiles opens the files, or makes them where there are none of them. The log's lock is on all of them.
func openFiles(dir string, noSync bool, log hclog.Logger) (*files, error) {
	votePath, logPath := filepath.Join(dir, voteFile), filepath.Join(dir, raftFile)
	if err := refuseHalf(dir, votePath, logPath); err != nil {
		return nil, err
	}
	if _, err := os.Stat(votePath); errors.Is(err, fs.ErrNotExist) {
		if err := makeVotes(votePath); err != nil {
			return nil, err
		}
	}
	var f files
	var err error
	if f.disk, err = openDisk(logPath, noSync); err != nil {
		return nil, err
	}
	if f.votes, err = openVotes(votePath, noSync); err != nil {
		f.close()
		return nil, err
	}
	if f.snapshots, f.metas, err = openSnapshots(dir, log); err != nil {
		f.close()
		return nil, err
	}
	return &f, nil
}

func (f *files) close() error {
	var errs []error
	if f.votes != nil {
		errs = append(errs, f.votes.close())
	}
	if f.disk != nil {
		errs = append(errs, f.disk.close()) // and with it the lock
	}
	return errors.Join(errs...)
}

// follower is the machine, and how far it has come.
type follower struct {
	*machine
	applied latest.Value[uint64] // the last entry that it was given
}

// Apply implements raft.FSM.
func (f *follower) Apply(entry *raft.Log) any { return f.ApplyBatch([]*raft.Log{entry})[0] }

// ApplyBatch implements raft.BatchingFSM.
func (f *follower) ApplyBatch(entries []*raft.Log) []any {
	outcomes := f.machine.ApplyBatch(entries)
	f.applied.Set(entries[len(entries)-1].Index)
	return outcomes
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
	known := cfg.Known
	cfg.Known = nil // the machine forgets it when it may
	s := &Store{
		cfg: cfg, machine: &follower{machine: &machine{now: &State{}, known: known}}, ready: make(chan struct{}), done: make(chan struct{}),
		proposed: make(chan *Pending, maxPending), verifies: make(chan chan error),
	}
	s.last.Store(&Leader{})
	s.disks.log = cfg.Log
	s.stream = &stream{listener: cfg.Listener, advertise: cfg.Advertise, dial: cfg.Dial, nameOf: s.nameOf, conns: map[*streamConn]bool{}}
	s.stream.ctx, s.stream.cancel = context.WithCancel(context.Background())
	if err := s.open(); err != nil {
		s.stream.Close()
		if s.files != nil {
			s.files.close()
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
	var err error
	if s.files, err = openFiles(dir, s.cfg.NoSync, log); err != nil {
		return err
	}
	disk := s.files.disk
	disk.failed = s.disks.ofLog
	s.files.votes.failed, s.files.votes.ending = s.disks.ofVotes, s.stream.ctx.Done()
	if err := s.restore(s.files); err != nil {
		return err
	}
	s.machine.published.Set(s.machine.now)

	cfg := s.raftConfig()
	cfg.Logger = log
	s.transport = newTransport(s.stream, s.cfg, cfg.HeartbeatTimeout)
	if s.cfg.Bootstrap {
		self := raft.Server{ID: cfg.LocalID, Address: raft.ServerAddress(s.cfg.Advertise)}
		err := raft.BootstrapCluster(cfg, disk, s.files.votes, s.files.snapshots, s.transport, raft.Configuration{Servers: []raft.Server{self}})
		if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
			s.transport.Close()
			return fmt.Errorf("make a cluster of one: %w", err)
		}
	}
	if s.raft, err = raft.NewRaft(cfg, s.machine, disk, s.files.votes, s.files.snapshots, s.transport); err != nil {
		s.transport.Close()
		return fmt.Errorf("start Raft: %w", err)
	}
	disk.setLeads(func() bool { return s.raft.State() == raft.Leader })
	close(s.ready)
	s.watching.Go(s.watch)
	s.watching.Go(s.confirmAll)
	s.watching.Go(s.propose)
	return nil
}

// refuseHalf refuses a folder where one of the files is missing that belong together. The vote's is made before the log's.
func refuseHalf(dir, votePath, logPath string) error {
	entries, err := os.ReadDir(filepath.Join(dir, snapshotsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, noVote := os.Stat(votePath)
	_, noLog := os.Stat(logPath)
	voted := false
	if noVote == nil && noLog != nil {
		f, err := os.Open(votePath)
		if err != nil {
			return err
		}
		now, _, err := readVotes(f)
		f.Close()
		voted = err != nil || now.number > 0
	}
	switch {
	case noLog == nil && noVote != nil:
		return fmt.Errorf("open %s: it is missing, though there is a log (%w)", votePath, noVote)
	case noLog != nil && (voted || len(entries) > 0):
		return fmt.Errorf("open %s: it is missing, though there are votes or snapshots (%w)", logPath, noLog)
	}
	return nil
}

// restore starts from the newest snapshot, if there is one, and makes sure that the log goes on from it. Where the process was
// killed between receiving a snapshot and dropping the log before it, that is dropped now: what follows would leave a gap.
func (s *Store) restore(f *files) error {
	var covered uint64 // by the snapshot
	if len(f.metas) > 0 {
		path := filepath.Join(s.cfg.Dir, snapshotsDir, f.metas[0].ID)
		_, content, err := f.snapshots.Open(f.metas[0].ID)
		if err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		if err := s.machine.Restore(content); err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		covered = f.metas[0].Index
	}
	first, err := f.disk.FirstIndex()
	if err != nil {
		return err
	}
	last, err := f.disk.LastIndex()
	if err != nil {
		return err
	}
	if first > covered+1 {
		return fmt.Errorf("open %s: the log begins at entry %d, and no snapshot covers those before", filepath.Join(s.cfg.Dir, raftFile), first)
	}
	if last < covered {
		return f.disk.DeleteRange(first, last)
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
	cfg.BatchApplyCh = true
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
	close(s.proposed)
	close(s.done)
	s.watching.Wait()
	ended := s.raft.Shutdown()
	s.transport.Close() // and with it the stream, so that no request to a silent node has to time out
	err := ended.Error()
	s.transport.CloseStreams()
	s.stream.serving.Wait()
	s.calls.Wait()
	s.leader.Set(Leader{})
	return errors.Join(err, s.files.close())
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
	s.mu.Lock()
	pending := uint64(s.pending)
	s.mu.Unlock()
	return map[string]uint64{
		"store_revision":                s.State().Get().Revision,
		"store_changes_total":           s.machine.changed.Load(),
		"store_changes_unchanged_total": s.machine.unchanged.Load(),
		"store_changes_edited_total":    s.edited.Load(),
		"store_conflicts_total":         s.machine.conflicts.Load(),
		"store_term":                    s.leader.Get().Term,
		"store_fault":                   fault,
		"store_applied_index":           s.Applied(),
		"store_pending":                 pending,
		"store_disk_failing":            s.disks.failing(),
		"store_disk_failures_total":     s.disks.failures.Load(),
		"store_peers_unreachable":       s.transport.unreachable(),
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
		if now.Name != "" {
			s.last.Store(&now)
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
