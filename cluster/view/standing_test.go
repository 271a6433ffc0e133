package view

import (
	"slices"
	"strings"
	"testing"
)

func TestWhoIsLeftIsUsedAllTheSame(t *testing.T) {
	for _, c := range []struct {
		name    string
		members string // of one region: "name", "name-" drained, "name+" drained and needed, "name." leaving
		want    string
		at      Standing
	}{
		{"nobody", "", "", Leaving},
		{"all take", "a b", "a b", Taking},
		{"some do not", "a- b c.", "b", Taking},
		{"who is needed takes", "a- b+ c.", "b", Taking},
		{"all are drained", "a- b-", "a b", Drained},
		{"drained before leaving", "a- b. c.", "a", Drained},
		{"drained and leaving is leaving", "a- b.-", "a", Drained},
		{"needed and leaving is leaving", "a- b.+", "a", Drained},
		{"all leave", "a. b.-", "a b", Leaving},
	} {
		v := &View{Members: []Member{{Name: "other", Region: "frankfurt", Roles: []Role{Origin}}, {Name: "edge", Region: "seoul", Roles: []Role{Edge}}}}
		for _, text := range strings.Fields(c.members) {
			m := Member{Name: strings.TrimRight(text, ".-+"), Region: "seoul", Roles: []Role{Origin}, Leaving: strings.Contains(text, ".")}
			if strings.ContainsAny(text, "-+") {
				m.Drained = "node " + m.Name
			}
			if strings.Contains(text, "+") {
				m.Needed = []Role{Origin}
			}
			v.Members = append(v.Members, m)
			if m.Takes(Origin) != (m.Standing(Origin) == Taking) || m.Takes(Edge) {
				t.Errorf("%s: %s stands as %v, and takes: %v", c.name, text, m.Standing(Origin), m.Takes(Origin))
			}
		}
		if best, ok := v.Best("seoul", Origin); ok != (c.members != "") || ok && best != c.at {
			t.Errorf("%s: the best standing is %v, %v", c.name, best, ok)
		}
		asked := Standing(-1)
		found, at := Resort(func(s Standing) []Member {
			if s != asked+1 {
				t.Errorf("%s: asked for %v after %v", c.name, s, asked)
			}
			asked = s
			return v.At("seoul", Origin, s)
		})
		var got []string
		for _, m := range found {
			got = append(got, m.Name)
		}
		if !slices.Equal(got, strings.Fields(c.want)) || at != c.at || asked != at {
			t.Errorf("%s: got %v of standing %v, asked as far as %v, want %s of %v", c.name, got, at, asked, c.want, c.at)
		}
	}
}
