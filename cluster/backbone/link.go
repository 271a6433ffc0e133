package backbone

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

const (
	// keepAlive is how long a carrier may be silent before it is asked whether it lives, and silenceTimeout how
	// long the answer may take: a dead peer is noticed within their sum. quic-go raises the peer's timeout, as it
	// hears of it, to 5 s at least, so each end goes by its own; and it waits three probe timeouts at least, which
	// is longer only where the round trip is above about 400 ms.
	keepAlive      = 400 * time.Millisecond
	silenceTimeout = 1500 * time.Millisecond

	// handshakeTimeout bounds the silence in a handshake, at either end, and attemptTimeout a whole attempt.
	handshakeTimeout = 2 * time.Second
	attemptTimeout   = 3 * time.Second

	// firstBackoff is the pause after the first failed attempt; it doubles up to lastBackoff.
	firstBackoff = 50 * time.Millisecond
	lastBackoff  = 2 * time.Second

	// maxStreams bounds the streams a peer may hold open on one carrier; its dials beyond them fail.
	maxStreams = 16384

	// streamWindow is how many bytes a stream may carry at first without being read, and grows where they are
	// read fast; connectionWindow bounds them for all streams of a carrier together, and a carrier at it stands
	// still. So many stalled readers, 512 at least, do not stop the others.
	streamWindow     = 256 << 10
	connectionWindow = 128 << 20
)

// quicConfig is what both ends of a carrier have in common.
func quicConfig() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:             handshakeTimeout,
		MaxIdleTimeout:                   silenceTimeout,
		MaxIncomingUniStreams:            -1,
		InitialStreamReceiveWindow:       streamWindow,
		InitialConnectionReceiveWindow:   connectionWindow,
		MaxConnectionReceiveWindow:       connectionWindow,
		EnableStreamResetPartialDelivery: true, // so that what was written before Close arrives
	}
}

// The codes with which a carrier is closed. They are for people; nothing decides by them.
const (
	codeClosing  quic.ApplicationErrorCode = 1 // this node stops, or keeps the link no longer
	codeStranger quic.ApplicationErrorCode = 2 // the other end is not who it should be
)

// link is what is held to one peer: a set of carriers, QUIC connections dialled by us. The peer dials its own, so
// each end judges the path by its own probes, and no two dials need to agree on which of them stands.
type link struct {
	b      *Backbone
	node   string
	addr   netip.AddrPort
	ctx    context.Context
	cancel context.CancelFunc
	judged context.Context // done once the first attempt has ended
	judge  context.CancelFunc

	mu       sync.Mutex
	carriers []*quic.Conn // those that are up
	next     int          // whose turn it is
	rtt      time.Duration
	since    time.Time
	reason   string
}

func newLink(b *Backbone, node string, addr netip.AddrPort) *link {
	l := &link{b: b, node: node, addr: addr, reason: "not dialled yet"}
	l.ctx, l.cancel = context.WithCancel(b.ctx)
	l.judged, l.judge = context.WithCancel(l.ctx)
	return l
}

// stream opens a stream on the carrier whose turn it is, or on another where that one cannot. It waits for the outcome
// of the link's first attempt, and for nothing else: from then on it is known whether the link is up, and where
// too many streams are open the next node can be asked sooner than one ends.
func (l *link) stream(ctx context.Context) (*quic.Stream, error) {
	select {
	case <-l.judged.Done():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	why := l.reason
	for range l.carriers {
		l.next++
		stream, err := l.carriers[l.next%len(l.carriers)].OpenStream()
		if err == nil {
			return stream, nil
		}
		why = err.Error()
	}
	return nil, fmt.Errorf("%w: %s", ErrDown, why)
}

func (l *link) state() Link {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Link{Up: len(l.carriers) > 0, RTT: l.rtt, Since: l.since, Reason: l.reason}
}

// measure takes the round trip of the best carrier. It is not taken whenever the state is asked for: it moves with
// each packet, and who waits for a change would never rest.
func (l *link) measure() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rtt = 0
	for _, c := range l.carriers {
		if rtt := c.ConnectionStats().SmoothedRTT; l.rtt == 0 || rtt < l.rtt {
			l.rtt = rtt
		}
	}
}

