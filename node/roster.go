package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/roster"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo"
	"github.com/perigee-net/perigee/node/api"
)

// rosters reads rosters of states, each with what it shares with the one before.
type rosters struct {
	mu    sync.Mutex
	table *store.Table
	last  *roster.Roster
}

func (k *rosters) at(t *store.Table) (*roster.Roster, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last != nil && (k.table == t || k.last.Revision == t.Revision && k.table.Sum() == t.Sum()) {
		return k.last, nil
	}
	r, err := roster.Read(t, k.last)
	if err != nil {
		return nil, fmt.Errorf("read the cluster's own records at revision %d: %w", t.Revision, err)
	}
	k.table, k.last = t, r
	return r, nil
}

// takeRoster makes what is agreed of the cluster itself so on this node: whom it trusts, whom it cuts off, by what keys it
// gossips.
func (n *Node) takeRoster(state *store.State) {
	if state.Own.Revision == 0 {
		return
	}
	r, err := n.rosters.at(&state.Own)
	if err != nil {
		n.cfg.Log.Error("the cluster's own records are not understood, those before go on", "error", err)
		return
	}
	before := n.roster.Get()
	if before != nil && before.Revision == r.Revision {
		return
	}
	n.roster.Set(r)
	n.guard.SetTrust(r.Trust())
	n.port.Check()
	if n.backbone != nil {
		n.backbone.Check()
	}
	if n.gossip != nil {
		n.takeGossipKeys(r)
		n.gossip.Check()
	}
	if n.reports != nil {
		n.reports.Check()
		n.takeOrders(r)
	}
	if n.front != nil {
		n.takeTicketKeys(r)
	}
	n.publishTaken()
}

// takeTicketKeys has the world's doors seal session tickets, and the name service make cookies, as all nodes do. It costs a configuration of TLS for each security
// policy, so it is done only where the keys have changed.
func (n *Node) takeTicketKeys(r *roster.Roster) {
	keys, err := r.Tickets(n.guard.Node().Keys().Cluster)
	if err != nil {
		n.cfg.Log.Error("the ticket keys that are agreed cannot be taken, those before go on", "error", err)
		return
	}
	if !slices.Equal(keys, n.ticketKeys) {
		n.ticketKeys = keys
		n.front.SetTicketKeys(keys)
		cookies := make([]dnsgeo.CookieSecret, len(keys)) // with the same life
		for i, k := range keys {
			secret := identity.Key(k).Derive("dns cookies")
			copy(cookies[i][:], secret[:])
		}
		n.names.SetCookieSecrets(cookies)
	}
}

func (n *Node) takeGossipKeys(r *roster.Roster) {
	primary, others, err := r.Gossip(n.guard.Node().Keys().Cluster)
	if err == nil {
		err = n.gossip.SetKeys(primary, others)
	}
	if err != nil {
		n.cfg.Log.Error("the gossip keys that are agreed cannot be taken, those before go on", "error", err)
	}
}

// isRevoked says whether a name is shut out, whatever certificate it shows: until it is admitted anew.
func (n *Node) isRevoked(name string) bool {
	r := n.roster.Get()
	return r != nil && r.Barred(name)
}

// takenKey is the gossiped value that tells how far a node has taken what is agreed of the cluster itself, and who has
// issued its certificate: what the steps of a rotation wait for.
const takenKey = "own"

func (n *Node) publishTaken() {
	n.taking.Lock()
	defer n.taking.Unlock()
	r := n.roster.Get()
	if r == nil || n.reports == nil {
		return
	}
	issuer := n.guard.Node().Authority()
	n.publish(takenKey, fmt.Appendf(nil, "%d %x %d", r.Revision, issuer[:], r.Epoch))
}

// taken is what a node says under takenKey.
type taken struct {
	roster.Progress
	epoch uint64 // of the newest order that it has
}

func readTaken(value []byte) (t taken) {
	words := strings.Fields(string(value))
	if len(words) < 2 {
		return t
	}
	t.Own, _ = strconv.ParseUint(words[0], 10, 64)
	if hash, err := hex.DecodeString(words[1]); err == nil {
		copy(t.Authority[:], hash)
	}
	if len(words) > 2 {
		t.epoch, _ = strconv.ParseUint(words[2], 10, 64)
	}
	return t
}

// progress is how far every live node has come, by what it says.
func (n *Node) progress() map[string]roster.Progress {
	said := n.sayings()
	live := map[string]roster.Progress{}
	for _, m := range n.view.Get().Members {
		live[m.Name] = readTaken(said[m.Name][takenKey]).Progress
	}
	return live
}

