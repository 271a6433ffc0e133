package report

import (
	"bytes"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/wire"
)

// statementOf is what a node that knows an origin says after a change, as it arrives.
func statementOf(t interface{ Fatal(...any) }, o *origin, from uint64, room int) statement {
	b, to := appendSaid(nil, 7, o, from, room)
	items, err := decodeFrame(b)
	if err != nil || len(items) != 1 || items[0].number != 7 || items[0].said.to != to {
		t.Fatal("decoded to", items, err)
	}
	s := items[0].said
	s.life = o.life
	return s
}

// One node says things and forgets removals; others tell each other what they know of it, in pieces of any size, lose it all, hear things
// twice and out of order. When all have heard all, all show what it says.
func TestTheNewestWinsInWhateverOrderItComes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Now()
		all := []*origin{newOrigin("n", 1), newOrigin("n", 1), newOrigin("n", 1), newOrigin("n", 1)}
		under := map[[2]int]uint64{}
		said := all[0]
		said.have = 1
		want := map[string]string{}
		var old []statement
		tell := func(a, b, room int, from uint64) {
			if all[a].life == 0 || all[a].have == 0 || from >= all[a].have {
				return
			}
			if from < all[a].floor && under[[2]int{a, b}] != all[a].floor {
				from = 0
			}
			under[[2]int{a, b}] = all[a].floor
			s := statementOf(t, all[a], from, room)
			old = append(old, s)
			if b > 0 {
				if what, _ := all[b].take(s, now); what == lacking {
					delete(under, [2]int{a, b}) // it asks
				}
			}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Minute)
			a, b := rapid.IntRange(0, 3).Draw(t, "from"), rapid.IntRange(1, 3).Draw(t, "to")
			key := string(rune('a' + rapid.IntRange(0, 5).Draw(t, "key")))
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				all[b] = newOrigin("n", 1)
				for i := range 4 {
					delete(under, [2]int{i, b})
				}
			case 1:
				all[a].forgetRemoved(now.Add(-3 * time.Minute))
			case 2:
				if len(old) > 0 {
					all[b].take(rapid.SampledFrom(old).Draw(t, "replayed"), now)
				}
			case 3, 4:
				tell(a, b, rapid.IntRange(0, 100).Draw(t, "room"), all[b].have)
			case 5:
				said.begin(said.life + 1)
				said.have = 1
				clear(want)
				clear(under)
			case 6:
				if r := said.find(key); r != nil && !r.removed {
					said.put(record{key: key, seq: said.have + 1, removed: true}, now)
					said.have++
					delete(want, key)
				}
			default:
				value := fmt.Sprint(rapid.IntRange(0, 9).Draw(t, "value"))
				said.put(record{key: key, seq: said.have + 1, value: []byte(value)}, now)
				said.have++
				want[key] = value
			}
		}
		for b := 1; b < 4; b++ {
			for tries := 0; all[b].life < said.life || all[b].have < said.have; tries++ {
				from := all[b].have
				if all[b].life < said.life {
					from = 0
				}
				if tries > 100 {
					t.Fatalf("no end: it has %d of %d", all[b].have, said.have)
				}
				tell(0, b, 20, from)
			}
			got := map[string]string{}
			for k, v := range all[b].values() {
				got[k] = string(v)
			}
			if !maps.Equal(got, want) {
				t.Fatalf("%d shows %v, want %v", b, got, want)
			}
			bytes := 0
			for _, r := range all[b].log {
				if !r.old {
					bytes += len(r.key) + len(r.value)
				}
			}
			if bytes != all[b].bytes {
				t.Fatalf("%d bytes are counted, there are %d", all[b].bytes, bytes)
			}
		}
	})
}

