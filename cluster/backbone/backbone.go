// Package backbone carries streams between nodes, over QUIC with mutual TLS. It keeps a warm link to each peer,
// measures it, and notices within about two seconds that it is dead. It is the only importer of quic-go.
//
// Beside the link, flows that are expected to be of many bytes have a TCP connection each where that is faster (bulk.go, choice.go). It is dialled
// ahead; where there is none, or the peer does not hear of the flow by it, a stream carries it.
//
// It is not a router: it goes to the node it is told, directly, and says at once when it cannot, so that whoever
// dials tries the next. It carries no control traffic (Raft, joins): a broken backbone must not take away the
// means of repairing it.
//
// Whom it may speak to is asked at each handshake, and Check ends at once what is open to those refused since. When the
// identity of either end is renewed, its connections are replaced by new ones while the streams on the old ones go on,
// for an hour at most: what is dialled meanwhile finds a way, and none of it shows in Links.
//
// When things break: a stream whose link or far end is lost reads an error, never io.EOF, so what is cut short
// does not look complete. A flow that was dialled by DialLasting goes on over another stream, for as long as both its ends live, as if nothing
// had been: see lasting.go. A dial to a peer whose link is down fails without waiting.
// Links are redialled for as long as they are kept. What strangers send costs a bounded amount and is counted.
package backbone

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/perigee-net/perigee/cluster/fec"
	"github.com/perigee-net/perigee/cluster/latest"
)

// ALPN names the protocol in the TLS handshake.
const ALPN = "perigee-backbone/1"

// dialTimeout bounds the wait for the far handler's answer where the context has no nearer end.
const dialTimeout = 10 * time.Second

// measureInterval is how often the round trips are published.
const measureInterval = time.Second

var (
	// ErrDown says that there is no link to the node, or that it was lost.
	ErrDown = errors.New("link is down")
	// ErrReset says that the far end broke the stream off.
	ErrReset = errors.New("reset by the far end")
	// ErrOutdated is for Config.Refused, to say of an open connection that it is to be replaced: the peer is let in by a
	// handshake of now, but not by the one that was.
	ErrOutdated = errors.New("connection is outdated")
)

// RefusedError is the far handler's no.
type RefusedError struct {
	Reason string
	// Over says that the flow for which another stream was asked is over.
	Over bool
}

func (e *RefusedError) Error() string { return "refused: " + e.Reason }

// NoService says whether the node has no handler of the service: it is of another release, or goes without it, or has only begun.
func (e *RefusedError) NoService() bool { return strings.HasPrefix(e.Reason, "no service ") }

// Config is what a Backbone is made of.
type Config struct {
	// Self is this node's name.
	Self string
	// PacketConn is where it listens and dials from. The Backbone takes it over and closes it. A *net.UDPConn
	// is used best unwrapped: with segmentation offload, ECN and path MTU discovery.
	PacketConn net.PacketConn
	// ServerTLS is for a peer who dials, asked for at each handshake; it should ask for the peer's certificate. The ALPN
	// is set here.
	ServerTLS func() *tls.Config
	// ClientTLS is for dialling the node, asked for at each dial. The ALPN is set here.
	ClientTLS func(node string) *tls.Config
	// PeerName is the name of the node at the other end of a handshake, or an error if it is not to be spoken to.
	PeerName func(tls.ConnectionState) (string, error)
	// Refused says what there is against the peer of a connection that is open, if anything; nil: never anything. The streams
	// are cut, but where it is ErrOutdated they go on and no new ones are opened. It is asked when a connection has come up,
	// and by Check, with locks held: it must be quick.
	Refused func(tls.ConnectionState) error
	// Carriers is how many QUIC connections a link stripes its streams over, at least 1 (the default). Each has
	// its own congestion window, so more carry more where packets are lost, and cost about 80 KiB each.
	Carriers int
	// Bulk is how flows of many bytes get TCP connections of their own.
	Bulk Bulk
	// NoParity has no parity sent, whatever is lost. What peers send is used.
	NoParity bool
	// NoWarming has this node ask no peer to widen the windows of their link before they are used: it takes 800 KB of each. Where a peer asks, it does its part.
	NoWarming bool
	// Log says when links come and go; nil discards.
	Log *slog.Logger

	windows windows // those of the package, unless a test has others
}

