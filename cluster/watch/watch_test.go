package watch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/testbed/memnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAChangeReachesAllAndTheLongWayIsGoneOncePerRegion(t *testing.T) {
	inWorld(t, 3, 47, func(t *testing.T, w *world) {
		w.settled()
		w.put("warm", "1")
		w.settled()
		quiet := sent(w.nodes[:3])
		time.Sleep(10 * time.Second)
		idle := (sent(w.nodes[:3]) - quiet) / 10
		before, content := sent(w.nodes[:3]), string(random(10_000))
		encoded := w.nodes[0].Server.Counters()["watch_encoded_total"]
		w.put("a", content)
		took := w.agreed(time.Second, w.followers())
		if took > 250*time.Millisecond { // half a round trip to the head of São Paulo, and on to the others
			t.Errorf("it took %v", took)
		}
		bytes := sent(w.nodes[:3]) - before
		t.Logf("50 nodes have it after %v; voters sent %d bytes for it, and %d each second before", took, bytes, idle)
		// 27 followers are in the regions of the voters, and 2 heads.
		if most := uint64(29 * (len(content) + 500)); bytes > most {
			t.Errorf("voters sent %d bytes, want at most %d", bytes, most)
		}
		long := 0
		for _, n := range w.followers() {
			if s := w.named(n.follower.Source()); s.region != n.region {
				long++
			}
		}
		if long != 2 {
			t.Errorf("%d nodes follow one in another region, want one for each region without voters", long)
		}
		if encoded = w.nodes[0].Server.Counters()["watch_encoded_total"] - encoded; encoded != 1 {
			t.Errorf("a voter encoded %d messages for one change", encoded)
		}
	})
}

func TestAThousandChangesASecondArriveAsFewAndNothingIsLost(t *testing.T) {
	inWorld(t, 3, 7, func(t *testing.T, w *world) {
		w.settled()
		w.gossips = true
		for i := range 1000 {
			w.put(fmt.Sprint("k", i%100), fmt.Sprint(i))
			if i%50 == 0 {
				w.write(store.Change{Space: store.Own, Put: []store.Object{object("Node", fmt.Sprint("n", i), "x")}})
			}
			if i%7 == 0 {
				w.write(store.Change{Delete: []store.Ref{{Kind: "k", Name: fmt.Sprint("k", (i+13)%100)}}})
			}
			time.Sleep(time.Millisecond)
		}
		took := w.agreed(time.Second, w.followers())
		t.Logf("all have it %v after the last", took)
		for _, n := range w.followers() {
			c := n.follower.Counters()
			moved := c["watch_source_mismatches_total"] + c["watch_source_lost_total"]
			if moved != 0 || c["watch_snapshots_received_total"] != 1 || c["watch_deltas_received_total"] > 120 {
				t.Errorf("%s counted %v", n.host.Name(), c)
			}
		}
	})
}

func TestAFollowerThatIsTooSlowForAFloodTakesFewerAndIsSoonThere(t *testing.T) {
	inWorld(t, 1, 2, func(t *testing.T, w *world) {
		w.settled()
		slow := w.nodes[1]
		slow.stop()
		cfg := slow.config()
		take, taken := cfg.Take, 0
		cfg.Take = func(s *store.State) {
			time.Sleep(200 * time.Millisecond)
			taken++
			take(s)
		}
		slow.follower = NewFollower(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan bool)
		go func() {
			slow.follower.Run(ctx)
			close(ended)
		}()
		time.Sleep(time.Second)
		for i := range 1500 {
			w.put("a", fmt.Sprint(i))
			time.Sleep(time.Millisecond)
		}
		if took := w.agreed(5*time.Second, w.nodes[2:]); took > 250*time.Millisecond {
			t.Errorf("the other waited %v", took)
		}
		took := w.agreed(5*time.Second, []*node{slow})
		cancel()
		<-ended
		t.Logf("it took %d states for 1500, and had the last after %v", taken, took)
		if taken > 20 || took > (maxUnacked+2)*200*time.Millisecond {
			t.Errorf("it took %d states, and had the last after %v", taken, took)
		}
	})
}

