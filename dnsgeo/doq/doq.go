// Package doq carries DNS over QUIC (RFC 9250): a connection has a stream for each query, and the response comes on it. It reads no
// more of a message than who sent it has to keep to: what the messages mean is for the function that answers.
//
// When something breaks: a client that does not keep to the protocol has its connection closed, and counted; where there are too many, one
// that is silent goes; one that is slow is cut off stream by stream.
package doq

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/perigee-net/perigee/dnsgeo/crowd"
)

// ALPN is the name of the protocol in TLS (RFC 9250 §4.1.1).
const ALPN = "doq"

// Errors, of connections and of streams (RFC 9250 §8.4).
const (
	noError       = 0x0
	protocolError = 0x2
	excessiveLoad = 0x4
	unspecified   = 0x5
)

const (
	// maxHandshakes is how many are under way at once, and maxHandshakesPerClient how many of one client (crowd.Client), unless that is
	// this machine. More are refused, and their clients ask by other means. Only those whose handshake has ended, who are where they
	// say, are among the crowd and can have another connection end.
	maxHandshakes, maxHandshakesPerClient = 1024, 128

	// maxStreams is how many queries of one connection are in flight; more must wait. maxQueries is how many of all: a stream beyond is
	// reset.
	maxStreams, maxQueries = 128, 8192

	// unproven is how many handshakes are begun with clients who may not be where they say; from there on each has to show first that
	// it receives what is sent to it (RFC 9000 §8.1.2).
	unproven = 256

	// handshakeTime is how long a client may be silent in a handshake, idleTime afterwards.
	handshakeTime, idleTime = 5 * time.Second, 30 * time.Second

	// streamTime is how long a query may take to come, and its response to be taken.
	streamTime = 10 * time.Second

	// streamWindow and connWindow are what a client may send before it is read, in bytes.
	streamWindow, connWindow = 8 << 10, 128 << 10

	headerSize = 12
)

// Config is what a Door is made of.
type Config struct {
	// Packets is its socket, which it closes.
	Packets net.PacketConn
	// TLS says which certificate is shown. ALPN is among its protocols.
	TLS *tls.Config
	// TokenKey is shared by all nodes: by it one knows that another has seen a client at its address. ResetKey is this node's alone.
	TokenKey, ResetKey [32]byte
	// MaxQuery is the longest query; a connection that announces a longer one is closed.
	MaxQuery int
	// Answer makes the response to a query, in room if it fits; nil: it is no query.
	Answer func(room, query []byte, from netip.Addr) []byte
	// Once says that a query must not be answered twice, so that one that somebody may have recorded and sends again has to wait until
	// the client has shown that it is there now (RFC 9250 §4.5).
	Once func(query []byte) bool
}

// Door is a socket with its connections.
type Door struct {
	config    Config
	transport *quic.Transport
	listener  *quic.EarlyListener
	ctx       context.Context
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	rooms     sync.Pool
	counts    counters

	crowd   crowd.Crowd // connections whose handshake has ended
	began   time.Time
	queries atomic.Int64 // in flight

	mu         sync.Mutex
	handshakes int
	beginners  map[netip.Prefix]int // handshakes by client
}

type counters struct {
	conns, displaced, refused, over, retries, failed, breaches, early atomic.Uint64
}

func newDoor(c Config) *Door {
	return &Door{config: c, began: time.Now(), beginners: map[netip.Prefix]int{}}
}

