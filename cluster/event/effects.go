package event

import (
	"fmt"
	"iter"
	"math/bits"
	"slices"
	"strings"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
)

// Bounds on the effects of one step, 256 in all: what nodes and verdicts did, and what follows from that. Each ends in a
// line that says how many more there were, to which what follows is linked.
const (
	maxTurned  = 128
	maxFollows = 126
)

// State is what is agreed and what is observed at one moment.
type State struct {
	Spec *spec.Spec
	View *view.View
	// Index is that of Spec; nil: one is made, which costs as much as the spec is large.
	Index *Index
}

// Effect is one thing that is otherwise than it was.
type Effect struct {
	Kind, Subject, Text string
	// Causes are the effects that it follows from, by their place in what Effects returned; all are before it.
	Causes []int
	// Because are events that are in the log already and caused it. Effects leaves it empty, for whoever knows more.
	Because []uint64
}

// Effects finds what changed from one moment to the next and what follows for what is routed: nodes that came, went, or
// take nothing new; verdicts that turned; and the POPs, load balancers, endpoint groups and records that so went out or
// came in. Of things that only one of the two specs has nothing is said. Without a view before, all is as it is, and
// nothing is news. At most 256 are returned. The time it takes goes by what changed, but for one look at each member if
// any changed, at each verdict if any changed, and at each indexed thing if the spec did.
func Effects(before, after State) []Effect {
	if before.View == nil || after.View == nil {
		return nil
	}
	s := newStep(before, after)
	s.specs()
	s.fence()
	s.members()
	s.verdicts()
	s.follow()
	return s.end()
}

// Record adds the effects as events, with their causes, and returns their IDs. No other event comes between them.
func (l *Log) Record(effects []Effect) []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := make([]uint64, len(effects))
	for i, e := range effects {
		causes := slices.Clone(e.Because)
		for _, c := range e.Causes {
			if c >= 0 && c < i {
				causes = append(causes, ids[c])
			}
		}
		ids[i] = l.add(l.event(e.Kind, e.Subject, e.Text), causes)
	}
	return ids
}

// none is the place of no effect.
const none = -1

// step is the finding of effects between two moments.
type step struct {
	was, is *moment
	effects []Effect

	leaves, follows  int // effects of either sort so far
	moreAt           int // where the line stands that there were more leaves, or none
	more, moreFollow int
	agreed           int // the effect that another spec is in force, or none

	dirty  []uint64        // things to look at, a bit each
	causes map[int32][]int // why
}

func newStep(before, after State) *step {
	if before.Index == nil {
		before.Index = NewIndex(before.Spec)
	}
	if after.Index == nil {
		after.Index = before.Index
		if after.Spec != before.Spec {
			after.Index = NewIndex(after.Spec)
		}
	}
	return &step{
		was: newMoment(before), is: newMoment(after), moreAt: none, agreed: none,
		dirty: make([]uint64, (len(after.Index.things)+63)/64), causes: map[int32][]int{},
	}
}

// leaf adds what a node or a verdict did, and returns its place.
func (s *step) leaf(kind, subject, text string, causes ...int) int {
	if s.leaves == maxTurned {
		if s.moreAt == none {
			s.moreAt = len(s.effects)
			s.effects = append(s.effects, Effect{Kind: Health})
		}
		s.more++
		return s.moreAt
	}
	s.leaves++
	return s.add(kind, subject, text, causes)
}

// result adds what follows from causes, and returns what causes what follows from it.
func (s *step) result(kind, subject, text string, causes []int) []int {
	if s.follows == maxFollows {
		s.moreFollow++
		return causes
	}
	s.follows++
	return []int{s.add(kind, subject, text, causes)}
}

func (s *step) add(kind, subject, text string, causes []int) int {
	causes = slices.DeleteFunc(slices.Clone(causes), func(c int) bool { return c == none })
	slices.Sort(causes)
	s.effects = append(s.effects, Effect{Kind: kind, Subject: subject, Text: text, Causes: slices.Compact(causes)})
	return len(s.effects) - 1
}

// touch has things looked at, for some causes.
func (s *step) touch(things []int32, causes ...int) {
	for _, i := range things {
		s.dirty[i/64] |= 1 << (i % 64)
		for _, c := range causes {
			if why := s.causes[i]; c != none && len(why) < maxCauses && !slices.Contains(why, c) {
				s.causes[i] = append(why, c)
			}
		}
	}
}

// specs says that another revision is in force, and has looked at what it changed.
func (s *step) specs() {
	before, after := s.was.Index, s.is.Index
	if before == after {
		return
	}
	if s.was.Spec != nil && s.is.Spec != nil && s.was.Spec.Revision != s.is.Spec.Revision {
		s.agreed = s.leaf(Spec, "spec", fmt.Sprintf("revision %d is in force, after %d", s.is.Spec.Revision, s.was.Spec.Revision))
	}
	for i := range after.things {
		if at, had := before.subjects[after.things[i].subject]; !had || before.things[at].resource != after.things[i].resource {
			s.touch([]int32{int32(i)}, s.agreed)
		}
	}
}

