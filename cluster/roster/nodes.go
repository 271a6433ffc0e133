package roster

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/store"
)

const (
	// revocationLife is how long a revocation is kept: the last certificate that it bars has ended by then, even where a
	// voter that had not heard of it went on renewing for as long as a certificate lives (90 days), and one more month.
	revocationLife = 210 * 24 * time.Hour

	// maxDropped bounds what a change drops besides what it is for.
	maxDropped = 100
)

// Refusal is why a machine is not admitted or not renewed. Its text is for the operator of the machine, and names nothing
// that a stranger should not know.
type Refusal struct {
	Code   string // for counters: unable, wrong_token, expired, used_up, role, claim, name_taken, full, unknown_node
	Reason string
}

func (r *Refusal) Error() string { return r.Reason }

func refusal(code, reason string, args ...any) *Refusal {
	return &Refusal{code, fmt.Sprintf(reason, args...)}
}

// Found makes the first change of a cluster: its id, its authority, its first gossip key and its first node, whose
// certificate has the epoch 1. It is for a table at revision 0.
func Found(cluster string, a *identity.Authority, keys identity.Keys, first Node, now time.Time) (store.Change, error) {
	if keys.Authority == nil {
		return store.Change{}, errors.New("found cluster: no authority key")
	}
	empty := &Roster{Cluster: cluster, table: new(store.Table)}
	now = empty.judged(now)
	c := empty.change(first.Name, now, "cluster founded by %s in %s", first.Name, first.Region)
	first.Epoch, first.Joined = 1, now
	authority := newAuthority(a, *keys.Authority, Used, 1, now)
	key, err := newGossipKey("1", keys.Cluster, Used, 1, now)
	err = errors.Join(
		err,
		empty.put(&c, kindCluster, cluster, founding{now}),
		empty.put(&c, kindAuthority, authority.Name, authority),
		empty.put(&c, kindGossipKey, key.Name, key),
		empty.freshTickets(&c, keys.Cluster, now),
		empty.put(&c, kindNode, first.Name, first),
	)
	return c, err
}

// Admit judges a machine that asks to join. The answer counts only when the change is applied: it holds a certificate
// of the revision that the change leads to. A request that was admitted already, with the same token and key, is answered
// again by a change without effect, so that an answer that was lost on its way costs neither a use nor the name.
func (r *Roster) Admit(req identity.JoinRequest, keys identity.Keys, now time.Time) (identity.JoinAnswer, store.Change, *Refusal) {
	refused := func(refusal *Refusal) (identity.JoinAnswer, store.Change, *Refusal) {
		return identity.JoinAnswer{}, store.Change{}, refusal
	}
	judged := r.judged(now)
	token, problem := r.judgeToken(req, judged)
	if problem != nil {
		return refused(problem)
	}
	claim := req.Claim
	if err := claim.Validate(); err != nil {
		return refused(refusal("claim", "%v", err))
	}
	for _, role := range claim.Roles {
		if len(token.Roles) > 0 && !slices.Contains(token.Roles, role) {
			return refused(refusal("role", "the token does not allow the role %s, only %s", role, strings.Join(token.Roles, ", ")))
		}
	}
	request := sha256.Sum256(req.CSR)
	if n, taken := r.Nodes[claim.Name]; taken {
		if n.Token != token.ID || !bytes.Equal(n.Request, request[:]) || !sameRoles(n.Roles, claim.Roles) {
			return refused(refusal("name_taken", "the name %s is taken by a node in %s that joined on %s: choose another, or revoke or forget that one first",
				n.Name, n.Region, n.Joined.Format(time.DateOnly)))
		}
		answer, problem := r.certify(req.CSR, claim, n.Roles, r.Revision, keys, now)
		return answer, r.change("token:"+token.ID, judged, "node %s asks again", n.Name), problem
	}
	switch {
	case token.Used >= token.Uses:
		return refused(refusal("used_up", "the token was good for %s and is used up", count(token.Uses, "node")))
	case len(r.Nodes) >= MaxNodes:
		return refused(refusal("full", "the cluster has %d nodes and takes no more", len(r.Nodes)))
	}
	answer, problem := r.certify(req.CSR, claim, claim.Roles, r.Revision+1, keys, now)
	if problem != nil {
		return refused(problem)
	}
	c := r.change("token:"+token.ID, judged, "node %s joins in %s, roles %s", claim.Name, claim.Region, strings.Join(claim.Roles, ", "))
	token.Used++
	err := errors.Join(
		r.put(&c, kindToken, token.ID, token),
		r.put(&c, kindNode, claim.Name, Node{
			Region: claim.Region, POP: claim.POP, Roles: claim.Roles, Addresses: claim.Addresses,
			Epoch: r.Revision + 1, Joined: judged, Token: token.ID, Request: request[:],
		}),
	)
	if err != nil {
		return refused(refusal("unable", "%v", err))
	}
	return answer, c, nil
}

// judgeToken finds the token of a request. One that is unknown and one with a wrong secret are refused alike, so that
// ids cannot be tried out.
func (r *Roster) judgeToken(req identity.JoinRequest, now time.Time) (Token, *Refusal) {
	token, known := r.Tokens[hex.EncodeToString(req.TokenID)]
	shown := sha256.Sum256(req.Secret)
	switch {
	case !known || subtle.ConstantTimeCompare(shown[:], token.Hash) != 1:
		return Token{}, refusal("wrong_token", "the token is wrong, was deleted, or ended more than a day ago")
	case !now.Before(token.Expires):
		return Token{}, refusal("expired", "the token expired on %s", token.Expires.Format(time.RFC3339))
	}
	return token, nil
}

