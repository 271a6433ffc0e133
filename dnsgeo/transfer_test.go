package dnsgeo

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

var tsigSecret = base64.StdEncoding.EncodeToString([]byte("the secret of these tests"))

// allowing is a spec with a zone of the records that may be had as said, and keys k. and other.
func allowing(t testing.TB, records string, allow ...spec.TransferAllow) *spec.Spec {
	t.Helper()
	s := worldSpec(t, records)
	s.TsigKeys = tsigKeys(t)
	z := *s.HostedZones["example.com"]
	z.Transfer.Allow = allow
	s.HostedZones["example.com"] = &z
	return s
}

func tsigKeys(t testing.TB) map[string]*spec.TsigKey {
	t.Helper()
	docs, err := spec.Split("keys", []byte(fmt.Sprintf("{kind: TsigKey, name: k, secret: %q}\n---\n{kind: TsigKey, name: other, algorithm: hmac-sha512, secret: %q}\n", tsigSecret, tsigSecret)))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := spec.Build(1, docs, spec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return keys.TsigKeys
}

func cidrs(texts ...string) (networks []netip.Prefix) {
	for _, text := range texts {
		networks = append(networks, netip.MustParsePrefix(text))
	}
	return networks
}

// transferred is what a client of miekg/dns is given, how many messages it took, and the error it ends with.
func transferred(conn net.Conn, q *dns.Msg, key string) (records []dns.RR, messages int, err error) {
	in := &dns.Transfer{Conn: &dns.Conn{Conn: conn}}
	if key != "" {
		in.TsigSecret = map[string]string{"k.": tsigSecret, "other.": tsigSecret, "wrong.": tsigSecret}
		algorithm := dns.HmacSHA256
		if key == "other." {
			algorithm = dns.HmacSHA512
		}
		q.SetTsig(key, algorithm, 300, time.Now().Unix())
	}
	envelopes, err := in.In(q, "pipe")
	if err != nil {
		return nil, 0, err
	}
	for e := range envelopes {
		if e.Error != nil {
			return records, messages, e.Error
		}
		records = append(records, e.RR...)
		messages++
	}
	return records, messages, nil
}

func axfr(name string) *dns.Msg { return new(dns.Msg).SetAxfr(name) }

func sorted(records []dns.RR) []string {
	var lines []string
	for _, rr := range records {
		lines = append(lines, strings.ReplaceAll(rr.String(), "\t", " "))
	}
	slices.Sort(lines)
	return lines
}

func TestAZoneIsTransferredWholeAndEachMessageIsSigned(t *testing.T) {
	var records strings.Builder
	records.WriteString("@ MX 10 mail.example.net.\n*.wild A 192.0.2.7\nsub NS ns.sub.example.com.\nns.sub A 192.0.2.8\nlong TXT \"" + strings.Repeat("x", 200) + "\"\n")
	for i := range 3000 {
		fmt.Fprintf(&records, "host%d.deep 60 A 192.0.2.1 192.0.2.2\n", i)
	}
	for _, key := range []string{"", "k.", "other."} {
		synctest.Test(t, func(t *testing.T) {
			s, d := New(Config{}), newDoor()
			allow := spec.TransferAllow{CIDRs: cidrs("10.1.0.0/16"), Key: strings.TrimSuffix(key, ".")}
			if err := s.Apply(allowing(t, records.String(), allow)); err != nil {
				t.Fatal(err)
			}
			go s.ServeStream(d)
			synctest.Wait()
			conn := d.dialFrom(netip.MustParseAddr("10.1.0.53"))
			defer s.Close()
			defer conn.Close()
			got, messages, err := transferred(conn, axfr("example.com."), key)
			if err != nil {
				t.Fatal(err)
			}
			table := s.table.Load()
			want := []string{}
			for r := range table.zones.Records(table.zones.Find(nameOf(t, "example.com."), 0)) {
				rr := record{typ: r.Type, ttl: r.TTL, data: r.Data}
				want = append(want, strings.ReplaceAll(rr.shown(r.Owner).String(), "\t", " "))
			}
			slices.Sort(want)
			if soa := got[0]; soa.Header().Rrtype != dns.TypeSOA || got[len(got)-1].String() != soa.String() {
				t.Errorf("it begins with %v and ends with %v", got[0], got[len(got)-1])
			}
			if lines := sorted(got[:len(got)-1]); !slices.Equal(lines, want) {
				t.Errorf("%d records, want %d", len(lines), len(want))
			}
			if messages < 5 {
				t.Errorf("it took %d messages", messages)
			}
			synctest.Wait()
			if c := s.Counters(); c["dns_transfers_out_total"] != 1 || c["dns_transfers_out_failed_total"] != 0 || key != "" && c["dns_tsig_verified_total"] != 1 {
				t.Errorf("counted %v", c)
			}
		})
	}
}

func isAnsweredFor(t *testing.T, conn net.Conn, name string) {
	t.Helper()
	send(t, conn, framed(packed(t, name, dns.TypeA)))
	if got := receive(t, conn); len(got.Answer) == 0 {
		t.Errorf("got %v", got)
	}
}

// What a zone file cannot say is what a client that is nowhere is answered.
func TestChoicesAndAliasesAreTransferredAsOneAnswer(t *testing.T) {
	const records = `
		@ A ; alias=distribution:site
		w 60 A 192.0.2.1 ; id=a weight=1
		w 60 A 192.0.2.2 ; id=b weight=0
		geo 60 A 192.0.2.1 ; id=kr country=KR
		geo 60 A 192.0.2.2 ; id=all country=*
		only 60 A 192.0.2.1 ; id=kr country=KR
		c 60 CNAME one.example.net. ; id=a failover=PRIMARY
		c 60 CNAME two.example.net. ; id=b failover=SECONDARY
		acc A ; alias=accelerator:echo
	`
	synctest.Test(t, func(t *testing.T) {
		v := worldView()
		s, d := New(Config{View: nil}), newDoor()
		s.config.View = func() *view.View { return v }
		if err := s.Apply(allowing(t, records, spec.TransferAllow{CIDRs: cidrs("10.1.0.53/32")})); err != nil {
			t.Fatal(err)
		}
		go s.ServeStream(d)
		synctest.Wait()
		conn := d.dialFrom(netip.MustParseAddr("10.1.0.53"))
		defer s.Close()
		defer conn.Close()
		got, _, err := transferred(conn, axfr("example.com."), "")
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, line := range sorted(got) {
			if !strings.Contains(line, " NS ") && !strings.Contains(line, " SOA ") {
				lines = append(lines, strings.ReplaceAll(line, " IN ", " "))
			}
		}
		want := []string{
			"acc.example.com. 30 A 203.0.113.1", "acc.example.com. 30 A 203.0.113.2", "c.example.com. 60 CNAME one.example.net.",
			"example.com. 30 A 192.0.2.10", "example.com. 30 A 192.0.2.11", "geo.example.com. 60 A 192.0.2.2",
			"ns-dub1.example.com. 30 A 192.0.2.40", "ns-iad1.example.com. 30 A 192.0.2.30", "ns-iad1.example.com. 30 AAAA 2001:db8::30",
			"ns-icn1.example.com. 30 A 192.0.2.10", "ns-icn1.example.com. 30 A 192.0.2.11", "ns-icn1.example.com. 30 AAAA 2001:db8::10",
			"ns-icn1.example.com. 30 AAAA 2001:db8::11", "ns-nrt1.example.com. 30 A 192.0.2.20", "ns-nrt1.example.com. 30 AAAA 2001:db8::20",
			"w.example.com. 60 A 192.0.2.1",
		}
		if !slices.Equal(lines, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestAZoneIsGivenToWhomItIsAllowed(t *testing.T) {
	here, there := "10.1.0.53", "10.2.0.53"
	only := func(cidr, key string) []spec.TransferAllow {
		a := spec.TransferAllow{Key: key}
		if cidr != "" {
			a.CIDRs = cidrs(cidr)
		}
		return []spec.TransferAllow{a}
	}
	for _, test := range []struct {
		name    string
		allow   []spec.TransferAllow
		from    string
		q       *dns.Msg
		key     string
		want    string // part of the error; empty: it is given
		counter string
	}{
		{"nobody may", nil, here, axfr("example.com."), "", "bad xfr rcode: 5", "dns_transfers_out_refused_total"},
		{"from the network", only("10.1.0.0/16", ""), here, axfr("example.com."), "", "", ""},
		{"from another", only("10.1.0.0/16", ""), there, axfr("example.com."), "", "bad xfr rcode: 5", "dns_transfers_out_refused_total"},
		{"by the key, from anywhere", only("", "k"), there, axfr("example.com."), "k.", "", ""},
		{"not signed", only("", "k"), here, axfr("example.com."), "", "bad xfr rcode: 5", "dns_transfers_out_refused_total"},
		{"by another key", only("", "k"), here, axfr("example.com."), "other.", "bad xfr rcode: 5", "dns_transfers_out_refused_total"},
		{"by the key, from another network", only("10.1.0.0/16", "k"), there, axfr("example.com."), "k.", "bad xfr rcode: 5", "dns_transfers_out_refused_total"},
		{"by a key that there is not", only("", "k"), here, axfr("example.com."), "wrong.", "bad authentication", "dns_tsig_badkey_total"},
		{"a name in the zone", only("10.1.0.0/16", ""), here, axfr("www.example.com."), "", "bad xfr rcode: 5", "dns_transfers_out_refused_total"},
		{"another zone", only("10.1.0.0/16", ""), here, axfr("example.net."), "", "bad xfr rcode: 5", "dns_transfers_out_refused_total"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, d := New(Config{}), newDoor()
				if err := s.Apply(allowing(t, "www A 192.0.2.1", test.allow...)); err != nil {
					t.Fatal(err)
				}
				go s.ServeStream(d)
				synctest.Wait()
				conn := d.dialFrom(netip.MustParseAddr(test.from))
				defer s.Close()
				defer conn.Close()
				_, _, err := transferred(conn, test.q, test.key)
				if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
					t.Errorf("got %v, want %q", err, test.want)
				}
				synctest.Wait()
				if c := s.Counters(); test.counter != "" && c[test.counter] != 1 || test.want != "" && c["dns_transfers_out_total"] != 0 {
					t.Errorf("counted %v", c)
				}
			})
		})
	}
}

func TestAnIncrementalTransferIsTheSOAOrTheWholeZone(t *testing.T) {
	for _, test := range []struct {
		serial  uint32
		records int
	}{{7, 1}, {8, 1}, {6, 8}, {7 + 1<<31, 8}, {0, 8}} {
		synctest.Test(t, func(t *testing.T) {
			s, d, w := New(Config{}), newDoor(), newWire()
			if err := s.Apply(allowing(t, "www A 192.0.2.1 192.0.2.2", spec.TransferAllow{CIDRs: cidrs("10.1.0.0/16")})); err != nil {
				t.Fatal(err)
			}
			go s.ServeStream(d)
			go s.ServePacket(w)
			synctest.Wait()
			conn := d.dialFrom(netip.MustParseAddr("10.1.0.53"))
			defer s.Close()
			defer conn.Close()
			q := new(dns.Msg).SetIxfr("example.com.", test.serial, ".", ".")
			m, err := q.Pack()
			if err != nil {
				t.Fatal(err)
			}
			send(t, conn, framed(m))
			if got := receive(t, conn); len(got.Answer) != test.records || got.Answer[0].Header().Rrtype != dns.TypeSOA {
				t.Errorf("serial %d: got %v", test.serial, got)
			}
			isAnsweredFor(t, conn, "www.example.com.") // the connection is as it was before
			w.in <- m
			if got := unpacked(t, <-w.out); len(got.Answer) != 1 || got.Answer[0].Header().Rrtype != dns.TypeSOA || got.Question[0].Qtype != dns.TypeIXFR {
				t.Errorf("by UDP, serial %d: got %v", test.serial, got)
			}
		})
	}
}

func TestTransfersKeepTheirBounds(t *testing.T) {
	var records strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&records, "host%d A 192.0.2.1\n", i)
	}
	synctest.Test(t, func(t *testing.T) {
		s, d := New(Config{}), newDoor()
		if err := s.Apply(allowing(t, records.String(), spec.TransferAllow{CIDRs: cidrs("10.0.0.0/8")})); err != nil {
			t.Fatal(err)
		}
		go s.ServeStream(d)
		synctest.Wait()
		var conns []net.Conn
		begin := func(from netip.Addr) net.Conn {
			conn := d.dialFrom(from)
			conns = append(conns, conn)
			send(t, conn, framed(must(axfr("example.com.").Pack())))
			synctest.Wait()
			return conn
		}
		for i := range maxTransfersPerClient {
			begin(netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}))
		}
		if got := receive(t, begin(netip.MustParseAddr("10.1.0.99"))); got.Rcode != dns.RcodeRefused {
			t.Errorf("one more of a client: %v", got)
		}
		for i := range maxTransfers - maxTransfersPerClient {
			begin(netip.AddrFrom4([4]byte{10, 2, byte(i), 1}))
		}
		if got := receive(t, begin(netip.MustParseAddr("10.3.0.1"))); got.Rcode != dns.RcodeRefused {
			t.Errorf("one more of all: %v", got)
		}
		if c := s.Counters(); c["dns_transfers_out_over_bounds_total"] != 2 || c["dns_transfers_out_total"] != maxTransfers {
			t.Errorf("counted %v", c)
		}
		time.Sleep(idleTimeout + time.Second) // nobody has taken anything
		synctest.Wait()
		if c := s.Counters(); c["dns_transfers_out_failed_total"] != maxTransfers || s.transfers.all != 0 || len(s.transfers.of) != 0 {
			t.Errorf("counted %v, and %d have a place", c, s.transfers.all)
		}
		for _, c := range conns {
			c.Close()
		}
		s.Close()
	})
}

