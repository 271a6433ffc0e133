package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// ErrUnknownOutcome says that a change may have been applied and may yet be, or not. Sent again with the same ID it is
// applied once.
var ErrUnknownOutcome = errors.New("whether it was applied is not known")

// ErrClosed says that the store is closed.
var ErrClosed = errors.New("store is closed")

// ErrBusy says that too much was asked at once, and that it was not done.
var ErrBusy = errors.New("too many changes are under way")

// ErrNoMajority says that this node cannot be known to lead: too few of the others answered in time.
var ErrNoMajority = errors.New("no majority of the voters answers")

const (
	// maxPending and maxPendingBytes bound the changes that wait for their answer; more are ErrBusy.
	maxPending      = 1024
	maxPendingBytes = 64 << 20
)

// NotLeaderError says that only the leader can do what was asked, and that it was not done. Without a name nobody is known
// to lead; then Last is who did before, if anybody is known to have.
type NotLeaderError struct {
	Name, Address string
	Last          Leader
}

func (e *NotLeaderError) Error() string {
	switch {
	case e.Name != "":
		return fmt.Sprintf("%s is the leader, at %s", e.Name, e.Address)
	case e.Last.Name != "":
		return fmt.Sprintf("there is no leader; the last was %s, at %s", e.Last.Name, e.Last.Address)
	}
	return "there is no leader"
}

// Server is a member of Raft.
type Server struct {
	Name, Address string
	Voter         bool
}

// Pending is a change that is under way.
type Pending struct {
	data     []byte
	foretold prophecy
	future   raft.ApplyFuture
	answered chan struct{} // closed when revision and err are there
	revision uint64
	err      error
}

// Wait returns the revision at which the change is in effect, as soon as it is so here. Its errors are those of Apply.
func (p *Pending) Wait(ctx context.Context) (revision uint64, err error) {
	select {
	case <-p.answered:
		return p.revision, p.err
	default:
	}
	select {
	case <-p.answered:
		return p.revision, p.err
	case <-ctx.Done():
		return 0, fmt.Errorf("apply change: %w: %w", ErrUnknownOutcome, ctx.Err())
	}
}

// Apply applies a change on all nodes and returns the revision at which it is in effect, as soon as it is so here. On
// any but the leader it is a *NotLeaderError. A change made for another revision is a *ConflictError. ErrBusy and ErrNoRoom say
// that the leader takes no more for now. ErrUnknownOutcome, also when the context ends first, leaves open whether it was applied;
// every other error means that it was not.
func (s *Store) Apply(ctx context.Context, c Change) (revision uint64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("apply change: %w", err)
	}
	p, err := s.Submit(c)
	if err != nil {
		return 0, err
	}
	return p.Wait(ctx)
}

// Submit is Apply for those who do not wait: changes are judged in the order in which they were submitted, and one that follows
// another may be submitted before that is agreed. But one may fail and the next one not; a change that needs the one before
// names the revision it expects. Nobody has to wait for the answer.
func (s *Store) Submit(c Change) (*Pending, error) { return s.SubmitForetold(c, nil, nil) }

// SubmitForetold is Submit of a change with its time, of which With made next of over: where it comes over that very state, next is the state here.
func (s *Store) SubmitForetold(c Change, over, next *State) (*Pending, error) {
	p, err := s.submit(c, prophecy{over, next})
	if err != nil {
		return nil, fmt.Errorf("apply change: %w", err)
	}
	return p, nil
}

func (s *Store) submit(c Change, foretold prophecy) (*Pending, error) {
	if c.Time.IsZero() {
		c.Time = time.Now().UTC()
	}
	if fault := s.Fault(); fault != nil {
		return nil, fault
	}
	if err := s.State().Get().check(c); err != nil {
		return nil, err
	}
	data, err := encodeChange(s.shortened(c, foretold.over))
	if err != nil {
		return nil, err
	}
	if err := s.files.disk.roomFor(keptRoom + len(data)); err != nil && s.raft.State() == raft.Leader {
		return nil, err
	}
	if next := foretold.next; next == nil || next.Position() == foretold.over.Position() {
		foretold = prophecy{} // nothing, or only an answer, comes of it
	}
	p := &Pending{data: data, foretold: foretold, answered: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return nil, ErrClosed
	case s.pending >= maxPending, s.pending > 0 && s.size+len(data) > maxPendingBytes:
		return nil, ErrBusy
	}
	s.pending++
	s.size += len(data)
	s.asked.Add(1)
	s.proposed <- p // there is room: it holds maxPending
	return p, nil
}

