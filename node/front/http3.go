package front

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/perigee-net/perigee/edge/http1"
)

const http3ALPN = http3.NextProtoH3

// Bounds of what strangers may do to a door for HTTP/3, besides those that hold for all doors.
const (
	// unprovenHandshakes is how many handshakes are begun with clients who may not be where they say; from there on each has to
	// show first that it receives what is sent to it (Retry; RFC 9000, 8.1.2), at the price of a round trip.
	unprovenHandshakes = 256
	// maxHandshakes is how many are under way at once; more clients are refused.
	maxHandshakes = 2048
	// handshakeTimeout is how long a client may be silent in a handshake; after twice that it is ended in any case.
	handshakeTimeout = headerTimeout / 2
	// connectionsPerClient is how many of QUIC one client (http1.ClientOf) has at once, those with whom a handshake is under way included:
	// more are refused. Config.ConnectionsPerClient bounds those of TCP and QUIC together whose address is proven: a forged one is
	// to keep nobody from TCP.
	connectionsPerClient = 1024
	// controlStreams are one for control, two for QPACK, and some that must be put up with (RFC 9114, 6.2.3); more must wait.
	controlStreams = 8
	// streamWindow and connectionWindow are what a client may send ahead of its handlers, in bytes; more must wait.
	streamWindow, connectionWindow = 1 << 20, 4 << 20
	// maxAbandoned is how many more requests a client may reset than it lets be answered; then its connection is closed
	// (HTTP/2's rapid reset, CVE-2023-44487, is HTTP/3's, too).
	maxAbandoned = 256
	// maxHandlers is how many handlers run for one connection, those of requests that were reset included; then it is closed.
	maxHandlers = 2 * streams
	// partingTime is how long a connection that was told to go stays when it carries nothing: what the client sent before it
	// heard is refused in a way that has it ask elsewhere.
	partingTime = time.Second
	// altSvcAge is how long clients remember that there is HTTP/3.
	altSvcAge = 24 * time.Hour
)

type http3Counters struct {
	open                                              atomic.Int64
	connections, requests, retries, failed, overloads atomic.Uint64
	early, tooEarly                                   atomic.Uint64
}

// counters adds the totals, and how many connections are open, to a front's.
func (c *http3Counters) counters(all map[string]uint64) map[string]uint64 {
	all["front_http3_connections"] = uint64(c.open.Load())
	all["front_http3_connections_total"] = c.connections.Load()
	all["front_http3_requests_total"] = c.requests.Load()
	all["front_http3_retries_total"] = c.retries.Load()
	all["front_http3_handshake_errors_total"] = c.failed.Load()
	all["front_http3_overloads_total"] = c.overloads.Load()
	all["front_early_requests_total"] = c.early.Load()
	all["front_too_early_total"] = c.tooEarly.Load()
	return all
}

// quicDoor is the UDP side of an open Door.
type quicDoor struct {
	front     *Front
	behind    atomic.Pointer[Door]
	packets   net.PacketConn
	transport *quic.Transport
	listener  *quic.EarlyListener
	port      int
	serving   sync.WaitGroup // connections
	crowd     *crowd         // the TCP door's, too: of clients who are where they say
	comers    *crowd         // of QUIC alone: of all who have come

	mu         sync.Mutex
	guests     map[*quicGuest]struct{} // whose handshake has begun
	handshakes int                     // how many of them have not shown who they are
	closing    bool
}

