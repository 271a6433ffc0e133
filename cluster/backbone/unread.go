package backbone

import (
	"cmp"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
)

// What has arrived on a stream and is not read yet counts against the window of its carrier too, and a carrier at its window stands still for all. So
// it is looked at each second what slow readers may leave there, and where that is too much their streams are left, the widest first. A flow that
// outlives its streams goes on over a fresh one, whose window is narrow again, and loses nothing; another is reset. When that is not enough, because there
// are too many of narrow windows, those are reset that have waited the longest.

// slowLooks is how many looks in a row a reader must be found slow before its stream is left.
const slowLooks = 2

// errSlow says that a stream was left here because its reader was slow, and others waited for it.
var errSlow = errors.New("left, as its reader was too slow")

// arrears is how far the reader of a stream may be behind.
type arrears struct {
	waits    atomic.Bool   // for bytes: there are none unread
	done     atomic.Bool   // reading: there are none to come
	taken    atomic.Uint64 // bytes
	forsaken atomic.Bool   // it was left for that

	of *unread // nil: it does not count; set before it is used
	// By of.mu:
	window uint64 // that QUIC has given it, at most
	before uint64 // of taken, when it was looked at last
	slow   int    // looks in a row that found it so
}

func (a *arrears) took(n int, err error) {
	a.waits.Store(false)
	a.taken.Add(uint64(n))
	if err != nil && (err == io.EOF || !errors.Is(err, os.ErrDeadlineExceeded)) {
		a.done.Store(true)
	}
}

// unread is the streams of one connection by which something may arrive.
type unread struct {
	mu  sync.Mutex
	all map[*streamConn]struct{}
}

func (u *unread) enter(c *streamConn, window uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.all == nil {
		u.all = map[*streamConn]struct{}{}
	}
	u.all[c] = struct{}{}
	c.of, c.window = u, window
}

func (u *unread) leave(c *streamConn) {
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.all, c)
}

// look finds the streams that are to be left: wide ones, and, where those are not enough, others.
func (u *unread) look(w windows) (wide, narrow []*streamConn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	var slow []*streamConn
	var held uint64
	for c := range u.all {
		taken := c.taken.Load()
		fresh := taken - c.before
		c.before = taken
		c.window = widened(c.window, fresh, w.maxStream)
		if c.waits.Load() || c.done.Load() || fresh >= c.window/2 {
			c.slow = 0
			continue
		}
		held += c.window
		if c.slow++; c.slow >= slowLooks {
			slow = append(slow, c)
		}
	}
	if held <= w.slow {
		return nil, nil
	}
	slices.SortFunc(slow, func(a, b *streamConn) int {
		return cmp.Or(cmp.Compare(b.window, a.window), cmp.Compare(b.slow, a.slow))
	})
	for len(slow) > 0 && slow[0].window > w.stream && held > w.slow {
		held -= slow[0].window - w.stream // it may come back
		wide, slow = append(wide, slow[0]), slow[1:]
	}
	slices.SortFunc(slow, func(a, b *streamConn) int { return cmp.Compare(b.slow, a.slow) })
	for len(slow) > 0 && held > w.slow {
		held -= slow[0].window
		narrow, slow = append(narrow, slow[0]), slow[1:]
	}
	return wide, narrow
}

// widened is what QUIC may have made of a window while so many bytes were read: it doubles it for each half of it, if they are read fast.
func widened(window, read, most uint64) uint64 {
	for window < most && read >= window/2 {
		read -= window / 2
		window *= 2
	}
	return min(window, most)
}

// leaveSlow looks at a connection's streams.
func (b *Backbone) leaveSlow(u *unread) {
	wide, narrow := u.look(b.config.windows)
	for _, c := range wide {
		b.count.slowLeft.Add(1)
		c.forsaken.Store(true)
		c.lose()
	}
	for _, c := range narrow {
		b.count.slowReset.Add(1)
		c.Abort()
	}
}

// leaveSlow looks at the streams of all carriers of a link.
func (l *link) leaveSlow() {
	l.mu.Lock()
	all := slices.Concat(l.carriers, l.leaving)
	l.mu.Unlock()
	for _, c := range all {
		l.b.leaveSlow(&c.unread)
	}
}

// leaveSlowVisits looks at the streams of all connections that others have dialled.
func (b *Backbone) leaveSlowVisits() {
	b.visiting.Lock()
	all := make([]*unread, 0, len(b.visitors))
	for v := range b.visitors {
		all = append(all, &v.unread)
	}
	b.visiting.Unlock()
	for _, u := range all {
		b.leaveSlow(u)
	}
}
