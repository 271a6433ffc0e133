//go:build linux

package testbed

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/perigee-net/perigee/node/api"
	"github.com/perigee-net/perigee/testbed/procs"
)

// These benchmarks are of real processes on the loopback of one machine: one run of each is one row (make bench, -benchtime 1x).
// The processes share the machine's cores, so the rows of 50 nodes are of 50 nodes on as few cores as that.

var idleFor = flag.Duration("bench.idle", 30*time.Second, "how long a node without work is watched")

// benchCluster founds a cluster of processes.
func benchCluster(b *testing.B, nodes int) (*procs.Cluster, context.Context) {
	b.Helper()
	dir, err := os.MkdirTemp("", "procs-") // b.TempDir's path is too long for a unix socket
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	binary := os.Getenv("PERIGEE_BENCH_BINARY") // one with a profiler, say
	if binary == "" {
		binary = filepath.Join(dir, "perigee")
		if err := procs.Build(b.Context(), binary); err != nil {
			b.Fatal(err)
		}
	}
	c, err := procs.Open(binary, dir)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if b.Failed() {
			for _, n := range c.Nodes[:min(len(c.Nodes), 5)] {
				b.Logf("the end of the log of %s:\n%s", n.Name, n.Log(1000))
			}
		}
		c.Close()
	})
	c.Env = []string{"GODEBUG=gctrace=1"}
	ctx, cancel := context.WithTimeout(b.Context(), 20*time.Minute)
	b.Cleanup(cancel)
	if err := c.Found(ctx, nodes, min(5, nodes-1+nodes%2)); err != nil {
		b.Fatal(err)
	}
	return c, ctx
}

// collected is a line of the runtime's about one garbage collection: what is live after it is the third size.
var collected = regexp.MustCompile(`gc \d+ @.*, \d+->\d+->(\d+) MB`)

// heap is what was live at a node's last garbage collection, in bytes.
func heap(n *procs.Node) float64 {
	all := collected.FindAllStringSubmatch(n.Log(1<<20), -1)
	if len(all) == 0 {
		return 0
	}
	var mb float64
	fmt.Sscan(all[len(all)-1][1], &mb)
	return mb * (1 << 20)
}

// awaitCollection waits until nodes without work have collected their garbage of their own accord, as they do after two minutes.
func awaitCollection(b *testing.B, nodes ...*procs.Node) {
	b.Helper()
	before := make([]int, len(nodes))
	for i, n := range nodes {
		before[i] = strings.Count(n.Log(1<<20), "(forced)")
	}
	deadline := time.Now().Add(*idleFor * 5)
	for i, n := range nodes {
		for strings.Count(n.Log(1<<20), "(forced)") == before[i] && time.Now().Before(deadline) {
			time.Sleep(time.Second)
		}
	}
	time.Sleep(5 * time.Second) // and given it back
}

// ran is when a node began to run a revision, by its log.
func ran(n *procs.Node, revision uint64) (time.Time, bool) {
	want := fmt.Sprintf("msg=runs node=%s revision=%d", n.Name, revision)
	lines := bufio.NewScanner(strings.NewReader(n.Log(64 << 10)))
	for lines.Scan() {
		if stamp, is := strings.CutPrefix(lines.Text(), "time="); is && strings.HasSuffix(stamp, want) {
			stamp, _, _ = strings.Cut(stamp, " ")
			at, err := time.Parse(time.RFC3339Nano, stamp)
			return at, err == nil
		}
	}
	return time.Time{}, false
}

