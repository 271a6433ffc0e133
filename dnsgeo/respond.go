package dnsgeo

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/dnsgeo/tsig"
)

// desk is where one goroutine after another makes responses: the rooms that this takes, which are used again.
type desk struct {
	server *Server
	asker  asker
	packer packer
	opt    [maxOptions]byte
	random func() uint64 // chance, of each query
	tally  *tally
	scribe *scribe   // nil: nothing is written down
	began  time.Time // when the query came, if it is to be written down
	update *pending  // what came is an update whose response is to come later

	// came is when queries were read that came at once, since the server began: for all of them the clock is read once. 0: they come one by one.
	came time.Duration
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
	response := d.respond(room, m, from, by)
	if u := d.takeUpdate(); u != nil {
		response = s.finish(u)
	}
	return response
}

func (d *desk) respond(room, m []byte, from netip.Addr, by Transport) (response []byte) {
	s := d.server
	defer func() {
		if fault := recover(); fault != nil {
			d.mend(fault, m, from, by)
			response = nil
		}
	}()
	if d.scribe != nil {
		d.began = time.Now()
	}
	s.counts.queries[by].Add(1)
	r, rcode, drop := parse(m)
	if rcode == dns.RcodeFormatError {
		s.counts.malformed.Add(1)
	}
	if drop || by == QUIC && r.keepalive { // that is for others to say, and ends the connection (RFC 9250 §5.5.2)
		return nil
	}
	if r.signed && rcode == dns.RcodeSuccess {
		return d.respondSigned(room, m, &r, from, by)
	}
	if r.opcode == dns.OpcodeUpdate && rcode == dns.RcodeSuccess {
		_, rcode = s.admitUpdate(m, m, &r, tsig.MAC{}, from, by)
	}
	return d.make(room, m, &r, rcode, from, by)
}

// mend is for a fault that a message found in this code: it has no response, and the others go on. An update that was admitted before
// stays with the desk, to be finished. The log has the first, second, fourth, eighth … fault: whoever can make one can make many.
func (d *desk) mend(fault any, m []byte, from netip.Addr, by Transport) {
	s := d.server
	if n := s.counts.panics.Add(1); n&(n-1) == 0 {
		s.config.Log.Error("a message met a fault of this node and has no response", "fault", fault, "faults", n, "from", from, "by", by,
			"message", fmt.Sprintf("%x", m[:min(len(m), maxLogged)]), "stack", string(debug.Stack()))
	}
	remembers := d.asker.recents != nil
	d.asker = *newAsker()
	if remembers {
		d.asker.recents = new(recents)
	}
}

// maxLogged is how many bytes of a message that met a fault are in the log.
const maxLogged = 512

// make makes the response to a query that has been read.
func (d *desk) make(room, m []byte, r *request, rcode int, from netip.Addr, by Transport) []byte {
	s := d.server
	y := &d.asker.reply
	if r.asked {
		d.asker.asked.Set(m[headerSize:])
	}
	var changes *Table // what has changed in a zone of it is asked for
	well := rcode == dns.RcodeSuccess && r.asked
	asks := well && r.opcode == dns.OpcodeQuery
	if well && r.opcode == dns.OpcodeNotify {
		y.reset(&d.asker.asked)
		y.Rcode = s.notified(&d.asker.asked, r, from)
		y.Authoritative = y.Rcode == dns.RcodeSuccess
	} else if asks {
		q := Query{Type: r.typ, Class: r.class, Client: from, ECS: r.ecs, Random: d.random()}
		table := s.table.Load()
		if r.typ == dns.TypeIXFR && by.Datagram() && table != nil && mayTransfer(table.zoneOf(&d.asker.asked), from, r.key) {
			q.Type = dns.TypeSOA // it says whether there is anything to come for by TCP (RFC 1995 §2)
			changes = table
		}
		d.asker.answer(table, s.config.View(), &q, nil)
	} else {
		y.reset(&d.asker.asked)
		y.Rcode = rcode
	}
	limit := dns.MaxMsgSize
	if by.Datagram() {
		limit = min(r.size, payloadSize)
	}
	if r.signed {
		limit -= tsig.Room
	}
	opt := r.appendOPT(d.opt[:0], y, s.config.Name)
	opt, proven := s.appendMore(opt, r, y, from, by)
	response, truncated := d.packer.pack(room, m, r, y, opt, limit)
	if truncated && cap(room) < limit {
		response, truncated = d.packer.pack(make([]byte, limit), m, r, y, opt, limit)
	}
	if changes != nil {
		if all := s.changesIn(changes, &d.asker.asked, m, r, opt, limit); all != nil {
			response, truncated = all, false
		}
	}
	if by.Encrypted() && r.padding && len(opt) > 0 {
		response = pad(response, len(opt))
	}
	s.counts.answered(y, truncated)
	if !proven && (r.opcode == dns.OpcodeQuery || r.key == nil) {
		response = d.limited(response, r, opt, from)
	}
	if asks && d.asker.zone != nil {
		s.tallies.count(d.tally, &d.asker)
		if d.scribe != nil {
			d.scribe.write(&d.asker, m, r, response, by, d.began)
		}
	}
	return response
}
