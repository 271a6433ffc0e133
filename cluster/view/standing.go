package view

import "slices"

// Standing is how a member stands to what is new of a role that it has.
type Standing int

// The standings. Members of one are used where there is nobody of those before it, so that neither a drain nor an end takes down what nobody else
// could serve meanwhile.
const (
	Taking  Standing = iota // neither drained nor leaving; or drained, and needed all the same
	Drained                 // it serves, and is to be left alone
	Leaving                 // it serves until its doors close, and who is given something late may be cut off
)

// Standing is the member's for a role, be it drained as well as leaving.
func (m *Member) Standing(r Role) Standing {
	switch {
	case m.Leaving:
		return Leaving
	case m.Drained != "" && !slices.Contains(m.Needed, r):
		return Drained
	}
	return Taking
}

// Stands says whether the member has a role and that standing of it.
func (m *Member) Stands(r Role, s Standing) bool { return m.Has(r) && m.Standing(r) == s }

// Best is the first standing of a role that a live member of a region has. Not ok: none has the role.
func (v *View) Best(region string, r Role) (best Standing, ok bool) {
	for m := range v.Of(region) {
		if !m.Has(r) {
			continue
		}
		if s := m.Standing(r); !ok || s < best {
			best, ok = s, true
		}
	}
	return best, ok
}

// Resort returns what is found among the members of the first standing of which anything is, and which that is: the last one if there is nothing
// at all.
func Resort[T any](find func(Standing) []T) (found []T, at Standing) {
	for at = Taking; at < Leaving; at++ {
		if found = find(at); len(found) > 0 {
			return found, at
		}
	}
	return find(Leaving), Leaving
}
