//go:build unix

package dnsgeo

import (
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// hot has record sets of the kinds that most answers are of.
const hot = `
	plain     A 192.0.2.1
	*.wild 60 A 192.0.2.5
	weighted  A 192.0.2.1 ; id=blue weight=1 check=c1
	weighted  A 192.0.2.2 ; id=green weight=3 check=c2
	fail      A 192.0.2.1 ; id=first failover=PRIMARY check=c1
	fail      A 192.0.2.2 ; id=second failover=SECONDARY check=c2
	multi     A 192.0.2.1 ; id=a multivalue check=c1
	multi     A 192.0.2.2 ; id=b multivalue check=c2
	geo       A 192.0.2.1 ; id=korea country=KR
	geo       A 192.0.2.3 ; id=default country=*
	lat       A 192.0.2.1 ; id=s region=ap-northeast-2
	lat       A 192.0.2.2 ; id=d region=eu-west-1
	c1        CNAME c2.example.com.
	c2        CNAME plain.example.com.
	sub       NS ns1.sub.example.com. ns.example.net.
	ns1.sub   A 192.0.2.53
	old       DNAME wild.example.com.
`

var hotQueries = []struct {
	kind, name string
	typ        uint16
	subnet     string
	rcode      int
}{
	{"static", "plain.example.com.", dns.TypeA, "", dns.RcodeSuccess},
	{"wildcard", "any.wild.example.com.", dns.TypeA, "", dns.RcodeSuccess},
	{"no such name", "none.example.com.", dns.TypeA, "", dns.RcodeNameError},
	{"no such type", "plain.example.com.", dns.TypeMX, "", dns.RcodeSuccess},
	{"chain", "c1.example.com.", dns.TypeA, "", dns.RcodeSuccess},
	{"DNAME", "any.old.example.com.", dns.TypeA, "", dns.RcodeSuccess},
	{"referral", "www.sub.example.com.", dns.TypeA, "", dns.RcodeSuccess},
	{"apex", "example.com.", dns.TypeNS, "", dns.RcodeSuccess},
	{"weighted", "weighted.example.com.", dns.TypeA, "", dns.RcodeSuccess},
	{"failover", "fail.example.com.", dns.TypeA, "", dns.RcodeSuccess},
	{"multivalue", "multi.example.com.", dns.TypeA, "", dns.RcodeSuccess},
	{"geo with ECS", "geo.example.com.", dns.TypeA, "10.1.2.0/24", dns.RcodeSuccess},
	{"latency with ECS", "lat.example.com.", dns.TypeA, "10.1.2.0/24", dns.RcodeSuccess},
	{"distribution with ECS", "example.com.", dns.TypeA, "10.2.3.0/24", dns.RcodeSuccess},
	{"distribution by alias", "www.example.com.", dns.TypeA, "10.2.3.0/24", dns.RcodeSuccess},
	{"load balancer", "lb.example.com.", dns.TypeA, "", dns.RcodeSuccess},
	{"tree", "tree.example.com.", dns.TypeA, "10.1.2.0/24", dns.RcodeSuccess},
	{"accelerator", "tcp.example.com.", dns.TypeAAAA, "", dns.RcodeSuccess},
	{"refused", "www.example.org.", dns.TypeA, "", dns.RcodeRefused},
}

// question0 is a query as bytes.
func question0(t testing.TB, name string, typ uint16, subnet string) []byte {
	t.Helper()
	q := new(dns.Msg).SetQuestion(name, typ)
	if subnet != "" {
		q.SetEdns0(1232, false)
		p := netip.MustParsePrefix(subnet)
		q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: uint8(p.Bits()), Address: p.Addr().AsSlice()}}
	}
	m, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// spent is how long the processor has worked for this process.
func spent() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkHot is a query in memory, from bytes to bytes. cpu-ns/op is right on a busy machine, too.
func BenchmarkHot(b *testing.B) {
	s := serverOf(b, site+hot)
	d := s.newDesk()
	d.asker.recents = new(recents)
	room := make([]byte, 0, payloadSize)
	for _, q := range hotQueries {
		m := question0(b, q.name, q.typ, q.subnet)
		b.Run(q.kind, func(b *testing.B) {
			b.ReportAllocs()
			client := netip.MustParseAddr("10.9.0.53")
			before := spent()
			for b.Loop() {
				d.respond(room, m, client, UDP)
			}
			b.ReportMetric(float64(spent()-before)/float64(b.N), "cpu-ns/op")
		})
	}
}
