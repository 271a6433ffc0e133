// Package update is changes of a zone by messages of the DNS (RFC 2136): it reads a message, judges it over a spec, and makes of a
// hosted zone the one that the message leads to. All of it is pure: it knows neither sockets nor signatures nor whom the zone is agreed
// with. Names and data are compared as the spec writes them.
package update

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
)

const headerSize = 12

// Message is an UPDATE message that is well-formed. What its records ask for is yet to be judged.
type Message struct {
	// Zone is the name of the zone as the spec has it: in small letters, without the last dot.
	Zone  string
	class uint16

	prerequisites, updates []record
}

// record is one of a prerequisite or update section (RFC 2136 §2.4, §2.5).
type record struct {
	name  string // absolute, in small letters, each byte that is none of a host's as \ddd
	typ   uint16
	class uint16
	ttl   uint32
	size  int    // of its data
	value string // its data, as the spec has it
	wrong string // why it can be no value of a record here
}

// typeName is how the type is written.
func (r *record) typeName() string { return dns.Type(r.typ).String() }

// Parse reads a message that has the opcode UPDATE, without the TSIG record if it had one. Not ok: it is malformed (RFC 2136 §3.1.1,
// §3.2), or a class says nothing there. Records of the additional section are passed over.
func Parse(m []byte) (u *Message, ok bool) {
	if len(m) < headerSize || m[2]&0xf8 != dns.OpcodeUpdate<<3 || binary.BigEndian.Uint16(m[4:]) != 1 {
		return nil, false
	}
	zone, at := nameAt(m, headerSize)
	if at < 0 || at+4 > len(m) || binary.BigEndian.Uint16(m[at:]) != dns.TypeSOA {
		return nil, false
	}
	u = &Message{Zone: strings.TrimSuffix(zone, "."), class: binary.BigEndian.Uint16(m[at+2:])}
	at += 4
	for section := range 3 {
		for range binary.BigEndian.Uint16(m[6+2*section:]) {
			var r record
			if at, ok = r.read(m, at, section < 2); !ok {
				return nil, false
			}
			switch section {
			case 0:
				u.prerequisites = append(u.prerequisites, r)
			case 1:
				u.updates = append(u.updates, r)
			}
		}
	}
	return u, at == len(m)
}

// read reads a record, and its data if they are needed, and returns where the next begins.
func (r *record) read(m []byte, at int, needed bool) (next int, ok bool) {
	if r.name, at = nameAt(m, at); at < 0 || at+10 > len(m) {
		return 0, false
	}
	r.typ, r.class, r.ttl = binary.BigEndian.Uint16(m[at:]), binary.BigEndian.Uint16(m[at+2:]), binary.BigEndian.Uint32(m[at+4:])
	r.size = int(binary.BigEndian.Uint16(m[at+8:]))
	at += 10
	next = at + r.size
	if next > len(m) {
		return 0, false
	}
	if !needed || r.size == 0 || r.typ == dns.TypeOPT || meta(r.typ) {
		return next, true
	}
	rr, _, err := dns.UnpackRRWithHeader(dns.RR_Header{Name: ".", Rrtype: r.typ, Class: dns.ClassINET, Rdlength: uint16(r.size)}, m[:next], at)
	if err != nil {
		return 0, false
	}
	typ := r.typeName()
	if !spec.IsRecordType(typ) {
		if soa, is := rr.(*dns.SOA); is {
			r.value = fmt.Sprint(soa.Serial)
		}
		r.wrong = "records of type " + typ + " are not kept here"
		return next, true
	}
	if r.value, err = spec.ParseValue(typ, strings.TrimPrefix(rr.String(), rr.Header().String())); err != nil {
		r.wrong = typ + " " + err.Error()
	}
	return next, true
}

// meta says whether a type names no data but something to be done (RFC 6895 §3.1).
func meta(t uint16) bool { return t >= 128 && t <= 255 }

// nameAt reads a name; pointers lead back only. Where the name is none, next is −1.
func nameAt(m []byte, at int) (name string, next int) {
	var b strings.Builder
	size, before := 1, at
	for next = -1; ; {
		if at >= len(m) {
			return "", -1
		}
		n := int(m[at])
		switch {
		case n == 0:
			if next < 0 {
				next = at + 1
			}
			if b.Len() == 0 {
				return ".", next
			}
			return b.String(), next
		case n&0xc0 == 0xc0 && at+2 <= len(m):
			to := int(binary.BigEndian.Uint16(m[at:]) & 0x3fff)
			if next < 0 {
				next = at + 2
			}
			if to >= before || to < headerSize {
				return "", -1
			}
			at, before = to, to
			continue
		case n&0xc0 != 0 || at+1+n > len(m):
			return "", -1
		}
		if size += 1 + n; size > 255 {
			return "", -1
		}
		label := m[at+1 : at+1+n]
		for _, c := range label {
			switch {
			case c >= 'A' && c <= 'Z':
				b.WriteByte(c | 0x20)
			case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_', c == '/', c == '*' && n == 1 && b.Len() == 0:
				b.WriteByte(c)
			default:
				fmt.Fprintf(&b, `\%03d`, c)
			}
		}
		b.WriteByte('.')
		at += 1 + n
	}
}
