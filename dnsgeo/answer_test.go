package dnsgeo

import (
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/perigee-net/perigee/cluster/health"
	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
)

// The authority of an answer that there is nothing, and of one that is not to be held for longer than a POP may be dead.
const (
	soa  = "authority example.com. 900 SOA ns-nrt1.example.com. hostmaster.example.com. 7 7200 900 1209600 86400\n"
	soon = "authority example.com. 30 SOA ns-nrt1.example.com. hostmaster.example.com. 7 7200 900 1209600 86400\n"
)

func TestNamesAreAnswered(t *testing.T) {
	table := compile(t, worldSpec(t, `
		@         300 MX    10 mail.example.com. - 20 mail2.example.net.
		@             TXT   "v=spf1 -all" - "two" "strings"
		@             CAA   0 issue "ca.example.net"
		@             A     192.0.2.99
		www        60 A     192.0.2.1 192.0.2.2
		www        60 AAAA  2001:db8::1
		WWW2       60 A     192.0.2.3
		deep.empty    A     192.0.2.4
		*.wild     60 A     192.0.2.5
		*.wild        TXT   "wild"
		own.wild      TXT   "own"
		below.host.wild A   192.0.2.6
		cname     120 CNAME www.example.com.
		away          CNAME www.example.net.
		lost          CNAME nowhere.example.com.
		tonone        CNAME empty.example.com.
		*.alias       CNAME www.example.com.
		loop          CNAME loop2.example.com.
		loop2         CNAME loop.example.com.
		self          CNAME self.example.com.
		into          CNAME host.sub.example.com.
		sub       600 NS    ns1.sub.example.com. ns.example.net.
		ns1.sub   500 A     192.0.2.53
		ns1.sub   500 AAAA  2001:db8::53
		hidden.sub    A     192.0.2.66
		_sip._tcp     SRV   1 2 5060 www.example.com.
		host.in-addr  PTR   www.example.com.
	`))
	for _, test := range []struct{ name, question, want string }{
		{"an address", "www.example.com. AAAA", "NOERROR aa\nwww.example.com. 60 AAAA 2001:db8::1\n"},
		{"all values of a record", "www.example.com. A", "NOERROR aa\nwww.example.com. 60 A 192.0.2.1\nwww.example.com. 60 A 192.0.2.2\n"},
		{"in any case", "wWw.ExamplE.COM. AAAA", "NOERROR aa\nwww.example.com. 60 AAAA 2001:db8::1\n"},
		{"written in any case", "www2.example.com. A", "NOERROR aa\nwww2.example.com. 60 A 192.0.2.3\n"},
		{"the zone itself", "example.com. A", "NOERROR aa\nexample.com. 60 A 192.0.2.99\n"},
		{"MX", "example.com. MX", "NOERROR aa\nexample.com. 300 MX 10 mail.example.com.\nexample.com. 300 MX 20 mail2.example.net.\n"},
		{"TXT", "example.com. TXT", "NOERROR aa\nexample.com. 60 TXT \"two\" \"strings\"\nexample.com. 60 TXT \"v=spf1 -all\"\n"},
		{"CAA", "example.com. CAA", "NOERROR aa\nexample.com. 60 CAA 0 issue \"ca.example.net\"\n"},
		{"SRV", "_sip._tcp.example.com. SRV", "NOERROR aa\n_sip._tcp.example.com. 60 SRV 1 2 5060 www.example.com.\n"},
		{"PTR", "host.in-addr.example.com. PTR", "NOERROR aa\nhost.in-addr.example.com. 60 PTR www.example.com.\n"},

		{"SOA", "example.com. SOA", "NOERROR aa\nexample.com. 900 SOA ns-nrt1.example.com. hostmaster.example.com. 7 7200 900 1209600 86400\n"},
		{"no such name", "none.example.com. A", "NXDOMAIN aa\n" + soa},
		{"no such name below a name", "x.www.example.com. A", "NXDOMAIN aa\n" + soa},
		{"no such type", "www.example.com. MX", "NOERROR aa\n" + soa},
		{"an unknown type", "www.example.com. TLSA", "NOERROR aa\n" + soa},
		{"a name that has only names below it", "empty.example.com. A", "NOERROR aa\n" + soa},

		{"a wildcard", "any.wild.example.com. A", "NOERROR aa\nany.wild.example.com. 60 A 192.0.2.5\n"},
		{"a wildcard, several labels", "a.b.wild.example.com. A", "NOERROR aa\na.b.wild.example.com. 60 A 192.0.2.5\n"},
		{"a wildcard, no such type", "any.wild.example.com. AAAA", "NOERROR aa\n" + soa},
		{"a wildcard by its name", "*.wild.example.com. A", "NOERROR aa\n*.wild.example.com. 60 A 192.0.2.5\n"},
		{"not the wildcard's own parent", "wild.example.com. A", "NOERROR aa\n" + soa},
		{"a name of its own hides the wildcard", "own.wild.example.com. A", "NOERROR aa\n" + soa},
		{"and so for what is below it", "x.own.wild.example.com. A", "NXDOMAIN aa\n" + soa},
		{"so does a name that has only names below it", "host.wild.example.com. A", "NOERROR aa\n" + soa},
		{"a wildcard CNAME", "any.alias.example.com. AAAA", "NOERROR aa\nany.alias.example.com. 60 CNAME www.example.com.\nwww.example.com. 60 AAAA 2001:db8::1\n"},

		{"a CNAME is followed", "cname.example.com. AAAA", "NOERROR aa\ncname.example.com. 120 CNAME www.example.com.\nwww.example.com. 60 AAAA 2001:db8::1\n"},
		{"a CNAME that is asked for", "cname.example.com. CNAME", "NOERROR aa\ncname.example.com. 120 CNAME www.example.com.\n"},
		{"a CNAME to elsewhere", "away.example.com. A", "NOERROR aa\naway.example.com. 60 CNAME www.example.net.\n"},
		{"a CNAME to no name", "lost.example.com. A", "NXDOMAIN aa\nlost.example.com. 60 CNAME nowhere.example.com.\n" + soa},
		{"a CNAME to nothing of the type", "tonone.example.com. A", "NOERROR aa\ntonone.example.com. 60 CNAME empty.example.com.\n" + soa},
		{"CNAMEs in a circle", "loop.example.com. A", "NOERROR aa\nloop.example.com. 60 CNAME loop2.example.com.\nloop2.example.com. 60 CNAME loop.example.com.\n"},
		{"a CNAME to itself", "self.example.com. A", "NOERROR aa\nself.example.com. 60 CNAME self.example.com.\n"},
		{"a CNAME into a delegation", "into.example.com. A", `NOERROR aa
			into.example.com. 60 CNAME host.sub.example.com.
			authority sub.example.com. 600 NS ns.example.net.
			authority sub.example.com. 600 NS ns1.sub.example.com.
			additional ns1.sub.example.com. 500 A 192.0.2.53
			additional ns1.sub.example.com. 500 AAAA 2001:db8::53`},

		{"a delegation", "sub.example.com. A", `NOERROR
			authority sub.example.com. 600 NS ns.example.net.
			authority sub.example.com. 600 NS ns1.sub.example.com.
			additional ns1.sub.example.com. 500 A 192.0.2.53
			additional ns1.sub.example.com. 500 AAAA 2001:db8::53`},
		{"a delegation's NS are not ours to tell", "sub.example.com. NS", `NOERROR
			authority sub.example.com. 600 NS ns.example.net.
			authority sub.example.com. 600 NS ns1.sub.example.com.
			additional ns1.sub.example.com. 500 A 192.0.2.53
			additional ns1.sub.example.com. 500 AAAA 2001:db8::53`},
		{"below a delegation, whatever we have there", "hidden.sub.example.com. A", `NOERROR
			authority sub.example.com. 600 NS ns.example.net.
			authority sub.example.com. 600 NS ns1.sub.example.com.
			additional ns1.sub.example.com. 500 A 192.0.2.53
			additional ns1.sub.example.com. 500 AAAA 2001:db8::53`},
		{"DS stands above the cut", "sub.example.com. DS", "NOERROR aa\n" + soa},

		{"everything is not told", "www.example.com. ANY", "NOERROR aa\nwww.example.com. 3600 HINFO \"RFC8482\" \"\"\n"},
		{"everything of a CNAME is the CNAME", "cname.example.com. ANY", "NOERROR aa\ncname.example.com. 120 CNAME www.example.com.\n"},
		{"everything of a wildcard", "any.wild.example.com. ANY", "NOERROR aa\nany.wild.example.com. 3600 HINFO \"RFC8482\" \"\"\n"},
		{"everything of nothing", "empty.example.com. ANY", "NOERROR aa\n" + soa},
		{"everything of no name", "none.example.com. ANY", "NXDOMAIN aa\n" + soa},

		{"another's zone", "www.example.org. A", "REFUSED\n"},
		{"the zone above", "com. A", "REFUSED\n"},
		{"the root", ". NS", "REFUSED\n"},
		{"a name that only ends alike", "notexample.com. A", "REFUSED\n"},
		{"a transfer", "example.com. AXFR", "REFUSED\n"},
		{"an incremental transfer", "example.com. IXFR", "REFUSED\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for got := range outcomes(t, table, worldView(), from(t, test.question, ""), 10) {
				if got != trim(test.want) {
					t.Errorf("got\n%swant\n%s", got, trim(test.want))
				}
			}
		})
	}
}

