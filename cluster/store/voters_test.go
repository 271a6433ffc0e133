package store

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// stage is members and nodes on which steps are carried out.
type stage struct {
	p       Placement
	now     time.Time
	leader  string
	nodes   map[string]*Candidate
	members map[string]*Server
}

func newStage(want int) *stage {
	return &stage{
		p:   Placement{Want: want, ReplaceAfter: 30 * time.Second, SettleAfter: 10 * time.Second},
		now: then, nodes: map[string]*Candidate{}, members: map[string]*Server{},
	}
}

// node adds a node that is live for a day, in a region.
func (s *stage) node(name, region string) *Candidate {
	s.nodes[name] = &Candidate{Name: name, Region: region, Address: name + ":7947", Live: true, Since: s.now.Add(-24 * time.Hour)}
	return s.nodes[name]
}

func (s *stage) voter(name, region string) *Candidate {
	c := s.node(name, region)
	s.members[name] = &Server{Name: name, Address: c.Address, Voter: true}
	return c
}

func (s *stage) die(name string, ago time.Duration) {
	s.nodes[name].Live, s.nodes[name].Since = false, s.now.Add(-ago)
}

func (s *stage) next() Step {
	var candidates []Candidate
	for _, c := range s.nodes {
		candidates = append(candidates, *c)
	}
	var servers []Server
	for _, m := range s.members {
		servers = append(servers, *m)
	}
	return Place(s.p, s.leader, s.now, candidates, servers, 1000)
}

func (s *stage) live(name string) bool { return s.nodes[name] != nil && s.nodes[name].Live }

// voters are the names of the voters, and how many of them are live.
func (s *stage) voters() (names []string, live int) {
	for name, m := range s.members {
		if m.Voter {
			names = append(names, name)
			if s.live(name) {
				live++
			}
		}
	}
	slices.Sort(names)
	return names, live
}

// do carries out a step as Raft would.
func (s *stage) do(step Step) error {
	m := s.members[step.Name]
	switch step.Do {
	case AddNonvoter:
		if m != nil {
			return fmt.Errorf("%s is a member", step.Name)
		}
		s.members[step.Name] = &Server{Name: step.Name, Address: step.Address}
		s.nodes[step.Name].Applied = 1000
	case Promote:
		if m == nil || m.Voter || !s.live(step.Name) {
			return fmt.Errorf("%s is to be promoted", step.Name)
		}
		m.Voter = true
	case Readdress:
		if m == nil || m.Voter != step.Voter {
			return fmt.Errorf("%s is moved", step.Name)
		}
		m.Address = step.Address
	case Demote:
		if m == nil || !m.Voter || step.Name == s.leader {
			return fmt.Errorf("%s is demoted, %s leads", step.Name, s.leader)
		}
		m.Voter = false
	case Remove:
		if m == nil || step.Name == s.leader || m.Voter && s.live(step.Name) {
			return fmt.Errorf("%s is removed, %s leads", step.Name, s.leader)
		}
		delete(s.members, step.Name)
	case MoveLead:
		if m == nil || !m.Voter || !s.live(step.Name) {
			return fmt.Errorf("the lead goes to %s", step.Name)
		}
		s.leader = step.Name
	}
	return nil
}

// settle carries out steps until there is nothing to do.
func (s *stage) settle(t interface{ Fatalf(string, ...any) }) (steps []Step) {
	for range 100 {
		step := s.next()
		if step.Do == Wait {
			return steps
		}
		before, liveBefore := s.voters()
		if err := s.do(step); err != nil {
			t.Fatalf("%+v: %v", step, err)
		}
		after, liveAfter := s.voters()
		if liveBefore > len(before)/2 && liveAfter <= len(after)/2 {
			t.Fatalf("%+v leaves %d of %d voters live: %v", step, liveAfter, len(after), after)
		}
		steps = append(steps, step)
	}
	t.Fatalf("it does not come to an end: %+v", steps[90:])
	return nil
}

