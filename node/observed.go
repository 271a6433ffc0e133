package node

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/gossip"
	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/node/api"
)

// followObserved assembles a new view whenever members, what they say, the links or the spec change, and
// has probed what is this node's to probe. It ends with the context.
func (n *Node) followObserved(ctx context.Context) {
	changed := make(chan struct{}, 1)
	wake := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	n.goes(func() { follow(ctx, n.gossip.Members().Next, wake) })
	n.goes(func() { follow(ctx, n.gossip.Entries().Next, wake) })
	n.goes(func() { follow(ctx, n.backbone.Links().Next, wake) })
	n.goes(func() { follow(ctx, n.running.Next, wake) })
	n.goes(func() { follow(ctx, n.roster.Next, wake) })
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		n.observe()
	}
}

// follow wakes at every new snapshot.
func follow[T any](ctx context.Context, next func(context.Context, uint64) (T, uint64, error), wake func()) {
	for version := uint64(0); ; {
		var err error
		if _, version, err = next(ctx, version); err != nil {
			return
		}
		wake()
	}
}

// observe publishes the view of this moment and sets the probes and links that follow from it. Round trips change
// every second, members and verdicts seldom: what follows from those is made again only when they do.
func (n *Node) observe() {
	g := &n.gossiped
	members, entries := n.gossip.Members().Version(), n.gossip.Entries().Version()
	if members != g.members || entries != g.entries {
		g.members, g.entries = members, entries
		said := n.gossip.Entries().Get()
		g.list = n.describe(n.gossip.Members().Get(), said)
		g.health = health.Merge(n.verdicts(said), health.DefaultQuorum)
	}
	if err := n.peers.seen(g.list, time.Now()); err != nil {
		n.cfg.Log.Error("remember the other nodes: a restart may not find them", "error", err)
	}
	v := &view.View{Self: n.cfg.Name, Members: g.list, Health: g.health, RTT: map[string]time.Duration{}, Unreachable: map[string]bool{}}
	links := n.backbone.Links().Get()
	peers := map[string]netip.AddrPort{}
	for _, m := range v.Members {
		if m.Name == n.cfg.Name {
			continue
		}
		peers[m.Name] = m.Control
		link, ok := links[m.Name]
		switch {
		case ok && link.Up:
			v.RTT[m.Name] = link.RTT
		case ok && !link.Since.IsZero():
			v.Unreachable[m.Name] = true
		}
	}
	n.view.Set(v)
	if l := n.leads(); l.Name != "" { // a node outside Raft is to name the last one too when it is cut off
		n.lastLeader.Store(&store.Leader{Name: l.Name, Address: l.Address, Term: l.Term})
	}
	if !maps.Equal(peers, n.kept) {
		n.kept = peers
		n.backbone.Keep(peers)
	}
	if checks, changed := n.chooser.Checks(n.running.Get().spec, v); changed {
		n.prober.Set(checks)
	}
}

// describe reads the members as they describe themselves, and what they say of it since.
func (n *Node) describe(members []gossip.Member, said gossip.Entries) []view.Member {
	var list []view.Member
	for _, m := range members {
		member, err := decodeMember(m)
		if err != nil {
			n.malformed.Add(1)
			continue
		}
		if n.isRevoked(m.Name) {
			continue
		}
		if said[m.Name][leavingKey] != nil {
			member.Roles = nil // still there, for what is in flight; chosen for nothing
		}
		list = append(list, member)
	}
	return list
}

// verdicts are what every live node says of what it probes.
func (n *Node) verdicts(entries map[string]map[string][]byte) map[string]map[health.Key]health.Verdict {
	all := map[string]map[health.Key]health.Verdict{}
	for node, values := range entries {
		for key, value := range values {
			name, isVerdict := strings.CutPrefix(key, verdictKey)
			if !isVerdict {
				continue
			}
			verdict, err := health.DecodeVerdict(value)
			if err != nil {
				n.malformed.Add(1)
				continue
			}
			if all[node] == nil {
				all[node] = map[health.Key]health.Verdict{}
			}
			all[node][health.Key(name)] = verdict
		}
	}
	return all
}

