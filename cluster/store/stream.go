package store

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// stream is the network as Raft's transport sees it (raft.StreamLayer). It knows every connection, so that it can end them
// all: the transport leaves those alone that wait for the next request.
type stream struct {
	listener  net.Listener
	advertise string
	dial      func(ctx context.Context, name, address string) (net.Conn, error)
	nameOf    func(ctx context.Context, address raft.ServerAddress) string

	ctx     context.Context // ends with the stream
	cancel  context.CancelFunc
	serving sync.WaitGroup // accepted connections that the transport has not closed

	mu    sync.Mutex
	conns map[*streamConn]bool
	ended bool
}

// streamConn is one connection of the stream.
type streamConn struct {
	net.Conn
	closed func()
}

// Close closes the connection, as often as asked.
func (c *streamConn) Close() error {
	err := c.Conn.Close()
	c.closed()
	return err
}

// Accept implements net.Listener.
func (s *stream) Accept() (net.Conn, error) {
	conn, err := s.listener.Accept()
	if err != nil {
		return nil, err
	}
	s.serving.Add(1)
	return s.track(conn, s.serving.Done)
}

// Dial implements raft.StreamLayer.
func (s *stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	conn, err := s.dial(ctx, s.nameOf(ctx, address), string(address))
	if err != nil {
		return nil, err
	}
	return s.track(conn, func() {})
}

// track takes a connection in, or closes it if the stream has ended.
func (s *stream) track(conn net.Conn, closed func()) (net.Conn, error) {
	c := &streamConn{Conn: conn}
	c.closed = sync.OnceFunc(func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		closed()
	})
	s.mu.Lock()
	ended := s.ended
	if !ended {
		s.conns[c] = true
	}
	s.mu.Unlock()
	if ended {
		c.Close()
		return nil, net.ErrClosed
	}
	return c, nil
}

// Close implements net.Listener: it ends the listener and every connection, and what is being dialed.
func (s *stream) Close() error {
	s.mu.Lock()
	s.ended = true
	for c := range s.conns {
		c.Conn.Close() // not c: who uses it has not let go of it yet
	}
	s.mu.Unlock()
	s.cancel()
	return s.listener.Close()
}

// Addr implements net.Listener: the address at which the others reach this node.
func (s *stream) Addr() net.Addr { return advertised(s.advertise) }

// advertised is an address as it was told.
type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }

// maxRequest bounds the bytes of log entries in one request, but for a single larger one, so that it travels in time.
const maxRequest = 4 << 20

// transport is Raft's network: it bounds a request by bytes, where Raft counts entries, and tells once of a node that does
// not answer, where Raft tells of each request.
type transport struct {
	*raft.NetworkTransport
	log   *slog.Logger
	grace time.Duration // how long a node may not answer before that is told

	mu    sync.Mutex
	peers map[raft.ServerID]*peerHealth // of the nodes that were ever asked for something; few, and they are voters
}

// peerHealth is how it is going with one node.
type peerHealth struct {
	since time.Time // of the first request that failed; zero: the last one did not
	told  bool
	busy  chan struct{} // holds one while it is asked whether it follows
}

func newTransport(s *stream, cfg Config, grace time.Duration) *transport {
	return &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: s, MaxPool: 3, Timeout: requestTimeout, MsgpackUseNewTimeFormat: true,
			Logger: bridge(cfg.Log, slog.LevelDebug), // it calls every connection that ends an error
		}),
		log: cfg.Log, grace: grace, peers: map[raft.ServerID]*peerHealth{},
	}
}

// AppendEntries implements raft.Transport.
func (t *transport) AppendEntries(id raft.ServerID, at raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	shorten(req)
	return t.answered(id, at, t.NetworkTransport.AppendEntries(id, at, req, resp))
}

// RequestVote implements raft.Transport.
func (t *transport) RequestVote(id raft.ServerID, at raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return t.answered(id, at, t.NetworkTransport.RequestVote(id, at, req, resp))
}

// RequestPreVote implements raft.WithPreVote.
func (t *transport) RequestPreVote(id raft.ServerID, at raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return t.answered(id, at, t.NetworkTransport.RequestPreVote(id, at, req, resp))
}

// AppendEntriesPipeline implements raft.Transport.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, at raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := t.NetworkTransport.AppendEntriesPipeline(id, at)
	if err != nil {
		return nil, err
	}
	return pipeline{p}, nil
}

// pipeline sends requests without waiting for the answer to the one before.
type pipeline struct{ raft.AppendPipeline }

// turnTimeout bounds how long a request waits for its turn in the pipeline.
const turnTimeout = 2 * requestTimeout

// AppendEntries implements raft.AppendPipeline. A request whose turn does not come ends the pipeline, and Raft goes on with single
// requests: after an answer that is a no, Raft reads no more answers while its sender may wait for room that only they would
// make. The peer would have no entries as long as this node leads, and Close would wait for ever.
func (p pipeline) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	shorten(req)
	giveUp := time.AfterFunc(turnTimeout, func() { p.AppendPipeline.Close() })
	defer giveUp.Stop()
	return p.AppendPipeline.AppendEntries(req, resp)
}

// shorten leaves of a request as many entries as may travel at once. Raft goes on behind the last that is in the request.
func shorten(req *raft.AppendEntriesRequest) {
	size := 0
	for i, e := range req.Entries {
		if size += len(e.Data); size > maxRequest && i > 0 {
			req.Entries = req.Entries[:i]
			return
		}
	}
}

// answered notes how a request went, and returns its error.
func (t *transport) answered(id raft.ServerID, at raft.ServerAddress, err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peer(id)
	switch {
	case err == nil && p.told:
		t.log.Info("peer is reachable again", "peer", string(id), "address", string(at), "after", time.Since(p.since).Round(time.Second))
		fallthrough
	case err == nil:
		p.since, p.told = time.Time{}, false
	case p.since.IsZero():
		p.since = time.Now()
	case !p.told && time.Since(p.since) >= t.grace:
		p.told = true
		t.log.Warn("peer is unreachable", "peer", string(id), "address", string(at), "error", err)
	}
	return err
}

// peer is what is known of a node; the caller has the lock.
func (t *transport) peer(id raft.ServerID) *peerHealth {
	if t.peers[id] == nil {
		t.peers[id] = &peerHealth{busy: make(chan struct{}, 1)}
	}
	return t.peers[id]
}

// unreachable is how many nodes do not answer.
func (t *transport) unreachable() (n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.peers {
		if p.told {
			n++
		}
	}
	return n
}

// forget drops what is known of nodes that are no members any more.
func (t *transport) forget(member func(raft.ServerID) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.peers {
		if !member(id) {
			delete(t.peers, id)
		}
	}
}
