package zonefile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

func read(text string) (*spec.HostedZone, []spec.Fault, error) {
	return Read([]byte(text), Options{File: "zone.db", Zone: "example.com"})
}

// lines are the records, one value a line.
func lines(z *spec.HostedZone) string {
	var b strings.Builder
	for _, r := range z.Records.All() {
		for _, v := range r.Values {
			fmt.Fprintf(&b, "%s %d %s %s\n", r.Name, int(r.TTL.Std().Seconds()), r.Type, v)
		}
	}
	return b.String()
}

func TestZoneFilesAreReadByTheBook(t *testing.T) {
	for _, c := range []struct{ claim, text, want string }{
		{"TTL and class in either order", "a 60 IN A 192.0.2.1\nb IN 1m A 192.0.2.2\n", "a 60 A 192.0.2.1\nb 60 A 192.0.2.2\n"},
		{"the owner is inherited, and so is the TTL", "a 60 A 192.0.2.1\n  A 192.0.2.2\n\tTXT x\n", "a 60 A 192.0.2.1\na 60 A 192.0.2.2\na 60 TXT \"x\"\n"},
		{"$TTL goes before the TTL of the record before", "$TTL 1h30m\na 60 A 192.0.2.1\nb A 192.0.2.2\n", "a 60 A 192.0.2.1\nb 5400 A 192.0.2.2\n"},
		{"the SOA's minimum is the last resort", "@ SOA ns hostmaster 1 2h 15M 2W 1d\na A 192.0.2.1\n", "a 86400 A 192.0.2.1\n"},
		{"$ORIGIN may be relative", "$TTL 1\n$ORIGIN sub\na CNAME b\n$ORIGIN deep\n@ A 192.0.2.1\n", "a.sub 1 CNAME b.sub.example.com.\ndeep.sub 1 A 192.0.2.1\n"},
		{"parentheses, comments and quotes", "$TTL 1 ; seconds\na TXT ( \"one;\" ; no\n two ) ; end\nb TXT \\; \"( \\\" )\"\n", "a 1 TXT \"one;\" \"two\"\nb 1 TXT \";\" \"( \\\" )\"\n"},
		{"a parenthesis needs no space", "$TTL 1\na MX(10 b)\n", "a 1 MX 10 b.example.com.\n"},
		{"escapes in names", "$TTL 1\na\\.b A 192.0.2.1\n\\097 A 192.0.2.2\nx#y CNAME z+1\n", "a\\046b 1 A 192.0.2.1\na 1 A 192.0.2.2\nx\\035y 1 CNAME z\\0431.example.com.\n"},
		{"wildcards", "$TTL 1\n* A 192.0.2.1\n*.a A 192.0.2.2\n_x._tcp SRV 1 2 3 @\n", "* 1 A 192.0.2.1\n*.a 1 A 192.0.2.2\n_x._tcp 1 SRV 1 2 3 example.com.\n"},
		{"data of known types as bytes", "$TTL 1\na TYPE1 \\# 4 C0000201\nb CLASS1 TYPE16 \\# 3 026162\nc TYPE65 \\# 10 0001 00 0001000302 6832\n",
			"a 1 A 192.0.2.1\nb 1 TXT \"ab\"\nc 1 HTTPS 1 . alpn=h2\n"},
		{"unquoted texts of CAA and NAPTR", "$TTL 1\n@ CAA 0 issue ca.example.net\na NAPTR 1 2 s SIP+D2U \"\" b\n", "@ 1 CAA 0 issue \"ca.example.net\"\na 1 NAPTR 1 2 \"s\" \"SIP+D2U\" \"\" b.example.com.\n"},
		{"digests in pieces", "$TTL 1\nd NS ns.d\nd DS 1 RSASHA256 1 ( 0123456789ABCDEF0123\n 456789ABCDEF01234567 )\n", "d 1 NS ns.d.example.com.\nd 1 DS 1 8 1 0123456789abcdef0123456789abcdef01234567\n"},
		{"carriage returns and a byte order mark", "\uFEFFa 1 A 192.0.2.1\r\nb 1 A 192.0.2.2\r\n", "a 1 A 192.0.2.1\nb 1 A 192.0.2.2\n"},
		{"a name that ends like the zone", "example.com 1 A 192.0.2.1\n", "example.com.example.com. 1 A 192.0.2.1\n"},
		{"a transfer ends with the SOA", "@ 1 SOA ns a 1 2 3 4 5\na 1 A 192.0.2.1\n@ 1 SOA ns a 1 2 3 4 5\n", "a 1 A 192.0.2.1\n"},
		{"$GENERATE", "$TTL 1\n$GENERATE 1-3 h$ A 192.0.2.$\n$GENERATE 0-4/2 ${10,4,x}-\\$ 60 IN MX \"$ m${-1}\"\n",
			"h1 1 A 192.0.2.1\nh2 1 A 192.0.2.2\nh3 1 A 192.0.2.3\n000a-\\036 60 MX 0 m-1.example.com.\n000c-\\036 60 MX 2 m1.example.com.\n000e-\\036 60 MX 4 m3.example.com.\n"},
		{"$GENERATE for ip6.arpa", "$TTL 1\n$GENERATE 26-26 ${0,7,n} PTR h$\n$GENERATE 171-171 ${0,0,N} PTR h\n", "a.1.0.0 1 PTR h26.example.com.\nB.A 1 PTR h.example.com.\n"},
	} {
		z, _, err := read(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.claim, err)
		} else if got := lines(z); got != strings.ReplaceAll(c.want, "B.A 1", "b.a 1") {
			t.Errorf("%s: got\n%swant\n%s", c.claim, got, c.want)
		}
	}
}

