package dnsgeo

import (
	"encoding/binary"
	"net/netip"

	"github.com/miekg/dns"
)

const (
	// payloadSize is the largest datagram that is sent or asked for: what passes any path of the Internet
	// without fragments (DNS flag day 2020). A longer answer is cut, with TC, and fetched by TCP.
	payloadSize = 1232

	// maxOptions is how many bytes an OPT record of ours has at most: the longest name of a node, and a client subnet.
	maxOptions = 512
)

// edns is what the OPT record of a query says (RFC 6891), of those options that are known. Others are passed over.
type edns struct {
	has     bool
	version uint8
	size    int  // of datagrams that the asker takes: 512 without EDNS
	do      bool // it wants DNSSEC's records, which comes back as it is (RFC 3225 §3)

	nsid   bool // it asks who answers (RFC 5001)
	hasECS bool
	family uint16 // of ECS
	ecs    netip.Prefix

	cookie    []byte // as it came, nil if none did (RFC 7873)
	given     bool   // the response has one for it
	keepalive bool   // it asks for how long a connection may be silent (RFC 7828)
	padding   bool   // it may be answered with padding (RFC 7830)
}

// options reads an OPT record, of which fixed is all between the owner and the data (RFC 6891 §6.1.2).
func (e *edns) options(fixed, data []byte) bool {
	e.has = true
	e.size = max(dns.MinMsgSize, int(binary.BigEndian.Uint16(fixed[2:])))
	e.version = fixed[5]
	e.do = fixed[6]&0x80 != 0
	for len(data) > 0 {
		if len(data) < 4 {
			return false
		}
		code, n := binary.BigEndian.Uint16(data), int(binary.BigEndian.Uint16(data[2:]))
		if data = data[4:]; len(data) < n {
			return false
		}
		switch code {
		case dns.EDNS0NSID:
			e.nsid = true
		case dns.EDNS0COOKIE:
			if !validCookie(data[:n]) {
				return false
			}
			if e.cookie == nil { // of several the first counts (RFC 7873 §5.2)
				e.cookie = data[:n:n]
			}
		case dns.EDNS0TCPKEEPALIVE:
			e.keepalive = true
		case dns.EDNS0PADDING:
			e.padding = true
		case dns.EDNS0SUBNET:
			if e.hasECS || !e.subnet(data[:n]) {
				return false
			}
		}
		data = data[n:]
	}
	return true
}

// subnet reads a client subnet, which must be written in the one way that RFC 7871 §6 allows.
func (e *edns) subnet(data []byte) bool {
	if len(data) < 4 {
		return false
	}
	e.family = binary.BigEndian.Uint16(data)
	source, scope, given := int(data[2]), data[3], data[4:]
	var address [16]byte
	width := 0
	switch e.family {
	case 0:
		// Of no family, without an address: what some clients send to say that theirs is not to be used.
	case 1:
		width = 32
	case 2:
		width = 128
	default:
		return false
	}
	if source > width || scope != 0 || len(given) != (source+7)/8 {
		return false
	}
	copy(address[:], given)
	addr := netip.AddrFrom16(address)
	if e.family != 2 {
		addr = netip.AddrFrom4([4]byte(address[:4]))
	}
	e.ecs = netip.PrefixFrom(addr, source)
	e.hasECS = true
	return e.ecs == e.ecs.Masked() // no bits beyond the prefix
}

// appendOPT appends the OPT record of the response, if there is to be one: that of a query that had one. An option is known here, where
// it is written, and in options, where it is read.
func (e *edns) appendOPT(out []byte, y *reply, node string) []byte {
	if !e.has {
		return out
	}
	flags := byte(0)
	if e.do {
		flags = 0x80
	}
	out = append(out, 0, 0, byte(dns.TypeOPT), payloadSize>>8, payloadSize&0xff, byte(y.Rcode>>4), 0, flags, 0, 0, 0)
	begin := len(out)
	if e.nsid && node != "" {
		out = appendOption(out, dns.EDNS0NSID, node)
	}
	if e.hasECS && y.Rcode != dns.RcodeFormatError && y.Rcode != dns.RcodeBadVers {
		// The address as it came: as many octets as its bits take.
		width := (e.ecs.Bits() + 7) / 8
		address := e.ecs.Addr().As16()
		from := address[:width]
		if e.ecs.Addr().Is4() {
			from = address[12 : 12+width]
		}
		out = binary.BigEndian.AppendUint16(out, dns.EDNS0SUBNET)
		out = binary.BigEndian.AppendUint16(out, uint16(4+width))
		out = binary.BigEndian.AppendUint16(out, e.family)
		out = append(out, byte(e.ecs.Bits()), byte(y.Scope))
		out = append(out, from...)
	}
	binary.BigEndian.PutUint16(out[begin-2:], uint16(len(out)-begin))
	return out
}

func appendOption(out []byte, code uint16, data string) []byte {
	out = binary.BigEndian.AppendUint16(out, code)
	out = binary.BigEndian.AppendUint16(out, uint16(len(data)))
	return append(out, data...)
}
