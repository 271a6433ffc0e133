package dnsgeo

import (
	"encoding/binary"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/dnsgeo/zone"
)

// packer writes a response as bytes. It is used again for one after another.
//
// Names are shortened by pointers to names that stand before them: owners, and the names in the data of those types that
// every resolver knows (RFC 1035, RFC 3597 §4).
type packer struct {
	out   []byte
	limit int // of out
	at    []int
	known [maxKnown]known
	count int
}

// maxKnown is how many names a later one is compared with. A response of more is longer than it might be.
const maxKnown = 24

// known is a name that stands in the message.
type known struct {
	wire   []byte
	at     int
	labels int
	own    int // so many of its first labels stand there; the rest is a pointer
	starts [128]uint8
}

// pointers is what a pointer can lead to: 14 bits.
const pointers = 1 << 14

// pack writes the response to a query whose bytes are m into room. It is of at most limit bytes, and of what room has: of what does not
// fit, whole sets are left out, and it is said that it is truncated if anything is left out that was asked for (RFC 2181 §9).
func (p *packer) pack(room, m []byte, r *request, y *reply, opt []byte, limit int) (response []byte, truncated bool) {
	p.out = room[:headerSize]
	p.limit = min(limit, cap(room)) - len(opt)
	p.count = 0
	if r.asked {
		// The name as it was asked, letter case and all: resolvers check it. Owners of the answer point to it.
		p.out = append(p.out, m[headerSize:r.question]...)
		if len(y.owners) > 0 {
			p.know(y.owners[asked].wire, headerSize)
		}
	}
	var counts [3]uint16
	p.at = p.at[:0]
	for i := range y.owners {
		p.at = append(p.at, y.owners[i].at)
	}
	for i := 0; i < len(y.records); {
		end := y.set(i)
		first := &y.records[i]
		if p.set(y, i, end) {
			counts[first.section] += uint16(end - i)
		} else if first.section != additional || first.needed {
			truncated = true
			break
		}
		i = end
	}
	p.out = append(p.out, opt...)
	header := p.out[:headerSize]
	binary.BigEndian.PutUint16(header, r.id)
	header[2] = 0x80 | byte(r.opcode)<<3
	if y.Authoritative {
		header[2] |= 0x04
	}
	if truncated {
		header[2] |= 0x02
	}
	if r.rd {
		header[2] |= 0x01
	}
	header[3] = byte(y.Rcode) & 0xf // the rest of it is in the OPT
	header[4], header[5] = 0, 0
	if r.asked {
		header[5] = 1
	}
	if len(opt) > 0 {
		counts[additional]++
	}
	for i, n := range counts {
		binary.BigEndian.PutUint16(header[6+2*i:], n)
	}
	return p.out, truncated
}

// set writes a record set whole, or nothing of it.
func (p *packer) set(y *reply, i, end int) bool {
	begin, count := len(p.out), p.count
	for ; i < end; i++ {
		if !p.record(y, &y.records[i]) {
			p.out, p.count = p.out[:begin], count
			for k := range p.at {
				if p.at[k] >= begin {
					p.at[k] = 0
				}
			}
			return false
		}
	}
	return true
}

func (p *packer) record(y *reply, r *record) bool {
	at := p.at[r.owner]
	if at == 0 {
		begin := len(p.out)
		if !p.name(y.owners[r.owner].wire) {
			return false
		}
		if p.out[begin]&0xc0 == 0xc0 {
			at = int(binary.BigEndian.Uint16(p.out[begin:])) & (pointers - 1)
		} else if begin < pointers {
			at = begin
		}
		p.at[r.owner] = at
	} else if len(p.out)+2 <= p.limit {
		p.out = append(p.out, 0xc0|byte(at>>8), byte(at))
	} else {
		return false
	}
	if len(p.out)+10 > p.limit {
		return false
	}
	n := len(r.data)
	p.out = append(p.out, byte(r.typ>>8), byte(r.typ), 0, dns.ClassINET,
		byte(r.ttl>>24), byte(r.ttl>>16), byte(r.ttl>>8), byte(r.ttl), byte(n>>8), byte(n))
	names, from := 0, 0
	if r.typ <= dns.TypeMX { // SRV and DNAME have names that are not to be shortened
		names, from = zone.Names(r.typ)
	}
	if names == 0 {
		if len(p.out)+n > p.limit {
			return false
		}
		if r.typ == dns.TypeDNAME && p.count < len(p.known) && len(p.out) < pointers-maxNameSize {
			p.know(r.data, len(p.out)) // it stands whole (RFC 6672 §2.5), and the CNAME that follows ends with it
		}
		p.out = append(p.out, r.data...)
		return true
	}
	begin := len(p.out)
	if begin+from > p.limit {
		return false
	}
	p.out = append(p.out, r.data[:from]...)
	rest := r.data[from:]
	for range names {
		size := zone.NameSize(rest)
		if !p.name(rest[:size]) {
			return false
		}
		rest = rest[size:]
	}
	if len(p.out)+len(rest) > p.limit {
		return false
	}
	p.out = append(p.out, rest...)
	binary.BigEndian.PutUint16(p.out[begin-2:], uint16(len(p.out)-begin))
	return true
}

// name writes a name, its end as a pointer where that is known.
func (p *packer) name(wire []byte) bool {
	begin := len(p.out)
	if p.count == len(p.known) || begin >= pointers-maxNameSize {
		// It cannot be known, so it needs to be looked at only.
		var k known
		return p.shorten(&k, wire)
	}
	k := &p.known[p.count]
	if !p.shorten(k, wire) {
		return false
	}
	if k.own > 0 {
		k.at = begin
		p.count++
	}
	return true
}

// know is name, of one that stands there already.
func (p *packer) know(wire []byte, at int) {
	k := &p.known[p.count]
	k.take(wire)
	k.at, k.own = at, k.labels
	p.count++
}

func (k *known) take(wire []byte) {
	k.wire, k.labels = wire, 0
	for at := 0; wire[at] != 0; at += 1 + int(wire[at]) {
		k.starts[k.labels] = uint8(at)
		k.labels++
	}
	k.starts[k.labels] = uint8(len(wire) - 1)
}

// shorten writes a name, and says in k what of it stands there.
func (p *packer) shorten(k *known, wire []byte) bool {
	k.take(wire)
	most, to := 0, 0
	for i := range p.known[:p.count] {
		o := &p.known[i]
		same := 0
		for same < k.labels && same < o.labels {
			a, b := k.labels-same-1, o.labels-same-1
			if string(wire[k.starts[a]:k.starts[a+1]]) != string(o.wire[o.starts[b]:o.starts[b+1]]) {
				break
			}
			same++
		}
		if same > most && o.labels-same < o.own {
			most, to = same, o.at+int(o.starts[o.labels-same])
			if most == k.labels {
				break
			}
		}
	}
	k.own = k.labels - most
	own := wire[:k.starts[k.own]]
	if most == 0 {
		own = wire
	} else if len(p.out)+len(own)+2 > p.limit {
		return false
	}
	if len(p.out)+len(own) > p.limit {
		return false
	}
	p.out = append(p.out, own...)
	if most > 0 {
		p.out = append(p.out, 0xc0|byte(to>>8), byte(to))
	}
	return true
}
