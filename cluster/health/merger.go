package health

import (
	"hash/maphash"
	"slices"
	"strings"
)

// Merger makes one table after another of what many nodes hold true, each at a cost of what changed. It is not safe for
// concurrent use; its tables are.
type Merger struct {
	said  map[string]map[Key]Verdict // by node, as it was set
	views map[Key][]Observation      // of whoever speaks of it, ordered by node; the slices are shared with tables and never changed
	dirty map[Key]struct{}           // what may differ from the last table
	last  *Table
}

// NewMerger makes a merger of no views.
func NewMerger() *Merger {
	return &Merger{
		said: map[string]map[Key]Verdict{}, views: map[Key][]Observation{}, dirty: map[Key]struct{}{},
		last: &Table{seed: maphash.MakeSeed()},
	}
}

// Set says what a node holds true now, all of it; nil: it is gone. The map is kept, and may not be changed any more.
// It costs one look at each of the verdicts, and work for those that differ.
func (m *Merger) Set(node string, verdicts map[Key]Verdict) {
	before := m.said[node]
	for key := range before {
		if _, still := verdicts[key]; !still {
			m.put(key, node, nil)
		}
	}
	for key, v := range verdicts {
		if old, had := before[key]; !had || old != v {
			m.put(key, node, &v)
		}
	}
	if verdicts == nil {
		delete(m.said, node)
	} else {
		m.said[node] = verdicts
	}
}

// put changes what a node says of a key; nil: nothing.
func (m *Merger) put(key Key, node string, v *Verdict) {
	m.dirty[key] = struct{}{}
	old := m.views[key]
	i, found := slices.BinarySearchFunc(old, node, func(o Observation, node string) int { return strings.Compare(o.Node, node) })
	rest := old[i:]
	if found {
		rest = rest[1:]
	}
	if v == nil && i+len(rest) == 0 {
		delete(m.views, key)
		return
	}
	now := make([]Observation, 0, i+1+len(rest))
	now = append(now, old[:i]...)
	if v != nil {
		now = append(now, Observation{node, *v})
	}
	m.views[key] = append(now, rest...)
}

// Again says that the rule, or who is entitled, may be another than before, so that the next table is made of everything.
func (m *Merger) Again() {
	for key := range m.views {
		m.dirty[key] = struct{}{}
	}
}

// Table merges what the nodes say. Of each key only those have a voice who are entitled to one (nil: all), and what the
// rule makes of them is the verdict; a key on which nobody has a voice is not in the table. Where nothing changed it is
// the same table as before, and what did not change is shared with that.
func (m *Merger) Table(rule func(Key) Quorum, entitled func(key Key, node string) bool) *Table {
	if len(m.dirty) == 0 {
		return m.last
	}
	next, changed := *m.last, false
	var own [shardCount]bool
	for key := range m.dirty {
		row := m.merge(key, rule, entitled)
		i := next.shard(key)
		old := next.shards[i].row(key)
		if row == nil && old == nil || row != nil && old != nil && row.equal(old) {
			continue
		}
		if changed = true; !own[i] {
			own[i] = true
			next.shards[i] = next.shards[i].clone()
		}
		if row == nil {
			delete(next.shards[i].rows, key)
		} else {
			next.shards[i].rows[key] = row
		}
	}
	m.dirty = map[Key]struct{}{}
	if changed {
		m.last = &next
	}
	return m.last
}

// merge is the row of a key; nil: it has none.
func (m *Merger) merge(key Key, rule func(Key) Quorum, entitled func(Key, string) bool) *merged {
	views := m.views[key]
	if entitled != nil && slices.ContainsFunc(views, func(o Observation) bool { return !entitled(key, o.Node) }) {
		voices := make([]Observation, 0, len(views))
		for _, o := range views {
			if entitled(key, o.Node) {
				voices = append(voices, o)
			}
		}
		views = voices
	}
	if len(views) == 0 {
		return nil
	}
	return &merged{decide(views, rule(key)), views}
}
