package roster

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/store"
)

// What can be rotated.
const (
	RotateAuthority = "authority"
	RotateGossip    = "gossip"
)

// AbsentGrace is how long a stage of the authority's rotation waits for nodes that are recorded and not live. One that is
// still away then comes back as a stranger and must join anew; forgetting it ends the wait at once. Gossip keys wait for
// nobody who is away: it gets the new ones by its certificate.
const AbsentGrace = 72 * time.Hour

// Progress is how far a live node has come, as it says itself.
type Progress struct {
	Own       uint64   // the revision of the own records that it goes by
	Authority [32]byte // the hash of the authority of the certificate that it shows
}

// Rotate begins to replace the authority or the gossip key. Steps then lead to its end.
func (r *Roster) Rotate(what string, keys identity.Keys, now time.Time) (store.Change, error) {
	now = r.judged(now)
	switch what {
	case RotateAuthority:
		if len(r.Authorities) != 1 {
			return store.Change{}, fmt.Errorf("rotate authority: %s", underWay(r.Authorities))
		}
		return r.introduceAuthority(keys, now)
	case RotateGossip:
		if len(r.GossipKeys) != 1 {
			return store.Change{}, fmt.Errorf("rotate gossip key: %s", underWay(r.GossipKeys))
		}
		return r.introduceGossipKey(keys, now, "")
	}
	return store.Change{}, fmt.Errorf("rotate %q: want %s or %s", what, RotateAuthority, RotateGossip)
}

func underWay[V staged](all []V) string {
	if len(all) == 0 {
		return "there is none yet"
	}
	return "a rotation is under way"
}

func (r *Roster) introduceAuthority(keys identity.Keys, now time.Time) (store.Change, error) {
	if keys.Authority == nil {
		return store.Change{}, errors.New("rotate authority: this node has not the role voter")
	}
	fresh, err := identity.NewAuthority(r.Cluster, now)
	if err != nil {
		return store.Change{}, fmt.Errorf("rotate authority: %w", err)
	}
	a := newAuthority(fresh, *keys.Authority, Introduced, r.Revision+1, now)
	c := r.change("cluster", now, "authority %.16s introduced", a.Name)
	err = r.put(&c, kindAuthority, a.Name, a)
	return c, err
}

func newAuthority(a *identity.Authority, key identity.Key, stage Stage, revision uint64, now time.Time) Authority {
	hash := a.Hash()
	name := hex.EncodeToString(hash[:])
	return Authority{
		Name: name, Stage: stage, Since: now, Revision: revision,
		Certificate: a.Certificate(), Key: key.Seal(a.PrivateKey(), authorityContext(name)), hash: hash,
	}
}

func (r *Roster) introduceGossipKey(keys identity.Keys, now time.Time, why string) (store.Change, error) {
	highest := 0
	for _, k := range r.GossipKeys {
		if n, err := strconv.Atoi(k.Name); err == nil {
			highest = max(highest, n)
		}
	}
	k, err := newGossipKey(strconv.Itoa(highest+1), keys.Cluster, Introduced, r.Revision+1, now)
	if err != nil {
		return store.Change{}, err
	}
	c := r.change("cluster", now, "gossip key %s introduced%s", k.Name, why)
	err = r.put(&c, kindGossipKey, k.Name, k)
	return c, err
}

func newGossipKey(name string, key identity.Key, stage Stage, revision uint64, now time.Time) (GossipKey, error) {
	fresh := identity.NewKey()
	return GossipKey{
		Name: name, Stage: stage, Since: now, Revision: revision, Introduced: revision,
		Key: key.Seal(fresh[:], gossipContext(name)),
	}, nil
}

// Step makes the next step of a rotation that is under way, or begins the one that a revocation asks for, if all have
// taken the step before it who must. live are the nodes that are live now. The text says what the step does or, where none
// is made, what it waits for; empty: nothing is under way.
func (r *Roster) Step(live map[string]Progress, keys identity.Keys, now time.Time) (store.Change, string, bool) {
	now = r.judged(now)
	var waits []string
	for _, one := range []struct {
		what   string
		behind []string
		step   func() (store.Change, error)
	}{
		{"gossip key", r.gossipWaits(live), func() (store.Change, error) { return r.stepGossip(keys, now) }},
		{"authority", r.authorityWaits(live, now), func() (store.Change, error) { return r.stepAuthority(now) }},
	} {
		if len(one.behind) > 0 {
			waits = append(waits, one.what+": the next step waits for "+listed(one.behind))
			continue
		}
		c, err := one.step()
		if err != nil {
			waits = append(waits, one.what+": "+err.Error())
		} else if len(c.Put)+len(c.Delete) > 0 {
			return c, c.Note, true
		}
	}
	return store.Change{}, strings.Join(waits, "; "), false
}

