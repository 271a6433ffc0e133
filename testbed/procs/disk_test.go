//go:build linux

package procs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/tmpfs"
)

// diskBytes is the size of a node's disk in these tests.
const diskBytes = 96 << 20

// ownDisk gives a node a small disk of its own for its folder. Only root can.
func ownDisk(t *testing.T, n *Node) {
	t.Helper()
	if err := os.MkdirAll(n.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	tmpfs.Mount(t, n.Data, diskBytes)
	t.Cleanup(n.Kill) // before it goes
}

func filler(n *Node) string { return filepath.Join(n.Data, "filler") }

// fill fills the disk of a node to the last byte, all but so many.
func fill(t *testing.T, n *Node, spare int64) {
	t.Helper()
	f, err := os.OpenFile(filler(n), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size /= 2 {
		for err == nil {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		err = nil
	}
	if spare > 0 {
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(info.Size() - spare); err != nil {
			t.Fatal(err)
		}
	}
}

func makeRoom(t *testing.T, n *Node) {
	t.Helper()
	if err := os.Remove(filler(n)); err != nil {
		t.Fatal(err)
	}
}

// ledger is what was acknowledged.
type ledger struct {
	n    int
	last uint64
}

// change makes one more change at a node: a target group that no other change touches.
func (l *ledger) change(ctx context.Context, n *Node) error {
	name := fmt.Sprintf("ledger-%d", l.n+1)
	res, err := n.Client().Apply(ctx, api.ApplyRequest{ID: name, Files: []api.File{{Name: name, Data: fmt.Sprintf(
		"kind: TargetGroup\nname: %s\nregion: eu-central-1\nprotocol: HTTP\nport: 80\n", name)}}})
	if err == nil {
		l.n++
		l.last = res.Revision
	}
	return err
}

// kept says what of all that was acknowledged a node has not.
func (l *ledger) kept(ctx context.Context, n *Node) error {
	list, err := n.Client().Resources(ctx, api.ResourcesQuery{Kind: "TargetGroup"})
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, r := range list.Resources {
		there[r.Name] = true
	}
	for i := 1; i <= l.n; i++ {
		if name := fmt.Sprintf("ledger-%d", i); !there[name] {
			return fmt.Errorf("%s at revision %d has lost %s", n.Name, list.Revision, name)
		}
	}
	return nil
}

func TestAFullDiskStopsChangesAtMostAndNothingElse(t *testing.T) {
	t.Parallel()
	c := open(t)
	for range 3 {
		ownDisk(t, c.Add())
	}
	ctx := within(t, comeUp+3*time.Minute)
	if err := c.Found(ctx, 3, 3); err != nil {
		t.Fatal(err)
	}
	serveSite(ctx, t, c)
	all := &ledger{}
	changes := func(what string, at *Node) { // it must be taken, sooner or later
		t.Helper()
		began := time.Now()
		if err := at.Await(ctx, "takes a change with "+what, func(ctx context.Context, _ *api.Client) error { return all.change(ctx, at) }); err != nil {
			t.Fatal(err)
		}
		t.Logf("with %s, %s takes a change after %v", what, at.Name, time.Since(began).Round(time.Millisecond))
	}
	serve := func(what string) {
		t.Helper()
		for _, n := range c.Nodes {
			if err := serves(n); err != nil {
				t.Errorf("with %s: %v", what, err)
			}
			if _, err := n.Client().Resources(ctx, api.ResourcesQuery{}); err != nil {
				t.Errorf("with %s: read at %s: %v", what, n.Name, err)
			}
		}
	}
	healed := func(what string) {
		t.Helper()
		began := time.Now()
		if err := c.Whole(ctx, 3); err != nil {
			t.Fatalf("after %s: %v", what, err)
		}
		for _, n := range c.Nodes {
			if err := all.kept(ctx, n); err != nil {
				t.Errorf("after %s: %v", what, err)
			}
		}
		t.Logf("after %s, all are one again after %v", what, time.Since(began).Round(time.Millisecond))
	}
	for _, n := range c.Nodes {
		changes("room", n)
	}
	leader := c.Leader(ctx)
	other := c.Nodes[0]
	if other == leader {
		other = c.Nodes[1]
	}

	fill(t, other, 0)
	for range 20 {
		changes("a full follower", leader)
	}
	changes("a full follower, asked", other)
	serve("a full follower")
	makeRoom(t, other)
	healed("a full follower")

	fill(t, leader, 8<<20)
	for range 3 {
		changes("a leader that is nearly full", other)
	}
	serve("a leader that is nearly full")
	makeRoom(t, leader)
	healed("a leader that was nearly full")

	leader = c.Leader(ctx)
	fill(t, leader, 0)
	for range 3 {
		changes("a full leader", leader)
	}
	serve("a full leader")
	makeRoom(t, leader)
	healed("a full leader")

	for _, n := range c.Nodes {
		fill(t, n, 0)
	}
	for _, n := range c.Nodes {
		err := all.change(ctx, n)
		var refusal *api.Error
		if err == nil || !errors.As(err, &refusal) || !strings.Contains(err.Error(), "room") {
			t.Errorf("all full, a change at %s: got %v", n.Name, err)
		}
		t.Logf("all full: %v", err)
	}
	serve("all full")
	for _, n := range c.Nodes {
		makeRoom(t, n)
	}
	changes("room again", c.Nodes[0])
	healed("all were full")

	for _, n := range c.Nodes {
		n.Kill()
	}
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	healed("the power was lost")
}
