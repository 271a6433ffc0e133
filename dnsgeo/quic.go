package dnsgeo

import (
	"crypto/tls"
	"net"
	"net/netip"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/dnsgeo/doq"
)

// ServeQUIC answers by QUIC (RFC 9250) until the server is closed or the socket fails. It closes the socket. The configuration says
// which certificate is shown, and "doq" for ALPN; the keys are doq.Config's.
func (s *Server) ServeQUIC(packets net.PacketConn, config *tls.Config, token, reset [32]byte) error {
	d, err := doq.Open(doq.Config{
		Packets: packets, TLS: config, TokenKey: token, ResetKey: reset, MaxQuery: maxQuerySize, Once: once,
		Answer: func(room, query []byte, from netip.Addr) []byte { return s.respond(room, query, from, QUIC) },
	})
	if err != nil {
		return err
	}
	if !s.start(d, 0, nil) {
		return net.ErrClosed
	}
	s.mu.Lock()
	s.quics = append(s.quics, d)
	s.mu.Unlock()
	defer s.release(d)
	return s.unlessClosed(d.Serve())
}

// once says that to answer a message twice is to do something twice: what is no query and no NOTIFY changes something, and a transfer
// costs too much (RFC 9250 §4.5). The message has a header.
func once(m []byte) bool {
	switch opcode := int(m[2]>>3) & 0xf; opcode {
	case dns.OpcodeNotify:
		return false
	case dns.OpcodeQuery:
		return isTransfer(m)
	}
	return true
}
