package store

import (
	"context"
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
