package testbed

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/control"
	"github.com/perigee-net/perigee/cluster/identity"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/node/api"
)

// apply makes one change at a node.
func (f *Fleet) apply(ctx context.Context, node, yaml string) (api.ApplyResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return f.API(node).Apply(ctx, api.ApplyRequest{ID: rand.Text(), Files: []api.File{{Name: "test.yaml", Data: yaml}}})
}

// mustApply applies at a node, at the latest when a leader has been found.
func (f *Fleet) mustApply(t *testing.T, node, yaml string) uint64 {
	t.Helper()
	res, err := f.apply(t.Context(), node, yaml)
	for deadline := time.Now().Add(settled); err != nil && time.Now().Before(deadline); res, err = f.apply(t.Context(), node, yaml) {
		time.Sleep(again)
	}
	if err != nil {
		t.Fatal(err)
	}
	return res.Revision
}

// voters are who votes, as a node sees it, and in how many regions.
func (f *Fleet) voters(t *testing.T, node string) (names []string, regions int) {
	t.Helper()
	st, err := f.API(node).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	in := map[string]bool{}
	for _, m := range st.Members {
		if m.Vote {
			names = append(names, m.Name)
			in[m.Region] = true
		}
	}
	return append(names, st.Missing...), len(in)
}

// until waits for something to come true, and says how long that took.
func until(t *testing.T, within time.Duration, what string, true func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for step := within / 1000; !true(); step = min(2*step, within/100) { // a look costs a handshake
		if time.Since(began) > within {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(step)
	}
	return time.Since(began)
}

// total adds up a counter over the live nodes.
func (f *Fleet) total(t *testing.T, counter string) (sum uint64) {
	t.Helper()
	for _, name := range f.Live() {
		sum += f.counter(t, name, counter)
	}
	return sum
}

func (f *Fleet) counter(t *testing.T, name, counter string) (n uint64) {
	t.Helper()
	text, err := f.Inside(name).Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "perigee_"+counter+" "); ok {
			fmt.Sscan(value, &n)
			return n
		}
	}
	t.Fatalf("%s has no counter %s", name, counter)
	return 0
}

func TestVotersAreSpreadOverTheRegionsAndALostOneIsReplaced(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 7, Regions: 3}, func(t *testing.T, f *Fleet) {
		until(t, settled, "five voters in three regions", func() bool {
			all, regions := f.voters(t, "icn1")
			return len(all) == 5 && regions == 3
		})
		f.mustApply(t, "icn1", "kind: Cluster\nname: default\nvoters: 3\n")
		until(t, settled, "three voters in three regions", func() bool {
			all, regions := f.voters(t, "icn1")
			return len(all) == 3 && regions == 3
		})
		for _, lost := range []string{"follower", "leader"} {
			voters, _ := f.voters(t, f.Live()[0])
			leader := f.Leader(t.Context())
			at := slices.IndexFunc(voters, func(name string) bool { return (name == leader) == (lost == "leader") })
			dead := voters[at]
			f.Kill(dead)
			ask := slices.DeleteFunc(f.Live(), func(name string) bool { return name == dead })[0]
			took := until(t, 2*time.Minute, "the "+lost+" is replaced", func() bool {
				now, regions := f.voters(t, ask)
				return len(now) == 3 && !slices.Contains(now, dead) && regions == 3
			})
			if took < 30*time.Second {
				t.Errorf("the %s was replaced after %v, before its time", lost, took)
			}
			t.Logf("the %s %s, dead, was replaced after %v", lost, dead, took)
			if err := f.Start(t.Context(), dead); err != nil {
				t.Fatal(err)
			}
			if err := f.Agree(t.Context(), settled); err != nil {
				t.Error(err)
			}
		}
	})
}

