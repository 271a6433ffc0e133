package dnsgeo

import (
	"bytes"
	"encoding/hex"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/view"
)

// asking sends a question with an OPT record of options, and returns the response; nil: there was none.
func asking(t *testing.T, s *Server, by Transport, question string, edit func(m *dns.Msg, opt *dns.OPT)) *dns.Msg {
	t.Helper()
	name, typ, _ := strings.Cut(question, " ")
	m := new(dns.Msg).SetQuestion(name, dns.StringToType[typ])
	m.RecursionDesired = false
	opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	opt.SetUDPSize(4096)
	m.Extra = []dns.RR{opt}
	if edit != nil {
		edit(m, opt)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	response := s.respond(make([]byte, roomSize), b, netip.MustParseAddr("198.51.100.100"), by)
	if response == nil {
		return nil
	}
	return unpacked(t, response)
}

// option is that of a code in a response; nil: it has none.
func option(m *dns.Msg, code uint16) dns.EDNS0 {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if o.Option() == code {
				return o
			}
		}
	}
	return nil
}

func cookieOf(s string) func(*dns.Msg, *dns.OPT) {
	return func(_ *dns.Msg, opt *dns.OPT) {
		opt.Option = append(opt.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: s})
	}
}

// What the public tests of EDNS compliance ask (ednscomp.isc.org), each with what it wants.
func TestEDNSIsAnsweredAsThePublicTestsWant(t *testing.T) {
	s := serverOf(t, "www A 192.0.2.1")
	s.SetCookieSecrets([]CookieSecret{{1}})
	unknown := func(_ *dns.Msg, opt *dns.OPT) {
		opt.Option = append(opt.Option, &dns.EDNS0_LOCAL{Code: 100, Data: []byte("x")})
	}
	one := func(_ *dns.Msg, opt *dns.OPT) { opt.SetVersion(1) }
	flags := func(_ *dns.Msg, opt *dns.OPT) { opt.Hdr.Ttl |= 0x80 }
	do := func(_ *dns.Msg, opt *dns.OPT) { opt.SetDo() }
	cookie := cookieOf("0102030405060708")
	all := func(edits ...func(*dns.Msg, *dns.OPT)) func(*dns.Msg, *dns.OPT) {
		return func(m *dns.Msg, opt *dns.OPT) {
			for _, edit := range edits {
				edit(m, opt)
			}
		}
	}
	for _, test := range []struct {
		name  string
		edit  func(*dns.Msg, *dns.OPT)
		by    Transport
		rcode int
	}{
		{"plain", func(m *dns.Msg, _ *dns.OPT) { m.Extra = nil }, UDP, dns.RcodeSuccess},
		{"edns", nil, UDP, dns.RcodeSuccess},
		{"edns1", one, UDP, dns.RcodeBadVers},
		{"edns@512", func(_ *dns.Msg, opt *dns.OPT) { opt.SetUDPSize(512) }, UDP, dns.RcodeSuccess},
		{"ednsopt", unknown, UDP, dns.RcodeSuccess},
		{"edns1opt", all(one, unknown), UDP, dns.RcodeBadVers},
		{"do", do, UDP, dns.RcodeSuccess},
		{"docookie", all(do, cookie), UDP, dns.RcodeSuccess},
		{"ednsflags", flags, UDP, dns.RcodeSuccess},
		{"edns1flags", all(one, flags), UDP, dns.RcodeBadVers},
		{"opt list", all(unknown, cookie, func(_ *dns.Msg, opt *dns.OPT) {
			opt.Option = append(opt.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID}, &dns.EDNS0_EXPIRE{Code: dns.EDNS0EXPIRE, Empty: true},
				&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, Address: []byte{0, 0, 0, 0}})
		}), UDP, dns.RcodeSuccess},
		{"ednstcp", nil, TCP, dns.RcodeSuccess},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := asking(t, s, test.by, "example.com. SOA", test.edit)
			sent := new(dns.OPT)
			sent.Hdr.Name, sent.Hdr.Rrtype = ".", dns.TypeOPT
			m := &dns.Msg{Extra: []dns.RR{sent}}
			if test.edit != nil {
				test.edit(m, sent)
			}
			if got.Rcode != test.rcode {
				t.Fatalf("got %s", dns.RcodeToString[got.Rcode])
			}
			if soa := len(got.Answer) == 1 && got.Authoritative; soa != (test.rcode == dns.RcodeSuccess) {
				t.Errorf("there is a SOA: %v", soa)
			}
			opt := got.IsEdns0()
			if (opt != nil) != (len(m.Extra) == 1) {
				t.Fatalf("there is an OPT: %v", opt != nil)
			}
			if opt == nil {
				return
			}
			if opt.Version() != 0 || opt.Do() != sent.Do() || opt.Hdr.Ttl&0x7fff != 0 {
				t.Errorf("got %v", opt)
			}
			if option(got, 100) != nil {
				t.Error("an unknown option came back")
			}
			if wants := len(sent.Option) > 0 && strings.Contains(test.name, "o") && option(m, dns.EDNS0COOKIE) != nil; wants != (option(got, dns.EDNS0COOKIE) != nil) {
				t.Errorf("a cookie: want %v", wants)
			}
		})
	}
}

