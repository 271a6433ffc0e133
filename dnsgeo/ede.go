package dnsgeo

import (
	"encoding/binary"
	"strings"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/dnsgeo/zone"
)

// appendEDE appends an extended error (RFC 8914): why an answer is no better than it is. The text is for people, and may be empty;
// to a client that may be another it should be, for it makes responses longer.
func appendEDE(b []byte, code uint16, text string) []byte {
	b = binary.BigEndian.AppendUint16(b, dns.EDNS0EDE)
	b = binary.BigEndian.AppendUint16(b, uint16(2+len(text)))
	b = binary.BigEndian.AppendUint16(b, code)
	return append(b, text...)
}

// maxWhy is how many bytes of why an update is refused are told.
const maxWhy = 200

// appendWhy appends why an update is refused, if there is more to say than its rcode.
func appendWhy(b []byte, rcode int, why string) []byte {
	if why == "" {
		return b
	}
	code := uint16(dns.ExtendedErrorCodeOther)
	switch rcode {
	case dns.RcodeRefused:
		code = dns.ExtendedErrorCodeProhibited
	case dns.RcodeServerFailure:
		code = dns.ExtendedErrorCodeNoReachableAuthority
	}
	return appendEDE(b, code, strings.ToValidUTF8(why[:min(len(why), maxWhy)], ""))
}

// extendedError is the extended error of an answer to a query of a type and class; not ok: there is nothing to add to the rcode.
// Ready says whether there is a spec.
func extendedError(y *reply, typ, class uint16, ready bool) (code uint16, ok bool) {
	rcode := y.Rcode
	switch {
	case y.silence == zone.NotYet:
		return dns.ExtendedErrorCodeNotReady, true
	case y.silence == zone.Expired:
		return dns.ExtendedErrorCodeInvalidData, true // that of a zone that has expired, says RFC 8914 §4.25
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