// Of three nodes, since it lives through ten minutes: no shorter removeNodeAfter is taken.
func TestADeadNodeIsForgottenAndItsNameIsFree(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 3, Regions: 3, Voters: 1}, func(t *testing.T, f *Fleet) {
		f.mustApply(t, "icn1", "kind: Cluster\nname: default\nremoveNodeAfter: 10m\n")
		known := func() bool {
			list, err := f.API("icn1").Nodes(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(list.Nodes, func(n api.NodeRecord) bool { return n.Name == "iad1" })
		}
		f.Kill("iad1")
		took := until(t, 11*time.Minute, "iad1 is forgotten", func() bool { return !known() })
		if took < 10*time.Minute {
			t.Errorf("forgotten after %v", took)
		}
		if err := f.Start(t.Context(), "iad1"); err == nil {
			time.Sleep(10 * time.Second)
			if st, _ := f.API("icn1").Status(t.Context()); len(st.Members) != 2 {
				t.Errorf("it came back without a token: %d members", len(st.Members))
			}
			f.Kill("iad1")
		} else {
			t.Logf("as it was it does not start: %v", err)
		}
		if err := f.Wipe("iad1", f.token); err != nil {
			t.Fatal(err)
		}
		if err := f.Start(t.Context(), "iad1"); err != nil {
			t.Fatal(err)
		}
		if err := f.Agree(t.Context(), settled); err != nil {
			t.Error(err)
		}
	})
}

func TestAMinorityServesAndRefusesChangesAndSaysWhoLedLast(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 7, Regions: 3, Voters: 5}, func(t *testing.T, f *Fleet) {
		revision := f.mustApply(t, "fra1", registerYAML(0, 1))
		if err := f.Agree(t.Context(), settled); err != nil {
			t.Fatal(err)
		}
		leader := f.Leader(t.Context())
		var away []string // the leader with its region's others: two voters of five, and a follower
		for _, name := range f.Names {
			if f.nodes[name].cfg.Region == f.nodes[leader].cfg.Region {
				away = append(away, name)
			}
		}
		f.Split(away...)
		time.Sleep(15 * time.Second)
		for _, name := range away {
			_, err := f.apply(t.Context(), name, registerYAML(0, 2))
			var e *api.Error
			if !errors.As(err, &e) || e.Status != http.StatusServiceUnavailable || !strings.Contains(e.Message, f.nodes[leader].cfg.Control) {
				t.Errorf("%s, cut off: %v", name, err)
			}
			list, err := f.API(name).Resources(t.Context(), api.ResourcesQuery{Kind: "HostedZone"})
			if err != nil || list.Revision != revision {
				t.Errorf("%s, cut off, serves %d: %v", name, list.Revision, err)
			}
		}
		for _, name := range f.Names {
			if !slices.Contains(away, name) {
				revision = f.mustApply(t, name, registerYAML(1, len(name)+int(revision)))
			}
		}
		f.HealAll()
		if err := f.Agree(t.Context(), settled); err != nil {
			t.Fatal(err)
		}
		for _, name := range f.Names {
			if list, err := f.API(name).Resources(t.Context(), api.ResourcesQuery{}); err != nil || list.Revision != revision {
				t.Errorf("%s has %d, want %d: %v", name, list.Revision, revision, err)
			}
		}
	})
}