func TestAFollowerThatLosesItsSourceResumesAtTheNext(t *testing.T) {
	for name, end := range map[string]func(w *world, n *node){
		"its process is killed": func(_ *world, n *node) { n.kill() },
		"its machine vanishes": func(w *world, n *node) {
			n.host.Crash()
			w.mark(n, true)
			n.stop()
		},
		"it is cut off, and all others still hold it for alive": func(w *world, n *node) { w.in.CutOff(n.host.Name()) },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 3, 17, func(t *testing.T, w *world) {
				w.settled()
				one := w.followers("r3")[0]
				head := w.named(one.follower.Source())
				if head.voter {
					head = one
				}
				end(w, head)
				w.put("a", "1")
				others := slices.DeleteFunc(w.followers(), func(n *node) bool { return n == head })
				took := w.agreed(15*time.Second, others)
				t.Logf("all others have it after %v", took)
				for _, n := range others {
					if got := n.follower.Counters()["watch_snapshots_received_total"]; got != 1 {
						t.Errorf("%s took %d snapshots: it did not resume", n.host.Name(), got)
					}
				}
				// There is no second head: the region still goes over the long way once or, until all know, twice.
				time.Sleep(3 * time.Minute)
				long := 0
				for _, n := range w.followers("r3") {
					if s := w.named(n.follower.Source()); n != head && s.region != n.region {
						long++
					}
				}
				if long > 2 {
					t.Errorf("%d nodes of the region go over the long way", long)
				}
			})
		})
	}
}

func TestWhenAllVotersDieEveryNodeKeepsWhatItHasAndGoesOnWhenTheyAreBack(t *testing.T) {
	inWorld(t, 3, 22, func(t *testing.T, w *world) {
		w.put("a", "1")
		w.settled()
		for _, v := range w.nodes[:3] {
			v.kill()
		}
		time.Sleep(time.Minute)
		for _, n := range w.followers() {
			if !n.has(w.state) || n.follower.Depth() != MaxDepth {
				t.Errorf("%s: %v at depth %d", n.host.Name(), n.state.Get().Position(), n.follower.Depth())
			}
		}
		one := w.followers("r3")[2]
		one.kill()
		one.restart()
		dialed := func() (sum uint64) {
			for _, n := range w.followers() {
				sum += n.follower.Counters()["watch_dials_total"]
			}
			return sum
		}
		before := dialed()
		time.Sleep(10 * time.Minute)
		if each := float64(dialed()-before) / 600 / 22; each > 0.5 {
			t.Errorf("each node dials %.2f times a second", each)
		}
		if !one.has(w.state) {
			t.Error("a node that restarted alone has lost its state")
		}
		for _, v := range w.nodes[:3] {
			v.restart()
		}
		w.put("a", "2")
		took := w.agreed(time.Minute, w.followers())
		t.Logf("all have it %v after the voters are back", took)
		if took > 30*time.Second {
			t.Errorf("it took %v", took)
		}
		w.settled()
	})
}

func TestAnElectionMovesNobody(t *testing.T) {
	inWorld(t, 3, 22, func(t *testing.T, w *world) {
		w.settled()
		changes := func() (sum uint64) {
			for _, n := range w.followers() {
				sum += n.follower.Counters()["watch_source_changes_total"]
			}
			return sum
		}
		before := changes()
		w.lead(false)
		w.within(3*time.Second, "all know that nobody leads", func() bool {
			return !slices.ContainsFunc(w.followers(), func(n *node) bool { return n.follower.Depth() < MaxDepth })
		})
		time.Sleep(20 * time.Second)
		w.lead(true)
		w.put("a", "1")
		if took := w.agreed(time.Second, w.followers()); took > 250*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		w.settled()
		if got := changes() - before; got != 0 {
			t.Errorf("%d nodes changed their source", got)
		}
	})
}

func TestARegionThatIsCutOffCatchesUpWhenItIsHealed(t *testing.T) {
	inWorld(t, 3, 22, func(t *testing.T, w *world) {
		w.settled()
		in, out := w.followers("r4"), w.followers("r0", "r1", "r2", "r3")
		cut := func(n *node, f func(a, b string)) {
			for _, o := range w.nodes {
				if o.region != n.region {
					f(n.host.Name(), o.host.Name())
				}
			}
		}
		for _, n := range in {
			cut(n, w.in.Cut)
		}
		w.put("a", "1")
		w.agreed(time.Second, out)
		time.Sleep(5 * time.Minute)
		w.put("a", "2")
		for _, n := range in {
			if got := n.state.Get().Revision; got != 0 {
				t.Errorf("%s has revision %d", n.host.Name(), got)
			}
			cut(n, w.in.Heal)
		}
		took := w.agreed(30*time.Second, in)
		t.Logf("the region has it %v after it was healed", took)
		for _, n := range in {
			if got := n.follower.Counters()["watch_snapshots_received_total"]; got != 1 {
				t.Errorf("%s took %d snapshots: it did not resume", n.host.Name(), got)
			}
		}
	})
}

