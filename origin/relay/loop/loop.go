// Package loop carries flows of TCP by one goroutine for many of them: it accepts, connects and copies by sockets that are its own, of which the system
// tells it what can be done without waiting (epoll(7)). So a flow costs neither goroutines nor what package net does for each socket, and a silent one keeps
// half a kilobyte. It is for what most flows are: few bytes, to a target that answers at once.
//
// Its machine (machine.go) is pure: what is known of two ends, and what a step does with them. It knows no TLS, no PROXY header that comes in, and no
// path but a socket; who accepts takes what is not for it from it, as a connection of package net (Conn.Detach). What carries many bytes goes on by package
// relay, whose kernel moves them.
//
// When things break: it is as package relay has it. A connection that is closed from outside breaks its flow off. What panics breaks off
// its flow alone. While descriptors are lacking, nothing is accepted for a moment, and flows of many bytes are copied.
package loop

import (
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/origin/relay"
)

const (
	// maxLoops bounds the goroutines of a group.
	maxLoops = 8
	// slack is how many connections more than another loop the one that accepts them keeps: to wake another for a few costs more than they do.
	slack = 8
	// events is how many things the system tells at once.
	events = 128
	// burst bounds the connections that are accepted of one listener before others have their turn.
	burst = 16
	// shift is how often a loop that has something to do goes round until others have the processor, and what waits for the network besides.
	shift = 16
	// acceptPause is how long nothing is accepted after that failed (too many open files, mostly).
	acceptPause = 100 * time.Millisecond
)

// Config is what a Group is made of.
type Config struct {
	// Loops is how many goroutines there are; 0: as many as run at once, 8 at most.
	Loops int
	// Panicked is told of what panics where connections are accepted and closed; nil: it ends the process.
	Panicked func(value any)
	// Turns are of flows that go on by package relay, so that loops need not stand behind all of them for the processor; nil: it makes some of its own.
	Turns *relay.Turns
}

// Group is loops that share listeners. They run from when there is one, until Close.
type Group struct {
	config Config

	mu     sync.Mutex
	loops  []*loop
	homes  int // given so far
	closed bool
	wg     sync.WaitGroup
}

// New makes a Group.
func New(c Config) *Group {
	if c.Loops == 0 {
		c.Loops = min(runtime.GOMAXPROCS(0), maxLoops)
	}
	if c.Turns == nil {
		c.Turns = relay.NewTurns(runtime.GOMAXPROCS(0))
	}
	return &Group{config: c}
}

// Listener is a listening socket of which one loop accepts, for others too: so a new connection wakes one.
type Listener struct {
	group    *Group
	home     *loop
	accepted func(*Conn)
	failed   func(error)
	take     func(fd int) (int, netip.AddrPort, error) // accept, but in tests

	mu     sync.RWMutex // held by who uses the socket, for the moment, and by Close
	fd     int          // the listener's own
	closed bool

	left atomic.Int64 // that may still call accepted: the loop, and connections that it has passed on
	done func()
}

// Listen accepts of a listener from now on, and has accepted called with each connection, on a loop's goroutine, which must not wait. Failed is told
// why one could not be. Not ok: it is no listening socket of the system's, or the system is none of those that this is for. The listener is still
// the caller's to close, after what is returned.
func (g *Group) Listen(l net.Listener, accepted func(*Conn), failed func(error)) (s *Listener, ok bool) {
	fd, ok := listening(l)
	if !ok {
		return nil, false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || !g.run() {
		return nil, false
	}
	s = &Listener{group: g, home: g.loops[g.homes%len(g.loops)], fd: fd, accepted: accepted, failed: failed, take: accept}
	g.homes++
	s.left.Store(1)
	s.home.post(func() { s.home.listen(s) })
	return s, true
}

// Close accepts nothing more, and calls done, on whatever goroutine, once accepted is called no more. It waits for nothing.
func (s *Listener) Close(done func()) {
	s.done = done
	s.mu.Lock()
	s.closed = true
	s.home.drop(s.fd)
	s.mu.Unlock()
	if !s.home.post(func() { s.home.unlisten(s) }) {
		s.leave()
	}
}

func (s *Listener) leave() {
	if s.left.Add(-1) == 0 {
		s.done()
	}
}

// accept takes a connection, unless it is closed.
func (s *Listener) accept() (fd int, from netip.AddrPort, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return -1, from, errAgain
	}
	return s.take(s.fd)
}

// run starts the loops, if they do not run.
func (g *Group) run() bool {
	if len(g.loops) > 0 {
		return true
	}
	for range g.config.Loops {
		p, err := newPoller()
		if err != nil {
			break
		}
		l := &loop{group: g, poller: p, room: make([]byte, roomSize)}
		g.loops = append(g.loops, l)
		g.wg.Go(l.run)
	}
	return len(g.loops) > 0
}