func TestARevokedNodeIsShutOutEverywhereWithinASecond(t *testing.T) {
	for _, who := range []string{"a follower", "a voter"} {
		t.Run(who, func(t *testing.T) {
			inFleet(t, FleetConfig{Nodes: 7, Regions: 3, Voters: 5}, func(t *testing.T, f *Fleet) {
				ctx := t.Context()
				bad := "icn3"
				if who == "a voter" {
					bad = "fra1"
				}
				for _, name := range f.Names {
					if st, err := f.API(name).Status(ctx); err == nil && st.Source != "" {
						t.Logf("%s follows %s", name, st.Source)
					}
				}
				others := slices.DeleteFunc(slices.Clone(f.Names), func(name string) bool { return name == bad })
				if _, err := f.API("iad1").Revoke(ctx, bad); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				for _, name := range others {
					st, err := f.API(name).Status(ctx)
					if err != nil {
						t.Fatal(err)
					}
					for _, m := range st.Members {
						if m.Name == bad {
							t.Errorf("%s still sees %s, up %v", name, bad, m.Up)
						}
					}
				}
				if st, err := f.API(bad).Status(ctx); err == nil {
					for _, m := range st.Members {
						if m.Name != bad && m.Up {
							t.Errorf("%s still has its link to %s", bad, m.Name)
						}
					}
				}
				before := f.mustApply(t, "iad1", registerYAML(0, 7))
				time.Sleep(10 * time.Second)
				if st, err := f.API(bad).Status(ctx); err == nil && st.Revision >= before {
					t.Errorf("%s learns revision %d", bad, st.Revision)
				}
				if _, err := f.apply(ctx, bad, registerYAML(1, 1)); err == nil {
					t.Errorf("%s changes the network", bad)
				}
				keys := func() (ids []string) {
					all, err := f.API("iad1").Keys(ctx)
					if err != nil {
						t.Fatal(err)
					}
					for _, k := range all.Gossip {
						ids = append(ids, k.ID+" "+k.Stage)
					}
					return ids
				}
				took := until(t, 2*time.Minute, "another gossip key", func() bool { k := keys(); return len(k) == 1 && !strings.HasPrefix(k[0], "1 ") })
				t.Logf("the gossip key it knew is gone after %v more", took)
				f.Kill(bad) // it comes back with what it has
				if err := f.Start(ctx, bad); err != nil {
					t.Logf("it does not start: %v", err)
				} else {
					time.Sleep(20 * time.Second)
					if st, err := f.API("iad1").Status(ctx); err != nil || len(st.Members) != len(others) {
						t.Errorf("after its restart there are %d members: %v", len(st.Members), err)
					}
					f.Kill(bad)
				}
				if err := f.Wipe(bad, f.token); err != nil {
					t.Fatal(err)
				}
				if err := f.Start(ctx, bad); err != nil {
					t.Fatalf("a new machine of its name: %v", err)
				}
				if err := f.Agree(ctx, settled); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Keys are rotated under load: no member is ever held dead, no link is lost, no change is refused. The clients are within the
// voters: a token for the API knows the cluster by the authority that it is rid of here.
func TestKeysRotateWithoutAGap(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 7, Regions: 3, Voters: 5}, func(t *testing.T, f *Fleet) {
		ctx, stop := context.WithCancel(t.Context())
		var all sync.WaitGroup
		defer all.Wait()
		defer stop()
		var mu sync.Mutex
		wrong := map[string]int{}
		note := func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			wrong[fmt.Sprintf(format, args...)]++
		}
		downs := f.total(t, "backbone_carriers_lost_total")
		all.Go(func() {
			for ctx.Err() == nil {
				for _, name := range f.Names {
					st, err := f.Inside(name).Status(ctx)
					if err != nil {
						continue
					}
					if len(st.Members) != len(f.Names) {
						note("%s sees %d members", name, len(st.Members))
					}
					for _, m := range st.Members {
						if !m.Up {
							note("%s has no link to %s", name, m.Name)
						}
					}
				}
				time.Sleep(200 * time.Millisecond) // lost links are counted
			}
		})
		applied := 0
		all.Go(func() {
			for i := 1; ctx.Err() == nil; i++ {
				req := api.ApplyRequest{ID: rand.Text(), Files: []api.File{{Name: "test.yaml", Data: registerYAML(0, i)}}}
				if _, err := f.Inside(f.Names[i%5]).Apply(ctx, req); err != nil && ctx.Err() == nil {
					note("change %d: %v", i, err)
				}
				applied = i
				time.Sleep(500 * time.Millisecond)
			}
		})
		for _, what := range []string{"gossip", "authority"} {
			if _, err := f.Inside("fra1").Rotate(ctx, what); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			for {
				time.Sleep(time.Second)
				keys, err := f.Inside("fra1").Keys(ctx)
				if err == nil && len(keys.Gossip) == 1 && len(keys.Authorities) == 1 {
					break
				}
				if time.Since(began) > 5*time.Minute {
					t.Fatalf("%s: %+v %v", what, keys, err)
				}
			}
			t.Logf("%s rotated after %v", what, time.Since(began))
		}
		time.Sleep(5 * time.Second)
		stop()
		all.Wait()
		if now := f.total(t, "backbone_carriers_lost_total"); now != downs {
			t.Errorf("%d links were lost", now-downs)
		}
		for _, what := range slices.Sorted(maps.Keys(wrong)) {
			t.Errorf("%dx %s", wrong[what], what)
		}
		t.Logf("%d changes meanwhile", applied)
		// What is restarted now knows the others by the new keys.
		f.Kill("icn1")
		if err := f.Start(t.Context(), "icn1"); err != nil {
			t.Fatal(err)
		}
		if err := f.Agree(t.Context(), settled); err != nil {
			t.Error(err)
		}
	})
}

func TestCertificatesRenewThemselves(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 5, Regions: 3, Voters: 3}, func(t *testing.T, f *Fleet) {
		ctx := t.Context()
		const step = 5 * 24 * time.Hour
		for day := step; day <= 200*24*time.Hour; day += step {
			f.JumpAll(day)
			// A node looks every ten minutes, and when the cluster's own records change; the test need not wait.
			if _, err := f.API("icn1").CreateToken(ctx, api.TokenRequest{TTL: api.Duration(time.Hour)}); err != nil {
				t.Fatalf("day %v: %v", day/24/time.Hour, err)
			}
			time.Sleep(3 * time.Second)
			if err := f.Disagreement(ctx); err != nil {
				t.Errorf("day %v: %v", day/24/time.Hour, err)
			}
			for _, name := range f.Names {
				st, err := f.API(name).Status(ctx)
				if err != nil {
					t.Fatalf("day %v: %v", day/24/time.Hour, err)
				}
				if left := st.Expires.Sub(time.Now().Add(day)); left < 25*24*time.Hour {
					t.Errorf("day %v: the certificate of %s lasts %v more", day/24/time.Hour, name, left)
				}
			}
		}
		f.mustApply(t, "fra2", registerYAML(0, 1))
		f.Kill("fra1")
		if err := f.Start(ctx, "fra1"); err != nil {
			t.Fatal(err)
		}
		if err := f.Agree(ctx, settled); err != nil {
			t.Error(err)
		}
	})
}

func TestAMachineThatMayNotJoinIsToldWhyAndNothingIsLost(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 4, Regions: 3, Voters: 3}, func(t *testing.T, f *Fleet) {
		ctx := t.Context()
		revision := f.mustApply(t, "icn1", registerYAML(0, 1))
		token := func(req api.TokenRequest) string {
			made, err := f.API("fra1").CreateToken(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			return made.Token
		}
		short := token(api.TokenRequest{TTL: api.Duration(time.Minute)})
		once := token(api.TokenRequest{Uses: 1})
		edges := token(api.TokenRequest{Roles: []string{"edge"}, Uses: 10})
		good, err := identity.ParseToken(token(api.TokenRequest{Uses: 10}))
		if err != nil {
			t.Fatal(err)
		}
		forged, unknown, foreign := good, good, good
		forged.Secret[0] ^= 1
		unknown.ID[0] ^= 1
		foreign.Authority[0] ^= 1
		time.Sleep(2 * time.Minute)
		all := []view.Role{view.Edge, view.Voter}
		if err := f.tryJoin(ctx, t, "uses-one", once, all); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ what, name, token, want, counter string }{
			{"expired", "one", short, "expired", "join_refused_total"},
			{"used up", "two", once, "used", "join_refused_total"},
			{"other roles", "three", edges, "role", "join_refused_total"},
			{"forged", "four", forged.String(), "token", "join_refused_total"},
			{"unknown", "five", unknown.String(), "token", "join_refused_total"},
			{"another cluster's", "six", foreign.String(), "cluster", ""},
			{"taken name", "fra1", good.String(), "fra1", "join_refused_total"},
			{"not a token", "seven", "pgt2.nonsense", "token", ""},
		} {
			before := f.total(t, "join_refused_total")
			err := f.tryJoin(ctx, t, c.name, c.token, all)
			t.Logf("%s: %v", c.what, err)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v", c.what, err)
			}
			if err != nil && strings.Contains(err.Error(), c.token) {
				t.Errorf("%s: the error has the token", c.what)
			}
			if now := f.total(t, "join_refused_total"); c.counter != "" && now == before {
				t.Errorf("%s: not counted", c.what)
			}
		}
		if err := f.tryJoin(ctx, t, "eight", good.String(), all); err != nil {
			t.Errorf("the good token: %v", err)
		}
		if list, err := f.API("icn1").Resources(ctx, api.ResourcesQuery{}); err != nil || list.Revision != revision {
			t.Errorf("the network is at %d, want %d: %v", list.Revision, revision, err)
		}
	})
}

