package dnsgeo

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// desk is where one goroutine after another makes responses: the rooms that this takes, which are used again.
type desk struct {
	server *Server
	asker  asker
	packer packer
	opt    [maxOptions]byte
	random func() uint64 // chance, of each query
	tally  *tally
	scribe *scribe // nil: nothing is written down
}

func (s *Server) newDesk() *desk {
	d := &desk{server: s, asker: *newAsker(), random: rand.Uint64, tally: s.tallies.one()}
	if s.config.QueryLog != nil {
		d.scribe = newScribe(s, &d.asker.reply)
	}
	return d
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
	var began time.Time
	if d.scribe != nil {
		began = time.Now()
	}
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
	asks := rcode == dns.RcodeSuccess && r.asked
	if asks {
		q := Query{Type: r.typ, Class: r.class, Client: from, ECS: r.ecs, Random: d.random()}
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
		response = s.limited(response, &r, opt, from)
	}
	if asks && d.asker.zone != nil {
		s.tallies.count(d.tally, &d.asker)
		if d.scribe != nil {
			d.scribe.write(&d.asker, m, &r, response, by, began)
		}
	}
	return response
}
