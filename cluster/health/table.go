package health

import (
	"cmp"
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
	// checkShare is Route 53's: a health check is healthy while more than 18 % of the checkers say so.
	checkShare = 18
	// targetShare is for targets: a target is unhealthy when more than half of its observers say so. A tie
	// keeps it, as one who sees no way to a target may well be the one that is cut off.
	targetShare = 50
)

// DefaultQuorum is the rule for Merge that AWS's semantics ask for.
func DefaultQuorum(key Key) Quorum {
	if key.IsCheck() {
		return Quorum{Percent: checkShare, Above: true}
	}
	return Quorum{Percent: targetShare}
}

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

// Table is the merged verdicts at one moment, immutable. A nil Table knows nothing.
type Table struct {
	verdicts map[Key]Verdict
	views    map[Key][]Observation // ordered by node; empty in a table that was not merged
}

// NewTable makes a table of the verdicts; it takes over the map.
func NewTable(verdicts map[Key]Verdict) *Table { return &Table{verdicts: verdicts} }

// Merge makes one table of what each node holds true, by node. The verdict on a key is what the rule
// makes of all who observe it; Since and Reason are those of the view that tipped it, the last one that
// was needed; Stands is the shortest of those on the deciding side.
func Merge(views map[string]map[Key]Verdict, rule func(Key) Quorum) *Table {
	t := &Table{verdicts: map[Key]Verdict{}, views: map[Key][]Observation{}}
	for _, node := range slices.Sorted(maps.Keys(views)) {
		for key, v := range views[node] {
			t.views[key] = append(t.views[key], Observation{Node: node, Verdict: v})
		}
	}
	for key, observations := range t.views {
		t.verdicts[key] = decide(observations, rule(key))
	}
	return t
}

// decide merges the observations of one key; there is at least one.
func decide(observations []Observation, q Quorum) Verdict {
	n := len(observations)
	yes := 0
	for _, o := range observations {
		if o.Healthy {
			yes++
		}
	}
	merged := Verdict{Healthy: q.Holds(yes, n)}

	// The side that decides, in the order in which its observers came to it. If no one is on that side
	// (a quorum of nothing, or of more than all), everyone is.
	side := slices.Clone(observations)
	if (merged.Healthy && yes > 0) || (!merged.Healthy && yes < n) {
		side = slices.DeleteFunc(side, func(o Observation) bool { return o.Healthy != merged.Healthy })
	}
	slices.SortStableFunc(side, func(a, b Observation) int { return a.Since.Compare(b.Since) })

	// needed is how many of that side it took.
	needed := 1
	for ; needed < len(side); needed++ {
		if merged.Healthy && q.Holds(needed, n) || !merged.Healthy && !q.Holds(n-needed, n) {
			break
		}
	}
	tipped := side[needed-1]
	merged.Since, merged.Stands = tipped.Since, tipped.Stands
	if !merged.Healthy {
		merged.Reason = tipped.Reason
	}
	for _, o := range side {
		merged.Stands = min(merged.Stands, o.Stands)
	}
	return merged
}

// Lookup returns the verdict on key, if there is one. What has no verdict yet is judged by the caller:
// a Route 53 health check is healthy until there is data, an ELB target is initial.
func (t *Table) Lookup(key Key) (Verdict, bool) {
	if t == nil {
		return Verdict{}, false
	}
	v, ok := t.verdicts[key]
	return v, ok
}

// All returns the verdicts, ordered by key.
func (t *Table) All() []Row {
	if t == nil {
		return nil
	}
	rows := make([]Row, 0, len(t.verdicts))
	for key, v := range t.verdicts {
		rows = append(rows, Row{Key: key, Verdict: v})
	}
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Compare(a.Key, b.Key) })
	return rows
}

// Views returns who says what of key, ordered by node. The slice must not be changed.
func (t *Table) Views(key Key) []Observation {
	if t == nil {
		return nil
	}
	return t.views[key]
}
