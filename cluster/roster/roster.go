// Package roster decides who belongs to the cluster and who may do what: nodes, revocations, join tokens, access
// tokens, the certificate authorities, the keys of gossip and of session tickets, as they stand in the cluster's own
// records. Orders to all nodes stand there too, and what they leave behind: what is drained, who is blocked, which purges
// were made.
//
// It is pure: a Roster is read from a table, and every decision is a change for the store or a refusal. It opens
// nothing, keeps no goroutine and has no clock: whoever asks says what time it is, and no decision is made for a time
// before the newest record's, so that a clock that was set back brings no token to life. Every change is made for the
// revision that was read, so that of two decisions made at once the later is made again, over the outcome of the first.
// Private keys stand in the table sealed, and secrets of tokens as their hashes: who reads the table can join nothing.
//
// When things break: an object that cannot be read fails the whole of Read, and the node goes by the roster it had;
// what a later release wrote beside the fields known here is kept when the object is rewritten.
package roster

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/store"
)

// Bounds of what the cluster keeps of itself. What would pass one is refused.
const (
	MaxNodes       = 10_000
	MaxTokens      = 1_000
	MaxAccess      = 1_000
	MaxRevocations = 10_000
)

// Roster is everything the cluster has recorded of itself at one revision. It is immutable, its maps too.
type Roster struct {
	Cluster     string // its id; empty if nothing is recorded yet
	Revision    uint64
	Authorities []Authority       // the one in use first, then by name
	GossipKeys  []GossipKey       // the one in use first, then by name
	TicketKeys  []TicketKey       // the one in use first, then by name
	Nodes       map[string]*Node  // by name
	Revoked     map[string]uint64 // by name: certificates of that epoch or an earlier one are refused
	Revocations map[string]Revocation
	Tokens      map[string]Token  // by id
	Access      map[string]Access // by name

	Drains       map[string]Drain // by scope/name; those that have ended too, until they are swept: see Effects
	Blocks       map[string]Block // by CIDR; likewise
	Purges       []Purge          // the oldest first
	Epoch        uint64           // the revision at which the newest order was agreed, of whatever kind; 0: none was
	PurgedBefore uint64           // purges of this epoch and earlier ones may be missing in Purges; 0: none is

	table  *store.Table // that it was read from
	latest time.Time    // the newest record's
	trust  identity.Trust
	byID   map[string]string // names in Access by the ids of their tokens
	purges map[string]Purge  // by id
	orders map[string]Ordered
	newest Ordered
}

// Stage is how far a key or an authority has come on its way through the cluster.
type Stage string

const (
	Introduced Stage = "introduced" // all trust it, none use it yet
	Used       Stage = "used"       // all are to use it; there is one of each sort
	Retiring   Stage = "retiring"   // still trusted, no longer used
)

// Authority is one certificate authority of the cluster. Its name is the hash of its key in hex.
type Authority struct {
	Name        string    `json:"-"`
	Stage       Stage     `json:"stage"`
	Since       time.Time `json:"since"`    // of the stage
	Revision    uint64    `json:"revision"` // at which the stage began
	Certificate []byte    `json:"certificate"`
	Key         []byte    `json:"key"` // PKCS #8, sealed by the authority key

	hash [32]byte
}

// Expires is when the authority ends; no certificate of it lasts longer.
func (a Authority) Expires() (time.Time, error) {
	cert, err := x509.ParseCertificate(a.Certificate)
	if err != nil {
		return time.Time{}, fmt.Errorf("read certificate of authority %s: %w", a.Name, err)
	}
	return cert.NotAfter, nil
}

// GossipKey is one key of the gossip. Its name is a number, counted up.
type GossipKey struct {
	Name       string    `json:"-"`
	Stage      Stage     `json:"stage"`
	Since      time.Time `json:"since"`
	Revision   uint64    `json:"revision"`
	Introduced uint64    `json:"introduced"` // the revision at which it came
	Key        []byte    `json:"key"`        // 32 bytes, sealed by the cluster key
}

