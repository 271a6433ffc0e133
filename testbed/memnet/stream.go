package memnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// Window is how many bytes of one direction of a stream may be on their way or unread; Write waits at it.
	Window = 256 << 10
	// Chunk is how many bytes of a stream travel, and are delayed by a loss, together.
	Chunk = 16 << 10
	// Segment is how many of them one packet carries: what loss is drawn for.
	Segment = 1448
	// Retransmit is the least time after which a stream sends again what was lost (RFC 6298 with Linux's minimum).
	Retransmit = 200 * time.Millisecond
	// Backlog is how many streams wait for Accept; at it a SYN is dropped, and repeated by who dials.
	Backlog = 1024
	// KeepAlive is how long it takes at most until a stream finds out that its far end has restarted (Go's default).
	KeepAlive = 15 * time.Second

	// A SYN is sent synTries times, the first repeated after synTimeout and each later one after twice as long (Linux).
	synTries   = 7
	synTimeout = time.Second
)

// A stream is one end of a connection. It implements net.Conn.
type stream struct {
	host          *Host
	in            *Internet
	local, remote netip.AddrPort
	dual          bool // accepted on a dual-stack wildcard
	born          uint64
	peer          *stream // the far end; nil until the SYN has arrived there
	out           *half

	dialled     bool
	established chan struct{} // of who dialled: closed when the dial has ended, well or not
	listener    *listener     // of who accepts: where it waits for the handshake to end

	heard  time.Duration // when Silence found last that the far end would have been
	closed bool          // by this end
	lost   bool          // the machine forgot it in a crash
	linger bool          // Close is orderly; SetLinger(0) turns it off
	err    error         // why the stream broke: an errno

	readable sync.Cond
	received [][]byte
	ended    bool // a FIN was received
	uncredit int  // bytes read that the far end was not told of yet
	readBy   deadline

	writable sync.Cond
	writing  bool // one Write is at it: writes do not mix
	finished bool // a FIN was sent
	writeBy  deadline
}

// RoundTrip is the round trip of a connection between two hosts, without jitter, as the kernel would have seen it at least; not ok: it
// is none of this network's, or its far end is gone.
func RoundTrip(c net.Conn) (rtt time.Duration, ok bool) {
	s, is := c.(*stream)
	if !is {
		return 0, false
	}
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	if s.peer == nil {
		return 0, false
	}
	a, b := s.host.link(s.peer.host), s.peer.host.link(s.host)
	return a.delay() + a.slow + b.delay() + b.slow, true
}

func (h *Host) newStream(local, remote netip.AddrPort, dual bool) *stream {
	s := &stream{
		host: h, in: h.in, local: local, remote: remote, dual: dual, born: h.in.nextOrder(), linger: true,
		readable: sync.Cond{L: &h.in.mu},
		writable: sync.Cond{L: &h.in.mu},
	}
	s.out = &half{from: s, chance: h.in.chance("tcp", local, remote)}
	s.out.arrival.do = s.out.arrive
	h.streams[s] = true
	return s
}

// dialTCP is called with mu held, and gives it up while it waits.
func (h *Host) dialTCP(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := h.unusable(); err != nil {
		return nil, err
	}
	src, err := h.source(dst.Addr())
	if err != nil {
		return nil, err
	}
	port, err := h.pick(func(port uint16) bool { return !h.dialled[port] && len(h.tcp[port]) == 0 })
	if err != nil {
		return nil, err
	}
	h.in.counts[dials]++
	h.dialled[port] = true
	s := h.newStream(netip.AddrPortFrom(src, port), dst, false)
	s.dialled = true
	s.established = make(chan struct{})
	if err := s.handshake(ctx); err != nil {
		s.end()
		s.forget()
		if s.peer != nil {
			s.peer.forget() // nobody has accepted it
		}
		return nil, err
	}
	return s, nil
}

