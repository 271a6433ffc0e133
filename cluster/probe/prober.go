package probe

import (
	"cmp"
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/rendezvous"
)

const (
	// maxChecks is how many checks one node runs; those beyond, in the order of Set, are not run, and that is logged and
	// counted.
	maxChecks = 20_000
	// probesAtOnce is how many probes run at once, unless Config says otherwise; those that are due wait for their turn, first
	// come, first served. It is for the day on which very many targets do not answer at all: each then takes its whole
	// timeout, a socket and some 10 KB, but hardly any work. With 10 s to wait, 2,048 at once are 200 probes each second.
	probesAtOnce = 2048
	// late is how long a probe may wait for its turn before it is counted.
	late = time.Second
	// jitter is the largest share of its interval by which a check's first probe is late, and its later ones are
	// apart more than that. What one check gets of it depends on its key and this node, so that probes spread.
	jitter = 0.1
	// tellFaults is how often people are told, at most, that this node lacks what probes need.
	tellFaults = time.Minute
	// maxEvidence is how many keys wait for their tracker to hear of what the data path saw; what comes then is dropped, and
	// counted. It would come again with the next failure.
	maxEvidence = 256
)

// Config is what New needs.
type Config struct {
	// Node is this node's name: it makes its probes come at other times than those of others.
	Node string
	// Dial connects to what is checked; nil: package net.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Resolve looks up the addresses of a name; nil: package net. Of IPv6 addresses no use is made.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Roots are the authorities for checks that judge certificates; nil: the system's.
	Roots *x509.CertPool
	// Report is told of every verdict that turned, the first one included, or that stands for another time than before, and
	// nil when a key is checked no longer. It is called by one goroutine at a time and must not call the Prober.
	Report func(health.Key, *health.Verdict)
	// ProbesAtOnce bounds how many probes run at once: default 2,048.
	ProbesAtOnce int
	Log          *slog.Logger // nil: discard
}

// Prober runs checks, each at its interval. A check that waits has a timer and no goroutine.
type Prober struct {
	config   Config
	looker   looker
	atOnce   int
	ctx      context.Context
	cancel   context.CancelFunc
	tasks    sync.WaitGroup // probes that run, and who takes the evidence
	evidence chan evidence

	mu     sync.Mutex // also orders the calls of Report
	busy   int        // probes that run
	due    []*task    // those that wait for their turn, each once; some may have been stopped
	closed bool
	told   time.Time // when people were told that this node lacks something

	running atomic.Pointer[map[health.Key]*task] // replaced whole, by who holds mu

	witnessing sync.Mutex
	witness    *health.Witness

	probes, failed, faults, turns, late, over, taken, dropped, prompted atomic.Uint64
}

// task is one check that runs: its timer is set, or it is due, or its probe is under way, never two of these.
type task struct {
	check    Check
	tracker  *health.Tracker
	period   time.Duration
	timer    *time.Timer
	since    time.Time          // when it became due
	cancel   context.CancelFunc // of the probe that is under way
	reported bool               // there is a verdict
	healthy  bool               // by the last one
	stopped  bool

	suspect atomic.Bool // the witness has heard of failures
	waits   atomic.Bool // evidence of it is on its way to the tracker
}

// evidence is that the data path saw enough failures.
type evidence struct {
	task   *task
	reason string
}

