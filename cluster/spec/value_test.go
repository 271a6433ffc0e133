package spec

import (
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

const (
	sha1Digits   = "0123456789abcdef0123456789abcdef01234567"
	sha256Digits = sha1Digits + "0123456789abcdef01234567"
	sha384Digits = sha256Digits + "0123456789abcdef0123456789abcdef"
)

// values are right ones of every type, each with its canonical form.
var values = []struct{ typ, value, canonical string }{
	{"A", "192.0.2.1", "192.0.2.1"},
	{"AAAA", "2001:DB8::1", "2001:db8::1"},
	{"CNAME", `a\.b.Example.com`, `a\046b.Example.com.`},
	{"CNAME", `0/25.2.0.192.in-addr.arpa`, `0/25.2.0.192.in-addr.arpa.`},
	{"CNAME", `\097.example.com`, `a.example.com.`},
	{"DNAME", "other.example.net", "other.example.net."},
	{"NS", "ns1.example.com", "ns1.example.com."},
	{"PTR", `\#1.example.com.`, `\0351.example.com.`},
	{"MX", "010  mail.example.com", "10 mail.example.com."},
	{"SRV", "0 5 443 www.example.com", "0 5 443 www.example.com."},
	{"CAA", `0 ISSUE "ca.example.net; policy=ev"`, `0 issue "ca.example.net; policy=ev"`},
	{"CAA", `128 iodef "mailto:a@example.net"`, `128 iodef "mailto:a@example.net"`},
	{"CAA", `0 contactemail "a@example.net"`, `0 contactemail "a@example.net"`},
	{"TXT", `"a""b" "é"`, `"a" "b" "\195\169"`},
	{"SPF", `"v=spf1 -all"`, `"v=spf1 -all"`},
	{"DS", "60485 5 1 " + strings.ToUpper(sha1Digits), "60485 5 1 " + sha1Digits},
	{"DS", "60485 ECDSAP256SHA256 2 " + sha256Digits[:20] + " " + sha256Digits[20:], "60485 13 2 " + sha256Digits},
	{"DS", "1 15 4 " + sha384Digits, "1 15 4 " + sha384Digits},
	{"TLSA", "3 1 1 " + sha256Digits, "3 1 1 " + sha256Digits},
	{"TLSA", "3 0 0 00ff", "3 0 0 00ff"},
	{"SSHFP", "4 2 " + sha256Digits, "4 2 " + sha256Digits},
	{"SSHFP", "1 1 " + sha1Digits, "1 1 " + sha1Digits},
	{"NAPTR", `10 100 "s" "SIP+D2U" "" _sip._udp.example.com`, `10 100 "s" "SIP+D2U" "" _sip._udp.example.com.`},
	{"NAPTR", `10 100 u "E2U+sip" "!^\\+1(.*)$!sip:\\1@example.com!i" .`, `10 100 "u" "E2U+sip" "!^\\+1(.*)$!sip:\\1@example.com!i" .`},
	{"SVCB", "0 svc.example.net", "0 svc.example.net."},
	{"SVCB", `1 dns.example.net alpn=dot,doq port=853 dohpath=/dns-query{?dns}`, `1 dns.example.net. alpn=dot,doq port=853 dohpath=/dns-query{?dns}`},
	{"HTTPS", `1 . ipv6hint=2001:DB8::1 ipv4hint=192.0.2.1,192.0.2.2 alpn="h3,h2"`, `1 . alpn=h3,h2 ipv4hint=192.0.2.1,192.0.2.2 ipv6hint=2001:db8::1`},
	{"HTTPS", `16 foo.example.org mandatory=ipv4hint,alpn alpn=h2 ipv4hint=192.0.2.1 key667="hello there" no-default-alpn`,
		`16 foo.example.org. mandatory=alpn,ipv4hint alpn=h2 no-default-alpn ipv4hint=192.0.2.1 key667="hello there"`},
	{"HTTPS", `1 . ech=AEn+DQBFKwAgACA= key668`, `1 . ech=AEn+DQBFKwAgACA= key668`},
}

func TestEveryTypeHasACanonicalFormThatStaysItself(t *testing.T) {
	tried := map[string]bool{}
	for _, c := range values {
		tried[c.typ] = true
		got, err := ParseValue(c.typ, c.value)
		if err != nil || got != c.canonical {
			t.Errorf("%s %s: got %q, %v, want %q", c.typ, c.value, got, err, c.canonical)
			continue
		}
		if again, err := ParseValue(c.typ, got); err != nil || again != got {
			t.Errorf("%s %s: its canonical form %q becomes %q, %v", c.typ, c.value, got, again, err)
		}
		if problem := otherwise(c.typ, c.value, got); problem != "" {
			t.Errorf("%s %s: %s", c.typ, c.value, problem)
		}
	}
	for _, typ := range RecordTypes() {
		if !tried[typ] {
			t.Errorf("no value of type %s", typ)
		}
	}
	if _, err := ParseValue("SOA", "a b 1 2 3 4 5"); err == nil {
		t.Error("there is a type SOA")
	}
}

// otherwise says what another parser makes of a canonical value that it should not.
func otherwise(typ, value, canonical string) string {
	rr, err := dns.NewRR(". IN " + typ + " " + canonical)
	if err != nil {
		return "refused: " + err.Error()
	}
	if rr == nil || dns.TypeToString[rr.Header().Rrtype] != typ {
		return "of another type"
	}
	if _, err := dns.PackRR(rr, make([]byte, 70000), 0, nil, false); err != nil {
		return "not to be packed: " + err.Error()
	}
	return ""
}

func TestWrongValuesAreRefused(t *testing.T) {
	for _, c := range []struct{ typ, value, want string }{
		{"CNAME", `a\256.example.com`, "three decimal digits"},
		{"CNAME", `a\`, "three decimal digits"},
		{"CNAME", `a\.b`, "must be a whole name"},
		{"CNAME", "http://www.example.com", "':' is neither"},
		{"CNAME", strings.Repeat(`\001`, 64) + ".example.com", "longer than 63"},
		{"CNAME", strings.Repeat(`\001a.`, 90) + "example.com", "longer than 253"},
		{"DS", "60485 5 1 0123", "it has 20"},
		{"DS", "60485 5 9 " + sha256Digits, "not a digest type"},
		{"DS", "60485 0 2 " + sha256Digits, "not an algorithm"},
		{"DS", "60485 RSA 2 " + sha256Digits, "not an algorithm"},
		{"DS", "60485 13 2 " + sha256Digits[1:], "pairs of hexadecimal digits"},
		{"TLSA", "3 2 1 " + sha256Digits, "2 is not a selector"},
		{"TLSA", "3 1 3 " + sha256Digits, "3 is not a matching type"},
		{"TLSA", "3 1 0", "must be a usage"},
		{"SSHFP", "4 1 " + sha256Digits, "it has 20"},
		{"CAA", `0 issue "a b"`, "certification authority"},
		{"CAA", `0 iodef "a@example.net"`, "mailto:"},
		{"NAPTR", `1 2 "s" "" "" .`, "neither an expression"},
		{"NAPTR", `1 2 "u" "" "" a.example`, "needs an expression"},
		{"NAPTR", `1 2 "s" "" "!a!b!" .`, ""},
		{"NAPTR", `1 2 "u" "" "1a1b1" .`, "must be like"},
		{"NAPTR", `1 2 "u" "" "!a!b!g" .`, "must be like"},
		{"SVCB", "1 . alpn", "needs a value"},
		{"SVCB", "1 . alpn=", "needs a value"},
		{"SVCB", "1 . alpn=h2,,h3", "list of protocols"},
		{"SVCB", "1 . alpn=h2 no-default-alpn=1", "without a value"},
		{"SVCB", "1 . mandatory=mandatory", "other parameters"},
		{"SVCB", "1 . mandatory=alpn,alpn alpn=h2", "each of them once"},
		{"SVCB", "1 . port=65536", "a port"},
		{"SVCB", "1 . key65535=x", "not a parameter"},
		{"SVCB", "1 . key0667=x", "not a parameter"},
		{"SVCB", "1 . key3=1", "is written port"},
		{"SVCB", "1 . ech=!", "base64"},
		{"SVCB", "1 . dohpath=/q", "dns-query"},
		{"SVCB", `1 . alpn=h2"x"`, "double quotes whole"},
		{"SVCB", `1 svc`, "whole name"},
		{"TXT", `"` + strings.Repeat("a", 255) + `" "` + strings.Repeat("b", 256) + `"`, "256 bytes"},
		{"TXT", `"a"b`, "double quotes"},
	} {
		got, err := ParseValue(c.typ, c.value)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s %s: %v", c.typ, c.value, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: got %q, %v, want %s", c.typ, c.value, got, err, c.want)
		}
	}
}

func TestOwnersWithEscapesAreThoseOfMessages(t *testing.T) {
	z := HostedZone{Name: "example.com"}
	for _, c := range []struct{ name, owner string }{
		{`A\.b`, `a\.b.example.com.`},
		{`\065`, `a.example.com.`},
		{`\#`, `#.example.com.`},
		{`\000`, `\000.example.com.`},
		{`x\.example.com.`, `x\.example.com.`},
		{`end\.`, `end\..example.com.`},
		{`\@`, `\@.example.com.`},
		{`\042`, `*.example.com.`},
	} {
		got := z.Owner(c.name)
		if got != c.owner {
			t.Errorf("%s: got %s, want %s", c.name, got, c.owner)
		}
		wire := make([]byte, 256)
		end, err := dns.PackDomainName(got, wire, 0, nil, false)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if unpacked, _, err := dns.UnpackDomainName(wire[:end], 0); err != nil || unpacked != got {
			t.Errorf("%s: from a message it is %s, %v", got, unpacked, err)
		}
		if inside := dns.IsSubDomain("example.com.", got); inside != z.encloses(got) {
			t.Errorf("%s is inside: %v", got, !inside)
		}
	}
	for _, name := range []string{"@", "www", "*", "example.com.example.com.", "a.b"} {
		if back := z.Relative(z.Owner(name)); back != name {
			t.Errorf("%s becomes %s", name, back)
		}
	}
}

// Whatever is taken has a canonical form that is taken too, stays itself, and that another parser reads.
func FuzzParseValue(f *testing.F) {
	types := RecordTypes()
	for _, c := range values {
		f.Add(uint8(slices.Index(types, c.typ)), c.value)
	}
	f.Fuzz(func(t *testing.T, n uint8, value string) {
		typ := types[int(n)%len(types)]
		got, err := ParseValue(typ, value)
		if err != nil {
			return
		}
		if again, err := ParseValue(typ, got); (err != nil || again != got) && len(got) <= 4000 {
			t.Fatalf("%s %q: %q becomes %q, %v", typ, value, got, again, err)
		}
		if problem := otherwise(typ, value, got); problem != "" {
			t.Fatalf("%s %q: %q: %s", typ, value, got, problem)
		}
	})
}