func TestSignedQueriesAreAnsweredAndSigned(t *testing.T) {
	long := "long TXT"
	for i := range 30 {
		long += ` - "` + strings.Repeat(string(rune('a'+i%26)), 60+i) + `"`
	}
	synctest.Test(t, func(t *testing.T) {
		s, w := New(Config{}), newWire()
		if err := s.Apply(allowing(t, "www A 192.0.2.1\n"+strings.Replace(long, " - ", " ", 1))); err != nil {
			t.Fatal(err)
		}
		go s.ServePacket(w)
		for _, test := range []struct {
			name, key string
			typ       uint16
			later     time.Duration
			rcode     int
			wrong     uint16
			counter   string
		}{
			{"example.com.", "k.", dns.TypeSOA, 0, dns.RcodeSuccess, 0, "dns_tsig_verified_total"},
			{"nowhere.example.com.", "other.", dns.TypeA, 0, dns.RcodeNameError, 0, "dns_tsig_verified_total"},
			{"long.example.com.", "k.", dns.TypeTXT, 0, dns.RcodeSuccess, 0, "dns_tsig_verified_total"},
			{"example.com.", "wrong.", dns.TypeSOA, 0, dns.RcodeNotAuth, dns.RcodeBadKey, "dns_tsig_badkey_total"},
			{"example.com.", "k.", dns.TypeSOA, time.Hour, dns.RcodeNotAuth, dns.RcodeBadTime, "dns_tsig_badtime_total"},
		} {
			before := s.Counters()[test.counter]
			q := new(dns.Msg).SetQuestion(test.name, test.typ)
			q.SetEdns0(4096, false)
			algorithm := dns.HmacSHA256
			if test.key == "other." {
				algorithm = dns.HmacSHA512
			}
			q.SetTsig(test.key, algorithm, 300, time.Now().Add(-test.later).Unix())
			m, mac, err := dns.TsigGenerate(q, tsigSecret, "", false)
			if err != nil {
				t.Fatal(err)
			}
			w.in <- m
			response := <-w.out
			got := unpacked(t, response)
			sig := got.IsTsig()
			if sig == nil || sig.Error != test.wrong || got.Rcode != test.rcode || len(response) > payloadSize {
				t.Errorf("%s: got %d bytes: %v", test.name, len(response), got)
			} else if test.wrong == 0 {
				if err := dns.TsigVerify(response, tsigSecret, mac, false); err != nil {
					t.Errorf("%s: %v", test.name, err)
				}
			}
			if got.Truncated != (test.typ == dns.TypeTXT) {
				t.Errorf("%s: truncated is %v", test.name, got.Truncated)
			}
			if n := s.Counters()[test.counter]; n != before+1 {
				t.Errorf("%s: %s is %d", test.name, test.counter, n)
			}
		}
		// A record of the kind that is not the last, and a signature that is another's.
		q := new(dns.Msg).SetQuestion("example.com.", dns.TypeSOA)
		q.SetTsig("k.", dns.HmacSHA256, 300, time.Now().Unix())
		m, _, err := dns.TsigGenerate(q, tsigSecret, "", false)
		if err != nil {
			t.Fatal(err)
		}
		m[1] ^= 1
		m[len(m)-10] ^= 1
		w.in <- m
		if got := unpacked(t, <-w.out); got.Rcode != dns.RcodeNotAuth || got.IsTsig().Error != dns.RcodeBadSig {
			t.Errorf("got %v", got)
		}
		q.SetTsig("k.", dns.HmacSHA256, 300, time.Now().Unix())
		q.Extra = append(q.Extra, &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}})
		w.in <- must(q.Pack())
		if got := unpacked(t, <-w.out); got.Rcode != dns.RcodeFormatError || got.IsTsig() != nil {
			t.Errorf("got %v", got)
		}
		if c := s.Counters(); c["dns_tsig_badsig_total"] != 1 || c["dns_tsig_malformed_total"] != 1 {
			t.Errorf("counted %v", c)
		}
		s.Close()
	})
}

