package accelerator

import (
	"net/netip"
	"testing"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
)

// carriedBy is a carriage.
type carriedBy struct {
	moved func() (in, out int64)
	reset func(error)
}

func (c carriedBy) Moved() (in, out int64) { return c.moved() }
func (c carriedBy) Break(err error)        { c.reset(err) }

// BenchmarkCarry is what a flow costs that carries nothing: it is counted, held as long as it lives, and judged where the view has changed since.
func BenchmarkCarry(b *testing.B) {
	s, v, a := up2().build()
	p := New(Config{View: func() *view.View { return v }})
	if err := p.Apply(s); err != nil {
		b.Fatal(err)
	}
	chosen := see(s, v)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		client := netip.MustParseAddrPort("203.0.113.9:40000")
		for pb.Next() {
			f := &live{
				lane: lane{"game", spec.TCP, local, "icn", "targetGroup/icn"}, client: client, node: "icn1", carried: carriedBy{moved: func() (int64, int64) { return 1, 1 }},
			}
			p.begin(a, chosen, f)
			f.broke(nil)
		}
	})
}
