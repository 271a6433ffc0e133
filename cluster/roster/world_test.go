package roster

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/store"
)

// fataler is a *testing.T, *testing.B, *testing.F or *rapid.T.
type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// world is a cluster's own records as the leader has them, and its clock.
type world struct {
	t     fataler
	state *store.State
	keys  identity.Keys
	now   time.Time
	last  *Roster
	past  []*Roster // by revision, from the first on
}

// everyRole is what most nodes have.
func everyRole() []string { return []string{"edge", "dns", "origin", identity.Voter} }

// found makes a cluster with the one node icn1-a.
func found(t fataler) *world {
	t.Helper()
	authorityKey := identity.NewKey()
	w := &world{
		t: t, state: new(store.State), now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC),
		keys: identity.Keys{Cluster: identity.NewKey(), Authority: &authorityKey},
	}
	id := identity.NewClusterID()
	a, err := identity.NewAuthority(id, w.now)
	if err != nil {
		t.Fatal(err)
	}
	w.do(Found(id, a, w.keys, Node{Name: "icn1-a", Region: "ap-northeast-2", POP: "icn1", Roles: everyRole()}, w.now))
	return w
}

// roster is what is agreed now.
func (w *world) roster() *Roster {
	w.t.Helper()
	r, err := Read(&w.state.Own, w.last)
	if err != nil {
		w.t.Fatal(err)
	}
	w.last = r
	return r
}

// apply has a change agreed, if it was made for what is agreed now.
func (w *world) apply(c store.Change) error {
	w.t.Helper()
	if c.Space != store.Own || c.Expect == nil || c.Time.IsZero() || c.Note == "" {
		w.t.Fatalf("a change without its space, revision, time or note: %+v", c)
	}
	next, _, err := w.state.With(c)
	if err != nil {
		if !errors.As(err, new(*store.ConflictError)) {
			w.t.Fatal(err)
		}
		return err
	}
	if w.state = next; next.Own.Revision == uint64(len(w.past)+1) {
		w.past = append(w.past, w.roster())
	}
	return nil
}

// do has a change agreed that must be in order.
func (w *world) do(c store.Change, err error) {
	w.t.Helper()
	if err == nil {
		err = w.apply(c)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// token makes a join token.
func (w *world) token(spec TokenSpec) identity.Token {
	w.t.Helper()
	token, c, err := w.roster().CreateToken(spec, "root@socket", w.now)
	w.do(c, err)
	return token
}

// request is a machine's request to join.
func (w *world) request(token identity.Token, name string) (*identity.Request, identity.JoinRequest) {
	w.t.Helper()
	r, err := identity.NewRequest()
	if err != nil {
		w.t.Fatal(err)
	}
	return r, identity.JoinRequest{
		TokenID: token.ID[:], Secret: token.Secret[:], CSR: r.CSR(),
		Claim: identity.Claim{Name: name, Region: "eu-central-1", POP: "fra1", Roles: everyRole()},
	}
}

// join admits a machine and returns its identity.
func (w *world) join(name string) *identity.Node {
	w.t.Helper()
	request, req := w.request(w.token(TokenSpec{}), name)
	answer, c, refusal := w.roster().Admit(req, w.keys, w.now)
	if refusal != nil {
		w.t.Fatal(refusal)
	}
	w.do(c, nil)
	n, err := answer.Accept(request)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// refusedBy says whether a certificate is refused by a roster's revocations, as identity.Guard judges it.
func refusedBy(r *Roster, n *identity.Node) bool {
	epoch, revoked := r.Trust().Revoked[n.Name()]
	return revoked && n.Epoch() <= epoch
}

// put has an object agreed as it is, past all decisions.
func (w *world) put(kind, name, bytes string) {
	w.t.Helper()
	w.do(store.Change{
		Space: store.Own, Expect: &w.state.Own.Revision, Time: w.now, Note: "test",
		Put: []store.Object{{Kind: kind, Name: name, Bytes: []byte(bytes)}},
	}, nil)
}

// same fails unless two rosters say the same.
func same(t fataler, a, b *Roster) {
	t.Helper()
	x, y := *a, *b
	x.table, y.table = nil, nil
	if !reflect.DeepEqual(x, y) {
		t.Fatalf("rosters differ:\n%+v\n%+v", x, y)
	}
}

func mustHave[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func stages[V staged](all []V) string {
	var s []string
	for _, v := range all {
		s = append(s, string(v.stage()))
	}
	return fmt.Sprint(s)
}

func names[V staged](all []V) []string {
	var s []string
	for _, v := range all {
		s = append(s, v.name())
	}
	slices.Sort(s)
	return s
}
