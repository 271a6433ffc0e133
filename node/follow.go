package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/perigee-net/perigee/cluster/control"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/cluster/watch"
	"github.com/perigee-net/perigee/node/api"
)

const (
	// catchUpTime bounds how long a node that starts looks for what was agreed while it was away. Then it serves what it knows.
	catchUpTime = 3 * time.Second
	// followCheck is how often a node looks whether it is to follow others or hears a leader itself.
	followCheck = 250 * time.Millisecond
)

// openWatch makes the two ends of following: this node lets others follow it, and follows others while it is not in Raft.
func (n *Node) openWatch() {
	dial := func(ctx context.Context, name, address string) (net.Conn, error) {
		return n.port.Dial(ctx, address, name, control.Watch)
	}
	n.follower = watch.NewFollower(watch.FollowerConfig{
		Self: n.cfg.Name, Dial: dial, Sources: n.sources, State: n.agreed.Get, Take: n.learn, Newest: n.newest, Log: n.cfg.Log,
	})
	n.watched = watch.Serve(watch.ServerConfig{Listener: n.port.Service(control.Watch), State: &n.agreed, Depth: n.depth, Log: n.cfg.Log})
	n.counted = append(n.counted, n.follower, n.watched)
	n.onClose("watch", func(context.Context) error { return n.watched.Close() })
}

// sources are the nodes to follow, the best first: of the live ones, or at a start of those that were met before.
func (n *Node) sources() []watch.Source {
	members := n.view.Get().Members
	if len(members) > 1 {
		lead := n.leads()
		var all []watch.Member
		var self watch.Member
		for _, m := range members {
			w := watch.Member{Name: m.Name, Region: m.Region, Address: m.Control.String(), Voter: slices.Contains(lead.Voters, m.Name), RTT: n.view.Get().RTT[m.Name]}
			if m.Name == n.cfg.Name {
				self = w
			}
			all = append(all, w)
		}
		return watch.Order(self, all)
	}
	met := n.peers.controls()
	if len(met) == 0 && n.cfg.Join != "" && n.gossip == nil { // it starts, and has met nobody
		return []watch.Source{{Address: n.cfg.Join}}
	}
	return met
}

// newest is the highest revision that a live node is known to have.
func (n *Node) newest() uint64 {
	if n.gossip == nil {
		return 0
	}
	said := n.sayings()
	var newest uint64
	for _, m := range n.view.Get().Members {
		_, tried := readRunning(said[m.Name][runningKey])
		newest = max(newest, tried)
	}
	return newest
}

// inRaft says whether what is agreed comes to this node by Raft: it is a member, and hears a leader.
func (n *Node) inRaft() bool {
	if !n.raftIsOpen.Load() || n.store.Leader().Get().Name == "" {
		return false
	}
	return slices.ContainsFunc(n.store.Servers(), func(s store.Server) bool { return s.Name == n.cfg.Name && s.Voter })
}

// depth is how far this node is from Raft, for those that follow it.
func (n *Node) depth() int {
	if n.inRaft() {
		return 0
	}
	return n.follower.Depth()
}

// followOthers follows the watch stream of another node whenever what is agreed does not come by Raft, until the context ends.
func (n *Node) followOthers(ctx context.Context) {
	for ctx.Err() == nil {
		if n.inRaft() || len(n.sources()) == 0 {
			sleep(ctx, followCheck)
			continue
		}
		following, stop := context.WithCancel(ctx)
		n.goes(func() { // as soon as it is in Raft, it follows nobody
			defer stop()
			for following.Err() == nil && !n.inRaft() {
				sleep(following, followCheck)
			}
		})
		n.follower.Run(following)
		stop()
	}
}

// followsKey is the gossiped value of the node that one follows, for people who ask who follows whom.
const followsKey = "follows"

// tellSource tells all whom this node follows, until the context ends.
func (n *Node) tellSource(ctx context.Context) {
	for said := "-"; ; { // the first time it says so in any case: others may remember what it said before a restart
		source := ""
		if !n.inRaft() {
			source = n.follower.Source()
		}
		if source != said {
			said = source
			n.publish(followsKey, []byte(source))
		}
		if !sleep(ctx, sourceTime) {
			return
		}
	}
}

