package report

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheHeadsOfARegionMayDie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inWorld(t, 40, 5, 0, func(w *world) {
			w.settle()
			heads, others := w.heads("r01")
			if len(heads) != 2 || len(others) != 6 {
				t.Fatalf("%d heads, %d others", len(heads), len(others))
			}
			heads[0].crash()
			others[0].say("one is dead", "1")
			w.within(time.Second, "nobody notices that one is dead", func() bool { return know(w.live(), others[0].Name, "one is dead", "1") })
			heads[1].crash()
			others[0].say("both are dead", "1")
			w.nodes[0].say("from elsewhere", "1")
			time.Sleep(3 * time.Second) // until it is known
			w.tell()
			w.within(time.Second, "the next two stand in for them", func() bool {
				return know(w.live(), others[0].Name, "both are dead", "1") && know(w.live(), w.nodes[0].Name, "from elsewhere", "1")
			})
			if len(w.nodes[0].Entries().Get()[heads[0].Name]) != 0 {
				t.Error("what the dead said is still shown")
			}
		})
	})
}

func TestLastWordsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inWorld(t, 40, 5, 0, func(w *world) {
			w.settle()
			_, others := w.heads("r01")
			heads, _ := w.heads("r01")
			w.in.Cut(others[0].Name, heads[1].Name) // only one head hears it
			others[0].say("last words", "farewell")
			time.Sleep(2 * time.Millisecond) // the region is one place
			name := others[0].Name
			others[0].crash()
			w.within(time.Second, "all know", func() bool { return know(w.live(), name, "last words", "farewell") })
		})
	})
}

func TestWaysAroundCuts(t *testing.T) {
	for _, c := range []struct {
		name  string
		cut   func(w *world, pair func(a, b *node))
		limit time.Duration
	}{
		{"between two regions", func(w *world, pair func(a, b *node)) {
			for _, a := range w.nodes {
				for _, b := range w.nodes {
					if a.Region == "r00" && b.Region == "r01" {
						pair(a, b)
					}
				}
			}
		}, 3 * time.Second},
		{"between the heads of a region and all other regions", func(w *world, pair func(a, b *node)) {
			heads, _ := w.heads("r00")
			for _, a := range heads[:1] {
				for _, b := range w.nodes {
					if b.Region != "r00" {
						pair(a, b)
					}
				}
			}
		}, 3 * time.Second},
		{"between a member and one head", func(w *world, pair func(a, b *node)) {
			heads, others := w.heads("r00")
			pair(others[0], heads[0])
		}, time.Second},
		// The streams are missed only after a silence. From then on it goes over others.
		{"between a member and both heads", func(w *world, pair func(a, b *node)) {
			heads, others := w.heads("r00")
			pair(others[0], heads[0])
			pair(others[0], heads[1])
		}, silence + lonelyFor + 3*time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inWorld(t, 40, 5, 0, func(w *world) {
					w.settle()
					pairs := 0
					c.cut(w, func(a, b *node) { w.in.Cut(a.Name, b.Name); pairs++ })
					round := func(limit time.Duration, when string) {
						for _, n := range w.nodes {
							n.say("when", when)
						}
						took := w.within(limit, when+": all know all", func() bool {
							return !slices.ContainsFunc(w.nodes, func(n *node) bool { return !know(w.nodes, n.Name, "when", when) })
						})
						t.Logf("%d pairs cut, %s: %v", pairs, when, took)
					}
					round(c.limit, "at once")
					time.Sleep(20 * time.Second)
					round(3*time.Second, "later")
				})
			})
		})
	}
}

