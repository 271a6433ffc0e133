package node

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/event"
	"github.com/perigee-net/perigee/cluster/gossip"
	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/probe"
	"github.com/perigee-net/perigee/cluster/report"
	"github.com/perigee-net/perigee/cluster/roster"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/node/api"
)

// followObserved assembles a new view whenever members, what they say, the links, the orders or the spec change, and
// has probed what is this node's to probe. It ends with the context.
func (n *Node) followObserved(ctx context.Context) {
	n.goes(func() { follow(ctx, n.gossip.Members().Next, n.look) })
	n.goes(func() { follow(ctx, n.reports.Entries().Next, n.look) })
	n.goes(func() { follow(ctx, n.backbone.Links().Next, n.look) })
	n.goes(func() { follow(ctx, n.running.Next, n.look) })
	n.goes(func() { follow(ctx, n.roster.Next, n.look) })
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.looks:
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

// observed is what observe keeps from one time to the next, so that it makes again only what has changed.
type observed struct {
	members, entries uint64 // versions
	roster           *roster.Roster
	effects          *roster.Effects
	list             []view.Member
	described        map[string]described // by name

	merger  *health.Merger
	said    report.Entries // of which the merger knows the verdicts
	spec    *spec.Spec     // by which they were merged
	table   *health.Table
	moment  event.State // that the newest events tell of
	drawn   time.Time   // when the map of distances was
	peers   map[string]netip.AddrPort
	chooser probe.Chooser
	drained bool // this node's doors are retired

	announced string // what routers are told, in words
}

// described is what a member says of itself, read.
type described struct {
	meta   []byte
	at     netip.AddrPort
	member view.Member
	err    error
}

// observe publishes the view of this moment, tells what is new in it, and sets the probes and links that follow from it. Round
// trips change every second, members and verdicts seldom: what follows from those is made again only when they do.
func (n *Node) observe() {
	g := &n.observed
	members, entries, agreed, effects := n.gossip.Members().Version(), n.reports.Entries().Version(), n.roster.Get(), n.orders.effects.Load()
	said, s := n.sayings(), n.running.Get().spec
	others := members != g.members || agreed != g.roster || effects != g.effects || entries != g.entries
	moved := false
	if others {
		g.members, g.roster, g.effects = members, agreed, effects
		before := g.list
		g.list = view.Drain(n.describe(n.gossip.Members().Get(), said), n.drainRules())
		if !slices.EqualFunc(before, g.list, sameMember) {
			moved = true
			n.controls.set(g.list)
			n.reports.SetMembers(peersOf(g.list))
		} else {
			g.list = before
		}
	}
	v := &view.View{Self: n.cfg.Name, Members: g.list, RTT: map[string]time.Duration{}, Paths: map[string]view.Path{}, Unreachable: map[string]bool{}, Distance: n.away, Clients: n.clientMap.Load()}
	v.Detour = view.Detours(v, n.measuredBetween)
	if moved || g.table == nil || s != g.spec || entries != g.entries {
		n.mergeVerdicts(v, s, said, moved || s != g.spec)
	}
	v.Health = g.table
	if others {
		n.hear(said, g.list)
	}
	v.Fenced = n.isFenced()
	if err := n.peers.seen(g.list, time.Now()); err != nil {
		n.cfg.Log.Error("remember the other nodes: a restart may not find them", "error", err)
	}
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
			v.Paths[m.Name] = view.Path{Loss: link.Loss, Parity: link.Parity, TCP: link.TCP, Sent: link.Sent, Received: link.Received, Carried: link.Carried, CarriedTCP: link.CarriedTCP}
		case ok && !link.Since.IsZero():
			v.Unreachable[m.Name] = true
		}
	}
	n.view.Set(v)
	if now := time.Now(); others && now.Sub(g.drawn) >= mapTime {
		g.drawn = now
		n.drawMap()
	}
	g.entries = entries
	n.reviewFlows(s, n.tellWhatTurned(s, v))
	n.serveDrained(v)
	n.attract(v)
	if l := n.leads(); l.Name != "" { // a node outside Raft is to name the last one too when it is cut off
		n.lastLeader.Store(&store.Leader{Name: l.Name, Address: l.Address, Term: l.Term})
	}
	if !maps.Equal(peers, g.peers) {
		g.peers = peers
		n.backbone.Keep(peers)
	}
	if checks, changed := g.chooser.Checks(s, v); changed {
		n.prober.Set(checks)
	}
}

