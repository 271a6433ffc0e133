package dnsgeo

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo/crowd"
	"github.com/perigee-net/perigee/dnsgeo/doq"
	"github.com/perigee-net/perigee/dnsgeo/geo"
	"github.com/perigee-net/perigee/dnsgeo/querylog"
)

const (
	// maxQuerySize is the longest query: the longest name and options of all kinds take less than half. More of a
	// datagram is cut off, so that it is malformed; a connection that announces more is closed.
	maxQuerySize = 4096

	// roomSize is what is kept for making a response; a longer one gets memory of its own.
	roomSize = 4096
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
	// Rate is how many responses of a class a network gets by UDP in a second (DefaultRate); 0: as many as it asks for.
	Rate int
	// QueryLog is where queries are written down of zones that want it; nil: nowhere.
	QueryLog *querylog.Log
	// Dial is how other name servers are told that a zone has changed, and asked for theirs; nil: they are not.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Update has the network agree on an update of a zone, and says what became of it; nil: updates are not implemented.
	Update func(context.Context, Update) UpdateAnswer
	// Copies is what secondary zones are kept by beside Dial.
	Copies Copies
}

// Server answers on sockets by the last spec applied. It has none of its own: it serves those it is given. Before
// the first spec it refuses all names.
type Server struct {
	config  Config
	table   atomic.Pointer[Table]
	apply   sync.Mutex // held by Apply
	counts  counters
	tallies *tallies
	sampled atomic.Pointer[lastSample]

	mu      sync.Mutex
	closed  bool
	closers map[io.Closer]bool // sockets and connections
	quics   []*doq.Door
	wg      sync.WaitGroup

	began   time.Time
	cookies atomic.Pointer[[]CookieSecret]
	limit   *limiter    // nil: none
	crowd   crowd.Crowd // connections of TCP and TLS
	desks   sync.Pool   // for those

	transfers slots // of zones, out
	updates   slots
	notices   notices
	copies    copies
}

// New makes a server.
func New(config Config) *Server {
	if config.View == nil {
		config.View = func() *view.View { return nil }
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{config: config, closers: map[io.Closer]bool{}, began: time.Now(), limit: newLimiter(config.Rate), tallies: newTallies()}
	s.transfers.most, s.transfers.mostOfOne = maxTransfers, maxTransfersPerClient
	s.updates.most, s.updates.mostOfOne = maxUpdates, maxUpdatesPerClient
	s.notices.places = make(chan struct{}, maxNotifies)
	s.copies.init()
	s.desks.New = func() any { return s.newDesk() }
	return s
}

// Apply answers by a spec from now on, or returns its faults and goes on as before.
func (s *Server) Apply(to *spec.Spec) error {
	s.apply.Lock()
	defer s.apply.Unlock()
	before := s.table.Load()
	t, err := Compile(to, s.config.Geo, before)
	if err != nil {
		return err
	}
	if before != nil {
		t.past = before.past
	}
	t.past = t.past.next(before, t)
	t, begin := s.keepCopies(before, t)
	s.table.Store(t)
	begin()
	s.tellChanges(before, t)
	return nil
}

// SetPlaces has clients be where a database says from now on.
func (s *Server) SetPlaces(places *geo.DB) error {
	s.apply.Lock()
	defer s.apply.Unlock()
	if before := s.table.Load(); before != nil {
		t, err := Compile(before.spec, places, before)
		if err != nil {
			return err
		}
		t.past = before.past
		s.table.Store(t)
	}
	s.config.Geo = places
	return nil
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
