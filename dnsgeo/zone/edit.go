package zone

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/dns"
)

// Edit is a zone in the making that differs in some names from another, which stays as it is. It costs what it touches, and is
// for one goroutine.
type Edit struct {
	from   *Zone
	next   *Zone
	drafts map[string]*draft // by labels in the zone
	thin   bool              // something was taken away: a name may be none any more
	faults []error
	name   Name // the one at hand
}

// draft is a name of the zone in the making.
type draft struct {
	sets  []draftSet
	below uint32 // names right below it
	flags uint8  // hasWild, and those of before
}

type draftSet struct {
	typ    uint16
	set    Set
	choice *Choice
}

// newEdit begins a zone without any name but its own, of about so many records to come.
func newEdit(name string, records int) (*Edit, error) {
	e := &Edit{drafts: make(map[string]*draft, records), next: new(Zone)}
	if err := e.name.Parse(name); err != nil {
		return nil, err
	}
	z := e.next
	z.Name, z.wire, z.labels, z.hash = e.name.String(), bytes.Clone(e.name.Wire()), e.name.labels, e.name.hashes[0]
	z.shards = []*shard{{slots: []uint64{0}, data: []byte{0}}}
	e.from = &Zone{Name: z.Name, wire: z.wire, labels: z.labels, hash: z.hash, shards: z.shards}
	e.draft(nil)
	return e, nil
}

// Edit begins a zone that differs from z.
func (z *Zone) Edit() *Edit {
	return &Edit{from: z, drafts: map[string]*draft{}, next: &Zone{
		Name: z.Name, wire: z.wire, labels: z.labels, hash: z.hash, cuts: z.cuts, names: z.names, soa: z.soa, hosted: z.hosted, places: z.places, blocks: slices.Clip(z.blocks),
	}}
}

// New makes a zone of plain records, which must have a SOA at the zone's name.
func New(name string, records []dns.RR) (*Zone, error) {
	e, err := newEdit(name, len(records))
	if err != nil {
		return nil, err
	}
	for _, rr := range records {
		if err := e.Add(rr); err != nil {
			return nil, err
		}
	}
	return e.Zone()
}

// Add adds a record; one that is there already changes nothing. The TTL of a set is that of its first record (RFC 2181 §5.2).
func (e *Edit) Add(rr dns.RR) error {
	d, err := e.at(rr.Header().Name)
	if err != nil {
		return err
	}
	data, err := dataOf(rr)
	if err != nil {
		return fmt.Errorf("zone %s: %s: %w", e.next.Name, rr.Header().Name, err)
	}
	_, err = e.add(d, rr.Header().Rrtype, rr.Header().Ttl, data)
	return err
}

func (e *Edit) add(d *draft, typ uint16, ttl uint32, data []byte) (added bool, err error) {
	s := d.set(typ)
	if s.choice != nil {
		return false, fmt.Errorf("zone %s: %s: more than records stands there", e.next.Name, &e.name)
	}
	if len(s.set.data)+len(data) > dns.MaxMsgSize {
		return false, fmt.Errorf("zone %s: %s %s: no message has room for all records of the set", e.next.Name, &e.name, dns.Type(typ))
	}
	for other := range s.set.All() {
		if same(s.typ, other, data) {
			return false, nil
		}
	}
	if s.set.N == 0 {
		s.set = Set{Type: s.typ, TTL: ttl}
	}
	s.set = s.set.With(data)
	return true, nil
}

// Delete takes a record away; it says whether it was there.
func (e *Edit) Delete(rr dns.RR) (bool, error) {
	e.thin = true
	d, err := e.at(rr.Header().Name)
	if err != nil {
		return false, err
	}
	gone, err := dataOf(rr)
	if err != nil {
		return false, fmt.Errorf("zone %s: %s: %w", e.next.Name, rr.Header().Name, err)
	}
	return d.remove(rr.Header().Rrtype, gone), nil
}

// remove takes a record away; it says whether it was there.
func (d *draft) remove(typ uint16, gone []byte) bool {
	i := slices.IndexFunc(d.sets, func(s draftSet) bool { return s.typ == typ && s.choice == nil })
	if i < 0 {
		return false
	}
	kept := Set{Type: d.sets[i].typ, TTL: d.sets[i].set.TTL}
	for data := range d.sets[i].set.All() {
		if !same(kept.Type, data, gone) {
			kept = kept.With(data)
		}
	}
	found := kept.N < d.sets[i].set.N
	if d.sets[i].set = kept; kept.N == 0 {
		d.sets = slices.Delete(d.sets, i, i+1)
	}
	return found
}

// at is the draft of a name, which must be in the zone.
func (e *Edit) at(name string) (*draft, error) {
	if err := e.name.Parse(name); err != nil {
		return nil, fmt.Errorf("zone %s: %w", e.next.Name, err)
	}
	return e.named()
}

// named is the draft of the name at hand.
func (e *Edit) named() (*draft, error) {
	if !e.next.Has(&e.name) {
		return nil, fmt.Errorf("zone %s: %s is outside", e.next.Name, &e.name)
	}
	return e.draft(e.name.wire[:e.name.Start(e.name.labels-e.next.labels)]), nil
}

