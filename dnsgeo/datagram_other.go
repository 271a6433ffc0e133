//go:build !linux

package dnsgeo

import (
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// batches is nil: here one datagram is read and written at a time.
func (s *Server) batches(net.PacketConn) func() error { return nil }

func packetsOf(conn net.PacketConn) packets {
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return &anyPackets{conn: conn}
	}
	local, _ := udp.LocalAddr().(*net.UDPAddr)
	if local == nil || !local.IP.IsUnspecified() {
		return &udpPackets{conn: udp}
	}
	// A socket of all addresses would answer from the address of the route back, which need not be the one that was
	// asked: an anycast address is never the first of a machine. So the kernel is made to tell which it was.
	err6 := ipv6.NewPacketConn(udp).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
	err4 := ipv4.NewPacketConn(udp).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
	return &udpPackets{conn: udp, told: err4 == nil || err6 == nil}
}

// udpPackets is a socket of the kernel.
type udpPackets struct {
	conn *net.UDPConn
	from netip.AddrPort
	told bool      // control messages tell which address was asked
	oob  [128]byte // of them: room for those of both families
	n    int       // what is in it
}

func (p *udpPackets) clone() packets { return &udpPackets{conn: p.conn, told: p.told} }

func (p *udpPackets) read(query []byte) (n int, from netip.Addr, err error) {
	if p.told {
		n, p.n, _, p.from, err = p.conn.ReadMsgUDPAddrPort(query, p.oob[:])
	} else {
		n, p.from, err = p.conn.ReadFromUDPAddrPort(query)
	}
	return n, p.from.Addr().Unmap(), err
}

func (p *udpPackets) write(response []byte) error {
	if !p.told {
		_, err := p.conn.WriteToUDPAddrPort(response, p.from)
		return err
	}
	_, _, err := p.conn.WriteMsgUDPAddrPort(response, source(p.oob[:p.n]), p.from)
	return err
}

func (p *udpPackets) later() func(response []byte) error {
	one := *p
	return one.write
}

// source is the control message that sends from the address to which another one says a datagram came.
func source(oob []byte) []byte {
	var six ipv6.ControlMessage
	if six.Parse(oob) == nil && six.Dst != nil && six.Dst.To4() == nil {
		return (&ipv6.ControlMessage{Src: six.Dst}).Marshal()
	}
	dst := six.Dst
	var four ipv4.ControlMessage
	if dst == nil && four.Parse(oob) == nil {
		dst = four.Dst
	}
	if dst == nil {
		return nil
	}
	return (&ipv4.ControlMessage{Src: dst}).Marshal()
}
