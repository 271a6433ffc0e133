package zone

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/rendezvous"
	"github.com/perigee-net/perigee/cluster/spec"
)

// Servers are the name servers of hosted zones that name none: each has maxServers of the POPs, drawn by its name (shuffle
// sharding, as Route 53 does), so that an attack on all name servers of one zone leaves most zones some. Every zone has the
// names of all of them, ns-<pop>, though: what a parent was told once goes on leading somewhere. They are made once for all zones,
// as each of very many zones would have the same names for each of many POPs. Their addresses are those of the live name
// servers there, unless the operator has put records at that name.
type Servers struct {
	pops []server
	at   map[string]Node // by label: A and AAAA
}

type server struct {
	label       string // ns-<pop>
	region, pop string
}

// maxServers is how many name servers a zone has (Route 53).
const maxServers = 4

const serverPrefix = "ns-"

// ServerLabel is that of the name of the name servers at a POP, right below each zone that names none.
func ServerLabel(pop string) string { return serverPrefix + strings.ToLower(pop) }

func serversOf(s *spec.Spec) *Servers {
	all := &Servers{at: map[string]Node{}}
	for _, region := range slices.Sorted(maps.Keys(s.Regions)) {
		for _, pop := range s.Regions[region].POPs {
			label := ServerLabel(pop.Name)
			all.pops = append(all.pops, server{label, region, pop.Name})
			records := []Record{{Alias: &Alias{To: ToNameServer, Name: pop.Name, Region: region}}}
			d := &draft{sets: []draftSet{
				{typ: dns.TypeA, choice: &Choice{Type: dns.TypeA, Records: records}},
				{typ: dns.TypeAAAA, choice: &Choice{Type: dns.TypeAAAA, Records: records}},
			}}
			m := newMaking(1, 64)
			m.put(0, nil, d)
			_, all.at[label], _ = m.shard.read(m.shard.data[2:])
		}
	}
	return all
}

// Servers are those of all hosted zones at POPs for which answers holds. Where it holds for none, all are.
func (t *Table) Servers(answers func(region, pop string) bool) *Servers {
	some := &Servers{at: t.servers.at}
	for _, pop := range t.servers.pops {
		if answers(pop.region, pop.pop) {
			some.pops = append(some.pops, pop)
		}
	}
	if len(some.pops) == 0 || len(some.pops) == len(t.servers.pops) {
		return t.servers
	}
	return some
}

// of are the labels of a zone's name servers: in the order of its draw, of each region one as long as there are other regions.
// Of those that stay when POPs come or go, the order stays.
func (s *Servers) of(zone string) []string {
	type drawn struct {
		server
		score uint64
		turn  int // of its region
	}
	all := make([]drawn, len(s.pops))
	for i, pop := range s.pops {
		all[i] = drawn{pop, rendezvous.Score(pop.label, zone), 0}
	}
	slices.SortFunc(all, func(a, b drawn) int { return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.label, b.label)) })
	turns := map[string]int{}
	for i := range all {
		all[i].turn = turns[all[i].region]
		turns[all[i].region]++
	}
	slices.SortStableFunc(all, func(a, b drawn) int { return cmp.Compare(a.turn, b.turn) })
	labels := make([]string, min(maxServers, len(all)))
	for i := range labels {
		labels[i] = all[i].label
	}
	return labels
}

// names are the names of a hosted zone's name servers, the primary first.
func (s *Servers) names(z *Zone) []string {
	if len(z.hosted.NameServers) > 0 {
		return z.hosted.NameServers
	}
	var names []string
	for _, label := range s.of(z.hosted.Name) {
		names = append(names, z.hosted.Owner(label))
	}
	return names
}

// node is the node of a zone at a label right below its apex, which may be that of a name server at a POP.
func (s *Servers) node(z *Zone, label []byte, n Node) Node {
	if !bytes.HasPrefix(label, []byte(serverPrefix)) || len(z.hosted.NameServers) > 0 || !n.Empty() {
		return n
	}
	at, ok := s.at[string(label)]
	if !ok {
		return n
	}
	at.flags |= n.flags & hasWild // there may be names below it
	return at
}

// Apex is what every zone has at its apex: without being told, as long as its name servers and the revision stay, unless it is of
// plain records.
type Apex struct {
	SOA, NS Set // of NS none where there is no name server

	servers *Servers
	serial  uint32
}

// The records that every zone has without being told, with Route 53's values.
const (
	soaTTL     = 900
	soaRefresh = 7200
	soaRetry   = 900
	soaExpire  = 1209600
	soaMinimum = 86400
	nsTTL      = 172800
)

// SOA is the set of a hosted zone's SOA, of its data.
func SOA(data []byte) Set { return Set{Type: dns.TypeSOA, TTL: soaTTL}.With(data) }

// Apex returns that of a zone, with its name servers drawn among some; nil: among all.
func (t *Table) Apex(z *Zone, among *Servers) *Apex {
	if among == nil {
		among = t.servers
	}
	// Route 53's serial is 1 for ever. The revision tells people which spec a name server runs; it wraps (RFC 1982).
	serial := uint32(t.spec.Revision)
	if told := z.told.Load(); told != nil && told.servers == among && told.serial == serial {
		return told
	}
	a := &Apex{servers: among, serial: serial}
	if !z.made() {
		a.SOA = z.soa
		if ns, _, ok := z.apex.Find(dns.TypeNS); ok {
			a.NS = ns
		}
		z.told.Store(a)
		return a
	}
	names := among.names(z)
	primary := z.wire
	var name Name
	for i, text := range names {
		if name.Parse(strings.ToLower(text)) != nil {
			continue // no name that spec lets pass
		}
		if i == 0 {
			primary = bytes.Clone(name.Wire())
		}
		if a.NS.N == 0 {
			a.NS = Set{Type: dns.TypeNS, TTL: nsTTL}
		}
		a.NS = a.NS.With(name.Wire())
	}
	data := bytes.Clone(primary)
	if name.Parse(z.hosted.Owner("hostmaster")) == nil {
		data = append(data, name.Wire()...)
	} else {
		data = append(data, z.wire...) // the zone's name is too long for a label more
	}
	for _, n := range []uint32{serial, soaRefresh, soaRetry, soaExpire, soaMinimum} {
		data = binary.BigEndian.AppendUint32(data, n)
	}
	a.SOA = SOA(data)
	z.told.Store(a)
	return a
}