func TestOtherClassesAreRefused(t *testing.T) {
	table := compile(t, worldSpec(t, "www A 192.0.2.1"))
	q := from(t, "www.example.com. A", "")
	for _, class := range []uint16{dns.ClassCHAOS, dns.ClassANY, dns.ClassNONE, 0} {
		q.Class = class
		if got := shown(table.Answer(worldView(), q, nil)); got != "REFUSED\n" {
			t.Errorf("class %d: %s", class, got)
		}
	}
}

func TestALongChainEndsAtItsBound(t *testing.T) {
	var records strings.Builder
	for i := range 12 {
		records.WriteString("c" + string(rune('a'+i)) + " CNAME c" + string(rune('b'+i)) + ".example.com.\n")
	}
	a := compile(t, worldSpec(t, records.String())).Answer(worldView(), from(t, "ca.example.com. A", ""), nil)
	if a.Rcode != dns.RcodeSuccess || len(a.Answer) != maxChain {
		t.Errorf("got %s", shown(a))
	}
}

func TestTheDeepestZoneAnswers(t *testing.T) {
	s := worldSpec(t, "www A 192.0.2.1\na.sub A 192.0.2.2\ntosub CNAME www.sub.example.com.")
	s.HostedZones["sub.example.com"] = &spec.HostedZone{Name: "sub.example.com", NameServers: []string{"ns1.example.net."}, Records: recordsOf(t, "www A 192.0.2.3")}
	s.HostedZones["own.example.com"] = &spec.HostedZone{Name: "own.example.com", NameServers: []string{"ns1.example.net."}}
	s.HostedZones["example"] = &spec.HostedZone{Name: "example", Records: recordsOf(t, "www A 192.0.2.4")}
	table := compile(t, s)
	for question, want := range map[string]string{
		"www.example.com. A":     "NOERROR aa\nwww.example.com. 60 A 192.0.2.1\n",
		"www.sub.example.com. A": "NOERROR aa\nwww.sub.example.com. 60 A 192.0.2.3\n",
		"a.sub.example.com. A":   "NXDOMAIN aa\nauthority sub.example.com. 900 SOA ns1.example.net. hostmaster.sub.example.com. 7 7200 900 1209600 86400\n",
		"sub.example.com. NS":    "NOERROR aa\nsub.example.com. 172800 NS ns1.example.net.\n",
		"sub.example.com. DS":    "NOERROR aa\n" + soa,                                                                                                     // asked of the parent
		"own.example.com. DS":    "NOERROR aa\nauthority own.example.com. 900 SOA ns1.example.net. hostmaster.own.example.com. 7 7200 900 1209600 86400\n", // the parent does not know it
		"tosub.example.com. A":   "NOERROR aa\ntosub.example.com. 60 CNAME www.sub.example.com.\n",
		"www.example. A":         "NOERROR aa\nwww.example. 60 A 192.0.2.4\n",
		"example. DS":            "NOERROR aa\nauthority example. 900 SOA ns-icn1.example. hostmaster.example. 7 7200 900 1209600 86400\n",
	} {
		if got := shown(table.Answer(worldView(), from(t, question, ""), nil)); got != want {
			t.Errorf("%s: got\n%swant\n%s", question, got, want)
		}
	}
}

