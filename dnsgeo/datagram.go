package dnsgeo

import (
	"net"
	"runtime"
)

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
		if response := s.respond(room, query[:n], from, UDP); response != nil {
			if err := p.write(response); err != nil {
				s.counts.unsent.Add(1) // one asker's trouble: no route, a full buffer
			}
		}
	}
}
