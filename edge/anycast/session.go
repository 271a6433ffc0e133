package anycast

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

const (
	// dialTimeout bounds one dial.
	dialTimeout = 5 * time.Second
	// openTimeout bounds the wait for a neighbour's OPEN and for this side's writing before (RFC 4271 suggests 4 minutes; a
	// neighbour that is there answers within a round trip).
	openTimeout = 10 * time.Second
	// lingerTime bounds how long a neighbour has to take the last message of a session.
	lingerTime = time.Second
	// lingerBytes bounds what is read, and dropped, meanwhile.
	lingerBytes = 1 << 20

	// firstRetry, secondRetry and maxRetry say how long to wait before dialling again.
	firstRetry  = 100 * time.Millisecond
	secondRetry = time.Second
	maxRetry    = 30 * time.Second
	// stable is how long a session must have been established to be forgotten as a failure.
	stable = 10 * time.Second
)

// retryAfter is how long to wait after so many failures in a row (1: the first), at the given chance of 0 … 1. It is up to
// a quarter less than what it is named after, so that many nodes do not come at once (RFC 4271, section 10).
func retryAfter(failures int, chance float64) time.Duration {
	wait := firstRetry
	if failures > 1 {
		wait = min(secondRetry<<min(failures-2, 10), maxRetry)
	}
	return wait - time.Duration(chance*float64(wait)/4)
}

// peer keeps the session with one neighbour.
type peer struct {
	*Speaker
	index    int
	neighbor Neighbor
	changed  chan struct{} // holds one: what is announced changed, or the neighbour asks for it anew
	log      *slog.Logger
}

// wake has the session look at what is announced.
func (p *peer) wake() {
	select {
	case p.changed <- struct{}{}:
	default: // it will look anyway
	}
}

// run keeps a session until the context ends.
func (p *peer) run(ctx context.Context) {
	failures, capable, said := 0, true, ""
	for {
		lasted, err := p.attempt(ctx, capable)
		p.publish(func(s *Session) { s.become(Idle).LastError = err.Error() })
		if ctx.Err() != nil {
			return
		}
		if lasted >= stable {
			failures = 0
		}
		failures++
		if said != err.Error() { // a neighbour that is gone for long is a line, not one each half minute
			said = err.Error()
			p.log.Warn("no BGP session", "why", err)
		}
		if lasted > 0 {
			said = ""
		}
		capable = !capable || !refusesCapabilities(err) || p.config.AS != uint32(twoOctets(p.config.AS))
		select {
		case <-time.After(retryAfter(failures, rand.Float64())):
		case <-ctx.Done():
			return
		}
	}
}

// publish changes what is said of the session.
func (p *peer) publish(change func(*Session)) {
	p.sessions.Update(func(old []Session) []Session {
		next := slices.Clone(old)
		change(&next[p.index])
		return next
	})
}

func (s *Session) become(state State) *Session {
	s.State, s.Since, s.Sent, s.Unsent = state, time.Now(), 0, 0
	return s
}

// attempt dials the neighbour and keeps the session until it ends. It says how long it was established, and always why
// it is no more.
func (p *peer) attempt(ctx context.Context, capable bool) (lasted time.Duration, err error) {
	p.publish(func(s *Session) { s.become(Connect) })
	p.count.dials.Add(1)
	dialing, done := context.WithTimeout(ctx, dialTimeout)
	conn, err := p.config.Dial(dialing, "tcp", p.neighbor.endpoint())
	done()
	if err != nil {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		p.count.dialsFailed.Add(1)
		return 0, fmt.Errorf("dial: %w", plain(err))
	}
	// When the context ends, so does every wait for the neighbour: for its messages at once, for its taking ours soon.
	// Whoever sets a deadline looks at the context afterwards.
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		conn.SetReadDeadline(time.Unix(1, 0))
		conn.SetWriteDeadline(time.Now().Add(lingerTime))
		close(woken)
	})
	s := &session{peer: p, conn: conn, reader: reader{from: bufio.NewReaderSize(conn, maxMessage)}, sent: map[netip.Prefix]path{}}
	if err = s.open(ctx, capable); err == nil {
		p.count.established.Add(1)
		p.log.Info("BGP session established", "hold", s.hold, "ipv4", s.v4, "ipv6", s.v6)
		began := time.Now()
		err = s.keep(ctx)
		lasted = max(time.Since(began), 1)
		if ctx.Err() == nil {
			p.count.lost.Add(1)
		}
	}
	if !stop() {
		<-woken // or it would set the deadlines of what follows
	}
	s.part(err)
	return lasted, plain(err)
}

