package stray

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Flow is a TCP connection, by its four names. The addresses are unmapped and have no zone.
type Flow struct {
	Client, Server netip.AddrPort
}

func (f Flow) String() string { return f.Client.String() + " to " + f.Server.String() }

// The flags of TCP that matter here (RFC 9293, section 3.1; CWR: RFC 3168).
const (
	flagFIN = 0x01
	flagSYN = 0x02
	flagPSH = 0x08
	flagACK = 0x10
	flagURG = 0x20
	flagCWR = 0x80
)

// The protocols within IP that matter here, and what ICMP says of a packet that was too big: for IPv4 that it had to be cut and must not be (RFC 792, type 3, code 4),
// for IPv6 its own type (RFC 4443).
const (
	protocolICMP  = 1
	protocolTCP   = 6
	protocolICMP6 = 58
	unreachable4  = 3
	mustBeCut4    = 4
	tooBig6       = 2
)

// quoteAt is where an ICMP message quotes the packet of which it tells, which is as much of it as there is room for; quoted is what there must be of its TCP: the ports and the number by which
// the kernel knows that it has sent it.
const (
	quoteAt = 8
	quoted  = 8
)

var errSegment = errors.New("no segment of an established flow")

// segment is a packet of IP that was looked at.
type segment struct {
	flow   Flow
	raw    []byte // without what follows the packet, as the padding of a short Ethernet frame
	tcp    int    // where the header of TCP begins, or of ICMP
	data   int    // where the data do, or what is quoted
	tooBig bool   // it is no segment, but says that one of the flow was too big
}

// parse looks at a packet of IPv4 or IPv6: it must be one whole TCP segment without SYN, right behind the IP header, or an ICMP message to who has sent one that that was too big, and its
// checksums must be right, since they are not looked at again by who makes others of it. What is said of the packet is said of the same bytes.
func parse(b []byte) (s segment, err error) {
	if len(b) < 1 {
		return s, fmt.Errorf("%w: no byte", errSegment)
	}
	var client, server netip.Addr
	switch b[0] >> 4 {
	case 4:
		if len(b) < 20 {
			return s, fmt.Errorf("%w: %d bytes", errSegment, len(b))
		}
		s.tcp = int(b[0]&0x0f) * 4
		length := int(binary.BigEndian.Uint16(b[2:]))
		switch {
		case s.tcp < 20 || length < s.tcp || length > len(b):
			return s, fmt.Errorf("%w: lengths do not fit", errSegment)
		case binary.BigEndian.Uint16(b[6:])&0x3fff != 0:
			return s, fmt.Errorf("%w: a fragment", errSegment)
		case b[9] != protocolTCP && b[9] != protocolICMP:
			return s, fmt.Errorf("%w: protocol %d", errSegment, b[9])
		case ^fold(sum(0, b[:s.tcp])) != 0:
			return s, fmt.Errorf("%w: the header's checksum is wrong", errSegment)
		}
		b, s.tooBig = b[:length], b[9] == protocolICMP
		client, server = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	case 6:
		if len(b) < 40 {
			return s, fmt.Errorf("%w: %d bytes", errSegment, len(b))
		}
		s.tcp = 40
		length := 40 + int(binary.BigEndian.Uint16(b[4:]))
		switch {
		case length > len(b):
			return s, fmt.Errorf("%w: lengths do not fit", errSegment)
		case b[6] != protocolTCP && b[6] != protocolICMP6:
			return s, fmt.Errorf("%w: next header %d", errSegment, b[6])
		}
		b, s.tooBig = b[:length], b[6] == protocolICMP6
		client, server = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		if client.Is4In6() || server.Is4In6() {
			return s, fmt.Errorf("%w: a mapped address", errSegment)
		}
	default:
		return s, fmt.Errorf("%w: IP version %d", errSegment, b[0]>>4)
	}
	if s.tooBig {
		s.raw, s.data = b, s.tcp+quoteAt
		s.flow, err = s.quotes(server)
		return s, err
	}
	t := b[s.tcp:]
	if len(t) < 20 {
		return s, fmt.Errorf("%w: %d bytes of TCP", errSegment, len(t))
	}
	header := int(t[12]>>4) * 4
	switch {
	case header < 20 || header > len(t):
		return s, fmt.Errorf("%w: lengths do not fit", errSegment)
	case t[13]&flagSYN != 0:
		return s, fmt.Errorf("%w: SYN", errSegment)
	case ^fold(sum(pseudo(b, len(t)), t)) != 0:
		return s, fmt.Errorf("%w: the checksum is wrong", errSegment)
	}
	s.raw, s.data = b, s.tcp+header
	s.flow = Flow{netip.AddrPortFrom(client, binary.BigEndian.Uint16(t)), netip.AddrPortFrom(server, binary.BigEndian.Uint16(t[2:]))}
	return s, nil
}

