package view

import (
	"slices"
	"strings"
)

// Scopes of a drain.
const (
	ScopeNode   = "node"
	ScopePOP    = "pop"
	ScopeRegion = "region"
)

// DrainRule drains a node, the nodes of a POP, or those of a region.
type DrainRule struct {
	Scope string // ScopeNode, ScopePOP or ScopeRegion; any other drains nobody
	Name  string // of that
	Text  string // for people: what Member.Drained says
}

func (d DrainRule) covers(m Member) bool {
	switch d.Scope {
	case ScopeNode:
		return m.Name == d.Name
	case ScopePOP:
		return m.POP == d.Name
	case ScopeRegion:
		return m.Region == d.Name
	}
	return false
}

// Drain lays the drains over the members: it returns them with Drained and Needed set by these rules alone, and changes
// nothing that it was given. A role that nobody in the fleet would take any more because of drains is not drained
// (it fails open): who has it and is not leaving needs it still.
func Drain(members []Member, drains []DrainRule) []Member {
	drained := slices.Clone(members)
	left := map[Role]bool{}
	for i := range drained {
		m := &drained[i]
		var texts []string
		for _, d := range drains {
			if d.covers(*m) {
				texts = append(texts, d.text())
			}
		}
		m.Drained, m.Needed = strings.Join(texts, ", "), nil
		for _, r := range m.Roles {
			left[r] = left[r] || m.Takes(r)
		}
	}
	for i := range drained {
		m := &drained[i]
		if m.Drained == "" || m.Leaving {
			continue
		}
		for _, r := range m.Roles {
			if !left[r] {
				m.Needed = append(m.Needed, r)
			}
		}
	}
	return drained
}

// text is never empty, as an empty one would drain nobody.
func (d DrainRule) text() string {
	if d.Text == "" {
		return d.Scope + " " + d.Name
	}
	return d.Text
}
