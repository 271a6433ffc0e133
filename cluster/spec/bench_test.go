package spec

import (
	"fmt"
	"runtime"
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
		if _, err := Build(1, docs, Options{}); err != nil {
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

// hundredThousand is a network of 100,000 resources of every kind, as a large one could have them: of ten, three are target
// groups, two load balancers, two distributions, one a health check, one a zone of three records, and one an accelerator.
func hundredThousand() string {
	var b strings.Builder
	for i := range 20 {
		fmt.Fprintf(&b, "kind: Region\nname: region-%d\nlocation: {latitude: %d, longitude: %d}\npops: [{name: pop%d}]\n---\n", i, i, i, i)
	}
	group := func(name, region, protocol string, port int) {
		fmt.Fprintf(&b, "kind: TargetGroup\nname: %s\nregion: %s\nprotocol: %s\nport: %d\ntargets:\n  - address: 10.0.0.1\n  - address: 10.0.0.2\n    port: 81\n"+
			"healthCheck:\n  interval: 10\nlabels: {team: t%d}\n---\n", name, region, protocol, port, port%10)
	}
	for i := range 10_000 {
		region, port := fmt.Sprintf("region-%d", i%20), 1024+i/20*2
		group(fmt.Sprintf("web-%d", i), region, "HTTP", 8080)
		group(fmt.Sprintf("api-%d", i), region, "HTTP", 8081)
		group(fmt.Sprintf("tcp-%d", i), region, "TCP", 5432)
		fmt.Fprintf(&b, `kind: LoadBalancer
name: web-%[1]d
region: %[2]s
listeners:
  - protocol: HTTP
    port: %[3]d
    rules:
      - priority: 10
        conditions:
          - pathPattern: [/api/*]
        action: {forward: api-%[1]d}
    default:
      forward: web-%[1]d
---
kind: LoadBalancer
name: tcp-%[1]d
type: network
region: %[2]s
listeners: [{protocol: TCP, port: %[4]d, default: {forward: tcp-%[1]d}}]
---
kind: Distribution
name: web-%[1]d
aliases: [www%[1]d.example.com]
origins:
  - name: web
    loadBalancers: [web-%[1]d]
defaultCacheBehavior:
  targetOrigin: web
  viewerProtocolPolicy: redirect-to-https
---
kind: Distribution
name: static-%[1]d
aliases: [static%[1]d.example.com]
origins: [{name: s, url: "https://static%[1]d.example.net"}]
defaultCacheBehavior: {targetOrigin: s}
---
kind: HealthCheck
name: web-%[1]d
type: HTTP
ipAddress: 192.0.2.%[5]d
---
kind: HostedZone
name: z%[1]d.example.com
records:
  - {name: "@", type: A, alias: {distribution: web-%[1]d}}
  - {name: tcp, type: A, alias: {accelerator: tcp-%[1]d}}
  - {name: old, type: A, values: [192.0.2.1], setIdentifier: one, weight: 1, healthCheck: web-%[1]d}
---
kind: Accelerator
name: tcp-%[1]d
ipAddresses: [10.%[6]d.%[7]d.1]
listeners:
  - protocol: TCP
    portRanges: [{fromPort: 443}]
    endpointGroups:
      - region: %[2]s
        endpoints: [{loadBalancer: tcp-%[1]d}]
---
`, i, region, port, port+1, i%250+1, i/250, i%250)
	}
	return b.String()
}

// documentsOf splits what is more than a file may hold.
func documentsOf(tb testing.TB, text string) []Document {
	tb.Helper()
	var docs []Document
	for len(text) > 0 {
		const most = 8 << 20
		part := text
		if len(part) > most {
			part = part[:most+strings.Index(part[most:], "---\n")+4]
		}
		docs = append(docs, mustSplit(tb, part)...)
		text = text[len(part):]
	}
	return docs
}

// BenchmarkBuild100000 tells the memory of the spec, too: what stays on the heap of it, for each resource, without the documents.
func BenchmarkBuild100000(b *testing.B) {
	docs := documentsOf(b, hundredThousand())
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	var s *Spec
	for b.Loop() {
		var err error
		if s, err = Build(1, docs, Options{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(heap()-before)/float64(len(docs)), "B/resource")
	runtime.KeepAlive(s)
	runtime.KeepAlive(docs)
}

func BenchmarkWithOneOf100000(b *testing.B) {
	docs := documentsOf(b, hundredThousand())
	s, err := Build(1, docs, Options{})
	if err != nil {
		b.Fatal(err)
	}
	text := func(d Document) string { return string(d.Bytes) }
	find := func(kind, name string) Document {
		for _, d := range docs {
			if d.Kind == kind && d.Name == name {
				return d
			}
		}
		b.Fatal("no " + kind + " " + name)
		return Document{}
	}
	replaced := func(kind, name, old, new string) []Document {
		d := find(kind, name)
		d.Bytes = []byte(strings.ReplaceAll(text(d), old, new))
		return []Document{d}
	}
	renamed := func(kind, name, old, new, to string) []Document {
		docs := replaced(kind, name, old, new)
		docs[0].Name = to
		docs[0].Bytes = []byte(strings.Replace(text(docs[0]), "name: "+name, "name: "+to, 1))
		return docs
	}
	for _, c := range []struct {
		name string
		put  []Document
		del  []Ref
		ok   bool
	}{
		{"target group", replaced("TargetGroup", "web-77", "10.0.0.2", "10.0.0.3"), nil, true},
		{"load balancer", replaced("LoadBalancer", "web-77", "/api/", "/v1/"), nil, true},
		{"new load balancer", renamed("LoadBalancer", "web-77", "port: 1030", "port: 65000", "new"), nil, true},
		{"new distribution", renamed("Distribution", "web-77", "www77", "new", "new"), nil, true},
		{"accelerator", replaced("Accelerator", "tcp-77", "443", "444"), nil, true},
		{"zone", replaced("HostedZone", "z77.example.com", "192.0.2.1", "192.0.2.2"), nil, true},
		{"region", replaced("Region", "region-7", "latitude: 7", "latitude: 8"), nil, true},
		{"deleted zone", nil, []Ref{{"HostedZone", "z77.example.com"}}, true},
		{"deleted target group in use", nil, []Ref{{"TargetGroup", "web-77"}}, false},
		{"deleted region in use", nil, []Ref{{"Region", "region-7"}}, false},
		{"nothing", nil, nil, true},
	} {
		b.Run(strings.ReplaceAll(c.name, " ", "-"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.With(2, c.put, c.del, Options{Stored: true}); (err == nil) != c.ok {
					b.Fatal(err)
				}
			}
		})
	}
	runtime.KeepAlive(docs)
}