// New makes a Prober without checks.
func New(c Config) *Prober {
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	if c.Resolve == nil {
		c.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	p := &Prober{
		config:   c,
		looker:   looker{node: c.Node, dial: c.Dial, resolve: c.Resolve, roots: c.Roots},
		atOnce:   cmp.Or(c.ProbesAtOnce, probesAtOnce),
		evidence: make(chan evidence, maxEvidence),
		witness:  health.NewWitness(),
	}
	p.running.Store(&map[health.Key]*task{})
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.tasks.Go(p.hear)
	return p
}

// Set makes these the checks that run. One that ran before, unchanged, goes on as it was; a changed one begins anew,
// and its old verdict stands until the new one is known.
func (p *Prober) Set(checks []Check) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.over.Store(uint64(max(0, len(checks)-maxChecks)))
	if len(checks) > maxChecks {
		p.config.Log.Error("too many checks for one node", "checks", len(checks), "run", maxChecks)
		checks = checks[:maxChecks]
	}
	before := *p.running.Load()
	now := make(map[health.Key]*task, len(checks))
	for i := range checks {
		c := &checks[i]
		if now[c.Key] != nil {
			continue
		}
		old := before[c.Key]
		if old != nil && old.check == *c {
			now[c.Key] = old
			continue
		}
		if old != nil {
			old.stop()
		}
		now[c.Key] = p.start(*c)
	}
	p.running.Store(&now)
	for key, t := range before {
		if now[key] == nil {
			t.stop()
			p.config.Report(key, nil)
		}
	}
}

// Close stops all checks and waits for the probes under way, which it breaks off. It reports nothing.
func (p *Prober) Close() {
	p.mu.Lock()
	p.closed = true
	for _, t := range *p.running.Load() {
		t.stop()
	}
	p.running.Store(&map[health.Key]*task{})
	p.mu.Unlock()
	p.cancel()
	p.tasks.Wait()
}

// Evidence takes in what the data path saw of a key for a client: that it failed, and why, or that it did not. Only where
// several clients saw it fail in a row does the check hear of it, if it runs here, and a probe is made at once where one
// would tell. The call is cheap and waits for nobody: what is well costs one look into a map, and does not allocate.
func (p *Prober) Evidence(key health.Key, client netip.Addr, failed bool, reason string) {
	t := (*p.running.Load())[key]
	if t == nil || !failed && !t.suspect.Load() {
		return
	}
	if !p.enough(t, client, failed) || !t.waits.CompareAndSwap(false, true) {
		return
	}
	select {
	case p.evidence <- evidence{t, reason}:
	default:
		t.waits.Store(false)
		p.dropped.Add(1)
	}
}

// enough tells the witness, and says whether it has now heard of enough failures.
func (p *Prober) enough(t *task, client netip.Addr, failed bool) bool {
	now := time.Now()
	p.witnessing.Lock()
	defer p.witnessing.Unlock()
	t.suspect.Store(failed)
	if !failed {
		p.witness.Passed(t.check.Key, now)
		return false
	}
	return p.witness.Failed(t.check.Key, client, now)
}

// Counters are, those that end in _total since New:
//
//	probe_checks                   checks that run
//	probe_checks_over              checks that are this node's but too many to be run
//	probe_probes_total             probes that ran to their end
//	probe_failed_total             those that failed
//	probe_faults_total             those that this node could not make, for want of ports, files or memory: they are no verdict on anything
//	probe_late_total               those that waited more than a second for their turn
//	probe_turns_total              verdicts that turned, the first ones included
//	probe_evidence_total           times that a check heard of failures which the data path saw
//	probe_evidence_dropped_total   times that it did not, as too much was waiting
//	probe_prompted_total           probes made at once for such failures
func (p *Prober) Counters() map[string]uint64 {
	return map[string]uint64{
		"probe_checks":                 uint64(len(*p.running.Load())),
		"probe_checks_over":            p.over.Load(),
		"probe_probes_total":           p.probes.Load(),
		"probe_failed_total":           p.failed.Load(),
		"probe_faults_total":           p.faults.Load(),
		"probe_late_total":             p.late.Load(),
		"probe_turns_total":            p.turns.Load(),
		"probe_evidence_total":         p.taken.Load(),
		"probe_evidence_dropped_total": p.dropped.Load(),
		"probe_prompted_total":         p.prompted.Load(),
	}
}

