//go:build linux

package bench

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// settleTime is how long a server may tidy up before its memory is looked at.
const settleTime = 3 * time.Second

// filledTime is that of one that was filled with a million objects or more: a collection of what it has in memory takes seconds, and more where
// others have its core. With fewer it takes less.
const filledTime = 30 * time.Second

// tidyTime is how long one may tidy up that was filled with so many.
func tidyTime(objects int) time.Duration {
	return min(filledTime, max(settleTime, filledTime/1_000_000*time.Duration(objects)))
}

// proofs is how many of the objects that a cache was filled with are asked for again.
const proofs = 1000

// raiseFiles lets this process and those it starts have as many files open as they may.
func raiseFiles() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("how many files may be open: %w", err)
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("have %d files open: %w", limit.Max, err)
	}
	return nil
}

// settle waits so long for the server to tidy up.
func settle(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// filled fills a cache with objects of 1 KiB, and says what each takes of memory. That it has them still is shown by asking for some.
func filled(ctx context.Context, s Stage, _ time.Duration) (m Measured, err error) {
	before, err := s.proc.Memory()
	if err != nil {
		return m, err
	}
	d := drive{address: s.at(s.Port), connections: 32, size: 1 << 10, count: int64(s.Objects), path: distinct(1<<10, int64(s.Objects))}
	if m, err = d.run(ctx); err != nil || m.Failed != "" {
		return m, err
	}
	if err := settle(ctx, tidyTime(s.Objects)); err != nil {
		return m, err
	}
	after, err := s.proc.Memory()
	if err != nil {
		return m, err
	}
	asked := s.run.origin.asked()
	step := max(1, int64(s.Objects)/proofs)
	d.connections, d.count = 1, min(proofs, int64(s.Objects))
	d.path = func(n int64) string { return distinct(1<<10, int64(s.Objects))(n * step) }
	proof, err := d.run(ctx)
	if err != nil {
		return m, err
	}
	m.Failed = proof.Failed
	if asked = s.run.origin.asked() - asked; asked > 0 && m.Failed == "" {
		m.Failed = fmt.Sprintf("of %d objects that it was filled with %d are gone", d.count, asked)
	}
	m.Value = float64(after-before) / float64(s.Objects)
	return m, nil
}

// kept opens connections that each ask once and are then idle, and says what each takes of memory.
func kept(ctx context.Context, s Stage, _ time.Duration) (m Measured, err error) {
	before, err := s.proc.Memory()
	if err != nil {
		return m, err
	}
	var after int64
	d := drive{address: s.at(s.Port), connections: s.Idle, size: 1 << 10, count: int64(s.Idle), path: one(1 << 10), linger: func() (err error) {
		if err = settle(ctx, settleTime); err == nil {
			after, err = s.proc.Memory()
		}
		return err
	}}
	if m, err = d.run(ctx); err != nil {
		return m, err
	}
	m.Value = float64(after-before) / float64(s.Idle)
	return m, nil
}

// one is the path of the object of a size, for each request.
func one(size int64) func(int64) string {
	path := fmt.Sprintf("/%d", size)
	return func(int64) string { return path }
}

// distinct are the paths of so many objects of a size, in turn.
func distinct(size, objects int64) func(int64) string {
	return func(n int64) string { return fmt.Sprintf("/%d/%d", size, n%objects) }
}
