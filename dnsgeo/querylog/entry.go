package querylog

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"time"

	"github.com/miekg/dns"
)

// MaxAnswers is how many records of an answer JSON has at most; it says how many there were.
const MaxAnswers = 16

// Entry is one query, and what was answered. What is bytes is only looked at.
type Entry struct {
	Time time.Time
	// Zone is the name of the hosted zone, which is its ID, too.
	Zone string
	// Name is what was asked, in wire form, in the letter case that it came in.
	Name  []byte
	Type  uint16
	Rcode int
	// Proto is udp, tcp, tls, https or quic; it is written in capitals.
	Proto string
	// POP is Route 53's edge location.
	POP string
	// Resolver is who asked; invalid if it has no address.
	Resolver netip.Addr
	// Subnet is the client's, if the resolver told it; else invalid.
	Subnet netip.Prefix

	// What follows is in JSON only.
	Node     string
	Revision uint64
	Scope    int           // leading bits of the client's network that the answer depends on
	Policies uint16        // that took part, a bit each, by Names' order
	Names    []string      // of the policies
	Rate     float64       // of how many queries one was written: 1, of each
	Took     time.Duration // from when the query was read
	Size     int           // bytes of the response; 0: it was held back
	Cut      bool          // TC
	Count    int           // records in the answer section
	// Answer is the i-th of them, for i below Count.
	Answer func(i int) (typ uint16, ttl uint32, data []byte)
}

// version is that of Route 53's lines, which these are like.
const version = "1.0"

const timeForm = "2006-01-02T15:04:05.000Z"

// AppendRoute53 appends the line that Route 53 would write: version, time, zone, name, type, rcode, protocol, edge location, resolver
// and client subnet, by spaces apart, "-" where there is nothing.
func (e *Entry) AppendRoute53(b []byte) []byte {
	b = append(b, version+" "...)
	b = e.Time.UTC().AppendFormat(b, timeForm)
	b = append(b, ' ')
	b = append(b, e.Zone...)
	b = append(b, ' ')
	b = appendName(b, e.Name, false)
	b = append(b, ' ')
	b = appendType(b, e.Type)
	b = append(b, ' ')
	b = appendRcode(b, e.Rcode)
	b = append(b, ' ')
	b = appendUpper(b, e.Proto)
	b = append(b, ' ')
	b = append(b, e.POP...)
	b = append(b, ' ')
	if e.Resolver.IsValid() {
		b = e.Resolver.AppendTo(b)
	} else {
		b = append(b, '-')
	}
	b = append(b, ' ')
	if e.Subnet.IsValid() {
		b = e.Subnet.AppendTo(b)
	} else {
		b = append(b, '-')
	}
	return append(b, '\n')
}

