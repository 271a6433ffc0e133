package health

import "time"

// Result is the outcome of one probe.
type Result struct {
	Passed bool
	Reason string // why it failed, in words; empty if it passed
}

// Thresholds say when a tracker turns.
type Thresholds struct {
	Healthy   int           // results in a row that must pass before what is unhealthy is healthy, 1–10
	Unhealthy int           // results in a row that must fail before what is healthy is unhealthy, 1–10
	Interval  time.Duration // between two probes
	// PresumedHealthy is how a Route 53 health check begins: as long as it has not passed once nor failed Unhealthy
	// times in a row there is no verdict, and it counts as healthy. So an observer that has just started has no voice
	// before it is sure. Otherwise the first result decides, as an ELB target is initial until its first check and
	// healthy as soon as that one passes.
	PresumedHealthy bool
}

// Tracker turns the results of one observer's probes of one key into a verdict that does not flap: only
// results in a row turn it. It is not safe for concurrent use.
type Tracker struct {
	thresholds Thresholds
	verdict    Verdict
	decided    bool // there is a verdict
	against    int  // results in a row that contradict it, or what is presumed
}

// NewTracker makes a tracker that has seen nothing. Thresholds below 1 count as 1.
func NewTracker(t Thresholds) *Tracker {
	t.Healthy, t.Unhealthy = max(t.Healthy, 1), max(t.Unhealthy, 1)
	return &Tracker{thresholds: t, verdict: Verdict{Healthy: t.PresumedHealthy}}
}

// Observe takes in the next result, of a probe that ended at now. It returns the verdict that stands
// and whether this result turned it; the first verdict of all counts as a turn. Until then, what is returned is only
// presumed.
func (t *Tracker) Observe(r Result, now time.Time) (v Verdict, turned bool) {
	if !t.decided && (r.Passed || !t.thresholds.PresumedHealthy) {
		t.turn(r, now)
		return t.verdict, true
	}
	if r.Passed == t.verdict.Healthy {
		t.against = 0
		return t.verdict, false
	}
	t.against++
	if t.against < t.needed() {
		return t.verdict, false
	}
	t.turn(r, now)
	return t.verdict, true
}

// needed is how many results in a row turn the verdict that stands.
func (t *Tracker) needed() int {
	if t.verdict.Healthy {
		return t.thresholds.Unhealthy
	}
	return t.thresholds.Healthy
}

func (t *Tracker) turn(r Result, now time.Time) {
	t.decided, t.against = true, 0
	t.verdict = Verdict{Healthy: r.Passed, Reason: r.Reason, Since: now}
	t.verdict.Stands = t.thresholds.Interval * time.Duration(t.needed())
}