func TestARegionThatReachesNoVoterIsFedByAnother(t *testing.T) {
	inWorld(t, 3, 22, func(t *testing.T, w *world) {
		w.settled()
		in := w.followers("r4")
		for _, n := range in {
			for _, o := range w.nodes {
				if o.region != n.region && o.region != "r3" {
					w.in.Cut(n.host.Name(), o.host.Name())
				}
			}
		}
		w.put("a", "1")
		took := w.agreed(time.Minute, in)
		t.Logf("the region has it after %v", took)
		w.put("a", "2")
		w.agreed(time.Second, in)
	})
}

func TestAfterAWhileAFollowerGoesBackToWhoIsBetterPlaced(t *testing.T) {
	inWorld(t, 3, 17, func(t *testing.T, w *world) {
		w.settled()
		head := w.named(w.followers("r3")[0].follower.Source())
		if head.voter {
			head = w.followers("r3")[0]
		}
		head.kill()
		time.Sleep(time.Minute)
		head.restart()
		time.Sleep(3 * time.Minute)
		for _, n := range w.followers("r3") {
			if n != head && n.follower.Source() != head.host.Name() {
				t.Errorf("%s follows %s", n.host.Name(), n.follower.Source())
			}
		}
	})
}

func TestASourceThatIsBehindTheOthersIsLeft(t *testing.T) {
	inWorld(t, 2, 1, func(t *testing.T, w *world) {
		w.settled()
		w.gossips = true
		n := w.nodes[2]
		stuck := w.named(n.follower.Source())
		other := w.nodes[0]
		if other == stuck {
			other = w.nodes[1]
		}
		w.state = with(t, w.state, store.Change{Put: []store.Object{object("k", "a", "1")}})
		other.state.Set(w.state) // stuck believes that it hears the leader, and gets nothing
		time.Sleep(patience + 2*time.Second)
		if n.follower.Source() != stuck.host.Name() {
			t.Error("it was left before anybody knew of more")
		}
		w.mu.Lock()
		w.newest = w.state.Revision
		w.mu.Unlock()
		took := w.agreed(10*time.Second, []*node{n})
		t.Logf("it has it after %v", took)
		if took < patience-beatEvery || took > patience+2*beatEvery {
			t.Errorf("it was left after %v", took)
		}
	})
}

func TestARevisionThatNobodyHasMovesNobody(t *testing.T) {
	inWorld(t, 2, 4, func(t *testing.T, w *world) {
		w.settled()
		w.mu.Lock()
		w.newest = 1 << 40 // somebody lies
		w.mu.Unlock()
		time.Sleep(5 * time.Minute)
		for _, n := range w.followers() {
			if c := n.follower.Counters(); c["watch_source_changes_total"] > 2 || c["watch_source_lost_total"] != 0 || c["watch_dials_total"] > 150 {
				t.Errorf("%s counted %v", n.host.Name(), c)
			}
		}
	})
}

func TestASlowReaderStallsOnlyItself(t *testing.T) {
	inWorld(t, 1, 4, func(t *testing.T, w *world) {
		w.settled()
		host := w.in.Host("slow", places[0], netip.MustParseAddr("10.9.9.9"))
		conn := w.dial(host, w.nodes[0])
		fr := testFrames(conn)
		must(t, fr.write(kindHello, []byte(`{"fresh":true}`)))
		for i := range 20 { // and does not read
			w.put("a", fmt.Sprint(i, string(random(200_000))))
			if took := w.agreed(5*time.Second, w.followers()); took > 2*time.Second {
				t.Errorf("the others waited %v", took)
			}
			time.Sleep(500 * time.Millisecond)
		}
		c := w.nodes[0].Server.Counters()
		if c["watch_held_bytes"] > 3<<20 {
			t.Errorf("%d bytes are held for it", c["watch_held_bytes"])
		}
		time.Sleep(2 * writeTimeout)
		c = w.nodes[0].Server.Counters()
		if c["watch_streams_stalled_total"] != 1 || c["watch_streams"] != 4 || c["watch_held_bytes"] > maxIdle*maxIdleBytes {
			t.Errorf("counted %v", c)
		}
	})
}

