package dnsgeo

import (
	"math/rand/v2"
	"net/netip"

	"github.com/miekg/dns"
)

// desk is where one goroutine after another makes responses: the rooms that this takes, which are used again.
type desk struct {
	server *Server
	asker  asker
	packer packer
	opt    [maxOptions]byte
}

func (s *Server) newDesk() *desk {
	return &desk{server: s, asker: *newAsker()}
}

// respond makes the response to a message, in room if it fits; nil if there is to be none. A datagram is of at most what the
// asker takes.
func (s *Server) respond(room, m []byte, from netip.Addr, by Transport) []byte {
	d := s.desks.Get().(*desk)
	defer s.desks.Put(d)
	return d.respond(room, m, from, by)
}

func (d *desk) respond(room, m []byte, from netip.Addr, by Transport) []byte {
	s := d.server
	s.counts.queries[by].Add(1)
	r, rcode, drop := parse(m)
	if rcode == dns.RcodeFormatError {
		s.counts.malformed.Add(1)
	}
	if drop || by == QUIC && r.keepalive { // that is for others to say, and ends the connection (RFC 9250 §5.5.2)
		return nil
	}
	y := &d.asker.reply
	if r.asked {
		d.asker.asked.Set(m[headerSize:])
	}
	if rcode == dns.RcodeSuccess && r.asked {
		q := Query{Type: r.typ, Class: r.class, Client: from, ECS: r.ecs, Random: rand.Uint64()}
		d.asker.answer(s.table.Load(), s.config.View(), &q, nil)
	} else {
		y.reset(&d.asker.asked)
		y.Rcode = rcode
	}
	limit := dns.MaxMsgSize
	if by.Datagram() {
		limit = min(r.size, payloadSize)
	}
	opt := r.appendOPT(d.opt[:0], y, s.config.Name)
	opt, proven := s.appendMore(opt, &r, y.Rcode, from, by)
	response, truncated := d.packer.pack(room, m, &r, y, opt, limit)
	if truncated && cap(room) < limit {
		response, truncated = d.packer.pack(make([]byte, limit), m, &r, y, opt, limit)
	}
	if by.Encrypted() && r.padding && len(opt) > 0 {
		response = pad(response, len(opt))
	}
	s.counts.answered(y, truncated)
	if !proven {
		return s.limited(response, &r, opt, from)
	}
	return response
}
