//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/perigee-net/perigee/node/api"
)

// changes is how often a record is changed: the figure is the median.
const changes = 101

// recordRows are about many records: how soon they are there, what they take, and how soon one is changed.
func recordRows() []Row {
	row := func(name, work, unit string, own func(context.Context, Stage, time.Duration) (Measured, error), goal float64, ours Peer, peers ...Peer) Row {
		return Row{Name: name, Work: work, Unit: unit, Less: true, Once: true, Starts: manyTime, Takes: manyTime, Load: Load{Tool: "own", Args: []string{name}, Own: own},
			Prepare: func(s Stage) error { return writeZones(s, many(s)) }, Check: checkNames(many, "udp"), Ours: ours, Peers: peers, Goals: []Goal{{"", goal}}}
	}
	node := func(names func(Stage) int) Peer {
		return ours(func(s Stage) (string, error) { return zonesSpec(names(s)), nil }, dnsArgs()...)
	}
	none := func(Stage) int { return 0 }
	return []Row{
		row("dns-records-load", "the time from a server's start, with --objects A records (1,000,000) on its disk, until it answers for the last", "ms until the last is answered", loaded, 5000,
			timed(restarted(node(many))), timed(knot(zoneAll)), timed(nsd(zoneAll, "")), timed(gdnsd(zoneAll)), timed(bind(zoneAll, "")), timed(coredns(zoneAll, ""))),
		row("dns-records-memory", "what such a record takes of memory: a server's that has started with them on its disk, less that of one without", "bytes of memory each", weighed, 250,
			unladen(restarted(node(many)), restarted(node(none))), unladen(knot(zoneAll), knot(zoneNone)), unladen(nsd(zoneAll, ""), nsd(zoneNone, "")),
			unladen(gdnsd(zoneAll), gdnsd(zoneNone)), unladen(bind(zoneAll, ""), bind(zoneNone, "")), unladen(coredns(zoneAll, ""), coredns(zoneNone, ""))),
		row("dns-records-change", "the time from when a change of one of those records begins to be applied, by the API, until it is served; the median of 101", "µs until it is served", changed, 10_000,
			node(many)),
	}
}

// restarted is a server that is ended when it has all, and started again.
func restarted(p Peer) Peer {
	start := p.Start
	p.Start = func(ctx context.Context, s Stage) (*Process, error) {
		proc, err := start(ctx, s)
		if err != nil {
			return nil, err
		}
		proc.Stop()
		return s.Start(nil, proc.cmd.Args...)
	}
	return p
}

// How a server is watched that is to answer: each query waits for glance at most, and the next is asked after blink.
const (
	glance = 50 * time.Millisecond
	blink  = 500 * time.Microsecond
)

// until asks until the answer is right, and returns when it was.
func until(ctx context.Context, s Stage, p *Process, name string, want netip.Addr) (time.Time, error) {
	for {
		err := answers(ctx, asking{address: s.at(s.Port), network: "udp", name: name, wait: glance}, want)
		if err == nil {
			return time.Now(), nil
		}
		if failed := p.Failed(); failed != nil {
			return time.Time{}, failed
		}
		select {
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(blink):
		}
	}
}

// timed is a server whose start is timed until it answers for the last name.
func timed(p Peer) Peer {
	start := p.Start
	p.Start = func(ctx context.Context, s Stage) (*Process, error) {
		proc, err := start(ctx, s)
		if err != nil {
			return nil, err
		}
		late, cancel := context.WithTimeout(ctx, manyTime)
		defer cancel()
		at, err := until(late, s, proc, nameOf(many(s)-1), addressOf(many(s)-1))
		if err != nil {
			proc.Stop()
			return nil, fmt.Errorf("wait for the last name: %w", err)
		}
		proc.ready, proc.spent = at.Sub(proc.began), proc.CPU()
		return proc, nil
	}
	return p
}

// loaded says how long that took, and how much of it each record took to compute.
func loaded(_ context.Context, s Stage, _ time.Duration) (Measured, error) {
	return Measured{Count: int64(many(s)), CPU: s.proc.spent, Value: float64(s.proc.ready) / float64(time.Millisecond)}, nil
}

// unladen is a server that is weighed before it has anything: as another process, with a configuration that is otherwise the same.
func unladen(p, none Peer) Peer {
	start := p.Start
	p.Start = func(ctx context.Context, s Stage) (*Process, error) {
		bare := s
		bare.Dir = filepath.Join(s.Dir, "0")
		if err := os.Mkdir(bare.Dir, 0o755); err != nil {
			return nil, err
		}
		proc, err := none.Start(ctx, bare)
		if err != nil {
			return nil, err
		}
		defer proc.Stop()
		if err := settle(ctx, settleTime); err != nil {
			return nil, err
		}
		empty, err := proc.Memory()
		if err != nil {
			return nil, errors.Join(err, proc.Failed())
		}
		proc.Stop()
		if proc, err = start(ctx, s); err != nil {
			return nil, err
		}
		proc.empty = empty
		return proc, nil
	}
	return p
}

// weighed says what a record takes.
func weighed(ctx context.Context, s Stage, _ time.Duration) (m Measured, err error) {
	if err := settle(ctx, settleTime); err != nil {
		return m, err
	}
	all, err := s.proc.Memory()
	return Measured{Count: int64(many(s)), Value: float64(all-s.proc.empty) / float64(many(s))}, err
}

// changed changes the last record over and over, and says how long it took until that was served.
func changed(ctx context.Context, s Stage, _ time.Duration) (m Measured, err error) {
	client, err := api.NewClient(filepath.Join(s.Dir, "data", api.Socket), api.Options{})
	if err != nil {
		return m, err
	}
	last := many(s) - 1
	var took []time.Duration
	for i := range changes {
		to := addressOf(last)
		if i < changes-1 { // in the end it is as it was
			to = netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
		}
		file := api.File{Name: "change.yaml", Data: zoneSpec(last/zoneNames, last+1, func(n int) netip.Addr {
			if n == last {
				return to
			}
			return addressOf(n)
		})}
		applied := make(chan error, 1)
		began := time.Now()
		go func() {
			_, err := client.Apply(ctx, api.ApplyRequest{Files: []api.File{file}})
			applied <- err
		}()
		late, cancel := context.WithTimeout(ctx, startTime)
		at, err := until(late, s, s.proc, nameOf(last), to)
		cancel()
		if err := errors.Join(<-applied, err); err != nil {
			m.Failed = err.Error()
			return m, nil
		}
		took = append(took, at.Sub(began))
	}
	slices.Sort(took)
	return Measured{Count: changes, Value: micros(took[changes/2])}, nil
}