func TestAFollowerThatSaysNothingIsEnded(t *testing.T) {
	for name, say := range map[string]func(fr *frames) error{
		"no hello": func(*frames) error { return nil },
		"a hello that does not end": func(fr *frames) error {
			for range 20 {
				if _, err := fr.conn.Write([]byte{kindHello}[:1]); err != nil {
					return nil
				}
				time.Sleep(time.Second)
			}
			return errors.New("it may go on")
		},
		"no ack": func(fr *frames) error {
			if err := fr.write(kindHello, []byte(`{}`)); err != nil {
				return err
			}
			_, err := io.Copy(io.Discard, fr.conn)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, 0, func(t *testing.T, w *world) {
				host := w.in.Host("mute", places[0], netip.MustParseAddr("10.9.9.9"))
				fr := testFrames(w.dial(host, w.nodes[0]))
				if err := say(fr); err != nil && !strings.Contains(err.Error(), "reset") {
					t.Error(err)
				}
				time.Sleep(ackSilence + time.Second)
				if c := w.nodes[0].Server.Counters(); c["watch_streams"] != 0 {
					t.Errorf("counted %v", c)
				}
			})
		})
	}
}

func TestAFollowerThatSpeaksNonsenseIsEndedAndCounted(t *testing.T) {
	hello := appendFrame(nil, kindHello, []byte(`{"name":"x"}`))
	for name, say := range map[string][]byte{
		"another protocol":       []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"a frame too long":       {kindHello, 0xff, 0xff, 0xff, 0xff},
		"an unknown frame":       appendFrame(nil, 77, nil),
		"no hello first":         appendFrame(nil, kindAck, make([]byte, 16)),
		"a hello too long":       appendFrame(nil, kindHello, []byte(`{"name":"`+strings.Repeat("x", maxHello)+`"}`)),
		"a hello that is none":   appendFrame(nil, kindHello, []byte(`}`)),
		"two hellos":             slices.Concat(hello, hello),
		"an ack too short":       slices.Concat(hello, appendFrame(nil, kindAck, []byte{1})),
		"what a source would":    slices.Concat(hello, appendFrame(nil, kindSnapshot, make([]byte, 32))),
		"frames then a bad byte": slices.Concat(hello, appendFrame(nil, kindAck, make([]byte, 16)), []byte{0, 0, 0, 0, 0}),
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, 1, func(t *testing.T, w *world) {
				w.settled()
				host := w.in.Host("mad", places[0], netip.MustParseAddr("10.9.9.9"))
				conn := w.dial(host, w.nodes[0])
				if _, err := conn.Write(say); err != nil {
					t.Fatal(err)
				}
				go io.Copy(io.Discard, conn)
				time.Sleep(time.Second)
				c := w.nodes[0].Server.Counters()
				if c["watch_nonsense_total"] != 1 || c["watch_streams"] != 1 {
					t.Errorf("counted %v", c)
				}
				w.put("a", "1")
				w.agreed(time.Second, w.followers())
			})
		})
	}
}

func TestFramesOfALaterReleaseArePassedOver(t *testing.T) {
	inWorld(t, 1, 1, func(t *testing.T, w *world) {
		host := w.in.Host("new", places[0], netip.MustParseAddr("10.9.9.9"))
		fr := testFrames(w.dial(host, w.nodes[0]))
		must(t, fr.write(kindOptional|3, []byte("what is to come")))
		must(t, fr.write(kindHello, []byte(`{"name":"new","fresh":true,"colour":"red"}`)))
		must(t, fr.write(kindOptional|3, nil))
		must(t, fr.write(kindAck, make([]byte, 40)))
		kinds := ""
		for range 4 {
			kind, _, err := fr.read()
			must(t, err)
			kinds += fmt.Sprint(kind, " ")
		}
		if kinds != "1 4 6 7 " {
			t.Errorf("got frames %s", kinds)
		}
	})
}

