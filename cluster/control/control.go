// Package control is the port by which nodes talk to each other beside the backbone: TCP under mutual TLS, where the ALPN name
// in the handshake says which service is meant (Raft, the watch stream, the API, joining).
//
// It speaks no protocol of its own and knows nothing of what the services say. Only nodes that the guard does not refuse get
// past the handshake, and Check ends what is open to those refused since; a stranger may reach the join service and no other,
// and only nodes with the role voter speak Raft with each other.
// When peers misbehave, what they hold is
// bounded and what they did is counted: a slow handshake delays nobody else, a service that does not accept
// loses its own connections and no others. The port carries little and matters most: it is the way to repair
// everything else, which is why it does not ride on the backbone.
package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/identity"
)

// The services of a node, by ALPN name (RFC 7301).
const (
	Raft  = "perigee-raft/1"
	Watch = "perigee-watch/1"
	API   = "perigee-api/1"
	// Report is what nodes say of themselves (cluster/report).
	Report = "perigee-report/1"
	// Flow is a connection for each flow of many bytes, beside the backbone's (cluster/backbone).
	Flow = "perigee-flow/1"
	Join = identity.JoinProtocol // the one that needs no certificate
)

const (
	// handshakeTimeout bounds a handshake, and dialing together with it; then the connection is closed. The slowest
	// honest one takes some round trips around the world, about a second.
	handshakeTimeout = 5 * time.Second

	// maxHandshakes bounds the handshakes that peers have under way; beyond it a connection is closed at once.
	maxHandshakes = 256

	// queueLength bounds the connections that wait for a service to accept them; beyond it they are closed.
	queueLength = 64

	// maxJoining bounds the connections of strangers that are past the handshake and not closed; beyond it they are closed.
	maxJoining = 32

	// drainTime bounds how long connections of Flow go on whose authority was retired: those of other services are dialed anew and
	// cost nobody anything, a flow is somebody's.
	drainTime = time.Hour

	// acceptPause is how long the port waits after the system could not give it a connection (too many open files).
	acceptPause = 100 * time.Millisecond
)

// Config is what a Port is made of.
type Config struct {
	// Listener is the control port; Port.Close closes it.
	Listener net.Listener
	// Guard is this node's identity and whom it trusts. It is asked at every handshake.
	Guard *identity.Guard
	Dial  func(ctx context.Context, network, address string) (net.Conn, error)
	Log   *slog.Logger
}

// Port is the open control port of a node.
type Port struct {
	cfg        Config
	handshakes chan struct{} // one token for each that is under way
	work       sync.WaitGroup
	ctx        context.Context // ends with the port
	cancel     context.CancelFunc

	mu       sync.Mutex
	services map[string]*service
	open     map[*below]*tls.Conn // by what is below TLS, to be cut when the port closes; nil: in its handshake
	joining  int
	closed   bool

	accepted, dialed, failed, unknown, overflowed, dropped, refused, unfit atomic.Uint64
}

// Open starts to accept connections. A peer that asks for a service that is not open yet is refused.
func Open(cfg Config) *Port {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Port{
		cfg:        cfg,
		handshakes: make(chan struct{}, maxHandshakes),
		services:   map[string]*service{},
		open:       map[*below]*tls.Conn{},
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.work.Go(p.accept)
	return p
}

// Close ends the port: it closes the listener, every service, and every connection that it accepted or dialed, and waits until
// what it started has ended.
func (p *Port) Close() error {
	p.mu.Lock()
	p.closed = true
	for raw := range p.open {
		raw.Close()
		if raw.end != nil {
			raw.end.Stop()
		}
	}
	for _, s := range p.services {
		s.shut()
	}
	p.mu.Unlock()
	p.cancel()
	err := p.cfg.Listener.Close()
	p.work.Wait()
	return err
}

// Check cuts every connection, accepted or dialed, whose peer the guard refuses now. It is to be called when the guard's trust
// has changed.
func (p *Port) Check() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for raw, conn := range p.open {
		if conn != nil {
			p.judge(raw, conn)
		}
	}
}

// judge cuts a connection if the guard refuses its peer. It cuts below TLS: a goodbye would wait for the peer. A flow whose authority
// was retired has time to end. p.mu is held.
func (p *Port) judge(raw *below, conn *tls.Conn) error {
	state := conn.ConnectionState()
	err := p.cfg.Guard.Refused(state)
	if err == nil {
		return nil
	}
	if errors.Is(err, identity.ErrRetired) && state.NegotiatedProtocol == Flow {
		if raw.end == nil {
			raw.end = time.AfterFunc(drainTime, func() {
				p.refused.Add(1)
				p.drop(raw)
			})
		}
		return nil
	}
	p.refused.Add(1)
	raw.Close()
	p.remove(raw)
	return err
}

// remove forgets a connection. p.mu is held.
func (p *Port) remove(raw *below) {
	if raw.end != nil {
		raw.end.Stop()
	}
	delete(p.open, raw)
}

