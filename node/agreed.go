package node

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/edge/accelerator"
)

// running is which revision the data plane runs, and why not a newer one.
type running struct {
	spec    *spec.Spec
	table   *store.Table // the newest that is agreed, though the spec may be of an older one
	refused string
}

// plane is a part that runs a spec: it takes all of it, or returns why not and goes on with what it had.
type plane interface{ Apply(*spec.Spec) error }

// doorTime is how often doors that stay closed are tried again.
const doorTime = 5 * time.Second

// learn takes a state that is newer than what this node has: of Raft, of a watch stream, or of its disk.
func (n *Node) learn(s *store.State) {
	if s == nil {
		return
	}
	n.learning.Lock()
	defer n.learning.Unlock()
	if have := n.agreed.Get(); have == nil || newer(s, have) {
		n.agreed.Set(s)
	}
}

// newer says whether a state is to take the place of another. At one position two states differ only where this node
// followed a log that the cluster has given up: what is told now counts.
func newer(s, have *store.State) bool {
	if at := s.Position(); at != have.Position() {
		return at.AtLeast(have.Position())
	}
	return s.Sum() != have.Sum() || s.Own.Sum() != have.Own.Sum()
}

// known is the newest state that this node has: whoever is told that a change is agreed finds it here at once.
func (n *Node) known() *store.State {
	n.learn(n.store.State().Get())
	return n.agreed.Get()
}

// followRaft learns what Raft agrees on, until the context ends.
func (n *Node) followRaft(ctx context.Context) {
	for version := uint64(0); ; {
		state, v, err := n.store.State().Next(ctx, version)
		if err != nil {
			return
		}
		version = v
		n.learn(state)
	}
}

// followAgreed runs every revision that is agreed, until the context ends.
func (n *Node) followAgreed(ctx context.Context) {
	for version := uint64(0); ; {
		wait, cancel := context.WithCancel(ctx)
		if n.closed != "" {
			wait, cancel = context.WithTimeout(ctx, doorTime)
		}
		state, v, err := n.agreed.Next(wait, version)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			n.setDoors(n.running.Get().spec)
			continue
		}
		version = v
		n.take(state)
	}
}

// take makes a state so on this node.
func (n *Node) take(state *store.State) {
	n.takeRoster(state)
	if tried := n.tried; tried == nil || tried.Revision != state.Revision || tried.Sum() != state.Sum() {
		n.tried = &state.Table
		n.runState(state)
	}
}

// saveTime is how long changes gather until they are written together: a flush for each, on every node, would cost more
// than the change.
const saveTime = time.Second

// keepOnDisk saves what this node knows, until the context ends. What is lost with the power is what others still have, and
// on those that vote Raft's log.
func (n *Node) keepOnDisk(ctx context.Context) {
	for version, failed := uint64(0), false; ; {
		state, v, err := n.agreed.Next(ctx, version)
		if err != nil {
			return
		}
		version = v
		switch err = n.journal.Save(state); {
		case err != nil && !failed:
			failed = true
			n.cfg.Log.Error("what is agreed is not on disk: a restart without the cluster would serve an older state", "error", err)
		case err == nil && failed:
			failed = false
			n.cfg.Log.Info("what is agreed is on disk again")
		}
		if err == nil {
			n.saved.Store(state.Own.Revision)
			n.noteEpoch()
		}
		if !sleep(ctx, saveTime) {
			return // Close saves the rest
		}
	}
}

// runState runs a revision, or keeps the one before and says so to all.
func (n *Node) runState(state *store.State) {
	before := n.running.Get()
	now := running{table: &state.Table}
	built, err := n.specs.at(&state.Table)
	if err == nil {
		err = n.applyAll(before.spec, built)
	}
	if err != nil {
		now.spec, now.refused = before.spec, fmt.Sprintf("revision %d: %v", state.Revision, err)
		n.cfg.Log.Error("the revision is refused, the one before goes on", "revision", state.Revision, "runs", before.spec.Revision, "error", err)
	} else {
		now.spec = built
		n.cfg.Log.Info("runs", "revision", state.Revision)
	}
	n.running.Set(now)
	n.publishRunning()
}

// applyAll gives the spec to every plane; where one refuses it, those before it get the old one back.
func (n *Node) applyAll(old, next *spec.Spec) error {
	for i, p := range n.planes {
		err := applyOne(p, next)
		if err == nil {
			continue
		}
		for _, back := range n.planes[:i] {
			if again := applyOne(back, old); again != nil {
				err = errors.Join(err, fmt.Errorf("go back to revision %d: %w", old.Revision, again))
			}
		}
		return err
	}
	n.setDoors(next)
	return nil
}

// applyOne is Apply; a part that panics on a spec has refused it.
func applyOne(p plane, s *spec.Spec) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic in %T: %v\n%s", p, r, debug.Stack())
		}
	}()
	return p.Apply(s)
}

// networkOf is that of an accelerator's listener, as sockets have it.
func networkOf(l accelerator.Listener) string { return strings.ToLower(l.Protocol) }

// maxRefused bounds the reason that travels, in bytes.
const maxRefused = 400

// publishRunning tells the others which revision runs here.
func (n *Node) publishRunning() {
	run := n.running.Get()
	tried := run.spec.Revision
	if run.table != nil {
		tried = run.table.Revision
	}
	n.publish(runningKey, fmt.Appendf(nil, "%d %d", run.spec.Revision, tried))
	var refused []byte
	if run.refused != "" {
		refused = []byte(run.refused[:min(len(run.refused), maxRefused)])
	}
	n.publish(refusedKey, refused)
}

// readRunning reads which revision a node runs, and which it has tried to.
func readRunning(value []byte) (runs, tried uint64) {
	a, b, _ := strings.Cut(string(value), " ")
	runs, _ = strconv.ParseUint(a, 10, 64)
	tried, _ = strconv.ParseUint(b, 10, 64)
	return runs, tried
}
