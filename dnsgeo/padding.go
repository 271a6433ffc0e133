package dnsgeo

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// paddingBlock is the multiple that the length of padded responses has, which hides most of what lengths tell (RFC 8467 §4.1).
const paddingBlock = 468

// optionHead is the code and the length before the data of an option.
const optionHead = 4

// appendPadding appends the option that makes a message of size bytes one of a multiple of paddingBlock, or of limit if that
// is less (RFC 7830). Where there is no room for it, it is left out.
func appendPadding(b []byte, size, limit int) []byte {
	size += optionHead
	padded := min((size+paddingBlock-1)/paddingBlock*paddingBlock, limit)
	if size > limit {
		return b
	}
	b = binary.BigEndian.AppendUint16(b, dns.EDNS0PADDING)
	b = binary.BigEndian.AppendUint16(b, uint16(padded-size))
	return append(b, make([]byte, padded-size)...)
}

// appendKeepalive appends how long a connection may be silent (RFC 7828), in units of 100 ms.
func appendKeepalive(b []byte) []byte {
	b = append(b, 0, dns.EDNS0TCPKEEPALIVE, 0, 2)
	return binary.BigEndian.AppendUint16(b, uint16(idleTimeout.Milliseconds()/100))
}
