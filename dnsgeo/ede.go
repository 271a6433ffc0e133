package dnsgeo

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// appendEDE appends an extended error (RFC 8914): why an answer is no better than it is. The text is for people, and may be empty;
// to a client that may be another it should be, for it makes responses longer.
func appendEDE(b []byte, code uint16, text string) []byte {
	b = binary.BigEndian.AppendUint16(b, dns.EDNS0EDE)
	b = binary.BigEndian.AppendUint16(b, uint16(2+len(text)))
	b = binary.BigEndian.AppendUint16(b, code)
	return append(b, text...)
}

// extendedError is the extended error of an answer to a query of a type and class; not ok: there is nothing to add to the rcode.
// Ready says whether there is a spec.
func extendedError(rcode int, typ, class uint16, ready bool) (code uint16, ok bool) {
	switch {
	case rcode == dns.RcodeServerFailure:
		return dns.ExtendedErrorCodeNoReachableAuthority, true // an alias leads to nobody who is alive
	case rcode != dns.RcodeRefused:
		return 0, false
	case !ready:
		return dns.ExtendedErrorCodeNotReady, true
	case refused(typ):
		return dns.ExtendedErrorCodeProhibited, true
	case class != dns.ClassINET:
		return dns.ExtendedErrorCodeNotSupported, true
	}
	return dns.ExtendedErrorCodeNotAuthoritative, true // no zone of ours
}
