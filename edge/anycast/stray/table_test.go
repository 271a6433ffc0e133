package stray

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func of(n int) Flow {
	return Flow{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(n >> 16), byte(n >> 8)}), uint16(n&0xff)+1), flow4.Server}
}

func parts(texts ...string) (all [][]byte) {
	for _, s := range texts {
		all = append(all, []byte(s))
	}
	return all
}

// want compares what is to be done with "deed to: segments".
func want(t *testing.T, v verdict, text string) {
	t.Helper()
	name := []string{"wait", "ask", "carry", "local", "drop"}[v.do]
	if got := fmt.Sprintf("%s %s: %s", name, v.to, v.all); got != text {
		t.Errorf("%s, want %s", got, text)
	}
}

func TestTheNodeOfAFlowIsAskedForOnce(t *testing.T) {
	tab, peers := newTable(), []string{"a", "b"}
	want(t, tab.segments(start, flow4, parts("1", "2"), peers), "ask [a b]: [1 2]")
	want(t, tab.segments(start, flow4, parts("3"), peers), "wait []: [3]")
	want(t, tab.answered(start, "a", flow4, false), "wait []: []")
	v := tab.answered(start, "b", flow4, true)
	want(t, v, "carry [b]: [1 2 3]")
	if !v.learnt || tab.bytes != 0 {
		t.Error(v, tab.bytes)
	}
	want(t, tab.segments(start, flow4, parts("4"), peers), "carry [b]: [4]")
	want(t, tab.answered(start, "a", flow4, true), "wait []: []") // too late
	want(t, tab.segments(start, flow4, parts("5"), peers), "carry [b]: [5]")
}

func TestWhatNobodyHasIsThisNodesForAWhile(t *testing.T) {
	tab := newTable()
	want(t, tab.segments(start, flow4, parts("1"), []string{"a"}), "ask [a]: [1]")
	want(t, tab.answered(start, "b", flow4, false), "wait []: []") // it was not asked
	want(t, tab.answered(start, "a", flow4, false), "local []: [1]")
	want(t, tab.segments(start, flow4, parts("2"), []string{"a"}), "local []: [2]")
	if all := tab.sweep(start.Add(nobodyFor)); len(all) != 0 {
		t.Error(all)
	}
	want(t, tab.segments(start.Add(nobodyFor), flow4, parts("3"), []string{"a"}), "ask [a]: [3]")
	want(t, newTable().segments(start, flow4, parts("1"), nil), "local []: [1]")
}

func TestWhoDoesNotAnswerIsAskedOnceMore(t *testing.T) {
	tab := newTable()
	tab.segments(start, flow4, parts("1"), []string{"a", "b"})
	tab.answered(start, "a", flow4, false)
	if all := tab.sweep(start.Add(askAgain - 1)); len(all) != 0 {
		t.Error(all)
	}
	all := tab.sweep(start.Add(askAgain))
	if len(all) != 1 {
		t.Fatal(all)
	}
	want(t, all[0], "ask [b]: []")
	if all := tab.sweep(start.Add(askFor - 1)); len(all) != 0 {
		t.Error(all)
	}
	// It may have the flow: the client is not told that nobody has it.
	if all = tab.sweep(start.Add(askFor)); len(all) != 1 {
		t.Fatal(all)
	}
	want(t, all[0], "drop []: [1]")
}