// draft is that of a name by its labels in the zone; it and the names between it and the apex come to be.
func (e *Edit) draft(labels []byte) *draft {
	if d := e.drafts[string(labels)]; d != nil {
		return d
	}
	d := new(draft)
	e.drafts[string(labels)] = d
	if below, node := e.from.entry(labels); node.OK() {
		d.below, d.flags = below, node.flags
		e.next.cuts -= special(d.flags, len(labels) == 0)
		for set, choice := range node.All() {
			typ := set.Type
			if choice != nil {
				typ = choice.Type
			}
			d.sets = append(d.sets, draftSet{typ, set, choice})
		}
		return d
	}
	e.next.names++
	if len(labels) == 0 {
		return d
	}
	above := e.draft(labels[1+int(labels[0]):])
	above.below++
	if labels[0] == 1 && labels[1] == '*' {
		above.flags |= hasWild
	}
	return d
}

// has says whether anything of a type stands at the name at hand, which is in the zone.
func (e *Edit) has(t uint16) bool {
	labels := e.name.wire[:e.name.Start(e.name.labels-e.next.labels)]
	if d, touched := e.drafts[string(labels)]; touched {
		return d.find(t) != nil
	}
	_, node := e.from.entry(labels)
	_, _, ok := node.Find(t)
	return ok
}

// entry is a name of the zone, and how many are right below it.
func (z *Zone) entry(labels []byte) (below uint32, n Node) {
	hash := hashLabels(z.hash, labels)
	return z.shards[z.shard(hash)].look(hash, labels)
}

// hashLabels goes on from the hash of what is behind labels.
func hashLabels(h uint64, labels []byte) uint64 {
	if len(labels) == 0 {
		return h
	}
	n := 1 + int(labels[0])
	return hash(hashLabels(h, labels[n:]), labels[:n])
}

// special is 1 if looking up what is below a name is more than looking it up.
func special(flags uint8, apex bool) int {
	if flags&isDNAME != 0 || flags&isCut != 0 && !apex {
		return 1
	}
	return 0
}

// set is that of a type, which comes to be.
func (d *draft) set(t uint16) *draftSet {
	if s := d.find(t); s != nil {
		return s
	}
	d.sets = append(d.sets, draftSet{typ: t})
	return &d.sets[len(d.sets)-1]
}

func (d *draft) find(t uint16) *draftSet {
	for i := range d.sets {
		if d.sets[i].typ == t {
			return &d.sets[i]
		}
	}
	return nil
}

// empty says whether the name is none any more: nothing stands there or below.
func (d *draft) empty() bool { return len(d.sets) == 0 && d.below == 0 }

// shardNames is how many names a shard has at most, on average: a change copies one, and each costs some 150 bytes.
const shardNames = 512

// Zone ends the edit.
func (e *Edit) Zone() (*Zone, error) {
	if e.thin {
		e.prune()
	}
	z := e.next
	apex := e.draft(nil)
	if soa := apex.find(dns.TypeSOA); soa != nil && !z.made() {
		z.soa = soa.set
	} else if !z.made() {
		e.faults = append(e.faults, fmt.Errorf("zone %s: no SOA", z.Name))
	}
	count := len(e.from.shards)
	for z.names > count*shardNames {
		count *= 2
	}
	z.shards = make([]*shard, count)
	if count == len(e.from.shards) {
		copy(z.shards, e.from.shards)
	}
	e.build()
	if len(e.faults) > 0 {
		return nil, errors.Join(e.faults...)
	}
	z.apex = z.find(z.hash, nil)
	return z, nil
}

// prune forgets the names of the draft at which nothing stands any more.
func (e *Edit) prune() {
	var gone []string
	for labels, d := range e.drafts {
		if d.empty() && labels != "" {
			gone = append(gone, labels)
		}
	}
	for len(gone) > 0 {
		labels := gone[len(gone)-1]
		gone = gone[:len(gone)-1]
		e.drafts[labels] = nil
		e.next.names--
		rest := labels[1+int(labels[0]):]
		above := e.draft([]byte(rest))
		if above.below--; labels[0] == 1 && labels[1] == '*' {
			above.flags &^= hasWild
		}
		if above.empty() && rest != "" {
			gone = append(gone, rest)
		}
	}
}

// build makes the shards that differ.
func (e *Edit) build() {
	z := e.next
	makings := make([]*making, len(z.shards))
	begin := func(hash uint64) *making {
		i := z.shard(hash)
		if makings[i] == nil {
			names := min(z.names, z.names/len(z.shards)*5/4+8)
			makings[i] = newMaking(names, 40*names)
		}
		return makings[i]
	}
	for labels, d := range e.drafts {
		h := hashLabels(z.hash, []byte(labels))
		if m := begin(h); d != nil {
			m.put(h, []byte(labels), d)
			z.cuts += special(m.last, labels == "")
		}
	}
	again := len(z.shards) != len(e.from.shards)
	for i, s := range e.from.shards {
		if !again && makings[i] == nil {
			continue
		}
		for labels, old := range s.all() {
			if _, touched := e.drafts[string(labels)]; !touched {
				h := hashLabels(z.hash, labels)
				begin(h).keep(h, old)
			}
		}
	}
	for i, m := range makings {
		if m == nil {
			if z.shards[i] == nil {
				z.shards[i] = &shard{slots: []uint64{0}, data: []byte{0}}
			}
			continue
		}
		s, err := m.end()
		if err != nil {
			e.faults = append(e.faults, fmt.Errorf("zone %s: %w", z.Name, err))
			return
		}
		z.shards[i] = s
	}
}
