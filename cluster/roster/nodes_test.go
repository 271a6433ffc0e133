package roster

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/store"
)

func TestANewClusterHasItsFounderAndItsKeys(t *testing.T) {
	w := found(t)
	r := w.roster()
	if r.Revision != 1 || r.Cluster == "" || len(r.Nodes) != 1 || r.Nodes["icn1-a"].Epoch != 1 {
		t.Fatalf("got %+v", r)
	}
	a, err := r.Signing(*w.keys.Authority)
	if err != nil {
		t.Fatal(err)
	}
	hash, ok := r.SigningHash()
	if !ok || hash != a.Hash() || a.ClusterID() != r.Cluster {
		t.Error("the authority in use is another")
	}
	primary, others, err := r.Gossip(w.keys.Cluster)
	if err != nil || len(primary) != 32 || len(others) != 0 {
		t.Errorf("gossip keys: %d bytes, %d others, %v", len(primary), len(others), err)
	}
	if _, err := r.Signing(w.keys.Cluster); err == nil {
		t.Error("the authority opens by the key that all nodes have")
	}
}

func TestAnAdmittedMachineIsANode(t *testing.T) {
	w := found(t)
	n := w.join("fra1-a")
	r := w.roster()
	recorded := r.Nodes["fra1-a"]
	if recorded.Region != "eu-central-1" || recorded.POP != "fra1" || !slices.Equal(recorded.Roles, everyRole()) || !recorded.Joined.Equal(w.now) {
		t.Errorf("recorded as %+v", recorded)
	}
	if n.Epoch() != r.Revision || recorded.Epoch != r.Revision {
		t.Errorf("epochs %d and %d, want the revision %d", n.Epoch(), recorded.Epoch, r.Revision)
	}
	if keys := n.Keys(); keys.Cluster != w.keys.Cluster || keys.Authority == nil || *keys.Authority != *w.keys.Authority {
		t.Error("it has other keys")
	}
	last := w.state.Own.History[len(w.state.Own.History)-1]
	if !strings.HasPrefix(last.Author, "token:") || !strings.Contains(last.Note, "fra1-a") {
		t.Errorf("the history says %q by %q", last.Note, last.Author)
	}
}

func TestOnlyOneThatMayVoteIsGivenTheAuthorityKey(t *testing.T) {
	w := found(t)
	_, req := w.request(w.token(TokenSpec{}), "fra1-a")
	req.Claim.Roles = []string{"edge", "dns"}
	answer, c, refusal := w.roster().Admit(req, w.keys, w.now)
	if refusal != nil || answer.AuthorityKey != nil || len(answer.ClusterKey) != 32 {
		t.Fatalf("%v", refusal)
	}
	w.do(c, nil)
	req.Claim.Roles = []string{"edge", identity.Voter}
	if _, problem := w.roster().Renew("fra1-a", req.CSR, req.Claim, w.keys, w.now); problem == nil || problem.Code != "role" {
		t.Errorf("it took the role voter by itself: %v", problem)
	}
}