func (s *stream) handshake(ctx context.Context) error {
	wait := synTimeout
	for range synTries {
		if err := s.sendSYN(); err != nil {
			return err
		}
		var done error
		s.in.mu.Unlock()
		select {
		case <-s.established:
		case <-time.After(wait):
		case <-ctx.Done():
			done = ctx.Err()
		}
		s.in.mu.Lock()
		select {
		case <-s.established:
			if s.closed {
				return net.ErrClosed
			}
			return os.NewSyscallError("connect", s.err)
		default:
		}
		if done != nil {
			return done
		}
		wait *= 2
	}
	return os.NewSyscallError("connect", syscall.ETIMEDOUT)
}

// sendSYN sends one to where the route leads now.
func (s *stream) sendSYN() error {
	target := s.in.route(s.host, s.remote.Addr())
	if target == nil {
		return os.NewSyscallError("connect", syscall.EHOSTUNREACH)
	}
	if s.peer != nil && s.peer.host != target {
		s.peer.forget()
		s.peer = nil
	}
	l := s.host.link(target)
	l.send(s.out.chance, func() { s.synArrived(l) })
	return nil
}

// synArrived is what the target does: refuse, or make the other end and answer.
func (s *stream) synArrived(l *link) {
	target, back := l.to, l.to.link(l.from)
	listener, ok := target.tcp.find(s.remote)
	switch {
	case s.closed:
		return
	case !ok:
		s.in.counts[dialsRefused]++
		back.send(s.out.chance, func() { s.breakOff(syscall.ECONNREFUSED) })
		return
	case s.peer == nil && len(listener.queue) >= Backlog:
		s.in.counts[dialsDropped]++
		return
	case s.peer == nil:
		s.peer = target.newStream(s.remote, s.local, listener.dual)
		s.peer.peer = s
		s.peer.listener = listener
		s.peer.out.link = back
		s.out.link = l
	}
	peer := s.peer
	back.send(peer.out.chance, func() { s.synAnswered(peer) })
}

func (s *stream) synAnswered(peer *stream) {
	if s.peer == peer && !s.dialEnded() {
		s.out.push(segment{kind: ack})
		close(s.established)
	}
}

func (s *stream) dialEnded() bool {
	select {
	case <-s.established:
		return true
	default:
		return false
	}
}

// Read implements net.Conn.
func (s *stream) Read(b []byte) (int, error) {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	for {
		switch {
		case s.closed:
			return 0, s.fault("read", net.ErrClosed)
		case len(b) == 0:
			return 0, nil
		case s.readBy.passed():
			return 0, s.fault("read", os.ErrDeadlineExceeded)
		case len(s.received) > 0:
			n := s.take(b)
			s.credit(n)
			return n, nil
		case s.ended:
			return 0, io.EOF
		case s.err != nil:
			return 0, s.fault("read", os.NewSyscallError("read", s.err))
		}
		s.readable.Wait()
	}
}

// Pending says whether a Read would return at once, with bytes, an end or an error; of deadlines it knows nothing.
func (s *stream) Pending() bool {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	return len(s.received) > 0 || s.ended || s.closed || s.err != nil
}

// Broken says that it is closed, or the far end has reset it, or its machine is found to have forgotten it.
func (s *stream) Broken() bool {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	return s.closed || s.err != nil
}

// Acked is how many bytes have arrived at the far end.
func (s *stream) Acked() uint64 {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	return s.out.arrived
}

// Silence is for how long the far end is known not to have been heard, as a kernel that probes would tell; it is as exact as it is asked often. Unanswered
// says that it would have been, if a way led there and back.
func (s *stream) Silence() (since time.Duration, unanswered bool) {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	if s.peer == nil {
		return 0, false
	}
	there, back := s.host.link(s.peer.host), s.peer.host.link(s.host)
	open := there.streams() && back.streams()
	if open || s.heard == 0 {
		s.heard = s.in.now()
	}
	return s.in.now() - s.heard, !open
}

