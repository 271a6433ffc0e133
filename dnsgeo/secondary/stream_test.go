package secondary

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/dnsgeo/zone"
)

// records are those of lines in zone-file form; SOA7 is an SOA of serial 7, and NS the zone's.
func records(t testing.TB, lines string) (all []dns.RR) {
	t.Helper()
	for line := range strings.Lines(lines) {
		line = strings.TrimSpace(line)
		if serial, ok := strings.CutPrefix(line, "SOA"); ok {
			line = "example.com. 60 IN SOA ns.example.com. me.example.com. " + serial + " 3600 600 86400 60"
		} else if line == "NS" {
			line = "example.com. 60 IN NS ns.example.net."
		}
		if line == "" {
			continue
		}
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, rr)
	}
	return all
}

// messages are responses with the records of lines, those behind an empty line in one of their own.
func messages(t testing.TB, lines string) (all [][]byte) {
	t.Helper()
	for _, part := range strings.Split(strings.ReplaceAll(lines, "\t", ""), "\n--\n") {
		m := new(dns.Msg).SetQuestion("example.com.", dns.TypeAXFR)
		m.Response, m.Authoritative, m.Compress = true, true, true
		m.Answer = records(t, part)
		all = append(all, packed(t, m))
	}
	return all
}

func packed(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// read reads messages to their end.
func read(had *zone.Zone, all [][]byte) (*zone.Zone, *Stream, error) {
	s, err := NewStream("example.com", had)
	if err != nil {
		return nil, nil, err
	}
	for _, m := range all {
		if _, err := s.Take(m); err != nil {
			return nil, s, err
		}
	}
	z, err := s.Zone()
	return z, s, err
}

// zoneOf is a zone of the records of lines.
func zoneOf(t testing.TB, lines string) *zone.Zone {
	t.Helper()
	z, err := zone.New("example.com", records(t, lines))
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// shown is all that stands in a zone, a record a line.
func shown(t testing.TB, z *zone.Zone) string {
	t.Helper()
	var lines []string
	for r := range zone.NewTable(z).Records(z) {
		wire := binary.BigEndian.AppendUint16(bytes.Clone(r.Owner), r.Type)
		wire = binary.BigEndian.AppendUint32(append(wire, 0, 1), r.TTL)
		wire = append(binary.BigEndian.AppendUint16(wire, uint16(len(r.Data))), r.Data...)
		rr, _, err := dns.UnpackRR(wire, 0)
		if err != nil {
			t.Fatalf("%s % x: %v", zone.Text(r.Owner), r.Data, err)
		}
		lines = append(lines, strings.ReplaceAll(rr.String(), "\t", " ")+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

const content = `
	www.example.com. 60 IN A 192.0.2.1
	www.example.com. 60 IN A 192.0.2.2
	example.com. 60 IN MX 10 mail.example.com.
	sub.example.com. 60 IN NS ns.sub.example.com.
	ns.sub.example.com. 60 IN AAAA 2001:db8::1
	_sip._tcp.example.com. 60 IN SRV 0 5 5060 Sip.example.com.
	n.example.com. 60 IN NAPTR 10 100 "s" "SIP+D2U" "" _sip._udp.example.com.
	rp.example.com. 60 IN RP me.example.com. text.example.com.
	af.example.com. 60 IN AFSDB 1 af.example.com.
	h.example.com. 60 IN HTTPS 1 . alpn=h2
	odd.example.com. 60 IN TYPE65280 \# 3 c00c01
	example.com. 60 IN RRSIG A 13 2 60 20300101000000 20250101000000 1 example.com. AAAA
	*.wild.example.com. 60 IN TXT "a" "b"
`

func TestAZoneIsTakenWholeWhateverItsMessagesAre(t *testing.T) {
	want := shown(t, zoneOf(t, "SOA7\nNS\n"+content))
	one := strings.TrimSpace(content)
	for name, stream := range map[string]string{
		"one message":                      "SOA7\nNS\n" + one + "\nSOA7",
		"a message a record":               "SOA7\n--\nNS\n--\n" + strings.ReplaceAll(one, "\n", "\n--\n") + "\n--\nSOA7",
		"a message with the last SOA only": "SOA7\nNS\n" + one + "\n--\nSOA7",
		"a record twice":                   "SOA7\nNS\nNS\n" + one + "\n" + one + "\nSOA7",
	} {
		for _, had := range []*zone.Zone{nil, zoneOf(t, "SOA6\nNS")} { // as the answer to AXFR, and to IXFR
			z, s, err := read(had, messages(t, stream))
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if got := shown(t, z); got != want || z.Serial() != 7 || s.Differences {
				t.Errorf("%s: got\n%swant\n%s", name, got, want)
			}
		}
	}
}

func TestDifferencesAreMadeExactly(t *testing.T) {
	had := zoneOf(t, "SOA1\nNS\n"+content)
	before := shown(t, had)
	for _, test := range []struct{ name, stream, want string }{
		{"one version", `SOA2
			SOA1
			www.example.com. 60 IN A 192.0.2.2
			SOA2
			www.example.com. 60 IN A 192.0.2.3
			new.deep.example.com. 60 IN A 192.0.2.4
			SOA2`, `SOA2
			www.example.com. 60 IN A 192.0.2.3
			new.deep.example.com. 60 IN A 192.0.2.4
			` + strings.Replace(content, "www.example.com. 60 IN A 192.0.2.2", "", 1)},
		{"two versions, and a serial that goes on past its greatest", `SOA5
			SOA1
			SOA4
			a.example.com. 60 IN A 192.0.2.4
			SOA4
			a.example.com. 60 IN A 192.0.2.4
			www.example.com. 60 IN A 192.0.2.1
			www.example.com. 60 IN A 192.0.2.2
			SOA5
			www.example.com. 90 IN A 192.0.2.1
			SOA5`, "www.example.com. 90 IN A 192.0.2.1\nSOA5\n" + strings.NewReplacer("www.example.com. 60 IN A 192.0.2.1", "", "www.example.com. 60 IN A 192.0.2.2", "").Replace(content)},
		{"a delegation goes, and its names", `SOA2
			SOA1
			sub.example.com. 60 IN NS NS.sub.Example.com.
			ns.sub.example.com. 60 IN AAAA 2001:db8::1
			SOA2
			SOA2`, "SOA2\n" + strings.NewReplacer("sub.example.com. 60 IN NS ns.sub.example.com.", "", "ns.sub.example.com. 60 IN AAAA 2001:db8::1", "").Replace(content)},
	} {
		want := shown(t, zoneOf(t, "NS\n"+test.want))
		lines := strings.ReplaceAll(test.stream, "\t", "")
		for _, stream := range []string{lines, strings.ReplaceAll(lines, "\n", "\n--\n")} {
			z, s, err := read(had, messages(t, stream))
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			} else if got := shown(t, z); got != want || !s.Differences {
				t.Errorf("%s: got\n%swant\n%s", test.name, got, want)
			}
		}
		if shown(t, had) != before {
			t.Fatalf("%s: the version before has changed", test.name)
		}
	}
	for name, stream := range map[string]string{"the same": "SOA1", "older": "SOA0"} {
		if z, _, err := read(had, messages(t, stream)); z != nil || err != nil {
			t.Errorf("%s: %v, %v", name, z, err)
		}
	}
}

func TestWhatIsNoTransferIsRefused(t *testing.T) {
	had := zoneOf(t, "SOA1\nNS\nwww.example.com. 60 IN A 192.0.2.1")
	for _, test := range []struct {
		name, stream, want string
		had                *zone.Zone
	}{
		{"no last SOA", "SOA7\nNS", "not at its end", nil},
		{"the first SOA alone", "SOA7", "not at its end", nil},
		{"no first SOA", "NS\nSOA7", "does not begin with the SOA", nil},
		{"another SOA at the end", "SOA7\nNS\nSOA8", "another SOA", nil},
		{"more behind the end", "SOA7\nNS\nSOA7\nNS", "more after its end", nil},
		{"more in another message", "SOA7\nNS\nSOA7\n--\nNS", "more after its end", nil},
		{"another zone's record", "SOA7\nNS\nwww.example.net. 60 IN A 192.0.2.1\nSOA7", "www.example.net. is outside", nil},
		{"one above it", "SOA7\nNS\ncom. 60 IN A 192.0.2.1\nSOA7", "com. is outside", nil},
		{"another zone", "example.net. 60 IN SOA a. b. 1 2 3 4 5", "example.net. is outside", nil},
		{"an SOA inside", "SOA7\na.example.com. 60 IN SOA a. b. 7 2 3 4 5\nSOA7", "an SOA that is not at", nil},
		{"another class", "SOA7\nwww.example.com. 60 CH A 192.0.2.1\nSOA7", "class CH", nil},
		{"no NS", "SOA7\nSOA7", "no NS records", nil},
		{"a set that no message has room for", "SOA7\nNS\n--\n" + texts(0) + "--\n" + texts(1) + "--\nSOA7", "no message has room", nil},
		{"differences of another version", "SOA7\nSOA2\nSOA7\nSOA7", "differences from serial 2 were sent, not from 1", had},
		{"differences that were not asked for", "SOA7\nSOA1\nSOA7\nSOA7", "another SOA", nil},
		{"what is not there is deleted", "SOA7\nSOA1\nwww.example.com. 60 IN A 192.0.2.9\nSOA7\nSOA7", "is to be deleted and is not there", had},
		{"of a name that is not there", "SOA7\nSOA1\na.b.example.com. 60 IN A 192.0.2.1\nSOA7\nSOA7", "is to be deleted and is not there", had},
		{"what is there is added", "SOA7\nSOA1\nSOA7\nwww.example.com. 60 IN A 192.0.2.1\nSOA7", "is to be added and is there", had},
		{"back in time", "SOA7\nSOA1\nSOA0\nSOA7", "back to 0", had},
		{"a gap", "SOA7\nSOA1\nSOA3\nSOA4\nSOA7\nSOA7", "reach serial 3 and go on from 4", had},
		{"cut", "SOA7\nSOA1\nSOA7\n", "not at its end", had},
		{"all name servers go", "SOA7\nSOA1\nNS\nSOA7\nSOA7", "no NS records", had},
	} {
		z, _, err := read(test.had, messages(t, test.stream))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, %v, want %q", test.name, z, err, test.want)
		}
	}
	whole := messages(t, "SOA7\nNS\nSOA7")[0]
	for name, change := range map[string]func(m []byte) []byte{
		"no response":         func(m []byte) []byte { m[2] &^= 0x80; return m },
		"cut, it says":        func(m []byte) []byte { m[2] |= 2; return m },
		"another opcode":      func(m []byte) []byte { m[2] |= dns.OpcodeNotify << 3; return m },
		"refused":             func(m []byte) []byte { m[3] |= dns.RcodeRefused; return m },
		"without an answer":   func(m []byte) []byte { m[7] = 0; return m },
		"with less than said": func(m []byte) []byte { m[7]++; return m },
		"shorter":             func(m []byte) []byte { return m[:len(m)-1] },
		"a header":            func(m []byte) []byte { return m[:11] },
		"a pointer forward": func(m []byte) []byte {
			i := bytes.Index(m[headerSize:], []byte{0xc0}) + headerSize
			m[i+1] = 0xff
			return m
		},
		"a pointer to itself": func(m []byte) []byte {
			i := bytes.Index(m[headerSize:], []byte{0xc0}) + headerSize
			m[i+1] = byte(i)
			return m
		},
	} {
		if z, _, err := read(nil, [][]byte{change(bytes.Clone(whole))}); err == nil {
			t.Errorf("%s: got %v", name, z)
		}
	}
}

// texts are 600 TXT records of one name that take 36 KB, of a kind.
func texts(kind int) string {
	var b strings.Builder
	for i := range 600 {
		fmt.Fprintf(&b, "big.example.com. 60 IN TXT \"%s %d %d\"\n", strings.Repeat("x", 50), kind, i)
	}
	return b.String()
}

func TestATransferIsBounded(t *testing.T) {
	s, err := NewStream("example.com", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Take(messages(t, "SOA7\nNS")[0]); err != nil {
		t.Fatal(err)
	}
	s.Records = maxRecords
	if _, err := s.Take(messages(t, "www.example.com. 60 IN A 192.0.2.1")[0]); err == nil || !strings.Contains(err.Error(), "more than 1048576 records") {
		t.Errorf("records: %v", err)
	}
	s.Records, s.Bytes = 0, maxBytes
	if _, err := s.Take(messages(t, "www.example.com. 60 IN A 192.0.2.1")[0]); err == nil || !strings.Contains(err.Error(), "more than 256 MiB") {
		t.Errorf("bytes: %v", err)
	}
}

// framed is messages one after the other, with their lengths before them.
func framed(all [][]byte) (b []byte) {
	for _, m := range all {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(m))), m...)
	}
	return b
}

// FuzzStream holds that a stream of any bytes makes an error or a zone, which a disk brings back and which can be walked.
func FuzzStream(f *testing.F) {
	for _, stream := range []string{
		"SOA7\nNS\n" + strings.TrimSpace(content) + "\nSOA7", "SOA7\nNS\n--\nSOA7", "SOA1",
		"SOA7\nSOA1\nwww.example.com. 60 IN A 192.0.2.1\nSOA3\nSOA3\nSOA7\na.example.com. 60 IN A 192.0.2.1\nSOA7",
	} {
		f.Add(framed(messages(f, stream)), true)
		f.Add(framed(messages(f, stream)), false)
	}
	had := zoneOf(f, "SOA1\nNS\nwww.example.com. 60 IN A 192.0.2.1")
	before := shown(f, had)
	f.Fuzz(func(t *testing.T, b []byte, differences bool) {
		var all [][]byte
		for len(b) >= 2 {
			n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			all = append(all, b[2:2+n])
			b = b[2+n:]
		}
		from := had
		if !differences {
			from = nil
		}
		z, _, err := read(from, all)
		if shown(t, had) != before {
			t.Fatal("the version before has changed")
		}
		if err != nil || z == nil {
			return
		}
		again, err := decode("example.com", encoded(z))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(rows(z), rows(again), equal) {
			t.Fatal("the disk brings back another zone")
		}
	})
}

func encoded(z *zone.Zone) []byte {
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	encode(w, "example.com", z)
	_ = w.Flush()
	return b.Bytes()
}

func rows(z *zone.Zone) []zone.Row { return slices.Collect(zone.NewTable(z).Records(z)) }

func equal(a, b zone.Row) bool {
	return bytes.Equal(a.Owner, b.Owner) && a.Type == b.Type && a.TTL == b.TTL && bytes.Equal(a.Data, b.Data)
}
