package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/roster"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/node/api"
)

// backend is what the API asks of this node.
func (n *Node) backend() api.Backend {
	return api.Backend{
		Authenticate: n.authenticate, NodeMay: n.nodeMay,
		Apply: n.apply, Rollback: n.rollback, Diff: n.diff,
		Resources: n.resources, History: n.history, Revision: n.revision, ResourcesAt: n.resourcesAt, Wait: n.wait,
		Status: n.status, Health: n.health, Distances: n.distancesFrom, Anycast: n.anycastList, Zones: n.zones, Accelerator: n.acceleratorStatus, NodeAccelerator: n.nodeAccelerator, PortMappings: n.portMappings, Events: n.timeline, Explain: n.explain, Metrics: n.metrics.Write, Schema: spec.Schema,
		Purge: n.purgeOrder, Block: n.blockOrder(roster.OrderBlock), Unblock: n.blockOrder(roster.OrderUnblock),
		Drain: n.drainOrder(roster.OrderDrain), Undrain: n.drainOrder(roster.OrderUndrain), Orders: n.ordered, Order: n.orderOf, Update: n.updateOf,
		Nodes: n.nodes, Revoke: n.revoke, Forget: n.forget,
		CreateToken: n.createToken, Tokens: n.tokens, DeleteToken: n.deleteToken,
		CreateAccess: n.createAccess, Access: n.access, DeleteAccess: n.deleteAccess,
		Keys: n.keys, Rotate: n.rotate, Snapshot: n.snapshot, Restore: n.restore,
		Join: func(ctx context.Context, _ string, req identity.JoinRequest) (identity.JoinAnswer, error) {
			return n.admit(ctx, req)
		},
		Renew:   n.renewal,
		Forward: n.forward,
	}
}

func (n *Node) authenticate(bearer string) (roster.Principal, error) {
	r := n.roster.Get()
	if r == nil {
		return roster.Principal{}, errors.New("the cluster is being founded")
	}
	return r.Authenticate(bearer, n.cfg.Now())
}

// nodeMay says what those at the socket of a node may: all on a node that may vote, which holds the keys of the cluster
// anyway; on others they read.
func (n *Node) nodeMay(peer string) api.Role {
	r := n.roster.Get()
	if r == nil {
		return ""
	}
	node, member := r.Nodes[peer]
	switch {
	case !member:
		return ""
	case slices.Contains(node.Roles, string(view.Voter)):
		return api.Admin
	}
	return api.Read
}

// localRole is what those at this node's own socket may.
func (n *Node) localRole() api.Role {
	if n.has(view.Voter) {
		return api.Admin
	}
	return api.Read
}

// planner judges with this node's keys and clock.
func (n *Node) planner() planner {
	key := n.guard.Node().Keys().Cluster
	return planner{options: n.specs.strict(), now: n.cfg.Now, seal: func(ref spec.Ref, field string, plain []byte) string {
		return sealText(key, ref, field, plain)
	}}
}

// sealText seals a secret so that it can be opened for this field of this resource alone.
func sealText(key identity.Key, ref spec.Ref, field string, plain []byte) string {
	return spec.SealedPrefix + base64.RawURLEncoding.EncodeToString(key.Seal(plain, sealContext(ref, field)))
}

func openSealed(key identity.Key, ref spec.Ref, field, sealed string) ([]byte, error) {
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(sealed, spec.SealedPrefix))
	if err != nil {
		return nil, errors.New("open sealed text: it is cut off or mistyped")
	}
	return key.Open(raw, sealContext(ref, field))
}

func sealContext(ref spec.Ref, field string) string { return "spec/" + ref.String() + "/" + field }

// apply makes one change on the leader: validated whole against what is agreed, before the log.
func (n *Node) apply(ctx context.Context, by roster.Principal, req api.ApplyRequest) (api.ApplyResponse, error) {
	p := n.planner()
	return n.change(ctx, req.ID, req.Expect, req.DryRun, func(over base) (plan, error) { return p.apply(over, by, req) })
}

// rollback makes the spec again what it was at a revision.
func (n *Node) rollback(ctx context.Context, by roster.Principal, req api.RollbackRequest) (api.ApplyResponse, error) {
	p := n.planner()
	return n.change(ctx, req.ID, req.Expect, req.DryRun, func(over base) (plan, error) { return p.rollback(over, by, req) })
}