// Close breaks off what loops still carry, and returns when none runs any more. Listeners are to be closed before. Flows that go on elsewhere (Flow.HandedOver) are not broken off, nor
// waited for, and what is done for connections that were detached is not either.
func (g *Group) Close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	for _, l := range g.loops {
		l.post(func() { l.over = true })
	}
	g.wg.Wait()
}

// loop is one goroutine, and what it does in turn. All is its own but what is posted.
type loop struct {
	group      *Group
	poller     *poller
	room       []byte   // for what is read, until it is written
	known      []source // by descriptor; of those that are not, the number is 0
	number     uint32   // given last
	ready      []*Flow  // that have a turn to come
	connecting []*Flow  // by when it is given up, those too that have come further
	wheel      wheel
	turns      uint64
	over       bool

	clients atomic.Int64 // that it holds; others read it

	ticking, waiting bool      // a timer runs: for the wheel, for who is first of connecting
	turned           time.Time // when the wheel was

	mu     sync.Mutex
	posted []func()
	asleep atomic.Bool // or about to be
	ended  bool        // mu: nothing is done any more
}

// source is what the system tells something of: an end, or a listener.
type source struct {
	number   uint32
	conn     *Conn
	listener *Listener
	told     uint64 // the turn in which there was something to be accepted
	paused   bool   // nothing is accepted until a timer has run out
}

// post has something be done on the loop's goroutine; false: it has ended. What is posted are closes, breaks, connections and listeners: no more than there are of them.
func (l *loop) post(do func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.posted = append(l.posted, do)
	if l.asleep.Load() {
		l.poller.wake() // under the lock: the poller is not closed before the loop has ended
	}
	return true
}

// drop has the system tell nothing more of a descriptor. It may be called on any goroutine.
func (l *loop) drop(fd int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.poller.remove(fd)
	}
}

// queue has a flow have a turn more.
func (l *loop) queue(f *Flow) {
	if !f.queued {
		f.queued = true
		l.ready = append(l.ready, f)
	}
}

func (l *loop) run() {
	defer l.poller.close()
	l.turned = time.Now()
	told := make([]event, events)
	busy := 0
	for {
		n := l.poller.look(told)
		if n == 0 && len(l.ready) == 0 {
			n, busy = l.sleep(told), 0
		} else if busy++; busy%shift == 0 {
			n += l.poller.yield(told[n:])
		}
		l.turns++
		for _, e := range told[:n] {
			l.tell(e)
		}
		l.doPosted()
		l.haveTurns()
		l.giveUp()
		l.arm()
		if l.over {
			l.end()
			return
		}
	}
}

// sleep waits until the system tells something, or something was posted.
func (l *loop) sleep(told []event) (n int) {
	l.asleep.Store(true)
	defer l.asleep.Store(false)
	l.mu.Lock()
	posted := len(l.posted) > 0
	l.mu.Unlock()
	if posted {
		return 0
	}
	n, err := l.poller.wait(told)
	if err != nil {
		l.over = true // it would go round for ever
	}
	return n
}

// tell passes on what the system says.
func (l *loop) tell(e event) {
	if e.fd < 0 || e.fd >= len(l.known) {
		return
	}
	s := l.known[e.fd]
	switch {
	case s.number == 0 || s.number != e.number: // of one that was closed meanwhile
	case s.listener != nil:
		if !s.paused && s.told != l.turns { // it may be told twice in a turn: what it has then is told in the next
			l.accept(s.listener, e.fd)
		}
	default:
		s.conn.flow.told(s.conn.at, e.readable, e.writable, e.behind)
	}
}

// doPosted does what others want.
func (l *loop) doPosted() {
	l.mu.Lock()
	all := l.posted
	l.posted = nil
	l.mu.Unlock()
	for _, do := range all {
		l.guard(do)
	}
}

// guard calls what may panic.
func (l *loop) guard(do func()) {
	defer func() {
		if l.group.config.Panicked == nil {
			return
		}
		if v := recover(); v != nil {
			l.group.config.Panicked(v)
		}
	}()
	do()
}

// haveTurns gives each flow that is ready one turn.
func (l *loop) haveTurns() {
	all := l.ready
	l.ready = nil
	for _, f := range all {
		f.queued = false
		f.again()
	}
	if l.ready == nil {
		clear(all)
		l.ready = all[:0]
	}
}

// watch has the system tell of a connection from now on.
func (l *loop) watch(c *Conn) error {
	if c.fd < 0 {
		return net.ErrClosed
	}
	number := l.next()
	if err := l.poller.add(c.fd, number, c.room); err != nil {
		return err
	}
	l.know(c.fd, source{number: number, conn: c})
	return nil
}

// watchRoom has the system also tell when a connection can be written to that could not be just now.
func (l *loop) watchRoom(c *Conn) error {
	if c.room {
		return nil
	}
	c.room = true
	return l.poller.change(c.fd, l.known[c.fd].number, true)
}

