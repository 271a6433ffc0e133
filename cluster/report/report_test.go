package report

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

func TestValuesSpreadToAll(t *testing.T) {
	for _, size := range []int{2, 5, 12, 40} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inWorld(t, size, 4, 0, func(w *world) {
					w.settle()
					first, last := w.nodes[0], w.nodes[size-1]
					first.say("target/web/10.0.0.1:80", "healthy")
					last.say("target/web/10.0.0.1:80", "unknown")
					w.within(time.Second, "all know both", func() bool {
						return know(w.nodes, first.Name, "target/web/10.0.0.1:80", "healthy") && know(w.nodes, last.Name, "target/web/10.0.0.1:80", "unknown")
					})
					first.say("target/web/10.0.0.1:80", "unhealthy")
					w.within(time.Second, "all know the newer", func() bool {
						return know(w.nodes, first.Name, "target/web/10.0.0.1:80", "unhealthy")
					})
					if err := first.Publish("target/web/10.0.0.1:80", nil); err != nil {
						t.Fatal(err)
					}
					w.within(time.Second, "all know that it is removed", func() bool { return know(w.nodes, first.Name, "target/web/10.0.0.1:80", "") })
					if _, has := last.Entries().Get()[first.Name]; has {
						t.Error("a node without values is in the snapshot")
					}
				})
			})
		})
	}
}

// bare is one that does nothing by itself.
func bare(self string, life uint64) *Reports {
	r := &Reports{
		cfg: Config{Self: self}, log: slog.New(slog.DiscardHandler), stir: make(chan struct{}, 1), origins: map[string]*origin{},
		turnedOff: map[string]bool{}, streams: map[*stream]bool{}, peers: map[string]*peer{}, stale: map[string]bool{},
	}
	r.timer = time.AfterFunc(time.Hour, func() {})
	r.timer.Stop()
	r.self = r.open(self, life, time.Now())
	r.self.live, r.self.have = true, 1
	return r
}

func TestManyChangesMakeFewSnapshots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inWorld(t, 2, 2, 0, func(w *world) {
			w.settle()
			a, b := w.nodes[0], w.nodes[1]
			b.say("other", "1")
			w.settle()
			before := [2]uint64{a.Entries().Version(), b.Entries().Version()}
			other := b.Entries().Get()[b.Name]
			for i := range 1000 {
				a.say(fmt.Sprint("key", i), "value")
				if i%10 == 0 {
					time.Sleep(10 * time.Millisecond) // a second in all
				}
			}
			w.settle()
			for i, n := range w.nodes {
				if made := n.Entries().Version() - before[i]; made > 22 || made < 15 || len(n.Entries().Get()[a.Name]) != 1000 {
					t.Errorf("%s made %d snapshots in a second, with %d values", n.Name, made, len(n.Entries().Get()[a.Name]))
				}
			}
			if maps := b.Entries().Get()[b.Name]; reflect.ValueOf(maps).Pointer() != reflect.ValueOf(other).Pointer() {
				t.Error("the map of a node that said nothing is another")
			}
		})
	})
}

func TestASnapshotDoesNotChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inWorld(t, 2, 2, 0, func(w *world) {
			a := w.nodes[0]
			a.say("key", "1")
			w.settle()
			var old []Entries
			for _, n := range w.nodes {
				old = append(old, n.Entries().Get())
			}
			value := []byte("2")
			if err := a.Publish("key", value); err != nil {
				t.Fatal(err)
			}
			value[0] = 'x'
			a.say("more", "3")
			w.settle()
			for i, e := range old {
				if string(e[a.Name]["key"]) != "1" || len(e[a.Name]) != 1 || !know(w.nodes, a.Name, "key", "2") {
					t.Errorf("the snapshot of %s says %q", w.nodes[i].Name, e[a.Name])
				}
			}
		})
	})
}

func TestTheSameValueIsNotSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inWorld(t, 12, 3, 0, func(w *world) {
			w.nodes[0].say("key", "value")
			w.settle()
			sent, version := w.total("report_statements_sent_total"), w.nodes[0].Entries().Version()
			w.nodes[0].say("key", "value")
			if err := w.nodes[0].Publish("never was", nil); err != nil {
				t.Fatal(err)
			}
			w.tell()
			w.settle()
			if n := w.total("report_statements_sent_total"); n != sent {
				t.Errorf("%d statements were sent", n-sent)
			}
			if v := w.nodes[0].Entries().Version(); v != version {
				t.Errorf("%d snapshots were published", v-version)
			}
		})
	})
}

func TestWhatIsOutOfBoundsIsRefused(t *testing.T) {
	dial := func(context.Context, string) (net.Conn, error) { return nil, errors.New("no") }
	r, err := Open(Config{Self: "self", Dial: dial})
	if err != nil {
		t.Fatal(err)
	}
	for want, err := range map[string]error{
		"value has 4097 bytes, want at most 4096": r.Publish("key", make([]byte, 4097)),
		"key has 0 bytes":                         r.Publish("", []byte("value")),
		"key has 151 bytes, want 1 to 150":        r.Publish(strings.Repeat("k", 151), []byte("value")),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error that says %q, got %v", want, err)
		}
	}
	r.Close()
	if err := r.Publish("key", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	r.SetMembers(nil)
	r.Check()
	for _, c := range []Config{{Dial: dial}, {Self: strings.Repeat("n", MaxName+1), Dial: dial}, {Self: "self"}} {
		if _, err := Open(c); err == nil {
			t.Errorf("opened %+v", c)
		}
	}
}

func TestWhoOnlyHasJoinedIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inWorld(t, 30, 5, 0, func(w *world) {
			for _, n := range w.nodes {
				n.say("key", n.Name)
			}
			w.settle()
			n := w.add()
			n.start()
			n.say("key", n.Name)
			n.SetMembers(w.peers()) // it knows them before they know it
			time.Sleep(time.Second)
			w.tell()
			w.within(2500*time.Millisecond, "it knows all, and all know it", func() bool {
				return len(n.Entries().Get()) == 31 && know(w.nodes, n.Name, "key", n.Name)
			})
		})
	})
}

func TestAllAgreeOnWhoSpeaksWithWhom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var live []Peer
		for i := range rapid.IntRange(1, 60).Draw(t, "nodes") {
			live = append(live, Peer{fmt.Sprint("n", i), fmt.Sprint("r", rapid.IntRange(0, 5).Draw(t, "region"))})
		}
		said := map[string]map[string]wish{}
		for _, p := range live {
			said[p.Name] = topology(p, live)
		}
		for a, peers := range said {
			for b := range peers {
				if _, mutual := said[b][a]; !mutual || a == b {
					t.Fatalf("%s wants %s, which does not", a, b)
				}
			}
		}
		// Whatever one says reaches all by what is asked for, without a question.
		region := map[string]string{}
		for _, p := range live {
			region[p.Name] = p.Region
		}
		for _, from := range live {
			reached, next := map[string]bool{from.Name: true}, []string{from.Name}
			for len(next) > 0 {
				at := next[0]
				next = next[1:]
				for peer := range said[at] {
					asked := said[peer][at]
					tells := at == from.Name || asked == everything || asked == 1 && region[at] == from.Region
					if tells && !reached[peer] {
						reached[peer] = true
						next = append(next, peer)
					}
				}
			}
			if len(reached) != len(live) {
				t.Fatalf("%d of %d hear %s", len(reached), len(live), from.Name)
			}
		}
	})
}
