package roster

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/identity"
)

func TestAnAuthorityIsReplacedInThreeSteps(t *testing.T) {
	w := found(t)
	w.join("fra1-a")
	old, _ := w.roster().SigningHash()
	taken := w.roster().Revision
	w.do(w.roster().Rotate(RotateAuthority, w.keys, w.now))
	if _, err := w.roster().Rotate(RotateAuthority, w.keys, w.now); err == nil {
		t.Error("a second rotation began beside the first")
	}
	step := func(own uint64, issuer [32]byte, want string) {
		t.Helper()
		live := map[string]Progress{"icn1-a": {w.roster().Revision, issuer}, "fra1-a": {own, issuer}, "a stranger": {}}
		c, what, due := w.roster().Step(live, w.keys, w.now)
		if due {
			w.do(c, nil)
		}
		if got := stages(w.roster().Authorities); got != want {
			t.Fatalf("%s: got %s, want %s", what, got, want)
		}
		if !due && !strings.Contains(what, "fra1-a") {
			t.Errorf("%q does not say whom it waits for", what)
		}
	}
	step(taken, old, "[used introduced]")
	step(w.roster().Revision, old, "[used retiring]")
	fresh, _ := w.roster().SigningHash()
	if fresh == old {
		t.Fatal("the old authority is still in use")
	}
	if a, err := w.roster().Signing(*w.keys.Authority); err != nil || a.Hash() != fresh {
		t.Fatalf("the new authority does not sign: %v", err)
	}
	step(w.roster().Revision, old, "[used retiring]")
	step(taken, fresh, "[used retiring]")
	step(w.roster().Revision, fresh, "[used]")
	if ends, err := w.roster().Authorities[0].Expires(); err != nil || ends.Before(w.now.AddDate(1, 0, 0)) {
		t.Errorf("it ends on %v, %v", ends, err)
	}
	if who := w.roster().Waiting(nil); len(who) > 0 {
		t.Errorf("it waits for %v", who)
	}
	mustHave(t, "trusted authorities", len(w.roster().Trust().Authorities), 1)
	if _, what, due := w.roster().Step(map[string]Progress{"icn1-a": {}}, w.keys, w.now); due || what != "" {
		t.Errorf("it goes on with %q", what)
	}
}

func TestTheAuthorityWaitsForThoseAway(t *testing.T) {
	w := found(t)
	w.join("fra1-a")
	w.do(w.roster().Rotate(RotateAuthority, w.keys, w.now))
	live := map[string]Progress{"icn1-a": {Own: 100}}
	for _, after := range []time.Duration{0, AbsentGrace - 1} {
		if _, what, due := w.roster().Step(live, w.keys, w.now.Add(after)); due || !strings.Contains(what, "fra1-a (away)") {
			t.Errorf("after %v: %q", after, what)
		}
	}
	if who := w.roster().Waiting(live); !slices.Equal(who, []string{"fra1-a (away)"}) {
		t.Errorf("it waits for %v", who)
	}
	if _, _, due := w.roster().Step(live, w.keys, w.now.Add(AbsentGrace)); !due {
		t.Error("it waits for ever")
	}
	w.do(w.roster().Forget("fra1-a", "root@socket", w.now))
	if _, _, due := w.roster().Step(live, w.keys, w.now); !due {
		t.Error("it waits for one that is forgotten")
	}
}

