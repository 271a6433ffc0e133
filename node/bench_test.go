package node

import (
	"fmt"
	"strings"
	"testing"

	"github.com/perigee-net/perigee/cluster/spec"
	"github.com/perigee-net/perigee/cluster/store"
	"github.com/perigee-net/perigee/dnsgeo"
	"github.com/perigee-net/perigee/edge/accelerator"
	"github.com/perigee-net/perigee/edge/cdn"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/origin"
)

// BenchmarkApply10000 is what one change costs in a network of 10,000 resources, without disk and wire: the
// leader validates the whole, and every node builds it and gives it to its planes.
func BenchmarkApply10000(b *testing.B) {
	var yaml strings.Builder
	yaml.WriteString(region)
	for i := range 3333 {
		fmt.Fprintf(&yaml, "---\nkind: TargetGroup\nname: g%d\nregion: eu-central-1\nprotocol: HTTP\nport: 80\ntargets: [{address: 10.%d.%d.1}]\n", i, i/250, i%250)
		fmt.Fprintf(&yaml, "---\nkind: LoadBalancer\nname: l%d\nregion: eu-central-1\nlisteners:\n  - {protocol: HTTP, port: %d, default: {forward: g%d}}\n", i, 1024+i, i)
		fmt.Fprintf(&yaml, "---\nkind: Distribution\nname: d%d\naliases: [d%d.example.com]\norigins: [{name: o, loadBalancers: [l%d]}]\ndefaultCacheBehavior: {targetOrigin: o}\n", i, i, i)
	}
	p, err := planOver(new(store.State), api.ApplyRequest{Files: []api.File{{Name: "big.yaml", Data: yaml.String()}}})
	if err != nil {
		b.Fatal(err)
	}
	state, _, err := new(store.State).With(p.change)
	if err != nil {
		b.Fatal(err)
	}
	edge := cdn.New(cdn.Config{CacheBytes: 1 << 20})
	defer edge.Close()
	balancers := origin.New(origin.Config{Region: "eu-central-1"})
	defer balancers.Close()
	n := &Node{planes: []plane{balancers, edge, accelerator.New(accelerator.Config{}), dnsgeo.New(dnsgeo.Config{})}}
	change := api.ApplyRequest{}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		change.Files = []api.File{{Name: "one.yaml", Data: fmt.Sprintf("kind: TargetGroup\nname: g7\nregion: eu-central-1\nprotocol: HTTP\nport: %d\ntargets: [{address: 10.0.7.1}]\n", 1000+i%1000)}}
		p, err := planOver(state, change)
		if err != nil {
			b.Fatal(err)
		}
		next, _, err := state.With(p.change)
		if err != nil {
			b.Fatal(err)
		}
		built, err := spec.Build(next.Revision, documents(next.Objects))
		if err != nil {
			b.Fatal(err)
		}
		for _, p := range n.planes {
			if err := applyOne(p, built); err != nil {
				b.Fatal(err)
			}
		}
		state = next
	}
}