// diff says what a change would do, on any node.
func (n *Node) diff(_ context.Context, by roster.Principal, req api.ApplyRequest) (api.ApplyResponse, error) {
	state := n.known()
	if req.Expect != nil && *req.Expect != state.Revision {
		return api.ApplyResponse{}, api.Conflict(*req.Expect, state.Revision)
	}
	built, err := n.specs.at(&state.Table)
	if err != nil {
		return api.ApplyResponse{}, err
	}
	p, err := n.planner().apply(base{state, built}, by, req)
	return p.response, err
}

// resources lists what is agreed.
func (n *Node) resources(ctx context.Context, q api.ResourcesQuery) (api.ResourceList, error) {
	state := n.known()
	if q.Fresh {
		if err := n.mustLead(ctx); err != nil {
			return api.ResourceList{}, err
		}
		if n.store.Verify(ctx) != nil {
			return api.ResourceList{}, api.ErrNotLeader
		}
		state = n.store.State().Get()
	}
	return n.list(&state.Table, q)
}

func (n *Node) list(t *store.Table, q api.ResourcesQuery) (api.ResourceList, error) {
	if q.Kind != "" {
		known, ok := spec.LookupKind(q.Kind)
		if !ok {
			return api.ResourceList{}, &api.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("no kind %q", q.Kind)}
		}
		q.Kind = known.Name
	}
	understood, err := n.specs.at(t)
	if err != nil {
		understood = n.running.Get().spec
	}
	list := api.ResourceList{Revision: t.Revision, Resources: []api.Resource{}}
	objects := slices.Values(t.Objects)
	if q.Kind != "" {
		objects = t.Each(q.Kind)
	}
	for o := range objects {
		if q.Name != "" && o.Name != q.Name {
			continue
		}
		r := api.Resource{Kind: o.Kind, Name: o.Name, Revision: o.Revision, YAML: string(o.Bytes)}
		if known, ok := understood.Resource(o.Kind, o.Name); ok {
			r.Spec = known
		}
		list.Resources = append(list.Resources, r)
	}
	if q.Name != "" && len(list.Resources) == 0 {
		return list, &api.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("no %s %q", q.Kind, q.Name)}
	}
	return list, nil
}

// history lists the last changes, newest first.
func (n *Node) history(q api.HistoryQuery) (api.History, error) {
	state := n.known()
	table := &state.Table
	if q.Own {
		table = &state.Own
	}
	h := api.History{Revision: table.Revision, Records: []api.Record{}}
	for _, r := range slices.Backward(table.History) {
		if len(h.Records) == q.Limit {
			break
		}
		h.Records = append(h.Records, record(r))
	}
	return h, nil
}

func record(r store.Record) api.Record {
	refs := func(list []store.Ref) (out []api.Ref) {
		for _, ref := range list {
			out = append(out, api.Ref{Kind: ref.Kind, Name: ref.Name})
		}
		return out
	}
	return api.Record{Revision: r.Revision, Time: r.Time, Author: r.Author, Note: r.Note, Put: refs(r.Put), Delete: refs(r.Delete)}
}

// then is the state at a revision of the past. A node that follows others does not keep what was replaced: the leader is asked.
func (n *Node) then(revision uint64) (*store.State, error) {
	state := n.known()
	then, err := state.At(revision)
	switch {
	case errors.Is(err, store.ErrNotKept) && n.store.Leader().Get().Name != n.cfg.Name:
		return nil, api.ErrNotLeader
	case err != nil:
		return nil, &api.Error{Status: http.StatusNotFound, Message: err.Error()}
	}
	return then, nil
}

