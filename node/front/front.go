// Package front is the front door: the sockets that the world connects to, and the limits that strangers meet. It
// accepts, ends TLS, reads HTTP/1.1 and HTTP/2, believes PROXY headers of those it was told to believe, and gives each
// request or connection to whoever serves the door.
//
// It knows no spec, no route and no cache: what is behind a door is a function.
//
// When things break: a door that cannot be opened is reported and the others serve; a handler that panics costs its own
// request; a client that is slow, silent or too many is cut off at a named bound and counted. Doors outlive configuration:
// connections go on while doors are changed around them.
package front

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/edge/http1"
)

// Config is what a Front is made of.
type Config struct {
	// Listen opens a socket, ListenAnycast one whose address several processes of a machine share; nil: the
	// functions of this package.
	Listen        func(network, address string) (net.Listener, error)
	ListenAnycast func(network, address string) (net.Listener, error)
	// ListenPacket opens the socket of HTTP/3, ListenPacketAnycast one whose address several processes share; nil: as above.
	ListenPacket        func(network, address string) (net.PacketConn, error)
	ListenPacketAnycast func(network, address string) (net.PacketConn, error)
	// Certificate is shown on TLS doors that bring no TLSConfig; nil: none such opens.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Policy names the security policy (PolicyOf) of a host, on TLS doors that bring no TLSConfig; nil, or a name that is none:
	// DefaultPolicy. Hosts are as clients send them, or empty.
	Policy func(host string) string
	// TokenKey is QUIC's, and all nodes should share it: by it one knows that another has seen a client at its address, and asks for no
	// second proof. ResetKey is this node's alone and should outlive it: by it the node that starts again ends at once what
	// clients believe to be open (to share it would let those who see a connection have another node end it: RFC 9000,
	// 21.11). Zero: made at each start.
	TokenKey, ResetKey [32]byte
	// ProxyHeadersFrom are the load balancers in front of this node. What they connect must begin with a PROXY
	// header, version 1 or 2, and comes from whom the header says. From all others it is no header but a bad request.
	ProxyHeadersFrom []netip.Prefix
	// Blocked says whether nobody from an address is served; nil: everybody is. It is asked as each connection comes, so it
	// must be cheap. A connection that carries a PROXY header is judged by whom that names.
	Blocked func(netip.Addr) bool
	// Loop holds connections of doors that take them so (Door.Soon); nil: none does.
	Loop Loop
	// Seen is told how far a client is, by the least round trip that the system saw of a connection, as that ends: not of all of them
	// where there are many, and not of those that come with a PROXY header. Nil: nobody is. It must not block.
	Seen func(from netip.Addr, rtt time.Duration)
	// RoundTrip is the least round trip of an open connection; nil: what the kernel says of a TCP socket.
	RoundTrip func(net.Conn) (rtt time.Duration, ok bool)
	// Connections is how many one door holds at once; more are closed as they come. 0: 16,384.
	Connections int
	// ConnectionsPerClient is how many of these may be of one client: one IPv4 address, or one /64 of IPv6. More are closed as
	// they come. This machine itself is no client: what is before this node here stands for many. 0: a quarter of Connections, and
	// at least 256.
	ConnectionsPerClient int
	// HeaderBytes is how much is held of heads of requests that are unfinished and longer than 4 KiB, together, and an eighth of it, but at
	// least 64 KiB, of those of one client: a request of HTTP/1 that goes beyond is answered 503, a connection of HTTP/2 ends. 0: 64 MiB.
	HeaderBytes int64
	// Desync is for the doors that do not say it; Unset: Defensive.
	Desync http1.Mitigation
	// FinishPackets has what came by doors for datagrams finish before Close closes those, until the context ends at the latest; nil: it ends with them.
	FinishPackets func(context.Context)
	// Panics are counted as the front's too, for who serves its guests on other goroutines; nil: there are no others.
	Panics *Panics
	Log    *slog.Logger
}

// DefaultConnections is the usual Config.Connections.
const DefaultConnections = 16384

const (
	minPerClient       = 256
	defaultHeaderBytes = 64 << 20
)