// Link is the state of the link to one peer.
type Link struct {
	// Up is whether the peer has let us in and still answers.
	Up bool `json:"up"`
	// RTT is the smoothed round trip of the best carrier; 0 while the link is down.
	RTT time.Duration `json:"rtt"`
	// Since is when Up last turned; zero until the outcome of the first attempt, before which nothing is known.
	Since time.Time `json:"since"`
	// Reason is why the link is down, for people.
	Reason string `json:"reason,omitempty"`
	// Loss is the share of the packets sent to the peer that the path has lost of late, those made good included.
	Loss float64 `json:"loss,omitempty"`
	// Parity is whether what is sent has parity, so that losses are made good on arrival.
	Parity bool `json:"parity,omitempty"`
	// TCP is what flows of many bytes can have beside QUIC, a connection of their own: WithBBR, WithoutBBR, or "", where none was dialled yet
	// or the peer has none.
	TCP string `json:"tcp,omitempty"`
	// Sent and Received are bits a second with the peer, headers of QUIC included, over the last second.
	Sent     float64 `json:"sent,omitempty"`
	Received float64 `json:"received,omitempty"`
	// Carried is the most that arrived at the peer in a second of the last ten minutes, by QUIC, and CarriedTCP by TCP, bits a second; 0: nothing that is known.
	Carried    float64 `json:"carried,omitempty"`
	CarriedTCP float64 `json:"carriedTCP,omitempty"`
}

// What Link.TCP says.
const (
	WithBBR    = "BBR"
	WithoutBBR = "without BBR" // at one end at least
)

// Backbone is one node's end of all links.
type Backbone struct {
	config    Config
	self      net.Addr // this node
	log       *slog.Logger
	transport *quic.Transport
	listener  *quic.Listener
	parity    *fec.Conn
	count     counters
	datagrams datagrams
	bulk      bulk

	lasting registry

	handlers atomic.Pointer[map[string]handler]
	links    atomic.Pointer[map[string]*link]
	states   latest.Value[map[string]Link]

	ctx    context.Context
	cancel context.CancelFunc
	mu     sync.Mutex // orders Handle, Keep and publishing; held while a link's locks are taken, so never the other way round

	starting sync.Mutex // guards closed, and that nothing more is waited for then; nothing is locked while it is held
	closed   bool
	wg       sync.WaitGroup

	generation atomic.Uint64 // of this node's identity
	changes    atomic.Uint64 // of what handshakes go by
	replacing  chan struct{} // one token for each carrier that is
	warming    chan struct{} // one token for each carrier that this node warms

	visiting sync.Mutex // guards visitors, and shares
	visitors map[*visit]bool
	shares   map[string]*share // of each peer that has a connection here

	pathing sync.Mutex // guards paths
	paths   map[netip.AddrPort]*path

	holes holes
}

// Open listens for peers on the packet connection. It fails only if the configuration is unusable.
func Open(c Config) (*Backbone, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Carriers = max(c.Carriers, 1)
	if c.windows == (windows{}) {
		c.windows = defaultWindows
	}
	b := &Backbone{config: c, self: Addr(c.Self), log: c.Log, visitors: map[*visit]bool{}, shares: map[string]*share{}, paths: map[netip.AddrPort]*path{}, replacing: make(chan struct{}, maxReplacing), warming: make(chan struct{}, warmAtOnce)}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.handlers.Store(&map[string]handler{datagramService: {serve: b.serveLarge}})
	b.datagrams.init()
	b.bulk.init()
	b.links.Store(&map[string]*link{})
	parity, packets := fec.New(c.PacketConn)
	b.parity = parity
	b.transport = &quic.Transport{
		Conn:                packets,
		ConnContext:         b.visit,
		VerifySourceAddress: func(net.Addr) bool { return b.count.handshaking.Load() > freeHandshakes },
		Tracer:              garbage{&b.count.packetsDropped},
	}
	b.holes.at = map[netip.AddrPort]hole{}
	config := c.windows.quicConfig()
	config.MaxIdleTimeout = servedTimeout
	config.MaxIncomingStreams = cmp.Or(c.windows.streams, maxStreams)
	config.GetConfigForClient = func(from *quic.ClientInfo) (*quic.Config, error) {
		fitting := config.Clone()
		b.holes.fit(fitting, addrPort(from.RemoteAddr))
		return fitting, nil
	}
	tlsConfig := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return withALPN(c.ServerTLS()), nil },
	}
	listener, err := b.transport.Listen(withALPN(tlsConfig), config)
	if err != nil {
		b.cancel()
		b.transport.Close()
		c.PacketConn.Close()
		return nil, fmt.Errorf("listen for peers: %w", err)
	}
	b.listener = listener
	b.wg.Go(b.acceptLinks)
	if c.Bulk.Listener != nil {
		b.wg.Go(b.acceptBulk)
	}
	b.wg.Go(b.countGarbage)
	b.wg.Go(b.measure)
	return b, nil
}

