package accelerator

import (
	"net/netip"
	"testing"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/view"
	"github.com/perigee-net/perigee/origin/relay"
)

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
				lane: lane{"game", spec.TCP, local, "icn", "targetGroup/icn"}, client: client, by: Candidate{Node: "icn1"},
				moved: func() (int64, int64) { return 1, 1 }, leg: func() (relay.Leg, bool) { return relay.Leg{}, false }, reset: func(error) {},
			}
			p.carry(a, chosen, f)(nil)
		}
	})
}
