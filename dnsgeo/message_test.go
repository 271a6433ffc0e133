package dnsgeo

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

// serverOf is a server of the world of these tests.
func serverOf(t testing.TB, records string) *Server {
	t.Helper()
	v := worldView()
	s := New(Config{View: func() *view.View { return v }, Geo: places(t), Name: "icn1-a"})
	if err := s.Apply(worldSpec(t, records)); err != nil {
		t.Fatal(err)
	}
	return s
}

// Parts of messages in hex, spaces apart.
const (
	question = "03 777777 07 6578616d706c65 03 636f6d 00 0001 0001" // www.example.com. A IN
	plainOPT = "00 0029 04d0 00000000 0000"
)

func bytesOf(t testing.TB, hexadecimal string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(hexadecimal, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// opt is an OPT record of options.
func opt(options string) string {
	n := len(strings.ReplaceAll(options, " ", "")) / 2
	return "00 0029 04d0 00000000 " + hex.EncodeToString([]byte{byte(n >> 8), byte(n)}) + options
}

func TestMessagesAreAnsweredRefusedOrDropped(t *testing.T) {
	s := serverOf(t, "www A 192.0.2.1")
	for _, test := range []struct{ name, message, want string }{ // want "" is no response
		{"a query", "abcd 0000 0001 0000 0000 0000" + question, "NOERROR"},
		{"a query with RD", "abcd 0100 0001 0000 0000 0000" + question, "NOERROR"},
		{"a query with every other flag", "abcd 07ff 0001 0000 0000 0000" + question, "NOERROR"},
		{"a query with EDNS", "abcd 0000 0001 0000 0000 0001" + question + plainOPT, "NOERROR"},
		{"EDNS behind another record, whose owner is a pointer", "abcd 0000 0001 0000 0000 0002" + question + "c00c 0001 0001 00000000 0004 c0000201" + plainOPT, "NOERROR"},
		{"an unknown option", "abcd 0000 0001 0000 0000 0001" + question + opt("fde9 0002 ffff"), "NOERROR"},
		{"a record in the authority section, as of IXFR", "abcd 0000 0001 0000 0001 0000" + question + "00 0006 0001 00000000 0000", "NOERROR"},
		{"the longest label", "abcd 0000 0001 0000 0000 0000 3f" + strings.Repeat("61", 63) + "07 6578616d706c65 03 636f6d 00 0001 0001", "NXDOMAIN"},

		{"nothing", "", ""},
		{"half a header", "abcd 0000 0001", ""},
		{"a response", "abcd 8000 0001 0000 0000 0000" + question, ""},
		{"a response that is malformed", "abcd 8000 0007 0000 0000 0000", ""},

		{"a header alone", "abcd 0000 0001 0000 0000 0000", "FORMERR"},
		{"no question", "abcd 0000 0000 0000 0000 0000", "FORMERR"},
		{"no question but a cookie", "abcd 0000 0000 0000 0000 0001" + opt("000a 0008 0102030405060708"), "NOERROR"},
		{"two questions", "abcd 0000 0002 0000 0000 0000" + question + question, "FORMERR"},
		{"a question cut short", "abcd 0000 0001 0000 0000 0000 03 777777 00 0001", "FORMERR"},
		{"a name that does not end", "abcd 0000 0001 0000 0000 0000 03 777777", "FORMERR"},
		{"a label longer than the message", "abcd 0000 0001 0000 0000 0000 3f 77 00 0001 0001", "FORMERR"},
		{"a name that points to itself", "abcd 0000 0001 0000 0000 0000 c00c 0001 0001", "FORMERR"},
		{"a label of a reserved kind", "abcd 0000 0001 0000 0000 0000 41 77 00 0001 0001", "FORMERR"},
		{"a name of 256 octets", "abcd 0000 0001 0000 0000 0000" + strings.Repeat("3f"+strings.Repeat("61", 63), 3) + "3e" + strings.Repeat("61", 62) + "00 0001 0001", "FORMERR"},
		{"a name of 255 octets", "abcd 0000 0001 0000 0000 0000" + strings.Repeat("3f"+strings.Repeat("61", 63), 3) + "3d" + strings.Repeat("61", 61) + "00 0001 0001", "REFUSED"},
		{"bytes behind the end", "abcd 0000 0001 0000 0000 0000" + question + "00", "FORMERR"},
		{"fewer records than announced", "abcd 0000 0001 0000 0000 0001" + question, "FORMERR"},
		{"a record longer than the message", "abcd 0000 0001 0000 0000 0001" + question + "00 0001 0001 00000000 ffff", "FORMERR"},
		{"two OPT", "abcd 0000 0001 0000 0000 0002" + question + plainOPT + plainOPT, "FORMERR"},
		{"an OPT that is owned", "abcd 0000 0001 0000 0000 0001" + question + "c00c" + strings.TrimPrefix(plainOPT, "00"), "FORMERR"},
		{"an OPT in the answer section", "abcd 0000 0001 0001 0000 0000" + question + plainOPT, "FORMERR"},
		{"half an option", "abcd 0000 0001 0000 0000 0001" + question + opt("fde9 00"), "FORMERR"},
		{"an option longer than the OPT", "abcd 0000 0001 0000 0000 0001" + question + opt("fde9 0004 ffff"), "FORMERR"},
		{"a question of type OPT", "abcd 0000 0001 0000 0000 0000 00 0029 0001", "FORMERR"},
		{"a question of a meta type", "abcd 0000 0001 0000 0000 0000 00 00fa 0001", "FORMERR"},

		{"a later EDNS", "abcd 0000 0001 0000 0000 0001" + question + "00 0029 04d0 00010000 0000", "BADVERS"},
		{"STATUS", "abcd 1000 0001 0000 0000 0000" + question, "NOTIMP"},
		{"STATUS with EDNS", "abcd 1000 0001 0000 0000 0001" + question + plainOPT, "NOTIMP"},
		{"STATUS of no form", "abcd 1000 0001 0000 0000 0001" + question + "ff", "NOTIMP"},
		{"NOTIFY", "abcd 2000 0001 0000 0000 0000" + strings.Replace(question, "0001 0001", "0006 0001", 1), "NOTAUTH"},
		{"NOTIFY of another type", "abcd 2000 0001 0000 0000 0000" + question, "FORMERR"},
		{"NOTIFY of nothing", "abcd 2000 0000 0000 0000 0000", "FORMERR"},
		{"UPDATE", "abcd 2800 0001 0000 0000 0000 07 6578616d706c65 03 636f6d 00 0006 0001", "NOTIMP"},
		{"UPDATE of no zone", "abcd 2800 0001 0000 0000 0000" + question, "FORMERR"},
		{"mail agents", "abcd 0000 0001 0000 0000 0000 00 00fe 0001", "NOTIMP"},
		{"a transfer", "abcd 0000 0001 0000 0000 0000 07 6578616d706c65 03 636f6d 00 00fc 0001", "REFUSED"},
		{"class CHAOS", "abcd 0000 0001 0000 0000 0000 07 76657273696f6e 04 62696e64 00 0010 0003", "REFUSED"},

		{"a subnet", "abcd 0000 0001 0000 0000 0001" + question + opt("0008 0007 0001 18 00 c00002"), "NOERROR"},
		{"a subnet of IPv6", "abcd 0000 0001 0000 0000 0001" + question + opt("0008 000a 0002 30 00 20010db80001"), "NOERROR"},
		{"a subnet of 0 bits", "abcd 0000 0001 0000 0000 0001" + question + opt("0008 0004 0001 00 00"), "NOERROR"},
		{"a subnet of no family, of 0 bits", "abcd 0000 0001 0000 0000 0001" + question + opt("0008 0004 0000 00 00"), "NOERROR"},
		{"a subnet of 20 bits", "abcd 0000 0001 0000 0000 0001" + question + opt("0008 0007 0001 14 00 c00010"), "NOERROR"},
		{"a subnet of 20 bits and more bits set", "abcd 0000 0001 0000 0000 0001" + question + opt("0008 0007 0001 14 00 c00018"), "FORMERR"},
		{"a subnet with too many octets", "abcd 0000 0001 0000 0000 0001" + question + opt("0008 0008 0001 18 00 c0000200"), "FORMERR"},
		{"a subnet with too few octets", "abcd 0000 0001 0000 0000 0001" + question + opt("0008 0006 0001 18 00 c000"), "FORMERR"},
		{"a subnet with a scope", "abcd 0000 0001 0000 0000 0001" + question + opt("0008 0007 0001 18 18 c00002"), "FORMERR"},
		{"a subnet of an unknown family", "abcd 0000 0001 0000 0000 0001" + question + opt("0008 0007 0003 18 00 c00002"), "FORMERR"},
		{"a subnet of 33 bits of IPv4", "abcd 0000 0001 0000 0000 0001" + question + opt("0008 0009 0001 21 00 c000020000"), "FORMERR"},
		{"a subnet of 129 bits of IPv6", "abcd 0000 0001 0000 0000 0001" + question + opt("0008 0015 0002 81 00"+strings.Repeat("00", 17)), "FORMERR"},
		{"half a subnet", "abcd 0000 0001 0000 0000 0001" + question + opt("0008 0003 0001 18"), "FORMERR"},
		{"two subnets", "abcd 0000 0001 0000 0000 0001" + question + opt("0008 0004 0001 00 00 0008 0004 0001 00 00"), "FORMERR"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := bytesOf(t, test.message)
			malformed := s.Counters()["dns_malformed_total"]
			response := s.respond(make([]byte, roomSize), m, netip.MustParseAddr("192.0.2.53"), UDP)
			if bad := test.want == "" || test.want == "FORMERR"; bad != (s.Counters()["dns_malformed_total"] > malformed) {
				t.Errorf("counted as malformed: %v", !bad)
			}
			if test.want == "" {
				if response != nil {
					t.Fatalf("got % x, want no response", response)
				}
				return
			}
			var got dns.Msg
			if err := got.Unpack(response); err != nil {
				t.Fatal(err)
			}
			if dns.RcodeToString[got.Rcode] != test.want && !(got.Rcode == dns.RcodeBadVers && test.want == "BADVERS") {
				t.Errorf("got %s, want %s", dns.RcodeToString[got.Rcode], test.want)
			}
			if !bytes.Equal(response[:2], m[:2]) || !got.Response || got.RecursionDesired != (m[2]&1 != 0) || got.RecursionAvailable || got.AuthenticatedData || got.CheckingDisabled || got.Zero {
				t.Errorf("got %v", got.MsgHdr)
			}
		})
	}
}

func TestTheResponseHasEDNSIfTheQueryHas(t *testing.T) {
	s := serverOf(t, "www A 192.0.2.1")
	query := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
	if got := ask(t, s, query); got.IsEdns0() != nil {
		t.Errorf("got EDNS unasked: %s", got)
	}
	query.SetEdns0(4096, true)
	got := ask(t, s, query).IsEdns0()
	if got == nil || got.UDPSize() != payloadSize || !got.Do() || got.Version() != 0 || len(got.Option) != 0 {
		t.Errorf("got %v", got)
	}
	query.IsEdns0().SetVersion(1)
	if got := ask(t, s, query); got.Rcode != dns.RcodeBadVers || got.IsEdns0().Version() != 0 || len(got.Answer) != 0 {
		t.Errorf("of a later version got %v", got)
	}
	query.IsEdns0().SetVersion(0)
	query.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_NSID{Code: dns.EDNS0NSID}}
	got = ask(t, s, query).IsEdns0()
	if id, ok := got.Option[0].(*dns.EDNS0_NSID); !ok || id.Nsid != hex.EncodeToString([]byte("icn1-a")) {
		t.Errorf("who answers? %v", got)
	}
}