func TestACookieIsGivenAndTaken(t *testing.T) {
	s, other := serverOf(t, "www A 192.0.2.1"), serverOf(t, "www A 192.0.2.1")
	s.SetCookieSecrets([]CookieSecret{{1}})
	other.SetCookieSecrets([]CookieSecret{{2}, {1}})
	got := asking(t, s, UDP, "www.example.com. A", cookieOf("0102030405060708"))
	given := option(got, dns.EDNS0COOKIE).(*dns.EDNS0_COOKIE).Cookie
	if len(given) != 2*cookieSize || len(got.Answer) != 1 {
		t.Fatalf("got %v", got)
	}
	asking(t, other, UDP, "www.example.com. A", cookieOf(given))
	if n := other.Counters()["dns_cookies_valid_total"]; n != 1 {
		t.Error("another node does not take it")
	}
	for _, bad := range []int{1, 7, 9, 15, 41} {
		got := asking(t, s, UDP, "www.example.com. A", cookieOf(hex.EncodeToString(make([]byte, bad))))
		if got.Rcode != dns.RcodeFormatError {
			t.Errorf("%d bytes: got %s", bad, dns.RcodeToString[got.Rcode])
		}
	}
	// A query for the cookie alone (RFC 7873 §5.4).
	alone := asking(t, s, UDP, "www.example.com. A", func(m *dns.Msg, opt *dns.OPT) {
		m.Question = nil
		cookieOf("0102030405060708")(m, opt)
	})
	if alone.Rcode != dns.RcodeSuccess || len(alone.Question)+len(alone.Answer) != 0 || option(alone, dns.EDNS0COOKIE) == nil {
		t.Errorf("got %v", alone)
	}
	s.SetCookieSecrets(nil)
	if got := asking(t, s, UDP, "www.example.com. A", cookieOf("0102030405060708")); option(got, dns.EDNS0COOKIE) != nil {
		t.Error("without a secret a cookie was given")
	}
}

func TestOptionsOfTransportsAreAnsweredThereOnly(t *testing.T) {
	s := serverOf(t, "www A 192.0.2.1")
	both := func(_ *dns.Msg, opt *dns.OPT) {
		opt.Option = append(opt.Option, &dns.EDNS0_TCP_KEEPALIVE{Code: dns.EDNS0TCPKEEPALIVE}, &dns.EDNS0_PADDING{Padding: make([]byte, 5)})
	}
	for by, want := range map[Transport]struct{ keepalive, padding bool }{UDP: {}, TCP: {true, false}, TLS: {true, true}, HTTPS: {false, true}} {
		got := asking(t, s, by, "www.example.com. A", both)
		if (option(got, dns.EDNS0TCPKEEPALIVE) != nil) != want.keepalive || (option(got, dns.EDNS0PADDING) != nil) != want.padding {
			t.Errorf("%v: got %v", by, got)
		}
		got.Compress = true
		if b, err := got.Pack(); err != nil || want.padding && len(b)%paddingBlock != 0 {
			t.Errorf("%v: %d bytes, %v", by, len(b), err)
		}
		if got := asking(t, s, by, "www.example.com. A", nil); len(got.IsEdns0().Option) != 0 {
			t.Errorf("%v: options that nobody asked for: %v", by, got)
		}
	}
	if asking(t, s, QUIC, "www.example.com. A", both) != nil {
		t.Error("QUIC has no keepalive (RFC 9250 §5.5.2)")
	}
}

