package backbone

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// quic-go takes a packet of each stream that has something to send, round and round. Of a thousand streams that send much, whoever reads one would be
// woken for each packet, and would write to its client's socket for each. So where many write much to the streams of a connection they take turns: a few
// have their bytes sent at a time, those of each in one go.
//
// A turn is only for who can use it. Either there is a window for all that it writes, as what the other end has acknowledged says; or quic-go copies
// it and reserves the window, and where there is none it is written without a turn. So are short writes, and what a stream carries first, which wait for nobody:
// of them a packet each is sent, round and round, beside those who have turns, and half of all packets are theirs. A thousand slow readers hold no turn of a fast one.
const (
	// turnBytes is how much is written in a turn, at most: what a relay reads at a time. As long as turns were waited for longer than longWait it is
	// shortTurn, for of a thousand who send by turn each has none for as long as all others take. turnTail bytes of it are not reserved where the rest is:
	// that quic-go takes them says that it has sent the rest.
	turnBytes = 64 << 10
	shortTurn = 32 << 10
	longWait  = 500 * time.Millisecond
	turnTail  = 1 << 10
	// leastTurn is how much has to be written for a turn to be asked for, and turnsAfter how much is written before it is, since the stream was at rest.
	leastTurn  = 4 << 10
	turnsAfter = 16 << 10
	// restTime is how long a stream at rest has written nothing.
	restTime = time.Second
	// turnsAtOnce make a round: the next begins when all of them have ended, for quic-go sends those of the lower numbers first. As long as no more write so
	// much, no turn is asked for.
	turnsAtOnce = 4
	// turnTime is how long none of those who have turns may be done before all lose them, and others have some: there was no window after all, or the path is
	// so slow (13 Mbit/s, of one turn after the other) that turns would be long to wait for.
	turnTime = 40 * time.Millisecond
	// urgency is the priority of all streams: what quic-go gives them.
	urgency = 3
)

// turns are those of one connection's streams, at the end that writes.
type turns struct {
	writers atomic.Int32 // that write so much

	mu      sync.Mutex
	taken   []*streamConn  // who have turns
	left    int            // turns of this round that nobody has had yet
	waiting []*turnRequest // who has waited the longest first
	ended   uint64         // turns, ever, and as of the last look
	seen    uint64
	look    *time.Timer

	short atomic.Bool // turns are shortTurn
}

// turnRequest is a stream that waits for its turn, which is told by closing has.
type turnRequest struct {
	of    *streamConn
	since time.Time
	has   chan struct{}
}

// turnTaker is what a stream knows of its turns.
type turnTaker struct {
	burst int           // bytes since it was at rest; by who writes, like what follows
	wrote time.Duration // when it wrote last, as stamp has it; only where burst is more than none
	fits  bool          // there is a window for what is written next

	ahead atomic.Bool // it has a turn for what is written next

	mu      sync.Mutex
	hurries chan struct{} // closed when there is a deadline; nil: it has never waited since
	hurried bool          // there is one: it waits for no turn
}

// hurry has it wait for no turn, or wait again.
func (k *turnTaker) hurry(hurried bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.hurried = hurried
	if hurried && k.hurries != nil {
		close(k.hurries)
		k.hurries = nil
	}
}

// patience is how long it may wait; nil: it may not.
func (k *turnTaker) patience() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.hurries == nil && !k.hurried {
		k.hurries = make(chan struct{})
	}
	return k.hurries
}

// take waits for a turn of a stream, and says whether it has one: not if the stream is over before that, or in a hurry.
func (t *turns) take(c *streamConn) bool {
	hurries := c.turn.patience()
	if hurries == nil {
		return false
	}
	t.mu.Lock()
	r := &turnRequest{c, time.Now(), make(chan struct{})}
	t.waiting = append(t.waiting, r)
	if t.next(); len(t.waiting) == 1 {
		t.watch()
	}
	t.mu.Unlock()
	select {
	case <-r.has:
		return true
	case <-c.Stream.Context().Done():
	case <-hurries:
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.waiting, r)
	if i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
	}
	return i < 0
}