// judgeJoin has the leader judge a machine that asks to join.
func (n *Node) judgeJoin(ctx context.Context, req identity.JoinRequest) (identity.JoinAnswer, error) {
	return atLeader(ctx, n, func(ctx context.Context) (identity.JoinAnswer, error) { return n.admit(ctx, req) },
		func(ctx context.Context, leader *api.Client) (identity.JoinAnswer, error) {
			return leader.Join(ctx, req)
		})
}

// atLeader has the leader do something that is harmless to do twice: this node, or there by its API. It is asked again as long as no
// one leads or the one that did is gone.
func atLeader[T any](ctx context.Context, n *Node, here func(context.Context) (T, error), there func(context.Context, *api.Client) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	for {
		res, err := here(ctx)
		if !errors.Is(err, api.ErrNotLeader) {
			return res, err
		}
		leader, err := n.leader(ctx, true)
		switch {
		case errors.Is(err, api.ErrIsLeader):
			if !pause(ctx) {
				return res, err
			}
			continue
		case err != nil:
			return res, err
		}
		res, err = there(ctx, n.peerAPI(leader.Name, leader.Address))
		if err == nil || errors.As(err, new(*api.Error)) && !unavailable(err) || !pause(ctx) {
			return res, err
		}
	}
}

// unavailable says whether another node, or the same a little later, may do what this one could not.
func unavailable(err error) bool {
	var e *api.Error
	return errors.As(err, &e) && e.Status == http.StatusServiceUnavailable
}

// pause waits before another attempt; false: the context has ended.
func pause(ctx context.Context) bool { return sleep(ctx, retryTime) }

// admit judges a machine that asks to join, on the leader.
func (n *Node) admit(ctx context.Context, req identity.JoinRequest) (answer identity.JoinAnswer, err error) {
	err = n.decide(ctx, func(r *roster.Roster) (store.Change, error) {
		var change store.Change
		var refusal *roster.Refusal
		answer, change, refusal = r.Admit(req, n.guard.Node().Keys(), n.cfg.Now())
		if refusal != nil {
			return store.Change{}, refusal
		}
		return change, nil
	})
	var refusal *roster.Refusal
	switch {
	case errors.As(err, &refusal):
		n.cfg.Log.Info("join refused", "name", req.Claim.Name, "why", refusal.Reason)
		return identity.JoinAnswer{Refused: refusal.Reason}, nil
	case err == nil:
		n.cfg.Log.Info("admitted", "name", req.Claim.Name, "region", req.Claim.Region, "pop", req.Claim.POP)
	}
	return answer, err
}

// renewal certifies a node's new key, on any voter: the node is known by the certificate it has.
func (n *Node) renewal(_ context.Context, peer string, req api.RenewRequest) (identity.JoinAnswer, error) {
	r := n.roster.Get()
	if r == nil || n.guard.Node().Keys().Authority == nil {
		return identity.JoinAnswer{}, &api.Error{Status: http.StatusServiceUnavailable, Message: "this node cannot certify: ask one with the role voter"}
	}
	if r.Revision < req.Own {
		return identity.JoinAnswer{}, &api.Error{Status: http.StatusServiceUnavailable,
			Message: fmt.Sprintf("this node has the cluster's own records up to revision %d only: ask another, or come again", r.Revision)}
	}
	answer, refusal := r.Renew(peer, req.CSR, req.Claim, n.guard.Node().Keys(), n.cfg.Now())
	if refusal != nil {
		return identity.JoinAnswer{}, &api.Error{Status: http.StatusForbidden, Message: refusal.Reason}
	}
	return answer, nil
}

const (
	// renewCheck is how often a node looks whether its certificate is to be renewed, besides at each change of what is agreed.
	renewCheck = 10 * time.Minute
	// renewRetry is the pause after a first renewal that failed. It doubles with each, up to renewRetryMost.
	renewRetry     = 250 * time.Millisecond
	renewRetryMost = 10 * time.Second
)

// keepRenewed renews this node's certificate in good time, and when another authority signs, until the context ends.
func (n *Node) keepRenewed(ctx context.Context) {
	retry := renewRetry
	for version := uint64(0); ; {
		wait := renewCheck
		if n.mustRenew() {
			err := n.renew(ctx)
			if err == nil && n.mustRenew() {
				err = errors.New("it was certified by an authority that is not in use any more")
			}
			if err == nil {
				retry = renewRetry
			} else {
				wait, retry = retry, min(2*retry, renewRetryMost)
				if ctx.Err() == nil {
					n.cfg.Log.Warn("the certificate is not renewed yet", "expires", n.guard.Node().Expires(), "error", err)
				}
			}
		}
		bounded, cancel := context.WithTimeout(ctx, wait)
		if _, v, err := n.roster.Next(bounded, version); err == nil {
			version = v
		}
		cancel()
		if ctx.Err() != nil {
			return
		}
	}
}