// Door is one listening socket and who serves it: exactly one of Handler, Conn, Flow and Packets.
type Door struct {
	Network string // "tcp", or "udp" for Packets
	// Address is where it listens; without an IP address on all of them.
	Address netip.AddrPort
	// Anycast doors may share their address with those of other processes, and may open before the machine has it.
	Anycast bool
	TLS     bool // with Handler only
	// Anyone may come by this door, blocked or not: who blocks himself by mistake must be able to undo it.
	Anyone bool
	// Allowed says who else may not come, as connections come; nil: nobody. What is open stays open when it changes. Connections that
	// carry a PROXY header are judged by whom that names.
	Allowed func(netip.Addr) bool
	// HTTP3 has a TLS door served by HTTP/3 too, on UDP at the same address, and HTTP/1 and 2 tell clients so (RFC 7838).
	HTTP3 bool
	// TLSConfig is used instead of Config.Certificate, from the next handshake on; its ALPN is set here. Its
	// GetConfigForClient, if any, is asked at each handshake.
	TLSConfig *tls.Config
	Handler   http.Handler
	// Quick is asked first for requests of the plain form, of HTTP/1 and 2, besides Handler; nil: nobody is.
	Quick http1.Quick
	// Relay is asked next for those of HTTP/1; nil: nobody is.
	Relay http1.Relay
	// Desync says what becomes of HTTP/1 requests that two readers may take for different ones; Unset: as Config says.
	Desync http1.Mitigation
	// Conn serves one connection, on a goroutine of its own, and returns when it has ended.
	Conn func(net.Conn)
	// Flow begins to serve one connection, and calls ended once it is closed: before it returns or long after. The goroutine is not the connection's own,
	// and takes the next that comes.
	Flow func(c net.Conn, ended func())
	// Soon is asked before Flow for what a Loop has accepted, on its goroutine, so it must not wait. It calls ended as Flow does, once, or back, on that goroutine too: then
	// the connection is for Flow, or has ended, and back says why: it was closed meanwhile (net.ErrClosed), or could not be taken from the Loop, and was reset. Nil: no Loop accepts here.
	Soon func(c Held, ended func(), back func() error)
	// TurnedAway is told from where a connection came that Flow was not asked for, as there are as many as Config allows, of the door or of its client. It was reset. Nil: nobody is told.
	TurnedAway func(from netip.AddrPort)
	// Packets serves the socket, on a goroutine of its own, until it is closed. Who may come is its to judge: there is no connection that the front
	// could refuse, or wait for.
	Packets func(net.PacketConn) error
}

// doorKey tells doors apart: what differs in it is closed and opened anew.
type doorKey struct {
	network            string
	address            netip.AddrPort
	anycast, tls, http bool
}

func (d *Door) key() doorKey {
	return doorKey{network: d.Network, address: d.Address, anycast: d.Anycast, tls: d.TLS, http: d.Handler != nil}
}

// at is the address in the form that Listen takes.
func (k doorKey) at() string {
	if !k.address.Addr().IsValid() {
		return ":" + strconv.Itoa(int(k.address.Port()))
	}
	return k.address.String()
}

func (k doorKey) String() string { return k.network + " " + k.at() }

// Front is a set of doors. All its methods may be called at once.
type Front struct {
	config   Config
	counters counters
	speech   atomic.Pointer[speech]
	leads    atomic.Bool     // clients are led to HTTP/3, and kept there: it is not retired
	ctx      context.Context // ends when connections are no longer waited for
	cancel   context.CancelFunc
	wg       sync.WaitGroup // all goroutines and connections
	heads    heads
	looks    looks
	desks    desks
	sheets   sheets
	headers  headers
	pools2   pools2
	starters starters

	mu      sync.Mutex
	doors   map[doorKey]*door
	packets map[doorKey]*packetDoor
	quic    map[doorKey]*quicDoor
	quics   map[*quicDoor]struct{} // those too that are closed and not at their end
	retired bool
	closed  bool

	retiring sync.Mutex // orders Retire and Resume; taken before mu

	guests sync.Mutex // held for a moment only, so that connections come and go while doors are opened; taken after mu
	conns  map[net.Conn]*guest
}

// guest is a connection as the front keeps track of it.
type guest struct {
	anyone  bool                       // whoever it is may be here
	allowed func(netip.Addr) bool      // its door's as it came; nil: everybody
	key     netip.Addr                 // under which it is counted; not valid: it is not
	from    atomic.Pointer[netip.Addr] // nil as long as nobody knows: the PROXY header is still to come
}

