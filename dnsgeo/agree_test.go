package dnsgeo

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo/geo"
)

// Wherever nodes stand and whomever they reach: by the same spec and the same members and verdicts their answers are the same.
func TestNodesThatSeeTheSameAnswerTheSame(t *testing.T) {
	compared, views, answers := 0, map[uint64]bool{}, map[uint64]bool{}
	for world := range uint64(12) {
		c := &chance{rand.New(rand.NewPCG(11, world))}
		s, _ := c.world(t)
		one, two := compile(t, s), compile(t, s)
		for range 10 {
			v := c.view()
			if v == nil {
				continue
			}
			other := *v
			other.Self, other.Unreachable = of(c, "icn1-a", "dub1-a", "nobody"), map[string]bool{"iad1-a": true}
			a, b := one.Sample(v), two.Sample(&other)
			if a != b {
				t.Fatalf("world %d: %+v and %+v", world, a, b)
			}
			if back, err := DecodeSample(a.Encode()); err != nil || back != a {
				t.Fatalf("%+v: %v", back, err)
			}
			compared++
			views[a.View], answers[a.Answers] = true, true
		}
	}
	if compared < 80 || len(views) < 40 || len(answers) < 40 {
		t.Errorf("%d compared, of %d views and %d answers", compared, len(views), len(answers))
	}
}

func TestWhatAnswersDependOnIsInTheDigest(t *testing.T) {
	table := compile(t, worldSpec(t, site+hot))
	all := worldView()
	before := table.Sample(all)
	for _, down := range []string{"dub1-a", "icn1-b", "nrt1", "c1", "c3", "web-icn"} {
		if after := table.Sample(worldView(down)); after.Comparable(before) {
			t.Errorf("without %s the view has the same digest", down)
		}
	}
	for what, change := range map[string]func(m *view.Member){
		"drained": func(m *view.Member) { m.Drained = "node" }, "leaving": func(m *view.Member) { m.Leaving = true },
		"a role less": func(m *view.Member) { m.Roles = []view.Role{view.DNS} }, "moved": func(m *view.Member) { m.POP = "icn2" },
		"another address": func(m *view.Member) { m.Public = []netip.Addr{netip.MustParseAddr("192.0.2.99")} },
	} {
		v := worldView()
		change(&v.Members[0])
		if after := table.Sample(v); after.Comparable(before) {
			t.Errorf("%s, and the view has the same digest", what)
		}
	}
}

func TestAnswersThatDifferAreSeen(t *testing.T) {
	s := worldSpec(t, site+hot)
	right := compile(t, s).Sample(worldView())
	moved, err := places(t).With(geo.Override{Prefix: netip.MustParsePrefix("1.208.0.0/16"), Country: "US"})
	if err != nil {
		t.Fatal(err)
	}
	for what, places := range map[string]*geo.DB{"another country": moved, "no countries": nil} {
		table, err := Compile(s, places, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := table.Sample(worldView()); !got.Comparable(right) || got.Answers == right.Answers {
			t.Errorf("%s: %+v, others %+v", what, got, right)
		}
	}
	other := worldSpec(t, site+hot+"*.wild 60 A 192.0.2.66\n") // that calls itself the same revision
	if got := compile(t, other).Sample(worldView()); got == right {
		t.Error("another record is not seen")
	}
}

// The sample is bounded however many zones there are, and is drawn anew at each revision.
func TestTheSampleIsBounded(t *testing.T) {
	s := worldSpec(t, site+hot)
	for i := range 200 {
		name := string(rune('a'+i%26)) + string(rune('a'+i/26)) + ".test"
		s.HostedZones[name] = &spec.HostedZone{Name: name, Records: recordsOf(t, "a A 192.0.2.1\nb A 192.0.2.1\n*.c A 192.0.2.1\nd A 192.0.2.1\ne A 192.0.2.1")}
	}
	drawn := map[string]bool{}
	for range 50 {
		s.Revision++
		questions := compile(t, s).sampled()
		if len(questions) > sampledZones*(2+sampledSets) || len(questions) < sampledZones*3 {
			t.Fatalf("%d questions", len(questions))
		}
		for _, q := range questions {
			drawn[q.Name] = true
		}
	}
	if len(drawn) < 1000 {
		t.Errorf("in 50 revisions %d names were asked for", len(drawn))
	}
}
