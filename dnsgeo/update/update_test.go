package update

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/spec"
)

const zones = `
{kind: Region, name: eu-central-1, pops: [{name: fra1}]}
---
{kind: TsigKey, name: all, secret: c2VjcmV0IG9mIHRoaXMgcGFnZSwga25vd24gdG8gYWxsIQ==}
---
{kind: TsigKey, name: acme, secret: c2VjcmV0IG9mIHRoaXMgcGFnZSwga25vd24gdG8gYWxsIQ==}
---
kind: HostedZone
name: example.com
nameServers: [ns1.example.net, ns2.example.net]
records:
- {name: "@", type: MX, values: ["10 Mail.example.net"]}
- {name: www, type: A, ttl: 60, values: [192.0.2.1, 192.0.2.2]}
- {name: www, type: TXT, values: ['"a b" "c"']}
- {name: web, type: CNAME, values: [www.example.com]}
- {name: weighted, type: A, setIdentifier: a, weight: 1, values: [192.0.2.3]}
- {name: weighted, type: A, setIdentifier: b, weight: 1, values: [192.0.2.4]}
- {name: alias, type: A, alias: {record: www}}
- {name: lab, type: NS, values: [ns.lab.example.com]}
- {name: old, type: DNAME, values: [example.net]}
- {name: 'a\032b', type: TXT, values: ['"s"']}
- {name: a.below, type: A, values: [192.0.2.9]}
- {name: sub, type: TXT, values: ['"above"']}
update:
  allow:
    - {key: all}
    - {key: all, types: [NS, DS, DNAME]}
    - {key: acme, names: ["*.dyn", _acme-challenge.www, www], types: [TXT]}
---
kind: HostedZone
name: sub.example.com
---
kind: HostedZone
name: drawn.example
update: {allow: [{key: all}, {key: all, types: [NS]}]}
`