func withALPN(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.NextProtos = []string{ALPN}
	return c
}

// Dial opens a stream to a node and returns it once the far handler has accepted; *RefusedError is its no, and
// ErrDown says that the node cannot be reached, without waiting for it. The stream has CloseWrite() error and
// Abort() as well. To dial oneself is a connection within the process, to the same handlers.
func (b *Backbone) Dial(ctx context.Context, node string, h Header) (net.Conn, error) {
	return b.counted(node, func() (net.Conn, error) { return b.dial(ctx, node, &h, nil, false) })
}

// DialEarly is Dial that waits for nobody: what is written is on its way at once, and the first Read awaits the far
// handler's answer, of which a no is its *RefusedError. So a message is there after half a round trip, and whoever sends
// it must be ready to send it again. To dial oneself is Dial.
func (b *Backbone) DialEarly(ctx context.Context, node string, h Header) (net.Conn, error) {
	return b.counted(node, func() (net.Conn, error) { return b.dial(ctx, node, &h, nil, true) })
}

func (b *Backbone) counted(node string, dial func() (net.Conn, error)) (net.Conn, error) {
	b.count.dials.Add(1)
	c, err := dial()
	if err != nil {
		b.count.dialsFailed.Add(1)
		return nil, fmt.Errorf("dial %s over the backbone: %w", node, err)
	}
	return c, nil
}

// earlyConn is a stream whose answer has not come yet.
type earlyConn struct {
	duplexConn
	moved  func() // is called where the far end wants to be asked on another connection
	answer sync.Once
	err    error
}

// Read awaits the answer first.
func (c *earlyConn) Read(p []byte) (int, error) {
	c.answer.Do(func() {
		if c.err = readAnswer(c.duplexConn); errors.Is(c.err, errMoved) {
			c.moved()
		}
	})
	if c.err != nil {
		return 0, c.err
	}
	return c.duplexConn.Read(p)
}

// dial opens a stream. The first bytes travel with its header. A flow that outlives it may have got another name, which h has then.
func (b *Backbone) dial(ctx context.Context, node string, h *Header, first []byte, early bool) (net.Conn, error) {
	header, err := AppendHeader(make([]byte, 0, 64), *h)
	if err != nil {
		return nil, err
	}
	header = append(header, first...)
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if node == b.config.Self {
		h.Passage = Passage{} // nothing can happen on the way
		return b.dialSelf(ctx, *h)
	}
	l := (*b.links.Load())[node]
	if l == nil {
		return nil, fmt.Errorf("%w: not a peer", ErrDown)
	}
	many := !early && slices.Contains(b.config.Bulk.Services, h.Service)
	if many && h.Passage.Epoch == 0 {
		if c, err := l.byTCP(ctx, h); c != nil || err != nil {
			return c, err
		}
		if header, err = AppendHeader(header[:0], *h); err != nil {
			return nil, err
		}
	}
	for moves := 0; ; moves++ {
		stream, carrier, err := l.stream(ctx, !early)
		if err != nil {
			return nil, err
		}
		asked, err := b.send(stream, l, header, func() { l.release(carrier) })
		if err == nil {
			asked.lasts = h.Passage.lasts()
			carrier.unread.enter(asked, carrier.conn, b.config.windows)
			asked.turns = &carrier.turns
		}
		if err == nil && early {
			return &earlyConn{duplexConn: asked, moved: func() { l.moved(carrier) }}, nil
		}
		var c net.Conn
		if err == nil {
			giveUp := asked.Abort
			if h.Passage.Epoch > 0 { // it is well, and may be on that stream at its other end
				giveUp = asked.lose
			}
			sooner := earlyOf(ctx)
			sooner.take(asked, h.Passage, &b.lasting.held)
			c, err = awaits(ctx, asked, giveUp, sooner)
		}
		if many && err == nil && h.Passage.Epoch == 0 {
			l.sized(asked, *h) // what was refused, or goes on from another stream, says nothing of how many bytes flows are
		}
		if !errors.Is(err, errMoved) {
			return c, err
		}
		l.moved(carrier)
		if moves == maxMoves {
			return nil, fmt.Errorf("%w: %w", ErrDown, err)
		}
	}
}

