package dnsgeo

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/perigee-net/perigee/dnsgeo/crowd"
)

const (
	// lifeTime is how long a connection is kept whatever comes: nobody keeps a place for ever. From then on it is closed at
	// the first pause of pauseTime, for a query that lies unread at a close resets the answers before it, too; and at last
	// after lingerTime.
	lifeTime   = 10 * time.Minute
	pauseTime  = 200 * time.Millisecond
	lingerTime = time.Minute

	// idleTimeout closes a connection that has not sent a whole query, or taken a response, for that long
	// (RFC 7766 §6.2.3: a few seconds). Who asks for it is told (RFC 7828).
	idleTimeout = 10 * time.Second

	// idleSize is what a connection holds for what comes while nothing does: a query, or some.
	idleSize = 512

	// streamSize is what a connection takes for what comes while much does, and again for what is answered: many queries are read
	// at once, and as many responses written.
	streamSize = 16 << 10

	// minPause and maxPause bound the wait after a failed accept.
	minPause, maxPause = 5 * time.Millisecond, time.Second
)

// ServeStream answers on TCP connections until the server is closed or the listener is. It closes the listener.
func (s *Server) ServeStream(l net.Listener) error { return s.serveStream(l, TCP, nil) }

// ServeTLS is ServeStream over TLS (RFC 7858). The configuration says which certificate is shown, and "dot" for ALPN.
func (s *Server) ServeTLS(l net.Listener, config *tls.Config) error {
	return s.serveStream(l, TLS, config)
}

func (s *Server) serveStream(l net.Listener, by Transport, config *tls.Config) error {
	if !s.start(l, 0, nil) {
		return net.ErrClosed
	}
	defer s.release(l)
	pause := time.Duration(0)
	for {
		socket, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed) || err != nil && s.unlessClosed(err) == nil:
			return s.unlessClosed(err)
		case err != nil: // files run out, for example: it passes
			pause = min(max(2*pause, minPause), maxPause)
			s.config.Log.Warn("accept dns connection", "error", err, "retry", pause)
			time.Sleep(pause)
		default:
			pause = 0
			c := &conn{Conn: socket, socket: socket}
			if by == TLS {
				c.Conn = tls.Server(socket, config)
			}
			s.admit(c, by)
		}
	}
}

// conn is a connection of a client.
type conn struct {
	net.Conn          // what is read and written: TLS, or the socket
	socket   net.Conn // beneath it
	place    crowd.Place
}

// admit serves a connection. Where there is no place for it, another one goes.
func (s *Server) admit(c *conn, by Transport) {
	from := addrOf(c.socket.RemoteAddr())
	c.place.Heard(time.Since(s.began))
	c.place.End = func() { _ = c.socket.Close() }
	if s.crowd.Enter(&c.place, from) {
		s.counts.connsDisplaced.Add(1)
	}
	if !s.start(c.socket, 1, func() {
		defer s.release(c.socket)
		defer s.crowd.Leave(&c.place)
		s.serveConn(c, from, by)
	}) {
		s.crowd.Leave(&c.place)
	}
}

// rooms are for what is read and for what is written.
var rooms = sync.Pool{New: func() any { return new([streamSize]byte) }}

// serveConn answers the queries of a connection in their order (RFC 7766). All that have come together are answered together: a
// client that sends more before it has the first response costs a read and a write for as many as it has sent.
func (s *Server) serveConn(c *conn, from netip.Addr, by Transport) {
	s.counts.conns.Add(1)
	began := time.Now()
	_ = c.SetDeadline(began.Add(idleTimeout))
	if t, ok := c.Conn.(*tls.Conn); ok {
		s.counts.tlsConns.Add(1)
		if t.Handshake() != nil {
			s.counts.tlsFailed.Add(1)
			return
		}
		defer t.Close() // it says so, where it is not the client that has gone
	}
	var few [idleSize]byte
	in, end := few[:], 0
	var many *[streamSize]byte
	defer func() {
		if many != nil {
			rooms.Put(many)
		}
	}()
	for {
		n, err := c.Read(in[end:])
		if n == 0 && err != nil {
			return
		}
		end += n
		full := end == len(in)
		rest, ok := in[:end], true
		if whole(rest) {
			// The responses, and the next query, have their time from now on. One that comes in pieces has no more.
			now := time.Now()
			lived, wait := now.Sub(began), idleTimeout
			if lived > lifeTime {
				wait = min(pauseTime, lifeTime+lingerTime-lived)
			}
			_ = c.SetDeadline(now.Add(wait))
			c.place.Heard(now.Sub(s.began))
			if rest, ok = s.answerAll(c, rest, from, by); !ok {
				return
			}
		} else if tooLong(rest) {
			return
		}
		switch {
		case full && many == nil:
			many = rooms.Get().(*[streamSize]byte)
			end = copy(many[:], rest)
			in = many[:]
		case many != nil && !full && len(rest) == 0:
			rooms.Put(many)
			many, in, end = nil, few[:], 0
		default:
			end = copy(in, rest)
		}
	}
}

// whole says whether a query has come whole.
func whole(b []byte) bool {
	return len(b) >= 2 && len(b)-2 >= int(binary.BigEndian.Uint16(b))
}

// tooLong says whether what has begun to come is longer than any query or, as far as that is to be seen yet, any update.
func tooLong(b []byte) bool {
	if len(b) < 2 {
		return false
	}
	n := int(binary.BigEndian.Uint16(b))
	return n > maxUpdateSize || n > maxQuerySize && len(b) > 4 && !isUpdate(b[2:])
}

// answerAll answers the whole queries at the beginning of b, and returns what follows them; not ok: the connection is to be closed.
func (s *Server) answerAll(c *conn, b []byte, from netip.Addr, by Transport) (rest []byte, ok bool) {
	room := rooms.Get().(*[streamSize]byte)
	defer rooms.Put(room)
	out := room[:0]
	ok = true
	for ok && whole(b) {
		n := int(binary.BigEndian.Uint16(b))
		if tooLong(b) {
			ok = false
			break
		}
		updates := isUpdate(b[2 : 2+n]) // which may take long, and what came before does not wait for it
		if cap(out)-len(out) < 2+roomSize || updates && len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return nil, false
			}
			_ = c.SetWriteDeadline(time.Now().Add(idleTimeout)) // who takes them has as long again for the next
			out = room[:0]
		}
		if t := s.transferOf(b[2:2+n], from, false); t != nil {
			s.counts.queries[by].Add(1)
			if t.run(c, out) != nil {
				return nil, false
			}
			out, b = room[:0], b[2+n:]
			continue
		}
		at := len(out)
		response := s.respond(out[at+2:cap(out)], b[2:2+n], from, by)
		if response == nil {
			ok = false // it does not speak DNS
			break
		}
		if updates {
			now := time.Now()
			_ = c.SetDeadline(now.Add(idleTimeout))
			c.place.Heard(now.Sub(s.began))
		}
		out = append(out[:at+2], response...) // in place, unless the response had no room
		binary.BigEndian.PutUint16(out[at:], uint16(len(response)))
		b = b[2+n:]
	}
	if len(out) > 0 {
		if _, err := c.Write(out); err != nil {
			return nil, false
		}
	}
	return b, ok
}
