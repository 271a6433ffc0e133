package store

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/perigee-net/perigee/cluster/latest"
)

// machine applies the log (raft.BatchingFSM). It judges nothing but what State.With judges. At an entry that it cannot read,
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
	return m.ApplyBatch([]*raft.Log{entry})[0]
}

// ApplyBatch implements raft.BatchingFSM: the state is published once, when all entries are applied and nobody was told so.
func (m *machine) ApplyBatch(entries []*raft.Log) []any {
	before := m.now.Position()
	outcomes := make([]any, len(entries))
	var f fresh // what is made within this call is not seen before its end
	for i, entry := range entries {
		if entry.Type == raft.LogCommand { // the members are Raft's own affair
			outcomes[i] = m.apply(entry, &f)
		}
	}
	if m.now.Position() != before {
		m.published.Set(m.now)
	}
	return outcomes
}

func (m *machine) apply(entry *raft.Log, f *fresh) outcome {
	if fault := m.fault.Load(); fault != nil {
		return outcome{err: fault}
	}
	c, err := decodeChange(entry.Data)
	if err != nil {
		fault := &FaultError{Index: entry.Index, Err: err}
		m.fault.Store(fault)
		return outcome{err: fault}
	}
	next, revision, err := m.now.with(c, f)
	switch {
	case err != nil:
		m.conflicts.Add(1)
		return outcome{err: err}
	case next.Position() == m.now.Position():
		m.unchanged.Add(1)
	default:
		m.changed.Add(1)
	}
	m.now = next
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