func TestEveryFaultIsToldByItsLine(t *testing.T) {
	const text = `  A 192.0.2.1
a A 192.0.2.1
$TTL 1w2
$TTL 60
a A 192.0.2.256
b 60 CH A 192.0.2.1
c LOC 51 0 0 N 0 0 0 E 0m
d
e..f A 192.0.2.1
www.example.net. A 192.0.2.1
$INCLUDE other.db
$FOO
g A ) 192.0.2.1
h TXT "open
i TXT a"b"
j A \# 4 00
$GENERATE 9-1 a A 192.0.2.1
$GENERATE 1-3 a${0,1,q} A 192.0.2.1
$GENERATE 1-99999 a$ A 192.0.2.1
$GENERATE 254-258 k$ A 192.0.2.$
l CNAME www
l A 192.0.2.1
m DNAME example.net.
x.m A 192.0.2.1
n TXT \256
o SOA a b 1 2 3 4 5
p DS 1 8 1 0123456789abcdef0123456789abcdef01234567
@ CNAME www
q (A
192.0.2.1
`
	want := strings.Split(strings.TrimSpace(`
zone.db:1: begins with white space, and there is no name before it that it could be of
zone.db:2: a.example.com. A: has no TTL, and there is neither $TTL nor a record with one before it
zone.db:3: $TTL: a TTL must be 0–2147483647 seconds, or like 1h30m, not "1w2"
zone.db:5: a.example.com. A: must be an IPv4 address, not "192.0.2.256"
zone.db:6: class CH: only IN is served
zone.db:7: c.example.com. LOC: there is no such type of records here
zone.db:8: has no type
zone.db:9: "e..f" is not a domain name: a label is empty
zone.db:10: www.example.net. A: is not in the zone example.com
zone.db:11: $INCLUDE: other files are not read unless their directory is given
zone.db:12: "$FOO" is no directive: there are $ORIGIN, $TTL, $INCLUDE and $GENERATE
zone.db:13: a closing parenthesis that was never opened
zone.db:14: a double quote that is not closed on its line
zone.db:15: i.example.com. TXT: "a\"b\"" has a double quote in the middle
zone.db:16: j.example.com. A: \# must be followed by a length and as many bytes in hexadecimal digits, not "4 00"
zone.db:17: $GENERATE: the range must be like 1-9 or 0-30/2, of numbers up to 2147483647, not "9-1"
zone.db:18: $GENERATE: must have ${offset,width,base}, base one of d, o, x, X, n and N, width up to 253, not "${0,1,q}"
zone.db:19: $GENERATE: makes 99999 records: at most 65536
zone.db:20: k256.example.com. A: must be an IPv4 address, not "192.0.2.256"
zone.db:22: l.example.com. A: l.example.com. has a CNAME, which must be alone at its name
zone.db:24: x.m.example.com. A: x.m.example.com. is below m.example.com., whose DNAME moves all that is below it
zone.db:25: n.example.com. TXT: has a \ that is not followed by three decimal digits up to 255
zone.db:26: o.example.com. SOA: a SOA stands at the zone's own name, example.com.
zone.db:27: p.example.com. DS: p.example.com. is not delegated: a DS stands beside NS records
zone.db:28: example.com. CNAME: the apex cannot have a CNAME: use an alias
zone.db:29: a parenthesis that is never closed
`), "\n")
	_, _, err := read(text)
	var faults spec.Faults
	if !errors.As(err, &faults) {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, strings.Split(faults.Error(), "\n")); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	_, _, err = read(strings.Repeat("a A x\n", 150))
	if !errors.As(err, &faults) || len(faults) != maxTold+1 || faults[maxTold].Message != "and 50 more" {
		t.Errorf("of 150 faults %d are told: %v", len(faults), err)
	}
}

