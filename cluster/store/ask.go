package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// ErrUnknownOutcome says that a change may have been applied and may yet be, or not. Sent again with the same ID it is
// applied once.
var ErrUnknownOutcome = errors.New("whether it was applied is not known")

// ErrClosed says that the store is closed.
var ErrClosed = errors.New("store is closed")

// NotLeaderError says that only the leader can do what was asked, and that it was not done. Without a name nobody is known
// to lead.
type NotLeaderError struct {
	Name, Address string
}

func (e *NotLeaderError) Error() string {
	if e.Name == "" {
		return "there is no leader"
	}
	return fmt.Sprintf("%s is the leader, at %s", e.Name, e.Address)
}

// Server is a member of Raft.
type Server struct {
	Name, Address string
	Voter         bool
}

// Apply applies a change on all nodes and returns the revision at which it is in effect, as soon as it is so here. On
// any but the leader it is a *NotLeaderError. A change made for another revision is a *ConflictError. ErrUnknownOutcome, also
// when the context ends first, leaves open whether it was applied; every other error means that it was not.
func (s *Store) Apply(ctx context.Context, c Change) (revision uint64, err error) {
	if c.Time.IsZero() {
		c.Time = time.Now().UTC()
	}
	if fault := s.Fault(); fault != nil {
		return 0, fmt.Errorf("apply change: %w", fault)
	}
	if err := s.State().Get().check(c); err != nil {
		return 0, fmt.Errorf("apply change: %w", err)
	}
	data, err := encodeChange(c)
	if err != nil {
		return 0, fmt.Errorf("apply change: %w", err)
	}
	var out outcome
	err = s.ask(ctx, func() error {
		future := s.raft.Apply(data, 0)
		if err := future.Error(); err != nil {
			return err
		}
		out = future.Response().(outcome)
		if errors.As(out.err, new(*FaultError)) {
			return fmt.Errorf("%w: %w", ErrUnknownOutcome, out.err) // the others may have been able to read it
		}
		return out.err
	})
	if err != nil {
		return 0, fmt.Errorf("apply change: %w", err)
	}
	return out.revision, nil
}

// Verify returns when this node is known to lead, and its State to hold all that was agreed before the call. It costs
// an entry in the log.
func (s *Store) Verify(ctx context.Context) error {
	if err := s.ask(ctx, func() error { return s.raft.Barrier(0).Error() }); err != nil {
		return fmt.Errorf("verify leadership: %w", err)
	}
	return s.Fault()
}

// AddVoter makes a node a voting member, or gives a member a new address or a vote. The node must be reachable: one
// that is not would count against the majority from the first moment.
func (s *Store) AddVoter(ctx context.Context, name, address string) error {
	err := s.reach(ctx, name, address)
	if err == nil {
		err = s.ask(ctx, func() error {
			return s.raft.AddVoter(raft.ServerID(name), raft.ServerAddress(address), 0, 0).Error()
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
	err := s.ask(ctx, func() error {
		return s.raft.AddNonvoter(raft.ServerID(name), raft.ServerAddress(address), 0, 0).Error()
	})
	if err != nil {
		return fmt.Errorf("add nonvoter %s at %s: %w", name, address, err)
	}
	return nil
}

// Remove takes a node out of the members. It is not told; the last voter cannot be removed.
func (s *Store) Remove(ctx context.Context, name string) error {
	if err := s.ask(ctx, func() error { return s.raft.RemoveServer(raft.ServerID(name), 0, 0).Error() }); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// TransferLeadership gives the lead to the voter that is furthest on, so that nobody has to wait for an election when
// this node stops.
func (s *Store) TransferLeadership(ctx context.Context) error {
	if err := s.ask(ctx, func() error { return s.raft.LeadershipTransfer().Error() }); err != nil {
		return fmt.Errorf("transfer leadership: %w", err)
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
		leader := s.leader.Get()
		if leader.Name == s.cfg.Name { // not any more, or not yet
			leader = Leader{}
		}
		return &NotLeaderError{Name: leader.Name, Address: leader.Address}
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	}
	return err
}
