package health

import (
	"testing"
	"time"
)

var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// observe feeds a tracker one result each 10 s, written as + and −, and returns the verdicts in the
// same way, a turn in brackets.
func observe(tr *Tracker, results string) string {
	var out string
	since := time.Time{}
	for i, r := range results {
		v, changed := tr.Observe(Result{Passed: r == '+'}, start.Add(time.Duration(i)*10*time.Second))
		said := "-"
		if v.Healthy {
			said = "+"
		}
		if changed && v.Since != since {
			said, since = "["+said+"]", v.Since
		}
		out += said
	}
	return out
}

func TestOnlyResultsInARowTurnAVerdict(t *testing.T) {
	elb := Thresholds{Healthy: 5, Unhealthy: 2, Interval: 30 * time.Second}
	route53 := Thresholds{Healthy: 3, Unhealthy: 3, Interval: 10 * time.Second, PresumedHealthy: true}
	for _, c := range []struct {
		name       string
		thresholds Thresholds
		results    string
		want       string
	}{
		{"an initial target is healthy after one pass", elb, "++", "[+]+"},
		{"an initial target is unhealthy after one failure", elb, "--", "[-]-"},
		{"two failures turn a target", elb, "+--", "[+]+[-]"},
		{"one failure does not", elb, "+-+-+", "[+]++++"},
		{"five passes turn it back", elb, "-+++++", "[-]----[+]"},
		{"four passes and a failure do not", elb, "-++++-++++", "[-]---------"},
		{"a target that flaps each probe never turns", elb, "+-+-+-+-+-+-+-+-", "[+]+++++++++++++++"},
		{"nor does one that began unhealthy", elb, "-+-+-+-+-+-+-+-+", "[-]---------------"},
		{"a health check is presumed healthy, without a verdict", route53, "--", "++"},
		{"until it passes", route53, "--+--", "++[+]++"},
		{"or three failures", route53, "---", "++[-]"},
		{"and back after three passes", route53, "---+++", "++[-]--[+]"},
		{"a threshold of one turns a presumed check at once", Thresholds{Healthy: 1, Unhealthy: 1, PresumedHealthy: true}, "-+-", "[-][+][-]"},
		{"thresholds below one are one", Thresholds{}, "+-+", "[+][-][+]"},
	} {
		if got := observe(NewTracker(c.thresholds), c.results); got != c.want {
			t.Errorf("%s: %s became %s, want %s", c.name, c.results, got, c.want)
		}
	}
}

func TestAVerdictSaysSinceWhenWhyAndHowLongItStands(t *testing.T) {
	tr := NewTracker(Thresholds{Healthy: 5, Unhealthy: 2, Interval: 30 * time.Second})
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	for _, c := range []struct {
		result  Result
		after   int // s
		want    Verdict
		changed bool
	}{
		{Result{Passed: true}, 0, Verdict{Healthy: true, Since: start, Stands: time.Minute}, true},
		{Result{Passed: true}, 30, Verdict{Healthy: true, Since: start, Stands: time.Minute}, false},
		{Result{Reason: "timeout after 6s"}, 60, Verdict{Healthy: true, Since: start, Stands: 30 * time.Second,
			LastFailure: "timeout after 6s", LastFailureAt: at(60)}, true},
		{Result{Reason: "status 503, want 200"}, 90, Verdict{Reason: "status 503, want 200", Since: at(90), Stands: 150 * time.Second,
			LastFailure: "status 503, want 200", LastFailureAt: at(90)}, true},
		{Result{Reason: "refused"}, 120, Verdict{Reason: "status 503, want 200", Since: at(90), Stands: 150 * time.Second,
			LastFailure: "refused", LastFailureAt: at(120)}, false},
		{Result{Passed: true}, 150, Verdict{Reason: "status 503, want 200", Since: at(90), Stands: 120 * time.Second,
			LastFailure: "refused", LastFailureAt: at(120)}, true},
		{Result{Reason: "refused"}, 180, Verdict{Reason: "status 503, want 200", Since: at(90), Stands: 150 * time.Second,
			LastFailure: "refused", LastFailureAt: at(180)}, true},
	} {
		if v, changed := tr.Observe(c.result, at(c.after)); v != c.want || changed != c.changed {
			t.Errorf("after %d s: got %+v, %v, want %+v, %v", c.after, v, changed, c.want, c.changed)
		}
	}
}

