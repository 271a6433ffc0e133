package probe

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/health"
)

const (
	// maxChecks is how many checks one node runs; those beyond, in the order of Set, are not run, and that is logged.
	maxChecks = 10_000
	// probesAtOnce is how many probes run at once, unless Config says otherwise; those that are due wait for a slot.
	probesAtOnce = 256
	// jitter is the largest share of its interval by which a check's first probe is late, and its later ones are
	// apart more than that. What one check gets of it depends on its key and this node, so that probes spread.
	jitter = 0.1
)

// Config is what New needs.
type Config struct {
	// Node is this node's name: it makes its probes come at other times than those of others.
	Node string
	// Dial connects to what is checked; nil: package net.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Report is told of every verdict that turned, the first one included, and nil when a key is checked no longer. It is
	// called by one goroutine at a time and must not call the Prober.
	Report func(health.Key, *health.Verdict)
	// ProbesAtOnce bounds how many probes run at once: default 256.
	ProbesAtOnce int
	Log          *slog.Logger // nil: discard
}

// Prober runs checks, each at its interval.
type Prober struct {
	config Config
	slots  chan struct{} // one for each probe that runs
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup // checks that run

	mu      sync.Mutex // also orders the calls of Report
	running map[health.Key]*task
	closed  bool

	probes, failed, turns atomic.Uint64
}

// task is one check that runs. Its timer is set or its probe is under way, never both.
type task struct {
	check   Check
	tracker *health.Tracker
	period  time.Duration
	ctx     context.Context // ends when the check does
	cancel  context.CancelFunc
	timer   *time.Timer
	stopped bool
}

// New makes a Prober without checks.
func New(c Config) *Prober {
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	p := &Prober{config: c, slots: make(chan struct{}, cmp.Or(c.ProbesAtOnce, probesAtOnce)), running: map[health.Key]*task{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
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
	if len(checks) > maxChecks {
		p.config.Log.Error("too many checks for one node", "checks", len(checks), "run", maxChecks)
		checks = checks[:maxChecks]
	}
	wanted := make(map[health.Key]bool, len(checks))
	for _, c := range checks {
		if wanted[c.Key] {
			continue
		}
		wanted[c.Key] = true
		old := p.running[c.Key]
		if old != nil && old.check == c {
			continue
		}
		if old != nil {
			p.stop(old)
		}
		p.start(c)
	}
	for key, t := range p.running {
		if !wanted[key] {
			p.stop(t)
			delete(p.running, key)
			p.config.Report(key, nil)
		}
	}
}

// Close stops all checks and waits for the probes under way, which it breaks off. It reports nothing.
func (p *Prober) Close() {
	p.mu.Lock()
	p.closed = true
	for _, t := range p.running {
		p.stop(t)
	}
	clear(p.running)
	p.mu.Unlock()
	p.cancel()
	p.tasks.Wait()
}

// Counters counts since New:
//
//	probe_probes_total   probes that ran to their end
//	probe_failed_total   those that failed
//	probe_turns_total    verdicts that turned, the first ones included
func (p *Prober) Counters() map[string]uint64 {
	return map[string]uint64{
		"probe_probes_total": p.probes.Load(),
		"probe_failed_total": p.failed.Load(),
		"probe_turns_total":  p.turns.Load(),
	}
}

// start begins a check. p.mu is held.
func (p *Prober) start(c Check) {
	interval := c.Thresholds.Interval
	share := float64(hash(p.config.Node, string(c.Key))>>11) / (1 << 53)
	extra := time.Duration(jitter * share * float64(interval))
	t := &task{check: c, tracker: health.NewTracker(c.Thresholds), period: interval + extra}
	t.ctx, t.cancel = context.WithCancel(p.ctx)
	p.running[c.Key] = t
	p.tasks.Add(1)
	t.timer = time.AfterFunc(extra, func() { p.probe(t) })
}

// stop ends a check, at once or as soon as its probe under way has noticed. p.mu is held.
func (p *Prober) stop(t *task) {
	t.stopped = true
	t.cancel()
	if t.timer.Stop() {
		p.tasks.Done()
	}
}

func (p *Prober) probe(t *task) {
	var began time.Time
	var result health.Result
	select {
	case p.slots <- struct{}{}:
		began = time.Now()
		result = run(t.ctx, p.config.Dial, t.check)
		<-p.slots
	case <-t.ctx.Done():
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	if t.stopped {
		p.tasks.Done()
		return
	}
	p.observe(t, result)
	t.timer.Reset(time.Until(began.Add(t.period)))
}

// observe takes in what a probe found. p.mu is held.
func (p *Prober) observe(t *task, r health.Result) {
	p.probes.Add(1)
	if !r.Passed {
		p.failed.Add(1)
	}
	v, turned := t.tracker.Observe(r, time.Now())
	if !turned {
		return
	}
	p.turns.Add(1)
	p.config.Log.Info("health turned", "key", t.check.Key, "healthy", v.Healthy, "reason", v.Reason)
	p.config.Report(t.check.Key, &v)
}
