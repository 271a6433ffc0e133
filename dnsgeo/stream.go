package dnsgeo

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"
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

	// minPause and maxPause bound the wait after a failed accept.
	minPause, maxPause = 5 * time.Millisecond, time.Second
)

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
		response := s.respond(room[2:], query[:n], from, TCP)
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