// TestEditsGoToThoseWhoReadThem has a follower of this release and one of a release before that says of no format that it reads it.
func TestEditsGoToThoseWhoReadThem(t *testing.T) {
	text := func(value int) string {
		var b strings.Builder
		for i := range 500 {
			fmt.Fprintf(&b, "  - {name: host-%d, type: A, values: [192.0.2.%d]}\n", i, i*value%251)
		}
		return b.String() + fmt.Sprintf("  - {name: last, type: A, values: [203.0.113.%d]}\n", value)
	}
	inWorld(t, 1, 2, func(t *testing.T, w *world) {
		zone := text(1)
		w.put("zone", zone)
		w.agreed(time.Minute, w.nodes)
		from := w.state
		hello := func(reads string) []byte {
			return fmt.Appendf(nil, `{"name":"x%d","position":{"spec":%d,"own":%d},"specSum":%d,"ownSum":%d%s}`, len(reads),
				from.Position().Spec, from.Position().Own, from.Sum(), from.Own.Sum(), reads)
		}
		host := w.in.Host("x", places[0], netip.MustParseAddr("10.9.9.9"))
		speak := func(reads string) *frames {
			fr := testFrames(w.dial(host, w.nodes[0]))
			must(t, fr.write(kindHello, hello(reads)))
			return fr
		}
		now, before := speak(fmt.Sprintf(`,"reads":%d`, store.Format)), speak("")
		w.put("zone", zone[:len(zone)-4]+"9]}\n")
		w.agreed(time.Minute, w.nodes)
		for _, test := range []struct {
			fr    *frames
			edits bool
		}{{now, true}, {before, false}} {
			kind, payload, err := test.fr.read()
			for kind != kindPart && err == nil {
				kind, payload, err = test.fr.read()
			}
			must(t, err)
			d, err := store.DecodeDelta(payload)
			must(t, err)
			if edits := payload[0] == store.Format; edits != test.edits || edits && len(payload) > 500 {
				t.Errorf("there are edits: %v, in %d bytes", edits, len(payload))
			}
			next, err := from.WithDelta(d)
			must(t, err)
			if next.Sum() != w.state.Sum() {
				t.Error("it leads elsewhere")
			}
			test.fr.conn.Close()
		}
	})
}

// source is a machine that speaks by a script to all who dial it. A world has at most one.
func (w *world) source(name string, speak func(conn net.Conn, fr *frames)) Source {
	w.t.Helper()
	host := w.in.Host(name, places[0], netip.MustParseAddr("10.8.0.1"))
	l, err := host.Listen("tcp", ":7947")
	must(w.t, err)
	w.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				speak(conn, testFrames(conn))
			}()
		}
	}()
	return Source{name, netip.AddrPortFrom(host.Addr(), port).String()}
}

func TestASourceThatSpeaksNonsenseIsLeftForTheNext(t *testing.T) {
	state := with(t, begin(t), store.Change{Put: []store.Object{object("k", "a", "1")}})
	later := with(t, state, store.Change{Put: []store.Object{object("k", "b", "1")}})
	d, _ := later.Since(state.Position())
	delta, err := store.EncodeDelta(d)
	must(t, err)
	snapshot := snapshotOf(t, state)
	flipped := func(b []byte, i int) []byte {
		b = bytes.Clone(b)
		b[i] ^= 1
		return b
	}
	good := beat{Depth: 0, Position: later.Position()}.append(nil)
	for name, say := range map[string][]byte{
		"nothing":                 nil,
		"another protocol":        []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"a beat too short":        appendFrame(nil, kindBeat, good[:16]),
		"no beat first":           snapshot,
		"a hello":                 slices.Concat(appendFrame(nil, kindBeat, good), appendFrame(nil, kindHello, []byte(`{}`))),
		"a part of nothing":       slices.Concat(appendFrame(nil, kindBeat, good), appendFrame(nil, kindPart, []byte(`{}`))),
		"a head too short":        slices.Concat(appendFrame(nil, kindBeat, good), appendFrame(nil, kindDelta, nil)),
		"a snapshot of nothing":   slices.Concat(appendFrame(nil, kindBeat, good), framed(kindSnapshot, headOf(state), nil)),
		"a snapshot of nonsense":  slices.Concat(appendFrame(nil, kindBeat, good), framed(kindSnapshot, headOf(state), random(1000))),
		"another checksum":        slices.Concat(appendFrame(nil, kindBeat, good), flipped(snapshot, len(snapshot)-1)),
		"another sum":             slices.Concat(appendFrame(nil, kindBeat, good), flipped(snapshot, frameHead+16)),
		"a delta of nonsense":     slices.Concat(appendFrame(nil, kindBeat, good), snapshot, framed(kindDelta, headOf(later), random(1000))),
		"a delta first":           slices.Concat(appendFrame(nil, kindBeat, good), framed(kindDelta, headOf(later), delta)),
		"a beat within a message": slices.Concat(appendFrame(nil, kindBeat, good), snapshot[:frameHead+32], appendFrame(nil, kindBeat, good)),
		"a delta that leads elsewhere": slices.Concat(appendFrame(nil, kindBeat, good), snapshot,
			framed(kindDelta, head{Position: later.Position()}, delta)),
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, 0, func(t *testing.T, w *world) {
				bad := w.source("bad", func(conn net.Conn, _ *frames) {
					conn.Write(say)
					io.Copy(io.Discard, conn)
				})
				w.agree(with(t, state, store.Change{Put: []store.Object{object("k", "c", "3")}}))
				n := w.add(1, false)
				n.start()
				n.stop()
				cfg := n.config()
				order := cfg.Sources
				cfg.Sources = func() []Source { return append([]Source{bad}, order()...) }
				n.follower = NewFollower(cfg)
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan bool)
				go func() {
					n.follower.Run(ctx)
					close(ended)
				}()
				took := w.agreed(20*time.Second, []*node{n})
				cancel()
				<-ended
				c := n.follower.Counters()
				t.Logf("after %v; %v", took, c)
				if c["watch_source_nonsense_total"]+c["watch_source_silent_total"]+c["watch_source_mismatches_total"]+
					c["watch_source_lost_total"]+c["watch_dials_failed_total"] == 0 {
					t.Errorf("counted %v", c)
				}
			})
		})
	}
}