// sourceTime is how often a node looks whether it follows another one now.
const sourceTime = time.Second

// behindTime is how long a node may be behind in the cluster's own records, by what others say they have, until it asks around.
const behindTime = 250 * time.Millisecond

// keepLevel asks around whenever others have taken newer records of the cluster than this node: its source may be the very node
// that they have shut out, or be cut off, and would keep it in the dark. It ends with the context.
func (n *Node) keepLevel(ctx context.Context) {
	for version := uint64(0); ; {
		_, v, err := n.reports.Entries().Next(ctx, version)
		if err != nil {
			return
		}
		if version = v; !n.isBehind() {
			continue
		}
		if !sleep(ctx, behindTime) {
			return
		}
		for n.isBehind() && !n.inRaft() {
			if n.catchUp(ctx); !pause(ctx) {
				return
			}
		}
	}
}

// isBehind says whether a live node has newer records of the cluster than this one.
func (n *Node) isBehind() bool {
	have := n.agreed.Get().Own.Revision
	for _, p := range n.progress() {
		if p.Own > have {
			return true
		}
	}
	return false
}

// catchUp learns what was agreed while this node was away, if anybody tells.
func (n *Node) catchUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, catchUpTime)
	defer cancel()
	if len(n.sources()) == 0 {
		return
	}
	before := n.agreed.Get()
	if err := n.follower.CatchUp(ctx); err != nil {
		n.cfg.Log.Info("nobody tells what was agreed meanwhile: it starts with what it knows", "error", err)
		return
	}
	if now := n.agreed.Get(); now != nil && (before == nil || now.Position() != before.Position()) {
		n.cfg.Log.Info("caught up", "revision", now.Revision)
	}
}

// leadsKey is the gossiped value of the leader: its term, and who votes.
const leadsKey = "leads"

// lead is what the leader says of Raft to those who are not in it.
type lead struct {
	Name    string   `json:"-"`
	Address string   `json:"-"`
	Term    uint64   `json:"term"`
	Voters  []string `json:"voters"`
}

// lead tells all who leads; with nil that this node does not.
func (n *Node) lead(servers []store.Server) {
	var value []byte
	if servers != nil {
		now := lead{Term: n.store.Leader().Get().Term}
		for _, s := range servers {
			if s.Voter {
				now.Voters = append(now.Voters, s.Name)
			}
		}
		value, _ = json.Marshal(now)
	}
	if string(value) != n.said {
		n.said = string(value)
		n.publish(leadsKey, value)
	}
}

// leads is the leader and the voters: by this node's own part of Raft, or by what is said.
func (n *Node) leads() lead {
	if n.inRaft() {
		l := n.store.Leader().Get()
		now := lead{Name: l.Name, Address: l.Address, Term: l.Term}
		for _, s := range n.store.Servers() {
			if s.Voter {
				now.Voters = append(now.Voters, s.Name)
			}
		}
		return now
	}
	var newest lead
	if n.gossip == nil {
		return newest
	}
	said := n.sayings()
	for _, m := range n.view.Get().Members {
		var one lead
		if value := said[m.Name][leadsKey]; len(value) > 0 && json.Unmarshal(value, &one) == nil && one.Term >= newest.Term {
			one.Name, one.Address = m.Name, m.Control.String()
			newest = one
		}
	}
	return newest
}

// leader is the leader, if it is another node. Told to wait, it waits for one to be elected.
func (n *Node) leader(ctx context.Context, wait bool) (store.Leader, error) {
	for {
		lead := n.leads()
		switch {
		case lead.Name == n.cfg.Name && n.store.Leader().Get().Name == n.cfg.Name:
			return store.Leader{}, api.ErrIsLeader
		case lead.Name != "" && lead.Name != n.cfg.Name:
			l := store.Leader{Name: lead.Name, Address: lead.Address, Term: lead.Term}
			n.lastLeader.Store(&l)
			return l, nil
		}
		if !wait || !pause(ctx) {
			err := fmt.Errorf("%w: a majority of the voters must reach each other", api.ErrNoLeader)
			if last := n.lastLeader.Load(); last != nil {
				err = fmt.Errorf("%w (the last leader was %s at %s)", err, last.Name, last.Address)
			}
			return store.Leader{}, err
		}
	}
}