// revision is one change of the past, and what it changed.
func (n *Node) revision(revision uint64) (api.RevisionDetail, error) {
	state := n.known()
	i, found := slices.BinarySearchFunc(state.History, revision, func(r store.Record, want uint64) int {
		switch {
		case r.Revision < want:
			return -1
		case r.Revision > want:
			return 1
		}
		return 0
	})
	if !found {
		return api.RevisionDetail{}, &api.Error{Status: http.StatusNotFound,
			Message: fmt.Sprintf("revision %d is not in the history, which is of the last %d changes up to revision %d", revision, len(state.History), state.Revision)}
	}
	after, err := n.then(revision)
	if err != nil {
		return api.RevisionDetail{}, err
	}
	before, err := n.then(revision - 1)
	if err != nil {
		return api.RevisionDetail{}, err
	}
	r := state.History[i]
	var put []store.Object
	for _, ref := range r.Put {
		if o, there := after.Get(ref.Kind, ref.Name); there {
			put = append(put, o)
		}
	}
	var gone []spec.Ref
	for _, ref := range r.Delete {
		gone = append(gone, spec.Ref{Kind: ref.Kind, Name: ref.Name})
	}
	return api.RevisionDetail{Record: record(r), Changes: differences(before, documents(put), gone, nil, nil)}, nil
}

// resourcesAt lists what was agreed at a revision.
func (n *Node) resourcesAt(revision uint64) (api.ResourceList, error) {
	then, err := n.then(revision)
	if err != nil {
		return api.ResourceList{}, err
	}
	list := api.ResourceList{Revision: revision, Resources: []api.Resource{}}
	for _, o := range then.Objects {
		list.Resources = append(list.Resources, api.Resource{Kind: o.Kind, Name: o.Name, Revision: o.Revision, YAML: string(o.Bytes)})
	}
	return list, nil
}

// waitCheck is how often one that waits for all nodes to run a revision looks again, besides at each change of what they say.
const waitCheck = time.Second

// wait returns when every live node has run a revision or refused it.
func (n *Node) wait(ctx context.Context, revision uint64) (api.WaitResponse, error) {
	for {
		version := n.reports.Entries().Version()
		res, settled := n.whoRuns(revision)
		if settled {
			return res, nil
		}
		bounded, cancel := context.WithTimeout(ctx, waitCheck)
		n.reports.Entries().Next(bounded, version)
		cancel()
		if ctx.Err() != nil {
			return res, nil
		}
	}
}

// whoRuns says what every live node runs, and whether there is nothing more to wait for.
func (n *Node) whoRuns(revision uint64) (res api.WaitResponse, settled bool) {
	res = api.WaitResponse{Revision: revision, Complete: true}
	settled = true
	said := n.sayings()
	for _, m := range n.view.Get().Members {
		runs, tried := readRunning(said[m.Name][runningKey])
		one := api.NodeRunning{Name: m.Name, Running: runs}
		if runs < revision {
			res.Complete = false
			if tried >= revision {
				one.Refused = string(said[m.Name][refusedKey])
			} else {
				settled = false
			}
		}
		res.Nodes = append(res.Nodes, one)
	}
	return res, settled
}

// nodes lists all that were admitted.
func (n *Node) nodes() (api.NodeList, error) {
	r := n.roster.Get()
	v, voters := n.view.Get(), n.leads().Voters
	list := api.NodeList{Own: r.Revision, Nodes: []api.NodeRecord{}}
	for _, name := range slices.Sorted(maps.Keys(r.Nodes)) {
		node := r.Nodes[name]
		_, live := v.Member(name)
		list.Nodes = append(list.Nodes, api.NodeRecord{
			Name: name, Region: node.Region, POP: node.POP, Roles: node.Roles, Admitted: node.Joined, Live: live, Vote: slices.Contains(voters, name),
		})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Revoked)) {
		list.Revoked = append(list.Revoked, api.Revocation{Name: name, Epoch: r.Revoked[name]})
	}
	return list, nil
}

// recorded makes one decision over the cluster's own records, and says at which revision it is in effect.
func (n *Node) recorded(ctx context.Context, message string, f func(*roster.Roster) (store.Change, error)) (api.Recorded, error) {
	err := n.decide(ctx, func(r *roster.Roster) (store.Change, error) {
		change, err := f(r)
		if err != nil {
			return change, &api.Error{Status: http.StatusUnprocessableEntity, Message: err.Error()}
		}
		return change, nil
	})
	if err != nil {
		return api.Recorded{}, err
	}
	own := n.store.State().Get().Own.Revision
	n.holdOwn(ctx, own)
	return api.Recorded{Own: own, Message: message}, nil
}

