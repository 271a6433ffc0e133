package gossip

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// refusing is a joined world of which each node refuses the last once it knows that it should.
type refusing struct {
	*world
	out     int
	knows   []atomic.Bool
	accused mentions // what the last accused others of
}

func newRefusing(t *testing.T, size int) *refusing {
	w := &refusing{world: newWorld(t, size), out: size - 1, knows: make([]atomic.Bool, size)}
	w.accused.text = "from: " + name(w.out)
	for i := range size {
		c := w.config(i)
		c.Log = w.accused.log()
		c.Refuse = func(n string) bool { return n == name(w.out) && w.knows[i].Load() }
		g, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		w.nodes[i] = g
		if i > 0 {
			w.join(i, 0)
		}
	}
	w.within(2*pushPullInterval, "all know each other", func() bool { return w.allKnowAll() })
	return w
}

func (w *refusing) allKnowAll() bool {
	return !slices.ContainsFunc(w.nodes, func(g *Gossip) bool { return len(names(g)) != len(w.nodes) })
}

func (w *refusing) tell(i int, refused bool) {
	w.knows[i].Store(refused)
	w.nodes[i].Check()
}

// gone says whether none of some nodes has the refused one for a member.
func (w *refusing) gone(nodes []*Gossip) bool { return lost(nodes, name(w.out)) }

func TestARefusedNodeIsGoneAtOnceAndStaysAway(t *testing.T) {
	t.Parallel()
	for _, late := range []int{0, 3} {
		t.Run(fmt.Sprintf("%d of 7 hear of it ten seconds later", late), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newRefusing(t, 7)
				time.Sleep(10 * time.Second)
				others := w.others(w.out)
				early := others[late:]
				for i := range early {
					w.tell(i+late, true)
				}
				if !w.gone(early) {
					t.Error("it is still there after Check")
				}
				for range 200 {
					time.Sleep(50 * time.Millisecond)
					if !w.gone(early) {
						t.Fatal("it came back by those who have not heard of it")
					}
				}
				for i := range late {
					w.tell(i, true)
				}
				for range 2 * 60 * 10 { // four full exchanges of state and more
					time.Sleep(100 * time.Millisecond)
					if !w.gone(others) {
						t.Fatal("it came back")
					}
					for _, g := range others {
						if len(names(g)) != len(others) {
							t.Fatalf("%s has the members %v", g.name, names(g))
						}
					}
				}
				// By joining it is not heard either, and memberlist has it dead, not only hidden.
				w.nodes[w.out].Join(t.Context(), []string{w.addr(0), w.addr(1)})
				time.Sleep(10 * time.Second)
				if !w.gone(others) {
					t.Error("it came back by joining")
				}
				for _, g := range others {
					if n := g.list.NumMembers(); n != len(others) {
						t.Errorf("%s: memberlist has %d alive", g.name, n)
					}
				}
				if n := others[0].Counters()["gossip_refused_total"]; n == 0 {
					t.Error("nothing refused was counted")
				}
			})
		})
	}
}

func TestOneWhoIsRefusedCannotHaveOthersHeldDead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newRefusing(t, 6)
		others := w.others(w.out)
		for i := range others {
			w.tell(i, true)
		}
		before := make([]uint64, len(others))
		for i, g := range others {
			before[i] = g.Members().Version()
		}
		// It has the old key and not the new one, so to it all the others fall silent while they still hear the old.
		for _, g := range others {
			setKeys(t, g, 8, 7)
		}
		time.Sleep(time.Minute)
		for i, g := range others {
			if v := g.Members().Version(); v != before[i] {
				t.Errorf("%s saw its members change %d times", g.name, v-before[i])
			}
		}
		if n := w.accused.n.Load(); n != 0 {
			t.Errorf("%d accusations of it were heard", n)
		}
		if got := names(w.nodes[w.out]); len(got) != 1 {
			t.Errorf("it still has %v", got)
		}
	})
}

func TestANodeThatIsRefusedNoMoreIsAMemberAgain(t *testing.T) {
	for _, away := range []time.Duration{100 * time.Millisecond, 2 * time.Second, 20 * time.Second, 5 * time.Minute} {
		t.Run(fmt.Sprintf("after %v", away), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newRefusing(t, 4)
				for i := range w.out {
					w.tell(i, true)
				}
				time.Sleep(away)
				for i := range w.out {
					w.tell(i, false)
				}
				w.nodes[w.out].Join(t.Context(), []string{w.addr(0)})
				w.within(pushPullInterval+10*time.Second, "all is as it was", w.allKnowAll)
			})
		})
	}
}

func TestAMachineThatWasRefusedIsHeardUnderANewNameAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newRefusing(t, 4)
		for i := range w.out {
			w.tell(i, true)
		}
		w.close(w.out)
		c := w.config(w.out)
		c.Name = "anew"
		g, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		w.nodes[w.out] = g
		w.join(w.out, 0)
		w.within(2*time.Second, "it is a member", func() bool {
			return !slices.ContainsFunc(w.nodes, func(g *Gossip) bool { return !slices.Contains(names(g), "anew") })
		})
		time.Sleep(time.Minute)
		for _, g := range w.nodes {
			if len(names(g)) != 4 {
				t.Errorf("%s has %v", g.name, names(g))
			}
		}
	})
}

func TestTheNameOfARefusedNodeMayBeTakenByAnotherMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newRefusing(t, 4)
		for i := range w.out {
			w.tell(i, true)
		}
		w.hosts[w.out].Crash()
		w.close(w.out)
		time.Sleep(10 * time.Second)
		w.hosts[w.out] = w.net.Host("another", places[5], netip.MustParseAddr("10.1.0.1"))
		for i := range w.out {
			w.tell(i, false)
		}
		w.open(w.out)
		w.join(w.out, 0)
		w.within(5*time.Second, "it is known at its address", func() bool {
			return !slices.ContainsFunc(w.nodes, func(g *Gossip) bool {
				members := g.Members().Get()
				return len(members) != 4 || members[3].Addr.String() != w.addr(w.out)
			})
		})
	})
}

func TestANodeDoesNotRefuseItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		c := w.config(0)
		c.Refuse = func(string) bool { return true }
		g, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		w.nodes[0] = g
		g.Check()
		if got := names(g); len(got) != 1 {
			t.Errorf("has %v", got)
		}
	})
}