// One flow is not dropped for long because of one node, and the others, who have said no, are not asked again.
func TestAFlowIsAnsweredInTheEndThoughANodeIsSilent(t *testing.T) {
	tab, peers := newTable(), []string{"a", "b"}
	tab.segments(start, flow4, parts("1"), peers)
	tab.answered(start, "a", flow4, false)
	want(t, tab.unanswered(start.Add(askFor), "b", flow4), "drop []: [1]")
	want(t, tab.segments(start.Add(2*askFor), flow4, parts("2"), peers), "ask [b]: [2]")
	want(t, tab.unanswered(start.Add(unsureFor-1), "b", flow4), "drop []: [2]")
	want(t, tab.segments(start.Add(unsureFor-1), flow4, parts("3"), peers), "ask [b]: [3]")
	want(t, tab.unanswered(start.Add(unsureFor), "b", flow4), "local []: [3]")
	want(t, tab.segments(start.Add(unsureFor), flow4, parts("4"), peers), "local []: [4]")

	// What it says later counts.
	unsureOf := func() *table {
		tab := newTable()
		tab.segments(start, flow4, parts("1"), peers)
		tab.answered(start, "a", flow4, false)
		want(t, tab.unanswered(start.Add(askFor), "b", flow4), "drop []: [1]")
		return tab
	}
	tab = unsureOf()
	want(t, tab.answered(start.Add(askFor), "a", flow4, true), "wait []: []") // too late
	if v := tab.answered(start.Add(askFor), "b", flow4, true); !v.learnt || len(v.all) != 0 {
		t.Error(v)
	}
	want(t, tab.segments(start.Add(askFor), flow4, parts("2"), peers), "carry [b]: [2]")
	tab = unsureOf()
	want(t, tab.answered(start.Add(askFor), "b", flow4, false), "wait []: []")
	want(t, tab.segments(start.Add(askFor), flow4, parts("2"), peers), "local []: [2]")
	tab = unsureOf()
	if all := tab.gone(start.Add(askFor), "b"); len(all) != 0 {
		t.Error(all)
	}
	want(t, tab.segments(start.Add(askFor), flow4, parts("2"), peers[:1]), "local []: [2]")
	// It is kept in mind for a while.
	tab = unsureOf()
	tab.sweep(start.Add(askFor + unsureKept - 1))
	want(t, tab.segments(start.Add(askFor+unsureKept-1), flow4, parts("2"), peers), "ask [b]: [2]")
	tab = unsureOf()
	tab.sweep(start.Add(askFor + unsureKept))
	want(t, tab.segments(start.Add(askFor+unsureKept), flow4, parts("2"), peers), "ask [a b]: [2]")
}

// A node that has answered nothing for long is not waited for, until it says something.
func TestASilentNodeIsPassedOver(t *testing.T) {
	tab, peers := newTable(), []string{"a", "b"}
	silence := func(now time.Time, n int) verdict {
		tab.segments(now, of(n), parts("1"), peers)
		tab.answered(now, "a", of(n), false)
		return tab.unanswered(now, "b", of(n))
	}
	for n := range 100 { // many at once are but a moment's
		want(t, silence(start, n), "drop []: [1]")
	}
	want(t, silence(start.Add(silentFor-1), 100), "drop []: [1]")
	now := start.Add(silentFor)
	v := tab.segments(now, of(200), parts("1"), peers)
	want(t, v, "ask [a]: [1]")
	if !slices.Equal(v.probe, []string{"b"}) {
		t.Error(v.probe)
	}
	want(t, tab.answered(now, "a", of(200), false), "local []: [1]")
	if v = tab.segments(now.Add(probeEvery-1), of(201), parts("1"), peers); v.do != ask || v.probe != nil {
		t.Error(v)
	}
	// Where there is nobody else, too.
	v = tab.segments(now.Add(probeEvery), of(202), parts("1"), peers[1:])
	want(t, v, "local []: [1]")
	if !slices.Equal(v.probe, []string{"b"}) {
		t.Error(v.probe)
	}
	tab.answered(now.Add(probeEvery), "b", of(202), false)
	want(t, tab.segments(now.Add(probeEvery), of(203), parts("1"), peers), "ask [a b]: [1]")

	// One that answers between is none.
	tab = newTable()
	for n := range 10 {
		want(t, silence(start.Add(time.Duration(n)*silentFor), n), "drop []: [1]")
		tab.answered(start, "b", flow6, false)
	}
	// Nor is one of which but a datagram was lost now and then.
	want(t, silence(start, 20), "drop []: [1]")
	want(t, silence(start.Add(time.Hour), 21), "drop []: [1]")
}

func TestTheNodeOfAFlowIsForgotten(t *testing.T) {
	know := func() *table {
		tab := newTable()
		tab.segments(start, flow4, parts("1"), []string{"a"})
		tab.answered(start, "a", flow4, true)
		return tab
	}
	for name, forget := range map[string]func(*table) []verdict{
		"it says so":      func(tab *table) []verdict { return []verdict{tab.answered(start, "a", flow4, false)} },
		"it is gone":      func(tab *table) []verdict { return tab.gone(start, "a") },
		"it says no more": func(tab *table) []verdict { return tab.sweep(start.Add(idleFor)) },
	} {
		tab := know()
		if all := forget(tab); len(all) != 1 || !all[0].forgot || all[0].do != wait {
			t.Error(name, all)
		}
		want(t, tab.segments(start, flow4, parts("2"), []string{"b"}), "ask [b]: [2]")
	}
	tab := know()
	tab.segments(start.Add(idleFor-1), flow4, parts("2"), nil)
	if all := tab.sweep(start.Add(idleFor)); len(all) != 0 {
		t.Error("one that is used is kept:", all)
	}
	if all := tab.gone(start, "b"); len(all) != 0 {
		t.Error(all)
	}
}

