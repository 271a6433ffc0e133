package store

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Candidate is a node that may vote, as the leader sees it.
type Candidate struct {
	Name, Region, Address string
	Live                  bool
	Since                 time.Time // live, or dead, since then
	Applied               uint64    // how far a member follows (Store.Progress); 0 where that is not known
}

// Placement is what the operator wants of the voters.
type Placement struct {
	Want         int           // how many voters at most: 1, 3 or 5
	ReplaceAfter time.Duration // how long a voter may be dead before it is done without
	SettleAfter  time.Duration // how long a node must have been live before it is to vote
}

// Act is what a Step does; it names the Store's method for it.
type Act string

// The acts. A Step without one has nothing to do for now.
const (
	Wait        Act = ""
	AddNonvoter Act = "add nonvoter"  // Store.AddNonvoter: it follows before it votes
	Promote     Act = "promote"       // Store.AddVoter
	Readdress   Act = "readdress"     // Store.AddVoter of a voter, AddNonvoter of another, at Address
	Demote      Act = "demote"        // Store.Demote
	Remove      Act = "remove"        // Store.Remove
	MoveLead    Act = "move the lead" // Store.TransferTo
)

// Step is one change of the members of Raft.
type Step struct {
	Do            Act
	Name, Address string
	Voter         bool   // whether the node votes when it is done
	Why           string // for the log
}

// closeEnough is how many entries a node may be behind to be given a vote: it has them in a moment.
const closeEnough = 256

// Place says what the leader, self, does next about the members of Raft: one step, safe by itself, towards as many voters as
// are wanted and can be had, an odd number, spread over the regions. It is asked again when that is done. The candidates are
// all nodes that may vote and have not left for good, in any order, self among them.
//
// One or two nodes that can vote make one voter, three or four three, five and more five. A voter that is dead for longer than
// ReplaceAfter gives its place to another, which votes before the dead one is removed; without another it keeps it, unless fewer voters
// would bear more deaths. A voter stays one while it does no worse than others. No step leaves the live voters without a majority, if they have
// one.
func Place(p Placement, self string, now time.Time, candidates []Candidate, servers []Server, leaderApplied uint64) Step {
	l := layout{p: p, self: self, now: now, applied: leaderApplied, nodes: map[string]Candidate{}, members: map[string]Server{}}
	for _, c := range candidates {
		if c.Name == self {
			c.Live = true
		}
		l.nodes[c.Name] = c
	}
	for _, s := range servers {
		l.members[s.Name] = s
	}
	if voters, live := l.count(); live <= voters/2 {
		return Step{Why: fmt.Sprintf("of %d voters %d are live", voters, live)}
	}
	wanted := l.wanted()
	if len(wanted) == 0 {
		return Step{Why: "no node can vote"}
	}
	for _, step := range []func([]string) (Step, bool){l.readdress, l.add, l.leave, l.tidy} {
		if s, ok := step(wanted); ok {
			return s
		}
	}
	return Step{}
}

// layout is the nodes and the members at one moment.
type layout struct {
	p       Placement
	self    string
	now     time.Time
	applied uint64
	nodes   map[string]Candidate
	members map[string]Server
}

// standing is how well a node is suited to vote; less is better.
type standing int

const (
	voting    standing = iota // a live voter, or one that may come back
	following                 // a member without a vote
	settled                   // a live node
	lost                      // a voter that is dead for too long
	unfit
)

func (l *layout) standing(c Candidate) standing {
	member, is := l.members[c.Name]
	since := l.now.Sub(c.Since)
	switch {
	case is && member.Voter && (c.Live || since < l.p.ReplaceAfter):
		return voting
	case is && member.Voter:
		return lost
	case is && c.Live:
		return following
	case c.Live && since >= l.p.SettleAfter:
		return settled
	}
	return unfit
}

// live says whether a node answers.
func (l *layout) live(name string) bool { return name == l.self || l.nodes[name].Live }

// count is of the voters, and of the live ones among them.
func (l *layout) count() (voters, live int) {
	for name, m := range l.members {
		if m.Voter {
			voters++
			if l.live(name) {
				live++
			}
		}
	}
	return voters, live
}

