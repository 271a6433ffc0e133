package roster

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/store"
)

func TestAnEmptyTableIsAnEmptyRoster(t *testing.T) {
	r, err := Read(new(store.Table), nil)
	if err != nil || r.Cluster != "" || r.Revision != 0 || len(r.Trust().Authorities) != 0 || r.Barred("icn1-a") {
		t.Fatalf("got %+v, %v", r, err)
	}
	if _, err := r.Signing(identity.NewKey()); err == nil {
		t.Error("it signs")
	}
	if _, _, err := r.Gossip(identity.NewKey()); err == nil {
		t.Error("it gossips")
	}
	if _, _, err := r.CreateToken(TokenSpec{}, "", time.Now()); err == nil {
		t.Error("it has tokens")
	}
	if _, _, err := r.CreateAccess(AccessSpec{Name: "ci", Roles: allRoles()}, "", time.Now()); err == nil {
		t.Error("it has access tokens")
	}
}

func TestWhatALaterReleaseWritesIsKept(t *testing.T) {
	w := found(t)
	id := hex.EncodeToString(make([]byte, 8))
	hash := (identity.Token{}).Hash()
	later := fmt.Sprintf(`{"uses":2,"used":0,"expires":%q,"hash":%q,"onlyFrom":["10.0.0.0/8"],"level":12345678901234567890}`,
		w.now.Add(time.Hour).Format(time.RFC3339), base64.StdEncoding.EncodeToString(hash[:]))
	w.put(kindToken, id, later)
	w.put("Quota", "all", "not even JSON")
	_, req := w.request(identity.Token{}, "fra1-a")
	_, c, refusal := w.roster().Admit(req, w.keys, w.now)
	if refusal != nil {
		t.Fatal(refusal)
	}
	w.do(c, nil)
	o, _ := w.state.Own.Get(kindToken, id)
	var got map[string]any
	if err := json.Unmarshal(o.Bytes, &got); err != nil {
		t.Fatal(err)
	}
	if got["used"] != 1.0 || !strings.Contains(string(o.Bytes), `"onlyFrom":["10.0.0.0/8"]`) || !strings.Contains(string(o.Bytes), `"level":12345678901234567890`) {
		t.Errorf("it became %s", o.Bytes)
	}
	if q, found := w.state.Own.Get("Quota", "all"); !found || string(q.Bytes) != "not even JSON" {
		t.Error("the kind that is not known is gone")
	}
}