func TestEveryPOPIsANameServer(t *testing.T) {
	table := compile(t, worldSpec(t, "ns-dub1 300 A 198.51.100.4"))
	for _, test := range []struct {
		name, question string
		down           []string
		want           string
	}{
		{"all", "example.com. NS", nil, `NOERROR aa
			example.com. 172800 NS ns-dub1.example.com.
			example.com. 172800 NS ns-iad1.example.com.
			example.com. 172800 NS ns-icn1.example.com.
			example.com. 172800 NS ns-nrt1.example.com.
			additional ns-dub1.example.com. 300 A 198.51.100.4
			additional ns-iad1.example.com. 30 A 192.0.2.30
			additional ns-iad1.example.com. 30 AAAA 2001:db8::30
			additional ns-icn1.example.com. 30 A 192.0.2.10
			additional ns-icn1.example.com. 30 A 192.0.2.11
			additional ns-icn1.example.com. 30 AAAA 2001:db8::10
			additional ns-icn1.example.com. 30 AAAA 2001:db8::11
			additional ns-nrt1.example.com. 30 A 192.0.2.20
			additional ns-nrt1.example.com. 30 AAAA 2001:db8::20`},
		{"the dead have no address", "example.com. NS", []string{"iad1", "icn1-b", "nrt1"}, `NOERROR aa
			example.com. 172800 NS ns-dub1.example.com.
			example.com. 172800 NS ns-iad1.example.com.
			example.com. 172800 NS ns-icn1.example.com.
			example.com. 172800 NS ns-nrt1.example.com.
			additional ns-dub1.example.com. 300 A 198.51.100.4
			additional ns-icn1.example.com. 30 A 192.0.2.10
			additional ns-icn1.example.com. 30 AAAA 2001:db8::10`},
		{"an address of one", "ns-icn1.example.com. A", nil, "NOERROR aa\nns-icn1.example.com. 30 A 192.0.2.10\nns-icn1.example.com. 30 A 192.0.2.11\n"},
		{"none of a dead one, but not for long", "ns-nrt1.example.com. A", []string{"nrt1"}, "NOERROR aa\n" + soon},
		{"the operator's own record holds", "ns-dub1.example.com. A", nil, "NOERROR aa\nns-dub1.example.com. 300 A 198.51.100.4\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := shown(table.Answer(worldView(test.down...), from(t, test.question, ""), nil)); got != trim(test.want) {
				t.Errorf("got\n%swant\n%s", got, trim(test.want))
			}
		})
	}
}