// plain is an error without the ports of one connection, so that the same fault is the same text.
func plain(err error) error {
	var op *net.OpError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("neighbour closed the connection")
	case errors.As(err, &op):
		return op.Err
	}
	return err
}

// session is one connection with a neighbour.
type session struct {
	*peer
	terms
	conn   net.Conn
	reader reader
	sent   map[netip.Prefix]path // what the neighbour knows
	again4 atomic.Bool           // the neighbour asks for all of a family anew
	again6 atomic.Bool
	broken bool // a message was sent in part: nothing can follow it
}

// open agrees on the terms (RFC 4271, section 8.2.2: OpenSent and OpenConfirm).
func (s *session) open(ctx context.Context, capable bool) error {
	s.publish(func(p *Session) { p.become(OpenSent) })
	if err := s.write(ctx, openTimeout, openMessage(s.config, s.neighbor, capable)); err != nil {
		return err
	}
	kind, body, err := s.next(ctx, openTimeout)
	if err != nil {
		return err
	}
	if kind != bgp.BGP_MSG_OPEN {
		return unexpected(bgp.BGP_ERROR_SUB_RECEIVE_UNEXPECTED_MESSAGE_IN_OPENSENT_STATE, kind)
	}
	agreed, wrong := judgeOpen(s.config, s.neighbor, capable, body)
	if wrong != nil {
		return wrong
	}
	s.terms = agreed
	s.next4, s.next6 = nextHops(s.config, s.conn.LocalAddr())

	s.publish(func(p *Session) { p.become(OpenConfirm) })
	if err := s.write(ctx, s.hold, keepalive()); err != nil {
		return err
	}
	kind, _, err = s.next(ctx, s.hold)
	if err != nil {
		return err
	}
	if kind != bgp.BGP_MSG_KEEPALIVE {
		return unexpected(bgp.BGP_ERROR_SUB_RECEIVE_UNEXPECTED_MESSAGE_IN_OPENCONFIRM_STATE, kind)
	}
	s.publish(func(p *Session) { p.become(Established) })
	return nil
}

func unexpected(sub, kind uint8) *notice {
	return malformed(bgp.BGP_ERROR_FSM_ERROR, sub, []byte{kind}, "a message of type %d out of turn", kind)
}

// nextHops are where a neighbour sends what is for routes that name no next hop: to where the session comes from, and for
// the other family to what is configured.
func nextHops(c Config, local net.Addr) (next4, next6 netip.Addr) {
	next4, next6 = c.NextHop4, c.NextHop6
	at, err := netip.ParseAddrPort(local.String())
	if err != nil {
		return next4, next6 // no TCP
	}
	switch a := at.Addr().Unmap(); {
	case a.Is4():
		next4 = a
	case !a.IsLinkLocalUnicast(): // RFC 2545, section 3: a next hop is global
		next6 = a
	}
	return next4, next6
}

// keep tells the neighbour what is announced, and that this node is alive, until the session ends.
func (s *session) keep(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- s.listen(ctx) }()
	beat := time.NewTicker(s.hold / 3)
	defer beat.Stop()
	err := s.tell(ctx)
	for err == nil {
		select {
		case err = <-ended:
			return err
		case <-s.changed:
			err = s.tell(ctx)
		case <-beat.C:
			err = s.write(ctx, s.hold, keepalive())
		}
	}
	// Writing failed. The neighbour may have said why before it hung up.
	late := time.AfterFunc(lingerTime, func() { s.conn.Close() })
	defer late.Stop()
	var why *told
	if heard := <-ended; errors.As(heard, &why) || ctx.Err() != nil {
		return heard
	}
	return err
}

// listen takes what the neighbour says, and says why it ended. It writes nothing, so that two who write at once
// cannot wait for each other.
func (s *session) listen(ctx context.Context) error {
	for {
		kind, body, err := s.next(ctx, s.hold)
		if err != nil {
			return err
		}
		switch kind {
		case bgp.BGP_MSG_OPEN:
			return unexpected(bgp.BGP_ERROR_SUB_RECEIVE_UNEXPECTED_MESSAGE_IN_ESTABLISHED_STATE, kind)
		case bgp.BGP_MSG_UPDATE:
			if wrong := checkUpdate(body); wrong != nil {
				return wrong
			}
			s.count.ignored.Add(1)
		case bgp.BGP_MSG_ROUTE_REFRESH:
			s.count.refreshes.Add(1)
			switch decodeRefresh(body) {
			case bgp.RF_IPv4_UC:
				s.again4.Store(true)
				s.wake()
			case bgp.RF_IPv6_UC:
				s.again6.Store(true)
				s.wake()
			}
		}
	}
}