type counters struct {
	connections, refused, requests, badRequests          atomic.Uint64
	handshakeErrors, serverErrors, proxyErrors, unaccept atomic.Uint64
	blocked, notAllowed, crowded, quick, relayed         atomic.Uint64
	desyncRefused, badChunks                             atomic.Uint64
	silent, slowRequests, slowReaders, headsRefused      atomic.Uint64
	unpaced                                              atomic.Uint64
	http2                                                http2Counters
	http3                                                http3Counters

	seen atomic.Uint64

	desync reasons
}

// New makes a Front without doors.
func New(c Config) *Front {
	if c.Listen == nil {
		c.Listen = Listen
	}
	if c.ListenAnycast == nil {
		c.ListenAnycast = ListenAnycast
	}
	if c.Connections == 0 {
		c.Connections = DefaultConnections
	}
	if c.ConnectionsPerClient == 0 {
		c.ConnectionsPerClient = max(c.Connections/4, minPerClient)
	}
	if c.HeaderBytes == 0 {
		c.HeaderBytes = defaultHeaderBytes
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Panics == nil {
		c.Panics = &Panics{}
	}
	if c.RoundTrip == nil {
		c.RoundTrip = roundTrip
	}
	if c.ListenPacket == nil {
		c.ListenPacket = ListenPacket
	}
	if c.ListenPacketAnycast == nil {
		c.ListenPacketAnycast = ListenPacketAnycast
	}
	f := &Front{config: c, heads: newHeads(c.HeaderBytes), doors: map[doorKey]*door{}, packets: map[doorKey]*packetDoor{}, quic: map[doorKey]*quicDoor{}, quics: map[*quicDoor]struct{}{}, conns: map[net.Conn]*guest{}}
	f.starters.next, f.starters.over = make(chan begun), make(chan struct{})
	f.SetTicketKeys(nil)
	f.leads.Store(true)
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// Fault is why a door does not stand.
type Fault struct {
	Network string
	Address netip.AddrPort
	Err     error
}

func (f *Fault) Error() string {
	return fmt.Sprintf("open door %s: %v", doorKey{network: f.Network, address: f.Address}, f.Err)
}

func (f *Fault) Unwrap() error { return f.Err }

// Set makes these the doors. Those that stand already stay open, with all their connections, and are served as these say
// from the next request or connection on. Others are closed: they accept nothing more, and what is in flight finishes.
// The error joins a Fault of each door that does not stand afterwards; the others do.
func (f *Front) Set(doors []Door) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fmt.Errorf("set doors: %w", net.ErrClosed)
	}

	var faults []error
	var wanted, packets []*Door
	keys := map[doorKey]bool{}
	places := map[doorKey]bool{} // without what is served there
	for _, d := range doors {
		place := doorKey{network: d.Network, address: d.Address}
		if err := f.check(&d); err != nil {
			faults = append(faults, &Fault{d.Network, d.Address, err})
		} else if places[place] {
			faults = append(faults, &Fault{d.Network, d.Address, errors.New("it is wanted twice")})
		} else if places[place] = true; d.Packets != nil {
			packets = append(packets, &d)
		} else {
			keys[d.key()] = true
			wanted = append(wanted, &d)
		}
	}
	for key, open := range f.doors {
		if !keys[key] { // before others open: they may want its address
			open.close()
			delete(f.doors, key)
		}
	}
	for _, d := range wanted {
		if open := f.doors[d.key()]; open != nil {
			open.behind.Store(d)
			open.serve()
			continue
		}
		open, err := f.open(d)
		if err != nil {
			faults = append(faults, &Fault{d.Network, d.Address, err})
			continue
		}
		open.retire(f.retired)
		f.doors[d.key()] = open
	}
	faults = append(faults, f.setHTTP3(wanted)...)
	return errors.Join(append(faults, f.setPackets(packets)...)...)
}

