package roster

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
)

// access makes an access token.
func (w *world) access(spec AccessSpec) identity.AccessToken {
	w.t.Helper()
	token, c, err := w.roster().CreateAccess(spec, "root@socket", w.now)
	w.do(c, err)
	return token
}

func TestTokensThatMakeNoSenseAreNotMade(t *testing.T) {
	w := found(t)
	for name, spec := range map[string]TokenSpec{
		"too short": {TTL: time.Second}, "too long": {TTL: 721 * time.Hour}, "negative life": {TTL: -time.Hour},
		"too many uses": {Uses: 1001}, "negative uses": {Uses: -1}, "bad role": {Roles: []string{"Edge "}},
		"many roles": {Roles: strings.Split("a b c d e f g h i", " ")},
	} {
		if _, _, err := w.roster().CreateToken(spec, "root@socket", w.now); err == nil {
			t.Errorf("join token: %s: made", name)
		}
	}
	reads := []Role{RoleRead}
	for name, spec := range map[string]AccessSpec{
		"no name": {Roles: reads}, "a name like another's": {Name: "root@socket", Roles: reads}, "no role": {Name: "ci"},
		"bad role": {Name: "ci", Roles: []Role{"root"}}, "too short": {Name: "ci", Roles: reads, TTL: time.Second},
		"too long": {Name: "ci", Roles: reads, TTL: 8761 * time.Hour}, "limited admin": {Name: "ci", Roles: []Role{RoleAdmin}, Resources: []string{"*/web"}},
		"no kind": {Name: "ci", Roles: reads, Resources: []string{"web"}}, "no resource": {Name: "ci", Roles: reads, Resources: []string{"Distribution/"}},
		"brackets": {Name: "ci", Roles: reads, Resources: []string{"Distribution/[a-z]"}}, "long glob": {Name: "ci", Roles: reads, Resources: []string{"Distribution/" + strings.Repeat("x", 600)}},
		"many resources": {Name: "ci", Roles: reads, Resources: make([]string, 101)},
	} {
		if _, _, err := w.roster().CreateAccess(spec, "root@socket", w.now); err == nil {
			t.Errorf("access token: %s: made", name)
		}
	}
	if _, err := w.roster().DeleteToken("00", "root@socket", w.now); err == nil {
		t.Error("a join token that is not there was deleted")
	}
	if _, err := w.roster().DeleteAccess("ci", "root@socket", w.now); err == nil {
		t.Error("an access token that is not there was deleted")
	}
}

func TestAnAccessTokenSaysWhoAsks(t *testing.T) {
	w := found(t)
	token := w.access(AccessSpec{Name: "ci", Roles: []Role{RoleOperate}, Resources: []string{"Distribution/web-*"}, TTL: time.Hour})
	p, err := w.roster().Authenticate(token.String(), w.now)
	if err != nil || p.Name != "ci@access" || !p.May(RoleOperate) || p.May(RoleAdmin) || !p.MayTouch("Distribution", "web-1") {
		t.Fatalf("got %+v, %v", p, err)
	}
	if _, _, err := w.roster().CreateAccess(AccessSpec{Name: "ci", Roles: []Role{RoleRead}}, "root@socket", w.now); err == nil {
		t.Error("the name was given twice")
	}

	forged, unknown := token, token
	forged.Secret[0]++
	unknown.ID[0]++
	join := w.token(TokenSpec{})
	for name, bearer := range map[string]string{"nothing": "", "a join token": join.String(), "forged": forged.String(), "unknown": unknown.String(), "garbage": "pga1.x"} {
		if p, err := w.roster().Authenticate(bearer, w.now); err == nil || p.Name != "" || p.May(RoleRead) {
			t.Errorf("%s: %+v", name, p)
		}
	}

	w.now = w.now.Add(time.Hour)
	if _, err := w.roster().Authenticate(token.String(), w.now); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("it expired: %v", err)
	}
	w.token(TokenSpec{})
	if _, err := w.roster().Authenticate(token.String(), w.now.Add(-time.Hour)); err == nil {
		t.Error("a clock set back revives it")
	}
	again := w.access(AccessSpec{Name: "ci", Roles: []Role{RoleRead}}) // the name of one that has ended is free
	if _, err := w.roster().Authenticate(token.String(), w.now); err == nil {
		t.Error("the old token of that name is good again")
	}
	if _, err := w.roster().Authenticate(again.String(), w.now.Add(100*365*24*time.Hour)); err != nil {
		t.Errorf("one without end has ended: %v", err)
	}
	w.do(w.roster().DeleteAccess("ci", "root@socket", w.now))
	if _, err := w.roster().Authenticate(again.String(), w.now); err == nil {
		t.Error("a deleted token is good")
	}
}

func TestRolesIncludeWhatTheyShould(t *testing.T) {
	for has, may := range map[Role]string{
		RoleRead: "read", RoleOperate: "read operate", RolePurge: "read purge", RoleAdmin: "read operate purge admin more", "more": "more", "": "",
	} {
		for _, role := range append(allRoles(), "more") {
			p := Principal{Roles: []Role{has}}
			if got, want := p.May(role), strings.Contains(" "+may+" ", " "+string(role)+" "); got != want {
				t.Errorf("%q may %q: %v, want %v", has, role, got, want)
			}
		}
	}
}