func TestANodesWordsAreBounded(t *testing.T) {
	now := time.Now()
	o := newOrigin("n", 1)
	put := func(key string, value []byte) error {
		err := o.put(record{key: key, seq: o.have + 1, value: value, removed: value == nil}, now)
		if err == nil {
			o.have++
		}
		return err
	}
	value := make([]byte, MaxValue)
	n := 0
	for put(fmt.Sprintf("%05d", n), value) == nil {
		n++
	}
	if want := MaxBytes / (MaxValue + 5); n != want {
		t.Errorf("%d large values fit, want %d", n, want)
	}
	if put("00000", nil) != nil || put("more", value[:MaxValue-4]) != nil {
		t.Error("what was removed left no room")
	}
	o = newOrigin("n", 1)
	for i := range 3 * MaxKeys {
		if put(fmt.Sprint(i), []byte{}) != nil || put(fmt.Sprint(i), nil) != nil {
			t.Fatalf("after %d keys that were removed there is no room", i)
		}
	}
	if len(o.log) > 3*MaxKeys || o.len() > MaxKeys {
		t.Errorf("%d records are kept, %d of them current", len(o.log), o.len())
	}
	for i := range MaxKeys {
		if err := put(fmt.Sprint("k", i), []byte{}); err != nil {
			t.Fatal(err)
		}
	}
	if put("one more", []byte{}) == nil || put("k0", []byte("known keys still change")) != nil {
		t.Error("the number of keys has no bound, or no end")
	}
}

func FuzzDecodeFrame(f *testing.F) {
	o := newOrigin("n", 1<<60)
	for i := range 40 {
		o.put(record{key: fmt.Sprint("key", i%30), seq: uint64(2 + i*i), value: bytes.Repeat([]byte("v"), i), removed: i%7 == 6}, time.Now())
		o.have = uint64(3 + i*i)
	}
	b := appendNode(nil, 3, "n", o.life)
	b, _ = appendSaid(b, 3, o, 10, 200)
	b = appendHas(b, []mark{{3, 77}, {1, 1 << 40}})
	b = appendWant(b, 3, 9)
	b = append(b, itemWish, byte(region), itemReady)
	b = wire.Append(append(b, itemForgot), strings.Repeat("n", MaxName))
	f.Add(b)
	f.Add([]byte{itemHas, 200, 1, 0})
	f.Add([]byte{itemSaid, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		items, err := decodeFrame(b)
		if err != nil {
			return
		}
		for _, i := range items {
			last := i.said.from
			for _, r := range i.said.records {
				if r.seq <= last || r.seq > i.said.to || r.key == "" || len(r.key) > MaxKey || len(r.value) > MaxValue {
					t.Fatalf("%+v of %d to %d after %d", r, i.said.from, i.said.to, last)
				}
				last = r.seq
			}
			for _, m := range i.has {
				if m.number < 0 || m.number >= maxNodes {
					t.Fatalf("%+v", m)
				}
			}
			if i.number < 0 || i.number >= maxNodes || len(i.name) > MaxName {
				t.Fatalf("%+v", i)
			}
		}
	})
}

// What a node hears on a stream can't break it, whatever it is.
func FuzzHear(f *testing.F) {
	b := appendNode(nil, 3, "n", 5)
	b = append(b, itemSaid, 3, 0, 4, 0, 1, 1, 1, 'k', 0, 1, 'v')
	b = appendHas(b, []mark{{3, 77}})
	b = appendWant(b, 3, 1)
	b = append(b, itemWish, byte(everything), itemReady)
	b = wire.Append(append(b, itemForgot), "n")
	b = appendNode(b, 0, "self", 1<<40)
	b = appendHas(b, []mark{{0, 5}, {3, 99}})
	f.Add(b, b)
	f.Fuzz(func(t *testing.T, first, second []byte) {
		r := bare("self", 1<<30)
		now := time.Now()
		r.peers["peer"], r.peers["other"] = &peer{name: "peer"}, &peer{name: "other"}
		peer, other := r.newStream(nil, "peer", true, now), r.newStream(nil, "other", false, now)
		for i, b := range [][]byte{first, second, first} {
			items, err := decodeFrame(b)
			if err != nil {
				continue
			}
			s := []*stream{peer, other}[i%2]
			r.hear(s, items)
			for _, s := range []*stream{peer, other} {
				for range 3 {
					now = now.Add(time.Second)
					frame := s.compose(nil, now)
					if _, err := decodeFrame(frame); err != nil || len(frame) > maxFrame {
						t.Fatalf("it says %d bytes: %v", len(frame), err)
					}
				}
			}
			r.sweep(now)
		}
		for _, o := range r.slots {
			if o != nil && o.live && o != r.self {
				t.Fatalf("%s lives because of what was said", o.name)
			}
		}
		if r.self.len() != 0 {
			t.Fatal("it says what others have said it said")
		}
	})
}