// IsOpen says whether a door is open at this address.
func (f *Front) IsOpen(network string, address netip.AddrPort) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for kind := range 8 { // there may be thousands of doors
		key := doorKey{network: network, address: address, anycast: kind&1 != 0, tls: kind&2 != 0, http: kind&4 != 0}
		if f.doors[key] != nil {
			return true
		}
		if open := f.packets[key]; open != nil {
			return !open.ended()
		}
	}
	return false
}

func (f *Front) check(d *Door) error {
	switch {
	case d.Packets != nil && (d.Network != "udp" || d.Handler != nil || d.Conn != nil || d.Flow != nil || d.TLS):
		return errors.New("it has Packets, which is for udp, and alone")
	case d.Packets != nil:
		return nil
	case d.Network != "tcp":
		return fmt.Errorf("network %q is not tcp", d.Network)
	case !exactlyOne(d.Handler != nil, d.Conn != nil, d.Flow != nil):
		return errors.New("it needs one of Handler, Conn and Flow")
	case d.Soon != nil && d.Flow == nil:
		return errors.New("it has Soon, and no Flow")
	case d.TLS && d.Handler == nil:
		return errors.New("TLS needs a Handler")
	case (d.Quick != nil || d.Relay != nil) && d.Handler == nil:
		return errors.New("it has Quick or Relay, and no Handler")
	case d.TLSConfig != nil && !d.TLS:
		return errors.New("it has a TLSConfig and no TLS")
	case d.HTTP3 && (!d.TLS || d.TLSConfig != nil):
		return errors.New("HTTP3 needs TLS, and no TLSConfig")
	case d.TLS && d.TLSConfig == nil && f.config.Certificate == nil:
		return errors.New("there is no certificate")
	}
	return nil
}

func exactlyOne(all ...bool) bool {
	n := 0
	for _, is := range all {
		if is {
			n++
		}
	}
	return n == 1
}

// Close accepts nothing more and waits for what is in flight: requests, and connections of Conn and Flow doors. What is left when
// ctx ends is cut off, and the error says so. It returns when nothing runs any more.
func (f *Front) Close(ctx context.Context) error {
	f.mu.Lock()
	if !f.closed {
		close(f.starters.over)
	}
	f.closed = true
	for _, d := range f.doors {
		d.close()
	}
	clear(f.doors)
	f.closeHTTP3()
	f.mu.Unlock()

	done := make(chan struct{})
	go func() {
		if f.config.FinishPackets != nil {
			f.config.FinishPackets(ctx)
		}
		f.closePackets()
		f.wg.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		if n := f.cut(); n > 0 {
			err = fmt.Errorf("close front: cut off %d connections: %w", n, ctx.Err())
		}
	}
	f.cancel()
	<-done
	return err
}

// Retire has every HTTP connection end after the answer that it waits for, so that clients look anew for where to go. The doors
// stay open for those who do not know better yet. What came by Conn and Flow doors goes on.
func (f *Front) Retire() { f.retire(true) }

// Resume undoes Retire: connections are kept open again. Those that were told to go stay told.
func (f *Front) Resume() { f.retire(false) }

func (f *Front) retire(now bool) {
	f.retiring.Lock()
	defer f.retiring.Unlock()
	f.mu.Lock()
	f.retired = now
	doors := slices.Collect(maps.Values(f.doors))
	f.mu.Unlock()
	f.retireHTTP3(now)
	for _, d := range doors { // without the lock: it closes connections, which then leave
		d.retire(now)
	}
}

// Recheck ends the connections of clients that are blocked now, at once: what they wait for is cut short. It is to be
// called when what Blocked says has changed.
func (f *Front) Recheck() {
	if f.config.Blocked == nil {
		return
	}
	f.guests.Lock()
	guests := maps.Clone(f.conns)
	f.guests.Unlock()
	for c, g := range guests { // without the lock: to accept must not wait for so many questions
		if f.blocks(g) {
			f.expel(c)
		}
	}
	f.recheckHTTP3()
}

// blocks says whether a guest is blocked; one of whom nobody knows yet is not: it is asked for when that is known.
func (f *Front) blocks(g *guest) bool {
	from := g.from.Load()
	return from != nil && !g.anyone && f.config.Blocked != nil && f.config.Blocked(*from)
}

// expel ends the connection of a blocked client. It is reset, so that nothing that waits to be sent goes out.
func (f *Front) expel(c net.Conn) {
	f.counters.blocked.Add(1)
	reset(c)
}

