package store

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/perigee-net/perigee/cluster/latest"
)

// machine applies the log (raft.FSM). It judges nothing but what State.With judges. At an entry that it cannot read,
// written by a newer release, it stops for good: to pass over the entry would make this node differ from the others in silence.
// A snapshot that it can read, or a newer release in its place, lets it go on.
type machine struct {
	now       *State // as of the last entry; owned by Raft's one goroutine
	published latest.Value[*State]
	fault     atomic.Pointer[FaultError]

	changed, unchanged, conflicts atomic.Uint64
}

// FaultError says why a node no longer applies what is agreed. It serves what it has.
type FaultError struct {
	Index uint64 // of the log entry
	Err   error
}

func (e *FaultError) Error() string {
	return fmt.Sprintf("this node stopped at log entry %d: %v", e.Index, e.Err)
}

func (e *FaultError) Unwrap() error { return e.Err }

// outcome is what Apply returns through Raft.
type outcome struct {
	revision uint64
	err      error
}

// Apply implements raft.FSM.
func (m *machine) Apply(entry *raft.Log) any {
	if fault := m.fault.Load(); fault != nil {
		return outcome{err: fault}
	}
	c, err := decodeChange(entry.Data)
	if err != nil {
		fault := &FaultError{Index: entry.Index, Err: err}
		m.fault.Store(fault)
		return outcome{err: fault}
	}
	next, revision, err := m.now.With(c)
	switch {
	case err != nil:
		m.conflicts.Add(1)
		return outcome{err: err}
	case next.Revision == m.now.Revision:
		m.unchanged.Add(1)
		m.now = next
	default:
		m.changed.Add(1)
		m.now = next
		m.published.Set(next)
	}
	return outcome{revision: revision}
}

// Snapshot implements raft.FSM.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	if fault := m.fault.Load(); fault != nil {
		return nil, fault // a snapshot would let Raft drop the entries that are not applied
	}
	return snapshot{m.now}, nil
}

// Restore implements raft.FSM.
func (m *machine) Restore(from io.ReadCloser) error {
	defer from.Close()
	s, err := ReadState(from)
	if err != nil {
		return err
	}
	m.now = s
	m.fault.Store(nil)
	m.published.Set(s)
	return nil
}

// snapshot is a state on its way to disk (raft.FSMSnapshot).
type snapshot struct{ *State }

// Persist implements raft.FSMSnapshot.
func (s snapshot) Persist(to raft.SnapshotSink) error {
	if err := WriteState(to, s.State); err != nil {
		to.Cancel()
		return err
	}
	return to.Close()
}

// Release implements raft.FSMSnapshot.
func (snapshot) Release() {}