// Counters counts what happened at the port.
func (p *Port) Counters() map[string]uint64 {
	p.mu.Lock()
	open := len(p.open)
	p.mu.Unlock()
	return map[string]uint64{
		"control_connections":               uint64(open),
		"control_accepted_total":            p.accepted.Load(),
		"control_dialed_total":              p.dialed.Load(),
		"control_handshake_failed_total":    p.failed.Load(),
		"control_unknown_service_total":     p.unknown.Load(),
		"control_handshake_overflow_total":  p.overflowed.Load(),
		"control_connections_dropped_total": p.dropped.Load(),
		"control_connections_refused_total": p.refused.Load(),
		"control_role_refused_total":        p.unfit.Load(),
	}
}

// Service opens a service: connections of peers that name it come out of the listener, as *Conn, until that is closed.
// Its Close leaves the connections alone that it gave out. To open a service that is open is a mistake, and panics.
func (p *Port) Service(alpn string) net.Listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.services[alpn] != nil {
		panic("control: service " + alpn + " is open already")
	}
	s := &service{port: p, alpn: alpn, queue: make(chan *Conn, queueLength), done: make(chan struct{})}
	if p.closed {
		s.shut()
	} else {
		p.services[alpn] = s
	}
	return s
}

// Dial connects to a service of the node called name at address, or of whatever node of the cluster is there if name is
// empty. That the far end refuses this node's certificate, or is too busy, shows only at the first read.
func (p *Port) Dial(ctx context.Context, address, name, alpn string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if !p.mayServe(alpn) {
		return nil, fmt.Errorf("dial %s at %s: this node: %w", alpn, address, errNotVoter)
	}
	tcp, err := p.cfg.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", alpn, err)
	}
	raw := &below{Conn: tcp}
	if !p.track(raw) {
		raw.Close()
		return nil, fmt.Errorf("dial %s at %s: %w", alpn, address, net.ErrClosed)
	}
	conn := tls.Client(raw, p.cfg.Guard.ClientTLS(name, alpn))
	if err := conn.HandshakeContext(ctx); err != nil {
		p.drop(raw)
		return nil, fmt.Errorf("dial %s at %s: %w", alpn, address, err)
	}
	state := conn.ConnectionState()
	peer, err := identity.PeerName(state)
	if err == nil && state.NegotiatedProtocol != alpn {
		err = errors.New("peer does not know the service")
	}
	if err == nil {
		err = p.fit(state)
	}
	if err == nil {
		err = p.opened(raw, conn)
	}
	if err != nil {
		p.drop(raw)
		return nil, fmt.Errorf("dial %s at %s: %w", alpn, address, err)
	}
	p.dialed.Add(1)
	return &Conn{Conn: conn, port: p, peer: peer}, nil
}

func (p *Port) accept() {
	for {
		tcp, err := p.cfg.Listener.Accept()
		if err != nil {
			if p.ctx.Err() != nil {
				return
			}
			p.cfg.Log.Error("accept at the control port", "error", err)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select {
			case <-time.After(acceptPause):
			case <-p.ctx.Done():
			}
			continue
		}
		select {
		case p.handshakes <- struct{}{}:
		default:
			p.overflowed.Add(1)
			tcp.Close()
			continue
		}
		raw := &below{Conn: tcp}
		if !p.track(raw) {
			raw.Close()
			return
		}
		p.work.Go(func() {
			conn := p.shake(raw)
			<-p.handshakes
			if conn != nil {
				p.deliver(conn)
			}
		})
	}
}

// shake does the handshake with a peer that dialed; nil means it failed and the connection is closed.
func (p *Port) shake(raw *below) *Conn {
	raw.SetDeadline(time.Now().Add(handshakeTimeout))
	conn := tls.Server(raw, &tls.Config{GetConfigForClient: p.configFor})
	if err := conn.HandshakeContext(p.ctx); err != nil {
		p.failed.Add(1)
		p.drop(raw)
		return nil
	}
	raw.SetDeadline(time.Time{})
	c := &Conn{Conn: conn, port: p, stranger: conn.ConnectionState().NegotiatedProtocol == Join}
	if !c.stranger {
		// The handshake has verified the peer, so it has a name.
		c.peer, _ = identity.PeerName(conn.ConnectionState())
	}
	if p.fit(conn.ConnectionState()) != nil || p.opened(raw, conn) != nil {
		p.drop(raw)
		return nil
	}
	return c
}

var errNotVoter = errors.New("has not the role voter")

// mayServe says whether this node takes part in a service, by the roles in its own certificate.
func (p *Port) mayServe(alpn string) bool { return alpn != Raft || p.cfg.Guard.Node().Claim().Votes() }

