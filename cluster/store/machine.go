package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/perigee-net/perigee/cluster/latest"
)

// machine applies the log (raft.BatchingFSM). It judges nothing but what State.With judges. At an entry that it cannot read,
// written by a newer release, or that edits what this node has not, it stops for good: to pass over the entry would make this node differ from the others in silence.
// A snapshot that it can read, or a newer release in its place, lets it go on.
type machine struct {
	now       *State // as of the last entry; owned by Raft's one goroutine
	known     *State // what this node held before, until the log has come as far; nil: nothing
	published latest.Value[*State]
	fault     atomic.Pointer[FaultError]

	changed, unchanged, conflicts atomic.Uint64

	mu       sync.Mutex
	foretold map[*byte]prophecy // by the data of entries that this node has proposed
}

// prophecy is what With made of a state and a change.
type prophecy struct{ over, next *State }

// foretell has an entry, known by the memory of its data, not be read again, nor applied anew, if it comes over the state that it was
// foretold over: With is pure. It is until the entry is forgotten.
func (m *machine) foretell(data []byte, p prophecy) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.foretold == nil {
		m.foretold = map[*byte]prophecy{}
	}
	m.foretold[first(data)] = p
}

func (m *machine) forget(data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.foretold, first(data))
}

// first is where data are in memory.
func first(data []byte) *byte {
	if len(data) == 0 {
		return nil
	}
	return &data[0]
}

// fulfilled takes the state that was foretold, if it was foretold of what there is now.
func (m *machine) fulfilled(data []byte) (next *State, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.foretold[first(data)]
	return p.next, ok && p.over == m.now
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
	if next, ok := m.fulfilled(entry.Data); ok {
		revision := next.Revision
		if next.Revision == m.now.Revision {
			revision = next.Own.Revision
		}
		m.now, *f = next, fresh{} // others have it already
		m.changed.Add(1)
		m.caughtUp()
		return outcome{revision: revision}
	}
	c, err := decodeChange(entry.Data)
	if err == nil {
		c, err = m.now.whole(c)
	}
	if errors.As(err, new(*ConflictError)) {
		m.conflicts.Add(1)
		return outcome{err: err}
	}
	if err != nil {
		fault := &FaultError{Index: entry.Index, Err: err}
		m.fault.Store(fault)
		return outcome{err: fault}
	}
	m.share(c.Space, c.Put)
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
	m.caughtUp()
	return outcome{revision: revision}
}

// share gives objects that are as they were known before the same memory: else a node that was started again would hold most of them twice,
// as it read them from its journal and as they come from the log.
func (m *machine) share(space Space, objects []Object) {
	if m.known == nil {
		return
	}
	for i := range objects {
		o := &objects[i]
		if known, ok := m.known.table(space).Get(o.Kind, o.Name); ok && bytes.Equal(known.Bytes, o.Bytes) {
			o.Bytes = known.Bytes
		}
	}
}

// caughtUp forgets what was known before where the log has come as far.
func (m *machine) caughtUp() {
	if m.known != nil && m.now.Revision >= m.known.Revision && m.now.Own.Revision >= m.known.Own.Revision {
		m.known = nil
	}
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
	m.share(Spec, s.Objects)
	m.share(Own, s.Own.Objects)
	m.now = s
	m.caughtUp()
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
