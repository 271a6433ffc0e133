package dnsgeo

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/trace"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/dnsgeo/zone"
)

// lines are record sets of all kinds, which a zone may have any of; the last cannot be made.
var lines = []string{
	"@ A 192.0.2.1", "@ AAAA ; alias=distribution:site", "www A ; alias=loadBalancer:web-icn evaluate", "ga A ; alias=accelerator:echo",
	"near A 192.0.2.1 ; id=i region=ap-northeast-2\nnear A 192.0.2.2 ; id=u region=us-east-1",
	"w A 192.0.2.1 ; id=a weight=3 check=c1\nw A ; id=b weight=1 alias=loadBalancer:web-iad",
	"ns-dub1 A 192.0.2.9", "x.ns-icn1 A 192.0.2.8", "*.ns-iad1 A 192.0.2.7", "sub NS ns-dub1.example.com. ns.example.net.",
	"to A ; alias=record:base evaluate\nbase A 192.0.2.4", "c CNAME www.example.com.", "bad A 192.0.2.256",
}

// edited draws a spec that differs from another in a few resources; it may be one that is to be refused.
func edited(t *rapid.T, s *spec.Spec) *spec.Spec {
	next := *s
	next.Revision++
	switch rapid.IntRange(0, 5).Draw(t, "what") {
	case 0:
		next.Regions = maps.Clone(s.Regions)
		name := rapid.SampledFrom([]string{"eu-west-1", "us-east-1"}).Draw(t, "region")
		r := *regions()[name]
		r.Location = &spec.Location{Latitude: float64(rapid.IntRange(0, 1).Draw(t, "place") * 37), Longitude: 126}
		r.POPs = r.POPs[:rapid.IntRange(0, 1).Draw(t, "pops")]
		next.Regions[name] = &r
	case 1:
		next.LoadBalancers = maps.Clone(s.LoadBalancers)
		lb := *s.LoadBalancers["web-icn"]
		lb.Region = rapid.SampledFrom([]string{"eu-west-1", "us-east-1", "nowhere"}).Draw(t, "region")
		next.LoadBalancers["web-icn"] = &lb
	case 2:
		next.Accelerators = maps.Clone(s.Accelerators)
		next.Accelerators["echo"] = &spec.Accelerator{Name: "echo", IPAddresses: []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, byte(rapid.IntRange(1, 3).Draw(t, "address"))})}}
	default:
		next.HostedZones = maps.Clone(s.HostedZones)
		name := rapid.SampledFrom([]string{"example.com", "sub.example.com", "com"}).Draw(t, "zone")
		if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
			delete(next.HostedZones, name)
			break
		}
		z := &spec.HostedZone{Name: name}
		if rapid.IntRange(0, 3).Draw(t, "name servers") == 0 {
			z.NameServers = []string{"ns1.example.com"}
		}
		var text []string
		for i, line := range lines {
			if rapid.IntRange(0, 2).Draw(t, "line") == 0 && (i < len(lines)-1 || rapid.Bool().Draw(t, "bad")) {
				text = append(text, line)
			}
		}
		z.Records = recordsOf(quiet{}, strings.Join(text, "\n"))
		if name != "example.com" {
			z.Records = spec.RecordsOf(slices.DeleteFunc(z.Records.List(), func(r spec.Record) bool { return strings.HasSuffix(r.Name, ".") })...)
		}
		next.HostedZones[name] = z
	}
	return &next
}

// quiet is for recordsOf, which fails on no line of this file.
type quiet struct{ testing.TB }

func (quiet) Helper() {}