func TestTheSubnetComesBackWithItsScope(t *testing.T) {
	s := serverOf(t, site+"plain A 192.0.2.1")
	for _, test := range []struct {
		name, question string
		subnet         dns.EDNS0_SUBNET
		scope          uint8
	}{
		{"nearest", "example.com.", dns.EDNS0_SUBNET{Family: 1, SourceNetmask: 24, Address: []byte{10, 2, 3, 0}}, 16},
		{"nearest, IPv6", "example.com.", dns.EDNS0_SUBNET{Family: 2, SourceNetmask: 56, Address: netip.MustParseAddr("2001:db8:1::").AsSlice()}, 48},
		{"not by the client", "plain.example.com.", dns.EDNS0_SUBNET{Family: 1, SourceNetmask: 24, Address: []byte{10, 2, 3, 0}}, 0},
		{"not to be used", "example.com.", dns.EDNS0_SUBNET{Family: 1, Address: []byte{0, 0, 0, 0}}, 0},
		{"of no family", "example.com.", dns.EDNS0_SUBNET{Family: 0, Address: []byte{0, 0, 0, 0}}, 0},
		{"refused", "example.org.", dns.EDNS0_SUBNET{Family: 1, SourceNetmask: 24, Address: []byte{10, 2, 3, 0}}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			query := new(dns.Msg).SetQuestion(test.question, dns.TypeA)
			query.SetEdns0(1232, false)
			test.subnet.Code = dns.EDNS0SUBNET
			query.IsEdns0().Option = []dns.EDNS0{&test.subnet}
			got := ask(t, s, query)
			want := test.subnet
			want.SourceScope = test.scope
			if back, ok := got.IsEdns0().Option[0].(*dns.EDNS0_SUBNET); !ok || back.String() != want.String() || back.Family != want.Family {
				t.Errorf("got %v, want %v", got.IsEdns0(), &want)
			}
		})
	}
}