func sameMember(a, b view.Member) bool {
	return a.Name == b.Name && a.Region == b.Region && a.POP == b.POP && slices.Equal(a.Roles, b.Roles) && slices.Equal(a.Public, b.Public) &&
		a.Control == b.Control && a.Gossip == b.Gossip && a.API == b.API && a.Leaving == b.Leaving && a.Drained == b.Drained && slices.Equal(a.Needed, b.Needed) &&
		a.Lasting == b.Lasting && a.Tells == b.Tells && a.Timed == b.Timed && a.Asks == b.Asks // another release, after a restart
}

func peersOf(members []view.Member) []report.Peer {
	peers := make([]report.Peer, len(members))
	for i, m := range members {
		peers[i] = report.Peer{Name: m.Name, Region: m.Region}
	}
	return peers
}

// mergeVerdicts makes the table of verdicts, from those that have changed; or from all again, where others may have a voice.
func (n *Node) mergeVerdicts(v *view.View, s *spec.Spec, said report.Entries, again bool) {
	g := &n.observed
	for node := range g.said {
		if _, still := said[node]; !still {
			g.merger.Set(node, nil)
		}
	}
	for node, values := range said {
		if reflect.ValueOf(values).UnsafePointer() != reflect.ValueOf(g.said[node]).UnsafePointer() {
			g.merger.Set(node, n.verdicts(values))
		}
	}
	g.said, g.spec = said, s
	if again {
		g.merger.Again()
	}
	g.table = g.merger.Table(health.Rule(*s.Settings().HealthCheckQuorum), probe.Entitled(s, v))
}

// told are effects that are among the events, with their IDs.
type told struct {
	effects []event.Effect
	ids     []uint64
}

// tellWhatTurned adds what is other than at the last moment to the events, and ends flows to targets that turned unhealthy.
func (n *Node) tellWhatTurned(s *spec.Spec, v *view.View) told {
	g := &n.observed
	before, now := g.moment, event.State{Spec: s, View: v, Index: g.moment.Index}
	if before.Spec != s {
		now.Index = event.NewIndex(s)
	}
	g.moment = now
	effects := event.Effects(before, now)
	if len(effects) == 0 {
		return told{}
	}
	n.orders.mu.Lock()
	cause := n.orders.drainEvent
	n.orders.mu.Unlock()
	for i := range effects {
		if effects[i].Kind == event.Drain && cause != 0 && len(effects[i].Causes) == 0 {
			effects[i].Because = []uint64{cause}
		}
	}
	ids := n.events.Record(effects)
	for i, e := range effects {
		key := health.Key(e.Subject)
		if e.Kind != event.Health || !key.IsTarget() {
			continue
		}
		if verdict, known := v.Health.Lookup(key); known && !verdict.Healthy {
			if flows := n.origin.Flows(key); flows > 0 {
				n.events.Add(event.Route, e.Subject, fmt.Sprintf("of %d flows to it %d are ended", flows, n.origin.Terminate(key)), ids[i])
			}
		}
	}
	return told{effects, ids}
}

// serveDrained has this node's doors send their clients elsewhere while it is drained, and take them again afterwards.
func (n *Node) serveDrained(v *view.View) {
	me, lives := v.Member(n.cfg.Name)
	if !lives || me.Leaving {
		return
	}
	drained := me.Drained != "" && !slices.Contains(me.Needed, view.Edge)
	if drained == n.observed.drained {
		return
	}
	if n.observed.drained = drained; drained {
		n.front.Retire()
	} else {
		n.front.Resume()
	}
}

