package dnsgeo

import (
	"cmp"
	"encoding/binary"
	"errors"
	"hash"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

const (
	// sampledZones and sampledSets are of how many zones, and of how many record sets of each, answers are compared.
	sampledZones = 16
	sampledSets  = 4
	// sampleChance is the random number of all sampled queries.
	sampleChance = 0x5eed
)

// sampledClients are the networks for which answers are compared: of six continents, of both families, and one that is nowhere but where an
// operator says so.
var sampledClients = []netip.Prefix{
	netip.MustParsePrefix("1.208.0.0/24"), netip.MustParsePrefix("12.0.0.0/24"), netip.MustParsePrefix("41.0.0.0/24"), netip.MustParsePrefix("84.128.0.0/24"),
	netip.MustParsePrefix("139.130.4.0/24"), netip.MustParsePrefix("200.147.3.0/24"), netip.MustParsePrefix("2001:200::/48"), netip.MustParsePrefix("10.1.2.0/24"),
}

// Sample is what a node answers to a bounded sample of questions, in short. Nodes of which Revision and View are the same are to have
// the same Answers.
type Sample struct {
	Revision uint64
	View     uint64 // a hash of what answers depend on in the view
	Answers  uint64 // a hash of them
}

// sampleSize is how many bytes a Sample is on the wire.
const sampleSize = 24

// Encode is the sample as bytes.
func (s Sample) Encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, sampleSize), s.Revision)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, s.View), s.Answers)
}

// DecodeSample reads what Encode wrote.
func DecodeSample(b []byte) (Sample, error) {
	if len(b) != sampleSize {
		return Sample{}, errors.New("a sample of answers has 24 bytes")
	}
	return Sample{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])}, nil
}

// Comparable says whether two samples are to be of the same answers.
func (s Sample) Comparable(t Sample) bool { return s.Revision == t.Revision && s.View == t.View }

// Sample answers the sampled questions by a view. It is a function of the table and of those things in the view that its digest is of:
// which members there are, by region and POP, what they take and their addresses, and which health checks and load balancers are
// healthy. The digest is of the serials of secondary zones, too, which the revision does not tell.
//
// What is meant to differ from node to node is left out: they answer as one that stands nowhere (so nobody is served "as if he were
// here"), that reaches all and has heard of no measured client; TTLs, which go by how long verdicts stand; and answers by when a record set was healthy last.
func (t *Table) Sample(v *view.View) Sample {
	if v == nil {
		v = new(view.View)
	}
	nobody := *v
	nobody.Self, nobody.Unreachable, nobody.Clients = "", nil, nil
	scene := t.survey(&nobody)
	sum, a := fnv.New64a(), newAsker()
	for _, q := range t.sampled() {
		if a.asked.Parse(q.Name) != nil {
			continue
		}
		for _, client := range sampledClients {
			q.ECS = client
			a.answerIn(t, scene, &q, nil)
			if !a.lastGood {
				a.reply.digest(sum)
			}
		}
	}
	return Sample{Revision: t.spec.Revision, View: t.digest(&nobody), Answers: sum.Sum64()}
}

// sampled are the questions, drawn by the revision: of some zones their apex, a name that is not there, and some of their record sets.
func (t *Table) sampled() (all []Query) {
	type drawn struct {
		zone *spec.HostedZone
		lot  uint64
	}
	var zones []drawn
	for _, z := range t.spec.HostedZones {
		d := drawn{z, lot(t.spec.Revision, z.Name)}
		at, _ := slices.BinarySearchFunc(zones, d, func(a, b drawn) int {
			return cmp.Or(cmp.Compare(a.lot, b.lot), strings.Compare(a.zone.Name, b.zone.Name))
		})
		if at == sampledZones {
			continue
		}
		zones = slices.Insert(zones[:min(len(zones), sampledZones-1)], min(at, sampledZones-1), d)
	}
	for _, d := range zones {
		ask := func(name string, typ uint16) {
			all = append(all, Query{Name: name, Type: typ, Class: dns.ClassINET, Random: sampleChance})
		}
		ask(d.zone.Name+".", dns.TypeNS)
		ask("no-such-name-in-it."+d.zone.Name+".", dns.TypeA)
		for i := range min(sampledSets, d.zone.Records.Len()) {
			r := d.zone.Records.At(int(lot(d.lot, d.zone.Name, byte(i)) % uint64(d.zone.Records.Len())))
			name := d.zone.Owner(r.Name)
			if below, wild := strings.CutPrefix(name, "*."); wild {
				name = "below." + below
			}
			ask(name, dns.StringToType[r.Type])
		}
	}
	return all
}