// Waiting names the nodes that the next steps of what is under way wait for, those that are recorded and not live marked
// as away.
func (r *Roster) Waiting(live map[string]Progress) []string {
	all := append(r.gossipWaits(live), r.authorityWaits(live, r.latest)...)
	slices.Sort(all)
	return slices.Compact(all)
}

// gossipWaits names the live nodes that do not know the stages of all gossip keys yet. Then none can be missing: any two are
// at most one stage apart, and a stage is made so that its keys are read in the one before.
func (r *Roster) gossipWaits(live map[string]Progress) []string {
	if len(r.GossipKeys) < 2 {
		return nil
	}
	var reached uint64
	for _, k := range r.GossipKeys {
		reached = max(reached, k.Revision)
	}
	return r.behind(live, func(p Progress) bool { return p.Own >= reached }, func(*Node) bool { return false })
}

// authorityWaits names the nodes that do not know the stages of all authorities yet or, when one is to retire, have no
// certificate of the one in use. It counts those who are away: without the step they could not come back by themselves.
func (r *Roster) authorityWaits(live map[string]Progress, now time.Time) []string {
	if len(r.Authorities) < 2 {
		return nil
	}
	var reached uint64
	var since time.Time
	for _, a := range r.Authorities {
		if a.Revision > reached {
			reached, since = a.Revision, a.Since
		}
	}
	used, retires := r.Authorities[0].hash, at(r.Authorities, Retiring) >= 0
	taken := func(p Progress) bool { return p.Own >= reached && (!retires || p.Authority == used) }
	missed := func(n *Node) bool { return now.Sub(since) < AbsentGrace || now.Sub(n.Joined) < AbsentGrace }
	return r.behind(live, taken, missed)
}

// behind names those recorded nodes that are live and have not taken a step, and those away that are missed. Without any
// live node nothing is known.
func (r *Roster) behind(live map[string]Progress, taken func(Progress) bool, missed func(*Node) bool) []string {
	var names []string
	known := false
	for name, n := range r.Nodes {
		p, lives := live[name]
		known = known || lives
		switch {
		case lives && !taken(p):
			names = append(names, name)
		case !lives && missed(n):
			names = append(names, name+" (away)")
		}
	}
	if !known {
		return []string{"any live node"}
	}
	slices.Sort(names)
	return names
}

func listed(names []string) string {
	const shown = 5
	if len(names) > shown {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
	}
	return strings.Join(names, ", ")
}

// stepGossip is the next step of the gossip keys, if there is one; all that must have taken the one before.
func (r *Roster) stepGossip(keys identity.Keys, now time.Time) (store.Change, error) {
	if i := at(r.GossipKeys, Introduced); i >= 0 {
		fresh, old := r.GossipKeys[i], r.GossipKeys[0]
		fresh.Stage, fresh.Since, fresh.Revision = Used, now, r.Revision+1
		old.Stage, old.Since, old.Revision = Retiring, now, r.Revision+1
		c := r.change("cluster", now, "gossip key %s in use", fresh.Name)
		err := errors.Join(r.put(&c, kindGossipKey, fresh.Name, fresh), r.put(&c, kindGossipKey, old.Name, old))
		return c, err
	}
	if i := at(r.GossipKeys, Retiring); i >= 0 {
		c := r.change("cluster", now, "gossip key %s retired", r.GossipKeys[i].Name)
		drop(&c, kindGossipKey, r.GossipKeys[i].Name)
		return c, nil
	}
	if len(r.GossipKeys) == 1 {
		for _, name := range slices.Sorted(maps.Keys(r.Revocations)) {
			if v := r.Revocations[name]; !v.Forgotten && v.Epoch > r.GossipKeys[0].Introduced {
				return r.introduceGossipKey(keys, now, ": "+name+" was revoked")
			}
		}
	}
	return store.Change{}, nil
}

// stepAuthority is the next step of the authorities, if there is one; all that must have taken the one before.
func (r *Roster) stepAuthority(now time.Time) (store.Change, error) {
	if i := at(r.Authorities, Introduced); i >= 0 {
		fresh, old := r.Authorities[i], r.Authorities[0]
		fresh.Stage, fresh.Since, fresh.Revision = Used, now, r.Revision+1
		old.Stage, old.Since, old.Revision = Retiring, now, r.Revision+1
		c := r.change("cluster", now, "authority %.16s in use", fresh.Name)
		err := errors.Join(r.put(&c, kindAuthority, fresh.Name, fresh), r.put(&c, kindAuthority, old.Name, old))
		return c, err
	}
	if i := at(r.Authorities, Retiring); i >= 0 {
		c := r.change("cluster", now, "authority %.16s retired", r.Authorities[i].Name)
		drop(&c, kindAuthority, r.Authorities[i].Name)
		return c, nil
	}
	return store.Change{}, nil
}

// at is where the first of a stage is, or -1.
func at[V staged](all []V, stage Stage) int {
	return slices.IndexFunc(all, func(v V) bool { return v.stage() == stage })
}
