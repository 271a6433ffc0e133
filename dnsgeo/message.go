package dnsgeo

import (
	"encoding/binary"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/dnsgeo/tsig"
)

const headerSize = 12

// request is a query or an update as it came: what of a message an authoritative server looks at first.
type request struct {
	id     uint16
	opcode int
	rd     bool

	asked    bool // there is a question, which is to be repeated in the response
	question int  // where it ends in the message; the name begins it. headerSize: there is none that is to be repeated
	typ      uint16
	class    uint16
	signed   bool      // there is a TSIG record, if only one that is out of place
	key      *tsig.Key // by which it is rightly signed; nil: by none
	why      string    // of an update: why it is refused, to people

	edns
}

// parse reads a query. The response to it begins with rcode; drop says that there must be none: nobody is to
// answer a response, nor what has not even a header. What parse has understood of a bad query is in the request.
func parse(m []byte) (r request, rcode int, drop bool) {
	if r, rcode, drop = read(m); drop || r.opcode == dns.OpcodeQuery || r.opcode == dns.OpcodeNotify || r.opcode == dns.OpcodeUpdate {
		return r, rcode, drop
	}
	// What else there may be in it nobody knows; that it has an OPT record is answered by one (RFC 6891 §6.1.1).
	unknown := request{id: r.id, opcode: r.opcode, rd: r.rd, question: headerSize, edns: r.edns}
	return unknown, dns.RcodeNotImplemented, false
}

// read is parse of a message that has one of the opcodes that are implemented.
func read(m []byte) (r request, rcode int, drop bool) {
	r.size, r.question = dns.MinMsgSize, headerSize
	if len(m) < headerSize || m[2]&0x80 != 0 {
		return r, dns.RcodeFormatError, true
	}
	r.id = binary.BigEndian.Uint16(m)
	r.opcode = int(m[2]>>3) & 0xf
	r.rd = m[2]&1 != 0
	at := headerSize
	switch binary.BigEndian.Uint16(m[4:]) {
	case 0: // it asks for a cookie, or nothing (RFC 7873 §5.4)
	case 1:
		if at = tsig.SkipName(m, at, false); at < 0 || len(m) < at+4 {
			return r, dns.RcodeFormatError, false
		}
		r.typ, r.class = binary.BigEndian.Uint16(m[at:]), binary.BigEndian.Uint16(m[at+2:])
		at += 4
		r.asked, r.question = true, at
	default: // RFC 9619
		return r, dns.RcodeFormatError, false
	}

	others := int(binary.BigEndian.Uint16(m[6:])) + int(binary.BigEndian.Uint16(m[8:]))
	additional := int(binary.BigEndian.Uint16(m[10:]))
	for i := range others + additional {
		owner := at
		if at = tsig.SkipName(m, at, true); at < 0 || len(m) < at+10 {
			return r, dns.RcodeFormatError, false
		}
		typ, fixed := binary.BigEndian.Uint16(m[at:]), m[at:at+10]
		data := at + 10
		at = data + int(binary.BigEndian.Uint16(fixed[8:]))
		if len(m) < at {
			return r, dns.RcodeFormatError, false
		}
		if typ != dns.TypeOPT {
			r.signed = r.signed || typ == dns.TypeTSIG
			continue
		}
		if i < others || r.has || m[owner] != 0 { // RFC 6891 §6.1.1
			return r, dns.RcodeFormatError, false
		}
		if !r.options(fixed, m[data:at]) {
			return r, dns.RcodeFormatError, false
		}
	}
	switch {
	case r.opcode == dns.OpcodeNotify && (!r.asked || r.typ != dns.TypeSOA): // RFC 1996 §3.7
		return r, dns.RcodeFormatError, false
	case at != len(m) || !r.asked && r.cookie == nil:
		return r, dns.RcodeFormatError, false
	case r.has && r.version != 0:
		return r, dns.RcodeBadVers, false
	case r.opcode == dns.OpcodeUpdate:
		if r.typ != dns.TypeSOA { // the question is the zone section (RFC 2136 §2.3)
			return r, dns.RcodeFormatError, false
		}
	case r.typ == dns.TypeMAILA || r.typ == dns.TypeMAILB:
		return r, dns.RcodeNotImplemented, false
	case r.typ == dns.TypeOPT || meta(r.typ) && !refused(r.typ) && r.typ != dns.TypeANY:
		return r, dns.RcodeFormatError, false
	}
	return r, dns.RcodeSuccess, false
}

// meta says whether a type names no data but something to be done (RFC 6895 §3.1).
func meta(t uint16) bool { return t >= 128 && t <= 255 }
