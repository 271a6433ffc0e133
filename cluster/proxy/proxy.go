// Package proxy writes what is said before the bytes of a connection, or of a datagram: from whom it is (PROXY protocol version 2). Reading it is the
// front door's.
package proxy

import (
	"net"
	"net/netip"

	"github.com/pires/go-proxyproto"
)

// Header is that of a TCP connection carried for a client, who connected to an address. Where the two are of different families both are
// told as IPv6. Who has no client, a health check for example, passes a zero one: the header says that the connection is for itself
// (LOCAL).
func Header(client, to netip.AddrPort) []byte {
	h := &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
	if client.IsValid() && to.IsValid() {
		h = proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(client), net.TCPAddrFromAddrPort(to))
	}
	return format(h)
}

// DatagramHeader is that of a datagram of a client, who sent it to an address; else as Header.
func DatagramHeader(client, to netip.AddrPort) []byte {
	if !client.IsValid() || !to.IsValid() {
		return Header(client, to)
	}
	return format(proxyproto.HeaderProxyFromAddrs(2, net.UDPAddrFromAddrPort(client), net.UDPAddrFromAddrPort(to)))
}

func format(h *proxyproto.Header) []byte {
	b, err := h.Format()
	if err != nil {
		panic(err) // addresses can be written
	}
	return b
}
