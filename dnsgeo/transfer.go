package dnsgeo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/crowd"
	"github.com/perigee-net/perigee/dnsgeo/tsig"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

const (
	// maxTransfers is how many zones are on their way out at once, and maxTransfersPerClient how many to one client: an IPv4 /24 or
	// IPv6 /48. Who comes beyond is refused, and a secondary tries again.
	maxTransfers          = 32
	maxTransfersPerClient = 4

	// transferTime bounds one transfer, however slowly it is taken. Each message of it has idleTimeout.
	transferTime = 30 * time.Minute

	// transferSize is how long the messages of a transfer are, but for what one record or its signature is longer: all of it can
	// be led to by pointers.
	transferSize = pointers
)

// slots bound what is done at once for others.
type slots struct {
	most, mostOfOne int // in all, and for one client

	mu  sync.Mutex
	all int
	of  map[netip.Prefix]int // by client
}

// enter takes a place, or says that there is none.
func (p *slots) enter(client netip.Prefix) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all >= p.most || p.of[client] >= p.mostOfOne {
		return false
	}
	if p.of == nil {
		p.of = map[netip.Prefix]int{}
	}
	p.all++
	p.of[client]++
	return true
}

func (p *slots) leave(client netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	if p.of[client]--; p.of[client] == 0 {
		delete(p.of, client)
	}
}

// isTransfer says whether a message asks for a zone whole, or for what has changed in it (RFC 5936, RFC 1995).
func isTransfer(m []byte) bool {
	if len(m) < headerSize || m[2]&0xf8 != 0 || binary.BigEndian.Uint16(m[4:]) != 1 {
		return false
	}
	at := tsig.SkipName(m, headerSize, false)
	return at > 0 && at+2 <= len(m) && refused(binary.BigEndian.Uint16(m[at:]))
}

// transfer is one zone on its way to one client, as it is at one moment.
type transfer struct {
	server *Server
	asker  *asker
	client netip.Prefix
	by     *tsig.Key // nil: it is not signed
	mac    tsig.MAC
	until  time.Time

	begin  []byte // of each message: header and question
	opt    []byte // at the end of each
	out    []byte // the message in the making
	count  int    // of its records
	owner  []byte // of the last record
	at     int    // where that stands in the message; 0: it does not, or too far in
	most   int    // bytes of a message, but for what one record is longer
	only   bool   // the SOA alone: the client has what there is
	within bool   // the client is another node
	placed bool   // it has a place among transfers

	changes bool   // what has changed since the client's serial, and not the zone
	steps   []step // those changes
	has     uint32 // that serial
}

// transferOf is the transfer that a message on a stream asks for. Nil: it is to be answered like other queries, which refuses it and
// says why. Who asks from within is another node, which may have any zone.
func (s *Server) transferOf(m []byte, from netip.Addr, within bool) *transfer {
	if !isTransfer(m) {
		return nil
	}
	r, rcode, drop := parse(m)
	table := s.table.Load()
	if drop || rcode != dns.RcodeSuccess || r.class != dns.ClassINET || table == nil {
		return nil
	}
	var by *tsig.Key
	var mac tsig.MAC
	query := m
	if r.signed {
		signature := tsig.Find(m)
		if signature == nil {
			return nil
		}
		var wrong tsig.Error
		by = table.key(signature)
		if mac, wrong = by.Verify(m, signature, tsig.MAC{}, time.Now()); wrong != 0 {
			return nil // it is counted where it is answered
		}
		query = tsig.Strip(m, signature)
	}
	var name zone.Name
	name.Set(query[headerSize:])
	z := table.zoneOf(&name)
	if z == nil || !within && !mayTransfer(z, from, by) {
		s.counts.transfersRefused.Add(1)
		return nil
	}
	t := s.newTransfer(table, z, &name)
	t.by, t.mac, t.until, t.within = by, mac, time.Now().Add(transferTime), within
	serial, known := serialAsked(query, &r)
	if r.typ == dns.TypeIXFR && known {
		t.only = serial == t.serial() || zone.Newer(serial, t.serial())
		t.has = serial
		t.steps, t.changes = table.since(z, serial)
	}
	if !t.only && !within {
		t.client = crowd.Client(from)
		if t.placed = s.transfers.enter(t.client); !t.placed {
			s.counts.transfersOver.Add(1)
			return nil
		}
	}
	t.of(query, &r)
	t.asker.reply.reset(&t.asker.asked)
	t.opt = r.appendOPT(nil, &t.asker.reply, s.config.Name)
	return t
}

func (s *Server) newTransfer(table *Table, z *zone.Zone, name *zone.Name) *transfer {
	t := &transfer{server: s, asker: newAsker(), most: transferSize}
	a := t.asker
	a.asked = *name
	a.table, a.zone, a.scene, a.lifetime = table, z, table.sceneOf(s.config.View()), forever
	return t
}