// shortened is the change with edits in the place of large objects, where all members read such, and what they edit is known: by
// what the change was foretold over, or by what is agreed.
func (s *Store) shortened(c Change, over *State) Change {
	if c.Expect == nil || bytesOf(c.Put) < editsFrom || s.common() < formatEdited {
		return c
	}
	if over == nil {
		over = s.State().Get()
	}
	short, is := over.table(c.Space).edited(c)
	if is {
		s.edited.Add(1)
	}
	return short
}

// MayFollow says whether a node reads what is in the log of Raft's members; else it would stop at the first such entry. That may be all that those who are heard of
// read: one that is not is no reason to take others for as old.
func (s *Store) MayFollow(node string) bool {
	written := Format
	for _, m := range s.Servers() {
		if reads := s.reads(m.Name); reads != 0 {
			written = min(written, reads)
		}
	}
	return s.reads(node) >= written
}

// common is the newest format that all members of Raft are known to read.
func (s *Store) common() int {
	newest := Format
	for _, m := range s.Servers() {
		newest = min(newest, max(s.reads(m.Name), formatDeflated))
	}
	return newest
}

// WritesEdits says whether all members of Raft are known to read edits, so that they may be in the log.
func (s *Store) WritesEdits() bool { return s.common() >= formatEdited }

// reads is the newest format that a node is known to read, which is formatDeflated at least; 0: it is not heard of.
func (s *Store) reads(node string) int {
	switch {
	case node == s.cfg.Name:
		return Format
	case s.cfg.Reads == nil:
		return 0
	}
	if reads := s.cfg.Reads(node); reads != 0 {
		return max(reads, formatDeflated)
	}
	return 0
}

// propose hands the changes to Raft in their order, and waits for the answers beside it.
func (s *Store) propose() {
	handed := make(chan *Pending, maxPending)
	s.watching.Go(func() {
		for p := range handed {
			p.revision, p.err = s.answer(p.future)
			s.machine.forget(p.data)
			p.foretold = prophecy{}
			close(p.answered)
			s.mu.Lock()
			s.pending--
			s.size -= len(p.data)
			s.mu.Unlock()
			s.asked.Done()
		}
	})
	for p := range s.proposed {
		if p.foretold.next != nil {
			s.machine.foretell(p.data, p.foretold)
		}
		p.future = s.raft.Apply(p.data, 0)
		handed <- p
	}
	close(handed)
}

// answer waits for Raft's answer to a change.
func (s *Store) answer(future raft.ApplyFuture) (revision uint64, err error) {
	if err := future.Error(); err != nil {
		return 0, fmt.Errorf("apply change: %w", s.explain(err))
	}
	out := future.Response().(outcome)
	switch {
	case errors.As(out.err, new(*FaultError)): // the others may have been able to read it
		return 0, fmt.Errorf("apply change: %w: %w", ErrUnknownOutcome, out.err)
	case out.err != nil:
		return 0, fmt.Errorf("apply change: %w", out.err)
	}
	return out.revision, nil
}

// Applied is the index of the last log entry that this node has applied, or is about to.
func (s *Store) Applied() uint64 { return s.raft.AppliedIndex() }