// toAll waits until all nodes run a revision, and says how long after a time the last of them did (in steps of a millisecond).
func toAll(b *testing.B, c *procs.Cluster, began time.Time, revision uint64) time.Duration {
	b.Helper()
	deadline := time.Now().Add(time.Minute)
	var last time.Time
	for _, n := range c.Nodes {
		for {
			at, is := ran(n, revision)
			if is {
				if at.After(last) {
					last = at
				}
				break
			}
			if skipped(n, revision) {
				break
			}
			if time.Now().After(deadline) {
				b.Fatalf("%s does not run revision %d", n.Name, revision)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return max(0, last.Sub(began))
}

// skipped says that a node runs a revision after the one asked for.
func skipped(n *procs.Node, revision uint64) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	st, err := n.Client().Status(ctx)
	return err == nil && st.Running > revision
}

// middle is the value below which a share of the others lies.
func middle(of []time.Duration, share float64) float64 {
	if len(of) == 0 {
		return 0
	}
	slices.Sort(of)
	return of[int(share*float64(len(of)-1))].Seconds() * 1000
}

// BenchmarkCluster is what changes cost in clusters of several sizes, and what a node costs that has nothing to do.
func BenchmarkCluster(b *testing.B) {
	for _, nodes := range []int{3, 10, 50} {
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) {
			c, ctx := benchCluster(b, nodes)
			leader := c.Leader(ctx)
			if leader == nil {
				b.Fatal("nobody leads")
			}
			client := leader.Client()
			if _, err := client.Apply(ctx, api.ApplyRequest{Files: []api.File{{Name: "r.yaml", Data: "kind: Region\nname: eu-central-1\n"}}}); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				benchIdle(b, c)
				benchToAll(ctx, b, c, client)
				benchSerial(ctx, b, c, client)
				benchAtOnce(ctx, b, client)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// benchIdle watches the node that joined last.
func benchIdle(b *testing.B, c *procs.Cluster) {
	time.Sleep(5 * time.Second)
	n := c.Nodes[len(c.Nodes)-1]
	before, err := n.CPU()
	if err != nil {
		b.Fatal(err)
	}
	time.Sleep(*idleFor)
	after, err := n.CPU()
	if err != nil {
		b.Fatal(err)
	}
	now, _, err := n.Memory()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(100*float64(after-before)/float64(*idleFor), "idle-cpu-%")
	b.ReportMetric(float64(now)/(1<<20), "idle-rss-MB")
	b.ReportMetric(heap(n)/(1<<20), "idle-heap-MB")
}

func benchToAll(ctx context.Context, b *testing.B, c *procs.Cluster, client *api.Client) {
	var spans, waits []time.Duration
	for i := range 20 {
		began := time.Now()
		res, err := client.Apply(ctx, api.ApplyRequest{Files: group("to-all", i+1)})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := client.Wait(ctx, res.Revision, time.Minute); err != nil {
			b.Fatal(err)
		}
		waits = append(waits, time.Since(began))
		spans = append(spans, toAll(b, c, began, res.Revision))
		time.Sleep(100 * time.Millisecond)
	}
	b.ReportMetric(middle(spans, 0.5), "to-all-p50-ms")
	b.ReportMetric(middle(spans, 1), "to-all-max-ms")
	b.ReportMetric(middle(waits, 0.5), "apply--wait-p50-ms")
}

func benchSerial(ctx context.Context, b *testing.B, c *procs.Cluster, client *api.Client) {
	var spans []time.Duration
	follower := c.Nodes[len(c.Nodes)-1]
	before, err := follower.CPU()
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	for i := 0; time.Since(began) < 3*time.Second; i++ {
		one := time.Now()
		if _, err := client.Apply(ctx, api.ApplyRequest{Files: group("serial", i%60000+1)}); err != nil {
			b.Fatal(err)
		}
		spans = append(spans, time.Since(one))
	}
	b.ReportMetric(float64(len(spans))/time.Since(began).Seconds(), "serial-applies/s")
	after, err := follower.CPU()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(1000*(after-before).Seconds()/float64(len(spans)), "follower-cpu-ms/change")
	b.ReportMetric(middle(spans, 0.5), "serial-p50-ms")
}

func benchAtOnce(ctx context.Context, b *testing.B, client *api.Client) {
	const clients, span = 64, 5 * time.Second
	var done, busy atomic.Int64
	var all sync.WaitGroup
	began := time.Now()
	for i := range clients {
		all.Go(func() {
			for port := 1; time.Since(began) < span; port++ {
				_, err := client.Apply(ctx, api.ApplyRequest{Files: group(fmt.Sprint("at-once-", i), port%60000+1)})
				var refused *api.Error
				switch {
				case err == nil:
					done.Add(1)
				case errors.As(err, &refused) && refused.Status == http.StatusTooManyRequests:
					busy.Add(1)
				default:
					b.Errorf("client %d: %v", i, err)
					return
				}
			}
		})
	}
	all.Wait()
	b.ReportMetric(float64(done.Load())/time.Since(began).Seconds(), "64-clients-applies/s")
	b.ReportMetric(float64(busy.Load()), "64-clients-429s")
}

// fleet is a spec of about so many resources, in files of at most 8 MiB: a hundred regions, of which the nodes stand in three;
// in equal shares target groups, load balancers that forward to them, distributions before those, health checks and zones.
func fleet(resources int) (files []api.File) {
	var now strings.Builder
	cut := func(least int) {
		if now.Len() > least {
			files = append(files, api.File{Name: fmt.Sprintf("fleet-%d.yaml", len(files)), Data: now.String()})
			now.Reset()
		}
	}
	regions := []string{"ap-northeast-2", "eu-central-1", "us-east-1"}
	for i := len(regions); i < 100; i++ {
		regions = append(regions, fmt.Sprintf("region-%d", i))
	}
	for i, r := range regions {
		fmt.Fprintf(&now, "---\nkind: Region\nname: %s\ncity: City\ncountry: KR\nlocation: {latitude: %d, longitude: %d}\npops: [{name: pop-%d}]\n", r, i%90, i, i)
	}
	for i := range resources / 5 {
		fmt.Fprintf(&now, `---
kind: TargetGroup
name: web-%[1]d
region: %[2]s
protocol: HTTP
port: 8080
targets:
  - {address: 127.80.%[3]d.%[4]d}
  - {address: 127.80.%[3]d.%[4]d, port: 8081}
healthCheck: {path: /healthz, interval: 300}
---
kind: LoadBalancer
name: web-%[1]d
region: %[2]s
listeners:
  - protocol: HTTP
    port: %[5]d
    default: {forward: web-%[1]d}
---
kind: Distribution
name: site-%[1]d
aliases: [www.site-%[1]d.example]
origins: [{name: web, loadBalancers: [web-%[1]d]}]
defaultCacheBehavior: {targetOrigin: web}
---
kind: HealthCheck
name: site-%[1]d
type: HTTP
ipAddress: 127.80.%[3]d.%[4]d
port: 8080
requestInterval: 300
---
kind: HostedZone
name: site-%[1]d.example
records:
  - {name: www, type: A, alias: {distribution: site-%[1]d}}
  - {name: old, type: A, ttl: 60, values: [192.0.2.%[4]d], setIdentifier: a, failover: PRIMARY, healthCheck: site-%[1]d}
  - {name: old, type: A, ttl: 60, values: [198.51.100.%[4]d], setIdentifier: b, failover: SECONDARY}
`, i, regions[i%len(regions)], i/250%250, i%250+1, 10000+i/len(regions))
		cut(7 << 20)
	}
	cut(0)
	return files
}

// BenchmarkClusterOfResources is what a spec of so many resources costs three nodes: to take it, to change one of it, to hold it, to
// start with it.
func BenchmarkClusterOfResources(b *testing.B) {
	for _, resources := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("resources=%d", resources), func(b *testing.B) {
			c, ctx := benchCluster(b, 3)
			for b.Loop() {
				benchResources(ctx, b, c, resources)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func benchResources(ctx context.Context, b *testing.B, c *procs.Cluster, resources int) {
	leader := c.Leader(ctx)
	if leader == nil {
		b.Fatal("nobody leads")
	}
	follower := c.Nodes[0]
	if follower == leader {
		follower = c.Nodes[1]
	}
	emptyHeap := heap(follower)
	empty, _, err := follower.Memory()
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	var revision uint64
	for _, f := range fleet(resources) {
		res, err := leader.Client().Apply(ctx, api.ApplyRequest{Files: []api.File{f}})
		if err != nil {
			b.Fatalf("%.1000v", err)
		}
		revision = res.Revision
	}
	b.ReportMetric(time.Since(began).Seconds()*1000, "apply-all-ms")
	b.ReportMetric(float64(toAll(b, c, began, revision))/float64(time.Millisecond), "all-running-ms")

	port := 9000
	for who, n := range map[string]*procs.Node{"leader": leader, "follower": follower} {
		var spans, all []time.Duration
		for i := range 20 {
			time.Sleep(200 * time.Millisecond)
			port++
			one := time.Now()
			res, err := n.Client().Apply(ctx, api.ApplyRequest{Files: []api.File{{Name: "one.yaml", Data: fmt.Sprintf(
				"kind: TargetGroup\nname: web-%d\nregion: eu-central-1\nprotocol: HTTP\nport: %d\ntargets: [{address: 127.80.0.1}]\nhealthCheck: {path: /healthz, interval: 300}\n", 1+100*(i%(resources/500)), port)}}})
			if err != nil {
				b.Fatal(err)
			}
			spans = append(spans, time.Since(one))
			all = append(all, toAll(b, c, one, res.Revision))
		}
		b.ReportMetric(middle(spans, 0.5), "change-at-"+who+"-p50-ms")
		b.ReportMetric(middle(spans, 1), "change-at-"+who+"-max-ms")
		b.ReportMetric(middle(all, 0.5), "change-to-all-"+who+"-p50-ms")
	}

	awaitCollection(b, leader, follower)
	for who, n := range map[string]*procs.Node{"leader": leader, "follower": follower} {
		now, peak, err := n.Memory()
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(now-empty)/float64(resources), who+"-rss-B/resource")
		b.ReportMetric((heap(n)-emptyHeap)/float64(resources), who+"-heap-B/resource")
		b.ReportMetric(float64(peak)/(1<<20), who+"-peak-MB")
	}

	follower.Kill()
	began = time.Now()
	if err := follower.Start(); err != nil {
		b.Fatal(err)
	}
	if err := follower.Await(ctx, "runs what it knows", func(ctx context.Context, client *api.Client) error {
		st, err := client.Status(ctx)
		if err == nil && st.Running < revision {
			err = fmt.Errorf("it runs revision %d", st.Running)
		}
		return err
	}); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(time.Since(began).Seconds()*1000, "restart-ms")
}