func TestErrorsSayWhy(t *testing.T) {
	s := serverOf(t, "www A 192.0.2.1\napp A ; alias=loadBalancer:web-icn")
	dead := New(Config{View: func() *view.View { return worldView("icn1", "nrt1", "iad1", "dub1") }, Geo: places(t)})
	if err := dead.Apply(worldSpec(t, "app A ; alias=loadBalancer:web-icn")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		s        *Server
		question string
		want     uint16
	}{
		{s, "other.test. A", dns.ExtendedErrorCodeNotAuthoritative},
		{s, "example.com. AXFR", dns.ExtendedErrorCodeProhibited},
		{New(Config{}), "www.example.com. A", dns.ExtendedErrorCodeNotReady},
		{dead, "app.example.com. A", dns.ExtendedErrorCodeNoReachableAuthority},
	} {
		ede, ok := option(asking(t, test.s, UDP, test.question, nil), dns.EDNS0EDE).(*dns.EDNS0_EDE)
		if !ok || ede.InfoCode != test.want {
			t.Errorf("%s: got %v, want %d", test.question, ede, test.want)
		}
	}
	if got := asking(t, s, UDP, "www.example.com. A", nil); option(got, dns.EDNS0EDE) != nil {
		t.Errorf("a good answer has an error: %v", got)
	}
}

// limitedTo is a server that sends a network so many responses of a class in a second.
func limitedTo(t testing.TB, rate int, records string) *Server {
	t.Helper()
	s := serverOf(t, records)
	s.limit = newLimiter(rate)
	return s
}

func TestWhoIsProvenIsNotLimited(t *testing.T) {
	s := limitedTo(t, 1, "www A 192.0.2.1")
	s.SetCookieSecrets([]CookieSecret{{1}})
	given := option(asking(t, s, UDP, "www.example.com. A", cookieOf("0102030405060708")), dns.EDNS0COOKIE).(*dns.EDNS0_COOKIE).Cookie
	var whole, cut, bad, held int
	for i := range 40 {
		edit := cookieOf("0102030405060708")
		if i%2 == 0 {
			edit = nil
		}
		switch got := asking(t, s, UDP, "www.example.com. A", edit); {
		case got == nil:
			held++
		case got.Rcode == dns.RcodeBadCookie && option(got, dns.EDNS0COOKIE) != nil && len(got.Answer) == 0 && !got.Truncated:
			bad++
		case got.Truncated && len(got.Answer) == 0 && got.Rcode == dns.RcodeSuccess && edit == nil:
			cut++
		default:
			whole++
		}
	}
	if whole > 2 || held < 18 || cut+bad < 18 {
		t.Errorf("%d whole, %d to come by TCP, %d to come with the cookie, %d held", whole, cut, bad, held)
	}
	for range 40 {
		for by, edit := range map[Transport]func(*dns.Msg, *dns.OPT){UDP: cookieOf(given), TCP: nil, TLS: nil} {
			if got := asking(t, s, by, "www.example.com. A", edit); got == nil || len(got.Answer) != 1 {
				t.Fatalf("%v: got %v", by, got)
			}
		}
	}
}