// describe reads the members as they describe themselves, and what they say of it since.
func (n *Node) describe(members []gossip.Member, said report.Entries) []view.Member {
	var list []view.Member
	before := n.observed.described
	n.observed.described = make(map[string]described, len(members))
	for _, m := range members {
		d, known := before[m.Name]
		if !known || d.at != m.Addr || !bytes.Equal(d.meta, m.Meta) {
			d = described{meta: m.Meta, at: m.Addr}
			if d.member, d.err = decodeMember(m); d.err != nil {
				n.malformed.Add(1)
			}
		}
		n.observed.described[m.Name] = d
		if d.err != nil {
			continue
		}
		member := d.member
		if n.isRevoked(m.Name) {
			continue
		}
		if long := said[m.Name][publicKey]; long != nil && json.Unmarshal(long, &member.Public) != nil {
			n.malformed.Add(1)
		}
		member.Leaving = said[m.Name][leavingKey] != nil
		list = append(list, member)
	}
	return list
}

// verdicts are what one node says of what it probes.
func (n *Node) verdicts(values map[string][]byte) map[health.Key]health.Verdict {
	all := map[health.Key]health.Verdict{}
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
		all[health.Key(name)] = verdict
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

// encodeMember is what gossip carries of a member: short names, for gossip has 512 bytes. Where its addresses do not fit
// they are left out, and long is what it says of them otherwise.
func encodeMember(m view.Member) (meta, long []byte, err error) {
	d := memberMeta{Reads: store.Format, Region: m.Region, POP: m.POP, Roles: m.Roles, Public: m.Public, Control: m.Control, API: m.API, Tells: m.Tells, Lasting: m.Lasting, Timed: m.Timed, Asks: m.Asks}
	if meta, err = json.Marshal(d); err != nil || len(meta) <= gossip.MaxMeta {
		return meta, nil, err
	}
	if long, err = json.Marshal(m.Public); err != nil {
		return nil, nil, err
	}
	d.Public = nil
	meta, err = json.Marshal(d)
	return meta, long, err
}

type memberMeta struct {
	Region  string         `json:"r"`
	POP     string         `json:"p"`
	Roles   []view.Role    `json:"o"`
	Public  []netip.Addr   `json:"a"`
	Control netip.AddrPort `json:"c"`
	API     netip.AddrPort `json:"i,omitzero"`
	Tells   bool           `json:"t,omitempty"` // view.Member.Tells
	Timed   bool           `json:"w,omitempty"` // view.Member.Timed
	Asks    bool           `json:"k,omitempty"` // view.Member.Asks
	Lasting bool           `json:"l,omitempty"`
	Reads   int            `json:"f,omitempty"` // the newest format of the log that it reads (store.Format)
}

// reads is the newest format of the log that a live node says it reads, 1 if it is of a release that says none; 0 if it is not live.
func (n *Node) reads(name string) int {
	if !n.gossips.Load() {
		return 0
	}
	members := n.gossip.Members().Get()
	i, found := slices.BinarySearchFunc(members, name, func(m gossip.Member, name string) int { return cmp.Compare(m.Name, name) })
	if !found {
		return 0
	}
	var meta memberMeta
	if json.Unmarshal(members[i].Meta, &meta) != nil {
		return 0
	}
	return max(meta.Reads, 1) // releases before say nothing of it
}

// allReadEdits says whether edits may be on this node's disk: while somebody is of a release that does not read them, the node may be put back to that.
func (n *Node) allReadEdits() bool {
	return n.gossips.Load() && n.store.WritesEdits() &&
		!slices.ContainsFunc(n.gossip.Members().Get(), func(m gossip.Member) bool { return n.reads(m.Name) < store.Format })
}

func decodeMember(m gossip.Member) (view.Member, error) {
	var meta memberMeta
	if err := json.Unmarshal(m.Meta, &meta); err != nil {
		return view.Member{}, fmt.Errorf("decode the description of %s: %w", m.Name, err)
	}
	return view.Member{Name: m.Name, Region: meta.Region, POP: meta.POP, Roles: meta.Roles, Public: meta.Public, Control: meta.Control, Gossip: m.Addr, API: meta.API, Tells: meta.Tells, Lasting: meta.Lasting, Timed: meta.Timed, Asks: meta.Asks}, nil
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
	entries := n.sayings()
	drawn := n.distances.Load()
	for _, m := range v.Members {
		said := entries[m.Name]
		runs, _ := readRunning(said[runningKey])
		rtt, up := v.RTT[m.Name]
		st.Members = append(st.Members, api.MemberStatus{
			Member: m, Running: runs, Refused: string(said[refusedKey]), Doors: string(said[doorsKey]), Follows: string(said[followsKey]), Vote: slices.Contains(voters, m.Name),
			RTT: rtt, Up: up || m.Name == n.cfg.Name, Fenced: said[fencedKey] != nil,
		})
		if e, ok := drawn.Between(n.cfg.Name, m.Name); ok && m.Name != n.cfg.Name {
			last := &st.Members[len(st.Members)-1]
			last.Distance, last.By = e.RTT, e.From
		}
	}
	samples, _ := n.samples()
	st.AnswersDiffer = disagreements(samples)
	return st
}

// lastTurns is how many turns of one thing the API shows.
const lastTurns = 16

// health is the verdicts as this node sees them, and who says what.
func (n *Node) health(q api.HealthQuery) []api.HealthEntry {
	s, v := n.running.Get().spec, n.view.Get()
	keys := map[health.Key]bool{}
	for _, row := range v.Health.All() {
		keys[row.Key] = true
	}
	for name := range s.HealthChecks {
		keys[health.CheckKey(name)] = true // also those that nobody probes
	}
	list := []api.HealthEntry{}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		_, name, _ := strings.Cut(string(key), "/")
		if strings.HasPrefix(string(key), q.Name) || strings.HasPrefix(name, q.Name) || strings.HasSuffix(name, "/"+q.Name) {
			list = append(list, n.healthOf(key, s, v))
		}
	}
	if len(list) == 1 && q.Name != "" {
		list[0].Turns = n.events.Last(list[0].Key, lastTurns)
	}
	return list
}

