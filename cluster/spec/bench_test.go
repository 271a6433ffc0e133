package spec

import (
	"fmt"
	"strings"
	"testing"
)

// tenThousand is a network of 10,000 resources: regions, target groups, load balancers and distributions that
// refer to each other.
func tenThousand() string {
	var b strings.Builder
	for i := range 10 {
		fmt.Fprintf(&b, "kind: Region\nname: r%d\nlocation: {latitude: %d, longitude: %d}\npops: [{name: p%d}]\n---\n", i, i, i, i)
	}
	for i := range 3330 {
		fmt.Fprintf(&b, `kind: TargetGroup
name: tg-%[1]d
region: r%[2]d
protocol: HTTP
port: 8080
targets:
  - address: 10.0.0.1
  - address: 10.0.0.2
    port: 81
healthCheck:
  path: /health
  interval: 10
---
kind: LoadBalancer
name: lb-%[1]d
region: r%[2]d
listeners:
  - protocol: HTTP
    port: %[3]d
    rules:
      - priority: 10
        conditions:
          - pathPattern: [/api/*]
        action: {forward: tg-%[1]d}
    default:
      forward: tg-%[1]d
---
kind: Distribution
name: d-%[1]d
aliases: [www%[1]d.example.com]
origins:
  - name: web
    loadBalancers: [lb-%[1]d]
defaultCacheBehavior:
  targetOrigin: web
  viewerProtocolPolicy: redirect-to-https
---
`, i, i%10, 1024+i)
	}
	return b.String()
}

func zoneOf(records int) string {
	var b strings.Builder
	b.WriteString("kind: HostedZone\nname: example.com\nrecords:\n")
	for i := range records {
		fmt.Fprintf(&b, "  - name: www%d\n    type: A\n    ttl: 60\n    values: [192.0.2.1]\n", i)
	}
	return b.String()
}

func BenchmarkSplit10000(b *testing.B) {
	text := []byte(tenThousand())
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Split("bench.yaml", text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBuild10000(b *testing.B) { benchmarkBuild(b, tenThousand()) }

func BenchmarkBuildZoneOf10000(b *testing.B) { benchmarkBuild(b, zoneOf(10000)) }

func benchmarkBuild(b *testing.B, text string) {
	docs := mustSplit(b, text)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Build(1, docs); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDiffOfOneIn10000(b *testing.B) {
	text := tenThousand()
	old, new := mustSplit(b, text), mustSplit(b, strings.Replace(text, "port: 8080", "port: 80", 1))
	b.ReportAllocs()
	for b.Loop() {
		if changes := Diff(old, new); len(changes) != 1 {
			b.Fatal(changes)
		}
	}
}