// Verify returns when this node is known to lead, and its State to hold all that was agreed before the call. It costs a
// round trip to a majority, and the first of a term an entry in the log; those who ask at once share both.
func (s *Store) Verify(ctx context.Context) error {
	answer := make(chan error, 1)
	var err error
	select {
	case <-s.done:
		err = ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	case s.verifies <- answer:
		select {
		case err = <-answer:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		return fmt.Errorf("verify leadership: %w", err)
	}
	return s.Fault()
}

// confirmAll answers those who ask whether this node leads: all that ask before a round, by that round.
func (s *Store) confirmAll() {
	for {
		var asking []chan error
		select {
		case first := <-s.verifies:
			asking = append(asking, first)
		case <-s.done:
			return
		}
		for more := true; more; {
			select {
			case next := <-s.verifies:
				asking = append(asking, next)
			default:
				more = false
			}
		}
		err := s.confirm()
		for _, answer := range asking {
			answer <- err
		}
	}
}

// confirm finds out whether this node leads, by asking a majority from now on (Ongaro's dissertation, section 6.4). Raft's own
// VerifyLeader also counts answers to requests that were sent before: one that lay in this node's buffers while
// it was stopped would make it a leader after another was elected.
func (s *Store) confirm() error {
	term := s.raft.CurrentTerm()
	if s.raft.State() != raft.Leader {
		return s.notLeader()
	}
	if s.verified != term {
		// Until it has committed an entry of its own, a leader does not know what was agreed before it.
		if err := s.raft.Barrier(0).Error(); err != nil {
			return s.explain(err)
		}
		if s.raft.CurrentTerm() != term {
			return s.notLeader()
		}
		s.verified = term
		return nil
	}
	agreed := s.raft.CommitIndex()
	if err := s.majority(term); err != nil {
		return err
	}
	return s.catchUp(agreed)
}

// majority asks the voters whether they still follow this node in its term.
func (s *Store) majority(term uint64) error {
	voters, yes := 0, 0
	ctx, cancel := context.WithTimeout(context.Background(), s.raftConfig().HeartbeatTimeout+s.cfg.RoundTrip)
	defer cancel()
	self := raft.ServerID(s.cfg.Name)
	servers := s.raft.GetConfiguration().Configuration().Servers
	answers := make(chan *raft.AppendEntriesResponse, len(servers))
	for _, server := range servers {
		if server.Suffrage != raft.Voter {
			continue
		}
		voters++
		if server.ID == self {
			yes++
			continue
		}
		s.calls.Go(func() { answers <- s.heartbeat(ctx, server, term) })
	}
	asked := voters - yes
	for yes <= voters/2 {
		if asked == 0 {
			return ErrNoMajority
		}
		select {
		case answer := <-answers:
			asked--
			switch {
			case answer == nil:
			case answer.Term > term:
				return s.notLeader()
			case answer.Success && answer.Term == term:
				yes++
			}
		case <-ctx.Done():
			return ErrNoMajority
		case <-s.done:
			return ErrClosed
		}
	}
	return nil
}

// heartbeat asks a node whether it follows this one in a term; nil if it does not answer. It is asked one thing at a time.
func (s *Store) heartbeat(ctx context.Context, server raft.Server, term uint64) *raft.AppendEntriesResponse {
	t := s.transport
	t.mu.Lock()
	busy := t.peer(server.ID).busy
	t.mu.Unlock()
	select {
	case busy <- struct{}{}:
	case <-ctx.Done():
		return nil
	}
	defer func() { <-busy }()
	self := t.EncodePeer(raft.ServerID(s.cfg.Name), t.LocalAddr())
	var answer raft.AppendEntriesResponse
	err := t.AppendEntries(server.ID, server.Address, &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(s.cfg.Name), Addr: self},
		Term:      term,
	}, &answer)
	if err != nil {
		return nil
	}
	return &answer
}

// catchUp waits until all up to an entry is applied here.
func (s *Store) catchUp(agreed uint64) error {
	// Not every entry is given to the machine: the last one that is is waited for.
	applied := s.machine.applied.Get()
	for index := agreed; index > applied; index-- {
		var entry raft.Log
		if err := s.files.disk.GetLog(index, &entry); errors.Is(err, raft.ErrLogNotFound) {
			return nil // from here on a snapshot took the log's place, and is applied
		} else if err != nil {
			return err
		}
		if entry.Type == raft.LogCommand || entry.Type == raft.LogConfiguration {
			return s.appliedAt(index)
		}
	}
	return nil
}

