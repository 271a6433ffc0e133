package gossip

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var records = []record{
	{node: "icn1-a", life: 1762000000000000000, seq: 1, key: "target/web/10.0.0.1:80", value: []byte("healthy")},
	{node: "n", seq: maxVersion - 1, key: "k", value: []byte{}},
	{node: "n", life: 3, seq: 2, key: "k", removed: true},
	{node: string(make([]byte, MaxName)), key: string(make([]byte, MaxKey)), value: make([]byte, MaxValue)},
}

// sample is a table of some nodes.
func sample() *table {
	t := newTable("self", 5)
	now := time.Now()
	t.publish("mine", []byte("value"), now)
	for _, r := range records {
		t.take(r, now)
	}
	return t
}

func TestAMessageIsReadAsItWasWritten(t *testing.T) {
	for _, r := range records {
		got, err := decodeMessage(encodeMessage(r))
		if diff := cmp.Diff(r, got, cmp.AllowUnexported(record{})); err != nil || diff != "" {
			t.Errorf("%v (-want +got)\n%s", err, diff)
		}
	}
}

func TestAStateIsReadAsItWasWritten(t *testing.T) {
	from := sample()
	state, err := decodeState(from.encode(all))
	if err != nil {
		t.Fatal(err)
	}
	to := newTable("other", 1)
	for _, n := range state {
		s := to.open(n.node, n.life, time.Time{})
		for _, r := range n.records {
			if err := s.put(r, time.Time{}); err != nil {
				t.Error(err)
			}
		}
	}
	delete(to.nodes, "other")
	if diff := cmp.Diff(contents(from), contents(to)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// contents is what a table holds, as messages in order.
func contents(t *table) []string {
	var all []string
	for node, s := range t.nodes {
		for key, v := range s.values {
			all = append(all, string(encodeMessage(record{node: node, life: s.life, seq: v.seq, key: key, value: v.data, removed: v.removed})))
		}
	}
	slices.Sort(all)
	return all
}

func TestWhatIsNoMessageIsRefused(t *testing.T) {
	good := encodeMessage(records[0])
	for n := range good {
		if _, err := decodeMessage(good[:n]); err == nil {
			t.Errorf("the first %d bytes of a message were taken for one", n)
		}
	}
	for name, b := range map[string][]byte{
		"trailing bytes":  append(bytes.Clone(good), 0),
		"another version": append([]byte{2}, good[1:]...),
		"an empty name":   encodeMessage(record{key: "k"}),
		"an empty key":    encodeMessage(record{node: "n"}),
		"a long name":     encodeMessage(record{node: string(make([]byte, MaxName+1)), key: "k"}),
		"a long key":      encodeMessage(record{node: "n", key: string(make([]byte, MaxKey+1))}),
		"a long value":    encodeMessage(record{node: "n", key: "k", value: make([]byte, MaxValue+1)}),
		"a life too late": encodeMessage(record{node: "n", life: maxVersion, key: "k"}),
		"a seq too high":  encodeMessage(record{node: "n", seq: maxVersion, key: "k"}),
		"an unknown flag": append(encodeMessage(record{node: "n", key: "k", removed: true})[:7], 2),
	} {
		if r, err := decodeMessage(b); err == nil {
			t.Errorf("%s: taken for %+v", name, r)
		}
	}
}

func TestWhatIsNoStateIsRefused(t *testing.T) {
	good := newTable("self", 5).encode(all)
	for n := range good {
		if state, err := decodeState(good[:n]); err == nil && n != 1 { // a version alone is a state of nobody
			t.Errorf("the first %d bytes of a state were taken for %v", n, state)
		}
	}
	many := []byte{encodingVersion}
	for range maxNodes + 1 {
		many = append(many, 1, 'n', 0, 0)
	}
	for name, b := range map[string][]byte{
		"trailing bytes":  append(bytes.Clone(good), 0),
		"another version": append([]byte{2}, good[1:]...),
		"too many keys":   {encodingVersion, 1, 'n', 0, 0xff, 0xff, 0x7f},
		"too many nodes":  many,
		"too long":        make([]byte, maxState+1),
	} {
		if state, err := decodeState(b); err == nil {
			t.Errorf("%s: taken for %d nodes", name, len(state))
		}
	}
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte{})
	for _, r := range records {
		f.Add(encodeMessage(r))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeMessage(b)
		if err != nil {
			return
		}
		again, err := decodeMessage(encodeMessage(r))
		if diff := cmp.Diff(r, again, cmp.AllowUnexported(record{})); err != nil || diff != "" {
			t.Fatalf("%v (-want +got)\n%s", err, diff)
		}
		sample().take(r, time.Now())
	})
}

func FuzzState(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{encodingVersion})
	f.Add(newTable("self", 5).encode(all))
	f.Add(sample().encode(all))
	f.Fuzz(func(t *testing.T, b []byte) {
		state, err := decodeState(b)
		if err != nil {
			return
		}
		into := sample()
		into.merge(state, time.Now())
		if _, err := decodeState(into.encode(all)); err != nil {
			t.Fatalf("what came of it can't be read: %v", err)
		}
		before := contents(into)
		into.merge(state, time.Now())
		if diff := cmp.Diff(before, contents(into)); diff != "" {
			t.Fatalf("the same state changed it again (-once +twice)\n%s", diff)
		}
	})
}