// of has the messages begin as responses to a query do.
func (t *transfer) of(query []byte, r *request) {
	t.begin = append(t.begin, query[:r.question]...)
	t.begin[2], t.begin[3] = 0x84|query[2]&1, 0
	clear(t.begin[6:headerSize])
}

// changesIn is the response to an IXFR by datagram whose client may have the zone: what has changed, if that is known and fits, without
// a signature. Nil: the SOA alone is to be said (RFC 1995 §2).
func (s *Server) changesIn(table *Table, name *zone.Name, query []byte, r *request, opt []byte, limit int) (response []byte) {
	z := table.zones.Find(name, 0)
	serial, known := serialAsked(query, r)
	t := s.newTransfer(table, z, name)
	if !known || serial == t.serial() || zone.Newer(serial, t.serial()) {
		return nil
	}
	if t.steps, t.changes = table.since(z, serial); !t.changes {
		return nil
	}
	t.of(query, r)
	t.has, t.opt, t.most, t.until = serial, opt, limit, time.Now().Add(transferTime)
	if t.send(func(framed []byte) error {
		if response != nil || len(framed)-2 > limit {
			return errSlow
		}
		response = bytes.Clone(framed[2:])
		return nil
	}) != nil {
		return nil
	}
	s.counts.transfersOfChanges.Add(1)
	return response
}

// zoneOf is the zone of a name that has something to answer with; nil if there is none.
func (t *Table) zoneOf(name *zone.Name) *zone.Zone {
	if z := t.zoneAt(name); z != nil && z.Silence() == zone.Speaks {
		return z
	}
	return nil
}

// zoneAt is the zone of exactly this name, be it one that has nothing to answer with; nil if there is none.
func (t *Table) zoneAt(name *zone.Name) *zone.Zone {
	if z := t.zones.Find(name, 0); z != nil && z.Labels() == name.Labels() {
		return z
	}
	return nil
}

// mayTransfer says whether whoever asks from an address and signs by a key may have a zone whole.
func mayTransfer(z *zone.Zone, from netip.Addr, by *tsig.Key) bool {
	if z == nil || z.Hosted() == nil {
		return false
	}
	signer := ""
	if by != nil {
		signer = by.Name
	}
	return slices.ContainsFunc(z.Hosted().Transfer.Allow, func(a spec.TransferAllow) bool { return a.Admits(from, signer) })
}

// serialAsked is the serial that the client of an IXFR has: that of the SOA in its authority section (RFC 1995 §3).
func serialAsked(m []byte, r *request) (serial uint32, ok bool) {
	if binary.BigEndian.Uint16(m[6:]) != 0 || binary.BigEndian.Uint16(m[8:]) == 0 {
		return 0, false
	}
	at := tsig.SkipName(m, r.question, true)
	if at < 0 || at+10 > len(m) || binary.BigEndian.Uint16(m[at:]) != dns.TypeSOA {
		return 0, false
	}
	end := at + 10 + int(binary.BigEndian.Uint16(m[at+8:]))
	if at = tsig.SkipName(m, at+10, true); at < 0 {
		return 0, false
	}
	if at = tsig.SkipName(m, at, true); at < 0 || at+20 != end || end > len(m) {
		return 0, false
	}
	return binary.BigEndian.Uint32(m[at:]), true
}

func (t *transfer) serial() uint32 {
	soa, _ := t.apex().SOA.Next()
	return serialOf(soa)
}

func (t *transfer) apex() *zone.Apex {
	return t.asker.table.zones.Apex(t.asker.zone, t.asker.scene.nameServers)
}

var errSlow = errors.New("the transfer takes too long")

// run sends what goes before and the messages, each when the one before has been taken, and ends the transfer.
func (t *transfer) run(c *conn, before []byte) (err error) {
	counts := &t.server.counts
	if t.by != nil {
		counts.signed.Add(1)
	}
	if t.placed {
		defer t.server.transfers.leave(t.client)
		counts.transfers.Add(1)
	}
	defer func() {
		if err != nil && !t.within {
			counts.transfersFailed.Add(1)
		}
	}()
	send := func(framed []byte) error {
		now := time.Now()
		_ = c.SetDeadline(now.Add(idleTimeout)) // of what is asked next, too
		c.place.Heard(now.Sub(t.server.began))
		_, err := c.Write(framed)
		return err
	}
	if len(before) > 0 {
		if err := send(before); err != nil {
			return err
		}
	}
	if t.changes && !t.only {
		counts.transfersOfChanges.Add(1)
	}
	return t.send(send)
}