// report publishes what this node's own probes say; nil: it no longer probes that key.
func (n *Node) report(key health.Key, verdict *health.Verdict) {
	var value []byte
	if verdict != nil {
		value = health.EncodeVerdict(*verdict)
	}
	n.publish(verdictKey+string(key), value)
}

// encodeMember is what gossip carries of a member: short names, for gossip has 512 bytes.
func encodeMember(m view.Member) ([]byte, error) {
	return json.Marshal(memberMeta{Region: m.Region, POP: m.POP, Roles: m.Roles, Public: m.Public, Control: m.Control, API: m.API})
}

type memberMeta struct {
	Region  string         `json:"r"`
	POP     string         `json:"p"`
	Roles   []view.Role    `json:"o"`
	Public  []netip.Addr   `json:"a"`
	Control netip.AddrPort `json:"c"`
	API     netip.AddrPort `json:"i,omitzero"`
}

func decodeMember(m gossip.Member) (view.Member, error) {
	var meta memberMeta
	if err := json.Unmarshal(m.Meta, &meta); err != nil {
		return view.Member{}, fmt.Errorf("decode the description of %s: %w", m.Name, err)
	}
	return view.Member{Name: m.Name, Region: meta.Region, POP: meta.POP, Roles: meta.Roles, Public: meta.Public, Control: meta.Control, Gossip: m.Addr, API: meta.API}, nil
}

// status is the network as this node sees it.
func (n *Node) status() api.Status {
	run, v, lead, state := n.running.Get(), n.view.Get(), n.leads(), n.known()
	st := api.Status{
		Node: n.cfg.Name, Cluster: n.guard.Node().ClusterID(), Leader: lead.Name, Running: run.spec.Revision, Refused: run.refused,
		Revision: state.Revision, Own: state.Own.Revision, Expires: n.guard.Node().Expires(), Members: []api.MemberStatus{},
	}
	if !n.inRaft() {
		if st.Source = n.follower.Source(); st.Source != "" {
			st.Depth = n.follower.Depth()
		}
	}
	if err := n.store.Fault(); err != nil {
		st.Refused = err.Error()
	}
	voters := lead.Voters
	if len(voters) == 0 { // nobody leads; but who would vote is known to those in Raft
		for _, s := range n.store.Servers() {
			if s.Voter {
				voters = append(voters, s.Name)
			}
		}
	}
	st.Voters = len(voters)
	for _, name := range voters {
		if _, live := v.Member(name); !live {
			st.Missing = append(st.Missing, name)
		}
	}
	entries := n.gossip.Entries().Get()
	for _, m := range v.Members {
		said := entries[m.Name]
		runs, _ := readRunning(said[runningKey])
		rtt, up := v.RTT[m.Name]
		st.Members = append(st.Members, api.MemberStatus{
			Member: m, Running: runs, Refused: string(said[refusedKey]), Doors: string(said[doorsKey]), Follows: string(said[followsKey]), Vote: slices.Contains(voters, m.Name),
			RTT: rtt, Up: up || m.Name == n.cfg.Name,
		})
	}
	return st
}

// health is the verdicts as this node sees them, and who says what.
func (n *Node) health() []api.HealthEntry {
	table := n.view.Get().Health
	list := []api.HealthEntry{}
	for _, row := range table.All() {
		e := api.HealthEntry{
			Key: string(row.Key), Healthy: row.Verdict.Healthy, Reason: row.Verdict.Reason, Since: row.Verdict.Since, Views: map[string]string{},
		}
		for _, one := range table.Views(row.Key) {
			if e.Views[one.Node] = "healthy"; !one.Verdict.Healthy {
				e.Views[one.Node] = one.Verdict.Reason
			}
		}
		list = append(list, e)
	}
	return list
}

// counters are those of all parts.
func (n *Node) counters() map[string]uint64 {
	all := map[string]uint64{"node_malformed_total": n.malformed.Load(), "node_changes_busy_total": n.changes.busy.Load()}
	for _, part := range n.counted {
		maps.Copy(all, part.Counters())
	}
	for _, server := range []*api.Server{n.apis.public, n.apis.between, n.apis.socket, n.apis.within} {
		for name, count := range server.Counters() {
			all[name] += count
		}
	}
	return all
}

// retryTime is the pause between attempts to reach the cluster.
const retryTime = 500 * time.Millisecond