func TestOneThatIsGoneHasNothing(t *testing.T) {
	tab := newTable()
	tab.segments(start, flow4, parts("1"), []string{"a"})
	all := tab.gone(start, "a")
	if len(all) != 1 {
		t.Fatal(all)
	}
	want(t, all[0], "local []: [1]")
}

func TestTheTableIsBounded(t *testing.T) {
	tab, peers := newTable(), []string{"a"}
	tab.segments(start, of(0), parts("1"), peers)
	for range maxHeld - 1 {
		want(t, tab.segments(start, of(0), parts("x"), peers), "wait []: [x]")
	}
	want(t, tab.segments(start, of(0), parts("x"), peers), "drop []: [x]")
	large := make([]byte, maxHeldBytes-tab.bytes)
	if v := tab.segments(start, of(1), [][]byte{large}, peers); v.do != ask {
		t.Error(v.do)
	}
	want(t, tab.segments(start, of(2), parts("x"), peers), "drop []: [x]")
	tab.answered(start, "a", of(1), false)
	for n := 3; len(tab.asking)-tab.resting < maxAsking; n++ {
		tab.segments(start, of(n), parts("x"), peers)
	}
	want(t, tab.segments(start, of(1<<20), parts("x"), peers), "local []: [x]")
	tab.drop = true
	want(t, tab.segments(start, of(1<<20), parts("x"), peers), "drop []: [x]")

	tab = newTable()
	for n := range maxResting + 1 {
		tab.segments(start, of(n), parts("x"), peers)
		if v := tab.answered(start, "a", of(n), false); v.do != local {
			t.Fatal(v)
		}
	}
	if tab.resting != maxResting || len(tab.asking) != maxResting {
		t.Error(tab.resting, len(tab.asking))
	}
	want(t, tab.segments(start, of(maxResting), parts("x"), peers), "ask [a]: [x]")
	tab.answered(start, "a", of(maxResting), false)
	tab.sweep(start.Add(nobodyFor))
	if tab.resting != 0 || len(tab.asking) != 0 {
		t.Error(tab.resting, len(tab.asking))
	}

	tab = newTable()
	for n := range maxKnown {
		tab.segments(start, of(n), parts("x"), peers)
		tab.answered(start, "a", of(n), true)
	}
	tab.segments(start, of(1<<20), parts("x", "y"), peers)
	if v := tab.answered(start, "a", of(1<<20), true); v.learnt || v.do != carry || len(tab.known) != maxKnown {
		t.Error(v.learnt, v.do, len(tab.known))
	}
	many := make([]string, 100)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	if v := newTable().segments(start, flow4, parts("x"), many); !slices.Equal(v.to, many[:maxAsked]) {
		t.Error(v.to)
	}
	var o own
	for n := range maxKnown + 1 {
		o.add(start, of(n))
	}
	if len(o.used) != maxKnown || o.has(start, of(maxKnown)) {
		t.Error(len(o.used))
	}
	o.sweep(start.Add(idleFor))
	if len(o.used) != 0 {
		t.Error(len(o.used))
	}
}

// Strangers who send as much as the kernel lets through take no place from flows that somebody has.
func TestAFloodLeavesFlowsAlone(t *testing.T) {
	for name, due := range map[string]time.Duration{"answered": 50 * time.Millisecond, "unanswered": time.Hour} {
		tab, peers, now, x := newTable(), []string{"a", "b"}, start, parts("x")
		type question struct {
			at time.Time
			f  Flow
		}
		var under []question
		answer := func() {
			for len(under) > 0 && !under[0].at.After(now) {
				tab.answered(now, "a", under[0].f, false)
				tab.answered(now, "b", under[0].f, false)
				under = under[1:]
			}
		}
		n := 0
		for ms := range 9_000 {
			now = now.Add(time.Millisecond)
			for ; n < ms*maxAsks/1073; n++ {
				if v := tab.segments(now, of(n), x, peers); v.do == ask {
					under = append(under, question{now.Add(due), of(n)})
				} else if due < time.Hour {
					t.Fatal(name, ": of the flood is not asked for after ms", ms, v.do)
				}
			}
			answer()
			if ms%200 == 0 {
				tab.sweep(now)
			}
			if ms%1000 == 999 {
				f := of(1<<22 + ms)
				if v := tab.segments(now, f, parts("1"), peers); v.do != ask {
					t.Fatal(name, ": a flow is not asked for after ms", ms, v.do, len(tab.asking), tab.resting)
				}
				want(t, tab.answered(now, "a", f, true), "carry [a]: [1]")
			}
		}
		resting := 0
		for _, a := range tab.asking {
			if a.standing != waited {
				resting++
			}
		}
		if resting != tab.resting || resting > maxResting {
			t.Error(name, resting, tab.resting)
		}
	}
}