func (s *stream) take(b []byte) (n int) {
	for len(s.received) > 0 && n < len(b) {
		m := copy(b[n:], s.received[0])
		n += m
		if s.received[0] = s.received[0][m:]; len(s.received[0]) == 0 {
			s.received[0] = nil
			s.received = s.received[1:]
		}
	}
	return n
}

// credit tells the far end what was read, a quarter of the window at a time.
func (s *stream) credit(n int) {
	if s.uncredit += n; s.uncredit >= Window/4 && s.err == nil {
		s.out.push(segment{kind: credit, credit: s.uncredit})
		s.uncredit = 0
	}
}

// Write implements net.Conn. It returns when the last byte fits in the window.
func (s *stream) Write(b []byte) (n int, err error) {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	for s.writing && s.unwritable() == nil {
		s.writable.Wait()
	}
	if err := s.unwritable(); err != nil {
		return 0, s.fault("write", err)
	}
	s.writing = true
	defer func() {
		s.writing = false
		s.writable.Broadcast()
	}()
	for n < len(b) {
		room := Window - s.out.unread
		if room == 0 {
			s.writable.Wait()
			if err := s.unwritable(); err != nil {
				return n, s.fault("write", err)
			}
			continue
		}
		m := min(room, Chunk, len(b)-n)
		s.out.unread += m
		s.in.counts[streamBytes] += uint64(m)
		s.out.push(segment{kind: data, data: bytes.Clone(b[n : n+m])})
		n += m
	}
	return n, nil
}

// unwritable is why nothing can be written; nil: it can.
func (s *stream) unwritable() error {
	switch {
	case s.closed:
		return net.ErrClosed
	case s.writeBy.passed():
		return os.ErrDeadlineExceeded
	case s.err != nil:
		return os.NewSyscallError("write", s.err)
	case s.finished:
		return os.NewSyscallError("write", syscall.EPIPE)
	}
	return nil
}

// CloseWrite ends what this end sends, behind all that was written; it may go on reading.
func (s *stream) CloseWrite() error {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	if s.closed {
		return s.fault("close", net.ErrClosed)
	}
	if s.err != nil {
		return s.fault("close", os.NewSyscallError("shutdown", s.err))
	}
	s.finish()
	s.writable.Broadcast()
	return nil
}

func (s *stream) finish() {
	if !s.finished {
		s.finished = true
		s.out.push(segment{kind: fin})
	}
}

// SetLinger makes Close a reset if sec is 0, and orderly otherwise.
func (s *stream) SetLinger(sec int) error {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	if s.closed {
		return s.fault("set", net.ErrClosed)
	}
	s.linger = sec != 0
	return nil
}

// Close implements net.Conn. What was written still arrives.
func (s *stream) Close() error {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	switch {
	case s.closed:
		return s.fault("close", net.ErrClosed)
	case s.err != nil:
		s.end()
	case len(s.received) > 0 || !s.linger:
		s.reset()
	default:
		s.finish()
		s.end()
	}
	s.forgetIfDone()
	return nil
}

// reset ends the stream here and tells the far end, if it has not ended before.
func (s *stream) reset() {
	if s.closed {
		return
	}
	if s.err == nil && s.peer != nil {
		s.out.push(segment{kind: rst})
	}
	s.end()
	s.forgetIfDone()
}

// vanish ends the stream as a machine that comes back after a crash does: it knows nothing of it.
func (s *stream) vanish() {
	s.lost = true
	s.out.drop()
	s.end()
	s.forget()
	if far := s.peer; far != nil {
		s.in.at(s.in.now()+KeepAlive, func() {
			if !far.closed && far.err == nil {
				far.out.push(segment{kind: probe})
			}
		})
	}
}