// send sends the header on a new stream. left is called once the stream is closed at this end.
func (b *Backbone) send(stream *quic.Stream, node *link, header []byte, left func()) (*streamConn, error) {
	c := &streamConn{Stream: stream, peer: node.node, local: b.self, remote: node.at, left: left}
	if _, err := c.Write(header); err != nil {
		c.Abort()
		return nil, err
	}
	return c, nil
}

func (b *Backbone) dialSelf(ctx context.Context, h Header) (net.Conn, error) {
	near, far := newSelfConn(client(h, b.config.Self), b.self)
	if !b.start(func() { b.answer(far, nil, h, b.config.Self) }) {
		return nil, net.ErrClosed
	}
	stop := context.AfterFunc(b.ctx, func() {
		near.Abort()
		far.Abort()
	})
	context.AfterFunc(near.Gone(), func() { stop() })
	return await(ctx, near)
}

// await returns c once the far end has accepted it.
func await(ctx context.Context, c duplexConn) (net.Conn, error) { return awaits(ctx, c, c.Abort, nil) }

// awaits is await for who gives up in his own way, and may have something to say sooner.
func awaits(ctx context.Context, c duplexConn, giveUp func(), sooner *early) (net.Conn, error) {
	stop := context.AfterFunc(ctx, giveUp)
	sooner.open()
	err := readAnswer(c)
	if err != nil {
		giveUp() // also for who may be writing
	}
	sooner.close()
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		sooner.drop()
		return nil, err
	}
	return c, nil
}

// Handle sets who answers a service. The handler has a goroutine of its own, and must return soon after the
// stream it was given is broken or has ended, for Close waits for it; the stream may outlive it (Outlast). A stream that is
// neither accepted nor refused when it returns is refused.
func (b *Backbone) Handle(service string, h func(*Incoming)) { b.handle(service, handler{serve: h}) }

// HandleThrough is Handle for a service that carries flows on to other nodes: of those that outlive their streams it accepts each stream as it is,
// opens another to where it goes with the Passage that it was given, and carries bytes between what Join makes of both.
func (b *Backbone) HandleThrough(service string, h func(*Incoming)) {
	b.handle(service, handler{serve: h, through: true})
}

// handler answers a service.
type handler struct {
	serve   func(*Incoming)
	through bool // it carries flows on
}

func (b *Backbone) handle(service string, h handler) {
	b.mu.Lock()
	defer b.mu.Unlock()
	handlers := maps.Clone(*b.handlers.Load())
	handlers[service] = h
	b.handlers.Store(&handlers)
}

// Keep says to which peers, at which addresses, a warm link is held from now on. The links to others, and to
// peers that have moved, are closed, with the streams on them. Flows whose other end is at a peer that is kept no longer, and which have no stream now, are
// over, if another peer is reached: it is not this node that is cut off.
func (b *Backbone) Keep(peers map[string]netip.AddrPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	links := maps.Clone(*b.links.Load())
	var gone []string
	for node, l := range links {
		if peers[node] != l.addr {
			l.cancel()
			delete(links, node)
			if _, moved := peers[node]; !moved {
				gone = append(gone, node)
			}
		}
	}
	if len(gone) > 0 && slices.ContainsFunc(slices.Collect(maps.Values(links)), func(l *link) bool { return l.upFor() > 0 }) {
		b.start(func() {
			for _, node := range gone {
				b.lasting.peerEnded(node)
			}
		})
	}
	for node, addr := range peers {
		if node != b.config.Self && links[node] == nil {
			l := newLink(b, node, addr)
			for range b.config.Carriers {
				if !b.start(l.carry) {
					return
				}
			}
			links[node] = l
		}
	}
	b.links.Store(&links)
	b.publish()
}

