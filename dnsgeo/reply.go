package dnsgeo

import (
	"encoding/binary"
	"fmt"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/dnsgeo/zone"
)

// reply is an answer as it is decided: what the sections of the response are to have, by reference to what the zone holds. It
// is used again for one query after another.
type reply struct {
	Rcode         int
	Authoritative bool
	Referral      bool
	silence       zone.Silence // why it is SERVFAIL, if that is why
	// Scope is how many leading bits of the client's network the answer depends on: 0, not on the client at all.
	Scope int

	records []record // by section
	owners  []owner
}

// section is a part of a response.
type section uint8

const (
	answers section = iota
	authorities
	additional
)

// record is one record of the response. Those of one set stand side by side.
type record struct {
	data    []byte
	ttl     uint32
	typ     uint16
	owner   uint16 // which of owners
	section section
	needed  bool // without it the response is not whole, though it stands in the additional section
}

// owner is a name that records have.
type owner struct {
	wire []byte
	at   int // where it stands in the message, if in the question; else 0
}

// asked is the owner whose name is that which was asked.
const asked uint16 = 0

func (y *reply) reset(name *zone.Name) {
	y.Rcode, y.Authoritative, y.Referral, y.Scope = dns.RcodeSuccess, false, false, 0
	y.records, y.silence = y.records[:0], zone.Speaks
	y.owners = append(y.owners[:0], owner{name.Wire(), headerSize})
}

func (y *reply) add(to section, r record) {
	r.section = to
	y.records = append(y.records, r)
}

// own makes an owner of a name in wire form.
func (y *reply) own(wire []byte) uint16 {
	y.owners = append(y.owners, owner{wire: wire})
	return uint16(len(y.owners) - 1)
}

// suffix makes an owner of another one's name, without its first labels.
func (y *reply) suffix(of uint16, name *zone.Name, label int) uint16 {
	if label == 0 {
		return of
	}
	start, o := name.Start(label), y.owners[of]
	o.wire = o.wire[start:]
	if o.at > 0 {
		o.at += start
	}
	y.owners = append(y.owners, o)
	return uint16(len(y.owners) - 1)
}

// cut takes away all records but the first n.
func (y *reply) cut(n int) { y.records = y.records[:n] }

// need says that the response is not whole without the records from one on.
func (y *reply) need(from int) {
	for i := from; i < len(y.records); i++ {
		y.records[i].needed = true
	}
}

// set is the end of the record set that begins at i.
func (y *reply) set(i int) int {
	r := &y.records[i]
	for i++; i < len(y.records); i++ {
		if o := &y.records[i]; o.typ != r.typ || o.owner != r.owner || o.section != r.section {
			break
		}
	}
	return i
}

// Answer is the sections of a response, for people and for tests.
type Answer struct {
	Rcode         int
	Authoritative bool

	Answer, Authority, Additional []dns.RR
	// Referral says that Additional has glue, without which the answer is not whole (RFC 9471).
	Referral bool
	// Scope is how many leading bits of the client's network the answer depends on: 0, not on the client at all.
	Scope int
}

// shown is the reply as text would be made of.
func (y *reply) shown() Answer {
	a := Answer{Rcode: y.Rcode, Authoritative: y.Authoritative, Referral: y.Referral, Scope: y.Scope}
	sections := [...]*[]dns.RR{&a.Answer, &a.Authority, &a.Additional}
	for i := range y.records {
		r := &y.records[i]
		to := sections[r.section]
		*to = append(*to, r.shown(y.owners[r.owner].wire))
	}
	return a
}

func (r *record) shown(owner []byte) dns.RR {
	wire := append([]byte(nil), owner...)
	wire = binary.BigEndian.AppendUint16(wire, r.typ)
	wire = binary.BigEndian.AppendUint16(wire, dns.ClassINET)
	wire = binary.BigEndian.AppendUint32(wire, r.ttl)
	wire = binary.BigEndian.AppendUint16(wire, uint16(len(r.data)))
	wire = append(wire, r.data...)
	rr, _, err := dns.UnpackRR(wire, 0)
	if err != nil { // miekg/dns made these bytes, or would not take them
		return &dns.TXT{Hdr: dns.RR_Header{Name: zone.Text(owner), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: r.ttl}, Txt: []string{fmt.Sprint(err)}}
	}
	return rr
}

// minimum is the last number of a SOA, the TTL of what is not there (RFC 2308 §4).
func minimum(soa []byte) uint32 { return binary.BigEndian.Uint32(soa[len(soa)-4:]) }

// equalFold says whether two names in wire form are the same; the first is in small letters.
func equalFold(small, other []byte) bool {
	if len(small) != len(other) {
		return false
	}
	for i, b := range other {
		if 'A' <= b && b <= 'Z' {
			b += 'a' - 'A'
		}
		if small[i] != b {
			return false
		}
	}
	return true
}
