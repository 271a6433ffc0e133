package roster

import (
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
	minTTL       = time.Minute
	maxTokenTTL  = 720 * time.Hour
	maxAccessTTL = 8760 * time.Hour
	maxUses      = 1000

	maxTokenRoles = 8
	maxResources  = 100
	maxGlob       = 512 // bytes of one

	// expiredKept is how long a token that has ended is kept, so that who still has it is told that it has expired.
	expiredKept = 24 * time.Hour
)

// TokenSpec is what a join token is to be good for.
type TokenSpec struct {
	Roles []string      // that a node may join with; none: any
	TTL   time.Duration // 1 minute … 720 hours; 0: 1 hour
	Uses  int           // 1 … 1000; 0: 1
}

// CreateToken makes a join token. Only its hash is kept: the token itself is shown once.
func (r *Roster) CreateToken(spec TokenSpec, author string, now time.Time) (identity.Token, store.Change, error) {
	failed := func(err error) (identity.Token, store.Change, error) {
		return identity.Token{}, store.Change{}, fmt.Errorf("create join token: %w", err)
	}
	if spec.TTL == 0 {
		spec.TTL = time.Hour
	}
	if spec.Uses == 0 {
		spec.Uses = 1
	}
	authority, ok := r.SigningHash()
	switch {
	case !ok:
		return failed(errors.New("no authority is recorded"))
	case spec.TTL < minTTL || spec.TTL > maxTokenTTL:
		return failed(fmt.Errorf("a life of %v: want %v … %v", spec.TTL, minTTL, maxTokenTTL))
	case spec.Uses < 1 || spec.Uses > maxUses:
		return failed(fmt.Errorf("%d uses: want 1 … %d", spec.Uses, maxUses))
	case len(spec.Roles) > maxTokenRoles:
		return failed(fmt.Errorf("%d roles: at most %d", len(spec.Roles), maxTokenRoles))
	}
	for _, role := range spec.Roles {
		if !isLabel(role) {
			return failed(fmt.Errorf("role %q: want 1–63 of a–z, 0–9 and inner hyphens", role))
		}
	}
	now = r.judged(now)
	token := identity.NewToken(authority)
	id, hash := hex.EncodeToString(token.ID[:]), token.Hash()
	kept := Token{Roles: spec.Roles, Uses: spec.Uses, Created: now, Expires: now.Add(spec.TTL), Author: author, Hash: hash[:]}
	what := "all roles"
	if len(spec.Roles) > 0 {
		what = "roles " + strings.Join(spec.Roles, ", ")
	}
	c := r.change(author, now, "join token %s created: %s, %s, until %s", id, count(spec.Uses, "use"), what, kept.Expires.Format(time.RFC3339))
	if len(r.Tokens) >= MaxTokens && r.dropExpired(&c, now) == 0 {
		return failed(fmt.Errorf("there are %d already, and none has expired: delete some", len(r.Tokens)))
	}
	if err := r.put(&c, kindToken, id, kept); err != nil {
		return failed(err)
	}
	return token, c, nil
}

// DeleteToken ends a join token by its id. Nodes that came by it stay.
func (r *Roster) DeleteToken(id, author string, now time.Time) (store.Change, error) {
	if _, found := r.Tokens[id]; !found {
		return store.Change{}, fmt.Errorf("delete join token %s: there is none with that id", id)
	}
	c := r.change(author, r.judged(now), "join token %s deleted", id)
	drop(&c, kindToken, id)
	return c, nil
}

// AccessSpec is what an access token is to be good for.
type AccessSpec struct {
	Name      string        // a label: 1–63 of a–z, 0–9 and inner hyphens
	Roles     []Role        // at least one
	Resources []string      // globs Kind/name of what may be changed and seen; none: all
	TTL       time.Duration // 1 minute … 8760 hours; 0: it does not end
}