// What is only presumed is no verdict, so there is no news of it.
func TestWhatIsPresumedIsNoNews(t *testing.T) {
	tr := NewTracker(Thresholds{Healthy: 3, Unhealthy: 3, Interval: time.Second, PresumedHealthy: true})
	for range 2 {
		if v, changed := tr.Observe(Result{Reason: "refused"}, start); !v.Healthy || changed {
			t.Errorf("got %+v, %v", v, changed)
		}
	}
	if v, changed, _ := tr.Evidence("reset", start); !v.Healthy || changed {
		t.Errorf("got %+v, %v", v, changed)
	}
	if v, changed := tr.Observe(Result{Reason: "refused"}, start); v.Healthy || !changed {
		t.Errorf("got %+v, %v", v, changed)
	}
}

func TestEvidenceHastensATurnButNeverMakesIt(t *testing.T) {
	const interval = 10 * time.Second
	for _, c := range []struct {
		name      string
		unhealthy int
		steps     string // + and - are probes, e evidence; each 100 ms after the one before
		want      string // + and - what stands then
	}{
		{"no evidence turns it", 2, "+eeeeeeee", "+++++++++"},
		{"one failed probe does after evidence", 2, "+e-", "++-"},
		{"between two probes it counts once", 3, "+eeee-", "++++++"},
		{"between others again", 4, "+e-e-", "++++-"},
		{"a threshold of one leaves it nothing to count", 1, "+eee-", "++++-"},
		{"a probe that passes ends what it began", 3, "+e-+e-", "++++++"},
		{"it condemns nobody before there is a verdict", 2, "eee-", "----"},
		{"it keeps nothing unhealthy", 2, "-+e+", "---+"},
	} {
		tr := NewTracker(Thresholds{Healthy: 2, Unhealthy: c.unhealthy, Interval: interval})
		got := ""
		for i, step := range c.steps {
			now := start.Add(time.Duration(i) * 100 * time.Millisecond)
			var v Verdict
			if step == 'e' {
				v, _, _ = tr.Evidence("reset", now)
			} else {
				v, _ = tr.Observe(Result{Passed: step == '+'}, now)
			}
			if got += "-"; v.Healthy {
				got = got[:i] + "+"
			}
		}
		if got != c.want {
			t.Errorf("%s: %s became %s, want %s", c.name, c.steps, got, c.want)
		}
	}
}

func TestEvidenceShortensHowLongAVerdictStandsAndAsksForAProbeEachSecondAtMost(t *testing.T) {
	tr := NewTracker(Thresholds{Healthy: 5, Unhealthy: 3, Interval: 10 * time.Second})
	tr.Observe(Result{Passed: true}, start)
	v, changed, probe := tr.Evidence("reset by peer", at(1))
	want := Verdict{Healthy: true, Since: start, Stands: 20 * time.Second, LastFailure: "reset by peer", LastFailureAt: at(1)}
	if v != want || !changed || !probe {
		t.Errorf("got %+v, %v, %v, want %+v", v, changed, probe, want)
	}
	asked := 0
	for i := range 100 {
		v, changed, probe := tr.Evidence("reset by peer", at(1).Add(time.Duration(i)*100*time.Millisecond))
		if v != want || changed {
			t.Fatalf("got %+v, %v", v, changed)
		}
		if probe {
			asked++
		}
	}
	if asked != 9 {
		t.Errorf("10 s of failures asked for %d more probes, want 9", asked)
	}
	for range 3 {
		tr.Observe(Result{}, at(20))
	}
	if _, changed, probe := tr.Evidence("reset", at(30)); changed || probe {
		t.Error("what is unhealthy is probed anew for evidence")
	}
}

// Whatever a target does each second: it never turns more often than its thresholds let it, which is once in as many
// results as either takes, and one that flaps each probe does not turn at all.
func TestFlappingEverySecondTurnsNothing(t *testing.T) {
	for _, th := range []Thresholds{{Healthy: 5, Unhealthy: 2, Interval: time.Second}, {Healthy: 3, Unhealthy: 3, Interval: time.Second, PresumedHealthy: true}} {
		for _, pattern := range []string{"+-", "-+", "++-", "+++-"} {
			tr := NewTracker(th)
			turns, since := 0, time.Time{}
			for i := range 3600 {
				if v, _ := tr.Observe(Result{Passed: pattern[i%len(pattern)] == '+'}, at(i)); v.Since != since {
					turns, since = turns+1, v.Since
				}
			}
			if turns != 1 {
				t.Errorf("%+v: %s, over and over, turned %d times, want the first verdict alone", th, pattern, turns)
			}
		}
	}
}