// Resolvers put a random pattern of capitals into the name they ask, and drop responses that do not have it (0x20).
func TestTheNameComesBackAsItWasAsked(t *testing.T) {
	s := serverOf(t, "www A 192.0.2.1\n*.wild CNAME www.example.com.\nsub NS ns.sub.example.com.\nns.sub A 192.0.2.2")
	for _, name := range []string{"wWw.ExAmPlE.cOm.", "NONE.example.COM.", "Any.WILD.example.com.", "x.SUB.example.com.", "elsewhere.ORG."} {
		got := ask(t, s, new(dns.Msg).SetQuestion(name, dns.TypeA))
		if got.Question[0].Name != name {
			t.Errorf("asked %s, got %s", name, got.Question[0].Name)
		}
		if len(got.Answer) > 0 && got.Answer[0].Header().Name != name {
			t.Errorf("asked %s, answered %s", name, got.Answer[0].Header().Name)
		}
	}
}

func TestALongResponseIsCutToWhatTheAskerTakes(t *testing.T) {
	var values []string
	for i := range 40 {
		values = append(values, `"`+strings.Repeat(string(rune('a'+i%26)), 50)+string(rune('A'+i%26))+string(rune('0'+i/26))+`"`)
	}
	s := serverOf(t, "long TXT "+strings.Join(values, " - "))
	query := new(dns.Msg).SetQuestion("long.example.com.", dns.TypeTXT)
	for _, test := range []struct {
		name string
		edns uint16 // 0: without
		at   int
	}{
		{"without EDNS", 0, 512},
		{"of a size below the least", 100, 512},
		{"of its own size", 700, 700},
		{"of more than passes everywhere", 4096, payloadSize},
	} {
		t.Run(test.name, func(t *testing.T) {
			query := query.Copy()
			if test.edns > 0 {
				query.SetEdns0(test.edns, false)
			}
			m, err := query.Pack()
			if err != nil {
				t.Fatal(err)
			}
			response := s.respond(make([]byte, roomSize), m, netip.Addr{}, UDP)
			var got dns.Msg
			if err := got.Unpack(response); err != nil {
				t.Fatal(err)
			}
			// A set is sent whole or not at all: part of one would be taken for the set by who does not look at TC (RFC 2181 §9).
			if len(response) > test.at || !got.Truncated || len(got.Answer) != 0 || (got.IsEdns0() != nil) != (test.edns > 0) {
				t.Errorf("got %d bytes, %d records, truncated %v, want up to %d and none", len(response), len(got.Answer), got.Truncated, test.at)
			}
			whole := s.respond(make([]byte, roomSize), m, netip.Addr{}, TCP)
			if err := got.Unpack(whole); err != nil || got.Truncated || len(got.Answer) != 40 {
				t.Errorf("by TCP got %d records, truncated %v: %v", len(got.Answer), got.Truncated, err)
			}
		})
	}
	if n := s.Counters()["dns_answers_truncated_total"]; n != 4 {
		t.Errorf("counted %d, want 4", n)
	}
}