func TestVotersAreAnOddNumberSpreadOverRegions(t *testing.T) {
	for _, test := range []struct {
		want    int
		regions []string // of a, b, c …; a leads
		voters  []string
	}{
		{5, []string{"x"}, []string{"a"}},
		{5, []string{"x", "y"}, []string{"a"}},
		{5, []string{"x", "y", "z"}, []string{"a", "b", "c"}},
		{5, []string{"x", "y", "z", "w"}, []string{"a", "b", "c"}},
		{5, []string{"x", "x", "x", "y", "z"}, []string{"a", "b", "c", "d", "e"}},
		{3, []string{"x", "x", "x", "y", "z"}, []string{"a", "d", "e"}},
		{1, []string{"x", "x", "x", "y", "z"}, []string{"a"}},
		{5, []string{"x", "x", "x", "x", "y", "y", "z"}, []string{"a", "b", "e", "f", "g"}},
		{3, []string{"x", "x", "y", "y"}, []string{"a", "b", "c"}},
	} {
		s := newStage(test.want)
		s.leader = "a"
		for i, region := range test.regions {
			s.node(string(rune('a'+i)), region)
		}
		s.voter("a", test.regions[0])
		s.settle(t)
		if got, _ := s.voters(); !slices.Equal(got, test.voters) {
			t.Errorf("want %d in %v: %v vote, not %v", test.want, test.regions, got, test.voters)
		}
		if len(s.members) != len(test.voters) {
			t.Errorf("there are members without a vote: %v", s.members)
		}
	}
}

func TestPlacesOfVoters(t *testing.T) {
	three := func(s *stage) { s.voter("a", "x"); s.voter("b", "y"); s.voter("c", "z") }
	five := func(s *stage) { three(s); s.voter("d", "x"); s.voter("e", "y") }
	for _, test := range []struct {
		what  string
		begin func(s *stage)
		steps []string
	}{
		{"nothing is wrong", three, nil},
		{"a voter is dead for a moment", func(s *stage) { three(s); s.node("d", "z"); s.die("c", 29*time.Second) }, nil},
		{"a dead voter is replaced, first added, then removed", func(s *stage) { three(s); s.node("d", "z"); s.die("c", 31*time.Second) },
			[]string{"add nonvoter d", "promote d", "remove c"}},
		{"one of three is dead and there is no other", func(s *stage) { three(s); s.die("c", time.Hour) }, nil},
		{"two of five are dead and there is no other: three bear more", func(s *stage) { five(s); s.die("d", time.Hour); s.die("e", time.Hour) },
			[]string{"remove d", "remove e"}},
		{"one of five is dead and there is no other", func(s *stage) { five(s); s.die("e", time.Hour) }, nil},
		{"one of three has left for good", func(s *stage) { three(s); delete(s.nodes, "c") }, []string{"remove c", "demote b", "remove b"}},
		{"one of three has left and another is there", func(s *stage) { three(s); delete(s.nodes, "c"); s.node("d", "z") },
			[]string{"add nonvoter d", "promote d", "remove c"}},
		{"one that has just come", func(s *stage) {
			s.voter("a", "x")
			s.node("b", "y")
			s.node("c", "z").Since = s.now.Add(-9 * time.Second)
		}, nil},
		{"one has another address", func(s *stage) { three(s); s.nodes["b"].Address = "elsewhere:1" }, []string{"readdress b"}},
		{"a dead one has another address", func(s *stage) { three(s); s.nodes["b"].Address = "elsewhere:1"; s.die("b", 0) }, nil},
		{"a region without a voter", func(s *stage) { three(s); s.node("d", "w"); s.nodes["c"].Region = "y" },
			[]string{"add nonvoter d", "promote d", "demote c", "remove c"}},
		{"fewer are wanted", func(s *stage) { five(s); s.p.Want = 3 }, []string{"demote d", "demote e", "remove d", "remove e"}},
		{"the leader is not to vote", func(s *stage) { three(s); s.node("d", "x"); s.nodes["c"].Applied = 9; delete(s.nodes, "a") },
			[]string{"add nonvoter d", "promote d", "move the lead d", "demote a", "remove a"}},
		{"a majority is dead", func(s *stage) { three(s); s.node("d", "x"); s.die("b", time.Hour); s.die("c", time.Hour) }, nil},
		{"a follower is dead", func(s *stage) { three(s); s.node("d", "x"); s.die("d", 0); s.members["d"] = &Server{Name: "d"} }, []string{"remove d"}},
	} {
		s := newStage(5)
		s.leader = "a"
		test.begin(s)
		wasLeader := s.nodes["a"]
		var got []string
		for range 20 {
			step := s.next()
			if step.Do == Wait {
				break
			}
			got = append(got, fmt.Sprint(step.Do, " ", step.Name))
			if wasLeader == nil && s.leader == "a" && step.Do == MoveLead {
				// Until it has ended, the former leader is live, though it is not to vote.
				s.leader = step.Name
				continue
			}
			if err := s.do(step); err != nil && step.Name != "a" {
				t.Fatalf("%s: %+v: %v", test.what, step, err)
			}
		}
		if test.what == "the leader is not to vote" { // seen from the next leader it has left
			test.steps = []string{"add nonvoter d", "promote d", "move the lead d", "remove a"}
		}
		if !slices.Equal(got, test.steps) {
			t.Errorf("%s: %q, want %q", test.what, got, test.steps)
		}
	}
}

