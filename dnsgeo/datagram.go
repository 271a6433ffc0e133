package dnsgeo

import (
	"net"
	"runtime"
)

// ServePacket answers datagrams until the server is closed or the socket fails. It closes the socket. One
// goroutine for each processor reads, decides and writes, so queries wait in the socket, whose buffer is
// the bound: at it the kernel drops them, as resolvers expect of a busy server.
func (s *Server) ServePacket(conn net.PacketConn) error {
	return s.servePackets(conn, runtime.GOMAXPROCS(0))
}

// ServePackets is ServePacket of several sockets of one address, among which the kernel spreads the askers: each is served by
// one goroutine, so that no two wait for each other at a socket. It ends when one fails, with all of them.
func (s *Server) ServePackets(conns []net.PacketConn) error {
	if len(conns) == 1 {
		return s.ServePacket(conns[0])
	}
	failed := make(chan error, len(conns))
	for _, conn := range conns {
		go func() { failed <- s.servePackets(conn, 1) }()
	}
	err := <-failed
	for _, conn := range conns {
		s.release(conn)
	}
	for range len(conns) - 1 {
		<-failed
	}
	return err
}

func (s *Server) servePackets(conn net.PacketConn, n int) error {
	serve := s.batches(conn)
	if serve == nil {
		packets := packetsOf(conn)
		serve = func() error { return s.serveEach(packets.clone()) }
	}
	failed := make(chan error, n)
	if !s.start(conn, n, func() { failed <- serve() }) {
		return net.ErrClosed
	}
	err := <-failed
	s.release(conn) // what fails one fails all
	for range n - 1 {
		<-failed
	}
	return s.unlessClosed(err)
}

// serveEach answers one datagram after the other.
func (s *Server) serveEach(p packets) error {
	d := s.newDesk()
	d.asker.recents = new(recents)
	query, room := make([]byte, maxQuerySize), make([]byte, payloadSize)
	for {
		n, from, err := p.read(query)
		if err != nil {
			return err
		}
		response := d.respond(room, query[:n], from, UDP)
		if u := d.takeUpdate(); u != nil {
			s.finishLater(u, p.later())
		} else if response != nil {
			if err := p.write(response); err != nil {
				s.counts.unsent.Add(1) // one asker's trouble: no route, a full buffer
			}
		}
	}
}
