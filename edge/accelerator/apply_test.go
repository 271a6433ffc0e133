package accelerator

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/perigee-net/perigee/cluster/spec"
)

func anAddress(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}

func anAccelerator(name string, ports []spec.PortRange, addresses ...netip.Addr) *spec.Accelerator {
	enabled, dial, weight := true, 100.0, 128
	return &spec.Accelerator{Name: name, Enabled: &enabled, IPAddresses: addresses, Listeners: []spec.AcceleratorListener{{
		Protocol: spec.TCP, PortRanges: ports, ClientAffinity: spec.AffinityNone, IdleTimeout: new(spec.Duration(340 * time.Second)), FailoverScope: spec.FailoverClosest,
		EndpointGroups: []spec.EndpointGroup{{Region: "r", TrafficDial: &dial, Endpoints: []spec.Endpoint{{TargetGroup: "g", Weight: &weight}}}},
	}}}
}

// edited draws a spec that differs from another in a few accelerators; it may be one that is to be refused.
func edited(t *rapid.T, s *spec.Spec) *spec.Spec {
	next := &spec.Spec{Revision: s.Revision + 1, Accelerators: maps.Clone(s.Accelerators)}
	for range rapid.IntRange(0, 3).Draw(t, "edits") {
		name := rapid.StringMatching(`[a-d]`).Draw(t, "name")
		if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
			delete(next.Accelerators, name)
			continue
		}
		var ports []spec.PortRange
		for range rapid.IntRange(1, 2).Draw(t, "ranges") {
			from := uint16(rapid.IntRange(1, 30).Draw(t, "from"))
			r := spec.PortRange{FromPort: from}
			if rapid.Bool().Draw(t, "range") {
				r.ToPort = from + uint16(rapid.IntRange(0, 6).Draw(t, "more"))
			}
			ports = append(ports, r)
		}
		var addresses []netip.Addr
		for n := range 3 {
			if rapid.Bool().Draw(t, "address") {
				addresses = append(addresses, anAddress(n))
			}
		}
		a := anAccelerator(name, ports, addresses...)
		*a.Enabled = rapid.IntRange(0, 4).Draw(t, "enabled") > 0
		switch rapid.IntRange(0, 20).Draw(t, "protocol") {
		case 0:
			a.Listeners[0].Protocol = "SCTP"
		case 1, 2, 3, 4, 5:
			a.Listeners[0].Protocol = spec.UDP
		}
		next.Accelerators[name] = a
	}
	return next
}

func TestAPlaneThatWasChangedIsAsOneThatWasMadeAnew(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := New(Config{})
		s := &spec.Spec{Accelerators: map[string]*spec.Accelerator{}}
		good := s
		for range rapid.IntRange(1, 10).Draw(t, "revisions") {
			s = edited(t, s)
			before := p.table.Load()
			err := p.Apply(s)
			fresh := New(Config{})
			freshErr := fresh.Apply(s)
			if (err == nil) != (freshErr == nil) {
				t.Fatalf("changed: %v, anew: %v", err, freshErr)
			}
			if err == nil {
				good = s
			} else if p.table.Load() != before || fresh.Apply(good) != nil {
				t.Fatal("the one before does not stand")
			}
			if !slices.Equal(p.Listeners(), fresh.Listeners()) {
				t.Fatalf("got %v, want %v", p.Listeners(), fresh.Listeners())
			}
			for _, protocol := range []string{spec.TCP, spec.UDP} {
				open := map[netip.AddrPort]string{}
				for _, l := range p.Listeners() {
					if l.Protocol == protocol {
						open[l.Address] = l.Accelerator
					}
				}
				for n := range 3 {
					for port := range uint16(40) {
						at := netip.AddrPortFrom(anAddress(n), port)
						got, ok := p.table.Load().entry(protocol, at)
						want, wanted := fresh.table.Load().entry(protocol, at)
						if got != want || ok != wanted {
							t.Fatalf("%v: got %v, want %v", at, got, want)
						}
						if name, is := open[at]; is != ok || is && got.accelerator != good.Accelerators[name] {
							t.Fatalf("%s %v: listens %v, is answered %v", protocol, at, is, ok)
						}
					}
				}
			}
			if err != nil && rapid.Bool().Draw(t, "go back") {
				s = good
			}
		}
	})
}

// All on addresses of their own, and all on one.
func BenchmarkApplyOneOf100000(b *testing.B) {
	const n = 100_000
	for _, c := range []struct {
		name string
		make func(i int) *spec.Accelerator
		n    int
	}{
		{"100000 addresses", func(i int) *spec.Accelerator {
			return anAccelerator(fmt.Sprintf("tcp-%d", i), []spec.PortRange{{FromPort: 443}}, anAddress(i))
		}, n},
		{"10000 addresses", func(i int) *spec.Accelerator { // as where a tenth of all is accelerators
			return anAccelerator(fmt.Sprintf("tcp-%d", i), []spec.PortRange{{FromPort: 443}}, anAddress(i))
		}, n / 10},
		{"60000 on one address", func(i int) *spec.Accelerator {
			return anAccelerator(fmt.Sprintf("tcp-%d", i), []spec.PortRange{{FromPort: uint16(i + 1)}}, anAddress(0))
		}, 60_000},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := &spec.Spec{Accelerators: map[string]*spec.Accelerator{}}
			for i := range c.n {
				a := c.make(i)
				s.Accelerators[a.Name] = a
			}
			next := &spec.Spec{Accelerators: maps.Clone(s.Accelerators)}
			next.Accelerators["tcp-40"] = c.make(40)
			before := heap()
			p := New(Config{})
			if err := p.Apply(s); err != nil {
				b.Fatal(err)
			}
			kept := heap() - before
			b.ReportAllocs()
			specs := []*spec.Spec{next, s}
			for i := 0; b.Loop(); i++ {
				if err := p.Apply(specs[i%2]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(kept)/float64(c.n), "B/resource")
			runtime.KeepAlive(s)
		})
	}
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
