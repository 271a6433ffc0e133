package gossip

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/perigee-net/perigee/testbed/memnet"
)

// keys are keys told apart by a byte each. That of newWorld is 7.
func keys(ids ...byte) (keys [][]byte) {
	for _, id := range ids {
		keys = append(keys, bytes.Repeat([]byte{id}, KeySize))
	}
	return keys
}

func setKeys(t *testing.T, g *Gossip, primary byte, others ...byte) {
	t.Helper()
	if err := g.SetKeys(keys(primary)[0], keys(others...)); err != nil {
		t.Fatal(err)
	}
}

func TestTheKeyringHoldsWhatItWasGivenLastWhateverItHeld(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var k keyring
	for range 2000 {
		ids := random.Perm(12)[:1+random.IntN(MaxKeyring)]
		var want [][]byte
		for _, id := range ids {
			want = append(want, keys(byte(id))[0])
		}
		if err := k.set(want[0], want[1:]); err != nil {
			t.Fatal(err)
		}
		got := k.ring.GetKeys()
		if !bytes.Equal(got[0], want[0]) || len(got) != len(want) || slices.ContainsFunc(want, func(key []byte) bool { return !holds(got, key) }) {
			t.Fatalf("given %v it holds %v", want, got)
		}
	}
}

func TestKeysThatAreRefusedLeaveTheFormerOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 2)
		for _, bad := range []struct {
			primary []byte
			others  [][]byte
		}{
			{nil, nil}, {keys(8)[0][:16], nil}, {keys(8)[0], [][]byte{nil}}, {keys(8)[0], keys(1, 2, 3, 4, 5, 6, 7, 9)},
		} {
			if err := w.nodes[0].SetKeys(bad.primary, bad.others); err == nil {
				t.Errorf("took %v and %v", bad.primary, bad.others)
			}
		}
		if held := w.nodes[0].keys.ring.GetKeys(); len(held) != 1 || !bytes.Equal(held[0], key) {
			t.Errorf("holds %v", held)
		}
	})
}

// The stages of a rotation from key 7 to key 8, as each node takes them, in its own time.
var rotation = []struct {
	stage   string
	primary byte
	others  []byte
}{
	{"introduced", 7, []byte{8}}, {"used", 8, []byte{7}}, {"retired", 8, nil},
}

// mentions counts the lines of a log, memberlist's included, that hold some text, in lower case.
type mentions struct {
	text string
	n    atomic.Int64
}

func (m *mentions) Write(line []byte) (int, error) {
	if bytes.Contains(bytes.ToLower(line), []byte(m.text)) {
		m.n.Add(1)
	}
	return len(line), nil
}

func (m *mentions) log() *slog.Logger {
	return slog.New(slog.NewTextHandler(m, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestAKeyIsReplacedWithoutAGap(t *testing.T) {
	t.Parallel()
	for _, loss := range []float64{0, 0.01} {
		t.Run(fmt.Sprintf("loss %v", loss), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const size = 7
				w := newWorld(t, size)
				unread := mentions{text: "decrypt"}
				for i := range size {
					c := w.config(i)
					c.Log = unread.log()
					g, err := Open(c)
					if err != nil {
						t.Fatal(err)
					}
					w.nodes[i] = g
					if i > 0 {
						w.join(i, 0)
					}
				}
				w.within(2*pushPullInterval, "all know each other", func() bool {
					return !slices.ContainsFunc(w.nodes, func(g *Gossip) bool { return len(names(g)) != size })
				})
				for i := range size {
					for j := range i {
						w.net.Link(name(i), name(j), memnet.Path{Loss: loss, Jitter: 10 * time.Millisecond})
					}
				}
				before := make([]uint64, size)
				for i, g := range w.nodes {
					before[i] = g.Members().Version()
				}
				random := rand.New(rand.NewPCG(3, 4))
				for _, r := range rotation {
					for _, g := range w.nodes {
						time.AfterFunc(time.Duration(random.IntN(5000))*time.Millisecond, func() {
							if err := g.SetKeys(keys(r.primary)[0], keys(r.others...)); err != nil {
								t.Error(err)
							}
						})
					}
					time.Sleep(10 * time.Second) // for half of it some have taken it and some have not
					time.Sleep(pushPullInterval)
					if n := unread.n.Load(); n != 0 {
						t.Errorf("%d packets or streams could not be read when the key was %s", n, r.stage)
					}
				}
				for i, g := range w.nodes {
					if v := g.Members().Version(); v != before[i] || len(names(g)) != size {
						t.Errorf("%s saw its members change %d times, to %v", name(i), v-before[i], names(g))
					}
				}
			})
		})
	}
}

func TestWhoHasOnlyARetiredKeyIsHeldDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := joined(t, 4)
		for _, r := range rotation {
			for _, g := range w.others(3) {
				setKeys(t, g, r.primary, r.others...)
			}
			time.Sleep(time.Second)
		}
		w.within(15*time.Second, "n03 is gone", func() bool { return lost(w.others(3), name(3)) })
		if err := w.nodes[3].Join(t.Context(), []string{w.addr(0)}); err == nil {
			t.Error("it joined by a key that is retired")
		}
		time.Sleep(time.Minute)
		for _, g := range w.others(3) {
			if len(names(g)) != 3 {
				t.Errorf("%s has %v", g.name, names(g))
			}
		}
	})
}