// start begins a check. p.mu is held.
func (p *Prober) start(c Check) *task {
	interval := c.Thresholds.Interval
	share := float64(rendezvous.Score(p.config.Node, string(c.Key))>>11) / (1 << 53)
	extra := time.Duration(jitter * share * float64(interval))
	t := &task{check: c, tracker: health.NewTracker(c.Thresholds), period: interval + extra}
	t.timer = time.AfterFunc(extra, func() { p.fire(t) })
	return t
}

// stop ends a check, at once or as soon as its probe under way has noticed. The Prober's mu is held.
func (t *task) stop() {
	t.stopped = true
	t.timer.Stop()
	if t.cancel != nil {
		t.cancel()
	}
}

// fire is when a check is due: it probes, or waits for its turn.
func (p *Prober) fire(t *task) {
	p.mu.Lock()
	t.since = time.Now()
	switch {
	case t.stopped:
		p.mu.Unlock()
		return
	case p.busy >= p.atOnce:
		p.due = append(p.due, t)
		p.mu.Unlock()
		return
	}
	p.busy++
	p.tasks.Add(1)
	defer p.tasks.Done()
	ctx := p.begin(t)
	p.mu.Unlock()
	for t != nil {
		began := time.Now()
		result, lacks := p.looker.run(ctx, &t.check)
		t, ctx = p.next(t, began, result, lacks)
	}
}

// begin makes the context of a probe. p.mu is held.
func (p *Prober) begin(t *task) (ctx context.Context) {
	if time.Since(t.since) > late {
		p.late.Add(1)
	}
	ctx, t.cancel = context.WithCancel(p.ctx)
	return ctx
}

// next takes in what a probe found, and returns the task whose turn it is, if one waits.
func (p *Prober) next(t *task, began time.Time, r health.Result, lacks error) (*task, context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t.cancel()
	t.cancel = nil
	if !t.stopped {
		if lacks != nil {
			p.unasked(t, lacks)
		} else {
			p.observe(t, r)
		}
		t.timer.Reset(time.Until(began.Add(t.period)))
	}
	for len(p.due) > 0 {
		t, p.due = p.due[0], p.due[1:]
		if !t.stopped {
			return t, p.begin(t)
		}
	}
	p.due = nil
	p.busy--
	return nil, nil
}

// unasked tells of a probe that this node could not make: what was known of what it checks stands, as long as it does. p.mu is held.
func (p *Prober) unasked(t *task, lacks error) {
	p.faults.Add(1)
	if now := time.Now(); now.Sub(p.told) >= tellFaults {
		p.told = now
		p.config.Log.Error("this node lacks what health checks need: they say nothing meanwhile", "key", t.check.Key, "error", lacks)
	}
}

// observe takes in what a probe found. p.mu is held.
func (p *Prober) observe(t *task, r health.Result) {
	p.probes.Add(1)
	if !r.Passed {
		p.failed.Add(1)
	}
	if v, changed := t.tracker.Observe(r, time.Now()); changed {
		p.report(t, v)
	}
}

// hear takes evidence to the trackers.
func (p *Prober) hear() {
	for {
		select {
		case <-p.ctx.Done():
			return
		case e := <-p.evidence:
			p.take(e)
		}
	}
}

func (p *Prober) take(e evidence) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := e.task
	t.waits.Store(false)
	if t.stopped {
		return
	}
	p.taken.Add(1)
	v, changed, probeNow := t.tracker.Evidence(e.reason, time.Now())
	if changed {
		p.report(t, v)
	}
	if probeNow && t.timer.Stop() { // otherwise it is due anyway, or under way
		p.prompted.Add(1)
		t.timer.Reset(0)
	}
}

// report tells of a verdict. p.mu is held.
func (p *Prober) report(t *task, v health.Verdict) {
	if !t.reported || v.Healthy != t.healthy {
		p.turns.Add(1)
		p.config.Log.Info("health turned", "key", t.check.Key, "healthy", v.Healthy, "reason", v.Reason)
	}
	t.healthy, t.reported = v.Healthy, true
	p.config.Report(t.check.Key, &v)
}
