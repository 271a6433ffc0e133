package probe

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
)

// edited draws a spec that differs from another in a few resources.
func edited(t *rapid.T, s *spec.Spec) *spec.Spec {
	next := &spec.Spec{Revision: s.Revision + 1, TargetGroups: s.TargetGroups, HealthChecks: s.HealthChecks, Accelerators: s.Accelerators}
	name := rapid.StringMatching(`[a-d]`)
	if rapid.Bool().Draw(t, "groups") {
		next.TargetGroups = maps.Clone(s.TargetGroups)
		if n := name.Draw(t, "group"); rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
			delete(next.TargetGroups, n)
		} else {
			g := webGroup(0)
			g.Name, g.Region = n, rapid.SampledFrom([]string{"seoul", "frankfurt"}).Draw(t, "region")
			for range rapid.IntRange(0, 4).Draw(t, "targets") {
				g.Targets = append(g.Targets, spec.Target{Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(1, 5).Draw(t, "target"))}), Port: 80})
			}
			next.TargetGroups[n] = g
		}
	}
	if rapid.Bool().Draw(t, "checks") {
		next.HealthChecks = maps.Clone(s.HealthChecks)
		if n := name.Draw(t, "check"); rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
			delete(next.HealthChecks, n)
		} else {
			h := wwwCheck()
			if rapid.Bool().Draw(t, "regions") {
				h.Regions = []string{rapid.SampledFrom([]string{"seoul", "frankfurt"}).Draw(t, "region")}
			}
			h.Name, h.Disabled, h.Port = n, rapid.IntRange(0, 4).Draw(t, "disabled") == 0, uint16(rapid.IntRange(80, 82).Draw(t, "port"))
			next.HealthChecks[n] = h
		}
	}
	if rapid.Bool().Draw(t, "accelerators") {
		next.Accelerators = maps.Clone(s.Accelerators)
		if n := name.Draw(t, "accelerator"); rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
			delete(next.Accelerators, n)
		} else {
			a := goAccelerator()
			a.Name = n
			g := a.Listeners[0].EndpointGroups[0]
			for i := range rapid.IntRange(0, 3).Draw(t, "listeners") {
				g.HealthCheckPort = uint16(rapid.IntRange(80, 81).Draw(t, "port"))
				g.HealthCheckProtocol = []string{spec.TCP, spec.HTTP, spec.HTTPS}[i]
				g.Region = rapid.SampledFrom([]string{"seoul", "frankfurt"}).Draw(t, "region")
				a.Listeners = append(a.Listeners, spec.AcceleratorListener{EndpointGroups: []spec.EndpointGroup{g}})
			}
			next.Accelerators[n] = a
		}
	}
	return next
}

func TestAChooserThatRemembersSaysWhatOneThatBeginsAnewDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c Chooser
		var before []Check
		s := &spec.Spec{TargetGroups: map[string]*spec.TargetGroup{}, HealthChecks: map[string]*spec.HealthCheck{}, Accelerators: map[string]*spec.Accelerator{}}
		live := slices.Concat(members("seoul", 4, view.Origin), members("frankfurt", 2, view.Origin))
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			if rapid.IntRange(0, 3).Draw(t, "members") == 0 {
				live = slices.Concat(members("seoul", rapid.IntRange(0, 6).Draw(t, "seoul"), view.Origin), members("frankfurt", 2, view.Edge))
			} else {
				s = edited(t, s)
			}
			v := &view.View{Self: "seoul-1", Members: live}
			got, changed := c.Checks(s, v)
			want := Checks(s, v)
			if !slices.Equal(got, want) {
				t.Fatalf("got %v\nwant %v", got, want)
			}
			if changed != !slices.Equal(got, before) {
				t.Fatalf("changed: %v, from %v to %v", changed, before, got)
			}
			before = slices.Clone(got)
		}
	})
}

// Of 100,000 resources nine in ten are target groups of two targets in 20 regions of three nodes each, and one is a health check.
func BenchmarkChooseOneOf100000(b *testing.B) {
	s := &spec.Spec{TargetGroups: map[string]*spec.TargetGroup{}, HealthChecks: map[string]*spec.HealthCheck{}}
	var live []view.Member
	for r := range 20 {
		live = append(live, members(fmt.Sprintf("region-%d", r), 3, view.Origin)...)
	}
	for i := range 90_000 {
		g := webGroup(2)
		g.Name, g.Region = fmt.Sprintf("web-%d", i), fmt.Sprintf("region-%d", i%20)
		s.TargetGroups[g.Name] = g
	}
	for i := range 10_000 {
		h := wwwCheck()
		h.Name = fmt.Sprintf("web-%d", i)
		s.HealthChecks[h.Name] = h
	}
	with := func(name string) *spec.Spec {
		next := *s
		next.TargetGroups = maps.Clone(s.TargetGroups)
		g := *s.TargetGroups[name]
		g.HealthCheck.Interval = duration(10 * time.Second)
		next.TargetGroups[name] = &g
		return &next
	}
	v := &view.View{Self: "region-0-1", Members: live}
	for _, bench := range []struct {
		name string
		next *spec.Spec
	}{{"of this region", with("web-40")}, {"of another region", with("web-41")}, {"no spec and no member", s}} {
		b.Run(bench.name, func(b *testing.B) {
			var c Chooser
			c.Checks(s, v)
			b.ReportAllocs()
			specs := []*spec.Spec{bench.next, s}
			for i := 0; b.Loop(); i++ {
				c.Checks(specs[i%2], v)
			}
		})
	}
	runtime.KeepAlive(s)
}
