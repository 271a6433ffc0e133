package dnsgeo

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"

	"github.com/miekg/dns"
)

const (
	headerSize = 12

	// payloadSize is the largest datagram that is sent or asked for: what passes any path of the Internet
	// without fragments (DNS flag day 2020). A longer answer is cut, with TC, and fetched by TCP.
	payloadSize = 1232
)

// request is a query as it came: what of a message an authoritative server looks at.
type request struct {
	id     uint16
	opcode int
	rd     bool

	asked    bool // there is a question, which is to be repeated in the response
	question int  // where it ends in the message
	name     string
	typ      uint16
	class    uint16

	edns    bool
	version uint8
	size    int // of datagrams that the asker takes: 512 without EDNS
	do      bool
	nsid    bool // it asks who answers (RFC 5001)
	hasECS  bool
	family  uint16 // of ECS
	ecs     netip.Prefix
}

// parse reads a query. The response to it begins with rcode; drop says that there must be none: nobody is to
// answer a response, nor what has not even a header. What parse has understood of a bad query is in the request.
func parse(m []byte) (r request, rcode int, drop bool) {
	r.size = dns.MinMsgSize
	if len(m) < headerSize || m[2]&0x80 != 0 {
		return r, dns.RcodeFormatError, true
	}
	r.id = binary.BigEndian.Uint16(m)
	r.opcode = int(m[2]>>3) & 0xf
	r.rd = m[2]&1 != 0
	if r.opcode != dns.OpcodeQuery {
		return r, dns.RcodeNotImplemented, false
	}
	if binary.BigEndian.Uint16(m[4:]) != 1 { // RFC 9619
		return r, dns.RcodeFormatError, false
	}
	at := skipName(m, headerSize, false)
	if at < 0 || len(m) < at+4 {
		return r, dns.RcodeFormatError, false
	}
	name, _, err := dns.UnpackDomainName(m, headerSize)
	if err != nil {
		return r, dns.RcodeFormatError, false
	}
	r.name = dns.CanonicalName(name)
	r.typ, r.class = binary.BigEndian.Uint16(m[at:]), binary.BigEndian.Uint16(m[at+2:])
	at += 4
	r.asked, r.question = true, at

	others := int(binary.BigEndian.Uint16(m[6:])) + int(binary.BigEndian.Uint16(m[8:]))
	additional := int(binary.BigEndian.Uint16(m[10:]))
	for i := range others + additional {
		owner := at
		if at = skipName(m, at, true); at < 0 || len(m) < at+10 {
			return r, dns.RcodeFormatError, false
		}
		typ, fixed := binary.BigEndian.Uint16(m[at:]), m[at:at+10]
		data := at + 10
		at = data + int(binary.BigEndian.Uint16(fixed[8:]))
		if len(m) < at {
			return r, dns.RcodeFormatError, false
		}
		if typ != dns.TypeOPT {
			continue
		}
		if i < others || r.edns || m[owner] != 0 { // RFC 6891 §6.1.1
			return r, dns.RcodeFormatError, false
		}
		if !r.options(fixed, m[data:at]) {
			return r, dns.RcodeFormatError, false
		}
	}
	switch {
	case at != len(m):
		return r, dns.RcodeFormatError, false
	case r.edns && r.version != 0:
		return r, dns.RcodeBadVers, false
	case r.typ == dns.TypeMAILA || r.typ == dns.TypeMAILB:
		return r, dns.RcodeNotImplemented, false
	case r.typ == dns.TypeOPT || meta(r.typ) && !refused(r.typ) && r.typ != dns.TypeANY:
		return r, dns.RcodeFormatError, false
	}
	return r, dns.RcodeSuccess, false
}

// meta says whether a type names no data but something to be done (RFC 6895 §3.1).
func meta(t uint16) bool { return t >= 128 && t <= 255 }