func TestTheSamePositionWithAnotherSumIsMendedByASnapshot(t *testing.T) {
	for name, ahead := range map[string]int{"at the hello": 0, "by a delta": 1, "by a delta over many": 5} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, 0, func(t *testing.T, w *world) {
				n := w.add(1, false)
				n.state.Set(with(t, w.state, store.Change{Put: []store.Object{object("k", "a", "from another world")}}))
				w.put("a", "1")
				for i := range ahead {
					w.put("b", fmt.Sprint(i))
				}
				n.start()
				w.agreed(5*time.Second, []*node{n})
				c := n.follower.Counters()
				if c["watch_snapshots_received_total"] != 1 || c["watch_source_mismatches_total"] != uint64(min(ahead, 1)) {
					t.Errorf("counted %v", c)
				}
				w.put("b", "last")
				w.agreed(time.Second, []*node{n})
			})
		})
	}
}

func TestWhereHistoriesHavePartedTheSourceIsRight(t *testing.T) {
	inWorld(t, 1, 0, func(t *testing.T, w *world) {
		n := w.add(1, false)
		n.state.Set(with(t, w.state, store.Change{Space: store.Own, Put: []store.Object{object("Node", "lost", "x")}}))
		w.put("a", "1") // neither is above the other
		n.start()
		w.agreed(5*time.Second, []*node{n})
	})
}

func TestANodeThatIsAheadOfItsSourceWaits(t *testing.T) {
	inWorld(t, 1, 0, func(t *testing.T, w *world) {
		n := w.add(1, false)
		later := with(t, w.state, store.Change{Put: []store.Object{object("k", "a", "1")}})
		n.state.Set(later)
		n.start()
		time.Sleep(10 * time.Second)
		if c := n.follower.Counters(); c["watch_snapshots_received_total"]+c["watch_deltas_received_total"] != 0 {
			t.Errorf("counted %v", c)
		}
		w.agree(with(t, later, store.Change{Put: []store.Object{object("k", "a", "2")}}))
		w.agreed(5*time.Second, []*node{n})
		if c := n.follower.Counters(); c["watch_snapshots_received_total"] != 0 {
			t.Errorf("counted %v", c)
		}
	})
}