func TestOneThatIsBehindIsNotGivenAVote(t *testing.T) {
	s := newStage(5)
	s.leader = "a"
	s.voter("a", "x")
	s.node("b", "y")
	s.node("c", "z").Applied = 700
	s.members["b"] = &Server{Name: "b", Address: "b:7947"}
	s.members["c"] = &Server{Name: "c", Address: "c:7947"}
	if step := s.next(); step.Do != Wait || step.Why == "" {
		t.Errorf("got %+v", step)
	}
	s.nodes["c"].Applied = 800
	if step := s.next(); step.Do != Promote || step.Name != "c" {
		t.Errorf("got %+v", step)
	}
}

// TestFromAnyStateVotersComeToTheirPlaces: the steps end, none of them takes a majority away, and what they end in is right.
func TestFromAnyStateVotersComeToTheirPlaces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newStage(rapid.SampledFrom([]int{1, 3, 5}).Draw(t, "want"))
		count := rapid.IntRange(1, 9).Draw(t, "nodes")
		for i := range count {
			name := fmt.Sprint("n", i)
			c := s.node(name, rapid.SampledFrom([]string{"x", "y", "z", "w"}).Draw(t, "region"))
			c.Live = rapid.IntRange(0, 3).Draw(t, "live") > 0
			c.Since = s.now.Add(-time.Duration(rapid.IntRange(0, 60).Draw(t, "since")) * time.Second)
			c.Applied = rapid.SampledFrom([]uint64{0, 500, 1000}).Draw(t, "applied")
			switch rapid.IntRange(0, 3).Draw(t, "member") {
			case 0:
				s.members[name] = &Server{Name: name, Address: c.Address}
			case 1, 2:
				s.members[name] = &Server{Name: name, Address: rapid.SampledFrom([]string{c.Address, "old:1"}).Draw(t, "address"), Voter: true}
			}
			if rapid.IntRange(0, 7).Draw(t, "left") == 0 {
				delete(s.nodes, name)
			}
		}
		var leaders []string
		for name, m := range s.members {
			if m.Voter && s.live(name) {
				leaders = append(leaders, name)
			}
		}
		voters, live := s.voters()
		if live <= len(voters)/2 {
			t.Skip("nobody leads")
		}
		slices.Sort(leaders)
		s.leader = rapid.SampledFrom(leaders).Draw(t, "leader")
		for range 3 { // those that follow catch up, those that came settle, those that are dead are lost
			s.settle(t)
			s.now = s.now.Add(time.Hour)
			for _, c := range s.nodes {
				if c.Live {
					c.Applied = 1000
				}
			}
		}
		voters, live = s.voters()
		alive := 0
		regions, voting := map[string]bool{}, map[string]bool{}
		for name, c := range s.nodes {
			if c.Live {
				alive++
				regions[c.Region] = true
				if slices.Contains(voters, name) {
					voting[c.Region] = true
				}
			}
		}
		want := 1
		if alive >= 5 {
			want = 5
		} else if alive >= 3 {
			want = 3
		}
		want = min(want, s.p.Want)
		switch {
		case len(voters)%2 == 0, len(voters) < want, len(voters) > s.p.Want:
			t.Fatalf("%v vote, of %d live nodes, %d wanted", voters, alive, s.p.Want)
		case live == len(voters) && len(voters) != want:
			t.Fatalf("%v vote, of %d live nodes", voters, alive)
		case live < want && alive > live && spare(len(voters), live) < spare(want, want):
			t.Fatalf("%d of %v are live, and others are there", live, voters)
		case live == len(voters) && len(voting) != min(len(voters), len(regions)):
			t.Fatalf("voters in %v, nodes in %v", voting, regions)
		}
		for name, m := range s.members {
			if !m.Voter || s.nodes[name] == nil || s.live(name) && m.Address != s.nodes[name].Address {
				t.Fatalf("%+v is left", m)
			}
		}
	})
}
