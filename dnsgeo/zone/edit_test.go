//go:build unix

package zone

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/spec"
)

// rows are the records of a zone as text.
func rows(t interface{ Fatal(...any) }, z *Zone) (lines []string) {
	for r := range NewTable(z).Records(z) {
		lines = append(lines, fmt.Sprintf("%s %d %s % x", Text(r.Owner), r.TTL, dns.Type(r.Type), r.Data))
	}
	return lines
}

// An edited zone is what one made anew of the same records is: in its records, in the names it has, in where delegations are.
func TestAnEditedZoneIsAsOneMadeAnew(t *testing.T) {
	soa, _ := dns.NewRR("example.com. SOA ns. hostmaster. 1 2 3 4 5")
	rapid.Check(t, func(t *rapid.T) {
		record := rapid.Custom(func(t *rapid.T) string {
			labels := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "*", "c"}), 0, 3).Draw(t, "labels")
			return strings.Join(append(labels, "example.com."), ".") + " 60 " + rapid.SampledFrom([]string{"A 192.0.2.1", "A 192.0.2.2", "TXT x", "NS ns.a.example.com.", "NS NS.A.example.com.", "DNAME example.net."}).Draw(t, "data")
		})
		held := map[string]dns.RR{}
		zone, err := New("example.com.", []dns.RR{soa})
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 5).Draw(t, "edits") {
			before, was := zone, rows(t, zone)
			edit := zone.Edit()
			for range rapid.IntRange(0, 12).Draw(t, "changes") {
				text := record.Draw(t, "record")
				rr, err := dns.NewRR(text)
				if err != nil {
					t.Fatal(err)
				}
				key := strings.ToLower(text)
				if _, has := held[key]; has && rapid.Bool().Draw(t, "delete") {
					delete(held, key)
					if found, err := edit.Delete(rr); !found || err != nil {
						t.Fatalf("%s is not there: %v", text, err)
					}
					continue
				}
				if _, has := held[key]; !has {
					held[key] = rr
				}
				if err := edit.Add(rr); err != nil {
					t.Fatal(err)
				}
			}
			if zone, err = edit.Zone(); err != nil {
				t.Fatal(err)
			}
			all := []dns.RR{soa}
			for _, rr := range held {
				all = append(all, rr)
			}
			anew, err := New("example.com.", all)
			if err != nil {
				t.Fatal(err)
			}
			got, want := rows(t, zone), rows(t, anew)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) || zone.names != anew.names || zone.cuts != anew.cuts {
				t.Fatalf("%d names, %d cuts\n%s\nwant %d, %d\n%s", zone.names, zone.cuts, strings.Join(got, "\n"), anew.names, anew.cuts, strings.Join(want, "\n"))
			}
			for labels, e := range zone.shards[0].all() {
				if below, node := anew.entry(labels); !node.OK() || below != e.below || node.flags != e.node.flags {
					t.Fatalf("% x: %d below, flags %b, want %d, %b", labels, e.below, e.node.flags, below, node.flags)
				}
			}
			if !slices.Equal(rows(t, before), was) {
				t.Fatal("the zone before was changed")
			}
		}
	})
}

// The example of RFC 4034 §6.1.
func TestRecordsComeInCanonicalOrder(t *testing.T) {
	names := []string{
		"example.", "a.example.", "yljkjljk.a.example.", "Z.a.example.", "zABC.a.EXAMPLE.", "z.example.",
		`\001.z.example.`, "*.z.example.", `\200.z.example.`,
	}
	soa, _ := dns.NewRR("example. SOA ns. hostmaster. 1 2 3 4 5")
	rrs := []dns.RR{soa}
	for _, i := range []int{4, 8, 2, 7, 1, 0, 6, 3, 5} {
		rr, err := dns.NewRR(names[i] + " A 192.0.2.1")
		if err != nil {
			t.Fatal(err)
		}
		rrs = append(rrs, rr)
	}
	z, err := New("example.", rrs)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := range NewTable(z).Records(z) {
		if r.Type == dns.TypeA {
			got = append(got, Text(r.Owner))
		}
	}
	for i, name := range names {
		names[i] = strings.ToLower(name)
	}
	if !slices.Equal(got, names) {
		t.Errorf("got %q, want %q", got, names)
	}
	again, err := NewOf("example.", 0, NewTable(z).Records(z))
	if err != nil || !slices.Equal(rows(t, again), rows(t, z)) {
		t.Errorf("a zone of these is another: %v", err)
	}
}