// told is all that a server says to everybody about everything.
func told(s *Server, v *view.View) []trace.Line {
	tr := new(trace.Trace)
	names := []string{"@", "www", "ga", "near", "w", "ns-dub1", "ns-icn1", "x.ns-icn1", "y.ns-icn1", "z.ns-iad1", "ns-iad1", "sub", "a.sub", "to", "c", "none", "other.net."}
	for _, zone := range []string{"example.com.", "sub.example.com.", "com."} {
		for _, name := range names {
			switch {
			case name == "@":
				name = zone
			case !strings.HasSuffix(name, "."):
				name += "." + zone
			}
			for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeNS, dns.TypeSOA, dns.TypeANY, dns.TypeDS} {
				a := s.table.Load().Answer(v, Query{Name: name, Type: typ, Class: dns.ClassINET, Client: netip.MustParseAddr("10.3.0.1"), Random: 7}, tr)
				tr.Add("%s %s: %d %v %v %v %v %v", name, dns.Type(typ), a.Rcode, a.Authoritative, a.Referral, text(a.Answer), text(a.Authority), text(a.Additional))
			}
		}
	}
	return tr.Lines()
}

func TestAServerThatWasChangedAnswersAsOneThatWasMadeAnew(t *testing.T) {
	v := worldView("web-icn", "c1")
	config := Config{Geo: places(t)}
	world := worldSpec(t, "www A 192.0.2.1")
	rapid.Check(t, func(t *rapid.T) {
		server, good := New(config), new(spec.Spec)
		if err := server.Apply(good); err != nil {
			t.Fatal(err)
		}
		s := world
		for range rapid.IntRange(1, 6).Draw(t, "revisions") {
			s = edited(t, s)
			before := server.table.Load()
			err := server.Apply(s)
			fresh := New(config)
			freshErr := fresh.Apply(s)
			if (err == nil) != (freshErr == nil) {
				t.Fatalf("changed: %v, anew: %v", err, freshErr)
			}
			if err == nil {
				good = s
			} else if server.table.Load() != before || fresh.Apply(good) != nil {
				t.Fatal("the one before does not stand")
			}
			if got, want := told(server, v), told(fresh, v); !reflect.DeepEqual(got, want) {
				for i := range min(len(got), len(want)) {
					if !reflect.DeepEqual(got[i], want[i]) {
						t.Fatalf("got %v\nwant %v", got[i], want[i])
					}
				}
				t.Fatal("more or fewer lines")
			}
			if err != nil && rapid.Bool().Draw(t, "go back") {
				s = good
			}
			if s.Regions == nil {
				s = world
			}
		}
	})
}

func TestAnUnchangedZoneIsSharedAndItsSerialIsNot(t *testing.T) {
	s := worldSpec(t, "www A 192.0.2.1")
	one := compile(t, s)
	next := *s
	next.Revision = 8
	two, err := Compile(&next, nil, one)
	if err != nil {
		t.Fatal(err)
	}
	var name zone.Name
	if err := name.Parse("example.com."); err != nil {
		t.Fatal(err)
	}
	if two.zones.Find(&name, 0) != one.zones.Find(&name, 0) {
		t.Error("it was made anew")
	}
	serial := func(table *Table) uint32 {
		return table.Answer(worldView(), from(t, "example.com. SOA", ""), nil).Answer[0].(*dns.SOA).Serial
	}
	for range 2 { // in turn, as while one takes the place of the other
		if a, b := serial(one), serial(two); a != 7 || b != 8 {
			t.Errorf("serials %d and %d", a, b)
		}
	}
}