func TestPoliciesChooseAmongRecords(t *testing.T) {
	table := compile(t, worldSpec(t, `
		latency   A 192.0.2.1 ; id=seoul region=ap-northeast-2 check=c1
		latency   A 192.0.2.2 ; id=dublin region=eu-west-1 check=c2
		failover  A 192.0.2.1 ; id=first failover=PRIMARY check=c1
		failover  A 192.0.2.2 ; id=second failover=SECONDARY check=c2
		unchecked A 192.0.2.1 ; id=first failover=PRIMARY check=c1
		unchecked A 192.0.2.2 ; id=second failover=SECONDARY
		geo       A 192.0.2.1 ; id=korea country=KR check=c1
		geo       A 192.0.2.2 ; id=asia continent=AS check=c2
		geo       A 192.0.2.3 ; id=default country=* check=c3
		narrow    A 192.0.2.1 ; id=korea country=KR
		weighted  A 192.0.2.1 ; id=blue weight=1 check=c1
		weighted  A 192.0.2.2 ; id=green weight=0 check=c2
		multi  60 A 192.0.2.1 ; id=a multivalue check=c1
		multi  20 A 192.0.2.2 ; id=b multivalue check=c2
		multi  60 A 192.0.2.3 ; id=c multivalue
		simple    A 192.0.2.1 ; check=c1
		cname     CNAME korea.example.net.   ; id=korea country=KR
		cname     CNAME default.example.net. ; id=default country=*
		few       CNAME korea.example.net.   ; id=korea country=KR
		*.wild    A 192.0.2.1 ; id=seoul region=ap-northeast-2
		*.wild    A 192.0.2.2 ; id=dublin region=eu-west-1
	`))
	one := func(name, last string) string {
		return "NOERROR aa\n" + name + ".example.com. 60 A 192.0.2." + last + "\n"
	}
	for _, test := range []struct {
		name, question, client string
		down                   []string
		want                   string
	}{
		{"near Seoul", "latency.example.com. A", "10.2.0.1", nil, one("latency", "1")},
		{"near Dublin", "latency.example.com. A", "10.4.0.1", nil, one("latency", "2")},
		{"near Seoul, which is unhealthy", "latency.example.com. A", "10.2.0.1", []string{"c1"}, one("latency", "2")},
		{"near Seoul, all unhealthy", "latency.example.com. A", "10.2.0.1", []string{"c1", "c2"}, one("latency", "1")},
		{"of a place nobody knows: as if it were here, in Seoul", "latency.example.com. A", "10.9.0.1", nil, one("latency", "1")},
		{"of a point, not a country", "latency.example.com. A", "10.5.0.1", nil, one("latency", "1")},
		{"by client subnet, not by resolver", "latency.example.com. A", "10.4.7.0/24", nil, one("latency", "2")},

		{"the primary", "failover.example.com. A", "", nil, one("failover", "1")},
		{"the secondary", "failover.example.com. A", "", []string{"c1"}, one("failover", "2")},
		{"both unhealthy: the primary", "failover.example.com. A", "", []string{"c1", "c2"}, one("failover", "1")},
		{"a secondary without a check is healthy", "unchecked.example.com. A", "", []string{"c1", "c2"}, one("unchecked", "2")},

		{"country", "geo.example.com. A", "10.1.0.1", nil, one("geo", "1")},
		{"continent", "geo.example.com. A", "10.2.0.1", nil, one("geo", "2")},
		{"default", "geo.example.com. A", "10.4.0.1", nil, one("geo", "3")},
		{"default of the unknown", "geo.example.com. A", "10.9.0.1", nil, one("geo", "3")},
		{"unhealthy walks outward", "geo.example.com. A", "10.1.0.1", []string{"c1"}, one("geo", "2")},
		{"and outward", "geo.example.com. A", "10.1.0.1", []string{"c1", "c2"}, one("geo", "3")},
		{"all unhealthy: the smallest", "geo.example.com. A", "10.1.0.1", []string{"c1", "c2", "c3"}, one("geo", "1")},
		{"no default, elsewhere: no answer, and not NXDOMAIN", "narrow.example.com. A", "10.2.0.1", nil, "NOERROR aa\n" + soa},
		{"no default, nobody knows where: no answer", "narrow.example.com. A", "10.9.0.1", nil, "NOERROR aa\n" + soa},
		{"no default, there", "narrow.example.com. A", "10.1.0.1", nil, one("narrow", "1")},

		{"weight", "weighted.example.com. A", "", nil, one("weighted", "1")},
		{"the reserve", "weighted.example.com. A", "", []string{"c1"}, one("weighted", "2")},
		{"all unhealthy: the normal weights", "weighted.example.com. A", "", []string{"c1", "c2"}, one("weighted", "1")},

		{"several, with one TTL", "multi.example.com. A", "", nil, "NOERROR aa\nmulti.example.com. 20 A 192.0.2.1\nmulti.example.com. 20 A 192.0.2.2\nmulti.example.com. 20 A 192.0.2.3\n"},
		{"several without the unhealthy", "multi.example.com. A", "", []string{"c1"}, "NOERROR aa\nmulti.example.com. 20 A 192.0.2.2\nmulti.example.com. 20 A 192.0.2.3\n"},

		{"a simple record is answered whatever its health", "simple.example.com. A", "", []string{"c1"}, one("simple", "1")},
		{"a CNAME by country", "cname.example.com. A", "10.1.0.1", nil, "NOERROR aa\ncname.example.com. 60 CNAME korea.example.net.\n"},
		{"a CNAME by default", "cname.example.com. A", "10.2.0.1", nil, "NOERROR aa\ncname.example.com. 60 CNAME default.example.net.\n"},
		{"a CNAME for some countries only", "few.example.com. A", "10.2.0.1", nil, "NOERROR aa\n" + soa},
		{"a wildcard with a policy", "any.wild.example.com. A", "10.4.0.1", nil, one("any.wild", "2")},
	} {
		t.Run(test.name, func(t *testing.T) {
			for got := range outcomes(t, table, worldView(test.down...), from(t, test.question, test.client), 20) {
				if got != test.want {
					t.Errorf("got\n%swant\n%s", got, test.want)
				}
			}
		})
	}
}

func TestWeightsAreSharesOfAnswers(t *testing.T) {
	table := compile(t, worldSpec(t, `
		app    A 192.0.2.1 ; id=blue weight=3
		app    A 192.0.2.2 ; id=green weight=1
		outer  A           ; id=one weight=1 alias=record:app
		outer  A 192.0.2.9 ; id=two weight=1
	`))
	const draws = 20_000
	share := func(times map[string]int, last string) float64 {
		for text, n := range times {
			if strings.HasSuffix(text, "192.0.2."+last+"\n") {
				return float64(n) / draws
			}
		}
		return 0
	}
	near := func(got, want float64) bool { return math.Abs(got-want) < 5*math.Sqrt(want*(1-want)/draws) }
	inner := outcomes(t, table, worldView(), from(t, "app.example.com. A", ""), draws)
	if !near(share(inner, "1"), .75) || !near(share(inner, "2"), .25) {
		t.Errorf("got %v", inner)
	}
	// The draw of a choice within a choice must not follow from the outer one.
	outer := outcomes(t, table, worldView(), from(t, "outer.example.com. A", ""), draws)
	if !near(share(outer, "1"), .375) || !near(share(outer, "2"), .125) || !near(share(outer, "9"), .5) {
		t.Errorf("got %v", outer)
	}
}

func TestValuesComeInRandomOrder(t *testing.T) {
	table := compile(t, worldSpec(t, "www A 192.0.2.1 192.0.2.2 192.0.2.3"))
	orders := map[string]int{}
	q := from(t, "www.example.com. A", "")
	for i := range 6000 {
		q.Random = uint64(i) * 0x9e3779b97f4a7c15
		var order string
		for _, rr := range table.Answer(worldView(), q, nil).Answer {
			order += rr.(*dns.A).A.String() + " "
		}
		orders[order]++
	}
	if len(orders) != 6 {
		t.Errorf("got %d orders, want all 6", len(orders))
	}
	for order, n := range orders {
		if n < 800 || n > 1200 {
			t.Errorf("%s came %d times of 6,000, want about 1,000", order, n)
		}
	}
}