func (n *Node) mustRenew() bool {
	me, r := n.guard.Node(), n.roster.Get()
	if r == nil {
		return false
	}
	if n.cfg.Now().After(me.RenewAt()) {
		return true
	}
	issuer := me.Authority()
	return len(r.Authorities) > 0 && r.Authorities[0].Stage == roster.Used && r.Authorities[0].Name != hex.EncodeToString(issuer[:])
}

// renew asks this node itself, if it can certify, or any other that can.
func (n *Node) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	request, err := identity.NewRequest()
	if err != nil {
		return err
	}
	req := api.RenewRequest{CSR: request.CSR(), Claim: n.claim(), Own: n.roster.Get().Revision}
	answer, err := n.renewal(ctx, n.cfg.Name, req)
	for _, m := range n.view.Get().Members {
		if err == nil || !unavailable(err) {
			break
		}
		if m.Name != n.cfg.Name && m.Has(view.Voter) {
			var other error
			if answer, other = n.peerAPI(m.Name, m.Control.String()).Renew(ctx, req); other == nil || !unavailable(other) {
				err = other
			}
		}
	}
	if err != nil {
		return err
	}
	renewed, err := request.Accept(answer.Certificate, answer.Authorities, n.guard.Node().Keys())
	if err != nil {
		return err
	}
	if err := renewed.Save(n.cfg.Data); err != nil {
		return err
	}
	n.guard.SetNode(renewed)
	n.backbone.Renew()
	n.cfg.Log.Info("the certificate is renewed", "expires", renewed.Expires())
	n.publishTaken()
	return nil
}

// claim is what this node says of itself when it is certified.
func (n *Node) claim() identity.Claim {
	c := identity.Claim{Name: n.cfg.Name, Region: n.cfg.Region, POP: n.cfg.POP, Addresses: n.addresses()}
	for _, r := range n.cfg.Roles {
		c.Roles = append(c.Roles, string(r))
	}
	return c
}

// keepHouse does what the leader does for the cluster itself, until the context ends: the steps of rotations, who votes,
// who is forgotten, which tokens have ended.
func (n *Node) keepHouse(ctx context.Context) {
	h := house{node: n, since: map[string]seen{}}
	for {
		if !sleep(ctx, houseTime) {
			return
		}
		h.keep(ctx)
	}
}

// houseTime is how often the leader looks after the cluster itself.
const houseTime = 250 * time.Millisecond

// house is what a leader knows for its housekeeping.
type house struct {
	node  *Node
	since map[string]seen
	// gaveUp is when this leader last gave the lead away for want of room.
	gaveUp time.Time
}

// seen is since when a node is live or dead, as this leader sees it.
type seen struct {
	live bool
	at   time.Time
}

func (h *house) keep(ctx context.Context) {
	n := h.node
	if n.store.Leader().Get().Name != n.cfg.Name {
		clear(h.since)
		n.lead(nil)
		return
	}
	r := n.roster.Get()
	if r == nil || n.mustLead(ctx) != nil {
		return
	}
	n.lead(n.store.Servers())
	now := time.Now()
	live := map[string]view.Member{}
	for _, m := range n.view.Get().Members {
		live[m.Name] = m
	}
	for name := range r.Nodes {
		_, lives := live[name]
		if was, known := h.since[name]; !known || was.live != lives {
			h.since[name] = seen{lives, now}
		}
	}
	maps.DeleteFunc(h.since, func(name string, _ seen) bool { _, there := r.Nodes[name]; return !there })

	if len(n.store.Servers()) > 1 && now.Sub(h.gaveUp) > giveUpTime && n.full.Swap(false) {
		h.gaveUp = now
		attempt, cancel := context.WithTimeout(ctx, handOverTime)
		err := n.store.TransferLeadership(attempt)
		cancel()
		n.cfg.Log.Warn("the disk is full: the lead is given to another", "error", err)
		return
	}
	settings := n.running.Get().spec.Settings()
	h.vote(ctx, r, live, now, settings.Voters, settings.ReplaceVoterAfter.Std())
	for _, name := range slices.Sorted(maps.Keys(h.since)) {
		if s := h.since[name]; !s.live && now.Sub(s.at) >= settings.RemoveNodeAfter.Std() {
			n.tidy(ctx, "a node that was dead for long is forgotten", func(r *roster.Roster) (store.Change, error) { return r.Forget(name, "cluster", n.cfg.Now()) })
		}
	}
	if _, due := r.Sweep(n.cfg.Now()); due {
		n.tidy(ctx, "ended tokens are dropped", func(r *roster.Roster) (store.Change, error) {
			c, due := r.Sweep(n.cfg.Now())
			if !due {
				return store.Change{}, errNothingToDo
			}
			return c, nil
		})
	}
	progress, keys := n.progress(), n.guard.Node().Keys()
	if _, due, _ := r.RotateTickets(keys, n.cfg.Now()); due {
		n.tidy(ctx, "the keys of session tickets are changed", func(r *roster.Roster) (store.Change, error) {
			c, due, err := r.RotateTickets(keys, n.cfg.Now())
			if err == nil && !due {
				err = errNothingToDo
			}
			return c, err
		})
	}
	if _, what, due := r.Step(progress, keys, n.cfg.Now()); due {
		n.tidy(ctx, what, func(r *roster.Roster) (store.Change, error) {
			c, _, due := r.Step(progress, keys, n.cfg.Now())
			if !due {
				return store.Change{}, errNothingToDo
			}
			return c, nil
		})
	}
}