func TestWhoMayNotJoinIsToldWhy(t *testing.T) {
	for name, test := range map[string]struct {
		code string
		spec TokenSpec
		do   func(w *world, req *identity.JoinRequest, keys *identity.Keys)
	}{
		"wrong secret":   {"wrong_token", TokenSpec{}, func(_ *world, req *identity.JoinRequest, _ *identity.Keys) { req.Secret = make([]byte, 32) }},
		"no secret":      {"wrong_token", TokenSpec{}, func(_ *world, req *identity.JoinRequest, _ *identity.Keys) { req.Secret = nil }},
		"unknown token":  {"wrong_token", TokenSpec{}, func(_ *world, req *identity.JoinRequest, _ *identity.Keys) { req.TokenID = make([]byte, 8) }},
		"no token":       {"wrong_token", TokenSpec{}, func(_ *world, req *identity.JoinRequest, _ *identity.Keys) { req.TokenID = nil }},
		"expired":        {"expired", TokenSpec{}, func(w *world, _ *identity.JoinRequest, _ *identity.Keys) { w.now = w.now.Add(time.Hour) }},
		"another role":   {"role", TokenSpec{Roles: []string{"edge", "dns", "origin"}}, func(*world, *identity.JoinRequest, *identity.Keys) {}},
		"a name like /.": {"claim", TokenSpec{}, func(_ *world, req *identity.JoinRequest, _ *identity.Keys) { req.Claim.Name = "/." }},
		"a bad request":  {"claim", TokenSpec{}, func(_ *world, req *identity.JoinRequest, _ *identity.Keys) { req.CSR = []byte("x") }},
		"a taken name":   {"name_taken", TokenSpec{}, func(_ *world, req *identity.JoinRequest, _ *identity.Keys) { req.Claim.Name = "icn1-a" }},
		"not at a voter": {"unable", TokenSpec{}, func(_ *world, _ *identity.JoinRequest, keys *identity.Keys) { keys.Authority = nil }},
		"used up": {"used_up", TokenSpec{Uses: 2}, func(w *world, req *identity.JoinRequest, keys *identity.Keys) {
			for _, name := range []string{"nrt1-a", "nrt1-b"} {
				other := *req
				other.Claim.Name = name
				_, c, refusal := w.roster().Admit(other, *keys, w.now)
				if refusal != nil {
					w.t.Fatal(refusal)
				}
				w.do(c, nil)
			}
		}},
		"deleted": {"wrong_token", TokenSpec{}, func(w *world, _ *identity.JoinRequest, _ *identity.Keys) {
			for id := range w.roster().Tokens {
				w.do(w.roster().DeleteToken(id, "root@socket", w.now))
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := found(t)
			_, req := w.request(w.token(test.spec), "fra1-a")
			keys := w.keys
			test.do(w, &req, &keys)
			before := w.roster()
			answer, c, refusal := before.Admit(req, keys, w.now)
			if refusal == nil || refusal.Code != test.code || refusal.Reason == "" {
				t.Fatalf("got %+v, want %s", refusal, test.code)
			}
			if answer.Certificate != nil || answer.ClusterKey != nil || len(c.Put)+len(c.Delete) != 0 {
				t.Error("it was given something all the same")
			}
		})
	}
}

func TestAClockSetBackRevivesNoToken(t *testing.T) {
	w := found(t)
	_, req := w.request(w.token(TokenSpec{TTL: time.Minute}), "fra1-a")
	w.now = w.now.Add(time.Hour)
	w.token(TokenSpec{}) // any record that shows how late it is
	if _, _, refusal := w.roster().Admit(req, w.keys, w.now.Add(-time.Hour)); refusal == nil || refusal.Code != "expired" {
		t.Errorf("got %v", refusal)
	}
	w.now = w.now.Add(-24 * time.Hour)
	token := w.token(TokenSpec{TTL: time.Minute})
	_, req = w.request(token, "fra1-a")
	if _, _, refusal := w.roster().Admit(req, w.keys, w.now); refusal != nil {
		t.Errorf("a token of a clock that is behind is good for nothing: %v", refusal)
	}
}

func TestARequestThatIsSentAgainCostsNothing(t *testing.T) {
	w := found(t)
	request, req := w.request(w.token(TokenSpec{}), "fra1-a")
	for range 3 {
		answer, c, refusal := w.roster().Admit(req, w.keys, w.now)
		if refusal != nil {
			t.Fatal(refusal)
		}
		w.do(c, nil)
		if n, err := answer.Accept(request); err != nil || refusedBy(w.roster(), n) {
			t.Fatal(err)
		}
	}
	mustHave(t, "revision", w.roster().Revision, 3)
	_, other := w.request(identity.Token{}, "fra1-a")
	other.TokenID, other.Secret = req.TokenID, req.Secret
	if _, _, refusal := w.roster().Admit(other, w.keys, w.now); refusal == nil || refusal.Code != "name_taken" {
		t.Errorf("another machine took the name by the same token: %v", refusal)
	}
}

func TestARevokedNodeIsShutOutUntilItJoinsAnew(t *testing.T) {
	w := found(t)
	old := w.join("fra1-a")
	anewRequest, anewReq := w.request(w.token(TokenSpec{}), "fra1-a")
	stale := w.roster()
	w.do(stale.Revoke("fra1-a", "root@socket", w.now))
	r := w.roster()
	if !refusedBy(r, old) || !r.Barred("fra1-a") || len(r.Nodes) != 1 {
		t.Fatal("it is not shut out")
	}
	claim := old.Claim()
	claim.Roles = everyRole()
	request, _ := w.request(identity.Token{}, "fra1-a")
	if _, refusal := r.Renew("fra1-a", request.CSR(), claim, w.keys, w.now); refusal == nil || refusal.Code != "unknown_node" {
		t.Errorf("its certificate is renewed: %v", refusal)
	}
	behind, refusal := stale.Renew("fra1-a", request.CSR(), claim, w.keys, w.now)
	if refusal != nil {
		t.Fatal(refusal)
	}
	if n, err := behind.Accept(request); err != nil || !refusedBy(r, n) {
		t.Errorf("a voter that is behind made a certificate that passes: %v", err)
	}
	joined, c, refusal := r.Admit(anewReq, w.keys, w.now)
	if refusal != nil {
		t.Fatal(refusal)
	}
	w.do(c, nil)
	anew, err := joined.Accept(anewRequest)
	if err != nil {
		t.Fatal(err)
	}
	r = w.roster()
	if refusedBy(r, anew) || !refusedBy(r, old) || r.Barred("fra1-a") {
		t.Error("the new machine of that name is not told from the old")
	}
	renewed, refusal := r.Renew("fra1-a", request.CSR(), claim, w.keys, w.now)
	if refusal != nil {
		t.Fatal(refusal)
	}
	if n, err := renewed.Accept(request); err != nil || refusedBy(r, n) {
		t.Errorf("the renewed certificate is refused: %v", err)
	}
	w.do(r.Revoke("fra1-a", "root@socket", w.now))
	if !refusedBy(w.roster(), anew) {
		t.Error("it cannot be revoked again")
	}
}

func TestARevocationHasTheGossipKeyReplaced(t *testing.T) {
	w := found(t)
	w.join("fra1-a")
	w.join("nrt1-a")
	w.do(w.roster().Forget("nrt1-a", "cluster", w.now))
	live := func() map[string]Progress { return map[string]Progress{"icn1-a": {Own: w.roster().Revision}} }
	if _, what, due := w.roster().Step(live(), w.keys, w.now); due || what != "" {
		t.Fatalf("a node that is forgotten calls for %q", what)
	}
	before := names(w.roster().GossipKeys)
	w.do(w.roster().Revoke("fra1-a", "root@socket", w.now))
	for range 3 {
		c, what, due := w.roster().Step(live(), w.keys, w.now)
		if !due {
			t.Fatalf("stopped at %s: %s", stages(w.roster().GossipKeys), what)
		}
		w.do(c, nil)
	}
	if _, what, due := w.roster().Step(live(), w.keys, w.now); due || what != "" {
		t.Errorf("then it goes on with %q", what)
	}
	if now := names(w.roster().GossipKeys); len(now) != 1 || slices.Equal(now, before) {
		t.Errorf("the keys went from %v to %v", before, now)
	}
	w.do(w.roster().Revoke("nrt1-a", "root@socket", w.now))
	if _, _, due := w.roster().Step(live(), w.keys, w.now); !due {
		t.Error("a forgotten node that is revoked calls for nothing")
	}
}

func TestTheLastThatMayVoteStays(t *testing.T) {
	w := found(t)
	for what, do := range map[string]func(string, string, time.Time) (store.Change, error){"revoke": w.roster().Revoke, "forget": w.roster().Forget} {
		if _, err := do("icn1-a", "root@socket", w.now); err == nil {
			t.Errorf("%s: it went", what)
		}
		if _, err := do("nobody", "root@socket", w.now); err == nil {
			t.Errorf("%s: nobody went", what)
		}
	}
	w.join("fra1-a")
	w.do(w.roster().Revoke("icn1-a", "root@socket", w.now))
	if _, err := w.roster().Revoke("icn1-a", "root@socket", w.now); err == nil {
		t.Error("it was revoked twice")
	}
}

func TestForgettingFreesTheNameAndBarsTheOldMachine(t *testing.T) {
	w := found(t)
	old := w.join("fra1-a")
	w.do(w.roster().Forget("fra1-a", "root@socket", w.now))
	if !refusedBy(w.roster(), old) {
		t.Error("two machines may have the name at once")
	}
	if anew := w.join("fra1-a"); refusedBy(w.roster(), anew) {
		t.Error("the name is not free")
	}
}

func TestWhoIsNotRecordedIsNotRenewed(t *testing.T) {
	w := found(t)
	request, req := w.request(identity.Token{}, "fra1-a")
	for name, test := range map[string]struct {
		name string
		keys identity.Keys
		code string
	}{
		"unknown":        {"fra1-a", w.keys, "unknown_node"},
		"another's name": {"icn1-a", w.keys, "claim"},
		"not at a voter": {"icn1-b", identity.Keys{Cluster: w.keys.Cluster}, "unable"},
	} {
		if test.code == "unable" {
			w.join("icn1-b")
			req.Claim.Name = "icn1-b"
		}
		if name == "another's name" {
			req.Claim.Name = "fra1-a"
		}
		if _, refusal := w.roster().Renew(test.name, request.CSR(), req.Claim, test.keys, w.now); refusal == nil || refusal.Code != test.code {
			t.Errorf("%s: got %v, want %s", name, refusal, test.code)
		}
	}
}

func TestAFullClusterTakesNoMore(t *testing.T) {
	w := found(t)
	w.fill(kindNode, MaxNodes-1, func(i int) any { return Node{Region: "eu-central-1", Roles: []string{"edge"}} })
	_, req := w.request(w.token(TokenSpec{}), "fra1-a")
	if _, _, refusal := w.roster().Admit(req, w.keys, w.now); refusal == nil || refusal.Code != "full" {
		t.Errorf("got %v", refusal)
	}
}

func TestRevocationsMakeRoomWhenTheirCertificatesHaveEnded(t *testing.T) {
	w := found(t)
	w.join("fra1-a")
	w.fill(kindRevocation, MaxRevocations, func(i int) any { return Revocation{Epoch: 1, Time: w.now.Add(time.Duration(i) * time.Second)} })
	if _, err := w.roster().Revoke("fra1-a", "root@socket", w.now); err == nil {
		t.Fatal("there is no bound")
	}
	w.now = w.now.Add(revocationLife + 150*time.Second + 1)
	w.do(w.roster().Revoke("fra1-a", "root@socket", w.now))
	r := w.roster()
	mustHave(t, "revocations", len(r.Revocations), MaxRevocations-maxDropped+1)
	if _, oldest := r.Revoked["filled-0"]; oldest || !r.Barred("filled-100") {
		t.Error("not the oldest went")
	}
	c, due := r.Sweep(w.now)
	if !due {
		t.Fatal("nothing is swept")
	}
	w.do(c, nil)
	mustHave(t, "revocations swept", len(w.roster().Revocations), MaxRevocations-150)
}

// fill has n objects of a kind agreed.
func (w *world) fill(kind string, n int, object func(i int) any) {
	w.t.Helper()
	c := store.Change{Space: store.Own, Expect: &w.state.Own.Revision, Time: w.now, Note: "test"}
	for i := range n {
		b, err := written(object(i), nil)
		if err != nil {
			w.t.Fatal(err)
		}
		c.Put = append(c.Put, store.Object{Kind: kind, Name: fmt.Sprintf("filled-%d", i), Bytes: b})
	}
	w.do(c, nil)
}

// TestATokenIsNeverUsedMoreThanItMay: whatever leaders judge at once, over however old rosters, and in whatever order it
// comes into the log.
func TestATokenIsNeverUsedMoreThanItMay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := found(t)
		token := w.token(TokenSpec{Uses: rapid.IntRange(1, 4).Draw(t, "uses")})
		uses := w.roster().Tokens[fmt.Sprintf("%x", token.ID[:])].Uses
		var requests []identity.JoinRequest
		for i := range 6 {
			_, req := w.request(token, fmt.Sprintf("fra1-%d", i/2)) // two machines want each name
			requests = append(requests, req)
		}
		var judged []store.Change
		admitted := map[string][]byte{} // by name: what was recorded
		t.Repeat(map[string]func(*rapid.T){
			"judge": func(t *rapid.T) {
				req := rapid.SampledFrom(requests).Draw(t, "request")
				r := w.past[rapid.IntRange(max(0, len(w.past)-3), len(w.past)-1).Draw(t, "roster")]
				if _, c, refusal := r.Admit(req, w.keys, w.now); refusal == nil {
					judged = append(judged, c)
				}
			},
			"commit": func(t *rapid.T) {
				if len(judged) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(judged)-1).Draw(t, "change")
				w.apply(judged[i])
				judged = slices.Delete(judged, i, i+1)
			},
			"": func(t *rapid.T) {
				r := w.roster()
				used := 0
				for name, n := range r.Nodes {
					if n.Token == "" {
						continue
					}
					used++
					o, _ := w.state.Own.Get(kindNode, name)
					if was, known := admitted[name]; known && !bytes.Equal(was, o.Bytes) {
						t.Fatalf("the name %s went from one machine to another", name)
					}
					admitted[name] = o.Bytes
				}
				if has := r.Tokens[fmt.Sprintf("%x", token.ID[:])]; used > uses || has.Used != used {
					t.Fatalf("%d nodes came by a token of %d uses that counts %d", used, uses, has.Used)
				}
			},
		})
	})
}