// skipName returns where the name that begins at the offset ends, or −1. A question has nothing before it that a
// pointer could point to.
func skipName(m []byte, at int, pointers bool) int {
	for length := 1; at < len(m); {
		n := int(m[at])
		switch {
		case n == 0:
			return at + 1
		case n&0xc0 == 0xc0 && pointers:
			return at + 2
		case n&0xc0 != 0:
			return -1
		}
		at += 1 + n
		if length += 1 + n; length > 255 {
			return -1
		}
	}
	return -1
}

// options reads an OPT record, of which fixed is all between the owner and the data (RFC 6891 §6.1.2).
func (r *request) options(fixed, data []byte) bool {
	r.edns = true
	r.size = max(dns.MinMsgSize, int(binary.BigEndian.Uint16(fixed[2:])))
	r.version = fixed[5]
	r.do = fixed[6]&0x80 != 0
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
			r.nsid = true
		case dns.EDNS0SUBNET:
			if r.hasECS || !r.subnet(data[:n]) {
				return false
			}
		}
		data = data[n:]
	}
	return true
}

// subnet reads a client subnet, which must be written in the one way that RFC 7871 §6 allows.
func (r *request) subnet(data []byte) bool {
	if len(data) < 4 {
		return false
	}
	r.family = binary.BigEndian.Uint16(data)
	source, scope, given := int(data[2]), data[3], data[4:]
	var address [16]byte
	width := 0
	switch r.family {
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
	if r.family != 2 {
		addr = netip.AddrFrom4([4]byte(address[:4]))
	}
	r.ecs = netip.PrefixFrom(addr, source)
	r.hasECS = true
	return r.ecs == r.ecs.Masked() // no bits beyond the prefix
}

// pack makes the response to a query whose bytes are m, in room if it fits, of at most limit bytes.
func (r *request) pack(room, m []byte, a Answer, limit int, node string) (response []byte, truncated bool, err error) {
	out := dns.Msg{
		MsgHdr: dns.MsgHdr{
			Id: r.id, Response: true, Opcode: r.opcode, RecursionDesired: r.rd,
			Authoritative: a.Authoritative, Rcode: a.Rcode,
		},
		Answer: a.Answer, Ns: a.Authority, Extra: a.Additional,
		Compress: true,
	}
	if r.asked {
		out.Question = []dns.Question{{Name: r.name, Qtype: r.typ, Qclass: r.class}}
	}
	if r.edns {
		out.Extra = append(out.Extra, r.opt(a, node))
	}
	response, err = out.PackBuffer(room)
	if err == nil && len(response) > limit {
		if !a.Referral { // what is not asked for goes first, and nobody need come back for it
			out.Extra = out.Extra[len(a.Additional):]
		}
		out.Truncate(limit)
		out.Compress = true
		response, err = out.PackBuffer(room)
	}
	if err != nil {
		return nil, false, err
	}
	if r.asked {
		// The name as it was asked, letter case and all: resolvers check it. Owners of the answer point to it.
		copy(response[headerSize:r.question], m[headerSize:r.question])
	}
	return response, out.Truncated, nil
}

// opt is the OPT record of the response.
func (r *request) opt(a Answer, node string) *dns.OPT {
	opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	opt.SetUDPSize(payloadSize)
	opt.SetDo(r.do) // RFC 3225 §3
	if r.nsid && node != "" {
		opt.Option = append(opt.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID, Nsid: hex.EncodeToString([]byte(node))})
	}
	if r.hasECS && a.Rcode != dns.RcodeFormatError && a.Rcode != dns.RcodeBadVers {
		addr := r.ecs.Addr()
		opt.Option = append(opt.Option, &dns.EDNS0_SUBNET{
			Code: dns.EDNS0SUBNET, Family: r.family,
			SourceNetmask: uint8(r.ecs.Bits()), SourceScope: uint8(a.Scope), Address: addr.AsSlice(),
		})
	}
	return opt
}