const site = `
	@    A    ; alias=distribution:site
	@    AAAA ; alias=distribution:site
	www  A    ; alias=record:@
	lb   A    ; alias=loadBalancer:web-icn
	lb   AAAA ; alias=loadBalancer:web-icn
	tcp  A    ; alias=accelerator:echo
	tcp  AAAA ; alias=accelerator:echo
	near A    ; id=seoul region=ap-northeast-2 alias=loadBalancer:web-icn evaluate
	near A    ; id=virginia region=us-east-1 alias=loadBalancer:web-iad evaluate
	blind A   ; id=seoul region=ap-northeast-2 alias=loadBalancer:web-icn
	blind A   ; id=virginia region=us-east-1 alias=loadBalancer:web-iad
	tree A    ; id=first failover=PRIMARY alias=record:near evaluate
	tree A 192.0.2.99 ; id=sorry failover=SECONDARY
	trust A   ; id=first failover=PRIMARY alias=record:near
	trust A 192.0.2.99 ; id=sorry failover=SECONDARY
	anycast A ; id=first failover=PRIMARY alias=accelerator:echo evaluate
	anycast A 192.0.2.99 ; id=sorry failover=SECONDARY
	play A    ; id=first failover=PRIMARY alias=accelerator:game evaluate
	play A 192.0.2.99 ; id=sorry failover=SECONDARY
	plays A   ; id=first failover=PRIMARY alias=accelerator:game
	plays A 192.0.2.99 ; id=sorry failover=SECONDARY
	away A    ; id=first failover=PRIMARY alias=distribution:site
	away A 192.0.2.99 ; id=sorry failover=SECONDARY
`

func TestAliasesLeadToWhatIsAliveAndNear(t *testing.T) {
	table := compile(t, worldSpec(t, site))
	answer := func(name string, addresses ...string) string {
		text := "NOERROR aa\n"
		for _, a := range addresses {
			typ := "A"
			if strings.Contains(a, ":") {
				typ = "AAAA"
			}
			text += name + " 30 " + typ + " " + a + "\n"
		}
		return text
	}
	for _, test := range []struct {
		name, question, client string
		down                   []string
		want                   string
	}{
		{"a client of Korea: both nodes of Seoul", "example.com. A", "10.1.0.1", nil, answer("example.com.", "192.0.2.10", "192.0.2.11")},
		{"and by IPv6", "example.com. AAAA", "10.1.0.1", nil, answer("example.com.", "2001:db8::10", "2001:db8::11")},
		{"a client of Japan", "example.com. A", "10.2.0.1", nil, answer("example.com.", "192.0.2.20")},
		{"a client of the United States", "example.com. A", "10.3.0.1", nil, answer("example.com.", "192.0.2.30")},
		{"a client of Germany", "example.com. A", "10.4.0.1", nil, answer("example.com.", "192.0.2.40")},
		{"of Germany by IPv6: Dublin has none, so IPv4 it is", "example.com. AAAA", "10.4.0.1", nil, "NOERROR aa\n" + soon},
		{"a client of a point", "example.com. A", "10.5.0.1", nil, answer("example.com.", "192.0.2.10", "192.0.2.11")},
		{"a client of IPv6", "example.com. A", "2001:db8:1::1", nil, answer("example.com.", "192.0.2.10", "192.0.2.11")},
		{"a client nobody knows: here", "example.com. A", "10.9.0.1", nil, answer("example.com.", "192.0.2.10", "192.0.2.11")},
		{"a client by its subnet", "example.com. A", "10.3.1.0/24", nil, answer("example.com.", "192.0.2.30")},

		{"a dead node", "example.com. A", "10.1.0.1", []string{"icn1-b"}, answer("example.com.", "192.0.2.10")},
		{"a dead POP: the next", "example.com. A", "10.1.0.1", []string{"icn1"}, answer("example.com.", "192.0.2.20")},
		{"two dead POPs: the next after", "example.com. A", "10.1.0.1", []string{"icn1", "nrt1"}, answer("example.com.", "192.0.2.40")},
		{"here dead, and nobody knows where the client is: any", "example.com. A", "10.9.0.1", []string{"icn1", "nrt1", "iad1"}, answer("example.com.", "192.0.2.40")},
		{"a node that this one cannot reach", "example.com. A", "10.1.0.1", []string{"~icn1-b"}, answer("example.com.", "192.0.2.10")},
		{"a POP that this node cannot reach", "example.com. A", "10.2.0.1", []string{"~nrt1-a"}, answer("example.com.", "192.0.2.10", "192.0.2.11")},
		{"none can be reached: it may be me", "example.com. A", "10.2.0.1", []string{"~nrt1-a", "~icn1-a", "~icn1-b", "~dub1-a", "~iad1-a"}, answer("example.com.", "192.0.2.20")},
		{"nobody is alive", "example.com. A", "10.1.0.1", []string{"icn1", "nrt1", "iad1", "dub1"}, "SERVFAIL\n"},

		{"an alias of a record, under its own name", "www.example.com. A", "10.2.0.1", nil, answer("www.example.com.", "192.0.2.20")},
		{"an alias of a record, another type", "www.example.com. AAAA", "10.2.0.1", nil, "NOERROR aa\n" + soa},
		{"a load balancer", "lb.example.com. A", "10.4.0.1", nil, answer("lb.example.com.", "192.0.2.10", "192.0.2.11")},
		{"a load balancer by IPv6", "lb.example.com. AAAA", "10.4.0.1", nil, answer("lb.example.com.", "2001:db8::10", "2001:db8::11")},
		{"a load balancer whose region is dead", "lb.example.com. A", "10.4.0.1", []string{"icn1"}, "SERVFAIL\n"},
		{"a load balancer without healthy targets: simple is simple", "lb.example.com. A", "", []string{"web-icn"}, answer("lb.example.com.", "192.0.2.10", "192.0.2.11")},
		{"an accelerator", "tcp.example.com. A", "", nil, answer("tcp.example.com.", "203.0.113.1", "203.0.113.2")},
		{"an accelerator by IPv6", "tcp.example.com. AAAA", "", nil, answer("tcp.example.com.", "2001:db8:f::1")},

		{"the nearest load balancer", "near.example.com. A", "10.1.0.1", nil, answer("near.example.com.", "192.0.2.10", "192.0.2.11")},
		{"the nearest has no healthy target", "near.example.com. A", "10.1.0.1", []string{"web-icn"}, answer("near.example.com.", "192.0.2.30")},
		{"the nearest has no live node", "near.example.com. A", "10.1.0.1", []string{"icn1"}, answer("near.example.com.", "192.0.2.30")},
		{"none has a healthy target: the nearest", "near.example.com. A", "10.1.0.1", []string{"web-icn", "web-iad"}, answer("near.example.com.", "192.0.2.10", "192.0.2.11")},
		{"health that is not to be evaluated", "blind.example.com. A", "10.1.0.1", []string{"web-icn"}, answer("blind.example.com.", "192.0.2.10", "192.0.2.11")},
		{"but nobody is sent to where nobody is", "blind.example.com. A", "10.1.0.1", []string{"icn1"}, answer("blind.example.com.", "192.0.2.30")},

		{"a tree: the first branch", "tree.example.com. A", "10.3.0.1", nil, answer("tree.example.com.", "192.0.2.30")},
		{"a tree: one leaf of the branch", "tree.example.com. A", "10.3.0.1", []string{"web-iad"}, answer("tree.example.com.", "192.0.2.10", "192.0.2.11")},
		{"a tree: no leaf of the branch", "tree.example.com. A", "10.3.0.1", []string{"web-iad", "web-icn"}, "NOERROR aa\ntree.example.com. 60 A 192.0.2.99\n"},
		{"a branch that is not evaluated", "trust.example.com. A", "10.3.0.1", []string{"web-iad", "web-icn"}, answer("trust.example.com.", "192.0.2.30")},
		{"an accelerator with one healthy endpoint", "play.example.com. A", "", []string{"icn1", "web-icn"}, answer("play.example.com.", "203.0.113.3")},
		{"an accelerator with none", "play.example.com. A", "", []string{"web-icn", "web-iad"}, "NOERROR aa\nplay.example.com. 60 A 192.0.2.99\n"},
		{"an accelerator that is not evaluated", "plays.example.com. A", "", []string{"web-icn", "web-iad"}, answer("plays.example.com.", "203.0.113.3")},
		{"an accelerator without listeners", "anycast.example.com. A", "", []string{"icn1", "web-icn", "web-iad"}, answer("anycast.example.com.", "203.0.113.1", "203.0.113.2")},
	} {
		t.Run(test.name, func(t *testing.T) {
			for got := range outcomes(t, table, worldView(test.down...), from(t, test.question, test.client), 10) {
				if got != test.want {
					t.Errorf("got\n%swant\n%s", got, test.want)
				}
			}
		})
	}
}