// fit says what the roles in a peer's certificate have against the service that was agreed on, and counts it.
func (p *Port) fit(state tls.ConnectionState) error {
	if state.NegotiatedProtocol != Raft {
		return nil
	}
	claim, err := identity.PeerClaim(state)
	if err == nil && !claim.Votes() {
		err = fmt.Errorf("peer %s: %w", claim.Name, errNotVoter)
	}
	if err != nil {
		p.unfit.Add(1)
	}
	return err
}

// configFor answers a peer by the first service it names that is open. One that names none learns nothing.
func (p *Port) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	p.mu.Lock()
	i := slices.IndexFunc(hello.SupportedProtos, func(alpn string) bool { return p.services[alpn] != nil && p.mayServe(alpn) })
	p.mu.Unlock()
	switch {
	case i < 0:
		p.unknown.Add(1)
		return nil, errors.New("no such service")
	case hello.SupportedProtos[i] == Join:
		return p.cfg.Guard.JoinTLS(), nil
	default:
		return p.cfg.Guard.ServerTLS(hello.SupportedProtos[i]), nil
	}
}

// deliver hands a connection to its service, or closes it where there is no room.
func (p *Port) deliver(c *Conn) {
	p.mu.Lock()
	s := p.services[c.ConnectionState().NegotiatedProtocol]
	room := s != nil && (!c.stranger || p.joining < maxJoining)
	if c.stranger && room {
		p.joining++
		c.counted = true
	}
	if room {
		select {
		case s.queue <- c:
			p.mu.Unlock()
			p.accepted.Add(1)
			return
		default:
		}
	}
	p.mu.Unlock()
	p.dropped.Add(1)
	c.Close()
}

// track remembers a connection until it is closed; not ok if the port is closed.
func (p *Port) track(raw *below) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.open[raw] = nil
	}
	return !p.closed
}

// opened has Check look at a connection from now on, and looks at it itself: the peer may have been refused since the handshake
// judged it.
func (p *Port) opened(raw *below, conn *tls.Conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	p.open[raw] = conn
	return p.judge(raw, conn)
}

func (p *Port) forget(raw *below) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(raw)
}

func (p *Port) drop(raw *below) {
	raw.Close()
	p.forget(raw)
}

// Conn is a connection to or from another node.
type Conn struct {
	*tls.Conn
	port     *Port
	peer     string
	stranger bool // past the handshake without a certificate, to join
	counted  bool // among those who are joining
	once     sync.Once
}

// below is a connection below TLS.
type below struct {
	net.Conn
	cut     atomic.Bool // its end was read, without a goodbye under TLS
	patient atomic.Bool // writes wait for as long as it takes
	end     *time.Timer // when its time is over; by the port's mu
}

// Read takes note of the end: TLS reads no further than the goodbye, so who comes to the end has heard none.
func (b *below) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if err == io.EOF {
		b.cut.Store(true)
	}
	return n, err
}

// SetWriteDeadline implements net.Conn.
func (b *below) SetWriteDeadline(t time.Time) error {
	if b.patient.Load() {
		return nil
	}
	return b.Conn.SetWriteDeadline(t)
}

// NetConn is what the system knows.
func (b *below) NetConn() net.Conn { return b.Conn }

// Peer is the name of the node at the far end; empty for one that asks to join.
func (c *Conn) Peer() string { return c.peer }

// WasCut says of a connection that Read has found at its end, with io.EOF, that the far end was lost and did not end it.
func (c *Conn) WasCut() bool { return c.NetConn().(*below).cut.Load() }

// CloseWrite ends this direction: the far end reads what was written, then io.EOF. It waits for as long as the far end has no room for
// what was written, where crypto/tls would give up after 5 s and have the end look like a loss.
func (c *Conn) CloseWrite() error {
	b := c.NetConn().(*below)
	b.patient.Store(true)
	b.Conn.SetWriteDeadline(time.Time{})
	return c.Conn.CloseWrite()
}

// Close closes the connection.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.port.mu.Lock()
		defer c.port.mu.Unlock()
		c.port.remove(c.NetConn().(*below))
		if c.counted {
			c.port.joining--
		}
	})
	return err
}

// service is the listener of one service.
type service struct {
	port  *Port
	alpn  string
	queue chan *Conn
	done  chan struct{}
	once  sync.Once
}

// Accept implements net.Listener.
func (s *service) Accept() (net.Conn, error) {
	select {
	case <-s.done: // before what waits in the queue: Close is about to close that
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-s.queue:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (s *service) Close() error {
	s.port.mu.Lock()
	s.shut()
	if s.port.services[s.alpn] == s {
		delete(s.port.services, s.alpn)
	}
	s.port.mu.Unlock()
	for { // nothing is added any more
		select {
		case c := <-s.queue:
			c.Close()
		default:
			return nil
		}
	}
}

func (s *service) shut() { s.once.Do(func() { close(s.done) }) }

// Addr implements net.Listener.
func (s *service) Addr() net.Addr { return s.port.cfg.Listener.Addr() }
