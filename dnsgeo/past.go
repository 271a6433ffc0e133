package dnsgeo

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/kept"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

const (
	// maxSteps is how many changes of a zone are remembered, and maxStepBytes how much they take together, as they are sent and with
	// what holds them; of older ones the oldest are forgotten. Who has a zone of before that gets it whole.
	maxSteps     = 512
	maxStepBytes = 1 << 20

	// maxPastBytes is how much the changes of all zones take; beyond it those of the zone that has most are forgotten.
	maxPastBytes = 32 << 20

	// maxSpans is how many runs of revisions are remembered: one ends where this node has not seen a revision.
	maxSpans = 256

	// rowBytes is what a record takes beside its name and data.
	rowBytes = 80
)

// past is what is known of the versions of zones before the one that is answered: what a secondary that has one of them lacks
// (RFC 1995). It never changes. A node that has just started has none.
type past struct {
	spans []span                      // of the revisions that were answered by, the oldest first
	zones *kept.Map[string, *history] // of zones that are transferred, and are the same for all clients and at all times: secondary ones, too
	bytes int                         // of all steps
}

// span is a run of revisions, one after the other, of which none was left out.
type span struct{ first, last uint64 }

// history is that of one zone. Of a secondary zone it tells serials of its primary where others have revisions.
type history struct {
	copied bool   // of a secondary zone
	since  uint64 // the first revision that it can be told from
	steps  []step // the oldest first
	bytes  int
}

// step is one change of a zone.
type step struct {
	to         uint64   // the revision that made it
	from, soa  zone.Set // the SOA before it, and after; the serials in them do not count but of a secondary zone
	gone, come []zone.Row
	bytes      int
}

// exact says whether a zone is the same for all clients and at all times, so that two versions of it have a difference.
func exact(z *spec.HostedZone) bool {
	return len(z.Transfer.Allow) > 0 && len(z.NameServers) > 0 &&
		!slices.ContainsFunc(z.Records.Special(), func(r *spec.Record) bool { return r.Alias != nil || !r.Simple() || r.HealthCheck != "" })
}

// next is the past of a table, whose spec follows that of the one before.
func (p *past) next(before, now *Table) *past {
	revision := now.spec.Revision
	if p == nil || before == nil || revision <= before.spec.Revision && now.spec != before.spec {
		n := &past{spans: []span{{revision, revision}}} // it went back: what was told of later revisions is void
		zones := n.zones.Edit()
		for name, h := range p.ofCopies(now) {
			zones.Set(name, h)
			n.bytes += h.bytes
		}
		for name, z := range now.spec.HostedZones {
			if exact(z) {
				zones.Set(name, &history{since: revision})
			}
		}
		n.zones = zones.Map()
		return n
	}
	n := &past{spans: slices.Clone(p.spans), zones: p.zones, bytes: p.bytes}
	switch last := &n.spans[len(n.spans)-1]; {
	case revision == last.last:
	case revision == last.last+1:
		last.last = revision
	default:
		n.spans = append(n.spans, span{revision, revision})
		n.spans = n.spans[max(0, len(n.spans)-maxSpans):]
	}
	changes := kept.Changes(before.spec.HostedZones, now.spec.HostedZones)
	if len(changes) == 0 {
		return n
	}
	zones := p.zones.Edit()
	for _, c := range changes {
		h, _ := zones.Lookup(c.Name)
		if h != nil && h.copied && c.New != nil && c.New.Secondary() {
			continue
		}
		if h != nil {
			n.bytes -= h.bytes
		}
		zones.Delete(c.Name)
		switch {
		case c.New == nil || !exact(c.New):
			continue
		case h == nil || h.copied || c.Old == nil:
			h = &history{since: revision}
		default:
			h = h.with(stepOf(before, now, c.Name))
		}
		zones.Set(c.Name, h)
		n.bytes += h.bytes
	}
	n.zones = zones.Map()
	for n.bytes > maxPastBytes {
		n.forget()
	}
	return n
}

// ofCopies are the histories of those zones that are secondary yet.
func (p *past) ofCopies(now *Table) map[string]*history {
	all := map[string]*history{}
	if p == nil {
		return all
	}
	for name, h := range p.zones.All() {
		if z := now.spec.HostedZones[name]; h.copied && z != nil && z.Secondary() {
			all[name] = h
		}
	}
	return all
}

// copied is the past of a table that has another version of a secondary zone than the one before. Differs says that the version was made of
// the one before, so that to compare them costs what has changed; else what was known of the zone is forgotten.
func (p *past) copied(before, now *Table, name string, differs bool) *past {
	if p == nil {
		return nil
	}
	n := &past{spans: p.spans, bytes: p.bytes}
	zones, h := p.zones.Edit(), p.zones.Get(name)
	if h != nil {
		n.bytes -= h.bytes
	}
	z := now.zoneNamed(name)
	if z == nil || z.Silence() != zone.Speaks {
		zones.Delete(name)
		n.zones = zones.Map()
		return n
	}
	if h == nil || !h.copied || !differs {
		h = &history{copied: true, since: uint64(z.Serial())}
	} else {
		h = h.with(stepOf(before, now, name))
	}
	zones.Set(name, h)
	n.zones = zones.Map()
	for n.bytes += h.bytes; n.bytes > maxPastBytes; {
		n.forget()
	}
	return n
}