func TestAPOPWithoutIPv4IsNoAnswerForA(t *testing.T) {
	table := compile(t, worldSpec(t, site))
	v := worldView()
	for i, m := range v.Members {
		if m.POP == "nrt1" {
			v.Members[i].Public = []netip.Addr{netip.MustParseAddr("2001:db8::20")}
		}
	}
	q := from(t, "example.com. A", "10.2.0.1")
	if got := shown(table.Answer(v, q, nil)); !strings.Contains(got, "192.0.2.10") {
		t.Errorf("a client of Japan without IPv6 got %s", got)
	}
	q.Type = dns.TypeAAAA
	if got := shown(table.Answer(v, q, nil)); !strings.Contains(got, "2001:db8::20") {
		t.Errorf("a client of Japan with IPv6 got %s", got)
	}
}

func TestPOPsAtOnePlaceShareItsClients(t *testing.T) {
	s := worldSpec(t, site)
	s.Regions["ap-northeast-2"].POPs = append(s.Regions["ap-northeast-2"].POPs, spec.POP{Name: "icn2"})
	table := compile(t, s)
	v := worldView("icn1-b")
	v.Members = append(v.Members, view.Member{Name: "icn2-a", Region: "ap-northeast-2", POP: "icn2", Roles: everything, Public: []netip.Addr{netip.MustParseAddr("192.0.2.15")}})
	times := outcomes(t, table, v, from(t, "example.com. A", "10.1.0.1"), 2000)
	if len(times) != 2 || times[keys(times)[0]] < 800 || times[keys(times)[1]] < 800 {
		t.Errorf("got %v, want each of two POPs about half the time", times)
	}
	if times := outcomes(t, table, v, from(t, "example.com. A", "10.9.0.1"), 200); len(times) != 1 || !strings.Contains(keys(times)[0], "192.0.2.10") {
		t.Errorf("a client that is nowhere got %v, want the POP that answers", times)
	}
}

func TestAPOPMayStandApartFromItsRegion(t *testing.T) {
	s := worldSpec(t, site)
	s.Regions["us-east-1"].POPs[0].Location = &spec.Location{Latitude: 35.2, Longitude: 129.1} // Busan
	s.Regions["us-east-1"].POPs = append(s.Regions["us-east-1"].POPs, spec.POP{Name: "unused"})
	got := shown(compile(t, s).Answer(worldView(), from(t, "example.com. A", "10.5.0.1"), nil))
	if !strings.Contains(got, "192.0.2.30") {
		t.Errorf("a client of Busan got %s", got)
	}
}

