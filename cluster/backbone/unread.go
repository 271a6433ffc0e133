package backbone

import (
	"cmp"
	"errors"
	"maps"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// What has arrived on a stream and is not read yet counts against the window of its carrier too, and a carrier at its window stands still for all. So
// it is looked at each second what slow readers may leave there, and where that is too much streams are left. Those come first whose flows lose nothing, as
// they outlive their streams and go on over fresh ones, whose windows are narrow again: of these the ones that have stopped, the widest first. Then those
// are reset whose readers have stopped, the widest first, and then those of narrow windows that have waited the longest. A reader that goes on reading,
// however slowly, never has its stream reset.

// slowLooks is how many looks in a row a reader must be found slow before its stream is left.
const slowLooks = 2

// stoppedShare is which share of a fresh stream's window must be read between two looks, at least, for a reader not to be taken for one that has stopped:
// 8 KiB of 512 KiB. Who takes less would hold a window for a minute and more, and could do so with a byte now and then.
const stoppedShare = 64

// errSlow says that a stream was left here because its reader was slow, and others waited for it.
var errSlow = errors.New("left, as its reader was too slow")

// What was done to the stream of a slow reader.
const (
	slowLost = 1 // it was left, and its flow may go on over another
	slowCut  = 2 // it was reset
)

// arrears is how far the reader of a stream may be behind.
type arrears struct {
	taken    atomic.Uint64 // bytes
	window   atomic.Uint64 // that QUIC has given it, as far as can be told from how it was read
	waits    atomic.Bool   // for bytes: there are none unread
	done     atomic.Bool   // reading: there are none to come
	forsaken atomic.Uint32 // what was done to it for that; 0: nothing
	lasts    bool          // its flow outlives it; set before it is used

	// By of.mu:
	slow    uint8  // looks in a row that found its reader slow, up to slowLooks
	stopped uint16 // … and not reading, up to mostLooks
	before  uint64 // of taken, when it was looked at last

	of *unread // nil: it does not count; set before it is used

	// By who reads:
	epoch time.Duration // when the reading of what now counts for the window began, as stamp has it
	from  uint64        // of taken, then
}

// mostLooks is as many as are told apart: for 18 hours.
const mostLooks = math.MaxUint16

func (a *arrears) took(n int, err error) {
	a.waits.Store(false)
	taken := a.taken.Add(uint64(n))
	switch {
	case a.of == nil || n == 0:
	case taken == uint64(n):
		a.epoch = stamp()
	default:
		a.widen(taken)
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		a.done.Store(true)
	}
}

// widen does to the window what QUIC does, which does not tell: it doubles it when more than half of it was read, as fast as half of it in two round trips.
func (a *arrears) widen(taken uint64) {
	window := a.window.Load()
	read := taken - a.from
	if window >= a.of.most || read <= window/2 {
		return
	}
	now := stamp()
	if widens(window, read, now-a.epoch, time.Duration(a.of.rtt.Load())) {
		a.window.Store(min(2*window, a.of.most))
	}
	a.epoch, a.from = now, taken
}

// widens says that a window is doubled of which so much was read in a time, at a round trip; 0: none is known.
func widens(window, read uint64, took, rtt time.Duration) bool {
	return rtt <= 0 || float64(took) < 4*float64(read)/float64(window)*float64(rtt)
}

// unread is the streams of one connection by which something may arrive.
type unread struct {
	most uint64       // the widest window of one; set before there is one
	rtt  atomic.Int64 // the round trip, in ns, when it was looked at last

	mu  sync.Mutex
	all map[*streamConn]struct{}
}

// enter has a stream count.
func (u *unread) enter(c *streamConn, conn *quic.Conn, w windows) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.all == nil {
		u.all, u.most = map[*streamConn]struct{}{}, w.maxStream
		u.measure(conn)
	}
	u.all[c] = struct{}{}
	c.of, c.epoch = u, stamp()
	c.window.Store(w.stream)
}

func (u *unread) measure(conn *quic.Conn) { u.rtt.Store(int64(conn.ConnectionStats().SmoothedRTT)) }

func (u *unread) leave(c *streamConn) {
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.all, c)
}

// slowReader is a stream whose reader is slow, as it was found.
type slowReader struct {
	*streamConn
	window  uint64
	stopped int
}

// look finds the streams that are to be left: wide ones, and, where those are not enough, others.
func (u *unread) look(w windows) (wide, narrow []*streamConn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	var slow []slowReader
	var held uint64
	for c := range u.all {
		taken, window := c.taken.Load(), c.window.Load()
		fresh := taken - c.before
		c.before = taken
		if c.waits.Load() || c.done.Load() || fresh >= window/2 {
			c.slow, c.stopped = 0, 0
			continue
		}
		held += window
		c.slow = min(c.slow+1, slowLooks)
		if fresh >= w.stream/stoppedShare {
			c.stopped = 0
		} else if c.stopped < mostLooks {
			c.stopped++
		}
		if c.stopped >= slowLooks || c.slow >= slowLooks && c.lasts {
			slow = append(slow, slowReader{c, window, int(c.stopped)})
		}
	}
	if held <= w.slow {
		return nil, nil
	}
	turn := func(s slowReader) int {
		switch {
		case s.window <= w.stream:
			return 3
		case !s.lasts:
			return 2
		case s.stopped < slowLooks:
			return 1
		}
		return 0
	}
	slices.SortFunc(slow, func(a, b slowReader) int {
		if at := turn(a); at != turn(b) || at == 3 {
			return cmp.Or(cmp.Compare(at, turn(b)), cmp.Compare(b.stopped, a.stopped))
		}
		return cmp.Compare(b.window, a.window)
	})
	for _, s := range slow {
		switch {
		case held <= w.slow:
			return wide, narrow
		case s.window > w.stream:
			held -= s.window - w.stream // it may come back
			wide = append(wide, s.streamConn)
		case s.stopped >= slowLooks:
			held -= s.window
			narrow = append(narrow, s.streamConn)
		}
	}
	return wide, narrow
}

// leaveSlow looks at a connection's streams.
func (b *Backbone) leaveSlow(u *unread, conn *quic.Conn) {
	u.measure(conn)
	wide, narrow := u.look(b.config.windows)
	for _, c := range wide {
		b.count.slowLeft.Add(1)
		c.forsaken.Store(slowLost)
		c.lose()
	}
	for _, c := range narrow {
		b.count.slowReset.Add(1)
		c.cutSlow()
	}
}

// cutSlow resets a stream for its slow reader, who is told when he comes to it.
func (c *streamConn) cutSlow() {
	c.forsaken.Store(slowCut)
	c.Abort()
}

// leaveSlow looks at the streams of all carriers of a link.
func (l *link) leaveSlow() {
	l.mu.Lock()
	all := slices.Concat(l.carriers, l.leaving)
	l.mu.Unlock()
	for _, c := range all {
		l.b.leaveSlow(&c.unread, c.conn)
	}
}

// leaveSlowVisits looks at the streams of all connections that others have dialled.
func (b *Backbone) leaveSlowVisits() {
	b.visiting.Lock()
	all := slices.Collect(maps.Keys(b.visitors))
	b.visiting.Unlock()
	for _, v := range all {
		b.leaveSlow(&v.unread, v.conn)
	}
}
