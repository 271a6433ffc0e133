package cache

import (
	"math"
	"net/http"
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
)

func follows(p *spec.CachePolicy) { p.RequestDirectives = true }

func TestAViewersDirectivesAreReadWhereThePolicyFollowsThem(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		lines []string
		want  Demand
	}{
		{nil, Demand{}},
		{[]string{"Cache-Control: no-cache, No-Store, only-if-cached"}, Demand{NoCache: true, NoStore: true, OnlyIfCached: true}},
		{[]string{"Cache-Control: max-age=5, min-fresh=6", "Cache-Control: max-stale=7"}, Demand{MaxAge: given(5 * s), MinFresh: given(6 * s), MaxStale: given(7 * s)}},
		{[]string{"Cache-Control: max-stale"}, Demand{MaxStale: given(math.MaxInt64)}},
		{[]string{"Cache-Control: max-stale=long"}, Demand{MaxStale: given(0)}},
		{[]string{"Cache-Control: max-age=soon"}, Demand{MaxAge: given(0)}},
		{[]string{"Cache-Control: max-age=5, max-age=1"}, Demand{MaxAge: given(5 * s)}},
		{[]string{"Pragma: no-cache"}, Demand{NoCache: true}},
		{[]string{"Pragma: no-store, max-age=0, foo"}, Demand{}},
		{[]string{"Pragma: no-cache", "Cache-Control: max-age=5"}, Demand{MaxAge: given(5 * s)}},
		{[]string{`Cache-Control: foo="no-cache", bar`}, Demand{}},
	} {
		if got := policy(follows).Demand(header(c.lines...)); got != c.want {
			t.Errorf("%q: got %+v, want %+v", c.lines, got, c.want)
		}
		if got := policy().Demand(header(c.lines...)); got != (Demand{}) {
			t.Errorf("%q where they are not followed: got %+v", c.lines, got)
		}
	}
}

func TestWhatAViewerDemandsOfAKeptResponse(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		demand, control string
		after           time.Duration // since it came
		want            Reuse
	}{
		{"", "max-age=100", 50 * s, Fresh},
		{"no-cache", "max-age=100", 0, Stale},
		{"max-age=50", "max-age=100", 50 * s, Fresh},
		{"max-age=50", "max-age=100", 51 * s, Stale},
		{"max-age=0", "max-age=100", 1 * s, Stale},
		{"min-fresh=50", "max-age=100", 50 * s, Fresh},
		{"min-fresh=50", "max-age=100", 51 * s, Stale},
		{"max-stale=10", "max-age=100", 110 * s, StaleOnDemand},
		{"max-stale=10", "max-age=100", 111 * s, Stale},
		{"max-stale=10", "max-age=100, stale-while-revalidate=60", 111 * s, Stale},
		{"max-stale", "max-age=100", 10000 * s, StaleOnDemand},
		{"max-stale", "max-age=100, must-revalidate", 101 * s, Stale},
		{"max-stale", "max-age=100, proxy-revalidate", 101 * s, Stale},
		{"max-stale", "s-maxage=100", 101 * s, Stale},
		{"max-stale", "no-cache", 1 * s, Stale},
		{"max-age=200, max-stale=10", "max-age=100", 110 * s, StaleOnDemand},
		{"max-age=200", "max-age=100, stale-while-revalidate=60", 110 * s, Stale},
		{"only-if-cached", "max-age=100, stale-while-revalidate=60", 110 * s, StaleWhileRevalidate},
	} {
		h := header("Date: "+at(0), "Cache-Control: "+c.control)
		f := Found{Object: policy().head(200, ParseControl(h), h, noon, noon)}
		d := policy(follows).Demand(header("Cache-Control: " + c.demand))
		if got := d.Reuse(f, noon.Add(c.after), nil); got != c.want {
			t.Errorf("%q of %q after %v: got %v, want %v", c.demand, c.control, c.after, got, c.want)
		}
		f.Fenced = true
		if got := d.Reuse(f, noon.Add(c.after), nil); got != Stale {
			t.Errorf("%q of %q, fenced: got %v", c.demand, c.control, got)
		}
	}
}

func FuzzDemand(f *testing.F) {
	for _, line := range []string{"no-cache", "max-stale", `max-age="5", min-fresh=6`, "max-stale=99999999999999999999", `="`, "only-if-cached=,no-store"} {
		f.Add(line, "no-cache")
	}
	f.Fuzz(func(t *testing.T, control, pragma string) {
		h := http.Header{"Cache-Control": {control}, "Pragma": {pragma}}
		d := policy(follows).Demand(h)
		for _, n := range []Delta{d.MaxAge, d.MinFresh, d.MaxStale} {
			if n.Value < 0 || !n.Given && n.Value != 0 {
				t.Fatalf("%q: %+v", control, d)
			}
		}
		h["Cache-Control"] = append(h["Cache-Control"], "no-store, no-cache")
		if d := policy(follows).Demand(h); !d.NoStore || !d.NoCache {
			t.Fatalf("%q hides the line below it", control)
		}
	})
}
