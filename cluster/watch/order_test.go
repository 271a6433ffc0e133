package watch

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func names(sources []Source) string {
	var all []string
	for _, s := range sources {
		all = append(all, s.Name)
	}
	return strings.Join(all, " ")
}

func sorted(words string) string {
	return strings.Join(slices.Sorted(slices.Values(strings.Fields(words))), " ")
}

func TestTheOrderOfSources(t *testing.T) {
	v := func(name, region string, ms int) Member {
		return Member{Name: name, Region: region, Voter: true, RTT: time.Duration(ms) * time.Millisecond}
	}
	n := func(name, region string, ms int) Member {
		m := v(name, region, ms)
		m.Voter = false
		return m
	}
	// In region "far" the hash makes first the head, then second.
	region := []Member{n("a", "far", 1), n("b", "far", 1), n("c", "far", 1), n("d", "far", 1)}
	slices.SortFunc(region, func(a, b Member) int { return byHash("far", a, b) })
	first, second, third, fourth := region[0], region[1], region[2], region[3]
	voters := []Member{v("v300", "x", 300), v("v100", "y", 100), v("v0", "z", 0)}
	all := slices.Concat(voters, region, []Member{n("h", "other", 50), n("m", "y", 100)})
	for name, c := range map[string]struct {
		self    Member
		members []Member
		want    string // "~" before it: in any order, as the hash decides among what is as near
	}{
		"nobody else":                             {first, []Member{first}, ""},
		"the head follows the nearest voter":      {first, all, "v100 v300 v0 h"},
		"the second follows the head":             {second, all, first.Name + " v100 v300 v0 h"},
		"the others follow the head":              {third, all, first.Name + " " + second.Name + " v100 v300 v0 h"},
		"the last, too":                           {fourth, all, first.Name + " " + second.Name + " v100 v300 v0 h"},
		"it need not be among the members":        {fourth, all[:len(all)-3], first.Name + " " + second.Name + " v100 v300 v0"},
		"a voter of the own region is first":      {n("m", "y", 0), all, "~v100 v300 v0 h " + first.Name},
		"one that votes asks the others":          {voters[0], all, "~v100 v0 h " + first.Name},
		"with no voter alive, the heads are left": {third, all[3:], "~" + first.Name + " " + second.Name + " h m"},
	} {
		t.Run(name, func(t *testing.T) {
			got := names(Order(c.self, c.members))
			if want, any := strings.CutPrefix(c.want, "~"); any {
				got, c.want = sorted(got), sorted(want)
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestTheVotersOfARegionShareItsFollowers(t *testing.T) {
	var members []Member
	for i := range 3 {
		members = append(members, Member{Name: fmt.Sprint("voter-", i), Region: "r", Voter: true})
	}
	load := map[string]int{}
	for i := range 300 {
		load[Order(Member{Name: fmt.Sprint("node-", i), Region: "r"}, members)[0].Name]++
	}
	for name, n := range load {
		if n < 70 || n > 130 {
			t.Errorf("%s is followed by %d of 300", name, n)
		}
	}
}

func TestWhereverMembersAreAllAreFedAndNoneFollowsItself(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var members []Member
		for i := range rapid.IntRange(1, 60).Draw(t, "members") {
			members = append(members, Member{
				Name: fmt.Sprint("n", i), Region: fmt.Sprint("r", rapid.IntRange(0, 6).Draw(t, "region")),
				Voter: rapid.IntRange(0, 9).Draw(t, "voter") == 0, RTT: time.Duration(rapid.IntRange(0, 400).Draw(t, "rtt")) * time.Millisecond,
			})
		}
		voters := 0
		follows := map[string]string{}
		long := map[string]int{}
		for _, m := range members {
			if m.Voter {
				voters++
			}
			order := Order(m, members)
			if len(order) > maxSources || slices.ContainsFunc(order, func(s Source) bool { return s.Name == m.Name }) {
				t.Fatalf("%s may follow %v", m.Name, order)
			}
			for i, s := range order {
				if slices.Contains(order[:i], s) {
					t.Fatalf("%s asks %s twice", m.Name, s.Name)
				}
			}
			if m.Voter || len(order) == 0 {
				continue
			}
			follows[m.Name] = order[0].Name
			if i := slices.IndexFunc(members, func(o Member) bool { return o.Name == order[0].Name }); members[i].Region != m.Region {
				long[m.Region]++
			}
			shuffled := rapid.Permutation(members).Draw(t, "shuffled")
			if got := Order(m, shuffled); !slices.Equal(got, order) {
				t.Fatalf("in another order of members: %v, not %v", got, order)
			}
		}
		if voters == 0 {
			return
		}
		for region, n := range long {
			if n > 1 {
				t.Fatalf("%d nodes of %s go over the long way", n, region)
			}
		}
		for _, m := range members { // each is fed by its first choice over less than MaxDepth others
			at, depth := m.Name, 0
			for ; follows[at] != ""; depth++ {
				if at = follows[at]; depth >= MaxDepth {
					t.Fatalf("%s is not fed", m.Name)
				}
			}
		}
	})
}