// tryJoin starts a machine that is to join, and ends it again.
func (f *Fleet) tryJoin(ctx context.Context, t *testing.T, name, token string, roles []view.Role) error {
	t.Helper()
	cfg := f.nodes[f.Names[1]].cfg
	f.guests++
	ip := netip.AddrFrom4([4]byte{192, 0, 3, byte(f.guests)})
	host := f.in.Host(fmt.Sprintf("guest-%d", f.guests), f.places[0].at, ip)
	at := func(port int) string { return netip.AddrPortFrom(ip, uint16(port)).String() }
	cfg.Name, cfg.POP, cfg.Data, cfg.Roles, cfg.Token, cfg.Advertise, cfg.Public = name, name, t.TempDir(), roles, token, ip, nil
	cfg.Gossip, cfg.Control, cfg.API = at(gossipPort), at(controlPort), at(apiPort)
	cfg.Listen, cfg.ListenPacket, cfg.Dial, cfg.ListenAnycast = host.Listen, host.ListenPacket, host.Dial, host.Listen
	n := newFleetNode(host, cfg)
	err := n.start(ctx)
	if err == nil {
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		n.take().Close(ctx)
	}
	return err
}

// Nonsense at the control port's services, from a peer with a certificate of the cluster and from one with that of another,
// is counted, and nothing is lost.
func TestNonsenseAtTheControlPortHarmsNobody(t *testing.T) {
	inFleet(t, FleetConfig{Nodes: 4, Regions: 3, Voters: 3}, func(t *testing.T, f *Fleet) {
		ctx := t.Context()
		revision := f.mustApply(t, "icn1", registerYAML(0, 1))
		stranger, err := identity.NewAuthority(identity.NewClusterID(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		foreign, err := stranger.Node(identity.Claim{Name: "fra1", Region: "eu-central-1", POP: "fra1", Roles: []string{"voter"}}, 1, identity.Keys{}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		member, err := identity.LoadNode(f.nodes["icn2"].cfg.Data)
		if err != nil {
			t.Fatal(err)
		}
		nonsense := [][]byte{
			nil, {0}, []byte("GET / HTTP/1.1\r\n\r\n"), []byte("\xff\xff\xff\xff\xff\xff\xff\xff"), []byte(strings.Repeat("\x00\x00\x10\x00 perigee ", 1000)),
			[]byte("POST /v1/apply HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{"), []byte("\x00\x01\x02\x03{\"entries\": \"nonsense\"}"),
		}
		for _, c := range []struct {
			who     string
			node    *identity.Node
			service string
			counter string
		}{
			{"a member", member, control.Raft, ""},
			{"a member", member, control.Watch, "watch_nonsense_total"},
			{"a member", member, control.API, ""},
			{"a member", member, "perigee-none/1", "control_handshake_failed_total"},
			{"a stranger", foreign, control.Raft, "control_handshake_failed_total"},
			{"a stranger", foreign, control.Watch, "control_handshake_failed_total"},
			{"a stranger", foreign, control.API, "control_handshake_failed_total"},
			{"a stranger", foreign, identity.JoinProtocol, "join_malformed_total"},
		} {
			before := uint64(0)
			if c.counter != "" {
				before = f.counter(t, "icn1", c.counter)
			}
			for _, text := range nonsense {
				raw, err := f.clients["eu-central-1"].Dial(ctx, "tcp", f.nodes["icn1"].cfg.Control)
				if err != nil {
					t.Fatal(err)
				}
				cfg := identity.NewGuard(c.node, identity.Trust{}, nil).ClientTLS("", c.service)
				cfg.VerifyConnection, cfg.VerifyPeerCertificate, cfg.InsecureSkipVerify = nil, nil, true // it talks to anyone
				conn := tls.Client(raw, cfg)
				conn.SetDeadline(time.Now().Add(time.Minute))
				if conn.HandshakeContext(ctx) == nil {
					conn.Write(text)
					conn.CloseWrite()
					for b := make([]byte, 1024); err == nil; {
						_, err = conn.Read(b)
					}
				}
				raw.Close()
			}
			if c.counter != "" {
				if now := f.counter(t, "icn1", c.counter); now == before {
					t.Errorf("%s at %s: %s stays at %d", c.who, c.service, c.counter, now)
				}
			}
		}
		time.Sleep(10 * time.Second)
		if err := f.Agree(ctx, settled); err != nil {
			t.Error(err)
		}
		if next := f.mustApply(t, "fra1", registerYAML(0, 2)); next != revision+1 {
			t.Errorf("the next revision is %d, want %d", next, revision+1)
		}
	})
}