// revoke shuts a node out. The gossip key, which it knows, is changed by the steps that follow (roster.Step). A leader
// that is to be shut out hands over first, and the next one does it.
func (n *Node) revoke(ctx context.Context, by roster.Principal, name string) (api.Recorded, error) {
	if name == n.cfg.Name && n.store.Leader().Get().Name == name {
		if err := n.store.TransferLeadership(ctx); err != nil {
			return api.Recorded{}, &api.Error{Status: http.StatusUnprocessableEntity, Message: name + " leads, and no other voter takes over: " + err.Error()}
		}
		for n.store.Leader().Get().Name == name && pause(ctx) {
		}
		return api.Recorded{}, api.ErrNotLeader
	}
	message := name + " is shut out; the gossip key, which it knew, is being changed"
	if r := n.roster.Get(); r != nil && r.Nodes[name] != nil && slices.Contains(r.Nodes[name].Roles, string(view.Voter)) {
		message += "\nit held the authority's key as well: if it is in wrong hands, perigee rotate authority"
	}
	return n.recorded(ctx, message, func(r *roster.Roster) (store.Change, error) {
		return r.Revoke(name, by.Name, n.cfg.Now())
	})
}

// forget frees the name of a node that is gone.
func (n *Node) forget(ctx context.Context, by roster.Principal, name string) (api.Recorded, error) {
	if _, live := n.view.Get().Member(name); live {
		return api.Recorded{}, &api.Error{Status: http.StatusUnprocessableEntity, Message: name + " is live: stop it first, or revoke it"}
	}
	return n.recorded(ctx, name+" is forgotten: a new node may take its name", func(r *roster.Roster) (store.Change, error) {
		return r.Forget(name, by.Name, n.cfg.Now())
	})
}

func (n *Node) createToken(ctx context.Context, by roster.Principal, req api.TokenRequest) (api.TokenResponse, error) {
	for _, role := range req.Roles {
		if !slices.Contains(allRoles(), view.Role(role)) {
			return api.TokenResponse{}, &api.Error{Status: http.StatusUnprocessableEntity, Message: fmt.Sprintf("create join token: role %q: want some of edge, dns, origin, voter", role)}
		}
	}
	var made identity.Token
	_, err := n.recorded(ctx, "", func(r *roster.Roster) (c store.Change, err error) {
		made, c, err = r.CreateToken(roster.TokenSpec{Roles: req.Roles, TTL: time.Duration(req.TTL), Uses: req.Uses}, by.Name, n.cfg.Now())
		return c, err
	})
	if err != nil {
		return api.TokenResponse{}, err
	}
	all, err := n.tokens()
	if err != nil {
		return api.TokenResponse{}, err
	}
	res := api.TokenResponse{Token: made.String()}
	for _, t := range all.Tokens {
		if t.ID == fmt.Sprintf("%x", made.ID) {
			res.TokenInfo = t
		}
	}
	return res, nil
}

// newestRoster is that of the store on the leader, which is a moment ahead of what this node has taken.
func (n *Node) newestRoster() (*roster.Roster, error) {
	if state := n.store.State().Get(); state != nil && state.Own.Revision > n.roster.Get().Revision {
		return n.rosters.at(&state.Own)
	}
	return n.roster.Get(), nil
}

func (n *Node) tokens() (api.TokenList, error) {
	r, err := n.newestRoster()
	if err != nil {
		return api.TokenList{}, err
	}
	list := api.TokenList{Tokens: []api.TokenInfo{}}
	for _, id := range slices.Sorted(maps.Keys(r.Tokens)) {
		t := r.Tokens[id]
		if t.Used < t.Uses && n.cfg.Now().Before(t.Expires) {
			list.Tokens = append(list.Tokens, api.TokenInfo{ID: id, Roles: t.Roles, Uses: t.Uses, Used: t.Used, Author: t.Author, Created: t.Created, Expires: t.Expires})
		}
	}
	return list, nil
}

func (n *Node) deleteToken(ctx context.Context, by roster.Principal, id string) (api.Recorded, error) {
	return n.recorded(ctx, "no node joins by it any more", func(r *roster.Roster) (store.Change, error) {
		return r.DeleteToken(id, by.Name, n.cfg.Now())
	})
}

