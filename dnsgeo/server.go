package dnsgeo

import (
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo/geo"
)

const (
	// maxConns is how many TCP connections are served at once; one more is closed as it comes. A resolver
	// whose connection is closed tries again or elsewhere, and UDP goes on.
	maxConns = 1024

	// lifeTime is how long a connection is kept whatever comes: nobody keeps a place for ever. From then on it is closed at
	// the first pause of pauseTime, for a query that lies unread at a close resets the answers before it, too; and at last
	// after lingerTime.
	lifeTime   = 10 * time.Minute
	pauseTime  = 200 * time.Millisecond
	lingerTime = time.Minute

	// idleTimeout closes a connection that has not sent a whole query, or taken a response, for that long
	// (RFC 7766 §6.2.3: a few seconds).
	idleTimeout = 10 * time.Second

	// maxQuerySize is the longest query: the longest name and options of all kinds take less than half. More of a
	// datagram is cut off, so that it is malformed; a connection that announces more is closed.
	maxQuerySize = 4096

	// roomSize is what is kept for making a response; a longer one gets memory of its own.
	roomSize = 4096

	// minPause and maxPause bound the wait after a failed accept.
	minPause, maxPause = 5 * time.Millisecond, time.Second
)

// Config is what a Server is given.
type Config struct {
	// View returns the newest view; nil knows nothing.
	View func() *view.View
	// Geo knows where clients are; nil knows nothing.
	Geo *geo.DB
	// Log is for what goes wrong on this side; nil discards.
	Log *slog.Logger
	// Name is the name of the node, told to those who ask for it (NSID, RFC 5001); "" is not told.
	Name string
}

// Server answers on sockets by the last spec applied. It has none of its own: it serves those it is given. Before
// the first spec it refuses all names.
type Server struct {
	config Config
	table  atomic.Pointer[Table]
	apply  sync.Mutex // held by Apply
	counts counters

	mu      sync.Mutex
	closed  bool
	closers map[io.Closer]bool // sockets and connections
	wg      sync.WaitGroup

	open atomic.Int64 // connections
}

// New makes a server.
func New(config Config) *Server {
	if config.View == nil {
		config.View = func() *view.View { return nil }
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{config: config, closers: map[io.Closer]bool{}}
}

// Apply answers by a spec from now on, or returns its faults and goes on as before.
func (s *Server) Apply(to *spec.Spec) error {
	s.apply.Lock()
	defer s.apply.Unlock()
	t, err := Compile(to, s.config.Geo, s.table.Load())
	if err != nil {
		return err
	}
	s.table.Store(t)
	return nil
}

// respond makes the response to a message, in room if it fits; nil if there is to be none. A response is of
// at most limit bytes, or what the asker takes if that is less and it is a datagram.
func (s *Server) respond(room, m []byte, from netip.Addr, datagram bool) []byte {
	s.counts.queries.Add(1)
	r, rcode, drop := parse(m)
	if rcode == dns.RcodeFormatError {
		s.counts.malformed.Add(1)
	}
	if drop {
		return nil
	}
	a := Answer{Rcode: rcode}
	if rcode == dns.RcodeSuccess {
		a = s.table.Load().Answer(s.config.View(), Query{
			Name: r.name, Type: r.typ, Class: r.class, Client: from, ECS: r.ecs, Random: rand.Uint64(),
		}, nil)
	}
	limit := dns.MaxMsgSize
	if datagram {
		limit = min(r.size, payloadSize)
	}
	response, truncated, err := r.pack(room, m, a, limit, s.config.Name)
	if err != nil {
		s.config.Log.Error("pack dns response", "name", r.name, "type", dns.Type(r.typ).String(), "error", err)
		a = Answer{Rcode: dns.RcodeServerFailure}
		if response, _, err = r.pack(room, m, a, limit, s.config.Name); err != nil {
			return nil
		}
	}
	s.counts.answered(a, truncated)
	return response
}

// ServePacket answers datagrams until the server is closed or the socket fails. It closes the socket. One
// goroutine for each processor reads, decides and writes, so queries wait in the socket, whose buffer is
// the bound: at it the kernel drops them, as resolvers expect of a busy server.
func (s *Server) ServePacket(conn net.PacketConn) error {
	packets := packetsOf(conn)
	failed := make(chan error, runtime.GOMAXPROCS(0))
	if !s.start(conn, cap(failed), func() { failed <- s.servePackets(packets.clone()) }) {
		return net.ErrClosed
	}
	err := <-failed
	s.release(conn) // what fails one fails all
	for range cap(failed) - 1 {
		<-failed
	}
	return s.unlessClosed(err)
}

func (s *Server) servePackets(p packets) error {
	query, room := make([]byte, maxQuerySize), make([]byte, roomSize)
	for {
		n, from, err := p.read(query)
		if err != nil {
			return err
		}
		if response := s.respond(room, query[:n], from, true); response != nil {
			if err := p.write(response); err != nil {
				s.counts.unsent.Add(1) // one asker's trouble: no route, a full buffer
			}
		}
	}
}

// ServeStream answers on TCP connections until the server is closed or the listener is. It closes the listener.
func (s *Server) ServeStream(l net.Listener) error {
	if !s.start(l, 0, nil) {
		return net.ErrClosed
	}
	defer s.release(l)
	pause := time.Duration(0)
	for {
		conn, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed) || err != nil && s.unlessClosed(err) == nil:
			return s.unlessClosed(err)
		case err != nil: // files run out, for example: it passes
			pause = min(max(2*pause, minPause), maxPause)
			s.config.Log.Warn("accept dns connection", "error", err, "retry", pause)
			time.Sleep(pause)
		default:
			pause = 0
			s.admit(conn)
		}
	}
}