// cut closes all connections under whoever serves them.
func (f *Front) cut() int {
	n := int(f.counters.http3.open.Load()) // before they hear of it
	f.cancel()
	f.guests.Lock()
	defer f.guests.Unlock()
	for c := range f.conns {
		c.Close()
	}
	return n + len(f.conns)
}

// enter begins to keep track of a connection, leave ends it.
func (f *Front) enter(c net.Conn, behind *Door) *guest {
	g := &guest{anyone: behind.Anyone, allowed: behind.Allowed}
	switch known, is := c.(interface{ Remote() netip.AddrPort }); {
	case f.believes(c):
	case is: // a net.Addr is made anew each time
		from := known.Remote().Addr().WithZone("")
		g.from.Store(&from)
	default:
		g.isFrom(c.RemoteAddr())
	}
	f.counters.connections.Add(1)
	f.wg.Add(1) // by the goroutine that accepts, which is counted itself
	f.guests.Lock()
	f.conns[c] = g
	f.guests.Unlock()
	return g
}

// isFrom notes where a guest comes from. It comes before the guest is judged, so that either that judgement or a Recheck sees a
// block that is made meanwhile.
func (g *guest) isFrom(a net.Addr) {
	if tcp, ok := a.(*net.TCPAddr); ok {
		addr := tcp.AddrPort().Addr().Unmap().WithZone("")
		g.from.Store(&addr)
	}
}

func (f *Front) leave(c net.Conn) *guest {
	f.guests.Lock()
	defer f.guests.Unlock()
	g := f.conns[c]
	delete(f.conns, c)
	return g
}

// panicked counts a panic. It is logged when it is the first, second, fourth, eighth: a stranger who finds a way to
// cause one must not be able to fill the disk.
func (f *Front) panicked(value any) { f.config.Panics.Tell(f.config.Log, value) }

// Panics are those of what serves guests, on the front's goroutines and on others.
type Panics struct{ total atomic.Uint64 }

// Tell counts one, and logs it with the stack it is called on.
func (p *Panics) Tell(log *slog.Logger, value any) {
	if n := p.total.Add(1); n&(n-1) == 0 {
		log.Error("a handler panicked", "panic", value, "panics", n, "stack", string(debug.Stack()))
	}
}

// Counters are totals since New, and how many doors and connections are open.
func (f *Front) Counters() map[string]uint64 {
	f.mu.Lock()
	doors := len(f.doors)
	f.mu.Unlock()
	f.guests.Lock()
	conns := len(f.conns)
	f.guests.Unlock()
	c := &f.counters
	totals := c.http3.counters(map[string]uint64{
		"front_doors":                      uint64(doors),
		"front_connections":                uint64(conns),
		"front_connections_total":          c.connections.Load(),
		"front_connections_refused_total":  c.refused.Load(),
		"front_accept_errors_total":        c.unaccept.Load(),
		"front_requests_total":             c.requests.Load(),
		"front_bad_requests_total":         c.badRequests.Load(),
		"front_panics_total":               f.config.Panics.total.Load(),
		"front_tls_handshake_errors_total": c.handshakeErrors.Load(),
		"front_server_errors_total":        c.serverErrors.Load(),
		"front_proxy_header_errors_total":  c.proxyErrors.Load(),
		"front_blocked_total":              c.blocked.Load(),
		"front_not_allowed_total":          c.notAllowed.Load(),
		"front_crowded_total":              c.crowded.Load(),
		"front_quick_total":                c.quick.Load(),
		"front_relayed_total":              c.relayed.Load(),
		"front_silent_total":               c.silent.Load(),
		"front_slow_requests_total":        c.slowRequests.Load(),
		"front_slow_readers_total":         c.slowReaders.Load(),
		"front_heads_refused_total":        c.headsRefused.Load(),
		"front_heads_bytes":                uint64(f.heads.bytes()),
		"front_desync_refused_total":       c.desyncRefused.Load(),
		"front_bad_chunks_total":           c.badChunks.Load(),
		"front_round_trips_total":          c.seen.Load(),
		"front_unpaced_total":              c.unpaced.Load(),
	})
	c.http2.counters(totals)
	maps.Copy(totals, c.desync.counters())
	return totals
}
