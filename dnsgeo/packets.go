package dnsgeo

import (
	"net"
	"net/netip"
)

// packets is a datagram socket as one goroutine uses it: read a query, write the response to it.
type packets interface {
	read(query []byte) (n int, from netip.Addr, err error)
	// write sends the response to the query that was read last, from the address that it was sent to.
	write(response []byte) error
	// later is to write the response to that query when others have been read.
	later() func(response []byte) error
	// clone is for another goroutine.
	clone() packets
}

// anyPackets is a socket that is not the kernel's.
type anyPackets struct {
	conn net.PacketConn
	from net.Addr
}

func (p *anyPackets) clone() packets { return &anyPackets{conn: p.conn} }

func (p *anyPackets) read(query []byte) (n int, from netip.Addr, err error) {
	if n, p.from, err = p.conn.ReadFrom(query); err != nil {
		return 0, netip.Addr{}, err
	}
	return n, addrOf(p.from), nil
}

func (p *anyPackets) write(response []byte) error {
	_, err := p.conn.WriteTo(response, p.from)
	return err
}

func (p *anyPackets) later() func(response []byte) error {
	one := &anyPackets{p.conn, p.from}
	return one.write
}