func (s *Store) appliedAt(index uint64) error {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	for version := uint64(0); ; {
		applied, next, err := s.machine.applied.Next(ctx, version)
		if err != nil {
			return fmt.Errorf("wait for entry %d to be applied, %d is: %w", index, applied, err)
		}
		if applied >= index {
			return nil
		}
		version = next
	}
}

// Progress is how far a member follows: the index of the last entry in its log. Only the leader can ask.
func (s *Store) Progress(ctx context.Context, name string) (last uint64, err error) {
	if name == s.cfg.Name {
		return s.raft.LastIndex(), nil
	}
	term := s.raft.CurrentTerm()
	if s.raft.State() != raft.Leader {
		return 0, fmt.Errorf("ask how far %s is: %w", name, s.notLeader())
	}
	for _, server := range s.raft.GetConfiguration().Configuration().Servers {
		if string(server.ID) != name {
			continue
		}
		answers := make(chan *raft.AppendEntriesResponse, 1)
		err := s.call(func() { answers <- s.heartbeat(ctx, server, term) })
		if err != nil {
			return 0, fmt.Errorf("ask how far %s is: %w", name, err)
		}
		select {
		case answer := <-answers:
			if answer == nil || !answer.Success {
				return 0, fmt.Errorf("ask how far %s is: it does not answer", name)
			}
			return answer.LastLog, nil
		case <-ctx.Done():
			return 0, fmt.Errorf("ask how far %s is: %w", name, ctx.Err())
		}
	}
	return 0, fmt.Errorf("ask how far %s is: it is no member", name)
}

// call starts a request to another node, unless the store is being closed.
func (s *Store) call(do func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return ErrClosed
	}
	s.calls.Go(do)
	return nil
}

// Restore replaces all that is agreed by a state, on all nodes: what is under way is given up, with ErrUnknownOutcome. The caller
// has made the state's revisions greater than those that any node has, or nodes would take what they have for newer.
// Only the leader can, and a majority must be there. An error leaves open whether it is restored, unless it is one of Apply's that
// do not.
func (s *Store) Restore(ctx context.Context, state *State) error {
	now := s.State().Get().Position()
	if p := state.Position(); !now.Less(p) {
		return fmt.Errorf("restore state: it is at %v, and must be beyond %v", p, now)
	}
	if err := s.Verify(ctx); err != nil {
		return fmt.Errorf("restore state: %w", err)
	}
	if err := s.ask(ctx, func() error { return s.restoreAll(state) }); err != nil {
		return fmt.Errorf("restore state: %w", err)
	}
	return nil
}

func (s *Store) restoreAll(state *State) error {
	f, err := os.CreateTemp(s.cfg.Dir, "restore-*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	b := bufio.NewWriter(f)
	if err := errors.Join(WriteState(b, state), b.Flush()); err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := s.files.disk.roomFor(keptRoom + 2*int(size)); err != nil { // the snapshot's copy, and the next one
		return err
	}
	// Raft panics at a snapshot that the machine does not take.
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err := ReadState(bufio.NewReader(f)); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return s.raft.Restore(&raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Size: size}, f, 0)
}

// AddVoter makes a node a voting member, or gives a member a new address or a vote. The node must be reachable: one
// that is not would count against the majority from the first moment.
func (s *Store) AddVoter(ctx context.Context, name, address string) error {
	err := s.reach(ctx, name, address)
	if err == nil {
		err = s.change(ctx, func() raft.Future {
			return s.raft.AddVoter(raft.ServerID(name), raft.ServerAddress(address), 0, 0)
		})
	}
	if err != nil {
		return fmt.Errorf("add voter %s at %s: %w", name, address, err)
	}
	return nil
}

// AddNonvoter makes a node a member that follows and does not vote, or gives a member a new address; one that votes keeps
// its vote.
func (s *Store) AddNonvoter(ctx context.Context, name, address string) error {
	err := s.change(ctx, func() raft.Future {
		return s.raft.AddNonvoter(raft.ServerID(name), raft.ServerAddress(address), 0, 0)
	})
	if err != nil {
		return fmt.Errorf("add nonvoter %s at %s: %w", name, address, err)
	}
	return nil
}

