package cdn

import (
	"cmp"
	"slices"

	"github.com/perigee-net/perigee/cluster/rendezvous"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
)

// Bounded load: a peer that has more requests of this node's unanswered than loadFactor times the mean of the peers, and
// loadSlack more, gives way to the next in order. So one slow node, or one that owns much that is in demand, holds up
// its own keys only in part; the price is another fill of these.
const (
	loadFactor = 1.25
	loadSlack  = 32
)

// Owners is the order in which the edge nodes of a set are asked for a key, which is the same on all nodes that see the same:
// the first is its owner. It is that of rendezvous hashing over those that take viewers (not drained, not leaving) and that
// this node reaches; where there are none, who asks for the owner does without, for it can ask the origin itself. Who has too much to answer comes last. Load says how many requests of this node's a peer has not answered
// yet. This node itself gives way to none: to ask another instead would be no less work.
func Owners(v *view.View, in func(*view.Member) bool, key string, load func(node string) int, tr *trace.Trace) []string {
	if v == nil {
		return nil
	}
	type peer struct {
		name  string
		score uint64
		load  int
	}
	var peers []peer
	sum, others := 0, 0
	for i := range v.Members {
		m := &v.Members[i]
		switch {
		case !in(m) || !m.Has(view.Edge):
			continue
		case !m.Takes(view.Edge):
			if tr.On() {
				tr.Add("%s: passed over, %s", m.Name, either(m.Leaving, "it leaves", "drained ("+m.Drained+")"))
			}
			continue
		case v.Unreachable[m.Name]:
			tr.Add("%s: passed over, it cannot be reached", m.Name)
			continue
		}
		p := peer{name: m.Name, score: rendezvous.Score(m.Name, key)}
		if m.Name != v.Self {
			p.load = load(m.Name)
			sum, others = sum+p.load, others+1
		}
		peers = append(peers, p)
	}
	most := loadSlack + loadFactor*float64(sum)/float64(max(others, 1))
	busy := func(p peer) int {
		if float64(p.load) > most {
			return 1
		}
		return 0
	}
	slices.SortFunc(peers, func(a, b peer) int {
		return cmp.Or(cmp.Compare(busy(a), busy(b)), cmp.Compare(b.score, a.score), cmp.Compare(a.name, b.name))
	})
	names := make([]string, len(peers))
	for i, p := range peers {
		names[i] = p.name
		if tr.On() {
			tr.Add("%d. %s%s%s", i+1, p.name, either(p.name == v.Self, ", this node", ""),
				either(busy(p) > 0, ", which has too many requests to answer", ""))
		}
	}
	return names
}

// tier is in which of its parts a node is asked for a response. Each asks only those behind it, so requests come to an end.
type tier string

const (
	byViewers tier = "viewers" // asks the owner of the key in the POP
	inPOP     tier = "pop"     // the owner in a POP: asks the origin shield
	inShield  tier = "shield"  // the owner in the shield's region: asks the origin
)

// hop is one peer that may be asked.
type hop struct {
	Node string
	Tier tier // as what it is asked
	Near bool // it is of this node's POP
	Own  bool // it owns the key for this node's POP, be it in another: what it is asked for is not this node's to keep
}

// maxHops bounds how many owners of one tier are tried, one after the other. Then it is the next tier's turn, at last the
// origin's: a viewer does not wait for a whole POP to fail.
const maxHops = 2

// hops are the peers to be asked before the origin, in order, by a node that is asked itself as at says; none: the origin is asked
// at once. They end where this node is the owner, or the next in order to be it. Where there is an origin shield, the nodes of its
// region ask its owner directly, which spares them a hop.
func hops(v *view.View, d Decision, uri string, at tier, load func(string) int, tr *trace.Trace) (all []hop) {
	self := selfIn(v)
	if self == nil || at == inShield {
		return nil
	}
	shield := d.Behavior.shield()
	if at == byViewers && shield != self.Region {
		out := tr.In("who in %s owns the key?", self.POP)
		here := func(m *view.Member) bool { return m.POP == self.POP && m.Region == self.Region }
		var owners []string
		if tr.On() || !onlySelf(v, here) {
			owners = Owners(v, here, uri, load, tr)
		}
		for _, node := range owners {
			if node == self.Name || len(all) == maxHops {
				break
			}
			all = append(all, hop{node, inPOP, true, true})
		}
		out()
	}
	if shield == "" {
		return all
	}
	out := tr.In("who in %s, the origin shield, owns the key?", shield)
	defer out()
	shields := Owners(v, func(m *view.Member) bool { return m.Region == shield }, uri, load, tr)
	if len(shields) == 0 {
		tr.Add("no edge node of %s can be asked: the origin is", shield)
	}
	for i, node := range shields {
		if node == self.Name || i == maxHops {
			break
		}
		m, _ := v.Member(node)
		all = append(all, hop{node, inShield, m.POP == self.POP && m.Region == self.Region, shield == self.Region})
	}
	return all
}

// onlySelf says whether this node is the only member of a set: then it owns every key, and nothing need be reckoned.
func onlySelf(v *view.View, in func(*view.Member) bool) bool {
	for i := range v.Members {
		if m := &v.Members[i]; m.Name != v.Self && in(m) {
			return false
		}
	}
	return true
}

// selfIn is this node in its view; nil: it is not there.
func selfIn(v *view.View) *view.Member {
	if v != nil {
		for i := range v.Members {
			if v.Members[i].Name == v.Self {
				return &v.Members[i]
			}
		}
	}
	return nil
}

// shield is the region of the origin's shield; empty: it has none.
func (b *Behavior) shield() string {
	if s := b.Origin.OriginShield; s.Enabled {
		return s.OriginShieldRegion
	}
	return ""
}
