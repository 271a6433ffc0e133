package dnsgeo

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// Each type that a zone may hold is answered as it was written.
func TestEachTypeIsAnswered(t *testing.T) {
	records := map[string]string{
		"A": "192.0.2.1", "AAAA": "2001:db8::1", "CAA": `0 issue "ca.example.net"`, "CNAME": "www.example.net.", "DNAME": "example.net.",
		"DS":    "60485 5 1 2BB183AF5F22588179A53B0A98631FAD1A292118",
		"HTTPS": `1 . alpn="h3,h2" ipv4hint="192.0.2.1"`, "SVCB": `16 foo.example.org. alpn="h2,h3-19" mandatory="ipv4hint,alpn" ipv4hint="192.0.2.1"`,
		"MX": "10 mail.example.com.", "NAPTR": `100 50 "s" "z3950+I2L+I2C" "" _z3950._tcp.example.com.`, "NS": "ns.example.net.", "PTR": "www.example.com.",
		"SPF": `"v=spf1 -all"`, "SRV": "1 2 5060 www.example.com.", "TXT": `"two" "strings"`,
		"SSHFP": "2 1 123456789ABCDEF67890123456789ABCDEF67890",
		"TLSA":  "0 0 1 D2ABDE240D7CD3EE6B4B28C54DF034B97983A1D16E8A410E4561CB106618E971",
	}
	text := ""
	for typ, value := range records {
		if typ == "DS" {
			text += "x-ds NS ns.example.net.\n" // of a zone that is delegated
		}
		text += "x-" + typ + " " + typ + " " + value + "\n"
	}
	s := serverOf(t, text)
	for typ, value := range records {
		name := "x-" + typ + ".example.com."
		m := new(dns.Msg).SetQuestion(name, dns.StringToType[typ])
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		got := unpacked(t, s.respond(make([]byte, roomSize), b, netip.MustParseAddr("10.1.0.53"), TCP))
		all := got.Answer
		if typ == "NS" { // a delegation: the answer is another server's
			all = got.Ns
		}
		want, err := dns.NewRR(name + " 60 IN " + typ + " " + value)
		if err != nil {
			t.Fatal(typ, err)
		}
		wire := func(r dns.RR) string {
			b := make([]byte, 512)
			n, err := dns.PackRR(r, b, 0, nil, false)
			if err != nil {
				t.Fatal(typ, err)
			}
			return string(b[:n])
		}
		if len(all) != 1 || wire(all[0]) != wire(want) {
			t.Errorf("%s: got %v, want %v", typ, got, want)
		}
	}
}