// next waits for a message, and ends with a notice after so much silence, with the context's cause, or with what a
// NOTIFICATION says.
func (s *session) next(ctx context.Context, patience time.Duration) (kind uint8, body []byte, err error) {
	s.conn.SetReadDeadline(time.Now().Add(patience))
	if ctx.Err() != nil { // its end may have come before the deadline was set
		return 0, nil, context.Cause(ctx)
	}
	kind, body, err = s.reader.next()
	switch {
	case err == nil:
		s.count.messagesIn.Add(1)
	case ctx.Err() != nil:
		return 0, nil, context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, nil, &notice{code: bgp.BGP_ERROR_HOLD_TIMER_EXPIRED, why: fmt.Sprintf("neighbour was silent for %v", patience)}
	}
	if err == nil && kind == bgp.BGP_MSG_NOTIFICATION {
		s.count.notifiedIn.Add(1)
		return 0, nil, decodeNotification(body)
	}
	return kind, body, err
}

// tell sends what the neighbour does not know yet.
func (s *session) tell(ctx context.Context) error {
	known := s.sent
	if s.again4.Swap(false) {
		known = forgotten(known, netip.Addr.Is4)
	}
	if s.again6.Swap(false) {
		known = forgotten(known, netip.Addr.Is6)
	}
	want, unsent := s.takes(s.wanted.Load().paths)
	gone, fresh := diff(known, want)
	if err := s.write(ctx, s.hold, s.updates(gone, fresh)...); err != nil {
		return err
	}
	s.sent = want
	for _, g := range fresh {
		s.count.announced.Add(uint64(len(g.prefixes)))
	}
	s.count.withdrawn.Add(uint64(len(gone)))
	s.publish(func(p *Session) { p.Sent, p.Unsent = len(want), unsent })
	return nil
}

// forgotten is what is known, where all of a family must be said again, or taken back.
func forgotten(known map[netip.Prefix]path, family func(netip.Addr) bool) map[netip.Prefix]path {
	known = maps.Clone(known)
	for prefix := range known {
		if family(prefix.Addr()) {
			known[prefix] = path{} // equals none that is sent: those have a next hop
		}
	}
	return known
}

// write sends messages. A neighbour that takes none for as long as the patience is given up (RFC 9687).
func (s *session) write(ctx context.Context, patience time.Duration, messages ...[]byte) error {
	if len(messages) == 0 {
		return nil
	}
	s.conn.SetWriteDeadline(time.Now().Add(patience))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, err := s.conn.Write(slices.Concat(messages...)); err != nil {
		s.broken = true
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("neighbour took nothing for %v", patience)
		}
		return err
	}
	s.count.messagesOut.Add(uint64(len(messages)))
	return nil
}

func keepalive() []byte { return serialized(bgp.NewBGPKeepAliveMessage()) }

// part says goodbye if this side ends the session, and closes the connection. A close with unread bytes is a reset, which
// may overtake the last message: so it reads until the neighbour has hung up, within bounds.
func (s *session) part(err error) {
	defer s.conn.Close()
	var last *notice
	if !errors.As(err, &last) {
		return
	}
	switch last.code {
	case bgp.BGP_ERROR_CEASE:
	case bgp.BGP_ERROR_OPEN_MESSAGE_ERROR:
		s.count.refusedOpens.Add(1)
	case bgp.BGP_ERROR_HOLD_TIMER_EXPIRED:
		s.count.holdExpired.Add(1)
	default:
		s.count.malformed.Add(1)
	}
	s.conn.SetWriteDeadline(time.Now().Add(lingerTime))
	if s.broken {
		return
	}
	if _, err := s.conn.Write(last.message()); err != nil {
		return
	}
	s.count.messagesOut.Add(1)
	s.count.notifiedOut.Add(1)
	if half, ok := s.conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	s.conn.SetReadDeadline(time.Now().Add(lingerTime))
	io.CopyN(io.Discard, s.conn, lingerBytes)
}