// Demote takes a member's vote; it goes on to follow. The last vote cannot be taken. A leader that is demoted steps down.
func (s *Store) Demote(ctx context.Context, name string) error {
	if err := s.change(ctx, func() raft.Future { return s.raft.DemoteVoter(raft.ServerID(name), 0, 0) }); err != nil {
		return fmt.Errorf("demote %s: %w", name, err)
	}
	return nil
}

// Remove takes a node out of the members. It is not told; the last voter cannot be removed.
func (s *Store) Remove(ctx context.Context, name string) error {
	if err := s.change(ctx, func() raft.Future { return s.raft.RemoveServer(raft.ServerID(name), 0, 0) }); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	s.transport.forget(func(id raft.ServerID) bool {
		return slices.ContainsFunc(s.Servers(), func(m Server) bool { return m.Name == string(id) })
	})
	return nil
}

// change changes the members.
func (s *Store) change(ctx context.Context, how func() raft.Future) error {
	if err := s.files.disk.roomFor(membersRoom); err != nil && s.raft.State() == raft.Leader {
		return err
	}
	return s.ask(ctx, func() error { return how().Error() })
}

// TransferLeadership gives the lead to the voter that is furthest on, so that nobody has to wait for an election when
// this node stops.
func (s *Store) TransferLeadership(ctx context.Context) error {
	if err := s.ask(ctx, func() error { return s.raft.LeadershipTransfer().Error() }); err != nil {
		return fmt.Errorf("transfer leadership: %w", err)
	}
	return nil
}

// TransferTo gives the lead to a voter. Until that leads, or after some seconds has not come to lead, changes are refused.
func (s *Store) TransferTo(ctx context.Context, name string) error {
	servers := s.Servers()
	i := slices.IndexFunc(servers, func(m Server) bool { return m.Name == name && m.Voter })
	if i < 0 {
		return fmt.Errorf("transfer leadership to %s: it is no voter", name)
	}
	err := s.ask(ctx, func() error {
		return s.raft.LeadershipTransferToServer(raft.ServerID(name), raft.ServerAddress(servers[i].Address)).Error()
	})
	if err != nil {
		return fmt.Errorf("transfer leadership to %s: %w", name, err)
	}
	return nil
}

// Servers lists the members of Raft that this node knows of; a change of them that is not agreed yet is included.
func (s *Store) Servers() []Server {
	var servers []Server
	for _, m := range s.raft.GetConfiguration().Configuration().Servers {
		servers = append(servers, Server{Name: string(m.ID), Address: string(m.Address), Voter: m.Suffrage == raft.Voter})
	}
	return servers
}

// reach finds out whether a node is there.
func (s *Store) reach(ctx context.Context, name, address string) error {
	if name == s.cfg.Name {
		return nil
	}
	conn, err := s.cfg.Dial(ctx, name, address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// ask waits for Raft's answer or the context's end, whichever comes first. Close waits for the answers that nobody
// waits for any more: Raft answers every request as long as it runs, and not all of them once it is ended.
func (s *Store) ask(ctx context.Context, question func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return ErrClosed
	}
	s.asked.Add(1)
	s.mu.Unlock()
	answered := make(chan error, 1)
	go func() {
		defer s.asked.Done()
		answered <- question()
	}()
	select {
	case err := <-answered:
		return s.explain(err)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, ctx.Err())
	}
}

// explain says Raft's errors in our words.
func (s *Store) explain(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return s.notLeader()
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown), errors.Is(err, raft.ErrAbortedByRestore):
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return ErrBusy
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	return err
}

// notLeader says who leads instead.
func (s *Store) notLeader() error {
	leader := s.leader.Get()
	if leader.Name == s.cfg.Name { // not any more, or not yet
		leader = Leader{}
	}
	return &NotLeaderError{Name: leader.Name, Address: leader.Address, Last: *s.last.Load()}
}
