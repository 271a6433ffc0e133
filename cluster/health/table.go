package health

import (
	"cmp"
	"hash/maphash"
	"maps"
	"slices"
)

// Quorum is how many of the observers of a key must say healthy for it to be healthy: a share of
// them, in percent, reached or, if Above, exceeded.
type Quorum struct {
	Percent int
	Above   bool
}

// Shares that decide.
const (
	// DefaultCheckShare is Route 53's: a health check is healthy while more than 18 % of the checkers say so.
	DefaultCheckShare = 18
	// targetShare is for targets and endpoints: one is unhealthy when more than half of its observers say so. A tie
	// keeps it, as one who sees no way to a target may well be the one that is cut off.
	targetShare = 50
)

// Rule is the rule for a merge that AWS's semantics ask for, with a share of its own for health checks, in percent: more
// than that must say healthy.
func Rule(checkShare int) func(Key) Quorum {
	return func(key Key) Quorum {
		if key.IsCheck() {
			return Quorum{Percent: checkShare, Above: true}
		}
		return Quorum{Percent: targetShare}
	}
}

// DefaultQuorum is the Rule with Route 53's share.
func DefaultQuorum(key Key) Quorum { return Rule(DefaultCheckShare)(key) }

// Holds says whether so many of the observers saying healthy suffice.
func (q Quorum) Holds(healthy, observers int) bool {
	if q.Above {
		return healthy*100 > q.Percent*observers
	}
	return healthy*100 >= q.Percent*observers
}

// Observation is the verdict of one observer.
type Observation struct {
	Node string `json:"node"`
	Verdict
}

// Row is one line of a table.
type Row struct {
	Key Key `json:"key"`
	Verdict
}

// shardCount is in how many parts a table is: one that differs from the one before in a few keys shares all other parts
// with it, and of a few ten thousand keys a part is copied in microseconds.
const shardCount = 1024

// Table is the merged verdicts at one moment, immutable. A nil Table knows nothing.
type Table struct {
	seed   maphash.Seed
	shards [shardCount]*shard // nil: empty
}

// shard is one part of a table. Once it is in a table it is never changed.
type shard struct {
	rows map[Key]*merged
}

// clone is a copy to be changed, also of nil.
func (s *shard) clone() *shard {
	if s == nil {
		return &shard{rows: map[Key]*merged{}}
	}
	return &shard{rows: maps.Clone(s.rows)}
}

// row is the row of a key, or nil; so is any of a nil shard.
func (s *shard) row(key Key) *merged {
	if s == nil {
		return nil
	}
	return s.rows[key]
}

// merged is what is held true of one key, and by whom. It is never changed.
type merged struct {
	Verdict
	views []Observation // ordered by node; nil in a table that was not merged
}

// NewTable makes a table of the verdicts.
func NewTable(verdicts map[Key]Verdict) *Table {
	t := &Table{seed: maphash.MakeSeed()}
	for key, v := range verdicts {
		i := t.shard(key)
		if t.shards[i] == nil {
			t.shards[i] = t.shards[i].clone()
		}
		t.shards[i].rows[key] = &merged{Verdict: v}
	}
	return t
}

// Merge makes one table of what each node holds true, by node, as Merger does of what changed.
func Merge(views map[string]map[Key]Verdict, rule func(Key) Quorum) *Table {
	m := NewMerger()
	for node, verdicts := range views {
		m.Set(node, verdicts)
	}
	return m.Table(rule, nil)
}

func (m *merged) equal(o *merged) bool {
	return m.Verdict == o.Verdict && slices.Equal(m.views, o.views)
}

func (t *Table) shard(key Key) int { return int(maphash.String(t.seed, string(key)) % shardCount) }

func (t *Table) row(key Key) *merged {
	if t == nil {
		return nil
	}
	return t.shards[t.shard(key)].row(key)
}

// decide merges the observations of one key; there is at least one. Since and Reason are those of the view that tipped
// it, the last one that was needed. Stands is that of the view by whose turn it would turn, were those first to turn that
// can: so no one observer that flaps, or lies, shortens it. The last failure is the newest that anyone saw.
func decide(observations []Observation, q Quorum) Verdict {
	n := len(observations)
	yes := 0
	for i := range observations {
		if observations[i].Healthy {
			yes++
		}
	}
	v := Verdict{Healthy: q.Holds(yes, n)}

	// The side that decides, in the order in which its observers came to it. If no one is on that side
	// (a quorum of nothing, or of more than all), everyone is.
	all := v.Healthy && yes == 0 || !v.Healthy && yes == n
	side := make([]*Observation, 0, n)
	for i := range observations {
		if o := &observations[i]; all || o.Healthy == v.Healthy {
			side = append(side, o)
		}
		if o := &observations[i]; o.LastFailureAt.After(v.LastFailureAt) {
			v.LastFailure, v.LastFailureAt = o.LastFailure, o.LastFailureAt
		}
	}
	slices.SortStableFunc(side, func(a, b *Observation) int { return a.Since.Compare(b.Since) })

	// needed is how many of that side it took, turns how many of them would have to turn.
	needed := 1
	for ; needed < len(side); needed++ {
		if v.Healthy && q.Holds(needed, n) || !v.Healthy && !q.Holds(n-needed, n) {
			break
		}
	}
	tipped := side[needed-1]
	v.Since = tipped.Since
	if !v.Healthy {
		v.Reason = tipped.Reason
	}
	turns := 1
	for ; turns < len(side); turns++ {
		if v.Healthy && !q.Holds(yes-turns, n) || !v.Healthy && q.Holds(yes+turns, n) {
			break
		}
	}
	slices.SortFunc(side, func(a, b *Observation) int { return cmp.Compare(a.Stands, b.Stands) })
	v.Stands = side[turns-1].Stands
	return v
}

// Lookup returns the verdict on key, if there is one. What has no verdict yet is judged by the caller:
// a Route 53 health check is healthy until there is data, an ELB target is initial.
func (t *Table) Lookup(key Key) (Verdict, bool) {
	if row := t.row(key); row != nil {
		return row.Verdict, true
	}
	return Verdict{}, false
}

// All returns the verdicts, ordered by key.
func (t *Table) All() []Row {
	if t == nil {
		return nil
	}
	rows := []Row{}
	for _, s := range t.shards {
		if s == nil {
			continue
		}
		for key, row := range s.rows {
			rows = append(rows, Row{Key: key, Verdict: row.Verdict})
		}
	}
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Compare(a.Key, b.Key) })
	return rows
}

// Changed returns the keys of which this table and the one before say different things, verdict or views, or of which
// only one says anything; ordered. Of two tables of one Merger it looks only at the parts that they do not share. Either may be nil.
func (t *Table) Changed(before *Table) []Key {
	if t == before {
		return nil
	}
	var keys []Key
	gather := func(a, b *Table, differ func(row, other *merged) bool) {
		if a == nil {
			return
		}
		kin := b != nil && a.seed == b.seed
		for i, s := range a.shards {
			if s == nil || kin && s == b.shards[i] {
				continue
			}
			for key, row := range s.rows {
				if other := b.row(key); row != other && differ(row, other) {
					keys = append(keys, key)
				}
			}
		}
	}
	gather(t, before, func(row, other *merged) bool { return other == nil || !row.equal(other) })
	gather(before, t, func(_, other *merged) bool { return other == nil })
	slices.Sort(keys)
	return keys
}

// Views returns who says what of key, ordered by node. The slice must not be changed.
func (t *Table) Views(key Key) []Observation {
	if row := t.row(key); row != nil {
		return row.views
	}
	return nil
}
