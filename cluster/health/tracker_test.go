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
	for i, r := range results {
		v, turned := tr.Observe(Result{Passed: r == '+'}, start.Add(time.Duration(i)*10*time.Second))
		said := "-"
		if v.Healthy {
			said = "+"
		}
		if turned {
			said = "[" + said + "]"
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
	v, _ := tr.Observe(Result{Passed: true}, start)
	if want := (Verdict{Healthy: true, Since: start, Stands: time.Minute}); v != want {
		t.Errorf("got %+v, want %+v", v, want)
	}
	tr.Observe(Result{Reason: "timeout after 6s"}, start.Add(time.Minute))
	v, _ = tr.Observe(Result{Reason: "status 503, want 200"}, start.Add(90*time.Second))
	want := Verdict{Reason: "status 503, want 200", Since: start.Add(90 * time.Second), Stands: 150 * time.Second}
	if v != want {
		t.Errorf("got %+v, want %+v", v, want)
	}
	if v, _ = tr.Observe(Result{Passed: true}, start.Add(2*time.Minute)); v != want {
		t.Errorf("a result that turned nothing changed the verdict to %+v", v)
	}
}