func TestHalvesThatWereApartTellEachOtherAll(t *testing.T) {
	for _, noticed := range []bool{true, false} {
		t.Run(fmt.Sprint("noticed ", noticed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inWorld(t, 24, 4, 0, func(w *world) {
					for i, n := range w.nodes {
						n.say("who", n.Name)
						n.say("gone later", fmt.Sprint(i))
					}
					w.settle()
					half := func(n *node) bool { return n.Region < "r02" }
					var halves [2][]Peer
					for _, a := range w.nodes {
						if half(a) {
							halves[0] = append(halves[0], a.Peer)
						} else {
							halves[1] = append(halves[1], a.Peer)
						}
						for _, b := range w.nodes {
							if half(a) && !half(b) {
								w.in.Cut(a.Name, b.Name)
							}
						}
					}
					time.Sleep(3 * time.Second)
					for _, n := range w.nodes {
						if noticed {
							n.SetMembers(halves[map[bool]int{true: 0, false: 1}[half(n)]])
						}
					}
					for _, n := range w.nodes {
						n.say("since", "the cut")
						n.Publish("gone later", nil)
					}
					time.Sleep(5 * time.Second)
					for _, n := range w.nodes {
						if noticed && len(n.Entries().Get()) != 12 {
							t.Fatalf("%s shows %d nodes", n.Name, len(n.Entries().Get()))
						}
					}
					time.Sleep(removedFor + time.Minute) // what was removed is forgotten on the other side
					for _, n := range w.nodes {
						n.say("before", "the end")
					}
					for _, a := range w.nodes {
						for _, b := range w.nodes {
							if half(a) && !half(b) {
								w.in.Heal(a.Name, b.Name)
							}
						}
					}
					w.tell()
					took := w.within(12*time.Second, "all know all, and only that", func() bool {
						return !slices.ContainsFunc(w.nodes, func(n *node) bool {
							return !know(w.nodes, n.Name, "who", n.Name) || !know(w.nodes, n.Name, "since", "the cut") ||
								!know(w.nodes, n.Name, "before", "the end") || !know(w.nodes, n.Name, "gone later", "")
						})
					})
					t.Logf("took %v", took)
				})
			})
		})
	}
}

func TestARestartedNodesWordsSupersedeThoseOfItsFormerLife(t *testing.T) {
	for _, back := range []time.Duration{0, time.Hour} {
		t.Run(fmt.Sprint("clock set back by ", back), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inWorld(t, 30, 3, 0, func(w *world) {
					w.settle()
					n := w.nodes[17]
					for i := range 10 {
						n.say("kept", fmt.Sprint(i))
					}
					n.say("not said again", "1")
					w.within(time.Second, "all know", func() bool { return know(w.nodes, n.Name, "not said again", "1") })
					n.crash()
					n.host.Restart()
					time.Sleep(time.Second)
					n.asLife = uint64(time.Now().Add(-back).UnixNano())
					n.start()
					n.say("kept", "of the new life")
					n.SetMembers(w.peers())
					took := w.within(5*time.Second, "all know the new, and only that", func() bool {
						return know(w.nodes, n.Name, "kept", "of the new life") && know(w.nodes, n.Name, "not said again", "")
					})
					t.Logf("took %v", took)
					if want := map[bool]uint64{true: 1}[back > 0]; n.Counters()["report_rebirths_total"] != want {
						t.Errorf("%d new lives, want %d", n.Counters()["report_rebirths_total"], want)
					}
					n.say("kept", "later")
					w.within(time.Second, "all know the newest", func() bool { return know(w.nodes, n.Name, "kept", "later") })
				})
			})
		})
	}
}

func TestTwoNodesOfOneNameTurnSeldomly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inWorld(t, 12, 3, 0, func(w *world) {
			w.settle()
			twin := w.add()
			twin.Peer = w.nodes[4].Peer
			twin.start()
			twin.say("who", "twin")
			w.nodes[4].say("who", "first")
			twin.SetMembers(w.peers()[:12])
			watched := w.nodes[0]
			time.Sleep(time.Second)
			before := watched.Entries().Version()
			time.Sleep(time.Minute)
			if turns := watched.Entries().Version() - before; turns > 30 {
				t.Errorf("%d snapshots in a minute", turns)
			}
			if n := twin.Counters()["report_rebirths_total"] + w.nodes[4].Counters()["report_rebirths_total"]; n > 14 {
				t.Errorf("%d new lives in a minute", n)
			}
			w.nodes[1].say("others", "are heard")
			w.within(time.Second, "others are heard", func() bool { return know(w.nodes[:12], w.nodes[1].Name, "others", "are heard") })
		})
	})
}

// talker is a node that speaks the protocol as the test wants.
type talker struct {
	net.Conn
	t *testing.T
}

func (w *world) talker(as, to *node) talker {
	w.t.Helper()
	conn, err := as.host.Dial(w.t.Context(), "tcp", fmt.Sprint(to.host.Addr(), ":", port))
	if err != nil {
		w.t.Fatal(err)
	}
	return talker{conn, w.t}
}