// AppendJSON appends an object and a newline.
func (e *Entry) AppendJSON(b []byte) []byte {
	b = append(b, `{"version":"`+version+`","time":"`...)
	b = e.Time.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	b = append(b, '"')
	b = appendField(b, "zone", e.Zone)
	b = append(b, `,"name":"`...)
	b = appendName(b, e.Name, true)
	b = append(b, `","type":"`...)
	b = appendType(b, e.Type)
	b = append(b, `","rcode":"`...)
	b = appendRcode(b, e.Rcode)
	b = append(b, `","proto":"`...)
	b = appendUpper(b, e.Proto)
	b = append(b, '"')
	b = appendField(b, "pop", e.POP)
	b = appendField(b, "node", e.Node)
	if e.Resolver.IsValid() {
		b = append(b, `,"resolver":"`...)
		b = e.Resolver.AppendTo(b)
		b = append(b, '"')
	}
	if e.Subnet.IsValid() {
		b = append(b, `,"subnet":"`...)
		b = e.Subnet.AppendTo(b)
		b = append(b, '"')
	}
	b = appendNumber(b, "scope", int64(e.Scope))
	b = append(b, `,"policies":[`...)
	first := true
	for i, name := range e.Names {
		if e.Policies&(1<<i) == 0 {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(b, '"')
		b = append(b, name...)
		b = append(b, '"')
	}
	b = append(b, `],"answers":[`...)
	for i := range min(e.Count, MaxAnswers) {
		if i > 0 {
			b = append(b, ',')
		}
		typ, ttl, data := e.Answer(i)
		b = append(b, `{"type":"`...)
		b = appendType(b, typ)
		b = append(b, `","ttl":`...)
		b = strconv.AppendUint(b, uint64(ttl), 10)
		b = append(b, `,"data":"`...)
		b = appendData(b, typ, data)
		b = append(b, `"}`...)
	}
	b = append(b, ']')
	b = appendNumber(b, "count", int64(e.Count))
	b = appendNumber(b, "bytes", int64(e.Size))
	b = append(b, `,"truncated":`...)
	b = strconv.AppendBool(b, e.Cut)
	b = appendNumber(b, "revision", int64(e.Revision))
	b = append(b, `,"sampleRate":`...)
	b = strconv.AppendFloat(b, e.Rate, 'g', -1, 64)
	b = append(b, `,"microseconds":`...)
	b = strconv.AppendFloat(b, float64(e.Took.Nanoseconds())/1000, 'f', 1, 64)
	return append(b, '}', '\n')
}

// appendField appends a text that needs no escape: names of zones, POPs and nodes are letters, digits, hyphens, dots and underscores, or
// a backslash and digits.
func appendField(b []byte, name, value string) []byte {
	b = append(b, `,"`...)
	b = append(b, name...)
	b = append(b, `":"`...)
	for i := range len(value) {
		if value[i] == '\\' || value[i] == '"' {
			b = append(b, '\\')
		}
		b = append(b, value[i])
	}
	return append(b, '"')
}

func appendNumber(b []byte, name string, value int64) []byte {
	b = append(b, `,"`...)
	b = append(b, name...)
	b = append(b, `":`...)
	return strconv.AppendInt(b, value, 10)
}

func appendUpper(b []byte, text string) []byte {
	for i := range len(text) {
		c := text[i]
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		b = append(b, c)
	}
	return b
}

func appendType(b []byte, t uint16) []byte {
	if name, known := dns.TypeToString[t]; known {
		return append(b, name...)
	}
	return strconv.AppendUint(append(b, "TYPE"...), uint64(t), 10) // RFC 3597 §5
}

func appendRcode(b []byte, rcode int) []byte {
	if name, known := dns.RcodeToString[rcode]; known {
		return append(b, name...)
	}
	return strconv.AppendInt(append(b, "RCODE"...), int64(rcode), 10)
}

// appendName appends a name in wire form as text, without the last dot, as Route 53 does. What could end a field, a line or a text of
// JSON is written by its number (RFC 4343 §2.1); there a backslash is two.
func appendName(b, wire []byte, json bool) []byte {
	if len(wire) < 2 || wire[0] == 0 {
		return append(b, '.')
	}
	for at := 0; at < len(wire) && wire[at] != 0; {
		if at > 0 {
			b = append(b, '.')
		}
		end := min(at+1+int(wire[at]), len(wire))
		for _, c := range wire[at+1 : end] {
			b = appendOctet(b, c, json)
		}
		at = end
	}
	return b
}

func appendOctet(b []byte, c byte, json bool) []byte {
	if c > ' ' && c < 0x7f && c != '.' && c != '\\' && c != '"' {
		return append(b, c)
	}
	b = append(b, '\\')
	if json {
		b = append(b, '\\')
	}
	return append(b, '0'+c/100, '0'+c/10%10, '0'+c%10)
}

// appendData appends the data of a record as a text of JSON: addresses and names; others as RFC 3597 §5 writes what is unknown.
func appendData(b []byte, t uint16, data []byte) []byte {
	switch {
	case t == dns.TypeA && len(data) == 4:
		return netip.AddrFrom4([4]byte(data)).AppendTo(b)
	case t == dns.TypeAAAA && len(data) == 16:
		return netip.AddrFrom16([16]byte(data)).AppendTo(b)
	case t == dns.TypeCNAME || t == dns.TypeNS || t == dns.TypePTR || t == dns.TypeDNAME:
		return appendName(b, data, true)
	case t == dns.TypeMX && len(data) > 2:
		b = strconv.AppendUint(b, uint64(binary.BigEndian.Uint16(data)), 10)
		return appendName(append(b, ' '), data[2:], true)
	}
	b = append(b, `\\# `...)
	b = strconv.AppendInt(b, int64(len(data)), 10)
	if len(data) == 0 {
		return b
	}
	b = append(b, ' ')
	const digits = "0123456789abcdef"
	for _, c := range data {
		b = append(b, digits[c>>4], digits[c&15])
	}
	return b
}