func TestGlueIsNeededAndOtherAdditionsAreNot(t *testing.T) {
	var servers, inside, glue string
	for i := range 30 {
		name := "ns" + string(rune('a'+i%26)) + string(rune('a'+i/26))
		servers += " " + name + ".example.com."
		inside += " " + name + ".sub.example.com."
		for _, name := range []string{name, name + ".sub"} {
			glue += name + " A 192.0.2.1\n" + name + " AAAA 2001:db8::1\n"
		}
	}
	world := worldSpec(t, "sub NS"+inside+"\nbeside NS"+servers+"\n"+glue)
	world.HostedZones["example.com"].NameServers = strings.Fields(servers)
	s := New(Config{})
	if err := s.Apply(world); err != nil {
		t.Fatal(err)
	}
	query := new(dns.Msg).SetQuestion("www.sub.example.com.", dns.TypeA)
	query.SetEdns0(1232, false)
	if got := ask(t, s, query); !got.Truncated || len(got.Ns) != 30 {
		t.Errorf("a delegation without all its glue is not whole: truncated %v, %d servers", got.Truncated, len(got.Ns))
	}
	query.SetQuestion("www.beside.example.com.", dns.TypeA)
	if got := ask(t, s, query); got.Truncated || len(got.Ns) != 30 || len(got.Extra) < 2 {
		t.Errorf("servers that are not below the cut can be found without it: truncated %v, %d servers, %d additional", got.Truncated, len(got.Ns), len(got.Extra))
	}
	query.SetQuestion("example.com.", dns.TypeNS)
	if got := ask(t, s, query); got.Truncated || len(got.Answer) != 30 || len(got.Extra) < 2 || len(got.Extra) > 60 {
		t.Errorf("name servers are an answer without all their addresses: truncated %v, %d of 30, %d additional", got.Truncated, len(got.Answer), len(got.Extra))
	}
}

