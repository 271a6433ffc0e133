package gossip

import (
	"bytes"
	"errors"
	"strings"
	"time"
)

const (
	// maxNodes is how many nodes are known at once; others are not heard until some have gone. Gossip of full
	// state between all is not made for more.
	maxNodes = 1024
	// MaxKeys is how many keys a node may hold, those removed in the last removedFor included.
	MaxKeys = 4096
	// maxNodeBytes is how much the keys and values of a node may come to: Publish refuses more, and from
	// another node it is not taken in.
	maxNodeBytes = 1 << 20

	// removedFor is how long it is remembered that a key was removed, so that a node that has missed it can't bring
	// the value back. All nodes exchange their state many times in this time.
	removedFor = 10 * time.Minute
	// goneFor is how long what a node said is kept, hidden, after it has gone: it may have been cut off, and come back.
	goneFor = time.Minute
)

var (
	errKeys  = errors.New("too many keys")
	errBytes = errors.New("too many bytes in all values")
)

// record is one value on its way. The newest of a node and key wins: the later life of the node, and
// within it the higher seq.
type record struct {
	node    string
	life    uint64 // when the node started, in ns of Unix time: what it says supersedes all it said in an earlier life
	seq     uint64 // of the change, in that life
	key     string
	value   []byte
	removed bool
}

// table is the values by node and key. It knows no network.
type table struct {
	self  string
	seq   uint64 // of this node's newest change
	nodes map[string]*said
}

// said is what one node said in its newest life.
type said struct {
	life   uint64
	values map[string]value
	bytes  int
	goneAt time.Time         // or since when it is known without being a member
	shown  map[string][]byte // the values without those removed; nil: to be made again
}

type value struct {
	seq     uint64
	data    []byte
	removed bool
	at      time.Time // when it came to this node
}

func newTable(self string, life uint64) *table {
	return &table{self: self, nodes: map[string]*said{self: {life: life, values: map[string]value{}}}}
}

// publish makes this node's newest value of key; nil removes it.
func (t *table) publish(key string, data []byte, now time.Time) (r record, changed bool, err error) {
	own := t.nodes[t.self]
	old, has := own.values[key]
	has = has && !old.removed
	if data == nil && !has || data != nil && has && bytes.Equal(old.data, data) {
		return record{}, false, nil
	}
	r = record{node: t.self, life: own.life, seq: t.seq + 1, key: key, value: bytes.Clone(data), removed: data == nil}
	if len(own.values) >= MaxKeys {
		own.forget(now)
	}
	if err := own.put(r, now); err != nil {
		return record{}, false, err
	}
	t.seq++
	return r, true, nil
}

// What became of a record.
type outcome int

const (
	stale outcome = iota // known, or older than what is known
	fresh
	full // beyond a bound
)

// take takes in another node's value.
func (t *table) take(r record, now time.Time) outcome {
	s := t.open(r.node, r.life, now)
	if s == nil {
		return full
	}
	if old, has := s.values[r.key]; r.life < s.life || has && old.seq >= r.seq {
		return stale
	}
	if s.put(r, now) != nil {
		return full
	}
	return fresh
}

// open returns what a node says in this life, or in a later one if that is known. Nil: too many nodes.
func (t *table) open(node string, life uint64, now time.Time) *said {
	s := t.nodes[node]
	if s == nil {
		if len(t.nodes) >= maxNodes {
			return nil
		}
		s = &said{life: life, values: map[string]value{}, goneAt: now}
		t.nodes[strings.Clone(node)] = s
	}
	if life > s.life {
		s.life, s.values, s.bytes, s.shown = life, map[string]value{}, 0, nil
	}
	return s
}

func (s *said) put(r record, now time.Time) error {
	old, has := s.values[r.key]
	size := s.bytes + len(r.value) - len(old.data)
	if !has {
		size += len(r.key)
	}
	switch {
	case !has && len(s.values) >= MaxKeys:
		return errKeys
	case size > maxNodeBytes && !r.removed:
		return errBytes
	}
	s.bytes, s.shown = size, nil
	s.values[strings.Clone(r.key)] = value{seq: r.seq, data: bytes.Clone(r.value), removed: r.removed, at: now}
	return nil
}

// merge takes in what another node knows. News are the values that are to be spread.
func (t *table) merge(state []nodeState, now time.Time) (news []record, dropped int) {
	for _, n := range state {
		if n.node == t.self {
			news = append(news, t.supersede(n)...)
			continue
		}
		s := t.open(n.node, n.life, now)
		if s == nil {
			dropped += len(n.records)
			continue
		}
		for _, r := range n.records {
			// To learn by this way that something unknown was removed is no news, or two nodes would keep the memory
			// of it alive between them for ever.
			if _, has := s.values[r.key]; r.removed && !has {
				continue
			}
			switch t.take(r, now) {
			case fresh:
				news = append(news, r)
			case full:
				dropped++
			}
		}
	}
	return news, dropped
}

// supersede begins a new life if others hold what this node has not said in this one: they remember
// an earlier life, and the clock has been set back since.
func (t *table) supersede(n nodeState) (news []record) {
	own := t.nodes[t.self]
	unknown := n.life > own.life
	for _, r := range n.records {
		unknown = unknown || n.life == own.life && r.seq > t.seq
	}
	if !unknown {
		return nil
	}
	own.life = n.life + 1
	for key, v := range own.values {
		news = append(news, record{node: t.self, life: own.life, seq: v.seq, key: key, value: v.data, removed: v.removed})
	}
	return news
}

// gone hides what a node said, until it comes back or sweep forgets it.
func (t *table) gone(node string, now time.Time) {
	if s := t.nodes[node]; s != nil {
		s.goneAt = now
	}
}

// drop forgets what refused nodes said, and says whether there was any.
func (t *table) drop(refused func(node string) bool) (any bool) {
	for node := range t.nodes {
		if node != t.self && refused(node) {
			delete(t.nodes, node)
			any = true
		}
	}
	return any
}

// sweep forgets nodes that have been gone for goneFor and keys that have been removed for removedFor.
func (t *table) sweep(live func(node string) bool, now time.Time) {
	for node, s := range t.nodes {
		if node != t.self && !live(node) && now.Sub(s.goneAt) > goneFor {
			delete(t.nodes, node)
			continue
		}
		s.forget(now)
	}
}

func (s *said) forget(now time.Time) {
	for key, v := range s.values {
		if v.removed && now.Sub(v.at) > removedFor {
			delete(s.values, key)
			s.bytes -= len(key)
		}
	}
}

// snapshot is the values of the live nodes. What has not changed is shared with the snapshot before.
func (t *table) snapshot(live func(node string) bool) Entries {
	all := Entries{}
	for node, s := range t.nodes {
		if !live(node) {
			continue
		}
		if s.shown == nil {
			s.shown = make(map[string][]byte, len(s.values))
			for key, v := range s.values {
				if !v.removed {
					s.shown[key] = v.data
				}
			}
		}
		if len(s.shown) > 0 {
			all[node] = s.shown
		}
	}
	return all
}

// encode is the state as it goes to another node: this node's own values first, then those of the other live nodes,
// in no order, so that if they do not all fit others do the next time.
func (t *table) encode(live func(node string) bool) []byte {
	b := []byte{encodingVersion}
	b = appendNode(b, t.self, t.nodes[t.self])
	for node, s := range t.nodes {
		if node == t.self || !live(node) {
			continue
		}
		with := appendNode(b, node, s)
		if len(with) > maxState {
			break
		}
		b = with
	}
	return b
}