// carry keeps one carrier up for as long as the link is kept.
func (l *link) carry() {
	backoff := firstBackoff
	for l.ctx.Err() == nil {
		carrier, err := l.dial()
		if err == nil {
			backoff = firstBackoff
			l.up(carrier)
			select {
			case <-carrier.Context().Done():
				err = context.Cause(carrier.Context())
			case <-l.ctx.Done():
				err = net.ErrClosed
			}
			l.down(carrier, err)
			carrier.CloseWithError(codeClosing, "")
			l.b.changed()
			continue
		}
		l.failed(err)
		l.b.changed()
		pause := time.NewTimer(backoff/2 + rand.N(backoff/2))
		select {
		case <-pause.C:
		case <-l.ctx.Done():
			pause.Stop()
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

// dial makes one attempt. It ends well only when the peer has answered a stream: a TLS client believes its
// handshake done before the server has looked at its certificate.
func (l *link) dial() (*quic.Conn, error) {
	ctx, cancel := context.WithTimeout(l.ctx, attemptTimeout)
	defer cancel()
	config := quicConfig()
	config.KeepAlivePeriod = keepAlive
	config.MaxIncomingStreams = -1 // the peer opens its streams on its own carriers
	tlsConfig := withALPN(l.b.config.ClientTLS(l.node))
	carrier, err := l.b.transport.Dial(ctx, net.UDPAddrFromAddrPort(l.addr), tlsConfig, config)
	if err != nil {
		return nil, err
	}
	name, err := l.b.config.PeerName(carrier.ConnectionState().TLS)
	if err == nil && name != l.node {
		err = fmt.Errorf("%s answers there", name)
	}
	if err != nil {
		carrier.CloseWithError(codeStranger, "")
		return nil, err
	}
	if err := l.hello(ctx, carrier); err != nil {
		carrier.CloseWithError(codeClosing, "")
		return nil, err
	}
	return carrier, nil
}

func (l *link) hello(ctx context.Context, carrier *quic.Conn) error {
	header, err := AppendHeader(nil, Header{Service: helloService})
	if err != nil {
		return err
	}
	stream, err := carrier.OpenStream()
	if err != nil {
		return err
	}
	c, err := l.b.ask(ctx, stream, l.node, header)
	if err != nil {
		return err
	}
	return c.Close()
}

func (l *link) up(carrier *quic.Conn) {
	l.mu.Lock()
	first := len(l.carriers) == 0
	l.carriers = append(l.carriers, carrier)
	if first {
		l.since, l.reason = time.Now(), ""
	}
	l.mu.Unlock()
	l.measure()
	l.judge()
	l.b.changed()
	if first {
		l.b.log.Info("link up", "peer", l.node, "address", l.addr)
	}
}

func (l *link) down(carrier *quic.Conn, why error) {
	l.mu.Lock()
	l.carriers = slices.DeleteFunc(l.carriers, func(c *quic.Conn) bool { return c == carrier })
	last := len(l.carriers) == 0
	if last {
		l.rtt, l.since, l.reason = 0, time.Now(), why.Error()
	}
	l.mu.Unlock()
	if l.ctx.Err() != nil {
		return
	}
	l.b.count.carriersLost.Add(1)
	if last {
		l.b.log.Warn("link down", "peer", l.node, "address", l.addr, "reason", why)
	}
}

func (l *link) failed(why error) {
	l.mu.Lock()
	if len(l.carriers) == 0 {
		l.reason = why.Error()
		if l.since.IsZero() {
			l.since = time.Now()
		}
	}
	l.mu.Unlock()
	l.judge()
}