// The kernel is needed for this one: what is sent is what was made, not what stood in its place before.
func TestSignedQueriesAreAnsweredByARealSocket(t *testing.T) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Name: strings.Repeat("n", 100)})
	if err := s.Apply(allowing(t, "www A 192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- s.ServePacket(conn) }()
	client, err := net.Dial("udp4", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	ask := func(m []byte) (response []byte, got *dns.Msg) {
		send(t, client, m)
		b := make([]byte, dns.MaxMsgSize)
		n, err := client.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return b[:n], unpacked(t, b[:n])
	}
	longest := strings.Repeat(strings.Repeat("k", 63)+".", 3) + strings.Repeat("k", 61) + "."
	for _, key := range []string{"k.", "wrong.", longest} {
		ask(packed(t, "www.example.com.", dns.TypeA)) // leaves its own response in the room
		q := new(dns.Msg).SetQuestion(strings.Repeat(strings.Repeat("w", 63)+".", 3)+strings.Repeat("w", 49)+".example.com.", dns.TypeA)
		q.SetEdns0(4096, false).IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_NSID{Code: dns.EDNS0NSID}}
		q.SetTsig(key, dns.HmacSHA256, 300, time.Now().Unix())
		m, mac, err := dns.TsigGenerate(q, tsigSecret, "", false)
		if err != nil {
			t.Fatal(err)
		}
		response, got := ask(m)
		sig := got.IsTsig()
		switch {
		case got.Id != q.Id || got.Question[0] != q.Question[0] || sig == nil || sig.Hdr.Name != key:
			t.Errorf("%s: got %v", key, got)
		case key != "k.":
			if got.Rcode != dns.RcodeNotAuth || sig.Error != dns.RcodeBadKey {
				t.Errorf("%s: got %v", key, got)
			}
		case got.Rcode != dns.RcodeNameError:
			t.Errorf("got %v", got)
		default:
			if err := dns.TsigVerify(response, tsigSecret, mac, false); err != nil {
				t.Error(err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func nameOf(t testing.TB, text string) *zone.Name {
	t.Helper()
	n := new(zone.Name)
	if err := n.Parse(text); err != nil {
		t.Fatal(err)
	}
	return n
}