// lot is a hash that is the same on all nodes.
func lot(n uint64, name string, more ...byte) uint64 {
	h := fnv.New64a()
	number(h, n)
	h.Write([]byte(name))
	h.Write(more)
	return h.Sum64()
}

func number(h hash.Hash64, n uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	h.Write(b[:])
}

// digest adds the reply, but for its TTLs.
func (y *reply) digest(h hash.Hash64) {
	head := [...]byte{byte(y.Rcode), 0, byte(y.Scope), byte(len(y.records))}
	if y.Authoritative {
		head[1] = 1
	}
	h.Write(head[:])
	for i := range y.records {
		r := &y.records[i]
		h.Write([]byte{byte(r.section), byte(r.typ >> 8), byte(r.typ)})
		h.Write(y.owners[r.owner].wire)
		number(h, uint64(len(r.data)))
		h.Write(r.data)
	}
}

// digest is a hash of what answers depend on in a view.
func (t *Table) digest(v *view.View) uint64 {
	h := fnv.New64a()
	for _, m := range v.Members { // by name, which is the order of their addresses
		h.Write([]byte(m.Region + "\x00" + m.POP + "\x00"))
		for _, role := range [...]view.Role{view.Edge, view.DNS, view.Origin} {
			flags := byte(0)
			if m.Has(role) {
				flags |= 1
			}
			if m.Takes(role) {
				flags |= 2
			}
			h.Write([]byte{flags})
		}
		if m.Leaving {
			h.Write([]byte{1})
		}
		for _, a := range m.Public {
			of := a.As16()
			h.Write(of[:])
		}
		h.Write([]byte{0xff})
	}
	// In no order, so they are added up.
	healthy := uint64(0)
	for name := range t.spec.HealthChecks {
		if v.CheckHealthy(t.spec, name) {
			healthy += lot(1, name)
		}
	}
	var name zone.Name
	for _, hosted := range t.spec.HostedZones {
		if hosted.Secondary() && name.Parse(hosted.Name) == nil {
			z := t.zones.Find(&name, 0)
			healthy += lot(uint64(z.Silence())<<32|uint64(z.Serial()), hosted.Name, 3)
		}
	}
	for name := range t.spec.LoadBalancers {
		if v.LoadBalancerHealthy(t.spec, name) {
			healthy += lot(2, name)
		}
	}
	for name := range t.spec.Accelerators {
		if v.AcceleratorHealthy(t.spec, name) {
			healthy += lot(4, name)
		}
	}
	number(h, healthy)
	return h.Sum64()
}

// lastSample is a sample that was taken, and of what: while that stays it is not taken again.
type lastSample struct {
	table  *Table
	view   *view.View
	sample Sample
}

// Sample is Sample of the table and the view that the server answers by now; not ok before the first spec.
func (s *Server) Sample() (_ Sample, ok bool) {
	t, v := s.table.Load(), s.config.View()
	if t == nil {
		return Sample{}, false
	}
	last := s.sampled.Load()
	if last == nil || last.table != t || last.view != v {
		last = &lastSample{t, v, t.Sample(v)}
		s.sampled.Store(last)
	}
	return last.sample, true
}