// send sends the messages.
func (t *transfer) send(send func([]byte) error) error {
	t.start()
	soa := t.apex().SOA
	err := t.set(send, t.asker.zone.Wire(), soa)
	if err != nil || t.only {
		return errors.Join(err, t.flush(send))
	}
	if t.changes {
		if err := t.differences(send, soa); err != nil {
			return err
		}
		return t.flush(send)
	}
	for e := range t.asker.table.zones.All(t.asker.zone, t.asker.scene.nameServers) {
		switch {
		case e.Choice != nil:
			err = t.choice(send, e.Owner, e.Choice)
		case e.Set.Type != dns.TypeSOA:
			err = t.set(send, e.Owner, e.Set)
		}
		if err != nil {
			return err
		}
	}
	if err := t.set(send, t.asker.zone.Wire(), soa); err != nil {
		return err
	}
	return t.flush(send)
}

// differences sends what has changed since the client's serial: of each step the SOA before it and what has gone, the SOA after it and
// what has come, and at last the SOA (RFC 1995 §4). Serials are those between which nothing else has changed, so that the first is the
// client's and the last the zone's.
func (t *transfer) differences(send func([]byte) error, soa zone.Set) error {
	owner := t.asker.zone.Wire()
	steps := t.steps
	if len(steps) == 0 { // the revision is another, and the zone is not
		steps = []step{{from: soa, soa: soa}}
	}
	serial := t.has
	for i := range steps {
		s := &steps[i]
		to := uint32(s.to)
		if i == len(steps)-1 {
			to = t.serial()
		}
		if err := t.set(send, owner, numbered(s.from, serial)); err != nil {
			return err
		}
		if err := t.rows(send, s.gone); err != nil {
			return err
		}
		if err := t.set(send, owner, numbered(s.soa, to)); err != nil {
			return err
		}
		if err := t.rows(send, s.come); err != nil {
			return err
		}
		serial = to
	}
	return t.set(send, owner, soa)
}

func (t *transfer) rows(send func([]byte) error, rows []zone.Row) error {
	for i := range rows {
		if err := t.record(send, rows[i].Owner, rows[i].Type, rows[i].TTL, rows[i].Data); err != nil {
			return err
		}
	}
	return nil
}

func (t *transfer) set(send func([]byte) error, owner []byte, set zone.Set) error {
	for data := range set.All() {
		if err := t.record(send, owner, set.Type, set.TTL, data); err != nil {
			return err
		}
	}
	return nil
}

// choice sends what is answered to a client that is nowhere, and to whom chance gives the first.
func (t *transfer) choice(send func([]byte) error, owner []byte, c *zone.Choice) error {
	a := t.asker
	a.random, a.spot, a.lifetime = 0, nil, forever
	a.reply.reset(&a.asked)
	a.resolve(answers, asked, zone.Set{}, c)
	records := a.reply.records
	if c.Type == dns.TypeCNAME {
		records = records[:min(1, len(records))]
	}
	for i := range records {
		if err := t.record(send, owner, c.Type, records[i].ttl, records[i].data); err != nil {
			return err
		}
	}
	return nil
}

// start begins a message.
func (t *transfer) start() {
	t.out = append(append(t.out[:0], 0, 0), t.begin...)
	t.count, t.owner, t.at = 0, nil, 0
}

// record adds one to the message, or sends the message and begins the next with it.
func (t *transfer) record(send func([]byte) error, owner []byte, typ uint16, ttl uint32, data []byte) error {
	if t.count > 0 && len(t.out)+len(owner)+10+len(data)+len(t.opt) > t.most {
		if err := t.flush(send); err != nil {
			return err
		}
		t.start()
	}
	switch own := len(owner) - len(t.asker.zone.Wire()); {
	case t.at > 0 && string(t.owner) == string(owner):
		t.out = append(t.out, 0xc0|byte(t.at>>8), byte(t.at))
	default: // the zone's own name stands in the question
		if t.owner, t.at = owner, len(t.out)-2; own == 0 {
			t.at = headerSize
		}
		t.out = append(append(t.out, owner[:own]...), 0xc0, headerSize)
	}
	t.out = append(t.out, byte(typ>>8), byte(typ), 0, dns.ClassINET)
	t.out = binary.BigEndian.AppendUint32(t.out, ttl)
	t.out = binary.BigEndian.AppendUint16(t.out, uint16(len(data)))
	t.out = append(t.out, data...)
	t.count++
	return nil
}

// flush sends the message.
func (t *transfer) flush(send func([]byte) error) error {
	now := time.Now()
	if now.After(t.until) {
		return errSlow
	}
	m := append(t.out, t.opt...)[2:]
	binary.BigEndian.PutUint16(m[6:], uint16(t.count))
	if len(t.opt) > 0 {
		m[11] = 1
	}
	if t.by != nil {
		m, t.mac = t.by.Sign(m, t.mac, now)
	}
	if len(m) > dns.MaxMsgSize {
		return errors.New("a record is too long for a message")
	}
	t.out = append(t.out[:2], m...)
	binary.BigEndian.PutUint16(t.out, uint16(len(m)))
	return send(t.out)
}