// Open makes a Door.
func Open(c Config) (*Door, error) {
	d := newDoor(c)
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.rooms.New = func() any { b := make([]byte, 2*(2+c.MaxQuery)); return &b }
	token, reset := quic.TokenGeneratorKey(c.TokenKey), quic.StatelessResetKey(c.ResetKey)
	d.transport = &quic.Transport{
		Conn: c.Packets, TokenGeneratorKey: &token, StatelessResetKey: &reset, VerifySourceAddress: d.mustProve, ConnContext: d.arrives,
	}
	var err error
	d.listener, err = d.transport.ListenEarly(c.TLS, &quic.Config{
		Allow0RTT: true, HandshakeIdleTimeout: handshakeTime, MaxIdleTimeout: idleTime,
		MaxIncomingStreams: maxStreams, MaxIncomingUniStreams: -1,
		InitialStreamReceiveWindow: streamWindow, MaxStreamReceiveWindow: streamWindow,
		InitialConnectionReceiveWindow: connWindow, MaxConnectionReceiveWindow: connWindow,
	})
	if err != nil {
		d.cancel()
		return nil, errors.Join(err, d.transport.Close(), c.Packets.Close())
	}
	return d, nil
}

// Serve answers until the Door is closed, then nil, or its socket fails.
func (d *Door) Serve() error {
	for {
		conn, err := d.listener.Accept(d.ctx)
		if d.ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		d.mu.Lock()
		if d.ctx.Err() == nil {
			d.wg.Go(func() { d.serve(conn) })
		}
		d.mu.Unlock()
	}
}

// Close ends all connections and closes the socket.
func (d *Door) Close() error {
	d.mu.Lock()
	d.cancel()
	d.mu.Unlock()
	d.wg.Wait()
	return errors.Join(d.listener.Close(), d.transport.Close(), d.config.Packets.Close())
}

// mustProve says whether whoever begins a handshake has to show first that he is where he says.
func (d *Door) mustProve(net.Addr) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.handshakes < unproven {
		return false
	}
	d.counts.retries.Add(1)
	return true
}

var errTooMany = errors.New("too many connections")

type guestKey struct{}

// guest is a connection as it is counted.
type guest struct {
	door    *Door
	from    netip.Addr
	settled sync.Once // its handshake has ended
	place   crowd.Place
}

// arrives lets a connection begin its handshake, before anything is done for it. The context ends with the connection.
func (d *Door) arrives(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	g := &guest{door: d, from: addressOf(info.RemoteAddr)}
	client := crowd.Client(g.from)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.handshakes >= maxHandshakes || d.beginners[client] >= maxHandshakesPerClient && !g.from.IsLoopback() {
		d.counts.refused.Add(1)
		return nil, errTooMany
	}
	d.handshakes++
	d.beginners[client]++
	context.AfterFunc(ctx, func() { g.settle(false) })
	return context.WithValue(ctx, guestKey{}, g), nil
}

// settle is the end of a handshake, for better or worse.
func (g *guest) settle(well bool) {
	g.settled.Do(func() {
		d, client := g.door, crowd.Client(g.from)
		d.mu.Lock()
		d.handshakes--
		if d.beginners[client]--; d.beginners[client] == 0 {
			delete(d.beginners, client)
		}
		d.mu.Unlock()
		if !well {
			d.counts.failed.Add(1)
		}
	})
}

// enters gives a connection whose handshake has ended its place.
func (d *Door) enters(g *guest, end func()) {
	g.settle(true)
	g.place.End = end
	g.place.Heard(time.Since(d.began))
	if d.crowd.Enter(&g.place, g.from) {
		d.counts.displaced.Add(1)
	}
}