func TestFollowersInACircleFindOut(t *testing.T) {
	inWorld(t, 1, 0, func(t *testing.T, w *world) {
		var ring []*node
		for i := range 3 {
			n := w.add(i+1, false)
			n.state.Set(w.state)
			ring = append(ring, n)
		}
		voter := []Source{{"n00", netip.AddrPortFrom(w.nodes[0].host.Addr(), port).String()}}
		var reachable atomic.Bool
		for i, n := range ring {
			n.start()
			n.stop()
			before := ring[(i+2)%3]
			cfg := n.config()
			cfg.Sources = func() []Source {
				sources := []Source{{before.host.Name(), netip.AddrPortFrom(before.host.Addr(), port).String()}}
				if reachable.Load() {
					return append(sources, voter...)
				}
				return sources
			}
			n.follower = NewFollower(cfg)
			listener, err := n.host.Listen("tcp", fmt.Sprint(":", port))
			must(t, err)
			n.Server = Serve(ServerConfig{Listener: listener, State: n.state, Depth: n.follower.Depth})
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan bool)
			go func() {
				n.follower.Run(ctx)
				close(ended)
			}()
			n.end = func() {
				cancel()
				<-ended
				n.Server.Close()
			}
		}
		time.Sleep(time.Minute)
		for _, n := range ring {
			if n.follower.Depth() != MaxDepth {
				t.Errorf("%s has depth %d", n.host.Name(), n.follower.Depth())
			}
		}
		reachable.Store(true)
		w.put("a", "1")
		took := w.agreed(time.Minute, ring)
		t.Logf("the circle is open after %v", took)
		w.settled()
	})
}

func TestOneNodeCannotTakeAllStreams(t *testing.T) {
	inWorld(t, 1, 1, func(t *testing.T, w *world) {
		w.settled()
		host := w.in.Host("greedy", places[0], netip.MustParseAddr("10.9.9.9"))
		for range 10 {
			fr := testFrames(w.dial(host, w.nodes[0]))
			must(t, fr.write(kindHello, []byte(`{"name":"greedy"}`)))
			time.Sleep(50 * time.Millisecond)
		}
		c := w.nodes[0].Server.Counters()
		if c["watch_streams"] != maxStreamsOfOne+1 || c["watch_streams_superseded_total"] != 10-maxStreamsOfOne {
			t.Errorf("counted %v", c)
		}
	})
}

func TestBeyondItsBoundAServerRefusesStreamsAndKeepsThoseItHas(t *testing.T) {
	inWorld(t, 1, 1, func(t *testing.T, w *world) {
		w.settled()
		for i := range maxStreams + 10 {
			host := w.in.Host(fmt.Sprint("h", i), places[0], netip.AddrFrom4([4]byte{10, 9, byte(i / 250), byte(i%250 + 1)}))
			w.dial(host, w.nodes[0])
		}
		time.Sleep(100 * time.Millisecond)
		if c := w.nodes[0].Server.Counters(); c["watch_streams"] != maxStreams || c["watch_streams_refused_total"] != 11 {
			t.Errorf("counted %v", c)
		}
		w.put("a", "1")
		w.agreed(time.Second, w.followers())
		time.Sleep(helloTimeout)
		if c := w.nodes[0].Server.Counters(); c["watch_streams"] != 1 {
			t.Errorf("counted %v", c)
		}
	})
}

