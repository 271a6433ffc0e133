package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/roster"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/node/api"
)

const (
	// applyTimeout bounds how long a change waits for a leader and for its answer.
	applyTimeout = 10 * time.Second

	// maxWaiting bounds the changes that are being judged or wait for the log on the leader; who comes beyond it is told to
	// come again later (429), and nothing was done.
	maxWaiting = 512

	// maxDecisions bounds how often a decision about the cluster's own records is taken anew because another came first.
	maxDecisions = 16
)

// changes is the leader's queue of changes. They are judged one after the other, each over what the log will have led to
// when all before it are applied, and wait for the log together: one write to disk takes many of them.
type changes struct {
	waiting atomic.Int64
	busy    atomic.Uint64 // who was told to come again

	mu   sync.Mutex
	head base           // after all that were submitted; zero: what the store has
	last *store.Pending // the newest that was submitted
	open int            // submitted and not answered
	term uint64         // of the lead in which the store is known to have all that was agreed before
}

// change judges a change on the leader and brings it into the log. With expect it must follow that revision. Told to try only,
// or where it has no effect or is refused, nothing is written, and the answer is true of what is agreed. One whose ID was
// applied before is not judged again: over what it led to it would be a conflict, or have nothing left to do.
func (n *Node) change(ctx context.Context, id string, expect *uint64, dryRun bool, judge func(base) (plan, error)) (api.ApplyResponse, error) {
	c := &n.changes
	defer c.waiting.Add(-1)
	if c.waiting.Add(1) > maxWaiting {
		c.busy.Add(1)
		return api.ApplyResponse{}, fmt.Errorf("%w: %d changes wait already, and nothing was changed", api.ErrBusy, maxWaiting)
	}
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	for {
		if err := n.mustLead(ctx); err != nil {
			return api.ApplyResponse{}, err
		}
		p, pending, before, err := n.submit(id, expect, dryRun, judge)
		if pending == nil {
			if before != nil { // judged over what was not agreed yet: it must have become so
				if _, failed := before.Wait(ctx); failed != nil && ctx.Err() == nil {
					continue
				}
			}
			if n.store.Verify(ctx) != nil {
				return api.ApplyResponse{}, api.ErrNotLeader
			}
			return p.response, err
		}
		revision, err := pending.Wait(ctx)
		c.answered(err)
		switch {
		case err == nil:
			p.response.Revision = revision
			return p.response, nil
		case errors.As(err, new(*store.NotLeaderError)):
			return api.ApplyResponse{}, api.ErrNotLeader
		case errors.Is(err, store.ErrNoRoom):
			return api.ApplyResponse{}, n.noRoom(err)
		case errors.As(err, new(*store.ConflictError)) && ctx.Err() == nil:
			continue // one before it did not come into the log; this one may stand without it
		default:
			return api.ApplyResponse{}, &api.Error{Status: http.StatusServiceUnavailable, Message: "apply: " + err.Error()}
		}
	}
}

// mustLead returns when this node leads and has all that was agreed before.
func (n *Node) mustLead(ctx context.Context) error {
	leader := n.store.Leader().Get()
	if leader.Name != n.cfg.Name {
		return api.ErrNotLeader
	}
	c := &n.changes
	c.mu.Lock()
	known := c.term == leader.Term
	c.mu.Unlock()
	if known {
		return nil
	}
	if n.store.Verify(ctx) != nil || n.founded(ctx) != nil {
		return api.ErrNotLeader
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.term, c.head = leader.Term, base{}
	return nil
}

// founded returns when the founding of the cluster is agreed: nothing comes into the log before it.
func (n *Node) founded(ctx context.Context) error {
	for version := uint64(0); ; {
		state, v, err := n.store.State().Next(ctx, version)
		if err != nil {
			return err
		}
		if version = v; state != nil && state.Own.Revision > 0 {
			return nil
		}
	}
}

// submit judges one change and hands it to Raft, in one go. Without a pending there is nothing to wait for but what it was
// judged over, if that is not agreed yet.
func (n *Node) submit(id string, expect *uint64, dryRun bool, judge func(base) (plan, error)) (p plan, pending, before *store.Pending, err error) {
	c := &n.changes
	c.mu.Lock()
	defer c.mu.Unlock()
	over := c.head
	if over.state == nil {
		if over.state = n.store.State().Get(); over.state == nil {
			over.state = new(store.State)
		}
		if over.spec, err = n.specs.at(&over.state.Table); err != nil {
			return plan{}, nil, nil, &api.Error{Status: http.StatusInternalServerError,
				Message: fmt.Sprintf("revision %d is not understood by the leader, which must be of an older release: %v", over.state.Revision, err)}
		}
	} else {
		before = c.last
	}
	if revision, done := over.state.Answered(store.Spec, id); done && !dryRun {
		return plan{response: appliedBefore(over.state, revision)}, nil, before, nil
	}
	if expect != nil && *expect != over.state.Revision {
		return plan{}, nil, before, api.Conflict(*expect, over.state.Revision)
	}
	if p, err = judge(over); err != nil || dryRun || p.empty() {
		return p, nil, before, err
	}
	next, _, err := over.state.With(p.change)
	if err != nil {
		return plan{}, nil, before, fmt.Errorf("predict the change: %w", err)
	}
	if pending, err = n.store.SubmitForetold(p.change, over.state, next); err != nil {
		switch {
		case errors.As(err, new(*store.NotLeaderError)):
			err = api.ErrNotLeader
		case errors.Is(err, store.ErrBusy):
			c.busy.Add(1)
			err = api.ErrBusy
		case errors.Is(err, store.ErrNoRoom):
			err = n.noRoom(err)
		default:
			err = &api.Error{Status: http.StatusUnprocessableEntity, Message: err.Error()}
		}
		return plan{}, nil, nil, err
	}
	n.specs.keep(&next.Table, p.spec)
	c.head, c.last = base{next, p.spec}, pending
	c.open++
	return p, pending, nil, nil
}

// noRoom says whose disk is full, and has the lead given to another node.
func (n *Node) noRoom(err error) *api.Error {
	n.full.Store(true)
	return &api.Error{Status: http.StatusInsufficientStorage, Message: fmt.Sprintf("the leader, %s, takes no changes: %v", n.cfg.Name, err)}
}

// answered takes note of one that was submitted. Where it failed, what was foretold is not so.
func (c *changes) answered(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open--; c.open == 0 || err != nil {
		c.head, c.last = base{}, nil
	}
}

// decide changes the cluster's own records, on the leader: f decides over the newest, and is asked again where another
// decision came first.
func (n *Node) decide(ctx context.Context, f func(*roster.Roster) (store.Change, error)) error {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	select {
	case n.deciding <- struct{}{}:
	case <-ctx.Done():
		return api.ErrBusy
	}
	defer func() { <-n.deciding }()
	for range maxDecisions {
		if err := n.mustLead(ctx); err != nil {
			return err
		}
		state := n.store.State().Get()
		now, err := n.rosters.at(&state.Own)
		if err != nil {
			return err
		}
		change, err := f(now)
		if err != nil {
			return err
		}
		_, err = n.store.Apply(ctx, change)
		switch {
		case err == nil:
			return nil
		case errors.As(err, new(*store.NotLeaderError)):
			return api.ErrNotLeader
		case errors.As(err, new(*store.ConflictError)):
			continue
		default:
			return &api.Error{Status: http.StatusServiceUnavailable, Message: err.Error()}
		}
	}
	return &api.Error{Status: http.StatusServiceUnavailable, Message: "too many decisions at once: come again"}
}