func TestWhatIsLeftOutIsToldOnce(t *testing.T) {
	const text = `$TTL 60
@ SOA ns hostmaster 1 2 3 4 5
@ NS ns1.example.net.
@ NS ns2.example.net.
a RRSIG A 8 2 60 20300101000000 20200101000000 1 example.com. AAAA
b RRSIG A 8 2 60 20300101000000 20200101000000 1 example.com. AAAA
c A 192.0.2.1
c A 192.0.2.1
c 30 A 192.0.2.2
`
	want := `zone.db:2: the SOA is left out: a zone has one made for it, whose serial is the spec's revision
zone.db:3: 2 NS records of the zone's own name are left out: its name servers are those of its nodes, or its nameServers
zone.db:5: 2 RRSIG records are left out: they are made when a zone is signed
zone.db:8: c.example.com. A: stands there twice
zone.db:9: c.example.com. A: has another TTL than the records of the same name and type before it: the least holds (RFC 2181, section 5.2)`
	z, notes, err := read(text)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, spec.Faults(notes).Error()); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if got := lines(z); got != "c 30 A 192.0.2.1\nc 30 A 192.0.2.2\n" {
		t.Error(got)
	}
	if z, _, _ = Read([]byte(text), Options{Zone: "example.com", NameServers: true}); len(z.NameServers) != 2 {
		t.Error(z.NameServers)
	}
}

func TestIncludedFilesHaveAnOriginOfTheirOwn(t *testing.T) {
	files := map[string]string{"sub.db": "www 1 A 192.0.2.1\n$ORIGIN elsewhere\n", "loop.db": "$INCLUDE loop.db\n"}
	o := Options{File: "zone.db", Zone: "example.com", Include: func(name string) ([]byte, error) {
		text, ok := files[name]
		if !ok {
			return nil, os.ErrNotExist
		}
		return []byte(text), nil
	}}
	z, _, err := Read([]byte("a 1 A 192.0.2.2\n$INCLUDE sub.db sub\n  A 192.0.2.3\n"), o)
	if err != nil || lines(z) != "a 1 A 192.0.2.2\na 1 A 192.0.2.3\nwww.sub 1 A 192.0.2.1\n" {
		t.Errorf("%v, %s", err, lines(z))
	}
	if _, _, err = Read([]byte("$INCLUDE loop.db\n$INCLUDE none.db\n"), o); err == nil ||
		err.Error() != "loop.db:1: $INCLUDE: more than 8 files within one another\nzone.db:2: $INCLUDE: file does not exist" {
		t.Error(err)
	}
}

func TestRecordsAreBounded(t *testing.T) {
	for _, text := range []string{"a 1 A 192.0.2.1\nb 1 A 192.0.2.1\nc 1 A 192.0.2.1\n\n", "\n$GENERATE 1-65536 a$ 1 A 192.0.2.1\n", "$INCLUDE x"} {
		r := newReader(Options{Zone: "example.com", Include: func(string) ([]byte, error) { return []byte("a 1 A 192.0.2.1\n\nb 1 A 192.0.2.1"), nil }})
		r.total = maxRecords - 1
		r.file("zone.db", []byte(text), r.apex)
		if len(r.faults) == 0 || r.faults[0].Message != "more than 100000 records" || len(r.records) != 1 {
			t.Errorf("%q: %v, %d records", text, r.faults, len(r.records))
		}
	}
	big := Options{Zone: "example.com", Include: func(string) ([]byte, error) { return make([]byte, MaxBytes+1), nil }}
	if _, _, err := Read([]byte("$INCLUDE x\n"), big); err == nil || err.Error() != "x: more than 16777216 bytes in the file and what it includes" {
		t.Error(err)
	}
}

