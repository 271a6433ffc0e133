package node

import (
	"fmt"
	"strings"
	"testing"

	"github.com/perigee-net/perigee/dnsgeo"
	"github.com/perigee-net/perigee/edge/accelerator"
	"github.com/perigee-net/perigee/edge/cdn"
	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/origin"
)

// BenchmarkApplyOne is what one change costs in a network of many resources, without disk and wire: the leader judges
// it, and every node builds the spec of it and gives that to its planes.
func BenchmarkApplyOne(b *testing.B) {
	for _, resources := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(resources), func(b *testing.B) { applyOneOf(b, resources) })
	}
}

func applyOneOf(b *testing.B, resources int) {
	var yaml strings.Builder
	yaml.WriteString(region)
	for i := range resources / 3 {
		region := "eu-central-1"
		if i >= 1000 { // a node carries its own region's
			region = "us-east-1"
		}
		fmt.Fprintf(&yaml, "---\nkind: TargetGroup\nname: g%d\nregion: %s\nprotocol: HTTP\nport: 80\ntargets: [{address: 10.%d.%d.1}]\n", i, region, i/250, i%250)
		fmt.Fprintf(&yaml, "---\nkind: LoadBalancer\nname: l%d\nregion: %s\nlisteners:\n  - {protocol: HTTP, port: %d, default: {forward: g%d}}\n", i, region, 1024+i, i)
		fmt.Fprintf(&yaml, "---\nkind: Distribution\nname: d%d\naliases: [d%d.example.com]\norigins: [{name: o, loadBalancers: [l%d]}]\ndefaultCacheBehavior: {targetOrigin: o}\n", i, i, i)
	}
	yaml.WriteString("---\nkind: Region\nname: us-east-1\n")
	over := emptyBase(b)
	big := testPlanner()
	big.whole = true
	p, err := big.apply(over, operator, api.ApplyRequest{Files: []api.File{{Name: "big.yaml", Data: yaml.String()}}})
	if err != nil {
		b.Fatal(err)
	}
	over = after(b, over, p)
	edge := cdn.New(cdn.Config{CacheBytes: 1 << 20})
	defer edge.Close()
	balancers := origin.New(origin.Config{Region: "eu-central-1"})
	defer balancers.Close()
	n := &Node{planes: []plane{balancers, edge, accelerator.New(accelerator.Config{}), dnsgeo.New(dnsgeo.Config{})}}
	change := api.ApplyRequest{}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		change.Files = []api.File{{Name: "one.yaml", Data: fmt.Sprintf("kind: TargetGroup\nname: g7\nregion: eu-central-1\nprotocol: HTTP\nport: %d\ntargets: [{address: 10.0.7.1}]\n", 1000+i%1000)}}
		p, err := testPlanner().apply(over, operator, change)
		if err != nil {
			b.Fatal(err)
		}
		over = after(b, over, p)
		for _, p := range n.planes {
			if err := applyOne(p, over.spec); err != nil {
				b.Fatal(err)
			}
		}
	}
}
