package dnsgeo

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"

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

// transfers are those on their way out.
type transfers struct {
	mu  sync.Mutex
	all int
	of  map[netip.Prefix]int // by client
}

// enter takes a place, or says that there is none.
func (t *transfers) enter(client netip.Prefix) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all >= maxTransfers || t.of[client] >= maxTransfersPerClient {
		return false
	}
	if t.of == nil {
		t.of = map[netip.Prefix]int{}
	}
	t.all++
	t.of[client]++
	return true
}

func (t *transfers) leave(client netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all--
	if t.of[client]--; t.of[client] == 0 {
		delete(t.of, client)
	}
}

// isTransfer says whether a message asks for a zone whole, or for what has changed in it (RFC 5936, RFC 1995).
func isTransfer(m []byte) bool {
	if len(m) < headerSize || m[2]&0xf8 != 0 || binary.BigEndian.Uint16(m[4:]) != 1 {
		return false
	}
	at := skipName(m, headerSize, false)
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
	only   bool   // the SOA alone: the client has what there is
	placed bool   // it has a place among transfers
}

// transferOf is the transfer that a message on a stream asks for. Nil: it is to be answered like other queries, which refuses it and
// says why.
func (s *Server) transferOf(m []byte, from netip.Addr) *transfer {
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
		signature, ok := tsig.Find(m)
		if !ok || signature == nil {
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
	z := table.mayTransfer(&name, from, by)
	if z == nil {
		s.counts.transfersRefused.Add(1)
		return nil
	}
	t := &transfer{server: s, asker: newAsker(), by: by, mac: mac, until: time.Now().Add(transferTime)}
	a := t.asker
	a.asked = name
	a.table, a.zone, a.scene, a.lifetime = table, z, table.sceneOf(s.config.View()), forever
	serial, known := serialAsked(query, &r)
	t.only = r.typ == dns.TypeIXFR && known && (serial == t.serial() || newer(serial, t.serial()))
	if !t.only {
		t.client = clientOf(from)
		if t.placed = s.transfers.enter(t.client); !t.placed {
			s.counts.transfersOver.Add(1)
			return nil
		}
	}
	t.begin = append(t.begin, query[:r.question]...)
	t.begin[2], t.begin[3] = 0x84|query[2]&1, 0
	clear(t.begin[6:headerSize])
	a.reply.reset(&a.asked)
	t.opt = r.appendOPT(nil, &a.reply, s.config.Name)
	return t
}

// mayTransfer is the zone of a name, if whoever asks from an address and signs by a key may have it whole.
func (t *Table) mayTransfer(name *zone.Name, from netip.Addr, by *tsig.Key) *zone.Zone {
	z := t.zones.Find(name, 0)
	if z == nil || z.Labels() != name.Labels() || z.Hosted() == nil {
		return nil
	}
	signer := ""
	if by != nil {
		signer = by.Name
	}
	allow := z.Hosted().Transfer.Allow
	for i := range allow {
		if allow[i].Admits(from, signer) {
			return z
		}
	}
	return nil
}

// serialAsked is the serial that the client of an IXFR has: that of the SOA in its authority section (RFC 1995 §3).
func serialAsked(m []byte, r *request) (serial uint32, ok bool) {
	if binary.BigEndian.Uint16(m[6:]) != 0 || binary.BigEndian.Uint16(m[8:]) == 0 {
		return 0, false
	}
	at := skipName(m, r.question, true)
	if at < 0 || at+10 > len(m) || binary.BigEndian.Uint16(m[at:]) != dns.TypeSOA {
		return 0, false
	}
	end := at + 10 + int(binary.BigEndian.Uint16(m[at+8:]))
	if at = skipName(m, at+10, true); at < 0 {
		return 0, false
	}
	if at = skipName(m, at, true); at < 0 || at+20 != end || end > len(m) {
		return 0, false
	}
	return binary.BigEndian.Uint32(m[at:]), true
}

// newer says whether a serial is after another (RFC 1982 §3.2). Of two that are half the circle apart neither is.
func newer(a, b uint32) bool { return a != b && a-b < 1<<31 }

func (t *transfer) serial() uint32 {
	soa, _ := t.apex().SOA.Next()
	return binary.BigEndian.Uint32(soa[len(soa)-20:])
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
		if err != nil {
			counts.transfersFailed.Add(1)
		}
	}()
	send := func(framed []byte) error {
		now := time.Now()
		_ = c.SetDeadline(now.Add(idleTimeout)) // of what is asked next, too
		c.heard.Store(int64(now.Sub(t.server.began)))
		_, err := c.Write(framed)
		return err
	}
	if len(before) > 0 {
		if err := send(before); err != nil {
			return err
		}
	}
	t.start()
	soa := t.apex().SOA
	if err := t.set(send, t.asker.zone.Wire(), soa); err != nil || t.only {
		return errors.Join(err, t.flush(send))
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
	if t.count > 0 && len(t.out)+len(owner)+10+len(data)+len(t.opt) > transferSize {
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