func TestCatchUpTakesTheNewestOfThoseThatAnswer(t *testing.T) {
	inWorld(t, 3, 0, func(t *testing.T, w *world) {
		w.lead(false) // in an outage
		for i := range 3 {
			w.put("a", fmt.Sprint(i))
			w.nodes[i].state.Set(w.state)
		}
		w.nodes[0].state.Set(begin(t))
		w.nodes[1].state.Set(begin(t))
		n := w.add(3, false)
		f := NewFollower(n.config())
		start := time.Now()
		must(t, f.CatchUp(t.Context()))
		if !n.has(w.state) {
			t.Errorf("it has %v", n.state.Get().Position())
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
		// There is nothing newer: that is an answer too.
		must(t, f.CatchUp(t.Context()))
		if c := f.Counters(); c["watch_snapshots_received_total"] != 1 {
			t.Errorf("counted %v", c)
		}
	})
}

func TestCatchUpGoesOnWhereOthersFail(t *testing.T) {
	inWorld(t, 3, 0, func(t *testing.T, w *world) {
		w.put("a", "1")
		bad := w.source("bad", func(conn net.Conn, fr *frames) { // promises much
			fr.write(kindBeat, beat{Position: store.Position{Spec: 99, Own: 99}}.append(nil))
			conn.Write(framed(kindSnapshot, head{}, random(100)))
			io.Copy(io.Discard, conn)
		})
		w.nodes[0].kill()
		w.mark(w.nodes[0], false)
		w.in.CutOff("n01")
		n := w.add(3, false)
		cfg := n.config()
		order := cfg.Sources
		cfg.Sources = func() []Source { return append([]Source{bad}, order()...) }
		must(t, NewFollower(cfg).CatchUp(t.Context()))
		if !n.has(w.state) {
			t.Errorf("it has %v", n.state.Get().Position())
		}
	})
}

func TestCatchUpEndsWithItsContextOrWhenAllHaveFailed(t *testing.T) {
	inWorld(t, 3, 0, func(t *testing.T, w *world) {
		for _, v := range w.nodes {
			w.in.CutOff(v.host.Name())
		}
		n := w.add(3, false)
		f := NewFollower(n.config())
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		start := time.Now()
		if err := f.CatchUp(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 3*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		for _, v := range w.nodes {
			w.in.Rejoin(v.host.Name())
			v.kill()
			w.mark(v, false)
		}
		if err := f.CatchUp(t.Context()); err == nil || !strings.Contains(err.Error(), "no source answers") {
			t.Errorf("%v", err)
		}
		for _, v := range w.nodes {
			w.mark(v, true)
		}
		if err := f.CatchUp(t.Context()); err == nil || !strings.Contains(err.Error(), "no source is known") {
			t.Errorf("%v", err)
		}
	})
}

func TestASourceThatHasNothingYetIsWaitedFor(t *testing.T) {
	inWorld(t, 1, 1, func(t *testing.T, w *world) {
		state := w.state
		n := w.nodes[1]
		n.stop()
		w.nodes[0].state.Set(nil)
		n.state.Set(nil)
		n.start()
		if err := n.follower.CatchUp(contextFor(t, 3*time.Second)); err == nil {
			t.Error("a source without a state is no answer")
		}
		time.Sleep(time.Second)
		w.nodes[0].state.Set(state)
		w.agreed(5*time.Second, []*node{n})
		w.settled()
	})
}

func TestManyNewNodesShareOneSnapshot(t *testing.T) {
	inWorld(t, 1, 0, func(t *testing.T, w *world) {
		w.agree(large(t, w.state, 20_000))
		var all []*node
		start := time.Now()
		for i := range 10 {
			n := w.add(5*(i+1), false) // all in the voter's region
			n.start()
			all = append(all, n)
		}
		for i := range 20 {
			w.put("changes", fmt.Sprint(i))
			time.Sleep(20 * time.Millisecond)
		}
		w.agreed(time.Minute, all)
		c := w.nodes[0].Server.Counters()
		t.Logf("10 nodes have 20,000 objects %v after they started; %v", time.Since(start), c)
		if c["watch_snapshots_sent_total"] != 10 || c["watch_held_bytes"] > maxIdle*maxIdleBytes {
			t.Errorf("counted %v", c)
		}
		if c["watch_encoded_total"] > 45 {
			t.Errorf("encoded %d messages", c["watch_encoded_total"])
		}
	})
}

func (w *world) dial(from *memnet.Host, to *node) net.Conn {
	w.t.Helper()
	conn, err := from.Dial(w.t.Context(), "tcp", netip.AddrPortFrom(to.host.Addr(), port).String())
	must(w.t, err)
	w.t.Cleanup(func() { conn.Close() })
	return conn
}

func testFrames(conn net.Conn) *frames {
	return newFrames(conn, time.Hour, func(int, int) {})
}

func contextFor(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	chance := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(chance.UintN(256))
	}
	return b
}

func framed(kind byte, h head, body []byte) []byte {
	f := newFramer(kind, h)
	f.Write(body)
	return f.end()
}

func snapshotOf(t testing.TB, s *store.State) []byte {
	t.Helper()
	f := newFramer(kindSnapshot, headOf(s))
	must(t, store.WriteState(f, s))
	return f.end()
}

// large adds many objects to a state.
func large(t testing.TB, s *store.State, n int) *store.State {
	t.Helper()
	for i := 0; i < n; i += 10_000 {
		var c store.Change
		for j := i; j < min(n, i+10_000); j++ {
			c.Put = append(c.Put, object("TargetGroup", fmt.Sprintf("group-%06d", j), fmt.Sprintf(
				"kind: TargetGroup\nname: group-%06d\nprotocol: HTTP\nport: 8080\ntargets:\n- address: 10.%d.%d.%d\n", j, j>>16, j>>8&255, j&255)))
		}
		s = with(t, s, c)
	}
	return s
}