// setHTTP3 opens and closes the UDP sides of the doors that stand, and has the doors tell of those that are open. f.mu is held.
func (f *Front) setHTTP3(doors []*Door) (faults []error) {
	wanted := map[doorKey]bool{}
	for _, d := range doors {
		wanted[d.key()] = d.HTTP3
	}
	for key, open := range f.quic {
		if !wanted[key] || f.doors[key] == nil {
			open.close()
			delete(f.quic, key)
		}
	}
	for _, d := range doors {
		tcp := f.doors[d.key()]
		if tcp == nil {
			continue // told already
		}
		open := f.quic[d.key()]
		switch {
		case open != nil:
			open.behind.Store(d)
		case d.HTTP3:
			var err error
			if open, err = f.openHTTP3(d, tcp.crowd); err != nil {
				faults = append(faults, &Fault{"udp", d.Address, err})
				break
			}
			f.quic[d.key()] = open
		}
		tcp.altSvc.Store(nil)
		if open != nil {
			tcp.altSvc.Store(&[]string{fmt.Sprintf(`%s=":%d"; ma=%d`, http3ALPN, open.port, int(altSvcAge.Seconds()))})
		}
	}
	return faults
}

func (f *Front) openHTTP3(wanted *Door, crowd *crowd) (*quicDoor, error) {
	listen := f.config.ListenPacket
	if wanted.Anycast {
		listen = f.config.ListenPacketAnycast
	}
	packets, err := listen("udp", wanted.key().at())
	if err != nil {
		return nil, err
	}
	d := &quicDoor{front: f, packets: packets, guests: map[*quicGuest]struct{}{}, crowd: crowd, comers: newCrowd()}
	d.behind.Store(wanted)
	if _, port, err := net.SplitHostPort(packets.LocalAddr().String()); err == nil {
		d.port, _ = strconv.Atoi(port)
	}
	token, reset := quic.TokenGeneratorKey(orRandom(f.config.TokenKey)), quic.StatelessResetKey(orRandom(f.config.ResetKey))
	d.transport = &quic.Transport{
		Conn: packets, TokenGeneratorKey: &token, StatelessResetKey: &reset, VerifySourceAddress: d.mustProve, ConnContext: d.arrives,
	}
	d.listener, err = d.transport.ListenEarly(&tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{http3ALPN}, GetCertificate: f.config.Certificate,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return f.speech.Load().http3, nil },
	}, &quic.Config{
		Allow0RTT: true, HandshakeIdleTimeout: handshakeTimeout, MaxIdleTimeout: idleTimeout,
		MaxIncomingStreams: streams, MaxIncomingUniStreams: controlStreams,
		MaxStreamReceiveWindow: streamWindow, MaxConnectionReceiveWindow: connectionWindow,
	})
	if err != nil {
		d.transport.Close()
		packets.Close()
		return nil, err
	}
	f.quics[d] = struct{}{}
	f.wg.Go(d.serve)
	return d, nil
}

func orRandom(key [32]byte) [32]byte {
	if key == [32]byte{} {
		rand.Read(key[:])
	}
	return key
}

// serve is the life of the door: it ends when all its connections have.
func (d *quicDoor) serve() {
	for {
		conn, err := d.listener.Accept(context.Background())
		if err != nil {
			break
		}
		g := conn.Context().Value(quicKey{}).(*quicGuest)
		d.serving.Go(func() { g.serve(conn) })
	}
	d.serving.Wait()
	d.transport.Close()
	d.packets.Close()
	d.front.mu.Lock()
	delete(d.front.quics, d)
	d.front.mu.Unlock()
}

// close accepts nothing more. Connections that carry nothing end; others when they are done.
func (d *quicDoor) close() {
	d.mu.Lock()
	d.closing = true
	d.mu.Unlock()
	d.listener.Close()
	d.retire()
}

// retire has every connection end after what it waits for.
func (d *quicDoor) retire() {
	for _, g := range d.all() {
		g.retire()
	}
}

// all are those that are served.
func (d *quicDoor) all() (all []*quicGuest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for g := range d.guests {
		if g.conn != nil {
			all = append(all, g)
		}
	}
	return all
}

// mustProve says whether whoever begins a handshake has to show first that he is where he says.
func (d *quicDoor) mustProve(net.Addr) bool {
	d.mu.Lock()
	many := d.handshakes >= unprovenHandshakes
	d.mu.Unlock()
	if many {
		d.front.counters.http3.retries.Add(1)
	}
	return many
}