// Node is a machine that was admitted and neither revoked nor forgotten.
type Node struct {
	Name      string       `json:"-"`
	Region    string       `json:"region"`
	POP       string       `json:"pop"`
	Roles     []string     `json:"roles"`
	Addresses []netip.Addr `json:"addresses,omitempty"` // that it named when it joined
	Epoch     uint64       `json:"epoch"`               // of its first certificate: the revision at which it was admitted
	Joined    time.Time    `json:"joined"`
	Token     string       `json:"token,omitempty"`   // the id of the token it came by; empty: it founded the cluster
	Request   []byte       `json:"request,omitempty"` // SHA-256 of its certificate request, by which one that is sent again is known
}

// Revocation bars certificates of a name. The name may have been admitted anew since.
type Revocation struct {
	Name   string    `json:"-"`
	Epoch  uint64    `json:"epoch"` // certificates of this epoch or an earlier one are refused
	Time   time.Time `json:"time"`
	Author string    `json:"author,omitempty"`
	// Forgotten: the node was gone and its name is to be free; nothing is wrong with what it knew.
	Forgotten bool `json:"forgotten,omitempty"`
}

// Token lets machines join.
type Token struct {
	ID      string    `json:"-"`               // hex
	Roles   []string  `json:"roles,omitempty"` // that a node may join with; none: any
	Uses    int       `json:"uses"`
	Used    int       `json:"used"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	Author  string    `json:"author,omitempty"`
	Hash    []byte    `json:"hash"` // SHA-256 of the secret
}

// Access is a token for the API.
type Access struct {
	Name      string    `json:"-"`
	ID        string    `json:"id"` // of the token, hex
	Roles     []Role    `json:"roles"`
	Resources []string  `json:"resources,omitempty"` // globs Kind/name; none: all
	Created   time.Time `json:"created"`
	Expires   time.Time `json:"expires,omitzero"` // zero: never
	Author    string    `json:"author,omitempty"`
	Hash      []byte    `json:"hash"` // SHA-256 of the secret
}

// The kinds of the table. Others are passed over: a later release may keep more.
const (
	kindCluster    = "Cluster" // one, its name is the cluster's id
	kindAuthority  = "Authority"
	kindGossipKey  = "GossipKey"
	kindTicketKey  = "TicketKey"
	kindNode       = "Node"
	kindRevocation = "Revocation"
	kindToken      = "JoinToken"
	kindAccess     = "AccessToken"
)

// founding is what is kept of the cluster as such.
type founding struct {
	Founded time.Time `json:"founded"`
}

// Read reads the table of own records. What a roster read before has in common with it is taken from there, so that the
// cost is that of what has changed; before may be nil, and is not changed. A table without objects is an empty roster.
func Read(t *store.Table, before *Roster) (*Roster, error) {
	if before == nil {
		before = &Roster{
			Nodes: map[string]*Node{}, Revoked: map[string]uint64{}, Revocations: map[string]Revocation{},
			Tokens: map[string]Token{}, Access: map[string]Access{}, byID: map[string]string{}, table: new(store.Table),
			Drains: map[string]Drain{}, Blocks: map[string]Block{}, purges: map[string]Purge{}, orders: map[string]Ordered{},
		}
	}
	if before.table == t {
		return before, nil
	}
	after := *before
	after.Revision, after.table, after.latest = t.Revision, t, newest(t.History)
	if err := after.take(store.Changed(before.table, t)); err != nil {
		return nil, err
	}
	if len(after.Authorities) > 0 && after.Cluster == "" {
		return nil, errors.New("authorities of no cluster")
	}
	return &after, nil
}

// newest is the time of the newest of some records, whatever their order: clocks differ.
func newest(history []store.Record) (t time.Time) {
	for _, r := range history {
		if r.Time.After(t) {
			t = r.Time
		}
	}
	return t
}

// take makes edits, and never touches what the roster shares with the one before.
func (r *Roster) take(e store.Edits) error {
	authorities, gossip, tickets := byName(r.Authorities), byName(r.GossipKeys), byName(r.TicketKeys)
	nodes, revocations := edited[*Node]{m: r.Nodes}, edited[Revocation]{m: r.Revocations}
	revoked := edited[uint64]{m: r.Revoked}
	tokens, access := edited[Token]{m: r.Tokens}, edited[Access]{m: r.Access}
	drains, blocks, purges := edited[Drain]{m: r.Drains}, edited[Block]{m: r.Blocks}, edited[Purge]{m: r.purges}
	orders := edited[Ordered]{m: r.orders}

	for _, ref := range e.Delete {
		switch ref.Kind {
		case kindCluster:
			if r.Cluster == ref.Name {
				r.Cluster = ""
			}
		case kindAuthority:
			authorities.delete(ref.Name)
		case kindGossipKey:
			gossip.delete(ref.Name)
		case kindTicketKey:
			tickets.delete(ref.Name)
		case kindNode:
			nodes.delete(ref.Name)
		case kindRevocation:
			revocations.delete(ref.Name)
			revoked.delete(ref.Name)
		case kindToken:
			tokens.delete(ref.Name)
		case kindAccess:
			access.delete(ref.Name)
		case kindDrain:
			drains.delete(ref.Name)
		case kindBlock:
			blocks.delete(ref.Name)
		case kindPurge:
			purges.delete(ref.Name)
		case kindOrder:
			orders.delete(ref.Name)
		}
	}
	for _, o := range e.Put {
		var err error
		switch o.Kind {
		case kindCluster:
			if r.Cluster != "" && r.Cluster != o.Name {
				err = fmt.Errorf("cluster %s stands beside it", r.Cluster)
			}
			r.Cluster = o.Name
		case kindAuthority:
			err = readInto(&authorities, o, (*Authority).finish)
		case kindGossipKey:
			err = readInto(&gossip, o, (*GossipKey).finish)
		case kindTicketKey:
			err = readInto(&tickets, o, (*TicketKey).finish)
		case kindNode:
			var n *Node
			if n, err = read(o, (*Node).finish); err == nil {
				nodes.set(o.Name, n)
			}
		case kindRevocation:
			if err = readInto(&revocations, o, (*Revocation).finish); err == nil {
				revoked.set(o.Name, revocations.m[o.Name].Epoch)
			}
		case kindToken:
			err = readInto(&tokens, o, (*Token).finish)
		case kindAccess:
			err = readInto(&access, o, (*Access).finish)
		case kindDrain:
			err = readInto(&drains, o, (*Drain).finish)
		case kindBlock:
			err = readInto(&blocks, o, (*Block).finish)
		case kindPurge:
			err = readInto(&purges, o, (*Purge).finish)
		case kindOrder:
			err = readInto(&orders, o, (*Ordered).finish)
		}
		if err != nil {
			return fmt.Errorf("read %s %s: %w", o.Kind, o.Name, err)
		}
	}

	r.Nodes, r.Revocations, r.Revoked = nodes.m, revocations.m, revoked.m
	r.Tokens, r.Access = tokens.m, access.m
	r.Drains, r.Blocks, r.purges = drains.m, blocks.m, purges.m
	if purges.own {
		r.Purges = inEpochs(r.purges)
	}
	if r.orders = orders.m; orders.own {
		r.newest = Ordered{}
		for _, o := range r.orders {
			if earlier(r.newest, o) < 0 {
				r.newest = o
			}
		}
	}
	r.Epoch, r.PurgedBefore = r.newest.Epoch, r.newest.PurgedBefore
	if access.own {
		r.byID = make(map[string]string, len(r.Access))
		for name, a := range r.Access {
			r.byID[a.ID] = name
		}
	}
	var err error
	if authorities.own {
		r.Authorities, err = inOrder(authorities.m)
	}
	if gossip.own && err == nil {
		r.GossipKeys, err = inOrder(gossip.m)
	}
	if tickets.own && err == nil {
		r.TicketKeys, err = inOrder(tickets.m)
	}
	r.trust = identity.Trust{Revoked: r.Revoked}
	for _, a := range r.Authorities {
		r.trust.Authorities = append(r.trust.Authorities, a.Certificate)
	}
	return err
}

// edited is a map that is copied before its first edit.
type edited[V any] struct {
	m   map[string]V
	own bool
}

func (e *edited[V]) mine() {
	if !e.own {
		e.m, e.own = maps.Clone(e.m), true
	}
}

func (e *edited[V]) set(name string, v V) { e.mine(); e.m[name] = v }
func (e *edited[V]) delete(name string)   { e.mine(); delete(e.m, name) }

// staged is a key or an authority on its way through the cluster.
type staged interface {
	Authority | GossipKey | TicketKey
	name() string
	stage() Stage
}

func (a Authority) name() string { return a.Name }
func (a Authority) stage() Stage { return a.Stage }
func (k GossipKey) name() string { return k.Name }
func (k GossipKey) stage() Stage { return k.Stage }

func byName[V staged](all []V) edited[V] {
	e := edited[V]{m: make(map[string]V, len(all))}
	for _, v := range all {
		e.m[v.name()] = v
	}
	return e
}

// inOrder has the one in use first. Of a sort that is there at all, exactly one is.
func inOrder[V staged](m map[string]V) ([]V, error) {
	all, used := slices.Collect(maps.Values(m)), 0
	for _, v := range all {
		if v.stage() == Used {
			used++
		}
	}
	if used != 1 && len(all) > 0 {
		var v V
		return nil, fmt.Errorf("%d of %d %T are in use, want one", used, len(all), v)
	}
	slices.SortFunc(all, func(a, b V) int {
		if (a.stage() == Used) != (b.stage() == Used) {
			if a.stage() == Used {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.name(), b.name())
	})
	return all, nil
}

// finish completes what was read from an object of that name, and refuses what nothing could go by.

func (a *Authority) finish(name string) error {
	hash, err := identity.AuthorityHash(a.Certificate)
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	a.Name, a.hash = name, hash
	if hex.EncodeToString(a.hash[:]) != name {
		return errors.New("certificate is not of the key that the object is named by")
	}
	return nil
}

func (k *GossipKey) finish(name string) error {
	k.Name = name
	return nil
}

func (n *Node) finish(name string) error {
	n.Name = name
	return nil
}

func (v *Revocation) finish(name string) error {
	v.Name = name
	return nil
}

func (t *Token) finish(name string) error {
	t.ID = name
	return wantHash(t.Hash)
}

func (a *Access) finish(name string) error {
	a.Name = name
	return wantHash(a.Hash)
}

func wantHash(hash []byte) error {
	if len(hash) != sha256.Size {
		return fmt.Errorf("hash of the secret has %d bytes, want %d", len(hash), sha256.Size)
	}
	return nil
}

// Trust is whom nodes trust by this roster. It must not be changed.
func (r *Roster) Trust() identity.Trust { return r.trust }

// Barred says whether a name is shut out, whatever certificate it shows: it was revoked or forgotten, and not admitted
// anew since.
func (r *Roster) Barred(name string) bool {
	_, revoked := r.Revoked[name]
	_, member := r.Nodes[name]
	return revoked && !member
}

// SigningHash is the hash of the authority in use, by which a node sees whether its own certificate is of another.
func (r *Roster) SigningHash() ([32]byte, bool) {
	if len(r.Authorities) == 0 {
		return [32]byte{}, false
	}
	return r.Authorities[0].hash, true
}

// Signing opens the authority in use by the authority key.
func (r *Roster) Signing(key identity.Key) (*identity.Authority, error) {
	if len(r.Authorities) == 0 {
		return nil, errors.New("no authority is recorded")
	}
	a := r.Authorities[0]
	private, err := key.Open(a.Key, authorityContext(a.Name))
	if err != nil {
		return nil, fmt.Errorf("open the key of authority %s: %w", a.Name, err)
	}
	return identity.ReadAuthority(a.Certificate, private)
}

// Gossip opens the gossip keys by the cluster key: the one to encrypt by, and the others that are read.
func (r *Roster) Gossip(key identity.Key) (primary []byte, others [][]byte, err error) {
	for i, k := range r.GossipKeys {
		plain, err := key.Open(k.Key, gossipContext(k.Name))
		if err != nil {
			return nil, nil, fmt.Errorf("open gossip key %s: %w", k.Name, err)
		}
		if i == 0 {
			primary = plain
		} else {
			others = append(others, plain)
		}
	}
	if primary == nil {
		return nil, nil, errors.New("no gossip key is recorded")
	}
	return primary, others, nil
}

// What a sealed key is bound to: sealed bytes that are put in another object's place do not open.

func authorityContext(name string) string { return "perigee authority " + name }
func gossipContext(name string) string    { return "perigee gossip key " + name }

// judged is the time that a decision is made for: no earlier than the newest record.
func (r *Roster) judged(now time.Time) time.Time {
	if now.Before(r.latest) {
		now = r.latest
	}
	return now.UTC().Round(0)
}
