package node

import (
	"fmt"
	"strings"
	"testing"
	"time"

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

// BenchmarkUpdateOneRecord is what an update of one record of a zone of 10,000 costs the leader, until its own name service answers by it.
func BenchmarkUpdateOneRecord(b *testing.B) {
	var yaml strings.Builder
	yaml.WriteString("kind: HostedZone\nname: example.com\nupdate: {allow: [{key: k}]}\nrecords:\n")
	for i := range 9_900 {
		fmt.Fprintf(&yaml, "  - {name: h%d, type: A, ttl: 300, values: [10.1.%d.%d]}\n", i, i/250, i%250)
	}
	over, names := stateOf(b, updateKey, yaml.String()), dnsgeo.New(dnsgeo.Config{})
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		p, err := testPlanner().update(over, "a", updateBy(wireUpdate(b, time.Now(), fmt.Sprintf("n%d", i%100), 0, fmt.Sprint(i))))
		if err != nil {
			b.Fatal(err)
		}
		over = after(b, over, p)
		if err := applyOne(names, over.spec); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkApplyOneRecord is what a change of one record of a zone of 10,000 costs, likewise.
func BenchmarkApplyOneRecord(b *testing.B) {
	zone := func(last int) string {
		var yaml strings.Builder
		yaml.WriteString("kind: HostedZone\nname: example.com\nrecords:\n")
		for i := range 9_999 {
			fmt.Fprintf(&yaml, "  - {name: h%d, type: A, ttl: 300, values: [10.1.%d.%d]}\n", i, i/250, i%250)
		}
		fmt.Fprintf(&yaml, "  - {name: last, type: A, ttl: 300, values: [192.0.2.%d]}\n", last)
		return yaml.String()
	}
	texts := [...]string{zone(0), zone(1), zone(2)}
	over, names := emptyBase(b), dnsgeo.New(dnsgeo.Config{})
	apply := func(last int) {
		p, err := testPlanner().apply(over, operator, api.ApplyRequest{Files: []api.File{{Name: "zone.yaml", Data: texts[last]}}})
		if err != nil {
			b.Fatal(err)
		}
		over = after(b, over, p)
		if err := applyOne(names, over.spec); err != nil {
			b.Fatal(err)
		}
	}
	apply(0)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		apply(1 + i%2)
	}
}