func TestRolesAreKept(t *testing.T) {
	table := compile(t, worldSpec(t, site))
	v := worldView()
	for i, m := range v.Members {
		switch m.Name {
		case "icn1-a":
			v.Members[i].Roles = []view.Role{view.Origin}
		case "icn1-b":
			v.Members[i].Roles = []view.Role{view.Edge, view.DNS}
		}
	}
	for question, want := range map[string]string{
		"example.com. A":         "192.0.2.11",
		"lb.example.com. A":      "192.0.2.10",
		"ns-icn1.example.com. A": "192.0.2.11",
	} {
		a := table.Answer(v, from(t, question, "10.1.0.1"), nil)
		if len(a.Answer) != 1 || a.Answer[0].(*dns.A).A.String() != want {
			t.Errorf("%s: got %s, want %s alone", question, shown(a), want)
		}
	}
}

func TestAManifoldPOPAnswersWithEightOfItsNodes(t *testing.T) {
	table := compile(t, worldSpec(t, site))
	v := &view.View{Self: "a"}
	for i := range 20 {
		v.Members = append(v.Members, view.Member{
			Name: string(rune('a' + i)), Region: "ap-northeast-2", POP: "icn1", Roles: everything,
			Public: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})},
		})
	}
	seen := map[string]int{}
	q := from(t, "example.com. A", "")
	for i := range 2000 {
		q.Random = uint64(i) * 0x9e3779b97f4a7c15
		a := table.Answer(v, q, nil)
		if len(a.Answer) != maxAddresses {
			t.Fatalf("got %d addresses", len(a.Answer))
		}
		for _, rr := range a.Answer {
			seen[rr.String()]++
		}
	}
	for rr, n := range seen {
		if n < 650 || n > 950 {
			t.Errorf("%s came %d times, want about 800", rr, n)
		}
	}
	if len(seen) != 20 {
		t.Errorf("%d of 20 nodes were answered", len(seen))
	}
}

// A resolver holds an answer for its TTL: longer than a verdict can stand would be longer than it is known to be true.
func TestNoTTLIsLongerThanTheVerdictStands(t *testing.T) {
	table := compile(t, worldSpec(t, site+`
		fail 300 A 192.0.2.1 ; id=first failover=PRIMARY check=c1
		fail 300 A 192.0.2.2 ; id=second failover=SECONDARY check=c2
		plain 300 A 192.0.2.1
	`))
	v := worldView()
	stands := func(down bool, c1, c2, target time.Duration) *view.View {
		v := *v
		v.Health = health.NewTable(map[health.Key]health.Verdict{
			health.CheckKey("c1"): {Healthy: !down, Stands: c1},
			health.CheckKey("c2"): {Healthy: true, Stands: c2},
			health.TargetKey("web-icn", netip.MustParseAddrPort("172.16.1.1:80")): {Healthy: true, Stands: target},
			health.TargetKey("web-iad", netip.MustParseAddrPort("172.16.3.1:80")): {Healthy: true, Stands: time.Hour},
		})
		return &v
	}
	for _, test := range []struct {
		name, question string
		view           *view.View
		want           uint32
	}{
		{"a check that stands for 90 s", "fail.example.com. A", stands(false, 90*time.Second, 30*time.Second, 0), 90},
		{"the verdict that passed over the primary counts too", "fail.example.com. A", stands(true, 40*time.Second, 90*time.Second, 0), 40},
		{"longer than the TTL", "fail.example.com. A", stands(false, time.Hour, time.Hour, 0), 300},
		{"never 0", "fail.example.com. A", stands(false, 300*time.Millisecond, time.Hour, 0), 1},
		{"no verdict yet", "fail.example.com. A", &view.View{Self: "icn1-a"}, 300},
		{"no check", "plain.example.com. A", stands(true, time.Second, time.Second, time.Second), 300},
		{"an alias", "lb.example.com. A", stands(false, 0, 0, time.Second), 30},
		{"an alias by the health of its targets", "near.example.com. A", stands(false, 0, 0, 4*time.Second), 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := table.Answer(test.view, from(t, test.question, "10.1.0.1"), nil)
			if len(a.Answer) == 0 || a.Answer[0].Header().Ttl != test.want {
				t.Errorf("got %s, want a TTL of %d", shown(a), test.want)
			}
		})
	}
}

