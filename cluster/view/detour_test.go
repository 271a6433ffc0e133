package view

import (
	"testing"
	"time"
)

func TestADetourIsTakenWhereItIsWorthIt(t *testing.T) {
	const ms = time.Millisecond
	between := map[[2]string]time.Duration{{"relay", "far"}: 50 * ms, {"slow", "far"}: 200 * ms, {"leaving", "far"}: ms, {"drained", "far"}: ms, {"cut", "far"}: ms}
	for _, c := range []struct {
		name        string
		rtt         map[string]time.Duration
		unreachable []string
		want        Detour
	}{
		{"two legs are much shorter", map[string]time.Duration{"far": 300 * ms, "relay": 60 * ms, "slow": 10 * ms}, nil, Detour{"relay", 111 * ms, 300 * ms}},
		{"the shorter of two", map[string]time.Duration{"far": 400 * ms, "relay": 200 * ms, "slow": 10 * ms}, nil, Detour{"slow", 211 * ms, 400 * ms}},
		{"a sixth, and no less", map[string]time.Duration{"far": 120 * ms, "relay": 49 * ms}, nil, Detour{"relay", 100 * ms, 120 * ms}},
		{"less than a sixth", map[string]time.Duration{"far": 120 * ms, "relay": 50 * ms}, nil, Detour{}},
		{"less than 10 ms", map[string]time.Duration{"far": 55 * ms, "relay": 0}, nil, Detour{}},
		{"longer", map[string]time.Duration{"far": 50 * ms, "relay": 60 * ms}, nil, Detour{}},
		{"the only way", map[string]time.Duration{"relay": 60 * ms}, []string{"far"}, Detour{"relay", 111 * ms, 0}},
		{"the only way, whatever was measured before", map[string]time.Duration{"far": 50 * ms, "relay": 60 * ms}, []string{"far"}, Detour{"relay", 111 * ms, 0}},
		{"by who cannot be reached either", map[string]time.Duration{"cut": 5 * ms}, []string{"far", "cut"}, Detour{}},
		{"by who leaves or is drained", map[string]time.Duration{"far": 300 * ms, "leaving": ms, "drained": ms}, nil, Detour{}},
		{"by who knows no way", map[string]time.Duration{"far": 300 * ms, "other": ms}, nil, Detour{}},
		{"nothing is measured yet", map[string]time.Duration{"relay": 60 * ms}, nil, Detour{}},
	} {
		v := &View{Self: "self", RTT: c.rtt, Unreachable: map[string]bool{}}
		for _, name := range []string{"self", "far", "relay", "slow", "leaving", "drained", "cut", "other"} {
			v.Members = append(v.Members, Member{Name: name, Leaving: name == "leaving"})
			if name == "drained" {
				v.Members[len(v.Members)-1].Drained = "node drained"
			}
		}
		for _, name := range c.unreachable {
			v.Unreachable[name] = true
		}
		asked := 0
		find := Detours(v, func(a, b string) (time.Duration, bool) {
			asked++
			d, ok := between[[2]string{a, b}]
			return d, ok
		})
		got, ok := find("far")
		if got != c.want || ok != (c.want.By != "") {
			t.Errorf("%s: got %+v %v, want %+v", c.name, got, ok, c.want)
		}
		before := asked
		if again, _ := find("far"); again != got || asked != before {
			t.Errorf("%s: asked again, %d more looks, %+v", c.name, asked-before, again)
		}
	}
}
