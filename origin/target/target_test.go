package target

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
)

// group makes targets 10.0.0.1:80, 10.0.0.2:80, … one for each letter: h healthy, u unhealthy, i initial.
func group(states string) (*spec.TargetGroup, *view.View) {
	g := &spec.TargetGroup{Name: "web"}
	verdicts := map[health.Key]health.Verdict{}
	for i, s := range states {
		t := spec.Target{Address: netip.AddrFrom4([4]byte{10, 0, byte((i + 1) >> 8), byte(i + 1)}), Port: 80}
		g.Targets = append(g.Targets, t)
		switch s {
		case 'h':
			verdicts[health.TargetKey("web", t.AddrPort())] = health.Verdict{Healthy: true}
		case 'u':
			verdicts[health.TargetKey("web", t.AddrPort())] = health.Verdict{Reason: "refused"}
		}
	}
	return g, &view.View{Health: health.NewTable(verdicts)}
}

// last are the last bytes of the addresses: which targets they are.
func last(addrs []netip.AddrPort) []byte {
	var b []byte
	for _, a := range addrs {
		b = append(b, a.Addr().As4()[3])
	}
	return b
}

func TestHealthyTargetsComeFirstThenTheRest(t *testing.T) {
	for _, c := range []struct {
		states string
		turn   uint64
		want   []byte
	}{
		{"hhh", 0, []byte{1, 2, 3}},
		{"hhh", 1, []byte{2, 3, 1}},
		{"hhh", 5, []byte{3, 1, 2}},
		{"hhh", 1<<64 - 1, []byte{1, 2, 3}}, // (2⁶⁴−1) mod 3 = 0
		{"uhhi", 0, []byte{2, 3, 1, 4}},
		{"uhhi", 1, []byte{3, 2, 4, 1}},
		{"uui", 0, []byte{1, 2, 3}}, // none healthy: all
		{"uui", 1, []byte{2, 3, 1}},
		{"iii", 2, []byte{3, 1, 2}}, // nothing known yet: all
		{"h", 7, []byte{1}},
		{"", 7, nil},
	} {
		g, v := group(c.states)
		if got := last(Order(g, v, c.turn, nil)); !slices.Equal(got, c.want) {
			t.Errorf("%s, turn %d: got %v, want %v", c.states, c.turn, got, c.want)
		}
	}
}

func TestTenThousandTurnsAreSharedOutEvenly(t *testing.T) {
	for _, c := range []struct {
		states string
		shares map[byte]int
	}{
		{"hhhh", map[byte]int{1: 2500, 2: 2500, 3: 2500, 4: 2500}},
		{"huhih", map[byte]int{1: 3334, 3: 3333, 5: 3333}},
		{"uiuui", map[byte]int{1: 2000, 2: 2000, 3: 2000, 4: 2000, 5: 2000}},
	} {
		g, v := group(c.states)
		shares := map[byte]int{}
		for turn := range uint64(10_000) {
			shares[last(Order(g, v, turn, nil))[0]]++
		}
		if fmt.Sprint(shares) != fmt.Sprint(c.shares) {
			t.Errorf("%s: got %v, want %v", c.states, shares, c.shares)
		}
	}
}

func TestEveryTargetIsACandidateOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, v := group(rapid.StringMatching(`[hui]{0,40}`).Draw(t, "states"))
		turn := rapid.Uint64().Draw(t, "turn")
		got := Order(g, v, turn, nil)
		var want []netip.AddrPort
		for _, tg := range g.Targets {
			want = append(want, tg.AddrPort())
		}
		unhealthy := false
		for _, a := range got {
			healthy := v.TargetHealthy("web", a)
			if healthy && unhealthy {
				t.Fatalf("a healthy target behind one that is not: %v", got)
			}
			unhealthy = unhealthy || !healthy
		}
		slices.SortFunc(got, netip.AddrPort.Compare)
		if !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

func TestANilViewFailsOpen(t *testing.T) {
	g, _ := group("hh")
	if got := last(Order(g, nil, 1, nil)); !slices.Equal(got, []byte{2, 1}) {
		t.Errorf("got %v", got)
	}
}

func TestTheOrderIsExplained(t *testing.T) {
	for states, want := range map[string]string{
		"huhi": `target group web: 2 of 4 targets healthy
  10.0.0.3:80: healthy, its turn (round_robin)
  10.0.0.1:80: healthy, next, if it cannot be dialed
  10.0.0.4:80: initial, next, if it cannot be dialed
  10.0.0.2:80: unhealthy (refused), next, if it cannot be dialed
`,
		"u": `target group web: none of 1 targets is healthy, so all take traffic
  10.0.0.1:80: unhealthy (refused), its turn (round_robin)
`,
		"": "target group web: no targets\n",
	} {
		g, v := group(states)
		tr := new(trace.Trace)
		explained := Order(g, v, 1, tr)
		if !slices.Equal(explained, Order(g, v, 1, nil)) {
			t.Errorf("%s: explained otherwise than chosen: %v", states, explained)
		}
		if tr.String() != want {
			t.Errorf("%s: got\n%swant\n%s", states, tr, want)
		}
	}
}

func BenchmarkTheFirstOfAThousandTargets(b *testing.B) {
	states := ""
	for range 1000 {
		states += "h"
	}
	p := Split(group(states))
	var turn uint64
	b.ReportAllocs()
	for b.Loop() {
		for range p.Candidates(turn) {
			break
		}
		turn++
	}
}