var errTurnedAway = errors.New("turned away")

type quicKey struct{}

// arrives judges whoever begins a handshake, before anything is done for it. The context ends with the connection.
func (d *quicDoor) arrives(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	behind := d.behind.Load()
	g := &quicGuest{door: d, anyone: behind.Anyone, came: addressOf(info.RemoteAddr)}
	c := &d.front.counters
	d.mu.Lock()
	key := http1.ClientOf(g.came)
	switch {
	case d.closing:
		d.mu.Unlock()
		return nil, errTurnedAway
	case len(d.guests) >= d.front.config.Connections, d.handshakes >= maxHandshakes:
		d.mu.Unlock()
		c.refused.Add(1)
		return nil, errTurnedAway
	case !d.comers.add(key, min(connectionsPerClient, d.front.config.ConnectionsPerClient)):
		d.mu.Unlock()
		c.crowded.Add(1)
		return nil, errTurnedAway
	case info.AddrVerified && !g.proven():
		d.comers.remove(key)
		d.mu.Unlock()
		c.crowded.Add(1)
		return nil, errTurnedAway
	}
	d.guests[g] = struct{}{} // before it is judged, so that either that or a Recheck sees a block that is made meanwhile
	d.handshakes++
	d.mu.Unlock()
	c.http3.open.Add(1)
	switch {
	case g.blocked(g.came):
		c.blocked.Add(1)
	case behind.Allowed != nil && !behind.Allowed(g.came):
		c.notAllowed.Add(1)
	default:
		context.AfterFunc(ctx, func() {
			if d.leaves(g) && d.listens() {
				c.http3.failed.Add(1)
			}
		})
		return context.WithValue(ctx, quicKey{}, g), nil
	}
	d.leaves(g)
	return nil, errTurnedAway
}

// listens says whether the door takes connections.
func (d *quicDoor) listens() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.closing
}

// proven counts a guest among the connections of its client, once it has shown that it is where it says; not so: that has as many as it may.
// The door's mu is held.
func (g *quicGuest) proven() bool {
	if !g.counted {
		g.counted = g.door.crowd.add(http1.ClientOf(g.came), g.door.front.config.ConnectionsPerClient)
	}
	return g.counted
}

// leaves gives back the room that a guest took, and says whether it was in its handshake.
func (d *quicDoor) leaves(g *quicGuest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.guests, g)
	d.front.counters.http3.open.Add(-1)
	d.comers.remove(http1.ClientOf(g.came))
	if g.counted {
		d.crowd.remove(http1.ClientOf(g.came))
	}
	if g.settled {
		return false
	}
	g.settled = true
	d.handshakes--
	return true
}

// addressOf is the address of a client; invalid: it has none.
func addressOf(a net.Addr) netip.Addr {
	at, ok := a.(interface{ AddrPort() netip.AddrPort }) // of TCP or UDP
	if !ok {
		return netip.Addr{}
	}
	return at.AddrPort().Addr().Unmap().WithZone("")
}

// closeHTTP3 closes the UDP sides of all doors (f.mu is held), retireHTTP3 has their connections end, recheckHTTP3 ends those
// of blocked clients.

func (f *Front) closeHTTP3() {
	for _, d := range f.quic {
		d.close()
	}
	clear(f.quic)
}

func (f *Front) retireHTTP3(now bool) {
	f.leads.Store(!now)
	if !now {
		return // those who come look for themselves
	}
	for _, d := range f.quicDoors() {
		d.retire()
	}
}

func (f *Front) recheckHTTP3() {
	for _, d := range f.quicDoors() {
		for _, g := range d.all() {
			g.check()
		}
	}
}

// quicDoors are those that stand, and those that are closed and have connections still.
func (f *Front) quicDoors() []*quicDoor {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.quics))
}