// watches says whether the system tells of a connection.
func (l *loop) watches(c *Conn) bool {
	return c.fd >= 0 && c.fd < len(l.known) && l.known[c.fd].conn == c
}

// next is a number that no source has.
func (l *loop) next() uint32 {
	if l.number++; l.number == 0 {
		l.number++
	}
	return l.number
}

// know has what is told of a descriptor be a source's, which the system has under its number already.
func (l *loop) know(fd int, s source) {
	for len(l.known) <= fd {
		l.known = append(l.known, source{})
	}
	l.known[fd] = s
}

// forget has nothing be done any more about what the system tells of a connection. It says whether it would tell something.
func (l *loop) forget(c *Conn) (watched bool) {
	if watched = l.watches(c); watched {
		l.known[c.fd] = source{}
	}
	return watched
}

// listen begins to accept of a listener, or tries again later.
func (l *loop) listen(s *Listener) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return
	}
	number := l.next()
	if err := l.poller.addListener(s.fd, number); err != nil {
		s.failed(err)
		l.listenLater(s)
		return
	}
	l.know(s.fd, source{number: number, listener: s})
}

func (l *loop) listenLater(s *Listener) {
	time.AfterFunc(acceptPause, func() { l.post(func() { l.listen(s) }) })
}

func (l *loop) unlisten(s *Listener) {
	if s.fd < len(l.known) && l.known[s.fd].listener == s { // the descriptor may be another's by now
		l.known[s.fd] = source{}
	}
	s.leave()
}

// accept takes one connection, and more where the turn before had some, too: what finds none is a call in vain.
func (l *loop) accept(s *Listener, at int) {
	most := 1
	if l.known[at].told+1 == l.turns {
		most = burst
	}
	l.known[at].told = l.turns
	for range most {
		fd, from, err := s.accept()
		switch {
		case err == errAgain:
			return
		case err != nil:
			s.failed(err)
			l.pause(s, at)
			return
		}
		if to := l.group.least(l); to == l {
			l.begin(s, fd, from)
		} else {
			to.takeOver(s, fd, from)
		}
	}
}

// least is the loop that is to hold a connection that one has accepted: that one, unless it holds more than others.
func (g *Group) least(by *loop) *loop {
	least, most := by, by.clients.Load()-slack
	for _, one := range g.loops {
		if n := one.clients.Load(); n < most {
			least, most = one, n
		}
	}
	least.clients.Add(1)
	return least
}

// takeOver has a connection that another loop has accepted begin on this one, which is to hold it.
func (l *loop) takeOver(s *Listener, fd int, from netip.AddrPort) {
	s.left.Add(1)
	if !l.post(func() {
		defer s.leave()
		if l.over {
			closeSocket(fd, true)
			return
		}
		l.begin(s, fd, from)
	}) {
		closeSocket(fd, true)
		s.leave()
	}
}

func (l *loop) begin(s *Listener, fd int, from netip.AddrPort) {
	f := &Flow{loop: l}
	near, far := &f.ends[client], &f.ends[target]
	near.flow, near.at, near.fd, near.remote = f, client, fd, from
	far.flow, far.at, far.fd = f, target, -1
	l.guard(func() { s.accepted(near) })
}

// pause has nothing be accepted of a listener for a moment.
func (l *loop) pause(s *Listener, at int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed || l.known[at].paused {
		return
	}
	l.known[at].paused = true
	l.poller.remove(at)
	l.listenLater(s)
}

// arm has the loop wake when something is due, if a timer does not already.
func (l *loop) arm() {
	if !l.ticking && l.wheel.count > 0 {
		l.ticking, l.turned = true, time.Now()
		time.AfterFunc(tick, func() { l.post(l.tick) })
	}
	if !l.waiting && len(l.connecting) > 0 {
		l.waiting = true
		time.AfterFunc(time.Until(l.connecting[0].due), func() { l.post(func() { l.waiting = false }) })
	}
}

// tick looks at those flows whose time it is.
func (l *loop) tick() {
	n := time.Since(l.turned) / tick
	for range n {
		l.wheel.turn((*Flow).look)
	}
	l.turned = l.turned.Add(n * tick)
	if l.ticking = l.wheel.count > 0; l.ticking {
		time.AfterFunc(time.Until(l.turned.Add(tick)), func() { l.post(l.tick) })
	}
}

// giveUp ends what has been connecting for too long.
func (l *loop) giveUp() {
	for len(l.connecting) > 0 {
		f := l.connecting[0]
		if f.state == connecting {
			if time.Now().Before(f.due) {
				return
			}
			l.guard(f.late)
		}
		l.connecting[0] = nil
		l.connecting = l.connecting[1:]
	}
}

// end breaks off what is still carried.
func (l *loop) end() {
	for _, s := range l.known {
		if s.conn != nil {
			l.guard(s.conn.closed)
		}
	}
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.doPosted()
}