// admit serves a connection, or closes it if there is no place for it.
func (s *Server) admit(conn net.Conn) {
	if s.open.Add(1) > maxConns {
		s.counts.connsRefused.Add(1)
		s.open.Add(-1)
		_ = conn.Close()
		return
	}
	if !s.start(conn, 1, func() {
		s.serveConn(conn)
		s.release(conn)
		s.open.Add(-1)
	}) {
		s.open.Add(-1)
	}
}

// serveConn answers the queries of a connection, one after another (RFC 7766).
func (s *Server) serveConn(conn net.Conn) {
	s.counts.conns.Add(1)
	from := addrOf(conn.RemoteAddr())
	query, room := make([]byte, maxQuerySize), make([]byte, 2+roomSize)
	began := time.Now()
	for {
		lived, wait := time.Since(began), idleTimeout
		if lived > lifeTime {
			wait = min(pauseTime, lifeTime+lingerTime-lived)
		}
		_ = conn.SetDeadline(time.Now().Add(wait))
		if _, err := io.ReadFull(conn, query[:2]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(query))
		if n > len(query) {
			return
		}
		if _, err := io.ReadFull(conn, query[:n]); err != nil {
			return
		}
		response := s.respond(room[2:], query[:n], from, false)
		if response == nil {
			return // it does not speak DNS
		}
		framed := append(room[:2], response...) // in place, unless the response had no room
		binary.BigEndian.PutUint16(framed, uint16(len(response)))
		if _, err := conn.Write(framed); err != nil {
			return
		}
	}
}

// start keeps a socket, to be closed with the server, and serves it by n goroutines. If the server is closed
// already, it closes the socket instead.
func (s *Server) start(c io.Closer, n int, serve func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close()
		return false
	}
	s.closers[c] = true
	for range n {
		s.wg.Go(serve)
	}
	return true
}

func (s *Server) release(c io.Closer) {
	_ = c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.closers, c)
}

// unlessClosed is the error of a socket, or nil if it failed because the server was closed.
func (s *Server) unlessClosed(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	return err
}

// Close closes all sockets and connections and waits until nothing is served any more.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for c := range s.closers {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// addrOf is the address of a peer; invalid if it has none, as in a pipe.
func addrOf(a net.Addr) netip.Addr {
	if from, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		return from.AddrPort().Addr().Unmap()
	}
	from, _ := netip.ParseAddrPort(a.String())
	return from.Addr().Unmap()
}