func addressOf(a net.Addr) netip.Addr {
	if udp, ok := a.(*net.UDPAddr); ok {
		return udp.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// serve is the life of a connection.
func (d *Door) serve(conn *quic.Conn) {
	d.counts.conns.Add(1)
	g := conn.Context().Value(guestKey{}).(*guest)
	defer d.crowd.Leave(&g.place) // when whoever may have it enter has ended
	var streams sync.WaitGroup
	defer streams.Wait()
	defer context.AfterFunc(d.ctx, func() { conn.CloseWithError(noError, "") })()
	streams.Go(func() {
		select {
		case <-conn.HandshakeComplete():
			d.enters(g, func() { conn.CloseWithError(excessiveLoad, "") })
		case <-conn.Context().Done():
		}
	})
	for {
		stream, err := conn.AcceptStream(context.Background())
		if err != nil {
			return
		}
		if d.queries.Add(1) > maxQueries {
			d.queries.Add(-1)
			d.counts.over.Add(1)
			stream.CancelRead(excessiveLoad)
			stream.CancelWrite(excessiveLoad)
			continue
		}
		streams.Go(func() {
			defer d.queries.Add(-1)
			d.answer(conn, g, stream)
		})
	}
}

// answer is the life of a stream: a query and its end, the response and its end (RFC 9250 §4.2).
func (d *Door) answer(conn *quic.Conn, g *guest, s *quic.Stream) {
	room := d.rooms.Get().(*[]byte)
	defer d.rooms.Put(room)
	_ = s.SetDeadline(time.Now().Add(streamTime))
	query, err := d.read(s, (*room)[:2+d.config.MaxQuery])
	switch {
	case errors.Is(err, errProtocol), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		d.breach(conn)
		return
	case err != nil: // it was reset, or is slow, or the connection has ended
		s.CancelRead(unspecified)
		s.CancelWrite(unspecified)
		return
	}
	g.place.Heard(time.Since(d.began))
	if d.isEarly(conn) {
		d.counts.early.Add(1)
		if d.config.Once(query) {
			select {
			case <-conn.HandshakeComplete():
			case <-conn.Context().Done():
				return
			}
		}
	}
	out := (*room)[2+d.config.MaxQuery:]
	response := d.config.Answer(out[2:], query, addressOf(conn.RemoteAddr()))
	if response == nil {
		d.breach(conn)
		return
	}
	framed := append(out[:2], response...) // in place, unless the response had no room
	binary.BigEndian.PutUint16(framed, uint16(len(response)))
	if _, err := s.Write(framed); err != nil {
		s.CancelWrite(unspecified)
		return
	}
	s.Close()
}

var errProtocol = errors.New("the client does not keep to the protocol")

// read reads the one query of a stream (RFC 9250 §4.2, §4.3.3).
func (d *Door) read(s *quic.Stream, room []byte) ([]byte, error) {
	if _, err := io.ReadFull(s, room[:2]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(room))
	if n < headerSize || n > d.config.MaxQuery {
		return nil, errProtocol
	}
	query := room[2 : 2+n]
	if _, err := io.ReadFull(s, query); err != nil {
		return nil, err
	}
	var more [1]byte
	for {
		switch n, err := s.Read(more[:]); {
		case n > 0: // one query a stream
			return nil, errProtocol
		case err == io.EOF:
			if query[0]|query[1] != 0 { // its stream tells it from others (§4.2.1)
				return nil, errProtocol
			}
			return query, nil
		case err != nil:
			return nil, err
		}
	}
}

// breach closes the connection of a client that does not keep to the protocol.
func (d *Door) breach(conn *quic.Conn) {
	d.counts.breaches.Add(1)
	conn.CloseWithError(protocolError, "")
}

// isEarly says whether a query may be one that somebody recorded and sends again: who has ended the handshake is the client itself.
func (d *Door) isEarly(conn *quic.Conn) bool {
	select {
	case <-conn.HandshakeComplete():
		return false
	default:
		return true
	}
}

// Counters are totals since Open, and how many connections there are.
func (d *Door) Counters() map[string]uint64 {
	c := &d.counts
	return map[string]uint64{
		"dns_quic_connections":                   uint64(d.crowd.Size()),
		"dns_quic_connections_displaced_total":   c.displaced.Load(),
		"dns_quic_queries_over_bounds_total":     c.over.Load(),
		"dns_quic_connections_total":             c.conns.Load(),
		"dns_quic_connections_over_bounds_total": c.refused.Load(),
		"dns_quic_retries_total":                 c.retries.Load(),
		"dns_quic_handshake_errors_total":        c.failed.Load(),
		"dns_quic_protocol_errors_total":         c.breaches.Load(),
		"dns_quic_early_queries_total":           c.early.Load(),
	}
}
