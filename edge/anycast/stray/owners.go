package stray

import (
	"cmp"
	"slices"
	"time"

	"github.com/perigee-net/perigee/cluster/view"
)

// Owner is a node that may have flows of this one's addresses.
type Owner struct {
	Node string
	Away bool // it is drained or leaves: its flows come elsewhere now
}

// Owners says who may have flows whose packets come here: all live nodes with the role edge, for routes change by more than what is seen. Those of the same POP are
// first, for they share its routers, then those that are drained or leave, then the nearest. One that cannot be reached now is among them: it may have flows. Those beyond
// maxAsked are not asked, but what is known to be theirs goes to them.
func Owners(v *view.View) []Owner {
	me, is := v.Member(v.Self)
	if !is {
		return nil
	}
	type candidate struct {
		Owner
		rank int
		rtt  time.Duration
	}
	var all []candidate
	for _, m := range v.Members {
		if m.Name == v.Self || !m.Has(view.Edge) {
			continue
		}
		c := candidate{Owner: Owner{Node: m.Name, Away: m.Leaving || m.Drained != ""}, rank: 2, rtt: time.Hour}
		switch {
		case m.POP == me.POP:
			c.rank = 0
		case c.Away:
			c.rank = 1
		}
		if rtt, measured := v.RTT[m.Name]; measured {
			c.rtt = rtt
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.rtt, b.rtt), cmp.Compare(a.Node, b.Node))
	})
	owners := make([]Owner, 0, len(all))
	for _, c := range all {
		owners = append(owners, c.Owner)
	}
	return owners
}

// turned says whether others are there than before, or are drained or leave that did not. Their order is of no matter.
func turned(before, now []Owner) bool {
	if len(before) != len(now) {
		return true
	}
	away := byName(before)
	for _, o := range now {
		if was, is := away[o.Node]; !is || was != o.Away {
			return true
		}
	}
	return false
}

// byName says of nodes whether they are away.
func byName(owners []Owner) map[string]bool {
	away := make(map[string]bool, len(owners))
	for _, o := range owners {
		away[o.Node] = o.Away
	}
	return away
}