// zones are right zones of plain records, of every type.
func zones() *rapid.Generator[*spec.HostedZone] {
	values := map[string][]string{
		"A": {"192.0.2.1", "192.0.2.2"}, "AAAA": {"2001:db8::1"}, "TXT": {`"a"`, `"b c;" "\"\\\007"`}, "SPF": {`"v=spf1 -all"`},
		"MX": {"10 mail.example.net.", "20 a.example.com."}, "SRV": {"0 5 443 www.example.net."}, "PTR": {`a\046b.example.net.`},
		"CAA": {`0 issue "ca.example.net"`, `128 iodef "mailto:a@example.net"`}, "NS": {"ns1.example.net.", "ns2.example.net."},
		"NAPTR": {`10 100 "s" "SIP+D2U" "" _sip._udp.example.net.`, `10 100 "u" "E2U+sip" "!^\\+1(.*)$!sip:\\1@example.com!i" .`},
		"SSHFP": {"4 2 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}, "TLSA": {"3 0 0 00ff"},
		"SVCB": {"1 dns.example.net. alpn=dot port=853 dohpath=/q{?dns}"}, "HTTPS": {`1 . alpn=h3,h2 ipv4hint=192.0.2.1 key667="a b"`, "0 www.example.net."},
		"CNAME": {"www.example.net."}, "DNAME": {"other.example.net."}, "DS": {"1 13 2 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"},
	}
	many := []string{"A", "AAAA", "TXT", "SPF", "MX", "SRV", "PTR", "CAA", "NAPTR", "SSHFP", "TLSA", "SVCB", "HTTPS"}
	return rapid.Custom(func(t *rapid.T) *spec.HostedZone {
		z := &spec.HostedZone{Name: "example.com", NameServers: []string{"ns1.example.net."}}
		var records []spec.Record
		add := func(name, typ string) {
			n := rapid.IntRange(1, len(values[typ])).Draw(t, "values")
			ttl := spec.Duration(rapid.Int64Range(0, 1<<31-1).Draw(t, "ttl")) * 1e9
			records = append(records, spec.Record{Name: name, Type: typ, TTL: &ttl, Values: values[typ][:n]})
		}
		names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"@", "*", "www", "a.b", "*.c", "_x._tcp", "0/25", `d\046e`, `\001\255`, "example.com.example.com.", "q"}), 0, 6,
			rapid.ID[string]).Draw(t, "names")
		for _, name := range names {
			for _, typ := range rapid.SliceOfDistinct(rapid.SampledFrom(many), rapid.ID[string]).Draw(t, "types") {
				add(name, typ)
			}
		}
		if rapid.Bool().Draw(t, "more") {
			add("alone", "CNAME")
			add("moved", "DNAME")
			add("cut", "NS")
			add("cut", "DS")
		}
		z.Records = spec.RecordsOf(records...)
		return z
	})
}

// built is the zone as a spec has it, which can be served.
func built(t interface{ Fatal(...any) }, z *spec.HostedZone) *spec.HostedZone {
	s, err := spec.Resource{Ref: spec.Ref{Kind: "HostedZone", Name: z.Name}, Value: z}.Check()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := zone.Compile(s, nil); err != nil {
		t.Fatal("it cannot be served:", err)
	}
	return s.HostedZones[z.Name]
}

func TestWhatIsWrittenIsReadBackTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		z := built(t, zones().Draw(t, "zone"))
		var b bytes.Buffer
		if warnings, err := Write(&b, z, WriteOptions{}); err != nil || len(warnings) > 0 {
			t.Fatal(warnings, err)
		}
		back, _, err := Read(b.Bytes(), Options{Zone: z.Name, NameServers: true})
		if err != nil {
			t.Fatalf("%v\n%s", err, b.String())
		}
		if d := cmp.Diff(spec.Flow(z), spec.Flow(built(t, back))); d != "" {
			t.Fatalf("-want +got\n%s\n%s", d, b.String())
		}
	})
}