func (c talker) send(items ...[]byte) {
	frame := slices.Concat(items...)
	if _, err := c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)); err != nil {
		c.t.Fatal(err)
	}
}

// ended says whether the far end ended the stream, and how long that took.
func (c talker) ended(limit time.Duration) (time.Duration, bool) {
	start := time.Now()
	c.SetReadDeadline(start.Add(limit))
	_, err := io.Copy(io.Discard, c)
	ne, ok := err.(net.Error)
	return time.Since(start), !ok || !ne.Timeout()
}

func TestAPeerThatDoesNotReadHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inWorld(t, 12, 3, 0, func(w *world) {
			w.settle()
			heads, others := w.heads("r00")
			slow := others[0]
			slow.Reports.Close() // it accepts nothing and dials nothing
			c := w.talker(slow, heads[0])
			c.send([]byte{itemWish, byte(everything), itemReady})
			beats := time.AfterFunc(0, func() {
				for range 40 {
					if _, err := c.Write(make([]byte, 4)); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			})
			defer beats.Stop()
			value := strings.Repeat("v", 1000)
			for i := range 2000 { // 2 MB, far more than fits between them
				heads[1].say(fmt.Sprint("key", i%500), value[i%7:])
				if i%50 == 0 {
					time.Sleep(100 * time.Millisecond)
				}
			}
			heads[1].say("last", "1")
			w.within(time.Second, "the others know the last", func() bool { return know(w.nodes[1:3], heads[1].Name, "last", "1") })
			w.within(writeTimeout+5*time.Second, "it is cut", func() bool { return heads[0].Counters()["report_streams_stalled_total"] == 1 })
			c.Close()
			time.Sleep(time.Second)
		})
	})
}

func TestAStreamIsResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inWorld(t, 2, 1, 0, func(w *world) {
			a, b := w.nodes[0], w.nodes[1]
			for i := range 1000 {
				a.say(fmt.Sprint("key", i), "value")
			}
			w.within(3*time.Second, "all is known", func() bool { return len(b.Entries().Get()[a.Name]) == 1000 })
			for range 5 {
				before := b.Counters()["report_values_received_total"]
				a.mu.Lock()
				for s := range a.streams {
					a.cut(s)
				}
				a.mu.Unlock()
				a.say("key7", fmt.Sprint(before))
				w.within(3*time.Second, "what is new is known", func() bool { return know(w.nodes, a.Name, "key7", fmt.Sprint(before)) })
				if n := b.Counters()["report_values_received_total"] - before; n > 2 {
					t.Errorf("%d values were sent", n)
				}
			}
		})
	})
}

func TestTheLargestNodeIsHeardWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inWorld(t, 10, 2, 0, func(w *world) {
			w.settle()
			n := w.nodes[3]
			for i := range 1000 {
				n.say(fmt.Sprint("key", i), strings.Repeat(string(rune('a'+i%26)), MaxValue))
			}
			for i := range MaxKeys - 1000 {
				n.say(fmt.Sprintf("%05d", i), "")
			}
			if err := n.Publish("one more", []byte{}); err == nil || !strings.Contains(err.Error(), "too many keys") {
				t.Errorf("one key more: %v", err)
			}
			w.within(10*time.Second, "all is known", func() bool {
				return !slices.ContainsFunc(w.nodes, func(o *node) bool { return len(o.Entries().Get()[n.Name]) != MaxKeys })
			})
			if n := w.total("report_values_dropped_total") + w.total("report_gaps_total"); n != 0 {
				t.Errorf("%d values were dropped or missed", n)
			}
		})
	})
}