func TestNothingIsRotatedBlindly(t *testing.T) {
	w := found(t)
	if _, err := w.roster().Rotate("everything", w.keys, w.now); err == nil {
		t.Error("rotated what is not there")
	}
	if _, err := w.roster().Rotate(RotateAuthority, identity.Keys{Cluster: w.keys.Cluster}, w.now); err == nil {
		t.Error("an authority was made without the key to seal it")
	}
	empty, err := Read(&w.state.Table, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{RotateAuthority, RotateGossip} {
		if _, err := empty.Rotate(what, w.keys, w.now); err == nil {
			t.Errorf("%s was rotated where there is none", what)
		}
	}
	w.do(w.roster().Rotate(RotateGossip, w.keys, w.now))
	for _, live := range []map[string]Progress{nil, {}, {"a stranger": {Own: 100}}} {
		if _, what, due := w.roster().Step(live, w.keys, w.now); due {
			t.Errorf("without a live node: %s", what)
		}
	}
	if _, _, due := empty.Step(map[string]Progress{"icn1-a": {}}, w.keys, w.now); due {
		t.Error("a step over nothing")
	}
}

// machine is a node as it runs: what it has taken of what is agreed.
type machine struct {
	own    *Roster
	issuer [32]byte // of its certificate
	live   bool
	lost   bool // a step of the authority's rotation was made without it: it must join anew
}

// TestARotationNeverPartsLiveNodes: whatever the order in which nodes take what is agreed, die, come back, join and renew
// at voters that are behind, those live trust each other's certificates and read each other's gossip at any moment.
func TestARotationNeverPartsLiveNodes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := found(t)
		hash, _ := w.roster().SigningHash()
		all := map[string]*machine{"icn1-a": {own: w.roster(), issuer: hash, live: true}}
		joined := 0
		pick := func(t *rapid.T, of func(*machine) bool) (string, *machine) {
			var names []string
			for _, name := range slices.Sorted(maps.Keys(all)) {
				if of(all[name]) {
					names = append(names, name)
				}
			}
			if len(names) == 0 {
				t.Skip()
			}
			name := rapid.SampledFrom(names).Draw(t, "node")
			return name, all[name]
		}
		live := func(m *machine) bool { return m.live }
		others := func() (n int) {
			for _, m := range all {
				if m.live {
					n++
				}
			}
			return n - 1
		}
		join := func(t *rapid.T) {
			if joined == 6 {
				t.Skip()
			}
			joined++
			name := "fra1-" + string(rune('a'+joined))
			c := w.roster().change("test", w.now, "joins")
			if err := w.roster().put(&c, kindNode, name, Node{Roles: everyRole(), Joined: w.now, Epoch: w.roster().Revision + 1}); err != nil {
				t.Fatal(err)
			}
			issuer, _ := w.roster().SigningHash()
			own := w.roster() // what Admit's answer is made of
			w.do(c, nil)
			all[name] = &machine{own: own, issuer: issuer}
		}
		back := func(name string, m *machine) {
			for other, o := range all {
				if o.live && (!trusts(o, m) || !trusts(m, o)) {
					t.Fatalf("%s comes back, and it and %s are strangers", name, other)
				}
			}
			m.live, m.own = true, w.roster() // it meets the others by their certificates, and gossips by what they tell
		}
		allBack := func() {
			for _, name := range slices.Sorted(maps.Keys(all)) {
				if m := all[name]; !m.live && !m.lost {
					back(name, m)
				}
			}
		}
		step := func(t *rapid.T) {
			said := map[string]Progress{}
			for name, m := range all {
				if m.live {
					said[name] = Progress{m.own.Revision, m.issuer}
				}
			}
			before := w.roster()
			c, _, due := before.Step(said, w.keys, w.now)
			if !due {
				t.Skip()
			}
			w.do(c, nil)
			if after := w.roster(); stages(before.Authorities) != stages(after.Authorities) {
				since := before.Authorities[0].Since
				if before.Authorities[1].Since.After(since) {
					since = before.Authorities[1].Since
				}
				for name, m := range all {
					if m.lost = m.lost || !m.live; !m.live && (w.now.Sub(since) < AbsentGrace || w.now.Sub(before.Nodes[name].Joined) < AbsentGrace) {
						t.Fatalf("a step was made without %s", name)
					}
				}
			}
		}
		join(t)
		join(t)
		allBack()
		w.now = w.now.Add(AbsentGrace)
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				_, m := pick(t, live)
				m.own = w.past[rapid.IntRange(int(m.own.Revision), len(w.past)).Draw(t, "revision")-1]
			},
			"take all": func(t *rapid.T) {
				for _, m := range all {
					if m.live {
						m.own = w.roster()
					}
				}
			},
			"renew": func(t *rapid.T) {
				name, m := pick(t, live)
				_, voter := pick(t, live)
				if _, recorded := voter.own.Nodes[name]; !recorded {
					t.Skip()
				}
				m.issuer, _ = voter.own.SigningHash()
			},
			"renew all": func(t *rapid.T) {
				for _, m := range all {
					if m.live {
						m.issuer, _ = m.own.SigningHash()
					}
				}
			},
			"rotate": func(t *rapid.T) {
				what := rapid.SampledFrom([]string{RotateAuthority, RotateGossip}).Draw(t, "what")
				c, err := w.roster().Rotate(what, w.keys, w.now)
				if err != nil {
					t.Skip()
				}
				w.do(c, nil)
			},
			"step": step,
			"settle and step": func(t *rapid.T) {
				allBack()
				for _, m := range all {
					if m.live {
						m.own = w.roster()
					}
				}
				step(t)
			},
			"die": func(t *rapid.T) {
				if others() == 0 {
					t.Skip()
				}
				_, m := pick(t, live)
				m.live = false
			},
			"come back": func(t *rapid.T) {
				name, m := pick(t, func(m *machine) bool { return !m.live && !m.lost })
				back(name, m)
			},
			"join": join,
			"revoke": func(t *rapid.T) {
				if others() == 0 {
					t.Skip()
				}
				name, _ := pick(t, func(*machine) bool { return true })
				if others() == 0 && all[name].live {
					t.Skip()
				}
				w.do(w.roster().Revoke(name, "root@socket", w.now))
				delete(all, name)
			},
			"wait": func(t *rapid.T) { w.now = w.now.Add(time.Duration(rapid.IntRange(1, 80).Draw(t, "hours")) * time.Hour) },
			"": func(t *rapid.T) {
				for a, m := range all {
					for b, o := range all {
						if m.live && o.live && !trusts(m, o) {
							t.Fatalf("%s at %d does not trust %s at %d", a, m.own.Revision, b, o.own.Revision)
						}
						if m.live && o.live && !slices.Contains(names(o.own.GossipKeys), m.own.GossipKeys[0].Name) {
							t.Fatalf("%s at %d cannot be heard by %s at %d", a, m.own.Revision, b, o.own.Revision)
						}
					}
				}
			},
		})
	})
}

func trusts(m, other *machine) bool {
	return slices.ContainsFunc(m.own.Authorities, func(a Authority) bool { return a.hash == other.issuer })
}