// quotes looks at an ICMP message to server, and says to which flow the packet belongs of which it tells.
func (s segment) quotes(server netip.Addr) (f Flow, err error) {
	if len(s.raw) < s.data {
		return f, fmt.Errorf("%w: %d bytes of ICMP", errSegment, len(s.raw)-s.tcp)
	}
	t, q := s.raw[s.tcp:], s.raw[s.data:]
	four := server.Is4()
	switch {
	case four && (t[0] != unreachable4 || t[1] != mustBeCut4), !four && t[0] != tooBig6:
		return f, fmt.Errorf("%w: ICMP of type %d, code %d", errSegment, t[0], t[1])
	case ^fold(sum(s.icmpPseudo(), t)) != 0:
		return f, fmt.Errorf("%w: the checksum of ICMP is wrong", errSegment)
	}
	var from, to netip.Addr
	header := 40
	switch {
	case four && len(q) >= 20 && q[0]>>4 == 4:
		header = int(q[0]&0x0f) * 4
		if header < 20 || q[9] != protocolTCP || binary.BigEndian.Uint16(q[6:])&0x1fff != 0 {
			return f, fmt.Errorf("%w: ICMP of a packet that begins no segment", errSegment)
		}
		from, to = netip.AddrFrom4([4]byte(q[12:])), netip.AddrFrom4([4]byte(q[16:]))
	case !four && len(q) >= 40 && q[0]>>4 == 6:
		if q[6] != protocolTCP {
			return f, fmt.Errorf("%w: ICMP of a packet with next header %d", errSegment, q[6])
		}
		from, to = netip.AddrFrom16([16]byte(q[8:])), netip.AddrFrom16([16]byte(q[24:]))
	default:
		return f, fmt.Errorf("%w: ICMP of no packet", errSegment)
	}
	switch {
	case len(q) < header+quoted:
		return f, fmt.Errorf("%w: ICMP of %d bytes", errSegment, len(q))
	case from != server || to.Is4In6():
		return f, fmt.Errorf("%w: ICMP to %v of a packet from %v to %v", errSegment, server, from, to)
	}
	q = q[header:]
	return Flow{netip.AddrPortFrom(to, binary.BigEndian.Uint16(q[2:])), netip.AddrPortFrom(from, binary.BigEndian.Uint16(q))}, nil
}

// icmpPseudo is what the checksum of an ICMP message begins with: of IPv6's the pseudo-header.
func (s segment) icmpPseudo() uint64 {
	if s.raw[0]>>4 == 4 {
		return 0
	}
	return sum(protocolICMP6+uint64(len(s.raw)-s.tcp), s.raw[8:40])
}

// cutQuote makes a message of at most most bytes of an ICMP message: it quotes less.
func (s segment) cutQuote(most int) []byte {
	s.raw = append(make([]byte, 0, most), s.raw[:most]...)
	if s.raw[0]>>4 == 4 {
		binary.BigEndian.PutUint16(s.raw[2:], uint16(most))
		s.raw[10], s.raw[11] = 0, 0
		binary.BigEndian.PutUint16(s.raw[10:], ^fold(sum(0, s.raw[:s.tcp])))
		s.raw[s.tcp+5] = 0 // nor does what was quoted end anywhere (RFC 4884)
	} else {
		binary.BigEndian.PutUint16(s.raw[4:], uint16(most-40))
	}
	t := s.raw[s.tcp:]
	t[2], t[3] = 0, 0
	binary.BigEndian.PutUint16(t[2:], ^fold(sum(s.icmpPseudo(), t)))
	return s.raw
}

// cut makes segments of at most most bytes of one, headers included, as a network card would: so each fits in a frame of the backbone. One with urgent data, or with
// headers that leave no room, stays whole. The first is the segment itself, and holds its bytes, if that is short enough.
// Of an ICMP message it makes one that quotes less.
func (s segment) cut(most int) [][]byte {
	if s.tooBig && len(s.raw) > most && most >= s.data+60+quoted { // whatever the headers that it quotes
		return [][]byte{s.cutQuote(most)}
	}
	room := most - s.data
	if s.tooBig || len(s.raw) <= most || room < 1 || s.raw[s.tcp+13]&flagURG != 0 {
		return [][]byte{s.raw}
	}
	data := s.raw[s.data:]
	all := make([][]byte, 0, (len(data)+room-1)/room)
	for at := 0; at < len(data); at += room {
		part := data[at:min(at+room, len(data))]
		b := append(append(make([]byte, 0, s.data+len(part)), s.raw[:s.data]...), part...)
		t := b[s.tcp:]
		binary.BigEndian.PutUint32(t[4:], binary.BigEndian.Uint32(t[4:])+uint32(at))
		if at > 0 {
			t[13] &^= flagCWR
		}
		if at+room < len(data) {
			t[13] &^= flagFIN | flagPSH
		}
		if b[0]>>4 == 4 {
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
			binary.BigEndian.PutUint16(b[4:], binary.BigEndian.Uint16(b[4:])+uint16(len(all)))
			b[10], b[11] = 0, 0
			binary.BigEndian.PutUint16(b[10:], ^fold(sum(0, b[:s.tcp])))
		} else {
			binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		}
		t[16], t[17] = 0, 0
		binary.BigEndian.PutUint16(t[16:], ^fold(sum(pseudo(b, len(t)), t)))
		all = append(all, b)
	}
	return all
}

// pseudo is the sum of the pseudo-header of a packet whose TCP has length bytes (RFC 9293, section 3.1; RFC 8200, section 8.1).
func pseudo(b []byte, length int) uint64 {
	addresses := b[12:20]
	if b[0]>>4 == 6 {
		addresses = b[8:40]
	}
	return sum(protocolTCP+uint64(length), addresses)
}

// sum adds the 16-bit words of b to a sum (RFC 1071); fold makes a checksum of it, but for the complement.
func sum(s uint64, b []byte) uint64 {
	for ; len(b) >= 4; b = b[4:] {
		s += uint64(binary.BigEndian.Uint32(b))
	}
	if len(b) >= 2 {
		s += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	return s
}

func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