func TestAFieldThatIsEmptyNowIsGone(t *testing.T) {
	got, err := written(Revocation{Epoch: 7}, []byte(`{"epoch":3,"author":"ci","Forgotten":true,"later":1}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"epoch":7,"later":1,"time":"0001-01-01T00:00:00Z"}`; string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestAnObjectThatCannotBeReadIsNamed(t *testing.T) {
	good := found(t)
	authority, _ := good.state.Own.Get(kindAuthority, good.roster().Authorities[0].Name)
	for name, o := range map[string]store.Object{
		"not JSON":          {Kind: kindNode, Name: "fra1-a", Bytes: []byte("{")},
		"another type":      {Kind: kindRevocation, Name: "fra1-a", Bytes: []byte(`{"epoch":"seven"}`)},
		"no hash":           {Kind: kindToken, Name: "fra1-a", Bytes: []byte(`{}`)},
		"half a hash":       {Kind: kindAccess, Name: "fra1-a", Bytes: []byte(`{"hash":"AAAA"}`)},
		"no certificate":    {Kind: kindAuthority, Name: "fra1-a", Bytes: []byte(`{}`)},
		"another's key":     {Kind: kindAuthority, Name: "fra1-a", Bytes: authority.Bytes},
		"a second cluster":  {Kind: kindCluster, Name: "fra1-a", Bytes: []byte(`{}`)},
		"a second key used": {Kind: kindGossipKey, Name: "fra1-a", Bytes: []byte(`{"stage":"used"}`)},
	} {
		t.Run(name, func(t *testing.T) {
			w := found(t)
			before := w.roster()
			next, _, err := w.state.With(store.Change{Space: store.Own, Put: []store.Object{o}})
			if err != nil {
				t.Fatal(err)
			}
			for _, before := range []*Roster{before, nil} {
				if _, err := Read(&next.Own, before); err == nil || name != "a second key used" && !strings.Contains(err.Error(), o.Kind+" ") {
					t.Errorf("got %v", err)
				}
			}
			if r, err := Read(&w.state.Own, before); err != nil || r != before {
				t.Error("the roster before is spoilt")
			}
		})
	}
}

func TestReadingAgainSharesWhatIsUnchanged(t *testing.T) {
	w := found(t)
	w.fill(kindNode, MaxNodes-1, func(int) any { return Node{Region: "eu-central-1", Roles: everyRole()} })
	before := w.roster()
	w.token(TokenSpec{})
	allocs := testing.AllocsPerRun(10, func() {
		if _, err := Read(&w.state.Own, before); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 100 {
		t.Errorf("%v allocations", allocs)
	}
	fresh, err := Read(&w.state.Own, nil)
	if err != nil {
		t.Fatal(err)
	}
	same(t, w.roster(), fresh)
}

// TestReadingOnIsReadingAnew: from whichever roster, the next is what it would be alone, and the one before stays as it was.
func TestReadingOnIsReadingAnew(t *testing.T) {
	hash := base64.StdEncoding.EncodeToString(make([]byte, 32))
	rapid.Check(t, func(t *rapid.T) {
		w := found(t)
		tables := []*store.Table{new(store.Table), &w.state.Own}
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			c := store.Change{Space: store.Own, Time: w.now.Add(time.Duration(rapid.IntRange(-60, 60).Draw(t, "minutes")) * time.Minute)}
			for range rapid.IntRange(1, 4).Draw(t, "objects") {
				kind := rapid.SampledFrom([]string{kindNode, kindRevocation, kindToken, kindAccess, kindDrain, kindBlock, kindPurge, kindOrder, "Quota"}).Draw(t, "kind")
				named := map[string][]string{kindDrain: {"pop/a", "node/b"}, kindBlock: {"192.0.2.0/24", "::/0"}}[kind]
				if named == nil {
					named = []string{"a", "b", "c"}
				}
				name := rapid.SampledFrom(named).Draw(t, "name")
				if rapid.Bool().Draw(t, "delete") {
					drop(&c, kind, name)
					continue
				}
				epoch := rapid.IntRange(0, 3).Draw(t, "number")
				c.Put = append(c.Put, store.Object{Kind: kind, Name: name, Bytes: fmt.Appendf(nil, `{"hash":%q,"epoch":%d,"uses":%d,"id":"%s%d"}`, hash, epoch, epoch, name, epoch)})
			}
			next, _, err := w.state.With(c)
			if err != nil {
				t.Fatal(err)
			}
			w.state = next
			if table := &next.Own; table.Revision > tables[len(tables)-1].Revision {
				tables = append(tables, table)
			}
		}
		var before *Roster
		for range 6 {
			i := rapid.IntRange(0, len(tables)-1).Draw(t, "table")
			fresh, err := Read(tables[i], nil)
			if err != nil {
				t.Fatal(err)
			}
			after, err := Read(tables[i], before)
			if err != nil {
				t.Fatal(err)
			}
			same(t, after, fresh)
			if before != nil {
				again, err := Read(before.table, nil)
				if err != nil {
					t.Fatal(err)
				}
				same(t, before, again)
			}
			before = after
		}
	})
}

// FuzzRead: whatever stands in an object, it is refused or read, and what was read can be asked and decided about.
func FuzzRead(f *testing.F) {
	w := found(f)
	w.join("fra1-a")
	access := identity.NewAccessToken([32]byte{})
	hash := access.Hash()
	b, err := written(Access{ID: hex.EncodeToString(access.ID[:]), Roles: allRoles(), Resources: []string{"*/*"}, Hash: hash[:]}, nil)
	if err != nil {
		f.Fatal(err)
	}
	w.put(kindAccess, "ci", string(b))
	w.do(w.roster().Revoke("fra1-a", "root@socket", w.now))
	w.order(purgeOf("p", "/a/*"))
	w.order(blockOf("b", "192.0.2.0/24"))
	w.order(lasting(drainOf("d", ScopePOP, "icn1"), time.Minute))
	for _, o := range w.state.Own.Objects {
		f.Add(o.Kind, o.Name, o.Bytes)
	}
	f.Add(kindGossipKey, "99999999999999999999", []byte(`{"stage":"introduced"}`))
	f.Add(kindToken, "0000000000000000", []byte(`{"uses":-1,"expires":"9999-12-31T23:59:59Z","hash":"Zmh6rfhivXdsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU=","more":{"a":[]}}`))
	f.Add(kindNode, "icn1-a", []byte(`{"ROLES":null,"roles":["voter"],"Addresses":["::1"]}`))
	f.Add(kindPurge, "q", []byte(`{"epoch":18446744073709551615,"time":"0001-01-01T00:00:00Z"}`))
	f.Add(kindOrder, "x", []byte(`{"epoch":18446744073709551615,"purgedBefore":18446744073709551615,"kind":"purge"}`))
	f.Add(kindDrain, "rack/7", []byte(`{"until":"0001-01-01T00:00:01Z"}`))
	f.Add(kindBlock, "::/0", []byte(`{}`))
	_, req := w.request(identity.Token{}, "nrt1-a")
	before := w.roster()
	f.Fuzz(func(t *testing.T, kind, name string, bytes []byte) {
		next, _, err := w.state.With(store.Change{Space: store.Own, Put: []store.Object{{Kind: kind, Name: name, Bytes: bytes}}})
		if err != nil {
			t.Fatal(err)
		}
		r, err := Read(&next.Own, before)
		fresh, freshErr := Read(&next.Own, nil)
		if (err == nil) != (freshErr == nil) {
			t.Fatalf("read on: %v; read anew: %v", err, freshErr)
		}
		if err != nil {
			return
		}
		same(t, r, fresh)
		live := map[string]Progress{"icn1-a": {Own: 1 << 62}, name: {Own: 1 << 62}}
		var changes []store.Change
		take := func(c store.Change, err error) {
			if err == nil {
				changes = append(changes, c)
			}
		}
		if c, _, due := r.Step(live, w.keys, w.now); due {
			changes = append(changes, c)
		}
		if c, due := r.Sweep(w.now); due {
			changes = append(changes, c)
		}
		take(r.Revoke(name, "root@socket", w.now))
		take(r.Forget(name, "root@socket", w.now))
		take(r.DeleteToken(name, "root@socket", w.now))
		take(r.DeleteAccess(name, "root@socket", w.now))
		take(r.Rotate(RotateGossip, w.keys, w.now))
		for _, o := range goodOrders() {
			take(r.Order(o, w.now))
		}
		r.Effects(goodOrders(), nil, w.now)
		r.PurgesAfter(r.Epoch)
		if _, c, refusal := r.Admit(req, w.keys, w.now); refusal == nil {
			changes = append(changes, c)
		}
		for _, c := range changes {
			after, _, err := next.With(c)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Read(&after.Own, r); err != nil {
				t.Fatalf("%s: %v", c.Note, err)
			}
		}
		if p, err := r.Authenticate(access.String(), w.now); err == nil {
			p.MayTouch("Distribution", name)
		}
		r.Gossip(w.keys.Cluster)
		r.Signing(*w.keys.Authority)
	})
}

// flat is everything that a roster says of itself.
func flat(r *Roster) string {
	all := fmt.Sprintf("%+v", *r)
	for _, n := range r.Nodes {
		all += fmt.Sprintf("%+v", *n)
	}
	return all
}

// inAnyForm says whether bytes stand in a text, as they are or printed in a usual way.
func inAnyForm(text string, b []byte) bool {
	for _, form := range []string{
		string(b), hex.EncodeToString(b), base64.StdEncoding.EncodeToString(b), base64.RawURLEncoding.EncodeToString(b),
		strings.Trim(fmt.Sprint(b), "[]"),
	} {
		if strings.Contains(text, form) {
			return true
		}
	}
	return false
}

// full is a cluster of as many nodes as there may be.
func full(b *testing.B) *world {
	w := found(b)
	w.fill(kindNode, MaxNodes-1, func(i int) any {
		return Node{Region: "eu-central-1", POP: "fra1", Roles: everyRole(), Epoch: uint64(i), Joined: w.now, Token: "0011223344556677", Request: make([]byte, 32)}
	})
	return w
}

func BenchmarkReadOneTokenOf10000Nodes(b *testing.B) {
	w := full(b)
	before := w.roster()
	w.token(TokenSpec{})
	for b.Loop() {
		if _, err := Read(&w.state.Own, before); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadOneNodeOf10000(b *testing.B) {
	w := full(b)
	before := w.roster()
	w.put(kindNode, "filled-77", `{"region":"eu-central-1"}`)
	for b.Loop() {
		if _, err := Read(&w.state.Own, before); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadAllOf10000Nodes(b *testing.B) {
	w := full(b)
	for b.Loop() {
		if _, err := Read(&w.state.Own, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAdmit(b *testing.B) {
	w := full(b)
	w.do(w.roster().Forget("filled-77", "cluster", w.now))
	_, req := w.request(w.token(TokenSpec{}), "fra1-a")
	r := w.roster()
	for b.Loop() {
		if _, _, refusal := r.Admit(req, w.keys, w.now); refusal != nil {
			b.Fatal(refusal)
		}
	}
}