// Renew certifies a new key for a recorded node that has proved its name by the certificate it has. Nothing is written.
// The roles stay those that it was admitted with; region, POP and addresses may be others.
func (r *Roster) Renew(name string, csr []byte, claim identity.Claim, keys identity.Keys, now time.Time) (identity.JoinAnswer, *Refusal) {
	n, recorded := r.Nodes[name]
	switch {
	case !recorded && r.Barred(name):
		return identity.JoinAnswer{}, refusal("unknown_node", "node %s was revoked or forgotten: it must join anew", name)
	case !recorded:
		return identity.JoinAnswer{}, refusal("unknown_node", "no node %s is recorded", name)
	case claim.Name != name:
		return identity.JoinAnswer{}, refusal("claim", "node %s asks for a certificate of %s", name, claim.Name)
	case !sameRoles(n.Roles, claim.Roles):
		return identity.JoinAnswer{}, refusal("role", "node %s was admitted with the roles %s, not %s: to change them it must join anew",
			name, strings.Join(n.Roles, ", "), strings.Join(claim.Roles, ", "))
	}
	return r.certify(csr, claim, n.Roles, r.Revision, keys, now)
}

// certify issues a certificate by the authority in use. It goes by the clock as it is: whoever gets the certificate has
// a clock too, and one record from the future must not make certificates that are valid nowhere.
func (r *Roster) certify(csr []byte, claim identity.Claim, roles []string, epoch uint64, keys identity.Keys, now time.Time) (identity.JoinAnswer, *Refusal) {
	if keys.Authority == nil {
		return identity.JoinAnswer{}, refusal("unable", "this node has not the role voter and cannot certify others")
	}
	authority, err := r.Signing(*keys.Authority)
	if err != nil {
		return identity.JoinAnswer{}, refusal("unable", "%v", err)
	}
	certificate, err := authority.Issue(csr, claim, epoch, now)
	if err != nil {
		return identity.JoinAnswer{}, refusal("claim", "%v", err)
	}
	answer := identity.JoinAnswer{Certificate: certificate, Authorities: r.trust.Authorities, ClusterKey: slices.Clone(keys.Cluster[:])}
	if slices.Contains(roles, identity.Voter) {
		answer.AuthorityKey = slices.Clone(keys.Authority[:])
	}
	return answer, nil
}

// Revoke shuts a node out: its certificates are refused, and the gossip keys that it knows are to be replaced, which the
// next Step begins. Its name is free for a machine that joins anew.
func (r *Roster) Revoke(name, author string, now time.Time) (store.Change, error) {
	n, recorded := r.Nodes[name]
	before, barred := r.Revocations[name]
	switch {
	case recorded && r.lastVoter(n):
		return store.Change{}, fmt.Errorf("revoke %s: no other node has the role %s", name, identity.Voter)
	case !recorded && !barred:
		return store.Change{}, fmt.Errorf("revoke %s: no such node is recorded", name)
	case !recorded && !before.Forgotten:
		return store.Change{}, fmt.Errorf("revoke %s: it was revoked on %s", name, before.Time.Format(time.RFC3339))
	}
	note := "node %s revoked"
	if recorded && slices.Contains(n.Roles, identity.Voter) {
		note += "; it had the authority key: rotate the authority too"
	}
	return r.bar(name, Revocation{Author: author}, now, note)
}

// Forget removes a node that is gone, and frees its name. Its certificates are refused from then on, as the name may soon
// be another machine's: should it come back, it must join anew.
func (r *Roster) Forget(name, author string, now time.Time) (store.Change, error) {
	n, recorded := r.Nodes[name]
	switch {
	case !recorded:
		return store.Change{}, fmt.Errorf("forget %s: no such node is recorded", name)
	case r.lastVoter(n):
		return store.Change{}, fmt.Errorf("forget %s: no other node has the role %s", name, identity.Voter)
	}
	return r.bar(name, Revocation{Author: author, Forgotten: true}, now, "node %s forgotten")
}

// lastVoter says whether no other node could certify and vote.
func (r *Roster) lastVoter(n *Node) bool {
	if !slices.Contains(n.Roles, identity.Voter) {
		return false
	}
	for name, other := range r.Nodes {
		if name != n.Name && slices.Contains(other.Roles, identity.Voter) {
			return false
		}
	}
	return true
}

// bar refuses all certificates of a name up to now. Their epochs are at most the revision before this change: who issued
// one later had seen this change, and refused.
func (r *Roster) bar(name string, v Revocation, now time.Time, note string) (store.Change, error) {
	now = r.judged(now)
	c := r.change(v.Author, now, note, name)
	v.Epoch, v.Time = r.Revision+1, now
	if _, again := r.Revocations[name]; !again && len(r.Revocations) >= MaxRevocations {
		ended := r.ended(now)
		if len(ended) == 0 {
			return store.Change{}, fmt.Errorf("bar %s: %d names are barred already, and none of their certificates has ended", name, MaxRevocations)
		}
		for _, old := range ended {
			drop(&c, kindRevocation, old)
		}
	}
	drop(&c, kindNode, name)
	err := r.put(&c, kindRevocation, name, v)
	return c, err
}

// ended are the names of revocations whose certificates have all ended, the oldest first, at most maxDropped.
func (r *Roster) ended(now time.Time) []string {
	var names []string
	for name, v := range r.Revocations {
		if now.Sub(v.Time) > revocationLife {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if order := r.Revocations[a].Time.Compare(r.Revocations[b].Time); order != 0 {
			return order
		}
		return strings.Compare(a, b)
	})
	return names[:min(len(names), maxDropped)]
}

func sameRoles(a, b []string) bool {
	return slices.Equal(slices.Compact(slices.Sorted(slices.Values(a))), slices.Compact(slices.Sorted(slices.Values(b))))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