func specOf(t testing.TB, text string) *spec.Spec {
	t.Helper()
	docs, err := spec.Split("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	s, err := spec.Build(7, docs, spec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// prereq are records of the prerequisite section, and change those of the update section: each a line of a zone file, where the class
// says what it means, and with ANY the type may be all there is.
func message(t testing.TB, zone string, prereq, change []string) []byte {
	t.Helper()
	m := new(dns.Msg)
	m.SetUpdate(zone)
	for _, line := range prereq {
		m.Answer = append(m.Answer, recordOf(t, line))
	}
	for _, line := range change {
		m.Ns = append(m.Ns, recordOf(t, line))
	}
	wire, err := m.Pack()
	if err != nil {
		t.Fatalf("%v: %v", append(prereq, change...), err)
	}
	return wire
}

// recordOf reads NAME TTL CLASS TYPE [DATA].
func recordOf(t testing.TB, line string) dns.RR {
	t.Helper()
	words := strings.SplitN(line, " ", 5)
	class := map[string]uint16{"IN": dns.ClassINET, "ANY": dns.ClassANY, "NONE": dns.ClassNONE, "CH": dns.ClassCHAOS}[words[2]]
	var ttl uint32
	if _, err := fmt.Sscan(words[1], &ttl); err != nil {
		t.Fatal(err)
	}
	typ, ok := dns.StringToType[words[3]]
	if !ok {
		t.Fatalf("no type %s", words[3])
	}
	if len(words) == 4 {
		return &dns.ANY{Hdr: dns.RR_Header{Name: words[0], Rrtype: typ, Class: class, Ttl: ttl}}
	}
	rr, err := dns.NewRR(words[0] + " 0 IN " + words[3] + " " + words[4])
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	rr.Header().Class, rr.Header().Ttl = class, ttl
	return rr
}

func judged(t testing.TB, s *spec.Spec, m []byte, key string) Verdict {
	t.Helper()
	u, ok := Parse(m)
	if !ok {
		return Verdict{Rcode: dns.RcodeFormatError}
	}
	v := Judge(s, u, key)
	if again := Judge(s, u, key); again.Rcode != v.Rcode || (again.Zone == nil) != (v.Zone == nil) {
		t.Fatalf("judged twice: %+v, %+v", v, again)
	}
	return v
}

func TestPrerequisites(t *testing.T) {
	s := specOf(t, zones)
	for _, c := range []struct {
		prereq string // several are parted by |
		rcode  int
	}{
		// 2.4.4, 2.4.5: a name is in use, is not.
		{"www.example.com. 0 ANY ANY", dns.RcodeSuccess},
		{"WWW.Example.COM. 0 ANY ANY", dns.RcodeSuccess},
		{"example.com. 0 ANY ANY", dns.RcodeSuccess},
		{"weighted.example.com. 0 ANY ANY", dns.RcodeSuccess},
		{"alias.example.com. 0 ANY ANY", dns.RcodeSuccess},
		{`a\032b.example.com. 0 ANY ANY`, dns.RcodeSuccess},
		{"no.example.com. 0 ANY ANY", dns.RcodeNameError},
		{"below.example.com. 0 ANY ANY", dns.RcodeNameError}, // names below it are not records of its own
		{"x.old.example.com. 0 ANY ANY", dns.RcodeNameError},
		{"no.example.com. 0 NONE ANY", dns.RcodeSuccess},
		{"www.example.com. 0 NONE ANY", dns.RcodeYXDomain},
		{"example.com. 0 NONE ANY", dns.RcodeYXDomain},
		// 2.4.1, 2.4.3: a set exists, whatever its data; does not.
		{"www.example.com. 0 ANY A", dns.RcodeSuccess},
		{"weighted.example.com. 0 ANY A", dns.RcodeSuccess},
		{"alias.example.com. 0 ANY A", dns.RcodeSuccess},
		{"example.com. 0 ANY SOA", dns.RcodeSuccess},
		{"example.com. 0 ANY NS", dns.RcodeSuccess},
		{"www.example.com. 0 ANY AAAA", dns.RcodeNXRrset},
		{"no.example.com. 0 ANY A", dns.RcodeNXRrset},
		{"www.example.com. 0 ANY SOA", dns.RcodeNXRrset},
		{"www.example.com. 0 ANY DHCID", dns.RcodeNXRrset},
		{"www.example.com. 0 NONE AAAA", dns.RcodeSuccess},
		{"www.example.com. 0 NONE DHCID", dns.RcodeSuccess},
		{"www.example.com. 0 NONE A", dns.RcodeYXRrset},
		{"weighted.example.com. 0 NONE A", dns.RcodeYXRrset},
		{"example.com. 0 NONE NS", dns.RcodeYXRrset},
		// 2.4.2: a set exists of exactly these data.
		{"www.example.com. 0 IN A 192.0.2.1|www.example.com. 0 IN A 192.0.2.2", dns.RcodeSuccess},
		{"www.example.com. 0 IN A 192.0.2.2|www.example.com. 0 IN A 192.0.2.1|www.example.com. 0 IN A 192.0.2.2", dns.RcodeSuccess},
		{"www.example.com. 0 IN A 192.0.2.1", dns.RcodeNXRrset},
		{"www.example.com. 0 IN A 192.0.2.1|www.example.com. 0 IN A 192.0.2.2|www.example.com. 0 IN A 192.0.2.3", dns.RcodeNXRrset},
		{"no.example.com. 0 IN A 192.0.2.1", dns.RcodeNXRrset},
		{`www.example.com. 0 IN TXT "a b" "c"`, dns.RcodeSuccess},
		{`www.example.com. 0 IN TXT "a b" "C"`, dns.RcodeNXRrset},
		{"example.com. 0 IN MX 10 mail.EXAMPLE.net.", dns.RcodeSuccess},
		{"web.example.com. 0 IN CNAME WWW.example.com.", dns.RcodeSuccess},
		{"example.com. 0 IN NS ns2.example.net.|example.com. 0 IN NS ns1.example.net.", dns.RcodeSuccess},
		{"example.com. 0 IN NS ns2.example.net.", dns.RcodeNXRrset},
		{"weighted.example.com. 0 IN A 192.0.2.3", dns.RcodeNXRrset}, // what is chosen is equal to nothing
		{"www.example.com. 0 IN DHCID AAIBY2/AuCccgoJbsaxcQc9TUapptP69lOjxfNuVAA2kjEA=", dns.RcodeNXRrset},
		// Form.
		{"www.example.com. 1 ANY A", dns.RcodeFormatError},
		{"www.example.com. 1 NONE A", dns.RcodeFormatError},
		{"www.example.com. 1 IN A 192.0.2.1", dns.RcodeFormatError},
		{"www.example.com. 0 ANY A 192.0.2.1", dns.RcodeFormatError},
		{"www.example.com. 0 NONE A 192.0.2.1", dns.RcodeFormatError},
		{"www.example.com. 0 IN A", dns.RcodeFormatError},
		{"www.example.com. 0 CH A", dns.RcodeFormatError},
		{"www.example.com. 0 ANY AXFR", dns.RcodeFormatError},
		{"www.example.com. 0 IN ANY", dns.RcodeFormatError},
		{"example.net. 0 ANY ANY", dns.RcodeNotZone},
		{"com. 0 NONE ANY", dns.RcodeNotZone},
		{"xexample.com. 0 NONE ANY", dns.RcodeNotZone},
		{"sub.example.com. 0 ANY ANY", dns.RcodeNotZone}, // of a zone of its own
		{"a.sub.example.com. 0 NONE ANY", dns.RcodeNotZone},
		{"www.example.com. 0 ANY AAAA|example.net. 0 ANY ANY", dns.RcodeNXRrset}, // the first that fails
	} {
		v := judged(t, s, message(t, "example.com.", strings.Split(c.prereq, "|"), nil), "all")
		if v.Rcode != c.rcode || v.Zone != nil {
			t.Errorf("%s: %s (%s), want %s", c.prereq, dns.RcodeToString[v.Rcode], v.Why, dns.RcodeToString[c.rcode])
		}
	}
	for prereq, rcode := range map[string]int{
		"drawn.example. 0 ANY NS":                       dns.RcodeSuccess,
		"ns-fra1.drawn.example. 0 ANY A":                dns.RcodeSuccess,
		"ns-fra1.drawn.example. 0 NONE ANY":             dns.RcodeYXDomain,
		"ns-iad1.drawn.example. 0 NONE ANY":             dns.RcodeSuccess,
		"drawn.example. 0 IN NS ns-fra1.drawn.example.": dns.RcodeNXRrset,
	} {
		if v := judged(t, s, message(t, "drawn.example.", []string{prereq}, nil), "all"); v.Rcode != rcode {
			t.Errorf("%s: %s, want %s", prereq, dns.RcodeToString[v.Rcode], dns.RcodeToString[rcode])
		}
	}
}

func TestUpdates(t *testing.T) {
	s := specOf(t, zones)
	for _, c := range []struct {
		change string // several are parted by |
		rcode  int
		differ string // what is gone, and what has come: "-… +…"
	}{
		// 3.4.2.2: records are added.
		{"www.example.com. 60 IN A 192.0.2.3", 0, "-www A 60 [192.0.2.1 192.0.2.2] +www A 60 [192.0.2.1 192.0.2.2 192.0.2.3]"},
		{"WWW.example.com. 60 IN A 192.0.2.1", 0, ""},
		{"www.example.com. 90 IN A 192.0.2.1", 0, "-www A 60 [192.0.2.1 192.0.2.2] +www A 90 [192.0.2.1 192.0.2.2]"}, // RFC 2181 §5.2
		{"www.example.com. 4294967295 IN A 192.0.2.1", 0, "-www A 60 [192.0.2.1 192.0.2.2] +www A 0 [192.0.2.1 192.0.2.2]"},
		{"new.example.com. 5 IN TXT \"x\"|new.example.com. 6 IN TXT \"y\"", 0, `+new TXT 6 ["x" "y"]`},
		{"example.com. 5 IN MX 20 b.example.net.", 0, "-@ MX 300 [10 Mail.example.net.] +@ MX 5 [10 Mail.example.net. 20 b.example.net.]"},
		{"example.com. 300 IN MX 10 mail.example.net.", 0, "-@ MX 300 [10 Mail.example.net.] +@ MX 300 [10 mail.example.net.]"},
		{`a\032b.example.com. 300 IN TXT "t"`, 0, `-a\032b TXT 300 ["s"] +a\032b TXT 300 ["s" "t"]`},
		{`c\032d.example.com. 300 IN TXT "t"`, 0, `+c\032d TXT 300 ["t"]`},
		{"*.w.example.com. 300 IN A 192.0.2.7", 0, "+*.w A 300 [192.0.2.7]"},
		{"below.example.com. 300 IN A 192.0.2.7", 0, "+below A 300 [192.0.2.7]"},
		{"lab.example.com. 300 IN NS ns2.lab.example.com.", 0, "-lab NS 300 [ns.lab.example.com.] +lab NS 300 [ns.lab.example.com. ns2.lab.example.com.]"},
		// CNAME.
		{"web.example.com. 300 IN CNAME a.example.com.", 0, "-web CNAME 300 [www.example.com.] +web CNAME 300 [a.example.com.]"},
		{"web.example.com. 300 IN A 192.0.2.1", 0, ""},
		{"www.example.com. 300 IN CNAME a.example.com.", 0, ""},
		{"example.com. 300 IN CNAME a.example.com.", 0, ""},
		{"alias.example.com. 300 IN CNAME a.example.com.", 0, ""},
		{"old.example.com. 300 IN CNAME a.example.com.", 0, ""},
		{"web.example.com. 0 ANY CNAME|web.example.com. 300 IN A 192.0.2.1", 0, "-web CNAME 300 [www.example.com.] +web A 300 [192.0.2.1]"},
		{"www.example.com. 0 ANY ANY|www.example.com. 300 IN CNAME a.example.com.", 0,
			`-www A 60 [192.0.2.1 192.0.2.2] -www TXT 300 ["a b" "c"] +www CNAME 300 [a.example.com.]`},
		// DNAME (RFC 6672 §5.2).
		{"old.example.com. 300 IN DNAME a.example.com.", 0, "-old DNAME 300 [example.net.] +old DNAME 300 [a.example.com.]"},
		{"web.example.com. 300 IN DNAME a.example.com.", 0, ""},
		// SOA and NS of the apex.
		{"example.com. 300 IN SOA a. b. 7 1 1 1 1", 0, ""},
		{"example.com. 300 IN SOA a. b. 6 1 1 1 1", 0, ""},
		{"example.com. 300 IN SOA a. b. 8 1 1 1 1", dns.RcodeRefused, ""},
		{"www.example.com. 300 IN SOA a. b. 8 1 1 1 1", 0, ""},
		{"example.com. 0 NONE SOA a. b. 7 1 1 1 1", 0, ""},
		{"example.com. 0 ANY SOA", 0, ""},
		{"example.com. 0 ANY NS", 0, ""},
		{"example.com. 0 ANY ANY", 0, "-@ MX 300 [10 Mail.example.net.]"},
		{"example.com. 300 IN NS ns1.example.net.", 0, ""},
		{"example.com. 300 IN NS ns3.example.net.", dns.RcodeRefused, ""},
		{"example.com. 0 NONE NS ns3.example.net.", 0, ""},
		{"example.com. 0 NONE NS ns1.example.net.", dns.RcodeRefused, ""},
		// 3.4.2.3: sets are deleted.
		{"www.example.com. 0 ANY A", 0, "-www A 60 [192.0.2.1 192.0.2.2]"},
		{"www.example.com. 0 ANY AAAA", 0, ""},
		{"no.example.com. 0 ANY ANY", 0, ""},
		{"no.example.com. 0 ANY DHCID", 0, ""},
		{"www.example.com. 0 ANY ANY", 0, `-www A 60 [192.0.2.1 192.0.2.2] -www TXT 300 ["a b" "c"]`},
		{"new.example.com. 5 IN TXT \"x\"|new.example.com. 0 ANY ANY", 0, ""},
		{"www.example.com. 0 ANY A|www.example.com. 60 IN A 192.0.2.1|www.example.com. 60 IN A 192.0.2.2", 0, ""},
		// 3.4.2.4: records are deleted.
		{"www.example.com. 0 NONE A 192.0.2.1", 0, "-www A 60 [192.0.2.1 192.0.2.2] +www A 60 [192.0.2.2]"},
		{"www.example.com. 0 NONE A 192.0.2.1|www.example.com. 0 NONE A 192.0.2.2", 0, "-www A 60 [192.0.2.1 192.0.2.2]"},
		{"www.example.com. 0 NONE A 192.0.2.9", 0, ""},
		{`www.example.com. 0 NONE TXT "a b" "c"`, 0, `-www TXT 300 ["a b" "c"]`},
		{"example.com. 0 NONE MX 10 MAIL.example.net.", 0, "-@ MX 300 [10 Mail.example.net.]"},
		{"no.example.com. 0 NONE A 192.0.2.1", 0, ""},
		{"lab.example.com. 0 NONE NS ns.lab.example.com.", 0, "-lab NS 300 [ns.lab.example.com.]"}, // no apex
		// What is not for updates.
		{"weighted.example.com. 300 IN A 192.0.2.5", dns.RcodeRefused, ""},
		{"weighted.example.com. 0 ANY A", dns.RcodeRefused, ""},
		{"weighted.example.com. 0 ANY ANY", dns.RcodeRefused, ""},
		{"weighted.example.com. 0 NONE A 192.0.2.3", dns.RcodeRefused, ""},
		{"alias.example.com. 300 IN A 192.0.2.5", dns.RcodeRefused, ""},
		{"alias.example.com. 300 IN TXT \"beside\"", 0, `+alias TXT 300 ["beside"]`},
		{"alias.example.com. 0 ANY A", dns.RcodeRefused, ""},
		{"www.example.com. 0 ANY ANY|alias.example.com. 0 ANY A", dns.RcodeRefused, ""}, // all or nothing
		{"www.example.com. 300 IN DHCID AAIBY2/AuCccgoJbsaxcQc9TUapptP69lOjxfNuVAA2kjEA=", dns.RcodeRefused, ""},
		{"www.example.com. 300 IN TLSA 9 9 9 00", dns.RcodeRefused, ""},
		// Form.
		{"www.example.com. 60 CH A", dns.RcodeFormatError, ""},
		{"www.example.com. 60 IN A", dns.RcodeFormatError, ""},
		{"www.example.com. 60 IN ANY", dns.RcodeFormatError, ""},
		{"www.example.com. 60 IN AXFR", dns.RcodeFormatError, ""},
		{"www.example.com. 1 ANY A", dns.RcodeFormatError, ""},
		{"www.example.com. 0 ANY A 192.0.2.1", dns.RcodeFormatError, ""},
		{"www.example.com. 0 ANY AXFR", dns.RcodeFormatError, ""},
		{"www.example.com. 1 NONE A 192.0.2.1", dns.RcodeFormatError, ""},
		{"www.example.com. 0 NONE ANY", dns.RcodeFormatError, ""},
		{"www.example.com. 0 NONE A", dns.RcodeFormatError, ""},
		{"example.net. 60 IN A 192.0.2.1", dns.RcodeNotZone, ""},
		{"www.sub.example.com. 60 IN A 192.0.2.1", dns.RcodeNotZone, ""},
	} {
		v := judged(t, s, message(t, "example.com.", nil, strings.Split(c.change, "|")), "all")
		if differ := difference(s.HostedZones["example.com"], v.Zone); v.Rcode != c.rcode || differ != c.differ {
			t.Errorf("%s: %s (%s), %s\nwant %s, %s", c.change, dns.RcodeToString[v.Rcode], v.Why, differ, dns.RcodeToString[c.rcode], c.differ)
		}
		if v.Rcode == dns.RcodeRefused && v.Why == "" {
			t.Errorf("%s: refused, and not said why", c.change)
		}
	}
}

// difference is what has gone from a zone, and what has come. A nil zone is no change.
func difference(before, after *spec.HostedZone) string {
	if after == nil {
		return ""
	}
	lines := func(z *spec.HostedZone) (all []string) {
		for _, r := range z.Records.All() {
			if r.Alias == nil && r.SetIdentifier == "" {
				all = append(all, fmt.Sprintf("%s %s %d %v", r.Name, r.Type, int(r.TTL.Std().Seconds()), r.Values))
			}
		}
		return all
	}
	was, is := lines(before), lines(after)
	var out []string
	for _, l := range was {
		if !slices.Contains(is, l) {
			out = append(out, "-"+l)
		}
	}
	for _, l := range is {
		if !slices.Contains(was, l) {
			out = append(out, "+"+l)
		}
	}
	return strings.Join(out, " ")
}

func TestWhoMayUpdate(t *testing.T) {
	s := specOf(t, zones)
	for _, c := range []struct {
		zone, key, change string
		rcode             int
	}{
		{"example.com.", "acme", `_acme-challenge.www.example.com. 60 IN TXT "t"`, dns.RcodeSuccess},
		{"example.com.", "acme", `a.b.dyn.example.com. 60 IN TXT "t"`, dns.RcodeSuccess},
		{"example.com.", "acme", "a.dyn.example.com. 60 IN A 192.0.2.1", dns.RcodeRefused},
		{"example.com.", "acme", `other.example.com. 60 IN TXT "t"`, dns.RcodeRefused},
		{"example.com.", "acme", "www.example.com. 0 ANY TXT", dns.RcodeSuccess},
		{"example.com.", "acme", "www.example.com. 0 ANY ANY", dns.RcodeRefused}, // it has an A, too
		{"example.com.", "acme", "a.dyn.example.com. 0 ANY ANY", dns.RcodeSuccess},
		{"example.com.", "acme", "other.example.com. 0 ANY ANY", dns.RcodeRefused},
		{"example.com.", "acme", `other.example.com. 0 NONE TXT "t"`, dns.RcodeRefused},
		{"example.com.", "", `_acme-challenge.www.example.com. 60 IN TXT "t"`, dns.RcodeRefused},
		{"example.com.", "nobody", `_acme-challenge.www.example.com. 60 IN TXT "t"`, dns.RcodeRefused},
		{"sub.example.com.", "all", `a.sub.example.com. 60 IN TXT "t"`, dns.RcodeRefused},
		{"drawn.example.", "all", `a.drawn.example. 60 IN TXT "t"`, dns.RcodeSuccess},
		{"drawn.example.", "all", "drawn.example. 60 IN NS ns-fra1.drawn.example.", dns.RcodeRefused},
		{"www.example.com.", "all", `www.example.com. 60 IN TXT "t"`, dns.RcodeNotAuth},
		{"example.org.", "all", `a.example.org. 60 IN TXT "t"`, dns.RcodeNotAuth},
	} {
		if v := judged(t, s, message(t, c.zone, nil, []string{c.change}), c.key); v.Rcode != c.rcode {
			t.Errorf("%s: %s: %s (%s), want %s", c.key, c.change, dns.RcodeToString[v.Rcode], v.Why, dns.RcodeToString[c.rcode])
		}
	}
	m := message(t, "example.com.", nil, nil)
	m[len(m)-1] = 3 // CH
	if v := judged(t, s, m, "all"); v.Rcode != dns.RcodeNotAuth {
		t.Errorf("of another class: %s", dns.RcodeToString[v.Rcode])
	}
}

func TestMessagesOfNoForm(t *testing.T) {
	good := message(t, "example.com.", []string{"www.example.com. 0 ANY A"}, []string{"www.example.com. 60 IN MX 10 a.example.com."})
	if _, ok := Parse(good); !ok {
		t.Fatal("the good one is not read")
	}
	for n := range good {
		if _, ok := Parse(good[:n]); ok {
			t.Errorf("cut after %d of %d bytes it is read", n, len(good))
		}
	}
	for name, change := range map[string]func(m []byte) []byte{
		"something follows":       func(m []byte) []byte { return append(m, 0) },
		"a query":                 func(m []byte) []byte { m[2] = 0; return m },
		"a response":              func(m []byte) []byte { m[2] |= 0x80; return m },
		"no zone":                 func(m []byte) []byte { m[5] = 0; return m },
		"two zones":               func(m []byte) []byte { m[5] = 2; return m },
		"the zone is of type A":   func(m []byte) []byte { m[headerSize+13+1] = 1; return m },
		"a pointer forward":       func(m []byte) []byte { m[headerSize+13+4+4] = 0xc0; m[headerSize+13+4+5] = 0xff; return m },
		"a label of 64":           func(m []byte) []byte { m[headerSize] = 64; return m },
		"data longer than said":   func(m []byte) []byte { m[len(m)-17-1]++; return m },
		"a pointer to the header": func(m []byte) []byte { return append(m[:headerSize], 0xc0, 0, 0, 6, 0, 1) },
	} {
		if _, ok := Parse(change(slices.Clone(good))); ok {
			t.Errorf("%s: it is read", name)
		}
	}
}

// FuzzParse: nothing that strangers send makes it fail, what is done miekg/dns can read too, and a judgement never leads to a zone
// that differs in a set with a policy or an alias.
func FuzzParse(f *testing.F) {
	s := specOf(f, zones)
	f.Add(message(f, "example.com.", []string{"www.example.com. 0 ANY A", "www.example.com. 0 IN A 192.0.2.1"}, []string{"www.example.com. 60 IN MX 10 a.example.com.", "a.example.com. 0 ANY ANY"}))
	f.Add(message(f, "example.com.", nil, []string{`a\.b.example.com. 60 IN TXT "a" "b"`, "www.example.com. 0 NONE A 192.0.2.1", "x.example.com. 1 IN HTTPS 1 . alpn=h2"}))
	f.Fuzz(func(t *testing.T, m []byte) {
		u, ok := Parse(m)
		if !ok {
			return
		}
		u.Zone, u.class = "example.com", dns.ClassINET
		v := Judge(s, u, "all")
		if theirs := new(dns.Msg); v.Rcode == dns.RcodeSuccess && m[10]|m[11] == 0 && theirs.Unpack(m) != nil { // nobody looks at additional records here
			t.Fatalf("% x is taken here alone", m)
		}
		if v.Zone == nil {
			return
		}
		for _, r := range s.HostedZones["example.com"].Records.All() {
			if (r.Alias != nil || r.SetIdentifier != "") && !slices.ContainsFunc(v.Zone.Records.Special(), func(o *spec.Record) bool { return o.Equal(&r) }) {
				t.Fatalf("% x changed %s %s", m, r.Name, r.Type)
			}
		}
		if len(v.From) != v.Zone.Records.Len() {
			t.Fatal("not as many places as records")
		}
	})
}

const plainZone = `
{kind: TsigKey, name: all, secret: c2VjcmV0IG9mIHRoaXMgcGFnZSwga25vd24gdG8gYWxsIQ==}
---
kind: HostedZone
name: z.test
nameServers: [ns.z.test]
records: [{name: ns, type: A, values: [192.0.2.53]}]
update: {allow: [{key: all}, {key: all, types: [NS, DS, DNAME]}]}
`

// randomUpdate is an update of that zone, with a prerequisite or none.
func randomUpdate(random *rand.Rand) (prereq, change []string) {
	owners := []string{"z.test.", "a.z.test.", "b.z.test.", "*.z.test.", "c.a.z.test.", "ns.z.test."}
	data := []string{"A 192.0.2.1", "A 192.0.2.2", "AAAA 2001:db8::1", `TXT "a"`, `TXT "A"`, "MX 10 m.z.test.", "MX 10 M.z.test.",
		"CNAME a.z.test.", "CNAME B.z.test.", "SRV 1 2 3 h.z.test.", "PTR p.z.test.", `CAA 0 issue "ca.test"`, "NAPTR 1 2 \"s\" \"x\" \"\" n.z.test."}
	pick := func(list []string) string { return list[random.IntN(len(list))] }
	for range random.IntN(2) {
		owner, d := pick(owners), pick(data)
		typ, _, _ := strings.Cut(d, " ")
		prereq = append(prereq, owner+[]string{" 0 ANY ANY", " 0 NONE ANY", " 0 ANY " + typ, " 0 NONE " + typ, " 0 IN " + d}[random.IntN(5)])
	}
	for range 1 + random.IntN(3) {
		owner, d := pick(owners), pick(data)
		typ, _, _ := strings.Cut(d, " ")
		ttl := []string{"300", "60"}[random.IntN(2)]
		change = append(change, owner+[]string{" 0 ANY ANY", " 0 ANY " + typ, " 0 NONE " + d, " " + ttl + " IN " + d, " " + ttl + " IN " + d, " " + ttl + " IN " + d}[random.IntN(6)])
	}
	return prereq, change
}

// with is the spec with a zone in the place of the one before; nil is no other.
func with(s *spec.Spec, z *spec.HostedZone) *spec.Spec {
	if z == nil {
		return s
	}
	next := *s
	next.HostedZones = map[string]*spec.HostedZone{z.Name: z}
	return &next
}

// The zone that random updates lead to is that of RFC 2136's own pseudocode (§3.2.5, §3.4.2.7) over plain records.
func TestAsTheRFCsPseudocode(t *testing.T) {
	s := specOf(t, plainZone)
	random := rand.New(rand.NewPCG(3, 4))
	model := reference{"ns.z.test. 300 A 192.0.2.53": true}
	counts := map[int]int{}
	for range 5_000 {
		prereq, change := randomUpdate(random)
		v := judged(t, s, message(t, "z.test.", prereq, change), "all")
		want, next := model.update(t, prereq, change)
		if v.Rcode != want {
			t.Fatalf("%q %q: %s (%s), the reference %s", prereq, change, dns.RcodeToString[v.Rcode], v.Why, dns.RcodeToString[want])
		}
		counts[want]++
		s = with(s, v.Zone)
		if model = next; !maps.Equal(model, recordsOf(s.HostedZones["z.test"])) {
			t.Fatalf("%q %q: %v\nthe reference %v", prereq, change, recordsOf(s.HostedZones["z.test"]), model)
		}
	}
	for _, rcode := range []int{dns.RcodeSuccess, dns.RcodeNameError, dns.RcodeYXDomain, dns.RcodeYXRrset, dns.RcodeNXRrset} {
		if counts[rcode] < 100 {
			t.Errorf("only %d were %s", counts[rcode], dns.RcodeToString[rcode])
		}
	}
}

func recordsOf(z *spec.HostedZone) reference {
	all := reference{}
	for _, r := range z.Records.All() {
		for _, value := range r.Values {
			all[fmt.Sprintf("%s %d %s %s", z.Owner(r.Name), int(r.TTL.Std().Seconds()), r.Type, value)] = true
		}
	}
	return all
}

// reference is a zone as the RFC thinks of it: records "OWNER TTL TYPE DATA", beside the SOA and NS of the apex.
type reference map[string]bool

func (z reference) find(owner, typ, data string) (found []string) {
	for line := range z {
		words := strings.SplitN(line, " ", 4)
		fold := data == words[3] || strings.EqualFold(data, words[3]) && slices.Contains([]string{"MX", "CNAME", "SRV", "PTR"}, typ)
		if words[0] == owner && (typ == "ANY" || words[2] == typ) && (data == "" || fold) {
			found = append(found, line)
		}
	}
	return found
}

func (z reference) update(t *testing.T, prereq, change []string) (rcode int, next reference) {
	const apex = "z.test."
	for _, line := range prereq {
		words := strings.SplitN(line, " ", 5)
		owner, typ := words[0], words[3]
		there := len(z.find(owner, typ, "")) > 0 || typ == "ANY" && owner == apex
		switch {
		case words[2] == "IN":
			// One record: the set must be it alone.
			if len(z.find(owner, typ, "")) != 1 || len(z.find(owner, typ, words[4])) != 1 {
				return dns.RcodeNXRrset, z
			}
		case words[2] == "ANY" && !there && typ == "ANY":
			return dns.RcodeNameError, z
		case words[2] == "ANY" && !there:
			return dns.RcodeNXRrset, z
		case words[2] == "NONE" && there && typ == "ANY":
			return dns.RcodeYXDomain, z
		case words[2] == "NONE" && there:
			return dns.RcodeYXRrset, z
		}
	}
	next = maps.Clone(z)
	remove := func(lines []string) {
		for _, l := range lines {
			delete(next, l)
		}
	}
	for _, line := range change {
		words := strings.SplitN(line, " ", 5)
		owner, typ := words[0], words[3]
		all, ofType := next.find(owner, "ANY", ""), next.find(owner, typ, "")
		switch words[2] {
		case "ANY":
			remove(ofType)
			continue
		case "NONE":
			remove(next.find(owner, typ, words[4]))
			continue
		}
		if typ == "CNAME" && (owner == apex || len(all) > len(ofType)) || typ != "CNAME" && len(next.find(owner, "CNAME", "")) > 0 {
			continue
		}
		remove(next.find(owner, typ, words[4]))
		if typ == "CNAME" {
			remove(ofType)
		}
		for _, l := range next.find(owner, typ, "") { // one TTL for all
			w := strings.SplitN(l, " ", 4)
			delete(next, l)
			next[strings.Join([]string{w[0], words[1], w[2], w[3]}, " ")] = true
		}
		next[strings.Join([]string{owner, words[1], typ, words[4]}, " ")] = true
	}
	return dns.RcodeSuccess, next
}

// Every type's data come through a message as the spec writes them.
func TestDataComeAsTheSpecWritesThem(t *testing.T) {
	s := specOf(t, zones)
	for typ, values := range map[string][]string{
		"A": {"192.0.2.1"}, "AAAA": {"2001:db8::1", "::"}, "CAA": {`0 issue "ca.example.net"`}, "CNAME": {"a.example.com", `a\032b.example.com`},
		"DNAME": {"example.net"}, "DS": {"12345 13 2 " + strings.Repeat("9F", 32)}, "HTTPS": {"1 . alpn=h2,h3 port=443", "0 svc.example.net."},
		"MX": {"10 Mail.Example.net", "0 ."}, "NAPTR": {`10 100 "s" "SIP+D2U" "" _sip._udp.example.com.`, `1 1 "u" "E2U+sip" "!^.*$!sip:info@example.com!" .`},
		"NS": {"ns.example.net"}, "PTR": {"host.example.com"}, "SPF": {`"v=spf1 -all"`}, "SRV": {"0 5 443 www.example.com"},
		"SSHFP": {"4 2 " + strings.Repeat("ab", 32)}, "SVCB": {"1 a.example.com. ipv4hint=192.0.2.1,192.0.2.2 ech=AAEC"},
		"TLSA": {"3 1 1 " + strings.Repeat("cd", 32)}, "TXT": {`"a b" "c;d" "\"q\"" "\255"`, `""`},
	} {
		for _, value := range values {
			canonical, err := spec.ParseValue(typ, value)
			if err != nil {
				t.Fatal(err)
			}
			v := judged(t, s, message(t, "example.com.", nil, []string{"fresh.example.com. 300 IN " + typ + " " + canonical}), "all")
			if v.Zone == nil {
				t.Errorf("%s %s: %s (%s)", typ, value, dns.RcodeToString[v.Rcode], v.Why)
				continue
			}
			if r := v.Zone.Records.At(v.Zone.Records.Len() - 1); r.Values[0] != canonical {
				t.Errorf("%s %s came as %s", typ, canonical, r.Values[0])
			}
		}
	}
	if len(spec.RecordTypes()) != 17 {
		t.Error("there is a type that is not tried")
	}
}

// BIND, asked the same, answers the same and comes to the same zone.
func TestAsBINDDoes(t *testing.T) {
	named, err := exec.LookPath("named")
	if err != nil {
		if os.Getenv("PERIGEE_REAL_CLIENTS") == "required" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	at := "127.0.0.1:" + freePort(t)
	conf := filepath.Join(dir, "named.conf")
	for name, text := range map[string]string{
		filepath.Join(dir, "zone"): "$TTL 300\n@ SOA ns.elsewhere. hostmaster 1 1 1 1 1\n@ 172800 NS ns.elsewhere.\nns A 192.0.2.53\n",
		conf: fmt.Sprintf(`
options { directory %q; listen-on port %s { 127.0.0.1; }; listen-on-v6 { none; }; pid-file none; session-keyfile none; recursion no; notify no; dnssec-validation no; };
controls { };
zone "z.test" { type primary; file "zone"; check-integrity no; check-mx ignore; check-names ignore; allow-update { any; }; allow-transfer { any; }; };
`, dir, strings.TrimPrefix(at, "127.0.0.1:")),
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), named, "-g", "-n", "1", "-c", conf)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if r, err := dns.Exchange(new(dns.Msg).SetQuestion("z.test.", dns.TypeSOA), at); err == nil && len(r.Answer) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("named does not answer")
		}
	}
	s := specOf(t, plainZone)
	random := rand.New(rand.NewPCG(7, 8))
	asked, err := dns.DialTimeout("tcp", at, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer asked.Close()
	for i := range 400 {
		prereq, change := randomUpdate(random)
		m := message(t, "z.test.", prereq, change)
		v := judged(t, s, m, "all")
		if _, err := asked.Write(m); err != nil {
			t.Fatal(err)
		}
		r, err := asked.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		if r.Rcode != v.Rcode {
			t.Fatalf("%d: %q %q: %s (%s), BIND %s", i, prereq, change, dns.RcodeToString[v.Rcode], v.Why, dns.RcodeToString[r.Rcode])
		}
		s = with(s, v.Zone)
		envelopes, err := new(dns.Transfer).In(new(dns.Msg).SetAxfr("z.test."), at)
		if err != nil {
			t.Fatal(err)
		}
		theirs, ours := reference{}, reference{}
		for e := range envelopes {
			if e.Error != nil {
				t.Fatal(e.Error)
			}
			for _, rr := range e.RR {
				h := rr.Header()
				if h.Rrtype == dns.TypeSOA || h.Rrtype == dns.TypeNS {
					continue
				}
				typ := dns.TypeToString[h.Rrtype]
				value, err := spec.ParseValue(typ, strings.TrimPrefix(rr.String(), h.String()))
				if err != nil {
					t.Fatal(err)
				}
				theirs[folded(fmt.Sprintf("%s %d %s %s", h.Name, h.Ttl, typ, value))] = true
			}
		}
		for line := range recordsOf(s.HostedZones["z.test"]) {
			ours[folded(line)] = true
		}
		if !maps.Equal(ours, theirs) {
			t.Fatalf("%d: %q %q: %v\nBIND %v", i, prereq, change, ours, theirs)
		}
	}
}

// folded has names in data in small letters: which of two spellings is kept is nobody's concern.
func folded(line string) string {
	if strings.Contains(line, " TXT ") {
		return line
	}
	return strings.ToLower(line)
}

// freePort is a port of this machine that nothing listens at.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}
