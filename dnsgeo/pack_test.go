package dnsgeo

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

// dice draws a zone, and queries for it, of a number.
type dice struct {
	*rand.Rand
	small bool // all names of the zone are in small letters
}

func (d dice) of(texts ...string) string { return texts[d.IntN(len(texts))] }

// name is one of few, so that names meet; of labels of all lengths, in any case.
func (d dice) name() string {
	labels := []string{}
	for range d.IntN(4) {
		labels = append(labels, d.of("a", "b", "*", "ns", "WWW", "sub", `x\.y`, `\000\255`, strings.Repeat("long", 15)))
	}
	return strings.Join(append(labels, d.of("example.com.", "Example.COM.", "example.com.", "example.com.", "example.net.", ".")), ".")
}

func (d dice) inside() string {
	for {
		if name := strings.ReplaceAll(d.name(), "..", "."); strings.HasSuffix(strings.ToLower(name), "example.com.") {
			return name
		}
	}
}

func (d dice) data() string {
	name := func() string { return strings.ReplaceAll(d.name(), "..", ".") }
	switch d.IntN(14) {
	case 0, 1, 2:
		return fmt.Sprintf("A 192.0.2.%d", d.IntN(256))
	case 3:
		return fmt.Sprintf("AAAA 2001:db8::%x", d.IntN(65536))
	case 4:
		return "NS " + name()
	case 5:
		return "CNAME " + name()
	case 6:
		return fmt.Sprintf("MX %d %s", d.IntN(100), name())
	case 7:
		return "DNAME " + name()
	case 8:
		return fmt.Sprintf("SRV 1 2 %d %s", d.IntN(65536), name())
	case 9:
		return "PTR " + name()
	case 10:
		return `TXT "` + strings.Repeat(d.of("t", "u"), d.IntN(255)) + `" "x"`
	case 11:
		return `CAA 0 issue "ca.example.net"`
	case 12:
		return "NAPTR 1 2 \"u\" \"sip\" \"\" " + name()
	default:
		return `HTTPS 1 ` + name() + ` alpn="h2"`
	}
}

func (d dice) zone(t testing.TB) *zone.Zone {
	text := "$TTL 60\nexample.com. SOA " + d.inside() + " hostmaster.example.com. 1 2 3 4 5\n"
	only := map[string]bool{} // a name has one CNAME and one DNAME, or chance would choose
	for range d.IntN(40) {
		owner, data := d.inside(), d.data()
		key := strings.ToLower(owner) + " " + strings.Fields(data)[0]
		if single := strings.Contains(data, "NAME "); single && only[key] {
			continue
		}
		only[key] = true
		text += owner + " " + data + "\n"
	}
	if d.small {
		text = strings.ReplaceAll(strings.ReplaceAll(text, "WWW", "www"), "Example.COM", "example.com")
	}
	parser := dns.NewZoneParser(strings.NewReader(text), ".", "")
	var rrs []dns.RR
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		rrs = append(rrs, rr)
	}
	if parser.Err() != nil {
		t.Fatalf("%v of\n%s", parser.Err(), text)
	}
	z, err := zone.New("example.com.", rrs)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// sectionsOf is all that a message says, of each section in the order of the alphabet, names in small letters.
func sectionsOf(m *dns.Msg) string {
	lines := []string{fmt.Sprint(m.Response, m.Opcode, m.Authoritative, m.Truncated, m.RecursionDesired, m.Rcode)}
	for i, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		var of []string
		for _, rr := range section {
			of = append(of, fmt.Sprint(i, " ", strings.ToLower(rr.String())))
		}
		slices.Sort(of)
		lines = append(lines, of...)
	}
	return strings.Join(lines, "\n")
}

// What the packer writes is read by miekg/dns as what miekg/dns would have written of the same answer. A response that has no room for
// all has whole sets of it, and says so.
func FuzzResponsesAreWhatOthersWouldWrite(f *testing.F) {
	for seed := range uint64(150) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		d := dice{rand.New(rand.NewPCG(seed, 1)), seed%2 == 0}
		s := New(Config{Name: "icn1-a"})
		table := &Table{spec: new(spec.Spec), zones: zone.NewTable(d.zone(t)), atlas: new(atlas)}
		s.table.Store(table)
		for range 20 {
			query := new(dns.Msg).SetQuestion(d.inside(), dns.StringToType[d.of("A", "AAAA", "NS", "MX", "TXT", "SOA", "CNAME", "DS", "ANY", "SRV", "DNAME", "HTTPS", "PTR")])
			if d.IntN(2) == 0 {
				query.SetEdns0(uint16(512+d.IntN(1000)), d.IntN(2) == 0)
			}
			m, err := query.Pack()
			if err != nil {
				t.Fatal(err)
			}
			a := table.Answer(nil, Query{Name: query.Question[0].Name, Type: query.Question[0].Qtype, Class: 1}, nil)
			want := dns.Msg{MsgHdr: dns.MsgHdr{Response: true, Authoritative: a.Authoritative, RecursionDesired: true, Rcode: a.Rcode},
				Compress: true, Question: query.Question, Answer: a.Answer, Ns: a.Authority, Extra: a.Additional}
			if opt := query.IsEdns0(); opt != nil {
				want.SetEdns0(payloadSize, opt.Do())
			}
			others, err := want.Pack()
			if err != nil {
				t.Fatal(err)
			}
			if err := want.Unpack(others); err != nil {
				t.Fatal(err)
			}
			ours := s.respond(make([]byte, roomSize), m, netip.Addr{}, TCP)
			var got dns.Msg
			if err := got.Unpack(ours); err != nil {
				t.Fatalf("%v\n% x", err, ours)
			}
			if sectionsOf(&got) != sectionsOf(&want) || !bytes.Equal(ours[headerSize:headerSize+5], m[headerSize:headerSize+5]) {
				t.Fatalf("%s\ngot\n%s\nwant\n%s", query.Question[0].String(), sectionsOf(&got), sectionsOf(&want))
			}
			if d.small && len(ours) > len(others) {
				t.Errorf("%d bytes, others take %d for\n%s", len(ours), len(others), sectionsOf(&want))
			}
			short := s.respond(make([]byte, payloadSize), m, netip.Addr{}, UDP)
			var cut dns.Msg
			if err := cut.Unpack(short); err != nil {
				t.Fatalf("%v\n% x", err, short)
			}
			switch {
			case len(short) > max(512, min(payloadSize, size(query))):
				t.Fatalf("%d bytes for who takes %d", len(short), size(query))
			case !cut.Truncated && (len(cut.Answer) != len(got.Answer) || len(cut.Ns) != len(got.Ns)):
				t.Fatalf("it is cut and does not say so: %v", &cut)
			case cut.Truncated && len(ours) <= size(query) && len(ours) <= payloadSize:
				t.Fatalf("%d bytes were cut for who takes %d", len(ours), size(query))
			}
			whole := sectionsOf(&got)
			for _, line := range strings.Split(sectionsOf(&cut), "\n")[1:] {
				if !strings.Contains(whole, line) {
					t.Fatalf("%s came of nowhere", line)
				}
			}
		}
	})
}

func size(query *dns.Msg) int {
	if opt := query.IsEdns0(); opt != nil {
		return int(opt.UDPSize())
	}
	return dns.MinMsgSize
}
