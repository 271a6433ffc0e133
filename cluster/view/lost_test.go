package view

import (
	"testing"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
)

func TestWhatIsNotHealthyWasSoUntilTheVerdictThatDecidedTurned(t *testing.T) {
	calculated := func(threshold int, inverted bool, children ...string) *spec.HealthCheck {
		return &spec.HealthCheck{Type: spec.Calculated, HealthThreshold: &threshold, Inverted: inverted, ChildHealthChecks: children}
	}
	s := &spec.Spec{
		HealthChecks: map[string]*spec.HealthCheck{
			"a": {}, "b": {}, "c": {}, "up": {}, "up2": {}, "new": {}, "off": {Disabled: true}, "not": {Inverted: true},
			"any":        calculated(1, false, "a", "b", "c"),
			"two":        calculated(2, false, "a", "b", "c"),
			"every":      calculated(3, false, "a", "b", "c"),
			"one up":     calculated(2, false, "a", "b", "up"),
			"off counts": calculated(2, false, "a", "off"),
			"never":      calculated(4, false, "a", "b", "c"),
			"too many":   calculated(2, true, "a", "up", "up2"),
			"and off":    calculated(2, true, "off", "up"),
			"always off": calculated(1, true, "off", "up"),
			"not none":   calculated(0, true, "a"),
			"odd":        calculated(1, false, "not"),
		},
		TargetGroups: map[string]*spec.TargetGroup{"web": group("web", one, two), "api": group("api", one), "fine": group("fine", one), "initial": group("initial", two)},
		LoadBalancers: map[string]*spec.LoadBalancer{
			"web": balancer("web"), "both": balancer("web", "api"), "half": balancer("fine", "web"), "initial": balancer("web", "initial"), "fixed": {},
		},
	}
	at := func(second int64, healthy bool) health.Verdict {
		return health.Verdict{Healthy: healthy, Since: time.Unix(second, 0)}
	}
	v := &View{Health: health.NewTable(map[health.Key]health.Verdict{
		health.CheckKey("a"): at(10, false), health.CheckKey("b"): at(20, false), health.CheckKey("c"): at(30, false),
		health.CheckKey("up"): at(40, true), health.CheckKey("up2"): at(50, true), health.CheckKey("not"): at(60, true),
		health.TargetKey("web", one): at(10, false), health.TargetKey("web", two): at(25, false), health.TargetKey("api", one): at(15, false),
		health.TargetKey("fine", one): at(5, true),
	})}
	for name, want := range map[string]int64{
		"a": 10, "c": 30, "not": 60, "any": 30, "two": 20, "every": 10, "one up": 20, "off counts": 10, "too many": 50, "and off": 40, "odd": 60,
		"new": -1, "never": -1, "always off": -1, "not none": -1, "no such check": -1,
	} {
		if got := v.CheckLost(s, name); want < 0 && !got.IsZero() || want >= 0 && !got.Equal(time.Unix(want, 0)) {
			t.Errorf("check %s: %v, want %d", name, got, want)
		}
		if want >= 0 && v.CheckHealthy(s, name) {
			t.Errorf("check %s is healthy", name)
		}
	}
	for name, want := range map[string]int64{"web": 25, "both": 15, "half": 25, "initial": -1, "fixed": -1, "no such": -1} {
		if got := v.LoadBalancerLost(s, name); want < 0 && !got.IsZero() || want >= 0 && !got.Equal(time.Unix(want, 0)) {
			t.Errorf("load balancer %s: %v, want %d", name, got, want)
		}
	}
	if !(*View)(nil).CheckLost(s, "a").IsZero() || !(*View)(nil).LoadBalancerLost(s, "web").IsZero() {
		t.Error("a nil view knows something")
	}
}