var errNothingToDo = errors.New("nothing to do")

// tidy makes one decision of the leader's own.
func (n *Node) tidy(ctx context.Context, what string, f func(*roster.Roster) (store.Change, error)) {
	switch err := n.decide(ctx, f); {
	case err == nil:
		n.cfg.Log.Info(what)
	case !errors.Is(err, errNothingToDo):
		n.cfg.Log.Debug("not done yet", "what", what, "error", err)
	}
}

// vote makes the next step towards the voters that there should be.
func (h *house) vote(ctx context.Context, r *roster.Roster, live map[string]view.Member, now time.Time, want int, replaceAfter time.Duration) {
	n := h.node
	var candidates []store.Candidate
	servers := n.store.Servers()
	attempt, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	for name, node := range r.Nodes {
		if !slices.Contains(node.Roles, string(view.Voter)) {
			continue
		}
		c := store.Candidate{Name: name, Region: node.Region, Since: h.since[name].at}
		if m, lives := live[name]; lives {
			member := slices.ContainsFunc(servers, func(s store.Server) bool { return s.Name == name })
			if !member && !n.store.MayFollow(name) {
				continue // it would stop at what is written for the others
			}
			c.Live, c.Address = true, m.Control.String()
			if slices.ContainsFunc(servers, func(s store.Server) bool { return s.Name == name && !s.Voter }) {
				c.Applied, _ = n.store.Progress(attempt, name)
			}
		}
		candidates = append(candidates, c)
	}
	step := store.Place(store.Placement{Want: want, ReplaceAfter: replaceAfter, SettleAfter: settleTime}, n.cfg.Name, now, candidates, servers, n.store.Applied())
	if step.Do == store.Wait {
		return
	}
	if err := n.enact(attempt, step); err != nil {
		n.cfg.Log.Debug("change who votes", "do", step.Do, "node", step.Name, "error", err)
		return
	}
	n.cfg.Log.Info("the members of Raft have changed", "do", step.Do, "node", step.Name, "why", step.Why)
}

// enact makes one step.
func (n *Node) enact(ctx context.Context, s store.Step) error {
	switch s.Do {
	case store.AddNonvoter:
		return n.store.AddNonvoter(ctx, s.Name, s.Address)
	case store.Promote:
		return n.store.AddVoter(ctx, s.Name, s.Address)
	case store.Readdress:
		if s.Voter {
			return n.store.AddVoter(ctx, s.Name, s.Address)
		}
		return n.store.AddNonvoter(ctx, s.Name, s.Address)
	case store.Demote:
		return n.store.Demote(ctx, s.Name)
	case store.Remove:
		return n.store.Remove(ctx, s.Name)
	case store.MoveLead:
		return n.store.TransferTo(ctx, s.Name)
	}
	return fmt.Errorf("no such step: %v", s.Do)
}

// giveUpTime is how long a leader without room on its disk keeps the lead after it has given it away: all may be full.
const giveUpTime = 10 * time.Second

// settleTime is how long a node is live before it is given a vote.
const settleTime = time.Second

// foundingTime is how often the first node of a cluster looks whether it leads already, to have its founding agreed.
const foundingTime = 50 * time.Millisecond

// agreeOnFounding brings the records of a new cluster, which its first node made, into the log, until they are agreed.
func (n *Node) agreeOnFounding(ctx context.Context) {
	for {
		if n.store.Leader().Get().Name == n.cfg.Name && n.store.Verify(ctx) == nil {
			if state := n.store.State().Get(); state != nil && state.Own.Revision > 0 {
				return
			}
			none := uint64(0)
			founding := store.Change{Space: store.Own, Expect: &none, Put: n.agreed.Get().Own.Objects, Author: n.cfg.Name, Note: "the cluster is founded", Time: n.cfg.Now().UTC()}
			if _, err := n.store.Apply(ctx, founding); err != nil {
				n.cfg.Log.Warn("the founding of the cluster is not agreed yet", "error", err)
			}
		}
		if !sleep(ctx, foundingTime) {
			return
		}
	}
}