func TestPoliciesAliasesAndLabelsAreCommentsAndWarnings(t *testing.T) {
	weight, ttl := 1, spec.Duration(60e9)
	z := &spec.HostedZone{Name: "example.com", Labels: map[string]string{"app": "shop"}, Records: spec.RecordsOf(
		spec.Record{Name: "a", Type: "A", Alias: &spec.Alias{Distribution: "site"}},
		spec.Record{Name: "b", Type: "A", TTL: &ttl, SetIdentifier: "x", Weight: &weight, Values: []string{"192.0.2.1"}},
		spec.Record{Name: "c", Type: "A", TTL: &ttl, Values: []string{"192.0.2.1"}},
	)}
	var b bytes.Buffer
	warnings, err := Write(&b, z, WriteOptions{Serial: 7})
	if err != nil {
		t.Fatal(err)
	}
	want := `$ORIGIN example.com.
@ 900 IN SOA ns.invalid. hostmaster.example.com. 7 7200 900 1209600 86400
@ 172800 IN NS ns.invalid.
; labels: {app: shop}
; alias: {name: a, type: A, alias: {distribution: site}}
; routing policy: {name: b, type: A, ttl: 60, values: [192.0.2.1], setIdentifier: x, weight: 1}
c 60 IN A 192.0.2.1
`
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	told := strings.Join(warnings, "\n")
	for _, part := range []string{"ns.invalid.", "labels", "a.example.com. A is a comment in the file: a zone file has no alias", "b.example.com. A is a comment in the file: a zone file has no routing policy"} {
		if !strings.Contains(told, part) {
			t.Errorf("no warning of %s in %s", part, told)
		}
	}
}

// Other programs' checkers, where they are installed.
func TestOthersTakeWhatIsWritten(t *testing.T) {
	z := built(t, zones().Filter(func(z *spec.HostedZone) bool { return z.Records.Len() > 20 }).Example(3))
	file := filepath.Join(t.TempDir(), "zone.db")
	var b bytes.Buffer
	if _, err := Write(&b, z, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{
		{"named-checkzone", "-k", "ignore", "-i", "none", "example.com", file},
		{"nsd-checkzone", "example.com", file},
		{"ldns-read-zone", file},
	} {
		t.Run(command[0], func(t *testing.T) {
			if _, err := exec.LookPath(command[0]); err != nil {
				if os.Getenv("PERIGEE_REAL_CLIENTS") == "required" {
					t.Fatal(err)
				}
				t.Skip(err)
			}
			if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
				t.Errorf("%v: %s\n%s", err, out, b.String())
			}
		})
	}
}

// Whatever is read is a zone that is right, and that comes back the same when it is written.
func FuzzRead(f *testing.F) {
	f.Add("$TTL 1\na A 192.0.2.1\n  TXT \"x\" y\n$GENERATE 1-3 h${0,2,d} CNAME a\n")
	f.Add("@ 1h SOA a b 1 2 3 4 5\n*.x MX ( 10\n @ ) ; c\n\\# TYPE1 \\# 4 00000000\n$ORIGIN b\nc DS 1 2 3 4\n")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4096 {
			return
		}
		z, _, err := Read([]byte(text), Options{File: "f", Zone: "example.com", NameServers: true})
		if err != nil || z.Records.Len() > 1000 {
			return
		}
		z = built(t, z)
		var b bytes.Buffer
		if _, err := Write(&b, z, WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		if len(z.NameServers) == 0 {
			z.NameServers = []string{"ns.invalid."}
		}
		back, _, err := Read(b.Bytes(), Options{Zone: "example.com", NameServers: true})
		if err != nil {
			t.Fatalf("%v\n%s", err, b.String())
		}
		if d := cmp.Diff(spec.Flow(z), spec.Flow(built(t, back))); d != "" {
			t.Fatalf("-want +got\n%s\n%s", d, b.String())
		}
	})
}
