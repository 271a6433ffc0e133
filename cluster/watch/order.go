package watch

import (
	"cmp"
	"slices"
	"time"

	"github.com/perigee-net/perigee/cluster/rendezvous"
)

const (
	// maxSources is how many sources Order names: what comes behind would hardly ever be asked.
	maxSources = 16

	// nearness is the step in which round trips are compared. Those that differ by less are alike, so that a round trip that is
	// measured a little different each minute does not move anybody.
	nearness = 20 * time.Millisecond
)

// Member is a node that is alive, as the one that chooses sees it.
type Member struct {
	Name, Region string
	Address      string        // of its control port
	Voter        bool          // it is in Raft, with a vote
	RTT          time.Duration // from the node that chooses; 0: not known
}

// Source is a node that may be followed.
type Source struct {
	Name, Address string
}

// Order says whom a node shall follow, best first. It is pure: nodes that know the same members choose so that
// each region is fed once over the long way.
//
// Where the own region has voters, they are first, each node with one of its own choice (rendezvous hashing). Where it
// has none, the node of the region that draws the highest hash is its head and follows voters, nearest first; the
// others follow the head, else the second, who stands in for it. Voters elsewhere come next, and last the
// heads of other regions, for a region that is cut off from all voters but not from those. Self is never
// among them, and there are at most 16.
func Order(self Member, members []Member) []Source {
	var near, far, heads []Member
	regions := map[string][2]Member{} // of those without a vote, the two with the highest hashes
	voted := map[string]bool{}        // regions that have voters
	stand := func(m Member) {
		first := regions[m.Region]
		switch {
		case first[0].Name == "" || before(m.Region, m, first[0]):
			regions[m.Region] = [2]Member{m, first[0]}
		case first[1].Name == "" || before(m.Region, m, first[1]):
			regions[m.Region] = [2]Member{first[0], m}
		}
	}
	if !self.Voter {
		stand(self)
	}
	for _, m := range members {
		switch {
		case m.Name == self.Name:
		case !m.Voter:
			stand(m)
		default:
			voted[m.Region] = true
			if m.Region == self.Region {
				near = append(near, m)
			} else {
				far = append(far, m)
			}
		}
	}
	slices.SortFunc(near, func(a, b Member) int { return byHash(self.Name, a, b) })
	if !voted[self.Region] {
		for _, head := range regions[self.Region] {
			if head.Name == self.Name || head.Name == "" {
				break // who stands behind self follows self
			}
			near = append(near, head)
		}
	}
	for region, two := range regions {
		if region != self.Region && !voted[region] {
			heads = append(heads, two[0])
		}
	}
	nearest := func(a, b Member) int { return cmp.Or(cmp.Compare(distance(a), distance(b)), byHash(self.Region, a, b)) }
	slices.SortFunc(far, nearest)
	slices.SortFunc(heads, nearest)
	var sources []Source
	for _, m := range slices.Concat(near, far, heads) {
		sources = append(sources, Source{Name: m.Name, Address: m.Address})
	}
	return sources[:min(len(sources), maxSources)]
}

// distance is how far a member is, in steps; one that was not measured is behind all that were.
func distance(m Member) time.Duration {
	if m.RTT <= 0 {
		return 1 << 62
	}
	return m.RTT / nearness
}

// before says whether a stands before b in what is chosen for key.
func before(key string, a, b Member) bool { return byHash(key, a, b) < 0 }

func byHash(key string, a, b Member) int {
	return cmp.Or(cmp.Compare(rendezvous.Score(b.Name, key), rendezvous.Score(a.Name, key)), cmp.Compare(a.Name, b.Name))
}