func TestResourcesAreLimitedByGlobs(t *testing.T) {
	for _, test := range []struct {
		globs, kind, name string
		may               bool
	}{
		{"", "Distribution", "web", true},
		{"Distribution/web", "Distribution", "web", true},
		{"Distribution/web", "Distribution", "web2", false},
		{"Distribution/web", "LoadBalancer", "web", false},
		{"Distribution/*", "Distribution", "web", true},
		{"Distribution/*", "Distribution", "a/b", true},
		{"*/web", "LoadBalancer", "web", true},
		{"*/web", "LoadBalancer", "a/web", false},
		{"*/*.example.com", "HostedZone", "a.b.example.com", true},
		{"HealthCheck/? LoadBalancer/web-*", "LoadBalancer", "web-1", true},
		{"HealthCheck/? LoadBalancer/web-*", "HealthCheck", "ab", false},
		{"distribution/web", "Distribution", "web", false},
		{"Distribution/[", "Distribution", "[", false},
		{"Distribution", "Distribution", "web", false},
	} {
		p := Principal{Resources: strings.Fields(test.globs)}
		if got := p.MayTouch(test.kind, test.name); got != test.may {
			t.Errorf("%q: %s/%s: %v", test.globs, test.kind, test.name, got)
		}
	}
}

func TestNoSecretStandsInTheTable(t *testing.T) {
	w := found(t)
	token, access := w.token(TokenSpec{}), w.access(AccessSpec{Name: "ci", Roles: allRoles()})
	w.join("fra1-a")
	w.do(w.roster().Rotate(RotateAuthority, w.keys, w.now))
	w.do(w.roster().Rotate(RotateGossip, w.keys, w.now))
	primary, others, err := w.roster().Gossip(w.keys.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	a, err := w.roster().Signing(*w.keys.Authority)
	if err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	for _, o := range w.state.Own.Objects {
		all.Write(o.Bytes)
	}
	for _, r := range w.state.Own.History {
		all.WriteString(r.Author + r.Note)
	}
	said := all.String() + flat(w.roster())
	for name, secret := range map[string][]byte{
		"join secret": token.Secret[:], "access secret": access.Secret[:], "cluster key": w.keys.Cluster[:], "authority key": w.keys.Authority[:],
		"gossip key": primary, "next gossip key": others[0], "authority's private key": a.PrivateKey(),
	} {
		if inAnyForm(said, secret) {
			t.Errorf("the %s stands in it", name)
		}
	}
	if !inAnyForm(said, a.Certificate()) {
		t.Error("this test would find nothing")
	}
}

func TestTokensAreSweptADayAfterTheirEnd(t *testing.T) {
	w := found(t)
	short, long := w.token(TokenSpec{TTL: time.Hour}), w.token(TokenSpec{TTL: 720 * time.Hour})
	w.access(AccessSpec{Name: "short", Roles: allRoles(), TTL: time.Hour})
	w.access(AccessSpec{Name: "long", Roles: allRoles()})
	w.now = w.now.Add(25*time.Hour - 1)
	if _, due := w.roster().Sweep(w.now); due {
		t.Error("too early")
	}
	w.now = w.now.Add(1)
	c, due := w.roster().Sweep(w.now)
	if !due {
		t.Fatal("nothing is swept")
	}
	w.do(c, nil)
	r := w.roster()
	if _, kept := r.Tokens[hex.EncodeToString(long.ID[:])]; !kept || len(r.Tokens) != 1 {
		t.Errorf("of %x and %x there are %v", short.ID, long.ID, r.Tokens)
	}
	if _, kept := r.Access["long"]; !kept || len(r.Access) != 1 {
		t.Errorf("there are %v", r.Access)
	}
	if _, due := r.Sweep(w.now); due {
		t.Error("it is never done")
	}
}

func TestTokensAreBoundedAndMakeRoomWhenExpired(t *testing.T) {
	w := found(t)
	hash := make([]byte, 32)
	soon := w.now.Add(time.Hour)
	w.fill(kindToken, MaxTokens, func(int) any { return Token{Uses: 1, Expires: soon, Hash: hash} })
	w.fill(kindAccess, MaxAccess, func(int) any { return Access{Roles: allRoles(), Expires: soon, Hash: hash} })
	if _, _, err := w.roster().CreateToken(TokenSpec{}, "root@socket", w.now); err == nil {
		t.Error("join tokens have no bound")
	}
	if _, _, err := w.roster().CreateAccess(AccessSpec{Name: "ci", Roles: allRoles()}, "root@socket", w.now); err == nil {
		t.Error("access tokens have no bound")
	}
	w.now = soon
	w.token(TokenSpec{})
	w.access(AccessSpec{Name: "ci", Roles: allRoles()})
	if r := w.roster(); len(r.Tokens) > MaxTokens || len(r.Access) > MaxAccess {
		t.Errorf("%d and %d", len(r.Tokens), len(r.Access))
	}
}