func (n *Node) healthOf(key health.Key, s *spec.Spec, v *view.View) api.HealthEntry {
	verdict, known := v.Health.Lookup(key)
	e := api.HealthEntry{
		Key: string(key), Healthy: verdict.Healthy, Reason: verdict.Reason, Since: verdict.Since, Stands: verdict.Stands, Quorum: verdict.Healthy,
		Views: []api.HealthView{},
	}
	for _, one := range v.Health.Views(key) {
		said := api.HealthView{Node: one.Node, Healthy: one.Healthy, Reason: one.Reason, Since: one.Since}
		e.Views = append(e.Views, said)
		if one.Node == n.cfg.Name {
			e.Local = &said
		}
		if one.LastFailureAt.After(e.LastFailureAt) {
			e.LastFailure, e.LastFailureAt = one.LastFailure, one.LastFailureAt
		}
	}
	rule := health.Rule(*s.Settings().HealthCheckQuorum)(key)
	for e.Observers = len(e.Views); e.Needed < e.Observers && !rule.Holds(e.Needed, e.Observers); e.Needed++ {
	}
	if !key.IsCheck() {
		return e
	}
	_, name, _ := strings.Cut(string(key), "/")
	check := s.HealthChecks[name]
	if check == nil {
		return e
	}
	e.Healthy = v.CheckHealthy(s, name)
	var over []string
	switch {
	case check.Disabled:
		over = append(over, "disabled: counts as healthy")
	case check.Type == spec.Calculated:
		over = append(over, calculation(check, s, v))
	case !known:
		over = append(over, "no data yet: counts as healthy")
	}
	if check.Inverted && !check.Disabled {
		over = append(over, "inverted")
	}
	if e.Override = strings.Join(over, ", "); e.Healthy {
		e.Reason = ""
	}
	return e
}

// calculation says how a calculated health check comes out.
func calculation(check *spec.HealthCheck, s *spec.Spec, v *view.View) string {
	healthy := 0
	for _, child := range check.ChildHealthChecks {
		if v.CheckHealthy(s, child) {
			healthy++
		}
	}
	return fmt.Sprintf("calculated: %d of %d children are healthy, %d must be", healthy, len(check.ChildHealthChecks), *check.HealthThreshold)
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