func TestWhatMakesNoSenseEndsTheStream(t *testing.T) {
	said := func(from, to, floor uint64, count byte, records ...byte) []byte {
		b := []byte{itemSaid, 0}
		for _, n := range []uint64{from, to, floor} {
			b = binary.AppendUvarint(b, n)
		}
		return append(append(b, count), records...)
	}
	for name, frame := range map[string][]byte{
		"an unknown kind":                 {99},
		"a number that was not given":     {itemWant, 3, 0},
		"a number too high":               appendNode(nil, maxNodes, "x", 1),
		"half an item":                    {itemNode, 0, 5, 'a'},
		"no name":                         {itemNode, 0, 0, 1},
		"a wish that there is not":        {itemWish, 9},
		"nothing said":                    append(appendNode(nil, 0, "x", 1), said(5, 5, 0, 0)...),
		"records beyond the end":          append(appendNode(nil, 0, "x", 1), said(1, 2, 0, 2, 1, 1, 'k', 1, 1, 1, 'l', 1)...),
		"more records than there is room": append(appendNode(nil, 0, "x", 1), said(1, 9, 0, 100, 1, 1, 'k', 1)...),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inWorld(t, 12, 3, 0, func(w *world) {
					stranger := w.add()
					c := w.talker(stranger, w.nodes[0])
					c.send(frame)
					if took, ended := c.ended(5 * time.Second); !ended || took > time.Second || w.nodes[0].Counters()["report_malformed_total"] != 1 {
						t.Errorf("ended %v after %v", ended, took)
					}
				})
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		inWorld(t, 12, 3, 0, func(w *world) {
			stranger := w.add()
			c := w.talker(stranger, w.nodes[0])
			c.Write([]byte{0xff, 0, 0, 0})
			if _, ended := c.ended(time.Second); !ended {
				t.Error("a frame of 4 GB is waited for")
			}
			c = w.talker(stranger, w.nodes[0])
			if took, ended := c.ended(time.Minute); !ended || took > silence+time.Second || w.nodes[0].Counters()["report_streams_silent_total"] != 1 {
				t.Errorf("a silent one is ended %v after %v", ended, took)
			}
			c = w.talker(stranger, w.nodes[0])
			stop := time.AfterFunc(0, func() {
				for {
					if _, err := c.Write(make([]byte, 4)); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			})
			if took, ended := c.ended(time.Minute); !ended || took > strangerFor+time.Second {
				t.Errorf("a stranger is ended %v after %v", ended, took)
			}
			stop.Stop()
			c.Close()
			time.Sleep(2 * time.Second)
		})
	})
}

func TestALiarHoldsNobodyDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inWorld(t, 12, 3, 0, func(w *world) {
			w.settle()
			w.nodes[5].say("key", "true")
			w.settle()
			liar := w.nodes[3]
			liar.Reports.Close()
			// It says that others said all there can be, in this life and the next, and that it has more of everything.
			c := w.talker(liar, w.nodes[0])
			life := w.nodes[5].self.life
			lie := &origin{life: life, have: 1 << 40, log: []*record{{key: "key", seq: 1 << 40, value: []byte("lie")}}}
			b := []byte{itemWish, byte(everything), itemReady}
			b = appendNode(b, 0, w.nodes[5].Name, life)
			b, _ = appendSaid(b, 0, lie, 0, 1000)
			b = appendNode(b, 1, w.nodes[6].Name, w.nodes[6].self.life+1000)
			b = appendHas(b, []mark{{1, 1 << 50}})
			b = appendNode(b, 2, w.nodes[0].Name, w.nodes[0].self.life)
			b, _ = appendSaid(b, 2, lie, 0, 1000)
			for i := range 3000 {
				b = appendNode(b, 3+i, fmt.Sprint("nobody", i), 1)
				b, _ = appendSaid(b, 3+i, &origin{have: 1, log: []*record{{key: "key", seq: 1, value: []byte("lie")}}}, 0, 1000)
			}
			c.send(b)
			time.Sleep(2 * time.Second)
			c.Close()
			time.Sleep(rebirthEvery)
			if !know(w.live()[:3], w.nodes[5].Name, "key", "true") {
				t.Error("the lie is believed")
			}
			for _, n := range w.live() {
				if n != liar && len(n.Entries().Get()) != 1 {
					t.Errorf("%s shows %d nodes", n.Name, len(n.Entries().Get()))
				}
			}
			w.nodes[6].say("key", "still heard")
			w.within(5*time.Second, "the others are heard", func() bool { return know(w.nodes[7:], w.nodes[6].Name, "key", "still heard") })
			time.Sleep(goneFor + 2*sweepEvery)
			if n := w.nodes[0].Counters()["report_nodes"]; n != 12 {
				t.Errorf("%d nodes are known", n)
			}
		})
	})
}

func TestARefusedNodeIsNeitherHeardNorTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inWorld(t, 24, 3, 0, func(w *world) {
			var refused atomic.Value
			refused.Store("")
			bad := w.nodes[7]
			for _, n := range w.nodes {
				n.Check()
			}
			w.settle()
			bad.say("key", "before")
			w.within(time.Second, "it is heard", func() bool { return know(w.nodes, bad.Name, "key", "before") })
			for _, n := range w.live() {
				if n != bad {
					n.mu.Lock()
					n.cfg.Refuse = func(name string) bool { return name == refused.Load() }
					n.mu.Unlock()
				}
			}
			refused.Store(bad.Name)
			for _, n := range w.live() {
				n.Check()
				if n != bad && !know([]*node{n}, bad.Name, "key", "") {
					t.Errorf("%s still shows it", n.Name)
				}
			}
			bad.say("key", "after")
			w.nodes[0].say("secret", "1")
			time.Sleep(20 * time.Second)
			for _, n := range w.live() {
				if n != bad && !know([]*node{n}, bad.Name, "key", "") {
					t.Errorf("%s hears it", n.Name)
				}
			}
			if !know([]*node{bad}, w.nodes[0].Name, "secret", "") {
				t.Error("it is told")
			}
			refused.Store("")
			for _, n := range w.live() {
				n.Check()
			}
			w.tell()
			w.within(10*time.Second, "it is heard again", func() bool { return know(w.nodes, bad.Name, "key", "after") })
		})
	})
}

// Nodes come, go, say things, are cut and healed, at random; at the end all know all.
func TestWhateverHappensAllKnowAllInTheEnd(t *testing.T) {
	seeds := uint64(4)
	if os.Getenv("PERIGEE_LONG") != "" {
		seeds = 200
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			inWorld(t, 30, 5, 0.01, func(w *world) {
				chance := rand.New(rand.NewPCG(seed, 1))
				told := map[string]map[string]string{}
				pick := func() *node { return w.nodes[chance.IntN(len(w.nodes))] }
				for range 600 {
					switch n := pick(); chance.IntN(12) {
					case 0:
						if n.Reports != nil && len(w.live()) > 10 {
							n.crash()
							delete(told, n.Name)
						} else if n.Reports == nil {
							n.host.Restart()
							n.start()
						}
						if chance.IntN(3) > 0 {
							w.tell()
						}
					case 1:
						w.in.Cut(n.Name, pick().Name)
					case 2:
						w.in.Heal(n.Name, pick().Name)
					case 3:
						w.tell()
					default:
						if n.Reports == nil {
							continue
						}
						key, value := fmt.Sprint("key", chance.IntN(20)), fmt.Sprint(chance.IntN(100))
						if told[n.Name] == nil {
							told[n.Name] = map[string]string{}
						}
						if chance.IntN(4) == 0 {
							n.Publish(key, nil)
							delete(told[n.Name], key)
						} else {
							n.say(key, value)
							told[n.Name][key] = value
						}
					}
					time.Sleep(time.Duration(chance.IntN(1000)) * time.Millisecond)
				}
				for _, a := range w.nodes {
					for _, b := range w.nodes {
						if a != b {
							w.in.Heal(a.Name, b.Name)
						}
					}
				}
				w.tell()
				deadline := time.Now().Add(19 * time.Second)
				w.within(20*time.Second, "all know all", func() bool {
					if time.Now().After(deadline) {
						w.differences(told)
					}
					for _, n := range w.live() {
						e := n.Entries().Get()
						for _, other := range w.live() {
							if len(e[other.Name]) != len(told[other.Name]) {
								return false
							}
							for key, value := range told[other.Name] {
								if string(e[other.Name][key]) != value {
									return false
								}
							}
						}
					}
					return true
				})
			})
		})
	}
}

// differences logs what nodes do not show as it was said.
func (w *world) differences(told map[string]map[string]string) {
	for _, n := range w.live() {
		e := n.Entries().Get()
		for _, other := range w.live() {
			if len(e[other.Name]) != len(told[other.Name]) {
				w.t.Logf("seed: %s shows %d of %s, want %d", n.Name, len(e[other.Name]), other.Name, len(told[other.Name]))
				n.mu.Lock()
				o := n.origins[other.Name]
				w.t.Logf("live %v life %d (%d) have %d (%d) floor %d", o.live, o.life, other.self.life, o.have, other.self.have, o.floor)
				for s := range n.streams {
					w.t.Logf("stream with %s ready %v heard %v wished %v asked %v far %+v", s.name, s.ready, s.heard, s.wished, s.asked, *s.of(o))
				}
				n.mu.Unlock()
			}
		}
	}
}