func (n *Node) createAccess(ctx context.Context, by roster.Principal, req api.AccessRequest) (api.AccessResponse, error) {
	want := roster.AccessSpec{Name: req.Name, Resources: req.Resources, TTL: time.Duration(req.TTL)}
	for _, role := range req.Roles {
		want.Roles = append(want.Roles, roster.Role(role))
	}
	var made identity.AccessToken
	_, err := n.recorded(ctx, "", func(r *roster.Roster) (c store.Change, err error) {
		made, c, err = r.CreateAccess(want, by.Name, n.cfg.Now())
		return c, err
	})
	if err != nil {
		return api.AccessResponse{}, err
	}
	all, err := n.access()
	if err != nil {
		return api.AccessResponse{}, err
	}
	res := api.AccessResponse{Token: made.String()}
	for _, a := range all.Access {
		if a.Name == req.Name {
			res.AccessInfo = a
		}
	}
	return res, nil
}

func (n *Node) access() (api.AccessList, error) {
	r, err := n.newestRoster()
	if err != nil {
		return api.AccessList{}, err
	}
	list := api.AccessList{Access: []api.AccessInfo{}}
	for _, name := range slices.Sorted(maps.Keys(r.Access)) {
		a := r.Access[name]
		if !a.Expires.IsZero() && n.cfg.Now().After(a.Expires) {
			continue
		}
		info := api.AccessInfo{Name: name, Resources: a.Resources, Author: a.Author, Created: a.Created, Expires: a.Expires}
		for _, role := range a.Roles {
			info.Roles = append(info.Roles, string(role))
		}
		list.Access = append(list.Access, info)
	}
	return list, nil
}

func (n *Node) deleteAccess(ctx context.Context, by roster.Principal, name string) (api.Recorded, error) {
	return n.recorded(ctx, "the token of "+name+" is worth nothing any more", func(r *roster.Roster) (store.Change, error) {
		return r.DeleteAccess(name, by.Name, n.cfg.Now())
	})
}

// keys are the cluster's keys and how far their rotation is.
func (n *Node) keys() (api.Keys, error) {
	r, err := n.newestRoster()
	if err != nil {
		return api.Keys{}, err
	}
	var all api.Keys
	rotating := false
	for _, a := range r.Authorities {
		one := api.KeyInfo{ID: a.Name, Stage: string(a.Stage), Created: a.Since, PEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate}))}
		if cert, err := x509.ParseCertificate(a.Certificate); err == nil {
			one.Expires = cert.NotAfter
		}
		all.Authorities = append(all.Authorities, one)
		rotating = rotating || a.Stage != roster.Used
	}
	for _, k := range r.GossipKeys {
		all.Gossip = append(all.Gossip, api.KeyInfo{ID: k.Name, Stage: string(k.Stage), Created: k.Since})
		rotating = rotating || k.Stage != roster.Used
	}
	for _, k := range r.TicketKeys { // they go on by themselves
		all.Tickets = append(all.Tickets, api.KeyInfo{ID: k.Name, Stage: string(k.Stage), Created: k.Since})
	}
	if rotating {
		_, why, due := r.Step(n.progress(), n.guard.Node().Keys(), n.cfg.Now())
		if !due {
			all.Waiting = why
		}
	}
	return all, nil
}

func (n *Node) rotate(ctx context.Context, by roster.Principal, req api.RotateRequest) (api.Recorded, error) {
	return n.recorded(ctx, "begun: perigee keys shows how far it is", func(r *roster.Roster) (store.Change, error) {
		c, err := r.Rotate(req.What, n.guard.Node().Keys(), n.cfg.Now())
		c.Author = by.Name
		return c, err
	})
}

// A snapshot begins with this line, then the SHA-256 of what follows, then a state as the store writes it.
const snapshotLine = "perigee snapshot 1\n"

// maxSnapshot bounds a snapshot, in bytes.
const maxSnapshot = 512 << 20