// end ends the stream here and wakes who waits for it. It tells nobody.
func (s *stream) end() {
	if s.closed {
		return
	}
	s.closed = true
	if s.dialled {
		delete(s.host.dialled, s.local.Port())
	}
	s.received = nil
	s.readBy.stop()
	s.writeBy.stop()
	s.wake()
	if s.dialled && !s.dialEnded() {
		close(s.established)
	}
}

// breakOff ends the stream from without.
func (s *stream) breakOff(err error) {
	if s.closed || s.err != nil {
		return
	}
	s.err = err
	s.out.drop()
	s.wake()
	if s.dialled && !s.dialEnded() {
		close(s.established)
	}
}

func (s *stream) wake() {
	s.readable.Broadcast()
	s.writable.Broadcast()
}

// forgetIfDone lets go of a stream that is closed and has nothing on its way.
func (s *stream) forgetIfDone() {
	if s.closed && len(s.out.queue) == 0 {
		s.forget()
	}
}

func (s *stream) forget() { delete(s.host.streams, s) }

// receive takes what arrives from the far end.
func (s *stream) receive(g segment) {
	if s.closed {
		if g.kind == ack || g.kind == data || g.kind == probe || g.kind == fin && s.lost {
			s.out.push(segment{kind: rst})
		}
		return
	}
	switch g.kind {
	case ack:
		s.listener.accepted(s)
	case data:
		s.received = append(s.received, g.data)
		s.readable.Broadcast()
	case fin:
		s.ended = true
		s.readable.Broadcast()
	case credit:
		s.out.unread -= g.credit
		s.writable.Broadcast()
	case rst:
		s.breakOff(syscall.ECONNRESET)
	}
}

// LocalAddr implements net.Conn.
func (s *stream) LocalAddr() net.Addr { return tcpAddr(s.local, s.dual) }

// RemoteAddr implements net.Conn.
func (s *stream) RemoteAddr() net.Addr { return tcpAddr(s.remote, s.dual) }

// SetDeadline implements net.Conn.
func (s *stream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (s *stream) SetReadDeadline(t time.Time) error { return s.setDeadline(&s.readBy, &s.readable, t) }

// SetWriteDeadline implements net.Conn.
func (s *stream) SetWriteDeadline(t time.Time) error {
	return s.setDeadline(&s.writeBy, &s.writable, t)
}

func (s *stream) setDeadline(d *deadline, c *sync.Cond, t time.Time) error {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	if s.closed {
		return s.fault("set", net.ErrClosed)
	}
	d.set(t, c)
	return nil
}

func (s *stream) fault(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: err}
}

type kind byte

const (
	ack    kind = iota // ends the handshake
	data               // and what is written
	fin                // no more data
	credit             // bytes were read
	probe              // is anybody there?
	rst                // nobody is
)

// A segment is what travels in a stream at once.
type segment struct {
	kind   kind
	data   []byte
	credit int
	due    time.Duration
	order  uint64
}

// A half is one direction of a stream: the segments on their way, in order.
type half struct {
	from    *stream
	link    *link
	chance  *rand.Rand
	queue   []segment
	arrived uint64 // bytes that have reached the far end
	unread  int    // bytes written that the far end has not credited
	arrival event  // of the first segment, in the internet's events if waiting
	waiting bool
	stalled bool // something was lost to a cut: all stands still until it heals
}

// push sends a segment behind those on their way.
func (h *half) push(g segment) {
	in := h.from.in
	if in.closed {
		return
	}
	if !h.link.streams() {
		h.stalled = true
	}
	g.order = in.nextOrder()
	g.due = h.link.carry(len(g.data), h.chance)
	if packets := g.packets(); packets > 0 {
		for h.link.loses(packets, h.chance) {
			in.counts[streamRetransmits]++
			g.due += h.link.retransmit()
		}
	}
	if last := len(h.queue) - 1; last >= 0 {
		g.due = max(g.due, h.queue[last].due)
	}
	h.queue = append(h.queue, g)
	h.from.host.streams[h.from] = true // a closed end may have to answer yet
	h.wait()
}