// names are the members that something holds for, in order.
func (l *layout) names(holds func(m Server) bool) []string {
	var names []string
	for name, m := range l.members {
		if holds(m) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// wanted are the nodes that should vote: one after the other the one whose region has the fewest of them, then the one that is
// suited best. The leader is the first, if it is to vote at all.
func (l *layout) wanted() []string {
	var fit []Candidate
	fitting := 0
	for _, c := range l.nodes {
		switch l.standing(c) {
		case unfit:
			continue
		case voting, following, settled:
			fitting++
		}
		fit = append(fit, c)
	}
	regions := map[string]int{}
	var wanted []string
	for range l.number(fitting) {
		if len(fit) == 0 {
			break
		}
		best := slices.MinFunc(fit, func(a, b Candidate) int {
			sa, sb := l.standing(a), l.standing(b)
			return cmp.Or(
				-cmp.Compare(rank(a.Name == l.self), rank(b.Name == l.self)),
				cmp.Compare(rank(sa == lost), rank(sb == lost)),
				cmp.Compare(regions[a.Region], regions[b.Region]),
				cmp.Compare(sa, sb),
				cmp.Compare(a.Name, b.Name),
			)
		})
		regions[best.Region]++
		wanted = append(wanted, best.Name)
		fit = slices.DeleteFunc(fit, func(c Candidate) bool { return c.Name == best.Name })
	}
	slices.Sort(wanted)
	return wanted
}

func rank(b bool) int {
	if b {
		return 1
	}
	return 0
}

// number is how many voters there should be, of so many nodes that can vote.
func (l *layout) number(fitting int) int {
	number := 1
	switch {
	case fitting >= 5:
		number = 5
	case fitting >= 3:
		number = 3
	}
	number = min(number, max(1, l.p.Want))
	// Voters that are lost and cannot be replaced stay, unless the live ones by themselves bear more deaths.
	voters, live := 0, 0
	for name, m := range l.members {
		if _, is := l.nodes[name]; is && m.Voter {
			voters++
			if l.live(name) {
				live++
			}
		}
	}
	if voters%2 == 1 && voters > number && voters <= l.p.Want && spare(voters, live) >= spare(number, number) {
		return voters
	}
	return number
}

// spare is how many of the live voters may die before there is no majority.
func spare(voters, live int) int { return live - (voters/2 + 1) }

// readdress follows a member that has moved.
func (l *layout) readdress([]string) (Step, bool) {
	moved := l.names(func(m Server) bool {
		c, is := l.nodes[m.Name]
		return is && c.Live && c.Address != "" && c.Address != m.Address
	})
	if len(moved) == 0 {
		return Step{}, false
	}
	m := l.members[moved[0]]
	return Step{Do: Readdress, Name: m.Name, Address: l.nodes[m.Name].Address, Voter: m.Voter, Why: "it was at " + m.Address}, true
}

// add makes voters of those wanted: they follow first. While one of them is on its way, none is taken out.
func (l *layout) add(wanted []string) (Step, bool) {
	waits := Step{}
	for _, name := range wanted {
		c := l.nodes[name]
		m, is := l.members[name]
		switch {
		case is && m.Voter:
		case !is:
			return Step{Do: AddNonvoter, Name: name, Address: c.Address, Why: "it is to vote, in region " + c.Region}, true
		case c.Applied+closeEnough >= l.applied:
			return Step{Do: Promote, Name: name, Address: m.Address, Voter: true, Why: "it has caught up"}, true
		default:
			waits = Step{Why: fmt.Sprintf("%s is %d entries behind", name, l.applied-c.Applied)}
		}
	}
	return waits, waits.Why != ""
}

// leave takes the vote of those that are not wanted: of the dead first, who are of no use, and of the leader last, who hands over the lead
// before.
func (l *layout) leave(wanted []string) (Step, bool) {
	surplus := l.names(func(m Server) bool { return m.Voter && !slices.Contains(wanted, m.Name) })
	for _, name := range surplus {
		if !l.live(name) {
			why := "it is dead, and others vote"
			if _, is := l.nodes[name]; !is {
				why = "it has left"
			}
			return Step{Do: Remove, Name: name, Why: why}, true
		}
	}
	for _, name := range surplus {
		voters, live := l.count()
		if name != l.self && spare(voters-1, live-1) >= 0 {
			return Step{Do: Demote, Name: name, Why: "others vote"}, true
		}
	}
	if !slices.Contains(surplus, l.self) {
		return Step{}, false
	}
	heirs := slices.DeleteFunc(slices.Clone(wanted), func(name string) bool { return !l.live(name) })
	if len(heirs) == 0 {
		return Step{Why: "nobody can take over the lead"}, true
	}
	heir := slices.MaxFunc(heirs, func(a, b string) int { return cmp.Compare(l.nodes[a].Applied, l.nodes[b].Applied) })
	return Step{Do: MoveLead, Name: heir, Voter: true, Why: "others vote"}, true
}

// tidy removes members without a vote that are to have none: they follow in another way.
func (l *layout) tidy(wanted []string) (Step, bool) {
	rest := l.names(func(m Server) bool { return !m.Voter && !slices.Contains(wanted, m.Name) })
	if len(rest) == 0 {
		return Step{}, false
	}
	return Step{Do: Remove, Name: rest[0], Why: "it has no vote"}, true
}