// stepOf is the change of a zone from one table to another; nil: it is none, or cannot be told. Of a secondary zone another serial is one.
func stepOf(before, now *Table, name string) *step {
	old, z := before.zoneNamed(name), now.zoneNamed(name)
	if old == nil || z == nil {
		return nil
	}
	s := &step{to: now.spec.Revision}
	s.gone, s.come = zone.Difference(old, z)
	if z.Hosted().Secondary() {
		s.to = uint64(z.Serial())
		isSOA := func(r zone.Row) bool { return r.Type == dns.TypeSOA }
		s.gone, s.come = slices.DeleteFunc(s.gone, isSOA), slices.DeleteFunc(s.come, isSOA)
		s.from, s.soa = old.SOA(), z.SOA()
	} else {
		was, is := before.zones.Apex(old, nil), now.zones.Apex(z, nil)
		s.from, s.soa = was.SOA, is.SOA
		s.gone = append(s.gone, missing(z, was.NS, is.NS)...)
		s.come = append(s.come, missing(z, is.NS, was.NS)...)
		if from, soa := dataOf(s.from), dataOf(s.soa); len(s.gone)+len(s.come) == 0 && bytes.Equal(from[:len(from)-20], soa[:len(soa)-20]) {
			return nil
		}
	}
	s.from, s.soa = alone(s.from), alone(s.soa) // shards that are replaced are not held by them
	s.bytes = len(dataOf(s.from)) + len(dataOf(s.soa)) + rowBytes
	for _, rows := range [][]zone.Row{s.gone, s.come} {
		for i := range rows {
			s.bytes += len(rows[i].Owner) + len(rows[i].Data) + rowBytes
		}
	}
	return s
}

// missing are the records of a set of the apex that another has not.
func missing(z *zone.Zone, set, other zone.Set) (rows []zone.Row) {
	for data := range set.All() {
		if !other.Has(data) {
			rows = append(rows, zone.Row{Owner: z.Wire(), Type: set.Type, TTL: set.TTL, Data: data})
		}
	}
	return rows
}

// zoneNamed is a zone by its name.
func (t *Table) zoneNamed(name string) *zone.Zone {
	var n zone.Name
	if n.Parse(name) != nil {
		return nil
	}
	return t.zoneAt(&n)
}

// with is the history and one more step, without those that are too many.
func (h *history) with(s *step) *history {
	if s == nil {
		return h
	}
	n := &history{copied: h.copied, since: h.since, steps: append(slices.Clip(h.steps), *s), bytes: h.bytes + s.bytes}
	for len(n.steps) > maxSteps || n.bytes > maxStepBytes {
		n.drop()
	}
	return n
}

// drop forgets the oldest step.
func (h *history) drop() {
	h.since = h.steps[0].to
	h.bytes -= h.steps[0].bytes
	h.steps = h.steps[1:]
}

// forget forgets half of what is known of the zone of which most is.
func (p *past) forget() {
	most, of := "", (*history)(nil)
	for name, h := range p.zones.All() {
		if of == nil || h.bytes > of.bytes || h.bytes == of.bytes && name < most {
			most, of = name, h
		}
	}
	h := *of
	p.bytes -= h.bytes
	for keep := len(h.steps) / 2; len(h.steps) > keep; {
		h.drop()
	}
	zones := p.zones.Edit()
	zones.Set(most, &h)
	p.zones = zones.Map()
	p.bytes += h.bytes
}

// since are the changes of a zone since a serial, if they are known and fewer records than the zone has.
func (t *Table) since(z *zone.Zone, serial uint32) (steps []step, ok bool) {
	if t.past == nil || z.Hosted() == nil {
		return nil, false
	}
	h := t.past.zones.Get(z.Hosted().Name)
	if h != nil && h.copied {
		return h.sinceSerial(z, serial)
	}
	now := t.spec.Revision
	ago := uint64(uint32(now) - serial)
	if h == nil || ago > now || now-ago < h.since {
		return nil, false
	}
	revision := now - ago
	if !slices.ContainsFunc(t.past.spans, func(s span) bool { return s.first <= revision && revision <= s.last }) {
		return nil, false
	}
	first := slices.IndexFunc(h.steps, func(s step) bool { return s.to > revision })
	if first < 0 {
		return nil, true
	}
	steps = h.steps[first:]
	records := 2 + len(z.Hosted().NameServers)
	for _, r := range z.Hosted().Records.All() {
		records += len(r.Values)
	}
	return steps, sent(steps) <= records
}

// sent is how many records steps are sent as (RFC 1995 §4).
func sent(steps []step) int {
	n := 2
	for i := range steps {
		n += 2 + len(steps[i].gone) + len(steps[i].come)
	}
	return n
}

// sinceSerial is since of a secondary zone.
func (h *history) sinceSerial(z *zone.Zone, serial uint32) (steps []step, ok bool) {
	first := slices.IndexFunc(h.steps, func(s step) bool { return serialOf(dataOf(s.from)) == serial })
	if first < 0 || !z.Hosted().Secondary() {
		return nil, false
	}
	steps = h.steps[first:]
	return steps, sent(steps) <= 2+z.Names() // it has a record a name at least
}

// serialOf is that in the data of an SOA.
func serialOf(soa []byte) uint32 { return binary.BigEndian.Uint32(soa[len(soa)-20:]) }

// numbered is an SOA with another serial.
func numbered(soa zone.Set, serial uint32) zone.Set {
	soa = alone(soa)
	data := dataOf(soa)
	binary.BigEndian.PutUint32(data[len(data)-20:], serial)
	return soa
}

// alone is a set of one record, with data of its own.
func alone(set zone.Set) zone.Set { return zone.Set{Type: set.Type, TTL: set.TTL}.With(dataOf(set)) }

// dataOf is the data of a set of one record.
func dataOf(set zone.Set) []byte {
	data, _ := set.Next()
	return data
}
