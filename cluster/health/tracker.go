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

// evidenceEvery is how often evidence may ask for a probe: so that however many requests fail, a target that is in
// trouble is not probed more often than this.
const evidenceEvery = time.Second

// Tracker turns the results of one observer's probes of one key into a verdict that does not flap: only
// results in a row turn it. It is not safe for concurrent use.
type Tracker struct {
	thresholds Thresholds
	verdict    Verdict
	decided    bool      // there is a verdict
	against    int       // results in a row that contradict it, or what is presumed
	evident    bool      // evidence was counted since the last probe
	asked      time.Time // when evidence last asked for a probe
}

// NewTracker makes a tracker that has seen nothing. Thresholds below 1 count as 1.
func NewTracker(t Thresholds) *Tracker {
	t.Healthy, t.Unhealthy = max(t.Healthy, 1), max(t.Unhealthy, 1)
	return &Tracker{thresholds: t, verdict: Verdict{Healthy: t.PresumedHealthy}}
}

// Observe takes in the next result, of a probe that ended at now. It returns the verdict that stands, and whether there
// is news of it: it turned (the first verdict of all is a turn too), or stands for another time than before. Until there
// is a verdict, what is returned is only presumed, and no news.
func (t *Tracker) Observe(r Result, now time.Time) (v Verdict, changed bool) {
	t.evident = false
	if !r.Passed {
		t.verdict.LastFailure, t.verdict.LastFailureAt = r.Reason, now
	}
	switch {
	case !t.decided && (r.Passed || !t.thresholds.PresumedHealthy):
		return t.turn(r, now), true
	case r.Passed == t.verdict.Healthy:
		t.against = 0
	default:
		t.against++
		if t.against >= t.needed() {
			return t.turn(r, now), true
		}
	}
	return t.stand()
}

// Evidence takes in what the data path saw: enough failures, of different clients, that something must be wrong (Witness).
// Between two probes it counts as one failed result, however often it comes, and it never takes the last step: only a
// probe turns a verdict, so that what strangers do to their own requests condemns nothing. It weighs nothing against what is
// unhealthy, or clients could keep it so. probeNow says that a probe at once would tell: at most once a second.
func (t *Tracker) Evidence(reason string, now time.Time) (v Verdict, changed, probeNow bool) {
	if t.decided && !t.verdict.Healthy {
		return t.verdict, false, false
	}
	if probeNow = now.Sub(t.asked) >= evidenceEvery; probeNow {
		t.asked = now
	}
	if t.verdict.Healthy && !t.evident && t.against+1 < t.needed() {
		t.evident = true
		t.against++
		t.verdict.LastFailure, t.verdict.LastFailureAt = reason, now
	}
	v, changed = t.stand()
	return v, changed, probeNow
}

// needed is how many results in a row turn the verdict that stands.
func (t *Tracker) needed() int {
	if t.verdict.Healthy {
		return t.thresholds.Unhealthy
	}
	return t.thresholds.Healthy
}

func (t *Tracker) turn(r Result, now time.Time) Verdict {
	t.decided, t.against = true, 0
	t.verdict.Healthy, t.verdict.Reason, t.verdict.Since = r.Passed, r.Reason, now
	t.stand()
	return t.verdict
}

// stand works out how long the verdict can stand now, and whether that is another time than before.
func (t *Tracker) stand() (v Verdict, changed bool) {
	if !t.decided {
		return t.verdict, false
	}
	before := t.verdict.Stands
	t.verdict.Stands = t.thresholds.Interval * time.Duration(t.needed()-t.against)
	return t.verdict, t.verdict.Stands != before
}