// packets is how many packets of the segment are missed if they are lost.
func (g segment) packets() int {
	switch g.kind {
	case data:
		return (len(g.data) + Segment - 1) / Segment
	case ack, fin:
		return 1
	}
	return 0
}

// wait waits for the first segment to arrive.
func (h *half) wait() {
	if h.waiting || h.stalled || len(h.queue) == 0 {
		return
	}
	h.waiting = true
	h.arrival.due, h.arrival.order = h.queue[0].due, h.queue[0].order
	h.from.in.schedule(&h.arrival)
}

func (h *half) arrive() {
	h.waiting = false
	if len(h.queue) > 0 && !h.link.streams() {
		h.stalled = true
		return
	}
	if len(h.queue) > 0 && h.queue[0].due <= h.from.in.now() {
		g := h.queue[0]
		h.queue[0] = segment{}
		h.queue = h.queue[1:]
		h.arrived += uint64(len(g.data))
		h.from.peer.receive(g)
	}
	h.from.forgetIfDone()
	h.wait()
}

// resume sends again what a cut has held up, if it has healed.
func (h *half) resume() {
	if !h.stalled || !h.link.streams() {
		return
	}
	h.stalled = false
	again := h.from.in.now() + h.link.retransmit()
	for i := range h.queue {
		h.queue[i].due = max(h.queue[i].due, again)
	}
	h.wait()
}

// drop forgets what is on its way.
func (h *half) drop() {
	h.queue = nil
	h.unread = 0
	h.stalled = false
}

// send sends a packet that nobody misses but who waits for the answer, of a handshake.
func (l *link) send(chance *rand.Rand, arrived func()) {
	if !l.streams() || l.loses(1, chance) {
		return
	}
	l.from.in.at(l.carry(0, chance), func() {
		if l.streams() {
			arrived()
		}
	})
}

// A listener implements net.Listener.
type listener struct {
	binding
	host   *Host
	ready  sync.Cond
	queue  []*stream
	closed bool
}

func newListener(h *Host, b binding) *listener {
	return &listener{binding: b, host: h, ready: sync.Cond{L: &h.in.mu}}
}

// accepted queues a stream whose handshake has ended.
func (l *listener) accepted(s *stream) {
	s.listener = nil
	if l.closed {
		s.reset()
		return
	}
	l.queue = append(l.queue, s)
	l.ready.Signal()
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	l.host.in.mu.Lock()
	defer l.host.in.mu.Unlock()
	for !l.closed && len(l.queue) == 0 {
		l.ready.Wait()
	}
	if l.closed {
		return nil, l.fault("accept")
	}
	s := l.queue[0]
	l.queue[0] = nil
	l.queue = l.queue[1:]
	return s, nil
}

// Close implements net.Listener. Streams that nobody accepted are reset.
func (l *listener) Close() error {
	l.host.in.mu.Lock()
	defer l.host.in.mu.Unlock()
	if l.closed {
		return l.fault("close")
	}
	l.closed = true
	l.host.tcp.remove(l)
	for _, s := range l.queue {
		s.reset()
	}
	l.ready.Broadcast()
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.tcpAddr() }

func (l *listener) fault(op string) error {
	return &net.OpError{Op: op, Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
}

// A deadline is a time after which who waits is woken, and fails.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

// set is called with the lock of the waiters held.
func (d *deadline) set(t time.Time, waiters *sync.Cond) {
	d.stop()
	d.at = t
	if left := time.Until(t); !t.IsZero() && left > 0 {
		if d.timer == nil {
			d.timer = time.AfterFunc(left, func() {
				waiters.L.Lock()
				defer waiters.L.Unlock()
				waiters.Broadcast()
			})
		} else {
			d.timer.Reset(left)
		}
	}
	waiters.Broadcast()
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
}
