package cache

import (
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/perigee-net/perigee/cluster/trace"
)

// Demand is what a viewer's Cache-Control and Pragma ask for (RFC 9111 §5.2.1, §5.4), where the policy follows them.
type Demand struct {
	// NoCache: only what the origin has just said is good. NoStore: nothing is kept, and nothing kept is used.
	// OnlyIfCached: the origin is not asked.
	NoCache, NoStore, OnlyIfCached bool
	// MaxAge and MinFresh are bounds on age and on the rest of freshness. MaxStale is how stale a response may be.
	MaxAge, MinFresh, MaxStale Delta
}

// Demand reads the viewer's directives; none where the policy does not follow them. Pragma counts where there is no
// Cache-Control. A number that is none is 0, and so asks for more, not less, but for that of max-stale, which asks for nothing.
func (p *Policy) Demand(h http.Header) (d Demand) {
	if !p.Directives {
		return d
	}
	lines, has := h["Cache-Control"]
	if !has {
		lines = h["Pragma"]
	}
	for _, line := range lines {
		for line != "" {
			var name, arg string
			name, arg, line = directive(line)
			name = strings.ToLower(name)
			switch {
			case name == "no-cache":
				d.NoCache = true
			case !has: // Pragma knows no other
			case name == "no-store":
				d.NoStore = true
			case name == "only-if-cached":
				d.OnlyIfCached = true
			case name == "max-age":
				d.MaxAge.set(arg)
			case name == "min-fresh":
				d.MinFresh.set(arg)
			case name == "max-stale" && arg == "" && !d.MaxStale.Given: // however stale
				d.MaxStale = Delta{true, math.MaxInt64}
			case name == "max-stale":
				d.MaxStale.set(arg)
			}
		}
	}
	return d
}

// Reuse says what may be done with what was found, for who demands that.
func (d Demand) Reuse(f Found, now time.Time, tr *trace.Trace) Reuse {
	was := f.Reuse(now, tr)
	if d == (Demand{}) || f.Fenced {
		return was
	}
	o := f.Object
	fresh := o.FreshFor(now)
	no := func(why string) Reuse {
		tr.Add("the viewer's %s: the origin is asked first", why)
		return Stale
	}
	switch {
	case d.NoCache:
		return no("no-cache")
	case d.MaxAge.Given && o.Age(now) > d.MaxAge.Value:
		return no("max-age")
	case d.MinFresh.Given && fresh < d.MinFresh.Value:
		return no("min-fresh")
	case fresh > 0:
		return was
	case d.MaxStale.Given && -fresh <= d.MaxStale.Value && o.mayBeStale():
		tr.Add("the viewer takes it stale: max-stale")
		return StaleOnDemand
	case d.MaxStale.Given && -fresh > d.MaxStale.Value:
		return no("max-stale")
	case d.MaxAge.Given && !d.MaxStale.Given: // and so nothing stale, unless max-stale is there (§5.2.1.1)
		return no("max-age")
	}
	return was
}

// takesStale says whether who asks with that header takes a response that is stale.
func (p *Policy) takesStale(h http.Header, o *Object, now time.Time) bool {
	return p.Demand(h).Reuse(Found{Object: o}, now, nil) == StaleOnDemand
}

// mayBeStale says whether the origin lets the response be used stale at all (§4.2.4).
func (o *Object) mayBeStale() bool { return !ParseControl(o.Header.HTTP()).strict() }