// snapshot writes all that is agreed, from the leader, which has what was replaced too.
func (n *Node) snapshot(ctx context.Context, w io.Writer) error {
	if err := n.mustLead(ctx); err != nil {
		return err
	}
	var content bytes.Buffer
	if err := store.WriteState(&content, n.store.State().Get()); err != nil {
		return err
	}
	sum := sha256.Sum256(content.Bytes())
	for _, part := range [][]byte{[]byte(snapshotLine), sum[:], content.Bytes()} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// readSnapshot reads what snapshot wrote.
func readSnapshot(r io.Reader) (*store.State, error) {
	bad := func(why string) error {
		return &api.Error{Status: http.StatusUnprocessableEntity, Message: "the snapshot is refused, nothing has changed: " + why}
	}
	data, err := io.ReadAll(io.LimitReader(r, maxSnapshot+1))
	if err != nil {
		return nil, &api.Error{Status: http.StatusBadRequest, Message: "read the snapshot: " + err.Error()}
	}
	if len(data) > maxSnapshot {
		return nil, bad(fmt.Sprintf("it is longer than %d bytes", maxSnapshot))
	}
	rest, ok := bytes.CutPrefix(data, []byte(snapshotLine))
	if !ok {
		return nil, bad("it is none of Perigee's")
	}
	if len(rest) < sha256.Size || sha256.Sum256(rest[sha256.Size:]) != [sha256.Size]byte(rest) {
		return nil, bad("it is damaged or cut off: its checksum does not fit")
	}
	state, err := store.ReadState(bytes.NewReader(rest[sha256.Size:]))
	if err != nil {
		return nil, bad(err.Error())
	}
	return state, nil
}

// restore makes the spec what a snapshot holds, as one change. The cluster's own records stay those of this cluster.
func (n *Node) restore(ctx context.Context, by roster.Principal, r io.Reader) (api.RestoreResponse, error) {
	if err := n.mustLead(ctx); err != nil {
		return api.RestoreResponse{}, err
	}
	want, err := readSnapshot(r)
	if err != nil {
		return api.RestoreResponse{}, err
	}
	change := store.Change{Note: fmt.Sprintf("restore of a snapshot of revision %d", want.Revision)}
	p := n.planner()
	if now := n.store.State().Get(); size(store.Changed(&now.Table, &want.Table)) > store.MaxChange {
		return n.restoreWhole(ctx, func(over base) (plan, error) {
			p.whole = true
			return p.become(over, by, &want.Table, change)
		})
	}
	res, err := n.change(ctx, "", nil, false, func(over base) (plan, error) { return p.become(over, by, &want.Table, change) })
	if err != nil {
		return api.RestoreResponse{}, err
	}
	return api.RestoreResponse{Revision: res.Revision, Own: n.store.State().Get().Own.Revision}, nil
}

// size is roughly what a change takes in the log, in bytes.
func size(e store.Edits) (bytes int) {
	for _, o := range e.Put {
		bytes += len(o.Kind) + len(o.Name) + len(o.Bytes)
	}
	return bytes
}

// restoreWhole replaces the state on all nodes at once, where the difference is too much for one change.
func (n *Node) restoreWhole(ctx context.Context, judge func(base) (plan, error)) (api.RestoreResponse, error) {
	select {
	case n.deciding <- struct{}{}: // no other decision comes between
	case <-ctx.Done():
		return api.RestoreResponse{}, api.ErrBusy
	}
	defer func() { <-n.deciding }()
	n.changes.mu.Lock()
	defer n.changes.mu.Unlock()
	if n.changes.open > 0 {
		return api.RestoreResponse{}, api.ErrBusy
	}
	now := n.store.State().Get()
	built, err := n.specs.at(&now.Table)
	if err != nil {
		return api.RestoreResponse{}, err
	}
	p, err := judge(base{now, built})
	if err != nil {
		return api.RestoreResponse{}, err
	}
	next, revision, err := now.With(p.change)
	if err != nil {
		return api.RestoreResponse{}, err
	}
	if err := n.store.Restore(ctx, next); err != nil {
		return api.RestoreResponse{}, &api.Error{Status: http.StatusServiceUnavailable, Message: "restore: " + err.Error()}
	}
	n.specs.keep(&next.Table, p.spec)
	return api.RestoreResponse{Revision: revision, Own: next.Own.Revision}, nil
}