func TestManyNamesAreFoundInOneZoneAndInManyZones(t *testing.T) {
	const n = 20_000
	e, err := newEdit("example.com.", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.AddRow(soaRow()); err != nil {
		t.Fatal(err)
	}
	var name Name
	for i := range n {
		_ = name.Parse(fmt.Sprintf("h%d.example.com.", i))
		if _, err := e.AddRow(Row{name.Wire(), dns.TypeA, 60, []byte{byte(i), byte(i >> 8), 0, 0}}); err != nil {
			t.Fatal(err)
		}
	}
	large, err := e.Zone()
	if err != nil {
		t.Fatal(err)
	}
	if len(large.shards) < n/shardNames {
		t.Errorf("%d shards", len(large.shards))
	}
	s := &spec.Spec{HostedZones: map[string]*spec.HostedZone{}}
	for i := range n / 10 {
		zone := fmt.Sprintf("z%d.example", i)
		s.HostedZones[zone] = &spec.HostedZone{Name: zone, Records: spec.RecordsOf(spec.Record{Name: "www", Type: "A", Values: []string{fmt.Sprintf("192.0.%d.%d", i>>8&255, i&255)}})}
	}
	table, err := Compile(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		_ = name.Parse(fmt.Sprintf("h%d.example.com.", i))
		set, _, _ := table.Node(large, &name).Find(dns.TypeA)
		if data, _ := set.Next(); data[0] != byte(i) || data[1] != byte(i>>8) {
			t.Fatalf("h%d has % x", i, data)
		}
	}
	for i := range n / 10 {
		_ = name.Parse(fmt.Sprintf("www.z%d.example.", i))
		z := table.Find(&name, 0)
		set, _, _ := table.Match(z, &name).Node.Find(dns.TypeA)
		if data, _ := set.Next(); data[2] != byte(i>>8) || data[3] != byte(i) {
			t.Fatalf("z%d has % x", i, data)
		}
	}
}

func soaRow() Row {
	rr, _ := dns.NewRR("example.com. SOA ns. hostmaster. 1 2 3 4 5")
	data, _ := dataOf(rr)
	var name Name
	_ = name.Parse("example.com.")
	return Row{slices.Clone(name.Wire()), dns.TypeSOA, 60, data}
}

// spent is how long the processors have worked for this process.
func spent() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkMillion is a zone of a million A records: how long it takes to make, what it holds, and to look up and to change one name.
func BenchmarkMillion(b *testing.B) {
	const n = 1_000_000
	var name Name
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before, began := heap(), spent()
	records := func(yield func(Row) bool) {
		if !yield(soaRow()) {
			return
		}
		for i := range n {
			_ = name.Parse(fmt.Sprintf("h%d.example.com.", i))
			if !yield(Row{name.Wire(), dns.TypeA, 60, []byte{10, byte(i >> 16), byte(i >> 8), byte(i)}}) {
				return
			}
		}
	}
	z, err := NewOf("example.com.", n, records)
	if err != nil {
		b.Fatal(err)
	}
	took := spent() - began
	held := heap() - before
	table := NewTable(z)
	b.Run("match", func(b *testing.B) {
		b.ReportAllocs()
		wires := make([][]byte, 4096)
		for i := range wires {
			_ = name.Parse(fmt.Sprintf("h%d.example.com.", i*7919%n))
			wires[i] = slices.Clone(name.Wire())
		}
		for i := 0; b.Loop(); i++ {
			name.Set(wires[i%len(wires)])
			if table.Match(z, &name).Kind != Exact {
				b.Fatal("not there")
			}
		}
		b.ReportMetric(took.Seconds(), "load-cpu-s")
		b.ReportMetric(float64(held)/n, "B/record")
	})
	b.Run("change", func(b *testing.B) {
		b.ReportAllocs()
		_ = name.Parse("h77777.example.com.")
		owner := slices.Clone(name.Wire())
		for i := 0; b.Loop(); i++ {
			e := z.Edit()
			if _, err := e.AddRow(Row{owner, dns.TypeA, 60, []byte{192, 0, 2, byte(i)}}); err != nil {
				b.Fatal(err)
			}
			if _, err := e.Zone(); err != nil {
				b.Fatal(err)
			}
		}
	})
	runtime.KeepAlive(z)
}