// 100,000 zones of two records in a world of 20 POPs.
func BenchmarkApplyOneOf100000(b *testing.B) {
	const n = 100_000
	s := worldSpec(b, "")
	for i := range 20 {
		name := fmt.Sprintf("region-%d", i)
		s.Regions[name] = &spec.Region{Name: name, POPs: []spec.POP{{Name: fmt.Sprintf("pop%d", i)}}}
	}
	ttl := spec.Duration(time.Minute)
	for i := range n {
		name := fmt.Sprintf("z%d.example.com", i)
		s.HostedZones[name] = &spec.HostedZone{Name: name, Records: spec.RecordsOf(
			spec.Record{Name: "@", Type: "A", Alias: &spec.Alias{Distribution: "site"}},
			spec.Record{Name: "www", Type: "A", TTL: &ttl, Values: []string{"192.0.2.1"}},
		)}
	}
	hosted := *s.HostedZones["z40.example.com"]
	hosted.NameServers = []string{"ns.example.net"}
	one, balancer, region := *s, *s, *s
	one.HostedZones = maps.Clone(s.HostedZones)
	one.HostedZones[hosted.Name] = &hosted
	balancer.LoadBalancers = maps.Clone(s.LoadBalancers)
	lb := *s.LoadBalancers["web-icn"]
	balancer.LoadBalancers["web-icn"] = &lb
	region.Regions = maps.Clone(s.Regions)
	region.Regions["region-3"] = &spec.Region{Name: "region-3", Location: &spec.Location{Latitude: 1}, POPs: []spec.POP{{Name: "other"}}}
	large := *s
	large.HostedZones = maps.Clone(s.HostedZones)
	large.HostedZones[hosted.Name] = &spec.HostedZone{Name: hosted.Name, Records: largeZone(1000)}
	for _, c := range []struct {
		name string
		next *spec.Spec
	}{{"zone", &one}, {"zone of 1000 records", &large}, {"load balancer", &balancer}, {"region", &region}} {
		b.Run(c.name, func(b *testing.B) {
			before := heap()
			server := New(Config{})
			if err := server.Apply(s); err != nil {
				b.Fatal(err)
			}
			kept := heap() - before
			b.ReportAllocs()
			specs := []*spec.Spec{c.next, s}
			for i := 0; b.Loop(); i++ {
				if err := server.Apply(specs[i%2]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(kept)/n, "B/resource")
		})
	}
	runtime.KeepAlive(s)
}

func largeZone(n int) spec.Records {
	var records []spec.Record
	ttl := spec.Duration(time.Minute)
	for i := range n {
		records = append(records, spec.Record{Name: fmt.Sprintf("www%d", i), Type: "A", TTL: &ttl, Values: []string{"192.0.2.1"}})
	}
	return spec.RecordsOf(records...)
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// One record of a zone of 10,000, as many as a hosted zone may have, is another.
func BenchmarkApplyOneRecordOf10000(b *testing.B) {
	s := worldSpec(b, "")
	zone := *s.HostedZones["example.com"]
	zone.Records = largeZone(10_000)
	s.HostedZones["example.com"] = &zone
	next, other := *s, zone
	next.HostedZones = maps.Clone(s.HostedZones)
	setRecord(&other, 7000, func(r *spec.Record) { r.Values = []string{"192.0.2.2"} })
	next.HostedZones["example.com"] = &other
	server := New(Config{})
	specs := []*spec.Spec{s, &next}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := server.Apply(specs[i%2]); err != nil {
			b.Fatal(err)
		}
	}
}

// Records that stayed are chosen among by where regions are now, though the zone was made of the one before.
func TestAChangedZoneKnowsWhereRegionsHaveMoved(t *testing.T) {
	records := `
		near A 192.0.2.1 ; id=s region=ap-northeast-2
		near A 192.0.2.2 ; id=u region=us-east-1
		www A 192.0.2.3`
	one := compile(t, worldSpec(t, records))
	next := worldSpec(t, records+"\nnew A 192.0.2.4")
	next.Revision++
	next.Regions["us-east-1"].Location = &spec.Location{Latitude: 35.69, Longitude: 139.69} // beside clients of Japan
	two, err := Compile(next, places(t), one)
	if err != nil {
		t.Fatal(err)
	}
	for table, want := range map[*Table]string{one: "192.0.2.1", two: "192.0.2.2"} {
		if got := shown(table.Answer(worldView(), from(t, "near.example.com. A", "10.2.0.1"), nil)); !strings.Contains(got, want) {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if got := shown(two.Answer(worldView(), from(t, "new.example.com. A", ""), nil)); !strings.Contains(got, "192.0.2.4") {
		t.Errorf("the change is not served: %s", got)
	}
}