// Check looks at every connection, of either end's dialling. Those whose peer is refused now are closed, with the streams on
// them. Those that are outdated take and open no new streams and are replaced. It is to be called when what Config.Refused
// goes by has changed.
func (b *Backbone) Check() {
	b.changes.Add(1)
	for _, l := range *b.links.Load() {
		l.check()
	}
	b.visiting.Lock()
	defer b.visiting.Unlock()
	for v := range b.visitors {
		if !b.outdated(v.conn) {
			b.screen(v.conn)
		} else if v.outdate() {
			b.count.outdated.Add(1)
		}
	}
}

// Renew replaces every connection, of either end's dialling, by one that shows the identity of now. It is to be called when
// what Config.ServerTLS and Config.ClientTLS give out has changed. It does not wait.
func (b *Backbone) Renew() {
	b.changes.Add(1)
	b.generation.Add(1) // first: what is dialled from here on knows by it
	for _, l := range *b.links.Load() {
		l.renew()
		l.pool.drop()
	}
	b.visiting.Lock()
	defer b.visiting.Unlock()
	for v := range b.visitors {
		v.askAnew()
	}
}

// screen closes a connection if its peer is refused.
func (b *Backbone) screen(conn *quic.Conn) error {
	err := b.refuses(conn)
	if err != nil && conn.Context().Err() == nil {
		b.count.peersRefused.Add(1)
		conn.CloseWithError(codeStranger, "refused")
	}
	return err
}

func (b *Backbone) outdated(conn *quic.Conn) bool { return errors.Is(b.refuses(conn), ErrOutdated) }

func (b *Backbone) refuses(conn *quic.Conn) error {
	if b.config.Refused == nil {
		return nil
	}
	return b.config.Refused(conn.ConnectionState().TLS)
}

// Links is the state of each link that is kept, by node: published on change, and the round trips about once a second.
func (b *Backbone) Links() *latest.Value[map[string]Link] { return &b.states }

// measure takes and publishes the round trips.
func (b *Backbone) measure() {
	ticker := time.NewTicker(measureInterval)
	defer ticker.Stop()
	for last := time.Now(); ; {
		select {
		case <-ticker.C:
			b.rateTCP(time.Since(last))
			last = time.Now()
			b.measurePaths()
			for _, l := range *b.links.Load() {
				l.measure()
				l.leaveSlow()
			}
			b.leaveSlowVisits()
			visits := b.visitsOf()
			b.bulk.cutTaken(visits, time.Now())
			b.bulk.cutBroken()
			b.cutSilent(visits)
			b.changed()
		case <-b.parity.Due():
			b.measurePaths()
		case <-b.ctx.Done():
			return
		}
	}
}

// cutSilent breaks off the TCP connections by which nothing comes any more. visits are the peers that visit.
func (b *Backbone) cutSilent(visits map[string]bool) {
	links := *b.links.Load()
	up := func(of bulkEnd) bool {
		if of.taken {
			return visits[of.peer]
		}
		l := links[of.peer]
		return l != nil && l.upFor() > 0
	}
	b.bulk.cutSilent(up, func(peer string) {
		if l := links[peer]; l != nil {
			l.pool.vain()
		}
	})
}

func (b *Backbone) changed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.publish()
}

// publish is called with mu held, so that an older state never follows a newer one.
func (b *Backbone) publish() {
	states := map[string]Link{}
	for node, l := range *b.links.Load() {
		states[node] = l.state()
	}
	if !maps.Equal(states, b.states.Get()) {
		b.states.Set(states)
	}
}

// start runs f in a goroutine that Close waits for, unless it is too late. It may be called with any lock held.
func (b *Backbone) start(f func()) bool {
	b.starting.Lock()
	defer b.starting.Unlock()
	if b.closed {
		return false
	}
	b.wg.Go(f)
	return true
}

// Close tells the peers goodbye, breaks all streams, and waits for the handlers.
func (b *Backbone) Close() error {
	b.starting.Lock()
	if b.closed {
		b.starting.Unlock()
		return nil
	}
	b.closed = true
	b.starting.Unlock()

	b.lasting.wait()
	b.cancel()
	b.lasting.end()
	b.listener.Close()
	if b.config.Bulk.Listener != nil {
		b.config.Bulk.Listener.Close()
	}
	b.bulk.abort()
	b.wg.Wait()
	b.transport.Close()
	return b.config.PacketConn.Close()
}