// mostOf is how long a datagram in response to a message may be.
func mostOf(m []byte) int {
	r, _, _ := parse(m)
	return min(r.size, payloadSize)
}

func FuzzMessage(f *testing.F) {
	s := serverOf(f, site+`
		geo   A 192.0.2.1 ; id=korea country=KR
		sub   NS ns.sub.example.com.
		ns.sub A 192.0.2.2
		cname CNAME www.example.com.
		*.wild TXT "wild"
	`)
	for _, seed := range []string{
		"abcd 0100 0001 0000 0000 0000" + question,
		"abcd 0000 0001 0000 0000 0001" + question + plainOPT,
		"abcd 0000 0001 0000 0000 0001" + question + opt("0008 0007 0001 18 00 0a0203 0003 0000"),
		"abcd 8000 0001 0000 0000 0000" + question,
		"abcd 2800 0001 0000 0000 0000" + question,
		"abcd 0000 0001 0000 0000 0001 07 6578616d706c65 03 636f6d 00 0001 0001" + opt("0008 000a 0002 30 00 20010db80001"),
		"abcd 0000 0001 0000 0000 0000 01 78 03 737562 07 6578616d706c65 03 636f6d 00 002b 0001",
		"abcd 0000 0001 0000 0000 0000 05 636e616d65 07 6578616d706c65 03 636f6d 00 00ff 0001",
		"abcd 0000 0001 0000 0000 0000 01 78 04 77494c44 07 6578616d706c65 03 636f6d 00 0010 0001",
		"",
	} {
		f.Add(bytesOf(f, seed), true)
	}
	limited := limitedTo(f, 1, "www A 192.0.2.1")
	limited.SetCookieSecrets([]CookieSecret{{1}})
	room := make([]byte, roomSize)
	f.Fuzz(func(t *testing.T, m []byte, datagram bool) {
		for range 4 { // of responses that are too many one is sent, one cut, one held
			if response := limited.respond(room, m, netip.MustParseAddr("10.1.0.53"), UDP); response != nil {
				if err := new(dns.Msg).Unpack(response); err != nil {
					t.Fatalf("the limited response cannot be read: %v\n% x", err, response)
				}
			}
		}
		if n := limited.Counters()["dns_panics_total"] + s.Counters()["dns_panics_total"]; n != 0 {
			t.Fatal("it met a fault")
		}
		asked := slices.Clone(m)
		by := TCP
		if datagram {
			by = UDP
		}
		response := s.respond(room, m, netip.MustParseAddr("10.1.0.53"), by)
		if !bytes.Equal(m, asked) {
			t.Fatal("the query was changed")
		}
		if response == nil {
			if len(m) >= headerSize && m[2]&0x80 == 0 {
				t.Fatal("a query had no response")
			}
			return
		}
		var got dns.Msg
		if err := got.Unpack(response); err != nil {
			t.Fatalf("the response cannot be read: %v\n% x", err, response)
		}
		if _, err := got.Pack(); err != nil {
			t.Fatalf("the response cannot be made: %v", err)
		}
		switch {
		case m[2]&0x80 != 0:
			t.Fatal("a response had a response")
		case !bytes.Equal(response[:2], m[:2]):
			t.Fatal("another id")
		case !got.Response:
			t.Fatal("not a response")
		case datagram && len(response) > mostOf(m):
			t.Fatalf("a datagram of %d bytes", len(response))
		}
		// What is understood is understood as by others, and with the same octets.
		var query dns.Msg
		if r, rcode, _ := parse(m); rcode == dns.RcodeSuccess && query.Unpack(m) == nil {
			var name zone.Name
			name.Set(m[headerSize:])
			if q := query.Question[0]; dns.CanonicalName(q.Name) != name.String() || q.Qtype != r.typ || q.Qclass != r.class {
				t.Fatalf("read %s %d %d, others read %v", &name, r.typ, r.class, q)
			}
			if !bytes.Equal(response[headerSize:r.question], m[headerSize:r.question]) {
				t.Fatal("the question came back otherwise")
			}
			if (query.IsEdns0() != nil) != (got.IsEdns0() != nil) {
				t.Fatal("EDNS in the one, not in the other")
			}
		}
	})
}
