package event

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/perigee-net/perigee/cluster/view"
)

// place is a POP, or with no pop a region.
type place struct{ region, pop string }

// takers are how many nodes of a place take what is new, by role, and how many with the role origin this node reaches.
type takers struct {
	edge, dns, origin, reached int
}

// moment is a State in which each thing is looked at once.
type moment struct {
	State
	seen   map[int32]status
	places map[place]takers // nil: not counted yet
	edges  int              // in the whole fleet
}

func newMoment(s State) *moment { return &moment{State: s, seen: map[int32]status{}} }

// of is the status of a thing of the moment's index.
func (m *moment) of(i int32) status {
	st, ok := m.seen[i]
	if !ok {
		st = m.Index.things[i].look(m)
		m.seen[i] = st
	}
	return st
}

// at counts the nodes of a place.
func (m *moment) at(p place) takers {
	m.count()
	return m.places[p]
}

func (m *moment) count() {
	if m.places != nil {
		return
	}
	m.places = map[place]takers{}
	for _, member := range m.View.Members {
		for _, p := range []place{{member.Region, member.POP}, {region: member.Region}} {
			t := m.places[p]
			if member.Takes(view.Edge) {
				t.edge++
			}
			if member.Takes(view.DNS) {
				t.dns++
			}
			if member.Takes(view.Origin) {
				t.origin++
				if !m.View.Unreachable[member.Name] {
					t.reached++
				}
			}
			m.places[p] = t
		}
		if member.Takes(view.Edge) {
			m.edges++
		}
	}
}

// members says what nodes did, and what that did to their POPs and regions, and has looked at what rests on those.
func (s *step) members() {
	before, after := s.was.View.Members, s.is.View.Members
	same := len(before) == len(after) && (len(before) == 0 || &before[0] == &after[0])
	if same && sameKeys(s.was.View.Unreachable, s.is.View.Unreachable) {
		return
	}
	touched := map[place][]int{} // the effects on its nodes
	said := func(kind, text string, m view.Member, also ...view.Member) {
		at := s.leaf(kind, "node/"+m.Name, "node "+m.Name+" "+text)
		for _, m := range append(also, m) {
			for _, p := range []place{{m.Region, m.POP}, {region: m.Region}} {
				if len(touched[p]) < maxCauses {
					touched[p] = append(touched[p], at)
				}
			}
		}
	}
	had := make(map[string]view.Member, len(before))
	for _, m := range before {
		had[m.Name] = m
	}
	for _, is := range after {
		was, stayed := had[is.Name]
		delete(had, is.Name)
		if !stayed {
			said(Member, "has come"+where(is), is)
			was = is // what it says of itself is no news then, but that nothing new is given to it
			was.Drained, was.Leaving = "", false
		}
		if where(was) != where(is) {
			said(Member, "has moved"+where(is), is, was)
		}
		if !slices.Equal(was.Roles, is.Roles) {
			said(Member, fmt.Sprintf("has the roles %v, and had %v", is.Roles, was.Roles), is)
		}
		if was.Leaving != is.Leaving {
			said(Member, either(is.Leaving, "is leaving", "is leaving no more"), is)
		}
		if was.Drained != is.Drained || is.Drained != "" && !slices.Equal(was.Needed, is.Needed) {
			said(Drain, drained(is), is)
		}
		switch before, now := s.was.View.Unreachable[is.Name], s.is.View.Unreachable[is.Name]; {
		case now && !before:
			said(Link, "cannot be reached from here", is)
		case before && !now:
			said(Link, "is reached again from here", is)
		}
	}
	for _, was := range before {
		if _, gone := had[was.Name]; gone {
			said(Member, either(was.Leaving, "has left", "is gone")+where(was), was)
		}
	}
	s.settle(touched)
}

func where(m view.Member) string { return fmt.Sprintf(", in %s, POP %s", m.Region, m.POP) }

func drained(m view.Member) string {
	switch {
	case m.Drained == "":
		return "is drained no more"
	case len(m.Needed) > 0:
		return fmt.Sprintf("is drained by %s, but goes on as %v: nobody else is left", m.Drained, m.Needed)
	}
	return "is drained by " + m.Drained
}

// settle says what became of POPs and regions by what their nodes did.
func (s *step) settle(touched map[place][]int) {
	places := make([]place, 0, len(touched))
	for p := range touched {
		places = append(places, p)
	}
	slices.SortFunc(places, func(a, b place) int { return cmp.Or(cmp.Compare(a.region, b.region), cmp.Compare(a.pop, b.pop)) })
	var edges []int // what changed at POPs
	for _, p := range places {
		was, is, causes := s.was.at(p), s.is.at(p), touched[p]
		if p.pop != "" {
			if text := popTurned(was, is); text != "" {
				causes = s.result(Route, "pop/"+p.pop, "POP "+p.pop+" "+text, causes)
			}
			edges = append(edges, causes...)
			continue
		}
		if text := regionTurned(was, is); text != "" {
			causes = s.result(Route, "region/"+p.region, "region "+p.region+" "+text, causes)
		}
		if (was.origin > 0) != (is.origin > 0) || (was.reached > 0) != (is.reached > 0) {
			s.touch(s.is.Index.regions[p.region], causes...)
		}
	}
	s.was.count()
	s.is.count()
	if (s.was.edges > 0) != (s.is.edges > 0) {
		s.touch(s.is.Index.viewers, edges...)
	}
}

func popTurned(was, is takers) string {
	lostEdge, lostDNS := was.edge > 0 && is.edge == 0, was.dns > 0 && is.dns == 0
	wonEdge, wonDNS := was.edge == 0 && is.edge > 0, was.dns == 0 && is.dns > 0
	switch {
	case (lostEdge || lostDNS) && is.edge == 0 && is.dns == 0:
		return "answers no more"
	case lostEdge:
		return "takes viewers no more"
	case lostDNS:
		return "answers names no more"
	case wonEdge && wonDNS:
		return "takes viewers and answers names"
	case wonEdge:
		return "takes viewers"
	case wonDNS:
		return "answers names"
	}
	return ""
}

func regionTurned(was, is takers) string {
	switch {
	case was.origin > 0 && is.origin == 0:
		return "runs its load balancers no more: no node there takes the role origin"
	case was.origin == 0 && is.origin > 0:
		return "runs its load balancers"
	}
	return ""
}

// sameKeys says whether the same names are true in both.
func sameKeys(a, b map[string]bool) bool {
	for name, is := range a {
		if is != b[name] {
			return false
		}
	}
	for name, is := range b {
		if is != a[name] {
			return false
		}
	}
	return true
}