// fence says whether this node has seen all orders that it has heard of.
func (s *step) fence() {
	switch was, is := s.was.View.Fenced, s.is.View.Fenced; {
	case is && !was:
		s.leaf(Fence, "node/"+s.is.View.Self, "node "+s.is.View.Self+" is fenced: it has heard of an order that it has not seen")
	case was && !is:
		s.leaf(Fence, "node/"+s.is.View.Self, "node "+s.is.View.Self+" is fenced no more: it has seen all orders")
	}
}

// verdicts says which turned, the bad ones first, and has looked at what rests on them.
func (s *step) verdicts() {
	type turn struct {
		leaf    *leaf
		verdict health.Verdict
		has     bool // there is a verdict now
		isNew   bool // the spec before did not know it
	}
	if s.was.View.Health == s.is.View.Health && s.was.Index == s.is.Index {
		return
	}
	var bad, good []turn
	for l := range s.looked() {
		was, had := s.was.View.Health.Lookup(l.key)
		is, has := s.is.View.Health.Lookup(l.key)
		isNew := s.was.Index != s.is.Index && !s.was.Index.knows(l.key)
		had = had && !isNew
		switch {
		case !had && !has, had && has && was.Healthy == is.Healthy:
		case has && is.Healthy:
			good = append(good, turn{l, is, has, isNew})
		default:
			bad = append(bad, turn{l, is, has, isNew})
		}
	}
	for _, t := range append(bad, good...) {
		cause := none
		if t.isNew {
			cause = s.agreed
		}
		text := ""
		if s.leaves < maxTurned {
			text = s.is.turned(t.leaf.key, t.verdict, t.has)
		}
		s.touch(t.leaf.things, s.leaf(Health, string(t.leaf.key), text, cause))
	}
}

// looked are the verdicts that may have turned, by key.
func (s *step) looked() iter.Seq[*leaf] {
	leaves := s.is.Index.leaves
	return func(yield func(*leaf) bool) {
		if s.was.Index != s.is.Index { // others have a meaning now
			for i := range leaves {
				if !yield(&leaves[i]) {
					return
				}
			}
			return
		}
		for _, key := range s.is.View.Health.Changed(s.was.View.Health) {
			if i, known := s.is.Index.keys[key]; known && !yield(&leaves[i]) {
				return
			}
		}
	}
}

// turned is a verdict in words.
func (m *moment) turned(key health.Key, v health.Verdict, has bool) string {
	name := strings.ReplaceAll(string(key), "/", " ")
	if key.IsCheck() {
		name = "health " + name
	}
	if !has {
		return name + " has no verdict any more: nobody checks it"
	}
	state := "healthy"
	if !v.Healthy {
		state = "unhealthy"
	}
	views := m.View.Health.Views(key)
	agree := 0
	for _, o := range views {
		if o.Healthy == v.Healthy {
			agree++
		}
	}
	text := name + " " + state
	if len(views) > 0 {
		text += fmt.Sprintf(" in %d of %d views", agree, len(views))
	}
	if !v.Healthy && v.Reason != "" {
		text += ": " + v.Reason
	}
	if key.IsCheck() {
		if c := m.Spec.HealthChecks[strings.TrimPrefix(string(key), string(health.CheckKey("")))]; c != nil && c.Inverted {
			text += " (inverted)"
		}
	}
	return text
}

// follow looks at what was touched, what a thing rests on before the thing.
func (s *step) follow() {
	for at := range s.dirty {
		for s.dirty[at] != 0 {
			bit := bits.TrailingZeros64(s.dirty[at])
			s.dirty[at] &^= 1 << bit
			s.look(int32(64*at + bit))
		}
	}
}

func (s *step) look(i int32) {
	t := &s.is.Index.things[i]
	is := s.is.of(i)
	causes := s.causes[i]
	at, had := s.was.Index.subjects[t.subject]
	if !had { // it has come: for what rests on it that is the spec's doing
		s.touch(t.dependants, causes...)
		return
	}
	was := s.was.of(at)
	if was == is {
		return
	}
	if text := t.say(was, is); text != "" {
		causes = s.result(t.kind, t.subject, text, causes)
	}
	s.touch(t.dependants, causes...)
}

// end is the effects with the lines that say how many more there were.
func (s *step) end() []Effect {
	if s.more > 0 {
		s.effects[s.moreAt].Text = fmt.Sprintf("and %d more changes of nodes and verdicts", s.more)
	}
	if s.moreFollow > 0 {
		s.effects = append(s.effects, Effect{Kind: Route, Text: fmt.Sprintf("and %d more things went out or came in", s.moreFollow)})
	}
	return s.effects
}