// CreateAccess makes an access token. Only its hash is kept: the token itself is shown once.
func (r *Roster) CreateAccess(spec AccessSpec, author string, now time.Time) (identity.AccessToken, store.Change, error) {
	failed := func(err error) (identity.AccessToken, store.Change, error) {
		return identity.AccessToken{}, store.Change{}, fmt.Errorf("create access token %q: %w", spec.Name, err)
	}
	authority, ok := r.SigningHash()
	if !ok {
		return failed(errors.New("no authority is recorded"))
	}
	if err := spec.check(); err != nil {
		return failed(err)
	}
	now = r.judged(now)
	if old, taken := r.Access[spec.Name]; taken && old.live(now) {
		return failed(errors.New("there is one of that name: delete it first, or choose another name"))
	}
	token := identity.NewAccessToken(authority)
	hash := token.Hash()
	kept := Access{ID: hex.EncodeToString(token.ID[:]), Roles: spec.Roles, Resources: spec.Resources, Created: now, Author: author, Hash: hash[:]}
	until := "without end"
	if spec.TTL > 0 {
		kept.Expires = now.Add(spec.TTL)
		until = "until " + kept.Expires.Format(time.RFC3339)
	}
	limit := "all resources"
	if len(spec.Resources) > 0 {
		limit = listed(spec.Resources)
	}
	c := r.change(author, now, "access token %s created: %s on %s, %s", spec.Name, joined(spec.Roles), limit, until)
	if _, replaces := r.Access[spec.Name]; !replaces && len(r.Access) >= MaxAccess && r.dropExpired(&c, now) == 0 {
		return failed(fmt.Errorf("there are %d already, and none has expired: delete some", len(r.Access)))
	}
	if err := r.put(&c, kindAccess, spec.Name, kept); err != nil {
		return failed(err)
	}
	return token, c, nil
}

func (s AccessSpec) check() error {
	switch {
	case !isLabel(s.Name):
		return errors.New("name: want 1–63 of a–z, 0–9 and inner hyphens")
	case len(s.Roles) == 0:
		return fmt.Errorf("no role: want some of %s", joined(allRoles()))
	case len(s.Roles) > len(allRoles()):
		return fmt.Errorf("%d roles: there are only %s", len(s.Roles), joined(allRoles()))
	case s.TTL != 0 && (s.TTL < minTTL || s.TTL > maxAccessTTL):
		return fmt.Errorf("a life of %v: want %v … %v, or none for one without end", s.TTL, minTTL, maxAccessTTL)
	case len(s.Resources) > maxResources:
		return fmt.Errorf("%d resources: at most %d", len(s.Resources), maxResources)
	case len(s.Resources) > 0 && slices.Contains(s.Roles, RoleAdmin):
		return errors.New("an admin can give itself all rights, so it cannot be limited to resources")
	}
	for _, role := range s.Roles {
		if !slices.Contains(allRoles(), role) {
			return fmt.Errorf("role %q: want some of %s", role, joined(allRoles()))
		}
	}
	for _, glob := range s.Resources {
		if err := checkGlob(glob); err != nil {
			return fmt.Errorf("resource %q: %w", glob, err)
		}
	}
	return nil
}

// DeleteAccess ends an access token by its name.
func (r *Roster) DeleteAccess(name, author string, now time.Time) (store.Change, error) {
	if _, found := r.Access[name]; !found {
		return store.Change{}, fmt.Errorf("delete access token %s: there is none of that name", name)
	}
	c := r.change(author, r.judged(now), "access token %s deleted", name)
	drop(&c, kindAccess, name)
	return c, nil
}

// live says whether an access token has not ended.
func (a Access) live(now time.Time) bool { return a.Expires.IsZero() || now.Before(a.Expires) }

// Sweep drops tokens that expired a day ago, revocations whose certificates have all ended, drains and blocks that have
// ended, and purges of a week ago; false: there are none. It drops at most 600 at once.
func (r *Roster) Sweep(now time.Time) (store.Change, bool) {
	clock := now.UTC().Round(0)
	now = r.judged(now)
	c := r.change("cluster", now, "")
	tokens := r.dropExpired(&c, now.Add(-expiredKept))
	ended := r.ended(now)
	for _, name := range ended {
		drop(&c, kindRevocation, name)
	}
	orders, err := r.dropEnded(&c, clock)
	if err != nil {
		return store.Change{}, false
	}
	c.Note = fmt.Sprintf("%s, %s and %s have ended", count(tokens, "token"), count(len(ended), "revocation"), count(orders, "order"))
	return c, len(c.Delete) > 0
}

// dropExpired drops join tokens and access tokens that had expired at a time, at most maxDropped of each.
func (r *Roster) dropExpired(c *store.Change, at time.Time) int {
	var ids, names []string
	for id, t := range r.Tokens {
		if !at.Before(t.Expires) {
			ids = append(ids, id)
		}
	}
	for name, a := range r.Access {
		if !a.live(at) {
			names = append(names, name)
		}
	}
	slices.Sort(ids)
	slices.Sort(names)
	ids, names = ids[:min(len(ids), maxDropped)], names[:min(len(names), maxDropped)]
	for _, id := range ids {
		drop(c, kindToken, id)
	}
	for _, name := range names {
		drop(c, kindAccess, name)
	}
	return len(ids) + len(names)
}

// isLabel says whether s is a label (RFC 1123 section 2.1) in lower case.
func isLabel(s string) bool {
	if len(s) < 1 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