// give has a turn end that a stream has had, unless it has lost it.
func (t *turns) give(c *streamConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended++
	if i := slices.Index(t.taken, c); i >= 0 {
		t.taken = slices.Delete(t.taken, i, i+1)
		c.Stream.SetPriority(urgency, true)
	}
	t.next()
}

// next lets as many have turns as may. mu is held.
func (t *turns) next() {
	if len(t.taken) == 0 {
		t.left = turnsAtOnce
	}
	for ; t.left > 0 && len(t.waiting) > 0; t.left-- {
		r := t.waiting[0]
		t.waiting[0] = nil
		t.waiting = t.waiting[1:]
		t.taken = append(t.taken, r.of)
		waited := time.Since(r.since)
		t.short.Store(waited > longWait || t.short.Load() && waited > longWait/2) // twice as long turns are waited for twice as long
		r.of.Stream.SetPriority(urgency, false)
		close(r.has)
	}
}

// watch has all turns be lost if none has ended when their time is over, for as long as somebody waits. mu is held.
func (t *turns) watch() {
	t.seen = t.ended
	if t.look != nil {
		t.look.Reset(turnTime)
		return
	}
	t.look = time.AfterFunc(turnTime, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.seen == t.ended {
			for _, c := range t.taken {
				c.Stream.SetPriority(urgency, true)
			}
			t.taken = t.taken[:0]
			t.next()
		}
		if len(t.waiting) > 0 {
			t.watch()
		}
	})
}

// most is how much is written in a turn.
func (t *turns) most() int {
	if t.short.Load() {
		return shortTurn
	}
	return turnBytes
}

// wantsAhead says that a long write would be for a turn. It is for who writes, as inTurns is.
func (c *streamConn) wantsAhead() bool {
	return c.turns != nil && c.turn.burst >= turnsAfter && stamp()-c.turn.wrote <= restTime
}

// takeAhead waits for a turn for what is written next, where many write much, and says whether it has one, which is to be given back (giveAhead) if that is
// not written.
func (c *streamConn) takeAhead() bool {
	defer c.turns.writers.Add(-1)
	if c.turns.writers.Add(1) <= turnsAtOnce || !c.turns.take(c) {
		return false
	}
	c.turn.ahead.Store(true)
	return true
}

// giveAhead has a turn end that was taken ahead, unless it was used.
func (c *streamConn) giveAhead() {
	if c.turn.ahead.Swap(false) {
		c.turns.give(c)
	}
}

// inTurns is Write, in turns where many write much.
func (c *streamConn) inTurns(p []byte) (n int, err error) {
	if c.turns == nil || len(p) < leastTurn {
		return c.Stream.Write(p)
	}
	k := &c.turn
	if stamp()-k.wrote > restTime && !k.ahead.Load() { // or it was its turn that it waited for
		k.burst = 0
	}
	defer func() {
		k.wrote = stamp()
		k.burst += n
	}()
	if k.burst < turnsAfter {
		if n, err = c.Stream.Write(p[:min(len(p), turnsAfter)]); err != nil {
			return n, err
		}
	}
	c.turns.writers.Add(1)
	defer c.turns.writers.Add(-1)
	for n < len(p) && err == nil {
		q, most := p[n:], c.turns.most()
		if len(q) >= most+leastTurn {
			q = q[:most] // or there would be little left
		}
		var m int
		m, err = c.inTurn(q)
		n += m
	}
	return n, err
}

// inTurn is Write, in one turn or none.
func (c *streamConn) inTurn(p []byte) (n int, err error) {
	if !c.turn.ahead.Swap(false) && (len(p) < leastTurn || c.turns.writers.Load() <= turnsAtOnce || !c.turns.take(c)) {
		return c.Stream.Write(p)
	}
	if c.turn.fits {
		defer c.turns.give(c)
		return c.Stream.Write(p)
	}
	reserved := len(p) - turnTail
	err = c.Stream.TryWriteAll(p[:reserved])
	if err == nil {
		defer c.turns.give(c)
		n, err = c.Stream.Write(p[reserved:])
		return reserved + n, err
	}
	c.turns.give(c)
	if errors.Is(err, quic.ErrWouldBlock) {
		return c.Stream.Write(p)
	}
	return 0, err
}