func TestTheRecordsOfTheTableAreNotChanged(t *testing.T) {
	table := compile(t, worldSpec(t, "*.wild 300 A 192.0.2.1 192.0.2.2 ; id=a failover=PRIMARY check=c1"))
	v := worldView()
	v.Health = health.NewTable(map[health.Key]health.Verdict{health.CheckKey("c1"): {Healthy: true, Stands: time.Second}})
	for _, name := range []string{"a", "b"} {
		table.Answer(v, from(t, name+".wild.example.com. A", ""), nil)
	}
	want := "NOERROR aa\nc.wild.example.com. 300 A 192.0.2.1\nc.wild.example.com. 300 A 192.0.2.2\n"
	if got := shown(table.Answer(nil, from(t, "c.wild.example.com. A", ""), nil)); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestTheScopeIsWhatTheAnswerDependsOn(t *testing.T) {
	table := compile(t, worldSpec(t, site+`
		plain A 192.0.2.1
		geo   A 192.0.2.1 ; id=korea country=KR
		geo   A 192.0.2.3 ; id=default country=*
		one   A 192.0.2.1 ; id=korea country=KR
		w     A 192.0.2.1 ; id=a weight=1
		cname CNAME example.com.
	`))
	for _, test := range []struct {
		name, question, client string
		want                   int
	}{
		{"not on the client", "plain.example.com. A", "10.1.2.0/24", 0},
		{"not on the client, by chance", "w.example.com. A", "10.1.2.0/24", 0},
		{"no such name", "none.example.com. A", "10.1.2.0/24", 0},
		{"a load balancer", "lb.example.com. A", "10.1.2.0/24", 0},
		{"the nearest POP", "example.com. A", "10.1.2.0/24", 16},
		{"the nearest POP, by a CNAME", "cname.example.com. A", "10.1.2.0/24", 16},
		{"the nearest POP, of a client that says too little", "example.com. A", "10.0.0.0/8", 16},
		{"the nearest POP, of IPv6", "example.com. AAAA", "2001:db8:1:2::/64", 48},
		{"geolocation", "geo.example.com. A", "10.1.2.0/24", 16},
		{"geolocation, no answer", "one.example.com. A", "10.2.2.0/24", 16},
		{"that there is no address, by the nearest POP", "example.com. AAAA", "10.4.2.0/24", 16},
		{"a client that is not to be looked at", "example.com. A", "0.0.0.0/0", 0},
		{"nobody knows where", "geo.example.com. A", "10.9.2.0/24", 13}, // beside 10.1 to 10.5
		{"without a subnet there is no scope", "example.com. A", "10.1.0.1", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := table.Answer(worldView(), from(t, test.question, test.client), nil).Scope; got != test.want {
				t.Errorf("got %d bits, want %d", got, test.want)
			}
		})
	}
}

func TestASubnetThatIsNotToBeUsedLeavesTheResolver(t *testing.T) {
	table := compile(t, worldSpec(t, site))
	q := from(t, "example.com. A", "10.3.0.53")
	q.ECS = netip.MustParsePrefix("0.0.0.0/0")
	if got := shown(table.Answer(worldView(), q, nil)); !strings.Contains(got, "192.0.2.30") {
		t.Errorf("a resolver of the United States got %s", got)
	}
}

func TestWithoutASpecOrAViewNothingBreaks(t *testing.T) {
	var none *Table
	if got := shown(none.Answer(worldView(), from(t, "example.com. A", ""), nil)); got != "REFUSED\n" {
		t.Errorf("without a spec: %s", got)
	}
	table, err := Compile(worldSpec(t, site), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for question, want := range map[string]string{
		"example.com. A":      "SERVFAIL\n",
		"tcp.example.com. A":  "NOERROR aa\ntcp.example.com. 30 A 203.0.113.1\ntcp.example.com. 30 A 203.0.113.2\n",
		"tree.example.com. A": "NOERROR aa\ntree.example.com. 60 A 192.0.2.99\n",
	} {
		if got := shown(table.Answer(nil, from(t, question, "10.1.0.1"), nil)); got != want {
			t.Errorf("without a view: %s: got %s", question, got)
		}
	}
}

func TestANewViewIsSeenAtOnce(t *testing.T) {
	table := compile(t, worldSpec(t, site))
	q := from(t, "example.com. A", "10.2.0.1")
	for _, test := range []struct {
		view *view.View
		want string
	}{{worldView(), "192.0.2.20"}, {worldView("nrt1"), "192.0.2.10"}, {worldView(), "192.0.2.20"}} {
		if got := shown(table.Answer(test.view, q, nil)); !strings.Contains(got, test.want) {
			t.Errorf("got %s, want %s", got, test.want)
		}
	}
}

func TestTheExplanationIsTheAnswerAndItsReasons(t *testing.T) {
	table := compile(t, worldSpec(t, site))
	e, err := table.Explain(worldView("icn1-b"), "example.com", "a", netip.MustParseAddr("10.2.3.4"), netip.Prefix{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if e.String() != "example.com. 30 IN A 192.0.2.20" || e.Rcode != "NOERROR" || e.Scope != 16 {
		t.Errorf("got %+v", e)
	}
	var lines []string
	for _, l := range e.Lines {
		lines = append(lines, strings.Repeat("  ", l.Depth)+l.Text)
	}
	want := []string{
		"zone example.com.",
		"  example.com.: alias of distribution site",
		"    client 10.2.3.4 is in JP (AS)",
		"    nrt1: about 0s away",
		"    icn1: about 19ms away",
		"    dub1: about 153ms away",
		"    iad1: about 174ms away",
		"    chosen: nrt1",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	if _, err := table.Explain(worldView(), "example.com", "NONSENSE", netip.Addr{}, netip.Prefix{}, 1); err == nil {
		t.Error("explained a type that does not exist")
	}
	if _, err := table.Explain(worldView(), "a..b", "A", netip.Addr{}, netip.Prefix{}, 1); err == nil {
		t.Error("explained a name that cannot be")
	}
	if e, err := table.Explain(worldView(), "none.example.com", "A", netip.Addr{}, netip.Prefix{}, 1); err != nil || e.Rcode != "NXDOMAIN" || !strings.HasPrefix(e.String(), "NXDOMAIN\nexample.com. 900 IN SOA ") {
		t.Errorf("got %+v, %v", e, err)
	}
}

func BenchmarkAnswer(b *testing.B) {
	table := compile(b, worldSpec(b, site+`
		plain    A 192.0.2.1
		weighted A 192.0.2.1 ; id=blue weight=1 check=c1
		weighted A 192.0.2.2 ; id=green weight=3 check=c2
	`))
	v := worldView()
	for _, bench := range []struct{ name, question string }{
		{"simple", "plain.example.com. A"}, {"weighted", "weighted.example.com. A"},
		{"latency", "near.example.com. A"}, {"nearest", "example.com. A"}, {"nxdomain", "none.example.com. A"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			q := from(b, bench.question, "10.1.2.0/24")
			b.ReportAllocs()
			for b.Loop() {
				q.Random += 0x9e3779b97f4a7c15
				table.Answer(v, q, nil)
			}
		})
	}
}