// What is too much is cut or held whatever it is: a message that was not understood has no question to be repeated. A client is told to
// come with a cookie only where it is given one.
func TestWhatIsNoQueryIsLimitedToo(t *testing.T) {
	for _, secrets := range [][]CookieSecret{nil, {{1}}} {
		for name, message := range map[string]string{
			"STATUS":                         "abcd 1000 0000 0000 0000 0000",
			"STATUS with EDNS":               "abcd 1000 0001 0000 0000 0001" + question + plainOPT,
			"two questions":                  "abcd 0000 0002 0000 0000 0000" + question + question,
			"half a question":                "abcd 0000 0001 0000 0000 0000 03 7777",
			"a name of no form":              "abcd 0000 0001 0000 0000 0000 80 00 0001 0001",
			"bytes behind it":                "abcd 0000 0001 0000 0000 0000" + question + "00",
			"bytes behind it, with a cookie": "abcd 0000 0001 0000 0000 0001" + question + opt("000a 0008 0102030405060708") + "00",
			"a cookie alone":                 "abcd 0000 0000 0000 0000 0001" + opt("000a 0008 0102030405060708"),
			"a query with a cookie":          "abcd 0000 0001 0000 0000 0001" + question + opt("000a 0008 0102030405060708"),
			"of EDNS version 1":              "abcd 0000 0001 0000 0000 0001" + question + "00 0029 04d0 00010000 0000",
		} {
			s := limitedTo(t, 1, "www A 192.0.2.1")
			s.SetCookieSecrets(secrets)
			room, m := make([]byte, roomSize), bytesOf(t, message)
			var cut, held int
			for range 10 {
				response := s.respond(room, m, netip.MustParseAddr("203.0.113.1"), UDP)
				if response == nil {
					held++
					continue
				}
				var got dns.Msg
				if err := got.Unpack(response); err != nil {
					t.Fatalf("%s: %v: % x", name, err, response)
				}
				given := option(&got, dns.EDNS0COOKIE) != nil
				switch {
				case got.Truncated && !given:
					cut++
				case got.Rcode == dns.RcodeBadCookie && given:
					cut++
				case got.Truncated || got.Rcode == dns.RcodeBadCookie:
					t.Errorf("%s: got %v", name, &got)
				}
			}
			if c := s.Counters(); cut < 4 || held < 4 || c["dns_panics_total"] != 0 || c["dns_responses_cut_total"] != uint64(cut) {
				t.Errorf("%s: %d cut, %d held, %d faults", name, cut, held, c["dns_panics_total"])
			}
		}
	}
}

// A fault of this code ends the message that found it, and nothing else.
func TestAFaultEndsItsMessageOnly(t *testing.T) {
	var log bytes.Buffer
	s := serverOf(t, "www A 192.0.2.1")
	s.config.Log = slog.New(slog.NewTextHandler(&log, nil))
	looks := s.config.View
	s.config.View = func() *view.View { panic("a fault") }
	for range 10 {
		if got := asking(t, s, UDP, "www.example.com. A", nil); got != nil {
			t.Errorf("got %v", got)
		}
	}
	s.config.View = looks
	if got := asking(t, s, UDP, "www.example.com. A", nil); got == nil || len(got.Answer) != 1 {
		t.Errorf("after it: %v", got)
	}
	if n := s.Counters()["dns_panics_total"]; n != 10 || strings.Count(log.String(), "fault=\"a fault\"") != 4 || !strings.Contains(log.String(), "respond.go") {
		t.Errorf("%d faults, the log has\n%s", n, &log)
	}
}

// A flood of queries in the name of a victim brings it fewer bytes than are sent.
func TestAFloodIsNotAmplified(t *testing.T) {
	records := "big TXT " + strings.TrimPrefix(strings.Repeat(` - "`+strings.Repeat("x", 200)+`"`, 5), " - ")
	s := limitedTo(t, 20, records)
	for _, question := range []string{"big.example.com. TXT", "big.example.com. ANY", "none.example.com. A", "other.test. A", "example.com. NS"} {
		m := new(dns.Msg).SetQuestion(strings.Fields(question)[0], dns.StringToType[strings.Fields(question)[1]])
		m.SetEdns0(4096, true)
		query, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		in, out := 0, 0
		room := make([]byte, roomSize)
		for i := range 2_000 {
			in += len(query)
			response := s.respond(room, query, netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), UDP)
			if len(response) > payloadSize {
				t.Fatalf("%s: %d bytes", question, len(response))
			}
			out += len(response)
		}
		if out > in {
			t.Errorf("%s: %d bytes brought %d", question, in, out)
		}
	}
}
